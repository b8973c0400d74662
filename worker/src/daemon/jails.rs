//! Makes and ends the jails of sessions, and keeps those that may come back.

mod disposal;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError, Weak};
use std::time::Duration;

use stockade_runtime::audit::{Event, Ids as AuditIds, Text};
use stockade_runtime::egress::{Broker, Sink};
use stockade_runtime::host::HostFacts;
use stockade_runtime::jail::{EnforcementReport, Failure, Launcher};
use stockade_runtime::policy::Policy;
use stockade_runtime::policy::network::DenyDetail;
use stockade_runtime::session::{Egress, Network, Session, StartError};
use stockade_runtime::spec::{self, BoundRequest, CustomToolPlan, EgressPlan, Request};
use tokio::sync::watch;
use tokio::time::Instant;

use self::disposal::{Disposal, session_of};
use super::egress::EgressRecord;
use super::held::Held;
use super::needs::Needs;
use super::record::Record;
use crate::queue::Shutdown;

/// How long the launcher may take at the end of the worker: every session has been taken apart by
/// then, as a rule.
const LAUNCHER_END_MAX: Duration = Duration::from_secs(10);
/// How often kept jails are looked at.
const EXPIRY: Duration = Duration::from_secs(1);
/// The shell of every session (TOOL-BASH-1).
const SHELL: [&str; 3] = ["/bin/bash", "--noprofile", "--norc"];

/// Everything that does not change from session to session.
#[derive(Debug)]
pub struct Template {
    pub facts: HostFacts,
    pub run_directory: PathBuf,
    /// The operator's directory for all sessions.
    pub workdir: Option<BoundRequest>,
    /// Where each session gets a directory of its own for outputs.
    pub outputs: Option<BoundRequest>,
    /// The policy's writable directories.
    pub writable: Vec<BoundRequest>,
    /// The operator's own tools that run in the jail.
    pub custom: Vec<CustomToolPlan>,
    /// Whether others run on the host.
    pub outside: bool,
    /// The worker's own environment, from which the policy may pass names on.
    pub environment: std::collections::BTreeMap<String, String>,
    /// Most jails that are kept; the oldest gives way.
    pub retained_max: usize,
    /// Test aid, see [`spec::JailSpec::halt_at`].
    pub halt_at: Option<String>,
}

impl Template {
    /// The working directory of every session, as its jail shows it.
    pub fn session_workdir(&self) -> PathBuf {
        let own = || PathBuf::from("/workspace");
        self.workdir.as_ref().map_or_else(own, |found| found.source.clone())
    }
}

/// Why a session has no jail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JailError {
    #[error(transparent)]
    Spec(#[from] spec::SpecError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("cannot reach the launcher")]
    Launcher { source: std::io::Error },
    #[error("cannot write the audit log")]
    Audit,
}

impl JailError {
    /// The phase, for the model and the audit log.
    pub fn phase(&self) -> String {
        match self {
            JailError::Spec(_) => "policy".to_owned(),
            JailError::Start(StartError::Jail { failure: Failure::Step { failure, .. } }) => {
                failure.step.to_string()
            }
            JailError::Start(StartError::Jail { failure: Failure::Canary { .. } }) => {
                "canary".to_owned()
            }
            JailError::Start(_) | JailError::Launcher { .. } => "handshake".to_owned(),
            JailError::Audit => "audit".to_owned(),
        }
    }
}

/// The source of jails.
#[derive(Debug)]
pub struct Jails {
    template: Template,
    /// What new jails are made from. Its network rules may be replaced.
    policy: RwLock<Arc<Policy>>,
    broker: Arc<Broker>,
    /// Of sessions that live.
    networks: Mutex<Vec<LiveNetwork>>,
    /// None once the worker ends.
    launcher: Mutex<Option<Launcher>>,
    record: Arc<Record>,
    kept: Mutex<HashMap<String, Idle>>,
    /// How many jails of a session are being disposed of.
    disposals: watch::Sender<BTreeMap<String, usize>>,
    /// A launcher was killed: what it left is removed before the next jail is made (INV-10).
    repair: AtomicBool,
    /// Raised when no jail can be made any more.
    shutdown: Arc<Shutdown>,
    launcher_gone: AtomicBool,
}

#[derive(Debug)]
struct LiveNetwork {
    record: Arc<EgressRecord>,
    network: Weak<Network>,
}

#[derive(Debug)]
struct Idle {
    session: Session,
    ids: AuditIds,
    needs: Needs,
    until: Instant,
}

