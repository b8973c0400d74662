//! Dials addresses that were checked, and no others.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
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

/// One attempt. Not a task of its own: most often there is only one, and a task would cost every
/// connection two changes between tasks.
type Attempt = Pin<Box<dyn Future<Output = io::Result<(TcpStream, IpAddr)>> + Send>>;

/// Connects to the first of `addresses` that answers; also returns which that is.
///
/// # Errors
/// Of the last attempt that failed; [`io::ErrorKind::TimedOut`] after ten seconds.
pub(super) async fn connect(addresses: &[IpAddr], port: u16) -> io::Result<(TcpStream, IpAddr)> {
    let deadline = Instant::now() + CONNECT_MAX;
    let mut waiting = addresses.iter().take(ATTEMPTS_MAX);
    // Attempts end when they are dropped.
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut error = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        match waiting.next() {
            Some(address) => attempts.push(Box::pin(attempt(*address, port))),
            None if attempts.is_empty() => return Err(error),
            None => {}
        }
        let more = waiting.len() > 0;
        let turn = if more { deadline.min(Instant::now() + STAGGER) } else { deadline };
        match timeout_at(turn, ended(&mut attempts)).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(failed)) => error = failed,
            Err(_) if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => {}
        }
    }
}

async fn attempt(address: IpAddr, port: u16) -> io::Result<(TcpStream, IpAddr)> {
    let stream = TcpStream::connect(SocketAddr::new(address, port)).await?;
    // TCP may connect to itself where nobody listens on a port of this host.
    match stream.local_addr() {
        Ok(own) if own.ip() == address && own.port() == port => {
            Err(io::ErrorKind::ConnectionRefused.into())
        }
        _ => Ok((stream, address)),
    }
}

/// What the first of `attempts` that ends came to; it is no longer among them.
async fn ended(attempts: &mut Vec<Attempt>) -> io::Result<(TcpStream, IpAddr)> {
    poll_fn(|cx| {
        for index in 0..attempts.len() {
            if let Poll::Ready(result) = attempts[index].as_mut().poll(cx) {
                drop(attempts.swap_remove(index));
                return Poll::Ready(result);
            }
        }
        Poll::Pending
    })
    .await
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
    #[tokio::test]
    async fn an_address_that_refuses_gives_way_to_the_next_at_once() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let port = server.local_addr().expect("its address").port();
        let addresses = ["127.0.0.2", "127.0.0.1"].map(|text| text.parse::<IpAddr>().expect(text));
        let began = Instant::now();
        let (stream, address) = connect(&addresses, port).await.expect("connected");
        assert_eq!(address, addresses[1]);
        assert_eq!(stream.peer_addr().expect("a peer").ip(), addresses[1]);
        assert!(began.elapsed() < STAGGER, "waited for an address that had refused");
        drop(server);
        let refused = connect(&addresses, port).await.expect_err("nobody listens").kind();
        assert_eq!(refused, io::ErrorKind::ConnectionRefused);
    }
}
