//! The mount plan: which entries the jail's root has, what of the host is shown, what is masked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::host::{EntryKind, HostFacts};
use crate::policy::{Policy, Root};

use super::etc::{self, Account};
use super::plan::{
    Access, BoundDirectory, MemoryMount, MountPlan, Node, PlaceKind, PlacePlan, ReadOnlyBind,
    ScratchPlan,
};

/// Working directory of the payload unless the request names another.
pub(super) const WORKSPACE: &str = "workspace";
/// Where an agent leaves what should survive.
pub(super) const OUTPUTS: &str = "mnt/session/outputs";
/// The payload's `$HOME`.
pub(super) const HOME: &str = "home/session";

/// Names of `/` that make up a system besides `/usr`, as links or directories.
pub(super) const SYSTEM: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// The host device nodes a payload may use (devices.rst of the kernel: memory devices and tty).
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// What a payload must not read or write in `/proc`: the host's hardware, its load, its boot
/// parameters, its keys, and every handle that acts on the host. A slash marks a directory.
const MASKED: &[&str] = &[
    "acpi/",
    "asound/",
    "bus/",
    "cmdline",
    "config.gz",
    "consoles",
    "diskstats",
    "driver/",
    "dynamic_debug/",
    "fs/",
    "interrupts",
    "iomem",
    "ioports",
    "irq/",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "locks",
    "modules",
    "mtrr",
    "partitions",
    "pressure/",
    "sched_debug",
    "schedstat",
    "scsi/",
    "slabinfo",
    "softirqs",
    "swaps",
    "sysrq-trigger",
    "timer_list",
    "vmallocinfo",
];

/// What stays readable in `/proc` because programs ask for it, and can never be written.
const FROZEN: &[&str] = &["sys"];

/// Links below `/var`, as every distribution has them or may.
const LINKS_OF_VAR: [(&str, &str); 2] = [("var/run", "/run"), ("var/tmp", "/tmp")];

/// Trees of the jail in which no host directory is shown at its own path.
pub(super) const TAKEN: &[&str] =
    &["/usr", "/etc", "/proc", "/sys", "/dev", "/run", "/boot", "/var/run", "/var/tmp"];

/// Whether a host directory can be shown in the jail at its own path; the reason if not.
pub(super) fn check_place(path: &Path, policy: &Policy) -> Result<(), &'static str> {
    let top = path.components().nth(1).map(|part| part.as_os_str().to_string_lossy().into_owned());
    if TAKEN.iter().any(|taken| path.starts_with(taken))
        || top.is_none_or(|top| SYSTEM.contains(&top.as_str()))
    {
        return Err("the jail has a tree of its own there");
    }
    let own = [OUTPUTS, HOME].map(|place| Path::new("/").join(place));
    if own.iter().any(|own| own.starts_with(path) || path.starts_with(own)) {
        return Err("the session's own directories are there");
    }
    let shown = &policy.filesystem.read_only;
    if shown.iter().any(|shown| path.starts_with(&shown.value) || shown.value.starts_with(path)) {
        return Err("the policy shows something read-only there");
    }
    Ok(())
}

/// The mount plan and what landlock grants on it.
pub(super) struct Tree {
    pub mounts: MountPlan,
    pub grants: Vec<(PathBuf, Access)>,
}

