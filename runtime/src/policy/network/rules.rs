//! All rules of a policy and what they decide. A destination is allowed if any rule allows it, so a
//! list with fewer rules is never wider.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::address::AddressClass;
use super::name::{Host, HostName};
use super::rule::{EgressRule, Pattern, Protocol};

/// Ports to which report mode leads, beside those of rules: there are listeners on no others.
pub(crate) const REPORT_PORTS: [u16; 2] = [80, 443];

/// A rule and where it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedRule {
    /// The rule.
    pub rule: EgressRule,
    /// `file:line:column`.
    pub origin: String,
}

/// The rules of one policy. No rule allows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// In the order they were written.
    pub list: Vec<ListedRule>,
    /// In report mode: until when (seconds since 1970, UTC) destinations that no rule names are let
    /// through and recorded. Never to addresses that are not public.
    pub report_until: Option<u64>,
}

/// What a connection may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// TLS that names the host.
    pub tls: bool,
    /// HTTP that names the host.
    pub http: bool,
    /// What is neither.
    pub other: bool,
    /// Names are not compared.
    pub unchecked: bool,
}

/// An allowed destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed<'a> {
    /// The first rule that allows it; `None` in report mode.
    pub rule: Option<&'a ListedRule>,
    /// Whether private and loopback addresses may be dialled.
    pub private: bool,
    /// What may be carried.
    pub content: Content,
}

/// Why a destination is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DenyReason {
    /// No rule names the host.
    NoRule,
    /// A rule names the host, with another port.
    OtherPort,
    /// An address that was not asked for by a name, and no rule lists it.
    DirectAddress,
    /// The name leads to addresses of this class only, and no rule allows them.
    Address(AddressClass),
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Yes.
    Allow(Allowed<'a>),
    /// No.
    Deny(DenyReason),
}

impl Rules {
    /// Whether `host` may be reached on `port`, as far as that is known before its addresses are.
    /// `now` is seconds since 1970, UTC.
    ///
    /// In report mode every destination may carry what its port usually does, those of rules too:
    /// a rule that is taken away would otherwise allow more than one that is there.
    pub fn decide(&self, host: &Host, port: u16, now: u64) -> Verdict<'_> {
        let listens =
            || REPORT_PORTS.contains(&port) || self.list.iter().any(|it| it.rule.port == port);
        let report = self.report_until.is_some_and(|until| now < until) && listens();
        let usual = Content::of(Protocol::of_port(port));
        let mut found = report.then_some(Allowed { rule: None, private: false, content: usual });
        for listed in self.list.iter().filter(|listed| listed.rule.matches(host, port)) {
            let content = Content::of(listed.rule.protocol);
            let private = listed.rule.private;
            found = Some(match found {
                None => Allowed { rule: Some(listed), private, content },
                Some(old) => Allowed {
                    rule: old.rule.or(Some(listed)),
                    private: old.private || private,
                    content: old.content.or(content),
                },
            });
        }
        if let Some(allowed) = found {
            return Verdict::Allow(allowed);
        }
        let known = self.list.iter().any(|listed| listed.rule.pattern.matches(host));
        Verdict::Deny(match host {
            _ if known => DenyReason::OtherPort,
            Host::Name(_) => DenyReason::NoRule,
            Host::Address(_) => DenyReason::DirectAddress,
        })
    }

    /// Whether `address`, which `host` leads to, may be dialled under `allowed`. The caller adds the
    /// host's own addresses as [`AddressClass::Loopback`].
    ///
    /// Private and loopback addresses need a rule with `private`; link-local and metadata addresses
    /// need one that lists them as a network too. Multicast and reserved ones are never dialled.
    pub fn may_dial(
        &self,
        host: &Host,
        port: u16,
        allowed: &Allowed<'_>,
        address: IpAddr,
        class: AddressClass,
    ) -> Result<(), DenyReason> {
        let address = address.to_canonical();
        let listed = || {
            self.list.iter().any(|listed| {
                listed.rule.private
                    && matches!(listed.rule.pattern, Pattern::Network(_))
                    && listed.rule.matches(&Host::Address(address), port)
            })
        };
        let asked_as_such = *host == Host::Address(address);
        match class {
            AddressClass::Public => Ok(()),
            AddressClass::Private | AddressClass::Loopback if allowed.private => Ok(()),
            AddressClass::LinkLocal | AddressClass::Metadata if asked_as_such && listed() => Ok(()),
            class => Err(DenyReason::Address(class)),
        }
    }

    /// Whether any port of `name` is allowed: whether its resolver answers.
    pub fn may_resolve(&self, name: &HostName, now: u64) -> bool {
        let host = Host::Name(name.clone());
        self.report_until.is_some_and(|until| now < until)
            || self.list.iter().any(|listed| listed.rule.pattern.matches(&host))
    }

    /// Whether `name` is allowed by a wildcard only, so that code in the jail chose its labels.
    pub fn is_chosen_inside(&self, name: &HostName) -> bool {
        let exact = |listed: &ListedRule| listed.rule.pattern == Pattern::Exact(name.clone());
        !self.list.iter().any(exact)
    }

    /// Every port that any rule names, ascending.
    pub fn ports(&self) -> BTreeSet<u16> {
        self.list.iter().map(|listed| listed.rule.port).collect()
    }
}

