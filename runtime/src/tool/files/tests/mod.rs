//! The file tools as a caller sees them: inputs as JSON, results as text.
//!
//! Unless a test says otherwise a session has its workdir at `w` in a directory of its own, and `o`
//! beside it is not permitted.

mod edit;
mod glob;
mod grep;
mod paths;
mod races;
mod read;
mod refused_by_kernel;
mod write;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{FileLimits, Roots, run};
use crate::tool::{Block, ToolResult};

struct Fixture {
    place: TempDir,
    roots: Roots,
    limits: FileLimits,
}

impl Fixture {
    fn new() -> Self {
        Fixture::with_roots(&[], &[])
    }

    /// With directories beside the workdir, by name.
    fn with_roots(allowed: &[&str], read_only: &[&str]) -> Self {
        let place = memory_directory();
        let beside = |names: &[&str]| -> Vec<PathBuf> {
            names.iter().map(|name| place.path().join(name)).collect()
        };
        let (allowed, read_only) = (beside(allowed), beside(read_only));
        for directory in beside(&["w", "o"]).iter().chain(&allowed).chain(&read_only) {
            fs::create_dir_all(directory).expect("a directory");
        }
        let workdir = place.path().join("w");
        let roots = Roots::open(&workdir, &allowed, &read_only).expect("the roots");
        Fixture { place, roots, limits: FileLimits::default() }
    }

    /// Of a file in the workdir.
    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join("w").join(name)
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Makes a file in the workdir, and the directories it needs.
    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(&path, content).expect("a file");
        path
    }

    fn link(&self, name: &str, target: impl AsRef<Path>) {
        std::os::unix::fs::symlink(target, self.path(name)).expect("a link");
    }

    fn call(&self, name: &str, input: &Value) -> ToolResult {
        run(name, input.to_string().as_bytes(), &self.roots, &self.limits)
    }

    /// The text of a call that must succeed.
    fn good(&self, name: &str, input: &Value) -> String {
        let result = self.call(name, input);
        assert!(!result.is_error, "{name} {input}: {:?}", result.content);
        text(&result)
    }

    /// The text of a call that must fail.
    fn bad(&self, name: &str, input: &Value) -> String {
        let result = self.call(name, input);
        assert!(result.is_error, "{name} {input}: {:?}", result.content);
        text(&result)
    }

    fn read(&self, path: &str) -> String {
        self.good("read", &json!({ "file_path": path }))
    }

    fn bad_read(&self, path: &str) -> String {
        self.bad("read", &json!({ "file_path": path }))
    }
}

/// A directory in memory where there is one: these tests write a lot.
fn memory_directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// The only block, which must be text.
fn text(result: &ToolResult) -> String {
    match result.content.as_slice() {
        [Block::Text(text)] => text.clone(),
        other => panic!("not one text: {other:?}"),
    }
}

fn fifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
}

#[test]
fn the_names_of_the_tools_are_known_and_no_others() {
    for name in ["read", "write", "edit", "glob", "grep"] {
        assert!(super::owns(name), "{name}");
    }
    let fixture = Fixture::new();
    for name in ["bash", "Read", "", "web_fetch"] {
        assert!(!super::owns(name), "{name}");
        assert!(run(name, b"{}", &fixture.roots, &fixture.limits).is_error, "{name}");
    }
}

#[test]
fn an_invalid_input_is_an_error_result_of_every_tool() {
    // RUN-20
    let fixture = Fixture::new();
    let cases = [
        ("read", "file_path"),
        ("write", "file_path"),
        ("edit", "file_path"),
        ("glob", "pattern"),
        ("grep", "pattern"),
    ];
    for (name, member) in cases {
        let want = format!("invalid {name} input: missing field `{member}`");
        assert_eq!(fixture.bad(name, &json!({ "more": 1 })), want);
        for input in [&b"\xff\xfe"[..], b"", b"[]", b"{\"a\":", b"{\"file_path\":{}}"] {
            let result = run(name, input, &fixture.roots, &fixture.limits);
            assert!(result.is_error && text(&result).starts_with("invalid "), "{name} {input:?}");
        }
    }
}

#[test]
fn the_defaults_are_the_constants_of_the_contract() {
    // TOOL-GEN-2
    let limits = FileLimits::default();
    assert_eq!(limits.file_bytes_max, Some(262_144));
    assert_eq!(limits.image_bytes_max, 5 * 1024 * 1024 / 4 * 3);
    assert_eq!(limits.pdf_bytes_max, 20_971_520);
    assert_eq!((limits.glob_results_max, limits.glob_entries_max), (200, 50_000));
    assert_eq!((limits.grep_bytes_max, limits.grep_line_chars_max), (102_400, 2_000));
    assert_eq!(limits.grep_wall_time.as_secs(), 60);
}
