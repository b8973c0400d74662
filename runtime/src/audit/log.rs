//! The file: opened once per worker, locked, appended to.
//!
//! Opened by the control side while it still has the rights of whoever started it; what is written
//! later needs the descriptor only.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use rustix::fs::Access;

use super::chain::Chain;
use super::event::{Event, Ids};
use super::line::{self, LINE_BYTES_MAX, RECORD_BYTES_MAX};
use super::value::Digest;

/// How much of an existing log is read to find its last good line: a half line, the last good one,
/// and some repairs that were themselves cut off.
const TAIL_BYTES: u64 = 4 * LINE_BYTES_MAX as u64;

/// Why the log cannot be opened or written. Whoever gets one must not do what it wanted to record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The file or its directory cannot be made or opened.
    #[error("cannot open the audit log {path}")]
    Open {
        /// The log.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Not a regular file.
    #[error("cannot use {path} as the audit log: it is not a regular file")]
    NotAFile {
        /// The log.
        path: PathBuf,
    },
    /// Others could have written to it.
    #[error("cannot use {path} as the audit log: {reason}")]
    Unsafe {
        /// The log.
        path: PathBuf,
        /// Owner or mode.
        reason: String,
    },
    /// Another worker writes to it.
    #[error("cannot lock the audit log {path}: another worker writes to it")]
    Locked {
        /// The log.
        path: PathBuf,
    },
    /// It does not end in a record or in half of one.
    #[error("cannot continue the audit log {path}: {reason}")]
    Damaged {
        /// The log.
        path: PathBuf,
        /// What is wrong with its end.
        reason: String,
    },
    /// Full disk, input or output error.
    #[error("cannot write the audit log")]
    Write {
        /// The cause.
        source: io::Error,
    },
    /// A record beyond the bound.
    #[error("cannot write the audit record: {bytes} bytes, at most {RECORD_BYTES_MAX} are written")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Writes were cut off again and again.
    #[error("cannot repair the audit log: {bytes} torn bytes behind its last record")]
    TooMuchTorn {
        /// How many.
        bytes: u64,
    },
    /// A value that JSON does not have.
    #[error("cannot encode the audit record")]
    Encode {
        /// The cause.
        source: serde_json::Error,
    },
}

impl AuditError {
    /// What the operator can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Open { .. } => "name a file in a directory that only you can write to",
            Self::NotAFile { .. } => "name a regular file",
            Self::Unsafe { .. } => {
                "look at the file with `worker audit verify`; then set its owner and `chmod 600`, \
                 or move it away"
            }
            Self::Locked { .. } => "give each worker an audit file of its own",
            Self::Damaged { .. } => {
                "keep the file as evidence: move it away; a new one is begun then"
            }
            Self::Write { .. } | Self::TooMuchTorn { .. } => {
                "make room on the disk; no session runs without its audit log"
            }
            Self::TooLong { .. } | Self::Encode { .. } => "this is a mistake of the program",
        }
    }
}

/// Where a record is: its number, and the digest that the next line will name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Its number, from 1.
    pub seq: u64,
    /// SHA-256 of its line. Kept elsewhere, it later shows that the log up to here is unchanged.
    pub digest: Digest,
}

/// The log of one worker.
#[derive(Debug)]
pub struct AuditLog {
    file: File,
    chain: Mutex<Chain>,
}

