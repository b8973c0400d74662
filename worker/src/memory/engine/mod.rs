//! One store's sync (protocol §8.2 to §8.5).
//!
//! A sync looks at the folder, lists the store, settles uploads that were never answered, decides about
//! every path, and then acts: files are removed, files are uploaded, memories are deleted, memories are
//! pulled. Everything it learns is in the engine the moment it is known, so a sync may be dropped at any
//! point: the next one finds out what came of it. A request whose answer is lost is no exception: what
//! was sent is noted before it is sent.

mod delete;
mod pull;
mod push;

pub use push::READ_BYTES_MAX;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;

use super::MARKER_PATH;
use super::events::{Counts, Happened, Pass, Witness};
use super::folder::{Folder, FolderError, Marker, Removed, Scanned, is_temporary};
use super::merge::{Access, Action, Decision, Remark, Seen, decide, settled};
use super::remote::Remote;
use crate::config::Deletions;
use crate::queue::{ContentHash, Memory, MemoryError, MemoryPage, Pages, View};

/// Which store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// `memstore_…`.
    pub id: String,
    /// Whether files are uploaded.
    pub access: Access,
    /// What becomes of memories whose file was deleted.
    pub deletions: Deletions,
}

/// A pass that could not be finished.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// The folder cannot be used.
    #[error("cannot use the folder of the memory store")]
    Folder {
        /// Why.
        #[from]
        source: FolderError,
    },
    /// The server cannot be used.
    #[error("cannot use the memory store")]
    Store {
        /// Why.
        #[from]
        source: MemoryError,
    },
    /// Nothing may be sent that is not on record.
    #[error("cannot write the audit log")]
    Unrecorded,
}

impl SyncError {
    /// A few words for logs, never content.
    pub fn label(&self) -> String {
        match self {
            SyncError::Folder { source } => source.to_string(),
            SyncError::Store { source } => source.label(),
            SyncError::Unrecorded => self.to_string(),
        }
    }
}

/// What is known of one store between its syncs.
pub struct Engine<F, R> {
    store: Store,
    folder: F,
    remote: R,
    witness: Arc<dyn Witness>,
    /// B: what both sides had when they last agreed.
    baseline: BTreeMap<String, ContentHash>,
    /// What the store refuses (MEM-22).
    refused: BTreeMap<String, ContentHash>,
    /// What was sent and not answered (MEM-23).
    sent: BTreeMap<String, ContentHash>,
    /// Since when files are seen to be gone (MEM-26).
    absent: BTreeMap<String, Instant>,
    /// Changed files that the pass has not dealt with yet (MEM-33).
    unsent: u64,
}

/// A look at the folder (MEM-11).
enum Look {
    /// It is ours.
    Trusted(BTreeMap<String, Scanned>),
    /// It has files and not our marker.
    Foreign { files: u64 },
    /// It has neither.
    Destroyed,
}

/// The store's memories by the path of their file.
type Listing = BTreeMap<String, Memory>;

impl<F: Folder, R: Remote> Engine<F, R> {
    /// For a folder that is not filled yet.
    pub fn new(store: Store, folder: F, remote: R, witness: Arc<dyn Witness>) -> Engine<F, R> {
        Engine {
            store,
            folder,
            remote,
            witness,
            baseline: BTreeMap::new(),
            refused: BTreeMap::new(),
            sent: BTreeMap::new(),
            absent: BTreeMap::new(),
            unsent: 0,
        }
    }

    /// Which store it is.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Changed files that a pass which was cut off had not dealt with, as far as it had got to know of
    /// them.
    pub fn unsent(&self) -> u64 {
        self.unsent
    }

    /// Tells the witness; see [`Witness::tell`].
    pub fn tell(&self, happened: &Happened<'_>) -> bool {
        self.witness.tell(&self.store.id, happened)
    }

    /// One sync, and the account of it. Failures end it, and the next sync goes on from there.
    pub async fn sync(&mut self, pass: Pass) {
        match self.sync_once(pass).await {
            Ok(Some(counts)) => {
                self.tell(&Happened::Synced { pass, counts: &counts });
            }
            Ok(None) => {}
            Err(error) => {
                self.tell(&Happened::Failed { pass, reason: error.label() });
            }
        }
    }

    async fn sync_once(&mut self, pass: Pass) -> Result<Option<Counts>, SyncError> {
        self.unsent = 0;
        let files = match self.look().await? {
            Look::Trusted(files) => files,
            Look::Foreign { files } => {
                self.tell(&Happened::Untrusted { pass, files });
                return Ok(None);
            }
            Look::Destroyed => return self.recover().await.map(|()| None),
        };
        if self.store.access == Access::ReadWrite {
            self.unsent = self.dirty(&files).len() as u64;
        }
        let mut counts = Counts::default();
        let listing = self.list(&mut counts).await?;
        self.settle(&listing);
        // MEM-12: one file that is gone was deleted; all of them at once were not.
        if files.is_empty() && self.baseline.len() > 1 {
            return self.recover().await.map(|()| None);
        }
        self.refused.retain(|path, _| files.contains_key(path));
        self.absent.retain(|path, _| !files.contains_key(path));
        let cap = delete::cap(self.baseline.len());
        let work = self.decide(&files, &listing, &mut counts);
        let mut creates = work.creates;
        self.remove_files(work.removals, &mut creates, &mut counts).await?;
        // What the server's text is written over is no upload that is missing.
        self.unsent = (creates.len() + work.updates.len()) as u64;
        self.upload_all(creates, work.updates, &files, &mut counts).await?;
        self.delete_memories(work.deletions, cap, pass, &mut counts).await?;
        self.pull_all(work.pulls, &mut counts).await?;
        Ok(Some(counts))
    }

