//! Why the broker refused: one word for records, one phrase for people, and which of them are
//! denials at all.

use std::fmt;

use crate::policy::network::{AddressClass, DenyReason, Host};

/// Why the broker refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The rules.
    Rules(DenyReason),
    /// A name was looked up that no rule names.
    Lookup,
    /// Too many distinct names below wildcards, or too many questions.
    LookupBudget,
    /// A record type that is never answered with data and carries data upstream elsewhere.
    RecordType,
    /// The connection names no host, and must.
    NoName,
    /// The connection names another host than it was opened for.
    OtherName,
    /// It is neither of what the rule allows: TLS, HTTP.
    OtherProtocol,
    /// It cannot be read as what it begins like, or did not come in time.
    Malformed,
    /// Upstream has no address for the name, or the resolver did not answer. Not a denial.
    NoAddress,
    /// Upstream could not be reached. Not a denial.
    Unreachable,
    /// Too many connections at once.
    Connections,
    /// Too many connections in a short time.
    ConnectionRate,
    /// The bytes of the session are used up.
    Bytes,
    /// Nothing was carried either way for too long.
    Idle,
    /// The connection was open for too long.
    Duration,
    /// The rule was removed while the connection was open.
    RuleRemoved,
    /// The record could not be written, or the session has no records left.
    Unrecorded,
}

/// Every reason and its word. The word is part of the audit log's format.
#[rustfmt::skip]
const WORDS: [(Reason, &str); 25] = [
    (Reason::Rules(DenyReason::NoRule),                            "no-rule"),
    (Reason::Rules(DenyReason::OtherPort),                         "other-port"),
    (Reason::Rules(DenyReason::DirectAddress),                     "direct-address"),
    (Reason::Rules(DenyReason::Address(AddressClass::Public)),     "address"),
    (Reason::Rules(DenyReason::Address(AddressClass::Private)),    "address"),
    (Reason::Rules(DenyReason::Address(AddressClass::Loopback)),   "address"),
    (Reason::Rules(DenyReason::Address(AddressClass::LinkLocal)),  "address"),
    (Reason::Rules(DenyReason::Address(AddressClass::Metadata)),   "address"),
    (Reason::Rules(DenyReason::Address(AddressClass::Multicast)),  "address"),
    (Reason::Rules(DenyReason::Address(AddressClass::Reserved)),   "address"),
    (Reason::Lookup,         "lookup"),
    (Reason::LookupBudget,   "lookup-budget"),
    (Reason::RecordType,     "record-type"),
    (Reason::NoName,         "no-name"),
    (Reason::OtherName,      "other-name"),
    (Reason::OtherProtocol,  "other-protocol"),
    (Reason::Malformed,      "malformed"),
    (Reason::NoAddress,      "no-address"),
    (Reason::Unreachable,    "unreachable"),
    (Reason::Connections,    "connections"),
    (Reason::ConnectionRate, "connection-rate"),
    (Reason::Bytes,          "bytes"),
    (Reason::Idle,           "idle"),
    (Reason::Duration,       "duration"),
    (Reason::RuleRemoved,    "rule-removed"),
];

impl Reason {
    /// Its word in records. Refusals because of an address have one word, beside which stands
    /// [`class`](Self::class).
    pub fn word(self) -> &'static str {
        let found = WORDS.iter().find(|(reason, _)| *reason == self);
        // The one reason after which there may be no record.
        found.map_or("unrecorded", |(_, word)| word)
    }

    /// The reason with this word, and with this class if it has one.
    pub fn from_word(word: &str, class: Option<&str>) -> Option<Reason> {
        if word == Reason::Unrecorded.word() {
            return Some(Reason::Unrecorded);
        }
        let fits = |reason: &Reason| reason.class().map(|it| it.to_string()).as_deref() == class;
        let mut all = WORDS.iter().filter(|(_, its)| *its == word);
        all.find(|(reason, _)| fits(reason)).map(|(reason, _)| *reason)
    }

    /// The class of the address it is about.
    pub fn class(self) -> Option<AddressClass> {
        match self {
            Reason::Rules(DenyReason::Address(class)) => Some(class),
            _ => None,
        }
    }

    /// The reason that tells more about `host`: of an address that is not public, what it is.
    pub fn about(self, host: &Host) -> Reason {
        match (self, host) {
            (Reason::Rules(DenyReason::DirectAddress), Host::Address(address)) => {
                match AddressClass::of(*address) {
                    AddressClass::Public => self,
                    class => Reason::Rules(DenyReason::Address(class)),
                }
            }
            _ => self,
        }
    }

    /// Whether the policy refused. What fails upstream is no denial and is never told as one.
    pub fn is_denial(self) -> bool {
        !matches!(self, Reason::NoAddress | Reason::Unreachable)
    }

    /// The key of the policy whose limit took effect.
    pub fn limit(self) -> Option<&'static str> {
        match self {
            Reason::LookupBudget => Some("network.wildcard_names"),
            Reason::Connections => Some("network.connections"),
            Reason::ConnectionRate => Some("network.connection_rate"),
            Reason::Bytes => Some("network.bytes_out, network.bytes_in"),
            Reason::Idle => Some("network.idle_time"),
            Reason::Duration => Some("network.connection_time"),
            _ => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Rules(reason) => return reason.fmt(f),
            Reason::Lookup => "name lookup, no matching rule",
            Reason::LookupBudget => "too many distinct names below wildcards",
            Reason::RecordType => "this record type is never answered",
            Reason::NoName => "the connection does not say which host it wants",
            Reason::OtherName => "the connection names another host than it was opened for",
            Reason::OtherProtocol => "the rule allows another protocol",
            Reason::Malformed => "the beginning of the connection cannot be read",
            Reason::NoAddress => "the name has no address",
            Reason::Unreachable => "the host could not be reached",
            Reason::Connections => "too many connections at once",
            Reason::ConnectionRate => "too many connections in a short time",
            Reason::Bytes => "the bytes of this session are used up",
            Reason::Idle => "nothing was carried for too long",
            Reason::Duration => "the connection was open for too long",
            Reason::RuleRemoved => "its rule was removed",
            Reason::Unrecorded => "it cannot be recorded",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_known_again_by_its_word() {
        for (reason, word) in WORDS {
            let class = reason.class().map(|class| class.to_string());
            assert_eq!(reason.word(), word);
            assert_eq!(Reason::from_word(word, class.as_deref()), Some(reason), "{word}");
        }
        let unrecorded = Reason::Unrecorded;
        assert_eq!(Reason::from_word(unrecorded.word(), None), Some(unrecorded));
        assert_eq!(Reason::from_word("address", None), None);
        assert_eq!(Reason::from_word("no-rule", Some("private")), None);
        assert_eq!(Reason::from_word("unheard-of", None), None);
    }

    /// product.md 2B item 7: what fails upstream is no decision of ours.
    #[test]
    fn only_what_fails_upstream_is_no_denial() {
        let not: Vec<_> =
            WORDS.iter().filter(|(r, _)| !r.is_denial()).map(|(_, word)| *word).collect();
        assert_eq!(not, ["no-address", "unreachable"]);
    }
}
