//! Options of `worker poll --on-work`.

use std::ffi::OsString;

use clap::Args;

/// Who serves sessions instead of the worker itself.
#[derive(Debug, Clone, Default, Args)]
pub struct OnWorkArgs {
    /// Start SCRIPT for every session, instead of serving it here
    ///
    /// The item is claimed and confirmed; then SCRIPT is started without arguments, with
    /// ANTHROPIC_SESSION_ID, ANTHROPIC_WORK_ID, ANTHROPIC_ENVIRONMENT_ID, ANTHROPIC_ENVIRONMENT_KEY
    /// and, if the item has one, ANTHROPIC_WORK_SECRET added to the worker's environment, and the item
    /// as JSON on standard input. It runs with all rights of whoever started the worker, outside
    /// of any jail, and is to stay until its session is over: the item is stopped when it ends.
    /// Nothing but SCRIPT sends heartbeats. Empty or `in-process`: sessions are served here.
    #[arg(long, value_name = "SCRIPT")]
    pub on_work: Option<OsString>,

    /// Do not stop the item when SCRIPT ends: its session goes on elsewhere
    #[arg(long, requires = "on_work")]
    pub on_work_detached: bool,

    /// Do not give the environment key to SCRIPT
    ///
    /// Enough where items have a work secret, which speaks for one session only.
    #[arg(long, requires = "on_work")]
    pub on_work_without_key: bool,

    /// Accept --jail together with --on-work: SCRIPT runs `worker run`, which makes the jail
    ///
    /// The worker cannot know what SCRIPT does. It sets STOCKADE_JAIL=1 for it.
    #[arg(long, requires = "on_work")]
    pub on_work_jailed: bool,
}
