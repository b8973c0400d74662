//! What happens to a store, as counts: for the audit log and for the operator's log.
//!
//! Paths and texts of memories are content and are in none of it (INV-12).

/// Hears what happens to the stores of one session.
pub trait Witness: Send + Sync + 'static {
    /// Told before the effect for [`Happened::Sending`], otherwise after it. Returns whether it is on
    /// record; what was not recorded beforehand does not happen.
    fn tell(&self, store: &str, happened: &Happened<'_>) -> bool;
}

/// Something that happened to a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened<'a> {
    /// Its folder was made and filled.
    Mounted {
        /// Files that were written.
        memories: u64,
        /// Memories that no file could be made of.
        unwritable: u64,
    },
    /// Requests that change the store are about to be sent.
    Sending {
        /// Files that are to become memories.
        creates: u64,
        /// Memories that are to get the text of their file.
        updates: u64,
        /// Memories that are to be deleted.
        deletes: u64,
    },
    /// A pass is over.
    Synced {
        /// Which.
        pass: Pass,
        /// What it did.
        counts: &'a Counts,
    },
    /// The folder was destroyed and was filled anew; nothing was sent (MEM-13).
    Recovered {
        /// Files that were written.
        memories: u64,
    },
    /// A pass did nothing, because the folder is not what it was: its files were left alone (MEM-11).
    Untrusted {
        /// Which.
        pass: Pass,
        /// How many files were left alone.
        files: u64,
    },
    /// A pass failed.
    Failed {
        /// Which.
        pass: Pass,
        /// Why, in a few words.
        reason: String,
    },
    /// The time for a pass was over before it was (MEM-33).
    CutOff {
        /// Which.
        pass: Pass,
        /// Changed files that were not uploaded, as far as that is known.
        files: u64,
    },
    /// The folder is gone.
    Disposed {
        /// Files in it whose changes are not on the server; `None` if nobody could tell.
        unsynced: Option<u64>,
    },
}

/// Which pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// While the session runs.
    Regular,
    /// The last one of a session that ended cleanly.
    Final,
    /// Uploads only, at every end.
    Flush,
}

impl Pass {
    /// A word for logs.
    pub fn label(self) -> &'static str {
        match self {
            Pass::Regular => "regular",
            Pass::Final => "final",
            Pass::Flush => "flush",
        }
    }
}

/// What a pass did to how many memories.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files that got the text of their memory.
    pub pulled: u64,
    /// Memories made of files.
    pub created: u64,
    /// Memories that got the text of their file.
    pub updated: u64,
    /// Memories deleted because their file was.
    pub deleted: u64,
    /// Files removed because their memory was.
    pub removed: u64,
    /// Edits of files that gave way to the server's text.
    pub edits_lost: u64,
    /// Files that came back because their memory had changed.
    pub restored: u64,
    /// Memories that came back because their file had changed.
    pub recreated: u64,
    /// Edited files of a read-only store whose memory is gone.
    pub orphaned: u64,
    /// Files that the store refuses; they are left until they change.
    pub refused: u64,
    /// Memories that no file could be made of.
    pub unwritable: u64,
    /// Memories or files that are tried again by the next sync.
    pub failed: u64,
    /// Deletions that wait for their time (MEM-26).
    pub deletes_waiting: u64,
    /// Deletions that wait because there were many (MEM-28).
    pub deletes_held: u64,
    /// Deletions that are switched off, or only logged.
    pub deletes_withheld: u64,
    /// Memories whose path cannot be that of a file here.
    pub unusable: u64,
}

impl Counts {
    /// Whether anything was changed anywhere.
    pub fn changed(&self) -> bool {
        let Counts { pulled, created, updated, deleted, removed, .. } = self;
        pulled + created + updated + deleted + removed > 0
    }

    /// Whether somebody should look at it.
    pub fn troubled(&self) -> bool {
        let Counts { edits_lost, restored, orphaned, refused, unwritable, failed, .. } = self;
        edits_lost + restored + orphaned + refused + unwritable + failed + self.deletes_held > 0
    }
}
