//! What our processes tell each other. All of it is plain data of bounded size (see `wire`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::spec::{Area, JailSpec};

use super::cgroup::CgroupEvents;
use super::export::ExportReport;
use super::report::{CanaryResult, EnforcementReport, LayerResult};
use super::step::StepFailure;
use super::workspace::ExportOrder;

/// Control side to launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToLauncher {
    /// Make this jail. Comes once and first, with standard input, output and error of the payload
    /// (none if it gets a terminal), or for a session with the ends of the executor's connection and, if
    /// there is one, of the porter's.
    Start {
        /// The plan.
        spec: Box<JailSpec>,
        /// Where rootless jails keep run-time files.
        run_directory: PathBuf,
        /// Whether to look first for what a killed worker left.
        repair: bool,
    },
    /// Make another jail in a launcher process of its own. With its end of a connection.
    Another,
    /// Files that the control side may have opened again after it has given up its rights. Comes once
    /// and before that.
    Keep {
        /// Absolute paths on the host.
        files: Vec<PathBuf>,
    },
    /// Open one of these files, as it is now.
    Reopen {
        /// Its place in the list.
        index: usize,
    },
    /// Send this signal to the payload's process group.
    Signal(i32),
    /// The payload printed more than its limit: end it.
    OutputLimit,
    /// Say what the limits have counted so far.
    Usage {
        /// Those of tools on the host, and not those of the jail.
        outside: bool,
    },
    /// Make listeners on these further ports of the jail's network namespace.
    Listen {
        /// At most [`PORTS_MAX`](crate::spec::EgressPlan::PORTS_MAX).
        ports: Vec<u16>,
    },
    /// End the jail: a session is over.
    End,
}

/// A socket in the jail's network namespace that the broker serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listener {
    /// Questions to the resolver, as datagrams.
    Questions,
    /// Questions to the resolver, by connection.
    LongQuestions,
    /// Connections to this port.
    Port(u16),
}

/// Launcher to control side.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToControl {
    /// The answer to [`ToLauncher::Reopen`]: with the file, or the number of an error.
    Reopened(Option<i32>),
    /// Some of the jail's listeners, each with its descriptor. Comes before `Running` as often as
    /// needed, and after a request for more.
    Listening(Vec<Listener>),
    /// The answer to [`ToLauncher::Listen`], after the listeners: what was refused, if anything.
    Listened(Option<StepFailure>),
    /// The way into the cgroup of tools on the host, as descriptors. Comes before `Running`, if there is
    /// one.
    Outside,
    /// Every layer is on, the canary passed, the command is being run. With the terminal's main
    /// end if there is one.
    Running(Box<EnforcementReport>),
    /// No payload ran; everything made so far has been removed.
    Failed(Failure),
    /// The answer to [`ToLauncher::Usage`].
    Usage(CgroupEvents),
    /// The payload ended; everything has been removed.
    Ended(End),
}

/// Why no payload ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A step did not succeed.
    #[error("{failure}")]
    Step {
        /// Which one and why.
        failure: StepFailure,
        /// What could not be removed afterwards.
        left: Vec<String>,
    },
    /// A forbidden act succeeded, or was refused in an unexpected way.
    #[error("cannot trust the jail: the canary failed: {}", canary_text(results))]
    Canary {
        /// All acts.
        results: Vec<CanaryResult>,
        /// What could not be removed afterwards.
        left: Vec<String>,
    },
    /// The command cannot be run.
    #[error("cannot run `{command}`")]
    Command {
        /// As given.
        command: String,
        /// Error number of the last attempt.
        errno: i32,
        /// What could not be removed afterwards.
        left: Vec<String>,
    },
}

fn canary_text(results: &[CanaryResult]) -> String {
    let failed: Vec<_> = results
        .iter()
        .filter(|result| !result.ok)
        .map(|result| {
            format!(
                "{} ({}: wanted {}, got {})",
                result.act, result.layer, result.expected, result.got
            )
        })
        .collect();
    failed.join("; ")
}

