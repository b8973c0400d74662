//! Sessions over HTTP: §2.3 to §2.5, and what a script does.

use serde_json::{Value, json};

use super::Server;

fn kinds(list: &Value) -> Vec<String> {
    let all = list["data"].as_array().cloned().unwrap_or_default();
    all.iter().map(|event| event["type"].as_str().unwrap_or_default().to_owned()).collect()
}

// EV-1, EV-4, RUN-1
#[tokio::test]
async fn a_scripted_session_is_played_to_its_end() {
    let server = Server::new(
        r#"[[session]]
        message = "please"
        calls = [{ bash = "echo a", expect = { text = "a" } }, { read = "b", expect = { contains = "x" } }]"#,
    )
    .await;
    let claim = server.claim().await;
    let session =
        server.ask(&claim.token, "GET", &format!("/v1/sessions/{}", claim.session), "").await;
    assert_eq!(session.json()["agent"]["tools"][0]["type"], "agent_toolset_20260401");
    let mut stream = server.attach(&claim).await;
    assert_eq!(stream.next().await.expect("open")["type"], "user.message");
    let event = stream.until("agent.tool_use").await;
    assert_eq!((&event["name"], &event["input"]), (&json!("bash"), &json!({"command": "echo a"})));
    let idle = stream.until("session.status_idle").await;
    assert_eq!(idle["stop_reason"], json!({"type": "requires_action", "event_ids": [event["id"]]}));
    let id = event["id"].as_str().expect("an id");
    let posted = server.result(&claim, id, "a").await.json();
    assert_eq!(posted["data"][0]["tool_use_id"], json!(id));
    assert_eq!(stream.until("user.tool_result").await["id"], posted["data"][0]["id"]);
    let second = stream.call().await;
    assert_eq!(server.result(&claim, &second, "y").await.status, 200);
    stream.until("session.status_terminated").await;
    let answer = server.list(&claim, "").await.json();
    assert_eq!(answer["next_page"], Value::Null);
    assert_eq!(kinds(&answer).first().map(String::as_str), Some("user.message"));
    assert!(!server.plane.lock().done(), "the item is not stopped yet");
    assert_eq!(server.at_end(), ["missing_stop"]);
    assert_eq!(server.stop(&claim, "{\"force\":true}").await.status, 204);
    assert!(server.plane.lock().done());
    assert_eq!(server.at_end(), [""; 0]);
    let failures = server.failures();
    assert!(failures.len() == 1 && failures[0].contains("text lacks \"x\""), "{failures:?}");
    assert_eq!(server.plane.lock().report(true)["result"], "failed");
}

// EV-1, EV-2, SIM-7
#[tokio::test]
async fn results_that_no_worker_may_post_are_refused_and_noted() {
    let server = Server::new(
        r#"[[session]]
        end = "open"
        calls = [
            { bash = "a", wait = false }, { custom = "b", wait = false },
            { bash = "c", permission = "ask" }, { bash = "d", permission = "deny" },
            
        ]"#,
    )
    .await;
    let claim = server.claim().await;
    let mut stream = server.attach(&claim).await;
    let mut ids = Vec::new();
    for kind in ["agent.tool_use", "agent.custom_tool_use", "agent.tool_use", "agent.tool_use"] {
        ids.push(stream.until(kind).await["id"].as_str().expect("an id").to_owned());
    }
    let content = json!([{"type": "text", "text": "x"}]);
    let builtin = |id: &str| json!({"type": "user.tool_result", "tool_use_id": id, "is_error": false, "content": content});
    let custom = |id: &str| json!({"type": "user.custom_tool_result", "custom_tool_use_id": id, "is_error": false, "content": content});
    let mut no_flag = builtin(&ids[0]);
    no_flag.as_object_mut().expect("an object").remove("is_error");
    let mut thread = builtin(&ids[0]);
    thread["session_thread_id"] = json!("t");
    let mut image = builtin(&ids[0]);
    image["content"] = json!([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "?"}}]);
    #[rustfmt::skip]
    let cases = [
        (builtin("sevt_unknown"),       400, "unknown_call"),
        (custom(&ids[0]),               400, "wrong_pairing"),
        (builtin(&ids[1]),              400, "wrong_pairing"),
        (no_flag,                       400, "bad_result"),
        (thread,                        400, "bad_result"),
        (image,                         400, "bad_result"),
        (builtin(&ids[2]),              400, "unconfirmed_result"),
        (builtin(&ids[3]),              400, "denied_result"),
        (json!({"type": "agent.message"}), 400, "bad_event"),
        (builtin(&ids[0]),              200, ""),
        (builtin(&ids[0]),              400, "double_result"),
        (custom(&ids[1]),               200, ""),
    ];
    let mut expected = Vec::new();
    for (event, status, kind) in cases {
        let answer = server.send(&claim, &event).await;
        assert_eq!(answer.status, status, "{event}: {answer:?}");
        expected.extend((!kind.is_empty()).then_some(kind));
    }
    let all = server.violations();
    assert_eq!(all[..expected.len()], expected);
    let path = format!("/v1/sessions/{}/events", claim.session);
    for body in ["", "{}", "{\"events\":[]}", "not json"] {
        assert_eq!(server.ask(&claim.token, "POST", &path, body).await.status, 400, "{body}");
    }
}

