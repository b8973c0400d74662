//! TOOL-READ

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use serde_json::{Value, json};

use super::{Fixture, fifo, text};
use crate::tool::Block;
use crate::tool::files::FileLimits;

const CAP: usize = 262_144;

fn range(path: &str, range: &Value) -> Value {
    json!({ "file_path": path, "view_range": range })
}

#[test]
fn text_is_returned_byte_for_byte() {
    // TOOL-READ-8
    let fixture = Fixture::new();
    for content in ["", "\n", "a", "a\r\nb\r\n", "é\u{feff}\u{0}x\n\n", " \t"] {
        fixture.file("file", content);
        assert_eq!(fixture.read("file"), content);
    }
    let result = fixture.call("read", &json!({ "file_path": "file" }));
    assert_eq!((result.facts.output_bytes, result.facts.truncated), (2, false));
}

#[test]
fn only_regular_files_are_opened() {
    // TOOL-READ-1, TOOL-READ-8
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("directory")).expect("a directory");
    fifo(&fixture.path("pipe"));
    fixture.link("way", "pipe");
    let _socket = std::os::unix::net::UnixListener::bind(fixture.path("socket")).expect("a socket");
    for path in ["directory", "pipe", "way", "socket", "."] {
        assert_eq!(fixture.bad_read(path), format!("read: {path}: not a regular file"));
    }
    assert_eq!(fixture.bad_read("none"), "read: none: no such file or directory");
    // A device cannot be made here without rights that a test may lack: take the one that is there.
    let roots = super::Roots::open(std::path::Path::new("/dev"), &[], &[]).expect("the devices");
    let result = super::run("read", br#"{"file_path":"zero"}"#, &roots, &fixture.limits);
    assert_eq!(text(&result), "read: zero: not a regular file");
}

#[test]
fn a_range_selects_whole_lines() {
    // TOOL-READ-2, TOOL-READ-3
    let fixture = Fixture::new();
    fixture.file("lines", "l1\nl2\nl3\n");
    fixture.file("open", "l1\r\nl2");
    let cases = [
        ("lines", json!([2, 2]), "l2"),
        ("lines", json!([2, 0]), "l2\nl3\n"),
        ("lines", json!([2, -1]), "l2\nl3\n"),
        ("lines", json!([1, 3]), "l1\nl2\nl3"),
        ("lines", json!([1, 4]), "l1\nl2\nl3\n"),
        ("lines", json!([3, 9]), "l3\n"),
        ("lines", json!([4, 4]), ""),
        ("lines", json!([5, 9]), ""),
        ("lines", json!([0, 1]), "l1"),
        ("lines", json!([-7, 1]), "l1"),
        ("lines", json!([3, 2]), ""),
        ("lines", json!([1e300, 1e300]), ""),
        ("lines", json!([-1e300, 2.0]), "l1\nl2"),
        ("lines", json!([]), "l1\nl2\nl3\n"),
        ("lines", Value::Null, "l1\nl2\nl3\n"),
        ("open", json!([1, 1]), "l1\r"),
        ("open", json!([2, 2]), "l2"),
        ("open", json!([2, 0]), "l2"),
    ];
    for (path, lines, want) in cases {
        assert_eq!(fixture.good("read", &range(path, &lines)), want, "{path} {lines}");
    }
    for lines in [json!([1]), json!([1, 2, 3])] {
        let want = "read: view_range must be [start_line, end_line]";
        assert_eq!(fixture.bad("read", &range("lines", &lines)), want);
    }
}

#[test]
fn a_file_over_the_cap_is_refused_and_one_of_exactly_the_cap_is_not() {
    // TOOL-READ-4
    let mut fixture = Fixture::new();
    fixture.file("exact", "x".repeat(CAP));
    fixture.file("over", "x".repeat(CAP + 1));
    assert_eq!(fixture.read("exact").len(), CAP);
    let want = "read: over is 262145 bytes, exceeds 262144-byte limit. Use the view_range parameter \
                to read specific line ranges, e.g. view_range: [1, 500].";
    assert_eq!(fixture.bad_read("over"), want);
    fixture.limits = FileLimits::with_file_bytes_max(None);
    assert_eq!(fixture.read("over").len(), CAP + 1);
}

#[test]
fn a_range_of_a_big_file_is_bounded_by_what_it_selects() {
    // TOOL-READ-5
    let fixture = Fixture::new();
    let line = format!("{}\n", "x".repeat(1_023));
    fixture.file("big", line.repeat(1_024));
    assert_eq!(fixture.good("read", &range("big", &json!([1_000, 1_001]))).len(), 2_047);
    // 256 lines of 1024 bytes without the last end fit, with one more byte they do not.
    assert_eq!(fixture.good("read", &range("big", &json!([1, 256]))).len(), CAP - 1);
    assert_eq!(fixture.good("read", &range("big", &json!([769, 0]))).len(), CAP);
    let want = "read: view_range [1, 257] of big exceeds 262144-byte limit. Narrow the view_range to \
                read a smaller portion.";
    assert_eq!(fixture.bad("read", &range("big", &json!([1, 257]))), want);
    let want = "read: view_range [-3, 0] of big exceeds 262144-byte limit. Narrow the view_range to \
                read a smaller portion.";
    assert_eq!(fixture.bad("read", &range("big", &json!([-3, 0]))), want);
}

