//! Memory stores: a marker, files, and what a sync has to know of them.
//!
//! Everything in a store may have been put there by the payload, and be changed while it is looked
//! at. What cannot be read although it is there makes a scan fail: a file that is merely unreadable
//! must never look like one that was removed (RACE-18). Nothing is remembered from scan to scan: a
//! tmpfs does not note the time of writes to a page that is mapped already, so unchanged times prove
//! nothing, and a store is small enough to be hashed as a whole (MEM-10 allows a cache, and does not
//! ask for one). What is too long to be a memory is not read at all: a file of holes can be longer than
//! anybody can read.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat, fstat, statat, unlinkat,
};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::tool::files::beneath;
use crate::tool::files::beside::Beside;

use super::clear::{clear, unlock_open};
use super::path::{NAME_BYTES_MAX, PATH_BYTES_MAX, Way, name_problem};
use super::put::TEMPORARY;
use super::{Marker, Refusal, Removed, Scan, Scanned, Watch, shortened};

/// Name of the file that says that a directory is a store of ours (MEM-6).
pub const MARKER: &str = ".anthropic-memory-store";
/// Mode of every file (MEM-9).
const FILE_MODE: u32 = 0o600;
/// Entries of a scan, whatever they are.
const ENTRIES_MAX: u64 = 100_000;
/// Bytes of all paths of a scan.
const NAMES_BYTES_MAX: u64 = 16 << 20;
/// Longest file that is told by its content. A longer one is no memory (MEMAPI-1), may be all holes, and
/// is told by its length and the time of its last write.
pub const HASHED_BYTES_MAX: u64 = 1 << 20;
/// Bytes of holes in the hashed files of a scan. Holes cost whoever makes them nothing, so the size of
/// the folder does not bound them.
const HOLES_BYTES_MAX: u64 = 64 << 20;
/// Bytes of a block of `st_blocks`, on every file system.
const BLOCK_BYTES: u64 = 512;
/// Bytes hashed at a time.
const CHUNK: usize = 128 << 10;
/// How often an open that meets something else than was listed is tried again.
const TRIES_MAX: u32 = 8;

/// Empties `store` and marks it (MEM-6).
///
/// # Errors
/// [`Refusal`]; the store may be half empty then.
pub fn prepare(store: BorrowedFd<'_>, marker: &[u8], watch: &mut dyn Watch) -> Result<(), Refusal> {
    clear(store, watch)?;
    replace(store, MARKER, marker)
}

/// Marks `store` and leaves everything else in it: what a session wrote since its folder was destroyed
/// is no memory yet, and is all there is of it (MEM-13).
///
/// # Errors
/// [`Refusal`].
pub fn mark(store: BorrowedFd<'_>, marker: &[u8]) -> Result<(), Refusal> {
    unlock_open(store).map_err(|errno| Refusal::system("open the store", errno))?;
    replace(store, MARKER, marker)
}

/// Everything that is in `store` (MEM-10, MEM-11).
///
/// # Errors
/// [`Refusal`] if something that is there cannot be read, or if there is too much.
pub fn scan(store: BorrowedFd<'_>, marker: &[u8], watch: &mut dyn Watch) -> Result<Scan, Refusal> {
    unlock_open(store).map_err(|errno| Refusal::system("open the store", errno))?;
    let mut walk = Walk {
        store,
        watch,
        files: BTreeMap::new(),
        skipped: 0,
        entries: 0,
        names: 0,
        holes: 0,
        ahead: vec![String::new()],
    };
    while let Some(directory) = walk.ahead.pop() {
        walk.directory(&directory)?;
    }
    let (files, skipped) = (walk.files, walk.skipped);
    let files =
        files.into_iter().map(|(path, (bytes, sha256))| Scanned { path, bytes, sha256 }).collect();
    // Last, so that a store whose mark is taken away during the scan is not trusted.
    Ok(Scan { marker: marked(store, marker)?, files, skipped })
}

