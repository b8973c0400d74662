//! Memory stores of sessions in real jails, on a development server: mounted, synced while a session
//! runs and at its end, destroyed, refused, shared, and met by a worker that is killed (protocol §8).
//!
//! The rules themselves are tested one by one in `worker/src/memory/tests`.

use std::fs;

use e2e::exec::directory_of;
use e2e::play::{SOON, bash, expect, fails, gives, passed, session};
use e2e::stores::{logged, poll, serve, server, texts, with_stores};
use e2e::{Devserver, Level, Poll};
use serde_json::{Value, json};

fn level() -> Level {
    Level::here()[0]
}

#[test]
fn a_session_reads_and_writes_its_stores_and_they_are_synced_at_the_end() {
    // MEM-3, MEM-5, MEM-6, MEM-8, MEM-9, MEM-31, TOOL-PATH-5, HDR-2, AUTH-6.
    for level in Level::here() {
        let server = Devserver::with("", &["--keep-results"]);
        let many: serde_json::Map<String, Value> =
            (0..45).map(|n| (format!("/d/{n}.md"), json!(format!("text {n}")))).collect();
        server.dev(
            "POST",
            "memory_stores",
            &json!({"id": "memstore_1", "memories": many,
            "expect": null}),
        );
        server.dev(
            "POST",
            "memory_stores",
            &json!({"id": "memstore_2",
            "memories": {"/fact": "planted-fact"}, "expect": {"/fact": "planted-fact"}}),
        );
        let notes = "/mnt/memory/notes";
        let calls = [
            gives(
                bash("ls /mnt/memory/notes/d | wc -l; cat /mnt/memory/notes/d/44.md"),
                "45\ntext 44",
            ),
            gives(
                bash("stat -c %a /mnt/memory/notes /mnt/memory/notes/d /mnt/memory/notes/d/1.md"),
                "700\n700\n600",
            ),
            gives(bash("cat memory/memstore_2/fact"), "planted-fact"),
            expect(
                bash("echo x > memory/memstore_2/fact"),
                json!({"is_error": true, "contains": "Read-only file system"}),
            ),
            expect(
                bash("rm memory/memstore_2/fact"),
                json!({"is_error": true, "contains": "Read-only file system"}),
            ),
            fails(
                json!({"write": {"file_path": "memory/memstore_2/new", "content": "x"}}),
                "write: memory/memstore_2/new is inside read-only directory /workspace/memory/memstore_2",
            ),
            expect(
                json!({"read": "memory/memstore_2/fact"}),
                json!({"is_error": false, "contains": "planted-fact"}),
            ),
            expect(
                json!({"write": {"file_path": format!("{notes}/new/a.md"), "content": "planted-new"}}),
                json!({"is_error": false}),
            ),
            expect(
                json!({"edit": {"file_path": format!("{notes}/d/2.md"), "old_string": "text", "new_string": "edited"}}),
                json!({"is_error": false}),
            ),
            gives(
                bash(
                    "cd /mnt/memory/notes && rm d/3.md && printf direct > d/4.md && head -c 20 .anthropic-memory-store",
                ),
                "version 1\nmemstore_1",
            ),
        ];
        let stores = [("memstore_1", "read_write", notes), ("memstore_2", "read_only", "")];
        server.push(&with_stores("both", &stores, calls));
        let (played, kept) = serve(server, poll(level, ""));
        assert_eq!(kept.as_object().map(serde_json::Map::len), Some(45), "one new, one deleted");
        assert_eq!(
            (&kept["/new/a.md"], &kept["/d/2.md"], &kept["/d/4.md"], &kept["/d/3.md"]),
            (&json!("planted-new"), &json!("edited 2"), &json!("direct"), &Value::Null)
        );
        assert_eq!(played.requests("memory_delete"), 1);
        assert_eq!(played.report["work"][0]["holders"][0]["stops"][0]["force"], true);
        let mounted = played.ran.audited("memory.mounted");
        assert_eq!(mounted.len(), 2);
        assert_eq!(
            mounted.iter().map(|one| one["memories"].as_u64()).sum::<Option<u64>>(),
            Some(46)
        );
        let sent = played.ran.audited("memory.sending");
        let sum = |name: &str| sent.iter().filter_map(|one| one[name].as_u64()).sum::<u64>();
        assert_eq!((sum("creates"), sum("updates"), sum("deletes")), (1, 2, 1), "told beforehand");
        assert_eq!(played.ran.audited("memory.disposed").len(), 2);
        // INV-12: neither texts nor names.
        let audit = fs::read_to_string(played.ran.audit_file()).expect("a log");
        for content in ["planted-", "new/a.md", "d/4.md", "44.md", "edited 2"] {
            assert!(!played.ran.stderr.contains(content), "{content} is in the log");
            assert!(!audit.contains(content), "{content} is in the audit log");
        }
    }
}

