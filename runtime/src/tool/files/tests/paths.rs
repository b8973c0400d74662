//! TOOL-PATH: where a path may lead.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::OFlags;
use serde_json::json;

use super::super::beneath;
use super::{Fixture, fifo, memory_directory};
use crate::tool::files::Roots;

#[test]
fn relative_and_absolute_paths_inside_the_workdir_are_taken() {
    // TOOL-PATH-1, TOOL-PATH-2
    let fixture = Fixture::new();
    let file = fixture.file("a/b.txt", "text");
    fixture.file("c/d", "");
    let workdir = fixture.path("");
    let workdir = workdir.to_str().expect("UTF-8").trim_end_matches('/');
    let spellings = [
        "a/b.txt".to_owned(),
        "./a/./b.txt".to_owned(),
        "a//b.txt".to_owned(),
        "a/b.txt/".to_owned(),
        "c/../a/b.txt".to_owned(),
        "none/../a/b.txt".to_owned(),
        "../w/a/b.txt".to_owned(),
        file.display().to_string(),
        format!("{workdir}/../w/a/b.txt"),
        format!("/..{workdir}/a/b.txt"),
    ];
    for spelling in spellings {
        assert_eq!(fixture.read(&spelling), "text", "{spelling}");
    }
}

#[test]
fn a_path_that_leads_outside_is_refused_in_the_callers_spelling() {
    // TOOL-PATH-4, TOOL-GEN-3
    let fixture = Fixture::new();
    fs::write(fixture.beside("o/secret"), "x").expect("a file");
    fixture.link("up", "..");
    fixture.link("out", fixture.beside("o"));
    fixture.link("leaf", "../o/secret");
    fixture.link("dangling", "../o/new");
    fixture.link("twice", "out/secret");
    fs::create_dir(fixture.beside("w2")).expect("a directory");
    let outside = fixture.beside("w2/x").display().to_string();
    let spellings = [
        "..",
        "../o/secret",
        "a/../../o/secret",
        "/etc/passwd",
        "/",
        "/..",
        "../w2/x",
        "up/o/secret",
        "up",
        "out/secret",
        "out/none/none",
        "leaf",
        "dangling",
        "twice",
        "../W/a",
        &outside,
    ];
    for spelling in spellings {
        let want = format!("path '{spelling}' is outside the session's working directory");
        let path =
            json!({ "file_path": spelling, "content": "", "old_string": "x", "new_string": "" });
        for tool in ["read", "write", "edit"] {
            assert_eq!(fixture.bad(tool, &path), format!("{tool}: {want}"));
        }
        let path = json!({ "pattern": "x", "path": spelling });
        for tool in ["glob", "grep"] {
            assert_eq!(fixture.bad(tool, &path), format!("{tool}: {want}"));
        }
    }
    assert!(!fixture.beside("o/new").exists(), "written through a dangling link");
}

#[test]
fn allowed_roots_are_taken_and_named_in_the_refusal() {
    // TOOL-PATH-1, TOOL-PATH-4
    let fixture = Fixture::with_roots(&["m"], &[]);
    fs::write(fixture.beside("m/note"), "text").expect("a file");
    fixture.link("memory", fixture.beside("m"));
    fixture.link("relative", "../m/note");
    for spelling in ["../m/note", "memory/note", "relative"] {
        assert_eq!(fixture.read(spelling), "text", "{spelling}");
    }
    let want = "read: path '../o/x' is outside the session's working directory and its other \
                permitted directories";
    assert_eq!(fixture.bad_read("../o/x"), want);
}

#[test]
fn links_inside_are_followed_one_after_the_other() {
    // TOOL-PATH-2
    let fixture = Fixture::new();
    fixture.file("a/b/file", "text");
    fixture.file("a/file", "other");
    fixture.link("direct", "a/b");
    fixture.link("absolute", fixture.path("a/b"));
    fixture.link("dots", "direct/../file");
    fixture.link("round", "../w/direct/file");
    fixture.link("missing", "a/new");
    assert_eq!(fixture.read("direct/file"), "text");
    assert_eq!(fixture.read("absolute/file"), "text");
    assert_eq!(fixture.read("round"), "text");
    // A link's own `..` is of the directory it led to, a caller's is text.
    assert_eq!(fixture.read("dots"), "other");
    assert_eq!(
        fixture.bad_read("direct/../file"),
        "read: direct/../file: no such file or directory"
    );
    // A link to nothing is written through: what it names comes to be.
    let input = json!({ "file_path": "missing", "content": "new" });
    assert_eq!(fixture.good("write", &input), "wrote 3 bytes to missing");
    assert_eq!(fs::read_to_string(fixture.path("a/new")).expect("a file"), "new");
    assert!(fixture.path("missing").is_symlink(), "the link was replaced");
}

