//! Plain HTTP: every request of a connection names the host it was opened for, and a server never sees
//! one that could be read as two. INV-8; jail.md 1.5 rule 3, product.md 3.4.

use e2e::lab::rows::{denied, gives, hello, http, talk, with};
use e2e::lab::{Lab, policy};
use e2e::policy::PolicyFile;
use e2e::{Level, Need, require};
use serde_json::{Value, json};

const API: &str = "api.example.test";
const OTHER: &str = "other.example.test";
const OK: &str = "ok from 203.0.113.10:80";

fn plain() -> PolicyFile {
    policy(
        r#"allow = ["api.example.test:80", "api.example.test:8080", "raw.example.test:80", "raw.example.test:7000"]"#,
    )
}

/// Requests that any server of the laboratory saw: target and Host lines.
fn requests(lab: &Lab) -> Vec<(String, Vec<String>)> {
    let seen = lab.heard().into_iter().filter(|line| line["what"] == "request");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let hosts = |line: &Value| line["hosts"].as_array().into_iter().flatten().map(text).collect();
    seen.map(|line| (text(&line["target"]), hosts(&line))).collect()
}

/// Only requests to the allowed host, and none that was smuggled.
fn only_ours(lab: &Lab) {
    for (target, hosts) in requests(lab) {
        let ours = |host: &String| {
            let host = host.to_lowercase();
            matches!(
                host.as_str(),
                "api.example.test"
                    | "api.example.test:80"
                    | "api.example.test:8080"
                    | "api.example.test."
            )
        };
        assert!(hosts.len() == 1 && hosts.iter().all(ours), "INV-8: {target} for {hosts:?}");
        assert!(!target.contains("smuggled") && !target.contains(OTHER), "INV-8: {target}");
    }
    let raw: Vec<Value> = lab.heard_by("203.0.113.12:80", "bytes");
    let text: String = raw.iter().filter_map(|line| line["text"].as_str()).collect();
    assert!(!text.contains(OTHER), "INV-8: {text}");
}

#[test]
fn every_request_names_the_host_it_was_opened_for() {
    let lab = Lab::standard();
    let get = "GET /ok HTTP/1.1";
    let host = |name: &str| format!("Host: {name}");
    let (api, other) = (host(API), host(OTHER));
    let absolute = |name: &str| format!("GET http://{name}/ok HTTP/1.1");
    #[rustfmt::skip]
    let rows = [
        gives(http(API, &[get, &api]), OK),
        gives(http(API, &[get, &host("API.Example.TEST")]), OK),
        gives(http(API, &[get, &host("api.example.test:80")]), OK),
        gives(http(API, &[get, &host("api.example.test.")]), OK),
        gives(http(API, &[&absolute(API), &api]), OK),
        gives(http(API, &["POST /ok HTTP/1.1", &api, "Content-Length: 0"]), OK),
        denied(http(API, &[get, &other])),
        denied(http(API, &[get, &host("203.0.113.10")])),
        denied(http(API, &[get, &host("api.example.test:81")])),
        denied(http(API, &[get, &host("api.example.test@other.example.test")])),
        denied(http(API, &[get, &host("api.example.test, other.example.test")])),
        denied(http(API, &[get, &host("")])),
        denied(http(API, &[get, "X: y"])),
        denied(http(API, &[get, &api, &other])),
        denied(http(API, &[get, &other, &api])),
        denied(http(API, &[get, &api, &api])),
        denied(http(API, &[get, &api, "hOsT : other.example.test"])),
        denied(http(API, &[get, &api, " folded: x"])),
        denied(http(API, &["GET /ok HTTP/1.0"])),
        denied(http(API, &[&absolute(OTHER), &api])),
        denied(http(API, &[&absolute(API), &other])),
        denied(http(API, &[&absolute(OTHER), &other])),
        denied(http(API, &["GET http://api.example.test@other.example.test/ok HTTP/1.1", &api])),
        denied(http(API, &["GET ftp://api.example.test/ok HTTP/1.1", &api])),
        denied(http(API, &[&format!("CONNECT {OTHER}:443 HTTP/1.1"), &api])),
        denied(http(API, &[&format!("CONNECT {OTHER}:443 HTTP/1.1"), &format!("Host: {OTHER}:443")])),
        denied(http(API, &["CONNECT api.example.test:80 HTTP/1.1", &host("api.example.test:80")])),
        denied(http(API, &["GET /ok HTTP/1.1\r\nX: a\nHost: other.example.test", &api])),
        // Not HTTP.
        denied(talk("raw.example.test", 80, "SSH-2.0-lab\r\n")),
        denied(hello("raw.example.test", 80, json!([["raw.example.test"]]))),
        // On a port for anything, HTTP is still checked.
        denied(talk("raw.example.test", 7000, "GET / HTTP/1.1\r\nHost: other.example.test\r\n\r\n")),
        gives(talk(API, 8080, "GET /ok HTTP/1.1\r\nHost: api.example.test:8080\r\n\r\n"), "ok from"),
        denied(talk(API, 8080, "GET /ok HTTP/1.1\r\nHost: other.example.test:8080\r\n\r\n")),
    ];
    lab.check_then(&plain(), &rows, |lab| {
        only_ours(lab);
        assert_eq!(requests(lab).len(), 7, "{:?}", requests(lab));
    });
}

