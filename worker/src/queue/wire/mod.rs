//! What goes over the wire, as types. Tolerant in reading (API-5): an unknown member, value or type
//! never fails; a known member of the wrong type counts as absent.

pub mod error;
pub mod event;
pub mod operate;
pub mod outcome;
pub mod session;
pub mod skill;
pub mod work;

use serde_json::Value;

/// A member that is text and not empty.
pub(super) fn text(value: &Value, member: &str) -> Option<String> {
    value.get(member)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}
