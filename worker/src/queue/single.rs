//! One work item that was claimed elsewhere (protocol §9.3): no poll and no ack, the heartbeat first.
//!
//! It starts with `NO_HEARTBEAT` like every holder. A second process for the same item gets 412 by
//! that, and ends without stopping it (WRUN-4).

use std::collections::BTreeMap;
use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};

use super::count;
use super::credential::{WorkSecret, decode_secret};
use super::events::emit;
use super::host::{Host, ItemEnd};
use super::item::{self, Shared, ids_of};
use super::shutdown::ShutdownWatch;
use super::wire::work::{WorkItem, WorkKind};

/// A work item as its claimer hands it on.
#[derive(Debug, Clone)]
pub struct ItemRequest {
    pub work: String,
    pub session: String,
    /// The `secret` of the poll's answer, if there was one.
    pub secret: Option<SecretString>,
}

impl ItemRequest {
    /// Whether the item can be served without an environment key (AUTH-4).
    pub fn has_token(&self) -> bool {
        matches!(self.secret(), WorkSecret::Token(_))
    }

    fn secret(&self) -> WorkSecret {
        let secret = self.secret.as_ref();
        secret.map_or(WorkSecret::Absent, |secret| decode_secret(secret.expose_secret()))
    }
}

/// Serves the item; returns how it ended, after the stop.
pub async fn run<H: Host>(
    shared: Arc<Shared<H>>,
    request: ItemRequest,
    shutdown: ShutdownWatch,
) -> ItemEnd {
    let item = WorkItem {
        secret: request.secret(),
        id: request.work,
        kind: WorkKind::Session(request.session),
        metadata: BTreeMap::new(),
        secret_text: None,
        body: SecretString::default(),
    };
    let ids = ids_of(&shared.settings, &item);
    // OBS-1: the span of the item is its claimer's.
    let counted = count::Item::begin();
    let how = item::serve_within(shared, item, shutdown, None).await;
    emit!(info, ids, "work.ended", "work item ended", how = how.label());
    counted.end(how);
    how
}
