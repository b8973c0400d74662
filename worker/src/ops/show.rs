//! Answers about a queue, as tables for people and as JSON with a schema for programs. Everything in
//! them came over the wire, so it is made safe for a terminal.

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::progress::visible;
use crate::queue::{Stats, WorkRow};

const SCHEMA_VERSION: u32 = 1;

/// A document of `worker queue`; `kind` is the last part of its schema.
pub fn document(kind: &str, environment: &str, rest: Value) -> Value {
    let mut document = json!({
        "schema": format!("stockade.queue.{kind}"),
        "schema_version": SCHEMA_VERSION,
        "environment_id": environment,
    });
    if let (Some(document), Value::Object(rest)) = (document.as_object_mut(), rest) {
        document.extend(rest);
    }
    document
}

/// Statistics, one line each.
pub fn stats(out: &mut impl Write, stats: &Stats) -> io::Result<()> {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for (what, value) in [
        ("waiting", stats.depth.to_string()),
        ("claimed", stats.pending.to_string()),
        ("oldest", or_none(stats.oldest_queued_at.as_deref().map(visible))),
        ("workers", or_none(stats.workers_polling.map(|number| number.to_string()))),
    ] {
        writeln!(out, "{what:<9} {value}")?;
    }
    Ok(())
}

/// Work items, one line each, below a line of headings. Nothing at all if there are none.
pub fn items(out: &mut impl Write, items: &[WorkRow]) -> io::Result<()> {
    if items.is_empty() {
        return Ok(());
    }
    let head = ["WORK", "STATE", "SESSION", "CREATED", "HEARTBEAT", "METADATA"];
    let cell = |text: Option<&str>| text.map_or_else(|| "-".to_owned(), visible);
    let rows = items.iter().map(|item| {
        [
            visible(&item.id),
            visible(&item.state),
            item.session_id.as_deref().map_or_else(|| cell(item.kind.as_deref()), visible),
            cell(item.created_at.as_deref().map(to_seconds)),
            cell(item.latest_heartbeat_at.as_deref().map(to_seconds)),
            match item.metadata.len() {
                0 => "-".to_owned(),
                n => n.to_string(),
            },
        ]
    });
    let rows: Vec<[String; 6]> = [head.map(str::to_owned)].into_iter().chain(rows).collect();
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// `KEY=VALUE` lines, of `keys` only if there are any.
pub fn metadata(out: &mut impl Write, item: &WorkRow, keys: &[String]) -> io::Result<()> {
    for (key, value) in &item.metadata {
        if keys.is_empty() || keys.contains(key) {
            writeln!(out, "{}={}", visible(key), visible(value))?;
        }
    }
    Ok(())
}

/// A time without its fraction.
fn to_seconds(time: &str) -> &str {
    match time.char_indices().nth(19) {
        Some((at, '.' | 'Z' | '+')) => &time[..at],
        _ => time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(print: impl Fn(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        print(&mut out).expect("memory");
        String::from_utf8(out).expect("UTF-8")
    }

    fn item(id: &str, state: &str) -> WorkRow {
        WorkRow { id: id.to_owned(), state: state.to_owned(), ..WorkRow::default() }
    }

    #[test]
    fn items_stand_in_columns() {
        let mut first = item("work_1", "active");
        first.session_id = Some("sesn_1".to_owned());
        first.created_at = Some("2026-11-02T08:00:00.123456Z".to_owned());
        first.latest_heartbeat_at = Some("2026-11-02T08:00:09Z".to_owned());
        first.metadata.insert("team".to_owned(), "blue".to_owned());
        let mut second = item("work_22", "queued");
        second.kind = Some("healthcheck".to_owned());
        assert_eq!(
            printed(|out| items(out, &[first.clone(), second.clone()])),
            "WORK     STATE   SESSION      CREATED              HEARTBEAT            METADATA\n\
             work_1   active  sesn_1       2026-11-02T08:00:00  2026-11-02T08:00:09  1\n\
             work_22  queued  healthcheck  -                    -                    -\n"
        );
        assert_eq!(printed(|out| items(out, &[])), "");
    }

    #[test]
    fn what_came_over_the_wire_cannot_speak_to_the_terminal() {
        let mut one = item("w\u{1b}[2J", "a\nb");
        one.metadata.insert("k\n".to_owned(), "v\u{7}".to_owned());
        let text = printed(|out| items(out, &[one.clone()]));
        assert!(!text.contains('\u{1b}') && text.lines().count() == 2, "{text}");
        let text = printed(|out| metadata(out, &one, &[]));
        assert!(!text.contains('\u{7}') && text.lines().count() == 1, "{text}");
    }

    #[test]
    fn unknown_numbers_are_a_dash() {
        let known = Stats {
            depth: 3,
            pending: 1,
            oldest_queued_at: Some("2026-11-02T08:00:00Z".to_owned()),
            workers_polling: Some(2),
        };
        assert_eq!(
            printed(|out| stats(out, &known)),
            "waiting   3\nclaimed   1\noldest    2026-11-02T08:00:00Z\nworkers   2\n"
        );
        let unknown = Stats { depth: 0, pending: 0, oldest_queued_at: None, workers_polling: None };
        let text = printed(|out| stats(out, &unknown));
        assert!(text.contains("oldest    -\nworkers   -\n"), "{text}");
    }

    #[test]
    fn metadata_can_be_asked_for_by_key() {
        let mut one = item("w", "active");
        one.metadata = [("a", "1"), ("b", "2")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(printed(|out| metadata(out, &one, &[])), "a=1\nb=2\n");
        assert_eq!(printed(|out| metadata(out, &one, &["b".to_owned()])), "b=2\n");
    }

    #[test]
    fn documents_have_a_schema() {
        let one = document("stats", "env_1", json!({"depth": 1}));
        assert_eq!(
            one,
            json!({"schema": "stockade.queue.stats", "schema_version": 1, "environment_id": "env_1",
                "depth": 1})
        );
    }
}
