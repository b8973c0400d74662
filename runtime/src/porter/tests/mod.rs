//! The porter's operations on directories of the host, with archives made here byte by byte: what a
//! library would never write is what has to be refused.

mod archives;
mod bounds;
mod places;
mod races;
mod stores;
mod zip_lies;

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;

use super::*;

/// A place: a directory that goes when the test ends.
pub(super) struct Ground {
    directory: TempDir,
    place: OwnedFd,
}

impl Ground {
    pub fn new() -> Ground {
        let directory = tempfile::tempdir().expect("a directory");
        let inside = directory.path().join("place");
        fs::create_dir(&inside).expect("a place");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = rustix::fs::open(&inside, flags, Mode::empty()).expect("opened");
        Ground { directory, place }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join("place").join(below)
    }

    /// Next to the place, where nothing may go.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.place.as_fd()
    }

    pub fn unpack(&self, archive: &[u8], what: &Unpack) -> Result<Unpacked, Refusal> {
        unpack(self.fd(), &file_of(archive), what, &mut Patient)
    }

    /// Every entry below the place, as `path`, `path/` for directories and `path -> target` for links.
    pub fn tree(&self) -> Vec<String> {
        let mut found = Vec::new();
        list(&self.path(""), Path::new(""), &mut found);
        found.sort();
        found
    }

    pub fn mode(&self, below: &str) -> u32 {
        fs::symlink_metadata(self.path(below)).expect(below).permissions().mode() & 0o7777
    }
}

fn list(root: &Path, below: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(root.join(below)).expect("a directory") {
        let entry = entry.expect("an entry");
        let path = below.join(entry.file_name());
        let kind = entry.file_type().expect("a type");
        let shown = path.display().to_string();
        if kind.is_dir() {
            found.push(format!("{shown}/"));
            list(root, &path, found);
        } else if kind.is_symlink() {
            let target = fs::read_link(entry.path()).expect("a link");
            found.push(format!("{shown} -> {}", target.display()));
        } else {
            found.push(shown);
        }
    }
}

/// A file of these bytes, positioned at its end as a writer leaves it.
pub(super) fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    file.seek(SeekFrom::End(0)).expect("positioned");
    file
}

/// As skills are unpacked.
pub(super) fn skill(directory: &str) -> Unpack {
    Unpack {
        place: Place::Skills,
        directory: directory.to_owned(),
        wrapper: Wrapper::Strip,
        executables: Executables::AsRecorded,
        entries_max: 10_000,
        bytes_max: 1 << 30,
        replace: Replace::Swap,
    }
}

/// One member of an archive to be made.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub name: Vec<u8>,
    pub content: Vec<u8>,
    /// With the file type.
    pub mode: u32,
    pub system: u8,
}

pub(super) fn item(name: &str, content: &str, mode: u32) -> Item {
    let (name, content) = (name.as_bytes().to_vec(), content.as_bytes().to_vec());
    Item { name, content, mode, system: 3 }
}

/// A regular file.
pub(super) fn plain(name: &str, content: &str) -> Item {
    item(name, content, 0o100_644)
}

/// What a test changes in the raw fields of one zip member.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lie {
    pub local_name: Option<&'static str>,
    /// In both headers.
    pub size: Option<u32>,
    /// In the local header only.
    pub local_size: Option<u32>,
    pub flags: u16,
    pub method: Option<u16>,
    pub crc: Option<u32>,
    /// The central entry points to the first member's header.
    pub points_to_first: bool,
    pub zip64: bool,
    pub descriptor: bool,
}

/// A zip archive, deflated.
pub(super) fn zip(items: &[Item]) -> Vec<u8> {
    lying_zip(&items.iter().map(|item| (item.clone(), Lie::default())).collect::<Vec<_>>())
}

