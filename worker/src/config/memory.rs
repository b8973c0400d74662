//! `[memory]`: how often memory stores are synced, what becomes of deletions, how large a store may
//! grow in a jail.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use stockade_runtime::policy::{ByteSize, format_duration, parse_duration};

/// Shortest time between syncs (MEM-1).
const INTERVAL_MIN: Duration = Duration::from_secs(5);
/// Longest: more is as good as off, and is said so.
const INTERVAL_MAX: Duration = Duration::from_secs(86_400);
/// Smallest and largest folder.
const SIZE: (ByteSize, ByteSize) = (ByteSize(1 << 20), ByteSize(16 << 30));
/// Fewest and most files and directories in it.
const FILES: (u64, u64) = (16, 100_000);

/// Memory stores of sessions.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryConfig {
    /// Time between syncs; `None`: sessions run without their stores.
    #[serde(deserialize_with = "interval")]
    pub sync_interval: Option<Duration>,
    /// What becomes of memories whose file was deleted.
    pub deletions: Deletions,
    /// Size of one store's folder.
    #[serde(deserialize_with = "size")]
    pub store_size: ByteSize,
    /// Files and directories in it.
    #[serde(deserialize_with = "files")]
    pub store_files: u64,
}

/// What becomes of memories whose file was deleted (MEM-26, MEM-28).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deletions {
    /// They are deleted.
    #[default]
    Enabled,
    /// They stay, and the log says how many would go.
    LogOnly,
    /// They stay.
    Disabled,
}

impl MemoryConfig {
    /// All of it, for `--check`.
    pub fn shown(&self) -> Value {
        json!({
            "sync_interval": self.sync_interval.map_or("off".to_owned(), format_duration),
            "deletions": match self.deletions {
                Deletions::Enabled => "enabled",
                Deletions::LogOnly => "log-only",
                Deletions::Disabled => "disabled",
            },
            "store_size": self.store_size.to_string(),
            "store_files": self.store_files,
        })
    }
}

impl Default for MemoryConfig {
    fn default() -> MemoryConfig {
        MemoryConfig {
            sync_interval: Some(Duration::from_secs(15)),
            deletions: Deletions::Enabled,
            // A store of the control plane has 2,000 memories of 100 KiB at most.
            store_size: ByteSize(256 << 20),
            store_files: 8192,
        }
    }
}

fn interval<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(input)?;
    if text == "off" {
        return Ok(None);
    }
    let interval = parse_duration(&text)
        .map_err(|error| serde::de::Error::custom(format!("{error}, or \"off\"")))?;
    if (INTERVAL_MIN..=INTERVAL_MAX).contains(&interval) {
        Ok(Some(interval))
    } else {
        let reason = format!("`{text}` is not within 5s and 24h; \"off\" is without memory");
        Err(serde::de::Error::custom(reason))
    }
}

fn size<'de, D: Deserializer<'de>>(input: D) -> Result<ByteSize, D::Error> {
    let text = String::deserialize(input)?;
    let size: ByteSize = text.parse().map_err(serde::de::Error::custom)?;
    let (least, most) = SIZE;
    if (least.0..=most.0).contains(&size.0) {
        Ok(size)
    } else {
        let reason = format!("`{text}` is not within {least} and {most}");
        Err(serde::de::Error::custom(reason))
    }
}

fn files<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
    let number = u64::deserialize(input)?;
    let (least, most) = FILES;
    if (least..=most).contains(&number) {
        Ok(number)
    } else {
        Err(serde::de::Error::custom(format!("{number} is not within {least} and {most}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<MemoryConfig, String> {
        #[derive(Deserialize)]
        struct Whole {
            #[serde(default)]
            memory: MemoryConfig,
        }
        let whole: Result<Whole, _> = toml::from_str(text);
        whole.map(|whole| whole.memory).map_err(|error| error.to_string())
    }

    #[test]
    fn a_configuration_without_it_has_the_documented_defaults() {
        // MEM-1.
        let memory = config("").expect("valid");
        assert_eq!(memory, config("[memory]").expect("valid"));
        assert_eq!(memory.sync_interval, Some(Duration::from_secs(15)));
        assert_eq!(memory.deletions, Deletions::Enabled);
    }

    #[test]
    fn the_documented_configuration_is_the_default_one() {
        let page = include_str!("../../../docs/memory.md");
        let (_, rest) = page.split_once("```toml config\n").expect("a configuration");
        let (text, _) = rest.split_once("```").expect("an end");
        assert_eq!(config(text).expect("valid"), MemoryConfig::default());
        assert!(text.contains("store_files"), "{text}");
    }

    #[test]
    fn what_is_written_is_used_and_what_cannot_work_has_its_place() {
        // MEM-1: five seconds are the least; no number is no interval.
        let memory = config(
            "[memory]\nsync_interval = \"5s\"\ndeletions = \"log-only\"\nstore_size = \"64MiB\"\nstore_files = 100",
        );
        let memory = memory.expect("valid");
        assert_eq!(memory.sync_interval, Some(Duration::from_secs(5)));
        assert_eq!(memory.deletions, Deletions::LogOnly);
        assert_eq!((memory.store_size, memory.store_files), (ByteSize(64 << 20), 100));
        let off = config("[memory]\nsync_interval = \"off\"").expect("valid");
        assert_eq!(off.sync_interval, None);
        for (line, why) in [
            ("sync_interval = \"4999ms\"", "not within 5s"),
            ("sync_interval = \"25h\"", "not within 5s"),
            ("sync_interval = \"nan\"", "or \"off\""),
            ("sync_interval = \"NaNs\"", "or \"off\""),
            ("sync_interval = 15", "expected a string"),
            ("sync_interval = nan", "expected a string"),
            ("deletions = \"maybe\"", "unknown variant `maybe`"),
            ("store_size = \"1KiB\"", "not within 1MiB"),
            ("store_files = 1", "not within 16"),
            ("store_files = -1", "expected u64"),
            ("sync = \"5s\"", "unknown field `sync`"),
        ] {
            let error = config(&format!("[memory]\n{line}")).expect_err(line);
            assert!(error.contains(why) && error.contains("line 2"), "{line}: {error}");
        }
    }
}
