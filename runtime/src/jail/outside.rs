//! Confines custom tools on the host: the process that starts them, and each of them before it becomes
//! its program. They are outside every jail, and have no more rights than the control side.
//!
//! [`confine_outside`] runs in the process that starts them, single-threaded, before it hears of a call:
//! whatever it starts inherits all of it. [`OutsideConfinement::enter`] runs in the process that becomes
//! the tool. Knows nothing of tools: what is started, and when, is `session::unjailed`'s business.
//!
//! Order matters: limits and ids need the rights that the change of ids takes away; a change of ids
//! makes a process dumpable or not as the host pleases, so that is said last. A tool enters its cgroup
//! first, so that all it uses from then on is counted; the filter, which refuses nothing that is left to
//! do, comes last.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::DumpableBehavior;

use crate::host::Level;
use crate::spec::{OutsideLimits, Rlimit};

use super::cgroup_door::OutsideDoor;
use super::claim::CONTROL_ID;
use super::seccomp::{self, Program};
use super::{caps, rlimits};

/// Processes of the user where no cgroup counts them, as root only: without root it is the caller's own
/// id, which has others.
const PROCESSES_MAX: u64 = 512;
/// What tools on the host may ask of the kernel: every group of the catalogue but `debugging`. They are
/// the operator's programs, so what a policy gives to sessions does not bind them. That no group allows
/// mounts, namespaces, modules, BPF, keyrings, io_uring and the like is the point.
const GROUPS: [&str; 23] = [
    "base",
    "files",
    "directories",
    "metadata",
    "xattr",
    "processes",
    "threads",
    "signals",
    "time",
    "memory",
    "polling",
    "sockets",
    "terminals",
    "ipc-sysv",
    "ipc-posix-mq",
    "inotify",
    "aio",
    "scheduling",
    "limits",
    "identity",
    "process-controls",
    "seccomp-self",
    "landlock-self",
];

/// Gives up what the tools must not have: as root every capability, all groups and the id; at either
/// level the way to gain anything by executing a file, core dumps, and being looked into.
///
/// `user` is the user and group id as root; that of the control side if `None`. `limits` are those that
/// the tools get later.
///
/// # Errors
/// If any of it is refused, or `user` is root; the process must not go on then.
pub fn confine_outside(level: Level, user: Option<u32>, limits: &OutsideLimits) -> io::Result<()> {
    // Where cores are piped to a program, the one limit that the kernel obeys is 1 (core(5)).
    rlimits::apply(Rlimit::Core, 1)?;
    if level == Level::Root {
        let user = user.unwrap_or(CONTROL_ID);
        if user == 0 {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        if !limits.grouped {
            rlimits::apply(Rlimit::Processes, PROCESSES_MAX)?;
        }
        nix::unistd::setgroups(&[])?;
        caps::drop_all_and_become(user)?;
    }
    rustix::thread::set_no_new_privs(true)?;
    if !rustix::thread::no_new_privs()? {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// What each tool is put under, prepared once.
#[derive(Debug)]
pub struct OutsideConfinement {
    limits: OutsideLimits,
    filter: Program,
}

impl OutsideConfinement {
    /// Compiles the filter.
    ///
    /// # Errors
    /// If the catalogue is defective.
    pub fn prepare(limits: OutsideLimits) -> io::Result<OutsideConfinement> {
        let filter = seccomp::compile(&GROUPS).map_err(io::Error::other)?;
        Ok(OutsideConfinement { limits, filter })
    }

    /// Whether a call may be served with these files of its session's cgroup: without one only where
    /// there is none.
    pub fn admits(&self, group: &[OwnedFd]) -> bool {
        self.limits.grouped != group.is_empty()
    }

    /// In the process that becomes a tool: into the cgroup of its session, under the limits and, if
    /// `filtered`, under the filter.
    ///
    /// # Errors
    /// If any of it is refused; the process must not become the tool then.
    pub fn enter(&self, group: &[OwnedFd], filtered: bool) -> io::Result<()> {
        OutsideDoor::enter(group)?;
        for (limit, value) in &self.limits.rlimits {
            rlimits::apply(*limit, *value)?;
        }
        if filtered {
            seccomp::install(&self.filter).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::syscalls::catalogue;

    #[test]
    fn every_group_is_allowed_or_left_out_on_purpose() {
        let known: Vec<&str> = catalogue().groups.iter().map(|group| group.name).collect();
        for group in &known {
            assert!(GROUPS.contains(group) || *group == "debugging", "{group} is not decided on");
        }
        assert_eq!(known.len(), GROUPS.len() + 1);
        seccomp::compile(&GROUPS).expect("it compiles");
    }

    #[test]
    fn nothing_is_started_without_the_group_that_it_is_to_be_in() {
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").expect("/dev/null"));
        for (grouped, files, want) in [(true, 0, false), (true, 2, true), (false, 0, true)] {
            let limits = OutsideLimits { grouped, ..OutsideLimits::default() };
            let confinement = OutsideConfinement::prepare(limits).expect("a filter");
            let files: Vec<_> = (0..files).map(|_| file()).collect();
            assert_eq!(confinement.admits(&files), want, "{grouped}, {}", files.len());
        }
    }
}
