//! Memory stores: a folder in the jail for each store of a session, kept in step with the control
//! plane (protocol §8).
//!
//! `merge` decides about one path and knows nothing else; `engine` syncs one store by these decisions;
//! `task` says when, and ends it all; `place` says where a folder is and whether a session may have it.
//! A store's folder and its server are the traits of `folder` and `remote`: no path of a jail is
//! resolved here (INV-7), and no request is made. What happens is told to the [`Witness`] as counts:
//! names of memories are content (INV-12).

mod engine;
mod events;
mod folder;
mod merge;
mod place;
mod remote;
mod task;
#[cfg(test)]
mod tests;

pub use engine::{Engine, READ_BYTES_MAX, Store};
pub use events::{Counts, Happened, Witness};
pub use folder::{Folder, FolderError, Marker, Removed, Scan, Scanned};
pub use merge::Access;
pub use place::{StorePlace, places};
pub use remote::StoreApi;
pub use task::{DownloadError, SessionMemory};

/// The file that marks a folder as that of a store (MEM-6); never a memory itself.
pub const MARKER_PATH: &str = ".anthropic-memory-store";

/// What the marker of this store holds (MEM-6).
pub fn marker(store_id: &str) -> Vec<u8> {
    format!("version 1\n{store_id}").into_bytes()
}
