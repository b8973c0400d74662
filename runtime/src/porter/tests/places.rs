//! What is done to a place: files put there, directories replaced, everything removed.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn put_text(
    ground: &Ground,
    path: &str,
    text: &str,
    mode: u32,
    replace: Replace,
) -> Result<u64, Refusal> {
    put(ground.fd(), &mut text.as_bytes(), path, mode, 1_000, replace, &mut Patient)
}

#[test]
fn a_file_is_put_with_its_directories() {
    let ground = Ground::new();
    let bytes = put_text(&ground, "in/a/b.txt", "hello", 0o640, Replace::Refuse).expect("put");
    assert_eq!(bytes, 5);
    assert_eq!(ground.tree(), ["in/", "in/a/", "in/a/b.txt"]);
    assert_eq!((ground.mode("in"), ground.mode("in/a")), (0o700, 0o700));
    assert_eq!(ground.mode("in/a/b.txt"), 0o644);
    put_text(&ground, "in/run", "x", 0o4711, Replace::Refuse).expect("put");
    assert_eq!(ground.mode("in/run"), 0o755);

    let refusal = put_text(&ground, "in/run", "y", 0o644, Replace::Refuse).expect_err("exists");
    assert_eq!(refusal, Refusal::Exists { path: "in/run".to_owned() });
    put_text(&ground, "in/run", "y", 0o644, Replace::Swap).expect("replaced");
    assert_eq!(fs::read_to_string(ground.path("in/run")).expect("run"), "y");

    let long = "x".repeat(1_001);
    put_text(&ground, "in/long", &long, 0o644, Replace::Refuse).expect_err("too long");
    put_text(&ground, "in/a", "x", 0o644, Replace::Swap).expect_err("a directory");
    assert_eq!(ground.tree(), ["in/", "in/a/", "in/a/b.txt", "in/run"]);
}

#[test]
fn a_path_that_leads_elsewhere_is_refused() {
    let ground = Ground::new();
    fs::create_dir(ground.outside("target")).expect("made");
    symlink(ground.outside("target"), ground.path("link")).expect("linked");
    let long = "a/".repeat(600);
    for path in ["", "/x", "../x", "a/../x", "./x", "a//x", "a/", "x\0y", "x\ny", &long] {
        let refusal = put_text(&ground, path, "x", 0o644, Replace::Swap).expect_err(path);
        assert!(matches!(refusal, Refusal::Path { .. }), "{path:?}: {refusal}");
    }
    put_text(&ground, "link/x", "x", 0o644, Replace::Swap).expect_err("through a link");
    let what = skill("link/s");
    ground.unpack(&zip(&[plain("a", "x")]), &what).expect_err("through a link");
    remove(&ground, "link/x").expect("nothing is there");
    assert!(fs::read_dir(ground.outside("target")).expect("there").next().is_none());
    // The link itself is replaced, and what it leads to is left.
    put_text(&ground, "link", "x", 0o644, Replace::Swap).expect("replaced");
    assert!(ground.path("link").is_file());
}

fn remove(ground: &Ground, path: &str) -> Result<(), Refusal> {
    super::super::clear::remove_tree(ground.fd(), path, &mut Patient)
}

#[test]
fn an_existing_entry_is_replaced_as_a_whole_or_not_at_all() {
    // SKILL-4, SKILL-13.
    let archive = zip(&[plain("a", "new"), plain("d/b", "new")]);
    let old = |ground: &Ground, kind: &str| match kind {
        "directory" => {
            fs::create_dir_all(ground.path("s/old")).expect("made");
            fs::write(ground.path("s/a"), "old").expect("written");
        }
        "file" => fs::write(ground.path("s"), "old").expect("written"),
        _ => symlink(ground.outside("target"), ground.path("s")).expect("linked"),
    };
    for kind in ["directory", "file", "link"] {
        let ground = Ground::new();
        fs::create_dir(ground.outside("target")).expect("made");
        fs::write(ground.outside("target/keep"), "").expect("written");
        old(&ground, kind);
        let before = ground.tree();
        let keep = Unpack { replace: Replace::Refuse, ..skill("s") };
        let refusal = ground.unpack(&archive, &keep).expect_err(kind);
        assert!(matches!(refusal, Refusal::Exists { .. }), "{kind}: {refusal}");
        assert_eq!(ground.tree(), before, "{kind}");
        let unpacked = ground.unpack(&archive, &skill("s")).expect(kind);
        assert!(unpacked.replaced, "{kind}");
        assert_eq!(ground.tree(), ["s/", "s/a", "s/d/", "s/d/b"], "{kind}");
        assert!(ground.outside("target/keep").exists(), "{kind}: a link was followed");
    }
}

