//! `worker doctor`: looks at this host by making real jails on it. A flag read from `/proc` is not
//! a check; where the report says that a layer holds, a jail with that layer has just run.

mod egress;

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Serialize;
use stockade_runtime::host::{CgroupOffer, HostFacts, Level};
use stockade_runtime::jail::{self, EnforcementReport, Event, Got, Launcher, Listener};
use stockade_runtime::policy::{Policy, Resolver};
use stockade_runtime::spec::{self, JailSpec, Request};

use crate::cli::{policy, syscall_groups};
use crate::exit::Exit;
use crate::sweep::run_directory;

/// Check what this host can give, by making real jails on it
///
/// Every line says what was found, and what to do about it where something is missing. Exits 5 if
/// the shipped `default` policy cannot be enforced here.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Status {
    Pass,
    /// Something is weaker or missing that the `default` policy does not need.
    Warn,
    Fail,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Check {
    id: String,
    status: Status,
    found: String,
    needed: String,
    fix: Option<String>,
}

/// Checks everything and says what to do about what fails.
pub fn run(args: &DoctorArgs) -> anyhow::Result<Exit> {
    let level = HostFacts::level_here().context("cannot look at this process")?;
    let facts = jail::probe_host(level).context("cannot look at this host")?;
    let mut checks = facts_checks(&facts);
    jail_checks(&facts, &mut checks)?;
    workspace_check(&facts, &mut checks)?;
    disk_check(&facts, &mut checks)?;
    // Last: it leaves threads behind, and launchers are started from a process of one.
    checks.push(egress::check(&facts)?);
    let failed = checks.iter().any(|check| check.status == Status::Fail);
    if args.json {
        let document = serde_json::json!({
            "schema": "stockade.doctor",
            "schema_version": 1,
            "level": level,
            "kernel": facts.kernel.release,
            "ok": !failed,
            "checks": checks,
        });
        writeln!(io::stdout(), "{document:#}")?;
    } else {
        print(&checks, level, failed)?;
    }
    Ok(if failed { Exit::Isolation } else { Exit::Success })
}

fn print(checks: &[Check], level: Level, failed: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let width = checks.iter().map(|check| check.id.len()).max().unwrap_or(0);
    for check in checks {
        let status = match check.status {
            Status::Pass => "PASS",
            Status::Warn => "WARN",
            Status::Fail => "FAIL",
        };
        writeln!(out, "{status}  {:width$}  {}", check.id, check.found)?;
        if let Some(fix) = &check.fix {
            writeln!(out, "      {:width$}  needed: {}", "", check.needed)?;
            writeln!(out, "      {:width$}  fix: {fix}", "")?;
        }
    }
    match (failed, level) {
        (true, _) => writeln!(out, "\nThis host cannot enforce the `default` policy as it is."),
        (false, Level::Root) => {
            writeln!(out, "\nThis host gives level `root`, the strongest there is.")
        }
        (false, Level::Rootless) => writeln!(
            out,
            "\nThis host gives level `rootless` to this user; started by root it gives `root`."
        ),
    }
}

/// What can be read without making anything.
fn facts_checks(facts: &HostFacts) -> Vec<Check> {
    let check = |id: &str, status, found: String, needed: &str, fix: Option<&str>| Check {
        id: id.to_owned(),
        status,
        found,
        needed: needed.to_owned(),
        fix: if status == Status::Pass { None } else { fix.map(str::to_owned) },
    };
    let grade = |good: bool, enough: bool| match (good, enough) {
        (true, _) => Status::Pass,
        (false, true) => Status::Warn,
        (false, false) => Status::Fail,
    };
    let kernel = &facts.kernel;
    let abi = facts.offers.landlock_abi;
    let (cgroup, found) = match &facts.offers.cgroup {
        CgroupOffer::V1 { controllers } => (true, format!("v1: {}", controllers.join(" "))),
        CgroupOffer::V2 { controllers } => (true, format!("v2: {}", controllers.join(" "))),
        CgroupOffer::Absent { reason } => (false, reason.clone()),
    };
    vec![
        check(
            "kernel",
            grade(kernel.at_least(6, 6), kernel.at_least(5, 19)),
            format!("Linux {}", kernel.release),
            "5.19; 6.6 for bound directories without a disk image",
            Some("boot a newer kernel"),
        ),
        check(
            "landlock",
            grade(abi >= 6, abi >= 2),
            format!("ABI {abi}"),
            "ABI 2; 6 (Linux 6.12) also scopes signals and abstract sockets",
            Some("boot Linux 6.12 or newer with `landlock` in the `lsm=` list"),
        ),
        check(
            "cgroup",
            grade(cgroup, facts.level == Level::Rootless),
            found,
            "memory, pids and cpu; without them limits hold per process only",
            Some(
                "run as root, or start the worker in a delegated cgroup v2 subtree: \
                 systemd-run --user --scope -p Delegate=yes worker …",
            ),
        ),
    ]
}

