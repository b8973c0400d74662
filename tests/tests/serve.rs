//! `worker serve`: sessions are served when a webhook tells of them, and the listener takes no more from
//! anybody than it must (HOOK-1 to HOOK-10, SHUT-2, INV-11).

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use e2e::exec::give;
use e2e::play::{SOON, bash, gives, passed, session};
use e2e::poll::wait_for;
use e2e::{Devserver, Level, Poll, Worker};
use serde_json::{Value, json};

/// The key of the published example (HOOK-5).
const KEY: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

fn level() -> Level {
    Level::here()[0]
}

/// A loopback address of this process alone: between [`free_port`] and the worker's bind(2) nobody else
/// takes the port there.
fn host() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 1 + high, middle, low)
}

fn free_port() -> u16 {
    let taken = TcpListener::bind((host(), 0)).expect("a port");
    taken.local_addr().expect("bound").port()
}

fn secret(level: Level, home: &Path, name: &str, text: &str) -> PathBuf {
    let file = home.join(name);
    fs::write(&file, text).expect("cannot write a key");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("cannot chmod");
    give(&file, level);
    file
}

/// A server whose webhook leads to `port`, so that it can sign deliveries.
fn server(port: u16) -> Devserver {
    let url = format!("http://{}:{port}/webhook", host());
    let script = format!("[webhook]\nurl = \"{url}\"\nkey = \"{KEY}\"\n");
    Devserver::with(&script, &[])
}

fn serve(level: Level, port: u16) -> Poll {
    let poll = Poll::at(level).command(&["serve", "--jail"]);
    let file = secret(level, &poll.home(), "webhook-key", &format!("{KEY}\n"));
    poll.path("--webhook-key-file", &file).options(["--listen", &format!("{}:{port}", host())])
}

/// A worker that listens, and has found the queue empty at its start.
fn listening(poll: Poll, server: &Devserver) -> Worker {
    let worker = poll.serve(server);
    worker.wait_for_event("webhook.listening", SOON);
    worker.wait_for_event("poll.idle", SOON);
    worker
}

fn polls(server: &Devserver) -> u64 {
    server.report()["requests"]["poll"]["count"].as_u64().unwrap_or(0)
}

