//! INV-5: capabilities in the payload's own user namespace move nothing, because that namespace
//! owns no other. Tried with the capability layer off, so that the payload has the full set.

use e2e::bait::Bait;
use e2e::hostile::{each, refused_as};
use e2e::policy::PolicyFile;
use e2e::{Exec, Level, locate};

/// Acts that a process with all capabilities over its namespaces can do.
const ACTS: [&str; 24] = [
    "mount tmpfs /tmp",
    "mount proc /tmp",
    "bind / /tmp",
    "fsopen tmpfs",
    "open-tree /usr",
    "umount /proc",
    "umount /workspace",
    "remount /",
    "remount /usr",
    "mount-setattr /usr",
    "pivot-root /tmp",
    "unshare mount",
    "unshare net",
    "setns /proc/self/ns/mnt",
    "hostname owned",
    "link-down lo",
    "address",
    "route",
    "socket 2 3 1",
    "socket 17 3 0",
    "mknod node b 8 0",
    "cgroupfs /tmp",
    "handle /usr",
    "settime",
];

/// What all of them must get. Which one depends on which check the kernel makes first.
const REFUSED: &str = "EPERM|EACCES|ENOSPC|EINVAL|ENOSYS|EAFNOSUPPORT|ESOCKTNOSUPPORT|ENODEV";

/// With each of these off, the payload must hold the full set.
const LAYERS_OFF: [&[&str]; 4] = [
    &["capabilities"],
    &["capabilities", "seccomp"],
    &["capabilities", "landlock"],
    &["capabilities", "seccomp", "landlock"],
];

#[test]
fn a_full_capability_set_changes_nothing() {
    let mut wrong = Vec::new();
    for (level, layers) in
        Level::here().into_iter().flat_map(|level| LAYERS_OFF.map(|layers| (level, layers)))
    {
        let mut bait = Bait::plant(level);
        let policy = PolicyFile::without(layers);
        let mut acts = vec!["caps full".to_owned()];
        acts.extend(ACTS.map(str::to_owned));
        let outcome = Exec::at(level).policy(policy.path()).probe(&each(&acts));
        let premise = outcome.of("caps full").unwrap_or_default();
        if !premise.starts_with("ok") {
            wrong.push(format!("{level:?} {layers:?}: not the full set: {}", outcome.text()));
        }
        for act in ACTS {
            let got = outcome.of(act).unwrap_or("nothing");
            if !refused_as(got, REFUSED) {
                wrong.push(format!("INV-5 {level:?} without {layers:?}: `{act}` gave `{got}`"));
            }
        }
        wrong.extend(bait.touched());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_same_set_moves_things_where_one_namespace_owns_all() {
    // The control: everything made in one unshare, as most tools do it.
    let kinds = ["--user", "--map-root-user", "--mount", "--net", "--uts", "--cgroup"];
    for act in
        ["mount tmpfs /tmp", "hostname owned", "link-down lo", "address", "route", "socket 2 3 1"]
    {
        let mut line = Level::Rootless.prefix();
        line.push("unshare".to_owned());
        line.extend(kinds.map(str::to_owned));
        line.extend([locate::probe().display().to_string(), "each".to_owned(), act.to_owned()]);
        let done = std::process::Command::new(&line[0]).args(&line[1..]).output();
        let text = String::from_utf8_lossy(&done.expect("cannot run").stdout).into_owned();
        assert!(text.contains(": ok"), "control of `{act}` gave {text}");
    }
}

#[test]
fn a_payload_has_no_capability_and_cannot_get_one() {
    for level in Level::here() {
        let script = "grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status";
        let status = Exec::at(level).bash(script);
        let line = |name: &str| {
            let found = status.stdout.lines().find_map(|line| line.strip_prefix(name));
            found.map(str::trim).unwrap_or_default().to_owned()
        };
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(line(set), "0000000000000000", "{level:?} {set} {}", status.text());
        }
        assert_eq!(line("NoNewPrivs:"), "1", "{level:?}: {}", status.text());
        assert_eq!(line("Seccomp:"), "2", "{level:?}: {}", status.text());

        let without = PolicyFile::without(&["capabilities"]);
        let control = Exec::at(level).policy(without.path()).probe(&["caps"]);
        assert!(control.stdout.starts_with("ok"), "control: {}", control.text());
    }
}
