//! Control endpoints below `/dev`: for tests and for people, in JSON. No part of the protocol.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::aws;
use super::events;
use super::fault::Fault;
use super::http::Ask;
use super::memory::{Meddling, Store};
use super::reply::Reply;
use super::script::{SessionScript, SkillScript, StoreScript};
use super::state::{Plane, State};
use super::steps::Step;
use super::{driver, webhook};

/// Steps that wait to be taken.
const PUSHED_MAX: usize = 100_000;

/// Answers a request below `/dev`.
pub fn answer(plane: &Plane, ask: &Ask) -> Reply {
    let path: Vec<&str> = ask.path.iter().skip(1).map(String::as_str).collect();
    match answer_at(plane, ask, &path) {
        Ok(value) => Reply::json(&value),
        Err(reply) => reply,
    }
}

fn answer_at(plane: &Plane, ask: &Ask, path: &[&str]) -> Result<Value, Reply> {
    let mut state = plane.lock();
    match (ask.method.as_str(), path) {
        ("GET", ["health"]) => Ok(json!({"ok": true})),
        ("GET", ["state"]) => Ok(show(&state)),
        ("GET", ["report"]) => Ok(state.report(ask.query("final") == Some("true"))),
        ("GET", ["sessions", id]) => Ok(events::summary(&state, find(&state, id)?)),
        ("POST", ["sessions"]) => add_session(plane, &mut state, ask),
        ("POST", ["sessions", id, "steps"]) => push_steps(&mut state, id, ask),
        ("POST", ["sessions", id, "events"]) => push_events(&mut state, id, ask),
        ("POST", ["work"]) => {
            let kind = ask.json()["type"].as_str().map(str::to_owned);
            let now = state.clock.now();
            let at = state.queue.add(kind.as_deref(), None, std::collections::BTreeMap::new(), now);
            state.queued.notify_waiters();
            Ok(json!({"id": state.queue.items[at].id}))
        }
        ("POST", ["skills"]) => {
            state.skills.push(read::<SkillScript>(ask)?);
            Ok(json!({}))
        }
        ("POST", ["memory_stores"]) => {
            let now = state.clock.now();
            let store = Store::new(&read::<StoreScript>(ask)?, now);
            state.stores.push(store);
            Ok(json!({}))
        }
        ("GET", ["memory_stores", id]) => match state.stores.iter().find(|one| one.id() == *id) {
            Some(store) => Ok(json!(store.contents())),
            None => Err(Reply::error(404, "there is no such memory store")),
        },
        ("POST", ["memory_stores", id]) => {
            let (with, now) = (read::<Meddling>(ask)?, state.clock.now());
            match state.stores.iter_mut().find(|one| one.id() == *id) {
                Some(store) => {
                    store.meddle(&with, now);
                    Ok(json!(store.contents()))
                }
                None => Err(Reply::error(404, "there is no such memory store")),
            }
        }
        ("POST", ["aws"]) => {
            let valid = read::<aws::Valid>(ask)?;
            aws::replace(&mut state, valid);
            Ok(json!({}))
        }
        ("POST", ["faults"]) => match state.faults.add(read::<Fault>(ask)?) {
            true => Ok(json!({"waiting": state.faults.len()})),
            false => Err(Reply::error(400, "too many faults wait")),
        },
        ("DELETE", ["faults"]) => {
            state.faults.clear();
            Ok(json!({"waiting": 0}))
        }
        ("POST", ["advance"]) => advance(&mut state, ask),
        ("POST", ["webhook"]) => webhook::signed_for_test(&state, &read(ask)?)
            .ok_or_else(|| Reply::error(400, "the script has no [webhook]")),
        ("POST", ["pause"]) => Ok(pause(&mut state, true)),
        ("POST", ["resume"]) => Ok(pause(&mut state, false)),
        ("POST", ["finish"]) => {
            state.finished = true;
            state.sessions.iter().for_each(|session| session.changed.notify_waiters());
            state.changed.notify_waiters();
            Ok(json!({}))
        }
        ("POST", ["shutdown"]) => {
            plane.shutdown.notify_one();
            Ok(json!({}))
        }
        _ => Err(Reply::error(404, "there is no such control endpoint; see docs/devserver.md")),
    }
}

