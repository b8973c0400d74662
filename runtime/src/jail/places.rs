//! The porter's places: memory file systems of the session that the payload sees through one mount and
//! the porter changes through another.
//!
//! Runs in init, when the workspace is laid out and the host tree is still the root. The mount that
//! the payload sees may be read-only; the porter's is attached nowhere, so nothing but its descriptor
//! leads to it. Mount points in the workspace are made as the payload would make them, and noted, so
//! that the export leaves them out.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;

use crate::spec::{MountPlan, PlaceKind, PlacePlan};

use super::step::{AtStep as _, Step, StepFailure};
use super::tree::{self, Tree, attach, copy_tree};
use super::workspace::ExportMounts;

/// Permissions of the top directory of a place (MEM-5, SKILL-9).
const MODE: u32 = 0o700;

/// Lays out all places; the porter's mounts, in the order of the plan.
pub(super) fn lay_out(
    tree: &Tree,
    plan: &MountPlan,
    exports: &mut [ExportMounts],
) -> Result<Vec<OwnedFd>, StepFailure> {
    plan.places.iter().map(|place| lay_out_one(tree, plan, place, exports)).collect()
}

fn lay_out_one(
    tree: &Tree,
    plan: &MountPlan,
    place: &PlacePlan,
    exports: &mut [ExportMounts],
) -> Result<OwnedFd, StepFailure> {
    let step = Step::Places;
    let what = match place.kind {
        PlaceKind::Skills => "skills",
        PlaceKind::Store => "a memory store",
    };
    let detail = || format!("show {what} at {}", place.target.display());
    if let Some(base) = &plan.base
        && !place.in_workspace
    {
        is_free(base, &place.target).at(step, detail())?;
    }
    let (point, made) = mount_point(tree, place).at(step, detail())?;
    note(plan, exports, &made);
    let shown = tree.tmpfs(place.bytes_max, place.inodes_max, MODE, tree.payload);
    let shown = shown.at(step, detail())?;
    attach(&shown, point.as_fd(), "").at(step, detail())?;
    // After the attachment: older kernels copy attached mounts only.
    let own = copy_tree(shown.as_fd(), Path::new("")).at(step, detail())?;
    if !place.writable {
        tree::set(&shown, tree::READ_ONLY, false).at(step, detail())?;
    }
    // A descriptor that can be listed, and whose mode can be changed back should the payload take
    // its owner's rights away.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(&own, ".", flags, Mode::empty()).at(step, detail())
}

/// The directory that a place is mounted on, and what was made of it.
///
/// A place on the root has its mount point from the skeleton. One in the workspace is made here, with
/// the ids of the payload and no way through a link; that of a store must not exist (MEM-4).
fn mount_point(tree: &Tree, place: &PlacePlan) -> Result<(OwnedFd, Vec<PathBuf>), Errno> {
    let below = place.target.strip_prefix("/").unwrap_or(&place.target);
    let names: Vec<&OsStr> = below.iter().collect();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut here = openat(&tree.root, ".", flags, Mode::empty())?;
    let (mut walked, mut made) = (PathBuf::from("/"), Vec::new());
    let _ids = PayloadIds::take(tree.payload);
    for (number, name) in names.iter().enumerate() {
        walked.push(name);
        let next = match openat(&here, *name, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                mkdirat(&here, *name, Mode::from_raw_mode(MODE))?;
                made.push(walked.clone());
                openat(&here, *name, flags, Mode::empty())?
            }
            // There is a file, or a link, which is not followed.
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(Errno::NOTDIR),
            other => other?,
        };
        let last = number + 1 == names.len();
        let found = made.last() != Some(&walked);
        if last && found && place.in_workspace && place.kind == PlaceKind::Store {
            return Err(Errno::EXIST);
        }
        here = next;
    }
    Ok((here, made))
}

/// The ids that file systems see, those of the payload while this lives: what is made belongs to it,
/// on idmapped mounts too, and its permissions are all that count.
struct PayloadIds {
    uid: Uid,
    gid: Gid,
}

impl PayloadIds {
    fn take(payload: u32) -> PayloadIds {
        PayloadIds { gid: setfsgid(Gid::from_raw(payload)), uid: setfsuid(Uid::from_raw(payload)) }
    }
}

impl Drop for PayloadIds {
    fn drop(&mut self) {
        setfsuid(self.uid);
        setfsgid(self.gid);
    }
}

/// Whether a root directory of the operator's has nothing at `target` (MEM-4).
fn is_free(base: &Path, target: &Path) -> Result<(), Errno> {
    let below = target.strip_prefix("/").unwrap_or(target);
    match rustix::fs::statat(CWD, base.join(below), rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Err(Errno::EXIST),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Notes directories that were made in a bound one.
fn note(plan: &MountPlan, exports: &mut [ExportMounts], made: &[PathBuf]) {
    for path in made {
        let holding = plan.bound.iter().zip(exports.iter_mut()).filter_map(|(bound, export)| {
            let below = path.strip_prefix(Path::new("/").join(&bound.target)).ok()?;
            Some((bound.target.as_os_str().len(), below, export))
        });
        if let Some((_, below, export)) = holding.max_by_key(|(length, ..)| *length) {
            export.order.made.push(below.to_owned());
        }
    }
}
