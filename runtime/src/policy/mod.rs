//! Policies: what an operator wrote, and what it means once nothing is left to decide.
//!
//! Pure: no I/O, no async. The caller hands in file texts through [`Resolver::load`].
//!
//! `file.rs` holds the types of the written form, `parse.rs` reads them and says where an error
//! is, `validate.rs` refuses what no jail may be given, `resolve.rs` follows `extends`,
//! `narrow.rs` makes sure that a policy is never wider than its parent, `effective.rs` writes the
//! result back as TOML, JSON and canonical bytes. `network` and `stage` do all of this for their own
//! tables.

mod bounded;
mod effective;
mod error;
mod file;
mod floor;
mod limit;
mod model;
mod narrow;
pub mod network;
mod parse;
mod paths;
mod resolve;
mod schema;
mod shipped;
pub mod stage;
pub mod syscalls;
mod units;
mod validate;

pub use effective::Origins;
pub use error::PolicyError;
pub use file::PolicyFile;
pub use limit::LIMIT_KEYS;
pub use model::{
    Environment, Filesystem, Layer, ListOrigins, Origin, Policy, Process, Relaxation, Require,
    Root, Setting, Storage, Syscalls,
};
pub use parse::Source;
pub use resolve::Resolver;
pub use schema::json_schema;
pub use shipped::{SHIPPED, Shipped};
pub use units::{ByteSize, UnitError, format_cpus, format_duration, parse_cpus, parse_duration};
pub use validate::variable_refused;

#[cfg(test)]
mod tests;
