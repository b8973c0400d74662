//! Deliveries of webhooks: signs `session.status_run_started` when a session gets work, and sends it.
//!
//! As the real sender does, it tries again when nobody takes a delivery, and so may deliver twice. Plain
//! HTTP only: it is for a worker on this machine.

use std::io;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::state::{Plane, State};

/// Pauses before further attempts.
const RETRIES: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];
/// Time for one attempt, and longest answer.
const ATTEMPT: Duration = Duration::from_secs(10);
const ANSWER_MAX: u64 = 64 << 10;

/// `[webhook]`: where deliveries go, and what they are signed with.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookScript {
    pub url: String,
    pub key: String,
}

/// Signs and sends.
pub struct Hook {
    host: String,
    path: String,
    signer: Webhook,
    /// Sessions that have got work.
    queue: mpsc::UnboundedSender<String>,
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hook").field("host", &self.host).finish_non_exhaustive()
    }
}

/// How deliveries went.
#[derive(Debug, Default, Clone, serde::Serialize)]
pub struct Deliveries {
    pub sent: u64,
    pub accepted: u64,
    pub given_up: u64,
}

/// A delivery that is asked for by a test.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Asked {
    pub session: String,
    /// Of the event.
    pub r#type: String,
    /// Of the delivery, and of the event.
    pub id: String,
    pub event: String,
    /// How old it says it is; negative is the future.
    pub age_s: i64,
}

impl Default for Asked {
    fn default() -> Self {
        Asked {
            session: String::new(),
            r#type: "session.status_run_started".to_owned(),
            id: "msg_1".to_owned(),
            event: "whe_1".to_owned(),
            age_s: 0,
        }
    }
}

impl Hook {
    /// Checks where to and with which key; the receiver is for [`deliver`].
    ///
    /// # Errors
    /// What is wrong, in one sentence.
    pub fn new(script: &WebhookScript) -> Result<(Hook, mpsc::UnboundedReceiver<String>), String> {
        let rest = script.url.strip_prefix("http://").ok_or("the webhook's URL is not http://")?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let plain = host.bytes().chain(path.bytes()).all(|byte| byte.is_ascii_graphic());
        if !plain || !host.contains(':') {
            return Err("the webhook's URL is not like http://127.0.0.1:8787/webhook".to_owned());
        }
        let signer = Webhook::new(script.key.trim());
        let signer = signer.map_err(|_| "the webhook's key is not base64".to_owned())?;
        let (queue, received) = mpsc::unbounded_channel();
        let path = if path.is_empty() { "/" } else { path }.to_owned();
        Ok((Hook { host: host.to_owned(), path, signer, queue }, received))
    }

    /// A session has got work.
    pub fn tell(&self, session: &str) {
        // Nobody delivers any more when the server ends.
        let _ended = self.queue.send(session.to_owned());
    }

    /// Body and headers of a delivery.
    pub fn signed(
        &self,
        asked: &Asked,
        now_s: i64,
    ) -> Option<(String, [(&'static str, String); 3])> {
        let body = json!({
            "type": "event",
            "id": asked.event,
            "created_at": "2026-11-02T08:00:00Z",
            "data": {
                "type": asked.r#type,
                "id": asked.session,
                "organization_id": "org_dev",
                "workspace_id": "wrkspc_dev",
            },
        })
        .to_string();
        let timestamp = now_s.checked_sub(asked.age_s)?;
        let signature = self.signer.sign(&asked.id, timestamp, body.as_bytes()).ok()?;
        Some((
            body,
            [
                ("webhook-id", asked.id.clone()),
                ("webhook-timestamp", timestamp.to_string()),
                ("webhook-signature", signature),
            ],
        ))
    }
}

/// Answers `POST /dev/webhook`: a signed delivery, for whoever wants to send it.
pub fn signed_for_test(state: &State, asked: &Asked) -> Option<Value> {
    let (body, headers) = state.hook.as_ref()?.signed(asked, unix_now())?;
    let headers: Vec<Value> = headers.iter().map(|(name, value)| json!([name, value])).collect();
    Some(json!({"body": body, "headers": headers}))
}

fn unix_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Sends a delivery for each session that gets work, each on its own.
pub async fn deliver(plane: Plane, mut sessions: mpsc::UnboundedReceiver<String>) {
    let mut number = 0_u64;
    while let Some(session) = sessions.recv().await {
        number += 1;
        let asked = Asked {
            session,
            id: format!("msg_dev_{number:06}"),
            event: format!("whe_dev_{number:06}"),
            ..Asked::default()
        };
        tokio::spawn(one(plane.clone(), asked));
    }
}

async fn one(plane: Plane, asked: Asked) {
    for pause in RETRIES.into_iter().map(Some).chain([None]) {
        let request = {
            let mut state = plane.lock();
            state.deliveries.sent += 1;
            let Some(hook) = &state.hook else { return };
            let Some((body, headers)) = hook.signed(&asked, unix_now()) else { return };
            (hook.host.clone(), request(hook, &body, &headers))
        };
        let sent = tokio::time::timeout(ATTEMPT, send(&request.0, &request.1)).await;
        let accepted = matches!(sent, Ok(Ok(status)) if (200..300).contains(&status));
        if accepted {
            plane.lock().deliveries.accepted += 1;
            return;
        }
        match pause {
            Some(pause) => tokio::time::sleep(pause).await,
            None => plane.lock().deliveries.given_up += 1,
        }
    }
}

fn request(hook: &Hook, body: &str, headers: &[(&'static str, String)]) -> String {
    let mut head = format!(
        "POST {} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n",
        hook.path,
        hook.host,
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head + "\r\n" + body
}

async fn send(host: &str, request: &str) -> io::Result<u16> {
    let mut stream = TcpStream::connect(host).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or(io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(url: &str, key: &str) -> WebhookScript {
        WebhookScript { url: url.to_owned(), key: key.to_owned() }
    }

    #[test]
    fn a_delivery_has_the_members_of_the_real_one_and_a_signature() {
        // HOOK-3, HOOK-6.
        let key = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
        let (hook, _sessions) = Hook::new(&script("http://127.0.0.1:1/a", key)).expect("a hook");
        let asked = Asked { session: "sesn_1".to_owned(), age_s: 10, ..Asked::default() };
        let (body, headers) = hook.signed(&asked, 1000).expect("signed");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(body["data"]["id"], "sesn_1");
        assert_eq!(body["data"]["type"], "session.status_run_started");
        assert_eq!(headers[1], ("webhook-timestamp", "990".to_owned()));
        assert!(headers[2].1.starts_with("v1,"));
    }

    #[test]
    fn a_webhook_that_cannot_be_sent_is_refused() {
        for (url, key) in [
            ("https://127.0.0.1:1/", "AAAA"),
            ("http://nowhere", "AAAA"),
            ("http://a b:1/", "AAAA"),
            ("http://127.0.0.1:1/", "%"),
        ] {
            assert!(Hook::new(&script(url, key)).is_err(), "{url} {key}");
        }
    }
}
