//! Memory stores of sessions that do not end as they should, or not for good: a lost lease, a worker that
//! is killed or must end at once, a jail that is replaced or kept (protocol §8.6).

use std::time::{Duration, Instant};

use e2e::play::{SOON, bash, expect, gives, passed};
use e2e::poll::wait_for;
use e2e::stores::{logged, poll, serve, server, texts, with_stores};
use e2e::{Devserver, Level};
use serde_json::{Value, json};

fn level() -> Level {
    Level::here()[0]
}

#[test]
fn a_lost_lease_still_uploads_and_deletes_nothing() {
    // LEASE-13, LEASE-16, MEM-31: the preconditions make it safe.
    let server = Devserver::with("[server]\nttl_seconds = 2", &["--keep-results"]);
    server.dev(
        "POST",
        "memory_stores",
        &json!({"id": "memstore_1", "memories":
        {"/a": "1", "/b": "1", "/gone": "1"}}),
    );
    let mut call = bash("cd /mnt/memory/notes; printf 2 > a; printf mine > b; rm gone; sleep 33");
    call["wait"] = json!(false);
    let mut play =
        with_stores("lost", &[("memstore_1", "read_write", "/mnt/memory/notes")], [call]);
    play["start"] = json!("attached");
    play["end"] = json!("open");
    server.push(&play);
    let worker = poll(level(), "").serve(&server);
    worker.wait_for_sleep("33", SOON);
    let put = json!([{"memory_store": "memstore_1", "put": {"/b": "theirs"}}]);
    server.dev("POST", "sessions/lost/steps", &put);
    assert!(wait_for(SOON, || texts(&server, "memstore_1")["/b"] == "theirs"));
    server.fault(&json!({"on": "heartbeat", "do": "lost"}));
    worker.wait_for_event("memory.disposed", SOON);
    let kept = texts(&server, "memstore_1");
    assert_eq!(kept, json!({"/a": "2", "/b": "theirs", "/gone": "1"}), "{}", worker.said());
    let ran = worker.stop().ended(0);
    let report = server.report();
    let holder = &report["work"][0]["holders"][0];
    assert_eq!(holder["stops"], json!([]), "a stop of a lost item");
    assert_eq!(logged(&ran, "memory.synced", "edits_lost"), 1, "{}", ran.stderr);
    assert_eq!(report["requests"]["memory_delete"], Value::Null);
}

#[test]
fn a_worker_that_is_killed_in_a_sync_leaves_a_whole_store_and_nothing_on_the_host() {
    // INV-10, MEM-23: an upload that was applied and never answered; the next worker finds it.
    for level in Level::here() {
        let server = Devserver::with("[server]\nttl_seconds = 2", &["--keep-results"]);
        server.dev(
            "POST",
            "memory_stores",
            &json!({"id": "memstore_1", "memories": {"/a": "1", "/b": "1"}}),
        );
        server.fault(&json!({"on": "memory_update", "do": "hang-after"}));
        let first = bash("cd /mnt/memory/notes; printf 2 > a; printf new > c");
        let mut play =
            with_stores("killed", &[("memstore_1", "read_write", "/mnt/memory/notes")], [first]);
        play["message"] = json!("please");
        server.push(&play);
        let worker = poll(level, "").may_leave().serve(&server);
        let hangs = || server.report()["requests"]["memory_update"]["count"] == 1;
        assert!(wait_for(SOON, hangs), "no sync: {}", worker.said());
        worker.signal("KILL");
        worker.wait();
        let kept = texts(&server, "memstore_1");
        assert_eq!((&kept["/a"], &kept["/b"]), (&json!("2"), &json!("1")), "{kept}");
        let worker = poll(level, "").serve(&server);
        server.wait_done(2 * SOON);
        let ran = worker.stop().ended(0);
        let kept = texts(&server, "memstore_1");
        assert_eq!((&kept["/a"], &kept["/b"]), (&json!("2"), &json!("1")), "{kept}");
        passed(server.end(), &ran.stderr);
    }
}

#[test]
fn a_jail_that_is_kept_gets_the_store_as_it_is_by_then() {
    // MEM-4, MEM-32: nothing of the last item is left in the folder.
    let server = server(&json!({"/a": "1", "/b": "1"}));
    let change = json!({"memory_store": "memstore_1", "put": {"/a": "theirs"}, "remove": ["/b"]});
    let calls = [
        gives(
            bash(
                "cd /mnt/memory/notes; printf x > $'bad\\nname'; ls | wc -l; echo kept > /workspace/f",
            ),
            "4",
        ),
        json!({"idle": "end_turn"}),
        json!({"wait_stopped": true, "within_s": 20}),
        change,
        json!({"message": "more"}),
        gives(bash("cat /workspace/f; cd /mnt/memory/notes; cat a; ls"), "kept\ntheirsa"),
        json!({"idle": "end_turn"}),
    ];
    server.push(&with_stores("again", &[("memstore_1", "read_write", "/mnt/memory/notes")], calls));
    let policy = include_str!("../../policies/default.toml")
        .replace("name = \"default\"", "name = \"retaining\"")
        .replace("retain = \"none\"", "retain = \"30s\"");
    let (played, kept) = serve(server, poll(level(), "").policy(&policy));
    assert_eq!(kept, json!({"/a": "theirs"}));
    assert_eq!(played.ran.events("jail.resumed").len(), 1);
    assert_eq!(played.ran.audited("memory.mounted").len(), 2);
}

