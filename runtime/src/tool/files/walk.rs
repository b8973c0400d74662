//! Goes through a directory tree in the order of names, without following links.
//!
//! Every directory is opened along its way from the root, none is kept open: depth costs no
//! descriptors. What cannot be read or vanishes is passed over.

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, OFlags, fstat};

use super::beneath;

/// Decides where a walk goes.
pub trait Guide {
    /// What is known of a directory.
    type State;

    /// The only names that matter in a directory, if they are known: it need not be listed.
    fn names(&self, state: &Self::State) -> Option<Vec<OsString>>;

    /// Looks at an entry of a directory.
    fn visit(&mut self, state: &Self::State, entry: &Entry<'_>) -> Next<Self::State>;
}

/// One entry, on its way.
pub struct Entry<'e> {
    /// From where the walk began.
    pub below: &'e Path,
    pub name: &'e OsStr,
    pub kind: FileType,
}

/// How to go on after an entry.
pub enum Next<S> {
    /// Into it, if it is a directory.
    Into(S),
    On,
    Stop,
}

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything was seen, or the guide stopped it.
    Done,
    /// So many entries were seen that no further directory was listed.
    TooMany,
}

/// A directory on the way to where the walk is.
struct Level<S> {
    below: PathBuf,
    state: S,
    /// What is still to be visited, the next one last.
    left: Vec<(OsString, FileType)>,
}

/// Walks the directory `start` below `root` and shows `guide` at most `entries_max` entries.
pub fn walk<G: Guide>(
    root: BorrowedFd<'_>,
    start: &Path,
    state: G::State,
    entries_max: usize,
    guide: &mut G,
) -> Ended {
    let mut budget = Budget { left: entries_max, refused: false };
    let left = list(root, start, guide.names(&state), &mut budget);
    let mut levels = vec![Level { below: PathBuf::new(), state, left }];
    while let Some(level) = levels.last_mut() {
        let Some((name, kind)) = level.left.pop() else {
            levels.pop();
            continue;
        };
        let below = level.below.join(&name);
        match guide.visit(&level.state, &Entry { below: &below, name: &name, kind }) {
            Next::Into(state) if kind == FileType::Directory => {
                let left = list(root, &start.join(&below), guide.names(&state), &mut budget);
                levels.push(Level { below, state, left });
            }
            Next::Into(_) | Next::On => {}
            Next::Stop => return Ended::Done,
        }
    }
    if budget.refused { Ended::TooMany } else { Ended::Done }
}

struct Budget {
    left: usize,
    refused: bool,
}

impl Budget {
    fn take(&mut self) -> bool {
        self.refused |= self.left == 0;
        self.left = self.left.saturating_sub(1);
        !self.refused
    }
}

/// The entries of a directory, last name first.
fn list(
    root: BorrowedFd<'_>,
    directory: &Path,
    names: Option<Vec<OsString>>,
    budget: &mut Budget,
) -> Vec<(OsString, FileType)> {
    let mut entries = match names {
        Some(names) => named(root, directory, names, budget),
        None => all(root, directory, budget),
    };
    entries.sort_unstable_by(|one, other| other.0.cmp(&one.0));
    entries
}

fn named(
    root: BorrowedFd<'_>,
    directory: &Path,
    names: Vec<OsString>,
    budget: &mut Budget,
) -> Vec<(OsString, FileType)> {
    let mut entries = Vec::new();
    for name in names {
        let Some(kind) = kind_of(root, &directory.join(&name)) else { continue };
        if !budget.take() {
            break;
        }
        entries.push((name, kind));
    }
    entries
}

fn all(root: BorrowedFd<'_>, directory: &Path, budget: &mut Budget) -> Vec<(OsString, FileType)> {
    let mut entries = Vec::new();
    let opened = beneath::open(root, directory, OFlags::RDONLY | OFlags::DIRECTORY);
    let Ok(listing) = opened.and_then(Dir::new) else { return entries };
    for entry in listing.map_while(Result::ok) {
        if is_dots(entry.file_name()) {
            continue;
        }
        if !budget.take() {
            break;
        }
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let kind = match entry.file_type() {
            // Some file systems do not tell.
            FileType::Unknown => kind_of(root, &directory.join(name)),
            kind => Some(kind),
        };
        entries.extend(kind.map(|kind| (name.to_owned(), kind)));
    }
    entries
}

fn is_dots(name: &CStr) -> bool {
    name == c"." || name == c".."
}

fn kind_of(root: BorrowedFd<'_>, below: &Path) -> Option<FileType> {
    let entry = beneath::open(root, below, OFlags::PATH).ok()?;
    fstat(entry).ok().map(|status| beneath::kind(&status))
}
