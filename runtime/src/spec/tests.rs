//! The decision of one jail on hosts that this machine is not: facts are injected.

use std::path::PathBuf;

use crate::host::{
    CgroupOffer, EntryKind, HostEntry, HostFacts, KernelOffers, KernelVersion, Level,
};
use crate::policy::syscalls::catalogue;
use crate::policy::{Layer, Policy, Resolver, Storage};

use super::*;

pub(super) fn facts(level: Level) -> HostFacts {
    let link = |name: &str, target: &str| HostEntry {
        name: name.to_owned(),
        kind: EntryKind::Link(PathBuf::from(target)),
    };
    let directory = |name: &str| HostEntry { name: name.to_owned(), kind: EntryKind::Directory };
    let controllers = ["memory", "pids", "cpu"].map(str::to_owned).to_vec();
    HostFacts {
        kernel: KernelVersion::parse("6.12.0"),
        level,
        offers: KernelOffers { landlock_abi: 6, cgroup: CgroupOffer::V2 { controllers } },
        root: vec![link("bin", "usr/bin"), directory("etc"), directory("root"), directory("usr")],
        etc: vec![directory("alternatives"), directory("ssh")],
        online_cpus: 2,
    }
}

/// The shipped default with lines added to it.
pub(super) fn policy(added: &str) -> Policy {
    let groups: Vec<_> = catalogue().group_names().collect();
    let text = format!("{}\n{added}", include_str!("../../../policies/default.toml"));
    let load = |_: &std::path::Path| Ok(text.clone());
    let resolver = Resolver { groups: &groups, directories: &[], load: &load };
    resolver.resolve("./test.toml").expect("a valid policy")
}

pub(super) fn request() -> Request {
    Request { argv: vec![b"true".to_vec()], ..Request::default() }
}

pub(super) fn bound(quota: Option<(u32, u64, u64)>) -> BoundRequest {
    BoundRequest { source: "/srv/work".into(), device: 1, inode: 2, uid: 1000, gid: 1000, quota }
}

const RELAX: &str = "[[require.relax]]\nwhy = \"test\"\nlayer = ";

#[test]
fn a_required_layer_that_the_kernel_lacks_is_refused_with_a_fix() {
    type Change = fn(&mut HostFacts);
    #[rustfmt::skip]
    let cases: [(&str, Change, &str); 5] = [
        ("no landlock",     |f| f.offers.landlock_abi = 0,                     "`landlock`"),
        ("old landlock",    |f| f.offers.landlock_abi = 1,                     "ABI 1, the policy requires 2"),
        ("old kernel",      |f| f.kernel = KernelVersion::parse("5.10.0"),     "`mount-namespace`"),
        ("no cgroup",       |f| f.offers.cgroup = CgroupOffer::Absent { reason: "none here".into() }, "none here"),
        ("no pids control", |f| f.offers.cgroup = CgroupOffer::V2 { controllers: vec!["memory".into(), "cpu".into()] }, "no pids"),
    ];
    for (name, change, want) in cases {
        let mut facts = facts(Level::Root);
        build(&policy(""), &facts, request()).expect("the control run is accepted");
        change(&mut facts);
        let error = build(&policy(""), &facts, request()).expect_err(name);
        assert!(error.to_string().contains(want), "{name}: {error}");
        assert!(!error.hint().is_empty(), "{name} has no fix");
    }
}

#[test]
fn a_relaxed_layer_may_be_missing_and_is_reported_and_not_called_off() {
    let mut facts = facts(Level::Root);
    facts.offers.landlock_abi = 0;
    let spec = build(&policy(&format!("{RELAX}\"landlock\"")), &facts, request()).expect("relaxed");
    assert_eq!(spec.demand(Layer::Landlock), Demand::Unavailable);
    assert!(!spec.applies(Layer::Landlock));
    facts.offers.landlock_abi = 6;
    let spec = build(&policy(&format!("{RELAX}\"landlock\"")), &facts, request()).expect("there");
    assert_eq!(spec.demand(Layer::Landlock), Demand::IfAvailable);
    assert!(spec.applies(Layer::Landlock), "a relaxation switched off what the kernel has");
}

#[test]
fn landlock_and_seccomp_cannot_stay_on_without_no_new_privs() {
    let off = format!("{RELAX}\"no-new-privs\"\noff = true");
    let error = build(&policy(&off), &facts(Level::Root), request()).expect_err("refused");
    assert!(error.to_string().contains("no-new-privs"), "{error}");
}

#[test]
fn without_its_net_namespace_landlock_denies_tcp() {
    let with = build(&policy(""), &facts(Level::Root), request()).expect("default");
    assert!(!with.landlock.deny_tcp, "loopback servers must work");
    let off = format!("{RELAX}\"net-namespace\"\noff = true");
    let without = build(&policy(&off), &facts(Level::Root), request()).expect("off");
    assert!(without.landlock.deny_tcp);
}

