//! The passes at the end of a session: the flush, what cuts it off, and the receipt (MEM-31 to MEM-33).

use std::future::{pending, ready};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fakes::{FakeFolder, FakeServer, Fault};
use super::{Access, Deletions, Site};
use crate::memory::events::Pass;
use crate::memory::task::SessionMemory;

/// The session that a site's engine belongs to, as if downloaded long ago.
async fn session(site: Site) -> (Arc<SessionMemory<FakeFolder, FakeServer>>, Site) {
    let Site { folder, server, heard, engine } = site;
    let spare = Site::new(Access::ReadWrite, Deletions::Enabled, &[]);
    let memory = SessionMemory::download(vec![engine], Duration::from_secs(15)).await;
    let memory = Arc::new(memory.expect("downloaded"));
    server.forget_requests();
    heard.forget();
    (memory, Site { folder, server, heard, engine: spare.engine })
}

#[tokio::test(start_paused = true)]
async fn a_flush_uploads_changed_files_and_does_nothing_else() {
    // MEM-31.
    let mut site =
        Site::with(&[("/a", "1"), ("/b", "1"), ("/c", "1"), ("/d", "1"), ("/e", "1")]).await;
    site.folder.put("a", "2");
    site.folder.put("new", "new");
    site.folder.delete("b");
    site.server.put("/c", "theirs");
    site.server.put("/d", "theirs");
    site.folder.put("d", "mine");
    site.server.delete("/e");
    site.folder.put("e", "mine");
    site.engine.flush().await;
    let asked = site.server.requests();
    assert!(asked.iter().all(|one| !one.starts_with("delete") && !one.starts_with("fetch")));
    let has = |path: &str| site.server.text(path).expect("there");
    assert_eq!((has("/a"), has("/new"), has("/e")), ("2".into(), "new".into(), "mine".into()));
    assert_eq!((has("/b"), has("/c"), has("/d")), ("1".into(), "theirs".into(), "theirs".into()));
    assert_eq!(site.folder.text("d").as_deref(), Some("mine"), "nothing is pulled");
    assert_eq!(site.heard.counts().edits_lost, 1);
    assert_eq!(site.engine.unsent(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_clean_flush_makes_no_request() {
    // MEM-31; neither does one of a folder that is gone, or of a read-only store.
    let mut site = Site::with(&[("/a", "1")]).await;
    site.engine.flush().await;
    site.folder.delete("a");
    site.engine.flush().await;
    site.folder.wipe();
    site.engine.flush().await;
    assert_eq!(site.server.requests(), [""; 0]);
    let mut site = Site::read_only(&[("/a", "1")]).await;
    site.folder.put("a", "2");
    site.engine.flush().await;
    assert_eq!(site.server.requests(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_flush_looks_again_at_an_upload_that_was_never_answered() {
    // MEM-23, MEM-31: the file is as it was before that upload, the server may be ahead of it.
    for (fault, uploads) in [(Fault::Lost, 1), (Fault::Status(500), 0)] {
        let mut site = Site::with(&[("/a", "1")]).await;
        site.folder.put("a", "2");
        site.server.fault("update", fault);
        site.engine.sync(Pass::Regular).await;
        site.folder.put("a", "1");
        site.server.forget_requests();
        site.engine.flush().await;
        assert_eq!(site.server.count("update"), uploads, "{fault:?}");
        assert_eq!(site.server.text("/a").as_deref(), Some("1"), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_clean_end_syncs_in_full_and_an_unclean_one_only_flushes() {
    // MEM-31, LEASE-16.
    for cleanly in [true, false] {
        let (memory, site) =
            session(Site::new(Access::ReadWrite, Deletions::Enabled, &[("/a", "1"), ("/b", "1")]))
                .await;
        site.folder.put("a", "2");
        site.folder.delete("b");
        site.server.put("/c", "new");
        memory.finish(cleanly, pending()).await;
        assert_eq!(site.server.text("/a").as_deref(), Some("2"));
        assert_eq!(site.server.text("/b").is_none(), cleanly, "the window is waived");
        assert_eq!(site.folder.text("c").is_some(), cleanly);
        let told = site.heard.all();
        assert_eq!(told.contains(&"synced final".to_owned()), cleanly, "{told:?}");
        // After a full sync the flush has nothing to do.
        assert_eq!(told.contains(&"synced flush".to_owned()), !cleanly, "{told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pass_that_takes_too_long_is_cut_off_and_counted() {
    // MEM-31, MEM-33: half a minute each.
    let (memory, site) =
        session(Site::new(Access::ReadWrite, Deletions::Enabled, &[("/a", "1")])).await;
    for n in 0..40 {
        site.folder.put(&n.to_string(), "new");
    }
    site.server.fault("list", Fault::Hang);
    site.server.state().takes = Duration::from_secs(12);
    let began = Instant::now();
    memory.finish(true, pending()).await;
    assert_eq!(began.elapsed(), Duration::from_secs(60));
    // The flush had time for a listing and one round of 32 uploads.
    assert_eq!(site.server.texts().len(), 33);
    let told = site.heard.all();
    assert_eq!(told, ["cut off final 40", "sending 40 0 0", "cut off flush 8"]);
}

#[tokio::test(start_paused = true)]
async fn a_full_sync_that_is_cut_off_counts_what_it_had_left() {
    // MEM-33: in the midst of its uploads, and after them.
    for (takes, left) in [(12, 8), (9, 0)] {
        let (memory, site) =
            session(Site::new(Access::ReadWrite, Deletions::Enabled, &[("/a", "1"), ("/b", "1")]))
                .await;
        site.server.put("/a", "theirs");
        site.folder.put("a", "mine");
        for n in 0..40 {
            site.folder.put(&n.to_string(), "new");
        }
        site.server.state().takes = Duration::from_secs(takes);
        let limit = tokio::time::sleep(Duration::from_secs(if left > 0 { 25 } else { 29 }));
        memory.finish(true, limit).await;
        let told = site.heard.all();
        assert!(told.contains(&format!("cut off final {left}")), "{takes}: {told:?}");
    }
    // The control, and a store that nothing is uploaded to.
    for access in [Access::ReadWrite, Access::ReadOnly] {
        let (memory, site) = session(Site::new(access, Deletions::Enabled, &[("/a", "1")])).await;
        if access == Access::ReadOnly {
            site.folder.put("a", "mine");
        }
        site.server.fault("list", Fault::Hang);
        memory.finish(true, pending()).await;
        assert_eq!(site.heard.all(), ["cut off final 0"], "{access:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sync_on_its_way_counts_into_the_time_of_the_last_one() {
    // MEM-31.
    let (memory, site) =
        session(Site::new(Access::ReadWrite, Deletions::Enabled, &[("/a", "1")])).await;
    site.server.fault("list", Fault::Hang);
    tokio::time::advance(Duration::from_secs(16)).await;
    memory.dispatched();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(site.server.requests(), ["list "]);
    site.folder.put("a", "2");
    let began = Instant::now();
    memory.finish(true, pending()).await;
    assert_eq!(began.elapsed(), Duration::from_secs(30), "the hanging sync was given up");
    assert_eq!(site.server.text("/a").as_deref(), Some("2"), "and the flush went out");
}

#[tokio::test(start_paused = true)]
async fn a_sync_that_is_over_or_ends_by_itself_is_no_trouble() {
    // MEM-31.
    for (takes, cleanly) in [(0, true), (0, false), (3, true), (3, false)] {
        let (memory, site) =
            session(Site::new(Access::ReadWrite, Deletions::Enabled, &[("/a", "1")])).await;
        site.server.state().takes = Duration::from_secs(takes);
        tokio::time::advance(Duration::from_secs(16)).await;
        site.folder.put("a", "2");
        memory.dispatched();
        tokio::time::sleep(Duration::from_millis(1)).await;
        memory.finish(cleanly, pending()).await;
        assert_eq!(site.server.text("/a").as_deref(), Some("2"), "{takes} {cleanly}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_must_end_at_once_has_a_moment_for_the_flush() {
    // SHUT-4, MEM-33.
    let (memory, site) =
        session(Site::new(Access::ReadWrite, Deletions::Enabled, &[("/a", "1")])).await;
    site.folder.put("a", "2");
    memory.finish(false, ready(())).await;
    assert_eq!(site.server.text("/a").as_deref(), Some("2"));
    for cleanly in [true, false] {
        let (memory, site) =
            session(Site::new(Access::ReadWrite, Deletions::Enabled, &[("/a", "1")])).await;
        site.folder.put("a", "2");
        site.server.state().takes = Duration::from_secs(3600);
        let began = Instant::now();
        memory.finish(cleanly, tokio::time::sleep(Duration::from_secs(5))).await;
        assert_eq!(began.elapsed(), Duration::from_secs(7), "{cleanly}");
        assert_eq!(site.heard.all().last().expect("told"), "cut off flush 1");
    }
}

#[tokio::test(start_paused = true)]
async fn a_receipt_counts_what_is_not_on_the_server() {
    // MEM-32: here the folder is the jail's, so it goes whatever is in it.
    let (memory, site) =
        session(Site::new(Access::ReadWrite, Deletions::Enabled, &[("/a", "1"), ("/b", "1")]))
            .await;
    site.folder.put("a", "2");
    memory.dispose(pending()).await;
    assert_eq!(site.heard.all(), ["disposed 1"]);
    assert_eq!(site.folder.state().files.len(), 0);
    let (memory, site) =
        session(Site::new(Access::ReadOnly, Deletions::Enabled, &[("/a", "1")])).await;
    site.folder.put("a", "2");
    memory.dispose(pending()).await;
    assert_eq!(site.heard.all(), ["disposed 0"], "nothing of it was to be uploaded");
    let (memory, site) =
        session(Site::new(Access::ReadWrite, Deletions::Enabled, &[("/a", "1")])).await;
    site.folder.wipe();
    site.folder.put("x", "x");
    memory.dispose(pending()).await;
    assert_eq!(site.heard.all(), ["disposed 1"], "what was left alone is not on the server");
}

#[tokio::test(start_paused = true)]
async fn a_receipt_of_a_folder_that_cannot_be_looked_at_says_that_it_does_not_know() {
    // MEM-32, OBS-2: a number that nobody counted would be a promise.
    for gone in [true, false] {
        let (memory, site) =
            session(Site::new(Access::ReadWrite, Deletions::Enabled, &[("/a", "1")])).await;
        site.folder.put("a", "2");
        match gone {
            true => site.folder.state().gone = true,
            false => drop(site.folder.state().broken.insert("scan")),
        }
        assert_eq!(memory.dispose(pending()).await, !gone);
        assert_eq!(site.heard.all(), ["disposed unknown"], "{gone}");
    }
    let (memory, site) =
        session(Site::new(Access::ReadOnly, Deletions::Enabled, &[("/a", "1")])).await;
    site.folder.state().gone = true;
    memory.dispose(pending()).await;
    assert_eq!(site.heard.all(), ["disposed 0"], "nothing of it is ever uploaded");
}

#[tokio::test(start_paused = true)]
async fn receipts_take_bounded_time_whatever_is_in_the_folders() {
    // SHUT-4, SHUT-5, INV-11: all stores within one limit, and a second signal ends it.
    for (hurry, seconds) in [(None, 10), (Some(0), 1), (Some(3), 4), (Some(9), 10)] {
        let (site, other) = (
            Site::new(Access::ReadWrite, Deletions::Enabled, &[("/a", "1")]),
            Site::new(Access::ReadWrite, Deletions::Enabled, &[("/a", "1")]),
        );
        let engines = vec![site.engine, other.engine];
        let memory = SessionMemory::download(engines, Duration::from_secs(15)).await;
        let memory = memory.expect("downloaded");
        site.heard.forget();
        other.heard.forget();
        site.folder.state().slow = Some(Duration::from_secs(120));
        other.folder.put("b", "new");
        let hurry = async {
            match hurry {
                Some(after) => tokio::time::sleep(Duration::from_secs(after)).await,
                None => pending().await,
            }
        };
        let began = Instant::now();
        assert!(!memory.dispose(hurry).await, "a folder that is not empty");
        assert_eq!(began.elapsed(), Duration::from_secs(seconds), "{seconds}");
        assert_eq!(site.heard.all(), ["disposed unknown"], "a receipt all the same");
        assert_eq!(other.heard.all(), ["disposed 1"], "the other is not held up");
        // The control.
        site.folder.state().slow = None;
        assert!(memory.dispose(pending()).await);
    }
}
