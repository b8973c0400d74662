//! What the filter answers, call by call, asked of a BPF machine instead of a kernel.

use crate::bpf::{
    AUDIT_AARCH64, AUDIT_ARM, AUDIT_I386, AUDIT_X86_64, Machine, Verdict, calls, every_group,
    number,
};
use stockade_runtime::jail::seccomp::{Arch, Program, SeccompError, compile, compile_for, digest};
use stockade_runtime::policy::syscalls::{Call, Condition, Refusal, Test, Width, catalogue};

const ALLOW: Verdict = Verdict::Allow;
const KILL: Verdict = Verdict::KillProcess;
const EPERM: Verdict = Verdict::Errno(1);
const EINVAL: Verdict = Verdict::Errno(22);
const ENOSYS: Verdict = Verdict::Errno(38);
const EAFNOSUPPORT: Verdict = Verdict::Errno(97);

/// What a program may leave in the half of a register that the kernel does not look at.
const GARBAGE: u64 = 0xdead_beef_0000_0000;

fn audit(arch: Arch) -> u32 {
    match arch {
        Arch::X86_64 => AUDIT_X86_64,
        Arch::Aarch64 => AUDIT_AARCH64,
    }
}

fn full(arch: Arch) -> Program {
    compile_for(arch, &every_group()).expect("the catalogue compiles")
}

fn padded(args: &[u64], fill: u64) -> [u64; 6] {
    let mut all = [fill; 6];
    all[..args.len()].copy_from_slice(args);
    all
}

/// Every case twice: as written, and with garbage in the upper half of every argument.
fn check(arch: Arch, cases: &[(&str, &[u64], Verdict)]) {
    let filter = Machine::new(&full(arch));
    for (name, args, want) in cases {
        let call = number(arch, name);
        let plain = padded(args, 0);
        let got = filter.ask(audit(arch), call, plain);
        assert_eq!(got, *want, "{name}{args:#x?} on {arch:?}");
        let got = filter.ask(audit(arch), call, plain.map(|arg| arg | GARBAGE));
        assert_eq!(got, *want, "{name}{args:#x?} with garbage above bit 31 on {arch:?}");
    }
}

#[test]
fn verdicts_on_everyday_calls() {
    #[rustfmt::skip]
    let cases: &[(&str, &[u64], Verdict)] = &[
        ("read", &[], ALLOW), ("execve", &[], ALLOW), ("exit_group", &[], ALLOW), ("rseq", &[], ALLOW),
        ("close_range", &[], ALLOW), ("copy_file_range", &[], ALLOW), ("splice", &[], ALLOW),
        ("memfd_create", &[], ALLOW), ("mseal", &[], ALLOW), ("map_shadow_stack", &[], ALLOW),
        ("futex_waitv", &[], ALLOW), ("membarrier", &[], ALLOW), ("epoll_pwait2", &[], ALLOW),
        ("pidfd_open", &[], ALLOW), ("waitid", &[], ALLOW), ("ptrace", &[0], ALLOW),
        ("seccomp", &[1], ALLOW), ("landlock_restrict_self", &[], ALLOW), ("mbind", &[], ALLOW),
        ("sched_setaffinity", &[], ALLOW), ("inotify_add_watch", &[], ALLOW), ("setuid", &[0], ALLOW),
    ];
    check(Arch::X86_64, cases);
}

