//! The journal as files, so that a call runs at most once also when the worker is killed.
//!
//! `journal_dir/HASH.jsonl`: one line per step, ids and hashes, no content; survives a boot.
//! `results_dir/HASH/CALL.json`: the bodies that post results; content, so a tmpfs, gone at a boot.
//!
//! There is no fsync per call: what was written survives the death of this process, and a reboot is
//! recognised by the boot id in the file. One fsync when a journal is opened makes sure that the
//! boot id is there. A lock on the file keeps two workers of one host off the same session.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::journal::{Journal, JournalError, JournalStore, Known, sha256_hex};

/// Journals of all sessions of this host.
#[derive(Debug, Clone)]
pub struct FileJournals {
    journal_dir: PathBuf,
    results_dir: PathBuf,
    boot_id: String,
}

const JOURNAL_BYTES_MAX: u64 = 64 << 20;
const RESULT_BYTES_MAX: u64 = 64 << 20;

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
enum Line {
    Open {
        boot: String,
        session: String,
    },
    Intent {
        call: String,
        tool: String,
        input_sha256: String,
    },
    Result {
        call: String,
        body_sha256: String,
        bytes: usize,
    },
    Settled {
        call: String,
    },
    /// Whatever may have been lost counts as started.
    Complete,
    Closed,
}

