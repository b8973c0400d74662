//! What is summed, and what it belongs to.

use super::super::egress_records::moment;
use super::super::egress_records::tests::{allowed, denied, write};
use super::*;
use stockade_runtime::audit::{CallStatus, Fingerprint, NotPosted};

fn closed(number: u64, host: &str, bytes_out: u64, bytes_in: u64) -> Event {
    let (host, port, duration_us, address, by) = (Text::of(&host), 443, 7, None, None);
    Event::EgressClosed { number, host, port, bytes_out, bytes_in, duration_us, address, by }
}

/// A connection's end, with the address that answered.
fn answered(number: u64, host: &str, by: &str) -> Event {
    let Event::EgressClosed { host, port, bytes_out, bytes_in, duration_us, by: why, .. } =
        closed(number, host, 1, 1)
    else {
        unreachable!("it is made as one")
    };
    let address = Some(by.into());
    Event::EgressClosed { number, host, port, bytes_out, bytes_in, duration_us, address, by: why }
}

fn ended(bytes: usize) -> Event {
    Event::CallEnded {
        status: CallStatus::Ok,
        output: Fingerprint::of(&vec![b'x'; bytes]),
        duration_us: 1,
        truncated: false,
        timed_out: false,
    }
}

fn report(events: Vec<(&str, Option<&str>, Event)>, change: fn(&mut LogArgs)) -> Report {
    grouped(Grouping::Destination, events, change)
}

fn grouped(
    grouping: Grouping,
    events: Vec<(&str, Option<&str>, Event)>,
    change: fn(&mut LogArgs),
) -> Report {
    let directory = tempfile::TempDir::new().expect("a directory");
    let path = directory.path().join("audit.jsonl");
    write(&path, events);
    let mut args = LogArgs { audit_file: Some(path), ..LogArgs::default() };
    change(&mut args);
    Report::of(&args, grouping).expect("readable")
}

#[test]
fn connections_and_bytes_are_summed_by_destination_and_rule() {
    let rule = Some("*.test:443");
    let sum = Event::EgressSummed {
        host: Some(Text::of(&"a.test")),
        port: Some(443),
        rule: rule.map(|rule| Text::of(&rule)),
        generation: 1,
        reported: false,
        connections: 10,
        bytes_out: 1,
        bytes_in: 2,
        duration_us: 3,
    };
    let found = report(
        vec![
            ("s", Some("c1"), allowed(1, "a.test", 443, rule)),
            ("s", Some("c1"), allowed(2, "a.test", 443, rule)),
            ("s", Some("c1"), closed(1, "a.test", 100, 1000)),
            ("s", Some("c2"), allowed(3, "a.test", 443, None)),
            ("s", Some("c1"), closed(2, "a.test", 100, 1000)),
            ("s", Some("c2"), closed(3, "a.test", 5, 6)),
            ("s", Some("c2"), sum),
            ("t", Some("c1"), allowed(1, "a.test", 443, rule)),
        ],
        |_| {},
    );
    assert_eq!(found.log.problem, None);
    let rows: Vec<_> = found
        .allowed
        .iter()
        .map(|(key, row)| (key.reported, row.count, row.bytes_out, row.bytes_in, row.duration_us))
        .collect();
    assert_eq!(rows, [(false, 13, 201, 2002, 17), (true, 1, 5, 6, 7)]);
    let by_rule = found.allowed.values().next().expect("a row");
    assert_eq!((by_rule.calls, by_rule.sessions), (3, 2), "c1 and c2 of s, c1 of t");
    assert_eq!(by_rule.origin.as_deref(), Some("policy.toml:3:10"));
    assert_eq!(found.sessions.len(), 2);
}

#[test]
fn refusals_are_summed_by_target_and_reason_and_faults_stand_apart() {
    let repeated = Event::EgressRepeated {
        host: Some(Text::of(&"a.test")),
        port: Some(443),
        reason: "no-rule".into(),
        address_class: None,
        count: 6,
    };
    let failed = Event::EgressFailed {
        number: 9,
        host: Text::of(&"b.test"),
        port: 443,
        reason: "no-address".into(),
        generation: 1,
    };
    let found = report(
        vec![
            ("s", Some("c1"), denied("a.test", 443, "no-rule")),
            ("s", Some("c1"), repeated),
            ("s", Some("c2"), denied("a.test", 443, "no-rule")),
            ("s", Some("c2"), denied("a.test", 53, "lookup")),
            ("s", None, failed),
            ("s", None, denied("c.test", 1, "of-a-later-version")),
        ],
        |_| {},
    );
    let rows: Vec<_> =
        found.denied.iter().map(|(key, row)| (key.port, row.count, row.calls)).collect();
    assert_eq!(rows, [(Some(53), 1, 1), (Some(443), 8, 2), (Some(1), 1, 0)]);
    assert_eq!(found.failed.len(), 1);
}

#[test]
fn a_connection_that_was_closed_for_a_reason_is_allowed_and_refused() {
    let closed = |number, by: &str| Event::EgressClosed {
        number,
        host: Text::of(&"a.test"),
        port: 443,
        bytes_out: 1,
        bytes_in: 0,
        duration_us: 1,
        address: None,
        by: Some(by.into()),
    };
    let found = report(
        vec![
            ("s", Some("c1"), allowed(1, "a.test", 443, Some("a.test:443"))),
            ("s", Some("c1"), closed(1, "other-name")),
            ("s", Some("c1"), allowed(2, "a.test", 443, Some("a.test:443"))),
            ("s", Some("c1"), closed(2, "unreachable")),
        ],
        |_| {},
    );
    let reasons: Vec<_> = found.denied.keys().map(|key| key.reason.as_str()).collect();
    assert_eq!((reasons, found.failed.len()), (vec!["other-name"], 1));
    assert_eq!(found.allowed.values().map(|row| row.bytes_out).sum::<u64>(), 2);
}

