//! Input from directories of this host that the policy names.
//!
//! They are opened while the worker still has the rights of whoever started it; a file is opened
//! beneath one of them later, without following links, and with no more right than the control side
//! has: it must be readable by everybody, or by the user of a worker without root.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use stockade_runtime::policy::Policy;
use stockade_runtime::policy::stage::{Scheme, StageKind, StagePlace, StageSource};

use super::error::Fault;
use super::request::Wanted;
use super::sink::{Fetched, Sink};

/// Read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// A directory of the policy that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {path}, from which `{rule}` is staged")]
pub struct RootsError {
    /// Which.
    pub path: PathBuf,
    /// By which rule.
    pub rule: String,
    /// Why.
    pub source: io::Error,
}

/// The directories, open.
#[derive(Debug, Default)]
pub struct Roots(Vec<(StagePlace, OwnedFd)>);

impl Roots {
    /// Opens every directory that a rule of `policy` may read a file from.
    ///
    /// # Errors
    /// [`RootsError`] for the first that is no directory.
    pub fn open(policy: &Policy) -> Result<Roots, RootsError> {
        let mut roots = Vec::new();
        for rule in &policy.stage.rules {
            if !matches!(rule.kind, StageKind::Local { .. }) {
                continue;
            }
            let mut places: Vec<StagePlace> =
                rule.allow.iter().map(|place| place.value.clone()).collect();
            if let StageSource::Fixed(place) = &rule.from {
                places.push(parent(place));
            }
            for place in places {
                let path = PathBuf::from(format!("/{}", place.path()));
                let opened = open_directory(&path).map_err(|error| RootsError {
                    path,
                    rule: rule.name.clone(),
                    source: error.into(),
                })?;
                roots.push((place, opened));
            }
        }
        Ok(Roots(roots))
    }

    /// The file at `place`, for reading.
    fn file(&self, place: &StagePlace) -> Result<File, Fault> {
        let local = |reason| Fault::Local { reason };
        let root = self.0.iter().find(|(root, _)| place.is_within(root));
        let (root, directory) = root.ok_or(local("it lies in no directory that was opened"))?;
        let below: PathBuf = place.components()[root.components().len()..].iter().collect();
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // Nothing is waited for, neither a FIFO nor a device.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(directory, &below, flags, Mode::empty(), resolve);
        let file = file.map_err(|error| {
            local(match error {
                rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR => "there is none",
                rustix::io::Errno::ACCESS => "the worker may not read it",
                rustix::io::Errno::LOOP | rustix::io::Errno::XDEV => {
                    "a symbolic link is in its way"
                }
                _ => "the kernel refuses it",
            })
        })?;
        let found = rustix::fs::fstat(&file).map_err(|_| local("the kernel refuses it"))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(local("it is no regular file"));
        }
        Ok(File::from(file))
    }
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// The directory of a fixed file.
fn parent(place: &StagePlace) -> StagePlace {
    let (_, components) = place.components().split_last().unwrap_or((&String::new(), &[]));
    let path = format!("/{}", components.join("/"));
    // Components of a place make a place.
    StagePlace::parse(&path, &[Scheme::File]).unwrap_or_else(|_| place.clone())
}

/// Copies the file that `wanted` names.
pub(super) async fn fetch(
    roots: &Roots,
    wanted: &Wanted,
    mut sink: Sink,
) -> Result<Fetched, Fault> {
    let mut file = roots.file(&wanted.place)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let reading = tokio::task::spawn_blocking(move || {
            let read = file.read(&mut chunk);
            (file, chunk, read)
        });
        let read = reading.await.map_err(|_| Fault::Local { reason: "reading it failed" })?;
        let (again, full, read) = read;
        (file, chunk) = (again, full);
        match read {
            Ok(0) => return sink.finish().await,
            Ok(read) => sink.push(&chunk[..read]).await?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(Fault::Local { reason: "reading it failed" }),
        }
    }
}
