//! Compares what is mounted in the finished jail with what was planned, mount by mount: an alias,
//! a missing mask or a mount that is writable by accident stops the jail here.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};

use crate::spec::MountPlan;

use super::step::{AtStep as _, Step, StepFailure};
use super::tree::{MESSAGE_QUEUES, Tree};

/// No jail has more mounts than fit in this.
const MOUNTINFO_BYTES_MAX: u64 = 1 << 20;

/// What a mount must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Read-only, no devices.
    Sealed,
    /// Writable, no devices.
    Writable,
    /// A device node of the host.
    Device,
    /// The terminals.
    Terminals,
    /// `/proc` itself.
    Proc,
}

/// Checks the current mount namespace against `plan`.
pub(super) fn tree(tree: &Tree, plan: &MountPlan) -> Result<(), StepFailure> {
    let step = Step::VerifyTree;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file: OwnedFd = openat(&tree.private_proc, "self/mountinfo", flags, Mode::empty())
        .at(step, "open mountinfo")?;
    let mut text = String::new();
    std::fs::File::from(file)
        .take(MOUNTINFO_BYTES_MAX)
        .read_to_string(&mut text)
        .at(step, "read mountinfo")?;
    compare(&text, plan).map_err(|difference| {
        StepFailure::new(step, difference, &io::Error::from_raw_os_error(libc::EBADMSG))
    })
}

fn compare(mountinfo: &str, plan: &MountPlan) -> Result<(), String> {
    let expected = expected(plan);
    let mut found = BTreeSet::new();
    for line in mountinfo.lines() {
        let mut fields = line.split(' ').skip(4);
        let (Some(point), Some(options)) = (fields.next(), fields.next()) else {
            return Err(format!("mountinfo has a line of another form: {line}"));
        };
        let point = unescape(point);
        let kind = match expected.get(&point) {
            Some((kind, _)) => *kind,
            // A tree of the host is shown with what is mounted in it.
            None if is_shown(&point, plan) => Kind::Sealed,
            None => return Err(format!("{point} is mounted and not planned")),
        };
        check(&point, options, kind)?;
        if let Some(twice) = found.replace(point) {
            return Err(format!("{twice} is mounted twice"));
        }
    }
    let missing = expected.iter().find(|(point, (_, must))| *must && !found.contains(*point));
    match missing {
        Some((point, _)) => Err(format!("{point} is planned and not mounted")),
        None => Ok(()),
    }
}

fn is_shown(point: &str, plan: &MountPlan) -> bool {
    plan.read_only
        .iter()
        .any(|bind| Path::new(point).starts_with(Path::new("/").join(&bind.target)))
}

/// Every mount point of the plan as text, what it must be, and whether it must exist on every host.
fn expected(plan: &MountPlan) -> BTreeMap<String, (Kind, bool)> {
    let at = |path: &Path| format!("/{}", path.display());
    let mut all = BTreeMap::from([
        ("/".to_owned(), (Kind::Sealed, true)),
        ("/proc".to_owned(), (Kind::Proc, true)),
        ("/dev/pts".to_owned(), (Kind::Terminals, true)),
        (at(Path::new(MESSAGE_QUEUES)), (Kind::Writable, false)),
    ]);
    for bind in &plan.read_only {
        all.insert(at(&bind.target), (Kind::Sealed, !bind.source.starts_with("/etc")));
    }
    for name in &plan.devices {
        all.insert(format!("/dev/{name}"), (Kind::Device, true));
    }
    for name in &plan.frozen {
        all.insert(format!("/proc/{}", name.display()), (Kind::Sealed, true));
    }
    for name in &plan.masked {
        all.insert(format!("/proc/{}", name.trim_end_matches('/')), (Kind::Sealed, false));
    }
    let writable = plan.memory.iter().map(|mount| &mount.target);
    let writable = writable.chain(&plan.scratch.places);
    for target in writable.chain(plan.bound.iter().map(|bound| &bound.target)) {
        all.insert(at(target), (Kind::Writable, true));
    }
    for place in &plan.places {
        let kind = if place.writable { Kind::Writable } else { Kind::Sealed };
        all.insert(place.target.display().to_string(), (kind, true));
    }
    all
}

