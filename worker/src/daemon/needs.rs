//! What the jail of one session needs beyond what the policy says: places that the porter fills.
//!
//! Known once the session has been read and before its jail is made. A jail that was kept for the
//! session serves again only if it was made for the same.

use stockade_runtime::spec::{SkillsRequest, StoreRequest};

/// What a session's jail must have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// A place for skills, if the session has any.
    pub skills: Option<SkillsRequest>,
    /// Its memory stores, in the order in which the porter numbers them.
    pub stores: Vec<StoreRequest>,
    /// Whether files are laid into its workspace: a porter is needed even without places.
    pub staging: bool,
}
