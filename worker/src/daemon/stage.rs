//! Staging as a step of the daemon: prepared while the worker has its rights, recorded before each
//! effect, and done once for each jail.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use stockade_runtime::audit::{Event, Ids as AuditIds, Text};
use stockade_runtime::host::Level;
use stockade_runtime::policy::Policy;
use stockade_runtime::policy::stage::StageKind;
use stockade_runtime::session::{
    Executables, Place, Porter, PorterError, Refusal, Replace, Session, Unpack, Wrapper,
};

use super::record::Record;
use super::rooms::Rooms;
use crate::config::Config;
use crate::credential::hidden::HiddenVariables;
use crate::exit::Exit;
use crate::explain;
use crate::queue::{OpenError, Opening};
use crate::settings::Settings;
use crate::stage::{
    Budget, Destination, Fault, Git, LayError, Prepared, Roots, StageError, Stager, Told,
    git_starter, metadata,
};

/// Most sessions whose jails are remembered; what is forgotten is staged once more.
const SESSIONS_MAX: usize = 4096;

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
    // As root, the control side will be somebody else by then.
    if git.is_some() && level == Level::Root && !git_starter::for_everybody().unwrap_or(false) {
        explain::say(
            "error: cannot start git within its bounds: this program is not for everybody",
        );
        explain::say("hint: make the file of `worker` executable by everybody (mode 755)");
        return Err(Exit::Usage);
    }
    let budget = Budget::new(config.stage.fetch_size, policy)
        .map_err(|error| usage(&error, error.hint()))?;
    let (rooms, room) = Rooms::open(settings, level, policy).map_err(|error| {
        explain::say(&format!("error: {error:#}"));
        Exit::Usage
    })?;
    Ok(Some((Prepared { room, roots, git, keys, budget }, rooms)))
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
            std::io::Error::from_raw_os_error(*errno).to_string()
        }
        PorterError::Refused { reason: Refusal::Exists { .. } } => "something is there".to_owned(),
        other => other.to_string(),
    };
    LayError { reason }
}
