//! Work items that a program of the operator's serves (protocol §9.2): handed over after the ack, and
//! handed back when the program has ended.
//!
//! Nothing here beats: the program does, and an earlier beat of ours would take the item from it
//! (ONWORK-6). So nothing here knows how its lease is either, which decides about the stop (RACE-22).

use std::sync::Arc;

use secrecy::SecretString;
use tokio::time::Instant;

use super::api::ItemApi;
use super::credential::Credential;
use super::events::{Ids, Progress, emit};
use super::host::{Host, ItemEnd};
use super::item::{self, Shared, Stop, ids_of};
use super::shutdown::ShutdownWatch;
use super::transport::BoxFuture;
use super::wire::work::{WorkItem, WorkKind};

/// A work item on its way to the program.
#[derive(Debug)]
pub struct HandedOver {
    pub ids: Ids,
    /// The answer to the poll, byte for byte; it has the secret in it (ONWORK-3).
    pub body: SecretString,
    /// The item's `secret` as it was sent, if it has one (ONWORK-2).
    pub secret: Option<SecretString>,
}

/// What has come of a hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandOverEnd {
    /// The program has ended, and the session with it.
    Ended,
    /// The program has ended; the session goes on elsewhere.
    Detached,
    /// It could not be started: nobody has the item.
    NotStarted,
}

/// Starts the program.
pub trait Handler: Send + Sync + 'static {
    /// Returns when the program has ended. At the first level of `shutdown` it is asked to end, and
    /// is killed after a while; the handler bounds that (ONWORK-9).
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
        // ONWORK-1: skipped and stopped as always.
        return item::serve(shared, item, shutdown).await;
    };
    let ids = ids_of(&shared.settings, &item);
    let api = ItemApi {
        client: shared.client.clone(),
        credential: Credential::Environment(key),
        environment: ids.environment.as_str().into(),
        work: ids.work.as_str().into(),
    };
    let began = Instant::now();
    let work = HandedOver { ids: ids.clone(), body: item.body, secret: item.secret_text };
    let end = handler.hand_over(work, shutdown.clone()).await;
    let how = match end {
        HandOverEnd::NotStarted => ItemEnd::NotHandedOver,
        HandOverEnd::Ended | HandOverEnd::Detached => ItemEnd::HandedBack,
    };
    shared.host.observe(&ids, &Progress::Ended { how });
    let took = began.elapsed();
    match end {
        // The lease runs out, and the item goes to a worker that can serve it.
        HandOverEnd::NotStarted => {
            emit!(warn, ids, "work.not_handed_over", "nobody serves the item; its lease runs out");
        }
        HandOverEnd::Detached => {
            emit!(info, ids, "work.detached", "the session goes on without this worker");
        }
        // RACE-22: by now it may be somebody else's.
        HandOverEnd::Ended if took > shared.settings.handed_over_ttl => {
            emit!(
                info,
                ids,
                "work.stop_left_to_script",
                "the stop is left to whoever held the lease",
                after_ms = took.as_millis() as u64
            );
        }
        HandOverEnd::Ended => item::stop(&api, &ids, Stop::Ask, shutdown).await,
    }
    how
}
