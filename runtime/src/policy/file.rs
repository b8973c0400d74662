//! The policy file as written: every key optional but `schema`, unknown keys refused, every value
//! with its place in the text.
//!
//! Pure. The doc comments of the fields are the descriptions in the JSON Schema. Bounds are part of
//! the types. What a missing key means is decided in `resolve.rs`.

use std::collections::BTreeMap;
use std::ops::Range;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use crate::host::Level;

use super::bounded::{Cpus, Limit, Size, Time, Whole};
use super::model::{Layer, Storage};
use super::network::NetworkTable;
use super::stage::StageTable;
use super::units::{GIB, KIB, MIB, TIB};

/// Version of the format.
pub(super) type FormatVersion = Whole<1, 1>;
/// Landlock ABIs that exist.
pub(super) type LandlockAbi = Whole<1, 7>;
/// Up to the kernel's PID_MAX_LIMIT.
pub(super) type Pids = Whole<1, 4_194_304>;
/// From what a shell needs up to the kernel's default `fs.nr_open`.
pub(super) type OpenFiles = Whole<16, 1_048_576>;
/// Up to 30 days.
pub(super) type WallTime = Limit<Time<1, 2_592_000_000>>;
/// Up to a day.
pub(super) type Retain = Limit<Time<1_000, 86_400_000>>;
/// RLIMIT_CPU counts whole seconds.
pub(super) type CpuTime = Limit<Time<1_000, 2_592_000_000>>;
/// From the smallest quota cgroups accept (1 ms in 100 ms).
pub(super) type CpuShare = Cpus<10, 1_024_000>;
/// From what a dynamic program needs to start.
pub(super) type Memory = Size<{ 4 * MIB }, { 64 * TIB }>;
/// No swap is the usual choice.
pub(super) type Swap = Size<0, { 64 * TIB }>;
/// A core dump could leave the jail through a piped handler.
pub(super) type Core = Size<0, 0>;
/// A jail may be nicer than the worker, never less nice.
pub(super) type Nice = Whole<0, 19>;
/// Bytes a second.
pub(super) type IoRate = Limit<Size<{ 64 * KIB }, TIB>>;
/// Bytes of standard output and error.
pub(super) type Output = Limit<Size<1, TIB>>;
/// Workspace, outputs and home together.
pub(super) type WorkspaceSize = Size<{ 64 * KIB }, { 64 * TIB }>;
/// A temporary file system; one page at least.
pub(super) type TmpSize = Size<{ 4 * KIB }, { 1024 * GIB }>;
/// Inodes of one file system.
pub(super) type Inodes = Whole<16, 4_294_967_295>;

/// A value and its place in the text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct At<T>(Spanned<T>);

impl<T> At<T> {
    pub(super) fn get(&self) -> &T {
        self.0.get_ref()
    }

    pub(super) fn span(&self) -> Range<usize> {
        self.0.span()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Spanned::deserialize(from).map(At)
    }
}

/// The schema is that of the value alone.
impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// The entries of a list that may be missing.
pub(super) fn entries<T>(list: &Option<At<Vec<T>>>) -> &[T] {
    list.as_ref().map_or(&[], |list| list.get())
}

