//! Where staged input goes: a workspace, by whoever may resolve paths in it.

use std::future::Future;
use std::os::fd::OwnedFd;

/// Why something could not be laid.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct LayError {
    /// In words of whoever refused; names no path of this host.
    pub reason: String,
}

/// A workspace. Both methods end when they are dropped.
pub trait Destination: Sync {
    /// Makes the file `path` below the workspace, and the directories above it; replaces what is there.
    fn put(
        &self,
        file: OwnedFd,
        path: &str,
        mode: u32,
        bytes_max: u64,
    ) -> impl Future<Output = Result<(), LayError>> + Send;

    /// Unpacks an archive into the directory `path` below the workspace; replaces what is there.
    fn unpack(
        &self,
        archive: OwnedFd,
        path: &str,
        entries_max: u64,
        bytes_max: u64,
    ) -> impl Future<Output = Result<(), LayError>> + Send;
}
