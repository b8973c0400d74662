//! Memory stores of the sessions of this worker: where they go, what keeps them in step, what is
//! recorded of them.
//!
//! The rules are in [`crate::memory`]; here they get their folders (the porter of a session's jail, which
//! alone resolves paths there), their witness (audit log and log), and their moments: before the jail
//! is made ([`Memories::plan`]), before the first call ([`Memories::mount`]), after every call
//! ([`Memories::dispatched`]) and when the last process is dead ([`Mounted::finish`]).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use stockade_runtime::audit::{Event, Ids as AuditIds, Name, Text};
use stockade_runtime::jail::{Failure, Step};
use stockade_runtime::session::{self as porter, Place, Porter, PorterError, StartError};
use stockade_runtime::spec::{SpecError, StoreAccess, StoreRequest};

use super::jails::JailError;
use super::record::{Record, audit_ids};
use super::unnamed::without_names;
use crate::cli::policy::chain;
use crate::config::MemoryConfig;
use crate::memory::{
    Access, Counts, DownloadError, Engine, Folder, FolderError, Happened, Marker, READ_BYTES_MAX,
    Removed, Scan, Scanned, SessionMemory, Store, StoreApi, StorePlace, Witness, marker, places,
};
use crate::queue::{Ids, ItemApi, ItemEnd, Level, OpenError, Opening, ShutdownWatch};

// What may be uploaded must be told by its content.
const _: () = assert!(READ_BYTES_MAX <= porter::HASHED_BYTES_MAX);

/// Stores of all sessions of this worker.
pub struct Memories {
    config: MemoryConfig,
    /// Of every session, as its jail shows it.
    workdir: PathBuf,
    record: Arc<Record>,
    /// By work item and session, for what the queue reports.
    live: Mutex<HashMap<(String, String), Weak<Live>>>,
}

type Live = SessionMemory<JailFolder, StoreApi>;

/// The stores of one session, mounted.
pub struct Mounted {
    memory: Arc<Live>,
    porter: SharedPorter,
}

/// The porter of a session's jail as it is now: the jail may be replaced.
type SharedPorter = Arc<RwLock<Porter>>;

impl Memories {
    /// With nothing mounted.
    pub fn new(config: MemoryConfig, workdir: PathBuf, record: Arc<Record>) -> Memories {
        Memories { config, workdir, record, live: Mutex::default() }
    }

    /// Where the stores of a session go (MEM-1 to MEM-3); none where memory is switched off.
    ///
    /// # Errors
    /// The session cannot have them, so it has no jail either.
    pub fn plan(&self, opening: &Opening<'_>) -> Result<Vec<StorePlace>, OpenError> {
        if self.config.sync_interval.is_none() {
            return Ok(Vec::new());
        }
        let stores = &opening.session.memory_stores;
        places(stores, opening.api.has_sessions_token(), &self.workdir)
            .map_err(|error| refusal(&error.to_string(), chain(&error)))
    }

    /// What the jail must have for them.
    pub fn requests(&self, stores: &[StorePlace]) -> Vec<StoreRequest> {
        let request = |store: &StorePlace| StoreRequest {
            target: store.target.clone(),
            access: match store.access {
                Access::ReadWrite => StoreAccess::ReadWrite,
                Access::ReadOnly => StoreAccess::ReadOnly,
            },
            bytes_max: self.config.store_size.bytes(),
            inodes_max: self.config.store_files,
        };
        stores.iter().map(request).collect()
    }

