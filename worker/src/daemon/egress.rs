//! The ledger of a session's egress, in the audit log: every entry becomes one record with the ids of
//! the work item that the session has now.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use stockade_runtime::audit::{Event, Ids as AuditIds, Name, Text};
use stockade_runtime::egress::{Decision, Entry, Sink, Target};
use stockade_runtime::policy::Policy;
use stockade_runtime::policy::network::Rules;

use super::record::Record;

/// Where a session's ledger writes to.
#[derive(Debug)]
pub struct EgressRecord {
    record: Arc<Record>,
    ids: Mutex<AuditIds>,
}

impl EgressRecord {
    /// Writes to `record` about `ids`.
    pub fn new(record: Arc<Record>, ids: AuditIds) -> EgressRecord {
        EgressRecord { record, ids: Mutex::new(ids) }
    }

    /// The session's jail was kept and serves another work item.
    pub fn now_about(&self, ids: AuditIds) {
        *self.ids.lock().unwrap_or_else(PoisonError::into_inner) = ids;
    }

    /// Whose network it is.
    pub fn session(&self) -> Option<String> {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.session.as_ref().map(|id| id.as_str().to_owned())
    }

    /// Records that rules are about to come into force. Returns whether it is in the log: they must
    /// not otherwise.
    pub fn rules(&self, policy: &Policy, rules: &Rules, generation: u64) -> bool {
        let ids = self.about(None);
        self.record.write(&ids, &rules_event(policy, rules, generation))
    }

    fn about(&self, call: Option<&str>) -> AuditIds {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        match call {
            Some(call) => ids.with_tool_call(call),
            None => ids.clone(),
        }
    }
}

impl Sink for EgressRecord {
    fn record(&self, call: Option<&str>, entry: &Entry) -> bool {
        let (ids, event) = (self.about(call), event(entry));
        let session = ids.session.as_ref().map(Name::as_str);
        crate::egress_log::of_call(session, call, entry);
        self.record.write(&ids, &event)
    }
}

/// What the log says about rules that come into force.
fn rules_event(policy: &Policy, rules: &Rules, generation: u64) -> Event {
    let date = |until: u64| {
        let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(until))?;
        // What the form of the date cannot hold has no expiry worth the name.
        let year_9999 = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        Some(Name::from(humantime::format_rfc3339_seconds(time.min(year_9999)).to_string()))
    };
    Event::EgressRules {
        generation,
        rules: rules.list.len() as u64,
        policy: policy.name.as_str().into(),
        policy_sha256: policy.digest().into(),
        report_until: rules.report_until.and_then(date),
    }
}

/// An entry as the log has it.
fn event(entry: &Entry) -> Event {
    match entry {
        Entry::Decision(decision) => decided(decision),
        Entry::Repeated { target, reason, count } => {
            let (host, port) = both(target.as_ref());
            Event::EgressRepeated {
                host,
                port,
                reason: reason.word().into(),
                address_class: reason.class().map(|class| class.to_string().into()),
                count: *count,
            }
        }
        Entry::Summed(sum) => {
            let (host, port) = both(sum.target.as_ref());
            Event::EgressSummed {
                host,
                port,
                rule: sum.rule.as_ref().map(|rule| Text::of(rule)),
                generation: sum.generation,
                reported: sum.reported,
                connections: sum.connections,
                bytes_out: sum.bytes_out,
                bytes_in: sum.bytes_in,
                duration_us: microseconds(sum.duration),
            }
        }
        Entry::Closed(closed) => Event::EgressClosed {
            number: closed.number,
            host: Text::of(&closed.target.host),
            port: closed.target.port,
            bytes_out: closed.bytes_out,
            bytes_in: closed.bytes_in,
            duration_us: microseconds(closed.duration),
            address: closed.address.map(|address| address.to_string().into()),
            by: closed.by.map(|reason| reason.word().into()),
        },
    }
}

fn decided(decision: &Decision) -> Event {
    let Decision { number, generation, reported, .. } = *decision;
    let (host, port) = (Text::of(&decision.target.host), decision.target.port);
    let address = decision.address.map(|address| address.to_string().into());
    match decision.denied {
        None => Event::EgressAllowed {
            number,
            host,
            port,
            address,
            rule: decision.rule.as_ref().map(|rule| Text::of(rule)),
            origin: decision.origin.as_ref().map(|origin| Text::of(origin)),
            generation,
            reported,
        },
        Some(reason) if reason.is_denial() => Event::EgressDenied {
            number,
            host,
            port,
            reason: reason.word().into(),
            address,
            address_class: reason.class().map(|class| class.to_string().into()),
            generation,
        },
        Some(reason) => {
            Event::EgressFailed { number, host, port, reason: reason.word().into(), generation }
        }
    }
}

