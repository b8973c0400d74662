//! Network interfaces.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Brings an interface of the current network namespace up. netdevice(7), `SIOCSIFFLAGS`.
///
/// # Errors
/// `ENODEV` for an unknown name, `ENAMETOOLONG` for one of more than 15 bytes.
pub fn interface_up(name: &CStr) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: an all-zero `ifreq` is a valid value of every member of its union.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let bytes = name.to_bytes();
    if bytes.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the socket is open during the call; the kernel reads one `ifreq`, which outlives it.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A version of the internet protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4; ip(7).
    V4,
    /// IPv6, and IPv4 mapped into it; ipv6(7).
    V6,
}

/// Has the kernel say with each datagram which address it was sent to. ip(7), `IP_PKTINFO`; ipv6(7),
/// `IPV6_RECVPKTINFO`.
///
/// # Errors
/// If the socket is of another family.
pub fn report_destination(socket: BorrowedFd<'_>, family: Family) -> io::Result<()> {
    let (level, option) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    let (on, length): (libc::c_int, _) = (1, size_of::<libc::c_int>() as libc::socklen_t);
    let (socket, value) = (socket.as_raw_fd(), (&raw const on).cast());
    // SAFETY: the borrow keeps the socket open during the call; the kernel reads one `int`, which
    // outlives it.
    let rc = unsafe { libc::setsockopt(socket, level, option, value, length) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
