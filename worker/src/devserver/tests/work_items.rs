//! Work items over HTTP: §2.1 and §2.8.

use serde_json::{Value, json};

use super::{AGENTS, Server, WORK, token_of};

const ONE: &str = "[[session]]\ncalls = [{ bash = \"true\" }]";

// API-1
#[tokio::test]
async fn an_empty_queue_answers_null() {
    let server = Server::new("").await;
    let answer = server.get(&format!("{WORK}/poll")).await;
    assert_eq!((answer.status, &answer.bytes[..]), (200, &b"null"[..]));
    #[rustfmt::skip]
    let cases = [("204", 204, ""), ("empty-body", 200, ""), ("empty-object", 200, "{}")];
    for (kind, status, body) in cases {
        let server = Server::new(&format!("[server]\nempty_poll = \"{kind}\"")).await;
        let answer = server.get(&format!("{WORK}/poll")).await;
        assert_eq!((answer.status, &answer.bytes[..]), (status, body.as_bytes()), "{kind}");
    }
}

// POLL-1
#[tokio::test]
async fn a_poll_waits_for_work_and_at_most_as_long_as_it_asks() {
    let server = Server::new("").await;
    for bad in ["0", "1000", "x"] {
        assert_eq!(server.get(&format!("{WORK}/poll?block_ms={bad}")).await.status, 400, "{bad}");
    }
    assert_eq!(server.violations(), ["bad_poll"; 3]);
    let path = format!("{WORK}/poll?block_ms=999");
    let (polled, added) = tokio::join!(server.get(&path), async {
        tokio::task::yield_now().await;
        server.dev("POST", "sessions", &json!({"calls": [{"bash": "true"}]})).await
    });
    assert_eq!(added.status, 200);
    assert_eq!(polled.json()["type"], "work");
    assert_eq!(server.get(&format!("{WORK}/poll?block_ms=5")).await.json(), Value::Null);
}

// AUTH-2, AUTH-3, SIM-1, SIM-2, SIM-3, API-2, API-3
#[tokio::test]
async fn an_item_goes_from_queued_to_stopped() {
    let server = Server::new(ONE).await;
    let item = server.poll().await;
    assert_eq!((&item["state"], &item["data"]["type"]), (&json!("queued"), &json!("session")));
    let token = token_of(&item).expect("a token");
    let id = item["id"].as_str().expect("an id");
    assert_eq!(server.poll().await, Value::Null, "it is handed out once");
    let acked = server.post(&format!("{WORK}/{id}/ack"), "").await.json();
    assert_eq!((&acked["state"], &acked["secret"]), (&json!("starting"), &Value::Null));
    assert_eq!(server.post(&format!("{WORK}/{id}/ack"), "").await.status, 200, "UNK-2");
    let first = server.beat(&token, id, "NO_HEARTBEAT").await.json();
    assert_eq!((&first["type"], &first["state"]), (&json!("work_heartbeat"), &json!("active")));
    assert_eq!((&first["lease_extended"], &first["ttl_seconds"]), (&json!(true), &json!(300)));
    let value = first["last_heartbeat"].as_str().expect("a value");
    assert!(value.contains('+') && value.contains(':'), "it must be encoded: {value}");
    let second = server.beat(&token, id, value).await.json();
    assert_ne!(second["last_heartbeat"], first["last_heartbeat"]);
    let stop = format!("{WORK}/{id}/stop");
    assert_eq!(server.ask(&token, "POST", &stop, "{}").await.status, 204);
    let beat = server.beat(&token, id, "anything").await.json();
    assert_eq!((&beat["state"], &beat["lease_extended"]), (&json!("stopping"), &json!(true)));
    assert_eq!(server.ask(&token, "POST", &stop, "{\"force\":true}").await.status, 204);
    let beat = server.beat(&token, id, "anything").await.json();
    assert_eq!((&beat["state"], &beat["lease_extended"]), (&json!("stopped"), &json!(false)));
    assert_eq!(server.ask(&token, "POST", &stop, "{\"force\":true}").await.status, 409);
    assert_eq!(server.post(&format!("{WORK}/{id}/ack"), "").await.status, 409);
    assert_eq!(server.violations(), [""; 0]);
}