impl FileJournals {
    /// Both directories are made if they are missing, for this user only.
    ///
    /// # Errors
    /// Directories that cannot be made, or a kernel without a boot id.
    pub fn new(journal_dir: &Path, results_dir: &Path) -> io::Result<FileJournals> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        FileJournals::at_boot(journal_dir, results_dir, boot_id.trim())
    }

    /// With a boot id of the caller's.
    ///
    /// # Errors
    /// Directories that cannot be made.
    pub fn at_boot(journal: &Path, results: &Path, boot_id: &str) -> io::Result<FileJournals> {
        for directory in [journal, results] {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        Ok(FileJournals {
            journal_dir: journal.to_owned(),
            results_dir: results.to_owned(),
            boot_id: boot_id.to_owned(),
        })
    }

    /// Removes journals of sessions that did not come back for `age`; returns how many. Those in
    /// use stay.
    ///
    /// # Errors
    /// A directory that cannot be read, or a file that cannot be removed.
    pub fn sweep(&self, age: Duration) -> io::Result<usize> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.journal_dir)? {
            let path = entry?.path();
            let Some(name) =
                path.file_stem().filter(|_| path.extension() == Some("jsonl".as_ref()))
            else {
                continue;
            };
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            // A clock that went back makes a journal young, which keeps it.
            let old = file.metadata()?.modified()?.elapsed().is_ok_and(|passed| passed >= age);
            let free = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
            if old && free && is_still_there(&file, &path)? {
                remove_directory(&self.results_dir.join(name))?;
                fs::remove_file(&path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn open_file(&self, session: &str) -> Result<FileJournal, JournalError> {
        let failed = |source| JournalError::Open { session: session.to_owned(), source };
        let name = sha256_hex(session.as_bytes());
        let path = self.journal_dir.join(format!("{name}.jsonl"));
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        // A holder that ends removes the file; a lock on a removed file is no lock.
        const TRIES: u32 = 8;
        for _ in 0..TRIES {
            let file = options.open(&path).map_err(failed)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => break,
                Err(error) => return Err(failed(error.into())),
            }
            if is_still_there(&file, &path).map_err(failed)? {
                let results = self.results_dir.join(&name);
                let journal = FileJournal::load(file, path, results, &self.boot_id, session);
                return journal.map_err(failed);
            }
        }
        Err(JournalError::Locked { session: session.to_owned() })
    }
}

/// Also if it is not there.
fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_still_there(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    match fs::symlink_metadata(path) {
        Ok(found) => {
            let held = file.metadata()?;
            Ok((held.dev(), held.ino()) == (found.dev(), found.ino()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl JournalStore for FileJournals {
    fn open(&self, session: &str) -> Result<Box<dyn Journal>, JournalError> {
        Ok(Box::new(self.open_file(session)?))
    }
}

/// Whether a call has a result.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Intent,
    Result,
    Settled,
}

struct FileJournal {
    file: File,
    path: PathBuf,
    results: PathBuf,
    calls: HashMap<String, State>,
    lost_writes: bool,
    /// The last write failed and may have left a part of a line.
    torn: bool,
}

impl FileJournal {
    /// Reads what an earlier holder left, then says which boot writes from now on.
    fn load(
        mut file: File,
        path: PathBuf,
        results: PathBuf,
        boot_id: &str,
        session: &str,
    ) -> io::Result<FileJournal> {
        let mut text = Vec::new();
        let read = (&mut file).take(JOURNAL_BYTES_MAX + 1).read_to_end(&mut text)?;
        if read as u64 > JOURNAL_BYTES_MAX {
            return Err(io::Error::other("the journal is larger than 64 MiB"));
        }
        let (calls, lost_writes) = replay(&text, boot_id);
        DirBuilder::new().recursive(true).mode(0o700).create(&results)?;
        let torn = text.last().is_some_and(|last| *last != b'\n');
        let mut journal = FileJournal { file, path, results, calls, lost_writes, torn };
        journal.append(&Line::Open { boot: boot_id.to_owned(), session: session.to_owned() })?;
        journal.file.sync_all()?;
        if let Some(directory) = journal.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(journal)
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut text = if self.torn { vec![b'\n'] } else { Vec::new() };
        serde_json::to_writer(&mut text, line).map_err(io::Error::other)?;
        text.push(b'\n');
        // One write: a line is there as a whole or, if the disk is full, recognisably torn.
        let written = self.file.write_all(&text);
        self.torn = written.is_err();
        written
    }

    fn result_path(&self, call: &str) -> PathBuf {
        self.results.join(format!("{}.json", sha256_hex(call.as_bytes())))
    }
}

/// States of all calls, and whether lines may be missing.
fn replay(text: &[u8], boot_id: &str) -> (HashMap<String, State>, bool) {
    let mut calls = HashMap::new();
    let mut lost = false;
    let mut open: Option<String> = None;
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let Ok(line) = serde_json::from_slice::<Line>(line) else {
            // Torn: whatever it was about counts as started.
            lost = true;
            continue;
        };
        match line {
            Line::Open { boot, .. } => {
                lost |= open.is_some_and(|before| before != boot);
                open = Some(boot);
            }
            Line::Intent { call, .. } => {
                calls.insert(call, State::Intent);
            }
            Line::Result { call, .. } => {
                calls.insert(call, State::Result);
            }
            Line::Settled { call } => {
                calls.insert(call, State::Settled);
            }
            Line::Complete => lost = false,
            Line::Closed => open = None,
        }
    }
    (calls, lost || open.is_some_and(|before| before != boot_id))
}

impl Journal for FileJournal {
    fn known(&self, call: &str) -> io::Result<Known> {
        Ok(match self.calls.get(call) {
            None => Known::Nothing,
            Some(State::Intent) => Known::Intent,
            Some(State::Settled) => Known::Settled,
            Some(State::Result) => match File::open(self.result_path(call)) {
                Ok(file) => {
                    let mut body = Vec::new();
                    file.take(RESULT_BYTES_MAX).read_to_end(&mut body)?;
                    let whole = serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
                    if whole { Known::Result(body.into()) } else { Known::Intent }
                }
                // Results do not survive a boot: it ran, and what came of it is gone.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Known::Intent,
                Err(error) => return Err(error),
            },
        })
    }

    fn intent(&mut self, call: &str, tool: &str, input_sha256: &str) -> io::Result<()> {
        let (call_id, tool) = (call.to_owned(), tool.to_owned());
        self.append(&Line::Intent { call: call_id, tool, input_sha256: input_sha256.to_owned() })?;
        self.calls.insert(call.to_owned(), State::Intent);
        Ok(())
    }

    fn result(&mut self, call: &str, body: &Bytes) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(self.result_path(call))?.write_all(body)?;
        let (call_id, body_sha256) = (call.to_owned(), sha256_hex(body));
        self.append(&Line::Result { call: call_id, body_sha256, bytes: body.len() })?;
        self.calls.insert(call.to_owned(), State::Result);
        Ok(())
    }

    fn settled(&mut self, call: &str) -> io::Result<()> {
        self.calls.insert(call.to_owned(), State::Settled);
        self.append(&Line::Settled { call: call.to_owned() })?;
        match fs::remove_file(self.result_path(call)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn forget(&mut self) {
        self.calls.clear();
    }

    fn may_have_lost_writes(&self) -> bool {
        self.lost_writes
    }

    fn presume_started(&mut self, calls: &[(&str, &str)]) -> io::Result<()> {
        for (call, tool) in calls {
            if !self.calls.contains_key(*call) {
                self.intent(call, tool, "")?;
            }
        }
        self.append(&Line::Complete)?;
        self.lost_writes = false;
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        if self.calls.values().all(|state| *state == State::Settled) {
            // The file goes while it is still locked.
            remove_directory(&self.results)?;
            return fs::remove_file(&self.path);
        }
        self.append(&Line::Closed)?;
        self.file.sync_all()
    }
}
