//! Reads archives: which kind one is (SKILL-5), its members one after the other, and whether their
//! names may be unpacked (SKILL-6).
//!
//! Runs in a process that may die of what it reads: the crates that decode are the largest parsers
//! a session is exposed to. Nothing here writes a file.

mod names;
mod tape;
mod zipped;

use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom};

use super::{Refusal, Watch, Wrapper};

pub(super) use names::plan;

/// Bytes of the front that tell what an archive is.
const FRONT_BYTES: usize = 512;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File {
        executable: bool,
    },
    Directory,
    /// A link, a device, a FIFO, a socket: not unpacked (SKILL-7).
    Other,
}

/// One member, as the archive names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub name: String,
    pub kind: Kind,
}

/// Bounds of one pass over an archive (SKILL-10).
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub entries_max: u64,
    pub bytes_max: u64,
}

/// Looks at a member; its number, and its content if it is a file.
pub(super) type Visit<'v> = &'v mut dyn FnMut(usize, Member, &mut dyn Read) -> Result<(), Refusal>;

/// Shows `visit` every member of `archive`, in order.
///
/// # Errors
/// [`Refusal`] if it is no archive, damaged, encrypted or too large; what `visit` says.
pub(super) fn members(
    archive: &File,
    bounds: Bounds,
    watch: &mut dyn Watch,
    visit: Visit<'_>,
) -> Result<(), Refusal> {
    let rewind = || {
        let mut file = archive;
        file.seek(SeekFrom::Start(0)).map_err(Refusal::archive)
    };
    rewind()?;
    let mut front = Vec::with_capacity(FRONT_BYTES);
    let read = archive.take(FRONT_BYTES as u64).read_to_end(&mut front);
    read.map_err(Refusal::archive)?;
    rewind()?;
    match format(&front) {
        Format::Zip => zipped::members(archive, bounds, watch, visit),
        Format::Unknown if zipped::has_directory(archive) => {
            zipped::members(archive, bounds, watch, visit)
        }
        Format::Unknown if front.len() < FRONT_BYTES => {
            Err(Refusal::archive("it is neither a zip nor a tar archive"))
        }
        format => {
            rewind()?;
            tape::members(archive, format, bounds, watch, visit)
        }
    }
}

/// What the front of an archive says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Zip,
    Tar,
    Gzip,
    Bzip2,
    Xz,
    /// A zip archive behind something else, or a tar archive of the oldest kind.
    Unknown,
}

fn format(front: &[u8]) -> Format {
    match front {
        [b'P', b'K', 3, 4, ..] => Format::Zip,
        [0x1f, 0x8b, ..] => Format::Gzip,
        [b'B', b'Z', b'h', ..] => Format::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Format::Xz,
        _ if front.get(257..262) == Some(b"ustar") => Format::Tar,
        _ => Format::Unknown,
    }
}

/// The bound of entries, one by one.
#[derive(Debug)]
struct Count {
    left: u64,
    bounds: Bounds,
}

impl Count {
    fn new(bounds: Bounds) -> Count {
        Count { left: bounds.entries_max, bounds }
    }

    fn one(&mut self) -> Result<(), Refusal> {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(Refusal::TooMuch {
                what: "unpack the archive".to_owned(),
                limit: self.bounds.entries_max,
                unit: "members".to_owned(),
            }),
        }
    }
}

/// The content of a member, counted: a member that is shorter or longer than it says is damaged.
struct Counted<R> {
    from: R,
    read: u64,
    ended: bool,
}

impl<R> Counted<R> {
    fn new(from: R) -> Counted<R> {
        Counted { from, read: 0, ended: false }
    }

    /// After a visit, which may have left the content alone.
    fn check(&self, length: u64) -> Result<(), Refusal> {
        match self.ended && self.read != length {
            true => Err(Refusal::archive("it has a member of another length than it says")),
            false => Ok(()),
        }
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.read += read as u64;
        self.ended |= read == 0 && !buffer.is_empty();
        Ok(read)
    }
}

/// Reads `input` as an archive, to its end: what must hold is that it ends.
///
/// # Errors
/// A sentence on what does not hold.
pub fn fuzz_archive(input: &[u8]) -> Result<(), String> {
    use std::io::Write as _;
    let bounds = Bounds { entries_max: 1_000, bytes_max: 1 << 20 };
    let file = rustix::fs::memfd_create(c"fuzz", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|errno| format!("no file: {errno}"))?;
    let mut file = File::from(file);
    file.write_all(input).map_err(|error| format!("no file: {error}"))?;
    let (mut seen, mut bytes) = (Vec::new(), 0_u64);
    let outcome = members(&file, bounds, &mut super::Patient, &mut |_, member, content| {
        seen.push(member);
        let mut buffer = [0; 4096];
        // Ends by the reader's own bound, or by an error.
        while let Ok(read @ 1..) = content.read(&mut buffer) {
            bytes += read as u64;
            if bytes > 64 << 20 {
                return Err(Refusal::archive("more than the bound"));
            }
        }
        Ok(())
    });
    if seen.len() as u64 > bounds.entries_max {
        return Err(format!("{} members", seen.len()));
    }
    if outcome.is_err() {
        return Ok(());
    }
    let Ok(targets) = plan(&seen, Wrapper::Strip) else { return Ok(()) };
    for target in targets.into_iter().flatten() {
        let bad = |part: &str| matches!(part, "" | "." | "..") || part.contains(['\\', '\0']);
        if target.split('/').any(bad) {
            return Err(format!("a member goes to {target:?}"));
        }
    }
    Ok(())
}
