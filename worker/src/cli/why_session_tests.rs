//! What is answered, with which exit code.

use super::super::egress_records::tests::{allowed, denied, write};
use super::*;

/// Exit code and text of `worker why SESSION TARGET` about a log of these events.
fn why(
    events: Vec<(&str, Option<&str>, Event)>,
    session: &str,
    target: (&str, u16),
) -> (Exit, String) {
    let directory = tempfile::TempDir::new().expect("a directory");
    let path = directory.path().join("audit.jsonl");
    write(&path, events);
    let host = Host::parse(target.0).expect("a host");
    let (port, format) = (target.1, ReportFormat::Text);
    let question = Question { session, host: &host, port, audit_file: Some(path), format };
    let mut out = Vec::new();
    let exit = run(&question, &mut out).expect("written");
    (exit, String::from_utf8(out).expect("UTF-8"))
}

fn repeated(host: &str, port: u16, reason: &str, count: u64) -> Event {
    let (host, port) = (Some(Text::of(&host)), Some(port));
    Event::EgressRepeated { host, port, reason: reason.into(), address_class: None, count }
}

#[test]
fn the_last_decision_is_the_answer_and_the_earlier_ones_are_told() {
    let denials = || {
        vec![
            ("sesn_1", Some("c1"), denied("a.test", 443, "no-rule")),
            ("sesn_1", Some("c1"), repeated("a.test", 443, "no-rule", 4)),
            ("sesn_1", Some("c2"), denied("a.test", 443, "no-rule")),
            ("sesn_2", Some("c1"), allowed(9, "a.test", 443, Some("a.test:443"))),
        ]
    };
    let (exit, text) = why(denials(), "sesn_1", ("A.test.", 443));
    assert_eq!(exit, Exit::Payload(1));
    assert!(text.starts_with("DENIED: a.test:443 in session sesn_1\n"), "{text}");
    let line = text.lines().nth(1).expect("a line");
    let start = "  denied, no matching rule: 6 times in 2 calls, rules of generation 1, ";
    assert!(line.starts_with(start) && line.ends_with(", decision d-1"), "{line}");
    let mut widened = denials();
    widened.push(("sesn_1", Some("c3"), allowed(7, "a.test", 443, Some("*.test:443"))));
    let (exit, text) = why(widened, "sesn_1", ("a.test", 443));
    assert_eq!(exit, Exit::Success);
    let part = "  allowed by rule *.test:443 (policy.toml:3:10): once in call c3, ";
    assert!(text.starts_with("ALLOWED") && text.contains(part), "{text}");
}

#[test]
fn sums_that_are_written_later_do_not_change_the_answer() {
    let (exit, text) = why(
        vec![
            ("s", Some("c1"), denied("a.test", 443, "connections")),
            ("s", Some("c1"), allowed(2, "a.test", 443, Some("a.test:443"))),
            ("s", Some("c1"), repeated("a.test", 443, "connections", 3)),
        ],
        "s",
        ("a.test", 443),
    );
    assert_eq!(exit, Exit::Success, "{text}");
    assert!(text.contains("too many connections at once: 4 times"), "{text}");
}

#[test]
fn a_refused_lookup_is_about_every_port_and_another_host_is_not_meant() {
    let lookup = || vec![("s", Some("c1"), denied("a.test", 53, "lookup"))];
    assert_eq!(why(lookup(), "s", ("a.test", 8443)).0, Exit::Payload(1));
    assert_eq!(why(lookup(), "s", ("b.a.test", 8443)).0, Exit::Usage);
    let port = || vec![("s", Some("c1"), denied("a.test", 443, "no-rule"))];
    assert_eq!(why(port(), "s", ("a.test", 443)).0, Exit::Payload(1));
    assert_eq!(why(port(), "s", ("a.test", 80)).0, Exit::Usage);
}

#[test]
fn what_failed_upstream_was_not_denied() {
    let failed = Event::EgressFailed {
        number: 1,
        host: Text::of(&"a.test"),
        port: 443,
        reason: "no-address".into(),
        generation: 1,
    };
    let (exit, text) = why(vec![("s", Some("c1"), failed)], "s", ("a.test", 443));
    assert_eq!(exit, Exit::Success);
    assert!(text.contains("failed (not by policy), the name has no address"), "{text}");
}

#[test]
fn a_connection_closed_for_what_it_said_was_denied_and_one_at_a_limit_was_not() {
    let closed = |by: &str| Event::EgressClosed {
        number: 1,
        host: Text::of(&"a.test"),
        port: 443,
        bytes_out: 1,
        bytes_in: 0,
        duration_us: 1,
        address: None,
        by: Some(by.into()),
    };
    #[rustfmt::skip]
    let cases = [
        ("other-name",   Exit::Payload(1)),
        ("rule-removed", Exit::Payload(1)),
        ("idle",         Exit::Success),
        ("unreachable",  Exit::Success),
    ];
    for (by, want) in cases {
        let begun = allowed(1, "a.test", 443, Some("a.test:443"));
        let events = vec![("s", Some("c1"), begun), ("s", Some("c1"), closed(by))];
        let (exit, text) = why(events, "s", ("a.test", 443));
        assert_eq!(exit, want, "{by}: {text}");
    }
}

#[test]
fn a_session_that_is_not_there_or_not_the_only_one_is_no_answer() {
    let two = || {
        vec![
            ("sesn_1", None, denied("a.test", 443, "no-rule")),
            ("other_1", None, denied("a.test", 443, "no-rule")),
        ]
    };
    assert_eq!(why(two(), "sesn_1", ("a.test", 443)).0, Exit::Payload(1), "control");
    assert_eq!(why(two(), "_1", ("a.test", 443)), (Exit::Usage, String::new()));
    assert_eq!(why(two(), "sesn_3", ("a.test", 443)), (Exit::Usage, String::new()));
}

#[test]
fn a_log_that_does_not_verify_is_no_evidence() {
    let directory = tempfile::TempDir::new().expect("a directory");
    let path = directory.path().join("audit.jsonl");
    write(&path, vec![("s", None, denied("a.test", 443, "no-rule"))]);
    let text = std::fs::read_to_string(&path).expect("the log").replace("no-rule", "no-yule");
    std::fs::write(&path, text).expect("changed");
    let host = Host::parse("a.test").expect("a host");
    let (audit_file, format) = (Some(path), ReportFormat::Json);
    let question = Question { session: "s", host: &host, port: 443, audit_file, format };
    let mut out = Vec::new();
    assert_eq!(run(&question, &mut out).expect("told"), Exit::Evidence);
    assert_eq!(out, b"", "nothing is concluded");
}
