//! What a connection says about itself, on ports where either side may speak first, and over HTTP.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::lab::{Lab, echoes, in_world, is_reset, serve, serve_echo};
use crate::egress::Reason;
use crate::egress::tls::samples::{record_of, records, server_hello};

const HOSTS: &str = "203.0.113.10 api.example.com db.example.com\n";

fn text_of(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// A web server that says which host it was asked for.
fn serve_web(address: &str) {
    drop(serve(address, |mut stream| {
        std::thread::spawn(move || {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                head.push(byte[0]);
            }
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfine",
            );
        });
    }));
}

// jail.md 1.5 rule 3: Host is the name that was resolved; a denial on port 80 is put into words.
in_world!(plain_http_goes_where_its_host_says_or_is_told_why_not, || {
    let lab = Lab::new(HOSTS);
    serve_web("203.0.113.10:80");
    serve_web("203.0.113.10:8080");
    let attached = lab.attach(&["api.example.com:80", "api.example.com:8080"]);
    let ask = |name: &str, host: &str, port: u16| {
        let mut stream = lab.connect(&attached, name, port).expect("accepted");
        let request = format!("GET /path HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("request");
        text_of(&mut stream)
    };
    for port in [80, 8080] {
        let host = format!("API.example.com:{port}");
        assert!(ask("api.example.com", &host, port).ends_with("fine"), "{port}");
        let denied = ask("api.example.com", &format!("db.example.com:{port}"), port);
        assert!(denied.starts_with("HTTP/1.1 403 "), "{port}: {denied}");
        assert_eq!(lab.log.denied().last(), Some(&Reason::OtherName));
    }
    let dialled = lab.log.allowed().len();
    let denied = ask("db.example.com", "db.example.com", 80);
    assert!(denied.starts_with("HTTP/1.1 403 ") && denied.contains("egress_denied"), "{denied}");
    assert_eq!(lab.log.allowed().len(), dialled);
});

in_world!(a_server_may_speak_first_and_either_side_may_end_first, || {
    let lab = Lab::new(HOSTS);
    drop(serve("203.0.113.10:2525", |mut stream| {
        std::thread::spawn(move || {
            stream.write_all(b"220 hello\r\n").expect("greeting");
            let mut all = Vec::new();
            stream.read_to_end(&mut all).expect("until the client ends");
            stream.write_all(&all).expect("after the client has ended");
        });
    }));
    let attached = lab.attach(&["api.example.com:2525"]);
    let mut stream = lab.connect(&attached, "api.example.com", 2525).expect("accepted");
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting).expect("greeting");
    stream.write_all(b"EHLO x\r\n").expect("answer");
    stream.shutdown(Shutdown::Write).expect("end");
    assert_eq!(text_of(&mut stream), "EHLO x\r\n");
    assert_eq!(lab.log.closed(1), [(8, 19, None)]);
});

// INV-8: on any port, TLS and HTTP that name another host go nowhere.
in_world!(on_other_ports_names_are_compared_where_there_are_names, || {
    let lab = Lab::new(HOSTS);
    drop(serve_echo("203.0.113.10:9000"));
    let attached = lab.attach(&["api.example.com:9000"]);
    let connect = || lab.connect(&attached, "api.example.com", 9000).expect("accepted");
    for bytes in
        [b"\0\x01\x02".to_vec(), b"SSH-2.0-x\r\n".to_vec(), record_of(&["api.example.com"])]
    {
        assert!(echoes(&mut connect(), &bytes).expect("echo"), "{bytes:?}");
    }
    let mut named = connect();
    named.write_all(&record_of(&["db.example.com"])).expect("hello");
    assert!(is_reset(&mut named));
    let mut plain = connect();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: db.example.com:9000\r\n\r\n").expect("request");
    assert!(text_of(&mut plain).starts_with("HTTP/1.1 403 "));
    // The first of the two was dialled, so its end says why; nothing of the client's had left.
    let closed = lab.log.closed(5);
    assert!(closed.contains(&(0, 0, Some(Reason::OtherName))), "{closed:?}");
    assert_eq!(lab.log.denied(), [Reason::OtherName]);
    // Control: a rule that says so compares nothing.
    drop(attached);
    let attached = lab.attach(&["api.example.com:9000 tcp"]);
    let mut stream = lab.connect(&attached, "api.example.com", 9000).expect("accepted");
    assert!(echoes(&mut stream, &record_of(&["db.example.com"])).expect("echo"));
});

