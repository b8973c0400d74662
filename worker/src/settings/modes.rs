//! Where work comes from and who serves it: what is particular to `worker run`, `worker serve` and
//! `worker poll --on-work`.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Access;

use super::{Refusal, Settings, Surroundings, at_least_1s, given, id, refuse};
use crate::cli::poll::PollArgs;
use crate::cli::run::RunArgs;
use crate::cli::serve::ServeArgs;

/// How a worker is driven.
#[derive(Debug, Clone)]
pub enum Mode {
    /// It asks for work all the time.
    Poll,
    /// The same, and a program of the operator's serves it.
    OnWork(OnWork),
    /// It serves one item that was claimed elsewhere.
    Run(Item),
    /// It asks for work when a webhook tells of it.
    Serve(Serve),
}

impl Mode {
    /// Whether sessions are served by somebody else.
    pub fn hands_over(&self) -> bool {
        matches!(self, Mode::OnWork(_))
    }

    /// Its name for programs.
    pub fn word(&self) -> &'static str {
        match self {
            Mode::Poll => "poll",
            Mode::OnWork(_) => "on-work",
            Mode::Run(_) => "run",
            Mode::Serve(_) => "serve",
        }
    }
}

/// The program that serves sessions (protocol §9.2).
#[derive(Debug, Clone)]
pub struct OnWork {
    /// Where it is: absolute, and executable when it was looked at (ONWORK-8).
    pub program: PathBuf,
    /// Its name as it was given: the program's first argument (ONWORK-1).
    pub name: OsString,
    /// Items are not stopped when it ends.
    pub detached: bool,
    /// It does not get the environment key.
    pub without_key: bool,
    /// The operator says that it runs sessions in jails.
    pub jailed: bool,
    /// What it gets as `ANTHROPIC_BASE_URL`, if the worker was told one.
    pub base_url: Option<String>,
}

/// The item of `worker run` (WRUN-1).
#[derive(Debug, Clone)]
pub struct Item {
    pub work: String,
    pub session: String,
    /// Where its secret is, unless that is in a variable.
    pub secret_file: Option<PathBuf>,
}

/// The webhook's listener (protocol §9.1).
#[derive(Debug, Clone)]
pub struct Serve {
    pub listen: SocketAddr,
    /// Begins with a slash.
    pub path: String,
    /// Where the signing key is, unless that is in a variable.
    pub key_file: Option<PathBuf>,
    /// Certificate chain and private key.
    pub tls: Option<(PathBuf, PathBuf)>,
    pub safety_poll: Duration,
}

/// ONWORK-10: an empty value and `in-process` mean that sessions are served here.
const IN_PROCESS: &str = "in-process";
/// Paths that the listener answers itself.
const OWN_PATHS: [&str; 2] = ["/healthz", "/readyz"];

impl Settings {
    /// The settings of `worker run`. What is missing is named in the order of WRUN-1.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check_run(args: &RunArgs, around: &Surroundings) -> Result<Settings, Refusal> {
        let session = needed("session id", "--session-id", args.session_id.as_deref())?;
        let work = needed("work id", "--work-id", args.work_id.as_deref())?;
        let secret_file = args.work_secret_file.clone().filter(|file| !file.as_os_str().is_empty());
        let mut poll = args.as_poll();
        // Nothing else is offered, and scripts that are here already do not say it.
        poll.session.jail = true;
        let own_log = poll.session.audit_file.is_none();
        let mut settings = Settings::check(&poll, around)?;
        if own_log {
            settings.audit_file = log_of_item(&settings.audit_file, &work);
        }
        settings.mode = Mode::Run(Item { work, session, secret_file });
        Ok(settings)
    }

    /// The settings of `worker serve`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check_serve(args: &ServeArgs, around: &Surroundings) -> Result<Settings, Refusal> {
        let mut settings = Settings::check(&args.as_poll(), around)?;
        let path = args.webhook_path.clone();
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
        if !path.starts_with('/') || path.len() > 200 || !path.bytes().all(plain) {
            return refuse(
                "cannot use --webhook-path: it is not a plain path",
                "write it like /webhook: letters, digits and -._~/",
            );
        }
        if OWN_PATHS.contains(&path.as_str()) {
            let text = format!("cannot use --webhook-path {path}: the worker answers there itself");
            return refuse(text, "use another one, such as /webhook");
        }
        settings.mode = Mode::Serve(Serve {
            listen: args.listen,
            path,
            key_file: args.webhook_key_file.clone(),
            tls: args.tls_cert.clone().zip(args.tls_key.clone()),
            safety_poll: at_least_1s("--safety-poll", args.safety_poll)?,
        });
        Ok(settings)
    }
}

