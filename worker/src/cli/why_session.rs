//! `worker why SESSION HOST:PORT`: what was decided about one destination in one session, from its
//! ledger in the audit log: when, by which rule or for which reason, how often.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::{Value, json};
use stockade_runtime::audit::{Event, Name, Text};
use stockade_runtime::egress::Reason;
use stockade_runtime::policy::network::{DenyReason, Host};

use super::egress_records::{LogArgs, LogError, Record, written};
use super::policy::ReportFormat;
use crate::exit::Exit;
use crate::explain;
use crate::progress::visible;

/// Most different decisions that are told.
const LINES_MAX: usize = 50;
/// Most sessions that are told apart.
const SESSIONS_MAX: usize = 10;

/// What is asked.
#[derive(Debug)]
pub struct Question<'a> {
    /// The session's id, or the end of it.
    pub session: &'a str,
    /// Name or address.
    pub host: &'a Host,
    /// TCP port.
    pub port: u16,
    /// The audit log; `None` for that of `worker poll`.
    pub audit_file: Option<PathBuf>,
    /// How it is answered.
    pub format: ReportFormat,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("no session that ends in `{session}` is in the audit log")]
    NoSession { session: String },
    #[error("more than one session ends in `{session}`: {}", found.join(", "))]
    Sessions { session: String, found: Vec<String> },
    #[error("nothing was decided about {target} in session {session}")]
    Nothing { target: String, session: String },
}

/// Answers. Exit code 0 if the last decision allowed it, 1 if it was denied, 2 if there is none, 8 if
/// the log does not verify.
///
/// # Errors
/// If `out` cannot be written.
pub fn run(question: &Question<'_>, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let mut answer = Answer::default();
    let log = LogArgs {
        audit_file: question.audit_file.clone(),
        session: Some(question.session.to_owned()),
        ..LogArgs::default()
    };
    let read: Result<(), LogError> = log.read_good(&mut |record| answer.add(question, &record));
    if let Err(error) = read {
        return Ok(error.told());
    }
    let session = visible(question.session);
    let sessions: Vec<String> = answer.sessions.iter().map(|session| visible(session)).collect();
    let nothing = match sessions.as_slice() {
        [] => Some(NoAnswer::NoSession { session }),
        [_] if answer.lines.is_empty() => {
            Some(NoAnswer::Nothing { target: question.target(), session: sessions[0].clone() })
        }
        [_] => None,
        _ => Some(NoAnswer::Sessions { session, found: sessions }),
    };
    if let Some(nothing) = nothing {
        explain::complain(&nothing, Some(nothing.hint()));
        return Ok(Exit::Usage);
    }
    let text = match question.format {
        ReportFormat::Text => answer.to_text(question),
        ReportFormat::Json => format!("{:#}\n", answer.to_json(question)),
    };
    out.write_all(text.as_bytes())?;
    // A denial is not unexpected, and has the number of what is.
    Ok(if answer.allowed() { Exit::Success } else { Exit::Payload(1) })
}

impl NoAnswer {
    fn hint(&self) -> &'static str {
        match self {
            NoAnswer::NoSession { .. } => "name the log with --audit-file",
            NoAnswer::Sessions { .. } => "give more of the id",
            NoAnswer::Nothing { .. } => {
                "`worker why POLICY HOST:PORT` says what a policy would decide; a port that no rule \
                 names is refused inside the jail and is not recorded"
            }
        }
    }
}

