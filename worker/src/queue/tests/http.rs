//! The real transport over loopback: what reqwest adds and leaves out.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::super::credential::Credential;
use super::super::request::Request;
use super::super::*;

/// Answers the connections in order, each with these bytes; returns what it was sent.
async fn server(answers: Vec<&'static str>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let served = tokio::spawn(async move {
        let mut heads = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a byte"));
            }
            heads.push(String::from_utf8(head).expect("text").to_lowercase());
            stream.write_all(answer.as_bytes()).await.expect("written");
        }
        heads
    });
    (format!("http://{address}/prefix/"), served)
}

fn client(base: &str) -> (Client, Credential) {
    let settings = QueueSettings::new(base.parse().expect("a URL"), "env_1", "host-1");
    settings.check().expect("loopback");
    let [transport] = HttpTransport::pools(None).expect("a transport");
    let client = Client::new(&settings, Arc::new(transport), Random::fixed(0.0));
    (client, Credential::Session("sk-token".into()))
}

#[tokio::test]
async fn a_post_without_a_body_says_so_and_a_poll_carries_the_worker_id() {
    // HDR-4, HDR-7, HDR-10.
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nnull";
    let (lines, _guard) = super::secrets::captured("trace");
    let (base, served) = server(vec![ok, ok]).await;
    let (client, by) = client(&base);
    let ack = Request::post(&["environments", "env_1", "work", "w", "ack"]).expect("a request");
    client.send(&by, &ack).await.expect("an answer");
    let poll = Request::get(&["environments", "env_1", "work", "poll"]).expect("a request");
    client.send(&by, &poll.with_worker_id().query("block_ms", "999")).await.expect("an answer");
    let heads = served.await.expect("served");
    assert!(heads[0].starts_with("post /prefix/v1/environments/env_1/work/w/ack http/1.1\r\n"));
    assert_eq!(heads[0].matches("content-length: 0\r\n").count(), 1, "{}", heads[0]);
    assert!(!heads[0].contains("content-type"));
    assert_eq!(heads[0].matches("authorization: bearer sk-token\r\n").count(), 1);
    assert!(heads[1].contains("get /prefix/v1/environments/env_1/work/poll?block_ms=999 "));
    assert!(heads[1].contains("anthropic-worker-id: host-1\r\n"));
    assert!(!heads[0].contains("anthropic-worker-id"));
    // AUTH-8: the crates below log as well.
    let text = String::from_utf8(lines.lock().expect("not poisoned").clone()).expect("text");
    assert!(text.contains("reqwest") || text.contains("hyper"), "the trace was captured");
    assert!(!text.contains("sk-token"));
}

#[tokio::test]
async fn a_broken_connection_is_tried_again() {
    // HTTP-1.
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
    let short = "HTTP/1.1 200 OK\r\ncontent-length: 20\r\nconnection: close\r\n\r\n{}";
    let (base, served) = server(vec!["", short, ok]).await;
    let (client, by) = client(&base);
    let request = Request::get(&["sessions", "s"]).expect("a request");
    let reply = client.send(&by, &request.timeout(Duration::from_secs(20))).await;
    assert_eq!(&reply.expect("an answer").body[..], b"{}");
    assert_eq!(served.await.expect("served").len(), 3);
}

#[tokio::test]
async fn a_stream_is_read_as_it_comes() {
    // SSE-1 over chunks that cut lines.
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                transfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    let chunks = "6\r\nevent:\r\n4\r\n a\r\n\r\n8\r\ndata: x\n\r\n1\r\n\n\r\n0\r\n\r\n";
    let text: &'static str = Box::leak(format!("{head}{chunks}").into_boxed_str());
    let (base, served) = server(vec![text]).await;
    let (client, by) = client(&base);
    let request = Request::get(&["sessions", "s", "events", "stream"]).expect("a request");
    let mut body = client.open(&by, &request).await.expect("a stream");
    let mut parser = super::super::sse::SseParser::new(1000);
    let mut frames = std::collections::VecDeque::new();
    while let Some(chunk) = body.chunk().await.expect("a piece") {
        parser.push(&chunk, &mut frames).expect("small");
    }
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].data, b"x");
    served.await.expect("served");
}

#[test]
fn an_extra_ca_file_must_hold_a_certificate() {
    let place = tempfile::TempDir::new().expect("a directory");
    let path = place.path().join("ca.pem");
    std::fs::write(&path, "no certificate").expect("written");
    assert!(HttpTransport::pools::<1>(Some(&path)).is_err());
    assert!(HttpTransport::pools::<1>(Some(&place.path().join("missing.pem"))).is_err());
}
