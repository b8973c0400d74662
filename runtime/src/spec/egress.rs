//! What the broker of one jail works by. Decided before the jail exists; the rules alone may be
//! replaced while it runs.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::policy::Policy;
use crate::policy::network::{DenyDetail, NetworkMode, Rules, UpstreamProxy};

/// Ports on which report mode listens, beside those of rules.
const REPORT_PORTS: [u16; 2] = [80, 443];

/// The network of one jail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressPlan {
    /// Where it may lead.
    pub rules: Rules,
    /// How much of it there may be.
    pub limits: EgressLimits,
    /// What the jail is told about refusals.
    pub deny_detail: DenyDetail,
    /// The HTTP proxy through which the broker connects, if the host has one.
    pub upstream_proxy: Option<UpstreamProxy>,
}

/// Bounds of one session's connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressLimits {
    /// Connections at once.
    pub connections: u32,
    /// Connections begun in one second.
    pub connection_rate: u32,
    /// Bytes from the jail in the whole session; `None` is no limit.
    pub bytes_out: Option<u64>,
    /// Bytes into the jail in the whole session; `None` is no limit.
    pub bytes_in: Option<u64>,
    /// A connection without a byte either way for so long is closed; milliseconds.
    pub idle_ms: u64,
    /// A connection is closed after so long; milliseconds, `None` is no limit.
    pub duration_ms: Option<u64>,
    /// Distinct names below wildcards that may be looked up in the whole session.
    pub wildcard_names: u32,
}

/// Those of the shipped policy `default`.
impl Default for EgressLimits {
    fn default() -> Self {
        EgressLimits {
            connections: 1024,
            connection_rate: 512,
            bytes_out: None,
            bytes_in: None,
            idle_ms: 600_000,
            duration_ms: None,
            wildcard_names: 256,
        }
    }
}

impl EgressPlan {
    /// Most ports of one jail: each is a socket in its network namespace.
    pub const PORTS_MAX: usize = 512;

    /// What `policy` means for the broker; `None` where its mode is `none`, which needs no broker.
    /// Without rules there is a plan all the same: its broker refuses, and says so.
    pub fn of(policy: &Policy) -> Option<EgressPlan> {
        let network = &policy.network;
        if network.mode.value == NetworkMode::None {
            return None;
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Some(EgressPlan {
            rules: network.rules(),
            limits: EgressLimits {
                connections: network.connections.value,
                connection_rate: network.connection_rate.value,
                bytes_out: network.bytes_out.value.map(|size| size.bytes()),
                bytes_in: network.bytes_in.value.map(|size| size.bytes()),
                idle_ms: millis(network.idle_time.value),
                duration_ms: network.connection_time.value.map(millis),
                wildcard_names: network.wildcard_names.value,
            },
            deny_detail: network.deny_detail.value,
            upstream_proxy: network.upstream_proxy.value.clone(),
        })
    }

    /// Every TCP port to listen on, apart from the resolver's; ascending.
    pub fn ports(&self) -> BTreeSet<u16> {
        let mut ports = self.rules.ports();
        if self.rules.report_until.is_some() {
            ports.extend(REPORT_PORTS);
        }
        // Connections to the resolver's port are questions to our resolver.
        ports.remove(&53);
        ports
    }
}
