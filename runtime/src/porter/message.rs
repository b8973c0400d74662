//! What the control side and the porter tell each other. Bounded by the frame they travel in.

use serde::{Deserialize, Serialize};

use super::{Place, Refusal, Removed, Replace, Scan, Unpack, Unpacked};

/// Control side to porter: one request at a time, and nothing else but a cancellation meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Do this. With the archive or the file, if the request is about one.
    Do(Request),
    /// End what is being done, if it still is; its answer is sent as usual.
    Cancel,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Answered by [`Answer::Unpacked`]; with the archive.
    Unpack(Unpack),
    /// Answered by [`Answer::Put`]; with the file.
    Put {
        /// Where.
        place: Place,
        /// Relative to it.
        path: String,
        /// Whether it is executable.
        mode: u32,
        /// Longest file.
        bytes_max: u64,
        /// What to do if there is one.
        replace: Replace,
    },
    /// Answered by [`Answer::Done`].
    Clear {
        /// What to empty.
        place: Place,
    },
    /// Remove one entry of a place with everything below it. Answered by [`Answer::Done`], also if
    /// there is none.
    RemoveTree {
        /// Where.
        place: Place,
        /// Relative to it.
        path: String,
    },
    /// Answered by [`Answer::Done`].
    PrepareStore {
        /// Which.
        store: u16,
        /// Content of its marker.
        marker: Vec<u8>,
    },
    /// Mark a store and leave everything else in it. Answered by [`Answer::Done`].
    MarkStore {
        /// Which.
        store: u16,
        /// Content of its marker.
        marker: Vec<u8>,
    },
    /// Answered by [`Answer::Scanned`].
    Scan {
        /// Which.
        store: u16,
        /// What its marker is compared with.
        marker: Vec<u8>,
    },
    /// Answered by [`Answer::Read`].
    Read {
        /// Which store.
        store: u16,
        /// Relative to it.
        path: String,
        /// Longest content.
        bytes_max: u64,
    },
    /// Answered by [`Answer::Done`].
    Write {
        /// Which store.
        store: u16,
        /// Relative to it.
        path: String,
        /// The whole file.
        content: Vec<u8>,
    },
    /// Answered by [`Answer::Removed`].
    Remove {
        /// Which store.
        store: u16,
        /// Relative to it.
        path: String,
        /// What its content must be.
        only_if_sha256: [u8; 32],
    },
}

/// Porter to control side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It was done.
    Done,
    /// An archive was unpacked.
    Unpacked(Unpacked),
    /// A file of this length was written.
    Put(u64),
    /// What is in a store.
    Scanned(Scan),
    /// A file's content, if there is one.
    Read(Option<Vec<u8>>),
    /// What became of a file.
    Removed(Removed),
    /// It was not done.
    Refused(Refusal),
}
