//! Everything about a jail: what a policy asks for, what the host offers, how the jail is built,
//! proven, reported and torn down. Knows nothing of the queue that work comes from.
//!
//! Imports point one way: `jail` → `spec` → `policy` → `host`, and `jail` → `sys`. `policy` and
//! `spec` are pure. The only `unsafe` is in [`sys`].
#![warn(missing_docs)]

pub mod audit;
pub mod egress;
pub mod host;
pub mod jail;
pub mod policy;
pub mod porter;
pub mod session;
pub mod spec;
pub mod sys;
pub mod tool;