fn both(target: Option<&Target>) -> (Option<Text>, Option<u16>) {
    (target.map(|target| Text::of(&target.host)), target.map(|target| target.port))
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::queue::Shutdown;
    use stockade_runtime::audit::AuditLog;
    use stockade_runtime::egress::{Closed, Ledger, Reason};
    use stockade_runtime::policy::network::{AddressClass, DenyReason, Host};

    fn target(host: &str, port: u16) -> Target {
        Target { host: Host::parse(host).expect(host), port }
    }

    fn wanted(host: &str, rule: Option<&str>) -> Decision {
        Decision {
            number: 0,
            target: target(host, 443),
            address: Some("198.51.100.7".parse().expect("an address")),
            rule: rule.map(str::to_owned),
            origin: rule.map(|_| "policy.toml:3:2".to_owned()),
            generation: 2,
            denied: None,
            reported: rule.is_none(),
        }
    }

    /// What a ledger that is used by `acts` leaves in the log, without what the chain adds.
    fn log_of(acts: impl FnOnce(&EgressRecord, &Ledger)) -> Vec<serde_json::Value> {
        let directory = tempfile::TempDir::new().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        let log = AuditLog::open(&path).expect("a log");
        let record = Arc::new(Record::new(log, Arc::new(Shutdown::new().0)));
        let ids = AuditIds { session: Some("sesn_1".into()), ..AuditIds::default() };
        let sink = Arc::new(EgressRecord::new(record, ids));
        let ledger = Ledger::new(Arc::clone(&sink) as Arc<dyn Sink>);
        acts(&sink, &ledger);
        drop(ledger);
        let text = std::fs::read_to_string(&path).expect("the log");
        let parsed = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        let chain = ["v", "seq", "time", "previous", "hash"];
        parsed
            .map(|mut record: serde_json::Value| {
                record
                    .as_object_mut()
                    .expect("an object")
                    .retain(|key, _| !chain.contains(&&**key));
                record
            })
            .collect()
    }

    #[test]
    fn a_connection_is_two_records_of_its_call() {
        let records = log_of(|_, ledger| {
            ledger.turn(Some("sevt_1"));
            let number = ledger.allow(wanted("a.test", Some("*.test:443"))).expect("recorded");
            ledger.close(Closed {
                number,
                target: target("a.test", 443),
                address: Some(Ipv4Addr::new(198, 51, 100, 8).into()),
                bytes_out: 3,
                bytes_in: 4,
                duration: Duration::from_millis(2),
                by: None,
            });
        });
        assert_eq!(
            serde_json::Value::from(records),
            serde_json::json!([
                {
                    "event": "egress.allowed", "number": 1, "host": "a.test", "port": 443,
                    "address": "198.51.100.7", "rule": "*.test:443", "origin": "policy.toml:3:2",
                    "generation": 2, "reported": false, "session": "sesn_1", "tool_call": "sevt_1",
                },
                {
                    "event": "egress.closed", "number": 1, "host": "a.test", "port": 443,
                    "bytes_out": 3, "bytes_in": 4, "duration_us": 2000,
                    "address": "198.51.100.8",
                    "session": "sesn_1", "tool_call": "sevt_1",
                },
            ])
        );
    }

    #[test]
    fn a_denial_says_why_and_a_failure_upstream_is_another_event() {
        let records = log_of(|sink, ledger| {
            let metadata = "169.254.169.254".parse().expect("an address");
            let class = Reason::Rules(DenyReason::Address(AddressClass::Metadata));
            ledger.deny(target("169.254.169.254", 80), class, 1, Some(metadata));
            ledger.deny(target("169.254.169.254", 80), class, 1, Some(metadata));
            let other = AuditIds { session: Some("sesn_2".into()), ..AuditIds::default() };
            sink.now_about(other);
            ledger.deny(target("a.test", 443), Reason::NoAddress, 1, None);
        });
        let told: Vec<[&str; 4]> = records
            .iter()
            .map(|record| {
                ["event", "reason", "address_class", "session"]
                    .map(|name| record[name].as_str().unwrap_or_default())
            })
            .collect();
        let want = [
            ["egress.denied", "address", "metadata", "sesn_1"],
            ["egress.failed", "no-address", "", "sesn_2"],
            ["egress.repeated", "address", "metadata", "sesn_2"],
        ];
        assert_eq!(told, want);
        assert_eq!(records[2]["count"], 1);
    }

    #[test]
    fn report_mode_is_marked_wherever_it_allows_something() {
        let records = log_of(|_, ledger| {
            for _ in 0..100 {
                ledger.allow(wanted("a.test", None)).expect("recorded");
            }
        });
        assert!(records.iter().all(|record| record["reported"] == true));
        assert!(records.iter().all(|record| record.get("rule").is_none()));
        assert_eq!(records.last().map(|r| &r["event"]), Some(&"egress.summed".into()));
    }
}
