//! Work items: the queue, leases and the states of §2.8, without any input or output.
//!
//! Every call gets the time, so that tests need not wait. Leases expire when somebody looks
//! ([`Queue::expire`]), which every call does first.

use std::collections::{BTreeMap, HashMap};

use super::clock::Micros;

/// An item that was handed out and not acked is free again after this long (SIM-1).
pub const RECLAIM_DEFAULT_US: Micros = 5_000_000;
const SECOND: Micros = 1_000_000;
/// Longest interval between heartbeats that a worker may choose (LEASE-3).
const INTERVAL_MAX_US: Micros = 30 * SECOND;

/// State of an item, as the protocol names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Queued,
    Starting,
    Active,
    Stopping,
    Stopped,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Starting => "starting",
            State::Active => "active",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
        }
    }
}

/// One attempt of a worker to serve an item: from a poll to the loss or the end of its lease.
#[derive(Debug, Clone, Default)]
pub struct Holding {
    pub worker: String,
    pub token: Option<String>,
    pub polled_at: Micros,
    pub acked_at: Option<Micros>,
    pub beats: u64,
    pub first_beat_at: Option<Micros>,
    pub last_beat_at: Option<Micros>,
    pub largest_gap: Micros,
    pub largest_lateness: Micros,
    /// Interval that the last answer asked for.
    pub interval: Option<Micros>,
    pub stops: Vec<(Micros, bool)>,
    /// A fault withheld the answer to a heartbeat: the next one cannot know the value (RACE-2).
    pub beat_lost: bool,
    /// When the lease went to nobody or somebody else.
    pub lost_at: Option<Micros>,
}

impl Holding {
    fn beat(&mut self, now: Micros, ttl: i64) {
        if let Some(last) = self.last_beat_at {
            let gap = now.saturating_sub(last);
            self.largest_gap = self.largest_gap.max(gap);
            let late = gap.saturating_sub(self.interval.unwrap_or(INTERVAL_MAX_US));
            self.largest_lateness = self.largest_lateness.max(late);
        }
        self.beats += 1;
        self.first_beat_at.get_or_insert(now);
        self.last_beat_at = Some(now);
        if let Ok(ttl @ 1..) = Micros::try_from(ttl) {
            self.interval = Some((ttl.saturating_mul(SECOND) / 2).clamp(SECOND, INTERVAL_MAX_US));
        }
    }
}

/// A work item.
#[derive(Debug, Clone)]
pub struct Work {
    pub id: String,
    /// `data.type`; none for an item without data.
    pub kind: Option<String>,
    pub session: Option<String>,
    pub state: State,
    pub metadata: BTreeMap<String, String>,
    pub created_at: Micros,
    pub acknowledged_at: Option<Micros>,
    pub started_at: Option<Micros>,
    pub latest_heartbeat_at: Option<Micros>,
    pub stop_requested_at: Option<Micros>,
    pub stopped_at: Option<Micros>,
    claimed_at: Option<Micros>,
    /// The string that the next heartbeat must repeat.
    pub heartbeat: Option<String>,
    lease_until: Option<Micros>,
    pub ttl: i64,
    pub holdings: Vec<Holding>,
}

impl Work {
    pub fn holder(&mut self) -> Option<&mut Holding> {
        self.holdings.last_mut().filter(|holding| holding.lost_at.is_none())
    }

    /// Takes the lease away: the item is for everybody again (SIM-4).
    pub fn lose(&mut self, now: Micros) {
        if let Some(holding) = self.holder() {
            holding.lost_at = Some(now);
        }
        self.state = State::Queued;
        (self.claimed_at, self.heartbeat, self.lease_until) = (None, None, None);
        (self.acknowledged_at, self.started_at) = (None, None);
    }

    fn extend(&mut self, now: Micros, ttl: i64) {
        self.ttl = ttl;
        let ttl = Micros::try_from(ttl).unwrap_or(0);
        self.lease_until = (ttl > 0).then_some(now.saturating_add(ttl.saturating_mul(SECOND)));
    }

