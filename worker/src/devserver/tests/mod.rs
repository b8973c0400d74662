//! The whole server, asked over HTTP. The clock is advanced, not waited for.

mod extras;
mod faults;
mod sessions;
mod work_items;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use super::state::{Identity, Plane};
use super::{http, script, start};

pub const AGENTS: &str = "managed-agents-2026-04-01";
pub const MEMORIES: &str = "agent-memory-2026-07-22";
pub const WORK: &str = "/v1/environments/env_dev/work";

/// A server and how to ask it.
pub struct Server {
    pub plane: Plane,
    address: std::net::SocketAddr,
    pub key: String,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub bytes: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }
}

impl Server {
    /// A server with a script.
    pub async fn new(text: &str) -> Server {
        let script = script::parse(text, std::path::Path::new("s")).expect("a valid script");
        let identity = Identity::new(None).expect("random bytes");
        let key = identity.key.clone();
        let plane = start(script, identity, true).expect("a script that can be started");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(http::accept(plane.clone(), listener));
        Server { plane, address, key }
    }

    /// Sends a request with exactly these headers.
    pub async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Result<Response<Incoming>, hyper::Error> {
        let stream = TcpStream::connect(self.address).await.expect("it listens");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "dev");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_empty() && !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        sender.send_request(request.body(Full::new(Bytes::from(body))).expect("valid")).await
    }

    /// The same, and the whole answer.
    pub async fn with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Answer {
        let response = self.raw(method, path, headers, body).await.expect("an answer");
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.expect("a whole body").to_bytes();
        Answer { status: head.status.as_u16(), headers: head.headers, bytes }
    }

    /// A right request with a credential.
    pub async fn ask(&self, token: &str, method: &str, path: &str, body: &str) -> Answer {
        let bearer = format!("Bearer {token}");
        let mut headers =
            vec![("authorization", bearer.as_str()), ("anthropic-version", "2026-10-21")];
        if path.contains("/memory_stores/") {
            headers.push(("anthropic-beta", MEMORIES));
        } else if !path.contains("/skills/") {
            headers.push(("anthropic-beta", AGENTS));
        }
        if path.contains("/work/poll") {
            headers.push(("anthropic-worker-id", "w1"));
        }
        self.with(method, path, &headers, body.to_owned()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask(&self.key, "GET", path, "").await
    }

    pub async fn post(&self, path: &str, body: &str) -> Answer {
        self.ask(&self.key, "POST", path, body).await
    }

    /// The organization's key, as operators send it.
    pub async fn operator(&self, method: &str, path: &str, body: &str) -> Answer {
        let key = self.plane.lock().identity.operator_key.clone();
        let headers = [
            ("x-api-key", key.as_str()),
            ("anthropic-version", "2026-10-21"),
            ("anthropic-beta", AGENTS),
        ];
        self.with(method, path, &headers, body.to_owned()).await
    }

    pub async fn dev(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.with(method, &format!("/dev/{path}"), &[], body.to_string()).await
    }

    /// Polls without waiting.
    pub async fn poll(&self) -> Value {
        self.get(&format!("{WORK}/poll")).await.json()
    }

    /// Polls, acks and beats once: the id of the item, the token, the value of the heartbeat.
    pub async fn claim(&self) -> Claim {
        let item = self.poll().await;
        let id = item["id"].as_str().expect("an item").to_owned();
        let token = token_of(&item).unwrap_or_else(|| self.key.clone());
        assert_eq!(self.post(&format!("{WORK}/{id}/ack"), "").await.status, 200);
        let beat = self.beat(&token, &id, "NO_HEARTBEAT").await;
        assert_eq!(beat.status, 200, "{beat:?}");
        let heartbeat = beat.json()["last_heartbeat"].as_str().expect("a value").to_owned();
        let session = item["data"]["id"].as_str().unwrap_or_default().to_owned();
        Claim { id, token, heartbeat, session }
    }

    pub async fn beat(&self, token: &str, id: &str, expected: &str) -> Answer {
        let query: String = form_urlencoded::Serializer::new(String::new())
            .append_pair("expected_last_heartbeat", expected)
            .finish();
        self.ask(token, "POST", &format!("{WORK}/{id}/heartbeat?{query}"), "").await
    }

    /// Opens the stream and lists the history, as a worker does.
    pub async fn attach(&self, claim: &Claim) -> Stream {
        let stream = self.stream(claim).await;
        assert_eq!(self.list(claim, "").await.status, 200);
        stream
    }

    pub async fn stream(&self, claim: &Claim) -> Stream {
        let path = format!("/v1/sessions/{}/events/stream", claim.session);
        let bearer = format!("Bearer {}", claim.token);
        let headers = [
            ("authorization", bearer.as_str()),
            ("anthropic-version", "2026-10-21"),
            ("anthropic-beta", AGENTS),
        ];
        let response = self.raw("GET", &path, &headers, String::new()).await.expect("an answer");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Stream { body: response.into_body(), text: String::new() }
    }

    pub async fn list(&self, claim: &Claim, query: &str) -> Answer {
        let path = format!("/v1/sessions/{}/events?limit=1000{query}", claim.session);
        self.ask(&claim.token, "GET", &path, "").await
    }

    /// Posts a text as the result of a call.
    pub async fn result(&self, claim: &Claim, call: &str, text: &str) -> Answer {
        let event = json!({"type": "user.tool_result", "tool_use_id": call, "is_error": false,
            "content": [{"type": "text", "text": text}]});
        self.send(claim, &event).await
    }

    pub async fn send(&self, claim: &Claim, event: &Value) -> Answer {
        let path = format!("/v1/sessions/{}/events", claim.session);
        self.ask(&claim.token, "POST", &path, &json!({"events": [event]}).to_string()).await
    }

    pub async fn stop(&self, claim: &Claim, body: &str) -> Answer {
        self.ask(&claim.token, "POST", &format!("{WORK}/{}/stop", claim.id), body).await
    }

    pub fn advance(&self, seconds: u64) {
        self.plane.lock().clock.advance(std::time::Duration::from_secs(seconds));
    }

    /// Kinds of the violations so far.
    pub fn violations(&self) -> Vec<&'static str> {
        self.plane.lock().violations(false).iter().map(|violation| violation.kind).collect()
    }

    /// The same if the run ended now.
    pub fn at_end(&self) -> Vec<&'static str> {
        self.plane.lock().violations(true).iter().map(|violation| violation.kind).collect()
    }

    pub fn failures(&self) -> Vec<String> {
        self.plane.lock().failures(false)
    }
}

