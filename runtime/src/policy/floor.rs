//! Turns the shipped `base` policy into the starting point of every root policy.
//!
//! Pure. `base` is the one file in which nothing may be missing: there is no policy beneath it.

use super::bounded::Quantity;
use super::error::PolicyError;
use super::file::{At, PolicyFile};
use super::model::{
    Environment, Filesystem, ListOrigins, Origin, Policy, Process, Require, Root, Setting, Syscalls,
};
use super::network;
use super::parse::Source;
use super::stage;

/// The policy that `base` alone means.
///
/// Its lists of paths, relaxations and variables are taken as empty; `narrow.rs` lays them over
/// the result together with everything else.
///
/// # Errors
/// [`PolicyError::MissingKey`] if `base` leaves a key out.
pub(super) fn floor(source: &Source, file: &PolicyFile) -> Result<Policy, PolicyError> {
    let f = Floor { source };
    let (require, files, process) = (&file.require, &file.filesystem, &file.process);
    Ok(Policy {
        name: source.stem(),
        sources: Vec::new(),
        require: Require {
            level: f.setting("require.level", &require.level, |level| *level)?,
            landlock_abi: f
                .setting("require.landlock_abi", &require.landlock_abi, |n| n.get() as u8)?,
            cgroup: f.setting("require.cgroup", &require.cgroup, |on| *on)?,
            relax: Vec::new(),
        },
        filesystem: Filesystem {
            root: f.setting("filesystem.root", &files.root, |_| Root::Host)?,
            read_only: Vec::new(),
            writable: Vec::new(),
            workspace_size: f.quantity("filesystem.workspace_size", &files.workspace_size)?,
            workspace_inodes: f.quantity("filesystem.workspace_inodes", &files.workspace_inodes)?,
            workspace_storage: f.setting(
                "filesystem.workspace_storage",
                &files.workspace_storage,
                |kind| *kind,
            )?,
            tmp_size: f.quantity("filesystem.tmp_size", &files.tmp_size)?,
            tmp_inodes: f.quantity("filesystem.tmp_inodes", &files.tmp_inodes)?,
            shm_size: f.quantity("filesystem.shm_size", &files.shm_size)?,
            retain: f.quantity("filesystem.retain", &files.retain)?,
        },
        process: Process {
            pids: f.setting("process.pids", &process.pids, |n| n.get() as u32)?,
            open_files: f.setting("process.open_files", &process.open_files, |n| n.get() as u32)?,
            wall_time: f.quantity("process.wall_time", &process.wall_time)?,
            cpu_time: f.quantity("process.cpu_time", &process.cpu_time)?,
            cpu_milli: f.quantity("process.cpus", &process.cpus)?,
            memory: f.quantity("process.memory", &process.memory)?,
            swap: f.quantity("process.swap", &process.swap)?,
            core: f.quantity("process.core", &process.core)?,
            nice: f.setting("process.nice", &process.nice, |n| n.get() as u8)?,
            io_rate: f.quantity("process.io_rate", &process.io_rate)?,
            output: f.quantity("process.output", &process.output)?,
            hide_uptime: f.setting("process.hide_uptime", &process.hide_uptime, |on| *on)?,
        },
        syscalls: Syscalls { groups: Vec::new() },
        network: network::floor(source, &file.network)?,
        stage: stage::floor(source, &file.stage)?,
        environment: Environment { set: Default::default(), pass: Vec::new() },
        lists: ListOrigins {
            relax: f.list("require.relax", &file.require.relax)?,
            read_only: f.list("filesystem.read_only", &files.read_only)?,
            writable: f.list("filesystem.writable", &files.writable)?,
            groups: f.list("syscalls.groups", &file.syscalls.groups)?,
            pass: f.list("environment.pass", &file.environment.pass)?,
        },
    })
}

/// The file that `base` is.
pub(super) struct Floor<'a> {
    pub(super) source: &'a Source,
}

impl Floor<'_> {
    fn written<'w, W>(&self, key: &str, at: &'w Option<At<W>>) -> Result<&'w At<W>, PolicyError> {
        at.as_ref().ok_or_else(|| PolicyError::MissingKey {
            at: self.source.origin(0..0),
            key: key.to_owned(),
        })
    }

    /// What the file writes for `key`, which it must.
    pub(super) fn setting<W, T>(
        &self,
        key: &str,
        at: &Option<At<W>>,
        value: impl Fn(&W) -> T,
    ) -> Result<Setting<T>, PolicyError> {
        let at = self.written(key, at)?;
        Ok(Setting { value: value(at.get()), origin: self.source.origin(at.span()) })
    }

    fn quantity<Q: Quantity>(
        &self,
        key: &str,
        at: &Option<At<Q>>,
    ) -> Result<Setting<Q::Value>, PolicyError> {
        self.setting(key, at, Q::get)
    }

    fn list<T>(&self, key: &str, at: &Option<At<Vec<T>>>) -> Result<Origin, PolicyError> {
        Ok(self.source.origin(self.written(key, at)?.span()))
    }
}
