//! What the kernel refuses: a full or read-only disk, permissions, the file size limit (TOOL-GEN-4).
//!
//! Each test runs itself again as a child with a small file system of its own and without
//! capabilities, as in a jail. Where that cannot be had it is skipped, with the reason.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{Roots, run, text};
use crate::tool::files::FileLimits;

/// Tells the child where its file system is.
const DIRECTORY: &str = "STOCKADE_TEST_DIRECTORY";

/// In the child: its directory. In the parent, after the child: nothing. `options` are of the tmpfs,
/// `before` is a shell command that the child runs first.
fn as_child(test: &str, options: &str, before: &str) -> Option<PathBuf> {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return Some(PathBuf::from(directory));
    }
    let place = tempfile::tempdir().expect("a directory");
    let script = format!(
        "mount -t tmpfs -o {options} none \"${DIRECTORY}\" && {before} && \
         exec setpriv --bounding-set=-all --inh-caps=-all -- \"$@\""
    );
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "--", "sh", "-c", &script, "sh"])
        .arg(std::env::current_exe().expect("the test binary"))
        .args(["--exact", &format!("tool::files::tests::refused_by_kernel::{test}")])
        .env(DIRECTORY, place.path())
        .output();
    match output {
        Ok(output) if output.status.success() => {
            let shown = String::from_utf8_lossy(&output.stdout);
            assert!(shown.contains("1 passed"), "{shown}");
        }
        Ok(output) if output.stdout.is_empty() => {
            println!("skipped: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => println!("skipped: {error}"),
    }
    None
}

struct Child {
    directory: PathBuf,
    roots: Roots,
}

impl Child {
    fn new(directory: PathBuf) -> Self {
        let roots = Roots::open(&directory, &[], &[]).expect("the roots");
        Child { directory, roots }
    }

    fn call(&self, name: &str, input: &Value) -> String {
        text(&run(name, input.to_string().as_bytes(), &self.roots, &FileLimits::default()))
    }

    fn write(&self, path: &str, content: &str) -> String {
        self.call("write", &json!({ "file_path": path, "content": content }))
    }

    fn read(&self, path: &str) -> String {
        self.call("read", &json!({ "file_path": path }))
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.directory).expect("a directory").flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }
}

#[test]
fn a_full_disk_leaves_the_old_file_and_nothing_else() {
    // TOOL-WRITE-2, TOOL-WRITE-4
    let test = "a_full_disk_leaves_the_old_file_and_nothing_else";
    let Some(child) = as_child(test, "size=64k", "true").map(Child::new) else { return };
    assert_eq!(child.write("file", "old"), "wrote 3 bytes to file");
    let big = "x".repeat(100_000);
    let want = "no space left on device";
    assert_eq!(child.write("file", &big), format!("write: file: {want}"));
    assert_eq!(child.write("new", &big), format!("write: new: {want}"));
    let edit = json!({ "file_path": "file", "old_string": "old", "new_string": big });
    assert_eq!(child.call("edit", &edit), format!("edit: file: {want}"));
    assert_eq!(child.read("file"), "old");
    assert_eq!(child.names(), ["file"]);
}

#[test]
fn no_inode_left_is_an_error_too() {
    // TOOL-WRITE-4
    let test = "no_inode_left_is_an_error_too";
    let Some(child) = as_child(test, "nr_inodes=2", "true").map(Child::new) else { return };
    assert_eq!(child.write("file", "old"), "wrote 3 bytes to file");
    assert_eq!(child.write("file", "new"), "write: file: no space left on device");
    assert_eq!(child.write("a/b", "new"), "write: a/b: no space left on device");
    assert_eq!(child.names(), ["file"]);
}

#[test]
fn a_file_over_the_size_limit_is_an_error() {
    // TOOL-WRITE-4: SIGXFSZ is ignored, as whoever runs the tools must
    let test = "a_file_over_the_size_limit_is_an_error";
    let before = "ulimit -f 16 && trap '' XFSZ";
    let Some(child) = as_child(test, "size=1m", before).map(Child::new) else { return };
    assert_eq!(child.write("file", "old"), "wrote 3 bytes to file");
    assert_eq!(child.write("file", &"x".repeat(100_000)), "write: file: file too large");
    assert_eq!(child.read("file"), "old");
    assert_eq!(child.names(), ["file"]);
}

#[test]
fn a_read_only_disk_is_an_error() {
    // TOOL-WRITE-4
    let before =
        format!("echo old > \"${DIRECTORY}/file\" && mount -o remount,ro \"${DIRECTORY}\"");
    let test = "a_read_only_disk_is_an_error";
    let Some(child) = as_child(test, "size=64k", &before).map(Child::new) else { return };
    for path in ["file", "new", "a/b"] {
        let want = format!("write: {path}: read-only file system");
        assert_eq!(child.write(path, "x"), want);
    }
    assert_eq!(child.read("file"), "old\n");
}

#[test]
fn permissions_hold_as_they_do_for_bash() {
    // TOOL-PATH-2, TOOL-READ-8, TOOL-WRITE-4, TOOL-EDIT-1
    let test = "permissions_hold_as_they_do_for_bash";
    let Some(child) = as_child(test, "size=256k", "true").map(Child::new) else { return };
    let set = |path: &str, mode: u32| {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(Path::new(&child.directory).join(path), mode).expect("a mode");
    };
    for path in ["closed/file", "listed/file", "free/secret", "free/kept", "free/open"] {
        child.write(path, "hit");
    }
    set("free/secret", 0o000);
    set("free/kept", 0o444);
    set("listed", 0o500);
    set("closed", 0o000);
    for path in ["closed/file", "closed/none", "closed/a/b", "free/secret"] {
        assert_eq!(child.read(path), format!("read: {path}: permission denied"));
    }
    // It could be replaced, as the directory may be written; bash would not do that either.
    for path in ["closed/file", "closed/new", "listed/new", "free/secret", "free/kept"] {
        assert_eq!(child.write(path, "x"), format!("write: {path}: permission denied"));
    }
    for path in ["closed/file", "free/secret", "free/kept", "listed/file"] {
        let edit = json!({ "file_path": path, "old_string": "hit", "new_string": "x" });
        assert_eq!(child.call("edit", &edit), format!("edit: {path}: permission denied"));
    }
    assert_eq!(child.read("free/kept"), "hit");
    // A search goes on where it can.
    let found = child.call("grep", &json!({ "pattern": "hit" }));
    let lines: Vec<_> = found.lines().filter_map(|line| line.rsplit('/').next()).collect();
    assert_eq!(lines, ["kept:1:hit", "open:1:hit", "file:1:hit"]);
    let found = child.call("glob", &json!({ "pattern": "**/{file,secret}" }));
    assert_eq!(found.lines().count(), 2, "{found}");
}
