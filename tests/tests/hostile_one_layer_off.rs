//! INV-4: with any single layer switched off, no act reaches the host. Defence in depth is
//! measured here, one layer at a time, at both levels.

use e2e::bait::Bait;
use e2e::hostile::each;
use e2e::policy::{PolicyFile, RELAXABLE};
use e2e::{End, Exec, Level};

/// Acts that would have an effect on the host, or tell something of it, if they succeeded.
const ACTS: [&str; 40] = [
    "read /etc/shadow",
    "read {secret}",
    "read {root-secret}",
    "read /proc/self/root{secret}",
    "procs root {secret}",
    "procs environ",
    "handle /usr",
    "open /usr/bin/yes w",
    "create /usr/lib/e2e-escaped",
    "create {dir}/escaped",
    "open /proc/sys/kernel/core_pattern w",
    "open /proc/sysrq-trigger w",
    "open /proc/sys/kernel/hostname w",
    "mount tmpfs /tmp",
    "bind / /tmp",
    "open-tree /usr",
    "umount /proc",
    "remount /usr",
    "mount-setattr /usr",
    "setns /proc/1/ns/mnt",
    "cgroupfs /tmp",
    "open /dev/vda r",
    "open /dev/kmsg r",
    "mknod node b 254 0",
    "kill {pid} 9",
    "ptrace {pid} seize",
    "vm-read {pid}",
    "pidfd-getfd {pid} 0",
    "mem 1",
    "ptrace 1 seize",
    "connect 127.0.0.1 {port}",
    "unix {abstract}",
    "unix {socket}",
    "hostname owned",
    "link-down lo",
    "socket 17 3 0",
    "socket 2 3 1",
    "bpf",
    "settime",
    "setuid 0",
];

/// Layers that cannot be off alone, and what the error must say needs them.
const RESTS_ON_IT: &[(&str, &[&str])] = &[("no-new-privs", &["landlock", "seccomp"])];

fn check_without(layer: &str) {
    let mut wrong = Vec::new();
    for level in Level::here() {
        let mut bait = Bait::plant(level);
        let policy = PolicyFile::without(&[layer]);
        let acts = ACTS.map(|act| bait.fill(act));
        let outcome = Exec::at(level).policy(policy.path()).probe(&each(&acts));
        let refused = outcome.end == End::Exit(5) && outcome.stderr.contains(layer);
        if refused
            && RESTS_ON_IT.iter().any(|(base, above)| {
                *base == layer && above.iter().all(|name| outcome.stderr.contains(name))
            })
        {
            // Fail closed (INV-2): other layers rest on this one, so it cannot be off alone.
            wrong.extend(bait.touched());
            continue;
        }
        for act in &acts {
            match outcome.of(act) {
                Some(got) if got.starts_with("errno") || got.starts_with("signal") => {}
                got => wrong.push(format!("INV-4 {level:?} without {layer}: `{act}`: {got:?}")),
            }
        }
        if outcome.stdout.is_empty() {
            wrong.push(outcome.text());
        }
        wrong.extend(bait.touched().into_iter().map(|mark| format!("INV-4 {level:?}: {mark}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

macro_rules! without {
    ($($name:ident: $layer:literal),+ $(,)?) => {
        $(#[test]
        fn $name() {
            check_without($layer);
        })+

        #[test]
        fn every_layer_that_can_be_off_is_tried() {
            assert_eq!([$($layer),+], RELAXABLE);
        }
    };
}

without! {
    without_the_net_namespace_no_act_reaches_the_host: "net-namespace",
    without_the_ipc_namespace_no_act_reaches_the_host: "ipc-namespace",
    without_the_uts_namespace_no_act_reaches_the_host: "uts-namespace",
    without_the_cgroup_namespace_no_act_reaches_the_host: "cgroup-namespace",
    without_the_capability_layer_no_act_reaches_the_host: "capabilities",
    without_no_new_privs_no_act_reaches_the_host: "no-new-privs",
    without_landlock_no_act_reaches_the_host: "landlock",
    without_seccomp_no_act_reaches_the_host: "seccomp",
    without_the_cgroup_no_act_reaches_the_host: "cgroup",
    without_rlimits_no_act_reaches_the_host: "rlimits",
    without_a_fresh_keyring_no_act_reaches_the_host: "keyring",
    without_the_canary_no_act_reaches_the_host: "canary",
}
