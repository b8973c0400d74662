//! Answers the requests of the webhook's listener (HOOK-6, HOOK-7, HOOK-8).
//!
//! It answers at once: a session outlives every delivery's patience. What was verified, is new and
//! tells of a session that runs fires the trigger; that is all that can come of a request.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};
use serde_json::Value;

use super::seen::{Of, Seen};
use super::signature::{Claim, Refused, Verifier};
use crate::listener::{self, Answer, Answers, not_allowed, text};
use crate::queue::{Level, ShutdownWatch, Trigger};

/// Longest body. Real ones have a few hundred bytes.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// Refusals are told by the log at most this often: anybody can cause them.
const REFUSALS_TOLD: Duration = Duration::from_secs(60);
/// Ids in the log are not longer.
const LOGGED_ID_CHARS_MAX: usize = 64;

/// What all connections share.
#[derive(Debug)]
pub struct Receiver {
    verifier: Verifier,
    path: String,
    trigger: Arc<Trigger>,
    shutdown: ShutdownWatch,
    seen: Mutex<Seen>,
    refusals: Mutex<Refusals>,
}

#[derive(Debug, Default)]
struct Refusals {
    told: Option<Instant>,
    untold: u64,
}

/// The one kind of event that means work.
const RUN_STARTED: &str = "session.status_run_started";

impl Answers for Receiver {
    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, Infallible> {
        self.reply(request).await
    }
}

impl Receiver {
    /// Fires `trigger` for deliveries at `path` that `verifier` finds genuine.
    pub fn new(
        verifier: Verifier,
        path: &str,
        trigger: Arc<Trigger>,
        shutdown: ShutdownWatch,
    ) -> Receiver {
        let (seen, refusals) = (Mutex::default(), Mutex::default());
        Receiver { verifier, path: path.to_owned(), trigger, shutdown, seen, refusals }
    }

    /// Answers one request. Reads at most [`BODY_BYTES_MAX`]; whoever calls it bounds the time.
    async fn reply<B>(&self, request: Request<B>) -> Result<Answer, Infallible>
    where
        B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        let (head, body) = request.into_parts();
        if let Some(answer) = listener::health(&head.method, head.uri.path(), &self.shutdown) {
            return Ok(answer);
        }
        Ok(match head.uri.path() {
            path if path != self.path => text(StatusCode::NOT_FOUND, "not found\n"),
            _ if head.method != Method::POST => not_allowed("POST"),
            // Sent again later, to a worker that runs then.
            _ if self.ends() => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            // Of those who do not even know what the headers are, no body is read.
            _ => match Claim::of(&head.headers, SystemTime::now()) {
                Ok(claim) => self.delivery(claim, body).await,
                Err(refused) => self.unauthorized(refused),
            },
        })
    }

    async fn delivery<B>(&self, claim: Claim<'_>, body: B) -> Answer
    where
        B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        match Limited::new(body, BODY_BYTES_MAX).collect().await {
            Ok(body) => self.deliver(claim, &body.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                self.refused("the body is too large");
                status(StatusCode::PAYLOAD_TOO_LARGE, "too large")
            }
            Err(_) => status(StatusCode::BAD_REQUEST, "unreadable"),
        }
    }

    fn ends(&self) -> bool {
        self.shutdown.level() > Level::Run
    }

    fn unauthorized(&self, refused: Refused) -> Answer {
        self.refused(match refused {
            Refused::Stale => "the timestamp is too old or in the future",
            _ => "the signature is not right",
        });
        status(StatusCode::UNAUTHORIZED, "unauthorized")
    }

    fn deliver(&self, claim: Claim<'_>, body: &[u8]) -> Answer {
        let id = match self.verifier.verify(claim, body) {
            Ok(id) => id,
            Err(refused) => return self.unauthorized(refused),
        };
        let unreadable = || status(StatusCode::BAD_REQUEST, "unreadable");
        let Ok(Value::Object(delivery)) = serde_json::from_slice(body) else {
            return unreadable();
        };
        // What other kinds of events have in `data`, and of which types, is theirs (HOOK-6).
        let data = delivery.get("data").unwrap_or(&Value::Null);
        let kind = data["type"].as_str().unwrap_or_default();
        if kind != RUN_STARTED {
            let kind = short(kind);
            tracing::debug!(event = "webhook.ignored", kind, "a delivery that tells of no work");
            return status(StatusCode::OK, "ignored");
        }
        let Some(session) = data["id"].as_str() else { return unreadable() };
        let new = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let delivery_is_new = seen.is_new(Of::Delivery, id);
            // Both are remembered, whichever is known.
            let event = delivery.get("id").and_then(Value::as_str);
            let event_is_new = event.is_none_or(|id| seen.is_new(Of::Event, id));
            delivery_is_new && event_is_new
        };
        let session_id = short(session);
        if !new {
            tracing::debug!(event = "webhook.repeated", session_id, "a delivery came again");
            return status(StatusCode::OK, "duplicate");
        }
        tracing::info!(
            event = "webhook.accepted",
            webhook_id = short(id),
            session_id,
            "a delivery tells of work"
        );
        self.trigger.fire();
        status(StatusCode::OK, "ok")
    }

    /// Tells of refusals, the first at once and others by their number.
    fn refused(&self, reason: &'static str) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.told.is_some_and(|told| told.elapsed() < REFUSALS_TOLD) {
            refusals.untold += 1;
            return;
        }
        let others = std::mem::take(&mut refusals.untold);
        refusals.told = Some(Instant::now());
        drop(refusals);
        tracing::warn!(event = "webhook.refused", reason, others, "a delivery was refused");
    }
}