#[test]
fn a_later_request_of_a_connection_cannot_go_elsewhere() {
    let lab = Lab::standard();
    let request = |host: &str, path: &str| format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let two = request(API, "/ok") + &request(OTHER, "/smuggled");
    let same = request(API, "/ok") + &request(API, "/second");
    let ask = |send: Value, pause: f64| json!({"act": "talk", "host": API, "port": 80, "send": send, "pause": pause, "hold": 1.0});
    let acts = [
        ask(json!(two), 0.0),
        ask(json!([request(API, "/ok"), request(OTHER, "/smuggled")]), 0.2),
        ask(json!(same), 0.0),
    ];
    for level in Level::here() {
        lab.forget();
        let got = lab.inside(level, &plain(), &acts);
        for (act, got) in acts.iter().zip(&got) {
            let text = got["text"].as_str().unwrap_or_default();
            assert!(text.contains(OK), "{level:?} {act}: the first request is answered: {got}");
        }
        only_ours(&lab);
        let targets: Vec<String> = requests(&lab).into_iter().map(|(target, _)| target).collect();
        assert_eq!(targets, ["/ok", "/ok", "/ok", "/second"], "{level:?}");
    }
    lab.outside(&acts[..1]);
    assert!(requests(&lab).iter().any(|(target, _)| target == "/smuggled"), "control");
}

