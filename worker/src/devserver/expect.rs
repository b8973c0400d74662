//! What a script expects of a tool result, and what differs.

use base64::Engine as _;
use regex::Regex;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Characters of a result that an explanation shows.
const SHOWN_MAX: usize = 400;

/// Conditions; all that are written must hold.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    is_error: Option<bool>,
    /// The text of all text blocks, exactly.
    text: Option<String>,
    contains: Option<OneOrMany>,
    lacks: Option<OneOrMany>,
    #[serde(deserialize_with = "regex")]
    matches: Option<Regex>,
    /// Type of the first block.
    block: Option<String>,
    media_type: Option<String>,
    blocks: Option<usize>,
    /// Bytes of all text and of all decoded data.
    bytes_min: Option<usize>,
    bytes_max: Option<usize>,
}

/// A text, or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn each(&self) -> &[String] {
        match self {
            OneOrMany::One(text) => std::slice::from_ref(text),
            OneOrMany::Many(texts) => texts,
        }
    }
}

fn regex<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Regex>, D::Error> {
    let text = String::deserialize(input)?;
    Regex::new(&text).map(Some).map_err(serde::de::Error::custom)
}

/// What a posted result holds, without its content.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    pub is_error: bool,
    pub text: String,
    pub block_types: Vec<String>,
    pub media_type: Option<String>,
    pub bytes: usize,
}

impl Summary {
    /// Of a result event that was checked before.
    pub fn of(result: &Value) -> Summary {
        let mut summary = Summary {
            is_error: result["is_error"].as_bool().unwrap_or_default(),
            ..Summary::default()
        };
        for block in result["content"].as_array().into_iter().flatten() {
            summary.block_types.push(block["type"].as_str().unwrap_or_default().to_owned());
            if let Some(text) = block["text"].as_str() {
                summary.text.push_str(text);
                summary.bytes += text.len();
            }
            let source = &block["source"];
            if summary.media_type.is_none() {
                summary.media_type = source["media_type"].as_str().map(str::to_owned);
            }
            if let (Some("base64"), Some(data)) = (source["type"].as_str(), source["data"].as_str())
            {
                let data = base64::engine::general_purpose::STANDARD.decode(data);
                summary.bytes += data.map_or(0, |data| data.len());
            }
        }
        summary
    }
}

impl Expect {
    /// What differs, one sentence each.
    pub fn differences(&self, got: &Summary) -> Vec<String> {
        let mut wrong = Vec::new();
        let shown = || shorten(&got.text);
        if self.is_error.is_some_and(|want| want != got.is_error) {
            wrong.push(format!("is_error is {}: {}", got.is_error, shown()));
        }
        if let Some(want) = self.text.as_ref().filter(|want| **want != got.text) {
            wrong.push(format!("text is {}, not {}", shown(), shorten(want)));
        }
        for part in self.contains.iter().flat_map(OneOrMany::each) {
            if !got.text.contains(part.as_str()) {
                wrong.push(format!("text lacks {part:?}: {}", shown()));
            }
        }
        for part in self.lacks.iter().flat_map(OneOrMany::each) {
            if got.text.contains(part.as_str()) {
                wrong.push(format!("text contains {part:?}: {}", shown()));
            }
        }
        if let Some(regex) = self.matches.as_ref().filter(|regex| !regex.is_match(&got.text)) {
            wrong.push(format!("text does not match {:?}: {}", regex.as_str(), shown()));
        }
        let first = got.block_types.first();
        if self.block.as_ref().is_some_and(|want| Some(want) != first) {
            wrong.push(format!("the first block is {first:?}: {}", shown()));
        }
        if self.media_type.is_some() && self.media_type != got.media_type {
            wrong.push(format!("media type is {:?}", got.media_type));
        }
        if self.blocks.is_some_and(|want| want != got.block_types.len()) {
            wrong.push(format!("{} blocks", got.block_types.len()));
        }
        if self.bytes_min.is_some_and(|min| got.bytes < min) {
            wrong.push(format!("{} bytes are fewer than {:?}", got.bytes, self.bytes_min));
        }
        if self.bytes_max.is_some_and(|max| got.bytes > max) {
            wrong.push(format!("{} bytes are more than {:?}", got.bytes, self.bytes_max));
        }
        wrong
    }
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= SHOWN_MAX {
        return format!("{text:?}");
    }
    let start: String = text.chars().take(SHOWN_MAX).collect();
    format!("{start:?}… ({} bytes)", text.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_condition_has_a_result_that_fails_it() {
        let text = json!({"is_error": false, "content": [{"type": "text", "text": "hello"}]});
        let image = json!({"is_error": true, "content": [{"type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}}]});
        #[rustfmt::skip]
        let cases = [
            (json!({}),                              true,  true),
            (json!({"is_error": false}),             true,  false),
            (json!({"text": "hello"}),               true,  false),
            (json!({"contains": "ell"}),             true,  false),
            (json!({"contains": ["h", "x"]}),        false, false),
            (json!({"lacks": "ell"}),                false, true),
            (json!({"matches": "^h.*o$"}),           true,  false),
            (json!({"block": "image"}),              false, true),
            (json!({"media_type": "image/png"}),     false, true),
            (json!({"blocks": 1}),                   true,  true),
            (json!({"blocks": 2}),                   false, false),
            (json!({"bytes_min": 5}),                true,  true),
            (json!({"bytes_min": 6}),                false, false),
            (json!({"bytes_max": 4}),                false, false),
        ];
        for (written, of_text, of_image) in cases {
            let expect: Expect = serde_json::from_value(written.clone()).expect("valid");
            assert_eq!(expect.differences(&Summary::of(&text)).is_empty(), of_text, "{written}");
            assert_eq!(expect.differences(&Summary::of(&image)).is_empty(), of_image, "{written}");
        }
    }
}
