//! Loop devices and project ids.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What a loop device is set up with.
#[derive(Debug, Clone, Copy)]
pub struct LoopStatus<'a> {
    /// The file behind the device.
    pub backing: BorrowedFd<'a>,
    /// Direct I/O to the backing file where it can.
    pub direct_io: bool,
}

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801C_581F;

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// `struct fsxattr` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// The number of a loop device that is free now; another process may take it first.
///
/// `control` is `/dev/loop-control`. loop(4).
pub fn loop_free_index(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: the borrow keeps `control` open; this request takes no argument.
    let rc = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    if rc >= 0 { Ok(rc as u32) } else { Err(io::Error::last_os_error()) }
}

/// Ties `device` to its backing file until the last user is gone (auto-clear).
///
/// # Errors
/// `EBUSY` if somebody else took the device: ask for another index. Linux 5.8, loop(4).
pub fn loop_configure(device: BorrowedFd<'_>, status: LoopStatus<'_>) -> io::Result<()> {
    // SAFETY: an all-zero `loop_config` is its documented empty value; it holds integers only.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = status.backing.as_raw_fd() as u32;
    config.info.flags = LO_FLAGS_AUTOCLEAR | if status.direct_io { LO_FLAGS_DIRECT_IO } else { 0 };
    // SAFETY: the borrows keep both descriptors open; `config` has the layout of the kernel's
    // structure, outlives the call and is only read.
    let rc = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The project id of a file or directory and whether new files inherit it.
///
/// # Errors
/// `ENOTTY` or `EOPNOTSUPP` on file systems without project ids. Linux 4.5.
pub fn project_id(file: BorrowedFd<'_>) -> io::Result<(u32, bool)> {
    const FS_XFLAG_PROJINHERIT: u32 = 0x200;
    let mut attributes = FsXattr::default();
    // SAFETY: the borrow keeps `file` open; the request writes one `fsxattr`, which is what
    // `attributes` is, and it outlives the call.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attributes) };
    if rc == 0 {
        Ok((attributes.projid, attributes.xflags & FS_XFLAG_PROJINHERIT != 0))
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Hard limits of a project on the file system that holds `file`: bytes and inodes, 0 for none.
///
/// # Errors
/// `ESRCH` where project quotas are off, `ENOSYS` before Linux 5.14. quotactl_fd(2).
pub fn project_limits(file: BorrowedFd<'_>, project: u32) -> io::Result<(u64, u64)> {
    const PRJQUOTA: libc::c_int = 2;
    const Q_GETQUOTA: libc::c_int = 0x80_0007;
    const BLOCK_BYTES: u64 = 1024;
    // SAFETY: an all-zero `dqblk` is its documented empty value.
    let mut quota: libc::dqblk = unsafe { std::mem::zeroed() };
    let command = (Q_GETQUOTA << 8) | PRJQUOTA;
    let fd = file.as_raw_fd();
    // SAFETY: the borrow keeps `file` open; the kernel writes one `dqblk`, which outlives the call.
    let rc = unsafe { libc::syscall(libc::SYS_quotactl_fd, fd, command, project, &raw mut quota) };
    if rc == 0 {
        Ok((quota.dqb_bhardlimit * BLOCK_BYTES, quota.dqb_ihardlimit))
    } else {
        Err(io::Error::last_os_error())
    }
}
