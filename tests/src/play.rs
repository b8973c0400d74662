//! Sessions played by a development server for one worker, and what must come of them.
//!
//! A session is a table as in a script; the functions here write its steps shorter.

use std::time::Duration;

use serde_json::{Value, json};

use crate::devserver::Ended;
use crate::{Devserver, Level, Poll, Ran};

/// A session that ends after its calls.
pub fn session(name: &str, calls: impl IntoIterator<Item = Value>) -> Value {
    let calls: Vec<Value> = calls.into_iter().collect();
    json!({"name": name, "calls": calls, "within_s": 40})
}

/// A bash call.
pub fn bash(command: &str) -> Value {
    json!({"bash": command})
}

/// The call succeeds with exactly this text.
pub fn gives(mut call: Value, text: &str) -> Value {
    call["expect"] = json!({"is_error": false, "text": text});
    call
}

/// The call fails with exactly this text.
pub fn fails(mut call: Value, text: &str) -> Value {
    call["expect"] = json!({"is_error": true, "text": text});
    call
}

/// The call's result meets these conditions.
pub fn expect(mut call: Value, conditions: Value) -> Value {
    call["expect"] = conditions;
    call
}

/// What came of a play.
#[derive(Debug)]
pub struct Played {
    /// The server's report.
    pub report: Value,
    /// The worker's run.
    pub ran: Ran,
}

impl Played {
    /// A session of the report by its name.
    ///
    /// # Panics
    /// If there is none.
    pub fn session(&self, name: &str) -> &Value {
        let sessions = self.report["sessions"].as_array().expect("a list");
        sessions.iter().find(|one| one["name"] == name).expect("a session of this name")
    }

    /// How often an endpoint was asked.
    pub fn requests(&self, endpoint: &str) -> u64 {
        self.report["requests"][endpoint]["count"].as_u64().unwrap_or_default()
    }
}

/// One worker serves these sessions and is then asked to stop.
pub fn play(level: Level, sessions: &[Value]) -> Played {
    play_with(level, "", sessions, |poll| poll)
}

/// As [`play`], with a script of its own for settings and faults, and options of the worker.
///
/// # Panics
/// If a result is not as expected, the worker violates the protocol, fails, or leaves something.
pub fn play_with(
    level: Level,
    script: &str,
    sessions: &[Value],
    prepare: impl FnOnce(Poll) -> Poll,
) -> Played {
    let server = Devserver::with(script, &["--keep-results"]);
    for session in sessions {
        server.push(session);
    }
    let mut poll = prepare(Poll::at(level));
    if !poll.has("--max-sessions") && !poll.has("--workdir") {
        poll = poll.options(["--max-sessions", "8"]);
    }
    let worker = poll.serve(&server);
    server.wait_done(2 * SOON);
    let ran = worker.stop().ended(0);
    let report = passed(server.end(), &ran.stderr);
    Played { report, ran }
}

/// The report of a server that has nothing to complain about.
///
/// # Panics
/// If it has.
pub fn passed(ended: Ended, said: &str) -> Value {
    let report = ended.report;
    let told = complaints(&report);
    assert_eq!(report["result"], "passed", "{told}\nthe worker said:\n{}", trouble(said));
    report
}

/// The lines of a log that are not about the ordinary.
pub fn trouble(said: &str) -> String {
    let ordinary =
        |line: &&str| !["\"INFO\"", "\"DEBUG\""].iter().any(|level| line.contains(level));
    said.lines().filter(ordinary).collect::<Vec<_>>().join("\n")
}

/// What differed and what was violated.
pub fn complaints(report: &Value) -> String {
    let list = |name: &str| report[name].as_array().cloned().unwrap_or_default();
    let told: Vec<String> =
        list("failures").iter().chain(&list("violations")).map(Value::to_string).collect();
    told.join("\n")
}

/// Time in which something short happens on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);