    fn expire(&mut self, now: Micros) {
        if self.lease_until.is_none_or(|until| now <= until) {
            return;
        }
        match self.state {
            State::Starting | State::Active => self.lose(now),
            State::Stopping => self.stopped(now),
            State::Queued | State::Stopped => {}
        }
    }

    fn stopped(&mut self, now: Micros) {
        self.state = State::Stopped;
        self.stopped_at = Some(now);
        self.lease_until = None;
    }

    fn claimable(&self, now: Micros, reclaim: Micros) -> bool {
        self.state == State::Queued
            && self.claimed_at.is_none_or(|at| now >= at.saturating_add(reclaim))
    }
}

/// How a heartbeat was taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Beat {
    Extended,
    /// The item is stopped; nothing was extended.
    NotExtended,
    /// The expected value is not the stored one (412).
    Mismatch,
}

/// How a stop was taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    Done,
    /// Already stopped (409).
    Already,
}

/// All items of the environment, oldest first.
#[derive(Debug, Default)]
pub struct Queue {
    pub items: Vec<Work>,
    /// Worker ids and when they polled last.
    pub pollers: BTreeMap<String, Micros>,
    /// The newest item of each session; older ones are stopped.
    newest: HashMap<String, usize>,
    beats: u64,
}

impl Queue {
    /// A new item, and its position.
    pub fn add(
        &mut self,
        kind: Option<&str>,
        session: Option<&str>,
        metadata: BTreeMap<String, String>,
        now: Micros,
    ) -> usize {
        if let Some(session) = session {
            self.newest.insert(session.to_owned(), self.items.len());
        }
        self.items.push(Work {
            id: format!("work_{:06}", self.items.len() + 1),
            kind: kind.map(str::to_owned),
            session: session.map(str::to_owned),
            state: State::Queued,
            metadata,
            created_at: now,
            acknowledged_at: None,
            started_at: None,
            latest_heartbeat_at: None,
            stop_requested_at: None,
            stopped_at: None,
            claimed_at: None,
            heartbeat: None,
            lease_until: None,
            ttl: 0,
            holdings: Vec::new(),
        });
        self.items.len() - 1
    }

    pub fn find(&mut self, id: &str) -> Option<&mut Work> {
        let number: usize = id.strip_prefix("work_")?.parse().ok()?;
        self.items.get_mut(number.checked_sub(1)?).filter(|work| work.id == id)
    }

    /// Leases that ran out.
    pub fn expire(&mut self, now: Micros) {
        self.items.iter_mut().for_each(|work| work.expire(now));
    }

    /// Hands out the oldest item that may be claimed.
    pub fn claim(&mut self, worker: &str, reclaim: Micros, now: Micros) -> Option<&mut Work> {
        self.expire(now);
        let work = self.items.iter_mut().find(|work| work.claimable(now, reclaim))?;
        if let Some(holding) = work.holder() {
            holding.lost_at = Some(now);
        }
        work.claimed_at = Some(now);
        work.holdings.push(Holding {
            worker: worker.to_owned(),
            polled_at: now,
            ..Holding::default()
        });
        Some(work)
    }

    /// When an item may become claimable by itself.
    pub fn next_change(&self, reclaim: Micros) -> Option<Micros> {
        let each = self.items.iter().filter_map(|work| match work.state {
            State::Queued => work.claimed_at.map(|at| at.saturating_add(reclaim)),
            State::Stopped => None,
            _ => work.lease_until.map(|until| until.saturating_add(1)),
        });
        each.min()
    }

    /// Whether `session` has an item that is not stopped.
    pub fn live(&self, session: &str) -> bool {
        let newest = self.newest.get(session).and_then(|at| self.items.get(*at));
        newest.is_some_and(|work| work.state != State::Stopped)
    }

    /// The same after a look at the clock.
    pub fn live_at(&mut self, session: &str, now: Micros) -> bool {
        let newest = self.newest.get(session).and_then(|at| self.items.get_mut(*at));
        newest.is_some_and(|work| {
            work.expire(now);
            work.state != State::Stopped
        })
    }
}

