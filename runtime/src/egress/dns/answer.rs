//! What is replied to one question. No input or output but the ledger.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use hickory_proto::rr::{DNSClass, Name, RecordType};

use crate::policy::network::{Host, HostName, Pattern, Rules};

use super::super::ledger::Target;
use super::super::reason::Reason;
use super::super::scope::{InForce, Scope, now};
use super::CHOSEN_BYTES_MAX;
use super::message::{Extended, Question, Reply, Transport, Unreadable};

/// Port of a denied question in the ledger.
const PORT: u16 = 53;
/// Longest name repeated in the text of an error, bytes: the reply must fit where 512 do.
const NAME_IN_TEXT_MAX: usize = 120;

/// What a name in a question is.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// A host, or something that reads as an address.
    Host(Host),
    /// `_service._protocol.host` (RFC 8552): about the host, unless a rule names all of it.
    Leaf { whole: HostName, host: HostName },
    /// `localhost` and names below it.
    Loopback,
    /// The root.
    Root,
    /// Nothing that could be a host.
    Unnamed,
}

/// How a record type is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Treatment {
    /// Addresses.
    V4,
    V6,
    /// Known, harmless, and never there.
    Absent,
    /// Address to name. Tools ask by themselves, so it is refused without a record.
    Reverse,
    /// Made to carry data, or unknown.
    Carrier,
}

/// The reply to `query`, or `None` if it asks nothing. What is denied is in the ledger when this
/// returns. Costs microseconds and never waits.
pub(crate) fn answer(query: &[u8], transport: Transport, scope: &Scope) -> Option<Vec<u8>> {
    let in_force = scope.in_force();
    // What cannot be read counts too: reading it is what a flood would cost us.
    let within = scope.lookups.take(Instant::now(), in_force.limits.connection_rate);
    let question = match Question::read(query) {
        Ok(question) => question,
        Err(Unreadable::NoQuestion) => return None,
        Err(Unreadable::Said(bytes)) => return Some(bytes),
    };
    let reply = if within {
        decide(&question, scope, &in_force)
    } else {
        // One entry for all of them, whatever they ask for: a flood must not fill the ledger.
        scope.ledger.deny_unnamed(Reason::LookupBudget);
        refused(Extended::Other, "too many lookups in a short time")
    };
    question.reply(&reply, transport)
}

fn decide(question: &Question, scope: &Scope, in_force: &InForce) -> Reply {
    let query = question.query();
    if query.query_class() != DNSClass::IN {
        return refused(Extended::NotSupported, "only class IN is answered");
    }
    let treatment = Treatment::of(query.query_type());
    match Asked::read(query.name()) {
        _ if treatment == Treatment::Reverse => {
            refused(Extended::NotSupported, "addresses are not turned into names")
        }
        Asked::Loopback => match treatment {
            Treatment::V4 => Reply::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            Treatment::V6 => Reply::Address(IpAddr::V6(Ipv6Addr::LOCALHOST)),
            _ => Reply::NoData,
        },
        Asked::Root => refused(Extended::Blocked, "there is no other name server"),
        Asked::Unnamed => {
            scope.ledger.deny_unnamed(Reason::Lookup);
            refused(Extended::Blocked, "this cannot be the name of a host")
        }
        Asked::Host(Host::Name(name)) if in_force.rules.may_resolve(&name, now()) => {
            of_allowed(name, treatment, scope, in_force)
        }
        Asked::Leaf { whole, .. } if in_force.rules.may_resolve(&whole, now()) => {
            of_allowed(whole, treatment, scope, in_force)
        }
        Asked::Leaf { host, .. } if in_force.rules.may_resolve(&host, now()) => match treatment {
            Treatment::Carrier => carrier(host, scope, in_force),
            _ => Reply::NoData,
        },
        Asked::Leaf { host, .. } => not_allowed(Host::Name(host), scope, in_force),
        Asked::Host(host) => not_allowed(host, scope, in_force),
    }
}

