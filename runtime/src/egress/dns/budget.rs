//! How many questions a session may ask in a time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Questions that belong to one connection: A and AAAA.
const PER_CONNECTION: u32 = 2;
/// Questions in a second that every session may ask, however few connections it may make.
const RATE_MIN: u32 = 64;
/// What may be asked at once after a pause, as time at the full rate.
const BURST: Duration = Duration::from_secs(2);

/// The questions of one session: a bucket that fills at a constant rate (GCRA, ITU-T I.371).
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// When the questions of so far would have ended if they had been asked at the full rate.
    until: Mutex<Option<Instant>>,
}

impl Budget {
    /// Takes one question; false if there were too many. `connection_rate` is connections in a
    /// second: who may make so many may ask for the addresses of so many.
    pub fn take(&self, now: Instant, connection_rate: u32) -> bool {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let start = until.map_or(now, |until| until.max(now));
        if start.duration_since(now) >= BURST {
            return false;
        }
        let rate = connection_rate.saturating_mul(PER_CONNECTION).max(RATE_MIN);
        *until = Some(start + Duration::from_secs(1) / rate);
        true
    }

    /// Whether the next question will be too many.
    pub fn is_spent(&self, now: Instant) -> bool {
        let until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| until.saturating_duration_since(now) >= BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // jail.md 1.5 rule 2, INV-11.
    #[test]
    fn burst_is_bounded_and_refills_at_the_rate() {
        let (budget, start) = (Budget::default(), Instant::now());
        let taken = |now: Instant| (0..10_000).filter(|_| budget.take(now, 100)).count();
        assert_eq!(taken(start), 400, "two seconds of 200 questions");
        assert!(budget.is_spent(start));
        assert_eq!(taken(start), 0);
        let later = start + Duration::from_millis(500);
        assert!(!budget.is_spent(later));
        assert_eq!(taken(later), 100, "half a second of 200 questions");
        assert_eq!(taken(later + Duration::from_secs(3600)), 400, "never more than the burst");
    }

    #[test]
    fn session_with_few_connections_may_still_ask() {
        let (budget, now) = (Budget::default(), Instant::now());
        assert_eq!((0..10_000).filter(|_| budget.take(now, 1)).count(), 128);
    }
}
