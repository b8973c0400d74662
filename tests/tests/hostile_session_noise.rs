//! Noise: one session takes all it can while another one works. The other's calls stay right and
//! quick, and the noisy one goes on with an explained error. INV-10, INV-11.

use std::time::Duration;

use e2e::session::Answer;
use e2e::{Level, Session};
use serde_json::json;

/// A call of the quiet session may take this long beside the noise, on a host with few processors.
const QUICK: Duration = Duration::from_secs(4);

/// Commands that take all of something, and a word of the result, or nothing if it may succeed.
const NOISE: &[(&str, &[&str])] = &[
    ("head -c 10G /dev/zero | tr '\\0' x", &["timed out"]),
    ("while :; do echo x; done", &["timed out"]),
    ("sleep 3600", &["timed out"]),
    (":(){ :|:& };:", &[]),
    ("f() { f | f; }; f", &["process", "timed out", "restarted", "exit code", "ended"]),
    ("while :; do sleep 100 & done 2>/dev/null", &["process", "timed out", "restarted", "ended"]),
    ("head -c 2G /dev/zero >/workspace/fill", &["No space left", "exit code"]),
    ("head -c 2G /dev/zero >/tmp/fill", &["No space left", "exit code"]),
    ("head -c 2G /dev/zero >/dev/shm/fill", &["No space left", "exit code"]),
    ("cd /tmp; seq 1 200000 | xargs touch", &["No space left", "exit code", "timed out"]),
    (
        "python3 -c 'x=[bytearray(1<<26) for i in range(100)]'",
        &["Killed", "exit code", "memory", "ended"],
    ),
    ("x=x; while :; do x=$x$x; done", &["exit code", "ended", "timed out", "allocate"]),
    ("kill -9 -1", &[]),
    ("trap '' 1 2 3 15; while :; do :; done", &["timed out"]),
];

fn quiet_call(session: &mut Session, beside: &str) {
    let text = "while :; do echo";
    let answers: [Answer; 3] = [
        session.bash("x=$((6*7)); echo $x"),
        session.call("write", &json!({ "file_path": "note", "content": text })),
        session.call("read", &json!({ "file_path": "note" })),
    ];
    assert_eq!(answers[0].text, "42", "{:?} beside {beside}", session.level);
    assert!(!answers[1].is_error, "{:?} beside {beside}: {:?}", session.level, answers[1]);
    assert_eq!(answers[2].text, text, "{:?} beside {beside}", session.level);
    for answer in answers {
        assert!(answer.took < QUICK, "INV-11 {:?} beside {beside}: {answer:?}", session.level);
    }
}

fn disturb(level: Level) {
    let (mut noisy, mut quiet) = (Session::start(level), Session::start(level));
    quiet_call(&mut quiet, "silence");
    for (command, words) in NOISE {
        noisy.begin("bash", &json!({ "command": command, "timeout_ms": 2500 }));
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(100));
            quiet_call(&mut quiet, command);
        }
        let answer = noisy.answer().unwrap_or_else(|| panic!("{level:?}: {command} ended it"));
        let text = format!("{} {}", answer.text, answer.facts);
        let explained = words.is_empty() || words.iter().any(|word| text.contains(word));
        assert!(explained, "INV-11 {level:?}: {command}: {text}");
        assert!(answer.took < Duration::from_secs(15), "INV-11 {level:?}: {command}: {answer:?}");
        // Without a restart the next call is served, if only with an explanation.
        let next = noisy.limited("echo next", 3000);
        assert!(next.took < Duration::from_secs(15), "INV-11 {level:?}: {command}: {next:?}");
        noisy.call(
            "bash",
            &json!({ "restart": true, "command": "rm -rf /workspace/* /tmp/* /dev/shm/*" }),
        );
        noisy.restart(command);
        let tool = noisy.call("write", &json!({ "file_path": "after", "content": "x" }));
        assert!(!tool.is_error, "{level:?}: after {command}: {tool:?}");
    }
    quiet.end();
    noisy.end();
}

#[test]
fn noise_of_one_session_leaves_another_alone_as_root() {
    e2e::require!(e2e::Need::Root);
    disturb(Level::Root);
}

#[test]
fn noise_of_one_session_leaves_another_alone_without_root() {
    disturb(Level::Rootless);
}
