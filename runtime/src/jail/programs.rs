//! What runs in a session's jail besides init, and what each of them is given.
//!
//! The programs themselves are tools, of which a jail knows nothing: `session` names them when the
//! process starts.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::process::Signal;

use crate::spec::{Access, JailSpec};

use super::caps;
use super::landlock::Domain;
use super::seccomp::{self, Program};

/// Entry points of the processes of a session's jail. Each takes over its process for good, after
/// every layer is on it.
#[derive(Debug, Clone, Copy)]
pub struct Programs {
    /// PID 1 of the tool tree.
    pub keeper: fn(KeeperSide, &JailSpec) -> !,
    /// Hears the control side.
    pub executor: fn(ExecutorEnds, Confinement, &JailSpec) -> !,
    /// Unpacks skills, keeps memory stores, lays staged files into the workspace.
    pub porter: fn(PorterEnds, UnpackConfinement) -> !,
}

/// The keeper's descriptors.
#[derive(Debug)]
pub struct KeeperSide {
    /// Standard input of the shell, to read.
    pub commands: OwnedFd,
    /// The file of the command.
    pub script: OwnedFd,
    /// Standard output and error of the shell, to write.
    pub output: OwnedFd,
    /// Where the shell writes the status of each command.
    pub status: OwnedFd,
    /// What custom tools print, to write: output and errors.
    pub tool: [OwnedFd; 2],
    /// Connection to the executor.
    pub executor: OwnedFd,
    /// `/proc` of the tool tree's namespace, with nothing hidden.
    pub proc: OwnedFd,
}

/// The executor's descriptors.
#[derive(Debug)]
pub struct ExecutorEnds {
    /// Connection to the control side.
    pub control: OwnedFd,
    /// Standard input of the shell, to write.
    pub commands: OwnedFd,
    /// The file of the command, to write.
    pub script: OwnedFd,
    /// Standard output and error of the shell, to read.
    pub output: OwnedFd,
    /// The other end of `output`, to undo what a program did to its flags.
    pub output_writer: OwnedFd,
    /// Status of commands, to read.
    pub status: OwnedFd,
    /// What custom tools print, to read: output and errors.
    pub tool: [OwnedFd; 2],
    /// The other ends of `tool`.
    pub tool_writers: [OwnedFd; 2],
    /// Connection to the keeper.
    pub keeper: OwnedFd,
}

/// The porter's descriptors.
#[derive(Debug)]
pub struct PorterEnds {
    /// Connection to the control side.
    pub control: OwnedFd,
    /// The session's working directory.
    pub workspace: OwnedFd,
    /// Where skills are, if there are any.
    pub skills: Option<OwnedFd>,
    /// Memory stores, in the order of the request.
    pub stores: Vec<OwnedFd>,
}

impl PorterEnds {
    /// All but the connection.
    pub(super) fn places(&self) -> impl Iterator<Item = &OwnedFd> {
        [&self.workspace].into_iter().chain(&self.skills).chain(&self.stores)
    }

    pub(super) fn numbers(&self) -> Vec<i32> {
        self.places().chain([&self.control]).map(|fd| fd.as_raw_fd()).collect()
    }
}

impl KeeperSide {
    pub(super) fn numbers(&self) -> [i32; 8] {
        [
            &self.commands,
            &self.script,
            &self.output,
            &self.status,
            &self.tool[0],
            &self.tool[1],
            &self.executor,
            &self.proc,
        ]
        .map(|fd| fd.as_raw_fd())
    }
}

impl ExecutorEnds {
    pub(super) fn numbers(&self) -> [i32; 11] {
        [
            &self.control,
            &self.commands,
            &self.script,
            &self.output,
            &self.output_writer,
            &self.status,
            &self.tool[0],
            &self.tool[1],
            &self.tool_writers[0],
            &self.tool_writers[1],
            &self.keeper,
        ]
        .map(|fd| fd.as_raw_fd())
    }
}

/// The layers of a file helper, made ready.
#[derive(Debug)]
pub struct Confinement {
    /// Places that can be full, opened before the way to some of them was closed.
    pub places: Vec<(PathBuf, OwnedFd)>,
    pub(super) id: u32,
    pub(super) domain: Option<Domain>,
    pub(super) filter: Option<Program>,
}

impl Confinement {
    /// In a process just forked from the executor: takes the payload's id, gives up every capability
    /// and enters the helper's layers.
    ///
    /// # Errors
    /// If any of it is refused; the process must exit then.
    pub fn enter(&mut self) -> io::Result<()> {
        caps::become_and_empty(self.id)?;
        // A change of ids takes both away (prctl(2)).
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if let Some(domain) = self.domain.take() {
            domain.enter()?;
        }
        match &self.filter {
            Some(filter) => seccomp::install(filter).map_err(io::Error::other),
            None => Ok(()),
        }
    }
}

/// The layers of a process that unpacks, made ready.
#[derive(Debug)]
pub struct UnpackConfinement {
    /// Whether landlock is on.
    pub(super) landlock: bool,
    pub(super) filter: Option<Program>,
}

impl UnpackConfinement {
    /// In a process just forked from the porter: enters a domain that holds `directory` alone, inside
    /// the porter's, and a filter without any call that reaches another process.
    ///
    /// # Errors
    /// If any of it is refused; the process must exit then.
    pub fn enter(&mut self, directory: BorrowedFd<'_>) -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if self.landlock {
            Domain::confined(&[])?.grant(directory, Access::Porter)?.enter()?;
        }
        match &self.filter {
            Some(filter) => seccomp::install(filter).map_err(io::Error::other),
            None => Ok(()),
        }
    }
}