in_world!(a_word_without_an_end_passes_after_a_while_but_never_becomes_a_request, || {
    let lab = Lab::new(HOSTS);
    drop(serve_echo("203.0.113.10:9000"));
    let attached = lab.attach(&["api.example.com:9000"]);
    let mut stream = lab.connect(&attached, "api.example.com", 9000).expect("accepted");
    assert!(echoes(&mut stream, b"ping").expect("echo"));
    assert!(echoes(&mut stream, b"\r\nping\r\n").expect("echo"));
    let mut stream = lab.connect(&attached, "api.example.com", 9000).expect("accepted");
    assert!(echoes(&mut stream, b"GE").expect("echo"));
    stream.write_all(b"T / HTTP/1.1\r\nHost: db.example.com\r\n\r\n").expect("rest");
    assert!(is_reset(&mut stream));
    assert!(lab.log.closed(1).contains(&(2, 2, Some(Reason::Malformed))));
});

// jail.md 1.5 rule 3: a second ClientHello names the same host.
in_world!(a_second_hello_must_name_the_same_host, || {
    let lab = Lab::new(HOSTS);
    drop(serve("203.0.113.10:443", |mut stream| {
        std::thread::spawn(move || {
            let mut first = vec![0; record_of(&["api.example.com"]).len()];
            stream.read_exact(&mut first).expect("hello");
            stream.write_all(&records(22, &server_hello(true), 1 << 14)).expect("retry");
            stream.read_exact(&mut first[..1]).map(|()| stream.write_all(b"k")).ok();
        });
    }));
    let attached = lab.attach(&["api.example.com:443"]);
    let try_with = |second: &str, wait: bool| {
        let mut stream = lab.connect(&attached, "api.example.com", 443).expect("accepted");
        let (first, second) = (record_of(&["api.example.com"]), record_of(&[second]));
        let mut answer = vec![0; records(22, &server_hello(true), 1 << 14).len()];
        if wait {
            stream.write_all(&first).expect("hello");
            stream.read_exact(&mut answer).expect("retry");
            stream.write_all(&second).expect("second hello");
        } else {
            stream.write_all(&[first, second].concat()).expect("both");
        }
        stream.read_exact(&mut [0])
    };
    try_with("api.example.com", true).expect("the same");
    for wait in [true, false] {
        let error = try_with("db.example.com", wait).expect_err("another");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    // Sent ahead, it is refused before anything is dialled. Both count as the same.
    assert_eq!(lab.log.closed(2).iter().filter(|it| it.2 == Some(Reason::OtherName)).count(), 1);
    assert_eq!(lab.log.allowed().len(), 2);
    let [denial] = attached.ledger().turn(None).try_into().expect("one kind");
    assert_eq!((denial.reason, denial.count), (Reason::OtherName, 2));
});

// Slow-loris: what is begun is finished soon, or never begun.
in_world!(who_does_not_say_where_to_is_not_waited_for_long, || {
    let lab = Lab::new(HOSTS);
    drop(serve_echo("203.0.113.10:443"));
    let attached = lab.attach(&["api.example.com:443"]);
    let mut silent = lab.connect(&attached, "api.example.com", 443).expect("accepted");
    let mut slow = lab.connect(&attached, "api.example.com", 443).expect("accepted");
    let hello = record_of(&["api.example.com"]);
    for stream in [&silent, &slow] {
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    }
    for byte in hello.iter().take(8) {
        slow.write_all(&[*byte]).expect("byte");
        std::thread::sleep(Duration::from_millis(1000));
    }
    assert!(is_reset(&mut silent) && is_reset(&mut slow));
    let mut denied = lab.log.denied();
    denied.sort();
    assert_eq!(denied, [Reason::NoName, Reason::Malformed]);
    assert!(lab.log.allowed().is_empty());
});
