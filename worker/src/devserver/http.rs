//! Connections and requests: reads them, checks their headers, meets faults, hands them to whoever
//! answers, and sends the answer.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::fault::{Endpoint, Fault, Kind};
use super::reply::{Content, Reply};
use super::state::{Plane, Who};
use super::{api, checks, dev};

/// Bytes of a request's body.
const BODY_MAX: usize = 32 * 1024 * 1024;
/// Time for the head of a request. It also ends connections that nobody uses, which must not happen
/// between two heartbeats.
const HEAD_TIME: Duration = Duration::from_secs(600);
/// How long an answer that never comes is withheld: nobody waits longer.
const HANG_TIME: Duration = Duration::from_secs(3600);

/// A request that was read.
#[derive(Debug)]
pub struct Ask {
    pub method: Method,
    /// Path segments, decoded.
    pub path: Vec<String>,
    /// Ids in the path, in order.
    ids: Vec<String>,
    query: Vec<(String, String)>,
    pub body: Bytes,
    pub headers: hyper::HeaderMap,
    /// Breaks the connection of this request.
    pub reset: Arc<Notify>,
    pub who: Who,
}

impl Ask {
    /// The first value of a query parameter.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All values of a query parameter.
    pub fn queries<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.query.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A query parameter that is a number.
    pub fn number(&self, name: &str) -> Option<Result<usize, std::num::ParseIntError>> {
        self.query(name).map(str::parse)
    }

