//! `worker policy presets`: the lists of egress rules that are part of the binary.

use serde_json::{Value, json};
use stockade_runtime::policy::network::{PRESETS, Preset};

use super::policy::ReportFormat;

/// Every preset, its version and what it is for.
pub fn list(format: ReportFormat) -> String {
    match format {
        ReportFormat::Text => {
            let line = |preset: &Preset| {
                format!("{:<12}  {}  {}\n", preset.name, preset.version(), preset.purpose())
            };
            PRESETS.iter().map(line).collect()
        }
        ReportFormat::Json => {
            let presets: Vec<Value> = PRESETS.iter().map(|preset| described(*preset)).collect();
            let document = json!({
                "schema": "stockade.policy.presets",
                "schema_version": 1,
                "presets": presets,
            });
            format!("{document:#}\n")
        }
    }
}

/// One preset: the file itself, or its rules as JSON.
pub fn show(preset: Preset, format: ReportFormat) -> String {
    match format {
        ReportFormat::Text => preset.text.to_owned(),
        ReportFormat::Json => {
            let rules = preset.rules().into_iter().map(|entry| {
                json!({
                    "rule": entry.rule.value.to_string(),
                    "protocol": entry.rule.value.protocol.name(),
                    "why": entry.why,
                    "at": entry.rule.origin.to_string(),
                })
            });
            let mut document = described(preset);
            document["schema"] = "stockade.policy.preset".into();
            document["schema_version"] = 1.into();
            document["rules"] = rules.collect();
            format!("{document:#}\n")
        }
    }
}

fn described(preset: Preset) -> Value {
    json!({ "name": preset.name, "version": preset.version(), "purpose": preset.purpose() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_listed_and_can_be_shown() {
        let text = list(ReportFormat::Text);
        assert_eq!(text.lines().count(), PRESETS.len(), "{text}");
        let json: Value = serde_json::from_str(&list(ReportFormat::Json)).expect("JSON");
        assert_eq!(json["presets"].as_array().map(Vec::len), Some(PRESETS.len()));
        for preset in PRESETS {
            assert_eq!(show(preset, ReportFormat::Text), preset.text);
            let json: Value =
                serde_json::from_str(&show(preset, ReportFormat::Json)).expect("JSON");
            assert_eq!(json["rules"].as_array().map(Vec::len), Some(preset.rules().len()));
            assert!(json["rules"][0]["why"].is_string(), "{json}");
        }
    }
}
