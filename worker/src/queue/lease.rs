//! The lease of one work item (protocol §4): when to beat, and what an answer means.
//!
//! [`LeaseState`] is pure; [`keep`] is the task around it. The task runs on a thread of its own
//! ([`super::heartbeat`]), so that nothing a session does can delay a beat (LEASE-17).
//!
//! `stopping` does not end the beats: the call in flight may still finish (LEASE-14), and a lease
//! that is lost meanwhile must be noticed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::api::ItemApi;
use super::client::ApiError;
use super::clock::SharedUptime;
use super::count;
use super::events::{Ids, emit};
use super::shutdown::{Level, ShutdownWatch};
use super::wire::work::{HeartbeatReply, parse_heartbeat};

/// Why a lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseEnd {
    /// State `stopped`, or not extended (LEASE-9).
    Stopped,
    /// 412: somebody else has it (LEASE-6).
    Lost,
    /// No success for longer than the TTL (LEASE-8), or a suspend (RACE-20).
    AssumedLost,
    /// Another final 4xx (LEASE-7).
    Rejected,
}

impl LeaseEnd {
    /// The item is somebody else's: post nothing, not even a stop (LEASE-13).
    pub fn is_lost(self) -> bool {
        matches!(self, LeaseEnd::Lost | LeaseEnd::AssumedLost)
    }
}

/// What the rest of the session may know about its lease.
#[derive(Debug, Clone, Copy)]
pub struct LeaseView {
    /// Latest TTL; also the window for posting (LEASE-15).
    pub ttl: Duration,
    /// A beat was accepted; before that nothing runs (RACE-1).
    pub confirmed: bool,
    /// Uptime of the last success.
    pub last_success: Duration,
    /// The server wants the item to end; what runs may finish (LEASE-14).
    pub stopping: bool,
    /// It is over.
    pub end: Option<LeaseEnd>,
}

impl LeaseView {
    /// Whether something may be started on it at `now` (RACE-1, RACE-20).
    pub fn is_good(&self, now: Duration) -> bool {
        self.confirmed && self.end.is_none() && now.saturating_sub(self.last_success) <= self.ttl
    }
}

const TTL_BEFORE_FIRST_BEAT: Duration = Duration::from_secs(90);
/// LEASE-15: window for posts before the first beat.
const POST_WINDOW_BEFORE_FIRST_BEAT: Duration = Duration::from_secs(300);
const INTERVAL_MIN: Duration = Duration::from_secs(1);
const INTERVAL_MAX: Duration = Duration::from_secs(30);
/// Between beats of which none was accepted yet: no call is started meanwhile (RACE-1).
const INTERVAL_UNCONFIRMED_MAX: Duration = INTERVAL_MIN;
/// A TTL beyond this is a mistake of the server's.
const TTL_SECONDS_MAX: f64 = 86_400.0;

/// The rules, with time passed in as uptime.
#[derive(Debug)]
pub struct LeaseState {
    interval: Duration,
    ttl: Duration,
    last_success: Duration,
    expected: String,
    confirmed: bool,
    ambiguous: bool,
    stopping: bool,
}

/// What to do after a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Beat again after this.
    Wait(Duration),
    /// Over.
    End(LeaseEnd),
}

impl LeaseState {
    /// Before the first beat (LEASE-2, LEASE-3).
    pub fn new(now: Duration) -> LeaseState {
        LeaseState {
            interval: INTERVAL_MAX,
            ttl: TTL_BEFORE_FIRST_BEAT,
            last_success: now,
            expected: "NO_HEARTBEAT".to_owned(),
            confirmed: false,
            ambiguous: false,
            stopping: false,
        }
    }

    /// What the next beat must repeat, exactly.
    pub fn expected(&self) -> &str {
        &self.expected
    }

    /// Limit of one beat (LEASE-4).
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// The server accepted a beat.
    pub fn on_success(&mut self, reply: HeartbeatReply, now: Duration) -> Next {
        self.expected = reply.last_heartbeat;
        self.last_success = now;
        self.confirmed = true;
        self.ambiguous = false;
        self.take_ttl(reply.ttl_seconds);
        if reply.state == "stopped" || !reply.lease_extended {
            return Next::End(LeaseEnd::Stopped);
        }
        self.stopping |= reply.state == "stopping";
        Next::Wait(self.interval)
    }

    /// LEASE-3.
    fn take_ttl(&mut self, seconds: f64) {
        if seconds.is_finite() && seconds > 0.0 {
            self.ttl = Duration::from_secs_f64(seconds.min(TTL_SECONDS_MAX));
            self.interval = (self.ttl / 2).clamp(INTERVAL_MIN, INTERVAL_MAX);
        }
    }

    /// A beat failed.
    pub fn on_failure(&mut self, error: &ApiError, now: Duration) -> Next {
        let since = now.saturating_sub(self.last_success);
        if error.status() == Some(412) {
            return match self.own_beat(error, since) {
                Some((value, ttl)) => {
                    // RACE-2: our last beat was applied and its answer lost.
                    self.expected = value;
                    self.last_success = now;
                    self.confirmed = true;
                    self.ambiguous = false;
                    self.take_ttl(ttl);
                    Next::Wait(self.interval)
                }
                None => Next::End(LeaseEnd::Lost),
            };
        }
        if error.is_fatal() {
            return Next::End(LeaseEnd::Rejected);
        }
        if since > self.ttl {
            return Next::End(LeaseEnd::AssumedLost);
        }
        self.ambiguous |= error.is_ambiguous();
        // LEASE-5. Before the first success the TTL is a guess, and it may be much shorter.
        let remaining = self.ttl.saturating_sub(since);
        let longest = if self.confirmed { self.interval } else { INTERVAL_UNCONFIRMED_MAX };
        Next::Wait(longest.min(INTERVAL_MIN.max(remaining / 4)))
    }

