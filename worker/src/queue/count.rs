//! What is counted of the queue (OBS-6), for the recorder of the `metrics` crate that the program has
//! installed. Without one nothing is counted.
//!
//! The names are part of the product; docs/metrics.md has them. No id is ever a label: the names of
//! tools are the only labels from outside, and only tools that are served here are run.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{counter, gauge, histogram};

use super::clock::{BootTime, Uptime as _};
use super::host::ItemEnd;
use super::lease::LeaseEnd;

/// What a series is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeriesKind {
    Counter,
    Gauge,
    /// Of seconds.
    Histogram,
}

/// A name and what it means.
#[derive(Debug)]
pub struct Series {
    pub name: &'static str,
    pub kind: SeriesKind,
    pub help: &'static str,
}

const POLLS: &str = "worker_polls_total";
const POLL_SUCCESS: &str = "worker_poll_last_success_timestamp_seconds";
const CLAIMS: &str = "worker_claims_total";
const ITEMS_ACTIVE: &str = "worker_items_active";
const ITEMS: &str = "worker_items_total";
const LEASES_LOST: &str = "worker_lease_lost_total";
const HEARTBEATS: &str = "worker_heartbeats_total";
const HEARTBEAT_LATENCY: &str = "worker_heartbeat_latency_seconds";
const HEARTBEAT_AGE: &str = "worker_heartbeat_age_seconds";
const TOOL_CALLS: &str = "worker_tool_calls_total";
const TOOL_SECONDS: &str = "worker_tool_seconds";
const POST_RETRIES: &str = "worker_result_post_retries_total";
const POSTS_FAILED: &str = "worker_result_posts_failed_total";
const RECONNECTS: &str = "worker_stream_reconnects_total";

/// All that is counted here.
#[rustfmt::skip]
pub const SERIES: &[Series] = &[
    Series { name: POLLS,             kind: SeriesKind::Counter,   help: "Polls by outcome: work, empty, failed." },
    Series { name: POLL_SUCCESS,      kind: SeriesKind::Gauge,     help: "When the last poll was answered, seconds since 1970; 0 before the first." },
    Series { name: CLAIMS,            kind: SeriesKind::Counter,   help: "Work items from polls by outcome: acked, ack_failed, ack_refused." },
    Series { name: ITEMS_ACTIVE,      kind: SeriesKind::Gauge,     help: "Work items that are served now." },
    Series { name: ITEMS,             kind: SeriesKind::Counter,   help: "Work items that have ended, by how." },
    Series { name: LEASES_LOST,       kind: SeriesKind::Counter,   help: "Leases that ended against our will, by reason: lost, assumed_lost." },
    Series { name: HEARTBEATS,        kind: SeriesKind::Counter,   help: "Heartbeats by outcome: ok, failed." },
    Series { name: HEARTBEAT_LATENCY, kind: SeriesKind::Histogram, help: "Time until a heartbeat was answered, seconds." },
    Series { name: HEARTBEAT_AGE,     kind: SeriesKind::Gauge,     help: "How long ago the last good heartbeat was, of the lease that waits longest, seconds; 0 without leases." },
    Series { name: TOOL_CALLS,        kind: SeriesKind::Counter,   help: "Tool runs by tool and outcome: ok, error, timed_out, killed." },
    Series { name: TOOL_SECONDS,      kind: SeriesKind::Histogram, help: "Time of tool runs by tool, seconds." },
    Series { name: POST_RETRIES,      kind: SeriesKind::Counter,   help: "Further attempts to post a result." },
    Series { name: POSTS_FAILED,      kind: SeriesKind::Counter,   help: "Results that were not posted by outcome: refused for good, gave_up for now." },
    Series { name: RECONNECTS,        kind: SeriesKind::Counter,   help: "Event streams that ended and were opened again." },
];

/// What came of a poll.
#[derive(Debug, Clone, Copy)]
pub enum Polled {
    Work,
    Empty,
    Failed,
}

impl Polled {
    const ALL: [Polled; 3] = [Polled::Work, Polled::Empty, Polled::Failed];

    fn word(self) -> &'static str {
        match self {
            Polled::Work => "work",
            Polled::Empty => "empty",
            Polled::Failed => "failed",
        }
    }
}

/// What came of the ack of a work item.
#[derive(Debug, Clone, Copy)]
pub enum Claimed {
    Acked,
    AckFailed,
    AckRefused,
}

impl Claimed {
    const ALL: [Claimed; 3] = [Claimed::Acked, Claimed::AckFailed, Claimed::AckRefused];

    fn word(self) -> &'static str {
        match self {
            Claimed::Acked => "acked",
            Claimed::AckFailed => "ack_failed",
            Claimed::AckRefused => "ack_refused",
        }
    }
}

