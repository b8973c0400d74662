//! `clone3(2)` without a stack: a fork that also makes namespaces, enters a cgroup and returns a
//! pidfd in one step.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What the new process is made with.
#[derive(Debug, Default, Clone, Copy)]
pub struct CloneArgs<'a> {
    /// `CLONE_NEW*` flags.
    pub namespaces: u64,
    /// Directory of a cgroup v2 the child is born in. Linux 5.7.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Which side of the fork this is.
#[derive(Debug)]
pub enum Cloned {
    /// The new process.
    Child,
    /// The caller; `pid` is the child's id in the caller's pid namespace.
    Parent {
        /// Process id.
        pid: i32,
        /// Refers to the child from its birth; close-on-exec.
        pidfd: OwnedFd,
    },
}

/// Forks the calling process with `args`.
///
/// The child has the caller's memory (copied on write), descriptors and one thread. Signal
/// handlers are reset where the kernel can (Linux 5.5, `CLONE_CLEAR_SIGHAND`).
///
/// # Errors
/// `EBUSY` if the caller has more than one thread: a fork of a threaded process may hold locks
/// that nobody will release. Otherwise what clone3(2) says; `ENOSYS` before Linux 5.3.
///
/// Source: clone(2).
pub fn clone3(args: CloneArgs<'_>) -> io::Result<Cloned> {
    const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    if !is_single_threaded() {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let mut pidfd: i32 = -1;
    // SAFETY: an all-zero `clone_args` is its documented empty value.
    let mut raw: libc::clone_args = unsafe { std::mem::zeroed() };
    raw.flags = args.namespaces | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    raw.pidfd = (&raw mut pidfd) as u64;
    raw.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = args.cgroup {
        raw.flags |= CLONE_INTO_CGROUP;
        raw.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: no stack and no CLONE_VM is a fork; the process has one thread (checked above), so
    // the child may go on running Rust code; `raw` and `pidfd` outlive the call and the size is
    // that of `raw`.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const raw, size_of_val(&raw)) };
    match pid {
        0 => Ok(Cloned::Child),
        1.. => {
            // SAFETY: the kernel stored a new descriptor there, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid: pid as i32, pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the calling process has one thread: only then may it unshare what threads share, which
/// changes nothing (unshare(2), CLONE_THREAD). Works where no `/proc` is mounted.
fn is_single_threaded() -> bool {
    // SAFETY: no pointers; in a process of one thread the call has no effect, otherwise it fails.
    unsafe { libc::unshare(libc::CLONE_THREAD) == 0 }
}
