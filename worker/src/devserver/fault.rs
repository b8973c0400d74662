//! Faults (SIM-6): which request is answered wrongly, and how.
//!
//! A fault names an endpoint and may name a session, a page, the how-manieth request and how many
//! in a row. It is written in the script, in a step, or injected while the server runs.

use std::collections::VecDeque;

use serde::Deserialize;

/// Faults that wait at the same time.
const FAULTS_MAX: usize = 10_000;

/// Everything a worker or its operator may call; names of the report and of faults.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, serde::Serialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    Poll,
    Ack,
    Heartbeat,
    Stop,
    WorkGet,
    WorkMetadata,
    WorkList,
    WorkStats,
    Session,
    List,
    Stream,
    Send,
    Skill,
    SkillContent,
    MemoryList,
    MemoryGet,
    MemoryCreate,
    MemoryUpdate,
    MemoryDelete,
}

/// A fault as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultScript {
    on: Endpoint,
    r#do: String,
    /// Only requests about this session: its id or its name in the script.
    session: Option<String>,
    /// Which matching request is the first, counted from 1.
    #[serde(default = "one")]
    nth: u64,
    /// How many in a row.
    #[serde(default = "one")]
    times: u64,
    /// Only this page of a list, counted from 1.
    page: Option<usize>,
    /// Milliseconds, for what takes time.
    #[serde(default)]
    ms: u64,
    /// Events of a stream before it happens.
    #[serde(default)]
    after: u64,
    /// `ttl_seconds` of `do = "ttl"`.
    #[serde(default)]
    value: i64,
    retry_after: Option<String>,
    retry_after_ms: Option<u64>,
    should_retry: Option<bool>,
    /// `details.error_code` of an error.
    error_code: Option<String>,
}

fn one() -> u64 {
    1
}

/// A checked fault.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "FaultScript")]
pub struct Fault {
    pub on: Endpoint,
    pub kind: Kind,
    pub session: Option<String>,
    pub page: Option<usize>,
    skip: u64,
    left: u64,
    pub ms: u64,
    pub after: u64,
    pub headers: Vec<(&'static str, String)>,
    pub error_code: Option<String>,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An error of this status, without doing anything.
    Status(u16),
    /// This status after doing what was asked.
    StatusAfter(u16),
    /// The connection is reset before anything is done.
    Reset,
    /// What was asked is done, then the connection is reset.
    ResetAfter,
    /// No answer.
    Hang,
    /// What was asked is done, and there is no answer.
    HangAfter,
    /// An answer after `ms`.
    Slow,
    /// 200 and a body that is no JSON.
    Garbage,
    /// 200 and no body.
    EmptyBody,
    /// 200 and `{}`.
    EmptyObject,
    /// 204.
    NoContent,
    /// Poll only: nothing in the queue.
    Nothing,
    /// Heartbeat only: the item is stopping from now on.
    Stopping,
    /// Heartbeat only: the item is stopped from now on.
    Stopped,
    /// Heartbeat only: `lease_extended` is false.
    NotExtended,
    /// Heartbeat only: the answer's `ttl_seconds`, and the lease.
    Ttl(i64),
    /// Heartbeat only: the lease has expired, the item is queued again.
    Lost,
    /// Stream only: ends after `after` events.
    Eof,
    /// Stream only: an `error` event, then the end.
    ErrorEvent,
    /// Stream only: nothing more is written, and nothing ends.
    Silence,
    /// Stream only: every frame in chunks of one byte, `ms` apart.
    Split,
    /// Stream only: every event twice.
    Duplicate,
    /// Stream only: a frame that is no JSON.
    BadJson,
    /// Stream only: each event once more in a frame without a name, with another id.
    Nameless,
    /// Stream only: CRLF line ends, comments, and data split over several lines.
    Odd,
    /// Skill content only: the archive is cut in the middle.
    Corrupt,
    /// Skill content only: the archive in pieces, `ms` apart.
    Trickle,
}

impl TryFrom<FaultScript> for Fault {
    type Error = String;

