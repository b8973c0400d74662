//! The jail's network namespace: loopback, and where the plan has egress, routes that lead every
//! address to listeners of the broker.
//!
//! Made by the launcher, which has no use for a network, while init builds the mount tree; init
//! enters it. So it is owned by the launcher's user namespace and not by the payload's (INV-5), and
//! the launcher can make further listeners while the jail runs.
//!
//! A route of type `local` makes every address one of this namespace's own: what is connected to
//! arrives at a listener on loopback with the intended address as its own (getsockname(2)), and where
//! nobody listens, the kernel refuses at once. No packet ever has another interface to go to. The
//! listeners are made before the payload runs and without SO_REUSEPORT, so nothing in the jail can bind
//! the same port, on a more specific address or otherwise: SO_REUSEADDR, which those of connections
//! have, gives no way past a socket that listens (socket(7)). Only for ports that are added while the
//! jail runs may somebody in it have been there first.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::CloneFlags;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use crate::spec::EgressPlan;
use crate::sys;

use super::message::Listener;
use super::step::{Step, StepFailure};

/// Port of the resolver.
const DNS: u16 = 53;
/// Most ports that one message names.
const NAMED_MAX: usize = 8;
/// Connections that wait to be accepted; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Index of loopback in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

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

/// Leads every address to the calling process's own network namespace. IPv6 is left out where the
/// host has none: its addresses stay unreachable then.
pub(super) fn lead_to_broker() -> io::Result<()> {
    // glibc asks for addresses of a family only if there is one beyond loopback (`AI_ADDRCONFIG`).
    ask_kernel(&own_address(EgressPlan::RESOLVER))?;
    ask_kernel(&local_default(AddressFamily::INET))?;
    match ask_kernel(&local_default(AddressFamily::INET6)) {
        Err(error) if is_without_v6(&error) => Ok(()),
        done => done,
    }
}

/// The resolver's sockets: for datagrams, and for connections.
pub(super) fn resolver() -> io::Result<Vec<(Listener, OwnedFd)>> {
    let datagrams = bound(SocketType::DGRAM, DNS)?;
    let connections = listener(DNS)?;
    Ok(vec![(Listener::Questions, datagrams), (Listener::LongQuestions, connections)])
}

/// A listener for each of `ports` that is free, and which are refused, with the cause of the first.
/// In a jail that runs a program may listen on one, which must not keep the others closed.
pub(super) fn listeners(ports: &[u16]) -> (Vec<(Listener, OwnedFd)>, Option<StepFailure>) {
    let (mut made, mut refused, mut cause) = (Vec::new(), Vec::new(), None);
    for port in ports {
        match listener(*port) {
            Ok(socket) => made.push((Listener::Port(*port), socket)),
            Err(error) => {
                refused.push(port.to_string());
                cause.get_or_insert(error);
            }
        }
    }
    let detail = || {
        let named = refused.len().min(NAMED_MAX);
        let more = match refused.len() - named {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("listen in the jail on port {}{more}", refused[..named].join(", "))
    };
    let failure = cause.map(|error| StepFailure::new(Step::Network, detail(), &error));
    (made, failure)
}

/// A listener for connections to `port` of any address.
fn listener(port: u16) -> io::Result<OwnedFd> {
    let socket = bound(SocketType::STREAM, port)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A socket bound to `port` of every address: both families at once where there are both.
fn bound(kind: SocketType, port: u16) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    match rustix::net::socket_with(AddressFamily::INET6, kind, flags, None) {
        Ok(socket) => {
            sockopt::set_ipv6_v6only(&socket, false)?;
            prepare(&socket, kind, sys::Family::V6)?;
            rustix::net::bind(&socket, &SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port))?;
            Ok(socket)
        }
        Err(rustix::io::Errno::AFNOSUPPORT) => {
            let socket = rustix::net::socket_with(AddressFamily::INET, kind, flags, None)?;
            prepare(&socket, kind, sys::Family::V4)?;
            rustix::net::bind(&socket, &SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port))?;
            Ok(socket)
        }
        Err(error) => Err(error.into()),
    }
}