// LEASE-6, §2.2
#[tokio::test]
async fn a_broken_chain_is_refused_with_the_current_state() {
    let server = Server::new(ONE).await;
    let claim = server.claim().await;
    let refused = server.beat(&claim.token, &claim.id, "NO_HEARTBEAT").await;
    assert_eq!(refused.status, 412);
    let details = &refused.json()["error"]["details"];
    assert_eq!(details["error_code"], "heartbeat_precondition_failed");
    assert_eq!(details["current_state"]["state"], "active");
    assert_eq!(details["current_state"]["last_heartbeat"], claim.heartbeat);
    assert_eq!(server.violations()[0], "heartbeat_chain");
}

// SIM-4, SIM-7
#[tokio::test]
async fn a_lease_that_ran_out_is_given_to_another_worker() {
    let server = Server::new(ONE).await;
    let old = server.claim().await;
    let mut stream = server.attach(&old).await;
    let call = stream.call().await;
    server.advance(301);
    let new = server.claim().await;
    assert_eq!(new.id, old.id);
    assert_ne!(new.token, old.token);
    assert_eq!(server.beat(&old.token, &old.id, &old.heartbeat).await.status, 412);
    assert_eq!(server.violations(), [""; 0], "losing a lease is no mistake");
    assert_eq!(server.result(&old, &call, "").await.status, 400, "an empty text");
    assert_eq!(server.result(&old, &call, "late").await.status, 200);
    assert_eq!(server.stop(&old, "{\"force\":true}").await.status, 204);
    let all = server.violations();
    assert_eq!(all, ["bad_result", "result_after_lost_lease", "stop_after_lost_lease"]);
}

// RACE-1, SIM-1
#[tokio::test]
async fn an_item_that_nobody_acked_is_handed_out_again() {
    let server = Server::new(ONE).await;
    let first = server.poll().await;
    server.advance(4);
    assert_eq!(server.poll().await, Value::Null);
    let sooner = server.get(&format!("{WORK}/poll?reclaim_older_than_ms=2000")).await.json();
    assert_eq!(sooner["id"], first["id"]);
    server.advance(5);
    let again = server.claim().await;
    assert_eq!(json!(again.id), first["id"]);
    let slow = token_of(&first).expect("a token");
    assert_eq!(server.post(&format!("{WORK}/{}/ack", again.id), "").await.status, 200);
    assert_eq!(server.beat(&slow, &again.id, "NO_HEARTBEAT").await.status, 412);
    assert_eq!(server.violations(), [""; 0]);
}

// AUTH-12, §2.1
#[tokio::test]
async fn operators_read_and_label_items_that_workers_may_not() {
    let server = Server::new("[[session]]\ncopies = 3\ncalls = [{ bash = \"true\" }]").await;
    let claim = server.claim().await;
    let path = format!("{WORK}/{}", claim.id);
    assert_eq!(server.get(&path).await.status, 403);
    assert_eq!(server.operator("GET", &path, "").await.json()["state"], "active");
    let body = json!({"metadata": {"a": "1", "b": "2"}}).to_string();
    assert_eq!(server.operator("POST", &path, &body).await.json()["metadata"]["a"], "1");
    let body = json!({"metadata": {"a": null}}).to_string();
    assert_eq!(server.operator("POST", &path, &body).await.json()["metadata"], json!({"b": "2"}));
    let body = json!({"metadata": {"a": 1}}).to_string();
    assert_eq!(server.operator("POST", &path, &body).await.status, 400);
    let page = server.get(&format!("{WORK}?limit=2")).await.json();
    assert_eq!(page["data"].as_array().map(Vec::len), Some(2));
    let next = page["next_page"].as_str().expect("more");
    let page = server.get(&format!("{WORK}?limit=2&page={next}")).await.json();
    assert_eq!(
        (page["data"].as_array().map(Vec::len), &page["next_page"]),
        (Some(1), &Value::Null)
    );
    assert_eq!(server.get(&format!("{WORK}?limit=0")).await.status, 400);
    assert!(!server.poll().await.is_null());
    let stats = server.operator("GET", &format!("{WORK}/stats"), "").await.json();
    assert_eq!((&stats["depth"], &stats["pending"]), (&json!(1), &json!(1)));
    assert_eq!(stats["workers_polling"], 1);
    server.advance(31);
    let stats = server.operator("GET", &format!("{WORK}/stats"), "").await.json();
    assert_eq!(stats["workers_polling"], 0);
    assert_eq!(server.operator("GET", &format!("{WORK}/poll"), "").await.status, 403);
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let server = Server::new(ONE).await;
    for path in [
        "/v1/environments/env_other/work/poll",
        "/v1/sessions/sesn_000009",
        "/v1/sessions/sesn_000009/events",
        "/v1/skills/s/versions/latest",
    ] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
    }
    for path in
        ["/v1/environments/env_dev/work/work_9/ack", "/v1/environments/env_dev/work/work_9/stop"]
    {
        assert_eq!(server.post(path, "{}").await.status, 404, "{path}");
    }
    assert_eq!(server.get("/v1/models").await.status, 404);
    assert!(server.violations().contains(&"unknown_endpoint"));
}

