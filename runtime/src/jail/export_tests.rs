//! What leaves a jail, and what does not.

use super::*;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

fn order(kind: ExportKind) -> ExportOrder {
    ExportOrder { kind, made: Vec::new() }
}

fn trees(name: &str) -> (PathBuf, PathBuf, Vec<OwnedFd>) {
    let base = std::env::temp_dir().join(format!("export-{name}-{}", std::process::id()));
    let _absent = fs::remove_dir_all(&base);
    let (upper, destination) = (base.join("upper"), base.join("destination"));
    fs::create_dir_all(&upper).expect("made");
    fs::create_dir_all(&destination).expect("made");
    let open = |path: &PathBuf| OwnedFd::from(File::open(path).expect("opened"));
    let mounts = vec![open(&upper), open(&destination)];
    (upper, destination, mounts)
}

#[test]
fn directories_made_for_mounts_stay_behind_unless_something_else_is_in_them() {
    let made = ["skills", "memory", "memory/a", "memory/a/b", "work", "work/store"];
    let made = made.map(PathBuf::from).to_vec();
    let (upper, destination, mounts) = trees("made");
    for path in &made {
        fs::create_dir(upper.join(path)).expect("made");
    }
    fs::write(upper.join("work/file"), "x").expect("written");
    fs::create_dir(upper.join("other")).expect("made");
    let order = ExportOrder { kind: ExportKind::CopyBack, made };
    export(&order, &mounts);
    for (path, leaves) in [
        ("skills", false),
        ("memory", false),
        ("work/file", true),
        ("work/store", false),
        ("other", true),
    ] {
        assert_eq!(destination.join(path).exists(), leaves, "{path}");
    }
    // Where nothing is copied they are removed, as far as they are empty.
    let order = ExportOrder { kind: ExportKind::Scrub, ..order };
    export(&order, &mounts[..1]);
    for (path, stays) in [
        ("skills", false),
        ("memory", false),
        ("work/file", true),
        ("work/store", false),
        ("other", true),
    ] {
        assert_eq!(upper.join(path).exists(), stays, "{path}");
    }
    fs::remove_dir_all(upper.parent().expect("base")).expect("cleaned");
}

#[test]
fn changes_arrive_and_dangerous_modes_do_not() {
    let (upper, destination, mounts) = trees("modes");
    fs::write(destination.join("old"), "old").expect("written");
    fs::create_dir(upper.join("new")).expect("made");
    fs::write(upper.join("new/tool"), "tool").expect("written");
    let mode = fs::Permissions::from_mode(0o6755);
    fs::set_permissions(upper.join("new/tool"), mode).expect("setuid");
    fs::write(upper.join("old"), "changed").expect("written");
    symlink("/etc/passwd", upper.join("link")).expect("linked");
    let report = export(&order(ExportKind::CopyBack), &mounts);
    assert_eq!(report.skipped, 0, "{:?}", report.skipped_names);
    assert_eq!(fs::read_to_string(destination.join("old")).expect("old"), "changed");
    let tool = fs::metadata(destination.join("new/tool")).expect("tool");
    assert_eq!(tool.mode() & 0o7777, 0o755);
    let link = fs::read_link(destination.join("link")).expect("a link, not what it points to");
    assert_eq!(link, PathBuf::from("/etc/passwd"));
    fs::remove_dir_all(upper.parent().expect("base")).expect("cleaned");
}

#[test]
fn a_link_in_the_destination_is_replaced_and_never_written_through() {
    let (upper, destination, mounts) = trees("through");
    let outside = upper.parent().expect("base").join("outside");
    fs::write(&outside, "untouched").expect("written");
    fs::create_dir(upper.parent().expect("base").join("outside-directory")).expect("made");
    symlink(&outside, destination.join("file")).expect("linked");
    symlink("../outside-directory", destination.join("directory")).expect("linked");
    fs::write(upper.join("file"), "inside").expect("written");
    fs::create_dir(upper.join("directory")).expect("made");
    fs::write(upper.join("directory/planted"), "inside").expect("written");
    let report = export(&order(ExportKind::CopyBack), &mounts);
    assert_eq!(report.skipped, 0, "{:?}", report.skipped_names);
    assert_eq!(fs::read_to_string(&outside).expect("outside"), "untouched");
    let planted = upper.parent().expect("base").join("outside-directory/planted");
    assert!(!planted.exists(), "written through a link");
    assert!(destination.join("directory/planted").exists());
    fs::remove_dir_all(upper.parent().expect("base")).expect("cleaned");
}

