//! One egress rule as an operator writes it: `host:port`, `*.name:port`, `**.name:port`, `network:port`.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::name::{Host, HostName, NameError};

/// Port of a rule that names none.
const DEFAULT_PORT: u16 = 443;

/// Which hosts a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Pattern {
    /// This name.
    Exact(HostName),
    /// `*.x`: names with exactly one label before `x`.
    OneLabel(HostName),
    /// `**.x`: names with one or more labels before `x`.
    AnyDepth(HostName),
    /// Addresses, asked for as such.
    Network(IpNet),
}

/// What the connections of a rule may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(schemars::JsonSchema)]
pub enum Protocol {
    /// TLS whose ClientHello names the host. Default on port 443.
    Tls,
    /// HTTP whose every request names the host. Default on port 80.
    Http,
    /// Either of them checked where a connection begins like one, and anything else. Default on
    /// other ports.
    Auto,
    /// Anything, unchecked.
    Tcp,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EgressRule {
    /// Which hosts.
    pub pattern: Pattern,
    /// Which port.
    pub port: u16,
    /// Whether it may lead to addresses that are not public.
    pub private: bool,
    /// What it may carry.
    pub protocol: Protocol,
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// The port.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// After the slash.
    #[error("only `/tcp` may follow the port")]
    Transport,
    /// A scheme or a path.
    #[error("a host and a port are expected, such as `example.com:443`, and not a URL")]
    Url,
    /// A star where none may be.
    #[error("a star stands for whole labels at the front: `*.example.com` or `**.example.com`")]
    Star,
    /// A wildcard over a top-level name.
    #[error("a wildcard needs at least two labels after it")]
    TooWide,
    /// The network.
    #[error(
        "a network is written as its first address and a prefix length, such as \
         `198.51.100.0/24:443` or `[2001:db8::/32]:443`"
    )]
    Network,
    /// An IPv6 address whose end could be a port.
    #[error("an IPv6 address stands in brackets: `[2001:db8::1]:443`")]
    Brackets,
    /// The host.
    #[error("{reason}")]
    Host {
        /// What is wrong with it.
        reason: NameError,
    },
}

/// One destination as an operator or a program names it: `host:port`, port 443 if there is none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
}

impl EgressRule {
    /// A rule with the defaults of its port.
    fn new(pattern: Pattern, port: u16) -> EgressRule {
        EgressRule { pattern, port, private: false, protocol: Protocol::of_port(port) }
    }

    /// Whether it is about this host and port.
    pub fn matches(&self, host: &Host, port: u16) -> bool {
        self.port == port && self.pattern.matches(host)
    }

    /// Whether all that `child` allows is allowed by this rule too.
    pub fn covers(&self, child: &EgressRule) -> bool {
        self.port == child.port
            && self.private >= child.private
            && self.protocol.covers(child.protocol)
            && self.pattern.covers(&child.pattern)
    }
}

impl Protocol {
    /// What a rule means that names a port only.
    pub fn of_port(port: u16) -> Protocol {
        match port {
            443 => Protocol::Tls,
            80 => Protocol::Http,
            _ => Protocol::Auto,
        }
    }

    /// Whether whatever `child` lets through passes here too.
    pub fn covers(self, child: Protocol) -> bool {
        match self {
            Protocol::Tls | Protocol::Http => self == child,
            Protocol::Auto => child != Protocol::Tcp,
            Protocol::Tcp => true,
        }
    }

    /// The word in policies.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tls => "tls",
            Protocol::Http => "http",
            Protocol::Auto => "auto",
            Protocol::Tcp => "tcp",
        }
    }
}

impl Pattern {
    /// Whether it is about this host.
    pub fn matches(&self, host: &Host) -> bool {
        match (self, host) {
            (Pattern::Exact(name), Host::Name(host)) => name == host,
            (Pattern::OneLabel(suffix), Host::Name(host)) => {
                below(suffix, host).is_some_and(|front| !front.contains('.'))
            }
            (Pattern::AnyDepth(suffix), Host::Name(host)) => below(suffix, host).is_some(),
            (Pattern::Network(network), Host::Address(address)) => network.contains(address),
            _ => false,
        }
    }

