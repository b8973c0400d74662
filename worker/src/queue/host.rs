//! The boundary to the daemon: what the queue needs from the product around it.
//!
//! All methods return `impl Future + Send`; an implementation writes `async fn`.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use super::api::ItemApi;
use super::events::{Ids, Progress};
use super::gate::Owner;
use super::lease::LeaseEnd;
use super::wire::event::{Call, CallKind};
use super::wire::outcome::CallOutcome;
use super::wire::session::Session;

pub use tokio_util::sync::CancellationToken as CancelToken;

/// Names of the toolset `agent_toolset_20260401` that a worker serves (protocol §6).
pub const TOOLSET: [&str; 6] = ["bash", "read", "write", "edit", "glob", "grep"];

/// The tools of one session.
pub trait SessionTools: Send + 'static {
    /// Which calls are ours (RUN-15, RUN-16); asked once per session, so it must not change.
    fn owner(&self) -> Owner;

    /// How long this call may take by itself, where that is known: the outer limit then leaves it
    /// that time, within its own maximum (RUN-17).
    fn limit(&self, _call: &Call) -> Option<Duration> {
        None
    }

    /// What the tool of this call does, in the operator's words; for traces (OBS-2).
    fn description(&self, _call: &Call) -> Option<&str> {
        None
    }

    /// Runs one call. When `stop` fires it must end at once; what it returns then may be discarded.
    /// It is dropped if it has not returned a few seconds after that.
    fn run(&mut self, call: &Call, stop: CancelToken) -> impl Future<Output = CallOutcome> + Send;
}

/// Everything known when the tools of a session are to be made.
pub struct Opening<'a> {
    pub ids: &'a Ids,
    pub session: &'a Session,
    /// Of the work item, as the poll handed it out (AUTH-13).
    pub work_metadata: &'a BTreeMap<String, String>,
    /// Speaks for the work item (AUTH-5): skills and memory. Cheap to clone.
    pub api: &'a ItemApi,
}

/// Tools that could not be made. Nothing of the session runs.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{for_log}")]
pub struct OpenError {
    /// Posted as the result of every call of ours; names the phase.
    pub for_model: String,
    /// For the operator.
    pub for_log: String,
}

/// How a work item ended (LEASE-14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ItemEnd {
    /// The session was idle for long enough.
    Idle,
    /// The session ended, or had ended before.
    SessionEnded,
    /// The control plane asked for the end; what ran has finished.
    StopRequested,
    /// The lease ended: what ran was killed.
    Lease(LeaseEnd),
    /// Shutdown of the worker.
    Drained,
    /// Shutdown at once.
    Cancelled,
    /// The event stream was refused for good (RUN-11).
    StreamRefused,
    /// A call or a list grew beyond its bound.
    TooMuch,
    /// The tools could not be opened; calls were answered with an error.
    OpenFailed,
    /// The session could not be fetched, or another worker of this host serves it.
    Failed,
    /// Not a session (POLL-13).
    NotASession,
    /// No credential at all (AUTH-4).
    NoCredential,
    /// A program of the operator's had it, and has ended (ONWORK-5).
    HandedBack,
    /// That program could not be started.
    NotHandedOver,
}

impl ItemEnd {
    /// A word for log events.
    pub fn label(self) -> &'static str {
        match self {
            ItemEnd::Idle => "idle",
            ItemEnd::SessionEnded => "session ended",
            ItemEnd::StopRequested => "stop requested",
            ItemEnd::Lease(LeaseEnd::Lost) => "lease lost",
            ItemEnd::Lease(LeaseEnd::AssumedLost) => "lease assumed lost",
            ItemEnd::Lease(_) => "lease ended",
            ItemEnd::Drained => "shutdown",
            ItemEnd::Cancelled => "cancelled",
            ItemEnd::StreamRefused => "event stream refused",
            ItemEnd::TooMuch => "too much",
            ItemEnd::OpenFailed => "no jail",
            ItemEnd::Failed => "failed",
            ItemEnd::NotASession => "not a session",
            ItemEnd::NoCredential => "no credential",
            ItemEnd::HandedBack => "script ended",
            ItemEnd::NotHandedOver => "script not started",
        }
    }

    /// Whether the item must be handed back: always, unless it is somebody else's (LEASE-12,
    /// LEASE-13) or nothing can speak for it (AUTH-4).
    pub fn stops(self) -> bool {
        match self {
            ItemEnd::Lease(end) => !end.is_lost(),
            ItemEnd::NoCredential => false,
            _ => true,
        }
    }
}

/// The product around the queue.
pub trait Host: Send + Sync + 'static {
    /// See [`SessionTools`].
    type Tools: SessionTools;
    /// One free slot; freed when it is dropped.
    type Permit: Send + 'static;

    /// Which calls are ours in a session whose tools could not be opened: they are answered with
    /// the reason.
    fn owner(&self) -> Owner {
        Box::new(|name, kind| kind == CallKind::Builtin && TOOLSET.contains(&name))
    }

    /// Waits for a free slot; called before each poll that may claim (POLL-3). Safe to drop.
    fn admit(&self) -> impl Future<Output = Self::Permit> + Send;

    /// Makes the tools of a session; may take long, heartbeats go on. Dropped if the item ends
    /// meanwhile, so whatever it started must end when it is dropped.
    fn open(
        &self,
        opening: Opening<'_>,
    ) -> impl Future<Output = Result<Self::Tools, OpenError>> + Send;

    /// Takes everything down again; heartbeats go on until it returns (LEASE-11). The host bounds
    /// it.
    fn close(&self, tools: Self::Tools, how: ItemEnd) -> impl Future<Output = ()> + Send;

    /// Hears how far items and calls are; returns before the effect takes place where [`Progress`] says so.
    fn observe(&self, ids: &Ids, progress: &Progress<'_>);
}
