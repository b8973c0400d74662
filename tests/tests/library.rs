//! The library, as programs use it: its examples against a development server (protocol §3 to §5, §9.3).

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use e2e::exec::directory_of;
use e2e::play::{SOON, bash, complaints, expect, fails, gives, passed, session};
use e2e::poll::{verify, wait_for};
use e2e::stores::with_stores;
use e2e::{Devserver, Level, locate, lock};
use serde_json::{Value, json};

/// Runs an example to its end, at most for a minute.
fn run(level: Level, server: &Devserver, name: &str, arguments: &[&str]) -> (ExitStatus, String) {
    let home = directory_of(level);
    let mut line = ["timeout", "-s", "KILL", "60"].map(str::to_owned).to_vec();
    line.extend(level.prefix());
    line.push(locate::example(name).display().to_string());
    line.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    let mut child = Command::new(&line[0])
        .args(&line[1..])
        .env_clear()
        .env("PATH", locate::SEARCH_PATH)
        .env("HOME", home.path())
        .env("XDG_RUNTIME_DIR", home.path())
        .envs(server.variables().iter().map(|(name, value)| (name, value)))
        .current_dir(home.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("started");
    let mut said = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
    (child.wait().expect("ended"), said)
}

fn ok(level: Level, server: &Devserver, name: &str, arguments: &[&str]) -> String {
    let (status, said) = run(level, server, name, arguments);
    assert!(
        status.success(),
        "{name} at {level:?}: {status}: {said} {}",
        complaints(&server.report())
    );
    said
}

/// Whether a process of this host has this argument.
fn runs(argument: &str) -> bool {
    fs::read_dir("/proc").expect("/proc").flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|part| part == argument.as_bytes())
    })
}

fn custom(name: &str, input: Value) -> Value {
    json!({"custom": name, "input": input})
}

#[test]
fn the_poller_hands_out_each_item_and_stops_what_was_dropped() {
    // POLL-7, POLL-10, POLL-11, POLL-13.
    let script = "[[work]]\ntype = \"healthcheck\"\n";
    let server = Devserver::with(script, &[]);
    let mut ids = server.push(&json!({"name": "a", "message": "x", "end": "open", "copies": 3}));
    let said = ok(Level::here()[0], &server, "poller", &[]);
    let mut lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.pop(), Some("Empty"), "{said}");
    let mut told: Vec<String> =
        lines.iter().filter_map(|line| line.strip_prefix("session ").map(str::to_owned)).collect();
    told.sort();
    ids.sort();
    assert_eq!(told, ids);
    let report = server.end().report;
    assert_eq!(report["violations"], json!([]), "{report:#}");
    assert_eq!(report["requests"]["stop"]["count"], 4, "the item that is no session as well");
    assert_eq!(report["requests"]["heartbeat"]["count"].as_u64().unwrap_or(0), 0);
}

