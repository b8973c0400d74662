//! What is needed to make jails, prepared with the rights of whoever started the worker.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use stockade_runtime::audit::{Event, Ids as AuditIds, List};
use stockade_runtime::egress::Broker;
use stockade_runtime::host::Level;
use stockade_runtime::jail::{self, Launcher};
use stockade_runtime::policy::Policy;

use super::custom::CustomTools;
use super::furnish::Furnisher;
use super::jails::{Jails, Template};
use super::memory::Memories;
use super::record::Record;
use super::rooms::Rooms;
use super::skills::SkillsOfAll;
use super::stage::{self, Staging};
use crate::config::{Config, custom_tool};
use crate::credential::hidden::HiddenVariables;
use crate::exit::Exit;
use crate::explain;
use crate::queue::{Shutdown, ShutdownWatch};
use crate::settings::Settings;
use crate::stage::Prepared;
use crate::sweep::run_directory;

/// Everything that jails are made from.
pub struct Jailer {
    template: Template,
    launcher: Launcher,
    policy: Policy,
    config: Config,
    staging: Option<(Prepared, Rooms)>,
    custom: Arc<CustomTools>,
}

impl Jailer {
    /// Starts what starts custom tools on the host, looks at the host, and has the launcher keep the
    /// policy's files for SIGHUP. To be called with one thread.
    ///
    /// # Errors
    /// What nobody planned for; the inner one is the exit code of what was printed.
    pub fn prepare(
        settings: &Settings,
        level: Level,
        mut launcher: Launcher,
        policy: Policy,
        policy_files: &[PathBuf],
        config: Config,
        hidden: &HiddenVariables,
    ) -> anyhow::Result<Result<Jailer, Exit>> {
        let custom = custom_tool::check(&config.custom_tool).map_err(|mistake| {
            anyhow::anyhow!("the configuration was checked before: {}", mistake.reason)
        })?;
        let custom = match CustomTools::start(custom, level) {
            Ok(custom) => Arc::new(custom),
            Err(error) => {
                explain::complain(&error, error.hint());
                return Ok(Err(Exit::Policy));
            }
        };
        let template = match template(settings, level, &policy)? {
            Ok(template) => Template { custom: custom.in_jails(), ..template },
            Err(exit) => return Ok(Err(exit)),
        };
        let staging = match stage::prepare(settings, level, &policy, &config, hidden) {
            Ok(staging) => staging,
            Err(exit) => return Ok(Err(exit)),
        };
        if level == Level::Root {
            let absolute =
                |file: &PathBuf| std::path::absolute(file).unwrap_or_else(|_| file.clone());
            let files: Vec<PathBuf> = policy_files.iter().map(absolute).collect();
            launcher.keep(&files).context("cannot reach the launcher")?;
        }
        Ok(Ok(Jailer { template, launcher, policy, config, staging, custom }))
    }

    /// The source of furnished jails, and what is to be left when no jail is wanted any more; starts
    /// the broker.
    ///
    /// # Errors
    /// If the broker cannot be started, or TLS not be set up.
    pub fn furnisher(
        self,
        settings: &Settings,
        record: &Arc<Record>,
        shutdown: &Arc<Shutdown>,
        watch: &ShutdownWatch,
    ) -> anyhow::Result<(Furnisher, Option<Rooms>)> {
        let broker = Broker::start().context("cannot start the broker")?;
        let (staging, rooms) = match self.staging {
            Some((prepared, rooms)) => {
                let record = Arc::clone(record);
                let staging = Staging::new(settings, &self.policy, prepared, record)?;
                (Some(Arc::new(staging)), Some(rooms))
            }
            None => (None, None),
        };
        let skills = Arc::new(SkillsOfAll::new(self.config.skills));
        let workdir = self.template.session_workdir();
        let memories =
            Memories::new(self.config.memory, workdir, Arc::clone(record), watch.clone());
        let (template, policy, launcher) = (self.template, self.policy, self.launcher);
        let (record, shutdown) = (Arc::clone(record), Arc::clone(shutdown));
        let jails = Jails::new(template, policy, launcher, broker, Arc::clone(&record), shutdown);
        let (jails, memories, custom) = (Arc::new(jails), Arc::new(memories), self.custom);
        Ok((Furnisher { jails, record, skills, staging, memories, custom }, rooms))
    }
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