/// One line per layer of a jail that has just run under the shipped default policy.
fn jail_checks(facts: &HostFacts, checks: &mut Vec<Check>) -> anyhow::Result<()> {
    match probe(facts, "default", &[], None)? {
        Err(reason) => checks.push(Check {
            id: "jail".to_owned(),
            status: Status::Fail,
            found: reason.what,
            needed: "a jail under the `default` policy".to_owned(),
            fix: Some(reason.fix),
        }),
        Ok(report) => {
            for layer in &report.layers {
                let status = match (layer.got, layer.wanted.as_str()) {
                    (Got::Enforced, _) => Status::Pass,
                    (_, "required") => Status::Fail,
                    _ => Status::Warn,
                };
                checks.push(Check {
                    id: format!("jail.{}", layer.layer),
                    status,
                    found: layer.why.clone(),
                    needed: layer.wanted.clone(),
                    fix: None,
                });
            }
            let refused = report.canary.iter().filter(|act| act.ok).count();
            checks.push(Check {
                id: "jail.start".to_owned(),
                status: Status::Pass,
                found: format!(
                    "{:.1} ms to the first instruction; {refused} of {} forbidden acts refused",
                    report.timings.ready_us as f64 / 1000.0,
                    report.canary.len()
                ),
                needed: String::new(),
                fix: None,
            });
        }
    }
    Ok(())
}

/// A directory shown as the workspace, written to, and read back on the host.
fn workspace_check(facts: &HostFacts, checks: &mut Vec<Check>) -> anyhow::Result<()> {
    let directory = std::env::temp_dir().join(format!("stockade-doctor-{}", std::process::id()));
    std::fs::create_dir(&directory).context("cannot make a directory to bind")?;
    let outcome = probe(facts, "default", &[], Some(&directory));
    let found = std::fs::read_to_string(directory.join("probe")).unwrap_or_default();
    std::fs::remove_dir_all(&directory).context("cannot remove the directory that was bound")?;
    let outcome = outcome?;
    let (status, found, fix) = match outcome {
        Ok(_) if found == "written\n" => {
            (Status::Pass, "changes are held to the limits and copied back".to_owned(), None)
        }
        Ok(_) => (
            Status::Fail,
            "a change made inside did not arrive on the host".to_owned(),
            Some("report this with the output of `worker doctor --json`".to_owned()),
        ),
        Err(reason) => (Status::Warn, reason.what, Some(reason.fix)),
    };
    let needed = "exec --workspace and --outputs".to_owned();
    checks.push(Check { id: "bound-directory".to_owned(), status, found, needed, fix });
    Ok(())
}

/// A workspace on disk, which needs root, a loop device and mkfs.ext4.
fn disk_check(facts: &HostFacts, checks: &mut Vec<Check>) -> anyhow::Result<()> {
    if facts.level == Level::Rootless {
        return Ok(());
    }
    let (status, found, fix) = match probe(facts, "build", &["disk=16MiB"], None)? {
        Ok(_) => {
            (Status::Pass, "a file system of the policy's size on a loop device".to_owned(), None)
        }
        Err(reason) => (
            Status::Warn,
            reason.what,
            Some("install e2fsprogs and load the loop and ext4 modules".to_owned()),
        ),
    };
    let needed = "filesystem.workspace_storage = \"disk\", as in the policy `build`".to_owned();
    checks.push(Check { id: "disk-workspace".to_owned(), status, found, needed, fix });
    Ok(())
}

/// Why a probing jail did not run, and what to do.
struct Reason {
    what: String,
    fix: String,
}

