//! The webhook that wakes `worker serve` (protocol §9.1).
//!
//! It faces whoever can reach its address, so everything it takes in is bounded, nothing is read of a
//! delivery before its signature has been verified, and all that a delivery can do is make the worker
//! ask its queue: [`signature`] decides whether a delivery is genuine, [`seen`] whether it is new,
//! [`receiver`] answers requests; `crate::listener` keeps connections.

mod receiver;
mod seen;
pub mod signature;

pub use receiver::Receiver;
