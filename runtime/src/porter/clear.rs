//! Removes everything below a directory, however it came there: trees deeper than any path, names of
//! any bytes, directories that their owner may not enter.
//!
//! Holds a bounded number of descriptors: what lies deeper than [`DEPTH_MAX`] is first moved up to
//! the directory that is being cleared.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

use super::path::Way;
use super::put::TEMPORARY;
use super::{Refusal, Watch, shortened};

/// Directories inside directories that are entered; deeper ones are moved up.
const DEPTH_MAX: usize = 32;
/// Attempts at one entry to which somebody adds meanwhile.
const ROUNDS_MAX: u32 = 64;
/// Entries that are removed; a place has its own bound on inodes, and none is this large.
const ENTRIES_MAX: u64 = 4_000_000;

/// Removes everything below `directory`, which stays.
///
/// # Errors
/// [`Refusal`] if something cannot be removed, or if entries are added faster than they are removed.
pub fn clear(directory: BorrowedFd<'_>, watch: &mut dyn Watch) -> Result<(), Refusal> {
    let mut sweep = Sweep { top: directory, watch, moved: Vec::new(), removed: 0 };
    // What is deep takes several rounds; what is added meanwhile is counted like everything else.
    loop {
        sweep.watch.go_on()?;
        let here = reopen(directory).map_err(|errno| Refusal::system("open the place", errno))?;
        if sweep.empty(here, 0)? == 0 {
            return Ok(());
        }
    }
}

/// Removes the entry `path` below `place`, with everything below it. One that is not there is no error.
///
/// # Errors
/// As [`clear`]; [`Refusal::Path`] for the place itself.
pub fn remove_tree(
    place: BorrowedFd<'_>,
    path: &str,
    watch: &mut dyn Watch,
) -> Result<(), Refusal> {
    let (parent, name) = Way::to_entry(path)?;
    unlock_open(place).map_err(|errno| Refusal::system("open the place", errno))?;
    match parent.open(place) {
        Ok(parent) => remove_entry(parent.as_fd(), &c_name(name)?, watch),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
        Err(errno) => Err(Refusal::system(format!("remove {}", shortened(path)), errno)),
    }
}

/// Removes the entry `name` of `directory`, with everything below it.
///
/// # Errors
/// As [`clear`].
pub(super) fn remove_entry(
    directory: BorrowedFd<'_>,
    name: &CStr,
    watch: &mut dyn Watch,
) -> Result<(), Refusal> {
    let mut sweep = Sweep { top: directory, watch, moved: Vec::new(), removed: 0 };
    let mut name = name.to_owned();
    let mut rounds = 0;
    loop {
        match statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) if rounds < ROUNDS_MAX => {
                rounds += 1;
                sweep.remove(directory, &name, 0)?;
            }
            Ok(_) => return Err(Refusal::system("remove a directory", Errno::NOTEMPTY)),
            Err(Errno::NOENT) => match sweep.moved.pop() {
                None => return Ok(()),
                Some(next) => {
                    name = next;
                    rounds = 0;
                }
            },
            Err(errno) => return Err(Refusal::system("look at a directory", errno)),
        }
    }
}

struct Sweep<'a> {
    top: BorrowedFd<'a>,
    watch: &'a mut dyn Watch,
    /// Names of directories that were moved up.
    moved: Vec<CString>,
    removed: u64,
}

impl Sweep<'_> {
    /// Removes the entries of an open directory; how many there were.
    fn empty(&mut self, directory: OwnedFd, depth: usize) -> Result<u64, Refusal> {
        let refused = |errno| Refusal::system("list a directory", errno);
        let here = directory.try_clone().map_err(|error| Refusal::system("list", error))?;
        let mut seen = 0;
        for entry in Dir::new(directory).map_err(refused)? {
            let entry = entry.map_err(refused)?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            seen += 1;
            self.remove(here.as_fd(), name, depth)?;
        }
        Ok(seen)
    }

    fn remove(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<(), Refusal> {
        self.removed += 1;
        if self.removed > ENTRIES_MAX {
            return Err(Refusal::system("empty the place", Errno::NOTEMPTY));
        }
        if self.removed.is_multiple_of(256) {
            self.watch.go_on()?;
        }
        loop {
            match unlinkat(parent, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // Linux says EISDIR; POSIX allows EPERM.
                Err(Errno::ISDIR | Errno::PERM) => {}
                Err(errno) => return Err(Refusal::system("remove a file", errno)),
            }
            match unlinkat(parent, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(Errno::NOTDIR) => {
                    self.watch.go_on()?; // swapped since
                    continue;
                }
                Err(errno) => return Err(Refusal::system("remove a directory", errno)),
            }
            return self.remove_tree(parent, name, depth);
        }
    }

    fn remove_tree(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        depth: usize,
    ) -> Result<(), Refusal> {
        let refused = |act: &'static str| move |errno: Errno| Refusal::system(act, errno);
        if depth >= DEPTH_MAX {
            let up = TEMPORARY.name().map_err(refused("choose a name"))?;
            let up = c_name(&up)?;
            return match renameat(parent, name, self.top, &up) {
                Ok(()) => {
                    self.moved.push(up);
                    Ok(())
                }
                Err(Errno::NOENT) => Ok(()),
                Err(errno) => Err(Refusal::system("move a deep directory up", errno)),
            };
        }
        let child = match enter(parent, name) {
            Err(Errno::ACCESS) => {
                unlock(parent, name).map_err(refused("unlock a directory"))?;
                enter(parent, name)
            }
            other => other,
        };
        match child {
            Ok(child) => {
                // Its own owner may have forbidden to change it.
                unlock_open(child.as_fd()).map_err(refused("unlock a directory"))?;
                self.empty(child, depth + 1)?;
            }
            // Swapped or gone since: the next round sees.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(Refusal::system("open a directory", errno)),
        }
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            // Something was added or swapped in: the next round sees.
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => Ok(()),
            Err(errno) => Err(Refusal::system("remove a directory", errno)),
        }
    }
}

fn enter(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags =
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// A descriptor of the same directory that can be listed.
fn reopen(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    unlock_open(directory)?;
    enter(directory, c".")
}

/// Lets the owner read, change and enter a directory. What is none is left.
fn unlock(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
    if !directory {
        return Err(Errno::ACCESS);
    }
    let mode = Mode::from_raw_mode((found.st_mode | 0o700) & 0o1777);
    // A link swapped in would let us change the mode of what belongs to the same id anyway.
    rustix::fs::chmodat(parent, name, mode, AtFlags::empty())
}

/// The same for a directory that is open. One that is open by its path only, or belongs to somebody
/// else, stays as it is.
pub(super) fn unlock_open(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    let found = rustix::fs::fstat(directory)?;
    if found.st_mode & 0o700 == 0o700 {
        return Ok(());
    }
    match rustix::fs::fchmod(directory, Mode::from_raw_mode((found.st_mode | 0o700) & 0o1777)) {
        Err(Errno::BADF | Errno::PERM) => Ok(()),
        done => done,
    }
}

/// A name as the kernel wants it.
pub(super) fn c_name(name: &str) -> Result<CString, Refusal> {
    CString::new(name).map_err(|_| Refusal::system("use a name", Errno::INVAL))
}
