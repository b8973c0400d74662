//! The grep tool: lines that match a regular expression, `path:line:text`, in the order of names.
//!
//! One engine always, whatever is installed: linear in time, and it never holds an endless line.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use grep_matcher::{LineTerminator, Matcher as _};
use grep_regex::{ErrorKind, RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder, Sink, SinkMatch};
use rustix::fs::{FileType, OFlags, fstat};

use super::failure::{Failure, shortened};
use super::input::SearchInput;
use super::roots::{Place, Roots};
use super::short_lines::ShortLines;
use super::walk::{Ended, Entry, Guide, Next, walk};
use super::{FileLimits, PASSED_OVER, answer, beneath, required};
use crate::tool::ToolResult;

/// Largest compiled pattern, in bytes.
const REGEX_BYTES_MAX: usize = 16 << 20;

/// Largest cache of the matching engine, in bytes.
const REGEX_CACHE_BYTES_MAX: usize = 32 << 20;

/// A file with a NUL byte this close to its start is binary and is not searched. One further down
/// ends the search of its file.
const BINARY_WINDOW_BYTES: usize = 64 << 10;

/// Longest complaint about a pattern, in bytes.
const REASON_BYTES_MAX: usize = 1_024;

/// More cannot be added to every clock.
const WALL_TIME_MAX: Duration = Duration::from_secs(u32::MAX as u64);

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

pub fn run(input: &SearchInput, roots: &Roots, limits: &FileLimits) -> Result<ToolResult, Failure> {
    let deadline = Instant::now() + limits.grep_wall_time.min(WALL_TIME_MAX);
    let matcher = matcher(required("pattern", &input.pattern)?)?;
    let path = input.path.as_deref().filter(|path| !path.is_empty()).unwrap_or(".");
    let place = roots.find(path)?;
    let mut search = Search::new(&place, matcher, limits, deadline);
    let ended = match place.kind() {
        Some(FileType::Directory) => {
            walk(place.directory(), &place.below, (), limits.grep_entries_max, &mut search)
        }
        Some(FileType::RegularFile) => {
            search.file(Path::new(""));
            Ended::Done
        }
        Some(_) | None => Ended::Done,
    };
    search.result(ended, limits)
}

/// A pattern in which `$` matches before `\r\n` too, unless it speaks of `\r` itself.
fn matcher(pattern: &str) -> Result<RegexMatcher, Failure> {
    let mut builder = RegexMatcherBuilder::new();
    builder.multi_line(true).crlf(true);
    builder.size_limit(REGEX_BYTES_MAX).dfa_size_limit(REGEX_CACHE_BYTES_MAX);
    let built = builder.build(pattern).or_else(|error| match error.kind() {
        ErrorKind::NotAllowed(_) => builder.crlf(false).line_terminator(Some(b'\n')).build(pattern),
        _ => Err(error),
    });
    built.map_err(|error| {
        let text = error.to_string();
        // The parser draws a picture first and says what is wrong last.
        let reason = text.trim_end().rsplit('\n').next().unwrap_or_default();
        let reason = reason.trim_start_matches("error: ");
        Failure::Regex { reason: shortened(reason, REASON_BYTES_MAX) }
    })
}

/// Why a search is over before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    Output,
    Time,
}

struct Search<'s> {
    place: &'s Place<'s>,
    path: PathBuf,
    matcher: RegexMatcher,
    searcher: Searcher,
    deadline: Instant,
    hits: Hits,
    /// Start of the file that is being searched.
    window: Vec<u8>,
}

/// The output.
struct Hits {
    text: String,
    bytes_max: usize,
    line_chars_max: usize,
    cut: Option<Cut>,
    /// Of a hit that did not fit.
    dropped_bytes: usize,
}

impl<'s> Search<'s> {
    fn new(
        place: &'s Place<'s>,
        matcher: RegexMatcher,
        limits: &FileLimits,
        deadline: Instant,
    ) -> Self {
        let searcher = SearcherBuilder::new()
            .line_terminator(matcher.line_terminator().unwrap_or(LineTerminator::byte(b'\n')))
            .line_number(true)
            .bom_sniffing(false)
            .binary_detection(BinaryDetection::quit(0))
            .build();
        let hits = Hits {
            text: String::new(),
            bytes_max: limits.grep_bytes_max,
            line_chars_max: limits.grep_line_chars_max,
            cut: None,
            dropped_bytes: 0,
        };
        let window = Vec::with_capacity(BINARY_WINDOW_BYTES);
        Search { place, path: place.path(), matcher, searcher, deadline, hits, window }
    }