#[test]
fn stores_are_synced_in_both_directions_while_the_session_runs() {
    // MEM-30: after a call, when five seconds have passed; the next call does not wait.
    let server = server(&json!({"/a": "1", "/b": "1", "/gone": "1"}));
    let change = json!({"memory_store": "memstore_1", "put": {"/b": "theirs", "/c": "theirs"}, "remove": ["/gone"]});
    let calls = [
        gives(bash("cd /mnt/memory/notes; echo -n mine > a; ls"), "a\nb\ngone"),
        change,
        gives(bash("sleep 5.2"), "(no output)"),
        json!({"delay_ms": 1500}),
        gives(bash("cat a b c; ls"), "minetheirstheirsa\nb\nc"),
    ];
    server.push(&with_stores("runs", &[("memstore_1", "read_write", "/mnt/memory/notes")], calls));
    let (played, kept) = serve(server, poll(level(), "[memory]\nsync_interval = \"5s\"\n"));
    assert_eq!(kept, json!({"/a": "mine", "/b": "theirs", "/c": "theirs"}));
    let synced = played.ran.events("memory.synced");
    let regular = synced.iter().find(|one| one["pass"] == "regular").expect("a sync while it ran");
    let count = |name: &str| regular[name].as_u64();
    assert_eq!((count("updated"), count("pulled"), count("removed")), (Some(1), Some(2), Some(1)));
    assert_eq!(played.ran.audited("memory.synced").len(), 1, "the last one had nothing to do");
}

#[test]
fn a_folder_that_bash_destroys_is_filled_anew_and_the_store_keeps_everything() {
    // MEM-11, MEM-12, MEM-13, RACE-18: at both levels, with and without the marker, by accident and on
    // purpose; and a directory that nobody may read is not one that was deleted.
    for level in Level::here() {
        let server = Devserver::with("", &["--keep-results"]);
        let acts = [
            ("all", "rm -rf /mnt/memory/notes/* /mnt/memory/notes/.[!.]*", 0),
            ("files", "rm -rf /mnt/memory/notes/*", 0),
            ("root", "rm -rf /mnt/memory/notes", 0),
            ("moved", "mkdir x; mv /mnt/memory/notes/* /mnt/memory/notes/.[!.]* x/", 0),
            (
                "marker",
                "rm /mnt/memory/notes/.anthropic-memory-store; echo foreign > /mnt/memory/notes/f",
                1,
            ),
            (
                "other",
                "echo version 2 > /mnt/memory/notes/.anthropic-memory-store; rm /mnt/memory/notes/a",
                1,
            ),
            ("locked", "chmod 000 /mnt/memory/notes/d /mnt/memory/notes/a", 2),
            (
                "links",
                "cd /mnt/memory/notes; mv d /tmp/; ln -s /tmp/d d; ln -s /etc/passwd p; mkfifo q",
                3,
            ),
        ];
        for (name, act, _) in acts {
            let id = format!("memstore_{name}");
            let memories = json!({"/a": "1", "/d/b": "1", "/d/c": "1"});
            server.dev("POST", "memory_stores", &json!({"id": id, "memories": memories}));
            server.push(&with_stores(
                name,
                &[(&id, "read_write", "/mnt/memory/notes")],
                [bash(act), gives(bash("echo on"), "on")],
            ));
        }
        let worker = poll(level, "").serve(&server);
        server.wait_done(2 * SOON);
        let ran = worker.stop().ended(0);
        for (name, _, kind) in acts {
            let kept = texts(&server, &format!("memstore_{name}"));
            let want = match kind {
                // Somebody put links where a directory was: those memories were deleted.
                3 => json!({"/a": "1"}),
                _ => json!({"/a": "1", "/d/b": "1", "/d/c": "1"}),
            };
            assert_eq!(kept, want, "{level:?} {name}: {}", ran.stderr);
        }
        let recovered = ran.audited("memory.recovered").len();
        assert_eq!(recovered, 4, "{level:?}: {}", ran.stderr);
        let untrusted = ran.audited("memory.not_synced");
        let untrusted = untrusted.iter().filter(|one| one["reason"] == "untrusted").count();
        assert_eq!(untrusted, 4, "the final sync and the flush of two");
        passed(server.end(), &ran.stderr);
    }
}

