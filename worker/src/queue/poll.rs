//! The poll loop (protocol §3): a slot first, then a poll, the ack, and a task per item.
//!
//! Only shutdown and a fatal answer to a poll end it (POLL-5, POLL-15). Polls and acks have separate
//! counters of failures (POLL-7). What it does not do: run anything of an item.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::api::QueueApi;
use super::client::ApiError;
use super::count::{self, Claimed, Polled};
use super::events::{Ids, Progress, emit};
use super::handover;
use super::host::{Host, ItemEnd};
use super::item::{self, Shared, ids_of};
use super::random::{discard_backoff, loop_backoff};
use super::settings::{Cadence, EAGER_SPACING};
use super::shutdown::{Level, ShutdownWatch};
use super::trace::SpanEnd;
use super::trigger::Rests;
use super::wire::work::{WorkItem, parse_poll};

/// How the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueEnd {
    /// Shutdown; all items have ended.
    Shutdown,
    /// `drain` was set and the queue is empty.
    Empty,
}

/// A queue that cannot be polled any more (POLL-5).
#[derive(Debug, thiserror::Error)]
#[error("cannot poll: the control plane refuses it for good")]
pub struct PollRefused {
    pub source: ApiError,
}

/// How long an item that was polled and not acked is nobody else's (RACE-1).
const UNCONFIRMED_FOR: Duration = Duration::from_secs(5);
/// POLL-16.
const IDLE_REMINDER: Duration = Duration::from_secs(300);

/// Polls until shutdown; every item that was claimed has ended when this returns.
///
/// # Errors
/// [`PollRefused`].
pub async fn run<H: Host>(
    shared: Arc<Shared<H>>,
    shutdown: ShutdownWatch,
) -> Result<QueueEnd, PollRefused> {
    let settings = &shared.settings;
    let ids = Ids { environment: settings.environment_id.clone(), ..Ids::default() };
    emit!(info, ids, "poll.starting", "polling", worker_id = %settings.worker_id);
    let key = shared.key.clone().ok_or(PollRefused { source: ApiError::NoKey })?;
    let api = QueueApi {
        client: shared.client.clone(),
        credential: key,
        environment: settings.environment_id.clone(),
    };
    let now = Instant::now();
    let mut poller = Poller {
        shared: Arc::clone(&shared),
        api,
        ids,
        shutdown,
        items: JoinSet::new(),
        poll_failures: 0,
        ack_failures: 0,
        discards: 0,
        idle_since: now,
        idle_said: None,
        warm_until: now,
        rests: Rests::new(),
    };
    let end = poller.run().await;
    if let (Err(_), Some(shutdown)) = (&end, &shared.drive.shutdown) {
        // Nobody would be told of new work, and whoever supervises this process is to hear of it soon.
        shutdown.drain();
    }
    while poller.items.join_next().await.is_some() {}
    end
}

struct Poller<H: Host> {
    shared: Arc<Shared<H>>,
    api: QueueApi,
    ids: Ids,
    shutdown: ShutdownWatch,
    items: JoinSet<ItemEnd>,
    poll_failures: u32,
    ack_failures: u32,
    discards: u32,
    idle_since: Instant,
    idle_said: Option<Instant>,
    warm_until: Instant,
    rests: Rests,
}

impl<H: Host> Poller<H> {
    async fn run(&mut self) -> Result<QueueEnd, PollRefused> {
        loop {
            let host = Arc::clone(&self.shared.host);
            let Some(permit) = self.or_shutdown(host.admit()).await else {
                return Ok(QueueEnd::Shutdown);
            };
            // Items that ended are forgotten; none of them can fail the loop (POLL-15).
            while self.items.try_join_next().is_some() {}
            let started = Instant::now();
            let settings = &self.shared.settings;
            let api = self.api.clone();
            let poll = api.poll(settings.block_ms, settings.reclaim_older_than_ms);
            let Some(answer) = self.or_shutdown(poll).await else {
                return Ok(QueueEnd::Shutdown);
            };
            let answer = answer.and_then(|reply| {
                let empty = || ApiError::Unreadable { what: "a work item" };
                if reply.status == 204 {
                    Ok(None)
                } else {
                    parse_poll(&reply.body).map_err(|_| empty())
                }
            });
            let pause = match answer {
                Ok(Some(item)) => self.claimed(item, permit).await,
                Ok(None) => {
                    drop(permit);
                    count::poll(Polled::Empty);
                    if self.shared.settings.drain {
                        emit!(info, self.ids, "poll.drained", "queue drained");
                        return Ok(QueueEnd::Empty);
                    }
                    let pause = self.empty(started);
                    if let Some(trigger) = self.shared.drive.trigger.clone() {
                        let (shutdown, rests) = (self.shutdown.clone(), &mut self.rests);
                        if or_shutdown(shutdown, rests.rest(&trigger)).await.is_none() {
                            return Ok(QueueEnd::Shutdown);
                        }
                        continue;
                    }
                    pause
                }
                Err(source) if source.is_fatal() => {
                    count::poll(Polled::Failed);
                    emit!(error, self.ids, "poll.refused", "poll refused for good",
                        error = %source.label());
                    return Err(PollRefused { source });
                }
                Err(error) => {
                    drop(permit);
                    self.failed(&error)
                }
            };
            if self.or_shutdown(tokio::time::sleep(pause)).await.is_none() {
                return Ok(QueueEnd::Shutdown);
            }
        }
    }

