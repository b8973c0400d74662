//! A journal in memory: no call runs twice as long as this process lives. What it knew is lost with it,
//! so a call that it was interrupted in is run again by the next one; who cannot have that keeps files
//! ([`super::journal_file`]).

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::journal::{Journal, JournalError, JournalStore, Known};

type Calls = HashMap<String, Known>;

/// Journals of all sessions of this process.
#[derive(Debug, Clone, Default)]
pub struct MemoryJournals(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    open: HashSet<String>,
    /// Of sessions with calls that are not settled yet.
    kept: HashMap<String, Calls>,
}

impl MemoryJournals {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl JournalStore for MemoryJournals {
    fn open(&self, session: &str) -> Result<Box<dyn Journal>, JournalError> {
        let mut state = self.lock();
        if !state.open.insert(session.to_owned()) {
            return Err(JournalError::Locked { session: session.to_owned() });
        }
        let calls = state.kept.remove(session).unwrap_or_default();
        let (session, store) = (session.to_owned(), self.clone());
        Ok(Box::new(MemoryJournal { session, store, calls }))
    }
}

struct MemoryJournal {
    session: String,
    store: MemoryJournals,
    calls: Calls,
}

impl Journal for MemoryJournal {
    fn known(&self, call: &str) -> io::Result<Known> {
        Ok(self.calls.get(call).cloned().unwrap_or(Known::Nothing))
    }

    fn intent(&mut self, call: &str, _tool: &str, _input_sha256: &str) -> io::Result<()> {
        self.calls.insert(call.to_owned(), Known::Intent);
        Ok(())
    }

    fn result(&mut self, call: &str, body: &Bytes) -> io::Result<()> {
        self.calls.insert(call.to_owned(), Known::Result(body.clone()));
        Ok(())
    }

    fn settled(&mut self, call: &str) -> io::Result<()> {
        self.calls.insert(call.to_owned(), Known::Settled);
        Ok(())
    }

    fn forget(&mut self) {
        self.calls.clear();
    }

    fn may_have_lost_writes(&self) -> bool {
        false
    }

    fn presume_started(&mut self, _calls: &[(&str, &str)]) -> io::Result<()> {
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        self.calls.retain(|_, known| *known != Known::Settled);
        Ok(())
    }
}

impl Drop for MemoryJournal {
    fn drop(&mut self) {
        let calls = std::mem::take(&mut self.calls);
        let mut state = self.store.lock();
        state.open.remove(&self.session);
        if !calls.is_empty() {
            state.kept.insert(self.session.clone(), calls);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_settled_is_known_to_the_next_holder_and_there_is_one_at_a_time() {
        // INV-9, RUN-5.
        let journals = MemoryJournals::default();
        let mut first = journals.open("s").expect("free");
        assert!(matches!(journals.open("s"), Err(JournalError::Locked { .. })));
        for call in ["a", "b", "c"] {
            first.intent(call, "bash", "00").expect("kept");
        }
        first.result("b", &Bytes::from_static(b"{}")).expect("kept");
        first.settled("c").expect("kept");
        first.close().expect("closed");
        drop(first);
        let mut next = journals.open("s").expect("free again");
        assert_eq!(next.known("a").expect("known"), Known::Intent);
        assert_eq!(next.known("b").expect("known"), Known::Result(Bytes::from_static(b"{}")));
        assert_eq!(next.known("c").expect("known"), Known::Nothing, "settled leaves nothing");
        next.forget();
        drop(next);
        assert!(journals.lock().kept.is_empty() && journals.lock().open.is_empty());
    }
}
