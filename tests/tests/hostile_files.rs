//! Host files: by path, by alias, by link, by handle, by descriptor; and what must not be written.
//! INV-4, INV-7; `jail.md` §2.1 (leaked descriptors, /proc aliases), §2.5 (/proc/self/root).

use e2e::bait::{Bait, SECRET};
use e2e::hostile::Control::{Host, HostRoot, HostRootIfThere, Impossible};
use e2e::hostile::{Row, check};
use e2e::policy::PolicyFile;
use e2e::{Exec, Level, Need, require};

const fn row(act: &'static str, want: &'static str, control: e2e::hostile::Control) -> Row {
    Row { act, want, control, cites: "INV-7, jail.md 2.1 and 2.5" }
}

const NOT_THERE: &str = "ENOENT|EACCES|EPERM";
const NOT_TOLD: &str = "ENOENT|EACCES|EPERM|ENODATA";
const NOT_WRITABLE: &str = "EROFS|EACCES|EPERM|ENOENT";

#[test]
fn files_of_the_host_are_not_there_to_be_read() {
    check(&[
        row("read /etc/shadow", NOT_THERE, HostRoot),
        row("read /etc/gshadow", NOT_THERE, HostRoot),
        row("read {root-secret}", NOT_THERE, HostRoot),
        row("read {secret}", NOT_THERE, Host),
        row("open {secret} path", NOT_THERE, Host),
        row("open /boot r", NOT_THERE, HostRootIfThere),
        row("open /var/log r", NOT_THERE, HostRootIfThere),
        row("open /var/lib/dpkg r", NOT_THERE, HostRootIfThere),
        row("open /run/lock r", NOT_THERE, HostRootIfThere),
        row("open /sys/kernel r", NOT_THERE, Host),
        row("open /sys/fs/cgroup r", NOT_THERE, Host),
    ]);
}

#[test]
fn aliases_in_proc_lead_to_no_file_of_the_host() {
    check(&[
        row("read /proc/self/root{secret}", NOT_THERE, Host),
        row("read /proc/thread-self/root{secret}", NOT_THERE, Host),
        row("read /proc/self/cwd/../../../../../../..{secret}", NOT_THERE, Host),
        row("procs root {secret}", NOT_THERE, Host),
        row("procs cwd /secret", NOT_THERE, Impossible("the victim's directory is not the bait's")),
        row("procs fd/0", NOT_THERE, Host),
        row("procs environ", NOT_THERE, Host),
        row("procs maps", NOT_THERE, Host),
        row("read /proc/{pid}/environ", NOT_THERE, Host),
        row("read /proc/1/root/etc/hostname", NOT_THERE, Impossible("see `procs root`")),
        row("read /proc/1/environ", NOT_THERE, Impossible("see `procs environ`")),
        row("open /proc/1/cwd r", NOT_THERE, Impossible("see `procs root`")),
        row("open /proc/1/fd r", NOT_THERE, Impossible("see `procs fd/0`")),
    ]);
}

#[test]
fn the_kernel_tells_a_payload_nothing_about_the_host() {
    check(&[
        row("read /proc/kcore", NOT_TOLD, HostRootIfThere),
        row("read /proc/keys", NOT_TOLD, HostRootIfThere),
        row("read /proc/cmdline", NOT_TOLD, HostRoot),
        row("read /proc/interrupts", NOT_TOLD, HostRootIfThere),
        row("read /proc/iomem", NOT_TOLD, HostRootIfThere),
        row("read /proc/timer_list", NOT_TOLD, HostRootIfThere),
        row("read /proc/sched_debug", NOT_TOLD, HostRootIfThere),
        row("read /proc/kmsg", NOT_TOLD, HostRootIfThere),
        row("read /proc/slabinfo", NOT_TOLD, HostRootIfThere),
        row("read /proc/vmallocinfo", NOT_TOLD, HostRootIfThere),
        row("read /proc/kpagecount", NOT_TOLD, HostRootIfThere),
        row("read /proc/partitions", NOT_TOLD, HostRootIfThere),
        row("read /proc/bus/pci/devices", NOT_TOLD, HostRootIfThere),
        row("read /proc/acpi/wakeup", NOT_TOLD, HostRootIfThere),
        row("read /proc/scsi/scsi", NOT_TOLD, HostRootIfThere),
        row("symbols", NOT_TOLD, HostRootIfThere),
    ]);
}

