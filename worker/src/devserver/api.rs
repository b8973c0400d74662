//! The endpoints of work items and sessions (§2.1 to §2.4).

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::checks::session_of;
use super::clock::Micros;
use super::fault::{Endpoint, Fault, Kind};
use super::http::Ask;
use super::reply::Reply;
use super::script::EmptyPoll;
use super::state::{Plane, State};
use super::work::{self, Beat, RECLAIM_DEFAULT_US, Stop, Work};
use super::{events, skill, sse};

/// Answers a request; a fault that changes the answer itself is given.
pub async fn answer(plane: &Plane, endpoint: Endpoint, ask: &Ask, fault: Option<&Fault>) -> Reply {
    use Endpoint as E;
    let of_environment = matches!(
        endpoint,
        E::Poll
            | E::Ack
            | E::Heartbeat
            | E::Stop
            | E::WorkGet
            | E::WorkMetadata
            | E::WorkList
            | E::WorkStats
    );
    if of_environment && ask.id(0) != plane.lock().identity.environment {
        return Reply::error(404, "there is no such environment");
    }
    match endpoint {
        E::Poll => poll(plane, ask).await,
        E::Stream => stream(plane, ask, fault),
        E::Ack => plane.lock().ack(ask),
        E::Heartbeat => plane.lock().heartbeat(ask, fault.map(|fault| fault.kind)),
        E::Stop => plane.lock().stop(ask),
        E::WorkGet => plane.lock().work_get(ask),
        E::WorkMetadata => plane.lock().work_metadata(ask),
        E::WorkList => plane.lock().work_list(ask),
        E::WorkStats => plane.lock().work_stats(),
        E::Session | E::List | E::Send => {
            let mut state = plane.lock();
            let Some(at) = session_of(&mut state, endpoint, ask) else {
                return Reply::error(404, "there is no such session");
            };
            match endpoint {
                E::Session => events::session(&state, at),
                E::List => events::list(&mut state, at, ask),
                _ => state.send(at, &ask.body, &ask.who.clone()),
            }
        }
        E::Skill | E::SkillContent => skill::answer(&plane.lock(), endpoint, ask),
        E::MemoryList | E::MemoryGet | E::MemoryCreate | E::MemoryUpdate | E::MemoryDelete => {
            memory(&mut plane.lock(), endpoint, ask)
        }
    }
}

fn memory(state: &mut State, endpoint: Endpoint, ask: &Ask) -> Reply {
    let State { stores, clock, .. } = state;
    let Some(store) = stores.iter_mut().find(|store| store.id() == ask.id(0)) else {
        return Reply::error(404, "there is no such memory store");
    };
    match endpoint {
        Endpoint::MemoryList => store.list(ask, clock),
        Endpoint::MemoryGet => store.get(ask, clock),
        Endpoint::MemoryCreate => store.create(ask, clock),
        Endpoint::MemoryUpdate => store.update(ask, clock),
        _ => store.delete(ask),
    }
}

/// Which page a request of a list is for; 1 for everything else.
pub fn page_number(state: &State, endpoint: Endpoint, session: Option<usize>, ask: &Ask) -> usize {
    match (endpoint, session) {
        (Endpoint::List, Some(at)) => events::page_number(state, at, ask),
        (Endpoint::MemoryList, _) => super::memory::page_number(ask),
        _ => 1,
    }
}

/// E-POLL: waits up to `block_ms`.
async fn poll(plane: &Plane, ask: &Ask) -> Reply {
    let block = match ask.number("block_ms") {
        None => Duration::ZERO,
        Some(Ok(ms @ 1..=999)) => Duration::from_millis(u64::try_from(ms).unwrap_or(999)),
        Some(_) => {
            plane.lock().violate("bad_poll", None, "block_ms is not within 1 to 999".to_owned());
            return Reply::error(400, "`block_ms` must be within 1 and 999");
        }
    };
    let reclaim = match ask.number("reclaim_older_than_ms") {
        None => RECLAIM_DEFAULT_US,
        Some(Ok(ms)) => u64::try_from(ms).unwrap_or(u64::MAX).saturating_mul(1000),
        Some(Err(_)) => return Reply::error(400, "`reclaim_older_than_ms` is no number"),
    };
    let worker = ask.header("anthropic-worker-id").unwrap_or_default().to_owned();
    let deadline = tokio::time::Instant::now() + block;
    loop {
        let queued = plane.lock().queued.clone();
        let woken = queued.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        let next = {
            let mut state = plane.lock();
            if let Some(item) = state.claim(&worker, reclaim) {
                return Reply::json(&item);
            }
            let now = state.clock.now();
            state.queue.next_change(reclaim).map(|at| at.saturating_sub(now))
        };
        let now = tokio::time::Instant::now();
        if now >= deadline {
            return plane.lock().nothing();
        }
        let own = next.map_or(deadline, |us| now + Duration::from_micros(us.saturating_add(1)));
        // Either way the queue is looked at again.
        drop(tokio::time::timeout_at(deadline.min(own), woken).await);
    }
}

