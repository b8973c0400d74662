//! Decides one jail: compares what the policy requires with what the host offers, and lays out
//! the plan. Refuses before anything on the host has changed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::host::{CgroupOffer, HostFacts, Level};
use crate::policy::{Layer, Policy, Storage};

use super::custom_tool::CustomToolPlan;
use super::egress::EgressPlan;
use super::etc::Account;
use super::places::{self, SkillsRequest, StoreRequest};
use super::plan::{
    BoundDirectory, BoundLimit, CgroupPlan, Demand, JailSpec, LandlockPlan, LayerPlan,
    OutsideLimits, Payload, Rlimit, ToolsPlan,
};
use super::tree;

/// User and group id of the payload inside its own user namespace.
const PAYLOAD_ID: u32 = 1000;
/// Directories searched for a command, in the jail.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Controllers without which the cgroup layer is not on.
const CONTROLLERS: &[&str] = &["memory", "pids", "cpu"];

/// First kernel whose tmpfs has the extended attributes with which overlayfs marks directories.
const USER_XATTRS_ON_TMPFS: (u32, u32) = (6, 6);

/// A host directory to bind, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundRequest {
    /// Absolute path without symbolic links.
    pub source: PathBuf,
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Owning user.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// A project quota its file system enforces on it: project, bytes, inodes.
    pub quota: Option<(u32, u64, u64)>,
}

/// What a caller asks for, beyond the policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Program and arguments; never empty.
    pub argv: Vec<Vec<u8>>,
    /// Variables added by the caller; they win over the policy's.
    pub environment: BTreeMap<String, String>,
    /// The caller's own environment, from which the policy may pass names on.
    pub caller_environment: BTreeMap<String, String>,
    /// Directory shown as the workspace; a fresh one where `None`.
    pub workspace: Option<BoundRequest>,
    /// Directory shown as the outputs.
    pub outputs: Option<BoundRequest>,
    /// The policy's writable directories, as they were found.
    pub writable: Vec<BoundRequest>,
    /// Whether the payload gets a terminal.
    pub tty: bool,
    /// Whether `workspace` is shown at its own path instead of `/workspace`.
    pub workspace_in_place: bool,
    /// Make a directory of this name in `outputs` and show that instead.
    pub outputs_child: Option<String>,
    /// Whether the jail is a session's: it runs tools, and `argv` is its shell. All that follows but
    /// `halt_at` is for sessions only.
    pub tools: bool,
    /// The operator's own tools, in the jail of a session.
    pub custom: Vec<CustomToolPlan>,
    /// Whether others run on the host.
    pub outside: bool,
    /// A place for skills at `skills` in the working directory; none where `None`.
    pub skills: Option<SkillsRequest>,
    /// Memory stores, at most [`StoreRequest::COUNT_MAX`].
    pub stores: Vec<StoreRequest>,
    /// Whether there is a porter even without places: it lays staged files into the workspace.
    pub porter: bool,
    /// Test aid, see [`JailSpec::halt_at`].
    pub halt_at: Option<String>,
}

/// Why no jail can be made here that satisfies the policy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The policy's minimum is above what this process can give.
    #[error(
        "cannot give level `{required}`, which the policy requires at {origin}: started without root, this host gives `{offered}`"
    )]
    Level {
        /// Wanted.
        required: Level,
        /// Possible.
        offered: Level,
        /// Where the policy says so.
        origin: String,
    },
    /// A required layer is not offered by the kernel.
    #[error("cannot apply the required layer `{layer}`: {reason}")]
    LayerMissing {
        /// Which layer.
        layer: Layer,
        /// What was found instead.
        reason: String,
        /// What to do about it.
        fix: String,
    },
    /// A directory cannot be shown where it was asked for.
    #[error("cannot show {path} inside the jail at the same path: {reason}")]
    Place {
        /// The directory.
        path: PathBuf,
        /// What is in the way.
        reason: &'static str,
    },
    /// A custom tool cannot be run as it is.
    #[error("cannot run the tool {name}: {reason}")]
    CustomTool {
        /// Which.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A memory store cannot be where it was asked for.
    #[error("cannot show a memory store at {path}: {reason}")]
    StorePlace {
        /// As asked for.
        path: PathBuf,
        /// What is in the way.
        reason: &'static str,
    },
    /// Network rules without a network of the jail's own.
    #[error(
        "cannot enforce the policy's network rules: the layer `net-namespace` is off or may be missing"
    )]
    Egress,
    /// The limit of a directory or of the workspace cannot be enforced.
    #[error("cannot hold {what} to its size limit: {reason}")]
    Unlimited {
        /// Which tree.
        what: String,
        /// Why.
        reason: String,
        /// What to do about it.
        fix: String,
    },
}

