//! `worker poll`: its command line, and what is checked before anything is claimed.
//!
//! In this order, because each step must not see what the next one brings: [`before_launcher`]
//! (no credential, no policy, no thread), then the launcher is split off, then [`after_launcher`]
//! (with the rights of whoever started the worker), then these rights are given up.

use std::cell::RefCell;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use rustix::process::DumpableBehavior;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use stockade_runtime::audit::{AuditError, AuditLog, Digest};
use stockade_runtime::host::{HostFacts, Level};
use stockade_runtime::jail::{self, Launcher};
use stockade_runtime::policy::{
    ByteSize, Policy, PolicyError, Resolver, UnitError, parse_duration,
};

use super::policy::{self, ReportFormat};
use super::syscall_groups;
use crate::config::{self, Config};
use crate::credential::hidden::{self, HiddenVariables};
use crate::credential::{self, KeyError, KeySource};
use crate::daemon;
use crate::exit::Exit;
use crate::explain;
use crate::platform::{self, PlatformArgs, PlatformError, Prepared};
use crate::settings::{Refusal, Settings, Surroundings};
use crate::traces::TraceArgs;

/// Run the sessions of a self-hosted environment, each in a jail of its own
///
/// Asks the control plane for work, makes a jail for every session, runs its tool calls there, and
/// removes the jail afterwards. Stops on SIGTERM or SIGINT: nothing new is claimed, running calls may
/// finish, and at the drain timeout or a second signal the rest is killed.
///
/// The environment key is read from the first of: --environment-key-file, the systemd credential
/// `environment-key`, the variable ANTHROPIC_ENVIRONMENT_KEY. SIGHUP reads a file again.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PollArgs {
    /// Take work from this environment
    #[arg(long, value_name = "ID", env = "ANTHROPIC_ENVIRONMENT_ID", hide_env_values = true)]
    pub environment_id: Option<String>,

    /// Read the environment key from FILE
    ///
    /// The file belongs to root or to you, and only its owner can read it (mode 600). It holds the key
    /// on one line. To change the key, replace the file and send SIGHUP; no session is lost.
    #[arg(long, value_name = "FILE")]
    pub environment_key_file: Option<PathBuf>,

    /// Refused: other users can see command lines.
    #[arg(long, value_name = "KEY", hide = true)]
    pub environment_key: Option<String>,

    /// Run every session in a jail; required
    #[arg(long)]
    pub jail: bool,

    /// Read FILE for what has no option: skills, memory, custom tools
    #[arg(long, value_name = "FILE", env = "WORKER_CONFIG", hide_env = true)]
    pub config: Option<PathBuf>,

    /// Use this policy for sessions [default: default]
    ///
    /// A shipped name (`worker policy list`), a name in the policy directory, or a file.
    #[arg(long, value_name = "NAME|FILE", default_value = "default", hide_default_value = true)]
    pub policy: String,

    /// Look for NAME.toml in DIR [default: /etc/stockade/policies]
    #[arg(
        long = "policy-dir",
        value_name = "DIR",
        env = "WORKER_POLICY_DIR",
        value_delimiter = ':',
        default_value = "/etc/stockade/policies",
        hide_default_value = true,
        hide_env = true
    )]
    pub policy_directories: Vec<PathBuf>,

    /// Show DIR as /workspace to sessions [default: a fresh one for each, gone afterwards]
    ///
    /// It must exist. What a session changes is copied back when it ends. One session at a time uses
    /// it, unless --share-workdir is given too.
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,

    /// Let sessions use --workdir at the same time
    ///
    /// They see and overwrite each other's files, skills and memory.
    #[arg(long, requires = "workdir")]
    pub share_workdir: bool,

    /// Keep what sessions put into /mnt/session/outputs, in DIR/SESSION [default: discarded]
    #[arg(long, value_name = "DIR")]
    pub outputs_dir: Option<PathBuf>,

    /// Run at most N sessions at the same time [default: 4; 1 with --workdir]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_sessions: Option<u32>,

    /// Claim no session while less memory than SIZE would stay free [default: 256MiB]
    #[arg(long, value_name = "SIZE", default_value = "256MiB", hide_default_value = true)]
    pub memory_reserve: ByteSize,

    /// Let go of a session that had nothing to do for DURATION; 0 is never [default: 60s]
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "60s",
        hide_default_value = true,
        value_parser = duration_or_zero
    )]
    pub max_idle: Duration,

    /// End a tool call after DURATION [default: what the tool call asks for, within the policy]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub tool_timeout: Option<Duration>,

    /// Wait up to DURATION for running calls when stopping [default: 60s]
    ///
    /// At the deadline, or on a second signal, remaining jails are killed and their work is handed
    /// back.
    #[arg(
        long,
        value_name = "DURATION",
        env = "WORKER_DRAIN_TIMEOUT",
        hide_env = true,
        default_value = "60s",
        hide_default_value = true,
        value_parser = duration_or_zero
    )]
    pub drain_timeout: Duration,

    /// Stop after one work item
    #[arg(long)]
    pub once: bool,

    /// Stop when the queue is empty and every session has ended
    #[arg(long)]
    pub drain_on_empty: bool,

    /// Append the audit log to FILE [default: /var/log/stockade/audit.jsonl]
    ///
    /// Without root: $XDG_STATE_HOME/stockade/audit.jsonl. Nothing is claimed if it cannot be written.
    /// See `worker audit verify`.
    #[arg(long, value_name = "FILE")]
    pub audit_file: Option<PathBuf>,

    /// Keep what must survive a restart in DIR [default: /var/lib/stockade]
    ///
    /// Without root: $XDG_STATE_HOME/stockade.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Reach the control plane at URL [default: that of api.anthropic.com]
    #[arg(long, value_name = "URL", env = "ANTHROPIC_BASE_URL", hide_env_values = true)]
    pub base_url: Option<String>,

    /// Allow a --base-url without TLS that is not on this host
    ///
    /// Whoever can read the traffic then has the environment key.
    #[arg(long)]
    pub insecure_http: bool,

    /// Trust the certificate authorities in FILE (PEM) as well as the system's
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// Be known to the control plane by this name [default: HOSTNAME and a random number]
    #[arg(long, value_name = "ID", env = "ANTHROPIC_WORKER_ID", hide_env_values = true)]
    pub worker_id: Option<String>,

    /// Send this workspace id with every request
    #[arg(long, value_name = "ID", env = "ANTHROPIC_WORKSPACE_ID", hide_env_values = true)]
    pub workspace_id: Option<String>,

    #[command(flatten)]
    pub traces: TraceArgs,

    #[command(flatten)]
    pub platform: PlatformArgs,

    /// Send a header with every request; may be given more than once
    ///
    /// Lines of ANTHROPIC_CUSTOM_HEADERS are added first. Neither can replace the credential.
    #[arg(long = "custom-header", value_name = "NAME: VALUE")]
    pub custom_headers: Vec<String>,

    /// Speak this version of the API [default: 2026-10-21]
    #[arg(long, value_name = "DATE", default_value = "2026-10-21", hide_default_value = true)]
    pub anthropic_version: String,

    /// Let the control plane hold an empty poll for N milliseconds, or `none` [default: 999]
    #[arg(
        long,
        value_name = "N",
        default_value = "999",
        hide_default_value = true,
        value_parser = block_ms
    )]
    pub block_ms: BlockMs,

    /// Choose how often an empty queue is asked: `eager` or `sdk` [default: eager]
    ///
    /// `sdk`: a pause of 1 to 3 s after every empty poll. `eager`: the same, but no pause for 60 s after
    /// work was seen, which is about one request a second for that time.
    #[arg(long, value_name = "CADENCE", default_value = "eager", hide_default_value = true)]
    pub cadence: Cadence,

    /// Take over items that somebody polled but did not confirm for N milliseconds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    pub reclaim_older_than_ms: Option<u64>,

    /// Stop for good at a step of making a session's jail (crash tests), see `worker exec`
    #[arg(long, value_name = "STEP", hide = true)]
    pub halt_at: Option<String>,

    /// Check options, key, policy and audit file, say what would be used, and stop
    #[arg(long)]
    pub check: bool,

    /// Choose the format of what --check prints [default: text]
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true)]
    pub format: ReportFormat,
}

