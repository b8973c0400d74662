//! Files of sessions: fresh for each, in place with `--workdir`, kept where the operator says so, and
//! gone otherwise (design §1 INV-10, §5; protocol §6.2; the policy's `retain`, `--outputs-dir`).

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use e2e::exec::{directory_of, give};
use e2e::leftover::Snapshot;
use e2e::play::{SOON, bash, expect, gives, passed, play_with, session};
use e2e::poll::{verify, wait_for};
use e2e::{Devserver, Level, Poll};
use serde_json::{Value, json};
use tempfile::TempDir;

const PLACES: &str = "/workspace /tmp /dev/shm /mnt/session/outputs $HOME /var/tmp";

#[test]
fn no_session_sees_files_or_processes_of_another() {
    // POLL-3, TOOL-BASH-19: a directory and a shell of its own.
    for level in Level::here() {
        let plant = bash(&format!(
            "for place in {PLACES}; do echo secret > $place/of-another && echo $place; done 2>/dev/null; \
             (exec -a of-another sleep 7) & mkfifo /tmp/p; echo x | tee /dev/shm/of-another-2"
        ));
        let look = gives(
            bash(&format!(
                "find {PLACES} / -xdev -name '*of-another*' 2>/dev/null; \
                 for p in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $p; echo; done | grep [o]f-another; \
                 ls /workspace; true"
            )),
            "(no output)",
        );
        let sessions = [
            session(
                "one",
                [
                    expect(plant, json!({"is_error": false, "contains": ["/workspace", "/tmp"]})),
                    // Still there for itself, while the others look.
                    gives(bash("sleep 1; cat of-another"), "secret"),
                ],
            ),
            session("beside", [bash("sleep 0.5"), look.clone()]),
            session("beside too", [bash("sleep 0.5"), look.clone()]),
            session("afterwards", [look]),
        ];
        play_with(level, "", &sessions, |poll| poll.options(["--max-sessions", "3"]));
    }
}

/// A directory of a user's in a place where people keep their work.
fn work_directory(parent: &str, level: Level) -> Option<TempDir> {
    let dir = tempfile::Builder::new().prefix("e2e-work-").tempdir_in(parent).ok()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("cannot chmod");
    give(dir.path(), level);
    Some(dir)
}

#[test]
fn a_work_directory_is_shown_in_place_and_what_is_made_in_it_is_its_owners() {
    for level in Level::here() {
        // Root may serve somebody else's directory.
        for owner in [level, Level::Rootless] {
            for parent in ["/tmp", "/home", "/srv"] {
                let Some(dir) = work_directory(parent, owner) else { continue };
                let path = dir.path().display().to_string();
                fs::write(dir.path().join("given"), "given").expect("writable");
                give(&dir.path().join("given"), owner);
                let calls = |n: u32| {
                    [
                        gives(bash("pwd; cat given"), &format!("{path}\ngiven")),
                        gives(
                            bash(&format!("mkdir d{n}; echo made > d{n}/f; sleep 0.3; ls | wc -l")),
                            &(n + 1).to_string(),
                        ),
                        gives(
                            json!({"write": {"file_path": "w", "content": "new"}}),
                            "wrote 3 bytes to w",
                        ),
                        gives(json!({"read": format!("{path}/w")}), "new"),
                        gives(bash("rm w; stat -c '%U' given d*/f | sort -u"), "session"),
                    ]
                };
                let sessions = [session("one", calls(1)), session("two", calls(2))];
                let script = "";
                let server = Devserver::with(script, &[]);
                sessions.iter().for_each(|session| drop(server.push(session)));
                let worker = Poll::at(level).path("--workdir", dir.path()).serve(&server);
                server.wait_done(SOON);
                let ran = worker.stop().ended(0);
                let report = passed(server.end(), &ran.stderr);
                let work = report["work"].as_array().expect("a list");
                let first = work[0]["stopped_us"].as_u64().expect("stopped");
                let second = work[1]["holders"][0]["polled_us"].as_u64().expect("polled");
                assert!(first <= second, "two sessions in one directory at once");
                for name in ["d1", "d1/f", "d2", "d2/f", "given"] {
                    let meta = fs::metadata(dir.path().join(name)).expect(name);
                    assert_eq!(meta.uid(), owner.uid(), "{name} in {path}");
                }
                assert!(!dir.path().join("w").exists());
                let kept = ran.audited("session.disposed");
                assert_eq!(kept[0]["kept"][0]["what"], "workdir");
                assert_eq!(kept[0]["kept"][0]["path"], json!(path));
            }
        }
    }
}

