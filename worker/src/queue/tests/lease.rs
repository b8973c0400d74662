//! The lease: its rules with time passed in, and its effect on a session (LEASE-1..18, RACE-1, 2, 20).

use std::time::Duration;

use serde_json::{Value, json};

use super::super::client::ApiError;
use super::super::lease::{LeaseEnd, LeaseState, Next};
use super::super::wire::error::parse_error;
use super::super::wire::work::HeartbeatReply;
use super::super::*;
use super::world::*;

const SECOND: Duration = Duration::from_secs(1);

fn reply(value: &str, ttl: f64, state: &str, extended: bool) -> HeartbeatReply {
    let (last_heartbeat, state) = (value.to_owned(), state.to_owned());
    HeartbeatReply { last_heartbeat, lease_extended: extended, state, ttl_seconds: ttl }
}

fn error(status: u16, body: &Value) -> ApiError {
    let body = Box::new(parse_error(body.to_string().as_bytes()));
    ApiError::Status { status, body, request_id: None, retry_after: None }
}

#[test]
fn the_interval_is_half_the_ttl_within_bounds() {
    // LEASE-3.
    for (ttl, want) in [(1.0, 1), (2.0, 1), (20.0, 10), (300.0, 30)] {
        let mut state = LeaseState::new(SECOND);
        let next = state.on_success(reply("a", ttl, "active", true), SECOND);
        assert_eq!(next, Next::Wait(SECOND * want), "{ttl}");
    }
    let mut state = LeaseState::new(SECOND);
    assert_eq!(state.interval(), SECOND * 30);
    state.on_success(reply("a", 20.0, "active", true), SECOND);
    let next = state.on_success(reply("b", 0.0, "active", true), SECOND);
    assert_eq!(next, Next::Wait(SECOND * 10), "0 keeps the old values");
}

#[test]
fn the_chain_is_exact_across_transient_failures() {
    // LEASE-2.
    let mut state = LeaseState::new(SECOND);
    assert_eq!(state.expected(), "NO_HEARTBEAT");
    state.on_failure(&error(503, &Value::Null), SECOND);
    assert_eq!(state.expected(), "NO_HEARTBEAT");
    state.on_success(reply("2026-01-01T00:00:00+02:00", 20.0, "active", true), SECOND);
    for status in [408, 409, 429, 500] {
        let next = state.on_failure(&error(status, &Value::Null), SECOND * 2);
        assert!(matches!(next, Next::Wait(_)), "{status}");
        assert_eq!(state.expected(), "2026-01-01T00:00:00+02:00");
    }
}

#[test]
fn a_lease_without_success_for_longer_than_its_ttl_is_lost() {
    // LEASE-8: strict, counted from the start; LEASE-5.
    let fail = || error(500, &Value::Null);
    let mut state = LeaseState::new(SECOND);
    assert_eq!(state.on_failure(&fail(), SECOND * 91), Next::Wait(SECOND));
    assert_eq!(state.on_failure(&fail(), SECOND * 92), Next::End(LeaseEnd::AssumedLost));
    let mut state = LeaseState::new(SECOND);
    state.on_success(reply("a", 40.0, "active", true), SECOND * 10);
    assert_eq!(state.on_failure(&fail(), SECOND * 10), Next::Wait(SECOND * 10), "a quarter");
    assert_eq!(state.on_failure(&fail(), SECOND * 46), Next::Wait(SECOND));
    assert_eq!(state.on_failure(&fail(), SECOND * 51), Next::End(LeaseEnd::AssumedLost));
}