#[test]
fn a_handle_opens_no_file_behind_a_mount() {
    // CVE-2014-3519 class ("shocker"): the root of the host's file system by its inode number.
    let cases = ["handle /usr", "handle /workspace", "handle /etc"];
    check(&cases.map(|act| {
        let control = if act == "handle /usr" {
            HostRoot
        } else {
            Impossible("see `handle /usr`; the directory exists in a jail only")
        };
        row(act, "EPERM", control)
    }));
}

#[test]
fn nothing_of_the_system_can_be_opened_for_writing() {
    check(&[
        row("open /usr/bin/yes w", NOT_WRITABLE, HostRoot),
        row("open /bin/true rw", NOT_WRITABLE, HostRoot),
        row("open /etc/passwd rw", NOT_WRITABLE, HostRoot),
        row("open /etc/hosts w", NOT_WRITABLE, HostRoot),
        row("chmod /usr/bin/yes 777", NOT_WRITABLE, Impossible("would change the host")),
        row("truncate /usr/bin/yes", NOT_WRITABLE, Impossible("would change the host")),
        row("rename /usr/bin/yes /usr/bin/no", NOT_WRITABLE, Impossible("would change the host")),
        row("unlink /etc/passwd", NOT_WRITABLE, Impossible("would change the host")),
        row("create /usr/lib/e2e-escaped", NOT_WRITABLE, Impossible("would litter the host")),
        row("create /etc/e2e-escaped", NOT_WRITABLE, Impossible("would litter the host")),
        row("create /e2e-escaped", NOT_WRITABLE, Impossible("would litter the host")),
        row("mkdir /run/../e2e-escaped", NOT_WRITABLE, Impossible("would litter the host")),
        row("create /mnt/e2e-escaped", NOT_WRITABLE, Impossible("would litter the host")),
        row("create {dir}/escaped", "ENOENT|EACCES|EROFS", Host),
        row("xattr /usr/bin/yes user.e2e 1", "EROFS|EACCES|EPERM", Impossible("host change")),
        // CVE-2019-5736: the program behind init is the worker's own.
        row("exe 1 1", "EACCES|EPERM|ENOENT|ETXTBSY|EROFS", Impossible("host change")),
    ]);
    for place in ["/usr/lib", "/etc", "", "/mnt"] {
        let path = format!("{place}/e2e-escaped");
        assert!(!std::path::Path::new(&path).exists(), "{path} was made on the host");
    }
}

#[test]
fn kernel_settings_cannot_be_opened_for_writing() {
    check(&[
        row("open /proc/sys/kernel/core_pattern w", NOT_WRITABLE, HostRoot),
        row("open /proc/sys/kernel/modprobe w", NOT_WRITABLE, HostRootIfThere),
        row("open /proc/sys/kernel/hostname w", NOT_WRITABLE, HostRoot),
        row("open /proc/sys/kernel/panic w", NOT_WRITABLE, HostRoot),
        row("open /proc/sys/vm/drop_caches w", NOT_WRITABLE, HostRootIfThere),
        row("open /proc/sys/vm/overcommit_memory w", NOT_WRITABLE, HostRoot),
        row("open /proc/sys/net/ipv4/ip_forward w", NOT_WRITABLE, HostRootIfThere),
        row("open /proc/sys/user/max_user_namespaces w", NOT_WRITABLE, HostRootIfThere),
        row("open /proc/sys/fs/binfmt_misc/register w", NOT_WRITABLE, HostRootIfThere),
        row("open /proc/sysrq-trigger w", NOT_WRITABLE, HostRootIfThere),
        row("open /proc/irq/default_smp_affinity w", NOT_WRITABLE, HostRootIfThere),
        row("write /proc/self/uid_map 0", NOT_WRITABLE, Impossible("a map is written once")),
        row("write /proc/1/oom_score_adj 0", NOT_WRITABLE, Impossible("see `oom-shield`")),
    ]);
}

