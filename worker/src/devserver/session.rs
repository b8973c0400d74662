//! Sessions: the event log, who reads it, the calls in it and their results.
//!
//! Without input or output: a stream is the sending end of a channel. What an event means for the
//! protocol (EV-1, EV-2, EV-4) is decided here and in `result.rs`; when events are emitted is
//! decided by `driver.rs`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::sync::{Notify, mpsc};

use super::clock::Micros;
use super::expect::{Expect, Summary};
use super::script::SessionScript;
use super::steps::CallStep;

/// Events of one session.
const EVENTS_MAX: usize = 1_000_000;

/// Failures of one session that are kept.
const FAILURES_MAX: usize = 1000;

/// One event of the log, written once.
#[derive(Debug)]
pub struct Event {
    pub id: String,
    pub kind: String,
    pub json: String,
    /// Its `processed_at`; the text sorts like the time.
    pub stamp: String,
}

/// What a stream is told.
#[derive(Debug, Clone)]
pub enum Signal {
    Event(Arc<Event>),
    Ping,
    /// The body ends.
    Close,
}

/// A call and what became of it.
#[derive(Debug)]
pub struct Call {
    pub id: String,
    pub label: Option<String>,
    pub name: String,
    pub input: Value,
    pub custom: bool,
    pub unowned: bool,
    pub verdict: Verdict,
    pub thread: Option<String>,
    pub expect: Option<Expect>,
    pub emitted_at: Micros,
    pub delivered_at: Option<Micros>,
    pub answered_at: Option<Micros>,
    pub summary: Option<Summary>,
    pub result: Option<Value>,
    /// The answer to a result of this call was withheld by a fault: a repetition is no mistake.
    pub response_lost: bool,
    pub reposts: u64,
    /// Who answered: the worker, or the customer's backend.
    pub by_worker: bool,
}

/// Whether the worker may run a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// Waits for a confirmation.
    Asked,
    Denied,
}

/// What a call is worth to those who wait.
impl Call {
    /// Whether the worker still owes a result.
    pub fn outstanding(&self) -> bool {
        self.answered_at.is_none() && !self.unowned && self.verdict == Verdict::Allowed
    }
}

/// A session.
#[derive(Debug)]
pub struct Session {
    pub id: String,
    pub name: String,
    pub script: Arc<SessionScript>,
    pub status: String,
    pub created_at: Micros,
    pub log: Vec<Arc<Event>>,
    events_max: usize,
    streams: Vec<mpsc::UnboundedSender<Signal>>,
    pub calls: Vec<Call>,
    by_id: HashMap<String, usize>,
    threads: HashMap<String, String>,
    /// Calls that the last `requires_action` named.
    pub required: Vec<String>,
    /// Events to be emitted between the attachment of a stream and the answer to its list.
    pub gap: VecDeque<Value>,
    /// Wakes who drives or watches the session.
    pub changed: Arc<Notify>,
    /// Steps that were pushed while it runs.
    pub pushed: VecDeque<super::steps::Step>,
    /// A list was served while a stream was open.
    pub attached: bool,
    pub streams_opened: u64,
    /// What differed from the script.
    pub failures: Vec<String>,
    /// All steps are taken.
    pub driven: bool,
    pub first_result_at: Option<Micros>,
    pub ended: bool,
}

impl Session {
    pub fn new(number: usize, name: String, script: Arc<SessionScript>, now: Micros) -> Session {
        Session {
            id: format!("sesn_{number:06}"),
            name,
            status: script.status.clone().unwrap_or_else(|| "idle".to_owned()),
            script,
            created_at: now,
            log: Vec::new(),
            events_max: EVENTS_MAX,
            streams: Vec::new(),
            calls: Vec::new(),
            by_id: HashMap::new(),
            threads: HashMap::new(),
            required: Vec::new(),
            gap: VecDeque::new(),
            changed: Arc::new(Notify::new()),
            pushed: VecDeque::new(),
            attached: false,
            streams_opened: 0,
            failures: Vec::new(),
            driven: false,
            first_result_at: None,
            ended: false,
        }
    }

    /// Adds an event to the log and to every open stream; returns its id.
    ///
    /// `id` and `processed_at` are filled in where the event has none.
    pub fn emit(&mut self, event: Value, stamp: String, now: Micros) -> String {
        let mut fields = match event {
            Value::Object(fields) => fields,
            other => Map::from_iter([("type".to_owned(), other)]),
        };
        let number = self.log.len();
        let given = fields.get("id").and_then(Value::as_str).map(str::to_owned);
        let id = given.unwrap_or_else(|| format!("sevt_{}_{number:07}", self.number()));
        fields.insert("id".to_owned(), json!(id));
        let stamp = match fields.get("processed_at").and_then(Value::as_str) {
            Some(given) => given.to_owned(),
            None => stamp,
        };
        fields.insert("processed_at".to_owned(), json!(stamp));
        let kind = fields.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let json = Value::Object(fields).to_string();
        let event = Arc::new(Event { id: id.clone(), kind, json, stamp });
        self.note_status(&event.kind);
        if self.log.len() >= self.events_max {
            if !self.ended {
                self.fail(format!("more than {} events", self.events_max));
            }
            self.ended = true;
            self.changed.notify_waiters();
            return id;
        }
        self.log.push(Arc::clone(&event));
        self.signal(&Signal::Event(event));
        if self.reading() {
            self.mark_delivered(&id, now);
        }
        self.changed.notify_waiters();
        id
    }

    fn number(&self) -> &str {
        self.id.trim_start_matches("sesn_").trim_start_matches('0')
    }

