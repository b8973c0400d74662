//! One work item that was claimed elsewhere (protocol §9.3): no poll and no ack, the heartbeat first.
//!
//! It starts with `NO_HEARTBEAT` like every holder. A second process for the same item gets 412 by
//! that, and ends without stopping it (WRUN-4).

use std::collections::BTreeMap;
use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};

use super::credential::{WorkSecret, decode_secret};
use super::host::{Host, ItemEnd};
use super::item::{self, Shared};
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

/// Serves the item; returns how it ended, after the stop.
pub async fn run<H: Host>(
    shared: Arc<Shared<H>>,
    request: ItemRequest,
    shutdown: ShutdownWatch,
) -> ItemEnd {
    let secret = request.secret.as_ref();
    let secret = secret.map_or(WorkSecret::Absent, |text| decode_secret(text.expose_secret()));
    let item = WorkItem {
        id: request.work,
        kind: WorkKind::Session(request.session),
        metadata: BTreeMap::new(),
        secret,
        secret_text: None,
    };
    item::serve(shared, item, shutdown).await
}
