//! Work items that somebody else serves: handed over after the ack, handed back when they are done.
//!
//! Nothing here beats: whoever has the item does, and an earlier beat of ours would take it away.

use std::sync::Arc;

use secrecy::SecretString;

use super::api::ItemApi;
use super::credential::Credential;
use super::events::{Ids, Progress};
use super::host::{Host, ItemEnd};
use super::item::{self, Shared, Stop, ids_of};
use super::shutdown::ShutdownWatch;
use super::transport::BoxFuture;
use super::wire::work::{WorkItem, WorkKind};

/// A work item that was claimed and acked.
#[derive(Debug)]
pub struct HandedOver {
    pub ids: Ids,
    /// The item's `secret` as it was sent, if it has one.
    pub secret: Option<SecretString>,
}

/// What has come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandOverEnd {
    /// It is done with (POLL-10).
    Ended,
    /// The session goes on elsewhere; the stop is not ours.
    Detached,
}

/// Whoever serves items.
pub trait Handler: Send + Sync + 'static {
    /// Returns when the item is done with.
    fn hand_over(&self, work: HandedOver, shutdown: ShutdownWatch) -> BoxFuture<'_, HandOverEnd>;
}

/// Has an item that was acked served by `handler`; returns after the stop.
pub async fn serve<H: Host>(
    shared: Arc<Shared<H>>,
    handler: Arc<dyn Handler>,
    item: WorkItem,
    shutdown: ShutdownWatch,
) -> ItemEnd {
    let Some(key) = shared.key.clone().filter(|_| matches!(item.kind, WorkKind::Session(_))) else {
        // POLL-13: stopped as always.
        return item::serve(shared, item, shutdown).await;
    };
    let ids = ids_of(&shared.settings, &item);
    let api = ItemApi {
        client: shared.client.clone(),
        credential: Credential::Environment(key),
        environment: ids.environment.as_str().into(),
        work: ids.work.as_str().into(),
    };
    let work = HandedOver { ids: ids.clone(), secret: item.secret_text };
    let end = handler.hand_over(work, shutdown.clone()).await;
    let how = ItemEnd::HandedBack;
    shared.host.observe(&ids, &Progress::Ended { how });
    if end == HandOverEnd::Ended {
        item::stop(&api, &ids, Stop::Ask, shutdown).await;
    }
    how
}
