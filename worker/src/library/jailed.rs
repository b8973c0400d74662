//! Jails for programs that use the library: what `daemon` makes its own from, without its command line.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stockade_runtime::audit::{AuditLog, Ids as AuditIds};
use stockade_runtime::egress::Broker;
use stockade_runtime::host::HostFacts;
use stockade_runtime::jail::{self, Launcher};
use stockade_runtime::policy::{Policy, Resolver};
use stockade_runtime::session::Session;
use stockade_runtime::spec::BoundRequest;

use super::error::{Error, ErrorKind};
use crate::cli::policy::{read_policy_file, timely};
use crate::cli::syscall_groups;
use crate::daemon::custom::CustomTools;
use crate::daemon::furnish::no_jail;
use crate::daemon::jails::{JailError, Jails, Template};
use crate::daemon::needs::Needs;
use crate::daemon::record::{Record, audit_ids};
use crate::daemon::tools::{Supply, Tools};
use crate::queue::{
    Call, CallOutcome, CancelToken, Ids, OpenError, Progress, SessionTools as _, Shutdown,
    ShutdownWatch,
};
use crate::sweep::run_directory;

/// What jails may do, and where it is recorded.
#[derive(Debug, Clone)]
pub struct JailPolicy {
    policy: String,
    directories: Vec<PathBuf>,
    audit_file: PathBuf,
    workdir: Option<PathBuf>,
}

impl JailPolicy {
    /// A shipped policy (`default`, see `worker policy list`) or a file, and the audit log to append
    /// to. No two programs can have one log.
    pub fn new(policy: impl Into<String>, audit_file: impl Into<PathBuf>) -> JailPolicy {
        let (policy, audit_file) = (policy.into(), audit_file.into());
        JailPolicy { policy, directories: Vec::new(), audit_file, workdir: None }
    }

    /// Looks for `NAME.toml` in this directory as well.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> JailPolicy {
        self.directories.push(directory.into());
        self
    }

    /// Shows this directory to sessions as their workspace; changes are copied back at the end of each
    /// [default: a fresh one for each session].
    pub fn workdir(self, directory: impl Into<PathBuf>) -> JailPolicy {
        JailPolicy { workdir: Some(directory.into()), ..self }
    }
}

/// The source of jails.
pub(super) struct Jailed {
    jails: Arc<Jails>,
    record: Arc<Record>,
    unusable: ShutdownWatch,
}

impl std::fmt::Debug for Jailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jailed").finish_non_exhaustive()
    }
}

impl Jailed {
    pub fn start(choice: JailPolicy) -> Result<Jailed, Error> {
        let host = |text: &'static str| move |error| Error::because(ErrorKind::Host, text, error);
        if std::fs::read_dir("/proc/self/task").map_err(host("cannot count threads"))?.count() > 1 {
            let text = "cannot split off what makes jails: this program has more than one thread";
            return Err(Error::new(ErrorKind::Settings, text));
        }
        let level = HostFacts::level_here().map_err(host("cannot look at this process"))?;
        let launcher = Launcher::start(level)
            .map_err(|error| Error::because(ErrorKind::Host, "cannot start the launcher", error))?;
        let policy = resolve(&choice)?;
        let audit = AuditLog::open(&choice.audit_file).map_err(|error| {
            Error::because(ErrorKind::Audit, "cannot open the audit log", error)
        })?;
        let (shutdown, unusable) = Shutdown::new();
        let shutdown = Arc::new(shutdown);
        let record = Arc::new(Record::new(audit, Arc::clone(&shutdown)));
        let swept = jail::sweep(level, &run_directory());
        swept.map_err(host("cannot remove what an earlier program left"))?;
        let inspect = |path: &Path, what: &str| -> Result<BoundRequest, Error> {
            jail::inspect(path, what).map_err(|error| {
                Error::because(ErrorKind::Settings, "cannot use a directory", error)
            })
        };
        let workdir = choice.workdir.as_deref().map(|path| inspect(path, "the working directory"));
        let writable = policy.filesystem.writable.iter();
        let writable = writable.map(|path| inspect(&path.value, "a writable path of the policy"));
        let template = Template {
            facts: jail::probe_host(level).map_err(host("cannot look at this host"))?,
            run_directory: run_directory(),
            workdir: workdir.transpose()?,
            outputs: None,
            writable: writable.collect::<Result<_, _>>()?,
            custom: Vec::new(),
            outside: false,
            environment: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
            retained_max: 0,
            halt_at: None,
        };
        let broker = Broker::start().map_err(host("cannot start the broker"))?;
        let own = Arc::clone(&record);
        let jails = Arc::new(Jails::new(template, policy, launcher, broker, own, shutdown));
        Ok(Jailed { jails, record, unusable })
    }

