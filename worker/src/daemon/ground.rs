//! What every way of driving a worker has in common, from the end of its rights to its exit code.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stockade_runtime::audit::{Digest, Event, Ids as AuditIds, Name, StopReason};
use stockade_runtime::host::Level;
use stockade_runtime::policy::Policy;
use stockade_runtime::sys::release_code;

use super::admission::Admission;
use super::driven::{self, End};
use super::jails::Jails;
use super::opened::Opened;
use super::prepare::Places;
use super::record::Record;
use super::signals::{self, Urgency};
use crate::cli::poll::Cadence;
use crate::credential::hidden::HiddenVariables;
use crate::exit::Exit;
use crate::explain;
use crate::listener::Bound;
use crate::metrics::{About, Metrics};
use crate::platform::{PlatformError, Prepared, Renewal};
use crate::queue::{
    self, Credential, EnvironmentKey, FileJournals, Host, ItemEnd, LeaseEnd, Queue, QueueEnd,
    QueueSettings, Shutdown, ShutdownWatch, Tracer,
};
use crate::settings::{Mode, Settings};
use crate::traces::Traces;

/// Journals of sessions that nobody has touched for so long are removed.
const JOURNAL_AGE: Duration = Duration::from_secs(30 * 86_400);

/// What a worker stands on once it has given up its rights.
pub struct Ground<'a> {
    pub settings: &'a Settings,
    pub level: Level,
    pub record: Arc<Record>,
    pub shutdown: Arc<Shutdown>,
    pub watch: ShutdownWatch,
    pub places: Places,
    /// The first record, and the environment it is about.
    pub started: (Option<Name>, Event),
    /// The records after it: custom tools that run on the host.
    pub outside: Vec<Event>,
    pub key: Option<EnvironmentKey>,
    /// In its place what a platform's credential is made of.
    pub platform: Option<Prepared>,
    /// Headers for a collector of traces.
    pub hidden: HiddenVariables,
    /// Where metrics can be had.
    pub metrics: Option<Bound>,
    /// The policy's; empty where sessions are handed over.
    pub policy_sha256: String,
    /// What SIGHUP works with.
    pub reload: signals::Reload,
}

