//! What is needed to make jails, prepared with the rights of whoever started the worker.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use stockade_runtime::audit::{Event, Ids as AuditIds, List};
use stockade_runtime::egress::Broker;
use stockade_runtime::host::{HostFacts, Level};
use stockade_runtime::jail::{self, BoundError, Launcher};
use stockade_runtime::policy::Policy;
use stockade_runtime::spec::SpecError;

use super::custom::{CustomTools, CustomToolsError};
use super::furnish::Furnisher;
use super::jails::{Jails, Template};
use super::memory::Memories;
use super::record::Record;
use super::rooms::Rooms;
use super::skills::SkillsOfAll;
use super::stage::{self, Kept, Secrets, SetupError, Staging};
use crate::config::Config;
use crate::credential::hidden;
use crate::exit::Exit;
use crate::queue::Shutdown;
use crate::settings::Settings;
use crate::stage::{Prepared, git_starter};
use crate::sweep::run_directory;

/// What is said about jails beside the policy and the configuration.
#[derive(Debug)]
pub struct JailOptions {
    pub level: Level,
    /// The directory that sessions see as their workspace.
    pub workdir: Option<PathBuf>,
    /// Where each session gets a directory of its own for outputs.
    pub outputs: Option<PathBuf>,
    /// Most jails that are kept.
    pub retained_max: usize,
    /// Tells workers of this host apart, and is below what staging keeps on a disk; absolute.
    pub state_dir: PathBuf,
    /// Certificate authorities that staging trusts besides the system's.
    pub ca_file: Option<PathBuf>,
    /// The step at which jails stop (crash tests).
    pub halt_at: Option<String>,
}

impl JailOptions {
    /// Those of a worker.
    pub fn of(settings: &Settings, level: Level) -> JailOptions {
        JailOptions {
            level,
            workdir: settings.workdir.clone(),
            outputs: settings.outputs_dir.clone(),
            retained_max: settings.max_sessions as usize,
            state_dir: settings.state_dir.clone(),
            ca_file: settings.ca_file.clone(),
            halt_at: settings.halt_at.clone(),
        }
    }
}

/// Why no jail will be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// Tools on the host cannot be limited as the policy wants sessions to be.
    #[error(transparent)]
    Limits(#[from] SpecError),
    #[error(transparent)]
    Custom(#[from] CustomToolsError),
    #[error("cannot look at this host")]
    Host { source: io::Error },
    #[error(transparent)]
    Directory(#[from] BoundError),
    #[error(transparent)]
    Staging(#[from] SetupError),
    #[error("cannot reach the launcher")]
    Launcher { source: io::Error },
}

impl PrepareError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            PrepareError::Limits(error) => Some(error.hint()),
            PrepareError::Custom(error) => error.hint().map(str::to_owned),
            PrepareError::Directory(error) => Some(error.hint().to_owned()),
            PrepareError::Staging(error) => error.hint().map(str::to_owned),
            _ => None,
        }
    }

    /// The exit code that says the same.
    pub fn exit(&self) -> Exit {
        match self {
            PrepareError::Limits(_) => Exit::Isolation,
            PrepareError::Custom(_) => Exit::Policy,
            PrepareError::Directory(_) => Exit::Usage,
            PrepareError::Staging(error) => error.exit(),
            _ => Exit::Unexpected,
        }
    }
}

/// Everything that jails are made from.
pub struct Jailer {
    options: JailOptions,
    template: Template,
    launcher: Launcher,
    policy: Policy,
    config: Config,
    staging: Option<(Prepared, Kept, Rooms)>,
    custom: Arc<CustomTools>,
}

