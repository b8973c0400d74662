//! PID 1 of a jail: builds the mount tree, clones the payload, gives up its own privileges, reaps,
//! and tells the launcher how it ended.
//!
//! Cloned by the launcher into new mount, pid, net, ipc and uts namespaces, which the launcher's
//! user namespace owns. Holds full privilege until the payload is about to run and none after.
//! When it exits, for whatever reason, the kernel kills everything in the jail.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::wait::{WaitStatus, waitpid};
use rustix::fs::{Mode, OFlags, openat};
use rustix::process::{DumpableBehavior, Signal};

use crate::host::Level;
use crate::policy::Layer;
use crate::spec::{JailSpec, hex};
use crate::sys::{self, CloneArgs, Cloned, clone3};

use super::cgroup_door::CgroupDoor;
use super::claim::IdRange;
use super::companion::Companion;
use super::executor::{Birth, Connections};
use super::landlock::Domain;
use super::message::{Equipment, FromInit, FromPayload, LimitHit, PayloadStatus};
use super::payload::Payload;
use super::porter;
use super::programs::{ExecutorEnds, PorterEnds, Programs};
use super::report::LayerResult;
use super::seccomp::{self, Program};
use super::step::{AtStep as _, Step, StepFailure, enter};
use super::tree::{self, Tree};
use super::wire::Wire;
use super::workspace::{self, ExportMounts};
use super::{caps, network, places, terminal};

/// Everything init was given. It keeps no other descriptor.
pub(super) struct Init<'a> {
    pub spec: &'a JailSpec,
    pub programs: Programs,
    pub ids: IdRange,
    pub id_maps: Vec<Option<OwnedFd>>,
    pub disk: Option<PathBuf>,
    pub filter: Option<Program>,
    /// Standard input, output and error of the payload; empty if it gets a terminal; the connections
    /// of the executor and of the porter, if there is one, to the control side if the jail is a
    /// session's.
    pub stdio: Vec<OwnedFd>,
    pub launcher: Wire,
    pub started: Instant,
}

/// What the mount tree and the payload's process leave init with.
struct Running {
    payload_pid: i32,
    payload: Wire,
    /// The jail of a session ends with its executor, and with its porter.
    needed: Vec<i32>,
}

/// What was made before the payload and is handed on.
struct Parts {
    domain: Option<Domain>,
    terminal: Option<OwnedFd>,
    exports: Vec<ExportMounts>,
    /// The porter's mounts, in the order of the plan.
    places: Vec<OwnedFd>,
}