#[test]
fn bodies_whose_length_can_be_read_in_two_ways_reach_nobody() {
    // Request smuggling: RFC 9112, 6.1 and 11.2.
    let lab = Lab::standard();
    let hidden = "GET /smuggled HTTP/1.1\r\nHost: other.example.test\r\n\r\n";
    let head = |lines: &str, body: &str| {
        format!("POST /ok HTTP/1.1\r\nHost: api.example.test\r\n{lines}\r\n{body}{hidden}")
    };
    let length = hidden.len();
    let chunked = "Transfer-Encoding: chunked\r\n";
    let cases = [
        head(&format!("Content-Length: {}\r\n{chunked}", 5 + length), "0\r\n\r\n"),
        head(&format!("{chunked}Content-Length: 5\r\n"), "0\r\n\r\n"),
        head(&format!("Content-Length: 0\r\nContent-Length: {length}\r\n"), ""),
        head(&format!("Content-Length: {length}, 0\r\n"), ""),
        head(&format!("Content-Length: +{length}\r\n"), ""),
        head(&format!("Content-Length: 0x{length:x}\r\n"), ""),
        head(&format!("Content-Length : {length}\r\n"), ""),
        head("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        head("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
        head("Transfer-Encoding: identity, chunked\r\n", "0\r\n\r\n"),
        head(&format!("{chunked}{chunked}"), "0\r\n\r\n"),
        head("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        head("Transfer-Encoding:\u{b}chunked\r\n", "0\r\n\r\n"),
        head("X: y\r\n Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        head(chunked, "0;\n\r\n\r\n"),
        head(chunked, "1\nx\n0\n\n"),
        head(chunked, "-1\r\n\r\n0\r\n\r\n"),
        head(chunked, "fffffffffffffffff\r\n\r\n"),
        head(chunked, "0x5\r\nhello\r\n0\r\n\r\n"),
        head(chunked, "3\r\nhello\r\n0\r\n\r\n"),
    ];
    let acts: Vec<Value> = cases
        .iter()
        .map(|text| json!({"act": "talk", "host": API, "port": 80, "send": text, "hold": 0.3}))
        .collect();
    for level in Level::here() {
        lab.forget();
        lab.inside(level, &plain(), &acts);
        only_ours(&lab);
    }
    // A body that is what it says passes, and is not taken for a request.
    let right = [
        format!("POST /ok HTTP/1.1\r\nHost: {API}\r\nContent-Length: {length}\r\n\r\n{hidden}"),
        format!(
            "POST /ok HTTP/1.1\r\nHost: {API}\r\n{chunked}\r\n{length:x}\r\n{hidden}\r\n0\r\n\r\n"
        ),
    ];
    let acts: Vec<Value> = right.iter().map(|text| talk(API, 80, text)).collect();
    for level in Level::here() {
        lab.forget();
        for got in lab.inside(level, &plain(), &acts) {
            assert!(got["text"].as_str().is_some_and(|text| text.contains(OK)), "{level:?}: {got}");
        }
        let bodies: Vec<Value> = lab.heard_by("203.0.113.10:80", "request");
        assert!(bodies.iter().all(|line| line["body"] == hidden), "{level:?}: {bodies:?}");
    }
    // The control: the server of the laboratory can be fooled.
    lab.forget();
    let acts = [json!({"act": "talk", "host": API, "port": 80, "send": cases[1], "hold": 0.3})];
    lab.outside(&acts);
    assert!(requests(&lab).iter().any(|(target, _)| target == "/smuggled"), "control");
}

#[test]
fn a_refusal_over_plain_http_says_what_it_is() {
    // product.md 3.4, channel 1.
    let lab = Lab::standard();
    let acts = [
        http(API, &["GET /ok?secret=1 HTTP/1.1", "Host: other.example.test"]),
        http("203.0.113.11", &["GET /ok HTTP/1.1", "Host: other.example.test"]),
    ];
    // To its end, not only to the word that says what it is.
    let acts = acts.map(|act| with(act, json!({"until": []})));
    for level in Level::here() {
        for (act, got) in acts.iter().zip(lab.inside(level, &plain(), &acts)) {
            let text = got["text"].as_str().unwrap_or_default();
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
            assert!(head.starts_with("HTTP/1.1 403 "), "{level:?} {act}: {got}");
            assert!(
                head.to_lowercase().contains("x-jail-decision: deny"),
                "{level:?} {act}: {head}"
            );
            let body: Value =
                serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {got}"));
            assert_eq!(body["error"], "egress_denied", "{level:?}: {body}");
            assert_eq!(body["retryable"], false, "{level:?}: {body}");
            assert!(!text.contains("secret"), "INV-12 {level:?}: {text}");
        }
    }
}

#[test]
fn variables_for_http_proxies_make_no_difference() {
    // product.md 2B 11: clients that ignore them work, and wrong ones lead nowhere else.
    require!(Need::Tool("curl"));
    let lab = Lab::standard();
    let policy =
        policy(r#"allow = ["api.example.test", "api.example.test:80", "raw.example.test:80"]"#);
    let script = r#"
        env | grep -i proxy && echo "variables came in"
        try() { echo "$1 $(curl -sS -m 5 "${@:2}" 2>&1 | tr '\n' ' ')"; }
        try unset http://api.example.test/ok
        export http_proxy=http://127.0.0.1:3128 https_proxy=http://127.0.0.1:3128
        try wrong http://api.example.test/ok
        try wrong-tls https://api.example.test/ok
        export http_proxy=http://other.example.test:80 https_proxy=http://203.0.113.11:80
        try forbidden http://api.example.test/ok
        try forbidden-tls https://api.example.test/ok
        export http_proxy=http://api.example.test:80 https_proxy=http://api.example.test:80
        try absolute http://other.example.test/ok
        try tunnel https://other.example.test/ok
        try socks --socks5-hostname api.example.test:80 http://other.example.test/ok
        export no_proxy='*'
        try h2c --http2-prior-knowledge -H 'Host: other.example.test' http://api.example.test/ok
        try none http://api.example.test/ok
        try none-tls https://api.example.test/ok
        try denied http://other.example.test/ok
    "#;
    let line = |said: &str, name: &str| {
        let start = format!("{name} ");
        said.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or("nothing").to_owned()
    };
    for level in Level::here() {
        lab.forget();
        let exec = lab.exec(level, &policy).caller_env("http_proxy", "http://203.0.113.11:80");
        let run = exec.caller_env("HTTPS_PROXY", "http://203.0.113.11:80").bash(script);
        assert!(!run.stdout.contains("variables came in"), "INV-13 {level:?} {}", run.text());
        for (name, works) in [
            ("unset", true),
            ("wrong", false),
            ("wrong-tls", false),
            ("forbidden", false),
            ("forbidden-tls", false),
            ("absolute", false),
            ("tunnel", false),
            ("socks", false),
            ("h2c", false),
            ("none", true),
            ("none-tls", true),
            ("denied", false),
        ] {
            let said = line(&run.stdout, name);
            assert_eq!(said.contains("ok from"), works, "{level:?} {name}: {said} {}", run.text());
        }
        only_ours(&lab);
        let reached = lab.heard().into_iter().filter(|line| line["what"] == "accept");
        for line in reached {
            assert!(
                line["on"].as_str().is_some_and(|on| on.contains("::10:") || on.contains(".10:")),
                "INV-8: {line}"
            );
        }
    }
    let (said, told) = lab.run(&["bash", "-c", script]);
    // The control: this host is an HTTP proxy to whoever may reach it.
    assert!(line(&said, "absolute").contains("ok from"), "control: {said} {told}");
    assert!(line(&said, "denied").contains("ok from 203.0.113.11"), "control: {said} {told}");
}
