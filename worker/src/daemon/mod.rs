//! `worker poll`: serves the sessions of an environment, each in its own jail.
//!
//! A work item goes this way: `queue` polls, acks and keeps its lease; [`Daemon::open`] has `jails`
//! make a jail and record it; calls go through `tools` to the jail's executor; [`Daemon::close`] ends
//! the jail, or keeps it for a while. `admission` says when a further item may be claimed, `signals`
//! when to stop, `record` writes the audit log before each effect.

mod admission;
pub mod custom;
mod egress;
pub mod jails;
mod prepare;
pub mod record;
mod signals;
pub mod tools;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stockade_runtime::audit::{Event, Ids as AuditIds, List, StopReason};
use stockade_runtime::egress::Broker;
use stockade_runtime::host::Level;
use stockade_runtime::jail::{self, Launcher};
use stockade_runtime::policy::Policy;

use crate::cli::policy::chain;
use crate::cli::poll::{Cadence, Ready};
use crate::config::custom_tool;
use crate::exit::Exit;
use crate::explain;
use crate::queue::{
    self, Drive, EnvironmentKey, FileJournals, Host, Ids, ItemEnd, OpenError, Opening, Owner,
    Progress, Queue, QueueEnd, QueueSettings, Shutdown,
};
use crate::settings::Settings;
use crate::sweep::run_directory;

use admission::{Admission, Slot};
use custom::CustomTools;
use jails::{Jails, Template};
use record::{Record, audit_ids};
use tools::Tools;

/// Threads for sessions and requests; leases have one of their own, and what blocks another.
const THREADS: usize = 2;
/// Journals of sessions that nobody has touched for so long are removed.
const JOURNAL_AGE: Duration = Duration::from_secs(30 * 86_400);
/// How often kept jails are looked at.
const EXPIRY: Duration = Duration::from_secs(1);

/// The product around the queue.
struct Daemon {
    admission: Admission,
    jails: Arc<Jails>,
    record: Arc<Record>,
    custom: Arc<CustomTools>,
}

impl Host for Daemon {
    type Tools = Tools;
    type Permit = Slot;

    fn owner(&self) -> Owner {
        let custom = Arc::clone(&self.custom);
        Box::new(move |name, kind| custom.owns(name, kind))
    }

    async fn admit(&self) -> Slot {
        self.admission.admit().await
    }

    async fn open(&self, opening: Opening<'_>) -> Result<Tools, OpenError> {
        let (ids, session_id) = (audit_ids(opening.ids), opening.session.id.clone());
        let session = self.jails.open(&ids, &session_id).await.map_err(|error| {
            let phase = error.phase();
            let for_log = chain(&error);
            let for_model = format!(
                "[jail] This session has no jail on its host, so no tool was run: `{phase}` failed. \
                 The operator finds the reason in the worker's log. A user interrupt or message \
                 tries again."
            );
            OpenError { for_model, for_log }
        })?;
        let (jails, record) = (Arc::clone(&self.jails), Arc::clone(&self.record));
        let custom = Arc::clone(&self.custom);
        let session = Some(session);
        Ok(Tools { ids, session_id, jails, record, custom, session, replaced: false })
    }

    async fn close(&self, tools: Tools, how: ItemEnd) {
        let Tools { ids, session_id, session, .. } = tools;
        if let Some(session) = session {
            let keep = how == ItemEnd::Idle;
            self.jails.close(&ids, &session_id, session, keep).await;
        }
    }

    fn observe(&self, ids: &Ids, progress: &Progress<'_>) {
        if matches!(progress, Progress::Acked) {
            self.admission.claimed();
        }
        self.record.observe(ids, progress);
    }
}

