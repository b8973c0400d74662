//! What an operator learns of a session's network afterwards, from the audit log of a worker that served
//! it: `worker why`, `worker egress report`, `worker policy suggest`; and what the model was told. INV-12;
//! product.md 3.4, part 5 and 6 of the contract.

use std::path::Path;
use std::process::Command;

use e2e::lab::relay::Relay;
use e2e::lab::{Lab, policy, policy_text, standard_servers, standard_zone};
use e2e::play::{SOON, bash, passed, session};
use e2e::policy::PolicyFile;
use e2e::{Devserver, Level, Need, Poll, Ran, locate, require};
use serde_json::{Value, json};

const RULES: &str = "allow = [\"api.example.test:7000\"]";

/// A connection by bash that says five letters and a line end, and hears them again.
fn dial(host: &str, port: u16) -> String {
    format!(
        "(exec 3<>/dev/tcp/{host}/{port}; echo hello >&3; read -t 5 -r line <&3; echo $line) 2>/dev/null; "
    )
}

/// Serves one session of a call with this policy: the worker's run, the id of the session, the result.
fn serve(level: Level, network: &str, command: &str) -> (Ran, String, String) {
    serve_in(&Lab::standard(), level, network, command)
}

fn serve_in(lab: &Lab, level: Level, network: &str, command: &str) -> (Ran, String, String) {
    let server = Devserver::with("", &["--keep-results"]);
    let _relay = Relay::to(lab, server.port());
    let file = policy(network);
    server.push(&session("one", [bash(command)]));
    let worker =
        Poll::at(level).wrapped_in(&lab.wrapper()).path("--policy", &file.path()).serve(&server);
    server.wait_done(2 * SOON);
    let ran = worker.stop().ended(0);
    let report = passed(server.end(), &ran.stderr);
    let text = report["sessions"][0]["calls"][0]["result"]["content"][0]["text"].clone();
    let denied = ran.audited("egress.denied");
    let id = denied[0]["session"].as_str().expect("an id").to_owned();
    (ran, id, text.as_str().unwrap_or_default().to_owned())
}

/// Runs the worker: exit code, standard output, standard error.
fn worker(words: &[&str], audit: Option<&Path>) -> (i32, String, String) {
    let mut command = Command::new(locate::worker());
    command.args(words);
    if let Some(audit) = audit {
        command.arg("--audit-file").arg(audit);
    }
    let done = command.output().expect("cannot run the worker");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.code().unwrap_or(-1), text(&done.stdout), text(&done.stderr))
}

/// The row of a report's list about one host.
fn row<'a>(report: &'a Value, list: &str, host: &str) -> &'a Value {
    let rows = report[list].as_array().unwrap_or_else(|| panic!("no {list} in {report:#}"));
    let found = rows.iter().find(|row| row["host"] == host);
    found.unwrap_or_else(|| panic!("no {host} in {list} of {report:#}"))
}

