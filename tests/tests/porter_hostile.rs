//! What code in a jail can try on the porter: to see it, to lead it elsewhere, to make it wait; and
//! what an archive can. With the control that the same works where it is meant to.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::exec::directory_of;
use e2e::policy::PolicyFile;
use e2e::session::{Choice, Session, namespace_ids};
use e2e::{Level, exec};
use serde_json::{Value, json};

const STORE: &str = "/mnt/memory/notes";
const PLACES: &[&str] = &["--skills", "read-write", "--store", STORE, "read-write"];
/// Answers that come later mean that something was waited for.
const SOON: Duration = Duration::from_secs(20);

fn with_places(level: Level) -> Session {
    let mut session = Session::with(level, &Choice { places: PLACES, ..Choice::default() });
    session.carried_out(&json!({ "ask": "prepare", "store": 0 }));
    session
}

fn field(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn namespace(pid: u32, kind: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}"));
    link.map(|link| link.display().to_string()).unwrap_or_default()
}

#[test]
fn the_porter_has_no_capability_and_cannot_be_seen_from_bash() {
    // INV-5, INV-6.
    for level in Level::here() {
        let mut session = with_places(level);
        let porter = session.porter().expect("a porter");
        let found = session.processes();
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(field(porter, set).trim_start_matches('0').is_empty(), "{level:?}: {set}");
        }
        assert_eq!(field(porter, "NoNewPrivs"), "1", "{level:?}");
        assert_eq!(field(porter, "Seccomp"), "2", "{level:?}");
        // What bash makes it can change, and the reverse.
        assert_eq!(field(porter, "Uid"), field(found.bash, "Uid"), "{level:?}");
        // Outside the namespace of bash, in a user namespace that owns nothing.
        assert_eq!(namespace_ids(porter).len(), namespace_ids(found.executor).len(), "{level:?}");
        for other in [found.bash, found.executor, found.init, std::process::id()] {
            assert_ne!(namespace(porter, "user"), namespace(other, "user"), "{level:?}");
        }
        assert_ne!(field(porter, "NSsid"), field(found.executor, "NSsid"), "{level:?}");
        // Not dumpable: root owns its files in /proc.
        if level == Level::Root {
            use std::os::unix::fs::MetadataExt as _;
            let owner = fs::metadata(format!("/proc/{porter}/mem")).expect("it runs").uid();
            assert_eq!(owner, 0, "INV-6 {level:?}: it can be dumped");
        }
        // Three standard streams, the connection, the workspace and two places.
        let held = fs::read_dir(format!("/proc/{porter}/fd")).expect("it runs").count();
        assert_eq!(held, 7, "INV-1 {level:?}: descriptors");
        let memory = fs::read_to_string(format!("/proc/{porter}/environ")).unwrap_or_default();
        assert!(memory.is_empty(), "INV-1 {level:?}: {memory}");
        let seen = session.bash("ls /proc | grep -c '^[0-9]'; kill -9 -1; echo survived");
        assert!(seen.is_error || seen.text.contains("survived"), "{level:?}: {seen:?}");
        session.restart("kill -9 -1");
        assert_eq!(session.porter(), Some(porter), "INV-6 {level:?}: it was reached");
        session.carried_out(&json!({ "ask": "scan", "store": 0 }));
        session.end();
    }
}

/// What bash does to the store while the porter works in it.
const SWAPS: &str = "cd /mnt/memory/notes; target=/workspace/target; mkdir -p $target; \
    echo secret >$target/keep; \
    while [ ! -e /tmp/stop ]; do mkdir d; echo x >d/f; mv d side; ln -s $target d; rm -rf side; \
    ln -sfn /etc d; rm d; mkfifo d; rm d; ln -s . d; rm d; \
    mkdir -p d/d/d/d; ln -s /proc/self/root d/d/d/root; rm -rf d; done 2>/dev/null";

