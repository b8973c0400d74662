//! Stores, folders and sessions in memory, on the test clock.

mod cadence;
mod fakes;
mod model;
mod passes;
mod rules;

use std::sync::Arc;

use fakes::{FakeFolder, FakeServer, Heard};

use super::engine::{Engine, Store};
use super::merge::Access;
use crate::config::Deletions;

/// One store with both its sides, and what was told about it.
struct Site {
    folder: FakeFolder,
    server: FakeServer,
    heard: Heard,
    engine: Engine<FakeFolder, FakeServer>,
}

impl Site {
    /// A store that has these memories, not downloaded yet.
    fn new(access: Access, deletions: Deletions, memories: &[(&str, &str)]) -> Site {
        let (folder, server, heard) = (FakeFolder::new(), FakeServer::new(memories), Heard::new());
        let store = Store { id: "memstore_1".to_owned(), access, deletions };
        let engine = Engine::new(store, folder.clone(), server.clone(), Arc::new(heard.clone()));
        Site { folder, server, heard, engine }
    }

    /// A writable store, downloaded; requests and reports so far are forgotten.
    async fn with(memories: &[(&str, &str)]) -> Site {
        Site::downloaded(Access::ReadWrite, Deletions::Enabled, memories).await
    }

    /// The same, read-only.
    async fn read_only(memories: &[(&str, &str)]) -> Site {
        Site::downloaded(Access::ReadOnly, Deletions::Enabled, memories).await
    }

    async fn downloaded(access: Access, deletions: Deletions, memories: &[(&str, &str)]) -> Site {
        let mut site = Site::new(access, deletions, memories);
        site.engine.download().await.expect("downloaded");
        site.server.forget_requests();
        site.heard.forget();
        site
    }
}