#[test]
fn forty_links_are_followed_and_no_more() {
    // TOOL-PATH-2, TOOL-PATH-4, TOOL-GEN-2
    let fixture = Fixture::new();
    fixture.file("link0", "text");
    for hop in 1..=41 {
        fixture.link(&format!("link{hop}"), format!("link{}", hop - 1));
    }
    assert_eq!(fixture.read("link40"), "text");
    let want = "read: path 'link41': too many levels of symbolic links";
    assert_eq!(fixture.bad_read("link41"), want);
    fixture.link("self", "self");
    fixture.link("ping", "pong/x");
    fixture.link("pong", "ping/y");
    for name in ["self", "self/x", "ping", "pong"] {
        for tool in ["read", "write", "edit", "glob", "grep"] {
            let input = json!({ "file_path": name, "path": name, "pattern": "x", "content": "",
                "old_string": "x", "new_string": "y" });
            let want = format!("{tool}: path '{name}': too many levels of symbolic links");
            assert_eq!(fixture.bad(tool, &input), want);
        }
    }
}

#[test]
fn odd_paths_are_errors_and_nothing_else() {
    // TOOL-PATH-7, TOOL-GEN-4
    let fixture = Fixture::new();
    fixture.file("file", "x");
    let long = "n".repeat(5_000);
    let component = "n".repeat(256);
    let deep = "d/".repeat(2_048);
    let cases = [
        ("", "file_path is required".to_owned()),
        ("a\0b", "a\0b: invalid argument".to_owned()),
        (long.as_str(), format!("{long}: file name too long")),
        (component.as_str(), format!("{component}: file name too long")),
        (deep.as_str(), format!("{deep}: file name too long")),
        ("file/x", "file/x: not a directory".to_owned()),
        ("none/x", "none/x: no such file or directory".to_owned()),
        ("file/../none", "file/../none: no such file or directory".to_owned()),
    ];
    for (path, want) in cases {
        assert_eq!(fixture.bad_read(path), format!("read: {want}"));
    }
    let vast = "n".repeat(1 << 20);
    assert!(fixture.bad_read(&vast).len() < 10_000, "a vast path is repeated whole");
    for tool in ["write", "edit"] {
        let input = json!({ "file_path": "", "content": "", "old_string": "", "new_string": "" });
        assert_eq!(fixture.bad(tool, &input), format!("{tool}: file_path is required"));
    }
}

#[test]
fn read_only_roots_are_read_and_never_changed() {
    // TOOL-PATH-5
    let fixture = Fixture::with_roots(&["m"], &["m/sealed", "r"]);
    let sealed = fixture.beside("m/sealed");
    fs::write(sealed.join("note"), "text").expect("a file");
    fs::write(fixture.beside("r/note"), "text").expect("a file");
    fixture.link("way", fixture.beside("r/note"));
    assert_eq!(fixture.read("../m/sealed/note"), "text");
    assert_eq!(fixture.read("way"), "text");
    let root = |name: &str| fixture.beside(name).display().to_string();
    let cases = [
        ("../m/sealed/note", root("m/sealed")),
        ("../m/sealed/new/deep", root("m/sealed")),
        ("../m/sealed", root("m/sealed")),
        ("way", root("r")),
        ("../r/none", root("r")),
    ];
    for (path, root) in cases {
        let input =
            json!({ "file_path": path, "content": "", "old_string": "x", "new_string": "" });
        for tool in ["write", "edit"] {
            let want = format!("{tool}: {path} is inside read-only directory {root}");
            assert_eq!(fixture.bad(tool, &input), want);
        }
    }
    // Moving it does not open it.
    fs::rename(&sealed, fixture.beside("m/moved")).expect("a rename");
    let input = json!({ "file_path": "../m/moved/note", "content": "x" });
    let want = format!("write: ../m/moved/note is inside read-only directory {}", root("m/sealed"));
    assert_eq!(fixture.bad("write", &input), want);
    let free = json!({ "file_path": "../m/free/note", "content": "x" });
    assert_eq!(fixture.good("write", &free), "wrote 1 bytes to ../m/free/note");
}

#[test]
fn a_workdir_reached_by_a_link_is_known_by_both_names() {
    // TOOL-PATH-1
    let place = tempfile::tempdir().expect("a directory");
    fs::create_dir(place.path().join("real")).expect("a directory");
    fs::write(place.path().join("real/file"), "text").expect("a file");
    symlink("real", place.path().join("alias")).expect("a link");
    symlink(place.path().join("alias/file"), place.path().join("real/link")).expect("a link");
    let roots = Roots::open(&place.path().join("alias"), &[], &[]).expect("the roots");
    for path in ["alias/file", "real/file", "real/link", "alias/link", "real/../alias/file"] {
        let found = roots.find(place.path().join(path).to_str().expect("UTF-8")).expect(path);
        assert_eq!(found.below, Path::new("file"), "{path}");
    }
}

