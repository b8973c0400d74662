//! What the broker decided in one session: to the sink before the effect, and to whoever asks what
//! was denied while a call ran.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::policy::network::{DenyReason, Host};

/// Distinct targets remembered for one call; further ones are counted together.
const TARGETS_MAX: usize = 64;

/// Where something wanted to go, by the name it gave.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Name or address.
    pub host: Host,
    /// TCP port; 53 for a name that was only looked up.
    pub port: u16,
}

/// Why the broker refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The rules.
    Rules(DenyReason),
    /// A name was looked up that no rule names.
    Lookup,
    /// Too many distinct names below wildcards, or too many questions.
    LookupBudget,
    /// A record type that is never answered with data and carries data upstream elsewhere.
    RecordType,
    /// The connection names no host, and must.
    NoName,
    /// The connection names another host than it was opened for.
    OtherName,
    /// It is neither of what the rule allows: TLS, HTTP.
    OtherProtocol,
    /// It cannot be read as what it begins like, or did not come in time.
    Malformed,
    /// Upstream has no address for the name, or the resolver did not answer.
    NoAddress,
    /// Upstream could not be reached. Not a denial.
    Unreachable,
    /// Too many connections at once.
    Connections,
    /// Too many connections in a short time.
    ConnectionRate,
    /// The bytes of the session are used up.
    Bytes,
    /// The rule was removed while the connection was open.
    RuleRemoved,
    /// The record could not be written.
    Unrecorded,
}

/// One decision, before its effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Of the session, from 1.
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
    /// Bytes from the jail.
    pub bytes_out: u64,
    /// Bytes into the jail.
    pub bytes_in: u64,
    /// From the decision to the end.
    pub duration: Duration,
    /// Why it was closed, if we did.
    pub by: Option<Reason>,
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
    /// An end.
    Closed(Closed),
}

/// Where entries go.
pub trait Sink: Send + Sync + std::fmt::Debug {
    /// Records `entry` of the tool call `call`; returns whether it is recorded.
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
    /// Number of the first decision.
    pub decision: u64,
}

#[derive(Debug, Default)]
struct Window {
    call: Option<String>,
    denials: BTreeMap<(Option<Target>, Reason), (u64, u64)>,
}

/// The ledger of one session.
#[derive(Debug)]
pub struct Ledger {
    sink: Arc<dyn Sink>,
    next: AtomicU64,
    window: Mutex<Window>,
}

impl Ledger {
    /// A ledger that writes to `sink`.
    pub fn new(sink: Arc<dyn Sink>) -> Ledger {
        Ledger { sink, next: AtomicU64::new(1), window: Mutex::default() }
    }

    /// A tool call begins: what is denied from now on belongs to it. Without an id, it ends.
    ///
    /// Returns what was denied since the last change.
    pub fn turn(&self, call: Option<&str>) -> Vec<Denial> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Window { call: call.map(str::to_owned), denials: BTreeMap::new() };
        let old = std::mem::replace(&mut *window, new);
        drop(window);
        for ((target, reason), (count, _)) in &old.denials {
            if *count > 1 || target.is_none() {
                let (target, reason) = (target.clone(), *reason);
                let count = if target.is_none() { *count } else { count - 1 };
                let entry = Entry::Repeated { target, reason, count };
                self.sink.record(old.call.as_deref(), &entry);
            }
        }
        let denial =
            |((target, reason), (count, decision))| Denial { target, reason, count, decision };
        old.denials.into_iter().map(denial).collect()
    }

    /// Records that something is about to be allowed; returns its number, or `None` if it could not
    /// be recorded and must not happen.
    pub fn allow(&self, decision: Decision) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let call = self.call();
        let entry = Entry::Decision(Decision { number, denied: None, ..decision });
        self.sink.record(call.as_deref(), &entry).then_some(number)
    }

    /// Records a denial. To be called before the refusal can be noticed, or the call that caused it
    /// may end without it. The first of a kind in a call is recorded at once, others are counted.
    pub fn deny(&self, target: Target, reason: Reason, generation: u64, address: Option<IpAddr>) {
        let (number, call) = {
            let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
            let full = window.denials.len() >= TARGETS_MAX;
            let key = (Some(target.clone()), reason);
            let key = match full && !window.denials.contains_key(&key) {
                true => (None, reason),
                false => key,
            };
            let counted_only = key.0.is_none();
            if let Some((count, _)) = window.denials.get_mut(&key) {
                *count += 1;
                return;
            }
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            window.denials.insert(key, (1, number));
            if counted_only {
                return;
            }
            (number, window.call.clone())
        };
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
        // A denial that cannot be recorded is denied all the same.
        self.sink.record(call.as_deref(), &Entry::Decision(decision));
    }

    /// Counts a denial that names no target which could be recorded. Like the other ones that are
    /// only counted, it is recorded when the call ends.
    pub fn deny_unnamed(&self, reason: Reason) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let number = || self.next.fetch_add(1, Ordering::Relaxed);
        let entry = window.denials.entry((None, reason));
        entry.and_modify(|(count, _)| *count += 1).or_insert_with(|| (1, number()));
    }

    /// Records the end of an allowed connection.
    pub fn close(&self, closed: Closed) {
        let call = self.call();
        self.sink.record(call.as_deref(), &Entry::Closed(closed));
    }

    fn call(&self) -> Option<String> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner).call.clone()
    }
}
