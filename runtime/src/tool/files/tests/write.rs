//! TOOL-WRITE

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use serde_json::{Value, json};

use super::{Fixture, fifo};

fn write(path: &str, content: &str) -> Value {
    json!({ "file_path": path, "content": content })
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("a file").mode() & 0o7777
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory").flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_made_with_its_directories() {
    // TOOL-WRITE-1, TOOL-WRITE-2
    let fixture = Fixture::new();
    let content = "é\r\n\u{0}no end";
    assert_eq!(fixture.good("write", &write("a/b/new", content)), "wrote 11 bytes to a/b/new");
    assert_eq!(fs::read(fixture.path("a/b/new")).expect("a file"), content.as_bytes());
    assert_eq!(mode(&fixture.path("a/b/new")), 0o600);
    assert_eq!((mode(&fixture.path("a")), mode(&fixture.path("a/b"))), (0o700, 0o700));
    assert_eq!(fixture.good("write", &write("a/b/new", "")), "wrote 0 bytes to a/b/new");
    assert_eq!(fs::read(fixture.path("a/b/new")).expect("a file"), b"");
    assert_eq!(names(&fixture.path("a/b")), ["new"]);
    let longest = "n".repeat(255);
    fixture.good("write", &write(&longest, "x"));
}

#[test]
fn the_permissions_of_an_existing_file_are_kept_without_set_id_bits() {
    // TOOL-WRITE-2, TOOL-EDIT-5
    let fixture = Fixture::new();
    for (before, after) in
        [(0o755, 0o755), (0o644, 0o644), (0o777, 0o777), (0o6755, 0o755), (0o1600, 0o600)]
    {
        let file = fixture.file("file", "old");
        fs::set_permissions(&file, fs::Permissions::from_mode(before)).expect("a mode");
        fixture.good("write", &write("file", "new"));
        assert_eq!(mode(&file), after, "{before:o}");
        fs::set_permissions(&file, fs::Permissions::from_mode(before)).expect("a mode");
        fixture
            .good("edit", &json!({ "file_path": "file", "old_string": "new", "new_string": "" }));
        assert_eq!(mode(&file), after, "{before:o}");
    }
}

#[test]
fn a_reader_of_the_old_file_keeps_it() {
    // TOOL-WRITE-2
    let fixture = Fixture::new();
    let old = fs::File::open(fixture.file("file", "old")).expect("a file");
    fixture.good("write", &write("file", "new"));
    assert_eq!(std::io::read_to_string(old).expect("text"), "old");
    assert_eq!(fixture.read("file"), "new");
}

#[test]
fn what_is_no_regular_file_is_not_replaced() {
    // TOOL-WRITE-3, TOOL-WRITE-4
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("directory")).expect("a directory");
    fixture.file("file", "");
    fifo(&fixture.path("pipe"));
    fixture.link("way", "pipe");
    let cases = [
        ("directory", "directory: is a directory"),
        ("directory/", "directory/: is a directory"),
        (".", ".: is a directory"),
        ("pipe", "pipe: not a regular file"),
        ("way", "way: not a regular file"),
        ("file/x", "file/x: not a directory"),
        ("pipe/x", "pipe/x: not a directory"),
    ];
    for (path, want) in cases {
        assert_eq!(fixture.bad("write", &write(path, "x")), format!("write: {want}"));
    }
    let name = "n".repeat(256);
    for path in [name.clone(), format!("new/{name}")] {
        let want = format!("write: {path}: file name too long");
        assert_eq!(fixture.bad("write", &write(&path, "x")), want);
    }
}
