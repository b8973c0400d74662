//! When a session has been idle for long enough (protocol §5.7). Pure: time is passed in.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::wire::event::Event;

/// The idle clock of one session.
#[derive(Debug)]
pub struct IdleClock {
    max_idle: Option<Duration>,
    state: State,
    holds: HashSet<String>,
    /// IDLE-9: what the clock was armed by may be out of date.
    stale: bool,
    /// The last event that says something about activity, and whether there ever was one.
    quiet_since: Instant,
    active_once: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Disarmed,
    Armed {
        since: Instant,
    },
    /// Will be armed when the last hold is released (IDLE-3).
    Deferred,
}

/// IDLE-10: silence after which a disarmed clock is checked against the session.
const BACKSTOP_MIN: Duration = Duration::from_secs(300);
const BACKSTOP_FACTOR: u32 = 5;

impl IdleClock {
    /// Disarmed (IDLE-7); `None` never expires.
    pub fn new(max_idle: Option<Duration>, now: Instant) -> IdleClock {
        IdleClock {
            max_idle,
            state: State::Disarmed,
            holds: HashSet::new(),
            stale: false,
            quiet_since: now,
            active_once: false,
        }
    }

    /// A live event (IDLE-2, IDLE-9).
    pub fn on_event(&mut self, event: &Event, now: Instant) {
        if event.is_neutral() {
            if self.stale && matches!(event, Event::Thread { terminated: true, .. }) {
                self.disarm();
            }
            return;
        }
        self.stale = false;
        if !event.is_telemetry() {
            self.note_activity(now);
        }
        if event.ends_turn() { self.arm(now) } else { self.disarm() }
    }

    /// Something happened that is not telemetry.
    pub fn note_activity(&mut self, now: Instant) {
        self.quiet_since = now;
        self.active_once = true;
    }

    /// Counts from `now`, or from when the last hold is released (IDLE-3).
    pub fn arm(&mut self, now: Instant) {
        self.state =
            if self.holds.is_empty() { State::Armed { since: now } } else { State::Deferred };
    }

    /// Does not count.
    pub fn disarm(&mut self) {
        self.state = State::Disarmed;
    }

    /// Keeps the clock from counting; once per call (PERM-7).
    pub fn hold(&mut self, call: &str) {
        self.holds.insert(call.to_owned());
        if matches!(self.state, State::Armed { .. }) {
            self.state = State::Deferred;
        }
    }

    /// Ends a hold; the last one lets a deferred clock count with a full window (IDLE-3).
    pub fn release(&mut self, call: &str, now: Instant) {
        let last = self.holds.remove(call) && self.holds.is_empty();
        if last && self.state == State::Deferred {
            self.state = State::Armed { since: now };
        }
    }

    /// Whether this call keeps the clock from counting.
    pub fn is_held(&self, call: &str) -> bool {
        self.holds.contains(call)
    }

    /// Ends a hold during a history read, which decides about arming itself at its end.
    pub fn forget(&mut self, call: &str) {
        self.holds.remove(call);
    }

    /// Ends the hold of a call whose thread is gone (IDLE-9).
    pub fn release_dead(&mut self, call: &str, now: Instant) {
        if self.stale && self.holds.contains(call) && self.state == State::Deferred {
            self.disarm();
        }
        self.release(call, now);
    }

    /// A history read started or failed (IDLE-9).
    pub fn history_unsure(&mut self) {
        self.stale = true;
    }

    /// A history read failed. What it released would have been armed at its end; now nothing is left
    /// that would do so, and the session itself is to be asked (IDLE-10).
    pub fn history_failed(&mut self) {
        self.history_unsure();
        if self.state == State::Deferred && self.holds.is_empty() {
            self.disarm();
        }
    }

    /// A history read succeeded (IDLE-9).
    pub fn history_sure(&mut self) {
        self.stale = false;
    }

    /// When the session counts as idle, if nothing happens until then.
    pub fn expires_at(&self) -> Option<Instant> {
        match self.state {
            State::Armed { since } => Some(since + self.max_idle?),
            State::Disarmed | State::Deferred => None,
        }
    }

    /// When a disarmed clock is to be checked against the session (IDLE-10). A session in which
    /// nothing ever happened is waited for (IDLE-7).
    pub fn backstop_at(&self) -> Option<Instant> {
        let disarmed = self.state == State::Disarmed && self.holds.is_empty() && self.active_once;
        let wait = (self.max_idle? * BACKSTOP_FACTOR).max(BACKSTOP_MIN);
        disarmed.then(|| self.quiet_since + wait)
    }

