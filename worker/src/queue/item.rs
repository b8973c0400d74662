//! One work item from its ack to its stop (protocol §4, the normative skeleton).
//!
//! Order: heartbeats start; the session is fetched; the journal is opened; the host opens the
//! tools; the runner serves the session; the host closes the tools; heartbeats end; exactly one
//! stop, unless the lease is lost (LEASE-12, LEASE-13). Nothing here is ever cut short from outside:
//! shutdown arrives as a level, and the way out is the same for all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use super::api::ItemApi;
use super::client::Client;
use super::clock::SharedUptime;
use super::credential::{Credential, WorkSecret, item_credential};
use super::events::{Ids, Progress, emit};
use super::feed::Feed;
use super::gate::{Gate, Owner};
use super::host::{CancelToken, Host, ItemEnd, OpenError, Opening, SessionTools as _};
use super::journal::{Journal, JournalError, JournalStore, SharedJournal};
use super::lease::{Keeper, LeaseView, first_view, keep, no_lease};
use super::perform::{Bench, Performer};
use super::post::Poster;
use super::random::Random;
use super::runner::{self, Session as Attached};
use super::settings::{Drive, QueueSettings};
use super::shutdown::{Level, ShutdownWatch};
use super::trace::Span;
use super::wire::session::{Session, SessionStatus, parse_session};
use super::wire::work::{WorkItem, WorkKind};

/// What all items of a worker share.
pub struct Shared<H: Host> {
    pub host: Arc<H>,
    pub settings: QueueSettings,
    /// The worker's own credential. None: only items with a token of their own can be served (AUTH-4).
    pub key: Option<Credential>,
    /// What makes it poll, and who serves what it claims.
    pub drive: Drive,
    /// For everything but heartbeats.
    pub client: Client,
    /// For heartbeats: connections of its own, driven by `heartbeats`.
    pub lease_client: Client,
    /// Where heartbeats run (LEASE-17).
    pub heartbeats: Handle,
    pub journals: Arc<dyn JournalStore>,
    pub uptime: SharedUptime,
    pub random: Random,
    /// Ids that one session may have; see [`Gate::is_full`].
    pub remembered_max: usize,
}

/// LEASE-12; SHUT-4 after a second signal.
const STOP_LIMIT: Duration = Duration::from_secs(10);
const STOP_LIMIT_CANCELLED: Duration = Duration::from_secs(2);
/// How long a session waits for the item that held it before: a killed call and a teardown.
const JOURNAL_WAIT_MAX: Duration = Duration::from_secs(30);
const JOURNAL_RETRY: Duration = Duration::from_millis(50);

/// Serves an item that was acked; returns how it ended, after the stop.
#[cfg(test)]
pub async fn serve<H: Host>(
    shared: Arc<Shared<H>>,
    item: WorkItem,
    shutdown: ShutdownWatch,
) -> ItemEnd {
    serve_within(shared, item, shutdown, None).await
}

/// The same; what it does is part of `span`.
pub async fn serve_within<H: Host>(
    shared: Arc<Shared<H>>,
    item: WorkItem,
    shutdown: ShutdownWatch,
    span: Option<Span>,
) -> ItemEnd {
    let ids = ids_of(&shared.settings, &item);
    let Some(credential) = item_credential(&item.secret, shared.key.as_ref()) else {
        return ItemEnd::NoCredential;
    };
    if matches!(item.secret, WorkSecret::Unusable) && !matches!(credential, Credential::Platform(_))
    {
        // AUTH-4: the work id only.
        tracing::warn!(event = "work.secret_without_token", work_id = %item.id,
            "the work secret gave no token, the environment key is used");
    }
    let api = ItemApi {
        client: shared.client.under(span),
        credential,
        environment: ids.environment.as_str().into(),
        work: ids.work.as_str().into(),
    };
    let how = match &item.kind {
        WorkKind::Other(_) => {
            emit!(
                info,
                ids,
                "work.not_a_session",
                "skipping an item that is not a session",
                kind = item.kind.name()
            );
            ItemEnd::NotASession
        }
        WorkKind::Session(session) => {
            lead(&shared, session, &item.metadata, &api, &ids, shutdown.clone()).await
        }
    };
    shared.host.observe(&ids, &Progress::Ended { how });
    if how.stops() {
        stop(&api, &ids, Stop::Force, shutdown).await;
    } else {
        emit!(warn, ids, "work.released", "lease lost, released without stopping");
    }
    how
}

/// The ids that every event about `item` carries.
pub fn ids_of(settings: &QueueSettings, item: &WorkItem) -> Ids {
    let session = match &item.kind {
        WorkKind::Session(id) => id.clone(),
        WorkKind::Other(_) => String::new(),
    };
    Ids { environment: settings.environment_id.clone(), work: item.id.clone(), session }
}