/// INV-6: the first process of a session's tools has the id of bash, and nothing there may weaken it.
#[test]
fn verdicts_on_limits_and_priority_of_others() {
    #[rustfmt::skip]
    let cases: &[(&str, &[u64], Verdict)] = &[
        ("prlimit64", &[0, 7], ALLOW), ("prlimit64", &[2, 7], ALLOW), ("prlimit64", &[1, 7], EPERM),
        ("sched_setaffinity", &[0], ALLOW), ("sched_setaffinity", &[1], EPERM),
        ("sched_setattr", &[7], ALLOW), ("sched_setattr", &[1], EPERM),
        ("sched_setparam", &[7], ALLOW), ("sched_setparam", &[1], EPERM),
        ("sched_setscheduler", &[7], ALLOW), ("sched_setscheduler", &[1], EPERM),
        ("setpriority", &[0, 0], ALLOW), ("setpriority", &[0, 1], EPERM), ("setpriority", &[1, 0], ALLOW),
        ("setpriority", &[1, 1], EPERM), ("setpriority", &[2, 0], EPERM),
        ("ioprio_set", &[1, 0], ALLOW), ("ioprio_set", &[1, 1], EPERM), ("ioprio_set", &[2, 1], EPERM),
        ("ioprio_set", &[3, 0], EPERM),
    ];
    check(Arch::X86_64, cases);
    check(Arch::Aarch64, cases);
}

/// Setuid and setgid bits are refused, but only where a mode counts.
#[test]
fn verdicts_on_modes_and_devices() {
    const CREATE: u64 = 0o101; // O_CREAT | O_WRONLY
    #[rustfmt::skip]
    let cases: &[(&str, &[u64], Verdict)] = &[
        ("open", &[0, 0, 0o6777], ALLOW),
        ("open", &[0, CREATE, 0o644], ALLOW),
        ("open", &[0, CREATE, 0o4755], EPERM),
        ("open", &[0, CREATE, 0o2755], EPERM),
        ("openat", &[0, 0, 0o2, 0xffff_ffff], ALLOW),
        ("openat", &[0, 0, 0o200000, 0o6000], ALLOW),          // O_DIRECTORY, half of O_TMPFILE
        ("openat", &[0, 0, CREATE, 0o1777], ALLOW),
        ("openat", &[0, 0, CREATE, 0o4600], EPERM),
        ("openat", &[0, 0, 0o20200002, 0o4600], EPERM),        // O_TMPFILE | O_RDWR
        ("openat", &[0, 0, 0o20200002, 0o600], ALLOW),
        ("creat", &[0, 0o644], ALLOW), ("creat", &[0, 0o4644], EPERM),
        ("mkdir", &[0, 0o1777], ALLOW), ("mkdir", &[0, 0o2777], EPERM),
        ("mkdirat", &[0, 0, 0o755], ALLOW), ("mkdirat", &[0, 0, 0o4755], EPERM),
        ("chmod", &[0, 0o1777], ALLOW), ("chmod", &[0, 0o4755], EPERM),
        ("fchmod", &[0, 0o755], ALLOW), ("fchmod", &[0, 0o2755], EPERM),
        ("fchmodat", &[0, 0, 0o755], ALLOW), ("fchmodat", &[0, 0, 0o6755], EPERM),
        ("fchmodat2", &[0, 0, 0o755, 0x100], ALLOW), ("fchmodat2", &[0, 0, 0o4755, 0x100], EPERM),
        ("mknod", &[0, 0o644], ALLOW), ("mknod", &[0, 0o100644], ALLOW),
        ("mknod", &[0, 0o010644], ALLOW), ("mknod", &[0, 0o140644], ALLOW),
        ("mknod", &[0, 0o020644], EPERM), ("mknod", &[0, 0o060644], EPERM),
        ("mknod", &[0, 0o104755], EPERM), ("mknod", &[0, 0o012644], EPERM),
        ("mknodat", &[0, 0, 0o010600], ALLOW), ("mknodat", &[0, 0, 0o020000, 0], EPERM),
        ("renameat2", &[0, 0, 0, 0, 3], ALLOW), ("renameat2", &[0, 0, 0, 0, 4], EINVAL),
        ("openat2", &[], ENOSYS), ("file_setattr", &[], EPERM), ("file_getattr", &[], ALLOW),
        ("open_by_handle_at", &[], EPERM), ("name_to_handle_at", &[], EPERM),
    ];
    check(Arch::X86_64, cases);
}

