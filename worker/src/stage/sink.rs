//! Where fetched bytes go before anybody looks at them: a file without a name, held to a size, with its
//! SHA-256 as it grows. It can have no name later either, is handed on for reading only, and is gone when
//! its last descriptor is closed, however the worker ends (INV-10).

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::budget::Held;
use super::error::Fault;

/// Bytes that are collected before they are written.
const BATCH_BYTES: usize = 1 << 20;
/// How often the log says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// A directory that the control side alone can use.
#[derive(Debug)]
pub struct Room {
    files: OwnedFd,
    scratch: PathBuf,
}

/// What was fetched, checked as far as its digest is known.
#[derive(Debug)]
pub struct Fetched {
    /// All of it, to be read from its beginning, and not to be written.
    pub file: OwnedFd,
    /// How much.
    pub bytes: u64,
    /// Of it.
    pub sha256: [u8; 32],
    /// Its share of what all sessions may fetch.
    held: Held,
}

impl Room {
    /// Files go to `files`; `scratch` is for what needs names.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(files: &Path, scratch: &Path) -> io::Result<Room> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let files = rustix::fs::open(files, flags, Mode::empty())?;
        Ok(Room { files, scratch: scratch.to_owned() })
    }

    /// For what needs names.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The file with the certificate authorities, in a form that git reads. Other workers with this
    /// directory have their own.
    pub fn authorities(&self) -> PathBuf {
        self.scratch.join(format!("authorities-{}.pem", std::process::id()))
    }

    /// Writes that file.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_authorities(&self, pem: &str) -> io::Result<()> {
        std::fs::write(self.authorities(), pem)
    }

    fn file(&self) -> io::Result<File> {
        // EXCL: nobody who gets hold of it can give it a name. open(2)
        let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.files, ".", flags, Mode::RUSR | Mode::WUSR)?;
        Ok(File::from(file))
    }
}

/// Takes bytes until there are too many.
#[derive(Debug)]
pub(super) struct Sink {
    /// None while a batch is being written.
    state: Option<(File, Sha256)>,
    held: Held,
    batch: Vec<u8>,
    bytes: u64,
    max: u64,
    session_id: String,
    rule: String,
    told: Instant,
}

impl Sink {
    /// For at most `max` bytes, for which room is `held`.
    pub fn new(
        room: &Room,
        held: Held,
        max: u64,
        session_id: &str,
        rule: &str,
    ) -> Result<Sink, Fault> {
        let file = room.file().map_err(|source| Fault::Room { source })?;
        Ok(Sink {
            state: Some((file, Sha256::new())),
            held,
            batch: Vec::new(),
            bytes: 0,
            max,
            session_id: session_id.to_owned(),
            rule: rule.to_owned(),
            told: Instant::now(),
        })
    }

    /// Refuses what is known to be too much before it is fetched.
    pub fn expect(&self, bytes: u64) -> Result<(), Fault> {
        if bytes > self.max { Err(Fault::TooLarge { max: self.max }) } else { Ok(()) }
    }

    /// How many bytes it may take.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Takes `chunk`.
    pub async fn push(&mut self, chunk: &[u8]) -> Result<(), Fault> {
        self.bytes = self.bytes.saturating_add(chunk.len() as u64);
        self.expect(self.bytes)?;
        self.batch.extend_from_slice(chunk);
        if self.told.elapsed() >= PROGRESS_EVERY {
            self.told = Instant::now();
            tracing::info!(
                event = "stage.progress",
                session_id = self.session_id,
                rule = self.rule,
                bytes = self.bytes,
                "input is being fetched"
            );
        }
        if self.batch.len() >= BATCH_BYTES { self.write().await } else { Ok(()) }
    }

    /// No more comes.
    pub async fn finish(mut self) -> Result<Fetched, Fault> {
        self.write().await?;
        let room = |source| Fault::Room { source };
        let (file, hash) = self.state.take().ok_or_else(|| room(broken()))?;
        // Whoever unpacks it is in a jail: an open file of its own, from the beginning.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|error| room(error.into()))?;
        let sha256 = hash.finalize().into();
        Ok(Fetched { file, bytes: self.bytes, sha256, held: self.held })
    }

    /// Disks are not waited for on a thread of sessions.
    async fn write(&mut self) -> Result<(), Fault> {
        let room = |source| Fault::Room { source };
        let batch = std::mem::take(&mut self.batch);
        let (mut file, mut hash) = self.state.take().ok_or_else(|| room(broken()))?;
        let written = tokio::task::spawn_blocking(move || {
            hash.update(&batch);
            file.write_all(&batch).map(|()| (file, hash, batch))
        });
        let (file, hash, mut batch) =
            written.await.map_err(|error| room(io::Error::other(error)))?.map_err(room)?;
        batch.clear();
        (self.state, self.batch) = (Some((file, hash)), batch);
        Ok(())
    }
}

fn broken() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

impl Fetched {
    /// The file, and its share of what all sessions may fetch.
    pub fn into_parts(self) -> (OwnedFd, Held) {
        (self.file, self.held)
    }

    /// The digest as 64 hexadecimal digits.
    pub fn sha256_hex(&self) -> String {
        self.sha256.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use rustix::fs::{AtFlags, CWD, fcntl_getfl, linkat};
    use rustix::io::Errno;

    use super::*;

    #[tokio::test]
    async fn what_was_fetched_can_be_read_and_neither_written_nor_named() {
        // INV-5, INV-10: the unpacker has this descriptor, and what it reads is hostile.
        let place = tempfile::TempDir::new().expect("a directory");
        let room = Room::open(place.path(), place.path()).expect("a room");
        let name = place.path().join("name");
        let link = |file: &dyn std::os::fd::AsFd| {
            let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
            linkat(CWD, path, CWD, &name, AtFlags::SYMLINK_FOLLOW)
        };
        let mut sink = Sink::new(&room, Held::of_nothing(), 64, "s", "r").expect("a sink");
        sink.push(b"content").await.expect("taken");
        let fetched = sink.finish().await.expect("fetched");
        let flags = fcntl_getfl(&fetched.file).expect("flags");
        assert_eq!(flags & OFlags::RWMODE, OFlags::RDONLY);
        assert_eq!(rustix::io::write(&fetched.file, b"x"), Err(Errno::BADF));
        assert_eq!(link(&fetched.file), Err(Errno::NOENT));
        let mut text = String::new();
        File::from(fetched.file).read_to_string(&mut text).expect("readable");
        assert_eq!(text, "content");
        // The control: a file that is made without the flag can be written and named.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(place.path(), flags, Mode::RUSR).expect("made");
        assert_eq!(rustix::io::write(&file, b"x"), Ok(1));
        assert_eq!(link(&file), Ok(()));
    }
}