impl Content {
    fn of(protocol: Protocol) -> Content {
        let none = Content { tls: false, http: false, other: false, unchecked: false };
        match protocol {
            Protocol::Tls => Content { tls: true, ..none },
            Protocol::Http => Content { http: true, ..none },
            Protocol::Auto => Content { tls: true, http: true, other: true, unchecked: false },
            Protocol::Tcp => Content { tls: true, http: true, other: true, unchecked: true },
        }
    }

    fn or(self, more: Content) -> Content {
        Content {
            tls: self.tls || more.tls,
            http: self.http || more.http,
            other: self.other || more.other,
            unchecked: self.unchecked || more.unchecked,
        }
    }
}

impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DenyReason::NoRule => f.write_str("no matching rule"),
            DenyReason::OtherPort => f.write_str("a rule names this host with another port"),
            DenyReason::DirectAddress => {
                f.write_str("addresses are reached by name; no rule lists this one")
            }
            DenyReason::Address(AddressClass::Metadata) => f.write_str("metadata is never allowed"),
            DenyReason::Address(class) => write!(f, "leads to a {class} address"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Rules of texts; `private` before one, `PROTOCOL` after it, as in `private a.test:22 tcp`.
    fn rules(texts: &[&str]) -> Rules {
        let listed = |text: &&str| {
            let mut words = text.split(' ').peekable();
            let private = words.next_if_eq(&"private").is_some();
            let mut rule: EgressRule = words.next().expect("a rule").parse().expect(text);
            rule.private = private;
            match words.next() {
                None => {}
                Some("tls") => rule.protocol = Protocol::Tls,
                Some("auto") => rule.protocol = Protocol::Auto,
                Some("tcp") => rule.protocol = Protocol::Tcp,
                Some(other) => panic!("{other}"),
            }
            ListedRule { rule, origin: "p.toml:1:1".to_owned() }
        };
        Rules { list: texts.iter().map(listed).collect(), report_until: None }
    }

    fn decide<'a>(rules: &'a Rules, host: &str, port: u16) -> Verdict<'a> {
        rules.decide(&host.parse().expect(host), port, 0)
    }

    #[test]
    fn a_rule_matches_whole_labels_on_its_port_and_nothing_else() {
        // INV-8: a name not allowed is not reached.
        #[rustfmt::skip]
        let cases = [
            ("api.example.com:443", "api.example.com",           443, true),
            ("api.example.com",     "API.Example.COM.",          443, true),  // one canonical form
            ("api.example.com:443", "api.example.com",           80,  false),
            ("api.example.com:443", "api.example.com.evil.test", 443, false), // suffix trick
            ("api.example.com:443", "xapi.example.com",          443, false),
            ("api.example.com:443", "www.api.example.com",       443, false),
            ("*.example.com:443",   "a.example.com",             443, true),
            ("*.example.com:443",   "example.com",               443, false), // apex is not a label
            ("*.example.com:443",   "a.b.example.com",           443, false), // one label
            ("*.example.com:443",   "aexample.com",              443, false),
            ("**.example.com:443",  "a.example.com",             443, true),
            ("**.example.com:443",  "a.b.c.example.com",         443, true),
            ("**.example.com:443",  "example.com",               443, false),
            ("**.example.com:443",  "notexample.com",            443, false),
            ("bücher.example:443",  "xn--bcher-kva.example",     443, true),
            ("203.0.113.0/24:443",  "203.0.113.7",               443, true),
            ("203.0.113.0/24:443",  "::ffff:203.0.113.7",        443, true),
            ("203.0.113.0/24:443",  "0xcb007107",                443, true),
            ("203.0.113.0/24:443",  "203.0.114.1",               443, false),
            ("203.0.113.0/24:443",  "a.example",                 443, false), // a name is no address
            ("0.0.0.0/0:443",       "2001:db8::1",               443, false),
            ("[2001:db8::/32]:443", "2001:db8::1",               443, true),
            ("a.example:443",       "203.0.113.7",               443, false),
        ];
        for (rule, host, port, want) in cases {
            let rules = rules(&[rule]);
            let got = matches!(decide(&rules, host, port), Verdict::Allow(_));
            assert_eq!(got, want, "rule `{rule}` against {host}:{port}");
        }
        assert!(matches!(decide(&rules(&[]), "a.example", 443), Verdict::Deny(DenyReason::NoRule)));
    }

    #[test]
    fn a_refusal_says_what_is_missing() {
        let rules = rules(&["a.example:443", "203.0.113.0/24:443"]);
        #[rustfmt::skip]
        let cases = [
            ("b.example", 443, DenyReason::NoRule), ("a.example", 80, DenyReason::OtherPort),
            ("192.0.2.1", 443, DenyReason::DirectAddress), ("203.0.113.1", 80, DenyReason::OtherPort),
        ];
        for (host, port, reason) in cases {
            assert_eq!(decide(&rules, host, port), Verdict::Deny(reason), "{host}:{port}");
        }
    }

    #[test]
    fn addresses_that_are_not_public_are_dialled_only_where_a_rule_says_so() {
        // INV-8, jail.md 1.5 rule 2; each refusal has a control beside it.
        let rules = rules(&[
            "open.example:443",
            "private inner.example:443",
            "0.0.0.0/0:443",
            "private 10.0.0.0/8:443",
            "private 169.254.0.0/16:80",
        ]);
        #[rustfmt::skip]
        let cases = [
            ("open.example", 443, "203.0.113.7", true), ("open.example", 443, "10.0.0.1", false),
            ("open.example", 443, "127.0.0.1", false), ("open.example", 443, "::1", false),
            ("open.example", 443, "169.254.169.254", false), ("open.example", 443, "fe80::1", false),
            ("open.example", 443, "::ffff:10.0.0.1", false), ("open.example", 443, "64:ff9b::a00:1", false),
            ("inner.example", 443, "10.0.0.1", true), ("inner.example", 443, "127.0.0.1", true),
            ("inner.example", 443, "203.0.113.7", true), ("inner.example", 443, "fd00::1", true),
            ("inner.example", 443, "169.254.169.254", false), ("inner.example", 443, "224.0.0.1", false),
            ("inner.example", 443, "0.0.0.0", false), ("inner.example", 443, "169.254.1.1", false),
            ("10.0.0.1", 443, "10.0.0.1", true), ("192.168.0.1", 443, "192.168.0.1", false),
            ("169.254.169.254", 80, "169.254.169.254", true),
            ("169.254.169.254", 443, "169.254.169.254", false), ("203.0.113.7", 443, "203.0.113.7", true),
        ];
        for (host, port, address, want) in cases {
            let (to, address): (Host, IpAddr) =
                (host.parse().expect(host), address.parse().expect(address));
            let Verdict::Allow(allowed) = rules.decide(&to, port, 0) else {
                panic!("{host}:{port}")
            };
            let got = rules.may_dial(&to, port, &allowed, address, AddressClass::of(address));
            assert_eq!(got.is_ok(), want, "{host}:{port} at {address}");
        }
    }

    #[test]
    fn report_mode_lets_public_destinations_through_until_its_end() {
        let rules = Rules { report_until: Some(100), ..rules(&["a.example:443"]) };
        let host: Host = "b.example".parse().expect("a name");
        let Verdict::Allow(allowed) = rules.decide(&host, 443, 99) else { panic!("report mode") };
        assert!(allowed.rule.is_none() && !allowed.private);
        let dial = |address: &str| {
            let address: IpAddr = address.parse().expect("an address");
            rules.may_dial(&host, 443, &allowed, address, AddressClass::of(address)).is_ok()
        };
        assert!(dial("203.0.113.7"));
        // AWS-8: the metadata service of a cloud gives out credentials.
        assert!(!dial("10.0.0.1") && !dial("127.0.0.1") && !dial("169.254.169.254"));
        assert_eq!(rules.decide(&host, 443, 100), Verdict::Deny(DenyReason::NoRule));
        // Nobody listens on other ports, so `why` may not say that they are open.
        let verdict = |port| matches!(rules.decide(&host, port, 99), Verdict::Allow(_));
        assert_eq!([80, 443, 22, 8443].map(verdict), [true, true, false, false]);
        let name = HostName::parse("b.example").expect("a name");
        assert!(rules.may_resolve(&name, 99) && !rules.may_resolve(&name, 100));
        assert!(rules.is_chosen_inside(&name), "the jail chose it");
    }

    #[test]
    fn what_several_rules_allow_is_put_together() {
        let rules = rules(&["a.x.test:443", "private *.x.test:443", "**.x.test:443 tcp"]);
        let Verdict::Allow(allowed) = decide(&rules, "a.x.test", 443) else {
            panic!("three rules")
        };
        assert!(allowed.content.tls && allowed.content.unchecked && allowed.private);
        assert_eq!(allowed.rule, rules.list.first(), "the first rule is named");
        let Verdict::Allow(allowed) = decide(&rules, "b.a.x.test", 443) else { panic!("one rule") };
        assert!(allowed.content.unchecked && !allowed.private);
    }

    const TEXTS: [&str; 12] = [
        "a.x.test:443",
        "*.x.test:443",
        "**.x.test:443",
        "private *.b.x.test:443",
        "x.test:443",
        "a.x.test:80",
        "private **.b.x.test:443",
        "*.x.test:8443 tcp",
        "a.x.test:8443 tls",
        "private 10.0.0.0/8:443",
        "private 10.1.0.0/16:443",
        "10.1.2.0/24:443",
    ];
    const HOSTS: [&str; 9] = [
        "a.x.test",
        "b.x.test",
        "c.b.x.test",
        "d.c.b.x.test",
        "x.test",
        "y.test",
        "10.1.2.3",
        "10.2.0.1",
        "203.0.113.7",
    ];

    /// A number for each thing that is allowed; more is wider.
    fn allowed(rules: &Rules, host: &Host, port: u16) -> [bool; 8] {
        let Verdict::Allow(found) = rules.decide(host, port, 0) else { return [false; 8] };
        let Content { tls, http, other, unchecked } = found.content;
        let dial = |address: &str| {
            let address: IpAddr = address.parse().expect(address);
            rules.may_dial(host, port, &found, address, AddressClass::of(address)).is_ok()
        };
        [true, tls, http, other, unchecked, dial("203.0.113.7"), dial("10.1.2.3"), dial("::1")]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn fewer_rules_never_allow_more(
            all in proptest::sample::subsequence(TEXTS.to_vec(), 0..=TEXTS.len()),
            kept in proptest::collection::vec(any::<bool>(), TEXTS.len()),
        ) {
            let fewer: Vec<&str> =
                all.iter().zip(kept).filter(|(_, keep)| *keep).map(|(text, _)| *text).collect();
            let (all, fewer) = (rules(&all), rules(&fewer));
            for host in HOSTS.map(|host| host.parse::<Host>().expect(host)) {
                for port in [80, 443, 8443] {
                    let pairs = allowed(&fewer, &host, port).into_iter().zip(allowed(&all, &host, port));
                    prop_assert!(pairs.into_iter().all(|(less, more)| less <= more), "{host}:{port}");
                }
            }
        }

        #[test]
        fn a_name_that_may_be_reached_may_be_resolved_and_no_other(
            all in proptest::sample::subsequence(TEXTS.to_vec(), 0..=TEXTS.len()),
            until in proptest::option::of(0..10u64),
        ) {
            let rules = Rules { report_until: until, ..rules(&all) };
            for host in HOSTS.map(|host| host.parse::<Host>().expect(host)) {
                let Host::Name(name) = &host else { continue };
                let reached = (1..=u16::MAX)
                    .filter(|port| matches!(port, 80 | 443 | 8443))
                    .any(|port| matches!(rules.decide(&host, port, 5), Verdict::Allow(_)));
                prop_assert_eq!(reached, rules.may_resolve(name, 5), "{}", name);
            }
        }

        #[test]
        fn a_rule_that_covers_another_allows_all_that_it_does(
            parent in proptest::sample::select(TEXTS.to_vec()),
            child in proptest::sample::select(TEXTS.to_vec()),
        ) {
            let (parent, child) = (rules(&[parent]), rules(&[child]));
            let covers = parent.list[0].rule.covers(&child.list[0].rule);
            let mut all = true;
            for host in HOSTS.map(|host| host.parse::<Host>().expect(host)) {
                for port in [80, 443, 8443] {
                    let pairs = allowed(&child, &host, port).into_iter().zip(allowed(&parent, &host, port));
                    all &= pairs.into_iter().all(|(less, more)| less <= more);
                }
            }
            // `HOSTS` and the ports tell all of `TEXTS` apart, so it holds both ways.
            prop_assert_eq!(covers, all);
        }
    }
}