#[test]
fn no_mark_can_be_set_on_a_file_that_would_count_outside() {
    let on_disk = "the control needs a disk file system; see the test of a bound workspace";
    check(&[
        row("create-suid made", "EPERM", Host),
        row("mkdir-setgid made-dir", "EPERM", Host),
        row("whiteout w", "EINVAL|EPERM", Host),
        row("setflags fixed", "EPERM|ENOTTY", HostRoot),
        row("filecap fixed", "EPERM|ENOTSUP|EOPNOTSUPP|ENOENT", Impossible(on_disk)),
        row("chown . 0 0", "EPERM|EINVAL", HostRoot),
        row("xattr . trusted.overlay.opaque y", "EPERM|ENOTSUP", HostRoot),
        row("xattr . security.e2e 1", "EPERM|ENOTSUP", HostRoot),
        row("syscall 437 -100 0 0 24", "ENOSYS", Impossible("openat2 without a path")),
    ]);
}

#[test]
fn links_made_in_a_jail_lead_nowhere() {
    let script = |bait: &Bait| {
        bait.fill(
            "ln -s {secret} s && cat s; ln -s /proc/self/root{secret} p && cat p; \
             ln {secret} h; ln /usr/bin/yes y && echo linked; ln /etc/passwd e && echo linked; \
             ln -s / root && cat root{secret}; \
             ln -s {dir} d; echo x >d/escaped; echo x >>s; true",
        )
    };
    for level in Level::here() {
        let mut bait = Bait::plant(level);
        let jailed = Exec::at(level).bash(&script(&bait));
        assert!(jailed.ok(), "{}", jailed.text());
        assert!(!jailed.stdout.contains(SECRET), "INV-7 {level:?}: {}", jailed.text());
        assert!(!jailed.stdout.contains("linked"), "hard link {level:?}: {}", jailed.text());
        assert_eq!(bait.touched(), [""; 0], "{level:?}: {}", jailed.text());

        let other = Bait::plant(level);
        let mut line = level.prefix();
        line.extend(["bash".to_owned(), "-c".to_owned(), script(&other)]);
        let here = e2e::exec::directory_of(level);
        let control = std::process::Command::new(&line[0])
            .args(&line[1..])
            .current_dir(here.path())
            .output()
            .expect("cannot run the control");
        let read = String::from_utf8_lossy(&control.stdout).matches(SECRET).count();
        assert!(read >= 3, "control: only {read} links led to the secret");
    }
}

#[test]
fn open_descriptors_of_the_caller_do_not_reach_the_payload() {
    // CVE-2024-21626, CVE-2016-9962 classes: a directory and a file left open by the caller.
    let leak = "exec 7<{secret} 8<{dir} 9<>{secret} 55<{secret}; exec \"$@\"";
    for level in Level::here() {
        let bait = Bait::plant(level);
        let wrapper = ["bash", "-c", &bait.fill(leak), "leak"];
        let jailed = Exec::at(level).wrapped_in(&wrapper).probe(&["fds"]);
        assert_eq!(jailed.stdout.trim(), "errno EBADF", "{level:?}: {}", jailed.text());

        let listed = Exec::at(level).wrapped_in(&wrapper).bash("ls -l /proc/self/fd; cat <&7");
        assert!(!listed.stdout.contains(SECRET), "{level:?}: {}", listed.text());

        let mut line = wrapper.map(str::to_owned).to_vec();
        line.extend([e2e::locate::probe().display().to_string(), "fds".to_owned()]);
        let control = std::process::Command::new(&line[0]).args(&line[1..]).output();
        let control = control.expect("cannot run the control");
        assert!(String::from_utf8_lossy(&control.stdout).contains("55="), "control leaks nothing");
    }
}

#[test]
fn landlock_alone_keeps_writes_inside_the_writable_directories() {
    // Second layer for the same acts: it must not be the only one, and it must be there.
    require!(Need::Root);
    for off in ["seccomp", "landlock", "capabilities"] {
        let policy = PolicyFile::without(&[off]);
        for level in Level::here() {
            let bait = Bait::plant(level);
            let acts = ["open /usr/bin/yes w", "open /etc/passwd rw", "read {secret}"]
                .map(|a| bait.fill(a));
            let outcome = Exec::at(level).policy(policy.path()).probe(&e2e::hostile::each(&acts));
            for act in &acts {
                let got = outcome.of(act).unwrap_or("nothing");
                assert!(got.starts_with("errno"), "INV-4, {off} off: `{act}` gave `{got}`");
            }
        }
    }
}