/// Gives up the caller's rights and serves until shutdown, or until there is nothing more to do.
///
/// Must be called with one thread, after everything that needs these rights has been opened.
///
/// # Errors
/// What nobody planned for.
pub fn run(
    settings: &Settings,
    level: Level,
    launcher: Launcher,
    ready: Ready,
) -> anyhow::Result<Exit> {
    let Some(audit) = ready.audit else { anyhow::bail!("the audit log is not open") };
    let places = match prepare::places(settings, level) {
        Ok(places) => places,
        Err(error) => {
            explain::complain(&error, Some("no other user may have a right to it"));
            return Ok(Exit::Usage);
        }
    };
    let custom = custom_tool::check(&ready.config.custom_tool).map_err(|mistake| {
        anyhow::anyhow!("the configuration was checked before: {}", mistake.reason)
    })?;
    let custom = match CustomTools::start(custom, level) {
        Ok(custom) => Arc::new(custom),
        Err(error) => {
            explain::complain(&error, error.hint());
            return Ok(Exit::Policy);
        }
    };
    let template = match template(settings, level, &ready.policy)? {
        Ok(template) => Template { custom: custom.in_jails(), ..template },
        Err(exit) => return Ok(exit),
    };
    let mut launcher = launcher;
    if level == Level::Root {
        let absolute = |file: &PathBuf| std::path::absolute(file).unwrap_or_else(|_| file.clone());
        let files: Vec<PathBuf> = ready.policy_files.iter().map(absolute).collect();
        launcher.keep(&files).context("cannot reach the launcher")?;
    }
    let (shutdown, watch) = Shutdown::new();
    let shutdown = Arc::new(shutdown);
    let record = Arc::new(Record::new(audit, Arc::clone(&shutdown)));
    recover(level, &record).context("cannot remove what an earlier worker left")?;
    if let Err(failure) = jail::drop_to_control_side(level) {
        explain::complain(&failure, failure.hint());
        return Ok(Exit::Isolation);
    }
    let (key, setter) = EnvironmentKey::new(&ready.key)?;
    drop(ready.key);
    let started = started(settings, level, &ready.policy);
    let admission = Admission::new(
        settings.max_sessions,
        settings.memory_reserve_bytes,
        settings.once,
        &shutdown,
    );
    let broker = Broker::start().context("cannot start the broker")?;
    let jails = Arc::new(Jails::new(
        template,
        ready.policy,
        launcher,
        broker,
        Arc::clone(&record),
        Arc::clone(&shutdown),
    ));
    let outside = custom.records();
    let daemon =
        Daemon { admission, jails: Arc::clone(&jails), record: Arc::clone(&record), custom };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let exit = runtime.block_on(async {
        let journals = FileJournals::new(&places.journal, &places.results)
            .context("cannot open the journal of tool calls")?;
        if let Err(error) = journals.sweep(JOURNAL_AGE) {
            tracing::warn!(event = "journal.not_swept", error = %error, "old journals are still there");
        }
        let queue = match Queue::new(
            queue_settings(settings)?,
            Some(key),
            Arc::new(daemon),
            Arc::new(journals),
            Drive::default(),
        ) {
            Ok(queue) => queue,
            Err(error) => {
                explain::complain(&error, None);
                return Ok(Exit::Usage);
            }
        };
        let nothing = AuditIds { environment: started.0, ..AuditIds::default() };
        if !record.write(&nothing, &started.1)
            || !outside.iter().all(|event| record.write(&nothing, event))
        {
            return Ok(Exit::Evidence);
        }
        announce(settings, level);
        let heard = signals::listen(
            Arc::clone(&shutdown),
            settings.drain_timeout,
            signals::Reload {
                source: Arc::new(ready.source),
                setter,
                record: Arc::clone(&record),
                settings: settings.clone(),
                policy_files: if level == Level::Root { ready.policy_files } else { Vec::new() },
                jails: Arc::clone(&jails),
            },
        )
        .context("cannot listen for signals")?;
        let keeper = {
            let jails = Arc::clone(&jails);
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(EXPIRY).await;
                    jails.launcher_lives();
                    jails.expire(false).await;
                }
            })
        };
        let end = queue.run(watch).await;
        keeper.abort();
        jails.expire(true).await;
        let (exit, reason) = match jails.launcher_lives() {
            true => outcome(&end, heard.urgency(), &record, settings.once),
            false => (Exit::Unexpected, StopReason::Error),
        };
        let recorded = record.write(&nothing, &Event::WorkerStopped { reason });
        let exit = if recorded { exit } else { Exit::Evidence };
        places.leave();
        let reason = serde_json::to_value(reason).unwrap_or_default();
        tracing::info!(event = "worker.stopped", reason = reason.as_str(), "worker stopped");
        anyhow::Ok(exit)
    })?;
    // Threads that wait for a launcher which does not answer must not hold the exit up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    jails.end();
    Ok(exit)
}

