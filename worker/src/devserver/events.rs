//! Sessions and their event lists (E-SESS, E-EVLIST).

use std::sync::Arc;

use serde_json::{Value, json};

use super::http::Ask;
use super::reply::Reply;
use super::session::Event;
use super::state::State;

/// E-SESS
pub fn session(state: &State, at: usize) -> Reply {
    let session = &state.sessions[at];
    let script = &session.script;
    let tools = script.tools.clone().unwrap_or_else(|| {
        vec![json!({"type": "agent_toolset_20260401", "configs": [], "default_config":
            {"enabled": true, "permission_policy": {"type": "always_allow"}}})]
    });
    Reply::json(&json!({
        "type": "session",
        "id": session.id,
        "status": session.status,
        "environment_id": state.identity.environment,
        "archived_at": null,
        "created_at": state.clock.stamp(session.created_at),
        "updated_at": state.stamp(),
        "title": session.name,
        "metadata": script.metadata,
        "vault_ids": [],
        "agent": {"type": "agent", "id": "agent_dev", "name": "dev", "version": 1, "system": null,
            "model": {"id": "dev"}, "description": null, "mcp_servers": [],
            "skills": script.skills, "tools": tools},
        "resources": script.resources,
        "stats": {}, "usage": {}, "outcome_evaluations": [],
    }))
}

/// Where a page begins, and how long it is.
struct Page {
    from: usize,
    size: usize,
}

/// Cursors are the number of the page's first event; the empty page has one of its own.
fn page(state: &State, at: usize, ask: &Ask) -> Result<(Page, bool), Reply> {
    let script = &state.sessions[at].script;
    let Ok(limit @ 1..=1000) = ask.number("limit").unwrap_or(Ok(20)) else {
        return Err(Reply::error(400, "`limit` must be within 1 and 1000"));
    };
    let size = limit.min(script.page_size.unwrap_or(state.settings.page_size)).max(1);
    let cursor = ask.query("page").unwrap_or("evpage_0");
    let was_empty = cursor.ends_with("_filled");
    let number =
        cursor.strip_prefix("evpage_").map(|rest| rest.trim_end_matches("_filled").parse());
    match number {
        Some(Ok(from)) => Ok((Page { from, size }, was_empty)),
        _ => Err(Reply::error(400, "`page` is no cursor of this list")),
    }
}

/// The number of the page that is asked for, from 1.
pub fn page_number(state: &State, at: usize, ask: &Ask) -> usize {
    page(state, at, ask).map_or(1, |(page, _)| page.from / page.size + 1)
}

/// E-EVLIST. Events for the gap are emitted after the page was taken, so that only the stream has
/// them (RUN-1).
pub fn list(state: &mut State, at: usize, ask: &Ask) -> Reply {
    let (page, was_empty) = match page(state, at, ask) {
        Ok(page) => page,
        Err(reply) => return reply,
    };
    let descending = match ask.query("order").unwrap_or("asc") {
        "asc" => false,
        "desc" => true,
        _ => return Reply::error(400, "`order` is `asc` or `desc`"),
    };
    let (stamp, now) = (state.stamp(), state.clock.now());
    let session = &mut state.sessions[at];
    let number = page.from / page.size + 1;
    if session.script.empty_page == Some(number) && !was_empty {
        let next = format!("evpage_{}_filled", page.from);
        return Reply::json(&json!({"data": [], "next_page": next}));
    }
    let mut wanted: Vec<Arc<Event>> =
        session.log.iter().filter(|event| asked_for(event, ask)).cloned().collect();
    // By the time of processing; the sort keeps the order of the log among equals (EV-5).
    wanted.sort_by(|a, b| a.stamp.cmp(&b.stamp));
    if descending {
        wanted.reverse();
    }
    let end = page.from.saturating_add(page.size).min(wanted.len());
    let part = wanted.get(page.from.min(end)..end).unwrap_or_default();
    let mut body = String::from("{\"data\":[");
    for (number, event) in part.iter().enumerate() {
        if number > 0 {
            body.push(',');
        }
        body.push_str(&event.json);
    }
    let next = (end < wanted.len()).then(|| format!("evpage_{end}"));
    body.push_str(&format!("],\"next_page\":{}}}", json!(next)));
    for event in part {
        session.mark_delivered(&event.id, now);
    }
    if session.reading() {
        session.emit_gap(&stamp, now);
        if next.is_none() {
            session.attached = true;
            session.changed.notify_waiters();
        }
    }
    Reply::text(body)
}

fn asked_for(event: &Event, ask: &Ask) -> bool {
    let kinds: Vec<&str> = ask.queries("types[]").chain(ask.queries("types")).collect();
    let time = |name: &str| ask.query(name).map(normal);
    (kinds.is_empty() || kinds.contains(&event.kind.as_str()))
        && time("created_at[gt]").is_none_or(|than| event.stamp > than)
        && time("created_at[gte]").is_none_or(|than| event.stamp >= than)
        && time("created_at[lt]").is_none_or(|than| event.stamp < than)
        && time("created_at[lte]").is_none_or(|than| event.stamp <= than)
}

/// A timestamp as ours are written; unchanged if it is none.
fn normal(text: &str) -> String {
    let utc = text.replace("+00:00", "Z");
    let parsed = humantime::parse_rfc3339_weak(&utc);
    parsed.map_or_else(|_| utc, |time| humantime::format_rfc3339_micros(time).to_string())
}

/// A session for control endpoints: what it waits for and what it has seen.
pub fn summary(state: &State, at: usize) -> Value {
    let session = &state.sessions[at];
    let waiting: Vec<&str> = session
        .calls
        .iter()
        .filter(|call| call.outstanding())
        .map(|call| call.id.as_str())
        .collect();
    json!({
        "id": session.id,
        "name": session.name,
        "status": session.status,
        "done": state.session_done(at),
        "attached": session.attached && session.reading(),
        "streams_opened": session.streams_opened,
        "calls": session.calls.len(),
        "answered": session.calls.iter().filter(|call| call.answered_at.is_some()).count(),
        "waiting_for": waiting,
        "failures": session.failures,
    })
}
