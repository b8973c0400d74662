//! The credential of a platform: put into every attempt anew, never sent elsewhere, and a failure of
//! its own passes by (AWS-5, AWS-7, HTTP-1, HTTP-5).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::super::client::ApiError;
use super::super::request::Request;
use super::super::*;
use super::world::*;

/// Numbers what it authenticates; refuses to at first.
#[derive(Default)]
struct Numbers {
    fails: u32,
    asked: AtomicU32,
    refused: AtomicU32,
}

const NUMBER: HeaderName = HeaderName::from_static("x-number");

impl Authenticator for Numbers {
    fn authenticate<'a>(
        &'a self,
        request: &'a mut Outgoing,
    ) -> BoxFuture<'a, Result<(), AuthenticationError>> {
        Box::pin(async move {
            assert!(!request.headers.contains_key("authorization"), "AWS-5: no bearer beside it");
            assert!(request.headers.contains_key("accept"), "everything else is in it");
            let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
            if number <= self.fails {
                return Err(AuthenticationError { reason: "not now".to_owned() });
            }
            request.headers.insert(NUMBER, HeaderValue::from(number));
            Ok(())
        })
    }

    fn refused(&self, _headers: &HeaderMap) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

fn world(fails: u32) -> (Arc<Plane>, Client, Credential, Arc<Numbers>) {
    let plane = Plane::new();
    let base = "https://plane.test".parse().expect("a URL");
    let settings = QueueSettings::new(base, "env_1", "host-1");
    let client = Client::new(&settings, Arc::new(Arc::clone(&plane)), Random::fixed(0.0));
    let numbers = Arc::new(Numbers { fails, ..Numbers::default() });
    let platform = PlatformCredential::new(Arc::clone(&numbers) as Arc<dyn Authenticator>);
    (plane, client, Credential::Platform(platform), numbers)
}

fn request() -> Request {
    Request::get(&["sessions", "sesn_1"]).expect("a request")
}

fn numbers(plane: &Arc<Plane>) -> Vec<String> {
    plane.seen("sesn_1").iter().map(|seen| seen.header("x-number").to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn every_attempt_and_every_redirect_is_authenticated_anew() {
    // AWS-5, HTTP-1.
    let (plane, client, by, _) = world(0);
    let here = Answer::With(307, vec![("location", "/elsewhere/sesn_1")]);
    plane.state().sessions.extend([status(503), here, Answer::Break, ok()]);
    client.send(&by, &request()).await.expect("an answer");
    assert_eq!(numbers(&plane), ["1", "2", "3", "4"]);
}

#[tokio::test(start_paused = true)]
async fn another_origin_gets_no_credential_also_not_on_its_way_back() {
    // HTTP-5.
    let (plane, client, by, _) = world(0);
    let to = |url| Answer::With(307, vec![("location", url)]);
    let back = to("https://plane.test/sesn_1");
    plane.state().sessions.extend([to("https://other.test/sesn_1"), back, ok()]);
    client.send(&by, &request()).await.expect("an answer");
    assert_eq!(numbers(&plane), ["1", "", ""]);
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_is_not_to_be_had_now_is_asked_for_again() {
    // AWS-5, HTTP-1: transient, and nothing was sent.
    let (plane, client, by, _) = world(2);
    plane.state().sessions.push_back(ok());
    client.send(&by, &request()).await.expect("an answer");
    assert_eq!(numbers(&plane), ["3"]);
    let (plane, client, by, _) = world(9);
    let error = client.send(&by, &request()).await.expect_err("no credential");
    assert!(matches!(error, ApiError::Credential(_)), "{error}");
    assert!(!error.is_fatal() && !error.is_ambiguous(), "{error}");
    assert!(plane.seen("sesn_1").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_to_whoever_made_the_credential() {
    // AWS-5: a wrong clock is seen there.
    for (code, told) in [(401, 1), (403, 1), (404, 0), (400, 0)] {
        let (plane, client, by, numbers) = world(0);
        plane.state().sessions.push_back(status(code));
        client.send(&by, &request().timeout(Duration::from_secs(9))).await.expect_err("refused");
        assert_eq!(numbers.refused.load(Ordering::Relaxed), told, "{code}");
    }
}
