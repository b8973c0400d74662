//! Why a policy was refused: place, key, what was found and what was expected.

use std::io;

use super::model::Origin;
use super::units::UnitError;

/// Why a policy was refused. Every variant that concerns a file names the place in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Not TOML.
    #[error("{at}: cannot parse the file as TOML: {reason}")]
    Syntax {
        /// Where.
        at: Origin,
        /// What the TOML parser expected.
        reason: String,
    },
    /// Longer than any policy needs to be.
    #[error("{file}: cannot accept the file: {bytes} bytes, at most {max} are read")]
    TooLong {
        /// The file as the operator named it.
        file: String,
        /// Its length.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// A key that does not exist.
    #[error("{at}: cannot accept `{key}`: unknown key, expected {expected}")]
    UnknownKey {
        /// Where the key stands.
        at: Origin,
        /// The whole path of the key.
        key: String,
        /// The keys that exist there.
        expected: String,
        /// The existing key that looks most like it.
        suggestion: Option<String>,
    },
    /// A key that must be there is not.
    #[error("{at}: cannot find `{key}`: the key is required")]
    MissingKey {
        /// Where its table starts.
        at: Origin,
        /// The whole path of the key.
        key: String,
    },
    /// A value of the wrong type or outside its bounds.
    #[error("{at}: cannot accept `{key}`: expected {expected}, found {found}")]
    Value {
        /// Where the value stands.
        at: Origin,
        /// The whole path of the key.
        key: String,
        /// What was written.
        found: String,
        /// What may be written.
        expected: String,
    },
    /// A well-formed value that no jail may be given.
    #[error("{at}: cannot accept `{value}` in `{key}`: {reason}")]
    Refused {
        /// Where the value stands.
        at: Origin,
        /// The whole path of the key.
        key: String,
        /// What was written.
        value: String,
        /// Why not.
        reason: String,
    },
    /// The same entry twice, or in two keys that exclude each other.
    #[error("{at}: cannot accept `{value}` in `{key}`: already written at {first}")]
    Duplicate {
        /// Where the second one stands.
        at: Origin,
        /// The whole path of the key.
        key: String,
        /// The entry.
        value: String,
        /// Where the first one stands.
        first: Box<Origin>,
    },
    /// A policy that would allow more than the one it extends.
    #[error("{at}: cannot set `{key}` to {value}: wider than {parent_value}, set at {parent}")]
    Widened {
        /// Where the child's value stands.
        at: Box<Origin>,
        /// The whole path of the key.
        key: String,
        /// The child's value.
        value: String,
        /// Where the parent's value stands.
        parent: Box<Origin>,
        /// The parent's value.
        parent_value: String,
    },
    /// A policy that extends itself, directly or not.
    #[error("{at}: cannot extend `{name}`: it already extends this policy ({chain})")]
    Cycle {
        /// Where `extends` stands.
        at: Origin,
        /// The policy named there.
        name: String,
        /// The way round.
        chain: String,
    },
    /// More generations than a reader can follow.
    #[error("{at}: cannot extend `{name}`: more than {max} policies in the chain")]
    TooDeep {
        /// Where `extends` stands.
        at: Origin,
        /// The policy named there.
        name: String,
        /// The bound.
        max: usize,
    },
    /// A name that is neither shipped nor in a policy directory.
    #[error("{}cannot find policy `{name}`: known are {known}", prefix(at.as_ref()))]
    UnknownPolicy {
        /// Where `extends` stands; `None` for the command line.
        at: Option<Origin>,
        /// The name.
        name: String,
        /// Shipped names.
        known: String,
    },
    /// A file that could not be read.
    #[error("{}cannot read policy {file}", prefix(at.as_ref()))]
    Read {
        /// Where `extends` stands; `None` for the command line.
        at: Option<Origin>,
        /// The file.
        file: String,
        /// The cause.
        source: io::Error,
    },
    /// A `--limit` key that does not exist.
    #[error("cannot limit `{key}`: expected one of {known}")]
    UnknownLimit {
        /// What was written before the `=`.
        key: String,
        /// The keys that exist.
        known: String,
    },
    /// A `--limit` value that cannot be read.
    #[error("cannot limit `{key}`")]
    LimitValue {
        /// What was written before the `=`.
        key: String,
        /// The cause.
        source: UnitError,
    },
}

impl PolicyError {
    /// The remedy, where there is one that does not depend on the case.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::UnknownKey { suggestion: Some(key), .. } => {
                return Some(format!("did you mean `{key}`?"));
            }
            Self::UnknownKey { .. } => "`worker policy schema` lists every key",
            Self::MissingKey { key, .. } if key == "schema" => {
                "begin the file with `schema = 1`, the version of the policy format"
            }
            Self::Widened { at, .. } if at.file == "--limit" => {
                "`--limit` may only lower what the policy allows; change the policy instead"
            }
            Self::Widened { key, .. }
                if key.starts_with("network.") || key.starts_with("stage[") =>
            {
                "a policy with `extends` may only narrow what a file beneath it has named; raise the \
                 parent, or write a policy without `extends`"
            }
            Self::Widened { .. } => {
                "a policy with `extends` may only narrow; raise the parent, or write a policy \
                 without `extends`"
            }
            Self::UnknownPolicy { .. } => {
                "a file is named with a `/` or the ending `.toml`: `./NAME.toml`"
            }
            Self::Duplicate { .. } => "keep one of the two",
            Self::Read { .. } => "`worker policy list` names the policies there are",
            _ => return None,
        };
        Some(text.to_owned())
    }

    /// Where the policy is wrong; `None` if the command line is.
    pub fn at(&self) -> Option<&Origin> {
        match self {
            Self::Syntax { at, .. }
            | Self::UnknownKey { at, .. }
            | Self::MissingKey { at, .. }
            | Self::Value { at, .. }
            | Self::Refused { at, .. }
            | Self::Duplicate { at, .. }
            | Self::Cycle { at, .. }
            | Self::TooDeep { at, .. } => Some(at),
            Self::Widened { at, .. } => Some(at),
            Self::UnknownPolicy { at, .. } | Self::Read { at, .. } => at.as_ref(),
            Self::TooLong { .. } | Self::UnknownLimit { .. } | Self::LimitValue { .. } => None,
        }
    }

    /// The path of the key that is wrong, such as `process.pids` or `filesystem.writable[1]`.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::UnknownKey { key, .. }
            | Self::MissingKey { key, .. }
            | Self::Value { key, .. }
            | Self::Refused { key, .. }
            | Self::Duplicate { key, .. }
            | Self::Widened { key, .. }
            | Self::UnknownLimit { key, .. }
            | Self::LimitValue { key, .. } => Some(key),
            _ => None,
        }
    }
}

fn prefix(at: Option<&Origin>) -> String {
    at.map(|at| format!("{at}: ")).unwrap_or_default()
}
