//! fork(2), for a process of one thread that may not call clone3.

use std::io;

use nix::unistd::{ForkResult, Pid};

/// Which side of the fork this is.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The caller.
    Parent {
        /// The child's process id.
        child: Pid,
    },
}

/// Forks the calling process.
///
/// # Errors
/// `EAGAIN` at a limit of processes, `ENOMEM`. fork(2).
pub fn fork() -> io::Result<Forked> {
    // SAFETY: the callers of this module have one thread (the launcher is executed anew without
    // threads, and its clones start none), so the child may go on running any code.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => Ok(Forked::Child),
        ForkResult::Parent { child } => Ok(Forked::Parent { child }),
    }
}