// PERM-4, PERM-5, EV-4
#[tokio::test]
async fn a_confirmed_call_may_be_answered_and_a_denied_one_not() {
    let server = Server::new(
        r#"[[session]]
        calls = [
            { bash = "a", id = "a", permission = "ask" }, { bash = "b", id = "b", permission = "ask" },
            { deny = "b", deny_message = "no" }, { confirm = "a" },
        ]"#,
    )
    .await;
    let claim = server.claim().await;
    let mut stream = server.attach(&claim).await;
    let a = stream.until("agent.tool_use").await;
    assert_eq!(a["evaluated_permission"], "ask");
    let denial = stream.until("user.tool_confirmation").await;
    assert_eq!((&denial["result"], &denial["deny_message"]), (&json!("deny"), &json!("no")));
    let verdict = stream.until("user.tool_confirmation").await;
    assert_eq!((&verdict["result"], &verdict["tool_use_id"]), (&json!("allow"), &a["id"]));
    assert_eq!(server.result(&claim, a["id"].as_str().expect("an id"), "x").await.status, 200);
    stream.until("session.status_terminated").await;
    assert_eq!(server.failures(), [""; 0]);
}

// RUN-16
#[tokio::test]
async fn a_call_of_another_client_is_not_for_the_worker() {
    let server = Server::new(
        r#"[[session]]
        calls = [{ custom = "order", id = "o", unowned = true }, { answer = "o", text = "sent" }]"#,
    )
    .await;
    let claim = server.claim().await;
    let mut stream = server.attach(&claim).await;
    let call = stream.until("agent.custom_tool_use").await;
    let result = stream.until("user.custom_tool_result").await;
    assert_eq!((&result["custom_tool_use_id"], &result["is_error"]), (&call["id"], &json!(false)));
    stream.until("session.status_terminated").await;
    assert_eq!(server.failures(), [""; 0]);
}

// API-4, EV-5, RUN-2
#[tokio::test]
async fn a_list_comes_in_pages_of_which_one_may_be_empty() {
    let server = Server::new(
        r#"[[session]]
        page_size = 2
        empty_page = 2
        start = "at-once"
        end = "idle"
        history = [{ type = "user.message", id = "e0" }, { type = "agent.message", id = "e1" },
            { type = "agent.message", id = "e2" }, { type = "user.message", id = "e3" }]"#,
    )
    .await;
    let claim = server.claim().await;
    let (mut ids, mut sizes, mut cursor) = (Vec::new(), Vec::new(), String::new());
    loop {
        let page = server.list(&claim, &cursor).await.json();
        let data = page["data"].as_array().expect("a list").clone();
        sizes.push(data.len());
        ids.extend(data.iter().map(|event| event["id"].as_str().unwrap_or_default().to_owned()));
        let Some(next) = page["next_page"].as_str() else { break };
        cursor = format!("&page={next}");
    }
    assert_eq!(sizes, [2, 0, 2, 1]);
    assert_eq!(ids[..4], ["e0", "e1", "e2", "e3"]);
    let newest = server.list(&claim, "&order=desc").await.json();
    assert_eq!(newest["data"][0]["type"], "session.status_idle");
    let messages = server.list(&claim, "&types[]=user.message").await.json();
    assert_eq!(kinds(&messages), ["user.message", "user.message"]);
    let none = server.list(&claim, "&created_at[gt]=2999-01-01T00:00:00Z").await.json();
    assert_eq!(kinds(&none).len(), 0);
    for bad in ["&order=up", "&page=x"] {
        assert_eq!(server.list(&claim, bad).await.status, 400, "{bad}");
    }
}