#[test]
fn a_log_tells_what_was_decided_about_each_destination() {
    let calls = [
        dial("api.example.test", 7000),
        dial("203.0.113.11", 7000),
        dial("169.254.169.254", 7000),
        "getent hosts new.example.test; true".to_owned(),
    ];
    for level in Level::here() {
        let (ran, id, said) = serve(level, RULES, &calls.concat());
        assert!(said.starts_with("hello"), "{level:?}: {said}");
        let audit = ran.audit_file();

        // why: 0 allowed, 1 denied, 2 nothing known.
        let why = |session: &str, to: &str| worker(&["why", session, to], Some(&audit));
        #[rustfmt::skip]
        let cases = [
            ("api.example.test:7000", 0, "allowed by rule api.example.test:7000"),
            ("203.0.113.11:7000", 1, "no rule lists"),
            ("169.254.169.254:7000", 1, "metadata is never allowed"),
        ];
        for (to, code, part) in cases {
            let (got, out, err) = why(&id, to);
            assert_eq!(got, code, "{level:?} {to}: {out}{err}");
            assert!(out.contains(part), "{level:?} {to}: `{part}` is not in: {out}");
        }
        for (session, to) in [(id.as_str(), "unheard.example.test:443"), ("sesn_none", "a.test:1")]
        {
            let (got, out, err) = why(session, to);
            assert_eq!((got, out.as_str()), (2, ""), "{level:?} {to}: {err}");
            assert!(err.starts_with("error: ") && err.contains("\nhint: "), "{level:?}: {err}");
        }

        // The report: one document, with the bytes of both ways.
        let (code, out, err) = worker(&["egress", "report", "--format", "json"], Some(&audit));
        assert_eq!(code, 0, "{level:?}: {err}");
        let report: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(report["schema"], "stockade.egress.report", "{level:?}");
        assert_eq!(report["verified"], true, "{level:?}");
        let api = row(&report, "allowed", "api.example.test");
        let got = [&api["port"], &api["connections"], &api["bytes_out"], &api["bytes_in"]];
        assert_eq!(got.map(Value::as_u64), [7000, 1, 6, 6].map(Some), "{level:?}: {api:#}");
        assert_eq!(api["rule"], "api.example.test:7000", "{level:?}");
        assert!(api["origin"].as_str().is_some_and(|at| at.contains(".toml:")), "{api:#}");
        assert_eq!(api["report_mode"], false, "{level:?}");
        assert_eq!(row(&report, "denied", "203.0.113.11")["reason"], "direct-address");
        let lookup = row(&report, "denied", "new.example.test");
        assert_eq!((&lookup["lookup"], &lookup["port"]), (&Value::Bool(true), &Value::Null));
        assert!(report["tool_results"]["bytes"].as_u64() >= Some(6), "{report:#}");

        // Suggestions are a policy, by which what was refused would be allowed.
        let (code, suggested, err) = worker(&["policy", "suggest"], Some(&audit));
        assert_eq!(code, 0, "{level:?}: {err}");
        assert!(suggested.contains("# Not suggested: 169.254.169.254:7000"), "{suggested}");
        let suggested = PolicyFile::from_text(&suggested);
        let path = suggested.path().display().to_string();
        let test = |to: &[&str]| worker(&[&["policy", "test", &path], to].concat(), None);
        let (code, out, err) = test(&["203.0.113.11:7000", "new.example.test:443"]);
        assert_eq!(code, 0, "{level:?}: {out}{err}");
        let before = PolicyFile::from_text(&policy_text(RULES));
        let (code, ..) = worker(
            &["policy", "test", "-f", &before.path().display().to_string(), "new.example.test"],
            None,
        );
        assert_eq!(code, 1, "control: the policy itself denies it");
        for to in ["169.254.169.254:7000", "private.example.test:7000"] {
            assert_eq!(test(&[to]).0, 1, "{level:?}: {to} is suggested");
        }
    }
}

