//! Confines the process that starts custom tools on the host: it is outside every jail, and has no
//! more rights than the control side.
//!
//! Runs in that process itself, single-threaded, before it hears of a call. Whatever it starts inherits
//! all of it. Knows nothing of tools: what is started, and when, is `session::outside`'s business.
//!
//! Order matters: limits and ids need the rights that the change of ids takes away; a change of ids
//! makes a process dumpable or not as the host pleases, so that is said last.

use std::io;

use rustix::process::DumpableBehavior;

use crate::host::Level;
use crate::spec::Rlimit;

use super::claim::CONTROL_ID;
use super::{caps, rlimits};

/// Descriptors of each process.
const OPEN_FILES_MAX: u64 = 1024;
/// Processes of the user, as root only: without root it is the caller's own id, which has others.
const PROCESSES_MAX: u64 = 512;

/// Gives up what the tools must not have: as root every capability, all groups and the id; at either
/// level the way to gain anything by executing a file, core dumps, and being looked into.
///
/// `user` is the user and group id as root; that of the control side if `None`.
///
/// # Errors
/// If any of it is refused, or `user` is root; the process must not go on then.
pub fn confine_outside(level: Level, user: Option<u32>) -> io::Result<()> {
    rlimits::apply(Rlimit::Core, 0)?;
    rlimits::apply(Rlimit::OpenFiles, OPEN_FILES_MAX)?;
    if level == Level::Root {
        let user = user.unwrap_or(CONTROL_ID);
        if user == 0 {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        rlimits::apply(Rlimit::Processes, PROCESSES_MAX)?;
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
