//! A jail while it is being furnished: skills, staged files, memory.
//!
//! That takes time, and the item may end in the middle of it (SKILL-12): what waits is then simply
//! dropped. A session that is dropped ends its jail, but nobody would write its receipt; this guard has
//! it disposed of as every other jail is.

use std::sync::Arc;

use stockade_runtime::audit::Ids as AuditIds;
use stockade_runtime::session::Session;

use super::jails::Jails;

/// A session that nobody runs tools in yet.
pub struct Held {
    jails: Arc<Jails>,
    ids: AuditIds,
    session: Option<Session>,
}

impl Held {
    /// Of a jail that has just been opened.
    pub fn new(jails: &Arc<Jails>, ids: &AuditIds, session: Session) -> Held {
        Held { jails: Arc::clone(jails), ids: ids.clone(), session: Some(session) }
    }

    /// The session.
    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// It is furnished: whoever takes it ends it.
    pub fn take(mut self) -> Option<Session> {
        self.session.take()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.jails.abandon(&self.ids, session);
        }
    }
}
