//! Staging rules with nothing left to decide, and what a session's metadata says to them.
//!
//! Pure. Values of the metadata are somebody else's text: they are held against the rule here, and no
//! error repeats them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::super::model::{Origin, Setting};
use super::super::units::ByteSize;
use super::place::{Scheme, StagePlace};

/// Longest value of the metadata that is looked at.
const VALUE_BYTES_MAX: usize = 2048;

/// All staging rules of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// In the order in which they are followed.
    pub rules: Vec<StageRule>,
    /// Whether a file of the chain has written them: those that extend it may then only narrow.
    pub named: bool,
    /// Where they were written.
    pub origin: Origin,
}

/// One input and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StageRule {
    /// Its name, of which there is one.
    pub name: String,
    /// How it is fetched.
    pub kind: StageKind,
    /// Where from.
    pub from: StageSource,
    /// Places in which values of the metadata and redirects must lie.
    #[serde(serialize_with = "places")]
    pub allow: Vec<Setting<StagePlace>>,
    /// Path below the workspace, without `.`, `..` and a `/` at either end.
    pub to: String,
    /// Bytes that may be fetched, and that an archive may unpack to.
    pub size_max: ByteSize,
    /// How long fetching may take.
    pub time_max: Duration,
    /// Whether a session cannot do without it.
    pub required: bool,
    /// Whether it is an archive that is unpacked.
    pub unpack: bool,
    /// Where the rule was written.
    pub origin: Origin,
}

/// How input is fetched, with what only that kind has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageKind {
    /// One GET request.
    Https {
        /// What it must be.
        digest: StageDigest,
        /// Whether private and loopback addresses may be dialled.
        private: bool,
    },
    /// One commit of a repository.
    Git {
        /// Which.
        commit: StageValue,
        /// Whether private and loopback addresses may be dialled.
        private: bool,
    },
    /// One object of an S3-compatible store.
    S3 {
        /// Address of the store.
        #[serde(serialize_with = "place")]
        endpoint: StagePlace,
        /// Region that requests are signed for.
        region: String,
        /// What it must be.
        digest: StageDigest,
        /// Whether private and loopback addresses may be dialled.
        private: bool,
    },
    /// One file of this host.
    Local {
        /// What it must be.
        digest: StageDigest,
    },
}

/// What input must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageDigest {
    /// This SHA-256.
    Sha256(StageValue),
    /// Anything; its digest is recorded. With the operator's reason; a file of this host needs none.
    Record(String),
}

/// A fixed text, or what the metadata says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageValue {
    /// The value of this key.
    Metadata(String),
    /// This.
    Fixed(String),
}

/// A fixed place, or what the metadata says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageSource {
    /// The value of this key.
    Metadata(String),
    /// This.
    #[serde(serialize_with = "place")]
    Fixed(StagePlace),
}

/// Why the metadata does not say what a rule needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// It has no such key.
    #[error("the metadata has no `{key}`")]
    Missing {
        /// Which.
        key: String,
    },
    /// The value cannot be used.
    #[error("the value of `{key}` in the metadata cannot be used: {reason}")]
    Malformed {
        /// Of which key.
        key: String,
        /// Why, without the value.
        reason: &'static str,
    },
    /// The value leads elsewhere.
    #[error("the value of `{key}` in the metadata lies outside the places that the policy allows")]
    Outside {
        /// Of which key.
        key: String,
    },
}

impl StageKind {
    /// Its name in policies, logs and the audit log.
    pub fn name(&self) -> &'static str {
        match self {
            StageKind::Https { .. } => "https",
            StageKind::Git { .. } => "git",
            StageKind::S3 { .. } => "s3",
            StageKind::Local { .. } => "local",
        }
    }

    /// How its places begin.
    pub fn schemes(&self) -> &'static [Scheme] {
        match self {
            StageKind::Https { .. } => &[Scheme::Https],
            StageKind::Git { .. } => &[Scheme::Https, Scheme::File],
            StageKind::S3 { .. } => &[Scheme::S3],
            StageKind::Local { .. } => &[Scheme::File],
        }
    }

    /// What it must be; a commit says that by itself.
    pub fn digest(&self) -> Option<&StageDigest> {
        match self {
            StageKind::Git { .. } => None,
            StageKind::Https { digest, .. }
            | StageKind::S3 { digest, .. }
            | StageKind::Local { digest } => Some(digest),
        }
    }

    /// Whether private and loopback addresses may be dialled.
    pub fn private(&self) -> bool {
        match self {
            StageKind::Https { private, .. }
            | StageKind::Git { private, .. }
            | StageKind::S3 { private, .. } => *private,
            StageKind::Local { .. } => false,
        }
    }
}

