//! Finds and removes what a killed worker left: claims whose launcher is gone, and cgroups that no
//! claim belongs to. Mounts, namespaces, loop devices and disk images need no sweep: they have no
//! name and go with the last process.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::Level;

use super::cgroup;
use super::claim::{RunDirectory, jail_name};

/// How long the processes of one abandoned jail may take to die.
const GRACE: Duration = Duration::from_secs(5);

/// What a sweep found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Sweep {
    /// Jails whose leftovers were removed.
    pub removed: Vec<String>,
    /// Leftovers that could not be removed.
    pub left: Vec<String>,
}

/// Sweeps the host (root) or the caller's own leftovers (rootless).
///
/// # Errors
/// If the run directory cannot be read, or belongs to somebody else.
pub fn sweep(level: Level, rootless_run_directory: &Path) -> io::Result<Sweep> {
    let run = RunDirectory::open(level, rootless_run_directory)?;
    let mut done = repair(&run, level)?;
    // Cgroups first: a jail that starts now has its claim before its cgroup, so a cgroup seen here
    // without a claim seen afterwards has none.
    let groups = cgroup::existing(level);
    let claimed: Vec<_> = run.slots()?.into_iter().map(jail_name).collect();
    for name in groups.into_iter().filter(|name| !claimed.contains(name)) {
        settle(&mut done, name, None, level);
    }
    Ok(done)
}

/// The part of a sweep that every start does: abandoned claims.
pub(super) fn repair(run: &RunDirectory, level: Level) -> io::Result<Sweep> {
    let mut done = Sweep::default();
    for claim in run.abandoned()? {
        // Ids and name stay claimed as long as something of the jail is there.
        if !settle(&mut done, claim.name(), claim.noted_cgroup(), level) {
            continue;
        }
        let path = claim.path().display().to_string();
        if claim.release().is_err() {
            done.left.push(path);
        }
    }
    Ok(done)
}

/// Removes the cgroup of one jail; whether nothing is left of it.
fn settle(done: &mut Sweep, name: String, noted: Option<PathBuf>, level: Level) -> bool {
    let outcome = cgroup::remove_by_name(&name, noted, level, GRACE);
    let gone = outcome.is_ok();
    match outcome {
        Ok(()) => done.removed.push(name),
        Err(path) => done.left.push(path),
    }
    gone
}
