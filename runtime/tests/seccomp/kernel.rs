//! The filter on the kernel it is for.
//!
//! A filter stays for good, so each case runs in a process of its own: this test binary starts
//! itself again, puts the filter on and becomes the program under test.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use crate::bpf::{every_group, number};
use stockade_runtime::jail::seccomp::{Arch, SeccompError, compile, install};

const ROLE: &str = "STOCKADE_TEST_SECCOMP_ROLE";

/// Not a case: what the cases start.
#[test]
fn role_of_the_restarted_binary() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (filter, script) = role.split_once('\n').expect("two parts");
    if filter == "filtered" {
        rustix::thread::set_no_new_privs(true).expect("no_new_privs");
        install(&compile(&every_group()).expect("compiles")).expect("attaches");
    }
    let failure = Command::new("perl").args(["-e", script]).env_remove(ROLE).exec();
    panic!("cannot start perl: {failure}");
}

fn perl(filter: &str, script: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kernel::role_of_the_restarted_binary", "--nocapture"])
        .env(ROLE, format!("{filter}\n{script}"))
        .output()
        .unwrap()
}

/// What `name(args)` gives: "ok", or the error number.
fn call(filter: &str, name: &str, args: &str) -> String {
    let number = if name == "unknown" { 999 } else { number(Arch::NATIVE, name) };
    let script = format!("print '<', (syscall({number}, {args}) == -1 ? $!+0 : 'ok'), '>'");
    let output = perl(filter, &script);
    let text = String::from_utf8_lossy(&output.stdout);
    let answer = text.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    answer.unwrap_or_else(|| panic!("no answer to {name}: {output:?}")).0.into()
}

#[test]
fn kernel_gives_the_answers_of_the_filter_and_others_without_it() {
    // Error numbers of errno(3): EPERM 1, EBADF 9, EFAULT 14, EINVAL 22, ENOTTY 25, ENOSYS 38,
    // EAFNOSUPPORT 97.
    #[rustfmt::skip]
    let cases = [
        // call        arguments                                with   without
        ("unknown",    "0",                                     "38",  "38"),
        ("unshare",    "0x80000000",                            "1",   "22"),
        ("unshare",    "0x200",                                 "ok",  "ok"),
        ("clone3",     "0, 0",                                  "38",  "22"),
        ("setns",      "-1, 0",                                 "1",   "9"),
        ("bpf",        "9999, 0, 0",                            "1",   "22"),
        ("openat2",    "-1, 0, 0, 0",                           "38",  "22"),
        ("fchmod",     "-1, 04755",                             "1",   "9"),
        ("fchmod",     "-1, 0755",                              "9",   "9"),
        ("ioctl",      "-1, 0x5412, 0",                         "1",   "9"),
        ("ioctl",      "-1, 0x700000000 + 0x5412, 0",           "1",   "9"),
        ("ioctl",      "-1, 0x5401, 0",                         "9",   "9"),
        ("socket",     "38, 5, 99",                             "97",  "94|97|93"),
        ("socket",     "1, 0x80001, 0",                         "ok",  "ok"),
        ("prctl",      "62, 99, 0, 0, 0",                       "22",  "22"),
        ("prctl",      "3, 0, 0, 0, 0",                         "ok",  "ok"),
        ("personality", "0xffffffff",                           "ok",  "ok"),
    ];
    for (name, args, with, without) in cases {
        assert_eq!(call("filtered", name, args), with, "{name}({args}) with the filter");
        let got = call("bare", name, args);
        assert!(without.split('|').any(|want| want == got), "{name}({args}) without: {got}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn x32_call_kills_the_process() {
    use std::os::unix::process::ExitStatusExt;
    const SIGSYS: i32 = 31;
    let output = perl("filtered", "syscall(0x40000000 + 39); print 'alive'");
    assert_eq!(output.status.signal(), Some(SIGSYS), "{output:?}");
    let output = perl("bare", "syscall(0x40000000 + 39); print 'alive'");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn filter_is_not_attached_without_no_new_privs() {
    if rustix::thread::no_new_privs().unwrap() {
        eprintln!("skipped: no_new_privs is inherited and cannot be taken off");
        return;
    }
    let error = install(&compile(&every_group()).unwrap()).unwrap_err();
    assert!(matches!(error, SeccompError::NoNewPrivs), "{error}");
}
