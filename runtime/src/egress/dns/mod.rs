//! The resolver of one session (INV-8, `jail.md` 1.5 rules 1 and 2).
//!
//! Runs in the control side; its sockets were made inside the jail's network namespace, where every
//! address is local, so a question to any server's port 53 arrives here. There is no upstream in
//! this module: a reply is made of the rules in force and of this session's [`Names`], and a name
//! is looked up for real only by the broker, for a connection it allows.
//!
//! | question | reply |
//! |---|---|
//! | A, AAAA of a name some rule names, whatever the port | an address of ours |
//! | HTTPS, SVCB, MX, NS, SOA, SRV and the like of it, or of `_service._tcp.` before it | no data |
//! | TXT, NULL, ANY, AXFR, HINFO, unknown types of it | refused, recorded |
//! | any of another name | refused, recorded |
//! | `localhost` and below | loopback (RFC 6761, 6.3) |
//! | PTR, the root, other classes than IN | refused, not recorded: tools ask by themselves, and no destination is named |
//! | names with other characters than a host's | refused, counted without the name |
//! | more than one question, other operations, other versions | FORMERR, NOTIMP, BADVERS |
//!
//! "Refused" is REFUSED and not NXDOMAIN, with an extended error (RFC 8914) for those who sent an
//! OPT record: a client must not remember that the name does not exist. A C library that is refused
//! by its only server gives up at once.
//!
//! What this leaves for carrying data out, as an upper bound. Questions go nowhere, so rates and
//! types do not matter. A name below a wildcard is looked up for real when it is connected to, and
//! whoever runs the domain then sees it. Of it the jail chose at most [`CHOSEN_BYTES_MAX`] = 96
//! bytes of 39 characters, log2(39) × 96 < 508 bits; a session has 256 such names unless its policy
//! says otherwise: 130,048 bits, less than 16 KiB in the whole session. Looking names up again in
//! a chosen order adds at most log2(256) = 8 bits for each connection, as far as no resolver on the
//! way remembers them. Rules without wildcards leave only such an order.
//!
//! `message` bytes, `answer` the decision, `budget` how often, `udp` and `tcp` the sockets.
//!
//! [`Names`]: super::Names

mod answer;
mod budget;
mod message;
mod tcp;
mod udp;

#[cfg(test)]
mod tests;

pub(crate) use answer::answer;
pub(crate) use budget::Budget;
pub(crate) use message::Transport;

use std::convert::Infallible;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::scope::Scope;

/// Bytes before a wildcard's suffix that a name may have. The longest in honest use are a label of
/// 63 (a storage bucket) and the parts of a region's name.
pub(crate) const CHOSEN_BYTES_MAX: usize = 96;
/// Longest question, bytes. One without options has at most 271.
const QUERY_BYTES_MAX: usize = 4096;
/// Pause after a socket failed, and after each question beyond the budget: what a flood costs us.
const PAUSE: Duration = Duration::from_millis(20);

/// Why a session has no resolver.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the resolver's {which} socket")]
pub(crate) struct DnsError {
    which: &'static str,
    source: io::Error,
}

/// Answers questions until it is dropped; whatever connections there are end with it.
///
/// `udp` reports where datagrams were sent to (IPV6_RECVPKTINFO, or IP_PKTINFO on a socket of IPv4);
/// without that its answers come from an address of the kernel's choice. Needs a tokio runtime with
/// time and input. Memory: one question at a time for UDP and for each of at most 16 connections.
///
/// # Errors
/// [`DnsError`] if a socket cannot be served at all. Later failures are waited out.
pub(crate) async fn serve(
    udp: UdpSocket,
    tcp: TcpListener,
    scope: Arc<Scope>,
) -> Result<Infallible, DnsError> {
    let udp = udp::Socket::new(udp).map_err(|source| DnsError { which: "UDP", source })?;
    let tcp = tcp
        .set_nonblocking(true)
        .and_then(|()| tokio::net::TcpListener::from_std(tcp))
        .map_err(|source| DnsError { which: "TCP", source })?;
    tokio::select! {
        never = udp::serve(udp, &scope) => match never {},
        never = tcp::serve(tcp, &scope) => match never {},
    }
}

/// Slows down who has asked too much.
async fn rest_if_spent(scope: &Scope) {
    if scope.lookups.is_spent(Instant::now()) {
        tokio::time::sleep(PAUSE).await;
    }
}
