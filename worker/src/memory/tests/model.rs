//! Random histories: a session edits its folder, other writers edit the store, requests go wrong, and
//! after all of it nothing may be lost that the rules keep (protocol §8.3, INV of RACE-18 and RACE-19).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::fakes::Fault;
use super::{Access, Deletions, Site};
use crate::memory::MARKER_PATH;
use crate::memory::events::Pass;

/// One step of a history.
#[derive(Debug, Clone)]
enum Step {
    /// The session writes a file.
    Edit(u8, u8),
    /// It deletes one.
    Delete(u8),
    /// It deletes all, with or without the marker.
    Wipe(bool),
    /// Another writer changes a memory.
    Put(u8, u8),
    /// Another writer deletes one.
    Drop(u8),
    /// The next request of this kind goes wrong in this way.
    Fault(u8, u8),
    /// A sync, so many seconds later.
    Sync(u8),
    /// A flush.
    Flush,
    /// A sync that is dropped in the middle.
    CutOff(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_u8, 0..6_u8).prop_map(|(path, text)| Step::Edit(path, text)),
        2 => (0..4_u8).prop_map(Step::Delete),
        1 => any::<bool>().prop_map(Step::Wipe),
        3 => (0..4_u8, 0..6_u8).prop_map(|(path, text)| Step::Put(path, text)),
        1 => (0..4_u8).prop_map(Step::Drop),
        2 => (0..5_u8, 0..4_u8).prop_map(|(on, how)| Step::Fault(on, how)),
        5 => (0..40_u8).prop_map(Step::Sync),
        1 => Just(Step::Flush),
        1 => (0..6_u8).prop_map(Step::CutOff),
    ]
}

const OPERATIONS: [&str; 5] = ["list", "fetch", "create", "update", "delete"];
const FAULTS: [Fault; 4] =
    [Fault::Status(500), Fault::Status(409), Fault::Status(404), Fault::Lost];

/// What must hold of the server between any two steps: only our requests change it.
struct Ledger {
    /// By path: the last text that another writer gave a memory, while nobody has changed it since.
    theirs: BTreeMap<String, String>,
    /// By path: texts of the server that this folder has had, so that it may replace them.
    had: BTreeMap<String, BTreeSet<String>>,
}

impl Ledger {
    /// After steps of ours: nothing of another writer is gone that this folder never had.
    fn check(&self, server: &BTreeMap<String, String>, history: &[Step]) {
        for (path, text) in &self.theirs {
            let had = self.had.get(path).is_some_and(|had| had.contains(text));
            let now = server.get(path);
            assert!(had || now == Some(text), "{path}: {text} became {now:?}: {history:?}");
        }
    }

    fn note(&mut self, folder: &BTreeMap<String, String>) {
        for (path, text) in folder {
            self.had.entry(format!("/{path}")).or_default().insert(text.clone());
        }
    }
}

async fn run(history: &[Step], access: Access) {
    let start = [("/0", "t0"), ("/1", "t1"), ("/2", "t2")];
    let mut site = Site::downloaded(access, Deletions::Enabled, &start).await;
    site.server.state().takes = Duration::from_millis(1);
    let mut ledger = Ledger { theirs: site.server.texts(), had: BTreeMap::new() };
    ledger.note(&site.folder.texts());
    for step in history {
        let writable = access == Access::ReadWrite;
        match step {
            Step::Edit(path, text) => site.folder.put(&path.to_string(), &format!("t{text}")),
            Step::Delete(path) => site.folder.delete(&path.to_string()),
            Step::Wipe(marker) => {
                site.folder.wipe();
                if !marker {
                    site.folder.put(MARKER_PATH, "version 1\nmemstore_1");
                }
            }
            Step::Put(path, text) => {
                let (path, text) = (format!("/{path}"), format!("s{text}"));
                site.server.put(&path, &text);
                ledger.theirs.insert(path, text);
            }
            Step::Drop(path) => {
                site.server.delete(&format!("/{path}"));
                ledger.theirs.remove(&format!("/{path}"));
            }
            Step::Fault(on, how) => {
                site.server.fault(OPERATIONS[*on as usize], FAULTS[*how as usize]);
            }
            Step::Sync(seconds) => {
                tokio::time::advance(Duration::from_secs((*seconds).into())).await;
                site.engine.sync(Pass::Regular).await;
            }
            Step::Flush => site.engine.flush().await,
            Step::CutOff(after) => {
                let limit = Duration::from_micros(u64::from(*after) * 700 + 1);
                // Cut off or not, what follows must hold.
                let _cut = tokio::time::timeout(limit, site.engine.sync(Pass::Regular)).await;
            }
        }
        ledger.check(&site.server.texts(), history);
        if !writable {
            let kept: BTreeMap<String, String> = ledger.theirs.clone();
            assert_eq!(site.server.texts(), kept, "a read-only store was written: {history:?}");
        }
        if matches!(step, Step::Sync(_) | Step::Flush | Step::CutOff(_)) {
            ledger.note(&site.folder.texts());
        }
    }
    settle(&mut site, history, access).await;
}

