//! Faults over HTTP: SIM-6.

use serde_json::{Value, json};

use super::{Server, WORK};

fn with_fault(fault: &str) -> String {
    format!("[[session]]\ncalls = [{{ bash = \"true\" }}]\n[[fault]]\n{fault}")
}

#[tokio::test]
async fn a_request_can_be_refused_with_any_status_and_headers() {
    let server = Server::new(&with_fault(
        "on = \"poll\"\ndo = \"529\"\nretry_after = \"3\"\nretry_after_ms = 20\nshould_retry = false\nerror_code = \"x\"",
    ))
    .await;
    let refused = server.get(&format!("{WORK}/poll")).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]["type"]),
        (529, &json!("overloaded_error"))
    );
    assert_eq!(refused.json()["error"]["details"]["error_code"], "x");
    let header = |name: &str| refused.headers.get(name).and_then(|value| value.to_str().ok());
    assert_eq!(header("retry-after"), Some("3"));
    assert_eq!(header("retry-after-ms"), Some("20"));
    assert_eq!(header("x-should-retry"), Some("false"));
    assert!(!server.poll().await.is_null(), "only once");
}

#[tokio::test]
async fn bodies_can_be_wrong() {
    #[rustfmt::skip]
    let cases = [
        ("garbage", 200, "<html>not JSON"), ("empty-body", 200, ""), ("empty-object", 200, "{}"),
        ("204", 204, ""), ("nothing", 200, "null"),
    ];
    for (kind, status, body) in cases {
        let server = Server::new(&with_fault(&format!("on = \"poll\"\ndo = \"{kind}\""))).await;
        let answer = server.get(&format!("{WORK}/poll")).await;
        assert_eq!((answer.status, &answer.bytes[..]), (status, body.as_bytes()), "{kind}");
    }
}

// RACE-2, RACE-7
#[tokio::test]
async fn an_answer_can_be_lost_before_or_after_the_deed() {
    for (kind, done) in [("reset", false), ("reset-after", true), ("500-after", true)] {
        let server = Server::new(&with_fault(&format!("on = \"send\"\ndo = \"{kind}\""))).await;
        let claim = server.claim().await;
        let mut stream = server.attach(&claim).await;
        let call = stream.call().await;
        let event = json!({"events": [{"type": "user.tool_result", "tool_use_id": call,
            "is_error": false, "content": [{"type": "text", "text": "x"}]}]});
        let bearer = format!("Bearer {}", claim.token);
        let path = format!("/v1/sessions/{}/events", claim.session);
        let headers = [
            ("authorization", bearer.as_str()),
            ("anthropic-version", "2026-10-21"),
            ("anthropic-beta", super::AGENTS),
        ];
        let lost = server.raw("POST", &path, &headers, event.to_string()).await;
        assert_eq!(lost.is_err(), kind.starts_with("reset"), "{kind}: {lost:?}");
        let again = server.result(&claim, &call, "x").await.status;
        assert_eq!(again, if done { 400 } else { 200 }, "{kind}");
        assert_eq!(server.stop(&claim, "{\"force\":true}").await.status, 204);
        assert_eq!(server.at_end(), [""; 0], "{kind}: posting again is right (RUN-28)");
    }
}

// RACE-2
#[tokio::test]
async fn a_lost_answer_to_a_heartbeat_breaks_the_chain_without_blame() {
    let server = Server::new(&with_fault("on = \"heartbeat\"\ndo = \"500-after\"\nnth = 2")).await;
    let claim = server.claim().await;
    assert_eq!(server.beat(&claim.token, &claim.id, &claim.heartbeat).await.status, 500);
    let refused = server.beat(&claim.token, &claim.id, &claim.heartbeat).await;
    assert_eq!(refused.status, 412);
    assert_eq!(server.at_end(), [""; 0], "who gives up need not stop");
    let current = refused.json()["error"]["details"]["current_state"]["last_heartbeat"].clone();
    let adopted = server.beat(&claim.token, &claim.id, current.as_str().expect("a value")).await;
    assert_eq!(adopted.status, 200);
    assert_eq!(server.at_end(), ["missing_stop"], "who goes on must stop in the end");
}

// LEASE-6, LEASE-9, LEASE-13
#[tokio::test]
async fn heartbeats_can_be_answered_with_every_end_of_a_lease() {
    #[rustfmt::skip]
    let cases = [
        ("stopping",     json!({"state": "stopping", "lease_extended": true})),
        ("stopped",      json!({"state": "stopped", "lease_extended": false})),
        ("not-extended", json!({"state": "active", "lease_extended": false})),
        ("ttl",          json!({"state": "active", "ttl_seconds": 7})),
    ];
    for (kind, want) in cases {
        let fault = format!("on = \"heartbeat\"\nnth = 2\ndo = \"{kind}\"\nvalue = 7");
        let server = Server::new(&with_fault(&fault)).await;
        let claim = server.claim().await;
        let beat = server.beat(&claim.token, &claim.id, &claim.heartbeat).await.json();
        for (key, value) in want.as_object().expect("an object") {
            assert_eq!(&beat[key], value, "{kind}: {key}");
        }
    }
    for (kind, again) in [("412", false), ("lost", true)] {
        let fault = format!("on = \"heartbeat\"\nnth = 2\ndo = \"{kind}\"");
        let server = Server::new(&with_fault(&fault)).await;
        let claim = server.claim().await;
        let mut stream = server.attach(&claim).await;
        let call = stream.call().await;
        assert_eq!(server.beat(&claim.token, &claim.id, &claim.heartbeat).await.status, 412);
        assert_eq!(!server.poll().await.is_null(), again, "{kind}: queued again");
        assert_eq!(server.violations(), [""; 0], "{kind}");
        assert_eq!(server.result(&claim, &call, "x").await.status, 200);
        assert_eq!(server.violations(), ["result_after_lost_lease"], "{kind}");
    }
}