#[test]
fn final_answers_end_the_lease_each_in_its_way() {
    // LEASE-6, LEASE-7, LEASE-9.
    for status in [400, 401, 403, 404] {
        let next = LeaseState::new(SECOND).on_failure(&error(status, &Value::Null), SECOND);
        assert_eq!(next, Next::End(LeaseEnd::Rejected), "{status}");
    }
    let next = LeaseState::new(SECOND).on_failure(&error(412, &Value::Null), SECOND);
    assert_eq!(next, Next::End(LeaseEnd::Lost));
    for (state, extended, ends) in [
        ("stopped", true, true),
        ("active", false, true),
        ("stopping", true, false),
        ("queued", true, false),
        ("starting", true, false),
    ] {
        let next = LeaseState::new(SECOND).on_success(reply("a", 9.0, state, extended), SECOND);
        assert_eq!(next == Next::End(LeaseEnd::Stopped), ends, "{state} {extended}");
    }
}

#[test]
fn our_own_lost_answer_is_recognised() {
    // RACE-2.
    let refusal = |state: &str| {
        let current = json!({"state":state,"ttl_seconds":20,"last_heartbeat":"b"});
        error(412, &json!({"error":{"details":{"current_state":current}}}))
    };
    let held = || {
        let mut state = LeaseState::new(SECOND);
        state.on_success(reply("a", 20.0, "active", true), SECOND);
        state
    };
    let lost = Next::End(LeaseEnd::Lost);
    assert_eq!(held().on_failure(&refusal("active"), SECOND * 2), lost, "nothing was ambiguous");
    let mut state = held();
    state.on_failure(&ApiError::Timeout { after: SECOND }, SECOND * 2);
    assert_eq!(state.on_failure(&refusal("active"), SECOND * 3), Next::Wait(SECOND * 10));
    assert_eq!(state.expected(), "b");
    let mut state = held();
    state.on_failure(&ApiError::Timeout { after: SECOND }, SECOND * 2);
    assert_eq!(state.on_failure(&refusal("queued"), SECOND * 3), lost, "not active");
    let mut state = LeaseState::new(SECOND);
    state.on_failure(&ApiError::Timeout { after: SECOND }, SECOND * 2);
    assert_eq!(state.on_failure(&refusal("active"), SECOND * 3), lost, "never held");
}

#[tokio::test(start_paused = true)]
async fn heartbeats_do_not_wait_for_the_session() {
    // LEASE-1, LEASE-2, API-3: the session fetch hangs until a beat was seen; values with `+`.
    let world = World::new();
    world.plane.state().ttl = 20.0;
    let late = Answer::Late(SECOND * 25, Box::new(Answer::Json(200, json!({"status":"running"}))));
    world.plane.state().sessions.push_back(late);
    assert_eq!(world.serve_to_idle().await, ItemEnd::Idle);
    let beats = world.plane.seen("/heartbeat");
    let queries: Vec<&str> = beats.iter().take(3).map(|beat| beat.query.as_str()).collect();
    let name = "expected_last_heartbeat=";
    assert_eq!(
        queries,
        [format!("{name}NO_HEARTBEAT"), format!("{name}hb%2B1"), format!("{name}hb%2B2")]
    );
    assert!(beats.iter().all(|beat| beat.body.is_empty() && beat.header("content-length") == "0"));
    assert_eq!(beats[1].at - beats[0].at, SECOND * 10);
    assert_eq!(beats[0].header("authorization"), "Bearer sk-key");
}

#[tokio::test(start_paused = true)]
async fn nothing_runs_before_the_first_heartbeat() {
    // RACE-1.
    let world = World::new();
    world.plane.state().history.push(call("t"));
    let late = Answer::Late(SECOND * 7, Box::new(beat("a", 300.0, "active", true)));
    world.plane.state().beats.push_back(late);
    world.serve_to_idle().await;
    let post = world.plane.seen("/events").into_iter().find(|seen| seen.method == "POST");
    assert!(post.expect("a post").at >= SECOND * 7);
}

#[tokio::test(start_paused = true)]
async fn a_hung_heartbeat_is_cut_off_at_the_interval() {
    // LEASE-4, LEASE-5.
    let world = World::new();
    world.plane.state().beats.extend([beat("a", 20.0, "active", true), Answer::Hang]);
    let item = world.serve();
    world.plane.until("a third beat", |plane| plane.seen("/heartbeat").len() == 3).await;
    let beats = world.plane.seen("/heartbeat");
    assert_eq!(beats[1].at - beats[0].at, SECOND * 10);
    // 10 s hung; then no success for the whole TTL of 20 s, so the pause is the shortest.
    assert_eq!(beats[2].at - beats[1].at, SECOND * 11);
    world.shutdown.cancel();
    assert_eq!(item.await.expect("an end"), ItemEnd::Cancelled);
}