impl Init<'_> {
    /// Never returns.
    pub fn run(mut self) -> ! {
        let outcome = match self.build() {
            Err(failure) => FromInit::Failed(failure),
            Ok(running) => self.reap(running),
        };
        // If the launcher is gone, the kernel is about to kill this process.
        let _told = self.launcher.send(&outcome, &[]);
        std::process::exit(0)
    }

    fn halt(&self) -> Option<&str> {
        self.spec.halt_at.as_deref()
    }

    /// Everything up to the payload's exec.
    fn build(&mut self) -> Result<Running, StepFailure> {
        enter(Step::Isolate, self.halt());
        self.isolate()?;
        enter(Step::Identity, self.halt());
        self.identity()?;
        enter(Step::Private, self.halt());
        tree::make_private()?;
        let (tree, exports, places) = self.build_tree()?;
        let tree_us = self.started.elapsed().as_micros() as u64;
        enter(Step::Pivot, self.halt());
        tree.pivot()?;
        if self.spec.tools.is_none() {
            enter(Step::VerifyTree, self.halt());
            super::verify::tree(&tree, &self.spec.mounts)?;
        }
        enter(Step::Terminal, self.halt());
        let terminal = if self.spec.payload.tty {
            let (main, side) = terminal::open(self.ids.payload)?;
            self.stdio = vec![side];
            Some(main)
        } else {
            None
        };
        // A session's payload makes it, when its own `/proc` is in place.
        let domain = if self.spec.applies(Layer::Landlock) && self.spec.tools.is_none() {
            Some(Domain::prepare(&self.spec.landlock).at(Step::Landlock, "make the ruleset")?)
        } else {
            None
        };
        let built_us = self.started.elapsed().as_micros() as u64;
        enter(Step::ClonePayload, self.halt());
        let parts = Parts { domain, terminal, exports, places };
        self.start_payload(&tree, parts, (tree_us, built_us))
    }

    /// Dies with the launcher, is nobody's debuggee, holds nothing it was not given.
    fn isolate(&mut self) -> Result<(), StepFailure> {
        let step = Step::Isolate;
        die_with_parent(&self.launcher)?;
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .at(step, "become undumpable")?;
        // 0, 1 and 2 are the launcher's /dev/null and keep their numbers taken.
        let mut keep: Vec<i32> = [self.launcher.as_fd().as_raw_fd()]
            .into_iter()
            .chain(self.stdio.iter().map(|fd| fd.as_raw_fd()))
            .chain(self.id_maps.iter().flatten().map(|fd| fd.as_raw_fd()))
            .collect();
        sys::close_all_but(3, &mut keep).at(step, "close foreign descriptors")?;
        nix::unistd::setsid().at(step, "start a session")?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        if self.spec.level == Level::Root {
            nix::unistd::setgroups(&[]).at(step, "leave all supplementary groups")?;
        }
        Ok(())
    }

    fn identity(&self) -> Result<(), StepFailure> {
        let step = Step::Identity;
        if self.spec.applies(Layer::UtsNamespace) {
            nix::unistd::sethostname(&self.spec.hostname).at(step, "set the host name")?;
        }
        if self.spec.hide_uptime {
            super::clock::start_near_zero().at(step, "offset the clocks")?;
        }
        Ok(())
    }

    fn build_tree(&self) -> Result<(Tree, Vec<ExportMounts>, Vec<OwnedFd>), StepFailure> {
        let plan = &self.spec.mounts;
        enter(Step::Skeleton, self.halt());
        let tree = Tree::begin(plan, self.ids.payload, self.halt())?;
        // Before the workspace, which may have its place in one of them.
        enter(Step::Memory, self.halt());
        plan.memory.iter().try_for_each(|mount| tree.memory(mount))?;
        enter(Step::Workspace, self.halt());
        let disk = self.disk.as_deref();
        let mut exports = workspace::lay_out(&tree, plan, disk, &self.id_maps)?;
        enter(Step::Places, self.halt());
        let places = places::lay_out(&tree, plan, &mut exports)?;
        enter(Step::Devices, self.halt());
        tree.devices(&plan.devices)?;
        if self.spec.applies(Layer::IpcNamespace) {
            tree.message_queues()?;
        }
        // A session's payload is the first process of a namespace that is not ours to show.
        if self.spec.tools.is_none() {
            enter(Step::Proc, self.halt());
            tree.proc(plan)?;
        } else {
            tree.lend_proc()?;
        }
        Ok((tree, exports, places))
    }

    /// Clones the payload, maps its ids, gives up init's own privileges while the payload gives up
    /// its own, and lets it run when both are done and the launcher knows.
    fn start_payload(
        &mut self,
        tree: &Tree,
        Parts { domain, terminal, exports, places }: Parts,
        (tree_us, built_us): (u64, u64),
    ) -> Result<Running, StepFailure> {
        let luggage = self.luggage(tree, places)?;
        let (ours, theirs) = Wire::pair().at(Step::ClonePayload, "connect to the payload")?;
        let (keeper, ends) = match self.connections(tree)? {
            Some(Connections { keeper, executor }) => (Some(keeper), Some(executor)),
            None => (None, None),
        };
        let door = self.take_equipment()?;
        let cgroup = door.as_ref().and_then(CgroupDoor::birth);
        // Without other namespaces: the payload makes its own after its birth, see
        // `Payload::separate`. A PID namespace takes in children only.
        let namespaces = if keeper.is_some() { libc::CLONE_NEWPID as u64 } else { 0 };
        let args = CloneArgs { namespaces, cgroup };
        let cloned = clone3(args).at(Step::ClonePayload, "clone the payload")?;
        let (pid, pidfd) = match cloned {
            Cloned::Child => {
                drop((ours, ends, luggage));
                let (filter, stdio) = (self.filter.as_ref(), &self.stdio);
                let (spec, programs, init) = (self.spec, self.programs, theirs);
                let proc = None;
                Payload { spec, programs, tree, domain, filter, stdio, init, keeper, proc }.run()
            }
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop((theirs, domain, keeper));
        let mut executor = self.executor(tree, ends, cgroup)?;
        let mut porter = self.porter(tree, luggage, cgroup)?;
        if let Some(door) = &door {
            door.leave().at(Step::Cgroup, "leave the payload's cgroup")?;
        }
        let mut payload = ours;
        match payload.receive().at(Step::ClonePayload, "hear of the payload's namespaces")?.0 {
            FromPayload::Separate => {}
            FromPayload::Failed(failure) => return Err(failure),
            _ => return Err(out_of_turn()),
        }
        enter(Step::MapIds, self.halt());
        self.map_ids(tree, pid)?;
        self.stdio.clear();
        enter(Step::DropInit, self.halt());
        payload.send(&(), &[]).at(Step::MapIds, "let the payload restrict itself")?;
        let own_layers = self.drop_privileges()?;
        executor.as_mut().map_or(Ok(()), Companion::confined)?;
        porter.as_mut().map_or(Ok(()), Companion::confined)?;
        let (message, _) = payload.receive().at(Step::ClonePayload, "hear from the payload")?;
        match message {
            FromPayload::Failed(failure) => return Err(failure),
            FromPayload::Distrusted(results) => self.exit_with(&FromInit::Distrusted(results)),
            FromPayload::NotRunnable(errno) => self.exit_with(&FromInit::NotRunnable(errno)),
            FromPayload::Separate => return Err(out_of_turn()),
            FromPayload::Ready { mut layers, canary } => {
                layers.extend(own_layers);
                let mut descriptors: Vec<BorrowedFd<'_>> = vec![pidfd.as_fd()];
                descriptors.extend(terminal.iter().map(|fd| fd.as_fd()));
                for export in &exports {
                    descriptors.extend(export.mounts.iter().map(|fd| fd.as_fd()));
                }
                let digest = self.filter.as_ref().map(seccomp::digest);
                let filter_digest = digest.map(|digest| hex(&digest)).unwrap_or_default();
                let running = FromInit::Running {
                    layers,
                    canary,
                    filter_digest,
                    exports: exports.iter().map(|export| export.order.clone()).collect(),
                    tree_us,
                    built_us,
                };
                self.launcher.send(&running, &descriptors).at(Step::Running, "report")?;
                payload.send(&(), &[]).at(Step::Running, "let the payload run")?;
            }
        }
        let needed = executor.map(|executor| executor.pid);
        let needed = needed.into_iter().chain(porter.map(|porter| porter.pid)).collect();
        Ok(Running { payload_pid: pid, payload, needed })
    }

    /// What connects the processes of a session's tools; `None` if this jail is not a session's.
    fn connections(&mut self, tree: &Tree) -> Result<Option<Connections>, StepFailure> {
        if self.spec.tools.is_none() {
            return Ok(None);
        }
        let missing = || io::Error::from(io::ErrorKind::InvalidData);
        let control = if self.stdio.is_empty() { Err(missing()) } else { Ok(self.stdio.remove(0)) };
        let control = control.at(Step::Executor, "receive the executor's connection")?;
        let (proc, ids) = (tree.private_proc.as_fd(), self.ids);
        Connections::make(control, proc, ids.payload, self.spec.level).map(Some)
    }

    /// Starts the executor, if this jail is a session's.
    fn executor(
        &self,
        tree: &Tree,
        ends: Option<ExecutorEnds>,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Option<Companion>, StepFailure> {
        let (Some(ends), Some(plan)) = (ends, &self.spec.tools) else { return Ok(None) };
        enter(Step::Executor, self.halt());
        let (spec, programs, ids) = (self.spec, self.programs, self.ids);
        let proc = tree.private_proc.as_fd();
        Birth { spec, plan, programs, ids, proc, cgroup }.start(ends).map(Some)
    }

    /// What the porter is given, if this jail has one.
    fn luggage(
        &mut self,
        tree: &Tree,
        places: Vec<OwnedFd>,
    ) -> Result<Option<PorterEnds>, StepFailure> {
        if !self.spec.tools.as_ref().is_some_and(|plan| plan.porter) {
            return Ok(None);
        }
        let missing = || io::Error::from(io::ErrorKind::InvalidData);
        // Behind the executor's.
        let control = if self.stdio.len() == 2 { self.stdio.pop() } else { None };
        let control = control.ok_or_else(missing).at(Step::Porter, "receive its connection")?;
        porter::ends(self.spec, tree, control, places).map(Some)
    }

    /// Starts the porter, if this jail has one.
    fn porter(
        &self,
        tree: &Tree,
        ends: Option<PorterEnds>,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Option<Companion>, StepFailure> {
        let Some(ends) = ends else { return Ok(None) };
        enter(Step::Porter, self.halt());
        let (spec, programs, ids) = (self.spec, self.programs, self.ids);
        let proc = tree.private_proc.as_fd();
        porter::Birth { spec, programs, ids, proc, cgroup }.start(ends).map(Some)
    }

    /// Waits for what the launcher made meanwhile; enters the net namespace and, on v1, the cgroup.
    fn take_equipment(&mut self) -> Result<Option<CgroupDoor>, StepFailure> {
        let (Equipment { net }, mut descriptors) =
            self.launcher.receive().at(Step::Cgroup, "wait for cgroup and net namespace")?;
        if net {
            let missing = || io::Error::from(io::ErrorKind::InvalidData);
            let net =
                if descriptors.is_empty() { Err(missing()) } else { Ok(descriptors.remove(0)) };
            let net = net.at(Step::Network, "receive the net namespace")?;
            network::enter(&net).at(Step::Network, "enter the net namespace")?;
        }
        let door = CgroupDoor::from_descriptors(descriptors);
        if let Some(door) = &door {
            door.enter().at(Step::Cgroup, "enter the cgroup")?;
        }
        Ok(door)
    }

    fn exit_with(&mut self, outcome: &FromInit) -> ! {
        let _told = self.launcher.send(outcome, &[]);
        std::process::exit(0)
    }

    /// One id, no id 0, and groups that cannot be changed (user_namespaces(7)).
    fn map_ids(&self, tree: &Tree, pid: i32) -> Result<(), StepFailure> {
        let step = Step::MapIds;
        let map = format!("{} {} 1\n", self.spec.payload_id, self.ids.payload);
        for (file, text) in [("setgroups", "deny"), ("gid_map", &map), ("uid_map", &map)] {
            let path = format!("{pid}/{file}");
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let opened = openat(&tree.private_proc, &*path, flags, Mode::empty());
            let opened = opened.at(step, format!("open {file}"))?;
            rustix::io::write(&opened, text.as_bytes()).at(step, format!("write {file}"))?;
        }
        Ok(())
    }

    /// Becomes an id of its own without capabilities, and shuts
    /// itself out of the file system. Says which namespaces hold, now that they cannot change.
    fn drop_privileges(&mut self) -> Result<Vec<LayerResult>, StepFailure> {
        let step = Step::DropInit;
        if self.spec.level == Level::Root {
            caps::drop_all_and_become(self.ids.init).at(step, "become an id of its own")?;
        } else {
            caps::drop_all().at(step, "empty the capability sets")?;
        }
        rustix::thread::set_no_new_privs(true).at(step, "set no_new_privs")?;
        // A change of ids takes both away (prctl(2)).
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .at(step, "become undumpable")?;
        die_with_parent(&self.launcher)?;
        if self.spec.applies(Layer::Landlock) {
            Domain::nothing().and_then(Domain::enter).at(step, "enter an empty domain")?;
        }
        let namespaces = [
            (Layer::MountNamespace, "private tree, compared with the plan"),
            (Layer::PidNamespace, "ends with its init"),
            (Layer::NetNamespace, "loopback only"),
            (Layer::IpcNamespace, "private"),
            (Layer::UtsNamespace, "private host name"),
            (Layer::CgroupNamespace, "rooted at the jail's own group"),
        ];
        let applied = namespaces.into_iter().filter(|(layer, _)| self.spec.applies(*layer));
        Ok(applied.map(|(layer, why)| LayerResult::enforced(self.spec, layer, why)).collect())
    }

    /// Waits for the payload's first process, reaping everything that is orphaned meanwhile.
    fn reap(&mut self, running: Running) -> FromInit {
        let mut payload = running.payload;
        // The connection closes at the exec; until then the command may still turn out not to be
        // runnable.
        let not_runnable = match payload.receive::<FromPayload>() {
            Ok((FromPayload::NotRunnable(errno), _)) => Some(errno),
            _ => None,
        };
        let status = loop {
            match waitpid(None, None) {
                Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == running.payload_pid => {
                    break PayloadStatus::Exited(code);
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == running.payload_pid => {
                    break PayloadStatus::Signaled(signal as i32);
                }
                // Without it nobody could reach the tools.
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..))
                    if running.needed.contains(&pid.as_raw()) =>
                {
                    break PayloadStatus::Signaled(libc::SIGKILL);
                }
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => break PayloadStatus::Signaled(libc::SIGKILL),
            }
        };
        if let Some(errno) = not_runnable {
            return FromInit::NotRunnable(errno);
        }
        let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN);
        let cpu_us = usage.map_or(0, |usage| {
            let (user, system) = (usage.user_time(), usage.system_time());
            let us = |time: nix::sys::time::TimeVal| time.tv_sec() * 1_000_000 + time.tv_usec();
            (us(user) + us(system)) as u64
        });
        FromInit::Ended { status, full: self.full_places(), cpu_us }
    }

    /// Places of the payload that have no room left at its end.
    fn full_places(&self) -> Vec<LimitHit> {
        let mut full = Vec::new();
        for room in self.spec.mounts.rooms() {
            let (place, area) = (room.place.display().to_string(), room.area);
            let Ok(stat) = rustix::fs::statvfs(&*place) else { continue };
            if stat.f_bavail == 0 {
                full.push(LimitHit::Bytes { place: place.clone(), area, bytes: room.bytes_max });
            }
            if stat.f_ffree == 0 && stat.f_files > 0 {
                full.push(LimitHit::Inodes { place, area, inodes: room.inodes_max });
            }
        }
        full
    }
}

/// A message of the payload that does not belong here.
fn out_of_turn() -> StepFailure {
    let error = io::ErrorKind::InvalidData.into();
    StepFailure::new(Step::ClonePayload, "the payload spoke out of turn", &error)
}

/// Asks the kernel for SIGKILL when the launcher dies, and exits if it is dead already.
pub(super) fn die_with_parent(parent: &Wire) -> Result<(), StepFailure> {
    let step = Step::Isolate;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .at(step, "die with the launcher")?;
    let mut polled = [rustix::event::PollFd::new(parent, rustix::event::PollFlags::HUP)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&now)).at(step, "look for the launcher")?;
    if polled[0].revents().contains(rustix::event::PollFlags::HUP) {
        return Err(StepFailure::new(
            step,
            "the launcher is gone",
            &io::ErrorKind::BrokenPipe.into(),
        ));
    }
    Ok(())
}
