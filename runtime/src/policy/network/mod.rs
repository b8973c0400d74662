//! Egress rules: which destinations a jail may reach, and the one function that decides.
//!
//! Pure. `name.rs` makes one canonical form of every way to write a host, `rule.rs` is a rule as an
//! operator writes it, `address.rs` says what an address is, `rules.rs` decides, `explain.rs` says
//! why. The broker, the resolver, `policy test` and `why` all ask [`Rules`].
//!
//! `written.rs` is the table `[network]` of a policy file, `check.rs` refuses what no jail may be
//! given, `lay.rs` lays a file over the network that its parent means, `model.rs` is the result,
//! `preset.rs` the lists of rules that are shipped.

mod address;
mod check;
mod explain;
mod lay;
mod model;
mod name;
mod preset;
mod rule;
mod rules;
mod written;

pub use address::AddressClass;
pub use explain::{Difference, Nearest};
pub use model::{
    DenyDetail, Network, NetworkMode, NetworkOrigins, PORTS_MAX, RULES_MAX, Resolves, UpstreamProxy,
};
pub use name::{Host, HostName, NameError};
pub use preset::{PRESETS, Preset, PresetRule};
pub use rule::{Destination, EgressRule, Pattern, Protocol, RuleError};
pub use rules::{Allowed, Content, DenyReason, ListedRule, Rules, Verdict};

pub(crate) use rules::REPORT_PORTS;

pub(super) use check::check;
pub(super) use lay::{floor, lay};
pub(super) use written::NetworkTable;
