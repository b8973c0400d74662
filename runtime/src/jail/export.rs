//! Brings what the payload changed in a bound directory to the host, after the payload is dead.
//!
//! Runs in a process of its own, cloned by the launcher, with the payload's host id, without
//! capabilities, in a landlock domain that holds the two trees and nothing else. It reads a tree
//! that hostile code made, so it opens every name relative to a directory descriptor and follows
//! no link. Only plain files, directories and symbolic links pass; modes lose their setuid and
//! setgid bits and extended attributes do not pass, so nothing dangerous is left outside.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, ResolveFlags, Stat, Timestamps, openat,
    openat2, statat,
};
use serde::{Deserialize, Serialize};

use super::workspace::{ExportKind, ExportOrder};

/// Directories inside directories; deeper ones are skipped and reported.
const DEPTH_MAX: usize = 200;
/// Skipped entries that are named in the report.
const NAMED_MAX: usize = 20;
/// A name in the making; renamed over its target when complete.
const TEMPORARY: &CStr = c".stockade-export";

/// What was done to one bound directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportReport {
    /// Files and links written, directories made.
    pub written: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Names removed.
    pub removed: u64,
    /// Files whose dangerous mode bits were taken away.
    pub scrubbed: u64,
    /// Entries that do not leave a jail, or could not be written.
    pub skipped: u64,
    /// How many of those could not be written: work that is lost.
    pub failed: u64,
    /// The first of them, with the reason.
    pub skipped_names: Vec<String>,
}

/// Does the work of one bound directory.
pub(super) fn export(order: &ExportOrder, mounts: &[OwnedFd]) -> ExportReport {
    let made = order.made.as_slice();
    let mut export = Export { report: ExportReport::default(), path: Vec::new(), made };
    let outcome = match (order.kind, mounts) {
        (ExportKind::CopyBack, [upper, destination]) => readable(upper)
            .and_then(|upper| export.merge(upper.as_fd(), readable(destination)?.as_fd(), 0)),
        (ExportKind::Scrub, [tree]) => readable(tree).and_then(|tree| {
            let scrubbed = export.scrub(tree.as_fd(), 0);
            remove_made(tree.as_fd(), made);
            scrubbed
        }),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    if let Err(error) = outcome {
        export.fail(c".", &error.to_string());
    }
    export.report
}

struct Export<'m> {
    report: ExportReport,
    path: Vec<CString>,
    /// Directories that were made for mounts, not by the payload.
    made: &'m [PathBuf],
}

