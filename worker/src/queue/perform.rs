//! One call from its turn to its post: at most once (INV-9, RUN-5), within its limits (RUN-17).
//!
//! Order: intent on disk, run, result on disk, post, mark. What is found of an earlier attempt
//! decides: a kept result is posted again, an interrupted call is answered with an error.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::count;
use super::events::{Ids, Progress, emit};
use super::gate::Finish;
use super::host::{CancelToken, Host, SessionTools as _};
use super::journal::{Known, SharedJournal, sha256_hex};
use super::post::{Posted, Poster};
use super::settings::QueueSettings;
use super::trace::{SpanEnd, ToolRun};
use super::wire::event::{Call, CallKind};
use super::wire::outcome::{CallOutcome, result_body};

/// Tools of a session, or the reason why there are none.
pub enum Bench<T> {
    Tools(T),
    /// Every call is answered with this (product: failures are visible to the session).
    Refusing {
        for_model: String,
    },
}

/// Signals to a call under way.
#[derive(Clone)]
pub struct Controls {
    /// Kill it and post nothing.
    pub kill: CancelToken,
    /// Do not post what it gives.
    pub moot: CancelToken,
    /// If set: it must be posted by then; at that time it is killed and an error is posted (SHUT-2).
    pub until: watch::Receiver<Option<Instant>>,
}

/// Everything one session needs to perform calls; moves into each performance and back.
pub struct Performer<H: Host> {
    pub host: std::sync::Arc<H>,
    pub ids: Ids,
    pub bench: Bench<H::Tools>,
    pub journal: SharedJournal,
    pub poster: Poster,
    pub limits: Limits,
}

/// Limits of one call.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub tool_timeout: Duration,
    pub tool_timeout_max: Duration,
    pub kill_limit: Duration,
}

impl From<&QueueSettings> for Limits {
    fn from(settings: &QueueSettings) -> Limits {
        Limits {
            tool_timeout: settings.tool_timeout,
            tool_timeout_max: settings.tool_timeout_max,
            kill_limit: settings.kill_limit,
        }
    }
}

impl Limits {
    /// RUN-17: a bash call may ask for more than the outer limit, up to a maximum; so may `own`, what
    /// the tool is known to need.
    pub fn of(&self, call: &Call, own: Option<Duration>) -> Duration {
        #[derive(serde::Deserialize)]
        struct Timeout {
            #[serde(default)]
            timeout_ms: Option<f64>,
        }
        const GRACE: Duration = Duration::from_secs(30);
        if call.kind != CallKind::Builtin || call.name != "bash" {
            let own = own.map_or(Duration::ZERO, |own| own.saturating_add(GRACE));
            return own.min(self.tool_timeout_max).max(self.tool_timeout);
        }
        let wanted = serde_json::from_str::<Timeout>(call.input.get()).ok();
        let wanted = wanted.and_then(|input| input.timeout_ms).unwrap_or(0.0);
        let wanted = wanted.clamp(0.0, self.tool_timeout_max.as_secs_f64() * 1000.0);
        let wanted = Duration::from_secs_f64(wanted / 1000.0) + GRACE;
        wanted.min(self.tool_timeout_max).max(self.tool_timeout)
    }
}

/// Time for the post when the drain limit killed the call.
const POST_AFTER_LIMIT: Duration = Duration::from_secs(5);
/// How long the answer to a post that was sent may still take when everything ends at once (SHUT-4).
const ANSWER_AFTER_KILL: Duration = Duration::from_millis(250);

impl<H: Host> Performer<H> {
    /// Performs one call. `primary` is the session's primary thread, where it is known.
    pub async fn perform(&mut self, call: &Call, primary: Option<&str>, to: &Controls) -> Finish {
        let finish = self.run_and_post(call, primary, to).await;
        self.host.observe(&self.ids, &Progress::Dispatched);
        finish
    }

