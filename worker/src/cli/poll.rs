//! `worker poll`: its command line.

use clap::Args;

use super::on_work::OnWorkArgs;
use super::serving::{ClaimArgs, SessionArgs};

/// Run the sessions of a self-hosted environment, each in a jail of its own
///
/// Asks the control plane for work, makes a jail for every session, runs its tool calls there, and
/// removes the jail afterwards. Stops on SIGTERM or SIGINT: nothing new is claimed, running calls may
/// finish, and at the drain timeout or a second signal the rest is killed.
///
/// The environment key is read from the first of: --environment-key-file, the systemd credential
/// `environment-key`, the variable ANTHROPIC_ENVIRONMENT_KEY. SIGHUP reads a file again.
///
/// With --on-work SCRIPT a program of yours serves the sessions instead: see docs/run.md.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct PollArgs {
    #[command(flatten)]
    pub session: SessionArgs,

    #[command(flatten)]
    pub claim: ClaimArgs,

    /// Stop after one work item
    #[arg(long)]
    pub once: bool,

    /// Stop when the queue is empty and every session has ended
    #[arg(long)]
    pub drain_on_empty: bool,

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

    #[command(flatten)]
    pub on_work: OnWorkArgs,
}

const EXAMPLES: &str = "\
Examples:
  sudo worker poll --jail --environment-id env_… --environment-key-file /etc/stockade/key
  sudo worker poll --jail --check
  worker poll --jail --once --drain-on-empty
  worker poll --on-work ./spawn.sh

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
