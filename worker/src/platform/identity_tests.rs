//! Renewal of credentials.

use std::sync::atomic::{AtomicU32, Ordering};

use aws_credential_types::provider::future::ProvideCredentials as Answer;
use aws_credential_types::provider::{ProvideCredentials, error::CredentialsError};

use super::*;

/// Gives credentials numbered by the question; each lasts so long. Some questions fail.
#[derive(Debug)]
struct Source {
    asked: Arc<AtomicU32>,
    lasts: Duration,
    fails: fn(u32) -> bool,
}

impl ProvideCredentials for Source {
    fn provide_credentials<'a>(&'a self) -> Answer<'a>
    where
        Self: 'a,
    {
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        if (self.fails)(number) {
            let secret = "AKIAPLANTED".to_owned();
            return Answer::ready(Err(CredentialsError::provider_error(secret)));
        }
        let until = SystemTime::now() + self.lasts;
        Answer::ready(Ok(Credentials::new(number.to_string(), "s", None, Some(until), "test")))
    }
}

fn source(lasts: Duration, fails: fn(u32) -> bool) -> (SharedCredentialsProvider, Arc<AtomicU32>) {
    let asked = Arc::new(AtomicU32::new(0));
    let source = Source { asked: Arc::clone(&asked), lasts, fails };
    (SharedCredentialsProvider::new(source), asked)
}

#[tokio::test]
async fn expired_credentials_are_renewed_before_they_are_used() {
    // AWS-5: what is left of them is below what a request needs after a moment.
    let (provider, asked) = source(MARGIN + Duration::from_millis(600), |_| false);
    let identity = Identity::start(provider).await.expect("credentials");
    assert_eq!(identity.current().await.expect("good").access_key_id(), "1");
    tokio::time::sleep(Duration::from_millis(700)).await;
    let renewed = identity.current().await.expect("renewed");
    assert_eq!(renewed.access_key_id(), "2");
    assert!(left(&renewed) > MARGIN);
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_provider_that_fails_fails_the_request_and_not_the_worker() {
    // AUTH-8: what a provider says is in no error.
    let lasts = MARGIN + Duration::from_millis(300);
    let (provider, _) = source(lasts, |number| number == 2);
    let identity = Identity::start(provider).await.expect("credentials");
    tokio::time::sleep(Duration::from_millis(400)).await;
    let error = identity.current().await.expect_err("the second question fails").to_string();
    assert!(error.contains("their source failed") && !error.contains("PLANTED"), "{error}");
    let renewed = identity.current().await.expect("the third succeeds");
    assert_eq!(renewed.access_key_id(), "3");
}

#[tokio::test]
async fn a_start_without_credentials_is_an_error_that_says_so() {
    let (provider, _) = source(Duration::from_secs(60), |_| true);
    let error = Identity::start(provider).await.err().expect("no credentials");
    let text = format!("{error} {}", error.hint());
    assert!(text.contains("cannot find AWS credentials") && !text.contains("PLANTED"), "{text}");
    let (provider, _) = source(Duration::ZERO, |_| false);
    let error = Identity::start(provider).await.err().expect("only expired ones").to_string();
    assert!(error.contains("expired"), "{error}");
}

#[tokio::test]
async fn another_provider_takes_over_only_if_it_has_credentials() {
    // AWS-4: SIGHUP.
    let (provider, _) = source(Duration::from_secs(3600), |_| false);
    let identity = Identity::start(provider).await.expect("credentials");
    let (bad, _) = source(Duration::from_secs(3600), |_| true);
    identity.replace(bad).await.expect_err("it has none");
    assert_eq!(identity.current().await.expect("the old ones").access_key_id(), "1");
    let (other, asked) = source(Duration::from_secs(3600), |_| false);
    asked.store(6, Ordering::Relaxed);
    identity.replace(other).await.expect("credentials");
    assert_eq!(identity.current().await.expect("the new ones").access_key_id(), "7");
}

#[tokio::test]
async fn the_task_that_renews_ends_with_the_last_reader() {
    // INV-10, INV-11.
    let (provider, asked) = source(Duration::from_secs(3600), |_| false);
    let identity = Identity::start(provider).await.expect("credentials");
    let wanted = Arc::downgrade(&identity.wanted);
    drop(identity);
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if wanted.strong_count() == 0 {
            break;
        }
    }
    assert_eq!(wanted.strong_count(), 0, "the task holds the other one");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}
