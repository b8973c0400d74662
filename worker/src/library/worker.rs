//! Serves the sessions of an environment (protocol §3 to §5, §9.3).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;

use super::environment::Environment;
use super::error::{Error, ErrorKind};
use super::host::{self, LibraryHost};
use super::poller::ClaimedWork;
use super::stop::Stop;
use super::toolset::Toolset;
use crate::queue::{
    Drive, FileJournals, ItemEnd, ItemRequest, JournalStore, MemoryJournals, Queue, QueueSettings,
    ShutdownWatch,
};

/// How a work item or an attached session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The session was idle for long enough.
    Idle,
    /// The session ended.
    SessionEnded,
    /// The control plane, or the caller, asked for the end.
    Stopped,
    /// The lease went to somebody else; the item was left to them (LEASE-13).
    LeaseLost,
    /// It could not be served; the log has the reason.
    Failed,
}

impl Outcome {
    pub(super) fn of(how: ItemEnd) -> Outcome {
        match how {
            ItemEnd::Idle => Outcome::Idle,
            ItemEnd::SessionEnded => Outcome::SessionEnded,
            ItemEnd::StopRequested | ItemEnd::Drained | ItemEnd::Cancelled => Outcome::Stopped,
            ItemEnd::Lease(end) if end.is_lost() => Outcome::LeaseLost,
            ItemEnd::Lease(_) => Outcome::Stopped,
            _ => Outcome::Failed,
        }
    }
}

/// A work item that was claimed and confirmed elsewhere.
#[derive(Debug, Clone)]
pub struct WorkToServe {
    work_id: String,
    session_id: String,
    secret: Option<SecretString>,
}

impl WorkToServe {
    /// By its ids.
    pub fn new(work_id: impl Into<String>, session_id: impl Into<String>) -> WorkToServe {
        WorkToServe { work_id: work_id.into(), session_id: session_id.into(), secret: None }
    }

    /// With the item's own credential, which then speaks for it instead of the environment key (AUTH-4).
    pub fn secret(self, secret: impl Into<String>) -> WorkToServe {
        WorkToServe { secret: Some(SecretString::from(secret.into())), ..self }
    }

    /// The item of a poller, whose stop is the worker's from here on (LEASE-12).
    pub fn claimed(work: ClaimedWork) -> WorkToServe {
        let (work_id, session_id) = (work.work_id().to_owned(), work.session_id().to_owned());
        let secret = work.secret_text();
        work.detach();
        WorkToServe { work_id, session_id, secret }
    }

    /// The item of `ANTHROPIC_WORK_ID`, `ANTHROPIC_SESSION_ID` and, if it is set,
    /// `ANTHROPIC_WORK_SECRET` (WRUN-1).
    ///
    /// # Errors
    /// The first variable that is missing, by its name.
    pub fn from_variables() -> Result<WorkToServe, Error> {
        let read = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let missing = |name| move || Error::new(ErrorKind::Settings, format!("{name} is not set"));
        let (session, work) = ("ANTHROPIC_SESSION_ID", "ANTHROPIC_WORK_ID");
        let session_id = read(session).ok_or_else(missing(session))?;
        let item = WorkToServe::new(read(work).ok_or_else(missing(work))?, session_id);
        Ok(match read("ANTHROPIC_WORK_SECRET") {
            Some(secret) => item.secret(secret),
            None => item,
        })
    }
}

/// Claims the sessions of an environment and serves them with a [`Toolset`]: polls, leases and
/// heartbeats, sessions, results.
///
/// ```no_run
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     stockade_worker::become_helper_if_asked();
///     use stockade_worker::{Environment, EnvironmentWorker, JailPolicy, Stop, Toolset};
///
///     // First: one thread, and nothing secret is known yet.
///     let tools = Toolset::jailed(JailPolicy::new("default", "/var/log/my-worker/audit.jsonl"))?;
///     let worker = EnvironmentWorker::new(Environment::from_variables()?, tools);
///     let runtime = tokio::runtime::Runtime::new()?;
///     Ok(runtime.block_on(worker.run(Stop::never()))?)
/// }
/// ```
#[derive(Debug)]
pub struct EnvironmentWorker {
    environment: Environment,
    toolset: Toolset,
    sessions_max: usize,
    drain: bool,
    choice: Choice,
}

