//! Directories of the daemon, made while it still has the rights of whoever started it.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use stockade_runtime::audit::Digest;
use stockade_runtime::host::Level;
use stockade_runtime::jail;

use crate::settings::Settings;

/// Where the queue keeps what must outlive a killed worker.
#[derive(Debug)]
pub struct Places {
    /// Which calls were begun: ids and hashes, on disk. By way of a descriptor: the control side is
    /// nobody, and may not be able to pass the directories above.
    pub journal: PathBuf,
    /// Results that are not posted yet: content, so in memory where the host has such a place, and
    /// gone when their work item has ended.
    pub results: PathBuf,
    _directory: OwnedFd,
}

/// A directory that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {path} for the journal of tool calls")]
pub struct PlaceError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

/// Makes the directories and gives them to the control side, which will have no other right.
///
/// # Errors
/// [`PlaceError`].
pub fn places(settings: &Settings, level: Level) -> Result<Places, PlaceError> {
    let results = match level {
        Level::Root => PathBuf::from("/run/stockade-results"),
        Level::Rootless => {
            let memory = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            let memory = memory.filter(|path| path.is_absolute());
            memory.unwrap_or_else(|| settings.state_dir.clone()).join("stockade-results")
        }
    };
    // Journals and results belong together: workers with other journals have other results.
    let own = results.join(name_of(&settings.state_dir));
    let journal = settings.state_dir.join("journal");
    let unusable = |path: &Path| {
        let path = path.to_owned();
        move |source| PlaceError { path, source }
    };
    for path in [&journal, &results, &own] {
        jail::control_side_directory(path, level).map_err(unusable(path))?;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(&journal, flags, Mode::empty())
        .map_err(|error| unusable(&journal)(error.into()))?;
    let journal = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    Ok(Places { journal, results: own, _directory: directory })
}

/// A short name for a directory.
pub(super) fn name_of(directory: &Path) -> String {
    let mut name = Digest::of(directory.as_os_str().as_bytes()).to_string();
    name.truncate(16);
    name
}

impl Places {
    /// Removes the directory of results if nothing is left in it, at the end of a run.
    pub fn leave(&self) {
        // Results that are still to be posted keep it.
        let _kept = std::fs::remove_dir(&self.results);
    }
}
