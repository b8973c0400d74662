//! What a worker asks of the control plane and what it leaves alone, and answers that make no sense:
//! nothing else may be lost by them.

use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};

use super::super::*;
use super::world::*;

const SECOND: Duration = Duration::from_secs(1);

/// A work item for a session, with this secret.
fn item(work: &str, session: &str, secret: Value) -> Answer {
    let data = json!({"type":"session","id":session});
    Answer::Json(200, json!({"type":"work","id":work,"data":data,"secret":secret}))
}

fn secret(members: Value) -> Value {
    json!(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(members.to_string()))
}

/// Serves what the plane hands out until its sessions have been idle for long enough.
async fn serve_all(world: &World, items: usize) {
    let end = world.poll();
    for _ in 0..10 * items {
        if world.plane.seen("/stop").len() >= items {
            break;
        }
        // Longer than the idle time, which begins anew with every end of a turn.
        tokio::time::sleep(SECOND * 90).await;
        world.plane.emit(end_turn());
    }
    assert_eq!(world.plane.seen("/stop").len(), items, "every item is stopped");
    world.shutdown.cancel();
    end.await.expect("an end").expect("no refusal");
}

#[tokio::test(start_paused = true)]
async fn a_worker_asks_for_what_it_needs_and_for_nothing_else() {
    // AUTH-13, SESS-3, SESS-4, TOOL-GEN-0: no look at the item, at files or at tools; one look at the
    // session, though the stream is opened twice.
    let world = World::new();
    let resources = json!([{"type":"file","file_id":"file_1","mount_path":"/f"},
        {"type":"github_repository","url":"https://git.test/r"}]);
    let tools = json!([{"type":"agent_toolset_20260401"},{"type":"custom","name":"mine"}]);
    let session = json!({"type":"session","status":"running","vault_ids":["vlt_1"],
        "resources":resources,"agent":{"tools":tools}});
    world.plane.state().sessions.push_back(Answer::Json(200, session));
    world.plane.state().polls.push_back(item("work_1", "sesn_1", Value::Null));
    world.plane.state().history.extend([
        call("t"),
        json!({"type":"agent.custom_tool_use",
        "id":"m","name":"mine","input":{}}),
    ]);
    let end = world.poll();
    world.plane.until("two posts", |plane| plane.posted().len() == 2).await;
    world.plane.end_streams();
    world.plane.until("a new stream", |plane| plane.seen("/stream").len() == 2).await;
    tokio::time::sleep(SECOND * 40).await;
    world.shutdown.drain();
    end.await.expect("an end").expect("no refusal");

    let mut asked: Vec<String> = world
        .plane
        .state()
        .seen
        .iter()
        .map(|seen| format!("{} {}", seen.method, seen.path.trim_start_matches("/base/v1/")))
        .collect();
    assert_eq!(asked.iter().filter(|one| *one == "GET sessions/sesn_1").count(), 1);
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(
        asked,
        [
            "GET environments/env_1/work/poll",
            "GET sessions/sesn_1",
            "GET sessions/sesn_1/events",
            "GET sessions/sesn_1/events/stream",
            "POST environments/env_1/work/work_1/ack",
            "POST environments/env_1/work/work_1/heartbeat",
            "POST environments/env_1/work/work_1/stop",
            "POST sessions/sesn_1/events",
        ]
    );
    for event in world.plane.posted() {
        let kind = event["type"].as_str().expect("a type");
        assert!(["user.tool_result", "user.custom_tool_result"].contains(&kind), "{event}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_request_has_a_header_that_the_contract_does_not_know() {
    // HDR-5, HDR-9: an honest name, nothing for idempotency, no telemetry of another product.
    let world = World::new();
    world.plane.state().polls.push_back(item("work_1", "sesn_1", Value::Null));
    world.plane.state().posts.push_back(status(503));
    world.plane.state().history.extend([call("t"), end_turn()]);
    serve_all(&world, 1).await;
    let known = [
        "accept",
        "anthropic-beta",
        "anthropic-version",
        "anthropic-worker-id",
        "authorization",
        "content-length",
        "content-type",
        "user-agent",
    ];
    for seen in &world.plane.state().seen {
        for name in seen.headers.keys() {
            assert!(known.contains(&name.as_str()), "{name} of {}", seen.path);
        }
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(seen.header("user-agent"), format!("stockade-worker/{version}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_cannot_send_the_credential_to_another_host() {
    // HDR-12, AUTH-5.
    let world = World::new();
    let members = json!({"sessions_token":"sk-item","api_base_url":"https://evil.test"});
    world.plane.state().polls.push_back(item("work_1", "sesn_1", secret(members)));
    world.plane.state().history.extend([call("t"), end_turn()]);
    serve_all(&world, 1).await;
    assert_eq!(world.plane.posted_ids(), ["t"]);
    assert!(world.plane.state().seen.iter().all(|seen| seen.host == "plane.test"));
    let beats = world.plane.seen("/heartbeat");
    assert!(beats.iter().all(|beat| beat.header("authorization") == "Bearer sk-item"), "control");
}

#[tokio::test(start_paused = true)]
async fn ack_and_stop_succeed_with_any_2xx() {
    // API-2.
    for answer in [
        Answer::Text(204, String::new()),
        Answer::Text(200, "<html>fine</html>".to_owned()),
        Answer::Json(202, json!([1, 2])),
    ] {
        let (lines, guard) = super::secrets::captured("info");
        let world = World::new();
        world.plane.state().polls.push_back(item("work_1", "sesn_1", Value::Null));
        world.plane.state().acks.push_back(answer.clone());
        world.plane.state().stops.push_back(answer);
        world.plane.state().history.extend([call("t"), end_turn()]);
        serve_all(&world, 1).await;
        drop(guard);
        assert_eq!(world.plane.posted_ids(), ["t"]);
        assert_eq!((world.plane.seen("/ack").len(), world.plane.seen("/stop").len()), (1, 1));
        let text = String::from_utf8(lines.lock().expect("not poisoned").clone()).expect("text");
        assert!(text.contains("work.claimed"), "control: the log was captured");
        assert!(!text.contains("ack_failed") && !text.contains("stop_failed"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_poll_or_ack_without_an_answer_is_given_up_in_time() {
    // HTTP-3, POLL-4, POLL-8: long before the ten minutes that a request may take elsewhere.
    let world = World::new();
    let item = || item("work_1", "sesn_1", Value::Null);
    world.plane.state().polls.extend([Answer::Hang, item()]);
    world.plane.state().acks.extend(vec![Answer::Hang; 2]);
    let end = world.poll();
    world.plane.until("three polls", |plane| plane.seen("/poll").len() == 3).await;
    let polls: Vec<Duration> = world.plane.seen("/poll").iter().map(|seen| seen.at).collect();
    assert_eq!((polls[1] - polls[0]).as_secs_f64(), 22.5, "20 s, then the pause");
    let acked = polls[2] - polls[1];
    assert!(acked > SECOND * 24 && acked < SECOND * 28, "twice 12 s, then the pause: {acked:?}");
    assert!(world.plane.seen("/stop").is_empty(), "the ack may have arrived");
    world.shutdown.drain();
    end.await.expect("an end").expect("no refusal");
}

#[tokio::test(start_paused = true)]
async fn an_odd_id_stays_one_segment_and_an_empty_one_costs_its_item_only() {
    // §1.1: ids are opaque. What looks like a path, a query or another host leads nowhere else.
    let world = World::new();
    {
        let mut state = world.plane.state();
        state.polls.extend([
            item("work/../1?x#y", "a/../b", Value::Null),
            item("work_2", "", Value::Null),
            item("work_3", "..", Value::Null),
            item("work_4", "sesn_1", Value::Null),
        ]);
        state.history.extend([call("t"), end_turn()]);
    }
    serve_all(&world, 4).await;
    let paths: Vec<String> =
        world.plane.state().seen.iter().map(|seen| seen.path.clone()).collect();
    let odd = "/base/v1/environments/env_1/work/work%2F..%2F1%3Fx%23y/stop";
    assert!(paths.iter().any(|path| path == odd), "{paths:?}");
    assert!(paths.iter().any(|path| path == "/base/v1/sessions/a%2F..%2Fb"), "{paths:?}");
    for path in &paths {
        let known = ["/base/v1/environments/env_1/work/", "/base/v1/sessions/"];
        assert!(known.iter().any(|start| path.starts_with(start)), "{path}");
        assert!(!path.contains("/../") && !path.contains("//"), "{path}");
    }
    // The first and the last were served; they have the same history here, and its call ran once.
    assert_eq!(world.host.noted("close Idle").len(), 2);
    assert_eq!(world.host.noted("run"), ["run t"]);
}

#[tokio::test(start_paused = true)]
async fn secrets_of_every_kind_of_nonsense_cost_nothing() {
    // AUTH-3, AUTH-4: the key speaks for the item then, and the next item is served as well.
    let nonsense = [
        json!(""),
        json!("%%%"),
        json!(7),
        json!({"sessions_token": "x"}),
        secret(json!([])),
        secret(json!({"sessions_token": 5})),
        secret(json!({"sessions_token": ""})),
        json!("A".repeat(1 << 20)),
    ];
    let world = World::new();
    let polls = nonsense.iter().map(|secret| item("work_1", "sesn_1", secret.clone()));
    world.plane.state().polls.extend(polls);
    world.plane.state().polls.push_back(item("work_1", "sesn_1", Value::Null));
    world.plane.state().history.push(end_turn());
    serve_all(&world, nonsense.len() + 1).await;
    let beats = world.plane.seen("/heartbeat");
    assert!(beats.len() > nonsense.len());
    assert!(beats.iter().all(|beat| beat.header("authorization") == "Bearer sk-key"));
    let closed = world.host.noted("close Idle").len();
    assert_eq!(closed, nonsense.len() + 1, "each of them was served");
}

#[tokio::test(start_paused = true)]
async fn a_session_none_of_whose_results_is_accepted_runs_each_call_once() {
    // RUN-5, RUN-25, RUN-26, INV-9: 400 to every post, and a reconnect after each.
    let world = World::new();
    world.plane.state().posts.extend(vec![status(400); 100]);
    world.plane.state().history.extend((0..5).map(|at| call(&format!("t{at}"))));
    let item = world.serve();
    world.plane.until("five posts", |plane| plane.posted().len() == 5).await;
    for streams in 2..6 {
        world.plane.end_streams();
        world.plane.until("a stream", |plane| plane.seen("/stream").len() == streams).await;
        tokio::time::sleep(SECOND * 20).await;
    }
    assert_eq!(world.host.noted("run").len(), 5, "once each");
    assert_eq!(world.plane.posted().len(), 5, "and not offered again");
    assert!(!item.is_finished(), "unanswered calls keep the session");
    // Nor is the worker lost: what is accepted later is served.
    world.plane.state().posts.clear();
    world.plane.emit(call("later"));
    world.plane.until("a post", |plane| plane.posted().len() == 6).await;
    world.shutdown.cancel();
    item.await.expect("an end");
}

#[tokio::test(start_paused = true)]
async fn an_event_of_ten_mebibytes_is_read_and_its_neighbours_are_served() {
    // SSE-5, INV-11, API-5: one line of the stream, and a page of the history.
    let world = World::new();
    let long = || "x".repeat(10 << 20);
    world.plane.state().history.push(json!({"type":"agent.message","text":long()}));
    let item = world.serve();
    world.plane.until("attached", |plane| plane.seen("/events").len() == 1).await;
    world.plane.emit(call("before"));
    world.plane.emit(json!({"type":"user.message","text":long()}));
    world.plane.emit(call_with("large", json!({"command": long()})));
    world.plane.emit(call("after"));
    world.plane.until("three posts", |plane| plane.posted().len() == 3).await;
    assert_eq!(world.plane.posted_ids(), ["before", "large", "after"]);
    assert_eq!(world.plane.seen("/stream").len(), 1, "the stream did not break");
    world.plane.emit(end_turn());
    assert_eq!(item.await.expect("an end"), ItemEnd::Idle);
}

#[tokio::test(start_paused = true)]
async fn nonsense_instead_of_json_costs_no_call_and_no_session() {
    // POLL-6, SSE-5, LEASE-8, RUN-6, RUN-24: each answer once in place of a good one.
    let nonsense = || Answer::Text(200, "<!doctype html><p>\u{fffd}\0".to_owned());
    let world = World::new();
    {
        let mut state = world.plane.state();
        state.polls.extend([nonsense(), item("work_1", "sesn_1", Value::Null)]);
        state.acks.push_back(nonsense());
        state.beats.push_back(nonsense());
        state.pages.push_back(nonsense());
        state.posts.push_back(nonsense());
        state.stops.push_back(nonsense());
        state.history.push(call("t"));
    }
    let end = world.poll();
    world.plane.until("attached", |plane| !plane.seen("/events").is_empty()).await;
    world.plane.raw("event: agent.tool_use\ndata: {\"type\":\u{1}\n\n");
    world.plane.until("a result", |plane| plane.posted().len() == 2).await;
    assert_eq!(world.host.noted("run"), ["run t"], "once");
    world.plane.emit(end_turn());
    world.plane.until("a stop", |plane| plane.seen("/stop").len() == 1).await;
    world.shutdown.drain();
    end.await.expect("an end").expect("no refusal");
    let posted = world.plane.posted();
    assert_eq!(posted[0], posted[1], "the same result again");
}

#[tokio::test(start_paused = true)]
async fn whether_a_tool_failed_says_nothing_of_its_post() {
    // RUN-23.
    let world = World::new();
    world.plane.state().posts.extend([status(500), status(503)]);
    world.plane.state().history.push(call("good"));
    world.plane.state().history.push(call_with("bad", json!({"take_ms": 10_000_000})));
    let _item = world.serve();
    world.plane.until("both", |plane| plane.posted().len() == 4).await;
    let errors: Vec<Value> =
        world.plane.posted().iter().map(|post| post["is_error"].clone()).collect();
    assert_eq!(errors, [false, false, false, true]);
    assert_eq!(world.host.noted("Posted").len(), 2);
}
