//! The script of a development server: sessions, their steps, faults, skills and memories.
//!
//! Read once at the start (TOML) or pushed through a control endpoint (JSON): the same types serve
//! both. Unknown keys are refused, and what a step says is checked while it is read, so that every
//! mistake has a place in its file. Knows nothing of connections or of the state of a run.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::fault::Fault;
use super::steps::Step;
use super::webhook::WebhookScript;

/// Sessions that one script may ask for, copies counted.
const SESSIONS_MAX: usize = 10_000;
/// Steps that one session may take, repetitions counted.
const STEPS_MAX: usize = 200_000;

/// A whole script.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    pub server: Settings,
    pub session: Vec<SessionScript>,
    pub work: Vec<WorkScript>,
    pub fault: Vec<Fault>,
    pub skill: Vec<SkillScript>,
    pub memory_store: Vec<StoreScript>,
    /// Where sessions that get work are told of.
    pub webhook: Option<WebhookScript>,
}

/// How the server behaves where the protocol leaves it open.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Seconds that a heartbeat extends a lease by.
    pub ttl_seconds: i64,
    /// What an empty queue answers.
    pub empty_poll: EmptyPoll,
    /// Status of an ack of an item that was acked before.
    pub ack_repeat: u16,
    /// Status of a successful stop; 200 sends the item.
    pub stop_status: u16,
    /// Milliseconds between pings of a stream; 0 sends none.
    pub ping_ms: u64,
    /// Status of a stream of a session that has ended; 200 is a stream that ends at once.
    pub ended_stream: u16,
    /// Events on one page of a list, whatever the request asks for.
    pub page_size: usize,
    /// Kinds of violations that do not fail the run, for tests that provoke them.
    pub tolerate: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            ttl_seconds: 300,
            empty_poll: EmptyPoll::Null,
            ack_repeat: 200,
            stop_status: 204,
            ping_ms: 15_000,
            ended_stream: 200,
            page_size: 1000,
            tolerate: Vec::new(),
        }
    }
}

/// What an empty queue answers (API-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmptyPoll {
    Null,
    #[serde(rename = "204")]
    NoContent,
    EmptyBody,
    EmptyObject,
}

/// One session, or several alike.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionScript {
    /// For the report; copies get a number.
    pub name: String,
    pub copies: usize,
    /// How often all steps are gone through.
    pub repeat: usize,
    /// What the user says first.
    pub message: Option<String>,
    pub calls: Vec<Step>,
    pub start: Start,
    pub end: End,
    /// Seconds that a result may take, unless the step says otherwise.
    pub within_s: f64,
    /// Whether waiting for results is announced as `session.status_idle`.
    pub requires_action: bool,
    /// Whether a stop of its item while results are missing makes a new item.
    pub requeue_on_stop: bool,
    pub secret: Secret,
    /// The status that the session has from the start.
    pub status: Option<String>,
    pub tools: Option<Vec<Value>>,
    pub skills: Vec<Value>,
    pub resources: Vec<Value>,
    pub metadata: BTreeMap<String, String>,
    pub work_metadata: BTreeMap<String, String>,
    pub page_size: Option<usize>,
    /// The page, counted from 1, that has no events but a next page.
    pub empty_page: Option<usize>,
    /// Events that are in the history before the first step.
    pub history: Vec<Value>,
}

impl Default for SessionScript {
    fn default() -> Self {
        SessionScript {
            name: "session".to_owned(),
            copies: 1,
            repeat: 1,
            message: None,
            calls: Vec::new(),
            start: Start::Attached,
            end: End::Terminate,
            within_s: 120.0,
            requires_action: true,
            requeue_on_stop: false,
            secret: Secret::Token,
            status: None,
            tools: None,
            skills: Vec::new(),
            resources: Vec::new(),
            metadata: BTreeMap::new(),
            work_metadata: BTreeMap::new(),
            page_size: None,
            empty_page: None,
            history: Vec::new(),
        }
    }
}

/// When the first step is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// When a worker reads the stream and has listed the history.
    Attached,
    /// At once: the first calls are history for the worker.
    AtOnce,
}

/// What comes after the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    Terminate,
    /// Idle with `end_turn`; done when the worker has stopped the item.
    Idle,
    Delete,
    /// Waits for steps that are pushed through a control endpoint.
    Open,
}

/// What the poll response carries as `secret`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Secret {
    /// A sessions token, base64url without padding.
    Token,
    /// The same with padding and the standard alphabet.
    Padded,
    /// Null: the environment key authenticates everything.
    None,
    /// Text that is no base64.
    Garbage,
}

/// A work item that is not a session.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkScript {
    /// `data.type`; without it the item has no data.
    pub r#type: Option<String>,
}

/// A skill version that can be downloaded.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkillScript {
    pub id: String,
    #[serde(default = "first_version")]
    pub version: String,
    pub name: String,
    #[serde(default)]
    pub description: String,
    /// Path in the archive and text.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Paths of `files` that are executable.
    #[serde(default)]
    pub executable: Vec<String>,
    /// What the archive of `files` is.
    #[serde(default)]
    pub format: ArchiveFormat,
    /// Its number where versions are epoch microseconds (HDR-3).
    #[serde(default)]
    pub epoch: Option<String>,
    /// The archive as base64, instead of `files`.
    #[serde(default)]
    pub archive_base64: Option<String>,
}

