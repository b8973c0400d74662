//! What `worker poll` and its kin were asked to do, checked as a whole before anything is opened or started.
//!
//! Looks at arguments, environment and the existence of directories; reads no credential and no
//! policy. The first thing that is wrong is said in one sentence, with what to do.

mod headers;
mod modes;

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::uri::Uri;
use stockade_runtime::host::Level;
use stockade_runtime::jail::Step;

use crate::cli::policy::ReportFormat;
use crate::cli::policy_choice::PolicyChoice;
use crate::cli::poll::{Cadence, PollArgs};
use crate::platform::Aws;
use crate::traces::TraceSettings;

pub use modes::{Mode, OnWork, Serve};

/// Where the control plane is unless something else is said (HDR-10).
const BASE_URL: &str = "https://api.anthropic.com";
/// Longest duration that any option takes.
const DURATION_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Longest id; those of the control plane have about 30 bytes.
const ID_BYTES_MAX: usize = 128;
/// Longest CA file.
const CA_BYTES_MAX: u64 = 4 << 20;
/// Why the worker does not start: its command line asks for something impossible.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong.
    pub text: String,
    /// What to do.
    pub hint: String,
}

fn refuse<T>(text: impl Into<String>, hint: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { text: text.into(), hint: hint.into() })
}

/// What is around the worker, so that tests can choose it.
pub struct Surroundings {
    /// Level of enforcement.
    pub level: Level,
    /// A variable of the environment.
    pub variable: fn(&str) -> Option<OsString>,
    /// Name of this host.
    pub host_name: String,
    /// A number that no other worker has.
    pub nonce: u64,
}

impl Surroundings {
    /// Those of this process.
    pub fn here(level: Level) -> Self {
        use std::hash::{BuildHasher as _, RandomState};
        let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        // Unique, not secret: the standard library's random keys and this process's number.
        let nonce = RandomState::new().hash_one(std::process::id());
        Surroundings { level, variable: |name| std::env::var_os(name), host_name, nonce }
    }
}

/// Checked options of `worker poll`, `worker run` or `worker serve`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where work comes from, and who serves it.
    pub mode: Mode,
    /// The environment that work comes from.
    pub environment_id: String,
    /// Where the key file is, if one was named.
    pub environment_key_file: Option<PathBuf>,
    /// Where systemd puts credentials.
    pub credentials_directory: Option<PathBuf>,
    /// Scheme, host, port and path prefix; no query. May end with a slash.
    pub base_url: Uri,
    /// Certificate authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// This worker's name for the control plane (POLL-14).
    pub worker_id: String,
    /// Sent with every request (HDR-8).
    pub workspace_id: Option<String>,
    /// The platform that hosts the control plane, if it is not its own.
    pub platform: Option<Aws>,
    /// Where traces go, if any are made.
    pub traces: Option<TraceSettings>,
    /// Where metrics can be had.
    pub metrics_listen: Option<SocketAddr>,
    /// Sent with every request; values are marked sensitive.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// `ANTHROPIC_CUSTOM_HEADERS` had these, and they are not sent (AUTH-7).
    pub headers_dropped: Vec<HeaderName>,
    /// Sent with every request (HDR-1).
    pub anthropic_version: HeaderValue,
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// The policy of sessions.
    pub policy: PolicyChoice,
    /// The directory that sessions see as their workspace; absolute.
    pub workdir: Option<PathBuf>,
    /// Where outputs of sessions are kept; absolute.
    pub outputs_dir: Option<PathBuf>,
    /// Most sessions at once.
    pub max_sessions: u32,
    /// Memory that must stay free, in bytes.
    pub memory_reserve_bytes: u64,
    /// When an idle session is let go; `None` is never.
    pub max_idle: Option<Duration>,
    /// Longest tool call, if the operator sets one.
    pub tool_timeout: Option<Duration>,
    /// How long running calls may take when stopping.
    pub drain_timeout: Duration,
    /// Stop after one work item.
    pub once: bool,
    /// Stop when there is no work.
    pub drain_on_empty: bool,
    /// The audit log; absolute.
    pub audit_file: PathBuf,
    /// What survives a restart; absolute.
    pub state_dir: PathBuf,
    /// How long a poll is held, milliseconds; `None` is not at all.
    pub block_ms: Option<u16>,
    /// How often an empty queue is asked.
    pub cadence: Cadence,
    /// Age from which unconfirmed items are taken over, milliseconds.
    pub reclaim_older_than_ms: Option<u64>,
    /// The step at which jails stop (crash tests).
    pub halt_at: Option<String>,
    /// Only check.
    pub check: bool,
    /// Of what `--check` prints.
    pub format: ReportFormat,
}

