//! Reads the text of one policy file, and turns what the TOML parser says into place, key, found
//! and expected.
//!
//! Pure. Runs before validation: what passes here has the right keys, types and bounds.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::PolicyError;
use super::file::PolicyFile;
use super::model::Origin;

/// A policy file has no use for more.
const BYTES_MAX: usize = 1 << 20;

/// One policy file: its name and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file as the operator named it, or `policies/NAME.toml` for a shipped policy.
    pub file: String,
    /// The text.
    pub text: String,
}

impl Source {
    /// Reads the file as written: TOML, keys, types and bounds; not yet its meaning.
    ///
    /// # Errors
    /// The first [`PolicyError`] found, with its place.
    pub fn parse(&self) -> Result<PolicyFile, PolicyError> {
        if self.text.len() > BYTES_MAX {
            let (file, bytes) = (self.file.clone(), self.text.len());
            return Err(PolicyError::TooLong { file, bytes, max: BYTES_MAX });
        }
        toml::from_str(&self.text).map_err(|error| match DeTable::parse(&self.text) {
            Ok(document) => self.explain(&error, document.get_ref()),
            Err(error) => self.not_toml(&error),
        })
    }

    /// The values as written, as JSON. Keys and types are not checked.
    ///
    /// # Errors
    /// [`PolicyError::Syntax`].
    pub fn to_json(&self) -> Result<serde_json::Value, PolicyError> {
        toml::from_str(&self.text).map_err(|error| self.not_toml(&error))
    }

    fn not_toml(&self, error: &toml::de::Error) -> PolicyError {
        PolicyError::Syntax {
            at: self.origin(error.span().unwrap_or_default()),
            reason: single_line(error.message()),
        }
    }

    /// The place of a byte range of the text: line and column of its first character.
    pub(super) fn origin(&self, span: Range<usize>) -> Origin {
        let mut start = span.start.min(self.text.len());
        while !self.text.is_char_boundary(start) {
            start -= 1;
        }
        let before = &self.text[..start];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Origin {
            file: self.file.clone(),
            line: before.bytes().filter(|byte| *byte == b'\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    /// The last part of the file's name, without `.toml`.
    pub(super) fn stem(&self) -> String {
        let stem = Path::new(&self.file).file_stem().unwrap_or_default();
        stem.to_string_lossy().into_owned()
    }

    fn explain(&self, error: &toml::de::Error, document: &DeTable<'_>) -> PolicyError {
        let message = single_line(error.message());
        let span = error.span().unwrap_or_default();
        let at = self.origin(span.clone());
        if let Some(field) = quoted_after(&message, "missing field ") {
            let table = locate(document, &|place| place == span);
            let key = if table.is_empty() { field } else { format!("{table}.{field}") };
            return PolicyError::MissingKey { at, key };
        }
        let path = locate(document, &|place| place.contains(&span.start));
        let (what, expected) = message.rsplit_once(", expected ").unwrap_or((&message, ""));
        if let Some(field) = quoted_after(&message, "unknown field ") {
            let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
            return PolicyError::UnknownKey {
                at,
                key: path,
                suggestion: suggest(&field, &known),
                expected: expected.to_owned(),
            };
        }
        let found = ["invalid type: ", "invalid value: ", "unknown variant "]
            .iter()
            .find_map(|kind| what.strip_prefix(kind))
            .unwrap_or(what);
        let (found, expected) = match expected {
            "" => (self.text[span].to_owned(), message.clone()),
            expected => (found.replace('`', ""), plain_type(expected)),
        };
        PolicyError::Value { at, key: path, found, expected }
    }
}

/// serde's name of a Rust type in an operator's words.
fn plain_type(expected: &str) -> String {
    match expected {
        "a sequence" => "a list".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a map" => "a table".to_owned(),
        text if text.starts_with("struct ") => "a table".to_owned(),
        text => text.replace('`', "\""),
    }
}

fn single_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join(", ")
}

/// The word in backticks after `lead`.
fn quoted_after(message: &str, lead: &str) -> Option<String> {
    let rest = message.strip_prefix(lead)?.strip_prefix('`')?;
    rest.split_once('`').map(|(word, _)| word.to_owned())
}

/// The path of the innermost key or value of whose place `wanted` holds; empty for the document.
fn locate(document: &DeTable<'_>, wanted: &dyn Fn(Range<usize>) -> bool) -> String {
    let mut best = (usize::MAX, String::new());
    walk_table(document, "", wanted, &mut best);
    best.1
}

/// Length of the innermost place so far, and its path.
type Best = (usize, String);

fn walk_table(
    table: &DeTable<'_>,
    path: &str,
    wanted: &dyn Fn(Range<usize>) -> bool,
    best: &mut Best,
) {
    for (key, value) in table {
        let name = key.get_ref();
        let path = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
        consider(key.span(), &path, wanted, best);
        walk_value(value, &path, wanted, best);
    }
}

fn walk_value(
    value: &Spanned<DeValue<'_>>,
    path: &str,
    wanted: &dyn Fn(Range<usize>) -> bool,
    best: &mut Best,
) {
    consider(value.span(), path, wanted, best);
    match value.get_ref() {
        DeValue::Table(table) => walk_table(table, path, wanted, best),
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                walk_value(item, &format!("{path}[{index}]"), wanted, best);
            }
        }
        _ => {}
    }
}

/// Ties go to the later, which is the deeper one.
fn consider(
    span: Range<usize>,
    path: &str,
    wanted: &dyn Fn(Range<usize>) -> bool,
    best: &mut Best,
) {
    if span.len() <= best.0 && wanted(span.clone()) {
        *best = (span.len(), path.to_owned());
    }
}

/// The known key that is nearest to `word`, if it is near at all.
pub(super) fn suggest(word: &str, known: &[&str]) -> Option<String> {
    let near = |key: &&&str| distance(word, key) <= 2.min(word.len() / 2).max(1);
    known.iter().filter(near).min_by_key(|key| distance(word, key)).map(|key| key.to_string())
}

/// Levenshtein distance in bytes; keys are short and ASCII.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}
