//! Jails for programs that use the library: what `daemon` furnishes its own from, without its command
//! line.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stockade_runtime::audit::AuditLog;
use stockade_runtime::host::{HostFacts, Level};
use stockade_runtime::jail::Launcher;
use stockade_runtime::policy::{Policy, Resolver};

use super::error::{Error, ErrorKind};
use crate::cli::policy::{read_policy_file, timely};
use crate::cli::syscall_groups;
use crate::config::{self, Config};
use crate::credential::hidden::HiddenVariables;
use crate::daemon::furnish::Furnisher;
use crate::daemon::jailer::{self, JailOptions, Jailer, PrepareError};
use crate::daemon::record::Record;
use crate::daemon::rooms::{self, Rooms};
use crate::daemon::stage::{Secrets, SetupError};
use crate::daemon::tools::Tools;
use crate::queue::{BoxFuture, Ids, OpenError, Opening, Progress, Shutdown, ShutdownWatch};

/// Most jails of idle sessions that one toolset keeps.
const RETAINED_MAX: usize = 8;

/// What jails may do and have in them, and where it is recorded.
#[derive(Debug, Clone)]
pub struct JailPolicy {
    policy: String,
    directories: Vec<PathBuf>,
    audit_file: PathBuf,
    workdir: Option<PathBuf>,
    outputs: Option<PathBuf>,
    config_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

impl JailPolicy {
    /// A shipped policy (`default`, see `worker policy list`) or a file, and the audit log to append
    /// to. No two programs can have one log.
    ///
    /// The input that the policy's rules `[[stage]]` name is laid into each session's workspace before
    /// its first call. While it is fetched it is in memory (`/run/stockade-staging`, without root
    /// `XDG_RUNTIME_DIR`), or below the audit log's name with `.d` behind it where the policy keeps
    /// workspaces on a disk or there is no such variable.
    pub fn new(policy: impl Into<String>, audit_file: impl Into<PathBuf>) -> JailPolicy {
        JailPolicy {
            policy: policy.into(),
            directories: Vec::new(),
            audit_file: audit_file.into(),
            workdir: None,
            outputs: None,
            config_file: None,
            ca_file: None,
        }
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

    /// Keeps what sessions leave in `/mnt/session/outputs` in this directory, which exists: in one of
    /// the session's name for each [default: it goes with the jail].
    pub fn outputs_directory(self, directory: impl Into<PathBuf>) -> JailPolicy {
        JailPolicy { outputs: Some(directory.into()), ..self }
    }

    /// Reads settings of skills, memory stores and staging from a configuration file (TOML, at most
    /// 1 MiB), the same that `worker poll --config` reads. What it does not say has its default.
    ///
    /// | key | what | default | bounds |
    /// |---|---|---|---|
    /// | `skills.archive_size` | largest archive of a skill, as downloaded | 64 MiB | 1 byte to 16 GiB |
    /// | `skills.archives` | archives in memory at the same time, of all sessions | 4 | 1 to 64 |
    /// | `skills.size` | what one archive may unpack to, and all of a session | 1 GiB | 1 byte to 16 GiB |
    /// | `skills.entries` | members of one archive; a session may have ten times as many | 10,000 | 1 to 100,000 |
    /// | `skills.writable`, `skills.force_executable`, `skills.require_digest` | what sessions may do, and which skills they get | false | |
    /// | `skills.digests` | SHA-256 of archives by `SKILL_ID@VERSION_ID` | none | |
    /// | `memory.sync_interval` | time between syncs; `"off"`: sessions have no stores | 15 s | 5 s to 24 h |
    /// | `memory.deletions` | `enabled`, `log-only` or `disabled` | `enabled` | |
    /// | `memory.store_size` | one store in a jail | 256 MiB | 1 MiB to 16 GiB |
    /// | `memory.store_files` | files and directories in it | 8,192 | 16 to 100,000 |
    /// | `stage.git` | the host's git | the first of three places | |
    /// | `stage.fetch_size` | what all sessions may be fetching at the same time | 4 GiB | 64 MiB to 1 TiB |
    /// | `stage.credential`, `stage.s3` | who may read what is staged | none | 64 of each |
    ///
    /// `[[custom_tool]]` is refused: functions are a program's custom tools
    /// ([`Toolset::tool`](super::Toolset::tool)).
    pub fn config_file(self, file: impl Into<PathBuf>) -> JailPolicy {
        JailPolicy { config_file: Some(file.into()), ..self }
    }

    /// Certificate authorities (PEM) that staging trusts beside the system's. The control plane's are
    /// the matter of [`Environment::ca_file`](super::Environment::ca_file).
    pub fn ca_file(self, file: impl Into<PathBuf>) -> JailPolicy {
        JailPolicy { ca_file: Some(file.into()), ..self }
    }

    fn options(&self, level: Level) -> Result<JailOptions, Error> {
        let audit_file = std::path::absolute(&self.audit_file).map_err(|error| {
            Error::because(ErrorKind::Settings, "cannot use the audit log", error)
        })?;
        // Its own, as the log is: the log is locked.
        let mut state_dir = audit_file.into_os_string();
        state_dir.push(".d");
        Ok(JailOptions {
            level,
            workdir: self.workdir.clone(),
            outputs: self.outputs.clone(),
            retained_max: RETAINED_MAX,
            state_dir: state_dir.into(),
            ca_file: self.ca_file.clone(),
            halt_at: None,
        })
    }

    fn config(&self) -> Result<Config, Error> {
        let Some(file) = &self.config_file else { return Ok(Config::default()) };
        let config = config::load(file).map_err(|error| {
            Error::because(ErrorKind::Settings, "cannot use the configuration file", error)
        })?;
        if config.tools.is_empty() {
            return Ok(config);
        }
        let text = "cannot use the configuration file: it has [[custom_tool]], which the program \
                    `worker` serves; give the toolset a function of that name";
        Err(Error::new(ErrorKind::Settings, text))
    }
}

/// The source of jails.
pub(super) struct Jailed {
    furnisher: Furnisher,
    rooms: Option<Rooms>,
    unusable: ShutdownWatch,
}

impl std::fmt::Debug for Jailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jailed").finish_non_exhaustive()
    }
}

