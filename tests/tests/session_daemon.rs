//! The worker as a program that stays: many sessions at once, signals, refusals, a full disk
//! (POLL-3, POLL-15, SHUT-1 to SHUT-5, AUTH-9, AUTH-11, RUN-13; exit codes of docs/exit-codes.md).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::exec::{directory_of, give};
use e2e::play::{SOON, bash, expect, gives, play_with, session};
use e2e::poll::wait_for;
use e2e::{Devserver, Level, Need, Poll, locate, require};
use serde_json::{Value, json};

fn level() -> Level {
    Level::here()[0]
}

/// A call under way that nobody waits for.
fn under_way(command: &str) -> Value {
    let mut call = bash(command);
    call["wait"] = json!(false);
    call
}

fn open(name: &str, calls: impl IntoIterator<Item = Value>) -> Value {
    let mut session = session(name, calls);
    session["end"] = json!("open");
    session["message"] = json!("please");
    session
}

/// Most items that were held at the same time.
fn held_at_once(report: &Value) -> usize {
    let work = report["work"].as_array().expect("a list");
    let mut edges: Vec<(u64, i64)> = Vec::new();
    for item in work {
        edges.push((item["holders"][0]["polled_us"].as_u64().expect("a time"), 1));
        edges.push((item["stopped_us"].as_u64().expect("a time"), -1));
    }
    edges.sort_unstable();
    let (mut now, mut most) = (0, 0);
    for (_, edge) in edges {
        now += edge;
        most = most.max(now);
    }
    usize::try_from(most).expect("not negative")
}

#[test]
fn no_more_sessions_are_claimed_than_there_are_places() {
    // POLL-3.
    for level in Level::here() {
        let mut many = session("many", [bash("sleep 0.3"), gives(bash("echo $$ > f; ls"), "f")]);
        many["copies"] = json!(20);
        let played = play_with(level, "", &[many], |poll| poll);
        let most = held_at_once(&played.report);
        assert!((5..=8).contains(&most), "{most} at once");
        assert_eq!(played.ran.audited("jail.launched").len(), 20);
    }
}

#[test]
fn a_session_without_a_jail_hears_why_and_does_not_end_the_others() {
    // POLL-15, INV-2: the place of its outputs is taken by a link to elsewhere.
    for level in Level::here() {
        let outputs = directory_of(level);
        let link = outputs.path().join("sesn_000002");
        std::os::unix::fs::symlink("/etc", &link).expect("a link");
        let refused = expect(
            bash("echo ran"),
            json!({"is_error": true,
            "contains": "[jail] This session has no jail on its host", "lacks": "/etc"}),
        );
        let sessions = [
            session("first", [gives(bash("echo 1"), "1")]),
            session("second", [refused]),
            session("third", [gives(bash("echo 3"), "3")]),
        ];
        let played =
            play_with(level, "", &sessions, |poll| poll.path("--outputs-dir", outputs.path()));
        assert_eq!(played.ran.audited("jail.failed").len(), 1);
        assert_eq!(played.ran.audited("jail.launched").len(), 2);
        assert_eq!(played.ran.audited("call.started").len(), 2);
    }
}

#[test]
fn sigterm_lets_the_call_under_way_finish_and_posts_its_result() {
    // SHUT-1, SHUT-2, LEASE-14: heartbeats go on meanwhile, and nothing new runs.
    for level in Level::here() {
        let server = Devserver::with("[server]\nttl_seconds = 2", &["--keep-results"]);
        server.push(&open("busy", [under_way("sleep 3; echo done"), under_way("echo second")]));
        server.push(&open("idle", [gives(bash("echo 1"), "1")]));
        let worker = Poll::at(level).serve(&server);
        worker.wait_for_events("call.starting", 2, SOON);
        worker.wait_for_events("call.ended", 1, SOON);
        server.push(&session("too late", [gives(bash("echo 1"), "1")]));
        let signalled = Instant::now();
        let ran = worker.stop().ended(0);
        let took = ran.over.duration_since(signalled);
        assert!(took < Duration::from_secs(8), "{took:?}");
        let report = server.report();
        assert_eq!(report["violations"], json!([]), "{}", ran.stderr);
        let busy = &report["sessions"][0]["calls"];
        assert_eq!(busy[0]["result"]["content"][0]["text"], "done", "{}", ran.stderr);
        assert_eq!(busy[1]["answered_us"], Value::Null, "a call was started after the signal");
        let holder = &report["work"][0]["holders"][0];
        let gap = holder["heartbeat_gap_max_us"].as_u64().expect("beats");
        assert!(gap < 1_900_000, "heartbeats stopped for {gap} us");
        assert_eq!(ran.audited("worker.stopped")[0]["reason"], "signal");
    }
}

