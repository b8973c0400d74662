//! How `worker poll`, `worker run` and `worker serve` start: what is checked before anything is claimed.
//!
//! In this order, because each step must not see what the next one brings: [`before_launcher`]
//! (no credential, no policy, no thread), then the launcher is split off, then [`after_launcher`]
//! (with the rights of whoever started the worker), then these rights are given up.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::process::DumpableBehavior;
use secrecy::SecretString;
use stockade_runtime::audit::{AuditError, AuditLog};
use stockade_runtime::host::{HostFacts, Level};
use stockade_runtime::jail::Launcher;
use stockade_runtime::policy::{Policy, PolicyError, Resolver};

use super::{check, policy, syscall_groups};
use crate::config::{self, Config};
use crate::credential::variable::{self, EmptyKey};
use crate::credential::{self, KeyError, KeySource};
use crate::daemon::{self, Opened};
use crate::exit::Exit;
use crate::explain;
use crate::settings::{Mode, Refusal, Settings, Surroundings};

/// Everything that can be refused by looking at arguments and environment. If the key is in the
/// environment, executes this program anew without it, so nothing may be open yet.
///
/// # Errors
/// The exit code of what was printed.
fn before_launcher(
    empty_key: EmptyKey,
    read: impl Fn(&Surroundings) -> Result<Settings, Refusal>,
) -> anyhow::Result<Result<(Settings, Level), Exit>> {
    let checked = credential::refuse_organization_keys(|name| std::env::var_os(name))
        .and_then(|()| variable::hide(empty_key));
    if let Err(error) = checked {
        return Ok(Err(complain_key(&error)));
    }
    let level = HostFacts::level_here().context("cannot look at this process")?;
    let surroundings = Surroundings::here(level);
    Ok(read(&surroundings).map(|settings| (settings, level)).map_err(|refusal| {
        let Refusal { text, hint } = refusal;
        explain::say(&format!("error: {text}"));
        explain::say(&format!("hint: {hint}"));
        Exit::Usage
    }))
}

/// What a worker has before it gives up the rights of whoever started it.
#[derive(Debug)]
pub struct Ready {
    /// The policy for sessions; none if they are handed over.
    pub policy: Option<Policy>,
    /// The files it was read from, as they were named.
    pub policy_files: Vec<PathBuf>,
    /// The configuration file; the defaults if there is none.
    pub config: Config,
    /// Where the key comes from, with its reader started; none if the item has a token (AUTH-4).
    pub source: Option<KeySource>,
    /// The key.
    pub key: Option<SecretString>,
    /// What only this way of driving a worker needs.
    pub opened: Opened,
    /// The audit log; `None` only for `--check`, if there is none yet or a worker has it.
    pub audit: Option<AuditLog>,
}

/// Reads the policy that the settings name, each of its files by `load`.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn resolve_policy(
    settings: &Settings,
    load: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Policy, PolicyError> {
    let groups = syscall_groups();
    let resolver = Resolver { groups: &groups, directories: &settings.policy_directories, load };
    resolver.resolve(&settings.policy).and_then(policy::timely)
}

/// Reads policy and key, starts the key reader, opens the audit log.
///
/// # Errors
/// The exit code of what was printed.
pub fn after_launcher(settings: &Settings, level: Level) -> Result<Ready, Exit> {
    let files = RefCell::new(Vec::new());
    let load = |path: &Path| {
        let text = policy::read_policy_file(path)?;
        files.borrow_mut().push(path.to_owned());
        Ok(text)
    };
    let policy = (!settings.mode.hands_over()).then(|| resolve_policy(settings, &load));
    let policy = policy.transpose().map_err(|error| {
        // Nobody to tell is no reason to go on.
        let _unheard = policy::complain(&mut io::stderr(), &error);
        Exit::Policy
    })?;
    let config = settings.config.as_deref().map(config::load).transpose().map_err(|error| {
        explain::complain(&error, Some("docs/poll.md lists what it may hold"));
        Exit::Policy
    })?;
    // AUTH-10. Not earlier: without root the launcher could not map its ids.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|errno| {
        explain::say(&format!("error: cannot become undumpable: {errno}"));
        Exit::Unexpected
    })?;
    let opened = Opened::open(&settings.mode, settings.check)?;
    let has_token = matches!(&opened, Opened::Item(item) if item.has_token());
    let key = match find_key(settings, level) {
        Err(KeyError::Missing) if has_token => None,
        found => Some(found.map_err(|error| complain_key(&error))?),
    };
    variable::forget_others(&[]).map_err(|error| complain_key(&error))?;
    let (source, key) = key.unzip();
    // Not earlier: what it starts with must not have a descriptor of a secret.
    let opened = opened.start(settings).map_err(|error| {
        explain::complain(&error, None);
        Exit::Unexpected
    })?;
    let audit = open_audit(settings)?;
    Ok(Ready {
        policy,
        policy_files: files.into_inner(),
        config: config.unwrap_or_default(),
        source,
        key,
        opened,
        audit,
    })
}

fn find_key(settings: &Settings, level: Level) -> Result<(KeySource, SecretString), KeyError> {
    let file = settings.environment_key_file.as_deref();
    let mut source = KeySource::find(file, settings.credentials_directory.as_deref())?;
    let key = source.read()?;
    source.start_reader(level)?;
    Ok((source, key))
}

/// None only for `--check`.
fn open_audit(settings: &Settings) -> Result<Option<AuditLog>, Exit> {
    let opened = if settings.check && !settings.audit_file.exists() {
        // Only looked at: an empty log would not verify.
        AuditLog::could_begin(&settings.audit_file).map(|()| None)
    } else {
        AuditLog::open(&settings.audit_file).map(Some)
    };
    match opened {
        Ok(log) => Ok(log),
        Err(AuditError::Locked { .. }) if settings.check => Ok(None),
        Err(error) => {
            explain::complain(&error, Some(error.hint()));
            Err(Exit::Evidence)
        }
    }
}

/// Says what is wrong with a credential.
pub fn complain_key(error: &KeyError) -> Exit {
    explain::complain(error, Some(&error.hint()));
    error.exit()
}

/// Starts a worker with the settings that `read` makes of its arguments.
pub fn run(
    empty_key: EmptyKey,
    read: impl Fn(&Surroundings) -> Result<Settings, Refusal>,
) -> anyhow::Result<Exit> {
    let (settings, level) = match before_launcher(empty_key, read)? {
        Ok(checked) => checked,
        Err(exit) => return Ok(exit),
    };
    if settings.check {
        return check::check(&settings, level);
    }
    if let Mode::OnWork(_) = settings.mode {
        // No jail is made here.
        return match after_launcher(&settings, level) {
            Ok(ready) => daemon::run(&settings, level, None, ready),
            Err(exit) => Ok(exit),
        };
    }
    // Split off before a policy, a credential or a thread exists in this process.
    let launcher = match Launcher::start(level) {
        Ok(launcher) => launcher,
        Err(failure) => {
            explain::complain(&failure, failure.hint());
            return Ok(Exit::Isolation);
        }
    };
    match after_launcher(&settings, level) {
        Ok(ready) => daemon::run(&settings, level, Some(launcher), ready),
        Err(exit) => {
            launcher.wait();
            Ok(exit)
        }
    }
}
