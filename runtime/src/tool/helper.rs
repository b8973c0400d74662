//! The file helper: one process for each call of a file tool, forked from the executor.
//!
//! It takes the ids of bash and enters a narrower domain before it looks at the call, answers
//! through a pipe and exits. Whatever happens to it, a crash, a kill, a document that eats all
//! memory, costs this one call.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::sys::{self, Forked};

use super::call::{CallFacts, ToolResult};
use super::files::{self, FileLimits, Roots};
use super::frame;
use super::reap::reap;

/// Starts file helpers.
pub struct FileHelper<'a> {
    /// What the tools may use, the working directory first.
    pub roots: Vec<PathBuf>,
    /// Those of them, or below them, in which they may change nothing.
    pub read_only: Vec<PathBuf>,
    /// Puts every layer on a process just forked.
    pub confine: &'a mut dyn FnMut() -> io::Result<()>,
}

impl std::fmt::Debug for FileHelper<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileHelper").field("roots", &self.roots).finish_non_exhaustive()
    }
}

impl FileHelper<'_> {
    /// Whether a file tool has this name.
    pub fn owns(&self, name: &str) -> bool {
        files::owns(name)
    }

    /// Runs one call in a process of its own; ends it when `cancel` becomes readable.
    pub fn run(&mut self, name: &str, input: &[u8], cancel: BorrowedFd<'_>) -> ToolResult {
        let answer = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
        let started = answer.and_then(|(read, write)| Ok((read, write, sys::fork()?)));
        let (read, write, child) = match started {
            Ok((read, write, Forked::Parent(child))) => (read, write, Pid::from_raw(child)),
            Ok((read, write, Forked::Child)) => {
                drop(read);
                self.help(name, input, &write)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return ToolResult::error(format!(
                    "{name}: cannot start: the process limit of the session is reached; end \
                     processes or call bash with restart: true"
                ));
            }
            Err(error) => return ToolResult::error(format!("{name}: cannot start: {error}")),
        };
        drop(write);
        let mut gathered = Vec::new();
        let end = gather(&read, cancel, &mut gathered);
        if end != End::Complete {
            // It is dead already, or is to be.
            let _dead = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
        }
        // Its result counts, if it is complete, and not how it ended.
        let _status = reap(child);
        match (end, result_in(&gathered)) {
            (End::Cancelled, _) => ToolResult {
                facts: CallFacts { cancelled: true, ..CallFacts::default() },
                ..ToolResult::error(format!("{name}: cancelled"))
            },
            (_, Some(result)) => result,
            (_, None) => ToolResult::error(format!(
                "{name}: the process of this call was killed; its outcome is unknown"
            )),
        }
    }

    /// In the child. Never returns.
    fn help(&mut self, name: &str, input: &[u8], answer: &OwnedFd) -> ! {
        // What it was forked with belongs to the executor, its voice above all.
        let mut keep = [answer.as_raw_fd()];
        let confined = (self.confine)().and_then(|()| sys::close_all_but(3, &mut keep));
        let result = match confined {
            Err(error) => ToolResult::error(format!("{name}: cannot confine the helper: {error}")),
            Ok(()) => match self.roots.split_first() {
                None => ToolResult::error(format!("{name}: there is no working directory")),
                Some((workdir, allowed)) => match Roots::open(workdir, allowed, &self.read_only) {
                    Ok(roots) => files::run(name, input, &roots, &FileLimits::default()),
                    Err(error) => ToolResult::error(format!("{name}: {error}")),
                },
            },
        };
        let sent = frame::send(answer, &result);
        std::process::exit(i32::from(sent.is_err()))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Broken,
    Cancelled,
}

/// Reads the answer until its end.
fn gather(answer: &OwnedFd, cancel: BorrowedFd<'_>, into: &mut Vec<u8>) -> End {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let mut polled = [
            PollFd::from_borrowed_fd(answer.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(cancel, PollFlags::IN),
        ];
        if poll(&mut polled, None).is_err() {
            continue; // interrupted
        }
        if !polled[0].revents().is_empty() {
            match rustix::io::read(answer, &mut buffer) {
                Ok(0) => return End::Complete,
                Ok(read) if into.len() + read <= frame::BYTES_MAX + frame::HEADER_BYTES => {
                    into.extend_from_slice(&buffer[..read]);
                }
                Ok(_) => return End::Broken,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return End::Broken,
            }
        } else if !polled[1].revents().is_empty() {
            return End::Cancelled;
        }
    }
}

/// The result, if the answer is complete.
fn result_in(gathered: &[u8]) -> Option<ToolResult> {
    let (header, body) = gathered.split_first_chunk()?;
    let length = frame::announced(*header).ok()?;
    if body.len() != length {
        return None;
    }
    frame::decode(body).ok()
}