    /// Searches one file; one that cannot be read is passed over, what was found of it stays.
    fn file(&mut self, below: &Path) {
        // A path joined with an empty one would end in a slash, which a file must not.
        let (way, shown) = if below.as_os_str().is_empty() {
            (self.place.below.clone(), self.path.clone())
        } else {
            (self.place.below.join(below), self.path.join(below))
        };
        match self.search(&way, &shown) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                self.hits.cut = Some(Cut::Time)
            }
            Err(_) | Ok(()) => {}
        }
    }

    fn search(&mut self, way: &Path, shown: &Path) -> io::Result<()> {
        // It was a regular file a moment ago. Whatever it is now, this does not wait.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = beneath::open(self.place.directory(), way, flags)?;
        if beneath::kind(&fstat(&file)?) != FileType::RegularFile {
            return Ok(());
        }
        let mut file = File::from(file);
        self.window.clear();
        file.by_ref().take(BINARY_WINDOW_BYTES as u64).read_to_end(&mut self.window)?;
        if memchr::memchr(0, &self.window).is_some() {
            return Ok(());
        }
        let window = self.window.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&self.window);
        // Enough of a line to see that it is too long, whatever its characters.
        let line_bytes_max = self.hits.line_chars_max.saturating_add(1).saturating_mul(4);
        let lines = ShortLines::new(window.chain(file), line_bytes_max, self.deadline);
        let sink = FileHits { hits: &mut self.hits, path: shown };
        self.searcher.search_reader(&self.matcher, lines, sink)
    }

    fn result(self, ended: Ended, limits: &FileLimits) -> Result<ToolResult, Failure> {
        let Hits { mut text, cut, dropped_bytes, .. } = self.hits;
        let output_bytes = (text.len() + dropped_bytes).saturating_sub(1) as u64;
        let notice = match (cut, ended) {
            (Some(Cut::Output), _) => {
                format!("[output truncated at {} bytes]", limits.grep_bytes_max)
            }
            (Some(Cut::Time), _) if text.is_empty() => {
                return Err(Failure::SearchTime { seconds: limits.grep_wall_time.as_secs() });
            }
            (Some(Cut::Time), _) => {
                let spent_ms = limits.grep_wall_time.as_millis();
                format!("[the search was cut short after {spent_ms} ms]")
            }
            (None, Ended::TooMany) => {
                format!("[the search was cut short after {} entries]", limits.grep_entries_max)
            }
            (None, Ended::Done) => String::new(),
        };
        if text.is_empty() && cut.is_none() {
            text.push_str("no matches\n");
        }
        text.push_str(&notice);
        let mut result = answer(text.trim_end_matches('\n').to_owned());
        result.facts.output_bytes = output_bytes;
        result.facts.truncated = !notice.is_empty();
        result.facts.timed_out = cut == Some(Cut::Time);
        Ok(result)
    }
}

impl Guide for Search<'_> {
    type State = ();

    fn names(&self, (): &()) -> Option<Vec<std::ffi::OsString>> {
        None
    }

    fn visit(&mut self, (): &(), entry: &Entry<'_>) -> Next<()> {
        if Instant::now() >= self.deadline {
            self.hits.cut = Some(Cut::Time);
        } else if entry.kind == FileType::RegularFile {
            self.file(entry.below);
        }
        if self.hits.cut.is_some() {
            return Next::Stop;
        }
        let passed_over = PASSED_OVER.iter().any(|name| entry.name == *name);
        if passed_over { Next::On } else { Next::Into(()) }
    }
}

/// Takes the hits of one file.
struct FileHits<'h> {
    hits: &'h mut Hits,
    path: &'h Path,
}

impl Sink for FileHits<'_> {
    type Error = io::Error;

    fn matched(&mut self, _: &Searcher, hit: &SinkMatch<'_>) -> io::Result<bool> {
        let line = hit.bytes();
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
        let hits = &mut *self.hits;
        if line.len() > hits.line_chars_max && line.chars().count() > hits.line_chars_max {
            return Ok(true);
        }
        let (path, number) = (self.path.to_string_lossy(), hit.line_number().unwrap_or(0));
        let shown = format!("{path}:{number}:{line}\n");
        // The end of the last line is not shown.
        if hits.text.len() + shown.len() - 1 > hits.bytes_max {
            hits.cut = Some(Cut::Output);
            hits.dropped_bytes = shown.len();
            return Ok(false);
        }
        hits.text.push_str(&shown);
        Ok(true)
    }
}
