//! One attached session: RUN-1..28, SSE-3..6, IDLE-6..10, RACE-7.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::super::api::ItemApi;
use super::super::credential::Credential;
use super::super::feed::{Feed, News};
use super::super::*;
use super::secrets::captured;
use super::world::*;

const SECOND: Duration = Duration::from_secs(1);

/// How often the log names this event.
fn logged(lines: &Mutex<Vec<u8>>, event: &str) -> usize {
    let lines = lines.lock().expect("not poisoned");
    String::from_utf8_lossy(&lines).matches(&format!("\"event\":\"{event}\"")).count()
}

/// A call that the server has denied.
fn denied(id: &str) -> Value {
    let mut denied = call(id);
    denied["evaluated_permission"] = json!("deny");
    denied
}

#[tokio::test(start_paused = true)]
async fn an_event_between_attach_and_list_is_served_once() {
    // RUN-1, RACE-5: on the stream only, in both, and in the history only.
    let world = World::new();
    world.plane.state().history.push(call("old"));
    world.plane.state().gap.push(call("gap"));
    world.serve_to_idle().await;
    assert_eq!(world.plane.posted_ids(), ["old", "gap"]);
    assert_eq!(world.host.noted("run"), ["run old", "run gap"]);
    let order: Vec<String> =
        world.plane.state().seen.iter().map(|seen| seen.path.clone()).collect();
    let at = |end: &str| order.iter().position(|path| path.ends_with(end)).expect("seen");
    assert!(at("/events/stream") < at("/events"), "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn history_has_pages_and_an_empty_one_is_not_the_end() {
    // RUN-2, API-4.
    let world = World::new();
    let page =
        |events: Value, next: Value| Answer::Json(200, json!({"data":events,"next_page":next}));
    world.plane.state().pages.extend([
        page(json!([call("a"), call("b")]), json!("p/2")),
        page(json!([]), json!("p3")),
        page(json!([result_of("a")]), Value::Null),
    ]);
    world.serve_to_idle().await;
    assert_eq!(world.plane.posted_ids(), ["b"]);
    let lists: Vec<String> = world
        .plane
        .seen("/events")
        .iter()
        .filter(|seen| seen.method == "GET")
        .map(|seen| seen.query.clone())
        .collect();
    let first = "limit=1000&order=asc";
    assert_eq!(
        lists,
        [first.to_owned(), format!("{first}&page=p%2F2"), format!("{first}&page=p3")]
    );
}

#[tokio::test(start_paused = true)]
async fn a_page_that_fails_dispatches_nothing_until_the_next_reconnect() {
    // RUN-6, RACE-6, IDLE-9.
    let world = World::new();
    let first = json!({"data":[call("a"), end_turn()],"next_page":"p2"});
    world.plane.state().pages.extend([Answer::Json(200, first), status(404)]);
    world.plane.state().history.extend([call("a"), result_of("a"), call("b")]);
    let item = world.serve();
    tokio::time::sleep(SECOND * 200).await;
    assert!(world.plane.posted().is_empty(), "and the clock was not armed");
    world.plane.end_streams();
    world.plane.until("a post", |plane| plane.posted().len() == 1).await;
    assert_eq!(world.plane.posted_ids(), ["b"]);
    world.plane.emit(json!({"type":"session.deleted"}));
    assert_eq!(item.await.expect("an end"), ItemEnd::SessionEnded);
}

#[tokio::test(start_paused = true)]
async fn a_history_too_large_for_one_page_is_read_in_smaller_ones() {
    // INV-11: a page has a limit, a history does not.
    let world = World::new();
    let large = Answer::Text(200, "x".repeat(api::PAGE_BYTES_MAX + 1));
    world.plane.state().pages.extend([large.clone(), large]);
    world.plane.state().history.push(call("a"));
    world.serve_to_idle().await;
    assert_eq!(world.plane.posted_ids(), ["a"]);
    let lists = world.plane.seen("/events");
    let limits: Vec<&str> = lists
        .iter()
        .filter(|seen| seen.method == "GET")
        .map(|seen| seen.query.split('&').next().expect("a limit"))
        .collect();
    assert_eq!(limits, ["limit=1000", "limit=100", "limit=10"]);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_could_not_be_posted_is_posted_again_and_never_run_again() {
    // RUN-4, RUN-5, RUN-24, RUN-26, INV-9.
    let world = World::new();
    world.plane.state().ttl = 20.0;
    world.plane.state().posts.extend(vec![status(500); 40]);
    world.plane.state().history.push(call("t"));
    let item = world.serve();
    world.plane.until("it gives up", |_| world.host.noted("PostFailed").len() == 1).await;
    let tries = world.plane.posted().len();
    world.plane.state().posts.clear();
    world.plane.end_streams();
    world.plane.until("a post", |plane| plane.posted().len() > tries).await;
    assert_eq!(world.host.noted("run"), ["run t"], "once");
    let posted = world.plane.posted();
    assert!(posted.iter().all(|post| *post == posted[0]), "the same to the byte");
    world.plane.emit(end_turn());
    assert_eq!(item.await.expect("an end"), ItemEnd::Idle);
}

#[tokio::test(start_paused = true)]
async fn posting_is_tried_within_the_ttl_and_once_at_its_end() {
    // RUN-24, LEASE-15.
    let world = World::new();
    world.plane.state().ttl = 20.0;
    world.plane.state().posts.extend(vec![status(503); 40]);
    world.plane.state().history.push(call("t"));
    let _item = world.serve();
    world.plane.until("it gives up", |_| world.host.noted("PostFailed").len() == 1).await;
    let posts = world.plane.seen("/events");
    let at: Vec<f64> = posts
        .iter()
        .filter(|seen| seen.method == "POST")
        .map(|seen| seen.at.as_secs_f64())
        .collect();
    let from_first: Vec<f64> =
        at.iter().map(|time| ((time - at[0]) * 100.0).round() / 100.0).collect();
    // Half-way jitter: 0.75, 1.5, 3, 6, then what is left of the 20 s.
    assert_eq!(from_first, [0.0, 0.75, 2.25, 5.25, 11.25, 20.0]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_result_is_given_up_and_the_next_call_runs() {
    // RUN-25, RUN-5.
    let world = World::new();
    world.plane.state().posts.push_back(status(400));
    world.plane.state().history.extend([call("a"), call("b")]);
    let item = world.serve();
    world.plane.until("two posts", |plane| plane.posted().len() == 2).await;
    world.plane.end_streams();
    tokio::time::sleep(SECOND * 20).await;
    assert_eq!(world.plane.posted_ids(), ["a", "b"], "not posted again after the reconnect");
    assert_eq!(world.host.noted("run"), ["run a", "run b"]);
    world.plane.emit(end_turn());
    assert_eq!(item.await.expect("an end"), ItemEnd::Idle);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_there_already_counts_as_posted() {
    // RUN-28, RACE-7.
    let world = World::new();
    let already = json!({"error":{"details":{"error_code":"tool_result_already_exists"}}});
    world.plane.state().posts.extend([Answer::Break, Answer::Json(400, already)]);
    world.plane.state().history.push(call("t"));
    world.serve_to_idle().await;
    assert_eq!(world.host.noted("Posted").len(), 1);
    // And if the stream shows the answer while the post is retried, the retries end.
    let world = World::new();
    world.plane.state().posts.extend(vec![Answer::Break; 40]);
    world.plane.state().history.push(call("t"));
    let _item = world.serve();
    world.plane.until("two tries", |plane| plane.posted().len() == 2).await;
    world.plane.emit(result_of("t"));
    tokio::time::sleep(SECOND * 100).await;
    assert_eq!(world.plane.posted().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_the_stream_shows_before_its_post_is_answered_counts_as_posted() {
    // RACE-7: servers publish before they answer. Neither the connection nor the record is lost.
    let world = World::new();
    let late = Box::new(Answer::Json(200, json!({"data": []})));
    world.plane.state().posts.push_back(Answer::Late(SECOND / 2, late));
    world.plane.state().history.push(call("t"));
    let _item = world.serve();
    world.plane.until("a post", |plane| plane.posted().len() == 1).await;
    world.plane.emit(result_of("t"));
    tokio::time::sleep(SECOND).await;
    assert_eq!(world.host.noted("Posted").len(), 1);
    // An answer that does not come is not waited for, and the result is not posted again.
    let world = World::new();
    world.plane.state().posts.push_back(Answer::Hang);
    world.plane.state().history.extend([call("t"), call("u")]);
    let _item = world.serve();
    world.plane.until("a post", |plane| plane.posted().len() == 1).await;
    world.plane.emit(result_of("t"));
    world.plane.until("the next call", |plane| plane.posted().len() == 2).await;
    assert_eq!(world.plane.posted_ids(), ["t", "u"]);
}

#[tokio::test(start_paused = true)]
async fn calls_run_one_at_a_time_in_order_and_each_is_posted_before_the_next() {
    // RUN-13; events are read meanwhile.
    let (lines, _guard) = captured("info");
    let world = World::new();
    let item = world.serve();
    world.plane.until("attached", |plane| plane.seen("/events").len() == 1).await;
    for id in ["a", "b", "c"] {
        world.plane.emit(call_with(id, json!({"take_ms": 3000})));
    }
    world.plane.emit(denied("d"));
    world.plane.until("the denial is read", |_| logged(&lines, "call.denied") == 1).await;
    assert_eq!(world.host.noted("run"), ["run a"], "while the first call runs");
    world.plane.until("three posts", |plane| plane.posted().len() == 3).await;
    let log = world.host.log.lock().expect("not poisoned").clone();
    let steps: Vec<String> = log
        .iter()
        .filter(|entry| entry.starts_with("run") || entry.starts_with("Posted "))
        .cloned()
        .collect();
    let posted = |id: &str| format!("Posted {{ call: \"{id}\" }}");
    let want = [
        "run a".to_owned(),
        posted("a"),
        "run b".to_owned(),
        posted("b"),
        "run c".to_owned(),
        posted("c"),
    ];
    assert_eq!(steps, want);
    world.plane.emit(end_turn());
    item.await.expect("an end");
}

#[tokio::test(start_paused = true)]
async fn calls_of_others_are_left_alone() {
    // RUN-16, both kinds.
    let (lines, _guard) = captured("info");
    let world = World::new();
    let theirs = json!({"type":"agent.custom_tool_use","id":"x","name":"theirs","input":{}});
    let web = json!({"type":"agent.tool_use","id":"w","name":"web_search","input":{}});
    let ours = json!({"type":"agent.custom_tool_use","id":"m","name":"mine","input":{}});
    world.plane.state().history.extend([theirs, web, ours]);
    world.serve_to_idle().await;
    assert_eq!(world.plane.posted_ids(), ["m"]);
    assert_eq!(world.plane.posted()[0]["type"], "user.custom_tool_result", "EV-1");
    assert_eq!(logged(&lines, "call.not_owned"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_has_an_outer_time_limit_that_bash_may_extend() {
    // RUN-17, RUN-18.
    for (input, limit) in [
        (json!({"take_ms": 10_000_000}), 150),
        (json!({"take_ms": 10_000_000, "timeout_ms": 1000}), 150),
        (json!({"take_ms": 10_000_000, "timeout_ms": 300_000}), 330),
        (json!({"take_ms": 10_000_000, "timeout_ms": 900_000_000}), 3600),
        (json!({"take_ms": 10_000_000, "timeout_ms": -5}), 150),
        (json!({"take_ms": 10_000_000, "timeout_ms": "x"}), 150),
    ] {
        let world = World::new();
        world.plane.state().history.push(call_with("t", input.clone()));
        let _item = world.serve();
        world.plane.until("a post", |plane| !plane.posted().is_empty()).await;
        assert_eq!(world.plane.posted_text(0), "tool 'bash' timed out", "{input}");
        assert_eq!(world.plane.posted()[0]["is_error"], true);
        let posts = world.plane.seen("/events");
        let at = posts.iter().find(|seen| seen.method == "POST").expect("a post").at;
        assert_eq!(at.as_secs(), limit, "{input}");
        assert_eq!(world.host.noted("killed").len(), 1, "TOOL-BASH-14");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_ignores_its_end_is_abandoned() {
    // INV-11: every wait is bounded.
    let world = World::new();
    let stuck = json!({"take_ms": 10_000_000, "stuck": true});
    world.plane.state().history.extend([call_with("t", stuck), call("next")]);
    let _item = world.serve();
    world.plane.until("both", |plane| plane.posted().len() == 2).await;
    let posts = world.plane.seen("/events");
    let at = posts.iter().find(|seen| seen.method == "POST").expect("a post").at;
    assert_eq!(at.as_secs(), 155);
}

#[tokio::test(start_paused = true)]
async fn empty_output_is_posted_as_no_output() {
    // RUN-21.
    let world = World::new();
    world.plane.state().history.push(call_with("t", json!({"text": ""})));
    world.serve_to_idle().await;
    assert_eq!(world.plane.posted_text(0), "(no output)");
}

#[tokio::test(start_paused = true)]
async fn the_stream_is_opened_again_with_growing_pauses() {
    // RUN-10, SSE-4, SSE-5, SSE-6.
    let world = World::new();
    world.plane.state().opens.extend([status(500), Answer::Break, status(429), Answer::Hang]);
    let item = world.serve();
    world.plane.until("five tries", |plane| plane.seen("/stream").len() == 5).await;
    let at: Vec<f64> = world.plane.seen("/stream").iter().map(|s| s.at.as_secs_f64()).collect();
    let pauses: Vec<f64> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(pauses, [0.375, 0.75, 1.5, 33.0], "three quarters of 0.5, 1, 2; 30 s hung and 3");
    let breaks = [
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"not_found_error\"}}\n\n",
        "event: agent.message\ndata: {broken\n\n",
        "event: agent.message\ndata: {\"a\":\"\u{1}\"}\n\n",
    ];
    for (nth, text) in breaks.into_iter().enumerate() {
        tokio::time::sleep(SECOND * 15).await;
        world.plane.raw(text);
        world.plane.until("a reconnect", |plane| plane.seen("/stream").len() == 6 + nth).await;
    }
    // Silence; a ping is a sign of life but no event (SSE-3).
    tokio::time::sleep(SECOND * 400).await;
    world.plane.raw("event: ping\ndata: {\"type\":\"ping\"}\n\n");
    tokio::time::sleep(SECOND * 400).await;
    assert_eq!(world.plane.seen("/stream").len(), 8);
    world.plane.until("a reconnect", |plane| plane.seen("/stream").len() == 9).await;
    world.plane.until("attached", |plane| plane.seen("/events").len() == 5).await;
    world.plane.emit(json!({"type":"session.status_terminated"}));
    assert_eq!(item.await.expect("an end"), ItemEnd::SessionEnded);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_session_kills_what_runs_and_posts_nothing() {
    // RUN-8, RUN-12, RACE-12.
    let world = World::new();
    world.plane.state().history.extend([call_with("t", json!({"take_ms": 60_000})), call("u")]);
    let item = world.serve();
    world.plane.until("it runs", |_| !world.host.noted("run").is_empty()).await;
    world.plane.emit(json!({"type":"session.status_terminated"}));
    assert_eq!(item.await.expect("an end"), ItemEnd::SessionEnded);
    assert_eq!(world.host.noted("killed"), ["killed t"]);
    assert!(world.plane.posted().is_empty());
    assert_eq!(world.host.noted("run"), ["run t"]);
    let world = World::new();
    world.plane.state().history.extend([call("t"), json!({"type":"session.deleted"})]);
    assert_eq!(world.serve().await.expect("an end"), ItemEnd::SessionEnded);
    assert!(world.host.noted("run").is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_is_left_after_its_time_and_calls_in_flight_still_post() {
    // IDLE-2, IDLE-8, RACE-9.
    let world = World::new();
    world.plane.state().history.push(call_with("t", json!({"take_ms": 100_000})));
    let item = world.serve();
    world.plane.until("it runs", |_| !world.host.noted("run").is_empty()).await;
    world.plane.emit(end_turn());
    assert_eq!(item.await.expect("an end"), ItemEnd::Idle);
    assert_eq!(world.plane.posted_ids(), ["t"], "longer than the idle time, and posted");
    let world = World::new();
    world.plane.state().history.push(end_turn());
    assert_eq!(world.serve().await.expect("an end"), ItemEnd::Idle);
    assert_eq!(world.plane.seen("/stop")[0].at.as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn telemetry_after_the_last_idle_does_not_keep_the_worker() {
    // IDLE-10.
    let world = World::new();
    world.plane.state().history.push(end_turn());
    let item = world.serve();
    world.plane.until("attached", |plane| plane.seen("/events").len() == 1).await;
    world.plane.state().session_status = "idle";
    tokio::time::sleep(SECOND).await;
    world.plane.emit(json!({"type":"session.usage"}));
    assert_eq!(item.await.expect("an end"), ItemEnd::Idle);
    assert_eq!(world.plane.seen("/stop")[0].at.as_secs(), 360, "five minutes and the idle time");
}

#[tokio::test(start_paused = true)]
async fn a_thread_that_ends_while_its_call_runs_gets_no_result() {
    // RUN-27, RACE-11, THR-1.
    let world = World::new();
    let mut on_thread = call_with("t", json!({"take_ms": 5000}));
    on_thread["session_thread_id"] = json!("x");
    world.plane.state().history.extend([on_thread, call("main")]);
    let _item = world.serve();
    world.plane.until("it runs", |_| !world.host.noted("run").is_empty()).await;
    world.plane.emit(thread_end("x"));
    world.plane.until("a post", |plane| !plane.posted().is_empty()).await;
    tokio::time::sleep(SECOND * 10).await;
    assert_eq!(world.plane.posted_ids(), ["main"]);
}

#[tokio::test(start_paused = true)]
async fn a_held_call_waits_without_limit_and_runs_when_it_is_allowed() {
    // PERM-4, PERM-8, IDLE-3.
    let world = World::new();
    let mut ask = call("t");
    ask["evaluated_permission"] = json!("ask");
    world.plane.state().history.extend([ask, end_turn()]);
    let item = world.serve();
    tokio::time::sleep(SECOND * 7200).await;
    assert!(world.plane.posted().is_empty() && !item.is_finished());
    world.plane.emit(confirmation("t", "allow"));
    world.plane.until("a post", |plane| !plane.posted().is_empty()).await;
    world.plane.emit(end_turn());
    assert_eq!(item.await.expect("an end"), ItemEnd::Idle);
    assert_eq!(world.plane.posted_ids(), ["t"]);
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_tools_cannot_be_opened_hears_of_it() {
    // INV-2: nothing runs; the calls are answered with the phase.
    let world = World::new();
    *world.host.open_fails.lock().expect("not poisoned") = true;
    let web = json!({"type":"agent.tool_use","id":"w","name":"web_search","input":{}});
    world.plane.state().history.extend([call("t"), web]);
    assert_eq!(world.serve().await.expect("an end"), ItemEnd::OpenFailed);
    assert_eq!(world.plane.posted_ids(), ["t"]);
    assert_eq!(world.plane.posted_text(0), "the jail could not be started: mounts");
    assert_eq!(world.plane.posted()[0]["is_error"], true);
    assert!(world.host.noted("run").is_empty() && world.host.noted("close").is_empty());
    assert_eq!(world.plane.seen("/stop")[0].at.as_secs(), 30, "bounded");
}

#[tokio::test(start_paused = true)]
async fn an_item_without_an_idle_limit_stays() {
    let world = World::with(|settings| settings.max_idle = None, Arc::new(MemoryJournals));
    world.plane.state().history.push(end_turn());
    let item = world.serve();
    tokio::time::sleep(SECOND * 5000).await;
    assert!(!item.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_session_with_too_many_ids_is_handed_back() {
    // INV-11.
    for (calls, end) in [(10, ItemEnd::Idle), (11, ItemEnd::TooMuch)] {
        let mut world = World::new();
        // Each call is remembered, and each answer.
        Arc::get_mut(&mut world.shared).expect("not shared yet").remembered_max = 20;
        for at in 0..calls {
            let id = format!("t{at}");
            world.plane.state().history.extend([call(&id), result_of(&id)]);
        }
        assert_eq!(world.serve_to_idle().await, end, "{calls}");
        assert_eq!(world.plane.seen("/stop").len(), 1, "{calls}");
    }
}

#[tokio::test(start_paused = true)]
async fn reading_pauses_while_a_thousand_calls_wait() {
    // INV-11.
    let (lines, _guard) = captured("info");
    let world = World::new();
    let _item = world.serve();
    world.plane.until("attached", |plane| plane.seen("/events").len() == 1).await;
    world.plane.emit(call_with("first", json!({"take_ms": 60_000})));
    for at in 0..999 {
        world.plane.emit(call(&format!("t{at}")));
    }
    world.plane.emit(denied("below"));
    tokio::time::sleep(SECOND).await;
    assert_eq!(logged(&lines, "call.denied"), 1, "999 wait: the next event is read");
    world.plane.emit(call("last"));
    world.plane.emit(denied("above"));
    tokio::time::sleep(SECOND * 30).await;
    assert_eq!(logged(&lines, "call.denied"), 1, "1000 wait: it is not");
    assert_eq!(world.host.noted("run"), ["run first"]);
    tokio::time::sleep(SECOND * 60).await;
    assert_eq!(logged(&lines, "call.denied"), 2, "it is read once there is room");
    assert_eq!(world.plane.posted_ids().last().map(String::as_str), Some("last"), "none is lost");
    assert_eq!(world.plane.posted_ids().len(), 1001);
}

/// How a history of so many pages is reported, and how many of them were asked for.
async fn history_of(pages: usize) -> (bool, usize) {
    let world = World::new();
    let page = |at: usize| {
        let next = if at == pages { Value::Null } else { json!(at.to_string()) };
        Answer::Json(200, json!({"data": [], "next_page": next}))
    };
    world.plane.state().pages.extend((1..=pages).map(page));
    let Shared { client, key, random, .. } = &*world.shared;
    let api = ItemApi {
        client: client.clone(),
        credential: Credential::Environment(key.clone().expect("a key")),
        environment: "env_1".into(),
        work: "work_1".into(),
    };
    let feed = Feed::new(api, Ids::default(), "sesn_1", random.clone(), SECOND);
    let (sender, mut news) = tokio::sync::mpsc::channel(1);
    let feed = tokio::spawn(feed.run(sender));
    let done = loop {
        match news.recv().await.expect("news") {
            News::HistoryDone => break true,
            News::HistoryFailed => break false,
            _ => {}
        }
    };
    feed.abort();
    (done, world.plane.seen("/events").len())
}

#[tokio::test(start_paused = true)]
async fn a_history_without_an_end_is_given_up_after_ten_thousand_pages() {
    // INV-11, RUN-6.
    assert_eq!(history_of(10_000).await, (true, 10_000));
    assert_eq!(history_of(10_001).await, (false, 10_000));
}
