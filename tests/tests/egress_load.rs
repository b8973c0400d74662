//! Many connections, slow ones, broken ones, and the end of a session or of the worker. INV-8, INV-10,
//! INV-11.

use std::process::Command;
use std::time::{Duration, Instant};

use e2e::exec::status_field;
use e2e::lab::{Lab, policy, policy_text, program_of};
use e2e::policy::PolicyFile;
use e2e::poll::wait_for;
use e2e::{End, Level};
use serde_json::{Value, json};

const API: &str = "api.example.test";
const API_ECHO: &str = "203.0.113.10:7000";

fn names() -> PolicyFile {
    policy(&format!("allow = {NAMES}"))
}

const NAMES: &str = r#"["api.example.test:7000", "raw.example.test:7000", "hole.example.test:7000",
    "reset.example.test:7000", "reset.example.test:7001", "slow.example.test:7000",
    "half.example.test:7000", "half.example.test:7001", "first.example.test:22",
    "first.example.test:7001", "raw.example.test:443"]"#;

fn talk(host: &str, port: u16, more: Value) -> Value {
    e2e::lab::rows::with(
        json!({"act": "talk", "host": format!("{host}.example.test"), "port": port}),
        more,
    )
}

#[test]
fn ten_thousand_connections_pass_and_do_not_disturb_another_session() {
    // INV-11: one session at its budget, another beside it.
    let lab = Lab::standard();
    let loud = policy(&format!("allow = {NAMES}\nconnection_rate = 4096"));
    let quiet = names();
    let many = [json!({"act": "many", "host": API, "port": 7000, "count": 10_000, "threads": 8})];
    let beside: Vec<Value> = (0..40)
        .flat_map(|_| {
            [
                talk("api", 7000, json!({"send": "beside", "until": "beside", "hold": 10.0})),
                json!({"act": "sleep", "seconds": 0.05}),
            ]
        })
        .collect();
    for level in Level::here() {
        let storm = lab.begin(level, &loud, &many);
        let got = lab.inside(level, &quiet, &beside);
        let mut late: Vec<u64> =
            got.iter().step_by(2).filter_map(|one| one["ms"].as_u64()).collect();
        late.sort_unstable();
        assert!(got.iter().step_by(2).all(|one| one["text"] == "beside"), "{level:?}: {got:?}");
        // One that the machine was late for says nothing; one in ten does.
        let (most, last) = (late[late.len() * 9 / 10 - 1], late[late.len() - 1]);
        assert!(most < 2_000 && last < 10_000, "{level:?}: {late:?} ms beside the storm");
        let outcome = storm.wait();
        let got = Lab::results_of(&outcome, &many);
        assert_eq!(got[0]["count"], 10_000, "{level:?}: {} {}", got[0], outcome.stderr);
    }
}

#[test]
fn connections_at_once_are_bounded_and_the_next_session_has_its_own_budget() {
    let lab = Lab::standard();
    let narrow = policy(&format!("allow = {NAMES}\nconnections = 50"));
    let acts = [
        json!({"act": "hold_open", "host": API, "port": 7000, "count": 80}),
        json!({"act": "sleep", "seconds": 0.5}),
        talk("api", 7000, json!({"send": "after", "until": "after"})),
    ];
    for level in Level::here() {
        let got = lab.inside(level, &narrow, &acts);
        let alive = got[0]["alive"].as_u64().unwrap_or_default();
        assert_eq!(alive, 50, "{level:?}: {}", got[0]);
        assert_eq!(got[2]["text"], "after", "{level:?}: the budget does not come back: {}", got[2]);
    }
    // As many at once as there may be.
    let wide =
        [json!({"act": "hold_open", "host": API, "port": 7000, "count": 1_000, "seconds": 0.2})];
    let policy = policy(&format!("allow = {NAMES}\nconnection_rate = 4096"));
    for level in Level::here() {
        let got = lab.inside(level, &policy, &wide);
        assert_eq!(got[0]["alive"], 1_000, "{level:?}: {}", got[0]);
    }
}

