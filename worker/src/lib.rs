//! Stockade as a library: claim the work of a self-hosted Claude Managed Agents environment, serve its
//! sessions, and run their tools, each session in a jail of its own.
//!
//! | what | for |
//! |---|---|
//! | [`WorkPoller`] | claims work items and hands them to you |
//! | [`EnvironmentWorker`] | claims and serves them, or serves one that you claimed |
//! | [`SessionRunner`] | serves one session, without a work item |
//! | [`Toolset`] | the six tools, in a jail or without one, and functions of yours by name |
//!
//! A program that uses a [`Toolset`] with a back end calls [`become_helper_if_asked`] first thing in
//! `main`. Everything runs on the Tokio runtime of the caller; heartbeats have a thread of their own.
//!
//! What is here follows semantic versioning from 1.0 on. Until then a minor version may change it; the
//! changelog says so. The binary `worker` is built on the same parts, and its command line, its files
//! and its audit log are a separate promise.
#![forbid(unsafe_code)]
#![warn(missing_docs, rustdoc::broken_intra_doc_links)]

use std::process::ExitCode;

use clap::Parser as _;

mod child;
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
mod library;
mod listener;
mod memory;
mod metrics;
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

pub use library::{
    ClaimedWork, Environment, EnvironmentWorker, Error, ErrorKind, JailPolicy, Outcome, PollEnd,
    SessionRunner, Stop, StopHandle, ToolInput, ToolOutput, Toolset, WorkPoller, WorkPollerOptions,
    WorkToServe, become_helper_if_asked,
};

/// Runs the command line of the program `worker`. No part of the library: for its `main` only.
#[doc(hidden)]
pub fn main() -> ExitCode {
    stockade_runtime::sys::abort_on_panic();
    // Before anything else: a process started as a helper must not read arguments, files or the
    // environment, and those started as the key reader or the script starter only what they were
    // started for.
    become_helper_if_asked();
    credential::reader::become_key_reader_if_asked();
    scripts::starter::become_script_starter_if_asked();
    cli::run(cli::Cli::parse())
}
