//! Workspace, outputs, home and bound host directories: everything the payload may change, held
//! to one limit of bytes and inodes.
//!
//! Runs in init, while the host tree is still the root. One file system made for this session
//! (the scratch) carries the fresh directories and what is laid over bound ones; it is never
//! visible as a whole. A bound directory is written only after the payload is dead, by the export
//! (see `export`), or directly where its own file system already enforces a project quota.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat, fstat, mkdirat, openat};
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

use crate::spec::{BoundDirectory, BoundLimit, MountPlan};
use crate::sys::{MountAttributes, mount_setattr};

use super::step::{AtStep as _, Step, StepFailure};
use super::tree::{self, NO_DEV, NO_SUID, Tree, attach, copy_tree, fd_path};

/// Places on the unfinished root where a mount is kept while others are made from it. What is
/// mounted there for good comes later.
const KEEP_SCRATCH: &str = "proc";
const KEEP_LOWER: &str = "tmp";

/// What has to be done to a bound directory after the payload is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ExportKind {
    /// Copy the changes in the first descriptor's tree to the second's.
    CopyBack,
    /// Take dangerous modes from the files in the only descriptor's tree.
    Scrub,
}

/// What has to be done to one of them, and what is to be left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExportOrder {
    pub kind: ExportKind,
    /// Directories (relative) that were made for mounts: they leave the jail only if there is
    /// something else in them.
    pub made: Vec<PathBuf>,
}

/// One bound directory for the export, with descriptors of detached mounts.
#[derive(Debug)]
pub(crate) struct ExportMounts {
    pub order: ExportOrder,
    pub mounts: Vec<OwnedFd>,
}

impl ExportMounts {
    fn new(kind: ExportKind, mounts: Vec<OwnedFd>) -> ExportMounts {
        ExportMounts { order: ExportOrder { kind, made: Vec::new() }, mounts }
    }
}

/// Lays out the writable places.
pub(super) fn lay_out(
    tree: &Tree,
    plan: &MountPlan,
    disk: Option<&Path>,
    id_maps: &[Option<OwnedFd>],
) -> Result<Vec<ExportMounts>, StepFailure> {
    let step = Step::Workspace;
    let scratch = match disk {
        Some(device) => {
            let source = device.display().to_string();
            tree::make("ext4", &[("source", &source)], NO_SUID | NO_DEV)
                .at(step, format!("mount {source}"))?
        }
        None => {
            let (bytes, inodes) = (plan.scratch.bytes_max, plan.scratch.inodes_max);
            tree.tmpfs(bytes, inodes, 0o755, 0).at(step, "make the scratch")?
        }
    };
    attach(&scratch, tree.root.as_fd(), KEEP_SCRATCH).at(step, "attach the scratch")?;
    for (number, place) in plan.scratch.places.iter().enumerate() {
        let detail = || format!("make /{}", place.display());
        let name = format!("place-{number}");
        owned_directory(&scratch, &name, 0o755, tree.payload).at(step, detail())?;
        let view = copy_tree(scratch.as_fd(), Path::new(&name)).at(step, detail())?;
        attach(&view, tree.root.as_fd(), place).at(step, detail())?;
    }
    let mut exports = Vec::new();
    for (number, (bound, map)) in plan.bound.iter().zip(id_maps).enumerate() {
        let binding = Binding { tree, scratch: &scratch, bound, map: map.as_ref(), number };
        let export = binding.bind().map_err(|(detail, error)| {
            let detail = format!("show {}: {detail}", bound.source.display());
            StepFailure::new(step, detail, &error)
        })?;
        exports.push(export);
    }
    rustix::process::fchdir(&tree.root).at(step, "enter the root")?;
    unmount(KEEP_SCRATCH, UnmountFlags::DETACH).at(step, "hide the scratch")?;
    Ok(exports)
}

