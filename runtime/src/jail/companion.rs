//! A process of ours that lives in a jail beside the tool tree: the executor, the porter.
//!
//! Init clones each, while that still holds privilege, in a PID namespace that the tool tree is below
//! and cannot see: nothing there can name, signal or trace it (INV-6). Each has a user namespace of its
//! own, which owns nothing else. What they have in common is here, in the order in which it happens;
//! what differs (ids, domain, filter) is in their own files.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::process::{DumpableBehavior, Signal};

use crate::spec::Rlimit;
use crate::sys::{self, CloneArgs, Cloned, clone3};

use super::rlimits;
use super::step::{AtStep as _, Step, StepFailure};
use super::wire::Wire;

/// Below the payload's, so that the kernel takes a tool and not one of ours when memory runs out.
const OOM_SCORE_ADJ: &[u8] = b"0";

/// One of them, started and not yet let go.
#[derive(Debug)]
pub(super) struct Companion {
    pub pid: i32,
    wire: Wire,
    step: Step,
}

/// What each is made from.
pub(super) struct Cradle<'a> {
    /// Its own step.
    pub step: Step,
    /// A `/proc` that hides nothing.
    pub proc: BorrowedFd<'a>,
    /// The payload's cgroup, where it is of v2: what it uses is charged to the session.
    pub cgroup: Option<BorrowedFd<'a>>,
}

impl Cradle<'_> {
    /// Clones the process, which runs `run` and never returns from it, and writes its id `map`.
    pub fn start(&self, map: &str, run: impl FnOnce(Wire)) -> Result<Companion, StepFailure> {
        let step = self.step;
        let (ours, theirs) = Wire::pair().at(step, format!("connect to the {step}"))?;
        let args = CloneArgs { namespaces: libc::CLONE_NEWUSER as u64, cgroup: self.cgroup };
        match clone3(args).at(step, format!("clone the {step}"))? {
            Cloned::Child => {
                drop(ours);
                run(theirs);
                std::process::exit(1)
            }
            Cloned::Parent { pid, .. } => {
                let mut companion = Companion { pid, wire: ours, step };
                self.map_ids(pid, map)?;
                companion.wire.send(&(), &[]).at(step, format!("let the {step} go on"))?;
                Ok(companion)
            }
        }
    }

    /// Writes the id map of a child in a user namespace of its own; groups stay as they are.
    fn map_ids(&self, pid: i32, map: &str) -> Result<(), StepFailure> {
        for (file, text) in [("setgroups", "deny"), ("gid_map", map), ("uid_map", map)] {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let opened = openat(self.proc, format!("{pid}/{file}"), flags, Mode::empty());
            let opened = opened.at(self.step, format!("open {file}"))?;
            let written = rustix::io::write(&opened, text.as_bytes());
            written.at(self.step, format!("write {file}"))?;
        }
        Ok(())
    }

    /// In the new process, first: it loses what it was cloned with but `ends`, waits for its ids, and
    /// can make no namespace any more.
    pub fn isolate(&self, init: &mut Wire, ends: &[i32]) -> Result<(), StepFailure> {
        let step = self.step;
        super::init::die_with_parent(init)?;
        let with = |more: &[i32]| [ends, &[init.as_fd().as_raw_fd()], more].concat();
        let (mut keep, mut keep_in_the_end) = (with(&[self.proc.as_raw_fd()]), with(&[]));
        sys::close_all_but(3, &mut keep).at(step, "close foreign descriptors")?;
        nix::unistd::setsid().at(step, "start a session")?;
        sys::errors_instead_of_signals().at(step, "ignore signals of failed writes")?;
        let ((), _) = init.receive().at(step, "wait for the id mapping")?;
        // What it may still do to ids is good for nothing else (INV-5).
        super::payload::forbid_namespaces(self.proc, step)?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let score = openat(self.proc, "self/oom_score_adj", flags, Mode::empty())
            .at(step, "open oom_score_adj")?;
        rustix::io::write(&score, OOM_SCORE_ADJ).at(step, "write oom_score_adj")?;
        drop(score);
        sys::close_all_but(3, &mut keep_in_the_end).at(step, "close foreign descriptors")
    }

    /// Memory in bytes, and descriptors. It leaves no core either.
    pub fn limit(&self, memory: u64, descriptors: u64) -> Result<(), StepFailure> {
        // Where cores are piped to a program, the one limit that the kernel obeys is 1 (core(5)).
        for (limit, value) in
            [(Rlimit::Data, memory), (Rlimit::OpenFiles, descriptors), (Rlimit::Core, 1)]
        {
            rlimits::apply(limit, value).at(self.step, format!("{limit:?}"))?;
        }
        Ok(())
    }

    /// After it took the ids that it keeps: a change of ids takes the last two away (prctl(2)).
    pub fn seal(&self) -> Result<(), StepFailure> {
        rustix::thread::set_no_new_privs(true).at(self.step, "set no_new_privs")?;
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .at(self.step, "become undumpable")?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .at(self.step, "die with init")
    }
}

/// Tells init how the confinement went, and becomes `program` if it went well.
pub(super) fn become_program<C>(
    mut init: Wire,
    confined: Result<C, StepFailure>,
    program: impl FnOnce(C),
) -> ! {
    let (confinement, failure) = match confined {
        Ok(confinement) => (Some(confinement), None),
        Err(failure) => (None, Some(failure)),
    };
    // Init that is gone has ended this process.
    let told = init.send(&failure, &[]);
    if let (Some(confinement), Ok(())) = (confinement, told) {
        drop(init);
        program(confinement);
    }
    std::process::exit(1)
}

impl Companion {
    /// Waits until every layer is on it.
    pub fn confined(&mut self) -> Result<(), StepFailure> {
        let heard = self.wire.receive::<Option<StepFailure>>();
        match heard.at(self.step, format!("hear of the {}", self.step))?.0 {
            None => Ok(()),
            Some(failure) => Err(failure),
        }
    }
}
