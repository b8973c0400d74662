//! Policy, host facts and a request make a [`JailSpec`]: the immutable, digested plan of one jail.
//! Pure: no I/O, nothing left to decide afterwards.

mod build;
mod custom_tool;
mod egress;
mod etc;
mod places;
mod plan;
mod tree;

#[cfg(test)]
mod places_tests;
#[cfg(test)]
mod tests;

pub use build::{BoundRequest, Request, SpecError, build, outside_limits};
pub use custom_tool::CustomToolPlan;
pub use egress::{EgressLimits, EgressPlan};
pub use places::{SkillsRequest, StoreAccess, StoreRequest};
pub use plan::*;
