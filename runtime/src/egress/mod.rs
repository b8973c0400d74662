//! The only way out of a jail (INV-8): a resolver that answers what the policy could allow, and a
//! broker that dials what it does allow.
//!
//! Runs in the control side, on threads of its own. A jail's network namespace has loopback with
//! local default routes, so that whatever is connected to arrives at listeners which the launcher
//! made inside and the broker serves from outside. An address of ours stands for the name it was
//! answered for; `names` keeps that, per session.
//!
//! `names` synthetic addresses, `ledger` what was decided, `reason` why, `dns` the resolver, `tls` and `http` what
//! a connection says about where it wants to go, `broker` a connection from its acceptance to its end.
//! `outbound` finds addresses for connections that the control side makes by itself. `fuzzing` is what the fuzz harness calls.

mod broker;
mod dns;
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod ledger;
mod names;
mod outbound;
mod reason;
mod scope;
mod tls;

pub use broker::{Attached, Broker, Inside};
pub use ledger::{Closed, Decision, Denial, Entry, Ledger, Sink, Sum, Target};
pub use names::Names;
pub use outbound::{Outbound, OutboundError};
pub use reason::Reason;