/// A zip archive whose headers say what they are told to.
pub(super) fn lying_zip(items: &[(Item, Lie)]) -> Vec<u8> {
    let (mut bytes, mut central) = (Vec::new(), Vec::new());
    for (item, lie) in items {
        let mut crc = flate2::Crc::new();
        crc.update(&item.content);
        let crc = lie.crc.unwrap_or(crc.sum());
        let mut deflate =
            flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        deflate.write_all(&item.content).expect("deflated");
        let packed = deflate.finish().expect("deflated");
        let length = lie.size.unwrap_or(item.content.len() as u32);
        let offset = if lie.points_to_first { 0 } else { bytes.len() as u32 };
        let method = lie.method.unwrap_or(8);
        let flags = lie.flags | if lie.descriptor { 8 } else { 0 };
        let head = |name: &[u8], sizes: (u32, u32, u32), extra: usize| {
            let mut head = Vec::new();
            head.extend(
                [if lie.zip64 { 45_u16 } else { 20 }, flags, method].map(u16::to_le_bytes).concat(),
            );
            head.extend([0, 0, 0x21, 0x5a]); // a time and a date
            head.extend([sizes.0, sizes.1, sizes.2].map(u32::to_le_bytes).concat());
            head.extend([name.len() as u16, extra as u16].map(u16::to_le_bytes).concat());
            head
        };
        let local_name = lie.local_name.map_or(item.name.clone(), |name| name.into());
        let wide = |sizes: (u64, u64)| {
            let mut extra = [1_u16, 16].map(u16::to_le_bytes).concat();
            extra.extend([sizes.0, sizes.1].map(u64::to_le_bytes).concat());
            extra
        };
        let extra = match lie.zip64 {
            true => wide((u64::from(length), packed.len() as u64)),
            false => Vec::new(),
        };
        let (known, narrow) = (packed.len() as u32, u32::MAX);
        let sizes = if lie.zip64 { (crc, narrow, narrow) } else { (crc, known, length) };
        let local = match lie.descriptor {
            true => (0, 0, 0),
            false => (sizes.0, sizes.1, lie.local_size.unwrap_or(sizes.2)),
        };
        bytes.extend(b"PK\x03\x04");
        bytes.extend(head(&local_name, local, extra.len()));
        bytes.extend(&local_name);
        bytes.extend(&extra);
        bytes.extend(&packed);
        if lie.descriptor {
            bytes.extend(b"PK\x07\x08");
            bytes.extend([crc, known, length].map(u32::to_le_bytes).concat());
        }
        central.extend(b"PK\x01\x02");
        central.extend([20, item.system]);
        central.extend(head(&item.name, sizes, extra.len()));
        central.extend([0; 6]); // comment, disk, internal attributes
        central.extend((item.mode << 16).to_le_bytes());
        central.extend(offset.to_le_bytes());
        central.extend(&item.name);
        central.extend(&extra);
    }
    let (start, count) = (bytes.len() as u32, items.len() as u16);
    bytes.extend(&central);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([count, count].map(u16::to_le_bytes).concat());
    bytes.extend([central.len() as u32, start].map(u32::to_le_bytes).concat());
    bytes.extend([0, 0]);
    bytes
}

/// One block of a tar archive, the header of `item` with this type.
pub(super) fn tar_header(item: &Item, kind: u8, link: &str) -> Vec<u8> {
    let mut head = vec![0_u8; 512];
    let name = &item.name[..item.name.len().min(100)];
    head[..name.len()].copy_from_slice(name);
    let mut put = |at: usize, text: String| {
        head[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    put(100, format!("{:07o}\0", item.mode & 0o7777));
    put(108, "0000000\0".to_owned());
    put(116, "0000000\0".to_owned());
    put(124, format!("{:011o}\0", item.content.len()));
    put(136, format!("{:011o}\0", 1_700_000_000));
    put(148, " ".repeat(8));
    put(157, link.to_owned());
    put(257, "ustar\x0000".to_owned());
    head[156] = kind;
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    head
}

/// A member of a tar archive.
pub(super) fn tar_member(item: &Item, kind: u8, link: &str) -> Vec<u8> {
    let mut bytes = tar_header(item, kind, link);
    bytes.extend(&item.content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A tar archive of regular files and directories (names that end in a slash).
pub(super) fn tar(items: &[Item]) -> Vec<u8> {
    let kind = |item: &Item| if item.name.ends_with(b"/") { b'5' } else { b'0' };
    let mut bytes: Vec<u8> =
        items.iter().flat_map(|item| tar_member(item, kind(item), "")).collect();
    bytes.extend([0; 1024]);
    bytes
}

/// Compressed with gzip.
pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    to.write_all(bytes).expect("compressed");
    to.finish().expect("compressed")
}