#[test]
fn a_session_whose_jail_is_replaced_has_its_stores_again() {
    // MEM-6, INV-9: what was not uploaded is lost with the jail, and the store is whole.
    let server = server(&json!({"/a": "1", "/b": "1"}));
    let calls = [
        expect(bash("printf lost > /mnt/memory/notes/a; sleep 66"), json!({"is_error": true})),
        expect(
            bash("cd /mnt/memory/notes; cat a b; printf 2 > b"),
            json!({"is_error": false, "matches": "^11\n\\[jail\\] The jail of this session was replaced"}),
        ),
    ];
    server.push(&with_stores("dies", &[("memstore_1", "read_write", "/mnt/memory/notes")], calls));
    let worker = poll(level(), "").serve(&server);
    let found = worker.wait_for_sleep("66", SOON);
    // Above the command: bash, the keeper, init.
    let parents = e2e::exec::parents();
    let above = |pid: u32| parents.iter().find(|(child, _)| *child == pid).expect("a parent").1;
    let init = above(above(above(found)));
    let killed =
        std::process::Command::new("kill").args(["-s", "KILL", &init.to_string()]).status();
    assert!(killed.expect("cannot run kill").success());
    server.wait_done(2 * SOON);
    let ran = worker.stop().ended(0);
    let kept = texts(&server, "memstore_1");
    passed(server.end(), &ran.stderr);
    assert_eq!(kept, json!({"/a": "1", "/b": "2"}));
    assert_eq!(ran.audited("memory.mounted").len(), 2);
}

#[test]
fn a_second_signal_leaves_a_moment_for_what_was_written() {
    // SHUT-4, MEM-33.
    let server = server(&json!({"/a": "1"}));
    let mut call = bash("printf 2 > /mnt/memory/notes/a; sleep 33");
    call["wait"] = json!(false);
    let mut play =
        with_stores("cancelled", &[("memstore_1", "read_write", "/mnt/memory/notes")], [call]);
    play["end"] = json!("open");
    server.push(&play);
    let worker = poll(level(), "").serve(&server);
    worker.wait_for_sleep("33", SOON);
    let signalled = Instant::now();
    worker.signal("QUIT");
    let ran = worker.wait().ended(131);
    assert_eq!(texts(&server, "memstore_1"), json!({"/a": "2"}), "{}", ran.stderr);
    let took = ran.over.duration_since(signalled);
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[test]
fn files_of_holes_cost_their_own_store_and_nobody_else_anything() {
    // SHUT-4, SHUT-5, INV-11, MEM-10: no scan reads what no memory can be, and the slot is free at once.
    for level in Level::here() {
        let server = server(&json!({"/a": "1"}));
        server.dev("POST", "memory_stores", &json!({"id": "memstore_2", "memories": {"/b": "1"}}));
        let act = "cd /mnt/memory; truncate -s 7E notes/x && printf 2 > notes/a && printf 2 > more/b \
            && stat -c %s notes/x";
        let stores = [
            ("memstore_1", "read_write", "/mnt/memory/notes"),
            ("memstore_2", "read_write", "/mnt/memory/more"),
        ];
        let size = (7_u64 << 60).to_string();
        server.push(&with_stores("holes", &stores, [gives(bash(act), &size)]));
        let worker = poll(level, "").serve(&server);
        worker.wait_for_event("call.ended", SOON);
        let began = Instant::now();
        server.wait_done(2 * SOON);
        assert!(began.elapsed() < SOON, "{:?}: {}", began.elapsed(), worker.said());
        let ran = worker.stop().ended(0);
        assert_eq!(texts(&server, "memstore_1"), json!({"/a": "2"}), "{}", ran.stderr);
        assert_eq!(texts(&server, "memstore_2"), json!({"/b": "2"}), "{}", ran.stderr);
        passed(server.end(), &ran.stderr);
        assert_eq!(logged(&ran, "memory.synced", "refused"), 1, "the file itself, once");
        assert_eq!(ran.audited("memory.disposed").len(), 2);
    }
}
