//! Signals of the control side's, on their way to the payload. Runs in the launcher.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::unistd::Pid;

/// Sends a signal to the process group of the payload behind this pidfd, as a terminal would.
pub(super) fn forward(number: i32, payload: &OwnedFd) {
    let Ok(signal) = nix::sys::signal::Signal::try_from(number) else { return };
    let Some(pid) = host_pid(payload) else { return };
    // A group that ended meanwhile needs no signal.
    let _gone = nix::sys::signal::killpg(pid, signal);
}

/// The id, as this process sees it, of what a pidfd refers to (proc(5), fdinfo).
fn host_pid(pidfd: &OwnedFd) -> Option<Pid> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    line.trim().parse().ok().filter(|pid| *pid > 1).map(Pid::from_raw)
}
