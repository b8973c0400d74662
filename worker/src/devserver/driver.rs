//! Takes the steps of one session, one after the other: emits events, waits for results.
//!
//! One driver per session, started with it. It never answers a request; it changes the state, and
//! the connections see the change.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::script::{End, Start};
use super::session::{Session, Signal, Verdict};
use super::state::{Plane, State};
use super::steps::{Act, Step};

/// Why a session is given up.
type GivenUp = String;

/// Takes all steps of the session at `at`, then ends it as its script says.
pub async fn drive(plane: Plane, at: usize) {
    let outcome = steps(&plane, at).await;
    let end = plane.lock().sessions[at].script.end;
    {
        let mut state = plane.lock();
        if let Err(reason) = &outcome {
            state.sessions[at].fail(reason.clone());
        }
        state.sessions[at].driven = true;
    }
    let act = match (outcome.is_err(), end) {
        (true, _) | (false, End::Terminate) => Some(Act::Terminate),
        (false, End::Delete) => Some(Act::Delete),
        (false, End::Idle) => Some(Act::Idle("end_turn".to_owned())),
        (false, End::Open) => None,
    };
    let ended = plane.lock().sessions[at].ended;
    if let Some(act) = act.filter(|_| !ended) {
        apply(&mut plane.lock(), at, &act);
    }
    let state = plane.lock();
    state.changed.notify_waiters();
}

async fn steps(plane: &Plane, at: usize) -> Result<(), GivenUp> {
    let (script, ended) = {
        let state = plane.lock();
        (Arc::clone(&state.sessions[at].script), state.sessions[at].ended)
    };
    if ended || script.status.as_deref() == Some("terminated") {
        return Ok(());
    }
    let first_is_gap = script.calls.first().is_some_and(is_gap);
    if script.start == Start::Attached && !first_is_gap {
        // No limit: a worker may come when it likes. The run as a whole has one.
        until(plane, at, None, |session| session.attached).await?;
    }
    if let Some(message) = &script.message {
        apply(&mut plane.lock(), at, &Act::Message(message.clone()));
    }
    for _ in 0..script.repeat {
        for step in &script.calls {
            for _ in 0..step.times() {
                take(plane, at, step).await?;
            }
        }
    }
    if script.end == End::Open {
        while let Some(step) = next_pushed(plane, at).await? {
            for _ in 0..step.times() {
                take(plane, at, &step).await?;
            }
        }
    }
    Ok(())
}

fn is_gap(step: &Step) -> bool {
    match &step.act {
        Act::Call(call) => call.gap,
        Act::Emit { gap, .. } => *gap,
        _ => false,
    }
}

/// The next step that a control endpoint pushed; none when the run is to end.
async fn next_pushed(plane: &Plane, at: usize) -> Result<Option<Step>, GivenUp> {
    loop {
        let changed = Arc::clone(&plane.lock().sessions[at].changed);
        let woken = changed.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        {
            let mut state = plane.lock();
            let finished = state.finished;
            let session = &mut state.sessions[at];
            if let Some(step) = session.pushed.pop_front() {
                return Ok(Some(step));
            }
            if session.ended || finished {
                return Ok(None);
            }
        }
        woken.await;
    }
}

