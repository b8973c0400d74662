//! Reads the project's source text, for rules that the compiler does not hold.
//!
//! Not a Rust parser: comments, strings and `#[cfg(test)]` modules are blanked, the rest is looked
//! at as words. Line numbers stay right.

use std::fs;
use std::path::{Path, PathBuf};

/// One source file.
#[derive(Debug, Clone)]
pub struct Source {
    /// Relative to the root of the project, with `/`.
    pub path: String,
    /// As written.
    pub text: String,
}

impl Source {
    /// A file for a fixture.
    pub fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    /// The text with comments and string contents blanked.
    pub fn code(&self) -> String {
        blank(&self.text)
    }

    /// The code that is part of the product: everything before the test module.
    pub fn product_code(&self) -> String {
        let code = self.code();
        let end = code.find("#[cfg(test)]").unwrap_or(code.len());
        code[..end].to_owned()
    }

    /// Modules from the crate's root to this file: `runtime/src/jail/mounts.rs` is `jail`, `mounts`.
    pub fn modules(&self) -> Vec<&str> {
        let inner = self.path.split_once("/src/").map_or("", |(_, inner)| inner);
        let names = inner.trim_end_matches(".rs").split('/');
        names.filter(|name| !matches!(*name, "mod" | "lib" | "main")).collect()
    }
}

/// Every file of the project with one of these suffixes, without build output.
///
/// # Panics
/// If the tree cannot be read.
pub fn project(suffixes: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the project");
    let mut found = Vec::new();
    let mut todo: Vec<PathBuf> = ["runtime", "worker", "tests", "policies", "scripts"]
        .iter()
        .map(|name| root.join(name))
        .filter(|dir| dir.is_dir())
        .collect();
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("cannot list a source directory").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                todo.push(path);
            } else if suffixes.iter().any(|suffix| name.ends_with(suffix)) {
                let short = path.strip_prefix(root).expect("found below the root");
                let text = fs::read_to_string(&path).expect("sources are text");
                found.push(Source { path: short.display().to_string(), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The line, counted from 1, at a position of a text.
pub fn line_at(text: &str, position: usize) -> usize {
    text[..position].matches('\n').count() + 1
}

/// Every place where `word` stands by itself.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = code[..*at].chars().next_back().is_some_and(part);
        let after = code[at + word.len()..].chars().next().is_some_and(part);
        !before && !after
    })
}

/// Top-level modules of the own crate that `source` names, with the line of each.
///
/// Understands `crate::a`, `crate::{a, b::c}` and `super::` chains that leave the top module.
pub fn own_modules(source: &Source) -> Vec<(String, usize)> {
    let code = source.product_code();
    let mut found = Vec::new();
    for at in words(&code, "crate") {
        let rest = &code[at + "crate".len()..];
        let Some(rest) = rest.strip_prefix("::") else { continue };
        found.extend(first_names(rest).into_iter().map(|name| (name, line_at(&code, at))));
    }
    let depth = source.modules().len();
    let mut position = 0;
    while let Some(offset) = code[position..].find("super::") {
        let at = position + offset;
        let chain = code[at..].split("super::").take_while(|part| part.is_empty()).count();
        position = at + chain.max(1) * "super::".len();
        if depth > 0 && chain >= depth {
            let names = first_names(&code[position..]);
            found.extend(names.into_iter().map(|name| (name, line_at(&code, at))));
        }
    }
    found
}

/// The first name of a path, or of each path in braces.
fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        text[..end].to_owned()
    };
    let Some(group) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let (mut depth, mut start, mut names) = (1, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            names.push(name(group[start..at].trim_start()));
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Replaces comments and the contents of strings by spaces, line by line.
fn blank(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let length = quiet_length(&bytes, at);
        if length == 0 {
            out.push(bytes[at]);
            at += 1;
            continue;
        }
        for c in &bytes[at..(at + length).min(bytes.len())] {
            out.push(if *c == '\n' { '\n' } else { ' ' });
        }
        at += length;
    }
    out
}

/// How many characters from `at` on are a comment or a literal; 0 if they are code.
fn quiet_length(c: &[char], at: usize) -> usize {
    let starts =
        |text: &str| text.chars().enumerate().all(|(i, want)| c.get(at + i) == Some(&want));
    let until = |from: usize, stop: &dyn Fn(usize) -> bool| {
        (from..c.len()).find(|i| stop(*i)).map_or(c.len(), |i| i + 1) - at
    };
    if starts("//") {
        return c[at..].iter().position(|c| *c == '\n').unwrap_or(c.len() - at);
    }
    if starts("/*") {
        return until(at + 3, &|i| c[i] == '/' && c[i - 1] == '*');
    }
    let joined = at > 0 && (c[at - 1].is_alphanumeric() || c[at - 1] == '_');
    if c[at] == 'r' && (!joined || matches!(c[at - 1], 'b' | 'c')) {
        let hashes = c[at + 1..].iter().take_while(|c| **c == '#').count();
        if c.get(at + 1 + hashes) == Some(&'"') {
            let closes = |i: usize| {
                c[i] == '"'
                    && c[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
            };
            return until(at + 2 + hashes, &closes) + hashes;
        }
    }
    if c[at] == '"' {
        let mut i = at + 1;
        while i < c.len() && c[i] != '"' {
            i += if c[i] == '\\' { 2 } else { 1 };
        }
        return i + 1 - at;
    }
    if c[at] == '\'' {
        // A character literal, not a lifetime: it closes after one character or an escape.
        if c.get(at + 1) == Some(&'\\') {
            return until(at + 3, &|i| c[i] == '\'');
        }
        if c.get(at + 2) == Some(&'\'') {
            return 3;
        }
    }
    0
}
