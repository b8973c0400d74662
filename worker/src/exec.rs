//! `worker exec`: one command in a jail of its own, without a queue.
//!
//! The process that was started becomes the control side: it reads policy and host facts with the
//! caller's rights, hands the plan to the launcher, gives up its rights, and from then on only
//! carries bytes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use stockade_runtime::egress::Denial;
use stockade_runtime::host::{HostFacts, Level};
use stockade_runtime::jail::{
    self, End, EnforcementReport, Event, Failure, Launcher, Step, StepFailure,
};
use stockade_runtime::policy::network::DenyDetail;
use stockade_runtime::policy::{LIMIT_KEYS, Policy, variable_refused};
use stockade_runtime::spec::{self, BoundRequest, Request};

use crate::cli::policy;
use crate::cli::policy_choice::PolicyChoice;
use crate::exit::Exit;
use crate::explain;
use crate::footer;
use crate::network;
use crate::relay::{Relay, Streams};
use crate::sweep::run_directory;

/// Run a command in a jail
///
/// The command sees a read-only view of the host's programs, a workspace, and nothing else: no
/// network, no foreign process, no file of the host. Its exit status becomes the worker's; 124
/// means that the wall clock limit was reached, 128+n that signal n killed it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ExecArgs {
    #[command(flatten)]
    policy: PolicyChoice,

    /// Show DIR as /workspace, writable [default: a fresh one, gone afterwards]
    ///
    /// What the command changes is held to the policy's workspace limits and copied back when it
    /// has ended. It belongs to the owner of DIR then, and has no setuid or setgid bits.
    #[arg(long, value_name = "DIR")]
    workspace: Option<PathBuf>,

    /// Show DIR as /mnt/session/outputs, writable
    #[arg(long, value_name = "DIR")]
    outputs: Option<PathBuf>,

    /// Set a variable in the jail; may be given more than once
    #[arg(long = "env", value_name = "NAME=VALUE")]
    environment: Vec<String>,

    /// Lower a limit of the policy; may be given more than once
    ///
    /// Keys: memory, swap, pids, cpu, cpu-time, wall, disk, inodes, tmp, output, open-files. For
    /// example memory=512MiB, cpu=0.5, wall=30s. A higher limit needs a policy that says so.
    #[arg(long = "limit", value_name = "KEY=VALUE")]
    limits: Vec<String>,

    /// Give the command a terminal of its own
    #[arg(long)]
    tty: bool,

    /// Write the enforcement report to FILE, as JSON
    ///
    /// For every layer what was wanted, what was got and why; the forbidden acts tried before the
    /// command; timings; how it ended.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Stop for good at a step (crash tests); `help` lists the steps
    #[arg(long, value_name = "STEP", hide = true)]
    halt_at: Option<String>,

    /// The command and its arguments
    #[arg(trailing_var_arg = true, required_unless_present = "halt_at", value_name = "COMMAND")]
    command: Vec<OsString>,
}

const EXAMPLES: &str = "\
Examples:
  sudo worker exec -- bash -c 'id; ls /'
  sudo worker exec --workspace ~/project --limit memory=1GiB --limit wall=10m -- make test
  worker exec --policy offline -- python3 -c 'print(6 * 7)'";

/// What stops a run before a jail is tried: printed already, with its exit code.
struct Refused(Exit);

/// Runs the command and returns its status.
pub fn run(args: ExecArgs) -> anyhow::Result<Exit> {
    if args.halt_at.as_deref() == Some("help") {
        for step in Step::ALL {
            writeln!(io::stdout(), "{step}")?;
        }
        return Ok(Exit::Success);
    }
    if args.command.first().is_none_or(|command| command.is_empty()) {
        return Ok(usage("no command given", "worker exec [OPTIONS] -- COMMAND [ARGUMENTS]"));
    }
    let report_file = match &args.report {
        None => None,
        Some(path) => match File::create(path) {
            Ok(file) => Some(file),
            Err(error) => {
                let text = format!("cannot write the report to {}: {error}", path.display());
                return Ok(usage(&text, "name a file in a directory you may write to"));
            }
        },
    };
    // Split before a policy, a credential or a thread exists in this process.
    let level = HostFacts::level_here().context("cannot look at this process")?;
    let launcher = match Launcher::start(level) {
        Ok(launcher) => launcher,
        Err(failure) => return finish(refused(failure), report_file),
    };
    match prepare(&args, level)? {
        Err(Refused(exit)) => {
            launcher.wait();
            Ok(exit)
        }
        Ok(spec) => finish(start(launcher, spec, level)?, report_file),
    }
}