/// The content of a file; `None` if it is absent or no regular file.
///
/// # Errors
/// [`Refusal`] if it cannot be read, or is longer than `bytes_max`.
pub fn read(store: BorrowedFd<'_>, path: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, Refusal> {
    Way::to_entry(path)?;
    unlock_open(store).map_err(|errno| Refusal::system("open the store", errno))?;
    let Some((file, status)) = open_file(store, Path::new(path), path)? else { return Ok(None) };
    let room = usize::try_from(beneath::bytes(&status).min(bytes_max)).unwrap_or(0);
    let mut content = Vec::with_capacity(room);
    let read = file.take(bytes_max.saturating_add(1)).read_to_end(&mut content);
    read.map_err(|error| Refusal::system(format!("read {}", shortened(path)), error))?;
    if content.len() as u64 > bytes_max {
        let what = format!("read {}", shortened(path));
        return Err(Refusal::TooMuch { what, limit: bytes_max, unit: "bytes".to_owned() });
    }
    Ok(Some(content))
}

/// Writes a file in one step, 0600, and makes its directories, 0700 (MEM-9).
///
/// # Errors
/// [`Refusal`]; the file is then as it was.
pub fn write(store: BorrowedFd<'_>, path: &str, content: &[u8]) -> Result<(), Refusal> {
    let (parent, name) = Way::to_entry(path)?;
    if path == MARKER || TEMPORARY.is(name) {
        let reason = "this name is the store's own".to_owned();
        return Err(Refusal::Path { path: shortened(path), reason });
    }
    let refused = |errno| Refusal::system(format!("write {}", shortened(path)), errno);
    unlock_open(store).map_err(refused)?;
    let parent = parent.make(store).map_err(refused)?;
    replace(parent.as_fd(), name, content).map_err(|refusal| match refusal {
        Refusal::System { errno, .. } => refused(Errno::from_raw_os_error(errno)),
        other => other,
    })
}

/// Removes a file if its content is what is expected (MEM-16).
///
/// # Errors
/// [`Refusal`] if it cannot be read or removed.
pub fn remove(
    store: BorrowedFd<'_>,
    path: &str,
    only_if_sha256: [u8; 32],
    watch: &mut dyn Watch,
) -> Result<Removed, Refusal> {
    let (parent, name) = Way::to_entry(path)?;
    let refused = |errno| Refusal::system(format!("remove {}", shortened(path)), errno);
    unlock_open(store).map_err(refused)?;
    let parent = match parent.open(store) {
        Ok(parent) => parent,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Removed::Absent),
        Err(errno) => return Err(refused(errno)),
    };
    let there = match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(there) => there,
        Err(Errno::NOENT) => return Ok(Removed::Absent),
        Err(errno) => return Err(refused(errno)),
    };
    if beneath::kind(&there) != FileType::RegularFile {
        return Ok(Removed::Changed);
    }
    let Some((mut file, opened)) = open_file(parent.as_fd(), Path::new(name), path)? else {
        return Ok(Removed::Changed);
    };
    let (_, found) = hash(&mut file, &opened, path, watch)?;
    let same = |status: &Stat| {
        beneath::same_file(status, &opened)
            && (status.st_size, status.st_mtime, status.st_mtime_nsec)
                == (opened.st_size, opened.st_mtime, opened.st_mtime_nsec)
    };
    // What is written from here on is lost: the kernel has no removal on a condition.
    match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(now) if found == only_if_sha256 && same(&now) => {}
        Ok(_) => return Ok(Removed::Changed),
        Err(Errno::NOENT) => return Ok(Removed::Absent),
        Err(errno) => return Err(refused(errno)),
    }
    match unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) => Ok(Removed::Removed),
        Err(Errno::NOENT) => Ok(Removed::Absent),
        Err(errno) => Err(refused(errno)),
    }
}

/// Puts a file of `content` in the place of `name`.
fn replace(directory: BorrowedFd<'_>, name: &str, content: &[u8]) -> Result<(), Refusal> {
    let refused = |errno| Refusal::system("write a file", errno);
    let beside = Beside::create(directory, &TEMPORARY).map_err(refused)?;
    (&beside.file).write_all(content).map_err(|error| Refusal::system("write a file", error))?;
    beside.keep(Path::new(name), FILE_MODE, RenameFlags::empty()).map_err(refused)
}

