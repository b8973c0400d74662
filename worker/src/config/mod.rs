//! The configuration file (`--config FILE`): what a worker is told beside its options.
//!
//! Read once, with the rights of whoever started the worker, after the launcher was split off. One
//! table per subject, each with a file of its own here; unknown keys are refused. What sessions may do
//! is not decided here but in the policy.

pub mod custom_tool;
mod memory;
pub mod skills;
pub mod stage;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

pub use memory::{Deletions, MemoryConfig};
use skills::SkillsConfig;

/// Longest configuration file.
const BYTES_MAX: u64 = 1 << 20;

/// A configuration as written; what is left out has its default.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Programs that serve custom tools; checked when the file is read.
    pub custom_tool: Vec<Spanned<custom_tool::Written>>,
    /// Skills of sessions.
    pub skills: SkillsConfig,
    /// Credentials of what is staged.
    pub stage: stage::StageConfig,
    /// Memory stores.
    pub memory: MemoryConfig,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a configuration. The text of the cause names line and column.
    #[error("cannot use the configuration {path}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// It says something that cannot be done.
    #[error("cannot use the configuration {path}: line {line}: {reason}")]
    Value {
        /// Which.
        path: PathBuf,
        /// Where in it, from 1.
        line: usize,
        /// Why.
        reason: String,
    },
}

/// Reads a configuration file.
///
/// # Errors
/// [`ConfigError`].
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let read = || {
        let mut text = String::new();
        let file = std::fs::File::open(path)?;
        let read = file.take(BYTES_MAX + 1).read_to_string(&mut text)?;
        if read as u64 > BYTES_MAX {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        Ok(text)
    };
    let text = read().map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let config: Config = toml::from_str(&text).map_err(|source| {
        let (path, source) = (path.to_owned(), Box::new(source));
        ConfigError::Syntax { path, source }
    })?;
    custom_tool::check(&config.custom_tool).map_err(|mistake| {
        let line = text[..mistake.at.start].matches('\n').count() + 1;
        ConfigError::Value { path: path.to_owned(), line, reason: mistake.reason }
    })?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_with_its_place() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "\n[skils]\na = 1\n").expect("a file");
        let error = load(file.path()).expect_err("unknown");
        let cause = std::error::Error::source(&error).expect("a cause").to_string();
        assert!(cause.contains("line 2") && cause.contains("skils"), "{cause}");
    }

    #[test]
    fn a_file_that_is_not_there_or_too_long_is_named() {
        let missing = load(Path::new("/nonexistent.toml")).expect_err("missing").to_string();
        assert!(missing.contains("/nonexistent.toml"), "{missing}");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "#".repeat(2 << 20)).expect("a file");
        assert!(matches!(load(file.path()), Err(ConfigError::Read { .. })));
    }
}
