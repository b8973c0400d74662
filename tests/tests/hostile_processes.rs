//! Other processes: seen, signalled, traced, read. INV-6; `jail.md` §2.1 (CVE-2016-9962), §2.2
//! (CVE-2016-8659).

use e2e::hostile::Control::{Host, HostRoot, Impossible};
use e2e::hostile::{Control, Row, check};
use e2e::{End, Exec, Level};

const fn row(act: &'static str, want: &'static str, control: Control) -> Row {
    Row { act, want, control, cites: "INV-6" }
}

const OTHER: Control = Impossible("init is the worker's; the rows on {pid} are the control");
const GONE: &str = "ESRCH|EPERM|EACCES|ENOENT";

#[test]
fn processes_of_the_host_cannot_be_signalled_traced_or_read() {
    check(&[
        row("kill {pid} 0", GONE, Host),
        row("kill {pid} 9", GONE, Host),
        row("pidfd-kill {pid}", GONE, Host),
        row("ptrace {pid} seize", GONE, Host),
        row("ptrace {pid} attach", GONE, Host),
        row("vm-read {pid}", GONE, Host),
        row("mem {pid}", GONE, Host),
        row("pidfd-getfd {pid} 0", GONE, Host),
        row("kcmp {pid}", GONE, Host),
    ]);
}

#[test]
fn init_cannot_be_signalled_traced_or_read() {
    check(&[
        row("kill 1 9", "EPERM|ESRCH", OTHER),
        row("kill 1 19", "EPERM|ESRCH", OTHER),
        row("kill 1 0", "EPERM|ESRCH", OTHER),
        row("pidfd-kill 1", "EPERM|ESRCH", OTHER),
        row("ptrace 1 seize", GONE, OTHER),
        row("ptrace 1 attach", GONE, OTHER),
        row("vm-read 1", GONE, OTHER),
        row("vm-write 1", GONE, OTHER),
        row("mem 1", GONE, OTHER),
        row("pidfd-getfd 1 0", GONE, OTHER),
        row("pidfd-getfd 1 3", GONE, OTHER),
        row("kcmp 1", GONE, OTHER),
        row("read /proc/1/maps", GONE, OTHER),
        row("read /proc/1/auxv", GONE, OTHER),
        row("open /proc/1/task/1/mem rw", GONE, OTHER),
        row("exe 1", GONE, OTHER),
    ]);
}

#[test]
fn only_processes_of_the_jail_are_visible() {
    for level in Level::here() {
        let jailed = Exec::at(level).probe(&["pids"]);
        let numbers: Vec<u32> =
            jailed.stdout.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [count, largest] = numbers[..] else { panic!("{level:?}: {}", jailed.text()) };
        assert!(count <= 4 && largest < 64, "INV-6 {level:?}: {}", jailed.text());
        let listed = Exec::at(level).bash("ps -e -o comm=");
        assert!(!listed.stdout.contains("supervise"), "{level:?}: {}", listed.text());
        let control = e2e::exec::parents().len();
        assert!(control > 5, "control: the host itself has {control} processes");
    }
}

#[test]
fn killing_everything_within_reach_leaves_the_worker_healthy() {
    for level in Level::here() {
        // Kills the background processes; bash and init are spared by kill(2) or by right.
        let script = "sleep 100 & sleep 100 & kill -9 -1; sleep 0.1; echo survived; exit 7";
        let outcome = Exec::at(level).bash(script);
        assert_eq!(outcome.end, End::Exit(7), "{level:?}: {}", outcome.text());
        assert_eq!(outcome.stdout.trim(), "survived", "{level:?}: {}", outcome.text());
    }
}

#[test]
fn signals_to_a_group_stay_in_the_jail() {
    for level in Level::here() {
        let outcome = Exec::at(level).bash("trap '' TERM; kill -TERM 0; kill -TERM -1; echo here");
        assert_eq!(outcome.end, End::Exit(0), "{level:?}: {}", outcome.text());
        assert_eq!(outcome.stdout.trim(), "here", "{level:?}: {}", outcome.text());
    }
}

#[test]
fn identity_and_priority_cannot_be_raised() {
    check(&[
        row("setuid 0", "EPERM|EINVAL", HostRoot),
        row("setuid 65534", "EPERM|EINVAL", HostRoot),
        row("setgid 0", "EPERM|EINVAL", HostRoot),
        row("nice -20", "EPERM|EACCES", HostRoot),
        row("realtime", "EPERM", HostRoot),
        row("oom-shield", "EACCES|EPERM|ENOENT|EROFS", Impossible("needs a capability few have")),
        row("raise nofile", "EPERM", Impossible("needs a capability few have")),
        row("raise core", "EPERM", Impossible("needs a capability few have")),
    ]);
}

#[test]
fn a_daemon_does_not_outlive_its_command() {
    for level in Level::here() {
        let dir = e2e::exec::directory_of(level);
        let script = "cat >/tmp/probe; chmod +x /tmp/probe; /tmp/probe daemon /workspace/beat; \
                      lines() { cat /workspace/beat 2>/dev/null | wc -l; }; \
                      for n in {1..100}; do sleep 0.05; (($(lines) > 2)) && break; done; lines";
        let outcome =
            Exec::at(level).workspace(dir.path()).stdin(e2e::exec::probe_bytes()).bash(script);
        let beats = |text: &str| {
            text.lines().last().and_then(|line| line.trim().parse::<usize>().ok()).unwrap_or(0)
        };
        assert!(beats(&outcome.stdout) > 2, "no daemon {level:?}: {}", outcome.text());
        // `run` has already counted processes; the file is the second witness (INV-10).
        let file = dir.path().join("beat");
        let size = || std::fs::metadata(&file).map_or(0, |meta| meta.len());
        let then = size();
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(size(), then, "INV-10 {level:?}: the daemon still writes");
    }
}
