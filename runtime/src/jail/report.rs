//! The enforcement report: for every layer what was wanted, what was got and why; what the canary
//! found; how long each phase took. Evidence, and the first thing to read when a jail is refused.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::host::Level;
use crate::policy::Layer;
use crate::spec::{Demand, JailSpec, LayerPlan, PlaceKind, PlacePlan, hex};

/// What became of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Got {
    /// Applied, and the kernel confirmed it.
    Enforced,
    /// The kernel does not offer it here.
    Absent,
    /// Not applied by the policy's wish.
    Off,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerResult {
    /// Which layer.
    pub layer: Layer,
    /// `required`, `if-available` or `off`.
    pub wanted: String,
    /// What became of it.
    pub got: Got,
    /// Details of what is enforced, or why it is not.
    pub why: String,
}

/// One forbidden act tried before the payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryResult {
    /// What was tried.
    pub act: String,
    /// The layer that must refuse it.
    pub layer: Layer,
    /// The refusal that was expected, as an errno name.
    pub expected: String,
    /// What happened: an errno name, or `allowed`.
    pub got: String,
    /// Whether the two agree.
    pub ok: bool,
}

/// Microseconds from the request to the end of each phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// Run directory and ids claimed, leftovers of others removed.
    pub claimed_us: u64,
    /// cgroup ready.
    pub cgroup_us: u64,
    /// Id maps, disk and filter ready.
    pub prepared_us: u64,
    /// Init cloned into its namespaces.
    pub cloned_us: u64,
    /// Read-only tree ready.
    pub tree_us: u64,
    /// Namespaces and mount tree ready.
    pub built_us: u64,
    /// All layers on, canary passed, command about to run.
    pub ready_us: u64,
}

/// A place that the porter fills.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceReport {
    /// Where the session sees it.
    pub path: PathBuf,
    /// `skills` or `memory-store`.
    pub kind: String,
    /// What the session may do with it: `read-only` or `read-write`.
    pub access: String,
    /// Size in bytes.
    pub bytes_max: u64,
    /// Files and directories.
    pub inodes_max: u64,
}

impl PlaceReport {
    fn of(plan: &PlacePlan) -> PlaceReport {
        let kind = match plan.kind {
            PlaceKind::Skills => "skills",
            PlaceKind::Store => "memory-store",
        };
        PlaceReport {
            path: plan.target.clone(),
            kind: kind.to_owned(),
            access: if plan.writable { "read-write" } else { "read-only" }.to_owned(),
            bytes_max: plan.bytes_max,
            inodes_max: plan.inodes_max,
        }
    }
}

/// The report as written to a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnforcementReport {
    /// Name of this format.
    pub schema: String,
    /// Version of this format.
    pub schema_version: u32,
    /// Identifies the jail on this host.
    pub jail: String,
    /// Level it ran at.
    pub level: Level,
    /// Policy name.
    pub policy: String,
    /// SHA-256 of the policy's values.
    pub policy_digest: String,
    /// SHA-256 of the spec.
    pub spec_digest: String,
    /// SHA-256 of the system call filter; empty if it is off.
    pub filter_digest: String,
    /// Kernel release.
    pub kernel: String,
    /// Every layer.
    pub layers: Vec<LayerResult>,
    /// Every forbidden act.
    pub canary: Vec<CanaryResult>,
    /// What the porter fills; empty for a command, and for a session that asked for none.
    pub places: Vec<PlaceReport>,
    /// How long it took.
    pub timings: Timings,
    /// How it ended; absent while it runs or if it never ran.
    pub end: Option<super::End>,
}

impl EnforcementReport {
    /// A report of `spec` with the results so far.
    pub(crate) fn new(jail: &str, spec: &JailSpec) -> Self {
        EnforcementReport {
            schema: "stockade.enforcement-report".to_owned(),
            schema_version: 1,
            jail: jail.to_owned(),
            level: spec.level,
            policy: spec.policy.clone(),
            policy_digest: hex(&spec.policy_digest),
            spec_digest: spec.digest(),
            filter_digest: String::new(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            layers: Vec::new(),
            canary: Vec::new(),
            places: spec.mounts.places.iter().map(PlaceReport::of).collect(),
            timings: Timings::default(),
            end: None,
        }
    }

    /// Orders the layers as they are put on and adds those nobody spoke for, as enforced or off.
    pub(crate) fn complete(&mut self, spec: &JailSpec) {
        let mut found = std::mem::take(&mut self.layers);
        for plan in &spec.layers {
            let at = found.iter().position(|result| result.layer == plan.layer);
            self.layers.push(match at {
                Some(at) => found.swap_remove(at),
                None => LayerResult::missing(plan),
            });
        }
    }

    /// Whether everything required is enforced.
    pub fn satisfied(&self) -> bool {
        let layers = self.layers.iter().all(|result| {
            result.got == Got::Enforced || result.wanted != demand_name(Demand::Required)
        });
        layers && self.canary.iter().all(|result| result.ok)
    }
}

impl LayerResult {
    /// A layer that holds.
    pub(crate) fn enforced(spec: &JailSpec, layer: Layer, why: impl Into<String>) -> Self {
        let wanted = demand_name(spec.demand(layer)).to_owned();
        LayerResult { layer, wanted, got: Got::Enforced, why: why.into() }
    }

    /// A layer that nobody applied.
    fn missing(plan: &LayerPlan) -> Self {
        LayerResult {
            layer: plan.layer,
            wanted: demand_name(plan.demand).to_owned(),
            got: if plan.demand == Demand::Off { Got::Off } else { Got::Absent },
            why: plan.why.clone(),
        }
    }
}

fn demand_name(demand: Demand) -> &'static str {
    match demand {
        Demand::Required => "required",
        Demand::IfAvailable | Demand::Unavailable => "if-available",
        Demand::Off => "off",
    }
}
