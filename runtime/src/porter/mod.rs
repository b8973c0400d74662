//! What the porter does: it unpacks skills, lays staged files into the workspace and keeps memory
//! stores, below the descriptors of a few directories and nowhere else.
//!
//! Run by the porter, a process of a session's jail (`serve`), on behalf of the control side, which
//! never resolves a path of a jail itself (INV-7). The operations are plain functions over a
//! directory's descriptor ([`unpack`](fn@unpack), [`put`](fn@put), [`clear`], [`store`]). Both
//! archives and whatever lies in a directory meanwhile are hostile: a name is looked up one component
//! at a time or below its directory, no link is followed, nothing is waited for, and everything is
//! counted.
//!
//! Rules: SKILL-4 to SKILL-10, MEM-6, MEM-9 to MEM-13, MEM-34.

mod archive;
mod clear;
mod link;
mod message;
mod path;
mod put;
mod serve;
pub mod store;
mod unpack;

#[cfg(test)]
mod tests;

use std::io;

use serde::{Deserialize, Serialize};

pub use archive::fuzz_archive;
pub use clear::clear;
pub use message::{Answer, Order, Request};
pub use put::put;
pub use serve::{Porter, serve_until_closed};
pub use unpack::unpack;

/// A directory that the porter works in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
pub enum Place {
    /// The session's working directory.
    Workspace,
    /// Where skills are.
    Skills,
    /// A memory store, by its place in the request.
    Store(u16),
}

/// What to do with a directory that wraps everything in an archive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Wrapper {
    /// Leave it out (SKILL-8).
    Strip,
    /// Keep it.
    Keep,
}

/// Which files become executable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Executables {
    /// Those that the archive marks (SKILL-9).
    AsRecorded,
    /// Every file.
    All,
}

/// What to do where something is already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Replace {
    /// Put the new in its place, in one step where the file system can (SKILL-4).
    Swap,
    /// Leave it alone and refuse.
    Refuse,
}

/// How an archive is unpacked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unpack {
    /// Into which place.
    pub place: Place,
    /// Into which directory of it, relative; the place itself if empty.
    pub directory: String,
    /// What to do with a directory around everything.
    pub wrapper: Wrapper,
    /// Which files become executable.
    pub executables: Executables,
    /// Most members, skipped ones included.
    pub entries_max: u64,
    /// Most bytes of all files together, and of what an archive holds beside them.
    pub bytes_max: u64,
    /// What to do if the directory exists.
    pub replace: Replace,
}

/// What was unpacked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Unpacked {
    /// Regular files.
    pub files: u64,
    /// Directories, those without a member of their own included.
    pub directories: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Members that are neither (SKILL-7).
    pub skipped: u64,
    /// Whether something was replaced.
    pub replaced: bool,
}

/// Whether a store still bears its mark (MEM-11).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Marker {
    /// As it was written.
    Intact,
    /// Not there.
    Missing,
    /// Something else is in its place.
    Different,
}

/// What is in a store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Scan {
    /// Of the marker file, which is not in the list.
    pub marker: Marker,
    /// Regular files, in the order of their paths.
    pub files: Vec<Scanned>,
    /// Entries that are no memories: links, special files, names that are not UTF-8 or too long.
    pub skipped: u64,
}

/// One file of a store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Scanned {
    /// Relative, without a leading slash.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its content; of its length and time if it is longer than
    /// [`store::HASHED_BYTES_MAX`].
    pub sha256: [u8; 32],
}

/// What became of a file that was to be removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Removed {
    /// It is gone.
    Removed,
    /// It has another content than expected, or is no regular file, and stays.
    Changed,
    /// It was not there.
    Absent,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Refusal {
    /// A path that names nothing below a place.
    #[error("cannot use the path `{path}`: {reason}")]
    Path {
        /// As given, cut if it is long.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The jail has no such place.
    #[error("cannot use {place}: this session has none")]
    Place {
        /// Which.
        place: String,
    },
    /// An archive that is damaged or not one.
    #[error("cannot read the archive: {reason}")]
    Archive {
        /// What is wrong with it.
        reason: String,
    },
    /// A member whose name may not be unpacked. Nothing was (SKILL-6).
    #[error("cannot unpack the archive: member `{member}` {reason}")]
    Member {
        /// Its name, cut if it is long.
        member: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A bound is reached (SKILL-10).
    #[error("cannot {what}: there are more than {limit} {unit}")]
    TooMuch {
        /// What was being done.
        what: String,
        /// The bound.
        limit: u64,
        /// Of what.
        unit: String,
    },
    /// Something is there already.
    #[error("cannot replace {path}: it exists")]
    Exists {
        /// Relative to its place.
        path: String,
    },
    /// The kernel refuses.
    #[error("cannot {act}: {}", io::Error::from_raw_os_error(*.errno))]
    System {
        /// What was tried.
        act: String,
        /// Error number.
        errno: i32,
    },
    /// The caller gave up.
    #[error("cannot finish: it was cancelled")]
    Cancelled,
    /// It takes too long.
    #[error("cannot finish within {seconds} s")]
    TooLong {
        /// The bound.
        seconds: u64,
    },
    /// The process that unpacked died.
    #[error("cannot finish: the process that unpacked the archive ended ({how})")]
    Died {
        /// How.
        how: String,
    },
}

impl Refusal {
    pub(crate) fn system(act: impl Into<String>, error: impl Into<io::Error>) -> Refusal {
        let error = error.into();
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        Refusal::System { act: act.into(), errno }
    }

    pub(crate) fn archive(reason: impl std::fmt::Display) -> Refusal {
        Refusal::Archive { reason: shortened(&reason.to_string()) }
    }
}

/// Longest text of others that is repeated, in bytes.
const ECHO_BYTES_MAX: usize = 200;

/// `text` without control characters, cut if it is long.
pub(crate) fn shortened(text: &str) -> String {
    let mut short = String::new();
    for c in text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }) {
        if short.len() + c.len_utf8() > ECHO_BYTES_MAX {
            short.push('…');
            break;
        }
        short.push(c);
    }
    short
}

/// When an operation has to stop before its end.
pub trait Watch {
    /// # Errors
    /// Why it stops.
    fn go_on(&mut self) -> Result<(), Refusal>;
}

/// Never stops: for callers that bound an operation themselves.
#[derive(Debug, Clone, Copy)]
pub struct Patient;

impl Watch for Patient {
    fn go_on(&mut self) -> Result<(), Refusal> {
        Ok(())
    }
}
