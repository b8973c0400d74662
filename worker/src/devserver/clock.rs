//! Time of the development server: monotonic microseconds since its start, and the same as
//! timestamps. A control endpoint may advance it, so that leases expire without waiting.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Microseconds since the start.
pub type Micros = u64;

/// The one clock of a server.
#[derive(Debug)]
pub struct Clock {
    origin: Instant,
    started: SystemTime,
    skew: Duration,
}

impl Clock {
    /// A clock that begins now.
    pub fn new() -> Clock {
        Clock { origin: Instant::now(), started: SystemTime::now(), skew: Duration::ZERO }
    }

    /// Now.
    pub fn now(&self) -> Micros {
        micros(self.origin.elapsed() + self.skew)
    }

    /// Jumps ahead.
    pub fn advance(&mut self, by: Duration) {
        self.skew = self.skew.saturating_add(by);
    }

    /// RFC 3339 in UTC with microseconds; all have the same length.
    pub fn stamp(&self, at: Micros) -> String {
        let time = self.started + Duration::from_micros(at);
        humantime::format_rfc3339_micros(time).to_string()
    }
}

/// A duration in microseconds.
pub fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
