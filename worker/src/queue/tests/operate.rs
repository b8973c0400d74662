//! What operators ask, on the scripted transport (AUTH-7, AUTH-12, API-2, API-4).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::super::credential::Credential;
use super::super::*;
use super::world::*;

fn operator(plane: &Arc<Plane>) -> Operator {
    let base = "https://plane.test".parse().expect("a URL");
    let settings = QueueSettings::new(base, "env_1", "operator");
    let client = Client::new(&settings, Arc::new(Arc::clone(plane)), Random::fixed(0.0));
    Operator::over(client, Credential::Organization("sk-ant-api03-x".into()), "env_1")
}

#[tokio::test(start_paused = true)]
async fn an_api_key_goes_in_its_own_header_and_alone() {
    // AUTH-7, AUTH-12, HDR-2, HDR-4.
    let plane = Plane::new();
    let stats = json!({"type":"work_queue_stats","depth":1,"pending":0});
    plane.state().sessions.push_back(Answer::Json(200, stats));
    assert_eq!(operator(&plane).stats().await.expect("statistics").depth, 1);
    let seen = plane.seen("/v1/environments/env_1/work/stats");
    assert_eq!(seen[0].header("x-api-key"), "sk-ant-api03-x");
    assert!(seen[0].headers["x-api-key"].is_sensitive());
    assert!(seen[0].headers.get("authorization").is_none());
    assert!(seen[0].headers.get("anthropic-worker-id").is_none());
    assert_eq!(seen[0].header("anthropic-beta"), "managed-agents-2026-04-01");
}

#[tokio::test(start_paused = true)]
async fn a_stop_says_whether_it_is_forced_and_takes_a_conflict_for_an_answer() {
    // E-STOP, API-2: 204, 200 with anything, 409.
    let plane = Plane::new();
    plane.state().stops.extend([
        Answer::Text(204, String::new()),
        Answer::Text(200, "<html>".to_owned()),
        status(409),
    ]);
    let operator = operator(&plane);
    assert_eq!(operator.stop("work_1", false).await.expect("stopped"), Stopped::Now);
    assert_eq!(operator.stop("work_1", true).await.expect("stopped"), Stopped::Now);
    assert_eq!(operator.stop("work_1", true).await.expect("known"), Stopped::Before);
    let bodies: Vec<String> = plane.seen("/stop").iter().map(|seen| seen.body.clone()).collect();
    assert_eq!(bodies, ["{}", r#"{"force":true}"#, r#"{"force":true}"#]);
}

#[tokio::test(start_paused = true)]
async fn metadata_is_merged_and_null_removes() {
    // E-META.
    let plane = Plane::new();
    let item = json!({"id":"work_1","state":"queued","metadata":{"a":"1"}});
    plane.state().sessions.push_back(Answer::Json(200, item));
    let changes: BTreeMap<String, Option<String>> =
        [("a".to_owned(), Some("1".to_owned())), ("gone".to_owned(), None)].into();
    let item = operator(&plane).change_metadata("work_1", &changes).await.expect("changed");
    assert_eq!(item.metadata["a"], "1");
    let seen = plane.seen("/work/work_1");
    let body: Value = serde_json::from_str(&seen[0].body).expect("JSON");
    assert_eq!(
        (seen[0].method.as_str(), body),
        ("POST", json!({"metadata":{"a":"1","gone":null}}))
    );
}

#[tokio::test(start_paused = true)]
async fn a_page_is_asked_for_by_its_cursor() {
    // API-4.
    let plane = Plane::new();
    plane.state().sessions.extend([
        Answer::Json(200, json!({"data":[],"next_page":"p 2"})),
        Answer::Json(200, json!({"data":[{"id":"work_1"}],"next_page":null})),
    ]);
    let operator = operator(&plane);
    let first = operator.page(20, None).await.expect("a page");
    let second = operator.page(20, first.next_page.as_deref()).await.expect("a page");
    assert_eq!((second.items.len(), second.next_page), (1, None));
    let queries: Vec<String> = plane.seen("/work").iter().map(|seen| seen.query.clone()).collect();
    assert_eq!(queries, ["limit=20", "limit=20&page=p%202"]);
}
