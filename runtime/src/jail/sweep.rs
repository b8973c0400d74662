//! Finds and removes what a killed worker left: claims whose launcher is gone, and cgroups that no
//! claim belongs to. Mounts, namespaces, loop devices and disk images need no sweep: they have no
//! name and go with the last process.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::host::Level;

use super::cgroup;
use super::claim::{Claim, RunDirectory, slot_named};

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
    for name in cgroup::existing(level) {
        // Whoever holds the number has the cgroup. Held here, it is no jail's that starts meanwhile.
        let claim = match slot_named(&name) {
            Some(slot) => match run.take(slot)? {
                Some(claim) => Some(claim),
                None => continue,
            },
            None => None,
        };
        match cgroup::remove_by_name(&name, None, level, GRACE) {
            Ok(true) => done.removed.push(name),
            // Its jail has ended since.
            Ok(false) => {}
            Err(path) => {
                done.left.push(path);
                continue;
            }
        }
        release(&mut done, claim);
    }
    Ok(done)
}

/// The part of a sweep that every start does: abandoned claims.
pub(super) fn repair(run: &RunDirectory, level: Level) -> io::Result<Sweep> {
    let mut done = Sweep::default();
    loop {
        let (found, before) = (run.abandoned()?, done.removed.len());
        done.left.clear();
        for claim in found {
            match cgroup::remove_by_name(&claim.name(), claim.noted_cgroup(), level, GRACE) {
                Ok(_) => {
                    done.removed.push(claim.name());
                    release(&mut done, Some(claim));
                }
                // Ids and name stay claimed as long as something of the jail is there.
                Err(path) => done.left.push(path),
            }
        }
        if done.removed.len() == before {
            return Ok(done);
        }
    }
}

fn release(done: &mut Sweep, claim: Option<Claim>) {
    let Some(claim) = claim else { return };
    let path = claim.path().display().to_string();
    if claim.release().is_err() {
        done.left.push(path);
    }
}
