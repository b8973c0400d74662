//! How calls, leases, work items and workers end, in the words of the log.

use serde::{Deserialize, Serialize};

/// Why a worker stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopReason {
    /// A signal asked for it, and every session was finished.
    Signal,
    /// The queue was empty and it was started for that long.
    Drained,
    /// It was started for one work item.
    Once,
    /// The deadline for running sessions passed.
    DrainTimeout,
    /// The environment key was refused.
    KeyRejected,
    /// An error that cannot be waited out.
    Error,
}

/// How a tool call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallStatus {
    /// The tool succeeded.
    Ok,
    /// The tool failed.
    Error,
    /// It began, and what it did is not known (INV-9).
    Unknown,
    /// It was ended from outside.
    Cancelled,
}

/// Why a result is not posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NotPosted {
    /// The item belongs to somebody else now.
    LeaseLost,
    /// The control plane refused it for good.
    Rejected,
    /// Every try failed.
    GaveUp,
    /// The session is over.
    SessionEnded,
    /// The worker stops.
    Shutdown,
}

/// How a lost lease became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LeaseLoss {
    /// The control plane said so.
    Server,
    /// No heartbeat got through for as long as a lease lasts.
    Assumed,
}

/// Why a work item ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ItemEnd {
    /// The session had nothing to do for the longest time allowed.
    Idle,
    /// The session is over.
    SessionTerminated,
    /// The control plane asked for it.
    StopRequested,
    /// The lease was lost.
    LeaseLost,
    /// The worker stops.
    Shutdown,
    /// The item is of a kind this worker does not run.
    Skipped,
    /// The jail could not be made.
    JailFailed,
    /// The script that it was handed over to has ended.
    ScriptEnded,
    /// The audit log could not be written.
    AuditFailed,
    /// Anything else.
    Failed,
}