/// Lays out the tree. `bound` are host directories the payload may change, already checked.
pub(super) fn lay_out(
    policy: &Policy,
    facts: &HostFacts,
    account: &Account<'_>,
    bound: Vec<BoundDirectory>,
    porter: Vec<PlacePlan>,
    workspace_elsewhere: bool,
) -> Tree {
    let mut plan = Layout::default();
    let base = match &policy.filesystem.root.value {
        Root::Host => {
            plan.host_view(facts, account);
            None
        }
        Root::Directory(path) => {
            etc::written(account).into_iter().for_each(|node| plan.node(node));
            plan.grants.push((PathBuf::from("/"), Access::ReadExecute));
            Some(path.clone())
        }
    };
    for path in &policy.filesystem.read_only {
        plan.show(&path.value, true);
        plan.grants.push((path.value.clone(), Access::ReadExecute));
    }
    let places: Vec<PathBuf> = [WORKSPACE, OUTPUTS, HOME]
        .into_iter()
        .map(PathBuf::from)
        .filter(|place| !bound.iter().any(|directory| directory.target == *place))
        .filter(|place| !(workspace_elsewhere && *place == Path::new(WORKSPACE)))
        .collect();
    let mut memory = vec![
        MemoryMount {
            target: "tmp".into(),
            bytes_max: policy.filesystem.tmp_size.value.bytes(),
            inodes_max: policy.filesystem.tmp_inodes.value,
            mode: 0o1777,
            directories: Vec::new(),
        },
        MemoryMount {
            target: "dev/shm".into(),
            bytes_max: policy.filesystem.shm_size.value.bytes(),
            inodes_max: policy.filesystem.tmp_inodes.value,
            mode: 0o1777,
            directories: Vec::new(),
        },
    ];
    for target in places.iter().chain(bound.iter().map(|directory| &directory.target)) {
        match memory.iter_mut().find(|mount| target.starts_with(&mount.target)) {
            Some(mount) => mount.make_way_for(target),
            None => plan.directory(target),
        }
        plan.grants.push((Path::new("/").join(target), Access::Write));
    }
    for place in &porter {
        if !place.in_workspace {
            plan.directory(place.target.strip_prefix("/").unwrap_or(&place.target));
        }
        // Skills lie in the workspace, whose grant is wider; what keeps them from change is the mount.
        if place.kind == PlaceKind::Store {
            let access = if place.writable { Access::Write } else { Access::ReadExecute };
            plan.grants.push((place.target.clone(), access));
        }
    }
    plan.kernel_views();
    Tree {
        mounts: MountPlan {
            base,
            skeleton: plan.skeleton,
            read_only: plan.read_only,
            devices: DEVICES.iter().map(|&name| name.to_owned()).collect(),
            masked: MASKED.iter().map(|&name| name.to_owned()).collect(),
            frozen: FROZEN.iter().map(PathBuf::from).collect(),
            memory,
            scratch: ScratchPlan {
                storage: policy.filesystem.workspace_storage.value,
                bytes_max: policy.filesystem.workspace_size.value.bytes(),
                inodes_max: policy.filesystem.workspace_inodes.value,
                places,
            },
            bound,
            places: porter,
        },
        grants: plan.grants,
    }
}

impl MemoryMount {
    /// Adds the directories down to `target`, a path below the root that lies in this mount.
    fn make_way_for(&mut self, target: &Path) {
        let inside = target.strip_prefix(&self.target).unwrap_or(target);
        let mut parents: Vec<_> = inside.ancestors().filter(|p| *p != Path::new("")).collect();
        parents.reverse();
        for parent in parents {
            if !self.directories.iter().any(|made| made == parent) {
                self.directories.push(parent.to_owned());
            }
        }
    }
}

#[derive(Default)]
struct Layout {
    skeleton: Vec<Node>,
    made: BTreeSet<PathBuf>,
    read_only: Vec<ReadOnlyBind>,
    grants: Vec<(PathBuf, Access)>,
}

impl Layout {
    /// Makes `path` and its parents.
    fn directory(&mut self, path: &Path) {
        let mut parents: Vec<_> = path.ancestors().filter(|p| *p != Path::new("")).collect();
        parents.reverse();
        for parent in parents {
            if self.made.insert(parent.to_owned()) {
                self.skeleton.push(Node::Directory { path: parent.to_owned() });
            }
        }
    }

    /// Adds a file or link and its parents.
    fn node(&mut self, node: Node) {
        let (Node::File { path, .. } | Node::Link { path, .. } | Node::Directory { path }) = &node;
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
        if self.made.insert(path.clone()) {
            self.skeleton.push(node);
        }
    }