    /// Fills the folders in a jail that was made for them; `None` if there are none.
    ///
    /// # Errors
    /// The first store that fails (MEM-7). The jail must not be used then.
    pub async fn mount(
        &self,
        api: &ItemApi,
        ids: &AuditIds,
        stores: &[StorePlace],
        porter: &Porter,
    ) -> Result<Option<Mounted>, OpenError> {
        let Some(interval) = self.config.sync_interval.filter(|_| !stores.is_empty()) else {
            return Ok(None);
        };
        let porter: SharedPorter = Arc::new(RwLock::new(porter.clone()));
        let engine = |(number, place): (usize, StorePlace)| {
            let folder = JailFolder {
                porter: Arc::clone(&porter),
                // Their number is bounded by `places`.
                store: u16::try_from(number).unwrap_or(u16::MAX),
                marker: marker(&place.id).into(),
            };
            let remote = StoreApi::new(api.clone(), &place.id);
            let StorePlace { id, access, target } = place;
            let (record, ids) = (Arc::clone(&self.record), ids.clone());
            let witness = Arc::new(StoreWitness { record, ids, target, access });
            let store = Store { id, access, deletions: self.config.deletions };
            Engine::new(store, folder, remote, witness)
        };
        let engines = stores.iter().cloned().enumerate().map(engine).collect();
        let memory = SessionMemory::download(engines, interval).await.map_err(download_refusal)?;
        let memory = Arc::new(memory);
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|_, memory| memory.strong_count() > 0);
        live.insert(key(ids), Arc::downgrade(&memory));
        Ok(Some(Mounted { memory, porter }))
    }

    /// A call of this work item was dealt with (MEM-30).
    pub fn dispatched(&self, ids: &Ids) {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(memory) = live.get(&key(&audit_ids(ids))).and_then(Weak::upgrade) {
            memory.dispatched();
        }
    }
}

impl Mounted {
    /// The passes at the end and the receipt (MEM-31, MEM-32), cut short when `shutdown` says so. No
    /// process of the session runs any more. Returns whether its folders are empty now, so that the jail
    /// may be kept.
    pub async fn finish(&self, how: ItemEnd, shutdown: ShutdownWatch) -> bool {
        // Whoever is cut off by a lost lease, an error or a signal may still upload what it wrote:
        // preconditions make that safe (LEASE-16). Deletions that did not have their time stay.
        let cleanly = matches!(how, ItemEnd::Idle | ItemEnd::SessionEnded | ItemEnd::StopRequested);
        let hurry = || {
            let mut shutdown = shutdown.clone();
            async move { shutdown.reached(Level::Cancel).await }
        };
        self.memory.finish(cleanly, hurry()).await;
        self.memory.dispose(hurry()).await
    }

    /// The session has another jail now, whose folders are empty: fills them.
    ///
    /// # Errors
    /// A word for the model and a text for the log.
    pub async fn moved(&self, porter: &Porter) -> Result<(), OpenError> {
        *self.porter.write().unwrap_or_else(PoisonError::into_inner) = porter.clone();
        self.memory.fill().await.map_err(download_refusal)
    }
}

/// A session that was attached to has no work item.
fn key(ids: &AuditIds) -> (String, String) {
    let name = |id: &Option<Name>| id.as_ref().map_or("", |id| id.as_str()).to_owned();
    (name(&ids.work), name(&ids.session))
}

fn download_refusal(error: DownloadError) -> OpenError {
    // The cause may name what the server said; the model hears the store and a word.
    let told = format!("{error}: {}", error.source.label());
    refusal(&told, told.clone())
}

/// Fails a session for its memory, visibly for it.
fn refusal(reason: &str, for_log: String) -> OpenError {
    let for_model = format!(
        "[memory] This session does not have its memory stores on its host, so no tool was run: \
         {reason}. The operator finds this in the worker's log. A user interrupt or message tries \
         again."
    );
    OpenError { for_model, for_log }
}

/// The refusal of a jail that could not be made because of where a store was to be (MEM-4).
pub fn refused_place(error: &JailError) -> Option<OpenError> {
    let reason = match error {
        JailError::Spec(place @ SpecError::StorePlace { .. }) => place.to_string(),
        JailError::Start(StartError::Jail { failure: Failure::Step { failure, .. } })
            if failure.step == Step::Places =>
        {
            format!("cannot {}", failure.what())
        }
        _ => return None,
    };
    Some(refusal(&reason, chain(error)))
}

/// A store's folder in a jail: the porter's operations on it.
#[derive(Clone)]
struct JailFolder {
    porter: SharedPorter,
    store: u16,
    marker: Arc<[u8]>,
}