fn owned_directory(parent: &OwnedFd, name: &str, mode: u32, owner: u32) -> io::Result<()> {
    mkdirat(parent, name, Mode::from_raw_mode(mode))?;
    let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
    Ok(chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

struct Binding<'a> {
    tree: &'a Tree,
    scratch: &'a OwnedFd,
    bound: &'a BoundDirectory,
    map: Option<&'a OwnedFd>,
    number: usize,
}

type Tried<T> = Result<T, (&'static str, io::Error)>;

fn tried<E: Into<io::Error>>(detail: &'static str) -> impl FnOnce(E) -> (&'static str, io::Error) {
    move |error| (detail, error.into())
}

impl Binding<'_> {
    fn bind(&self) -> Tried<ExportMounts> {
        let target = &self.bound.target;
        let root = self.tree.root.as_fd();
        match self.bound.limit {
            BoundLimit::ProjectQuota { .. } => {
                let direct = self.host_view()?;
                attach(&direct, root, target).map_err(tried("attach it"))?;
                Ok(ExportMounts::new(ExportKind::Scrub, vec![self.host_view()?]))
            }
            BoundLimit::Overlay => {
                let (overlay, upper) = self.overlay()?;
                attach(&overlay, root, target).map_err(tried("attach it"))?;
                let mounts = vec![upper, self.host_view()?];
                Ok(ExportMounts::new(ExportKind::CopyBack, mounts))
            }
        }
    }

    /// The host directory itself, seen with the payload's ids, after a check that it is still the
    /// one that was asked for.
    fn host_view(&self) -> Tried<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found =
            openat(CWD, &self.bound.source, flags, Mode::empty()).map_err(tried("open it"))?;
        let stat = fstat(&found).map_err(tried("check it"))?;
        if (stat.st_dev, stat.st_ino) != (self.bound.device, self.bound.inode) {
            return Err((
                "it was replaced since it was checked",
                io::Error::from_raw_os_error(libc::ESTALE),
            ));
        }
        let found = match &self.bound.child {
            None => found,
            Some(name) => self.child(&found, name).map_err(tried("make a directory in it"))?,
        };
        let view = copy_tree(found.as_fd(), Path::new("")).map_err(tried("copy its mount"))?;
        let attributes =
            MountAttributes { set: NO_SUID | NO_DEV, recursive: true, idmap: None, private: false };
        mount_setattr(view.as_fd(), attributes).map_err(tried("limit its mount"))?;
        if let Some(map) = self.map {
            let attributes = MountAttributes { idmap: Some(map.as_fd()), ..Default::default() };
            mount_setattr(view.as_fd(), attributes)
                .map_err(tried("map its ids (its file system may not support idmapped mounts)"))?;
        }
        Ok(view)
    }

    /// A directory of the session's own in the one that was asked for, with the same owner.
    fn child(&self, parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
        match mkdirat(parent, name, Mode::from_raw_mode(0o750)) {
            // Without root it has been made by its owner, whose id has no name in this namespace.
            Ok(()) if self.map.is_none() => {}
            Ok(()) => {
                let (uid, gid) = (Uid::from_raw(self.bound.uid), Gid::from_raw(self.bound.gid));
                chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(parent, name, flags, Mode::empty())?)
    }

    /// The scratch laid over the host directory, and the part of the scratch that takes changes.
    fn overlay(&self) -> Tried<(OwnedFd, OwnedFd)> {
        let (upper, work) = (format!("upper-{}", self.number), format!("work-{}", self.number));
        let lower = self.host_view()?;
        let mode = fstat(&lower).map_err(tried("check it"))?.st_mode & 0o777;
        owned_directory(self.scratch, &upper, mode, self.tree.payload)
            .map_err(tried("make its upper layer"))?;
        rustix::fs::chmodat(self.scratch, &*upper, Mode::from_raw_mode(mode), AtFlags::empty())
            .map_err(tried("make its upper layer"))?;
        owned_directory(self.scratch, &work, 0o700, 0).map_err(tried("make its work directory"))?;
        // An overlay takes layers that are attached in this namespace, keeps them, and does not
        // need them attached afterwards.
        attach(&lower, self.tree.root.as_fd(), KEEP_LOWER)
            .map_err(tried("attach its lower layer"))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |name: &str| openat(self.scratch, name, flags, Mode::empty());
        let upper_fd = open(&upper).map_err(tried("open its upper layer"))?;
        let work_fd = open(&work).map_err(tried("open its work directory"))?;
        let (lower_path, upper_path, work_path) =
            (fd_path(lower.as_fd()), fd_path(upper_fd.as_fd()), fd_path(work_fd.as_fd()));
        let options = [
            ("lowerdir", lower_path.as_str()),
            ("upperdir", upper_path.as_str()),
            ("workdir", work_path.as_str()),
            // The export reads plain files, whiteouts and opaque directories, nothing else.
            ("redirect_dir", "nofollow"),
            ("metacopy", "off"),
            ("index", "off"),
            // Its marks must be readable by the export, which has no capability.
            ("userxattr", ""),
        ];
        let overlay = tree::make("overlay", &options, NO_SUID | NO_DEV)
            .map_err(tried("lay the session's file system over it"))?;
        let changes = copy_tree(self.scratch.as_fd(), Path::new(&upper))
            .map_err(tried("keep its upper layer"))?;
        rustix::process::fchdir(&self.tree.root).map_err(tried("enter the root"))?;
        unmount(KEEP_LOWER, UnmountFlags::DETACH).map_err(tried("hide its lower layer"))?;
        Ok((overlay, changes))
    }
}
