//! What the binary `worker` is made of: it gives agent sessions, or any command, a jail of their own
//! on this host.
//!
//! This is the edge: it reads arguments, files and the environment, and turns results into exit
//! codes. What a jail is, how it is made and what it may do is in `stockade_runtime`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;

mod cli;
mod config;
mod credential;
mod daemon;
mod devserver;
mod doctor;
mod egress_log;
mod exec;
mod exit;
mod explain;
mod footer;
mod network;
mod progress;
mod queue;
mod relay;
mod settings;
mod sweep;

/// Runs the command line of this process. Call it first thing in `main`.
pub fn main() -> ExitCode {
    // Before anything else: a process started as the launcher must not read arguments, files or
    // the environment, and one started as the key reader only what it was started for.
    stockade_runtime::session::become_launcher_if_asked();
    stockade_runtime::session::become_unjailed_if_asked();
    credential::reader::become_key_reader_if_asked();
    cli::run(cli::Cli::parse())
}
