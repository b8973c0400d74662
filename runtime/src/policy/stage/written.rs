//! One table `[[stage]]` of a policy file as written, with the place of every value.
//!
//! Pure. The doc comments of the fields are the descriptions in the JSON Schema.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::bounded::{Size, Time};
use super::super::file::At;
use super::super::units::{GIB, MIB};

/// Up to what fits a workspace that anybody would wait for.
pub(super) type StageSize = Size<1, { 64 * GIB }>;
/// What a rule may bring if it does not say.
pub(super) const SIZE_DEFAULT: u64 = 256 * MIB;
/// Up to an hour.
pub(super) type StageTime = Time<1_000, 3_600_000>;
/// How long a rule may take if it does not say, in milliseconds.
pub(super) const TIME_DEFAULT_MS: u64 = 300_000;

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(in super::super) struct StageTable {
    /// What the rule is called in logs, in the audit log and in what a session is told: letters,
    /// digits, `-`, `_` and `.`, at most 64.
    pub(super) name: At<String>,
    /// How the input is fetched: `https`, `git`, `s3` or `local`.
    pub(super) kind: At<KindName>,
    /// Where from: `metadata:KEY` for what the session's metadata says, or a fixed source:
    /// `https://host/path`, `s3://bucket/key`, `/path`, for git also `file:///path`.
    pub(super) from: At<String>,
    /// Places in which a value of the metadata, and every redirect, must lie: whole path components
    /// below one of these, at most 16. Narrower: places that the parent's cover.
    pub(super) allow: Option<At<Vec<At<String>>>>,
    /// Where it goes: a path below the workspace; a directory for git and with `unpack`.
    pub(super) to: At<String>,
    /// SHA-256 of what is fetched: 64 hexadecimal digits, or `metadata:KEY`. Required for https and s3
    /// unless `digest` says otherwise.
    pub(super) sha256: Option<At<String>>,
    /// `record`: what is fetched has no known digest; it is recorded in the audit log. Needs `why`.
    pub(super) digest: Option<At<DigestName>>,
    /// The reason for `digest = "record"`, not empty.
    pub(super) why: Option<At<String>>,
    /// The commit of a git source: 40 or 64 hexadecimal digits, or `metadata:KEY`. Required for git.
    pub(super) commit: Option<At<String>>,
    /// Address of the S3-compatible service, `https://host`. Required for s3. Who may read there is no
    /// part of a policy.
    pub(super) endpoint: Option<At<String>>,
    /// Region that requests to it are signed for [default: us-east-1].
    pub(super) region: Option<At<String>>,
    /// Bytes that may be fetched, and that an archive may unpack to [default: 256MiB]. Narrower: less.
    pub(super) size_max: Option<At<StageSize>>,
    /// How long fetching may take [default: 5m]. Narrower: less.
    pub(super) time_max: Option<At<StageTime>>,
    /// `false`: a session starts without this input, with a warning in the log [default: true].
    pub(super) required: Option<At<bool>>,
    /// `true`: what is fetched is an archive, and is unpacked [default: false; a git commit always is].
    pub(super) unpack: Option<At<bool>>,
    /// `true`: the host may have private and loopback addresses [default: false]. Narrower: `false`.
    pub(super) private: Option<At<bool>>,
}

/// How input is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub(super) enum KindName {
    Https,
    Git,
    S3,
    Local,
}

/// What stands in place of a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub(super) enum DigestName {
    Record,
}