/// The reply for a name that a rule names.
fn of_allowed(name: HostName, treatment: Treatment, scope: &Scope, in_force: &InForce) -> Reply {
    let v4 = match treatment {
        Treatment::V4 => true,
        Treatment::V6 => false,
        Treatment::Carrier => return carrier(name, scope, in_force),
        Treatment::Absent | Treatment::Reverse => return Reply::NoData,
    };
    let may_add = || {
        let rules = &in_force.rules;
        !rules.is_chosen_inside(&name)
            || (chosen_bytes(rules, &name) <= CHOSEN_BYTES_MAX && scope.take_wildcard_name())
    };
    match scope.names.addresses_if(&name, may_add) {
        Some((address, _)) if v4 => Reply::Address(IpAddr::V4(address)),
        Some((_, address)) => Reply::Address(IpAddr::V6(address)),
        None => {
            let text = format!("{} is one name too many, or too long", short(&name));
            deny(Host::Name(name), Reason::LookupBudget, scope, in_force);
            refused(Extended::Other, &text)
        }
    }
}

fn carrier(host: HostName, scope: &Scope, in_force: &InForce) -> Reply {
    deny(Host::Name(host), Reason::RecordType, scope, in_force);
    refused(Extended::NotSupported, "records of this type are never answered")
}

fn not_allowed(host: Host, scope: &Scope, in_force: &InForce) -> Reply {
    let text = format!("no rule of the operator's policy names {}", short(&host));
    deny(host, Reason::Lookup, scope, in_force);
    refused(Extended::Blocked, &text)
}

fn deny(host: Host, reason: Reason, scope: &Scope, in_force: &InForce) {
    scope.ledger.deny(Target { host, port: PORT }, reason, in_force.generation, None);
}

fn refused(code: Extended, text: &str) -> Reply {
    Reply::Refused(code, format!("egress: {text}"))
}

/// `host`, or a word for it where it is long.
fn short(host: &impl ToString) -> String {
    let text = host.to_string();
    if text.len() <= NAME_IN_TEXT_MAX { text } else { "it".to_owned() }
}

/// Bytes of `name` that code in the jail was free to choose: those before the longest wildcard that
/// allows it, or all of them where none does (report mode).
fn chosen_bytes(rules: &Rules, name: &HostName) -> usize {
    let host = Host::Name(name.clone());
    let before = |pattern: &Pattern| match pattern {
        Pattern::OneLabel(suffix) | Pattern::AnyDepth(suffix) if pattern.matches(&host) => {
            Some(name.as_str().len() - suffix.as_str().len() - 1)
        }
        _ => None,
    };
    let all = name.as_str().len();
    rules.list.iter().filter_map(|listed| before(&listed.rule.pattern)).min().unwrap_or(all)
}

impl Asked {
    fn read(name: &Name) -> Asked {
        let mut text = String::with_capacity(name.len());
        let mut host_at = 0;
        for label in name.iter() {
            // Bytes are taken as they are: a dot inside a label, NUL or UTF-8 make no host name.
            let plain = |c: &u8| c.is_ascii_alphanumeric() || b"-_".contains(c);
            let Some(label) = std::str::from_utf8(label).ok().filter(|_| label.iter().all(plain))
            else {
                return Asked::Unnamed;
            };
            let leaf = label.starts_with('_') && host_at == text.len();
            text.push_str(label);
            text.push('.');
            if leaf {
                host_at = text.len();
            }
        }
        if text.is_empty() {
            return Asked::Root;
        }
        match (Host::parse(&text), Host::parse(&text[host_at..])) {
            (Ok(Host::Name(whole)), _) if whole.is_localhost() => Asked::Loopback,
            (Ok(Host::Name(whole)), Ok(Host::Name(host))) if whole != host => {
                Asked::Leaf { whole, host }
            }
            (Ok(host), _) => Asked::Host(host),
            (Err(_), _) => Asked::Unnamed,
        }
    }
}

impl Treatment {
    fn of(record_type: RecordType) -> Treatment {
        use RecordType as T;
        match record_type {
            T::A => Treatment::V4,
            T::AAAA => Treatment::V6,
            T::PTR => Treatment::Reverse,
            // What clients of the web, of mail and of ssh ask for along with addresses. HTTPS and
            // SVCB would carry keys that hide the name of a TLS connection from the broker.
            T::HTTPS | T::SVCB | T::SRV | T::MX | T::NS | T::SOA | T::CNAME | T::DNAME => {
                Treatment::Absent
            }
            T::NAPTR | T::CAA | T::TLSA | T::SSHFP | T::SMIMEA => Treatment::Absent,
            T::DS | T::DNSKEY | T::RRSIG | T::NSEC | T::NSEC3 | T::NSEC3PARAM => Treatment::Absent,
            T::CDS | T::CDNSKEY | T::CSYNC => Treatment::Absent,
            _ => Treatment::Carrier,
        }
    }
}
