//! The programs of `everyday.rs`, by kind.

mod kernel;
mod tools;

pub use kernel::{KERNEL, PYTHON};
pub use tools::{BUILD, SHELL, TOOLS};

/// One program that must work.
#[derive(Debug)]
pub struct Program {
    /// What it shows.
    pub name: &'static str,
    /// Tools of the host that it needs beyond a shell and the usual small ones.
    pub tools: &'static [&'static str],
    /// The program that runs the script.
    pub runner: &'static [&'static str],
    /// Run in a fresh workspace.
    pub script: &'static str,
    /// What the last line of its output contains.
    pub says: &'static str,
}

/// How shell scripts are run.
pub const BASH: &[&str] = &["/bin/bash", "-c"];

/// How Python scripts are run: from a file, for processes that Python spawns read it again.
pub const PYTHON3: &[&str] =
    &["/bin/bash", "-c", "printf '%s\\n' \"$0\" >main.py && exec /usr/bin/python3 main.py"];
