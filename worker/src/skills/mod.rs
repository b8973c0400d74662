//! Skills of a session: found, downloaded, checked, and unpacked into the jail (protocol §7).
//!
//! The control side does the first three, in the order of the session's list (SKILL-1), and holds
//! archives in memory only. It never looks into one: the jail's porter unpacks it, below the one
//! place that skills have (INV-7, SKILL-2). [`Skills::fetch`] and [`Skills::lay`] run side by side,
//! joined by a short queue, so that downloads go on while the jail is still being made.
//!
//! A skill that fails is told and the others go on; the session goes on in any case (SKILL-3,
//! LEASE-19). Everything here may be dropped at any point and then leaves nothing behind but what
//! was laid, which goes with the jail (SKILL-12).

mod destination;
mod error;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use stockade_runtime::audit::Digest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

pub use error::SkillError;

use crate::queue::{ApiError, Archive, FoundSkill, ItemApi, SkillRef};
use destination::directory;

/// How long all skills of a session may take together; those that are left then fail.
const TIME_MAX: Duration = Duration::from_secs(600);
/// Archives between the two ends, besides the one in work at each.
pub const QUEUE: usize = 1;

/// What operators decide about skills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkillSettings {
    /// Largest archive, as downloaded.
    pub archive_bytes_max: u64,
    /// Archives that are in memory at the same time, of all sessions.
    pub archives_max: usize,
    /// Whether a skill without a digest in `digests` is refused.
    pub require_digest: bool,
    /// Of archives, by `skill_id@version_id`.
    pub digests: BTreeMap<String, Digest>,
}

/// Where versions and archives come from.
pub trait Source: Sync {
    /// The version that a session's entry names (SKILL-1).
    fn find(&self, skill: &SkillRef) -> impl Future<Output = Result<FoundSkill, ApiError>> + Send;

    /// Its archive, of at most `bytes_max` bytes. Safe to drop.
    fn archive(
        &self,
        found: &FoundSkill,
        bytes_max: u64,
    ) -> impl Future<Output = Result<Archive, ApiError>> + Send;
}

impl Source for ItemApi {
    async fn find(&self, skill: &SkillRef) -> Result<FoundSkill, ApiError> {
        self.skill_version(&skill.skill_id, &skill.version).await
    }

    async fn archive(&self, found: &FoundSkill, bytes_max: u64) -> Result<Archive, ApiError> {
        self.skill_archive(found, bytes_max).await
    }
}

/// Where skills are unpacked: one directory each, below the place of skills in a jail.
pub trait Shelf: Sync {
    /// Unpacks `archive` as `directory`; one that is there is replaced once the new one is complete,
    /// and left as it was otherwise (SKILL-3, SKILL-4).
    fn unpack(
        &self,
        archive: OwnedFd,
        directory: &str,
    ) -> impl Future<Output = Result<Unpacked, ShelfError>> + Send;
}

/// What came out of an archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    pub files: u64,
    pub bytes: u64,
    /// Members that are neither files nor directories (SKILL-7).
    pub skipped: u64,
    /// Whether there was a directory of this name before.
    pub replaced: bool,
}

/// An archive that was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// This one cannot be.
    #[error("{reason}")]
    Refused { reason: String },
    /// No further one can be: the jail is gone.
    #[error("the session's jail is gone")]
    Gone,
}

/// Hears what became of each skill, before the next one is laid.
pub trait Listener: Sync {
    /// Returns whether to go on.
    fn laid(&self, skill: &SkillRef, laid: &Laid) -> bool;

    /// Returns whether to go on.
    fn failed(&self, skill: &SkillRef, error: &SkillError) -> bool;
}

/// A skill that is in the jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Laid {
    pub version_id: String,
    /// Its directory, below the place of skills.
    pub directory: String,
    pub sha256: Digest,
    pub archive_bytes: u64,
    pub unpacked: Unpacked,
}

/// A skill on its way from one end to the other.
pub struct Fetched {
    skill: SkillRef,
    ready: Result<Ready, SkillError>,
}

