//! A store's server, as the engine sees it: the calls of `queue` bound to one store.

use std::future::Future;
use std::sync::Arc;

use crate::queue::{ContentHash, ItemApi, Memory, MemoryError, MemoryPage, View};

/// The server's side of one store.
pub trait Remote: Clone + Send + Sync + 'static {
    /// One page of its memories.
    fn page(
        &self,
        view: View,
        page: Option<&str>,
    ) -> impl Future<Output = Result<MemoryPage, MemoryError>> + Send;

    /// One memory with its text.
    fn fetch(&self, id: &str) -> impl Future<Output = Result<Memory, MemoryError>> + Send;

    /// Makes a memory; the hash of what the store then has.
    fn create(
        &self,
        path: &str,
        content: &str,
    ) -> impl Future<Output = Result<ContentHash, MemoryError>> + Send;

    /// Changes a memory that still has the text `expected`.
    fn update(
        &self,
        id: &str,
        content: &str,
        expected: ContentHash,
    ) -> impl Future<Output = Result<ContentHash, MemoryError>> + Send;

    /// Deletes a memory that still has the text `expected`.
    fn delete(
        &self,
        id: &str,
        expected: ContentHash,
    ) -> impl Future<Output = Result<(), MemoryError>> + Send;
}

/// A store of the control plane, spoken to in the name of a work item.
#[derive(Clone)]
pub struct StoreApi {
    api: ItemApi,
    store: Arc<str>,
}

impl StoreApi {
    /// The store `store`.
    pub fn new(api: ItemApi, store: &str) -> StoreApi {
        StoreApi { api, store: store.into() }
    }
}

impl Remote for StoreApi {
    async fn page(&self, view: View, page: Option<&str>) -> Result<MemoryPage, MemoryError> {
        self.api.memory_page(&self.store, view, page).await
    }

    async fn fetch(&self, id: &str) -> Result<Memory, MemoryError> {
        self.api.memory(&self.store, id).await
    }

    async fn create(&self, path: &str, content: &str) -> Result<ContentHash, MemoryError> {
        self.api.create_memory(&self.store, path, content).await
    }

    async fn update(
        &self,
        id: &str,
        content: &str,
        expected: ContentHash,
    ) -> Result<ContentHash, MemoryError> {
        self.api.update_memory(&self.store, id, content, expected).await
    }

    async fn delete(&self, id: &str, expected: ContentHash) -> Result<(), MemoryError> {
        self.api.delete_memory(&self.store, id, expected).await
    }
}
