//! `worker run`: one item that somebody else has claimed (WRUN-1 to WRUN-4, AUTH-3, AUTH-4; exit codes of
//! docs/exit-codes.md).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use e2e::claim::Claimed;
use e2e::exec::give;
use e2e::play::{SOON, bash, gives, passed, session};
use e2e::{Devserver, Level, Poll};
use serde_json::{Value, json};

fn level() -> Level {
    Level::here()[0]
}

fn run(level: Level, item: &Claimed) -> Poll {
    Poll::at(level)
        .command(&["run"])
        .variable("ANTHROPIC_SESSION_ID", &item.session)
        .variable("ANTHROPIC_WORK_ID", &item.work)
}

fn secret_file(level: Level, home: &Path, text: &str, mode: u32) -> PathBuf {
    let file = home.join("secret");
    fs::write(&file, text).expect("cannot write a secret");
    fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("cannot chmod");
    give(&file, level);
    file
}

fn stops(report: &Value) -> usize {
    report["work"][0]["holders"][0]["stops"].as_array().map_or(0, Vec::len)
}

#[test]
fn an_item_is_served_in_a_jail_with_whatever_speaks_for_it() {
    // WRUN-1, WRUN-2, AUTH-4, AUTH-5: the key, the secret in a variable, the secret in a file.
    for level in Level::here() {
        for way in ["key", "secret", "file"] {
            let server = Devserver::start();
            let calls = [gives(bash("pwd"), "/workspace"), gives(bash("echo $0"), "/bin/bash")];
            server.push(&session("one", calls));
            let item = Claimed::from(&server);
            let secret = item.secret.clone().expect("a secret");
            let mut poll = run(level, &item);
            if way != "key" {
                // Empty is absent.
                poll = poll.variable("ANTHROPIC_ENVIRONMENT_KEY", "");
            }
            poll = match way {
                "secret" => poll.variable("ANTHROPIC_WORK_SECRET", &secret),
                "file" => {
                    let file = secret_file(level, &poll.home(), &format!("{secret}\n"), 0o600);
                    poll.path("--work-secret-file", &file)
                }
                _ => poll,
            };
            let ran = poll.serve(&server).wait().ended(0);
            let report = server.report();
            let requests = &report["requests"];
            let asked = |endpoint: &str| requests[endpoint]["count"].as_u64().unwrap_or(0);
            assert_eq!((asked("poll"), asked("ack"), stops(&report)), (1, 1, 1), "{way} {report}");
            assert_eq!(ran.audited("jail.launched").len(), 1, "{way}");
            let ended = ran.audited("item.ended");
            assert_eq!(ended[0]["reason"], "session_terminated");
            assert_eq!(report["credentials"]["sessions_token"].is_null(), way == "key");
            assert!(!ran.stderr.contains(&secret), "AUTH-8");
            passed(server.end(), &ran.stderr);
        }
    }
}

#[test]
fn an_idle_session_is_let_go_and_a_signal_hands_it_back() {
    // WRUN-3: zero for both.
    for idle in [true, false] {
        let server = Devserver::start();
        let mut play = session("one", [gives(bash("echo 1"), "1")]);
        play["end"] = json!(if idle { "idle" } else { "open" });
        server.push(&play);
        let item = Claimed::from(&server);
        let worker = run(level(), &item).options(["--max-idle", "1s"]).serve(&server);
        worker.wait_for_event("call.ended", SOON);
        let ran = if idle { worker.wait() } else { worker.stop() }.ended(0);
        assert_eq!(stops(&server.report()), 1, "{}", ran.stderr);
        let reason = ran.audited("worker.stopped")[0]["reason"].clone();
        assert_eq!(reason, if idle { "once" } else { "signal" });
    }
}

#[test]
fn an_item_of_somebody_else_is_left_alone() {
    // WRUN-4: 412 at the first beat.
    for level in Level::here() {
        let server = Devserver::start();
        server.push(&session("one", [bash("echo ran")]));
        let item = Claimed::from(&server);
        item.beat(&server);
        let ran = run(level, &item).serve(&server).wait().ended(1);
        assert!(ran.stderr.contains("the work item is somebody else's"), "{}", ran.stderr);
        assert!(ran.audited("call.started").is_empty());
        let report = server.report();
        assert_eq!(stops(&report), 0, "{}", ran.stderr);
        assert_eq!(report["sessions"][0]["calls"][0]["answered_us"], Value::Null);
    }
}

