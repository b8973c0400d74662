//! Hostile files for the file tools of a session: what bash, which may go anywhere in the jail,
//! prepares so that a tool follows it outside the permitted roots. INV-7, INV-11.

use std::time::{Duration, Instant};

use e2e::bait::SECRET;
use e2e::session::{Answer, Choice};
use e2e::{Level, Session};
use serde_json::{Value, json};

/// Every file tool, looking at a path in its own way.
fn looks(path: &str) -> Vec<(&'static str, Value)> {
    vec![
        ("read", json!({ "file_path": path })),
        ("grep", json!({ "pattern": "e2e-secret", "path": path })),
        ("grep", json!({ "pattern": "e2e-secret" })),
        ("glob", json!({ "pattern": "**/*", "path": path })),
        ("glob", json!({ "pattern": format!("{path}/*") })),
        ("edit", json!({ "file_path": path, "old_string": "e2e", "new_string": "owned" })),
        ("write", json!({ "file_path": path, "content": "owned" })),
        ("write", json!({ "file_path": format!("{path}/new"), "content": "owned" })),
    ]
}

/// A secret that bash can read and no tool may: in /tmp and at home.
fn plant(session: &mut Session) {
    let made = session.bash(&format!(
        "mkdir -p /tmp/out ~/out; for f in /tmp/out/secret ~/out/secret; do echo {SECRET} >$f; done; \
         touch /tmp/out/only-outside; cat /tmp/out/secret ~/out/secret"
    ));
    let control = format!("{SECRET}\n{SECRET}");
    assert_eq!(made.text, control, "control {:?}: bash reads it", session.level);
}

fn leaks(answer: &Answer) -> bool {
    answer.text.contains(SECRET) || answer.text.contains("only-outside")
}

/// Nothing outside was changed, and nothing was made there.
fn untouched(session: &mut Session, after: &str) {
    let look = "cat /tmp/out/secret ~/out/secret; ls /tmp/out ~/out | grep -v '^$'";
    let text = session.bash(look).text;
    let home = session.bash("echo ~").text;
    let want = format!("{SECRET}\n{SECRET}\n{home}/out:\nsecret\n/tmp/out:\nonly-outside\nsecret");
    assert_eq!(text, want, "INV-7 {:?}: after {after}", session.level);
}

/// What bash makes in the workspace, and the path that a tool is then given.
const LINKS: &[(&str, &str)] = &[
    ("ln -s /tmp/out/secret l", "l"),
    ("ln -s /tmp/out l", "l"),
    ("ln -s /tmp/out l", "l/secret"),
    ("ln -s ../tmp/out l", "l/secret"),
    ("ln -s ../../../../../tmp/out l", "l"),
    ("ln -s /tmp l", "l/out/secret"),
    ("ln -s / l", "l/tmp/out/secret"),
    ("ln -s /proc/self/root l", "l/tmp/out/secret"),
    ("ln -s /proc/self/cwd l", "l/../tmp/out/secret"),
    ("ln -s /proc/1/root l", "l/tmp/out/secret"),
    ("ln -s /proc/self/fd l", "l/0"),
    ("ln -s /proc/$$/root/tmp/out l", "l"),
    ("exec 9</tmp/out/secret; ln -s /proc/$$/fd/9 l", "l"),
    ("ln -s l2 l; ln -s /tmp/out/secret l2", "l"),
    ("ln -s l l", "l"),
    ("mkdir -p d/e; ln -s /tmp/out d/e/l", "d/e/l/secret"),
    ("ln -s ~/out l", "l/secret"),
    ("ln -s /dev/shm/x l; cp /tmp/out/secret /dev/shm/x", "l"),
    ("true", "/tmp/out/secret"),
    ("true", "../tmp/out/secret"),
    ("true", "/proc/self/cwd/../tmp/out/secret"),
    ("true", "/proc/self/root/tmp/out/secret"),
    ("true", "/dev/fd/0"),
];

#[test]
fn no_link_leads_a_tool_outside_the_roots() {
    for level in Level::here() {
        let mut session = Session::start(level);
        plant(&mut session);
        for (prepare, path) in LINKS {
            for (tool, input) in looks(path) {
                session.bash(&format!("cd /workspace; rm -rf l l2 d; {prepare}"));
                let answer = session.call(tool, &input);
                assert!(!leaks(&answer), "INV-7 {level:?}: {prepare}: {tool} {input}: {answer:?}");
            }
        }
        untouched(&mut session, "links");
        session.end();
    }
}