impl Settings {
    /// Checks everything that can be checked without opening anything.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(args: &PollArgs, around: &Surroundings) -> Result<Settings, Refusal> {
        let mode = modes::of_poll(args, around)?;
        let environment_id = environment_id(args, &mode)?;
        // Asked for only where it is needed: a service may have no home.
        let state = || state_directory(around);
        let audit_file = match (&args.session.audit_file, around.level) {
            (Some(file), _) => file.clone(),
            (None, Level::Root) => PathBuf::from("/var/log/stockade/audit.jsonl"),
            (None, Level::Rootless) => state()?.join("audit.jsonl"),
        };
        let state_dir = args.session.state_dir.clone().map_or_else(state, Ok)?;
        let (headers, headers_dropped) = headers::of(args, around)?;
        let max_idle = duration("--max-idle", args.session.max_idle)?;
        Ok(Settings {
            mode,
            environment_id,
            environment_key_file: args.session.environment_key_file.clone(),
            credentials_directory: (around.variable)("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            base_url: base_url(args.session.base_url.as_deref(), args.session.insecure_http)?,
            ca_file: args.session.ca_file.as_deref().map(ca_file).transpose()?,
            worker_id: worker_id(args, around)?,
            workspace_id: given(args.session.workspace_id.as_deref())
                .map(|text| id("--workspace-id", text))
                .transpose()?,
            platform: None,
            traces: TraceSettings::of(&args.session.traces, &around.variable)?,
            metrics_listen: args.session.metrics_listen,
            headers,
            headers_dropped,
            anthropic_version: version(&args.session.anthropic_version)?,
            config: args.session.config.clone(),
            policy: args.session.policy.clone(),
            workdir: args
                .session
                .workdir
                .as_deref()
                .map(|d| directory("--workdir", d))
                .transpose()?,
            outputs_dir: args
                .session
                .outputs_dir
                .as_deref()
                .map(|d| directory("--outputs-dir", d))
                .transpose()?,
            max_sessions: max_sessions(args)?,
            memory_reserve_bytes: args.claim.memory_reserve.bytes(),
            max_idle: (!max_idle.is_zero()).then_some(max_idle),
            tool_timeout: args
                .session
                .tool_timeout
                .map(|d| at_least_1s("--tool-timeout", d))
                .transpose()?,
            drain_timeout: duration("--drain-timeout", args.session.drain_timeout)?,
            once: args.once,
            drain_on_empty: args.drain_on_empty,
            audit_file: absolute("--audit-file", &audit_file)?,
            state_dir: absolute("--state-dir", &state_dir)?,
            block_ms: args.block_ms.0,
            cadence: args.cadence,
            reclaim_older_than_ms: args.reclaim_older_than_ms,
            halt_at: args.session.halt_at.as_deref().map(step).transpose()?,
            check: args.session.check,
            format: args.session.format,
        })
    }
}

fn step(name: &str) -> Result<String, Refusal> {
    match Step::from_name(name) {
        Some(step) => Ok(step.to_string()),
        None => refuse(format!("no step is called `{name}`"), "worker exec --halt-at help"),
    }
}

/// What is refused whatever else is asked for; then the environment's id.
fn environment_id(args: &PollArgs, mode: &Mode) -> Result<String, Refusal> {
    if args.session.environment_key.is_some() {
        let hint = "others can see it there, so make a new one; use --environment-key-file";
        return refuse("cannot take the environment key from the command line", hint);
    }
    if !args.session.jail && !mode.hands_over() {
        let hint = "add --jail; to run tools without one, use the official worker";
        return refuse("cannot run sessions without a jail: this is not offered", hint);
    }
    let environment_id = args.session.environment_id.as_deref().unwrap_or_default();
    if environment_id.is_empty() {
        let hint = "use --environment-id or ANTHROPIC_ENVIRONMENT_ID; the console shows it";
        return refuse("no environment id given", hint);
    }
    id("--environment-id", environment_id)
}

/// An option or variable that is set and not empty: an empty one counts as absent (WRUN-1).
fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

/// Ids are opaque, and go into headers and paths.
pub fn id(option: &str, text: &str) -> Result<String, Refusal> {
    if text.len() > ID_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let hint =
            format!("an id has at most {ID_BYTES_MAX} printable ASCII characters, no spaces");
        return refuse(format!("cannot use {option}: it is not an id"), hint);
    }
    Ok(text.to_owned())
}

