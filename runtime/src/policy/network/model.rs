//! `[network]` of a resolved policy: total, typed, and every value with the place it was written.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::effective::written_moment;
use super::super::error::PolicyError;
use super::super::model::{Origin, Setting};
use super::super::units::ByteSize;
use super::name::Host;
use super::preset::Preset;
use super::rule::EgressRule;
use super::rules::{ListedRule, Rules};

/// Most rules of a policy, those of its presets included.
pub const RULES_MAX: usize = 1_024;
/// Most different ports of all rules of a policy: each is a listener in the jail.
pub const PORTS_MAX: usize = 512;
/// Longest that report mode may still last when a policy is taken into use.
const REPORT_SECONDS_MAX: u64 = 30 * 86_400;

/// How destinations are decided. Ordered: what lets less through is less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// Loopback only: no listeners, no resolver.
    None,
    /// What the rules allow.
    Enforce,
    /// Until then (seconds since 1970, UTC) also public destinations that no rule names, which are
    /// recorded.
    Report {
        /// The end.
        until: u64,
    },
}

/// What a jail is told about a refusal. Ordered: less is less.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Default,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum DenyDetail {
    /// Nothing.
    Off,
    /// The destination, which it knows.
    #[default]
    HostOnly,
    /// Destination, reason and decision.
    Full,
}

/// Who looks up the names of destinations behind an upstream proxy.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Default,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum Resolves {
    /// The broker, which checks the addresses and asks the upstream proxy for a checked one.
    #[default]
    Host,
    /// The upstream proxy; its operator answers for private addresses.
    Proxy,
}

/// The HTTP proxy through which the broker connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamProxy {
    /// Where it is. May be a private address: the operator's own.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// Who looks names up.
    pub resolves: Resolves,
}

/// `[network]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// How destinations are decided.
    pub mode: Setting<NetworkMode>,
    /// The policy's own rules.
    pub allow: Vec<Setting<EgressRule>>,
    /// Names of presets, whose rules are allowed too.
    pub presets: Vec<Setting<String>>,
    /// Connections at once.
    pub connections: Setting<u32>,
    /// Connections begun in one second.
    pub connection_rate: Setting<u32>,
    /// Bytes from the jail in the whole session; `None` is no limit.
    pub bytes_out: Setting<Option<ByteSize>>,
    /// Bytes into the jail in the whole session; `None` is no limit.
    pub bytes_in: Setting<Option<ByteSize>>,
    /// A connection without a byte either way for so long is closed.
    pub idle_time: Setting<Duration>,
    /// A connection is closed after so long; `None` is no limit.
    pub connection_time: Setting<Option<Duration>>,
    /// Different names below wildcards that may be looked up in the whole session.
    pub wildcard_names: Setting<u32>,
    /// What a jail is told about a refusal.
    pub deny_detail: Setting<DenyDetail>,
    /// The upstream proxy, if the host has one.
    pub upstream_proxy: Setting<Option<UpstreamProxy>>,
    /// Whether a file of the chain has written `mode`, `allow` or `presets`. Until then a child may
    /// name destinations; from then on it may only narrow.
    pub named: bool,
    /// Where the lists were written, which matters for those that are empty.
    pub lists: NetworkOrigins,
}

/// Where parts of `[network]` were written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkOrigins {
    /// `network.allow`
    pub allow: Origin,
    /// `network.presets`
    pub presets: Origin,
    /// `network.expires`; the place of `network.mode` where that is not `report`.
    pub expires: Origin,
}

impl Network {
    /// Every rule: the policy's own, then those of its presets, each once. The place of a preset's
    /// rule is that in the preset.
    pub fn all_rules(&self) -> Vec<Setting<EgressRule>> {
        let of_presets = self.presets.iter().filter_map(|name| Preset::find(&name.value));
        let of_presets = of_presets.flat_map(|preset| preset.rules());
        let mut all: Vec<Setting<EgressRule>> = self.allow.clone();
        for entry in of_presets {
            if all.iter().all(|old| old.value != entry.rule.value) {
                all.push(entry.rule);
            }
        }
        all
    }

    /// What decides about destinations.
    pub fn rules(&self) -> Rules {
        let list = self.all_rules().into_iter();
        let list = list
            .map(|rule| ListedRule { rule: rule.value, origin: rule.origin.to_string() })
            .collect();
        let report_until = match self.mode.value {
            NetworkMode::Report { until } => Some(until),
            NetworkMode::None | NetworkMode::Enforce => None,
        };
        Rules { list, report_until }
    }

    /// Whether report mode ends soon enough: at most 30 days after `now` (seconds since 1970, UTC).
    /// A policy is resolved without a clock, so whoever takes one into use asks. An end in the past
    /// is none: the mode is then `enforce`.
    ///
    /// # Errors
    /// [`PolicyError::Refused`] with the place of `network.expires`.
    pub fn ends_in_time(&self, now: u64) -> Result<(), PolicyError> {
        match self.mode.value {
            NetworkMode::Report { until } if until > now.saturating_add(REPORT_SECONDS_MAX) => {
                Err(PolicyError::Refused {
                    at: self.lists.expires.clone(),
                    key: "network.expires".to_owned(),
                    value: written_moment(until).trim_matches('"').to_owned(),
                    reason: "report mode lasts at most 30 days from now".to_owned(),
                })
            }
            _ => Ok(()),
        }
    }
}

impl DenyDetail {
    /// The word in policies.
    pub fn name(self) -> &'static str {
        match self {
            DenyDetail::Off => "off",
            DenyDetail::HostOnly => "host-only",
            DenyDetail::Full => "full",
        }
    }
}

impl NetworkMode {
    /// The word in policies.
    pub fn name(self) -> &'static str {
        match self {
            NetworkMode::None => "none",
            NetworkMode::Enforce => "enforce",
            NetworkMode::Report { .. } => "report",
        }
    }
}

impl Resolves {
    /// The word in policies.
    pub fn name(self) -> &'static str {
        match self {
            Resolves::Host => "host",
            Resolves::Proxy => "proxy",
        }
    }
}

impl fmt::Display for UpstreamProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", self.host, self.port)
    }
}