impl Jailer {
    /// Starts what starts custom tools on the host, and looks at the host. To be called with one
    /// thread. `secrets` has the credentials of staging.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub fn prepare(
        options: JailOptions,
        launcher: Launcher,
        policy: Policy,
        config: Config,
        secrets: Secrets,
    ) -> Result<Jailer, PrepareError> {
        let template = template(&options, &policy)?;
        let custom = Arc::new(custom_tools(&config, &policy, &template.facts)?);
        let outside = custom.any_outside();
        let template = Template { custom: custom.in_jails(), outside, ..template };
        let staging = stage::prepare(&options, &policy, &config, secrets)?;
        Ok(Jailer { options, template, launcher, policy, config, staging, custom })
    }

    /// Has the launcher keep the policy's files for SIGHUP, by a worker that gives its rights up.
    ///
    /// # Errors
    /// [`PrepareError::Launcher`].
    pub fn keeping(mut self, policy_files: &[PathBuf]) -> Result<Jailer, PrepareError> {
        if self.options.level == Level::Root {
            // The control side will be somebody else when it starts git.
            let git = self.staging.as_ref().is_some_and(|(prepared, ..)| prepared.git.is_some());
            if git && !git_starter::for_everybody().unwrap_or(false) {
                return Err(SetupError::Starter.into());
            }
            let absolute =
                |file: &PathBuf| std::path::absolute(file).unwrap_or_else(|_| file.clone());
            let files: Vec<PathBuf> = policy_files.iter().map(absolute).collect();
            self.launcher.keep(&files).map_err(|source| PrepareError::Launcher { source })?;
        }
        Ok(self)
    }

    /// The source of furnished jails, and what is to be left when no jail is wanted any more; starts
    /// the broker.
    ///
    /// # Errors
    /// If the broker cannot be started, or TLS not be set up.
    pub fn furnisher(
        self,
        record: &Arc<Record>,
        shutdown: &Arc<Shutdown>,
    ) -> anyhow::Result<(Furnisher, Option<Rooms>)> {
        let broker = Broker::start().context("cannot start the broker")?;
        let (staging, rooms) = match self.staging {
            Some((prepared, kept, rooms)) => {
                let (ca_file, record) = (self.options.ca_file.as_deref(), Arc::clone(record));
                let staging = Staging::new(ca_file, &self.policy, prepared, kept, record)?;
                (Some(Arc::new(staging)), Some(rooms))
            }
            None => (None, None),
        };
        let skills = Arc::new(SkillsOfAll::new(self.config.skills));
        let workdir = self.template.session_workdir();
        let memories = Memories::new(self.config.memory, workdir, Arc::clone(record));
        let (template, policy, launcher) = (self.template, self.policy, self.launcher);
        let (record, shutdown) = (Arc::clone(record), Arc::clone(shutdown));
        let jails = Jails::new(template, policy, launcher, broker, Arc::clone(&record), shutdown);
        let (jails, memories, custom) = (Arc::new(jails), Arc::new(memories), self.custom);
        Ok((Furnisher { jails, record, skills, staging, memories, custom }, rooms))
    }
}

/// Starts what starts tools on the host; refuses those that cannot be limited as the policy wants
/// sessions to be.
fn custom_tools(
    config: &Config,
    policy: &Policy,
    facts: &HostFacts,
) -> Result<CustomTools, PrepareError> {
    let limits = config.limits_outside(policy, facts)?.unwrap_or_default();
    Ok(CustomTools::start(config.tools.clone(), facts.level, &limits)?)
}

/// Looks at the host and at the directories that sessions may change.
fn template(options: &JailOptions, policy: &Policy) -> Result<Template, PrepareError> {
    let facts = jail::probe_host(options.level).map_err(|source| PrepareError::Host { source })?;
    let inspect = |path: &Path, what: &str| jail::inspect(path, what);
    let workdir = options.workdir.as_deref().map(|path| inspect(path, "the working directory"));
    let outputs = options.outputs.as_deref().map(|path| inspect(path, "the outputs"));
    let writable = policy.filesystem.writable.iter();
    let writable = writable.map(|path| inspect(&path.value, "a writable path of the policy"));
    Ok(Template {
        facts,
        run_directory: run_directory(),
        workdir: workdir.transpose()?,
        outputs: outputs.transpose()?,
        writable: writable.collect::<Result<_, _>>()?,
        custom: Vec::new(),
        outside: false,
        environment: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| !hidden::is_secret(name))
            .collect(),
        retained_max: options.retained_max,
        halt_at: options.halt_at.clone(),
    })
}

/// Finishes the disposal of what a killed worker left, before the first claim (INV-10).
pub fn recover(level: Level, record: &Record) -> anyhow::Result<()> {
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
