//! One attached session: events in, calls performed one at a time, until it ends (protocol §5).
//!
//! One task. It waits for events, for the call under way, for the idle clock, for the lease and for
//! the shutdown, whichever comes first; the rules are in [`super::gate`] and [`super::idle`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::clock::SharedUptime;
use super::events::{Ids, Progress, emit};
use super::feed::{Feed, News, WAITING_MAX};
use super::gate::{Action, Finish, Gate};
use super::host::{CancelToken, Host, ItemEnd};
use super::journal::SharedJournal;
use super::lease::{LeaseEnd, LeaseView};
use super::perform::{Controls, Performer};
use super::shutdown::{Level, ShutdownWatch};
use super::transport::BoxFuture;
use super::wire::event::{Call, Event};
use super::wire::session::{SessionStatus, parse_session};

/// Calls that may wait; reading pauses above it.
const QUEUE_MAX: usize = 1000;

/// What the runner works with.
pub struct Session<H: Host> {
    pub ids: Ids,
    pub gate: Gate,
    pub feed: Feed,
    pub performer: Performer<H>,
    pub lease: watch::Receiver<LeaseView>,
    pub uptime: SharedUptime,
    pub shutdown: ShutdownWatch,
    pub drain_limit: Duration,
    /// End after this at the latest; for a session without tools.
    pub at_most: Option<Duration>,
}

type Performance<H> = BoxFuture<'static, (Box<Performer<H>>, Call, Finish)>;

struct Runner<H: Host> {
    host: Arc<H>,
    ids: Ids,
    gate: Gate,
    queue: VecDeque<Call>,
    /// Here, or in `running`.
    performer: Option<Box<Performer<H>>>,
    running: Option<(Performance<H>, Controls, Call)>,
    limit: watch::Sender<Option<Instant>>,
    lease: watch::Receiver<LeaseView>,
    uptime: SharedUptime,
    shutdown: ShutdownWatch,
    drain_limit: Duration,
    ends_at: Option<Instant>,
    journal: SharedJournal,
    /// The feed has said its last word.
    feed_over: bool,
    /// Set once it is clear how this ends; then nothing new is routed or started.
    ending: Option<ItemEnd>,
    api: super::api::ItemApi,
    /// Makes the feed read the history once more.
    again: Arc<Notify>,
}

