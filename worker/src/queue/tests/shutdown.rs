//! The worker's own end: SHUT-2..5, RACE-15.

use std::time::Duration;

use serde_json::json;

use super::super::*;
use super::world::*;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn shutdown_aborts_a_held_poll() {
    // SHUT-2.
    let world = World::new();
    world.plane.state().polls.push_back(Answer::Hang);
    let end = world.poll();
    world.plane.until("a poll", |plane| plane.seen("/poll").len() == 1).await;
    let before = tokio::time::Instant::now();
    world.shutdown.drain();
    assert_eq!(end.await.expect("an end").expect("no refusal"), QueueEnd::Shutdown);
    assert!(before.elapsed() < SECOND);
}

#[tokio::test(start_paused = true)]
async fn work_that_arrives_during_shutdown_is_not_acked() {
    // SHUT-3.
    let world = World::new();
    let late = Answer::Late(SECOND, Box::new(Answer::Json(200, work("session"))));
    world.plane.state().polls.push_back(late);
    let end = world.poll();
    world.plane.until("a poll", |plane| plane.seen("/poll").len() == 1).await;
    tokio::time::sleep(SECOND - Duration::from_millis(5)).await;
    world.shutdown.drain();
    end.await.expect("an end").expect("no refusal");
    assert!(world.plane.seen("/ack").is_empty());
}

#[tokio::test(start_paused = true)]
async fn work_that_was_acked_during_shutdown_runs_nothing_and_is_stopped() {
    // SHUT-3, RACE-15.
    let world = World::new();
    world.plane.state().history.push(call("t"));
    world.shutdown.drain();
    assert_eq!(world.serve().await.expect("an end"), ItemEnd::Drained);
    assert!(world.host.noted("open").is_empty());
    assert_eq!(world.plane.seen("/stop").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_in_flight_finishes_and_is_posted_while_heartbeats_go_on() {
    // SHUT-2, LEASE-14 last row.
    let world = World::new();
    world.plane.state().ttl = 4.0;
    world.plane.state().history.extend([call_with("t", json!({"take_ms": 20_000})), call("u")]);
    let item = world.serve();
    world.plane.until("it runs", |_| !world.host.noted("run").is_empty()).await;
    world.shutdown.drain();
    assert_eq!(item.await.expect("an end"), ItemEnd::Drained);
    assert_eq!(world.plane.posted_ids(), ["t"]);
    assert_eq!(world.plane.posted_text(0), "out");
    assert_eq!(world.host.noted("run"), ["run t"]);
    assert!(world.plane.seen("/heartbeat").len() >= 10);
    assert_eq!(world.plane.seen("/stop").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_is_killed_at_the_drain_limit_and_an_error_is_posted() {
    // SHUT-2, SHUT-5: also if posts fail, the whole is bounded.
    for posts_fail in [false, true] {
        let world = World::new();
        world.plane.state().history.push(call_with("t", json!({"take_ms": 500_000})));
        if posts_fail {
            world.plane.state().posts.extend(vec![Answer::Hang; 5]);
        }
        let item = world.serve();
        world.plane.until("it runs", |_| !world.host.noted("run").is_empty()).await;
        world.shutdown.drain();
        assert_eq!(item.await.expect("an end"), ItemEnd::Drained);
        assert_eq!(world.host.noted("killed").len(), 1);
        assert!(world.plane.posted_text(0).contains("shut down"));
        let at = world.plane.seen("/stop")[0].at.as_secs();
        assert_eq!(at, if posts_fail { 35 } else { 30 });
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_kills_at_once_and_tries_the_stop_for_two_seconds() {
    // SHUT-4.
    let world = World::new();
    world.plane.state().history.push(call_with("t", json!({"take_ms": 500_000})));
    world.plane.state().stops.push_back(Answer::Hang);
    let item = world.serve();
    world.plane.until("it runs", |_| !world.host.noted("run").is_empty()).await;
    world.shutdown.drain();
    tokio::time::sleep(SECOND * 5).await;
    let before = tokio::time::Instant::now();
    world.shutdown.cancel();
    assert_eq!(item.await.expect("an end"), ItemEnd::Cancelled);
    assert_eq!(before.elapsed().as_secs(), 2);
    assert!(world.plane.posted().is_empty());
    assert_eq!(world.host.noted("killed").len(), 1);
    assert_eq!(world.plane.seen("/stop").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_hangs_is_given_up() {
    // LEASE-12.
    let world = World::new();
    world.plane.state().stops.push_back(Answer::Hang);
    world.plane.state().session_status = "terminated";
    let before = tokio::time::Instant::now();
    world.serve().await.expect("an end");
    assert_eq!(before.elapsed().as_secs(), 10);
}