fn check(point: &str, options: &str, kind: Kind) -> Result<(), String> {
    let has = |option: &str| options.split(',').any(|found| found == option);
    let wants: &[(&str, bool)] = match kind {
        Kind::Sealed => &[("nosuid", true), ("ro", true), ("nodev", true)],
        Kind::Writable => &[("nosuid", true), ("nodev", true)],
        Kind::Device => &[("nosuid", true), ("noexec", true), ("ro", true)],
        Kind::Terminals => &[("nosuid", true), ("noexec", true)],
        Kind::Proc => &[("nosuid", true), ("nodev", true), ("noexec", true)],
    };
    match wants.iter().find(|(option, want)| has(option) != *want) {
        Some((option, _)) => Err(format!("{point} is mounted without {option} ({options})")),
        None => Ok(()),
    }
}

/// mountinfo writes blanks and backslashes of paths in octal (proc(5)).
fn unescape(field: &str) -> String {
    if !field.contains('\\') {
        return field.to_owned();
    }
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Storage;
    use crate::spec::{MemoryMount, ReadOnlyBind, ScratchPlan};

    fn plan() -> MountPlan {
        MountPlan {
            base: None,
            skeleton: Vec::new(),
            read_only: vec![ReadOnlyBind {
                source: "/usr".into(),
                target: "usr".into(),
                directory: true,
            }],
            devices: vec!["null".into()],
            masked: vec!["kcore".into()],
            frozen: vec!["sys".into()],
            memory: vec![MemoryMount {
                target: "tmp".into(),
                bytes_max: 1,
                inodes_max: 1,
                mode: 0,
                directories: Vec::new(),
            }],
            scratch: ScratchPlan {
                storage: Storage::Memory,
                bytes_max: 1,
                inodes_max: 1,
                places: vec!["workspace".into()],
            },
            bound: Vec::new(),
            places: Vec::new(),
        }
    }

    const GOOD: &str = "\
1 0 0:1 / / ro,nosuid,nodev - tmpfs none rw
2 1 0:1 / /usr ro,nosuid,nodev - ext4 none rw
3 1 0:1 / /proc rw,nosuid,nodev,noexec - proc none rw
4 1 0:1 / /dev/pts rw,nosuid,noexec - devpts none rw
5 1 0:1 / /dev/null ro,nosuid,noexec - devtmpfs none rw
6 1 0:1 / /proc/sys ro,nosuid,nodev,noexec - proc none rw
7 1 0:1 / /tmp rw,nosuid,nodev - tmpfs none rw
8 1 0:1 / /workspace rw,nosuid,nodev - tmpfs none rw
";

    #[test]
    fn a_tree_as_planned_is_accepted_and_any_difference_is_not() {
        compare(GOOD, &plan()).expect("as planned");
        #[rustfmt::skip]
        let cases = [
            ("/usr ro,", "/usr rw,", "/usr is mounted without ro"),
            ("/tmp rw,nosuid", "/tmp rw", "/tmp is mounted without nosuid"),
            ("/workspace rw,nosuid,nodev", "/workspace rw,nosuid", "/workspace is mounted without nodev"),
            ("/dev/null ro", "/dev/null rw", "/dev/null is mounted without ro"),
            ("/dev/null", "/dev/kmsg", "/dev/kmsg is mounted and not planned"),
            ("8 1 0:1 / /workspace", "8 1 0:1 / /tmp", "/tmp is mounted twice"),
        ];
        for (from, to, want) in cases {
            let got = compare(&GOOD.replace(from, to), &plan()).expect_err(want);
            assert!(got.starts_with(want), "{got}");
        }
        let without =
            GOOD.replace("6 1 0:1 / /proc/sys ro,nosuid,nodev,noexec - proc none rw\n", "");
        let got = compare(&without, &plan()).expect_err("frozen entry missing");
        assert_eq!(got, "/proc/sys is planned and not mounted");
    }
}
