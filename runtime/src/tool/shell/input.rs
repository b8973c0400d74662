//! What a call of bash asks for (protocol TOOL-BASH-10 to 12, RUN-20).

use std::time::Duration;

use serde::Deserialize;

use super::ShellLimits;

/// A checked call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    /// Nothing to run means: only restart.
    pub command: Option<String>,
    pub restart: bool,
    pub timeout: Duration,
}

/// As written. Members that are not known are passed over; null is the same as absent.
#[derive(Debug, Deserialize)]
struct Written {
    command: Option<String>,
    restart: Option<bool>,
    timeout_ms: Option<serde_json::Number>,
}

/// Parses the `input` of a call.
///
/// # Errors
/// The text that the model gets.
pub(super) fn parse(input: &[u8], limits: &ShellLimits) -> Result<Request, String> {
    let invalid = |reason: String| format!("invalid bash input: {reason}");
    let value: serde_json::Value =
        serde_json::from_slice(input).map_err(|error| invalid(error.to_string()))?;
    if !value.is_object() {
        return Err(invalid("not an object".to_owned()));
    }
    let written: Written =
        serde_json::from_value(value).map_err(|error| invalid(error.to_string()))?;
    let timeout = match &written.timeout_ms {
        None => limits.default_timeout,
        Some(number) => match whole(number) {
            None => return Err(invalid("`timeout_ms` is not an integer".to_owned())),
            Some(1..) if number.as_f64().is_some_and(|ms| ms >= u64::MAX as f64) => {
                limits.timeout_max
            }
            Some(ms @ 1..) => Duration::from_millis(ms as u64).min(limits.timeout_max),
            Some(_) => limits.default_timeout,
        },
    };
    let restart = written.restart.unwrap_or(false);
    let command = written.command.filter(|command| !command.is_empty());
    if command.is_none() && !restart {
        return Err("bash: command is required".to_owned());
    }
    Ok(Request { command, restart, timeout })
}

/// An integer, however it is written; `1.0` is one to JSON Schema.
fn whole(number: &serde_json::Number) -> Option<i64> {
    let float = || number.as_f64().filter(|float| float.fract() == 0.0);
    number.as_i64().or_else(|| float().map(|float| float as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_checked_and_defaults_filled_in() {
        let limits = ShellLimits::default();
        let (usual, longest) = (limits.default_timeout, limits.timeout_max);
        #[rustfmt::skip]
        let cases = [
            // TOOL-BASH-12: absent, null, 0 and negative are the default; too long is cut.
            (r#"{"command":"a"}"#,                       Some("a"), false, usual),
            (r#"{"command":"a","timeout_ms":null}"#,     Some("a"), false, usual),
            (r#"{"command":"a","timeout_ms":0}"#,        Some("a"), false, usual),
            (r#"{"command":"a","timeout_ms":-5}"#,       Some("a"), false, usual),
            (r#"{"command":"a","timeout_ms":500}"#,      Some("a"), false, Duration::from_millis(500)),
            (r#"{"command":"a","timeout_ms":500.0}"#,    Some("a"), false, Duration::from_millis(500)),
            (r#"{"command":"a","timeout_ms":3600001}"#,  Some("a"), false, longest),
            (r#"{"command":"a","timeout_ms":1e300}"#,    Some("a"), false, longest),
            (r#"{"command":"a","timeout_ms":18446744073709551615}"#, Some("a"), false, longest),
            // TOOL-BASH-11, TOOL-GEN-1: null is absent; RUN-20: unknown members are ignored.
            (r#"{"restart":true}"#,                      None,      true,  usual),
            (r#"{"restart":true,"command":null}"#,       None,      true,  usual),
            (r#"{"restart":true,"command":""}"#,         None,      true,  usual),
            (r#"{"restart":true,"command":"b"}"#,        Some("b"), true,  usual),
            (r#"{"restart":null,"command":"b","x":[1]}"#, Some("b"), false, usual),
        ];
        for (input, command, restart, timeout) in cases {
            let got = parse(input.as_bytes(), &limits).expect(input);
            let want = Request { command: command.map(str::to_owned), restart, timeout };
            assert_eq!(got, want, "{input}");
        }
    }

    #[test]
    fn what_cannot_be_run_is_explained() {
        let cases = [
            ("{}", "bash: command is required"), // TOOL-BASH-10
            (r#"{"command":""}"#, "bash: command is required"),
            (r#"{"command":null,"restart":false}"#, "bash: command is required"),
            (r#"{"command":3}"#, "invalid bash input: invalid type: integer"),
            (
                r#"{"timeout_ms":0.5,"command":"a"}"#,
                "invalid bash input: `timeout_ms` is not an integer",
            ),
            (r#"{"timeout_ms":"1","command":"a"}"#, "invalid bash input: "),
            (r#"{"restart":"yes"}"#, "invalid bash input: "),
            ("[]", "invalid bash input: not an object"),
            ("{", "invalid bash input: "),
            (r#"{"command":"\ud800"}"#, "invalid bash input: "),
        ];
        for (input, text) in cases {
            let got = parse(input.as_bytes(), &ShellLimits::default()).expect_err(input);
            assert!(got.starts_with(text), "{input}: {got}");
        }
    }
}