#[test]
fn the_end_of_a_connection_names_the_address_that_answered() {
    // Nobody listens on the first of the two addresses.
    const DEAD: &str = "203.0.113.99";
    const ALIVE: &str = "203.0.113.10";
    let mut zone = standard_zone();
    zone["twice.example.test"] = json!({"A": [DEAD, ALIVE]});
    let rules = r#"allow = ["api.example.test:7000", "twice.example.test:7000"]"#;
    let command = [
        dial("api.example.test", 7000),
        dial("twice.example.test", 7000),
        dial("other.example.test", 7000), // serve() knows the session by what was denied to it
    ];
    for level in Level::here() {
        let lab = Lab::with(&standard_servers(), &zone);
        let (ran, _, said) = serve_in(&lab, level, rules, &command.concat());
        assert!(said.starts_with("hello\nhello\n"), "{level:?}: {said}");
        let of = |event: &str, host: &str| {
            let all = ran.audited(event).into_iter().filter(|one| one["host"] == host);
            all.map(|one| one["address"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(of("egress.closed", "twice.example.test"), [ALIVE], "{level:?}");
        assert_eq!(of("egress.allowed", "twice.example.test"), [DEAD], "{level:?}: tried first");
        assert_eq!(of("egress.closed", "api.example.test"), [ALIVE], "{level:?}: control");
        let audit = ran.audit_file();
        let words = ["egress", "report", "--by-call", "--format", "json"];
        let (code, out, err) = worker(&words, Some(&audit));
        assert_eq!(code, 0, "{level:?}: {err}");
        let report: Value = serde_json::from_str(&out).expect("JSON");
        let twice = row(&report, "allowed", "twice.example.test");
        assert_eq!(twice["addresses"], json!([ALIVE]), "{level:?}");
        assert!(twice["session"].is_string() && twice["tool_call"].is_string(), "{twice:#}");
    }
}

#[test]
fn what_connections_say_is_in_no_line_of_the_log_and_in_no_record() {
    // INV-12: paths, queries, headers, credentials and bodies, allowed and refused, in HTTP of both
    // versions, in TLS and in nonsense. The worker of these tests logs at level debug.
    require!(Need::Tool("curl"));
    let rules = r#"allow = ["api.example.test:80", "api.example.test", "raw.example.test:80"]"#;
    let request = "curl -s -o /dev/null -m 5 -H 'X-Secret: PLANTED-header' -b c=PLANTED-cookie \
                   -u PLANTED-user:PLANTED-password -d PLANTED-body";
    let place = "/PLANTED-path?q=PLANTED-query";
    let command = [
        format!("{request} http://api.example.test{place}"),
        format!("{request} http://raw.example.test{place}"),
        format!("{request} -H 'Host: other.example.test' http://api.example.test{place}"),
        format!("{request} --http2-prior-knowledge http://api.example.test{place}"),
        format!("{request} https://api.example.test{place}"),
        format!("{request} http://203.0.113.11{place}"),
        "(echo PLANTED-nonsense; sleep 0.2) >/dev/tcp/api.example.test/80".to_owned(),
        "echo done".to_owned(),
    ]
    .join("; ");
    for level in Level::here() {
        let lab = Lab::standard();
        let (ran, id, said) = serve_in(&lab, level, rules, &command);
        assert!(said.starts_with("done"), "{level:?}: {said}");
        let told = [&ran.stderr, &ran.stdout, &format!("{:?}", ran.audit)];
        for text in told {
            let line = text.lines().find(|line| line.contains("PLANTED"));
            assert_eq!(line, None, "INV-12 {level:?}");
        }
        let audit = ran.audit_file();
        for words in [&["egress", "report"][..], &["policy", "suggest"]] {
            let (code, out, err) = worker(words, Some(&audit));
            assert_eq!(code, 0, "{level:?} {words:?}: {err}");
            assert!(!out.contains("PLANTED"), "INV-12 {level:?} {words:?}: {out}");
        }
        // Controls: it was sent, and the log was at that level.
        let heard = format!("{:?}", lab.heard_by("203.0.113.12:80", "bytes"));
        for part in ["header", "cookie", "path", "query", "body"] {
            assert!(heard.contains(&format!("PLANTED-{part}")), "{level:?} {part}: {heard}");
        }
        assert!(ran.stderr.contains("DEBUG") && ran.stderr.contains(&id), "{}", ran.stderr);
        let refused = ran.audited("egress.denied");
        let reasons: Vec<_> = refused.iter().map(|one| one["reason"].clone()).collect();
        for reason in ["other-name", "direct-address"] {
            assert!(reasons.contains(&json!(reason)), "{level:?}: {reasons:?}");
        }
    }
}

#[test]
fn what_report_mode_let_through_is_marked_and_suggested() {
    let network = "mode = \"report\"\nexpires = \"TOMORROW\"\nallow = [\"api.example.test:7000\"]";
    let tomorrow = Command::new("date").args(["-u", "-d", "tomorrow", "+%FT%TZ"]).output();
    let tomorrow = String::from_utf8(tomorrow.expect("cannot run date").stdout).expect("text");
    let network = network.replace("TOMORROW", tomorrow.trim());
    let calls = [
        dial("api.example.test", 7000),
        dial("other.example.test", 7000),
        dial("private.example.test", 7000),
    ];
    for level in Level::here() {
        let (ran, id, said) = serve(level, &network, &calls.concat());
        assert!(said.starts_with("hello\nhello\n"), "{level:?}: {said}");
        let reported = |host: &str| {
            let allowed = ran.audited("egress.allowed").into_iter();
            allowed
                .filter(|one| one["host"] == host)
                .map(|one| one["reported"].clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(reported("other.example.test"), [true], "{level:?}: {:?}", ran.audit);
        assert_eq!(reported("api.example.test"), [false], "{level:?}: {:?}", ran.audit);
        assert!(reported("private.example.test").is_empty(), "INV-8 {level:?}");
        let audit = ran.audit_file();
        assert_eq!(worker(&["why", &id, "private.example.test:7000"], Some(&audit)).0, 1);
        let (_, out, _) = worker(&["egress", "report"], Some(&audit));
        let marked: Vec<&str> = out.lines().filter(|line| line.contains("REPORT MODE")).collect();
        assert!(marked.len() == 1 && marked[0].starts_with("other.example.test:7000"), "{out}");
        let (_, out, _) = worker(&["policy", "suggest"], Some(&audit));
        assert!(out.contains("\"other.example.test:7000\", # let through by report mode"), "{out}");
        assert!(!out.contains("\"private.example.test"), "{out}");
    }
}

#[test]
fn the_model_is_told_no_more_than_the_policy_lets_it() {
    let command = dial("203.0.113.11", 7000) + "echo end";
    for (detail, parts) in [("host-only", ["[jail]", "203.0.113.11:7000"].as_slice()), ("off", &[])]
    {
        let network = format!("{RULES}\ndeny_detail = \"{detail}\"");
        let (ran, _, said) = serve(Level::Rootless, &network, &command);
        assert_eq!(ran.audited("egress.denied").len(), 1, "{detail}: it is recorded all the same");
        for part in ["[jail]", "203.0.113.11:7000", "no rule", "decision d-"] {
            assert_eq!(said.contains(part), parts.contains(&part), "{detail} {part}: {said}");
        }
    }
}
