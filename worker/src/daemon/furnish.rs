//! From a work item to a jail with everything in it that the session needs before its first call.
//!
//! In this order: what the jail must be made with is known, the jail is made while skills are
//! downloaded, skills are laid, then staged input, then memory stores. The same again when a jail has
//! to be replaced in the middle of a session. At the end: processes end, memory stores are synced for
//! the last time, skills go, the jail is kept or disposed of.

use std::sync::Arc;

use stockade_runtime::audit::Ids as AuditIds;
use stockade_runtime::session::Session;

use super::custom::CustomTools;
use super::jails::{JailError, Jails};
use super::memory::{Memories, Mounted, refused_place};
use super::needs::Needs;
use super::record::Record;
use super::skills::{SessionSkills, SkillsOfAll};
use super::stage::{self, Input, Staging};
use crate::cli::policy::chain;
use crate::memory::StorePlace;
use crate::queue::{Ids, ItemApi, ItemEnd, OpenError, Opening, Progress, ShutdownWatch};

/// What all sessions of this worker are furnished from.
pub struct Furnisher {
    pub jails: Arc<Jails>,
    pub record: Arc<Record>,
    pub skills: Arc<SkillsOfAll>,
    /// None where the policy stages nothing.
    pub staging: Option<Arc<Staging>>,
    pub memories: Arc<Memories>,
    /// The operator's own tools; those that run in jails are in every jail of `jails`.
    pub custom: Arc<CustomTools>,
}

impl Furnisher {
    /// What the session of this work item needs. `shutdown` cuts the last syncs of its memory stores
    /// short.
    ///
    /// # Errors
    /// It cannot have its memory stores (MEM-2, MEM-3).
    pub fn furnishing(
        &self,
        opening: &Opening<'_>,
        ids: &AuditIds,
        shutdown: ShutdownWatch,
    ) -> Result<Furnishing, OpenError> {
        let stores = self.memories.plan(opening)?;
        let skills = SessionSkills::of(&self.skills, opening, ids.clone(), &self.record);
        let input = self.staging.as_ref().map(|staging| Input::of(staging, opening));
        let needs = Needs {
            skills: skills.needs(),
            stores: self.memories.requests(&stores),
            staging: input.is_some(),
        };
        Ok(Furnishing {
            jails: Arc::clone(&self.jails),
            memories: Arc::clone(&self.memories),
            ids: ids.clone(),
            session_id: opening.session.id.clone(),
            api: opening.api.clone(),
            needs,
            skills,
            input,
            stores,
            mounted: None,
            shutdown,
        })
    }

    /// Hears how far a work item of a furnished session is, before the effect.
    pub fn observe(&self, ids: &Ids, progress: &Progress<'_>) {
        if let Progress::Dispatched = progress {
            self.memories.dispatched(ids);
        }
        self.record.observe(ids, progress);
    }
}

/// What one session needs, for as long as its work item lasts.
pub struct Furnishing {
    jails: Arc<Jails>,
    memories: Arc<Memories>,
    ids: AuditIds,
    session_id: String,
    api: ItemApi,
    needs: Needs,
    skills: SessionSkills,
    input: Option<Input>,
    stores: Vec<StorePlace>,
    /// Its memory stores, once they are in a jail.
    mounted: Option<Mounted>,
    shutdown: ShutdownWatch,
}

impl Furnishing {
    /// A furnished jail. Dropped before it is done, it leaves nothing that is not disposed of.
    ///
    /// # Errors
    /// What the session cannot run without.
    pub async fn open(&mut self) -> Result<Session, OpenError> {
        let opened = self.skills.open(&self.jails, &self.session_id, &self.needs).await;
        let held = opened.map_err(|error| no_jail(&error))?;
        let Some(session) = held.session() else { return Err(no_jail(&JailError::Audit)) };
        if let Some(input) = &self.input {
            let laid = input.lay(&self.ids, &self.session_id, session).await;
            laid.map_err(|error| stage::open_error(&error))?;
        }
        match &self.mounted {
            Some(mounted) => mounted.moved(session.porter()).await?,
            None => {
                let mounting =
                    self.memories.mount(&self.api, &self.ids, &self.stores, session.porter());
                self.mounted = mounting.await?;
            }
        }
        held.take().ok_or_else(|| no_jail(&JailError::Audit))
    }

    /// Ends the use of `session`, if there is one left: its memory stores are synced for the last
    /// time, and its jail is kept for its next work item if it was idle and the policy says so, or
    /// disposed of.
    pub async fn close(self, mut session: Option<Session>, how: ItemEnd) {
        let keeps = how == ItemEnd::Idle && self.jails.keeps();
        // The last syncs must not race a writer (MEM-31). A jail that does not answer is about to be
        // ended; its folders are looked at all the same.
        if let Some(session) = &mut session
            && (keeps || self.mounted.is_some())
            && let Err(error) = session.quiesce().await
        {
            let session_id = self.session_id.as_str();
            tracing::warn!(event = "jail.not_quiet", session_id, error = %error,
                "the session's processes may still run");
        }
        let emptied = match &self.mounted {
            Some(mounted) => mounted.finish(how, self.shutdown.clone()).await,
            None => true,
        };
        if let Some(mut session) = session {
            let keep = keeps && emptied && self.skills.clear(&mut session).await;
            let Furnishing { jails, ids, session_id, needs, .. } = self;
            jails.close(&ids, &session_id, session, needs, keep).await;
        }
    }
}

/// What a session hears that has no jail, and what the operator does.
fn no_jail(error: &JailError) -> OpenError {
    if let Some(refused) = refused_place(error) {
        return refused;
    }
    let phase = error.phase();
    let for_model = format!(
        "[jail] This session has no jail on its host, so no tool was run: `{phase}` failed. The \
         operator finds the reason in the worker's log. A user interrupt or message tries again."
    );
    OpenError { for_model, for_log: chain(error) }
}
