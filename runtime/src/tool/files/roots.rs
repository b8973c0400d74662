//! The permitted directories and how a path of the caller is found in them.
//!
//! A path is first made canonical by hand: `.` and `..` collapse as text, then every link is followed,
//! one lookup below a root's descriptor at a time (TOOL-PATH-2). What comes out is a root and the way
//! below it without any link. The operation then opens that way, and only that (TOOL-PATH-3): whoever
//! swaps a component in between gets an error, never another file.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, readlinkat};
use rustix::io::Errno;

use super::FilesError;
use super::beneath;
use super::failure::{Failure, Spelled};

/// How many links a path may lead through, TOOL-GEN-2.
const HOPS_MAX: u32 = 40;

/// Longest path of a caller, in bytes: `PATH_MAX` of the kernel.
const PATH_BYTES_MAX: usize = 4_096;

/// What the file tools may touch. Directories are opened once and stay the ones they were.
#[derive(Debug)]
pub struct Roots {
    /// The workdir is the first.
    all: Vec<Root>,
}

#[derive(Debug)]
pub(super) struct Root {
    /// As the operator wrote it, without `.` and `..`.
    spelled: PathBuf,
    /// Without links.
    path: PathBuf,
    directory: OwnedFd,
    status: Stat,
    read_only: bool,
}

/// A canonical path inside a root.
#[derive(Debug)]
pub(super) struct Place<'r> {
    root: &'r Root,
    /// The way from the root; empty for the root itself.
    pub below: PathBuf,
    /// What was there when it was looked for.
    pub found: Option<Stat>,
}

/// Why a path has no [`Place`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unresolved {
    Outside,
    Hops,
    System(Errno),
}

impl From<Errno> for Unresolved {
    fn from(errno: Errno) -> Self {
        Unresolved::System(errno)
    }
}

impl Place<'_> {
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.root.directory.as_fd()
    }

    /// Absolute.
    pub fn path(&self) -> PathBuf {
        self.root.path.join(&self.below)
    }

    pub fn kind(&self) -> Option<FileType> {
        self.found.as_ref().map(beneath::kind)
    }

    /// Opens the file for reading, if it is a regular one.
    pub fn open_file(&self, spelled: &Spelled) -> Result<(File, Stat), Failure> {
        let opened = beneath::open_regular(self.directory(), &self.below, OFlags::RDONLY);
        opened.map(|(file, status)| (File::from(file), status)).map_err(|errno| match errno {
            None => Failure::NotRegular { path: spelled.clone() },
            Some(errno) => Failure::system(spelled, errno),
        })
    }
}

impl Roots {
    /// Opens `workdir`, the directories `allowed` beside it, and those that may be read only (listed
    /// under `allowed` too or not).
    ///
    /// # Errors
    /// If one of them is not a directory that can be opened.
    pub fn open(
        workdir: &Path,
        allowed: &[PathBuf],
        read_only: &[PathBuf],
    ) -> Result<Roots, FilesError> {
        let mut roots = Roots { all: Vec::new() };
        let allowed = allowed.iter().map(|path| (path.as_path(), false));
        let read_only = read_only.iter().map(|path| (path.as_path(), true));
        for (path, read_only) in [(workdir, false)].into_iter().chain(allowed).chain(read_only) {
            let root = Root::open(path, read_only)
                .map_err(|source| FilesError::Root { path: path.to_owned(), source })?;
            match roots.all.iter_mut().find(|known| known.path == root.path) {
                Some(known) => known.read_only |= read_only,
                None => roots.all.push(root),
            }
        }
        Ok(roots)
    }

