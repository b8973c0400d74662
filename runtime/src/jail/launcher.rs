//! The launcher: the only process that makes jails. Single-threaded, without network, without
//! credentials, with an empty environment; reads only the control side's messages.
//!
//! Started by `client`, from a copy of the binary that no jail can reach. It makes one jail itself,
//! or clones itself for each of many, so that no jail waits for another and none outlives it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Signal};

use crate::sys::{CloneArgs, Cloned, clone3};

use super::lifecycle::Jail;
use super::message::{Failure, ToControl, ToLauncher};
use super::programs::Programs;
use super::step::{AtStep as _, Step, StepFailure, enter};
use super::wire::Wire;

/// Launcher processes of one jail each, with what becomes readable when one ends.
type Children = Vec<(Pid, OwnedFd)>;

/// Serves the requests on `control` and exits.
pub(super) fn serve(mut control: Wire, programs: Programs) -> ! {
    let prepared = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .at(Step::Handshake, "become undumpable");
    if let Err(failure) = prepared {
        finish(&mut control, &failed(failure));
    }
    let mut children = Children::new();
    let mut kept: Option<Vec<PathBuf>> = None;
    loop {
        wait(&control, &mut children);
        match control.receive::<ToLauncher>() {
            Ok((ToLauncher::Another, mut descriptors)) if descriptors.len() == 1 => {
                let connection = Wire::from_fd(descriptors.remove(0));
                match another(connection, &mut children) {
                    Some(connection) => {
                        control = connection;
                        children.clear();
                        kept = Some(Vec::new());
                    }
                    None => continue,
                }
            }
            Ok((ToLauncher::Keep { files }, _)) if kept.is_none() => kept = Some(files),
            Ok((ToLauncher::Reopen { index }, _)) => {
                let file = kept.as_ref().and_then(|files| files.get(index));
                reopen(&mut control, file);
            }
            Ok((ToLauncher::Start { spec, run_directory, repair }, stdio)) => {
                enter(Step::Handshake, spec.halt_at.as_deref());
                let mut jail = Jail::new(&spec, programs, Instant::now());
                let outcome = match jail.launch(&run_directory, repair, stdio) {
                    Err(failure) => {
                        let left = jail.remove();
                        ToControl::Failed(Failure::Step { failure, left })
                    }
                    Ok(init) => jail.watch(&mut control, init),
                };
                finish(&mut control, &outcome);
            }
            Ok(_) => {
                let error = std::io::ErrorKind::InvalidData.into();
                let failure = StepFailure::new(Step::Handshake, "expected a spec first", &error);
                finish(&mut control, &failed(failure));
            }
            // The control side is gone. Each child sees the same and takes its jail apart.
            Err(_) => {
                while waitpid(None, None).is_ok() {}
                std::process::exit(0)
            }
        }
    }
}

/// Clones a launcher for the jail on `connection`; returns the connection in the child. A clone that
/// is refused closes it, which the control side hears.
fn another(connection: Wire, children: &mut Children) -> Option<Wire> {
    let parent = Pid::this();
    match clone3(CloneArgs::default()) {
        Err(_) => None,
        Ok(Cloned::Parent { pid, pidfd }) => {
            children.push((Pid::from_raw(pid), pidfd));
            None
        }
        Ok(Cloned::Child) => {
            let asked = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            if asked.is_err() || Pid::parent() != parent {
                std::process::exit(1);
            }
            Some(connection)
        }
    }
}

/// Waits for a request, and takes in children that ended meanwhile.
fn wait(control: &Wire, children: &mut Children) {
    loop {
        let ready: Vec<bool> = {
            let mut polled = vec![PollFd::new(control, PollFlags::IN)];
            polled.extend(children.iter().map(|(_, ended)| PollFd::new(ended, PollFlags::IN)));
            if poll(&mut polled, None).is_err() {
                continue; // interrupted
            }
            polled.iter().map(|fd| !fd.revents().is_empty()).collect()
        };
        let mut number = 0;
        children.retain(|(pid, _)| {
            number += 1;
            !(ready[number] && waitpid(*pid, Some(WaitPidFlag::WNOHANG)).is_ok())
        });
        if ready[0] {
            return;
        }
    }
}

/// Opens one of the files that were named before the control side gave up its rights.
fn reopen(control: &mut Wire, file: Option<&PathBuf>) {
    // A FIFO must not be waited for.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = match file {
        Some(file) => rustix::fs::open(file, flags, Mode::empty()),
        None => Err(rustix::io::Errno::NOENT),
    };
    // If the control side is gone, the next message says so.
    let _told = match opened {
        Ok(file) => control.send(&ToControl::Reopened(None), &[file.as_fd()]),
        Err(errno) => control.send(&ToControl::Reopened(Some(errno.raw_os_error())), &[]),
    };
}

fn failed(failure: StepFailure) -> ToControl {
    ToControl::Failed(Failure::Step { failure, left: Vec::new() })
}

fn finish(control: &mut Wire, outcome: &ToControl) -> ! {
    // If the control side is gone there is nobody to tell; everything is removed already.
    let _told = control.send(outcome, &[]);
    std::process::exit(0)
}
