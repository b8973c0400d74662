//! How `worker poll`, `worker run` and `worker serve` start: what is checked before anything is claimed.
//!
//! In this order, because each step must not see what the next one brings: [`before_launcher`]
//! (no credential, no policy, no thread), then the launcher is split off, then [`after_launcher`]
//! (with the rights of whoever started the worker), then these rights are given up.

use std::cell::RefCell;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::process::DumpableBehavior;
use secrecy::SecretString;
use stockade_runtime::audit::{AuditError, AuditLog};
use stockade_runtime::host::{HostFacts, Level};
use stockade_runtime::jail::Launcher;
use stockade_runtime::policy::{Policy, PolicyError};

use super::serving::SessionArgs;
use super::{check, policy};
use crate::config::{self, Config};
use crate::credential::hidden::{self, EmptyKey, Hidden, HiddenVariables};
use crate::credential::{self, Again, Kept, KeyError, KeySource};
use crate::daemon::{self, Opened, opened};
use crate::exit::Exit;
use crate::explain;
use crate::listener::Bound;
use crate::platform::{self, PlatformError, Prepared};
use crate::settings::{Mode, Refusal, Settings, Surroundings};

/// Everything that can be refused by looking at arguments and environment. If a secret is in the
/// environment, executes this program anew without it, so nothing may be open yet.
///
/// # Errors
/// The exit code of what was printed.
fn before_launcher(
    empty_key: EmptyKey,
    args: &SessionArgs,
    read: impl Fn(&Surroundings) -> Result<Settings, Refusal>,
) -> anyhow::Result<Result<(Settings, Level), Exit>> {
    let checked = credential::refuse_organization_keys(|name| std::env::var_os(name))
        .and_then(|()| hidden::hide(empty_key));
    if let Err(error) = checked {
        return Ok(Err(complain_key(&error)));
    }
    let level = HostFacts::level_here().context("cannot look at this process")?;
    let surroundings = Surroundings::here(level);
    let settings = read(&surroundings)
        .and_then(|settings| platform::apply(settings, &args.platform, &around(args)));
    Ok(settings.map(|settings| (settings, level)).map_err(|refusal| {
        let Refusal { text, hint } = refusal;
        explain::say(&format!("error: {text}"));
        explain::say(&format!("hint: {hint}"));
        Exit::Usage
    }))
}

/// What a platform's settings come from. An option is told from the variable that stands for it: on a
/// platform its own variable goes first.
fn around(args: &SessionArgs) -> platform::Around<'_> {
    let arguments: Vec<_> = std::env::args_os().collect();
    let option = |name: &str| is_written(&arguments, name);
    platform::Around {
        variable: &|name| std::env::var_os(name),
        hidden: &hidden::was_set,
        base_url: args.base_url.as_deref().filter(|_| option("--base-url")),
        workspace_id: args.workspace_id.as_deref().filter(|_| option("--workspace-id")),
        insecure_http: args.insecure_http,
    }
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
    /// The key; none on a platform.
    pub key: Option<SecretString>,
    /// In its place what a platform's credential is made of.
    pub platform: Option<Prepared>,
    /// What else was secret in the environment: headers for a collector of traces.
    pub hidden: HiddenVariables,
    /// What only this way of driving a worker needs.
    pub opened: Opened,
    /// Where metrics can be had.
    pub metrics: Option<Bound>,
    /// What reads files with secrets again; none if there are no such files.
    pub again: Option<Again>,
    /// The audit log; `None` only for `--check`, if there is none yet or a worker has it.
    pub audit: Option<AuditLog>,
}

/// Whether an option with a value is on the command line, whatever the variable says that stands for it
/// (CLI-3).
fn is_written(arguments: &[OsString], option: &str) -> bool {
    let value = |argument: &OsString| {
        let rest = argument.as_bytes().strip_prefix(option.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'=')
    };
    arguments.iter().skip(1).any(value)
}

