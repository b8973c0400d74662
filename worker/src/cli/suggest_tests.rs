//! What is suggested, and that it allows what it was suggested for and nothing else.

use super::super::egress_records::tests::{allowed, denied, write};
use super::*;
use std::path::Path;
use stockade_runtime::audit::{Event, Text};
use stockade_runtime::policy::Resolver;
use stockade_runtime::policy::network::{Rules, Verdict};

fn suggested(events: Vec<Event>) -> Suggestions {
    let directory = tempfile::TempDir::new().expect("a directory");
    let path = directory.path().join("audit.jsonl");
    write(&path, events.into_iter().map(|event| ("sesn_1", Some("c1"), event)).collect());
    let args = LogArgs { audit_file: Some(path), ..LogArgs::default() };
    Suggestions::from(&Report::of(&args, Grouping::Destination).expect("readable"))
}

/// The rules of a patch as the broker would have them: it is a policy by itself.
fn rules(patch: &str) -> Rules {
    let load = |_: &Path| Ok(patch.to_owned());
    let groups = super::super::syscall_groups();
    let resolver = Resolver { groups: &groups, directories: &[], load: &load };
    let policy = resolver.resolve("./suggested.toml");
    policy.unwrap_or_else(|error| panic!("{error}\n{patch}")).network.rules()
}

fn allows(rules: &Rules, host: &str, port: u16) -> bool {
    let host = Host::parse(host).expect(host);
    matches!(rules.decide(&host, port, 0), Verdict::Allow(_))
}

#[test]
fn a_patch_allows_what_was_refused_and_nothing_beside_it() {
    let patch = suggested(vec![
        denied("api.partner.example", 443, "no-rule"),
        denied("git.example.com", 22, "other-port"),
        denied("203.0.113.9", 5432, "direct-address"),
        denied("2001:db8::9", 8443, "direct-address"),
        denied("only.looked.example", 53, "lookup"),
        allowed(1, "new.example.org", 8080, None),
        allowed(2, "old.example.org", 443, Some("old.example.org:443")),
    ])
    .to_toml();
    let rules = rules(&patch);
    #[rustfmt::skip]
    let cases = [
        ("api.partner.example",   443,  true),
        ("git.example.com",       22,   true),
        ("203.0.113.9",           5432, true),
        ("2001:db8::9",           8443, true),
        ("only.looked.example",   443,  true),
        ("new.example.org",       8080, true),
        ("old.example.org",       443,  false), // a rule allows it already
        ("api.partner.example",   80,   false),
        ("x.api.partner.example", 443,  false),
        ("partner.example",       443,  false),
        ("203.0.113.8",           5432, false),
    ];
    for (host, port, want) in cases {
        assert_eq!(allows(&rules, host, port), want, "{host}:{port} by\n{patch}");
    }
    let line = |start: &str| patch.lines().find(|line| line.contains(start)).expect(start);
    assert!(line("only.looked").contains("port not known"), "{patch}");
    assert!(line("new.example").contains("report mode"), "{patch}");
    assert_eq!(
        line("api.partner").trim(),
        "\"api.partner.example:443\", # refused: 1 time in 1 call"
    );
}

