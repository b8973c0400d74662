//! Session events (protocol §2.4): what of them a worker acts on. The input of a call is kept as
//! the bytes that were sent.

use std::fmt;

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// Which of the two kinds of call this is; decides the type of its result (EV-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallKind {
    /// `agent.tool_use`
    Builtin,
    /// `agent.custom_tool_use`
    Custom,
}

/// One tool call, as dispatched.
#[derive(Clone)]
pub struct Call {
    pub id: String,
    pub kind: CallKind,
    pub name: String,
    /// Raw JSON of `input`; `{}` if there was none. Never logged.
    pub input: Box<RawValue>,
    /// The thread it belongs to; none is the primary thread.
    pub thread: Option<String>,
    /// What the server decided about it (PERM-1).
    pub permission: Permission,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("name", &self.name)
            .field("input_bytes", &self.input.get().len())
            .field("thread", &self.thread)
            .field("permission", &self.permission)
            .finish()
    }
}

/// `evaluated_permission`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Permission {
    /// Absent or null: not gated (PERM-3).
    #[default]
    None,
    Allow,
    Ask,
    Deny,
    /// A value of the future: held like `ask` (PERM-4).
    Unknown,
}

/// `result` of a confirmation. Whatever is not `allow` is a denial (PERM-5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    Deny,
}

/// One event.
#[derive(Debug, Clone)]
pub enum Event {
    Call(Call),
    /// A result of this call is on the server, whoever posted it.
    Answered(String),
    Confirmation {
        call: String,
        verdict: Verdict,
    },
    /// `session.status_idle`; whether it ends the turn (IDLE-1).
    Idle {
        ends_turn: bool,
    },
    /// `session.status_terminated`, `session.deleted`.
    SessionEnded,
    Thread {
        id: Option<String>,
        terminated: bool,
    },
    /// Counts for nothing but the idle clock; `true` if it is only telemetry (IDLE-10).
    Other {
        telemetry: bool,
    },
}

impl Event {
    /// Whether the idle clock ignores it (protocol §5.7).
    pub fn is_neutral(&self) -> bool {
        matches!(self, Event::Confirmation { .. } | Event::Thread { terminated: true, .. })
    }

    /// Whether it ends the turn (IDLE-1).
    pub fn ends_turn(&self) -> bool {
        matches!(self, Event::Idle { ends_turn: true })
    }

    /// Whether it says nothing about activity (IDLE-10).
    pub fn is_telemetry(&self) -> bool {
        matches!(self, Event::Other { telemetry: true })
    }
}

#[derive(Deserialize)]
struct Members {
    #[serde(default, rename = "type", deserialize_with = "lenient")]
    kind: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    id: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    name: Option<String>,
    #[serde(default)]
    input: Option<Box<RawValue>>,
    #[serde(default)]
    evaluated_permission: Value,
    #[serde(default, deserialize_with = "lenient")]
    session_thread_id: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    tool_use_id: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    custom_tool_use_id: Option<String>,
    #[serde(default)]
    result: Value,
    #[serde(default)]
    stop_reason: Value,
}

/// An object and nothing else: serde would read an array into a structure as well.
pub fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, serde_json::Error> {
    match json.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => serde_json::from_slice(json),
        _ => Err(serde::de::Error::custom("not an object")),
    }
}

/// Text that is not empty; anything else counts as absent.
fn lenient<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::String(text) if !text.is_empty() => Some(text),
        _ => None,
    })
}

/// Reads one event. An object of any type is an event (API-5).
///
/// # Errors
/// Only what is not a JSON object (SSE-5).
pub fn parse_event(json: &[u8]) -> Result<Event, serde_json::Error> {
    let members: Members = object(json)?;
    let other = Event::Other { telemetry: false };
    let Some(kind) = members.kind.clone() else { return Ok(other) };
    Ok(match kind.as_str() {
        "agent.tool_use" => call(members, CallKind::Builtin).map_or(other, Event::Call),
        "agent.custom_tool_use" => call(members, CallKind::Custom).map_or(other, Event::Call),
        // RUN-7: the last one is a builtin that the server ran itself.
        "user.tool_result" | "agent.tool_result" => {
            members.tool_use_id.map_or(other, Event::Answered)
        }
        "user.custom_tool_result" => members.custom_tool_use_id.map_or(other, Event::Answered),
        "user.tool_confirmation" => {
            let allowed = members.result.as_str() == Some("allow");
            let verdict = if allowed { Verdict::Allow } else { Verdict::Deny };
            let call = members.tool_use_id.unwrap_or_default();
            Event::Confirmation { call, verdict }
        }
        "session.status_idle" => {
            let reason = members.stop_reason.get("type").and_then(Value::as_str);
            Event::Idle { ends_turn: reason != Some("requires_action") }
        }
        "session.status_terminated" | "session.deleted" => Event::SessionEnded,
        "session.usage" | "session.updated" | "event_start" | "event_delta" => {
            Event::Other { telemetry: true }
        }
        kind if kind.starts_with("span.") => Event::Other { telemetry: true },
        kind if kind.starts_with("session.thread_status_") => Event::Thread {
            id: members.session_thread_id,
            terminated: kind == "session.thread_status_terminated",
        },
        _ => other,
    })
}

