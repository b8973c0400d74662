//! The glob tool: names that match a pattern, newest first.
//!
//! A pattern is taken apart into what each name on the way must be, so a directory that cannot lead to
//! a match is not entered.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use rustix::fs::{FileType, OFlags, Stat, fstat};

use super::braces;
use super::failure::Failure;
use super::input::SearchInput;
use super::roots::{Place, Roots};
use super::walk::{Ended, Entry, Guide, Next, walk};
use super::{FileLimits, PASSED_OVER, answer, beneath, required};
use crate::tool::ToolResult;

/// Longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 4_096;

/// How many patterns one with braces may stand for.
const ALTERNATIVES_MAX: usize = 256;

pub fn run(input: &SearchInput, roots: &Roots, limits: &FileLimits) -> Result<ToolResult, Failure> {
    let pattern = required("pattern", &input.pattern)?;
    let patterns = parse(pattern)?;
    let path = input.path.as_deref().filter(|path| !path.is_empty()).unwrap_or(".");
    let place = roots.find(path)?;
    let mut search = Search { roots, place: &place, patterns, found: Vec::new() };
    let start = search.closed((0..search.patterns.len()).map(|pattern| (pattern, 0)).collect());
    let entries_max = limits.glob_entries_max;
    let ended = walk(place.directory(), &place.below, start, entries_max, &mut search);

    let mut found = search.found;
    found.sort_unstable_by(|one, other| other.0.cmp(&one.0).then_with(|| one.1.cmp(&other.1)));
    found.dedup_by(|one, other| one.1 == other.1);
    let lines: Vec<_> = found.iter().map(|(_, path)| path.to_string_lossy()).collect();
    let bytes: usize = lines.iter().map(|line| line.len() + 1).sum();
    let shown = &lines[..lines.len().min(limits.glob_results_max)];
    let mut text = if shown.is_empty() { "no matches".to_owned() } else { shown.join("\n") };
    if ended == Ended::TooMany {
        text += &format!("\n[the search was cut short after {entries_max} entries]");
    }
    let mut result = answer(text);
    result.facts.truncated = ended == Ended::TooMany || shown.len() < lines.len();
    result.facts.output_bytes = result.facts.output_bytes.max(bytes.saturating_sub(1) as u64);
    Ok(result)
}

/// One name of a pattern.
enum Part {
    /// `**`: any number of directories; at the end, everything below.
    Any,
    Name(OsString),
    Like(GlobMatcher),
}

/// A pattern without braces.
struct Pattern {
    parts: Vec<Part>,
    /// It ends in a `/`.
    directories_only: bool,
}

impl Pattern {
    fn names(&self, name: &OsStr) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Name(own) if own == name))
    }
}

/// TOOL-GLOB-1, TOOL-GLOB-5
fn parse(pattern: &str) -> Result<Vec<Pattern>, Failure> {
    let refused = |reason: &str| Failure::Pattern { reason: reason.to_owned() };
    if pattern.starts_with('/') {
        return Err(Failure::AbsolutePattern);
    }
    if pattern.split(['/', '\\', '{', '}', ',']).any(|segment| segment == "..") {
        return Err(Failure::ParentInPattern);
    }
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(refused("it is too long"));
    }
    if pattern.contains('\0') {
        return Err(refused("it contains a NUL character"));
    }
    let mut alternatives = Vec::new();
    if !braces::expand(pattern, ALTERNATIVES_MAX, &mut alternatives) {
        return Err(refused("it stands for too many alternatives"));
    }
    alternatives.iter().map(|alternative| parse_one(alternative)).collect()
}

fn parse_one(pattern: &str) -> Result<Pattern, Failure> {
    if pattern.starts_with('/') {
        return Err(Failure::AbsolutePattern);
    }
    let mut parts = Vec::new();
    for segment in pattern.split('/').filter(|segment| !matches!(*segment, "" | ".")) {
        match segment {
            "**" if matches!(parts.last(), Some(Part::Any)) => {}
            "**" => parts.push(Part::Any),
            plain if !plain.contains(['*', '?', '[', ']', '{', '}', '\\']) => {
                parts.push(Part::Name(OsString::from(plain)));
            }
            segment => {
                let mut glob = GlobBuilder::new(segment);
                let glob = glob.literal_separator(true).backslash_escape(true).build();
                let glob =
                    glob.map_err(|error| Failure::Pattern { reason: error.kind().to_string() })?;
                parts.push(Part::Like(glob.compile_matcher()));
            }
        }
    }
    Ok(Pattern { parts, directories_only: pattern.ends_with('/') })
}