/// INV-8: what leads to addresses that are not public is for a person to decide.
#[test]
fn nothing_is_suggested_for_private_addresses_metadata_limits_and_disagreeing_names() {
    let class = |host: &str, class: &str| Event::EgressDenied {
        number: 1,
        host: Text::of(&host),
        port: 80,
        reason: "address".into(),
        address: None,
        address_class: Some(class.into()),
        generation: 1,
    };
    let suggestions = suggested(vec![
        class("db.internal.example", "private"),
        class("rebound.example.com", "metadata"),
        denied("169.254.169.254", 80, "direct-address"),
        denied("10.0.0.7", 5432, "direct-address"),
        denied("127.0.0.1", 5432, "direct-address"),
        denied("100.100.100.200", 80, "no-rule"),
        denied("fronted.example.com", 443, "other-name"),
        denied("busy.example.com", 443, "connections"),
        denied("gone.example.com", 443, "rule-removed"),
        denied("dns.example.com", 53, "no-rule"),
        denied("later.example.com", 443, "of-a-later-version"),
    ]);
    let patch = suggestions.to_toml();
    assert_eq!(rules(&patch).list, [], "{patch}");
    for part in [
        "169.254.169.254:80 x1: a metadata service",
        "10.0.0.7:5432 x1: a private address",
        "127.0.0.1:5432 x1: this host itself",
        "rebound.example.com:80 x1: a metadata",
        "fronted.example.com:443 x1: a rule allows it",
        "busy.example.com:443 x1: a limit",
    ] {
        assert!(patch.contains(part), "`{part}` is not in\n{patch}");
    }
    assert!(!patch.contains("private = true }"), "{patch}");
    assert_eq!(suggestions.to_json()["not_suggested"].as_array().map(Vec::len), Some(11));
}

#[test]
fn a_wildcard_is_offered_beside_the_names_and_never_in_their_place() {
    let names = ["a", "b", "c"].map(|label| format!("{label}.pkg.example.com"));
    let events = |names: &[String]| names.iter().map(|name| denied(name, 443, "no-rule")).collect();
    let suggestions = suggested(events(&names));
    let patch = suggestions.to_toml();
    assert!(
        patch.contains("# Wider: \"*.pkg.example.com:443\" would replace 3 of these"),
        "{patch}"
    );
    let rules = rules(&patch);
    assert_eq!((rules.list.len(), allows(&rules, "d.pkg.example.com", 443)), (3, false));
    assert_eq!(suggestions.to_json()["wider"][0]["rule"], "*.pkg.example.com:443");
    let two = suggested(events(&names[..2])).to_toml();
    assert!(!two.contains("Wider"), "{two}");
    let top = ["a", "b", "c"].map(|label| format!("{label}.example"));
    let top = suggested(events(&top)).to_toml();
    assert!(!top.contains("Wider"), "a wildcard over a top-level name is no rule: {top}");
    let mixed = [443, 443, 22].into_iter().zip(&names).map(|(p, n)| denied(n, p, "no-rule"));
    let mixed = suggested(mixed.collect()).to_toml();
    assert!(!mixed.contains("Wider"), "other ports are not siblings: {mixed}");
}

#[test]
fn a_lookup_is_not_suggested_beside_the_port_that_was_used() {
    let patch = suggested(vec![
        denied("a.example.com", 53, "lookup"),
        denied("a.example.com", 8443, "no-rule"),
        denied("b.example.com", 53, "lookup"),
        denied("b.example.com", 443, "no-rule"),
    ])
    .to_toml();
    let found: Vec<String> =
        rules(&patch).list.iter().map(|listed| listed.rule.to_string()).collect();
    assert_eq!(found, ["a.example.com:8443", "b.example.com:443"]);
    assert!(!patch.contains("port not known"), "{patch}");
}

/// INV-11, and nothing in a log can end a comment or a string.
#[test]
fn a_patch_is_bounded_and_holds_hosts_only() {
    let many = (0..2_000).map(|n| denied(&format!("n{n}.example.com"), 443, "no-rule"));
    let hostile =
        ["a\nmode = \"off\"", "x\", \"*.evil.example", "a b", "ü.example", "*.example.com"];
    let hostile = hostile.into_iter().map(|host| denied(host, 443, "no-rule"));
    let suggestions = suggested(many.chain(hostile).collect());
    let patch = suggestions.to_toml();
    let rules = rules(&patch);
    assert_eq!(rules.list.len(), RULES_MAX);
    assert!(patch.len() < 100_000 && patch.contains("# Not shown: "), "{} bytes", patch.len());
    let table: toml::Table = patch.parse().expect("TOML");
    assert_eq!((table.len(), table["network"].as_table().map(toml::Table::len)), (2, Some(1)));
}
