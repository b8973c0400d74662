//! Staging as a step of the daemon: prepared while the worker has its rights, recorded before each
//! effect, and done once for each jail.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use stockade_runtime::audit::{Event, Ids as AuditIds, Text};
use stockade_runtime::policy::Policy;
use stockade_runtime::policy::stage::StageKind;
use stockade_runtime::session::{
    Executables, Place, Porter, PorterError, Replace, Session, Unpack, Wrapper,
};

use super::jailer::JailOptions;
use super::record::Record;
use super::rooms::Rooms;
use super::unnamed::without_names;
use crate::config::Config;
use crate::config::stage::{Keys, KeysError, StageConfig, open_now};
use crate::credential::Again;
use crate::credential::hidden::HiddenVariables;
use crate::exit::Exit;
use crate::queue::{OpenError, Opening};
use crate::stage::{
    Budget, BudgetError, Destination, Fault, Git, GitError, LayError, Prepared, Roots, RootsError,
    StageError, Stager, Told, metadata,
};

/// Most sessions whose jails are remembered; what is forgotten is staged once more.
const SESSIONS_MAX: usize = 4096;

/// Where credentials can be found.
#[derive(Debug)]
pub struct Secrets {
    /// Variables that this worker was started with.
    pub hidden: HiddenVariables,
    /// Reads files of them again, if there are any.
    pub again: Option<Again>,
}

/// What reads the credentials of staged input again.
#[derive(Debug)]
pub struct Kept {
    config: StageConfig,
    secrets: Secrets,
}

impl Kept {
    /// All of them as they are now; blocks.
    fn load(&self, again: &Again) -> Result<Keys, KeysError> {
        let variable = |name: &str| self.secrets.hidden.get(name).cloned();
        self.config.load(&variable, &|path| again.read(path))
    }
}

/// Why input cannot be staged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Roots(#[from] RootsError),
    #[error(transparent)]
    Git(#[from] GitError),
    #[error(transparent)]
    Budget(#[from] BudgetError),
    #[error("cannot start git within its bounds: this program is not for everybody")]
    Starter,
    #[error("{0:#}")]
    Rooms(anyhow::Error),
}

impl SetupError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            SetupError::Keys(error) => Some(error.hint()),
            SetupError::Roots(_) => Some("name a directory"),
            SetupError::Git(_) => Some("install git, or name it in the configuration: `stage.git`"),
            SetupError::Budget(error) => Some(error.hint()),
            SetupError::Starter => {
                Some("make the file of `worker` executable by everybody (mode 755)")
            }
            SetupError::Rooms(_) => None,
        }
    }

    /// The exit code that says the same.
    pub fn exit(&self) -> Exit {
        match self {
            SetupError::Keys(_) => Exit::Refused,
            _ => Exit::Usage,
        }
    }
}

/// What a policy with rules `[[stage]]` needs, opened; `None` where it has none.
///
/// # Errors
/// [`SetupError`].
pub fn prepare(
    options: &JailOptions,
    policy: &Policy,
    config: &Config,
    secrets: Secrets,
) -> Result<Option<(Prepared, Kept, Rooms)>, SetupError> {
    let variable = |name: &str| secrets.hidden.get(name).cloned();
    let keys = config.stage.load(&variable, &open_now)?;
    if policy.stage.rules.is_empty() {
        return Ok(None);
    }
    let roots = Roots::open(policy)?;
    let git = policy.stage.rules.iter().any(|rule| matches!(rule.kind, StageKind::Git { .. }));
    let git = git.then(|| Git::find(config.stage.git.as_deref())).transpose()?;
    let budget = Budget::new(config.stage.fetch_size, policy)?;
    let opened = Rooms::open(&options.state_dir, options.level, policy);
    let (rooms, room) = opened.map_err(SetupError::Rooms)?;
    let kept = Kept { config: config.stage.clone(), secrets };
    Ok(Some((Prepared { room, roots, git, keys, budget }, kept, rooms)))
}

/// Staging of all sessions.
#[derive(Debug)]
pub struct Staging {
    stager: Stager,
    kept: Arc<Kept>,
    record: Arc<Record>,
    /// The jail in which each session's input was laid.
    laid: Mutex<HashMap<String, String>>,
}

