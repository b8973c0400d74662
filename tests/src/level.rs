//! The two levels at which a jail is made, and how a process of each is started.

use std::os::unix::fs::MetadataExt;

/// The id that stands for an ordinary user when the tests run as root.
pub const USER: u32 = 1000;

/// Who starts the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Root does.
    Root,
    /// An ordinary user does, without any capability.
    Rootless,
}

impl Level {
    /// The levels that can be tried here: both as root, else the second only.
    pub fn here() -> Vec<Level> {
        if we_are_root() { vec![Level::Root, Level::Rootless] } else { vec![Level::Rootless] }
    }

    /// The name that reports use.
    pub fn name(self) -> &'static str {
        match self {
            Level::Root => "root",
            Level::Rootless => "rootless",
        }
    }

    /// The user that a process of this level runs as.
    pub fn uid(self) -> u32 {
        match self {
            Level::Rootless if we_are_root() => USER,
            Level::Rootless => our_uid(),
            Level::Root => 0,
        }
    }

    /// What a command line starts with so that the command runs at this level.
    pub fn prefix(self) -> Vec<String> {
        if self == Level::Root || !we_are_root() {
            return Vec::new();
        }
        let id = USER.to_string();
        ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--"]
            .map(str::to_owned)
            .to_vec()
    }
}

/// Whether this test process is root.
pub fn we_are_root() -> bool {
    our_uid() == 0
}

fn our_uid() -> u32 {
    std::fs::metadata("/proc/self").map_or(u32::MAX, |meta| meta.uid())
}
