//! Log events of the queue (OBS-5), and what the daemon is told (audit, metrics, the human log).
//!
//! Every log event has a stable `event` name and the ids that are known; never content (INV-12),
//! never a credential (AUTH-8).

use std::time::Duration;

use super::host::ItemEnd;
use super::wire::event::CallKind;

/// What a log event or a progress report is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ids {
    pub environment: String,
    pub work: String,
    pub session: String,
}

/// `emit!(level, ids, "event.name", "text", field = value …)`
macro_rules! emit {
    ($level:ident, $ids:expr, $event:literal, $text:literal $(, $($field:tt)+)?) => {
        tracing::$level!(
            event = $event,
            environment_id = %$ids.environment,
            work_id = %$ids.work,
            session_id = %$ids.session,
            $($($field)+,)?
            $text
        )
    };
}
pub(super) use emit;

/// Told to [`super::host::Host::observe`] before the effect where it says so, otherwise after.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// A poll was answered; whether with work.
    Polled {
        work: bool,
    },
    /// A poll failed.
    PollFailed {
        failures: u32,
    },
    /// Before the ack.
    Claimed,
    AckFailed {
        fatal: bool,
    },
    /// The item is ours.
    Acked,
    /// Before the tools are opened.
    Opening,
    /// The tools could not be opened; calls are answered with an error.
    OpenFailed,
    Attached {
        reconnects: u32,
    },
    Disconnected,
    Held {
        call: &'a str,
        tool: &'a str,
    },
    Denied {
        call: &'a str,
    },
    NotOwned {
        call: &'a str,
        tool: &'a str,
    },
    /// Before the call runs.
    CallStarting {
        call: &'a str,
        kind: CallKind,
        tool: &'a str,
        thread: Option<&'a str>,
        input_bytes: usize,
        input_sha256: &'a str,
    },
    CallEnded {
        call: &'a str,
        tool: &'a str,
        is_error: bool,
        timed_out: bool,
        took: Duration,
    },
    /// An earlier worker was interrupted in this call; it is not run.
    CallUnknown {
        call: &'a str,
        tool: &'a str,
    },
    /// Before a result is posted.
    Posting {
        call: &'a str,
        body_bytes: usize,
        body_sha256: &'a str,
    },
    Posted {
        call: &'a str,
        attempts: u32,
    },
    PostFailed {
        call: &'a str,
        attempts: u32,
        for_good: bool,
    },
    /// After teardown, before the stop.
    Ended {
        how: ItemEnd,
    },
    /// The item was handed back, or that failed.
    Stopped {
        done: bool,
    },
}