// RUN-6
#[tokio::test]
async fn one_page_of_a_list_can_fail() {
    let server =
        Server::new(&with_fault("on = \"list\"\npage = 2\ndo = \"500\"\nsession = \"session\""))
            .await;
    let events = json!([{"type": "a.x"}, {"type": "a.y"}, {"type": "a.z"}]);
    assert_eq!(server.dev("POST", "sessions/session/events", &events).await.status, 200);
    let claim = server.claim().await;
    let path = |page: &str| format!("/v1/sessions/{}/events?limit=2{page}", claim.session);
    let first = server.ask(&claim.token, "GET", &path(""), "").await;
    let next = first.json()["next_page"].as_str().expect("more").to_owned();
    let second = path(&format!("&page={next}"));
    assert_eq!(server.ask(&claim.token, "GET", &second, "").await.status, 500);
    assert_eq!(server.ask(&claim.token, "GET", &second, "").await.status, 200);
}

// SSE-4, SSE-6
#[tokio::test]
async fn a_stream_can_end_fail_or_repeat_itself() {
    for (kind, want) in
        [("eof", vec!["agent.tool_use"]), ("error-event", vec!["agent.tool_use", "error"])]
    {
        let fault = format!("on = \"stream\"\nafter = 1\ndo = \"{kind}\"");
        let server = Server::new(&with_fault(&fault)).await;
        let claim = server.claim().await;
        let mut stream = server.attach(&claim).await;
        let mut got = Vec::new();
        while let Some(event) = stream.next().await {
            got.push(event["type"].as_str().unwrap_or_default().to_owned());
        }
        assert_eq!(got, want, "{kind}");
        let mut again = server.attach(&claim).await;
        assert_eq!(server.plane.lock().sessions[0].streams_opened, 2);
        assert_eq!(
            server.dev("POST", "sessions/session/events", &json!([{"type": "x"}])).await.status,
            200
        );
        again.until("x").await;
    }
    let server = Server::new(&with_fault("on = \"stream\"\ndo = \"duplicate\"")).await;
    let claim = server.claim().await;
    let mut stream = server.attach(&claim).await;
    assert_eq!(stream.call().await, stream.call().await);
    let server = Server::new(&with_fault("on = \"stream\"\ndo = \"split\"")).await;
    let claim = server.claim().await;
    assert!(!server.attach(&claim).await.call().await.is_empty());
    let server = Server::new(&with_fault("on = \"stream\"\ndo = \"404\"")).await;
    let claim = server.claim().await;
    let path = format!("/v1/sessions/{}/events/stream", claim.session);
    assert_eq!(server.ask(&claim.token, "GET", &path, "").await.status, 404);
}

#[tokio::test]
async fn faults_can_be_injected_and_forgotten_while_it_runs() {
    let server = Server::new("").await;
    let fault = json!({"on": "poll", "do": "503", "times": 2});
    assert_eq!(server.dev("POST", "faults", &fault).await.json()["waiting"], 1);
    assert_eq!(server.get(&format!("{WORK}/poll")).await.status, 503);
    assert_eq!(server.dev("DELETE", "faults", &Value::Null).await.status, 200);
    assert_eq!(server.get(&format!("{WORK}/poll")).await.status, 200);
    let wrong = server.dev("POST", "faults", &json!({"on": "poll", "do": "sing"})).await;
    assert_eq!(wrong.status, 400);
    assert!(wrong.json()["error"]["message"].as_str().is_some_and(|text| text.contains("sing")));
}

#[tokio::test]
async fn an_answer_can_be_late_or_never_come() {
    use std::time::{Duration, Instant};
    let server = Server::new(&with_fault("on = \"poll\"\ndo = \"slow\"\nms = 40")).await;
    let began = Instant::now();
    assert!(!server.poll().await.is_null());
    assert!(began.elapsed() >= Duration::from_millis(40));
    for (kind, done) in [("hang", false), ("hang-after", true)] {
        let server = Server::new(&with_fault(&format!("on = \"poll\"\ndo = \"{kind}\""))).await;
        let hung = tokio::time::timeout(Duration::from_millis(50), server.poll()).await;
        assert!(hung.is_err(), "{kind}: {hung:?}");
        assert_eq!(server.poll().await.is_null(), done, "{kind}");
    }
}

// RACE-2 of an ack: applied, and the answer lost
#[tokio::test]
async fn an_ack_whose_answer_was_lost_is_applied() {
    let server = Server::new(&with_fault("on = \"ack\"\ndo = \"504-after\"")).await;
    let item = server.poll().await;
    let ack = format!("{WORK}/{}/ack", item["id"].as_str().expect("an item"));
    assert_eq!(server.post(&ack, "").await.status, 504);
    server.advance(6);
    assert!(server.poll().await.is_null(), "it is not free again");
}