fn swapping(session: &mut Session) {
    let started =
        session.bash(&format!("rm -f /tmp/stop; ({SWAPS}) >/dev/null & disown; echo going"));
    assert_eq!(started.text, "going");
}

/// Asks `requests` for a while; none may wait, and none may leave the store.
fn asked_meanwhile(session: &mut Session, requests: &[Value], what: &str) -> (u32, u32) {
    swapping(session);
    let until = Instant::now() + Duration::from_secs(3);
    let (mut done, mut refused) = (0, 0);
    while Instant::now() < until {
        for request in requests {
            let started = Instant::now();
            let answer = session.ask(request);
            assert!(started.elapsed() < SOON, "{what}: {request} waited");
            assert!(answer["error"].is_null(), "{what}: the porter is gone: {answer}");
            let text = answer.to_string();
            assert!(!text.contains("secret") && !text.contains("root:"), "INV-7 {what}: {text}");
            if answer.get("done").is_some() { done += 1 } else { refused += 1 }
        }
    }
    let end = session
        .bash("touch /tmp/stop; sleep 0.2; ls /workspace/target; cat /workspace/target/keep");
    assert_eq!(end.text, "keep\nsecret", "INV-7 {what}");
    (done, refused)
}

fn requests(archive: &Path) -> Vec<Value> {
    let unpack = |place: &str, directory: &str| {
        json!({ "ask": "unpack", "archive": archive, "place": place, "store": 0,
            "directory": directory, "replace": true })
    };
    vec![
        json!({ "ask": "write", "store": 0, "path": "d/new", "content": "x" }),
        json!({ "ask": "read", "store": 0, "path": "d/keep" }),
        json!({ "ask": "read", "store": 0, "path": "d/passwd" }),
        json!({ "ask": "scan", "store": 0 }),
        json!({ "ask": "put", "place": "store", "store": 0, "path": "d/put", "file": archive, "replace": true }),
        unpack("store", "d/s"),
        unpack("store", "d"),
        json!({ "ask": "remove_tree", "place": "store", "store": 0, "path": "d" }),
    ]
}

/// A small archive that the session's user may read.
fn archive(directory: &Path) -> std::path::PathBuf {
    fs::write(directory.join("f"), "x").expect("written");
    let path = directory.join("a.tar");
    let made = Command::new("tar").arg("-C").arg(directory).arg("-cf").arg(&path).arg("f").status();
    assert!(made.expect("tar runs").success());
    path
}

#[test]
fn nothing_that_is_swapped_meanwhile_leads_the_porter_out_of_its_place() {
    // INV-7, RACE-17, RACE-18.
    for level in Level::here() {
        let dir = directory_of(level);
        let archive = archive(dir.path());
        let mut session = with_places(level);
        let (done, refused) =
            asked_meanwhile(&mut session, &requests(&archive), &format!("{level:?}"));
        assert!(done > 0 && refused > 0, "{level:?}: no race: {done} done, {refused} refused");
        session.end();
    }
}

#[test]
fn with_one_layer_off_the_porter_stays_in_its_place_all_the_same() {
    // INV-4.
    for layer in ["landlock", "seccomp", "capabilities", "rlimits", "cgroup"] {
        let policy = PolicyFile::without(&[layer]);
        for level in Level::here() {
            let dir = directory_of(level);
            let archive = archive(dir.path());
            let policy = Some(policy.path().display().to_string());
            let choice = Choice { policy, places: PLACES, ..Choice::default() };
            let mut session = Session::with(level, &choice);
            session.carried_out(&json!({ "ask": "prepare", "store": 0 }));
            asked_meanwhile(
                &mut session,
                &requests(&archive),
                &format!("{level:?} without {layer}"),
            );
            session.end();
        }
    }
}

