//! Keeps tests that change or crash something global apart from all other runs.
//!
//! Every run holds the lock shared. A test that changes a sysctl, or that leaves a crashed worker's
//! remains lying about, holds it alone. The lock is a file, because test executables are processes.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;

/// Held for as long as other runs may go on beside this one.
#[derive(Debug)]
pub struct Shared {
    _file: File,
}

/// Held while nobody else may run. Runs below it are started with [`crate::Exec::alone`],
/// [`crate::Poll::alone`] or [`crate::Session::alone`].
#[derive(Debug)]
pub struct Alone {
    _file: File,
}

/// Waits for its turn among others.
///
/// # Panics
/// If the lock file cannot be used.
pub fn shared() -> Shared {
    let file = open("runs.lock");
    file.lock_shared().expect("cannot lock the run lock");
    Shared { _file: file }
}

/// Waits until nothing else runs.
///
/// # Panics
/// If the lock file cannot be used.
pub fn alone() -> Alone {
    let file = open("runs.lock");
    file.lock().expect("cannot lock the run lock");
    Alone { _file: file }
}

/// Opens a lock file of this suite, which lies beside what the suite builds.
pub(crate) fn open(name: &str) -> File {
    let path = directory().join(name);
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()))
}

/// The directory for what the suite makes once: the probe and the locks.
pub(crate) fn directory() -> PathBuf {
    let exe = std::env::current_exe().expect("cannot name the test executable");
    let dir = exe.parent().expect("an executable is in a directory").join("e2e-state");
    std::fs::create_dir_all(&dir).expect("cannot create the state directory of the tests");
    dir
}