impl Export<'_> {
    fn fail(&mut self, name: &CStr, reason: &str) {
        self.report.failed += 1;
        self.skip(name, reason);
    }

    fn skip(&mut self, name: &CStr, reason: &str) {
        self.report.skipped += 1;
        if self.report.skipped_names.len() < NAMED_MAX {
            let mut path = String::new();
            for part in &self.path {
                path.push_str(&part.to_string_lossy());
                path.push('/');
            }
            self.report.skipped_names.push(format!("{path}{}: {reason}", name.to_string_lossy()));
        }
    }

    /// Applies the changes in `upper` to `destination`.
    fn merge(
        &mut self,
        upper: BorrowedFd<'_>,
        destination: BorrowedFd<'_>,
        depth: usize,
    ) -> io::Result<()> {
        // Two jails may be bound to one directory or to parts of it, and the temporary name is the
        // same everywhere. Parents are locked before children, so nobody waits in a circle.
        rustix::fs::flock(destination, FlockOperation::LockExclusive)?;
        for name in names(upper)? {
            let outcome = self.merge_entry(upper, destination, &name, depth);
            if let Err(error) = outcome {
                self.fail(&name, &error.to_string());
            }
        }
        Ok(())
    }

    fn merge_entry(
        &mut self,
        upper: BorrowedFd<'_>,
        destination: BorrowedFd<'_>,
        name: &CStr,
        depth: usize,
    ) -> io::Result<()> {
        let stat = statat(upper, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            // How overlayfs writes down that a name was removed (overlayfs.rst).
            FileType::CharacterDevice if stat.st_rdev == 0 => self.remove(destination, name, depth),
            FileType::Directory => self.directory(upper, destination, name, &stat, depth),
            FileType::RegularFile => self.file(upper, destination, name, &stat, depth),
            FileType::Symlink => self.link(upper, destination, name, depth),
            _ => {
                self.skip(name, "only files, directories and links leave a jail");
                Ok(())
            }
        }
    }

    fn directory(
        &mut self,
        upper: BorrowedFd<'_>,
        destination: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
        depth: usize,
    ) -> io::Result<()> {
        if depth >= DEPTH_MAX {
            self.fail(name, "too deep");
            return Ok(());
        }
        unlock(upper, name, stat, 0o700)?;
        let source = open_directory(upper, name)?;
        if !self.made.is_empty() && holds_nothing_else(&source, &self.below(name), self.made)? {
            return Ok(());
        }
        let existing = statat(destination, name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let is_directory = existing
            .is_some_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory);
        if existing.is_some() && (!is_directory || is_opaque(&source)) {
            self.remove(destination, name, depth)?;
        }
        match rustix::fs::mkdirat(destination, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => self.report.written += 1,
            Err(rustix::io::Errno::EXIST) => {
                let found = statat(destination, name, AtFlags::SYMLINK_NOFOLLOW)?;
                unlock(destination, name, &found, 0o700)?;
            }
            Err(error) => return Err(error.into()),
        }
        let target = open_directory(destination, name)?;
        self.path.push(name.to_owned());
        let outcome = self.merge(source.as_fd(), target.as_fd(), depth + 1);
        self.path.pop();
        outcome?;
        rustix::fs::fchmod(&target, Mode::from_raw_mode(stat.st_mode & 0o1777))?;
        Ok(rustix::fs::futimens(&target, &times(stat))?)
    }

    /// The path of an entry of the directory that is being merged.
    fn below(&self, name: &CStr) -> PathBuf {
        let names = self.path.iter().map(CString::as_c_str).chain([name]);
        names.map(|name| OsStr::from_bytes(name.to_bytes())).collect()
    }

    fn file(
        &mut self,
        upper: BorrowedFd<'_>,
        destination: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
        depth: usize,
    ) -> io::Result<()> {
        unlock(upper, name, stat, 0o400)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let source = File::from(openat(upper, name, flags, Mode::empty())?);
        let target = temporary_file(destination)?;
        let copied = copy_sparse(source, &target, stat.st_size as u64);
        let outcome = copied.and_then(|bytes| {
            rustix::fs::fchmod(&target, Mode::from_raw_mode(stat.st_mode & 0o777))?;
            rustix::fs::futimens(&target, &times(stat))?;
            self.replace(destination, name, depth)?;
            self.report.bytes += bytes;
            Ok(())
        });
        if outcome.is_err() {
            rustix::fs::unlinkat(destination, TEMPORARY, AtFlags::empty())?;
        }
        outcome
    }

    fn link(
        &mut self,
        upper: BorrowedFd<'_>,
        destination: BorrowedFd<'_>,
        name: &CStr,
        depth: usize,
    ) -> io::Result<()> {
        let target = rustix::fs::readlinkat(upper, name, Vec::new())?;
        remove_stale(destination)?;
        rustix::fs::symlinkat(&target, destination, TEMPORARY)?;
        self.replace(destination, name, depth)
    }

    /// Gives the complete new entry its name, in place of whatever had it.
    fn replace(&mut self, directory: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<()> {
        match rustix::fs::renameat(directory, TEMPORARY, directory, name) {
            Err(
                rustix::io::Errno::ISDIR | rustix::io::Errno::NOTEMPTY | rustix::io::Errno::EXIST,
            ) => {
                self.remove(directory, name, depth)?;
                rustix::fs::renameat(directory, TEMPORARY, directory, name)?;
            }
            other => other?,
        }
        self.report.written += 1;
        Ok(())
    }

    /// Removes a name and, if it is a directory, all below it.
    fn remove(&mut self, directory: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<()> {
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Err(rustix::io::Errno::ISDIR) => {
                if depth >= DEPTH_MAX {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                let found = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                unlock(directory, name, &found, 0o700)?;
                let below = open_directory(directory, name)?;
                for entry in names(below.as_fd())? {
                    self.remove(below.as_fd(), &entry, depth + 1)?;
                }
                rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)?;
            }
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            other => other?,
        }
        self.report.removed += 1;
        Ok(())
    }

    /// Takes setuid and setgid bits from the payload's files below `tree`.
    fn scrub(&mut self, tree: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
        for name in names(tree)? {
            match self.scrub_entry(tree, &name, depth) {
                // Another jail, or the host, works in the same directory.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.fail(&name, &error.to_string()),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn scrub_entry(&mut self, tree: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<()> {
        // Whatever the name stands for afterwards, this stays what was looked at.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry = openat(tree, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&entry)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let own = stat.st_uid == rustix::process::geteuid().as_raw();
        if own && kind == FileType::RegularFile && stat.st_mode & 0o6000 != 0 {
            set_mode(&entry, stat.st_mode)?;
            self.report.scrubbed += 1;
        }
        if kind != FileType::Directory {
            return Ok(());
        }
        if depth >= DEPTH_MAX {
            self.fail(name, "too deep");
            return Ok(());
        }
        // The payload may have shut itself out; it stays so.
        let shut = own && stat.st_mode & 0o500 != 0o500;
        if shut {
            set_mode(&entry, stat.st_mode | 0o700)?;
        }
        let outcome = open_directory(entry.as_fd(), c".").and_then(|below| {
            self.path.push(name.to_owned());
            let outcome = self.scrub(below.as_fd(), depth + 1);
            self.path.pop();
            outcome
        });
        if shut {
            set_mode(&entry, stat.st_mode)?;
        }
        outcome
    }
}

/// Sets the mode of what `entry` names, without the bits that are dangerous outside.
fn set_mode(entry: &OwnedFd, mode: u32) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", entry.as_raw_fd());
    let mode = Mode::from_raw_mode(mode & 0o1777);
    Ok(rustix::fs::chmodat(rustix::fs::CWD, path, mode, AtFlags::empty())?)
}

/// A mount's descriptor names a place and cannot be read from.
fn readable(mount: &OwnedFd) -> io::Result<OwnedFd> {
    open_directory(mount.as_fd(), c".")
}

fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

/// Gives the owner the rights in `needed`, which the payload may have taken from itself. Only for
/// what [`statat`] found not to be a link; nobody else is left who could replace it.
fn unlock(parent: BorrowedFd<'_>, name: &CStr, found: &Stat, needed: u32) -> io::Result<()> {
    let own = found.st_uid == rustix::process::geteuid().as_raw();
    let kind = FileType::from_raw_mode(found.st_mode);
    if !own || found.st_mode & needed == needed || kind == FileType::Symlink {
        return Ok(());
    }
    let mode = Mode::from_raw_mode((found.st_mode | needed) & 0o1777);
    Ok(rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?)
}

/// Whether `directory`, which is at `path`, was made for a mount and holds nothing but such.
fn holds_nothing_else(directory: &OwnedFd, path: &Path, made: &[PathBuf]) -> io::Result<bool> {
    if !made.iter().any(|made| made == path) {
        return Ok(false);
    }
    for name in names(directory.as_fd())? {
        let below = path.join(OsStr::from_bytes(name.to_bytes()));
        if !made.contains(&below) {
            return Ok(false);
        }
        let found = statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Directory
            || !holds_nothing_else(&open_directory(directory.as_fd(), &name)?, &below, made)?
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes what was made for mounts from a directory that is not copied back, as far as it is empty.
fn remove_made(tree: BorrowedFd<'_>, made: &[PathBuf]) {
    for path in made.iter().rev() {
        let parent = path.parent().unwrap_or(Path::new(""));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let Ok(parent) = openat2(tree, parent, flags, Mode::empty(), resolve) else { continue };
        if let Some(name) = path.file_name() {
            // The payload may have put something there, or somebody else uses it.
            let _ = rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR);
        }
    }
}

/// Whether overlayfs marked the directory as one that hides what was below it.
fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0u8; 4];
    rustix::fs::fgetxattr(directory, "user.overlay.opaque", &mut value)
        .is_ok_and(|length| length == 1 && value[0] == b'y')
}