impl Jails {
    /// Makes jails from `template` by `launcher`.
    pub fn new(
        template: Template,
        policy: Policy,
        launcher: Launcher,
        broker: Broker,
        record: Arc<Record>,
        shutdown: Arc<Shutdown>,
    ) -> Jails {
        let (launcher, kept) = (Mutex::new(Some(launcher)), Mutex::default());
        let (repair, launcher_gone) = (AtomicBool::new(false), AtomicBool::new(false));
        let (policy, broker) = (RwLock::new(Arc::new(policy)), Arc::new(broker));
        let (networks, disposals) = (Mutex::default(), watch::Sender::default());
        Jails {
            template,
            policy,
            broker,
            networks,
            launcher,
            record,
            kept,
            disposals,
            repair,
            shutdown,
            launcher_gone,
        }
    }

    /// What the next jail is made from.
    fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts the network rules of `new` in force, for every session that lives and for those to
    /// come. What else it says differently waits for a restart; returns whether there is any of that.
    pub async fn replace_rules(&self, new: &Policy) -> bool {
        let (policy, waits) = {
            let mut policy = self.policy.write().unwrap_or_else(PoisonError::into_inner);
            let next = Policy { network: new.network.clone(), ..Policy::clone(&policy) };
            let waits = next.digest() != new.digest();
            *policy = Arc::new(next);
            (Arc::clone(&policy), waits)
        };
        // A policy without a network leaves live sessions one that leads nowhere.
        let plan = EgressPlan::of(&policy).unwrap_or_default();
        let live: Vec<(Arc<EgressRecord>, Weak<Network>)> = {
            let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
            networks.retain(|live| live.network.strong_count() > 0);
            let live = networks.iter();
            live.map(|live| (Arc::clone(&live.record), Weak::clone(&live.network))).collect()
        };
        for (record, network) in live {
            // One at a time: each takes its turn with a launcher, and whoever ends meanwhile is over.
            let Some(network) = network.upgrade() else { continue };
            let session_id = record.session();
            let session_id = session_id.as_deref();
            // Written before the effect. Without a record the worker drains; what is narrower is
            // put in force all the same.
            record.rules(&policy, &plan.rules, network.generation() + 1);
            match network.replace(plan.clone()).await {
                Ok(()) => tracing::info!(
                    event = "egress.rules_replaced",
                    session_id,
                    "the session's network rules were replaced"
                ),
                Err(error) => tracing::error!(
                    event = "egress.rules_not_complete",
                    session_id,
                    error = %error,
                    "some ports that are new to the session's network rules stay closed"
                ),
            }
        }
        waits
    }

    /// Whether the launcher still lives. Without it every session would be claimed in vain, so the
    /// first time that it does not, nothing more is started and the worker ends, for its service
    /// manager to start it again.
    pub fn launcher_lives(&self) -> bool {
        if self.launcher_gone.load(Ordering::Relaxed) {
            return false;
        }
        let launcher = match self.launcher.try_lock() {
            Ok(launcher) => launcher,
            Err(TryLockError::Poisoned(launcher)) => launcher.into_inner(),
            // Somebody waits for it, and hears it if it ends.
            Err(TryLockError::WouldBlock) => return true,
        };
        // It says nothing here: what can be read is its end.
        let lives = launcher
            .as_ref()
            .is_some_and(|launcher| launcher.has_event().is_ok_and(|ended| !ended));
        if !lives {
            self.launcher_gone.store(true, Ordering::Relaxed);
            tracing::error!(
                event = "launcher.lost",
                "the launcher is gone: nothing more is started"
            );
            self.shutdown.drain();
        }
        lives
    }

    /// Opens a file that the launcher was told to keep. Waits for it: call where blocking is allowed.
    ///
    /// # Errors
    /// Those of open(2), or the launcher is gone.
    pub fn reopen(&self, index: usize) -> std::io::Result<std::os::fd::OwnedFd> {
        let mut launcher = self.launcher.lock().unwrap_or_else(PoisonError::into_inner);
        launcher.as_mut().ok_or(std::io::ErrorKind::NotConnected)?.reopen(index)
    }

    /// A jail for the session: the one that was kept for it, or a new one, proven and recorded. If it
    /// is dropped before it is taken, it is disposed of.
    ///
    /// # Errors
    /// [`JailError`]; nothing is left then that is not named in the log.
    pub async fn hold(
        self: &Arc<Self>,
        ids: &AuditIds,
        session_id: &str,
        needs: &Needs,
    ) -> Result<Held, JailError> {
        Ok(Held::new(self, ids, self.open(ids, session_id, needs).await?))
    }

