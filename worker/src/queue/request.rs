//! One request as the rest of the queue describes it: path, query, limits.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;

/// What to ask of the control plane.
#[derive(Clone)]
pub struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) body: Option<Bytes>,
    pub(super) accept: &'static str,
    pub(super) beta: Option<&'static str>,
    pub(super) worker_id: bool,
    pub(super) timeout: Duration,
    pub(super) retries: u32,
    pub(super) retries_conflict: bool,
    pub(super) body_bytes_max: usize,
    pub(super) head_is_enough: bool,
    pub(super) pause_max: Duration,
}

/// An id that cannot be part of a path.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cannot make a request: an id is empty or means a directory")]
pub struct BadId;

/// HDR-2.
const BETA: &str = "managed-agents-2026-04-01";
/// What is accepted unless [`Request::accept`] says otherwise.
pub(super) const JSON: &str = "application/json";
const TIMEOUT: Duration = Duration::from_secs(60);
/// HTTP-1.
const RETRIES: u32 = 2;
const BODY_BYTES_MAX: usize = 8 << 20;

impl Request {
    /// GET of `/v1/SEGMENT/…`; segments are encoded.
    ///
    /// # Errors
    /// [`BadId`] for a segment that is empty, `.` or `..`.
    pub fn get(segments: &[&str]) -> Result<Request, BadId> {
        Request::new(Method::GET, segments)
    }

    /// POST, with an empty body unless [`Request::json`] sets one.
    ///
    /// # Errors
    /// As for [`Request::get`].
    pub fn post(segments: &[&str]) -> Result<Request, BadId> {
        Request::new(Method::POST, segments)
    }

    /// DELETE, without a body.
    ///
    /// # Errors
    /// As for [`Request::get`].
    pub fn delete(segments: &[&str]) -> Result<Request, BadId> {
        Request::new(Method::DELETE, segments)
    }

    fn new(method: Method, segments: &[&str]) -> Result<Request, BadId> {
        let mut path = String::from("/v1");
        for segment in segments {
            if matches!(*segment, "" | "." | "..") {
                return Err(BadId);
            }
            path.push('/');
            encode(segment, &mut path);
        }
        Ok(Request {
            method,
            path,
            query: String::new(),
            body: None,
            accept: JSON,
            beta: Some(BETA),
            worker_id: false,
            timeout: TIMEOUT,
            retries: RETRIES,
            retries_conflict: true,
            body_bytes_max: BODY_BYTES_MAX,
            head_is_enough: false,
            pause_max: Duration::MAX,
        })
    }

    /// Adds a query member; the value is encoded byte by byte (API-3).
    pub fn query(mut self, name: &str, value: &str) -> Request {
        self.query.push(if self.query.is_empty() { '?' } else { '&' });
        encode(name, &mut self.query);
        self.query.push('=');
        encode(value, &mut self.query);
        self
    }

    /// Sets a JSON body.
    pub fn json(mut self, body: Bytes) -> Request {
        self.body = Some(body);
        self
    }

    /// Sets `Accept`.
    pub fn accept(mut self, accept: &'static str) -> Request {
        self.accept = accept;
        self
    }

    /// Sends this value of `anthropic-beta` instead of that of work items and sessions; none for
    /// skills (HDR-2, HDR-3).
    pub fn beta(mut self, beta: Option<&'static str>) -> Request {
        self.beta = beta;
        self
    }

    /// Adds `Anthropic-Worker-ID` (HDR-4).
    pub fn with_worker_id(mut self) -> Request {
        self.worker_id = true;
        self
    }

    /// Limit of one attempt: for [`super::client::Client::send`] until the body is complete, for
    /// `open` until the headers have arrived.
    pub fn timeout(mut self, timeout: Duration) -> Request {
        self.timeout = timeout;
        self
    }

    /// How often one request is sent again by itself (HTTP-1); loops that retry set 0 (HTTP-4).
    pub fn retries(mut self, retries: u32) -> Request {
        self.retries = retries;
        self
    }

    /// A 409 is an answer, not a reason to ask again (HTTP-4).
    pub fn conflict_is_final(mut self) -> Request {
        self.retries_conflict = false;
        self
    }

    /// Gives up instead of waiting longer than this before it is sent again.
    pub fn pause_max(mut self, max: Duration) -> Request {
        self.pause_max = max;
        self
    }

    /// Any 2xx is success as soon as its headers are there (API-2).
    pub fn head_is_enough(mut self) -> Request {
        self.head_is_enough = true;
        self
    }

    /// Largest body that is accepted.
    pub fn body_bytes_max(mut self, max: usize) -> Request {
        self.body_bytes_max = max;
        self
    }
}

/// RFC 3986: everything but unreserved characters.
fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte.into());
        } else {
            // Writing to a string does not fail.
            let _written = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_encoded_and_empty_ones_refused() {
        // Protocol §1.1.
        let request = Request::get(&["sessions", "a/b?c#d é"]).expect("a request");
        assert_eq!(request.path, "/v1/sessions/a%2Fb%3Fc%23d%20%C3%A9");
        for id in ["", ".", ".."] {
            assert_eq!(Request::get(&["sessions", id]).err(), Some(BadId), "{id:?}");
        }
    }

    #[test]
    fn a_heartbeat_value_with_an_offset_survives_the_query() {
        // API-3.
        let request = Request::post(&["x"]).expect("a request");
        let request = request.query("expected_last_heartbeat", "2026-01-02T03:04:05.6+02:00");
        assert_eq!(request.query, "?expected_last_heartbeat=2026-01-02T03%3A04%3A05.6%2B02%3A00");
    }
}
