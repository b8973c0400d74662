//! Confines the key reader: the one process beside the launcher that keeps the rights of whoever
//! started the worker. It may read below the directories of its files and do nothing else.
//!
//! Knows nothing of keys: what is read, and for whom, is the worker's business. Runs in the key
//! reader itself, single-threaded, before it reads its first request.
//!
//! Order matters: the net namespace needs a capability, the securebits need one, and landlock needs
//! `no_new_privs`; the parent-death signal comes last, because a change of credentials clears it. It
//! reaches only a process of the same user, so whoever runs this also ends at the end of its input.

use std::io;
use std::path::Path;

use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Signal};

use crate::host::Level;

use super::{caps, landlock};

/// A step of the confinement that the kernel refused. The process must not go on then.
#[derive(Debug, thiserror::Error)]
#[error("cannot confine the key reader: {what}")]
pub struct ConfineError {
    /// What was tried.
    pub what: &'static str,
    /// The cause.
    pub source: io::Error,
}

/// Whether the kernel had landlock to offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReaderDomain {
    /// Only files below the directories can be opened, and no TCP connection be made.
    Landlock,
    /// This kernel has no landlock; ids and capabilities are all that holds it.
    None,
}

/// Gives up everything but reading below `directories` with the process's user id.
///
/// As root: no capability is left (files of root can be read as their owner), user 0 is not special
/// any more, and the net namespace is an empty one. At either level: nothing can be gained, no core
/// dump, no tracing by others.
///
/// # Errors
/// If any of it is refused, except landlock on a kernel that has none.
pub fn confine_key_reader(
    level: Level,
    directories: &[&Path],
) -> Result<ReaderDomain, ConfineError> {
    let open = |directory: &&Path| {
        rustix::fs::open(*directory, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
    };
    let opened: Result<Vec<_>, _> = directories.iter().map(open).collect();
    let opened = opened.at("open the key's directory")?;
    if level == Level::Root {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).at("leave the network")?;
        caps::drop_all().at("give up every capability")?;
    }
    rustix::thread::set_no_new_privs(true).at("set no_new_privs")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .at("become undumpable")?;
    let domain = if landlock::kernel_abi() == 0 {
        ReaderDomain::None
    } else {
        let domain = landlock::Domain::reading(&opened);
        domain.and_then(landlock::Domain::enter).at("enter a landlock domain")?;
        ReaderDomain::Landlock
    };
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .at("die with the worker")?;
    Ok(domain)
}

/// Names what was tried.
trait At<T> {
    fn at(self, what: &'static str) -> Result<T, ConfineError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, what: &'static str) -> Result<T, ConfineError> {
        self.map_err(|error| ConfineError { what, source: error.into() })
    }
}