#[test]
fn a_signal_is_heard_while_sighup_waits_for_a_file() {
    // SHUT-1, AUTH-1: the key reader is stopped, as by a file system that hangs. It is given up after
    // ten seconds.
    let server = Devserver::with("", &[]);
    server.push(&open("busy", [under_way("sleep 3; echo done")]));
    let poll = Poll::at(level());
    let file = poll.home().join("key");
    fs::write(&file, &server.variables()[2].1).expect("cannot write a key");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("cannot chmod");
    give(&file, level());
    let worker = poll.path("--environment-key-file", &file).serve(&server);
    worker.wait_for_event("call.starting", SOON);
    let is_reader = |pid: &u32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with("stockade-key-reader")
    };
    let reader = worker.processes().into_iter().find(is_reader).expect("a key reader");
    e2e::site::signal(reader, "-STOP");
    worker.signal("HUP");
    std::thread::sleep(Duration::from_millis(500));
    assert!(!worker.said().contains("\"key.reloaded\""), "the control: it waits");
    let signalled = Instant::now();
    worker.signal("TERM");
    worker.wait_for_event("worker.draining", SOON);
    let took = signalled.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    e2e::site::signal(reader, "-CONT");
    worker.wait().ended(0);
}

#[test]
fn at_the_drain_timeout_the_call_is_killed_and_its_session_hears_of_it() {
    // SHUT-2, exit code 7.
    let server = Devserver::with("", &["--keep-results"]);
    server.push(&open("busy", [under_way("sleep 44")]));
    let worker = Poll::at(level()).options(["--drain-timeout", "1s"]).serve(&server);
    worker.wait_for_event("call.starting", SOON);
    let signalled = Instant::now();
    let ran = worker.stop().ended(7);
    let took = ran.over.duration_since(signalled);
    assert!(took < Duration::from_secs(8), "{took:?}");
    let report = server.report();
    assert_eq!(report["violations"], json!([]), "{}", ran.stderr);
    let result = &report["sessions"][0]["calls"][0]["result"];
    assert_eq!(result["is_error"], true, "{}", ran.stderr);
    assert_eq!(
        result["content"][0]["text"],
        "bash: the worker was shut down before this call ended; it was killed"
    );
    assert_eq!(ran.audited("worker.stopped")[0]["reason"], "drain_timeout");
}

#[test]
fn a_second_signal_ends_everything_at_once_and_hands_the_work_back() {
    // SHUT-4.
    for (signals, code) in [(["TERM", "TERM"], 143), (["TERM", "INT"], 130), (["QUIT", ""], 131)] {
        let server = Devserver::with("", &["--keep-results"]);
        server.push(&open("busy", [under_way("sleep 44")]));
        let worker = Poll::at(level()).serve(&server);
        worker.wait_for_event("call.starting", SOON);
        let signalled = Instant::now();
        for signal in signals.iter().filter(|signal| !signal.is_empty()) {
            worker.signal(signal);
            if signal == &signals[0] && !signals[1].is_empty() {
                worker.wait_for_event("worker.draining", SOON);
            }
        }
        let ran = worker.wait().ended(code);
        let took = ran.over.duration_since(signalled);
        assert!(took < Duration::from_secs(6), "{took:?}");
        let report = server.report();
        assert_eq!(report["violations"], json!([]), "{}", ran.stderr);
        assert_eq!(report["sessions"][0]["calls"][0]["answered_us"], Value::Null);
        let stops = report["work"][0]["holders"][0]["stops"].as_array().map(Vec::len);
        assert_eq!(stops, Some(1), "{}", ran.stderr);
    }
}

/// A key file as it must be.
fn key_file(level: Level, home: &Path, key: &str) -> PathBuf {
    let file = home.join("key");
    let fresh = home.join("key.new");
    fs::write(&fresh, key).expect("cannot write a key");
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).expect("cannot chmod");
    give(&fresh, level);
    fs::rename(&fresh, &file).expect("cannot put a key in place");
    file
}

