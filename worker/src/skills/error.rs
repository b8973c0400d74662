//! Why a skill is not in the jail.

use std::time::Duration;

use stockade_runtime::audit::Digest;

use super::ShelfError;
use crate::queue::ApiError;

/// Why a skill is not in the jail. Nothing in it comes out of the archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SkillError {
    #[error("cannot find the skill's version")]
    Version { source: ApiError },
    #[error("cannot use the skill's name as a directory: {reason}")]
    Name { reason: BadName },
    #[error("cannot use version {version_id}: the configuration has no digest of it")]
    NotPinned { version_id: String },
    #[error("cannot download the skill")]
    Download { source: ApiError },
    #[error("cannot use version {version_id}: its archive has digest {found}, not {wanted}")]
    Digest { version_id: String, wanted: Digest, found: Digest },
    #[error("cannot unpack the skill")]
    Unpack { source: ShelfError },
    #[error("cannot lay the skill: the working directory has something else called `skills`")]
    Place,
    #[error("cannot wait for the skill: all skills of a session have {after:?}")]
    Time { after: Duration },
}

impl SkillError {
    /// One word for the audit log.
    pub fn reason(&self) -> &'static str {
        match self {
            SkillError::Version { source } | SkillError::Download { source } => match source {
                ApiError::Status { status: 404, .. } => "not_found",
                ApiError::TooLarge { .. } => "too_large",
                ApiError::Status { .. } => "refused",
                ApiError::Timeout { .. } => "timeout",
                _ => "not_downloaded",
            },
            SkillError::Name { .. } => "name",
            SkillError::NotPinned { .. } => "not_pinned",
            SkillError::Digest { .. } => "digest",
            SkillError::Unpack { source: ShelfError::Refused { .. } } => "archive",
            SkillError::Unpack { source: ShelfError::Gone } => "jail",
            SkillError::Place => "place",
            SkillError::Time { .. } => "timeout",
        }
    }
}

/// What is wrong with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    #[error("it is empty")]
    Empty,
    #[error("it is longer than 255 bytes")]
    Long,
    #[error("it has a separator")]
    Separator,
    #[error("it has a character that is not shown")]
    Control,
    #[error("it begins like a directory of the worker's own")]
    Reserved,
}
