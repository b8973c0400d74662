//! What one rule wants, given a session's metadata. Pure.

use std::collections::BTreeMap;

use stockade_runtime::policy::stage::{StagePlace, StageRule, ValueError};

/// Most entries of the metadata that are read.
const ENTRIES_MAX: usize = 256;

/// One input to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// By this rule.
    pub rule: StageRule,
    /// From here; the rule allows it.
    pub place: StagePlace,
    /// What it must be.
    pub sha256: Option<[u8; 32]>,
    /// Of git.
    pub commit: Option<String>,
}

/// The metadata of a session and of its work item as one; the session's wins (AUTH-13, UNK-14).
pub fn metadata(
    session: &BTreeMap<String, String>,
    work: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let both = work.iter().take(ENTRIES_MAX).chain(session.iter().take(ENTRIES_MAX));
    both.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// What `rule` wants.
///
/// # Errors
/// The metadata does not say it, or says something that the rule does not allow.
pub fn wanted(rule: &StageRule, metadata: &BTreeMap<String, String>) -> Result<Wanted, ValueError> {
    let place = rule.place(metadata)?;
    let (sha256, commit) = (rule.sha256(metadata)?, rule.commit(metadata)?);
    Ok(Wanted { rule: rule.clone(), place, sha256, commit })
}

impl Wanted {
    /// Host that it comes from, with the port where that is not the usual one; none of this host.
    pub fn host(&self) -> Option<String> {
        use stockade_runtime::policy::stage::StageKind;
        let place = match &self.rule.kind {
            StageKind::S3 { endpoint, .. } => endpoint,
            _ => &self.place,
        };
        place.host().map(|host| match place.port() {
            443 => host.to_string(),
            port => format!("{host}:{port}"),
        })
    }
}
