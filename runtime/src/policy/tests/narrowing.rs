//! `extends` and `--limit` may only narrow: every key with an equal, a narrower and a wider value.

use super::super::{PolicyError, UnitError};
use super::{GROUPS, resolve, resolve_text};

/// What the parent of every case below sets. Line numbers matter to the tests.
const PARENT: &str = r#"schema = 1
[require]
level = "root"
landlock_abi = 3
cgroup = false
relax = [{ layer = "keyring", why = "none", off = false }, { layer = "canary", why = "x", off = true }]
[filesystem]
root = "/srv/root"
read_only = ["/data", "/out/sealed"]
writable = ["/out"]
workspace_size = "1GiB"
workspace_inodes = 1000
workspace_storage = "memory"
tmp_size = "1MiB"
tmp_inodes = 100
shm_size = "1MiB"
retain = "1h"
[process]
pids = 100
open_files = 100
wall_time = "1h"
cpu_time = "1h"
cpus = 2
memory = "1GiB"
swap = "1MiB"
core = 0
nice = 5
io_rate = "1MiB"
output = "1MiB"
hide_uptime = false
[syscalls]
groups = ["base", "files"]
[environment]
pass = ["TERM", "TZ"]
set = { LANG = "C" }
[network]
mode = "report"
expires = "2026-12-01T00:00:00Z"
allow = ["*.a.test:443", "**.b.test:8443", { rule = "10.0.0.0/8:5432", private = true }, { rule = "c.test:443", protocol = "auto" }]
presets = ["python"]
connections = 100
connection_rate = 100
bytes_out = "1MiB"
bytes_in = "1MiB"
idle_time = "1m"
connection_time = "1h"
wildcard_names = 10
deny_detail = "host-only"
upstream_proxy = { url = "http://proxy.test:3128", resolves = "proxy" }
"#;