impl Work {
    /// SIM-2. False if the item cannot be acked any more; repeating is the caller's decision.
    pub fn ack(&mut self, now: Micros, ttl: i64) -> bool {
        self.expire(now);
        if let Some(holding) = self.holder() {
            holding.acked_at.get_or_insert(now);
        }
        match self.state {
            State::Queued => {
                self.state = State::Starting;
                self.acknowledged_at = Some(now);
                self.claimed_at.get_or_insert(now);
                self.extend(now, ttl);
                true
            }
            State::Starting | State::Active => true,
            State::Stopping | State::Stopped => false,
        }
    }

    /// SIM-3. `fresh` becomes the stored value.
    pub fn beat(&mut self, expected: &str, fresh: String, now: Micros, ttl: i64) -> Beat {
        self.expire(now);
        let matches = match &self.heartbeat {
            None => expected == "NO_HEARTBEAT",
            Some(stored) => stored == expected,
        };
        match self.state {
            State::Stopped => return Beat::NotExtended,
            // Nobody holds a queued item.
            State::Queued => return Beat::Mismatch,
            State::Starting | State::Active if !matches => return Beat::Mismatch,
            State::Starting => {
                self.state = State::Active;
                self.started_at = Some(now);
            }
            State::Active | State::Stopping => {}
        }
        self.heartbeat = Some(fresh);
        self.latest_heartbeat_at = Some(now);
        self.extend(now, ttl);
        if let Some(holding) = self.holder() {
            holding.beat(now, ttl);
        }
        Beat::Extended
    }

    /// SIM-5.
    pub fn stop(&mut self, force: bool, now: Micros) -> Stop {
        self.expire(now);
        if let Some(holding) = self.holder() {
            holding.stops.push((now, force));
        }
        if self.state == State::Stopped {
            return Stop::Already;
        }
        self.stop_requested_at.get_or_insert(now);
        if force {
            self.stopped(now);
        } else {
            self.state = State::Stopping;
        }
        Stop::Done
    }
}

impl Work {
    /// The same, asked for by the server itself: no holder is credited with it.
    pub fn stop_by_server(&mut self, now: Micros, force: bool) -> Stop {
        let stops = self.holder().map(|holding| holding.stops.clone());
        let stopped = self.stop(force, now);
        if let Some((holding, stops)) = self.holder().zip(stops) {
            holding.stops = stops;
        }
        stopped
    }

    /// Handed out, and neither acked nor free again.
    pub fn claimed(&self) -> bool {
        self.claimed_at.is_some()
    }
}

