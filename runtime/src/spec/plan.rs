//! The jail spec: everything a launcher needs to build one jail, and nothing to interpret.
//!
//! Pure data. Its canonical bytes (postcard, fields in the order written here) are what is sent
//! to the launcher and what the digest is of.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::host::Level;
use crate::policy::{Layer, Storage};

use super::custom_tool::CustomToolPlan;
use super::egress::EgressPlan;

/// What happens to one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Demand {
    /// Must hold, or no payload runs.
    Required,
    /// Applied where the kernel offers it, and this kernel does.
    IfAvailable,
    /// May be missing, and this host does not offer it; the absence is reported.
    Unavailable,
    /// Not applied, by the policy's wish.
    Off,
}

/// A layer, what is demanded of it and why where that is less than required.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerPlan {
    /// Which layer.
    pub layer: Layer,
    /// What is demanded.
    pub demand: Demand,
    /// The reason for less than required; empty otherwise.
    pub why: String,
}

/// Who owns a file or tree inside the jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    /// Nobody the payload can become.
    Jail,
    /// The payload.
    Payload,
}

/// A directory entry made by us on the jail's own root, before anything is mounted on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Node {
    /// A directory, mode 0755.
    Directory {
        /// Path below the root, without a leading slash.
        path: PathBuf,
    },
    /// A regular file, mode 0444.
    File {
        /// Path below the root.
        path: PathBuf,
        /// Its whole content.
        content: Vec<u8>,
    },
    /// A symbolic link.
    Link {
        /// Path below the root.
        path: PathBuf,
        /// Where it points.
        target: PathBuf,
    },
}

/// A host file or tree shown read-only at a place of the jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadOnlyBind {
    /// Absolute host path.
    pub source: PathBuf,
    /// Path below the root.
    pub target: PathBuf,
    /// Whether the source is a directory.
    pub directory: bool,
}

/// A memory file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryMount {
    /// Path below the root.
    pub target: PathBuf,
    /// Size in bytes.
    pub bytes_max: u64,
    /// Files and directories.
    pub inodes_max: u64,
    /// Permissions of its top directory.
    pub mode: u32,
    /// Directories made in it for others to be mounted on, parents before children (path below it).
    pub directories: Vec<PathBuf>,
}

/// The session's own file system: workspace, outputs, home and what is laid over bound
/// directories share its limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScratchPlan {
    /// In memory or on disk.
    pub storage: Storage,
    /// Bytes for all of it.
    pub bytes_max: u64,
    /// Files and directories for all of it.
    pub inodes_max: u64,
    /// Places of the jail that are directories of it (path below the root).
    pub places: Vec<PathBuf>,
}

/// How a bound host directory is kept within the workspace limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BoundLimit {
    /// The session's file system is laid over it and copied back at the end.
    Overlay,
    /// Its file system already enforces a project quota that is no larger.
    ProjectQuota {
        /// The project.
        project: u32,
    },
}

/// A host directory that the payload may change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundDirectory {
    /// Absolute host path without symbolic links.
    pub source: PathBuf,
    /// A directory of this name in `source` is bound instead, and made if it is missing.
    pub child: Option<String>,
    /// Device number of `source` when it was checked.
    pub device: u64,
    /// Inode number of `source` when it was checked.
    pub inode: u64,
    /// Host user who owns it, and so what the payload leaves in it.
    pub uid: u32,
    /// Host group, likewise.
    pub gid: u32,
    /// Path below the root.
    pub target: PathBuf,
    /// How its growth is limited.
    pub limit: BoundLimit,
}

/// What a place of the porter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlaceKind {
    /// Skills, below the working directory.
    Skills,
    /// A memory store.
    Store,
}

/// A memory file system that the porter fills and the payload sees: skills, or a memory store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacePlan {
    /// What it is for.
    pub kind: PlaceKind,
    /// Absolute path inside the jail.
    pub target: PathBuf,
    /// Whether the payload may change what is in it. The porter may in any case.
    pub writable: bool,
    /// Size in bytes.
    pub bytes_max: u64,
    /// Files and directories.
    pub inodes_max: u64,
    /// Whether its mount point lies in the workspace, where it has to be made, and not on the root,
    /// whose skeleton has it.
    pub in_workspace: bool,
}

