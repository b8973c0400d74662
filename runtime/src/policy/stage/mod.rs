//! Staging rules: which input a session's workspace holds before its first tool call, and where that
//! input may come from.
//!
//! Pure. `written.rs` is one table `[[stage]]` of a policy file, `check.rs` turns it into a
//! [`StageRule`] or says what is wrong with it, `place.rs` is the one canonical form of every way to
//! write an address or a path, `lay.rs` lays a file over the rules that its parent means, `model.rs` is
//! the result. Who fetches is in the worker; it asks [`StageRule::place`] where a value leads.

mod check;
mod lay;
mod model;
mod place;
mod show;
mod written;

pub use model::{Stage, StageDigest, StageKind, StageRule, StageSource, StageValue, ValueError};
pub use place::{Scheme, StagePlace};

pub(super) use check::check;
pub(super) use lay::{floor, lay};
pub(super) use show::rules as show;
pub(super) use written::StageTable;
