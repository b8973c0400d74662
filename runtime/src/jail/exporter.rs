//! The export's own process: cloned by the launcher after the payload is dead, stripped to the
//! payload's ids and to the two trees it works on.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{DumpableBehavior, Signal};

use crate::host::Level;
use crate::sys::{self, CloneArgs, Cloned, clone3};

use super::caps;
use super::export::{self, ExportReport};
use super::init::die_with_parent;
use super::landlock::Domain;
use super::step::{AtStep as _, Step, StepFailure};
use super::wire::Wire;
use super::workspace::ExportOrder;

/// The limits of workspace size and inodes bound the work; this bounds a disk that hangs.
const TIME_MAX: Duration = Duration::from_secs(600);

/// Exports one bound directory as host user `id` and waits for it.
pub(super) fn run(
    order: &ExportOrder,
    mounts: Vec<OwnedFd>,
    id: u32,
    level: Level,
    confine: bool,
) -> ExportReport {
    let failed = |reason: String| ExportReport {
        skipped: 1,
        failed: 1,
        skipped_names: vec![format!("everything: {reason}")],
        ..ExportReport::default()
    };
    let (mut ours, theirs) = match Wire::pair() {
        Ok(pair) => pair,
        Err(error) => return failed(error.to_string()),
    };
    match clone3(CloneArgs::default()) {
        Err(error) => failed(error.to_string()),
        Ok(Cloned::Child) => {
            drop(ours);
            let mut parent = theirs;
            let report = match restrict(&parent, &mounts, id, level, confine) {
                Ok(()) => export::export(order, &mounts),
                Err(failure) => failed(failure.to_string()),
            };
            // A launcher that died meanwhile has killed this process.
            let _told = parent.send(&report, &[]);
            std::process::exit(0)
        }
        Ok(Cloned::Parent { pid, pidfd }) => {
            drop(theirs);
            let timeout = Timespec { tv_sec: TIME_MAX.as_secs() as i64, tv_nsec: 0 };
            let mut polled = [PollFd::new(&ours, PollFlags::IN)];
            let answered = poll(&mut polled, Some(&timeout)).is_ok_and(|ready| ready > 0);
            let report = match answered {
                true => ours.receive().map(|(report, _)| report).map_err(|e| e.to_string()),
                false => Err(format!("not finished after {} s", TIME_MAX.as_secs())),
            };
            // It has answered, or is being given up: either way it has to go.
            let _dead = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            while waitpid(Pid::from_raw(pid), None) == Err(nix::errno::Errno::EINTR) {}
            report.unwrap_or_else(failed)
        }
    }
}

fn restrict(
    parent: &Wire,
    mounts: &[OwnedFd],
    id: u32,
    level: Level,
    confine: bool,
) -> Result<(), StepFailure> {
    let step = Step::Export;
    let mut keep: Vec<i32> = mounts.iter().map(|mount| mount.as_raw_fd()).collect();
    keep.push(parent.as_fd().as_raw_fd());
    sys::close_all_but(3, &mut keep).at(step, "close descriptors")?;
    rustix::process::umask(rustix::fs::Mode::empty());
    if level == Level::Root {
        nix::unistd::setgroups(&[]).at(step, "leave all groups")?;
        caps::drop_all_and_become(id).at(step, "become the payload's id")?;
    } else {
        caps::drop_all().at(step, "empty the capability sets")?;
    }
    rustix::thread::set_no_new_privs(true).at(step, "set no_new_privs")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .at(step, "become undumpable")?;
    die_with_parent(parent)?;
    if confine {
        let trees: Vec<_> = mounts.iter().map(|mount| mount.as_fd()).collect();
        Domain::beneath(&trees).and_then(Domain::enter).at(step, "enter the domain")?;
    }
    Ok(())
}
