//! Work items and statistics as an operator reads them (protocol §2.2). The secret of an item is not
//! read, although no answer to an operator should hold one (AUTH-2, AUTH-8).

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::session::metadata;
use super::text;

/// The queue of one environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Items that wait.
    pub depth: u64,
    /// Items that somebody polled and did not acknowledge; some services count those in work too
    /// (UNK-6).
    pub pending: u64,
    pub oldest_queued_at: Option<String>,
    /// Workers that polled within the last 30 s, if the service knows.
    pub workers_polling: Option<u64>,
}

/// One work item.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct WorkRow {
    pub id: String,
    /// `queued`, `starting`, `active`, `stopping`, `stopped`, or what a later service says.
    pub state: String,
    /// `session` and the like.
    pub kind: Option<String>,
    pub session_id: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub created_at: Option<String>,
    pub acknowledged_at: Option<String>,
    pub started_at: Option<String>,
    pub latest_heartbeat_at: Option<String>,
    pub stop_requested_at: Option<String>,
    pub stopped_at: Option<String>,
}

/// One page of work items.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkPage {
    pub items: Vec<WorkRow>,
    /// API-4; none at the end.
    pub next_page: Option<String>,
}

/// Items of one page that are read; the largest page that can be asked for is smaller.
const ITEMS_MAX: usize = 10_000;

/// Reads statistics; `None` if they are not.
pub fn parse_stats(body: &[u8]) -> Option<Stats> {
    let value: Value = serde_json::from_slice(body).ok()?;
    Some(Stats {
        depth: value.get("depth")?.as_u64()?,
        pending: value.get("pending").and_then(Value::as_u64).unwrap_or(0),
        oldest_queued_at: text(&value, "oldest_queued_at"),
        workers_polling: value.get("workers_polling").and_then(Value::as_u64),
    })
}

/// Reads a work item; `None` if it has no id.
pub fn parse_row(body: &[u8]) -> Option<WorkRow> {
    row(&serde_json::from_slice(body).ok()?)
}

/// Reads a page; `None` if it is not one. What is no work item is left out.
pub fn parse_page(body: &[u8]) -> Option<WorkPage> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let items = value.get("data")?.as_array()?.iter().take(ITEMS_MAX);
    Some(WorkPage { items: items.filter_map(row).collect(), next_page: text(&value, "next_page") })
}

fn row(value: &Value) -> Option<WorkRow> {
    let data = value.get("data").unwrap_or(&Value::Null);
    Some(WorkRow {
        id: text(value, "id")?,
        state: text(value, "state").unwrap_or_default(),
        kind: text(data, "type"),
        session_id: text(data, "id"),
        metadata: metadata(value),
        created_at: text(value, "created_at"),
        acknowledged_at: text(value, "acknowledged_at"),
        started_at: text(value, "started_at"),
        latest_heartbeat_at: text(value, "latest_heartbeat_at"),
        stop_requested_at: text(value, "stop_requested_at"),
        stopped_at: text(value, "stopped_at"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_read_without_its_secret() {
        // AUTH-8, API-5.
        let body = br#"{"type":"work","id":"work_1","state":"active","secret":"planted","new":{},
            "data":{"type":"session","id":"sesn_1"},"metadata":{"k":"v","n":1},
            "created_at":"2026-11-02T08:00:00Z","acknowledged_at":""}"#;
        let item = parse_row(body).expect("an item");
        assert_eq!((item.state.as_str(), item.session_id.as_deref()), ("active", Some("sesn_1")));
        assert_eq!((item.acknowledged_at.as_deref(), item.metadata["k"].as_str()), (None, "v"));
        assert!(!serde_json::to_string(&item).expect("JSON").contains("planted"));
    }

    #[test]
    fn a_page_may_be_empty_and_have_a_next_one() {
        // API-4.
        let page = parse_page(br#"{"data":[],"next_page":"p2"}"#).expect("a page");
        assert_eq!((page.items.len(), page.next_page.as_deref()), (0, Some("p2")));
        for end in [r#"{"data":[{"id":"w"},7]}"#, r#"{"data":[{"id":"w"}],"next_page":""}"#] {
            let page = parse_page(end.as_bytes()).expect("a page");
            assert_eq!((page.items.len(), page.next_page), (1, None), "{end}");
        }
        assert_eq!(parse_page(b"{}"), None);
    }

    #[test]
    fn statistics_may_not_know_the_workers() {
        let body = br#"{"type":"work_queue_stats","depth":2,"pending":1,"oldest_queued_at":null,
            "workers_polling":null}"#;
        let stats = parse_stats(body).expect("statistics");
        assert_eq!((stats.depth, stats.pending, stats.workers_polling), (2, 1, None));
        assert_eq!(parse_stats(b"null"), None);
    }
}