struct Ready {
    version_id: String,
    directory: String,
    archive: Archive,
    // Memory that nobody else may use before this archive is gone.
    _room: OwnedSemaphorePermit,
}

/// The skills of all sessions of a worker.
#[derive(Debug)]
pub struct Skills {
    settings: SkillSettings,
    room: Arc<Semaphore>,
}

impl Skills {
    /// With room for `settings.archives_max` archives.
    pub fn new(settings: SkillSettings) -> Skills {
        let room = Arc::new(Semaphore::new(settings.archives_max.max(1)));
        Skills { settings, room }
    }

    /// Downloads `skills` in order, each as soon as `to` has room for it. Ends early if nobody
    /// listens any more.
    pub async fn fetch(
        &self,
        source: &impl Source,
        skills: &[SkillRef],
        to: mpsc::Sender<Fetched>,
    ) {
        let deadline = Instant::now() + TIME_MAX;
        for skill in skills {
            let ready = if Instant::now() >= deadline {
                Err(SkillError::Time { after: TIME_MAX })
            } else {
                let one = self.fetch_one(source, skill);
                let in_time = tokio::time::timeout_at(deadline, one).await;
                in_time.unwrap_or(Err(SkillError::Time { after: TIME_MAX }))
            };
            if to.send(Fetched { skill: skill.clone(), ready }).await.is_err() {
                return;
            }
        }
    }

    async fn fetch_one(&self, source: &impl Source, skill: &SkillRef) -> Result<Ready, SkillError> {
        let found = source.find(skill).await.map_err(|source| SkillError::Version { source })?;
        let directory = directory(found.name(), &skill.skill_id)?;
        let version_id = found.version_id().to_owned();
        let pinned = self.settings.digests.get(&pin(&skill.skill_id, &version_id)).copied();
        if pinned.is_none() && self.settings.require_digest {
            return Err(SkillError::NotPinned { version_id });
        }
        let room = Arc::clone(&self.room).acquire_owned().await;
        let room = room.map_err(|_| SkillError::Time { after: Duration::ZERO })?;
        let bytes_max = self.settings.archive_bytes_max;
        let archive = source.archive(&found, bytes_max).await;
        let archive = archive.map_err(|source| SkillError::Download { source })?;
        let found = Digest::from(archive.sha256);
        match pinned {
            Some(wanted) if wanted != found => {
                Err(SkillError::Digest { version_id, wanted, found })
            }
            _ => Ok(Ready { version_id, directory, archive, _room: room }),
        }
    }

    /// Unpacks what arrives, in the order in which it does, so that of two skills with one directory
    /// the later one stays (SKILL-13). Ends with the last one, with the jail, or when `listener` says
    /// so.
    pub async fn lay(
        &self,
        mut from: mpsc::Receiver<Fetched>,
        shelf: &impl Shelf,
        listener: &impl Listener,
    ) {
        while let Some(Fetched { skill, ready }) = from.recv().await {
            let (goes_on, gone) = match self.lay_one(ready, shelf).await {
                Ok(laid) => (listener.laid(&skill, &laid), false),
                Err(error) => {
                    let gone = matches!(error, SkillError::Unpack { source: ShelfError::Gone });
                    (listener.failed(&skill, &error), gone)
                }
            };
            if !goes_on || gone {
                return;
            }
        }
    }

    async fn lay_one(
        &self,
        ready: Result<Ready, SkillError>,
        shelf: &impl Shelf,
    ) -> Result<Laid, SkillError> {
        let Ready { version_id, directory, archive, _room } = ready?;
        let (archive_bytes, sha256) = (archive.bytes, archive.sha256.into());
        let unpacked = shelf.unpack(archive.file, &directory).await;
        let unpacked = unpacked.map_err(|source| SkillError::Unpack { source })?;
        Ok(Laid { version_id, directory, sha256, archive_bytes, unpacked })
    }
}

/// What a digest is written under.
pub fn pin(skill_id: &str, version_id: &str) -> String {
    format!("{skill_id}@{version_id}")
}
