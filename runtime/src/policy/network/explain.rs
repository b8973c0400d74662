//! Why a destination is denied: the rule that comes nearest, in what it differs, and the narrowest
//! rule that would allow it.
//!
//! Pure, and apart from the decision: what is written here is for people. Nothing is looked up, so
//! what is said of a name holds before its addresses are known.

use std::fmt;

use super::address::AddressClass;
use super::name::{Host, HostName};
use super::rule::{Destination, Pattern};
use super::rules::{DenyReason, ListedRule, Rules, Verdict};

/// Labels that two names must share at their ends to be called near.
const SHARED_MIN: usize = 2;

/// The rule that comes nearest to a destination that is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nearest<'a> {
    /// The rule.
    pub rule: &'a ListedRule,
    /// In what it differs.
    pub difference: Difference,
}

/// In what a rule differs from a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// The host fits, the port is this one.
    Port(u16),
    /// The destination fits, and the rule is not for addresses of this class.
    Class(AddressClass),
    /// The name is the apex of the wildcard.
    Apex,
    /// One star, and the name has so many labels there.
    Depth(usize),
    /// Another name below the same one.
    Name,
}

impl Rules {
    /// Decides about `to` as far as that can be done without looking anything up: for an address
    /// also whether it may be dialled. `now` is seconds since 1970, UTC.
    pub fn test(&self, to: &Destination, now: u64) -> Verdict<'_> {
        let verdict = self.decide(&to.host, to.port, now);
        if let (Verdict::Allow(allowed), Host::Address(address)) = (&verdict, &to.host) {
            let class = AddressClass::of(*address);
            if let Err(reason) = self.may_dial(&to.host, to.port, allowed, *address, class) {
                return Verdict::Deny(reason);
            }
        }
        verdict
    }

    /// The rule nearest to a denied destination; `None` if none is near.
    pub fn nearest(&self, to: &Destination) -> Option<Nearest<'_>> {
        let all = self.list.iter().filter_map(|rule| {
            let (distance, difference) = difference(rule, to)?;
            Some((distance, Nearest { rule, difference }))
        });
        all.min_by_key(|(distance, _)| *distance).map(|(_, nearest)| nearest)
    }
}

impl Destination {
    /// The narrowest entry of `network.allow` that allows this destination, as TOML; `None` where
    /// none can. `reason` is why it is denied.
    pub fn narrowest_rule(&self, reason: DenyReason) -> Option<String> {
        if self.port == 53 {
            return None;
        }
        if matches!(&self.host, Host::Name(name) if name.is_localhost()) {
            return Some(format!("{{ rule = \"127.0.0.1:{}\", private = true }}", self.port));
        }
        let class = match (&self.host, reason) {
            (_, DenyReason::Address(class)) => class,
            (Host::Address(address), _) => AddressClass::of(*address),
            (Host::Name(_), _) => AddressClass::Public,
        };
        match class {
            AddressClass::Public => Some(format!("\"{self}\"")),
            AddressClass::Multicast | AddressClass::Reserved => None,
            // By name these are never reached. As addresses they hand out the host's own credentials:
            // whoever wants that has to write it unasked.
            AddressClass::LinkLocal | AddressClass::Metadata => None,
            _ => Some(format!("{{ rule = \"{self}\", private = true }}")),
        }
    }
}

/// How far a rule is from a destination, and in what; `None` if it is about something else.
fn difference(listed: &ListedRule, to: &Destination) -> Option<(usize, Difference)> {
    let (rule, port) = (&listed.rule, to.port);
    // A rule that fits but for its port is nearer than any that does not fit.
    let other_port = usize::from(rule.port != port);
    match (&rule.pattern, &to.host) {
        (pattern, host) if pattern.matches(host) => match (rule.port == port, host) {
            (false, _) => Some((1, Difference::Port(rule.port))),
            (true, Host::Address(address)) => {
                Some((0, Difference::Class(AddressClass::of(*address))))
            }
            (true, Host::Name(_)) => None,
        },
        (Pattern::OneLabel(suffix) | Pattern::AnyDepth(suffix), Host::Name(name))
            if suffix == name =>
        {
            Some((2 + other_port, Difference::Apex))
        }
        (Pattern::OneLabel(suffix), Host::Name(name)) if ends_with(name, suffix) => {
            let labels = name.labels().count() - suffix.labels().count();
            Some((2 + other_port, Difference::Depth(labels)))
        }
        (
            Pattern::Exact(other) | Pattern::OneLabel(other) | Pattern::AnyDepth(other),
            Host::Name(name),
        ) => {
            let shared = other.labels().rev().zip(name.labels().rev()).take_while(|(a, b)| a == b);
            // At most 127 labels fit into a name.
            let shared = shared.count();
            (shared >= SHARED_MIN)
                .then(|| (10 + 2 * (127 - shared.min(127)) + other_port, Difference::Name))
        }
        _ => None,
    }
}

