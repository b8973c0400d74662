//! Other ways to drive the queue: one item that was claimed elsewhere (WRUN), items that are handed over
//! (ONWORK), polling on a trigger (HOOK).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};

use super::super::*;
use super::world::*;

const SECOND: Duration = Duration::from_secs(1);

fn request(secret: Option<&str>) -> ItemRequest {
    let secret = secret.map(SecretString::from);
    ItemRequest { work: "work_1".to_owned(), session: "sesn_1".to_owned(), secret }
}

fn secret() -> String {
    use base64::Engine as _;
    let json = r#"{"sessions_token":"sk-token"}"#;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json)
}

#[tokio::test(start_paused = true)]
async fn one_item_is_served_without_a_poll_or_an_ack_and_then_stopped() {
    // WRUN-2: the heartbeat first. AUTH-4, AUTH-5: the token speaks for all of it, without a key.
    let mut world = World::new();
    Arc::get_mut(&mut world.shared).expect("alone").key = None;
    world.plane.state().history.push(call("t"));
    let request = request(Some(&secret()));
    assert!(request.has_token());
    let item = tokio::spawn(single::run(Arc::clone(&world.shared), request, world.watch.clone()));
    world.plane.until("a result", |plane| !plane.posted().is_empty()).await;
    world.plane.emit(end_turn());
    assert_eq!(item.await.expect("an end"), ItemEnd::Idle);
    let seen = world.plane.state().seen.clone();
    // LEASE-1: together with the first look at the session, and before anything else.
    let beat = &world.plane.seen("/work/work_1/heartbeat")[0];
    assert_eq!(beat.query, "expected_last_heartbeat=NO_HEARTBEAT");
    assert!(beat.at.is_zero() && seen[..2].iter().any(|seen| seen.path == beat.path));
    assert!(seen.iter().all(|seen| seen.header("authorization") == "Bearer sk-token"));
    assert!(world.plane.seen("/poll").is_empty() && world.plane.seen("/ack").is_empty());
    let stops = world.plane.seen("/stop");
    assert_eq!((stops.len(), stops[0].body.as_str()), (1, r#"{"force":true}"#));
    assert_eq!(world.host.noted("Claimed").len() + world.host.noted("Acked").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_item_that_somebody_else_holds_is_neither_run_nor_stopped() {
    // WRUN-4: 412 at the first beat.
    let world = World::new();
    world.plane.state().history.push(call("t"));
    world.plane.state().beats.push_back(refused_beat(json!({"state":"active"})));
    let how = single::run(Arc::clone(&world.shared), request(None), world.watch.clone()).await;
    assert_eq!(how, ItemEnd::Lease(LeaseEnd::Lost));
    assert!(world.plane.seen("/stop").is_empty() && world.plane.posted().is_empty());
    assert!(world.host.noted("run").is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_for_an_item_that_nothing_can_speak_for() {
    // AUTH-4.
    let mut world = World::new();
    Arc::get_mut(&mut world.shared).expect("alone").key = None;
    for secret in [None, Some("%%%")] {
        let request = request(secret);
        assert!(!request.has_token());
        let how = single::run(Arc::clone(&world.shared), request, world.watch.clone()).await;
        assert_eq!(how, ItemEnd::NoCredential);
    }
    let refused = poll::run(Arc::clone(&world.shared), world.watch.clone()).await;
    assert!(matches!(refused.expect_err("no key").source, ApiError::NoKey));
    assert!(world.plane.state().seen.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_the_item_and_hands_it_back() {
    // WRUN-3, SHUT-2.
    let world = World::new();
    let run = single::run(Arc::clone(&world.shared), request(None), world.watch.clone());
    let item = tokio::spawn(run);
    world.plane.until("a stream", |plane| !plane.seen("/stream").is_empty()).await;
    world.shutdown.drain();
    assert_eq!(item.await.expect("an end"), ItemEnd::Drained);
    assert_eq!(world.plane.seen("/stop").len(), 1);
}

/// A script in memory.
struct Script {
    takes: Duration,
    end: HandOverEnd,
    seen: Mutex<Vec<(String, Option<String>)>>,
    /// When it was asked to end.
    asked: Mutex<bool>,
}

impl Handler for Script {
    fn hand_over(
        &self,
        work: HandedOver,
        mut shutdown: ShutdownWatch,
    ) -> BoxFuture<'_, HandOverEnd> {
        Box::pin(async move {
            let secret = work.secret.map(|secret| secret.expose_secret().to_owned());
            let body = work.body.expose_secret().to_owned();
            self.seen.lock().expect("not poisoned").push((body, secret));
            tokio::select! {
                () = tokio::time::sleep(self.takes) => {}
                () = shutdown.reached(Level::Drain) => *self.asked.lock().expect("sound") = true,
            }
            self.end
        })
    }
}

fn handing_over(takes: Duration, end: HandOverEnd) -> (World, Arc<Script>) {
    let mut world = World::new();
    let (seen, asked) = (Mutex::default(), Mutex::default());
    let script = Arc::new(Script { takes, end, seen, asked });
    let shared = Arc::get_mut(&mut world.shared).expect("alone");
    shared.drive.handler = Some(Arc::clone(&script) as Arc<dyn Handler>);
    (world, script)
}

#[tokio::test(start_paused = true)]
async fn a_script_gets_the_item_as_it_was_sent_and_the_poller_stops_without_force() {
    // ONWORK-3, ONWORK-5, ONWORK-6: no heartbeat, no session, no event is asked for.
    let (world, script) = handing_over(SECOND * 5, HandOverEnd::Ended);
    let body = format!(
        "\n {{ \"type\":\"work\", \"id\":\"work_1\",\"data\":{{\"type\":\"session\",\"id\":\"sesn_1\"}},\
         \"secret\":\"{}\", \"started_at\":null, \"new\" : [1.0] }}\n",
        secret()
    );
    world.plane.state().polls.push_back(Answer::Text(200, body.clone()));
    world.plane.state().stops.push_back(status(409));
    let _end = world.poll();
    world.plane.until("a stop", |plane| !plane.seen("/stop").is_empty()).await;
    assert_eq!(*script.seen.lock().expect("sound"), [(body, Some(secret()))]);
    let stop = &world.plane.seen("/stop")[0];
    assert_eq!((stop.body.as_str(), stop.header("authorization")), ("{}", "Bearer sk-key"));
    assert_eq!(stop.at, SECOND * 5, "not before the script has ended");
    assert_eq!(world.plane.seen("/ack").len(), 1);
    assert!(world.plane.seen("/heartbeat").is_empty() && world.plane.seen("sesn_1").is_empty());
    tokio::time::sleep(SECOND * 5).await;
    assert!(world.plane.seen("/poll").len() > 1, "ONWORK-7: it goes on");
}

#[tokio::test(start_paused = true)]
async fn as_many_scripts_run_as_there_are_slots() {
    // ONWORK-1.
    let (world, script) = handing_over(SECOND * 60, HandOverEnd::Ended);
    world.plane.state().polls.extend(vec![Answer::Json(200, work("session")); 4]);
    let _end = world.poll();
    tokio::time::sleep(SECOND * 30).await;
    assert_eq!(script.seen.lock().expect("sound").len(), 2);
    tokio::time::sleep(SECOND * 60).await;
    assert_eq!(script.seen.lock().expect("sound").len(), 4);
}

#[tokio::test(start_paused = true)]
async fn an_item_that_is_no_session_is_stopped_and_no_script_sees_it() {
    // ONWORK-1.
    let (world, script) = handing_over(SECOND, HandOverEnd::Ended);
    world.plane.state().polls.push_back(Answer::Json(200, work("healthcheck")));
    let _end = world.poll();
    world.plane.until("a stop", |plane| !plane.seen("/stop").is_empty()).await;
    assert_eq!(world.plane.seen("/stop")[0].body, r#"{"force":true}"#);
    assert!(script.seen.lock().expect("sound").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_could_hit_somebody_elses_item_is_not_sent() {
    // RACE-22; ONWORK-5: a detached script; ONWORK-8: one that was not started.
    #[rustfmt::skip]
    let cases = [
        (SECOND * 89, HandOverEnd::Ended,      1),
        (SECOND * 91, HandOverEnd::Ended,      0),
        (SECOND,      HandOverEnd::Detached,   0),
        (SECOND,      HandOverEnd::NotStarted, 0),
    ];
    for (takes, end, stops) in cases {
        let (world, _script) = handing_over(takes, end);
        world.plane.state().polls.push_back(Answer::Json(200, work("session")));
        let poller = world.poll();
        tokio::time::sleep(takes + SECOND * 10).await;
        assert_eq!(world.plane.seen("/stop").len(), stops, "{takes:?} {end:?}");
        assert_eq!(world.host.noted("Ended").len(), 1);
        world.shutdown.drain();
        poller.await.expect("an end").expect("no refusal");
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_reaches_the_script_and_the_item_is_stopped_after_it() {
    // ONWORK-9.
    let (world, script) = handing_over(SECOND * 60, HandOverEnd::Ended);
    world.plane.state().polls.push_back(Answer::Json(200, work("session")));
    let end = world.poll();
    let script_runs = || !script.seen.lock().expect("sound").is_empty();
    world.plane.until("the script runs", |_| script_runs()).await;
    world.shutdown.drain();
    assert_eq!(end.await.expect("an end").expect("no refusal"), QueueEnd::Shutdown);
    assert!(*script.asked.lock().expect("sound"));
    assert_eq!(world.plane.seen("/stop").len(), 1);
}

fn triggered(safety_poll: Duration) -> (World, Arc<Trigger>) {
    let drain = |settings: &mut QueueSettings| {
        settings.block_ms = None;
        settings.reclaim_older_than_ms = Some(2000);
    };
    let mut world = World::with(drain, Arc::new(MemoryJournals));
    let trigger = Arc::new(Trigger::new(safety_poll));
    Arc::get_mut(&mut world.shared).expect("alone").drive.trigger = Some(Arc::clone(&trigger));
    // Answered at once: nothing is held.
    world.plane.state().polls.extend(vec![Answer::Json(200, Value::Null); 40]);
    (world, trigger)
}

fn polls_at(world: &World) -> Vec<u64> {
    world.plane.seen("/poll").iter().map(|seen| seen.at.as_secs()).collect()
}

#[tokio::test(start_paused = true)]
async fn without_a_trigger_only_the_safety_poll_asks() {
    // HOOK-10; POLL-11: neither held nor left to whoever polled before.
    let (world, _trigger) = triggered(SECOND * 300);
    let _end = world.poll();
    tokio::time::sleep(SECOND * 1000).await;
    assert_eq!(polls_at(&world), [0, 300, 600, 900]);
    assert_eq!(world.plane.seen("/poll")[0].query, "reclaim_older_than_ms=2000");
}

#[tokio::test(start_paused = true)]
async fn a_trigger_drains_the_queue_and_many_are_one() {
    // HOOK-8.
    let (world, trigger) = triggered(SECOND * 300);
    let _end = world.poll();
    tokio::time::sleep(SECOND * 10).await;
    {
        let mut state = world.plane.state();
        state.polls.push_front(Answer::Json(200, work("healthcheck")));
        state.polls.push_front(Answer::Json(200, work("healthcheck")));
    }
    for _ in 0..100 {
        trigger.fire();
    }
    tokio::time::sleep(SECOND * 60).await;
    assert_eq!(polls_at(&world), [0, 10, 10, 10], "until it is empty, and no more");
}

#[tokio::test(start_paused = true)]
async fn a_trigger_that_comes_before_its_item_is_followed_up_and_one_in_between_is_not_lost() {
    // HOOK-8.
    let (world, trigger) = triggered(SECOND * 300);
    let _end = world.poll();
    tokio::time::sleep(SECOND * 10).await;
    trigger.fire();
    tokio::time::sleep(SECOND * 60).await;
    assert_eq!(polls_at(&world), [0, 10, 11, 14]);
    // While a poll is under way.
    let late = Answer::Late(SECOND * 5, Box::new(Answer::Json(200, Value::Null)));
    world.plane.state().polls.push_front(late);
    trigger.fire();
    tokio::time::sleep(SECOND).await;
    trigger.fire();
    tokio::time::sleep(SECOND * 60).await;
    assert_eq!(polls_at(&world)[4..], [70, 75, 76, 79]);
}

#[tokio::test(start_paused = true)]
async fn failed_polls_are_repeated_and_shutdown_ends_a_rest_at_once() {
    // HOOK-8, POLL-4, POLL-5, SHUT-2.
    let (world, _trigger) = triggered(SECOND * 300);
    world.plane.state().polls.push_front(status(503));
    let end = world.poll();
    tokio::time::sleep(SECOND * 100).await;
    assert_eq!(polls_at(&world), [0, 2]);
    world.shutdown.drain();
    assert_eq!(end.await.expect("an end").expect("no refusal"), QueueEnd::Shutdown);
    let (world, _trigger) = triggered(SECOND * 300);
    world.plane.state().polls.push_front(status(401));
    assert!(world.poll().await.expect("an end").is_err());
}
