//! Device nodes: none but the usual six, and none can be made. INV-4; `jail.md` §1.2 step 10.

use e2e::hostile::Control::{Host, HostRoot, HostRootIfThere};
use e2e::hostile::{Control, Row, check};
use e2e::{Exec, Level, Need, require};

const fn row(act: &'static str, want: &'static str, control: Control) -> Row {
    Row { act, want, control, cites: "jail.md 1.2 step 10" }
}

#[test]
fn devices_of_the_host_are_not_there() {
    let devices = [
        "open /dev/mem r",
        "open /dev/kmsg r",
        "open /dev/sda r",
        "open /dev/vda r",
        "open /dev/loop-control rw",
        "open /dev/loop0 r",
        "open /dev/kvm rw",
        "open /dev/fuse rw",
        "open /dev/net/tun rw",
        "open /dev/vhost-net rw",
        "open /dev/btrfs-control rw",
        "open /dev/cpu/0/msr r",
        "open /dev/console rw",
        "open /dev/tty0 rw",
        "open /dev/hwrng r",
        "open /dev/uinput rw",
        "open /dev/dri/card0 rw",
        "open /dev/vsock r",
        "open /dev/userfaultfd rw",
        "open /dev/mapper/control rw",
        "open /dev/port r",
        "open /dev/snapshot r",
        "open /dev/autofs r",
        "open /dev/rtc0 r",
    ];
    check(&devices.map(|act| row(act, "ENOENT|EACCES|EPERM|ENXIO", HostRootIfThere)));
}

#[test]
fn no_device_node_can_be_made() {
    check(&[
        row("mknod node b 8 0", "EPERM", HostRoot),
        row("mknod node b 254 0", "EPERM", HostRoot),
        row("mknod node c 1 1", "EPERM", HostRoot),
        row("mknod node c 10 229", "EPERM", HostRoot),
        // A whiteout needs no privilege on the host, and hides files of an overlay.
        row("mknod node c 0 0", "EPERM|EACCES", Host),
    ]);
}

#[test]
fn the_device_directory_holds_the_usual_nodes_only() {
    let allowed = [
        "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero", "console",
    ];
    for level in Level::here() {
        let listed = Exec::at(level).bash("ls /dev; find /dev -type b; ls /dev/pts | wc -l");
        let mut lines: Vec<&str> = listed.stdout.lines().collect();
        let terminals = lines.pop().unwrap_or_default();
        assert!(["0", "1"].contains(&terminals), "{level:?}: terminals of others: {terminals}");
        assert!(lines.len() >= 6, "{level:?}: {}", listed.text());
        for name in lines {
            assert!(allowed.contains(&name), "{level:?}: /dev holds `{name}`");
        }
    }
}

#[test]
fn the_nodes_of_the_host_keep_their_mode_owner_and_times() {
    // INV-4. A level's user may own a node, and anybody may touch one that all can write to.
    require!(Need::Root);
    // The control, on a node of our own: the same acts where no mount is read-only.
    let place = tempfile::tempdir().expect("a directory");
    let control = std::process::Command::new("bash")
        .args(["-ec", "mknod node c 1 3; chmod 600 node; touch node"])
        .current_dir(place.path())
        .status();
    assert!(control.expect("cannot run bash").success(), "the control failed");
    for level in Level::here() {
        let script = "for node in null zero full random urandom tty; do
                echo x > /dev/$node || true
                chmod 600 /dev/$node; touch /dev/$node; done 2>&1 | grep -v full
            : > /dev/null && cat /dev/null && head -c 3 /dev/zero | wc -c";
        let changed = Exec::at(level).bash(script);
        let lines: Vec<&str> = changed.stdout.lines().collect();
        let refused = lines.iter().filter(|line| line.contains("Read-only file system")).count();
        assert_eq!(refused, 9, "{level:?}: {}", changed.text());
        assert_eq!(lines.last(), Some(&"3"), "{level:?}: {}", changed.text());
    }
}
