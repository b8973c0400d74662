//! Which calls may run, and when (RUN-2..9, PERM-*, THR-*, IDLE-4..6). Pure.
//!
//! Fed with events from history and from the live stream; answers with [`Action`]s. It lives as
//! long as the session is attached, across reconnects. It does not run, post or wait.
//!
//! Whether a call may run is decided by `answered`, never by `seen` (RUN-4): a call whose post
//! failed comes back with the next history. What happens then (post the kept result, never run
//! again) is decided where results are kept.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use super::idle::IdleClock;
use super::wire::event::{Call, CallKind, Event, Permission, Verdict};

/// What is to be done about a call.
#[derive(Debug)]
pub enum Action {
    /// Run it, or post its kept result, after those before it.
    Run(Call),
    /// It waits for a confirmation (PERM-4).
    Held { id: String, name: String },
    /// The server has resolved it; nothing is posted (PERM-2).
    Denied { id: String },
    /// Somebody else's; nothing is posted (RUN-16).
    NotOwned { id: String, name: String },
}

/// How a call that was given out with [`Action::Run`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// Its result is on the server (RUN-26).
    Answered,
    /// It is not; the next history brings it back.
    Unanswered,
    /// It is not, and posting it again is of no use (RUN-5).
    GaveUp,
    /// It was not wanted any more (RUN-14).
    Moot,
}

/// Which names this worker serves.
pub type Owner = Box<dyn Fn(&str, CallKind) -> bool + Send + Sync>;

/// Ids that are remembered for one session.
pub const REMEMBERED_MAX: usize = 1_000_000;

/// State of the session as far as calls are concerned (protocol §5.1).
pub struct Gate {
    owner: Owner,
    seen: HashSet<String>,
    answered: HashSet<String>,
    gave_up: HashSet<String>,
    verdicts: HashMap<String, Verdict>,
    held: HashMap<String, Call>,
    /// Given out and not finished, with their thread.
    busy: HashMap<String, Option<String>>,
    running: Option<String>,
    /// Ours without a result on the server, though that should have one; the next history brings them
    /// back. With their thread.
    owed: HashMap<String, Option<String>>,
    /// Calls of others without a result, with their thread.
    foreign: HashMap<String, Option<String>>,
    dead_threads: HashSet<String>,
    /// THR-2
    primary_thread: Option<String>,
    /// The last reading of the history came to its end.
    history_is_whole: bool,
    history: History,
    session_ended: bool,
    remembered_max: usize,
    /// Public: the runner reads deadlines from it.
    pub idle: IdleClock,
}

/// One pass over the history.
#[derive(Default)]
struct History {
    calls: Vec<Call>,
    newly_seen: Vec<String>,
    last_ends_turn: bool,
    any: bool,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("seen", &self.seen.len())
            .field("answered", &self.answered.len())
            .field("held", &self.held.len())
            .field("busy", &self.busy.len())
            .finish_non_exhaustive()
    }
}

impl Gate {
    /// At the first attach. The product's `remembered_max` is [`REMEMBERED_MAX`].
    pub fn new(
        owner: Owner,
        max_idle: Option<Duration>,
        remembered_max: usize,
        now: Instant,
    ) -> Gate {
        Gate {
            owner,
            seen: HashSet::new(),
            answered: HashSet::new(),
            gave_up: HashSet::new(),
            verdicts: HashMap::new(),
            held: HashMap::new(),
            busy: HashMap::new(),
            running: None,
            owed: HashMap::new(),
            foreign: HashMap::new(),
            dead_threads: HashSet::new(),
            primary_thread: None,
            history_is_whole: false,
            history: History::default(),
            session_ended: false,
            remembered_max,
            idle: IdleClock::new(max_idle, now),
        }
    }

    /// `session.status_terminated` or `session.deleted` was seen (RUN-8, RUN-12).
    pub fn session_ended(&self) -> bool {
        self.session_ended
    }

    /// Nothing given out, held or owed by anyone (IDLE-10).
    pub fn nothing_open(&self) -> bool {
        let lists = [&self.busy, &self.owed, &self.foreign];
        self.held.is_empty() && lists.iter().all(|list| list.is_empty())
    }

    /// More ids are remembered than may be: the session must end.
    pub fn is_full(&self) -> bool {
        let lists = [self.seen.len(), self.answered.len(), self.verdicts.len()];
        lists.iter().sum::<usize>() + self.dead_threads.len() > self.remembered_max
    }

    /// The thread that the log names first: that of calls without one (THR-2). For traces only.
    pub fn primary_thread(&self) -> Option<&str> {
        self.primary_thread.as_deref()
    }

