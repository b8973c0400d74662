//! Staging as a step of the daemon: prepared while the worker has its rights, recorded before each
//! effect, and done once for each jail.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use stockade_runtime::audit::{Event, Ids as AuditIds, Text};
use stockade_runtime::host::Level;
use stockade_runtime::jail;
use stockade_runtime::policy::stage::StageKind;
use stockade_runtime::policy::{Policy, Storage};
use stockade_runtime::session::{
    Executables, Place, Porter, PorterError, Replace, Session, Unpack, Wrapper,
};

use super::prepare::name_of;
use super::record::Record;
use super::unnamed::without_names;
use crate::config::Config;
use crate::credential::hidden::HiddenVariables;
use crate::exit::Exit;
use crate::explain;
use crate::queue::{OpenError, Opening};
use crate::settings::Settings;
use crate::stage::{
    Destination, Fault, Git, LayError, Prepared, Room, Roots, StageError, Stager, Told, metadata,
};

/// Most sessions whose jails are remembered; what is forgotten is staged once more.
const SESSIONS_MAX: usize = 4096;

/// Directories that staging uses, made while the worker has its rights.
#[derive(Debug)]
pub struct Rooms(Vec<PathBuf>);

/// What a policy with rules `[[stage]]` needs, opened; `None` where it has none.
///
/// # Errors
/// The exit code of what was printed.
pub fn prepare(
    settings: &Settings,
    level: Level,
    policy: &Policy,
    config: &Config,
    hidden: &HiddenVariables,
) -> Result<Option<(Prepared, Rooms)>, Exit> {
    let keys = config.stage.load(&|name| hidden.get(name).cloned()).map_err(|error| {
        explain::complain(&error, Some("its file belongs to root or you, with mode 600"));
        Exit::Refused
    })?;
    if policy.stage.rules.is_empty() {
        return Ok(None);
    }
    let usage = |error: &dyn std::error::Error, hint: &str| {
        explain::complain(error, Some(hint));
        Exit::Usage
    };
    let roots = Roots::open(policy).map_err(|error| usage(&error, "name a directory"))?;
    let git = policy.stage.rules.iter().any(|rule| matches!(rule.kind, StageKind::Git { .. }));
    let git = git.then(|| Git::find(config.stage.git.as_deref())).transpose().map_err(|error| {
        usage(&error, "install git, or name it in the configuration: `stage.git`")
    })?;
    let (rooms, room) = rooms(settings, level, policy).map_err(|error| {
        explain::say(&format!("error: {error:#}"));
        Exit::Usage
    })?;
    Ok(Some((Prepared { room, roots, git, keys }, rooms)))
}

/// In memory, unless sessions have their workspaces on a disk: no input rests where the workspace
/// itself would not.
fn rooms(settings: &Settings, level: Level, policy: &Policy) -> anyhow::Result<(Rooms, Room)> {
    let memory = match level {
        Level::Root => PathBuf::from("/run/stockade-staging"),
        Level::Rootless => {
            let memory = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            let memory = memory.filter(|path| path.is_absolute());
            memory.unwrap_or_else(|| settings.state_dir.clone()).join("stockade-staging")
        }
    };
    let scratch = memory.join(name_of(&settings.state_dir));
    let files = match policy.filesystem.workspace_storage.value {
        Storage::Memory => scratch.clone(),
        Storage::Disk => settings.state_dir.join("staging"),
    };
    for path in [&memory, &scratch, &files] {
        jail::control_side_directory(path, level)
            .with_context(|| format!("cannot use {} for staging", path.display()))?;
    }
    empty(&scratch).context("cannot remove what an earlier worker left")?;
    let room = Room::open(&files, &scratch).context("cannot open a directory for staging")?;
    let mut made = vec![scratch.clone(), memory];
    if files != scratch {
        made.push(files);
    }
    Ok((Rooms(made), room))
}

/// Repositories of a worker that was killed.
fn empty(directory: &Path) -> std::io::Result<()> {
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
    record: Arc<Record>,
    /// The jail in which each session's input was laid.
    laid: Mutex<HashMap<String, String>>,
}

impl Staging {
    /// For `policy`, with what was prepared.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(
        settings: &Settings,
        policy: &Policy,
        prepared: Prepared,
        record: Arc<Record>,
    ) -> anyhow::Result<Staging> {
        let stager = Stager::new(policy, prepared, settings.ca_file.as_deref())?;
        Ok(Staging { stager, record, laid: Mutex::default() })
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
