//! Memory listings on the scripted transport: a page that cannot be read is asked for again (§0, MEM-7).

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::credential::Credential;
use super::super::*;
use super::world::*;

fn api(plane: &Arc<Plane>) -> ItemApi {
    let base = "https://plane.test".parse().expect("a URL");
    let settings = QueueSettings::new(base, "env_1", "host-1");
    ItemApi {
        client: Client::new(&settings, Arc::new(Arc::clone(plane)), Random::fixed(0.0)),
        credential: Credential::Session("sk-token".into()),
        environment: "env_1".into(),
        work: "work_1".into(),
    }
}

fn page(next: Value) -> Answer {
    let hash = ContentHash::of(b"x").to_string();
    let memory = json!({"type": "memory", "id": "mem_1", "path": "/a", "content_sha256": hash});
    Answer::Json(200, json!({"data": [memory], "next_page": next}))
}

/// The first page after these answers, and how often it was asked for.
async fn asked(answers: Vec<Answer>) -> (Result<MemoryPage, MemoryError>, usize) {
    let plane = Plane::new();
    plane.state().sessions.extend(answers);
    let page = api(&plane).memory_page("memstore_1", View::Full, Some("p1")).await;
    let seen = plane.seen("/memories");
    assert!(seen.iter().all(|one| one.query.contains("page=p1")), "the same page");
    (page, seen.len())
}

#[tokio::test(start_paused = true)]
async fn a_page_of_memories_that_cannot_be_read_is_asked_for_again() {
    // MEM-7, §0: transient, as every body that cannot be parsed.
    let wrong = || Answer::Json(200, json!({"data": {"not": "a list"}}));
    let (page_of, times) =
        asked(vec![wrong(), Answer::Json(200, json!([])), page(json!("p2"))]).await;
    let page_of = page_of.expect("a page");
    assert_eq!((page_of.memories.len(), page_of.next.as_deref(), times), (1, Some("p2"), 3));
    // An entry that is none makes the page wrong: it would look like one that was deleted.
    let entry = Answer::Json(200, json!({"data": [{"type": "memory", "id": "mem_1"}]}));
    assert_eq!(asked(vec![entry, page(json!(null))]).await.1, 2);
    // INV-11: not for ever.
    let (page_of, times) = asked(vec![wrong(), wrong(), wrong(), page(json!(null))]).await;
    assert!(matches!(page_of, Err(MemoryError::Failed { .. })) && times == 3, "{times}");
    // The control: what is right, or refused, is asked for once.
    assert_eq!(asked(vec![page(json!(null))]).await.1, 1);
    let (refused, times) = asked(vec![status(404)]).await;
    assert!(matches!(refused, Err(MemoryError::Missing)) && times == 1, "{times}");
}