impl StageRule {
    /// Where this rule leads with this metadata.
    ///
    /// # Errors
    /// [`ValueError`].
    pub fn place(&self, metadata: &BTreeMap<String, String>) -> Result<StagePlace, ValueError> {
        let key = match &self.from {
            StageSource::Fixed(place) => return Ok(place.clone()),
            StageSource::Metadata(key) => key,
        };
        let malformed = |reason| ValueError::Malformed { key: key.clone(), reason };
        let place =
            StagePlace::parse(value(metadata, key)?, self.kind.schemes()).map_err(malformed)?;
        if place.components().is_empty() || place.is_directory() {
            return Err(malformed("it names no single thing"));
        }
        if !self.allows(&place) {
            return Err(ValueError::Outside { key: key.clone() });
        }
        Ok(place)
    }

    /// Whether `place` lies in a place that the rule allows, or is its fixed source.
    pub fn allows(&self, place: &StagePlace) -> bool {
        let fixed = matches!(&self.from, StageSource::Fixed(fixed) if fixed == place);
        fixed || self.allow.iter().any(|prefix| place.is_within(&prefix.value))
    }

    /// The SHA-256 that the input must have; `None` if it is only recorded.
    ///
    /// # Errors
    /// [`ValueError`].
    pub fn sha256(
        &self,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Option<[u8; 32]>, ValueError> {
        let Some(StageDigest::Sha256(wanted)) = self.kind.digest() else { return Ok(None) };
        let (key, text) = wanted.text(metadata)?;
        let reason = "it is not a SHA-256 of 64 hexadecimal digits";
        let malformed = || ValueError::Malformed { key: key.to_owned(), reason };
        parse_sha256(text).map(Some).ok_or_else(malformed)
    }

    /// The commit of a git source in lower case; `None` for other kinds.
    ///
    /// # Errors
    /// [`ValueError`].
    pub fn commit(
        &self,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Option<String>, ValueError> {
        let StageKind::Git { commit, .. } = &self.kind else { return Ok(None) };
        let (key, text) = commit.text(metadata)?;
        if !is_commit(text) {
            let reason = "it is not a commit of 40 or 64 hexadecimal digits";
            return Err(ValueError::Malformed { key: key.to_owned(), reason });
        }
        Ok(Some(text.to_ascii_lowercase()))
    }
}

impl StageValue {
    /// The key, empty for a fixed text, and the text.
    fn text<'a>(
        &'a self,
        metadata: &'a BTreeMap<String, String>,
    ) -> Result<(&'a str, &'a str), ValueError> {
        match self {
            StageValue::Fixed(text) => Ok(("", text)),
            StageValue::Metadata(key) => Ok((key, value(metadata, key)?)),
        }
    }
}

fn value<'a>(metadata: &'a BTreeMap<String, String>, key: &str) -> Result<&'a str, ValueError> {
    let value = metadata.get(key).filter(|value| !value.is_empty());
    let value = value.ok_or_else(|| ValueError::Missing { key: key.to_owned() })?;
    if value.len() > VALUE_BYTES_MAX {
        let reason = "it is longer than 2048 bytes";
        return Err(ValueError::Malformed { key: key.to_owned(), reason });
    }
    Ok(value)
}

/// 64 hexadecimal digits as bytes.
pub(super) fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

pub(super) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn place<S: serde::Serializer>(place: &StagePlace, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(place)
}

fn places<S: serde::Serializer>(places: &[Setting<StagePlace>], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(places.iter().map(|place| place.value.to_string()))
}
