//! The calls of a run for people: what was asked, what came back, how long it took. Made from the
//! report, which must hold inputs and results.

use std::fmt::Write as _;

use serde_json::Value;

use crate::progress::{duration_us, visible};

/// Longest request and longest line of a result that are shown, in characters.
const CHARS_MAX: usize = 76;
/// Most lines of a result that are shown.
const LINES_MAX: usize = 4;

/// The transcript of all sessions.
pub fn transcript(report: &Value) -> String {
    let mut out = String::new();
    for session in report["sessions"].as_array().into_iter().flatten() {
        let _infallible = writeln!(out, "session {}", session["name"].as_str().unwrap_or_default());
        for call in session["calls"].as_array().into_iter().flatten() {
            let _infallible = write!(out, "{}", one(call));
        }
    }
    out
}

fn one(call: &Value) -> String {
    let took = call["latency_us"].as_u64().map_or("-".to_owned(), duration_us);
    let name = visible(call["name"].as_str().unwrap_or_default());
    let word = match call["is_error"].as_bool() {
        None => "no result",
        Some(true) => "error",
        Some(false) => "ok",
    };
    let mut out = format!("{word:>9} {took:>8}  {name} {}\n", asked(&call["input"]));
    for line in answered(&call["result"]["content"]) {
        let _infallible = writeln!(out, "{:>20}{line}", "| ");
    }
    out
}

/// What the call is about: its command, file or pattern; everything, if it has none.
fn asked(input: &Value) -> String {
    let about = ["command", "file_path", "pattern"].iter().find_map(|name| input[*name].as_str());
    cut(&about.map_or_else(|| input.to_string(), str::to_owned).replace('\n', " ⏎ "))
}

fn answered(content: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for block in content.as_array().into_iter().flatten() {
        match block["text"].as_str() {
            Some(text) => lines.extend(text.lines().map(cut)),
            None => {
                let source = &block["source"];
                let kind = source["media_type"].as_str().unwrap_or("?");
                let bytes = source["data"].as_str().unwrap_or_default().len() / 4 * 3;
                lines.push(format!("({} of about {bytes} bytes)", visible(kind)));
            }
        }
    }
    if lines.len() > LINES_MAX {
        let more = lines.len() - LINES_MAX + 1;
        // The end says more than the middle: footers stand there.
        let last = lines.pop().unwrap_or_default();
        lines.truncate(LINES_MAX - 2);
        lines.push(format!("… {more} lines …"));
        lines.push(last);
    }
    lines
}

/// One line that is safe to print.
fn cut(text: &str) -> String {
    let shown = visible(text);
    match shown.char_indices().nth(CHARS_MAX) {
        None => shown,
        Some((end, _)) => format!("{}…", &shown[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_call_is_its_request_and_the_ends_of_its_result() {
        let text: String = (1..=9).map(|n| format!("{n}\n")).collect();
        let call = json!({"name": "bash", "input": {"command": "seq 9\n:"}, "latency_us": 2500,
            "is_error": false, "result": {"content": [{"type": "text", "text": text}]}});
        let report = json!({"sessions": [{"name": "s", "calls": [call]}]});
        assert_eq!(
            transcript(&report),
            "session s\n       ok     2 ms  bash seq 9 ⏎ :\n                  | 1\n                  \
             | 2\n                  | … 6 lines …\n                  | 9\n"
        );
    }

    #[test]
    fn files_are_described_and_control_characters_made_visible() {
        let image = json!({"type": "image", "source": {"media_type": "image/png", "data": "AAAA"}});
        assert_eq!(answered(&json!([image])), ["(image/png of about 3 bytes)"]);
        assert_eq!(answered(&json!([{"text": "\u{1b}[2J"}])), ["\\u{1b}[2J"]);
        assert_eq!(asked(&json!({"other": 1})), "{\"other\":1}");
        assert_eq!(cut(&"x".repeat(500)).chars().count(), CHARS_MAX + 1);
        assert!(one(&json!({"name": "read"})).contains("no result"));
    }
}