/// When nothing goes wrong any more both sides come to agree, and the last edit is where it belongs.
async fn settle(site: &mut Site, history: &[Step], access: Access) {
    site.server.state().faults.clear();
    site.engine.sync(Pass::Regular).await;
    site.engine.sync(Pass::Regular).await;
    tokio::time::advance(Duration::from_secs(31)).await;
    for _ in 0..3 {
        site.engine.sync(Pass::Regular).await;
    }
    let (server, folder) = (site.server.texts(), site.folder.texts());
    let folder: BTreeMap<String, String> =
        folder.into_iter().map(|(path, text)| (format!("/{path}"), text)).collect();
    let foreign = site.heard.all().iter().any(|told| told.starts_with("untrusted"));
    match access {
        // A folder without its marker is left alone for good.
        _ if foreign => {}
        Access::ReadWrite => assert_eq!(server, folder, "no agreement: {history:?}"),
        Access::ReadOnly => {}
    }
    site.server.forget_requests();
    site.engine.sync(Pass::Regular).await;
    let requests = site.server.requests();
    assert!(requests.iter().all(|one| one == "list "), "no rest: {requests:?}: {history:?}");
}

fn on_the_test_clock(history: &[Step], access: Access) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(run(history, access));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_history_loses_what_another_writer_wrote(
        history in prop::collection::vec(step(), 0..24),
    ) {
        on_the_test_clock(&history, Access::ReadWrite);
    }

    #[test]
    fn no_history_writes_a_read_only_store(history in prop::collection::vec(step(), 0..24)) {
        on_the_test_clock(&history, Access::ReadOnly);
    }
}

/// Every triple of a path, reached through the folder and the server, comes to rest as the table says.
#[test]
fn every_combination_of_both_sides_and_the_baseline_comes_to_rest() {
    let texts = [None, Some("a"), Some("b"), Some("c")];
    for access in [Access::ReadWrite, Access::ReadOnly] {
        for base in texts {
            for remote in texts {
                for local in texts {
                    combination(access, base, remote, local);
                }
            }
        }
    }
}

fn combination(access: Access, base: Option<&str>, remote: Option<&str>, local: Option<&str>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let (server, file) = runtime.block_on(async {
        // Another memory, so that one absence is no wipe.
        let mut before = vec![("/other", "x")];
        before.extend(base.map(|text| ("/p", text)));
        let mut site = Site::downloaded(access, Deletions::Enabled, &before).await;
        match remote {
            Some(text) => site.server.put("/p", text),
            None => site.server.delete("/p"),
        }
        match local {
            Some(text) => site.folder.put("p", text),
            None => site.folder.delete("p"),
        }
        site.engine.sync(Pass::Final).await;
        site.engine.sync(Pass::Final).await;
        (site.server.text("/p"), site.folder.text("p"))
    });
    let about = format!("{access:?} R {remote:?} L {local:?} B {base:?}");
    let (moved, edited) = (remote != base, local != base);
    match access {
        Access::ReadOnly => {
            assert_eq!(server.as_deref(), remote, "{about}: written");
            let want = match (moved && remote.is_some(), edited) {
                (true, _) => remote,
                (false, true) => local,
                (false, false) => remote,
            };
            assert_eq!(file.as_deref(), want, "{about}");
        }
        Access::ReadWrite => {
            assert_eq!(server, file, "{about}");
            // A change wins against a deletion, the server's change against one of the session.
            let want = match (remote, local) {
                (Some(_), _) if moved => remote,
                (_, Some(_)) if edited => local,
                _ if moved || edited => None,
                _ => base,
            };
            assert_eq!(server.as_deref(), want, "{about}");
        }
    }
}