fn needed(what: &str, option: &str, value: Option<&str>) -> Result<String, Refusal> {
    let variable = match option {
        "--session-id" => "ANTHROPIC_SESSION_ID",
        _ => "ANTHROPIC_WORK_ID",
    };
    match given(value) {
        Some(text) => id(option, text),
        None => refuse(
            format!("no {what} given"),
            format!("use {option} or {variable}; `worker poll --on-work` sets it for its script"),
        ),
    }
}

/// Several of them run at the same time, also beside a poller, and a log has one writer.
fn log_of_item(log: &Path, work: &str) -> PathBuf {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let name: String = work.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    log.with_file_name("work").join(format!("{name}.jsonl"))
}

/// The mode of `worker poll`.
pub fn of_poll(args: &PollArgs, around: &Surroundings) -> Result<Mode, Refusal> {
    let asked = &args.on_work;
    let script = asked.on_work.as_deref().unwrap_or_default();
    if script.is_empty() || script == IN_PROCESS {
        return Ok(Mode::Poll);
    }
    if args.session.jail && !asked.on_work_jailed {
        return refuse(
            "cannot combine --jail with --on-work: the worker does not know what the script does",
            "leave --jail out; or have the script run `worker run`, and add --on-work-jailed",
        );
    }
    // A variable is for the script as well, which inherits it.
    let config = args.session.config.as_ref().map(|file| file.as_os_str());
    let named = config.is_some() && config != (around.variable)("WORKER_CONFIG").as_deref();
    for (given, option) in [
        (named, "--config"),
        (args.session.workdir.is_some(), "--workdir"),
        (args.session.outputs_dir.is_some(), "--outputs-dir"),
        (args.session.tool_timeout.is_some(), "--tool-timeout"),
    ] {
        if given {
            return refuse(
                format!("cannot use {option} with --on-work: sessions are served by the script"),
                match option {
                    "--config" => {
                        "give it to `worker run` in the script, or set WORKER_CONFIG: custom tools, \
                         skills, memory and staging are for whoever serves the session"
                    }
                    _ => "give it to `worker run` in the script",
                },
            );
        }
    }
    Ok(Mode::OnWork(OnWork {
        program: program(script)?,
        name: script.to_owned(),
        detached: asked.on_work_detached,
        without_key: asked.on_work_without_key,
        jailed: asked.on_work_jailed,
        base_url: given(args.session.base_url.as_deref()).map(str::to_owned),
    }))
}

/// ONWORK-8: found and looked at before anything is claimed. A bare name is looked for in `PATH`.
fn program(script: &OsStr) -> Result<PathBuf, Refusal> {
    let shown = script.display();
    let path = Path::new(script);
    let found = if path.components().count() > 1 || script.as_encoded_bytes().contains(&b'/') {
        std::path::absolute(path).ok()
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places = std::env::split_paths(&path).map(|directory| directory.join(script));
        places.find(|place| runnable(place).is_ok())
    };
    let Some(found) = found else {
        let hint = format!("write ./{shown} if it is in this directory");
        return refuse(format!("cannot run --on-work {shown}: not found in PATH"), hint);
    };
    match runnable(&found) {
        Ok(()) => Ok(found),
        Err(error) => refuse(
            format!("cannot run --on-work {shown}: {error}"),
            format!("name an executable file that begins with #!: chmod +x {shown}"),
        ),
    }
}