impl SpecError {
    /// What the operator can do, in one sentence.
    pub fn hint(&self) -> String {
        match self {
            SpecError::Level { .. } => {
                "run the worker as root (sudo), or choose a policy with `require.level = \
                 \"rootless\"`"
                    .to_owned()
            }
            SpecError::LayerMissing { fix, .. } | SpecError::Unlimited { fix, .. } => fix.clone(),
            SpecError::Egress => {
                "require `net-namespace`, or remove `network.allow` and `network.presets`"
                    .to_owned()
            }
            SpecError::CustomTool { .. } => {
                "correct its `[[custom_tool]]` in the configuration file".to_owned()
            }
            SpecError::StorePlace { .. } => {
                "give the store a mount path of its own, for example below /mnt/memory".to_owned()
            }
            SpecError::Place { .. } => {
                "choose a directory below /home, /srv or /tmp of the host".to_owned()
            }
        }
    }
}

/// Makes the spec of one jail.
///
/// # Errors
/// [`SpecError`] if the host cannot give what `policy` requires; nothing has been changed then.
pub fn build(policy: &Policy, facts: &HostFacts, request: Request) -> Result<JailSpec, SpecError> {
    let level = facts.level;
    if policy.require.level.value > level {
        return Err(SpecError::Level {
            required: policy.require.level.value,
            offered: level,
            origin: policy.require.level.origin.to_string(),
        });
    }
    if let Some((name, reason)) = CustomToolPlan::first_mistake(&request.custom) {
        return Err(SpecError::CustomTool { name, reason });
    }
    let layers = plan_layers(policy, facts)?;
    check_storage(policy, facts, &request)?;
    let rlimits = rlimits(policy, is_counted(&layers));
    let hostname = "jail".to_owned();
    let home = format!("/{}", tree::HOME);
    let egress = egress_plan(policy, &layers, request.tools)?;
    let resolver = egress.is_some();
    let account = Account { id: PAYLOAD_ID, home: &home, hostname: &hostname, resolver };
    let bound = bound_directories(policy, &request);
    let workdir = match &request.workspace {
        Some(found) if request.workspace_in_place => tree::check_place(&found.source, policy)
            .map_err(|reason| SpecError::Place { path: found.source.clone(), reason })
            .map(|()| found.source.clone())?,
        _ => PathBuf::from("/").join(tree::WORKSPACE),
    };
    let wall_time_ms = policy.process.wall_time.value.map(|time| time.as_millis() as u64);
    // A session lasts as long as it has calls: what limits one command limits each of its calls, and
    // the shell keeps a bounded tail of what they print.
    let output_bytes_max = policy.process.output.value.map(|bytes| bytes.bytes());
    let places = if request.tools { places::plan(policy, &request, &workdir)? } else { Vec::new() };
    let tools = request.tools.then(|| ToolsPlan {
        roots: places::roots(&workdir, &places),
        read_only: places::read_only(&places),
        porter: request.porter || !places.is_empty(),
        call_time_ms_max: wall_time_ms,
        custom: request.custom.clone(),
        outside: request.outside,
    });
    let mut tree =
        tree::lay_out(policy, facts, &account, bound, places, request.workspace_in_place);
    let overlaid = tree.mounts.bound.iter().any(|bound| bound.limit == BoundLimit::Overlay);
    let (major, minor) = USER_XATTRS_ON_TMPFS;
    if overlaid && !facts.kernel.at_least(major, minor) {
        // ext4 has had the attributes that this kernel's tmpfs lacks for long.
        tree.mounts.scratch.storage = Storage::Disk;
    }
    let process = &policy.process;
    Ok(JailSpec {
        version: JailSpec::VERSION,
        policy: policy.name.clone(),
        policy_digest: policy.digest(),
        level,
        hide_uptime: process.hide_uptime.value,
        payload_id: PAYLOAD_ID,
        mounts: tree.mounts,
        landlock: LandlockPlan {
            abi_min: policy.require.landlock_abi.value,
            deny_tcp: layers
                .iter()
                .any(|plan| plan.layer == Layer::NetNamespace && plan.demand != Demand::Required),
            grants: tree.grants,
        },
        layers,
        syscall_groups: policy.syscalls.groups.iter().map(|g| g.value.clone()).collect(),
        cgroup: CgroupPlan {
            memory_bytes_max: process.memory.value.bytes(),
            swap_bytes_max: process.swap.value.bytes(),
            pids_max: process.pids.value,
            cpu_milli: process.cpu_milli.value,
            io_bytes_per_second: process.io_rate.value.map(|rate| rate.bytes()),
            killed_together: !request.tools,
        },
        rlimits,
        nice: process.nice.value,
        wall_time_ms: if request.tools { None } else { wall_time_ms },
        output_bytes_max: if request.tools { None } else { output_bytes_max },
        payload: Payload {
            environment: environment(policy, &request, &home),
            argv: request.argv,
            workdir,
            tty: request.tty,
        },
        egress,
        tools,
        hostname,
        halt_at: request.halt_at,
    })
}

