//! Claims work and hands it to the caller, one item after the other (protocol §3).

use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::environment::Environment;
use super::error::{Error, ErrorKind};
use super::host::{self, LibraryHost};
use super::stop::{Stop, StopHandle};
use super::toolset::Toolset;
use crate::queue::{
    BoxFuture, Cadence, Drive, HandOverEnd, HandedOver, Handler, MemoryJournals, PollRefused,
    QueueEnd, ShutdownWatch,
};

/// How a [`WorkPoller`] polls.
#[derive(Debug, Clone)]
pub struct WorkPollerOptions {
    drain: bool,
    block: Option<Duration>,
    reclaim_older_than: Option<Duration>,
    auto_stop: bool,
    at_once: usize,
    pauses: bool,
}

impl Default for WorkPollerOptions {
    fn default() -> Self {
        WorkPollerOptions {
            drain: false,
            block: Some(Duration::from_millis(999)),
            reclaim_older_than: None,
            auto_stop: true,
            at_once: 1,
            pauses: false,
        }
    }
}

impl WorkPollerOptions {
    /// Ends after the first empty poll (POLL-11) [default: no].
    pub fn drain(self, drain: bool) -> Self {
        WorkPollerOptions { drain, ..self }
    }

    /// How long the control plane may hold an empty poll, 1 to 999 ms; `None` does not wait (POLL-1)
    /// [default: 999 ms].
    pub fn block(self, block: Option<Duration>) -> Self {
        WorkPollerOptions { block, ..self }
    }

    /// Takes over items that somebody polled so long ago and never confirmed (POLL-12) [default: no].
    pub fn reclaim_older_than(self, age: Option<Duration>) -> Self {
        WorkPollerOptions { reclaim_older_than: age, ..self }
    }

    /// Posts `stop` when the caller is done with an item (POLL-10) [default: yes]. A caller that hands
    /// items to another process says no: that one owns the stop.
    ///
    /// A poller sends no heartbeats, so it does not know how the lease of an item is that the caller
    /// had for longer than a lease lasts (90 s are assumed, LEASE-3): by then the item may be another worker's, whose
    /// work a late stop would end. No stop is posted then, the log says so
    /// (`work.stop_left_to_script`), and an item that nobody kept alive is polled again (RACE-22). A
    /// caller that may need longer gives the item to
    /// [`EnvironmentWorker::handle_item`](super::EnvironmentWorker::handle_item), which keeps the lease
    /// and posts the stop.
    pub fn auto_stop(self, auto_stop: bool) -> Self {
        WorkPollerOptions { auto_stop, ..self }
    }

    /// Items that the caller may have at the same time [default: 1]. While it has so many nothing is
    /// polled (POLL-3).
    pub fn at_once(self, items: usize) -> Self {
        WorkPollerOptions { at_once: items, ..self }
    }

    /// Pauses 1 to 3 s after every empty poll, as the SDKs do (POLL-2) [default: only when there was
    /// no work for a minute].
    pub fn pauses_always(self, pauses: bool) -> Self {
        WorkPollerOptions { pauses, ..self }
    }
}

/// How a poller ended, if nothing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PollEnd {
    /// It was asked to.
    Stopped,
    /// It drains, and the queue is empty.
    Empty,
}

/// Claims and confirms work items. Every item that comes out has been acked (POLL-7); heartbeats and
/// sessions are the caller's, or an [`EnvironmentWorker`](super::EnvironmentWorker)'s
/// [`handle_item`](super::EnvironmentWorker::handle_item).
///
/// Failures of the control plane are retried for ever with back-off (POLL-4, POLL-8); items whose
/// confirmation is refused, and items that are no sessions, are handed back (POLL-9, POLL-13).
///
/// ```no_run
/// # async fn poll() -> Result<(), stockade_worker::Error> {
/// use stockade_worker::{Environment, Stop, WorkPoller, WorkPollerOptions};
///
/// let options = WorkPollerOptions::default().drain(true);
/// let mut poller = WorkPoller::start(&Environment::from_variables()?, options, Stop::never())?;
/// while let Some(work) = poller.next().await? {
///     println!("{} is for session {}", work.work_id(), work.session_id());
/// } // dropped here: stopped, then polled again
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct WorkPoller {
    items: mpsc::Receiver<ClaimedWork>,
    polling: Option<JoinHandle<Result<QueueEnd, PollRefused>>>,
    end: PollEnd,
    stop: StopHandle,
}