    fn try_from(written: FaultScript) -> Result<Fault, String> {
        let kind = Kind::parse(&written.r#do, written.value).ok_or_else(|| {
            format!("`{}` is no fault; docs/devserver.md lists them", written.r#do)
        })?;
        if !kind.fits(written.on) {
            return Err(format!("`{}` cannot happen on this endpoint", written.r#do));
        }
        if written.nth == 0 || written.times == 0 || written.page == Some(0) {
            return Err("`nth`, `times` and `page` count from 1".to_owned());
        }
        let mut headers = Vec::new();
        headers.extend(written.retry_after.map(|value| ("retry-after", value)));
        headers.extend(written.retry_after_ms.map(|ms| ("retry-after-ms", ms.to_string())));
        headers.extend(written.should_retry.map(|yes| ("x-should-retry", yes.to_string())));
        Ok(Fault {
            on: written.on,
            kind,
            session: written.session,
            page: written.page,
            skip: written.nth - 1,
            left: written.times,
            ms: written.ms,
            after: written.after,
            headers,
            error_code: written.error_code,
        })
    }
}

impl Kind {
    fn parse(text: &str, value: i64) -> Option<Kind> {
        let status = |text: &str| text.parse().ok().filter(|code| (400..600).contains(code));
        if text == "204" {
            return Some(Kind::NoContent);
        }
        if let Some(code) = status(text) {
            return Some(Kind::Status(code));
        }
        if let Some(code) = text.strip_suffix("-after").and_then(status) {
            return Some(Kind::StatusAfter(code));
        }
        Some(match text {
            "reset" => Kind::Reset,
            "reset-after" => Kind::ResetAfter,
            "hang" => Kind::Hang,
            "hang-after" => Kind::HangAfter,
            "slow" => Kind::Slow,
            "garbage" => Kind::Garbage,
            "empty-body" => Kind::EmptyBody,
            "empty-object" => Kind::EmptyObject,
            "nothing" => Kind::Nothing,
            "stopping" => Kind::Stopping,
            "stopped" => Kind::Stopped,
            "not-extended" => Kind::NotExtended,
            "ttl" => Kind::Ttl(value),
            "lost" => Kind::Lost,
            "eof" => Kind::Eof,
            "error-event" => Kind::ErrorEvent,
            "silence" => Kind::Silence,
            "split" => Kind::Split,
            "duplicate" => Kind::Duplicate,
            "bad-json" => Kind::BadJson,
            "nameless" => Kind::Nameless,
            "odd" => Kind::Odd,
            "corrupt" => Kind::Corrupt,
            "trickle" => Kind::Trickle,
            _ => return None,
        })
    }

    fn fits(self, on: Endpoint) -> bool {
        match self {
            Kind::Nothing => on == Endpoint::Poll,
            Kind::Stopping | Kind::Stopped | Kind::NotExtended | Kind::Ttl(_) | Kind::Lost => {
                on == Endpoint::Heartbeat
            }
            Kind::Corrupt | Kind::Trickle => on == Endpoint::SkillContent,
            _ if self.of_a_stream() => on == Endpoint::Stream,
            _ => true,
        }
    }

    /// Whether it changes what a stream carries rather than how a request is answered.
    pub fn of_a_stream(self) -> bool {
        use Kind::{BadJson, Duplicate, Eof, ErrorEvent, Nameless, Odd, Silence, Split};
        matches!(self, Eof | ErrorEvent | Silence | Split | Duplicate | BadJson | Nameless | Odd)
    }

    /// Whether what was asked is done although the caller does not learn of it.
    pub fn hides_success(self) -> bool {
        matches!(self, Kind::StatusAfter(_) | Kind::ResetAfter | Kind::HangAfter)
    }
}

/// The faults that wait.
#[derive(Debug, Default)]
pub struct Faults {
    waiting: VecDeque<Fault>,
}

impl Faults {
    /// Adds one; false if there are too many.
    pub fn add(&mut self, fault: Fault) -> bool {
        let room = self.waiting.len() < FAULTS_MAX;
        if room {
            self.waiting.push_back(fault);
        }
        room
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The first fault that a request meets. Every fault that the request matches is counted on.
    pub fn take(&mut self, on: Endpoint, names: &[&str], page: usize) -> Option<Fault> {
        let mut met = None;
        for fault in &mut self.waiting {
            let about = fault.session.as_deref().is_none_or(|session| names.contains(&session));
            if fault.on != on || !about || fault.page.is_some_and(|wanted| wanted != page) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if met.is_none() {
                fault.left -= 1;
                met = Some(fault.clone());
            }
        }
        self.waiting.retain(|fault| fault.left > 0);
        met
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn fault(value: Value) -> Result<Fault, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn a_fault_meets_the_nth_request_and_the_ones_after_it() {
        let mut faults = Faults::default();
        assert!(
            faults.add(
                fault(json!({"on": "send", "do": "500", "nth": 2, "times": 2})).expect("valid")
            )
        );
        let met: Vec<bool> =
            (0..5).map(|_| faults.take(Endpoint::Send, &[], 1).is_some()).collect();
        assert_eq!(met, [false, true, true, false, false]);
        assert_eq!(faults.len(), 0);
    }

    #[test]
    fn a_fault_of_one_session_or_page_leaves_the_others_alone() {
        let mut faults = Faults::default();
        let written = json!({"on": "list", "do": "500", "session": "a", "page": 2});
        assert!(faults.add(fault(written).expect("valid")));
        assert!(faults.take(Endpoint::List, &["b"], 2).is_none());
        assert!(faults.take(Endpoint::List, &["a"], 1).is_none());
        assert!(faults.take(Endpoint::Send, &["a"], 2).is_none());
        assert!(faults.take(Endpoint::List, &["sesn_1", "a"], 2).is_some());
    }

    #[test]
    fn a_fault_that_cannot_happen_is_refused() {
        for written in [
            json!({"on": "poll", "do": "eof"}),
            json!({"on": "stream", "do": "stopping"}),
            json!({"on": "poll", "do": "302"}),
            json!({"on": "poll", "do": "500", "nth": 0}),
            json!({"on": "poll", "do": "500", "often": 1}),
        ] {
            assert!(fault(written.clone()).is_err(), "{written}");
        }
    }

    #[test]
    fn the_list_of_faults_has_a_limit() {
        let mut faults = Faults::default();
        let one = fault(json!({"on": "poll", "do": "500"})).expect("valid");
        assert!((0..FAULTS_MAX).all(|_| faults.add(one.clone())));
        assert!(!faults.add(one));
    }
}
