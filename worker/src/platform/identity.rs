//! AWS credentials that are fresh whenever a request needs them.
//!
//! One task asks the provider, ahead of the expiry, and publishes what it found. Requests only read;
//! one that finds nothing usable wakes the task and waits a little, and fails as any request may that
//! cannot be sent now. The heartbeats' own thread waits in the same way, so no lease depends on
//! the provider as long as the credentials at hand are good.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::error::PlatformError;
use crate::queue::AuthenticationError;

/// How long the provider may take.
const RESOLVE_MAX: Duration = Duration::from_secs(30);
/// How long a request waits for credentials.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Credentials are renewed so long before they expire, or at half of what is left.
const EARLY: Duration = Duration::from_secs(300);
/// Not good for a request any more: it has a way to go.
const MARGIN: Duration = Duration::from_secs(5);
/// Between two questions to the provider.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What the task found last.
#[derive(Clone)]
enum Found {
    Credentials(Credentials),
    Nothing(Arc<str>),
}

impl Found {
    fn usable(&self) -> Option<Credentials> {
        match self {
            Found::Credentials(found) if left(found) > MARGIN => Some(found.clone()),
            _ => None,
        }
    }
}

/// A provider that takes the place of the one before, with what it gave first.
struct Other {
    provider: SharedCredentialsProvider,
    first: Credentials,
    taken: oneshot::Sender<()>,
}

/// Reads what the task publishes. The task ends with the last of these.
#[derive(Clone)]
pub struct Identity {
    found: watch::Receiver<Found>,
    wanted: Arc<Notify>,
    replaced: mpsc::Sender<Other>,
}

impl Identity {
    /// Asks `provider` once, and from then on in a task of the runtime that this is called in.
    ///
    /// # Errors
    /// There are no credentials.
    pub async fn start(provider: SharedCredentialsProvider) -> Result<Identity, PlatformError> {
        let first =
            resolve(&provider).await.map_err(|reason| PlatformError::NotFound { reason })?;
        let wanted = Arc::new(Notify::new());
        let (sender, found) = watch::channel(Found::Credentials(first));
        let (replaced, others) = mpsc::channel(1);
        tokio::spawn(keep(provider, sender, Arc::clone(&wanted), others));
        Ok(Identity { found, wanted, replaced })
    }

    /// From now on `provider` is asked in place of the one before, which stays if this one has none.
    ///
    /// # Errors
    /// There are no credentials.
    pub async fn replace(&self, provider: SharedCredentialsProvider) -> Result<(), PlatformError> {
        let first =
            resolve(&provider).await.map_err(|reason| PlatformError::NotFound { reason })?;
        // The task ends with the last of these, so it is there.
        let (taken, done) = oneshot::channel();
        let _heard = self.replaced.send(Other { provider, first, taken }).await;
        let _taken = done.await;
        Ok(())
    }

    /// Credentials that are good for a while, waited for if those at hand are not.
    ///
    /// # Errors
    /// There are none in time.
    pub async fn current(&self) -> Result<Credentials, AuthenticationError> {
        let mut found = self.found.clone();
        if let Some(good) = found.borrow_and_update().usable() {
            return Ok(good);
        }
        self.wanted.notify_one();
        let renewed = tokio::time::timeout(WAIT_MAX, found.changed()).await;
        let found = self.found.borrow().clone();
        match (found.usable(), found) {
            (Some(good), _) => Ok(good),
            (None, Found::Nothing(reason)) if matches!(renewed, Ok(Ok(()))) => {
                Err(AuthenticationError { reason: format!("no AWS credentials: {reason}") })
            }
            _ => Err(AuthenticationError { reason: "the AWS credentials have expired".to_owned() }),
        }
    }
}

fn left(credentials: &Credentials) -> Duration {
    let until = credentials.expiry();
    until.map_or(Duration::MAX, |until| until.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Renews until nobody reads any more.
async fn keep(
    mut provider: SharedCredentialsProvider,
    sender: watch::Sender<Found>,
    wanted: Arc<Notify>,
    mut others: mpsc::Receiver<Other>,
) {
    let mut failures = 0_u32;
    loop {
        let left = match &*sender.borrow() {
            Found::Credentials(found) => left(found),
            Found::Nothing(_) => Duration::ZERO,
        };
        let pause = match failures {
            0 => left.saturating_sub(EARLY).max(left.min(EARLY) / 2),
            failures => PAUSE_MAX.min(PAUSE_MIN * 2_u32.saturating_pow(failures)),
        };
        tokio::select! {
            () = tokio::time::sleep(pause.max(PAUSE_MIN)) => {}
            // Asked for by a request: at once, but not again and again.
            () = async { wanted.notified().await; tokio::time::sleep(PAUSE_MIN).await } => {}
            Some(other) = others.recv() => {
                (provider, failures) = (other.provider, 0);
                sender.send_replace(Found::Credentials(other.first));
                // Whoever asked for it may have gone.
                let _gone = other.taken.send(());
                continue;
            }
            () = sender.closed() => return,
        }
        match resolve(&provider).await {
            Ok(found) => {
                if failures > 0 {
                    tracing::info!(event = "aws.credentials_renewed", "AWS credentials renewed");
                }
                failures = 0;
                sender.send_replace(Found::Credentials(found));
            }
            Err(reason) => {
                failures = failures.saturating_add(1);
                // Requests may ask every second.
                if failures.is_power_of_two() {
                    tracing::warn!(
                        event = "aws.credentials_not_renewed",
                        reason,
                        attempt = failures,
                        "AWS credentials were not renewed"
                    );
                }
                let unusable = sender.borrow().usable().is_none();
                if unusable {
                    sender.send_replace(Found::Nothing(reason.into()));
                }
            }
        }
    }
}

/// One question. The reason never repeats what a provider said: it may be somebody's content.
async fn resolve(provider: &SharedCredentialsProvider) -> Result<Credentials, String> {
    let answer = tokio::time::timeout(RESOLVE_MAX, provider.provide_credentials()).await;
    let reason = match answer {
        Ok(Ok(found)) if left(&found) > MARGIN => return Ok(found),
        Ok(Ok(_)) => "those that were found have expired",
        Ok(Err(CredentialsError::CredentialsNotLoaded(_))) => "no source has any",
        Ok(Err(CredentialsError::ProviderTimedOut(_))) | Err(_) => "their source did not answer",
        Ok(Err(CredentialsError::InvalidConfiguration(_))) => "the AWS configuration is not valid",
        Ok(Err(_)) => "their source failed",
    };
    Err(reason.to_owned())
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