    /// The value and TTL to go on with if a refused beat was our own: only after a lost answer,
    /// within the TTL, and only once we held the lease.
    fn own_beat(&self, error: &ApiError, since: Duration) -> Option<(String, f64)> {
        let ApiError::Status { body, .. } = error else { return None };
        let server = body.lease.as_ref()?;
        let plausible = self.ambiguous
            && self.confirmed
            && since < self.ttl
            && server.state.as_deref() == Some("active");
        plausible
            .then(|| Some((server.last_heartbeat.clone()?, server.ttl_seconds.unwrap_or(0.0))))?
    }

    fn view(&self, end: Option<LeaseEnd>) -> LeaseView {
        LeaseView {
            ttl: if self.confirmed { self.ttl } else { POST_WINDOW_BEFORE_FIRST_BEAT },
            confirmed: self.confirmed,
            last_success: self.last_success,
            stopping: self.stopping,
            end,
        }
    }
}

/// What [`keep`] works with.
pub struct Keeper {
    pub api: ItemApi,
    pub ids: Ids,
    pub uptime: SharedUptime,
    /// Set when the item is over (LEASE-11).
    pub finished: super::host::CancelToken,
    /// At `Cancel` the item goes at once; the beats may as well.
    pub shutdown: ShutdownWatch,
}

/// Where there is no lease that could end: for a session that is no work item.
pub fn no_lease() -> LeaseView {
    LeaseView {
        ttl: POST_WINDOW_BEFORE_FIRST_BEAT,
        confirmed: true,
        last_success: Duration::MAX,
        stopping: false,
        end: None,
    }
}

/// A view before the first beat, to make the channel with.
pub fn first_view(now: Duration) -> LeaseView {
    LeaseState::new(now).view(None)
}

/// Beats until the lease or the item ends. First beat at once (LEASE-1).
pub async fn keep(mut keeper: Keeper, view: Arc<watch::Sender<LeaseView>>) {
    let mut began = keeper.uptime.now();
    let mut state = LeaseState::new(began);
    let counted = count::Lease::begin(began);
    loop {
        let limit = state.interval();
        let beat = keeper.api.heartbeat(state.expected(), limit);
        let answer = tokio::select! {
            biased;
            () = keeper.finished.cancelled() => return,
            () = keeper.shutdown.reached(Level::Cancel) => return,
            answer = tokio::time::timeout(limit, beat) => answer,
        };
        let answer = answer.unwrap_or(Err(ApiError::Timeout { after: limit }));
        let now = keeper.uptime.now();
        let answer = answer.and_then(|reply| {
            parse_heartbeat(&reply.body).ok_or(ApiError::Unreadable { what: "a heartbeat" })
        });
        counted.beat(answer.is_ok(), now.saturating_sub(began));
        let next = match answer {
            Ok(reply) => {
                let was_stopping = state.stopping;
                let (server_state, extended) = (reply.state.clone(), reply.lease_extended);
                let next = state.on_success(reply, now);
                if next == Next::End(LeaseEnd::Stopped) || (state.stopping && !was_stopping) {
                    emit!(info, keeper.ids, "lease.shutdown", "the control plane ends the item",
                        state = %server_state, lease_extended = extended);
                }
                next
            }
            Err(error) => {
                let next = state.on_failure(&error, now);
                log_failure(&keeper.ids, &error, next);
                next
            }
        };
        counted.was_good(state.last_success);
        let end = match next {
            Next::Wait(_) => None,
            Next::End(end) => Some(end),
        };
        view.send_replace(state.view(end));
        let Next::Wait(pause) = next else { return };
        tokio::select! {
            biased;
            () = keeper.finished.cancelled() => return,
            () = keeper.shutdown.reached(Level::Cancel) => return,
            () = tokio::time::sleep(pause) => {}
        }
        began = keeper.uptime.now();
    }
}

fn log_failure(ids: &Ids, error: &ApiError, next: Next) {
    let label = error.label();
    match next {
        Next::Wait(pause) => emit!(warn, ids, "lease.transient", "heartbeat failed",
            error = %label, pause_ms = pause.as_millis() as u64),
        Next::End(LeaseEnd::Lost) => {
            let body = match error {
                ApiError::Status { body, .. } => body.lease.clone().unwrap_or_default(),
                _ => Default::default(),
            };
            emit!(
                error,
                ids,
                "lease.lost",
                "another worker has the lease",
                state = body.state,
                ttl_seconds = body.ttl_seconds,
                last_heartbeat = body.last_heartbeat
            );
        }
        Next::End(LeaseEnd::AssumedLost) => {
            emit!(error, ids, "lease.assumed_lost", "no heartbeat succeeded within the TTL",
                error = %label);
        }
        Next::End(_) => {
            emit!(error, ids, "lease.rejected", "heartbeat refused for good", error = %label);
        }
    }
}
