//! A terminal of the payload's own, from the jail's own devpts: the host's terminal never enters
//! a jail (CVE-2017-5226, TIOCSTI).

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat, openat};
use rustix::pty::OpenptFlags;

use super::step::{AtStep as _, Step, StepFailure};

/// Opens a pair from the current root's `/dev/ptmx`: the main end for the control side, and the
/// payload's, which belongs to `owner`.
pub(super) fn open(owner: u32) -> Result<(OwnedFd, OwnedFd), StepFailure> {
    let step = Step::Terminal;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let main = rustix::pty::openpt(flags).at(step, "open /dev/ptmx")?;
    rustix::pty::unlockpt(&main).at(step, "unlock the terminal")?;
    let name = rustix::pty::ptsname(&main, Vec::new()).at(step, "name the terminal")?;
    let ids = (Uid::from_raw(owner), Gid::from_raw(owner));
    chownat(CWD, &name, Some(ids.0), Some(ids.1), AtFlags::empty()).at(step, "own the terminal")?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let side = openat(CWD, &name, flags, Mode::empty()).at(step, "open the terminal")?;
    Ok((main, side))
}
