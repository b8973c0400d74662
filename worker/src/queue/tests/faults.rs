//! Faults of the control plane that must cost what they concern and nothing else: answers that break
//! off, that ask to wait, that are garbage, that are too long.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::shutdown::Level;
use super::super::*;
use super::world::*;

const SECOND: Duration = Duration::from_secs(1);

fn item() -> Answer {
    Answer::Json(200, work("session"))
}

/// A 2xx whose body breaks off.
fn cut() -> Answer {
    Answer::Pieces(vec![Piece::Bytes(b"{\"id\":".to_vec()), Piece::Break])
}

/// A 2xx whose body never ends.
fn dripping() -> Answer {
    let drop = || [Piece::Bytes(b" ".to_vec()), Piece::Pause(SECOND * 5)];
    Answer::Pieces((0..100).flat_map(|_| drop()).collect())
}

fn asks_to_wait(seconds: &'static str) -> Answer {
    Answer::With(503, vec![("retry-after", seconds)])
}

fn seconds(requests: &[Seen]) -> Vec<f64> {
    requests.iter().map(|seen| seen.at.as_secs_f64()).collect()
}

fn pauses(requests: &[Seen]) -> Vec<f64> {
    let between = |pair: &[f64]| ((pair[1] - pair[0]) * 1000.0).round() / 1000.0;
    seconds(requests).windows(2).map(between).collect()
}

fn posts(world: &World) -> Vec<Seen> {
    world.plane.seen("/events").into_iter().filter(|seen| seen.method == "POST").collect()
}