/// Kinds of archives (SKILL-5). The service makes zip.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArchiveFormat {
    #[default]
    Zip,
    Tar,
    /// gzip
    Tgz,
    /// bzip2
    Tbz,
    /// xz
    Txz,
}

/// A memory store.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreScript {
    pub id: String,
    /// Path and text.
    #[serde(default)]
    pub memories: BTreeMap<String, String>,
    /// The same at the end of the run, if it is to be checked.
    #[serde(default)]
    pub expect: Option<BTreeMap<String, String>>,
}

fn first_version() -> String {
    "skillver_1".to_owned()
}

impl SessionScript {
    /// Refuses what would have no bound.
    pub fn check(&self) -> Result<(), String> {
        let each: usize = self.calls.iter().map(Step::times).sum();
        let steps = each.saturating_mul(self.repeat);
        if self.copies > SESSIONS_MAX {
            return Err(format!("`copies` is {}, the limit is {SESSIONS_MAX}", self.copies));
        }
        if steps > STEPS_MAX {
            return Err(format!(
                "session `{}` has {steps} steps, the limit is {STEPS_MAX}",
                self.name
            ));
        }
        if !(self.within_s > 0.0 && self.within_s <= 86_400.0) {
            return Err("`within_s` is not between 0 and 86400".to_owned());
        }
        Ok(())
    }
}

/// Why a script is not used: a place and a reason.
#[derive(Debug)]
pub struct ScriptError {
    pub place: String,
    pub reason: String,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

impl std::error::Error for ScriptError {}

/// Reads a script; `path` is for messages.
///
/// # Errors
/// With file, line and column of what is wrong.
pub fn parse(text: &str, path: &Path) -> Result<Script, ScriptError> {
    let script: Script = toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or_default();
        let at = step_within(text, &span).unwrap_or(span.start).min(text.len());
        let before = &text[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let place = format!("{}:{line}:{column}", path.display());
        ScriptError { place, reason: error.message().trim_end().to_owned() }
    })?;
    let sessions: usize = script.session.iter().map(|session| session.copies).sum();
    let checked = script.session.iter().try_for_each(SessionScript::check);
    let checked = checked.and(match sessions {
        0..=SESSIONS_MAX => Ok(()),
        _ => Err(format!("{sessions} sessions, the limit is {SESSIONS_MAX}")),
    });
    checked.map_err(|reason| ScriptError { place: path.display().to_string(), reason })?;
    Ok(script)
}

/// Where in a list of steps the first wrong one is: the parser only knows where the list begins.
fn step_within(text: &str, span: &std::ops::Range<usize>) -> Option<usize> {
    const KEY: &str = "step = ";
    #[derive(Deserialize)]
    struct One {
        #[serde(rename = "step")]
        _step: Step,
    }
    let list = text.get(span.clone())?;
    let parsed = toml::de::DeValue::parse(list).ok()?;
    let toml::de::DeValue::Array(steps) = parsed.get_ref() else { return None };
    steps.iter().find_map(|step| {
        let own = step.span();
        let wrong = toml::from_str::<One>(&format!("{KEY}{}", &list[own.clone()])).err()?;
        let inner = wrong.span().map_or(0, |inner| inner.start.saturating_sub(KEY.len()));
        Some(span.start + own.start + inner)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> Result<Script, String> {
        parse(text, Path::new("s.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_mistake_is_reported_with_its_place() {
        #[rustfmt::skip]
        let cases = [
            ("[[session]]\nnam = \"x\"",                         "s.toml:2:1: unknown field `nam`"),
            ("[[session]]\ncalls = [\n {bash=\"a\", glob=\"b\"},\n]", "s.toml:3:2: "),
            ("[[session]]\ncalls = [\n {id=\"a\"},\n]",           "s.toml:3:2: a step does nothing"),
            ("[[session]]\ncalls = [\n {bash=\"a\", expect={matches=\"(\"}},\n]", "s.toml:3:29: "),
            ("[[fault]]\non = \"pol\"\ndo = \"500\"",             "s.toml:2:6: unknown variant `pol`"),
            ("[[fault]]\non = \"poll\"\ndo = \"sing\"",           "s.toml:1:1: "),
            ("[[session]]\ncopies = 100000",                      "s.toml: `copies` is 100000"),
            ("[[session]]\nrepeat = 2000000\ncalls = [{bash=\"a\"}]", "s.toml: session `session` has 2000000 steps"),
            ("a = ",                                              "s.toml:1:5"),
        ];
        for (text, want) in cases {
            let got = script(text).expect_err(text);
            assert!(got.starts_with(want), "{text}\n{got}");
        }
    }

    #[test]
    fn a_short_script_has_the_documented_defaults() {
        let script = script("[[session]]\ncalls = [{ bash = \"echo hi\" }]").expect("valid");
        let session = &script.session[0];
        assert_eq!((session.copies, session.repeat), (1, 1));
        assert_eq!((session.start, session.end), (Start::Attached, End::Terminate));
        assert_eq!(script.server.ttl_seconds, 300);
    }
}