impl AuditLog {
    /// Opens the log, or begins one: file 0600, directory 0700.
    ///
    /// An existing log is continued: its last line's number and digest are taken up, and half a line
    /// that a crash left is repaired by the next [`append`](Self::append). Only the end is read;
    /// [`verify`](super::verify()) reads all.
    ///
    /// # Errors
    /// As [`AuditError`] says.
    pub fn open(path: &Path) -> Result<AuditLog, AuditError> {
        let failed = |source| AuditError::Open { path: path.to_owned(), source };
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(directory) = directory {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.map_err(failed)?;
        }
        let existed = path.symlink_metadata().is_ok();
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600).custom_flags(flags);
        let file = options.open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(AuditError::Locked { path: path.to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        check_file(&file, path)?;
        let chain = resume(&file, path)?;
        if !existed {
            // The name of a new log survives a loss of power like its lines.
            let directory = directory.unwrap_or(Path::new("."));
            File::open(directory).and_then(|d| d.sync_all()).map_err(failed)?;
        }
        Ok(AuditLog { file, chain: Mutex::new(chain) })
    }

    /// Whether [`open`](Self::open) could begin a log where there is none, by what access(2) says of
    /// the first directory above it that exists. Makes nothing.
    ///
    /// # Errors
    /// [`AuditError::Open`] if it could not.
    pub fn could_begin(path: &Path) -> Result<(), AuditError> {
        let failed = |source| AuditError::Open { path: path.to_owned(), source };
        let above = path.ancestors().skip(1).find(|above| above.exists());
        let above = above.filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !above.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        let needed = Access::WRITE_OK | Access::EXEC_OK;
        rustix::fs::access(above, needed).map_err(|errno| failed(errno.into()))
    }

    /// Writes one record: one write to the page cache, no wait for the disk.
    ///
    /// Call before the effect that the event describes.
    ///
    /// # Errors
    /// If the record is not in the log; the effect must not happen then.
    pub fn append(&self, ids: &Ids, event: &Event) -> Result<Receipt, AuditError> {
        let mut chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        chain.append(&mut &self.file, SystemTime::now(), ids, event)?;
        let (seq, digest) = chain.head();
        Ok(Receipt { seq, digest })
    }

    /// Waits until everything written so far is on the disk. For the moments after which a loss of
    /// power must not undo a record: a claim, a launch, the end of an item. Does not hold up
    /// [`append`](Self::append).
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn sync(&self) -> Result<(), AuditError> {
        self.file.sync_data().map_err(|source| AuditError::Write { source })
    }

    /// Number and digest of the last record; 0 and zeros if there is none.
    pub fn head(&self) -> Receipt {
        let chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        let (seq, digest) = chain.head();
        Receipt { seq, digest }
    }

    /// Whether the last write was cut off, so that the next one begins with a repair.
    pub fn is_torn(&self) -> bool {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner).is_torn()
    }
}

/// A regular file of ours that nobody else could have written to or read.
fn check_file(file: &File, path: &Path) -> Result<(), AuditError> {
    let failed = |source| AuditError::Open { path: path.to_owned(), source };
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(AuditError::NotAFile { path: path.to_owned() });
    }
    let own = rustix::process::geteuid().as_raw();
    let unsafe_file = |reason| AuditError::Unsafe { path: path.to_owned(), reason };
    if about.uid() != own {
        return Err(unsafe_file(format!("it belongs to user {}, not to {own}", about.uid())));
    }
    if about.mode() & 0o077 != 0 {
        let mode = about.mode() & 0o7777;
        return Err(unsafe_file(format!("its mode is {mode:o}, which gives others access")));
    }
    Ok(())
}

/// Reads the end of the file and finds where the next line belongs.
fn resume(file: &File, path: &Path) -> Result<Chain, AuditError> {
    let failed = |source| AuditError::Open { path: path.to_owned(), source };
    let mut file = file;
    let length = file.seek(SeekFrom::End(0)).map_err(failed)?;
    let from = length.saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(from)).map_err(failed)?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail).map_err(failed)?;
    end_of(&tail, from == 0).map_err(|reason| AuditError::Damaged { path: path.to_owned(), reason })
}

/// The chain after the last good line of `tail`, which is the whole log or the end of it.
fn end_of(tail: &[u8], whole: bool) -> Result<Chain, String> {
    let Some(last) = tail.last() else { return Ok(Chain::new(b"")) };
    if *last == b'\n' {
        let line = last_line(&tail[..tail.len() - 1]);
        let good = line::check(line).map_err(|bad| format!("its last line is bad: {bad}"))?;
        return Ok(Chain::resumed(good.place.seq, good.digest, b""));
    }
    // A write was cut off.
    if let Ok(good) = line::check(last_line(tail)) {
        return Ok(Chain::resumed_without_break(good.place.seq, good.digest));
    }
    let mut end = tail.len() - last_line(tail).len();
    while end > 0 {
        let line = last_line(&tail[..end - 1]);
        if let Ok(good) = line::check(line) {
            return Ok(Chain::resumed(good.place.seq, good.digest, &tail[end..]));
        }
        end -= 1 + line.len();
    }
    // Nothing but torn bytes, so they should look like the beginning of a log.
    if whole && b"{\"v\":1,\"seq\":1,".iter().zip(tail).all(|(want, got)| want == got) {
        return Ok(Chain::new(tail));
    }
    Err("it does not end in an audit record".to_owned())
}

/// What stands behind the last line break of `bytes`.
fn last_line(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    &bytes[start..]
}

#[cfg(test)]
mod tests {
    use super::super::verify::verify;
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use tempfile::TempDir;

    fn place() -> (TempDir, PathBuf) {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("log/audit.jsonl");
        (directory, path)
    }