#[test]
fn a_store_that_cannot_be_mounted_fails_its_session_with_one_clear_error_and_no_other() {
    // MEM-2, MEM-3, MEM-4, MEM-7, POLL-15, RACE-21.
    for level in Level::here() {
        let server = server(&json!({"/a": "1"}));
        let places = [
            ("etc", "/etc", "cannot show a memory store at /etc: "),
            ("usr", "/usr/lib/notes", "cannot show a memory store at /usr/lib/notes: "),
            ("proc", "/proc/1", "cannot show a memory store at /proc/1: "),
            ("workspace", "/workspace", "cannot show a memory store at /workspace: "),
            ("relative", "mnt/memory/a", "memstore_1 at `mnt/memory/a`: the path is not absolute"),
            ("dots", "/mnt/memory/../../etc", "the path has a `..`"),
            ("root", "/", "it would hide everything else"),
        ];
        let told = |why: &str| {
            expect(
                bash("echo ran"),
                json!({"is_error": true, "lacks": "ran\n",
                "contains": ["[memory] This session does not have its memory stores", why]}),
            )
        };
        for (name, path, why) in places {
            server.push(&with_stores(name, &[("memstore_1", "read_write", path)], [told(why)]));
        }
        server.push(&with_stores("missing", &[("memstore_none", "read_write", "")], [told("404")]));
        let mut no_token = with_stores(
            "no token",
            &[("memstore_1", "read_write", "")],
            [told("no sessions token")],
        );
        no_token["secret"] = json!("none");
        server.push(&no_token);
        let two = [("memstore_1", "read_write", "/mnt/a"), ("memstore_2", "read_write", "/mnt/a")];
        server.push(&with_stores("twice", &two, [told("the memory store memstore_1 is there")]));
        server.push(&with_stores(
            "good",
            &[("memstore_1", "read_write", "")],
            [gives(bash("cat memory/memstore_1/a"), "1")],
        ));
        server.push(&session("none", [gives(bash("echo 1"), "1")]));
        let (played, kept) = serve(server, poll(level, ""));
        assert_eq!(kept, json!({"/a": "1"}));
        for item in played.report["work"].as_array().expect("a list") {
            assert_eq!(item["holders"][0]["stops"][0]["force"], true, "LEASE-12: {item}");
        }
        assert_eq!(played.ran.audited("call.started").len(), 2, "nothing ran in the others");
        assert_eq!(played.ran.events("session.not_opened").len(), places.len() + 3);
    }
}

