//! Signals of the daemon: SIGTERM and SIGINT drain, a second one or SIGQUIT cancels, SIGHUP reads
//! credentials and the policy's network rules again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use stockade_runtime::audit::{Event, Ids as AuditIds};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use super::jails::Jails;
use super::record::Record;
use super::stage::Staging;
use crate::cli::policy::{chain, read_policy, read_policy_file};
use crate::cli::start::resolve_policy;
use crate::credential::{KeyError, KeySource};
use crate::platform::Renewal;
use crate::queue::{EnvironmentKeySetter, Shutdown};
use crate::settings::Settings;

const DEADLINE: u32 = 1 << 16;
const DRAINING: u32 = 1 << 17;

/// After the drain timeout: for posting that calls were killed (SHUT-2).
const LAST_POSTS: Duration = Duration::from_secs(5);

/// What made the worker stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// No signal.
    None,
    /// A signal, and everything was finished in time.
    Drain,
    /// The drain timeout passed.
    Deadline,
    /// A second signal, or SIGQUIT.
    Signal(u8),
}

/// What has been heard so far.
#[derive(Debug, Clone)]
pub struct Heard(Arc<AtomicU32>);

impl Heard {
    /// The most urgent so far.
    pub fn urgency(&self) -> Urgency {
        match self.0.load(Ordering::Relaxed) {
            0 => Urgency::None,
            DRAINING => Urgency::Drain,
            DEADLINE => Urgency::Deadline,
            number => Urgency::Signal(number as u8),
        }
    }
}

/// What SIGHUP works with.
#[derive(Debug)]
pub struct Reload {
    /// None if the item has a token of its own.
    pub source: Option<Arc<KeySource>>,
    /// None: there is no environment key, so nothing to read.
    pub setter: Option<EnvironmentKeySetter>,
    /// Of a platform, if its credential is in files.
    pub renewal: Option<Renewal>,
    /// None where nothing is staged.
    pub staging: Option<Arc<Staging>>,
    pub record: Arc<Record>,
    pub settings: Settings,
    /// Files of the policy that the launcher opens, because this process may not have the right to.
    pub policy_files: Vec<PathBuf>,
    /// None where sessions are handed over.
    pub jails: Option<Arc<Jails>>,
}

struct Listener {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
}

/// Listens from now on; returns what is heard.
///
/// # Errors
/// If the signals cannot be caught.
pub fn listen(
    shutdown: Arc<Shutdown>,
    drain_timeout: Duration,
    reload: Reload,
) -> io::Result<Heard> {
    let mut listener = Listener {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        quit: signal(SignalKind::quit())?,
        hangup: signal(SignalKind::hangup())?,
    };
    let heard = Heard(Arc::new(AtomicU32::new(0)));
    let said = Arc::clone(&heard.0);
    // In a task of its own: files and platforms may be slow, and whoever ends the worker is heard all
    // the same. What comes while it runs is one more time.
    let again = Arc::new(Notify::new());
    let asked = Arc::clone(&again);
    tokio::spawn(async move {
        loop {
            asked.notified().await;
            reload.all().await;
        }
    });
    tokio::spawn(async move {
        let mut deadline = None;
        loop {
            let passed = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let number = tokio::select! {
                _ = listener.terminate.recv() => libc_number(SignalKind::terminate()),
                _ = listener.interrupt.recv() => libc_number(SignalKind::interrupt()),
                _ = listener.quit.recv() => {
                    cancel(&shutdown, &said, libc_number(SignalKind::quit()));
                    continue;
                }
                _ = listener.hangup.recv() => {
                    again.notify_one();
                    continue;
                }
                // The queue kills at this time too, and has a moment to tell the sessions of it.
                () = passed => {
                    if said.compare_exchange(DRAINING, DEADLINE, Ordering::Relaxed, Ordering::Relaxed)
                        .is_ok()
                    {
                        tracing::warn!(
                            event = "worker.drain_timeout",
                            "the drain timeout passed, ending what still runs"
                        );
                        deadline = Some(tokio::time::Instant::now() + LAST_POSTS);
                    } else {
                        shutdown.cancel();
                        deadline = None;
                    }
                    continue;
                }
            };
            if said.compare_exchange(0, DRAINING, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                tracing::info!(
                    event = "worker.draining",
                    signal = number,
                    timeout_ms = drain_timeout.as_millis() as u64,
                    "draining: nothing new is started; a second signal ends what runs"
                );
                shutdown.drain();
                deadline = Some(tokio::time::Instant::now() + drain_timeout);
            } else {
                cancel(&shutdown, &said, number);
            }
        }
    });
    Ok(heard)
}

