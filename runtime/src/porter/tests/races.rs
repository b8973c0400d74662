//! What somebody in the same directory can do meanwhile: swap a component for a link, again and
//! again. Nothing outside may change, and nothing may wait (RACE-17).

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::store;
use super::*;

const MARK: &[u8] = b"version 1\nmemstore_1";
const WHILE: Duration = Duration::from_millis(1500);

/// Swaps `d` between a directory, a link to the outside and a FIFO until told to stop.
fn swap(ground: &Ground, stop: &AtomicBool) {
    let (d, target) = (ground.path("d"), ground.outside("target"));
    let (link, fifo, side) = (ground.path("l"), ground.path("f"), ground.path("side"));
    while !stop.load(Ordering::Relaxed) {
        let _gone = fs::create_dir(&d);
        let _gone = fs::rename(&d, &side);
        let _gone = symlink(&target, &link);
        let _gone = fs::rename(&link, &d);
        let _gone = fs::remove_file(&d);
        let _gone = nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU);
        let _gone = fs::rename(&fifo, &d);
        let _gone = fs::remove_file(&d);
        let _gone = fs::remove_dir_all(&side);
    }
}

fn against(act: impl Fn(&Ground, u32)) {
    let ground = Ground::new();
    fs::create_dir(ground.outside("target")).expect("made");
    fs::write(ground.outside("target/keep"), "keep").expect("written");
    store::prepare(ground.fd(), MARK, &mut Patient).expect("prepared");
    let stop = AtomicBool::new(false);
    let mut longest = Duration::ZERO;
    std::thread::scope(|scope| {
        scope.spawn(|| swap(&ground, &stop));
        let until = Instant::now() + WHILE;
        let mut turn = 0;
        while Instant::now() < until {
            let started = Instant::now();
            act(&ground, turn);
            longest = longest.max(started.elapsed());
            turn += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    let there: Vec<_> = fs::read_dir(ground.outside("target")).expect("there").collect();
    assert_eq!(there.len(), 1, "INV-7: {there:?}");
    assert_eq!(fs::read_to_string(ground.outside("target/keep")).expect("kept"), "keep");
    assert!(longest < Duration::from_secs(20), "something waited for {longest:?}");
}

#[test]
fn writing_never_leaves_the_store() {
    against(|ground, turn| {
        // Refused, or done in whatever directory was there.
        let _any = store::write(ground.fd(), &format!("d/f{turn}"), b"x");
    });
}

#[test]
fn looking_never_leaves_the_store() {
    against(|ground, _| {
        if let Ok(scan) = store::scan(ground.fd(), MARK, &mut Patient) {
            assert!(scan.files.iter().all(|file| !file.path.contains("keep")), "{scan:?}");
        }
        let found = store::read(ground.fd(), "d/keep", 100).unwrap_or_default();
        assert_eq!(found, None, "INV-7");
    });
}

#[test]
fn removing_never_leaves_the_store() {
    let keep: [u8; 32] =
        sha2::Digest::finalize(<sha2::Sha256 as sha2::Digest>::new_with_prefix("keep")).into();
    against(|ground, _| {
        let removed = store::remove(ground.fd(), "d/keep", keep, &mut Patient);
        assert_ne!(removed, Ok(Removed::Removed), "INV-7");
        let _any = super::super::clear::remove_tree(ground.fd(), "d", &mut Patient);
    });
}

#[test]
fn unpacking_never_leaves_the_place() {
    let archive = zip(&[plain("a/x", "1"), plain("a/y/z", "2")]);
    against(|ground, _| {
        let _any = ground.unpack(&archive, &skill("d/s"));
        let _any = ground.unpack(&archive, &skill("d"));
    });
}
