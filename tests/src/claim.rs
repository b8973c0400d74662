//! Claims work items by hand, as another poller would, for workers that serve items they did not claim.

use serde_json::Value;

use crate::Devserver;

/// An item that was polled and acked, and has no heartbeat yet.
#[derive(Debug)]
pub struct Claimed {
    pub work: String,
    pub session: String,
    /// As the poll had it.
    pub secret: Option<String>,
}

fn ask(server: &Devserver, method: &str, path: &str, poll: bool) -> (u16, String) {
    let bearer = format!("Bearer {}", server.variables()[2].1);
    let mut headers = vec![
        ("authorization", bearer.as_str()),
        ("anthropic-version", "2026-10-21"),
        ("anthropic-beta", "managed-agents-2026-04-01"),
    ];
    if poll {
        headers.push(("anthropic-worker-id", "by-hand"));
    }
    server.request(method, &format!("/v1/environments/env_dev/work/{path}"), &headers, "")
}

impl Claimed {
    /// Polls and acks one item.
    ///
    /// # Panics
    /// If there is none.
    pub fn from(server: &Devserver) -> Claimed {
        let (status, body) = ask(server, "GET", "poll", true);
        let item: Value = serde_json::from_str(&body).unwrap_or_default();
        let work = item["id"].as_str().unwrap_or_else(|| panic!("no item: {status} {body}"));
        let (status, answer) = ask(server, "POST", &format!("{work}/ack"), false);
        assert_eq!(status, 200, "{answer}");
        Claimed {
            work: work.to_owned(),
            session: item["data"]["id"].as_str().expect("a session").to_owned(),
            secret: item["secret"].as_str().map(str::to_owned),
        }
    }

    /// Becomes the holder of the item (SIM-3).
    ///
    /// # Panics
    /// If somebody else holds it.
    pub fn beat(&self, server: &Devserver) {
        let path = format!("{}/heartbeat?expected_last_heartbeat=NO_HEARTBEAT", self.work);
        let (status, answer) = ask(server, "POST", &path, false);
        assert_eq!(status, 200, "{answer}");
    }
}
