//! A bound host directory: what a payload leaves in it must not be dangerous outside, and what
//! lies in it must not lead outside. INV-7, INV-10; `jail.md` §2.2 (CVE-2019-3843, CVE-2024-28185
//! "symlink then root chown", CVE-2024-42472), §2.5 (CVE-2026-39861).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use e2e::bait::Bait;
use e2e::exec::{directory_of, probe_bytes};
use e2e::policy::PolicyFile;
use e2e::{Exec, Level, Need, Outcome, locate, require};

/// Brings the probe along, then runs `script` in the workspace.
fn in_workspace(exec: Exec, dir: &Path, script: &str) -> Outcome {
    let line = format!("cat >/tmp/probe; chmod +x /tmp/probe; {script}");
    exec.workspace(dir).stdin(probe_bytes()).bash(&line)
}

/// Everything in `dir` that would be dangerous on the host.
fn dangers(dir: &Path, owner: u32) -> Vec<String> {
    let (mut found, mut todo) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(place) = todo.pop() {
        for entry in fs::read_dir(&place).expect("cannot list the workspace").flatten() {
            let (path, meta) = (entry.path(), entry.metadata().expect("cannot look at a file"));
            let kind = meta.file_type();
            let file_bits = !kind.is_symlink() && meta.permissions().mode() & 0o6000 != 0;
            use std::os::unix::fs::FileTypeExt;
            if file_bits || kind.is_block_device() || kind.is_char_device() {
                found.push(format!("{} {:o}", path.display(), meta.mode()));
            }
            if meta.uid() != owner {
                found.push(format!("{} belongs to {}", path.display(), meta.uid()));
            }
            if kind.is_dir() {
                todo.push(path);
            }
        }
    }
    let caps = Command::new("getcap").arg("-r").arg(dir).output();
    let caps = caps.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    found.extend(caps.unwrap_or_default().lines().map(|line| format!("capability {line}")));
    found
}

#[test]
fn what_a_payload_writes_belongs_to_the_owner_of_the_directory() {
    for level in Level::here() {
        let owners: &[u32] = if level == Level::Root { &[0, 1000, 4711] } else { &[1000] };
        for &owner in owners {
            let dir = directory_of(level);
            if e2e::level::we_are_root() {
                std::os::unix::fs::chown(dir.path(), Some(owner), Some(owner)).expect("chown");
            }
            let owner = fs::metadata(dir.path()).expect("cannot look").uid();
            fs::write(dir.path().join("before"), "here\n").expect("cannot write");
            if e2e::level::we_are_root() {
                let before = dir.path().join("before");
                std::os::unix::fs::chown(before, Some(owner), Some(owner)).expect("chown");
            }
            let script = "id -u; cat before; echo more >>before; mkdir -p d/e; echo x >d/e/f; \
                          ln -s f d/e/l; ln before hard; stat -c %U%u before";
            let outcome = in_workspace(Exec::at(level), dir.path(), script);
            assert!(outcome.ok(), "{level:?} owner {owner}: {}", outcome.text());
            assert!(outcome.stdout.starts_with("1000\nhere\n"), "{}", outcome.text());
            let text = fs::read_to_string(dir.path().join("before")).expect("cannot read");
            assert_eq!(text, "here\nmore\n", "{level:?} owner {owner}");
            assert!(dir.path().join("d/e/f").exists(), "{level:?} owner {owner}");
            assert_eq!(dangers(dir.path(), owner), [""; 0], "{level:?} owner {owner}");
        }
    }
}

