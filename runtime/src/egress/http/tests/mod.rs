//! Connections from end to end, byte by byte: a client's bytes in, what upstream saw and what the
//! client got out. Times are virtual.

mod flow;
mod keeping;
mod refusing;
mod version_2;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;

use crate::egress::{Reason, Target};
use crate::policy::network::DenyDetail;

use super::{Options, forward};

/// Room of each direction of a test's sockets.
const ROOM: usize = 64 * 1024;
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Denials say everything.
fn full() -> Options {
    Options { detail: DenyDetail::Full, ..Options::default() }
}

fn target() -> Target {
    Target { host: "a.test".parse().expect("a host"), port: 80 }
}

/// What was denied: why, and the host that was named.
type Denials = Arc<Mutex<Vec<(Reason, Option<String>)>>>;

/// A connection that is forwarded, with both ends in the test's hands.
struct Connection {
    client: DuplexStream,
    /// What was dialled, once it was.
    upstream: tokio::sync::mpsc::Receiver<DuplexStream>,
    denials: Denials,
    ended: JoinHandle<Result<(), Reason>>,
}

impl Connection {
    fn open(options: Options) -> Connection {
        Connection::open_with(options, Ok(()))
    }

    /// `dial` says what dialling gives.
    fn open_with(options: Options, dial: Result<(), Reason>) -> Connection {
        let (client, inner) = duplex(ROOM);
        let (dialled, upstream) = tokio::sync::mpsc::channel(1);
        let denials = Denials::default();
        let record = Arc::clone(&denials);
        let deny = move |reason, named: Option<&crate::policy::network::Host>| {
            let mut denials = record.lock().expect("no panic");
            denials.push((reason, named.map(ToString::to_string)));
            denials.len() as u64 + 40
        };
        let dial = move || async move {
            dial?;
            let (outer, inner) = duplex(ROOM);
            dialled.send(outer).await.map_err(|_| Reason::Unreachable)?;
            Ok(inner)
        };
        let serve = async move { forward(inner, &target(), dial, deny, options).await };
        Connection { client, upstream, denials, ended: tokio::spawn(serve) }
    }

    fn denied(&self) -> Vec<(Reason, Option<String>)> {
        self.denials.lock().expect("no panic").clone()
    }
}

/// What came of a connection.
#[derive(Debug)]
struct Outcome {
    /// Every byte that upstream was sent; `None` if it was not dialled.
    upstream: Option<String>,
    client: String,
    denied: Vec<(Reason, Option<String>)>,
    result: Result<(), Reason>,
}

impl Outcome {
    fn reasons(&self) -> Vec<Reason> {
        self.denied.iter().map(|(reason, _)| *reason).collect()
    }

    /// The JSON body of the last answer.
    fn json(&self) -> serde_json::Value {
        let body = self.client.rsplit("\r\n\r\n").next().expect("a body");
        serde_json::from_str(body).expect(body)
    }
}

/// Sends `input`, then nothing more. Upstream sends each reply of `script` when what it got since the
/// last one holds the text before it.
async fn talk(input: &[u8], script: &[(&str, &[u8])]) -> Outcome {
    talk_with(full(), input, script).await
}

async fn talk_with(options: Options, input: &[u8], script: &[(&str, &[u8])]) -> Outcome {
    let mut connection = Connection::open(options);
    let script: Vec<_> =
        script.iter().map(|(until, reply)| ((*until).to_owned(), reply.to_vec())).collect();
    let mut dialled = std::mem::replace(&mut connection.upstream, tokio::sync::mpsc::channel(1).1);
    let upstream = tokio::spawn(async move {
        let mut socket = dialled.recv().await?;
        Some(scripted(&mut socket, script).await)
    });
    let (mut reader, mut writer) = tokio::io::split(connection.client);
    let input = input.to_vec();
    let write = tokio::spawn(async move {
        // It may be refused before it has said everything.
        let _ = writer.write_all(&input).await;
        let _ = writer.shutdown().await;
    });
    let mut client = Vec::new();
    let read = reader.read_to_end(&mut client);
    let read = tokio::time::timeout(Duration::from_secs(3600), read).await;
    read.expect("an end").expect("no error");
    drop(reader);
    let result = connection.ended.await.expect("no panic");
    write.abort();
    let upstream = upstream.await.expect("no panic");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let denied = connection.denials.lock().expect("no panic").clone();
    Outcome { upstream: upstream.as_deref().map(text), client: text(&client), denied, result }
}

/// The lines of a head, in an order that does not depend on how they were sent.
fn sorted(text: &str) -> (Vec<&str>, &str) {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    let mut lines: Vec<_> = head.split("\r\n").collect();
    lines.sort_unstable();
    (lines, body)
}

/// Everything that upstream got until the end of the connection.
async fn scripted(socket: &mut DuplexStream, script: Vec<(String, Vec<u8>)>) -> Vec<u8> {
    let (mut all, mut from) = (Vec::new(), 0);
    let mut script = script.into_iter().peekable();
    loop {
        while let Some((until, reply)) = script.peek()
            && memchr::memmem::find(&all[from..], until.as_bytes()).is_some()
        {
            from = all.len();
            let _ = socket.write_all(reply).await;
            script.next();
        }
        match socket.read_buf(&mut all).await {
            Ok(1..) => {}
            _ => return all,
        }
    }
}