impl Queue {
    /// A string that was never used before and is no plain number or date: it has characters that
    /// a query must encode (API-3).
    pub fn fresh_heartbeat(&mut self, stamp: &str) -> String {
        self.beats += 1;
        format!("{}+00:00/{}", stamp.trim_end_matches('Z'), self.beats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: i64 = 10;

    fn queue() -> Queue {
        let mut queue = Queue::default();
        queue.add(Some("session"), Some("s1"), BTreeMap::new(), 0);
        queue.add(Some("session"), Some("s2"), BTreeMap::new(), 0);
        queue
    }

    fn active(queue: &mut Queue, now: Micros) -> String {
        let work = queue.claim("w", RECLAIM_DEFAULT_US, now).expect("claimable");
        assert!(work.ack(now, TTL));
        assert_eq!(work.beat("NO_HEARTBEAT", "hb1".to_owned(), now, TTL), Beat::Extended);
        work.id.clone()
    }

    // SIM-1
    #[test]
    fn items_are_handed_out_oldest_first_and_again_when_nobody_acked() {
        let mut queue = queue();
        let claim =
            |queue: &mut Queue, now| queue.claim("w", 2 * SECOND, now).map(|w| w.id.clone());
        assert_eq!(claim(&mut queue, 0).as_deref(), Some("work_000001"));
        assert_eq!(claim(&mut queue, 0).as_deref(), Some("work_000002"));
        assert_eq!(claim(&mut queue, 2 * SECOND - 1), None);
        assert_eq!(queue.next_change(2 * SECOND), Some(2 * SECOND));
        assert_eq!(claim(&mut queue, 2 * SECOND).as_deref(), Some("work_000001"));
        assert!(queue.items[0].holdings[0].lost_at.is_some(), "the first poller lost it");
    }

    // SIM-2, SIM-3
    #[test]
    fn a_heartbeat_must_repeat_the_last_value() {
        let mut queue = queue();
        let id = active(&mut queue, 0);
        let work = queue.find(&id).expect("there");
        assert_eq!(work.state, State::Active);
        let mut beat = |expected: &str, fresh: &str| work.beat(expected, fresh.to_owned(), 1, TTL);
        assert_eq!(beat("NO_HEARTBEAT", "x"), Beat::Mismatch);
        assert_eq!(beat("hb1", "hb2"), Beat::Extended);
        assert_eq!(beat("hb1", "hb3"), Beat::Mismatch);
        assert_eq!(beat("hb2", "hb3"), Beat::Extended);
        assert_eq!(work.stop(false, 2), Stop::Done);
        assert_eq!(work.beat("anything", "hb4".to_owned(), 3, TTL), Beat::Extended);
        assert_eq!(work.stop(true, 4), Stop::Done);
        assert_eq!(work.beat("anything", "hb5".to_owned(), 5, TTL), Beat::NotExtended);
    }

    // SIM-4
    #[test]
    fn a_lease_that_ran_out_goes_to_the_next_worker() {
        let mut queue = queue();
        let id = active(&mut queue, 0);
        let end = u64::try_from(TTL).expect("positive") * SECOND;
        queue.expire(end);
        assert_eq!(queue.items[0].state, State::Active);
        queue.expire(end + 1);
        assert_eq!(queue.items[0].state, State::Queued);
        let work = queue.find(&id).expect("there");
        assert_eq!(work.beat("hb1", "x".to_owned(), end + 2, TTL), Beat::Mismatch);
        assert_eq!(active(&mut queue, end + 3), id);
        assert_eq!(queue.items[0].holdings.len(), 2);
        // Acked, but never a heartbeat: the same.
        let work = queue.claim("w", SECOND, end + 3).expect("claimable");
        assert!(work.ack(end + 3, TTL));
        queue.expire(3 * end);
        assert_eq!(queue.items[1].state, State::Queued);
    }

    // SIM-5
    #[test]
    fn a_stop_without_force_is_followed_by_the_end_of_the_lease() {
        let mut queue = queue();
        let id = active(&mut queue, 0);
        let work = queue.find(&id).expect("there");
        assert_eq!(work.stop(false, 1), Stop::Done);
        assert_eq!((work.state, work.stop_requested_at), (State::Stopping, Some(1)));
        assert_eq!(work.stop(false, 2), Stop::Done);
        queue.expire(100 * SECOND);
        let work = queue.find(&id).expect("there");
        assert_eq!(work.state, State::Stopped);
        assert_eq!(work.stop(true, 3), Stop::Already);
        assert!(!work.ack(4, TTL));
        assert!(!queue.live("s1") && queue.live("s2"));
    }

    #[test]
    fn lateness_of_heartbeats_is_measured_against_the_interval_of_the_last_answer() {
        let mut queue = queue();
        let id = active(&mut queue, 0);
        let work = queue.find(&id).expect("there");
        assert_eq!(work.beat("hb1", "hb2".to_owned(), 5 * SECOND, 2), Beat::Extended);
        assert_eq!(work.beat("hb2", "hb3".to_owned(), 6 * SECOND + 7, 2), Beat::Extended);
        let holding = work.holder().expect("held");
        assert_eq!(
            (holding.beats, holding.largest_gap, holding.largest_lateness),
            (3, 5 * SECOND, 7)
        );
    }
}
