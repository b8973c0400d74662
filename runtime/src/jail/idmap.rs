//! User namespaces that only hold an id mapping, for idmapped mounts of host directories.
//!
//! Runs in the launcher at level root. What the payload's host id writes through such a mount
//! belongs on disk to the operator's id.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::process::Signal;

use crate::sys::{CloneArgs, Cloned, clone3, close_all_but};

/// A user namespace in which host id `disk` stands for `inside`, for users and for groups.
pub(super) fn holder(uid: (u32, u32), gid: (u32, u32)) -> io::Result<OwnedFd> {
    let args = CloneArgs { namespaces: libc::CLONE_NEWUSER as u64, cgroup: None };
    let launcher = nix::unistd::getpid();
    match clone3(args)? {
        Cloned::Child => hold(launcher),
        Cloned::Parent { pid, pidfd } => {
            let made = map_and_open(pid, uid, gid);
            rustix::process::pidfd_send_signal(&pidfd, Signal::KILL)?;
            waitpid(Pid::from_raw(pid), None)?;
            made
        }
    }
}

/// Waits for its end. It must not outlive the launcher, and has no use for its locks and connections.
fn hold(launcher: Pid) -> ! {
    let bound = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let alone = close_all_but(0, &mut []);
    if bound.is_err() || alone.is_err() || nix::unistd::getppid() != launcher {
        let _never = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
    loop {
        nix::unistd::pause();
    }
}

fn map_and_open(pid: i32, uid: (u32, u32), gid: (u32, u32)) -> io::Result<OwnedFd> {
    std::fs::write(format!("/proc/{pid}/uid_map"), format!("{} {} 1", uid.0, uid.1))?;
    std::fs::write(format!("/proc/{pid}/gid_map"), format!("{} {} 1", gid.0, gid.1))?;
    Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
}