/// A claimed item.
#[derive(Debug, Clone)]
pub struct Claim {
    pub id: String,
    pub token: String,
    pub heartbeat: String,
    pub session: String,
}

/// An open stream.
pub struct Stream {
    body: Incoming,
    text: String,
}

impl Stream {
    /// The next event that is not a comment; none at the end of the body.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((frame, rest)) = self.text.split_once("\n\n") {
                let data: Vec<&str> =
                    frame.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
                let event = serde_json::from_str(&data.concat()).ok();
                self.text = rest.to_owned();
                match event {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            let frame = self.body.frame().await?.ok()?;
            self.text.push_str(std::str::from_utf8(frame.data_ref()?).expect("text"));
        }
    }

    /// The next event of a type; others are passed over.
    pub async fn until(&mut self, kind: &str) -> Value {
        loop {
            let event =
                self.next().await.unwrap_or_else(|| panic!("the stream ended before {kind}"));
            if event["type"] == kind {
                return event;
            }
        }
    }

    /// The id of the next call.
    pub async fn call(&mut self) -> String {
        self.until("agent.tool_use").await["id"].as_str().expect("an id").to_owned()
    }
}

/// The token in a secret (AUTH-3).
pub fn token_of(item: &Value) -> Option<String> {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    let secret = item["secret"].as_str()?;
    let bytes = URL_SAFE_NO_PAD.decode(secret).or_else(|_| STANDARD.decode(secret)).ok()?;
    let value: Value = serde_json::from_slice(&bytes).ok()?;
    value["sessions_token"].as_str().map(str::to_owned)
}