/// E-STREAM
fn stream(plane: &Plane, ask: &Ask, fault: Option<&Fault>) -> Reply {
    let mut state = plane.lock();
    let Some(at) = session_of(&mut state, Endpoint::Stream, ask) else {
        return Reply::error(404, "there is no such session");
    };
    let (sender, chunks) = mpsc::unbounded_channel();
    let status = state.settings.ended_stream;
    let session = &mut state.sessions[at];
    if session.ended {
        return match status {
            200 => Reply::stream(chunks),
            other => Reply::error(other, "the session has ended"),
        };
    }
    let signals = session.attach();
    tokio::spawn(sse::pump(signals, sender, fault.cloned(), ask.reset.clone()));
    Reply::stream(chunks)
}

/// A heartbeat answered with 412 by a fault: the caller must take its lease for lost.
pub fn refused_heartbeat(plane: &Plane, ask: &Ask) -> Reply {
    let mut state = plane.lock();
    let now = state.clock.now();
    match state.queue.find(ask.id(1)) {
        None => Reply::error(412, "injected"),
        Some(work) => {
            if let Some(holding) = work.holder() {
                holding.lost_at = Some(now);
            }
            mismatch(work)
        }
    }
}

fn mismatch(work: &Work) -> Reply {
    let details = json!({"error_code": "heartbeat_precondition_failed", "current_state": {
        "state": work.state.name(), "ttl_seconds": work.ttl,
        "last_heartbeat": work.heartbeat, "lease_extended": false}});
    Reply::error_with(412, "the lease is held by somebody else", &details)
}

/// A fault withholds the answer to something that was done.
pub fn response_lost(plane: &Plane, endpoint: Endpoint, ask: &Ask) {
    if endpoint != Endpoint::Send {
        return;
    }
    let mut state = plane.lock();
    let Some(at) = session_of(&mut state, endpoint, ask) else { return };
    for event in ask.json()["events"].as_array().into_iter().flatten() {
        let id = event["tool_use_id"].as_str().or(event["custom_tool_use_id"].as_str());
        if let Some(call) = id.and_then(|id| state.sessions[at].call(id)) {
            call.response_lost = true;
        }
    }
}

impl State {
    fn claim(&mut self, worker: &str, reclaim: Micros) -> Option<Value> {
        let now = self.clock.now();
        if !worker.is_empty()
            && (self.queue.pollers.len() < 10_000 || self.queue.pollers.contains_key(worker))
        {
            self.queue.pollers.insert(worker.to_owned(), now);
        }
        let id = self.queue.claim(worker, reclaim, now)?.id.clone();
        let at = self.queue.items.iter().position(|work| work.id == id)?;
        let secret = self.secret(at);
        let mut item = self.show(&self.queue.items[at]);
        item["secret"] = json!(secret);
        Some(item)
    }

    /// API-1
    fn nothing(&mut self) -> Reply {
        self.record.polls_empty += 1;
        match self.settings.empty_poll {
            EmptyPoll::Null => Reply::text("null".to_owned()),
            EmptyPoll::NoContent => Reply::empty(204),
            EmptyPoll::EmptyBody => Reply::text(String::new()),
            EmptyPoll::EmptyObject => Reply::text("{}".to_owned()),
        }
    }

