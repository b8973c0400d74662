//! What reaches the other side, and in which form.

use super::*;

/// One request and its answer, as sent and as they must arrive; `None`: unchanged.
struct Case {
    sent: &'static str,
    arrives: Option<&'static str>,
    reply: &'static str,
    answer: Option<&'static str>,
}

async fn check(case: &Case) {
    let arrives = case.arrives.unwrap_or(case.sent);
    let body = sorted(arrives).1;
    let until = if body.is_empty() { "\r\n\r\n" } else { body };
    let outcome = talk(case.sent.as_bytes(), &[(until, case.reply.as_bytes())]).await;
    let upstream = outcome.upstream.expect("dialled");
    assert_eq!(sorted(&upstream), sorted(arrives));
    let answer = case.answer.unwrap_or(case.reply);
    assert_eq!(sorted(&outcome.client), sorted(answer), "{}", case.sent);
    assert_eq!((outcome.denied.len(), outcome.result), (0, Ok(())));
}

#[tokio::test(start_paused = true)]
async fn an_exchange_passes_as_it_is() {
    #[rustfmt::skip]
    let cases = [
        // Case and order of names, no Via, no Date, no User-Agent.
        ("GET /a/../b?c=%00#d HTTP/1.1\r\nhOsT: a.test\r\nX-Two: 2\r\nx-one: 1\r\nX-Two: 3\r\n\r\n",
         Some("GET /a/../b?c=%00 HTTP/1.1\r\nhOsT: a.test\r\nX-Two: 2\r\nX-Two: 3\r\nx-one: 1\r\n\r\n"),
         "HTTP/1.1 299 Any Words\r\nSET-Cookie: a\r\nSet-cookie: b\r\ncontent-Length: 2\r\n\r\nok", None),
        ("GET /\u{f6} HTTP/1.1\r\nHost: a.test\r\nX: \u{f6}\r\n\r\n", None,
         "HTTP/1.1 200 OK\r\nX: \u{f6}\r\nContent-Length: 0\r\n\r\n", None),
        ("HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n", None,
         "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n", None),
        ("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", None, "HTTP/1.1 204 No Content\r\nX: y\r\n\r\n", None),
        ("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", None, "HTTP/1.1 304 Not Modified\r\nETag: y\r\n\r\n", None),
        ("OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n", None, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", None),
        ("DELETE /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n", None,
         "HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nno!!!", None),
        ("PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello", None,
         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", None),
        ("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", None,
         "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", None),
        // Trailers both ways.
        ("POST / HTTP/1.1\r\nHost: a.test\r\nTE: trailers\r\nTrailer: Digest\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nDigest: x\r\n\r\n",
         Some("POST / HTTP/1.1\r\nHost: a.test\r\nTrailer: Digest\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nconnection: TE\r\n\r\n5\r\nhello\r\n0\r\ndigest: x\r\n\r\n"),
         "HTTP/1.1 200 OK\r\nTrailer: Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nsum: 1\r\n\r\n", None),
        // An absolute target becomes a path, the host gets its one form.
        ("GET http://A.test:80/p?q HTTP/1.1\r\nHost: A.TEST.\r\n\r\n",
         Some("GET /p?q HTTP/1.1\r\nHost: a.test\r\n\r\n"),
         "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", None),
        // One empty line in front, as old clients send after a body.
        ("\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n", Some("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"),
         "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", None),
        // Fields of one connection.
        ("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nProxy-Authorization: b\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
         Some("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"),
         "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\n\r\n",
         Some("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")),
        // An old client gets what it can read, and its connection closes.
        ("GET / HTTP/1.0\r\nHost: a.test\r\n\r\n", Some("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"),
         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
         Some("HTTP/1.0 200 OK\r\n\r\nabc")),
        // Informational answers of upstream are for us.
        ("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", None,
         "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
         Some("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")),
    ];
    for (sent, arrives, reply, answer) in cases {
        check(&Case { sent, arrives, reply, answer }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn many_requests_use_one_connection_to_upstream() {
    let get = "GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let script = [("\r\n\r\n", OK); 20];
    let outcome = talk(get.repeat(20).as_bytes(), &script).await;
    assert_eq!(outcome.upstream, Some(get.repeat(20)));
    assert_eq!(outcome.client.as_bytes(), OK.repeat(20));
}

#[tokio::test(start_paused = true)]
async fn upstream_that_closes_closes_the_client() {
    // It says so.
    let get = "GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let close: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    let outcome = talk(get.repeat(2).as_bytes(), &[("\r\n\r\n", close)]).await;
    assert_eq!(sorted(&outcome.client), sorted(&String::from_utf8_lossy(close)));
    assert_eq!(outcome.upstream.as_deref(), Some(get));

    // It does it, between two requests, in a body without a length, and without an answer.
    let endings: [(&[u8], &str); 3] = [
        (OK, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", "HTTP/1.0 200 OK\r\n\r\nuntil the end"),
        (b"", ""),
    ];
    for (reply, want) in endings {
        let mut connection = Connection::open(Options::default());
        connection.client.write_all(get.as_bytes()).await.expect("sent");
        let mut upstream = connection.upstream.recv().await.expect("dialled");
        let mut request = vec![0; get.len()];
        upstream.read_exact(&mut request).await.expect("read");
        upstream.write_all(reply).await.expect("sent");
        drop(upstream);
        let mut answer = String::new();
        connection.client.read_to_string(&mut answer).await.expect("an end");
        // It may be told that the connection closes.
        assert_eq!(answer.replace("connection: close\r\n", ""), want);
        assert!(connection.denied().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_expects_is_told_to_continue() {
    let mut connection = Connection::open(Options::default());
    let head =
        "POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    connection.client.write_all(head.as_bytes()).await.expect("sent");
    let mut upstream = connection.upstream.recv().await.expect("dialled");
    let server = tokio::spawn(async move {
        let reply = [b"HTTP/1.1 100 Continue\r\n\r\n", OK].concat();
        scripted(&mut upstream, vec![("hello".to_owned(), reply)]).await
    });
    let mut answer = vec![0; 25];
    connection.client.read_exact(&mut answer).await.expect("read");
    assert_eq!(answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    connection.client.write_all(b"hello").await.expect("sent");
    connection.client.shutdown().await.expect("shut down");
    let mut answer = Vec::new();
    connection.client.read_to_end(&mut answer).await.expect("read");
    assert_eq!(answer, OK);
    assert_eq!(String::from_utf8_lossy(&server.await.expect("no panic")), format!("{head}hello"));
    // A client that is refused is not told to go on.
    let evil = head.replace("a.test", "evil.test");
    let outcome = talk(evil.as_bytes(), &[]).await;
    assert!(outcome.client.starts_with("HTTP/1.1 403"), "{outcome:?}");
}