fn call(members: Members, kind: CallKind) -> Option<Call> {
    let permission = match &members.evaluated_permission {
        Value::Null => Permission::None,
        Value::String(word) => match word.as_str() {
            "allow" => Permission::Allow,
            "ask" => Permission::Ask,
            "deny" => Permission::Deny,
            _ => Permission::Unknown,
        },
        _ => Permission::Unknown,
    };
    Some(Call {
        id: members.id?,
        kind,
        name: members.name.unwrap_or_default(),
        input: members.input.unwrap_or_else(empty_object),
        thread: members.session_thread_id,
        permission,
    })
}

fn empty_object() -> Box<RawValue> {
    RawValue::from_string("{}".to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// One page of history.
#[derive(Debug)]
pub struct Page {
    pub events: Vec<Event>,
    /// Cursor of the next page; none at the end (API-4).
    pub next: Option<String>,
}

/// Reads a page of E-EVLIST.
///
/// # Errors
/// A body that is not a page, or an entry that is not an object.
pub fn parse_page(body: &[u8]) -> Result<Page, serde_json::Error> {
    #[derive(Deserialize)]
    struct Raw<'a> {
        #[serde(borrow)]
        data: Vec<&'a RawValue>,
        #[serde(default, deserialize_with = "lenient")]
        next_page: Option<String>,
    }
    let raw: Raw<'_> = object(body)?;
    let events = raw.data.iter().map(|event| parse_event(event.get().as_bytes()));
    Ok(Page { events: events.collect::<Result<_, _>>()?, next: raw.next_page })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(json: &str) -> Event {
        parse_event(json.as_bytes()).expect(json)
    }

    #[test]
    fn the_input_of_a_call_is_passed_through_untouched() {
        let json = r#"{"type":"agent.tool_use","id":"t","name":"bash","input":{ "b":1.50, "a":"\ud83d\u00e9\ud800" }}"#;
        let Event::Call(call) = event(json) else { panic!("not a call") };
        assert_eq!(call.input.get(), r#"{ "b":1.50, "a":"\ud83d\u00e9\ud800" }"#);
        assert!(!format!("{call:?}").contains("ud83d"), "INV-12");
    }

    #[test]
    fn permissions_are_read_and_unknown_ones_stay_unknown() {
        // PERM-1..4.
        for (text, want) in [
            ("", Permission::None),
            (r#","evaluated_permission":null"#, Permission::None),
            (r#","evaluated_permission":"allow""#, Permission::Allow),
            (r#","evaluated_permission":"ask""#, Permission::Ask),
            (r#","evaluated_permission":"deny""#, Permission::Deny),
            (r#","evaluated_permission":"maybe""#, Permission::Unknown),
            (r#","evaluated_permission":7"#, Permission::Unknown),
        ] {
            for kind in ["agent.tool_use", "agent.custom_tool_use"] {
                let json = format!(r#"{{"type":"{kind}","id":"t","name":"bash"{text}}}"#);
                let Event::Call(call) = event(&json) else { panic!("not a call") };
                assert_eq!(call.permission, want, "{json}");
            }
        }
    }

    #[test]
    fn only_requires_action_leaves_the_turn_open() {
        // IDLE-1.
        for (reason, ends) in [
            (r#","stop_reason":{"type":"end_turn"}"#, true),
            (r#","stop_reason":{"type":"requires_action","event_ids":["t"]}"#, false),
            (r#","stop_reason":{"type":"retries_exhausted"}"#, true),
            (r#","stop_reason":{"type":"of_the_future"}"#, true),
            (r#","stop_reason":null"#, true),
            ("", true),
        ] {
            let json = format!(r#"{{"type":"session.status_idle","id":"e"{reason}}}"#);
            assert_eq!(event(&json).ends_turn(), ends, "{json}");
        }
    }

    #[test]
    fn events_of_the_future_are_events() {
        // API-5.
        for json in [
            "{}",
            r#"{"type":"session.sang","id":"e"}"#,
            r#"{"type":7,"id":[]}"#,
            r#"{"type":"agent.tool_use","id":""}"#,
            r#"{"type":"user.tool_result","tool_use_id":9}"#,
        ] {
            assert!(matches!(event(json), Event::Other { telemetry: false }), "{json}");
        }
        assert!(event(r#"{"type":"span.model_request_start"}"#).is_telemetry());
        assert!(parse_event(b"[]").is_err());
        assert!(parse_event(b"{").is_err());
    }

    #[test]
    fn results_of_every_kind_answer_their_call() {
        // RUN-2, RUN-7.
        for json in [
            r#"{"type":"user.tool_result","tool_use_id":"t"}"#,
            r#"{"type":"agent.tool_result","tool_use_id":"t"}"#,
            r#"{"type":"user.custom_tool_result","custom_tool_use_id":"t"}"#,
        ] {
            assert!(matches!(event(json), Event::Answered(id) if id == "t"), "{json}");
        }
    }

    #[test]
    fn a_page_may_be_empty_and_not_the_last() {
        // API-4.
        let page = parse_page(br#"{"data":[],"next_page":"p2"}"#).expect("a page");
        assert!(page.events.is_empty());
        assert_eq!(page.next.as_deref(), Some("p2"));
        for end in [r#","next_page":null"#, r#","next_page":"""#, ""] {
            let json = format!(r#"{{"data":[{{"type":"x"}}]{end}}}"#);
            assert_eq!(parse_page(json.as_bytes()).expect("a page").next, None, "{json}");
        }
        assert!(parse_page(br#"{"data":[7]}"#).is_err());
        assert!(parse_page(b"{}").is_err());
    }
}