#[test]
fn nothing_left_in_a_bound_directory_has_power_outside() {
    // CVE-2019-3843/3844: set-id programs of an id that is used again later.
    let acts = "cp /tmp/probe plain; cp /tmp/probe suid; cp /tmp/probe cap; cp /tmp/probe sgid; \
                /tmp/probe each 'chmod suid 4755' 'chmod sgid 2755' 'filecap cap' \
                'xattr cap trusted.overlay.opaque y' 'xattr cap security.evil 1' \
                'mknod null c 1 3' 'mknod disk b 8 0' 'mknod white c 0 0' 'chown plain 0 0' \
                'chmod suid 6777' 'create-suid made' 'mkdir-setgid dir' 'setflags fixed' \
                'whiteout w'; install -m 6755 plain installed; mkdir -m 2777 made-dir; true";
    for level in Level::here() {
        for off in [&[][..], &["seccomp"], &["capabilities"], &["landlock"]] {
            let dir = directory_of(level);
            let owner = fs::metadata(dir.path()).expect("cannot look").uid();
            let policy = PolicyFile::without(off);
            let exec = Exec::at(level);
            let exec = if off.is_empty() { exec } else { exec.policy(policy.path()) };
            let outcome = in_workspace(exec, dir.path(), acts);
            assert!(outcome.ok(), "{level:?}: {}", outcome.text());
            let found = dangers(dir.path(), owner);
            assert_eq!(found, [""; 0], "{level:?} {off:?} off: {}", outcome.text());
            assert!(dir.path().join("plain").exists(), "{level:?}: nothing was written back");
        }
    }
}

#[test]
fn the_same_acts_leave_dangers_outside_a_jail() {
    // The control of the test above, on the bare host in a directory of the test.
    require!(Need::Root, Need::Tool("getcap"));
    let dir = directory_of(Level::Root);
    let script = format!(
        "cp {0} suid; cp {0} cap; {0} each 'chmod suid 4755' 'filecap cap' 'mknod null c 1 3'",
        locate::probe().display()
    );
    let done = Command::new("bash").args(["-c", &script]).current_dir(dir.path()).output();
    let done = done.expect("cannot run the control");
    assert_eq!(dangers(dir.path(), 0).len(), 3, "{}", String::from_utf8_lossy(&done.stdout));
}

#[test]
fn symlinks_in_a_bound_directory_lead_to_the_jails_own_files() {
    for level in Level::here() {
        let mut bait = Bait::plant(level);
        let dir = directory_of(level);
        let owner = fs::metadata(dir.path()).expect("cannot look").uid();
        symlink("/etc", dir.path().join("etc")).expect("cannot link");
        symlink(bait.dir(), dir.path().join("out")).expect("cannot link");
        symlink(bait.dir().join("secret"), dir.path().join("file")).expect("cannot link");
        symlink("../../../../../../../../", dir.path().join("up")).expect("cannot link");
        if e2e::level::we_are_root() {
            for name in ["etc", "out", "file", "up"] {
                let link = dir.path().join(name);
                std::os::unix::fs::lchown(link, Some(owner), None).expect("cannot give a link");
            }
        }
        let script = "cat file out/secret; echo x >etc/e2e-escaped; echo x >out/escaped; \
                      echo x >>file; echo x >up/e2e-escaped; \
                      ln -s /etc late; echo x >late/e2e-escaped; chmod 777 file etc; \
                      mkdir moved && rmdir moved && ln -s / moved; echo x >moved/e2e-escaped; true";
        let outcome = in_workspace(Exec::at(level), dir.path(), script);
        assert_eq!(outcome.stdout, "", "INV-7 {level:?}: {}", outcome.text());
        assert_eq!(bait.touched(), [""; 0], "{level:?}");
        for path in ["/etc/e2e-escaped", "/e2e-escaped"] {
            assert!(!Path::new(path).exists(), "INV-7 {level:?}: {path} was made on the host");
        }
        let etc = fs::metadata("/etc").expect("cannot look at /etc");
        assert_eq!(etc.mode() & 0o7777, 0o755, "INV-7: the mode of /etc changed");
        assert_eq!(etc.uid(), 0, "CVE-2024-28185: the owner of /etc changed");
        // Taking the directory back must not follow links either.
        let secret = fs::metadata(bait.dir().join("secret")).expect("cannot look");
        assert_eq!(secret.uid(), level.uid(), "CVE-2024-28185: a link was followed");
        assert_eq!(dangers(dir.path(), owner), [""; 0], "{level:?}");
    }
}