    /// MEM-10, MEM-11, MEM-34.
    async fn look(&self) -> Result<Look, FolderError> {
        let scan = self.folder.scan().await?;
        let ours = |file: &Scanned| file.path != MARKER_PATH && !is_temporary(&file.path);
        let files: BTreeMap<String, Scanned> =
            scan.files.into_iter().filter(ours).map(|file| (file.path.clone(), file)).collect();
        Ok(match scan.marker {
            Marker::Intact => Look::Trusted(files),
            _ if files.is_empty() => Look::Destroyed,
            _ => Look::Foreign { files: files.len() as u64 },
        })
    }

    /// MEM-14.
    async fn list(&self, counts: &mut Counts) -> Result<Listing, MemoryError> {
        let (mut listing, mut pages) = (Listing::new(), Pages::default());
        loop {
            let mut page: MemoryPage = self.remote.page(View::Basic, pages.cursor()).await?;
            let more = pages.turn(&mut page)?;
            for memory in page.memories {
                match file_of(&memory.path) {
                    Some(path) => drop(listing.insert(path.to_owned(), memory)),
                    None => counts.unusable += 1,
                }
            }
            if !more {
                return Ok(listing);
            }
        }
    }

    /// MEM-23: kept longer, a note would claim another writer's identical text.
    fn settle(&mut self, listing: &Listing) {
        for (path, sent) in std::mem::take(&mut self.sent) {
            let remote = listing.get(&path).map(|memory| memory.hash);
            let base = self.baseline.get(&path).copied();
            if let Some(base) = settled(remote, base, Some(sent)) {
                self.baseline.insert(path, base);
            }
        }
    }

    /// Decides about every path and brings the baseline up to date.
    fn decide(
        &mut self,
        files: &BTreeMap<String, Scanned>,
        listing: &Listing,
        counts: &mut Counts,
    ) -> Work {
        let mut paths: BTreeSet<&str> = files.keys().map(String::as_str).collect();
        paths.extend(listing.keys().map(String::as_str));
        let known: Vec<String> = self.baseline.keys().cloned().collect();
        paths.extend(known.iter().map(String::as_str));
        let mut work = Work::default();
        for path in paths {
            let memory = listing.get(path);
            let seen = Seen {
                remote: memory.map(|memory| memory.hash),
                local: files.get(path).map(|file| file.sha256.into()),
                base: self.baseline.get(path).copied(),
                refused: self.refused.get(path).copied(),
            };
            let Decision { action, base, remark } = decide(self.store.access, seen);
            match base {
                Some(base) => drop(self.baseline.insert(path.to_owned(), base)),
                None => drop(self.baseline.remove(path)),
            }
            if action != Action::DeleteMemory {
                self.absent.remove(path);
            }
            match remark {
                Some(Remark::EditLost) => counts.edits_lost += 1,
                Some(Remark::Restored) => counts.restored += 1,
                Some(Remark::Recreated) => counts.recreated += 1,
                Some(Remark::Orphaned) => counts.orphaned += 1,
                None => {}
            }
            work.add(action, path, base, memory);
        }
        work
    }

    /// MEM-16; a file that was edited meanwhile is the only copy and becomes a memory again.
    async fn remove_files(
        &mut self,
        removals: Vec<(String, ContentHash)>,
        creates: &mut Vec<String>,
        counts: &mut Counts,
    ) -> Result<(), FolderError> {
        for (path, base) in removals {
            match self.folder.remove(&path, base.bytes()).await {
                Ok(Removed::Done) => {
                    self.baseline.remove(&path);
                    counts.removed += 1;
                }
                Ok(Removed::Absent) => drop(self.baseline.remove(&path)),
                Ok(Removed::Changed) => {
                    self.baseline.remove(&path);
                    match self.store.access {
                        Access::ReadWrite => {
                            counts.recreated += 1;
                            creates.push(path);
                        }
                        Access::ReadOnly => counts.orphaned += 1,
                    }
                }
                Err(FolderError::Refused { .. }) => counts.failed += 1,
                Err(gone) => return Err(gone),
            }
        }
        Ok(())
    }
}

/// What a sync is to do, in order of paths.
#[derive(Default)]
struct Work {
    removals: Vec<(String, ContentHash)>,
    creates: Vec<String>,
    updates: Vec<(String, Memory)>,
    deletions: Vec<(String, Memory)>,
    pulls: Vec<(String, Memory)>,
}

impl Work {
    fn add(
        &mut self,
        action: Action,
        path: &str,
        base: Option<ContentHash>,
        memory: Option<&Memory>,
    ) {
        let path = path.to_owned();
        match (action, base, memory) {
            (Action::RemoveFile, Some(base), _) => self.removals.push((path, base)),
            (Action::Create, _, _) => self.creates.push(path),
            (Action::Update, _, Some(memory)) => self.updates.push((path, memory.clone())),
            (Action::DeleteMemory, _, Some(memory)) => self.deletions.push((path, memory.clone())),
            (Action::Pull, _, Some(memory)) => self.pulls.push((path, memory.clone())),
            // Nothing; the others have what they need by construction of the decision.
            _ => {}
        }
    }
}

/// The file of a memory: its path below the folder. `None` for paths that no scan would find again:
/// they would pass for deleted.
fn file_of(path: &str) -> Option<&str> {
    let file = path.strip_prefix('/')?;
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    let usable = file != MARKER_PATH && !is_temporary(file) && file.split('/').all(plain);
    usable.then_some(file)
}