    /// Whether it is about every host that `child` is about.
    pub fn covers(&self, child: &Pattern) -> bool {
        match (self, child) {
            (Pattern::Exact(own), Pattern::Exact(name)) => own == name,
            (Pattern::OneLabel(own), Pattern::OneLabel(suffix)) => own == suffix,
            (Pattern::OneLabel(_) | Pattern::AnyDepth(_), Pattern::Exact(name)) => {
                self.matches(&Host::Name(name.clone()))
            }
            (Pattern::AnyDepth(own), Pattern::OneLabel(suffix) | Pattern::AnyDepth(suffix)) => {
                own == suffix || below(own, suffix).is_some()
            }
            (Pattern::Network(own), Pattern::Network(network)) => own.contains(network),
            _ => false,
        }
    }
}

/// What stands before `.suffix`.
fn below<'a>(suffix: &HostName, host: &'a HostName) -> Option<&'a str> {
    let front = host.as_str().strip_suffix(suffix.as_str())?.strip_suffix('.')?;
    (!front.is_empty()).then_some(front)
}

impl FromStr for EgressRule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<EgressRule, RuleError> {
        let (host, port) = split(text)?;
        Ok(EgressRule::new(pattern(host)?, port))
    }
}

impl FromStr for Destination {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Destination, RuleError> {
        let (host, port) = split(text)?;
        match Host::parse(host) {
            Ok(host) => Ok(Destination { host, port }),
            Err(reason) => Err(RuleError::Host { reason }),
        }
    }
}

fn pattern(host: &str) -> Result<Pattern, RuleError> {
    let suffix = |text: &str| match Host::parse(text) {
        _ if text.contains('*') => Err(RuleError::Star),
        Ok(Host::Name(name)) if name.labels().count() < 2 => Err(RuleError::TooWide),
        Ok(Host::Name(name)) => Ok(name),
        Ok(Host::Address(_)) => Err(RuleError::Star),
        Err(reason) => Err(RuleError::Host { reason }),
    };
    if let Some(rest) = host.strip_prefix("**.") {
        return suffix(rest).map(Pattern::AnyDepth);
    }
    if let Some(rest) = host.strip_prefix("*.") {
        return suffix(rest).map(Pattern::OneLabel);
    }
    if host.contains('*') {
        return Err(RuleError::Star);
    }
    if host.contains('/') {
        let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let network: IpNet = inner.unwrap_or(host).parse().map_err(|_| RuleError::Network)?;
        // What is mapped into IPv6 is compared as IPv4, so a rule that names it so never matches.
        let mapped = matches!(network, IpNet::V6(net) if net.addr().to_ipv4_mapped().is_some());
        let bracketed = inner.is_some() == matches!(network, IpNet::V6(_));
        return match network.trunc() == network && bracketed && !mapped {
            true => Ok(Pattern::Network(network)),
            false => Err(RuleError::Network),
        };
    }
    match Host::parse(host).map_err(|reason| RuleError::Host { reason })? {
        Host::Name(name) => Ok(Pattern::Exact(name)),
        Host::Address(address) => Ok(Pattern::Network(IpNet::from(address))),
    }
}

/// Host and port; the colons of an IPv6 address stand in brackets.
fn split(text: &str) -> Result<(&str, u16), RuleError> {
    if text.contains("://") {
        return Err(RuleError::Url);
    }
    let end = text.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match text[end..].find(':').map(|at| at + end) {
        None => (text, None),
        Some(colon) => (&text[..colon], Some(&text[colon + 1..])),
    };
    let Some(port) = port else { return Ok((host, DEFAULT_PORT)) };
    if port.contains(':') {
        return Err(RuleError::Brackets);
    }
    let port = match port.split_once('/') {
        Some((port, "tcp")) => port,
        Some(_) => return Err(RuleError::Transport),
        None => port,
    };
    if port.is_empty() || port.len() > 5 || !port.bytes().all(|c| c.is_ascii_digit()) {
        return Err(RuleError::Port);
    }
    match port.parse() {
        Ok(0) | Err(_) => Err(RuleError::Port),
        Ok(port) => Ok((host, port)),
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Exact(name) => name.fmt(f),
            Pattern::OneLabel(suffix) => write!(f, "*.{suffix}"),
            Pattern::AnyDepth(suffix) => write!(f, "**.{suffix}"),
            Pattern::Network(network @ IpNet::V4(_)) => network.fmt(f),
            Pattern::Network(network) => write!(f, "[{network}]"),
        }
    }
}

impl fmt::Display for EgressRule {
    /// Host and port; not what else the rule says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.pattern, self.port)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
