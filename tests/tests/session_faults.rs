//! What goes wrong on the way to the control plane, from end to end: nothing is run twice, nothing
//! is posted or stopped that is not the worker's any more (protocol §3 to §5, INV-9).

use std::time::Duration;

use e2e::play::{SOON, bash, expect, gives, passed, play_with, session};
use e2e::poll::wait_for;
use e2e::{Devserver, Level, Poll, Worker};
use serde_json::{Value, json};

/// The level with the most that can go wrong.
fn level() -> Level {
    Level::here()[0]
}

/// Calls that each add a line to a file and count the lines: a call that ran twice shows.
fn counting(name: &str, extra: Value) -> Value {
    let call = |n: usize| gives(bash("echo x >> ran; wc -l < ran"), &n.to_string());
    let mut session = session(name, (1..=4).map(call));
    session["message"] = json!("please");
    let extra = extra.as_object().cloned().unwrap_or_default();
    session.as_object_mut().expect("a table").extend(extra);
    session
}

/// One counting session for each fault that it meets.
fn each_fault(script: &str, faults: &[Value], extra: &Value) -> e2e::play::Played {
    let sessions: Vec<Value> = faults
        .iter()
        .enumerate()
        .map(|(at, fault)| {
            let name = format!("{at}: {} {}", fault["on"], fault["do"]).replace('"', "");
            let mut session = counting(&name, extra.clone());
            // Known before the session is claimed.
            let mut fault = fault.clone();
            fault["session"] = json!(name);
            session["fault"] = fault;
            session
        })
        .collect();
    let server = Devserver::with(script, &["--keep-results"]);
    for mut session in sessions {
        let fault = session.as_object_mut().expect("a table").remove("fault");
        server.fault(&fault.expect("each has one"));
        server.push(&session);
    }
    let worker = Poll::at(level()).options(["--max-sessions", "8"]).serve(&server);
    server.wait_done(2 * SOON);
    let ran = worker.stop().ended(0);
    let report = passed(server.end(), &ran.stderr);
    assert_eq!(report["faults_waiting"], 0, "a fault did not happen");
    e2e::play::Played { report, ran }
}

#[test]
fn nothing_runs_twice_whatever_happens_to_requests_of_a_session() {
    // INV-9, RUN-5, RUN-24, RUN-28, LEASE-4, LEASE-8, POLL-8.
    let faults = [
        json!({"on": "ack", "do": "reset-after"}),
        json!({"on": "ack", "do": "garbage"}),
        json!({"on": "session", "do": "503"}),
        json!({"on": "session", "do": "slow", "ms": 300}),
        json!({"on": "heartbeat", "do": "500", "times": 2}),
        json!({"on": "heartbeat", "do": "reset"}),
        json!({"on": "heartbeat", "do": "garbage"}),
        json!({"on": "heartbeat", "do": "slow", "ms": 500}),
        json!({"on": "send", "do": "503", "times": 2}),
        json!({"on": "send", "do": "429", "retry_after": "1"}),
        json!({"on": "send", "do": "reset"}),
        json!({"on": "send", "do": "reset-after"}),
        json!({"on": "send", "do": "500-after", "nth": 2}),
        json!({"on": "send", "do": "garbage", "nth": 3}),
        json!({"on": "stop", "do": "503"}),
    ];
    each_fault("[server]\nttl_seconds = 4", &faults, &json!({}));
}

#[test]
fn nothing_runs_twice_whatever_happens_to_the_stream() {
    // RUN-1, RUN-6, RUN-9, RUN-10, SSE-1, SSE-2, SSE-4, SSE-6: dropped, slow, split, doubled, odd, broken.
    let faults = [
        json!({"on": "stream", "do": "503", "times": 2}),
        json!({"on": "stream", "do": "reset", "after": 2}),
        json!({"on": "stream", "do": "eof"}),
        json!({"on": "stream", "do": "eof", "after": 3}),
        json!({"on": "stream", "do": "error-event", "after": 2}),
        json!({"on": "stream", "do": "bad-json", "after": 2}),
        json!({"on": "stream", "do": "split", "ms": 0}),
        json!({"on": "stream", "do": "slow", "ms": 100}),
        json!({"on": "stream", "do": "duplicate"}),
        json!({"on": "stream", "do": "nameless"}),
        json!({"on": "stream", "do": "odd"}),
        json!({"on": "list", "do": "500"}),
        json!({"on": "list", "do": "reset"}),
        json!({"on": "list", "do": "500", "page": 2}),
        json!({"on": "list", "do": "garbage"}),
    ];
    let history = json!({"page_size": 1, "empty_page": 2, "start": "at-once"});
    each_fault("[server]\nttl_seconds = 20\nping_ms = 200", &faults, &history);
}