// AUTH-7, HDR-1, HDR-2, HDR-4, HDR-7, SIM-7
#[tokio::test]
async fn wrong_headers_are_violations() {
    let poll = format!("{WORK}/poll");
    let bearer = |server: &Server| format!("Bearer {}", server.key);
    let (version, beta) = (("anthropic-version", "2026-10-21"), ("anthropic-beta", AGENTS));
    let worker = ("anthropic-worker-id", "w");
    #[rustfmt::skip]
    let cases = [
        ("bad_version",     vec![("anthropic-version", "2020-01-01"), beta, worker],        200),
        ("bad_version",     vec![beta, worker],                                             200),
        ("bad_beta",        vec![version, worker],                                          200),
        ("bad_beta",        vec![version, worker, beta, ("anthropic-beta", "skills-2025-10-02")], 200),
        ("no_worker_id",    vec![version, beta],                                            200),
        ("api_key",         vec![version, beta, worker, ("x-api-key", "k")],                401),
    ];
    for (kind, mut headers, status) in cases {
        let server = Server::new("").await;
        let bearer = bearer(&server);
        headers.push(("authorization", &bearer));
        assert_eq!(server.with("GET", &poll, &headers, String::new()).await.status, status);
        assert_eq!(server.violations(), [kind], "{headers:?}");
    }
    let server = Server::new("").await;
    // HDR-11: old clients say so in the query of every request.
    let old = server.ask(&server.key, "GET", &format!("{poll}?beta=true"), "").await;
    assert_eq!(old.status, 200);
    assert_eq!(server.violations(), [""; 0]);
    let wrong = server.ask("sk-ant-wrong", "GET", &poll, "").await;
    assert_eq!(
        (wrong.status, &wrong.json()["error"]["type"]),
        (401, &json!("authentication_error"))
    );
    assert!(wrong.headers.contains_key("request-id"));
    assert_eq!(server.violations(), [""; 0], "a rejected key is no violation");
    let bearers =
        [("authorization", "Bearer a"), ("authorization", "Bearer b"), version, beta, worker];
    assert_eq!(server.with("GET", &poll, &bearers, String::new()).await.status, 401);
    assert_eq!(
        server.with("GET", &poll, &[version, beta, worker], String::new()).await.status,
        401
    );
    assert_eq!(server.violations(), ["dual_credential", "no_credential"]);
}

// HDR-7
#[tokio::test]
async fn bodies_where_none_belong_and_of_other_types_are_violations() {
    let server = Server::new(ONE).await;
    let id = server.poll().await["id"].as_str().expect("an item").to_owned();
    assert_eq!(server.post(&format!("{WORK}/{id}/ack"), "{}").await.status, 200);
    let beat = format!("{WORK}/{id}/heartbeat?expected_last_heartbeat=NO_HEARTBEAT");
    assert_eq!(server.post(&beat, "{}").await.status, 200);
    assert_eq!(server.post(&format!("{WORK}/{id}/heartbeat"), "").await.status, 400);
    assert_eq!(server.post(&format!("{WORK}/{id}/stop"), "").await.status, 204);
    assert_eq!(server.violations(), ["bad_body", "bad_body", "bad_heartbeat", "bad_body"]);
    let bearer = format!("Bearer {}", server.key);
    let headers = [
        ("authorization", bearer.as_str()),
        ("anthropic-version", "2023-06-01"),
        ("anthropic-beta", AGENTS),
        ("content-type", "text/plain"),
    ];
    let stop = format!("{WORK}/{id}/stop");
    server.with("POST", &stop, &headers, "{}".to_owned()).await;
    assert_eq!(server.violations().len(), 5);
}