#[test]
fn sighup_reads_the_key_file_again_and_keeps_the_old_key_if_it_cannot() {
    // AUTH-1: the rotated key is the one that is used afterwards.
    for level in Level::here() {
        let server = Devserver::with("", &[]);
        let key = server.variables()[2].1.clone();
        let poll = Poll::at(level);
        let home = poll.home();
        let file = key_file(level, &home, &format!("{key}\n"));
        let worker = poll.path("--environment-key-file", &file).serve(&server);
        let play = |name: &str| {
            server.push(&session(name, [gives(bash("echo 1"), "1")]));
            server.wait_done(SOON);
        };
        play("before");
        key_file(level, &home, &key);
        worker.signal("HUP");
        worker.wait_for_event("key.reloaded", SOON);
        play("the same key");
        key_file(level, &home, "");
        worker.signal("HUP");
        worker.wait_for_event("key.not_reloaded", SOON);
        play("after an empty file");
        key_file(level, &home, "sk-ant-oat01-of-another-environment");
        worker.signal("HUP");
        worker.wait_for_events("key.reloaded", 2, SOON);
        let ran = worker.wait().ended(4);
        let reloaded = ran.audited("config.reloaded");
        let of = |what: &str| reloaded.iter().filter(|event| event["what"] == what).count();
        assert_eq!((of("environment-key"), of("network-rules")), (2, 3));
        assert!(!ran.stderr.contains(&key), "AUTH-8");
        assert!(!ran.stderr.contains("of-another-environment"), "AUTH-8");
        assert_eq!(server.report()["violations"], json!([]));
    }
}

#[test]
fn once_serves_one_item_and_drain_on_empty_all_there_are() {
    // POLL-11.
    for (option, served) in [("--once", 1), ("--drain-on-empty", 3)] {
        let server = Devserver::start();
        let mut three = session("three", [gives(bash("echo 1"), "1")]);
        three["copies"] = json!(3);
        server.push(&three);
        let ran = Poll::at(level()).options([option]).serve(&server).wait().ended(0);
        let report = server.report();
        let sessions = report["sessions"].as_array().expect("a list");
        let answered = sessions.iter().filter(|one| one["calls"][0]["is_error"] == false).count();
        assert_eq!(answered, served, "{option}: {}", ran.stderr);
        let reason = if served == 1 { "once" } else { "drained" };
        assert_eq!(ran.audited("worker.stopped")[0]["reason"], reason);
    }
}

#[test]
fn what_must_not_be_or_is_missing_is_refused_before_anything_is_claimed() {
    // AUTH-9, AUTH-11, WRUN-1, CLI-3, CLI-4, TOOL-PATH-6: code, and what is said.
    let server = Devserver::start();
    type Prepare = fn(Poll) -> Poll;
    #[rustfmt::skip]
    let cases: [(Prepare, i32, &str); 11] = [
        (|poll| poll.variable("ANTHROPIC_API_KEY", "sk-ant-api03-x"), 9, "ANTHROPIC_API_KEY"),
        (|poll| poll.variable("ANTHROPIC_ENVIRONMENT_KEY", ""),     3, "hint: "),
        (|poll| poll.variable("ANTHROPIC_ENVIRONMENT_ID", ""),      2, "no environment id given"),
        (|poll| poll.variable("ANTHROPIC_BASE_URL", "http://192.0.2.1"), 2, "has no TLS"),
        (|poll| poll.options(["--no-such-flag"]),                   2, "--no-such-flag"),
        (|poll| poll.options(["--unrestricted-paths"]),             2, "--unrestricted-paths"),
        (|poll| poll.options(["--max-sessions", "0"]),              2, "--max-sessions"),
        (|poll| poll.options(["--block-ms", "0"]),                  2, "--block-ms"),
        (|poll| poll.options(["--policy", "nosuch"]),               3, "cannot find policy `nosuch`"),
        (|poll| poll.options(["--workdir", "/nonexistent"]),        2, "--workdir"),
        (|poll| poll.options(["--environment-key", "sk-x"]),        2, "from the command line"),
    ];
    for (prepare, code, words) in cases {
        let ran = prepare(Poll::at(level())).serve(&server).wait().ended(code);
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
        assert!(!ran.stderr.contains("sk-ant-api03-x"), "AUTH-8");
    }
    let poll = Poll::at(level());
    let file = key_file(level(), &poll.home(), "sk-ant-oat01-x");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("cannot chmod");
    poll.path("--environment-key-file", &file).serve(&server).wait().ended(9);
    let jailless = Command::new(locate::worker()).arg("poll").output().expect("cannot run it");
    assert_eq!(jailless.status.code(), Some(2));
    assert_eq!(server.report()["requests"].as_object().map_or(0, |all| all.len()), 0);
}