impl JailFolder {
    fn porter(&self) -> Porter {
        self.porter.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Without what a refusal says of a path: that is the name of a memory (INV-12).
fn folder_error(error: PorterError) -> FolderError {
    match error {
        PorterError::Refused { reason } => FolderError::Refused { reason: without_names(&reason) },
        _ => FolderError::Gone,
    }
}

impl Folder for JailFolder {
    async fn prepare(&self) -> Result<(), FolderError> {
        self.porter().prepare_store(self.store, &self.marker).await.map_err(folder_error)
    }

    async fn mark(&self) -> Result<(), FolderError> {
        self.porter().mark_store(self.store, &self.marker).await.map_err(folder_error)
    }

    async fn scan(&self) -> Result<Scan, FolderError> {
        let scan = self.porter().scan(self.store, &self.marker).await.map_err(folder_error)?;
        let file = |file: porter::Scanned| Scanned {
            path: file.path,
            bytes: file.bytes,
            sha256: file.sha256,
        };
        Ok(Scan {
            marker: match scan.marker {
                porter::Marker::Intact => Marker::Intact,
                porter::Marker::Missing => Marker::Missing,
                porter::Marker::Different => Marker::Different,
            },
            files: scan.files.into_iter().map(file).collect(),
            skipped: scan.skipped,
        })
    }

    async fn marker(&self) -> Result<Marker, FolderError> {
        let path = crate::memory::MARKER_PATH;
        let read = self.porter().read(self.store, path, self.marker.len() as u64).await;
        match read.map_err(folder_error) {
            Ok(Some(found)) if found[..] == *self.marker => Ok(Marker::Intact),
            Ok(None) => Ok(Marker::Missing),
            // Longer, or something that cannot be read.
            Ok(Some(_)) | Err(FolderError::Refused { .. }) => Ok(Marker::Different),
            Err(gone) => Err(gone),
        }
    }

    async fn read(&self, path: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, FolderError> {
        self.porter().read(self.store, path, bytes_max).await.map_err(folder_error)
    }

    async fn write(&self, path: &str, content: Vec<u8>) -> Result<(), FolderError> {
        self.porter().write(self.store, path, content).await.map_err(folder_error)
    }

    async fn remove(&self, path: &str, only_if: [u8; 32]) -> Result<Removed, FolderError> {
        let removed = self.porter().remove(self.store, path, only_if).await;
        Ok(match removed.map_err(folder_error)? {
            porter::Removed::Removed => Removed::Done,
            porter::Removed::Changed => Removed::Changed,
            porter::Removed::Absent => Removed::Absent,
        })
    }

    async fn clear(&self) -> Result<(), FolderError> {
        self.porter().clear(Place::Store(self.store)).await.map_err(folder_error)
    }
}

/// Writes what happens to one store to the audit log and to the log.
struct StoreWitness {
    record: Arc<Record>,
    ids: AuditIds,
    target: PathBuf,
    access: Access,
}

/// `log!(self, store, level, "event", "text", field = value …)`, with the ids that are known (OBS-5).
macro_rules! log {
    ($of:ident, $store:ident, $level:ident, $event:literal, $text:literal $(, $($field:tt)+)?) => {
        tracing::$level!(
            event = $event,
            environment_id = $of.ids.environment.as_ref().map(|id| id.as_str()),
            work_id = $of.ids.work.as_ref().map(|id| id.as_str()),
            session_id = $of.ids.session.as_ref().map(|id| id.as_str()),
            store_id = $store,
            $($($field)+,)?
            $text
        )
    };
}

impl StoreWitness {
    fn event(&self, store: &str, happened: &Happened<'_>) -> Option<Event> {
        let store = store.into();
        Some(match happened {
            Happened::Mounted { memories, unwritable } => Event::MemoryMounted {
                store,
                path: Text::of(&self.target.display()),
                access: match self.access {
                    Access::ReadWrite => "read_write".into(),
                    Access::ReadOnly => "read_only".into(),
                },
                memories: *memories,
                unwritable: *unwritable,
            },
            Happened::Sending { creates, updates, deletes } => Event::MemorySending {
                store,
                creates: *creates,
                updates: *updates,
                deletes: *deletes,
            },
            Happened::Synced { counts, .. } if !counts.changed() && !counts.troubled() => {
                return None;
            }
            Happened::Synced { pass, counts } => Event::MemorySynced {
                store,
                pass: pass.label().into(),
                created: counts.created,
                updated: counts.updated,
                deleted: counts.deleted,
                pulled: counts.pulled,
                removed: counts.removed,
                edits_lost: counts.edits_lost,
                refused: counts.refused,
                failed: counts.failed + counts.unwritable,
            },
            Happened::Recovered { memories } => {
                Event::MemoryRecovered { store, memories: *memories }
            }
            Happened::Untrusted { pass, files } => Event::MemoryNotSynced {
                store,
                pass: pass.label().into(),
                reason: "untrusted".into(),
                files: *files,
            },
            Happened::Failed { pass, reason } => Event::MemoryNotSynced {
                store,
                pass: pass.label().into(),
                reason: reason.as_str().into(),
                files: 0,
            },
            Happened::CutOff { pass, files } => Event::MemoryNotSynced {
                store,
                pass: pass.label().into(),
                reason: "cut-off".into(),
                files: *files,
            },
            Happened::Disposed { unsynced } => Event::MemoryDisposed { store, unsynced: *unsynced },
        })
    }

    fn log(&self, store: &str, happened: &Happened<'_>) {
        match happened {
            Happened::Mounted { memories, unwritable } => {
                log!(
                    self,
                    store,
                    info,
                    "memory.downloaded",
                    "downloaded a memory store",
                    memories,
                    unwritable
                );
            }
            Happened::Sending { .. } => {}
            Happened::Synced { pass, counts } => self.log_counts(store, pass.label(), counts),
            Happened::Recovered { memories } => {
                log!(
                    self,
                    store,
                    warn,
                    "memory.recovered",
                    "a memory store's folder was destroyed; it was filled anew and nothing was sent",
                    memories
                );
            }
            Happened::Untrusted { pass, files } => {
                log!(
                    self,
                    store,
                    warn,
                    "memory.untrusted",
                    "a memory store's folder lost its marker; it is left as it is and not synced",
                    pass = pass.label(),
                    files
                );
            }
            Happened::Failed { pass, reason } => {
                log!(
                    self,
                    store,
                    warn,
                    "memory.sync_failed",
                    "memory sync failed",
                    pass = pass.label(),
                    error = reason
                );
            }
            Happened::CutOff { pass, files } => {
                log!(
                    self,
                    store,
                    warn,
                    "memory.cut_off",
                    "the time for a memory sync was over; changed files were not uploaded",
                    pass = pass.label(),
                    files
                );
            }
            Happened::Disposed { unsynced: Some(0) } => {
                log!(self, store, debug, "memory.disposed", "a memory store's folder is gone");
            }
            Happened::Disposed { unsynced: None } => {
                log!(
                    self,
                    store,
                    warn,
                    "memory.disposed",
                    "a memory store's folder is gone; whether with changes that are not on the server is unknown",
                    unsynced = "unknown"
                );
            }
            Happened::Disposed { unsynced: Some(unsynced) } => {
                log!(
                    self,
                    store,
                    warn,
                    "memory.disposed",
                    "a memory store's folder is gone with changes that are not on the server",
                    unsynced
                );
            }
        }
    }

    fn log_counts(&self, store: &str, pass: &str, counts: &Counts) {
        let Counts { created, updated, deleted, pulled, removed, edits_lost, restored, .. } =
            counts;
        let Counts { recreated, orphaned, refused, unwritable, failed, unusable, .. } = counts;
        let Counts { deletes_waiting, deletes_held, deletes_withheld, .. } = counts;
        macro_rules! told {
            ($level:ident) => {
                log!(
                    self,
                    store,
                    $level,
                    "memory.synced",
                    "memory synced",
                    pass,
                    created,
                    updated,
                    deleted,
                    pulled,
                    removed,
                    edits_lost,
                    restored,
                    recreated,
                    orphaned,
                    refused,
                    unwritable,
                    failed,
                    unusable,
                    deletes_waiting,
                    deletes_held,
                    deletes_withheld
                )
            };
        }
        match (counts.troubled(), counts.changed()) {
            (true, _) => told!(warn),
            (false, true) => told!(info),
            (false, false) => told!(debug),
        }
    }
}

impl Witness for StoreWitness {
    fn tell(&self, store: &str, happened: &Happened<'_>) -> bool {
        self.log(store, happened);
        match self.event(store, happened) {
            Some(event) => !self.record.has_failed() && self.record.write(&self.ids, &event),
            None => true,
        }
    }
}
