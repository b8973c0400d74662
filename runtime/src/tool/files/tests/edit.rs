//! TOOL-EDIT

use std::fs;

use serde_json::{Value, json};

use super::{Fixture, fifo};

fn edit(old: &str, new: &str, all: &Value) -> Value {
    json!({ "file_path": "file", "old_string": old, "new_string": new, "replace_all": all })
}

#[test]
fn text_is_replaced_literally() {
    // TOOL-EDIT-2, TOOL-EDIT-3
    let fixture = Fixture::new();
    let cases = [
        ("a b c", "b", "B", json!(null), "a B c", 1),
        ("a b c", "b", "", json!(false), "a  c", 1),
        ("a.c abc", "a.c", "$1\\0&", json!(null), "$1\\0& abc", 1),
        ("aaaa", "aa", "b", json!(true), "bb", 2),
        ("aaaaa", "aa", "b", json!(true), "bba", 2),
        ("aXaXa", "aXa", "b", json!(null), "bXa", 1),
        ("x", "x", "xx", json!(true), "xx", 1),
        ("a\r\nb\r\n", "\r\n", "\n", json!(true), "a\nb\n", 2),
        ("é ü", "é", "ü", json!(null), "ü ü", 1),
        ("same", "same", "same", json!(null), "same", 1),
        ("\n\n\n", "\n", "", json!(true), "", 3),
    ];
    for (before, old, new, all, after, count) in cases {
        let file = fixture.file("file", before);
        let want = format!("edited file ({count} replacement(s))");
        assert_eq!(fixture.good("edit", &edit(old, new, &all)), want, "{before:?}");
        assert_eq!(fs::read_to_string(file).expect("a file"), after, "{before:?}");
    }
}

#[test]
fn what_is_missing_or_ambiguous_changes_nothing() {
    // TOOL-EDIT-2, TOOL-EDIT-4
    let fixture = Fixture::new();
    let file = fixture.file("file", "one two one");
    let cases = [
        ("three", json!(null), "edit: old_string not found in file"),
        ("three", json!(true), "edit: old_string not found in file"),
        ("one", json!(null), "edit: old_string appears 2 times in file (must be unique)"),
        ("one", json!(false), "edit: old_string appears 2 times in file (must be unique)"),
        ("", json!(true), "edit: old_string is required"),
    ];
    for (old, all, want) in cases {
        assert_eq!(fixture.bad("edit", &edit(old, "x", &all)), want);
    }
    assert_eq!(fs::read_to_string(file).expect("a file"), "one two one");
}

#[test]
fn only_text_files_of_the_right_size_are_edited() {
    // TOOL-EDIT-1
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("directory")).expect("a directory");
    fifo(&fixture.path("pipe"));
    fixture.file("binary", b"x\xff");
    fixture.file("exact", format!("y{}", "x".repeat(262_143)));
    fixture.file("over", "x".repeat(262_145));
    let on = |path: &str| json!({ "file_path": path, "old_string": "y", "new_string": "yy" });
    let cases = [
        ("directory", "directory: not a regular file"),
        ("pipe", "pipe: not a regular file"),
        ("none", "none: no such file or directory"),
        ("binary", "binary: not valid UTF-8 text (cannot edit binary files)"),
        (
            "over",
            "over is 262145 bytes, exceeds 262144-byte limit. The edit tool loads the whole file and \
             cannot modify a file this large.",
        ),
    ];
    for (path, want) in cases {
        assert_eq!(fixture.bad("edit", &on(path)), format!("edit: {want}"));
    }
    assert_eq!(fixture.good("edit", &on("exact")), "edited exact (1 replacement(s))");
}

#[test]
fn an_edit_cannot_blow_a_file_up() {
    // INV-11: 262,144 replacements by 16 MiB each would be 4 TiB
    let mut fixture = Fixture::new();
    let file = fixture.file("file", "x".repeat(262_144));
    let input = edit("x", &"y".repeat(1 << 20), &json!(true));
    let want = "edit: file would be 274877906944 bytes after the edit, exceeds 33554432-byte limit";
    assert_eq!(fixture.bad("edit", &input), want);
    assert_eq!(fs::metadata(file).expect("a file").len(), 262_144);
    fixture.limits.edited_bytes_max = 10;
    fixture.file("file", "aXa");
    let exact = fixture.good("edit", &edit("X", "12345678", &json!(null)));
    assert_eq!(exact, "edited file (1 replacement(s))");
    fixture.file("file", "aXa");
    let want = "edit: file would be 11 bytes after the edit, exceeds 10-byte limit";
    assert_eq!(fixture.bad("edit", &edit("X", "123456789", &json!(null))), want);
}