#[test]
fn events_between_stream_and_list_and_events_that_nobody_knows_are_no_trouble() {
    // RUN-1, RUN-7, RUN-16, API-5, PERM-1…6, THR-1, POLL-13.
    let sessions = [
        session(
            "gap",
            [
                json!({"bash": "echo 1", "gap": true, "expect": {"text": "1"}}),
                json!({"disconnect": true}),
                json!({"bash": "echo 2", "gap": true, "duplicate": true, "expect": {"text": "2"}}),
                json!({"bash": "echo 3", "duplicate": true, "expect": {"text": "3"}}),
            ],
        ),
        session(
            "unknown",
            [
                json!({"emit": {"type": "session.something_new", "x": [1, {"y": null}]}}),
                json!({"emit": {"type": "agent.message", "content": "not a list"}}),
                json!({"emit": {"type": "session.status_dreaming"}}),
                gives(bash("echo still here"), "still here"),
                json!({"server_tool": "web_search", "input": {"query": "x"}, "text": "found"}),
                json!({"custom": "lookup", "id": "theirs", "unowned": true}),
                json!({"tool": "memory_thing", "id": "new", "unowned": true}),
                gives(bash("echo and here"), "and here"),
                json!({"answer": "theirs", "text": "done"}),
                json!({"answer": "new", "text": "done"}),
            ],
        ),
        session(
            "gated",
            [
                json!({"bash": "echo ran >> log", "id": "a", "permission": "ask"}),
                json!({"bash": "echo denied >> log", "id": "b", "permission": "ask"}),
                json!({"bash": "echo strange >> log", "id": "c", "permission": "perhaps"}),
                json!({"bash": "echo never >> log", "id": "d", "permission": "deny"}),
                json!({"bash": "cat log || echo none", "permission": "null", "expect":
                {"contains": "none"}}),
                json!({"deny": "b", "deny_message": "no"}),
                json!({"confirm": "a"}),
                json!({"deny": "c"}),
                json!({"bash": "cat log", "permission": "allow", "expect": {"text": "ran"}}),
            ],
        ),
        session(
            "threads",
            [
                json!({"thread_started": "one"}),
                json!({"thread_started": "two"}),
                json!({"bash": "X=1; echo one", "thread": "one", "expect": {"text": "one"}}),
                json!({"bash": "echo two $X", "thread": "two", "expect": {"text": "two 1"}}),
                json!({"bash": "echo held", "thread": "two", "id": "held", "permission": "ask"}),
                json!({"thread_terminated": "two"}),
                json!({"bash": "echo main $X", "expect": {"text": "main 1"}}),
            ],
        ),
    ];
    let script = "[[work]]\ntype = \"healthcheck\"\n[[work]]\n";
    let played = play_with(level(), script, &sessions, |poll| poll);
    // Theirs, the new one, and the one that the server runs.
    assert_eq!(played.ran.events("call.not_owned").len(), 3);
    let skipped = played.ran.audited("item.ended");
    assert_eq!(skipped.iter().filter(|one| one["reason"] == "skipped").count(), 2);
}

#[test]
fn polls_that_fail_are_repeated_until_there_is_work() {
    // API-1, POLL-4, POLL-6, POLL-15.
    let kinds = ["503", "204", "garbage", "empty-body", "reset", "empty-object"];
    let script: String = kinds
        .iter()
        .enumerate()
        .map(|(at, kind)| {
            format!("[[fault]]\non = \"poll\"\ndo = \"{kind}\"\nnth = {}\n", 2 * at + 1)
        })
        .collect();
    let sessions: Vec<Value> =
        (0..7).map(|at| counting(&format!("session {at}"), json!({}))).collect();
    let played = play_with(level(), &script, &sessions, |poll| poll);
    assert_eq!(played.report["faults_met"], kinds.len());
    // Nothing at all is an empty queue to a worker; nonsense is a failure.
    assert!(played.ran.events("poll.failed").len() >= 3, "{}", played.ran.stderr);
}

/// A session whose only call is under way when its lease ends.
fn in_flight(name: &str, command: &str) -> Value {
    let mut call = bash(command);
    call["wait"] = json!(false);
    let mut session = session(name, [call, json!({"wait_stopped": true, "within_s": 30})]);
    session["message"] = json!("please");
    session
}

fn call_of<'a>(report: &'a Value, name: &str) -> &'a Value {
    let sessions = report["sessions"].as_array().expect("a list");
    &sessions.iter().find(|one| one["name"] == name).expect("a session")["calls"][0]
}

fn holders<'a>(report: &'a Value, name: &str) -> &'a Vec<Value> {
    let sessions = report["sessions"].as_array().expect("a list");
    let id = &sessions.iter().find(|one| one["name"] == name).expect("a session")["id"];
    let work = report["work"].as_array().expect("a list");
    let item = work.iter().find(|item| item["session"] == *id).expect("an item");
    item["holders"].as_array().expect("a list")
}

