//! Builds the private root of one jail from its mount plan, by descriptor.
//!
//! Runs in init: after the mount namespace exists, before privileges are dropped. Knows nothing
//! of policy files; every path it sees was laid out by `spec`. The host tree is still the root
//! here, and nobody but init is in this mount namespace, so no path can be changed under it.
//!
//! Order matters. Propagation becomes private first, or our mounts would appear on the host
//! (mount_namespaces(7)). The new root is attached before anything is hung on it: older kernels
//! refuse mounts on a detached tree. What is read-only is sealed in one step before the writable
//! mounts are added.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::spec::{MemoryMount, MountPlan, Node};
use crate::sys::{MountAttributes, mount_setattr};

use super::step::{AtStep as _, Step, StepFailure, enter};

/// Name on the root of the empty file that hides entries of `/proc`.
const EMPTY_FILE: &str = ".masked";
/// Where the message queues are, below the root.
pub(super) const MESSAGE_QUEUES: &str = "dev/mqueue";
/// Name on the root of the empty directory that hides entries of `/proc`.
const EMPTY_DIRECTORY: &str = "run";
/// The skeleton holds names and small files only.
const SKELETON_BYTES_MAX: &str = "1m";
const SKELETON_INODES_MAX: &str = "512";
/// Minor numbers of the memory devices and `tty` (devices.txt): major 1, and 5 for tty.
const DEVICE_NUMBERS: &[(&str, u32, u32)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

pub(super) const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
pub(super) const NO_SUID: u64 = libc::MOUNT_ATTR_NOSUID;
pub(super) const NO_DEV: u64 = libc::MOUNT_ATTR_NODEV;
const NO_EXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

/// A file system to be made, as `key=value` options and flags without a value.
pub(super) fn make(kind: &str, options: &[(&str, &str)], attributes: u64) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(&context, *key)?;
        } else {
            fsconfig_set_string(&context, *key, *value)?;
        }
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// A detached copy of the tree at `path` below `directory`.
pub(super) fn copy_tree(directory: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(directory, path, flags)?)
}

/// Attaches a detached mount at `path` below `directory`.
pub(super) fn attach(
    mount: &OwnedFd,
    directory: BorrowedFd<'_>,
    path: impl AsRef<Path>,
) -> io::Result<()> {
    let path = path.as_ref();
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    let flags = if path.as_os_str().is_empty() {
        flags | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH
    } else {
        flags
    };
    Ok(move_mount(mount, "", directory, path, flags)?)
}

pub(super) fn set(mount: &OwnedFd, set: u64, recursive: bool) -> io::Result<()> {
    mount_setattr(mount.as_fd(), MountAttributes { set, recursive, ..Default::default() })
}

/// The root under construction.
#[derive(Debug)]
pub(super) struct Tree {
    /// Its top directory.
    pub root: OwnedFd,
    /// A proc of our own, never attached anywhere, on which nothing is masked.
    pub private_proc: OwnedFd,
    /// Mounts between the old root and this one, the old root included.
    below: u32,
    /// User and group id, as this namespace names them, of what the payload owns.
    pub payload: u32,
}

/// Makes every mount of this namespace private.
pub(super) fn make_private() -> Result<(), StepFailure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, "/", flags, Mode::empty()).at(Step::Private, "open /")?;
    let attributes = MountAttributes { private: true, recursive: true, ..Default::default() };
    mount_setattr(root.as_fd(), attributes).at(Step::Private, "make / private")
}