/// What happens to a call in flight when the next beat is answered with this.
async fn with_call_in_flight(answers: Vec<Answer>) -> (World, ItemEnd) {
    let world = World::new();
    world.plane.state().beats.push_back(beat("a", 20.0, "active", true));
    world.plane.state().beats.extend(answers);
    // The second beat is after 10 s.
    world.plane.state().history.push(call_with("t", json!({"take_ms": 15_000})));
    world.plane.state().history.push(call("queued"));
    let how = world.serve().await.expect("an end");
    (world, how)
}

#[tokio::test(start_paused = true)]
async fn a_stopping_item_finishes_its_call_and_starts_nothing() {
    // LEASE-14 row 2; beats go on meanwhile, LEASE-11.
    let stopping = || beat("b", 4.0, "stopping", true);
    let (world, how) = with_call_in_flight(vec![stopping(), stopping(), stopping()]).await;
    assert_eq!(how, ItemEnd::StopRequested);
    assert_eq!(world.plane.posted_ids(), ["t"]);
    assert_eq!(world.plane.posted_text(0), "out");
    assert_eq!(world.plane.seen("/stop").len(), 1);
    assert!(world.plane.seen("/heartbeat").len() >= 4);
}

#[tokio::test(start_paused = true)]
async fn a_stopping_item_whose_call_takes_too_long_is_killed_and_says_so() {
    // LEASE-14 row 2, SHUT-2: the drain limit.
    let world = World::new();
    world
        .plane
        .state()
        .beats
        .extend([beat("a", 20.0, "active", true), beat("b", 20.0, "stopping", true)]);
    world.plane.state().history.push(call_with("t", json!({"take_ms": 120_000})));
    assert_eq!(world.serve().await.expect("an end"), ItemEnd::StopRequested);
    assert_eq!(world.host.noted("killed").len(), 1);
    assert!(world.plane.posted_text(0).starts_with("bash: the worker was shut down"));
    let stop = &world.plane.seen("/stop")[0];
    assert_eq!(stop.at.as_secs(), 40, "10 s to the second beat and 30 s of draining");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ends_kills_the_call_and_posts_nothing() {
    // LEASE-14 rows 3 to 5, RACE-4; LEASE-12, LEASE-13: stop or no stop.
    #[rustfmt::skip]
    let cases = [
        (beat("b", 20.0, "stopped", true), LeaseEnd::Stopped,  1),
        (beat("b", 20.0, "active", false), LeaseEnd::Stopped,  1),
        (refused_beat(Value::Null),        LeaseEnd::Lost,     0),
        (status(401),                      LeaseEnd::Rejected, 1),
        (status(404),                      LeaseEnd::Rejected, 1),
    ];
    for (answer, end, stops) in cases {
        let (world, how) = with_call_in_flight(vec![answer]).await;
        assert_eq!(how, ItemEnd::Lease(end));
        assert_eq!(world.plane.posted_ids(), [""; 0], "{end:?}");
        assert_eq!(world.host.noted("killed"), ["killed t"], "{end:?}");
        assert_eq!(world.plane.seen("/stop").len(), stops, "{end:?}");
        assert_eq!(world.plane.seen("/heartbeat").len(), 2, "{end:?}: no further beats");
        assert_eq!(world.host.noted("run"), ["run t"], "{end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_cannot_be_renewed_is_assumed_lost() {
    // LEASE-8, LEASE-14 row 4.
    let world = World::new();
    world.plane.state().beats.push_back(beat("a", 20.0, "active", true));
    world.plane.state().beats.extend(vec![status(503); 40]);
    world.plane.state().history.push(call_with("t", json!({"take_ms": 100_000})));
    let how = world.serve().await.expect("an end");
    assert_eq!(how, ItemEnd::Lease(LeaseEnd::AssumedLost));
    assert!(world.plane.posted().is_empty());
    assert!(world.plane.seen("/stop").is_empty());
}

#[tokio::test(start_paused = true)]
async fn after_a_suspend_nothing_is_started() {
    // RACE-20: the monotonic clock stood still, the lease did not.
    let world = World::new();
    let item = world.serve();
    world.plane.until("attached", |plane| plane.seen("/events").len() == 1).await;
    tokio::time::sleep(SECOND).await;
    world.time.suspend(SECOND * 301);
    world.plane.emit(call("t"));
    assert_eq!(item.await.expect("an end"), ItemEnd::Lease(LeaseEnd::AssumedLost));
    assert!(world.host.noted("run").is_empty());
    assert!(world.plane.seen("/stop").is_empty());
}

#[tokio::test(start_paused = true)]
async fn every_way_out_stops_exactly_once() {
    // LEASE-12, LEASE-18, LEASE-19; the stop has a body, the item's credential and no 409 trouble.
    let world = World::new();
    world.plane.state().stops.push_back(status(409));
    assert_eq!(world.serve_to_idle().await, ItemEnd::Idle);
    let stops = world.plane.seen("/stop");
    assert_eq!(stops.len(), 1);
    assert_eq!(stops[0].body, r#"{"force":true}"#);
    let beats = world.plane.seen("/heartbeat");
    assert!(beats.last().is_some_and(|beat| beat.at <= stops[0].at), "beats end first");

    let world = World::new();
    world.plane.state().session_status = "terminated";
    assert_eq!(world.serve().await.expect("an end"), ItemEnd::SessionEnded);
    assert_eq!(world.plane.seen("/stop").len(), 1);
    assert!(world.host.noted("open").is_empty(), "LEASE-18");

    let world = World::new();
    world.plane.state().sessions.push_back(status(404));
    assert_eq!(world.serve().await.expect("an end"), ItemEnd::Failed);
    assert_eq!(world.plane.seen("/stop").len(), 1);

    let world = World::new();
    world.plane.state().opens.push_back(status(403));
    assert_eq!(world.serve().await.expect("an end"), ItemEnd::StreamRefused, "RUN-11");
    assert_eq!(world.plane.seen("/stop").len(), 1);
    assert_eq!(world.host.noted("close"), ["close StreamRefused"]);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_go_on_through_a_long_opening_and_teardown() {
    // LEASE-1, LEASE-11, RACE-3.
    let world = World::new();
    world.plane.state().ttl = 20.0;
    *world.host.open_takes.lock().expect("not poisoned") = SECOND * 100;
    *world.host.close_takes.lock().expect("not poisoned") = SECOND * 50;
    let item = world.serve();
    world.plane.until("attached", |plane| !plane.seen("/stream").is_empty()).await;
    assert_eq!(world.plane.seen("/heartbeat").len(), 11);
    world.plane.emit(end_turn());
    assert_eq!(item.await.expect("an end"), ItemEnd::Idle);
    let beats = world.plane.seen("/heartbeat");
    assert!(beats.windows(2).all(|pair| pair[1].at - pair[0].at <= SECOND * 11));
    let stop = world.plane.seen("/stop")[0].at;
    assert!(stop - beats.last().expect("a beat").at <= SECOND * 11);
}

#[tokio::test(start_paused = true)]
async fn a_lease_lost_while_the_tools_are_opened_ends_the_item_at_once() {
    let world = World::new();
    world.plane.state().beats.extend([beat("a", 20.0, "active", true), refused_beat(Value::Null)]);
    *world.host.open_takes.lock().expect("not poisoned") = SECOND * 1000;
    assert_eq!(world.serve().await.expect("an end"), ItemEnd::Lease(LeaseEnd::Lost));
    assert!(world.plane.seen("/stop").is_empty());
}
