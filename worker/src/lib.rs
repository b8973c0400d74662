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
mod memory;
mod network;
mod ops;
mod platform;
mod progress;
mod queue;
mod relay;
mod scripts;
mod settings;
mod skills;
mod stage;
mod sweep;
mod traces;
mod webhook;

/// Runs the command line of this process. Call it first thing in `main`.
pub fn main() -> ExitCode {
    // Before anything else: a process started as the launcher must not read arguments, files or
    // the environment, and those started as the key reader or the script starter only what they were started for.
    stockade_runtime::session::become_launcher_if_asked();
    credential::reader::become_key_reader_if_asked();
    scripts::starter::become_script_starter_if_asked();
    cli::run(cli::Cli::parse())
}