#[test]
fn holes_stay_holes_and_sockets_stay_inside() {
    let (upper, destination, mounts) = trees("sparse");
    let sparse = File::create(upper.join("sparse")).expect("made");
    sparse.set_len(1 << 30).expect("a hole");
    let _socket = std::os::unix::net::UnixListener::bind(upper.join("socket")).expect("bound");
    let report = export(&order(ExportKind::CopyBack), &mounts);
    let copy = fs::metadata(destination.join("sparse")).expect("sparse");
    assert_eq!((copy.len(), report.bytes), (1 << 30, 0));
    assert!(copy.blocks() < 64, "{} blocks", copy.blocks());
    assert_eq!((report.skipped, report.failed), (1, 0));
    assert_eq!((report.skipped, destination.join("socket").exists()), (1, false));
    assert!(report.skipped_names[0].starts_with("socket"));
    fs::remove_dir_all(upper.parent().expect("base")).expect("cleaned");
}

#[test]
fn scrubbing_reaches_what_the_payload_has_shut_and_leaves_it_shut() {
    let (upper, _destination, mounts) = trees("scrub-shut");
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set")
    };
    let (shut, tool, other) = (upper.join("shut"), upper.join("shut/tool"), upper.join("z"));
    fs::create_dir_all(&shut).expect("made");
    fs::write(&tool, "").expect("written");
    fs::write(&other, "").expect("written");
    mode(&tool, 0o4311);
    mode(&other, 0o2000);
    mode(&shut, 0o000);
    std::os::unix::fs::symlink("nowhere", upper.join("link")).expect("linked");
    let report = export(&order(ExportKind::Scrub), &mounts[..1]);
    assert_eq!((report.scrubbed, report.failed), (2, 0), "{report:?}");
    let found = |path: &Path| fs::metadata(path).expect("there").mode() & 0o7777;
    assert_eq!((found(&shut), found(&other)), (0o000, 0o000));
    mode(&shut, 0o700);
    assert_eq!(found(&tool), 0o311);
    fs::remove_dir_all(upper.parent().expect("base")).expect("cleaned");
}

#[test]
fn scrubbing_takes_setuid_from_files_at_any_depth() {
    let (upper, _destination, mounts) = trees("scrub");
    fs::create_dir_all(upper.join("a/b")).expect("made");
    fs::write(upper.join("a/b/tool"), "").expect("written");
    let mode = fs::Permissions::from_mode(0o4755);
    fs::set_permissions(upper.join("a/b/tool"), mode).expect("setuid");
    let report = export(&order(ExportKind::Scrub), &mounts[..1]);
    assert_eq!(report.scrubbed, 1);
    let tool = fs::metadata(upper.join("a/b/tool")).expect("tool");
    assert_eq!(tool.mode() & 0o7777, 0o755);
    fs::remove_dir_all(upper.parent().expect("base")).expect("cleaned");
}

#[test]
fn scrubbing_goes_on_where_somebody_else_works_at_the_same_time() {
    let (upper, _destination, mounts) = trees("scrub-race");
    fs::create_dir(upper.join("0")).expect("made");
    let last = upper.join("0/tool");
    let ends = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(std::sync::atomic::Ordering::Relaxed) {
                for name in ["a", "b", "c"] {
                    fs::create_dir_all(upper.join(name).join("below")).expect("made");
                    fs::write(upper.join(name).join("file"), "").expect("written");
                }
                for name in ["a", "b", "c"] {
                    fs::remove_dir_all(upper.join(name)).expect("removed");
                }
            }
        });
        for round in 0..500 {
            fs::write(&last, "").expect("written");
            fs::set_permissions(&last, fs::Permissions::from_mode(0o4755)).expect("setuid");
            let report = export(&order(ExportKind::Scrub), &mounts[..1]);
            let done = fs::metadata(&last).expect("there").mode() & 0o7000 == 0;
            // Ends the other thread too.
            let right = report.failed == 0 && done;
            ends.store(!right || round == 499, std::sync::atomic::Ordering::Relaxed);
            assert!(right, "{round}: {report:?}");
        }
    });
    fs::remove_dir_all(upper.parent().expect("base")).expect("cleaned");
}
