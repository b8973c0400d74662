//! Where memory stores and skills may be, and where not.

use std::path::{Path, PathBuf};

use super::tests::{bound, facts, policy, request};
use super::*;
use crate::host::Level;
use crate::policy::syscalls::catalogue;
use crate::policy::{Policy, Resolver};

fn store(target: &str) -> StoreRequest {
    let (bytes_max, inodes_max) = (1 << 20, 100);
    StoreRequest { target: target.into(), access: StoreAccess::ReadWrite, bytes_max, inodes_max }
}

fn session(stores: &[&str]) -> Request {
    let stores = stores.iter().map(|target| store(target)).collect();
    Request { tools: true, stores, ..request() }
}

fn built(request: Request) -> Result<JailSpec, SpecError> {
    build(&policy(""), &facts(Level::Root), request)
}

#[test]
fn a_store_is_refused_where_the_jail_has_something() {
    // MEM-3, MEM-4.
    for free in ["/mnt/memory/a", "/srv/a", "/opt/a", "/a", "/workspace/memory/a", "/mnt/session/x"]
    {
        built(session(&[free])).unwrap_or_else(|error| panic!("{free}: {error}"));
    }
    #[rustfmt::skip]
    let taken = [
        "memory/a", "", "/", "/mnt/../etc/x", "/etc", "/etc/x", "/usr/x", "/bin", "/lib64/x", "/proc/x",
        "/sys/x", "/dev/x", "/run/x", "/var", "/tmp", "/tmp/x", "/home", "/home/session/x", "/mnt",
        "/mnt/session", "/mnt/session/outputs/x", "/workspace", "/workspace/skills",
        "/workspace/skills/x", "/.canary", "/a\nb",
    ];
    for target in taken {
        let error = built(session(&[target])).expect_err(target);
        assert!(matches!(error, SpecError::StorePlace { .. }), "{target}: {error}");
        assert!(error.to_string().contains("cannot show a memory store at"), "{error}");
        assert!(!error.hint().is_empty());
    }
    let long = format!("/{}", "a/".repeat(40));
    built(session(&[&long])).expect_err("too deep");
    for stores in [["/mnt/m/a", "/mnt/m/a"], ["/mnt/m/a", "/mnt/m/a/b"], ["/mnt/m/a/b", "/mnt/m/a"]]
    {
        built(session(&stores)).expect_err("another store is there");
    }
    built(session(&["/mnt/m/a", "/mnt/m/ab"])).expect("a name that only begins alike");
    let many: Vec<String> = (0..65).map(|number| format!("/mnt/m/{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    built(session(&many)).expect_err("too many");
    built(session(&many[..64])).expect("as many as may be");
}

/// The default policy with a directory of the host in this list.
fn showing(key: &str) -> Policy {
    let text = include_str!("../../../policies/default.toml");
    let with = format!("root = \"host\"\n{key} = [\"/srv/data\"]");
    let text = text.replacen("root = \"host\"", &with, 1);
    let groups: Vec<_> = catalogue().group_names().collect();
    let load = |_: &Path| Ok(text.clone());
    let resolver = Resolver { groups: &groups, directories: &[], load: &load };
    resolver.resolve("./test.toml").expect("a valid policy")
}

#[test]
fn what_the_policy_shows_is_not_covered_by_a_store() {
    for key in ["read_only", "writable"] {
        let policy = showing(key);
        for target in ["/srv/data", "/srv/data/x", "/srv"] {
            let error = build(&policy, &facts(Level::Root), session(&[target])).expect_err(target);
            assert!(matches!(error, SpecError::StorePlace { .. }), "{key} {target}: {error}");
        }
    }
}

#[test]
fn a_store_is_refused_where_input_is_staged() {
    // MEM-4: what is laid there would be uploaded, and what a store has would be replaced.
    let staged = policy(
        "[[stage]]\nname = \"a\"\nkind = \"local\"\nfrom = \"/srv/in/a\"\nto = \"in/case/a\"\n",
    );
    let targets = ["/workspace/in", "/workspace/in/case/a", "/workspace/in/case/a/store"];
    for target in targets {
        let error = build(&staged, &facts(Level::Root), session(&[target])).expect_err(target);
        let text = error.to_string();
        assert!(matches!(error, SpecError::StorePlace { .. }), "{target}: {text}");
        assert!(text.contains("cannot show a memory store at"), "{text}");
        assert!(text.contains("the policy stages input there"), "{text}");
        // The control: it is the rule.
        built(session(&[target])).unwrap_or_else(|error| panic!("{target}: {error}"));
    }
    for free in ["/workspace/in/case/b", "/workspace/in/case/ab", "/mnt/in/case/a"] {
        let built = build(&staged, &facts(Level::Root), session(&[free]));
        built.unwrap_or_else(|error| panic!("{free}: {error}"));
    }
}

#[test]
fn the_file_tools_know_the_stores_and_which_of_them_may_not_be_changed() {
    // MEM-8, TOOL-PATH-5.
    let mut request = session(&["/mnt/memory/a", "/mnt/memory/b"]);
    request.stores[1].access = StoreAccess::ReadOnly;
    request.skills = Some(SkillsRequest { writable: false, bytes_max: 1 << 20, inodes_max: 100 });
    let spec = built(request).expect("a spec");
    let tools = spec.tools.as_ref().expect("a session");
    let paths =
        |paths: &[PathBuf]| paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
    let roots = ["/workspace", "/mnt/session/outputs", "/mnt/memory/a", "/mnt/memory/b"];
    assert_eq!(paths(&tools.roots), roots);
    assert_eq!(paths(&tools.read_only), ["/workspace/skills", "/mnt/memory/b"]);
    assert!(tools.porter);
    let access = |path: &str| {
        let grant = spec.landlock.grants.iter().find(|(granted, _)| granted == Path::new(path));
        grant.map(|(_, access)| *access)
    };
    assert_eq!(access("/mnt/memory/a"), Some(Access::Write));
    assert_eq!(access("/mnt/memory/b"), Some(Access::ReadExecute));
    let targets: Vec<_> = spec.mounts.places.iter().map(|place| place.target.clone()).collect();
    assert_eq!(paths(&targets), ["/workspace/skills", "/mnt/memory/a", "/mnt/memory/b"]);
}

#[test]
fn a_porter_is_there_only_where_it_is_needed() {
    let porter = |request| built(request).expect("a spec").tools.expect("a session").porter;
    assert!(!porter(session(&[])));
    assert!(porter(Request { porter: true, ..session(&[]) }));
    // A command has none, whatever is asked.
    let command = Request { tools: false, porter: true, ..session(&["/mnt/memory/a"]) };
    let spec = built(command).expect("a spec");
    assert!(spec.tools.is_none() && spec.mounts.places.is_empty());
}

#[test]
fn places_follow_a_workspace_that_is_shown_in_place() {
    let mut request = session(&["/srv/work/memory/a"]);
    request.workspace = Some(bound(None));
    request.workspace_in_place = true;
    request.skills = Some(SkillsRequest { writable: true, bytes_max: 1 << 20, inodes_max: 100 });
    let spec = built(request).expect("a spec");
    let found: Vec<_> =
        spec.mounts.places.iter().map(|p| (p.target.as_path(), p.in_workspace)).collect();
    assert_eq!(
        found,
        [(Path::new("/srv/work/skills"), true), (Path::new("/srv/work/memory/a"), true)]
    );
}