fn show(state: &State) -> Value {
    let work = state.queue.items.iter().map(|work| {
        json!({"id": work.id, "session": work.session, "type": work.kind, "state": work.state,
            "claims": work.holdings.len()})
    });
    let sessions = (0..state.sessions.len()).map(|at| events::summary(state, at));
    json!({
        "done": state.done(),
        "paused": state.paused,
        "now_us": state.clock.now(),
        "environment_id": state.identity.environment,
        "environment_key": state.identity.key,
        "operator_key": state.identity.operator_key,
        "aws_api_key": state.identity.aws_api_keys.first(),
        "faults_waiting": state.faults.len(),
        "violations": state.violations(false),
        "sessions": sessions.collect::<Vec<_>>(),
        "work": work.collect::<Vec<_>>(),
    })
}

fn read<T: DeserializeOwned>(ask: &Ask) -> Result<T, Reply> {
    serde_json::from_slice(&ask.body).map_err(|error| Reply::error(400, &error.to_string()))
}

/// A session by its id or by its name in the script.
fn find(state: &State, id: &str) -> Result<usize, Reply> {
    let named = || state.sessions.iter().position(|session| session.name == id);
    state.session_at(id).or_else(named).ok_or_else(|| Reply::error(404, "there is no such session"))
}

fn add_session(plane: &Plane, state: &mut State, ask: &Ask) -> Result<Value, Reply> {
    let script: SessionScript = read(ask)?;
    script.check().map_err(|reason| Reply::error(400, &reason))?;
    let added = state.add_sessions(script).ok_or_else(|| Reply::error(400, "too many sessions"))?;
    for at in &added {
        tokio::spawn(driver::drive(plane.clone(), *at));
    }
    let ids: Vec<&str> = added.iter().map(|at| state.sessions[*at].id.as_str()).collect();
    Ok(json!({"ids": ids}))
}

fn push_steps(state: &mut State, id: &str, ask: &Ask) -> Result<Value, Reply> {
    let at = find(state, id)?;
    let steps: Vec<Step> = read(ask)?;
    let session = &mut state.sessions[at];
    if session.pushed.len() + steps.len() > PUSHED_MAX {
        return Err(Reply::error(400, "too many steps wait"));
    }
    session.pushed.extend(steps);
    session.changed.notify_waiters();
    Ok(json!({"waiting": session.pushed.len()}))
}

fn push_events(state: &mut State, id: &str, ask: &Ask) -> Result<Value, Reply> {
    let at = find(state, id)?;
    let (stamp, now) = (state.stamp(), state.clock.now());
    let mut ids = Vec::new();
    for event in read::<Vec<Value>>(ask)? {
        ids.push(state.sessions[at].emit(event, stamp.clone(), now));
    }
    if !state.sessions[at].ended {
        state.ensure_work(at);
    }
    Ok(json!({"ids": ids}))
}

/// The farthest jump of the clock: a year.
const ADVANCE_MAX_MS: u64 = 366 * 86_400_000;

/// How far the clock is to jump.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    ms: u64,
}

fn advance(state: &mut State, ask: &Ask) -> Result<Value, Reply> {
    let by: Advance = read(ask)?;
    let sum = state.clock.now() / 1000 + by.ms.min(ADVANCE_MAX_MS + 1);
    if sum > ADVANCE_MAX_MS {
        return Err(Reply::error(400, "the clock does not run farther than a year"));
    }
    state.clock.advance(Duration::from_millis(by.ms));
    let now = state.clock.now();
    state.queue.expire(now);
    state.queued.notify_waiters();
    state.changed.notify_waiters();
    Ok(json!({"now_us": now}))
}

fn pause(state: &mut State, paused: bool) -> Value {
    state.paused = paused;
    state.changed.notify_waiters();
    json!({"paused": paused})
}