fn runnable(path: &Path) -> std::io::Result<()> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    Ok(rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, rustix::fs::AtFlags::EACCESS)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::os::unix::fs::PermissionsExt as _;
    use stockade_runtime::host::Level;

    #[derive(Debug, Parser)]
    enum Cli {
        Poll(Box<PollArgs>),
        Run(Box<RunArgs>),
        Serve(Box<ServeArgs>),
    }

    fn check(line: &[&str]) -> Result<Settings, Refusal> {
        let around = Surroundings {
            level: Level::Root,
            variable: |_| None,
            host_name: "host.example".to_owned(),
            nonce: 1,
        };
        match Cli::try_parse_from(["worker"].iter().chain(line)).expect("arguments") {
            Cli::Poll(args) => Settings::check(&args, &around),
            Cli::Run(args) => Settings::check_run(&args, &around),
            Cli::Serve(args) => Settings::check_serve(&args, &around),
        }
    }

    #[test]
    fn the_first_value_that_is_missing_is_named_with_its_variable() {
        // WRUN-1: empty is absent.
        let cases: &[(&[&str], &str, &str)] = &[
            (&[], "no session id given", "ANTHROPIC_SESSION_ID"),
            (&["--session-id="], "no session id given", "ANTHROPIC_SESSION_ID"),
            (&["--session-id=s"], "no work id given", "ANTHROPIC_WORK_ID"),
            (
                &["--session-id=s", "--work-id=w"],
                "no environment id given",
                "ANTHROPIC_ENVIRONMENT_ID",
            ),
            (&["--session-id=s", "--work-id=a b"], "--work-id: it is not an id", ""),
        ];
        for (options, text, variable) in cases {
            let line: Vec<&str> = ["run"].iter().chain(*options).copied().collect();
            let refused = check(&line).expect_err(text);
            assert!(refused.text.contains(text), "{refused:?}");
            assert!(refused.hint.contains(variable), "{refused:?}");
        }
    }

    #[test]
    fn an_item_has_a_log_of_its_own_and_its_id_leads_nowhere_else() {
        let item = ["run", "--session-id=s", "--environment-id=e"];
        for (work, log) in [
            ("--work-id=work_1", "/var/log/stockade/work/work_1.jsonl"),
            ("--work-id=../../x", "/var/log/stockade/work/______x.jsonl"),
        ] {
            let line: Vec<&str> = item.iter().copied().chain([work]).collect();
            assert_eq!(check(&line).expect("valid").audit_file, Path::new(log));
        }
        let named: Vec<&str> =
            item.iter().copied().chain(["--work-id=w", "--audit-file=/a"]).collect();
        assert_eq!(check(&named).expect("valid").audit_file, Path::new("/a"));
    }

    #[test]
    fn an_empty_script_is_the_worker_itself_and_any_other_must_be_there() {
        // ONWORK-8, ONWORK-10.
        let place = tempfile::TempDir::new().expect("a directory");
        let path = |name: &str| place.path().join(name).display().to_string();
        let (good, plain) = (path("good"), path("plain"));
        for (file, mode) in [(&good, 0o755), (&plain, 0o644)] {
            std::fs::write(file, "#!/bin/sh\n").expect("written");
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(file, mode).expect("a mode");
        }
        let poll = |script: &str, more: &[&str]| {
            let script = format!("--on-work={script}");
            let base = ["poll", "--environment-id=e", &script];
            check(&base.iter().chain(more).copied().collect::<Vec<&str>>())
        };
        for script in ["", "in-process"] {
            assert!(matches!(poll(script, &["--jail"]).expect("valid").mode, Mode::Poll));
            assert!(poll(script, &[]).expect_err("no jail").text.contains("without a jail"));
        }
        let Mode::OnWork(found) = poll(&good, &[]).expect("valid").mode else { panic!("{good}") };
        assert_eq!((found.program, found.detached), (PathBuf::from(&good), false));
        let Mode::OnWork(found) = poll("true", &[]).expect("in PATH").mode else { panic!("true") };
        assert!(found.program.is_absolute());
        let gone = path("gone");
        let directory = place.path().display().to_string();
        for (script, text) in [
            (gone.as_str(), "No such file"),
            (plain.as_str(), "Permission denied"),
            (directory.as_str(), "not a regular file"),
            ("no-such-name", "not found in PATH"),
        ] {
            let refused = poll(script, &[]).expect_err(script);
            assert!(refused.text.contains(text), "{refused:?}");
        }
        assert!(poll(&good, &["--jail"]).expect_err("both").text.contains("cannot combine"));
        poll(&good, &["--jail", "--on-work-jailed"]).expect("said");
        let refused = poll(&good, &["--config=/c.toml"]).expect_err("no use");
        assert!(refused.text.contains("--config with --on-work"), "{refused:?}");
        assert!(refused.hint.contains("WORKER_CONFIG"), "{refused:?}");
        let workdir = format!("--workdir={directory}");
        assert!(poll(&good, &[&workdir]).expect_err("no use").text.contains("--workdir"));
    }

    #[test]
    fn the_path_of_the_webhook_is_plain_and_not_one_of_ours() {
        let serve = |option: &str| check(&["serve", "--jail", "--environment-id=e", option]);
        for option in ["--webhook-path=hook", "--webhook-path=/a?b", "--webhook-path=/healthz"] {
            assert!(serve(option).expect_err(option).text.contains("--webhook-path"));
        }
        assert!(serve("--safety-poll=10ms").is_err());
        let settings = serve("--webhook-path=/a/b").expect("valid");
        assert_eq!((settings.block_ms, settings.reclaim_older_than_ms), (None, Some(2000)));
    }
}
