//! TOOL-WRITE

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{Fixture, Roots, fifo, run, text};
use crate::tool::files::FileLimits;

/// Tells the child of a test where its full file system is.
const FULL: &str = "STOCKADE_TEST_FULL_DIRECTORY";

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
    // TOOL-WRITE-2
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

/// Runs a test of this file again in a mount namespace with a small tmpfs; true in the child, or if
/// there is nothing to be done by the parent any more.
fn in_small_file_system(test: &str, options: &str) -> Option<PathBuf> {
    if let Some(directory) = std::env::var_os(FULL) {
        return Some(PathBuf::from(directory));
    }
    let place = tempfile::tempdir().expect("a directory");
    let script = format!("mount -t tmpfs -o {options} none \"${FULL}\" && exec \"$@\"");
    let this = std::env::current_exe().expect("the test binary");
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "--", "sh", "-c", &script, "sh"])
        .arg(this)
        .args(["--exact", &format!("tool::files::tests::write::{test}")])
        .env(FULL, place.path())
        .output();
    match output {
        Ok(output) if output.status.success() => {
            let shown = String::from_utf8_lossy(&output.stdout);
            assert!(shown.contains("1 passed"), "{shown}");
        }
        Ok(output) if output.status.code() != Some(101) => {
            println!("skipped: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => println!("skipped: {error}"),
    }
    None
}

#[test]
fn a_full_disk_leaves_the_old_file_and_nothing_else() {
    // TOOL-WRITE-2, TOOL-WRITE-4
    let test = "a_full_disk_leaves_the_old_file_and_nothing_else";
    let Some(directory) = in_small_file_system(test, "size=64k") else { return };
    let roots = Roots::open(&directory, &[], &[]).expect("the roots");
    let call = |name: &str, input: &Value| {
        text(&run(name, input.to_string().as_bytes(), &roots, &FileLimits::default()))
    };
    assert_eq!(call("write", &write("file", "old")), "wrote 3 bytes to file");
    let big = "x".repeat(100_000);
    let want = "no space left on device";
    assert_eq!(call("write", &write("file", &big)), format!("write: file: {want}"));
    assert_eq!(call("write", &write("new", &big)), format!("write: new: {want}"));
    let edit = json!({ "file_path": "file", "old_string": "old", "new_string": big });
    assert_eq!(call("edit", &edit), format!("edit: file: {want}"));
    assert_eq!(call("read", &json!({ "file_path": "file" })), "old");
    assert_eq!(names(&directory), ["file"]);
}

#[test]
fn no_inode_left_is_an_error_too() {
    // TOOL-WRITE-4
    let Some(directory) = in_small_file_system("no_inode_left_is_an_error_too", "nr_inodes=2")
    else {
        return;
    };
    let roots = Roots::open(&directory, &[], &[]).expect("the roots");
    let call = |input: &Value| {
        text(&run("write", input.to_string().as_bytes(), &roots, &FileLimits::default()))
    };
    assert_eq!(call(&write("file", "old")), "wrote 3 bytes to file");
    assert_eq!(call(&write("file", "new")), "write: file: no space left on device");
    assert_eq!(call(&write("a/b", "new")), "write: a/b: no space left on device");
    assert_eq!(names(&directory), ["file"]);
}

#[test]
fn a_file_that_may_not_be_written_stays() {
    // TOOL-WRITE-4: as it would to bash. Root may write everything, so a mount must refuse.
    let Some(directory) = in_small_file_system("a_file_that_may_not_be_written_stays", "size=64k")
    else {
        return;
    };
    fs::write(directory.join("file"), "old").expect("a file");
    let status =
        Command::new("mount").args(["-o", "remount,ro"]).arg(&directory).status().expect("mount");
    assert!(status.success());
    let roots = Roots::open(&directory, &[], &[]).expect("the roots");
    for path in ["file", "new", "a/b"] {
        let input = write(path, "x").to_string();
        let result = run("write", input.as_bytes(), &roots, &FileLimits::default());
        assert_eq!(text(&result), format!("write: {path}: read-only file system"));
    }
}