#[test]
fn an_archive_can_be_unpacked_into_the_place_itself() {
    let ground = Ground::new();
    fs::write(ground.path("mine"), "mine").expect("written");
    let here = Unpack { replace: Replace::Refuse, wrapper: Wrapper::Keep, ..skill("") };
    ground.unpack(&tar(&[plain("a", "1"), plain("d/b", "2")]), &here).expect("unpacked");
    assert_eq!(ground.tree(), ["a", "d/", "d/b", "mine"]);
    let again = tar(&[plain("new", ""), plain("mine", "other")]);
    ground.unpack(&again, &here).expect_err("there already");
    assert_eq!(ground.tree(), ["a", "d/", "d/b", "mine"]);
    assert_eq!(fs::read_to_string(ground.path("mine")).expect("mine"), "mine");
    let swap = Unpack { replace: Replace::Swap, ..here };
    assert!(ground.unpack(&again, &swap).expect("replaced").replaced);
    assert_eq!(fs::read_to_string(ground.path("mine")).expect("mine"), "other");
    assert_eq!(ground.tree(), ["a", "d/", "d/b", "mine", "new"]);
}

#[test]
fn everything_can_be_removed_however_it_was_made() {
    let ground = Ground::new();
    fs::create_dir(ground.outside("target")).expect("made");
    fs::write(ground.outside("target/keep"), "").expect("written");
    symlink(ground.outside("target"), ground.path("link")).expect("linked");
    fs::create_dir_all(ground.path("locked/in")).expect("made");
    fs::write(ground.path("locked/in/x"), "").expect("written");
    for name in ["locked/in", "locked"] {
        fs::set_permissions(ground.path(name), fs::Permissions::from_mode(0o000)).expect("locked");
    }
    nix::unistd::mkfifo(&ground.path("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("a FIFO");
    fs::write(ground.path(&"n".repeat(255)), "").expect("a long name");
    deep(&ground, "deep", 3_000);
    clear(ground.fd(), &mut Patient).expect("cleared");
    assert!(ground.tree().is_empty(), "{:?}", ground.tree());
    assert!(ground.outside("target/keep").exists(), "a link was followed");
    // One entry of several.
    deep(&ground, "a", 500);
    fs::write(ground.path("b"), "").expect("written");
    remove(&ground, "a").expect("removed");
    remove(&ground, "a").expect("absent is no error");
    assert_eq!(ground.tree(), ["b"]);
}

/// Directories inside directories, more than a path can name.
fn deep(ground: &Ground, top: &str, depth: usize) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut here = rustix::fs::openat(ground.fd(), ".", flags, Mode::empty()).expect("open");
    for number in 0..depth {
        let name = if number == 0 { top } else { "deeper" };
        rustix::fs::mkdirat(&here, name, Mode::from_raw_mode(0o700)).expect("made");
        let next = rustix::fs::openat(&here, name, flags, Mode::empty()).expect("open");
        here = next;
    }
}

#[test]
fn an_operation_stops_when_it_is_told_to() {
    struct After(u32);
    impl Watch for After {
        fn go_on(&mut self) -> Result<(), Refusal> {
            self.0 = self.0.checked_sub(1).ok_or(Refusal::Cancelled)?;
            Ok(())
        }
    }
    // SKILL-12: nothing half unpacked is left.
    let items: Vec<_> = (0..20).map(|number| plain(&format!("f{number}"), "x")).collect();
    for archive in [zip(&items), tar(&items)] {
        for steps in [0, 3, 20, 30] {
            let ground = Ground::new();
            let outcome = unpack(ground.fd(), &file_of(&archive), &skill("s"), &mut After(steps));
            assert_eq!(outcome, Err(Refusal::Cancelled), "after {steps}");
            assert!(ground.tree().is_empty(), "after {steps}: {:?}", ground.tree());
        }
    }
}
