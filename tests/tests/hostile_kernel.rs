//! Kernel surface: keyrings, foreign call conventions, and calls with a history. INV-4; `jail.md`
//! §1.4 (the filter) and §2.3 (what came in through it).

use e2e::bait::Bait;
use e2e::hostile::Control::{Host, HostRoot, HostRootIfThere, Impossible, Off, OffIfHostAllows};
use e2e::hostile::{Control, Row, check, each};
use e2e::policy::PolicyFile;
use e2e::{Exec, Level, locate};

const fn row(act: &'static str, want: &'static str, control: Control) -> Row {
    Row { act, want, control, cites: "jail.md 1.4 and 2.3" }
}

const SECCOMP: Control = Off(&["seccomp"]);
const IF_ALLOWED: Control = OffIfHostAllows(&["seccomp"]);

#[test]
fn keyrings_do_not_exist_for_a_payload() {
    // CVE-2024-42318: KEYCTL_SESSION_TO_PARENT swaps credentials and loses the landlock domain.
    check(&[
        row("add-key", "ENOSYS", SECCOMP),
        row("request-key", "ENOSYS", SECCOMP),
        row("keyctl join", "ENOSYS", SECCOMP),
        row("keyctl session", "ENOSYS", SECCOMP),
        row("keyctl parent", "ENOSYS", Impossible("needs a parent with the same credentials")),
    ]);
}

#[test]
fn keys_of_the_caller_are_not_in_the_payloads_keyring() {
    let search = ["each", "keyctl search e2e-secret"];
    for level in Level::here() {
        let probe = locate::probe().display().to_string();
        let holder = [probe.as_str(), "plant-key", "e2e-secret"];
        let with_layer = PolicyFile::without(&["seccomp"]);
        let jailed = Exec::at(level).wrapped_in(&holder).policy(with_layer.path()).probe(&search);
        let got = jailed.of(search[1]).unwrap_or("nothing");
        assert!(got.starts_with("errno"), "INV-1 {level:?}: {}", jailed.text());

        let without = PolicyFile::without(&["seccomp", "keyring"]);
        let control = Exec::at(level).wrapped_in(&holder).policy(without.path()).probe(&search);
        let got = control.of(search[1]).unwrap_or("nothing");
        if level == Level::Rootless {
            // As root the payload is another user and lacks the right to search.
            assert!(got.starts_with("ok"), "control: {}", control.text());
        }
    }
}

#[test]
fn foreign_call_conventions_kill() {
    check(&[
        row("int80", "signal 31", IF_ALLOWED),
        row("int80 21", "signal 31", Impossible("i386 mount with wild arguments; see `int80`")),
        row("int80 310", "signal 31", Impossible("i386 unshare; see `int80`")),
        row("x32", "signal 31", IF_ALLOWED),
        row("x32 165", "signal 31", Impossible("x32 mount with wild arguments; see `x32`")),
        row("x32 512", "signal 31", Impossible("x32's own numbers; see `x32`")),
    ]);
}

#[test]
fn calls_with_a_history_are_refused() {
    check(&[
        row("bpf", "EPERM", HostRoot),
        row("perf", "EPERM", IF_ALLOWED),
        row("io-uring", "ENOSYS", IF_ALLOWED),
        row("syscall 426 0 0 0", "ENOSYS", Impossible("needs a ring; see `io-uring`")),
        row("syscall 427 0 0 0", "ENOSYS", Impossible("needs a ring; see `io-uring`")),
        row("userfaultfd", "EPERM", IF_ALLOWED),
        row("fanotify", "EPERM", IF_ALLOWED),
        row("personality", "EPERM|EINVAL", IF_ALLOWED),
        row("quotactl", "EPERM", IF_ALLOWED),
    ]);
}

#[test]
fn administration_of_the_host_is_refused() {
    check(&[
        row("settime", "EPERM", HostRoot),
        row("adjtime", "EPERM", HostRoot),
        row("swapoff", "EPERM", HostRoot),
        row("acct", "EPERM", HostRoot),
        row("reboot", "EPERM", HostRoot),
        row("module", "EPERM", HostRootIfThere),
        row("kexec", "EPERM", HostRootIfThere),
        row("syslog", "EPERM", HostRoot),
        row("iopl", "EPERM|ENOSYS", HostRootIfThere),
        row("vhangup", "EPERM", Impossible("would hang up the terminal of the test")),
        row("syscall 212 0 0 0", "EPERM|ENOSYS", Impossible("lookup_dcookie left Linux 6.7")),
        row("syscall 180 0 0 0", "EPERM|ENOSYS", Impossible("nfsservctl left Linux 3.1")),
        row("syscall 173 0 1 1", "EPERM|ENOSYS", Impossible("ioperm opens ports of the machine")),
    ]);
}