#[test]
fn slow_half_open_and_broken_peers_end_as_they_do_without_a_broker() {
    let lab = Lab::standard();
    let acts = [
        // Speaks first, and goes on.
        talk("first", 22, json!({"send": "", "until": "lab\r\n"})),
        talk("first", 7001, json!({"send": "EHLO x", "until": "EHLO x"})),
        // Half-close: the answer comes after our end.
        talk("half", 7000, json!({"send": "half a conversation", "finish": true, "hold": 5.0})),
        // Resets arrive as resets, and with what came before them.
        talk("reset", 7000, json!({"send": "x", "hold": 5.0})),
        talk("reset", 7001, json!({"send": "", "hold": 5.0})),
        // We reset: see below.
        talk("raw", 7000, json!({"send": "then a reset", "until": "heard", "linger": true})),
        // Slow in both directions.
        talk("slow", 7000, json!({"send": "go", "hold": 10.0})),
        talk("raw", 7000, json!({"send": ["s", "l", "o", "w"], "pause": 0.2, "until": "heard"})),
        // A lot in one direction.
        talk("half", 7001, json!({"send": "8000000 ", "limit": 8_000_000, "hold": 20.0})),
        talk("api", 7000, json!({"send": "after", "until": "after"})),
    ];
    for level in Level::here() {
        lab.forget();
        let began = Instant::now();
        let got = lab.inside(level, &names(), &acts);
        let is = |at: usize, text: &str| {
            assert_eq!(got[at]["text"], text, "{level:?} {}: {}", acts[at], got[at])
        };
        is(0, "SSH-2.0-lab\r\n");
        assert!(
            got[1]["text"].as_str().is_some_and(|text| text.ends_with("EHLO x")),
            "{level:?}: {}",
            got[1]
        );
        is(2, "after the end: 19 bytes");
        is(3, "partial");
        for at in [3, 4] {
            assert_eq!(got[at]["how"], "reset", "{level:?} {}: {}", acts[at], got[at]);
        }
        is(5, "heard");
        is(6, "....................");
        is(7, "heard");
        assert_eq!(got[8]["count"], 8_000_000, "{level:?}: {}", got[8]);
        is(9, "after");
        let resets = lab.heard_by("203.0.113.12:7000", "end");
        assert!(resets.iter().any(|line| line["how"] == "reset"), "{level:?}: {resets:?}");
        assert!(began.elapsed() < Duration::from_secs(30), "{level:?}: {:?}", began.elapsed());
    }
}

#[test]
fn who_never_comes_to_the_point_is_given_up_and_nobody_is_dialled() {
    // INV-11: slow-loris. All of them at once, because each takes its time.
    let (lab, names) = (Lab::standard(), names());
    let drip = |port: u16, text: &str| {
        let pieces: Vec<String> = text.chars().map(String::from).collect();
        [talk("raw", port, json!({"send": pieces, "pause": 0.5, "hold": 30.0}))]
    };
    let acts = [
        drip(443, "\u{16}\u{3}\u{1}\u{0}"),
        drip(7000, "\u{16}\u{3}\u{1}"),
        drip(7000, "GET /"),
        drip(443, ""),
    ];
    let run = |level: Level, act: &[Value; 1]| (level, act.clone(), lab.begin(level, &names, act));
    let all: Vec<_> = Level::here()
        .into_iter()
        .flat_map(|level| acts.iter().map(move |act| (level, act)))
        .map(|(level, act)| run(level, act))
        .collect();
    for (level, act, running) in all {
        let outcome = running.wait();
        let got = Lab::results_of(&outcome, &act).remove(0);
        let ended = got["how"] == "reset" || got["how"] == "end";
        assert!(ended, "INV-11 {level:?}: {} is waited for: {got}", act[0]);
    }
    assert!(lab.heard_by("203.0.113.12:443", "bytes").is_empty(), "INV-8: {:?}", lab.heard());
    // Where anything may be spoken, a beginning that may become anything passes after a while: not as
    // much of it as names a host.
    for end in lab.heard_by("203.0.113.12:7000", "end") {
        assert!(end["count"].as_u64() <= Some(5), "INV-8: {end}");
    }
}

#[test]
fn a_peer_that_never_reads_holds_back_its_writer_and_nobody_else() {
    // INV-11: backpressure, not buffers.
    let lab = Lab::standard();
    let acts = [
        talk("hole", 7000, json!({"send": ".", "times": 64 << 20, "timeout": 2.0, "hold": 0.1})),
        talk("api", 7000, json!({"send": "beside", "until": "beside"})),
    ];
    for level in Level::here() {
        let got = lab.inside(level, &names(), &acts);
        assert_eq!(got[0]["send"], "ETIMEDOUT", "{level:?}: 64 MiB were taken: {}", got[0]);
        assert_eq!(got[1]["text"], "beside", "{level:?}: {}", got[1]);
    }
}