/// How the payload's first process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PayloadStatus {
    /// It returned this status.
    Exited(i32),
    /// This signal killed it.
    Signaled(i32),
}

impl PayloadStatus {
    /// The status a shell would show.
    pub fn code(self) -> i32 {
        match self {
            PayloadStatus::Exited(code) => code,
            PayloadStatus::Signaled(signal) => 128 + signal,
        }
    }
}

/// A limit that took effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitHit {
    /// The wall clock ran out.
    WallTime {
        /// The limit.
        milliseconds: u64,
    },
    /// Memory ran out.
    Memory {
        /// The limit.
        bytes: u64,
        /// Processes killed.
        kills: u64,
    },
    /// Forks were refused.
    Processes {
        /// The limit.
        max: u32,
        /// How often.
        refused: u64,
    },
    /// A place is full.
    Bytes {
        /// Where, as the payload sees it.
        place: String,
        /// What it is.
        area: Area,
        /// The limit.
        bytes: u64,
    },
    /// A place has no inode left.
    Inodes {
        /// Where, as the payload sees it.
        place: String,
        /// What it is.
        area: Area,
        /// The limit.
        inodes: u64,
    },
    /// Too much was printed.
    Output {
        /// The limit.
        bytes: u64,
    },
    /// A process used up its CPU time.
    CpuTime {
        /// The limit.
        seconds: u64,
    },
}

/// How a jail ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Of the payload's first process.
    pub status: PayloadStatus,
    /// Limits that took effect, the deciding one first.
    pub limits: Vec<LimitHit>,
    /// Microseconds from the command's start to its end.
    pub wall_us: u64,
    /// Microseconds of CPU time of all processes that were waited for.
    pub cpu_us: u64,
    /// Most bytes of memory at once, 0 where no cgroup counts them.
    pub memory_peak: u64,
    /// What was copied back to bound directories.
    pub exports: Vec<ExportReport>,
    /// What could not be removed; empty is the rule.
    pub left: Vec<String>,
    /// Microseconds from the payload's end to everything being gone.
    pub teardown_us: u64,
}

/// Launcher to init, once and with descriptors: the net namespace if there is one, then the cgroup's
/// door.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Equipment {
    /// Whether the first descriptor is a net namespace.
    pub net: bool,
}

/// Init to launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromInit {
    /// The payload is about to run. With a pidfd of it, then the terminal if there is one, then
    /// the mounts of the exports.
    Running {
        layers: Vec<LayerResult>,
        canary: Vec<CanaryResult>,
        filter_digest: String,
        exports: Vec<ExportOrder>,
        tree_us: u64,
        built_us: u64,
    },
    /// A step failed; init is about to exit.
    Failed(StepFailure),
    /// A required layer or the canary did not hold; init is about to exit.
    Distrusted(Vec<CanaryResult>),
    /// The command cannot be run; init is about to exit.
    NotRunnable(i32),
    /// The payload's first process ended.
    Ended { status: PayloadStatus, full: Vec<LimitHit>, cpu_us: u64 },
}

/// Payload to init, before it becomes the command. The end of the connection without
/// `NotRunnable` means that it did.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromPayload {
    /// It is in its own namespaces; its ids can be mapped.
    Separate,
    /// All layers are on.
    Ready { layers: Vec<LayerResult>, canary: Vec<CanaryResult> },
    /// A step failed.
    Failed(StepFailure),
    /// The canary did not get the refusals it must get.
    Distrusted(Vec<CanaryResult>),
    /// exec failed with this error number.
    NotRunnable(i32),
}

/// Turns counted events into the limits they stand for.
pub(crate) fn limits_from(spec: &JailSpec, events: CgroupEvents) -> Vec<LimitHit> {
    let mut hits = Vec::new();
    if events.oom_kills > 0 {
        let bytes = spec.cgroup.memory_bytes_max;
        hits.push(LimitHit::Memory { bytes, kills: events.oom_kills });
    }
    if events.forks_refused > 0 {
        let max = spec.cgroup.pids_max;
        hits.push(LimitHit::Processes { max, refused: events.forks_refused });
    }
    hits
}
