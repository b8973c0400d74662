//! What happened in a run: requests, violations, and the report made of them.
//!
//! A violation is something that a worker must never do (SIM-7); a failure is something that
//! differs from the script. Either makes the run fail.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::clock::Micros;
use super::fault::Endpoint;
use super::memory::Store;
use super::session::{Call, Session, Verdict};
use super::state::State;
use super::work::{self, Holding, Work};

/// Violations that are kept; more are counted.
const VIOLATIONS_MAX: usize = 10_000;
/// Different values of a header that are kept.
const VALUES_MAX: usize = 100;

/// One violation.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Violation {
    pub kind: &'static str,
    pub at_us: Micros,
    pub session: Option<String>,
    pub detail: String,
}

/// Requests to one endpoint.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Requests {
    pub count: u64,
    pub statuses: BTreeMap<String, u64>,
}

/// Everything counted while the server runs.
#[derive(Debug, Default)]
pub struct Record {
    pub violations: Vec<Violation>,
    pub violations_dropped: u64,
    pub requests: BTreeMap<Endpoint, Requests>,
    pub polls_empty: u64,
    pub versions: BTreeMap<String, u64>,
    pub user_agents: BTreeMap<String, u64>,
    pub credentials: BTreeMap<&'static str, u64>,
    pub faults_met: u64,
    pub connections: u64,
}

impl Record {
    pub fn violation(
        &mut self,
        kind: &'static str,
        at_us: Micros,
        session: Option<&str>,
        detail: String,
    ) {
        tracing::warn!(event = "devserver.violation", kind, session, "{detail}");
        if self.violations.len() < VIOLATIONS_MAX {
            let session = session.map(str::to_owned);
            self.violations.push(Violation { kind, at_us, session, detail });
        } else {
            self.violations_dropped += 1;
        }
    }

    /// Counts a value of a header; the number of different values has a limit.
    pub fn value(values: &mut BTreeMap<String, u64>, value: &str) {
        if values.len() < VALUES_MAX || values.contains_key(value) {
            *values.entry(value.to_owned()).or_default() += 1;
        }
    }

    pub fn answered(&mut self, endpoint: Endpoint, status: &str) {
        let requests = self.requests.entry(endpoint).or_default();
        *requests.statuses.entry(status.to_owned()).or_default() += 1;
    }
}

/// Violations that show only at the end: items that were taken and never stopped (LEASE-12).
fn unstopped(work: &Work) -> Option<String> {
    let holding = work.holdings.last()?;
    // A worker that got no answer to a heartbeat may have taken its lease for lost (RACE-2).
    let holds = holding.acked_at.is_some() && holding.lost_at.is_none() && !holding.beat_lost;
    (holds && holding.stops.is_empty() && work.state != work::State::Stopped)
        .then(|| format!("{} was acked and never stopped", work.id))
}

impl State {
    /// What was violated; at the end, also what shows only then.
    pub fn violations(&self, at_end: bool) -> Vec<Violation> {
        let mut all = self.record.violations.clone();
        let at_us = self.clock.now();
        let items = if at_end { &self.queue.items[..] } else { &[] };
        all.extend(items.iter().filter_map(|work| {
            let detail = unstopped(work)?;
            Some(Violation { kind: "missing_stop", at_us, session: work.session.clone(), detail })
        }));
        all.retain(|one| !self.settings.tolerate.iter().any(|kind| kind == one.kind));
        all
    }

    /// The report: so far, or at the end.
    pub fn report(&self, at_end: bool) -> Value {
        let violations = self.violations(at_end);
        let failures: Vec<String> = self.failures(at_end);
        let passed = violations.is_empty() && failures.is_empty();
        let calls = self.sessions.iter().flat_map(|session| &session.calls);
        let latencies: Vec<Micros> = calls.filter_map(latency).collect();
        json!({
            "schema": "stockade.devserver.report",
            "schema_version": 1,
            "result": if passed { "passed" } else { "failed" },
            "done": self.done(),
            "duration_us": self.clock.now(),
            "failures": failures,
            "violations": violations,
            "violations_dropped": self.record.violations_dropped,
            "requests": self.record.requests,
            "polls_empty": self.record.polls_empty,
            "connections": self.record.connections,
            "webhooks": self.hook.as_ref().map(|_| &self.deliveries),
            "credentials": self.record.credentials,
            "anthropic_versions": self.record.versions,
            "user_agents": self.record.user_agents,
            "workers": self.queue.pollers.keys().collect::<Vec<_>>(),
            "faults_met": self.record.faults_met,
            "faults_waiting": self.faults.len(),
            "latency_us": percentiles(latencies),
            "sessions": self.sessions.iter().map(|one| session(one, self.keep_results)).collect::<Vec<_>>(),
            "work": self.queue.items.iter().map(item).collect::<Vec<_>>(),
        })
    }

    /// What differed from the script, with the session's name; at the end, also what is missing.
    pub fn failures(&self, at_end: bool) -> Vec<String> {
        let of = |session: &Session| -> Vec<String> {
            session.failures.iter().map(|what| format!("{}: {what}", session.name)).collect()
        };
        let unfinished = self
            .sessions
            .iter()
            .filter(|one| at_end && !one.driven && one.script.end != super::script::End::Open);
        let unfinished = unfinished.map(|one| format!("{}: not all steps were taken", one.name));
        let stores = self.stores.iter().filter(|_| at_end).flat_map(Store::differences);
        self.sessions.iter().flat_map(of).chain(unfinished).chain(stores).collect()
    }
}

fn latency(call: &Call) -> Option<Micros> {
    Some(call.answered_at?.saturating_sub(call.delivered_at.unwrap_or(call.emitted_at)))
}

