//! Log events of the queue (OBS-5), and what the daemon is told (audit, metrics, the human log).
//!
//! Every log event has a stable `event` name and the ids that are known; never content (INV-12),
//! never a credential (AUTH-8).

use super::host::ItemEnd;

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
pub enum Progress<'a> {
    /// Before the ack.
    Claimed,
    /// The item is ours.
    Acked,
    /// An earlier worker was interrupted in this call; it is not run.
    CallUnknown { call: &'a str },
    /// A result is on the server.
    Posted { call: &'a str },
    /// A result is not on the server; `for_good`: it was refused and is not posted again.
    PostFailed { call: &'a str, for_good: bool },
    /// A call was dealt with, whether it was ours or not, ran or not (MEM-30).
    Dispatched,
    /// After teardown, before the stop.
    Ended { how: ItemEnd },
}
