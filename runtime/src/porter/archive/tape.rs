//! Members of a tar archive, plain or compressed. The only file that names the tar crate and the
//! decoders.
//!
//! What is decoded is counted as it comes: names, padding and content alike (SKILL-10).

use std::fs::File;
use std::io::{self, BufReader, Read};

use bzip2::read::MultiBzDecoder;
use flate2::read::MultiGzDecoder;
use lzma_rust2::XzReader;
use tar::{Archive, EntryType};

use super::{Bounds, Count, Counted, Format, Kind, Member, Visit};
use crate::porter::{Refusal, Watch};

/// Memory of the xz decoder; what `xz -9` makes needs 65 MiB.
const XZ_MEMORY_KIB: u32 = 128 << 10;
/// Bytes around the content of each member: its header, long names, attributes, padding.
const AROUND_BYTES: u64 = 8 << 10;
/// Bytes at the end.
const END_BYTES: u64 = 1 << 20;
/// Keys of the attributes that make a member sparse in the newer formats.
const SPARSE: &str = "GNU.sparse.";

/// Shows `visit` every member.
pub(super) fn members(
    archive: &File,
    format: Format,
    bounds: Bounds,
    watch: &mut dyn Watch,
    visit: Visit<'_>,
) -> Result<(), Refusal> {
    let file = BufReader::new(archive);
    let plain: Box<dyn Read + '_> = match format {
        Format::Gzip => Box::new(MultiGzDecoder::new(file)),
        Format::Bzip2 => Box::new(MultiBzDecoder::new(file)),
        Format::Xz => Box::new(XzReader::new_mem_limit(file, true, XZ_MEMORY_KIB)),
        Format::Zip | Format::Tar | Format::Unknown => Box::new(file),
    };
    let around = bounds.entries_max.saturating_mul(AROUND_BYTES).saturating_add(END_BYTES);
    let limit = bounds.bytes_max.saturating_add(around);
    let mut archive = Archive::new(Bounded { plain, left: limit });
    let too_much = |error: io::Error| match error.get_ref() {
        Some(inner) if inner.is::<Beyond>() => Refusal::TooMuch {
            what: "unpack the archive".to_owned(),
            limit: bounds.bytes_max,
            unit: "bytes".to_owned(),
        },
        _ => damaged(error),
    };
    let mut count = Count::new(bounds);
    let mut number = 0;
    for entry in archive.entries().map_err(too_much)? {
        watch.go_on()?;
        let mut entry = entry.map_err(too_much)?;
        count.one()?;
        let form = entry.header().entry_type();
        if form == EntryType::XGlobalHeader {
            continue;
        }
        if is_sparse(&mut entry, form)? {
            return Err(Refusal::archive("it has a sparse member"));
        }
        let Ok(name) = String::from_utf8(entry.path_bytes().into_owned()) else {
            return Err(Refusal::archive("it has a member whose name is not UTF-8"));
        };
        let kind = match form {
            EntryType::Directory => Kind::Directory,
            // How the oldest archives mark a directory.
            EntryType::Regular if name.ends_with('/') => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => {
                let mode = entry.header().mode().unwrap_or(0);
                Kind::File { executable: mode & 0o111 != 0 }
            }
            _ => Kind::Other,
        };
        let length = entry.size();
        let mut content = Counted::new(&mut entry);
        visit(number, Member { name, kind }, &mut content)?;
        content.check(length)?;
        number += 1;
    }
    Ok(())
}

/// The texts of the decoders repeat what they read, so they stay here.
fn damaged(_: io::Error) -> Refusal {
    Refusal::archive("it is damaged, or no tar archive")
}

/// Whether a member's content is not stored as a whole.
fn is_sparse<R: Read>(entry: &mut tar::Entry<'_, R>, form: EntryType) -> Result<bool, Refusal> {
    if form == EntryType::GNUSparse {
        return Ok(true);
    }
    let Some(attributes) = entry.pax_extensions().map_err(damaged)? else {
        return Ok(false);
    };
    for attribute in attributes {
        let attribute = attribute.map_err(damaged)?;
        if attribute.key_bytes().starts_with(SPARSE.as_bytes()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Gives an error once more is read than `left`.
struct Bounded<R> {
    plain: R,
    left: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("the archive holds more than it may")]
struct Beyond;

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.plain.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => self.left = left,
            None => return Err(io::Error::other(Beyond)),
        }
        Ok(read)
    }
}