#[test]
fn a_store_does_not_take_the_place_of_something_in_a_directory_of_the_operator() {
    // MEM-4, RACE-21: leftovers would be uploaded into the customer's store.
    for level in Level::here() {
        let workdir = directory_of(level);
        let left = workdir.path().join("memory/memstore_1");
        fs::create_dir_all(&left).expect("a directory");
        fs::write(left.join("secret"), "not for upload").expect("a file");
        e2e::exec::give(&workdir.path().join("memory"), level);
        e2e::exec::give(&left, level);
        let server = server(&json!({"/a": "1"}));
        let told = expect(
            bash("echo ran"),
            json!({"is_error": true, "contains":
            ["[memory]", "memory/memstore_1: File exists"]}),
        );
        server.push(&with_stores("taken", &[("memstore_1", "read_write", "")], [told]));
        let notes = workdir.path().join("notes/x").display().to_string();
        server.push(&with_stores(
            "free",
            &[("memstore_1", "read_write", &notes)],
            [gives(
                bash("cat notes/x/a; echo -n 2 > notes/x/a; echo f > f; ls"),
                "1f\nmemory\nnotes",
            )],
        ));
        let worker = Poll::at(level)
            .options(["--max-idle", "1s"])
            .path("--workdir", workdir.path())
            .serve(&server);
        server.wait_done(2 * SOON);
        let ran = worker.stop().ended(0);
        let kept = texts(&server, "memstore_1");
        passed(server.end(), &ran.stderr);
        assert_eq!(kept, json!({"/a": "2"}), "{}", ran.stderr);
        assert_eq!(fs::read_to_string(left.join("secret")).expect("kept"), "not for upload");
        let mut names: Vec<String> = fs::read_dir(workdir.path())
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names, ["f", "memory"], "no store and no mount point is copied back");
    }
}

#[test]
fn without_memory_sessions_run_and_nothing_is_asked_for() {
    // MEM-1, MEM-2: silently, also without a token.
    let server = server(&json!({"/a": "1"}));
    let mut play = with_stores(
        "off",
        &[("memstore_1", "read_write", "/mnt/memory/notes")],
        [gives(bash("ls /mnt/memory 2>&1 | tail -c 26"), "No such file or directory")],
    );
    play["secret"] = json!("none");
    server.push(&play);
    let (played, _) = serve(server, poll(level(), "[memory]\nsync_interval = \"off\"\n"));
    assert_eq!(played.requests("memory_list"), 0);
    assert_eq!(played.ran.audited("memory.mounted").len(), 0);
}

#[test]
fn what_a_network_and_a_server_may_do_loses_nothing() {
    // MEM-21 to MEM-25, MEM-29, SIM-6, RACE-3: each fault meets a session and store of its own.
    let faults = [
        json!({"on": "memory_update", "do": "reset-after", "times": 3}),
        json!({"on": "memory_update", "do": "500-after", "times": 3}),
        json!({"on": "memory_update", "do": "503"}),
        json!({"on": "memory_create", "do": "reset-after", "times": 3}),
        json!({"on": "memory_create", "do": "garbage"}),
        json!({"on": "memory_create", "do": "429", "retry_after_ms": 10}),
        json!({"on": "memory_list", "do": "503", "page": 1}),
        json!({"on": "memory_list", "do": "slow", "ms": 2500}),
        json!({"on": "memory_list", "do": "garbage", "nth": 2}),
        json!({"on": "memory_delete", "do": "reset-after"}),
        json!({"on": "memory_delete", "do": "404"}),
    ];
    let server = Devserver::with("[server]\nttl_seconds = 4", &["--keep-results"]);
    for (at, fault) in faults.iter().enumerate() {
        let id = format!("memstore_{at}");
        server.dev(
            "POST",
            "memory_stores",
            &json!({"id": id, "memories": {"/a": "1", "/gone": "1"}}),
        );
        let mut fault = fault.clone();
        let name = format!("{at}: {} {}", fault["on"], fault["do"]).replace('"', "");
        fault["session"] = json!(name);
        server.fault(&fault);
        server.push(&with_stores(
            &name,
            &[(&id, "read_write", "/mnt/memory/notes")],
            [gives(
                bash("cd /mnt/memory/notes; echo -n 2 > a; echo -n new > b; rm gone"),
                "(no output)",
            )],
        ));
    }
    let worker = poll(level(), "").serve(&server);
    server.wait_done(3 * SOON);
    let ran = worker.stop().ended(0);
    for (at, fault) in faults.iter().enumerate() {
        let mut kept = texts(&server, &format!("memstore_{at}"));
        // Said to be gone although it is not.
        if fault["do"] == "404" {
            kept.as_object_mut().expect("a table").remove("/gone");
        }
        assert_eq!(kept, json!({"/a": "2", "/b": "new"}), "{fault}: {}", ran.stderr);
    }
    let report = passed(server.end(), &ran.stderr);
    assert_eq!(report["faults_waiting"], 0, "a fault did not happen");
}

