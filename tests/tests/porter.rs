//! The porter as a session meets it: skills that can be run and not changed, memory stores that are
//! shared, staged files; and what it is itself.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::exec::{directory_of, give};
use e2e::session::{Choice, Session};
use e2e::{Level, locate};
use serde_json::{Value, json};

const STORE: &str = "/mnt/memory/notes";
const SHOWN: &str = "/mnt/memory/shown";
const PLACES: &[&str] =
    &["--skills", "read-only", "--store", STORE, "read-write", "--store", SHOWN, "read-only"];

fn with_places(level: Level) -> Session {
    Session::with(level, &Choice { places: PLACES, ..Choice::default() })
}

/// An archive made by the tools of the machine, which the session's user may read.
fn skill(directory: &Path) -> PathBuf {
    let program = r##"
import sys, zipfile
with zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED) as made:
    for name, mode, text in [
        ("skill/SKILL.md", 0o100644, "# Skill\n"),
        ("skill/bin/greet", 0o104755, "#!/bin/bash\necho greetings from $0\n"),
        ("skill/link", 0o120777, "/etc/passwd"),
    ]:
        entry = zipfile.ZipInfo(name)
        entry.create_system, entry.external_attr = 3, mode << 16
        made.writestr(entry, text)
"##;
    let archive = directory.join("skill.zip");
    let done = Command::new("python3").args(["-c", program]).arg(&archive).status();
    assert!(done.expect("python3 runs").success());
    fs::set_permissions(&archive, fs::Permissions::from_mode(0o644)).expect("cannot chmod");
    archive
}

fn unpack(archive: &Path, directory: &str) -> Value {
    json!({ "ask": "unpack", "archive": archive, "directory": directory, "replace": true })
}

#[test]
fn a_skill_can_be_read_and_run_and_not_changed() {
    // SKILL-7, SKILL-8, SKILL-9.
    for level in Level::here() {
        let dir = directory_of(level);
        let archive = skill(dir.path());
        let mut session = with_places(level);
        let done = session.carried_out(&unpack(&archive, "greeter"));
        assert_eq!((&done["files"], &done["skipped"]), (&json!(2), &json!(1)), "{level:?}");
        let shown = session.bash(
            "cd /workspace/skills && stat -c '%a %n' greeter greeter/* greeter/bin/*; greeter/bin/greet",
        );
        assert_eq!(
            shown.text,
            "700 greeter\n644 greeter/SKILL.md\n700 greeter/bin\n755 greeter/bin/greet\n\
             greetings from greeter/bin/greet",
            "{level:?}"
        );
        // INV-3 has tried it before; here is what bash meets.
        for act in [
            "echo x >greeter/SKILL.md",
            "touch greeter/new",
            "rm -rf greeter",
            "chmod 600 greeter/SKILL.md",
            "mv greeter other",
            "ln -s /etc/passwd link",
        ] {
            let tried = session.bash(&format!("cd /workspace/skills && {act}"));
            assert!(tried.text.contains("Read-only file system"), "{level:?} {act}: {tried:?}");
        }
        let away = session.bash("cd /workspace && mv skills other; rmdir skills; ls skills");
        assert!(away.text.ends_with("greeter"), "{level:?}: {away:?}");
        // TOOL-PATH-5.
        let path = "/workspace/skills/greeter/SKILL.md";
        let write = session.call("write", &json!({ "file_path": path, "content": "x" }));
        let want = format!("write: {path} is inside read-only directory /workspace/skills");
        assert_eq!(write.text, want, "{level:?}");
        let edit = json!({ "file_path": path, "old_string": "#", "new_string": "" });
        let edit = session.call("edit", &edit);
        let want = format!("edit: {path} is inside read-only directory /workspace/skills");
        assert_eq!(edit.text, want, "{level:?}");
        let read = session.call("read", &json!({ "file_path": path }));
        assert_eq!(read.text, "# Skill\n", "{level:?}");
        // SKILL-11, and the whole place.
        session.carried_out(&unpack(&archive, "second"));
        session.carried_out(&json!({ "ask": "remove_tree", "path": "greeter" }));
        assert_eq!(session.bash("ls /workspace/skills").text, "second", "{level:?}");
        session.carried_out(&json!({ "ask": "clear" }));
        assert_eq!(session.bash("ls -A /workspace/skills").text, "(no output)", "{level:?}");
        session.end();
    }
}

