//! The end of a process that was forked for one request: a file helper, or a porter's that unpacks.
//!
//! What closed its pipe has said everything, and is about to exit. One that was taken over may do the
//! first and not the second; whoever forked it has one thread, hears nothing while it waits, and so
//! waits for a moment only.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};

/// How long a process may take to exit.
const PATIENCE: Duration = Duration::from_secs(1);

/// Waits for the end of `child`, which has closed its pipe; kills it after a second. The child must be
/// the caller's and not have been waited for.
///
/// # Errors
/// Those of waitpid(2).
pub fn reap(child: Pid) -> nix::Result<WaitStatus> {
    if !ends_within(child, PATIENCE) {
        // It may have ended in this very moment.
        let _dead = kill(child, Signal::SIGKILL);
    }
    loop {
        match waitpid(child, None) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Whether it does; also `false` if nobody can tell. pidfd_open(2), Linux 5.3.
fn ends_within(child: Pid, patience: Duration) -> bool {
    let pid = rustix::process::Pid::from_raw(child.as_raw());
    let Some(Ok(held)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { return false };
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&held, PollFlags::IN)], Some(&timeout)) {
            Ok(found) => return found > 0,
            Err(rustix::io::Errno::INTR) if !left.is_zero() => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// A shell that runs this, once it has closed its pipe.
    #[expect(clippy::zombie_processes, reason = "whoever asked for it reaps it")]
    fn shell(script: &str) -> Pid {
        let mut child = Command::new("sh");
        let child = child.args(["-c", script]).stdout(Stdio::piped()).stdin(Stdio::null());
        let mut child = child.spawn().expect("it starts");
        let mut said = String::new();
        let mut out = child.stdout.take().expect("a pipe");
        std::io::Read::read_to_string(&mut out, &mut said).expect("read");
        assert_eq!(said, "all\n");
        Pid::from_raw(i32::try_from(child.id()).expect("an id"))
    }

    #[test]
    fn what_closes_its_pipe_and_stays_is_killed() {
        // INV-11.
        let began = Instant::now();
        let status = reap(shell("echo all; exec >&-; exec sleep 300"));
        assert!(matches!(status, Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _))), "{status:?}");
        assert!((PATIENCE..20 * PATIENCE).contains(&began.elapsed()), "{:?}", began.elapsed());
        // The control: what exits, at once or soon, has its own end.
        for (script, code) in [("echo all; exit 3", 3), ("echo all; exec >&-; sleep 0.2", 0)] {
            let status = reap(shell(script));
            assert!(matches!(status, Ok(WaitStatus::Exited(_, is)) if is == code), "{status:?}");
        }
    }
}