#[test]
fn a_root_that_is_no_directory_is_an_error_of_the_start() {
    let place = tempfile::tempdir().expect("a directory");
    let (file, pipe) = (place.path().join("file"), place.path().join("pipe"));
    fs::write(&file, "").expect("a file");
    fifo(&pipe);
    for path in [file, pipe, place.path().join("none")] {
        let error = Roots::open(place.path(), std::slice::from_ref(&path), &[])
            .expect_err("is no directory");
        let want = format!("cannot open permitted directory {}", path.display());
        assert_eq!(error.to_string(), want);
    }
}

/// One thing in a random tree: a name and what it is.
#[derive(Debug, Clone)]
enum Thing {
    Directory,
    File,
    Link(String),
}

fn random_name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "w", "o", "..", "."]).prop_map(str::to_owned)
}

fn random_path() -> impl Strategy<Value = String> {
    prop::collection::vec(random_name(), 1..6).prop_map(|names| names.join("/"))
}

fn random_tree() -> impl Strategy<Value = Vec<(String, Thing)>> {
    let thing = prop_oneof![
        2 => Just(Thing::Directory),
        1 => Just(Thing::File),
        3 => random_path().prop_map(Thing::Link),
        1 => random_path().prop_map(|path| Thing::Link(format!("/ROOT/{path}"))),
    ];
    prop::collection::vec((random_path(), thing), 0..12)
}

/// Makes what can be made of `tree` below `place`; the rest is left out.
fn plant(place: &Path, tree: &[(String, Thing)]) {
    for (path, thing) in tree {
        // Not above `place`, wherever `..` and links of the tree lead.
        let path = place.join("w").join(path);
        let Some(Ok(parent)) = path.parent().map(Path::canonicalize) else { continue };
        let (true, Some(name)) = (parent.starts_with(place), path.file_name()) else { continue };
        let path = parent.join(name);
        let made = match thing {
            Thing::Directory => fs::create_dir(&path),
            Thing::File => {
                if path.exists() {
                    Ok(())
                } else {
                    fs::write(&path, "x")
                }
            }
            Thing::Link(target) => {
                let target = target.replace("/ROOT", place.to_str().expect("UTF-8"));
                symlink(target, &path)
            }
        };
        // What exists already stays what it is.
        drop(made);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_tree_and_no_path_lead_outside(tree in random_tree(), paths in prop::collection::vec(random_path(), 1..8)) {
        // TOOL-PATH-1, TOOL-PATH-2, TOOL-PATH-3
        let place = memory_directory();
        let place_path = place.path().canonicalize().expect("a path");
        let workdir = place_path.join("w");
        fs::create_dir_all(&workdir).expect("a directory");
        fs::create_dir_all(place_path.join("o")).expect("a directory");
        plant(&place_path, &tree);
        let roots = Roots::open(&workdir, &[], &[]).expect("the roots");
        for path in paths {
            let Ok(found) = roots.resolve(Path::new(&path)) else { continue };
            let canonical = found.path();
            prop_assert!(canonical.starts_with(&workdir), "{path} is {}", canonical.display());
            let plain = found.below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
            prop_assert!(plain, "{path} is {}", canonical.display());
            if found.found.is_none() {
                prop_assert!(fs::symlink_metadata(&canonical).is_err(), "{path} was there");
                continue;
            }
            prop_assert_eq!(&canonical.canonicalize().expect("it exists"), &canonical);
            let opened = beneath::open(found.directory(), &found.below, OFlags::PATH).expect("it exists");
            let shown: PathBuf = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&opened.as_fd()))).expect("a link");
            prop_assert_eq!(shown, canonical);
        }
    }

    #[test]
    fn any_bytes_are_answered(name in prop::sample::select(vec!["read", "write", "edit", "glob", "grep"]), input in prop::collection::vec(any::<u8>(), 0..64)) {
        // RUN-20
        let fixture = Fixture::new();
        let result = super::run(name, &input, &fixture.roots, &fixture.limits);
        prop_assert_eq!(result.content.len(), 1);
    }

    #[test]
    fn any_pattern_is_answered(pattern in "[a*?{}\\[\\],/\\\\.!^$()|+-]{0,24}") {
        // TOOL-GLOB-5, TOOL-GREP-2
        let fixture = Fixture::new();
        fixture.file("a/a", "a");
        for name in ["glob", "grep"] {
            let result = fixture.call(name, &json!({ "pattern": pattern }));
            prop_assert_eq!(result.content.len(), 1);
        }
    }
}
