//! Where the porter's places are: skills below the working directory, memory stores where the session
//! names them. A store's path comes from outside, so it is checked here against everything that the
//! jail has already. Pure.

use std::path::{Component, Path, PathBuf};

use crate::policy::Policy;

use super::build::{Request, SpecError};
use super::plan::{PlaceKind, PlacePlan};
use super::tree::{HOME, OUTPUTS, SYSTEM, TAKEN, WORKSPACE};

/// Name of the directory of skills in the working directory.
const SKILLS: &str = "skills";
/// Trees of the jail that no store may touch, beside those that no host directory may.
const OWN: &[&str] = &["/tmp", "/.canary", "/.masked"];
/// Directories on the way to a store.
const DEPTH_MAX: usize = 32;
/// Bytes of a store's path.
const PATH_BYTES_MAX: usize = 1_024;

/// A place for skills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkillsRequest {
    /// Whether the payload may change them.
    pub writable: bool,
    /// Size in bytes.
    pub bytes_max: u64,
    /// Files and directories.
    pub inodes_max: u64,
}

/// What the payload may do with a memory store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreAccess {
    /// Everything.
    ReadWrite,
    /// Look at it.
    ReadOnly,
}

/// A place for a memory store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreRequest {
    /// Absolute path inside the jail, where nothing else is.
    pub target: PathBuf,
    /// Of the payload.
    pub access: StoreAccess,
    /// Size in bytes.
    pub bytes_max: u64,
    /// Files and directories.
    pub inodes_max: u64,
}

impl StoreRequest {
    /// Most stores of one session.
    pub const COUNT_MAX: usize = 64;
}

/// The places of `request`.
pub(super) fn plan(
    policy: &Policy,
    request: &Request,
    workdir: &Path,
) -> Result<Vec<PlacePlan>, SpecError> {
    let skills = request.skills.as_ref().map(|skills| PlacePlan {
        kind: PlaceKind::Skills,
        target: workdir.join(SKILLS),
        writable: skills.writable,
        bytes_max: skills.bytes_max,
        inodes_max: skills.inodes_max,
        in_workspace: true,
    });
    let mut places: Vec<PlacePlan> = skills.into_iter().collect();
    for (number, store) in request.stores.iter().enumerate() {
        let refused = |reason| SpecError::StorePlace { path: store.target.clone(), reason };
        if number >= StoreRequest::COUNT_MAX {
            return Err(refused("the session has more than 64 memory stores"));
        }
        well_formed(&store.target).map_err(refused)?;
        let others = &request.stores[..number];
        if others.iter().any(|other| overlap(&other.target, &store.target)) {
            return Err(refused("another memory store is there"));
        }
        free(&store.target, policy, workdir).map_err(refused)?;
        places.push(PlacePlan {
            kind: PlaceKind::Store,
            target: store.target.clone(),
            writable: store.access == StoreAccess::ReadWrite,
            bytes_max: store.bytes_max,
            inodes_max: store.inodes_max,
            in_workspace: store.target.starts_with(workdir),
        });
    }
    Ok(places)
}

/// What the file tools may use, the working directory first (TOOL-PATH-1, MEM-8).
pub(super) fn roots(workdir: &Path, places: &[PlacePlan]) -> Vec<PathBuf> {
    let stores = places.iter().filter(|place| place.kind == PlaceKind::Store);
    [workdir.to_owned(), Path::new("/").join(OUTPUTS)]
        .into_iter()
        .chain(stores.map(|place| place.target.clone()))
        .collect()
}

/// Where the file tools may change nothing (TOOL-PATH-5).
pub(super) fn read_only(places: &[PlacePlan]) -> Vec<PathBuf> {
    places.iter().filter(|place| !place.writable).map(|place| place.target.clone()).collect()
}

/// Whether `target` is the one way of writing an absolute path that can be shown.
fn well_formed(target: &Path) -> Result<(), &'static str> {
    if !target.is_absolute() {
        return Err("it is not an absolute path");
    }
    if target.components().any(|part| part == Component::ParentDir) {
        return Err("it has a `..`");
    }
    let Some(text) = target.to_str() else { return Err("it is not UTF-8") };
    if text.chars().any(char::is_control) {
        return Err("it has a control character");
    }
    let depth = target.components().count() - 1;
    if depth > DEPTH_MAX || text.len() > PATH_BYTES_MAX {
        return Err("it is too long");
    }
    if depth == 0 { Err("it is the root") } else { Ok(()) }
}

/// Whether nothing of the jail is at, above or below `target`, but the workspace may be above.
fn free(target: &Path, policy: &Policy, workdir: &Path) -> Result<(), &'static str> {
    if workdir.starts_with(target) {
        return Err("the working directory is there");
    }
    if target.starts_with(workdir) {
        let staged = |to: &str| overlap(&workdir.join(to), target);
        return match () {
            () if overlap(&workdir.join(SKILLS), target) => Err("skills are there"),
            // It would be laid into the store, and from there be sent to the control plane.
            () if policy.stage.rules.iter().any(|rule| staged(&rule.to)) => {
                Err("the policy stages input there")
            }
            () => Ok(()),
        };
    }
    let system = target.iter().nth(1).is_some_and(|top| SYSTEM.iter().any(|name| top == *name));
    if system || TAKEN.iter().chain(OWN).any(|taken| overlap(Path::new(taken), target)) {
        return Err("the jail has a tree of its own there");
    }
    let own = [WORKSPACE, OUTPUTS, HOME].map(|place| Path::new("/").join(place));
    if own.iter().any(|own| overlap(own, target)) {
        return Err("the session's own directories are there");
    }
    let files = &policy.filesystem;
    if files.read_only.iter().chain(&files.writable).any(|path| overlap(&path.value, target)) {
        return Err("the policy shows something there");
    }
    Ok(())
}

fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}
