//! The calls of memory stores (protocol §2.6, E-MLIST to E-MDEL), typed and bounded.
//!
//! They take the sessions token of the work item and nothing else (AUTH-6), and a beta header of their
//! own (HDR-2). What an error means is read off its status, never off its text; a conflict is an answer
//! and is not asked for again.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::api::ItemApi;
use super::client::{ApiError, Reply};
use super::credential::Credential;
use super::random::{Random, request_backoff};
use super::request::{BadId, Request};

/// HDR-2.
const BETA: &str = "agent-memory-2026-07-22";
const TIMEOUT: Duration = Duration::from_secs(30);
/// Most memories on a page, with and without their content (MEM-6, MEM-14).
const FULL_PAGE: u32 = 20;
const BASIC_PAGE: u32 = 100;
/// A page of texts at their longest, every character escaped.
const FULL_BYTES_MAX: usize = 16 << 20;
/// A page of paths, or one memory.
const BYTES_MAX: usize = 4 << 20;
/// Pages of one listing, and memories on all of them; a store has 2,000 memories at most.
const PAGES_MAX: usize = 2_000;
const MEMORIES_MAX: usize = 20_000;
/// Attempts to read one page that is there.
const UNREADABLE_MAX: u32 = 3;
/// MEMAPI-1, with room for a server that allows more.
const PATH_BYTES_MAX: usize = 4096;

/// SHA-256 of a memory's text: over its exact bytes (MEMAPI-1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> ContentHash {
        ContentHash(Sha256::digest(bytes).into())
    }

    /// Its 32 bytes.
    pub fn bytes(self) -> [u8; 32] {
        self.0
    }
}

impl From<[u8; 32]> for ContentHash {
    fn from(bytes: [u8; 32]) -> ContentHash {
        ContentHash(bytes)
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot read a hash: expected 64 hexadecimal digits")]
pub struct NoHash;

impl FromStr for ContentHash {
    type Err = NoHash;

    fn from_str(text: &str) -> Result<ContentHash, NoHash> {
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(NoHash);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| NoHash)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| NoHash)?;
        }
        Ok(ContentHash(bytes))
    }
}

/// A memory as a store shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Memory {
    /// `mem_…`.
    pub id: String,
    /// As the server has it: with its leading slash.
    pub path: String,
    /// Of its text.
    pub hash: ContentHash,
    /// Only where it was asked for.
    pub content: Option<String>,
}

impl fmt::Debug for Memory {
    // INV-12: neither its text nor its name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("id", &self.id).field("hash", &self.hash).finish()
    }
}

/// Whether a listing carries texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Paths and hashes.
    Basic,
    /// Texts as well.
    Full,
}

/// One page of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryPage {
    /// Without rolled-up prefixes (MEM-14).
    pub memories: Vec<Memory>,
    /// The cursor of the next page; `None` at the end (API-4).
    pub next: Option<String>,
}

/// A call of a memory store that did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// 404: there is no such memory, or no such store.
    #[error("there is no such memory")]
    Missing,
    /// 409 or 412: the memory, or what is at its path, is not what it was taken for.
    #[error("the memory has changed")]
    Changed,
    /// 400 or 413: the store does not take this text or this path.
    #[error("the store refuses the memory")]
    Refused,
    /// Anything else; another try may help.
    #[error("cannot reach the memory store")]
    Failed {
        /// Why.
        source: ApiError,
    },
    /// A listing without an end.
    #[error("the store lists more than {MEMORIES_MAX} memories, or {PAGES_MAX} pages")]
    TooMany,
}

impl MemoryError {
    /// A word for logs, never content.
    pub fn label(&self) -> String {
        match self {
            MemoryError::Missing => "404".to_owned(),
            MemoryError::Changed => "409".to_owned(),
            MemoryError::Refused => "refused".to_owned(),
            MemoryError::Failed { source } => source.label(),
            MemoryError::TooMany => "too many memories".to_owned(),
        }
    }
}

impl From<ApiError> for MemoryError {
    fn from(source: ApiError) -> MemoryError {
        match source.status() {
            Some(404) => MemoryError::Missing,
            Some(409 | 412) => MemoryError::Changed,
            Some(400 | 413) => MemoryError::Refused,
            _ => MemoryError::Failed { source },
        }
    }
}

impl From<BadId> for MemoryError {
    fn from(error: BadId) -> MemoryError {
        MemoryError::Failed { source: error.into() }
    }
}

impl ItemApi {
    /// Whether the item has a sessions token: memory stores take nothing else (AUTH-6, MEM-2).
    pub fn has_sessions_token(&self) -> bool {
        matches!(self.credential, Credential::Session(_))
    }