/// Reads the policy that the settings name, each of its files by `load`.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn resolve_policy(
    settings: &Settings,
    load: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Policy, PolicyError> {
    settings.policy.resolve(load)
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
        explain::complain(&error, Some(&error.hint()));
        Exit::Policy
    })?;
    let config = config.unwrap_or_default();
    tell_unused(settings, &config);
    // AUTH-10. Not earlier: without root the launcher could not map its ids.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|errno| {
        explain::say(&format!("error: cannot become undumpable: {errno}"));
        Exit::Unexpected
    })?;
    // In any case: no descriptor of it may stay open.
    let mut hidden = hidden::take().map_err(|error| complain_key(&error))?;
    let opened = Opened::open(&settings.mode, settings.check, &mut hidden)?;
    let metrics = settings.metrics_listen.filter(|_| !settings.check);
    let metrics = metrics.map(|at| opened::listen(at, None, "--metrics-listen")).transpose()?;
    let has_token = matches!(&opened, Opened::Item(item) if item.has_token());
    let mut found = find_credential(settings, has_token, &mut hidden)
        .map_err(|error| complain_platform(&error))?;
    let staged = policy.as_ref().is_some_and(|policy| !policy.stage.rules.is_empty());
    let again = found.start_reader(if staged { config.stage.kept() } else { Vec::new() }, level);
    let again = again.map_err(|error| complain_key(&error))?;
    let opened = opened.start(settings).map_err(|error| {
        explain::complain(&error, None);
        Exit::Unexpected
    })?;
    let audit = open_audit(settings)?;
    Ok(Ready {
        policy,
        policy_files: files.into_inner(),
        config,
        source: found.source,
        key: found.key,
        platform: found.platform,
        hidden: hidden.others,
        opened,
        metrics,
        again,
        audit,
    })
}

/// A file that a variable names is for the script's `worker run` as well: here it is no mistake, but
/// nothing in it takes effect.
fn tell_unused(settings: &Settings, config: &Config) {
    let Mode::OnWork(on_work) = &settings.mode else { return };
    // What the script does is known then.
    if on_work.jailed || config.sections.is_empty() {
        return;
    }
    let tables = config.sections.join(", ");
    if settings.check {
        return explain::say(&format!(
            "warning: WORKER_CONFIG: {tables}: no effect here, sessions are served by the script"
        ));
    }
    tracing::warn!(
        event = "config.unused",
        tables,
        "the file that WORKER_CONFIG names has no effect here: sessions are served by the script"
    );
}

/// The worker's standing credential, if it has one.
#[derive(Default)]
struct Found {
    source: Option<KeySource>,
    key: Option<SecretString>,
    platform: Option<Prepared>,
}

impl Found {
    /// Starts the process that can read all files of secrets again: those of the worker's credential,
    /// and `more`.
    fn start_reader(&mut self, more: Vec<Kept>, level: Level) -> Result<Option<Again>, KeyError> {
        let mut files: Vec<Kept> = self.source.iter().filter_map(KeySource::kept).collect();
        files.extend(self.platform.iter().flat_map(Prepared::kept));
        files.extend(more);
        let again = Again::start(&files, level)?;
        if let Some(source) = &mut self.source {
            source.use_reader(again.clone());
        }
        if let Some(platform) = &mut self.platform {
            platform.use_reader(again.clone());
        }
        Ok(again)
    }
}

/// Without a key only an item with a token can be served (AUTH-4); on a platform there is none (AWS-1).
fn find_credential(
    settings: &Settings,
    has_token: bool,
    hidden: &mut Hidden,
) -> Result<Found, PlatformError> {
    if let Some(aws) = &settings.platform {
        let prepared = platform::prepare(aws, &hidden.others)?;
        let source = Some(prepared.source());
        return Ok(Found { source, key: None, platform: Some(prepared) });
    }
    match find_key(settings, hidden) {
        Err(KeyError::Missing) if has_token => Ok(Found::default()),
        found => {
            let (source, key) = found?;
            Ok(Found { source: Some(source), key: Some(key), platform: None })
        }
    }
}

fn find_key(
    settings: &Settings,
    hidden: &mut Hidden,
) -> Result<(KeySource, SecretString), KeyError> {
    let file = settings.environment_key_file.as_deref();
    let source = KeySource::find(file, settings.credentials_directory.as_deref(), hidden)?;
    let key = source.read()?;
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

/// Says what is wrong with a credential of a platform.
pub fn complain_platform(error: &PlatformError) -> Exit {
    explain::complain(error, Some(&error.hint()));
    error.exit()
}

/// Starts a worker with the settings that `read` makes of its arguments, of which `args` are a part.
pub fn run(
    empty_key: EmptyKey,
    args: &SessionArgs,
    read: impl Fn(&Surroundings) -> Result<Settings, Refusal>,
) -> anyhow::Result<Exit> {
    let (settings, level) = match before_launcher(empty_key, args, read)? {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_there_also_where_it_says_what_its_variable_says() {
        // CLI-3, AWS-1.
        let arguments = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        for line in
            ["worker poll --base-url https://a.test", "worker poll --base-url=https://a.test"]
        {
            assert!(is_written(&arguments(line), "--base-url"), "{line}");
        }
        for line in
            ["worker poll", "--base-url poll", "worker poll --base-urls x", "worker poll base-url"]
        {
            assert!(!is_written(&arguments(line), "--base-url"), "{line}");
        }
    }
}
