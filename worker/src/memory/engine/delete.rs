//! Memories are deleted whose file was: late, a few at a time, and only while they are what the file
//! was (protocol §8.5). A folder that was destroyed must not empty a store.

use std::time::Duration;

use tokio::time::Instant;

use super::{Engine, SyncError};
use crate::config::Deletions;
use crate::memory::events::{Counts, Happened, Pass};
use crate::memory::folder::{Folder, FolderError, Marker};
use crate::memory::remote::Remote;
use crate::queue::{Memory, MemoryError};

/// How long a file must be gone (MEM-26).
const WINDOW: Duration = Duration::from_secs(30);
/// Fewest and most deletions of one sync (MEM-28).
const CAP: (usize, usize) = (8, 50);
/// As much of a file as must be read to know that it is there.
const PROBE_BYTES_MAX: u64 = 1 << 20;

/// Most deletions of one sync of a store with so many memories (MEM-28).
pub(super) fn cap(baseline: usize) -> usize {
    CAP.0.max(CAP.1.min(baseline / 4))
}

impl<F: Folder, R: Remote> Engine<F, R> {
    /// MEM-26 to MEM-29.
    pub(super) async fn delete_memories(
        &mut self,
        candidates: Vec<(String, Memory)>,
        cap: usize,
        pass: Pass,
        counts: &mut Counts,
    ) -> Result<(), SyncError> {
        if candidates.is_empty() {
            return Ok(());
        }
        if self.store.deletions == Deletions::Disabled {
            counts.deletes_withheld += candidates.len() as u64;
            return Ok(());
        }
        let (mut due, now) = (Vec::new(), Instant::now());
        for (path, memory) in candidates {
            let since = *self.absent.entry(path.clone()).or_insert(now);
            if pass != Pass::Final && now.duration_since(since) < WINDOW {
                counts.deletes_waiting += 1;
            } else if due.len() == cap {
                counts.deletes_held += 1;
            } else {
                due.push((path, memory));
            }
        }
        if due.is_empty() {
            return Ok(());
        }
        if self.store.deletions == Deletions::LogOnly {
            counts.deletes_withheld += due.len() as u64;
            return Ok(());
        }
        let deletes = due.len() as u64;
        if !self.tell(&Happened::Sending { creates: 0, updates: 0, deletes }) {
            return Err(SyncError::Unrecorded);
        }
        for (path, memory) in due {
            self.delete_memory(path, &memory, counts).await?;
        }
        Ok(())
    }

    async fn delete_memory(
        &mut self,
        path: String,
        memory: &Memory,
        counts: &mut Counts,
    ) -> Result<(), FolderError> {
        if !self.is_still_gone(&path, counts).await? {
            return Ok(());
        }
        // The listing's hash is that of the baseline, or there would be no deletion.
        match self.remote.delete(&memory.id, memory.hash).await {
            Ok(()) | Err(MemoryError::Missing) => {
                self.baseline.remove(&path);
                self.absent.remove(&path);
                counts.deleted += 1;
            }
            // The next sync brings the file back, and counts it.
            Err(MemoryError::Changed) => {}
            Err(_) => counts.failed += 1,
        }
        Ok(())
    }

    /// MEM-27: looks once more, for the folder may have been destroyed since the scan.
    async fn is_still_gone(
        &mut self,
        path: &str,
        counts: &mut Counts,
    ) -> Result<bool, FolderError> {
        let gone = async {
            let marked = self.folder.marker().await? == Marker::Intact;
            Ok::<bool, FolderError>(
                marked && self.folder.read(path, PROBE_BYTES_MAX).await?.is_none(),
            )
        };
        match gone.await {
            Ok(true) => Ok(true),
            Ok(false) => {
                self.absent.remove(path);
                counts.deletes_waiting += 1;
                Ok(false)
            }
            // What cannot be read is there.
            Err(FolderError::Refused { .. }) => {
                counts.failed += 1;
                Ok(false)
            }
            Err(gone) => Err(gone),
        }
    }
}
