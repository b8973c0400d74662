//! Lays one file into a place.

use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::tool::files::beside::{Beside, Temporary};

use super::path::Way;
use super::{Refusal, Replace, Watch, shortened};

/// Bytes copied at a time.
const CHUNK: usize = 128 << 10;

/// Copies `from`, from where it stands, to the file `path` below `place`; parents are made, 0700.
/// Returns its length.
///
/// `mode` counts only in whether the file is executable: 0755 or 0644.
///
/// # Errors
/// [`Refusal`]; nothing but empty directories is left then.
pub fn put(
    place: BorrowedFd<'_>,
    from: &mut dyn Read,
    path: &str,
    mode: u32,
    bytes_max: u64,
    replace: Replace,
    watch: &mut dyn Watch,
) -> Result<u64, Refusal> {
    let (parent, name) = Way::to_entry(path)?;
    let system =
        |act: &str, errno: Errno| Refusal::system(format!("{act} {}", shortened(path)), errno);
    let parent = parent.make(place).map_err(|errno| system("make the directory of", errno))?;
    let beside =
        Beside::create(parent.as_fd(), &TEMPORARY).map_err(|errno| system("write", errno))?;
    let bytes = copy(from, &beside.file, bytes_max, "copy the file", watch)?;
    let flags = match replace {
        Replace::Swap => RenameFlags::empty(),
        Replace::Refuse => RenameFlags::NOREPLACE,
    };
    let kept = beside.keep(Path::new(name), file_mode(mode & 0o111 != 0), flags);
    kept.map_err(|errno| match errno {
        Errno::EXIST => Refusal::Exists { path: shortened(path) },
        errno => system("write", errno),
    })?;
    Ok(bytes)
}

/// Mode of a file: what is shipped can be read, and run where it is meant to be (SKILL-9).
pub(super) fn file_mode(executable: bool) -> u32 {
    if executable { 0o755 } else { 0o644 }
}

/// Copies until the end of `from`, at most `bytes_max` bytes.
pub(super) fn copy(
    from: &mut dyn Read,
    to: &File,
    bytes_max: u64,
    what: &str,
    watch: &mut dyn Watch,
) -> Result<u64, Refusal> {
    let mut buffer = vec![0; CHUNK];
    let (mut bytes, mut to) = (0_u64, to);
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unreadable(&error)),
        };
        bytes += read as u64;
        if bytes > bytes_max {
            let (what, unit) = (what.to_owned(), "bytes".to_owned());
            return Err(Refusal::TooMuch { what, limit: bytes_max, unit });
        }
        to.write_all(&buffer[..read]).map_err(|error| Refusal::system("write a file", error))?;
        watch.go_on()?;
    }
}

/// An error of a decoder has no number, and its text may repeat what it read.
fn unreadable(error: &std::io::Error) -> Refusal {
    match error.raw_os_error() {
        Some(errno) => Refusal::System { act: "read the file".to_owned(), errno },
        None => Refusal::archive("the content of a member is damaged"),
    }
}

/// What a file in the making is called (`.fs-<hex>.tmp`, MEM-9; ignored by scans, MEM-34).
pub(super) const TEMPORARY: Temporary = Temporary { prefix: ".fs-", suffix: ".tmp" };