#[test]
fn a_flag_goes_before_its_variable() {
    // CLI-3, HDR-10.
    let check = |flags: &[&str]| {
        let done = Command::new(locate::worker())
            .args(["poll", "--jail", "--check", "--format", "json", "--state-dir", "/tmp"])
            .args(["--audit-file", "/tmp/e2e-never-written.jsonl"])
            .args(flags)
            .env_clear()
            .env("PATH", locate::SEARCH_PATH)
            .env("ANTHROPIC_ENVIRONMENT_KEY", "sk-ant-oat01-x")
            .env("ANTHROPIC_ENVIRONMENT_ID", "env_variable")
            .env("ANTHROPIC_WORKER_ID", "worker-variable")
            .env("ANTHROPIC_BASE_URL", "https://variable.example")
            .output()
            .expect("cannot run the worker");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).expect("text")
    };
    let flags =
        ["--environment-id=env_flag", "--worker-id=worker-flag", "--base-url=https://flag.example"];
    let (with, without) = (check(&flags), check(&[]));
    for (flag, variable) in [
        ("env_flag", "env_variable"),
        ("worker-flag", "worker-variable"),
        ("https://flag.example", "https://variable.example"),
    ] {
        assert!(with.contains(flag) && !with.contains(variable), "{with}");
        assert!(without.contains(variable), "control: {without}");
    }
}

#[test]
fn without_a_network_the_worker_keeps_trying_and_ends_when_it_is_told() {
    // POLL-4, SHUT-2.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = closed.local_addr().expect("bound").port();
    drop(closed);
    let worker = Poll::at(level())
        .variable("ANTHROPIC_ENVIRONMENT_KEY", "sk-ant-oat01-x")
        .variable("ANTHROPIC_ENVIRONMENT_ID", "env_1")
        .variable("ANTHROPIC_BASE_URL", &format!("http://127.0.0.1:{port}"))
        .start();
    // After the third it pauses for eight seconds, which must not be waited out.
    worker.wait_for_events("poll.failed", 3, SOON);
    assert!(worker.runs());
    let signalled = Instant::now();
    let took = worker.stop().ended(0).over.duration_since(signalled);
    assert!(took < Duration::from_secs(6), "{took:?}");
}

#[test]
fn a_launcher_that_does_not_end_cannot_keep_the_worker() {
    // INV-11: the wait for it is bounded.
    let worker = Poll::at(level())
        .variable("ANTHROPIC_ENVIRONMENT_KEY", "sk-ant-oat01-x")
        .variable("ANTHROPIC_ENVIRONMENT_ID", "env_1")
        .variable("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
        .may_leave()
        .start();
    worker.wait_for_event("poll.failed", SOON);
    let [_, launcher] = worker.processes()[..] else { panic!("{:?}", worker.processes()) };
    let stop = Command::new("kill").args(["-s", "STOP", &launcher.to_string()]).status();
    assert!(stop.expect("cannot run kill").success());
    let signalled = Instant::now();
    let ran = worker.stop();
    let took = signalled.elapsed();
    assert_eq!(ran.events("launcher.slow").len(), 1, "{}", ran.stderr);
    assert!(took > Duration::from_secs(10) && took < Duration::from_secs(18), "{took:?}");
    let left = format!("process {launcher} ");
    assert!(ran.leftovers.iter().any(|who| who.starts_with(&left)), "{:?}", ran.leftovers);
}

#[test]
fn too_little_memory_is_said_once_and_nothing_is_claimed() {
    let server = Devserver::start();
    server.push(&session("waits", [gives(bash("echo 1"), "1")]));
    let worker = Poll::at(level()).options(["--memory-reserve", "512TiB"]).serve(&server);
    worker.wait_for_event("admission.waiting", SOON);
    std::thread::sleep(Duration::from_millis(2500));
    let ran = worker.stop().ended(0);
    assert_eq!(ran.events("admission.waiting").len(), 1, "{}", ran.stderr);
    assert_eq!(server.report()["requests"]["poll"], Value::Null);
}

#[test]
fn two_workers_do_not_write_one_audit_log() {
    for level in Level::here() {
        let server = Devserver::start();
        let first = Poll::at(level).serve(&server);
        first.wait_for_event("poll.starting", SOON);
        let ran = Poll::at(level).path("--audit-file", &first.audit_file()).serve(&server);
        let ran = ran.wait().ended(8);
        assert!(ran.stderr.contains("another"), "{}", ran.stderr);
        assert!(first.runs());
        first.stop().ended(0);
    }
}

/// A small file system of its own; gone with this value.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn new(size: &str) -> SmallDisk {
        let dir = tempfile::Builder::new().prefix("e2e-disk-").tempdir().expect("no directory");
        let options = format!("size={size},mode=755");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "none"]).arg(dir.path());
        assert!(mount.status().expect("cannot run mount").success());
        SmallDisk { dir }
    }

    fn fill(&self) {
        let fill = self.dir.path().join("fill");
        fs::write(fill, vec![1; 8 << 20]).expect_err("it is larger than the disk");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.dir.path()).status());
    }
}

