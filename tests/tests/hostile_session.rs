//! Hostile commands in a session's shell: what they can do to the processes that serve it, to each
//! other and to the next call. INV-6, INV-9, INV-10, INV-11; protocol TOOL-BASH-5, Appendix C.

use std::time::Duration;

use e2e::exec::directory_of;
use e2e::hostile::refused_as;
use e2e::session::{Answer, Choice, deliver_probe};
use e2e::{Level, Need, Session, require};
use serde_json::json;

const GONE: &str = "ESRCH|EPERM|EACCES|ENOENT|ENOSYS";

/// Acts on process `1`, the keeper. Each has its control with a process of the caller's own.
const ON_THE_KEEPER: &[(&str, &str)] = &[
    ("ptrace {} seize", GONE),
    ("ptrace {} attach", GONE),
    ("vm-read {}", GONE),
    ("vm-write {}", GONE),
    ("mem {}", GONE),
    ("pidfd-getfd {} 0", GONE),
    ("pidfd-getfd {} 3", GONE),
    ("kcmp {}", GONE),
    ("madvise {}", GONE),
    ("robust {}", GONE),
    ("read /proc/{}/environ", GONE),
    ("read /proc/{}/maps", GONE),
    ("read /proc/{}/auxv", GONE),
    ("open /proc/{}/mem r", GONE),
    ("open /proc/{}/fd r", GONE),
    ("open /proc/{}/fd/0 r", GONE),
    ("open /proc/{}/fd/3 w", GONE),
    ("open /proc/{}/root r", GONE),
    ("open /proc/{}/cwd r", GONE),
    ("open /proc/{}/oom_score_adj w", GONE),
    ("prlimit {}", GONE),
    ("affinity {}", GONE),
    ("idle {}", GONE),
    ("param {}", GONE),
    ("attr {}", GONE),
    ("priority 0 {}", GONE),
    ("priority 1 {}", GONE),
    ("ioprio 1 {}", GONE),
    ("ioprio 2 {}", GONE),
];

/// Refused on a process of the caller's own as well, by seccomp: no control here, they have theirs
/// in `hostile_processes.rs`.
const NO_CONTROL: &[&str] = &[
    "vm-",
    "mem",
    "pidfd-getfd",
    "kcmp",
    "madvise",
    "priority 1",
    "ioprio 2",
    "open /proc/{}/fd/3",
];

fn with_probe(level: Level) -> (Session, tempfile::TempDir) {
    let dir = directory_of(level);
    deliver_probe(dir.path(), level);
    let session = Session::with(level, &Choice { workdir: Some(dir.path()), ..Choice::default() });
    (session, dir)
}

/// What the probe said about each act.
fn each(session: &mut Session, acts: &[String]) -> Vec<(String, String)> {
    let quoted: Vec<String> = acts.iter().map(|act| format!("'{act}'")).collect();
    let answer = session.bash(&format!("./probe each {}", quoted.join(" ")));
    let line = |act: &String| {
        let found = answer.text.lines().find_map(|line| line.strip_prefix(&format!("{act}: ")));
        (act.clone(), found.unwrap_or("nothing").to_owned())
    };
    acts.iter().map(line).collect()
}

