//! The shipped policies: their promised values, their effective form and their schema.

use std::time::Duration;

use serde_json::Value;

use crate::host::Level;

use super::super::network::{DenyDetail, NetworkMode, PRESETS};
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
    let network = &policy.network;
    assert_eq!((network.mode.value, network.named), (NetworkMode::Enforce, false));
    assert!(network.all_rules().is_empty(), "nothing can be reached");
    assert_eq!((network.connections.value, network.bytes_out.value), (4096, None));
    assert_eq!(network.deny_detail.value, DenyDetail::Full);
    let offline = resolve(&[], "offline").expect("shipped").network;
    assert_eq!((offline.mode.value, offline.named), (NetworkMode::None, true));
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
        // `base` names nothing and leaves it to others; `offline` has no network to name it for.
        let text = match shipped.name {
            "offline" => text.replace("mode = \"enforce\"", "mode = \"none\""),
            _ => text,
        };
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
fn rules_of_presets_are_shown_with_their_place_in_the_preset() {
    let text = "schema = 1\nextends = \"default\"\n[network]\nallow = [\"a.test\", \"pypi.org\"]\n\
                presets = [\"python\", \"rust\"]\nupstream_proxy = { url = \"http://P.test:3128\" }";
    let policy = resolve_text(text).expect("valid");
    let shown = policy.to_toml(Origins::Show);
    for line in [
        "    \"a.test:443\", # p.toml:4:10\n",
        "    \"pypi.org:443\", # p.toml:4:20\n",
        "    \"files.pythonhosted.org:443\", # policies/presets/python.toml:",
        "    \"index.crates.io:443\", # policies/presets/rust.toml:",
        "upstream_proxy = { url = \"http://p.test:3128\", resolves = \"host\" } # p.toml:6:18\n",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    assert_eq!(shown.matches("pypi.org").count(), 1, "a rule is there once: {shown}");
    let json = policy.to_json(Origins::Show);
    assert_eq!(json["policy"]["network"]["allow"][2], "files.pythonhosted.org:443");
    let place = json["origins"]["network.allow[2]"].as_str().expect("a place");
    assert!(place.starts_with("policies/presets/python.toml:"), "{place}");
    assert_eq!(json["presets"][1]["name"], "rust");
    assert_eq!(json["presets"][1]["at"], "p.toml:5:22");
    // The digest covers the rules of presets: without one of them it is another.
    let names: Vec<String> =
        policy.network.all_rules().iter().map(|rule| format!("\"{}\"", rule.value)).collect();
    let spelled = |names: &[String]| {
        let text = text.replace("[\"a.test\", \"pypi.org\"]", &format!("[{}]", names.join(", ")));
        let text = text.replace("presets = [\"python\", \"rust\"]", "presets = []");
        resolve_text(&text).expect("valid").digest()
    };
    assert_eq!(spelled(&names), policy.digest());
    assert_ne!(spelled(&names[1..]), policy.digest());
}

#[test]
fn every_preset_can_be_named_and_conforms_to_the_schema() {
    let schema = json_schema();
    for preset in PRESETS {
        let text = format!("schema = 1\nnetwork.presets = [{:?}]", preset.name);
        let policy = resolve_text(&text).expect(preset.name);
        assert_eq!(policy.network.all_rules().len(), preset.rules().len());
        let effective: Value = toml::from_str(&policy.to_toml(Origins::Hide)).expect("TOML");
        conforms(&schema, &schema, &effective, preset.name).expect("conforms");
    }
}

#[test]
fn report_mode_has_an_end_that_is_not_far() {
    let text = "schema = 1\nnetwork = { mode = \"report\", expires = \"2026-12-01T00:00:00Z\" }";
    let policy = resolve_text(text).expect("valid");
    let end = 1_796_083_200;
    assert_eq!(policy.network.mode.value, NetworkMode::Report { until: end });
    let month = 30 * 86_400;
    assert!(policy.network.ends_in_time(end + 1).is_ok(), "it is over");
    assert!(policy.network.ends_in_time(end - month).is_ok());
    let error = policy.network.ends_in_time(end - month - 1).expect_err("31 days").to_string();
    assert!(error.starts_with("p.toml:2:") && error.contains("at most 30 days"), "{error}");
    assert!(
        policy.to_toml(Origins::Show).contains("\nexpires = \"2026-12-01T00:00:00Z\" # p.toml:2:")
    );
    let again = resolve_text(&policy.to_toml(Origins::Hide)).expect("what we write is valid");
    assert_eq!(again.digest(), policy.digest());
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
        "schema = 1\nnetwork.mode = \"host\"", "schema = 1\nnetwork.allow = [3]",
        "schema = 1\nnetwork.allow = [{ rule = \"a:1\", x = 1 }]", "schema = 1\nnetwork.connections = 0",
        "schema = 1\nnetwork.deny_detail = \"x\"", "schema = 1\nnetwork.upstream_proxy = 1",
        "schema = 1\nprocess.cpus = 0",
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
    assert_eq!(keys, 42, "a new key is described and listed here");
    let pids = schema["properties"]["process"]["properties"]["pids"].to_string();
    assert!(pids.contains("a whole number from 1 to 4194304"), "{pids}");
    assert!(!schema.to_string().contains("null"), "TOML has no null: {schema:#}");
}