/// Waits until a call of this session was started.
fn wait_for_call(worker: &Worker, session: &str) {
    let started = |one: &Value| one["event"] == "call.started" && one["session"] == session;
    let holds = || worker.audited().iter().any(started);
    assert!(wait_for(SOON, holds), "{session}: no call: {}", worker.said());
}

#[test]
fn the_way_a_lease_ends_decides_about_the_call_under_way_and_about_the_stop() {
    // LEASE-9, LEASE-12, LEASE-14: a row of the table each.
    let server = Devserver::with("[server]\nttl_seconds = 2", &["--keep-results"]);
    let cases = [
        ("stopping", "stopping", "sleep 2; echo finished"),
        ("stopped", "stopped", "sleep 33"),
        ("not extended", "not-extended", "sleep 33"),
        ("rejected", "403", "sleep 33"),
    ];
    let ids = cases.map(|(name, _, command)| server.push(&in_flight(name, command)).remove(0));
    let worker = Poll::at(level()).serve(&server);
    for ((name, fault, _), id) in cases.iter().zip(&ids) {
        wait_for_call(&worker, id);
        server.fault(&json!({"on": "heartbeat", "do": fault, "session": name}));
    }
    server.wait_done(SOON);
    let ran = worker.stop().ended(0);
    let report = passed(server.end(), &ran.stderr);
    let text = |name| &call_of(&report, name)["result"]["content"][0]["text"];
    assert_eq!(text("stopping"), "finished");
    for name in ["stopped", "not extended", "rejected"] {
        assert_eq!(call_of(&report, name)["answered_us"], Value::Null, "{name}: posted");
    }
    for name in ["stopping", "stopped", "not extended", "rejected"] {
        let holders = holders(&report, name);
        assert_eq!(holders.len(), 1, "{name}");
        assert_eq!(holders[0]["stops"].as_array().map(Vec::len), Some(1), "{name}: stops");
        assert_eq!(holders[0]["stops"][0]["force"], true, "{name}");
    }
    let kept =
        ran.audited("session.disposed").iter().filter(|one| one["session"].is_string()).count();
    assert_eq!(kept, 4, "each jail has its receipt");
}

#[test]
fn a_lost_lease_is_neither_stopped_nor_posted_for_and_its_call_is_not_run_again() {
    // LEASE-6, LEASE-13, INV-9, RACE-1: another claim of the session answers that it is unknown.
    for fault in ["lost", "412"] {
        let server = Devserver::with("[server]\nttl_seconds = 2", &["--keep-results"]);
        let shared = e2e::exec::directory_of(level());
        let mut play = session(
            "lost",
            [
                expect(
                    bash("echo ran >> ran; sleep 33"),
                    json!({"is_error": true, "contains":
                "its outcome is unknown and it was not run again"}),
                ),
                gives(bash("cat ran"), "ran"),
            ],
        );
        play["message"] = json!("please");
        server.push(&play);
        let worker = Poll::at(level()).path("--workdir", shared.path()).serve(&server);
        worker.wait_for_sleep("33", SOON);
        server.fault(&json!({"on": "heartbeat", "do": fault}));
        server.wait_done(SOON);
        let ran = worker.stop().ended(0);
        let report = passed(server.end(), &ran.stderr);
        let holders = holders(&report, "lost");
        assert_eq!(holders.len(), 2, "{fault}");
        assert_eq!(holders[0]["stops"], json!([]), "{fault}: a stop of a lost item");
        assert!(holders[0]["lost_us"].is_u64(), "{fault}");
        assert_eq!(ran.audited("lease.lost").len(), 1, "{fault}");
        let ran = std::fs::read_to_string(shared.path().join("ran")).expect("written");
        assert_eq!(ran, "ran\n", "{fault}");
    }
}

#[test]
fn a_lease_that_cannot_be_kept_is_taken_for_lost() {
    // LEASE-8: no answer for longer than the lease lasts.
    let script = "[server]\nttl_seconds = 2\n";
    let server = Devserver::with(script, &["--keep-results"]);
    server.fault(&json!({"on": "heartbeat", "do": "503", "nth": 2, "times": 3}));
    let mut play = in_flight("cut off", "sleep 33");
    play["calls"][1] = json!({"delay_ms": 6000});
    server.push(&play);
    // With one place the session is not claimed again before its first claim has ended.
    let worker = Poll::at(level()).options(["--max-sessions", "1"]).serve(&server);
    worker.wait_for_event("lease.assumed_lost", SOON);
    server.dev("DELETE", "faults", &Value::Null);
    server.wait_done(SOON);
    let ran = worker.stop().ended(0);
    let report = passed(server.end(), &ran.stderr);
    assert_eq!(holders(&report, "cut off")[0]["stops"], json!([]));
    let lost = ran.audited("lease.lost");
    assert_eq!(lost[0]["cause"], "assumed");
}

