//! The tools of a session, as they run inside its jail: bash, read, write, edit, glob, grep.
//!
//! Three processes of the jail run what is here. The *executor* (`executor`) hears the control side
//! and runs one call at a time; it has an id of its own and lives in a PID namespace that bash cannot
//! see. A *file helper* (`helper`, `files`) is a process of one call with the ids of bash, inside the
//! permitted roots only. The *keeper* (`shell::keeper`) is PID 1 of the tool tree: it starts the shell, reaps and kills.
//!
//! Contract and exact texts: protocol rules TOOL-*.

mod call;
mod executor;
pub mod files;
pub mod frame;
mod helper;
pub mod reap;
pub mod shell;
pub mod unjailed;

pub use call::{
    Block, CallFacts, FromExecutor, FullPlace, ShellFate, ToExecutor, ToolCall, ToolResult,
};
pub use executor::Executor;
pub use helper::FileHelper;
