//! Names and addresses: who answers questions, what is asked upstream, and where a name may lead.
//! INV-8; jail.md 1.5 rules 1, 2 and 4.
//!
//! Every act that is refused in the jail succeeds from a plain process on the laboratory's host.

use e2e::lab::rows::{denied, fails, gives, hello, talk, with};
use e2e::lab::{Lab, policy, server, standard_servers, standard_zone};
use e2e::{Level, policy::PolicyFile};
use serde_json::{Value, json};

fn resolver(name: &str, kind: &str, server: &str, transport: &str) -> Value {
    json!({"act": "resolver", "name": name, "kind": kind, "server": server, "transport": transport})
}

/// `api` on three ports, and names below a wildcard.
fn names() -> PolicyFile {
    policy(
        r#"allow = ["api.example.test", "api.example.test:80", "api.example.test:7000",
                    "*.pkg.example.test:7000", "198.51.100.0/24:5432"]
           wildcard_names = 20"#,
    )
}

/// Servers that heard a connection, without the resolver.
fn reached(lab: &Lab) -> Vec<String> {
    let accepted = lab.heard().into_iter().filter(|line| line["what"] == "accept");
    accepted.filter_map(|line| Some(line["on"].as_str()?.to_owned())).collect()
}

#[test]
fn only_our_resolver_answers_whichever_is_asked() {
    // INV-8: UDP and TCP port 53, of version 4 and 6, of anybody.
    let lab = Lab::standard();
    let policy = names();
    let servers = ["198.18.0.1", "203.0.113.53", "2001:db8:1::53", "10.0.0.5", "127.0.0.1"];
    let mut acts = Vec::new();
    for server in servers {
        for transport in ["udp", "tcp"] {
            acts.push(resolver("api.example.test", "A", server, transport));
            acts.push(resolver("other.example.test", "A", server, transport));
        }
    }
    for level in Level::here() {
        lab.forget();
        let got = lab.inside(level, &policy, &acts);
        for (pair, act) in got.chunks(2).zip(acts.chunks(2)) {
            let address = pair[0]["addresses"][0][0].as_str().unwrap_or_default();
            let ours = address.starts_with("198.18.") || address.starts_with("198.19.");
            assert!(ours, "{level:?} {}: {}", act[0], pair[0]);
            let ttl = pair[0]["addresses"][0][1].as_u64().unwrap_or(u64::MAX);
            assert!(ttl <= 60, "{level:?}: the answer lasts {ttl} s");
            assert_eq!(pair[1]["code"], "REFUSED", "{level:?} {}: {}", act[1], pair[1]);
            assert!(pair[1]["extended"].is_array(), "{level:?}: no extended error: {}", pair[1]);
        }
        assert_eq!(lab.questions(), [""; 0], "INV-8 {level:?}: asked upstream");
    }
    // The same questions from outside reach the resolver of the laboratory.
    let there = &acts[4..12];
    for got in lab.outside(there) {
        let address = got["addresses"][0][0].as_str().unwrap_or_default();
        assert!(address.starts_with("203.0.113."), "control: {got}");
    }
    assert_eq!(lab.questions().len(), there.len());
}

