//! Metrics from end to end (OBS-6): what a scraper reads of a worker, what it must not read, and an
//! address that cannot be had.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use e2e::play::{SOON, bash, passed, session};
use e2e::poll::wait_for;
use e2e::{Devserver, Level, Poll, Worker};
use serde_json::json;

const PLANTED: &str = "planted-41f6c2";

fn measured(level: Level) -> Poll {
    Poll::at(level).options(["--metrics-listen", "127.0.0.1:0"])
}

/// Where the worker answers.
fn address(worker: &Worker) -> SocketAddr {
    worker.wait_for_event("metrics.listening", SOON);
    let said = worker.said();
    let line = said.lines().find(|line| line.contains("\"metrics.listening\"")).expect("said");
    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
    line["address"].as_str().expect("a text").parse().expect("an address")
}

/// The whole answer to a request.
fn ask(at: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(at).expect("it listens");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// Name with labels, and value. Labels come in no order, and each series here has two at most.
struct Scraped {
    text: String,
    values: BTreeMap<String, f64>,
}

impl Scraped {
    fn of(at: SocketAddr) -> Scraped {
        let answer = ask(at, "GET", "/metrics");
        assert_eq!(status(&answer), 200, "{answer}");
        let (head, text) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let pair = |line: &str| {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            (name.to_owned(), value.parse().expect("a number"))
        };
        let values = lines.map(pair).collect();
        Scraped { text: text.to_owned(), values }
    }

    /// The value of the series with this name that has all of `labels`.
    fn get(&self, name: &str, labels: &[&str]) -> f64 {
        self.find(name, labels).unwrap_or_else(|| panic!("{name} {labels:?} in\n{}", self.text))
    }

    /// The same; `None` before the first of its kind.
    fn find(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let is_it = |key: &&String| {
            let own = key.split('{').next() == Some(name);
            own && labels.iter().all(|label| key.contains(label))
        };
        let found: Vec<_> = self.values.keys().filter(is_it).collect();
        assert!(found.len() < 2, "{name} {labels:?} is {found:?}");
        found.first().map(|key| self.values[*key])
    }
}

#[test]
fn what_happens_to_a_session_is_counted() {
    // OBS-6, INV-12.
    for level in Level::here() {
        let server = Devserver::with("[server]\nttl_seconds = 4", &["--keep-results"]);
        for fault in [
            json!({"on": "poll", "do": "503", "nth": 2}),
            json!({"on": "heartbeat", "do": "500", "nth": 2}),
            json!({"on": "send", "do": "503"}),
            json!({"on": "stream", "do": "eof", "after": 3}),
        ] {
            server.fault(&fault);
        }
        let worker = measured(level).options(["--max-sessions", "3"]).serve(&server);
        let at = address(&worker);
        let idle = || Scraped::of(at).get("worker_polls_total", &["outcome=\"empty\""]) >= 1.0;
        assert!(wait_for(SOON, idle), "{}", Scraped::of(at).text);
        let before = Scraped::of(at);
        for name in
            ["worker_items_active", "worker_heartbeat_age_seconds", "worker_shutdown_seconds"]
        {
            assert_eq!(before.get(name, &[]), 0.0, "{name}");
        }
        assert_eq!(before.get("worker_session_slots", &[]), 3.0);
        let policy = format!("level=\"{}\"", level.name());
        assert_eq!(before.get("worker_info", &["version=\"", &policy, "policy_sha256=\""]), 1.0);
        assert_eq!(before.get("worker_claims_total", &["outcome=\"acked\""]), 0.0);

        let read = json!({"tool": "read", "input": {"file_path": "/none"}});
        let mut slow = bash("sleep 3; echo done");
        slow["wait"] = json!(false);
        let mut play = session(
            "one",
            [bash(&format!("echo {PLANTED}")), bash("sleep 0.3; false"), read, slow],
        );
        play["end"] = json!("open");
        let id = server.push(&play).remove(0);
        let runs = || worker.said().matches("\"call.starting\"").count() == 4;
        assert!(wait_for(SOON, runs), "{}", worker.said());
        let retried =
            || Scraped::of(at).get("worker_heartbeats_total", &["outcome=\"failed\""]) > 0.0;
        assert!(wait_for(SOON, retried), "{}", Scraped::of(at).text);
        let busy = Scraped::of(at);
        assert_eq!(busy.get("worker_items_active", &[]), 1.0);
        assert_eq!(busy.get("worker_claims_total", &["outcome=\"acked\""]), 1.0);
        assert_eq!(busy.get("worker_polls_total", &["outcome=\"work\""]), 1.0);
        assert_eq!(busy.get("worker_polls_total", &["outcome=\"failed\""]), 1.0);
        let age = busy.get("worker_heartbeat_age_seconds", &[]);
        assert!(age > 0.0 && age < 4.0, "{age}");
        let polled = busy.get("worker_poll_last_success_timestamp_seconds", &[]);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.expect("after 1970").as_secs_f64();
        assert!(polled > now - 60.0 && polled <= now, "{polled}");
        let (bash, read) = ("tool=\"bash\"", "tool=\"read\"");
        assert_eq!(busy.get("worker_tool_calls_total", &[bash, "outcome=\"ok\""]), 1.0);
        assert_eq!(busy.get("worker_tool_calls_total", &[bash, "outcome=\"error\""]), 1.0);
        assert_eq!(busy.get("worker_tool_calls_total", &[read, "outcome=\"error\""]), 1.0);
        assert_eq!(busy.get("worker_tool_seconds_count", &[bash]), 2.0);
        let took = busy.get("worker_tool_seconds_sum", &[bash]);
        assert!(took >= 0.3, "{took}");
        assert_eq!(busy.get("worker_tool_seconds_bucket", &[bash, "le=\"0.1\""]), 1.0);
        assert_eq!(busy.get("worker_result_post_retries_total", &[]), 1.0);
        assert!(busy.get("worker_stream_reconnects_total", &[]) >= 1.0);

        worker.signal("TERM");
        worker.wait_for_event("worker.draining", SOON);
        let ends = Scraped::of(at);
        assert!(ends.get("worker_shutdown_seconds", &[]) > 0.0);
        assert_eq!(status(&ask(at, "GET", "/readyz")), 503);
        assert_eq!(status(&ask(at, "GET", "/healthz")), 200);
        for secret in [PLANTED, &id, "work_0", "env_dev", &server.variables()[2].1] {
            assert!(!ends.text.contains(secret), "{secret} in\n{}", ends.text);
        }
        let ran = worker.wait().ended(0);
        passed(server.end(), &ran.stderr);
        let took = ran.events("worker.stopped")[0]["shutdown_ms"].as_u64().expect("a number");
        assert!(u128::from(took) <= ran.elapsed.as_millis(), "{took}");
        TcpStream::connect(at).expect_err("nobody listens any more");
    }
}

#[test]
fn a_lost_lease_and_a_result_that_is_refused_are_counted() {
    // OBS-6.
    let server = Devserver::with("[server]\nttl_seconds = 2", &["--keep-results"]);
    let mut refused = session("refused", [bash("true")]);
    refused["calls"][0]["wait"] = json!(false);
    server.fault(&json!({"on": "send", "do": "400"}));
    refused["calls"] = json!([refused["calls"][0], {"delay_ms": 1000}]);
    server.push(&refused);
    let worker = measured(Level::here()[0]).serve(&server);
    let at = address(&worker);
    let counts = |name: &str, label: &str| {
        wait_for(SOON, || Scraped::of(at).find(name, &[label]) == Some(1.0))
    };
    assert!(counts("worker_result_posts_failed_total", "refused"), "{}", Scraped::of(at).text);
    assert!(counts("worker_items_total", "session_ended"), "{}", Scraped::of(at).text);
    let mut lost = session("lost", [bash("sleep 33"), json!({"delay_ms": 3000})]);
    lost["calls"][0]["wait"] = json!(false);
    server.push(&lost);
    worker.wait_for_sleep("33", SOON);
    server.fault(&json!({"on": "heartbeat", "do": "412"}));
    assert!(counts("worker_lease_lost_total", "reason=\"lost\""), "{}", Scraped::of(at).text);
    assert!(counts("worker_items_total", "lease_lost"), "{}", Scraped::of(at).text);
    assert!(counts("worker_tool_calls_total", "killed"), "{}", Scraped::of(at).text);
    worker.stop();
}

#[test]
fn the_endpoint_answers_get_and_nothing_else_and_only_where_it_is_asked_to() {
    // OBS-6, INV-11.
    let server = Devserver::start();
    let worker = measured(Level::here()[0]).serve(&server);
    let at = address(&worker);
    for (method, path, want) in [
        ("GET", "/metrics", 200),
        ("HEAD", "/metrics", 200),
        ("POST", "/metrics", 405),
        ("GET", "/readyz", 200),
        ("DELETE", "/healthz", 405),
        ("GET", "/", 404),
        ("GET", "/metrics/../etc/passwd", 404),
    ] {
        assert_eq!(status(&ask(at, method, path)), want, "{method} {path}");
    }
    // Whoever says nothing holds nobody up.
    let silent: Vec<_> = (0..200).map(|_| TcpStream::connect(at).expect("accepted")).collect();
    Scraped::of(at);
    drop(silent);
    worker.stop().ended(0);

    // The address of another program.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let ran = Poll::at(Level::here()[0]).options(["--metrics-listen", &address]).serve(&server);
    let ran = ran.wait().ended(2);
    assert!(ran.stderr.contains(&format!("error: cannot listen on {address}")), "{}", ran.stderr);
    assert!(ran.stderr.contains("--metrics-listen"), "{}", ran.stderr);
    assert!(server.report()["requests"]["poll"]["count"].as_u64() < Some(1_000));
    // The control: without the option there is no listener.
    let quiet = Poll::at(Level::here()[0]).serve(&server);
    quiet.wait_for_event("worker.started", SOON);
    std::thread::sleep(Duration::from_millis(300));
    assert!(!quiet.said().contains("metrics.listening"), "{}", quiet.said());
    quiet.stop().ended(0);
}