/// POLL-14: unique per process, and it begins with the name of the host.
fn worker_id(args: &PollArgs, around: &Surroundings) -> Result<String, Refusal> {
    if let Some(text) = given(args.claim.worker_id.as_deref()) {
        return id("--worker-id", text);
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let host: String = around.host_name.chars().filter(|c| plain(*c)).take(63).collect();
    let host = if host.is_empty() { "worker" } else { &host };
    Ok(format!("{host}-{:012x}", around.nonce & 0xffff_ffff_ffff))
}

pub fn base_url(text: Option<&str>, insecure: bool) -> Result<Uri, Refusal> {
    let text = given(text).unwrap_or(BASE_URL);
    let example = "write it like https://api.example.com or https://gateway.example.com/prefix";
    // Not repeated in errors: it might hold a password.
    let Ok(url) = text.parse::<Uri>() else {
        return refuse("cannot use --base-url: it is not a URL", example);
    };
    let authority = url.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        let hint = "the worker sends its environment key and nothing else";
        return refuse("cannot use --base-url: it holds a user name or password", hint);
    }
    let host = url.host().unwrap_or_default();
    if url.query().is_some() || text.contains('#') || host.is_empty() {
        return refuse("cannot use --base-url: expected scheme, host and perhaps a path", example);
    }
    match url.scheme_str() {
        Some("https") => Ok(url),
        Some("http") if insecure || loopback(host) => Ok(url),
        Some("http") => refuse(
            format!("cannot use --base-url: the way to {host} has no TLS"),
            "use https; --insecure-http shows the environment key to whoever can read the traffic",
        ),
        _ => refuse("cannot use --base-url: its scheme is not https", example),
    }
}

fn loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn version(text: &str) -> Result<HeaderValue, Refusal> {
    let shape =
        |(at, c): (usize, u8)| if at == 4 || at == 7 { c == b'-' } else { c.is_ascii_digit() };
    let date = text.len() == 10 && text.bytes().enumerate().all(shape);
    match HeaderValue::from_str(text) {
        Ok(value) if date => Ok(value),
        _ => refuse("cannot use --anthropic-version: it is not a date", "write it like 2026-10-21"),
    }
}

pub fn ca_file(path: &Path) -> Result<PathBuf, Refusal> {
    let shown = path.display();
    let about = fs::metadata(path);
    let text = match about {
        Ok(about) if about.is_file() && about.len() <= CA_BYTES_MAX => fs::read_to_string(path),
        Ok(_) => Err(std::io::ErrorKind::InvalidData.into()),
        Err(error) => Err(error),
    };
    match text {
        Ok(text) if text.contains("-----BEGIN CERTIFICATE-----") => absolute("--ca-file", path),
        Ok(_) => refuse(
            format!("cannot use --ca-file {shown}: it holds no certificate"),
            "name a PEM file with lines `-----BEGIN CERTIFICATE-----`",
        ),
        Err(error) => refuse(
            format!("cannot read --ca-file {shown}: {error}"),
            "name a PEM file of at most 4 MiB",
        ),
    }
}

/// CLI-1: it must exist, and is known by its full name from here on.
fn directory(option: &str, path: &Path) -> Result<PathBuf, Refusal> {
    let shown = path.display();
    match fs::canonicalize(path) {
        Ok(found) if found.is_dir() => Ok(found),
        Ok(_) => refuse(format!("cannot use {option} {shown}: it is not a directory"), "name one"),
        Err(error) => refuse(
            format!("cannot use {option} {shown}: {error}"),
            format!("make it first: mkdir -p {shown}"),
        ),
    }
}

fn absolute(option: &str, path: &Path) -> Result<PathBuf, Refusal> {
    std::path::absolute(path)
        .or_else(|error| refuse(format!("cannot use {option}: {error}"), "name a path"))
}

