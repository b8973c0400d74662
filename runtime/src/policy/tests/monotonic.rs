//! The property behind `extends`: whatever a child writes, what it resolves to is never wider than
//! its parent. Compared here a second time, without the code under test.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::super::{Policy, PolicyError, Setting};
use super::{GROUPS, resolve};

/// Paths that lie beneath each other in every way that matters.
const PATHS: [&str; 6] = ["/a", "/a/b", "/a/b/c", "/ab", "/d", "/d/e"];
const LAYERS: [&str; 3] = ["seccomp", "keyring", "canary"];
const NAMES: [&str; 3] = ["TERM", "TZ", "LANG"];

/// Some of `all`, each once.
fn some(all: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(all.to_vec(), 0..=all.len())
}

/// One line of a policy file, or none.
fn line(key: &'static str, value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    proptest::option::weighted(0.6, value)
        .prop_map(move |value| value.map(|value| format!("{key} = {value}\n")).unwrap_or_default())
}

fn number(key: &'static str, low: u64, high: u64) -> BoxedStrategy<String> {
    line(key, (low..=high).prop_map(|number| number.to_string())).boxed()
}

fn open_limit(key: &'static str, unit: &'static str) -> BoxedStrategy<String> {
    let some = (1..5u32).prop_map(move |number| format!("\"{number}{unit}\""));
    line(key, prop_oneof![Just("\"none\"".to_owned()), some]).boxed()
}

