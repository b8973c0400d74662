//! One test for each rule of a sync (protocol §8.1 to §8.5), on both sides of a store.

use std::collections::BTreeMap;
use std::time::Duration;

use super::fakes::Fault;
use super::{Access, Deletions, Site};
use crate::memory::MARKER_PATH;
use crate::memory::engine::SyncError;
use crate::memory::events::Pass;

/// Texts by path, for comparison.
fn texts(all: &[(&str, &str)]) -> BTreeMap<String, String> {
    all.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

/// Longer than a deletion must wait.
async fn window_passes() {
    tokio::time::advance(Duration::from_secs(31)).await;
}

#[tokio::test(start_paused = true)]
async fn every_memory_of_every_page_becomes_a_file_beside_the_marker() {
    // MEM-5, MEM-6, API-4.
    let memories: Vec<(String, String)> =
        (0..45).map(|n| (format!("/d{}/{n}.md", n % 3), format!("text {n}"))).collect();
    let memories: Vec<(&str, &str)> =
        memories.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let mut site = Site::new(Access::ReadWrite, Deletions::Enabled, &memories);
    site.engine.download().await.expect("downloaded");
    assert_eq!(site.folder.texts().len(), 45);
    assert_eq!(site.folder.text("d1/7.md").as_deref(), Some("text 7"));
    assert_eq!(site.folder.text(MARKER_PATH).as_deref(), Some("version 1\nmemstore_1"));
    assert_eq!(site.server.requests(), ["download ", "download 20", "download 40"]);
    assert_eq!(site.heard.all(), ["mounted 45 0"]);
    // The baseline is complete: a sync finds nothing to do and moves no text.
    site.server.forget_requests();
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.server.requests(), ["list "]);
    assert!(!site.heard.counts().changed());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_listed_or_recorded_fails_the_download() {
    // MEM-7.
    let mut site = Site::new(Access::ReadWrite, Deletions::Enabled, &[("/a", "a")]);
    site.server.fault("download", Fault::Status(500));
    assert!(matches!(site.engine.download().await, Err(SyncError::Store { .. })));
    site.heard.fail();
    assert!(matches!(site.engine.download().await, Err(SyncError::Unrecorded)));
    site.folder.state().broken.insert("prepare");
    assert!(matches!(site.engine.download().await, Err(SyncError::Folder { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_memory_that_cannot_be_a_file_is_no_failure_and_is_never_deleted() {
    // MEM-9, MEM-14, MEM-34: what a scan will not find must not pass for deleted.
    let odd = [
        ("/good", "1"),
        ("/bad", "2"),
        ("/../escape", "3"),
        ("no-slash", "4"),
        ("/.anthropic-memory-store", "5"),
        ("/d/.fs-0a1b.tmp", "6"),
        ("/d//e", "7"),
    ];
    let mut site = Site::new(Access::ReadWrite, Deletions::Enabled, &odd);
    site.folder.state().unwritable.insert("bad".to_owned());
    site.engine.download().await.expect("downloaded");
    assert_eq!(site.folder.texts(), texts(&[("good", "1")]));
    assert_eq!(site.folder.text(MARKER_PATH).as_deref(), Some("version 1\nmemstore_1"));
    assert_eq!(site.heard.all(), ["mounted 1 6"]);
    for _ in 0..3 {
        site.engine.sync(Pass::Final).await;
        window_passes().await;
    }
    assert_eq!(site.server.texts().len(), odd.len());
    assert_eq!(site.heard.counts().unwritable, 1, "tried again, in vain");
    assert_eq!(site.heard.counts().unusable, 5);
    // When it can be written it is.
    site.folder.state().unwritable.clear();
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.folder.text("bad").as_deref(), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn half_written_files_are_not_uploaded() {
    // MEM-34.
    let mut site = Site::with(&[]).await;
    site.folder.put("d/.fs-0a1b2c.tmp", "half");
    site.folder.put(".hidden", "dotfiles are (MEM-10)");
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.server.texts(), texts(&[("/.hidden", "dotfiles are (MEM-10)")]));
}

#[tokio::test(start_paused = true)]
async fn a_folder_whose_marker_is_gone_or_says_something_else_is_left_alone() {
    // MEM-11, RACE-18: files of somebody else are not uploaded, and nothing is deleted.
    for swap in [None, Some("version 1\nmemstore_2"), Some("")] {
        let mut site = Site::with(&[("/a", "a"), ("/b", "b")]).await;
        site.folder.wipe();
        site.folder.put("passwords", "not ours");
        if let Some(text) = swap {
            site.folder.put(MARKER_PATH, text);
        }
        site.engine.sync(Pass::Final).await;
        window_passes().await;
        site.engine.sync(Pass::Final).await;
        site.engine.flush().await;
        assert_eq!(site.server.requests(), [""; 0], "{swap:?}");
        assert_eq!(site.heard.all(), ["untrusted 1", "untrusted 1", "untrusted flush 1"]);
        assert_eq!(site.folder.texts(), texts(&[("passwords", "not ours")]), "as found");
    }
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_was_destroyed_is_filled_anew_and_nothing_is_sent() {
    // MEM-11, MEM-12, MEM-13: with and without its marker.
    for keep_marker in [false, true] {
        let mut site = Site::with(&[("/a", "a"), ("/b", "b")]).await;
        site.folder.wipe();
        if keep_marker {
            site.folder.put(MARKER_PATH, "version 1\nmemstore_1");
        }
        site.engine.sync(Pass::Final).await;
        assert_eq!(site.folder.texts(), texts(&[("a", "a"), ("b", "b")]), "{keep_marker}");
        assert_eq!(site.heard.all(), ["recovered 2"]);
        assert_eq!(site.server.texts().len(), 2);
        assert_eq!(site.server.count("delete") + site.server.count("create"), 0);
        window_passes().await;
        site.server.forget_requests();
        site.engine.sync(Pass::Final).await;
        assert_eq!(site.server.requests(), ["list "], "all is well again");
    }
}

#[tokio::test(start_paused = true)]
async fn what_appears_in_a_destroyed_folder_is_not_lost() {
    // MEM-13, RACE-18: written between the scan and the recovery.
    let mut site = Site::with(&[("/a", "a"), ("/b", "b")]).await;
    site.folder.wipe();
    site.folder.before("mark", "", |files| drop(files.insert("new".into(), b"new".to_vec())));
    site.engine.sync(Pass::Regular).await;
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.server.text("/new").as_deref(), Some("new"));
    assert_eq!(site.server.texts().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_only_file_of_a_store_can_be_deleted() {
    // MEM-12.
    let mut site = Site::with(&[("/a", "a")]).await;
    site.folder.delete("a");
    site.engine.sync(Pass::Regular).await;
    window_passes().await;
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.server.texts().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_landed_unheard_counts_when_a_wipe_is_told_from_a_deletion() {
    // MEM-12: after the settling of MEM-23.
    let mut site = Site::with(&[("/a", "a")]).await;
    site.folder.put("b", "b");
    site.server.fault("create", Fault::Lost);
    site.engine.sync(Pass::Regular).await;
    site.folder.delete("a");
    site.folder.delete("b");
    site.engine.sync(Pass::Final).await;
    assert_eq!(site.heard.all().last().map(String::as_str), Some("recovered 2"));
    assert_eq!(site.server.texts().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_memory_that_is_gone_takes_its_file_along_unless_it_was_edited() {
    // MEM-15, MEM-16, MEM-17.
    let mut site =
        Site::with(&[("/same", "1"), ("/edited", "2"), ("/racing", "3"), ("/gone", "4")]).await;
    for path in ["/same", "/edited", "/racing", "/gone"] {
        site.server.delete(path);
    }
    site.folder.put("edited", "mine");
    site.folder.delete("gone");
    // Edited between the scan and the removal.
    site.folder
        .before("remove", "racing", |files| drop(files.insert("racing".into(), b"late".to_vec())));
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.folder.texts(), texts(&[("edited", "mine"), ("racing", "late")]));
    assert_eq!(site.server.texts(), texts(&[("/edited", "mine"), ("/racing", "late")]));
    let counts = site.heard.counts();
    assert_eq!((counts.removed, counts.recreated, counts.created), (1, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_removed_is_kept_for_the_next_sync() {
    // MEM-16.
    let mut site = Site::with(&[("/a", "a"), ("/b", "b")]).await;
    site.server.delete("/a");
    site.folder.state().broken.insert("remove");
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.server.texts(), texts(&[("/b", "b")]), "it is not uploaded as new");
    site.folder.state().broken.clear();
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.folder.texts(), texts(&[("b", "b")]));
}

#[tokio::test(start_paused = true)]
async fn a_read_only_store_is_never_written_and_keeps_orphans() {
    // MEM-8, MEM-17, MEM-18, MEM-20.
    let mut site = Site::read_only(&[("/a", "a"), ("/b", "b"), ("/c", "c"), ("/d", "d")]).await;
    site.folder.put("a", "edited");
    site.folder.put("new", "new");
    site.folder.delete("b");
    site.server.delete("/c");
    site.folder.put("c", "edited too");
    for _ in 0..3 {
        site.engine.sync(Pass::Final).await;
        window_passes().await;
    }
    site.engine.flush().await;
    let asked: Vec<String> =
        site.server.requests().into_iter().filter(|request| request != "list ").collect();
    assert_eq!(asked, [""; 0]);
    let kept = [("a", "edited"), ("c", "edited too"), ("d", "d"), ("new", "new")];
    assert_eq!(site.folder.texts(), texts(&kept));
    assert_eq!(site.server.texts().len(), 3);
    // The server's next version wins all the same.
    site.server.put("/a", "newer");
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.folder.text("a").as_deref(), Some("newer"));
    assert_eq!(site.heard.counts().edits_lost, 1);
}

#[tokio::test(start_paused = true)]
async fn the_server_wins_conflicts_and_equal_texts_are_none() {
    // MEM-18, MEM-19, MEM-21.
    let mut site =
        Site::with(&[("/theirs", "1"), ("/both", "2"), ("/same", "3"), ("/back", "4")]).await;
    for path in ["/theirs", "/both", "/same", "/back"] {
        site.server.put(path, "server");
    }
    site.server.put("/new", "server");
    site.folder.put("both", "mine");
    site.folder.put("same", "server");
    site.folder.delete("back");
    site.engine.sync(Pass::Regular).await;
    assert!(site.folder.texts().values().all(|text| text == "server"));
    assert_eq!(site.folder.texts().len(), 5);
    let counts = site.heard.counts();
    assert_eq!((counts.pulled, counts.edits_lost, counts.restored), (4, 1, 1));
    assert_eq!(site.server.count("fetch"), 4, "what is equal is not fetched");
    assert_eq!(site.server.count("update"), 0);
    site.server.forget_requests();
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.server.requests(), ["list "]);
}

#[tokio::test(start_paused = true)]
async fn edits_and_new_files_are_uploaded() {
    // MEM-17, MEM-20, MEM-25; AUDIT: told before it is sent.
    let mut site = Site::with(&[("/a", "a"), ("/b", "b")]).await;
    site.folder.put("a", "edited");
    site.folder.put("d/new", "new");
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.server.texts(), texts(&[("/a", "edited"), ("/b", "b"), ("/d/new", "new")]));
    assert_eq!(site.heard.all(), ["sending 1 1 0", "synced regular"]);
    site.server.forget_requests();
    site.engine.sync(Pass::Regular).await;
    site.engine.flush().await;
    assert_eq!(site.server.requests(), ["list "], "and nothing is uploaded twice");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_that_is_not_on_record() {
    // The audit log is written before the effect.
    let mut site = Site::with(&[("/a", "a"), ("/b", "b")]).await;
    site.heard.fail();
    site.folder.put("a", "edited");
    site.engine.sync(Pass::Regular).await;
    site.engine.flush().await;
    site.folder.put("a", "a");
    site.folder.delete("b");
    site.engine.sync(Pass::Final).await;
    assert_eq!(site.server.texts(), texts(&[("/a", "a"), ("/b", "b")]));
    assert_eq!(site.server.count("update") + site.server.count("delete"), 0);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_sixteen_fetches_and_thirty_two_uploads_are_on_their_way() {
    // MEM-21, MEM-31.
    let mut site = Site::with(&[]).await;
    site.server.state().takes = Duration::from_millis(10);
    for n in 0..50 {
        site.server.put(&format!("/{n}"), "server");
    }
    site.engine.sync(Pass::Regular).await;
    assert_eq!((site.heard.counts().pulled, site.server.state().in_flight_max), (50, 16));
    site.server.state().in_flight_max = 0;
    for n in 0..50 {
        site.folder.put(&format!("{n}"), "mine");
    }
    site.engine.flush().await;
    assert_eq!((site.heard.counts().updated, site.server.state().in_flight_max), (50, 32));
}

#[tokio::test(start_paused = true)]
async fn a_memory_that_cannot_be_fetched_is_left_for_the_next_sync() {
    // MEM-21.
    let mut site = Site::with(&[("/a", "1"), ("/b", "1")]).await;
    site.server.put("/a", "2");
    site.server.put("/b", "2");
    site.server.fault("fetch", Fault::Status(500));
    site.server.fault("fetch", Fault::Status(404));
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.folder.texts(), texts(&[("a", "1"), ("b", "1")]));
    assert_eq!(site.heard.counts().failed, 1, "404 is no failure");
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.folder.texts(), texts(&[("a", "2"), ("b", "2")]));
}

#[tokio::test(start_paused = true)]
async fn what_the_store_refuses_is_left_until_it_changes_and_holds_nothing_up() {
    // MEM-22.
    let mut site = Site::with(&[("/good", "1")]).await;
    site.folder.state().files.insert("binary".into(), vec![0xff, 0xfe]);
    site.folder.state().files.insert("huge".into(), vec![b'x'; (1 << 20) + 1]);
    site.folder.put("large", "too large");
    site.folder.put("odd", "a bad name");
    site.server.fault("create", Fault::Status(413));
    site.server.fault("create", Fault::Status(400));
    site.folder.put("good", "2");
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.heard.counts().refused, 4);
    assert_eq!(site.server.texts(), texts(&[("/good", "2")]));
    site.server.forget_requests();
    site.heard.forget();
    site.engine.sync(Pass::Regular).await;
    site.engine.flush().await;
    assert_eq!(site.server.requests(), ["list "], "told once, not sent again");
    assert_eq!(site.heard.counts().refused, 0);
    for path in ["binary", "huge", "large", "odd"] {
        site.folder.put(path, "fine");
    }
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.server.texts().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_told_from_another_writer() {
    // MEM-23: create and update.
    let mut site = Site::with(&[("/a", "1")]).await;
    site.folder.put("a", "2");
    site.folder.put("b", "new");
    site.server.fault("create", Fault::Lost);
    site.server.fault("update", Fault::Lost);
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.heard.counts().failed, 2);
    assert_eq!(site.server.texts(), texts(&[("/a", "2"), ("/b", "new")]), "both landed");
    // An edit on top goes out over it and is no conflict.
    site.folder.put("a", "3");
    site.server.forget_requests();
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.server.requests(), ["list ", "update /a"]);
    assert_eq!(site.heard.counts().edits_lost, 0);
    assert_eq!(site.server.text("/a").as_deref(), Some("3"));
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_is_remembered_for_one_listing_only() {
    // MEM-23: later, the same text is another writer's.
    let mut site = Site::with(&[("/a", "1")]).await;
    site.folder.put("a", "2");
    site.server.fault("update", Fault::Status(500));
    site.engine.sync(Pass::Regular).await;
    // Not applied; the next sync clears the note and sends it again, which fails as well.
    site.server.fault("update", Fault::Status(409));
    site.engine.sync(Pass::Regular).await;
    site.folder.put("a", "3");
    site.server.put("/a", "4");
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.folder.text("a").as_deref(), Some("4"));
    assert_eq!(site.heard.counts().edits_lost, 1);
}

#[tokio::test(start_paused = true)]
async fn an_update_of_a_deleted_memory_makes_it_anew() {
    // MEM-24: deleted between the listing and the update.
    let mut site = Site::with(&[("/a", "1"), ("/b", "b")]).await;
    site.folder.put("a", "2");
    site.server.state().meddler = Some(Box::new(|operation, _, memories| {
        if operation == "update" {
            memories.retain(|_, (path, _)| path != "/a");
        }
    }));
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.server.text("/a").as_deref(), Some("2"));
    assert_eq!(site.heard.counts().created, 1);
    assert_eq!(site.server.requests(), ["list ", "update /a", "create /a"]);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_in_the_last_moment_goes_to_the_server() {
    // MEM-24, RACE-19: the precondition fails; the next sync refreshes the file.
    let mut site = Site::with(&[("/a", "1")]).await;
    site.folder.put("a", "mine");
    site.server.state().meddler = Some(Box::new(|operation, _, memories| {
        if operation == "update" {
            memories.values_mut().for_each(|(_, text)| "theirs".clone_into(text));
        }
    }));
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.heard.counts().edits_lost, 1);
    site.server.state().meddler = None;
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.folder.text("a").as_deref(), Some("theirs"));
    assert_eq!(site.server.text("/a").as_deref(), Some("theirs"));
}

#[tokio::test(start_paused = true)]
async fn a_create_whose_path_is_taken_is_decided_by_the_next_listing() {
    // MEM-24.
    let mut site = Site::with(&[]).await;
    site.folder.put("a", "mine");
    site.server.state().meddler = Some(Box::new(|operation, _, memories| {
        if operation == "create" {
            memories.insert("mem_other".into(), ("/a".into(), "theirs".into()));
        }
    }));
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.heard.counts().failed, 1);
    site.server.state().meddler = None;
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.folder.text("a").as_deref(), Some("theirs"));
}

#[tokio::test(start_paused = true)]
async fn a_deletion_waits_for_a_later_sync_and_half_a_minute() {
    // MEM-26.
    let mut site = Site::with(&[("/a", "a"), ("/b", "b")]).await;
    site.folder.delete("a");
    for seconds in [0, 15, 14] {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        site.engine.sync(Pass::Regular).await;
        assert_eq!(site.heard.counts().deletes_waiting, 1);
    }
    assert_eq!(site.server.texts().len(), 2);
    tokio::time::advance(Duration::from_secs(1)).await;
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.server.texts(), texts(&[("/b", "b")]));
    assert_eq!(site.heard.all().iter().filter(|told| *told == "sending 0 0 1").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_comes_back_begins_its_wait_anew() {
    // MEM-26.
    let mut site = Site::with(&[("/a", "a"), ("/b", "b")]).await;
    site.folder.delete("a");
    site.engine.sync(Pass::Regular).await;
    window_passes().await;
    site.folder.put("a", "a");
    site.engine.sync(Pass::Regular).await;
    site.folder.delete("a");
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.server.texts().len(), 2);
    // The final sync does not wait.
    site.engine.sync(Pass::Final).await;
    assert_eq!(site.server.texts(), texts(&[("/b", "b")]));
}

#[tokio::test(start_paused = true)]
async fn deletions_can_be_switched_off_or_only_counted() {
    // MEM-26, MEM-28.
    for mode in [Deletions::Disabled, Deletions::LogOnly] {
        let mut site = Site::downloaded(Access::ReadWrite, mode, &[("/a", "a"), ("/b", "b")]).await;
        site.folder.delete("a");
        site.engine.sync(Pass::Regular).await;
        window_passes().await;
        site.engine.sync(Pass::Regular).await;
        site.engine.sync(Pass::Final).await;
        assert_eq!(site.heard.counts().deletes_withheld, 1, "{mode:?}");
        assert_eq!((site.server.texts().len(), site.server.count("delete")), (2, 0));
        assert_eq!(site.folder.texts(), texts(&[("b", "b")]), "nor does the file come back");
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_or_a_marker_is_looked_at_once_more_before_a_deletion() {
    // MEM-27, RACE-18.
    let mut site = Site::with(&[("/a", "a"), ("/b", "b")]).await;
    site.folder.delete("a");
    site.folder.before("read", "a", |files| drop(files.insert("a".into(), b"back".to_vec())));
    site.engine.sync(Pass::Final).await;
    assert_eq!(site.server.text("/a").as_deref(), Some("a"));
    site.engine.sync(Pass::Final).await;
    assert_eq!(site.server.text("/a").as_deref(), Some("back"));

    let mut site = Site::with(&[("/a", "a"), ("/b", "b")]).await;
    site.folder.delete("a");
    site.folder.before("marker", "", |files| files.clear());
    site.engine.sync(Pass::Final).await;
    assert_eq!((site.server.texts().len(), site.server.count("delete")), (2, 0));
    site.engine.sync(Pass::Final).await;
    assert_eq!(site.heard.all().last().map(String::as_str), Some("recovered 2"));

    // What cannot be read is not taken for gone.
    site.folder.delete("a");
    site.folder.state().broken.insert("read");
    site.engine.sync(Pass::Final).await;
    assert_eq!(site.server.texts().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_sync_deletes_only_so_many_memories() {
    // MEM-28: max(8, min(50, n/4)).
    for (memories, cap) in [(20, 8), (100, 25), (300, 50)] {
        let all: Vec<String> = (0..memories).map(|n| format!("/{n}")).collect();
        let all: Vec<(&str, &str)> = all.iter().map(|path| (path.as_str(), "x")).collect();
        let mut site = Site::with(&all).await;
        for n in 1..memories {
            site.folder.delete(&n.to_string());
        }
        site.engine.sync(Pass::Final).await;
        let counts = site.heard.counts();
        assert_eq!(counts.deleted, cap, "{memories}");
        assert_eq!(counts.deletes_held, memories - 1 - cap);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_meets_what_is_on_the_server_by_then() {
    // MEM-29.
    let mut site =
        Site::with(&[("/changed", "1"), ("/gone", "1"), ("/broken", "1"), ("/x", "x")]).await;
    for path in ["changed", "gone", "broken"] {
        site.folder.delete(path);
    }
    site.server.state().meddler = Some(Box::new(|operation, path, memories| {
        let matched = operation == "delete";
        for (at, text) in memories.values_mut().filter(|(at, _)| matched && at == path) {
            if at == "/changed" {
                "2".clone_into(text);
            }
        }
        memories.retain(|_, (at, _)| !(matched && at == path && at == "/gone"));
    }));
    site.server.fault("delete", Fault::Status(500));
    site.engine.sync(Pass::Final).await;
    // In order of paths: `broken` failed, `changed` is kept, `gone` was gone.
    assert_eq!((site.heard.counts().failed, site.heard.counts().deleted), (1, 1));
    assert_eq!(site.server.texts(), texts(&[("/broken", "1"), ("/changed", "2"), ("/x", "x")]));
    site.server.state().meddler = None;
    site.engine.sync(Pass::Final).await;
    assert_eq!(site.folder.text("changed").as_deref(), Some("2"), "it comes back");
    assert_eq!(site.server.texts(), texts(&[("/changed", "2"), ("/x", "x")]));
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_cannot_be_read_or_a_store_that_does_not_answer_changes_nothing() {
    // RACE-18, MEM-30: syncs do not fail anything else.
    let mut site = Site::with(&[("/a", "a"), ("/b", "b")]).await;
    site.folder.put("a", "edited");
    site.folder.state().broken.insert("scan");
    site.engine.sync(Pass::Final).await;
    site.folder.state().broken.clear();
    site.server.fault("list", Fault::Status(503));
    site.engine.sync(Pass::Final).await;
    assert_eq!(site.heard.all(), ["failed final cannot scan", "failed final 503"]);
    assert_eq!(site.server.text("/a").as_deref(), Some("a"));
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.server.text("/a").as_deref(), Some("edited"));
    site.folder.state().gone = true;
    site.engine.sync(Pass::Regular).await;
    assert_eq!(site.heard.all().last().expect("told"), "failed regular the jail has ended");
}
