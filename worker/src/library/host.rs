//! The queue's host for programs that use the library: a toolset for each session, and a bound on how
//! many run at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::environment::Environment;
use super::error::{Error, ErrorKind};
use super::toolset::{SessionToolset, Toolset};
use crate::queue::{
    CallKind, Credential, Drive, Host, Ids, ItemEnd, JournalStore, OpenError, Opening, Owner,
    Progress, Queue, QueueError, QueueSettings, ShutdownWatch, TOOLSET,
};

/// See [`Host`].
pub(super) struct LibraryHost {
    toolset: Toolset,
    places: Arc<Semaphore>,
    shutdown: ShutdownWatch,
}

impl LibraryHost {
    /// `shutdown` is that of the queue.
    pub fn new(toolset: Toolset, sessions_max: usize, shutdown: ShutdownWatch) -> Arc<LibraryHost> {
        let places = Arc::new(Semaphore::new(sessions_max.clamp(1, Semaphore::MAX_PERMITS)));
        Arc::new(LibraryHost { toolset, places, shutdown })
    }
}

impl Host for LibraryHost {
    type Tools = SessionToolset;
    type Permit = OwnedSemaphorePermit;

    fn owner(&self) -> Owner {
        self.toolset.owner()
    }

    async fn admit(&self) -> OwnedSemaphorePermit {
        match Arc::clone(&self.places).acquire_owned().await {
            Ok(permit) => permit,
            // Nobody closes it.
            Err(_) => std::future::pending().await,
        }
    }

    async fn open(&self, opening: Opening<'_>) -> Result<SessionToolset, OpenError> {
        self.toolset.open(&opening, self.shutdown.clone()).await
    }

    async fn close(&self, tools: SessionToolset, how: ItemEnd) {
        tools.close(how).await;
    }

    fn observe(&self, ids: &Ids, progress: &Progress<'_>) {
        self.toolset.observe(ids, progress);
    }
}

/// Whether a call is one of the toolset's own.
pub(super) fn is_builtin(name: &str, kind: CallKind) -> bool {
    kind == CallKind::Builtin && TOOLSET.contains(&name)
}

/// A queue for `host`.
pub(super) fn queue<H: Host>(
    environment: &Environment,
    settings: QueueSettings,
    host: Arc<H>,
    journals: Arc<dyn JournalStore>,
    drive: Drive,
) -> Result<Queue<H>, Error> {
    let key = environment.key()?.map(Credential::from);
    Queue::new(settings, key, host, journals, drive).map_err(|error| {
        let kind = match &error {
            QueueError::Settings(_) => ErrorKind::Settings,
            _ => ErrorKind::Host,
        };
        Error::because(kind, "cannot set up the queue", error)
    })
}
