//! Egress rules: which destinations a jail may reach, and the one function that decides.
//!
//! Pure. `name.rs` makes one canonical form of every way to write a host, `rule.rs` is a rule as an
//! operator writes it, `address.rs` says what an address is, `rules.rs` decides. The broker, the
//! resolver, `policy test` and `why` all ask [`Rules`].

mod address;
mod name;
mod rule;
mod rules;

pub use address::{AddressClass, embedded};
pub use name::{Host, HostName, NameError};
pub use rule::{EgressRule, Pattern, Protocol, RuleError};
pub use rules::{Allowed, Content, DenyReason, ListedRule, Rules, Verdict};