const EXAMPLES: &str = "\
Examples:
  sudo worker poll --jail --environment-id env_… --environment-key-file /etc/stockade/key
  sudo worker poll --jail --check
  worker poll --jail --once --drain-on-empty

Exit codes: 0 stopped, drained or done; 2 usage; 3 policy or key; 4 the control plane refuses the key;
5 isolation; 7 the drain timeout passed; 8 audit log; 9 a credential is refused; 128+n signal n.";

/// How often an empty queue is asked (POLL-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Cadence {
    /// Without pauses while work is likely.
    #[value(help = "no pause for 60 s after work was seen")]
    Eager,
    /// As the official workers do.
    #[value(help = "a pause of 1 to 3 s after every empty poll")]
    Sdk,
}

/// How long the control plane may hold an empty poll (POLL-1): 1 to 999 ms, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockMs(pub Option<u16>);

fn block_ms(text: &str) -> Result<BlockMs, String> {
    if text == "none" {
        return Ok(BlockMs(None));
    }
    let number = text.parse::<u16>().ok().filter(|number| (1..=999).contains(number));
    number.map(|number| BlockMs(Some(number))).ok_or("expected 1 to 999, or `none`".to_owned())
}

/// As [`parse_duration`], and `0` without a unit.
fn duration_or_zero(text: &str) -> Result<Duration, UnitError> {
    if text == "0" { Ok(Duration::ZERO) } else { parse_duration(text) }
}

