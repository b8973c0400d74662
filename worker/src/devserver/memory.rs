//! Memory stores (§2.6): a list of texts by path, with preconditions on their digest.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use unicode_normalization::is_nfc;

use super::clock::{Clock, Micros};
use super::http::Ask;
use super::reply::Reply;
use super::script::StoreScript;

const CONTENT_MAX: usize = 102_400;
/// Memories on a page unless the request asks for another number.
const PAGE_DEFAULT: usize = 20;
const PATH_MAX: usize = 1024;
const SEGMENTS_MAX: usize = 20;

/// One text.
#[derive(Debug)]
struct Memory {
    id: String,
    path: String,
    content: String,
    version: u64,
    created_at: Micros,
    updated_at: Micros,
}

/// One store.
#[derive(Debug)]
pub struct Store {
    id: String,
    memories: BTreeMap<String, Memory>,
    made: u64,
    expect: Option<BTreeMap<String, String>>,
}

/// What another writer does to a store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Meddling {
    /// Paths and their new texts.
    pub put: BTreeMap<String, String>,
    /// Paths of memories that are deleted.
    pub remove: Vec<String>,
}

impl Store {
    pub fn new(script: &StoreScript, now: Micros) -> Store {
        let mut store = Store {
            id: script.id.clone(),
            memories: BTreeMap::new(),
            made: 0,
            expect: script.expect.clone(),
        };
        for (path, content) in &script.memories {
            store.insert(path.clone(), content.clone(), now);
        }
        store
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Paths and texts, for control endpoints.
    pub fn contents(&self) -> BTreeMap<&str, &str> {
        let each = self.memories.values();
        each.map(|memory| (memory.path.as_str(), memory.content.as_str())).collect()
    }

    /// Another writer changes it.
    pub fn meddle(&mut self, with: &Meddling, now: Micros) {
        self.memories.retain(|_, memory| !with.remove.contains(&memory.path));
        for (path, content) in &with.put {
            let known = self.at_path(path).map(|memory| memory.id.clone());
            match known.and_then(|id| self.memories.get_mut(&id)) {
                Some(memory) => {
                    content.clone_into(&mut memory.content);
                    memory.version += 1;
                    memory.updated_at = now;
                }
                None => drop(self.insert(path.clone(), content.clone(), now)),
            }
        }
    }

    /// What differs from what the script expects at the end: paths, not texts.
    pub fn differences(&self) -> Vec<String> {
        let Some(expect) = &self.expect else { return Vec::new() };
        let have = self.contents();
        let mut wrong = Vec::new();
        for (path, text) in expect {
            match have.get(path.as_str()) {
                None => wrong.push(format!("memory store {}: {path} is missing", self.id)),
                Some(found) if found != text => {
                    wrong.push(format!("memory store {}: {path} has another text", self.id));
                }
                Some(_) => {}
            }
        }
        let extra = have.keys().filter(|path| !expect.contains_key(**path));
        wrong.extend(extra.map(|path| format!("memory store {}: {path} is not expected", self.id)));
        wrong
    }

    fn insert(&mut self, path: String, content: String, now: Micros) -> String {
        self.made += 1;
        let id = format!("mem_{:06}", self.made);
        let memory =
            Memory { id: id.clone(), path, content, version: 1, created_at: now, updated_at: now };
        self.memories.insert(id.clone(), memory);
        id
    }

    fn at_path(&self, path: &str) -> Option<&Memory> {
        self.memories.values().find(|memory| memory.path == path)
    }

    fn show(&self, id: &str, full: bool, clock: &Clock) -> Value {
        let Some(memory) = self.memories.get(id) else { return Value::Null };
        json!({
            "type": "memory",
            "id": memory.id,
            "memory_store_id": self.id,
            "memory_version_id": format!("memver_{}_{}", memory.id, memory.version),
            "path": memory.path,
            "content": full.then_some(&memory.content),
            "content_sha256": digest(&memory.content),
            "content_size_bytes": memory.content.len(),
            "created_at": clock.stamp(memory.created_at),
            "updated_at": clock.stamp(memory.updated_at),
        })
    }

    /// E-MLIST
    pub fn list(&self, ask: &Ask, clock: &Clock) -> Reply {
        let full = match view(ask, "basic") {
            Ok(full) => full,
            Err(reply) => return reply,
        };
        let most = if full { 20 } else { 100 };
        let limit = ask.number("limit").unwrap_or(Ok(PAGE_DEFAULT));
        let Ok(limit @ 1..) = limit else {
            return Reply::error(400, "`limit` is no positive number");
        };
        if limit > most {
            return Reply::error(400, "`limit` is above what this view allows");
        }
        let prefix = ask.query("path_prefix").unwrap_or("");
        let from: usize =
            match ask.query("page").map(|page| page.trim_start_matches("mempage_").parse()) {
                None => 0,
                Some(Ok(from)) => from,
                Some(Err(_)) => return Reply::error(400, "`page` is no cursor of this list"),
            };
        let mut sorted: Vec<&Memory> =
            self.memories.values().filter(|memory| memory.path.starts_with(prefix)).collect();
        sorted.sort_by(|a, b| a.path.cmp(&b.path));
        let depth = ask.number("depth").and_then(Result::ok);
        let mut entries: Vec<Value> = Vec::new();
        for memory in sorted {
            let rest = &memory.path[prefix.len()..];
            let parts: Vec<&str> = rest.trim_start_matches('/').split('/').collect();
            match depth {
                Some(depth) if parts.len() > depth.max(1) => {
                    let kept = memory.path.len() - parts[depth.max(1)..].join("/").len();
                    let entry = json!({"type": "memory_prefix", "path": memory.path[..kept]});
                    if entries.last() != Some(&entry) {
                        entries.push(entry);
                    }
                }
                _ => entries.push(self.show(&memory.id, full, clock)),
            }
        }
        let end = from.saturating_add(limit);
        let next = (end < entries.len()).then(|| format!("mempage_{end}"));
        let data: Vec<Value> = entries.into_iter().skip(from).take(limit).collect();
        Reply::json(&json!({"data": data, "next_page": next}))
    }

    /// E-MGET
    pub fn get(&self, ask: &Ask, clock: &Clock) -> Reply {
        match view(ask, "full") {
            Ok(full) if self.memories.contains_key(ask.id(1)) => {
                Reply::json(&self.show(ask.id(1), full, clock))
            }
            Ok(_) => Reply::error(404, "there is no such memory"),
            Err(reply) => reply,
        }
    }

    /// E-MNEW
    pub fn create(&mut self, ask: &Ask, clock: &Clock) -> Reply {
        let Ok(full) = view(ask, "basic") else { return Reply::error(400, "`view` is unknown") };
        let body = ask.json();
        let (Some(path), Some(content)) = (body["path"].as_str(), body["content"].as_str()) else {
            return Reply::error(400, "`path` and `content` are required");
        };
        if let Some(reply) = refused(Some(path), Some(content)) {
            return reply;
        }
        if self.at_path(path).is_some() {
            let details = json!({"error_code": "memory_path_conflict"});
            return Reply::error_with(409, "the path is taken", &details);
        }
        let id = self.insert(path.to_owned(), content.to_owned(), clock.now());
        Reply::json(&self.show(&id, full, clock))
    }

    /// E-MUPD, MEMAPI-2
    pub fn update(&mut self, ask: &Ask, clock: &Clock) -> Reply {
        let Ok(full) = view(ask, "basic") else { return Reply::error(400, "`view` is unknown") };
        let body = ask.json();
        let (path, content) = (body["path"].as_str(), body["content"].as_str());
        if let Some(reply) = refused(path, content) {
            return reply;
        }
        let taken =
            path.and_then(|path| self.at_path(path)).is_some_and(|other| other.id != ask.id(1));
        let Some(memory) = self.memories.get_mut(ask.id(1)) else {
            return Reply::error(404, "there is no such memory");
        };
        let same = path.is_none_or(|path| path == memory.path)
            && content.is_none_or(|content| content == memory.content);
        let wanted = body["precondition"]["content_sha256"].as_str();
        let stale = wanted.is_some_and(|wanted| wanted != digest(&memory.content));
        if stale && !same {
            let details = json!({"error_code": "memory_precondition_failed"});
            return Reply::error_with(409, "the memory has changed", &details);
        }
        if taken {
            let details = json!({"error_code": "memory_path_conflict"});
            return Reply::error_with(409, "the path is taken", &details);
        }
        if !same {
            path.unwrap_or(&memory.path.clone()).clone_into(&mut memory.path);
            content.unwrap_or(&memory.content.clone()).clone_into(&mut memory.content);
            memory.version += 1;
            memory.updated_at = clock.now();
        }
        Reply::json(&self.show(ask.id(1), full, clock))
    }

    /// E-MDEL
    pub fn delete(&mut self, ask: &Ask) -> Reply {
        let Some(memory) = self.memories.get(ask.id(1)) else {
            return Reply::error(404, "there is no such memory");
        };
        let wanted = ask.query("expected_content_sha256");
        if wanted.is_some_and(|wanted| wanted != digest(&memory.content)) {
            let details = json!({"error_code": "memory_precondition_failed"});
            return Reply::error_with(409, "the memory has changed", &details);
        }
        self.memories.remove(ask.id(1));
        Reply::json(&json!({"id": ask.id(1), "type": "memory_deleted"}))
    }
}

/// Which page of a listing a request is for, counted from 1.
pub fn page_number(ask: &Ask) -> usize {
    let from = ask.query("page").and_then(|page| page.trim_start_matches("mempage_").parse().ok());
    let limit = ask.number("limit").and_then(Result::ok).unwrap_or(PAGE_DEFAULT);
    from.unwrap_or(0) / limit.max(1) + 1
}

fn view(ask: &Ask, default: &str) -> Result<bool, Reply> {
    match ask.query("view").unwrap_or(default) {
        "full" => Ok(true),
        "basic" => Ok(false),
        _ => Err(Reply::error(400, "`view` is `basic` or `full`")),
    }
}

fn digest(content: &str) -> String {
    Sha256::digest(content.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// MEMAPI-1
fn refused(path: Option<&str>, content: Option<&str>) -> Option<Reply> {
    if content.is_some_and(|content| content.len() > CONTENT_MAX) {
        return Some(Reply::error(413, "the content is above 102400 bytes"));
    }
    let bad = path.is_some_and(|path| !valid(path));
    bad.then(|| Reply::error(400, "the path is not valid"))
}

fn valid(path: &str) -> bool {
    let Some(inner) = path.strip_prefix('/') else { return false };
    let segments: Vec<&str> = inner.split('/').collect();
    let invisible = |c: char| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2064}' | '\u{2066}'..='\u{206f}' | '\u{feff}')
    };
    path.len() <= PATH_MAX
        && segments.len() <= SEGMENTS_MAX
        && segments.iter().all(|part| !matches!(*part, "" | "." | ".."))
        && !path.chars().any(invisible)
        && is_nfc(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    // MEMAPI-1
    #[test]
    fn paths_of_memories_are_checked() {
        let deep = "/a".repeat(21);
        let long = format!("/{}", "a".repeat(1024));
        #[rustfmt::skip]
        let cases = [
            ("/a.md", true), ("/a/b c.md", true), ("a", false), ("/", false), ("/a//b", false),
            ("/a/../b", false), ("/./a", false), ("/a\n", false), ("/a\u{2028}b", false),
            ("/e\u{301}", false), ("/\u{e9}", true), (&deep, false), (&deep[2..], true), (&long, false),
        ];
        for (path, want) in cases {
            assert_eq!(valid(path), want, "{path:?}");
        }
    }
}