#[test]
fn verdicts_on_processes_and_namespaces() {
    #[rustfmt::skip]
    let cases: &[(&str, &[u64], Verdict)] = &[
        ("clone", &[0x1200011], ALLOW),                         // fork as glibc makes it
        ("clone", &[0x3d0f00], ALLOW),                          // a thread
        ("clone", &[0x20011], EPERM), ("clone", &[0x2000011], EPERM), ("clone", &[0x4000011], EPERM),
        ("clone", &[0x8000011], EPERM), ("clone", &[0x10000011], EPERM),
        ("clone", &[0x20000011], EPERM), ("clone", &[0x40000011], EPERM), ("clone", &[0x91], EPERM),
        ("clone3", &[], ENOSYS), ("setns", &[], EPERM), ("fork", &[], ALLOW), ("vfork", &[], ALLOW),
        ("unshare", &[0], ALLOW), ("unshare", &[0x600], ALLOW), ("unshare", &[0x80], EPERM),
        ("unshare", &[0x10000000], EPERM), ("unshare", &[0x10000200], EPERM),
        ("unshare", &[0x100000], EPERM),                        // a flag we do not know
    ];
    check(Arch::X86_64, cases);
}

#[test]
fn verdicts_on_sockets() {
    #[rustfmt::skip]
    let cases: &[(&str, &[u64], Verdict)] = &[
        ("socket", &[1, 1, 0], ALLOW), ("socket", &[1, 2 | 0x80800, 0], ALLOW), ("socket", &[1, 5, 0], ALLOW),
        ("socket", &[1, 3, 0], EAFNOSUPPORT),
        ("socket", &[2, 1, 0], ALLOW), ("socket", &[2, 1, 6], ALLOW), ("socket", &[10, 0x80801, 6], ALLOW),
        ("socket", &[2, 1, 262], EAFNOSUPPORT),                 // MPTCP
        ("socket", &[2, 1, 132], EAFNOSUPPORT), ("socket", &[2, 5, 132], EAFNOSUPPORT), // SCTP
        ("socket", &[2, 2, 0], ALLOW), ("socket", &[10, 2, 17], ALLOW),
        ("socket", &[2, 2, 1], EAFNOSUPPORT), ("socket", &[10, 2, 58], EAFNOSUPPORT),   // ping
        ("socket", &[2, 2, 136], EAFNOSUPPORT), ("socket", &[2, 1, 17], EAFNOSUPPORT),
        ("socket", &[2, 3, 255], EAFNOSUPPORT), ("socket", &[2, 3, 0], EAFNOSUPPORT),   // raw
        ("socket", &[16, 3, 0], ALLOW), ("socket", &[16, 0x80002, 0], ALLOW),
        ("socket", &[16, 1, 0], EAFNOSUPPORT), ("socket", &[16, 3, 6], EAFNOSUPPORT),   // XFRM
        ("socket", &[16, 3, 12], EAFNOSUPPORT), ("socket", &[16, 3, 15], EAFNOSUPPORT), // netfilter, uevent
        ("socket", &[17, 3, 0x300], EAFNOSUPPORT), ("socket", &[38, 5, 0], EAFNOSUPPORT), // packet, alg
        ("socket", &[40, 1, 0], EAFNOSUPPORT), ("socket", &[15, 3, 2], EAFNOSUPPORT),   // vsock, key
        ("socket", &[33, 2, 2], EAFNOSUPPORT), ("socket", &[43, 1, 0], EAFNOSUPPORT),   // rxrpc, smc
        ("socket", &[0, 1, 0], EAFNOSUPPORT), ("socket", &[3, 1, 0], EAFNOSUPPORT),
        ("socketpair", &[1, 1, 0], ALLOW), ("socketpair", &[30, 1, 0], EAFNOSUPPORT),   // TIPC
        ("setsockopt", &[0, 6, 1], ALLOW), ("setsockopt", &[0, 1, 31], ALLOW), ("setsockopt", &[0, 6, 31], EPERM),
        ("sendto", &[0, 0, 0, 0x4000], ALLOW), ("sendto", &[0, 0, 0, 0x2000_4000], EPERM),
        ("sendmsg", &[0, 0, 0x4000], ALLOW), ("sendmsg", &[0, 0, 0x2000_0000], EPERM),
        ("sendmmsg", &[0, 0, 0, 0], ALLOW), ("sendmmsg", &[0, 0, 0, 0x2000_0000], EPERM),
    ];
    check(Arch::X86_64, cases);
}