#[test]
fn skills_that_may_be_changed_are_changed() {
    // The control of the test above.
    for level in Level::here() {
        let dir = directory_of(level);
        let archive = skill(dir.path());
        let places = &["--skills", "read-write"];
        let mut session = Session::with(level, &Choice { places, ..Choice::default() });
        session.carried_out(&unpack(&archive, "greeter"));
        let changed = session.bash(
            "cd /workspace/skills && echo x >greeter/SKILL.md && touch greeter/new && mv greeter other \
             && cat other/SKILL.md && ls other",
        );
        assert_eq!(changed.text, "x\nSKILL.md\nbin\nnew", "{level:?}");
        let acts: Vec<_> =
            acts(&session).into_iter().filter(|act| act.0.contains("skills")).collect();
        assert!(acts.is_empty(), "{level:?}: {acts:?}");
        session.end();
    }
}

/// What the canary tried, and what it got.
fn acts(session: &Session) -> Vec<(String, Value)> {
    let all = session.ready["canary"].as_array().cloned().unwrap_or_default();
    all.iter()
        .map(|act| (act["act"].as_str().unwrap_or_default().to_owned(), act["got"].clone()))
        .collect()
}

#[test]
fn the_report_lists_the_places_and_the_canary_has_tried_to_write_to_them() {
    // INV-3.
    for level in Level::here() {
        let session = with_places(level);
        let places = session.ready["places"].as_array().cloned().unwrap_or_default();
        let found: Vec<_> = places
            .iter()
            .map(|place| format!("{} {} {}", place["kind"], place["path"], place["access"]))
            .collect();
        let want = [
            r#""skills" "/workspace/skills" "read-only""#.to_owned(),
            format!(r#""memory-store" "{STORE}" "read-write""#),
            format!(r#""memory-store" "{SHOWN}" "read-only""#),
        ];
        assert_eq!(found, want, "{level:?}");
        let written: Vec<_> =
            acts(&session).into_iter().filter(|act| act.0.starts_with("write to")).collect();
        let refused = |path: &str| (format!("write to {path}"), json!("EROFS"));
        assert_eq!(written, [refused("/workspace/skills"), refused(SHOWN)], "{level:?}");
        session.end();
    }
}

#[test]
fn a_memory_store_is_shared_as_its_access_says() {
    // MEM-6, MEM-8, MEM-9, MEM-10.
    for level in Level::here() {
        let mut session = with_places(level);
        for store in [0, 1] {
            session.carried_out(&json!({ "ask": "prepare", "store": store }));
            let file =
                json!({ "ask": "write", "store": store, "path": "d/a.md", "content": "one\n" });
            session.carried_out(&file);
        }
        let both = session.bash(&format!(
            "cat {STORE}/d/a.md {SHOWN}/d/a.md; echo two >>{STORE}/d/a.md; echo new >{STORE}/d/b.md; \
             stat -c '%a %n' {STORE}/d {STORE}/d/a.md; echo x >{SHOWN}/d/a.md"
        ));
        let want = format!("one\none\n700 {STORE}/d\n600 {STORE}/d/a.md\n");
        assert!(both.text.starts_with(&want), "{level:?}: {both:?}");
        assert!(both.text.contains("Read-only file system"), "{level:?}: {both:?}");
        let read = json!({ "ask": "read", "store": 0, "path": "d/a.md" });
        assert_eq!(session.carried_out(&read), json!("one\ntwo\n"), "{level:?}");
        // The porter replaces what bash made, and bash what the porter made.
        let file = json!({ "ask": "write", "store": 0, "path": "d/b.md", "content": "three\n" });
        session.carried_out(&file);
        let files = format!("cat {STORE}/d/b.md; rm {STORE}/d/a.md; mkdir -m 0 {STORE}/locked");
        assert_eq!(session.bash(&files).text, "three", "{level:?}");
        let scan = session.carried_out(&json!({ "ask": "scan", "store": 0 }));
        assert_eq!(scan["marker"], "Intact", "{level:?}");
        assert_eq!(scan["files"][0][0], "d/b.md", "{level:?}: {scan}");
        assert_eq!(scan["files"].as_array().map(Vec::len), Some(1), "{level:?}: {scan}");
        // TOOL-PATH-1, TOOL-PATH-4, TOOL-PATH-5.
        let write = |path: String| json!({ "file_path": path, "content": "x" });
        let done = session.call("write", &write(format!("{STORE}/w.md")));
        assert_eq!(done.text, format!("wrote 1 bytes to {STORE}/w.md"), "{level:?}");
        let refused = session.call("write", &write(format!("{SHOWN}/w.md")));
        let want = format!("write: {SHOWN}/w.md is inside read-only directory {SHOWN}");
        assert_eq!(refused.text, want, "{level:?}");
        let outside = session.call("write", &write("/mnt/memory/w.md".to_owned()));
        let want = "write: path '/mnt/memory/w.md' is outside the session's working directory and its \
                    other permitted directories";
        assert_eq!(outside.text, want, "{level:?}");
        // A store that bash has taken its own rights away from is still read as a whole.
        session.bash(&format!("chmod 0 {STORE}/d/b.md {STORE}/d; chmod 0 {STORE}"));
        let scan = session.carried_out(&json!({ "ask": "scan", "store": 0 }));
        assert_eq!(scan["files"].as_array().map(Vec::len), Some(2), "{level:?}: {scan}");
        session.end();
    }
}

#[test]
fn the_porter_outlives_the_tool_tree_and_the_session_ends_with_it() {
    // MEM-31.
    for level in Level::here() {
        let mut session = with_places(level);
        session.carried_out(&json!({ "ask": "prepare", "store": 0 }));
        session.bash(&format!(
            "echo kept >{STORE}/a; (while :; do echo >>{STORE}/noise; done) & disown"
        ));
        let porter = session.porter().expect("a porter").to_string();
        assert_eq!(session.quiesce()["quiet"], true, "{level:?}");
        let scan =
            |session: &mut Session| session.carried_out(&json!({ "ask": "scan", "store": 0 }));
        let first = scan(&mut session);
        assert_eq!(first["files"][0][0], "a", "{level:?}: {first}");
        assert_eq!(first, scan(&mut session), "{level:?}: something still writes");
        assert!(Command::new("kill").args(["-9", &porter]).status().expect("kill runs").success());
        session.begin("bash", &json!({ "command": "sleep 5; echo still here" }));
        assert!(session.answer().is_none(), "{level:?}: the session goes on without its porter");
        session.end();
    }
}

#[test]
fn a_session_without_places_has_no_porter() {
    for level in Level::here() {
        let mut session = Session::start(level);
        assert_eq!(session.porter(), None, "{level:?}");
        let answer = session.ask(&json!({ "ask": "clear" }));
        let want = "cannot use the porter: the session was started without one";
        assert_eq!(answer["error"], want, "{level:?}");
        session.end();
        let places = &["--porter"];
        let mut session = Session::with(level, &Choice { places, ..Choice::default() });
        let dir = directory_of(level);
        let file = skill(dir.path());
        let put = json!({ "ask": "put", "place": "workspace", "path": "in/x", "file": file });
        assert_eq!(session.carried_out(&put), json!(fs::metadata(&file).expect("there").len()));
        let refused = session.ask(&unpack(&file, "s"));
        assert!(refused["refused"].as_str().is_some_and(|text| text.contains("has none")));
        assert_eq!(session.bash("stat -c '%a %s' in; ls in").text, "700 60\nx", "{level:?}");
        session.end();
    }
}

#[test]
fn mount_points_do_not_stay_in_a_directory_of_the_host() {
    for level in Level::here() {
        for there_before in [false, true] {
            let dir = directory_of(level);
            let place = |name: &str| dir.path().join(name);
            if there_before {
                fs::create_dir(place("skills")).expect("made");
                fs::write(place("skills/own"), "own").expect("written");
                for path in ["skills", "skills/own"] {
                    give(&place(path), level);
                }
            }
            let (store, other) = (place("memory/notes"), place("work/store"));
            let path = |store: &Path| store.display().to_string();
            let (store, other) = (path(&store), path(&other));
            let places = [
                "--skills",
                "read-only",
                "--store",
                &store,
                "read-write",
                "--store",
                &other,
                "read-write",
            ];
            let choice = Choice { workdir: Some(dir.path()), places: &places, ..Choice::default() };
            let mut session = Session::with(level, &choice);
            session.carried_out(&json!({ "ask": "prepare", "store": 0 }));
            session.carried_out(&unpack(&skill(dir.path()), "s"));
            let made =
                session.bash("ls skills memory/notes; echo x >work/file; echo y >memory/notes/z");
            assert_eq!(made.text, "memory/notes:\n\nskills:\ns", "{level:?}");
            let end = session.end();
            assert_eq!(end["left"], json!([]), "{level:?}");
            // Of `work` there is something to keep, of `memory` nothing.
            assert!(!place("memory").exists(), "{level:?}: {end}");
            assert!(
                place("work/file").exists() && !place("work/store").exists(),
                "{level:?}: {end}"
            );
            assert_eq!(place("skills").exists(), there_before, "{level:?}: {end}");
            assert!(!there_before || place("skills/own").exists(), "{level:?}: {end}");
            assert!(!place("skills/s").exists(), "{level:?}");
        }
    }
}

/// Starts a session that must not start; what it says.
fn refused(level: Level, options: &[&str]) -> String {
    let mut line = level.prefix();
    line.push(locate::session().display().to_string());
    line.push("default".to_owned());
    line.extend(options.iter().map(|option| (*option).to_owned()));
    let home = directory_of(level);
    let run = Command::new(&line[0])
        .args(&line[1..])
        .env_clear()
        .env("PATH", locate::SEARCH_PATH)
        .env("XDG_RUNTIME_DIR", home.path())
        .current_dir("/")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("it runs");
    assert!(!run.status.success(), "{level:?}: {options:?} was accepted");
    String::from_utf8_lossy(&run.stderr).into_owned()
}

#[test]
fn a_store_where_something_is_already_stops_the_session_and_names_the_path() {
    // MEM-4, SKILL-2.
    for level in Level::here() {
        let dir = directory_of(level);
        fs::create_dir(dir.path().join("taken")).expect("made");
        std::os::unix::fs::symlink("nowhere", dir.path().join("dangling")).expect("linked");
        std::os::unix::fs::symlink("/etc", dir.path().join("etc")).expect("linked");
        let workdir = dir.path().display().to_string();
        for (name, why) in
            [("taken", "errno: 17"), ("dangling", "errno: 20"), ("etc/store", "errno: 20")]
        {
            let store = format!("{workdir}/{name}");
            let said = refused(level, &["--workdir", &workdir, "--store", &store, "read-write"]);
            assert!(said.contains(&store) && said.contains("Places"), "{level:?}: {said}");
            assert!(said.contains(why), "{level:?} {name}: {said}");
        }
        std::os::unix::fs::symlink("/etc", dir.path().join("skills")).expect("linked");
        let said = refused(level, &["--workdir", &workdir, "--skills", "read-only"]);
        assert!(said.contains(&format!("{workdir}/skills")), "{level:?}: {said}");
        for store in ["/etc/x", "/usr", "/tmp/x", "/mnt", "relative", "/mnt/../x", "/workspace"] {
            let said = refused(level, &["--store", store, "read-only"]);
            assert!(
                said.contains("StorePlace") || said.contains(store),
                "{level:?} {store}: {said}"
            );
        }
        assert!(fs::metadata("/etc").expect("there").uid() == 0);
    }
}