/// `section.key`, the line of the parent's value, and an equal, a narrower and a wider value.
#[rustfmt::skip]
const KEYS: [(&str, usize, &str, &str, &str); 58] = [
    ("require.level",                3, "\"root\"",     "\"root\"",     "\"rootless\""),
    ("require.landlock_abi",         4, "3",            "4",            "2"),
    ("require.cgroup",               5, "false",        "true",         "false"),
    ("require.relax",                6, "[{ layer = \"keyring\", why = \"other\" }]", "[]", "[{ layer = \"keyring\", why = \"x\", off = true }]"),
    ("require.relax",                6, "[{ layer = \"canary\", why = \"x\", off = true }]", "[{ layer = \"canary\", why = \"x\" }]", "[{ layer = \"seccomp\", why = \"x\" }]"),
    ("filesystem.root",              8, "\"/srv/root\"", "\"/srv/root\"", "\"host\""),
    ("filesystem.root",              8, "\"/srv/root\"", "\"/srv/root\"", "\"/srv/root2\""),
    ("filesystem.read_only",         9, "[\"/data\", \"/out/sealed\"]", "[\"/data/x\", \"/out/sealed\"]", "[\"/database\", \"/out/sealed\"]"),
    ("filesystem.read_only",         9, "[\"/out/sealed\"]", "[\"/out\"]",  "[\"/data\"]"),
    ("filesystem.writable",         10, "[\"/out\"]",   "[\"/out/a\"]", "[\"/out\", \"/other\"]"),
    ("filesystem.writable",          9, "[\"/out\"]",   "[]",           "[\"/data/x\"]"),
    ("filesystem.writable",          9, "[\"/out\"]",   "[]",           "[\"/out/sealed/x\"]"),
    ("filesystem.workspace_size",   11, "\"1024MiB\"",  "\"1MiB\"",     "\"1025MiB\""),
    ("filesystem.workspace_inodes", 12, "1000",         "999",          "1001"),
    ("filesystem.workspace_storage",13, "\"memory\"",   "\"memory\"",   "\"disk\""),
    ("filesystem.tmp_size",         14, "\"1MiB\"",     "4096",         "1048577"),
    ("filesystem.tmp_inodes",       15, "100",          "16",           "101"),
    ("filesystem.shm_size",         16, "\"1024K\"",    "\"4KiB\"",     "\"2MiB\""),
    ("filesystem.retain",           17, "\"60m\"",      "\"none\"",     "\"3601s\""),
    ("process.pids",                19, "100",          "1",            "101"),
    ("process.open_files",          20, "100",          "99",           "101"),
    ("process.wall_time",           21, "\"60m\"",      "\"1ms\"",      "\"3601s\""),
    ("process.wall_time",           21, "\"60m\"",      "\"1ms\"",      "\"none\""),
    ("process.cpu_time",            22, "\"60m\"",      "\"1s\"",       "\"none\""),
    ("process.cpus",                23, "\"2\"",        "0.5",          "2.001"),
    ("process.memory",              24, "\"1GiB\"",     "\"4MiB\"",     "\"2GiB\""),
    ("process.swap",                25, "\"1MiB\"",     "0",            "\"2MiB\""),
    ("process.nice",                27, "5",            "19",           "4"),
    ("process.io_rate",             28, "\"1MiB\"",     "\"64KiB\"",    "\"none\""),
    ("process.output",              29, "\"1MiB\"",     "1",            "\"2MiB\""),
    ("process.hide_uptime",         30, "false",        "true",         "false"),
    ("syscalls.groups",             32, "[\"files\", \"base\"]", "[\"base\"]", "[\"base\", \"signals\"]"),
    ("environment.pass",            34, "[\"TZ\", \"TERM\"]", "[]",     "[\"TERM\", \"HOME\"]"),
    ("network",                     38, "{ mode = \"report\", expires = \"2026-12-01T00:00:00Z\" }", "{ mode = \"report\", expires = \"2026-11-30T23:59:59Z\" }", "{ mode = \"report\", expires = \"2026-12-01T00:00:01Z\" }"),
    ("network.mode",                37, "\"enforce\"",  "\"none\"",     ""),
    ("network.allow",               39, "[\"*.a.test:443\"]", "[\"x.a.test\"]", "[\"a.test\"]"),
    ("network.allow",               39, "[\"*.a.test:443\"]", "[]",          "[\"x.y.a.test\"]"),
    ("network.allow",               39, "[\"*.a.test:443\"]", "[]",          "[\"x.a.test:80\"]"),
    ("network.allow",               39, "[\"*.a.test:443\"]", "[]",          "[\"**.a.test:443\"]"),
    ("network.allow",               39, "[\"*.a.test:443\"]", "[]",          "[{ rule = \"x.a.test\", private = true }]"),
    ("network.allow",               39, "[\"*.a.test:443\"]", "[]",          "[{ rule = \"x.a.test\", protocol = \"auto\" }]"),
    ("network.allow",               39, "[\"**.b.test:8443\"]", "[\"*.b.test:8443\", \"x.y.b.test:8443\", \"**.z.b.test:8443\"]", "[\"b.test:8443\"]"),
    ("network.allow",               39, "[\"**.b.test:8443\"]", "[{ rule = \"x.b.test:8443\", protocol = \"tls\" }]", "[{ rule = \"x.b.test:8443\", protocol = \"tcp\" }]"),
    ("network.allow",               39, "[{ rule = \"10.0.0.0/8:5432\", private = true }]", "[{ rule = \"10.1.2.3:5432\", private = true }]", "[{ rule = \"10.0.0.0/7:5432\", private = true }]"),
    ("network.allow",               39, "[{ rule = \"c.test\", protocol = \"auto\" }]", "[\"c.test\", \"pypi.org\"]", "[{ rule = \"c.test\", protocol = \"tcp\" }]"),
    ("network.presets",             39, "[\"python\"]", "[]",           "[\"rust\"]"),
    ("network.connections",         41, "100",          "1",            "101"),
    ("network.connection_rate",     42, "100",          "1",            "101"),
    ("network.bytes_out",           43, "\"1MiB\"",     "\"64KiB\"",    "\"none\""),
    ("network.bytes_out",           43, "\"1MiB\"",     "\"64KiB\"",    "\"2MiB\""),
    ("network.bytes_in",            44, "\"1MiB\"",     "\"64KiB\"",    "\"none\""),
    ("network.idle_time",           45, "\"60s\"",      "\"1s\"",       "\"61s\""),
    ("network.connection_time",     46, "\"1h\"",       "\"1s\"",       "\"none\""),
    ("network.wildcard_names",      47, "10",           "0",            "11"),
    ("network.deny_detail",         48, "\"host-only\"","\"off\"",      "\"full\""),
    ("network.upstream_proxy",      49, "{ url = \"http://Proxy.test:3128/\", resolves = \"proxy\" }", "{ url = \"http://proxy.test:3128\" }", "\"\""),
    ("network.upstream_proxy",      49, "{ url = \"http://proxy.test:3128\", resolves = \"proxy\" }", "{ url = \"http://proxy.test:3128\", resolves = \"host\" }", "{ url = \"http://other.test:3128\" }"),
    ("environment.set",             35, "{ LANG = \"C\" }", "{ LANG = \"C.UTF-8\", NEW = \"1\" }", ""),
];

