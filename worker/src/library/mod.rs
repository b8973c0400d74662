//! What programs get that use this package as a library: the pieces of `worker`, without its command
//! line. [`lib.rs`](crate) names all of it.
//!
//! A thin layer: rules of the wire are in `queue`, jails in `daemon::jails`, processes in
//! `stockade_runtime`. Types of those do not show here, so that they may change.

mod environment;
mod error;
mod host;
mod jailed;
mod poller;
mod runner;
mod stop;
mod tool;
mod toolset;
mod worker;

pub use environment::Environment;
pub use error::{Error, ErrorKind};
pub use jailed::JailPolicy;
pub use poller::{ClaimedWork, PollEnd, WorkPoller, WorkPollerOptions};
pub use runner::SessionRunner;
pub use stop::{Stop, StopHandle};
pub use tool::{ToolInput, ToolOutput};
pub use toolset::Toolset;
pub use worker::{EnvironmentWorker, Outcome, WorkToServe};

/// Turns this process into one of the helpers that jails and toolsets are made of, if it was started as
/// one; returns at once otherwise. Call it first thing in `main`, before any thread, argument or file.
///
/// [`Toolset::jailed`] and [`Toolset::in_process`] execute the running program anew under another name.
/// A program that does not call this would then run its own `main` a second time; it gets an error
/// instead, because the helper does not answer.
///
/// ```no_run
/// stockade_worker::become_helper_if_asked();
/// // Arguments, threads and everything else come after.
/// ```
pub fn become_helper_if_asked() {
    stockade_runtime::session::become_launcher_if_asked();
    stockade_runtime::session::become_unjailed_if_asked();
    crate::stage::git_starter::become_git_starter_if_asked();
}
