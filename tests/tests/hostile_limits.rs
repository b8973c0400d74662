//! Things that run out: processes, memory, space, inodes, descriptors, time, output. INV-11: each
//! limit that hits is named on standard error in one sentence.

use std::time::Duration;

use e2e::policy::PolicyFile;
use e2e::{End, Exec, Level, Need, Outcome, require};

/// The worker must say which limit hit, by the name that `--limit` uses or by the policy's key.
fn explained(outcome: &Outcome, limit: &str) {
    let key = match limit {
        "disk" => "filesystem.workspace_size",
        "inodes" => "filesystem.workspace_inodes",
        other => other,
    };
    let names = |line: &str| line.to_lowercase().contains(limit) || line.contains(key);
    let told = outcome.stderr.lines().any(names);
    assert!(told, "INV-11: `{limit}` is not explained: {}", outcome.text());
}

#[test]
fn a_fork_bomb_stops_at_the_limit_and_is_explained() {
    require!(Need::Root);
    let outcome = Exec::at(Level::Root).limit("pids=64").probe(&["forks", "2000"]);
    assert_eq!(outcome.stdout.trim(), "errno EAGAIN", "{}", outcome.text());
    explained(&outcome, "pids");
    let made: u32 = outcome
        .stderr
        .lines()
        .find_map(|line| line.strip_prefix("forks: "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(u32::MAX);
    assert!((20..64).contains(&made), "{made} processes under a limit of 64");

    let bomb = Exec::at(Level::Root).limit("pids=64").limit("wall=10s").probe(&["bomb", "1"]);
    assert_ne!(bomb.end, End::TimedOut, "{}", bomb.text());

    // Control: a limit that is wide enough stops nothing.
    let control = Exec::at(Level::Root).probe(&["forks", "200"]);
    assert!(control.stdout.starts_with("ok"), "control: {}", control.text());
}

#[test]
fn zombies_and_threads_count_as_processes() {
    require!(Need::Root);
    for act in ["zombies", "threads"] {
        let outcome = Exec::at(Level::Root).limit("pids=64").probe(&[act, "2000"]);
        assert_eq!(outcome.stdout.trim(), "errno EAGAIN", "{act}: {}", outcome.text());
        explained(&outcome, "pids");
        let control = Exec::at(Level::Root).probe(&[act, "200"]);
        assert!(control.stdout.starts_with("ok"), "control {act}: {}", control.text());
    }
}

#[test]
fn rootless_a_storm_of_processes_stops_where_the_report_says_so() {
    // Rootless has no cgroup unless one is delegated; a limit per user stands in for it.
    let outcome = Exec::at(Level::Rootless).limit("pids=64").probe(&["forks", "2000"]);
    assert_eq!(outcome.stdout.trim(), "errno EAGAIN", "{}", outcome.text());
}

#[test]
fn memory_beyond_the_limit_kills_and_is_explained() {
    require!(Need::Root);
    let outcome = Exec::at(Level::Root).limit("memory=128MiB").probe(&["memory", "400"]);
    assert_eq!(outcome.end, End::Exit(137), "{}", outcome.text());
    explained(&outcome, "memory");
    let control = Exec::at(Level::Root).probe(&["memory", "400"]);
    assert!(control.ok(), "control: {}", control.text());
}

#[test]
fn memory_held_in_file_systems_counts() {
    require!(Need::Root);
    let outcome = Exec::at(Level::Root).limit("memory=64MiB").bash(
        "head -c 60M /dev/zero >/dev/shm/a; head -c 60M /dev/zero >/tmp/b; \
         head -c 60M /dev/zero >/workspace/c; echo all of it",
    );
    assert!(!outcome.stdout.contains("all of it"), "{}", outcome.text());
    explained(&outcome, "memory");
}

#[test]
fn init_survives_when_memory_runs_out_and_other_runs_go_on() {
    require!(Need::Root);
    let beside = Exec::at(Level::Root).spawn(&["/bin/bash", "-c", "sleep 1; echo fine"]);
    let outcome = Exec::at(Level::Root).limit("memory=64MiB").bash("tail /dev/zero; echo $?");
    explained(&outcome, "memory");
    let beside = beside.wait();
    assert_eq!(beside.stdout.trim(), "fine", "{}", beside.text());
}

#[test]
fn space_and_inodes_of_the_workspace_run_out_at_the_limit() {
    for level in Level::here() {
        let run = |limit: &str, act: &[&str]| Exec::at(level).limit(limit).probe(act);
        let outcome = run("disk=16MiB", &["fill", "/workspace/f", "64"]);
        assert_eq!(outcome.stdout.trim(), "errno ENOSPC", "{level:?}: {}", outcome.text());
        explained(&outcome, "disk");
        let home = run("disk=16MiB", &["fill", "/mnt/session/outputs/f", "64"]);
        assert_eq!(home.stdout.trim(), "errno ENOSPC", "{level:?}: {}", home.text());
        let outcome = run("inodes=500", &["inodes", "/workspace", "2000"]);
        assert_eq!(outcome.stdout.trim(), "errno ENOSPC", "{level:?}: {}", outcome.text());
        explained(&outcome, "inodes");
        let control = run("disk=128MiB", &["fill", "/workspace/f", "64"]);
        assert!(control.ok(), "control {level:?}: {}", control.text());
        let control = run("inodes=5000", &["inodes", "/workspace", "2000"]);
        assert!(control.ok(), "control {level:?}: {}", control.text());
    }
}

#[test]
fn space_and_inodes_of_a_bound_workspace_run_out_at_the_limit() {
    // "never silently unlimited": refused at the start (exit 5) or held to the limit.
    for level in Level::here() {
        for (limit, act) in [
            ("disk=16MiB", ["fill", "/workspace/f", "64"]),
            ("inodes=500", ["inodes", "/workspace", "2000"]),
        ] {
            let dir = e2e::exec::directory_of(level);
            let outcome = Exec::at(level).limit(limit).workspace(dir.path()).probe(&act);
            let held = outcome.stdout.trim() == "errno ENOSPC" || outcome.end == End::Exit(5);
            assert!(held, "{level:?} {limit}: {}", outcome.text());
        }
    }
}

#[test]
fn memory_file_systems_have_sizes() {
    // The default policy: 256 MiB in /tmp, 64 MiB in /dev/shm, inodes limited in both.
    for level in Level::here() {
        let acts: [&[&str]; 4] = [
            &["fill", "/tmp/f", "400"],
            &["fill", "/dev/shm/f", "100"],
            &["inodes", "/tmp", "2000000"],
            &["inodes", "/dev/shm", "2000000"],
        ];
        for act in acts {
            let outcome = Exec::at(level).probe(act);
            assert_eq!(
                outcome.stdout.trim(),
                "errno ENOSPC",
                "{level:?} {act:?} {}",
                outcome.text()
            );
        }
        let control = Exec::at(level).probe(&["fill", "/tmp/f", "100"]);
        assert!(control.ok(), "control {level:?}: {}", control.text());
    }
}

#[test]
fn nothing_else_in_the_tree_takes_data() {
    for level in Level::here() {
        let script = "for d in / /etc /run /dev /mnt /mnt/session /usr /var /opt /srv /proc /sys; do \
                        if [ -d $d ] && head -c 1M /dev/zero >$d/fill 2>/dev/null; then \
                          echo \"$d takes data\"; fi; done; exit 0";
        let outcome = Exec::at(level).bash(script);
        assert_eq!(outcome.stdout, "", "{level:?}: {}", outcome.text());
    }
}

#[test]
fn descriptors_run_out_at_the_limit() {
    for level in Level::here() {
        let outcome = Exec::at(level).probe(&["descriptors", "20000"]);
        assert_eq!(outcome.stdout.trim(), "errno EMFILE", "{level:?}: {}", outcome.text());
        let control = Exec::at(level).probe(&["descriptors", "4000"]);
        assert!(control.ok(), "control {level:?}: {}", control.text());
    }
}

#[test]
fn the_wall_clock_ends_a_run_with_124() {
    for level in Level::here() {
        for command in ["sleep 60", "trap '' TERM INT HUP; while :; do sleep 1; done"] {
            let outcome = Exec::at(level).limit("wall=1s").bash(command);
            assert_eq!(outcome.end, End::Exit(124), "{level:?}: {}", outcome.text());
            assert!(outcome.elapsed < Duration::from_secs(8), "{:?}", outcome.elapsed);
            explained(&outcome, "wall");
        }
        let control = Exec::at(level).limit("wall=30s").bash("sleep 1.2");
        assert!(control.ok(), "control {level:?}: {}", control.text());
    }
}

#[test]
fn the_cpu_limit_slows_a_hog_down() {
    require!(Need::Root);
    let spent = |outcome: &Outcome| -> u32 {
        let number = outcome.stdout.trim().strip_prefix("ok ").and_then(|text| text.parse().ok());
        number.unwrap_or_else(|| panic!("{}", outcome.text()))
    };
    let slow = Exec::at(Level::Root).limit("cpu=0.25").probe(&["spin", "2", "2"]);
    assert!(spent(&slow) < 1000, "half a CPU second is the limit: {}", slow.text());
    let without = PolicyFile::without(&["cgroup"]);
    let control = Exec::at(Level::Root).policy(without.path()).probe(&["spin", "2", "2"]);
    assert!(spent(&control) > 1000, "control: {}", control.text());
}

#[test]
fn a_flood_of_output_stops_at_the_limit_and_is_explained() {
    for level in Level::here() {
        let outcome = Exec::at(level).limit("output=1MiB").bash("yes; yes >&2");
        let size = outcome.stdout.len() + outcome.stderr.len();
        assert!(size < (1 << 20) + 16_384, "{level:?}: {size} bytes");
        assert_ne!(outcome.end, End::TimedOut, "{level:?}: {}", outcome.text());
        assert_ne!(outcome.end, End::Exit(0), "{level:?}: {}", outcome.text());
        explained(&outcome, "output");
        let control = Exec::at(level).limit("output=4MiB").bash("yes | head -c 3M");
        assert!(control.ok() && control.stdout.len() == 3 << 20, "control {level:?}");
    }
}

#[test]
fn memory_cannot_be_locked_without_bound() {
    for level in Level::here() {
        let outcome = Exec::at(level).probe(&["lock-memory", "512"]);
        assert!(outcome.stdout.starts_with("errno"), "{level:?}: {}", outcome.text());
    }
}

#[test]
fn a_jail_cannot_use_up_the_terminals_of_others() {
    // kernel.pty.max is one number for the whole host.
    for level in Level::here() {
        let storm = Exec::at(level).stdin(e2e::exec::probe_bytes()).spawn(&[
            "/bin/bash",
            "-c",
            "cat >/tmp/probe; chmod +x /tmp/probe; ulimit -n $(ulimit -Hn); /tmp/probe ptys 8000 2",
        ]);
        std::thread::sleep(Duration::from_millis(1200));
        let other = Exec::at(level).bash("script -qec tty /dev/null");
        let storm = storm.wait();
        assert!(other.stdout.contains("/dev/pts/"), "{level:?}: {} {}", other.text(), storm.text());
        assert!(storm.stdout.contains("terminals"), "{level:?}: {}", storm.text());
    }
}
