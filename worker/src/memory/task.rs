//! The stores of one session: filled before its first call, synced while it runs, brought to an end
//! within bounds (protocol §8.6).
//!
//! [`SessionMemory::dispatched`] is told of every call and starts a sync if one is due; the next call
//! does not wait for it. At the end ([`SessionMemory::finish`]) comes, for a session that ended cleanly,
//! one full sync and then, always, a flush; either is cut off when its time is over.

use std::future::Future;
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::engine::{Engine, SyncError};
use super::events::{Happened, Pass};
use super::folder::Folder;
use super::remote::Remote;

/// Longest time for each pass at the end (MEM-31).
const PASS_MAX: Duration = Duration::from_secs(30);
/// What is left for the flush of a worker that must end at once (SHUT-4).
const HURRIED_MAX: Duration = Duration::from_secs(2);
/// Longest time for all receipts together: a look at each folder.
const DISPOSE_MAX: Duration = Duration::from_secs(10);
/// What is left for them then.
const HURRIED_DISPOSE_MAX: Duration = Duration::from_secs(1);

/// A store that could not be filled (MEM-7).
#[derive(Debug, thiserror::Error)]
#[error("cannot fill the folder of the memory store {store}")]
pub struct DownloadError {
    /// Which.
    pub store: String,
    /// Why.
    pub source: SyncError,
}

/// The stores of a session.
pub struct SessionMemory<F, R> {
    stores: Vec<Arc<Mutex<Engine<F, R>>>>,
    interval: Duration,
    cadence: SyncMutex<Cadence>,
}

/// When the last sync was, and the one that runs.
struct Cadence {
    last: Instant,
    running: Option<JoinHandle<()>>,
    /// No more syncs: the session ends.
    closed: bool,
}

impl<F: Folder, R: Remote> SessionMemory<F, R> {
    /// Fills the folders of these stores, all at a time; syncs every `interval` from then on.
    ///
    /// # Errors
    /// The first store that fails. Nothing of the session runs then.
    pub async fn download(
        engines: Vec<Engine<F, R>>,
        interval: Duration,
    ) -> Result<SessionMemory<F, R>, DownloadError> {
        let stores = engines.into_iter().map(|engine| Arc::new(Mutex::new(engine))).collect();
        let cadence = Cadence { last: Instant::now(), running: None, closed: false };
        let memory = SessionMemory { stores, interval, cadence: SyncMutex::new(cadence) };
        memory.fill().await?;
        Ok(memory)
    }

    /// Fills all folders: at the start, and again when the session got another jail.
    ///
    /// # Errors
    /// As for [`SessionMemory::download`].
    pub async fn fill(&self) -> Result<(), DownloadError> {
        let mut set = JoinSet::new();
        for store in &self.stores {
            let store = Arc::clone(store);
            set.spawn(async move {
                let mut engine = store.lock().await;
                let store = engine.store().id.clone();
                engine.download().await.map_err(|source| DownloadError { store, source })
            });
        }
        while let Some(filled) = set.join_next().await {
            // Only an abort could end one of them otherwise, and dropping the set ends them all.
            filled.unwrap_or(Ok(()))?;
        }
        self.lock().last = Instant::now();
        Ok(())
    }

    /// A call was dealt with: starts a sync if the last one is long enough ago (MEM-30). Never waits,
    /// never fails. Must be called from within a tokio runtime.
    pub fn dispatched(self: &Arc<Self>) {
        let mut cadence = self.lock();
        let busy = cadence.running.as_ref().is_some_and(|running| !running.is_finished());
        if cadence.closed || busy || cadence.last.elapsed() < self.interval {
            return;
        }
        let memory = Arc::clone(self);
        cadence.running = Some(tokio::spawn(async move {
            memory.each(Pass::Regular).await;
            memory.lock().last = Instant::now();
        }));
    }