#[test]
fn a_worker_without_descriptors_refuses_and_recovers() {
    // INV-11: descriptor exhaustion. Of 400, the rest of the worker keeps 256.
    let lab = Lab::standard();
    let policy = policy(&format!("allow = {NAMES}\nconnection_rate = 4096"));
    let acts = [
        json!({"act": "hold_open", "host": API, "port": 7000, "count": 300}),
        json!({"act": "sleep", "seconds": 0.5}),
        talk("api", 7000, json!({"send": "after", "until": "after"})),
    ];
    for level in Level::here() {
        let mut words = lab.wrapper();
        words.extend(["prlimit", "--nofile=400:400", "--"].map(str::to_owned));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let exec = e2e::Exec::at(level).wrapped_in(&words).policy(policy.path());
        let run = exec.stdin(program_of(&acts)).run(&["python3", "-"]);
        let got = Lab::results_of(&run, &acts);
        let alive = got[0]["alive"].as_u64().unwrap_or_default();
        assert!((10..300).contains(&alive), "{level:?}: {} {}", got[0], run.stderr);
        assert_eq!(
            got[2]["text"], "after",
            "{level:?}: it does not recover: {} {}",
            got[2], run.stderr
        );
    }
    let got = lab.outside(&acts);
    assert_eq!(got[0]["alive"], 300, "control: {}", got[0]);
}

#[test]
fn a_limit_of_open_files_that_is_too_low_is_explained() {
    // INV-2, INV-11: no jail with a network that nobody serves. The control has one port instead of
    // many.
    let ports = |count: u16| {
        let rules: Vec<String> =
            (0..count).map(|at| format!("\"a.example.com:{}\"", 1000 + at)).collect();
        policy(&format!("allow = [{}]", rules.join(", ")))
    };
    for (files, count, says) in [
        ("64:64", 150, Some("more: Too many open files")),
        ("256:256", 150, Some("cannot serve the jail's network: Too many open files")),
        ("64:64", 1, None),
        ("256:256", 1, None),
    ] {
        let policy = ports(count);
        for level in Level::here() {
            let limit = format!("--nofile={files}");
            let exec = e2e::Exec::at(level).wrapped_in(&["prlimit", &limit, "--"]);
            let run = exec.policy(policy.path()).run(&["echo", "ran"]);
            match says {
                Some(text) => {
                    assert!(run.stderr.contains(text), "{level:?} {files}: {}", run.stderr);
                    assert_eq!(run.end, e2e::End::Exit(5), "{level:?} {files}");
                }
                None => assert_eq!(run.stdout, "ran\n", "{level:?} {files}: {}", run.stderr),
            }
        }
    }
}

/// Waits until `count` connections are open at the echo server.
fn wait_open(lab: &Lab, count: usize) {
    lab.wait_heard(Duration::from_secs(10), |heard| {
        heard.iter().filter(|line| line["on"] == API_ECHO && line["what"] == "accept").count()
            >= count
    });
}

/// Waits until as many have ended.
fn wait_ended(lab: &Lab, count: usize, limit: Duration) {
    lab.wait_heard(limit, |heard| {
        heard.iter().filter(|line| line["on"] == API_ECHO && line["what"] == "end").count() >= count
    });
}

/// Open for a long time.
fn held() -> [Value; 1] {
    [json!({"act": "hold_open", "host": API, "port": 7000, "count": 5, "seconds": 60})]
}

#[test]
fn the_end_of_a_session_closes_its_connections() {
    // INV-10: whether it ends by itself, is asked to end, or is killed with its worker.
    let (lab, names) = (Lab::standard(), names());
    for level in Level::here() {
        for signal in ["TERM", "KILL"] {
            lab.forget();
            let run = lab.begin(level, &names, &held());
            wait_open(&lab, 5);
            assert!(lab.heard_by(API_ECHO, "end").is_empty(), "{level:?}");
            let pid = run.worker_pid().to_string();
            assert!(
                Command::new("kill").args(["-s", signal, &pid]).status().expect("kill").success()
            );
            wait_ended(&lab, 5, Duration::from_secs(5));
            let outcome = run.wait();
            assert_ne!(outcome.end, End::Exit(0), "{}", outcome.text());
        }
        // The next one works, whatever became of the one before.
        let act = [talk("api", 7000, json!({"send": "next", "until": "next"}))];
        assert_eq!(lab.inside(level, &names, &act)[0]["text"], "next", "{level:?}");
        // By itself, with connections still open in a process that is left behind.
        lab.forget();
        let script = "cat >/tmp/acts.py; python3 /tmp/acts.py >/dev/null 2>&1 </dev/null & \
                      sleep 4714; echo done";
        let exec = lab.exec(level, &names).stdin(program_of(&held()));
        let run = exec.spawn(&["bash", "-c", script]);
        wait_open(&lab, 5);
        let sleeps = |pid: &u32| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            line.is_ok_and(|line| line == "sleep\x004714\0")
        };
        let sleep = run.processes().into_iter().find(sleeps).expect("the script waits");
        assert!(Command::new("kill").arg(sleep.to_string()).status().expect("kill").success());
        let run = run.wait();
        assert!(run.ok(), "{}", run.text());
        wait_ended(&lab, 5, Duration::from_secs(5));
        assert_eq!(lab.heard_by(API_ECHO, "accept").len(), 5, "{level:?}: {}", run.text());
    }
}

