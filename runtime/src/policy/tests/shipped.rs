//! The shipped policies: their promised values, their effective form and their schema.

use std::time::Duration;

use serde_json::Value;

use crate::host::Level;

use super::super::units::{GIB, MIB};
use super::super::{ByteSize, Origins, SHIPPED, Storage, json_schema};
use super::conforms::conforms;
use super::{resolve, resolve_text};

#[test]
fn every_shipped_policy_resolves_under_its_own_name() {
    for shipped in SHIPPED {
        let policy = resolve(&[], shipped.name).expect(shipped.name);
        assert_eq!(policy.name, shipped.name);
        assert_eq!(policy.sources.last().map(String::as_str), Some("policies/base.toml"));
        let own = format!("policies/{}.toml", shipped.name);
        assert_eq!(policy.sources[0], own);
        assert_eq!(policy.process.pids.origin.file, own, "every policy states its pids");
    }
}

#[test]
fn default_keeps_its_promises() {
    let policy = resolve(&[], "default").expect("shipped");
    let (process, files) = (&policy.process, &policy.filesystem);
    assert_eq!(process.memory.value, ByteSize(2 * GIB));
    assert_eq!((process.swap.value, process.core.value), (ByteSize(0), ByteSize(0)));
    assert_eq!((process.pids.value, process.open_files.value), (1024, 8192));
    assert_eq!((process.cpu_milli.value, process.wall_time.value), (2000, None));
    assert_eq!(files.workspace_size.value, ByteSize(GIB));
    assert_eq!(files.workspace_inodes.value, 100_000);
    assert_eq!(files.workspace_storage.value, Storage::Memory);
    assert_eq!(files.tmp_size.value, ByteSize(256 * MIB));
    assert_eq!(files.shm_size.value, ByteSize(64 * MIB));
    assert_eq!(policy.require.level.value, Level::Rootless);
    assert_eq!((policy.require.landlock_abi.value, policy.require.cgroup.value), (2, false));
    assert_eq!(policy.environment.set["LANG"].value, "C.UTF-8");
}

#[test]
fn build_keeps_its_promises() {
    let policy = resolve(&[], "build").expect("shipped");
    assert_eq!(policy.process.memory.value, ByteSize(8 * GIB));
    assert_eq!(policy.process.pids.value, 4096);
    assert_eq!(policy.filesystem.workspace_size.value, ByteSize(10 * GIB));
    assert_eq!(policy.filesystem.workspace_storage.value, Storage::Disk);
    assert_eq!(policy.require.level.value, Level::Root);
}

#[test]
fn base_is_narrower_than_every_other_shipped_policy() {
    let base = resolve(&[], "base").expect("shipped").to_toml(Origins::Hide);
    for shipped in SHIPPED {
        let text =
            base.replacen("schema = 1", &format!("schema = 1\nextends = \"{}\"", shipped.name), 1);
        let child = resolve_text(&text).unwrap_or_else(|error| panic!("{}: {error}", shipped.name));
        assert_eq!(child.process.wall_time.value, Some(Duration::from_secs(60)));
    }
}

#[test]
fn a_file_that_writes_nothing_is_base() {
    let empty = resolve_text("schema = 1").expect("valid");
    let base = resolve(&[], "base").expect("shipped");
    assert_eq!(empty.digest(), base.digest());
    assert!(empty.require.relax.is_empty() && empty.environment.pass.is_empty());
    assert_eq!(empty.syscalls.groups[0].value, "base");
}