/// The limits of tools on the host: those of each session's jail.
///
/// # Errors
/// As [`build`], for the layer of the cgroup.
pub fn outside_limits(policy: &Policy, facts: &HostFacts) -> Result<OutsideLimits, SpecError> {
    let grouped = is_counted(&plan_layers(policy, facts)?);
    let mut rlimits = rlimits(policy, grouped);
    // It counts all processes of the user, and those of several sessions may have the same one.
    rlimits.retain(|(limit, _)| *limit != Rlimit::Processes);
    Ok(OutsideLimits { grouped, rlimits })
}

/// Whether a jail with these layers has a cgroup.
fn is_counted(layers: &[LayerPlan]) -> bool {
    layers.iter().any(|plan| {
        plan.layer == Layer::Cgroup && matches!(plan.demand, Demand::Required | Demand::IfAvailable)
    })
}

/// Where the network of a jail leads. A command without a rule has none; a session has a resolver
/// even then, which says why names have no addresses.
fn egress_plan(
    policy: &Policy,
    layers: &[LayerPlan],
    session: bool,
) -> Result<Option<EgressPlan>, SpecError> {
    let Some(plan) = EgressPlan::of(policy) else { return Ok(None) };
    let leads_nowhere = plan.ports().is_empty();
    let isolated = layers
        .iter()
        .any(|layer| layer.layer == Layer::NetNamespace && layer.demand == Demand::Required);
    match (isolated, leads_nowhere) {
        (true, true) if !session => Ok(None),
        (true, _) => Ok(Some(plan)),
        (false, true) => Ok(None),
        (false, false) => Err(SpecError::Egress),
    }
}

/// What is demanded of every layer, or the first one that is required and cannot be had.
fn plan_layers(policy: &Policy, facts: &HostFacts) -> Result<Vec<LayerPlan>, SpecError> {
    let mut plans = Vec::with_capacity(Layer::ALL.len());
    for layer in Layer::ALL {
        let relaxed = policy.require.relax.iter().find(|relaxation| relaxation.layer == layer);
        let (mut demand, mut why) = match relaxed {
            Some(relaxation) if relaxation.off => (Demand::Off, relaxation.why.clone()),
            Some(relaxation) => (Demand::IfAvailable, relaxation.why.clone()),
            None => (Demand::Required, String::new()),
        };
        let rootless_cgroup = layer == Layer::Cgroup
            && facts.level == Level::Rootless
            && !policy.require.cgroup.value;
        if rootless_cgroup && demand == Demand::Required {
            demand = Demand::IfAvailable;
            why = "the rootless level has cgroup limits only where a subtree is delegated; \
                   set `require.cgroup = true` to insist"
                .to_owned();
        }
        match missing(layer, policy, facts) {
            Some(error) if demand == Demand::Required => return Err(error),
            Some(SpecError::LayerMissing { reason, .. }) if demand == Demand::IfAvailable => {
                demand = Demand::Unavailable;
                why = format!("{reason}; accepted: {why}");
            }
            _ => {}
        }
        plans.push(LayerPlan { layer, demand, why });
    }
    Ok(plans)
}