/// Whether the marker is what was written.
fn marked(store: BorrowedFd<'_>, marker: &[u8]) -> Result<Marker, Refusal> {
    match statat(store, MARKER, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(Marker::Missing),
        Err(errno) => return Err(Refusal::system("look at the marker", errno)),
        Ok(found) if beneath::kind(&found) != FileType::RegularFile => {
            return Ok(Marker::Different);
        }
        Ok(_) => {}
    }
    Ok(match read(store, MARKER, marker.len() as u64) {
        Ok(Some(found)) if found == marker => Marker::Intact,
        Ok(None) => Marker::Missing,
        Ok(Some(_)) | Err(Refusal::TooMuch { .. }) => Marker::Different,
        Err(refusal) => return Err(refusal),
    })
}

/// Opens a regular file to read, ours even where its owner may not; `None` if there is none.
fn open_file(
    root: BorrowedFd<'_>,
    below: &Path,
    path: &str,
) -> Result<Option<(File, Stat)>, Refusal> {
    let mut unlocked = false;
    for _ in 0..TRIES_MAX {
        match beneath::open_regular(root, below, OFlags::RDONLY) {
            Ok((file, status)) => return Ok(Some((File::from(file), status))),
            // Something else, or nothing: no memory is there.
            Err(None | Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => return Ok(None),
            Err(Some(Errno::ACCESS)) if !unlocked => {
                unlocked = true;
                unlock_way(root, below)
                    .map_err(|errno| Refusal::system(format!("read {}", shortened(path)), errno))?;
            }
            Err(Some(Errno::AGAIN)) => {}
            Err(Some(errno)) => {
                return Err(Refusal::system(format!("read {}", shortened(path)), errno));
            }
        }
    }
    Err(Refusal::system(format!("read {}", shortened(path)), Errno::AGAIN))
}

/// Lets us read a file whose owner, we by another name, took that right away; its directories too.
fn unlock_way(root: BorrowedFd<'_>, below: &Path) -> Result<(), Errno> {
    let mut here: OwnedFd = beneath::open(root, Path::new(""), OFlags::PATH)?;
    for name in below {
        let found = statat(&here, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let needed = match beneath::kind(&found) {
            FileType::Directory => 0o700,
            FileType::RegularFile => 0o600,
            _ => return Ok(()),
        };
        if found.st_mode & needed != needed {
            let mode = Mode::from_raw_mode((found.st_mode | needed) & 0o1777);
            rustix::fs::chmodat(&here, name, mode, AtFlags::empty())?;
        }
        if needed == 0o700 {
            here = beneath::open(here.as_fd(), Path::new(name), OFlags::PATH | OFlags::DIRECTORY)?;
        }
    }
    Ok(())
}

/// Length and digest of a file: of its content, or, where it is longer than [`HASHED_BYTES_MAX`], of what
/// its status says. Reads no more than that, however it grows meanwhile.
fn hash(
    file: &mut File,
    status: &Stat,
    path: &str,
    watch: &mut dyn Watch,
) -> Result<(u64, [u8; 32]), Refusal> {
    if beneath::bytes(status) > HASHED_BYTES_MAX {
        return Ok(by_status(status));
    }
    let (mut digest, mut bytes) = (Sha256::new(), 0_u64);
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => return Ok((bytes, digest.finalize().into())),
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(Refusal::system(format!("read {}", shortened(path)), error));
            }
        };
        bytes += read as u64;
        if bytes > HASHED_BYTES_MAX {
            let now = fstat(&*file);
            let now = now.map_err(|e| Refusal::system(format!("read {}", shortened(path)), e))?;
            let (length, told) = by_status(&now);
            return Ok((length.max(bytes), told));
        }
        digest.update(&buffer[..read]);
        watch.go_on()?;
    }
}

/// Length and digest of a file that is not read. Not the digest of any content that is likely.
fn by_status(status: &Stat) -> (u64, [u8; 32]) {
    let mut digest = Sha256::new_with_prefix(b"a file too long to be a memory\0");
    digest.update(status.st_size.to_le_bytes());
    digest.update(status.st_mtime.to_le_bytes());
    digest.update(status.st_mtime_nsec.to_le_bytes());
    (beneath::bytes(status), digest.finalize().into())
}

struct Walk<'a> {
    store: BorrowedFd<'a>,
    watch: &'a mut dyn Watch,
    files: BTreeMap<String, (u64, [u8; 32])>,
    skipped: u64,
    entries: u64,
    names: u64,
    holes: u64,
    /// Directories that are still to be listed, by their paths: depth costs no descriptors.
    ahead: Vec<String>,
}

