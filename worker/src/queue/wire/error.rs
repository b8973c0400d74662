//! The error envelope (protocol §2.7). Branches look at the status and at `error_code`, never at
//! the message, and the message is not kept: it may repeat what was sent.

use serde_json::Value;

use super::text;

/// What an error response said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ErrorBody {
    /// `error.type`.
    pub kind: Option<String>,
    /// `error.details.error_code`.
    pub code: Option<String>,
    /// `error.details.current_state` of a refused heartbeat (LEASE-6).
    pub lease: Option<ServerLease>,
}

/// The lease as the server sees it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerLease {
    pub state: Option<String>,
    pub ttl_seconds: Option<f64>,
    pub last_heartbeat: Option<String>,
    pub lease_extended: Option<bool>,
}

const WORD_BYTES_MAX: usize = 200;

/// Reads an error body; anything that is not one gives an empty answer.
pub fn parse_error(body: &[u8]) -> ErrorBody {
    let Ok(value) = serde_json::from_slice::<Value>(body) else { return ErrorBody::default() };
    let Some(error) = value.get("error") else { return ErrorBody::default() };
    let details = error.get("details").unwrap_or(&Value::Null);
    let lease = details.get("current_state").filter(|state| state.is_object());
    ErrorBody {
        kind: word(error, "type"),
        code: word(details, "error_code"),
        lease: lease.map(|lease| ServerLease {
            state: word(lease, "state"),
            ttl_seconds: lease.get("ttl_seconds").and_then(Value::as_f64),
            last_heartbeat: text(lease, "last_heartbeat"),
            lease_extended: lease.get("lease_extended").and_then(Value::as_bool),
        }),
    }
}

/// An identifier of the vocabulary; other text is not kept, it could be content.
fn word(value: &Value, member: &str) -> Option<String> {
    text(value, member).filter(|word| {
        word.len() <= WORD_BYTES_MAX
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_body_is_read_without_its_message() {
        let body = br#"{"type":"error","error":{"type":"invalid_request_error","message":"secret",
            "details":{"error_code":"heartbeat_precondition_failed","current_state":
            {"state":"active","ttl_seconds":300,"last_heartbeat":"a+b","lease_extended":false}}}}"#;
        let read = parse_error(body);
        assert_eq!(read.kind.as_deref(), Some("invalid_request_error"));
        assert_eq!(read.code.as_deref(), Some("heartbeat_precondition_failed"));
        assert_eq!(read.lease.as_ref().and_then(|l| l.last_heartbeat.as_deref()), Some("a+b"));
        assert!(!format!("{read:?}").contains("secret"));
    }

    #[test]
    fn any_other_body_is_no_failure() {
        // API-5.
        for body in ["", "null", "[]", "<html>", r#"{"error":7}"#, r#"{"error":{"type":"a b"}}"#] {
            assert_eq!(parse_error(body.as_bytes()), ErrorBody::default(), "{body}");
        }
    }
}
