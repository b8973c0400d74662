//! Work items from claim to stop: with every kind of secret, of sessions that have ended, end in the
//! middle, fall idle and come back, and whose jail dies (AUTH-3, AUTH-4, LEASE-18, RUN-8, RUN-12,
//! IDLE-1 to IDLE-8, INV-9).

use std::process::Command;
use std::time::Duration;

use e2e::play::{SOON, bash, expect, gives, passed, play_with, session};
use e2e::poll::wait_for;
use e2e::{Devserver, Level, Need, Poll, Worker, require};
use serde_json::{Value, json};

fn level() -> Level {
    Level::here()[0]
}

#[test]
fn an_item_is_served_with_whatever_credential_its_secret_gives() {
    // AUTH-3, AUTH-4, AUTH-5.
    let of = |secret: &str| {
        let mut session = session(secret, [gives(bash("echo 1"), "1")]);
        session["secret"] = json!(secret);
        session
    };
    let secrets = ["token", "padded", "none", "garbage"].map(of);
    let played = play_with(level(), "", &secrets, |poll| poll);
    let warned = played.ran.events("work.secret_without_token");
    assert_eq!(warned.len(), 1, "{}", played.ran.stderr);
    let used = &played.report["credentials"];
    assert!(used["sessions_token"].as_u64() > Some(5), "{used}");
    assert!(!played.ran.stderr.contains("no base64"), "AUTH-8");
}

#[test]
fn a_session_that_has_ended_gets_no_jail_and_one_that_ends_loses_its_call() {
    // LEASE-18, RUN-8, RUN-12: nothing is posted to either.
    let mut ended = session("ended", [bash("echo never")]);
    ended["status"] = json!("terminated");
    let under_way = |name: &str, end: Value| {
        let mut call = bash("sleep 55");
        call["wait"] = json!(false);
        session(name, [call, json!({"delay_ms": 700}), end])
    };
    let sessions = [
        ended,
        under_way("terminated", json!({"terminate": true})),
        under_way("deleted", json!({"delete": true})),
    ];
    let played = play_with(level(), "", &sessions, |poll| poll);
    for name in ["terminated", "deleted"] {
        let call = &played.session(name)["calls"][0];
        assert_eq!(call["answered_us"], Value::Null, "{name}: {call}");
    }
    assert_eq!(played.ran.audited("jail.launched").len(), 2);
    assert_eq!(played.ran.audited("session.disposed").len(), 2);
    assert!(played.ran.elapsed < Duration::from_secs(20), "the calls were waited for");
    let ends = played.ran.audited("item.ended");
    assert!(ends.iter().all(|end| end["reason"] == "session_terminated"), "{ends:?}");
}

#[test]
fn an_idle_session_is_let_go_and_gets_a_fresh_jail_when_it_goes_on() {
    // IDLE-1, IDLE-2, IDLE-8.
    let calls = [
        gives(bash("echo 1 > f; sleep 1.5; ls"), "f"),
        json!({"idle": "end_turn"}),
        json!({"wait_stopped": true, "within_s": 10}),
        json!({"message": "more"}),
        gives(bash("ls"), "(no output)"),
        json!({"idle": "retries_exhausted"}),
        json!({"wait_stopped": true, "within_s": 10}),
    ];
    let played = play_with(level(), "", &[session("idle", calls)], |poll| {
        poll.options(["--max-idle", "1s"])
    });
    assert_eq!(played.ran.audited("jail.launched").len(), 2);
    assert!(played.ran.events("session.idle").len() >= 2);
}

/// The process that runs `sleep SECONDS` in a jail, and everything above it up to the worker.
fn ancestry(worker: &Worker, seconds: &str) -> Option<Vec<u32>> {
    let words = format!("sleep\0{seconds}\0");
    let runs = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok() == Some(words.clone())
    };
    let mut line = vec![worker.processes().into_iter().find(runs)?];
    let parents = e2e::exec::parents();
    while let Some((_, parent)) = parents.iter().find(|(pid, _)| Some(pid) == line.last()) {
        if *parent == worker.pid() || *parent <= 1 {
            break;
        }
        line.push(*parent);
    }
    Some(line)
}

#[test]
fn a_call_whose_jail_dies_is_answered_as_unknown_and_the_next_one_gets_a_fresh_jail() {
    // INV-9, INV-10, RUN-19: what is no error of a tool is a short text all the same.
    require!(Need::Root);
    for level in Level::here() {
        // Above the command: bash, the keeper, init.
        let above = 3;
        {
            let server = Devserver::with("", &["--keep-results"]);
            let calls = [
                gives(bash("echo mine > f"), "(no output)"),
                expect(
                    bash("sleep 66"),
                    json!({"is_error": true, "contains": "outcome is unknown"}),
                ),
                expect(
                    bash("ls; echo alive"),
                    json!({"is_error": false, "matches":
                    "^alive\n\\[jail\\] The jail of this session was replaced by a fresh one"}),
                ),
                gives(bash("echo quiet"), "quiet"),
            ];
            server.push(&session("dies", calls));
            let worker = Poll::at(level).serve(&server);
            let mut line = Vec::new();
            wait_for(SOON, || {
                line = ancestry(&worker, "66").unwrap_or_default();
                !line.is_empty()
            });
            let pid = line.get(above).expect("init is above");
            let killed = Command::new("kill").args(["-s", "KILL", &pid.to_string()]).status();
            assert!(killed.expect("cannot run kill").success());
            server.wait_done(SOON);
            let ran = worker.stop().ended(0);
            passed(server.end(), &format!("killed {above} of {line:?}\n{}", ran.stderr));
            assert_eq!(ran.audited("jail.launched").len(), 2, "{above} of {line:?}");
            assert_eq!(ran.audited("session.disposed").len(), 2, "{above} of {line:?}");
            let unknown = ran.audited("call.ended");
            assert!(unknown.iter().any(|end| end["status"] != "ok"), "{unknown:?}");
            for receipt in ran.audited("session.disposed") {
                assert_eq!(receipt["left"]["items"], json!([]), "{receipt}");
            }
        }
    }
}

#[test]
fn nothing_that_a_session_sends_changes_its_policy() {
    // INV-13: inputs, names, environment and files are data.
    let sessions = [session(
        "tries",
        [
            gives(bash("export STOCKADE_POLICY=base WORKER_POLICY_DIR=/workspace; echo 1"), "1"),
            gives(
                json!({"write": {"file_path": "policy.toml", "content": "schema = 1\n[network]\n"}}),
                "wrote 21 bytes to policy.toml",
            ),
            gives(json!({"bash": {"command": "echo 2", "policy": "none", "jail": false}}), "2"),
            expect(bash("mount -t proc proc /mnt"), json!({"is_error": true})),
            expect(bash("exec 3<>/dev/tcp/192.0.2.1/80"), json!({"is_error": true})),
            gives(
                bash("grep -c . /proc/self/uid_map; cat /proc/self/status | grep CapEff"),
                "1\nCapEff:\t0000000000000000",
            ),
        ],
    )];
    for level in Level::here() {
        play_with(level, "", &sessions, |poll| poll);
    }
}