/// What a limit of room is a limit of: each has settings of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Area {
    /// The session's own file system.
    Workspace,
    /// `/tmp`.
    Tmp,
    /// `/dev/shm`.
    Shm,
    /// Its skills.
    Skills,
    /// One memory store.
    Store,
}

/// How much fits where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Absolute path inside the jail.
    pub place: PathBuf,
    /// What it is.
    pub area: Area,
    /// Size in bytes.
    pub bytes_max: u64,
    /// Files and directories.
    pub inodes_max: u64,
}

/// The mount tree, in the order in which it is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// A directory that is the root, read-only, with the skeleton laid over it.
    pub base: Option<PathBuf>,
    /// Entries made on the root, parents before children.
    pub skeleton: Vec<Node>,
    /// Host trees shown read-only.
    pub read_only: Vec<ReadOnlyBind>,
    /// Device nodes of the host shown below `dev`, by name.
    pub devices: Vec<String>,
    /// Entries of `/proc` hidden by an empty directory (names that end in a slash) or file.
    pub masked: Vec<String>,
    /// Entries of `/proc` that stay readable and can never be written (path below `proc`).
    pub frozen: Vec<PathBuf>,
    /// `/tmp` and `/dev/shm`.
    pub memory: Vec<MemoryMount>,
    /// The session's own file system.
    pub scratch: ScratchPlan,
    /// Host directories the payload may change.
    pub bound: Vec<BoundDirectory>,
    /// What the porter fills: skills first, then memory stores in the order of the request.
    pub places: Vec<PlacePlan>,
}

impl MountPlan {
    /// How much fits where. First the session's own file system, under the first of its places.
    pub fn rooms(&self) -> Vec<Room> {
        let absolute = |target: &PathBuf| Path::new("/").join(target);
        let own = self.scratch.places.first().or(self.bound.first().map(|bound| &bound.target));
        let own = Room {
            place: own.map_or_else(|| absolute(&PathBuf::new()), absolute),
            area: Area::Workspace,
            bytes_max: self.scratch.bytes_max,
            inodes_max: self.scratch.inodes_max,
        };
        let memory = self.memory.iter().map(|mount| Room {
            place: absolute(&mount.target),
            area: if mount.target == Path::new("tmp") { Area::Tmp } else { Area::Shm },
            bytes_max: mount.bytes_max,
            inodes_max: mount.inodes_max,
        });
        let places = self.places.iter().map(|place| Room {
            place: place.target.clone(),
            area: match place.kind {
                PlaceKind::Skills => Area::Skills,
                PlaceKind::Store => Area::Store,
            },
            bytes_max: place.bytes_max,
            inodes_max: place.inodes_max,
        });
        std::iter::once(own).chain(memory).chain(places).collect()
    }
}

/// What landlock lets the payload do below a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// List directories.
    List,
    /// List, read and execute.
    ReadExecute,
    /// Everything but making devices.
    Write,
    /// Read, write and control device files.
    Device,
    /// Read files, write the few a process may write about itself.
    Proc,
    /// What the file tools do: list, read, write, make and replace files, make directories.
    Files,
    /// What the porter does: as the file tools, and it removes and moves directories.
    Porter,
}

/// Landlock's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LandlockPlan {
    /// The lowest ABI accepted.
    pub abi_min: u8,
    /// Whether TCP is denied altogether. Landlock knows single ports and no ranges, so inside a
    /// net namespace of its own, where loopback servers must work on any port, it says nothing;
    /// where that namespace is missing it is what stands between the payload and the host's ports.
    pub deny_tcp: bool,
    /// Absolute paths inside the jail and what is granted below each.
    pub grants: Vec<(PathBuf, Access)>,
}

/// Limits of the whole jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPlan {
    /// Bytes of memory.
    pub memory_bytes_max: u64,
    /// Bytes of swap on top.
    pub swap_bytes_max: u64,
    /// Processes and threads.
    pub pids_max: u32,
    /// Thousandths of a CPU.
    pub cpu_milli: u32,
    /// Bytes a second read from and written to each disk.
    pub io_bytes_per_second: Option<u64>,
    /// v2: whether all processes are killed when memory runs out, or the largest. A command half of
    /// which is gone is useless; a session goes on without the command that took too much.
    pub killed_together: bool,
}