/// Hands an item back whose ack was refused (POLL-9), with the poller's credential.
pub async fn discard<H: Host>(
    shared: &Shared<H>,
    item: &WorkItem,
    ids: &Ids,
    shutdown: ShutdownWatch,
) {
    let Some(key) = shared.key.clone() else { return };
    let api = ItemApi {
        client: shared.client.clone(),
        credential: key,
        environment: ids.environment.as_str().into(),
        work: item.id.as_str().into(),
    };
    stop(&api, ids, Stop::Force, shutdown).await;
}

/// Serves a session without a work item: nothing beats and nothing is stopped (protocol §5). The window
/// for posting is that of a lease before its first beat (RUN-24).
pub async fn attend<H: Host>(
    shared: &Arc<Shared<H>>,
    session: &str,
    credential: Credential,
    shutdown: ShutdownWatch,
) -> ItemEnd {
    let ids = Ids { session: session.to_owned(), ..Ids::default() };
    let api = ItemApi {
        client: shared.client.clone(),
        credential,
        environment: "".into(),
        work: "".into(),
    };
    let view = watch::Sender::new(no_lease());
    let (metadata, lease) = (BTreeMap::new(), view.subscribe());
    let work = Work { shared, metadata: &metadata, api: &api, ids: &ids, lease, shutdown };
    let how = work.session(session).await;
    shared.host.observe(&ids, &Progress::Ended { how });
    how
}

/// How an item is handed back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// By whoever served it (LEASE-12).
    Force,
    /// By whoever only claimed it (POLL-10).
    Ask,
}

/// LEASE-12: once, on a fresh time limit.
pub async fn stop(api: &ItemApi, ids: &Ids, how: Stop, mut shutdown: ShutdownWatch) {
    let request = async {
        match how {
            Stop::Force => api.force_stop(STOP_LIMIT).await,
            Stop::Ask => api.ask_stop(STOP_LIMIT).await,
        }
    };
    let hurried = async {
        shutdown.reached(Level::Cancel).await;
        tokio::time::sleep(STOP_LIMIT_CANCELLED).await;
    };
    let done = tokio::select! {
        biased;
        answer = request => answer.map_err(|error| error.label()),
        () = tokio::time::sleep(STOP_LIMIT) => Err("timeout".to_owned()),
        () = hurried => Err("timeout".to_owned()),
    };
    if let Err(error) = &done {
        emit!(warn, ids, "work.stop_failed", "the item was not stopped", error = %error);
    }
}

/// Heartbeats around everything else of a session.
async fn lead<H: Host>(
    shared: &Arc<Shared<H>>,
    session: &str,
    metadata: &BTreeMap<String, String>,
    api: &ItemApi,
    ids: &Ids,
    shutdown: ShutdownWatch,
) -> ItemEnd {
    // Kept here, so that whoever reads the lease never sees its sender gone.
    let view = Arc::new(watch::Sender::new(first_view(shared.uptime.now())));
    let finished = CancelToken::new();
    let keeper = Keeper {
        api: ItemApi { client: shared.lease_client.under(api.client.span()), ..api.clone() },
        ids: ids.clone(),
        uptime: Arc::clone(&shared.uptime),
        finished: finished.clone(),
        shutdown: shutdown.clone(),
    };
    let beats = shared.heartbeats.spawn(keep(keeper, Arc::clone(&view)));
    let lease = view.subscribe();
    let work = Work { shared, metadata, api, ids, lease: lease.clone(), shutdown };
    let how = work.session(session).await;
    finished.cancel();
    // A beat that is on its way may say something else: the first reason stands (RACE-14).
    if beats.await.is_err() {
        emit!(error, ids, "lease.failed", "the heartbeat task failed");
    }
    match how {
        // A lease that ended during the teardown decides about the stop all the same.
        how if how.stops() => match lease.borrow().end {
            Some(end) if end.is_lost() => ItemEnd::Lease(end),
            _ => how,
        },
        how => how,
    }
}

/// One session item.
struct Work<'a, H: Host> {
    shared: &'a Arc<Shared<H>>,
    metadata: &'a BTreeMap<String, String>,
    api: &'a ItemApi,
    ids: &'a Ids,
    lease: watch::Receiver<LeaseView>,
    shutdown: ShutdownWatch,
}