#[test]
fn a_tracer_cannot_turn_an_allowed_call_into_a_forbidden_one() {
    // The filter must see the call after the tracer has changed it (Linux 4.8).
    let seen = Impossible("needs a ring or a mount; see the first row");
    check(&[
        row("rewrite 272 0x10000000", "EPERM", Host), // unshare user
        row("rewrite 425 4", "ENOSYS", seen),         // io_uring_setup
        row("rewrite 161 0", "EPERM", seen),          // chroot
    ]);
}

#[test]
fn unknown_calls_look_like_an_older_kernel() {
    // Programs probe for new calls; ENOSYS makes them fall back, EPERM makes them fail.
    let newest = Impossible("no kernel has this call yet");
    check(&[
        row("syscall 600 0 0 0", "ENOSYS", newest),
        row("syscall 1000 0 0 0", "ENOSYS", newest),
        row("syscall 9999 0 0 0", "ENOSYS", newest),
    ]);
}

#[test]
fn terminals_cannot_be_typed_into() {
    // CVE-2017-5226 (TIOCSTI), CVE-2019-7303 (rubbish above the low 32 bits), CVE-2023-1523.
    check(&[
        row("tiocsti", "EPERM", IF_ALLOWED),
        row("tiocsti 1", "EPERM", IF_ALLOWED),
        row("tioclinux 6", "EPERM", Impossible("the test has no virtual console")),
        row("tioclinux 2", "EPERM", Impossible("the test has no virtual console")),
        row("tiocsetd 0", "EPERM", SECCOMP),
        row("tiocsetd 21", "EPERM", Impossible("loads a module; see `tiocsetd 0`")),
        row("tty", "ENXIO|ENOENT|EACCES", Impossible("the test has no terminal itself")),
    ]);
}

#[test]
fn the_callers_terminal_is_not_the_payloads() {
    // With --tty the payload gets a terminal of the jail; nothing it types reaches the caller's.
    e2e::require!(e2e::Need::Tool("script"));
    for level in Level::here() {
        let bait = Bait::plant(level);
        let dir = e2e::exec::directory_of(level);
        std::fs::copy(locate::probe(), dir.path().join("probe")).expect("cannot copy the probe");
        let inner = "tty; stty size >/dev/null && echo terminal; \
                     ./probe each tiocsti 'tiocsti 1' 'tioclinux 6' 'tiocsetd 0'";
        let line = format!(
            "{} {} exec --tty --workspace {} -- bash -c \"{inner}\"; read -t 0.2 typed; \
             echo \"typed=[$typed]\"",
            level.prefix().join(" "),
            locate::worker().display(),
            dir.path().display(),
        );
        let done = std::process::Command::new("script")
            .args(["-qec", &format!("bash -c '{}'", line.replace('\'', "'\\''")), "/dev/null"])
            .env("HOME", bait.dir())
            .output()
            .expect("cannot run script");
        let text = String::from_utf8_lossy(&done.stdout).replace('\r', "");
        assert!(text.contains("terminal"), "{level:?}: no terminal: {text}");
        assert!(text.contains("/dev/pts/0") || text.contains("/dev/console"), "{level:?}: {text}");
        for act in ["tiocsti", "tiocsti 1", "tioclinux 6", "tiocsetd 0"] {
            assert!(text.contains(&format!("{act}: errno EPERM")), "{level:?} {act}: {text}");
        }
        assert!(text.contains("typed=[]"), "{level:?}: something was typed: {text}");
    }
}

#[test]
fn a_payload_without_a_terminal_cannot_open_the_callers() {
    e2e::require!(e2e::Need::Tool("script"));
    for level in Level::here() {
        let bait = Bait::plant(level);
        let inner =
            "(: <>/dev/tty) 2>/dev/null && echo opened; echo; cut -d' ' -f7 /proc/self/stat";
        let line = format!(
            "{} {} exec -- bash -c \"{inner}\"",
            level.prefix().join(" "),
            locate::worker().display()
        );
        let done = std::process::Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env("HOME", bait.dir())
            .output()
            .expect("cannot run script");
        let text = String::from_utf8_lossy(&done.stdout).replace('\r', "");
        assert!(!text.contains("opened"), "{level:?}: {text}");
        assert!(text.lines().any(|line| line.trim() == "0"), "{level:?}: {text}");
    }
}

#[test]
fn a_refused_call_does_not_stop_the_payload() {
    for level in Level::here() {
        let acts = ["bpf", "int80", "euid"].map(str::to_owned);
        let outcome = Exec::at(level).probe(&each(&acts));
        assert!(outcome.of("euid").is_some_and(|got| got == "ok 1000"), "{}", outcome.text());
    }
}
