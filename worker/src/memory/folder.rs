//! A store's folder, as the engine sees it: relative paths, whole files, hashes.
//!
//! The jail's porter implements it for sessions; tests have one in memory. Every operation may find
//! the folder changed since the last one, for what works in it works on.

use std::future::Future;

/// What an earlier run of ours may have left next to a file it was writing (MEM-9, MEM-34).
const TEMPORARY: (&str, &str) = (".fs-", ".tmp");

/// The folder of one store.
///
/// An operation whose future is dropped may be carried out all the same; the next scan shows it.
pub trait Folder: Clone + Send + Sync + 'static {
    /// Empties the folder and writes its marker (MEM-5, MEM-6).
    fn prepare(&self) -> impl Future<Output = Result<(), FolderError>> + Send;

    /// Writes the marker and leaves everything else as it is (MEM-13).
    fn mark(&self) -> impl Future<Output = Result<(), FolderError>> + Send;

    /// All regular files, and the marker, in one look (MEM-10, MEM-11). Fails rather than leave out
    /// what it cannot read: what is left out would pass for deleted.
    fn scan(&self) -> impl Future<Output = Result<Scan, FolderError>> + Send;

    /// The marker alone (MEM-27).
    fn marker(&self) -> impl Future<Output = Result<Marker, FolderError>> + Send;

    /// A file; `None` if there is none at this path.
    fn read(
        &self,
        path: &str,
        bytes_max: u64,
    ) -> impl Future<Output = Result<Option<Vec<u8>>, FolderError>> + Send;

    /// Writes a file in one step; never makes the folder anew (MEM-9).
    fn write(
        &self,
        path: &str,
        content: Vec<u8>,
    ) -> impl Future<Output = Result<(), FolderError>> + Send;

    /// Removes a file if it still has this content (MEM-16).
    fn remove(
        &self,
        path: &str,
        only_if: [u8; 32],
    ) -> impl Future<Output = Result<Removed, FolderError>> + Send;

    /// Removes everything in it.
    fn clear(&self) -> impl Future<Output = Result<(), FolderError>> + Send;
}

/// What a scan found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Of the marker file.
    pub marker: Marker,
    /// Without the marker and without [`is_temporary`] names.
    pub files: Vec<Scanned>,
    /// Symbolic links, special files, names that are no text.
    pub skipped: u64,
}

/// One file of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// Below the folder, without a leading slash.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Of its content. That of a file above [`READ_BYTES_MAX`](super::READ_BYTES_MAX), which is never
    /// uploaded, may be of anything that changes with the file.
    pub sha256: [u8; 32],
}

/// State of the marker file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// It names this store.
    Intact,
    /// It is not there.
    Missing,
    /// It says something else.
    Different,
}

/// What became of a file that was to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It is gone.
    Done,
    /// It has another content now.
    Changed,
    /// There was none.
    Absent,
}

/// An operation on a folder that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FolderError {
    /// This one cannot be done; others may be.
    #[error("{reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// There is no folder any more: the jail has ended.
    #[error("the jail has ended")]
    Gone,
}

/// Whether a path is that of a half-written file (MEM-34). Such names are not synced in either
/// direction.
pub fn is_temporary(path: &str) -> bool {
    let (start, end) = TEMPORARY;
    path.split('/').any(|part| part.len() >= 8 && part.starts_with(start) && part.ends_with(end))
}
