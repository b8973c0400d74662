//! Options that `worker poll`, `worker run` and `worker serve` have in common.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use stockade_runtime::policy::{ByteSize, UnitError, parse_duration};

use super::policy::ReportFormat;
use super::policy_choice::PolicyChoice;
use crate::platform::PlatformArgs;
use crate::traces::TraceArgs;

/// How sessions are served, wherever they come from.
#[derive(Debug, Clone, Args)]
pub struct SessionArgs {
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

    #[command(flatten)]
    pub policy: PolicyChoice,

    /// Show DIR as /workspace to sessions [default: a fresh one for each, gone afterwards]
    ///
    /// It must exist. What a session changes is copied back when it ends. One session at a time uses
    /// it, unless --share-workdir is given too.
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,

    /// Keep what sessions put into /mnt/session/outputs, in DIR/SESSION [default: discarded]
    #[arg(long, value_name = "DIR")]
    pub outputs_dir: Option<PathBuf>,

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

    /// Send this workspace id with every request
    #[arg(long, value_name = "ID", env = "ANTHROPIC_WORKSPACE_ID", hide_env_values = true)]
    pub workspace_id: Option<String>,

    #[command(flatten)]
    pub traces: TraceArgs,

    /// Answer scrapers of metrics at ADDRESS, for example 127.0.0.1:9187 [default: nobody]
    ///
    /// Prometheus text at /metrics; /healthz and /readyz too. Nobody is asked who he is; what is shown
    /// holds no id and no content. docs/metrics.md lists it.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,

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

/// How many sessions are claimed, and by whom.
#[derive(Debug, Clone, Args)]
pub struct ClaimArgs {
    /// Let sessions use --workdir at the same time
    ///
    /// They see and overwrite each other's files, skills and memory.
    #[arg(long, requires = "workdir")]
    pub share_workdir: bool,

    /// Run at most N sessions at the same time [default: 4; 1 with --workdir]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_sessions: Option<u32>,

    /// Claim no session while less memory than SIZE would stay free [default: 256MiB]
    #[arg(long, value_name = "SIZE", default_value = "256MiB", hide_default_value = true)]
    pub memory_reserve: ByteSize,

    /// Be known to the control plane by this name [default: HOSTNAME and a random number]
    #[arg(long, value_name = "ID", env = "ANTHROPIC_WORKER_ID", hide_env_values = true)]
    pub worker_id: Option<String>,
}

/// As [`parse_duration`], and `0` without a unit.
pub fn duration_or_zero(text: &str) -> Result<Duration, UnitError> {
    if text == "0" { Ok(Duration::ZERO) } else { parse_duration(text) }
}
