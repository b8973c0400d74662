//! Many sessions at once on a small machine (design §10): all complete, and no heartbeat is late.

use std::time::Duration;

use e2e::play::{bash, gives, passed, session};
use e2e::{Devserver, Level, Poll, lock};
use serde_json::{Value, json};

const SESSIONS: usize = 50;

/// The largest of a number of all holders.
fn largest(report: &Value, name: &str) -> u64 {
    let work = report["work"].as_array().expect("a list");
    let holders = work.iter().flat_map(|item| item["holders"].as_array().into_iter().flatten());
    holders.filter_map(|holder| holder[name].as_u64()).max().unwrap_or_default()
}

#[test]
fn fifty_sessions_at_once_complete_and_no_heartbeat_is_late() {
    // LEASE-17, TOOL-GEN-5: neither a shell nor a file tool holds a heartbeat up. By itself,
    // because jails of other tests do.
    let _turn = lock::alone();
    for level in Level::here() {
        let server = Devserver::with("[server]\nttl_seconds = 2", &[]);
        let mut many = session(
            "many",
            [
                gives(
                    json!({"write": {"file_path": "f", "content": "some text"}}),
                    "wrote 9 bytes to f",
                ),
                gives(bash("sleep 1; cat f"), "some text"),
                gives(json!({"grep": "text"}), "/workspace/f:1:some text"),
                gives(bash("sleep 1; pwd"), "/workspace"),
            ],
        );
        many["copies"] = json!(SESSIONS);
        server.push(&many);
        let sessions = SESSIONS.to_string();
        let worker = Poll::at(level).alone().options(["--max-sessions", &sessions]).serve(&server);
        server.wait_done(Duration::from_secs(60));
        let ran = worker.stop().ended(0);
        let report = passed(server.end(), &ran.stderr);
        assert_eq!(report["latency_us"]["count"], 4 * SESSIONS);
        let late = largest(&report, "heartbeat_late_max_us");
        eprintln!(
            "{}: {} us late at most, {} us in all",
            level.name(),
            late,
            report["duration_us"]
        );
        assert!(late < 1_000_000, "a heartbeat was {late} us late");
        assert!(largest(&report, "heartbeats") >= 2, "the sessions were too short to tell");
        assert_eq!(ran.audited("session.disposed").len(), SESSIONS);
    }
}
