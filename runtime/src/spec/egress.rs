//! What the broker of one jail works by. Decided before the jail exists; the rules alone may be
//! replaced while it runs.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::policy::network::Rules;

/// Ports on which report mode listens, beside those of rules.
const REPORT_PORTS: [u16; 2] = [80, 443];

/// The network of one jail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressPlan {
    /// Where it may lead.
    pub rules: Rules,
    /// How much of it there may be.
    pub limits: EgressLimits,
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
    /// TEMP
    pub fn of(_policy: &crate::policy::Policy) -> Option<EgressPlan> {
        {
            let mut p = EgressPlan::default();
            for n in 0..300u16 {
                p.rules.list.push(crate::policy::network::ListedRule {
                    rule: format!("a.example.com:{}", 443 + n).parse().unwrap(),
                    origin: String::new(),
                });
            }
            Some(p)
        }
    }
    /// Most ports of one jail: each is a socket in its network namespace.
    pub const PORTS_MAX: usize = 512;

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
