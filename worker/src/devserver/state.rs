//! The one state of a development server, behind one lock, and what wakes those who wait for it.
//!
//! Everything runs in one thread; the lock is never held across a wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;
use tokio::sync::Notify;

use super::aws::KeyPair;
use super::clock::Clock;
use super::fault::Faults;
use super::memory::Store;
use super::record::Record;
use super::script::{End, Secret, SessionScript, Settings, SkillScript};
use super::session::Session;
use super::webhook::{Deliveries, Hook};
use super::work::Queue;

/// Sessions of one run, pushed ones counted.
const SESSIONS_MAX: usize = 10_000;

/// Who sent a request, by its credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// The environment key.
    Key,
    /// The token of one holder of one item.
    Token { work: usize, holding: usize },
    /// The organization API key, which no worker has.
    Operator,
    /// AWS credentials or an API key of the platform on AWS.
    Platform,
}

/// Names and secrets of this environment.
#[derive(Debug, Clone)]
pub struct Identity {
    pub environment: String,
    pub key: String,
    pub operator_key: String,
    /// On AWS, unless the script has key pairs.
    pub aws_pair: KeyPair,
    pub aws_api_keys: Vec<String>,
    /// A part of every sessions token of this run.
    token_part: String,
}

impl Identity {
    /// Random secrets; a key that is given is kept.
    ///
    /// # Errors
    /// If the kernel gives no random bytes.
    pub fn new(key: Option<String>) -> std::io::Result<Identity> {
        Ok(Identity {
            environment: "env_dev".to_owned(),
            key: match key {
                Some(key) => key,
                None => format!("sk-ant-oat01-dev-{}", random()?),
            },
            operator_key: format!("sk-ant-api03-dev-{}", random()?),
            aws_pair: KeyPair {
                access_key_id: format!("AKIADEV{}", &random()?[..13].to_uppercase()),
                secret_access_key: random()?,
                session_token: None,
            },
            aws_api_keys: vec![format!("aws-dev-api-key-{}", random()?)],
            token_part: random()?,
        })
    }
}