    fn write(log: &AuditLog, times: u64) {
        for _ in 0..times {
            log.append(&Ids::default(), &Event::CallPosted {}).expect("appended");
        }
    }

    fn read(path: &Path) -> super::super::Verification {
        verify(&mut fs::read(path).expect("the log").as_slice(), None).expect("readable")
    }

    #[test]
    fn a_log_is_private_and_continues_without_a_gap_when_it_is_opened_again() {
        let (_directory, path) = place();
        for round in 1..=3 {
            let log = AuditLog::open(&path).expect("open");
            write(&log, 5);
            assert_eq!(log.head().seq, round * 5);
            log.sync().expect("synced");
        }
        assert_eq!(fs::metadata(&path).expect("the log").mode() & 0o777, 0o600);
        let found = read(&path);
        assert!(found.problem.is_none(), "{:?}", found.problem);
        assert_eq!((found.records, found.first_seq, found.last_seq), (15, Some(1), Some(15)));
    }

    #[test]
    fn a_second_worker_on_the_same_file_is_refused() {
        let (_directory, path) = place();
        let first = AuditLog::open(&path).expect("open");
        assert!(matches!(AuditLog::open(&path), Err(AuditError::Locked { .. })));
        drop(first);
        AuditLog::open(&path).expect("free again");
    }

    #[test]
    fn whether_a_log_could_begin_is_told_without_making_anything() {
        let (directory, path) = place();
        AuditLog::could_begin(&path).expect("it could");
        assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 0);
        let file = directory.path().join("file");
        fs::write(&file, "").expect("written");
        let below = AuditLog::could_begin(&file.join("a/b")).expect_err("a file is in the way");
        assert!(matches!(below, AuditError::Open { .. }), "{below}");
    }

    #[test]
    fn files_that_others_could_have_touched_are_refused() {
        let (_directory, path) = place();
        drop(AuditLog::open(&path).expect("open"));
        for mode in [0o640, 0o602, 0o604] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
            let error = AuditLog::open(&path).expect_err("others have access");
            assert!(matches!(error, AuditError::Unsafe { .. }), "{mode:o}: {error}");
        }
        let link = path.with_extension("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        assert!(matches!(AuditLog::open(&link), Err(AuditError::Open { .. })), "a link");
        let null = AuditLog::open(Path::new("/dev/null")).expect_err("a device");
        assert!(matches!(null, AuditError::NotAFile { .. }), "{null}");
    }

    /// Crash: the file may end after any byte of what was last written, and again in the repair.
    #[test]
    fn a_log_that_was_cut_at_any_byte_is_repaired_and_loses_no_byte() {
        let (_directory, path) = place();
        write(&AuditLog::open(&path).expect("open"), 3);
        let whole = fs::read(&path).expect("the log");
        let line = whole.len() / 3;
        for cut in 1..line {
            let kept = &whole[..whole.len() - cut];
            fs::write(&path, kept).expect("cut");
            write(&AuditLog::open(&path).expect("open"), 1);
            let repaired = fs::read(&path).expect("the log");
            assert!(repaired.starts_with(kept), "{cut}: nothing is taken away");
            // Killed in the middle of the repair as well.
            fs::write(&path, &repaired[..kept.len() + cut / 2]).expect("cut");
            if cut / 2 != 1 {
                write(&AuditLog::open(&path).expect("open again"), 1);
                let found = read(&path);
                assert!(found.problem.is_none(), "{cut}: {:?}", found.problem);
                assert_eq!(found.repairs_count, 1, "{cut}");
            }
        }
        // The first record of all may be the one that was cut.
        fs::write(&path, &whole[..line / 2]).expect("cut");
        write(&AuditLog::open(&path).expect("open"), 1);
        assert!(read(&path).problem.is_none());
    }

    #[test]
    fn a_file_that_is_no_log_or_was_edited_at_its_end_is_not_continued() {
        let (_directory, path) = place();
        write(&AuditLog::open(&path).expect("open"), 2);
        let whole = fs::read(&path).expect("the log");
        let mut edited = whole.clone();
        let at = edited.len() - 100;
        edited[at] ^= 1;
        for bad in [edited, b"hello\n".to_vec(), b"hello".to_vec(), [whole, vec![b'\n']].concat()] {
            fs::write(&path, &bad).expect("written");
            let error = AuditLog::open(&path).expect_err("not continued");
            assert!(matches!(error, AuditError::Damaged { .. }), "{error}");
            assert_eq!(fs::read(&path).expect("the log"), bad, "and not touched");
        }
    }
}
