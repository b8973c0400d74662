//! At most once across the death of a worker and of the host (INV-9, RUN-5).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tempfile::TempDir;

use super::super::journal::{Journal, JournalError, Known, sha256_hex};
use super::super::*;
use super::world::*;

const UNKNOWN: &str = "bash: the worker was interrupted while this call ran; its outcome is \
                       unknown and it was not run again";

fn journals(place: &TempDir, boot: &str) -> FileJournals {
    let (journal, results) = (place.path().join("journal"), place.path().join("results"));
    FileJournals::at_boot(&journal, &results, boot).expect("directories")
}

fn open(place: &TempDir, boot: &str) -> Box<dyn Journal> {
    journals(place, boot).open("sesn_1").expect("a journal")
}

fn files(place: &TempDir) -> usize {
    let count = |name: &str| fs::read_dir(place.path().join(name)).expect("a directory").count();
    count("journal") + count("results")
}

fn world(place: &TempDir, boot: &str) -> World {
    World::with(|_| {}, Arc::new(journals(place, boot)))
}

fn body() -> Bytes {
    Bytes::from_static(br#"{"events":[{"type":"user.tool_result","tool_use_id":"t","is_error":false,"content":[{"type":"text","text":"kept"}]}]}"#)
}

#[test]
fn what_was_written_is_known_to_the_next_worker() {
    let place = TempDir::new().expect("a directory");
    let mut journal = open(&place, "boot1");
    journal.intent("a", "bash", "00").expect("written");
    journal.intent("t", "bash", "00").expect("written");
    journal.result("t", &body()).expect("written");
    journal.intent("c", "bash", "00").expect("written");
    journal.result("c", &body()).expect("written");
    journal.settled("c").expect("written");
    drop(journal); // A killed worker: no close.
    let journal = open(&place, "boot1");
    let known = |call: &str| journal.known(call).expect("readable");
    assert_eq!(known("a"), Known::Intent);
    assert_eq!(known("t"), Known::Result(body()));
    assert_eq!(known("c"), Known::Settled);
    assert_eq!(known("d"), Known::Nothing);
    assert!(!journal.may_have_lost_writes(), "the same boot loses nothing");
}

#[test]
fn files_are_for_this_user_only_and_hold_no_content_in_the_journal() {
    // INV-12.
    let place = TempDir::new().expect("a directory");
    let mut journal = open(&place, "boot1");
    journal.intent("t", "bash", "00").expect("written");
    journal.result("t", &body()).expect("written");
    let mut seen = 0;
    let mut look = vec![place.path().join("journal"), place.path().join("results")];
    while let Some(path) = look.pop() {
        let meta = fs::metadata(&path).expect("there");
        let mode = meta.permissions().mode() & 0o777;
        if meta.is_dir() {
            assert_eq!(mode, 0o700, "{path:?}");
            look.extend(
                fs::read_dir(&path).expect("a directory").map(|e| e.expect("an entry").path()),
            );
        } else {
            assert_eq!(mode, 0o600, "{path:?}");
            seen += 1;
            if path.extension().is_some_and(|end| end == "jsonl") {
                assert!(!fs::read_to_string(&path).expect("text").contains("kept"));
            }
        }
    }
    assert_eq!(seen, 2);
}

#[test]
fn a_clean_end_leaves_nothing_and_an_unclear_one_leaves_the_journal() {
    // INV-10.
    let place = TempDir::new().expect("a directory");
    let mut journal = open(&place, "boot1");
    journal.intent("t", "bash", "00").expect("written");
    journal.result("t", &body()).expect("written");
    journal.settled("t").expect("written");
    journal.close().expect("closed");
    drop(journal);
    assert_eq!(files(&place), 0);
    let mut journal = open(&place, "boot1");
    journal.intent("t", "bash", "00").expect("written");
    journal.close().expect("closed");
    drop(journal);
    let journal = open(&place, "boot2");
    assert_eq!(journal.known("t").expect("readable"), Known::Intent);
    assert!(!journal.may_have_lost_writes(), "it was closed");
}

#[test]
fn an_earlier_boot_may_have_lost_writes_until_that_is_accounted_for() {
    let place = TempDir::new().expect("a directory");
    let mut journal = open(&place, "boot1");
    journal.intent("t", "bash", "00").expect("written");
    journal.result("t", &body()).expect("written");
    drop(journal);
    fs::remove_dir_all(place.path().join("results")).expect("a tmpfs is empty after a boot");
    let journal = open(&place, "boot2");
    assert!(journal.may_have_lost_writes());
    assert_eq!(journal.known("t").expect("readable"), Known::Intent, "it ran; its result is gone");
    drop(journal);
    let mut journal = open(&place, "boot2");
    assert!(journal.may_have_lost_writes(), "still: nobody accounted for it");
    journal.presume_started(&[("t", "bash"), ("u", "bash")]).expect("written");
    drop(journal);
    let journal = open(&place, "boot2");
    assert!(!journal.may_have_lost_writes());
    assert_eq!(journal.known("u").expect("readable"), Known::Intent);
}

#[test]
fn a_torn_line_makes_everything_unanswered_uncertain() {
    let place = TempDir::new().expect("a directory");
    let mut journal = open(&place, "boot1");
    journal.intent("t", "bash", "00").expect("written");
    drop(journal);
    let directory = fs::read_dir(place.path().join("journal")).expect("a directory");
    let path = directory.map(|entry| entry.expect("an entry").path()).next().expect("a file");
    let text = fs::read(&path).expect("readable");
    fs::write(&path, &text[..text.len() - 5]).expect("written");
    let mut journal = open(&place, "boot1");
    assert!(journal.may_have_lost_writes());
    journal.intent("u", "bash", "00").expect("written");
    drop(journal);
    let journal = open(&place, "boot1");
    assert_eq!(journal.known("u").expect("readable"), Known::Intent, "later lines are whole");
}

#[test]
fn a_journal_of_more_than_64_mib_is_refused() {
    // INV-11. A file with a hole: nothing that large is written.
    let place = TempDir::new().expect("a directory");
    let journals = journals(&place, "boot1");
    let path = place.path().join(format!("journal/{}.jsonl", sha256_hex(b"sesn_1")));
    for (bytes, opens) in [(64 << 20, true), ((64 << 20) + 1, false)] {
        fs::File::create(&path).expect("a file").set_len(bytes).expect("a hole");
        match journals.open("sesn_1") {
            Ok(_) => assert!(opens, "{bytes}"),
            Err(error) => assert!(!opens, "{bytes}: {error}"),
        }
    }
}

#[test]
fn journals_of_sessions_that_do_not_come_back_are_swept() {
    // INV-10: those in use and the young ones stay.
    let place = TempDir::new().expect("a directory");
    let mut journal = open(&place, "boot1");
    journal.intent("t", "bash", "00").expect("written");
    let all = journals(&place, "boot1");
    assert_eq!(all.sweep(Duration::ZERO).expect("swept"), 0, "in use");
    drop(journal);
    assert_eq!(all.sweep(Duration::from_secs(3600)).expect("swept"), 0, "young");
    assert_eq!(all.sweep(Duration::ZERO).expect("swept"), 1);
    assert_eq!(files(&place), 0);
}

#[test]
fn a_session_has_one_worker_on_a_host() {
    let place = TempDir::new().expect("a directory");
    let first = open(&place, "boot1");
    let second = journals(&place, "boot1").open("sesn_1");
    assert!(matches!(second, Err(JournalError::Locked { session }) if session == "sesn_1"));
    assert!(journals(&place, "boot1").open("sesn_2").is_ok());
    drop(first);
    assert!(journals(&place, "boot1").open("sesn_1").is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_second_worker_runs_and_posts_nothing() {
    let place = TempDir::new().expect("a directory");
    let _first = open(&place, "boot1");
    let world = world(&place, "boot1");
    world.plane.state().history.push(call("t"));
    assert_eq!(world.serve().await.expect("an end"), ItemEnd::Failed);
    assert!(world.host.noted("open").is_empty() && world.plane.posted().is_empty());
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_kept_results_are_posted_and_interrupted_calls_are_not_run() {
    // INV-9, RUN-5.
    let place = TempDir::new().expect("a directory");
    let mut journal = open(&place, "boot1");
    journal.intent("t", "bash", "00").expect("written");
    journal.result("t", &body()).expect("written");
    journal.intent("u", "bash", "00").expect("written");
    drop(journal);
    let world = world(&place, "boot1");
    world.plane.state().history.extend([call("t"), call("u"), call("v")]);
    assert_eq!(world.serve_to_idle().await, ItemEnd::Idle);
    assert_eq!(world.plane.posted_ids(), ["t", "u", "v"]);
    assert_eq!(world.host.noted("run"), ["run v"]);
    assert_eq!(world.plane.posted_text(0), "kept");
    assert_eq!(world.plane.posted_text(1), UNKNOWN);
    assert_eq!(world.plane.posted()[1]["is_error"], true);
    assert_eq!(files(&place), 0, "all is settled");
}

#[tokio::test(start_paused = true)]
async fn a_killed_call_is_unknown_to_the_next_item_of_the_session() {
    // RACE-4, INV-9. A real interruption: the lease is lost while the call runs; later the session comes back.
    let place = TempDir::new().expect("a directory");
    let first = world(&place, "boot1");
    first.plane.state().beats.extend([beat("a", 20.0, "active", true), refused_beat(json!(null))]);
    first.plane.state().history.push(call_with("t", json!({"take_ms": 60_000})));
    assert_eq!(first.serve().await.expect("an end"), ItemEnd::Lease(LeaseEnd::Lost));
    assert_eq!(first.host.noted("run"), ["run t"]);
    let second = world(&place, "boot1");
    second.plane.state().history.push(call("t"));
    second.serve_to_idle().await;
    assert!(second.host.noted("run").is_empty());
    assert_eq!(second.plane.posted_text(0), UNKNOWN);
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_every_call_unanswered_at_the_first_reconcile_is_unknown() {
    let place = TempDir::new().expect("a directory");
    drop(open(&place, "boot1"));
    let world = world(&place, "boot2");
    let mut held = call("held");
    held["evaluated_permission"] = json!("ask");
    world.plane.state().history.extend([call("t"), held]);
    let item = world.serve();
    world.plane.until("a post", |plane| plane.posted().len() == 1).await;
    assert_eq!(world.plane.posted_text(0), UNKNOWN);
    world.plane.emit(call("new"));
    world.plane.emit(confirmation("held", "allow"));
    world.plane.until("the others", |plane| plane.posted().len() == 3).await;
    assert_eq!(world.host.noted("run"), ["run new", "run held"], "they cannot have run before");
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.plane.emit(end_turn());
    assert_eq!(item.await.expect("an end"), ItemEnd::Idle);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_cannot_be_recorded_is_not_run() {
    // INV-2, INV-9: fail closed.
    struct Full;
    struct FullJournal;
    impl JournalStore for Full {
        fn open(&self, _: &str) -> Result<Box<dyn Journal>, JournalError> {
            Ok(Box::new(FullJournal))
        }
    }
    impl Journal for FullJournal {
        fn known(&self, _: &str) -> std::io::Result<Known> {
            Ok(Known::Nothing)
        }
        fn intent(&mut self, _: &str, _: &str, _: &str) -> std::io::Result<()> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn result(&mut self, _: &str, _: &Bytes) -> std::io::Result<()> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn settled(&mut self, _: &str) -> std::io::Result<()> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn may_have_lost_writes(&self) -> bool {
            false
        }
        fn presume_started(&mut self, _: &[(&str, &str)]) -> std::io::Result<()> {
            Ok(())
        }
        fn close(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let world = World::with(|_| {}, Arc::new(Full));
    world.plane.state().history.push(call("t"));
    world.serve_to_idle().await;
    assert!(world.host.noted("run").is_empty());
    assert_eq!(world.plane.posted_text(0), "bash: not run: the worker cannot record the call");
}
