//! The scripted control plane and the scripted host that the tests share.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::clock::{SharedUptime, fake::TestTime};
use super::super::journal::{Journal, JournalError, Known};
use super::super::transport::{Body, BoxFuture, Incoming, Outgoing, Transport, TransportError};
use super::super::wire::event::parse_event;
use super::super::*;
use crate::queue::wire::event::Event;

/// One request, as it arrived.
#[derive(Clone)]
pub struct Seen {
    pub at: Duration,
    pub method: String,
    pub host: String,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }
}

/// One scripted answer.
#[derive(Clone)]
pub enum Answer {
    Json(u16, Value),
    Text(u16, String),
    With(u16, Vec<(&'static str, &'static str)>),
    /// Never.
    Hang,
    /// The connection breaks.
    Break,
    Late(Duration, Box<Answer>),
    /// 200, and a body piece by piece.
    Pieces(Vec<Piece>),
}

/// A part of a body.
#[derive(Clone)]
pub enum Piece {
    Bytes(Vec<u8>),
    Pause(Duration),
    /// The connection breaks here.
    Break,
}

pub fn ok() -> Answer {
    Answer::Json(200, json!({}))
}

pub fn status(status: u16) -> Answer {
    Answer::Json(status, json!({"type":"error","error":{"type":"api_error","message":"m"}}))
}

pub fn beat(value: &str, ttl: f64, state: &str, extended: bool) -> Answer {
    let body = json!({"type":"work_heartbeat","last_heartbeat":value,"lease_extended":extended,
        "state":state,"ttl_seconds":ttl});
    Answer::Json(200, body)
}

pub fn refused_beat(state: Value) -> Answer {
    let details = json!({"error_code":"heartbeat_precondition_failed","current_state":state});
    let error = json!({"type":"invalid_request_error","message":"m","details":details});
    Answer::Json(412, json!({"type":"error","error":error}))
}

/// What the plane knows; tests fill the scripts, everything else has a sensible answer.
pub struct State {
    pub seen: Vec<Seen>,
    pub polls: VecDeque<Answer>,
    pub acks: VecDeque<Answer>,
    pub beats: VecDeque<Answer>,
    pub sessions: VecDeque<Answer>,
    pub pages: VecDeque<Answer>,
    pub opens: VecDeque<Answer>,
    pub posts: VecDeque<Answer>,
    pub stops: VecDeque<Answer>,
    pub skills: VecDeque<Answer>,
    pub archives: VecDeque<Answer>,
    pub ttl: f64,
    pub session_status: &'static str,
    pub history: Vec<Value>,
    /// Emitted the moment a history is listed, after its content is fixed (RUN-1).
    pub gap: Vec<Value>,
    beats_given: u64,
    streams: Vec<mpsc::UnboundedSender<Result<Bytes, ()>>>,
}

/// A control plane in memory.
pub struct Plane {
    start: Instant,
    state: Mutex<State>,
}

