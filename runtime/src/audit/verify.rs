//! Reads a log from its first byte to its last and says whether it is what the worker wrote.
//!
//! Needs no key and no other file. Memory is bounded by the longest line. What it cannot see is in
//! `docs/audit.md`: records missing at the end, and a log that was rewritten as a whole.

use std::io::{self, BufRead, BufReader, Read};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use super::line::{self, LINE_BYTES_MAX, Line};
use super::value::{Digest, Fingerprint};

/// Most repairs that are listed one by one.
const REPAIRS_MAX: usize = 100;

/// The first place at which a log is not what the worker wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// A write that was cut off, and its repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repair {
    /// The line of the repair, from 1.
    pub line: u64,
    /// Its number.
    pub seq: u64,
    /// Bytes of the cut-off write.
    pub torn_bytes: u64,
}

/// What a log is found to be.
#[derive(Debug, Clone, Default)]
pub struct Verification {
    /// Lines that are good records.
    pub records: u64,
    /// Number of the first record.
    pub first_seq: Option<u64>,
    /// Number of the last record.
    pub last_seq: Option<u64>,
    /// Time of the first record.
    pub first_time: Option<SystemTime>,
    /// Time of the last record.
    pub last_time: Option<SystemTime>,
    /// Digest of the last record's line: note it elsewhere to notice later that the end is missing.
    pub head: Option<Digest>,
    /// Places at which numbers are missing.
    pub gaps: u64,
    /// Bad lines, and good ones in the wrong place.
    pub bad_lines: u64,
    /// Times at which the clock went back from one record to the next. Not a fault of the log.
    pub clock_steps_back: u64,
    /// How many writes were cut off and repaired.
    pub repairs_count: u64,
    /// The first of them.
    pub repairs: Vec<Repair>,
    /// The first thing that is wrong; `None` if the log verifies.
    pub problem: Option<Problem>,
}

/// A record that must be in the log, because it was noted elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expectation {
    /// SHA-256 of its line.
    pub digest: Digest,
}

/// Reads all of `log`. With `expect`, a log without that record does not verify.
///
/// # Errors
/// If it cannot be read. That it is not good is no error: see [`Verification::problem`].
pub fn verify(log: &mut dyn Read, expect: Option<Expectation>) -> io::Result<Verification> {
    verify_each(log, expect, &mut |_| {})
}

/// As [`verify`], and hands every line that is a good record by itself to `each`, without its line
/// break. Whether the log is good is known only at the end.
///
/// # Errors
/// As of [`verify`].
pub fn verify_each(
    log: &mut dyn Read,
    expect: Option<Expectation>,
    each: &mut dyn FnMut(&[u8]),
) -> io::Result<Verification> {
    let mut reader = Reader { lines: BufReader::with_capacity(1 << 16, log), buffer: Vec::new() };
    let mut state = State::default();
    while let Some(found) = reader.next()? {
        state.line_number += 1;
        match found {
            Found::TooLong => state.too_long(),
            Found::Line { complete } => {
                let line = &reader.buffer;
                state.seen_expected |= expect.is_some_and(|e| e.digest == Digest::of(line));
                if state.line(line, complete) {
                    each(line);
                }
            }
        }
    }
    Ok(state.finish(expect))
}

struct Reader<R> {
    lines: BufReader<R>,
    buffer: Vec<u8>,
}

enum Found {
    Line { complete: bool },
    TooLong,
}

impl<R: Read> Reader<R> {
    /// The next line is in the buffer afterwards, without its line break; `None` at the end.
    fn next(&mut self) -> io::Result<Option<Found>> {
        self.buffer.clear();
        let bound = LINE_BYTES_MAX as u64 + 1;
        let read = (&mut self.lines).take(bound).read_until(b'\n', &mut self.buffer)?;
        if read == 0 {
            return Ok(None);
        }
        let complete = self.buffer.last() == Some(&b'\n');
        if complete {
            self.buffer.pop();
        } else if self.buffer.len() > LINE_BYTES_MAX {
            self.lines.skip_until(b'\n')?;
            return Ok(Some(Found::TooLong));
        }
        Ok(Some(Found::Line { complete }))
    }
}

#[derive(Default)]
struct State {
    result: Verification,
    line_number: u64,
    seen_expected: bool,
    /// Bad lines that a repair on the next line may explain.
    torn: Option<Torn>,
}

