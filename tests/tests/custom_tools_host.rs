//! What holds a custom tool on the host: the cgroup of its session, process limits, the system call
//! filter (INV-7, INV-10). Each refusal beside a run in which only that layer is off.

use std::fs;
use std::time::Duration;

use e2e::custom::{Where, configured, plain, tool};
use e2e::play::{SOON, bash, expect, gives, play_with, session};
use e2e::policy::{PolicyFile, default_text};
use e2e::poll::wait_for;
use e2e::{Devserver, Level, Need, Poll, require};
use serde_json::{Value, json};

/// The default policy with other numbers, and with these layers off.
fn policy(changes: &[(&str, &str)], off: &[&str]) -> PolicyFile {
    let mut text = default_text().to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    match off {
        [] => PolicyFile::from_text(&text),
        _ => PolicyFile::relaxed(&text, off),
    }
}

/// One session with these calls; the events of its limits.
fn play(level: Level, policy: &PolicyFile, tools: &str, calls: Vec<Value>) -> Vec<Value> {
    let played = play_with(level, "", &[session("one", calls)], |poll| {
        configured(poll.path("--policy", &policy.path()), tools)
    });
    played.ran.audited("limit.hit").into_iter().cloned().collect()
}

/// Shared pages are counted by a cgroup, and by no process limit: only the cgroup can be in the way.
const FILL: &str = "python3 -c 'import mmap
m = mmap.mmap(-1, 300 << 20)
for at in range(0, 300 << 20, 4096): m[at] = 1
print(\"filled\")'";
const MEMORY: (&str, &str) = ("memory = \"2GiB\"", "memory = \"128MiB\"");
/// Forty processes at once.
const CROWD: &str = "python3 -c 'import os, signal, sys
children = []
try:
  for _ in range(40):
    child = os.fork()
    if child == 0: signal.pause()
    children.append(child)
  print(\"everybody\")
except OSError as error: print(error.strerror); sys.exit(3)
finally:
  for child in children: os.kill(child, 9)'";
const PIDS: (&str, &str) = ("pids = 1_024", "pids = 32");

#[test]
fn a_tool_on_the_host_has_the_memory_and_the_processes_of_its_session() {
    require!(Need::Root);
    let tools = tool(Where::Host, "fill", FILL, "")
        + &tool(Where::Host, "crowd", CROWD, "")
        + &tool(Where::Host, "well", "echo well", "");
    let limits = play(
        Level::Root,
        &policy(&[MEMORY, PIDS], &[]),
        &tools,
        vec![
            expect(
                plain("fill"),
                json!({"is_error": true, "lacks": "filled",
                    "matches": "exit code: 137\n\\[jail\\] A limit of this session .*\n  - the memory limit of 128 MiB was reached and 1 process was killed \\(process.memory\\)"}),
            ),
            expect(
                plain("crowd"),
                json!({"is_error": true, "lacks": "everybody",
                    "matches": "temporarily unavailable\nexit code: 3\n\\[jail\\] .*\n  - the limit of 32 processes .*process.pids"}),
            ),
            // The session and the jail go on, with limits that are their own.
            gives(plain("well"), "well"),
            gives(bash("echo on"), "on"),
        ],
    );
    let hit: Vec<&Value> = limits.iter().map(|event| &event["limit"]).collect();
    assert_eq!(hit, [&json!("process.memory"), &json!("process.pids")], "{limits:?}");
    // The control: only the cgroup is off.
    let without = policy(&[MEMORY, PIDS], &["cgroup"]);
    let calls = vec![gives(plain("fill"), "filled"), gives(plain("crowd"), "everybody")];
    assert_eq!(play(Level::Root, &without, &tools, calls), [json!(null); 0]);
}

/// The name of its group, and its quota of CPU time in 100 ms.
const CPU: &str = r#"
v1=$(sed -n 's/^[0-9]*:cpu\(,cpuacct\)\?://p' /proc/self/cgroup)
v2=$(sed -n 's/^0:://p' /proc/self/cgroup)
basename "${v1:-$v2}" | tr -d 0-9
cat /sys/fs/cgroup/cpu/$v1/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/$v2/cpu.max"#;

#[test]
fn a_tool_on_the_host_has_a_group_of_its_own_with_the_cpus_of_its_session() {
    require!(Need::Root);
    let cpus = ("cpus = 2", "cpus = 1.5");
    let tools = tool(Where::Host, "cpu", CPU, "");
    let calls = vec![gives(plain("cpu"), "outside-jail-\n150000")];
    play(Level::Root, &policy(&[cpus], &[]), &tools, calls);
    let control = vec![expect(plain("cpu"), json!({"lacks": "jail"}))];
    play(Level::Root, &policy(&[cpus], &["cgroup"]), &tools, control);
}

#[test]
fn where_no_cgroup_is_to_be_had_each_process_has_its_limit() {
    // Delegated groups are of v2: there it is the group that ends it.
    let take = "python3 -c 'x = bytearray(300 << 20); print(len(x))'";
    let tools = tool(Where::Host, "take", take, "");
    let level = Level::Rootless;
    let refused = expect(plain("take"), json!({"is_error": true, "lacks": "314572800"}));
    play(level, &policy(&[MEMORY], &[]), &tools, vec![refused]);
    play(level, &policy(&[], &[]), &tools, vec![gives(plain("take"), "314572800")]);
}

#[test]
fn a_required_cgroup_that_is_not_to_be_had_refuses_tools_on_the_host_before_any_claim() {
    let required = policy(&[("cgroup = false", "cgroup = true")], &[]);
    let checked = |place, code| {
        let poll = Poll::at(Level::Rootless).path("--policy", &required.path());
        let poll = configured(poll, &tool(place, "a", "true", "")).options(["--check"]);
        let server = Devserver::start();
        poll.serve(&server).wait().ended(code)
    };
    let v2 = fs::exists("/sys/fs/cgroup/cgroup.controllers").is_ok_and(|there| there);
    if v2 {
        // Whether one is delegated is not for this test to say.
        return;
    }
    let ran = checked(Where::Host, 5);
    assert!(ran.stderr.contains("cannot apply the required layer `cgroup`"), "{}", ran.stderr);
    checked(Where::Jail, 0);
}

/// What no filter of ours allows, each act in a process of its own. Prints what was done.
const ACTS: &str = r#"python3 -c '
import ctypes, os, signal, stat, tempfile
libc = ctypes.CDLL(None, use_errno=True)
arm = os.uname().machine == "aarch64"
def number(x86, other): return other if arm else x86
def call(*arguments): return libc.syscall(*[ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]) >= 0
def child():
    pid = os.fork()
    if pid == 0: signal.pause()
    return pid
def mounted():
    user, mounts = 0x10000000, 0x20000
    return call(number(272, 97), user | mounts) and libc.mount(b"none", b"/", None, 1 << 18 | 16384, None) == 0
def traced():
    pid = child()
    done = call(number(101, 117), 0x4206, pid, 0, 0)
    os.kill(pid, 9)
    return done
def setuid():
    place = tempfile.mkdtemp()
    try:
        os.chmod(place, 0o4755)
        return bool(os.stat(place).st_mode & stat.S_ISUID)
    finally: os.rmdir(place)
acts = {
    "user-namespace": lambda: call(number(272, 97), 0x10000000),
    "mount": mounted,
    "ptrace": traced,
    "keyctl": lambda: call(number(250, 219), 0, -3, 1),
    "io_uring": lambda: call(425, 1, ctypes.create_string_buffer(120)),
    "userfaultfd": lambda: call(number(323, 282), 1),
    "file-handles": lambda: call(number(303, 264), -100, b"/etc", ctypes.create_string_buffer((128).to_bytes(4, "little") + bytes(140), 144), ctypes.byref(ctypes.c_int()), 0),
    "personality": lambda: call(number(135, 92), 0x400000),
    "setuid-bit": setuid,
}
for name, act in acts.items():
    pid = os.fork()
    if pid == 0:
        try: os._exit(0 if act() else 1)
        except OSError: os._exit(1)
    if os.waitpid(pid, 0)[1] == 0: print(name)
print("and", os.getpid() > 1)'"#;

#[test]
fn the_filter_of_a_tool_on_the_host_refuses_what_no_such_tool_needs() {
    let all = "user-namespace\nmount\nptrace\nkeyctl\nio_uring\nuserfaultfd\nfile-handles\n\
               personality\nsetuid-bit\nand True";
    let status = "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status | tr -d '\\t'";
    for level in Level::here() {
        let tools = tool(Where::Host, "filtered", ACTS, "")
            + &tool(Where::Host, "bare", ACTS, "seccomp = false")
            + &tool(Where::Host, "status", status, "")
            + &tool(Where::Host, "bare_status", status, "seccomp = false");
        let calls = vec![
            gives(plain("filtered"), "and True"),
            gives(plain("bare"), all),
            gives(plain("status"), "NoNewPrivs:1\nSeccomp:2"),
            gives(plain("bare_status"), "NoNewPrivs:1\nSeccomp:0"),
        ];
        let played =
            play_with(level, "", &[session("acts", calls)], |poll| configured(poll, &tools));
        // What is less than usual is on record.
        let outside = played.ran.audited("tool.outside");
        let of = |key: &str| outside.iter().map(|event| event[key].clone()).collect::<Vec<_>>();
        assert_eq!(of("filter"), [true, false, true, false].map(Value::from), "{outside:?}");
        let grouped = level == Level::Root;
        assert!(of("cgroup").iter().all(|cgroup| *cgroup == json!(grouped)), "{outside:?}");
    }
}

#[test]
fn a_tool_on_the_host_ends_with_the_jail_of_its_session() {
    // INV-9, INV-10: its group goes with the jail, and its outcome is not known.
    require!(Need::Root);
    let server = Devserver::with("", &["--keep-results"]);
    let tools = tool(Where::Host, "slow", "echo $$ >/proc/self/comm; sleep 4713.5", "")
        + &tool(Where::Host, "well", "echo well", "");
    server.push(&session(
        "slow",
        [
            expect(
                plain("slow"),
                json!({"is_error": true, "contains": "its outcome is unknown and it was not run again"}),
            ),
            expect(plain("well"), json!({"is_error": false, "contains": "well\n[jail] The jail of"})),
            gives(bash("echo on"), "on"),
        ],
    ));
    let worker = configured(Poll::at(Level::Root), &tools).serve(&server);
    let sleeps = || {
        let named = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|part| part == b"4713.5")
        };
        worker.processes().into_iter().find(named)
    };
    assert!(wait_for(SOON, || sleeps().is_some()), "{}", worker.said());
    let control = worker.pid();
    let parents = e2e::exec::parents();
    let children = parents.iter().filter(|(_, parent)| *parent == control);
    let found = children
        .map(|(pid, _)| *pid)
        .find_map(|pid| e2e::session::below_launcher(control, pid, &parents))
        .expect("a session");
    e2e::site::signal(found.init, "-KILL");
    assert!(wait_for(Duration::from_secs(5), || sleeps().is_none()), "INV-10: still there");
    server.wait_done(2 * SOON);
    let ran = worker.stop().ended(0);
    e2e::play::passed(server.end(), &ran.stderr);
}