fn refused(failure: StepFailure) -> Outcome {
    Outcome::Failed(Failure::Step { failure, left: Vec::new() })
}

/// Everything that can be refused without making anything.
fn prepare(args: &ExecArgs, level: Level) -> anyhow::Result<Result<spec::JailSpec, Refused>> {
    let policy = match resolve_policy(args) {
        Ok(policy) => policy,
        Err(refused) => return Ok(Err(refused)),
    };
    let environment = match variables(&args.environment) {
        Ok(environment) => environment,
        Err(text) => return Ok(Err(Refused(usage(&text, "write --env NAME=VALUE")))),
    };
    if let Some(step) = &args.halt_at
        && Step::from_name(step).is_none()
    {
        let text = format!("no step is called `{step}`");
        return Ok(Err(Refused(usage(&text, "--halt-at help lists them"))));
    }
    let facts = jail::probe_host(level).context("cannot look at this host")?;
    let inspect = |path: &Path, what: &str| {
        jail::inspect(path, what).map_err(|error| {
            explain::complain(&error, Some(error.hint()));
            Refused(Exit::Usage)
        })
    };
    let bound = || -> Result<_, Refused> {
        let workspace = args.workspace.as_ref().map(|p| inspect(p, "the workspace")).transpose()?;
        let outputs = args.outputs.as_ref().map(|p| inspect(p, "the outputs")).transpose()?;
        let writable = policy.filesystem.writable.iter();
        let writable: Result<Vec<BoundRequest>, _> =
            writable.map(|path| inspect(&path.value, "a writable path of the policy")).collect();
        Ok((workspace, outputs, writable?))
    };
    let (workspace, outputs, writable) = match bound() {
        Ok(found) => found,
        Err(refused) => return Ok(Err(refused)),
    };
    let request = Request {
        argv: args.command.iter().map(|part| part.clone().into_vec()).collect(),
        environment,
        caller_environment: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        workspace,
        outputs,
        writable,
        tty: args.tty,
        halt_at: args.halt_at.clone(),
        ..Request::default()
    };
    Ok(match spec::build(&policy, &facts, request) {
        Ok(spec) => Ok(spec),
        Err(error) => {
            explain::complain(&error, Some(&error.hint()));
            Err(Refused(Exit::Isolation))
        }
    })
}

fn resolve_policy(args: &ExecArgs) -> Result<Policy, Refused> {
    let refuse = |error, exit| {
        // Nobody to tell is no reason to go on.
        let _unheard = policy::complain(&mut io::stderr(), &error);
        Refused(exit)
    };
    let policy = args.policy.resolve(&policy::read_policy_file);
    let mut policy = policy.map_err(|error| refuse(error, Exit::Policy))?;
    for limit in &args.limits {
        let Some((key, value)) = limit.split_once('=') else {
            let hint = format!("write --limit KEY=VALUE; keys: {}", LIMIT_KEYS.join(", "));
            return Err(Refused(usage(&format!("`{limit}` is not a limit"), &hint)));
        };
        policy.narrow_limit(key, value).map_err(|error| refuse(error, Exit::Usage))?;
    }
    Ok(policy)
}

/// `NAME=VALUE` pairs; the last one of a name wins.
fn variables(pairs: &[String]) -> Result<BTreeMap<String, String>, String> {
    let mut variables = BTreeMap::new();
    for pair in pairs {
        let (name, value) = pair.split_once('=').ok_or(format!("`{pair}` has no `=`"))?;
        if let Some(reason) = variable_refused(name) {
            return Err(format!("cannot set `{name}` in a jail: {reason}"));
        }
        if value.contains('\0') {
            return Err(format!("the value of `{name}` holds a NUL"));
        }
        variables.insert(name.to_owned(), value.to_owned());
    }
    Ok(variables)
}

/// What a jail came to.
enum Outcome {
    Ended { report: Option<Box<EnforcementReport>>, end: End, denials: Vec<Denial> },
    NoNetwork { source: io::Error },
    Failed(Failure),
    LauncherDied,
}

