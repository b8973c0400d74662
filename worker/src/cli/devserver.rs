//! `worker devserver`: arguments, files, exit code. The server itself is in `crate::devserver`.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use crate::devserver::webhook::{Hook, WebhookScript};
use crate::devserver::{self, Identity, Options, script};
use crate::exit::Exit;

/// Run a control plane on this machine, for development and tests
///
/// It speaks the protocol of the real one, keeps everything in memory and plays the sessions of a
/// script: tool calls, what their results must be, and faults. Point a worker at it with the three
/// variables that it prints. docs/devserver.md explains scripts and faults.
///
/// Exit codes: 0 every session went as the script expects, 1 something differed or a worker did
/// what no worker may do, 2 usage or a script that is not valid.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  worker devserver --script session.toml --exit-when-done --env-file env
  worker devserver --listen 127.0.0.1:8800 --report report.json")]
pub struct DevserverArgs {
    /// Listen on ADDRESS [default: 127.0.0.1:0, a free port]
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0", hide_default_value = true)]
    listen: SocketAddr,

    /// Allow an address that other machines can reach
    ///
    /// Whoever reaches the server can read and change everything in it.
    #[arg(long)]
    listen_publicly: bool,

    /// Play the sessions of FILE (TOML)
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,

    /// Write the port to FILE once the server listens
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,

    /// Write the variables for a worker to FILE, readable by its owner only
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,

    /// Write an API key of the organization to FILE, for `worker queue`; its owner only can read it
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,

    /// Write the run report to FILE at the end (JSON)
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Keep what tools were asked and returned in the report
    #[arg(long)]
    keep_results: bool,

    /// Print every call with its result and duration at the end
    #[arg(long)]
    transcript: bool,

    /// End when every session is done and its work item stopped
    #[arg(long)]
    exit_when_done: bool,

    /// End after DURATION, as failed if sessions are not done
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,

    /// Accept KEY as environment key [default: a random one]
    #[arg(long, value_name = "KEY")]
    environment_key: Option<String>,

    /// Tell a worker at URL (http) of every session that gets work, as `worker serve` expects it
    #[arg(long, value_name = "URL", requires = "webhook_key_file")]
    webhook: Option<String>,

    /// Sign deliveries with the key in FILE
    #[arg(long, value_name = "FILE", requires = "webhook")]
    webhook_key_file: Option<PathBuf>,

    /// Let leases run out after SECONDS [default: 300, or the script's]
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<i64>,
}

/// Runs the server.
///
/// # Errors
/// If it cannot listen, or a file cannot be written.
pub fn run(args: DevserverArgs) -> anyhow::Result<Exit> {
    if !args.listen.ip().is_loopback() && !args.listen_publicly {
        eprintln!("error: cannot listen on {}: other machines could reach it", args.listen);
        eprintln!("hint: use a loopback address, or say --listen-publicly");
        return Ok(Exit::Usage);
    }
    if args.environment_key.as_deref() == Some("") {
        eprintln!("error: the environment key is empty");
        return Ok(Exit::Usage);
    }
    let mut script = match read_script(args.script.as_deref())? {
        Ok(script) => script,
        Err(error) => {
            eprintln!("error: cannot use the script: {error}");
            return Ok(Exit::Usage);
        }
    };
    if let Some(ttl) = args.ttl {
        script.server.ttl_seconds = ttl;
    }
    if let Some((url, file)) = args.webhook.clone().zip(args.webhook_key_file.as_ref()) {
        let key = fs::read_to_string(file)
            .with_context(|| format!("cannot read the webhook's key from {}", file.display()))?;
        script.webhook = Some(WebhookScript { url, key });
    }
    if let Some(Err(reason)) = script.webhook.as_ref().map(Hook::new) {
        eprintln!("error: cannot send webhooks: {reason}");
        return Ok(Exit::Usage);
    }
    let identity = Identity::new(args.environment_key.clone()).context("cannot make keys")?;
    let listener = std::net::TcpListener::bind(args.listen)
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    announce(&args, &identity, address)?;
    let options = Options {
        script,
        identity,
        keep_results: args.keep_results || args.transcript,
        exit_when_done: args.exit_when_done,
        timeout: args.timeout,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        devserver::serve(tokio::net::TcpListener::from_std(listener)?, options).await
    })?;
    runtime.shutdown_background();
    finish(&args, &outcome)
}

fn read_script(path: Option<&Path>) -> anyhow::Result<Result<script::Script, script::ScriptError>> {
    let Some(path) = path else { return Ok(Ok(script::Script::default())) };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            let place = path.display().to_string();
            return Ok(Err(script::ScriptError { place, reason: error.to_string() }));
        }
    };
    Ok(script::parse(&text, path))
}

/// Says how to reach the server: on standard output, and in the files that were asked for.
fn announce(args: &DevserverArgs, identity: &Identity, address: SocketAddr) -> anyhow::Result<()> {
    let variables = format!(
        "ANTHROPIC_BASE_URL=http://{address}\nANTHROPIC_ENVIRONMENT_ID={}\nANTHROPIC_ENVIRONMENT_KEY={}\n",
        identity.environment, identity.key
    );
    if let Some(path) = &args.api_key_file {
        write_whole(path, &format!("{}\n", identity.operator_key), 0o600)?;
    }
    if let Some(path) = &args.env_file {
        write_whole(path, &variables, 0o600)?;
    }
    if let Some(path) = &args.port_file {
        write_whole(path, &format!("{}\n", address.port()), 0o644)?;
    }
    let mut out = std::io::stdout().lock();
    out.write_all(variables.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Writes a file so that nobody sees a part of it.
fn write_whole(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let name = path.file_name().context("a file needs a name")?.to_string_lossy();
    let fresh = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&fresh, path)
    })();
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn finish(args: &DevserverArgs, outcome: &devserver::Outcome) -> anyhow::Result<Exit> {
    let report = &outcome.report;
    if let Some(path) = &args.report {
        write_whole(path, &format!("{report:#}\n"), 0o644)?;
    }
    if args.transcript {
        std::io::stdout().lock().write_all(devserver::transcript(report).as_bytes())?;
    }
    eprint!("{}", devserver::table(report));
    let unfinished = outcome.timed_out && report["done"] != true;
    if unfinished {
        eprintln!("error: not every session was done in time");
    }
    let sound = report["result"] == "passed" && !unfinished;
    Ok(if sound { Exit::Success } else { Exit::Unexpected })
}