    /// Ends it: a full sync if the session ended `cleanly`, then a flush (MEM-31), each for at most 30
    /// seconds. When `hurry` completes, the full sync is cut off and the flush has a moment left. No
    /// process of the session may run any more.
    pub async fn finish(&self, cleanly: bool, hurry: impl Future<Output = ()>) {
        let running = {
            let mut cadence = self.lock();
            cadence.closed = true;
            cadence.running.take()
        };
        tokio::pin!(hurry);
        let mut hurried = false;
        let deadline = Instant::now() + PASS_MAX;
        if let Some(mut running) = running {
            let ended = async {
                if !cleanly {
                    return false;
                }
                tokio::select! {
                    // It ends as it ends; the next pass looks at everything anew.
                    _ended = &mut running => true,
                    () = tokio::time::sleep_until(deadline) => false,
                    () = &mut hurry => {
                        hurried = true;
                        false
                    }
                }
            };
            if !ended.await {
                running.abort();
                // An error here is that it was aborted. Its stores are free now.
                let _aborted = running.await;
            }
        }
        if cleanly && !hurried {
            tokio::select! {
                () = self.each(Pass::Final) => {}
                () = tokio::time::sleep_until(deadline) => self.cut_off(Pass::Final).await,
                () = &mut hurry => {
                    hurried = true;
                    self.cut_off(Pass::Final).await;
                }
            }
        }
        let limit = tokio::time::sleep(if hurried { HURRIED_MAX } else { PASS_MAX });
        let flush = self.each(Pass::Flush);
        tokio::pin!(limit);
        {
            tokio::pin!(flush);
            loop {
                tokio::select! {
                    () = &mut flush => return,
                    () = &mut limit => break,
                    () = &mut hurry, if !hurried => {
                        hurried = true;
                        limit.as_mut().reset(Instant::now() + HURRIED_MAX);
                    }
                }
            }
        }
        self.cut_off(Pass::Flush).await;
    }

    /// The receipt of every folder, and an empty one where the jail is kept (MEM-32): all of it within ten
    /// seconds, or one when `hurry` completes. Returns whether every folder is empty now: a jail in which
    /// one is not must not be kept.
    pub async fn dispose(&self, hurry: impl Future<Output = ()>) -> bool {
        let limit = tokio::time::sleep(DISPOSE_MAX);
        tokio::pin!(limit, hurry);
        let mut set = JoinSet::new();
        for (number, store) in self.stores.iter().enumerate() {
            let store = Arc::clone(store);
            set.spawn(async move { (number, dispose(&*store.lock().await).await) });
        }
        let (mut waiting, mut emptied) = (vec![true; self.stores.len()], true);
        let mut hurried = false;
        loop {
            tokio::select! {
                disposed = set.join_next() => match disposed {
                    None => break,
                    Some(Ok((number, is_empty))) => {
                        waiting[number] = false;
                        emptied &= is_empty;
                    }
                    // Nobody aborts them: it has no receipt yet.
                    Some(Err(_)) => emptied = false,
                },
                () = &mut limit => break,
                () = &mut hurry, if !hurried => {
                    hurried = true;
                    let soon = limit.deadline().min(Instant::now() + HURRIED_DISPOSE_MAX);
                    limit.as_mut().reset(soon);
                }
            }
        }
        set.shutdown().await;
        for (store, _) in self.stores.iter().zip(waiting).filter(|(_, waiting)| *waiting) {
            emptied = false;
            store.lock().await.tell(&Happened::Disposed { unsynced: None });
        }
        emptied
    }

    /// One pass over all stores at a time; dropping it ends all of them.
    async fn each(&self, pass: Pass) {
        let mut set = JoinSet::new();
        for store in &self.stores {
            let store = Arc::clone(store);
            set.spawn(async move {
                let mut engine = store.lock().await;
                match pass {
                    Pass::Flush => engine.flush().await,
                    _ => engine.sync(pass).await,
                }
            });
        }
        while set.join_next().await.is_some() {}
    }

    /// MEM-33.
    async fn cut_off(&self, pass: Pass) {
        for store in &self.stores {
            // Whoever had it was aborted and lets go of it at its next wait.
            let engine = store.lock().await;
            let files = engine.unsent();
            if files > 0 || pass != Pass::Flush {
                engine.tell(&Happened::CutOff { pass, files });
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cadence> {
        self.cadence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The receipt of one folder; whether it is empty now.
async fn dispose<F: Folder, R: Remote>(engine: &Engine<F, R>) -> bool {
    let unsynced = engine.unsynced().await;
    let cleared = engine.clear().await.is_ok();
    if !cleared {
        // As a rule the jail has ended, and its memory with it.
        tracing::debug!(event = "memory.not_cleared", "the folder is gone already");
    }
    engine.tell(&Happened::Disposed { unsynced });
    cleared
}