#[test]
fn effective_text_means_the_same_policy() {
    for shipped in SHIPPED {
        let policy = resolve(&[], shipped.name).expect(shipped.name);
        for origins in [Origins::Hide, Origins::Show] {
            let text = policy.to_toml(origins);
            let again = resolve_text(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!(again.canonical_bytes(), policy.canonical_bytes(), "{}", shipped.name);
            assert_eq!(again.name, policy.name);
            assert_eq!(again.to_toml(Origins::Hide), policy.to_toml(Origins::Hide));
        }
    }
}

#[test]
fn effective_text_keeps_values_that_need_quoting() {
    let text = "schema = 1\nfilesystem.read_only = ['/a \"b\" \\c']\n\
                environment.set = { A = \"x\\n\\t\\\"é\\\\\", B = \"\", C = \"\\u007f\" }\n\
                require.relax = [{ layer = \"canary\", why = \"a \\\"b\\\"\", off = true }]\n\
                process.wall_time = \"none\"\nprocess.cpus = \"1.25\"\nprocess.output = 1001";
    let policy = resolve_text(text).expect("valid");
    let again = resolve_text(&policy.to_toml(Origins::Show)).expect("what we write is valid");
    assert_eq!(again.canonical_bytes(), policy.canonical_bytes());
    assert_eq!(again.environment.set["A"].value, "x\n\t\"é\\");
    assert_eq!(again.environment.set["C"].value, "\u{7f}");
    assert_eq!(again.process.cpu_milli.value, 1250);
}

#[test]
fn every_line_of_the_effective_text_can_tell_its_origin() {
    let text = resolve(&[], "offline").expect("shipped").to_toml(Origins::Show);
    for line in text.lines().skip(2) {
        if !line.is_empty() && !line.starts_with('[') && line != "]" {
            assert!(line.contains(" # policies/"), "no origin: {line}");
        }
    }
    assert!(text.contains("\nmemory = \"1GiB\" # policies/offline.toml:"), "{text}");
    assert!(text.contains("\nroot = \"host\" # policies/default.toml:"), "{text}");
    assert!(text.contains("\npass = [] # policies/offline.toml:"), "{text}");
}

#[test]
fn a_digest_depends_on_values_only() {
    let default = resolve(&[], "default").expect("shipped");
    let same = resolve_text("schema = 1\nname = \"mine\"\nextends = \"default\"").expect("valid");
    let other = resolve_text("schema = 1\nextends = \"default\"\nprocess.pids = 1023");
    assert_eq!(same.digest(), default.digest());
    assert_ne!(other.expect("valid").digest(), default.digest());
    let hex = default.digest_hex();
    assert!(hex.len() == 71 && hex.starts_with("sha256:"), "{hex}");
}

#[test]
fn json_has_digest_values_and_origins() {
    let policy = resolve(&[], "offline").expect("shipped");
    let json = policy.to_json(Origins::Show);
    assert_eq!(json["schema_version"], 1);
    assert_eq!(json["digest"], policy.digest_hex());
    assert_eq!(json["policy"]["process"]["pids"], 128);
    assert_eq!(json["policy"]["environment"]["set"]["LANG"], "C.UTF-8");
    let place = json["origins"]["process.pids"].as_str().expect("a place");
    assert!(place.starts_with("policies/offline.toml:"), "{place}");
    assert!(json["origins"]["syscalls.groups[0]"].is_string());
    assert!(policy.to_json(Origins::Hide).get("origins").is_none());
}

#[test]
fn shipped_policies_conform_to_the_schema() {
    let schema = json_schema();
    for shipped in SHIPPED {
        let written: Value = toml::from_str(shipped.text).expect("TOML");
        conforms(&schema, &schema, &written, shipped.name).expect("conforms");
        let effective = resolve(&[], shipped.name).expect("resolves").to_toml(Origins::Hide);
        let effective: Value = toml::from_str(&effective).expect("TOML");
        conforms(&schema, &schema, &effective, shipped.name).expect("conforms");
    }
}

#[test]
fn the_schema_refuses_what_the_parser_refuses() {
    let schema = json_schema();
    #[rustfmt::skip]
    let cases = [
        "name = \"x\"", "schema = 2", "schema = 1\npid = 1", "schema = 1\nprocess.pid = 1",
        "schema = 1\nprocess.pids = 0", "schema = 1\nprocess.core = 1", "schema = 1\nprocess.pids = \"1\"",
        "schema = 1\nrequire.level = \"none\"", "schema = 1\nfilesystem.writable = [1]",
        "schema = 1\nrequire.relax = [{ layer = \"seccomp\" }]", "schema = 1\nprocess.wall_time = 3",
        "schema = 1\nnetwork.mode = \"host\"", "schema = 1\nprocess.cpus = 0",
    ];
    for text in cases {
        assert!(resolve_text(text).is_err(), "`{text}`");
        let value: Value = toml::from_str(text).expect(text);
        assert!(conforms(&schema, &schema, &value, "").is_err(), "`{text}` conforms");
    }
}

#[test]
fn the_schema_describes_every_key_and_its_bounds() {
    let schema = json_schema();
    let mut keys = 0;
    for (section, table) in schema["properties"].as_object().expect("properties") {
        assert!(table["description"].is_string(), "{section} has no description");
        for (key, value) in table["properties"].as_object().into_iter().flatten() {
            keys += 1;
            assert!(value["description"].is_string(), "{section}.{key} has no description");
        }
    }
    assert_eq!(keys, 32, "a new key is described and listed here");
    let pids = schema["properties"]["process"]["properties"]["pids"].to_string();
    assert!(pids.contains("a whole number from 1 to 4194304"), "{pids}");
    assert!(!schema.to_string().contains("null"), "TOML has no null: {schema:#}");
}
