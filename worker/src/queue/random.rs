//! Jitter. One source that tests can replace; nothing secret comes from it.

use std::sync::Arc;
use std::time::Duration;

/// Where jitter comes from: uniform in `[0, 1)`.
#[derive(Clone)]
pub struct Random(Arc<dyn Fn() -> f64 + Send + Sync>);

impl Random {
    /// Seeded by the system.
    pub fn system() -> Random {
        Random(Arc::new(fastrand::f64))
    }

    /// The same answer each time.
    #[cfg(test)]
    pub fn fixed(answer: f64) -> Random {
        Random(Arc::new(move || answer))
    }

    /// Uniform in `[from, to)`.
    pub fn between(&self, from: Duration, to: Duration) -> Duration {
        from + to.saturating_sub(from).mul_f64((self.0)().clamp(0.0, 1.0))
    }
}

impl std::fmt::Debug for Random {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Random")
    }
}

/// `2^exponent` seconds, at most `max`.
fn power(exponent: u32, max: Duration) -> Duration {
    Duration::from_secs(1_u64.checked_shl(exponent.min(63)).unwrap_or(u64::MAX)).min(max)
}

const LOOP_BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Poll and ack (POLL-4, POLL-8): `min(60, 2^n) + U(0,1)` seconds after `failures` in a row.
pub fn loop_backoff(failures: u32, random: &Random) -> Duration {
    power(failures, LOOP_BACKOFF_MAX) + random.between(Duration::ZERO, Duration::from_secs(1))
}

/// Discarded items (POLL-9): `U(base/2, base)`, `base = min(60, 2^n)` seconds.
pub fn discard_backoff(discards: u32, random: &Random) -> Duration {
    let base = power(discards, LOOP_BACKOFF_MAX);
    random.between(base / 2, base)
}

/// Posts (RUN-24): `U(d/2, d)`, `d = min(30, 2^(n-1))` seconds after attempt `attempt`.
pub fn post_backoff(attempt: u32, random: &Random) -> Duration {
    let base = power(attempt.saturating_sub(1), Duration::from_secs(30));
    random.between(base / 2, base)
}

/// One request (HTTP-2): `min(0.5 · 2^n, 8) s · U(0.75, 1]` before retry `retries + 1`.
pub fn request_backoff(retries: u32, random: &Random) -> Duration {
    let base = (Duration::from_millis(500) * 2_u32.saturating_pow(retries.min(8)))
        .min(Duration::from_secs(8));
    base - random.between(Duration::ZERO, base / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(values: impl Iterator<Item = Duration>) -> Vec<f64> {
        values.map(|value| value.as_secs_f64()).collect()
    }

    #[test]
    fn poll_backoff_doubles_to_a_minute_plus_jitter() {
        // POLL-4, POLL-8: 2, 4, 8, 16, 32, 60, 60 and up to a second more.
        let low = seconds((1..8).map(|n| loop_backoff(n, &Random::fixed(0.0))));
        assert_eq!(low, [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]);
        let high = seconds((1..8).map(|n| loop_backoff(n, &Random::fixed(1.0))));
        assert_eq!(high, [3.0, 5.0, 9.0, 17.0, 33.0, 61.0, 61.0]);
        assert_eq!(loop_backoff(u32::MAX, &Random::fixed(0.0)), Duration::from_secs(60));
    }

    #[test]
    fn post_backoff_is_between_half_and_all_of_its_base() {
        // RUN-24.
        let high = seconds((1..8).map(|n| post_backoff(n, &Random::fixed(1.0))));
        assert_eq!(high, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        let low = seconds((1..8).map(|n| post_backoff(n, &Random::fixed(0.0))));
        assert_eq!(low, [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]);
    }

    #[test]
    fn request_backoff_stays_below_eight_seconds() {
        // HTTP-2.
        let high = seconds((0..7).map(|n| request_backoff(n, &Random::fixed(0.0))));
        assert_eq!(high, [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]);
        assert_eq!(request_backoff(0, &Random::fixed(1.0)), Duration::from_millis(375));
    }

    #[test]
    fn discard_backoff_grows_with_consecutive_discards() {
        // POLL-9.
        let low = seconds((1..4).map(|n| discard_backoff(n, &Random::fixed(0.0))));
        assert_eq!(low, [1.0, 2.0, 4.0]);
    }
}
