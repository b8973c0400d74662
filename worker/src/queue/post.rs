//! Posts one result until it is on the server or the window is over (RUN-24..28).

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::api::ItemApi;
use super::client::ApiError;
use super::count;
use super::events::{Ids, emit};
use super::host::CancelToken;
use super::lease::LeaseView;
use super::random::{Random, post_backoff};

/// How posting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// It is on the server.
    Done,
    /// Refused for good; posting again is of no use (RUN-25).
    Refused,
    /// The window is over; the next history decides (RUN-4).
    GaveUpForNow,
    /// The result is not wanted any more, and was not accepted before (RACE-7, RUN-27).
    Moot,
}

/// How long the answer to an attempt may take once the result is not wanted any more. The stream
/// often shows our own result before the answer is here; leaving then would cost the connection, and
/// nobody would know that the result was accepted.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// What posting needs beside the body.
pub struct Poster {
    pub api: ItemApi,
    pub ids: Ids,
    pub session: String,
    pub random: Random,
    pub lease: watch::Receiver<LeaseView>,
}

impl Poster {
    /// Posts `body`, the result of `call`. The window is the TTL of the lease, read before every
    /// attempt (LEASE-15), and never longer than `until`. No attempt begins after `moot`.
    pub async fn post(
        &self,
        call: &str,
        body: &Bytes,
        until: &watch::Receiver<Option<Instant>>,
        moot: &CancelToken,
    ) -> Posted {
        let start = Instant::now();
        let mut attempts = 0;
        let mut last_chance = false;
        loop {
            attempts += 1;
            let error = match self.attempt(body, moot).await {
                Some(Ok(())) => return Posted::Done,
                Some(Err(error)) => error,
                None => return Posted::Moot,
            };
            if says_already_answered(&error) {
                return Posted::Done;
            }
            if error.is_fatal() {
                count::post_failed(true);
                emit!(error, self.ids, "post.refused", "result refused for good",
                    tool_use_id = call, attempt = attempts, error = %error.label());
                return Posted::Refused;
            }
            let left = self.left(start, until);
            if last_chance || left.is_zero() {
                count::post_failed(false);
                emit!(error, self.ids, "post.failed", "result could not be posted",
                    tool_use_id = call, attempt = attempts, error = %error.label());
                return Posted::GaveUpForNow;
            }
            let pause = error.pause(attempts, post_backoff(attempts, &self.random));
            // The last attempt is at the end of the window.
            last_chance = pause >= left;
            let pause = pause.min(left);
            count::post_again();
            emit!(warn, self.ids, "post.retry", "posting a result failed, trying again",
                tool_use_id = call, attempt = attempts, error = %error.label(),
                pause_ms = pause.as_millis() as u64);
            tokio::select! {
                biased;
                () = moot.cancelled() => return Posted::Moot,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One attempt; `None` if it had no answer soon after `moot`.
    async fn attempt(&self, body: &Bytes, moot: &CancelToken) -> Option<Result<(), ApiError>> {
        let late = async {
            moot.cancelled().await;
            tokio::time::sleep(ANSWER_GRACE).await;
        };
        tokio::select! {
            biased;
            answer = self.api.post(&self.session, body.clone()) => Some(answer),
            () = late => None,
        }
    }

    fn left(&self, start: Instant, until: &watch::Receiver<Option<Instant>>) -> Duration {
        let window = start + self.lease.borrow().ttl;
        let end = until.borrow().map_or(window, |until| until.min(window));
        end.saturating_duration_since(Instant::now())
    }
}

/// RUN-28. The vocabulary of codes is not published; a code that speaks of "already" or
/// "duplicate" can mean nothing else here. The message is never looked at.
fn says_already_answered(error: &ApiError) -> bool {
    let of_interest = matches!(error.status(), Some(400 | 409));
    let code = error.code().unwrap_or_default();
    of_interest && (code.contains("already") || code.contains("duplicate"))
}
