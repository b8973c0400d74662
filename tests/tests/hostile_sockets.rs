//! Sockets: of the host, to the outside, and of families a payload has no business with. INV-8;
//! `jail.md` §2.1 (CVE-2020-15257), §2.3 (socket families), §2.5 (docker.sock, session bus).
//!
//! No row sends anything beyond loopback: controls that need an address make it in a namespace of
//! their own.

use std::process::Command;

use e2e::hostile::Control::{Bare, Host, HostRoot, Impossible, Off, OffIfHostAllows};
use e2e::hostile::{Control, Row, check};
use e2e::{Exec, Level, locate};

const fn row(act: &'static str, want: &'static str, control: Control) -> Row {
    Row { act, want, control, cites: "INV-8, jail.md 2.3" }
}

const NO_NET: &[&str] = &["net-namespace", "landlock"];
const NO_NET_NO_FILTER: &[&str] = &["net-namespace", "landlock", "seccomp"];
const NO_FAMILY: &str = "EAFNOSUPPORT|EPROTONOSUPPORT|ESOCKTNOSUPPORT|EPERM";

#[test]
fn services_of_the_host_cannot_be_connected_to() {
    check(&[
        row("connect 127.0.0.1 {port}", "ECONNREFUSED|EACCES", Off(NO_NET)),
        row(
            "fastopen 127.0.0.1 {port}",
            "ECONNREFUSED|EACCES|EOPNOTSUPP|EPERM",
            Off(NO_NET_NO_FILTER),
        ),
        row("unix {abstract}", "ECONNREFUSED|EPERM", Off(NO_NET)),
        row("unix {socket}", "ENOENT|EACCES", Host),
        row("unix /proc/self/root{socket}", "ENOENT|EACCES", Host),
        row("unix /run/docker.sock", "ENOENT|EACCES", Impossible("the host may have none")),
        row("unix /run/systemd/private", "ENOENT|EACCES", Impossible("the host may have none")),
        row("unix /run/dbus/system_bus_socket", "ENOENT|EACCES", Impossible("as above")),
        row("unix /dev/log", "ENOENT|EACCES", Impossible("the host may have none")),
        row("interfaces", "ENODEV|EACCES|EPERM", Off(&["net-namespace"])),
    ]);
}

#[test]
fn there_is_no_way_to_the_outside() {
    const OUTSIDE: &str = "ENETUNREACH|EACCES|EPERM|ECONNREFUSED";
    let elsewhere = Impossible("see the_same_addresses_are_reachable_where_they_exist");
    check(&[
        row("connect 192.0.2.1 80", OUTSIDE, elsewhere),
        row("connect 192.0.2.1 443", OUTSIDE, elsewhere),
        row("connect 169.254.169.254 80", OUTSIDE, elsewhere),
        row("connect 10.0.0.1 22", OUTSIDE, elsewhere),
        row("connect 2001:db8::1 443", "ENETUNREACH|EADDRNOTAVAIL|EACCES|EPERM", elsewhere),
        row("connect fe80::1 80", "ENETUNREACH|EINVAL|EADDRNOTAVAIL|EACCES", elsewhere),
        row("fastopen 192.0.2.1 80", "ENETUNREACH|EACCES|EPERM|EOPNOTSUPP", elsewhere),
        row("udp 192.0.2.1 53", "ENETUNREACH|EACCES|EPERM", elsewhere),
        row("udp 255.255.255.255 67", "ENETUNREACH|EACCES|EPERM", elsewhere),
        row("udp 224.0.0.251 5353", "ENETUNREACH|EACCES|EPERM", elsewhere),
    ]);
}

#[test]
fn the_same_addresses_are_reachable_where_they_exist() {
    // The control of the rows above, in a namespace that owns these addresses.
    for address in ["192.0.2.1", "169.254.169.254", "10.0.0.1"] {
        let mut line = Level::Rootless.prefix();
        line.extend(["unshare", "--user", "--map-root-user", "--net"].map(str::to_owned));
        let probe = locate::probe().display().to_string();
        line.extend([probe, "self-connect".to_owned(), address.to_owned(), "80".to_owned()]);
        let done = Command::new(&line[0]).args(&line[1..]).output().expect("cannot run");
        assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), "ok", "{address}");
    }
}

