//! What a run may leave on the host, and the check that it left nothing (INV-10).
//!
//! Processes are counted by the subreaper (`payload/supervise.c`), which cannot be escaped. The
//! rest has names: cgroups, entries of the run directory, mounts, loop devices. Other tests run
//! beside this one, so what is new after a run may be theirs; it is ours only if it stays.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long something that belongs to a run beside ours may take to go.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the worker keeps its notes about live jails when root runs it.
pub const RUN_DIRECTORY: &str = "/run/stockade/jails";

/// The named things of the host that a jail is made of, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    things: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at the host now.
    pub fn take() -> Snapshot {
        let mut things = BTreeSet::new();
        cgroups(Path::new("/sys/fs/cgroup"), 0, &mut things);
        for entry in fs::read_dir(RUN_DIRECTORY).into_iter().flatten().flatten() {
            things.insert(format!("run directory entry {}", entry.path().display()));
        }
        things.extend(mounts());
        things.extend(loop_devices());
        Snapshot { things }
    }

    /// What is there now and was not there then, once it has had time to go.
    ///
    /// Returns at once if there is nothing. A cgroup that holds live processes belongs to a run
    /// beside ours: our own processes were counted before.
    pub fn leftovers(&self) -> Vec<String> {
        self.leftovers_of(None)
    }

    /// As [`Snapshot::leftovers`]; where the name of the jail is known, what bears the name of
    /// another one is not ours.
    pub fn leftovers_of(&self, jail: Option<&str>) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let number = jail.and_then(|name| name.strip_prefix("jail-"));
        let foreign = |thing: &String| {
            let named = thing.starts_with("cgroup") || thing.starts_with("run directory");
            named && number.is_some_and(|number| !thing.ends_with(number))
        };
        let mut suspects = Snapshot::take().new_since(self);
        suspects.retain(|thing| !foreign(thing));
        while !suspects.is_empty() && Instant::now() < deadline {
            sleep(Duration::from_millis(20));
            let now = Snapshot::take();
            suspects.retain(|thing| now.things.contains(thing) && !is_populated(thing));
        }
        suspects
    }

    /// Everything that bears the product's name now, whoever made it.
    pub fn of_product(&self) -> Vec<String> {
        self.things.iter().filter(|thing| thing.contains("stockade")).cloned().collect()
    }

    fn new_since(&self, before: &Snapshot) -> Vec<String> {
        let new = self.things.difference(&before.things);
        new.filter(|thing| !is_populated(thing)).cloned().collect()
    }
}

fn cgroups(dir: &Path, depth: usize, things: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if depth > 6 || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let ours = path.components().any(|part| part.as_os_str() == "stockade");
        // The parent `stockade` may stay: it holds no jail.
        if ours && path.file_name().is_some_and(|name| name != "stockade") {
            things.insert(format!("cgroup {}", path.display()));
        }
        cgroups(&path, depth + 1, things);
    }
}

/// Whether it belongs to something that is alive: ours were counted before.
fn is_populated(thing: &str) -> bool {
    let entry = thing.strip_prefix("run directory entry ").map(Path::new);
    thing.strip_prefix("cgroup ").is_some_and(|path| any_process(Path::new(path)))
        || entry.is_some_and(is_locked)
}

/// Whether a launcher holds its directory. Looked up, because taking the lock would disturb it.
fn is_locked(path: &Path) -> bool {
    let Ok(inode) = fs::metadata(path).map(|meta| format!(":{} ", meta.ino())) else {
        return false;
    };
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    locks.lines().any(|line| line.contains("FLOCK") && line.contains(&inode))
}

fn any_process(cgroup: &Path) -> bool {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    !procs.trim().is_empty()
        || fs::read_dir(cgroup).into_iter().flatten().flatten().any(|entry| {
            entry.file_type().is_ok_and(|kind| kind.is_dir()) && any_process(&entry.path())
        })
}

fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let name = |line: &str| {
        let mut words = line.split(' ');
        let id = words.next()?.to_owned();
        Some(format!("mount {id} at {}", words.nth(3)?))
    };
    table.lines().filter_map(name).collect()
}

fn loop_devices() -> Vec<String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices
        .filter_map(|device| {
            let backing = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
            Some(format!("loop device {:?} on {}", device.file_name(), backing.trim()))
        })
        .collect()
}