impl Plane {
    pub fn new() -> Arc<Plane> {
        let state = State {
            seen: Vec::new(),
            polls: VecDeque::new(),
            acks: VecDeque::new(),
            beats: VecDeque::new(),
            sessions: VecDeque::new(),
            pages: VecDeque::new(),
            opens: VecDeque::new(),
            posts: VecDeque::new(),
            stops: VecDeque::new(),
            skills: VecDeque::new(),
            archives: VecDeque::new(),
            ttl: 300.0,
            session_status: "running",
            history: Vec::new(),
            gap: Vec::new(),
            beats_given: 0,
            streams: Vec::new(),
        };
        Arc::new(Plane { start: Instant::now(), state: Mutex::new(state) })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    /// Requests whose path ends like this.
    pub fn seen(&self, end: &str) -> Vec<Seen> {
        self.state().seen.iter().filter(|seen| seen.path.ends_with(end)).cloned().collect()
    }

    /// Bodies of posts, as the event they hold.
    pub fn posted(&self) -> Vec<Value> {
        let posts = self.seen("/events");
        let posts = posts.iter().filter(|seen| seen.method == "POST");
        let body = |seen: &Seen| serde_json::from_str::<Value>(&seen.body).expect("JSON");
        posts.map(|seen| body(seen)["events"][0].clone()).collect()
    }

    pub fn posted_ids(&self) -> Vec<String> {
        let id = |event: &Value| {
            let id = event.get("tool_use_id").or(event.get("custom_tool_use_id"));
            id.and_then(Value::as_str).expect("an id").to_owned()
        };
        self.posted().iter().map(id).collect()
    }

    pub fn posted_text(&self, at: usize) -> String {
        self.posted()[at]["content"][0]["text"].as_str().expect("text").to_owned()
    }

    /// An event happens: it is in the history and on the stream.
    pub fn emit(&self, event: Value) {
        let mut state = self.state();
        state.history.push(event.clone());
        send_live(&mut state, &event);
    }

    /// Bytes on the open streams.
    pub fn raw(&self, text: &str) {
        let bytes = Bytes::from(text.to_owned());
        self.state().streams.retain(|stream| stream.send(Ok(bytes.clone())).is_ok());
    }

    /// Ends the open streams.
    pub fn end_streams(&self) {
        self.state().streams.clear();
    }

    /// Waits on the test clock until something holds.
    pub async fn until(&self, what: &str, holds: impl Fn(&Plane) -> bool) {
        for step in 0..400_000_u64 {
            if holds(self) {
                return;
            }
            // Fine steps first; what takes minutes is not looked for by the millisecond.
            let pause = if step < 40_000 { 1 } else { 100 };
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        panic!("waited in vain until {what}");
    }

    fn answer(
        &self,
        request: &Outgoing,
    ) -> (Answer, Option<mpsc::UnboundedReceiver<Result<Bytes, ()>>>) {
        let mut state = self.state();
        let path = request.url.path().to_owned();
        let body = request.body.clone().unwrap_or_default();
        let body = String::from_utf8(body.to_vec()).expect("text");
        state.seen.push(Seen {
            at: self.start.elapsed(),
            method: request.method.to_string(),
            host: request.url.host_str().unwrap_or_default().to_owned(),
            path: path.clone(),
            query: request.url.query().unwrap_or_default().to_owned(),
            headers: request.headers.clone(),
            body: body.clone(),
        });
        if path.ends_with("/stream") {
            let scripted = state.opens.pop_front();
            if let Some(answer) = scripted.filter(|answer| !matches!(answer, Answer::Json(200, _)))
            {
                return (answer, None);
            }
            let (sender, receiver) = mpsc::unbounded_channel();
            state.streams.push(sender);
            return (ok(), Some(receiver));
        }
        let is_post = request.method == "POST";
        if path.contains("/skills/") {
            let archive = path.ends_with("/content");
            let scripted = if archive { &mut state.archives } else { &mut state.skills };
            return (scripted.pop_front().unwrap_or_else(|| status(404)), None);
        }
        let answer = match path.rsplit('/').next().expect("a path") {
            "poll" => state.polls.pop_front().unwrap_or_else(|| {
                Answer::Late(Duration::from_millis(999), Box::new(Answer::Json(200, Value::Null)))
            }),
            "ack" => state.acks.pop_front().unwrap_or_else(ok),
            "heartbeat" => {
                state.beats_given += 1;
                let value = format!("hb+{}", state.beats_given);
                let ttl = state.ttl;
                state.beats.pop_front().unwrap_or_else(|| beat(&value, ttl, "active", true))
            }
            "stop" => state.stops.pop_front().unwrap_or(Answer::Text(204, String::new())),
            "events" if is_post => {
                let answer = state.posts.pop_front().unwrap_or_else(ok);
                if matches!(answer, Answer::Json(200, _)) {
                    let value: Value = serde_json::from_str(&body).expect("JSON");
                    let event = value["events"][0].clone();
                    state.history.push(event.clone());
                    send_live(&mut state, &event);
                }
                answer
            }
            "events" => {
                let all = json!({"data": state.history, "next_page": null});
                let answer = state.pages.pop_front().unwrap_or(Answer::Json(200, all));
                for event in std::mem::take(&mut state.gap) {
                    state.history.push(event.clone());
                    send_live(&mut state, &event);
                }
                answer
            }
            _ => {
                let status = state.session_status;
                let session = json!({"type":"session","status":status});
                state.sessions.pop_front().unwrap_or(Answer::Json(200, session))
            }
        };
        (answer, None)
    }
}

fn send_live(state: &mut State, event: &Value) {
    let name = event["type"].as_str().expect("a type");
    let text = Bytes::from(format!("event: {name}\ndata: {event}\n\n"));
    state.streams.retain(|stream| stream.send(Ok(text.clone())).is_ok());
}

impl Transport for Arc<Plane> {
    fn send(&self, request: Outgoing) -> BoxFuture<'_, Result<Incoming, TransportError>> {
        Box::pin(async move {
            let (mut answer, stream) = self.answer(&request);
            while let Answer::Late(time, then) = answer {
                tokio::time::sleep(time).await;
                answer = *then;
            }
            if let Answer::Pieces(pieces) = answer {
                let (headers, body) = (HeaderMap::new(), Box::new(InPieces(pieces.into())));
                return Ok(Incoming { status: 200, headers, body });
            }
            let (status, text, headers) = match answer {
                Answer::Json(status, value) => (status, value.to_string(), Vec::new()),
                Answer::Text(status, text) => (status, text, Vec::new()),
                Answer::With(status, headers) => (status, String::new(), headers),
                Answer::Break => {
                    return Err(TransportError { doing: "send the request", source: None });
                }
                Answer::Hang | Answer::Late(..) | Answer::Pieces(_) => std::future::pending().await,
            };
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(name, value.parse().expect("a header"));
            }
            let body: Box<dyn Body> = match stream {
                Some(stream) => Box::new(Live(stream)),
                None => Box::new(Whole(Some(Bytes::from(text)))),
            };
            Ok(Incoming { status, headers: map, body })
        })
    }
}