fn percentiles(mut all: Vec<Micros>) -> Value {
    all.sort_unstable();
    let at = |part: usize| all.get((all.len() * part / 100).min(all.len().saturating_sub(1)));
    json!({"count": all.len(), "p50": at(50), "p90": at(90), "p99": at(99), "max": all.last()})
}

fn session(session: &Session, keep_results: bool) -> Value {
    let calls: Vec<Value> = session.calls.iter().map(|one| call(one, keep_results)).collect();
    json!({
        "id": session.id,
        "name": session.name,
        "status": session.status,
        "steps_taken": session.driven,
        "created_us": session.created_at,
        "first_result_us": session.first_result_at,
        "streams_opened": session.streams_opened,
        "events": session.log.len(),
        "failures": session.failures,
        "calls": calls,
    })
}

fn call(call: &Call, keep_results: bool) -> Value {
    let summary = call.summary.as_ref();
    let mut value = json!({
        "id": call.id,
        "label": call.label,
        "name": call.name,
        "verdict": match call.verdict {
            Verdict::Allowed => "allowed",
            Verdict::Asked => "asked",
            Verdict::Denied => "denied",
        },
        "thread": call.thread,
        "unowned": call.unowned,
        "emitted_us": call.emitted_at,
        "delivered_us": call.delivered_at,
        "answered_us": call.answered_at,
        "latency_us": latency(call),
        "is_error": summary.map(|result| result.is_error),
        "bytes": summary.map(|result| result.bytes),
        "blocks": summary.map(|result| &result.block_types),
        "reposts": call.reposts,
    });
    if keep_results {
        value["input"] = call.input.clone();
        value["result"] = call.result.clone().unwrap_or_default();
    }
    value
}

fn item(work: &Work) -> Value {
    let holding = |holding: &Holding| {
        let first = holding.first_beat_at.zip(holding.acked_at);
        json!({
            "worker": holding.worker,
            "polled_us": holding.polled_at,
            "acked_us": holding.acked_at,
            "lost_us": holding.lost_at,
            "heartbeats": holding.beats,
            "ack_to_first_heartbeat_us": first.map(|(beat, ack)| beat.saturating_sub(ack)),
            "heartbeat_gap_max_us": holding.largest_gap,
            "heartbeat_late_max_us": holding.largest_lateness,
            "stops": holding.stops.iter().map(|(at_us, force)| json!({"at_us": at_us, "force": force}))
                .collect::<Vec<_>>(),
        })
    };
    json!({
        "id": work.id,
        "type": work.kind,
        "session": work.session,
        "state": work.state,
        "created_us": work.created_at,
        "stopped_us": work.stopped_at,
        "holders": work.holdings.iter().map(holding).collect::<Vec<_>>(),
    })
}

/// The table for people.
pub fn table(report: &Value) -> String {
    let mut out = String::new();
    let ms = |value: &Value| {
        value.as_u64().map_or("-".to_owned(), |us| format!("{}.{:01}", us / 1000, us % 1000 / 100))
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    out.push_str(&format!(
        "{:<24} {:<11} {:>6} {:>7} {:>9} {:>9}\n",
        "session", "status", "calls", "errors", "first ms", "failures"
    ));
    let sessions = list(&report["sessions"]);
    for session in sessions.iter().take(40) {
        let calls = list(&session["calls"]);
        let errors = calls.iter().filter(|call| call["is_error"] == true).count();
        let first = session["first_result_us"].as_u64().zip(session["created_us"].as_u64());
        let first = first.map_or(Value::Null, |(end, start)| json!(end.saturating_sub(start)));
        out.push_str(&format!(
            "{:<24} {:<11} {:>6} {:>7} {:>9} {:>9}\n",
            session["name"].as_str().unwrap_or_default(),
            session["status"].as_str().unwrap_or_default(),
            calls.len(),
            errors,
            ms(&first),
            list(&session["failures"]).len()
        ));
    }
    if sessions.len() > 40 {
        out.push_str(&format!("… and {} more\n", sessions.len() - 40));
    }
    let latency = &report["latency_us"];
    out.push_str(&format!(
        "calls: {} answered, p50 {} ms, p99 {} ms, max {} ms\n",
        latency["count"],
        ms(&latency["p50"]),
        ms(&latency["p99"]),
        ms(&latency["max"])
    ));
    for failure in list(&report["failures"]) {
        out.push_str(&format!("failed: {}\n", failure.as_str().unwrap_or_default()));
    }
    for violation in list(&report["violations"]) {
        out.push_str(&format!(
            "violation: {}: {}\n",
            violation["kind"].as_str().unwrap_or_default(),
            violation["detail"].as_str().unwrap_or_default()
        ));
    }
    out.push_str(&format!("{}\n", report["result"].as_str().unwrap_or_default()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_and_header_values_are_bounded() {
        let mut record = Record::default();
        for _ in 0..=VIOLATIONS_MAX {
            record.violation("api_key", 0, None, String::new());
        }
        assert_eq!((record.violations.len(), record.violations_dropped), (VIOLATIONS_MAX, 1));
        for number in 0..2 * VALUES_MAX {
            Record::value(&mut record.versions, &number.to_string());
        }
        assert_eq!(record.versions.len(), VALUES_MAX);
    }

    #[test]
    fn percentiles_of_few_values_are_among_them() {
        assert_eq!(percentiles(vec![])["p50"], Value::Null);
        let three = percentiles(vec![3, 1, 2]);
        assert_eq!(
            (&three["p50"], &three["p99"], &three["max"]),
            (&json!(2), &json!(3), &json!(3))
        );
    }
}
