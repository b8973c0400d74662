//! What an audit log says about egress: options that choose a part of it, and reading it while its
//! chain is checked. For `worker egress report`, `worker policy suggest` and `worker why`.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Deserialize;
use stockade_runtime::audit::{Event, Ids, Name, Problem, Verification, verify_each};

use super::audit::{Unreadable, open};
use crate::exit::Exit;
use crate::explain;

/// Within so many bytes a line names its event.
const HEAD_BYTES: usize = 200;

/// Which part of which log.
#[derive(Debug, Clone, Default, Args)]
pub struct LogArgs {
    /// Read the audit log FILE; `-` is standard input [default: that of `worker poll`]
    ///
    /// /var/log/stockade/audit.jsonl; without root $XDG_STATE_HOME/stockade/audit.jsonl.
    #[arg(long, value_name = "FILE")]
    pub audit_file: Option<PathBuf>,

    /// Use only records of this session; the end of its id is enough
    #[arg(long, value_name = "ID")]
    pub session: Option<String>,

    /// Use only records since TIME: RFC 3339, a date, or how long ago (`24h`)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<SystemTime>,

    /// Use only records before TIME
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<SystemTime>,
}

/// A record about egress, or about a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// When.
    pub time: SystemTime,
    /// Of the session; empty if there is none.
    pub session: String,
    /// Of the tool call, if it is about one.
    pub call: Option<String>,
    /// What.
    pub event: Event,
    /// Whether it is in the span of time that was asked for.
    pub wanted: bool,
}

/// Why a log is not used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// No file was named, and there is no default.
    #[error("no audit log: neither XDG_STATE_HOME nor HOME is set")]
    NoPlace,
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// It is not what the worker wrote.
    #[error("{} does not verify: line {}: {}", file.display(), problem.line, problem.reason)]
    Broken {
        /// The log.
        file: PathBuf,
        /// Where and why.
        problem: Problem,
    },
}

impl LogError {
    /// Says it and returns the exit code that says the same.
    pub fn told(&self) -> Exit {
        let (hint, exit) = match self {
            LogError::NoPlace | LogError::Unreadable(_) => {
                ("name a log with --audit-file", Exit::Usage)
            }
            LogError::Broken { .. } => ("`worker audit verify` tells more", Exit::Evidence),
        };
        explain::complain(self, Some(hint));
        exit
    }
}

impl LogArgs {
    /// The file that is read.
    ///
    /// # Errors
    /// [`LogError::NoPlace`].
    pub fn file(&self) -> Result<PathBuf, LogError> {
        if let Some(file) = &self.audit_file {
            return Ok(file.clone());
        }
        if rustix::process::geteuid().is_root() {
            return Ok(PathBuf::from("/var/log/stockade/audit.jsonl"));
        }
        let variable =
            |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || Some(variable("HOME")?.join(".local/state"));
        let base = variable("XDG_STATE_HOME").or_else(home).ok_or(LogError::NoPlace)?;
        Ok(base.join("stockade/audit.jsonl"))
    }

    /// Reads the whole log, hands on the records of the session that was asked for, and says what
    /// the log is found to be: only then is it known whether they may be believed.
    ///
    /// # Errors
    /// [`LogError::NoPlace`], [`LogError::Unreadable`].
    pub fn read(&self, each: &mut dyn FnMut(Record)) -> Result<Verification, LogError> {
        let file = self.file()?;
        let mut line = |line: &[u8]| {
            if let Some(record) = self.record(line) {
                each(record);
            }
        };
        let found = open(&file).and_then(|mut log| verify_each(&mut log, None, &mut line));
        found.map_err(|source| Unreadable { file, source }.into())
    }

    /// As [`read`](Self::read), for conclusions that a broken log must not lead to.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn read_good(&self, each: &mut dyn FnMut(Record)) -> Result<(), LogError> {
        match self.read(each)?.problem {
            Some(problem) => Err(LogError::Broken { file: self.file()?, problem }),
            None => Ok(()),
        }
    }

    fn record(&self, line: &[u8]) -> Option<Record> {
        let head = &line[..line.len().min(HEAD_BYTES)];
        let is = |event: &[u8]| head.windows(event.len()).any(|part| part == event);
        if !is(br#""event":"egress."#) && !is(br#""event":"call."#) {
            return None;
        }
        // What a newer worker records and this one does not know is passed over.
        let line: Line = serde_json::from_slice(line).ok()?;
        let text = |name: Option<Name>| name.map(|name| name.as_str().to_owned());
        let session = text(line.ids.session).unwrap_or_default();
        if self.session.as_ref().is_some_and(|wanted| !session.ends_with(wanted.as_str())) {
            return None;
        }
        let time = humantime::parse_rfc3339(&line.time).ok()?;
        let wanted = self.since.is_none_or(|since| since <= time)
            && self.until.is_none_or(|until| time < until);
        Some(Record { time, session, call: text(line.ids.tool_call), event: line.event, wanted })
    }
}

