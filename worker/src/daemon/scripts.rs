//! `--on-work`: the operator's script serves the sessions (protocol §9.2).
//!
//! The script starter starts it; what it is given is put together here, from the poll's answer and
//! the key as it is at that moment, and is in no log.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use secrecy::{ExposeSecret as _, SecretString};
use stockade_runtime::audit::{Event, Ids as AuditIds, Text};
use zeroize::Zeroizing;

use super::admission::{Admission, Slot};
use super::record::{Record, audit_ids};
use crate::cli::policy::chain;
use crate::queue::{
    BoxFuture, Call, CallOutcome, CancelToken, EnvironmentKey, HandOverEnd, HandedOver, Handler,
    Host, Ids, ItemEnd, Level, OpenError, Opening, Owner, Progress, SessionTools, Shutdown,
    ShutdownWatch,
};
use crate::scripts::{Link, Program};
use crate::settings::OnWork;

/// From SIGTERM to SIGKILL (ONWORK-9).
const END_MAX: Duration = Duration::from_secs(30);
/// After SIGKILL: a process that cannot even be killed is left to the kernel.
const KILL_MAX: Duration = Duration::from_secs(5);
/// Longest variable that a program can be started with is 128 KiB, execve(2).
const VARIABLE_BYTES_MAX: usize = 120 << 10;

/// Starts the script for each item.
pub struct Scripts {
    settings: OnWork,
    link: Link,
    /// None if scripts do not get it.
    key: Option<EnvironmentKey>,
    record: Arc<Record>,
    shutdown: Arc<Shutdown>,
    unrunnable: AtomicBool,
}

impl Scripts {
    /// Starts it by `link`.
    pub fn new(
        settings: OnWork,
        link: Link,
        key: Option<EnvironmentKey>,
        record: Arc<Record>,
        shutdown: Arc<Shutdown>,
    ) -> Scripts {
        Scripts { settings, link, key, record, shutdown, unrunnable: AtomicBool::new(false) }
    }

    /// Whether it cannot be started at all (ONWORK-8).
    pub fn unrunnable(&self) -> bool {
        self.unrunnable.load(Ordering::Relaxed)
    }

    async fn serve(&self, work: HandedOver, mut shutdown: ShutdownWatch) -> HandOverEnd {
        let about = audit_ids(&work.ids);
        if shutdown.level() > Level::Run {
            // SHUT-3: nothing new is started.
            return HandOverEnd::Ended;
        }
        if [&work.ids.session, &work.ids.work].into_iter().any(|id| !plain(id)) {
            tracing::error!(
                event = "script.bad_id",
                "an id of the work item is not plain: no script gets it"
            );
            return HandOverEnd::Ended;
        }
        let handed_over = Event::ItemHandedOver {
            program: Text::of(&self.settings.program.display()),
            with_key: self.key.is_some(),
            detached: self.settings.detached,
        };
        if !self.record.write(&about, &handed_over) {
            return HandOverEnd::NotStarted;
        }
        let began = Instant::now();
        let variables = self.variables(&work);
        let variables: Vec<&[u8]> = variables.iter().map(|one| one.as_slice()).collect();
        let body = work.body.expose_secret().as_bytes();
        let mut program = match self.link.start(body, &variables).await {
            Ok(program) => program,
            Err(error) => {
                self.not_started(&work.ids, &about, &error);
                return HandOverEnd::NotStarted;
            }
        };
        drop(work.body);
        tracing::info!(
            event = "script.started",
            session_id = work.ids.session,
            work_id = work.ids.work,
            pid = program.pid,
            "the script serves the session"
        );
        let status = tokio::select! {
            status = program.ended() => status,
            () = shutdown.reached(Level::Drain) => end(&mut program, shutdown).await,
        };
        self.ended(&work.ids, &about, status, began.elapsed());
        if self.settings.detached { HandOverEnd::Detached } else { HandOverEnd::Ended }
    }

    /// ONWORK-2, each `NAME=VALUE`.
    fn variables(&self, work: &HandedOver) -> Vec<Zeroizing<Vec<u8>>> {
        let mut all = Vec::new();
        let mut add = |name: &str, value: &str| {
            all.push(Zeroizing::new([name.as_bytes(), b"=", value.as_bytes()].concat()));
        };
        add("ANTHROPIC_WORK_ID", &work.ids.work);
        add("ANTHROPIC_SESSION_ID", &work.ids.session);
        add("ANTHROPIC_ENVIRONMENT_ID", &work.ids.environment);
        if let Some(url) = &self.settings.base_url {
            add("ANTHROPIC_BASE_URL", url);
        }
        if self.settings.jailed {
            add("STOCKADE_JAIL", "1");
        }
        if let Some(key) = &self.key {
            add("ANTHROPIC_ENVIRONMENT_KEY", key.current().expose_secret());
        }
        let fits = |secret: &&SecretString| secret.expose_secret().len() <= VARIABLE_BYTES_MAX;
        match &work.secret {
            Some(secret) if fits(&secret) => {
                add("ANTHROPIC_WORK_SECRET", secret.expose_secret());
            }
            Some(_) => tracing::warn!(
                event = "script.secret_too_long",
                work_id = work.ids.work,
                "the work secret is on the script's standard input only: too long for a variable"
            ),
            None => {}
        }
        all
    }