/// Attaches to the session and serves it to its end. Gives the performer back for the teardown.
pub async fn run<H: Host>(session: Session<H>) -> (ItemEnd, Performer<H>) {
    let (sender, mut news) = mpsc::channel(WAITING_MAX);
    let (api, again) = (session.feed.api.clone(), Arc::clone(&session.feed.again));
    let feed = AbortOnDrop(tokio::spawn(session.feed.run(sender)));
    let mut runner = Runner {
        host: Arc::clone(&session.performer.host),
        ids: session.ids,
        gate: session.gate,
        queue: VecDeque::new(),
        journal: session.performer.journal.clone(),
        performer: Some(Box::new(session.performer)),
        running: None,
        limit: watch::Sender::new(None),
        lease: session.lease,
        uptime: session.uptime,
        shutdown: session.shutdown,
        drain_limit: session.drain_limit,
        ends_at: session.at_most.map(|at_most| Instant::now() + at_most),
        feed_over: false,
        ending: None,
        api,
        again,
    };
    emit!(info, runner.ids, "runner.starting", "attaching to the session");
    let how = runner.serve(&mut news).await;
    drop(feed);
    (how, runner.into_performer().await)
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What woke the runner.
enum Woken<H: Host> {
    News(Option<News>),
    Performed(Box<Performer<H>>, Call, Finish),
    Lease,
    Shutdown,
    Idle,
    Backstop,
    TooLong,
}

impl<H: Host> Runner<H> {
    async fn serve(&mut self, news: &mut mpsc::Receiver<News>) -> ItemEnd {
        loop {
            self.look_at_lease();
            self.look_at_shutdown();
            if let Some(how) = self.ending
                && self.running.is_none()
                && (self.queue.is_empty() || how != ItemEnd::Idle)
            {
                return how;
            }
            self.start_next();
            if self.ending == Some(ItemEnd::Idle) && self.running.is_none() && self.queue.is_empty()
            {
                continue;
            }
            match self.wait(news).await {
                Woken::News(Some(news)) => self.on_news(news),
                // The feed ends only after it said so.
                Woken::News(None) => {
                    self.feed_over = true;
                    self.end(ItemEnd::StreamRefused);
                }
                Woken::Performed(performer, call, finish) => {
                    self.performer = Some(performer);
                    self.running = None;
                    self.gate.finished(&call.id, finish, Instant::now());
                    if finish == Finish::Unanswered && self.ending.is_none() {
                        self.again.notify_one();
                    }
                }
                Woken::Lease | Woken::Shutdown => {}
                Woken::Idle => {
                    emit!(info, self.ids, "session.idle", "session idle, stopping");
                    self.end(ItemEnd::Idle);
                }
                Woken::Backstop => self.check_backstop().await,
                Woken::TooLong => self.end(ItemEnd::OpenFailed),
            }
        }
    }

    async fn wait(&mut self, news: &mut mpsc::Receiver<News>) -> Woken<H> {
        let never = Instant::now() + Duration::from_secs(86_400 * 365);
        let ending = self.ending.is_some();
        let idle = self.gate.idle.expires_at().filter(|_| !ending);
        let quiet = self.running.is_none() && self.gate.nothing_open() && !ending;
        let backstop = self.gate.idle.backstop_at().filter(|_| quiet);
        let too_long = self.ends_at.filter(|_| !ending);
        let reads = self.queue.len() < QUEUE_MAX && !self.feed_over;
        let level = self.shutdown.level();
        let next_level = if level == Level::Run { Level::Drain } else { Level::Cancel };
        let running = async {
            match &mut self.running {
                Some((performance, _, _)) => performance.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // The sender outlives the runner.
            Ok(()) = self.lease.changed() => Woken::Lease,
            () = self.shutdown.reached(next_level), if level != Level::Cancel => Woken::Shutdown,
            (performer, call, finish) = running => Woken::Performed(performer, call, finish),
            heard = news.recv(), if reads => Woken::News(heard),
            () = tokio::time::sleep_until(idle.unwrap_or(never)), if idle.is_some() => Woken::Idle,
            () = tokio::time::sleep_until(backstop.unwrap_or(never)), if backstop.is_some() => {
                Woken::Backstop
            }
            () = tokio::time::sleep_until(too_long.unwrap_or(never)), if too_long.is_some() => {
                Woken::TooLong
            }
        }
    }

    /// LEASE-14.
    fn look_at_lease(&mut self) {
        let view = *self.lease.borrow_and_update();
        match view.end {
            Some(end) => self.kill(ItemEnd::Lease(end)),
            None if view.stopping => self.drain(ItemEnd::StopRequested),
            None => {}
        }
    }

    /// SHUT-2, SHUT-4.
    fn look_at_shutdown(&mut self) {
        match self.shutdown.level() {
            Level::Run => {}
            Level::Drain => self.drain(ItemEnd::Drained),
            Level::Cancel => self.kill(ItemEnd::Cancelled),
        }
    }

    /// Nothing new; what runs may finish within the drain limit.
    fn drain(&mut self, how: ItemEnd) {
        self.queue.clear();
        if matches!(self.ending, None | Some(ItemEnd::Idle)) {
            self.ending = Some(how);
        }
        if self.limit.borrow().is_none() {
            self.limit.send_replace(Some(Instant::now() + self.drain_limit));
        }
    }

    /// Nothing new, and what runs is killed and not posted.
    fn kill(&mut self, how: ItemEnd) {
        self.queue.clear();
        if let Some((_, controls, _)) = &self.running {
            controls.kill.cancel();
        }
        // The first killing reason stands (LEASE-10).
        if !matches!(
            self.ending,
            Some(ItemEnd::Lease(_) | ItemEnd::Cancelled | ItemEnd::SessionEnded)
        ) {
            self.ending = Some(how);
        }
    }

    /// Ends without hurry: what is queued still runs (IDLE-8).
    fn end(&mut self, how: ItemEnd) {
        self.ending.get_or_insert(how);
    }

    /// Gives the next wanted call to the performer (RUN-13, RUN-14).
    fn start_next(&mut self) {
        let may_start = matches!(self.ending, None | Some(ItemEnd::Idle));
        while may_start && self.running.is_none() && !self.queue.is_empty() {
            let now = self.uptime.now();
            let view = *self.lease.borrow();
            if !view.is_good(now) {
                if view.confirmed && view.end.is_none() {
                    // RACE-20: the host slept; before anything else the lease counts as lost.
                    emit!(error, self.ids, "lease.assumed_lost", "the lease ran out unnoticed");
                    self.kill(ItemEnd::Lease(LeaseEnd::AssumedLost));
                }
                return; // RACE-1: the first beat wakes us.
            }
            let Some(call) = self.queue.pop_front() else { return };
            if !self.gate.is_wanted(&call) {
                self.gate.finished(&call.id, Finish::Moot, Instant::now());
                continue;
            }
            let Some(mut performer) = self.performer.take() else { return };
            self.gate.started(&call.id);
            let controls = Controls {
                kill: CancelToken::new(),
                moot: CancelToken::new(),
                until: self.limit.subscribe(),
            };
            let (to, performed) = (controls.clone(), call.clone());
            let primary = self.gate.primary_thread().map(str::to_owned);
            let performance = Box::pin(async move {
                let finish = performer.perform(&performed, primary.as_deref(), &to).await;
                (performer, performed, finish)
            });
            self.running = Some((performance, controls, call));
        }
    }

    fn on_news(&mut self, news: News) {
        let now = Instant::now();
        let actions = match news {
            News::HistoryStarted => {
                self.gate.history_started();
                Vec::new()
            }
            News::HistoryPage(events) => {
                events.into_iter().for_each(|event| self.gate.history_event(event));
                Vec::new()
            }
            News::HistoryDone => {
                let actions = self.gate.history_done(now);
                self.account_for_lost_writes(&actions);
                actions
            }
            News::HistoryFailed => {
                self.gate.history_failed();
                Vec::new()
            }
            News::Live(event) => {
                self.log_live(&event);
                self.gate.live(event, now)
            }
            News::Disconnected => Vec::new(),
            News::Refused => {
                self.end(ItemEnd::StreamRefused);
                Vec::new()
            }
        };
        if self.gate.session_ended() {
            emit!(info, self.ids, "session.ended", "session ended");
            // RUN-8, RUN-12: no result is accepted any more.
            self.kill(ItemEnd::SessionEnded);
        }
        if self.gate.is_full() {
            emit!(
                error,
                self.ids,
                "session.too_long",
                "the session has more than a million events"
            );
            self.end(ItemEnd::TooMuch);
        }
        actions.into_iter().for_each(|action| self.act(action));
        self.check_running();
    }

    /// After a boot that may have swallowed writes, every call that is now unanswered may have run.
    fn account_for_lost_writes(&mut self, actions: &[Action]) {
        let mut journal = self.journal.lock();
        if !journal.may_have_lost_writes() {
            return;
        }
        let started = actions.iter().filter_map(|action| match action {
            Action::Run(call) => Some((call.id.as_str(), call.name.as_str())),
            _ => None,
        });
        let started: Vec<(&str, &str)> = started.collect();
        let written = journal.presume_started(&started);
        drop(journal);
        if let Err(error) = written {
            emit!(error, self.ids, "journal.unwritable", "the session cannot be served",
                error = %error);
            self.kill(ItemEnd::Failed);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Run(call) => {
                if self.ending.is_none() {
                    self.queue.push_back(call);
                } else {
                    self.gate.finished(&call.id, Finish::Unanswered, Instant::now());
                }
            }
            Action::Held { id, name } => {
                emit!(info, self.ids, "call.held", "awaiting confirmation", tool_use_id = %id,
                    tool = %name);
            }
            Action::Denied { id } => {
                emit!(info, self.ids, "call.denied", "denied", tool_use_id = %id);
            }
            Action::NotOwned { id, name } => {
                emit!(info, self.ids, "call.not_owned", "tool not owned", tool_use_id = %id,
                    tool = %name);
                self.host.observe(&self.ids, &Progress::Dispatched);
            }
        }
    }

    fn log_live(&self, event: &Event) {
        match event {
            Event::Confirmation { call, .. } => {
                emit!(debug, self.ids, "call.confirmation", "confirmation", tool_use_id = %call);
            }
            Event::Thread { id: Some(id), terminated: true } => {
                emit!(info, self.ids, "thread.ended", "thread terminated", thread_id = %id);
            }
            _ => {}
        }
    }

    /// RACE-7, RUN-27: the call under way was answered, or its thread is gone.
    fn check_running(&mut self) {
        if let Some((_, controls, call)) = &self.running
            && !self.gate.is_wanted(call)
        {
            controls.moot.cancel();
        }
    }

    /// IDLE-10: only telemetry for a long time; ask the session itself.
    async fn check_backstop(&mut self) {
        let session = self.ids.session.clone();
        // A lease or shutdown that changes meanwhile goes first; the look is then repeated.
        let answer = tokio::select! {
            biased;
            Ok(()) = self.lease.changed() => return,
            () = self.shutdown.reached(Level::Drain) => return,
            answer = self.api.session(&session) => answer,
        };
        let now = Instant::now();
        self.gate.idle.backstop_checked(now);
        let status =
            answer.ok().and_then(|reply| Some(parse_session(&session, &reply.body)?.status));
        match status {
            Some(SessionStatus::Idle) => self.gate.idle.arm(now),
            Some(SessionStatus::Terminated) => self.kill(ItemEnd::SessionEnded),
            _ => {}
        }
    }

    /// The performer, after the call under way, if any, has returned.
    async fn into_performer(mut self) -> Performer<H> {
        match (self.performer.take(), self.running.take()) {
            (Some(performer), _) => *performer,
            (None, Some((performance, controls, _))) => {
                controls.kill.cancel();
                *performance.await.0
            }
            (None, None) => unreachable!("the performer is either here or with a call"),
        }
    }
}