impl<H: Host> Work<'_, H> {
    async fn session(&self, session: &str) -> ItemEnd {
        let fetched = match self.unless_over(self.fetch(session)).await {
            Ok(Some(fetched)) => fetched,
            Ok(None) => return ItemEnd::Failed,
            Err(how) => return how,
        };
        if fetched.status == SessionStatus::Terminated {
            // LEASE-18.
            emit!(info, self.ids, "session.terminated", "skipping a terminated session");
            return ItemEnd::SessionEnded;
        }
        let journal = match self.unless_over(self.journal(session)).await {
            Ok(Ok(journal)) => SharedJournal::new(journal),
            Err(how) => return how,
            Ok(Err(error)) => {
                emit!(error, self.ids, "journal.refused", "the session cannot be served",
                    error = %chain(&error));
                return ItemEnd::Failed;
            }
        };
        let how = self.with_journal(&fetched, &journal).await;
        if let Err(error) = journal.lock().close() {
            emit!(warn, self.ids, "journal.not_closed", "the journal stays behind", error = %error);
        }
        how
    }

    /// This worker may get a session again whose lease it has just lost: the item before is a
    /// moment from letting go of the journal then.
    async fn journal(&self, session: &str) -> Result<Box<dyn Journal>, JournalError> {
        let give_up = Instant::now() + JOURNAL_WAIT_MAX;
        loop {
            match self.shared.journals.open(session) {
                Err(JournalError::Locked { .. }) if Instant::now() < give_up => {
                    tokio::time::sleep(JOURNAL_RETRY).await;
                }
                opened => return opened,
            }
        }
    }

    /// LEASE-19.
    async fn fetch(&self, session: &str) -> Option<Session> {
        let read = match self.api.session(session).await {
            Ok(reply) => parse_session(session, &reply.body).ok_or("unreadable".to_owned()),
            Err(error) => Err(error.label()),
        };
        read.inspect_err(|error| {
            emit!(error, self.ids, "session.not_fetched", "work item failed", error = %error);
        })
        .ok()
    }

    async fn with_journal(&self, session: &Session, journal: &SharedJournal) -> ItemEnd {
        let host = &self.shared.host;
        let (ids, api) = (self.ids, self.api);
        let opening = Opening { ids, session, work_metadata: self.metadata, api };
        let opened = match self.unless_over(host.open(opening)).await {
            Ok(opened) => opened,
            Err(how) => return how,
        };
        let (how, bench) = match opened {
            Ok(tools) => self.serve(session, Bench::Tools(tools), journal).await,
            Err(OpenError { for_model, for_log }) => {
                // Fail closed, and visibly so for the session.
                emit!(error, self.ids, "session.not_opened", "work item failed", error = %for_log);
                self.serve(session, Bench::Refusing { for_model }, journal).await
            }
        };
        if how == ItemEnd::SessionEnded {
            journal.lock().forget();
        }
        match bench {
            Bench::Tools(tools) => {
                host.close(tools, how).await;
                how
            }
            Bench::Refusing { .. } => match how {
                ItemEnd::Idle | ItemEnd::SessionEnded => ItemEnd::OpenFailed,
                how => how,
            },
        }
    }

    async fn serve(
        &self,
        session: &Session,
        bench: Bench<H::Tools>,
        journal: &SharedJournal,
    ) -> (ItemEnd, Bench<H::Tools>) {
        let (shared, settings) = (self.shared, &self.shared.settings);
        let served = Served::of(&bench, shared.host.as_ref(), settings);
        let random = shared.random.clone();
        let attached = Attached {
            ids: self.ids.clone(),
            gate: Gate::new(served.owner, served.max_idle, shared.remembered_max, Instant::now()),
            feed: Feed::new(
                self.api.clone(),
                self.ids.clone(),
                &session.id,
                random.clone(),
                settings.stream_silence,
            ),
            performer: Performer {
                host: Arc::clone(&shared.host),
                ids: self.ids.clone(),
                bench,
                journal: journal.clone(),
                poster: Poster {
                    api: self.api.clone(),
                    ids: self.ids.clone(),
                    session: session.id.clone(),
                    random,
                    lease: self.lease.clone(),
                },
                limits: settings.into(),
            },
            lease: self.lease.clone(),
            uptime: Arc::clone(&shared.uptime),
            shutdown: self.shutdown.clone(),
            drain_limit: settings.drain_limit,
            at_most: served.at_most,
        };
        let (how, performer) = runner::run(attached).await;
        (how, performer.bench)
    }

    /// `work`, unless the item is over first. Nothing runs yet, so any request to end is obeyed at
    /// once (SHUT-3).
    async fn unless_over<T>(&self, work: impl Future<Output = T>) -> Result<T, ItemEnd> {
        let (mut lease, mut shutdown) = (self.lease.clone(), self.shutdown.clone());
        let over = lease.wait_for(|view| view.stopping || view.end.is_some());
        tokio::select! {
            biased;
            () = shutdown.reached(Level::Drain) => Err(match self.shutdown.level() {
                Level::Cancel => ItemEnd::Cancelled,
                _ => ItemEnd::Drained,
            }),
            Ok(view) = over => Err(view.end.map_or(ItemEnd::StopRequested, ItemEnd::Lease)),
            done = work => Ok(done),
        }
    }
}

/// What a session is served with.
struct Served {
    owner: Owner,
    max_idle: Option<Duration>,
    at_most: Option<Duration>,
}

impl Served {
    fn of<H: Host>(bench: &Bench<H::Tools>, host: &H, settings: &QueueSettings) -> Served {
        match bench {
            Bench::Tools(tools) => {
                Served { owner: tools.owner(), max_idle: settings.max_idle, at_most: None }
            }
            Bench::Refusing { .. } => Served {
                owner: host.owner(),
                // The turn is over when the model has heard of it.
                max_idle: Some(Duration::from_secs(1)),
                at_most: Some(settings.refusal_limit),
            },
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