#[test]
fn one_line_over_the_cap_is_told_apart() {
    // TOOL-READ-5
    let fixture = Fixture::new();
    let exact = "x".repeat(CAP);
    fixture.file("lines", format!("a\n{exact}\n{exact}y\nz"));
    assert_eq!(fixture.good("read", &range("lines", &json!([2, 2]))), exact);
    let want = "read: line 3 of lines alone exceeds 262144-byte limit. The read tool cannot return \
                part of a line, so view_range cannot narrow this further.";
    assert_eq!(fixture.bad("read", &range("lines", &json!([3, 3]))), want);
    assert_eq!(fixture.good("read", &range("lines", &json!([4, 4]))), "z");
}

#[test]
fn a_vast_line_is_never_held() {
    // TOOL-READ-5, INV-11: a sparse file far larger than memory
    let mut fixture = Fixture::new();
    let file = File::create(fixture.file("vast", "")).expect("a file");
    file.set_len(1 << 42).expect("a size");
    file.write_all_at(b"a\n", 0).expect("a line");
    assert_eq!(fixture.good("read", &range("vast", &json!([1, 1]))), "a");
    let want = "read: line 2 of vast alone exceeds";
    assert!(fixture.bad("read", &range("vast", &json!([2, 2]))).starts_with(want));
    let want = "read: vast is 4398046511104 bytes, exceeds";
    assert!(fixture.bad_read("vast").starts_with(want));
    // Even if no operator bounds it.
    fixture.limits = FileLimits::with_file_bytes_max(None);
    assert!(fixture.bad_read("vast").starts_with(&format!("{want} 268435456-byte limit.")));
    fixture.limits = FileLimits::with_file_bytes_max(Some(u64::MAX));
    assert!(fixture.bad_read("vast").starts_with(&format!("{want} 268435456-byte limit.")));
}

#[test]
fn what_is_not_text_is_refused_unless_it_is_left_out() {
    // TOOL-READ-6
    let fixture = Fixture::new();
    fixture.file("binary", b"good\n\xff\xfe\ngood");
    let want = "read: binary: not valid UTF-8 text (binary files are only supported for image/PDF \
                extensions)";
    assert_eq!(fixture.bad_read("binary"), want);
    assert_eq!(fixture.bad("read", &range("binary", &json!([2, 2]))), want);
    assert_eq!(fixture.good("read", &range("binary", &json!([3, 3]))), "good");
}

#[test]
fn images_and_pdf_files_are_blocks() {
    // TOOL-READ-7
    let fixture = Fixture::new();
    let data = b"\x89PNG\xff".to_vec();
    let cases = [
        ("a.png", "image/png"),
        ("b.JPG", "image/jpeg"),
        ("c.jpeg", "image/jpeg"),
        ("d.Gif", "image/gif"),
        ("e.webp", "image/webp"),
        ("f.pdf", "application/pdf"),
    ];
    for (name, media_type) in cases {
        fixture.file(name, &data);
        let (media_type, data) = (media_type.to_owned(), data.clone());
        let want = if name == "f.pdf" {
            Block::Document { media_type, data }
        } else {
            Block::Image { media_type, data }
        };
        let result = fixture.call("read", &json!({ "file_path": name }));
        assert_eq!((result.content, result.is_error), (vec![want], false), "{name}");
        assert_eq!(result.facts.output_bytes, 5);
        let want = "read: view_range is not supported for image/PDF files";
        assert_eq!(fixture.bad("read", &range(name, &json!([1, 2]))), want);
    }
    fixture.file("empty.png", "");
    assert_eq!(fixture.read("empty.png"), "");
    for name in ["x.png.txt", ".png", "png", "x.svg", "d.png/x"] {
        fixture.file(name, "text");
        assert_eq!(fixture.read(name), "text", "{name}");
    }
    assert_eq!(fixture.bad_read("no.png"), "read: no.png: no such file or directory");
}

#[test]
fn media_have_caps_of_their_own() {
    // TOOL-READ-7, TOOL-GEN-2
    let mut fixture = Fixture::new();
    for (name, cap) in [("a.png", 3_932_160), ("b.pdf", 20_971_520)] {
        let file = File::create(fixture.file(name, "")).expect("a file");
        file.set_len(cap).expect("a size");
        assert!(!fixture.call("read", &json!({ "file_path": name })).is_error, "{name}");
        file.set_len(cap + 1).expect("a size");
        let bytes = cap + 1;
        let want =
            format!("read: {name} is {bytes} bytes, exceeds {cap}-byte limit for image/PDF files.");
        assert_eq!(fixture.bad_read(name), want);
    }
    // A cap that an operator has set binds too, the default does not.
    fixture.limits = FileLimits::with_file_bytes_max(Some(100));
    fixture.file("a.png", "x".repeat(101));
    let want = "read: a.png is 101 bytes, exceeds 100-byte limit for image/PDF files.";
    assert_eq!(fixture.bad_read("a.png"), want);
}
