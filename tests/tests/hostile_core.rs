//! Core dumps: no file, and no handler of the host is started for a payload. `jail.md` §1.2 step
//! 15 (a limit of 0 does not stop a piped handler), §2.2 (CVE-2025-4598).
//!
//! Changes `kernel.core_pattern` for a moment, alone on the machine, and puts it back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use e2e::{End, Exec, Level, Need, locate, lock, require};

const PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// The sysctl as it was, restored when this value goes, panics included.
struct Saved(String);

impl Saved {
    fn replace(value: &str) -> Saved {
        let old = fs::read_to_string(PATTERN).expect("cannot read the core pattern");
        fs::write(PATTERN, value).expect("cannot set the core pattern");
        Saved(old)
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        fs::write(PATTERN, self.0.trim_end()).expect("cannot restore the core pattern");
    }
}

fn crash_outside(dir: &std::path::Path) {
    let line = "ulimit -c unlimited; \"$0\" crash";
    let done = Command::new("bash")
        .args(["-c", line])
        .arg(locate::probe())
        .current_dir(dir)
        .output()
        .expect("cannot crash outside a jail");
    let signal = std::os::unix::process::ExitStatusExt::signal(&done.status);
    assert!(signal == Some(11) || done.status.code() == Some(139), "the control did not crash");
}

#[test]
fn a_crash_writes_no_core_file() {
    require!(Need::Root);
    let turn = lock::alone();
    let cores = tempfile::tempdir().expect("no directory");
    fs::set_permissions(cores.path(), fs::Permissions::from_mode(0o777)).expect("cannot chmod");
    let pattern = format!("{}/core.%p", cores.path().display());
    let saved = Saved::replace(&pattern);
    for level in Level::here() {
        let outcome = Exec::at(level).alone().probe(&["crash"]);
        assert_eq!(outcome.end, End::Exit(139), "{level:?}: {}", outcome.text());
        let inside = Exec::at(level).alone().stdin(e2e::exec::probe_bytes()).bash(
            "cat >/tmp/probe; chmod +x /tmp/probe; ulimit -c unlimited; /tmp/probe crash; \
             find / -xdev -name 'core*' -newer /tmp/probe -type f 2>/dev/null; ls /workspace",
        );
        assert!(!inside.stdout.contains("core"), "{level:?}: {}", inside.text());
    }
    let found = fs::read_dir(cores.path()).expect("cannot list").count();
    assert_eq!(found, 0, "a payload's memory was written to the host");
    crash_outside(cores.path());
    drop(saved);
    let found = fs::read_dir(cores.path()).expect("cannot list").count();
    assert_eq!(found, 1, "control: a crash outside writes one");
    drop(turn);
}

#[test]
fn a_crash_starts_no_handler_of_the_host() {
    require!(Need::Root);
    let turn = lock::alone();
    let dir = tempfile::tempdir().expect("no directory");
    let (handler, mark) = (dir.path().join("handler"), dir.path().join("mark"));
    let script = format!("#!/bin/sh\nhead -c 16 >/dev/null\necho $1 >>{}\n", mark.display());
    fs::write(&handler, script).expect("cannot write the handler");
    fs::set_permissions(&handler, fs::Permissions::from_mode(0o755)).expect("cannot chmod");
    let saved = Saved::replace(&format!("|{} %p", handler.display()));
    for level in Level::here() {
        let outcome = Exec::at(level).alone().probe(&["crash"]);
        assert_eq!(outcome.end, End::Exit(139), "{level:?}: {}", outcome.text());
    }
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!mark.exists(), "a payload's crash started the host's handler");
    crash_outside(dir.path());
    drop(saved);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(3);
    while !mark.exists() && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(mark.exists(), "control: a crash outside starts it");
    drop(turn);
}
