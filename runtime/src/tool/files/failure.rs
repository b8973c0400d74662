//! What the file tools tell the model when a call fails: every text in one place.
//!
//! Paths in them are spelled as the caller spelled them; where a link led is never told. The name of
//! the tool is put in front by [`Failure::result`].

use std::fmt;
use std::io;

use rustix::io::Errno;

use crate::tool::ToolResult;

/// Longest path that is repeated to the caller, in bytes.
const ECHO_BYTES_MAX: usize = 8_192;

/// A path as the caller spelled it, cut if it is absurdly long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spelled(String);

impl Spelled {
    pub fn new(path: &str) -> Self {
        Spelled(shortened(path, ECHO_BYTES_MAX))
    }
}

impl fmt::Display for Spelled {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("invalid {tool} input: {reason}")]
    Input { tool: &'static str, reason: String },
    #[error("{member} is required")]
    Required { member: &'static str },
    #[error("path '{path}' is outside the session's working directory{}",
        if *.other_roots { " and its other permitted directories" } else { "" })]
    Outside { path: Spelled, other_roots: bool },
    #[error("path '{path}': too many levels of symbolic links")]
    Hops { path: Spelled },
    #[error("{path} is inside read-only directory {root}")]
    ReadOnly { path: Spelled, root: String },
    #[error("{path}: not a regular file")]
    NotRegular { path: Spelled },
    #[error("{path}: {}", phrase(*.reason))]
    System { path: Spelled, reason: Errno },

    #[error("view_range must be [start_line, end_line]")]
    RangeShape,
    #[error("view_range is not supported for image/PDF files")]
    RangeOnMedia,
    #[error(
        "{path} is {bytes} bytes, exceeds {limit}-byte limit. Use the view_range parameter to read \
         specific line ranges, e.g. view_range: [1, 500]."
    )]
    ReadTooLong { path: Spelled, bytes: u64, limit: u64 },
    #[error("{path} is {bytes} bytes, exceeds {limit}-byte limit for image/PDF files.")]
    MediaTooLong { path: Spelled, bytes: u64, limit: u64 },
    #[error(
        "view_range [{start}, {end}] of {path} exceeds {limit}-byte limit. Narrow the view_range to \
         read a smaller portion."
    )]
    RangeTooLong { path: Spelled, start: i64, end: i64, limit: u64 },
    #[error(
        "line {line} of {path} alone exceeds {limit}-byte limit. The read tool cannot return part \
         of a line, so view_range cannot narrow this further."
    )]
    LineTooLong { path: Spelled, line: u64, limit: u64 },
    #[error(
        "{path}: not valid UTF-8 text (binary files are only supported for image/PDF extensions)"
    )]
    ReadBinary { path: Spelled },

    #[error("{path}: not valid UTF-8 text (cannot edit binary files)")]
    EditBinary { path: Spelled },
    #[error(
        "{path} is {bytes} bytes, exceeds {limit}-byte limit. The edit tool loads the whole file \
         and cannot modify a file this large."
    )]
    EditTooLong { path: Spelled, bytes: u64, limit: u64 },
    #[error("{path} would be {bytes} bytes after the edit, exceeds {limit}-byte limit")]
    EditedTooLong { path: Spelled, bytes: u128, limit: u64 },
    #[error("old_string not found in {path}")]
    NotFound { path: Spelled },
    #[error("old_string appears {count} times in {path} (must be unique)")]
    NotUnique { path: Spelled, count: usize },

    #[error("absolute pattern not permitted; pass a relative pattern (and optionally path)")]
    AbsolutePattern,
    #[error("'..' is not permitted in the pattern")]
    ParentInPattern,
    #[error("invalid pattern: {reason}")]
    Pattern { reason: String },

    #[error("invalid regex: {reason}")]
    Regex { reason: String },
    #[error("timed out after {seconds}s")]
    SearchTime { seconds: u64 },
}

impl Failure {
    /// A refusal of the kernel, about `path`.
    pub fn system(path: &Spelled, reason: Errno) -> Self {
        Failure::System { path: path.clone(), reason }
    }

    /// A refusal of the kernel that came through std, about `path`.
    pub fn io(path: &Spelled, error: &io::Error) -> Self {
        Failure::system(path, Errno::from_io_error(error).unwrap_or(Errno::IO))
    }

    /// The result of a call of `tool` that failed with this.
    pub fn result(&self, tool: &str) -> ToolResult {
        let mut result = ToolResult::error(match self {
            Failure::Input { .. } => self.to_string(),
            _ => format!("{tool}: {self}"),
        });
        result.facts.timed_out = matches!(self, Failure::SearchTime { .. });
        result
    }
}

/// `text`, or as much of its beginning as fits in `bytes_max` and an ellipsis.
pub fn shortened(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let end = (0..=bytes_max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// The phrase for an errno, TOOL-GEN-4.
pub fn phrase(errno: Errno) -> String {
    let fixed = match errno {
        Errno::NOENT => "no such file or directory",
        Errno::NOTDIR => "not a directory",
        Errno::ISDIR => "is a directory",
        Errno::ACCESS | Errno::PERM => "permission denied",
        Errno::EXIST => "file already exists",
        Errno::LOOP => "too many levels of symbolic links",
        Errno::NAMETOOLONG => "file name too long",
        Errno::NOSPC => "no space left on device",
        Errno::MFILE | Errno::NFILE => "too many open files",
        Errno::IO => "i/o error",
        other => return lower_os_text(other),
    };
    fixed.to_owned()
}

fn lower_os_text(errno: Errno) -> String {
    let text = io::Error::from(errno).to_string();
    text.split(" (os error").next().unwrap_or("i/o error").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_errno_has_the_phrase_of_the_contract() {
        // TOOL-GEN-4
        let cases = [
            (Errno::NOENT, "no such file or directory"),
            (Errno::NOTDIR, "not a directory"),
            (Errno::ISDIR, "is a directory"),
            (Errno::ACCESS, "permission denied"),
            (Errno::PERM, "permission denied"),
            (Errno::EXIST, "file already exists"),
            (Errno::LOOP, "too many levels of symbolic links"),
            (Errno::NAMETOOLONG, "file name too long"),
            (Errno::NOSPC, "no space left on device"),
            (Errno::MFILE, "too many open files"),
            (Errno::IO, "i/o error"),
            (Errno::FBIG, "file too large"),
            (Errno::ROFS, "read-only file system"),
            (Errno::DQUOT, "disk quota exceeded"),
        ];
        for (errno, want) in cases {
            assert_eq!(phrase(errno), want);
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(shortened("abc", 3), "abc");
        assert_eq!(shortened("abcd", 3), "abc…");
        assert_eq!(shortened("aéé", 2), "a…");
        assert_eq!(shortened("é", 0), "…");
    }
}
