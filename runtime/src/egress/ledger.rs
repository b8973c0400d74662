//! What the broker decided in one session: to the sink before the effect, and to whoever asks what
//! was denied while a call ran.
//!
//! Every connection and question of the session comes here, from any thread. The lock is held while
//! an entry is recorded, so entries have the order of their numbers, and a denial that is only counted
//! returns after the first of its kind is in the log. The sink must not call the ledger.
//!
//! Whoever is in the jail decides how much happens, so what is recorded one by one is bounded
//! (INV-11): of denials the first of each kind in a call, of connections the first ones to each
//! destination in a call, both within an amount for the whole session. What is beyond is counted, and
//! the sums are recorded when the next call begins or the session ends.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::policy::network::Host;

use super::reason::Reason;

/// Distinct kinds of denials remembered in one call; further targets are counted together.
const TARGETS_MAX: usize = 64;
/// Distinct destinations remembered in one call.
const FLOWS_MAX: usize = 256;
/// Connections to one destination in one call that are recorded one by one.
const EACH_MAX: u32 = 64;
/// Denials recorded one by one in a session.
const DENIALS_MAX: u64 = 20_000;
/// Connections recorded one by one in a session. After half of them only the first to each
/// destination in a call is; after all of them there is no connection any more.
const CONNECTIONS_MAX: u64 = 100_000;
/// Open connections that are remembered; the sums of others do not name a destination.
const OPEN_MAX: usize = 65_536;

/// Where something wanted to go, by the name it gave.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Name or address.
    pub host: Host,
    /// TCP port; 53 for a name that was only looked up.
    pub port: u16,
}

/// One decision, before its effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Of the session, from 1. Connections that are only counted have numbers too.
    pub number: u64,
    /// Where to.
    pub target: Target,
    /// The address to be dialled, if it got so far.
    pub address: Option<IpAddr>,
    /// The rule that allows it, `None` in report mode or where it is denied.
    pub rule: Option<String>,
    /// Where that rule was written.
    pub origin: Option<String>,
    /// Which rules were in force, from 1.
    pub generation: u64,
    /// `None`: allowed.
    pub denied: Option<Reason>,
    /// Allowed in report mode only.
    pub reported: bool,
}

/// The end of an allowed connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// Of its decision.
    pub number: u64,
    /// Where it went.
    pub target: Target,
    /// The address that answered, if one did and we know it.
    pub address: Option<IpAddr>,
    /// Bytes from the jail.
    pub bytes_out: u64,
    /// Bytes into the jail.
    pub bytes_in: u64,
    /// From the decision to the end.
    pub duration: Duration,
    /// Why it was closed, if we did. Counted as a denial too: no `deny` beside it.
    pub by: Option<Reason>,
}

/// Connections that were not recorded one by one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sum {
    /// Where to; `None` for destinations that are not remembered.
    pub target: Option<Target>,
    /// The rule that allows them.
    pub rule: Option<String>,
    /// Which rules were in force.
    pub generation: u64,
    /// Allowed in report mode only.
    pub reported: bool,
    /// How many began.
    pub connections: u64,
    /// Bytes from the jail, of those that ended.
    pub bytes_out: u64,
    /// Bytes into the jail, of those that ended.
    pub bytes_in: u64,
    /// How long those lasted that ended, together.
    pub duration: Duration,
}

/// What is handed to a [`Sink`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A decision. An effect follows only if it was recorded.
    Decision(Decision),
    /// Denials of the same kind that were only counted.
    Repeated {
        /// Where to; `None` for targets beyond those that are remembered.
        target: Option<Target>,
        /// Why.
        reason: Reason,
        /// How many.
        count: u64,
    },
    /// Connections that were only counted.
    Summed(Sum),
    /// An end.
    Closed(Closed),
}

/// Where entries go.
pub trait Sink: Send + Sync + std::fmt::Debug {
    /// Records `entry` of the tool call `call`; returns whether it is recorded. Called with the
    /// ledger locked.
    fn record(&self, call: Option<&str>, entry: &Entry) -> bool;
}

