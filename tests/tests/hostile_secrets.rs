//! INV-1: nothing secret of the caller is in the environment, memory files or descriptors of the
//! payload, of init or of the process that makes jails. `jail.md` §2.5 (ambient authority).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use e2e::bait::{Bait, SECRET};
use e2e::{Exec, Level, Need, require};

const NAMES: [&str; 9] = [
    "ANTHROPIC_ENVIRONMENT_KEY",
    "ANTHROPIC_WORK_SECRET",
    "ANTHROPIC_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "GITHUB_TOKEN",
    "SSH_AUTH_SOCK",
    "DBUS_SESSION_BUS_ADDRESS",
    "KUBECONFIG",
    "LD_PRELOAD_NOT",
];

fn with_secrets(level: Level) -> Exec {
    NAMES.iter().fold(Exec::at(level), |exec, name| exec.caller_env(name, SECRET))
}

#[test]
fn variables_of_the_caller_do_not_reach_the_payload() {
    for level in Level::here() {
        let outcome = with_secrets(level).bash(
            "env; cat /proc/self/environ /proc/1/environ /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'",
        );
        assert!(outcome.stdout.contains("PATH="), "{level:?}: {}", outcome.text());
        assert!(!outcome.stdout.contains(SECRET), "INV-1 {level:?}: {}", outcome.text());
        let control = with_secrets(level)
            .options(["--env", &format!("GIVEN={SECRET}")])
            .bash("printenv GIVEN");
        assert_eq!(control.stdout.trim(), SECRET, "control: --env gives it: {}", control.text());
    }
}

#[test]
fn no_process_of_a_jail_holds_what_the_caller_had() {
    require!(Need::Root);
    for level in Level::here() {
        let bait = Bait::plant(level);
        let leak = bait.fill("exec 7<{secret} 8<{dir}; exec \"$@\"");
        let running = with_secrets(level).wrapped_in(&["bash", "-c", &leak, "leak"]).spawn(&[
            "/bin/bash",
            "-c",
            "echo up; sleep 2.5",
        ]);
        let secret = fs::metadata(bait.dir().join("secret")).expect("cannot look").ino();
        let processes = wait_for_payload(&running);
        let mut wrong = Vec::new();
        for &pid in &processes[1..] {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            if String::from_utf8_lossy(&environ).contains(SECRET) {
                wrong.push(format!("environment of {pid} {name}"));
            }
            for file in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                let target = fs::metadata(file.path());
                if target.is_ok_and(|meta| meta.ino() == secret) {
                    wrong.push(format!("descriptor {:?} of {pid} {name}", file.file_name()));
                }
            }
        }
        assert!(processes.len() >= 3, "worker, init and payload at least: {processes:?}");
        let outcome = running.wait();
        assert!(wrong.is_empty(), "INV-1 {level:?}: {wrong:#?}");
        assert!(outcome.ok() && outcome.leftovers.is_empty(), "{}", outcome.text());
    }
}

#[test]
fn memory_of_the_processes_that_make_jails_holds_no_secret() {
    // A copied environment would show up on the heap or the stack of launcher or init.
    require!(Need::Root);
    for level in Level::here() {
        let running = with_secrets(level).spawn(&["/bin/bash", "-c", "echo up; sleep 2.5"]);
        let processes = wait_for_payload(&running);
        let found: Vec<_> = processes[1..].iter().filter(|pid| memory_has(**pid, SECRET)).collect();
        let outcome = running.wait();
        assert!(found.is_empty(), "INV-1 {level:?}: memory of {found:?} of {processes:?}");
        assert!(outcome.ok(), "{}", outcome.text());
    }
}

#[test]
fn the_payload_runs_without_privileges_of_the_host() {
    require!(Need::Root);
    for level in Level::here() {
        let running = Exec::at(level).spawn(&["/bin/bash", "-c", "echo up; sleep 2.5"]);
        let processes = wait_for_payload(&running);
        let named = |wanted: &str| {
            let name =
                |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            processes.iter().copied().find(|pid| name(*pid).trim() == wanted)
        };
        let payload = named("sleep").expect("the payload runs");
        let uid = e2e::exec::status_field(payload, "Uid:");
        let bound = e2e::exec::status_field(payload, "CapBnd:");
        let namespaces = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"].map(|kind| {
            let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
            (kind, of(&payload.to_string()) != of("self"))
        });
        let outcome = running.wait();
        if level == Level::Root {
            let uid: u32 = uid.and_then(|uid| uid.parse().ok()).expect("a user id");
            assert!(uid >= 65_536, "a unique range of unused ids, not {uid}");
        }
        assert_eq!(bound.as_deref(), Some("0000000000000000"), "{level:?}");
        for (kind, own) in namespaces {
            assert!(own, "{level:?}: the payload shares the {kind} namespace of the host");
        }
        assert!(outcome.ok(), "{}", outcome.text());
    }
}

#[test]
fn two_jails_do_not_see_each_other() {
    for level in Level::here() {
        let script = "echo mine >/tmp/mark; echo mine >/dev/shm/mark; python3 -c \
                      'import socket,time; s=socket.socket(socket.AF_UNIX); s.bind(\"\\0e2e-two\"); \
                       s.listen(); t=socket.create_server((\"127.0.0.1\",4242)); time.sleep(2)'";
        let first = Exec::at(level).spawn(&["/bin/bash", "-c", script]);
        sleep(Duration::from_millis(900));
        let acts =
            ["read /tmp/mark", "read /dev/shm/mark", "unix @e2e-two", "connect 127.0.0.1 4242"];
        let acts = acts.map(str::to_owned);
        let second = Exec::at(level).probe(&e2e::hostile::each(&acts));
        for act in &acts {
            let got = second.of(act).unwrap_or("nothing");
            assert!(got.starts_with("errno"), "INV-6 {level:?}: `{act}` gave `{got}`");
        }
        let first = first.wait();
        assert!(first.ok(), "control: the first one listens: {}", first.text());
    }
}

/// The worker's processes once the payload's `sleep` is among them.
fn wait_for_payload(running: &e2e::exec::Running) -> Vec<u32> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let all = running.processes();
        let sleeps = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
        };
        if all.iter().any(sleeps) || Instant::now() > deadline {
            return all;
        }
        sleep(Duration::from_millis(10));
    }
}

/// Whether a writable mapping of a process holds `text`. Unreadable memory counts as empty.
fn memory_has(pid: u32, text: &str) -> bool {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let Ok(memory) = fs::File::open(format!("/proc/{pid}/mem")) else { return false };
    maps.lines().filter(|line| line.contains(" rw")).any(|line| {
        let (range, _) = line.split_once(' ').unwrap_or_default();
        let (from, to) = range.split_once('-').unwrap_or_default();
        let number = |text| u64::from_str_radix(text, 16).unwrap_or(0);
        let size = number(to).saturating_sub(number(from)).min(64 << 20);
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        memory.read_exact_at(&mut bytes, number(from)).is_ok()
            && bytes.windows(text.len()).any(|window| window == text.as_bytes())
    })
}
