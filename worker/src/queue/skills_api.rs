//! Skill versions and their archives (E-SKV, E-SKD), asked for with the credential of the work item
//! (AUTH-5) and without a beta header (HDR-2, HDR-3).
//!
//! An archive is streamed into a memory file piece by piece, with its digest, and sealed when it is
//! complete: who unpacks it later reads the very bytes that were hashed. A download that is dropped
//! leaves nothing, for the memory file goes with it (SKILL-12).

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};
use sha2::{Digest as _, Sha256};

use super::api::ItemApi;
use super::client::{ApiError, Sink};
use super::request::{BadId, Request};
use super::wire::skill::{Shape, SkillVersion, parse_skill_version};

/// HDR-3.
const EPOCH_BETA: &str = "skills-2025-10-02";
const VERSION_TIMEOUT: Duration = Duration::from_secs(30);
/// One attempt of a download; what says nothing for long ends earlier.
const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(120);

/// A version that was found, and how it is addressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundSkill {
    skill_id: String,
    version: SkillVersion,
    shape: Shape,
}

impl FoundSkill {
    /// The version that `latest`, or whatever was asked for, stands for.
    pub fn version_id(&self) -> &str {
        &self.version.id
    }

    /// As the author wrote it: not a directory name yet (SKILL-2).
    pub fn name(&self) -> &str {
        &self.version.name
    }

    #[cfg(test)]
    pub fn skill_id(&self) -> &str {
        &self.skill_id
    }

    #[cfg(test)]
    pub fn for_test(skill_id: &str, version_id: &str, name: &str) -> FoundSkill {
        let version = SkillVersion { id: version_id.to_owned(), name: name.to_owned() };
        FoundSkill { skill_id: skill_id.to_owned(), version, shape: Shape::Current }
    }
}

/// A complete archive.
#[derive(Debug)]
pub struct Archive {
    /// A sealed memory file; whoever reads it begins at offset 0.
    pub file: OwnedFd,
    pub bytes: u64,
    pub sha256: [u8; 32],
}

impl ItemApi {
    /// E-SKV. `version` is an id or `latest`. An all-digit version that the service does not know is
    /// asked for once more in the shape of its time (UNK-1).
    ///
    /// # Errors
    /// The answer, or that it cannot be read.
    pub async fn skill_version(&self, skill: &str, version: &str) -> Result<FoundSkill, ApiError> {
        let epoch = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
        match self.skill_version_as(skill, version, Shape::Current).await {
            Err(error) if epoch && error.status() == Some(404) => {
                self.skill_version_as(skill, version, Shape::Epoch).await
            }
            other => other,
        }
    }

    async fn skill_version_as(
        &self,
        skill: &str,
        version: &str,
        shape: Shape,
    ) -> Result<FoundSkill, ApiError> {
        let request = of_version(&[skill, version], shape)?.timeout(VERSION_TIMEOUT);
        let reply = self.client.send(&self.credential, &request).await?;
        let version = parse_skill_version(shape, &reply.body)
            .ok_or(ApiError::Unreadable { what: "a skill version" })?;
        Ok(FoundSkill { skill_id: skill.to_owned(), version, shape })
    }

    /// E-SKD, by the version's own id: the service knows no aliases here (SKILL-1). An archive of
    /// more than `bytes_max` bytes is not read to its end. Safe to drop.
    ///
    /// # Errors
    /// The last answer; no memory for the archive.
    pub async fn skill_archive(
        &self,
        found: &FoundSkill,
        bytes_max: u64,
    ) -> Result<Archive, ApiError> {
        let request = of_version(&[&found.skill_id, &found.version.id, "content"], found.shape)?
            .accept("application/binary")
            .timeout(ARCHIVE_TIMEOUT);
        let mut growing = Growing::new(bytes_max).map_err(|source| ApiError::Keep { source })?;
        self.client.download(&self.credential, &request, &mut growing).await?;
        growing.seal().map_err(|source| ApiError::Keep { source })
    }
}

/// GET of something below `/v1/skills/SKILL/versions/VERSION`.
fn of_version(parts: &[&str], shape: Shape) -> Result<Request, BadId> {
    let (skill, rest) = parts.split_first().ok_or(BadId)?;
    let segments: Vec<&str> = ["skills", skill, "versions"].iter().chain(rest).copied().collect();
    Ok(Request::get(&segments)?.beta(match shape {
        Shape::Current => None,
        Shape::Epoch => Some(EPOCH_BETA),
    }))
}

/// An archive that is being written.
struct Growing {
    file: File,
    bytes: u64,
    bytes_max: u64,
    hash: Sha256,
}

impl Growing {
    fn new(bytes_max: u64) -> io::Result<Growing> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("skill", flags)?);
        Ok(Growing { file, bytes: 0, bytes_max, hash: Sha256::new() })
    }

    fn seal(mut self) -> io::Result<Archive> {
        self.file.rewind()?;
        let seals = SealFlags::SEAL | SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
        rustix::fs::fcntl_add_seals(&self.file, seals)?;
        let (bytes, sha256) = (self.bytes, self.hash.finalize().into());
        Ok(Archive { file: self.file.into(), bytes, sha256 })
    }
}

impl Sink for Growing {
    fn restart(&mut self) -> Result<(), ApiError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.map_err(|source| ApiError::Keep { source })?;
        (self.bytes, self.hash) = (0, Sha256::new());
        Ok(())
    }

    fn take(&mut self, piece: &[u8]) -> Result<(), ApiError> {
        self.bytes = self.bytes.saturating_add(piece.len() as u64);
        if self.bytes > self.bytes_max {
            let bytes_max = usize::try_from(self.bytes_max).unwrap_or(usize::MAX);
            return Err(ApiError::TooLarge { bytes_max });
        }
        self.hash.update(piece);
        // Into memory: nothing to wait for.
        self.file.write_all(piece).map_err(|source| ApiError::Keep { source })
    }
}