    /// The session was looked at; the next look is a full wait away.
    pub fn backstop_checked(&mut self, now: Instant) {
        self.quiet_since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::event::parse_event;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MAX: Duration = Duration::from_secs(60);

    fn event(json: &str) -> Event {
        parse_event(json.as_bytes()).expect(json)
    }

    fn end_turn() -> Event {
        event(r#"{"type":"session.status_idle","stop_reason":{"type":"end_turn"}}"#)
    }

    fn clock() -> (IdleClock, Instant) {
        let now = Instant::now();
        (IdleClock::new(Some(MAX), now), now)
    }

    #[test]
    fn the_end_of_a_turn_arms_and_any_other_event_disarms() {
        // IDLE-1, IDLE-2, IDLE-7.
        let (mut clock, now) = clock();
        assert_eq!(clock.expires_at(), None, "nothing happened yet");
        clock.on_event(&end_turn(), now);
        assert_eq!(clock.expires_at(), Some(now + MAX));
        clock.on_event(&end_turn(), now + SECOND);
        assert_eq!(clock.expires_at(), Some(now + SECOND + MAX), "restarted");
        for neutral in [
            r#"{"type":"user.tool_confirmation","tool_use_id":"x","result":"allow"}"#,
            r#"{"type":"session.thread_status_terminated","session_thread_id":"x"}"#,
        ] {
            clock.on_event(&event(neutral), now + SECOND * 2);
            assert_eq!(clock.expires_at(), Some(now + SECOND + MAX), "{neutral}");
        }
        for other in [
            r#"{"type":"user.message"}"#,
            r#"{"type":"session.usage"}"#,
            r#"{"type":"session.thread_status_idle"}"#,
            r#"{"type":"session.status_idle","stop_reason":{"type":"requires_action"}}"#,
        ] {
            clock.on_event(&end_turn(), now);
            clock.on_event(&event(other), now);
            assert_eq!(clock.expires_at(), None, "{other}");
        }
    }

    #[test]
    fn no_limit_never_expires() {
        let now = Instant::now();
        let mut clock = IdleClock::new(None, now);
        clock.on_event(&end_turn(), now);
        assert_eq!((clock.expires_at(), clock.backstop_at()), (None, None));
    }

    #[test]
    fn holds_defer_and_the_last_release_gives_a_full_window() {
        // IDLE-3.
        let (mut clock, now) = clock();
        clock.on_event(&end_turn(), now);
        clock.hold("a");
        clock.hold("a");
        clock.hold("b");
        assert_eq!(clock.expires_at(), None);
        clock.release("a", now + SECOND);
        assert_eq!(clock.expires_at(), None);
        clock.release("b", now + SECOND * 9);
        assert_eq!(clock.expires_at(), Some(now + SECOND * 9 + MAX));
        clock.hold("c");
        clock.disarm();
        clock.release("c", now);
        assert_eq!(clock.expires_at(), None, "disarming clears a deferred arm");
    }

    #[test]
    fn an_end_of_turn_before_a_failed_history_read_may_be_out_of_date() {
        // IDLE-9.
        let dead = event(r#"{"type":"session.thread_status_terminated","session_thread_id":"x"}"#);
        let (mut clock, now) = clock();
        clock.on_event(&end_turn(), now);
        clock.history_unsure();
        clock.on_event(&dead, now);
        assert_eq!(clock.expires_at(), None, "disarmed while unsure");
        clock.on_event(&end_turn(), now);
        clock.on_event(&dead, now);
        assert!(clock.expires_at().is_some(), "a live event made it sure");
        clock.hold("a");
        clock.history_unsure();
        clock.release_dead("a", now);
        assert_eq!(clock.expires_at(), None, "the deferred arm was dropped");
        clock.on_event(&end_turn(), now);
        clock.hold("b");
        clock.history_unsure();
        clock.history_sure();
        clock.release_dead("b", now);
        assert!(clock.expires_at().is_some());
    }

    #[test]
    fn telemetry_after_the_last_idle_does_not_keep_a_worker_for_ever() {
        // IDLE-10.
        let (mut clock, now) = clock();
        assert_eq!(clock.backstop_at(), None, "IDLE-7: nothing ever happened");
        clock.on_event(&end_turn(), now);
        assert_eq!(clock.backstop_at(), None, "armed");
        clock.on_event(&event(r#"{"type":"session.usage"}"#), now + SECOND);
        assert_eq!(clock.expires_at(), None);
        assert_eq!(clock.backstop_at(), Some(now + SECOND * 300));
        clock.on_event(&event(r#"{"type":"agent.message"}"#), now + SECOND * 2);
        assert_eq!(clock.backstop_at(), Some(now + SECOND * 302));
        clock.backstop_checked(now + SECOND * 302);
        assert_eq!(clock.backstop_at(), Some(now + SECOND * 602));
        clock.hold("a");
        assert_eq!(clock.backstop_at(), None);
        let mut long = IdleClock::new(Some(SECOND * 100), now);
        long.note_activity(now);
        assert_eq!(long.backstop_at(), Some(now + SECOND * 500));
    }
}
