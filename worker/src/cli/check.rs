//! `--check`: says what would be used, and that all of it can be.

use std::io::{self, Write as _};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use stockade_runtime::audit::Digest;
use stockade_runtime::host::Level;
use stockade_runtime::jail;

use super::check_config::Configured;
use super::policy::ReportFormat;
use super::start::{Ready, after_launcher, complain_key, complain_platform};
use crate::credential::{KeyError, KeySource};
use crate::exit::Exit;
use crate::explain;
use crate::settings::{Mode, Settings};

/// Says what would be used.
pub fn check(settings: &Settings, level: Level) -> anyhow::Result<Exit> {
    let mut ready = match after_launcher(settings, level) {
        Ok(ready) => ready,
        Err(exit) => return Ok(exit),
    };
    // Custom tools on the host must be limited as a session would be.
    let config = std::mem::take(&mut ready.config);
    let policy = ready.policy.clone();
    let configured = match Configured::look(settings, &config, policy.as_ref(), level)? {
        Ok(configured) => configured,
        Err(exit) => return Ok(exit),
    };
    if let Err(failure) = jail::drop_to_control_side(level) {
        explain::complain(&failure, failure.hint());
        return Ok(Exit::Isolation);
    }
    for name in &settings.headers_dropped {
        explain::say(&format!("warning: ANTHROPIC_CUSTOM_HEADERS: `{name}` is not sent"));
    }
    // What SIGHUP will do: without the rights that have just been given up.
    let again = ready.source.as_ref().map(KeySource::reread);
    if let Some(Err(error)) = &again
        && *error != KeyError::Fixed
    {
        return Ok(complain_key(error));
    }
    let again = again.is_some_and(|again| again.is_ok());
    if let Some(platform) = ready.platform.take() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        if let Err(error) = runtime.block_on(platform.start(settings.ca_file.as_deref())) {
            return Ok(complain_platform(&error));
        }
    }
    report(settings, &ready, configured.as_ref(), level, again)?;
    Ok(Exit::Success)
}

fn report(
    settings: &Settings,
    ready: &Ready,
    configured: Option<&Configured<'_>>,
    level: Level,
    reload: bool,
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let records = ready.audit.as_ref().map(|log| log.head().seq);
    if settings.format == ReportFormat::Json {
        let mut document = document(settings, ready, level, reload);
        document["config"] = configured.map(Configured::document).unwrap_or_default();
        return writeln!(out, "{document:#}");
    }
    let audit = match records {
        Some(records) => format!("{} ({records} records)", settings.audit_file.display()),
        None if settings.audit_file.exists() => {
            format!("{} (in use by a worker)", settings.audit_file.display())
        }
        None => format!("{} (to be begun)", settings.audit_file.display()),
    };
    let again = if reload { "read again on SIGHUP" } else { "fixed until a restart" };
    let key = match (&ready.source, &ready.key) {
        (Some(source), Some(key)) => {
            format!("{} from {}, {again}", fingerprint(key), source.origin())
        }
        (Some(source), None) => source.origin().to_string(),
        (None, _) => "none: the work secret has a token".to_owned(),
    };
    let policy = match &ready.policy {
        Some(policy) => format!("{} {}", policy.name, policy.digest_hex()),
        None => "none: sessions are handed over".to_owned(),
    };
    for (what, value) in [
        ("level", level.to_string()),
        ("environment", settings.environment_id.clone()),
        ("control plane", settings.base_url.to_string()),
        ("key", key),
        ("worker id", settings.worker_id.clone()),
        ("sessions", format!("{} at a time", settings.max_sessions)),
        ("policy", policy),
        ("audit log", audit),
    ] {
        writeln!(out, "{what:<14} {value}")?;
    }
    for (what, value) in configured.map(Configured::lines).unwrap_or_default() {
        writeln!(out, "{what:<14} {value}")?;
    }
    if let Some((what, value)) = of_mode(&settings.mode) {
        writeln!(out, "{what:<14} {value}")?;
    }
    Ok(())
}

/// What is particular to the command.
fn of_mode(mode: &Mode) -> Option<(&'static str, String)> {
    match mode {
        Mode::Poll => None,
        Mode::OnWork(on_work) => Some(("script", on_work.program.display().to_string())),
        Mode::Run(item) => Some(("work item", format!("{} of {}", item.work, item.session))),
        Mode::Serve(serve) => {
            let tls = if serve.tls.is_some() { "https" } else { "http" };
            Some(("webhook", format!("{tls}://{}{}", serve.listen, serve.path)))
        }
    }
}

/// Everything that would be used; of the key only where it is from and a fingerprint.
fn document(settings: &Settings, ready: &Ready, level: Level, reload: bool) -> Value {
    let header_names: Vec<&str> = settings.headers.iter().map(|(name, _)| name.as_str()).collect();
    let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    json!({
        "schema": "stockade.poll.check",
        "schema_version": 1,
        "level": level,
        "environment_id": settings.environment_id,
        "base_url": settings.base_url.to_string(),
        "ca_file": settings.ca_file,
        "worker_id": settings.worker_id,
        "workspace_id": settings.workspace_id,
        "anthropic_version": settings.anthropic_version.to_str().unwrap_or_default(),
        "custom_headers": header_names,
        "mode": settings.mode.word(),
        "policy": ready.policy.as_ref().map(|policy| json!({
            "name": policy.name, "digest": policy.digest_hex(),
        })),
        "key": ready.source.as_ref().map(|source| json!({
            "from": source.origin().to_string(),
            "fingerprint": ready.key.as_ref().map(fingerprint),
            "read_again_on_sighup": reload,
        })),
        "audit": {
            "file": settings.audit_file,
            "records": ready.audit.as_ref().map(|log| log.head().seq),
        },
        "state_dir": settings.state_dir,
        "workdir": settings.workdir,
        "outputs_dir": settings.outputs_dir,
        "max_sessions": settings.max_sessions,
        "memory_reserve_bytes": settings.memory_reserve_bytes,
        "max_idle_ms": settings.max_idle.map(milliseconds),
        "retain_ms": ready.policy.as_ref().and_then(|p| p.filesystem.retain.value.map(milliseconds)),
        "tool_timeout_ms": settings.tool_timeout.map(milliseconds),
        "drain_timeout_ms": milliseconds(settings.drain_timeout),
        "once": settings.once,
        "drain_on_empty": settings.drain_on_empty,
        "block_ms": settings.block_ms,
        "reclaim_older_than_ms": settings.reclaim_older_than_ms,
    })
}

/// Tells two keys apart and says nothing about either: 32 bits of the SHA-256 of a random value.
pub fn fingerprint(key: &SecretString) -> String {
    let mut digest = Digest::of(key.expose_secret().as_bytes()).to_string();
    digest.truncate(8);
    digest
}