    /// `None` at shutdown, which goes first (SHUT-2).
    async fn or_shutdown<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        or_shutdown(self.shutdown.clone(), work).await
    }

    /// POLL-2, or the eager cadence.
    fn empty(&mut self, started: Instant) -> Duration {
        self.poll_failures = 0;
        let now = Instant::now();
        let idle_s = now.duration_since(self.idle_since).as_secs();
        match self.idle_said {
            None => {
                emit!(info, self.ids, "poll.idle", "no work, polling");
                self.idle_said = Some(now);
            }
            Some(said) if now.duration_since(said) >= IDLE_REMINDER => {
                emit!(info, self.ids, "poll.idle", "still no work, polling", idle_s);
                self.idle_said = Some(now);
            }
            Some(_) => emit!(debug, self.ids, "poll.idle", "no work", idle_s),
        }
        match self.shared.settings.cadence {
            Cadence::Eager { .. } if now < self.warm_until => {
                EAGER_SPACING.saturating_sub(now.duration_since(started))
            }
            Cadence::Eager { .. } | Cadence::Sdk => {
                self.shared.random.between(Duration::from_secs(1), Duration::from_secs(3))
            }
        }
    }

    /// POLL-4, POLL-6.
    fn failed(&mut self, error: &ApiError) -> Duration {
        count::poll(Polled::Failed);
        self.poll_failures = self.poll_failures.saturating_add(1);
        let failures = self.poll_failures;
        let pause = error.pause(failures, loop_backoff(failures, &self.shared.random));
        emit!(warn, self.ids, "poll.failed", "poll failed", error = %error.label(),
            attempt = failures, pause_ms = pause.as_millis() as u64);
        pause
    }

    /// Acks an item and gives it to a task of its own. Returns the pause before the next poll.
    async fn claimed(&mut self, item: WorkItem, permit: H::Permit) -> Duration {
        count::poll(Polled::Work);
        self.poll_failures = 0;
        let now = Instant::now();
        self.idle_since = now;
        self.idle_said = None;
        if let Cadence::Eager { warm } = self.shared.settings.cadence {
            self.warm_until = now + warm;
        }
        let ids = ids_of(&self.shared.settings, &item);
        let host = Arc::clone(&self.shared.host);
        emit!(info, ids, "work.claimed", "claimed work", kind = item.kind.name());
        host.observe(&ids, &Progress::Claimed);
        if self.shutdown.level() > Level::Run {
            // SHUT-3: not acked, so it is handed out again.
            return Duration::ZERO;
        }
        // OBS-1: from here until the item has been handed back.
        let span = self.api.client.work_span(&ids);
        let api = QueueApi { client: self.api.client.under(span.clone()), ..self.api.clone() };
        let mut shutdown = self.shutdown.clone();
        let acked = tokio::select! {
            biased;
            () = shutdown.reached(Level::Cancel) => None,
            answer = api.ack(&item.id) => Some(answer),
        };
        match acked {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                if let Some(span) = &span {
                    span.end(SpanEnd::of_request(&error));
                }
                return self.ack_failed(item, &ids, &error).await;
            }
            None => {
                // SHUT-4, RACE-15: perhaps it is acked. Until now nobody else can have it (RACE-1).
                if now.elapsed() < UNCONFIRMED_FOR {
                    item::discard(&self.shared, &item, &ids, self.shutdown.clone()).await;
                }
                return Duration::ZERO;
            }
        }
        (self.ack_failures, self.discards) = (0, 0);
        count::claim(Claimed::Acked);
        host.observe(&ids, &Progress::Acked);
        self.rests.claimed();
        let (shared, shutdown) = (Arc::clone(&self.shared), self.shutdown.clone());
        let counted = count::Item::begin();
        self.items.spawn(async move {
            let within = span.clone();
            let how = match shared.drive.handler.clone() {
                Some(handler) => handover::serve(shared, handler, item, shutdown, within).await,
                None => item::serve_within(shared, item.without_text(), shutdown, within).await,
            };
            if let Some(span) = &span {
                span.end(SpanEnd::of_item(how));
            }
            emit!(info, ids, "work.ended", "work item ended", how = how.label());
            counted.end(how);
            drop(permit);
            how
        });
        Duration::ZERO
    }

    /// POLL-8, POLL-9.
    async fn ack_failed(&mut self, item: WorkItem, ids: &Ids, error: &ApiError) -> Duration {
        if !error.is_fatal() {
            count::claim(Claimed::AckFailed);
            self.ack_failures = self.ack_failures.saturating_add(1);
            let backoff = loop_backoff(self.ack_failures, &self.shared.random);
            let pause = error.pause(self.ack_failures, backoff);
            emit!(warn, ids, "work.ack_failed", "ack failed", error = %error.label(),
                attempt = self.ack_failures, pause_ms = pause.as_millis() as u64);
            return pause;
        }
        count::claim(Claimed::AckRefused);
        self.discards = self.discards.saturating_add(1);
        let pause = discard_backoff(self.discards, &self.shared.random);
        emit!(error, ids, "work.ack_refused", "ack refused for good, discarding the item",
            error = %error.label(), pause_ms = pause.as_millis() as u64);
        item::discard(&self.shared, &item, ids, self.shutdown.clone()).await;
        pause
    }
}

async fn or_shutdown<T>(mut shutdown: ShutdownWatch, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = shutdown.reached(Level::Drain) => None,
        done = work => Some(done),
    }
}
