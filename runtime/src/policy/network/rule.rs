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
    /// A star where none may be.
    #[error("a star stands for whole labels at the front: `*.name` or `**.name`")]
    Star,
    /// A wildcard over a top-level name.
    #[error("a wildcard needs at least two labels after it")]
    TooWide,
    /// The network.
    #[error("the network is not written as its first address and a prefix length")]
    Network,
    /// The host.
    #[error("{reason}")]
    Host {
        /// What is wrong with it.
        reason: NameError,
    },
}

impl EgressRule {
    /// A rule with the defaults of its port.
    fn new(pattern: Pattern, port: u16) -> EgressRule {
        let protocol = match port {
            443 => Protocol::Tls,
            80 => Protocol::Http,
            _ => Protocol::Auto,
        };
        EgressRule { pattern, port, private: false, protocol }
    }

    /// Whether it is about this host and port.
    pub fn matches(&self, host: &Host, port: u16) -> bool {
        self.port == port && self.pattern.matches(host)
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
        let name = |text: &str| match Host::parse(text) {
            Ok(Host::Name(name)) => Ok(name),
            Ok(Host::Address(_)) => Err(RuleError::Star),
            Err(reason) => Err(RuleError::Host { reason }),
        };
        let wide = |suffix: &HostName| suffix.labels().count() < 2;
        let pattern = if let Some(suffix) = host.strip_prefix("**.") {
            Pattern::AnyDepth(name(suffix)?)
        } else if let Some(suffix) = host.strip_prefix("*.") {
            Pattern::OneLabel(name(suffix)?)
        } else if host.contains('*') {
            return Err(RuleError::Star);
        } else if host.contains('/') {
            let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            let network: IpNet = inner.unwrap_or(host).parse().map_err(|_| RuleError::Network)?;
            if network.trunc() != network {
                return Err(RuleError::Network);
            }
            Pattern::Network(network)
        } else {
            match Host::parse(host).map_err(|reason| RuleError::Host { reason })? {
                Host::Name(name) => Pattern::Exact(name),
                Host::Address(address) => Pattern::Network(IpNet::from(address)),
            }
        };
        if let Pattern::OneLabel(suffix) | Pattern::AnyDepth(suffix) = &pattern
            && wide(suffix)
        {
            return Err(RuleError::TooWide);
        }
        Ok(EgressRule::new(pattern, port))
    }
}

/// Host and port of a rule; the colons of an IPv6 address stand in brackets.
fn split(text: &str) -> Result<(&str, u16), RuleError> {
    let end = text.rfind(']').map_or(0, |at| at + 1);
    let Some(colon) = text[end..].rfind(':').map(|at| at + end) else {
        return Ok((text, DEFAULT_PORT));
    };
    let (host, port) = (&text[..colon], &text[colon + 1..]);
    let port = match port.split_once('/') {
        Some((port, "tcp")) => port,
        Some(_) => return Err(RuleError::Transport),
        None => port,
    };
    let digits = !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit());
    match port.parse() {
        Ok(1..) if digits => Ok((host, port.parse().map_err(|_| RuleError::Port)?)),
        _ => Err(RuleError::Port),
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