impl Staging {
    /// For `policy`, with what was prepared; `ca_file` is trusted besides the system's authorities.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(
        ca_file: Option<&Path>,
        policy: &Policy,
        prepared: Prepared,
        kept: Kept,
        record: Arc<Record>,
    ) -> anyhow::Result<Staging> {
        let stager = Stager::new(policy, prepared, ca_file)?;
        Ok(Staging { stager, kept: Arc::new(kept), record, laid: Mutex::default() })
    }

    /// Reads the files of credentials again, for everything that is fetched from now on; `None` if no
    /// credential is in a file.
    ///
    /// # Errors
    /// The first that cannot be used; the old ones stay, all of them.
    pub async fn reread(&self) -> Option<Result<(), KeysError>> {
        let again = self.kept.secrets.again.clone()?;
        if self.kept.config.kept().is_empty() {
            return None;
        }
        let kept = Arc::clone(&self.kept);
        let read = tokio::task::spawn_blocking(move || kept.load(&again)).await;
        let read = read.unwrap_or_else(|_| Err(KeysError::lost()));
        Some(read.map(|keys| self.stager.replace_keys(keys)))
    }

    async fn lay(
        &self,
        ids: &AuditIds,
        session_id: &str,
        metadata: &BTreeMap<String, String>,
        session: &Session,
    ) -> Result<(), StageError> {
        let jail = session.report().jail.clone();
        let known = |laid: &mut HashMap<String, String>| laid.get(session_id) == Some(&jail);
        if known(&mut self.laid.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }
        let told = |told: Told<'_>| self.record.write(ids, &event(&told));
        let to = Workspace(session.porter());
        self.stager.lay(session_id, metadata, &to, &told).await?;
        let mut laid = self.laid.lock().unwrap_or_else(PoisonError::into_inner);
        if laid.len() >= SESSIONS_MAX {
            laid.clear();
        }
        laid.insert(session_id.to_owned(), jail);
        Ok(())
    }
}

/// What one session has staged: its rules' metadata, for every jail that it gets.
#[derive(Debug)]
pub struct Input {
    staging: Arc<Staging>,
    metadata: BTreeMap<String, String>,
}

impl Input {
    /// Of the session that is being opened (AUTH-13, UNK-14).
    pub fn of(staging: &Arc<Staging>, opening: &Opening<'_>) -> Input {
        let metadata = metadata(&opening.session.metadata, opening.work_metadata);
        Input { staging: Arc::clone(staging), metadata }
    }

    /// Lays it into `session`'s jail, unless that jail has it.
    ///
    /// # Errors
    /// A rule that the session needs failed.
    pub async fn lay(
        &self,
        ids: &AuditIds,
        session_id: &str,
        session: &Session,
    ) -> Result<(), StageError> {
        self.staging.lay(ids, session_id, &self.metadata, session).await
    }
}

/// What a session is told that cannot run without its input.
pub fn open_error(error: &StageError) -> OpenError {
    let StageError { rule, source } = error;
    OpenError {
        for_model: format!(
            "[stage] This session's input `{rule}` is missing, so no tool was run: {}. The operator \
             finds more in the worker's log. A user interrupt or message tries again.",
            source.for_model()
        ),
        for_log: crate::cli::policy::chain(error),
    }
}

fn event(told: &Told<'_>) -> Event {
    match told {
        Told::Laying { wanted, fetched } => Event::StageLaid {
            rule: wanted.rule.name.as_str().into(),
            kind: wanted.rule.kind.name().into(),
            host: wanted.host().map(|host| Text::of(&host)),
            sha256: fetched.sha256.into(),
            bytes: fetched.bytes,
            commit: wanted.commit.as_deref().map(Into::into),
        },
        Told::Failed { rule, fault } => Event::StageFailed {
            rule: rule.name.as_str().into(),
            kind: rule.kind.name().into(),
            reason: Fault::class(fault).into(),
            required: rule.required,
        },
    }
}

/// A session's workspace, by its porter.
struct Workspace<'a>(&'a Porter);

impl Destination for Workspace<'_> {
    async fn put(
        &self,
        file: OwnedFd,
        path: &str,
        mode: u32,
        bytes_max: u64,
    ) -> Result<(), LayError> {
        let put = self.0.put(file, Place::Workspace, path, mode, bytes_max, Replace::Swap).await;
        put.map(drop).map_err(|error| refused(&error))
    }

    async fn unpack(
        &self,
        archive: OwnedFd,
        path: &str,
        entries_max: u64,
        bytes_max: u64,
    ) -> Result<(), LayError> {
        let what = Unpack {
            place: Place::Workspace,
            directory: path.to_owned(),
            wrapper: Wrapper::Keep,
            executables: Executables::AsRecorded,
            entries_max,
            bytes_max,
            replace: Replace::Swap,
        };
        let unpacked = self.0.unpack(archive, what).await;
        unpacked.map(drop).map_err(|error| refused(&error))
    }
}

/// What the porter says, without names of files: those are content (INV-12).
fn refused(error: &PorterError) -> LayError {
    let reason = match error {
        PorterError::Refused { reason } => without_names(reason),
        other => other.to_string(),
    };
    LayError { reason }
}
