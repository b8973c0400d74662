//! Sums of what an audit log says about egress: destinations, how often, how much, by which rule or
//! for which reason. Pure but for the reading; bounded whatever the log holds (INV-11).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::SystemTime;

use stockade_runtime::audit::{Event, Text, Verification};
use stockade_runtime::egress::Reason;

use super::egress_records::{LogArgs, LogError, Record};

/// Most destinations in each part; what is beyond is counted in [`Report::omitted`].
const ROWS_MAX: usize = 10_000;
/// Most connections, results and pairs of row and session that are remembered at once.
const REMEMBERED_MAX: usize = 200_000;
/// Most sessions that are named.
const SESSIONS_MAX: usize = 10_000;

/// Most addresses that are named for one destination.
const ADDRESSES_MAX: usize = 16;

/// What a row is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Grouping {
    /// A destination.
    #[default]
    Destination,
    /// A destination in one tool call.
    Call,
}

/// Whose connections a row counts, where calls are told apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Whose {
    /// The session.
    pub session: String,
    /// The tool call; `None` between calls.
    pub call: Option<String>,
}

/// An allowed destination.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AllowedKey {
    /// `None`: everybody's.
    pub whose: Option<Whose>,
    /// Name or address; `None` for those that the record does not name.
    pub host: Option<String>,
    /// TCP port.
    pub port: Option<u16>,
    /// Report mode allowed it, and no rule.
    pub reported: bool,
    /// The rule that allowed it.
    pub rule: Option<String>,
}

/// A destination that was refused, or that failed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeniedKey {
    /// `None`: everybody's.
    pub whose: Option<Whose>,
    /// Name or address; `None` for those that the record does not name.
    pub host: Option<String>,
    /// TCP port; 53 for a lookup.
    pub port: Option<u16>,
    /// The word in the record.
    pub reason: String,
    /// What kind of address it is about.
    pub class: Option<String>,
}

/// What is known of one destination.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// Connections or refusals.
    pub count: u64,
    /// Bytes from the jail.
    pub bytes_out: u64,
    /// Bytes into the jail.
    pub bytes_in: u64,
    /// How long connections lasted, together.
    pub duration_us: u64,
    /// Tool calls in which it happened.
    pub calls: u64,
    /// Sessions in which it happened.
    pub sessions: u64,
    /// Where the rule was written.
    pub origin: Option<String>,
    /// Addresses that answered, or that were refused; the first few.
    pub addresses: BTreeSet<String>,
    /// First time.
    pub first: Option<SystemTime>,
    /// Last time.
    pub last: Option<SystemTime>,
}

impl Row {
    fn leads_to(&mut self, address: String) {
        if self.addresses.len() < ADDRESSES_MAX {
            self.addresses.insert(address);
        }
    }
}

/// The report.
#[derive(Debug, Default)]
pub struct Report {
    /// What was connected to.
    pub allowed: BTreeMap<AllowedKey, Row>,
    /// What was refused.
    pub denied: BTreeMap<DeniedKey, Row>,
    /// What was allowed and could not be had.
    pub failed: BTreeMap<DeniedKey, Row>,
    /// Tool results that the control plane accepted.
    pub results: u64,
    /// Their bytes.
    pub result_bytes: u64,
    /// Sessions with any of these.
    pub sessions: BTreeSet<String>,
    /// Ends of report mode that were in force.
    pub report_mode: BTreeSet<String>,
    /// Records that found no room in one of the parts.
    pub omitted: u64,
    /// What the log is.
    pub log: Verification,
    /// What a row is about.
    pub grouping: Grouping,
    /// Connections by session and number, until they end, with the address that was tried first.
    open: HashMap<(String, u64), (AllowedKey, Option<String>)>,
    /// Results that were not accepted yet, by session and call.
    pending: HashMap<(String, String), u64>,
    /// The last call of a row in a session.
    last_call: HashMap<(Place, String), Option<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place(String);

impl Report {
    /// Reads a log. Whether it is good is in [`Report::log`].
    ///
    /// # Errors
    /// [`LogError`], but not [`LogError::Broken`].
    pub fn of(args: &LogArgs, grouping: Grouping) -> Result<Report, LogError> {
        let mut report = Report { grouping, ..Report::default() };
        let log = args.read(&mut |record| report.add(record))?;
        report.log = log;
        report.settle();
        Ok(report)
    }

