//! The configuration file (`--config FILE`): what a worker is told beside its options.
//!
//! Read once, with the rights of whoever started the worker, after the launcher was split off. One
//! table per subject, each with a file of its own here; unknown keys are refused. What sessions may do
//! is not decided here but in the policy.

mod page;

pub mod custom_tool;
mod memory;
pub mod skills;
pub mod stage;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use stockade_runtime::host::HostFacts;
use stockade_runtime::policy::Policy;
use stockade_runtime::spec::{self, OutsideLimits, SpecError};
use toml::Spanned;

pub use memory::{Deletions, MemoryConfig};
use skills::SkillsConfig;

/// Longest configuration file.
const BYTES_MAX: u64 = 1 << 20;

/// A configuration as written; what is left out has its default.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    custom_tool: Vec<Spanned<custom_tool::Written>>,
    /// Programs that serve custom tools.
    #[serde(skip)]
    pub tools: Vec<custom_tool::CustomTool>,
    /// Tables that the file has, as they are written: `[skills]`.
    #[serde(skip)]
    pub sections: Vec<String>,
    /// Skills of sessions.
    pub skills: SkillsConfig,
    /// Credentials of what is staged.
    pub stage: stage::StageConfig,
    /// Memory stores.
    pub memory: MemoryConfig,
}

impl Config {
    /// What limits the tools on the host, if there are any.
    ///
    /// # Errors
    /// If they cannot be limited as `policy` wants sessions to be.
    pub fn limits_outside(
        &self,
        policy: &Policy,
        facts: &HostFacts,
    ) -> Result<Option<OutsideLimits>, SpecError> {
        let any = self.tools.iter().any(|tool| tool.place != custom_tool::Place::Jail);
        any.then(|| spec::outside_limits(policy, facts)).transpose()
    }
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
        /// The page about the table that it is in.
        page: &'static str,
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

impl ConfigError {
    /// Where what the file may hold is written.
    pub fn hint(&self) -> String {
        let page = match self {
            ConfigError::Read { .. } => page::OF_ALL,
            ConfigError::Syntax { page, .. } => page,
            ConfigError::Value { .. } => page::of_section("custom_tool"),
        };
        format!("{page} lists what it may hold")
    }
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
    let line_of = |at: usize| text[..at].matches('\n').count() + 1;
    let wrong = |source: toml::de::Error| {
        let page = source.span().map_or(page::OF_ALL, |at| page::of_line(&text, line_of(at.start)));
        ConfigError::Syntax { path: path.to_owned(), source: Box::new(source), page }
    };
    let config: Config = toml::from_str(&text).map_err(wrong)?;
    let tables: toml::Table = toml::from_str(&text).map_err(wrong)?;
    let tools = custom_tool::check(&config.custom_tool, &line_of).map_err(|mistake| {
        let line = line_of(mistake.at.start);
        ConfigError::Value { path: path.to_owned(), line, reason: mistake.reason }
    })?;
    let sections = tables.iter().map(|(name, table)| match table {
        toml::Value::Array(_) => format!("[[{name}]]"),
        _ => format!("[{name}]"),
    });
    Ok(Config { tools, sections: sections.collect(), ..config })
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
    fn a_mistake_leads_to_the_page_about_its_table() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for (text, page) in [
            ("[skils]\n", "docs/poll.md"),
            ("[skills]\nexec = true\n", "docs/skills.md"),
            ("[skills.digests]\n\"a\" = \"b\"\n", "docs/skills.md"),
            ("[memory]\n# often\nsync_interval = \"1s\"\n", "docs/memory.md"),
            ("memory = { store_files = 1 }\n", "docs/memory.md"),
            ("memory.store_files = 1\n", "docs/memory.md"),
            ("[skills]\n[stage]\nsvn = 1\n", "docs/staging.md"),
            ("[[stage.s3]]\nendpoint = 7\n", "docs/staging.md"),
            ("[[custom_tool]]\nname = \"a\"\n", "docs/custom-tools.md"),
            (
                "[[custom_tool]]\nname = \"bash\"\nwhere = \"jail\"\ncommand = [\"/bin/true\"]\n",
                "docs/custom-tools.md",
            ),
        ] {
            std::fs::write(file.path(), text).expect("written");
            let hint = load(file.path()).expect_err(text).hint();
            assert!(hint.contains(page), "{text}: {hint}");
        }
        let missing = load(Path::new("/nonexistent.toml")).expect_err("missing");
        assert!(missing.hint().contains("docs/poll.md"));
    }

    #[test]
    fn the_tables_of_a_file_are_known_even_if_they_say_nothing() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "[skills]\n[[stage.s3]]\nendpoint = \"e\"\n").expect("written");
        assert_eq!(load(file.path()).expect("valid").sections, ["[skills]", "[stage]"]);
        std::fs::write(file.path(), "# nothing\n").expect("written");
        assert!(load(file.path()).expect("valid").sections.is_empty());
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
