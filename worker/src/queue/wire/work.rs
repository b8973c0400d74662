//! Work items and heartbeat answers (protocol §2.2).

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde_json::Value;

use super::super::credential::{WorkSecret, decode_secret};
use super::session::metadata;
use super::text;

/// One unit of queue work, as the poll handed it out. It cannot be read again (AUTH-13).
#[derive(Debug, Clone)]
pub struct WorkItem {
    pub id: String,
    pub kind: WorkKind,
    /// Pairs of texts; everything else in it does not count.
    pub metadata: BTreeMap<String, String>,
    /// Never printed, never serialised.
    pub secret: WorkSecret,
    /// The same as it was sent, for whoever the item is handed over to.
    pub secret_text: Option<SecretString>,
    /// The answer to the poll, byte for byte (ONWORK-3). It has the secret in it.
    pub body: SecretString,
}

impl WorkItem {
    /// The same without what only a hand-over needs: a session may last long.
    pub fn without_text(self) -> WorkItem {
        WorkItem { secret_text: None, body: SecretString::default(), ..self }
    }
}

/// What an item asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkKind {
    /// A session with this id.
    Session(String),
    /// Something to acknowledge and hand back (POLL-13); the type as sent, if there was one.
    Other(Option<String>),
}

impl WorkKind {
    /// The type as it was sent.
    pub fn name(&self) -> &str {
        match self {
            WorkKind::Session(_) => "session",
            WorkKind::Other(kind) => kind.as_deref().unwrap_or("none"),
        }
    }
}

/// A body that no poll sends (POLL-6).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkError {
    #[error("cannot read a poll response: not JSON")]
    Syntax { source: serde_json::Error },
    #[error("cannot read a poll response: neither an object nor null")]
    Shape,
}

/// Reads the body of a successful poll. `None`: the queue is empty (API-1).
///
/// # Errors
/// [`WorkError`] for what is neither a work item nor one of the spellings of "empty".
pub fn parse_poll(body: &[u8]) -> Result<Option<WorkItem>, WorkError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let value: Value =
        serde_json::from_slice(body).map_err(|source| WorkError::Syntax { source })?;
    match value {
        Value::Null => Ok(None),
        Value::Object(_) => Ok(item(&value, body)),
        _ => Err(WorkError::Shape),
    }
}

fn item(value: &Value, body: &[u8]) -> Option<WorkItem> {
    let data = value.get("data").unwrap_or(&Value::Null);
    let kind = match (text(data, "type"), text(data, "id")) {
        (Some(kind), Some(id)) if kind == "session" => WorkKind::Session(id),
        (kind, _) => WorkKind::Other(kind),
    };
    let secret = match value.get("secret") {
        None | Some(Value::Null) => WorkSecret::Absent,
        Some(Value::String(secret)) => decode_secret(secret),
        Some(_) => WorkSecret::Unusable,
    };
    let secret_text = value.get("secret").and_then(Value::as_str).filter(|text| !text.is_empty());
    Some(WorkItem {
        id: text(value, "id")?,
        kind,
        metadata: metadata(value),
        secret,
        secret_text: secret_text.map(SecretString::from),
        // JSON that was read is text.
        body: SecretString::from(std::str::from_utf8(body).unwrap_or_default()),
    })
}

/// Answer to a heartbeat.
#[derive(Debug, Clone, PartialEq)]
pub struct HeartbeatReply {
    /// Opaque; sent back unchanged (API-3).
    pub last_heartbeat: String,
    pub lease_extended: bool,
    pub state: String,
    pub ttl_seconds: f64,
}

/// Reads a heartbeat answer; `None` if it is not one, which counts as a transient failure.
pub fn parse_heartbeat(body: &[u8]) -> Option<HeartbeatReply> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let object = value.as_object()?;
    Some(HeartbeatReply {
        last_heartbeat: object.get("last_heartbeat")?.as_str()?.to_owned(),
        lease_extended: object.get("lease_extended").and_then(Value::as_bool).unwrap_or(true),
        state: text(&value, "state").unwrap_or_default(),
        ttl_seconds: object.get("ttl_seconds").and_then(Value::as_f64).unwrap_or(0.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_queue_has_many_spellings() {
        // API-1.
        for body in ["", " \n", "null", "{}", r#"{"id":""}"#, r#"{"id":null}"#, r#"{"id":3}"#] {
            assert!(parse_poll(body.as_bytes()).expect(body).is_none(), "{body}");
        }
    }

    #[test]
    fn garbage_is_an_error_and_no_crash() {
        // POLL-6.
        for body in ["<html>", "[]", "7", "\"work\"", "{"] {
            assert!(parse_poll(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn an_item_is_read_whatever_else_it_holds() {
        // API-5, POLL-13.
        let read = |body: &str| parse_poll(body.as_bytes()).expect(body).expect(body);
        let item = read(
            r#"{"type":"work","id":"work_1","environment_id":"env_1","state":"dreaming","new":[1],
                "data":{"type":"session","id":"sesn_1","more":1},"metadata":{"k":"v","n":1},
                "secret":null,"created_at":""}"#,
        );
        assert_eq!(item.kind, WorkKind::Session("sesn_1".into()));
        for (data, want) in [
            (r#","data":{"type":"healthcheck","id":"x"}"#, Some("healthcheck")),
            (r#","data":{"type":"health_check"}"#, Some("health_check")),
            (r#","data":{"type":"session"}"#, Some("session")),
            (r#","data":null"#, None),
            ("", None),
        ] {
            let item = read(&format!(r#"{{"id":"work_1"{data}}}"#));
            assert_eq!(item.kind, WorkKind::Other(want.map(str::to_owned)), "{data}");
        }
    }

    #[test]
    fn an_item_does_not_print_its_secret() {
        // AUTH-8.
        use base64::Engine as _;
        let json = r#"{"sessions_token":"sk-planted"}"#;
        let secret = base64::engine::general_purpose::URL_SAFE.encode(json);
        let body = format!(r#"{{"id":"work_1","secret":"{secret}"}}"#);
        let item = parse_poll(body.as_bytes()).expect("an item").expect("an item");
        let shown = format!("{item:?}");
        assert!(!shown.contains("planted") && !shown.contains(&secret), "{shown}");
        assert!(matches!(item.secret, WorkSecret::Token(_)));
        // ONWORK-2, ONWORK-3: what is handed over is what was sent.
        use secrecy::ExposeSecret as _;
        assert_eq!(item.body.expose_secret(), body);
        assert_eq!(item.secret_text.expect("a secret").expose_secret(), secret);
    }

    #[test]
    fn a_heartbeat_answer_may_have_an_empty_value() {
        let body =
            br#"{"last_heartbeat":"","lease_extended":true,"state":"active","ttl_seconds":300}"#;
        let reply = parse_heartbeat(body).expect("an answer");
        assert_eq!((reply.last_heartbeat.as_str(), reply.ttl_seconds), ("", 300.0));
        assert_eq!(parse_heartbeat(b"{}"), None);
        assert_eq!(parse_heartbeat(b"null"), None);
    }
}
