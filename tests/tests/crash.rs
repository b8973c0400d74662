//! kill -9 of any of our processes at any step leaves nothing after the next start (INV-10).
//!
//! The worker stops itself at a step (`--halt-at STEP`, which stops the process that performs
//! the step). Then each of its processes is killed in turn, once per run, and the next
//! start or `worker sweep` must remove what is left.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use e2e::exec::{Running, directory_of, status_field};
use e2e::{End, Exec, Level, Need, locate, lock, require};

/// Every step at which a run can be stopped, as `worker exec --halt-at help` lists them.
const STEPS: &[&str] = &[
    "handshake",
    "claim",
    "cgroup",
    "id-maps",
    "disk",
    "clone-init",
    "network",
    "isolate",
    "identity",
    "private",
    "skeleton",
    "host-view",
    "devices",
    "proc",
    "memory",
    "workspace",
    "places",
    "pivot",
    "verify-tree",
    "terminal",
    "clone-payload",
    "map-ids",
    "drop-init",
    "inert-namespaces",
    "keyring",
    "rlimits",
    "ids",
    "capabilities",
    "no-new-privs",
    "landlock",
    "seccomp",
    "canary",
    "exec",
    "running",
    "kill",
    "export",
    "remove",
];

/// Steps that only the jail of a session takes: `crash_session.rs` kills there.
const OF_SESSIONS: &[&str] = &["executor", "porter"];

/// A run that is stopped at a step, with all its processes, the worker first.
struct Halted {
    running: Running,
    processes: Vec<u32>,
    _bound: tempfile::TempDir,
}

/// Stops a run at `step`, with what makes the step happen at all.
fn halt(level: Level, step: &str) -> Result<Halted, String> {
    let bound = directory_of(level);
    let mut exec = Exec::at(level).alone().options(["--halt-at", step]);
    if matches!(step, "id-maps" | "workspace" | "export") {
        exec = exec.workspace(bound.path());
    }
    if step == "disk" {
        exec = exec.policy("build");
    }
    let running = exec.timeout(Duration::from_secs(20)).grace(Duration::from_secs(6)).spawn(&[
        "/bin/bash",
        "-c",
        "sleep 0.2; true",
    ]);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let processes = running.processes();
        // A process that performs a step bears its name, so that no other stop is mistaken for it.
        let stopped = |pid: &u32| {
            status_field(*pid, "State:").is_some_and(|state| state == "T")
                || status_field(*pid, "Name:").is_some_and(|name| name.starts_with("at-"))
        };
        if processes.iter().any(stopped) {
            return Ok(Halted { running, processes, _bound: bound });
        }
        if running.ends_within(Duration::ZERO) {
            return Err(format!("{level:?}: no stop at `{step}`: {}", running.wait().text()));
        }
        assert!(Instant::now() < deadline, "no process stops at step `{step}` of {level:?}");
        sleep(Duration::from_millis(2));
    }
}

fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args([name, &pid.to_string()]).output();
    // It may have ended in the meantime, which is what the signal is for.
    drop(sent.expect("cannot run kill"));
}

/// `worker sweep`, as the user of `level`; the home of the run is the user's runtime directory.
fn sweep(level: Level, home: &str) {
    let mut line = level.prefix();
    line.extend([locate::worker().display().to_string(), "sweep".to_owned()]);
    let done = Command::new(&line[0])
        .args(&line[1..])
        .env("HOME", home)
        .env("XDG_RUNTIME_DIR", home)
        .output()
        .expect("cannot run the sweep");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "sweep: {} {}", text(&done.stdout), text(&done.stderr));
}

/// Kills the process number `victim` of a run that is stopped at `step`; says how many there were.
fn crash(level: Level, step: &str, victim: usize, wrong: &mut Vec<String>) -> usize {
    let Halted { running, processes, _bound } = match halt(level, step) {
        Ok(halted) => halted,
        Err(text) => {
            wrong.push(text);
            return 0;
        }
    };
    let count = processes.len();
    let Some(&pid) = processes.get(victim) else {
        signal(processes[0], "-KILL");
        return count;
    };
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    signal(pid, "-KILL");
    running.ends_within(Duration::from_millis(50));
    // If the stopped one was not the victim, let it find out. One that waits instead of being
    // stopped cannot go on; it then dies as well, which leaves no less behind.
    for other in processes.iter().filter(|other| **other != pid) {
        let waits = status_field(*other, "Name:").is_some_and(|name| name.starts_with("at-"))
            && status_field(*other, "State:").is_some_and(|state| state == "S");
        signal(*other, if waits { "-KILL" } else { "-CONT" });
    }
    if !running.ends_within(Duration::from_secs(10)) {
        wrong.push(format!("{level:?}: `{step}`, {name} killed: the worker does not end"));
    }
    sweep(level, &running.home());
    let outcome = running.wait();
    let what = format!("{level:?}: `{step}`, process {victim} ({}) killed", name.trim());
    if outcome.ok() && victim > 0 {
        eprintln!("{what}: the command succeeded all the same");
    }
    if outcome.end == End::TimedOut {
        wrong.push(format!("{what}: timed out"));
    }
    let left = outcome.leftovers.iter().map(|thing| format!("{what}: left over: {thing}"));
    wrong.extend(left.inspect(|line| eprintln!("{line}")));
    count
}

