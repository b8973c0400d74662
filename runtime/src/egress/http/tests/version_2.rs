//! HTTP/2 with prior knowledge: the same checks, stream by stream.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;

type Sender = http2::SendRequest<Full<Bytes>>;

/// A client, and an upstream that answers each request with its path, the authority it saw and a
/// trailer. Counts what it saw.
async fn connect() -> (Sender, Arc<AtomicU64>, Denials) {
    let Connection { client, mut upstream, denials, .. } = Connection::open(full());
    let seen = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&seen);
    tokio::spawn(async move {
        let socket = upstream.recv().await.expect("dialled");
        let service = service_fn(move |request: Request<Incoming>| {
            count.fetch_add(1, Ordering::SeqCst);
            async move { Ok::<_, std::convert::Infallible>(echo(request).await) }
        });
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .auto_date_header(false)
            .serve_connection(TokioIo::new(socket), service)
            .await;
    });
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.expect("a handshake");
    tokio::spawn(connection);
    (sender, seen, denials)
}

async fn echo(
    request: Request<Incoming>,
) -> Response<impl hyper::body::Body<Data = Bytes, Error = std::convert::Infallible>> {
    let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    let hosts = request.headers().get_all("host").iter().count();
    let te = request.headers().get("te").cloned();
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    let text = format!("{path} {authority} {hosts} {te:?} {}", body.len());
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Response::new(Full::new(Bytes::from(text)).with_trailers(async { Some(Ok(trailers)) }))
}

fn request(uri: &str) -> http::request::Builder {
    Request::builder().version(http::Version::HTTP_2).method("POST").uri(uri)
}

fn body(text: &'static str) -> Full<Bytes> {
    Full::new(Bytes::from_static(text.as_bytes()))
}

#[tokio::test(start_paused = true)]
async fn a_stream_passes_with_its_trailers_under_the_one_name() {
    let (mut sender, seen, denials) = connect().await;
    let request = request("http://A.test.:80/service/Call").header("te", "trailers");
    let request = request.header("host", "a.test").body(body("hello")).expect("a request");
    let response = sender.send_request(request).await.expect("a response");
    assert_eq!(response.status(), 200);
    let names: Vec<_> = response.headers().keys().map(http::HeaderName::as_str).collect();
    assert_eq!(names, ["content-length"], "no Date or Via of ours");
    let collected = response.into_body().collect().await.expect("a body");
    assert_eq!(collected.trailers().expect("trailers")["grpc-status"], "0");
    let text = String::from_utf8(collected.to_bytes().to_vec()).expect("text");
    assert_eq!(text, "/service/Call a.test:80 0 Some(\"trailers\") 5");
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    assert!(denials.lock().expect("no panic").is_empty());
}