#[test]
fn verdicts_on_controls() {
    #[rustfmt::skip]
    let cases: &[(&str, &[u64], Verdict)] = &[
        ("ioctl", &[0, 0x5401], ALLOW), ("ioctl", &[0, 0x5413], ALLOW), ("ioctl", &[0, 0x541b], ALLOW),
        ("ioctl", &[0, 0x80045430], ALLOW), ("ioctl", &[0, 0x40049409], ALLOW),         // TIOCGPTN, FICLONE
        ("ioctl", &[0, 0x5412], EPERM), ("ioctl", &[0, 0x541c], EPERM), ("ioctl", &[0, 0x5423], EPERM),
        ("ioctl", &[0, 0x541d], EPERM), ("ioctl", &[0, 0x541f], EPERM), ("ioctl", &[0, 0x40086602], EPERM),
        ("ioctl", &[0, 0x401c5820], EPERM), ("ioctl", &[0, 0xc0045877], EPERM),
        ("prctl", &[15], ALLOW), ("prctl", &[4, 1], ALLOW), ("prctl", &[22, 2], ALLOW), ("prctl", &[38, 1], ALLOW),
        ("prctl", &[0x59616d61], ALLOW), ("prctl", &[0x53564d41], ALLOW), ("prctl", &[23, 5], ALLOW),
        ("prctl", &[47, 1, 3], ALLOW), ("prctl", &[47, 4], ALLOW), ("prctl", &[47, 2, 3], EINVAL), ("prctl", &[47, 3, 3], EINVAL),
        ("prctl", &[35, 1], EINVAL), ("prctl", &[62, 1], EINVAL), ("prctl", &[28, 0], EINVAL), ("prctl", &[24, 0], EINVAL),
        ("prctl", &[67, 1], EINVAL), ("prctl", &[0], EINVAL), ("prctl", &[57, 1], EINVAL), ("prctl", &[999], EINVAL),
        ("personality", &[0xffff_ffff], ALLOW), ("personality", &[0], ALLOW), ("personality", &[0x40000], ALLOW),
        ("personality", &[0x400000], EPERM), ("personality", &[8], EPERM), ("personality", &[0x440000], EPERM),
        ("move_pages", &[0], ALLOW), ("move_pages", &[1], EPERM),
    ];
    check(Arch::X86_64, cases);
}