#[test]
fn set_id_programs_give_nothing() {
    // su, sudo, and a set-id root program that lies in a bound directory already.
    require!(Need::Root);
    for level in Level::here() {
        let dir = directory_of(level);
        let suid = dir.path().join("suid");
        fs::copy(locate::probe(), &suid).expect("cannot copy");
        fs::set_permissions(&suid, fs::Permissions::from_mode(0o4755)).expect("cannot chmod");
        let script = "./suid euid; for p in $(find /usr -xdev -perm /6000 -type f 2>/dev/null); do \
                        test -u $p && echo set-id; done | sort -u | head -1; \
                      su -c id root </dev/null; true";
        let outcome = in_workspace(Exec::at(level), dir.path(), script);
        let first = outcome.stdout.lines().next().unwrap_or_default();
        assert!(first == "ok 1000" || first.is_empty(), "{level:?}: {}", outcome.text());
        assert!(!outcome.stdout.contains("uid=0"), "{level:?}: {}", outcome.text());

        let without = PolicyFile::without(&["no-new-privs", "landlock", "seccomp"]);
        let nosuid =
            in_workspace(Exec::at(level).policy(without.path()), dir.path(), "./suid euid");
        let gained = nosuid.stdout.lines().any(|line| line == "ok 0");
        assert!(!gained, "INV-4 {level:?} with no-new-privs off: {}", nosuid.text());
    }
    let dir = directory_of(Level::Root);
    let suid = dir.path().join("suid");
    fs::copy(locate::probe(), &suid).expect("cannot copy");
    fs::set_permissions(&suid, fs::Permissions::from_mode(0o4755)).expect("cannot chmod");
    let mut line = Level::Rootless.prefix();
    line.extend([suid.display().to_string(), "euid".to_owned()]);
    let control = Command::new(&line[0]).args(&line[1..]).output().expect("cannot run");
    assert_eq!(String::from_utf8_lossy(&control.stdout).trim(), "ok 0", "control: set-id works");
}

#[test]
fn outputs_are_handed_over_with_the_owner_of_their_directory() {
    for level in Level::here() {
        let dir = directory_of(level);
        let owner = fs::metadata(dir.path()).expect("cannot look").uid();
        let exec = Exec::at(level).options(["--outputs", &dir.path().display().to_string()]);
        let outcome = exec.bash(
            "cd /mnt/session/outputs && echo result >r && ln -s /etc/shadow s && chmod 4755 r; true",
        );
        assert!(outcome.ok(), "{level:?}: {}", outcome.text());
        let text = fs::read_to_string(dir.path().join("r")).unwrap_or_default();
        assert_eq!(text, "result\n", "{level:?}: {}", outcome.text());
        assert_eq!(dangers(dir.path(), owner), [""; 0], "{level:?}: {}", outcome.text());
    }
}

#[test]
fn files_that_the_caller_redirects_to_keep_owner_and_mode() {
    // Standard streams belong to the caller; a jail must not take them over.
    for level in Level::here() {
        let dir = directory_of(level);
        for name in ["in", "out", "err"] {
            let path = dir.path().join(name);
            fs::write(&path, "input\n").expect("cannot write");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("cannot chmod");
            e2e::exec::give(&path, level);
        }
        let place = dir.path().display();
        let redirect = format!("exec <{place}/in >{place}/out 2>{place}/err; exec \"$@\"");
        let wrapper = ["bash", "-c", &redirect, "redirect"];
        let script =
            "cat; echo more >&2; chmod 4777 /proc/self/fd/1; echo again >/dev/stdout; true";
        let outcome = Exec::at(level).wrapped_in(&wrapper).bash(script);
        assert!(outcome.ok(), "{level:?}: {}", outcome.text());
        for (name, start) in [("in", "input"), ("out", "input"), ("err", "more")] {
            let path = dir.path().join(name);
            let meta = fs::metadata(&path).expect("cannot look");
            assert_eq!(meta.uid(), level.uid(), "{level:?}: the owner of `{name}` changed");
            assert_eq!(meta.mode() & 0o7777, 0o640, "{level:?}: the mode of `{name}` changed");
            let text = fs::read_to_string(&path).expect("cannot read");
            assert!(text.starts_with(start), "{level:?} {name}: {text}");
        }
    }
}

#[test]
fn the_callers_terminal_keeps_its_owner() {
    require!(Need::Root, Need::Tool("script"));
    let worker = locate::worker().display();
    let line = format!("stat -c %u:%a $(tty); {worker} exec -- true; stat -c %u:%a $(tty)");
    let done = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("HOME", "/root")
        .output()
        .expect("cannot run script");
    let text = String::from_utf8_lossy(&done.stdout).replace('\r', "");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 2 && lines[0] == lines[1], "the terminal changed hands: {text}");
}
