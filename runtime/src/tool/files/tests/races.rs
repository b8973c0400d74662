//! TOOL-PATH-3: a component that is swapped between the check and the use.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;

use super::{Fixture, fifo, text};

/// At least so many, and more until both outcomes were seen.
const TRIES_MIN: u32 = 1_000;
const TRIES_MAX: u32 = 50_000;

/// Exchanges two paths over and over while `act` runs.
fn while_swapping(fixture: &Fixture, one: &str, other: &str, act: impl FnOnce()) {
    let done = AtomicBool::new(false);
    let (one, other) = (fixture.path(one), fixture.path(other));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).expect("an exchange");
            }
        });
        act();
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_directory_swapped_for_a_link_never_leads_outside() {
    // TOOL-PATH-3, RACE-17
    let fixture = Fixture::new();
    fixture.file("real/deep/file", "inside");
    let outside = fixture.beside("o");
    fs::create_dir(outside.join("deep")).expect("a directory");
    fs::write(outside.join("deep/file"), "outside").expect("a file");
    symlink(&outside, fixture.path("link")).expect("a link");
    let (mut read, mut refused) = (0, 0);
    while_swapping(&fixture, "real", "link", || {
        for tried in 0..TRIES_MAX {
            if tried >= TRIES_MIN && read > 0 && refused > 0 {
                break;
            }
            let input = json!({ "file_path": "real/deep/file", "content": "inside",
                "old_string": "outside", "new_string": "x", "pattern": "outside" });
            let result = fixture.call("read", &input);
            if result.is_error {
                refused += 1;
            } else {
                assert_eq!(text(&result), "inside");
                read += 1;
            }
            fixture.call("write", &input);
            assert!(fixture.call("edit", &input).is_error);
            assert_eq!(fixture.good("grep", &input), "no matches");
            let listed = fixture.good("glob", &json!({ "pattern": "*/*/*" }));
            assert!(!listed.contains("/o/"), "{listed}");
            let new = json!({ "file_path": "real/deep/new", "content": "x" });
            fixture.call("write", &new);
        }
    });
    assert_eq!(fs::read_to_string(outside.join("deep/file")).expect("a file"), "outside");
    assert_eq!(fs::read_dir(outside.join("deep")).expect("a directory").count(), 1);
    assert!(read > 0 && refused > 0, "no race: {read} read, {refused} refused");
}

#[test]
fn a_file_swapped_for_a_fifo_never_blocks() {
    // TOOL-READ-1
    let fixture = Fixture::new();
    fixture.file("file", "text");
    fifo(&fixture.path("pipe"));
    while_swapping(&fixture, "file", "pipe", || {
        for _ in 0..TRIES_MIN {
            let result = fixture.call("read", &json!({ "file_path": "file" }));
            let want = if result.is_error { "read: file: not a regular file" } else { "text" };
            assert_eq!(text(&result), want);
            fixture.good("grep", &json!({ "pattern": "text" }));
        }
    });
}

#[test]
fn a_file_swapped_for_a_link_is_never_read_or_written_through_it() {
    // TOOL-PATH-3, TOOL-WRITE-2
    let fixture = Fixture::new();
    fixture.file("file", "inside");
    let outside = fixture.beside("o/secret");
    fs::write(&outside, "outside").expect("a file");
    symlink(&outside, fixture.path("link")).expect("a link");
    let spare = fixture.path("spare");
    let (mut read, mut refused) = (0, 0);
    while_swapping(&fixture, "file", "link", || {
        for tried in 0..TRIES_MAX {
            if tried >= TRIES_MIN && read > 0 && refused > 0 {
                break;
            }
            // A write may have replaced the link: both are made anew.
            fs::write(&spare, "inside").expect("a file");
            fs::rename(&spare, fixture.path("file")).expect("a rename");
            symlink(&outside, &spare).expect("a link");
            fs::rename(&spare, fixture.path("link")).expect("a rename");
            let input = json!({ "file_path": "file", "content": "inside", "old_string": "side",
                "new_string": "side", "pattern": "outside" });
            let result = fixture.call("read", &input);
            if result.is_error {
                refused += 1;
            } else {
                assert_eq!(text(&result), "inside");
                read += 1;
            }
            let result = fixture.call("edit", &input);
            assert!(result.is_error || text(&result).ends_with("(1 replacement(s))"));
            assert_eq!(fixture.good("grep", &input), "no matches");
            fixture.call("write", &input);
        }
    });
    assert_eq!(fs::read_to_string(outside).expect("a file"), "outside");
    assert!(read > 0 && refused > 0, "no race: {read} read, {refused} refused");
}
