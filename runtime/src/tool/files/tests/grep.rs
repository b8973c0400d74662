//! TOOL-GREP

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Fixture, fifo, text};

/// The hits with paths from the workdir.
fn hits(fixture: &Fixture, input: &Value) -> String {
    let workdir = fixture.path("").canonicalize().expect("a path").display().to_string();
    fixture.good("grep", input).replace(&format!("{}/", workdir.trim_end_matches('/')), "")
}

fn search(fixture: &Fixture, pattern: &str) -> String {
    hits(fixture, &json!({ "pattern": pattern }))
}

#[test]
fn hits_are_shown_with_path_and_line_in_the_order_of_names() {
    // TOOL-GREP-2, TOOL-GREP-5
    let fixture = Fixture::new();
    fixture.file("b.txt", "one\r\ntwo\r\n");
    fixture.file("a/z", "x\n\ntwo one");
    fixture.file("a.txt", "\u{feff}one:1\n");
    fixture.file(".hidden/file", "one");
    fixture.file(".gitignore", "ignored\n");
    fixture.file("ignored", "one");
    let cases = [
        ("one", ".hidden/file:1:one\na/z:3:two one\na.txt:1:one:1\nb.txt:1:one\nignored:1:one"),
        ("^one$", ".hidden/file:1:one\nb.txt:1:one\nignored:1:one"),
        ("^one", ".hidden/file:1:one\na.txt:1:one:1\nb.txt:1:one\nignored:1:one"),
        (r"t.o$", "b.txt:2:two"),
        (r"(?i)TWO\s\w+", "a/z:3:two one"),
        (r"^$", "a/z:2:"),
        ("three", "no matches"),
        ("one\\r", "b.txt:1:one"),
        ("one\\r$|^x$", "a/z:1:x\nb.txt:1:one"),
    ];
    for (pattern, want) in cases {
        assert_eq!(search(&fixture, pattern), want, "{pattern}");
    }
    let result = fixture.call("grep", &json!({ "pattern": "three" }));
    assert_eq!(
        (result.facts.output_bytes, result.facts.truncated, result.is_error),
        (0, false, false)
    );
}

#[test]
fn the_path_is_a_directory_or_one_file() {
    // TOOL-GREP-2, TOOL-GREP-5
    let fixture = Fixture::new();
    fixture.file("d/one", "hit");
    fixture.file("d/two", "hit");
    fixture.file(".git/config", "hit");
    fixture.file("d/node_modules/x", "hit");
    fixture.file("x/.git", "hit");
    fifo(&fixture.path("pipe"));
    fixture.link("way", "d/two");
    let cases = [
        (json!(null), "d/one:1:hit\nd/two:1:hit\nx/.git:1:hit"),
        (json!(""), "d/one:1:hit\nd/two:1:hit\nx/.git:1:hit"),
        (json!("d"), "d/one:1:hit\nd/two:1:hit"),
        (json!("d/one"), "d/one:1:hit"),
        (json!("way"), "d/two:1:hit"),
        (json!(".git"), ".git/config:1:hit"),
        (json!("d/node_modules/x"), "d/node_modules/x:1:hit"),
        (json!("none"), "no matches"),
        (json!("pipe"), "no matches"),
    ];
    for (path, want) in cases {
        assert_eq!(hits(&fixture, &json!({ "pattern": "hit", "path": path })), want, "{path}");
    }
}

#[test]
fn links_pipes_and_binary_files_are_passed_over() {
    // TOOL-GREP-2
    let fixture = Fixture::new();
    fs::write(fixture.beside("o/secret"), "hit").expect("a file");
    fifo(&fixture.path("pipe"));
    fixture.link("file-link", "../o/secret");
    fixture.link("directory-link", "../o");
    fixture.link("inner", "text");
    fixture.file("text", "hit");
    fixture.file("binary", b"hit\nhit \0");
    // Only a NUL byte that is found late lets the hits before it stand.
    let late = format!("hit\n{}\n\0\nhit\n", "x\n".repeat(100_000));
    fixture.file("late", late);
    assert_eq!(search(&fixture, "hit"), "late:1:hit\ntext:1:hit");
}

#[test]
fn lines_that_are_too_long_are_passed_over() {
    // TOOL-GREP-2, TOOL-GEN-2
    let fixture = Fixture::new();
    let (exact, over) = (format!("hit{}", "é".repeat(1_997)), format!("hit{}", "é".repeat(1_998)));
    let vast = format!("hit{}hit", "x".repeat(3 << 20));
    fixture.file("file", format!("{over}\n{exact}\r\n{vast}\nhit\n{vast}"));
    assert_eq!(search(&fixture, "hit"), format!("file:2:{exact}\nfile:4:hit"));
}

