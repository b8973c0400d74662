//! Dials addresses that were checked, and no others.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Most time until one of the addresses answers.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// When the next address is tried while earlier ones have not answered (RFC 8305, 5).
const STAGGER: Duration = Duration::from_millis(250);
/// Most addresses that are tried.
pub(super) const ATTEMPTS_MAX: usize = 8;

/// The order in which addresses are tried: families alternate, IPv6 first (RFC 8305, 4).
pub(super) fn order(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut v6 = addresses.iter().filter(|it| it.is_ipv6());
    let mut v4 = addresses.iter().filter(|it| it.is_ipv4());
    let mut ordered: Vec<IpAddr> = Vec::new();
    loop {
        let next = [v6.next(), v4.next()];
        if next == [None, None] || ordered.len() >= ATTEMPTS_MAX {
            ordered.truncate(ATTEMPTS_MAX);
            return ordered;
        }
        for address in next.into_iter().flatten() {
            if !ordered.contains(address) {
                ordered.push(*address);
            }
        }
    }
}

/// Connects to the first of `addresses` that answers.
///
/// # Errors
/// Of the last attempt that failed; [`io::ErrorKind::TimedOut`] after ten seconds.
pub(super) async fn connect(addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let deadline = Instant::now() + CONNECT_MAX;
    let mut waiting = addresses.iter().take(ATTEMPTS_MAX);
    // Attempts end when the set is dropped.
    let mut attempts = JoinSet::new();
    let mut error = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        match waiting.next() {
            Some(address) => {
                attempts.spawn(TcpStream::connect(SocketAddr::new(*address, port)));
            }
            None if attempts.is_empty() => return Err(error),
            None => {}
        }
        let more = waiting.len() > 0;
        let turn = if more { deadline.min(Instant::now() + STAGGER) } else { deadline };
        let ended = timeout_at(turn, attempts.join_next()).await;
        match ended {
            Ok(Some(Ok(Ok(stream)))) if is_itself(&stream) => error = refused(),
            Ok(Some(Ok(Ok(stream)))) => return Ok(stream),
            Ok(Some(Ok(Err(failed)))) => error = failed,
            Ok(Some(Err(_)) | None) => {}
            Err(_) if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => {}
        }
    }
}

/// Whether it is connected to itself, which TCP allows where nobody listens on a port of this host.
fn is_itself(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(own), Ok(other)) if own == other)
}

fn refused() -> io::Error {
    io::ErrorKind::ConnectionRefused.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_alternate_and_the_number_of_attempts_is_bounded() {
        let parse = |text: &str| text.parse::<IpAddr>().expect(text);
        let given = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.1"].map(parse);
        assert_eq!(order(&given), ["2001:db8::1", "192.0.2.1", "192.0.2.2"].map(parse));
        let many: Vec<IpAddr> = (1..100).map(|n| IpAddr::from([192, 0, 2, n])).collect();
        assert_eq!(order(&many).len(), ATTEMPTS_MAX);
    }
}