/// An id as the log may have it: of a genuine delivery, and bounded all the same.
fn short(id: &str) -> String {
    id.chars().filter(char::is_ascii_graphic).take(LOGGED_ID_CHARS_MAX).collect()
}

fn status(code: StatusCode, word: &str) -> Answer {
    let mut answer = text(code, &format!("{{\"status\":\"{word}\"}}"));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::body::Frame;
    use hyper::header::HeaderName;
    use secrecy::SecretString;

    use super::*;
    use crate::queue::Shutdown;

    const KEY: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

    fn receiver() -> (Receiver, Shutdown) {
        let verifier = Verifier::new(&SecretString::from(KEY)).expect("a key");
        let (shutdown, watch) = Shutdown::new();
        let trigger = Arc::new(Trigger::new(Duration::from_secs(300)));
        (Receiver::new(verifier, "/webhook", trigger, watch), shutdown)
    }

    fn signed(id: &str, body: impl AsRef<[u8]>) -> Request<Full<Bytes>> {
        let body = body.as_ref();
        let verifier = Verifier::new(&SecretString::from(KEY)).expect("a key");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        let time = i64::try_from(now.as_secs()).expect("a time");
        Request::post("/webhook")
            .header("webhook-id", id)
            .header("webhook-timestamp", time)
            .header("webhook-signature", verifier.sign(id, time, body))
            .body(Full::new(Bytes::copy_from_slice(body)))
            .expect("a request")
    }

    fn started(event: &str) -> String {
        let data = serde_json::json!({"type": RUN_STARTED, "id": "sesn_1"});
        serde_json::json!({"type": "event", "id": event, "data": data}).to_string()
    }

    async fn answered(receiver: &Receiver, request: Request<Full<Bytes>>) -> (u16, String) {
        let answer = receiver.reply(request).await.expect("infallible");
        let code = answer.status().as_u16();
        let body = answer.into_body().collect().await.expect("whole").to_bytes();
        (code, String::from_utf8_lossy(&body).into_owned())
    }

    /// How often the trigger has fired since it was asked last: never or at least once.
    async fn fired(receiver: &Receiver) -> bool {
        let mut rests = crate::queue::Rests::new();
        let rest = rests.rest(&receiver.trigger);
        tokio::time::timeout(Duration::from_millis(20), rest).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_genuine_delivery_fires_once_however_often_it_comes() {
        // HOOK-6, HOOK-7, HOOK-8.
        let (receiver, _shutdown) = receiver();
        let ok = (200, r#"{"status":"ok"}"#.to_owned());
        let again = (200, r#"{"status":"duplicate"}"#.to_owned());
        assert_eq!(answered(&receiver, signed("msg_1", started("whe_1"))).await, ok);
        assert!(fired(&receiver).await && !fired(&receiver).await);
        // The same delivery, and the same event in another one.
        assert_eq!(answered(&receiver, signed("msg_1", started("whe_1"))).await, again);
        assert_eq!(answered(&receiver, signed("msg_2", started("whe_1"))).await, again);
        assert_eq!(answered(&receiver, signed("msg_1", started("whe_2"))).await, again);
        assert!(!fired(&receiver).await);
        assert_eq!(answered(&receiver, signed("msg_3", started("whe_3"))).await, ok);
        assert_eq!(answered(&receiver, signed("msg_4", started("whe_4"))).await, ok);
        assert!(fired(&receiver).await && !fired(&receiver).await, "two triggers are one");
    }

    #[tokio::test]
    async fn each_request_has_its_answer() {
        // HOOK-6, HOOK-7.
        let (receiver, shutdown) = receiver();
        let ignored = (200, r#"{"status":"ignored"}"#.to_owned());
        for other in [
            r#"{"id":"whe_9","data":{"type":"vault.created","id":"v"}}"#,
            r#"{"data":{"type":"vault.created","id":7}}"#,
            r#"{"data":{"type":["of","its","own"]},"id":{}}"#,
            r#"{"data":null}"#,
            r#"{"data":7}"#,
            "{}",
        ] {
            assert_eq!(answered(&receiver, signed("msg_1", other)).await, ignored, "{other}");
        }
        let (odd, none) = (
            format!(r#"{{"data":{{"type":"{RUN_STARTED}","id":7}}}}"#),
            format!(r#"{{"data":{{"type":"{RUN_STARTED}"}}}}"#),
        );
        // HOOK-3, HOOK-7: genuine, also if it is no text.
        for unreadable in [b"" as &[u8], b"not json", b"[1]", b"{\"\xff\":1}", b"\xff"]
            .into_iter()
            .chain([odd.as_bytes(), none.as_bytes()])
        {
            let got = answered(&receiver, signed("msg_3", unreadable)).await;
            assert_eq!(got.0, 400, "{}: {}", String::from_utf8_lossy(unreadable), got.1);
        }
        let mut forged = signed("msg_4", started("whe_4"));
        *forged.body_mut() = Full::new(Bytes::from(started("whe_5")));
        assert_eq!(answered(&receiver, forged).await.0, 401);
        let bare = |method: Method, path: &str| {
            let request = Request::builder().method(method).uri(path);
            request.body(Full::new(Bytes::new())).expect("a request")
        };
        for (method, path, code) in [
            (Method::POST, "/webhook", 401),
            (Method::GET, "/webhook", 405),
            (Method::PUT, "/webhook", 405),
            (Method::POST, "/webhook/", 404),
            (Method::POST, "/", 404),
            (Method::GET, "/healthz", 200),
            (Method::HEAD, "/readyz", 200),
            (Method::POST, "/healthz", 405),
        ] {
            let got = answered(&receiver, bare(method.clone(), path)).await;
            assert_eq!(got.0, code, "{method} {path}");
        }
        let large = "x".repeat(BODY_BYTES_MAX + 1);
        assert_eq!(answered(&receiver, signed("msg_6", &large)).await.0, 413);
        let (room, most) = (started("whe_6"), BODY_BYTES_MAX);
        let largest = room.replace("sesn_1", &"x".repeat(most - room.len() + "sesn_1".len()));
        assert_eq!(largest.len(), most);
        let mut forged = signed("msg_6", "{}");
        *forged.body_mut() = Full::new(Bytes::from(largest));
        assert_eq!(answered(&receiver, forged).await.0, 401, "read as a whole");
        assert!(!fired(&receiver).await, "none of them tells of work");
        shutdown.drain();
        assert_eq!(answered(&receiver, signed("msg_7", started("whe_7"))).await.0, 503);
        assert_eq!(answered(&receiver, bare(Method::GET, "/readyz")).await.0, 503);
        assert_eq!(answered(&receiver, bare(Method::GET, "/healthz")).await.0, 200);
    }

    /// A body that notes whether it was asked for.
    struct Noted(Arc<AtomicBool>);

    impl Body for Noted {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.store(true, Ordering::Relaxed);
            Poll::Ready(None)
        }
    }

    #[tokio::test]
    async fn of_strangers_no_body_is_read() {
        // INV-11, HOOK-1, HOOK-4, HOOK-7: it would be kept until the signature is found to be wrong.
        let (receiver, _shutdown) = receiver();
        let right = signed("msg_1", "{}").into_parts().0.headers;
        for (header, value, read) in [
            ("webhook-id", None, false),
            ("webhook-timestamp", None, false),
            ("webhook-signature", None, false),
            ("webhook-timestamp", Some("1"), false),
            ("webhook-timestamp", Some("soon"), false),
            ("webhook-timestamp", Some("9999999999"), false),
            // The control.
            ("webhook-signature", Some("v1,wrong"), true),
        ] {
            let asked = Arc::new(AtomicBool::new(false));
            let mut request = Request::post("/webhook").body(Noted(Arc::clone(&asked)));
            let headers = request.as_mut().expect("a request").headers_mut();
            *headers = right.clone();
            headers.remove(header);
            headers.extend(
                value.map(|value| {
                    (HeaderName::from_static(header), HeaderValue::from_static(value))
                }),
            );
            let answer = receiver.reply(request.expect("a request")).await.expect("infallible");
            assert_eq!(answer.status().as_u16(), 401, "{header} {value:?}");
            assert_eq!(asked.load(Ordering::Relaxed), read, "{header} {value:?}");
        }
    }

    #[test]
    fn what_the_log_gets_of_an_id_is_bounded_and_plain() {
        // INV-11, INV-12.
        assert_eq!(short("sesn_1\n\u{1b}[31m"), "sesn_1[31m");
        assert_eq!(short(&"x".repeat(9000)).len(), LOGGED_ID_CHARS_MAX);
    }
}