fn crash_everywhere(level: Level) {
    assert!(!STEPS.is_empty(), "the list of steps is empty");
    // What lies about between a kill and its sweep would be counted against runs beside this one.
    let _turn = lock::alone();
    let mut wrong = Vec::new();
    // Without root there is no loop device, and no cgroup on a v1 host.
    let absent: &[&str] = if level == Level::Root { &[] } else { &["cgroup", "disk"] };
    for step in STEPS.iter().filter(|step| !absent.contains(step)) {
        eprintln!("{level:?}: step {step}, {} failures so far", wrong.len());
        let count = crash(level, step, 0, &mut wrong);
        for victim in 1..count {
            crash(level, step, victim, &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "INV-10:\n{}", wrong.join("\n"));
}

#[test]
fn root_runs_killed_at_any_step_leave_nothing_after_a_sweep() {
    require!(Need::Root);
    crash_everywhere(Level::Root);
}

#[test]
fn rootless_runs_killed_at_any_step_leave_nothing_after_a_sweep() {
    crash_everywhere(Level::Rootless);
}

#[test]
fn the_list_of_steps_is_the_workers_own() {
    let level = Level::here()[0];
    let listed = Exec::at(level).options(["--halt-at", "help"]).run(&["true"]);
    let text = format!("{}{}", listed.stdout, listed.stderr);
    let words: Vec<&str> = text.split_whitespace().collect();
    for step in STEPS {
        assert!(words.contains(step), "`{step}` is not a step of the worker: {text}");
    }
    let known = |word: &str| STEPS.contains(&word) || OF_SESSIONS.contains(&word);
    let unknown: Vec<&&str> = words.iter().filter(|word| !known(word)).collect();
    assert!(unknown.is_empty(), "steps that no test kills at: {unknown:?}");
}

#[test]
fn the_next_start_repairs_what_a_killed_worker_left() {
    require!(Need::Root);
    let _turn = lock::alone();
    for level in Level::here() {
        let running = Exec::at(level).alone().grace(Duration::from_secs(6)).spawn(&[
            "/bin/bash",
            "-c",
            "setsid sleep 60 & setsid sleep 60 & sleep 60",
        ]);
        let deadline = Instant::now() + Duration::from_secs(10);
        while running.processes().len() < 5 && Instant::now() < deadline {
            sleep(Duration::from_millis(10));
        }
        signal(running.worker_pid(), "-KILL");
        assert!(running.ends_within(Duration::from_secs(5)), "{level:?}");
        // Not under this harness's own check: the remains of the first run are part of it.
        let next = Exec::at(level)
            .alone()
            .caller_env("XDG_RUNTIME_DIR", &running.home())
            .run_and_leave(&["/bin/true"]);
        assert!(next.ok(), "{level:?}: {}", next.text());
        let outcome = running.wait();
        assert_eq!(outcome.leftovers, [""; 0], "INV-10 {level:?}: {}", outcome.text());
    }
}

#[test]
fn a_sweep_does_not_touch_a_live_jail() {
    for level in Level::here() {
        let dir = directory_of(level);
        let running = Exec::at(level).workspace(dir.path()).spawn(&[
            "/bin/bash",
            "-c",
            "echo x >f; sleep 1.2; cat f; echo alive",
        ]);
        sleep(Duration::from_millis(600));
        sweep(level, &running.home());
        let outcome = running.wait();
        assert_eq!(outcome.stdout, "x\nalive\n", "{level:?}: {}", outcome.text());
        assert_eq!(outcome.leftovers, [""; 0], "{level:?}: {}", outcome.text());
    }
}

/// Starts `script` and waits until its `sleep` runs.
fn asleep(level: Level, script: &str) -> Running {
    let running =
        Exec::at(level).timeout(Duration::from_secs(25)).spawn(&["/bin/bash", "-c", script]);
    let deadline = Instant::now() + Duration::from_secs(10);
    let sleeps = |pid: &u32| status_field(*pid, "Name:").is_some_and(|name| name == "sleep");
    while !running.processes().iter().any(sleeps) && Instant::now() < deadline {
        sleep(Duration::from_millis(10));
    }
    running
}

#[test]
fn signals_to_the_worker_end_the_jail() {
    for level in Level::here() {
        for (name, status) in [("-TERM", 143), ("-INT", 130), ("-HUP", 129)] {
            let running = asleep(level, "setsid sleep 60 & sleep 60");
            signal(running.worker_pid(), name);
            assert!(running.ends_within(Duration::from_secs(10)), "{level:?} {name}");
            let outcome = running.wait();
            let ended = [End::Exit(status), End::Signal(status - 128)].contains(&outcome.end);
            assert!(ended, "{level:?} {name}: {}", outcome.text());
            assert_eq!(outcome.leftovers, [""; 0], "INV-10 {level:?} {name}");
        }
    }
}

#[test]
fn a_payload_that_ignores_signals_cannot_keep_the_worker() {
    // INV-11: a service manager's stop is bounded; a second request is a last one.
    for level in Level::here() {
        let running = asleep(level, "trap '' TERM INT HUP; sleep 60; sleep 60");
        signal(running.worker_pid(), "-TERM");
        running.ends_within(Duration::from_secs(2));
        signal(running.worker_pid(), "-TERM");
        assert!(running.ends_within(Duration::from_secs(12)), "INV-11 {level:?}: it goes on");
        let outcome = running.wait();
        assert_eq!(outcome.leftovers, [""; 0], "INV-10 {level:?}: {}", outcome.text());
    }
}
