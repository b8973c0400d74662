//! Directories in which fetched input rests on its way to a jail, and what killed workers left there:
//! repositories of git, whose configuration holds credentials.
//!
//! Made while the worker has its rights, one for each state directory. A worker holds a lock on its own
//! as long as it lives, however it ends; what is not locked is nobody's. As root they belong to the
//! control side, so whoever removes something here follows no link on the way.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, flock, fstat, openat, unlinkat};
use rustix::io::Errno;
use stockade_runtime::host::Level;
use stockade_runtime::jail::{self, Sweep};
use stockade_runtime::policy::{Policy, Storage};

use super::prepare::name_of;
use crate::stage::Room;

/// Below the directory for files of run time.
const NAME: &str = "stockade-staging";
/// How often a directory is made again that a sweep has just removed.
const TRIES_MAX: usize = 8;

/// Directories that staging uses.
#[derive(Debug)]
pub struct Rooms {
    /// What needs names, the directory above it, and files where they are on a disk.
    paths: Vec<PathBuf>,
    /// The first of them, locked.
    scratch: OwnedFd,
}

impl Rooms {
    /// Makes and opens them, without what an earlier worker left. In memory, unless sessions have their
    /// workspaces on a disk: no input rests where the workspace itself would not.
    ///
    /// # Errors
    /// A sentence: which of them cannot be used.
    pub fn open(state_dir: &Path, level: Level, policy: &Policy) -> anyhow::Result<(Rooms, Room)> {
        let memory = memory(level, state_dir);
        let scratch = memory.join(name_of(state_dir));
        let files = match policy.filesystem.workspace_storage.value {
            Storage::Memory => scratch.clone(),
            Storage::Disk => on_disk(state_dir),
        };
        let unusable = |path: &Path| format!("cannot use {} for staging", path.display());
        let make =
            |path: &Path| jail::control_side_directory(path, level).with_context(|| unusable(path));
        let mut tries = 0;
        let locked = loop {
            make(&memory)?;
            // Never with a parent: that would not be the control side's.
            let made = jail::control_side_subdirectory(&scratch, level);
            let made = match made {
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                made => made.map(|()| true).with_context(|| unusable(&scratch))?,
            };
            let locked = match made {
                true => {
                    lock(&memory, &scratch).context("cannot remove what an earlier worker left")?
                }
                false => None,
            };
            tries += 1;
            if let Some(locked) = locked {
                break locked;
            }
            anyhow::ensure!(
                tries < TRIES_MAX,
                "cannot use {}: it is removed again and again",
                scratch.display()
            );
        };
        // Nobody removes it as long as the other is locked.
        make(&files)?;
        let room = Room::open(&files, &scratch).context("cannot open a directory for staging")?;
        let mut paths = vec![scratch.clone(), memory];
        if files != scratch {
            paths.push(files);
        }
        Ok((Rooms { paths, scratch: locked }, room))
    }

    /// Removes them at the end of a run, as far as the control side may, unless another worker with this
    /// state directory uses them: then that one does.
    pub fn leave(&self) {
        match flock(&self.scratch, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(_) => return,
        }
        if let Err(error) = empty(&self.scratch) {
            tracing::warn!(event = "stage.not_removed", error = %error, "files of staging are left");
        }
        for path in &self.paths {
            // Those of other workers keep the one above.
            let _kept = std::fs::remove_dir(path);
        }
    }
}

/// Removes what an earlier worker with this state directory left, whether this one stages or not.
///
/// # Errors
/// If something is there that cannot be removed.
pub fn forget(state_dir: &Path, level: Level) -> io::Result<()> {
    let memory = memory(level, state_dir);
    if let Some(above) = directory(&memory)? {
        remove(&above, &name_of(state_dir), Some(&on_disk(state_dir)))?;
        drop(std::fs::remove_dir(&memory));
    }
    Ok(())
}