    async fn open(
        self: &Arc<Self>,
        ids: &AuditIds,
        session_id: &str,
        needs: &Needs,
    ) -> Result<Session, JailError> {
        let mut kept = self.kept().remove(session_id);
        if let Some(idle) = kept.take_if(|idle| idle.needs != *needs) {
            tracing::info!(
                event = "jail.outdated",
                session_id,
                "the kept jail lacks what is needed"
            );
            self.dispose(&idle.ids, idle.session).await;
        }
        if let Some(Idle { session, .. }) = kept {
            self.now_about(&session, ids);
            tracing::info!(event = "jail.resumed", session_id, "the session's jail was kept");
            return self.record_launch(ids, session);
        }
        // What the last one of this session leaves must be there before the next; in a directory that
        // all have, what any of them leaves. It is counted before it is no longer kept.
        let session_of = session_of(ids);
        let same = self.template.workdir.is_none().then_some(session_of.as_str());
        self.settle(same).await;
        let made = self.make(ids, session_id, needs).await;
        if made.is_err() {
            self.launcher_lives();
        }
        match made {
            Ok(session) => self.record_launch(ids, session),
            Err(error) => {
                let reason = Text::of(&error);
                let event = Event::JailFailed { step: error.phase().into(), reason };
                self.record.write(ids, &event);
                Err(error)
            }
        }
    }

    /// Says in whose work item the decisions about a session's network are from now on.
    fn now_about(&self, session: &Session, ids: &AuditIds) {
        let Some(network) = session.network() else { return };
        let networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |live: &&LiveNetwork| live.network.as_ptr() == Arc::as_ptr(network);
        if let Some(live) = networks.iter().find(same) {
            live.record.now_about(ids.clone());
        }
    }

