//! The executor: hears the control side, runs one call at a time, answers.
//!
//! Runs in the jail, single-threaded, with an id that bash does not have and in a PID namespace that
//! bash cannot see. Calls of bash go to the shell; calls of custom tools are started by the shell's
//! keeper; every other call runs in a process forked for it (see `helper`), which costs at most that
//! call when it dies.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use super::call::{FromExecutor, FullPlace, ToExecutor, ToolCall, ToolResult};
use super::frame;
use super::helper::FileHelper;
use super::shell::Shell;
use crate::spec::CustomToolPlan;

/// Everything the executor works with.
pub struct Executor<'a> {
    /// Connection to the control side.
    pub control: OwnedFd,
    /// The persistent shell, and what starts custom tools.
    pub shell: Shell,
    /// Starts a process for each call of a file tool. `None`: this executor has custom tools only,
    /// and no shell either.
    pub files: Option<FileHelper<'a>>,
    /// The custom tools, in the order that the keeper has them in.
    pub custom: Vec<CustomToolPlan>,
    /// Places whose file systems can be full, as the session sees them, and open.
    pub places: Vec<(PathBuf, OwnedFd)>,
}

impl std::fmt::Debug for Executor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("places", &self.places).finish_non_exhaustive()
    }
}

impl Executor<'_> {
    /// Serves until the control side closes the connection, and exits.
    pub fn serve(mut self) -> ! {
        self.serve_until_closed();
        std::process::exit(0)
    }

    /// Serves until the control side closes the connection.
    pub fn serve_until_closed(&mut self) {
        // Both errors mean that the control side is gone: so is the session.
        let _over = self.hear();
    }

    fn hear(&mut self) -> io::Result<()> {
        if self.files.is_some() {
            self.shell.warm_up();
        }
        frame::send(&self.control, &FromExecutor::Ready)?;
        loop {
            match frame::receive(&self.control)? {
                ToExecutor::Call(call) => {
                    let number = call.number;
                    let result = self.run(&call);
                    frame::send(&self.control, &FromExecutor::Done { number, result })?;
                }
                // The call it meant has ended meanwhile, or because of it.
                ToExecutor::Cancel { .. } => {}
                ToExecutor::Quiesce => {
                    self.shell.quiesce();
                    frame::send(&self.control, &FromExecutor::Quiet)?;
                }
            }
        }
    }

    /// Whatever arrives from the control side while a call runs means that the call is to end.
    fn run(&mut self, call: &ToolCall) -> ToolResult {
        let started = Instant::now();
        let cancel = self.control.as_fd();
        let custom = self.custom.iter().position(|tool| tool.name == call.name);
        let mut result = match (call.name.as_str(), &mut self.files, custom) {
            ("bash", Some(_), _) => self.shell.call(&call.input, cancel),
            (name, Some(files), _) if files.owns(name) => files.run(name, &call.input, cancel),
            (_, _, Some(at)) => {
                self.shell.run_tool(at as u16, &self.custom[at], &call.input, cancel)
            }
            (name, _, None) => ToolResult::error(format!("{name}: no such tool")),
        };
        result.facts.wall_us = started.elapsed().as_micros() as u64;
        if result.is_error {
            result.facts.full = self.full_places();
        }
        result
    }

    /// Places without room for another byte or another file.
    fn full_places(&self) -> Vec<FullPlace> {
        let full = |(path, directory): &(PathBuf, OwnedFd)| {
            let at = rustix::fs::fstatvfs(directory).ok()?;
            let inodes = at.f_favail == 0 && at.f_files > 0;
            let place = path.display().to_string();
            (inodes || at.f_bavail == 0).then_some(FullPlace { place, inodes })
        };
        self.places.iter().filter_map(full).collect()
    }
}