    /// The id at a place of the path; empty if there is none.
    pub fn id(&self, at: usize) -> &str {
        self.ids.get(at).map_or("", String::as_str)
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Accepts connections until the listener fails; a failure of one connection ends only that.
///
/// # Errors
/// If the listener fails for good.
pub async fn accept(plane: Plane, listener: TcpListener) -> io::Result<Infallible> {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                plane.lock().record.connections += 1;
                tokio::spawn(connection(plane.clone(), stream));
            }
            // A client that has gone, or too many descriptors for now.
            Err(error) if listener.local_addr().is_ok() => {
                tracing::warn!(event = "devserver.accept_failed", %error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn connection(plane: Plane, stream: TcpStream) {
    // Without it the last chunk of a stream waits for an acknowledgement.
    let delayed = stream.set_nodelay(true);
    if delayed.is_err() {
        return;
    }
    let reset = Arc::new(Notify::new());
    let service = {
        let reset = Arc::clone(&reset);
        service_fn(move |request| serve(plane.clone(), request, Arc::clone(&reset)))
    };
    let mut connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(true)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = &mut connection => if let Err(error) = ended {
            tracing::debug!(event = "devserver.connection_failed", %error, "connection failed");
        },
        () = reset.notified() => {
            let stream = connection.into_parts().io.into_inner();
            // Closing with unsent data and no time to linger sends a reset.
            if let Err(error) = stream.set_zero_linger() {
                tracing::debug!(event = "devserver.reset_failed", %error, "cannot reset");
            }
        }
    }
}

async fn serve(
    plane: Plane,
    request: Request<Incoming>,
    reset: Arc<Notify>,
) -> Result<Response<Content>, Infallible> {
    let (head, body) = request.into_parts();
    let decode =
        |part: &str| percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned();
    let path: Vec<String> = head.uri.path().trim_matches('/').split('/').map(decode).collect();
    let query = form_urlencoded::parse(head.uri.query().unwrap_or("").as_bytes());
    let query = query.into_owned().collect();
    let body = match Limited::new(body, BODY_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return Ok(Reply::error(413, "the body is too large or was cut").into_response(0)),
    };
    let who = Who::Operator;
    let mut ask = Ask {
        method: head.method,
        path,
        ids: Vec::new(),
        query,
        body,
        headers: head.headers,
        reset,
        who,
    };
    let reply = if ask.path.first().is_some_and(|first| first == "dev") {
        dev::answer(&plane, &ask)
    } else {
        answer(&plane, &mut ask).await
    };
    Ok(reply.into_response(plane.lock().clock.now()))
}

/// Where a request goes, and the ids in its path (§2.1).
fn route(method: &Method, path: &[String]) -> Option<(Endpoint, Vec<String>)> {
    let parts: Vec<&str> = path.iter().map(String::as_str).collect();
    // A prefix of the base URL is not ours to refuse.
    let from = parts.iter().position(|part| *part == "v1")?;
    let (get, post, delete) =
        (method == Method::GET, method == Method::POST, method == Method::DELETE);
    use Endpoint as E;
    let (endpoint, ids): (Endpoint, Vec<&str>) = match parts[from + 1..] {
        ["environments", env, "work", "poll"] if get => (E::Poll, vec![env]),
        ["environments", env, "work", "stats"] if get => (E::WorkStats, vec![env]),
        ["environments", env, "work"] if get => (E::WorkList, vec![env]),
        ["environments", env, "work", work] if get => (E::WorkGet, vec![env, work]),
        ["environments", env, "work", work] if post => (E::WorkMetadata, vec![env, work]),
        ["environments", env, "work", work, "ack"] if post => (E::Ack, vec![env, work]),
        ["environments", env, "work", work, "heartbeat"] if post => (E::Heartbeat, vec![env, work]),
        ["environments", env, "work", work, "stop"] if post => (E::Stop, vec![env, work]),
        ["sessions", session] if get => (E::Session, vec![session]),
        ["sessions", session, "events"] if get => (E::List, vec![session]),
        ["sessions", session, "events"] if post => (E::Send, vec![session]),
        ["sessions", session, "events", "stream"] if get => (E::Stream, vec![session]),
        ["skills", skill, "versions", version] if get => (E::Skill, vec![skill, version]),
        ["skills", skill, "versions", version, "content"] if get => {
            (E::SkillContent, vec![skill, version])
        }
        ["memory_stores", store, "memories"] if get => (E::MemoryList, vec![store]),
        ["memory_stores", store, "memories"] if post => (E::MemoryCreate, vec![store]),
        ["memory_stores", store, "memories", id] if get => (E::MemoryGet, vec![store, id]),
        ["memory_stores", store, "memories", id] if post => (E::MemoryUpdate, vec![store, id]),
        ["memory_stores", store, "memories", id] if delete => (E::MemoryDelete, vec![store, id]),
        _ => return None,
    };
    Some((endpoint, ids.into_iter().map(str::to_owned).collect()))
}

async fn answer(plane: &Plane, ask: &mut Ask) -> Reply {
    let Some((endpoint, ids)) = route(&ask.method, &ask.path) else {
        let mut state = plane.lock();
        let detail = format!("{} /{}", ask.method, ask.path.join("/"));
        state.violate("unknown_endpoint", None, detail);
        return Reply::error(404, "there is no such endpoint");
    };
    ask.ids = ids;
    plane.lock().record.requests.entry(endpoint).or_default().count += 1;
    let refused = checks::headers(&mut plane.lock(), endpoint, ask);
    if let Err(reply) = refused {
        plane.lock().record.answered(endpoint, &reply.status.to_string());
        return reply;
    }
    let fault = meet(plane, endpoint, ask);
    let reply = match &fault {
        None => api::answer(plane, endpoint, ask, None).await,
        Some(fault) => faulty(plane, endpoint, ask, fault).await,
    };
    plane.lock().record.answered(endpoint, &reply.status.to_string());
    reply
}

/// The fault that this request meets.
fn meet(plane: &Plane, endpoint: Endpoint, ask: &Ask) -> Option<Fault> {
    let mut state = plane.lock();
    let session = checks::session_of(&mut state, endpoint, ask);
    let names: Vec<String> = session
        .map(|at| vec![state.sessions[at].id.clone(), state.sessions[at].name.clone()])
        .unwrap_or_default();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let page = api::page_number(&state, endpoint, session, ask);
    let fault = state.faults.take(endpoint, &names, page)?;
    state.record.faults_met += 1;
    tracing::info!(event = "devserver.fault", ?endpoint, kind = ?fault.kind, "fault");
    Some(fault)
}

async fn faulty(plane: &Plane, endpoint: Endpoint, ask: &Ask, fault: &Fault) -> Reply {
    let pause = Duration::from_millis(fault.ms);
    let kept = |reply: Reply| with_headers(reply, fault);
    let json = |text: &str| Reply::bytes(200, "application/json", Bytes::from(text.to_owned()));
    match fault.kind {
        Kind::Status(status) => {
            if status == 412 && endpoint == Endpoint::Heartbeat {
                return kept(api::refused_heartbeat(plane, ask));
            }
            let details = match &fault.error_code {
                Some(code) => serde_json::json!({"error_code": code}),
                None => Value::Null,
            };
            return kept(Reply::error_with(status, "injected", &details));
        }
        Kind::Reset => return broken(ask).await,
        Kind::Hang => {
            tokio::time::sleep(HANG_TIME).await;
            return Reply::error(500, "nobody waited");
        }
        Kind::Slow => {
            tokio::time::sleep(pause).await;
        }
        Kind::Garbage => return kept(json("<html>not JSON")),
        Kind::EmptyBody => return kept(json("")),
        Kind::EmptyObject => return kept(json("{}")),
        Kind::NoContent => return kept(Reply::empty(204)),
        Kind::Nothing => {
            tokio::time::sleep(pause).await;
            return kept(json("null"));
        }
        _ => {}
    }
    let reply = api::answer(plane, endpoint, ask, Some(fault)).await;
    if fault.kind.hides_success() && endpoint != Endpoint::Stream {
        api::response_lost(plane, endpoint, ask);
    }
    match fault.kind {
        Kind::StatusAfter(status) => kept(Reply::error(status, "injected, after it was done")),
        Kind::ResetAfter if endpoint != Endpoint::Stream => broken(ask).await,
        Kind::HangAfter => {
            tokio::time::sleep(HANG_TIME).await;
            reply
        }
        Kind::Corrupt => corrupt(reply),
        Kind::Trickle => trickle(reply, pause),
        _ => kept(reply),
    }
}

/// Breaks the connection; the reply is never sent.
async fn broken(ask: &Ask) -> Reply {
    ask.reset.notify_one();
    tokio::time::sleep(HANG_TIME).await;
    Reply::error(500, "nobody waited")
}

fn corrupt(mut reply: Reply) -> Reply {
    if let Content::Full(Some(bytes)) = &mut reply.content {
        let half = bytes.len() / 2;
        *bytes = bytes.slice(..half);
    }
    reply
}

/// Pieces of a body that trickles.
const PIECES: usize = 20;

fn trickle(mut reply: Reply, pause: Duration) -> Reply {
    let Content::Full(Some(bytes)) = &mut reply.content else { return reply };
    let mut rest = std::mem::take(bytes);
    let piece = rest.len().div_ceil(PIECES).max(1);
    let (sender, pieces) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while !rest.is_empty() {
            // Nobody takes the rest once the connection has ended.
            if sender.send(rest.split_to(piece.min(rest.len()))).is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    });
    reply.content = Content::Growing(pieces);
    reply
}

fn with_headers(mut reply: Reply, fault: &Fault) -> Reply {
    reply.headers.extend(fault.headers.iter().cloned());
    reply
}