async fn take(plane: &Plane, at: usize, step: &Step) -> Result<(), GivenUp> {
    until_resumed(plane).await;
    let within = step
        .within
        .unwrap_or_else(|| Duration::from_secs_f64(plane.lock().sessions[at].script.within_s));
    if plane.lock().sessions[at].ended && !matches!(step.act, Act::WaitStopped | Act::Delay(_)) {
        return Err("the session ended before all steps were taken".to_owned());
    }
    let waits_for: Vec<String> = match &step.act {
        Act::Call(call) => {
            let mut state = plane.lock();
            let (stamp, now) = (state.stamp(), state.clock.now());
            let id = state.sessions[at].emit_call(call, stamp.clone(), now);
            if !call.gap {
                state.sessions[at].announce_required(&stamp, now);
            }
            state.ensure_work(at);
            if call.wait { vec![id] } else { Vec::new() }
        }
        Act::Confirm { of, wait, .. } => {
            let mut state = plane.lock();
            apply(&mut state, at, &step.act);
            let call = state.sessions[at].labelled(of).map(|call| call.id.clone());
            let id = call.ok_or_else(|| format!("there is no call `{of}` to confirm"))?;
            if *wait { vec![id] } else { Vec::new() }
        }
        Act::WaitFor(labels) => labels.clone(),
        Act::Delay(time) => {
            tokio::time::sleep(*time).await;
            Vec::new()
        }
        Act::WaitStopped => {
            until_stopped(plane, at, within).await?;
            Vec::new()
        }
        other => {
            apply(&mut plane.lock(), at, other);
            Vec::new()
        }
    };
    for label in waits_for {
        let answered = |session: &mut Session| {
            session.labelled(&label).is_none_or(|call| call.answered_at.is_some())
        };
        if plane.lock().sessions[at].labelled(&label).is_none() {
            return Err(format!("there is no call `{label}` to wait for"));
        }
        until(plane, at, Some(within), answered)
            .await
            .map_err(|reason| format!("no result of {label}: {reason}"))?;
    }
    Ok(())
}

/// Waits until `holds`, or gives up at the limit or when the session ends.
async fn until(
    plane: &Plane,
    at: usize,
    limit: Option<Duration>,
    holds: impl Fn(&mut Session) -> bool,
) -> Result<(), GivenUp> {
    let changed = Arc::clone(&plane.lock().sessions[at].changed);
    let deadline = limit.map(|limit| (limit, Instant::now() + limit));
    loop {
        let woken = changed.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        {
            let mut state = plane.lock();
            let session = &mut state.sessions[at];
            if holds(session) {
                return Ok(());
            }
            if session.ended {
                return Err("the session has ended".to_owned());
            }
        }
        match deadline {
            None => woken.await,
            Some((limit, deadline)) => tokio::time::timeout_at(deadline, woken)
                .await
                .map_err(|_| format!("not within {} s", limit.as_secs_f64()))?,
        }
    }
}

async fn until_stopped(plane: &Plane, at: usize, limit: Duration) -> Result<(), GivenUp> {
    let changed = Arc::clone(&plane.lock().changed);
    let deadline = Instant::now() + limit;
    loop {
        let woken = changed.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        {
            let state = plane.lock();
            if !state.queue.live(&state.sessions[at].id) {
                return Ok(());
            }
        }
        tokio::time::timeout_at(deadline, woken).await.map_err(|_| {
            format!("the work item was not stopped within {} s", limit.as_secs_f64())
        })?;
    }
}

async fn until_resumed(plane: &Plane) {
    loop {
        let changed = Arc::clone(&plane.lock().changed);
        let woken = changed.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        if !plane.lock().paused {
            return;
        }
        woken.await;
    }
}