impl WorkPoller {
    /// Begins to poll, on the Tokio runtime of the caller.
    ///
    /// # Errors
    /// Settings that cannot work.
    pub fn start(
        environment: &Environment,
        options: WorkPollerOptions,
        stop: Stop,
    ) -> Result<WorkPoller, Error> {
        let mut settings = environment.settings()?;
        let milliseconds = |duration: Duration| duration.as_millis();
        let block = options.block.map(milliseconds);
        settings.block_ms = block.map(|block| u16::try_from(block).unwrap_or(u16::MAX));
        let reclaim = options.reclaim_older_than.map(milliseconds);
        settings.reclaim_older_than_ms = reclaim.map(|age| u64::try_from(age).unwrap_or(u64::MAX));
        settings.drain = options.drain;
        if options.pauses {
            settings.cadence = Cadence::Sdk;
        }
        let (sender, items) = mpsc::channel(1);
        let handler = Arc::new(HandOver { sender, auto_stop: options.auto_stop });
        let (own, watch) = Stop::new();
        let host = LibraryHost::new(Toolset::none(), options.at_once, watch.0.clone());
        let drive = Drive { handler: Some(handler), ..Drive::default() };
        let journals = Arc::new(MemoryJournals::default());
        let queue = host::queue(environment, settings, host, journals, drive)?;
        let linked = own.clone();
        let polling = tokio::spawn(async move {
            let run = queue.run(watch.0);
            tokio::pin!(run);
            tokio::select! {
                end = &mut run => return end,
                () = stop.asked() => linked.drain(),
            }
            run.await
        });
        Ok(WorkPoller { items, polling: Some(polling), end: PollEnd::Stopped, stop: own })
    }

    /// The next item; `None` when the poller has ended. Safe to drop.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] if the control plane refuses polls for good (POLL-5).
    pub async fn next(&mut self) -> Result<Option<ClaimedWork>, Error> {
        if let Some(work) = self.items.recv().await {
            return Ok(Some(work));
        }
        let Some(polling) = &mut self.polling else { return Ok(None) };
        let ended = polling.await;
        self.polling = None;
        match ended {
            Ok(Ok(end)) => {
                self.end = match end {
                    QueueEnd::Empty => PollEnd::Empty,
                    QueueEnd::Shutdown => PollEnd::Stopped,
                };
                Ok(None)
            }
            Ok(Err(refused)) => {
                let text = "cannot poll: the control plane refuses it for good";
                Err(Error::because(ErrorKind::Refused, text, refused.source))
            }
            Err(error) => Err(Error::because(ErrorKind::Host, "cannot poll", error)),
        }
    }

    /// How it ended, once [`next`](Self::next) has returned `None`.
    pub fn end(&self) -> PollEnd {
        self.end
    }
}

impl Drop for WorkPoller {
    fn drop(&mut self) {
        // Nothing more is claimed; what was claimed is handed back.
        self.stop.drain();
    }
}

struct HandOver {
    sender: mpsc::Sender<ClaimedWork>,
    auto_stop: bool,
}

impl Handler for HandOver {
    fn hand_over(&self, work: HandedOver, _shutdown: ShutdownWatch) -> BoxFuture<'_, HandOverEnd> {
        let (done, ended) = oneshot::channel();
        let HandedOver { ids, secret, .. } = work;
        let (environment_id, work_id, session_id) = (ids.environment, ids.work, ids.session);
        let detached = !self.auto_stop;
        let work =
            ClaimedWork { environment_id, work_id, session_id, secret, detached, done: Some(done) };
        Box::pin(async move {
            if self.sender.send(work).await.is_err() {
                // Nobody wants it any more: back to the queue.
                return HandOverEnd::Ended;
            }
            match ended.await {
                Ok(end) => end,
                Err(_) => HandOverEnd::Ended,
            }
        })
    }
}

/// A work item that was claimed and confirmed. Dropping it says that the caller is done with it.
pub struct ClaimedWork {
    environment_id: String,
    work_id: String,
    session_id: String,
    secret: Option<SecretString>,
    detached: bool,
    done: Option<oneshot::Sender<HandOverEnd>>,
}

impl std::fmt::Debug for ClaimedWork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("ClaimedWork");
        shown.field("work_id", &self.work_id).field("session_id", &self.session_id);
        shown.finish_non_exhaustive()
    }
}

impl ClaimedWork {
    /// The environment it is from.
    pub fn environment_id(&self) -> &str {
        &self.environment_id
    }

    /// The work item.
    pub fn work_id(&self) -> &str {
        &self.work_id
    }

    /// The session to be served.
    pub fn session_id(&self) -> &str {
        &self.session_id
    }

    /// The `secret` of the item as it was sent, for whoever serves it. A credential: it belongs into
    /// no log and no command line.
    pub fn secret(&self) -> Option<&str> {
        self.secret.as_ref().map(|secret| secret.expose_secret())
    }

    pub(super) fn secret_text(&self) -> Option<SecretString> {
        self.secret.clone()
    }

    /// Leaves the item, and its stop, to somebody else.
    pub fn detach(mut self) {
        self.detached = true;
    }
}

impl Drop for ClaimedWork {
    fn drop(&mut self) {
        let end = if self.detached { HandOverEnd::Detached } else { HandOverEnd::Ended };
        if let Some(done) = self.done.take() {
            // A poller that is gone has nobody to tell.
            let _unheard = done.send(end);
        }
    }
}