fn child(key: &str, value: &str, parent: &str) -> Result<super::super::Policy, PolicyError> {
    let text = format!("schema = 1\nextends = \"./parent.toml\"\n{key} = {value}");
    resolve(&[("parent.toml", parent), ("child.toml", &text)], "child.toml")
}

#[test]
fn every_key_may_stay_or_be_narrowed() {
    for (key, _, equal, narrower, _) in KEYS {
        for value in [equal, narrower] {
            let policy = child(key, value, PARENT)
                .unwrap_or_else(|error| panic!("`{key} = {value}`: {error}"));
            assert_eq!(policy.sources, ["child.toml", "parent.toml", "policies/base.toml"]);
        }
    }
}

#[test]
fn widening_any_key_is_refused_with_both_places() {
    for (key, line, _, narrower, wider) in KEYS {
        // Where `false` is the parent's value nothing is wider: swap the roles.
        let parent = PARENT.replace("cgroup = false", "cgroup = true");
        let parent = parent.replace("hide_uptime = false", "hide_uptime = true");
        if wider.is_empty() {
            continue;
        }
        match child(key, wider, &parent) {
            Err(PolicyError::Widened { at, key: found, parent, .. }) => {
                assert_eq!((at.file.as_str(), at.line), ("child.toml", 3), "`{key} = {wider}`");
                assert!(at.column > key.len() + 3, "`{key}`: column of the value");
                let place = (parent.file.as_str(), parent.line);
                assert_eq!(place, ("parent.toml", line), "`{key} = {wider}`");
                assert!(found.starts_with(key), "`{key}`: {found}");
            }
            other => panic!("`{key} = {wider}` (narrower is {narrower}): {other:?}"),
        }
    }
}

#[test]
fn the_error_of_a_wider_value_reads_as_one_sentence() {
    let error = child("process.memory", "\"2GiB\"", PARENT).expect_err("wider");
    assert_eq!(
        error.to_string(),
        "child.toml:3:18: cannot set `process.memory` to \"2GiB\": wider than \"1GiB\", set at \
         parent.toml:24:10"
    );
    assert!(error.hint().expect("a hint").contains("may only narrow"));
    let error = child("environment.pass", "[\"HOME\"]", PARENT).expect_err("wider");
    assert_eq!(
        error.to_string(),
        "child.toml:3:21: cannot set `environment.pass[0]` to \"HOME\": wider than [\"TERM\", \
         \"TZ\"], set at parent.toml:34:8"
    );
}

#[test]
fn an_empty_list_of_the_parent_has_a_place_too() {
    let error = child("filesystem.writable", "[\"/a\"]", "schema = 1").expect_err("wider");
    let PolicyError::Widened { parent, .. } = &error else { panic!("{error}") };
    assert_eq!(parent.file, "policies/base.toml");
    assert!(parent.line > 1, "{error}");
}

#[test]
fn a_hole_in_a_writable_path_cannot_be_closed() {
    let error = child("filesystem.read_only", "[]", PARENT).expect_err("writable beneath");
    assert!(error.to_string().contains("a list without \"/out/sealed\""), "{error}");
    assert!(error.to_string().contains("parent.toml:9:23"), "{error}");
    let text =
        "schema = 1\nextends = \"./parent.toml\"\n[filesystem]\nread_only = []\nwritable = []";
    let policy = resolve(&[("parent.toml", PARENT), ("c.toml", text)], "c.toml").expect("narrower");
    assert!(policy.filesystem.read_only.is_empty() && policy.filesystem.writable.is_empty());
}

#[test]
fn a_writable_path_that_becomes_read_only_is_writable_no_more() {
    let policy = child("filesystem.read_only", "[\"/out\"]", PARENT).expect("narrower");
    assert_eq!(policy.filesystem.read_only.len(), 1);
    assert!(policy.filesystem.writable.is_empty(), "{:?}", policy.filesystem.writable);
}