    /// Finds the `path` of a caller.
    pub(super) fn find(&self, path: &str) -> Result<Place<'_>, Failure> {
        let spelled = Spelled::new(path);
        self.resolve(Path::new(path)).map_err(|why| match why {
            Unresolved::Outside => {
                Failure::Outside { path: spelled, other_roots: self.all.len() > 1 }
            }
            Unresolved::Hops => Failure::Hops { path: spelled },
            Unresolved::System(reason) => Failure::System { path: spelled, reason },
        })
    }

    /// Finds the `path` of a caller who wants to change it.
    pub(super) fn find_to_change(&self, path: &str) -> Result<Place<'_>, Failure> {
        let place = self.find(path)?;
        let canonical = place.path();
        // TOOL-PATH-5
        let sealed =
            self.all.iter().find(|root| root.read_only && canonical.starts_with(&root.path));
        sealed.map_or(Ok(()), |root| Err(root.refusal(&Spelled::new(path))))?;
        Ok(place)
    }

    /// The refusal to change something in a directory, if it is a read-only root, wherever it has
    /// been moved to.
    pub(super) fn sealed(&self, directory: &Stat, spelled: &Spelled) -> Result<(), Failure> {
        let sealed = self
            .all
            .iter()
            .find(|root| root.read_only && beneath::same_file(&root.status, directory));
        sealed.map_or(Ok(()), |root| Err(root.refusal(spelled)))
    }

    /// Follows `path` to the end. What does not exist is kept as spelled.
    pub(super) fn resolve(&self, path: &Path) -> Result<Place<'_>, Unresolved> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.contains(&0) {
            return Err(Errno::INVAL.into());
        }
        if bytes.len() >= PATH_BYTES_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        let workdir = self.all.first().ok_or(Unresolved::Outside)?;
        let mut walked = PathBuf::from("/");
        let mut found = None;
        let mut hops = 0;
        let mut ahead = Vec::new();
        put_ahead(&mut ahead, &self.with_canonical_root(&collapsed(&workdir.path.join(path))));
        while let Some(name) = ahead.pop() {
            match name.as_bytes() {
                // A link may lead to its own directory: look at that.
                b"." => {}
                b".." => {
                    walked.pop();
                }
                _ => walked.push(&name),
            }
            found = None;
            let Some(root) = self.holding(&walked) else { continue };
            match look(root, &walked)? {
                None => {}
                Some(Seen::Entry(status)) => found = Some(status),
                Some(Seen::Link(target)) => {
                    hops += 1;
                    if hops > HOPS_MAX {
                        return Err(Unresolved::Hops);
                    }
                    walked.pop();
                    if target.is_absolute() {
                        walked = PathBuf::from("/");
                    }
                    put_ahead(&mut ahead, &self.with_canonical_root(&target));
                }
            }
        }
        let root = self.holding(&walked).ok_or(Unresolved::Outside)?;
        let below = walked.strip_prefix(&root.path).map_err(|_| Unresolved::Outside)?.to_owned();
        Ok(Place { root, below, found })
    }

    /// The innermost root that `path` is in.
    fn holding(&self, path: &Path) -> Option<&Root> {
        let holding = self.all.iter().filter(|root| path.starts_with(&root.path));
        holding.max_by_key(|root| root.path.as_os_str().len())
    }

    /// `path`, if it goes through the spelling of a root, with that root's canonical path instead.
    fn with_canonical_root(&self, path: &Path) -> PathBuf {
        let alias = self.all.iter().filter(|root| path.starts_with(&root.spelled));
        let Some(root) = alias.max_by_key(|root| root.spelled.as_os_str().len()) else {
            return path.to_owned();
        };
        path.strip_prefix(&root.spelled)
            .map_or_else(|_| path.to_owned(), |rest| root.path.join(rest))
    }
}

impl Root {
    fn open(path: &Path, read_only: bool) -> io::Result<Root> {
        let spelled = collapsed(&std::path::absolute(path)?);
        let path = path.canonicalize()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty())?;
        let status = fstat(&directory)?;
        Ok(Root { spelled, path, directory, status, read_only })
    }

    fn refusal(&self, path: &Spelled) -> Failure {
        Failure::ReadOnly { path: path.clone(), root: self.spelled.display().to_string() }
    }
}

enum Seen {
    Entry(Stat),
    Link(PathBuf),
}

/// What `path`, canonical but for its last component, is.
fn look(root: &Root, path: &Path) -> Result<Option<Seen>, Errno> {
    let below = path.strip_prefix(&root.path).map_err(|_| Errno::XDEV)?;
    let entry = match beneath::open(root.directory.as_fd(), below, OFlags::PATH) {
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    let status = fstat(&entry)?;
    if beneath::kind(&status) != FileType::Symlink {
        return Ok(Some(Seen::Entry(status)));
    }
    // Of the very link that was opened.
    let target = readlinkat(&entry, "", Vec::new())?;
    Ok(Some(Seen::Link(PathBuf::from(OsString::from_vec(target.into_bytes())))))
}

/// Without `.` and `..`, as text. Never above `/`.
fn collapsed(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

/// Puts the names of `path`, `.` and `..` among them, in front of what is still to be walked.
fn put_ahead(ahead: &mut Vec<OsString>, path: &Path) {
    let names = path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::CurDir => Some(OsString::from(".")),
        Component::RootDir | Component::Prefix(_) => None,
    });
    ahead.extend(names);
}