#[test]
fn a_process_that_was_killed_is_not_resumed_and_leaves_no_jail() {
    // WRUN-4, INV-9, INV-10: the second process for the same item ends without stopping it.
    for level in Level::here() {
        let server = Devserver::with("", &["--keep-results"]);
        let mut play = session("one", [json!({"bash": "sleep 44", "wait": false})]);
        play["end"] = json!("open");
        server.push(&play);
        let item = Claimed::from(&server);
        let worker = run(level, &item).may_leave().serve(&server);
        worker.wait_for_event("call.starting", SOON);
        worker.signal("KILL");
        let killed = worker.wait();
        assert_eq!(killed.leftovers, Vec::<String>::new(), "INV-10");
        let again = run(level, &item).serve(&server).wait().ended(1);
        assert!(again.audited("call.started").is_empty(), "INV-9");
        assert_eq!(stops(&server.report()), 0, "{}", again.stderr);
    }
}

#[test]
fn what_is_missing_or_wrong_is_said_before_any_request() {
    // WRUN-1, AUTH-3, AUTH-9, AUTH-11, CLI-3, CLI-4.
    let server = Devserver::start();
    let item = || Claimed { work: "w".to_owned(), session: "s".to_owned(), secret: None };
    type Prepare = fn(Poll) -> Poll;
    #[rustfmt::skip]
    let cases: [(Prepare, i32, &str); 10] = [
        (|poll| poll.variable("ANTHROPIC_SESSION_ID", ""),     2, "no session id given"),
        (|poll| poll.variable("ANTHROPIC_WORK_ID", ""),        2, "no work id given"),
        (|poll| poll.variable("ANTHROPIC_ENVIRONMENT_ID", ""), 2, "no environment id given"),
        (|poll| poll.variable("ANTHROPIC_ENVIRONMENT_KEY", ""), 2, "no environment key given"),
        (|poll| poll.variable("ANTHROPIC_ENVIRONMENT_KEY", "").variable("ANTHROPIC_WORK_SECRET", "%%%"),
                                                               2, "no environment key given"),
        (|poll| poll.variable("ANTHROPIC_WORK_SECRET", "a b"), 3, "the work secret"),
        (|poll| poll.variable("ANTHROPIC_WORK_SECRET_FILE", "/nonexistent"), 3, "the work secret"),
        (|poll| poll.variable("ANTHROPIC_API_KEY", "sk-ant-api03-x"), 9, "ANTHROPIC_API_KEY"),
        (|poll| poll.options(["--environment-key", "sk-x"]),   2, "from the command line"),
        (|poll| poll.options(["--max-sessions", "2"]),         2, "--max-sessions"),
    ];
    for (prepare, code, words) in cases {
        let ran = prepare(run(level(), &item())).serve(&server).wait().ended(code);
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
        assert!(ran.stderr.contains("hint: ") || code == 2, "{}", ran.stderr);
    }
    let poll = run(level(), &item());
    let file = secret_file(level(), &poll.home(), "x", 0o640);
    let ran = poll.path("--work-secret-file", &file).serve(&server).wait().ended(9);
    assert!(ran.stderr.contains("has mode 0640"), "{}", ran.stderr);
    assert_eq!(server.report()["requests"].as_object().map_or(0, |all| all.len()), 0);
}

#[test]
fn neither_key_nor_secret_stays_in_an_environment() {
    // INV-1, AUTH-10: also what a process was started with can be read in `/proc`.
    for level in Level::here() {
        let server = Devserver::start();
        let mut play = session("one", [json!({"bash": "sleep 44", "wait": false})]);
        play["end"] = json!("open");
        server.push(&play);
        let item = Claimed::from(&server);
        let secret = item.secret.clone().expect("a secret");
        let key = server.variables()[2].1.clone();
        let worker = run(level, &item).variable("ANTHROPIC_WORK_SECRET", &secret).serve(&server);
        worker.wait_for_event("call.starting", SOON);
        let (mut looked, began) = (0, Instant::now());
        for pid in worker.processes() {
            for file in ["environ", "cmdline"] {
                let Ok(bytes) = fs::read(format!("/proc/{pid}/{file}")) else { continue };
                let text = String::from_utf8_lossy(&bytes);
                assert!(!text.contains(&key) && !text.contains(&secret), "{pid} {file}: {text}");
                looked += usize::from(text.contains("ANTHROPIC_WORK_ID") || file == "cmdline");
            }
        }
        assert!(looked >= 3, "only {looked} were looked at in {:?}", began.elapsed());
        worker.signal("TERM");
        // Two at once would count as one.
        worker.wait_for_event("worker.draining", SOON);
        worker.signal("TERM");
        let ran = worker.wait().ended(143);
        for secret in [&key, &secret] {
            assert!(!ran.stderr.contains(secret.as_str()), "AUTH-8");
        }
    }
}