/// What differs between datagrams and connections.
fn prepare(socket: &OwnedFd, kind: SocketType, family: sys::Family) -> io::Result<()> {
    match kind {
        SocketType::DGRAM => sys::report_destination(socket.as_fd(), family),
        // A port that rules name again can be had at once, not only when the connections that were
        // closed on it have been forgotten, which takes a minute (tcp(7), TIME_WAIT).
        _ => Ok(sockopt::set_socket_reuseaddr(socket, true)?),
    }
}

fn is_without_v6(error: &io::Error) -> bool {
    let absent = [libc::EAFNOSUPPORT, libc::EOPNOTSUPP, libc::EACCES, libc::ENODEV];
    error.raw_os_error().is_some_and(|number| absent.contains(&number))
}

/// Sends one request of rtnetlink(7) and hears whether it was granted.
fn ask_kernel(request: &[u8]) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None, // 0 is NETLINK_ROUTE
    )?;
    let kernel = SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(&socket, request, SendFlags::empty(), &kernel)?;
    let mut answer = [0u8; 1024];
    let (got, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    acknowledged(&answer[..got])
}

/// `RTM_NEWROUTE`: a route of type `local` for every address of a family. `struct rtmsg` and the
/// attribute that names the interface.
fn local_default(family: AddressFamily) -> Vec<u8> {
    let scope = match family {
        AddressFamily::INET => libc::RT_SCOPE_HOST,
        _ => libc::RT_SCOPE_UNIVERSE,
    };
    // Lengths of destination and source, type of service; at the end, flags.
    let [table, protocol, kind] = [libc::RT_TABLE_LOCAL, libc::RTPROT_BOOT, libc::RTN_LOCAL];
    let family = family.as_raw() as u8;
    let route = [family, 0, 0, 0, table, protocol, scope, kind, 0, 0, 0, 0];
    let interface = LOOPBACK.to_ne_bytes();
    message(libc::RTM_NEWROUTE, &route, &[(libc::RTA_OIF, interface)])
}

/// `RTM_NEWADDR`: one more address of loopback. `struct ifaddrmsg`, and the address as its own and as
/// that of its network.
fn own_address(address: Ipv4Addr) -> Vec<u8> {
    let mut header = vec![AddressFamily::INET.as_raw() as u8, 32, 0, libc::RT_SCOPE_UNIVERSE];
    header.extend(LOOPBACK.to_ne_bytes());
    let address = address.octets();
    let attributes = [(libc::IFA_LOCAL, address), (libc::IFA_ADDRESS, address)];
    message(libc::RTM_NEWADDR, &header, &attributes)
}

/// `struct nlmsghdr`, the header of the kind of message, and attributes of four bytes.
fn message(kind: u16, header: &[u8], attributes: &[(u16, [u8; 4])]) -> Vec<u8> {
    const ATTRIBUTE: u16 = 8;
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let length = 16 + header.len() + attributes.len() * usize::from(ATTRIBUTE);
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags as u16).to_ne_bytes());
    message.extend([0; 8]); // sequence number and port: one question, one answer
    message.extend(header);
    for (name, value) in attributes {
        message.extend(ATTRIBUTE.to_ne_bytes());
        message.extend(name.to_ne_bytes());
        message.extend(value);
    }
    message
}

/// Reads `struct nlmsgerr`: 0, or an error number below zero.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let error = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, error) {
        (Some(kind), Some(0)) if i32::from(kind) == libc::NLMSG_ERROR => Ok(()),
        (Some(kind), Some(error)) if i32::from(kind) == libc::NLMSG_ERROR => {
            Err(io::Error::from_raw_os_error(error.saturating_neg()))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_no_acknowledgement_is_an_error() {
        let mut answer = vec![0; 36];
        answer[4..6].copy_from_slice(&(libc::NLMSG_ERROR as u16).to_ne_bytes());
        assert!(acknowledged(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        let error = acknowledged(&answer).expect_err("refused").raw_os_error();
        assert_eq!(error, Some(libc::EPERM));
        assert!(acknowledged(&answer[..18]).is_err());
        assert!(acknowledged(&[]).is_err());
    }
}
