//! What the daemon writes to the audit log. A record that cannot be written stops the work: nothing
//! more is started, and the worker drains.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stockade_runtime::audit::{
    AuditLog, CallStatus, Event, Fingerprint, Ids as AuditIds, ItemEnd as AuditEnd, LeaseLoss,
    NotPosted,
};

use crate::queue::{Ids, ItemEnd, LeaseEnd, Progress, Shutdown};

/// The audit log, as the whole daemon uses it.
#[derive(Debug)]
pub struct Record {
    log: Arc<AuditLog>,
    shutdown: Arc<Shutdown>,
    failed: AtomicBool,
}

impl Record {
    /// Records to `log`; drains by `shutdown` when that fails.
    pub fn new(log: AuditLog, shutdown: Arc<Shutdown>) -> Record {
        Record { log: Arc::new(log), shutdown, failed: AtomicBool::new(false) }
    }

    /// Writes one event. Returns whether it is in the log: the effect must not happen otherwise.
    pub fn write(&self, ids: &AuditIds, event: &Event) -> bool {
        match self.log.append(ids, event) {
            Ok(_) => true,
            Err(error) => {
                if !self.failed.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        event = "audit.failed",
                        error = %error,
                        "the audit log cannot be written: nothing more is started"
                    );
                }
                self.shutdown.drain();
                false
            }
        }
    }

    /// Whether a record was lost.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Has what was written put on the disk, without waiting for it.
    pub fn sync_soon(&self) {
        let log = Arc::clone(&self.log);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = log.sync() {
                tracing::warn!(event = "audit.sync_failed", error = %error, "audit log not on disk");
            }
        });
    }

    /// Records what the queue reports.
    pub fn observe(&self, ids: &Ids, progress: &Progress<'_>) {
        let about = audit_ids(ids);
        let written = match progress {
            Progress::Claimed => {
                let kind = if ids.session.is_empty() { "other" } else { "session" };
                let written = self.write(&about, &Event::ItemClaimed { kind: kind.into() });
                self.sync_soon();
                written
            }
            Progress::Acked => self.write(&about, &Event::ItemAcked {}),
            Progress::CallUnknown { call } => self.write(
                &about.with_tool_call(call),
                &Event::CallEnded {
                    status: CallStatus::Unknown,
                    output: Fingerprint::of(b""),
                    duration_us: 0,
                    truncated: false,
                    timed_out: false,
                },
            ),
            Progress::Posted { call } => {
                self.write(&about.with_tool_call(call), &Event::CallPosted {})
            }
            Progress::PostFailed { call, for_good } => {
                let reason = if *for_good { NotPosted::Rejected } else { NotPosted::GaveUp };
                self.write(&about.with_tool_call(call), &Event::CallNotPosted { reason })
            }
            Progress::Dispatched => true,
            Progress::Ended { how } => {
                if let Some(cause) = loss(*how) {
                    self.write(&about, &Event::LeaseLost { cause });
                }
                let reason = if self.has_failed() { AuditEnd::AuditFailed } else { end(*how) };
                let written = self.write(&about, &Event::ItemEnded { reason });
                self.sync_soon();
                written
            }
        };
        // A failure is remembered, and acted upon where a call or a jail would start.
        debug_assert!(written || self.has_failed());
    }
}

/// The queue's ids as the log writes them.
pub fn audit_ids(ids: &Ids) -> AuditIds {
    let known = |id: &str| (!id.is_empty()).then(|| id.into());
    AuditIds {
        environment: known(&ids.environment),
        work: known(&ids.work),
        session: known(&ids.session),
        tool_call: None,
    }
}

fn loss(how: ItemEnd) -> Option<LeaseLoss> {
    match how {
        ItemEnd::Lease(LeaseEnd::Lost) => Some(LeaseLoss::Server),
        ItemEnd::Lease(LeaseEnd::AssumedLost) => Some(LeaseLoss::Assumed),
        _ => None,
    }
}

fn end(how: ItemEnd) -> AuditEnd {
    match how {
        ItemEnd::Idle => AuditEnd::Idle,
        ItemEnd::SessionEnded => AuditEnd::SessionTerminated,
        ItemEnd::StopRequested => AuditEnd::StopRequested,
        ItemEnd::Lease(end) if end.is_lost() => AuditEnd::LeaseLost,
        ItemEnd::Lease(_) => AuditEnd::StopRequested,
        ItemEnd::Drained | ItemEnd::Cancelled => AuditEnd::Shutdown,
        ItemEnd::NotASession => AuditEnd::Skipped,
        ItemEnd::OpenFailed => AuditEnd::JailFailed,
        ItemEnd::HandedBack => AuditEnd::ScriptEnded,
        _ => AuditEnd::Failed,
    }
}