#[test]
fn a_variable_that_a_child_sets_is_not_taken_from_the_caller() {
    let policy = child("environment.set.TERM", "\"dumb\"", PARENT).expect("narrower");
    assert_eq!(policy.environment.set["TERM"].value, "dumb");
    assert_eq!(policy.environment.set["LANG"].value, "C", "the parent's are kept");
    let passed: Vec<&str> = policy.environment.pass.iter().map(|p| p.value.as_str()).collect();
    assert_eq!(passed, ["TZ"]);
}

#[test]
fn values_keep_the_place_where_they_were_written() {
    let policy = child("process.pids", "7", PARENT).expect("narrower");
    let place = |origin: &super::super::Origin| origin.to_string();
    assert_eq!(place(&policy.process.pids.origin), "child.toml:3:16");
    assert_eq!(place(&policy.process.nice.origin), "parent.toml:27:8");
    assert_eq!(place(&policy.environment.set["LANG"].origin), "parent.toml:35:16");
    assert_eq!(place(&policy.filesystem.read_only[1].origin), "parent.toml:9:23");
    assert_eq!(place(&policy.network.allow[2].origin), "parent.toml:39:44");
    assert_eq!(place(&policy.network.lists.expires), "parent.toml:38:11");
    assert_eq!(policy.name, "child");
}

#[test]
fn destinations_may_be_named_until_a_file_beneath_has_named_some() {
    let names = "schema = 1\nextends = \"./parent.toml\"\nnetwork.allow = [\"x.test\"]";
    #[rustfmt::skip]
    let cases = [
        ("schema = 1",                                             true),
        ("schema = 1\nextends = \"default\"",                       true),
        ("schema = 1\nextends = \"build\"",                         true),
        ("schema = 1\nextends = \"default\"\nnetwork.bytes_out = \"1MiB\"", true),
        ("schema = 1\nextends = \"base\"",                          false),
        ("schema = 1\nextends = \"offline\"",                       false),
        ("schema = 1\nnetwork.mode = \"enforce\"",                  false),
        ("schema = 1\nnetwork.allow = []",                          false),
        ("schema = 1\nnetwork.presets = []",                        false),
        ("schema = 1\nnetwork.allow = [\"y.test\"]",                false),
        ("schema = 1\nnetwork.allow = [\"*.test.test\", \"x.test\"]", true),
        ("schema = 1\nextends = \"./grand.toml\"",                  false),
    ];
    let grand = ("grand.toml", "schema = 1\nextends = \"default\"\nnetwork.presets = []");
    for (parent, open) in cases {
        let files = [("parent.toml", parent), ("child.toml", names), grand];
        match (resolve(&files, "child.toml"), open) {
            (Ok(policy), true) => assert_eq!(policy.network.all_rules().len(), 1, "`{parent}`"),
            (Err(PolicyError::Widened { key, .. }), false) => assert_eq!(key, "network.allow[0]"),
            (other, _) => panic!("`{parent}`: {other:?}"),
        }
    }
    // A budget falls even where destinations may be named.
    let text = "schema = 1\nextends = \"default\"\nnetwork.connections = 4097";
    assert!(matches!(resolve_text(text), Err(PolicyError::Widened { .. })));
}

#[test]
fn a_mode_of_none_takes_the_rules_of_the_parent_away() {
    let policy = child("network.mode", "\"none\"", PARENT).expect("narrower");
    assert!(policy.network.all_rules().is_empty());
    assert_eq!(policy.network.lists.allow.file, "child.toml");
    assert!(!child("network.mode", "\"enforce\"", PARENT).expect("equal").network.allow.is_empty());
}

#[test]
fn the_error_of_a_rule_that_no_rule_covers_names_both() {
    #[rustfmt::skip]
    let cases = [
        ("[\"x.test:22\"]", "child.toml:3:18: cannot set `network.allow[0]` to \"x.test:22\": wider than \
          [\"*.a.test:443\", \"**.b.test:8443\", { rule = \"10.0.0.0/8:5432\", private = true }, { rule = \
          \"c.test:443\", protocol = \"auto\" }, \"pypi.org:443\", \"files.pythonhosted.org:443\"], set at parent.toml:39:9"),
        ("[{ rule = \"x.a.test\", private = true }]", "child.toml:3:18: cannot set `network.allow[0]` to { rule = \
          \"x.a.test:443\", private = true }: wider than \"*.a.test:443\", set at parent.toml:39:10"),
        ("[{ rule = \"x.b.test:8443\", protocol = \"tcp\" }]", "child.toml:3:18: cannot set `network.allow[0]` to { rule = \
          \"x.b.test:8443\", protocol = \"tcp\" } as tcp: wider than \"**.b.test:8443\" as auto, set at parent.toml:39:26"),
    ];
    for (rules, text) in cases {
        let error = child("network.allow", rules, PARENT).expect_err(rules);
        assert_eq!(error.to_string(), text);
        assert!(error.hint().expect("a hint").contains("named"), "{error}");
    }
}