/// Denials of one kind during one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Where to; `None` for targets beyond those that are remembered.
    pub target: Option<Target>,
    /// Why.
    pub reason: Reason,
    /// How often.
    pub count: u64,
    /// Number of the first decision; `None` if it is not in the record.
    pub decision: Option<u64>,
}

/// Denials of one kind.
#[derive(Debug, Default)]
struct Refused {
    count: u64,
    /// How many of them were recorded one by one.
    recorded: u64,
    decision: Option<u64>,
}

/// What connections are counted by.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Flow {
    target: Option<Target>,
    rule: Option<String>,
    generation: u64,
    reported: bool,
}

#[derive(Debug, Default)]
struct Flowed {
    each: u32,
    sum: Sum,
}

/// An open connection.
#[derive(Debug)]
struct Open {
    /// Set if its end is counted, not recorded.
    counted: Option<Flow>,
    /// In which call it began.
    call: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct State {
    /// The call that runs.
    call: Option<Arc<str>>,
    /// Of the last decision.
    number: u64,
    /// Of the session.
    denials_recorded: u64,
    /// Of the session.
    connections_recorded: u64,
    /// Since the last turn.
    denials: BTreeMap<(Option<Target>, Reason), Refused>,
    /// Since the last turn.
    flows: BTreeMap<Flow, Flowed>,
    open: HashMap<u64, Open>,
}

/// The ledger of one session.
#[derive(Debug)]
pub struct Ledger {
    sink: Arc<dyn Sink>,
    state: Mutex<State>,
}

impl Ledger {
    /// A ledger that writes to `sink`.
    pub fn new(sink: Arc<dyn Sink>) -> Ledger {
        Ledger { sink, state: Mutex::default() }
    }

    /// A tool call begins: what happens from now on belongs to it. Without an id, it ends; so does the
    /// session, with [`Drop`].
    ///
    /// Records what was only counted since the last change, and returns what was denied since then.
    /// What failed upstream is not among it.
    pub fn turn(&self, call: Option<&str>) -> Vec<Denial> {
        let mut state = self.lock();
        let denials = self.settle(&mut state);
        state.call = call.map(Arc::from);
        denials
    }

    /// Records that something is about to be allowed; returns its number, or `None` if it could not
    /// be recorded and must not happen.
    pub fn allow(&self, decision: Decision) -> Option<u64> {
        let mut state = self.lock();
        let state = &mut *state;
        state.number += 1;
        let number = state.number;
        let flow = Flow {
            target: Some(decision.target.clone()),
            rule: decision.rule.clone(),
            generation: decision.generation,
            reported: decision.reported,
        };
        let remembered = state.open.len() < OPEN_MAX;
        let each_max = if state.connections_recorded < CONNECTIONS_MAX / 2 { EACH_MAX } else { 1 };
        if let Some(known) = state.flows.get_mut(&flow)
            && known.each > 0
            && (known.each >= each_max || !remembered)
        {
            known.sum.connections += 1;
            if remembered {
                let call = state.call.clone();
                state.open.insert(number, Open { counted: Some(flow), call });
            }
            return Some(number);
        }
        if state.connections_recorded >= CONNECTIONS_MAX {
            return None;
        }
        let entry = Entry::Decision(Decision { number, denied: None, ..decision });
        if !self.sink.record(state.call.as_deref(), &entry) {
            return None;
        }
        state.connections_recorded += 1;
        if let Some(flowed) = flowed(&mut state.flows, &flow) {
            flowed.each += 1;
        }
        if remembered {
            state.open.insert(number, Open { counted: None, call: state.call.clone() });
        }
        Some(number)
    }

