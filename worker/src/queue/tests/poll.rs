//! The poll loop: POLL-1..16, API-1, HDR-4, SHUT-3.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::*;
use super::world::*;

const SECOND: Duration = Duration::from_secs(1);

fn times(world: &World, end: &str) -> Vec<f64> {
    world.plane.seen(end).iter().map(|seen| seen.at.as_secs_f64()).collect()
}

async fn until_polls(world: &World, count: usize) {
    world.plane.until("polls", |plane| plane.seen("/poll").len() >= count).await;
}

#[tokio::test(start_paused = true)]
async fn an_empty_poll_is_followed_by_a_jittered_pause() {
    // POLL-1, POLL-2: the pause is in addition to the hold. API-1: every spelling of empty.
    let world = World::new();
    world.plane.state().polls.extend([
        Answer::Json(200, Value::Null),
        Answer::Text(204, String::new()),
        Answer::Text(200, String::new()),
        Answer::Json(200, json!({})),
    ]);
    let end = world.poll();
    until_polls(&world, 6).await;
    let at = times(&world, "/poll");
    assert_eq!(at[..5], [0.0, 2.0, 4.0, 6.0, 8.0]);
    assert!((at[5] - 10.999).abs() < 0.01, "{}", at[5]);
    let poll = &world.plane.seen("/poll")[0];
    assert_eq!(poll.query, "block_ms=999");
    assert_eq!(poll.path, "/base/v1/environments/env_1/work/poll", "HDR-10");
    world.shutdown.drain();
    assert_eq!(end.await.expect("an end").expect("no refusal"), QueueEnd::Shutdown);
}

#[tokio::test(start_paused = true)]
async fn the_eager_cadence_does_not_pause_after_work_but_keeps_a_distance() {
    // Deviation from POLL-2: never more than four a second, and only while warm.
    let eager = |settings: &mut QueueSettings| {
        settings.cadence = Cadence::Eager { warm: SECOND * 10 };
        settings.block_ms = None;
    };
    let world = World::with(eager, std::sync::Arc::new(MemoryJournals));
    world.plane.state().polls.push_back(Answer::Json(200, work("healthcheck")));
    world.plane.state().polls.extend(vec![Answer::Json(200, Value::Null); 60]);
    let _end = world.poll();
    until_polls(&world, 50).await;
    let at = times(&world, "/poll");
    assert_eq!(world.plane.seen("/poll")[0].query, "", "no hold: the parameter is left out");
    let warm = at.iter().filter(|at| **at < 10.0).count();
    assert_eq!(warm, 41, "four a second for ten seconds");
    assert!(at[42..].windows(2).all(|pair| pair[1] - pair[0] > 1.9), "then as the SDKs do");
}

#[tokio::test(start_paused = true)]
async fn failed_polls_back_off_and_recover() {
    // POLL-4, POLL-6: connection, 5xx, 429, 408, 409 and garbage are all transient. HTTP-4: what is
    // below the loop does not ask again by itself, or there would be more polls and shorter pauses.
    let world = World::new();
    world.plane.state().polls.extend([
        Answer::Break,
        status(500),
        status(429),
        Answer::Text(200, "<html>".to_owned()),
        status(409),
        status(408),
        Answer::Json(200, json!([1])),
        Answer::Json(200, Value::Null),
        status(503),
        Answer::Json(200, Value::Null),
    ]);
    let _end = world.poll();
    until_polls(&world, 10).await;
    let at = times(&world, "/poll");
    let pauses: Vec<f64> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(pauses, [2.5, 4.5, 8.5, 16.5, 32.5, 60.5, 60.5, 2.0, 2.5], "an empty poll resets");
}

