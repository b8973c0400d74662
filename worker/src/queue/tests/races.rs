//! Races between a worker, the control plane and other workers, each played out on the test clock.
//! Those that one rule of the runner, the gate or the lease decides are tested beside that rule.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::lease::LeaseEnd;
use super::super::shutdown::Level;
use super::super::*;
use super::world::*;

const SECOND: Duration = Duration::from_secs(1);

fn message() -> Value {
    json!({"type":"user.message","content":[{"type":"text","text":"go on"}]})
}

fn late(by: Duration, answer: Answer) -> Answer {
    Answer::Late(by, Box::new(answer))
}

#[tokio::test(start_paused = true)]
async fn of_two_that_have_acked_the_one_refused_at_its_first_heartbeat_does_nothing() {
    // RACE-1: the other holder's heartbeat came first.
    let world = World::new();
    let other = json!({"state":"active","ttl_seconds":300,"last_heartbeat":"theirs"});
    world.plane.state().beats.push_back(late(SECOND, refused_beat(other)));
    world.plane.state().history.push(call("t"));
    let how = world.serve().await.expect("an end");
    assert_eq!(how, ItemEnd::Lease(LeaseEnd::Lost));
    assert!(world.host.noted("run").is_empty() && world.plane.posted().is_empty());
    assert!(world.plane.seen("/stop").is_empty(), "it is the other's item");
    assert_eq!(world.plane.seen("/heartbeat").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_was_applied_without_an_answer_does_not_cost_the_session() {
    // RACE-2: the control plane has the value of the lost answer, and refuses the one before.
    let ours = json!({"state":"active","ttl_seconds":20,"last_heartbeat":"applied"});
    let world = World::new();
    world.plane.state().beats.extend([
        beat("a", 20.0, "active", true),
        Answer::Break,
        refused_beat(ours.clone()),
    ]);
    world.plane.state().history.push(call_with("t", json!({"take_ms": 15_000})));
    assert_eq!(world.serve_to_idle().await, ItemEnd::Idle);
    assert_eq!(world.plane.posted_ids(), ["t"]);
    let beats = world.plane.seen("/heartbeat");
    let said = |at: usize| beats[at].query.split_once('=').expect("a value").1;
    assert_eq!([said(1), said(2), said(3)], ["a", "a", "applied"]);

    // Control: without a lost answer the same refusal is somebody else's heartbeat.
    let world = World::new();
    world.plane.state().beats.extend([beat("a", 20.0, "active", true), refused_beat(ours)]);
    assert_eq!(world.serve().await.expect("an end"), ItemEnd::Lease(LeaseEnd::Lost));
}

#[tokio::test(start_paused = true)]
async fn a_verdict_that_comes_twice_or_changes_its_mind_runs_the_call_at_most_once() {
    // RACE-8, PERM-5, INV-9: live, across a reconnect, and after the call was given out.
    #[rustfmt::skip]
    let cases: [(&[&str], &[&str]); 4] = [
        (&["allow", "allow"],        &["run t"]),
        (&["deny", "allow"],         &[]),
        (&["allow", "deny"],         &["run t"]), // it runs already when the second one comes
        (&["perhaps", "allow"],      &[]),
    ];
    for (verdicts, runs) in cases {
        let world = World::new();
        let mut ask = call("t");
        ask["evaluated_permission"] = json!("ask");
        world.plane.state().history.push(ask);
        let item = world.serve();
        world.plane.until("attached", |plane| plane.seen("/events").len() == 1).await;
        for verdict in verdicts {
            world.plane.emit(confirmation("t", verdict));
            tokio::time::sleep(SECOND).await;
        }
        world.plane.end_streams();
        world.plane.until("a new stream", |plane| plane.seen("/stream").len() == 2).await;
        tokio::time::sleep(SECOND * 5).await;
        assert_eq!(world.host.noted("run"), runs, "{verdicts:?}");
        assert_eq!(world.plane.posted_ids().len(), runs.len(), "{verdicts:?}");
        world.plane.emit(json!({"type":"session.deleted"}));
        item.await.expect("an end");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_that_nobody_heard_counts_only_when_the_history_was_read() {
    // RACE-10, IDLE-6, RUN-6.
    for (list_fails, ends) in [(false, true), (true, false)] {
        let world = World::new();
        let item = world.serve();
        world.plane.until("attached", |plane| plane.seen("/events").len() == 1).await;
        tokio::time::sleep(SECOND).await;
        world.plane.state().opens.push_back(status(503));
        if list_fails {
            world.plane.state().pages.extend(vec![status(404); 50]);
        }
        world.plane.end_streams();
        // The turn ends while there is no stream.
        world.plane.state().history.push(end_turn());
        tokio::time::sleep(SECOND * 80).await;
        assert_eq!(item.is_finished(), ends, "the list fails: {list_fails}");
        world.shutdown.cancel();
        item.await.expect("an end");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_after_the_idle_time_is_left_to_the_next_item() {
    // RACE-13: the stop is posted all the same; what came too late is served when it is claimed.
    let world = World::new();
    *world.host.close_takes.lock().expect("not poisoned") = SECOND * 5;
    world.plane.state().history.push(end_turn());
    let item = world.serve();
    world.plane.until("the teardown", |_| !world.host.noted("close").is_empty()).await;
    world.plane.emit(message());
    world.plane.emit(call("late"));
    assert_eq!(item.await.expect("an end"), ItemEnd::Idle);
    assert_eq!(world.plane.seen("/stop").len(), 1);
    assert!(world.host.noted("run").is_empty() && world.plane.posted().is_empty());

    assert_eq!(world.serve_to_idle().await, ItemEnd::Idle);
    assert_eq!(world.plane.posted_ids(), ["late"], "once, by the item after it");
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_on_its_way_at_the_end_changes_nothing() {
    // RACE-14, LEASE-10, LEASE-12: it says stopping, stopped or lost when it is too late for that.
    for answer in [
        beat("b", 4.0, "stopping", true),
        beat("b", 4.0, "stopped", false),
        refused_beat(Value::Null),
        Answer::Hang,
    ] {
        let world = World::new();
        world.plane.state().beats.push_back(beat("a", 4.0, "active", true));
        world.plane.state().beats.push_back(late(SECOND, answer));
        world.plane.state().stops.push_back(status(409));
        let item = world.serve();
        world.plane.until("a second beat", |plane| plane.seen("/heartbeat").len() == 2).await;
        world.plane.emit(json!({"type":"session.status_terminated"}));
        let before = tokio::time::Instant::now();
        assert_eq!(item.await.expect("an end"), ItemEnd::SessionEnded, "the first reason");
        assert!(before.elapsed() < SECOND, "nobody waits for it");
        assert_eq!(world.plane.seen("/stop").len(), 1, "409 is fine");
        assert_eq!(world.plane.seen("/heartbeat").len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_heartbeat_says_during_the_teardown_decides_about_the_stop_only() {
    // RACE-14, LEASE-10, LEASE-11, LEASE-13.
    for (answer, how, stops) in [
        (beat("b", 4.0, "stopping", true), ItemEnd::SessionEnded, 1),
        (beat("b", 4.0, "stopped", true), ItemEnd::SessionEnded, 1),
        (refused_beat(Value::Null), ItemEnd::Lease(LeaseEnd::Lost), 0),
    ] {
        let world = World::new();
        *world.host.close_takes.lock().expect("not poisoned") = SECOND * 10;
        world.plane.state().beats.extend([beat("a", 4.0, "active", true), answer]);
        let item = world.serve();
        world.plane.until("attached", |plane| !plane.seen("/stream").is_empty()).await;
        world.plane.emit(json!({"type":"session.status_terminated"}));
        assert_eq!(item.await.expect("an end"), how);
        assert_eq!(world.host.noted("close"), ["close SessionEnded"], "{how:?}");
        assert_eq!(world.plane.seen("/stop").len(), stops, "{how:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_reason_that_ends_an_item_stands() {
    // LEASE-10: a call that does not end at once gives a second reason time to appear.
    let stuck = || call_with("t", json!({"take_ms": 4000, "stuck": true}));
    let world = World::new();
    world.plane.state().beats.extend([
        beat("a", 2.0, "active", true),
        beat("b", 2.0, "stopped", true),
        refused_beat(Value::Null),
    ]);
    world.plane.state().history.push(stuck());
    let item = world.serve();
    tokio::time::sleep(SECOND * 2).await;
    world.shutdown.cancel();
    assert_eq!(item.await.expect("an end"), ItemEnd::Lease(LeaseEnd::Stopped));
    assert_eq!(world.plane.seen("/stop").len(), 1);

    let world = World::new();
    world.plane.state().ttl = 2.0;
    world.plane.state().history.push(stuck());
    let item = world.serve();
    world.plane.until("it runs", |_| !world.host.noted("run").is_empty()).await;
    world.plane.emit(json!({"type":"session.status_terminated"}));
    tokio::time::sleep(SECOND).await;
    world.plane.state().beats.push_back(beat("z", 2.0, "stopped", true));
    assert_eq!(item.await.expect("an end"), ItemEnd::SessionEnded);
    assert_eq!(world.plane.seen("/stop").len(), 1);
}

/// A point in the life of an item at which a signal arrives.
struct Point {
    name: &'static str,
    /// Makes the item stay there for a while.
    prepare: fn(&World),
    /// Whether it is there.
    reached: fn(&World) -> bool,
    /// Whether the item was acked by then, or will be.
    acked: bool,
    /// Whether the turn ends after the post, or the item stays.
    idles: bool,
    /// Results that are on the control plane in the end, if the signal leaves time for them.
    posts: usize,
}

const POINTS: [Point; 9] = [
    Point {
        name: "between poll and ack",
        prepare: |world| {
            let item = Answer::Json(200, work("session"));
            world.plane.state().polls = [late(SECOND, item)].into();
        },
        reached: |world| !world.plane.seen("/poll").is_empty(),
        acked: false,
        idles: false,
        posts: 0,
    },
    Point {
        name: "during the ack",
        prepare: |world| world.plane.state().acks.push_back(late(SECOND, ok())),
        reached: |world| !world.plane.seen("/ack").is_empty(),
        acked: true,
        idles: false,
        posts: 0,
    },
    Point {
        name: "before the first heartbeat is answered",
        prepare: |world| {
            let first = late(SECOND * 5, beat("a", 20.0, "active", true));
            world.plane.state().beats.push_back(first);
        },
        reached: |world| !world.plane.seen("/heartbeat").is_empty(),
        acked: true,
        idles: false,
        posts: 0,
    },
    Point {
        name: "while the session is fetched",
        prepare: |world| world.plane.state().sessions.push_back(Answer::Hang),
        reached: |world| !world.plane.seen("/sesn_1").is_empty(),
        acked: true,
        idles: false,
        posts: 0,
    },
    Point {
        name: "while the jail is made",
        prepare: |world| *world.host.open_takes.lock().expect("not poisoned") = SECOND * 50,
        reached: |world| !world.host.noted("open").is_empty(),
        acked: true,
        idles: false,
        posts: 0,
    },
    Point {
        name: "while the stream is opened",
        prepare: |world| world.plane.state().opens.push_back(Answer::Hang),
        reached: |world| !world.plane.seen("/stream").is_empty(),
        acked: true,
        idles: false,
        posts: 0,
    },
    Point {
        name: "between the end of a call and its post",
        prepare: |world| world.plane.state().posts.push_back(late(SECOND * 3, ok())),
        reached: |world| !world.plane.posted().is_empty(),
        acked: true,
        idles: false,
        posts: 1,
    },
    Point {
        name: "between the last post and the stop",
        prepare: |world| *world.host.close_takes.lock().expect("not poisoned") = SECOND * 20,
        reached: |world| !world.host.noted("close").is_empty(),
        acked: true,
        idles: true,
        posts: 1,
    },
    Point {
        name: "during the stop",
        prepare: |world| {
            let stopped = Answer::Text(204, String::new());
            world.plane.state().stops.push_back(late(SECOND, stopped));
        },
        reached: |world| !world.plane.seen("/stop").is_empty(),
        acked: true,
        idles: true,
        posts: 1,
    },
];

#[tokio::test(start_paused = true)]
async fn a_signal_at_any_point_leaves_no_item_that_is_neither_stopped_nor_held() {
    // RACE-15, SHUT-2, SHUT-3, SHUT-4, LEASE-12.
    for point in POINTS {
        for level in [Level::Drain, Level::Cancel] {
            let world = World::new();
            let what = format!("{} at {level:?}", point.name);
            world.plane.state().polls.push_back(Answer::Json(200, work("session")));
            (point.prepare)(&world);
            world.plane.state().history.push(call("t"));
            let end = world.poll();
            if point.idles {
                world.plane.until("a post", |plane| !plane.posted().is_empty()).await;
                tokio::time::sleep(SECOND).await;
                world.plane.emit(end_turn());
            }
            world.plane.until(&what, |_| (point.reached)(&world)).await;
            let polls = world.plane.seen("/poll").len();
            match level {
                Level::Cancel => world.shutdown.cancel(),
                _ => world.shutdown.drain(),
            }
            let signalled = tokio::time::Instant::now();
            let end = end.await.expect("an end").expect("no refusal");
            assert_eq!(end, QueueEnd::Shutdown, "{what}");
            assert!(signalled.elapsed() <= SECOND * 40, "{what}: {:?}", signalled.elapsed());
            let count = usize::from(point.acked);
            assert_eq!(world.plane.seen("/ack").len(), count, "{what}");
            assert_eq!(world.plane.seen("/stop").len(), count, "{what}");
            let stop = world.plane.seen("/stop").pop();
            assert!(stop.is_none_or(|stop| stop.body == r#"{"force":true}"#), "{what}");
            assert_eq!(world.plane.posted().len(), point.posts, "{what}");
            assert_eq!(world.host.noted("run").len(), point.posts, "{what}");
            let polled = world.plane.seen("/poll").len();
            assert_eq!(polled, polls, "{what}: nothing more is claimed");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_item_that_always_fails_does_not_keep_others_from_being_served() {
    // RACE-21, POLL-9, POLL-15: its ack is refused, its session is unknown, its tools cannot be made.
    let good = json!({"type":"work","id":"work_2","data":{"type":"session","id":"sesn_1"}});
    type Prepare = fn(&World, usize);
    let poisons: [(&str, Prepare); 3] = [
        ("the ack is refused", |world, times| {
            world.plane.state().acks.extend(vec![status(404); times]);
        }),
        ("the session is not there", |world, times| {
            world.plane.state().sessions.extend(vec![status(404); times]);
        }),
        ("the session cannot be read", |world, times| {
            let nonsense = Answer::Text(200, "<html>".to_owned());
            world.plane.state().sessions.extend(vec![nonsense; 3 * times]);
        }),
    ];
    for (what, poison) in poisons {
        let world = World::new();
        let items = vec![Answer::Json(200, work("session")); 3];
        world.plane.state().polls.extend(items);
        poison(&world, 3);
        let end = world.poll();
        let stops = |plane: &Plane| plane.seen("/stop").len();
        world.plane.until("three stops", |plane| stops(plane) == 3).await;
        world.plane.state().polls.push_back(Answer::Json(200, good.clone()));
        world.plane.state().history.push(call("t"));
        world.plane.until("a post", |plane| !plane.posted().is_empty()).await;
        assert_eq!(world.plane.posted_ids(), ["t"], "{what}");
        let stopped = world.plane.seen("/work_1/stop").len();
        assert_eq!(stopped, 3, "{what}: each of them is handed back");
        world.shutdown.cancel();
        end.await.expect("an end").expect("no refusal");
    }
}