#[derive(Deserialize)]
struct Line {
    time: String,
    #[serde(flatten)]
    event: Event,
    #[serde(flatten)]
    ids: Ids,
}

/// Reads a point in time as people write it.
pub fn moment(text: &str) -> Result<SystemTime, String> {
    let day = || humantime::parse_rfc3339_weak(&format!("{text}T00:00:00Z"));
    if let Ok(time) = humantime::parse_rfc3339_weak(text).or_else(|_| day()) {
        return Ok(time);
    }
    let ago = humantime::parse_duration(text).ok();
    let time = ago.and_then(|ago: Duration| SystemTime::now().checked_sub(ago));
    time.ok_or_else(|| "expected a time like 2026-11-02T08:00:00Z, a date, or 24h".to_owned())
}

/// A time as reports have it: RFC 3339, UTC, seconds.
pub fn written(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::path::Path;
    use stockade_runtime::audit::{AuditLog, Fingerprint, Text};

    /// Writes a log of these events: of which session, in which call.
    pub fn write(path: &Path, events: Vec<(&str, Option<&str>, Event)>) {
        let log = AuditLog::open(path).expect("a log");
        for (session, call, event) in events {
            let ids = Ids { session: Some(session.into()), ..Ids::default() };
            let ids = call.map_or(ids.clone(), |call| ids.with_tool_call(call));
            log.append(&ids, &event).expect("appended");
        }
    }

    /// A refusal as the log has it.
    pub fn denied(host: &str, port: u16, reason: &str) -> Event {
        Event::EgressDenied {
            number: 1,
            host: Text::of(&host),
            port,
            reason: reason.into(),
            address: None,
            address_class: None,
            generation: 1,
        }
    }

    /// A connection as the log has it; in report mode without a rule.
    pub fn allowed(number: u64, host: &str, port: u16, rule: Option<&str>) -> Event {
        Event::EgressAllowed {
            number,
            host: Text::of(&host),
            port,
            address: Some("198.51.100.7".into()),
            rule: rule.map(|rule| Text::of(&rule)),
            origin: rule.map(|_| Text::of(&"policy.toml:3:10")),
            generation: 1,
            reported: rule.is_none(),
        }
    }

    #[test]
    fn only_records_about_egress_and_calls_of_the_session_are_handed_on() {
        let directory = tempfile::TempDir::new().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        let input = Fingerprint::of(b"{}");
        write(
            &path,
            vec![
                ("sesn_1", None, Event::ItemAcked {}),
                ("sesn_1", Some("c"), Event::CallStarted { tool: "bash".into(), input }),
                ("sesn_2", None, denied("a.test", 443, "no-rule")),
                ("sesn_1", Some("c"), denied("a.test", 443, "no-rule")),
            ],
        );
        let args = LogArgs {
            audit_file: Some(path.clone()),
            session: Some("n_1".to_owned()),
            ..LogArgs::default()
        };
        let mut found = Vec::new();
        let said = args.read(&mut |record| found.push(record)).expect("readable");
        assert_eq!((said.problem, found.len()), (None, 2));
        assert_eq!((found[1].session.as_str(), found[1].call.as_deref()), ("sesn_1", Some("c")));
        assert_eq!(found[1].event, denied("a.test", 443, "no-rule"));
        let later = LogArgs { since: Some(moment("9999-01-01").expect("a date")), ..args.clone() };
        let mut wanted = Vec::new();
        later.read(&mut |record| wanted.push(record.wanted)).expect("readable");
        assert_eq!(wanted, [false, false]);
        args.read_good(&mut |_| {}).expect("control: it is good");
        let text = std::fs::read_to_string(&path).expect("the log").replace("a.test", "b.test");
        std::fs::write(&path, text).expect("changed");
        assert!(matches!(args.read_good(&mut |_| {}), Err(LogError::Broken { .. })));
    }

    #[test]
    fn a_time_is_a_date_a_moment_or_how_long_ago() {
        for text in ["2026-11-02", "2026-11-02T08:00:00Z", "2026-11-02 08:00:00", "24h", "5m"] {
            moment(text).expect(text);
        }
        for text in ["", "yesterday", "-1h", "2026-13-40"] {
            moment(text).expect_err(text);
        }
        let ago = moment("1h").expect("an hour").elapsed().expect("in the past").as_secs();
        assert!((3_590..3_700).contains(&ago), "{ago}");
    }
}