fn state_directory(around: &Surroundings) -> Result<PathBuf, Refusal> {
    if around.level == Level::Root {
        return Ok(PathBuf::from("/var/lib/stockade"));
    }
    let variable = |name| (around.variable)(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
    match base {
        Some(base) => Ok(base.join("stockade")),
        None => refuse(
            "no place for state: neither XDG_STATE_HOME nor HOME is set",
            "set XDG_STATE_HOME, or name places with --state-dir and --audit-file",
        ),
    }
}

fn max_sessions(args: &PollArgs) -> Result<u32, Refusal> {
    let alone = args.session.workdir.is_some() && !args.claim.share_workdir;
    match args.claim.max_sessions {
        Some(n) if alone && n > 1 => refuse(
            format!("cannot run {n} sessions at a time in one --workdir: they would share files"),
            "leave --workdir out, or add --share-workdir if that is meant",
        ),
        Some(n) => Ok(n),
        None if alone || args.once => Ok(1),
        None => Ok(4),
    }
}

fn duration(option: &str, value: Duration) -> Result<Duration, Refusal> {
    if value > DURATION_MAX {
        return refuse(format!("cannot use {option}: longer than 30d"), "use at most 30d");
    }
    Ok(value)
}

fn at_least_1s(option: &str, value: Duration) -> Result<Duration, Refusal> {
    if value < Duration::from_secs(1) {
        return refuse(format!("cannot use {option}: shorter than 1s"), "use at least 1s");
    }
    duration(option, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        poll: PollArgs,
    }

    fn around(level: Level, variable: fn(&str) -> Option<OsString>) -> Surroundings {
        Surroundings { level, variable, host_name: "host.example".to_owned(), nonce: 0xabc }
    }

    fn parsed(options: &[&str]) -> PollArgs {
        let base = ["poll", "--jail", "--environment-id=env_1"];
        Cli::try_parse_from(base.iter().chain(options)).expect("arguments").poll
    }

    fn check(options: &[&str]) -> Result<Settings, Refusal> {
        Settings::check(&parsed(options), &around(Level::Root, |_| None))
    }

    #[test]
    fn the_defaults_are_those_of_the_help() {
        // POLL-14: the host's name and a number of this process.
        let settings = check(&[]).expect("valid");
        assert_eq!(settings.base_url, "https://api.anthropic.com/");
        assert_eq!(settings.worker_id, "host.example-000000000abc");
        assert_eq!((settings.max_sessions, settings.block_ms), (4, Some(999)));
        assert_eq!(settings.max_idle, Some(Duration::from_secs(60)));
        assert_eq!(settings.drain_timeout, Duration::from_secs(60));
        assert_eq!(settings.audit_file, Path::new("/var/log/stockade/audit.jsonl"));
        assert_eq!(settings.anthropic_version, "2026-10-21");
        let never = check(&["--max-idle=0", "--block-ms=none", "--once"]).expect("valid");
        assert_eq!((never.max_idle, never.block_ms, never.max_sessions), (None, None, 1));
        let state: fn(&str) -> _ = |name| (name == "XDG_STATE_HOME").then(|| "/s".into());
        let rootless = Settings::check(&parsed(&[]), &around(Level::Rootless, state));
        let rootless = rootless.expect("valid");
        assert_eq!(rootless.audit_file, Path::new("/s/stockade/audit.jsonl"));
        assert_eq!(rootless.state_dir, Path::new("/s/stockade"));
        let homeless = Settings::check(&parsed(&[]), &around(Level::Rootless, |_| None));
        assert!(homeless.expect_err("refused").hint.contains("XDG_STATE_HOME"));
        let named = parsed(&["--state-dir=/s", "--audit-file=/a"]);
        Settings::check(&named, &around(Level::Rootless, |_| None)).expect("needs no home");
    }

    #[test]
    fn each_mistake_has_one_sentence_and_what_to_do() {
        // CLI-1, CLI-4, AUTH-11, HDR-10.
        let place = tempfile::TempDir::new().expect("a directory");
        let here = place.path().display().to_string();
        let file = format!("{here}/file");
        fs::write(&file, "no certificate").expect("written");
        let (in_here, in_file) = (format!("--workdir={here}"), format!("--workdir={file}"));
        let (no_ca, long) =
            (format!("--ca-file={file}"), format!("--worker-id={}", "x".repeat(129)));
        #[rustfmt::skip]
        let cases: &[(&[&str], &str)] = &[
            (&["--environment-key=sk-ant-oat01-x"],     "from the command line"),
            (&["--environment-id="],                    "no environment id"),
            (&["--environment-id=a b"],                 "--environment-id: it is not an id"),
            (&["--base-url=http://gateway.example"],    "gateway.example has no TLS"),
            (&["--base-url=ftp://x"],                   "scheme is not https"),
            (&["--base-url=gateway.example"],           "--base-url"),
            (&["--base-url=https://u:planted@x"],       "user name or password"),
            (&["--base-url=https://x/?a=b"],            "expected scheme, host"),
            (&["--base-url=https://x/#a"],              "--base-url"),
            (&["--anthropic-version=soon"],             "not a date"),
            (&["--workdir=/nonexistent"],               "--workdir /nonexistent"),
            (&[&in_file],                               "not a directory"),
            (&[&in_here, "--max-sessions=2"],           "share files"),
            (&["--outputs-dir=/nonexistent"],           "--outputs-dir"),
            (&[&no_ca],                                 "holds no certificate"),
            (&["--ca-file=/nonexistent"],               "cannot read --ca-file"),
            (&[&long],                                  "--worker-id"),
            (&["--max-idle=31d"],                       "longer than 30d"),
            (&["--tool-timeout=10ms"],                  "shorter than 1s"),
            (&["--custom-header=Authorization: planted"],"`authorization` is set by the worker"),
            (&["--custom-header=no"],                   "not a header"),
            (&["--custom-header=a: b\nc: d"],           "not a header"),
        ];
        for (options, text) in cases {
            let mut options = options.to_vec();
            if options[0].starts_with("--environment-id") {
                options.insert(0, "--once");
            }
            let base = ["poll", "--jail"];
            let id = ["--environment-id=env_1"];
            let id: &[&str] =
                if options.iter().any(|o| o.starts_with("--environment-id")) { &[] } else { &id };
            let args = Cli::try_parse_from(base.iter().chain(id).chain(&options));
            let args = args.expect("arguments").poll;
            let refused = Settings::check(&args, &around(Level::Root, |_| None));
            let refused = refused.expect_err(text);
            assert!(refused.text.contains(text), "{options:?}: {refused:?}");
            assert!(
                !refused.hint.is_empty() && !format!("{refused:?}").contains("planted"),
                "{refused:?}"
            );
        }
        check(&[&in_here, "--max-sessions=2", "--share-workdir"]).expect("meant");
        assert_eq!(check(&[&in_here]).expect("valid").max_sessions, 1);
        let relative = check(&["--workdir=."]).expect("valid").workdir;
        assert_eq!(relative, std::env::current_dir().ok(), "CLI-1: known by its full name");
        let unjailed = Cli::try_parse_from(["poll"]).expect("arguments").poll;
        let refused = Settings::check(&unjailed, &around(Level::Root, |_| None));
        assert!(refused.expect_err("refused").hint.contains("add --jail"));
    }

    #[test]
    fn values_out_of_range_are_refused_by_the_command_line() {
        for option in [
            "--max-sessions=0",
            "--max-sessions=5000",
            "--block-ms=0",
            "--block-ms=1000",
            "--max-idle=60",
            "--memory-reserve=1GB",
            "--reclaim-older-than-ms=0",
            "--share-workdir",
        ] {
            assert!(Cli::try_parse_from(["poll", option]).is_err(), "{option}");
        }
    }

    #[test]
    fn http_is_for_this_host_or_for_those_who_ask_for_it() {
        for url in ["http://127.0.0.1:8080", "http://[::1]:1/p/", "http://localhost"] {
            check(&["--base-url", url]).expect(url);
        }
        check(&["--base-url=http://x.example", "--insecure-http"]).expect("asked for");
        for url in ["http://127.0.0.1.evil.test", "http://localhost.evil.test", "http://10.0.0.1"] {
            assert!(check(&["--base-url", url]).is_err(), "{url}");
        }
    }

    /// AUTH-7, HDR-10, INV-12
    #[test]
    fn custom_headers_cannot_replace_the_credential_and_are_not_shown() {
        let variable: fn(&str) -> _ = |name| {
            let text = "X-Team: blue\n\nx-api-key: sk\nAUTHORIZATION: Bearer y\n";
            (name == "ANTHROPIC_CUSTOM_HEADERS").then(|| text.into())
        };
        let args = parsed(&["--custom-header=X-Route: secret-value"]);
        let settings = Settings::check(&args, &around(Level::Root, variable)).expect("valid");
        let names: Vec<&str> = settings.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["x-team", "x-route"]);
        let dropped: Vec<&str> = settings.headers_dropped.iter().map(|n| n.as_str()).collect();
        assert_eq!(dropped, ["x-api-key", "authorization"]);
        assert!(!format!("{settings:?}").contains("secret-value"));
        let many: Vec<String> = (0..33).map(|n| format!("--custom-header=x-{n}: y")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(check(&many).is_err(), "more than there may be");
    }
}
