//! When a sync runs (MEM-30), and that nothing waits for it.

use std::sync::Arc;
use std::time::Duration;

use super::fakes::{FakeFolder, FakeServer, Fault, Heard};
use super::{Access, Deletions, Site};
use crate::memory::task::SessionMemory;

const INTERVAL: Duration = Duration::from_secs(15);

struct Session {
    memory: Arc<SessionMemory<FakeFolder, FakeServer>>,
    sides: Vec<(FakeFolder, FakeServer, Heard)>,
}

async fn session(stores: usize) -> Session {
    let (mut engines, mut sides) = (Vec::new(), Vec::new());
    for _ in 0..stores {
        let site = Site::new(Access::ReadWrite, Deletions::Enabled, &[("/a", "1")]);
        sides.push((site.folder, site.server, site.heard));
        engines.push(site.engine);
    }
    let memory = SessionMemory::download(engines, INTERVAL).await.expect("downloaded");
    sides.iter().for_each(|(_, server, _)| server.forget_requests());
    Session { memory: Arc::new(memory), sides }
}

/// A call ends, and whatever that starts has time to run.
async fn call(session: &Session) {
    session.memory.dispatched();
    tokio::time::sleep(Duration::from_millis(10)).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_starts_a_sync_when_the_last_one_is_long_enough_ago() {
    // MEM-30.
    let session = session(1).await;
    let (_, server, _) = &session.sides[0];
    for (pause, syncs) in [(1, 0), (10, 0), (5, 1), (1, 1), (13, 1), (2, 2), (60, 3)] {
        tokio::time::advance(Duration::from_secs(pause)).await;
        call(&session).await;
        assert_eq!(server.requests().len(), syncs, "after {pause} s more");
    }
    tokio::time::advance(Duration::from_secs(100)).await;
    assert_eq!(server.requests().len(), 3, "no call, no sync");
}

#[tokio::test(start_paused = true)]
async fn stores_sync_at_a_time_and_one_that_fails_does_not_hold_up_the_others() {
    // MEM-30.
    let session = session(3).await;
    for (folder, server, _) in &session.sides {
        server.state().takes = Duration::from_secs(4);
        folder.put("b", "new");
    }
    session.sides[0].1.fault("list", Fault::Status(500));
    session.sides[1].0.state().broken.insert("scan");
    tokio::time::advance(INTERVAL).await;
    call(&session).await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    let done: Vec<bool> =
        session.sides.iter().map(|(_, server, _)| server.text("/b").is_some()).collect();
    assert_eq!(done, [false, false, true]);
    let failed = |heard: &Heard| heard.all().iter().any(|told| told.starts_with("failed"));
    assert!(failed(&session.sides[0].2) && failed(&session.sides[1].2));
    session.sides[1].0.state().broken.clear();
    tokio::time::advance(INTERVAL).await;
    call(&session).await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert!(session.sides.iter().all(|(_, server, _)| server.text("/b").is_some()));
}

#[tokio::test(start_paused = true)]
async fn a_slow_sync_is_not_joined_by_another() {
    // MEM-30: and calls go on meanwhile.
    let session = session(1).await;
    let (_, server, _) = &session.sides[0];
    server.state().takes = Duration::from_secs(300);
    for _ in 0..5 {
        tokio::time::advance(INTERVAL).await;
        call(&session).await;
    }
    assert_eq!(server.requests(), ["list "]);
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_after_the_end() {
    let session = session(1).await;
    session.memory.finish(false, std::future::pending()).await;
    tokio::time::advance(INTERVAL).await;
    call(&session).await;
    assert_eq!(session.sides[0].1.requests(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn one_store_that_cannot_be_filled_fails_them_all() {
    // MEM-7.
    let good = Site::new(Access::ReadWrite, Deletions::Enabled, &[("/a", "1")]);
    let bad = Site::new(Access::ReadWrite, Deletions::Enabled, &[("/a", "1")]);
    bad.server.fault("download", Fault::Status(404));
    let failed = SessionMemory::download(vec![good.engine, bad.engine], INTERVAL).await;
    let error = failed.err().expect("failed");
    assert_eq!(error.to_string(), "cannot fill the folder of the memory store memstore_1");
}

#[tokio::test(start_paused = true)]
async fn a_jail_that_was_replaced_gets_its_stores_again() {
    let session = session(1).await;
    let (folder, server, _) = &session.sides[0];
    folder.state().files.clear();
    server.put("/a", "2");
    session.memory.fill().await.expect("filled");
    assert_eq!(folder.text("a").as_deref(), Some("2"));
    assert_eq!(server.texts().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn two_sessions_of_one_store_come_to_agree() {
    // RACE-19: each has a folder, both write the same memory.
    let site = Site::new(Access::ReadWrite, Deletions::Enabled, &[("/a", "1"), ("/b", "1")]);
    let other = Site::new(Access::ReadWrite, Deletions::Enabled, &[]);
    let mut one = site.engine;
    let heard: Arc<Heard> = Arc::new(other.heard.clone());
    let mut two = crate::memory::Engine::new(
        one.store().clone(),
        other.folder.clone(),
        site.server.clone(),
        heard,
    );
    one.download().await.expect("downloaded");
    two.download().await.expect("downloaded");
    site.folder.put("a", "one");
    other.folder.put("a", "two");
    site.folder.put("only-one", "x");
    other.folder.delete("b");
    let pass = crate::memory::events::Pass::Regular;
    one.sync(pass).await;
    two.sync(pass).await;
    assert_eq!(site.server.text("/a").as_deref(), Some("one"), "the first one to arrive");
    assert_eq!(other.folder.text("a").as_deref(), Some("one"));
    assert_eq!(other.heard.counts().edits_lost, 1);
    site.folder.put("b", "kept alive");
    one.sync(pass).await;
    tokio::time::advance(Duration::from_secs(31)).await;
    two.sync(pass).await;
    assert_eq!(
        site.server.text("/b").as_deref(),
        Some("kept alive"),
        "no deletion of what changed"
    );
    one.sync(pass).await;
    assert_eq!(site.folder.texts(), other.folder.texts());
    assert_eq!(site.folder.texts().len(), 3);
}