#[test]
fn outputs_are_kept_under_the_name_of_their_session_and_nothing_else_is() {
    // CLI-2.
    for level in Level::here() {
        let outputs = directory_of(level);
        let put = |n: u32| {
            let text =
                format!("echo {n} > /mnt/session/outputs/result; echo lost > /workspace/other");
            session(&format!("session {n}"), [gives(bash(&text), "(no output)")])
        };
        let played = play_with(level, "", &[put(1), put(2)], |poll| {
            poll.path("--outputs-dir", outputs.path())
        });
        for n in [1, 2] {
            let place = outputs.path().join(format!("sesn_00000{n}"));
            let names: Vec<_> = fs::read_dir(&place).expect("there").flatten().collect();
            assert_eq!(names.len(), 1, "{names:?}");
            let file = place.join("result");
            assert_eq!(fs::read_to_string(&file).expect("kept"), format!("{n}\n"));
            assert_eq!(fs::metadata(&file).expect("kept").uid(), level.uid());
        }
        let kept = &played.ran.audited("session.disposed")[0]["kept"][0];
        assert_eq!(kept["what"], "outputs");
    }
}

/// A session that is idle after its first call and goes on when it is told to.
fn comes_back(then: Value) -> Value {
    let mut session = session(
        "comes back",
        [
            gives(bash("echo kept > f; cd /tmp; X=1; (exec -a stays sleep 55) & echo $!"), "x"),
            json!({"idle": "end_turn"}),
            json!({"wait_stopped": true}),
            json!({"delay_ms": 0}),
            json!({"message": "go on"}),
            then,
        ],
    );
    session["calls"][0]["expect"] = json!({"is_error": false});
    session["message"] = json!("please");
    session
}

/// The default policy, but that it keeps idle jails for `time`.
fn retaining(time: &str) -> String {
    let default = include_str!("../../policies/default.toml");
    default
        .replace("name = \"default\"", "name = \"retaining\"")
        .replace("retain = \"none\"", &format!("retain = \"{time}\""))
}

#[test]
fn a_session_that_comes_back_in_time_has_its_files_and_none_of_its_processes() {
    for level in Level::here() {
        let look = "cat f; echo [$X] $PWD; \
            for p in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $p; echo; done | grep -c [s]tays";
        let text = "kept\n[] /workspace\n0\nexit code: 1";
        let then = expect(bash(look), json!({"text": text}));
        let played = play_with(level, "", &[comes_back(then)], |poll| {
            poll.policy(&retaining("20s")).options(["--max-idle", "1s"])
        });
        assert_eq!(played.ran.events("jail.kept").len(), 1);
        assert_eq!(played.ran.events("jail.resumed").len(), 1);
        assert_eq!(played.ran.audited("session.disposed").len(), 1);
    }
}

#[test]
fn a_session_that_comes_back_too_late_begins_anew() {
    let level = Level::here()[0];
    let mut play = comes_back(gives(bash("ls -A"), "(no output)"));
    play["calls"][3] = json!({"delay_ms": 2500});
    let server = Devserver::with("", &[]);
    server.push(&play);
    let before = Snapshot::take();
    let worker =
        Poll::at(level).policy(&retaining("1s")).options(["--max-idle", "1s"]).serve(&server);
    worker.wait_for_event("jail.kept", SOON);
    // Held in memory until then, and gone while the worker goes on.
    worker.wait_for_event("jail.ended", Duration::from_secs(4));
    assert!(wait_for(SOON, || before.leftovers().is_empty()), "left over of an expired jail");
    server.wait_done(SOON);
    let ran = worker.stop().ended(0);
    passed(server.end(), &ran.stderr);
    assert_eq!(ran.audited("session.disposed").len(), 2);
    assert_eq!(ran.events("jail.resumed").len(), 0);
}