#[test]
fn no_tool_runs_when_its_record_cannot_be_written() {
    // Design §9: the record comes before the effect. Exit code 8.
    require!(Need::Root);
    let (disk, work) = (SmallDisk::new("256k"), directory_of(Level::Root));
    let server = Devserver::with("", &["--keep-results"]);
    server.push(&open("full", [gives(bash("echo 1"), "1")]));
    let audit_file = disk.dir.path().join("audit.jsonl");
    let worker = Poll::at(Level::Root)
        .path("--audit-file", &audit_file)
        .path("--workdir", work.path())
        .serve(&server);
    worker.wait_for_event("call.ended", SOON);
    assert!(wait_for(SOON, || server.state()["sessions"][0]["answered"] != 0));
    disk.fill();
    // A few records still fit in the last block of the log.
    server.dev("POST", "sessions/full/steps", &json!([{"bash": "echo x >> ran", "repeat": 100}]));
    let ran = worker.wait().ended(8);
    assert_eq!(ran.events("audit.failed").len(), 1, "{}", ran.stderr);
    let report = server.report();
    assert_eq!(report["violations"], json!([]));
    let calls = report["sessions"][0]["calls"].as_array().expect("a list");
    assert!(calls.len() < 50, "{} calls on a full disk", calls.len());
    // What was written before is good; only its end may be cut off.
    let log = fs::read_to_string(&audit_file).expect("there");
    let recorded = log.matches("\"event\":\"call.started\"").count();
    let ran = fs::read_to_string(work.path().join("ran")).unwrap_or_default().lines().count();
    assert!(ran < recorded, "{ran} calls ran, {recorded} with the first are recorded");
}

#[test]
fn sighup_reads_a_policy_again_that_only_its_owner_may_read() {
    // The control side has given up its rights, and another file beside this one stays out of reach.
    for level in Level::here() {
        let server = Devserver::with("", &[]);
        let place = directory_of(level);
        let file = place.path().join("policy.toml");
        let put = |name: &str, rules: &str| {
            let text = format!("schema = 1\nextends = \"default\"\n{rules}\n");
            let path = place.path().join(name);
            let fresh = path.with_extension("new");
            fs::write(&fresh, text).expect("cannot write a policy");
            fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).expect("cannot chmod");
            give(&fresh, level);
            fs::rename(&fresh, path).expect("cannot put a policy in place");
        };
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o700)).expect("cannot chmod");
        put("policy.toml", "");
        put("other.toml", "");
        let worker = Poll::at(level).path("--policy", &file).serve(&server);
        worker.wait_for_event("poll.starting", SOON);
        put("policy.toml", "network.allow = [\"a.example.com:443\"]");
        worker.signal("HUP");
        worker.wait_for_event("policy.reloaded", SOON);
        put("policy.toml", "network.allow = [\"a.example.com:0\"]");
        worker.signal("HUP");
        worker.wait_for_event("policy.not_reloaded", SOON);
        if level == Level::Root {
            let other = "schema = 1\nextends = \"./other.toml\"\n";
            fs::write(&file, other).expect("cannot write a policy");
            worker.signal("HUP");
            worker.wait_for_events("policy.not_reloaded", 2, SOON);
        }
        server.push(&session("after", [gives(bash("echo 1"), "1")]));
        server.wait_done(SOON);
        worker.signal("TERM");
        let ran = worker.wait().ended(0);
        let reloaded = ran.audited("config.reloaded");
        let rules: Vec<_> =
            reloaded.iter().filter(|event| event["what"] == "network-rules").collect();
        assert_eq!(rules.len(), 1, "{reloaded:?}");
        let in_force = ran.audited("egress.rules");
        assert_eq!(in_force[0]["policy_sha256"], rules[0]["sha256"], "{in_force:?}");
    }
}