impl Jailed {
    pub fn start(choice: &JailPolicy) -> Result<Jailed, Error> {
        let host = |text: &'static str| move |error| Error::because(ErrorKind::Host, text, error);
        if std::fs::read_dir("/proc/self/task").map_err(host("cannot count threads"))?.count() > 1 {
            let text = "cannot split off what makes jails: this program has more than one thread";
            return Err(Error::new(ErrorKind::Settings, text));
        }
        let level = HostFacts::level_here().map_err(host("cannot look at this process"))?;
        let launcher = Launcher::start(level)
            .map_err(|error| Error::because(ErrorKind::Host, "cannot start the launcher", error))?;
        let (policy, config, options) =
            (resolve(choice)?, choice.config()?, choice.options(level)?);
        let audit = AuditLog::open(&choice.audit_file).map_err(|error| {
            Error::because(ErrorKind::Audit, "cannot open the audit log", error)
        })?;
        let (shutdown, unusable) = Shutdown::new();
        let shutdown = Arc::new(shutdown);
        let record = Arc::new(Record::new(audit, Arc::clone(&shutdown)));
        // Of an earlier program with this log, whether this one stages or not.
        rooms::forget(&options.state_dir, level)
            .map_err(host("cannot remove staged input that an earlier program left"))?;
        let secrets = Secrets { hidden: HiddenVariables::of_environment(), again: None };
        let jailer =
            Jailer::prepare(options, launcher, policy, config, secrets).map_err(unprepared)?;
        let unmade = |error: anyhow::Error| {
            Error::new(ErrorKind::Host, format!("cannot prepare jails: {error:#}"))
        };
        jailer::recover(level, &record).map_err(unmade)?;
        let (furnisher, rooms) = jailer.furnisher(&record, &shutdown).map_err(unmade)?;
        Ok(Jailed { furnisher, rooms, unusable })
    }

    /// The tools of a session, in a jail with everything in it that the session needs.
    pub async fn open(
        &self,
        opening: &Opening<'_>,
        shutdown: ShutdownWatch,
    ) -> Result<Tools, OpenError> {
        Tools::open(&self.furnisher, opening, shutdown).await
    }

    /// Does `work`, in which sessions are served: looks after jails of idle sessions meanwhile and ends
    /// what is left of them afterwards.
    pub async fn serving<T>(&self, work: BoxFuture<'_, T>) -> T {
        let jails = &self.furnisher.jails;
        let done = tokio::select! {
            done = work => done,
            never = Box::pin(jails.look_after()) => match never {},
        };
        Box::pin(jails.expire_all()).await;
        done
    }

    /// Drains when the audit log cannot be written or the launcher is gone.
    pub fn unusable(&self) -> ShutdownWatch {
        self.unusable.clone()
    }

    pub fn observe(&self, ids: &Ids, progress: &Progress<'_>) {
        self.furnisher.observe(ids, progress);
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        if let Some(rooms) = &self.rooms {
            rooms.leave();
        }
    }
}

fn resolve(choice: &JailPolicy) -> Result<Policy, Error> {
    let groups = syscall_groups();
    let load = |path: &Path| read_policy_file(path);
    let resolver = Resolver { groups: &groups, directories: &choice.directories, load: &load };
    let policy = resolver.resolve(&choice.policy).and_then(timely);
    policy.map_err(|error| Error::because(ErrorKind::Settings, "cannot use the policy", error))
}

fn unprepared(error: PrepareError) -> Error {
    let kind = match &error {
        PrepareError::Host { .. }
        | PrepareError::Launcher { .. }
        | PrepareError::Staging(SetupError::Rooms(_)) => ErrorKind::Host,
        _ => ErrorKind::Settings,
    };
    Error::because(kind, "cannot prepare jails", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_file_is_read_and_what_a_library_cannot_do_is_refused() {
        let at = tempfile::TempDir::new().expect("a directory");
        let read = |text: &str| {
            let file = at.path().join("worker.toml");
            std::fs::write(&file, text).expect("written");
            JailPolicy::new("default", at.path().join("audit.jsonl")).config_file(file).config()
        };
        let config = read("[memory]\nsync_interval = \"off\"\n").expect("valid");
        assert_eq!(config.memory.sync_interval, None);
        for (text, want) in [
            ("[memory]\nsync_interval = \"1s\"\n", "cannot use the configuration file"),
            (
                "[[custom_tool]]\nname = \"t\"\nwhere = \"jail\"\ncommand = [\"/bin/true\"]\n",
                "give the toolset a function of that name",
            ),
        ] {
            let refused = read(text).expect_err(text);
            assert_eq!(refused.kind(), ErrorKind::Settings, "{text}");
            assert!(refused.to_string().contains(want), "{text}: {refused}");
        }
    }
}
