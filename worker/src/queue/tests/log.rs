//! What an operator is told of items, leases, streams and calls: each event by its name, with the ids
//! that are known (OBS-5). That nothing else is told is in `secrets`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::*;
use super::secrets::captured;
use super::world::*;

const SECOND: Duration = Duration::from_secs(1);

/// The events of a log, each with its fields.
fn events(lines: &std::sync::Mutex<Vec<u8>>) -> Vec<Value> {
    let text = String::from_utf8(lines.lock().expect("not poisoned").clone()).expect("text");
    let fields = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["fields"].clone();
    text.lines().map(fields).filter(|fields| fields["event"].is_string()).collect()
}

/// A healthcheck, a session that has ended and whose secret is nonsense, and the end of the queue.
async fn an_ordinary_queue() {
    let drain = |settings: &mut QueueSettings| settings.drain = true;
    let world = World::with(drain, Arc::new(MemoryJournals));
    let mut session = work("session");
    session["secret"] = json!("nonsense");
    {
        let mut state = world.plane.state();
        state.session_status = "terminated";
        state.polls.extend([
            status(500),
            Answer::Json(200, work("healthcheck")),
            Answer::Json(200, session),
            Answer::Json(200, Value::Null),
        ]);
    }
    world.poll().await.expect("an end").expect("no refusal");
}

/// No work, acks and stops that fail, and a key that is not good any more.
async fn a_queue_that_refuses() {
    let world = World::new();
    {
        let mut state = world.plane.state();
        let item = Answer::Json(200, work("session"));
        state.polls.extend([Answer::Json(200, Value::Null), item.clone(), item, status(401)]);
        state.acks.extend([status(409), status(404)]);
        state.stops.extend(vec![status(500); 5]);
    }
    world.poll().await.expect("an end").expect_err("refused");
}

/// A lease whose second and later heartbeats are answered like this.
async fn a_lease(answers: impl IntoIterator<Item = Answer>) {
    let world = World::new();
    world.plane.state().beats.push_back(beat("a", 20.0, "active", true));
    world.plane.state().beats.extend(answers);
    world.plane.state().history.push(call_with("t", json!({"take_ms": 60_000})));
    world.serve().await.expect("an end");
}

/// Calls of every kind, a broken stream, a history that cannot be read, posts that fail.
async fn a_lively_session() {
    let world = World::new();
    let gated = |id: &str, permission: &str| {
        let mut gated = call(id);
        gated["evaluated_permission"] = json!(permission);
        gated
    };
    let web = json!({"type":"agent.tool_use","id":"w","name":"web_search","input":{}});
    {
        let mut state = world.plane.state();
        state.history.extend([gated("h", "ask"), gated("d", "deny"), web, call("t"), call("u")]);
        state.posts.extend([status(503), status(400)]);
    }
    let item = world.serve();
    world.plane.until("posts", |plane| plane.posted().len() == 3).await;
    world.plane.emit(confirmation("h", "deny"));
    world.plane.emit(thread_end("x"));
    tokio::time::sleep(SECOND).await;
    world.plane.state().pages.push_back(status(404));
    world.plane.end_streams();
    world.plane.until("a new stream", |plane| plane.seen("/stream").len() == 2).await;
    tokio::time::sleep(SECOND).await;
    world.plane.emit(result_of("w"));
    world.plane.emit(end_turn());
    assert_eq!(item.await.expect("an end"), ItemEnd::Idle);
}

/// Ways in which an item ends early.
async fn sessions_that_fail() {
    let world = World::new();
    world.plane.state().sessions.push_back(status(404));
    world.serve().await.expect("an end");
    let world = World::new();
    world.plane.state().opens.push_back(status(403));
    world.serve().await.expect("an end");
    let world = World::new();
    *world.host.open_fails.lock().expect("not poisoned") = true;
    world.serve().await.expect("an end");
    let world = World::new();
    world.plane.state().ttl = 2.0;
    world.plane.state().posts.extend(vec![status(503); 40]);
    world.plane.state().history.push(call("t"));
    let item = world.serve();
    world.plane.until("it gives up", |_| world.host.noted("PostFailed").len() == 1).await;
    world.plane.emit(json!({"type":"session.deleted"}));
    item.await.expect("an end");
}

#[tokio::test(start_paused = true)]
async fn each_thing_that_an_operator_must_hear_of_has_an_event_with_its_ids() {
    // OBS-5, AUTH-4.
    let (lines, guard) = captured("debug");
    an_ordinary_queue().await;
    a_queue_that_refuses().await;
    a_lease([status(503), beat("b", 20.0, "stopping", true)]).await;
    a_lease([refused_beat(json!({"state": "active"}))]).await;
    a_lease([status(401)]).await;
    a_lease(vec![status(503); 40]).await;
    a_lively_session().await;
    sessions_that_fail().await;
    drop(guard);
    let events = events(&lines);
    let heard: BTreeSet<&str> = events.iter().filter_map(|one| one["event"].as_str()).collect();
    #[rustfmt::skip]
    let wanted = [
        "poll.starting", "poll.idle", "poll.failed", "poll.refused", "poll.drained",
        "work.claimed", "work.ack_failed", "work.ack_refused", "work.not_a_session",
        "work.secret_without_token", "work.stop_failed", "work.released", "work.ended",
        "lease.transient", "lease.shutdown", "lease.rejected", "lease.lost", "lease.assumed_lost",
        "session.terminated", "session.not_fetched", "session.not_opened", "session.idle",
        "session.ended", "runner.starting", "stream.disconnected", "stream.refused",
        "history.failed", "call.starting", "call.ended", "call.not_owned", "call.held",
        "call.confirmation", "call.denied", "thread.ended", "post.retry", "post.refused",
        "post.failed",
    ];
    let missing: Vec<&&str> = wanted.iter().filter(|event| !heard.contains(**event)).collect();
    assert!(missing.is_empty(), "{missing:?} of {heard:?}");
    for one in &events {
        let event = one["event"].as_str().expect("a name");
        if event == "work.secret_without_token" {
            assert_eq!(one["work_id"], "work_1", "{one}");
            continue;
        }
        assert_eq!(one["environment_id"], "env_1", "{one}");
        if !event.starts_with("poll.") {
            assert_eq!(one["work_id"], "work_1", "{one}");
        }
        let of_a_session = ["runner.", "stream.", "call.", "session.", "post.", "lease."];
        if of_a_session.iter().any(|start| event.starts_with(start)) {
            assert_eq!(one["session_id"], "sesn_1", "{one}");
        }
    }
    let field = |event: &str, name: &str| {
        let one = events.iter().find(|one| one["event"] == event).expect("heard");
        one[name].clone()
    };
    assert_eq!(field("lease.lost", "state"), "active", "LEASE-6");
    assert_eq!(field("work.claimed", "kind"), "healthcheck", "POLL-13");
    assert!(field("poll.failed", "pause_ms").as_u64() > Some(0), "POLL-4");
}
