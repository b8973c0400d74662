//! Presets: lists of egress rules that are part of the binary. Never implied: a policy names them.
//!
//! Pure. Their texts are in `policies/presets/` at the root of the repository. A change of a preset's
//! rules is a new version of it, and of the digest of every policy that names it.

use serde::Deserialize;

use super::super::file::At;
use super::super::model::Setting;
use super::super::parse::Source;
use super::rule::{EgressRule, Protocol};

/// A preset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// The name by which policies use it.
    pub name: &'static str,
    /// Its text, comments included.
    pub text: &'static str,
}

/// Every preset.
pub const PRESETS: [Preset; 5] = [
    Preset { name: "git-hosts", text: include_str!("../../../../policies/presets/git-hosts.toml") },
    Preset { name: "node", text: include_str!("../../../../policies/presets/node.toml") },
    Preset {
        name: "os-packages",
        text: include_str!("../../../../policies/presets/os-packages.toml"),
    },
    Preset { name: "python", text: include_str!("../../../../policies/presets/python.toml") },
    Preset { name: "rust", text: include_str!("../../../../policies/presets/rust.toml") },
];

/// One rule of a preset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresetRule {
    /// The rule and its place in the preset.
    pub rule: Setting<EgressRule>,
    /// What it is for.
    pub why: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PresetFile {
    schema: u32,
    name: String,
    version: u32,
    purpose: String,
    rules: Vec<PresetEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PresetEntry {
    rule: At<String>,
    /// Where it is not that of the port: ssh on 443.
    protocol: Option<Protocol>,
    why: String,
}

impl Preset {
    /// The preset of that name.
    pub fn find(name: &str) -> Option<Preset> {
        PRESETS.into_iter().find(|preset| preset.name == name)
    }

    /// Its file, as it is shown.
    pub fn file(self) -> String {
        format!("policies/presets/{}.toml", self.name)
    }

    /// Counted up with every change of its rules.
    pub fn version(self) -> u32 {
        self.read().version
    }

    /// One sentence: what it is for.
    pub fn purpose(self) -> String {
        self.read().purpose
    }

    /// Its rules in their order.
    pub fn rules(self) -> Vec<PresetRule> {
        let source = Source { file: self.file(), text: self.text.to_owned() };
        let entries = self.read().rules.into_iter();
        let listed = entries.map(|entry| {
            let rule = entry.rule.get().parse::<EgressRule>().expect("rules of presets are valid");
            let protocol = entry.protocol.unwrap_or(rule.protocol);
            let origin = source.origin(entry.rule.span());
            let rule = Setting { value: EgressRule { protocol, ..rule }, origin };
            PresetRule { rule, why: entry.why }
        });
        listed.collect()
    }

    fn read(self) -> PresetFile {
        let file: PresetFile = toml::from_str(self.text).expect("presets are valid");
        debug_assert!(file.schema == 1 && file.name == self.name);
        file
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::rule::Pattern;
    use super::*;

    #[test]
    fn every_preset_is_valid_and_says_why_each_name_is_in_it() {
        for preset in PRESETS {
            let file = preset.read();
            assert_eq!((file.schema, file.name.as_str()), (1, preset.name));
            assert!(file.version >= 1 && !file.purpose.is_empty(), "{}", preset.name);
            let rules = preset.rules();
            assert!(!rules.is_empty() && rules.len() <= 64, "{}", preset.name);
            let mut seen = BTreeSet::new();
            for entry in rules {
                let (rule, place) = (entry.rule.value, entry.rule.origin);
                assert!(!entry.why.trim().is_empty(), "{place}");
                assert!(!rule.private, "{place}");
                assert_ne!(rule.port, 53, "{place}");
                assert!(matches!(rule.pattern, Pattern::Exact(_)), "{place}: {rule}");
                assert_eq!(place.file, format!("policies/presets/{}.toml", preset.name));
                assert!(place.line > 4, "{place}");
                assert!(seen.insert(rule.clone()), "{place}: {rule} is there twice");
            }
        }
        assert!(PRESETS.is_sorted_by_key(|preset| preset.name));
    }
}