    /// How much a session is told about what the broker denied.
    pub fn deny_detail(&self) -> DenyDetail {
        self.policy().network.deny_detail.value
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<String, Idle>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// On a thread that may block: the launcher may be opening a file for somebody else.
    async fn another(self: &Arc<Self>) -> std::io::Result<Launcher> {
        let jails = Arc::clone(self);
        let another = tokio::task::spawn_blocking(move || {
            let mut launcher = jails.launcher.lock().unwrap_or_else(PoisonError::into_inner);
            launcher.as_mut().ok_or(std::io::ErrorKind::NotConnected)?.another()
        });
        another.await.map_err(std::io::Error::other)?
    }

    async fn make(
        self: &Arc<Self>,
        ids: &AuditIds,
        session_id: &str,
        needs: &Needs,
    ) -> Result<Session, JailError> {
        let (template, policy) = (&self.template, self.policy());
        let request = Request {
            argv: SHELL.map(|part| part.as_bytes().to_vec()).to_vec(),
            caller_environment: template.environment.clone(),
            workspace: template.workdir.clone(),
            workspace_in_place: template.workdir.is_some(),
            outputs: template.outputs.clone(),
            outputs_child: template.outputs.as_ref().map(|_| directory_name(session_id)),
            writable: template.writable.clone(),
            tools: true,
            custom: template.custom.clone(),
            outside: template.outside,
            skills: needs.skills.clone(),
            stores: needs.stores.clone(),
            porter: needs.staging,
            halt_at: template.halt_at.clone(),
            ..Request::default()
        };
        let spec = spec::build(&policy, &template.facts, request)?;
        let mut own = self.another().await.map_err(|source| JailError::Launcher { source })?;
        if self.repair.swap(false, Ordering::Relaxed) {
            own.repair();
        }
        let record = Arc::new(EgressRecord::new(Arc::clone(&self.record), ids.clone()));
        if let Some(plan) = &spec.egress
            && !record.rules(&policy, &plan.rules, 1)
        {
            return Err(JailError::Audit);
        }
        let sink = Arc::clone(&record) as Arc<dyn Sink>;
        let egress = Egress { broker: Arc::clone(&self.broker), sink };
        let run_directory = template.run_directory.clone();
        let session = Session::start(own, spec, run_directory, Some(egress)).await?;
        if let Some(network) = session.network() {
            let live = LiveNetwork { record, network: Arc::downgrade(network) };
            let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
            networks.retain(|live| live.network.strong_count() > 0);
            networks.push(live);
        }
        Ok(session)
    }

    /// The launch record, before any tool runs.
    fn record_launch(&self, ids: &AuditIds, session: Session) -> Result<Session, JailError> {
        let report: &EnforcementReport = session.report();
        tracing::info!(
            event = "jail.running",
            session_id = ids.session.as_ref().map(|id| id.as_str()),
            jail = report.jail,
            level = %report.level,
            policy_digest = report.policy_digest,
            spec_digest = report.spec_digest,
            ready_us = report.timings.ready_us,
            "jail running"
        );
        let digest = |hex: &str| hex.parse().unwrap_or(stockade_runtime::audit::Digest::NONE);
        let event = Event::JailLaunched {
            jail: report.jail.as_str().into(),
            policy: report.policy.as_str().into(),
            policy_sha256: digest(&report.policy_digest),
            spec_sha256: digest(&report.spec_digest),
            report: Box::new(serde_json::to_value(report).unwrap_or_default()),
        };
        // An unrecorded jail is dropped here, which ends it.
        if !self.record.write(ids, &event) {
            return Err(JailError::Audit);
        }
        self.record.sync_soon();
        Ok(session)
    }

    /// Whether jails are kept for the next work item of their session at all.
    pub fn keeps(&self) -> bool {
        self.template.workdir.is_none() && self.policy().filesystem.retain.value.is_some()
    }

    /// Keeps the jail for the session's next work item, without its processes, if the policy says so;
    /// ends it otherwise.
    pub async fn close(
        self: &Arc<Self>,
        ids: &AuditIds,
        session_id: &str,
        mut session: Session,
        needs: Needs,
        keep: bool,
    ) {
        // A directory of the operator's must have its changes before somebody else works in it.
        let keep = keep && self.template.workdir.is_none();
        let retain = self.policy().filesystem.retain.value.filter(|_| keep);
        let Some(retain) = retain else {
            return self.dispose(ids, session).await;
        };
        if session.quiesce().await.is_err() {
            self.dispose(ids, session).await;
            return;
        }
        let until = Instant::now() + retain;
        let idle = Idle { session, ids: ids.clone(), needs, until };
        let replaced = {
            let mut kept = self.kept();
            let replaced = kept.insert(session_id.to_owned(), idle);
            let full = kept.len() > self.template.retained_max;
            let oldest = kept.iter().min_by_key(|(_, idle)| idle.until);
            let oldest = oldest.map(|(name, _)| name.clone()).filter(|_| full);
            let replaced = replaced.or_else(|| kept.remove(&oldest?));
            replaced.map(|idle| (Disposal::of(self, &idle.ids), idle.session))
        };
        tracing::info!(event = "jail.kept", session_id, "the session's jail is kept");
        if let Some((disposal, session)) = replaced {
            // Here, so that there are never more than may be; whoever drops this does not stop it.
            let _done = disposal.begin(session).await;
        }
    }

    /// Waits until every jail is taken apart and the launcher is gone, within bounds. No jail can be
    /// made after.
    pub fn end(&self) {
        let until = Instant::now() + LAUNCHER_END_MAX;
        let launcher = loop {
            match self.launcher.try_lock() {
                Ok(mut launcher) => break launcher.take(),
                Err(TryLockError::Poisoned(launcher)) => break launcher.into_inner().take(),
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => return slow(),
            }
        };
        if let Some(launcher) = launcher
            && !launcher.wait_at_most(LAUNCHER_END_MAX)
        {
            slow();
        }
    }

    /// Looks after jails that are kept, and after their launcher, until it is dropped.
    pub async fn look_after(self: &Arc<Self>) -> Infallible {
        loop {
            tokio::time::sleep(EXPIRY).await;
            self.launcher_lives();
            self.expire();
        }
    }
}

fn slow() {
    tracing::warn!(
        event = "launcher.slow",
        "the launcher is still taking jails apart; `worker sweep` removes what it leaves"
    );
}

/// A session's id as the name of a directory: what could mean another place becomes `_`.
fn directory_name(session_id: &str) -> String {
    const BYTES_MAX: usize = 128;
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_-".contains(c) { c } else { '_' };
    let name: String = session_id.chars().map(plain).take(BYTES_MAX).collect();
    if name.is_empty() { "_".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_session_id_names_another_directory() {
        for (id, name) in [
            ("sesn_01A-b", "sesn_01A-b"),
            ("../../etc", "______etc"),
            (".", "_"),
            ("", "_"),
            ("a/b\0c", "a_b_c"),
        ] {
            assert_eq!(directory_name(id), name);
        }
        assert_eq!(directory_name(&"x".repeat(500)).len(), 128);
    }
}