impl Ground<'_> {
    /// When a session may be claimed.
    pub fn admission(&self) -> Admission {
        let settings = self.settings;
        let reserve = settings.memory_reserve_bytes;
        Admission::new(settings.max_sessions, reserve, settings.once, &self.shutdown)
    }

    /// Serves until there is nothing more to do.
    ///
    /// # Errors
    /// What nobody planned for.
    pub async fn until_end<H: Host>(
        self,
        host: H,
        jails: Option<Arc<Jails>>,
        opened: Opened,
    ) -> anyhow::Result<Exit> {
        let journals = FileJournals::new(&self.places.journal, &self.places.results)
            .context("cannot open the journal of tool calls")?;
        if let Err(error) = journals.sweep(JOURNAL_AGE) {
            tracing::warn!(event = "journal.not_swept", error = %error, "old journals are still there");
        }
        let (drive, driven) = driven::of(opened, &self).context("cannot begin")?;
        let nothing = AuditIds { environment: self.started.0, ..AuditIds::default() };
        let ca_file = self.settings.ca_file.as_deref();
        let (credential, renewal) = match credential(self.key, self.platform, ca_file).await {
            Ok(found) => found,
            Err(error) => {
                explain::complain(&error, Some(&error.hint()));
                let stopped = Event::WorkerStopped { reason: StopReason::Error };
                let noted = self.record.write(&nothing, &self.started.1);
                let noted = noted && self.record.write(&nothing, &stopped);
                return Ok(if noted { error.exit() } else { Exit::Evidence });
            }
        };
        let traces = self.settings.traces.as_ref();
        let traces = traces.map(|to| Traces::start(to, &self.hidden, ca_file));
        let traces = match traces.transpose() {
            Ok(traces) => traces,
            Err(error) => {
                explain::complain(&error, Some("see --ca-file and --otlp-endpoint"));
                return Ok(Exit::Usage);
            }
        };
        let mut settings = queue_settings(self.settings)?;
        settings.tracer = traces.clone().map(|traces| Arc::new(traces) as Arc<dyn Tracer>);
        let journals = Arc::new(journals);
        let queue = match Queue::new(settings, credential, Arc::new(host), journals, drive) {
            Ok(queue) => queue,
            Err(error) => {
                explain::complain(&error, None);
                return Ok(Exit::Usage);
            }
        };
        // Whoever reads that it has started may end it.
        let drain_timeout = self.settings.drain_timeout;
        let reload = signals::Reload { renewal, ..self.reload };
        let heard = signals::listen(Arc::clone(&self.shutdown), drain_timeout, reload)
            .context("cannot listen for signals")?;
        let about = About {
            level: self.level.to_string(),
            policy_sha256: self.policy_sha256,
            slots: self.settings.max_sessions,
        };
        let metrics = self.metrics.map(|bound| Metrics::start(bound, &about, self.watch.clone()));
        let metrics = metrics.transpose().context("cannot offer metrics")?;
        let first = [&self.started.1].into_iter().chain(&self.outside);
        if !{ first }.all(|event| self.record.write(&nothing, event)) {
            return Ok(Exit::Evidence);
        }
        announce(self.settings, self.level);
        let keeper =
            jails.clone().map(|jails| tokio::spawn(async move { jails.look_after().await }));
        // Most of what a start needs is needed once.
        if let Err(error) = release_code() {
            tracing::debug!(event = "worker.code_kept", %error, "code of the start stays mapped");
        }
        let end = driven.run(&queue, self.watch.clone()).await;
        if let Some(traces) = traces {
            traces.finish().await;
        }
        if let Some(keeper) = keeper {
            keeper.abort();
        }
        if let Some(jails) = &jails {
            jails.expire_all().await;
        }
        let lives = jails.as_ref().is_none_or(|jails| jails.launcher_lives());
        let (exit, reason) = match (self.record.has_failed(), lives) {
            (_, false) => (Exit::Unexpected, StopReason::Error),
            (true, true) => (Exit::Evidence, StopReason::Error),
            (false, true) => outcome(&end, heard.urgency(), self.settings.once),
        };
        let recorded = self.record.write(&nothing, &Event::WorkerStopped { reason });
        let exit = if recorded { exit } else { Exit::Evidence };
        if matches!(self.settings.mode, Mode::Poll | Mode::Serve(_)) {
            // Others that serve one item each may be about to use it.
            self.places.leave();
        }
        drop(metrics);
        let reason = serde_json::to_value(reason).unwrap_or_default();
        let shutdown_ms = self.watch.took().map(|took| took.as_millis() as u64);
        let reason = reason.as_str();
        tracing::info!(event = "worker.stopped", reason, shutdown_ms, "worker stopped");
        anyhow::Ok(exit)
    }
}

/// The worker's standing credential; starts that of a platform.
async fn credential(
    key: Option<EnvironmentKey>,
    platform: Option<Prepared>,
    ca_file: Option<&Path>,
) -> Result<(Option<Credential>, Option<Renewal>), PlatformError> {
    match (key, platform) {
        (Some(key), _) => Ok((Some(Credential::from(key)), None)),
        (None, Some(platform)) => {
            let (credential, renewal) = platform.start(ca_file).await?;
            Ok((Some(Credential::Platform(credential)), renewal))
        }
        (None, None) => Ok((None, None)),
    }
}

/// The exit code, and why the worker has stopped.
fn outcome(end: &End, urgency: Urgency, once: bool) -> (Exit, StopReason) {
    let end = match end {
        End::Unrunnable => return (Exit::Usage, StopReason::Error),
        End::Item(how) => return outcome_of_item(*how, urgency),
        End::Queue(end) => end,
    };
    match (end, urgency) {
        (Err(error), _) => {
            explain::complain(error, Some("check the environment id and its key in the console"));
            (Exit::KeyRejected, StopReason::KeyRejected)
        }
        (Ok(QueueEnd::Empty), _) => (Exit::Success, StopReason::Drained),
        (Ok(QueueEnd::Shutdown), Urgency::None) if once => (Exit::Success, StopReason::Once),
        (Ok(QueueEnd::Shutdown), urgency) => outcome_of_signal(urgency),
    }
}