    /// E-MLIST, one page.
    ///
    /// # Errors
    /// [`MemoryError`]; also for a page that is none, three times over (§0).
    pub async fn memory_page(
        &self,
        store: &str,
        view: View,
        page: Option<&str>,
    ) -> Result<MemoryPage, MemoryError> {
        let (name, limit, bytes_max) = match view {
            View::Basic => ("basic", BASIC_PAGE, BYTES_MAX),
            View::Full => ("full", FULL_PAGE, FULL_BYTES_MAX),
        };
        let mut request = of_memories(Request::get(&["memory_stores", store, "memories"])?)
            .query("view", name)
            .query("limit", &limit.to_string())
            .body_bytes_max(bytes_max);
        if let Some(page) = page {
            request = request.query("page", page);
        }
        // What cannot be read is as transient as what does not arrive, which the client asks for again.
        for attempt in 0..UNREADABLE_MAX {
            let reply = self.client.send(&self.credential, &request).await?;
            if let Ok(page) = parse_page(&reply.body) {
                return Ok(page);
            }
            if attempt + 1 < UNREADABLE_MAX {
                tokio::time::sleep(request_backoff(attempt, &Random::system())).await;
            }
        }
        Err(unreadable("a page of memories"))
    }

    /// E-MGET, with its text.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub async fn memory(&self, store: &str, id: &str) -> Result<Memory, MemoryError> {
        let request = of_memories(Request::get(&["memory_stores", store, "memories", id])?)
            .query("view", "full")
            .body_bytes_max(BYTES_MAX);
        let reply = self.client.send(&self.credential, &request).await?;
        one(&reply)
    }

    /// E-MNEW; the hash of what the store now has.
    ///
    /// # Errors
    /// [`MemoryError`]; [`MemoryError::Changed`] if the path is taken.
    pub async fn create_memory(
        &self,
        store: &str,
        path: &str,
        content: &str,
    ) -> Result<ContentHash, MemoryError> {
        let request = of_memories(Request::post(&["memory_stores", store, "memories"])?)
            .json(Bytes::from(json!({"path": path, "content": content}).to_string()));
        let reply = self.client.send(&self.credential, &request).await?;
        Ok(one(&reply)?.hash)
    }

    /// E-MUPD, only if the memory still has the text `expected`; the hash of what the store now has.
    ///
    /// # Errors
    /// [`MemoryError`]; [`MemoryError::Changed`] if it has another text (MEMAPI-2).
    pub async fn update_memory(
        &self,
        store: &str,
        id: &str,
        content: &str,
        expected: ContentHash,
    ) -> Result<ContentHash, MemoryError> {
        let precondition =
            json!({"type": "content_sha256", "content_sha256": expected.to_string()});
        let body = json!({"content": content, "precondition": precondition});
        let request = of_memories(Request::post(&["memory_stores", store, "memories", id])?)
            .json(Bytes::from(body.to_string()));
        let reply = self.client.send(&self.credential, &request).await?;
        Ok(one(&reply)?.hash)
    }

    /// E-MDEL, only if the memory still has the text `expected`.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub async fn delete_memory(
        &self,
        store: &str,
        id: &str,
        expected: ContentHash,
    ) -> Result<(), MemoryError> {
        let request = of_memories(Request::delete(&["memory_stores", store, "memories", id])?)
            .query("expected_content_sha256", &expected.to_string());
        Ok(self.client.send(&self.credential, &request).await.map(drop)?)
    }
}

/// Goes on from page to page (API-4) and stops where no listing should be so long.
#[derive(Debug, Default)]
pub struct Pages {
    pages: usize,
    memories: usize,
    next: Option<String>,
    cursors: HashSet<String>,
}

impl Pages {
    /// The cursor to ask for; `None` first.
    pub fn cursor(&self) -> Option<&str> {
        self.next.as_deref()
    }

    /// Takes a page in; whether there is another.
    ///
    /// # Errors
    /// [`MemoryError::TooMany`]; [`MemoryError::Failed`] for a cursor that was here before: it leads round
    /// in a circle, and to take it for the end would make what is missing look deleted.
    pub fn turn(&mut self, page: &mut MemoryPage) -> Result<bool, MemoryError> {
        self.pages += 1;
        self.memories += page.memories.len();
        self.next = page.next.take();
        let more = self.next.is_some();
        if self.memories > MEMORIES_MAX || (more && self.pages >= PAGES_MAX) {
            return Err(MemoryError::TooMany);
        }
        if let Some(next) = &self.next
            && !self.cursors.insert(next.clone())
        {
            return Err(unreadable("a listing that ends"));
        }
        Ok(more)
    }
}

fn of_memories(request: Request) -> Request {
    request.beta(Some(BETA)).timeout(TIMEOUT).conflict_is_final()
}

/// A memory as it is written on the wire.
#[derive(Deserialize)]
struct Wire {
    id: String,
    path: String,
    content_sha256: String,
    #[serde(default)]
    content: Option<String>,
}

fn unreadable(what: &'static str) -> MemoryError {
    MemoryError::Failed { source: ApiError::Unreadable { what } }
}