#[test]
fn columns_count_characters_and_not_bytes() {
    let policy = resolve_text("schema = 1\nenvironment.set = { A = \"äöü\", B = \"1\" }");
    let policy = policy.expect("valid");
    assert_eq!(policy.environment.set["B"].origin.column, 36);
}

#[test]
fn groups_stand_in_the_order_of_the_catalogue() {
    let mut shuffled = GROUPS;
    shuffled.reverse();
    let policy = resolve_text(&format!("schema = 1\nsyscalls.groups = {shuffled:?}"));
    let groups = policy.expect("valid").syscalls.groups;
    assert!(groups.iter().map(|group| group.value.as_str()).eq(GROUPS));
}

#[test]
fn a_limit_lowers_its_key_and_nothing_else() {
    #[rustfmt::skip]
    let cases = [
        ("memory", "512MiB", "process.memory = \"512MiB\""),
        ("swap", "0", "process.swap = 0"),
        ("pids", "10", "process.pids = 10"),
        ("cpu", "0.5", "process.cpus = 0.5"),
        ("cpu-time", "5s", "process.cpu_time = \"5s\""),
        ("wall", "30s", "process.wall_time = \"30s\""),
        ("disk", "1M", "filesystem.workspace_size = \"1MiB\""),
        ("inodes", "500", "filesystem.workspace_inodes = 500"),
        ("tmp", "64k", "filesystem.tmp_size = \"64KiB\""),
        ("output", "1000", "process.output = 1000"),
        ("open-files", "50", "process.open_files = 50"),
    ];
    assert!(cases.iter().map(|case| case.0).eq_by_sorted(super::super::LIMIT_KEYS));
    for (key, value, same) in cases {
        let mut policy = resolve(&[], "default").expect("shipped");
        policy.narrow_limit(key, value).unwrap_or_else(|error| panic!("{key}={value}: {error}"));
        let text = format!("schema = 1\nextends = \"default\"\n{same}");
        let wanted = resolve_text(&text).expect("valid");
        assert_eq!(policy.canonical_bytes(), wanted.canonical_bytes(), "{key}={value}");
        assert!(policy.to_toml(super::super::Origins::Show).contains("# --limit:1:"), "{key}");
        policy.narrow_limit(key, value).expect("again is harmless");
    }
}

#[test]
fn a_limit_cannot_raise_what_the_policy_allows() {
    let mut policy = resolve(&[], "default").expect("shipped");
    let before = policy.clone();
    for (key, value) in [("memory", "3GiB"), ("pids", "1025"), ("cpu", "2.5"), ("disk", "2GiB")] {
        let error = policy.narrow_limit(key, value).expect_err(key);
        assert!(matches!(&error, PolicyError::Widened { .. }), "{key}: {error}");
        assert!(error.to_string().contains("set at policies/default.toml:"), "{error}");
        assert!(error.hint().expect("a hint").contains("--limit"), "{key}");
    }
    for (key, value) in [("memory", "0"), ("pids", "0"), ("wall", "0s"), ("cpu", "-1")] {
        let error = policy.narrow_limit(key, value).expect_err(key);
        assert!(matches!(&error, PolicyError::LimitValue { .. }), "{key}={value}: {error}");
    }
    let error = policy.narrow_limit("pids", "many").expect_err("no number");
    let PolicyError::LimitValue { source: UnitError::Whole { .. }, .. } = error else {
        panic!("{error}")
    };
    let error = policy.narrow_limit("mem", "1G").expect_err("no such key");
    assert!(error.to_string().contains("cannot limit `mem`: expected one of memory, swap"));
    assert_eq!(policy, before, "a refused limit changes nothing");
}

trait EqBySorted: Iterator + Sized {
    /// Whether both hold the same items in whatever order.
    fn eq_by_sorted<const N: usize>(self, other: [Self::Item; N]) -> bool
    where
        Self::Item: Ord,
    {
        let (mut left, mut right): (Vec<_>, Vec<_>) = (self.collect(), other.into());
        left.sort();
        right.sort();
        left == right
    }
}

impl<I: Iterator> EqBySorted for I {}