/// Outcome of a heartbeat that was not good, and of one that was.
const BEATS: [&str; 2] = ["failed", "ok"];
/// Outcome of a post that is tried again later, and of one that is not.
const UNPOSTED: [&str; 2] = ["gave_up", "refused"];
const LOST: &str = "lost";
const ASSUMED_LOST: &str = "assumed_lost";

/// Says what is known beforehand, so that a rate can be told from the first event on.
pub fn begin() {
    for outcome in Polled::ALL {
        counter!(POLLS, "outcome" => outcome.word()).absolute(0);
    }
    for outcome in Claimed::ALL {
        counter!(CLAIMS, "outcome" => outcome.word()).absolute(0);
    }
    for reason in [LOST, ASSUMED_LOST] {
        counter!(LEASES_LOST, "reason" => reason).absolute(0);
    }
    for outcome in BEATS {
        counter!(HEARTBEATS, "outcome" => outcome).absolute(0);
    }
    for outcome in UNPOSTED {
        counter!(POSTS_FAILED, "outcome" => outcome).absolute(0);
    }
    counter!(POST_RETRIES).absolute(0);
    counter!(RECONNECTS).absolute(0);
    gauge!(ITEMS_ACTIVE).set(0.0);
    gauge!(POLL_SUCCESS).set(0.0);
}

/// Measures what changes while nothing happens.
pub fn refresh() {
    let now = BootTime.now();
    let oldest = LEASES.lock().unwrap_or_else(PoisonError::into_inner).values().min().copied();
    let age = oldest.map_or(Duration::ZERO, |oldest| now.saturating_sub(oldest));
    gauge!(HEARTBEAT_AGE).set(age.as_secs_f64());
}

pub fn poll(outcome: Polled) {
    counter!(POLLS, "outcome" => outcome.word()).increment(1);
    if !matches!(outcome, Polled::Failed) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        gauge!(POLL_SUCCESS).set(now.as_secs_f64());
    }
}

pub fn claim(outcome: Claimed) {
    counter!(CLAIMS, "outcome" => outcome.word()).increment(1);
}

/// A work item that is served, until it is dropped.
#[derive(Debug)]
pub struct Item(());

impl Item {
    pub fn begin() -> Item {
        gauge!(ITEMS_ACTIVE).increment(1.0);
        Item(())
    }

    pub fn end(self, how: ItemEnd) {
        counter!(ITEMS, "end" => how.label().replace(' ', "_")).increment(1);
        let reason = match how {
            ItemEnd::Lease(LeaseEnd::Lost) => LOST,
            ItemEnd::Lease(LeaseEnd::AssumedLost) => ASSUMED_LOST,
            _ => return,
        };
        counter!(LEASES_LOST, "reason" => reason).increment(1);
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        gauge!(ITEMS_ACTIVE).decrement(1.0);
    }
}

/// When the last heartbeat of each lease was good.
static LEASES: Mutex<BTreeMap<u64, Duration>> = Mutex::new(BTreeMap::new());

/// A lease that is kept, until it is dropped.
#[derive(Debug)]
pub struct Lease(u64);

impl Lease {
    /// `now` is time since the host was started.
    pub fn begin(now: Duration) -> Lease {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let lease = Lease(NEXT.fetch_add(1, Ordering::Relaxed));
        lease.was_good(now);
        lease
    }

    /// A heartbeat was answered, or was not.
    pub fn beat(&self, ok: bool, took: Duration) {
        counter!(HEARTBEATS, "outcome" => BEATS[usize::from(ok)]).increment(1);
        if ok {
            histogram!(HEARTBEAT_LATENCY).record(took.as_secs_f64());
        }
    }

    /// When it was good the last time.
    pub fn was_good(&self, at: Duration) {
        LEASES.lock().unwrap_or_else(PoisonError::into_inner).insert(self.0, at);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        LEASES.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// `status` is one word of the log.
pub fn tool_run(tool: &str, status: &str, took: Duration) {
    let labels = [("tool", tool.to_owned()), ("outcome", status.replace(' ', "_"))];
    counter!(TOOL_CALLS, &labels).increment(1);
    histogram!(TOOL_SECONDS, "tool" => tool.to_owned()).record(took.as_secs_f64());
}

pub fn post_again() {
    counter!(POST_RETRIES).increment(1);
}

/// `for_good`: it is not posted again.
pub fn post_failed(for_good: bool) {
    counter!(POSTS_FAILED, "outcome" => UNPOSTED[usize::from(for_good)]).increment(1);
}

pub fn reconnect() {
    counter!(RECONNECTS).increment(1);
}