fn outcome(
    end: &Result<QueueEnd, queue::PollRefused>,
    urgency: signals::Urgency,
    record: &Record,
    once: bool,
) -> (Exit, StopReason) {
    if record.has_failed() {
        return (Exit::Evidence, StopReason::Error);
    }
    match (end, urgency) {
        (Err(error), _) => {
            explain::complain(error, Some("check the environment id and its key in the console"));
            (Exit::KeyRejected, StopReason::KeyRejected)
        }
        (Ok(QueueEnd::Empty), _) => (Exit::Success, StopReason::Drained),
        (Ok(QueueEnd::Shutdown), signals::Urgency::None) if once => {
            (Exit::Success, StopReason::Once)
        }
        (Ok(QueueEnd::Shutdown), signals::Urgency::Deadline) => {
            (Exit::DrainTimeout, StopReason::DrainTimeout)
        }
        (Ok(QueueEnd::Shutdown), signals::Urgency::Signal(number)) => {
            (Exit::Payload(128 + number), StopReason::DrainTimeout)
        }
        (Ok(QueueEnd::Shutdown), _) => (Exit::Success, StopReason::Signal),
    }
}

/// The first log event of a run.
fn announce(settings: &Settings, level: Level) {
    tracing::info!(
        event = "worker.started",
        version = env!("CARGO_PKG_VERSION"),
        level = %level,
        policy = settings.policy,
        sessions = settings.max_sessions,
        audit_file = %settings.audit_file.display(),
        "worker started"
    );
}

/// The first record of a run.
fn started(
    settings: &Settings,
    level: Level,
    policy: &Policy,
) -> (Option<stockade_runtime::audit::Name>, Event) {
    let event = Event::WorkerStarted {
        version: env!("CARGO_PKG_VERSION").into(),
        policy: policy.name.as_str().into(),
        policy_sha256: policy.digest().into(),
        base_url_host: settings.base_url.authority().map_or("", |host| host.as_str()).into(),
        level: level.to_string().into(),
    };
    (Some(settings.environment_id.as_str().into()), event)
}

/// Looks at the host and at the directories that sessions may change.
fn template(
    settings: &Settings,
    level: Level,
    policy: &Policy,
) -> anyhow::Result<Result<Template, Exit>> {
    let facts = jail::probe_host(level).context("cannot look at this host")?;
    let inspect = |path: &Path, what: &str| {
        jail::inspect(path, what).map_err(|error| {
            explain::complain(&error, Some(error.hint()));
            Exit::Usage
        })
    };
    let found = || -> Result<_, Exit> {
        let workdir =
            settings.workdir.as_deref().map(|path| inspect(path, "the working directory"));
        let outputs = settings.outputs_dir.as_deref().map(|path| inspect(path, "the outputs"));
        let writable = policy.filesystem.writable.iter();
        let writable = writable.map(|path| inspect(&path.value, "a writable path of the policy"));
        Ok((workdir.transpose()?, outputs.transpose()?, writable.collect::<Result<_, _>>()?))
    };
    Ok(found().map(|(workdir, outputs, writable)| Template {
        facts,
        run_directory: run_directory(),
        workdir,
        outputs,
        writable,
        custom: Vec::new(),
        environment: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        retained_max: settings.max_sessions as usize,
        halt_at: settings.halt_at.clone(),
    }))
}

/// Finishes the disposal of what a killed worker left, before the first claim (INV-10).
fn recover(level: Level, record: &Record) -> anyhow::Result<()> {
    let done = jail::sweep(level, &run_directory())?;
    if !done.removed.is_empty() || !done.left.is_empty() {
        let (removed, left) = (List::of(&done.removed), List::of(&done.left));
        record.write(&AuditIds::default(), &Event::Recovery { removed, left });
        tracing::warn!(
            event = "worker.recovered",
            removed = done.removed.len(),
            left = done.left.len(),
            "removed what an earlier worker left"
        );
    }
    Ok(())
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