    async fn run_and_post(&mut self, call: &Call, primary: Option<&str>, to: &Controls) -> Finish {
        let known = self.journal.lock().known(&call.id);
        let body = match known {
            Ok(Known::Settled) => return Finish::GaveUp,
            Ok(Known::Result(body)) => body,
            Ok(Known::Intent) => {
                let (id, tool) = (call.id.as_str(), call.name.as_str());
                emit!(
                    warn,
                    self.ids,
                    "call.unknown",
                    "an earlier worker was interrupted in this call",
                    tool_use_id = id,
                    tool = tool
                );
                self.host.observe(&self.ids, &Progress::CallUnknown { call: id });
                self.keep(call, &CallOutcome::error(unknown_outcome(tool)))
            }
            Ok(Known::Nothing) => match self.run(call, primary, to).await {
                Some(outcome) => self.keep(call, &outcome),
                None => return Finish::Unanswered,
            },
            Err(error) => {
                emit!(error, self.ids, "journal.unreadable", "a kept result cannot be read",
                    tool_use_id = %call.id, error = %error);
                self.keep(call, &CallOutcome::error(unknown_outcome(&call.name)))
            }
        };
        self.post(call, &body, to).await
    }

    /// Runs the call; `None` if it was killed, so that its outcome stays unknown.
    async fn run(
        &mut self,
        call: &Call,
        primary: Option<&str>,
        to: &Controls,
    ) -> Option<CallOutcome> {
        let tools = match &mut self.bench {
            Bench::Refusing { for_model } => return Some(CallOutcome::error(for_model.clone())),
            Bench::Tools(tools) => tools,
        };
        let digest = sha256_hex(call.input.get().as_bytes());
        if let Err(error) = self.journal.lock().intent(&call.id, &call.name, &digest) {
            // INV-9 cannot be kept: fail closed.
            emit!(error, self.ids, "journal.unwritable", "a call was not run",
                tool_use_id = %call.id, error = %error);
            let text = format!("{}: not run: the worker cannot record the call", call.name);
            return Some(CallOutcome::error(text));
        }
        emit!(debug, self.ids, "call.starting", "executing tool", tool_use_id = %call.id,
            tool = %call.name, input_bytes = call.input.get().len());
        let run = ToolRun { call, primary_thread: primary, description: tools.description(call) };
        let span = self.poster.api.client.tool_span(&self.ids, &run);
        let start = Instant::now();
        let stop = to.kill.child_token();
        let limit = start + self.limits.of(call, tools.limit(call));
        let mut running = std::pin::pin!(tools.run(call, stop.clone()));
        let (why, mut outcome) = tokio::select! {
            biased;
            // First: what a killed call still says is not its outcome.
            () = to.kill.cancelled() => (Some(Stopped::Killed), None),
            outcome = &mut running => (None, Some(outcome)),
            () = tokio::time::sleep_until(limit) => (Some(Stopped::TimedOut), None),
            () = reached(to.until.clone(), Duration::ZERO) => (Some(Stopped::Drained), None),
        };
        if let Some(why) = why {
            stop.cancel();
            let returned = tokio::time::timeout(self.limits.kill_limit, &mut running).await;
            if returned.is_err() {
                emit!(error, self.ids, "call.stuck", "a killed call did not return",
                    tool_use_id = %call.id);
            }
            outcome = why.outcome(&call.name);
        }
        // OBS-2: before the post.
        if let Some(span) = &span {
            outcome.iter().for_each(|outcome| span.gave(outcome));
            let whole = outcome.as_ref().filter(|_| !matches!(why, Some(Stopped::Drained)));
            span.end(SpanEnd::of_run(whole));
        }
        let timed_out = matches!(why, Some(Stopped::TimedOut));
        let is_error = outcome.as_ref().is_none_or(|outcome| outcome.is_error);
        let (id, tool, took) = (call.id.as_str(), call.name.as_str(), start.elapsed());
        let status = outcome.as_ref().map_or("killed", |outcome| why_ended(timed_out, outcome));
        count::tool_run(tool, status, took);
        emit!(
            info,
            self.ids,
            "call.ended",
            "tool call ended",
            tool_use_id = id,
            tool = tool,
            status,
            output_bytes = outcome.as_ref().map_or(0, CallOutcome::bytes),
            is_error,
            timed_out,
            duration_us = took.as_micros() as u64
        );
        outcome
    }