#[test]
fn a_store_full_of_traps_is_scanned_and_emptied() {
    for level in Level::here() {
        let mut session = with_places(level);
        let made = session.bash(&format!(
            "cd {STORE} && mkfifo fifo && ln -s fifo tofifo && ln -s /dev/zero zero && ln -s loop loop \
             && touch $'odd\\nname' $'\\xff' \"$(printf 'n%.0s' {{1..255}})\" \
             && python3 -c \"import os\nfor i in range(400):\n os.mkdir('deep'); os.chdir('deep')\" \
             && mkdir -p locked/in && touch locked/in/x && chmod 0 locked/in/x locked/in locked \
             && echo ok"
        ));
        assert_eq!(made.text, "ok", "{level:?}: {made:?}");
        let started = Instant::now();
        let scan = session.carried_out(&json!({ "ask": "scan", "store": 0 }));
        // The longest name, and what its owner locked away and can unlock.
        assert_eq!(scan["files"].as_array().map(Vec::len), Some(2), "{level:?}: {scan}");
        session.bash(&format!("cd {STORE} && chmod 0 locked/in locked; chmod 0 ."));
        for path in ["fifo", "tofifo", "zero", "loop", "deep", "loop/x"] {
            let read = session.carried_out(&json!({ "ask": "read", "store": 0, "path": path }));
            assert_eq!(read, Value::Null, "{level:?}: {path}");
        }
        assert!(started.elapsed() < SOON, "{level:?}: something was waited for");
        session.carried_out(&json!({ "ask": "clear", "place": "store", "store": 0 }));
        assert_eq!(session.bash(&format!("ls -A {STORE}")).text, "(no output)", "{level:?}");
        // Full: each of both says so, and the porter lives.
        session.bash(&format!("head -c 9000000 /dev/zero >{STORE}/full"));
        let write = json!({ "ask": "write", "store": 0, "path": "a", "content": "x".repeat(5000) });
        let refused = session.ask(&write);
        assert!(
            refused["refused"].as_str().is_some_and(|text| text.contains("No space")),
            "{refused}"
        );
        session.bash(&format!("rm {STORE}/full"));
        session.carried_out(&write);
        session.end();
    }
}

#[test]
fn an_archive_that_takes_too_much_costs_its_request_alone() {
    // SKILL-10, SKILL-12.
    let program = r#"
import sys, zipfile
with zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED) as made:
    made.writestr("a/first", "x")
    with made.open("a/bomb", "w", force_zip64=True) as to:
        for _ in range(1500):
            to.write(bytes(1 << 20))
"#;
    for level in Level::here() {
        let dir = directory_of(level);
        let (bomb, small) = (dir.path().join("bomb.zip"), archive(dir.path()));
        let made = Command::new("python3").args(["-c", program]).arg(&bomb).status();
        assert!(made.expect("python3 runs").success());
        let mut session = with_places(level);
        let unpack =
            |archive: &Path| json!({ "ask": "unpack", "archive": archive, "directory": "s" });
        let mut bounded = unpack(&bomb);
        bounded["bytes_max"] = json!(10 << 20);
        let refused = session.ask(&bounded);
        assert!(
            refused["refused"].as_str().is_some_and(|text| text.contains("bytes")),
            "{refused}"
        );
        // The place is smaller than the bound.
        let refused = session.ask(&unpack(&bomb));
        assert!(
            refused["refused"].as_str().is_some_and(|text| text.contains("No space")),
            "{refused}"
        );
        // Given up in the middle: what was begun is gone before the next request is heard.
        let mut given_up = unpack(&bomb);
        given_up["give_up_ms"] = json!(30);
        session.ask(&given_up);
        session.carried_out(&unpack(&small));
        let left = session.bash("ls -A /workspace/skills /workspace/skills/s");
        assert_eq!(left.text, "/workspace/skills:\ns\n\n/workspace/skills/s:\nf", "{level:?}");
        // Nobody is left who unpacks.
        let porter = session.porter().expect("a porter");
        assert!(!exec::parents().iter().any(|(_, parent)| *parent == porter), "{level:?}");
        session.end();
    }
}
