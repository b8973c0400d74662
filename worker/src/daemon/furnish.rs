//! From a work item to a jail with everything in it that the session needs before its first call.
//!
//! In this order: what the jail must be made with is known, the jail is made while skills are
//! downloaded, skills are laid, then staged input. The same again when a jail has to be replaced in
//! the middle of a session.

use std::sync::Arc;

use stockade_runtime::audit::Ids as AuditIds;
use stockade_runtime::session::Session;

use super::jails::{JailError, Jails};
use super::needs::Needs;
use super::record::Record;
use super::skills::{SessionSkills, SkillsOfAll};
use super::stage::{self, Input, Staging};
use crate::cli::policy::chain;
use crate::queue::{OpenError, Opening};

/// What all sessions of this worker are furnished from.
pub struct Furnisher {
    pub jails: Arc<Jails>,
    pub record: Arc<Record>,
    pub skills: Arc<SkillsOfAll>,
    /// None where the policy stages nothing.
    pub staging: Option<Arc<Staging>>,
}

impl Furnisher {
    /// What the session of this work item needs.
    pub fn furnishing(&self, opening: &Opening<'_>, ids: &AuditIds) -> Furnishing {
        let skills = SessionSkills::of(&self.skills, opening, ids.clone(), &self.record);
        let input = self.staging.as_ref().map(|staging| Input::of(staging, opening));
        let needs = Needs { skills: skills.needs(), staging: input.is_some(), ..Needs::default() };
        let (ids, session_id) = (ids.clone(), opening.session.id.clone());
        Furnishing { jails: Arc::clone(&self.jails), ids, session_id, needs, skills, input }
    }
}

/// What one session needs, for as long as its work item lasts.
pub struct Furnishing {
    jails: Arc<Jails>,
    ids: AuditIds,
    session_id: String,
    needs: Needs,
    skills: SessionSkills,
    input: Option<Input>,
}

impl Furnishing {
    /// A furnished jail. Dropped before it is done, it leaves nothing that is not disposed of.
    ///
    /// # Errors
    /// What the session cannot run without.
    pub async fn open(&self) -> Result<Session, OpenError> {
        let opened = self.skills.open(&self.jails, &self.session_id, &self.needs).await;
        let held = opened.map_err(|error| no_jail(&error))?;
        if let (Some(input), Some(session)) = (&self.input, held.session()) {
            let laid = input.lay(&self.ids, &self.session_id, session).await;
            laid.map_err(|error| stage::open_error(&error))?;
        }
        held.take().ok_or_else(|| no_jail(&JailError::Audit))
    }

    /// Ends the use of `session`: keeps its jail for the session's next work item if `idle` and the
    /// policy says so, and disposes of it otherwise.
    pub async fn close(self, mut session: Session, idle: bool) {
        let keep = idle && self.jails.keeps() && self.skills.clear(&mut session).await;
        let Furnishing { jails, ids, session_id, needs, .. } = self;
        jails.close(&ids, &session_id, session, needs, keep).await;
    }
}

fn no_jail(error: &JailError) -> OpenError {
    let phase = error.phase();
    let for_model = format!(
        "[jail] This session has no jail on its host, so no tool was run: `{phase}` failed. The \
         operator finds the reason in the worker's log. A user interrupt or message tries again."
    );
    OpenError { for_model, for_log: chain(error) }
}