fn times(stat: &Stat) -> Timestamps {
    let time =
        |seconds, nanoseconds| rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec as _),
    }
}

/// Left by an export that was killed.
fn remove_stale(directory: BorrowedFd<'_>) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, TEMPORARY, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn temporary_file(directory: BorrowedFd<'_>) -> io::Result<File> {
    remove_stale(directory)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(directory, TEMPORARY, flags, Mode::from_raw_mode(0o600))?))
}

/// Copies data and leaves holes as holes: a sparse file must not fill the host's disk.
fn copy_sparse(mut source: File, target: &File, size: u64) -> io::Result<u64> {
    let mut target = target;
    let mut buffer = vec![0u8; 1 << 18];
    let (mut position, mut copied) = (0, 0);
    while position < size {
        let data = match rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(position)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&source, rustix::fs::SeekFrom::Hole(data))?;
        source.seek(SeekFrom::Start(data))?;
        target.seek(SeekFrom::Start(data))?;
        let mut left = end - data;
        while left > 0 {
            let wanted = buffer.len().min(left as usize);
            let got = source.read(&mut buffer[..wanted])?;
            if got == 0 {
                break;
            }
            target.write_all(&buffer[..got])?;
            left -= got as u64;
            copied += got as u64;
        }
        position = end;
    }
    target.set_len(size)?;
    Ok(copied)
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
