//! The client: generic retries, redirects, limits (HTTP-1..5, AUTH-7, HDR-2).

use std::sync::Arc;
use std::time::Duration;

use super::super::client::ApiError;
use super::super::credential::Credential;
use super::super::request::Request;
use super::super::*;
use super::world::*;

fn client(plane: &Arc<Plane>, headers: &[(&'static str, &str)]) -> (Client, Credential) {
    let base = "https://plane.test".parse().expect("a URL");
    let mut settings = QueueSettings::new(base, "env_1", "host-1");
    for (name, value) in headers {
        settings.custom_headers.append(*name, value.parse().expect("a value"));
    }
    settings.workspace_id = Some("wrkspc_1".to_owned());
    let client = Client::new(&settings, Arc::new(Arc::clone(plane)), Random::fixed(0.0));
    (client, Credential::Session("sk-token".into()))
}

fn request() -> Request {
    Request::get(&["sessions", "sesn_1"]).expect("a request")
}

#[tokio::test(start_paused = true)]
async fn a_request_is_sent_three_times_at_most() {
    // HTTP-1, HTTP-2.
    for code in [408, 409, 429, 500, 503] {
        let plane = Plane::new();
        plane.state().sessions.extend(vec![status(code); 3]);
        let (client, by) = client(&plane, &[]);
        let error = client.send(&by, &request()).await.expect_err("an error");
        assert_eq!(error.status(), Some(code));
        assert!(!error.is_fatal());
        let at: Vec<f64> = plane.seen("sesn_1").iter().map(|s| s.at.as_secs_f64()).collect();
        assert_eq!(at, [0.0, 0.5, 1.5], "{code}");
    }
    for code in [400, 401, 404, 412, 422] {
        let plane = Plane::new();
        plane.state().sessions.push_back(status(code));
        let (client, by) = client(&plane, &[]);
        assert!(client.send(&by, &request()).await.expect_err("an error").is_fatal(), "{code}");
        assert_eq!(plane.seen("sesn_1").len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_server_may_say_whether_and_when_to_ask_again() {
    // HTTP-1, HTTP-2.
    let plane = Plane::new();
    plane.state().sessions.extend([
        Answer::With(503, vec![("retry-after-ms", "1500")]),
        Answer::With(404, vec![("x-should-retry", "true"), ("retry-after", "3")]),
        ok(),
    ]);
    let (client, by) = client(&plane, &[]);
    client.send(&by, &request()).await.expect("an answer");
    let at: Vec<f64> = plane.seen("sesn_1").iter().map(|s| s.at.as_secs_f64()).collect();
    assert_eq!(at, [0.0, 1.5, 4.5]);
    plane.state().sessions.push_back(Answer::With(500, vec![("x-should-retry", "false")]));
    assert!(client.send(&by, &request()).await.is_err());
    assert_eq!(plane.seen("sesn_1").len(), 4);
    // A minute at most, and 0 counts as nothing.
    plane.state().sessions.extend([
        Answer::With(503, vec![("retry-after", "86400")]),
        Answer::With(503, vec![("retry-after", "0")]),
        ok(),
    ]);
    client.send(&by, &request()).await.expect("an answer");
    let at: Vec<f64> = plane.seen("sesn_1").iter().map(|s| s.at.as_secs_f64()).collect();
    assert_eq!(at[4..], [4.5, 64.5, 65.5]);
}

#[tokio::test(start_paused = true)]
async fn a_hung_request_times_out_and_is_sent_again() {
    // HTTP-3.
    let plane = Plane::new();
    plane.state().sessions.extend([Answer::Hang, Answer::Break, ok()]);
    let (client, by) = client(&plane, &[]);
    let request = request().timeout(Duration::from_secs(2));
    client.send(&by, &request).await.expect("an answer");
    assert_eq!(plane.seen("sesn_1").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_answer_above_the_limit_is_refused() {
    // INV-11.
    let plane = Plane::new();
    plane.state().sessions.push_back(Answer::Text(200, "x".repeat(101)));
    let (client, by) = client(&plane, &[]);
    let error = client.send(&by, &request().body_bytes_max(100)).await;
    assert!(matches!(error, Err(ApiError::TooLarge { bytes_max: 100 })));
    plane.state().sessions.push_back(Answer::Text(200, "x".repeat(100)));
    assert!(client.send(&by, &request().body_bytes_max(100)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_redirect_to_another_host_takes_nothing_of_ours_along() {
    // HTTP-5.
    let plane = Plane::new();
    let (client, by) =
        client(&plane, &[("x-secret", "planted"), ("authorization", "Bearer other")]);
    let to = |url| Answer::With(307, vec![("location", url)]);
    plane.state().sessions.extend([to("https://other.test/sesn_1"), ok()]);
    client.send(&by, &request()).await.expect("an answer");
    plane.state().sessions.extend([to("/elsewhere/sesn_1"), ok()]);
    client.send(&by, &request()).await.expect("an answer");
    let seen = plane.seen("sesn_1");
    assert_eq!(seen[0].header("authorization"), "Bearer sk-token", "AUTH-7");
    assert_eq!(seen[0].header("x-secret"), "planted");
    assert_eq!(seen[0].header("anthropic-workspace-id"), "wrkspc_1", "HDR-8");
    let mut names: Vec<&str> = seen[1].headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "user-agent"]);
    assert_eq!(seen[3].header("authorization"), "Bearer sk-token", "the same origin");
    for url in ["http://plane.test/sesn_1", "http://other.test/sesn_1", "ftp://plane.test/sesn_1"] {
        plane.state().sessions.extend([to(url), ok()]);
        let error = client.send(&by, &request()).await.expect_err(url);
        assert_eq!(error.status(), Some(307), "{url}: not followed");
        plane.state().sessions.clear();
    }
    // A result is never carried to another host.
    plane.state().posts.push_back(to("https://other.test/v1/sessions/s/events"));
    let post = Request::post(&["sessions", "s", "events"]).expect("a request");
    let post = post.json(bytes::Bytes::from_static(b"{\"events\":[{\"type\":\"x\"}]}"));
    assert!(client.send(&by, &post).await.is_err());
    assert_eq!(plane.seen("/events").len(), 1);
    plane.state().sessions.extend(vec![to("/sesn_1"); 20]);
    assert!(client.send(&by, &request()).await.is_err(), "an endless chain ends");
}

#[tokio::test(start_paused = true)]
async fn there_is_one_beta_and_no_setting_replaces_it() {
    // HDR-2.
    let plane = Plane::new();
    let (client, by) = client(&plane, &[("anthropic-beta", "a"), ("anthropic-beta", "b")]);
    client.send(&by, &request()).await.expect("an answer");
    let seen = plane.seen("sesn_1");
    let values: Vec<_> = seen[0].headers.get_all("anthropic-beta").iter().collect();
    assert_eq!(values, ["managed-agents-2026-04-01"]);
}
