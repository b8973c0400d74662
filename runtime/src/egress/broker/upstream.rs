//! The HTTP proxy of hosts that reach the internet through one: a tunnel by CONNECT (RFC 9110, 9.3.6).

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Most time until the tunnel stands.
const TUNNEL_MAX: Duration = Duration::from_secs(10);
/// Most bytes of the proxy's answer.
const HEAD_MAX: usize = 16 << 10;

/// Asks the proxy at the other end of `stream` for a tunnel to `authority`. Nothing that comes after
/// its answer is read.
///
/// # Errors
/// The proxy refuses, does not speak HTTP, or takes longer than ten seconds.
pub(super) async fn tunnel(mut stream: TcpStream, authority: &str) -> io::Result<TcpStream> {
    let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    let asked = async {
        stream.write_all(request.as_bytes()).await?;
        head(&stream).await
    };
    let head = timeout(TUNNEL_MAX, asked).await.map_err(|_| io::ErrorKind::TimedOut)??;
    match is_success(&head) {
        true => Ok(stream),
        false => Err(io::ErrorKind::ConnectionRefused.into()),
    }
}

/// Reads the head of an answer and not a byte more: those belong to the far end.
async fn head(stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut seen = [0; 1024];
    while head.len() < HEAD_MAX {
        let size = stream.peek(&mut seen).await?;
        if size == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let before = head.len();
        head.extend_from_slice(&seen[..size]);
        let end = head_end(&head, before);
        let take = end.unwrap_or(head.len()) - before;
        // What was seen is there, so this does not wait.
        let taken = stream.try_read(&mut seen[..take])?;
        if taken != take {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if let Some(end) = end {
            head.truncate(end);
            return Ok(head);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Where the head ends, if it ends after `from`.
fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    let start = from.saturating_sub(3);
    let at = bytes[start..].windows(4).position(|part| part == b"\r\n\r\n")?;
    Some(start + at + 4)
}

/// Whether the answer is of the class 2xx, which makes a tunnel.
fn is_success(head: &[u8]) -> bool {
    let version = head.starts_with(b"HTTP/1.0 ") || head.starts_with(b"HTTP/1.1 ");
    let code = head.get(9..12).unwrap_or_default();
    version && code.first() == Some(&b'2') && code.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_stands_after_an_answer_of_the_class_2xx_only() {
        #[rustfmt::skip]
        let cases: [(&[u8], bool); 6] = [
            (b"HTTP/1.1 200 Connection established\r\n\r\n", true),
            (b"HTTP/1.0 204\r\n\r\n", true),
            (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", false),
            (b"HTTP/1.1 2\r\n\r\n", false),
            (b"HTTP/2 200\r\n\r\n", false),
            (b"SSH-2.0-x\r\n\r\n", false),
        ];
        for (head, works) in cases {
            assert_eq!(is_success(head), works, "{}", String::from_utf8_lossy(head));
        }
        assert_eq!(head_end(b"a\r\n\r\nb", 3), Some(5));
        assert_eq!(head_end(b"a\r\n\r\n", 0), Some(5));
        assert_eq!(head_end(b"a\r\n\r", 0), None);
    }
}