    fn note_status(&mut self, kind: &str) {
        let status = match kind {
            "session.status_idle" => "idle",
            "session.status_running" | "user.message" => "running",
            "session.status_rescheduled" => "rescheduling",
            "session.status_terminated" | "session.deleted" => "terminated",
            _ => return,
        };
        status.clone_into(&mut self.status);
        self.ended |= status == "terminated";
    }

    /// A stream that gets everything emitted from now on.
    pub fn attach(&mut self) -> mpsc::UnboundedReceiver<Signal> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.streams.push(sender);
        self.streams_opened += 1;
        self.changed.notify_waiters();
        receiver
    }

    /// Tells every open stream.
    pub fn signal(&mut self, signal: &Signal) {
        self.streams.retain(|stream| stream.send(signal.clone()).is_ok());
        if matches!(signal, Signal::Close) {
            self.streams.clear();
            self.attached = false;
        }
    }

    /// Whether somebody reads the stream.
    pub fn reading(&self) -> bool {
        self.streams.iter().any(|stream| !stream.is_closed())
    }

    /// Emits a tool call and waits for nothing.
    pub fn emit_call(&mut self, call: &CallStep, stamp: String, now: Micros) -> String {
        let kind = if call.custom { "agent.custom_tool_use" } else { "agent.tool_use" };
        let mut event = json!({"type": kind, "name": call.name, "input": call.input});
        if let Some(permission) = &call.permission {
            event["evaluated_permission"] = permission.clone();
        }
        let thread = call.thread.as_ref().map(|name| self.thread(name));
        if let Some(thread) = &thread {
            event["session_thread_id"] = json!(thread);
        }
        let verdict = match call.permission.as_ref().map(Value::as_str) {
            None | Some(None | Some("allow")) => Verdict::Allowed,
            Some(Some("deny")) => Verdict::Denied,
            Some(Some(_)) => Verdict::Asked,
        };
        let id = format!("sevt_{}_call{:06}", self.number(), self.calls.len());
        event["id"] = json!(id);
        self.by_id.insert(id.clone(), self.calls.len());
        self.calls.push(Call {
            id: id.clone(),
            label: call.label.clone(),
            name: call.name.clone(),
            input: call.input.clone(),
            custom: call.custom,
            unowned: call.unowned,
            verdict,
            thread,
            expect: call.expect.clone(),
            emitted_at: now,
            delivered_at: None,
            answered_at: None,
            summary: None,
            result: None,
            response_lost: false,
            reposts: 0,
            by_worker: false,
        });
        if call.gap {
            self.gap.push_back(event);
            self.changed.notify_waiters();
        } else {
            if call.duplicate {
                self.emit(event.clone(), stamp.clone(), now);
            }
            self.emit(event, stamp, now);
        }
        id
    }

    /// Events for the gap, emitted now.
    pub fn emit_gap(&mut self, stamp: &str, now: Micros) {
        while let Some(event) = self.gap.pop_front() {
            let id = event["id"].as_str().map(str::to_owned);
            if let Some(call) = id.and_then(|id| self.call(&id)) {
                call.emitted_at = now;
            }
            self.emit(event, stamp.to_owned(), now);
        }
    }

    /// The id of a thread that the script calls `name`.
    pub fn thread(&mut self, name: &str) -> String {
        let fresh = format!("sthr_{}_{}", self.number(), self.threads.len() + 1);
        self.threads.entry(name.to_owned()).or_insert(fresh).clone()
    }

    pub fn call(&mut self, id: &str) -> Option<&mut Call> {
        self.calls.get_mut(*self.by_id.get(id)?)
    }

    /// The newest call that the script gave this label, or that has this id.
    pub fn labelled(&mut self, label: &str) -> Option<&mut Call> {
        let of = |call: &&mut Call| call.label.as_deref() == Some(label) || call.id == label;
        self.calls.iter_mut().rev().find(of)
    }

    /// The worker has seen the call with this id.
    pub fn mark_delivered(&mut self, id: &str, now: Micros) {
        if let Some(call) = self.call(id) {
            call.delivered_at.get_or_insert(now);
        }
    }

    /// EV-4: says what the session waits for, if that changed.
    pub fn announce_required(&mut self, stamp: &str, now: Micros) {
        if !self.script.requires_action || self.ended {
            return;
        }
        let open = |call: &&Call| call.answered_at.is_none() && call.verdict != Verdict::Denied;
        let waiting: Vec<String> = self
            .calls
            .iter()
            .rev()
            .take(256)
            .filter(open)
            .map(|call| call.id.clone())
            .rev()
            .collect();
        if waiting == self.required {
            return;
        }
        self.required.clone_from(&waiting);
        let event = if waiting.is_empty() {
            json!({"type": "session.status_running"})
        } else {
            json!({"type": "session.status_idle",
                "stop_reason": {"type": "requires_action", "event_ids": waiting}})
        };
        self.emit(event, stamp.to_owned(), now);
    }

    pub fn fail(&mut self, what: String) {
        if self.failures.len() < FAILURES_MAX {
            self.failures.push(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_with_too_many_events_fails_and_ends() {
        let mut session = Session::new(1, "s".to_owned(), Arc::default(), 0);
        session.events_max = 2;
        for _ in 0..4 {
            session.emit(json!({"type": "a"}), String::new(), 0);
        }
        assert_eq!((session.log.len(), session.ended), (2, true));
        assert_eq!(session.failures, ["more than 2 events"]);
    }

    #[test]
    fn failures_of_one_session_are_bounded() {
        let mut session = Session::new(1, "s".to_owned(), Arc::default(), 0);
        (0..2 * FAILURES_MAX).for_each(|_| session.fail("x".to_owned()));
        assert_eq!(session.failures.len(), FAILURES_MAX);
    }
}