#[test]
fn level_root_is_refused_without_root() {
    let text = include_str!("../../../policies/default.toml");
    assert!(text.contains("level = \"rootless\""));
    let groups: Vec<_> = catalogue().group_names().collect();
    let text = text.replace("level = \"rootless\"", "level = \"root\"");
    let load = |_: &std::path::Path| Ok(text.clone());
    let resolver = Resolver { groups: &groups, directories: &[], load: &load };
    let policy = resolver.resolve("./test.toml").expect("valid");
    build(&policy, &facts(Level::Root), request()).expect("root satisfies it");
    let error = build(&policy, &facts(Level::Rootless), request()).expect_err("refused");
    assert!(error.to_string().contains("`root`"), "{error}");
    assert!(error.hint().contains("sudo"));
}

#[test]
fn rootless_accepts_missing_cgroups_unless_the_policy_insists() {
    let mut facts = facts(Level::Rootless);
    facts.offers.cgroup = CgroupOffer::Absent { reason: "not delegated".into() };
    let spec = build(&policy(""), &facts, request()).expect("accepted");
    assert_eq!(spec.demand(Layer::Cgroup), Demand::Unavailable);
    let data = spec.rlimits.iter().find(|(limit, _)| *limit == Rlimit::Data);
    assert_eq!(
        data.map(|(_, bytes)| *bytes),
        Some(2 << 30),
        "memory falls back to a process limit"
    );
    let text =
        include_str!("../../../policies/default.toml").replace("cgroup = false", "cgroup = true");
    let groups: Vec<_> = catalogue().group_names().collect();
    let load = |_: &std::path::Path| Ok(text.clone());
    let resolver = Resolver { groups: &groups, directories: &[], load: &load };
    let policy = resolver.resolve("./test.toml").expect("valid");
    let error = build(&policy, &facts, request()).expect_err("insisted");
    assert!(error.to_string().contains("not delegated"), "{error}");
}

#[test]
fn a_bound_directory_is_never_silently_unlimited() {
    let limit = |quota| {
        let request = Request { workspace: Some(bound(quota)), ..request() };
        let spec = build(&policy(""), &facts(Level::Root), request).expect("built");
        spec.mounts.bound[0].limit
    };
    #[rustfmt::skip]
    let cases = [
        (None,                           BoundLimit::Overlay,                      "no quota"),
        (Some((7, 1 << 30, 100_000)),    BoundLimit::ProjectQuota { project: 7 },  "as large as the policy's"),
        (Some((7, 2 << 30, 100_000)),    BoundLimit::Overlay,                      "a larger quota limits nothing"),
        (Some((7, 1 << 20, 200_000)),    BoundLimit::Overlay,                      "more inodes than allowed"),
        (Some((7, 0, 0)),                BoundLimit::Overlay,                      "a quota of 0 is none"),
    ];
    for (quota, want, why) in cases {
        assert_eq!(limit(quota), want, "{why}");
    }
}

#[test]
fn old_kernels_get_a_disk_scratch_or_a_refusal_for_bound_directories() {
    let with_workspace = || Request { workspace: Some(bound(None)), ..request() };
    let mut facts = facts(Level::Root);
    let storage = |facts: &HostFacts| {
        build(&policy(""), facts, with_workspace()).map(|spec| spec.mounts.scratch.storage)
    };
    assert_eq!(storage(&facts).expect("6.12"), Storage::Memory);
    facts.kernel = KernelVersion::parse("6.1.0");
    assert_eq!(storage(&facts).expect("6.1"), Storage::Disk);
    facts.kernel = KernelVersion::parse("5.15.0");
    facts.offers.landlock_abi = 2;
    assert!(storage(&facts).expect_err("5.15").to_string().contains("/srv/work"));
    facts.level = Level::Rootless;
    facts.kernel = KernelVersion::parse("6.1.0");
    storage(&facts).expect_err("rootless needs extended attributes on tmpfs");
}

#[test]
fn equal_requests_have_equal_digests_and_any_difference_changes_it() {
    let digest =
        |request| build(&policy(""), &facts(Level::Root), request).expect("built").digest();
    assert_eq!(digest(request()), digest(request()));
    let other = Request { argv: vec![b"false".to_vec()], ..request() };
    assert_ne!(digest(request()), digest(other));
    let tty = Request { tty: true, ..request() };
    assert_ne!(digest(request()), digest(tty));
}

#[test]
fn the_host_s_own_directories_are_not_shown() {
    let spec = build(&policy(""), &facts(Level::Root), request()).expect("built");
    let shown: Vec<_> =
        spec.mounts.read_only.iter().map(|bind| bind.source.display().to_string()).collect();
    assert_eq!(shown, ["/usr", "/etc/alternatives"]);
}

#[test]
fn the_caller_s_environment_stays_outside_unless_the_policy_passes_it() {
    let caller = [("TERM", "xterm"), ("SECRET", "x")];
    let caller = caller.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let request = Request { caller_environment: caller.into(), ..request() };
    let spec = build(&policy(""), &facts(Level::Root), request).expect("built");
    let has = |text: &str| spec.payload.environment.iter().any(|v| v.starts_with(text.as_bytes()));
    assert!(has("TERM=xterm") && has("PATH=/usr/local/sbin") && has("HOME=/home/session"));
    assert!(!has("SECRET"));
}
