//! Opens a path below a directory descriptor without ever leaving it or following a link.
//!
//! All other files of this module reach the file system through here. The path is already
//! canonical; if somebody swaps a component for a link in the meantime, the call fails.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2};
use rustix::io::{Errno, retry_on_intr};

/// How many times an open that lost a race inside the kernel is tried again.
const TRIES_MAX: u32 = 16;

/// Opens `below` (relative, without `.`, `..` and links; empty for the directory itself).
///
/// A link as last component is opened itself if `flags` has `PATH`, and is an error otherwise.
/// Nothing is created: `flags` must not have `CREATE`.
///
/// # Errors
/// `LOOP` if a component is a link, `XDEV` if the path would leave the directory, or what open(2)
/// says.
///
/// Source: openat2(2), "`RESOLVE_BENEATH`", "`RESOLVE_NO_SYMLINKS`".
pub fn open(root: BorrowedFd<'_>, below: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    match open_at_once(root, below, flags) {
        // A kernel before Linux 5.6, or a filter that does not know the call.
        Err(Errno::NOSYS) => open_by_components(root, below, flags),
        other => other,
    }
}

fn open_at_once(root: BorrowedFd<'_>, below: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut tries = 1;
    loop {
        match retry_on_intr(|| openat2(root, below, flags, Mode::empty(), resolve)) {
            // A rename elsewhere on the machine can cause it: openat2(2).
            Err(Errno::AGAIN) if tries < TRIES_MAX => tries += 1,
            other => return other,
        }
    }
}

/// The same without openat2: one directory after the other, none of them through a link.
fn open_by_components(root: BorrowedFd<'_>, below: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut names = Vec::new();
    for component in below.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(Errno::XDEV);
            }
        }
    }
    let Some((last, parents)) = names.split_last() else {
        return retry_on_intr(|| openat(root, ".", flags, Mode::empty()));
    };
    let mut directory: Option<OwnedFd> = None;
    for name in parents {
        let here = directory.as_ref().map_or(root, AsFd::as_fd);
        directory = Some(enter(here, name)?);
    }
    let here = directory.as_ref().map_or(root, AsFd::as_fd);
    retry_on_intr(|| openat(here, *last, flags, Mode::empty()))
}

/// Opens the directory `name` in `here`; a link is an error.
fn enter(here: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let entry = retry_on_intr(|| openat(here, name, flags, Mode::empty()))?;
    match kind(&fstat(&entry)?) {
        FileType::Directory => Ok(entry),
        FileType::Symlink => Err(Errno::LOOP),
        _ => Err(Errno::NOTDIR),
    }
}

/// What a file is.
pub fn kind(status: &Stat) -> FileType {
    FileType::from_raw_mode(status.st_mode)
}

/// The size of a file.
pub fn bytes(status: &Stat) -> u64 {
    u64::try_from(status.st_size).unwrap_or(0)
}

/// Whether two descriptors show the same file.
pub fn same_file(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// Opens the regular file `below` for reading or writing, without waiting for anything.
///
/// The file is looked at before it is opened, so a FIFO or a device is not touched; should it be
/// swapped in between, the open neither waits nor gives a descriptor that is used.
///
/// # Errors
/// `None` if it is not a regular file.
pub fn open_regular(
    root: BorrowedFd<'_>,
    below: &Path,
    access: OFlags,
) -> Result<(OwnedFd, Stat), Option<Errno>> {
    let looked_at = fstat(open(root, below, OFlags::PATH)?)?;
    match kind(&looked_at) {
        FileType::RegularFile => {}
        // Only a link that was not there a moment ago.
        FileType::Symlink => return Err(Some(Errno::LOOP)),
        _ => return Err(None),
    }
    let file = open(root, below, access | OFlags::NONBLOCK | OFlags::NOCTTY)?;
    let status = fstat(&file)?;
    if kind(&status) == FileType::RegularFile { Ok((file, status)) } else { Err(None) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn both_ways_of_opening_agree_and_never_follow_a_link() {
        // TOOL-PATH-3
        let place = tempfile::tempdir().expect("a directory");
        let root_path = place.path().join("root");
        fs::create_dir_all(root_path.join("a/b")).expect("directories");
        fs::write(root_path.join("a/b/file"), "x").expect("a file");
        fs::write(place.path().join("secret"), "x").expect("a file");
        symlink("a", root_path.join("link")).expect("a link");
        symlink("..", root_path.join("up")).expect("a link");
        symlink("/etc/passwd", root_path.join("out")).expect("a link");
        let root = fs::File::open(&root_path).expect("the root");
        let cases = [
            ("", OFlags::PATH, Ok(FileType::Directory)),
            ("a", OFlags::PATH, Ok(FileType::Directory)),
            ("a/b/file", OFlags::RDONLY, Ok(FileType::RegularFile)),
            ("a/b/none", OFlags::RDONLY, Err(Errno::NOENT)),
            ("a/none/file", OFlags::RDONLY, Err(Errno::NOENT)),
            ("a/b/file/more", OFlags::PATH, Err(Errno::NOTDIR)),
            ("link", OFlags::PATH, Ok(FileType::Symlink)),
            ("link", OFlags::RDONLY, Err(Errno::LOOP)),
            ("link/b/file", OFlags::RDONLY, Err(Errno::LOOP)),
            ("out", OFlags::RDONLY, Err(Errno::LOOP)),
            ("up/secret", OFlags::RDONLY, Err(Errno::LOOP)),
            ("../secret", OFlags::RDONLY, Err(Errno::XDEV)),
            ("/etc/passwd", OFlags::RDONLY, Err(Errno::XDEV)),
        ];
        for (below, flags, want) in cases {
            for way in [open_at_once, open_by_components, open] {
                let got = way(root.as_fd(), Path::new(below), flags)
                    .map(|file| kind(&fstat(file).expect("a status")));
                assert_eq!(got, want, "{below}");
            }
        }
    }
}