/// Runs a small command in a jail and returns its report.
fn probe(
    facts: &HostFacts,
    name: &str,
    limits: &[&str],
    workspace: Option<&Path>,
) -> anyhow::Result<Result<EnforcementReport, Reason>> {
    let policy = shipped(name, limits)?;
    let workspace = match workspace.map(|path| jail::inspect(path, "the workspace")).transpose() {
        Ok(found) => found,
        Err(error) => return Ok(Err(Reason { what: error.to_string(), fix: error.hint().into() })),
    };
    let argv = ["sh", "-c", "echo written > /workspace/probe"];
    let request = Request {
        argv: argv.iter().map(|part| part.as_bytes().to_vec()).collect(),
        workspace,
        ..Request::default()
    };
    let spec = match spec::build(&policy, facts, request) {
        Ok(spec) => spec,
        Err(error) => return Ok(Err(Reason { what: error.to_string(), fix: error.hint() })),
    };
    let ran = run_jail(facts, spec, &mut |_| Ok(()))?;
    Ok(ran.and_then(|(report, output)| match output.is_empty() {
        true => Ok(report),
        false => Err(Reason {
            what: format!("the probe inside the jail failed: {}", output.trim()),
            fix: "report this with the output of `worker doctor --json`".to_owned(),
        }),
    }))
}

/// Is given the listeners of a jail when its command is about to run.
type Serve<'a> = &'a mut dyn FnMut(Vec<(Listener, OwnedFd)>) -> io::Result<()>;

/// Runs a jail to its end; returns its report and what its command printed.
fn run_jail(
    facts: &HostFacts,
    spec: JailSpec,
    serve: Serve<'_>,
) -> anyhow::Result<Result<(EnforcementReport, String), Reason>> {
    let mut launcher = match Launcher::start(facts.level) {
        Ok(launcher) => launcher,
        Err(failure) => return Ok(Err(step_reason(&failure))),
    };
    let (mut ours, theirs) = pipes()?;
    let lent: Vec<BorrowedFd<'_>> = theirs.iter().map(|fd| fd.as_fd()).collect();
    launcher.launch(spec, &run_directory(), &lent).context("cannot reach the launcher")?;
    drop(theirs);
    let outcome = listen(&mut launcher, serve);
    let mut output = String::new();
    ours.read_to_string(&mut output).context("cannot read what the jail printed")?;
    launcher.wait();
    Ok(outcome.map(|report| (report, output)))
}

/// Input that is at its end, and one pipe for output and error.
fn pipes() -> io::Result<(std::fs::File, [OwnedFd; 3])> {
    let (input, _closed) = pipe_with(PipeFlags::CLOEXEC)?;
    let (ours, output) = pipe_with(PipeFlags::CLOEXEC)?;
    let error = output.try_clone()?;
    Ok((ours.into(), [input, output, error]))
}

fn listen(launcher: &mut Launcher, serve: Serve<'_>) -> Result<EnforcementReport, Reason> {
    let (mut report, mut listeners) = (None, Vec::new());
    loop {
        match launcher.event() {
            Ok(Event::Listening(more)) => listeners.extend(more),
            Ok(Event::Running(running, _)) => {
                report = Some(*running);
                if !listeners.is_empty()
                    && let Err(error) = serve(std::mem::take(&mut listeners))
                {
                    return Err(Reason {
                        what: format!("cannot serve the jail's network: {error}"),
                        fix: "raise the limit of open files and of threads".to_owned(),
                    });
                }
            }
            // Not asked here.
            Ok(Event::Usage(_) | Event::Listened(_) | Event::Outside(_)) => {}
            Ok(Event::Ended(_)) => {
                return report.ok_or_else(|| Reason {
                    what: "the jail ended without a report".to_owned(),
                    fix: "report this with the output of `worker doctor --json`".to_owned(),
                });
            }
            Ok(Event::Failed(jail::Failure::Step { failure, .. })) => {
                return Err(step_reason(&failure));
            }
            Ok(Event::Failed(failure)) => {
                return Err(Reason {
                    what: failure.to_string(),
                    fix: "do not run sessions on this host".to_owned(),
                });
            }
            Err(_) => {
                return Err(Reason {
                    what: "the launcher was killed".to_owned(),
                    fix: "run `worker sweep`, and look at the kernel's log for a reason".to_owned(),
                });
            }
        }
    }
}

fn step_reason(failure: &jail::StepFailure) -> Reason {
    let fix = failure.hint().unwrap_or("look at the kernel's log and at the step's name");
    Reason { what: failure.to_string(), fix: fix.to_owned() }
}

fn shipped(name: &str, limits: &[&str]) -> anyhow::Result<Policy> {
    let groups = syscall_groups();
    let directories: [PathBuf; 0] = [];
    let resolver =
        Resolver { groups: &groups, directories: &directories, load: &policy::read_policy_file };
    let mut policy = resolver.resolve(name).context("a shipped policy does not resolve")?;
    for limit in limits {
        let (key, value) = limit.split_once('=').context("a limit of ours has no `=`")?;
        policy.narrow_limit(key, value).context("a limit of ours does not narrow")?;
    }
    Ok(policy)
}
