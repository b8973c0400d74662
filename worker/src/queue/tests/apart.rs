//! Parts of the queue on their own: sessions without a work item, items that others serve.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::world::*;
use crate::queue::credential::Credential;
use crate::queue::host::SessionTools;
use crate::queue::perform::Limits;
use crate::queue::*;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_session_without_a_lease_is_served_and_its_posts_have_five_minutes() {
    // RUN-24, LEASE-15: nothing is polled, acked, beaten or stopped.
    let world = World::new();
    world.plane.state().posts.extend(vec![status(503); 100]);
    world.plane.state().history.push(call("t"));
    let (shared, watch) = (Arc::clone(&world.shared), world.watch.clone());
    let token = Credential::Session("sk-token".into());
    let run = async move { item::attend(&shared, "sesn_1", token, watch).await };
    let attached = tokio::spawn(run);
    world.plane.until("it gives up", |_| world.host.noted("PostFailed").len() == 1).await;
    let posts = world.plane.seen("/events");
    let posts: Vec<_> = posts.iter().filter(|seen| seen.method == "POST").collect();
    let (first, last) = (posts[0], posts[posts.len() - 1]);
    assert_eq!((last.at - first.at).as_secs_f64().round(), 300.0);
    assert_eq!(first.header("authorization"), "Bearer sk-token");
    world.plane.state().posts.clear();
    world.plane.end_streams();
    world.plane.until("a post", |plane| plane.posted().len() > posts.len()).await;
    assert_eq!(world.host.noted("run"), ["run t"], "INV-9: once");
    world.plane.emit(end_turn());
    assert_eq!(attached.await.expect("an end"), ItemEnd::Idle);
    for end in ["/poll", "/ack", "/heartbeat", "/stop"] {
        assert!(world.plane.seen(end).is_empty(), "{end}");
    }
}

/// Is done with an item after a while.
struct After(Duration, HandOverEnd, Arc<Mutex<Vec<String>>>);

impl Handler for After {
    fn hand_over(&self, work: HandedOver, _shutdown: ShutdownWatch) -> BoxFuture<'_, HandOverEnd> {
        self.2.lock().expect("not poisoned").push(work.ids.session);
        Box::pin(async {
            tokio::time::sleep(self.0).await;
            self.1
        })
    }
}

#[tokio::test(start_paused = true)]
async fn an_item_that_somebody_else_serves_is_asked_to_stop_when_they_are_done() {
    // POLL-10: no force, no heartbeat; not at all for one that was detached.
    for (end, stops) in [(HandOverEnd::Ended, 1), (HandOverEnd::Detached, 0)] {
        let mut world = World::new();
        let seen = Arc::default();
        let handler = Arc::new(After(SECOND * 5, end, Arc::clone(&seen)));
        let shared = Arc::get_mut(&mut world.shared).expect("not shared yet");
        shared.drive.handler = Some(handler);
        world.plane.state().polls.push_back(Answer::Json(200, work("session")));
        let polling = world.poll();
        world.plane.until("an ack", |plane| plane.seen("/ack").len() == 1).await;
        tokio::time::sleep(SECOND * 4).await;
        assert!(world.plane.seen("/stop").is_empty(), "it is not done yet");
        tokio::time::sleep(SECOND * 4).await;
        let stopped = world.plane.seen("/stop");
        assert_eq!(stopped.len(), stops, "{end:?}");
        assert!(stopped.iter().all(|stop| stop.body == "{}"), "{}", stopped[0].body);
        assert!(world.plane.seen("/heartbeat").is_empty());
        assert_eq!(*seen.lock().expect("not poisoned"), ["sesn_1"]);
        world.shutdown.drain();
        assert_eq!(polling.await.expect("an end").expect("no refusal"), QueueEnd::Shutdown);
    }
}

#[tokio::test(start_paused = true)]
async fn an_item_that_is_no_session_is_stopped_and_not_handed_over() {
    // POLL-13.
    let mut world = World::new();
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let handler = Arc::new(After(SECOND, HandOverEnd::Detached, Arc::clone(&seen)));
    Arc::get_mut(&mut world.shared).expect("not shared yet").drive.handler = Some(handler);
    world.plane.state().polls.push_back(Answer::Json(200, work("healthcheck")));
    let _polling = world.poll();
    world.plane.until("a stop", |plane| plane.seen("/stop").len() == 1).await;
    assert!(seen.lock().expect("not poisoned").is_empty());
}

#[test]
fn a_tool_that_needs_longer_gets_its_time_and_a_little_more() {
    // RUN-17.
    let limits = Limits {
        tool_timeout: SECOND * 150,
        tool_timeout_max: SECOND * 3600,
        kill_limit: SECOND * 5,
    };
    let call = |kind: &str| wire_call(kind, "bash", r#"{"timeout_ms":600000}"#);
    let (bash, custom) = (call("agent.tool_use"), call("agent.custom_tool_use"));
    #[rustfmt::skip]
    let cases = [
        (&bash,   None,                600 + 30),
        (&custom, None,                150),
        (&custom, Some(SECOND * 10),   150),
        (&custom, Some(SECOND * 120),  150),
        (&custom, Some(SECOND * 300),  330),
        (&custom, Some(SECOND * 3600), 3600),
        (&custom, Some(Duration::MAX), 3600),
    ];
    for (call, own, seconds) in cases {
        assert_eq!(limits.of(call, own), SECOND * seconds, "{own:?}");
    }
    // The default of the trait says nothing.
    struct Plain;
    impl SessionTools for Plain {
        fn owner(&self) -> Owner {
            Box::new(|_, _| true)
        }
        async fn run(&mut self, _call: &Call, _stop: CancelToken) -> CallOutcome {
            CallOutcome::text("")
        }
    }
    assert_eq!(Plain.limit(&custom), None);
}