#[tokio::test(start_paused = true)]
async fn a_refused_poll_ends_the_loop() {
    // POLL-5.
    for code in [400, 401, 403, 404] {
        let world = World::new();
        world.plane.state().polls.push_back(status(code));
        let refused = world.poll().await.expect("an end").expect_err("refused");
        assert_eq!(refused.source.status(), Some(code));
        assert_eq!(world.plane.seen("/poll").len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn draining_ends_with_the_first_empty_poll() {
    // POLL-11, POLL-12.
    let drain = |settings: &mut QueueSettings| {
        settings.drain = true;
        settings.block_ms = None;
        settings.reclaim_older_than_ms = Some(2000);
    };
    let world = World::with(drain, std::sync::Arc::new(MemoryJournals));
    world.plane.state().polls.extend([
        status(500),
        Answer::Json(200, work("healthcheck")),
        Answer::Json(200, Value::Null),
    ]);
    let end = world.poll().await.expect("an end").expect("no refusal");
    assert_eq!(end, QueueEnd::Empty);
    assert_eq!(world.plane.seen("/poll").len(), 3);
    assert_eq!(world.plane.seen("/poll")[0].query, "reclaim_older_than_ms=2000");
    assert_eq!(world.plane.seen("/stop").len(), 1, "the item has ended before the loop");
}

#[tokio::test(start_paused = true)]
async fn an_ack_that_fails_for_now_is_not_stopped() {
    // POLL-7, POLL-8.
    let world = World::new();
    let items = Answer::Json(200, work("healthcheck"));
    world.plane.state().polls.extend([items.clone(), items.clone(), items]);
    world.plane.state().acks.extend([status(409), status(409), ok()]);
    let _end = world.poll();
    until_polls(&world, 4).await;
    let at = times(&world, "/poll");
    assert_eq!((at[1], at[2]), (2.5, 7.0), "its own backoff");
    assert_eq!(world.plane.seen("/stop").len(), 1, "only the one that was acked");
}

#[tokio::test(start_paused = true)]
async fn an_ack_that_is_refused_discards_the_item_and_does_not_run_hot() {
    // POLL-9, RACE-21.
    let world = World::new();
    world.plane.state().polls.extend(vec![Answer::Json(200, work("session")); 3]);
    world.plane.state().acks.extend(vec![status(404); 3]);
    let _end = world.poll();
    until_polls(&world, 4).await;
    assert_eq!(times(&world, "/poll")[..4], [0.0, 1.5, 4.5, 10.5]);
    assert_eq!(world.plane.seen("/stop").len(), 3);
    assert_eq!(world.plane.seen("/stop")[0].body, r#"{"force":true}"#);
    assert!(world.plane.seen("/heartbeat").is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_item_that_is_no_session_is_acked_and_handed_back() {
    // POLL-13: no heartbeat, no session.
    let world = World::new();
    world.plane.state().polls.push_back(Answer::Json(200, work("healthcheck")));
    world.plane.state().polls.push_back(Answer::Json(200, json!({"id":"work_2"})));
    let _end = world.poll();
    until_polls(&world, 4).await;
    assert_eq!((world.plane.seen("/ack").len(), world.plane.seen("/stop").len()), (2, 2));
    assert!(world.plane.seen("/heartbeat").is_empty() && world.plane.seen("sesn_1").is_empty());
    let ack = &world.plane.seen("/ack")[0];
    assert_eq!((ack.body.as_str(), ack.header("content-length")), ("", "0"), "HDR-7");
}

#[tokio::test(start_paused = true)]
async fn a_failing_item_does_not_end_the_loop() {
    // POLL-15.
    let world = World::new();
    world.plane.state().polls.push_back(Answer::Json(200, work("session")));
    world.plane.state().sessions.push_back(status(404));
    let end = world.poll();
    until_polls(&world, 5).await;
    assert_eq!(world.plane.seen("/stop").len(), 1);
    assert!(!end.is_finished());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_claimed_without_a_free_slot() {
    // POLL-3.
    let world = World::new();
    world.plane.state().polls.extend(vec![Answer::Json(200, work("session")); 5]);
    let _end = world.poll();
    tokio::time::sleep(SECOND * 30).await;
    assert_eq!(world.plane.seen("/poll").len(), 2, "two slots");
    world.plane.emit(json!({"type":"session.deleted"}));
    until_polls(&world, 4).await;
}

#[tokio::test(start_paused = true)]
async fn each_request_has_the_headers_of_its_kind() {
    // AUTH-7, HDR-1, HDR-2, HDR-4, HDR-6, HDR-7.
    let world = World::new();
    world.plane.state().polls.push_back(Answer::Json(200, work("session")));
    world.plane.state().history.push(call("t"));
    let _end = world.poll();
    world.plane.until("a post", |plane| !plane.posted().is_empty()).await;
    for seen in world.plane.state().seen.iter() {
        let is_poll = seen.path.ends_with("/poll");
        assert_eq!(seen.headers.get_all("authorization").iter().count(), 1, "{}", seen.path);
        assert!(!seen.headers.contains_key("x-api-key"));
        assert_eq!(seen.header("anthropic-version"), "2026-10-21");
        assert_eq!(seen.header("anthropic-beta"), "managed-agents-2026-04-01");
        assert_eq!(seen.header("anthropic-worker-id"), if is_poll { "host-1" } else { "" });
        assert!(seen.header("user-agent").starts_with("stockade-worker/"));
        let json = if seen.body.is_empty() { "" } else { "application/json" };
        assert_eq!(seen.header("content-type"), json, "{}", seen.path);
        let stream = seen.path.ends_with("/stream");
        let accept = if stream { "text/event-stream" } else { "application/json" };
        assert_eq!(seen.header("accept"), accept);
    }
    let list = world.plane.seen("/events").into_iter().find(|seen| seen.method == "GET");
    assert_eq!(list.expect("a list").query, "limit=1000&order=asc", "EV-5");
}

#[tokio::test(start_paused = true)]
async fn idle_polling_is_announced_once_and_then_every_five_minutes() {
    // POLL-16.
    let (lines, guard) = super::secrets::captured("info");
    let world = World::new();
    let _end = world.poll();
    tokio::time::sleep(SECOND * 610).await;
    drop(guard);
    let lines = lines.lock().expect("not poisoned").clone();
    let text = String::from_utf8(lines).expect("text");
    assert_eq!(text.matches("poll.idle").count(), 3, "{text}");
}