#[test]
fn verdicts_on_calls_never_allowed() {
    #[rustfmt::skip]
    let cases: &[(&str, &[u64], Verdict)] = &[
        ("mount", &[], EPERM), ("umount2", &[], EPERM), ("pivot_root", &[], EPERM), ("chroot", &[], EPERM),
        ("fsopen", &[], EPERM), ("fsconfig", &[], EPERM), ("fsmount", &[], EPERM), ("move_mount", &[], EPERM),
        ("open_tree", &[], EPERM), ("mount_setattr", &[], EPERM), ("swapon", &[], EPERM), ("bpf", &[], EPERM),
        ("perf_event_open", &[], EPERM), ("kexec_load", &[], EPERM), ("init_module", &[], EPERM),
        ("reboot", &[], EPERM), ("clock_settime", &[], EPERM), ("settimeofday", &[], EPERM), ("adjtimex", &[], EPERM),
        ("quotactl_fd", &[], EPERM), ("userfaultfd", &[], EPERM), ("fanotify_init", &[], EPERM),
        ("process_vm_writev", &[], EPERM), ("pidfd_getfd", &[], EPERM), ("kcmp", &[], EPERM),
        ("process_madvise", &[], EPERM), ("modify_ldt", &[], EPERM), ("iopl", &[], EPERM), ("syslog", &[], EPERM),
        ("acct", &[], EPERM), ("vhangup", &[], EPERM), ("sethostname", &[], EPERM), ("lookup_dcookie", &[], EPERM),
        ("keyctl", &[], ENOSYS), ("add_key", &[], ENOSYS), ("request_key", &[], ENOSYS),
        ("io_uring_setup", &[], ENOSYS), ("io_uring_enter", &[], ENOSYS), ("io_uring_register", &[], ENOSYS),
        ("statmount", &[], ENOSYS), ("listmount", &[], ENOSYS), ("vmsplice", &[], ENOSYS), ("memfd_secret", &[], ENOSYS),
    ];
    check(Arch::X86_64, cases);
}

#[test]
fn verdicts_on_aarch64() {
    #[rustfmt::skip]
    let cases: &[(&str, &[u64], Verdict)] = &[
        ("read", &[], ALLOW), ("execve", &[], ALLOW), ("futex", &[], ALLOW), ("ptrace", &[], ALLOW),
        ("openat", &[0, 0, 0, 0o6777], ALLOW), ("openat", &[0, 0, 0o100, 0o644], ALLOW),
        ("openat", &[0, 0, 0o100, 0o4755], EPERM), ("openat", &[0, 0, 0o20040002, 0o2755], EPERM),
        ("fchmodat", &[0, 0, 0o755], ALLOW), ("fchmodat", &[0, 0, 0o4755], EPERM),
        ("mknodat", &[0, 0, 0o010644], ALLOW), ("mknodat", &[0, 0, 0o020644], EPERM),
        ("clone", &[0x1200011], ALLOW), ("clone", &[0x10000011], EPERM), ("clone3", &[], ENOSYS),
        ("unshare", &[0x200], ALLOW), ("unshare", &[0x20000], EPERM), ("setns", &[], EPERM),
        ("socket", &[1, 1, 0], ALLOW), ("socket", &[2, 1, 6], ALLOW), ("socket", &[2, 1, 262], EAFNOSUPPORT),
        ("socket", &[16, 3, 0], ALLOW), ("socket", &[16, 3, 6], EAFNOSUPPORT), ("socket", &[38, 5, 0], EAFNOSUPPORT),
        ("socketpair", &[1, 1], ALLOW), ("ioctl", &[0, 0x5401], ALLOW), ("ioctl", &[0, 0x5412], EPERM),
        ("prctl", &[50], ALLOW), ("prctl", &[54], ALLOW), ("prctl", &[35], EINVAL),
        ("personality", &[0x40000], ALLOW), ("personality", &[8], EPERM),
        ("mount", &[], EPERM), ("bpf", &[], EPERM), ("userfaultfd", &[], EPERM), ("keyctl", &[], ENOSYS),
        ("io_uring_setup", &[], ENOSYS), ("openat2", &[], ENOSYS), ("process_vm_readv", &[], EPERM),
    ];
    check(Arch::Aarch64, cases);
}

