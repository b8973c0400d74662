//! Questions in datagrams. An answer leaves from the address that was asked, or the client would
//! take it for somebody else's.

use std::convert::Infallible;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;

use nix::libc::{in_addr, in_pktinfo, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::super::scope::Scope;
use super::{PAUSE, QUERY_BYTES_MAX, Transport, answer, rest_if_spent};

/// A socket that knows which of its addresses a datagram was sent to.
#[derive(Debug)]
pub(super) struct Socket(UdpSocket);

/// Where a datagram came from and where it was sent to.
#[derive(Debug)]
struct Way {
    client: SockaddrStorage,
    asked: Option<Asked>,
}

/// The address that was asked, as the kernel gave it.
#[derive(Debug, Clone, Copy)]
enum Asked {
    V4(in_pktinfo),
    /// Also for IPv4 on a socket for both, as a mapped address.
    Both(in6_pktinfo),
}

impl Socket {
    pub fn new(socket: std::net::UdpSocket) -> io::Result<Socket> {
        socket.set_nonblocking(true)?;
        // Addresses inside are local by route, no interface has them; IPv6 answers from such a one
        // only if the socket may bind what is not there (ip(7), IP_FREEBIND; no privilege needed).
        setsockopt(&socket, sockopt::IpFreebind, &true)?;
        Ok(Socket(UdpSocket::from_std(socket)?))
    }

    /// The next datagram: its bytes in `buffer`, or 0 if it was longer than that.
    async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Way)> {
        // Called again when the socket was not ready after all.
        let receive = || {
            let mut control = nix::cmsg_space!(in6_pktinfo);
            let mut slices = [IoSliceMut::new(buffer)];
            let flags = MsgFlags::MSG_DONTWAIT;
            let fd = self.0.as_raw_fd();
            let got = recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut control), flags)?;
            let asked = got.cmsgs()?.find_map(|message| match message {
                ControlMessageOwned::Ipv4PacketInfo(info) => Some(Asked::V4(info)),
                ControlMessageOwned::Ipv6PacketInfo(info) => Some(Asked::Both(info)),
                _ => None,
            });
            let client = got.address.ok_or(io::ErrorKind::AddrNotAvailable)?;
            let cut = got.flags.contains(MsgFlags::MSG_TRUNC);
            Ok((if cut { 0 } else { got.bytes }, Way { client, asked }))
        };
        self.0.async_io(Interest::READABLE, receive).await
    }

    /// Sends `bytes` back where a datagram came from, from where it was sent to.
    async fn send(&self, bytes: &[u8], way: &Way) -> io::Result<()> {
        let send = || {
            let slices = [IoSlice::new(bytes)];
            let (v4, v6);
            let control = match way.asked {
                Some(Asked::V4(info)) => {
                    // What was the destination becomes the source (ip(7), IP_PKTINFO).
                    let none = in_addr { s_addr: 0 };
                    v4 = in_pktinfo { ipi_spec_dst: info.ipi_addr, ipi_addr: none, ..info };
                    Some(ControlMessage::Ipv4PacketInfo(&v4))
                }
                Some(Asked::Both(info)) => {
                    v6 = info;
                    Some(ControlMessage::Ipv6PacketInfo(&v6))
                }
                None => None,
            };
            let (fd, flags) = (self.0.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
            sendmsg(fd, &slices, control.as_slice(), flags, Some(&way.client))?;
            Ok(())
        };
        self.0.async_io(Interest::WRITABLE, send).await
    }
}

/// Answers one datagram after the other.
pub(super) async fn serve(socket: Socket, scope: &Scope) -> Infallible {
    let mut buffer = vec![0; QUERY_BYTES_MAX];
    loop {
        let Ok((length, way)) = socket.receive(&mut buffer).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        if let Some(reply) = answer(&buffer[..length], Transport::Udp, scope) {
            // An answer that cannot be sent is one that was lost: the client asks again. It has no
            // claim on more of our time than a pause.
            drop(tokio::time::timeout(PAUSE, socket.send(&reply, &way)).await);
        }
        rest_if_spent(scope).await;
    }
}