#[test]
fn only_addresses_are_answered_and_only_for_names_of_the_policy() {
    // INV-8; jail.md 1.5 rule 1.
    let lab = Lab::standard();
    let policy = names();
    #[rustfmt::skip]
    let table = [
        ("api.example.test", "A", "NOERROR", 1),
        ("api.example.test", "AAAA", "NOERROR", 1),
        ("API.Example.TEST", "A", "NOERROR", 1),
        ("one.pkg.example.test", "A", "NOERROR", 1),
        ("deep.one.pkg.example.test", "A", "REFUSED", 0),
        ("pkg.example.test", "A", "REFUSED", 0),
        ("example.test", "A", "REFUSED", 0),
        ("api.example.test.evil.test", "A", "REFUSED", 0),
        ("api.example.test", "HTTPS", "NOERROR", 0),
        ("api.example.test", "SVCB", "NOERROR", 0),
        ("api.example.test", "TXT", "REFUSED", 0),
        ("api.example.test", "ANY", "REFUSED", 0),
        ("10.113.0.203.in-addr.arpa", "PTR", "REFUSED", 0),
        ("secret.tunnel.test", "TXT", "REFUSED", 0),
        ("secret.tunnel.test", "NULL", "REFUSED|NOTIMP", 0),
    ];
    let acts: Vec<Value> =
        table.iter().map(|(name, kind, ..)| resolver(name, kind, "198.18.0.1", "udp")).collect();
    let mut wrong = Vec::new();
    for level in Level::here() {
        lab.forget();
        for ((name, kind, code, count), got) in table.iter().zip(lab.inside(level, &policy, &acts))
        {
            let answers = got["addresses"].as_array().map_or(0, Vec::len);
            let coded = code.split('|').any(|code| got["code"] == code);
            if !coded || answers != *count {
                wrong.push(format!("{level:?}: {name} {kind}: {got}, not {code} with {count}"));
            }
        }
        assert_eq!(lab.questions(), [""; 0], "INV-8 {level:?}: asked upstream");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn labels_carry_nothing_out() {
    // INV-8: DNS tunnelling. Names of no rule are never looked up; names below a wildcard have a
    // budget, and are looked up only when somebody connects.
    let lab = Lab::standard();
    let policy = names();
    let tunnel: Vec<String> = (0..50).map(|n| format!("c2VjcmV0{n}.tunnel.test")).collect();
    let wild: Vec<String> = (0..60).map(|n| format!("c2vjcmv0{n}.pkg.example.test")).collect();
    let acts =
        [json!({"act": "lookups", "names": tunnel}), json!({"act": "lookups", "names": wild})];
    for level in Level::here() {
        lab.forget();
        let got = lab.inside(level, &policy, &acts);
        assert_eq!(got[0]["count"], 0, "{level:?}: {}", got[0]);
        assert_eq!(got[1]["count"], 20, "{level:?}: the budget is 20: {}", got[1]);
        assert_eq!(lab.questions(), [""; 0], "INV-8 {level:?}: asked upstream");
        // What is within the budget works, and is then asked for.
        let act = talk("one.pkg.example.test", 7000, "hello");
        let got = lab.inside(level, &policy, &[act]);
        assert_eq!(got[0]["text"], "hello", "{level:?}: {}", got[0]);
        assert!(lab.questions().iter().all(|name| name == "one.pkg.example.test"));
    }
    // The same from outside is all asked upstream.
    lab.forget();
    lab.outside(&acts);
    assert!(lab.questions().iter().filter(|name| name.ends_with("tunnel.test")).count() >= 50);
}

#[test]
fn addresses_in_any_notation_lead_nowhere_unless_a_rule_lists_them() {
    // INV-8: `other` is allowed by nobody; `api` is, but by its name.
    let lab = Lab::standard();
    let mut rows = Vec::new();
    let forms = [
        "203.0.113.11",
        "203.0.113.10",
        "3405803787",
        "0313.0.0161.013",
        "0xcb.0.0x71.0xb",
        "203.28939",
        "203.0.28939",
        "::ffff:203.0.113.11",
        "::ffff:cb00:710b",
        "2001:db8:1::10",
        "169.254.169.254",
        "2852039166",
        "10.0.0.5",
        "012.0.0.5",
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "0",
        "192.0.2.1",
        "::ffff:127.0.0.1",
        "2130706433",
        "127.1",
    ];
    for form in forms {
        if form.starts_with("169.") || form == "2852039166" {
            rows.push(denied(hello(form, 443, json!([["api.example.test"]]))));
        } else {
            rows.push(denied(talk(form, 7000, "direct")));
            rows.push(denied(hello(form, 443, json!([["api.example.test"]]))));
        }
        rows.push(denied(talk(form, 80, "GET /ok HTTP/1.1\r\nHost: api.example.test\r\n\r\n")));
    }
    rows.push(gives(talk("api.example.test", 7000, "by name"), "by name"));
    lab.check_then(&names(), &rows, |lab| {
        let reached = reached(lab);
        let by_name = |on: &String| on == "203.0.113.10:7000" || on == "2001:db8:1::10:7000";
        assert!(reached.len() == 1 && reached.iter().all(by_name), "INV-8: reached {reached:?}");
    });
}

#[test]
fn a_network_rule_allows_its_addresses_on_its_port_only() {
    let lab = Lab::standard();
    let open = policy(r#"allow = ["198.51.100.0/24:7000", "203.0.113.11/32:443"]"#);
    let rows = [
        gives(talk("198.51.100.5", 7000, "listed"), "listed"),
        gives(talk("::ffff:198.51.100.5", 7000, "mapped"), "mapped"),
        gives(talk("0xc6.51.0144.5", 7000, "odd"), "odd"),
        denied(talk("203.0.113.10", 7000, "not listed")),
        denied(talk("198.51.100.5", 443, "other port")).without_control(),
        // A name on a connection to an address is somebody's else.
        denied(hello("203.0.113.11", 443, json!([["api.example.test"]]))),
        // Its name was never allowed.
        fails(json!({"act": "lookup", "name": "db.example.test"}), "EAI_NONAME|EAI_AGAIN|EAI_FAIL"),
    ];
    lab.check(&open, &rows);
    let plain = [with(hello("203.0.113.11", 443, json!([])), json!({"hold": 1.0}))];
    for level in Level::here() {
        let got = lab.inside(level, &open, &plain);
        assert!(
            got[0]["count"].as_u64() > Some(0),
            "{level:?}: no answer of the server: {}",
            got[0]
        );
    }
}

/// Names that are allowed and lead where nothing public is, and whether that is there to be reached.
const REBOUND: &[(&str, &str, bool)] = &[
    ("A", "10.0.0.5", true),
    ("A", "127.0.0.1", true),
    ("A", "192.0.2.1", true), // the host's own, though public by its number
    ("A", "0.0.0.0", true),
    ("A", "127.8.9.10", false),
    ("A", "169.254.169.254", false),
    ("A", "169.254.1.1", false),
    ("A", "100.64.0.1", false),
    ("A", "224.0.0.1", false),
    ("A", "240.0.0.1", false),
    ("A", "198.18.0.1", false),
    ("AAAA", "::1", true),
    ("AAAA", "::", false),
    ("AAAA", "::ffff:127.0.0.1", true),
    ("AAAA", "::ffff:10.0.0.5", true),
    ("AAAA", "::ffff:169.254.169.254", false),
    ("AAAA", "64:ff9b::7f00:1", false),
    ("AAAA", "64:ff9b::a00:5", false),
    ("AAAA", "2002:7f00:1::1", false),
    ("AAAA", "fd00::5", false),
    ("AAAA", "fe80::1", false),
    ("AAAA", "fd00:ec2::254", false),
];

fn rebound_name(index: usize) -> String {
    format!("bound{index}.example.test")
}

#[test]
fn a_public_name_that_leads_to_a_private_address_is_refused() {
    // INV-8; jail.md 1.5 rule 2: rebinding, and CNAMEs to private names.
    let mut zone = standard_zone();
    for (index, (kind, address, _)) in REBOUND.iter().enumerate() {
        zone[rebound_name(index)] = json!({*kind: [address]});
    }
    zone["toprivate.example.test"] = json!({"CNAME": "private.example.test"});
    zone["tolocal.example.test"] = json!({"CNAME": "localhost.example.test"});
    zone["localhost.example.test"] = json!({"A": ["127.0.0.1"], "AAAA": ["::1"]});
    let lab = Lab::with(&standard_servers(), &zone);
    let closed =
        policy(r#"allow = ["*.example.test:7000", "*.example.test:80", "*.example.test"]"#);
    let mut rows = Vec::new();
    for (index, (_, _, there)) in REBOUND.iter().enumerate() {
        let row = denied(talk(&rebound_name(index), 7000, "rebound"));
        rows.push(if *there { row } else { row.without_control() });
    }
    for name in ["toprivate", "tolocal"] {
        rows.push(denied(talk(&format!("{name}.example.test"), 7000, "rebound")));
    }
    let http = "GET /ok HTTP/1.1\r\nHost: metadata.example.test\r\n\r\n";
    rows.push(denied(talk("metadata.example.test", 80, http)));
    rows.push(denied(hello("metadata.example.test", 443, json!([["metadata.example.test"]]))));
    rows.push(gives(talk("alias.example.test", 7000, "alias"), "alias"));
    rows.push(gives(talk("v6.example.test", 7000, "six"), "six"));
    rows.push(gives(talk("both.example.test", 7000, "both"), "both"));
    rows.push(gives(talk("broken6.example.test", 7000, "happy"), "happy"));
    lab.check_then(&closed, &rows, |lab| {
        let mut reached = reached(lab);
        reached.retain(|on| !on.starts_with("203.0.113.10:") && !on.starts_with("2001:db8:1::10:"));
        assert_eq!(reached, [""; 0], "INV-8");
    });
    // With a rule that says `private`, what is there is reached; metadata still is not.
    let open = policy(
        r#"allow = [{ rule = "*.example.test:7000", private = true },
                                  { rule = "*.example.test:80", private = true }]"#,
    );
    let rows = [
        gives(talk(&rebound_name(0), 7000, "private"), "private"),
        gives(talk(&rebound_name(1), 7000, "loopback"), "loopback"),
        gives(talk("toprivate.example.test", 7000, "cname"), "cname"),
        denied(talk("metadata.example.test", 80, http)),
    ];
    lab.check(&open, &rows);
}

#[test]
fn metadata_needs_a_rule_that_lists_its_address() {
    let lab = Lab::standard();
    let request = "GET /ok HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n";
    let act = || talk("169.254.169.254", 80, request);
    lab.check(
        &policy(r#"allow = ["api.example.test:80", { rule = "10.0.0.0/8:80", private = true }]"#),
        &[denied(act())],
    );
    let listed = r#"allow = [{ rule = "169.254.169.254/32:80", private = true }]"#;
    lab.check(&policy(listed), &[gives(act(), "ok from 169.254.169.254:80")]);
}

#[test]
fn of_a_mixed_or_changing_answer_only_checked_addresses_are_dialled() {
    // INV-8: all addresses of an answer are checked, and the checked one is used.
    let mut zone = standard_zone();
    zone["mixed.example.test"] = json!({"A": ["10.0.0.5", "127.0.0.1", "203.0.113.10", "192.0.2.1"],
                                        "AAAA": ["::1", "::ffff:10.0.0.5"]});
    zone["flip.example.test"] = json!({"A": [["203.0.113.10"], ["127.0.0.1"]]});
    zone["flop.example.test"] = json!({"A": [["127.0.0.1"], ["203.0.113.10"]]});
    let lab = Lab::with(&standard_servers(), &zone);
    let policy = policy(r#"allow = ["*.example.test:7000"]"#);
    let mut acts: Vec<Value> = (0..8).map(|_| talk("mixed.example.test", 7000, "mixed")).collect();
    acts.extend((0..4).map(|_| talk("flip.example.test", 7000, "flip")));
    acts.extend((0..4).map(|_| talk("flop.example.test", 7000, "flop")));
    for level in Level::here() {
        lab.forget();
        let got = lab.inside(level, &policy, &acts);
        assert!(got[..8].iter().all(|one| one["text"] == "mixed"), "{level:?}: {got:#?}");
        let reached = reached(&lab);
        assert!(reached.iter().all(|on| on == "203.0.113.10:7000"), "INV-8 {level:?}: {reached:?}");
        // Once for each kind of address and connection, not once more for the dialling. Of those that
        // succeed there is one for each act; whoever is refused may try the name's other address.
        let asked = lab.questions().iter().filter(|name| *name == "mixed.example.test").count();
        assert_eq!(asked, 16, "{level:?}: questions for 8 connections");
    }
    // Outside, the same names lead to the host itself.
    lab.forget();
    lab.outside(&acts);
    assert!(reached(&lab).iter().any(|on| !on.starts_with("203.0.113.10")), "{:?}", reached(&lab));
}

#[test]
fn dns_over_tls_and_https_are_destinations_like_any_other() {
    // jail.md 1.5 rule 4.
    let lab = Lab::with(
        &[standard_servers(), vec![server("echo", "203.0.113.10", 853)]].concat(),
        &standard_zone(),
    );
    let get = "GET /ok HTTP/1.1\r\nHost: 203.0.113.53\r\nConnection: close\r\n\r\n";
    let doh = json!({"act": "tls", "host": "203.0.113.53", "port": 443, "send": get});
    let rows = [
        denied(doh),
        denied(hello("203.0.113.53", 443, json!([["api.example.test"]]))),
        denied(hello("203.0.113.53", 443, json!([]))),
        fails(talk("203.0.113.53", 853, "dot"), "ECONNREFUSED"),
    ];
    lab.check(&names(), &rows);
    // Listened on for another host's sake, it is refused all the same.
    let dot = policy(r#"allow = ["api.example.test:853"]"#);
    let rows = [
        denied(bytes("203.0.113.53", 853)),
        gives(talk("api.example.test", 853, "allowed"), "allowed"),
    ];
    lab.check(&dot, &rows);
}

fn bytes(host: &str, port: u16) -> Value {
    e2e::lab::rows::bytes(host, port, "dot")
}
