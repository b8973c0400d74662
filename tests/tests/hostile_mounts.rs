//! Mounts and new namespaces. INV-4, INV-5; `jail.md` §2.1 (races on mounts), §2.3 (mount bugs
//! reached through user namespaces), §2.2 (new mount calls missing from filters).

use e2e::hostile::Control::{Bare, Host, Impossible};
use e2e::hostile::{Control, Row, check};

const fn row(act: &'static str, want: &'static str, control: Control) -> Row {
    Row { act, want, control, cites: "jail.md 2.2 and 2.3" }
}

const LOCKED: Control =
    Impossible("mounts that came from the host are locked together in a bare namespace, too");

#[test]
fn nothing_can_be_mounted() {
    check(&[
        row("mount tmpfs /tmp", "EPERM", Bare),
        row("mount proc /tmp", "EPERM", Bare),
        row("mount mqueue /tmp", "EPERM", Bare),
        row("mount overlay /tmp", "EPERM", Impossible("needs layers; see `mount tmpfs`")),
        row("mount ext4 /tmp /dev/loop0", "EPERM", Impossible("would mount a disk")),
        row("bind / /tmp", "EPERM", Bare),
        row("bind /proc/self/fd /tmp", "EPERM", Bare),
        row("fsopen tmpfs", "EPERM", Bare),
        row("fsopen proc", "EPERM", Bare),
        row("open-tree /usr", "EPERM", Bare),
        row("move-mount /proc /tmp", "EPERM", LOCKED),
        row("syscall 430 0 0", "EPERM", Impossible("fsopen without a name; see `fsopen tmpfs`")),
        row("syscall 433 -100 0 0", "EPERM", Impossible("fspick without a path")),
    ]);
}

#[test]
fn the_tree_of_the_jail_cannot_be_taken_apart() {
    check(&[
        row("umount /proc", "EPERM", LOCKED),
        row("umount /tmp", "EPERM", LOCKED),
        row("umount /workspace", "EPERM", LOCKED),
        row("umount /", "EPERM", LOCKED),
        row("remount /", "EPERM", Bare),
        row("remount /usr", "EPERM", LOCKED),
        row("mount-setattr /", "EPERM", Bare),
        row("mount-setattr /usr", "EPERM", LOCKED),
        row("pivot-root /tmp", "EPERM", LOCKED),
        row("chroot /tmp", "EPERM", Bare),
    ]);
}

#[test]
fn no_namespace_can_be_made_or_joined() {
    check(&[
        row("unshare user", "EPERM", Host),
        row("unshare user+mount", "EPERM", Host),
        row("unshare user+net", "EPERM", Host),
        row("unshare mount", "EPERM", Bare),
        row("unshare net", "EPERM", Bare),
        row("unshare pid", "EPERM", Bare),
        row("unshare ipc", "EPERM", Bare),
        row("unshare uts", "EPERM", Bare),
        row("unshare cgroup", "EPERM", Bare),
        row("unshare time", "EPERM", Bare),
        row("clone user", "EPERM", Host),
        // The kernel looks at the low half of the flags only; a filter must do the same.
        row("clone user 1", "EPERM", Host),
        row("clone user+net", "EPERM", Host),
        row("clone mount", "EPERM", Bare),
        row("clone3 user", "ENOSYS", Host),
        row("clone3 user+mount", "ENOSYS", Host),
        row("setns /proc/self/ns/mnt", "EPERM", Bare),
        row("setns /proc/self/ns/net", "EPERM", Bare),
        row("setns /proc/self/ns/user", "EPERM", Impossible("a process is in its own already")),
    ]);
}

#[test]
fn the_cgroup_tree_is_out_of_reach() {
    // CVE-2022-0492 (release_agent), CVE-2023-25809 (cgroupfs writable).
    check(&[
        row("cgroupfs /tmp", "EPERM", Bare),
        row("release-agent /tmp", "EPERM", Impossible("the control would change the host")),
        row("create /sys/fs/cgroup/e2e", "ENOENT|EACCES|EROFS", Impossible("host change")),
        row("mkdir /sys/fs/cgroup/memory/e2e", "ENOENT|EACCES|EROFS", Impossible("host change")),
        row("mkdir /sys/fs/cgroup/unified/e2e", "ENOENT|EACCES|EROFS", Impossible("host change")),
    ]);
}