fn random() -> std::io::Result<String> {
    let mut bytes = [0_u8; 16];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if got < bytes.len() {
        return Err(std::io::Error::other("the kernel gave too few random bytes"));
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Everything that changes.
#[derive(Debug)]
pub struct State {
    pub clock: Clock,
    pub settings: Settings,
    pub identity: Identity,
    pub queue: Queue,
    pub sessions: Vec<Session>,
    pub skills: Vec<SkillScript>,
    pub stores: Vec<Store>,
    pub faults: Faults,
    pub record: Record,
    pub tokens: HashMap<String, Who>,
    pub keep_results: bool,
    /// Tells a worker of sessions that get work.
    pub hook: Option<Hook>,
    pub deliveries: Deliveries,
    /// Drivers wait before their next step.
    pub paused: bool,
    /// Nothing more is pushed: the run may end.
    pub finished: bool,
    /// The queue has something new.
    pub queued: Arc<Notify>,
    /// A session has come to its end, or an item was stopped.
    pub changed: Arc<Notify>,
}

impl State {
    pub fn new(identity: Identity, settings: Settings, keep_results: bool) -> State {
        State {
            clock: Clock::new(),
            settings,
            identity,
            queue: Queue::default(),
            sessions: Vec::new(),
            skills: Vec::new(),
            stores: Vec::new(),
            faults: Faults::default(),
            record: Record::default(),
            tokens: HashMap::new(),
            keep_results,
            hook: None,
            deliveries: Deliveries::default(),
            paused: false,
            finished: false,
            queued: Arc::new(Notify::new()),
            changed: Arc::new(Notify::new()),
        }
    }

    pub fn stamp(&self) -> String {
        self.clock.stamp(self.clock.now())
    }

    pub fn violate(&mut self, kind: &'static str, session: Option<usize>, detail: String) {
        let id = session.map(|at| self.sessions[at].id.clone());
        let now = self.clock.now();
        self.record.violation(kind, now, id.as_deref(), detail);
    }

    /// Adds the copies of a scripted session; returns their positions. None if there are too many.
    pub fn add_sessions(&mut self, script: SessionScript) -> Option<Vec<usize>> {
        if self.sessions.len() + script.copies > SESSIONS_MAX {
            return None;
        }
        let script = Arc::new(script);
        let now = self.clock.now();
        let mut added = Vec::new();
        for copy in 1..=script.copies {
            let name = match script.copies {
                1 => script.name.clone(),
                _ => format!("{} {copy}", script.name),
            };
            let at = self.sessions.len();
            let mut session = Session::new(at + 1, name, Arc::clone(&script), now);
            for event in &script.history {
                session.emit(event.clone(), self.clock.stamp(now), now);
            }
            self.sessions.push(session);
            self.ensure_work(at);
            added.push(at);
        }
        Some(added)
    }

    /// SIM-1: a session without a live item gets one.
    pub fn ensure_work(&mut self, session: usize) {
        let now = self.clock.now();
        let one = &self.sessions[session];
        if !self.queue.live_at(&one.id, now) {
            let metadata = one.script.work_metadata.clone();
            let id = one.id.clone();
            self.queue.add(Some("session"), Some(&id), metadata, now);
            self.queued.notify_waiters();
            if let Some(hook) = &self.hook {
                hook.tell(&id);
            }
        }
    }

    pub fn session_at(&self, id: &str) -> Option<usize> {
        let number: usize = id.strip_prefix("sesn_")?.parse().ok()?;
        let at = number.checked_sub(1)?;
        self.sessions.get(at).filter(|session| session.id == id).map(|_| at)
    }

    /// Makes the `secret` of a poll response for the newest holder of the item at `work`.
    pub fn secret(&mut self, work: usize) -> Option<String> {
        let item = &self.queue.items[work];
        let holding = item.holdings.len().checked_sub(1)?;
        let session = item.session.as_ref().and_then(|id| self.session_at(id));
        let kind = session.map_or(Secret::None, |at| self.sessions[at].script.secret);
        let token = match kind {
            Secret::Token | Secret::Padded => {
                format!("sk-ant-req-dev-{}-{}-{holding}", self.identity.token_part, item.id)
            }
            Secret::None => return None,
            Secret::Garbage => return Some("%%% no base64 %%%".to_owned()),
        };
        self.tokens.insert(token.clone(), Who::Token { work, holding });
        self.queue.items[work].holdings[holding].token = Some(token.clone());
        let text = json!({"sessions_token": token, "api_base_url": "http://127.0.0.1:9",
            "ingress_token": "ignored"})
        .to_string();
        Some(match kind {
            Secret::Padded => STANDARD.encode(text),
            _ => URL_SAFE_NO_PAD.encode(text),
        })
    }

    /// Whether a session has come to its end and its worker has let go of it.
    pub fn session_done(&self, at: usize) -> bool {
        let session = &self.sessions[at];
        let open = session.script.end == End::Open && !self.finished && !session.ended;
        (session.driven || session.ended) && !open && !self.queue.live(&session.id)
    }

    /// Whether there was anything to do, or nothing will come.
    pub fn begun(&self) -> bool {
        self.finished || !self.queue.items.is_empty()
    }

    /// Whether everything is done.
    pub fn done(&self) -> bool {
        let mut each = 0..self.sessions.len();
        let others = self.queue.items.iter().filter(|work| work.session.is_none());
        each.all(|at| self.session_done(at))
            && others.into_iter().all(|work| work.state == super::work::State::Stopped)
    }
}

/// The state, shared between connections and drivers.
#[derive(Debug, Clone)]
pub struct Plane {
    state: Arc<Mutex<State>>,
    /// Asks the server to end.
    pub shutdown: Arc<Notify>,
}

impl Plane {
    pub fn new(state: State) -> Plane {
        Plane { state: Arc::new(Mutex::new(state)), shutdown: Arc::new(Notify::new()) }
    }

    /// The state. A panic elsewhere aborts the program, so poison means nothing.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