/// What comes back for these bytes, until the other end closes.
fn raw(port: u16, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect((host(), port)).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    // It may close before it has read all.
    let _cut = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _cut = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// A delivery that the server has signed.
struct Delivery {
    headers: Vec<(String, String)>,
    body: String,
}

impl Delivery {
    fn signed(server: &Devserver, asked: &Value) -> Delivery {
        let signed = server.dev("POST", "webhook", asked);
        let pair = |pair: &Value| {
            let text = |at: usize| pair[at].as_str().expect("text").to_owned();
            (text(0), text(1))
        };
        let headers = signed["headers"].as_array().expect("headers").iter().map(pair).collect();
        Delivery { headers, body: signed["body"].as_str().expect("a body").to_owned() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut text =
            format!("POST /webhook HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n", self.body.len());
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        (text + "\r\n" + &self.body).into_bytes()
    }

    fn send(&self, port: u16) -> (u16, String) {
        let answer = raw(port, &self.bytes());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
        (status(&answer), body)
    }
}

#[test]
fn a_delivery_wakes_the_worker_and_nothing_else_does() {
    // HOOK-6, HOOK-8, HOOK-9, POLL-11.
    for level in Level::here() {
        let port = free_port();
        let server = server(port);
        let worker = listening(serve(level, port), &server);
        sleep(Duration::from_secs(3));
        assert_eq!(polls(&server), 1, "it polls once at its start");
        for name in ["first", "second"] {
            let began = Instant::now();
            server.push(&session(name, [gives(bash("echo 1"), "1")]));
            server.wait_done(SOON);
            assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        }
        let asked = polls(&server);
        assert!(
            (5..=7).contains(&asked),
            "{asked}: one item and one empty answer each, and no hold"
        );
        let report = server.report();
        // None of them was sent again.
        let hooks = &report["webhooks"];
        assert_eq!((&hooks["sent"], &hooks["accepted"]), (&json!(2), &json!(2)), "{report}");
        assert!(report["credentials"]["sessions_token"].as_u64() > Some(0), "HOOK-9");
        let ran = worker.stop().ended(0);
        assert_eq!(ran.events("webhook.accepted").len(), 2, "{}", ran.stderr);
        assert!(!ran.stderr.contains(KEY) && !ran.stderr.contains("C2FVsBQI"), "AUTH-8");
        passed(server.end(), &ran.stderr);
    }
}

#[test]
fn a_lost_delivery_strands_no_session() {
    // HOOK-10.
    let port = free_port();
    let server = Devserver::start();
    let worker = listening(serve(level(), port).options(["--safety-poll", "1s"]), &server);
    server.push(&session("one", [gives(bash("echo 1"), "1")]));
    server.wait_done(SOON);
    let ran = worker.stop().ended(0);
    passed(server.end(), &ran.stderr);
}

#[test]
fn each_delivery_gets_the_answer_it_deserves() {
    // HOOK-1, HOOK-3, HOOK-4, HOOK-6, HOOK-7, HOOK-8. To the second: unit tests of the signature.
    let port = free_port();
    let server = server(port);
    let worker = listening(serve(level(), port), &server);
    let signed = |asked: Value| Delivery::signed(&server, &asked);
    let good = signed(json!({"session": "sesn_1", "id": "msg_1", "event": "whe_1"}));
    assert_eq!(good.send(port), (200, r#"{"status":"ok"}"#.to_owned()));
    assert!(wait_for(SOON, || polls(&server) >= 2));
    assert_eq!(good.send(port), (200, r#"{"status":"duplicate"}"#.to_owned()));
    let again = signed(json!({"session": "sesn_1", "id": "msg_1b", "event": "whe_1"}));
    assert_eq!(again.send(port), (200, r#"{"status":"duplicate"}"#.to_owned()));
    let other = signed(json!({"type": "vault.created", "id": "msg_2"}));
    assert_eq!(other.send(port), (200, r#"{"status":"ignored"}"#.to_owned()));
    for (age_s, want) in [(297, 200), (-297, 200), (303, 401), (-303, 401), (86_400, 401)] {
        let (id, event) = (format!("msg_{age_s}"), format!("whe_{age_s}"));
        let aged = signed(json!({"age_s": age_s, "id": id, "event": event}));
        assert_eq!(aged.send(port).0, want, "{age_s} s old");
    }
    // Two signatures, as during a change of keys.
    let mut two = signed(json!({"id": "msg_3", "event": "whe_3"}));
    two.headers[2].1 = format!("v1,{}= {}", "A".repeat(43), two.headers[2].1);
    assert_eq!(two.send(port), (200, r#"{"status":"ok"}"#.to_owned()));
    let mut forged = signed(json!({"id": "msg_4", "event": "whe_4", "session": "sesn_1"}));
    forged.body = forged.body.replace("sesn_1", "sesn_2");
    assert_eq!(forged.send(port).0, 401);
    let mut unsigned = signed(json!({"id": "msg_5"}));
    unsigned.headers.pop();
    assert_eq!(unsigned.send(port).0, 401);
    let get = |line: &str| status(&raw(port, format!("{line}\r\nhost: x\r\n\r\n").as_bytes()));
    for (line, want) in [
        ("GET /healthz HTTP/1.1", 200),
        ("GET /readyz HTTP/1.1", 200),
        ("GET /webhook HTTP/1.1", 405),
        ("DELETE /webhook HTTP/1.1", 405),
        ("BREW /webhook HTTP/1.1", 405),
        ("GET / HTTP/1.1", 404),
        ("GET /webhook/../healthz HTTP/1.1", 404),
        ("POST /webhook HTTP/1.1", 401),
    ] {
        assert_eq!(get(line), want, "{line}");
    }
    let ran = worker.stop().ended(0);
    // Refusals are not told one by one: anybody can cause them.
    assert_eq!(ran.events("webhook.refused").len(), 1, "{}", ran.stderr);
    assert_eq!(server.report()["violations"], json!([]));
}

#[test]
fn hostile_connections_hold_up_no_delivery_and_end_in_time() {
    // INV-11: slow heads, slow bodies, large heads, many headers, large bodies, pipelining.
    let port = free_port();
    let server = server(port);
    let worker = listening(serve(level(), port), &server);
    let connect = || TcpStream::connect((host(), port)).expect("it listens");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    // Fresh headers, as anybody can write them.
    let claim = format!(
        "POST /webhook HTTP/1.1\r\nhost: x\r\nwebhook-id: m\r\nwebhook-timestamp: {}\r\n\
         webhook-signature: v1,x\r\n",
        now.as_secs()
    );
    let body = format!("{claim}content-length: 60000\r\n\r\nslow");
    // More connections than it keeps, each with half a request.
    let mut held = Vec::new();
    for number in 0..300 {
        let mut stream = connect();
        let half = match number % 3 {
            0 => "POST /webhook HTTP/1.1\r\nhost: x\r\nx-slow: ",
            1 => &body,
            _ => "",
        };
        // Those that gave way may be closed already.
        let _cut = stream.write_all(half.as_bytes());
        held.push(stream);
    }
    let good = Delivery::signed(&server, &json!({"id": "msg_1", "event": "whe_1"}));
    let began = Instant::now();
    assert_eq!(good.send(port).0, 200);
    // Half a request is waited for five seconds.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let sockets = format!("/proc/{}/fd", worker.pid());
    let open = || fs::read_dir(&sockets).expect("it runs").count();
    // Those that gave way are closed as soon as their tasks have their turn.
    assert!(wait_for(Duration::from_secs(2), || open() < 200), "{} descriptors", open());
    // They end by themselves, though one byte comes every second.
    let mut slow = connect();
    slow.write_all(format!("{claim}content-length: 999\r\n\r\n").as_bytes()).expect("sent");
    let began = Instant::now();
    let ended = wait_for(Duration::from_secs(25), || {
        sleep(Duration::from_secs(1));
        slow.write_all(b"x").is_err()
    });
    assert!(ended, "still open after {:?}", began.elapsed());
    drop(held);
    let large_head =
        format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx-a: {}\r\n\r\n", "a".repeat(64 << 10));
    assert!([0, 431].contains(&status(&raw(port, large_head.as_bytes()))));
    let many = "x-a: b\r\n".repeat(100);
    let many = format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{many}\r\n");
    assert!([0, 431].contains(&status(&raw(port, many.as_bytes()))));
    let large = format!("{claim}content-length: {}\r\n\r\n{}", 2 << 20, "x".repeat(2 << 20));
    assert!([0, 413].contains(&status(&raw(port, large.as_bytes()))), "too large");
    let (_, bare) = large.split_once("webhook-id").expect("a header");
    let bare = format!("POST /webhook HTTP/1.1\r\nhost: x\r\nno{bare}");
    assert!([0, 401].contains(&status(&raw(port, bare.as_bytes()))), "not even looked at");
    let endless = format!(
        "{claim}transfer-encoding: chunked\r\n\r\n{}",
        format!("10000\r\n{}\r\n", "x".repeat(0x10000)).repeat(20)
    );
    assert!([0, 413].contains(&status(&raw(port, endless.as_bytes()))), "too large in chunks");
    let twice = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".repeat(5);
    let answers = raw(port, &twice);
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "one request each: {answers}");
    for nonsense in
        ["\r\n\r\n", "\0\0\0\0\0\0\0\0\r\n\r\n", "GET\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let answer = raw(port, nonsense.as_bytes());
        assert!([0, 400, 404, 505].contains(&status(&answer)), "{nonsense:?}: {answer}");
    }
    let good = Delivery::signed(&server, &json!({"id": "msg_2", "event": "whe_2"}));
    assert_eq!(good.send(port).0, 200, "it still answers");
    let ran = worker.stop().ended(0);
    assert!(ran.stderr.len() < 64 << 10, "the log is bounded: {} bytes", ran.stderr.len());
}

#[test]
fn tls_is_spoken_where_it_is_asked_for() {
    let poll = |port| {
        let poll = serve(level(), port);
        let home = poll.home();
        let (chain, key) = (home.join("chain.pem"), home.join("tls.pem"));
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
            ])
            .args([
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost",
            ])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&chain)
            .output()
            .expect("cannot run openssl");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        give(&chain, level());
        give(&key, level());
        (poll.path("--tls-cert", &chain).path("--tls-key", &key), chain, key)
    };
    let port = free_port();
    let server = server(port);
    let (started, chain, _) = poll(port);
    let worker = listening(started, &server);
    let url = format!("https://localhost:{port}/healthz");
    let leads_to = format!("localhost:{port}:{}", host());
    let curl = |more: &[&str]| {
        let mut asked = Command::new("curl");
        let output = asked
            .args(["-sS", "--max-time", "10", "--resolve", &leads_to])
            .args(more)
            .arg(&url)
            .output();
        String::from_utf8_lossy(&output.expect("cannot run curl").stdout).into_owned()
    };
    assert_eq!(curl(&["--cacert", chain.to_str().expect("text")]), "ok\n");
    assert_eq!(curl(&[]), "", "control: nobody vouches for it");
    let plain = raw(port, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(!plain.contains("ok"), "without TLS nothing is answered: {plain:?}");
    worker.stop().ended(0);
    // A key that others can read, and one that is not the certificate's.
    let (refused, _, key) = poll(port);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("cannot chmod");
    let ran = refused.serve(&server).wait().ended(9);
    assert!(ran.stderr.contains("the TLS key file"), "{}", ran.stderr);
    let (refused, chain, _) = poll(port);
    fs::write(&chain, "no certificate").expect("written");
    let ran = refused.serve(&server).wait().ended(3);
    assert!(ran.stderr.contains("certificate chain"), "{}", ran.stderr);
}

#[test]
fn what_is_missing_or_wrong_is_said_before_any_request() {
    // HOOK-2, AUTH-9, CLI-3.
    let port = free_port();
    let server = Devserver::start();
    let fresh = || Poll::at(level()).command(&["serve", "--jail"]);
    let listen = format!("{}:{port}", host());
    let variable = "ANTHROPIC_WEBHOOK_SIGNING_KEY";
    let with_key = |key: &str| fresh().variable(variable, key).options(["--listen", &listen]);
    #[rustfmt::skip]
    let cases = [
        (fresh(),                                2, "no webhook signing key given"),
        (with_key(""),                           2, "no webhook signing key given"),
        (with_key("whsec_"),                     3, "it is empty"),
        (with_key("whsec_%%%"),                  3, "not base64"),
        (with_key("a b"),                        3, "not a printable"),
        (with_key(KEY).options(["--webhook-path", "x"]), 2, "--webhook-path"),
        (with_key(KEY).options(["--tls-cert", "x"]),     2, "--tls-key"),
        (with_key(KEY).options(["--safety-poll", "5"]),  2, "--safety-poll"),
        (with_key(KEY).command(&["serve"]),      2, "without a jail"),
        (fresh().variable(variable, KEY).options(["--listen", "192.0.2.1:1"]), 2, "cannot listen"),
    ];
    for (poll, code, words) in cases {
        let ran = poll.serve(&server).wait().ended(code);
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
        assert!(!ran.stderr.contains("C2FVsBQI") && !ran.stderr.contains("%%%"), "AUTH-8");
    }
    let poll = serve(level(), port);
    let file = poll.home().join("webhook-key");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o604)).expect("cannot chmod");
    let ran = poll.serve(&server).wait().ended(9);
    assert!(ran.stderr.contains("the webhook signing key file"), "{}", ran.stderr);
    assert_eq!(server.report()["requests"].as_object().map_or(0, |all| all.len()), 0);
}

#[test]
fn the_signing_key_stays_in_no_environment_and_a_drain_sends_deliveries_away() {
    // INV-1, AUTH-10, SHUT-2.
    for level in Level::here() {
        let port = free_port();
        let server = server(port);
        let poll = Poll::at(level)
            .command(&["serve", "--jail"])
            .variable("ANTHROPIC_WEBHOOK_SIGNING_KEY", KEY)
            .options(["--listen", &format!("{}:{port}", host())]);
        let worker = listening(poll, &server);
        let mut play = session("one", [json!({"bash": "sleep 3; echo done", "wait": false})]);
        play["end"] = json!("open");
        server.push(&play);
        worker.wait_for_event("call.starting", SOON);
        for pid in worker.processes() {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&environ).contains(KEY), "INV-1: {pid}");
        }
        worker.signal("TERM");
        worker.wait_for_event("worker.draining", SOON);
        let ready = raw(port, b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n");
        assert_eq!(status(&ready), 503, "{ready}");
        let late = Delivery::signed(&server, &json!({"id": "msg_9", "event": "whe_9"}));
        assert_eq!(late.send(port).0, 503, "sent again later");
        let ran = worker.wait().ended(0);
        let call = &server.report()["sessions"][0]["calls"][0];
        assert_eq!(call["is_error"], false, "the call under way has finished: {}", ran.stderr);
    }
}

#[test]
fn sighup_reads_the_environment_key_again() {
    // AUTH-1.
    let port = free_port();
    let server = server(port);
    let poll = serve(level(), port);
    let file = secret(level(), &poll.home(), "key", &server.variables()[2].1);
    let worker = listening(poll.path("--environment-key-file", &file), &server);
    worker.signal("HUP");
    worker.wait_for_event("key.reloaded", SOON);
    server.push(&session("one", [gives(bash("echo 1"), "1")]));
    server.wait_done(SOON);
    let ran = worker.stop().ended(0);
    passed(server.end(), &ran.stderr);
}
