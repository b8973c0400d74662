//! Confines git, which reads what strangers packed for sessions: it is outside every jail, and has at
//! most the rights of the control side.
//!
//! Runs in the process that starts git, single-threaded, before it does; git and whatever it starts
//! inherit all of it. Knows nothing of rules and repositories: what is fetched is the worker's business.
//!
//! Order matters: landlock needs `no_new_privs`, and the directories are opened before the domain.

use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;

use crate::spec::Rlimit;

use super::{landlock, rlimits};

/// Descriptors of each process.
const OPEN_FILES_MAX: u64 = 1024;

/// What each process of git may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GitBounds {
    /// Memory of its own in bytes; files that it maps to read them do not count (`RLIMIT_DATA`).
    pub memory_bytes_max: u64,
    /// Bytes of each file that it writes.
    pub file_bytes_max: u64,
    /// Seconds of a processor.
    pub cpu_seconds_max: u64,
}

/// Holds the calling process and what it starts to `bounds`, and lets them write files below
/// `directory` and nowhere else. Where the kernel has no landlock, ids alone decide about the latter.
///
/// # Errors
/// If any of it is refused; the process must not go on then.
pub fn confine_git(bounds: &GitBounds, directory: &Path) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    if landlock::kernel_abi() > 0 {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let own = rustix::fs::open(
            directory,
            flags | OFlags::DIRECTORY | OFlags::NOFOLLOW,
            Mode::empty(),
        )?;
        let null = rustix::fs::open("/dev/null", flags, Mode::empty())?;
        use std::os::fd::AsFd as _;
        landlock::Domain::writing(own.as_fd(), null.as_fd())?.enter()?;
    }
    rlimits::apply(Rlimit::Core, 1)?;
    rlimits::apply(Rlimit::OpenFiles, OPEN_FILES_MAX)?;
    rlimits::apply(Rlimit::CpuSeconds, bounds.cpu_seconds_max)?;
    rlimits::apply(Rlimit::FileSize, bounds.file_bytes_max)?;
    rlimits::apply(Rlimit::Data, bounds.memory_bytes_max)
}

/// Ties the calling process to `parent`: it is killed when that ends. For a process that was just
/// forked by a parent with one thread; what is executed next stays tied.
///
/// # Errors
/// If the kernel refuses it, or the parent has ended already.
pub fn end_with(parent: i32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    match rustix::process::getppid().is_some_and(|now| now.as_raw_nonzero().get() == parent) {
        true => Ok(()),
        false => Err(io::ErrorKind::BrokenPipe.into()),
    }
}
