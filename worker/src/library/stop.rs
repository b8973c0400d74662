//! How a program that uses the library ends what it started.

use std::sync::Arc;

use crate::queue::{Level, Shutdown, ShutdownWatch};

/// Given to what runs; it ends when its [`StopHandle`] says so. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Stop(pub(super) ShutdownWatch);

/// Ends what was started with its [`Stop`]. Dropping it means nothing.
#[derive(Debug, Clone)]
pub struct StopHandle(pub(super) Arc<Shutdown>);

impl Stop {
    /// A pair of both.
    pub fn new() -> (StopHandle, Stop) {
        let (handle, watch) = Shutdown::new();
        (StopHandle(Arc::new(handle)), Stop(watch))
    }

    /// One that never happens.
    pub fn never() -> Stop {
        Stop::new().1
    }

    /// For a queue: ends as this says, and drains when `also` drains.
    pub(super) fn joined_with(self, also: Option<ShutdownWatch>) -> ShutdownWatch {
        let (joined, watch) = Shutdown::new();
        tokio::spawn(async move {
            let (mut own, mut until) = (self.0.clone(), self.0);
            match also {
                Some(mut also) => tokio::select! {
                    () = own.reached(Level::Drain) => {}
                    () = also.reached(Level::Drain) => {}
                },
                None => own.reached(Level::Drain).await,
            }
            joined.drain();
            until.reached(Level::Cancel).await;
            joined.cancel();
        });
        watch
    }

    /// Returns when the end was asked for.
    pub async fn asked(&self) {
        self.0.clone().reached(Level::Drain).await;
    }
}

impl StopHandle {
    /// Nothing new is claimed or started; tool calls under way may finish (SHUT-2).
    pub fn drain(&self) {
        self.0.drain();
    }

    /// Everything ends at once: calls are killed, work items handed back (SHUT-4).
    pub fn cancel(&self) {
        self.0.cancel();
    }
}