// RACE-5
#[tokio::test]
async fn an_event_can_fall_between_the_stream_and_the_list() {
    let server = Server::new("[[session]]\ncalls = [{ bash = \"a\", gap = true }]").await;
    let claim = server.claim().await;
    let mut stream = server.stream(&claim).await;
    assert_eq!(kinds(&server.list(&claim, "").await.json()).len(), 0, "not in the list");
    let call = stream.call().await;
    assert_eq!(kinds(&server.list(&claim, "").await.json()), ["agent.tool_use"]);
    assert_eq!(server.result(&claim, &call, "x").await.status, 200);
}

// SIM-1, RACE-13
#[tokio::test]
async fn a_message_to_a_dormant_session_makes_a_new_item() {
    let server = Server::new("[[session]]\nend = \"open\"").await;
    let claim = server.claim().await;
    let mut stream = server.attach(&claim).await;
    assert_eq!(server.stop(&claim, "{\"force\":true}").await.status, 204);
    assert_eq!(server.poll().await, Value::Null);
    let steps = json!([{"message": "again"}, {"bash": "true"}]);
    assert_eq!(server.dev("POST", "sessions/sesn_000001/steps", &steps).await.status, 200);
    let call = stream.call().await;
    let again = server.claim().await;
    assert_ne!(again.id, claim.id);
    assert_eq!(again.session, claim.session);
    // A worker posts a message in the name of the user: taken, and no new item.
    let message = json!({"type": "user.message", "content": []});
    assert_eq!(server.send(&again, &message).await.status, 200);
    assert_eq!(server.poll().await, Value::Null);
    // The old token is not lost, it ended; the new holder answers.
    assert_eq!(server.result(&again, &call, "x").await.status, 200);
    assert_eq!(
        server
            .dev("POST", "sessions/sesn_000001/steps", &json!([{"terminate": true}]))
            .await
            .status,
        200
    );
    stream.until("session.status_terminated").await;
    assert_eq!(server.send(&again, &message).await.status, 400);
    assert_eq!(server.stream(&again).await.next().await, None, "UNK-9: it ends at once");
}

#[tokio::test]
async fn a_result_that_never_comes_fails_the_session() {
    let server =
        Server::new("[[session]]\nwithin_s = 0.05\ncalls = [{ bash = \"a\" }, { bash = \"b\" }]")
            .await;
    let claim = server.claim().await;
    let mut stream = server.attach(&claim).await;
    stream.until("session.status_terminated").await;
    let failures = server.failures();
    assert!(failures[0].contains("not within 0.05 s"), "{failures:?}");
}

#[tokio::test]
async fn every_kind_of_step_leaves_its_event() {
    let server = Server::new(
        r#"[[session]]
        end = "delete"
        calls = [
            { thread_started = "t" }, { bash = "a", thread = "t", wait = false },
            { thread_terminated = "t" }, { server_tool = "web_search", text = "r" },
            { emit = { type = "span.x", value = 1 } }, { idle = "refusal" },
        ]"#,
    )
    .await;
    let claim = server.claim().await;
    let mut stream = server.attach(&claim).await;
    let running = stream.until("session.thread_status_running").await;
    let call = stream.until("agent.tool_use").await;
    assert_eq!(call["session_thread_id"], running["session_thread_id"]);
    let ended = stream.until("session.thread_status_terminated").await;
    assert_eq!(ended["session_thread_id"], running["session_thread_id"]);
    let search = stream.until("agent.tool_use").await;
    assert_eq!(stream.until("agent.tool_result").await["tool_use_id"], search["id"]);
    assert_eq!(stream.until("span.x").await["value"], 1);
    assert_eq!(stream.until("session.status_idle").await["stop_reason"]["type"], "refusal");
    stream.until("session.deleted").await;
    assert_eq!(stream.next().await, None, "a deletion closes the stream");
}

#[tokio::test]
async fn many_sessions_with_many_calls_stay_in_order() {
    let script = "[[session]]\ncopies = 20\nrepeat = 2\ncalls = [{ bash = \"a\", repeat = 25 }]";
    let server = Server::new(script).await;
    let mut open = Vec::new();
    for _ in 0..20 {
        let claim = server.claim().await;
        let stream = server.attach(&claim).await;
        open.push((claim, stream));
    }
    for _ in 0..50 {
        for (claim, stream) in &mut open {
            let call = stream.call().await;
            assert_eq!(server.result(claim, &call, "x").await.status, 200);
        }
    }
    for (claim, stream) in &mut open {
        stream.until("session.status_terminated").await;
        assert_eq!(server.stop(claim, "{\"force\":true}").await.status, 204);
    }
    assert!(server.plane.lock().done());
    let report = server.plane.lock().report(true);
    assert_eq!(
        (&report["result"], &report["latency_us"]["count"]),
        (&json!("passed"), &json!(1000))
    );
}

