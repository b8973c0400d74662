//! Skill versions and archives on the scripted transport: what is sent, what is retried, what stops
//! a download (SKILL-1, SKILL-12, AUTH-5, HDR-2, HDR-3, HDR-6, HTTP-1, UNK-1).

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::SealFlags;
use sha2::Digest as _;

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

fn version(id: &str) -> Answer {
    let json = serde_json::json!({"type":"skill_version","id":id,"skill_id":"skill_1",
        "name":"greet"});
    Answer::Json(200, json)
}

fn pieces(pieces: &[&str]) -> Answer {
    Answer::Pieces(pieces.iter().map(|piece| Piece::Bytes(piece.as_bytes().to_vec())).collect())
}

async fn found(plane: &Arc<Plane>) -> FoundSkill {
    plane.state().skills.push_back(version("skillver_7"));
    api(plane).skill_version("skill_1", "latest").await.expect("a version")
}

fn content(archive: Archive) -> String {
    let mut text = String::new();
    std::fs::File::from(archive.file).read_to_string(&mut text).expect("text");
    text
}

#[tokio::test(start_paused = true)]
async fn an_alias_is_resolved_and_its_own_id_downloaded() {
    // SKILL-1, AUTH-5, AUTH-7, HDR-2, HDR-3, HDR-6.
    let plane = Plane::new();
    let found = found(&plane).await;
    assert_eq!((found.version_id(), found.name()), ("skillver_7", "greet"));
    plane.state().archives.push_back(pieces(&["PK", "\u{3}\u{4}", "rest"]));
    let archive = api(&plane).skill_archive(&found, 100).await.expect("an archive");
    assert_eq!(archive.bytes, 8);
    assert_eq!(archive.sha256, <[u8; 32]>::from(sha2::Sha256::digest("PK\u{3}\u{4}rest")));
    let seals = rustix::fs::fcntl_get_seals(&archive.file).expect("seals");
    assert!(seals.contains(SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK));
    assert_eq!(content(archive), "PK\u{3}\u{4}rest");
    let seen = plane.seen("");
    let paths: Vec<&str> = seen.iter().map(|seen| seen.path.as_str()).collect();
    let base = "/v1/skills/skill_1/versions";
    assert_eq!(paths, [format!("{base}/latest"), format!("{base}/skillver_7/content")]);
    for one in &seen {
        assert_eq!(one.header("authorization"), "Bearer sk-token");
        assert!(one.headers.get("anthropic-beta").is_none(), "{}", one.path);
        assert!(one.headers.get("x-api-key").is_none());
        assert!(one.headers.get("anthropic-worker-id").is_none());
    }
    assert_eq!(seen[0].header("accept"), "application/json");
    assert_eq!(seen[1].header("accept"), "application/binary");
}

