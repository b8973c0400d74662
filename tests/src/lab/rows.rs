//! Tables of acts and what must come of them in a jail; each refusal has the same act as its control,
//! from a plain process of the laboratory's host, where it must succeed.

use serde_json::{Value, json};

use super::{Lab, is_refused};
use crate::Level;
use crate::policy::PolicyFile;

/// A refusal that takes longer than this is a hang to whoever waits for it; milliseconds. The head of
/// a plain HTTP request is waited for.
const SOON_MS: u64 = 3_000;

/// What must come of an act in the jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// Its text has this.
    Gives(String),
    /// No connection, a reset before the first byte, or this product's answer 403.
    Denied,
    /// One of these errors, separated by `|`.
    Error(&'static str),
}

/// One act.
#[derive(Debug, Clone)]
pub struct Row {
    act: Value,
    want: Want,
    control: bool,
}

/// The act succeeds, and what comes back has `text`.
pub fn gives(act: Value, text: &str) -> Row {
    Row { act, want: Want::Gives(text.to_owned()), control: false }
}

/// The act is refused by the broker, and succeeds outside.
pub fn denied(act: Value) -> Row {
    Row { act, want: Want::Denied, control: true }
}

/// The act ends with this error, and succeeds outside.
pub fn fails(act: Value, error: &'static str) -> Row {
    Row { act, want: Want::Error(error), control: true }
}

impl Row {
    /// There is nothing outside that it could succeed with; its test says why.
    pub fn without_control(mut self) -> Row {
        self.control = false;
        self
    }
}

/// Connects, says `text` and hears what comes back.
pub fn talk(host: &str, port: u16, text: &str) -> Value {
    json!({"act": "talk", "host": host, "port": port, "send": text, "hold": 3.0, "limit": 4096,
           "until": until(text)})
}

/// What ends an exchange early: an echo, or the answer of the laboratory's servers or of the product.
fn until(text: &str) -> Value {
    if text.contains("HTTP/1") {
        json!([":80\n", ":8080\n", "egress_denied\"", "tunnelled", "not here\n"])
    } else {
        json!(text)
    }
}

/// One plain HTTP request by its lines; the connection is closed after it.
pub fn http(host: &str, lines: &[&str]) -> Value {
    let text = format!("{}\r\nConnection: close\r\n\r\n", lines.join("\r\n"));
    json!({"act": "talk", "host": host, "port": 80, "send": text, "hold": 3.0,
           "until": until(&text)})
}

/// Sends bytes and hears until the other side ends or says nothing for a second.
pub fn bytes(host: &str, port: u16, text: &str) -> Value {
    json!({"act": "talk", "host": host, "port": port, "send": text, "hold": 1.0})
}

/// A crafted ClientHello with these server_name extensions; heard until a reset or five bytes.
pub fn hello(host: &str, port: u16, names: Value) -> Value {
    json!({"act": "hello", "host": host, "port": port, "names": names, "hold": 2.5})
}

/// An act with more of its arguments.
pub fn with(mut act: Value, more: Value) -> Value {
    for (key, value) in more.as_object().into_iter().flatten() {
        act[key] = value.clone();
    }
    act
}

impl Lab {
    /// Runs all rows in a jail of every level, then the controls.
    ///
    /// # Panics
    /// With the list of what came of it otherwise.
    pub fn check(&self, policy: &PolicyFile, rows: &[Row]) {
        self.check_then(policy, rows, |_| {});
    }

    /// As [`Lab::check`]; `then` looks at what was heard of the jail at each level, before any control.
    ///
    /// # Panics
    /// As [`Lab::check`].
    pub fn check_then(&self, policy: &PolicyFile, rows: &[Row], then: impl Fn(&Lab)) {
        let acts: Vec<Value> = rows.iter().map(|row| row.act.clone()).collect();
        let mut wrong = Vec::new();
        for level in Level::here() {
            self.forget();
            let got = self.inside(level, policy, &acts);
            for (row, got) in rows.iter().zip(&got) {
                if let Some(why) = differs(&row.want, got) {
                    wrong.push(format!("{}: {} gave {got}: {why}", level.name(), row.act));
                }
            }
            if wrong.is_empty() {
                then(self);
            }
        }
        wrong.extend(self.failed_controls(rows));
        assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    }

    fn failed_controls(&self, rows: &[Row]) -> Vec<String> {
        let with_control = rows.iter().filter(|row| row.control);
        let acts: Vec<Value> = with_control.map(|row| row.act.clone()).collect();
        if acts.is_empty() {
            return Vec::new();
        }
        let results = self.outside(&acts);
        let failed = acts.iter().zip(&results).filter(|(_, got)| is_denied(got) || has_error(got));
        failed.map(|(act, got)| format!("control of {act} gave {got}")).collect()
    }
}

fn has_error(got: &Value) -> bool {
    got["error"].is_string()
}

/// Refused by the kernel or the broker, or answered by the product itself.
pub fn is_denied(got: &Value) -> bool {
    let text = got["text"].as_str().unwrap_or_default();
    is_refused(got)
        || (text.starts_with("HTTP/1.") && text.contains(" 403 ") && text.contains("egress_denied"))
}

fn differs(want: &Want, got: &Value) -> Option<String> {
    let text = match &got["text"] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let late = got["ms"].as_u64().is_none_or(|ms| ms > SOON_MS);
    match want {
        Want::Gives(part) if text.contains(part) => None,
        Want::Gives(part) => Some(format!("not `{part}`")),
        Want::Denied if !is_denied(got) => Some("not denied".to_owned()),
        Want::Error(names) if !names.split('|').any(|name| got["error"] == name) => {
            Some(format!("not {names}"))
        }
        Want::Denied | Want::Error(_) if late => Some("too late".to_owned()),
        Want::Denied | Want::Error(_) => None,
    }
}