impl Walk<'_> {
    fn directory(&mut self, path: &str) -> Result<(), Refusal> {
        let Some(listing) = self.list(path)? else { return Ok(()) };
        for (name, kind) in listing {
            let text = match name.to_str() {
                Ok(text) if name_problem(text).is_none() => text,
                _ => {
                    self.skipped += 1;
                    continue;
                }
            };
            let below = if path.is_empty() { text.to_owned() } else { format!("{path}/{text}") };
            if below.len() > PATH_BYTES_MAX {
                self.skipped += 1;
                continue;
            }
            if below == MARKER {
                continue;
            }
            self.names += below.len() as u64;
            match kind {
                FileType::Directory => self.ahead.push(below),
                // Of a write that was killed half way (MEM-34).
                FileType::RegularFile if TEMPORARY.is(text) => {
                    self.remove_leftover(&below);
                }
                FileType::RegularFile => self.file(below)?,
                _ => self.skipped += 1,
            }
        }
        Ok(())
    }

    /// The entries of a directory; `None` if it is gone meanwhile.
    fn list(&mut self, path: &str) -> Result<Option<Vec<(CString, FileType)>>, Refusal> {
        let refused =
            |errno| Refusal::system(format!("list the directory `{}`", shortened(path)), errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK;
        let open = || beneath::open(self.store, Path::new(path), flags);
        let opened = match open() {
            Err(Errno::ACCESS) => {
                unlock_way(self.store, Path::new(path)).map_err(refused)?;
                open()
            }
            other => other,
        };
        let directory = match opened {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !path.is_empty() => {
                return Ok(None);
            }
            Err(errno) => return Err(refused(errno)),
        };
        let mut found = Vec::new();
        for entry in Dir::new(directory).map_err(refused)? {
            let entry = entry.map_err(refused)?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.count(name.count_bytes())?;
            let kind = match entry.file_type() {
                FileType::Unknown => self.kind(path, name),
                kind => kind,
            };
            found.push((name.to_owned(), kind));
        }
        Ok(Some(found))
    }

    fn too_much(limit: u64, unit: &str) -> Result<(), Refusal> {
        let (what, unit) = ("scan the store".to_owned(), unit.to_owned());
        Err(Refusal::TooMuch { what, limit, unit })
    }

    fn count(&mut self, name_bytes: usize) -> Result<(), Refusal> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Walk::too_much(ENTRIES_MAX, "entries");
        }
        self.names += name_bytes.min(NAME_BYTES_MAX) as u64;
        if self.names > NAMES_BYTES_MAX {
            return Walk::too_much(NAMES_BYTES_MAX, "bytes of names");
        }
        if self.entries.is_multiple_of(64) { self.watch.go_on() } else { Ok(()) }
    }

    /// Of an entry of which the file system does not tell.
    fn kind(&self, path: &str, name: &std::ffi::CStr) -> FileType {
        use std::os::unix::ffi::OsStrExt as _;
        let below = Path::new(path).join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let opened = beneath::open(self.store, &below, OFlags::PATH);
        opened.and_then(fstat).map_or(FileType::Unknown, |status| beneath::kind(&status))
    }

    fn file(&mut self, path: String) -> Result<(), Refusal> {
        let Some((mut file, status)) = open_file(self.store, Path::new(&path), &path)? else {
            return Ok(()); // gone, or something else by now
        };
        let bytes = beneath::bytes(&status);
        if bytes <= HASHED_BYTES_MAX {
            let filled = u64::try_from(status.st_blocks).unwrap_or(0).saturating_mul(BLOCK_BYTES);
            self.holes += bytes.saturating_sub(filled);
        }
        if self.holes > HOLES_BYTES_MAX {
            return Walk::too_much(HOLES_BYTES_MAX, "bytes of holes");
        }
        let found = hash(&mut file, &status, &path, self.watch)?;
        self.files.insert(path, found);
        Ok(())
    }

    fn remove_leftover(&self, path: &str) {
        let Some((parent, name)) = Way::new(path).ok().and_then(Way::split) else { return };
        if let Ok(parent) = parent.open(self.store) {
            // Harmless where it stays: no scan counts it.
            let _ = unlinkat(&parent, name, AtFlags::empty());
        }
    }
}
