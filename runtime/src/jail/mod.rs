//! Makes one jail from a [`JailSpec`](crate::spec::JailSpec), proves it, watches it, ends it.
//! Synchronous; the only part of the product with effects on the host.
//!
//! Files by the process that runs them: `client` (control side), `launcher`, `init`, `payload`,
//! `exporter`; `key_reader`, `outside` and `git` confine processes of the worker's. By mechanism: `claim` (ids and run directory), `cgroup`, `idmap`, `disk`, `tree`
//! and `workspace` and `verify` (mounts), `network`, `clock`, `terminal`, `caps`, `rlimits`,
//! `landlock`, `seccomp`, `canary`, `export`, `sweep`. Between processes: `wire`, `message`, `step`,
//! `report`.

mod bound;
mod canary;
mod caps;
mod cgroup;
mod cgroup_door;
mod cgroup_files;
mod claim;
mod client;
mod clock;
mod companion;
mod disk;
mod executor;
mod export;
mod exporter;
mod forward;
mod git;
mod idmap;
mod init;
mod key_reader;
mod landlock;
mod launcher;
mod lifecycle;
mod message;
mod network;
mod outside;
mod outside_group;
mod payload;
mod places;
mod porter;
mod programs;
mod report;
mod rlimits;
pub mod seccomp;
mod step;
mod sweep;
mod terminal;
mod tree;
mod verify;
mod wire;
mod workspace;

pub use bound::{BoundError, inspect};
pub use cgroup::CgroupEvents;
pub use cgroup_door::OutsideDoor;
pub use client::{
    Event, Launcher, become_launcher_if_asked, control_side_directory, control_side_subdirectory,
    drop_to_control_side, rootless_run_directory,
};
pub use export::ExportReport;
pub use git::{GitBounds, confine_git, end_with};
pub use key_reader::{ConfineError, ReaderDomain, confine_key_reader};
pub use message::{End, Failure, LimitHit, Listener, PayloadStatus};
pub use outside::{OutsideConfinement, confine_outside};
pub use programs::{
    Confinement, ExecutorEnds, KeeperSide, PorterEnds, Programs, UnpackConfinement,
};
pub use report::{CanaryResult, EnforcementReport, Got, LayerResult, PlaceReport, Timings};
pub use step::{Step, StepFailure};
pub use sweep::{Sweep, sweep};
pub(crate) use wire::Wire;

use crate::host::{HostFacts, KernelOffers, Level};

/// Looks at the host for jails of `level`, the kernel crates' part included.
///
/// # Errors
/// If `/`, `/etc` or `/proc/self` cannot be read.
pub fn probe_host(level: Level) -> std::io::Result<HostFacts> {
    let offers =
        KernelOffers { landlock_abi: landlock::kernel_abi(), cgroup: cgroup::offer(level) };
    HostFacts::probe(level, offers)
}
