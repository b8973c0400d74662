//! Rules as TOML that means the same: for the effective policy, its digest, and errors.
//!
//! Pure.

use super::super::effective::Written;
use super::model::{StageDigest, StageKind, StageRule, StageSource, StageValue};

/// Keys in the order of the policy format.
const KEYS: [&str; 16] = [
    "name", "kind", "from", "allow", "to", "sha256", "digest", "why", "commit", "endpoint",
    "region", "size_max", "time_max", "required", "unpack", "private",
];

/// Keys and values of one rule, all that it has.
pub(in super::super) fn rules(rule: &StageRule) -> Vec<(&'static str, String)> {
    let lines = KEYS.iter().map(|key| (*key, line(rule, key)));
    let lines = lines.filter(|(_, text)| !text.is_empty());
    let git = matches!(rule.kind, StageKind::Git { .. });
    let local = matches!(rule.kind, StageKind::Local { .. });
    lines.filter(|(key, _)| !(git && *key == "unpack" || local && *key == "private")).collect()
}

/// The value of one key as TOML; empty where the rule has none.
pub(super) fn line(rule: &StageRule, key: &str) -> String {
    match (key, &rule.kind) {
        ("name", _) => rule.name.written(),
        ("kind", kind) => kind.name().to_owned().written(),
        ("from", _) => match &rule.from {
            StageSource::Metadata(key) => format!("metadata:{key}").written(),
            StageSource::Fixed(place) => place.to_string().written(),
        },
        ("allow", _) => {
            let places = rule.allow.iter().map(|place| place.value.to_string().written());
            format!("[{}]", places.collect::<Vec<_>>().join(", "))
        }
        ("to", _) => rule.to.written(),
        ("sha256", kind) => match kind.digest() {
            Some(StageDigest::Sha256(wanted)) => value(wanted),
            _ => String::new(),
        },
        ("digest", kind) => match kind.digest() {
            Some(StageDigest::Record(why)) if !why.is_empty() => "record".to_owned().written(),
            _ => String::new(),
        },
        ("why", kind) => match kind.digest() {
            Some(StageDigest::Record(why)) if !why.is_empty() => why.written(),
            _ => String::new(),
        },
        ("commit", StageKind::Git { commit, .. }) => value(commit),
        ("endpoint", StageKind::S3 { endpoint, .. }) => endpoint.to_string().written(),
        ("region", StageKind::S3 { region, .. }) => region.written(),
        ("size_max", _) => rule.size_max.written(),
        ("time_max", _) => rule.time_max.written(),
        ("required", _) => flag(rule.required),
        ("unpack", _) => flag(rule.unpack),
        ("private", kind) => flag(kind.private()),
        _ => String::new(),
    }
}

pub(super) fn flag(on: bool) -> String {
    on.written()
}

fn value(value: &StageValue) -> String {
    match value {
        StageValue::Metadata(key) => format!("metadata:{key}").written(),
        StageValue::Fixed(text) => text.written(),
    }
}