struct Search<'s> {
    roots: &'s Roots,
    place: &'s Place<'s>,
    patterns: Vec<Pattern>,
    /// When changed (seconds, nanoseconds), and the path.
    found: Vec<((i64, i64), PathBuf)>,
}

/// Parts that an entry of a directory may be: (pattern, part of it).
type Expected = Vec<(usize, usize)>;

impl Search<'_> {
    /// With the parts after each `**`, which may stand for no directory at all.
    fn closed(&self, mut expected: Expected) -> Expected {
        expected.retain(|(pattern, part)| *part < self.patterns[*pattern].parts.len());
        let mut after = Vec::new();
        for &(pattern, part) in &expected {
            let parts = &self.patterns[pattern].parts;
            if matches!(parts[part], Part::Any) && part + 1 < parts.len() {
                after.push((pattern, part + 1));
            }
        }
        expected.append(&mut after);
        expected.sort_unstable();
        expected.dedup();
        expected
    }

    /// Notes an entry that matches. A link counts as what it leads to, if that is inside
    /// (TOOL-GLOB-3).
    fn note(&mut self, entry: &Entry<'_>, directories_only: bool) {
        let path = self.place.path();
        let (path, status) = if entry.kind == FileType::Symlink {
            let Ok(target) = self.roots.resolve(&path.join(entry.below)) else { return };
            if !target.path().starts_with(&path) {
                return;
            }
            (target.path(), target.found)
        } else {
            (path.join(entry.below), self.status(entry.below))
        };
        let kind = status.as_ref().map(beneath::kind);
        let wanted = kind == Some(FileType::Directory)
            || (kind == Some(FileType::RegularFile) && !directories_only);
        if let (true, Some(status)) = (wanted, status) {
            self.found.push(((status.st_mtime, status.st_mtime_nsec.cast_signed()), path));
        }
    }

    fn status(&self, below: &Path) -> Option<Stat> {
        let below = self.place.below.join(below);
        let entry = beneath::open(self.place.directory(), &below, OFlags::PATH).ok()?;
        fstat(entry).ok()
    }
}

impl Guide for Search<'_> {
    type State = Expected;

    fn names(&self, expected: &Expected) -> Option<Vec<OsString>> {
        let name = |&(pattern, part): &(usize, usize)| match &self.patterns[pattern].parts[part] {
            Part::Name(name) => Some(name.clone()),
            Part::Any | Part::Like(_) => None,
        };
        let mut names = expected.iter().map(name).collect::<Option<Vec<_>>>()?;
        names.sort_unstable();
        names.dedup();
        Some(names)
    }

    fn visit(&mut self, expected: &Expected, entry: &Entry<'_>) -> Next<Expected> {
        let passed_over = PASSED_OVER.iter().any(|name| entry.name == *name);
        // Whether it matches, and matches as something else than a directory too.
        let (mut matched, mut directories_only) = (false, true);
        let mut inside = Vec::new();
        for &(pattern, part) in expected {
            let Pattern { parts, directories_only: only } = &self.patterns[pattern];
            let fits = match &parts[part] {
                Part::Any => true,
                Part::Name(name) => entry.name == name,
                Part::Like(glob) => glob.is_match(entry.name),
            };
            if !fits {
                continue;
            }
            if part + 1 == parts.len() {
                matched = true;
                directories_only &= only;
            }
            if passed_over && !self.patterns[pattern].names(entry.name) {
                continue;
            }
            let stays = matches!(parts[part], Part::Any);
            inside.push((pattern, if stays { part } else { part + 1 }));
        }
        if matched {
            self.note(entry, directories_only);
        }
        let inside = self.closed(inside);
        if inside.is_empty() { Next::On } else { Next::Into(inside) }
    }
}