struct Torn {
    first_line: u64,
    lines: u64,
    reason: String,
    bytes: u64,
    hasher: Sha256,
}

impl State {
    fn problem(&mut self, line: u64, reason: String) {
        self.result.bad_lines += 1;
        if self.result.problem.as_ref().is_none_or(|first| line < first.line) {
            self.result.problem = Some(Problem { line, reason });
        }
    }

    fn too_long(&mut self) {
        self.give_up_torn();
        self.problem(self.line_number, format!("the line is longer than {LINE_BYTES_MAX} bytes"));
    }

    /// Returns whether it is a good record by itself.
    fn line(&mut self, line: &[u8], complete: bool) -> bool {
        match line::check(line) {
            Ok(good) => {
                self.record(&good);
                if !complete {
                    let reason = "the last line has no line break: its write was cut off";
                    self.problem(self.line_number, reason.to_owned());
                }
                return true;
            }
            Err(bad) if complete => self.perhaps_torn(line, bad.to_string()),
            Err(bad) => {
                let reason = format!(
                    "{bad}; it is the last one and has no line break: a write was \
                                      cut off, and the worker repairs that when it starts"
                );
                self.give_up_torn();
                self.problem(self.line_number, reason);
            }
        }
        false
    }

    fn perhaps_torn(&mut self, line: &[u8], reason: String) {
        if let Some(torn) = &mut self.torn {
            torn.hasher.update(b"\n");
            torn.hasher.update(line);
            torn.bytes += 1 + line.len() as u64;
            torn.lines += 1;
        } else {
            let (bytes, first_line) = (line.len() as u64, self.line_number);
            let hasher = Sha256::new_with_prefix(line);
            self.torn = Some(Torn { first_line, lines: 1, reason, bytes, hasher });
        }
    }

    /// The bad lines before this one are just that.
    fn give_up_torn(&mut self) {
        if let Some(torn) = self.torn.take() {
            self.problem(torn.first_line, torn.reason);
            self.result.bad_lines += torn.lines - 1;
        }
    }

    fn record(&mut self, line: &Line) {
        let number = self.line_number;
        self.repair(line);
        let result = &self.result;
        let expected = result.last_seq.map_or(1, |last| last.saturating_add(1));
        let previous = result.head.unwrap_or(Digest::NONE);
        let found = line.place.seq;
        let wrong = if found > expected {
            self.result.gaps += 1;
            Some(format!("records {expected} to {} are missing before it", found - 1))
        } else if found < expected {
            Some(format!("it is record {found}, where {expected} belongs"))
        } else if line.place.previous != previous {
            Some("the line before it is not the one it was written after".to_owned())
        } else {
            None
        };
        if let Some(reason) = wrong {
            self.problem(number, reason);
        }
        let result = &mut self.result;
        result.records += 1;
        if result.last_time.is_some_and(|last| line.time < last) {
            result.clock_steps_back += 1;
        }
        result.first_seq.get_or_insert(found);
        result.first_time.get_or_insert(line.time);
        result.last_seq = Some(found);
        result.last_time = Some(line.time);
        result.head = Some(line.digest);
    }

    /// Compares what stands before a good line with what it says about it.
    fn repair(&mut self, line: &Line) {
        let number = self.line_number;
        let Some(said) = line.repairs else { return self.give_up_torn() };
        let before = self.torn.as_ref().map_or_else(
            || Fingerprint::of(b""),
            |torn| Fingerprint { bytes: torn.bytes, sha256: Digest::finish(torn.hasher.clone()) },
        );
        if before != said {
            self.give_up_torn();
            let reason = format!(
                "it repairs a write of {} bytes, and other bytes stand before it",
                said.bytes
            );
            return self.problem(number, reason);
        }
        self.torn = None;
        self.result.repairs_count += 1;
        if self.result.repairs.len() < REPAIRS_MAX {
            let (seq, torn_bytes) = (line.place.seq, said.bytes);
            self.result.repairs.push(Repair { line: number, seq, torn_bytes });
        }
    }

    fn finish(mut self, expect: Option<Expectation>) -> Verification {
        self.give_up_torn();
        if self.result.records == 0 && self.result.problem.is_none() {
            self.problem(1, "the log holds no record".to_owned());
        }
        if let Some(Expectation { digest }) = expect
            && !self.seen_expected
        {
            let last = self.line_number + 1;
            self.problem(last, format!("the log does not hold the record {digest}"));
        }
        self.result
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
