//! Members of a zip archive. The only file that names the zip crate.
//!
//! What readers could disagree about is refused: a name twice, a member whose two headers differ,
//! members that share bytes (which is also how the smallest bombs are made), encryption.

use std::fs::File;
use std::io::BufReader;

use zip::read::ZipReadOptions;
use zip::result::ZipError;
use zip::{System, ZipArchive};

use super::{Bounds, Count, Counted, Kind, Member, Visit};
use crate::porter::{Refusal, Watch};

/// File type of a Unix mode.
const TYPE: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

/// Whether there is a central directory at the end.
pub(super) fn has_directory(archive: &File) -> bool {
    ZipArchive::new(BufReader::new(archive)).is_ok()
}

/// Shows `visit` every member.
pub(super) fn members(
    archive: &File,
    bounds: Bounds,
    watch: &mut dyn Watch,
    visit: Visit<'_>,
) -> Result<(), Refusal> {
    let mut archive = ZipArchive::new(BufReader::new(archive)).map_err(damaged)?;
    let mut count = Count::new(bounds);
    for _ in 0..archive.len() {
        count.one()?;
    }
    if archive.has_duplicate_names() {
        return Err(Refusal::archive("it has two members of one name"));
    }
    if archive.has_overlapping_entries().map_err(damaged)? {
        return Err(Refusal::archive("it has members that overlap"));
    }
    for number in 0..archive.len() {
        watch.go_on()?;
        let (member, encrypted) = {
            let entry = archive.by_index_data(number).map_err(damaged)?;
            let name = entry.name().map_err(damaged)?.into_owned();
            let kind = kind(entry.system(), entry.external_attributes(), &name);
            (Member { name, kind }, entry.encrypted())
        };
        if encrypted {
            return Err(Refusal::archive("it is encrypted"));
        }
        let options = ZipReadOptions::new().enforce_header_consistency(true);
        let mut file = archive.by_index_with_options(number, options).map_err(damaged)?;
        let length = file.size();
        let mut content = Counted::new(&mut file);
        visit(number, member, &mut content)?;
        content.check(length)?;
    }
    Ok(())
}

/// Types of special files count only where a Unix host wrote them (SKILL-7).
fn kind(system: System, attributes: u32, name: &str) -> Kind {
    let mode = match system {
        System::Unix | System::OsDarwin => attributes >> 16,
        _ => 0,
    };
    match mode & TYPE {
        DIRECTORY => Kind::Directory,
        0 | REGULAR if name.ends_with(['/', '\\']) => Kind::Directory,
        0 | REGULAR => Kind::File { executable: mode & 0o111 != 0 },
        _ => Kind::Other,
    }
}

/// The texts of the crate may repeat what it reads, so they stay here.
fn damaged(error: ZipError) -> Refusal {
    Refusal::archive(match error {
        ZipError::UnsupportedArchive(_) => "it uses a part of the zip format that is not supported",
        _ => "it is a damaged zip archive",
    })
}
