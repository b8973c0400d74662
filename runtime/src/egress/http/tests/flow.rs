//! Connections that carry much, for long, or become something else.

use super::*;

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\n\
                       Upgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                      Connection: Upgrade\r\nSec-WebSocket-Accept: y\r\n\r\n";

async fn read(socket: &mut DuplexStream, count: usize) -> String {
    let mut bytes = vec![0; count];
    let read = tokio::time::timeout(Duration::from_secs(3600), socket.read_exact(&mut bytes)).await;
    read.expect("in time").expect("so many bytes");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test(start_paused = true)]
async fn a_websocket_is_made_and_carries_bytes_both_ways() {
    let mut connection = Connection::open(Options::default());
    connection.client.write_all(UPGRADE.as_bytes()).await.expect("sent");
    let mut upstream = connection.upstream.recv().await.expect("dialled");
    let request = read(&mut upstream, UPGRADE.len()).await;
    assert_eq!(sorted(&request), sorted(UPGRADE));
    upstream.write_all(format!("{SWITCH}early").as_bytes()).await.expect("sent");
    let answer = read(&mut connection.client, SWITCH.len() + 5).await;
    assert_eq!(sorted(&answer[..SWITCH.len()]), sorted(SWITCH));
    assert!(answer.ends_with("early"));
    // Not read as HTTP any more.
    connection.client.write_all(b"\x81\x05hello\nGET").await.expect("sent");
    assert!(read(&mut upstream, 11).await.ends_with("\x05hello\nGET"));
    upstream.write_all(b"back").await.expect("sent");
    assert_eq!(read(&mut connection.client, 4).await, "back");
    // Each side ends by itself.
    connection.client.shutdown().await.expect("shut down");
    assert_eq!(upstream.read(&mut [0; 8]).await.expect("an end"), 0);
    upstream.write_all(b"last").await.expect("sent");
    assert_eq!(read(&mut connection.client, 4).await, "last");
    drop(upstream);
    assert_eq!(connection.ended.await.expect("no panic"), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_refused_upgrade_stays_http_and_is_checked() {
    let get = "GET /next HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let evil = "GET /next HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    let script: [(&str, &[u8]); 2] = [("\r\n\r\n", OK), ("\r\n\r\n", OK)];
    let outcome = talk(format!("{UPGRADE}{get}").as_bytes(), &script).await;
    assert_eq!(outcome.client.as_bytes(), OK.repeat(2));
    let outcome = talk(format!("{UPGRADE}{evil}").as_bytes(), &script).await;
    assert!(outcome.upstream.as_ref().is_some_and(|text| !text.contains("next")), "{outcome:?}");
    assert_eq!(outcome.reasons(), [Reason::OtherName]);
}

// A switch that nobody asked for would make the connection unchecked.
#[tokio::test(start_paused = true)]
async fn upstream_switches_to_a_websocket_that_was_asked_for_and_to_nothing_else() {
    let get = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let h2c = UPGRADE.replace("websocket", "h2c");
    let other = SWITCH.replace("websocket", "h2c");
    for (sent, reply) in [(get, SWITCH), (h2c.as_str(), SWITCH), (UPGRADE, other.as_str())] {
        let outcome = talk(sent.as_bytes(), &[("\r\n\r\n", reply.as_bytes())]).await;
        assert_eq!(outcome.client, "", "{sent}");
    }
}

/// Writes until nothing more is taken for a while; returns how much was.
async fn fill(socket: &mut DuplexStream) -> usize {
    let (block, mut all) = (vec![b'x'; 16 * 1024], 0);
    while let Ok(Ok(count)) =
        tokio::time::timeout(Duration::from_secs(1), socket.write(&block)).await
    {
        all += count;
    }
    all
}

// INV-11: who does not read is not read for.
#[tokio::test(start_paused = true)]
async fn a_slow_reader_stops_the_writer_on_the_other_side() {
    const BOUND: usize = 1024 * 1024;
    let length = 1_u64 << 40;
    let mut connection = Connection::open(Options::default());
    let head = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n");
    connection.client.write_all(head.as_bytes()).await.expect("sent");
    let mut upstream = connection.upstream.recv().await.expect("dialled");
    let taken = fill(&mut connection.client).await;
    assert!((1..BOUND).contains(&taken), "{taken} bytes of a request are held");
    // And goes on once it is read.
    read(&mut upstream, taken).await;
    assert!(fill(&mut connection.client).await > 0);

    let mut connection = Connection::open(Options::default());
    connection.client.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.expect("sent");
    let mut upstream = connection.upstream.recv().await.expect("dialled");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    upstream.write_all(head.as_bytes()).await.expect("sent");
    let taken = fill(&mut upstream).await;
    assert!((1..BOUND).contains(&taken), "{taken} bytes of a response are held");
    read(&mut connection.client, taken).await;
    assert!(fill(&mut upstream).await > 0);
}

/// Resident bytes of this process.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages: usize = text.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("pages");
    pages * 4096
}

#[tokio::test]
async fn a_quarter_of_a_gibibyte_passes_each_way_without_staying() {
    const LENGTH: u64 = 256 * 1024 * 1024;
    let mut connection = Connection::open(Options::default());
    let head = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {LENGTH}\r\n\r\n");
    connection.client.write_all(head.as_bytes()).await.expect("sent");
    let mut upstream = connection.upstream.recv().await.expect("dialled");
    read(&mut upstream, head.len()).await;
    let before = resident();
    async fn pour(socket: &mut (impl tokio::io::AsyncWrite + Unpin)) {
        let block = vec![b'x'; 64 * 1024];
        for _ in 0..LENGTH / block.len() as u64 {
            socket.write_all(&block).await.expect("sent");
        }
    }
    async fn drain(socket: &mut (impl tokio::io::AsyncRead + Unpin)) {
        let mut socket = socket.take(LENGTH);
        let count = tokio::io::copy(&mut socket, &mut tokio::io::sink()).await.expect("read");
        assert_eq!(count, LENGTH);
    }
    tokio::join!(pour(&mut connection.client), drain(&mut upstream));
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
    upstream.write_all(head.as_bytes()).await.expect("sent");
    read(&mut connection.client, head.len()).await;
    tokio::join!(pour(&mut upstream), drain(&mut connection.client));
    // Other tests may run in this process: generous, and a sixteenth of what was carried.
    let grown = resident().saturating_sub(before);
    assert!(grown < 32 * 1024 * 1024, "{grown} bytes");
}

#[tokio::test(start_paused = true)]
async fn a_response_that_does_not_begin_in_time_is_ours() {
    let options = Options { response: Duration::from_secs(30), ..Options::default() };
    let begin = tokio::time::Instant::now();
    let get = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let outcome = talk_with(options, get, &[("\r\n\r\n", b"HTTP/1.1 200")]).await;
    assert!(outcome.client.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"), "{outcome:?}");
    assert_eq!(outcome.json()["error"], "egress_upstream");
    assert_eq!((begin.elapsed().as_secs(), outcome.denied.len()), (30, 0));

    // A long request is not a late response.
    let mut connection = Connection::open(options);
    let head = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\n";
    connection.client.write_all(head.as_bytes()).await.expect("sent");
    let mut upstream = connection.upstream.recv().await.expect("dialled");
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(20)).await;
        connection.client.write_all(b"x").await.expect("sent");
    }
    assert!(read(&mut upstream, head.len() + 10).await.ends_with("xxxxxxxxxx"));
    upstream.write_all(OK).await.expect("sent");
    assert_eq!(read(&mut connection.client, OK.len()).await.as_bytes(), OK);
}