/// Everything that can be refused by looking at arguments and environment. If the key is in the
/// environment, executes this program anew without it, so nothing may be open yet.
///
/// # Errors
/// The exit code of what was printed.
pub fn before_launcher(args: &PollArgs) -> anyhow::Result<Result<(Settings, Level), Exit>> {
    let checked = credential::refuse_organization_keys(|name| std::env::var_os(name))
        .and_then(|()| credential::variable::hide())
        .and_then(|()| hidden::hide());
    if let Err(error) = checked {
        return Ok(Err(complain_key(&error)));
    }
    let level = HostFacts::level_here().context("cannot look at this process")?;
    let surroundings = Surroundings::here(level);
    let settings = Settings::check(args, &surroundings)
        .and_then(|settings| platform::apply(settings, &args.platform, &around(args)));
    Ok(settings.map(|settings| (settings, level)).map_err(|refusal| {
        let Refusal { text, hint } = refusal;
        explain::say(&format!("error: {text}"));
        explain::say(&format!("hint: {hint}"));
        Exit::Usage
    }))
}

/// What a platform's settings come from. An option is told from the variable that stands for it: on a
/// platform its own variable goes first.
fn around(args: &PollArgs) -> platform::Around<'_> {
    let option = |given: &'_ Option<String>, name: &str| {
        let ambient = std::env::var(name).ok();
        given.is_some() && *given != ambient
    };
    platform::Around {
        variable: &|name| std::env::var_os(name),
        hidden: &hidden::was_set,
        base_url: args.base_url.as_deref().filter(|_| option(&args.base_url, "ANTHROPIC_BASE_URL")),
        workspace_id: args
            .workspace_id
            .as_deref()
            .filter(|_| option(&args.workspace_id, "ANTHROPIC_WORKSPACE_ID")),
        insecure_http: args.insecure_http,
    }
}

/// What a worker has before it gives up the rights of whoever started it.
#[derive(Debug)]
pub struct Ready {
    /// The policy for sessions.
    pub policy: Policy,
    /// The files it was read from, as they were named.
    pub policy_files: Vec<PathBuf>,
    /// The configuration file; the defaults if there is none.
    pub config: Config,
    /// Where the key comes from, with its reader started.
    pub source: KeySource,
    /// The key; none on a platform.
    pub key: Option<SecretString>,
    /// What else was secret in the environment: headers for a collector of traces.
    pub hidden: HiddenVariables,
    /// In its place what a platform's credential is made of.
    pub platform: Option<Prepared>,
    /// The audit log; `None` only for `--check`, if there is none yet or a worker has it.
    pub audit: Option<AuditLog>,
}

