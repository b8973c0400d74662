//! Staging: the input that a policy's rules `[[stage]]` lay into a session's workspace before its first
//! tool call.
//!
//! Runs in the control side, which has given up its rights: what needs them (credentials, directories
//! of this host) was opened before. `request.rs` (pure) turns rules and the session's metadata into what
//! is to be fetched; `https.rs`, `git.rs`, `s3.rs` and `local.rs` fetch it into a file without a name
//! (`sink.rs`), held to the rule's size, time and digest; `dial.rs` decides whom to connect to;
//! `destination.rs` is where the file then goes: the jail's own porter, which alone resolves paths
//! there (INV-7). Nothing fetched is looked into here.
//!
//! Dropping [`Stager::lay`] ends it: connections close, and a `git` that runs is killed.

mod budget;
mod destination;
mod dial;
mod error;
mod git;
pub mod git_starter;
mod https;
mod local;
mod request;
mod s3;
mod sink;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use stockade_runtime::egress::Outbound;
use stockade_runtime::policy::Policy;
use stockade_runtime::policy::stage::{StageKind, StageRule};
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::stage::Keys;

pub use budget::{Budget, BudgetError, FetchSize};
pub use destination::{Destination, LayError};
pub use error::{Fault, StageError, told};
pub use git::{Git, GitError};
pub use local::{Roots, RootsError};
pub use request::{Wanted, metadata, wanted};
pub use sink::{Fetched, Room};

use sink::Sink;

/// Longest staging of one session.
const TOTAL_TIME_MAX: Duration = Duration::from_secs(1_800);
/// Most entries of one archive.
const ENTRIES_MAX: u64 = 200_000;
/// Of files that are laid; the jail's ids own them.
const FILE_MODE: u32 = 0o644;

/// Fetches and lays the input of sessions.
#[derive(Debug)]
pub struct Stager {
    rules: Vec<StageRule>,
    /// Bytes that all of them together may fetch: what a workspace holds.
    bytes_max: u64,
    outside: Outside,
    room: Room,
    roots: Roots,
    git: Option<Git>,
    budget: Budget,
}

/// What fetching over a network needs.
#[derive(Debug)]
struct Outside {
    outbound: Arc<Outbound>,
    tls: rustls::ClientConfig,
    keys: RwLock<Arc<Keys>>,
}

impl Outside {
    /// As they are now; whatever is being fetched goes on with what it began with.
    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is about to be laid, or could not be had.
#[derive(Debug)]
pub enum Told<'a> {
    /// This is about to be laid. The effect happens only if the answer is true.
    Laying {
        /// By which rule.
        wanted: &'a Wanted,
        /// What was fetched.
        fetched: &'a Fetched,
    },
    /// This was not had, or not laid.
    Failed {
        /// By which rule.
        rule: &'a StageRule,
        /// Why.
        fault: &'a Fault,
    },
}

/// What must be opened before the rights of whoever started the worker are given up.
#[derive(Debug)]
pub struct Prepared {
    /// Where fetched files are kept while they are checked.
    pub room: Room,
    /// Directories of this host that rules name.
    pub roots: Roots,
    /// The host's git, where a rule needs it.
    pub git: Option<Git>,
    /// Credentials.
    pub keys: Keys,
    /// What all sessions together may fetch.
    pub budget: Budget,
}

impl Stager {
    /// For the rules of `policy`; `ca_file` is trusted besides the system's authorities.
    ///
    /// # Errors
    /// A sentence: the file holds no certificate, or TLS cannot be set up.
    pub fn new(
        policy: &Policy,
        prepared: Prepared,
        ca_file: Option<&Path>,
    ) -> anyhow::Result<Stager> {
        let Prepared { room, roots, git, keys, budget } = prepared;
        let (tls, authorities) = dial::tls(ca_file)?;
        if git.is_some() {
            room.write_authorities(&authorities)?;
        }
        Ok(Stager {
            rules: policy.stage.rules.clone(),
            bytes_max: policy.filesystem.workspace_size.value.0,
            outside: Outside {
                outbound: Arc::new(Outbound::of_host()),
                tls,
                keys: RwLock::new(Arc::new(keys)),
            },
            room,
            roots,
            git,
            budget,
        })
    }

    /// Everything that is fetched from now on has these.
    pub fn replace_keys(&self, keys: Keys) {
        let mut current = self.outside.keys.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(keys);
    }

