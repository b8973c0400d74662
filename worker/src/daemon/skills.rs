//! Skills in the daemon: what a jail needs for them, and their way into it, each with its record.

use std::convert::Infallible;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use stockade_runtime::audit::{Event, Fingerprint, Ids as AuditIds, Text};
use stockade_runtime::session::{
    Executables, Place, Porter, PorterError, Replace, Session, Unpack, Wrapper,
};
use stockade_runtime::spec::SkillsRequest;
use tokio::sync::mpsc;

use super::held::Held;
use super::jails::{JailError, Jails};
use super::needs::Needs;
use super::record::Record;
use super::unnamed::without_names;
use crate::cli::policy::chain;
use crate::config::skills::SkillsConfig;
use crate::queue::{ItemApi, Opening, SkillRef};
use crate::skills::{Laid, Listener, QUEUE, Shelf, ShelfError, SkillError, Skills, Unpacked};

/// The step of making a jail that makes the place of skills.
const PLACES: &str = "places";

/// What all sessions share.
#[derive(Debug)]
pub struct SkillsOfAll {
    config: SkillsConfig,
    skills: Skills,
}

impl SkillsOfAll {
    /// As configured.
    pub fn new(config: SkillsConfig) -> SkillsOfAll {
        let skills = Skills::new(config.settings());
        SkillsOfAll { config, skills }
    }
}

/// The skills of one work item's session, for as long as the item lasts.
pub struct SessionSkills {
    all: Arc<SkillsOfAll>,
    api: ItemApi,
    list: Vec<SkillRef>,
    ids: AuditIds,
    record: Arc<Record>,
}

impl SessionSkills {
    /// Those that the session's agent has, asked for with the work item's credential (AUTH-5).
    pub fn of(
        all: &Arc<SkillsOfAll>,
        opening: &Opening<'_>,
        ids: AuditIds,
        record: &Arc<Record>,
    ) -> SessionSkills {
        SessionSkills {
            all: Arc::clone(all),
            api: opening.api.clone(),
            list: opening.session.skills.clone(),
            ids,
            record: Arc::clone(record),
        }
    }

    /// What the session's jail must have; nothing without skills (SKILL-4).
    pub fn needs(&self) -> Option<SkillsRequest> {
        let config = &self.all.config;
        (!self.list.is_empty()).then(|| SkillsRequest {
            writable: config.writable,
            bytes_max: config.bytes_max(),
            inodes_max: config.inodes_max(),
        })
    }

    /// A jail with what the session needs, and with its skills. Where the place of skills cannot be made
    /// (an operator's working directory has a link or a file of that name), it is one without
    /// (LEASE-19).
    ///
    /// # Errors
    /// Those of making a jail.
    pub async fn open(
        &self,
        jails: &Arc<Jails>,
        session_id: &str,
        needs: &Needs,
    ) -> Result<Held, JailError> {
        match self.furnish(jails.hold(&self.ids, session_id, needs)).await {
            Err(error) if needs.skills.is_some() && error.phase() == PLACES => {
                let without = Needs { skills: None, ..needs.clone() };
                let held = jails.hold(&self.ids, session_id, &without).await?;
                for skill in &self.list {
                    if !self.failed(skill, &SkillError::Place) {
                        break;
                    }
                }
                Ok(held)
            }
            other => other,
        }
    }

    /// Waits for `jail` and lays the skills into it; they are downloaded meanwhile. No skill that
    /// fails makes the jail fail (LEASE-19). Dropped, it leaves nothing that the jail does not take
    /// along (SKILL-12).
    ///
    /// # Errors
    /// Those of `jail`, at once.
    async fn furnish<E>(&self, jail: impl Future<Output = Result<Held, E>>) -> Result<Held, E> {
        if self.list.is_empty() {
            return jail.await;
        }
        let skills = &self.all.skills;
        let (to, from) = mpsc::channel(QUEUE);
        let laid = async {
            let held = jail.await?;
            if let Some(porter) = held.session().map(Session::porter).cloned() {
                let shelf = JailShelf { porter, config: &self.all.config };
                skills.lay(from, &shelf, self).await;
            }
            Ok(held)
        };
        let fetched = async {
            skills.fetch(&self.api, &self.list, to).await;
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            laid = laid => laid,
            never = fetched => match never {},
        }
    }