#[test]
fn a_key_that_is_refused_ends_the_poller_with_an_error() {
    // POLL-5.
    let server = Devserver::with("[[fault]]\non = \"poll\"\ndo = \"401\"\ntimes = 100\n", &[]);
    let (status, _) = run(Level::here()[0], &server, "poller", &[]);
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_worker_without_a_jail_serves_the_toolset_and_functions() {
    // TOOL-GEN-0, RUN-16, RUN-19, RUN-20; that there is no jail is the point of the last calls.
    for level in Level::here() {
        let _turn = lock::shared();
        let outside = directory_of(level);
        fs::write(outside.path().join("file"), "of the host").expect("written");
        let here = directory_of(level);
        let directory = here.path().display().to_string();
        let file = outside.path().join("file").display().to_string();
        let mut foreign = custom("of_another", json!({}));
        foreign["unowned"] = json!(true);
        foreign["id"] = json!("foreign");
        let calls = [
            gives(bash("pwd; X=1"), &directory),
            fails(bash("echo $X $TERM; env | grep -c ANTHROPIC"), "1 dumb\n0\nexit code: 1"),
            expect(
                json!({"write": {"file_path": "new", "content": "text"}}),
                json!({"is_error": false}),
            ),
            gives(bash("cat new"), "text"),
            expect(json!({"read": "new"}), json!({"is_error": false, "contains": "text"})),
            expect(json!({"read": file}), json!({"is_error": true})),
            gives(bash(&format!("cat {file}")), "of the host"),
            gives(custom("lookup_order", json!({"number": 7})), "order 7 has shipped"),
            fails(custom("lookup_order", json!({"number": 0})), "there is no order 0"),
            expect(
                custom("lookup_order", json!({"number": "x"})),
                json!({"is_error": true, "contains": "invalid lookup_order input: invalid type"}),
            ),
            foreign,
            json!({"answer": "foreign", "text": "by another"}),
            expect(
                json!({"bash": {"command": "setsid sleep 4713.25 & sleep 4713.25", "timeout_ms": 500}}),
                json!({"is_error": true, "matches": "bash: command timed out after 0.5s; the shell \
                    kept its working directory and variables$"}),
            ),
            gives(bash("pgrep -fc 'sleep 4713[.]25'; echo $X"), "0\n1"),
            gives(bash("sleep 4713.75 & setsid sleep 4713.75 & echo left"), "left"),
            gives(json!({"bash": {"restart": true}}), "bash session restarted"),
            gives(bash("pgrep -fc 'sleep 4713[.]75'; setsid sleep 4714.25 & true"), "0"),
        ];
        let server = Devserver::with("", &["--keep-results"]);
        server.push(&session("unjailed", calls));
        ok(level, &server, "worker", &[&directory]);
        passed(server.end(), "");
        // INV-10: helpers end within seconds of their program.
        let gone = wait_for(Duration::from_secs(5), || {
            ["4713.25", "4713.75", "4714.25", "stockade-toolset"].iter().all(|name| !runs(name))
        });
        assert!(gone, "{level:?}: something outlived its session");
    }
}

#[test]
fn a_session_without_a_jail_goes_on_without_skills_and_memory_stores() {
    // Documented in docs/library.md; the control is the suite `library_furnished`.
    let level = Level::here()[0];
    let here = directory_of(level);
    let directory = here.path().display().to_string();
    let skill = "[[skill]]\nid = \"a\"\nname = \"a\"\nfiles = { \"SKILL.md\" = \"A\" }\n";
    let server = Devserver::with(skill, &["--keep-results"]);
    let store = json!({"id": "memstore_1", "memories": {"/a": "1"}});
    server.dev("POST", "memory_stores", &store);
    let stores = [("memstore_1", "read_write", "/mnt/memory/notes-of-4717")];
    let calls = [gives(bash("ls -A; ls -d /mnt/memory/notes-of-4717 2>/dev/null | wc -l"), "0")];
    let mut play = with_stores("bare", &stores, calls);
    play["end"] = json!("terminate");
    play["skills"] = json!([{"type": "custom", "skill_id": "a", "version": "latest"}]);
    server.push(&play);
    ok(level, &server, "worker", &[&directory]);
    let report = passed(server.end(), "");
    for endpoint in ["skill", "skill_content", "memory_list"] {
        assert_eq!(report["requests"][endpoint]["count"].as_u64().unwrap_or(0), 0, "{endpoint}");
    }
}

#[test]
fn a_session_is_served_without_a_work_item() {
    // RUN-1 to RUN-4, IDLE-8: nothing is polled, beaten or stopped.
    let level = Level::here()[0];
    let here = directory_of(level);
    let server = Devserver::with("", &["--keep-results"]);
    let ids = server.push(&session(
        "alone",
        [gives(bash("echo hi"), "hi"), gives(bash("pwd"), &here.path().display().to_string())],
    ));
    let said = ok(level, &server, "session_runner", &[&ids[0], &here.path().display().to_string()]);
    assert_eq!(said, "SessionEnded\n");
    let report = server.end().report;
    for endpoint in ["poll", "ack", "heartbeat", "stop"] {
        assert_eq!(report["requests"][endpoint]["count"].as_u64().unwrap_or(0), 0, "{endpoint}");
    }
    let alone = &report["sessions"][0];
    assert_eq!(alone["failures"].as_array().map_or(0, Vec::len), 0, "{report:#}");
}

#[test]
fn a_toolset_in_jails_is_that_of_the_worker() {
    // INV-1, INV-2, INV-7: the function is outside, the shell is not.
    for level in Level::here() {
        let _turn = lock::shared();
        let outside = tempfile::Builder::new().prefix("e2e-outside-").tempdir().expect("made");
        fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let file = outside.path().join("file");
        fs::write(&file, "of the host").expect("written");
        let state = directory_of(level);
        let audit = state.path().join("audit.jsonl");
        let calls = [
            gives(bash("pwd; id -u; env | grep -c ANTHROPIC || true"), "/workspace\n1000\n0"),
            expect(bash(&format!("cat {}", file.display())), json!({"is_error": true})),
            gives(custom("host_name", json!({})), "of the program, outside the jail"),
            gives(bash("sleep 4715.25 & echo left"), "left"),
        ];
        let mut two = session("jailed", calls);
        two["copies"] = json!(2);
        let server = Devserver::with("", &["--keep-results"]);
        server.push(&two);
        ok(level, &server, "toolset", &["default", &audit.display().to_string()]);
        passed(server.end(), "");
        let (code, told) = verify(&audit);
        assert_eq!(code, Some(0), "{told}");
        let log = fs::read_to_string(&audit).expect("readable");
        assert_eq!(log.matches("\"jail.launched\"").count(), 2);
        assert_eq!(log.matches("\"session.disposed\"").count(), 2);
        assert!(wait_for(SOON, || !runs("4715.25")), "INV-10");
    }
}

#[test]
fn a_policy_that_is_not_there_is_an_error_of_the_program() {
    let state = directory_of(Level::here()[0]);
    let server = Devserver::start();
    let audit = state.path().join("audit.jsonl").display().to_string();
    let (status, _) = run(Level::here()[0], &server, "toolset", &["nonexistent", &audit]);
    assert_eq!(status.code(), Some(1));
    assert!(!Path::new(&audit).exists(), "nothing was begun");
}
