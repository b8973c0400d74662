//! The tools of a session, as they run inside its jail: bash, read, write, edit, glob, grep.
//!
//! Three processes of the jail run what is here. The *executor* (`executor`) hears the control side
//! and runs one call at a time; it has an id of its own and lives in a PID namespace that bash cannot
//! see. The *file helper* (`files`) acts with the ids of bash inside the permitted roots only. The
//! *keeper* (`shell::keeper`) is PID 1 of the tool tree: it starts the shell, reaps and kills.
//!
//! Contract and exact texts: protocol rules TOOL-*.

mod call;
pub mod files;

pub use call::{Block, CallFacts, FromExecutor, ShellFate, ToExecutor, ToolCall, ToolResult};