/// Reads the policy that the settings name, each of its files by `load`.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn resolve_policy(
    settings: &Settings,
    load: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Policy, PolicyError> {
    let groups = syscall_groups();
    let resolver = Resolver { groups: &groups, directories: &settings.policy_directories, load };
    resolver.resolve(&settings.policy).and_then(policy::timely)
}

/// Reads policy and key, starts the key reader, opens the audit log.
///
/// # Errors
/// The exit code of what was printed.
pub fn after_launcher(settings: &Settings, level: Level) -> Result<Ready, Exit> {
    let files = RefCell::new(Vec::new());
    let load = |path: &Path| {
        let text = policy::read_policy_file(path)?;
        files.borrow_mut().push(path.to_owned());
        Ok(text)
    };
    let policy = resolve_policy(settings, &load).map_err(|error| {
        // Nobody to tell is no reason to go on.
        let _unheard = policy::complain(&mut io::stderr(), &error);
        Exit::Policy
    })?;
    let config = settings.config.as_deref().map(config::load).transpose().map_err(|error| {
        explain::complain(&error, Some("docs/poll.md lists what it may hold"));
        Exit::Policy
    })?;
    // AUTH-10. Not earlier: without root the launcher could not map its ids.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|errno| {
        explain::say(&format!("error: cannot become undumpable: {errno}"));
        Exit::Unexpected
    })?;
    let file = settings.environment_key_file.as_deref();
    // Taken in any case: they must not stay open.
    let secrets = hidden::take().map_err(|error| complain_key(&error))?;
    let find = || {
        if let Some(aws) = &settings.platform {
            let prepared = platform::prepare(aws, &secrets)?;
            return Ok((prepared.source(), None, Some(prepared)));
        }
        let mut source = KeySource::find(file, settings.credentials_directory.as_deref())?;
        let key = source.read()?;
        source.start_reader(level)?;
        Ok((source, Some(key), None))
    };
    let (source, key, platform) = find().map_err(|error| complain_platform(&error))?;
    let opened = if settings.check && !settings.audit_file.exists() {
        // Only looked at: an empty log would not verify.
        AuditLog::could_begin(&settings.audit_file).map(|()| None)
    } else {
        AuditLog::open(&settings.audit_file).map(Some)
    };
    let audit = match opened {
        Ok(log) => log,
        Err(AuditError::Locked { .. }) if settings.check => None,
        Err(error) => {
            explain::complain(&error, Some(error.hint()));
            return Err(Exit::Evidence);
        }
    };
    Ok(Ready {
        policy,
        policy_files: files.into_inner(),
        config: config.unwrap_or_default(),
        source,
        key,
        platform,
        hidden: secrets,
        audit,
    })
}

fn complain_key(error: &KeyError) -> Exit {
    explain::complain(error, Some(&error.hint()));
    error.exit()
}

fn complain_platform(error: &PlatformError) -> Exit {
    explain::complain(error, Some(&error.hint()));
    error.exit()
}

/// Runs `worker poll`.
pub fn run(args: &PollArgs) -> anyhow::Result<Exit> {
    let (settings, level) = match before_launcher(args)? {
        Ok(checked) => checked,
        Err(exit) => return Ok(exit),
    };
    if settings.check {
        return check(&settings, level);
    }
    // Split off before a policy, a credential or a thread exists in this process.
    let launcher = match Launcher::start(level) {
        Ok(launcher) => launcher,
        Err(failure) => {
            explain::complain(&failure, failure.hint());
            return Ok(Exit::Isolation);
        }
    };
    match after_launcher(&settings, level) {
        Ok(ready) => daemon::run(&settings, level, launcher, ready),
        Err(exit) => {
            launcher.wait();
            Ok(exit)
        }
    }
}