#[test]
fn the_next_jail_of_a_session_waits_for_what_the_last_one_leaves() {
    // INV-10: what it finds of its outputs is what it left.
    for level in Level::here() {
        let outputs = directory_of(level);
        let kept = "/mnt/session/outputs/f";
        let mut play = comes_back(gives(bash(&format!("cat {kept}")), "left"));
        play["calls"][0] = bash(&format!("echo left > {kept}"));
        play["calls"][3] = json!({"delay_ms": 4000});
        let server = Devserver::with("", &[]);
        server.push(&play);
        let worker = Poll::at(level)
            .policy(&retaining("1s"))
            .options(["--max-idle", "1s"])
            .path("--outputs-dir", outputs.path())
            .serve(&server);
        worker.wait_for_event("jail.kept", SOON);
        // An end that takes long: copying waits for this lock.
        let place = fs::File::open(outputs.path().join("sesn_000001")).expect("its outputs");
        place.lock().expect("locked");
        worker.wait_for_events("work.claimed", 2, SOON);
        sleep(Duration::from_secs(1));
        let said = worker.said();
        assert!(!said.contains("\"jail.ended\""), "the control: it is still under way: {said}");
        assert_eq!(said.matches("\"jail.running\"").count(), 1, "{level:?}: {said}");
        place.unlock().expect("unlocked");
        server.wait_done(SOON);
        let ran = worker.stop().ended(0);
        passed(server.end(), &ran.stderr);
        assert_eq!(ran.events("jail.resumed").len(), 0, "it came too late");
        assert_eq!(ran.audited("session.disposed").len(), 2);
    }
}

#[test]
fn every_session_leaves_a_receipt_and_an_edit_of_the_log_is_found() {
    // Design §9.
    for level in Level::here() {
        let mut three = session("three", [gives(bash("echo 1"), "1"), bash("false")]);
        three["copies"] = json!(3);
        let played = play_with(level, "", &[three], |poll| poll);
        let receipts = played.ran.audited("session.disposed");
        assert_eq!(receipts.len(), 3);
        for receipt in receipts {
            assert_eq!(receipt["left"]["items"], json!([]), "{receipt}");
            for what in ["processes", "mounts", "cgroup", "ids", "workspace"] {
                let removed = receipt["removed"]["items"].as_array().expect("a list");
                assert!(removed.contains(&json!(what)), "{receipt}");
            }
        }
        let launched = played.ran.audited("jail.launched");
        assert!(
            launched.iter().all(
                |one| one["report"]["layers"].is_array() || one["report"]["layers"].is_object()
            ),
            "{launched:?}"
        );
        edits_are_found(&played.ran.audit_file());
    }
}

fn edits_are_found(file: &Path) {
    let good = fs::read_to_string(file).expect("a log");
    assert_eq!(verify(file).0, Some(0));
    let lines: Vec<&str> = good.lines().collect();
    let without = |at: usize| [&lines[..at], &lines[at + 1..]].concat().join("\n") + "\n";
    let mut swapped = lines.clone();
    swapped.swap(3, 4);
    let edits = [
        good.replacen("\"status\":\"error\"", "\"status\":\"ok\"", 1),
        good.replacen("sesn_000001", "sesn_000009", 1),
        without(0),
        without(lines.len() / 2),
        swapped.join("\n") + "\n",
    ];
    for (at, edit) in edits.iter().enumerate() {
        assert_ne!(*edit, good, "edit {at} changes nothing");
        let copy = file.with_extension("edited");
        fs::write(&copy, edit).expect("writable");
        let (code, told) = verify(&copy);
        assert_eq!(code, Some(8), "edit {at}: {told}");
    }
}

#[test]
fn no_more_jails_are_kept_than_may_run() {
    // INV-11: the oldest gives way.
    let mut many = session("many", [gives(bash("echo 1"), "1"), json!({"idle": "end_turn"})]);
    many["copies"] = json!(4);
    many["end"] = json!("idle");
    let played = play_with(Level::here()[0], "", &[many], |poll| {
        poll.policy(&retaining("60s")).options(["--max-idle", "1s", "--max-sessions", "2"])
    });
    let at = |event: &str| {
        played
            .ran
            .log
            .iter()
            .filter(|one| one["event"] == event || one["event"] == "worker.draining")
            .take_while(|one| one["event"] != "worker.draining")
            .count()
    };
    assert_eq!(at("jail.kept"), 4);
    assert_eq!(at("jail.ended"), 2, "{}", played.ran.stderr);
}