/// Why `layer` cannot be had on this host, as far as facts tell before the attempt.
fn missing(layer: Layer, policy: &Policy, facts: &HostFacts) -> Option<SpecError> {
    let gone = |reason: String, fix: &str| {
        Some(SpecError::LayerMissing { layer, reason, fix: fix.to_owned() })
    };
    match layer {
        Layer::MountNamespace if !facts.kernel.at_least(5, 12) => gone(
            format!("Linux {} has no mount_setattr, which needs Linux 5.12", facts.kernel.release),
            "boot Linux 5.19 or newer",
        ),
        Layer::Landlock | Layer::Seccomp if is_off(policy, Layer::NoNewPrivs) => gone(
            "it rests on `no-new-privs`, which the policy switches off".to_owned(),
            "leave `no-new-privs` on, or switch off `landlock` and `seccomp` as well",
        ),
        Layer::Landlock => {
            let (have, want) = (facts.offers.landlock_abi, policy.require.landlock_abi.value);
            if have >= want.max(1) {
                return None;
            }
            let reason = match have {
                0 => format!("Linux {} has no Landlock, or it is off", facts.kernel.release),
                _ => format!(
                    "Linux {} has Landlock ABI {have}, the policy requires {want} (at {})",
                    facts.kernel.release, policy.require.landlock_abi.origin
                ),
            };
            gone(
                reason,
                "boot with `lsm=landlock,…` on a kernel with the required ABI (2: Linux 5.19, \
                 3: 6.2, 4: 6.7, 5: 6.10, 6: 6.12), or relax `landlock` in the policy with a reason",
            )
        }
        Layer::Cgroup => {
            let offer = &facts.offers.cgroup;
            if let CgroupOffer::Absent { reason } = offer {
                return gone(
                    reason.clone(),
                    "run as root on a host with mounted cgroups, or delegate a cgroup v2 subtree \
                     (`Delegate=yes` in the systemd unit)",
                );
            }
            let lacking: Vec<_> = CONTROLLERS
                .iter()
                .filter(|&&name| !offer.controllers().iter().any(|have| have == name))
                .copied()
                .collect();
            if lacking.is_empty() {
                return None;
            }
            gone(
                format!("no {} controller", lacking.join(", no ")),
                "enable the controllers in the kernel and delegate them to the worker's cgroup",
            )
        }
        _ => None,
    }
}

fn is_off(policy: &Policy, layer: Layer) -> bool {
    policy.require.relax.iter().any(|relaxation| relaxation.layer == layer && relaxation.off)
}

/// Refuses storage that cannot be limited here: never silently unlimited.
fn check_storage(policy: &Policy, facts: &HostFacts, request: &Request) -> Result<(), SpecError> {
    let disk = policy.filesystem.workspace_storage.value == Storage::Disk;
    if disk && facts.level == Level::Rootless {
        return Err(SpecError::Unlimited {
            what: "a workspace on disk".to_owned(),
            reason: "its file system is made on a loop device, which needs root".to_owned(),
            fix: "run as root, or set `filesystem.workspace_storage = \"memory\"`".to_owned(),
        });
    }
    let binds = request.workspace.iter().chain(&request.outputs).chain(&request.writable);
    let (version, needs) = match facts.level {
        Level::Root => ((5, 19), "idmapped layers of overlayfs"),
        Level::Rootless => (USER_XATTRS_ON_TMPFS, "extended attributes on tmpfs"),
    };
    for bind in binds {
        let overlay = limit_of(policy, bind) == BoundLimit::Overlay;
        if overlay && !facts.kernel.at_least(version.0, version.1) {
            return Err(SpecError::Unlimited {
                what: bind.source.display().to_string(),
                reason: format!(
                    "Linux {} lacks {needs} (Linux {}.{})",
                    facts.kernel.release, version.0, version.1
                ),
                fix: "give the directory a project quota no larger than the policy's workspace \
                      size, or use a newer kernel"
                    .to_owned(),
            });
        }
    }
    Ok(())
}