/// A per-process limit, soft and hard alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rlimit {
    /// `RLIMIT_NOFILE`
    OpenFiles,
    /// `RLIMIT_NPROC`
    Processes,
    /// `RLIMIT_DATA`
    Data,
    /// `RLIMIT_CPU`, seconds
    CpuSeconds,
    /// `RLIMIT_MEMLOCK`
    LockedMemory,
    /// `RLIMIT_MSGQUEUE`
    MessageQueues,
    /// `RLIMIT_SIGPENDING`
    PendingSignals,
    /// `RLIMIT_CORE`
    Core,
    /// `RLIMIT_FSIZE`; no jail has it, git on the host does
    FileSize,
}

/// What limits tools on the host, beside the time and output that each tool has for itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideLimits {
    /// Whether they run in a cgroup of their session: then nothing is started without it.
    pub grouped: bool,
    /// Per-process limits.
    pub rlimits: Vec<(Rlimit, u64)>,
}

/// What runs in the jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// Program and arguments.
    pub argv: Vec<Vec<u8>>,
    /// The whole environment, `NAME=VALUE`.
    pub environment: Vec<Vec<u8>>,
    /// Absolute path inside the jail.
    pub workdir: PathBuf,
    /// Whether it gets a terminal of its own.
    pub tty: bool,
}

/// A session's part: its jail runs tools for as long as it is asked to, not one command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolsPlan {
    /// Absolute paths inside the jail that the file tools may use, the working directory first.
    pub roots: Vec<PathBuf>,
    /// Those of them, or below them, in which they may change nothing.
    pub read_only: Vec<PathBuf>,
    /// Whether the session has a porter. One with places always has.
    pub porter: bool,
    /// Longest time of one command, in milliseconds.
    pub call_time_ms_max: Option<u64>,
    /// The operator's own tools, which the executor has started by name.
    pub custom: Vec<CustomToolPlan>,
    /// Whether other tools of the operator's run on the host: they get a cgroup beside the jail's, with
    /// the same limits, wherever the jail has one.
    pub outside: bool,
}

/// The immutable plan of one jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailSpec {
    /// Format of this structure.
    pub version: u16,
    /// Name of the policy it came from.
    pub policy: String,
    /// SHA-256 of that policy's values.
    pub policy_digest: [u8; 32],
    /// The level it is made for.
    pub level: Level,
    /// Every layer and what is demanded of it.
    pub layers: Vec<LayerPlan>,
    /// Host name inside.
    pub hostname: String,
    /// Whether monotonic and boot time start near 0.
    pub hide_uptime: bool,
    /// User and group id the payload has inside.
    pub payload_id: u32,
    /// The mount tree.
    pub mounts: MountPlan,
    /// Landlock's part.
    pub landlock: LandlockPlan,
    /// Allowed groups of system calls.
    pub syscall_groups: Vec<String>,
    /// Limits of the whole jail.
    pub cgroup: CgroupPlan,
    /// Per-process limits.
    pub rlimits: Vec<(Rlimit, u64)>,
    /// Niceness added.
    pub nice: u8,
    /// Longest time the payload may run, in milliseconds.
    pub wall_time_ms: Option<u64>,
    /// Most bytes of standard output and error together.
    pub output_bytes_max: Option<u64>,
    /// What runs; the shell, in the jail of a session.
    pub payload: Payload,
    /// Where the network leads; nowhere if `None`, not even to a resolver.
    pub egress: Option<EgressPlan>,
    /// Set for the jail of a session.
    pub tools: Option<ToolsPlan>,
    /// Test aid: the process that reaches this step stops there (see [`Step`](crate::jail::Step)).
    pub halt_at: Option<String>,
}

impl JailSpec {
    /// The current [`version`](Self::version).
    pub const VERSION: u16 = 6;

    /// The bytes that are sent and digested: equal specs have equal bytes.
    pub fn canonical_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap_or_else(|error| {
            unreachable!("a spec holds only data that postcard can write: {error}")
        })
    }

    /// SHA-256 of [`canonical_bytes`](Self::canonical_bytes), in lower-case hex.
    pub fn digest(&self) -> String {
        hex(&Sha256::digest(self.canonical_bytes()))
    }

    /// What is demanded of `layer`.
    pub fn demand(&self, layer: Layer) -> Demand {
        self.layers.iter().find(|l| l.layer == layer).map_or(Demand::Required, |l| l.demand)
    }

    /// Whether `layer` is to be applied.
    pub fn applies(&self, layer: Layer) -> bool {
        matches!(self.demand(layer), Demand::Required | Demand::IfAvailable)
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