#[test]
fn what_a_store_refuses_is_left_and_the_rest_is_uploaded() {
    // MEM-22, MEMAPI-1: too long, not text, not a path.
    let server = server(&json!({"/a": "1"}));
    let act = "cd /mnt/memory/notes; head -c 150000 /dev/zero | tr '\\0' x > long; \
        printf '\\377\\376' > binary; printf x > $'e\\u0301'; printf x > $'bad\\nname'; \
        head -c 3000000 /dev/zero > huge; printf x > $'\\377'; printf 2 > a; printf fine > b";
    server.push(&with_stores(
        "odd",
        &[("memstore_1", "read_write", "/mnt/memory/notes")],
        [gives(bash(act), "(no output)")],
    ));
    let (played, kept) = serve(server, poll(level(), ""));
    assert_eq!(kept, json!({"/a": "2", "/b": "fine"}));
    assert_eq!(logged(&played.ran, "memory.synced", "refused"), 4, "{}", played.ran.stderr);
    assert_eq!(
        played.report["requests"]["memory_create"]["statuses"],
        json!({"200": 1, "400": 1, "413": 1}),
        "each once; the flush does not repeat them"
    );
    assert_eq!(played.ran.audited("memory.disposed")[0]["unsynced"], 4);
}

#[test]
fn two_sessions_of_one_store_both_keep_what_they_made() {
    // RACE-19, MEM-4: on one host, at the same path, at the same time.
    let server = server(&json!({"/shared": "1", "/x": "1"}));
    for n in [1, 2] {
        let act =
            format!("cd /mnt/memory/notes; printf {n} > own-{n}; printf by-{n} > shared; sleep 1");
        server.push(&with_stores(
            &n.to_string(),
            &[("memstore_1", "read_write", "/mnt/memory/notes")],
            [gives(bash("cat /mnt/memory/notes/x"), "1"), gives(bash(&act), "(no output)")],
        ));
    }
    let (_, kept) = serve(server, poll(level(), ""));
    assert_eq!(
        (&kept["/own-1"], &kept["/own-2"], &kept["/x"]),
        (&json!("1"), &json!("2"), &json!("1"))
    );
    assert!(["by-1", "by-2"].contains(&kept["/shared"].as_str().expect("text")), "{kept}");
}

#[test]
fn the_official_workers_script_goes_the_same_way() {
    // MEM-14, MEM-21 to MEM-25, MEM-29, MEM-31: see official_workers.rs.
    for level in Level::here() {
        let server =
            Devserver::with(include_str!("../scripts/official-memory.toml"), &["--keep-results"]);
        let (played, _) = serve(server, poll(level, ""));
        let statuses = |endpoint: &str| played.report["requests"][endpoint]["statuses"].clone();
        assert_eq!(statuses("memory_create")["413"], 1);
        assert_eq!(statuses("memory_delete"), json!({"200": 1}));
        assert_eq!(played.report["faults_waiting"], 0);
    }
}
