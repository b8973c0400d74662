//! Files become memories: in a sync, and in the flush at every end (protocol §8.4, MEM-31).

use std::collections::BTreeMap;

use tokio::task::JoinSet;

use super::{Engine, Look, SyncError};
use crate::memory::events::{Counts, Happened, Pass};
use crate::memory::folder::{Folder, FolderError, Scanned};
use crate::memory::merge::Access;
use crate::memory::remote::Remote;
use crate::queue::{ContentHash, Memory, MemoryError};

/// Uploads on their way at a time (MEM-31).
const UPLOADS_MAX: usize = 32;
/// Longest file that is read and sent. The server takes 100 KiB (MEMAPI-1); that is for it to say.
pub const READ_BYTES_MAX: u64 = 1 << 20;

/// One upload on its way, and what came of it.
struct Upload {
    path: String,
    hash: ContentHash,
    /// Whether a memory was there before.
    update: bool,
    outcome: Result<ContentHash, MemoryError>,
}

/// A text that is ready to be sent.
struct Ready {
    path: String,
    text: String,
    hash: ContentHash,
    existing: Option<Memory>,
}

impl<F: Folder, R: Remote> Engine<F, R> {
    /// Uploads files, each read anew (MEM-22 to MEM-25).
    pub(super) async fn upload_all(
        &mut self,
        creates: Vec<String>,
        updates: Vec<(String, Memory)>,
        files: &BTreeMap<String, Scanned>,
        counts: &mut Counts,
    ) -> Result<(), SyncError> {
        let creates = creates.into_iter().map(|path| (path, None));
        let updates = updates.into_iter().map(|(path, memory)| (path, Some(memory)));
        let wanted: Vec<(String, Option<Memory>)> = creates.chain(updates).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let updates = wanted.iter().filter(|(_, memory)| memory.is_some()).count() as u64;
        let creates = wanted.len() as u64 - updates;
        if !self.tell(&Happened::Sending { creates, updates, deletes: 0 }) {
            return Err(SyncError::Unrecorded);
        }
        let (mut set, mut wanted) = (JoinSet::new(), wanted.into_iter());
        loop {
            while set.len() < UPLOADS_MAX
                && let Some((path, existing)) = wanted.next()
            {
                let scanned = files.get(&path);
                match self.ready(path, scanned, existing, counts).await? {
                    Some(ready) => drop(set.spawn(upload(self.remote.clone(), ready))),
                    None => self.unsent = self.unsent.saturating_sub(1),
                }
            }
            let Some(uploaded) = set.join_next().await else { return Ok(()) };
            self.unsent = self.unsent.saturating_sub(1);
            match uploaded {
                Ok(uploaded) => self.uploaded(uploaded, counts),
                // Only an abort could end one of them so, and nobody aborts them.
                Err(_) => counts.failed += 1,
            }
        }
    }

    /// Reads a file and notes what is about to be sent; `None` if there is nothing to send.
    async fn ready(
        &mut self,
        path: String,
        scanned: Option<&Scanned>,
        existing: Option<Memory>,
        counts: &mut Counts,
    ) -> Result<Option<Ready>, FolderError> {
        if let Some(scanned) = scanned.filter(|file| file.bytes > READ_BYTES_MAX) {
            counts.refused += 1;
            self.refused.insert(path, scanned.sha256.into());
            return Ok(None);
        }
        let bytes = match self.folder.read(&path, READ_BYTES_MAX).await {
            Ok(Some(bytes)) => bytes,
            // It is gone again: the next scan decides.
            Ok(None) => return Ok(None),
            Err(FolderError::Refused { .. }) => {
                counts.failed += 1;
                return Ok(None);
            }
            Err(gone) => return Err(gone),
        };
        let hash = ContentHash::of(&bytes);
        if self.refused.get(&path) == Some(&hash) {
            return Ok(None);
        }
        let Ok(text) = String::from_utf8(bytes) else {
            counts.refused += 1;
            self.refused.insert(path, hash);
            return Ok(None);
        };
        self.sent.insert(path.clone(), hash);
        Ok(Some(Ready { path, text, hash, existing }))
    }

    fn uploaded(&mut self, upload: Upload, counts: &mut Counts) {
        let Upload { path, hash, update, outcome } = upload;
        match outcome {
            Ok(now) => {
                match update {
                    true => counts.updated += 1,
                    false => counts.created += 1,
                }
                self.refused.remove(&path);
                self.sent.remove(&path);
                self.baseline.insert(path, now);
            }
            // MEM-24: the remote has moved. What was sent stays noted: it may be ours, applied and
            // not answered.
            Err(MemoryError::Changed) if update => counts.edits_lost += 1,
            Err(MemoryError::Refused) => {
                counts.refused += 1;
                self.refused.insert(path, hash);
            }
            Err(_) => counts.failed += 1,
        }
    }