fn libc_number(kind: SignalKind) -> u32 {
    kind.as_raw_value().unsigned_abs()
}

fn cancel(shutdown: &Shutdown, said: &AtomicU32, number: u32) {
    tracing::warn!(event = "worker.cancelling", signal = number, "ending what runs");
    said.store(number, Ordering::Relaxed);
    shutdown.cancel();
}

impl Reload {
    /// One after the other; what cannot be read again stays as it is, and the rest is read.
    async fn all(&self) {
        reread_key(self).await;
        reread_platform(self).await;
        reread_staging(self).await;
        reread_rules(self).await;
    }

    fn recorded(&self, what: &'static str) -> bool {
        let event = Event::ConfigReloaded { what: what.into(), sha256: None };
        self.record.write(&AuditIds::default(), &event)
    }
}

/// Credentials of a platform, which are asked for before they replace the old ones.
async fn reread_platform(reload: &Reload) {
    let Some(renewal) = &reload.renewal else { return };
    match renewal.reread().await {
        Ok(()) => {
            reload.recorded("platform-credential");
            tracing::info!(
                event = "platform.reloaded",
                "the credential of the platform was read again"
            );
        }
        Err(error) => tracing::error!(
            event = "platform.not_reloaded",
            error = chain(&error),
            "the credential of the platform was not read again; the old one stays in use"
        ),
    }
}

/// Credentials of staged input; all of them or none.
async fn reread_staging(reload: &Reload) {
    let Some(staging) = &reload.staging else { return };
    match staging.reread().await {
        None => {}
        Some(Ok(())) => {
            reload.recorded("stage-credentials");
            tracing::info!(event = "stage.reloaded", "credentials of staged input were read again");
        }
        Some(Err(error)) => tracing::error!(
            event = "stage.not_reloaded",
            error = chain(&error),
            "credentials of staged input were not read again; the old ones stay in use"
        ),
    }
}

/// The old key stays in use if the new one cannot be read.
async fn reread_key(reload: &Reload) {
    let (Some(setter), Some(source)) = (&reload.setter, &reload.source) else { return };
    let source = Arc::clone(source);
    let read = tokio::task::spawn_blocking(move || source.reread()).await;
    let outcome = match read {
        // There is no file to read: only the rules can have changed.
        Ok(Err(KeyError::Fixed)) => return,
        Ok(Ok(key)) => setter.replace(&key).map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match outcome {
        Ok(()) => {
            reload.recorded("environment-key");
            tracing::info!(event = "key.reloaded", "the environment key was read again");
        }
        Err(error) => tracing::error!(
            event = "key.not_reloaded",
            error,
            "the environment key was not read again; the old one stays in use"
        ),
    }
}

/// The old rules stay in force if the new ones cannot be read.
async fn reread_rules(reload: &Reload) {
    let Some(jails) = reload.jails.clone() else { return };
    let (settings, files) = (reload.settings.clone(), reload.policy_files.clone());
    let opener = Arc::clone(&jails);
    let read = tokio::task::spawn_blocking(move || {
        let load = |path: &Path| match files.iter().position(|file| file == path) {
            Some(index) => read_policy(opener.reopen(index)?.into()),
            None => read_policy_file(path),
        };
        resolve_policy(&settings, &load).map_err(|error| chain(&error))
    });
    let policy = match read.await.map_err(|error| error.to_string()).and_then(|read| read) {
        Ok(policy) => policy,
        Err(error) => {
            tracing::error!(
                event = "policy.not_reloaded",
                error,
                "the policy was not read again; its old network rules stay in force"
            );
            return;
        }
    };
    let sha256 = Some(policy.digest().into());
    let event = Event::ConfigReloaded { what: "network-rules".into(), sha256 };
    // Written before the effect: without the record the old rules stay.
    if !reload.record.write(&AuditIds::default(), &event) {
        return;
    }
    if jails.replace_rules(&policy).await {
        tracing::warn!(
            event = "policy.partly_reloaded",
            "the policy differs in more than network rules: the rest waits for a restart"
        );
    }
    tracing::info!(event = "policy.reloaded", "the policy's network rules were read again");
}
