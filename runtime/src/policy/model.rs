//! The resolved policy: total, typed, and every value with the place it was written.
//!
//! Pure. Nothing here is optional for want of an answer: an `Option` means "no limit", and only
//! where the policy may say so.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::host::Level;

use super::network::Network;
use super::stage::Stage;
use super::units::ByteSize;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// File as the operator named it, or `policies/NAME.toml` for a shipped policy.
    pub file: String,
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A value and its origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting<T> {
    /// The value in force.
    pub value: T,
    /// Who wrote it.
    pub origin: Origin,
}

/// One enforcement mechanism of a jail, by the name used in policies, reports and `doctor`.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// The payload's own user namespace, which owns nothing (INV-5). Cannot be relaxed.
    UserNamespace,
    /// Private mount tree. Cannot be relaxed.
    MountNamespace,
    /// Private process ids; its end is the jail's end. Cannot be relaxed.
    PidNamespace,
    /// Private network stack with loopback only.
    NetNamespace,
    /// Private System V and POSIX message queues.
    IpcNamespace,
    /// Private host name.
    UtsNamespace,
    /// Private view of the cgroup tree.
    CgroupNamespace,
    /// Empty capability sets, locked securebits.
    Capabilities,
    /// `no_new_privs`. Needed by landlock and seccomp.
    NoNewPrivs,
    /// Path, network and scope policy of the landlock security module.
    Landlock,
    /// System call allow-list.
    Seccomp,
    /// Memory, process, CPU and device limits of the whole jail.
    Cgroup,
    /// Per-process limits.
    Rlimits,
    /// A fresh, empty session keyring.
    Keyring,
    /// The forbidden acts tried before the payload starts (INV-3).
    Canary,
}

impl Layer {
    /// Every layer, in the order in which a jail puts them on.
    pub const ALL: [Layer; 15] = [
        Layer::MountNamespace,
        Layer::PidNamespace,
        Layer::NetNamespace,
        Layer::IpcNamespace,
        Layer::UtsNamespace,
        Layer::Cgroup,
        Layer::CgroupNamespace,
        Layer::UserNamespace,
        Layer::Keyring,
        Layer::Rlimits,
        Layer::Capabilities,
        Layer::NoNewPrivs,
        Layer::Landlock,
        Layer::Seccomp,
        Layer::Canary,
    ];

    /// Whether a policy may relax this layer at all.
    pub fn relaxable(self) -> bool {
        !matches!(self, Layer::UserNamespace | Layer::MountNamespace | Layer::PidNamespace)
    }

    /// The name used in policies and reports.
    pub fn name(self) -> &'static str {
        match self {
            Layer::UserNamespace => "user-namespace",
            Layer::MountNamespace => "mount-namespace",
            Layer::PidNamespace => "pid-namespace",
            Layer::NetNamespace => "net-namespace",
            Layer::IpcNamespace => "ipc-namespace",
            Layer::UtsNamespace => "uts-namespace",
            Layer::CgroupNamespace => "cgroup-namespace",
            Layer::Capabilities => "capabilities",
            Layer::NoNewPrivs => "no-new-privs",
            Layer::Landlock => "landlock",
            Layer::Seccomp => "seccomp",
            Layer::Cgroup => "cgroup",
            Layer::Rlimits => "rlimits",
            Layer::Keyring => "keyring",
            Layer::Canary => "canary",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A layer that may be missing, or is switched off, and why the operator accepts that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Relaxation {
    /// The layer.
    pub layer: Layer,
    /// The operator's reason; goes to the enforcement report.
    pub why: String,
    /// `true`: not applied even where the kernel offers it. `false`: may be missing.
    pub off: bool,
    /// Where it was written.
    pub origin: Origin,
}

/// `[require]`: what must hold for a jail to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Require {
    /// The lowest assurance level accepted.
    pub level: Setting<Level>,
    /// The lowest Landlock ABI accepted, 1 to 7.
    pub landlock_abi: Setting<u8>,
    /// `true`: cgroup limits are required even at the rootless level, where they need delegation.
    pub cgroup: Setting<bool>,
    /// Layers that may be missing or are off.
    pub relax: Vec<Relaxation>,
}

/// What the jail's read-only root is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Root {
    /// A curated read-only view of the host: `/usr`, its usual links, a synthesized `/etc`.
    Host,
    /// A directory holding a whole root file system.
    Directory(PathBuf),
}

