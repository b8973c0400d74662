//! Memories become files: all of them at the start and after a loss, single ones in a sync.

use tokio::task::JoinSet;

use super::{Engine, SyncError, file_of};
use crate::memory::events::{Counts, Happened};
use crate::memory::folder::{Folder, FolderError};
use crate::memory::remote::Remote;
use crate::queue::{ContentHash, Memory, MemoryError, Pages, View};

/// Fetches on their way at a time (MEM-21).
const FETCHES_MAX: usize = 16;

/// What became of one memory that was to be pulled.
enum Pulled {
    /// Its file has this content.
    Written(String, ContentHash),
    /// It was deleted or moved since the listing.
    Gone,
    /// It could not be fetched.
    Failed,
    /// No file could be made of it.
    Unwritable,
    /// The jail has ended.
    NoFolder,
}

impl<F: Folder, R: Remote> Engine<F, R> {
    /// Makes the folder and fills it (MEM-6).
    ///
    /// # Errors
    /// [`SyncError`]; the folder is of no use then (MEM-7). A single memory that cannot be written is
    /// only counted (MEM-9).
    pub async fn download(&mut self) -> Result<(), SyncError> {
        self.forget();
        self.folder.prepare().await?;
        let (memories, unwritable) = self.pull_everything().await?;
        if self.tell(&Happened::Mounted { memories, unwritable }) {
            Ok(())
        } else {
            Err(SyncError::Unrecorded)
        }
    }

    /// Fills a folder anew that was destroyed; sends nothing (MEM-13). What appeared in it meanwhile
    /// stays.
    pub(super) async fn recover(&mut self) -> Result<(), SyncError> {
        self.forget();
        self.folder.mark().await?;
        let (memories, _) = self.pull_everything().await?;
        self.tell(&Happened::Recovered { memories });
        Ok(())
    }

    fn forget(&mut self) {
        self.baseline.clear();
        self.sent.clear();
        self.absent.clear();
    }

    async fn pull_everything(&mut self) -> Result<(u64, u64), SyncError> {
        let (mut written, mut unwritable, mut pages) = (0, 0, Pages::default());
        loop {
            let mut page = self.remote.page(View::Full, pages.cursor()).await?;
            let more = pages.turn(&mut page)?;
            for memory in page.memories {
                let (Some(path), Some(content)) = (file_of(&memory.path), memory.content) else {
                    unwritable += 1;
                    continue;
                };
                let hash = ContentHash::of(content.as_bytes());
                match self.folder.write(path, content.into_bytes()).await {
                    Ok(()) => {
                        self.baseline.insert(path.to_owned(), hash);
                        written += 1;
                    }
                    Err(FolderError::Refused { .. }) => unwritable += 1,
                    Err(gone) => return Err(gone.into()),
                }
            }
            if !more {
                return Ok((written, unwritable));
            }
        }
    }

    /// MEM-21. The baseline gets what was written, so a text that is not what the listing promised is
    /// fetched again by the next sync and never passes for an edit.
    pub(super) async fn pull_all(
        &mut self,
        pulls: Vec<(String, Memory)>,
        counts: &mut Counts,
    ) -> Result<(), FolderError> {
        let (mut set, mut pulls) = (JoinSet::new(), pulls.into_iter());
        loop {
            while set.len() < FETCHES_MAX
                && let Some((path, listed)) = pulls.next()
            {
                set.spawn(pull(self.remote.clone(), self.folder.clone(), path, listed));
            }
            // Only an abort could end one of them otherwise, and nobody aborts them.
            let Some(pulled) = set.join_next().await else { return Ok(()) };
            match pulled {
                Ok(Pulled::Written(path, hash)) => {
                    self.baseline.insert(path, hash);
                    counts.pulled += 1;
                }
                Ok(Pulled::Gone) => {}
                Ok(Pulled::Failed) | Err(_) => counts.failed += 1,
                Ok(Pulled::Unwritable) => counts.unwritable += 1,
                Ok(Pulled::NoFolder) => return Err(FolderError::Gone),
            }
        }
    }
}

async fn pull<F: Folder, R: Remote>(remote: R, folder: F, path: String, listed: Memory) -> Pulled {
    let fetched = match remote.fetch(&listed.id).await {
        Ok(fetched) if fetched.path == listed.path => fetched,
        Ok(_) | Err(MemoryError::Missing) => return Pulled::Gone,
        Err(_) => return Pulled::Failed,
    };
    let Some(content) = fetched.content else { return Pulled::Failed };
    let hash = ContentHash::of(content.as_bytes());
    match folder.write(&path, content.into_bytes()).await {
        Ok(()) => Pulled::Written(path, hash),
        Err(FolderError::Refused { .. }) => Pulled::Unwritable,
        Err(FolderError::Gone) => Pulled::NoFolder,
    }
}
