//! What is not forwarded, and what the client is told.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;
use crate::egress::http::refuse;
use crate::policy::network::{AddressClass, DenyReason};

const GOOD: &str = "GET /first HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// The bytes after one good request, and why they are refused.
#[rustfmt::skip]
const BAD: [(&str, Reason); 34] = [
    ("GET /evil HTTP/1.1\r\nHost: evil.test\r\n\r\n", Reason::OtherName),
    ("GET /evil HTTP/1.1\r\nHost: a.test\r\nHost: evil.test\r\n\r\n", Reason::Malformed),
    ("GET /evil HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\n\r\n", Reason::Malformed),
    ("GET /evil HTTP/1.1\r\nHost: a.test,evil.test\r\n\r\n", Reason::Malformed),
    ("GET /evil HTTP/1.1\r\nHost: a.test evil.test\r\n\r\n", Reason::Malformed),
    ("GET /evil HTTP/1.1\r\nHost: a.test@evil.test\r\n\r\n", Reason::Malformed),
    ("GET /evil HTTP/1.1\r\nHost: a.test\0.evil.test\r\n\r\n", Reason::Malformed),
    ("GET /evil HTTP/1.1\r\nHost: a.test:8080\r\n\r\n", Reason::OtherName),
    ("GET /evil HTTP/1.1\r\n\r\n", Reason::NoName),
    ("GET /evil HTTP/1.0\r\n\r\n", Reason::NoName),
    ("GET /evil HTTP/1.1\r\nHost:\r\n\r\n", Reason::NoName),
    ("GET http://evil.test/evil HTTP/1.1\r\nHost: a.test\r\n\r\n", Reason::OtherName),
    ("GET http://a.test/evil HTTP/1.1\r\nHost: evil.test\r\n\r\n", Reason::OtherName),
    ("GET https://a.test/evil HTTP/1.1\r\nHost: a.test\r\n\r\n", Reason::Malformed),
    ("GET http://x@a.test/evil HTTP/1.1\r\nHost: a.test\r\n\r\n", Reason::Malformed),
    ("GET evil.test HTTP/1.1\r\nHost: a.test\r\n\r\n", Reason::Malformed),
    ("GET * HTTP/1.1\r\nHost: a.test\r\nX: evil\r\n\r\n", Reason::Malformed),
    ("CONNECT evil.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n", Reason::OtherName),
    ("CONNECT a.test:80 HTTP/1.1\r\nHost: a.test\r\nX: evil\r\n\r\n", Reason::OtherProtocol),
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nevil", Reason::Malformed),
    ("GET /evil\r\n\r\n", Reason::Malformed),
    ("\r\n\r\n\r\nGET /evil HTTP/1.1\r\nHost: a.test\r\n\r\n", Reason::Malformed),
    ("GET /evil HTTP/1.1\nHost: a.test\n\n", Reason::Malformed),
    ("GET /evil HTTP/1.1\r\nHost: a.test\r\n X: folded\r\n\r\n", Reason::Malformed),
    ("GET /evil HTTP/1.1\r\nHost : a.test\r\n\r\n", Reason::Malformed),
    ("GET /evil HTTP/1.1\r\nHost: a.test\r\nX: a\rb\r\n\r\n", Reason::Malformed),
    ("POST /evil HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Reason::Malformed),
    ("POST /evil HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", Reason::Malformed),
    ("POST /evil HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", Reason::Malformed),
    ("POST /evil HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", Reason::Malformed),
    ("POST /evil HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Reason::Malformed),
    ("POST /evil HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nevil!", Reason::Malformed),
    ("POST /evil HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4, 4\r\n\r\nevil", Reason::Malformed),
    ("POST /evil HTTP/1.1\r\nHost: a.test\r\nContent-Length: +4\r\n\r\nevil", Reason::Malformed),
];

/// The control of each case: the same place, the right host.
const CONTROL: &str = "GET /evil HTTP/1.1\r\nHost: a.test\r\n\r\n";

// INV-8, jail.md 1.5 rule 3.
#[tokio::test(start_paused = true)]
async fn a_refused_first_request_opens_nothing_upstream() {
    for (bad, reason) in BAD {
        if bad.starts_with("PRI") {
            continue; // That is HTTP/2.
        }
        let outcome = talk(bad.as_bytes(), &[("\r\n\r\n", OK)]).await;
        assert_eq!(outcome.upstream, None, "{bad:?}");
        assert_eq!(outcome.reasons(), [reason], "{bad:?}");
        assert_eq!(outcome.result, Err(reason), "{bad:?}");
        assert_eq!(&outcome.client[8..24], " 403 Forbidden\r\n", "{outcome:?}");
    }
    let control = talk(CONTROL.as_bytes(), &[("\r\n\r\n", OK)]).await;
    assert_eq!(control.upstream.as_deref(), Some(CONTROL));
    assert_eq!((control.denied.len(), control.result), (0, Ok(())));
}

// INV-8: every request of a connection, also those that are sent before the first is answered.
#[tokio::test(start_paused = true)]
async fn a_refused_second_request_stays_with_us_and_is_answered_in_its_turn() {
    let script: [(&str, &[u8]); 2] = [("\r\n\r\n", OK), ("\r\n\r\n", OK)];
    for (bad, reason) in BAD {
        let outcome = talk(format!("{GOOD}{bad}{GOOD}").as_bytes(), &script).await;
        assert_eq!(outcome.upstream.as_deref(), Some(GOOD), "{bad:?}");
        assert_eq!(outcome.reasons(), [reason], "{bad:?}");
        let (first, second) = outcome.client.split_once("\r\n\r\nok").expect(bad);
        assert!(first.starts_with("HTTP/1.1 200 OK\r\n"), "{bad:?}");
        assert_eq!(&second[8..24], " 403 Forbidden\r\n", "{bad:?}");
        assert_eq!(outcome.client.matches("HTTP/1.").count(), 2, "{bad:?}");
    }
    let control = talk(format!("{GOOD}{CONTROL}").as_bytes(), &script).await;
    assert_eq!(control.upstream, Some(format!("{GOOD}{CONTROL}")));
    assert_eq!(control.client.matches("HTTP/1.1 200 OK").count(), 2);
}

// INV-8: a request inside the body of another is a body, and chunks have one reading.
#[tokio::test(start_paused = true)]
async fn nothing_hides_in_a_body() {
    let post = "POST / HTTP/1.1\r\nHost: a.test\r\n";
    let hidden = "GET /hidden HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    let whole = format!("{post}Content-Length: {}\r\n\r\n{hidden}", hidden.len());
    let outcome = talk(whole.as_bytes(), &[(hidden, OK)]).await;
    assert_eq!(outcome.upstream.as_deref(), Some(whole.as_str()), "a body like any other");
    assert!(outcome.denied.is_empty());

    #[rustfmt::skip]
    let chunks = [
        "5 \r\nhello\r\n", "0x5\r\nhello\r\n", "+5\r\nhello\r\n", "5\nhello\r\n", "5\r\nhello!\r\n",
        "5\r\nhello\n", "5;\n\r\nhello\r\n", "-1\r\n", "\r\n", "fffffffffffffffff\r\n",
        "2\r\nxx5\r\nhello\r\n", "0\r\nX: y\n\r\n", "0\r\nbad trailer\r\n\r\n",
    ];
    for chunk in chunks {
        let text = format!("{post}Transfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n{hidden}");
        let outcome = talk(text.as_bytes(), &[("0\r\n\r\n", OK)]).await;
        let upstream = outcome.upstream.clone().unwrap_or_default();
        assert!(!upstream.contains("hidden") && !upstream.contains("0\r\n\r\n"), "{outcome:?}");
        assert_eq!(outcome.reasons(), [Reason::Malformed], "{chunk:?}");
        assert_eq!((outcome.client.as_str(), outcome.result), ("", Err(Reason::Malformed)));
    }
    let text = format!("{post}Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\n\r\n");
    let control = talk(text.as_bytes(), &[("0\r\n\r\n", OK)]).await;
    assert!(control.client.ends_with("\r\n\r\nok"), "{control:?}");
    assert!(control.upstream.is_some_and(|text| text.ends_with("5\r\nhello\r\n0\r\n\r\n")));
}

// product.md 3.4, channel 1.
#[tokio::test(start_paused = true)]
async fn a_denial_says_what_was_denied_and_no_more() {
    let bad = b"GET /secret-path HTTP/1.1\r\nHost: EVIL.test.\r\n\r\n";
    let outcome = talk(bad, &[]).await;
    assert_eq!(outcome.denied, [(Reason::OtherName, Some("evil.test".to_owned()))]);
    let json = outcome.json();
    assert_eq!(
        json,
        json!({
            "error": "egress_denied", "host": "evil.test", "port": 80, "rule": null,
            "decision_id": "d-41", "retryable": false, "advice": json["advice"],
        })
    );
    let head = outcome.client.split("\r\n\r\n").next().expect("a head");
    let mut lines: Vec<_> = head.lines().collect();
    lines.sort_unstable();
    // One line, with its end.
    let length = format!("content-length: {}", json.to_string().len() + 1);
    #[rustfmt::skip]
    assert_eq!(lines, [
        "HTTP/1.1 403 Forbidden", "connection: close", length.as_str(),
        "content-type: application/json", "x-jail-decision: deny",
    ]);
    assert!(!outcome.client.contains("secret-path") && !outcome.client.contains("a.test\""));

    let unreadable = talk(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", &[]).await;
    assert_eq!(unreadable.json()["host"], json!(null));

    let options = Options { detail: DenyDetail::Off, ..Options::default() };
    let outcome = talk_with(options, bad, &[]).await;
    assert_eq!(outcome.json(), json!({ "error": "egress_denied", "retryable": false }));
}

#[tokio::test(start_paused = true)]
async fn upstream_that_cannot_be_reached_does_not_look_like_a_denial() {
    let private = Reason::Rules(DenyReason::Address(AddressClass::Private));
    #[rustfmt::skip]
    let cases = [
        (Reason::Unreachable, "502 Bad Gateway", "allow", "egress_upstream", 0),
        (Reason::NoAddress, "502 Bad Gateway", "allow", "egress_upstream", 0),
        (private, "403 Forbidden", "deny", "egress_denied", 1),
        (Reason::Unrecorded, "403 Forbidden", "deny", "egress_denied", 1),
    ];
    for (reason, status, decision, error, denials) in cases {
        let mut connection = Connection::open_with(Options::default(), Err(reason));
        connection.client.write_all(GOOD.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        connection.client.read_to_string(&mut answer).await.expect("read");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        assert!(answer.contains(&format!("x-jail-decision: {decision}\r\n")), "{answer}");
        assert!(answer.contains(&format!("\"error\":\"{error}\"")), "{answer}");
        assert_eq!(connection.denied().len(), denials, "{reason:?}");
        drop(connection.client);
        assert_eq!(connection.ended.await.expect("no panic"), Err(reason));
    }
}

// INV-11: a client that says little and slowly does not keep a connection.
#[tokio::test(start_paused = true)]
async fn a_head_comes_in_time_or_is_refused() {
    let drip = |pause: u64, text: &'static str| async move {
        let mut connection = Connection::open(Options::default());
        let (mut reader, mut writer) = tokio::io::split(connection.client);
        let begin = tokio::time::Instant::now();
        let write = tokio::spawn(async move {
            for byte in text.bytes() {
                if writer.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            std::future::pending::<()>().await;
        });
        let upstream = async {
            let Some(mut socket) = connection.upstream.recv().await else {
                return std::future::pending().await;
            };
            scripted(&mut socket, vec![("\r\n\r\n".to_owned(), OK.to_vec())]).await
        };
        let mut answer = vec![0; 512];
        let count = tokio::select! {
            count = reader.read(&mut answer) => count.expect("read"),
            _ = upstream => unreachable!("the client is there"),
        };
        write.abort();
        let denied = connection.denials.lock().expect("no panic").len();
        (String::from_utf8_lossy(&answer[..count]).into_owned(), begin.elapsed(), denied)
    };
    let (answer, after, denied) = drip(1000, GOOD).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!((after.as_secs(), denied), (10, 1));
    // A client that never says anything is let go without a word.
    let (answer, after, denied) = drip(1000, "").await;
    assert_eq!((answer.as_str(), after.as_secs(), denied), ("", 10, 0));
    let (answer, after, denied) = drip(100, GOOD).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(after < Duration::from_secs(10) && denied == 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_and_a_late_second_head_end() {
    let mut connection = Connection::open(Options::default());
    connection.client.write_all(GOOD.as_bytes()).await.expect("sent");
    let mut upstream = connection.upstream.recv().await.expect("dialled");
    tokio::spawn(async move {
        scripted(&mut upstream, vec![("\r\n\r\n".to_owned(), OK.to_vec())]).await
    });
    let mut answer = vec![0; 512];
    assert!(connection.client.read(&mut answer).await.expect("read") > 0);
    let begin = tokio::time::Instant::now();
    tokio::time::sleep(Duration::from_secs(50)).await;
    connection.client.write_all(b"GET").await.expect("sent");
    let count = connection.client.read(&mut answer).await.expect("read");
    assert!(answer[..count].starts_with(b"HTTP/1.1 403"), "{count}");
    assert_eq!(begin.elapsed().as_secs(), 60, "50 idle and 10 for the head");

    let mut connection = Connection::open(Options::default());
    connection.client.write_all(GOOD.as_bytes()).await.expect("sent");
    let mut upstream = connection.upstream.recv().await.expect("dialled");
    tokio::spawn(async move {
        scripted(&mut upstream, vec![("\r\n\r\n".to_owned(), OK.to_vec())]).await
    });
    assert!(connection.client.read(&mut answer).await.expect("read") > 0);
    let begin = tokio::time::Instant::now();
    assert_eq!(connection.client.read(&mut answer).await.expect("read"), 0);
    assert_eq!(begin.elapsed().as_secs(), 60);
    assert!(connection.denied().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_denied_connection_is_told_why_after_its_head_or_in_time() {
    let evil = Target { host: "evil.test".parse().expect("a host"), port: 80 };
    let reason = Reason::Rules(DenyReason::NoRule);
    let body = "x".repeat(100_000);
    let long =
        format!("POST / HTTP/1.1\r\nHost: evil.test\r\nContent-Length: 100000\r\n\r\n{body}");
    for (said, seconds) in [(GOOD, 0), ("GE", 2), ("", 2), ("\n\n\n", 0), (long.as_str(), 0)] {
        let (mut client, inner) = duplex(ROOM);
        let evil = evil.clone();
        let wait = Duration::from_secs(2);
        let served = tokio::spawn(async move {
            refuse(inner, &evil, reason, 9, DenyDetail::Full, wait).await;
        });
        let begin = tokio::time::Instant::now();
        client.write_all(said.as_bytes()).await.expect("the answer is not cut off by what is sent");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("read");
        assert_eq!(begin.elapsed().as_secs(), seconds, "{said:?}");
        assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
        let json = answer.split_once("\r\n\r\n").expect("a body").1;
        let json: serde_json::Value = serde_json::from_str(json).expect(json);
        assert_eq!((&json["host"], &json["decision_id"]), (&json!("evil.test"), &json!("d-9")));
        drop(client);
        served.await.expect("no panic");
    }
}