#[tokio::test(start_paused = true)]
async fn an_ack_or_stop_whose_answer_breaks_off_or_never_ends_has_succeeded() {
    // API-2, LEASE-12, RACE-15.
    for answer in [cut(), dripping()] {
        let world = World::new();
        world.plane.state().polls.push_back(item());
        world.plane.state().acks.push_back(answer.clone());
        world.plane.state().stops.push_back(answer);
        world.plane.state().history.push(call("t"));
        let end = world.poll();
        world.plane.until("a result", |plane| !plane.posted().is_empty()).await;
        tokio::time::sleep(SECOND).await;
        world.plane.emit(end_turn());
        world.plane.until("a stop", |plane| !plane.seen("/stop").is_empty()).await;
        tokio::time::sleep(SECOND * 30).await;
        assert_eq!((world.plane.seen("/ack").len(), world.plane.seen("/stop").len()), (1, 1));
        assert_eq!(world.plane.posted_ids(), ["t"]);
        world.shutdown.cancel();
        end.await.expect("an end").expect("no refusal");
    }
    // Control: where the body is what was asked for, one that breaks off is no answer.
    let world = World::new();
    world.plane.state().sessions.push_back(cut());
    world.plane.state().history.push(end_turn());
    assert_eq!(world.serve().await.expect("an end"), ItemEnd::Idle);
    assert_eq!(world.plane.seen("/sesn_1").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_the_control_plane_asks_to_wait_is_waited() {
    // HTTP-2 for E-SEND, E-STREAM and E-POLL; from the third time on no less than the own pause.
    let world = World::new();
    world.plane.state().history.push(call("t"));
    let short = || Answer::With(429, vec![("retry-after-ms", "100")]);
    world.plane.state().posts.extend([asks_to_wait("10"), short(), short(), asks_to_wait("9")]);
    world.plane.state().opens.extend([asks_to_wait("30"), short(), short()]);
    let session = world.serve();
    world.plane.until("a result", |plane| plane.state().history.len() == 2).await;
    assert_eq!(pauses(&world.plane.seen("/stream")), [30.0, 0.1, 1.5]);
    assert_eq!(pauses(&posts(&world)), [10.0, 0.1, 3.0, 9.0]);
    world.shutdown.cancel();
    session.await.expect("an end");

    let world = World::new();
    world.plane.state().polls.extend([asks_to_wait("30"), asks_to_wait("1"), status(500)]);
    let end = world.poll();
    world.plane.until("four polls", |plane| plane.seen("/poll").len() == 4).await;
    assert_eq!(pauses(&world.plane.seen("/poll")), [30.0, 1.0, 8.5]);
    world.shutdown.cancel();
    end.await.expect("an end").expect("no refusal");
}

#[tokio::test(start_paused = true)]
async fn a_header_that_is_no_time_to_wait_is_not_there() {
    // HTTP-2: "if present and > 0".
    for headers in [
        vec![("retry-after-ms", "0"), ("retry-after", "7")],
        vec![("retry-after-ms", "nan"), ("retry-after", "7")],
        vec![("retry-after-ms", "-5"), ("retry-after", "7")],
    ] {
        let world = World::new();
        world.plane.state().sessions.push_back(Answer::With(503, headers));
        world.plane.state().history.push(end_turn());
        assert_eq!(world.serve().await.expect("an end"), ItemEnd::Idle);
        assert_eq!(pauses(&world.plane.seen("/sesn_1")), [7.0]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_ack_is_not_held_back_until_the_item_is_somebody_elses() {
    // RACE-1, POLL-8: five seconds after the poll it is handed out again.
    let world = World::new();
    world.plane.state().polls.extend([item(), item()]);
    world.plane.state().acks.push_back(asks_to_wait("30"));
    world.plane.state().history.push(end_turn());
    let end = world.poll();
    world.plane.until("a stop", |plane| !plane.seen("/stop").is_empty()).await;
    let (polls, acks) = (seconds(&world.plane.seen("/poll")), seconds(&world.plane.seen("/ack")));
    assert_eq!((polls[0], acks[0], acks.len()), (0.0, 0.0, 2));
    assert_eq!(acks[1], polls[1], "the second ack is that of the second claim");
    world.shutdown.cancel();
    end.await.expect("an end").expect("no refusal");
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_during_an_ack_ends_at_once_and_leaves_no_lease() {
    // SHUT-4, SHUT-5, RACE-15. Whether the ack was applied is not known.
    for answer in [Answer::Hang, asks_to_wait("2")] {
        let world = World::new();
        world.plane.state().polls.push_back(item());
        world.plane.state().acks.push_back(answer);
        let end = world.poll();
        world.plane.until("an ack", |plane| !plane.seen("/ack").is_empty()).await;
        let began = tokio::time::Instant::now();
        world.shutdown.drain();
        tokio::time::sleep(SECOND / 2).await;
        world.shutdown.cancel();
        end.await.expect("an end").expect("no refusal");
        assert!(began.elapsed() < SECOND * 3, "{:?}", began.elapsed());
        let stops = world.plane.seen("/stop");
        assert_eq!(stops.len(), 1, "{stops:?}", stops = seconds(&stops));
        assert!(world.plane.seen("/heartbeat").is_empty());
    }
    // After these five seconds it may be somebody else's: nothing is stopped.
    let world = World::new();
    world.plane.state().polls.push_back(item());
    world.plane.state().acks.push_back(Answer::Hang);
    let end = world.poll();
    world.plane.until("an ack", |plane| !plane.seen("/ack").is_empty()).await;
    tokio::time::sleep(SECOND * 6).await;
    world.shutdown.cancel();
    end.await.expect("an end").expect("no refusal");
    assert!(world.plane.seen("/stop").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_result_is_posted_once_however_long_the_answer_is() {
    // RUN-26, SIM-7: the answer repeats what was sent. The stream shows nothing of it.
    let world = World::new();
    world.plane.state().history.push(call("t"));
    let echo = format!("{{\"data\":[\"{}\"]}}", "x".repeat(9 << 20));
    world.plane.state().posts.push_back(Answer::Text(200, echo));
    let session = world.serve();
    tokio::time::sleep(SECOND * 100).await;
    assert_eq!(world.plane.posted_ids(), ["t"]);
    world.shutdown.cancel();
    session.await.expect("an end");
}

#[tokio::test(start_paused = true)]
async fn a_result_that_could_not_be_posted_is_posted_again_though_the_stream_is_healthy() {
    // RUN-4, RUN-5, IDLE-10: until then the session is not idle, whatever it says of itself.
    let world = World::new();
    world.plane.state().ttl = 20.0;
    world.plane.state().session_status = "idle";
    world.plane.state().history.push(call("t"));
    world.plane.state().posts.extend(vec![status(503); 9]);
    let session = world.serve();
    world.plane.until("a result", |plane| plane.state().history.len() == 2).await;
    let posts = posts(&world);
    let bodies: Vec<&str> = posts.iter().map(|seen| seen.body.as_str()).collect();
    assert!(bodies.len() == 10 && bodies.iter().all(|body| *body == bodies[0]), "the kept result");
    assert_eq!(world.host.noted("run"), ["run t"], "it is not run again");
    assert!(world.plane.seen("/stream").len() >= 2 && world.plane.seen("/stop").is_empty());
    // And only as often as that needs.
    let streams = world.plane.seen("/stream").len();
    tokio::time::sleep(SECOND * 200).await;
    assert_eq!(world.plane.seen("/stream").len(), streams);
    world.shutdown.cancel();
    session.await.expect("an end");
}

#[tokio::test(start_paused = true)]
async fn garbage_in_place_of_an_answer_is_asked_for_again() {
    // §0: a body that cannot be parsed is transient. POLL-15, RUN-6.
    let world = World::new();
    let html = || Answer::Text(200, "<html>sign in</html>".to_owned());
    world.plane.state().sessions.extend([html(), Answer::Text(200, "{\"type\":\"ses".to_owned())]);
    world.plane.state().pages.extend([html(), html()]);
    world.plane.state().history.extend([call("t"), end_turn()]);
    let session = world.serve();
    world.plane.until("a result", |plane| plane.state().history.len() == 3).await;
    world.plane.emit(end_turn());
    assert_eq!(session.await.expect("an end"), ItemEnd::Idle);
    assert_eq!((world.plane.seen("/sesn_1").len(), world.plane.posted_ids().len()), (3, 1));
    // What is garbage for good costs its item, and that is handed back.
    let world = World::new();
    world.plane.state().sessions.extend(vec![html(); 3]);
    assert_eq!(world.serve().await.expect("an end"), ItemEnd::Failed);
    assert_eq!(world.plane.seen("/stop").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_is_not_text_breaks_the_connection_also_where_nobody_reads_it() {
    // SSE-5.
    let world = World::new();
    let frame = |content: &[u8]| {
        [
            b"event: agent.message\ndata: {\"type\":\"agent.message\",\"text\":\"",
            content,
            b"\"}\n\n",
        ]
        .concat()
    };
    let stream = |content: &[u8]| {
        Answer::Pieces(vec![Piece::Bytes(frame(content)), Piece::Pause(SECOND * 300)])
    };
    world.plane.state().opens.extend([stream("gut \u{e9}".as_bytes()), stream(b"\xff")]);
    let session = world.serve();
    tokio::time::sleep(SECOND * 200).await;
    assert_eq!(world.plane.seen("/stream").len(), 1, "control");
    world.plane.until("another", |plane| plane.seen("/stream").len() == 3).await;
    assert!(pauses(&world.plane.seen("/stream"))[1] < 2.0);
    world.shutdown.cancel();
    session.await.expect("an end");
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_is_refused_for_good_lets_calls_end_and_leaves_nothing_behind() {
    // POLL-5, SHUT-2: the process is to end soon, and non-zero.
    let (shutdown, watch) = Shutdown::new();
    let mut world = World::new();
    let shared = std::sync::Arc::get_mut(&mut world.shared).expect("nobody else has it");
    shared.drive.shutdown = Some(std::sync::Arc::new(shutdown));
    world.watch = watch.clone();
    world.plane.state().polls.extend([item(), Answer::Late(SECOND * 2, Box::new(status(401)))]);
    world.plane.state().history.extend([
        call_with("t", json!({"take_ms": 5000})),
        call_with("u", json!({"take_ms": 5000})),
    ]);
    let began = tokio::time::Instant::now();
    let end = world.poll().await.expect("an end");
    assert_eq!(end.expect_err("refused").source.status(), Some(401));
    assert!(watch.level() == Level::Drain && began.elapsed() < SECOND * 10);
    assert_eq!(world.plane.posted_ids(), ["t"], "what ran is finished, nothing new is started");
    assert_eq!(world.plane.seen("/stop").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_history_that_fails_after_it_released_the_last_hold_leaves_the_session_watched() {
    // IDLE-3, IDLE-10: the turn ended while a call was held; its result is on the first page only.
    let world = World::new();
    let mut held = call("t");
    held["evaluated_permission"] = json!("ask");
    world.plane.state().history.extend([held.clone(), end_turn()]);
    let session = world.serve();
    world.plane.until("attached", |plane| plane.seen("/events").len() == 1).await;
    tokio::time::sleep(SECOND).await;
    world.plane.state().session_status = "idle";
    let page =
        |events: Value, next: Value| Answer::Json(200, json!({"data":events,"next_page":next}));
    world.plane.state().pages.push_back(page(json!([held, result_of("t")]), json!("p2")));
    world.plane.state().pages.extend(vec![status(400)]);
    world.plane.end_streams();
    assert_eq!(session.await.expect("an end"), ItemEnd::Idle);
    let stopped = world.plane.seen("/stop")[0].at;
    assert!(
        stopped > SECOND * 300 && stopped < SECOND * 400,
        "asked after five minutes: {stopped:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_result_that_was_accepted_is_told_as_posted_though_the_session_ends_first() {
    // RUN-12, EV-1: the stream is faster than the answer. What is not answered soon is not waited for.
    for (late, posted) in [(100, 1), (400, 0)] {
        let world = World::new();
        world.plane.state().history.push(call("t"));
        let answer = Answer::Late(Duration::from_millis(late), Box::new(ok()));
        world.plane.state().posts.push_back(answer);
        let session = world.serve();
        world.plane.until("a post", |plane| !plane.posted().is_empty()).await;
        world.plane.emit(json!({"type":"session.status_terminated"}));
        let began = tokio::time::Instant::now();
        assert_eq!(session.await.expect("an end"), ItemEnd::SessionEnded);
        assert!(began.elapsed() < SECOND / 2, "{:?}", began.elapsed());
        assert_eq!(world.host.noted("Posted").len(), posted, "{late} ms");
    }
}