/// product.md 3.2: what went to the control plane counts as well.
#[test]
fn bytes_of_results_count_when_the_control_plane_accepted_them() {
    let found = report(
        vec![
            ("s", Some("c1"), ended(100)),
            ("s", Some("c1"), Event::CallPosted {}),
            ("s", Some("c2"), ended(1_000)),
            ("s", Some("c2"), Event::CallNotPosted { reason: NotPosted::LeaseLost }),
            ("s", Some("c3"), ended(10_000)),
        ],
        |_| {},
    );
    assert_eq!((found.results, found.result_bytes), (1, 100));
}

#[test]
fn a_span_of_time_leaves_out_what_is_not_in_it() {
    let events = || {
        vec![
            ("s", Some("c1"), allowed(1, "a.test", 443, Some("a.test:443"))),
            ("s", Some("c1"), denied("b.test", 443, "no-rule")),
        ]
    };
    let all = report(events(), |args| args.since = Some(moment("1h").expect("an hour")));
    assert_eq!((all.allowed.len(), all.denied.len()), (1, 1), "control");
    let none = report(events(), |args| args.until = Some(moment("1h").expect("an hour")));
    assert_eq!((none.allowed.len(), none.denied.len(), none.sessions.len()), (0, 0, 0));
}

#[test]
fn a_destination_leads_to_the_addresses_that_answered() {
    let refused = |address: &str| Event::EgressDenied {
        number: 9,
        host: Text::of(&"c.test"),
        port: 443,
        reason: "address".into(),
        address: Some(address.into()),
        address_class: Some("private".into()),
        generation: 1,
    };
    let found = report(
        vec![
            // Both were allowed with 198.51.100.7 in front: one was answered by the address after
            // it, the other is still open at the end of the log.
            ("s", Some("c1"), allowed(1, "a.test", 443, Some("a.test:443"))),
            ("s", Some("c1"), answered(1, "a.test", "198.51.100.8")),
            ("s", Some("c1"), allowed(2, "b.test", 443, Some("b.test:443"))),
            ("s", Some("c1"), refused("10.0.0.1")),
            ("s", Some("c1"), refused("10.0.0.2")),
        ],
        |_| {},
    );
    let addresses: Vec<Vec<&str>> = found
        .allowed
        .values()
        .chain(found.denied.values())
        .map(|row| row.addresses.iter().map(String::as_str).collect())
        .collect();
    assert_eq!(
        addresses,
        [vec!["198.51.100.8"], vec!["198.51.100.7"], vec!["10.0.0.1", "10.0.0.2"]]
    );
}

/// INV-11: a name that leads everywhere does not fill the report.
#[test]
fn addresses_of_a_destination_are_bounded() {
    let mut events = Vec::new();
    for number in 0..3 * ADDRESSES_MAX as u64 {
        events.push(("s", None, allowed(number, "a.test", 443, Some("a.test:443"))));
        events.push(("s", None, answered(number, "a.test", &format!("198.51.100.{number}"))));
    }
    let found = report(events, |_| {});
    let row = found.allowed.values().next().expect("a row");
    assert_eq!((row.count, row.addresses.len()), (3 * ADDRESSES_MAX as u64, ADDRESSES_MAX));
}

#[test]
fn by_call_each_call_has_lines_of_its_own_and_the_sums_stay() {
    let rule = Some("a.test:443");
    let events = || {
        vec![
            ("s", Some("c1"), allowed(1, "a.test", 443, rule)),
            ("s", Some("c2"), allowed(2, "a.test", 443, rule)),
            // It ends in the next call, and belongs to the one that began it.
            ("s", Some("c2"), closed(1, "a.test", 100, 1_000)),
            ("s", Some("c2"), closed(2, "a.test", 5, 6)),
            ("s", None, allowed(3, "a.test", 443, rule)),
            ("s", None, closed(3, "a.test", 7, 8)),
            ("t", Some("c1"), allowed(1, "a.test", 443, rule)),
            ("t", Some("c1"), denied("b.test", 443, "no-rule")),
            ("s", Some("c2"), denied("b.test", 443, "no-rule")),
            ("s", Some("c2"), denied("b.test", 443, "no-rule")),
        ]
    };
    let whose = |whose: &Option<Whose>| {
        let whose = whose.clone().expect("calls are told apart");
        (whose.session, whose.call)
    };
    let of = |session: &str, call: Option<&str>| (session.to_owned(), call.map(str::to_owned));
    let found = grouped(Grouping::Call, events(), |_| {});
    let allowed: Vec<_> = found
        .allowed
        .iter()
        .map(|(key, row)| (whose(&key.whose), row.count, row.bytes_out, row.bytes_in))
        .collect();
    assert_eq!(
        allowed,
        [
            (of("s", None), 1, 7, 8),
            (of("s", Some("c1")), 1, 100, 1_000),
            (of("s", Some("c2")), 1, 5, 6),
            (of("t", Some("c1")), 1, 0, 0),
        ]
    );
    let denied: Vec<_> =
        found.denied.iter().map(|(key, row)| (whose(&key.whose), row.count)).collect();
    assert_eq!(denied, [(of("s", Some("c2")), 2), (of("t", Some("c1")), 1)]);

    let together = report(events(), |_| {});
    assert_eq!((together.allowed.len(), together.denied.len()), (1, 1), "control");
    let row = together.allowed.values().next().expect("a row");
    assert_eq!((row.count, row.bytes_out, row.bytes_in), (4, 112, 1_014), "control");
}
