//! One tool call and its result, as the control side and the executor exchange them.

use serde::{Deserialize, Serialize};

/// Control side to executor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToExecutor {
    /// Run this; one at a time.
    Call(ToolCall),
    /// End the call of this number now if it still runs; its result is sent as usual.
    Cancel {
        /// [`ToolCall::number`]
        number: u64,
    },
    /// Kill every process of the tool tree; the next call of bash gets a fresh shell.
    Quiesce,
}

/// Executor to control side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromExecutor {
    /// Calls can be sent.
    Ready,
    /// A call ended.
    Done {
        /// [`ToolCall::number`]
        number: u64,
        /// What came of it.
        result: ToolResult,
    },
    /// Every process of the tool tree is dead.
    Quiet,
}

/// One call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Counts up from 1 in a session; the id of the call stays on the control side.
    pub number: u64,
    /// `bash`, `read`, `write`, `edit`, `glob`, `grep` or a custom tool.
    pub name: String,
    /// The call's `input` object, JSON, at most [`ToolCall::INPUT_BYTES_MAX`] bytes. Parsed in the
    /// jail.
    pub input: Vec<u8>,
}

impl ToolCall {
    /// Longest input, in bytes.
    pub const INPUT_BYTES_MAX: usize = 16 << 20;
}

/// What a call came to: what the model sees, and what the operator may know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolResult {
    /// Never empty; an empty text stands for no output.
    pub content: Vec<Block>,
    /// Whether the tool failed.
    pub is_error: bool,
    /// About the call, without content.
    pub facts: CallFacts,
}

/// One block of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Block {
    /// Text, UTF-8.
    Text(String),
    /// An image, not yet in base64.
    Image {
        /// `image/png` and the like.
        media_type: String,
        /// The file.
        data: Vec<u8>,
    },
    /// A document, not yet in base64.
    Document {
        /// `application/pdf`
        media_type: String,
        /// The file.
        data: Vec<u8>,
    },
}

/// What happened to the shell in a call of bash.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShellFate {
    /// It kept its state, or the call was not of bash.
    #[default]
    Kept,
    /// The next call gets a fresh one.
    Restarted,
    /// There will be none in this jail any more.
    Gone,
}

/// What may be logged about a call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallFacts {
    /// Microseconds from the executor's receipt to the result.
    pub wall_us: u64,
    /// Bytes of output before any was dropped.
    pub output_bytes: u64,
    /// Whether output was dropped.
    pub truncated: bool,
    /// Whether a time limit ended it.
    pub timed_out: bool,
    /// Whether the control side ended it.
    pub cancelled: bool,
    /// Of the shell.
    pub shell: ShellFate,
    /// Processes that the call left running.
    pub left_running: u32,
    /// Places of the jail that had no room left when the call failed.
    pub full: Vec<FullPlace>,
}

/// A place without room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullPlace {
    /// Where, as the session sees it.
    pub place: String,
    /// Whether it is out of inodes and not out of bytes.
    pub inodes: bool,
}

impl ToolResult {
    /// A successful text.
    pub fn text(text: impl Into<String>) -> Self {
        ToolResult {
            content: vec![Block::Text(text.into())],
            is_error: false,
            facts: CallFacts::default(),
        }
    }

    /// An error text.
    pub fn error(text: impl Into<String>) -> Self {
        ToolResult { is_error: true, ..ToolResult::text(text) }
    }
}