    #[cfg(test)]
    pub fn collected(&self) -> usize {
        self.history.calls.len()
    }

    /// A history read begins.
    pub fn history_started(&mut self) {
        self.history = History::default();
        self.history_is_whole = false;
        self.idle.history_unsure();
    }

    /// One event of the history, in order (RUN-2).
    pub fn history_event(&mut self, event: Event) {
        if !event.is_neutral() {
            self.history.last_ends_turn = event.ends_turn();
            self.history.any = true;
        }
        self.note_primary(&event);
        match event {
            Event::Call(call) => {
                if self.seen.insert(call.id.clone()) {
                    self.history.newly_seen.push(call.id.clone());
                }
                self.history.calls.push(call);
            }
            Event::Answered(id) => self.mark_answered(&id, None),
            Event::Confirmation { call, verdict } => self.record(call, verdict),
            Event::Thread { id: Some(id), terminated: true } => {
                self.dead_threads.insert(id);
            }
            Event::SessionEnded => self.session_ended = true,
            Event::Thread { .. } | Event::Idle { .. } | Event::Other { .. } => {}
        }
        self.forget_answered_calls();
    }

    /// Bounds what a long history holds in memory: the input of answered calls is dropped.
    fn forget_answered_calls(&mut self) {
        const OFTEN: usize = 64;
        if self.history.calls.len().is_multiple_of(OFTEN) {
            self.history.calls.retain(|call| !self.answered.contains(&call.id));
        }
    }

    /// A page could not be read: nothing is dispatched from a part (RUN-6).
    pub fn history_failed(&mut self) {
        for id in std::mem::take(&mut self.history).newly_seen {
            self.seen.remove(&id);
        }
        self.idle.history_failed();
    }

    /// The whole history was read: route what is unanswered, in order (RUN-3), then IDLE-6.
    pub fn history_done(&mut self, now: Instant) -> Vec<Action> {
        let history = std::mem::take(&mut self.history);
        self.history_is_whole = true;
        self.idle.history_sure();
        self.idle.disarm();
        if history.any {
            self.idle.note_activity(now);
        }
        let mut actions = Vec::new();
        self.drop_dead(now);
        let listed: HashSet<String> = history.calls.iter().map(|call| call.id.clone()).collect();
        let about: Vec<(String, Option<String>)> =
            history.calls.iter().map(|call| (call.id.clone(), call.thread.clone())).collect();
        for call in history.calls {
            self.route(call, now, &mut actions);
        }
        // Confirmed while we were away, and not in this listing.
        let confirmed = |id: &&String| !listed.contains(*id) && self.verdicts.contains_key(*id);
        let confirmed: Vec<String> = self.held.keys().filter(confirmed).cloned().collect();
        for id in confirmed {
            self.settle_held(&id, now, &mut actions);
        }
        let outstanding =
            about.iter().any(|(id, thread)| self.is_outstanding(id, thread.as_deref()));
        if history.last_ends_turn && !outstanding {
            self.idle.arm(now);
        }
        actions
    }

    /// IDLE-6.
    fn is_outstanding(&self, id: &str, thread: Option<&str>) -> bool {
        let approved = self.busy.contains_key(id) && self.idle.is_held(id);
        !self.answered.contains(id)
            && !self.gave_up.contains(id)
            && !self.is_dead(thread)
            && !self.held.contains_key(id)
            && !approved
    }

    /// A live event (RUN-9).
    pub fn live(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        self.idle.on_event(&event, now);
        // Else the first of the log may be one that was not read.
        if self.history_is_whole {
            self.note_primary(&event);
        }
        match event {
            Event::Call(call) => {
                if self.seen.insert(call.id.clone()) {
                    self.route(call, now, &mut actions);
                }
            }
            Event::Answered(id) => self.mark_answered(&id, Some(now)),
            Event::Confirmation { call, verdict } => self.confirm(call, verdict, now, &mut actions),
            Event::Thread { id: Some(id), terminated: true } => {
                self.dead_threads.insert(id);
                self.drop_dead(now);
            }
            Event::SessionEnded => self.session_ended = true,
            Event::Thread { .. } | Event::Idle { .. } | Event::Other { .. } => {}
        }
        actions
    }

    /// RUN-14: whether a call that was given out is still to be run or posted.
    pub fn is_wanted(&self, call: &Call) -> bool {
        !self.answered.contains(&call.id) && !self.is_dead(call.thread.as_deref())
    }

    /// A call that was given out starts.
    pub fn started(&mut self, id: &str) {
        self.running = Some(id.to_owned());
    }

