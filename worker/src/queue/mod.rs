//! The worker's side of the wire: polls the queue, keeps leases, attaches to sessions, has their
//! calls run and posts the results.
//!
//! Knows nothing of jails. The daemon implements [`Host`] and [`SessionTools`]; the queue calls
//! them. Rules are pure state machines ([`gate`], [`idle`], [`lease`]'s state), around them thin
//! tasks; requests leave through a trait, so all of it is tested on the test clock.
//!
//! Tasks: one poll loop; one task per work item, in which its session is served; one task that
//! reads its events; and on a thread of its own one task per lease, which nothing else can delay.

mod api;
mod authenticate;
mod client;
mod clock;
pub mod count;
mod credential;
mod events;
mod feed;
mod gate;
mod handover;
mod heartbeat;
mod host;
mod idle;
mod item;
mod journal;
mod journal_file;
mod journal_memory;
mod lease;
mod memory_api;
mod operate;
mod perform;
mod poll;
mod post;
mod random;
mod request;
mod runner;
mod settings;
mod shutdown;
mod single;
mod skills_api;
mod sse;
#[cfg(test)]
mod tests;
mod trace;
mod transport;
mod trigger;
mod wire;

use std::sync::Arc;

pub use api::ItemApi;
pub use authenticate::{AuthenticationError, Authenticator, PlatformCredential};
pub use client::ApiError;
use client::Client;
use clock::BootTime;
pub use credential::{Credential, EnvironmentKey, EnvironmentKeySetter};
pub use events::{Ids, Progress};
pub use gate::Owner;
use gate::REMEMBERED_MAX;
pub use handover::{HandOverEnd, HandedOver, Handler};
use heartbeat::HeartbeatThread;
pub use host::{CancelToken, Host, ItemEnd, OpenError, Opening, SessionTools, TOOLSET};
use item::Shared;
pub use journal::JournalStore;
pub use journal_file::FileJournals;
pub use journal_memory::MemoryJournals;
pub use lease::LeaseEnd;
pub use memory_api::{ContentHash, Memory, MemoryError, MemoryPage, Pages, View};
pub use operate::{Operator, OperatorKey, Stopped};
pub use poll::{PollRefused, QueueEnd};
use random::Random;
use secrecy::SecretString;
pub use settings::{Cadence, Drive, QueueSettings, SettingsError};
pub use shutdown::{Level, Shutdown, ShutdownWatch};
pub use single::ItemRequest;
pub use skills_api::{Archive, FoundSkill};
pub use trace::{OpenSpan, Span, SpanEnd, ToolRun, Tracer};
pub use transport::{BoxFuture, HttpTransport, Outgoing, Transport};
#[cfg(test)]
pub use trigger::Rests;
pub use trigger::Trigger;
pub use wire::event::{Call, CallKind};
pub use wire::operate::{Stats, WorkRow};
pub use wire::outcome::{CallOutcome, ContentBlock};
pub use wire::session::MemoryStoreRef;
pub use wire::session::SkillRef;

/// One environment's queue, ready to run.
pub struct Queue<H: Host> {
    shared: Arc<Shared<H>>,
    // Ends with the queue.
    _heartbeats: HeartbeatThread,
}

/// A queue that cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("cannot start the heartbeat thread")]
    Thread { source: std::io::Error },
}

impl<H: Host> Queue<H> {
    /// Checks the settings and makes the connections' pools; no request is sent yet. Without a key
    /// only [`Queue::run_item`] and [`Queue::attend`] can do something.
    ///
    /// # Errors
    /// Settings that cannot work; no thread to be had.
    pub fn new(
        settings: QueueSettings,
        key: Option<Credential>,
        host: Arc<H>,
        journals: Arc<dyn JournalStore>,
        drive: Drive,
    ) -> Result<Queue<H>, QueueError> {
        settings.check()?;
        let heartbeats =
            HeartbeatThread::start().map_err(|source| QueueError::Thread { source })?;
        let random = Random::system();
        let [main, lease] = HttpTransport::pools(settings.ca_file.as_deref())?;
        let client = Client::new(&settings, Arc::new(main), random.clone());
        let lease_client = Client::new(&settings, Arc::new(lease), random.clone());
        let shared = Shared {
            host,
            key,
            drive,
            client,
            lease_client,
            heartbeats: heartbeats.handle(),
            journals,
            uptime: Arc::new(BootTime),
            random,
            remembered_max: REMEMBERED_MAX,
            settings,
        };
        Ok(Queue { shared: Arc::new(shared), _heartbeats: heartbeats })
    }

    /// Serves one item that somebody else has claimed and acked; neither polls nor acks (WRUN-2).
    pub async fn run_item(&self, request: ItemRequest, shutdown: ShutdownWatch) -> ItemEnd {
        single::run(Arc::clone(&self.shared), request, shutdown).await
    }

    /// Serves a session that is no work item, with `token` or the environment key.
    pub async fn attend(
        &self,
        session: &str,
        token: Option<SecretString>,
        shutdown: ShutdownWatch,
    ) -> ItemEnd {
        let key = || self.shared.key.clone();
        let Some(credential) = token.map(Credential::Session).or_else(key) else {
            return ItemEnd::NoCredential;
        };
        item::attend(&self.shared, session, credential, shutdown).await
    }

    /// Polls until shutdown, or until the queue is empty if the settings say `drain`. Every item
    /// that was claimed has ended when this returns.
    ///
    /// # Errors
    /// The control plane refuses the poll for good (POLL-5).
    pub async fn run(&self, shutdown: ShutdownWatch) -> Result<QueueEnd, PollRefused> {
        poll::run(Arc::clone(&self.shared), shutdown).await
    }
}

/// A call as it would arrive.
#[cfg(test)]
pub fn wire_call(kind: &str, name: &str, input: &str) -> Call {
    let json = format!(r#"{{"type":"{kind}","id":"t","name":"{name}","input":{input}}}"#);
    match wire::event::parse_event(json.as_bytes()) {
        Ok(wire::event::Event::Call(call)) => call,
        other => panic!("{other:?}"),
    }
}