    /// Records a denial. To be called before the refusal can be noticed, or the call that caused it
    /// may end without it. The first of a kind in a call is recorded at once, others are counted.
    /// A denial that cannot be recorded is denied all the same.
    ///
    /// Returns the number of the first decision of its kind, if that is in the record.
    pub fn deny(
        &self,
        target: Target,
        reason: Reason,
        generation: u64,
        address: Option<IpAddr>,
    ) -> Option<u64> {
        let mut state = self.lock();
        let state = &mut *state;
        let full = state.denials_recorded >= DENIALS_MAX;
        let (known, named) = refused(&mut state.denials, &target, reason, full);
        known.count += 1;
        if !named || known.count > 1 {
            return known.decision;
        }
        state.number += 1;
        let number = state.number;
        let decision = Decision {
            number,
            target,
            address,
            rule: None,
            origin: None,
            generation,
            denied: Some(reason),
            reported: false,
        };
        if self.sink.record(state.call.as_deref(), &Entry::Decision(decision)) {
            state.denials_recorded += 1;
            (known.recorded, known.decision) = (1, Some(number));
        }
        known.decision
    }

    /// Counts a denial that names no target which could be recorded.
    pub fn deny_unnamed(&self, reason: Reason) {
        self.lock().denials.entry((None, reason)).or_default().count += 1;
    }

    /// Records the end of an allowed connection, in the call in which it began.
    pub fn close(&self, closed: Closed) {
        let mut state = self.lock();
        let state = &mut *state;
        let open = state.open.remove(&closed.number);
        let one_by_one = matches!(open, Some(Open { counted: None, .. }));
        if let Some(reason) = closed.by.filter(|reason| reason.is_denial()) {
            let (known, named) = refused(&mut state.denials, &closed.target, reason, false);
            known.count += 1;
            if one_by_one && named {
                known.recorded += 1;
                known.decision.get_or_insert(closed.number);
            }
        }
        match open {
            Some(Open { counted: None, call }) => {
                self.sink.record(call.as_deref(), &Entry::Closed(closed));
            }
            other => {
                let flow = other.and_then(|open| open.counted).unwrap_or_default();
                let known = match state.flows.len() >= FLOWS_MAX && !state.flows.contains_key(&flow)
                {
                    true => state.flows.entry(Flow::default()).or_default(),
                    false => state.flows.entry(flow).or_default(),
                };
                known.sum.bytes_out = known.sum.bytes_out.saturating_add(closed.bytes_out);
                known.sum.bytes_in = known.sum.bytes_in.saturating_add(closed.bytes_in);
                known.sum.duration = known.sum.duration.saturating_add(closed.duration);
            }
        }
    }

    /// Records what was only counted, and returns what was denied.
    fn settle(&self, state: &mut State) -> Vec<Denial> {
        let call = state.call.as_deref();
        for (Flow { target, rule, generation, reported }, Flowed { sum, .. }) in
            std::mem::take(&mut state.flows)
        {
            if sum != Sum::default() {
                let sum = Sum { target, rule, generation, reported, ..sum };
                self.sink.record(call, &Entry::Summed(sum));
            }
        }
        let mut denials = Vec::new();
        for ((target, reason), refused) in std::mem::take(&mut state.denials) {
            let Refused { count, recorded, decision } = refused;
            if count > recorded {
                let (target, count) = (target.clone(), count - recorded);
                self.sink.record(call, &Entry::Repeated { target, reason, count });
            }
            if reason.is_denial() {
                denials.push(Denial { target, reason, count, decision });
            }
        }
        denials
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let mut state = std::mem::take(&mut *self.lock());
        self.settle(&mut state);
    }
}

/// What is counted for a denial, and whether by its own target: not beyond [`TARGETS_MAX`], nor, for
/// a new one, if the session's records are used up.
fn refused<'a>(
    denials: &'a mut BTreeMap<(Option<Target>, Reason), Refused>,
    target: &Target,
    reason: Reason,
    full: bool,
) -> (&'a mut Refused, bool) {
    let key = (Some(target.clone()), reason);
    let named = denials.contains_key(&key) || (denials.len() < TARGETS_MAX && !full);
    let key = if named { key } else { (None, reason) };
    (denials.entry(key).or_default(), named)
}

/// What is counted for connections to a destination; `None` if there is no room for another.
fn flowed<'a>(flows: &'a mut BTreeMap<Flow, Flowed>, flow: &Flow) -> Option<&'a mut Flowed> {
    if flows.len() >= FLOWS_MAX && !flows.contains_key(flow) {
        return None;
    }
    Some(flows.entry(flow.clone()).or_default())
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
