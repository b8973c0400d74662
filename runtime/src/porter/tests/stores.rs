//! Memory stores: what a scan sees, how files are written and removed.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;

use sha2::{Digest as _, Sha256};

use super::store::{self, MARKER};
use super::*;

const MARK: &[u8] = b"version 1\nmemstore_1";

fn sum(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

fn prepared() -> Ground {
    let ground = Ground::new();
    store::prepare(ground.fd(), MARK, &mut Patient).expect("prepared");
    ground
}

fn scan(ground: &Ground) -> Scan {
    store::scan(ground.fd(), MARK, &mut Patient).expect("scanned")
}

fn paths(scan: &Scan) -> Vec<&str> {
    scan.files.iter().map(|file| file.path.as_str()).collect()
}

#[test]
fn a_store_is_emptied_and_marked() {
    // MEM-6.
    let ground = Ground::new();
    fs::create_dir_all(ground.path("old/dir")).expect("made");
    fs::write(ground.path("old/dir/file"), "old").expect("written");
    store::prepare(ground.fd(), MARK, &mut Patient).expect("prepared");
    assert_eq!(ground.tree(), [MARKER]);
    assert_eq!(fs::read(ground.path(MARKER)).expect("marker"), MARK);
    assert_eq!(ground.mode(MARKER), 0o600);
    assert_eq!(scan(&ground), Scan { marker: Marker::Intact, files: Vec::new(), skipped: 0 });
}

#[test]
fn a_store_is_marked_and_everything_else_in_it_stays() {
    // MEM-11, MEM-13: whatever file or link stands in the marker's place.
    let ground = Ground::new();
    fs::create_dir_all(ground.path("notes")).expect("made");
    fs::write(ground.path("notes/a.md"), "new").expect("written");
    fs::write(ground.path("target"), "not ours").expect("written");
    assert_eq!(scan(&ground).marker, Marker::Missing);
    let put: [fn(&std::path::Path); 3] = [
        |marker| fs::write(marker, "another mark").expect("written"),
        |marker| symlink("target", marker).expect("linked"),
        |_| {},
    ];
    for put in put {
        let marker = ground.path(MARKER);
        if fs::symlink_metadata(&marker).is_ok() {
            fs::remove_file(&marker).expect("removed");
        }
        put(&marker);
        assert_ne!(scan(&ground).marker, Marker::Intact);
        store::mark(ground.fd(), MARK).expect("marked");
        assert_eq!(scan(&ground).marker, Marker::Intact);
        assert_eq!(fs::read(&marker).expect("marker"), MARK);
        assert_eq!(ground.mode(MARKER), 0o600);
        assert_eq!(paths(&scan(&ground)), ["notes/a.md", "target"]);
        assert_eq!(
            fs::read(ground.path("target")).expect("there"),
            b"not ours",
            "no link followed"
        );
    }
}

#[test]
fn files_are_written_in_one_step_with_their_directories() {
    // MEM-9.
    let ground = prepared();
    store::write(ground.fd(), "notes/a b/c.md", b"one").expect("written");
    assert_eq!(ground.tree(), [MARKER, "notes/", "notes/a b/", "notes/a b/c.md"]);
    assert_eq!((ground.mode("notes"), ground.mode("notes/a b")), (0o700, 0o700));
    assert_eq!(ground.mode("notes/a b/c.md"), 0o600);
    let before = fs::metadata(ground.path("notes/a b/c.md")).expect("there");
    store::write(ground.fd(), "notes/a b/c.md", b"two").expect("written");
    let after = fs::metadata(ground.path("notes/a b/c.md")).expect("there");
    use std::os::unix::fs::MetadataExt as _;
    assert_ne!(before.ino(), after.ino(), "a reader must see all of the old or all of the new");
    for (path, why) in [
        ("notes", "a directory"),
        ("notes/a b/c.md/d", "below a file"),
        (MARKER, "the marker"),
        ("x/.fs-0123.tmp", "a temporary name"),
        ("../x", "outside"),
        ("/x", "absolute"),
        ("", "nothing"),
    ] {
        store::write(ground.fd(), path, b"x").expect_err(why);
    }
    assert_eq!(paths(&scan(&ground)), ["notes/a b/c.md"]);
}

#[test]
fn a_vanished_root_is_never_made_again() {
    // MEM-9.
    let ground = prepared();
    fs::remove_dir_all(ground.path("")).expect("removed");
    store::write(ground.fd(), "a", b"x").expect_err("no root");
    store::write(ground.fd(), "d/a", b"x").expect_err("no root");
    assert!(!ground.path("").exists());
}

#[test]
fn a_scan_sees_regular_files_and_nothing_else() {
    // MEM-10, MEM-34.
    let ground = prepared();
    fs::create_dir_all(ground.path(".hidden/deep")).expect("made");
    for (path, text) in [("a", "1"), (".dot", "2"), (".hidden/deep/b", "3"), (".fs-x.tmp", "4")] {
        fs::write(ground.path(path), text).expect("written");
    }
    fs::write(ground.path(".hidden/.fs-00ff.tmp"), "5").expect("written");
    fs::create_dir(ground.outside("target")).expect("made");
    fs::write(ground.outside("target/secret"), "x").expect("written");
    symlink(ground.outside("target/secret"), ground.path("link")).expect("linked");
    symlink(ground.outside("target"), ground.path("linkdir")).expect("linked");
    symlink("nowhere", ground.path("dangling")).expect("linked");
    nix::unistd::mkfifo(&ground.path("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("a FIFO");
    let socket = std::os::unix::net::UnixListener::bind(ground.path("socket")).expect("a socket");
    fs::write(ground.path("").join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), "x").expect("odd");
    fs::write(ground.path("new\nline"), "x").expect("odd");
    let scanned = scan(&ground);
    assert_eq!(paths(&scanned), [".dot", ".hidden/deep/b", "a"]);
    assert_eq!(scanned.files[2], Scanned { path: "a".to_owned(), bytes: 1, sha256: sum("1") });
    // Three links, FIFO, socket, two names.
    assert_eq!(scanned.skipped, 7);
    assert!(!ground.path(".fs-x.tmp").exists() && !ground.path(".hidden/.fs-00ff.tmp").exists());
    drop(socket);
}

#[test]
fn the_marker_is_judged_by_its_content_and_its_kind() {
    // MEM-11.
    let ground = prepared();
    let state = |ground: &Ground| scan(ground).marker;
    assert_eq!(state(&ground), Marker::Intact);
    for text in ["", "version 1\nmemstore_2", "version 1\nmemstore_1\n", "version 1\nmemstore_"] {
        fs::write(ground.path(MARKER), text).expect("written");
        assert_eq!(state(&ground), Marker::Different, "{text:?}");
    }
    fs::remove_file(ground.path(MARKER)).expect("removed");
    assert_eq!(state(&ground), Marker::Missing);
    fs::create_dir(ground.path(MARKER)).expect("made");
    assert_eq!(state(&ground), Marker::Different);
    fs::remove_dir(ground.path(MARKER)).expect("removed");
    fs::write(ground.outside("copy"), MARK).expect("written");
    symlink(ground.outside("copy"), ground.path(MARKER)).expect("linked");
    assert_eq!(state(&ground), Marker::Different, "a link is no marker");
}

#[test]
fn a_file_is_read_as_a_whole_or_not() {
    let ground = prepared();
    store::write(ground.fd(), "a", b"0123456789").expect("written");
    assert_eq!(store::read(ground.fd(), "a", 10), Ok(Some(b"0123456789".to_vec())));
    store::read(ground.fd(), "a", 9).expect_err("too long");
    fs::create_dir(ground.path("dir")).expect("made");
    symlink("a", ground.path("link")).expect("linked");
    nix::unistd::mkfifo(&ground.path("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("a FIFO");
    for path in ["dir", "link", "fifo", "absent", "absent/b", "a/b", "link/b"] {
        assert_eq!(store::read(ground.fd(), path, 100), Ok(None), "{path}");
    }
    store::read(ground.fd(), "../x", 100).expect_err("outside");
}

#[test]
fn a_file_is_removed_only_with_the_content_that_is_expected() {
    // MEM-16.
    let ground = prepared();
    store::write(ground.fd(), "d/a", b"one").expect("written");
    symlink("d", ground.path("link")).expect("linked");
    let remove = |path: &str, text: &str| store::remove(ground.fd(), path, sum(text), &mut Patient);
    assert_eq!(remove("d/a", "two"), Ok(Removed::Changed));
    assert_eq!(remove("d/b", "one"), Ok(Removed::Absent));
    assert_eq!(remove("link/a", "one"), Ok(Removed::Absent), "through a link");
    assert_eq!(remove("link", "one"), Ok(Removed::Changed));
    assert_eq!(remove("d", "one"), Ok(Removed::Changed));
    assert!(ground.path("d/a").exists() && ground.path("link").exists());
    assert_eq!(remove("d/a", "one"), Ok(Removed::Removed));
    assert_eq!(remove("d/a", "one"), Ok(Removed::Absent));
}

#[test]
fn names_deeper_or_longer_than_a_memory_can_have_are_counted() {
    let ground = prepared();
    let deep = "d/".repeat(520);
    fs::create_dir_all(ground.path(&deep)).expect("made");
    fs::write(ground.path(&format!("{deep}f")), "x").expect("written");
    fs::write(ground.path("a"), "x").expect("written");
    let scanned = scan(&ground);
    assert_eq!(paths(&scanned), ["a"]);
    assert_eq!(scanned.skipped, 1);
}

/// Goes on for so many steps of a walk.
struct Steps(u32);

impl Watch for Steps {
    fn go_on(&mut self) -> Result<(), Refusal> {
        self.0 = self.0.checked_sub(1).ok_or(Refusal::TooLong { seconds: 0 })?;
        Ok(())
    }
}

#[test]
fn a_file_too_long_to_be_a_memory_is_not_read() {
    // INV-11, MEM-10: a file of holes costs nothing to make, and would take years to read.
    let ground = prepared();
    let huge = fs::File::create(ground.path("huge")).expect("made");
    huge.set_len(4 << 40).expect("holes");
    fs::write(ground.path("a"), "1").expect("written");
    let scan = |steps| store::scan(ground.fd(), MARK, &mut Steps(steps));
    let scanned = scan(100).expect("in a hundred steps of 128 KiB");
    assert_eq!(paths(&scanned), ["a", "huge"]);
    assert_eq!(scanned.files[0].sha256, sum("1"));
    assert_eq!(scanned.files[1].bytes, 4 << 40);
    let told = scanned.files[1].sha256;
    assert_eq!(scan(100).expect("again").files[1].sha256, told, "as it was");
    let remove = |sha256| store::remove(ground.fd(), "huge", sha256, &mut Steps(100));
    assert_eq!(remove(sum("x")), Ok(Removed::Changed));
    // MEM-22: another try once it has changed.
    huge.set_modified(std::time::UNIX_EPOCH).expect("another time");
    let written = scan(100).expect("scanned").files[1].sha256;
    assert_ne!(written, told);
    huge.set_len(5 << 40).expect("longer");
    huge.set_modified(std::time::UNIX_EPOCH).expect("the same time");
    assert_ne!(scan(100).expect("scanned").files[1].sha256, written);
    // The control: the longest that is read.
    let longest = vec![b'x'; 1 << 20];
    fs::write(ground.path("a"), &longest).expect("written");
    let scanned = scan(100).expect("scanned");
    assert_eq!(scanned.files[0].sha256, <[u8; 32]>::from(Sha256::digest(&longest)));
}

#[test]
fn many_files_of_holes_are_too_much_at_once() {
    // INV-11: each is short enough to be hashed; the store's size bounds none of them.
    let ground = prepared();
    for n in 0..65 {
        fs::File::create(ground.path(&n.to_string())).expect("made").set_len(1 << 20).expect("set");
    }
    let refused = store::scan(ground.fd(), MARK, &mut Patient).expect_err("65 MiB of holes");
    assert!(matches!(refused, Refusal::TooMuch { limit, .. } if limit == 64 << 20), "{refused}");
    fs::remove_file(ground.path("0")).expect("removed");
    assert_eq!(scan(&ground).files.len(), 64);
}