#[test]
fn the_keeper_cannot_be_traced_read_or_weakened() {
    let mut wrong = Vec::new();
    for level in Level::here() {
        let (mut session, _dir) = with_probe(level);
        let acts: Vec<String> =
            ON_THE_KEEPER.iter().map(|(act, _)| act.replace("{}", "1")).collect();
        let got = each(&mut session, &acts);
        for ((act, got), (_, want)) in got.iter().zip(ON_THE_KEEPER) {
            if !refused_as(got, want) {
                wrong.push(format!("INV-6 {level:?}: `{act}` gave `{got}`"));
            }
        }
        // Everything of the user, the keeper with it.
        for act in ["priority 2 0", "ioprio 3 0"] {
            let got = each(&mut session, &[act.to_owned()]).remove(0).1;
            if !refused_as(&got, "EPERM") {
                wrong.push(format!("INV-6 {level:?}: `{act}` gave `{got}`"));
            }
        }
        // Not while it is still becoming `sleep`: then it has no environment to read.
        let start = "sleep 300 & until grep -q . /proc/$!/environ; do :; done; echo $!";
        let own = session.bash(start).text;
        let with_control = ON_THE_KEEPER
            .iter()
            .filter(|(act, _)| !NO_CONTROL.iter().any(|start| act.starts_with(start)));
        let controls: Vec<String> =
            with_control.map(|(act, _)| act.replace("{}", own.trim())).collect();
        for (act, got) in each(&mut session, &controls) {
            if !got.starts_with("ok") {
                wrong.push(format!("{level:?}: control `{act}` gave `{got}`"));
            }
        }
        session.restart("acts on the keeper");
        session.end();
    }
    assert!(wrong.is_empty(), "{} acts:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn no_signal_reaches_the_keeper_and_nobody_else_answers() {
    for level in Level::here() {
        let (mut session, _dir) = with_probe(level);
        let before = session.processes();
        let seen = session.bash("./probe reach").text;
        let pids: Vec<u32> = seen.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        // The keeper, bash and the probe.
        assert!(pids.len() <= 3 && pids.first() == Some(&1), "INV-6 {level:?}: {seen}");
        for signal in (1..=64).filter(|signal| !matches!(signal, 32 | 33)) {
            session.begin("bash", &json!({ "command": format!("kill -{signal} 1; true") }));
            assert!(session.answer().is_some(), "INV-6 {level:?}: signal {signal} ended it");
        }
        for flood in ["flood 1 17 20000", "flood 1 34 20000", "flood 1 60 20000", "flood 1 10 99"] {
            let answer = session.bash(&format!("timeout 20 ./probe {flood}"));
            let refused = answer.text.contains("EPERM") || answer.text.starts_with("ok");
            assert!(refused, "{level:?} {flood}: {answer:?}");
        }
        session.bash("kill -9 -1; kill -STOP -1; true");
        session.restart("signals to everybody");
        let after = session.processes();
        assert_eq!((before.keeper, before.executor), (after.keeper, after.executor), "{level:?}");
        session.end();
    }
}

#[test]
fn commands_inherit_three_descriptors_and_no_more() {
    for level in Level::here() {
        let mut session = Session::start(level);
        // The fourth is the listing's own.
        let own = session.bash("/bin/ls /proc/self/fd").text;
        assert_eq!(own, "0\n1\n2\n3", "INV-6 {level:?}");
        let what = session.bash("readlink /proc/self/fd/0; readlink /proc/self/fd/1 | cut -d: -f1");
        assert_eq!(what.text, "/dev/null\npipe", "{level:?}");
        // What the shell holds leads to nothing but itself: pipes, and the file of the command.
        let shell =
            session.bash("for f in /proc/$$/fd/*; do readlink $f | cut -d: -f1; done | sort -u");
        for line in shell.text.lines() {
            let known = ["pipe", "/dev/null", "/memfd"].contains(&line);
            assert!(known, "INV-6 {level:?}: the shell holds {line}");
        }
        let coprocess =
            session.bash("coproc cat; sleep 0.1; ls /proc/$COPROC_PID/fd; kill $COPROC_PID");
        assert!(!coprocess.text.contains("59"), "{level:?}: {coprocess:?}");
        session.end();
    }
}

#[test]
fn ipc_objects_and_names_of_sockets_are_of_the_session_alone() {
    // INV-6: nothing of the executor can be met by a name.
    for level in Level::here() {
        let mut session = Session::start(level);
        let listed = session.bash("cat /proc/sysvipc/* | grep -vc key; cat /proc/net/unix | wc -l");
        let control = session.bash("ipcmk -Q >/dev/null && cat /proc/sysvipc/msg | wc -l");
        assert!(
            listed.text.starts_with('0') || listed.text.contains("No such"),
            "{level:?}: {listed:?}"
        );
        assert!(control.text.trim() == "2" || control.is_error, "{level:?}: {control:?}");
        let bound = "python3 - <<'E'\nimport socket\n\
            s=socket.socket(socket.AF_UNIX); s.bind('\\0x'); s.listen(); print('bound')\nE";
        let socket = session.bash(bound);
        assert!(socket.text.contains("bound"), "control {level:?}: {socket:?}");
        session.end();
    }
}

/// Commands after which the very next calls must be served as if nothing had been.
const SELF_HARM: &[&str] = &[
    // limits
    "ulimit -n 3",
    "ulimit -f 0",
    "ulimit -v 1000",
    "ulimit -u 0",
    "ulimit -s 8",
    "ulimit -t 1",
    "ulimit -d 0",
    "ulimit -i 0",
    "ulimit -c 0; kill -SEGV $$",
    // descriptors and places
    "exec 0<&- 1>&- 2>&-",
    "umask 777",
    "mkdir d; cd d; rmdir ../d",
    "rm -rf /workspace/* /tmp/*",
    // what the next shell might read
    "for f in ~/.bashrc ~/.profile ~/.bash_profile /tmp/env; do echo 'echo poisoned; exit 3' >$f; done",
    "export BASH_ENV=/tmp/env ENV=/tmp/env PROMPT_COMMAND='echo poisoned' LD_PRELOAD=/tmp/none.so PS4='$(exit)'",
    "export SHELLOPTS; set -o noclobber -o nounset",
    "declare -rx PATH= IFS=x HOME=/none",
    // names
    "eval() { echo no; }; source() { :; }; printf() { :; }; builtin() { :; }; trap() { :; }; echo() { :; }; command() { :; }",
    "enable -n builtin eval echo trap set . command",
    "shopt -s expand_aliases; alias echo=false eval=false builtin=false",
    "readonly -f x; readonly IFS BASH_SOURCE _; set -o posix",
    "exec -a nobody bash -c 'sleep 0.1'",
    // traps and stops
    "trap 'echo trapped; return 1' DEBUG ERR RETURN; trap 'echo bye' EXIT",
    "trap '' {1..64}",
    "kill -STOP $$",
    "(sleep 0.3; kill -9 $PPID) &",
    "for i in {1..300}; do sleep 300 & done; disown -a",
    "for i in {1..200}; do (true &) ; done",
    "python3 -c 'import os\nfor i in range(150):\n  os.fork() or os._exit(0)\nos.kill(os.getppid(),19)'",
    "for i in {1..50000}; do true & done 2>/dev/null",
    // the command pipe, the status pipe, the output
    "timeout 1 sh -c 'cat /dev/zero >/proc/$PPID/fd/0'",
    "(cat /dev/zero >/proc/$$/fd/0) & kill -STOP $$",
    "cat /dev/zero >/proc/$$/fd/59 &",
    "yes '0000000000000000 0' >/proc/$$/fd/59 & sleep 0.2",
    "cat /proc/$$/fd/0 >/dev/null & sleep 0.2",
    "cat /proc/$$/fd/1 >/dev/null & sleep 0.2",
    "read -r line <&10; read -r more </proc/$$/fd/0; echo $line $more",
    "chmod 000 /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/58 /proc/$$/fd/59",
    "chmod 777 /proc/$$/fd/58; echo 'echo forged' >/proc/$$/fd/58",
    "truncate -s 0 /proc/$$/fd/58; exec 58</dev/null 59>/dev/null",
    ": >/proc/$$/fd/58",
    "flock -x -n /proc/$$/fd/58 sleep 300 & sleep 0.1",
    "python3 -c 'import fcntl,os\nfor n in (0,1,59):\n f=os.open(f\"/proc/{os.getppid()}/fd/{n}\",os.O_RDWR|os.O_NONBLOCK)\n fcntl.fcntl(f,1031,4096)'",
    "python3 -c 'import fcntl,os\nfor a in (0,1): f=os.open(f\"/proc/{os.getppid()}/fd/58\",os.O_RDONLY); fcntl.fcntl(f,1024,a)\ntry: fcntl.fcntl(f,1033,15)\nexcept OSError as e: print(e)'",
];

fn works(answer: &Answer) -> bool {
    answer.text.ends_with("alive") || answer.text.contains("was restarted")
}

/// Harms the shell, calls once more, restarts, and compares with a fresh one.
fn survive(level: Level, commands: &[&str]) {
    let mut session = Session::start(level);
    let before = session.processes();
    let look =
        "x=(/proc/[0-9]*); echo ${#x[@]}; unset x; umask; ulimit -n; ulimit -u; echo $PWD ${X-}";
    let want = session.bash(look).text;
    for command in commands {
        let harm = session.limited(command, 1500);
        assert!(harm.took < Duration::from_secs(10), "INV-11 {level:?}: {command:?}: {harm:?}");
        let next = session.limited("/bin/echo alive", 3000);
        assert!(next.took < Duration::from_secs(12), "INV-11 {level:?}: {command:?}: {next:?}");
        assert!(!next.text.contains("forged"), "{level:?}: {command:?}: {next:?}");
        if !works(&next) {
            eprintln!("{level:?}: after {command:?}: {}", next.text);
        }
        session.restart(command);
        let left = session.bash(look).text;
        assert_eq!(left, want, "INV-10 {level:?}: after {command:?} and a restart");
    }
    let after = session.processes();
    assert_eq!((before.keeper, before.executor), (after.keeper, after.executor), "{level:?}");
    session.end();
}

#[test]
fn nothing_a_command_does_to_its_shell_survives_a_restart_as_root() {
    require!(Need::Root);
    survive(Level::Root, SELF_HARM);
}

#[test]
fn nothing_a_command_does_to_its_shell_survives_a_restart_without_root() {
    survive(Level::Rootless, SELF_HARM);
}

#[test]
fn a_forged_status_misreports_its_own_call_at_most() {
    // INV-9, TOOL-BASH-4: the second of our lines, with the nonce, is in the pipe while the command runs.
    let thief = "line=; read -r -t 1 line </proc/$$/fd/0; nonce=${line#*echo }; nonce=${nonce%% *}; \
                 echo \"$nonce 0\" >/proc/$$/fd/59; echo run >>count; sleep 1; echo late; exit 9";
    for level in Level::here() {
        let mut session = Session::start(level);
        for round in 1..=2 {
            let forged = session.limited(thief, 5000);
            assert!(forged.took < Duration::from_secs(10), "{level:?}: {forged:?}");
            let next = session.limited("echo next >>count; echo one", 9000);
            assert!(next.took < Duration::from_secs(13), "{level:?}: {next:?}");
            session.restart(thief);
            let count = session.bash("grep -c run count; grep -c next count").text;
            // Once each, or not at all where the shell was lost before; never twice.
            let numbers: Vec<u32> = count.lines().filter_map(|line| line.parse().ok()).collect();
            assert!(numbers.iter().all(|times| *times <= round), "INV-9 {level:?}: {count}");
            assert_eq!(numbers.first(), Some(&round), "INV-9 {level:?}: {count}");
        }
        let honest = session.bash("(exit 7)");
        assert_eq!(honest.text, "exit code: 7", "{level:?}");
        session.end();
    }
}

#[test]
fn a_daemon_is_attributed_to_its_call_and_ends_with_a_restart() {
    // INV-10
    for level in Level::here() {
        let (mut session, _dir) = with_probe(level);
        let started = session.bash("./probe daemon $PWD/beat; true");
        assert!(started.facts.contains("left_running: 1"), "{level:?}: {}", started.facts);
        let quiet = session.bash("sleep 0.2");
        assert!(quiet.facts.contains("left_running: 0"), "{level:?}: {}", quiet.facts);
        let grows = "until test -s beat; do sleep 0.01; done; wc -c <beat >a; cp a b; \
            for n in {1..100}; do cmp -s a b || break; sleep 0.05; wc -c <beat >b; done; cmp -s a b";
        let alive = session.bash(grows);
        assert!(alive.is_error, "control {level:?}: the daemon does not run: {alive:?}");
        session.restart("a daemon");
        let dead = session.bash("wc -c <beat >a; sleep 0.1; wc -c <beat >b; cmp -s a b");
        assert!(!dead.is_error, "INV-10 {level:?}: the daemon outlived a restart: {dead:?}");
        session.end();
    }
}

#[test]
fn a_crash_leaves_no_core_and_the_shells_program_cannot_be_replaced() {
    for level in Level::here() {
        let mut session = Session::start(level);
        let core = session
            .bash("ulimit -c unlimited; sh -c 'kill -SEGV $$'; ls core* 2>&1 | wc -l; ulimit -c");
        assert!(core.text.contains("\n1\n"), "only the complaint of ls: {level:?}: {core:?}");
        for place in
            ["/bin/bash", "/usr/bin/bash", "/etc/ld.so.preload", "/etc/profile", "/etc/bash.bashrc"]
        {
            let write = session.bash(&format!("echo x >>{place}"));
            assert!(write.is_error, "INV-7 {level:?}: {place} was changed: {write:?}");
        }
        let moved = session
            .bash("mkdir -p /tmp/b; ln -s /bin/false /tmp/b/bash; export PATH=/tmp/b; exit 0");
        assert!(!moved.is_error, "{level:?}: {moved:?}");
        session.restart("another bash on the path");
        session.end();
    }
}