#[tokio::test]
async fn numbers_at_the_edge_break_nothing() {
    let server = Server::new(&format!("[server]\nttl_seconds = {}\n{ONE}", i64::MAX)).await;
    let claim = server.claim().await;
    assert_eq!(server.get(&format!("{WORK}/poll?block_ms=1")).await.json(), Value::Null);
    let far = u64::MAX;
    assert_eq!(server.get(&format!("{WORK}?page=workpage_{far}")).await.status, 200);
    assert_eq!(server.list(&claim, &format!("&page=evpage_{far}")).await.status, 200);
    assert_eq!(server.get(&format!("{WORK}/poll?reclaim_older_than_ms={far}")).await.status, 200);
    assert_eq!(server.dev("POST", "advance", &json!({"ms": far})).await.status, 400);
    assert_eq!(server.get(&format!("{WORK}/stats")).await.status, 200);
}

// AUTH-5, AUTH-6
#[tokio::test]
async fn a_token_is_good_for_its_own_item_only() {
    let server = Server::new("[[session]]\ncopies = 2\ncalls = [{ bash = \"true\" }]").await;
    let (first, second) = (server.claim().await, server.claim().await);
    let other = format!("/v1/sessions/{}", second.session);
    assert_eq!(server.ask(&first.token, "GET", &other, "").await.status, 403);
    assert_eq!(server.beat(&first.token, &second.id, &second.heartbeat).await.status, 403);
    assert_eq!(server.ask(&first.token, "GET", &format!("{WORK}/poll"), "").await.status, 403);
    let own = format!("/v1/sessions/{}", first.session);
    assert_eq!(server.ask(&first.token, "GET", &own, "").await.status, 200);
    assert_eq!(server.violations()[..3], ["credential_misuse"; 3]);
}

// POLL-13
#[tokio::test]
async fn items_of_other_types_and_without_data_can_be_queued() {
    let server = Server::new("[[work]]\ntype = \"healthcheck\"\n[[work]]").await;
    assert_eq!(server.poll().await["data"], json!({"type": "healthcheck"}));
    assert_eq!(server.poll().await["data"], Value::Null);
    assert!(!server.plane.lock().done());
}

// UNK-2, UNK-4
#[tokio::test]
async fn what_the_protocol_leaves_open_can_be_chosen() {
    let script = format!("[server]\nack_repeat = 409\nstop_status = 200\nttl_seconds = 0\n{ONE}");
    let server = Server::new(&script).await;
    let claim = server.claim().await;
    let ack = format!("{WORK}/{}/ack", claim.id);
    assert_eq!(server.post(&ack, "").await.status, 409);
    server.advance(10_000);
    let beat = server.beat(&claim.token, &claim.id, &claim.heartbeat).await.json();
    assert_eq!((&beat["ttl_seconds"], &beat["state"]), (&json!(0), &json!("active")), "LEASE-3");
    let stopped = server.stop(&claim, "{\"force\":true}").await;
    assert_eq!((stopped.status, &stopped.json()["state"]), (200, &json!("stopped")));
}

// AUTH-3, AUTH-4
#[tokio::test]
async fn a_secret_comes_in_every_form() {
    #[rustfmt::skip]
    let cases = [("token", true), ("padded", true), ("none", false), ("garbage", false)];
    for (kind, token) in cases {
        let server = Server::new(&format!("[[session]]\nsecret = \"{kind}\"")).await;
        let item = server.poll().await;
        assert_eq!(token_of(&item).is_some(), token, "{kind}");
        assert_eq!(item["secret"].is_null(), kind == "none", "{kind}");
    }
    // Without a token the key serves for everything.
    let server = Server::new("[[session]]\nsecret = \"none\"\ncalls = [{ bash = \"a\" }]").await;
    let claim = server.claim().await;
    let call = server.attach(&claim).await.call().await;
    assert_eq!(server.result(&claim, &call, "x").await.status, 200);
    server.advance(301);
    assert_eq!(server.poll().await["id"], json!(claim.id));
    assert_eq!(server.violations(), [""; 0]);
}

#[tokio::test]
async fn violations_that_a_test_provokes_can_be_tolerated() {
    let script = format!("[server]\ntolerate = [\"heartbeat_chain\", \"missing_stop\"]\n{ONE}");
    let server = Server::new(&script).await;
    let claim = server.claim().await;
    assert_eq!(server.beat(&claim.token, &claim.id, "NO_HEARTBEAT").await.status, 412, "WRUN-4");
    assert_eq!(server.at_end(), [""; 0]);
}
