//! Any bytes as a client's connection, for the fuzz harness: whatever reaches upstream are requests
//! that name the one host (INV-8), as read by a parser that shares nothing with ours.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::runtime::Runtime;

use crate::egress::{Reason, Target};
use crate::policy::network::Host;

use super::forward::{Options, forward};
use super::screen::PREFACE;

/// More than a request that passes takes.
const ROOM: usize = 256 * 1024;
/// Longest an input may take. Nothing in it waits for a clock but what is wrong.
const LONGEST: Duration = Duration::from_secs(4);
const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

thread_local! {
    static RUNTIME: std::io::Result<Runtime> =
        tokio::runtime::Builder::new_current_thread().enable_time().build();
}

/// Forwards `input` for `a.test:80` to an upstream that answers every request.
///
/// # Errors
/// What does not hold of the bytes that upstream was sent.
pub(crate) fn http_head(input: &[u8]) -> Result<(), String> {
    RUNTIME.with(|runtime| match runtime {
        Ok(runtime) => runtime.block_on(async {
            let run = tokio::time::timeout(LONGEST, run(input));
            run.await.map_err(|_| "it does not end".to_owned())?
        }),
        Err(error) => Err(error.to_string()),
    })
}

async fn run(input: &[u8]) -> Result<(), String> {
    let host = Host::parse("a.test").map_err(|error| error.to_string())?;
    let target = Target { host, port: 80 };
    let (client, inner) = duplex(ROOM);
    let (outer, upstream) = duplex(ROOM);
    let dial = move || std::future::ready(Ok::<_, Reason>(upstream));
    let serve = forward(inner, &target, dial, |_, _| 1, Options::default());
    let (mut reader, mut writer) = tokio::io::split(client);
    let write = async {
        // It may be refused before it has said everything.
        let _ = writer.write_all(input).await;
        let _ = writer.shutdown().await;
    };
    let mut answers = Vec::new();
    let (_, sent, (), _) =
        tokio::join!(serve, upstream_of(outer), write, reader.read_to_end(&mut answers));
    let sent = sent?;
    if input.starts_with(PREFACE) {
        return match sent.is_empty() || sent.starts_with(PREFACE) {
            true => Ok(()),
            false => Err("HTTP/2 became something else".to_owned()),
        };
    }
    match answers.is_empty() || answers.starts_with(b"HTTP/1.") {
        true => Ok(()),
        false => Err("an answer that is none".to_owned()),
    }
}

/// Answers every whole request; everything it was sent, in the end.
async fn upstream_of(mut socket: DuplexStream) -> Result<Vec<u8>, String> {
    let (mut all, mut at) = (Vec::new(), 0);
    loop {
        while !all.starts_with(PREFACE)
            && let Some(length) = request(&all[at..])?
        {
            at += length;
            let _ = socket.write_all(REPLY).await;
        }
        match socket.read_buf(&mut all).await {
            Ok(1..) => {}
            _ => return Ok(all),
        }
    }
}

/// The length of the whole request in front, or `None`.
fn request(bytes: &[u8]) -> Result<Option<usize>, String> {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let words: Vec<&str> = first.split(' ').collect();
    match words[..] {
        [method, target, "HTTP/1.1"]
            if method != "CONNECT" && (target.starts_with('/') || target == "*") => {}
        _ => return Err(format!("request line {first:?}")),
    }
    let (mut hosts, mut length, mut chunked) = (0, None, false);
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("field {line:?}"))?;
        if name.contains([' ', '\t', '\r', '\n']) || value.contains(['\r', '\n', '\0']) {
            return Err(format!("field {line:?}"));
        }
        match (name.to_ascii_lowercase().as_str(), value.trim()) {
            ("host", "a.test" | "a.test:80") => hosts += 1,
            ("host", other) => return Err(format!("host {other:?}")),
            ("content-length", text) if length.is_none() => {
                length = Some(text.parse::<u64>().map_err(|_| format!("length {text:?}"))?);
            }
            ("transfer-encoding", text) if !chunked && text.eq_ignore_ascii_case("chunked") => {
                chunked = true;
            }
            ("content-length" | "transfer-encoding", text) => {
                return Err(format!("framing {text:?}"));
            }
            _ => {}
        }
    }
    let body = &bytes[end + 4..];
    let used = match (hosts, length, chunked) {
        (1, Some(_), true) => return Err("two lengths".to_owned()),
        (1, None, true) => chunks(body)?,
        (1, length, false) => {
            usize::try_from(length.unwrap_or(0)).ok().filter(|length| *length <= body.len())
        }
        (hosts, ..) => return Err(format!("{hosts} hosts")),
    };
    Ok(used.map(|used| end + 4 + used))
}

fn chunks(body: &[u8]) -> Result<Option<usize>, String> {
    let mut at = 0;
    loop {
        let Some(line) = memchr::memmem::find(&body[at..], b"\r\n") else { return Ok(None) };
        let text = String::from_utf8_lossy(&body[at..at + line]).into_owned();
        let size = usize::from_str_radix(&text, 16).map_err(|_| format!("chunk {text:?}"))?;
        at += line + 2;
        if size == 0 {
            let end = memchr::memmem::find(&body[at - 2..], b"\r\n\r\n");
            return Ok(end.map(|end| at - 2 + end + 4));
        }
        match body.get(at..).and_then(|rest| rest.get(size..size + 2)) {
            None => return Ok(None),
            Some(b"\r\n") => at += size + 2,
            Some(other) => return Err(format!("after a chunk {other:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reader_of_the_harness_sees_what_it_looks_for() {
        let good = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
        assert_eq!(request(good), Ok(Some(good.len())));
        assert_eq!(request(&good[..20]), Ok(None));
        let body = b"POST / HTTP/1.1\r\nhost:a.test\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
        assert_eq!(request(body), Ok(Some(body.len())));
        #[rustfmt::skip]
        let bad: [&[u8]; 6] = [
            b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a.test\r\nX: a\nHost: b\r\n\r\n",
        ];
        for bytes in bad {
            assert!(request(bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
    }
}
