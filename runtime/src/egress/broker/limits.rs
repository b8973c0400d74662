//! How much there may be: descriptors of the process, connections and bytes of a session.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::egress::reason::Reason;
use crate::egress::scope::Scope;

/// Descriptors left to the rest of the process: queue client, journals, jails. Of a limit that is too
/// low for both, half.
const RESERVE: u64 = 256;
/// And at least this share of all.
const RESERVE_SHARE: u64 = 4;
/// Most descriptors the broker takes, whatever the limit is: its tables are bounded too.
const DESCRIPTORS_MAX: u64 = 1 << 20;
/// Descriptors of one connection: both ends, and a second attempt while it is dialled.
const PER_CONNECTION: usize = 3;

/// Descriptors that the broker may still take.
#[derive(Debug)]
pub(super) struct Descriptors {
    left: AtomicUsize,
}

/// Some of them; given back when dropped.
#[derive(Debug)]
pub(super) struct Taken {
    from: Arc<Descriptors>,
    count: usize,
}

impl Descriptors {
    /// Raises the soft limit of open files to the hard one and takes the broker's share of it.
    pub fn of_process() -> io::Result<Descriptors> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        // Not being allowed to raise it leaves what there is.
        let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
            Ok(()) => hard,
            Err(_) => soft,
        };
        let reserve = (limit / RESERVE_SHARE).max(RESERVE.min(limit / 2));
        let share = limit.saturating_sub(reserve).min(DESCRIPTORS_MAX);
        Ok(Descriptors::new(usize::try_from(share).unwrap_or(usize::MAX)))
    }

    /// So many.
    pub fn new(count: usize) -> Descriptors {
        Descriptors { left: AtomicUsize::new(count) }
    }

    /// Takes `count`, or none if there are fewer.
    pub fn take(self: &Arc<Self>, count: usize) -> Option<Taken> {
        let enough = |left: usize| left.checked_sub(count);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough).ok()?;
        Some(Taken { from: Arc::clone(self), count })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.from.left.fetch_add(self.count, Ordering::Relaxed);
    }
}

/// What the connections of one session have used of its limits.
#[derive(Debug)]
pub(super) struct Usage {
    descriptors: Arc<Descriptors>,
    open: AtomicU32,
    rate: Mutex<Rate>,
    bytes_out: AtomicU64,
    bytes_in: AtomicU64,
}

/// A bucket that fills with the rate of the limit and holds one second of it.
#[derive(Debug)]
struct Rate {
    tokens: f64,
    at: Instant,
}

/// Room for one connection; given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    usage: Arc<Usage>,
    _descriptors: Taken,
}

impl Usage {
    /// Nothing is used.
    pub fn new(descriptors: Arc<Descriptors>) -> Usage {
        let rate = Mutex::new(Rate { tokens: f64::INFINITY, at: Instant::now() });
        let (open, bytes_out, bytes_in) = Default::default();
        Usage { descriptors, open, rate, bytes_out, bytes_in }
    }

    /// Room for one more connection.
    ///
    /// # Errors
    /// [`Reason::Connections`], [`Reason::ConnectionRate`].
    pub fn admit(self: &Arc<Self>, scope: &Scope) -> Result<Slot, Reason> {
        let in_force = scope.in_force();
        if !self.in_time(in_force.limits.connection_rate) {
            return Err(Reason::ConnectionRate);
        }
        let most = in_force.limits.connections;
        let more = |open: u32| (open < most).then_some(open + 1);
        if self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_err() {
            return Err(Reason::Connections);
        }
        match self.descriptors.take(PER_CONNECTION) {
            Some(taken) => Ok(Slot { usage: Arc::clone(self), _descriptors: taken }),
            None => {
                self.open.fetch_sub(1, Ordering::AcqRel);
                Err(Reason::Connections)
            }
        }
    }

