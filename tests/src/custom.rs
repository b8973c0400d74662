//! Custom tools: their tables of the configuration, and calls of them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::Poll;

/// Where the tools of a test run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    /// In the jail.
    Jail,
    /// On the host.
    Host,
}

/// A table of the configuration: a tool that is a script of bash.
pub fn tool(place: Where, name: &str, script: &str, more: &str) -> String {
    let place = match place {
        Where::Jail => "where = \"jail\"",
        Where::Host => "where = \"host\"\nwhy = \"a test\"",
    };
    let command = json!(["/bin/bash", "-c", script]);
    format!("[[custom_tool]]\nname = \"{name}\"\n{place}\ncommand = {command}\n{more}\n")
}

/// A call of a custom tool.
pub fn call(name: &str, input: Value) -> Value {
    json!({"custom": name, "input": input})
}

/// A call without input.
pub fn plain(name: &str) -> Value {
    call(name, json!({}))
}

/// A worker with this configuration.
///
/// # Panics
/// If it cannot be written.
pub fn configured(poll: Poll, text: &str) -> Poll {
    let file = poll.home().join("worker.toml");
    fs::write(&file, text).expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("chmod");
    poll.path("--config", &file)
}
