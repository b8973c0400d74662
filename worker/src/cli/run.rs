//! `worker run`: its command line.

use std::path::PathBuf;

use clap::Args;
use stockade_runtime::policy::ByteSize;

use super::on_work::OnWorkArgs;
use super::poll::{BlockMs, Cadence, PollArgs};
use super::serving::{ClaimArgs, SessionArgs};

/// Serve one work item that somebody else has claimed, in a jail
///
/// Takes the place of `ant beta:worker run` in a script that `worker poll --on-work` or another poller
/// starts: it reads the item from ANTHROPIC_* variables, begins with a heartbeat, serves the session in
/// a jail of its own until that is idle or over, and stops the item. It neither polls nor confirms.
///
/// The environment key is looked for where `worker poll` does; it is not needed if the work secret
/// holds a token. The work secret is read from --work-secret-file or ANTHROPIC_WORK_SECRET.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct RunArgs {
    /// Serve this session
    #[arg(long, value_name = "ID", env = "ANTHROPIC_SESSION_ID", hide_env_values = true)]
    pub session_id: Option<String>,

    /// Keep and stop this work item
    #[arg(long, value_name = "ID", env = "ANTHROPIC_WORK_ID", hide_env_values = true)]
    pub work_id: Option<String>,

    /// Read the work secret from FILE, which only its owner can read [default: ANTHROPIC_WORK_SECRET]
    ///
    /// ANTHROPIC_WORK_SECRET_FILE may name it as well.
    #[arg(long, value_name = "FILE", env = "ANTHROPIC_WORK_SECRET_FILE", hide_env_values = true)]
    pub work_secret_file: Option<PathBuf>,

    #[command(flatten)]
    pub session: SessionArgs,
}

const EXAMPLES: &str = "\
Examples:
  exec worker run --max-idle 5m           (in a script of `worker poll --on-work`)

Exit codes: 0 idle, ended or stopped by a signal; 1 the item failed or is somebody else's; 2 usage;
3 policy or key; 4 the control plane refuses the credential; 5 isolation; 7 the drain timeout passed;
8 audit log; 9 a credential is refused; 128+n signal n.";

impl RunArgs {
    /// The same as options of `worker poll` that claims one session at a time.
    pub fn as_poll(&self) -> PollArgs {
        PollArgs {
            session: self.session.clone(),
            claim: ClaimArgs {
                share_workdir: false,
                max_sessions: Some(1),
                memory_reserve: ByteSize::default(),
                worker_id: None,
            },
            once: true,
            drain_on_empty: false,
            block_ms: BlockMs(None),
            cadence: Cadence::Sdk,
            reclaim_older_than_ms: None,
            on_work: OnWorkArgs::default(),
        }
    }
}