    /// Lays the input of one session by `to`, rule by rule. `told` hears of each before it is laid.
    ///
    /// # Errors
    /// The first required rule that failed; what was laid before it stays.
    pub async fn lay(
        &self,
        session_id: &str,
        metadata: &BTreeMap<String, String>,
        to: &impl Destination,
        told: &(dyn Fn(Told<'_>) -> bool + Sync),
    ) -> Result<(), StageError> {
        let deadline = Instant::now() + TOTAL_TIME_MAX;
        let mut left = self.bytes_max;
        for rule in &self.rules {
            let laid = async {
                let wanted = request::wanted(rule, metadata)?;
                let fetched = self.fetch(session_id, &wanted, left, deadline).await?;
                left = left.saturating_sub(fetched.bytes);
                let bytes = fetched.bytes;
                if !told(Told::Laying { wanted: &wanted, fetched: &fetched }) {
                    return Err(Fault::Audit);
                }
                let room = rule.time_max.min(deadline.saturating_duration_since(Instant::now()));
                let put = put(rule, fetched, to);
                timeout(room, put).await.unwrap_or(Err(Fault::TimedOut { max: rule.time_max }))?;
                Ok(bytes)
            };
            match laid.await {
                Ok(bytes) => tracing::info!(
                    event = "stage.laid",
                    session_id,
                    rule = rule.name,
                    kind = rule.kind.name(),
                    bytes,
                    "input was laid into the workspace"
                ),
                Err(fault) => self.failed(session_id, rule, fault, told)?,
            }
        }
        Ok(())
    }

    /// Fetches the input of one rule within its bounds, and checks its digest. Before that it waits, at
    /// most until `deadline`, until there is room for it among what other sessions fetch; the room is
    /// kept until what was fetched is dropped.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn fetch(
        &self,
        session_id: &str,
        wanted: &Wanted,
        bytes_max: u64,
        deadline: Instant,
    ) -> Result<Fetched, Fault> {
        let rule = &wanted.rule;
        let max = rule.size_max.0.min(bytes_max);
        let held = timeout_at(deadline, self.budget.hold(session_id, rule, max)).await;
        let held = held.unwrap_or(Err(Fault::TimedOut { max: TOTAL_TIME_MAX }))?;
        let left = deadline.saturating_duration_since(Instant::now());
        let sink = || Sink::new(&self.room, held, max, session_id, &rule.name);
        let outside = &self.outside;
        let fetching = async {
            match &rule.kind {
                StageKind::Https { .. } => https::fetch(outside, wanted, sink()?).await,
                StageKind::S3 { endpoint, region, .. } => {
                    s3::fetch(outside, wanted, (endpoint, region), sink()?).await
                }
                StageKind::Local { .. } => local::fetch(&self.roots, wanted, sink()?).await,
                StageKind::Git { .. } => {
                    let git = self.git.as_ref().ok_or(Fault::NoGit)?;
                    git.fetch(outside, &self.room, wanted, sink()?).await
                }
            }
        };
        let fetched = timeout(rule.time_max.min(left), fetching).await;
        let fetched = fetched.unwrap_or(Err(Fault::TimedOut { max: rule.time_max }))?;
        match wanted.sha256 {
            Some(sha256) if sha256 != fetched.sha256 => Err(Fault::Digest),
            _ => Ok(fetched),
        }
    }

    fn failed(
        &self,
        session_id: &str,
        rule: &StageRule,
        fault: Fault,
        told: &(dyn Fn(Told<'_>) -> bool + Sync),
    ) -> Result<(), StageError> {
        let recorded = told(Told::Failed { rule, fault: &fault });
        if rule.required || !recorded || matches!(fault, Fault::Audit) {
            return Err(StageError { rule: rule.name.clone(), source: fault });
        }
        tracing::warn!(
            event = "stage.failed",
            session_id,
            rule = rule.name,
            kind = rule.kind.name(),
            reason = fault.class(),
            error = %error::told(&fault),
            "input is missing; the session goes on without it"
        );
        Ok(())
    }
}

async fn put(rule: &StageRule, fetched: Fetched, to: &impl Destination) -> Result<(), Fault> {
    let max = rule.size_max.0;
    // The room is given back when the file is laid.
    let (file, _held) = fetched.into_parts();
    let laid = match rule.unpack {
        true => to.unpack(file, &rule.to, ENTRIES_MAX, max).await,
        false => to.put(file, &rule.to, FILE_MODE, max).await,
    };
    laid.map_err(|source| Fault::Laying { source })
}

#[cfg(test)]
mod tests;
