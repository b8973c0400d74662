//! The `input` object of a call, parsed. Unknown members are ignored and `null` means absent
//! (TOOL-GEN-1, RUN-20).

use serde::{Deserialize, Deserializer, de::DeserializeOwned};

use super::failure::{Failure, shortened};

/// Longest reason given to the caller, in bytes: a reason of serde may repeat the value.
const REASON_BYTES_MAX: usize = 200;

#[derive(Debug, Deserialize)]
pub struct ReadInput {
    pub file_path: String,
    #[serde(default)]
    pub view_range: Option<Vec<Line>>,
}

#[derive(Debug, Deserialize)]
pub struct WriteInput {
    pub file_path: String,
    pub content: String,
}

#[derive(Debug, Deserialize)]
pub struct EditInput {
    pub file_path: String,
    pub old_string: String,
    pub new_string: String,
    #[serde(default)]
    pub replace_all: Option<bool>,
}

/// Of glob and grep.
#[derive(Debug, Deserialize)]
pub struct SearchInput {
    pub pattern: String,
    #[serde(default)]
    pub path: Option<String>,
}

/// A line number as written: any integer, clamped to 64 bits. `3.0` is an integer of JSON Schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line(pub i64);

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = serde_json::Number::deserialize(deserializer)?;
        if let Some(line) = number.as_i64() {
            return Ok(Line(line));
        }
        let value = number.as_f64().unwrap_or(f64::NAN);
        if value.fract() != 0.0 {
            return Err(serde::de::Error::custom("expected an integer"));
        }
        // A cast from a float saturates.
        #[allow(clippy::cast_possible_truncation, reason = "saturating is what is meant")]
        Ok(Line(value as i64))
    }
}

/// Parses the input of `tool`.
///
/// # Errors
/// [`Failure::Input`], with a reason that neither depends on where in the text the mistake is nor
/// repeats more than a little of it.
pub fn parse<T: DeserializeOwned>(tool: &'static str, input: &[u8]) -> Result<T, Failure> {
    // serde would also take a list, by position.
    if input.trim_ascii_start().first() != Some(&b'{') {
        return Err(Failure::Input { tool, reason: "expected a JSON object".to_owned() });
    }
    serde_json::from_slice(input).map_err(|error| {
        let text = error.to_string();
        let reason = text.rfind(" at line ").map_or(text.as_str(), |end| &text[..end]);
        Failure::Input { tool, reason: shortened(reason, REASON_BYTES_MAX) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_input_is_refused_with_a_short_stable_reason() {
        // RUN-20
        let cases: &[(&[u8], &str)] = &[
            (b"", "expected a JSON object"),
            (b"null", "expected a JSON object"),
            (br#"["a"]"#, "expected a JSON object"),
            (b"{", "EOF while parsing an object"),
            (b"{}", "missing field `file_path`"),
            (br#" {"file_path":null}"#, "invalid type: null, expected a string"),
            (br#"{"file_path":5}"#, "invalid type: integer `5`, expected a string"),
            (br#"{"file_path":"a","file_path":"b"}"#, "duplicate field `file_path`"),
            (br#"{"file_path":"a"} x"#, "trailing characters"),
            (
                br#"{"file_path":"a","view_range":"x"}"#,
                r#"invalid type: string "x", expected a sequence"#,
            ),
            (br#"{"file_path":"a","view_range":[1.5,2]}"#, "expected an integer"),
            (br#"{"file_path":"a","view_range":[1,1e999]}"#, "number out of range"),
            (br#"{"file_path":"\ud800"}"#, "unexpected end of hex escape"),
            (b"{\"file_path\":\"\xff\"}", "invalid unicode code point"),
        ];
        for (input, want) in cases {
            let got = parse::<ReadInput>("read", input).expect_err("is invalid").to_string();
            let shown = String::from_utf8_lossy(input);
            assert_eq!(got, format!("invalid read input: {want}"), "{shown}");
        }
        let long = format!("{{\"file_path\":\"a\",\"view_range\":{:?}}}", "x".repeat(1 << 20));
        let got = parse::<ReadInput>("read", long.as_bytes()).expect_err("is invalid").to_string();
        assert!(got.len() < 250, "{} bytes", got.len());
        let deep = format!("{{\"x\":{}", "[".repeat(1 << 20));
        parse::<ReadInput>("read", deep.as_bytes()).expect_err("is too deep");
    }

    #[test]
    fn optional_members_may_be_null_and_unknown_ones_are_ignored() {
        // TOOL-GEN-1, RUN-20
        for text in [
            r#"{"file_path":"a"}"#,
            r#"{"file_path":"a","view_range":null}"#,
            r#"{"view_range":null,"file_path":"a","more":{"x":[1,2]}}"#,
        ] {
            let got: ReadInput = parse("read", text.as_bytes()).expect(text);
            assert_eq!(got.file_path, "a");
            assert!(got.view_range.is_none());
        }
        let huge = r#"{"file_path":"a","view_range":[-1e300,18446744073709551615,2.0,1e300]}"#;
        let got: ReadInput = parse("read", huge.as_bytes()).expect("numbers are clamped");
        let want = [i64::MIN, i64::MAX, 2, i64::MAX].map(Line);
        assert_eq!(got.view_range.as_deref(), Some(&want[..]));
    }
}
