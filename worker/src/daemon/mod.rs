//! `worker poll`, `worker run` and `worker serve`: serve the sessions of an environment, each in its own
//! jail, or have a script serve them.
//!
//! They differ in what was opened for them ([`Opened`]) and so in what drives the queue (`driven`);
//! everything else is the same. A work item goes this way: `queue` polls, acks and keeps its lease; [`Daemon::open`] has `jails`
//! make a jail and record it; calls go through `tools` to the jail's executor; [`Daemon::close`] ends
//! the jail, or keeps it for a while. `admission` says when a further item may be claimed, `signals`
//! when to stop, `record` writes the audit log before each effect. With `--on-work` there are no jails:
//! `scripts` takes the place of `jails` and `tools`.

mod admission;
pub mod custom;
mod driven;
mod egress;
pub mod furnish;
mod ground;
mod held;
pub mod jailer;
pub mod jails;
mod memory;
pub mod needs;
pub mod opened;
mod prepare;
pub mod record;
pub mod rooms;
mod scripts;
mod signals;
mod skills;
pub mod stage;
pub mod tools;
mod unnamed;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stockade_runtime::host::Level;
use stockade_runtime::jail::{self, Launcher};

use crate::cli::start::Ready;
use crate::exit::Exit;
use crate::explain;
use crate::queue::{
    EnvironmentKey, Host, Ids, ItemEnd, OpenError, Opening, Owner, Progress, Shutdown,
    ShutdownWatch,
};
use crate::settings::Settings;

use admission::{Admission, Slot};
use furnish::Furnisher;
use ground::Ground;
use jailer::{JailOptions, Jailer};
pub use opened::Opened;
use record::Record;
use stage::Secrets;
use tools::Tools;

/// Threads for sessions and requests; leases have one of their own, and what blocks another.
const THREADS: usize = 2;

/// The product around the queue.
struct Daemon {
    admission: Admission,
    furnisher: Furnisher,
    shutdown: ShutdownWatch,
}

impl Host for Daemon {
    type Tools = Tools;
    type Permit = Slot;

    fn owner(&self) -> Owner {
        let custom = Arc::clone(&self.furnisher.custom);
        Box::new(move |name, kind| custom.owns(name, kind))
    }

    async fn admit(&self) -> Slot {
        self.admission.admit().await
    }

    async fn open(&self, opening: Opening<'_>) -> Result<Self::Tools, OpenError> {
        Tools::open(&self.furnisher, &opening, self.shutdown.clone()).await
    }

    async fn close(&self, tools: Self::Tools, how: ItemEnd) {
        tools.close(how).await;
    }

    fn observe(&self, ids: &Ids, progress: &Progress<'_>) {
        if let Progress::Acked = progress {
            self.admission.claimed();
        }
        self.furnisher.observe(ids, progress);
    }
}

/// Gives up the caller's rights and serves until shutdown, or until there is nothing more to do.
/// Without a launcher no jail is made: sessions are handed over.
///
/// Must be called with one thread, after everything that needs these rights has been opened.
///
/// # Errors
/// What nobody planned for.
pub fn run(
    settings: &Settings,
    level: Level,
    launcher: Option<Launcher>,
    ready: Ready,
) -> anyhow::Result<Exit> {
    let Some(audit) = ready.audit else { anyhow::bail!("the audit log is not open") };
    let places = match prepare::places(settings, level) {
        Ok(places) => places,
        Err(error) => {
            explain::complain(&error, Some("no other user may have a right to it"));
            return Ok(Exit::Usage);
        }
    };
    // Whatever this worker is to do: an earlier one may have staged, and been killed.
    if let Err(error) = rooms::forget(&settings.state_dir, level) {
        let text =
            format!("error: cannot remove staged input that an earlier worker left: {error}");
        explain::say(&text);
        explain::say("hint: `worker sweep` names the directory");
        return Ok(Exit::Usage);
    }
    let started = ground::started(settings, level, ready.policy.as_ref());
    let policy_sha256 = ready.policy.as_ref().map(|policy| policy.digest_hex());
    let policy_sha256 = policy_sha256.unwrap_or_default();
    let jailer = match launcher.zip(ready.policy) {
        None => None,
        Some((launcher, policy)) => {
            let options = JailOptions::of(settings, level);
            let secrets = Secrets { hidden: ready.hidden.clone(), again: ready.again };
            let prepared = Jailer::prepare(options, launcher, policy, ready.config, secrets);
            match prepared.and_then(|jailer| jailer.keeping(&ready.policy_files)) {
                Ok(jailer) => Some(jailer),
                Err(error) => {
                    explain::complain(&error, error.hint().as_deref());
                    return Ok(error.exit());
                }
            }
        }
    };
    let (shutdown, watch) = Shutdown::new();
    let shutdown = Arc::new(shutdown);
    let record = Arc::new(Record::new(audit, Arc::clone(&shutdown)));
    if jailer.is_some() {
        jailer::recover(level, &record).context("cannot remove what an earlier worker left")?;
    }
    if let Err(failure) = jail::drop_to_control_side(level) {
        explain::complain(&failure, failure.hint());
        return Ok(Exit::Isolation);
    }
    let (key, setter) = ready.key.as_ref().map(EnvironmentKey::new).transpose()?.unzip();
    drop(ready.key);
    let furnisher = jailer.map(|jailer| jailer.furnisher(&record, &shutdown));
    let (furnisher, rooms) = furnisher.transpose()?.unzip();
    let jails = furnisher.as_ref().map(|furnisher| Arc::clone(&furnisher.jails));
    let outside = furnisher.as_ref().map(|furnisher| furnisher.custom.records());
    let outside = outside.unwrap_or_default();
    let staging = furnisher.as_ref().and_then(|furnisher| furnisher.staging.clone());
    let policy_files = if level == Level::Root { ready.policy_files } else { Vec::new() };
    let reload = signals::Reload {
        source: ready.source.map(Arc::new),
        setter,
        renewal: None,
        staging,
        record: Arc::clone(&record),
        settings: settings.clone(),
        policy_files,
        jails: jails.clone(),
    };
    let (platform, hidden, metrics) = (ready.platform, ready.hidden, ready.metrics);
    let until = watch.clone();
    let ground = Ground {
        settings,
        level,
        record,
        shutdown,
        watch,
        places,
        started,
        outside,
        key,
        platform,
        hidden,
        metrics,
        policy_sha256,
        reload,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let (admission, record) = (ground.admission(), Arc::clone(&ground.record));
    let exit = match furnisher {
        Some(furnisher) => {
            let daemon = Daemon { admission, furnisher, shutdown: until };
            runtime.block_on(ground.until_end(daemon, jails.clone(), ready.opened))?
        }
        None => {
            let host = scripts::HandingOver { admission, record };
            runtime.block_on(ground.until_end(host, None, ready.opened))?
        }
    };
    // Threads that wait for a launcher which does not answer must not hold the exit up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    if let Some(jails) = jails {
        jails.end();
    }
    if let Some(rooms) = rooms.flatten() {
        rooms.leave();
    }
    Ok(exit)
}