    /// A call that was given out is over.
    pub fn finished(&mut self, id: &str, how: Finish, now: Instant) {
        match how {
            Finish::Answered => {
                self.answered.insert(id.to_owned());
            }
            Finish::GaveUp => {
                self.gave_up.insert(id.to_owned());
            }
            Finish::Unanswered | Finish::Moot => {}
        }
        if self.running.as_deref() == Some(id) {
            self.running = None;
        }
        let thread = self.busy.remove(id).flatten();
        let wanted = !self.answered.contains(id) && !self.is_dead(thread.as_deref());
        if how == Finish::Unanswered && wanted {
            self.owed.insert(id.to_owned(), thread.clone());
        }
        if self.is_dead(thread.as_deref()) {
            self.idle.release_dead(id, now);
        } else {
            self.idle.release(id, now);
        }
    }

    fn note_primary(&mut self, event: &Event) {
        if let (None, Event::Thread { id: Some(id), .. }) = (&self.primary_thread, event) {
            self.primary_thread = Some(id.clone());
        }
    }

    fn is_dead(&self, thread: Option<&str>) -> bool {
        thread.is_some_and(|thread| self.dead_threads.contains(thread))
    }

    fn record(&mut self, id: String, verdict: Verdict) {
        if !self.answered.contains(&id) {
            self.verdicts.insert(id, verdict);
        }
    }

    fn mark_answered(&mut self, id: &str, live: Option<Instant>) {
        self.answered.insert(id.to_owned());
        self.verdicts.remove(id);
        self.foreign.remove(id);
        self.owed.remove(id);
        if let (Some(_), Some(now)) = (self.held.remove(id), live) {
            self.idle.release(id, now);
        } else if !self.busy.contains_key(id) {
            self.idle.forget(id);
        }
    }

    fn confirm(&mut self, id: String, verdict: Verdict, now: Instant, out: &mut Vec<Action>) {
        if self.answered.contains(&id) {
            return;
        }
        self.verdicts.insert(id.clone(), verdict);
        if self.held.contains_key(&id) {
            self.settle_held(&id, now, out);
        } else if verdict == Verdict::Deny
            && self.busy.contains_key(&id)
            && self.running.as_deref() != Some(id.as_str())
        {
            // PERM-5: a stray denial of a call that has not started; it is skipped when its turn
            // comes.
            self.answered.insert(id.clone());
            out.push(Action::Denied { id });
        }
    }

    /// Applies the recorded verdict to a held call (PERM-5).
    fn settle_held(&mut self, id: &str, now: Instant, out: &mut Vec<Action>) {
        if let Some(call) = self.held.remove(id) {
            self.route(call, now, out);
        }
    }

    /// Drops held calls of dead threads (THR-1).
    fn drop_dead(&mut self, now: Instant) {
        let dead: Vec<String> = self
            .held
            .values()
            .filter(|call| self.is_dead(call.thread.as_deref()))
            .map(|call| call.id.clone())
            .collect();
        for id in dead {
            self.held.remove(&id);
            self.idle.release_dead(&id, now);
        }
        let threads = &self.dead_threads;
        for list in [&mut self.foreign, &mut self.owed] {
            list.retain(|_, thread| thread.as_ref().is_none_or(|t| !threads.contains(t)));
        }
    }

    /// Decides about one call (PERM-2..7).
    fn route(&mut self, call: Call, now: Instant, out: &mut Vec<Action>) {
        let id = call.id.clone();
        self.owed.remove(&id);
        let settled = self.answered.contains(&id) || self.gave_up.contains(&id);
        if settled || self.busy.contains_key(&id) || self.is_dead(call.thread.as_deref()) {
            return;
        }
        let verdict = self.verdicts.get(&id).copied();
        if call.permission == Permission::Deny || verdict == Some(Verdict::Deny) {
            self.held.remove(&id);
            self.answered.insert(id.clone());
            self.idle.release(&id, now);
            out.push(Action::Denied { id });
            return;
        }
        let gated = matches!(call.permission, Permission::Ask | Permission::Unknown);
        if verdict.is_none() && gated {
            self.idle.hold(&id);
            let name = call.name.clone();
            if self.held.insert(id.clone(), call).is_none() {
                out.push(Action::Held { id, name });
            }
            return;
        }
        self.held.remove(&id);
        if !(self.owner)(&call.name, call.kind) {
            if verdict.is_some() {
                // IDLE-5: its owner still has to answer.
                self.idle.disarm();
            }
            self.idle.release(&id, now);
            if self.foreign.insert(id.clone(), call.thread).is_none() {
                out.push(Action::NotOwned { id, name: call.name });
            }
            return;
        }
        if verdict.is_some() {
            self.idle.hold(&id);
        }
        self.busy.insert(id, call.thread.clone());
        out.push(Action::Run(call));
    }
}
