//! Descriptor tables: closing ranges, placing a descriptor at a fixed number.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Closes every descriptor of this process from `first` upwards that is not in `keep`.
///
/// Owners of the closed ones must not use them again: for a process that was just forked and gives
/// up everything its parent held. Linux 5.9, close_range(2).
pub fn close_all_but(first: i32, keep: &mut [i32]) -> io::Result<()> {
    keep.sort_unstable();
    let mut from = first;
    for &kept in keep.iter().filter(|fd| **fd >= first) {
        if kept > from {
            close_range(from as u32, kept as u32 - 1, 0)?;
        }
        from = kept + 1;
    }
    close_range(from as u32, u32::MAX, 0)
}

/// Makes every descriptor from `first` upwards close at the next exec.
///
/// Linux 5.11, close_range(2) with `CLOSE_RANGE_CLOEXEC`.
pub fn close_on_exec_from(first: i32) -> io::Result<()> {
    close_range(first as u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, last: u32, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: takes no pointer; the callers' contracts say who may still use what is closed.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes `number` a duplicate of `fd` that survives exec, closing what was there.
///
/// Only for the last moments before an exec: an owner of `number` is not told. dup2(2).
pub fn install_at(fd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    if fd.as_raw_fd() == number {
        // SAFETY: the borrow keeps the descriptor open; F_SETFD takes an integer.
        let rc = unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
        return if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    }
    // SAFETY: the borrow keeps `fd` open during the call; what `number` named is given up by the
    // caller's contract.
    let rc = unsafe { libc::dup2(fd.as_raw_fd(), number) };
    if rc == number { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes over the socket that whoever started this process left at `number`.
///
/// # Errors
/// `EBADF` if nothing is open there, `ENOTSOCK` if it is not a socket.
pub fn adopt_socket(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes an integer and only fails on a number that is not open.
    let rc = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is open (checked above) and nothing in this process owns it: it was
    // inherited across the exec, and the one caller takes it once, first thing in `main`.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::net::sockopt::socket_type(&socket)?;
    Ok(socket)
}

/// Takes over the sealed memory file that this process, before its last exec, left at `number`.
///
/// # Errors
/// `EBADF` if nothing is open there; `EINVAL` if it is not a memory file whose content and length
/// are sealed, such as a descriptor of anybody else's.
pub fn adopt_sealed(number: i32) -> io::Result<OwnedFd> {
    let sealed = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
    // SAFETY: F_GET_SEALS takes no argument and only fails on what is no memory file.
    let seals = unsafe { libc::fcntl(number, libc::F_GET_SEALS) };
    if seals < 0 {
        return Err(io::Error::last_os_error());
    }
    if seals & sealed != sealed {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: F_SETFD takes an integer; the number is open (checked above).
    let rc = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is open, and nothing in this process owns it: this program makes sealed
    // memory files only to carry them across its own exec, and the one caller takes it once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
