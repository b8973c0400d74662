//! The jail's network namespace: loopback, and nothing else.
//!
//! Made by the launcher, which has no use for a network, while init builds the mount tree; init
//! enters it. So it is owned by the launcher's user namespace and not by the payload's (INV-5).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::CloneFlags;

use crate::sys;

/// Makes a network namespace with loopback up, which gives it 127.0.0.1 and ::1. The calling process
/// is in it afterwards.
pub(super) fn isolated() -> io::Result<OwnedFd> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
    sys::interface_up(c"lo")?;
    Ok(File::open("/proc/self/ns/net")?.into())
}

/// Moves the calling process into the network namespace `net`.
pub(super) fn enter(net: impl AsFd) -> io::Result<()> {
    Ok(nix::sched::setns(net, CloneFlags::CLONE_NEWNET)?)
}
