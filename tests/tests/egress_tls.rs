//! What a TLS connection says about its host, and what it may not: the ClientHello's server name is the
//! name that the connection was opened for, or nothing of it reaches anybody. INV-8; jail.md 1.5 rule 3.
//!
//! `raw.example.test` writes down every byte it gets and answers `heard` to anything.

use e2e::lab::rows::{bytes, denied, gives, hello, talk, with};
use e2e::lab::{Lab, policy};
use e2e::{Level, Need, require};
use serde_json::json;

const RAW: &str = "raw.example.test";
const RAW_443: &str = "203.0.113.12:443";

#[test]
fn a_client_hello_that_names_the_host_passes_however_it_is_written_and_cut() {
    // Crafted, because OpenSSL sends its own in one piece and in lower case.
    let lab = Lab::standard();
    let policy = policy(r#"allow = ["raw.example.test"]"#);
    let named = |name: &str| hello(RAW, 443, json!([[name]]));
    #[rustfmt::skip]
    let acts = [
        named(RAW),
        named("RAW.Example.TEST"),
        named("raw.example.test."),
        with(named(RAW), json!({"piece": 1})),
        with(named(RAW), json!({"piece": 7, "pause": 0.005})),
        with(named(RAW), json!({"record": 48})),
        with(named(RAW), json!({"record": 1, "piece": 9})),
        with(named(RAW), json!({"pad": 15_900})),
        with(named(RAW), json!({"pad": 15_900, "piece": 500})),
    ];
    let mut wrong = Vec::new();
    for level in Level::here() {
        lab.forget();
        for (act, got) in acts.iter().zip(lab.inside(level, &policy, &acts)) {
            if got["count"] != 5 {
                wrong.push(format!("{level:?}: {act} gave {got}"));
            }
        }
        let sent: usize = lab
            .heard_by(RAW_443, "end")
            .iter()
            .filter_map(|line| line["count"].as_u64())
            .map(|count| usize::try_from(count).expect("a small number"))
            .sum();
        // What was read to be checked went on, unchanged.
        assert!(sent > 2 * 15_900, "{level:?}: {sent} bytes arrived");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_client_hello_that_names_anything_else_reaches_nobody() {
    let lab = Lab::standard();
    let policy =
        policy(r#"allow = ["raw.example.test", "raw.example.test:7000", "api.example.test"]"#);
    let names = |names| hello(RAW, 443, names);
    let (other, long) = ("other.example.test", "a".repeat(300));
    let mut rows = vec![
        denied(names(json!([]))),
        denied(names(json!([[]]))),
        denied(names(json!([[""]]))),
        denied(names(json!([[other]]))),
        denied(names(json!([["api.example.test"]]))), // allowed, but not what was asked for
        denied(names(json!([["raw.example.test.evil.test"]]))),
        denied(names(json!([["x.raw.example.test"]]))),
        denied(names(json!([["raw.example.test\0.evil.test"]]))),
        denied(names(json!([["raw.example.test.."]]))),
        denied(names(json!([["raw.example.test "]]))),
        denied(names(json!([["203.0.113.12"]]))),
        denied(names(json!([[long]]))),
        denied(names(json!([[RAW, other]]))),
        denied(names(json!([[other, RAW]]))),
        denied(names(json!([[RAW], [other]]))),
        denied(names(json!([[other], [RAW]]))),
        denied(names(json!([[RAW], [RAW]]))),
        denied(with(names(json!([[other]])), json!({"piece": 1}))),
        denied(with(names(json!([[other]])), json!({"record": 16}))),
        denied(with(names(json!([[other]])), json!({"pad": 15_900, "piece": 900}))),
        // What is no TLS at all.
        denied(bytes(RAW, 443, "GET / HTTP/1.1\r\nHost: raw.example.test\r\n\r\n")),
        denied(bytes(RAW, 443, "SSH-2.0-OpenSSH_9.2\r\n")),
        denied(bytes(RAW, 443, "\u{16}\u{3}\u{1}\u{0}\u{5}\u{2}\u{0}\u{0}\u{1}\u{0}")), // a ServerHello
        denied(bytes(RAW, 443, "\u{80}\u{2e}\u{1}\u{3}\u{1}\u{0}\u{15}\u{0}\u{0}\u{0}\u{10}")), // SSL 2
    ];
    // Where other protocols are allowed as well, TLS still names the host.
    rows.push(denied(hello(RAW, 7000, json!([[other]]))));
    rows.push(denied(hello(RAW, 7000, json!([]))));
    rows.push(gives(talk(RAW, 7000, "neither TLS nor HTTP"), "heard"));
    lab.check_then(&policy, &rows, |lab| {
        let heard = lab.heard_by(RAW_443, "bytes");
        assert!(heard.is_empty(), "INV-8: {heard:?}");
    });
}

#[test]
fn what_cannot_be_read_as_a_client_hello_in_time_or_size_is_given_up() {
    // INV-11: what is held back to be checked is bounded.
    let lab = Lab::standard();
    let policy = policy(r#"allow = ["raw.example.test"]"#);
    // A ClientHello of sixteen megabytes by what it says, in records of sixteen kilobytes.
    let part = "x".repeat(16_384);
    let more = format!("\u{16}\u{3}\u{1}\u{40}\u{0}{part}");
    let huge = format!("\u{16}\u{3}\u{1}\u{40}\u{0}\u{1}\u{ff}\u{ff}\u{ff}{}", &part[4..])
        + &more.repeat(15);
    let huge = with(bytes(RAW, 443, &huge), json!({"hold": 3.0}));
    let record = with(
        bytes(RAW, 443, "\u{16}\u{3}\u{1}\u{ff}\u{ff}\u{1}"),
        json!({"times": 40_000, "hold": 3.0}),
    );
    lab.check_then(&policy, &[denied(huge), denied(record)], |lab| {
        assert_eq!(lab.heard_by(RAW_443, "bytes").len(), 0);
    });
}

#[test]
fn a_second_client_hello_cannot_name_another_host() {
    // INV-8: after a ClientHello that is right, in the same bytes and in later ones.
    let lab = Lab::standard();
    let policy = policy(r#"allow = ["raw.example.test", "raw.example.test:7000"]"#);
    let mut acts = Vec::new();
    for port in [443, 7000] {
        let right = hello(RAW, port, json!([[RAW]]));
        acts.push(with(right.clone(), json!({"then": [["other.example.test"]]})));
        acts.push(with(
            right.clone(),
            json!({"then": [["other.example.test"]], "piece": 40, "pause": 0.01}),
        ));
        acts.push(with(
            right,
            json!({"then": [["other.example.test"]], "record": 50, "piece": 50}),
        ));
    }
    let named = |lab: &Lab| {
        let all = ["203.0.113.12:443", "203.0.113.12:7000"].map(|on| lab.heard_by(on, "bytes"));
        let lines = all.iter().flatten().filter_map(|line| line["text"].as_str());
        let text: String = lines.collect();
        text.contains("other.example.test")
    };
    for level in Level::here() {
        lab.forget();
        let got = lab.inside(level, &policy, &acts);
        assert!(!named(&lab), "INV-8 {level:?}: {:#?}", lab.heard());
        // Cut into records its name is hard to see; but not all of it may have arrived.
        let ends = ["203.0.113.12:443", "203.0.113.12:7000"].map(|on| lab.heard_by(on, "end"));
        for end in ends.iter().flatten() {
            let all = got.iter().any(|one| one["sent"] == end["count"]);
            assert!(!all, "INV-8 {level:?}: both arrived: {end}");
        }
    }
    lab.forget();
    lab.outside(&acts[..1]);
    assert!(named(&lab), "control: nothing was heard of it outside, either");
}

#[test]
fn real_tls_clients_reach_the_host_they_name_and_no_other() {
    require!(Need::Tool("openssl"), Need::Tool("curl"));
    let lab = Lab::standard();
    let policy = policy(r#"allow = ["api.example.test"]"#);
    let script = r#"
        client() { openssl s_client -connect api.example.test:443 -brief -verify_return_error "$@" \
            </dev/null 2>&1 | tr '\n' ' '; echo; }
        echo "right $(client -servername api.example.test)"
        echo "absent $(client -noservername)"
        echo "different $(client -servername other.example.test)"
        echo "upper $(client -servername API.EXAMPLE.TEST)"
        echo "old $(client -tls1_2 -servername api.example.test)"
        echo "curl $(curl -sS https://api.example.test/ok 2>&1)"
        echo "fronted $(curl -sS --connect-to other.example.test:443:api.example.test:443 \
            https://other.example.test/ok 2>&1)"
    "#;
    let line = |said: &str, name: &str| {
        let found = said.lines().find_map(|line| line.strip_prefix(name));
        found.unwrap_or_default().to_owned()
    };
    for level in Level::here() {
        lab.forget();
        let run = lab.exec(level, &policy).bash(script);
        let works = |name: &str| line(&run.stdout, name).contains("CONNECTION ESTABLISHED");
        assert!(works("right") && works("upper") && works("old"), "{level:?} {}", run.text());
        assert!(!works("absent") && !works("different"), "{level:?} {}", run.text());
        assert!(line(&run.stdout, "curl").contains("ok from"), "{level:?} {}", run.text());
        assert!(!line(&run.stdout, "fronted").contains("ok from"), "{level:?} {}", run.text());
        let named: Vec<_> = lab.heard().into_iter().filter(|line| line["what"] == "sni").collect();
        let right = named.iter().all(|line| {
            line["name"].as_str().is_some_and(|name| name.eq_ignore_ascii_case("api.example.test"))
        });
        assert!(right && named.len() == 4, "INV-8 {level:?}: {named:?}");
    }
    let (said, told) = lab.run(&["bash", "-c", script]);
    for name in ["right", "absent", "different", "upper", "old"] {
        let text = line(&said, name);
        assert!(text.contains("CONNECTION ESTABLISHED"), "control {name}: {said} {told}");
    }
    assert!(line(&said, "fronted").contains("ok from"), "control: {said} {told}");
}
