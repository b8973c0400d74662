//! All rules of a policy and what they decide. A destination is allowed if any rule allows it, so a
//! list with fewer rules is never wider.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::address::AddressClass;
use super::name::{Host, HostName};
use super::rule::{EgressRule, Pattern, Protocol};

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
    pub fn decide(&self, host: &Host, port: u16, now: u64) -> Verdict<'_> {
        let mut found: Option<Allowed<'_>> = None;
        for listed in self.list.iter().filter(|listed| listed.rule.matches(host, port)) {
            let content = Content::of(listed.rule.protocol);
            let private = listed.rule.private;
            found = Some(match found {
                None => Allowed { rule: Some(listed), private, content },
                Some(old) => Allowed {
                    rule: old.rule,
                    private: old.private || private,
                    content: old.content.or(content),
                },
            });
        }
        if let Some(allowed) = found {
            return Verdict::Allow(allowed);
        }
        if self.report_until.is_some_and(|until| now < until) {
            let content = Content::of(Protocol::Auto);
            return Verdict::Allow(Allowed { rule: None, private: false, content });
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