struct Whole(Option<Bytes>);

impl Body for Whole {
    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, TransportError>> {
        let chunk = self.0.take().filter(|bytes| !bytes.is_empty());
        Box::pin(async move { Ok(chunk) })
    }
}

struct InPieces(VecDeque<Piece>);

impl Body for InPieces {
    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, TransportError>> {
        Box::pin(async move {
            loop {
                match self.0.pop_front() {
                    Some(Piece::Bytes(bytes)) => return Ok(Some(Bytes::from(bytes))),
                    Some(Piece::Pause(time)) => tokio::time::sleep(time).await,
                    Some(Piece::Break) => {
                        return Err(TransportError { doing: "read the response", source: None });
                    }
                    None => return Ok(None),
                }
            }
        })
    }
}

struct Live(mpsc::UnboundedReceiver<Result<Bytes, ()>>);

impl Body for Live {
    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, TransportError>> {
        Box::pin(async move {
            let error = || TransportError { doing: "read the response", source: None };
            self.0.recv().await.transpose().map_err(|()| error())
        })
    }
}

/// The product around the queue, scripted. Tools `bash` and `mine` are ours; the input says how
/// long a call takes (`take_ms`) and whether it ignores the request to stop (`stuck`).
pub struct TestHost {
    pub slots: Arc<Semaphore>,
    pub log: Mutex<Vec<String>>,
    pub open_takes: Mutex<Duration>,
    pub open_fails: Mutex<bool>,
    pub close_takes: Mutex<Duration>,
    start: Instant,
}

impl TestHost {
    fn note(&self, text: String) {
        self.log.lock().expect("not poisoned").push(text);
    }

    /// Entries that begin like this.
    pub fn noted(&self, start: &str) -> Vec<String> {
        let log = self.log.lock().expect("not poisoned");
        log.iter().filter(|entry| entry.starts_with(start)).cloned().collect()
    }
}

impl SessionTools for Tools {
    fn owner(&self) -> Owner {
        Box::new(|name, kind| match kind {
            CallKind::Builtin => name == "bash",
            CallKind::Custom => name == "mine",
        })
    }

    async fn run(&mut self, call: &Call, stop: CancelToken) -> CallOutcome {
        let host = Arc::clone(&self.0);
        host.note(format!("run {}", call.id));
        let input: Value = serde_json::from_str(call.input.get()).expect("JSON");
        let takes = Duration::from_millis(input["take_ms"].as_u64().unwrap_or(0));
        if input["stuck"] == true {
            tokio::time::sleep(takes).await;
            return CallOutcome::text("late");
        }
        tokio::select! {
            () = tokio::time::sleep(takes) => {}
            () = stop.cancelled() => {
                host.note(format!("killed {}", call.id));
                return CallOutcome::error("killed");
            }
        }
        host.note(format!("done {} at {:?}", call.id, host.start.elapsed()));
        CallOutcome::text(input["text"].as_str().unwrap_or("out").to_owned())
    }
}

pub struct Tools(Arc<TestHost>);

impl Host for Arc<TestHost> {
    type Tools = Tools;
    type Permit = OwnedSemaphorePermit;

    async fn admit(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.slots).acquire_owned().await.expect("open")
    }

    async fn open(&self, _opening: Opening<'_>) -> Result<Tools, OpenError> {
        self.note("open".to_owned());
        let takes = *self.open_takes.lock().expect("not poisoned");
        tokio::time::sleep(takes).await;
        if *self.open_fails.lock().expect("not poisoned") {
            let for_model = "the jail could not be started: mounts".to_owned();
            return Err(OpenError { for_model, for_log: "cannot mount".to_owned() });
        }
        Ok(Tools(Arc::clone(self)))
    }

    async fn close(&self, _tools: Tools, how: ItemEnd) {
        self.note(format!("close {how:?}"));
        let takes = *self.close_takes.lock().expect("not poisoned");
        tokio::time::sleep(takes).await;
    }

    fn observe(&self, _ids: &Ids, progress: &Progress<'_>) {
        self.note(format!("{progress:?}"));
    }
}

/// Keeps everything in memory.
pub struct MemoryJournals;

impl JournalStore for MemoryJournals {
    fn open(&self, _session: &str) -> Result<Box<dyn Journal>, JournalError> {
        Ok(Box::new(MemoryJournal::default()))
    }
}

#[derive(Default)]
struct MemoryJournal(HashMap<String, Known>);