    /// A work item as every endpoint shows it; only the poll adds a secret.
    fn show(&self, work: &Work) -> Value {
        let stamp = |at: Option<Micros>| at.map(|at| self.clock.stamp(at));
        let data = work.kind.as_ref().map(|kind| match &work.session {
            Some(session) => json!({"type": kind, "id": session}),
            None => json!({"type": kind}),
        });
        json!({
            "type": "work",
            "id": work.id,
            "environment_id": self.identity.environment,
            "state": work.state.name(),
            "data": data,
            "metadata": work.metadata,
            "secret": null,
            "created_at": self.clock.stamp(work.created_at),
            "acknowledged_at": stamp(work.acknowledged_at),
            "started_at": stamp(work.started_at),
            "latest_heartbeat_at": stamp(work.latest_heartbeat_at),
            "stop_requested_at": stamp(work.stop_requested_at),
            "stopped_at": stamp(work.stopped_at),
        })
    }

    /// E-ACK
    fn ack(&mut self, ask: &Ask) -> Reply {
        if !ask.body.is_empty() {
            self.violate("bad_body", None, "an ack has a body".to_owned());
        }
        let (now, ttl, repeat) =
            (self.clock.now(), self.settings.ttl_seconds, self.settings.ack_repeat);
        let Some(work) = self.queue.find(ask.id(1)) else {
            return Reply::error(404, "there is no such work item");
        };
        let first = work.acknowledged_at.is_none();
        if !work.ack(now, ttl) {
            return Reply::error(409, "the item is stopped");
        }
        if !first && repeat != 200 {
            return Reply::error(repeat, "the item was acked before");
        }
        let work = work.clone();
        Reply::json(&self.show(&work))
    }

    /// E-HB
    fn heartbeat(&mut self, ask: &Ask, fault: Option<Kind>) -> Reply {
        if !ask.body.is_empty() {
            self.violate("bad_body", None, "a heartbeat has a body".to_owned());
        }
        let Some(expected) = ask.query("expected_last_heartbeat").map(str::to_owned) else {
            self.violate("bad_heartbeat", None, "a heartbeat expects no value".to_owned());
            return Reply::error(400, "`expected_last_heartbeat` is required");
        };
        let (now, mut ttl) = (self.clock.now(), self.settings.ttl_seconds);
        if let Some(Kind::Ttl(value)) = fault {
            ttl = value;
        }
        let fresh = self.queue.fresh_heartbeat(&self.clock.stamp(now));
        let Some(work) = self.queue.find(ask.id(1)) else {
            return Reply::error(404, "there is no such work item");
        };
        match fault {
            Some(Kind::Lost) => work.lose(now),
            Some(Kind::Stopping) => drop(work.stop_by_server(now, false)),
            Some(Kind::Stopped) => drop(work.stop_by_server(now, true)),
            _ => {}
        }
        // A chain that breaks while the caller still holds the lease is the caller's mistake.
        let alone = work.holdings.len() == 1;
        let mine = work.holder().is_some_and(|held| match &held.token {
            Some(token) => Some(token.as_str()) == bearer(ask),
            None => alone,
        });
        let repeated = work.holder().is_some_and(|held| held.beat_lost);
        let beat = work.beat(&expected, fresh, now, ttl);
        if let (Beat::Extended, Some(held)) = (&beat, work.holder()) {
            held.beat_lost = fault.is_some_and(Kind::hides_success);
        }
        let session = work.session.clone();
        let shown = json!({"type": "work_heartbeat", "last_heartbeat": work.heartbeat.clone().unwrap_or_default(),
            "lease_extended": beat == Beat::Extended && fault != Some(Kind::NotExtended),
            "state": work.state.name(), "ttl_seconds": ttl});
        match beat {
            Beat::Mismatch => {
                let reply = mismatch(work);
                let held = matches!(work.state, work::State::Starting | work::State::Active);
                let id = work.id.clone();
                if held && mine && !repeated {
                    let at = session.and_then(|id| self.session_at(&id));
                    let detail = format!("{id}: a heartbeat did not repeat the last value");
                    self.violate("heartbeat_chain", at, detail);
                }
                self.queued.notify_waiters();
                reply
            }
            Beat::Extended | Beat::NotExtended => Reply::json(&shown),
        }
    }

