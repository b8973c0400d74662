//! The ends of jails: each is a task that is counted until its receipt is written, so that the next jail
//! of a session finds what the last one leaves, and the worker waits for all of them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use stockade_runtime::audit::{Event, Ids as AuditIds, Kept, List, Text};
use stockade_runtime::jail::End;
use stockade_runtime::session::Session;
use stockade_runtime::spec::BoundRequest;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Idle, Jails};

/// One disposal, counted until it ends, however it ends.
pub(super) struct Disposal {
    jails: Arc<Jails>,
    ids: AuditIds,
}

impl Disposal {
    pub fn of(jails: &Arc<Jails>, ids: &AuditIds) -> Disposal {
        jails.disposals.send_modify(|all| *all.entry(session_of(ids)).or_default() += 1);
        Disposal { jails: Arc::clone(jails), ids: ids.clone() }
    }

    /// In a task of its own: whoever waits for it may stop waiting, and it is finished all the same.
    pub fn begin(self, session: Session) -> JoinHandle<()> {
        tokio::spawn(async move { self.jails.end_of(&self.ids, session).await })
    }
}

impl Drop for Disposal {
    fn drop(&mut self) {
        self.jails.disposals.send_modify(|all| {
            if let Entry::Occupied(mut count) = all.entry(session_of(&self.ids)) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        });
    }
}

pub(super) fn session_of(ids: &AuditIds) -> String {
    ids.session.as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default()
}

impl Jails {
    /// Disposes of a jail for which nobody waits any more.
    pub fn abandon(self: &Arc<Self>, ids: &AuditIds, session: Session) {
        drop(Disposal::of(self, ids).begin(session));
    }

    /// Waits until no jail of `session` is being disposed of; of any session if that is `None`.
    pub(super) async fn settle(&self, session: Option<&str>) {
        let over = |all: &BTreeMap<String, usize>| match session {
            Some(session) => !all.contains_key(session),
            None => all.is_empty(),
        };
        // An error means that there is no sender, and we have it.
        drop(self.disposals.subscribe().wait_for(over).await);
    }

    /// Ends the jail and records the receipt. If it is dropped, that goes on.
    pub async fn dispose(self: &Arc<Self>, ids: &AuditIds, session: Session) {
        // An error would be a panic, which has ended the process.
        let _done = Disposal::of(self, ids).begin(session).await;
    }

    async fn end_of(&self, ids: &AuditIds, session: Session) {
        let jail = session.report().jail.clone();
        match session.end().await {
            Ok(end) => self.receipt(ids, &jail, &end),
            Err(error) => {
                let session_id = ids.session.as_ref().map(|id| id.as_str());
                tracing::error!(
                    event = "jail.launcher_gone",
                    session_id,
                    jail,
                    error = %error,
                    "the launcher is gone"
                );
                self.repair.store(true, Ordering::Relaxed);
                self.launcher_lives();
                let left = List::of([format!("{jail}: until the next jail or sweep")]);
                let event = Event::SessionDisposed {
                    removed: List::of(Vec::<String>::new()),
                    kept: Vec::new(),
                    files: None,
                    bytes: None,
                    left,
                };
                self.record.write(ids, &event);
            }
        }
    }

    fn receipt(&self, ids: &AuditIds, jail: &str, end: &End) {
        let template = &self.template;
        let place = |what: &str, found: &Option<BoundRequest>| {
            found
                .as_ref()
                .map(|found| Kept { what: what.into(), path: Text::of(&found.source.display()) })
        };
        let kept = [place("workdir", &template.workdir), place("outputs", &template.outputs)];
        let lost: u64 = end.exports.iter().map(|export| export.failed).sum();
        tracing::info!(
            event = "jail.ended",
            session_id = ids.session.as_ref().map(|id| id.as_str()),
            jail,
            memory_peak = end.memory_peak,
            exported = end.exports.iter().map(|export| export.written).sum::<u64>(),
            not_exported = lost,
            teardown_us = end.teardown_us,
            "jail ended"
        );
        for export in end.exports.iter().filter(|export| export.skipped > 0) {
            tracing::warn!(
                event = "jail.not_exported",
                jail,
                session_id = ids.session.as_ref().map(|id| id.as_str()),
                skipped = export.skipped,
                "entries were not copied back"
            );
        }
        let event = Event::SessionDisposed {
            removed: List::of(["processes", "mounts", "cgroup", "ids", "workspace"]),
            kept: kept.into_iter().flatten().collect(),
            files: None,
            bytes: None,
            left: List::of(&end.left),
        };
        self.record.write(ids, &event);
    }

    /// Begins to end kept jails whose time is over.
    pub(super) fn expire(self: &Arc<Self>) {
        let now = Instant::now();
        self.end_kept(|idle| idle.until <= now);
    }

    /// Ends all kept jails, and waits until every jail is disposed of that was to be.
    pub async fn expire_all(self: &Arc<Self>) {
        self.end_kept(|_| true);
        self.settle(None).await;
    }

    fn end_kept(self: &Arc<Self>, over: impl Fn(&Idle) -> bool) {
        let mut kept = self.kept();
        for (_, idle) in kept.extract_if(|_, idle| over(idle)) {
            drop(Disposal::of(self, &idle.ids).begin(idle.session));
        }
    }
}
