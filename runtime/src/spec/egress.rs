//! What the broker of one jail works by. Decided before the jail exists; the rules alone may be
//! replaced while it runs.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::policy::Policy;
use crate::policy::network::{DenyDetail, NetworkMode, REPORT_PORTS, Rules, UpstreamProxy};

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
            connections: 4096,
            connection_rate: 4096,
            bytes_out: None,
            bytes_in: None,
            idle_ms: 600_000,
            duration_ms: None,
            wildcard_names: 256,
        }
    }
}

impl EgressPlan {
    /// Where programs in a jail find the resolver; of RFC 2544, as are the addresses it answers with.
    pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

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

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::*;
    use crate::policy::Resolver;
    use crate::policy::network::{Host, Resolves};

    fn plan(text: &str) -> Option<EgressPlan> {
        let load = |_: &Path| -> io::Result<String> { Ok(text.to_owned()) };
        let groups = crate::policy::syscalls::catalogue().group_names().collect::<Vec<_>>();
        let resolver = Resolver { groups: &groups, directories: &[], load: &load };
        EgressPlan::of(&resolver.resolve("./p.toml").expect(text))
    }

    #[test]
    fn a_plan_holds_what_the_policy_says() {
        let text = "schema = 1\n[network]\nallow = [\"a.test:22\"]\npresets = [\"python\"]\n\
                    connections = 5\nbytes_out = \"1MiB\"\nbytes_in = \"none\"\nidle_time = \"30s\"\n\
                    connection_time = \"none\"\ndeny_detail = \"off\"\n\
                    upstream_proxy = { url = \"http://p.test:3128\", resolves = \"proxy\" }\n";
        let plan = plan(text).expect("a network");
        let rules: Vec<(String, &str)> = plan
            .rules
            .list
            .iter()
            .map(|listed| (listed.rule.to_string(), listed.origin.as_str()))
            .collect();
        assert_eq!(rules[0], ("a.test:22".to_owned(), "p.toml:3:10"));
        assert!(rules[1].1.starts_with("policies/presets/python.toml:"), "{rules:?}");
        assert_eq!(plan.ports(), BTreeSet::from([22, 443]));
        assert_eq!((plan.limits.connections, plan.limits.connection_rate), (5, 32));
        assert_eq!((plan.limits.bytes_out, plan.limits.bytes_in), (Some(1 << 20), None));
        assert_eq!((plan.limits.idle_ms, plan.limits.duration_ms), (30_000, None));
        assert_eq!(plan.deny_detail, DenyDetail::Off);
        let upstream = plan.upstream_proxy.clone().expect("an upstream proxy");
        assert_eq!(upstream.host, "p.test".parse::<Host>().expect("a host"));
        assert_eq!((upstream.port, upstream.resolves), (3128, Resolves::Proxy));
        let bytes = postcard::to_allocvec(&plan).expect("it can be sent");
        assert_eq!(postcard::from_bytes::<EgressPlan>(&bytes).expect("and read"), plan);
    }

    #[test]
    fn only_a_mode_of_none_needs_no_broker() {
        assert_eq!(plan("schema = 1\nnetwork.mode = \"none\""), None);
        let empty = plan("schema = 1").expect("a broker that refuses");
        assert!(empty.rules.list.is_empty() && empty.ports().is_empty());
        let report = "network = { mode = \"report\", expires = \"2026-12-01T00:00:00Z\" }";
        let report = plan(&format!("schema = 1\n{report}")).expect("a network");
        assert_eq!(report.rules.report_until, Some(1_796_083_200));
        assert_eq!(report.ports(), BTreeSet::from([80, 443]));
    }

    #[test]
    fn the_usual_limits_are_those_of_the_default_policy() {
        for name in ["default", "build"] {
            let plan = plan(&format!("schema = 1\nextends = \"{name}\"")).expect("a network");
            assert_eq!(plan.limits, EgressLimits::default(), "{name}");
        }
    }
}
