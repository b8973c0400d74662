//! Staging as a step of the daemon: prepared while the worker has its rights, recorded before each
//! effect, and done once for each jail.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use stockade_runtime::audit::{Event, Ids as AuditIds, Text};
use stockade_runtime::host::Level;
use stockade_runtime::jail;
use stockade_runtime::policy::stage::StageKind;
use stockade_runtime::policy::{Policy, Storage};
use stockade_runtime::session::{
    Executables, Place, Porter, PorterError, Refusal, Replace, Session, Unpack, Wrapper,
};

use super::jailer::JailOptions;
use super::prepare::name_of;
use super::record::Record;
use crate::config::Config;
use crate::config::stage::{Keys, KeysError, StageConfig, open_now};
use crate::credential::Again;
use crate::credential::hidden::HiddenVariables;
use crate::exit::Exit;
use crate::queue::{OpenError, Opening};
use crate::stage::{
    Destination, Fault, Git, GitError, LayError, Prepared, Room, Roots, RootsError, StageError,
    Stager, Told, metadata,
};

/// Most sessions whose jails are remembered; what is forgotten is staged once more.
const SESSIONS_MAX: usize = 4096;

/// Directories that staging uses, made while the worker has its rights.
#[derive(Debug)]
pub struct Rooms(Vec<PathBuf>);

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
    #[error("cannot use {path} for staging")]
    Directory { path: PathBuf, source: io::Error },
}

impl SetupError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            SetupError::Keys(error) => Some(error.hint()),
            SetupError::Roots(_) => Some("name a directory"),
            SetupError::Git(_) => Some("install git, or name it in the configuration: `stage.git`"),
            SetupError::Directory { .. } => None,
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
    let (rooms, room) = rooms(options, policy)?;
    let kept = Kept { config: config.stage.clone(), secrets };
    Ok(Some((Prepared { room, roots, git, keys }, kept, rooms)))
}

/// In memory, unless sessions have their workspaces on a disk: no input rests where the workspace
/// itself would not.
fn rooms(options: &JailOptions, policy: &Policy) -> Result<(Rooms, Room), SetupError> {
    let JailOptions { level, state_dir, .. } = options;
    let memory = match level {
        Level::Root => PathBuf::from("/run/stockade-staging"),
        Level::Rootless => {
            let memory = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            let memory = memory.filter(|path| path.is_absolute());
            memory.unwrap_or_else(|| state_dir.clone()).join("stockade-staging")
        }
    };
    let scratch = memory.join(name_of(state_dir));
    let files = match policy.filesystem.workspace_storage.value {
        Storage::Memory => scratch.clone(),
        Storage::Disk => state_dir.join("staging"),
    };
    let unusable = |path: &Path| {
        let path = path.to_owned();
        move |source| SetupError::Directory { path, source }
    };
    for path in [&memory, &scratch, &files] {
        jail::control_side_directory(path, *level).map_err(unusable(path))?;
    }
    // What an earlier worker left.
    empty(&scratch).map_err(unusable(&scratch))?;
    let room = Room::open(&files, &scratch).map_err(unusable(&files))?;
    let mut made = vec![scratch.clone(), memory];
    if files != scratch {
        made.push(files);
    }
    Ok((Rooms(made), room))
}

/// Repositories of a worker that was killed.
fn empty(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(entry.path())?,
            false => std::fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

impl Rooms {
    /// Removes them at the end of a run, as far as the control side may.
    pub fn leave(&self) {
        if let Some(scratch) = self.0.first()
            && let Err(error) = empty(scratch)
        {
            tracing::warn!(event = "stage.not_removed", error = %error, "files of staging are left");
        }
        for path in &self.0 {
            // Those of other workers keep the one above.
            let _kept = std::fs::remove_dir(path);
        }
    }
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
        PorterError::Refused { reason: Refusal::Member { reason, .. } } => {
            format!("a member of the archive {reason}")
        }
        PorterError::Refused { reason: Refusal::Archive { .. } } => {
            "it is no archive that can be read".to_owned()
        }
        PorterError::Refused { reason: Refusal::Path { reason, .. } } => {
            format!("its path cannot be used: {reason}")
        }
        PorterError::Refused { reason: Refusal::System { errno, .. } } => {
            io::Error::from_raw_os_error(*errno).to_string()
        }
        PorterError::Refused { reason: Refusal::Exists { .. } } => "something is there".to_owned(),
        other => other.to_string(),
    };
    LayError { reason }
}
