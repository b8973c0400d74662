//! Paths of the control side, checked once more where they are used, and the directories on their
//! way.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, mkdirat};
use rustix::io::Errno;

use crate::tool::files::beneath;

use super::{Refusal, shortened};

/// Longest path, in bytes.
pub const PATH_BYTES_MAX: usize = 1_024;
/// Longest name of a directory entry, in bytes: `NAME_MAX` of the kernel.
pub const NAME_BYTES_MAX: usize = 255;
/// Mode of every directory that is made (SKILL-9, MEM-9).
pub const DIRECTORY_MODE: u32 = 0o700;

/// A way below a place: names, none of them `.` or `..`. Empty for the place itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way<'p>(&'p str);

impl<'p> Way<'p> {
    /// # Errors
    /// [`Refusal::Path`] for a path that is absolute, has an empty, `.` or `..` component or a control
    /// character, or is too long.
    pub fn new(path: &'p str) -> Result<Way<'p>, Refusal> {
        match problem(path) {
            _ if path.is_empty() => Ok(Way(path)),
            None => Ok(Way(path)),
            Some(reason) => Err(Refusal::Path { path: shortened(path), reason: reason.to_owned() }),
        }
    }

    /// As [`new`](Self::new); the place itself is refused too.
    pub fn to_entry(path: &'p str) -> Result<(Way<'p>, &'p str), Refusal> {
        match Way::new(path)?.split() {
            Some(split) => Ok(split),
            None => Err(Refusal::Path { path: String::new(), reason: "it is empty".to_owned() }),
        }
    }

    /// The way to the directory that it ends in, and the name there.
    pub fn split(self) -> Option<(Way<'p>, &'p str)> {
        match self.0.rsplit_once('/') {
            _ if self.0.is_empty() => None,
            Some((parent, name)) => Some((Way(parent), name)),
            None => Some((Way(""), self.0)),
        }
    }

    /// As the kernel wants it.
    pub fn path(self) -> &'p Path {
        Path::new(self.0)
    }

    /// Opens the directory that it leads to.
    pub fn open(self, place: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        beneath::open(place, self.path(), OFlags::PATH | OFlags::DIRECTORY)
    }

    /// As [`open`](Self::open); makes what is missing.
    pub fn make(self, place: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let mut here = Way("").open(place)?;
        for name in self.0.split('/').filter(|name| !name.is_empty()) {
            here = enter_or_make(here.as_fd(), name)?;
        }
        Ok(here)
    }
}

/// Opens the directory `name` of `here`, made if it is missing.
pub fn enter_or_make(here: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match beneath::open(here, Path::new(name), flags) {
        Err(Errno::NOENT) => {
            match mkdirat(here, name, Mode::from_raw_mode(DIRECTORY_MODE)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            beneath::open(here, Path::new(name), flags)
        }
        opened => opened,
    }
}

/// What is wrong with a relative path.
fn problem(path: &str) -> Option<&'static str> {
    if path.len() > PATH_BYTES_MAX {
        return Some("it is too long");
    }
    if path.starts_with('/') {
        return Some("it is absolute");
    }
    path.split('/').find_map(name_problem)
}

/// What is wrong with one name of a path.
pub fn name_problem(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("has an empty component"),
        "." | ".." => Some("has a component `.` or `..`"),
        _ if name.len() > NAME_BYTES_MAX => Some("has a component that is too long"),
        _ if name.chars().any(char::is_control) => Some("has a control character"),
        _ => None,
    }
}