#[test]
fn bytes_that_are_not_text_are_searched_and_shown_replaced() {
    // RUN-22
    let fixture = Fixture::new();
    fixture.file("file", b"a \xff hit\n");
    assert_eq!(search(&fixture, "hit"), "file:1:a \u{fffd} hit");
}

#[test]
fn a_bad_pattern_is_explained() {
    // TOOL-GREP-2, TOOL-GREP-6
    let fixture = Fixture::new();
    let cases = [
        ("", "pattern is required"),
        ("(", "invalid regex: unclosed group"),
        ("a{2,1}", "invalid regex: invalid repetition count range, the start must be <= the end"),
        ("*", "invalid regex: repetition operator missing expression"),
        ("[", "invalid regex: unclosed character class"),
        (r"\", "invalid regex: unclosed group"),
        (
            "(?=x)",
            "invalid regex: look-around, including look-ahead and look-behind, is not supported",
        ),
        (r"(x)\1", "invalid regex: backreferences are not supported"),
        ("a\nb", r#"invalid regex: the literal "\n" is not allowed in a regex"#),
        ("(x{1000}){1000}", "invalid regex: compiled regex exceeds size limit of 16777216"),
    ];
    for (pattern, want) in cases {
        assert_eq!(fixture.bad("grep", &json!({ "pattern": pattern })), format!("grep: {want}"));
    }
    let long = format!("({}", "x".repeat(1 << 20));
    assert!(fixture.bad("grep", &json!({ "pattern": long })).len() < 2_000);
}

#[test]
fn a_pattern_made_to_be_slow_is_not() {
    // TOOL-GREP-4
    let fixture = Fixture::new();
    fixture.file("file", format!("{}b", "a".repeat(1_900)));
    assert_eq!(search(&fixture, "^(a+)+$"), "no matches");
    assert_eq!(search(&fixture, "^(a|a)*c"), "no matches");
}

#[test]
fn output_is_cut_between_hits() {
    // TOOL-GREP-3, TOOL-GEN-2
    let mut fixture = Fixture::new();
    fixture.file("file", "hit hit hit\n".repeat(100_000));
    let result = fixture.call("grep", &json!({ "pattern": "hit" }));
    let output = text(&result);
    let (shown, notice) = output.rsplit_once('\n').expect("a notice");
    assert_eq!(notice, "[output truncated at 102400 bytes]");
    assert!(shown.len() <= 102_400 && shown.len() > 102_000, "{}", shown.len());
    assert!(shown.ends_with(":hit hit hit"));
    assert!(result.facts.truncated && result.facts.output_bytes > shown.len() as u64);
    // Exactly as much as is allowed is not cut.
    let line =
        format!("{}:1:hit", fixture.file("exact", "hit").canonicalize().expect("a path").display());
    let exact = json!({ "pattern": "hit", "path": "exact" });
    fixture.limits.grep_bytes_max = line.len();
    assert_eq!(fixture.good("grep", &exact), line);
    fixture.limits.grep_bytes_max -= 1;
    let want = format!("[output truncated at {} bytes]", line.len() - 1);
    assert_eq!(fixture.good("grep", &exact), want);
}

#[test]
fn time_is_bounded_and_what_was_found_is_shown() {
    // TOOL-GREP-4
    let mut fixture = Fixture::new();
    fixture.file("a", "hit");
    fixture.limits.grep_wall_time = Duration::MAX;
    assert_eq!(search(&fixture, "hit"), "a:1:hit");
    fixture.limits.grep_wall_time = Duration::ZERO;
    let result = fixture.call("grep", &json!({ "pattern": "hit" }));
    assert_eq!((text(&result).as_str(), result.is_error), ("grep: timed out after 0s", true));
    assert!(result.facts.timed_out);
    // Far more text than can be searched in that time: one file under many names.
    fixture.file("c", "xxxxxxxx\n".repeat(1 << 20));
    fixture.limits.grep_wall_time = Duration::from_millis(300);
    for copy in 0..2_000 {
        fs::hard_link(fixture.path("c"), fixture.path(&format!("c{copy}"))).expect("a link");
    }
    let result = fixture.call("grep", &json!({ "pattern": "hit" }));
    let want = "/a:1:hit\n[the search was cut short after 300 ms]";
    assert!(text(&result).ends_with(want), "{}", text(&result));
    assert!(result.facts.timed_out && result.facts.truncated && !result.is_error);
}

#[test]
fn entries_are_bounded() {
    // INV-11
    let mut fixture = Fixture::new();
    for name in ["a/x", "b/x", "c/x"] {
        fixture.file(name, "hit");
    }
    fixture.limits.grep_entries_max = 5;
    let want = "a/x:1:hit\nb/x:1:hit\n[the search was cut short after 5 entries]";
    assert_eq!(search(&fixture, "hit"), want);
}