fn outcome_of_signal(urgency: Urgency) -> (Exit, StopReason) {
    match urgency {
        Urgency::None | Urgency::Drain => (Exit::Success, StopReason::Signal),
        Urgency::Deadline => (Exit::DrainTimeout, StopReason::DrainTimeout),
        Urgency::Signal(number) => (Exit::Payload(128 + number), StopReason::DrainTimeout),
    }
}

/// WRUN-3: zero when the session is idle or over, or a signal ended it.
fn outcome_of_item(how: ItemEnd, urgency: Urgency) -> (Exit, StopReason) {
    match how {
        ItemEnd::Drained | ItemEnd::Cancelled => outcome_of_signal(urgency),
        ItemEnd::Idle
        | ItemEnd::SessionEnded
        | ItemEnd::StopRequested
        | ItemEnd::Lease(LeaseEnd::Stopped) => match urgency {
            Urgency::Deadline | Urgency::Signal(_) => outcome_of_signal(urgency),
            Urgency::None | Urgency::Drain => (Exit::Success, StopReason::Once),
        },
        ItemEnd::Lease(LeaseEnd::Rejected) | ItemEnd::StreamRefused => {
            explain::say("error: the control plane refuses the credential of the work item");
            explain::say("hint: check ANTHROPIC_WORK_SECRET, or the environment id and its key");
            (Exit::KeyRejected, StopReason::KeyRejected)
        }
        ItemEnd::Lease(LeaseEnd::Lost) => {
            explain::say("error: the work item is somebody else's; it was not stopped");
            explain::say("hint: an item is served by one process; it cannot be started again");
            (Exit::Unexpected, StopReason::Error)
        }
        ItemEnd::OpenFailed => {
            explain::say("error: the session had no jail; the log has the reason");
            explain::say("hint: worker doctor");
            (Exit::Isolation, StopReason::Error)
        }
        other => {
            explain::say(&format!("error: cannot serve the work item: {}", other.label()));
            explain::say("hint: the log has the reason");
            (Exit::Unexpected, StopReason::Error)
        }
    }
}

/// The first log event of a run.
fn announce(settings: &Settings, level: Level) {
    let policy = if settings.mode.hands_over() { "none" } else { &settings.policy.policy };
    tracing::info!(
        event = "worker.started",
        version = env!("CARGO_PKG_VERSION"),
        level = %level,
        mode = settings.mode.word(),
        policy,
        sessions = settings.max_sessions,
        audit_file = %settings.audit_file.display(),
        "worker started"
    );
}

/// The first record of a run.
pub fn started(
    settings: &Settings,
    level: Level,
    policy: Option<&Policy>,
) -> (Option<Name>, Event) {
    let event = Event::WorkerStarted {
        version: env!("CARGO_PKG_VERSION").into(),
        // Sessions that are handed over have none of ours.
        policy: policy.map_or("none", |policy| policy.name.as_str()).into(),
        policy_sha256: policy.map_or(Digest::NONE, |policy| policy.digest().into()),
        base_url_host: settings.base_url.authority().map_or("", |host| host.as_str()).into(),
        level: level.to_string().into(),
    };
    (Some(settings.environment_id.as_str().into()), event)
}

fn queue_settings(settings: &Settings) -> anyhow::Result<QueueSettings> {
    let base_url = settings.base_url.to_string().parse().context("cannot use the base URL")?;
    let mut queue = QueueSettings::new(base_url, &settings.environment_id, &settings.worker_id);
    // Checked there with the same rule, and its exception.
    queue.insecure_http = true;
    queue.workspace_id = settings.workspace_id.clone();
    queue.anthropic_version = settings.anthropic_version.to_str()?.to_owned();
    for (name, value) in &settings.headers {
        queue.custom_headers.append(name.clone(), value.clone());
    }
    queue.block_ms = settings.block_ms;
    if settings.cadence == Cadence::Sdk {
        queue.cadence = queue::Cadence::Sdk;
    }
    queue.reclaim_older_than_ms = settings.reclaim_older_than_ms;
    queue.drain = settings.drain_on_empty;
    queue.max_idle = settings.max_idle;
    queue.drain_limit = settings.drain_timeout;
    queue.ca_file = settings.ca_file.clone();
    if let Some(limit) = settings.tool_timeout {
        queue.tool_timeout = limit;
        queue.tool_timeout_max = limit;
    }
    Ok(queue)
}