impl Tree {
    /// The root with everything that stays read-only: skeleton and parts of the host.
    pub fn begin(plan: &MountPlan, payload: u32, halt: Option<&str>) -> Result<Self, StepFailure> {
        let step = Step::Skeleton;
        let options =
            [("mode", "0755"), ("size", SKELETON_BYTES_MAX), ("nr_inodes", SKELETON_INODES_MAX)];
        let mut root = make("tmpfs", &options, NO_SUID).at(step, "make the root")?;
        attach(&root, CWD, "/").at(step, "attach the root")?;
        for node in &plan.skeleton {
            create(&root, node)?;
        }
        let masked = Node::File { path: EMPTY_FILE.into(), content: Vec::new() };
        create(&root, &masked)?;
        let mut below = 1;
        if let Some(base) = &plan.base {
            root = lay_over(&root, base)?;
            below += 1; // the skeleton, which the new root was attached on
        }
        enter(Step::HostView, halt);
        for bind in &plan.read_only {
            let detail = || format!("show {}", bind.source.display());
            let source = match copy_tree(CWD, &bind.source) {
                Ok(source) => source,
                // Parts of a host directory that this host does not have.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) && is_optional(&bind.source) => {
                    continue;
                }
                Err(error) => return Err(StepFailure::new(Step::HostView, detail(), &error)),
            };
            attach(&source, root.as_fd(), &bind.target).at(Step::HostView, detail())?;
        }
        set(&root, READ_ONLY | NO_SUID | NO_DEV, true).at(Step::HostView, "seal the root")?;
        let private_proc = make("proc", &[], NO_SUID | NO_DEV | NO_EXEC)
            .at(Step::Proc, "make a proc of our own")?;
        Ok(Tree { root, private_proc, below, payload })
    }

    /// Device nodes and a private set of terminals.
    pub fn devices(&self, names: &[String]) -> Result<(), StepFailure> {
        let step = Step::Devices;
        for name in names {
            let host = Path::new("/dev").join(name);
            let node = copy_tree(CWD, &host).at(step, format!("show {}", host.display()))?;
            let stat = rustix::fs::fstat(&node).at(step, format!("check {}", host.display()))?;
            let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            let known = DEVICE_NUMBERS.iter().any(|(n, a, b)| n == name && (*a, *b) == number);
            let device = rustix::fs::FileType::from_raw_mode(stat.st_mode);
            if !known || device != rustix::fs::FileType::CharacterDevice {
                let error = io::Error::from_raw_os_error(libc::ENODEV);
                return Err(StepFailure::new(
                    step,
                    format!("{} is another device", host.display()),
                    &error,
                ));
            }
            // Read-only does not keep a device from being written to (do_open of fs/namei.c asks
            // that of regular files only); it keeps the node's mode, owner and times the host's.
            set(&node, READ_ONLY | NO_SUID | NO_EXEC, false).at(step, name.as_str())?;
            attach(&node, self.root.as_fd(), Path::new("dev").join(name))
                .at(step, name.as_str())?;
        }
        let options = [("ptmxmode", "0666"), ("mode", "0600"), ("max", "64")];
        let terminals = make("devpts", &options, NO_SUID | NO_EXEC).at(step, "make devpts")?;
        attach(&terminals, self.root.as_fd(), "dev/pts").at(step, "attach devpts")
    }

    /// The message queues of this ipc namespace, which mq_overview(7) wants to be a file system for
    /// landlock to allow them.
    pub fn message_queues(&self) -> Result<(), StepFailure> {
        let step = Step::Devices;
        let queues = match make("mqueue", &[], NO_SUID | NO_DEV | NO_EXEC) {
            Ok(queues) => queues,
            // A kernel without POSIX message queues.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
            Err(error) => return Err(StepFailure::new(step, "make mqueue", &error)),
        };
        attach(&queues, self.root.as_fd(), MESSAGE_QUEUES).at(step, "attach mqueue")
    }

    /// The payload's `/proc`: its own processes only, what concerns the host masked.
    pub fn proc(&self, plan: &MountPlan) -> Result<(), StepFailure> {
        let step = Step::Proc;
        let options = [("hidepid", "2")];
        let proc = make("proc", &options, NO_SUID | NO_DEV | NO_EXEC).at(step, "make proc")?;
        self.show_proc(&proc, plan)
    }

    /// Shows init's own `/proc` for the time until [`own_proc`](Self::own_proc): without root, the
    /// kernel makes a new one only for who can see a whole one already.
    pub fn lend_proc(&self) -> Result<(), StepFailure> {
        attach(&self.private_proc, self.root.as_fd(), "proc").at(Step::Proc, "lend proc")
    }

    /// Replaces what was lent by the `/proc` of the caller's PID namespace, after the pivot. Returns
    /// another one of the same namespace that hides nothing and is attached nowhere.
    pub fn own_proc(&self, plan: &MountPlan) -> Result<OwnedFd, StepFailure> {
        let step = Step::Proc;
        let (options, attributes) = ([("hidepid", "2")], NO_SUID | NO_DEV | NO_EXEC);
        let whole = make("proc", &[], attributes).at(step, "make a proc for the keeper")?;
        let proc = make("proc", &options, attributes).at(step, "make proc")?;
        rustix::mount::unmount("/proc", rustix::mount::UnmountFlags::DETACH)
            .at(step, "take back what was lent")?;
        self.show_proc(&proc, plan)?;
        Ok(whole)
    }

    fn show_proc(&self, proc: &OwnedFd, plan: &MountPlan) -> Result<(), StepFailure> {
        let step = Step::Proc;
        attach(proc, self.root.as_fd(), "proc").at(step, "attach proc")?;
        for name in &plan.frozen {
            let detail = || format!("freeze /proc/{}", name.display());
            let copy = copy_tree(proc.as_fd(), name).at(step, detail())?;
            set(&copy, READ_ONLY | NO_SUID | NO_DEV | NO_EXEC, true).at(step, detail())?;
            attach(&copy, proc.as_fd(), name).at(step, detail())?;
        }
        let present = entries(proc).at(step, "list proc")?;
        for name in plan.masked.iter().filter(|name| present.contains(name.trim_end_matches('/'))) {
            let empty = if name.ends_with('/') { EMPTY_DIRECTORY } else { EMPTY_FILE };
            let detail = || format!("mask /proc/{name}");
            let cover = copy_tree(self.root.as_fd(), Path::new(empty)).at(step, detail())?;
            attach(&cover, proc.as_fd(), name).at(step, detail())?;
        }
        Ok(())
    }

    /// `/tmp` and `/dev/shm`.
    pub fn memory(&self, mount: &MemoryMount) -> Result<(), StepFailure> {
        let detail = || format!("mount /{}", mount.target.display());
        let made = self
            .tmpfs(mount.bytes_max, mount.inodes_max, mount.mode, self.payload)
            .at(Step::Memory, detail())?;
        for directory in &mount.directories {
            mkdirat(&made, directory, Mode::from_raw_mode(0o755)).at(Step::Memory, detail())?;
        }
        attach(&made, self.root.as_fd(), &mount.target).at(Step::Memory, detail())
    }

    /// A memory file system with both limits, owned by `owner`.
    pub fn tmpfs(&self, bytes: u64, inodes: u64, mode: u32, owner: u32) -> io::Result<OwnedFd> {
        let (bytes, inodes, owner) = (bytes.to_string(), inodes.to_string(), owner.to_string());
        let mode = format!("{mode:o}");
        let options = [
            ("size", bytes.as_str()),
            ("nr_inodes", inodes.as_str()),
            ("mode", mode.as_str()),
            ("uid", owner.as_str()),
            ("gid", owner.as_str()),
        ];
        make("tmpfs", &options, NO_SUID | NO_DEV)
    }

    /// Makes this tree the root of the process and lets go of the old one.
    pub fn pivot(&self) -> Result<(), StepFailure> {
        let step = Step::Pivot;
        rustix::process::fchdir(&self.root).at(step, "enter the new root")?;
        rustix::process::pivot_root(".", ".").at(step, "pivot_root")?;
        for _ in 0..self.below {
            rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)
                .at(step, "let go of the old root")?;
        }
        rustix::process::chdir("/").at(step, "enter /")
    }
}

