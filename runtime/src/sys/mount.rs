//! `mount_setattr(2)`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Attributes to add to mounts.
#[derive(Debug, Default, Clone, Copy)]
pub struct MountAttributes<'a> {
    /// `MOUNT_ATTR_*` flags to set.
    pub set: u64,
    /// Whether every mount below is changed as well.
    pub recursive: bool,
    /// Turns the mount into an idmapped one, with the mapping of this user namespace. Linux 5.12.
    pub idmap: Option<BorrowedFd<'a>>,
    /// Makes mounts and unmounts stay inside (`MS_PRIVATE`).
    pub private: bool,
}

/// Changes the mount that `tree` refers to, and with `recursive` all below it, in one step.
///
/// `MS_REMOUNT` would reach the top mount only. Linux 5.12, mount_setattr(2).
pub fn mount_setattr(tree: BorrowedFd<'_>, attributes: MountAttributes<'_>) -> io::Result<()> {
    let mut attr = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: 0,
        propagation: if attributes.private { libc::MS_PRIVATE } else { 0 },
        userns_fd: 0,
    };
    if let Some(userns) = attributes.idmap {
        attr.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attr.userns_fd = userns.as_raw_fd() as u64;
    }
    let (fd, size) = (tree.as_raw_fd(), size_of_val(&attr));
    let flags = libc::AT_EMPTY_PATH | if attributes.recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the borrows keep `tree` and the user namespace open during the call; the path is a
    // static C string; `attr` outlives the call, is only read by the kernel, and the size passed
    // is its own.
    let rc = unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &raw const attr, size)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