/// Hands the plan over, gives up the caller's rights, carries bytes.
fn start(mut launcher: Launcher, spec: spec::JailSpec, level: Level) -> anyhow::Result<Outcome> {
    let (output_max, egress) = (spec.output_bytes_max, spec.egress.clone());
    let streams = if spec.payload.tty { Streams::terminal() } else { Streams::pipes()? };
    let lent: Vec<BorrowedFd<'_>> = streams.payload_ends.iter().map(|fd| fd.as_fd()).collect();
    // A launcher that could not start has said why, and is read below.
    let handed = launcher.launch(spec, &run_directory(), &lent);
    // Ours must be the only ends left, or the payload's output would never end.
    drop(streams.payload_ends);
    let mut relay = Relay::new(streams.ours, output_max)?;
    if let Err(failure) = jail::drop_to_control_side(level) {
        return Ok(refused(failure));
    }
    let mut network = None;
    if handed.is_ok() {
        relay.carry(&mut launcher, |listeners| {
            let Some(plan) = egress.clone() else { return true };
            network.insert(network::serve(plan, listeners)).is_ok()
        })?;
    } else if let Ok(event) = launcher.event() {
        relay.event = Some(event);
    }
    let report = relay.report.take();
    let event = relay.event.take();
    drop(relay);
    launcher.wait();
    let denials = match network {
        None => Vec::new(),
        Some(Ok(network)) => network.end(),
        Some(Err(source)) => return Ok(Outcome::NoNetwork { source }),
    };
    Ok(match event {
        Some(Event::Ended(end)) => Outcome::Ended { report, end, denials },
        Some(Event::Failed(failure)) => Outcome::Failed(failure),
        Some(_) | None => Outcome::LauncherDied,
    })
}

/// Says how it was and writes the report.
fn finish(outcome: Outcome, report_file: Option<File>) -> anyhow::Result<Exit> {
    let (exit, document) = match outcome {
        Outcome::Ended { report, end, denials } => {
            if let Some(text) = footer::egress(&denials, DenyDetail::Full) {
                explain::say(&text);
            }
            tracing::info!(
                event = "jail.ended",
                status = end.status.code(),
                limits = end.limits.len(),
                wall_us = end.wall_us,
                cpu_us = end.cpu_us,
                memory_peak = end.memory_peak,
                teardown_us = end.teardown_us,
                "jail ended"
            );
            let exit = explain::end(&end);
            let report = report.map(|mut report| {
                report.end = Some(end);
                serde_json::to_value(&report)
            });
            (exit, report.transpose()?)
        }
        Outcome::Failed(failure) => {
            let document = serde_json::json!({
                "schema": "stockade.enforcement-report",
                "schema_version": 1,
                "refused": failure.to_string(),
            });
            (explain::failure(&failure), Some(document))
        }
        Outcome::NoNetwork { source } => {
            explain::say(&format!("error: cannot serve the jail's network: {source}"));
            explain::say("hint: raise the limit of open files (`ulimit -n`), or name fewer ports");
            (Exit::Isolation, None)
        }
        Outcome::LauncherDied => {
            explain::say("error: the launcher was killed; the jail is gone with it");
            explain::say("hint: `worker sweep` removes what it left");
            (Exit::Unexpected, None)
        }
    };
    if let (Some(mut file), Some(document)) = (report_file, document) {
        writeln!(file, "{document:#}").context("cannot write the report")?;
    }
    Ok(exit)
}

fn usage(text: &str, hint: &str) -> Exit {
    explain::say(&format!("error: {text}"));
    explain::say(&format!("hint: {hint}"));
    Exit::Usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_need_a_name_and_the_last_one_wins() {
        let pairs = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let found = variables(&pairs(&["A=1", "B=x=y", "A=2"])).expect("valid");
        assert_eq!(found.get("A").map(String::as_str), Some("2"));
        assert_eq!(found.get("B").map(String::as_str), Some("x=y"));
        for bad in ["A", "=1", "1A=2", "A-B=3", "A=\0", "ANTHROPIC_API_KEY=x", "LD_PRELOAD=x"] {
            assert!(variables(&pairs(&[bad])).is_err(), "`{bad}` was accepted");
        }
    }
}