fn choice(key: &'static str, values: &'static [&'static str]) -> BoxedStrategy<String> {
    line(key, proptest::sample::select(values).prop_map(str::to_owned)).boxed()
}

fn list(key: &'static str, all: &'static [&'static str]) -> BoxedStrategy<String> {
    line(key, some(all).prop_map(|names| format!("{names:?}"))).boxed()
}

/// The two lists of paths, without a path in both.
fn paths() -> BoxedStrategy<String> {
    let each = proptest::collection::vec(0..3u8, PATHS.len());
    (each, any::<[bool; 2]>())
        .prop_map(|(kinds, [read, write])| {
            let of = |kind| -> Vec<&str> {
                let chosen = PATHS.iter().zip(&kinds).filter(|(_, k)| **k == kind);
                chosen.map(|(path, _)| *path).collect()
            };
            let list = |key, on, kind| match on {
                true => format!("filesystem.{key} = {:?}\n", of(kind)),
                false => String::new(),
            };
            list("read_only", read, 1) + &list("writable", write, 2)
        })
        .boxed()
}

fn relax() -> BoxedStrategy<String> {
    let entry = (some(&LAYERS), any::<[bool; 3]>()).prop_map(|(layers, off)| {
        let entries = layers.iter().zip(off);
        let entries = entries
            .map(|(layer, off)| format!("{{ layer = {layer:?}, why = \"x\", off = {off} }}"));
        format!("[{}]", entries.collect::<Vec<_>>().join(", "))
    });
    line("require.relax", entry).boxed()
}

/// The lines of a policy file, any of which may be missing.
fn lines() -> impl Strategy<Value = String> {
    let groups = some(&GROUPS[1..4])
        .prop_map(|names| format!("{:?}", ["base"].iter().chain(&names).collect::<Vec<_>>()));
    let all: Vec<BoxedStrategy<String>> = vec![
        choice("require.level", &["\"rootless\"", "\"root\""]),
        number("require.landlock_abi", 1, 7),
        choice("require.cgroup", &["true", "false"]),
        relax(),
        choice("filesystem.root", &["\"host\"", "\"/srv/a\""]),
        paths(),
        number("filesystem.workspace_size", 65_536, 65_540),
        number("filesystem.workspace_inodes", 16, 20),
        choice("filesystem.workspace_storage", &["\"memory\"", "\"disk\""]),
        number("filesystem.tmp_size", 4096, 4100),
        number("filesystem.tmp_inodes", 16, 20),
        number("filesystem.shm_size", 4096, 4100),
        open_limit("filesystem.retain", "s"),
        number("process.pids", 1, 5),
        number("process.open_files", 16, 20),
        open_limit("process.wall_time", "s"),
        open_limit("process.cpu_time", "s"),
        number("process.cpus", 1, 5),
        number("process.memory", 4_194_304, 4_194_308),
        number("process.swap", 0, 4),
        number("process.nice", 0, 19),
        open_limit("process.io_rate", "MiB"),
        open_limit("process.output", "KiB"),
        choice("process.hide_uptime", &["true", "false"]),
        line("syscalls.groups", groups).boxed(),
        list("environment.pass", &NAMES),
    ];
    all.prop_map(|lines| lines.concat())
}

/// What a path gives: 0 not shown, 1 read-only, 2 writable. The longest entry decides.
fn access(policy: &Policy, path: &Path) -> u8 {
    let entries = |list: &[Setting<PathBuf>], kind: u8| -> Vec<(usize, u8)> {
        let above = list.iter().filter(|entry| path.starts_with(&entry.value));
        above.map(|entry| (entry.value.as_os_str().len(), kind)).collect()
    };
    let mut all = entries(&policy.filesystem.read_only, 1);
    all.extend(entries(&policy.filesystem.writable, 2));
    all.into_iter().max().map_or(0, |(_, kind)| kind)
}

/// The first key in which `child` is wider than `parent`.
fn wider(child: &Policy, parent: &Policy) -> Option<&'static str> {
    let (c, p) = (&child.process, &parent.process);
    let (cf, pf) = (&child.filesystem, &parent.filesystem);
    let (cr, pr) = (&child.require, &parent.require);
    let none_is_more =
        |c: Option<u128>, p: Option<u128>| c.unwrap_or(u128::MAX) > p.unwrap_or(u128::MAX);
    let relaxed = |policy: &Policy, layer| {
        let entry = policy.require.relax.iter().find(|entry| entry.layer == layer);
        entry.map_or(0, |entry| if entry.off { 2 } else { 1 })
    };
    let probes = PATHS.iter().map(|path| Path::new(path).join("probe"));
    let names = |list: &[Setting<String>]| -> Vec<String> {
        list.iter().map(|setting| setting.value.clone()).collect()
    };
    let extra = |c: &[Setting<String>], p: &[Setting<String>]| {
        names(c).iter().any(|name| !names(p).contains(name))
    };
    let millis = |time: Option<std::time::Duration>| time.map(|time| time.as_millis());
    let bytes = |size: Option<super::super::ByteSize>| size.map(|size| u128::from(size.0));
    #[rustfmt::skip]
    let checks = [
        ("level", cr.level.value < pr.level.value),
        ("landlock_abi", cr.landlock_abi.value < pr.landlock_abi.value),
        ("cgroup", !cr.cgroup.value && pr.cgroup.value),
        ("relax", cr.relax.iter().any(|e| relaxed(child, e.layer) > relaxed(parent, e.layer))),
        ("root", cf.root.value != pf.root.value),
        ("paths", probes.into_iter().any(|path| access(child, &path) > access(parent, &path))),
        ("workspace_size", cf.workspace_size.value > pf.workspace_size.value),
        ("workspace_inodes", cf.workspace_inodes.value > pf.workspace_inodes.value),
        ("workspace_storage", cf.workspace_storage.value as u8 > pf.workspace_storage.value as u8),
        ("tmp_size", cf.tmp_size.value > pf.tmp_size.value),
        ("tmp_inodes", cf.tmp_inodes.value > pf.tmp_inodes.value),
        ("shm_size", cf.shm_size.value > pf.shm_size.value),
        ("retain", cf.retain.value > pf.retain.value),
        ("pids", c.pids.value > p.pids.value),
        ("open_files", c.open_files.value > p.open_files.value),
        ("wall_time", none_is_more(millis(c.wall_time.value), millis(p.wall_time.value))),
        ("cpu_time", none_is_more(millis(c.cpu_time.value), millis(p.cpu_time.value))),
        ("cpus", c.cpu_milli.value > p.cpu_milli.value),
        ("memory", c.memory.value > p.memory.value),
        ("swap", c.swap.value > p.swap.value),
        ("core", c.core.value > p.core.value),
        ("nice", c.nice.value < p.nice.value),
        ("io_rate", none_is_more(bytes(c.io_rate.value), bytes(p.io_rate.value))),
        ("output", none_is_more(bytes(c.output.value), bytes(p.output.value))),
        ("hide_uptime", !c.hide_uptime.value && p.hide_uptime.value),
        ("groups", extra(&child.syscalls.groups, &parent.syscalls.groups)),
        ("pass", extra(&child.environment.pass, &parent.environment.pass)),
    ];
    checks.into_iter().find(|(_, wider)| *wider).map(|(key, _)| key)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_resolved_child_is_never_wider_than_its_parent(parent in lines(), child in lines()) {
        // Most random children are refused, so each line is also tried alone: those that the
        // parent accepts are put together, and must then be accepted together too, the two lists
        // of paths apart, which are one value.
        let parent = format!("schema = 1\n{parent}");
        let files = |text: &str| {
            let child = format!("schema = 1\nextends = \"./parent.toml\"\n{text}");
            resolve(&[("parent.toml", &parent), ("child.toml", &child)], "child.toml")
        };
        let base = resolve(&[("parent.toml", &parent)], "parent.toml").expect("any root is valid");
        let alone = |line: &&str| match files(line) {
            Ok(policy) => {
                assert_eq!(wider(&policy, &base), None, "`{line}`");
                !line.contains("read_only") && !line.contains("writable")
            }
            Err(PolicyError::Widened { .. } | PolicyError::Duplicate { .. }) => false,
            Err(other) => panic!("`{line}`: {other}"),
        };
        let accepted: Vec<&str> = child.lines().filter(alone).collect();
        let together = files(&accepted.join("\n")).expect("accepted one by one");
        prop_assert_eq!(wider(&together, &base), None);
        if let Ok(policy) = files(&child) {
            prop_assert_eq!(wider(&policy, &base), None);
        }
        let path_lines: Vec<&str> =
            child.lines().filter(|line| line.contains("filesystem.") && line.contains('[')).collect();
        if let Ok(policy) = files(&path_lines.join("\n")) {
            prop_assert_eq!(wider(&policy, &base), None);
        }
    }

    #[test]
    fn the_effective_text_of_any_policy_means_the_same(text in lines()) {
        let policy = super::resolve_text(&format!("schema = 1\n{text}")).expect("any root is valid");
        let again = super::resolve_text(&policy.to_toml(super::super::Origins::Show));
        let again = again.expect("what we write is valid");
        prop_assert_eq!(again.canonical_bytes(), policy.canonical_bytes());
    }
}
