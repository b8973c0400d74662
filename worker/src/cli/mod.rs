//! The command line: what can be asked for, and which module answers.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

pub mod audit;
mod audit_show;
mod check;
mod check_config;
pub mod devserver;
mod egress;
mod egress_records;
mod egress_report;
mod on_work;
pub mod policy;
pub mod policy_choice;
pub mod poll;
mod presets;
mod queue;
pub mod run;
pub mod serve;
pub mod serving;
mod stage;
pub mod start;
mod suggest;
pub mod why;
mod why_session;

use crate::credential::hidden::EmptyKey;
use crate::exit::Exit;
use crate::progress::Progress;
use crate::settings::Settings;
use crate::{doctor, exec, sweep};

/// Run agent sessions and commands, each in a jail of its own on this host
///
/// `worker poll --jail` serves the sessions of a Claude Managed Agents self-hosted environment;
/// `worker exec` runs one command. A jail is made of namespaces, a private mount tree, landlock, a
/// system call filter and cgroup limits; no container engine and no virtual machine is needed. Started
/// by root it gives the stronger level `root`, otherwise `rootless`; see `worker doctor`.
#[derive(Debug, Parser)]
#[command(name = "worker", version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    /// Log events of this level and above to standard error [default: warn; info for poll, run, serve]
    ///
    /// One of error, warn, info, debug. Events name what happened and never hold content: no
    /// output, no arguments, no environment.
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<tracing::Level>,

    /// Choose the form of log events [default: text]
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "text",
        hide_default_value = true
    )]
    log_format: LogFormat,

    /// What to do
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Exit codes: 0 success, 1 unexpected error or a destination that is denied, 2 usage, 3 policy or key invalid, 4 the control plane \
refuses the key, 5 the host cannot provide the required isolation, 7 the drain timeout passed, 8 an \
audit log does not verify or cannot be written, 9 a credential is refused, 10 an escape attempt \
succeeded. `exec` returns the command's own status: 124 wall clock, 126 or 127 not runnable, 128+n \
signal n. `poll`, `run` and `serve` return 128+n if signal n ended them at once.";