    /// Connections whose end is not in the log lead, as far as is known, where was tried first.
    fn settle(&mut self) {
        for (key, address) in std::mem::take(&mut self.open).into_values() {
            if let (Some(row), Some(address)) = (self.allowed.get_mut(&key), address) {
                row.leads_to(address);
            }
        }
    }

    fn whose(&self, record: &Record) -> Option<Whose> {
        let Record { session, call, .. } = record;
        let whose = || Whose { session: session.clone(), call: call.clone() };
        (self.grouping == Grouping::Call).then(whose)
    }

    fn add(&mut self, record: Record) {
        let wanted = record.wanted;
        if wanted && self.sessions.len() < SESSIONS_MAX && !self.sessions.contains(&record.session)
        {
            self.sessions.insert(record.session.clone());
        }
        match &record.event {
            Event::EgressRules { report_until: Some(until), .. } if wanted => {
                self.report_mode.insert(until.as_str().to_owned());
            }
            Event::EgressAllowed {
                number, host, port, address, rule, origin, reported, ..
            } => {
                let mut key = allowed_key(Some(host), Some(*port), rule.as_ref(), *reported);
                key.whose = self.whose(&record);
                if self.open.len() < REMEMBERED_MAX {
                    let address = address.as_ref().map(|address| address.as_str().to_owned());
                    self.open.insert((record.session.clone(), *number), (key.clone(), address));
                }
                let origin = origin.as_ref().map(|origin| origin.as_str().to_owned());
                self.allowed(&record, key, |row| {
                    row.count += 1;
                    row.origin = origin;
                });
            }
            Event::EgressSummed { .. } => self.carried(&record),
            Event::EgressClosed { host, port, by, .. } => {
                self.carried(&record);
                if let Some(by) = by {
                    self.refused(&record, (Some(host), Some(*port)), (by.as_str(), None), 1);
                }
            }
            Event::EgressDenied { host, port, reason, address, address_class, .. } => {
                let class = address_class.as_ref().map(|class| class.as_str());
                let row =
                    self.refused(&record, (Some(host), Some(*port)), (reason.as_str(), class), 1);
                if let (Some(row), Some(address)) = (row, address) {
                    row.leads_to(address.as_str().to_owned());
                }
            }
            Event::EgressFailed { host, port, reason, .. } => {
                self.refused(&record, (Some(host), Some(*port)), (reason.as_str(), None), 1);
            }
            Event::EgressRepeated { host, port, reason, address_class, count } => {
                let class = address_class.as_ref().map(|class| class.as_str());
                self.refused(&record, (host.as_ref(), *port), (reason.as_str(), class), *count);
            }
            Event::CallEnded { .. } | Event::CallPosted {} | Event::CallNotPosted { .. } => {
                self.result(&record);
            }
            _ => {}
        }
    }

    fn carried(&mut self, record: &Record) {
        let (key, add, address) = match &record.event {
            Event::EgressSummed {
                host,
                port,
                rule,
                reported,
                connections,
                bytes_out,
                bytes_in,
                duration_us,
                ..
            } => {
                let mut key = allowed_key(host.as_ref(), *port, rule.as_ref(), *reported);
                key.whose = self.whose(record);
                (key, [*connections, *bytes_out, *bytes_in, *duration_us], None)
            }
            Event::EgressClosed {
                number,
                host,
                port,
                bytes_out,
                bytes_in,
                duration_us,
                address,
                ..
            } => {
                let begun = self.open.remove(&(record.session.clone(), *number));
                // Its beginning may be in an earlier log.
                let key = begun.map(|(key, _)| key).unwrap_or_else(|| AllowedKey {
                    whose: self.whose(record),
                    ..allowed_key(Some(host), Some(*port), None, false)
                });
                let address = address.as_ref().map(|address| address.as_str().to_owned());
                (key, [0, *bytes_out, *bytes_in, *duration_us], address)
            }
            _ => return,
        };
        self.allowed(record, key, |row| {
            row.count = row.count.saturating_add(add[0]);
            row.bytes_out = row.bytes_out.saturating_add(add[1]);
            row.bytes_in = row.bytes_in.saturating_add(add[2]);
            row.duration_us = row.duration_us.saturating_add(add[3]);
            address.into_iter().for_each(|address| row.leads_to(address));
        });
    }

