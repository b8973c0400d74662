//! `[skills]` of the configuration: what operators decide about skills.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use stockade_runtime::audit::Digest;
use stockade_runtime::policy::ByteSize;

use crate::skills::SkillSettings;

/// As written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SkillsConfig {
    /// Makes every file of a skill executable, whatever its archive records (SKILL-9).
    pub force_executable: bool,
    /// Lets sessions change skills. Without it they are read-only to the session.
    pub writable: bool,
    /// Refuses skills that `digests` does not name.
    pub require_digest: bool,
    /// SHA-256 of archives by `skill_id@version_id`.
    pub digests: BTreeMap<PinKey, Digest>,
    /// Largest archive, as downloaded.
    archive_size: Positive,
    /// Archives that are in memory at the same time, of all sessions.
    archives: Few,
    /// What one archive may unpack to, and all skills of a session together (SKILL-10).
    size: Positive,
    /// Members of one archive (SKILL-10).
    entries: Entries,
}

impl Default for SkillsConfig {
    fn default() -> Self {
        SkillsConfig {
            force_executable: false,
            writable: false,
            require_digest: false,
            digests: BTreeMap::new(),
            archive_size: Positive(64 << 20),
            archives: Few(4),
            size: Positive(1 << 30),
            entries: Entries(10_000),
        }
    }
}

const SIZE_MAX: u64 = 16 << 30;
/// Entries of all skills of a session together: so many times those of one.
const SESSION_ENTRIES: u64 = 10;

impl SkillsConfig {
    /// What downloading needs.
    pub fn settings(&self) -> SkillSettings {
        let digests = self.digests.iter().map(|(key, digest)| (key.0.clone(), *digest));
        SkillSettings {
            archive_bytes_max: self.archive_size.0,
            archives_max: self.archives.0,
            require_digest: self.require_digest,
            digests: digests.collect(),
        }
    }

    /// All of it, for `--check`. Digests are no secrets, but many.
    pub fn shown(&self) -> Value {
        json!({
            "force_executable": self.force_executable,
            "writable": self.writable,
            "require_digest": self.require_digest,
            "digests": self.digests.len(),
            "archive_size": ByteSize(self.archive_size.0).to_string(),
            "archives": self.archives.0,
            "size": ByteSize(self.size.0).to_string(),
            "entries": self.entries.0,
        })
    }

    /// Bytes of one archive, unpacked, and of all skills of a session.
    pub fn bytes_max(&self) -> u64 {
        self.size.0
    }

    /// Members of one archive.
    pub fn entries_max(&self) -> u64 {
        self.entries.0
    }

    /// Files and directories of all skills of a session.
    pub fn inodes_max(&self) -> u64 {
        self.entries.0 * SESSION_ENTRIES
    }
}

/// `skill_id@version_id`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct PinKey(String);

impl TryFrom<String> for PinKey {
    type Error = String;

    fn try_from(text: String) -> Result<PinKey, String> {
        let id = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        match text.split_once('@') {
            Some((skill, version)) if id(skill) && id(version) && version != "latest" => {
                Ok(PinKey(text))
            }
            _ => Err(format!(
                "`{}` is not SKILL_ID@VERSION_ID with an id of one version",
                text.escape_default()
            )),
        }
    }
}

/// A size from 1 byte to 16 GiB.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Positive(u64);

impl TryFrom<String> for Positive {
    type Error = String;

    fn try_from(text: String) -> Result<Positive, String> {
        match text.parse::<ByteSize>().map_err(|error| error.to_string())?.bytes() {
            bytes @ 1..=SIZE_MAX => Ok(Positive(bytes)),
            _ => Err("expected a size up to 16GiB, and not 0".to_owned()),
        }
    }
}

/// 1 to 64.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u64")]
struct Few(usize);

impl TryFrom<u64> for Few {
    type Error = &'static str;

    fn try_from(number: u64) -> Result<Few, &'static str> {
        let number = usize::try_from(number).ok().filter(|number| (1..=64).contains(number));
        number.map(Few).ok_or("expected 1 to 64")
    }
}

/// 1 to 100,000.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u64")]
struct Entries(u64);

impl TryFrom<u64> for Entries {
    type Error = &'static str;

    fn try_from(number: u64) -> Result<Entries, &'static str> {
        match number {
            1..=100_000 => Ok(Entries(number)),
            _ => Err("expected 1 to 100000"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn read(text: &str) -> Result<SkillsConfig, String> {
        toml::from_str::<SkillsConfig>(text).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_written_means_the_documented_defaults() {
        let config = read("").expect("valid");
        assert!(!config.force_executable && !config.writable && !config.require_digest);
        assert_eq!(config.settings().archive_bytes_max, 64 << 20);
        // SKILL-10.
        assert_eq!((config.entries_max(), config.bytes_max()), (10_000, 1 << 30));
    }

    #[test]
    fn a_digest_is_written_for_one_version() {
        let config = read(&format!("[digests]\n\"skill_a@skillver_1\" = \"sha256:{SHA}\"\n"));
        let settings = config.expect("valid").settings();
        assert_eq!(settings.digests["skill_a@skillver_1"].to_string(), SHA);
        for (text, want) in [
            (format!("[digests]\n\"skill_a\" = \"{SHA}\""), "is not SKILL_ID@VERSION_ID"),
            (format!("[digests]\n\"skill_a@latest\" = \"{SHA}\""), "is not SKILL_ID@VERSION_ID"),
            (format!("[digests]\n\"@v\" = \"{SHA}\""), "is not SKILL_ID@VERSION_ID"),
            ("[digests]\n\"a@b\" = \"abc\"".to_owned(), "64 lower-case hexadecimal digits"),
            ("archive_size = \"0\"".to_owned(), "not 0"),
            ("archive_size = \"1MB\"".to_owned(), "cannot read size `1MB`"),
            ("archives = 0".to_owned(), "expected 1 to 64"),
            ("entries = 100001".to_owned(), "expected 1 to 100000"),
            ("exec = true".to_owned(), "unknown field `exec`"),
        ] {
            let error = read(&text).expect_err(&text);
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