// The arguments of a command are made when it is the one that was asked for; to make all takes longer
// than to read a policy. What the list of commands says is therefore here as well (held by a test).
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Run the sessions of a self-hosted environment, each in a jail of its own
    Poll(Box<poll::PollArgs>),
    /// Serve one work item that somebody else has claimed, in a jail
    Run(Box<run::RunArgs>),
    /// Run the sessions of an environment when a webhook tells of them
    Serve(Box<serve::ServeArgs>),
    /// Run a command in a jail
    Exec(exec::ExecArgs),
    /// Check what this host can give, by making real jails on it
    Doctor(doctor::DoctorArgs),
    /// Show, check and describe policies
    Policy(policy::PolicyArgs),
    /// Explain whether a policy lets a jail reach a destination, or what was decided in a session
    Why(why::WhyArgs),
    /// Read audit logs
    Audit(audit::AuditArgs),
    /// Show what sessions connected to, and what they were refused
    Egress(egress::EgressArgs),
    /// Look at an environment's queue, stop work items, label them
    Queue(Box<queue::QueueArgs>),
    /// Check what a policy's staging rules bring into workspaces
    Stage(stage::StageArgs),
    /// Remove what killed workers left behind
    Sweep(sweep::SweepArgs),
    /// Run a control plane on this machine, for development and tests
    Devserver(devserver::DevserverArgs),
    /// Print the version
    Version {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Print shell completions
    ///
    /// For example: worker completions bash > /etc/bash_completion.d/worker
    Completions {
        /// Shell to complete for
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all pages to a directory
    Man {
        /// Write one page per command to DIR
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// How log events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON document per line.
    Json,
}

fn start_log(level: tracing::Level, format: LogFormat) {
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(colour)
        // Telling that standard error is gone, on standard error, would end the process.
        .log_internal_errors(false)
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => {
            log.event_format(Progress::for_level(level)).finish().with(ours(level)).init();
        }
        LogFormat::Json => log.json().flatten_event(true).finish().with(ours(level)).init(),
    }
}

/// Events of this program only. Libraries have no names for theirs and no bound: code in a jail could
/// fill the log by what its connections say (INV-11, INV-12).
fn ours(level: tracing::Level) -> Targets {
    Targets::new().with_target(env!("CARGO_CRATE_NAME"), level)
}

/// Runs what was asked for.
pub fn run(cli: Cli) -> ExitCode {
    let usual = match cli.command {
        Command::Poll(_) | Command::Run(_) | Command::Serve(_) => tracing::Level::INFO,
        _ => tracing::Level::WARN,
    };
    start_log(cli.log_level.unwrap_or(usual), cli.log_format);
    let outcome = match cli.command {
        Command::Poll(args) => {
            start::run(EmptyKey::Refused, &args.session, |around| Settings::check(&args, around))
        }
        Command::Run(args) => {
            start::run(EmptyKey::Absent, &args.session, |around| Settings::check_run(&args, around))
        }
        Command::Serve(args) => {
            let read = |around: &_| Settings::check_serve(&args, around);
            start::run(EmptyKey::Refused, &args.session, read)
        }
        Command::Exec(args) => exec::run(args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Policy(args) => show_policy(&args),
        Command::Why(args) => explain_why(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Egress(args) => egress::run(&args),
        Command::Queue(args) => queue::run(&args),
        Command::Stage(args) => stage::run(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Devserver(args) => devserver::run(args),
        Command::Version { json } => version(json),
        Command::Completions { shell } => completions(shell),
        Command::Man { dir } => manual(dir),
    };
    match outcome {
        Ok(exit) => exit.code(),
        Err(error) => {
            crate::explain::say(&format!("error: {error:#}"));
            Exit::Unexpected.code()
        }
    }
}

/// Names of the system call groups a policy may use.
pub fn syscall_groups() -> Vec<&'static str> {
    stockade_runtime::policy::syscalls::catalogue().group_names().collect()
}

fn show_policy(args: &policy::PolicyArgs) -> anyhow::Result<Exit> {
    let groups = syscall_groups();
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    policy::run(args, &groups, policy::Streams { out: &mut out, err: &mut err })
}

fn explain_why(args: &why::WhyArgs) -> anyhow::Result<Exit> {
    let groups = syscall_groups();
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    why::run(args, &groups, policy::Streams { out: &mut out, err: &mut err })
}

fn version(json: bool) -> anyhow::Result<Exit> {
    let version = env!("CARGO_PKG_VERSION");
    if json {
        let document = serde_json::json!({
            "schema": "stockade.version",
            "schema_version": 1,
            "name": "worker",
            "version": version,
            "architecture": std::env::consts::ARCH,
            "kernel": rustix::system::uname().release().to_string_lossy(),
        });
        writeln!(io::stdout(), "{document}")?;
    } else {
        writeln!(io::stdout(), "worker {version}")?;
    }
    Ok(Exit::Success)
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "worker", &mut script);
    io::stdout().write_all(&script)?;
    Ok(Exit::Success)
}

fn manual(dir: Option<PathBuf>) -> anyhow::Result<Exit> {
    match dir {
        Some(dir) => {
            std::fs::create_dir_all(&dir)?;
            clap_mangen::generate_to(Cli::command(), dir)?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            io::stdout().write_all(&page)?;
        }
    }
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_list_of_commands_says_what_each_says_of_itself() {
        let about = |command: &clap::Command| {
            let about = command.get_about().map(ToString::to_string);
            (command.get_name().to_owned(), about.expect("every command says what it does"))
        };
        let listed: Vec<_> = Cli::command().get_subcommands().map(about).collect();
        let mut built = Cli::command();
        built.build();
        let own: Vec<_> = built.get_subcommands().map(about).collect();
        // clap's own `help` comes last, when all is built.
        assert_eq!(listed[..], own[..own.len() - 1]);
    }

    // INV-11, INV-12: a flood of resets of HTTP/2 is a warning of its library for each connection.
    #[test]
    fn the_log_has_events_of_this_program_only() {
        use tracing::Level;
        for library in ["h2::proto::streams::recv", "hyper", "hickory_resolver", "rustls"] {
            for level in [Level::ERROR, Level::TRACE] {
                assert!(!ours(Level::TRACE).would_enable(library, &level), "{library} {level}");
            }
        }
        assert!(ours(Level::INFO).would_enable(module_path!(), &Level::INFO));
        assert!(!ours(Level::INFO).would_enable(module_path!(), &Level::DEBUG));
    }
}