#[test]
fn a_key_that_is_refused_ends_the_worker_with_a_reason() {
    // POLL-5, AUTH-1.
    for (status, key) in [("401", Some("sk-ant-oat01-wrong")), ("403", None)] {
        let server = Devserver::start();
        let poll = Poll::at(level());
        let poll = match key {
            Some(key) => poll.variable("ANTHROPIC_ENVIRONMENT_KEY", key),
            None => {
                server.fault(&json!({"on": "poll", "do": status}));
                poll
            }
        };
        let ran = poll.serve(&server).wait().ended(4);
        assert!(ran.stderr.contains("cannot poll"), "{}", ran.stderr);
        assert!(
            ran.stderr.contains("hint: check the environment id and its key"),
            "{}",
            ran.stderr
        );
        assert!(!ran.stderr.contains("sk-ant-oat01-wrong"), "AUTH-8: {}", ran.stderr);
        let stopped = ran.audited("worker.stopped");
        assert_eq!(stopped[0]["reason"], "key_rejected");
    }
}

#[test]
fn a_call_that_waits_for_its_post_is_bounded_by_the_lease() {
    // RUN-24, RUN-25: a result that is refused for good is given up, and the next call runs.
    let server = Devserver::with("", &["--keep-results"]);
    server.fault(&json!({"on": "send", "do": "400"}));
    let mut first = bash("echo ran >> ran");
    first["wait"] = json!(false);
    server.push(&session("refused", [first, gives(bash("cat ran"), "ran")]));
    let worker = Poll::at(level()).serve(&server);
    server.wait_done(SOON);
    let ran = worker.stop().ended(0);
    let report = passed(server.end(), &ran.stderr);
    assert_eq!(call_of(&report, "refused")["answered_us"], Value::Null);
    assert_eq!(ran.audited("call.not_posted").len(), 1);
    assert!(ran.elapsed < Duration::from_secs(30));
}

#[test]
fn what_is_wrong_with_one_session_costs_the_others_nothing() {
    // POLL-15, RACE-21, AUTH-3, RUN-5, RUN-25, SSE-5: 400 to every post, a session that cannot be
    // fetched, a secret of nonsense, an event of ten mebibytes, answers of nonsense; others beside.
    let server = Devserver::with("", &["--keep-results"]);
    for fault in [
        json!({"on": "send", "do": "400", "times": 1000, "session": "refused"}),
        json!({"on": "session", "do": "404", "times": 1000, "session": "unknown"}),
        json!({"on": "ack", "do": "garbage", "session": "garbled"}),
        json!({"on": "heartbeat", "do": "garbage", "times": 2, "session": "garbled"}),
        json!({"on": "send", "do": "garbage", "times": 2, "session": "garbled"}),
    ] {
        server.fault(&fault);
    }
    let mut calls: Vec<Value> = (0..3).map(|n| bash(&format!("echo {n}"))).collect();
    calls.iter_mut().for_each(|call| call["wait"] = json!(false));
    calls.extend([json!({"delay_ms": 1500}), json!({"disconnect": true})]);
    calls.push(json!({"delay_ms": 1500}));
    let refused = server.push(&session("refused", calls));
    let mut unknown = session("unknown", []);
    unknown["message"] = json!("please");
    unknown["start"] = json!("at-once");
    server.push(&unknown);
    let long = json!({"type": "agent.message", "content": "x".repeat(10 << 20)});
    server.push(&session("large", [json!({"emit": long}), gives(bash("echo after"), "after")]));
    server.push(&counting("garbled", json!({})));
    server.push(&counting("secret", json!({"secret": "garbage"})));
    server.push(&counting("good", json!({"copies": 3})));
    let worker = Poll::at(level()).options(["--max-sessions", "4"]).serve(&server);
    server.wait_done(2 * SOON);
    let ran = worker.stop().ended(0);
    let report = passed(server.end(), &ran.stderr);
    let of_refused = |event: &str| {
        ran.audited(event).iter().filter(|one| one["session"] == refused[0].as_str()).count()
    };
    assert_eq!(of_refused("call.started"), 3, "each ran once: {:?}", ran.audit);
    assert_eq!(of_refused("call.not_posted"), 3);
    let sessions = report["sessions"].as_array().expect("a list");
    for session in sessions.iter().filter(|one| one["name"] != "refused") {
        let calls = session["calls"].as_array().expect("a list");
        assert_eq!(calls.is_empty(), session["name"] == "unknown", "{session:#}");
        assert!(calls.iter().all(|call| call["is_error"] == false), "{session:#}");
    }
}