/// Removes what killed workers of root or of the caller left, whatever their state directories are, and
/// adds it to `done`. What live workers use is not touched.
///
/// # Errors
/// If the directory cannot be read.
pub fn sweep(level: Level, done: &mut Sweep) -> io::Result<()> {
    let memory = match level {
        Level::Root => memory(level, Path::new("/")),
        Level::Rootless => match runtime_directory() {
            Some(directory) => directory.join(NAME),
            // Below the state directory then, which the next start knows.
            None => return Ok(()),
        },
    };
    let Some(above) = directory(&memory)? else { return Ok(()) };
    for entry in Dir::read_from(&above)? {
        let entry = match entry {
            // Another sweep or start has removed the directory.
            Err(Errno::NOENT) => break,
            entry => entry?,
        };
        let Ok(name) = entry.file_name().to_str() else { continue };
        if matches!(name, "." | "..") {
            continue;
        }
        match remove(&above, name, None) {
            Ok(true) => done.removed.push(format!("staging {name}")),
            Ok(false) => {}
            Err(_) => done.left.push(memory.join(name).display().to_string()),
        }
    }
    drop(std::fs::remove_dir(&memory));
    Ok(())
}

/// The directory above all scratch directories of this user.
fn memory(level: Level, state_dir: &Path) -> PathBuf {
    match level {
        Level::Root => Path::new("/run").join(NAME),
        Level::Rootless => runtime_directory().unwrap_or_else(|| state_dir.to_owned()).join(NAME),
    }
}

fn runtime_directory() -> Option<PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute())
}