#[test]
fn each_layer_alone_keeps_a_payload_from_the_service_on_loopback() {
    // INV-4: without the network namespace landlock still refuses, and the other way round.
    for off in ["net-namespace", "landlock", "seccomp", "capabilities"] {
        let policy = e2e::policy::PolicyFile::without(&[off]);
        for level in Level::here() {
            let mut bait = e2e::bait::Bait::plant(level);
            let acts = ["connect 127.0.0.1 {port}", "unix {abstract}", "unix {socket}"];
            let acts = acts.map(|act| bait.fill(act));
            let run = Exec::at(level).policy(policy.path()).probe(&e2e::hostile::each(&acts));
            for act in &acts {
                let got = run.of(act).unwrap_or("nothing");
                let text = run.text();
                assert!(got.starts_with("errno"), "INV-4 {level:?} {off} off: {act}: {got} {text}");
            }
            assert_eq!(bait.touched(), [""; 0], "INV-4 {level:?} with {off} off");
        }
    }
}

#[test]
fn families_with_a_history_cannot_be_opened() {
    let seccomp = OffIfHostAllows(&["seccomp"]);
    check(&[
        row("socket 38 5 0", NO_FAMILY, seccomp), // AF_ALG, CVE-2026-31431
        row("socket 40 1 0", NO_FAMILY, seccomp), // AF_VSOCK, CVE-2021-26708
        row("socket 17 3 0", NO_FAMILY, HostRoot), // AF_PACKET, CVE-2020-14386
        row("socket 17 2 768", NO_FAMILY, HostRoot),
        row("socket 15 3 2", NO_FAMILY, seccomp),  // AF_KEY
        row("socket 33 2 0", NO_FAMILY, seccomp),  // AF_RXRPC, CVE-2026-43500
        row("socket 29 3 1", NO_FAMILY, seccomp),  // AF_CAN
        row("socket 31 3 1", NO_FAMILY, seccomp),  // AF_BLUETOOTH
        row("socket 41 2 0", NO_FAMILY, seccomp),  // AF_KCM
        row("socket 43 1 0", NO_FAMILY, seccomp),  // AF_SMC
        row("socket 44 3 0", NO_FAMILY, HostRoot), // AF_XDP
        row("socket 30 2 0", NO_FAMILY, seccomp),  // AF_TIPC
        row("socket 9 5 0", NO_FAMILY, seccomp),   // AF_X25
        row("socket 99 1 0", NO_FAMILY, Impossible("no kernel has this family")),
    ]);
}

#[test]
fn raw_and_unusual_protocols_cannot_be_opened() {
    const RAW: &str = "EPERM|EACCES|EAFNOSUPPORT|EPROTONOSUPPORT|ESOCKTNOSUPPORT|EINVAL";
    let seccomp = OffIfHostAllows(&["seccomp"]);
    check(&[
        row("socket 2 3 1", RAW, HostRoot),
        row("socket 2 3 255", RAW, HostRoot),
        row("socket 10 3 58", RAW, HostRoot),
        row("socket 2 1 132", RAW, seccomp), // SCTP
        row("socket 2 5 132", RAW, seccomp),
        row("socket 2 1 262", RAW, seccomp), // MPTCP: landlock's hooks do not cover it
        row("socket 10 1 262", RAW, seccomp),
        row("socket 2 6 33", RAW, seccomp),  // DCCP
        row("socket 2 1 256", RAW, seccomp), // SMC by protocol number
    ]);
}

#[test]
fn netlink_speaks_of_routes_only() {
    let seccomp = OffIfHostAllows(&["seccomp"]);
    check(&[
        row("socket 16 3 4", NO_FAMILY, seccomp),  // SOCK_DIAG
        row("socket 16 3 5", NO_FAMILY, seccomp),  // NFLOG
        row("socket 16 3 6", NO_FAMILY, seccomp),  // XFRM, CVE-2026-43284
        row("socket 16 3 9", NO_FAMILY, seccomp),  // AUDIT
        row("socket 16 3 12", NO_FAMILY, seccomp), // NETFILTER, CVE-2024-1086
        row("socket 16 3 15", NO_FAMILY, seccomp), // KOBJECT_UEVENT
        row("socket 16 3 16", NO_FAMILY, seccomp), // GENERIC
        row("socket 16 3 21", NO_FAMILY, seccomp), // CRYPTO
    ]);
}

#[test]
fn the_network_cannot_be_reconfigured() {
    check(&[
        row("link-down lo", "EPERM|EACCES", Bare),
        row("address", "EPERM|EACCES", Bare),
        row("route", "EPERM|EACCES", Bare),
        row("hostname owned", "EPERM", Bare),
    ]);
}