    fn not_started(&self, ids: &Ids, about: &AuditIds, error: &crate::scripts::StartError) {
        let told = Event::ItemScriptEnded {
            exit_code: None,
            signal: None,
            not_started: Some(Text::of(&chain(error))),
            duration_us: 0,
        };
        // That it is not there is known where the next script would start.
        let _recorded = self.record.write(about, &told);
        let fatal = error.is_fatal();
        tracing::error!(
            event = "script.not_started",
            session_id = ids.session,
            work_id = ids.work,
            error = %chain(error),
            fatal,
            "the script was not started"
        );
        if fatal {
            // The next item would fare no better, and the next.
            self.unrunnable.store(true, Ordering::Relaxed);
            self.shutdown.drain();
        }
    }

    fn ended(&self, ids: &Ids, about: &AuditIds, status: Option<ExitStatus>, took: Duration) {
        let exit_code = status.and_then(|status| status.code());
        let signal = status.and_then(|status| status.signal());
        let told = Event::ItemScriptEnded {
            exit_code,
            signal,
            not_started: None,
            duration_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        };
        // As above.
        let _recorded = self.record.write(about, &told);
        if status.is_none() && !self.link.lives() {
            // The starter is gone: the next script would not be started.
            self.unrunnable.store(true, Ordering::Relaxed);
            self.shutdown.drain();
        }
        let (session_id, work_id) = (&ids.session, &ids.work);
        let took_ms = took.as_millis() as u64;
        if exit_code == Some(0) {
            tracing::info!(
                event = "script.ended",
                session_id,
                work_id,
                took_ms,
                "the script ended"
            );
        } else {
            // ONWORK-7.
            tracing::warn!(
                event = "script.failed",
                session_id,
                work_id,
                exit_code,
                signal,
                took_ms,
                "the script failed"
            );
        }
    }
}

/// Scripts make names of files of ids. Those of the control plane have letters, digits and `_`.
fn plain(id: &str) -> bool {
    let character = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
    !id.is_empty() && id.len() <= 128 && !id.starts_with(['.', '-']) && id.bytes().all(character)
}

impl Handler for Scripts {
    fn hand_over(&self, work: HandedOver, shutdown: ShutdownWatch) -> BoxFuture<'_, HandOverEnd> {
        Box::pin(self.serve(work, shutdown))
    }
}

/// ONWORK-9: the script's group is asked to end, and killed after a while or at a second signal.
async fn end(program: &mut Program, mut shutdown: ShutdownWatch) -> Option<ExitStatus> {
    if shutdown.level() < Level::Cancel {
        program.signal(Signal::SIGTERM).await;
        tokio::select! {
            status = program.ended() => return status,
            () = tokio::time::sleep(END_MAX) => {}
            () = shutdown.reached(Level::Cancel) => {}
        }
    }
    program.signal(Signal::SIGKILL).await;
    tokio::time::timeout(KILL_MAX, program.ended()).await.ok().flatten()
}

/// The host of a worker that serves no session itself.
pub struct HandingOver {
    pub admission: Admission,
    pub record: Arc<Record>,
}

/// There are none: a value of this type cannot exist.
pub enum NoTools {}

impl SessionTools for NoTools {
    fn owner(&self) -> Owner {
        match *self {}
    }

    async fn run(&mut self, _call: &Call, _stop: CancelToken) -> CallOutcome {
        match *self {}
    }
}

impl Host for HandingOver {
    type Tools = NoTools;
    type Permit = Slot;

    async fn admit(&self) -> Slot {
        self.admission.admit().await
    }

    async fn open(&self, _opening: Opening<'_>) -> Result<NoTools, OpenError> {
        let for_log = "sessions are served by a script".to_owned();
        let for_model = "[jail] No tool was run: this worker serves no session itself.".to_owned();
        Err(OpenError { for_model, for_log })
    }

    async fn close(&self, tools: NoTools, _how: ItemEnd) {
        match tools {}
    }

    fn observe(&self, ids: &Ids, progress: &Progress<'_>) {
        if matches!(progress, Progress::Acked) {
            self.admission.claimed();
        }
        self.record.observe(ids, progress);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_could_be_a_path_or_an_option_reaches_no_script() {
        for id in ["sesn_011CZ", "work-1", "a:b.c"] {
            assert!(plain(id), "{id}");
        }
        for id in
            ["", "..", ".x", "-rf", "a/b", "a b", "a\nb", "a\0b", "$(x)", "é", &"x".repeat(129)]
        {
            assert!(!plain(id), "{id:?}");
        }
    }
}