impl Journal for MemoryJournal {
    fn known(&self, call: &str) -> io::Result<Known> {
        Ok(self.0.get(call).cloned().unwrap_or(Known::Nothing))
    }

    fn intent(&mut self, call: &str, _tool: &str, _input_sha256: &str) -> io::Result<()> {
        self.0.insert(call.to_owned(), Known::Intent);
        Ok(())
    }

    fn result(&mut self, call: &str, body: &Bytes) -> io::Result<()> {
        self.0.insert(call.to_owned(), Known::Result(body.clone()));
        Ok(())
    }

    fn settled(&mut self, call: &str) -> io::Result<()> {
        self.0.insert(call.to_owned(), Known::Settled);
        Ok(())
    }

    fn may_have_lost_writes(&self) -> bool {
        false
    }

    fn presume_started(&mut self, _calls: &[(&str, &str)]) -> io::Result<()> {
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub struct World {
    pub plane: Arc<Plane>,
    pub host: Arc<TestHost>,
    pub time: Arc<TestTime>,
    pub shared: Arc<Shared<Arc<TestHost>>>,
    pub shutdown: Shutdown,
    pub watch: ShutdownWatch,
}

impl World {
    pub fn new() -> World {
        World::with(|_| {}, Arc::new(MemoryJournals))
    }

    pub fn with(change: impl Fn(&mut QueueSettings), journals: Arc<dyn JournalStore>) -> World {
        let base = "https://plane.test/base/".parse().expect("a URL");
        let mut settings = QueueSettings::new(base, "env_1", "host-1");
        settings.cadence = Cadence::Sdk;
        change(&mut settings);
        settings.check().expect("good settings");
        let plane = Plane::new();
        let random = Random::fixed(0.5);
        let client = Client::new(&settings, Arc::new(Arc::clone(&plane)), random.clone());
        let (key, _setter) = EnvironmentKey::new(&"sk-key".into()).expect("a key");
        let host = Arc::new(TestHost {
            slots: Arc::new(Semaphore::new(2)),
            log: Mutex::new(Vec::new()),
            open_takes: Mutex::new(Duration::ZERO),
            open_fails: Mutex::new(false),
            close_takes: Mutex::new(Duration::ZERO),
            start: Instant::now(),
        });
        let time = Arc::new(TestTime::new());
        let shared = Arc::new(Shared {
            host: Arc::new(Arc::clone(&host)),
            settings,
            key: Some(key),
            drive: Drive::default(),
            lease_client: client.clone(),
            client,
            heartbeats: tokio::runtime::Handle::current(),
            journals,
            uptime: Arc::clone(&time) as SharedUptime,
            random,
            remembered_max: REMEMBERED_MAX,
        });
        let (shutdown, watch) = Shutdown::new();
        World { plane, host, time, shared, shutdown, watch }
    }

    /// Serves session `sesn_1` as an acked item.
    pub fn serve(&self) -> JoinHandle<ItemEnd> {
        let item = wire::work::parse_poll(work("session").to_string().as_bytes());
        let item = item.expect("an item").expect("an item");
        tokio::spawn(item::serve(Arc::clone(&self.shared), item, self.watch.clone()))
    }

    /// Polls in the background.
    pub fn poll(&self) -> JoinHandle<Result<QueueEnd, PollRefused>> {
        tokio::spawn(poll::run(Arc::clone(&self.shared), self.watch.clone()))
    }

    /// The item is served until the end of its turn and the idle time after it.
    pub async fn serve_to_idle(&self) -> ItemEnd {
        let item = self.serve();
        let plane = &self.plane;
        plane.until("the stream is open", |plane| !plane.seen("/stream").is_empty()).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        plane.emit(end_turn());
        item.await.expect("an end")
    }
}

pub fn work(kind: &str) -> Value {
    json!({"type":"work","id":"work_1","data":{"type":kind,"id":"sesn_1"},"secret":null})
}

pub fn call(id: &str) -> Value {
    call_with(id, json!({}))
}

/// A builtin call with this input.
pub fn call_with(id: &str, input: Value) -> Value {
    json!({"type":"agent.tool_use","id":id,"name":"bash","input":input})
}

pub fn end_turn() -> Value {
    json!({"type":"session.status_idle","id":"e","stop_reason":{"type":"end_turn"}})
}

pub fn result_of(id: &str) -> Value {
    json!({"type":"user.tool_result","tool_use_id":id})
}

pub fn confirmation(id: &str, result: &str) -> Value {
    json!({"type":"user.tool_confirmation","tool_use_id":id,"result":result})
}

pub fn thread_end(thread: &str) -> Value {
    json!({"type":"session.thread_status_terminated","session_thread_id":thread})
}

pub fn event(value: &Value) -> Event {
    parse_event(value.to_string().as_bytes()).expect("an event")
}