/// Paths of the host that may be missing because only some distributions have them.
fn is_optional(source: &Path) -> bool {
    source.starts_with("/etc")
}

/// Names in the top directory of a mount.
fn entries(mount: &OwnedFd) -> io::Result<BTreeSet<String>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(mount, ".", flags, Mode::empty())?;
    let mut names = BTreeSet::new();
    for entry in rustix::fs::Dir::new(directory)? {
        names.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

fn create(root: &OwnedFd, node: &Node) -> Result<(), StepFailure> {
    let step = Step::Skeleton;
    match node {
        Node::Directory { path } => mkdirat(root, path, Mode::from_raw_mode(0o755))
            .at(step, format!("make /{}", path.display())),
        Node::Link { path, target } => {
            symlinkat(target, root, path).at(step, format!("make /{}", path.display()))
        }
        Node::File { path, content } => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let detail = || format!("write /{}", path.display());
            let file = openat(root, path, flags, Mode::from_raw_mode(0o444)).at(step, detail())?;
            if content.is_empty() {
                return Ok(());
            }
            let written = rustix::io::write(&file, content).at(step, detail())?;
            if written == content.len() {
                return Ok(());
            }
            Err(StepFailure::new(step, detail(), &io::ErrorKind::WriteZero.into()))
        }
    }
}

/// A root directory with the skeleton over it: whatever the directory has in the places that are
/// mounted on (a link, a file), the skeleton's directories win.
fn lay_over(skeleton: &OwnedFd, base: &Path) -> Result<OwnedFd, StepFailure> {
    let step = Step::Skeleton;
    let detail = || format!("use {} as the root", base.display());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let base_fd = openat(CWD, base, flags, Mode::empty()).at(step, detail())?;
    let lower = format!("{}:{}", fd_path(skeleton.as_fd()), fd_path(base_fd.as_fd()));
    let root = make("overlay", &[("lowerdir", &lower)], READ_ONLY | NO_SUID | NO_DEV)
        .at(step, detail())?;
    attach(&root, CWD, "/").at(step, detail())?;
    Ok(root)
}

/// A path by which the kernel finds what `fd` refers to.
pub(super) fn fd_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd))
}