/// Says what would be used.
fn check(settings: &Settings, level: Level) -> anyhow::Result<Exit> {
    let mut ready = match after_launcher(settings, level) {
        Ok(ready) => ready,
        Err(exit) => return Ok(exit),
    };
    if let Err(failure) = jail::drop_to_control_side(level) {
        explain::complain(&failure, failure.hint());
        return Ok(Exit::Isolation);
    }
    for name in &settings.headers_dropped {
        explain::say(&format!("warning: ANTHROPIC_CUSTOM_HEADERS: `{name}` is not sent"));
    }
    // What SIGHUP will do: without the rights that have just been given up.
    let again = ready.source.reread();
    if let Err(error) = &again
        && *error != KeyError::Fixed
    {
        return Ok(complain_key(error));
    }
    if let Some(platform) = ready.platform.take() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        if let Err(error) = runtime.block_on(platform.start(settings.ca_file.as_deref())) {
            return Ok(complain_platform(&error));
        }
    }
    report(settings, &ready, level, again.is_ok())?;
    Ok(Exit::Success)
}

fn report(settings: &Settings, ready: &Ready, level: Level, reload: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let records = ready.audit.as_ref().map(|log| log.head().seq);
    let digest = ready.policy.digest_hex();
    if settings.format == ReportFormat::Json {
        return writeln!(out, "{:#}", document(settings, ready, level, reload));
    }
    let audit = match records {
        Some(records) => format!("{} ({records} records)", settings.audit_file.display()),
        None if settings.audit_file.exists() => {
            format!("{} (in use by a worker)", settings.audit_file.display())
        }
        None => format!("{} (to be begun)", settings.audit_file.display()),
    };
    let again = if reload { "read again on SIGHUP" } else { "fixed until a restart" };
    let key = match &ready.key {
        Some(key) => format!("{} from {}, {again}", fingerprint(key), ready.source.origin()),
        None => ready.source.origin().to_string(),
    };
    for (what, value) in [
        ("level", level.to_string()),
        ("environment", settings.environment_id.clone()),
        ("control plane", settings.base_url.to_string()),
        ("key", key),
        ("worker id", settings.worker_id.clone()),
        ("sessions", format!("{} at a time", settings.max_sessions)),
        ("policy", format!("{} {digest}", ready.policy.name)),
        ("audit log", audit),
    ] {
        writeln!(out, "{what:<14} {value}")?;
    }
    Ok(())
}

/// Everything that would be used; of the key only where it is from and a fingerprint.
fn document(settings: &Settings, ready: &Ready, level: Level, reload: bool) -> Value {
    let header_names: Vec<&str> = settings.headers.iter().map(|(name, _)| name.as_str()).collect();
    let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    json!({
        "schema": "stockade.poll.check",
        "schema_version": 1,
        "level": level,
        "environment_id": settings.environment_id,
        "base_url": settings.base_url.to_string(),
        "ca_file": settings.ca_file,
        "worker_id": settings.worker_id,
        "workspace_id": settings.workspace_id,
        "anthropic_version": settings.anthropic_version.to_str().unwrap_or_default(),
        "custom_headers": header_names,
        "policy": { "name": ready.policy.name, "digest": ready.policy.digest_hex() },
        "key": {
            "from": ready.source.origin().to_string(),
            "fingerprint": ready.key.as_ref().map(fingerprint),
            "read_again_on_sighup": reload,
        },
        "audit": {
            "file": settings.audit_file,
            "records": ready.audit.as_ref().map(|log| log.head().seq),
        },
        "state_dir": settings.state_dir,
        "workdir": settings.workdir,
        "outputs_dir": settings.outputs_dir,
        "max_sessions": settings.max_sessions,
        "memory_reserve_bytes": settings.memory_reserve_bytes,
        "max_idle_ms": settings.max_idle.map(milliseconds),
        "retain_ms": ready.policy.filesystem.retain.value.map(milliseconds),
        "tool_timeout_ms": settings.tool_timeout.map(milliseconds),
        "drain_timeout_ms": milliseconds(settings.drain_timeout),
        "once": settings.once,
        "drain_on_empty": settings.drain_on_empty,
        "block_ms": settings.block_ms,
        "reclaim_older_than_ms": settings.reclaim_older_than_ms,
    })
}

/// Tells two keys apart and says nothing about either: 32 bits of the SHA-256 of a random value.
pub fn fingerprint(key: &SecretString) -> String {
    let mut digest = Digest::of(key.expose_secret().as_bytes()).to_string();
    digest.truncate(8);
    digest
}