    /// Writes the result down before it is posted.
    fn keep(&mut self, call: &Call, outcome: &CallOutcome) -> Bytes {
        let body = result_body(call, outcome);
        if let Err(error) = self.journal.lock().result(&call.id, &body) {
            // It ran: posting what is in memory is still better than an unknown outcome. If this
            // process dies first, the intent says that it ran.
            emit!(error, self.ids, "journal.unwritable", "a result was not kept",
                tool_use_id = %call.id, error = %error);
        }
        body
    }

    async fn post(&mut self, call: &Call, body: &Bytes, to: &Controls) -> Finish {
        if to.kill.is_cancelled() {
            return Finish::Unanswered;
        }
        if to.moot.is_cancelled() {
            return self.settle(call, Finish::Moot);
        }
        let id = call.id.as_str();
        // Often the stream tells of the session's end, and so of ours, before the answer is here.
        let answered_late = async {
            to.kill.cancelled().await;
            to.moot.cancel();
            tokio::time::sleep(ANSWER_AFTER_KILL).await;
        };
        let posted = tokio::select! {
            biased;
            posted = self.poster.post(id, body, &to.until, &to.moot) => posted,
            () = answered_late => return Finish::Unanswered,
            () = reached(to.until.clone(), POST_AFTER_LIMIT) => return Finish::Unanswered,
        };
        if posted == Posted::Moot && to.kill.is_cancelled() {
            return Finish::Unanswered;
        }
        let failed = |for_good| Progress::PostFailed { call: id, for_good };
        match posted {
            Posted::Done => {
                self.host.observe(&self.ids, &Progress::Posted { call: id });
                self.settle(call, Finish::Answered)
            }
            Posted::Refused => {
                self.host.observe(&self.ids, &failed(true));
                self.settle(call, Finish::GaveUp)
            }
            Posted::GaveUpForNow => {
                self.host.observe(&self.ids, &failed(false));
                Finish::Unanswered
            }
            Posted::Moot => self.settle(call, Finish::Moot),
        }
    }

    fn settle(&mut self, call: &Call, finish: Finish) -> Finish {
        if let Err(error) = self.journal.lock().settled(&call.id) {
            emit!(warn, self.ids, "journal.unwritable", "a posted result was not marked",
                tool_use_id = %call.id, error = %error);
        }
        finish
    }
}

/// One word for people.
fn why_ended(timed_out: bool, outcome: &CallOutcome) -> &'static str {
    match (timed_out, outcome.is_error) {
        (true, _) => "timed out",
        (false, true) => "error",
        (false, false) => "ok",
    }
}

/// Why a call was not left to finish.
#[derive(Clone, Copy)]
enum Stopped {
    Killed,
    TimedOut,
    Drained,
}

impl Stopped {
    /// What is posted instead of what it gave.
    fn outcome(self, tool: &str) -> Option<CallOutcome> {
        match self {
            Stopped::Killed => None,
            // RUN-18.
            Stopped::TimedOut => Some(CallOutcome::error(format!("tool '{tool}' timed out"))),
            Stopped::Drained => Some(CallOutcome::error(format!(
                "{tool}: the worker was shut down before this call ended; it was killed"
            ))),
        }
    }
}

fn unknown_outcome(tool: &str) -> String {
    format!(
        "{tool}: the worker was interrupted while this call ran; its outcome is unknown and it \
         was not run again"
    )
}

/// Returns `more` after the time limit for everything.
async fn reached(mut until: watch::Receiver<Option<Instant>>, more: Duration) {
    loop {
        let limit = *until.borrow_and_update();
        let wait = async {
            match limit {
                Some(limit) => tokio::time::sleep_until(limit + more).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => return,
            changed = until.changed() => if changed.is_err() {
                return std::future::pending().await;
            }
        }
    }
}