fn on_disk(state_dir: &Path) -> PathBuf {
    state_dir.join("staging")
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The directory at `path`, if there is one.
fn directory(path: &Path) -> io::Result<Option<OwnedFd>> {
    match rustix::fs::open(path, DIRECTORY, Mode::empty()) {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Locks a scratch directory for as long as the result is open, and empties it if nobody else uses it.
/// `None` if it is gone.
fn lock(memory: &Path, scratch: &Path) -> io::Result<Option<OwnedFd>> {
    let Some(above) = directory(memory)? else { return Ok(None) };
    let name = scratch.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let opened = match openat(&above, name, DIRECTORY, Mode::empty()) {
        Ok(opened) => opened,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    hold(opened)
}

fn hold(opened: OwnedFd) -> io::Result<Option<OwnedFd>> {
    match flock(&opened, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) if is_gone(&opened)? => return Ok(None),
        Ok(()) => empty(&opened)?,
        // Another worker with the same state directory.
        Err(Errno::WOULDBLOCK) => {}
        Err(errno) => return Err(errno.into()),
    }
    flock(&opened, FlockOperation::LockShared)?;
    Ok((!is_gone(&opened)?).then_some(opened))
}

/// Whether somebody removed it since it was opened. A lock on it is worth nothing then.
fn is_gone(directory: &OwnedFd) -> io::Result<bool> {
    Ok(fstat(directory)?.st_nlink == 0)
}

/// Removes the scratch directory `name`, and before it the `files` that belong to it; whether it was there
/// and nobody's.
fn remove(above: &OwnedFd, name: &str, files: Option<&Path>) -> io::Result<bool> {
    let opened = match openat(above, name, DIRECTORY, Mode::empty()) {
        Ok(opened) => opened,
        Err(Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    };
    remove_opened(above, name, files, &opened)
}

fn remove_opened(
    above: &OwnedFd,
    name: &str,
    files: Option<&Path>,
    opened: &OwnedFd,
) -> io::Result<bool> {
    match flock(opened, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) if is_gone(opened)? => return Ok(false),
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    }
    empty(opened)?;
    // Files there have no names: it is empty.
    drop(files.map(std::fs::remove_dir));
    unlinkat(above, name, AtFlags::REMOVEDIR)?;
    Ok(true)
}

/// Removes everything in `directory`, by way of its descriptor.
fn empty(directory: &OwnedFd) -> io::Result<()> {
    for entry in std::fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(entry.path())?,
            false => std::fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use stockade_runtime::policy::Resolver;

    use super::*;

    #[test]
    fn what_another_removed_between_is_gone_and_no_error() {
        // INV-10: two that start or sweep at the same time.
        let place = tempfile::TempDir::new().expect("a directory");
        let scratch = place.path().join("own");
        let above = directory(place.path()).expect("opened").expect("there");
        let opened = || {
            std::fs::create_dir(&scratch).expect("made");
            directory(&scratch).expect("opened").expect("there")
        };
        let gone = || {
            let opened = opened();
            std::fs::remove_dir(&scratch).expect("removed");
            opened
        };
        assert!(hold(gone()).expect("looked at").is_none());
        assert!(!remove_opened(&above, "own", None, &gone()).expect("looked at"));
        // The controls: it is there.
        assert!(remove_opened(&above, "own", None, &opened()).expect("removed"));
        assert!(hold(opened()).expect("locked").is_some());
    }

    #[test]
    fn what_one_worker_still_uses_another_leaves_there() {
        // INV-10: several may have one state directory.
        let place = tempfile::TempDir::new().expect("a directory");
        let state = place.path().join("state");
        let text = "schema = 1\n[filesystem]\nworkspace_storage = \"disk\"\n";
        let load = |_: &Path| Ok(text.to_owned());
        let resolver = Resolver { groups: &["base"], directories: &[], load: &load };
        let policy = resolver.resolve("./own.toml").expect("a policy");
        let open = || Rooms::open(&state, Level::Rootless, &policy).expect("opened").0;
        let (first, second) = (open(), open());
        let config = first.paths[0].join("git-1-0");
        // The one above may be in use by others of this user.
        let own = |rooms: &Rooms| [rooms.paths[0].clone(), rooms.paths[2].clone()];
        let there = |rooms: &Rooms| own(rooms).iter().filter(|path| path.exists()).count();
        std::fs::create_dir(&config).expect("made");
        forget(&state, Level::Rootless).expect("looked");
        second.leave();
        assert!(config.exists() && there(&first) == 2, "{:?}", first.paths);
        drop(second);
        first.leave();
        assert_eq!(there(&first), 0, "the last one removes them");
        drop(first);
        // What a killed one left goes with the next start.
        let killed = open();
        std::fs::create_dir(&config).expect("made");
        let paths = own(&killed);
        drop(killed);
        forget(&state, Level::Rootless).expect("removed");
        assert!(paths.iter().all(|path| !path.exists()), "{paths:?}");
    }

    #[test]
    fn what_a_live_worker_uses_is_not_removed_and_no_link_is_followed() {
        // INV-10.
        let place = tempfile::TempDir::new().expect("a directory");
        let (memory, scratch) = (place.path().join("m"), place.path().join("m/own"));
        let (config, kept) = (scratch.join("git-1-0/config"), place.path().join("kept"));
        let make = || {
            std::fs::create_dir_all(scratch.join("git-1-0")).expect("made");
            std::fs::write(&config, "secret").expect("written");
        };
        std::fs::create_dir(&kept).expect("made");
        std::fs::write(kept.join("file"), "kept").expect("written");
        make();
        let first = lock(&memory, &scratch).expect("locked").expect("there");
        assert!(!config.exists(), "what an earlier worker left");
        make();
        std::os::unix::fs::symlink(&kept, scratch.join("link")).expect("linked");
        std::os::unix::fs::symlink(&kept, memory.join("out")).expect("linked");
        let above = directory(&memory).expect("opened").expect("there");
        let second = lock(&memory, &scratch).expect("locked").expect("there");
        assert!(!remove(&above, "own", None).expect("looked at"));
        assert!(config.exists(), "two workers use it");
        drop((first, second));
        assert!(remove(&above, "own", None).expect("removed"), "the control: nobody does");
        assert!(!scratch.exists());
        assert!(!remove(&above, "own", None).expect("looked at"), "it is gone");
        remove(&above, "out", None).expect_err("a link");
        assert!(kept.join("file").exists());
    }
}