#[test]
fn foreign_architectures_and_x32_are_killed() {
    #[rustfmt::skip]
    let cases = [
        (Arch::X86_64, AUDIT_I386, 1, KILL), (Arch::X86_64, AUDIT_AARCH64, 0, KILL), (Arch::X86_64, 0, 0, KILL),
        (Arch::X86_64, AUDIT_X86_64, 0x4000_0000, KILL), (Arch::X86_64, AUDIT_X86_64, 0x4000_0208, KILL),
        (Arch::X86_64, AUDIT_X86_64, 0xc000_0000, KILL), (Arch::X86_64, AUDIT_X86_64, 0xffff_fffe, KILL),
        (Arch::X86_64, AUDIT_X86_64, 0xffff_ffff, ENOSYS), // -1: a tracer skips the call
        (Arch::X86_64, AUDIT_X86_64, 0x3fff_ffff, ENOSYS),
        (Arch::Aarch64, AUDIT_ARM, 1, KILL), (Arch::Aarch64, AUDIT_X86_64, 63, KILL),
        (Arch::Aarch64, AUDIT_AARCH64, 0x4000_0000, ENOSYS), (Arch::Aarch64, AUDIT_AARCH64, u32::MAX, ENOSYS),
    ];
    for (arch, audit, number, want) in cases {
        let got = Machine::new(&full(arch)).ask(audit, number, [0; 6]);
        assert_eq!(got, want, "number {number:#x} of {audit:#x} on {arch:?}");
        let none: [&str; 0] = [];
        let got = Machine::new(&compile_for(arch, &none).unwrap()).ask(audit, number, [0; 6]);
        assert_eq!(got, want, "number {number:#x} of {audit:#x} on {arch:?}, no groups");
    }
}

/// Says of every number what the tables say of it, by reading them in the plainest way.
#[test]
fn filter_agrees_with_the_tables_for_every_number() {
    const SAMPLES: [u64; 12] =
        [0, 1, 2, 3, 6, 16, 31, 0o100, 0o4755, 0x5412, 0x1000_0000, 0xffff_ffff];
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let groups = every_group();
        for chosen in [&groups[..], &groups[..1], &groups[3..9], &[]] {
            let filter = Machine::new(&compile_for(arch, chosen).unwrap());
            for number in 0..1100 {
                let want_of = expected(arch, chosen, number);
                for (a, b) in SAMPLES.iter().flat_map(|a| SAMPLES.map(|b| (*a, b))) {
                    for args in [[a, b, a, b, a, b], [b, a, a, a, b, a], [b, b, b, a, a, a]] {
                        let want = want_of(args);
                        let got = filter.ask(audit(arch), number, args);
                        assert_eq!(got, want, "{number}{args:#x?} on {arch:?} with {chosen:?}");
                    }
                }
            }
        }
    }
}

fn expected(arch: Arch, chosen: &[&str], number: u32) -> impl Fn([u64; 6]) -> Verdict {
    let refuse = |refusal: Refusal| Verdict::Errno(refusal.errno());
    let is = |call: &&Call| {
        let own = if arch == Arch::X86_64 { call.x86_64 } else { call.aarch64 };
        own.map(u32::from) == Some(number)
    };
    let denial = catalogue().denials.iter().find(|denial| denial.calls.iter().any(|c| is(&c)));
    let mut groups = catalogue().groups.iter().filter(|group| chosen.contains(&group.name));
    let call = groups.find_map(|group| group.calls.iter().find(is));
    move |args| match (denial, call) {
        (Some(denial), _) => refuse(denial.refusal),
        (None, None) => ENOSYS,
        (None, Some(Call { rule: None, .. })) => ALLOW,
        (None, Some(Call { rule: Some(rule), .. })) => {
            let allowed = rule.allow.iter().any(|entry| entry.iter().all(|c| holds(c, args)));
            if allowed { ALLOW } else { refuse(rule.otherwise) }
        }
    }
}

fn holds(condition: &Condition, args: [u64; 6]) -> bool {
    let part = match condition.width {
        Width::Bits32 => u64::from(u32::MAX),
        Width::Bits64 => u64::MAX,
    };
    let arg = args[usize::from(condition.arg)] & part;
    match condition.test {
        Test::Equal(value) => arg == value,
        Test::NotEqual(value) => arg != value,
        Test::Masked { mask, value } => arg & mask == value,
    }
}