/// An act that waits for nothing.
fn apply(state: &mut State, at: usize, act: &Act) {
    let mut queue = true;
    match act {
        Act::Message(text) => {
            let content = json!([{"type": "text", "text": text}]);
            emit(state, at, json!({"type": "user.message", "content": content}));
            emit(state, at, json!({"type": "session.status_running"}));
        }
        Act::Confirm { of, allow, message, .. } => confirm(state, at, of, *allow, message.as_ref()),
        Act::Answer { of, text } => answer(state, at, of, text),
        Act::ServerTool { name, input, text } => {
            let id = emit(
                state,
                at,
                json!({"type": "agent.tool_use", "name": name,
                "input": input, "evaluated_permission": "allow"}),
            );
            let content = json!([{"type": "text", "text": text}]);
            emit(
                state,
                at,
                json!({"type": "agent.tool_result", "tool_use_id": id,
                "is_error": false, "content": content}),
            );
        }
        Act::ThreadStarted(name) => thread_status(state, at, "running", name),
        Act::ThreadTerminated(name) => thread_status(state, at, "terminated", name),
        Act::Idle(reason) => {
            emit(
                state,
                at,
                json!({"type": "session.status_idle", "stop_reason": {"type": reason}}),
            );
            queue = false;
        }
        Act::Emit { event, gap: true } => state.sessions[at].gap.push_back(event.clone()),
        Act::Emit { event, gap: false } => drop(emit(state, at, event.clone())),
        Act::Fault(fault) => {
            let mut fault = fault.clone();
            fault.session.get_or_insert_with(|| state.sessions[at].id.clone());
            if !state.faults.add(fault) {
                state.sessions[at].fail("too many faults wait".to_owned());
            }
            queue = false;
        }
        Act::Memory { store, with } => {
            let now = state.clock.now();
            match state.stores.iter_mut().find(|one| one.id() == store) {
                Some(store) => store.meddle(with, now),
                None => {
                    let what = format!("there is no memory store {store}");
                    state.sessions[at].failures.push(what);
                }
            }
            queue = false;
        }
        Act::Disconnect => {
            state.sessions[at].signal(&Signal::Close);
            queue = false;
        }
        Act::Terminate | Act::Delete => {
            let deleted = matches!(act, Act::Delete);
            let kind = if deleted { "session.deleted" } else { "session.status_terminated" };
            emit(state, at, json!({"type": kind}));
            if deleted {
                state.sessions[at].signal(&Signal::Close);
            }
            queue = false;
        }
        Act::Call(_) | Act::WaitFor(_) | Act::Delay(_) | Act::WaitStopped => queue = false,
    }
    if queue {
        state.ensure_work(at);
    }
}

fn emit(state: &mut State, at: usize, event: Value) -> String {
    let (stamp, now) = (state.stamp(), state.clock.now());
    state.sessions[at].emit(event, stamp, now)
}

fn thread_status(state: &mut State, at: usize, status: &str, name: &str) {
    let thread = state.sessions[at].thread(name);
    emit(
        state,
        at,
        json!({"type": format!("session.thread_status_{status}"),
        "session_thread_id": thread, "agent_name": name}),
    );
}

fn confirm(state: &mut State, at: usize, of: &str, allow: bool, message: Option<&String>) {
    let Some(call) = state.sessions[at].labelled(of) else { return };
    if call.verdict == Verdict::Asked {
        call.verdict = if allow { Verdict::Allowed } else { Verdict::Denied };
    }
    let id = call.id.clone();
    let mut event = json!({"type": "user.tool_confirmation", "tool_use_id": id,
        "result": if allow { "allow" } else { "deny" }});
    if let Some(message) = message {
        event["deny_message"] = json!(message);
    }
    let now = state.clock.now();
    if let Some(call) = state.sessions[at].call(&id) {
        // The time that the worker is answerable for begins here.
        call.emitted_at = now;
        call.delivered_at = None;
    }
    emit(state, at, event);
    let stamp = state.stamp();
    let session = &mut state.sessions[at];
    if session.reading() {
        session.mark_delivered(&id, now);
    }
    session.announce_required(&stamp, now);
}

/// The customer's backend answers a call that no worker owns.
fn answer(state: &mut State, at: usize, of: &str, text: &str) {
    let now = state.clock.now();
    let Some(call) = state.sessions[at].labelled(of) else {
        state.sessions[at].fail(format!("there is no call `{of}` to answer"));
        return;
    };
    if call.answered_at.is_some() {
        return;
    }
    call.answered_at = Some(now);
    let (kind, key) = match call.custom {
        true => ("user.custom_tool_result", "custom_tool_use_id"),
        false => ("user.tool_result", "tool_use_id"),
    };
    let content = json!([{"type": "text", "text": text}]);
    let event = json!({"type": kind, key: call.id, "is_error": false, "content": content});
    emit(state, at, event);
    let stamp = state.stamp();
    state.sessions[at].announce_required(&stamp, now);
}
