//! Nothing secret and no content in any log event, at the lowest level (AUTH-8, INV-12, OBS-5).

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use reqwest::header::HeaderValue;
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

use super::super::*;
use super::world::*;

#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        self.clone()
    }
}

/// Everything that this thread logs from `level` up, until the guard is dropped.
pub fn captured(level: &str) -> (Arc<Mutex<Vec<u8>>>, tracing::subscriber::DefaultGuard) {
    // With a single subscriber, what another thread reaches first without it would be remembered as
    // of no interest to anybody.
    static EVERYTHING: OnceLock<tracing::Dispatch> = OnceLock::new();
    EVERYTHING.get_or_init(|| {
        let all = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE);
        tracing::Dispatch::new(all.with_writer(std::io::sink).finish())
    });
    let lines = Lines::default();
    let level: tracing::Level = level.parse().expect("a level");
    let subscriber =
        tracing_subscriber::fmt().json().with_max_level(level).with_writer(lines.clone()).finish();
    (lines.0, tracing::subscriber::set_default(subscriber))
}

#[tokio::test(start_paused = true)]
async fn no_credential_and_no_content_is_ever_logged() {
    let (lines, guard) = captured("trace");
    let token = "sk-ant-req-PLANTED-TOKEN";
    let json = json!({"sessions_token": token, "ingress": "PLANTED-INGRESS"}).to_string();
    let secret = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json);
    let headers = |settings: &mut QueueSettings| {
        settings.custom_headers.insert("x-tag", HeaderValue::from_static("PLANTED-HEADER"));
    };
    let world = World::with(headers, Arc::new(MemoryJournals));
    let mut item = work("session");
    item["secret"] = json!(secret);
    let mut unusable = work("session");
    unusable["secret"] = json!("PLANTED-SECRET");
    let planted = json!({"error":{"type":"PLANTED TYPE","message":"PLANTED-MESSAGE"}});
    {
        let mut state = world.plane.state();
        state.polls.extend([
            Answer::Json(500, planted.clone()),
            Answer::Json(200, item),
            Answer::Json(200, unusable),
        ]);
        state.acks.extend([ok(), ok(), Answer::Json(404, planted.clone())]);
        state.beats.extend([Answer::Json(503, planted.clone())]);
        state.posts.extend([Answer::Json(500, planted.clone()), Answer::Json(400, planted)]);
        let input = json!({"text": "PLANTED-OUTPUT", "command": "PLANTED-INPUT"});
        state.history.extend([call_with("t1", input.clone()), call_with("t2", input)]);
    }
    let end = world.poll();
    world.plane.until("two posts", |plane| plane.posted().len() >= 4).await;
    world.plane.raw("event: agent.message\ndata: {\"PLANTED-FRAME\n\n");
    tokio::time::sleep(Duration::from_secs(20)).await;
    world.plane.emit(end_turn());
    tokio::time::sleep(Duration::from_secs(100)).await;
    world.shutdown.drain();
    end.await.expect("an end").expect("no refusal");
    drop(guard);
    let text = String::from_utf8(lines.lock().expect("not poisoned").clone()).expect("text");
    assert!(text.len() > 2000, "the log was captured: {text}");
    for secret in ["PLANTED", "sk-key", "sk-ant", secret.as_str()] {
        let line = text.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
    // OBS-5: every event has a name, and the ids that are known.
    for line in text.lines().filter(|line| line.contains("queue")) {
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(value["fields"]["event"].is_string(), "{line}");
    }
    let beats = world.plane.seen("/heartbeat");
    let by: Vec<&str> = beats.iter().map(|beat| beat.header("authorization")).collect();
    assert!(by.contains(&"Bearer sk-ant-req-PLANTED-TOKEN"), "AUTH-5: the item's own credential");
    assert!(by.contains(&"Bearer sk-key"), "AUTH-4: the key, if the secret gave no token");
    let polls = world.plane.seen("/poll");
    assert!(polls.iter().all(|poll| poll.header("authorization") == "Bearer sk-key"), "AUTH-1");
}
