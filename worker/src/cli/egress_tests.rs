//! How a report looks, as columns and as data.

use super::super::egress_records::tests::{allowed, denied, write};
use super::*;
use stockade_runtime::audit::{Event, Text};

fn shown(events: Vec<(&str, Option<&str>, Event)>) -> (String, Value) {
    shown_by(Grouping::Destination, events)
}

fn shown_by(grouping: Grouping, events: Vec<(&str, Option<&str>, Event)>) -> (String, Value) {
    let directory = tempfile::TempDir::new().expect("a directory");
    let path = directory.path().join("audit.jsonl");
    write(&path, events);
    let args = LogArgs { audit_file: Some(path), ..LogArgs::default() };
    let report = Report::of(&args, grouping).expect("readable");
    let mut out = Vec::new();
    table(&mut out, &report).expect("memory");
    (String::from_utf8(out).expect("UTF-8"), document(&args, &report))
}

#[test]
fn a_report_names_destinations_reasons_and_what_report_mode_allowed() {
    let (text, json) = shown(vec![
        ("sesn_1", Some("c1"), allowed(1, "api.example.com", 443, Some("*.example.com:443"))),
        (
            "sesn_1",
            Some("c1"),
            Event::EgressClosed {
                number: 1,
                host: Text::of(&"api.example.com"),
                port: 443,
                bytes_out: 2048,
                bytes_in: 5,
                duration_us: 1,
                address: None,
                by: None,
            },
        ),
        ("sesn_1", Some("c1"), allowed(2, "new.example.org", 80, None)),
        ("sesn_1", Some("c1"), denied("db.internal", 53, "lookup")),
        ("sesn_1", Some("c1"), denied("203.0.113.9", 22, "direct-address")),
    ]);
    let words = |start: &str| -> Vec<&str> {
        let line = text.lines().find(|line| line.starts_with(start)).expect(start);
        line.split_whitespace().collect()
    };
    let reached = words("api.example.com:443");
    assert_eq!(reached[1..7], ["1", "2.0", "KiB", "5", "B", "1"]);
    assert_eq!(reached.last(), Some(&"*.example.com:443"));
    assert!(text.contains("REPORT MODE: no rule"), "{text}");
    assert!(words("db.internal")[5..].join(" ").ends_with("lookup, no matching rule"), "{text}");
    assert!(text.contains("203.0.113.9:22 "), "{text}");
    assert!(text.ends_with("log            verified, 5 records\n"), "{text}");
    assert_eq!(
        (&json["schema"], &json["schema_version"]),
        (&"stockade.egress.report".into(), &1.into())
    );
    assert_eq!(json["verified"], true);
    assert_eq!(json["totals"]["connections"], 2);
    let lookup = json["denied"].as_array().expect("a list").iter().find(|d| d["lookup"] == true);
    assert_eq!(lookup.expect("one")["port"], Value::Null);
    let marked =
        json["allowed"].as_array().expect("a list").iter().filter(|a| a["report_mode"] == true);
    assert_eq!(marked.count(), 1);
}

#[test]
fn an_empty_span_is_an_empty_report() {
    let (text, json) = shown(vec![("sesn_1", None, Event::ItemAcked {})]);
    assert!(text.starts_with("sessions       0\n"), "{text}");
    assert_eq!(json["allowed"], json!([]));
}

#[test]
fn by_call_every_line_begins_with_whose_it_is() {
    let events = || {
        vec![
            ("sesn_1", Some("c1"), allowed(1, "api.example.com", 443, Some("api.example.com:443"))),
            ("sesn_1", None, denied("203.0.113.9", 22, "direct-address")),
        ]
    };
    let (text, json) = shown_by(Grouping::Call, events());
    let words: Vec<Vec<&str>> =
        text.lines().map(|line| line.split_whitespace().collect()).collect();
    let starts = |start: &[&str]| words.iter().any(|line| line.starts_with(start));
    assert!(
        starts(&["SESSION", "CALL", "ALLOWED"]) && starts(&["SESSION", "CALL", "DENIED"]),
        "{text}"
    );
    assert!(starts(&["sesn_1", "c1", "api.example.com:443"]), "{text}");
    assert!(starts(&["sesn_1", "-", "203.0.113.9:22"]), "{text}");
    let (reached, refused) = (&json["allowed"][0], &json["denied"][0]);
    assert_eq!((&reached["session"], &reached["tool_call"]), (&"sesn_1".into(), &"c1".into()));
    assert_eq!((&refused["session"], &refused["tool_call"]), (&"sesn_1".into(), &Value::Null));
    assert_eq!(reached["addresses"], json!(["198.51.100.7"]));

    let (text, json) = shown(events());
    assert!(!text.contains("SESSION"), "control: {text}");
    assert!(json["allowed"][0].get("session").is_none(), "control: {json:#}");
}