// INV-11: the head of a response is bounded as that of a request is.
#[tokio::test(start_paused = true)]
async fn a_response_head_is_bounded() {
    let get = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let head = |fields: String| format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n");
    let long = head(format!("X: {}\r\n", "x".repeat(300_000)));
    let many = head("X: y\r\n".repeat(200));
    for reply in [&long, &many] {
        let outcome = talk(get, &[("\r\n\r\n", reply.as_bytes())]).await;
        assert_eq!(outcome.client, "");
    }
    let fits = head("X: y\r\n".repeat(99));
    let outcome = talk(get, &[("\r\n\r\n", fits.as_bytes())]).await;
    assert_eq!(outcome.client, fits);
}

// INV-10: the end of a session drops the future, and both sides see the end.
#[tokio::test(start_paused = true)]
async fn dropping_the_future_closes_both_sides() {
    let mut connection = Connection::open(Options::default());
    let get = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    connection.client.write_all(get).await.expect("sent");
    let mut upstream = connection.upstream.recv().await.expect("dialled");
    read(&mut upstream, get.len()).await;
    connection.ended.abort();
    assert_eq!(upstream.read(&mut [0; 8]).await.expect("an end"), 0);
    assert_eq!(connection.client.read(&mut [0; 8]).await.expect("an end"), 0);
}