fn ends_with(name: &HostName, suffix: &HostName) -> bool {
    let front = name.as_str().strip_suffix(suffix.as_str());
    front.is_some_and(|front| front.len() > 1 && front.ends_with('.'))
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Port(port) => write!(f, "rule allows port {port}"),
            Difference::Class(class) => {
                write!(f, "rule does not say `private = true`, and this is a {class} address")
            }
            Difference::Apex => f.write_str("a star does not stand for no label"),
            Difference::Depth(labels) => {
                write!(f, "one star stands for one label, and there are {labels}")
            }
            Difference::Name => f.write_str("it is another name"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Rules {
        let listed = |text: &&str| ListedRule {
            rule: text.parse().expect(text),
            origin: "p.toml:1:1".to_owned(),
        };
        Rules { list: texts.iter().map(listed).collect(), report_until: None }
    }

    #[test]
    fn the_nearest_rule_is_the_one_that_an_operator_would_change() {
        let all = rules(&[
            "*.partner.example:8443",
            "api.other.example:443",
            "**.deep.example:443",
            "*.flat.example:443",
            "0.0.0.0/0:443",
            "10.0.0.0/8:5432",
        ]);
        #[rustfmt::skip]
        let cases = [
            ("api.partner.example:443", Some(("*.partner.example:8443", "rule allows port 8443"))),
            ("partner.example:8443",    Some(("*.partner.example:8443", "a star does not stand for no label"))),
            ("deep.example:443",        Some(("**.deep.example:443", "a star does not stand for no label"))),
            ("a.b.flat.example:443",    Some(("*.flat.example:443", "one star stands for one label, and there are 2"))),
            ("web.other.example:443",   Some(("api.other.example:443", "it is another name"))),
            ("api.nowhere.test:443",    None),
            ("10.1.2.3:443",            Some(("0.0.0.0/0:443", "rule does not say `private = true`, and this is a private address"))),
            ("10.1.2.3:80",             Some(("0.0.0.0/0:443", "rule allows port 443"))),
            ("[2001:db8::1]:443",       None),
        ];
        for (to, want) in cases {
            let to: Destination = to.parse().expect(to);
            assert!(matches!(all.test(&to, 0), Verdict::Deny(_)), "{to}");
            let got = all.nearest(&to);
            let got = got.map(|near| (near.rule.rule.to_string(), near.difference.to_string()));
            let got = got.as_ref().map(|(rule, text)| (rule.as_str(), text.as_str()));
            assert_eq!(got, want, "{to}");
        }
        // Control: what fits is allowed.
        let to: Destination = "api.partner.example:8443".parse().expect("valid");
        assert!(matches!(all.test(&to, 0), Verdict::Allow(_)));
    }

    #[test]
    fn the_narrowest_rule_allows_the_destination_and_nothing_else() {
        #[rustfmt::skip]
        let cases = [
            ("api.example.com",     Some("\"api.example.com:443\"")),
            ("API.Example.com.:22", Some("\"api.example.com:22\"")),
            ("203.0.113.7:443",     Some("\"203.0.113.7:443\"")),
            ("0x0a000001:5432",     Some("{ rule = \"10.0.0.1:5432\", private = true }")),
            ("[fd00::1]:443",       Some("{ rule = \"[fd00::1]:443\", private = true }")),
            ("169.254.169.254:80",  None),
            ("localhost:80",        Some("{ rule = \"127.0.0.1:80\", private = true }")),
            ("224.0.0.1:443",       None),
            ("198.18.0.1:443",      None),
            ("api.example.com:53",  None),
        ];
        for (text, want) in cases {
            let to: Destination = text.parse().expect(text);
            let Verdict::Deny(reason) = Rules::default().test(&to, 0) else { panic!("{to}") };
            assert_eq!(to.narrowest_rule(reason).as_deref(), want, "{to}");
        }
        let to: Destination = "metadata.example:80".parse().expect("valid");
        assert_eq!(to.narrowest_rule(DenyReason::Address(AddressClass::Metadata)), None);
        let private = to.narrowest_rule(DenyReason::Address(AddressClass::Private));
        assert_eq!(private.as_deref(), Some("{ rule = \"metadata.example:80\", private = true }"));
    }
}
