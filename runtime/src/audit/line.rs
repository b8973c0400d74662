//! One line of the log as bytes: how it is written and what makes it a good one by itself. Whether
//! it is the right line at its place is known to `chain` and `verify`.
//!
//! A line is one JSON object without a line break. Its last member is `hash`: the SHA-256 of the
//! same object without that member, byte for byte as written. So no canonical form of JSON is
//! needed: the bytes are taken as they stand.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::event::{Event, Ids};
use super::value::{Digest, Fingerprint};

/// Version of the format, the member `v` of each line.
pub(super) const VERSION: u32 = 1;
/// Longest line that is read.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// Longest line that is written.
pub const RECORD_BYTES_MAX: usize = 256 << 10;

/// Between the record and its hash, and behind it.
const OPEN: &[u8] = b",\"hash\":\"";
const CLOSE: &[u8] = b"\"}";
const TAIL_BYTES: usize = OPEN.len() + 64 + CLOSE.len();

#[derive(Serialize)]
struct Record<'a> {
    v: u32,
    seq: u64,
    time: &'a str,
    #[serde(flatten)]
    event: &'a Event,
    #[serde(flatten)]
    ids: &'a Ids,
    previous: Digest,
}

/// What one line says about its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub seq: u64,
    pub previous: Digest,
}

/// Appends one line, without its line break, to `buffer`; returns the line's digest.
///
/// # Errors
/// If `event` holds a value that JSON does not have.
pub(super) fn encode(
    buffer: &mut Vec<u8>,
    place: &Place,
    now: SystemTime,
    ids: &Ids,
    event: &Event,
) -> Result<Digest, serde_json::Error> {
    let start = buffer.len();
    let time = humantime::format_rfc3339_micros(now).to_string();
    let Place { seq, previous } = *place;
    let record = Record { v: VERSION, seq, time: &time, event, ids, previous };
    serde_json::to_writer(&mut *buffer, &record)?;
    let hash = Digest::of(&buffer[start..]);
    buffer.pop();
    buffer.extend_from_slice(OPEN);
    buffer.extend_from_slice(hash.to_string().as_bytes());
    buffer.extend_from_slice(CLOSE);
    Ok(Digest::of(&buffer[start..]))
}

/// A line that is good by itself.
#[derive(Debug)]
pub(super) struct Line {
    pub place: Place,
    pub time: SystemTime,
    /// Of the whole line.
    pub digest: Digest,
    /// Set if the line is a `log.repaired`.
    pub repairs: Option<Fingerprint>,
}

#[derive(Deserialize)]
struct Head<'a> {
    v: u32,
    seq: u64,
    time: &'a str,
    event: &'a str,
    previous: Digest,
    torn: Option<Fingerprint>,
}

/// Why a line is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadLine {
    #[error("the line has no hash at its end")]
    Shape,
    #[error("the line was changed: its hash is not that of its bytes")]
    Hash,
    #[error("the line is not a record: {reason}")]
    Record { reason: String },
    #[error("the line has format version {found}, and this program reads version {VERSION}")]
    Version { found: u32 },
}

/// Checks one line without its line break.
pub(super) fn check(line: &[u8]) -> Result<Line, BadLine> {
    let at = line.len().checked_sub(TAIL_BYTES).ok_or(BadLine::Shape)?;
    let (body, tail) = line.split_at(at);
    let inner = tail.strip_prefix(OPEN).and_then(|rest| rest.strip_suffix(CLOSE));
    let written = inner.and_then(|hash| std::str::from_utf8(hash).ok()?.parse::<Digest>().ok());
    let written = written.ok_or(BadLine::Shape)?;
    let hasher = Sha256::new_with_prefix(body).chain_update(b"}");
    if Digest::finish(hasher) != written {
        return Err(BadLine::Hash);
    }
    let wrong = |reason: String| BadLine::Record { reason };
    let head: Head<'_> = serde_json::from_slice(line).map_err(|error| wrong(error.to_string()))?;
    if head.v != VERSION {
        return Err(BadLine::Version { found: head.v });
    }
    let time = humantime::parse_rfc3339(head.time).map_err(|error| wrong(error.to_string()))?;
    let repairs = head.torn.filter(|_| head.event == "log.repaired");
    let place = Place { seq: head.seq, previous: head.previous };
    Ok(Line { place, time, digest: Digest::of(line), repairs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn sample() -> Vec<u8> {
        let mut line = Vec::new();
        let place = Place { seq: 7, previous: Digest::of(b"before") };
        let ids = Ids { session: Some("sesn_1".into()), ..Ids::default() };
        let now = SystemTime::UNIX_EPOCH + Duration::from_micros(1_800_000_000_123_456);
        encode(&mut line, &place, now, &ids, &Event::CallPosted {}).expect("a line");
        line
    }

    #[test]
    fn a_line_is_one_object_that_ends_with_its_hash() {
        let line = sample();
        let text = String::from_utf8(line.clone()).expect("UTF-8");
        let want = format!(
            "{{\"v\":1,\"seq\":7,\"time\":\"2027-01-15T08:00:00.123456Z\",\"event\":\"call.posted\",\
             \"session\":\"sesn_1\",\"previous\":\"{}\"",
            Digest::of(b"before")
        );
        let rest = text.strip_prefix(&want).expect(&text);
        let hash = Digest::of(format!("{want}}}").as_bytes());
        assert_eq!(rest, format!(",\"hash\":\"{hash}\"}}"));
        let read = check(&line).expect("a good line");
        assert_eq!((read.place.seq, read.digest), (7, Digest::of(&line)));
    }

    #[test]
    fn a_change_of_any_bit_is_seen() {
        let line = sample();
        for at in 0..line.len() {
            for bit in 0..8 {
                let mut changed = line.clone();
                changed[at] ^= 1 << bit;
                assert!(check(&changed).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_line_with_a_right_hash_must_still_be_a_record() {
        let hashed = |body: &str| {
            let hash = Digest::of(format!("{body}}}").as_bytes());
            check(format!("{body},\"hash\":\"{hash}\"}}").as_bytes())
        };
        assert!(matches!(hashed("{\"v\":1"), Err(BadLine::Record { .. })));
        let rest = format!(
            "\"seq\":1,\"time\":\"2027-01-15T08:00:00Z\",\"event\":\"x\",\"previous\":\"{}\"",
            Digest::NONE
        );
        assert!(hashed(&format!("{{\"v\":1,{rest}")).is_ok());
        let twice = format!("{{\"v\":1,\"seq\":2,{rest}");
        assert!(matches!(hashed(&twice), Err(BadLine::Record { .. })), "two numbers");
        assert_eq!(
            hashed(&format!("{{\"v\":9,{rest}")).expect_err("version"),
            BadLine::Version { found: 9 }
        );
        assert!(matches!(check(b""), Err(BadLine::Shape)));
    }
}
