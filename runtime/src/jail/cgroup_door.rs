//! How a process gets into a jail's cgroup: the descriptors that the launcher opens and init uses. And
//! how a tool on the host gets into the group beside it: the same, used by its keeper.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

/// How a process gets into a jail's cgroup. Sent from the launcher to init.
#[derive(Debug)]
pub(crate) enum CgroupDoor {
    /// v2: the directory, for `CLONE_INTO_CGROUP`.
    Birth(OwnedFd),
    /// v1: `tasks` of every hierarchy, and of the groups init goes back to.
    Tasks {
        /// Of the jail's group.
        join: Vec<OwnedFd>,
        /// Of its parent.
        leave: Vec<OwnedFd>,
    },
}

impl CgroupDoor {
    /// Its descriptors, in the order in which [`from_descriptors`](Self::from_descriptors) takes
    /// them.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            CgroupDoor::Birth(directory) => vec![directory.as_fd()],
            CgroupDoor::Tasks { join, leave } => {
                join.iter().chain(leave).map(|tasks| tasks.as_fd()).collect()
            }
        }
    }

    /// The door that was sent: one descriptor is a v2 directory, more are v1 files.
    pub fn from_descriptors(mut descriptors: Vec<OwnedFd>) -> Option<Self> {
        let half = descriptors.len() / 2;
        match descriptors.len() {
            0 => None,
            1 => descriptors.pop().map(CgroupDoor::Birth),
            _ => {
                let leave = descriptors.split_off(half);
                Some(CgroupDoor::Tasks { join: descriptors, leave })
            }
        }
    }

    /// The v2 directory a clone puts its child in.
    pub fn birth(&self) -> Option<BorrowedFd<'_>> {
        match self {
            CgroupDoor::Birth(directory) => Some(directory.as_fd()),
            CgroupDoor::Tasks { .. } => None,
        }
    }

    /// v1: moves the calling process into the jail's cgroup.
    pub fn enter(&self) -> io::Result<()> {
        match self {
            CgroupDoor::Birth(_) => Ok(()),
            CgroupDoor::Tasks { join, .. } => move_self(join),
        }
    }

    /// v1: moves the calling process out again.
    pub fn leave(&self) -> io::Result<()> {
        match self {
            CgroupDoor::Birth(_) => Ok(()),
            CgroupDoor::Tasks { leave, .. } => move_self(leave),
        }
    }
}

/// How tools on the host get into their session's group: a file of each hierarchy. The launcher opened
/// it, and its rights are what the kernel asks for (cgroup-v2.rst, "Delegation Containment").
#[derive(Debug)]
pub struct OutsideDoor(Vec<OwnedFd>);

impl OutsideDoor {
    pub(crate) fn new(files: Vec<OwnedFd>) -> OutsideDoor {
        OutsideDoor(files)
    }

    pub(crate) fn files(&self) -> &[OwnedFd] {
        &self.0
    }

    /// Moves the calling process, which has one thread, through `files`. What it starts from then on
    /// is born in there.
    ///
    /// # Errors
    /// `ENODEV` if the group is gone; what the kernel refuses otherwise.
    pub(crate) fn enter(files: &[OwnedFd]) -> io::Result<()> {
        move_self(files)
    }
}

/// A process that writes 0 to `tasks` moves itself, which spares the kernel the lock over all
/// process groups that a write to `cgroup.procs` takes, and with it a wait of milliseconds.
fn move_self(tasks: &[OwnedFd]) -> io::Result<()> {
    tasks.iter().try_for_each(|file| rustix::io::write(file, b"0").map(|_| ()).map_err(Into::into))
}