// INV-8, jail.md 1.5 rule 3: no coalescing across names.
#[tokio::test(start_paused = true)]
async fn a_stream_for_another_host_is_denied_and_others_go_on() {
    let (mut sender, seen, denials) = connect().await;
    #[rustfmt::skip]
    let cases = [
        ("http://a.test/1", None, None),
        ("http://evil.test/2", None, Some(Reason::OtherName)),
        ("http://a.test/3", Some("evil.test"), Some(Reason::OtherName)),
        ("http://evil.test/4", Some("a.test"), Some(Reason::OtherName)),
        ("http://a.test:81/5", None, Some(Reason::OtherName)),
        ("https://a.test/6", None, Some(Reason::Malformed)),
        ("http://a.test/7", None, None),
    ];
    for (number, (uri, host, want)) in (1..).zip(cases) {
        let mut request = request(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let request = request.body(body("hello")).expect("a request");
        let response = sender.send_request(request).await.expect("a response");
        let denied = denials.lock().expect("no panic").pop().map(|(reason, _)| reason);
        assert_eq!(denied, want, "{uri}");
        let status = response.status();
        let head = response.headers().clone();
        let text = response.into_body().collect().await.expect("a body").to_bytes();
        let text = String::from_utf8(text.to_vec()).expect("text");
        if want.is_none() {
            assert_eq!((status.as_u16(), &text), (200, &format!("/{number} a.test 0 None 5")));
            continue;
        }
        assert_eq!((status.as_u16(), &head["x-jail-decision"]), (403, &"deny".parse().expect("")));
        assert!(!head.contains_key("connection"), "{head:?}");
        let json: serde_json::Value = serde_json::from_str(&text).expect(&text);
        assert_eq!(
            (&json["error"], &json["decision_id"]),
            (&"egress_denied".into(), &"d-41".into())
        );
    }
    assert_eq!(seen.load(Ordering::SeqCst), 2, "the two that were allowed");
}

// INV-8: a tunnel through an allowed host.
#[tokio::test(start_paused = true)]
async fn connect_makes_no_tunnel() {
    let (mut sender, seen, denials) = connect().await;
    for (authority, want) in
        [("evil.test:443", Reason::OtherName), ("a.test:80", Reason::OtherProtocol)]
    {
        let request = Request::builder().method("CONNECT").uri(authority);
        let request = request.body(Full::default()).expect("a request");
        let response = sender.send_request(request).await.expect("a response");
        assert_eq!(response.status(), 403);
        let denied = denials.lock().expect("no panic").pop().map(|(reason, _)| reason);
        assert_eq!(denied, Some(want));
    }
    assert_eq!(seen.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn many_streams_run_at_once_and_a_reset_one_takes_no_other() {
    let (sender, seen, denials) = connect().await;
    let mut streams = tokio::task::JoinSet::new();
    for number in 0..300 {
        let mut sender = sender.clone();
        streams.spawn(async move {
            sender.ready().await.expect("ready");
            let request = request("http://a.test/x").body(body("hello")).expect("a request");
            let response = sender.send_request(request);
            if number % 30 == 0 {
                return drop(response);
            }
            let response = response.await.expect("a response");
            response.into_body().collect().await.expect("a body");
        });
    }
    while let Some(ended) = streams.join_next().await {
        ended.expect("no panic");
    }
    assert!(seen.load(Ordering::SeqCst) >= 290);
    assert!(denials.lock().expect("no panic").is_empty());
}

/// A frame with everything in it.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `:method GET`, `:scheme http`, `:path /`, and an authority, in HPACK.
fn head(authority: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x84, 0x01, u8::try_from(authority.len()).expect("short")];
    block.extend(authority.bytes());
    block
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const GOAWAY: u8 = 7;

/// What came back until the end: kinds of frames, the error code of a GOAWAY; whether upstream was dialled.
#[derive(Debug)]
struct Seen {
    kinds: Vec<u8>,
    code: Option<u32>,
    dialled: bool,
}

/// Sends `frames` after the preface.
async fn raw(frames: &[u8]) -> (Seen, Denials) {
    let mut connection = Connection::open(Options::default());
    let dialled = Arc::new(AtomicU64::new(0));
    let noted = Arc::clone(&dialled);
    tokio::spawn(async move {
        if let Some(mut upstream) = connection.upstream.recv().await {
            noted.fetch_add(1, Ordering::SeqCst);
            scripted(&mut upstream, Vec::new()).await;
        }
    });
    let (mut reader, mut writer) = tokio::io::split(connection.client);
    let all = [PREFACE, &frame(4, 0, 0, &[]), frames].concat();
    tokio::spawn(async move {
        let _ = writer.write_all(&all).await;
        std::future::pending::<()>().await;
    });
    let mut bytes = Vec::new();
    let read = reader.read_to_end(&mut bytes);
    let _ = tokio::time::timeout(Duration::from_secs(5), read).await;
    let (mut kinds, mut code, mut at) = (Vec::new(), None, 0);
    while let Some(head) = bytes.get(at..at + 9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        kinds.push(head[3]);
        if head[3] == GOAWAY {
            let error = &bytes[at + 13..at + 17];
            code = Some(u32::from_be_bytes(error.try_into().expect("four")));
        }
        at += 9 + length;
    }
    let dialled = dialled.load(Ordering::SeqCst) > 0;
    (Seen { kinds, code, dialled }, connection.denials)
}

// INV-11: what a client may make us do for nothing is bounded.
#[tokio::test(start_paused = true)]
async fn streams_that_are_reset_at_once_end_the_connection() {
    let resets = |count: u32, authority: &str| -> Vec<u8> {
        let both = |number| {
            let stream = 2 * number + 1;
            [frame(1, 5, stream, &head(authority)), frame(3, 0, stream, &[0, 0, 0, 8])].concat()
        };
        (0..count).flat_map(both).collect()
    };
    let (seen, _) = raw(&resets(500, "a.test")).await;
    assert_eq!(seen.code, Some(11), "ENHANCE_YOUR_CALM");
    let (seen, _) = raw(&resets(5, "a.test")).await;
    assert_eq!(seen.code, None);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_request_of_http_2_is_not_one_of_ours() {
    const HEADERS: u8 = 1;
    const RST: u8 = 3;
    // The control: denied, so it was read.
    let (seen, denials) = raw(&frame(1, 5, 1, &head("evil.test"))).await;
    assert!(seen.kinds.contains(&HEADERS) && !seen.dialled);
    assert_eq!(denials.lock().expect("no panic").len(), 1);
    let with = |more: &[u8]| [head("a.test"), more.to_vec()].concat();
    #[rustfmt::skip]
    let cases: [(&str, Vec<u8>); 4] = [
        ("a second authority", with(b"\x01\x09evil.test")),
        ("extended CONNECT", [b"\x02\x07CONNECT\x86\x84".as_slice(), b"\x01\x06a.test",
                              b"\x00\x09:protocol\x09websocket"].concat()),
        ("a field of one connection", with(b"\x00\x0aconnection\x05close")),
        ("a name in capitals", with(b"\x00\x01X\x01y")),
    ];
    for (what, block) in cases {
        let (seen, _) = raw(&frame(1, 5, 1, &block)).await;
        assert!(!seen.kinds.contains(&HEADERS) && !seen.dialled, "{what}: {seen:?}");
        assert!(seen.kinds.contains(&RST) || seen.code.is_some(), "{what}: {seen:?}");
    }
    // No authority at all is read, and denied.
    let (_, denials) = raw(&frame(1, 5, 1, &[0x82, 0x86, 0x84])).await;
    assert_eq!(denials.lock().expect("no panic").pop(), Some((Reason::NoName, None)));
    // Fields beyond the bound.
    let long = vec![b'x'; 100];
    let field = [b"\x00\x01x\x64".as_slice(), &long].concat();
    let first = frame(1, 1, 1, &with(&field.repeat(150)));
    let more = frame(9, 0, 1, &field.repeat(150)).repeat(9);
    let (seen, _) = raw(&[first, more, frame(9, 4, 1, &[])].concat()).await;
    assert!(!seen.dialled, "{seen:?}");
    let (seen, _) = raw(&frame(1, 5, 1, &with(&field.repeat(50)))).await;
    assert!(seen.dialled, "what is within the bound passes");
}
