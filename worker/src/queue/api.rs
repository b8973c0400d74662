//! The requests a worker makes about one environment and one work item (protocol §2.1), each with
//! its limits.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::client::{ApiError, Client, Reply};
use super::credential::Credential;
use super::request::Request;
use super::transport::Body;

/// HTTP-3.
const POLL_TIMEOUT: Duration = Duration::from_secs(20);
const ACK_TIMEOUT: Duration = Duration::from_secs(12);
/// Of the five seconds after which an item that nobody confirmed is handed out again (RACE-1).
const ACK_PAUSE_MAX: Duration = Duration::from_secs(2);
const STREAM_OPEN_TIMEOUT: Duration = Duration::from_secs(30);
const POST_TIMEOUT: Duration = Duration::from_secs(60);
const LIST_TIMEOUT: Duration = Duration::from_secs(120);
/// One page of history: up to a thousand events with their content.
pub const PAGE_BYTES_MAX: usize = 128 << 20;

/// The queue of one environment, with the environment key.
#[derive(Clone)]
pub struct QueueApi {
    pub client: Client,
    pub credential: Credential,
    pub environment: String,
}

impl QueueApi {
    /// E-POLL. Not retried: the loop does that (HTTP-4).
    pub async fn poll(
        &self,
        block_ms: Option<u16>,
        reclaim: Option<u64>,
    ) -> Result<Reply, ApiError> {
        let mut request = Request::get(&["environments", &self.environment, "work", "poll"])?
            .with_worker_id()
            .retries(0)
            .timeout(POLL_TIMEOUT);
        if let Some(block_ms) = block_ms {
            request = request.query("block_ms", &block_ms.to_string());
        }
        if let Some(reclaim) = reclaim {
            request = request.query("reclaim_older_than_ms", &reclaim.to_string());
        }
        self.client.send(&self.credential, &request).await
    }

    /// E-ACK; any 2xx will do (API-2). What is to wait long is left to the loop (RACE-1): meanwhile
    /// another poller may be given the item.
    pub async fn ack(&self, work: &str) -> Result<(), ApiError> {
        let request = Request::post(&["environments", &self.environment, "work", work, "ack"])?
            .conflict_is_final()
            .retries(1)
            .pause_max(ACK_PAUSE_MAX)
            .head_is_enough()
            .timeout(ACK_TIMEOUT);
        self.client.send(&self.credential, &request).await.map(drop)
    }
}

/// One work item, with the credential that speaks for it (AUTH-5).
#[derive(Clone)]
pub struct ItemApi {
    pub client: Client,
    pub credential: Credential,
    pub environment: Arc<str>,
    pub work: Arc<str>,
}

impl ItemApi {
    /// E-HB: one attempt within `limit` (LEASE-4).
    pub async fn heartbeat(&self, expected: &str, limit: Duration) -> Result<Reply, ApiError> {
        let request = self.work_request("heartbeat")?;
        let request = request.query("expected_last_heartbeat", expected).retries(0).timeout(limit);
        self.client.send(&self.credential, &request).await
    }

    /// E-STOP with force; 409 means that it is stopped already (LEASE-12).
    pub async fn force_stop(&self, limit: Duration) -> Result<(), ApiError> {
        self.stop(Bytes::from_static(br#"{"force":true}"#), limit).await
    }

    async fn stop(&self, body: Bytes, limit: Duration) -> Result<(), ApiError> {
        let request = self.work_request("stop")?;
        let request = request.json(body).conflict_is_final().head_is_enough().timeout(limit);
        match self.client.send(&self.credential, &request).await {
            Err(error) if error.status() == Some(409) => Ok(()),
            other => other.map(drop),
        }
    }

    /// E-STOP without force, as a poller sends it (POLL-10, ONWORK-5).
    pub async fn ask_stop(&self, limit: Duration) -> Result<(), ApiError> {
        self.stop(Bytes::from_static(b"{}"), limit).await
    }

    /// E-SESS.
    pub async fn session(&self, session: &str) -> Result<Reply, ApiError> {
        let request = Request::get(&["sessions", session])?.timeout(Duration::from_secs(30));
        self.client.send(&self.credential, &request).await
    }

    /// E-STREAM.
    pub async fn stream(&self, session: &str) -> Result<Box<dyn Body>, ApiError> {
        let request = Request::get(&["sessions", session, "events", "stream"])?
            .accept("text/event-stream")
            .timeout(STREAM_OPEN_TIMEOUT);
        self.client.open(&self.credential, &request).await
    }

    /// E-EVLIST, one page, oldest first (EV-5).
    pub async fn events(
        &self,
        session: &str,
        limit: u32,
        page: Option<&str>,
    ) -> Result<Reply, ApiError> {
        let mut request = Request::get(&["sessions", session, "events"])?
            .query("limit", &limit.to_string())
            .query("order", "asc")
            .body_bytes_max(PAGE_BYTES_MAX)
            .timeout(LIST_TIMEOUT);
        if let Some(page) = page {
            request = request.query("page", page);
        }
        self.client.send(&self.credential, &request).await
    }

    /// E-SEND: one attempt; the window is the poster's (RUN-24).
    pub async fn post(&self, session: &str, body: Bytes) -> Result<(), ApiError> {
        let request = Request::post(&["sessions", session, "events"])?
            .json(body)
            .retries(0)
            .timeout(POST_TIMEOUT);
        let reply = match self.client.send(&self.credential, &request).await {
            // It repeats what it was sent, which may be long; only a 2xx has a body of this size.
            Err(ApiError::TooLarge { .. }) => return Ok(()),
            other => other?,
        };
        // Whoever said 200 without speaking JSON was not the control plane (§0, transient).
        let json = serde_json::from_slice::<serde::de::IgnoredAny>(&reply.body).is_ok();
        let empty = reply.body.iter().all(u8::is_ascii_whitespace);
        if json || empty {
            Ok(())
        } else {
            Err(ApiError::Unreadable { what: "an answer to a result" })
        }
    }

    fn work_request(&self, verb: &str) -> Result<Request, ApiError> {
        Ok(Request::post(&["environments", &self.environment, "work", &self.work, verb])?)
    }
}