    /// Uploads what has changed, and nothing else: no deletion, no pull (MEM-31). Without a change no
    /// request is made.
    pub async fn flush(&mut self) {
        let pass = Pass::Flush;
        match self.flush_once().await {
            Ok(Some(counts)) => {
                self.tell(&Happened::Synced { pass, counts: &counts });
            }
            Ok(None) => {}
            Err(error) => {
                self.tell(&Happened::Failed { pass, reason: error.label() });
            }
        }
    }

    async fn flush_once(&mut self) -> Result<Option<Counts>, SyncError> {
        self.unsent = 0;
        if self.store.access == Access::ReadOnly {
            return Ok(None);
        }
        let files = match self.look().await? {
            Look::Trusted(files) => files,
            Look::Foreign { files } => {
                self.tell(&Happened::Untrusted { pass: Pass::Flush, files });
                return Ok(None);
            }
            Look::Destroyed => return Ok(None),
        };
        let dirty = self.dirty(&files);
        if dirty.is_empty() {
            return Ok(None);
        }
        self.unsent = dirty.len() as u64;
        let mut counts = Counts::default();
        let mut listing = self.list(&mut counts).await?;
        self.settle(&listing);
        let (mut creates, mut updates) = (Vec::new(), Vec::new());
        for path in dirty {
            let hash = files.get(&path).map(|file| ContentHash::from(file.sha256));
            let (base, memory) = (self.baseline.get(&path).copied(), listing.remove(&path));
            let remote = memory.as_ref().map(|memory| memory.hash);
            if hash == base {
                // The upload never arrived, and the file has nothing that the server lacks.
                self.unsent -= 1;
            } else if remote == hash {
                self.unsent -= 1;
                self.baseline.extend(remote.map(|hash| (path, hash)));
            } else if remote.is_some() && remote != base {
                // Without a pull the winner cannot be written over the file.
                self.unsent -= 1;
                counts.edits_lost += 1;
            } else {
                match memory {
                    Some(memory) => updates.push((path, memory)),
                    None => creates.push(path),
                }
            }
        }
        self.upload_all(creates, updates, &files, &mut counts).await?;
        Ok(Some(counts))
    }

    /// The files that are not known to be on the server and may be uploaded, in order of paths.
    ///
    /// A file whose upload was never answered counts also if it is as before: the server may be ahead of
    /// it.
    pub(super) fn dirty(&self, files: &BTreeMap<String, Scanned>) -> Vec<String> {
        let dirty = |(path, file): &(&String, &Scanned)| {
            let hash = ContentHash::from(file.sha256);
            let differs = self.baseline.get(*path) != Some(&hash) || self.sent.contains_key(*path);
            differs && self.refused.get(*path) != Some(&hash)
        };
        files.iter().filter(dirty).map(|(path, _)| path.clone()).collect()
    }

    /// How many files have changes that the server does not have, for the receipt; `None` if that
    /// cannot be said.
    pub async fn unsynced(&self) -> Option<u64> {
        if self.store.access == Access::ReadOnly {
            return Some(0);
        }
        let files = match self.look().await.ok()? {
            Look::Destroyed => return Some(0),
            Look::Foreign { files } => return Some(files),
            Look::Trusted(files) => files,
        };
        let differs = |(path, file): &(&String, &Scanned)| {
            self.baseline.get(*path) != Some(&ContentHash::from(file.sha256))
        };
        Some(files.iter().filter(differs).count() as u64)
    }

    /// Empties the folder, for a jail that is kept.
    ///
    /// # Errors
    /// [`FolderError`].
    pub async fn clear(&self) -> Result<(), FolderError> {
        self.folder.clear().await
    }
}

async fn upload<R: Remote>(remote: R, ready: Ready) -> Upload {
    let Ready { path, text, hash, existing } = ready;
    let at = format!("/{path}");
    let mut update = existing.is_some();
    let outcome = match &existing {
        None => remote.create(&at, &text).await,
        Some(memory) => match remote.update(&memory.id, &text, memory.hash).await {
            // MEM-24: deleted since the listing, so the file is the only copy.
            Err(MemoryError::Missing) => {
                update = false;
                remote.create(&at, &text).await
            }
            outcome => outcome,
        },
    };
    Upload { path, hash, update, outcome }
}
