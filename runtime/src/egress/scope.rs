//! One session's part of the broker: what all its connections and questions share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::policy::network::{DenyDetail, Host, Rules, UpstreamProxy, Verdict};
use crate::spec::{EgressLimits, EgressPlan};

use super::dns;
use super::ledger::Ledger;
use super::names::Names;

/// The rules in force, and since which change.
#[derive(Debug)]
pub(crate) struct InForce {
    pub rules: Rules,
    pub limits: EgressLimits,
    /// What is told about denials inside.
    pub deny_detail: DenyDetail,
    /// Through what everything is dialled, if not directly.
    pub upstream_proxy: Option<UpstreamProxy>,
    /// From 1; each replacement of the rules is one more.
    pub generation: u64,
}

/// One session.
#[derive(Debug)]
pub(crate) struct Scope {
    pub names: Names,
    pub ledger: Ledger,
    in_force: RwLock<Arc<InForce>>,
    /// Names below wildcards that were given addresses.
    pub wildcard_names: AtomicU64,
    /// Questions to the resolver.
    pub lookups: dns::Budget,
}

impl Scope {
    pub fn new(plan: EgressPlan, names: Names, ledger: Ledger) -> Scope {
        let in_force = RwLock::new(Arc::new(InForce::new(plan, 1)));
        let (wildcard_names, lookups) = Default::default();
        Scope { names, ledger, in_force, wildcard_names, lookups }
    }

    /// The rules that decide now.
    pub fn in_force(&self) -> Arc<InForce> {
        Arc::clone(&self.in_force.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts other rules in force. Connections that they do not allow are the caller's to close.
    pub fn replace(&self, plan: EgressPlan) {
        let mut in_force = self.in_force.write().unwrap_or_else(PoisonError::into_inner);
        *in_force = Arc::new(InForce::new(plan, in_force.generation + 1));
    }

    /// Takes one of the session's names below wildcards; false if none is left.
    pub fn take_wildcard_name(&self) -> bool {
        let most = u64::from(self.in_force().limits.wildcard_names);
        let taken = self
            .wildcard_names
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < most).then_some(n + 1));
        taken.is_ok()
    }
}

impl InForce {
    fn new(plan: EgressPlan, generation: u64) -> InForce {
        let EgressPlan { rules, limits, deny_detail, upstream_proxy } = plan;
        InForce { rules, limits, deny_detail, upstream_proxy, generation }
    }

    /// Decides by the clock of this host.
    pub fn decide(&self, host: &Host, port: u16) -> Verdict<'_> {
        self.rules.decide(host, port, now())
    }
}

/// Seconds since 1970, UTC.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
