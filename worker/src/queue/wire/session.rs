//! The session as a worker reads it (protocol §2.3): fetched once per work item and shared
//! (SESS-4). Tools and permission policies of the model are not read (SESS-1).

use std::collections::BTreeMap;

use serde_json::Value;

use super::text;

/// Snapshot of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub id: String,
    pub status: SessionStatus,
    pub metadata: BTreeMap<String, String>,
    pub skills: Vec<SkillRef>,
    pub memory_stores: Vec<MemoryStoreRef>,
}

/// `status`, as far as a worker tells values apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionStatus {
    Idle,
    Running,
    Rescheduling,
    /// Also an archived session (SESS-2).
    Terminated,
    Unknown,
}

/// An entry of `agent.skills`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkillRef {
    pub kind: String,
    pub skill_id: String,
    /// A version id or `latest`.
    pub version: String,
}

/// An entry of `resources` with type `memory_store`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryStoreRef {
    pub memory_store_id: String,
    pub access: Option<String>,
    pub mount_path: Option<String>,
    pub name: Option<String>,
}

/// Entries of one list that are read; the server's own limits are far lower.
const ENTRIES_MAX: usize = 1000;

/// Reads a session; `None` if the body is not an object. `id` is the one that was asked for.
pub fn parse_session(id: &str, body: &[u8]) -> Option<Session> {
    let value: Value = serde_json::from_slice(body).ok()?;
    value.as_object()?;
    let status = match value.get("status").and_then(Value::as_str) {
        Some("idle") => SessionStatus::Idle,
        Some("running") => SessionStatus::Running,
        Some("rescheduling") => SessionStatus::Rescheduling,
        Some("terminated") => SessionStatus::Terminated,
        _ => SessionStatus::Unknown,
    };
    let skills = list(value.get("agent").and_then(|agent| agent.get("skills")));
    let stores = list(value.get("resources"));
    Some(Session {
        id: id.to_owned(),
        status,
        metadata: metadata(&value),
        skills: skills.filter_map(skill).collect(),
        memory_stores: stores.filter_map(memory_store).collect(),
    })
}

/// The `metadata` member; values that are not text do not count.
pub(super) fn metadata(value: &Value) -> BTreeMap<String, String> {
    let members = value.get("metadata").and_then(Value::as_object);
    let pairs = members.into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten().take(ENTRIES_MAX)
}

fn skill(value: &Value) -> Option<SkillRef> {
    Some(SkillRef {
        kind: text(value, "type").unwrap_or_default(),
        skill_id: text(value, "skill_id")?,
        version: version(value).unwrap_or_else(|| "latest".to_owned()),
    })
}

/// An epoch version may come as a number (UNK-1): taken for `latest` it would be another version.
fn version(value: &Value) -> Option<String> {
    let number = || value.get("version")?.as_u64().map(|number| number.to_string());
    text(value, "version").or_else(number)
}

fn memory_store(value: &Value) -> Option<MemoryStoreRef> {
    (value.get("type").and_then(Value::as_str) == Some("memory_store")).then_some(())?;
    Some(MemoryStoreRef {
        memory_store_id: text(value, "memory_store_id")?,
        access: text(value, "access"),
        mount_path: text(value, "mount_path"),
        name: text(value, "name"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_read_as_far_as_a_worker_needs_it() {
        // SESS-1, API-5.
        let body = br#"{"type":"session","status":"terminated","metadata":{"a":"b"},"future":{},
            "agent":{"skills":[{"type":"custom","skill_id":"skill_1"},{"type":"custom"},7]},
            "resources":[{"type":"memory_store","memory_store_id":"memstore_1","access":null,
              "mount_path":"/mnt/memory/x"},{"type":"file","mount_path":"/f"}]}"#;
        let session = parse_session("sesn_1", body).expect("a session");
        assert_eq!(session.status, SessionStatus::Terminated);
        assert_eq!(session.skills.len(), 1);
        assert_eq!(session.skills[0].version, "latest");
        assert_eq!(session.memory_stores.len(), 1);
        assert_eq!(session.memory_stores[0].access, None);
    }

    #[test]
    fn a_skill_version_may_be_a_number() {
        // UNK-1.
        let body = br#"{"agent":{"skills":[{"skill_id":"s","version":1759178010641129}]}}"#;
        let session = parse_session("sesn_1", body).expect("a session");
        assert_eq!(session.skills[0].version, "1759178010641129");
    }

    #[test]
    fn an_unknown_status_is_no_failure() {
        // API-5.
        let session = parse_session("s", br#"{"status":"dreaming"}"#).expect("a session");
        assert_eq!(session.status, SessionStatus::Unknown);
        assert_eq!(parse_session("s", b"[]"), None);
    }
}