#[test]
fn no_race_leads_a_tool_outside_the_roots() {
    // A directory, a file and a link to outside take each other's place as fast as bash can.
    let swap = "import os,itertools\nos.chdir('/workspace')\n\
        os.makedirs('real',exist_ok=True); open('real/secret','w').write('inside')\n\
        os.symlink('/tmp/out','link'); open('plain','w').write('inside'); os.symlink('/tmp/out/secret','flink')\n\
        import ctypes; c=ctypes.CDLL(None)\n\
        while True:\n  c.renameat2(-100,b'real',-100,b'link',2); c.renameat2(-100,b'plain',-100,b'flink',2)\n";
    for level in Level::here() {
        let mut session = Session::start(level);
        plant(&mut session);
        session.call("write", &json!({ "file_path": "swap.py", "content": swap }));
        session.bash("cd /workspace; python3 swap.py & sleep 0.3");
        let control = session.bash(&format!(
            "for i in {{1..20000}}; do read -r x </workspace/real/secret; [[ $x == {SECRET} ]] && echo won && break; done"
        ));
        assert_eq!(control.text, "won", "control {level:?}: bash wins the race");
        let began = Instant::now();
        let mut inside = 0;
        while began.elapsed() < Duration::from_secs(3) {
            for path in ["real/secret", "plain", "real"] {
                for (tool, input) in looks(path) {
                    let answer = session.call(tool, &input);
                    assert!(!leaks(&answer), "INV-7 {level:?}: {tool} {input}: {answer:?}");
                    inside += u32::from(!answer.is_error);
                }
            }
        }
        assert!(inside > 0, "control {level:?}: no tool ever met the files inside");
        session.call("bash", &json!({ "restart": true }));
        let text = session.bash("cat /tmp/out/secret; ls /tmp/out").text;
        assert_eq!(text, format!("{SECRET}\nonly-outside\nsecret"), "INV-7 {level:?}");
        session.end();
    }
}

/// What would hold a tool up, or fill it; each tool must come back soon.
const TRAPS: &[(&str, &str)] = &[
    ("mkfifo t", "t"),
    ("mkfifo d/t", "d"),
    ("ln -s /dev/zero t", "t"),
    ("ln -s /dev/tty t", "t"),
    ("ln -s /proc/kmsg t", "t"),
    ("python3 -c 'import socket; s=socket.socket(socket.AF_UNIX); s.bind(\"t\")'", "t"),
    ("truncate -s 1T t", "t"),
    ("truncate -s 900G d/t", "d"),
    ("(while :; do head -c 100000 /dev/zero | tr '\\0' x; done >>d/t) & sleep 0.1", "d"),
    ("(while :; do echo x; done >>t) & sleep 0.1", "t"),
    ("cd d; python3 -c 'import os\nfor i in range(1500): os.mkdir(\"x\"); os.chdir(\"x\")'", "d"),
    ("cd d; seq 1 20000 | xargs touch", "d"),
    ("cd d; touch $'\\xff\\xfe' $'a\\nb' $'\\e[31m'", "d"),
    ("echo x >t; chmod 000 t", "t"),
    ("echo x >d/x; chmod 000 d", "d"),
    ("mkdir g; cd g; rmdir ../g", "g"),
    ("echo x >t; ln t d/t2", "d/t2"),
];

#[test]
fn no_file_holds_a_tool_up_and_the_next_call_works() {
    // INV-11
    for level in Level::here() {
        let mut session = Session::start(level);
        for (prepare, path) in TRAPS {
            let clear = "cd /workspace; chmod -R u+rwx . 2>/dev/null; rm -rf t d g; mkdir d";
            session.call(
                "bash",
                &json!({ "restart": true, "command": format!("{clear}; {prepare}") }),
            );
            for (tool, input) in [
                ("read", json!({ "file_path": path })),
                ("grep", json!({ "pattern": "nowhere", "path": path })),
                ("glob", json!({ "pattern": "**/*", "path": path })),
                ("edit", json!({ "file_path": path, "old_string": "nowhere", "new_string": "y" })),
                ("write", json!({ "file_path": format!("{path}/w"), "content": "x" })),
            ] {
                let answer = session.call(tool, &input);
                let soon = answer.took < Duration::from_secs(8);
                assert!(soon, "INV-11 {level:?}: {prepare}: {tool} took {:?}", answer.took);
                assert!(answer.text.len() < 2_000_000, "INV-11 {level:?}: {prepare}: {tool}");
            }
        }
        session.call("bash", &json!({ "restart": true, "command": "chmod -R u+rwx /workspace" }));
        let after = session.call("write", &json!({ "file_path": "ok", "content": "fine" }));
        assert!(!after.is_error, "{level:?}: {after:?}");
        assert_eq!(session.call("read", &json!({ "file_path": "ok" })).text, "fine", "{level:?}");
        session.end();
    }
}

#[test]
fn with_one_layer_of_the_jail_off_no_link_leads_outside_the_roots() {
    // INV-4
    for layer in ["landlock", "seccomp", "capabilities", "rlimits"] {
        let policy = e2e::policy::PolicyFile::without(&[layer]);
        for level in Level::here() {
            let choice =
                Choice { policy: Some(policy.path().display().to_string()), ..Choice::default() };
            let mut session = Session::with(level, &choice);
            plant(&mut session);
            for (prepare, path) in LINKS.iter().step_by(3) {
                for (tool, input) in looks(path) {
                    session.bash(&format!("cd /workspace; rm -rf l l2 d; {prepare}"));
                    let answer = session.call(tool, &input);
                    let what =
                        format!("INV-4 {level:?} without {layer}: {prepare}: {tool} {input}");
                    assert!(!leaks(&answer), "{what}: {answer:?}");
                }
            }
            untouched(&mut session, layer);
            session.end();
        }
    }
}
