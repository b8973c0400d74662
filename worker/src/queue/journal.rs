//! What is remembered about calls so that none runs twice (INV-9, RUN-5): the rules.
//!
//! Order of one call: the intent is written before it runs, its result before it is posted, a mark
//! after that. A call with an intent and no result was interrupted: its outcome is unknown, it is
//! answered with an error and never run again. The files are in [`super::journal_file`].

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// What is known about one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// It never started here.
    Nothing,
    /// It started; what came of it is not known.
    Intent,
    /// It ended, and this is the body that posts its result.
    Result(Bytes),
    /// Its result is on the server, or the server will never take it.
    Settled,
}

/// The journal of one session.
pub trait Journal: Send {
    /// What is known about a call.
    ///
    /// # Errors
    /// A result that was kept and cannot be read.
    fn known(&self, call: &str) -> io::Result<Known>;
    /// The call is about to run. `input_sha256` in hexadecimal.
    ///
    /// # Errors
    /// Then the call must not run.
    fn intent(&mut self, call: &str, tool: &str, input_sha256: &str) -> io::Result<()>;
    /// The call ended; `body` posts its result.
    ///
    /// # Errors
    /// The result is then known to this process only.
    fn result(&mut self, call: &str, body: &Bytes) -> io::Result<()>;
    /// The result is on the server, or will never be taken.
    ///
    /// # Errors
    /// Harmless: at worst it is posted again.
    fn settled(&mut self, call: &str) -> io::Result<()>;
    /// The session has ended and accepts no results: nothing of it is kept when this is closed.
    fn forget(&mut self) {}
    /// Writes of an earlier boot may be lost, so that any unanswered call may have run.
    fn may_have_lost_writes(&self) -> bool;
    /// After such a loss: these calls, all that are unanswered, count as started. Then nothing is
    /// missing any more.
    ///
    /// # Errors
    /// Then none of them must run.
    fn presume_started(&mut self, calls: &[(&str, &str)]) -> io::Result<()>;
    /// The item ends. What is settled leaves nothing behind.
    ///
    /// # Errors
    /// Files that could not be removed or written.
    fn close(&mut self) -> io::Result<()>;
}

/// A journal held by the runner and by the call under way; never across an await.
#[derive(Clone)]
pub struct SharedJournal(Arc<Mutex<Box<dyn Journal>>>);

impl SharedJournal {
    /// Shares a journal.
    pub fn new(journal: Box<dyn Journal>) -> SharedJournal {
        SharedJournal(Arc::new(Mutex::new(journal)))
    }

    /// For one step.
    pub fn lock(&self) -> MutexGuard<'_, Box<dyn Journal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A journal that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    #[error("cannot serve session {session}: another worker on this host serves it")]
    Locked { session: String },
    #[error("cannot open the journal of session {session}")]
    Open { session: String, source: io::Error },
}

/// Opens journals.
pub trait JournalStore: Send + Sync + 'static {
    /// The journal of a session; one holder at a time.
    ///
    /// # Errors
    /// [`JournalError`]; the session must not be served then.
    fn open(&self, session: &str) -> Result<Box<dyn Journal>, JournalError>;
}

/// SHA-256 in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a string does not fail.
        let _written = write!(hex, "{byte:02x}");
        hex
    })
}