fn limit_of(policy: &Policy, request: &BoundRequest) -> BoundLimit {
    match request.quota {
        Some((project, bytes, inodes))
            if (1..=policy.filesystem.workspace_size.value.bytes()).contains(&bytes)
                && (1..=policy.filesystem.workspace_inodes.value).contains(&inodes) =>
        {
            BoundLimit::ProjectQuota { project }
        }
        _ => BoundLimit::Overlay,
    }
}

fn bound_directories(policy: &Policy, request: &Request) -> Vec<BoundDirectory> {
    let bind = |found: &BoundRequest, target: PathBuf| BoundDirectory {
        source: found.source.clone(),
        child: None,
        device: found.device,
        inode: found.inode,
        uid: found.uid,
        gid: found.gid,
        target,
        limit: limit_of(policy, found),
    };
    let same_path =
        |found: &BoundRequest| found.source.strip_prefix("/").unwrap_or(&found.source).to_owned();
    request
        .workspace
        .iter()
        .map(|found| match request.workspace_in_place {
            true => bind(found, same_path(found)),
            false => bind(found, tree::WORKSPACE.into()),
        })
        .chain(request.outputs.iter().map(|found| BoundDirectory {
            child: request.outputs_child.clone(),
            ..bind(found, tree::OUTPUTS.into())
        }))
        .chain(request.writable.iter().map(|found| bind(found, same_path(found))))
        .collect()
}

/// Per-process limits: the last line behind the cgroup, and the only one for processes and memory
/// where there is none (`counted` is false).
fn rlimits(policy: &Policy, counted: bool) -> Vec<(Rlimit, u64)> {
    const LOCKED_MEMORY_BYTES: u64 = 8 << 20;
    const MESSAGE_QUEUE_BYTES: u64 = 819_200;
    let process = &policy.process;
    let pids = u64::from(process.pids.value);
    // Behind the cgroup, so that the cgroup is what refuses: it counts, a process limit does not.
    let processes = if counted { pids.saturating_mul(2) } else { pids };
    let mut limits = vec![
        (Rlimit::OpenFiles, u64::from(process.open_files.value)),
        (Rlimit::Processes, processes),
        (Rlimit::LockedMemory, LOCKED_MEMORY_BYTES),
        (Rlimit::MessageQueues, MESSAGE_QUEUE_BYTES),
        (Rlimit::PendingSignals, pids.max(1024)),
        // 1 and not 0: a limit of 0 still starts a handler that `core_pattern` pipes to, a limit
        // of 1 does not (core(5); fs/coredump.c).
        (Rlimit::Core, 1),
    ];
    if !counted {
        limits.push((Rlimit::Data, process.memory.value.bytes()));
    }
    if let Some(time) = process.cpu_time.value {
        limits.push((Rlimit::CpuSeconds, time.as_secs().max(1)));
    }
    limits
}

/// The payload's whole environment: ours, then the policy's, then what it passes on, then the
/// caller's.
fn environment(policy: &Policy, request: &Request, home: &str) -> Vec<Vec<u8>> {
    let mut variables: BTreeMap<&str, &str> = BTreeMap::from([
        ("PATH", PATH),
        ("HOME", home),
        ("USER", "session"),
        ("LOGNAME", "session"),
        ("SHELL", "/bin/bash"),
    ]);
    for (name, value) in &policy.environment.set {
        variables.insert(name, &value.value);
    }
    for name in &policy.environment.pass {
        if let Some(value) = request.caller_environment.get(&name.value) {
            variables.insert(&name.value, value);
        }
    }
    for (name, value) in &request.environment {
        variables.insert(name, value);
    }
    variables.into_iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect()
}