/// The rules with lists, said once more in Rust and compared over the whole range that counts.
#[test]
fn rules_with_lists_hold_for_every_value() {
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let filter = Machine::new(&full(arch));
        let ask = |name, args: &[u64]| {
            filter.ask(audit(arch), number(arch, name), padded(args, 0)) == ALLOW
        };
        for (family, kind, protocol) in
            (0..50).flat_map(|f| (0..16).flat_map(move |t| (0..300).map(move |p| (f, t, p))))
        {
            let want = match (family, kind) {
                (1, 1 | 2 | 5) => true,
                (2 | 10, 1) => matches!(protocol, 0 | 6),
                (2 | 10, 2) => matches!(protocol, 0 | 17),
                (16, 2 | 3) => protocol == 0,
                _ => false,
            };
            assert_eq!(
                ask("socket", &[family, kind, protocol]),
                want,
                "{family} {kind} {protocol}"
            );
        }
        for mode in 0..=0xffff {
            let kind = matches!(mode & 0o170000, 0 | 0o010000 | 0o100000 | 0o140000);
            let want = kind && mode & 0o6000 == 0;
            assert_eq!(ask("mknodat", &[0, 0, mode]), want, "mknodat with {mode:o}");
        }
        #[rustfmt::skip]
        let options = [
            1, 2, 3, 4, 7, 8, 15, 16, 21, 22, 23, 25, 27, 29, 30, 34, 36, 37, 38, 39, 40, 41, 42, 50, 51, 52,
            53, 54, 55, 56, 60, 61, 63, 64, 65, 66, 68, 74, 75, 76, 0x4155_5856, 0x5356_4d41, 0x5961_6d61,
        ];
        let others = options.map(|o| o ^ 0x4000_0000).into_iter().chain(0..0x1_0000);
        for option in others.chain(options) {
            let want = options.contains(&option) || option == 47;
            assert_eq!(ask("prctl", &[option, 1]), want, "prctl option {option}");
        }
    }
}

#[test]
fn number_in_no_table_is_not_implemented() {
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let filter = Machine::new(&full(arch));
        let known: Vec<u32> = calls()
            .filter_map(|call| if arch == Arch::X86_64 { call.x86_64 } else { call.aarch64 })
            .map(u32::from)
            .collect();
        for number in (0..5000).filter(|number| !known.contains(number)) {
            for args in [[0; 6], [u64::MAX; 6]] {
                assert_eq!(filter.ask(audit(arch), number, args), ENOSYS, "{number} on {arch:?}");
            }
        }
    }
}

#[test]
fn group_left_out_is_not_implemented_and_denials_stay() {
    let filter = Machine::new(&compile(&["base", "files"]).unwrap());
    let audit = audit(Arch::NATIVE);
    let ask = |name| filter.ask(audit, number(Arch::NATIVE, name), [1, 1, 0, 0, 0, 0]);
    assert_eq!(ask("read"), ALLOW);
    assert_eq!(ask("socket"), ENOSYS);
    assert_eq!(ask("ptrace"), ENOSYS);
    assert_eq!(ask("mount"), EPERM);
}

#[test]
fn unknown_group_is_an_error() {
    let error = compile(&["base", "everything"]).unwrap_err();
    assert!(matches!(&error, SeccompError::UnknownGroup { name } if name == "everything"));
    assert!(error.to_string().contains("`everything`"), "{error}");
}

#[test]
fn program_fits_the_kernel_and_its_digest_follows_its_content() {
    let all = full(Arch::NATIVE);
    assert!(all.instructions().len() < 4096, "{} instructions", all.instructions().len());
    assert_eq!(digest(&all), digest(&full(Arch::NATIVE)));
    assert_ne!(digest(&all), digest(&compile(&every_group()[1..]).unwrap()));
    assert_ne!(digest(&full(Arch::X86_64)), digest(&full(Arch::Aarch64)));
}