/// A Stockade policy: what a jail may use, and what must hold for it to start.
///
/// A file without `extends` starts from `base`, the deny-everything floor, and may set any value
/// within its bounds. A file with `extends` may only narrow its parent.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// Version of the policy format. Always 1.
    #[expect(dead_code, reason = "checked by its type; there is one version")]
    pub(super) schema: At<FormatVersion>,
    /// Name in reports: letters, digits, `-`, `_` and `.`, at most 64 [default: the file's name].
    pub(super) name: Option<At<String>>,
    /// The policy that this one narrows: a name, or a path that holds a `/` or ends in `.toml`,
    /// relative to this file.
    pub(super) extends: Option<At<String>>,
    /// Input that is laid into the workspace before the first tool call, at most 32 rules. Narrower:
    /// fewer, and each narrower.
    pub(super) stage: Option<At<Vec<StageTable>>>,
    /// What must hold for a jail to start.
    #[serde(default)]
    pub(super) require: RequireTable,
    /// What a jail sees and may fill.
    #[serde(default)]
    pub(super) filesystem: FilesystemTable,
    /// Limits of the processes in a jail.
    #[serde(default)]
    pub(super) process: ProcessTable,
    /// System calls.
    #[serde(default)]
    pub(super) syscalls: SyscallsTable,
    /// Where a jail may connect to.
    #[serde(default)]
    pub(super) network: NetworkTable,
    /// Environment variables.
    #[serde(default)]
    pub(super) environment: EnvironmentTable,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(super) struct RequireTable {
    /// The lowest assurance level accepted. Narrower: higher.
    pub(super) level: Option<At<Level>>,
    /// The lowest Landlock ABI accepted. Narrower: higher.
    pub(super) landlock_abi: Option<At<LandlockAbi>>,
    /// `true`: cgroup limits are required at the rootless level too, where they need delegation.
    /// Narrower: `true`.
    pub(super) cgroup: Option<At<bool>>,
    /// Layers that may be missing or are off, at most 15. Narrower: fewer.
    pub(super) relax: Option<At<Vec<RelaxTable>>>,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(super) struct RelaxTable {
    /// The layer. The user, mount and PID namespaces cannot be relaxed.
    pub(super) layer: At<Layer>,
    /// The reason, not empty; it goes to the enforcement report.
    pub(super) why: At<String>,
    /// `true`: not applied even where the kernel offers it. `false` (default): may be missing.
    pub(super) off: Option<At<bool>>,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(super) struct FilesystemTable {
    /// The read-only root: `host` for a curated view of the host, or the absolute path of a
    /// directory that holds a whole root file system. A child may not change it.
    pub(super) root: Option<At<String>>,
    /// Further host paths shown read-only at the same path, absolute, at most 256.
    pub(super) read_only: Option<At<Vec<At<String>>>>,
    /// Host directories shown writable at the same path, absolute, at most 256; they are held to
    /// the workspace limits.
    pub(super) writable: Option<At<Vec<At<String>>>>,
    /// Bytes that workspace, outputs and home may hold together.
    pub(super) workspace_size: Option<At<WorkspaceSize>>,
    /// Files and directories that workspace, outputs and home may hold together.
    pub(super) workspace_inodes: Option<At<Inodes>>,
    /// Where a fresh workspace is kept. Narrower: `memory`, which leaves nothing on a disk.
    pub(super) workspace_storage: Option<At<Storage>>,
    /// Size of `/tmp`.
    pub(super) tmp_size: Option<At<TmpSize>>,
    /// Files and directories in `/tmp`.
    pub(super) tmp_inodes: Option<At<Inodes>>,
    /// Size of `/dev/shm`.
    pub(super) shm_size: Option<At<TmpSize>>,
    /// How long a session's jail, without processes, is kept for its next work item.
    pub(super) retain: Option<At<Retain>>,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(super) struct ProcessTable {
    /// Processes and threads of the whole jail.
    pub(super) pids: Option<At<Pids>>,
    /// Descriptors per process.
    pub(super) open_files: Option<At<OpenFiles>>,
    /// Time the command may run by the clock.
    pub(super) wall_time: Option<At<WallTime>>,
    /// CPU time per process, rounded up to a whole second.
    pub(super) cpu_time: Option<At<CpuTime>>,
    /// CPUs of the whole jail, to thousandths.
    pub(super) cpus: Option<At<CpuShare>>,
    /// Memory of the whole jail, its memory file systems included.
    pub(super) memory: Option<At<Memory>>,
    /// Swap on top of `memory`.
    pub(super) swap: Option<At<Swap>>,
    /// Largest core dump. Always 0, which also stops piped handlers.
    pub(super) core: Option<At<Core>>,
    /// Niceness added to the worker's. Narrower: higher.
    pub(super) nice: Option<At<Nice>>,
    /// Bytes a second read from and written to each disk.
    pub(super) io_rate: Option<At<IoRate>>,
    /// Bytes of standard output and error together.
    pub(super) output: Option<At<Output>>,
    /// Whether monotonic and boot time start near 0, which hides the host's uptime.
    /// Narrower: `true`.
    pub(super) hide_uptime: Option<At<bool>>,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(super) struct SyscallsTable {
    /// Groups of the system call catalogue that are allowed; `base` is always one of them.
    pub(super) groups: Option<At<Vec<At<String>>>>,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(super) struct EnvironmentTable {
    /// Variables with their values. A child's are added to its parent's.
    #[serde(default)]
    pub(super) set: BTreeMap<At<String>, At<String>>,
    /// Names taken from the caller's environment where they are set.
    pub(super) pass: Option<At<Vec<At<String>>>>,
}
