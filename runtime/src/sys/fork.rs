//! Forking without `clone3(2)`, for a process whose filter answers that call with ENOSYS, and
//! signals by number.

use std::io;

/// Which side of the fork this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// The new process.
    Child,
    /// The caller, with the child's process id.
    Parent(i32),
}

/// Forks the calling process. fork(2).
///
/// # Errors
/// `EBUSY` if the caller has more than one thread: the child could hold locks that nobody will
/// release. `EAGAIN` if a limit on processes was reached.
pub fn fork() -> io::Result<Forked> {
    // One directory for each thread, and `.` and `..`; without /proc the caller has to know.
    let threads = std::fs::metadata("/proc/self/task");
    if threads.is_ok_and(|task| std::os::unix::fs::MetadataExt::nlink(&task) > 3) {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: the process has one thread (checked above), so the child may go on running Rust code.
    match unsafe { libc::fork() } {
        0 => Ok(Forked::Child),
        pid @ 1.. => Ok(Forked::Parent(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends signal `number` to `pid`; -1 stands for every process the caller may signal but itself
/// and PID 1. Real-time signals too, which nix cannot name. kill(2).
pub fn send_signal(pid: i32, number: i32) -> io::Result<()> {
    // SAFETY: takes no pointer.
    let rc = unsafe { libc::kill(pid, number) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ignores every signal that can be ignored, except `SIGCHLD`: that one is held back, and
/// interrupts a ppoll(2) which lets it through.
pub fn listen_for_children() -> io::Result<()> {
    extern "C" fn nothing(_signal: libc::c_int) {}
    for signal in 1..=64 {
        if matches!(signal, libc::SIGKILL | libc::SIGSTOP | 32 | 33) {
            continue; // 32 and 33 belong to the C library's threads
        }
        let action = match signal {
            libc::SIGCHLD => nothing as extern "C" fn(libc::c_int) as libc::sighandler_t,
            _ => libc::SIG_IGN,
        };
        // SAFETY: the handler does nothing, so it may interrupt anything.
        let previous = unsafe { libc::signal(signal, action) };
        if previous == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    let mut held = nix::sys::signal::SigSet::empty();
    held.add(nix::sys::signal::Signal::SIGCHLD);
    held.thread_set_mask()?;
    Ok(())
}
