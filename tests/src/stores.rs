//! Sessions with memory stores, and what is in the stores.

use std::fs;

use serde_json::{Value, json};

use crate::play::{Played, SOON, passed, session};
use crate::{Devserver, Level, Poll, Ran};

/// A session with these stores: id, access, mount path.
pub fn with_stores(
    name: &str,
    stores: &[(&str, &str, &str)],
    calls: impl IntoIterator<Item = Value>,
) -> Value {
    let mut session = session(name, calls);
    let resource = |(id, access, path): &(&str, &str, &str)| {
        json!({"type": "memory_store", "memory_store_id": id, "access": access,
            "mount_path": path, "name": id})
    };
    session["resources"] = stores.iter().map(resource).collect();
    session["end"] = json!("idle");
    session
}

/// A server with one store.
pub fn server(memories: &Value) -> Devserver {
    let server = Devserver::with("", &["--keep-results"]);
    server.dev("POST", "memory_stores", &json!({"id": "memstore_1", "memories": memories}));
    server
}

/// What a store has.
pub fn texts(server: &Devserver, store: &str) -> Value {
    server.dev("GET", &format!("memory_stores/{store}"), &Value::Null)
}

/// A worker that lets sessions go soon, with this configuration.
pub fn poll(level: Level, config: &str) -> Poll {
    let poll = Poll::at(level).options(["--max-idle", "1s", "--max-sessions", "6"]);
    if config.is_empty() {
        return poll;
    }
    let file = poll.home().join("config.toml");
    fs::write(&file, config).expect("cannot write a configuration");
    poll.path("--config", &file)
}

/// Serves everything that the server has, and ends.
pub fn serve(server: Devserver, poll: Poll) -> (Played, Value) {
    let worker = poll.serve(&server);
    server.wait_done(2 * SOON);
    let ran = worker.stop().ended(0);
    let kept = texts(&server, "memstore_1");
    let report = passed(server.end(), &ran.stderr);
    (Played { report, ran }, kept)
}

/// The sum of a field of these events of the log.
pub fn logged(ran: &Ran, event: &str, field: &str) -> u64 {
    ran.events(event).iter().filter_map(|one| one[field].as_u64()).sum()
}