impl Question<'_> {
    fn target(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn is_about(&self, host: &Text, port: u16) -> bool {
        host.as_str() == self.host.to_string() && port == self.port
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Done {
    Allowed { rule: Option<String>, origin: Option<String> },
    Denied { reason: String, class: Option<String> },
    Failed { reason: String },
    Closed { reason: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    count: u64,
    /// Of the first.
    decision: Option<u64>,
    calls: u64,
    last_call: Option<String>,
    first: SystemTime,
    last: SystemTime,
}

#[derive(Debug, Default)]
struct Answer {
    sessions: BTreeSet<String>,
    /// By what was done and under which rules, if that is known.
    lines: BTreeMap<(Done, Option<u64>), Line>,
    /// The last decision.
    last: Option<Done>,
    /// Counts that found no line.
    omitted: u64,
}

impl Answer {
    fn add(&mut self, question: &Question<'_>, record: &Record) {
        if self.sessions.len() < SESSIONS_MAX && !self.sessions.contains(&record.session) {
            self.sessions.insert(record.session.clone());
        }
        let text = |text: &Text| text.as_str().to_owned();
        let word = |name: &Name| name.as_str().to_owned();
        // A name that was refused when it was looked up was refused for every port.
        let about = |host: &Text, port: u16, reason: &Name| {
            question.is_about(host, port)
                || (port == 53
                    && reason.as_str() == "lookup"
                    && question.is_about(host, question.port))
        };
        match &record.event {
            Event::EgressAllowed { number, host, port, rule, origin, generation, .. }
                if question.is_about(host, *port) =>
            {
                let done = Done::Allowed {
                    rule: rule.as_ref().map(text),
                    origin: origin.as_ref().map(text),
                };
                self.note(record, done, Some(*generation), Some(*number), 1);
            }
            Event::EgressSummed {
                host: Some(host),
                port: Some(port),
                rule,
                generation,
                connections,
                ..
            } if question.is_about(host, *port) => {
                let done = Done::Allowed { rule: rule.as_ref().map(text), origin: None };
                self.repeat(record, done, Some(*generation), *connections);
            }
            Event::EgressDenied {
                number, host, port, reason, address_class, generation, ..
            } if about(host, *port, reason) => {
                let class = address_class.as_ref().map(word);
                let done = Done::Denied { reason: word(reason), class };
                self.note(record, done, Some(*generation), Some(*number), 1);
            }
            Event::EgressRepeated {
                host: Some(host),
                port: Some(port),
                reason,
                address_class,
                count,
            } if about(host, *port, reason) => {
                let class = address_class.as_ref().map(word);
                let done = match Reason::from_word(reason.as_str(), class.as_deref()) {
                    Some(reason) if !reason.is_denial() => {
                        Done::Failed { reason: reason.word().to_owned() }
                    }
                    _ => Done::Denied { reason: word(reason), class },
                };
                self.repeat(record, done, None, *count);
            }
            Event::EgressFailed { number, host, port, reason, generation }
                if question.is_about(host, *port) =>
            {
                let done = Done::Failed { reason: word(reason) };
                self.note(record, done, Some(*generation), Some(*number), 1);
            }
            Event::EgressClosed { number, host, port, by: Some(by), .. }
                if question.is_about(host, *port) =>
            {
                self.note(record, Done::Closed { reason: word(by) }, None, Some(*number), 1);
            }
            _ => {}
        }
    }

    /// What was only counted belongs to the line of the first of its kind.
    fn repeat(&mut self, record: &Record, done: Done, generation: Option<u64>, count: u64) {
        let same = |key: &(Done, Option<u64>)| match (&key.0, &done) {
            (Done::Allowed { rule, .. }, Done::Allowed { rule: wanted, .. }) => {
                rule == wanted && key.1 == generation
            }
            (known, wanted) => known == wanted,
        };
        let last = self.lines.iter().filter(|(key, _)| same(key)).max_by_key(|(_, line)| line.last);
        let (done, generation) = last.map_or((done.clone(), generation), |(key, _)| key.clone());
        // Written after what it counts, so it says nothing about what was decided last.
        let decided = self.last.take();
        self.note(record, done, generation, None, count);
        self.last = decided.or_else(|| self.last.take());
    }

    fn note(
        &mut self,
        record: &Record,
        done: Done,
        generation: Option<u64>,
        decision: Option<u64>,
        count: u64,
    ) {
        if done.decides() {
            self.last = Some(done.clone());
        }
        let key = (done, generation);
        if self.lines.len() >= LINES_MAX && !self.lines.contains_key(&key) {
            self.omitted += count;
            return;
        }
        let (first, last_call) = (record.time, None);
        let new = Line { count: 0, decision, calls: 0, last_call, first, last: first };
        let line = self.lines.entry(key).or_insert(new);
        line.count = line.count.saturating_add(count);
        line.last = line.last.max(record.time);
        if record.call.is_some() && line.last_call != record.call {
            line.calls += 1;
        }
        line.last_call.clone_from(&record.call);
    }

    /// What the last decision was; what failed upstream had been allowed.
    fn allowed(&self) -> bool {
        !matches!(self.last, Some(Done::Denied { .. } | Done::Closed { .. }))
    }

    /// Whether the last decision was a refusal for which `worker policy suggest` has a rule.
    fn a_rule_helps(&self, host: &Host) -> bool {
        let Some(Done::Denied { reason, class }) = &self.last else { return false };
        let reason = Reason::from_word(reason, class.as_deref());
        reason.is_some_and(|reason| match reason.about(host) {
            Reason::Lookup => true,
            Reason::Rules(reason) => !matches!(reason, DenyReason::Address(_)),
            _ => false,
        })
    }

    /// In the order in which they were first made.
    fn in_order(&self) -> Vec<(&Done, Option<u64>, &Line)> {
        let mut all: Vec<_> =
            self.lines.iter().map(|((done, generation), line)| (done, *generation, line)).collect();
        all.sort_by_key(|(_, _, line)| (line.first, line.decision));
        all
    }

    fn to_text(&self, question: &Question<'_>) -> String {
        let word = if self.allowed() { "ALLOWED" } else { "DENIED" };
        let session = self.sessions.first().map(|session| visible(session)).unwrap_or_default();
        let mut text = format!("{word}: {} in session {session}\n", question.target());
        for (done, generation, line) in self.in_order() {
            let times = match line.count {
                1 => "once".to_owned(),
                count => format!("{count} times"),
            };
            let calls = match line.calls {
                0 => "outside of calls".to_owned(),
                1 => format!("in call {}", visible(line.last_call.as_deref().unwrap_or("1"))),
                calls => format!("in {calls} calls"),
            };
            let _infallible = write!(text, "  {}: {times} {calls}", done.told(question.host));
            if let Some(generation) = generation {
                let _infallible = write!(text, ", rules of generation {generation}");
            }
            let _infallible = match line.first == line.last {
                true => write!(text, ", {}", written(line.first)),
                false => write!(text, ", {} to {}", written(line.first), written(line.last)),
            };
            if let Some(number) = line.decision {
                let _infallible = write!(text, ", decision d-{number}");
            }
            text.push('\n');
        }
        if self.omitted > 0 {
            let _infallible = writeln!(text, "  and {} others", self.omitted);
        }
        if self.a_rule_helps(question.host) {
            text.push_str(
                "`worker policy suggest --session` prints the narrowest rule that would allow it.\n",
            );
        }
        text
    }

    fn to_json(&self, question: &Question<'_>) -> Value {
        let decisions = self.in_order().into_iter().map(|(done, generation, line)| {
            let mut object = done.to_json();
            object["generation"] = json!(generation);
            object["count"] = json!(line.count);
            object["calls"] = json!(line.calls);
            object["first"] = json!(written(line.first));
            object["last"] = json!(written(line.last));
            object["decision"] = json!(line.decision.map(|number| format!("d-{number}")));
            object
        });
        json!({
            "schema": "stockade.why.session",
            "schema_version": 1,
            "session": self.sessions.first(),
            "host": question.host.to_string(),
            "port": question.port,
            "allowed": self.allowed(),
            "decisions": decisions.collect::<Vec<_>>(),
            "omitted": self.omitted,
        })
    }
}

impl Done {
    /// Whether it says that the destination is allowed or not. A connection that reached a limit, or
    /// that upstream did not take, was allowed.
    fn decides(&self) -> bool {
        let Done::Closed { reason } = self else { return true };
        let reason = Reason::from_word(reason, None);
        reason.is_some_and(|reason| reason.is_denial() && reason.limit().is_none())
    }

    fn told(&self, host: &Host) -> String {
        let phrase = |word: &str, class: Option<&str>| {
            let reason = Reason::from_word(word, class);
            reason.map_or_else(|| visible(word), |reason| reason.about(host).to_string())
        };
        match self {
            Done::Allowed { rule: None, .. } => {
                "allowed by report mode, no rule allows it".to_owned()
            }
            Done::Allowed { rule: Some(rule), origin: None } => {
                format!("allowed by rule {}", visible(rule))
            }
            Done::Allowed { rule: Some(rule), origin: Some(origin) } => {
                format!("allowed by rule {} ({})", visible(rule), visible(origin))
            }
            Done::Denied { reason, class } => {
                format!("denied, {}", phrase(reason, class.as_deref()))
            }
            Done::Failed { reason } => {
                format!("allowed and failed (not by policy), {}", phrase(reason, None))
            }
            Done::Closed { reason } => format!("closed, {}", phrase(reason, None)),
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Done::Allowed { rule, origin } => {
                json!({ "what": "allowed", "rule": rule, "origin": origin, "report_mode": rule.is_none() })
            }
            Done::Denied { reason, class } => {
                json!({ "what": "denied", "reason": reason, "address_class": class })
            }
            Done::Failed { reason } => json!({ "what": "failed", "reason": reason }),
            Done::Closed { reason } => json!({ "what": "closed", "reason": reason }),
        }
    }
}

#[cfg(test)]
#[path = "why_session_tests.rs"]
mod tests;
