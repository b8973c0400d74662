//! The property behind `extends`: whatever a child writes, what it resolves to is never wider than
//! its parent. Compared here a second time, without the code under test. For destinations that means:
//! as long as no file has named any, nothing at all can be reached; from then on nothing more.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::super::network::{AddressClass, Host, NetworkMode, Verdict};
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

/// Rules that hold each other in every way that matters.
const RULES: [&str; 12] = [
    "\"a.x.test:443\"",
    "\"*.x.test:443\"",
    "\"**.x.test:443\"",
    "\"*.b.x.test:443\"",
    "\"x.test:443\"",
    "\"a.x.test:80\"",
    "{ rule = \"c.b.x.test:443\", private = true }",
    "{ rule = \"**.b.x.test:443\", private = true }",
    "{ rule = \"*.x.test:8443\", protocol = \"tcp\" }",
    "{ rule = \"a.x.test:8443\", protocol = \"tls\" }",
    "{ rule = \"10.0.0.0/8:443\", private = true }",
    "{ rule = \"10.1.0.0/16:443\", private = true }",
];
/// Destinations that tell the rules apart.
const HOSTS: [&str; 10] = [
    "a.x.test",
    "b.x.test",
    "c.b.x.test",
    "d.c.b.x.test",
    "x.test",
    "y.test",
    "10.1.2.3",
    "10.2.0.1",
    "8.8.8.8",
    "pypi.org",
];

/// The destinations of `[network]`; a mode of `none` comes without rules.
fn network() -> BoxedStrategy<String> {
    let rules = proptest::option::weighted(0.6, some(&RULES));
    let presets = proptest::option::weighted(0.3, some(&["python", "rust"]));
    let mode = proptest::option::weighted(0.4, 0..4u32);
    (rules, presets, mode)
        .prop_map(|(rules, presets, mode)| match mode {
            Some(0) => "network.mode = \"none\"\n".to_owned(),
            mode => {
                let rules = rules.map(|rules| format!("network.allow = [{}]\n", rules.join(", ")));
                let presets = presets.map(|names| format!("network.presets = {names:?}\n"));
                let mode = mode.map(|mode| match mode {
                    1 => "network.mode = \"enforce\"\n".to_owned(),
                    day => format!(
                        "network.mode = \"report\"\nnetwork.expires = \"2026-12-0{day}T00:00:00Z\"\n"
                    ),
                });
                [rules, presets, mode].into_iter().flatten().collect()
            }
        })
        .boxed()
}

/// What can be reached: each line is a destination with what it may carry and lead to.
fn reached(policy: &Policy) -> BTreeSet<String> {
    let rules = policy.network.rules();
    let mut all = BTreeSet::new();
    if policy.network.mode.value == NetworkMode::None {
        return all;
    }
    // Noon of days before, between and after the ends of reports.
    for now in (0..4).map(|day| 1_796_126_400 + day * 86_400) {
        for (host, port) in HOSTS.iter().flat_map(|host| [(host, 80), (host, 443), (host, 8443)]) {
            let host: Host = host.parse().expect("a host");
            let Verdict::Allow(allowed) = rules.decide(&host, port, now) else { continue };
            let content = allowed.content;
            let flags = [
                ("tls", content.tls),
                ("http", content.http),
                ("other", content.other),
                ("unchecked", content.unchecked),
            ];
            let flags = flags.iter().filter(|(_, on)| *on).map(|(name, _)| (*name).to_owned());
            let leads = ["8.8.8.8", "10.1.2.3", "127.0.0.1", "169.254.169.254", "224.0.0.1"];
            let leads = leads.into_iter().filter(|address| {
                let Ok(Host::Address(address)) = address.parse() else { panic!("{address}") };
                let class = AddressClass::of(address);
                rules.may_dial(&host, port, &allowed, address, class).is_ok()
            });
            let what = flags.chain(leads.map(str::to_owned)).chain(["at all".to_owned()]);
            all.extend(what.map(|what| format!("{host}:{port} {what} {now}")));
        }
    }
    all
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
        network(),
        number("network.connections", 1, 5),
        number("network.connection_rate", 1, 5),
        open_limit("network.bytes_out", "MiB"),
        open_limit("network.bytes_in", "MiB"),
        choice("network.idle_time", &["\"1s\"", "\"2s\"", "\"3s\""]),
        open_limit("network.connection_time", "s"),
        number("network.wildcard_names", 0, 4),
        choice("network.deny_detail", &["\"off\"", "\"host-only\"", "\"full\""]),
        choice("network.upstream_proxy", &["\"\"", "{ url = \"http://p.test:1\" }"]),
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
    let (cn, pn) = (&child.network, &parent.network);
    let same = cn.mode.value == pn.mode.value && cn.rules().list == pn.rules().list;
    let (more, most) = match same && pn.named {
        true => (BTreeSet::new(), BTreeSet::new()),
        false => (reached(child), reached(parent)),
    };
    assert!(pn.named || most.is_empty(), "something is reached that nobody named: {most:?}");
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
        ("destinations", pn.named && !more.is_subset(&most)),
        ("named", pn.named && !cn.named),
        ("upstream_proxy", pn.named && cn.upstream_proxy.value != pn.upstream_proxy.value),
        ("connections", cn.connections.value > pn.connections.value),
        ("connection_rate", cn.connection_rate.value > pn.connection_rate.value),
        ("bytes_out", none_is_more(bytes(cn.bytes_out.value), bytes(pn.bytes_out.value))),
        ("bytes_in", none_is_more(bytes(cn.bytes_in.value), bytes(pn.bytes_in.value))),
        ("idle_time", cn.idle_time.value > pn.idle_time.value),
        ("connection_time", none_is_more(millis(cn.connection_time.value), millis(pn.connection_time.value))),
        ("wildcard_names", cn.wildcard_names.value > pn.wildcard_names.value),
        ("deny_detail", cn.deny_detail.value as u8 > pn.deny_detail.value as u8),
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
            // A file between them that is silent changes nothing.
            let between = "schema = 1\nextends = \"./parent.toml\"";
            let child = format!("schema = 1\nextends = \"./between.toml\"\n{text}");
            let files = [("parent.toml", &*parent), ("between.toml", between), ("child.toml", &child)];
            resolve(&files, "child.toml")
        };
        let base = resolve(&[("parent.toml", &parent)], "parent.toml").expect("any root is valid");
        let alone = |line: &&str| match files(line) {
            Ok(policy) => {
                assert_eq!(wider(&policy, &base), None, "`{line}`");
                !line.contains("read_only") && !line.contains("writable")
            }
            Err(PolicyError::Widened { .. } | PolicyError::Duplicate { .. }) => false,
            // Report mode and its end are two lines.
            Err(PolicyError::Refused { key, .. }) if key.starts_with("network.") => false,
            Err(other) => panic!("`{line}`: {other}"),
        };
        let accepted: Vec<&str> = child.lines().filter(alone).collect();
        let together = files(&accepted.join("\n")).expect("accepted one by one");
        prop_assert_eq!(wider(&together, &base), None);
        if let Ok(policy) = files(&child) {
            prop_assert_eq!(wider(&policy, &base), None);
        }
        let network_lines: Vec<&str> =
            child.lines().filter(|line| line.starts_with("network.")).collect();
        if let Ok(policy) = files(&network_lines.join("\n")) {
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
