//! The file tools of a session: read, write, edit, glob, grep.
//!
//! Run in a child of the *file helper*, one for each call: inside the jail, with the ids of bash, no
//! capabilities, no network, in a Landlock domain that holds the permitted roots only and under a
//! filter that allows openat2. Nothing here relies on that domain: every file is opened below the
//! descriptor of a root, along a way without links ([`Roots`]).
//!
//! Whoever runs this ignores `SIGXFSZ`: a write past the file size limit must fail, not kill. A child
//! that is killed in the middle of a write leaves a file `.stockade-…` in the directory, never a half
//! written one.
//!
//! Ignore files (`.gitignore` and the like) are not honoured and hidden files are searched; `.git` and
//! `node_modules` are passed over unless they are named.
//!
//! Contract and exact texts: protocol rules TOOL-GEN to TOOL-GREP, RUN-18 to RUN-22.

pub(crate) mod beneath;
pub(crate) mod beside;
mod braces;
mod edit;
mod failure;
mod glob;
mod grep;
mod input;
mod read;
mod roots;
mod short_lines;
mod walk;
mod write;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use roots::Roots;

use super::ToolResult;
use failure::Failure;

/// Directories that a search passes over unless they are named.
const PASSED_OVER: [&str; 2] = [".git", "node_modules"];

/// Why the file tools cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// A permitted directory is missing, or is none.
    #[error("cannot open permitted directory {path}")]
    Root {
        /// As given.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Bounds of the file tools; the default is TOOL-GEN-2.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileLimits {
    /// Text that read returns and files that edit loads; `None`: as much as can be carried, 256 MiB.
    pub file_bytes_max: Option<u64>,
    /// Images that read returns, before base64.
    pub image_bytes_max: u64,
    /// PDF files that read returns, before base64.
    pub pdf_bytes_max: u64,
    /// What an edit may make of a file.
    pub edited_bytes_max: u64,
    /// Paths that glob returns.
    pub glob_results_max: usize,
    /// Directory entries that glob looks at.
    pub glob_entries_max: usize,
    /// Hits that grep returns.
    pub grep_bytes_max: usize,
    /// Longest line that grep returns, in characters.
    pub grep_line_chars_max: usize,
    /// Directory entries that grep looks at.
    pub grep_entries_max: usize,
    /// How long grep searches; at most some 136 years.
    pub grep_wall_time: Duration,
}

impl Default for FileLimits {
    fn default() -> Self {
        FileLimits {
            file_bytes_max: Some(262_144),
            image_bytes_max: 3_932_160,
            pdf_bytes_max: 20_971_520,
            edited_bytes_max: 32 << 20,
            glob_results_max: 200,
            glob_entries_max: 50_000,
            grep_bytes_max: 102_400,
            grep_line_chars_max: 2_000,
            grep_entries_max: 1_000_000,
            grep_wall_time: Duration::from_secs(60),
        }
    }
}

impl FileLimits {
    /// The default with a bound that an operator has set. It binds images and PDF files too where it
    /// is lower, as the default does not (TOOL-READ-7). `None` takes the operator's bound away.
    pub fn with_file_bytes_max(file_bytes_max: Option<u64>) -> Self {
        let default = FileLimits::default();
        let media = file_bytes_max.unwrap_or(u64::MAX);
        FileLimits {
            file_bytes_max,
            image_bytes_max: default.image_bytes_max.min(media),
            pdf_bytes_max: default.pdf_bytes_max.min(media),
            ..default
        }
    }

    /// The bound of text that holds in any case.
    fn text_bytes_max(&self) -> u64 {
        self.file_bytes_max.unwrap_or(CARRIED_BYTES_MAX).min(CARRIED_BYTES_MAX)
    }
}

/// No text is longer, whatever an operator sets (INV-11).
const CARRIED_BYTES_MAX: u64 = 256 << 20;

/// Whether `name` is a tool of this module.
pub fn owns(name: &str) -> bool {
    matches!(name, "read" | "write" | "edit" | "glob" | "grep")
}

/// Runs one call of a tool that this module [`owns`] with `input`, a JSON object, and waits for it.
///
/// Never panics and never fails: what goes wrong is an error result in the words of the contract. Its
/// paths are the caller's, and `facts.wall_us` is left to the caller. An empty text stands for no
/// output.
pub fn run(name: &str, input: &[u8], roots: &Roots, limits: &FileLimits) -> ToolResult {
    let outcome = match name {
        "read" => input::parse(READ, input).and_then(|input| read::run(&input, roots, limits)),
        "write" => input::parse(WRITE, input).and_then(|input| write::run(&input, roots)),
        "edit" => input::parse(EDIT, input).and_then(|input| edit::run(&input, roots, limits)),
        "glob" => input::parse(GLOB, input).and_then(|input| glob::run(&input, roots, limits)),
        "grep" => input::parse(GREP, input).and_then(|input| grep::run(&input, roots, limits)),
        _ => return ToolResult::error(format!("unknown tool '{}'", failure::shortened(name, 64))),
    };
    outcome.unwrap_or_else(|failure| failure.result(name))
}

const READ: &str = "read";
const WRITE: &str = "write";
const EDIT: &str = "edit";
const GLOB: &str = "glob";
const GREP: &str = "grep";

/// A successful text, with its size noted.
fn answer(text: String) -> ToolResult {
    let bytes = text.len() as u64;
    let mut result = ToolResult::text(text);
    result.facts.output_bytes = bytes;
    result
}

/// `file_path`, which must not be empty (TOOL-PATH-7).
fn required<'t>(member: &'static str, text: &'t str) -> Result<&'t str, Failure> {
    if text.is_empty() { Err(Failure::Required { member }) } else { Ok(text) }
}