    /// Ends the processes of a jail that is to be kept, and takes the skills out of it (SKILL-11).
    /// Returns whether it can be kept.
    pub async fn clear(&self, session: &mut Session) -> bool {
        if self.list.is_empty() {
            return true;
        }
        let cleared = match session.quiesce().await {
            Ok(()) => session.porter().clear(Place::Skills).await.map_err(|error| chain(&error)),
            Err(error) => Err(chain(&error)),
        };
        if let Err(error) = &cleared {
            let session_id = self.ids.session.as_ref().map(|id| id.as_str());
            tracing::warn!(
                event = "skill.not_cleared",
                session_id,
                error,
                "the session's skills cannot be removed: its jail is not kept"
            );
        }
        cleared.is_ok()
    }
}

impl Listener for SessionSkills {
    fn laid(&self, skill: &SkillRef, laid: &Laid) -> bool {
        let Laid { version_id, directory, sha256, archive_bytes, unpacked } = laid;
        let event = Event::SkillLaid {
            skill: skill.skill_id.as_str().into(),
            version: version_id.as_str().into(),
            directory: Text::of(directory),
            archive: Fingerprint { bytes: *archive_bytes, sha256: *sha256 },
            files: unpacked.files,
            bytes: unpacked.bytes,
            skipped: unpacked.skipped,
        };
        tracing::info!(
            event = "skill.laid",
            environment_id = self.ids.environment.as_ref().map(|id| id.as_str()),
            session_id = self.ids.session.as_ref().map(|id| id.as_str()),
            work_id = self.ids.work.as_ref().map(|id| id.as_str()),
            skill_id = skill.skill_id,
            version_id,
            directory = %Text::of(directory).as_str(),
            files = unpacked.files,
            bytes = unpacked.bytes,
            replaced = unpacked.replaced,
            "skill laid into the jail"
        );
        self.record.write(&self.ids, &event)
    }

    fn failed(&self, skill: &SkillRef, error: &SkillError) -> bool {
        let event = Event::SkillFailed {
            skill: skill.skill_id.as_str().into(),
            version: skill.version.as_str().into(),
            reason: error.reason().into(),
        };
        tracing::warn!(
            event = "skill.failed",
            environment_id = self.ids.environment.as_ref().map(|id| id.as_str()),
            session_id = self.ids.session.as_ref().map(|id| id.as_str()),
            work_id = self.ids.work.as_ref().map(|id| id.as_str()),
            skill_id = skill.skill_id,
            version_id = skill.version,
            reason = error.reason(),
            error = %Text::of(&chain(error)).as_str(),
            "the session goes on without a skill"
        );
        self.record.write(&self.ids, &event)
    }
}

/// The place of skills in one jail.
struct JailShelf<'a> {
    porter: Porter,
    config: &'a SkillsConfig,
}

impl Shelf for JailShelf<'_> {
    async fn unpack(&self, archive: OwnedFd, directory: &str) -> Result<Unpacked, ShelfError> {
        let what = Unpack {
            place: Place::Skills,
            directory: directory.to_owned(),
            wrapper: Wrapper::Strip,
            executables: match self.config.force_executable {
                true => Executables::All,
                false => Executables::AsRecorded,
            },
            entries_max: self.config.entries_max(),
            bytes_max: self.config.bytes_max(),
            replace: Replace::Swap,
        };
        match self.porter.unpack(archive, what).await {
            Ok(done) => Ok(Unpacked {
                files: done.files,
                bytes: done.bytes,
                skipped: done.skipped,
                replaced: done.replaced,
            }),
            Err(PorterError::Refused { reason }) => {
                Err(ShelfError::Refused { reason: without_names(&reason) })
            }
            Err(_) => Err(ShelfError::Gone),
        }
    }
}