    pub async fn open(&self, ids: &Ids) -> Result<JailedTools, OpenError> {
        let (ids, session_id) = (audit_ids(ids), ids.session.clone());
        let (jails, record) = (Arc::clone(&self.jails), Arc::clone(&self.record));
        let (own, of) = (ids.clone(), session_id.clone());
        let mut furnishing = Unfurnished { jails: Arc::clone(&jails), ids: own, session_id: of };
        let session = Some(furnishing.open().await?);
        let custom = Arc::new(CustomTools::default());
        let replaced = false;
        Ok(JailedTools(Tools {
            ids,
            session_id,
            jails,
            record,
            custom,
            session,
            furnishing,
            replaced,
        }))
    }

    /// Drains when the audit log cannot be written or the launcher is gone.
    pub fn unusable(&self) -> ShutdownWatch {
        self.unusable.clone()
    }

    pub fn observe(&self, ids: &Ids, progress: &Progress<'_>) {
        self.record.observe(ids, progress);
    }
}

fn resolve(choice: &JailPolicy) -> Result<Policy, Error> {
    let groups = syscall_groups();
    let load = |path: &Path| read_policy_file(path);
    let resolver = Resolver { groups: &groups, directories: &choice.directories, load: &load };
    let policy = resolver.resolve(&choice.policy).and_then(timely);
    let policy = policy
        .map_err(|error| Error::because(ErrorKind::Settings, "cannot use the policy", error))?;
    if !policy.stage.rules.is_empty() {
        // Sessions would run without input that they are meant to have.
        let text = "cannot use the policy: it stages input, which only the program `worker` does";
        return Err(Error::new(ErrorKind::Settings, text));
    }
    Ok(policy)
}

/// Jails with nothing in them but what the policy says: no skills, no staged input, no memory stores.
struct Unfurnished {
    jails: Arc<Jails>,
    ids: AuditIds,
    session_id: String,
}

impl Supply for Unfurnished {
    async fn open(&mut self) -> Result<Session, OpenError> {
        let held = self.jails.hold(&self.ids, &self.session_id, &Needs::default()).await;
        let held = held.map_err(|error| no_jail(&error))?;
        held.take().ok_or_else(|| no_jail(&JailError::Audit))
    }
}

/// The tools of one session in its jail.
pub(super) struct JailedTools(Tools<Unfurnished>);

impl JailedTools {
    pub async fn run(&mut self, call: &Call, stop: CancelToken) -> CallOutcome {
        self.0.run(call, stop).await
    }

    pub async fn close(self) {
        let Tools { ids, session_id, jails, session, .. } = self.0;
        if let Some(session) = session {
            jails.close(&ids, &session_id, session, Needs::default(), false).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_stages_input_is_refused_and_the_same_one_without_it_is_not() {
        let at = tempfile::TempDir::new().expect("a directory");
        let plain = "schema = 1\nextends = \"default\"\n";
        let stage = "[[stage]]\nname = \"case\"\nkind = \"https\"\nto = \"case.csv\"\n\
                     from = \"metadata:input\"\nsha256 = \"metadata:sum\"\n\
                     allow = [\"https://data.example.com/inputs/\"]\n";
        let choice = |text: &str| {
            let file = at.path().join("intake.toml");
            std::fs::write(&file, text).expect("written");
            JailPolicy::new(file.display().to_string(), at.path().join("audit.jsonl"))
        };
        let refused = resolve(&choice(&[plain, stage].concat())).expect_err("a refusal");
        assert_eq!(refused.kind(), ErrorKind::Settings);
        assert!(refused.to_string().contains("it stages input"), "{refused}");
        resolve(&choice(plain)).expect("a policy");
    }
}