// SIM-1, UNK-5
#[tokio::test]
async fn a_stopped_item_is_followed_by_another_where_the_script_says_so() {
    for (again, key) in [(false, ""), (true, "requeue_on_stop = true")] {
        let script = format!("[[session]]\n{key}\ncalls = [{{ bash = \"a\" }}]");
        let server = Server::new(&script).await;
        let claim = server.claim().await;
        server.attach(&claim).await.call().await;
        assert_eq!(server.stop(&claim, "{\"force\":true}").await.status, 204);
        assert_eq!(!server.poll().await.is_null(), again, "{key}");
        assert!(!server.plane.lock().done(), "a result is missing");
    }
}

// SIM-1
#[tokio::test]
async fn a_message_of_the_user_wakes_a_dormant_session() {
    let server =
        Server::new("[[session]]\nend = \"idle\"\ncalls = [{ wait_stopped = true }]").await;
    let claim = server.claim().await;
    let mut stream = server.attach(&claim).await;
    assert_eq!(server.stop(&claim, "{\"force\":true}").await.status, 204);
    stream.until("session.status_idle").await;
    let path = format!("/v1/sessions/{}/events", claim.session);
    let body = json!({"events": [{"type": "user.message", "content": []}]}).to_string();
    assert_eq!(server.operator("POST", &path, &body).await.status, 200);
    assert_eq!(server.claim().await.session, claim.session);
}

// PERM-8
#[tokio::test]
async fn a_user_confirms_over_the_protocol_too() {
    let server =
        Server::new("[[session]]\ncalls = [{ bash = \"a\", permission = \"ask\", wait = true }]")
            .await;
    let claim = server.claim().await;
    let mut stream = server.attach(&claim).await;
    let call = stream.call().await;
    assert_eq!(server.result(&claim, &call, "early").await.status, 400);
    let path = format!("/v1/sessions/{}/events", claim.session);
    let wrong = json!({"events": [{"type": "user.tool_confirmation", "tool_use_id": call}]});
    assert_eq!(server.operator("POST", &path, &wrong.to_string()).await.status, 400);
    let verdict = json!({"events": [{"type": "user.tool_confirmation", "tool_use_id": call, "result": "allow"}]});
    assert_eq!(server.operator("POST", &path, &verdict.to_string()).await.status, 200);
    assert_eq!(server.result(&claim, &call, "x").await.status, 200);
}

// SESS-2, LEASE-18
#[tokio::test]
async fn a_session_can_be_over_before_anybody_came() {
    let server =
        Server::new("[server]\nended_stream = 404\n[[session]]\nstatus = \"terminated\"").await;
    let claim = server.claim().await;
    let path = format!("/v1/sessions/{}", claim.session);
    assert_eq!(server.ask(&claim.token, "GET", &path, "").await.json()["status"], "terminated");
    let stream = server.ask(&claim.token, "GET", &format!("{path}/events/stream"), "").await;
    assert_eq!(stream.status, 404);
    assert_eq!(server.stop(&claim, "{\"force\":true}").await.status, 204);
    assert!(server.plane.lock().done());
}

#[tokio::test]
async fn requests_and_pushes_are_bounded() {
    let server = Server::new("[[session]]\nend = \"open\"").await;
    let claim = server.claim().await;
    let message = json!({"type": "user.message", "content": []});
    let path = format!("/v1/sessions/{}/events", claim.session);
    let many = json!({"events": vec![message; 1001]}).to_string();
    assert_eq!(server.ask(&claim.token, "POST", &path, &many).await.status, 400);
    let large = "x".repeat(32 * 1024 * 1024 + 1);
    assert_eq!(server.ask(&claim.token, "POST", &path, &large).await.status, 413);
    let steps = json!(vec![json!({"delay_ms": 0}); 100_001]);
    assert_eq!(server.dev("POST", "sessions/session/steps", &steps).await.status, 400);
    let sessions = json!({"copies": 9_999});
    assert_eq!(server.dev("POST", "sessions", &sessions).await.status, 200);
    assert_eq!(server.dev("POST", "sessions", &json!({})).await.status, 400);
}
