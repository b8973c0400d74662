//! Which deliveries were here before (HOOK-8): the newest of them, as many as there may be within the
//! time in which one is accepted, and no more.

use std::collections::{HashSet, VecDeque};

use sha2::{Digest as _, Sha256};

/// Remembered ids. One delivery has two.
const REMEMBERED_MAX: usize = 8192;

type Mark = [u8; 32];

/// Remembers ids by their hash: however long they are, each takes the same room.
#[derive(Debug, Default)]
pub struct Seen {
    marks: HashSet<Mark>,
    order: VecDeque<Mark>,
}

/// What an id is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    Delivery,
    Event,
}

impl Seen {
    /// Whether this is the first time; it is not any more afterwards.
    pub fn is_new(&mut self, of: Of, id: &str) -> bool {
        let kind: &[u8] = match of {
            Of::Delivery => b"d",
            Of::Event => b"e",
        };
        let mark: Mark = Sha256::new().chain_update(kind).chain_update(id).finalize().into();
        if !self.marks.insert(mark) {
            return false;
        }
        self.order.push_back(mark);
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.marks.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_new_once_and_the_memory_has_an_end() {
        // HOOK-8, INV-11.
        let mut seen = Seen::default();
        assert!(seen.is_new(Of::Delivery, "a") && !seen.is_new(Of::Delivery, "a"));
        assert!(seen.is_new(Of::Event, "a"), "ids of events are others");
        for number in 0..REMEMBERED_MAX {
            assert!(seen.is_new(Of::Event, &number.to_string()));
        }
        assert_eq!((seen.marks.len(), seen.order.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
        assert!(!seen.is_new(Of::Event, &(REMEMBERED_MAX - 1).to_string()));
        assert!(seen.is_new(Of::Delivery, "a"), "the oldest are forgotten");
    }
}