    fn in_time(&self, per_second: u32) -> bool {
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let since = now.duration_since(rate.at).as_secs_f64();
        let most = f64::from(per_second);
        rate.tokens = (rate.tokens + since * most).min(most);
        rate.at = now;
        let enough = rate.tokens >= 1.0;
        if enough {
            rate.tokens -= 1.0;
        }
        enough
    }

    /// Connections that are open.
    pub fn open(&self) -> u32 {
        self.open.load(Ordering::Acquire)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.usage.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From the jail.
    Out,
    /// Into the jail.
    In,
}

/// Counts the bytes of one connection, and those of its session with them.
#[derive(Debug)]
pub(super) struct Meter {
    usage: Arc<Usage>,
    scope: Arc<Scope>,
    bytes_out: AtomicU64,
    bytes_in: AtomicU64,
    began: Instant,
    /// Milliseconds from `began` to the last byte.
    last: AtomicU64,
    failed: AtomicBool,
    used_up: AtomicBool,
}

impl Meter {
    /// Nothing was carried yet.
    pub fn new(usage: Arc<Usage>, scope: Arc<Scope>) -> Meter {
        let (bytes_out, bytes_in, last, failed, used_up) = Default::default();
        let began = Instant::now();
        Meter { usage, scope, bytes_out, bytes_in, began, last, failed, used_up }
    }

    /// Takes at most `want` bytes of what the session has left. To be followed by [`Meter::settle`].
    ///
    /// # Errors
    /// [`Reason::Bytes`]: none is left.
    pub fn reserve(&self, way: Way, want: usize) -> Result<usize, Reason> {
        if want == 0 {
            return Ok(0);
        }
        let limits = &self.scope.in_force().limits;
        let (limit, used) = match way {
            Way::Out => (limits.bytes_out, &self.usage.bytes_out),
            Way::In => (limits.bytes_in, &self.usage.bytes_in),
        };
        let Some(limit) = limit else {
            used.fetch_add(want as u64, Ordering::Relaxed);
            return Ok(want);
        };
        let room = |used: u64| limit.saturating_sub(used).min(want as u64);
        let more = |used: u64| (room(used) > 0).then(|| used + room(used));
        match used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(before) => Ok(room(before) as usize),
            Err(_) => Err(Reason::Bytes),
        }
    }

    /// Gives back what was reserved beyond `actual`, and counts `actual`.
    pub fn settle(&self, way: Way, reserved: usize, actual: usize) {
        let (used, own) = match way {
            Way::Out => (&self.usage.bytes_out, &self.bytes_out),
            Way::In => (&self.usage.bytes_in, &self.bytes_in),
        };
        used.fetch_sub(reserved.saturating_sub(actual) as u64, Ordering::Relaxed);
        if actual > 0 {
            own.fetch_add(actual as u64, Ordering::Relaxed);
            self.touch();
        }
    }

    /// Something happened: the connection is not idle.
    pub fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// One of the two ends was reset or is gone.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// The session has no bytes left for this connection.
    pub fn use_up(&self) {
        self.used_up.store(true, Ordering::Relaxed);
        self.fail();
    }

    /// Whether it had none.
    pub fn is_used_up(&self) -> bool {
        self.used_up.load(Ordering::Relaxed)
    }

    /// Whether one of them was.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// When something happened last.
    pub fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }

    /// Bytes so far: from the jail, into it.
    pub fn bytes(&self) -> (u64, u64) {
        (self.bytes_out.load(Ordering::Relaxed), self.bytes_in.load(Ordering::Relaxed))
    }

    /// The reason for which the connection has to end now, or the next moment to ask.
    pub fn expired(&self, now: Instant) -> Result<Instant, Reason> {
        let limits = &self.scope.in_force().limits;
        let idle = self.last() + Duration::from_millis(limits.idle_ms);
        let end = limits.duration_ms.map(|ms| self.began + Duration::from_millis(ms));
        match end {
            Some(end) if end <= now => Err(Reason::Duration),
            _ if idle <= now => Err(Reason::Idle),
            Some(end) => Ok(end.min(idle)),
            None => Ok(idle),
        }
    }
}