    fn allowed(&mut self, record: &Record, key: AllowedKey, change: impl FnOnce(&mut Row)) {
        if !record.wanted {
            return;
        }
        if self.allowed.len() >= ROWS_MAX && !self.allowed.contains_key(&key) {
            self.omitted += 1;
            return;
        }
        let place = Place(format!("allowed {key:?}"));
        let row = self.allowed.entry(key).or_default();
        change(row);
        seen(row, place, record, &mut self.last_call);
    }

    fn refused(
        &mut self,
        record: &Record,
        (host, port): (Option<&Text>, Option<u16>),
        (reason, class): (&str, Option<&str>),
        count: u64,
    ) -> Option<&mut Row> {
        if !record.wanted {
            return None;
        }
        let whose = self.whose(record);
        let is_denial = Reason::from_word(reason, class).is_none_or(Reason::is_denial);
        let part = if is_denial { &mut self.denied } else { &mut self.failed };
        let key = DeniedKey {
            whose,
            host: host.map(|host| host.as_str().to_owned()),
            port,
            reason: reason.to_owned(),
            class: class.map(str::to_owned),
        };
        if part.len() >= ROWS_MAX && !part.contains_key(&key) {
            self.omitted += 1;
            return None;
        }
        let place = Place(format!("refused {key:?}"));
        let row = part.entry(key).or_default();
        row.count = row.count.saturating_add(count);
        seen(row, place, record, &mut self.last_call);
        Some(row)
    }

    /// Bytes of results that the control plane accepted.
    fn result(&mut self, record: &Record) {
        let Some(call) = record.call.clone() else { return };
        let key = (record.session.clone(), call);
        match &record.event {
            Event::CallEnded { output, .. } if self.pending.len() < REMEMBERED_MAX => {
                self.pending.insert(key, output.bytes);
            }
            Event::CallPosted {} => {
                let bytes = self.pending.remove(&key);
                if record.wanted {
                    self.results += 1;
                    self.result_bytes = self.result_bytes.saturating_add(bytes.unwrap_or(0));
                }
            }
            _ => {
                self.pending.remove(&key);
            }
        }
    }
}

/// Notes time, call and session. Calls of a session run one after the other, so one that differs
/// from the last is a new one.
fn seen(
    row: &mut Row,
    place: Place,
    record: &Record,
    last_call: &mut HashMap<(Place, String), Option<String>>,
) {
    row.first = Some(row.first.map_or(record.time, |first| first.min(record.time)));
    row.last = Some(row.last.map_or(record.time, |last| last.max(record.time)));
    // The end of a connection may come in a later call than its own.
    if matches!(record.event, Event::EgressClosed { by: None, .. }) {
        return;
    }
    let key = (place, record.session.clone());
    let known = last_call.get(&key);
    if known.is_none() {
        row.sessions += 1;
    }
    if record.call.is_some() && known != Some(&record.call) {
        row.calls += 1;
    }
    if known.is_some() || last_call.len() < REMEMBERED_MAX {
        last_call.insert(key, record.call.clone());
    }
}

fn allowed_key(
    host: Option<&Text>,
    port: Option<u16>,
    rule: Option<&Text>,
    reported: bool,
) -> AllowedKey {
    let text = |text: &Text| text.as_str().to_owned();
    AllowedKey { whose: None, host: host.map(text), port, reported, rule: rule.map(text) }
}

/// A destination for people.
pub fn destination(host: Option<&str>, port: Option<u16>) -> String {
    match (host, port) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        _ => "(not named)".to_owned(),
    }
}

#[cfg(test)]
#[path = "egress_report_tests.rs"]
mod tests;