/// What worker and session runner have in common.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub max_idle: Option<Duration>,
    pub state: Option<PathBuf>,
}

impl Default for Choice {
    fn default() -> Choice {
        Choice { max_idle: Some(Duration::from_secs(60)), state: None }
    }
}

impl Choice {
    pub fn journals(&self) -> Result<Arc<dyn JournalStore>, Error> {
        let Some(state) = &self.state else { return Ok(Arc::new(MemoryJournals::default())) };
        let files = FileJournals::new(&state.join("journal"), &state.join("results"));
        let files = files.map_err(|error| {
            Error::because(ErrorKind::Host, "cannot open the journal of tool calls", error)
        })?;
        Ok(Arc::new(files))
    }

    pub fn lay(&self, settings: &mut QueueSettings) {
        settings.max_idle = self.max_idle;
    }
}

impl EnvironmentWorker {
    /// A worker that serves one session at a time, and lets go of one that is idle for a minute.
    pub fn new(environment: Environment, toolset: Toolset) -> EnvironmentWorker {
        let choice = Choice::default();
        EnvironmentWorker { environment, toolset, sessions_max: 1, drain: false, choice }
    }

    /// Sessions that are served at the same time [default: 1].
    pub fn sessions_max(self, sessions: usize) -> EnvironmentWorker {
        EnvironmentWorker { sessions_max: sessions, ..self }
    }

    /// Ends when the queue is empty and every session has ended (POLL-11) [default: no].
    pub fn drain(self, drain: bool) -> EnvironmentWorker {
        EnvironmentWorker { drain, ..self }
    }

    /// Lets go of a session that was idle for so long; `None` is never (IDLE-8) [default: 60 s].
    pub fn max_idle(mut self, max_idle: Option<Duration>) -> EnvironmentWorker {
        self.choice.max_idle = max_idle;
        self
    }

    /// Keeps the journal of tool calls in this directory, so that no call runs twice even if this
    /// program is killed (INV-9) [default: in memory, so only as long as it lives]. It holds results,
    /// which are content, until they are posted.
    pub fn state_directory(mut self, directory: impl Into<PathBuf>) -> EnvironmentWorker {
        self.choice.state = Some(directory.into());
        self
    }

    /// Polls and serves until `stop`, or until the queue is empty if it drains. Every item that was
    /// claimed has ended when this returns.
    ///
    /// # Errors
    /// Settings that cannot work; [`ErrorKind::Refused`] if the control plane refuses polls for good
    /// (POLL-5). Sessions that fail are no error (POLL-15).
    pub async fn run(&self, stop: Stop) -> Result<(), Error> {
        let mut settings = self.environment.settings()?;
        settings.drain = self.drain;
        let shutdown = stop.joined_with(self.toolset.unusable());
        let queue = self.queue(settings, shutdown.clone())?;
        match self.toolset.serving(Box::pin(queue.run(shutdown))).await {
            Ok(_) => Ok(()),
            Err(refused) => {
                let text = "cannot poll: the control plane refuses it for good";
                Err(Error::because(ErrorKind::Refused, text, refused.source))
            }
        }
    }

    /// Serves one item that was claimed and confirmed elsewhere: neither polls nor confirms, the
    /// heartbeat comes first, and the item is stopped at the end (WRUN-2). An item that somebody else
    /// holds is left to them (WRUN-4): [`Outcome::LeaseLost`].
    ///
    /// # Errors
    /// Settings that cannot work.
    pub async fn handle_item(&self, item: WorkToServe, stop: Stop) -> Result<Outcome, Error> {
        let shutdown = stop.joined_with(self.toolset.unusable());
        let queue = self.queue(self.environment.settings()?, shutdown.clone())?;
        let WorkToServe { work_id: work, session_id: session, secret } = item;
        let request = ItemRequest { work, session, secret };
        let served = queue.run_item(request, shutdown);
        Ok(Outcome::of(self.toolset.serving(Box::pin(served)).await))
    }

    fn queue(
        &self,
        mut settings: QueueSettings,
        shutdown: ShutdownWatch,
    ) -> Result<Queue<LibraryHost>, Error> {
        self.choice.lay(&mut settings);
        let host = LibraryHost::new(self.toolset.clone(), self.sessions_max, shutdown);
        let journals = self.choice.journals()?;
        host::queue(&self.environment, settings, host, journals, Drive::default())
    }
}