/// Where a fresh workspace is kept. Ordered: what leaves less behind is less.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    /// tmpfs, charged to the jail's memory limit.
    Memory,
    /// A size-limited file system on disk that has no name and vanishes with the jail.
    Disk,
}

/// `[filesystem]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Filesystem {
    /// The read-only root.
    pub root: Setting<Root>,
    /// Further host paths shown read-only at the same path.
    pub read_only: Vec<Setting<PathBuf>>,
    /// Host directories shown writable at the same path, held to the workspace limits.
    pub writable: Vec<Setting<PathBuf>>,
    /// Bytes that workspace, outputs and home may hold together.
    pub workspace_size: Setting<ByteSize>,
    /// Files and directories that workspace, outputs and home may hold together.
    pub workspace_inodes: Setting<u64>,
    /// Where a fresh workspace is kept.
    pub workspace_storage: Setting<Storage>,
    /// Size of `/tmp`.
    pub tmp_size: Setting<ByteSize>,
    /// Files and directories in `/tmp`.
    pub tmp_inodes: Setting<u64>,
    /// Size of `/dev/shm`.
    pub shm_size: Setting<ByteSize>,
    /// How long the jail of an idle session is kept, without its processes, for the session's next
    /// work item; `None` is not at all.
    pub retain: Setting<Option<Duration>>,
}

/// `[process]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Processes and threads of the whole jail.
    pub pids: Setting<u32>,
    /// Descriptors per process.
    pub open_files: Setting<u32>,
    /// Time the command may run by the clock; `None` is no limit.
    pub wall_time: Setting<Option<Duration>>,
    /// CPU time per process; `None` is no limit.
    pub cpu_time: Setting<Option<Duration>>,
    /// Thousandths of a CPU for the whole jail.
    pub cpu_milli: Setting<u32>,
    /// Memory of the whole jail, its memory file systems included.
    pub memory: Setting<ByteSize>,
    /// Swap on top of `memory`.
    pub swap: Setting<ByteSize>,
    /// Largest core dump; 0 also stops piped handlers.
    pub core: Setting<ByteSize>,
    /// Niceness added to the worker's, 0 to 19.
    pub nice: Setting<u8>,
    /// Bytes a second read from and written to each disk; `None` is no limit.
    pub io_rate: Setting<Option<ByteSize>>,
    /// Bytes of standard output and error together; `None` is no limit.
    pub output: Setting<Option<ByteSize>>,
    /// Whether monotonic and boot time start near 0, so that the host's uptime is not visible.
    pub hide_uptime: Setting<bool>,
}

/// `[syscalls]`: the groups of `policies/syscalls.toml` that are allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Syscalls {
    /// Group names, in the order of the catalogue.
    pub groups: Vec<Setting<String>>,
}

/// `[environment]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Environment {
    /// Variables with their values.
    pub set: BTreeMap<String, Setting<String>>,
    /// Names taken from the caller's environment where they are set.
    pub pass: Vec<Setting<String>>,
}

/// A policy with nothing left to decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// The name of the outermost file.
    pub name: String,
    /// Files it was read from, the outermost first, `base` last.
    pub sources: Vec<String>,
    /// `[require]`
    pub require: Require,
    /// `[filesystem]`
    pub filesystem: Filesystem,
    /// `[process]`
    pub process: Process,
    /// `[syscalls]`
    pub syscalls: Syscalls,
    /// `[network]`
    pub network: Network,
    /// `[[stage]]`
    pub stage: Stage,
    /// `[environment]`
    pub environment: Environment,
    /// Where the lists were written, which matters for those that are empty.
    pub lists: ListOrigins,
}

/// Where each list of a policy was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListOrigins {
    /// `require.relax`
    pub relax: Origin,
    /// `filesystem.read_only`
    pub read_only: Origin,
    /// `filesystem.writable`
    pub writable: Origin,
    /// `syscalls.groups`
    pub groups: Origin,
    /// `environment.pass`
    pub pass: Origin,
}