fn one(reply: &Reply) -> Result<Memory, MemoryError> {
    let wire = serde_json::from_slice(&reply.body).map_err(|_| unreadable("a memory"))?;
    memory(wire).ok_or_else(|| unreadable("a memory"))
}

fn memory(wire: Wire) -> Option<Memory> {
    let Wire { id, path, content_sha256, content } = wire;
    let hash = content_sha256.parse().ok()?;
    (!id.is_empty() && path.len() <= PATH_BYTES_MAX).then_some(Memory { id, path, hash, content })
}

fn parse_page(body: &[u8]) -> Result<MemoryPage, MemoryError> {
    #[derive(Deserialize)]
    struct Page {
        data: Vec<serde_json::Value>,
        #[serde(default)]
        next_page: Option<String>,
    }
    let wrong = || unreadable("a page of memories");
    let page: Page = serde_json::from_slice(body).map_err(|_| wrong())?;
    let mut memories = Vec::new();
    for entry in page.data {
        // Prefixes, and what future versions may list (API-5).
        if entry.get("type").and_then(serde_json::Value::as_str) != Some("memory") {
            continue;
        }
        // An entry that is left out here would look like one that was deleted.
        let wire = serde_json::from_value(entry).map_err(|_| wrong())?;
        memories.push(memory(wire).ok_or_else(wrong)?);
    }
    Ok(MemoryPage { memories, next: page.next_page.filter(|next| !next.is_empty()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_read_as_it_is_written() {
        // MEMAPI-1: over the exact bytes.
        let hash = ContentHash::of(b"alpha");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_ne!(ContentHash::of("\u{e9}".as_bytes()), ContentHash::of("e\u{301}".as_bytes()));
        for text in ["", "ab", &"g".repeat(64), &"\u{e9}".repeat(32), &"+1".repeat(32)] {
            assert_eq!(text.parse::<ContentHash>(), Err(NoHash), "{text:?}");
        }
    }

    #[test]
    fn a_page_is_read_without_prefixes_and_refused_if_a_memory_is_not_one() {
        // MEM-14, API-4, API-5.
        let hash = ContentHash::of(b"x").to_string();
        let good = json!({"type": "memory", "id": "mem_1", "path": "/a", "content_sha256": hash});
        let prefix = json!({"type": "memory_prefix", "path": "/d/"});
        let page = json!({"data": [prefix, good, {"type": "new"}], "next_page": "p2", "more": 1});
        let page = parse_page(page.to_string().as_bytes()).expect("a page");
        assert_eq!((page.memories.len(), page.next.as_deref()), (1, Some("p2")));
        assert_eq!(page.memories[0].content, None);
        for next in [json!(null), json!("")] {
            let last = json!({"data": [], "next_page": next});
            let last = parse_page(last.to_string().as_bytes()).expect("a page");
            assert_eq!(last.next, None);
        }
        let bad = json!({"type": "memory", "id": "mem_1", "path": "/a", "content_sha256": "?"});
        for body in [json!({"data": [bad]}), json!([]), json!({}), json!("<html>")] {
            assert!(parse_page(body.to_string().as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn an_error_is_told_by_its_status_and_not_by_its_words() {
        let of = |status| {
            let body = Box::default();
            MemoryError::from(ApiError::Status {
                status,
                body,
                request_id: None,
                retry_after: None,
            })
        };
        assert!(matches!(of(404), MemoryError::Missing));
        assert!(matches!(of(409), MemoryError::Changed));
        assert!(matches!(of(412), MemoryError::Changed));
        assert!(matches!(of(400), MemoryError::Refused));
        assert!(matches!(of(413), MemoryError::Refused));
        for status in [401, 403, 408, 429, 500, 529] {
            assert!(matches!(of(status), MemoryError::Failed { .. }), "{status}");
        }
    }

    #[test]
    fn a_listing_that_does_not_end_is_left() {
        // INV-11, API-4.
        let page = |next: String| MemoryPage { next: Some(next), ..MemoryPage::default() };
        let turns = |name: &dyn Fn(usize) -> String| {
            let mut pages = Pages::default();
            let mut turns = (0..=PAGES_MAX).map(|at| pages.turn(&mut page(name(at))));
            let at = turns.position(|turn| turn.is_err()).expect("an end");
            (at, pages.turn(&mut page("new".to_owned())).is_ok())
        };
        assert_eq!(turns(&|at| at.to_string()).0, PAGES_MAX - 1, "always another");
        assert_eq!(turns(&|_| "p2".to_owned()), (1, true), "the same once more");
        assert_eq!(turns(&|at| format!("p{}", at % 3)), (3, true), "in a circle");
        let mut pages = Pages::default();
        assert!(pages.turn(&mut page("p2".to_owned())).expect("another"));
        let error = pages.turn(&mut page("p2".to_owned())).expect_err("a circle");
        assert!(matches!(error, MemoryError::Failed { .. }), "transient: {error}");
        let mut empty = MemoryPage::default();
        assert!(!Pages::default().turn(&mut empty).expect("short"), "an end");
    }
}