#[tokio::test(start_paused = true)]
async fn an_epoch_version_that_is_not_known_is_asked_for_once_in_the_older_shape() {
    // UNK-1, HDR-3.
    let plane = Plane::new();
    let old = serde_json::json!({"type":"skill_version","version":"1759178010641129",
        "directory":"greet","name":"greet"});
    plane.state().skills.extend([status(404), Answer::Json(200, old)]);
    plane.state().archives.push_back(pieces(&["x"]));
    let found = api(&plane).skill_version("skill_1", "1759178010641129").await.expect("found");
    assert_eq!(found.version_id(), "1759178010641129");
    api(&plane).skill_archive(&found, 100).await.expect("an archive");
    let betas: Vec<_> = plane
        .seen("")
        .iter()
        .map(|seen| seen.headers.get("anthropic-beta").map(|beta| beta.as_bytes().to_vec()))
        .collect();
    let old = Some(b"skills-2025-10-02".to_vec());
    assert_eq!(betas, [None, old.clone(), old]);

    // Not of other versions, not after other errors, and not more often.
    let cases = [("latest", 404, 1), ("skillver_1", 404, 1), ("1759", 403, 1), ("1759", 404, 2)];
    for (version, code, requests) in cases {
        let plane = Plane::new();
        plane.state().skills.extend(vec![status(code); 3]);
        let error = api(&plane).skill_version("skill_1", version).await.expect_err("not found");
        assert_eq!(error.status(), Some(code));
        assert_eq!(plane.seen("").len(), requests, "{version} {code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_version_is_asked_for_three_times_at_most() {
    // HTTP-1.
    let plane = Plane::new();
    plane.state().skills.extend([status(500), Answer::Break, version("v")]);
    api(&plane).skill_version("skill_1", "latest").await.expect("the third time");
    let plane = Plane::new();
    plane.state().skills.extend(vec![status(503); 4]);
    let error = api(&plane).skill_version("skill_1", "latest").await.expect_err("an error");
    assert_eq!((error.status(), plane.seen("").len()), (Some(503), 3));
    let plane = Plane::new();
    plane.state().skills.extend(vec![Answer::Text(200, "<html>".to_owned()); 3]);
    let error = api(&plane).skill_version("skill_1", "latest").await.expect_err("an error");
    assert!(matches!(error, ApiError::Unreadable { what: "JSON" }), "{error}");
    assert_eq!(plane.seen("").len(), 3);
    let plane = Plane::new();
    plane.state().skills.push_back(Answer::Text(200, "[]".to_owned()));
    let error = api(&plane).skill_version("skill_1", "latest").await.expect_err("an error");
    assert!(matches!(error, ApiError::Unreadable { what: "a skill version" }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_download_that_breaks_off_begins_anew() {
    // HTTP-1: nothing of the first attempt is in the archive or in its digest.
    let plane = Plane::new();
    let found = found(&plane).await;
    let broken = Answer::Pieces(vec![Piece::Bytes(b"half of".to_vec()), Piece::Break]);
    let stalled = Answer::Pieces(vec![
        Piece::Bytes(b"longer than the whole".to_vec()),
        Piece::Pause(Duration::from_secs(31)),
        Piece::Bytes(b"late".to_vec()),
    ]);
    plane.state().archives.extend([broken, stalled, pieces(&["who", "le"])]);
    let archive = api(&plane).skill_archive(&found, 100).await.expect("the third time");
    assert_eq!(archive.sha256, <[u8; 32]>::from(sha2::Sha256::digest("whole")));
    assert_eq!(content(archive), "whole");

    plane.state().archives.extend(vec![Answer::Pieces(vec![Piece::Break]); 4]);
    let error = api(&plane).skill_archive(&found, 100).await.expect_err("broken thrice");
    assert!(matches!(error, ApiError::Transport { .. }), "{error}");
    assert_eq!(plane.state().archives.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_archive_beyond_its_bound_is_not_read_to_its_end() {
    // INV-11.
    let plane = Plane::new();
    let found = found(&plane).await;
    let endless = Answer::Pieces(vec![Piece::Bytes(vec![b'x'; 60]); 1000]);
    plane.state().archives.extend([endless, pieces(&["never asked for"])]);
    let error = api(&plane).skill_archive(&found, 100).await.expect_err("too large");
    assert!(matches!(error, ApiError::TooLarge { bytes_max: 100 }), "{error}");
    assert_eq!(plane.seen("/content").len(), 1, "it will not be smaller the next time");
    plane.state().archives.clear();
    plane.state().archives.push_back(pieces(&["1234567890"]));
    let exact = api(&plane).skill_archive(&found, 10).await.expect("the bound itself");
    assert_eq!(exact.bytes, 10);
}

#[tokio::test(start_paused = true)]
async fn a_slow_download_ends_at_its_time_limit() {
    // INV-11: never silent for long, and yet never done.
    let plane = Plane::new();
    let found = found(&plane).await;
    let drip = [Piece::Bytes(b"x".to_vec()), Piece::Pause(Duration::from_secs(20))];
    let drip = drip.iter().cycle().take(200).cloned().collect();
    plane.state().archives.extend(vec![Answer::Pieces(drip); 3]);
    let before = tokio::time::Instant::now();
    let error = api(&plane).skill_archive(&found, 1000).await.expect_err("too slow");
    assert!(matches!(error, ApiError::Timeout { .. }), "{error}");
    assert!(before.elapsed() < Duration::from_secs(370), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn ids_are_path_segments_and_nothing_else() {
    // Protocol §1.1.
    let plane = Plane::new();
    plane.state().skills.push_back(version("../../sessions/s"));
    plane.state().archives.push_back(pieces(&["x"]));
    let found = api(&plane).skill_version("skill/1", "a b").await.expect("a version");
    api(&plane).skill_archive(&found, 10).await.expect("an archive");
    let paths: Vec<String> = plane.seen("").iter().map(|seen| seen.path.clone()).collect();
    assert_eq!(paths[0], "/v1/skills/skill%2F1/versions/a%20b");
    assert_eq!(paths[1], "/v1/skills/skill%2F1/versions/..%2F..%2Fsessions%2Fs/content");
    let error = api(&plane).skill_version("..", "latest").await.expect_err("no id");
    assert!(matches!(error, ApiError::Id(_)));
}