#[test]
fn two_sessions_with_different_policies_never_mix() {
    // INV-6, INV-8: the same name, the same synthetic address, the same port, and other rules.
    let lab = Lab::standard();
    let one = policy(r#"allow = ["api.example.test:7000", "raw.example.test:7000"]"#);
    let two = policy(
        r#"allow = ["first.example.test:7001", "raw.example.test:7000", "other.example.test:7000"]"#,
    );
    let say = |host: &str, port: u16, text: &str| {
        talk(host, port, json!({"send": text, "until": text, "hold": 3.0}))
    };
    let resolver = |name: &str| json!({"act": "resolver", "name": name});
    let literal = |text: &str| json!({"act": "talk", "host": "198.18.0.16", "port": 7000, "send": text, "hold": 3.0, "until": text});
    for level in Level::here() {
        for _ in 0..3 {
            lab.forget();
            let first = [
                literal("unknown one"),
                say("api", 7000, "one"),
                say("other", 7000, "not for one"),
                say("first", 7001, "not for one"),
                json!({"act": "sleep", "seconds": 0.3}),
                resolver("api.example.test"),
                literal("literal one"),
            ];
            let running = lab.begin(level, &one, &first);
            let second = [
                literal("unknown two"),
                say("other", 7000, "two"),
                say("api", 7000, "not for two"),
                json!({"act": "sleep", "seconds": 0.3}),
                resolver("other.example.test"),
                literal("literal two"),
            ];
            let got_two = lab.inside(level, &two, &second);
            let outcome = running.wait();
            let got_one = Lab::results_of(&outcome, &first);
            let refused = e2e::lab::is_refused;
            // An address stands for nothing before its name was asked for.
            assert!(
                refused(&got_one[0]) && refused(&got_two[0]),
                "{level:?} {} {}",
                got_one[0],
                got_two[0]
            );
            assert_eq!(
                (&got_one[1]["text"], &got_two[1]["text"]),
                (&json!("one"), &json!("two")),
                "{level:?}"
            );
            assert!(refused(&got_one[2]) && refused(&got_one[3]), "INV-8 {level:?}: {got_one:?}");
            assert!(refused(&got_two[2]), "INV-8 {level:?}: {got_two:?}");
            // The same address, and to each its own.
            assert_eq!(got_one[5]["addresses"][0][0], got_two[4]["addresses"][0][0], "{level:?}");
            assert_eq!(got_one[6]["text"], "literal one", "{level:?}: {}", got_one[6]);
            assert_eq!(got_two[5]["text"], "literal two", "{level:?}: {}", got_two[5]);
            let accepted = |on: &str| lab.heard_by(on, "accept").len();
            assert!(accepted("203.0.113.11:7000") == 2, "INV-8 {level:?}: {:?}", lab.heard());
            assert_eq!(accepted("203.0.113.13:7001"), 0, "INV-8 {level:?}");
        }
    }
}

#[test]
fn a_finished_worker_leaves_no_descriptor_and_no_growing_memory() {
    // INV-10, INV-11: after thousands of connections the broker holds as much as before them.
    let lab = Lab::standard();
    let policy =
        PolicyFile::from_text(&policy_text(&format!("allow = {NAMES}\nconnection_rate = 4096")));
    let acts = [
        json!({"act": "many", "host": API, "port": 7000, "count": 800}),
        json!({"act": "say", "text": "warm"}),
        json!({"act": "sleep", "seconds": 1.5}),
        json!({"act": "many", "host": API, "port": 7000, "count": 2400}),
        json!({"act": "sleep", "seconds": 3}),
    ];
    for level in Level::here() {
        lab.forget();
        let run = lab.begin(level, &policy, &acts);
        let ended = |count: usize| {
            wait_for(Duration::from_secs(60), || lab.heard_by(API_ECHO, "end").len() >= count)
        };
        let size = |pid: u32| {
            std::thread::sleep(Duration::from_millis(700));
            let descriptors =
                std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
            let kilobytes: u64 =
                status_field(pid, "VmRSS:").and_then(|text| text.parse().ok()).unwrap_or(0);
            (descriptors, kilobytes)
        };
        let pid = run.worker_pid();
        assert!(ended(800), "{level:?}");
        let warm = size(pid);
        assert!(ended(3200), "{level:?}");
        let later = size(pid);
        let outcome = run.wait();
        assert!(outcome.ok(), "{}", outcome.text());
        assert!(later.0 <= warm.0 + 4, "{level:?}: descriptors {warm:?}, then {later:?}");
        assert!(later.1 <= warm.1 + 4096, "{level:?}: kilobytes {warm:?}, then {later:?}");
        assert!(outcome.leftovers.is_empty(), "{:?}", outcome.leftovers);
    }
}