    /// Shows the host's `path` (absolute) at the same place, read-only.
    fn show(&mut self, path: &Path, directory: bool) {
        let target = path.strip_prefix("/").unwrap_or(path).to_owned();
        self.bind(ReadOnlyBind { source: path.to_owned(), target, directory });
    }

    fn bind(&mut self, bind: ReadOnlyBind) {
        if bind.directory {
            self.directory(&bind.target);
        } else {
            self.node(Node::File { path: bind.target.clone(), content: Vec::new() });
        }
        self.read_only.push(bind);
    }

    /// `/usr`, its usual links, a synthesized `/etc`, an empty `/run`, a static minimum of `/sys`.
    fn host_view(&mut self, facts: &HostFacts, account: &Account<'_>) {
        for entry in &facts.root {
            if entry.name == "usr" {
                self.show(Path::new("/usr"), true);
            } else if SYSTEM.contains(&entry.name.as_str()) {
                match &entry.kind {
                    EntryKind::Link(target) => self.node(Node::Link {
                        path: PathBuf::from(&entry.name),
                        target: target.clone(),
                    }),
                    _ => self.show(&Path::new("/").join(&entry.name), true),
                }
                self.grants.push((Path::new("/").join(&entry.name), Access::ReadExecute));
            }
        }
        for node in etc::written(account) {
            self.node(node);
        }
        let (links, binds) = etc::shared(&facts.etc);
        links.into_iter().for_each(|link| self.node(link));
        binds.into_iter().for_each(|bind| self.bind(bind));
        for empty in ["run", "var", "opt", "srv", "root", "mnt"] {
            self.directory(Path::new(empty));
        }
        for (path, target) in LINKS_OF_VAR {
            self.node(Node::Link { path: path.into(), target: target.into() });
        }
        self.cpu_list(facts.online_cpus);
        // Readable by its permissions and granted by no landlock rule: the canary opens it.
        self.node(Node::File { path: CANARY_FILE.into(), content: b"canary\n".to_vec() });
        for (path, access) in [
            ("/", Access::List),
            ("/usr", Access::ReadExecute),
            ("/etc", Access::ReadExecute),
            ("/run", Access::ReadExecute),
            ("/sys", Access::ReadExecute),
            ("/opt", Access::ReadExecute),
        ] {
            self.grants.push((PathBuf::from(path), access));
        }
    }

    /// The files that C libraries and language run-times read to count CPUs.
    fn cpu_list(&mut self, online: usize) {
        let list = if online > 1 { format!("0-{}\n", online - 1) } else { "0\n".to_owned() };
        for name in ["online", "possible", "present"] {
            self.node(Node::File {
                path: Path::new("sys/devices/system/cpu").join(name),
                content: list.clone().into_bytes(),
            });
        }
    }

    /// `/dev` and `/proc`.
    fn kernel_views(&mut self) {
        for directory in ["proc", "run", "dev", "dev/pts", "dev/shm", "dev/mqueue", "tmp"] {
            self.directory(Path::new(directory));
        }
        for (name, target) in [
            ("ptmx", "pts/ptmx"),
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
        ] {
            self.node(Node::Link { path: Path::new("dev").join(name), target: target.into() });
        }
        for name in DEVICES {
            self.node(Node::File { path: Path::new("dev").join(name), content: Vec::new() });
        }
        for (path, access) in [
            ("/tmp", Access::Write),
            ("/dev", Access::Device),
            ("/dev/shm", Access::Write),
            ("/dev/mqueue", Access::Write),
            ("/proc", Access::Proc),
        ] {
            self.grants.push((PathBuf::from(path), access));
        }
    }
}

/// Path below the root of the file that only landlock keeps the payload from reading.
pub(super) const CANARY_FILE: &str = ".canary";
