//! Egress of sessions that `worker poll` serves: what the model is told, what is recorded for each call,
//! rules that change under live sessions, and sessions beside each other. INV-8, INV-10, INV-12;
//! product.md 3.4, parts 5 to 7 of the contract.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use e2e::lab::relay::Relay;
use e2e::lab::{Lab, policy_text};
use e2e::play::{SOON, bash, expect, passed, session};
use e2e::{Devserver, Level, Poll, Worker};
use serde_json::{Value, json};

const SECONDS: Duration = Duration::from_secs(10);

/// A worker in the laboratory, for a server outside of it.
struct Site {
    lab: Lab,
    server: Devserver,
    _relay: Relay,
    policy: tempfile::TempDir,
}

impl Site {
    fn new(network: &str) -> Site {
        let lab = Lab::standard();
        let server = Devserver::with("", &["--keep-results"]);
        let relay = Relay::to(&lab, server.port());
        let policy = tempfile::Builder::new().prefix("e2e-rules-").tempdir().expect("a directory");
        fs::set_permissions(policy.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let site = Site { lab, server, _relay: relay, policy };
        site.rules(network);
        site
    }

    /// Writes the policy; the worker reads it when it starts and on SIGHUP.
    fn rules(&self, network: &str) {
        let fresh = self.policy.path().join("new");
        fs::write(&fresh, policy_text(network)).expect("cannot write the policy");
        fs::rename(&fresh, self.file()).expect("cannot replace the policy");
    }

    fn file(&self) -> std::path::PathBuf {
        self.policy.path().join("policy.toml")
    }

    fn worker(&self, level: Level) -> Worker {
        let poll = Poll::at(level).wrapped_in(&self.lab.wrapper());
        poll.path("--policy", &self.file()).options(["--max-sessions", "8"]).serve(&self.server)
    }

    fn ended(self, worker: Worker) -> (Lab, e2e::Ran, Value) {
        self.server.wait_done(2 * SOON);
        let ran = worker.stop().ended(0);
        let report = passed(self.server.end(), &ran.stderr);
        (self.lab, ran, report)
    }
}

/// A connection by bash, which needs no program: says what comes back, or that nothing does.
fn dial(host: &str, port: u16) -> String {
    format!(
        "(exec 3<>/dev/tcp/{host}/{port} && echo hello >&3 && read -t 5 -r line <&3 && echo \"got $line\") \
         2>/dev/null || echo no"
    )
}

#[test]
fn what_the_broker_denied_during_a_call_is_in_its_footer_and_nowhere_else() {
    // Part 6 of the contract; INV-12.
    for level in Level::here() {
        let site = Site::new(
            "allow = [\"api.example.test:7000\", \"api.example.test:80\"]\ndeny_detail = \"full\"",
        );
        let denied =
            format!("{0}; {0}; {1}", dial("203.0.113.11", 7000), dial("169.254.169.254", 80));
        let calls = [
            expect(
                bash(&dial("api.example.test", 7000)),
                json!({"is_error": false, "text": "got hello"}),
            ),
            expect(bash(&denied), json!({"is_error": false, "contains": "203.0.113.11:7000"})),
            expect(
                bash("getent hosts secret.other.example.test || echo none"),
                json!({"is_error": false}),
            ),
            expect(bash("echo after"), json!({"is_error": false, "text": "after"})),
        ];
        site.server.push(&session("footer", calls));
        let worker = site.worker(level);
        let (lab, ran, report) = site.ended(worker);
        let results = texts(&report, "footer");
        let footer = &results[1];
        assert!(footer.contains("blocked by operator policy"), "{level:?}: {footer}");
        assert!(footer.contains("169.254.169.254:80"), "{level:?}: {footer}");
        let lines = footer.lines().filter(|line| line.contains("203.0.113.11:7000")).count();
        assert_eq!(lines, 1, "once for each target, {level:?}: {footer}");
        assert!(footer.contains("x2"), "{level:?}: {footer}");
        assert!(results[2].contains("secret.other.example.test"), "{level:?}: {}", results[2]);
        // Each call has its own, and the ledger says the same.
        let audited = |name: &str| ran.audited(name).len();
        assert!(audited("egress.allowed") >= 1, "{level:?}: {:?}", ran.audit);
        assert!(audited("egress.denied") >= 2, "{level:?}: {:?}", ran.audit);
        let closed = ran.audited("egress.closed");
        assert!(!closed.is_empty(), "{level:?}: no end was recorded");
        assert_eq!(
            lab.questions().iter().filter(|name| name.contains("secret")).count(),
            0,
            "INV-8"
        );
        let text = serde_json::to_string(&ran.audit).expect("JSON");
        assert!(!text.contains("hello") && !ran.stderr.contains("got hello"), "INV-12 {level:?}");
    }
}

/// The results of a session, in order, as the report keeps them.
fn texts(report: &Value, name: &str) -> Vec<String> {
    let sessions = report["sessions"].as_array().expect("a list");
    let session = sessions.iter().find(|one| one["name"] == name).expect("a session of this name");
    let calls = session["calls"].as_array().unwrap_or_else(|| panic!("no calls in {session:#}"));
    let text = |call: &Value| {
        let blocks = call["result"]["content"].as_array().cloned().unwrap_or_default();
        blocks.iter().filter_map(|block| block["text"].as_str()).collect::<String>()
    };
    calls.iter().map(text).collect()
}

#[test]
fn rules_that_change_reach_live_sessions_and_close_what_they_no_longer_allow() {
    // Part 7 of the contract: SIGHUP.
    const BOTH: &str = r#"allow = ["api.example.test:7000", "other.example.test:7000", "first.example.test:7001"]"#;
    const ONE: &str = r#"allow = ["other.example.test:7000", "raw.example.test:9000"]"#;
    for level in Level::here() {
        let site = Site::new(BOTH);
        // One connection of each rule stays open in the background, while calls go on.
        let hold = |host: &str| {
            format!(
                "(exec 3<>/dev/tcp/{host}/7000; echo hold >&3; cat <&3 >/dev/null; echo {host} >>ended) &"
            )
        };
        let calls = [
            bash(&format!(
                "{} {} sleep 0.5; echo started",
                hold("api.example.test"),
                hold("other.example.test")
            )),
            bash("sleep 3; cat ended; true"),
            bash(&dial("api.example.test", 7000)),
            bash(&dial("other.example.test", 7000)),
        ];
        site.server.push(&session("live", calls));
        let worker = site.worker(level);
        let on = |on: &'static str, what: &'static str| {
            move |heard: &[Value]| heard.iter().any(|line| line["on"] == on && line["what"] == what)
        };
        site.lab.wait_heard(3 * SECONDS, on("203.0.113.10:7000", "accept"));
        site.lab.wait_heard(3 * SECONDS, on("203.0.113.11:7000", "accept"));
        assert!(site.lab.heard_by("203.0.113.10:7000", "end").is_empty(), "{level:?}");
        site.rules(ONE);
        worker.signal("HUP");
        site.lab.wait_heard(SECONDS, on("203.0.113.10:7000", "end"));
        assert!(
            site.lab.heard_by("203.0.113.11:7000", "end").is_empty(),
            "{level:?}: closed too much"
        );
        let (lab, ran, report) = site.ended(worker);
        let results = texts(&report, "live");
        assert!(results[1].contains("api.example.test"), "{level:?}: {results:?}");
        assert!(!results[1].contains("other.example.test"), "{level:?}: {results:?}");
        assert!(results[2].starts_with("no"), "{level:?}: {results:?}");
        assert!(results[3].starts_with("got hello"), "{level:?}: {results:?}");
        assert_eq!(lab.heard_by("203.0.113.10:7000", "accept").len(), 1, "INV-8 {level:?}");
        assert!(!ran.audited("config.reloaded").is_empty(), "{level:?}: not recorded");
    }
}

#[test]
fn rules_that_are_added_work_in_a_live_session() {
    for level in Level::here() {
        let site = Site::new(r#"allow = ["first.example.test:7001", "api.example.test:443"]"#);
        let wide = r#"allow = ["first.example.test:7001", "api.example.test:443", "api.example.test:7000"]"#;
        let before = dial("api.example.test", 7000);
        let until = format!(
            "for n in $(seq 100); do r=$({before}); test \"$r\" = no || break; sleep 0.1; done; echo \"$r\""
        );
        site.server.push(&session(
            "live",
            [bash(&before), bash(&dial("first.example.test", 7001)), bash(&until)],
        ));
        let worker = site.worker(level);
        site.lab.wait_heard(3 * SECONDS, |heard| {
            heard.iter().any(|line| line["on"] == "203.0.113.13:7001")
        });
        site.rules(wide);
        worker.signal("HUP");
        let (_, _, report) = site.ended(worker);
        let results = texts(&report, "live");
        assert!(results[0].starts_with("no"), "{level:?}: {results:?}");
        assert!(results[2].contains("got hello"), "{level:?}: {results:?}");
    }
}

/// Says what comes back as soon as something does, for at most ten seconds.
fn dial_until(host: &str, port: u16) -> String {
    let once = dial(host, port);
    format!(
        "for n in $(seq 100); do r=$({once}); test \"$r\" = no || break; sleep 0.1; done; echo \"$r\""
    )
}

#[test]
fn a_port_that_is_taken_inside_keeps_no_other_closed() {
    // Part 7 of the contract; INV-2: what is in the jail decides nothing about what is outside.
    for level in Level::here() {
        let site = Site::new(r#"allow = ["db.example.test:5432"]"#);
        let say = "(exec 3<>/dev/tcp/db.example.test/5432)";
        let listen = "import socket, time; s = socket.create_server(('127.0.0.1', 7000)); print(1, flush=True); time.sleep(30)";
        let calls = [
            bash(&format!(
                "python3 -c \"{listen}\" >listens & echo $! >pid; until test -s listens; do sleep 0.1; done; {say}"
            )),
            bash(&dial_until("first.example.test", 7001)),
            bash(&format!("kill $(cat pid); sleep 0.3; {say}")),
            bash(&dial_until("api.example.test", 7000)),
        ];
        site.server.push(&session("taken", calls));
        let worker = site.worker(level);
        let said = |times: usize| {
            move |heard: &[Value]| {
                let of =
                    |line: &&Value| line["on"] == "198.51.100.5:5432" && line["what"] == "accept";
                heard.iter().filter(of).count() == times
            }
        };
        site.lab.wait_heard(3 * SECONDS, said(1));
        site.rules(
            r#"allow = ["db.example.test:5432", "api.example.test:7000", "first.example.test:7001"]"#,
        );
        worker.signal("HUP");
        site.lab.wait_heard(3 * SECONDS, said(2));
        worker.signal("HUP");
        let (_, ran, report) = site.ended(worker);
        let results = texts(&report, "taken");
        assert!(results[1].starts_with("got 220 lab"), "{level:?}: {results:?}");
        assert!(ran.stderr.contains("port 7000: Address already in use"), "{}", ran.stderr);
        assert!(!ran.stderr.contains("cannot make the jail"), "{}", ran.stderr);
        // The control: the same port, once it is free.
        assert!(results[3].starts_with("got hello"), "{level:?}: {results:?}");
    }
}

#[test]
fn a_port_that_rules_name_again_is_there_at_once() {
    // Part 7 of the contract: an operator who takes a change back. Connections that the far end ended
    // are remembered by the jail's kernel for a minute.
    for level in Level::here() {
        let both = r#"allow = ["slow.example.test:7000", "api.example.test:7000", "first.example.test:7001"]"#;
        let site = Site::new(both);
        let calls = [
            bash(
                "exec 3<>/dev/tcp/slow.example.test/7000; echo now >&3; cat <&3 | wc -c; exec 3>&-",
            ),
            bash(&format!("{}; sleep 2", dial("first.example.test", 7001))),
            bash(&dial_until("api.example.test", 7000)),
        ];
        site.server.push(&session("again", calls));
        let worker = site.worker(level);
        site.lab.wait_heard(3 * SECONDS, |heard| {
            heard.iter().any(|line| line["on"] == "203.0.113.13:7001")
        });
        site.rules(r#"allow = ["first.example.test:7001"]"#);
        worker.signal("HUP");
        std::thread::sleep(Duration::from_millis(500));
        site.rules(both);
        worker.signal("HUP");
        let (_, ran, report) = site.ended(worker);
        let results = texts(&report, "again");
        assert!(results[0].starts_with("20"), "{level:?}: {results:?}");
        assert!(!ran.stderr.contains("stay closed"), "{level:?}: {}", ran.stderr);
        assert!(results[2].starts_with("got hello"), "{level:?}: {results:?}");
    }
}

#[test]
fn sessions_of_one_worker_have_names_and_budgets_of_their_own() {
    // INV-6, INV-8: what an address stands for in one session, it stands for in no other.
    for level in Level::here() {
        let site = Site::new(
            "allow = [\"api.example.test:7000\", \"other.example.test:7000\", \"*.pkg.example.test:7000\"]\nwildcard_names = 3",
        );
        let names = |at: usize| -> String {
            let lookups = (0..6).map(|n| {
                format!("getent hosts w{at}n{n}.pkg.example.test >/dev/null && echo yes;")
            });
            lookups.collect()
        };
        let direct = dial("198.18.0.16", 7000);
        for (at, host) in ["api.example.test", "other.example.test"].into_iter().enumerate() {
            let calls = [
                bash(&direct),
                bash(&format!("{}; sleep 0.5", dial(host, 7000))),
                bash(&direct),
                bash(&format!("{} true", names(at))),
            ];
            site.server.push(&session(&format!("s{at}"), calls));
        }
        let worker = site.worker(level);
        let (lab, _, report) = site.ended(worker);
        for name in ["s0", "s1"] {
            let results = texts(&report, name);
            assert!(results[0].starts_with("no"), "INV-8 {level:?} {name}: {results:?}");
            assert!(results[1].starts_with("got hello"), "{level:?} {name}: {results:?}");
            assert!(results[2].starts_with("got hello"), "{level:?} {name}: {results:?}");
            let count = results[3].lines().filter(|line| *line == "yes").count();
            assert_eq!(count, 3, "{level:?} {name}: the budget is its own: {results:?}");
        }
        // By name and by the address that stands for it: twice each, whatever the address.
        for on in ["203.0.113.10:7000", "203.0.113.11:7000"] {
            assert_eq!(lab.heard_by(on, "accept").len(), 2, "INV-8 {level:?}: {:#?}", lab.heard());
        }
    }
}

#[test]
fn a_worker_that_is_killed_takes_its_connections_along_and_the_next_one_works() {
    // INV-10: the broker is part of the worker.
    for level in Level::here() {
        let site = Site::new(r#"allow = ["api.example.test:7000"]"#);
        let hold = "exec 3<>/dev/tcp/api.example.test/7000; echo hold >&3; sleep 100";
        site.server.push(&session("killed", [bash(hold)]));
        let poll = Poll::at(level).wrapped_in(&site.lab.wrapper()).may_leave();
        let worker = poll.path("--policy", &site.file()).serve(&site.server);
        let at = |what: &'static str| {
            move |heard: &[Value]| {
                heard.iter().any(|line| line["on"] == "203.0.113.10:7000" && line["what"] == what)
            }
        };
        site.lab.wait_heard(3 * SECONDS, at("accept"));
        assert!(site.lab.heard_by("203.0.113.10:7000", "end").is_empty(), "{level:?}");
        worker.signal("KILL");
        site.lab.wait_heard(SECONDS, at("end"));
        let ran = worker.wait();
        assert!(
            ran.leftovers.iter().all(|thing| !thing.starts_with("process")),
            "{:?}",
            ran.leftovers
        );
        site.lab.forget();
        // Another server, so that the call of the killed worker is not what is waited for.
        let server = Devserver::with("", &["--keep-results"]);
        let _relay = Relay::to(&site.lab, server.port());
        server.push(&session(
            "next",
            [expect(bash(&dial("api.example.test", 7000)), json!({"text": "got hello"}))],
        ));
        let poll = Poll::at(level).wrapped_in(&site.lab.wrapper());
        let worker = poll.path("--policy", &site.file()).serve(&server);
        server.wait_done(2 * SOON);
        let ran = worker.stop().ended(0);
        passed(server.end(), &ran.stderr);
        site.lab.wait_heard(SECONDS, at("accept"));
    }
}

#[test]
fn the_report_of_a_log_names_every_destination_and_its_bytes() {
    // Part 5 of the contract: `worker egress report`.
    for level in Level::here() {
        let site = Site::new(r#"allow = ["api.example.test:7000"]"#);
        let calls = [bash(&dial("api.example.test", 7000)), bash(&dial("203.0.113.11", 7000))];
        site.server.push(&session("reported", calls));
        let worker = site.worker(level);
        let (_, ran, _) = site.ended(worker);
        let said = report(&ran.audit_file());
        assert!(
            said.contains("api.example.test") && said.contains("203.0.113.11"),
            "{level:?}: {said}"
        );
    }
}

fn report(audit: &Path) -> String {
    let command = std::process::Command::new(e2e::locate::worker())
        .args(["egress", "report", "--audit-file"])
        .arg(audit)
        .output();
    let output = command.expect("cannot run the worker");
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}