    /// E-STOP
    fn stop(&mut self, ask: &Ask) -> Reply {
        let body = ask.json();
        if !body.is_object() {
            self.violate("bad_body", None, "a stop has no JSON object".to_owned());
        }
        let force = body["force"].as_bool().unwrap_or(false);
        let (now, status) = (self.clock.now(), self.settings.stop_status);
        let token = bearer(ask).map(str::to_owned);
        let Some(work) = self.queue.find(ask.id(1)) else {
            return Reply::error(404, "there is no such work item");
        };
        let of = work.holdings.iter().find(|held| token.is_some() && held.token == token);
        let lost = of.is_some_and(|held| held.lost_at.is_some());
        let stopped = work.stop(force, now);
        let (shown, session) = (work.clone(), work.session.clone());
        let at = session.and_then(|id| self.session_at(&id));
        if lost {
            self.violate(
                "stop_after_lost_lease",
                at,
                format!("{} was stopped by a worker that had lost it", shown.id),
            );
        }
        if let Some(at) = at {
            self.sessions[at].changed.notify_waiters();
            if stopped == Stop::Done && force {
                self.after_stop(at);
            }
        }
        self.changed.notify_waiters();
        match (stopped, status) {
            (Stop::Already, _) => Reply::error(409, "the item is stopped already"),
            (Stop::Done, 204) => Reply::empty(204),
            (Stop::Done, _) => Reply::json(&self.show(&shown)),
        }
    }

    /// A call that nobody has seen, or every missing result where the script says so, makes a new
    /// item of a session whose item was stopped (RACE-13, UNK-5).
    fn after_stop(&mut self, at: usize) {
        let session = &self.sessions[at];
        let all = session.script.requeue_on_stop;
        let mut missing = session.calls.iter().rev().take(256).filter(|call| call.outstanding());
        if !session.ended && missing.any(|call| all || call.delivered_at.is_none()) {
            self.ensure_work(at);
        }
    }

    /// E-GET
    fn work_get(&mut self, ask: &Ask) -> Reply {
        let now = self.clock.now();
        self.queue.expire(now);
        match self.queue.find(ask.id(1)).cloned() {
            Some(work) => Reply::json(&self.show(&work)),
            None => Reply::error(404, "there is no such work item"),
        }
    }

    /// E-META
    fn work_metadata(&mut self, ask: &Ask) -> Reply {
        let body = ask.json();
        let Some(changes) = body["metadata"].as_object() else {
            return Reply::error(400, "`metadata` must be an object");
        };
        let Some(work) = self.queue.find(ask.id(1)) else {
            return Reply::error(404, "there is no such work item");
        };
        for (key, value) in changes {
            match value {
                Value::Null => drop(work.metadata.remove(key)),
                Value::String(text) => drop(work.metadata.insert(key.clone(), text.clone())),
                _ => return Reply::error(400, "values of `metadata` are strings or null"),
            }
        }
        let work = work.clone();
        Reply::json(&self.show(&work))
    }

    /// E-LIST
    fn work_list(&mut self, ask: &Ask) -> Reply {
        let now = self.clock.now();
        self.queue.expire(now);
        let limit = ask.number("limit").unwrap_or(Ok(20));
        let from =
            ask.query("page").map_or(Ok(0), |page| page.trim_start_matches("workpage_").parse());
        let (Ok(limit @ 1..=1000), Ok(from)) = (limit, from) else {
            return Reply::error(400, "`limit` or `page` is not valid");
        };
        let page: Vec<Value> =
            self.queue.items.iter().skip(from).take(limit).map(|work| self.show(work)).collect();
        let end = from.saturating_add(limit);
        let next = (end < self.queue.items.len()).then(|| format!("workpage_{end}"));
        Reply::json(&json!({"data": page, "next_page": next}))
    }

    /// E-STATS
    fn work_stats(&mut self) -> Reply {
        let now = self.clock.now();
        self.queue.expire(now);
        let queued = self.queue.items.iter().filter(|work| work.state == work::State::Queued);
        let (pending, depth): (Vec<&Work>, Vec<&Work>) = queued.partition(|work| work.claimed());
        let oldest = depth.iter().map(|work| work.created_at).min();
        let recent = |at: &&Micros| now.saturating_sub(**at) <= 30_000_000;
        Reply::json(&json!({
            "type": "work_queue_stats",
            "depth": depth.len(),
            "pending": pending.len(),
            "oldest_queued_at": oldest.map(|at| self.clock.stamp(at)),
            "workers_polling": self.queue.pollers.values().filter(recent).count(),
        }))
    }
}

fn bearer(ask: &Ask) -> Option<&str> {
    ask.header("authorization")?.strip_prefix("Bearer ")
}
