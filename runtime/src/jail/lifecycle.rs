//! One jail in the launcher: made, watched, taken apart.
//!
//! Makes what must exist before the jail's first process (ids, cgroup, disk), clones init, watches,
//! and takes everything apart again on every path, also when the control side dies.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use crate::host::Level;
use crate::policy::{Layer, Storage};
use crate::spec::{EgressPlan, JailSpec};
use crate::sys::{CloneArgs, Cloned, clone3};

use super::cgroup::{CgroupEvents, JailCgroup, Members};
use super::cgroup_door::CgroupDoor;
use super::claim::{Claim, IdRange, RunDirectory};
use super::disk::Disk;
use super::export::ExportReport;
use super::forward::forward;
use super::init::Init;
use super::message::{
    End, Equipment, Failure, FromInit, LimitHit, Listener, PayloadStatus, ToControl, ToLauncher,
    limits_from,
};
use super::outside_group::OutsideGroup;
use super::programs::Programs;
use super::report::{EnforcementReport, LayerResult, Timings};
use super::seccomp::{self, Program};
use super::step::{AtStep as _, Step, StepFailure, enter};
use super::sweep;
use super::wire::{DESCRIPTORS_MAX, Wire};
use super::workspace::{ExportKind, ExportOrder};
use super::{cgroup, disk, exporter, idmap, network};

/// How long removing a cgroup may take; its processes are dead by then.
const REMOVE_GRACE: Duration = Duration::from_secs(5);
/// How long init and everything below it may take to die: longer only for a process that hangs in
/// the kernel.
const KILL_GRACE: Duration = Duration::from_secs(10);
/// How long building a jail may take: longer only for a host file system that hangs.
const SETUP_MAX: Duration = Duration::from_secs(60);

/// Everything that exists on the host because of one jail.
pub(super) struct Jail<'a> {
    spec: &'a JailSpec,
    programs: Programs,
    started: Instant,
    claim: Option<Claim>,
    cgroup: Option<JailCgroup>,
    outside: Option<OutsideGroup>,
    disk: Option<Disk>,
    init: Option<(Pid, OwnedFd)>,
    /// Made and not yet handed to the control side.
    listeners: Vec<(Listener, OwnedFd)>,
    timings: Timings,
}

/// What is known once the payload runs.
struct Running {
    payload: OwnedFd,
    exports: Vec<(ExportOrder, Vec<OwnedFd>)>,
    since: Instant,
}

impl<'a> Jail<'a> {
    /// Nothing of it exists yet.
    pub fn new(spec: &'a JailSpec, programs: Programs, started: Instant) -> Self {
        Jail {
            spec,
            programs,
            started,
            claim: None,
            cgroup: None,
            outside: None,
            disk: None,
            init: None,
            listeners: Vec::new(),
            timings: Timings::default(),
        }
    }

    fn halt(&self) -> Option<&str> {
        self.spec.halt_at.as_deref()
    }

    fn elapsed_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// Makes everything up to init; returns the connection to it.
    pub fn launch(
        &mut self,
        run_directory: &Path,
        repair: bool,
        stdio: Vec<OwnedFd>,
    ) -> Result<Wire, StepFailure> {
        let spec = self.spec;
        let run = RunDirectory::open(spec.level, run_directory)
            .at(Step::Claim, "open the run directory (nobody else may write to it)")?;
        if repair {
            sweep::repair(&run, spec.level).at(Step::Claim, "remove what a killed worker left")?;
        }
        let claim = run.claim().at(Step::Claim, "claim a range of ids")?;
        let (ids, name) = (IdRange::of(claim.slot, spec.level), claim.name());
        self.claim = Some(claim);
        self.timings.claimed_us = self.elapsed_us();
        enter(Step::Claim, self.halt());
        let id_maps = self.id_maps(ids)?;
        enter(Step::IdMaps, self.halt());
        if spec.mounts.scratch.storage == Storage::Disk {
            let disk = disk::make(&spec.mounts.scratch)
                .map_err(|(detail, error)| StepFailure::new(Step::Disk, detail, &error))?;
            self.disk = Some(disk);
        }
        enter(Step::Disk, self.halt());
        let filter = self.filter()?;
        hand_over(&stdio, ids.payload)?;
        let (ours, theirs) = Wire::pair().at(Step::CloneInit, "connect to init")?;
        self.timings.prepared_us = self.elapsed_us();
        let args = CloneArgs { namespaces: self.namespaces(), cgroup: None };
        let mut wire = match clone3(args).at(Step::CloneInit, "clone init into its namespaces")? {
            Cloned::Child => {
                drop(ours);
                let disk = self.disk.as_ref().map(|disk| disk.device.clone());
                let (launcher, started) = (theirs, self.started);
                let programs = self.programs;
                Init { spec, programs, ids, id_maps, disk, filter, stdio, launcher, started }.run()
            }
            Cloned::Parent { pid, pidfd } => {
                self.init = Some((Pid::from_raw(pid), pidfd));
                self.timings.cloned_us = self.elapsed_us();
                drop((theirs, stdio, id_maps));
                enter(Step::CloneInit, self.halt());
                ours
            }
        };
        self.equip(&name, &mut wire)?;
        Ok(wire)
    }

    /// Makes what takes the kernel long, while init builds the mount tree on another CPU: the cgroup
    /// and the net namespace. Hands both to init.
    fn equip(&mut self, name: &str, init: &mut Wire) -> Result<(), StepFailure> {
        let door = self.limit(name)?;
        let net = if self.spec.applies(Layer::NetNamespace) {
            let net = network::isolated().at(Step::Network, "make a net namespace")?;
            self.lead_to_broker()?;
            Some(net)
        } else {
            None
        };
        enter(Step::Network, self.halt());
        let mut descriptors: Vec<_> = net.iter().map(|net| net.as_fd()).collect();
        descriptors.extend(door.iter().flat_map(CgroupDoor::descriptors));
        match init.send(&Equipment { net: net.is_some() }, &descriptors) {
            // Init failed meanwhile, and its message says how.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent.at(Step::Cgroup, "hand over cgroup and net namespace"),
        }
    }

    /// Routes and listeners of the plan, in the net namespace this process is in now.
    fn lead_to_broker(&mut self) -> Result<(), StepFailure> {
        let (step, spec) = (Step::Network, self.spec);
        let Some(plan) = &spec.egress else { return Ok(()) };
        network::lead_to_broker().at(step, "route every address to the broker")?;
        self.listeners = network::resolver().at(step, "listen for questions to the resolver")?;
        let ports: Vec<u16> = plan.ports().into_iter().collect();
        self.listen(&ports)
    }

    fn listen(&mut self, ports: &[u16]) -> Result<(), StepFailure> {
        let (made, refused) = network::listeners(ports);
        self.listeners.extend(made);
        refused.map_or(Ok(()), Err)
    }

    /// Hands over the listeners made so far.
    fn tell_listeners(&mut self, control: &mut Wire) -> std::io::Result<()> {
        let listeners = std::mem::take(&mut self.listeners);
        for some in listeners.chunks(DESCRIPTORS_MAX) {
            let which = some.iter().map(|(listener, _)| *listener).collect();
            let lent: Vec<_> = some.iter().map(|(_, fd)| fd.as_fd()).collect();
            control.send(&ToControl::Listening(which), &lent)?;
        }
        Ok(())
    }

    /// Further listeners for a jail that runs. Only where it had a broker from the start.
    fn listen_on_more(&mut self, ports: &[u16], control: &mut Wire) -> std::io::Result<()> {
        let refused = || {
            StepFailure::new(
                Step::Network,
                "listen on further ports",
                &std::io::Error::from_raw_os_error(libc::EINVAL),
            )
        };
        let possible = self.spec.egress.is_some() && ports.len() <= EgressPlan::PORTS_MAX;
        let made = if possible { self.listen(ports) } else { Err(refused()) };
        self.tell_listeners(control)?;
        control.send(&ToControl::Listened(made.err()), &[])
    }

    fn limit(&mut self, name: &str) -> Result<Option<CgroupDoor>, StepFailure> {
        if !self.spec.applies(Layer::Cgroup) {
            return Ok(None);
        }
        let place = cgroup::delegated_place(name, self.spec.level);
        if let (Some(place), Some(claim)) = (place, &self.claim) {
            claim.note_cgroup(&place).at(Step::Cgroup, "note the cgroup for a sweep")?;
        }
        let (plan, level) = (&self.spec.cgroup, self.spec.level);
        let cgroup = JailCgroup::create(name, Members::Jail, plan, level)
            .map_err(|(detail, error)| StepFailure::new(Step::Cgroup, detail, &error))?;
        let cgroup = self.cgroup.insert(cgroup);
        let door = cgroup.door().at(Step::Cgroup, "open the cgroup")?;
        self.outside = OutsideGroup::make(name, self.spec)?;
        enter(Step::Cgroup, self.spec.halt_at.as_deref());
        self.timings.cgroup_us = self.started.elapsed().as_micros() as u64;
        Ok(Some(door))
    }

    /// A user namespace for the ids of each bound directory; none without root, where the payload
    /// is the operator.
    fn id_maps(&self, ids: IdRange) -> Result<Vec<Option<OwnedFd>>, StepFailure> {
        let bound = self.spec.mounts.bound.iter();
        if self.spec.level == Level::Rootless {
            return Ok(bound.map(|_| None).collect());
        }
        bound
            .map(|directory| {
                idmap::holder((directory.uid, ids.payload), (directory.gid, ids.payload))
                    .map(Some)
                    .at(Step::IdMaps, format!("map the ids of {}", directory.source.display()))
            })
            .collect()
    }

    fn filter(&self) -> Result<Option<Program>, StepFailure> {
        if !self.spec.applies(Layer::Seccomp) {
            return Ok(None);
        }
        let compiled = seccomp::compile(&self.spec.syscall_groups);
        let filter = compiled.map_err(|error| {
            StepFailure::new(Step::Seccomp, "compile the filter", &std::io::Error::other(error))
        })?;
        Ok(Some(filter))
    }

    fn namespaces(&self) -> u64 {
        let optional =
            [(Layer::IpcNamespace, libc::CLONE_NEWIPC), (Layer::UtsNamespace, libc::CLONE_NEWUTS)];
        optional
            .into_iter()
            .filter(|(layer, _)| self.spec.applies(*layer))
            .fold(libc::CLONE_NEWNS | libc::CLONE_NEWPID, |flags, (_, flag)| flags | flag)
            as u64
    }

    /// Watches the jail to its end and takes it apart.
    pub fn watch(&mut self, control: &mut Wire, mut init: Wire) -> ToControl {
        let mut running = None;
        let mut decisive = None;
        let ended = loop {
            let event = self.wait(control, &init, running.as_ref());
            match event {
                Event::SetupDeadline => {
                    let error = std::io::Error::from_raw_os_error(libc::ETIMEDOUT);
                    let failure = StepFailure::new(Step::CloneInit, "wait for init", &error);
                    let left = self.remove();
                    return ToControl::Failed(Failure::Step { failure, left });
                }
                Event::Deadline(milliseconds) => {
                    decisive = Some(LimitHit::WallTime { milliseconds });
                    break None;
                }
                Event::Control => match control.receive::<ToLauncher>() {
                    Ok((ToLauncher::Signal(number), _)) => match running.as_ref() {
                        Some(running) => forward(number, &running.payload),
                        // Nothing runs that could answer it.
                        None => break Some((PayloadStatus::Signaled(number), Vec::new(), 0)),
                    },
                    Ok((ToLauncher::OutputLimit, _)) => {
                        let bytes = self.spec.output_bytes_max.unwrap_or(0);
                        decisive = Some(LimitHit::Output { bytes });
                        break None;
                    }
                    Ok((ToLauncher::Usage { outside }, _)) => {
                        let events = match outside {
                            true => self.outside.as_ref().map(OutsideGroup::events),
                            false => self.cgroup.as_ref().map(JailCgroup::events),
                        };
                        let answer = ToControl::Usage(events.unwrap_or_default());
                        if control.send(&answer, &[]).is_err() {
                            break None;
                        }
                    }
                    Ok((ToLauncher::Listen { ports }, _)) => {
                        if self.listen_on_more(&ports, control).is_err() {
                            break None;
                        }
                    }
                    // The session is over, the control side is gone, or it speaks nonsense: the
                    // jail must not outlive it.
                    Ok(_) | Err(_) => break None,
                },
                Event::Init => match init.receive::<FromInit>() {
                    Ok((
                        FromInit::Running {
                            layers,
                            canary,
                            filter_digest,
                            exports,
                            tree_us,
                            built_us,
                        },
                        fds,
                    )) => {
                        let mut report = self.report(layers, filter_digest);
                        report.canary = canary;
                        let ready_us = self.elapsed_us();
                        report.timings = Timings { tree_us, built_us, ready_us, ..self.timings };
                        let (now, terminal) = sort_descriptors(self.spec, &exports, fds);
                        running = now;
                        let lent: Vec<_> = terminal.iter().map(|fd| fd.as_fd()).collect();
                        let outside = self.outside.as_mut();
                        let way = outside.map_or(Ok(()), |group| group.hand_over(control));
                        let told = way.and_then(|()| self.tell_listeners(control)).and_then(|()| {
                            control.send(&ToControl::Running(Box::new(report)), &lent)
                        });
                        if told.is_err() {
                            break None;
                        }
                        enter(Step::Running, self.halt());
                    }
                    Ok((FromInit::Ended { status, full, cpu_us }, _)) => {
                        break Some((status, full, cpu_us));
                    }
                    Ok((FromInit::Failed(failure), _)) => {
                        let left = self.remove();
                        return ToControl::Failed(Failure::Step { failure, left });
                    }
                    Ok((FromInit::Distrusted(results), _)) => {
                        let left = self.remove();
                        return ToControl::Failed(Failure::Canary { results, left });
                    }
                    Ok((FromInit::NotRunnable(errno), _)) => {
                        let (command, left) = (self.command(), self.remove());
                        return ToControl::Failed(Failure::Command { command, errno, left });
                    }
                    Err(_) => break None,
                },
            }
        };
        self.end(running, decisive, ended)
    }

    fn command(&self) -> String {
        let command = self.spec.payload.argv.first().map(Vec::as_slice).unwrap_or_default();
        String::from_utf8_lossy(command).into_owned()
    }

    fn report(&self, layers: Vec<LayerResult>, filter_digest: String) -> EnforcementReport {
        let name = self.claim.as_ref().map(Claim::name).unwrap_or_default();
        let mut report = EnforcementReport::new(&name, self.spec);
        report.layers = layers;
        report.filter_digest = filter_digest;
        if let Some(cgroup) = &self.cgroup {
            let beside = self.outside.as_ref().map_or("", |_| "; tools on the host: as much again");
            let why = format!("{}{beside}", cgroup.describe());
            report.layers.push(LayerResult::enforced(self.spec, Layer::Cgroup, why));
        }
        if self.spec.applies(Layer::Canary) {
            let why = "forbidden acts refused, see `canary`";
            report.layers.push(LayerResult::enforced(self.spec, Layer::Canary, why));
        }
        report.complete(self.spec);
        report
    }

    /// Waits for the control side, init, or the wall clock.
    fn wait(&self, control: &Wire, init: &Wire, running: Option<&Running>) -> Event {
        loop {
            let left = match running {
                Some(running) => self.spec.wall_time_ms.map(|limit| {
                    let spent = running.since.elapsed();
                    (Event::Deadline(limit), Duration::from_millis(limit).saturating_sub(spent))
                }),
                None if self.halt().is_some() => None, // a crash test takes its time
                None => {
                    let spent = self.started.elapsed();
                    Some((Event::SetupDeadline, SETUP_MAX.saturating_sub(spent)))
                }
            };
            if let Some((deadline, Duration::ZERO)) = left {
                return deadline;
            }
            let timeout = left.map(|(_, left)| Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            });
            let mut polled =
                [PollFd::new(init, PollFlags::IN), PollFd::new(control, PollFlags::IN)];
            if poll(&mut polled, timeout.as_ref()).is_err() {
                continue; // interrupted
            }
            if !polled[0].revents().is_empty() {
                return Event::Init;
            }
            if !polled[1].revents().is_empty() {
                return Event::Control;
            }
        }
    }

    /// Kills, exports, removes, and says how it was.
    fn end(
        &mut self,
        running: Option<Running>,
        decisive: Option<LimitHit>,
        ended: Option<(PayloadStatus, Vec<LimitHit>, u64)>,
    ) -> ToControl {
        let over = Instant::now();
        enter(Step::Kill, self.halt());
        let events = self.cgroup.as_ref().map(JailCgroup::events).unwrap_or_default();
        if ended.is_some()
            && let Some(cgroup) = &self.cgroup
        {
            // The payload is dead: as a rule its group is empty, while init is still exiting.
            cgroup.remove_if_empty();
        }
        self.kill();
        let wall_us = running.as_ref().map_or(0, |r| (over - r.since).as_micros() as u64);
        let exports = self.export(running);
        let left = self.remove();
        let killed = PayloadStatus::Signaled(libc::SIGKILL);
        let (status, full, cpu_us) = ended.unwrap_or((killed, Vec::new(), 0));
        ToControl::Ended(End {
            status,
            limits: self.limits(decisive, status, full, cpu_us, events),
            wall_us,
            cpu_us,
            memory_peak: events.memory_peak,
            exports,
            left,
            teardown_us: over.elapsed().as_micros() as u64,
        })
    }

    fn limits(
        &self,
        decisive: Option<LimitHit>,
        status: PayloadStatus,
        full: Vec<LimitHit>,
        cpu_us: u64,
        events: CgroupEvents,
    ) -> Vec<LimitHit> {
        let mut limits: Vec<_> = decisive.into_iter().collect();
        limits.extend(limits_from(self.spec, events));
        limits.extend(full);
        let cpu = self.spec.rlimits.iter().find_map(|(limit, value)| {
            (*limit == crate::spec::Rlimit::CpuSeconds).then_some(*value)
        });
        let out_of_time = match status {
            PayloadStatus::Signaled(libc::SIGXCPU) => true,
            PayloadStatus::Signaled(libc::SIGKILL) => {
                cpu.is_some_and(|seconds| cpu_us >= seconds * 1_000_000)
            }
            _ => false,
        };
        if let Some(seconds) = cpu
            && out_of_time
        {
            limits.push(LimitHit::CpuTime { seconds });
        }
        limits
    }

    /// Kills init; the kernel kills everything else in its pid namespace before init's death is
    /// reported (pid_namespaces(7)). Returns whether all are dead.
    fn kill(&mut self) -> bool {
        let Some((pid, pidfd)) = self.init.as_ref() else { return true };
        // A process that is dead already is what is wanted.
        let _dead = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
        let timeout = Timespec { tv_sec: KILL_GRACE.as_secs() as i64, tv_nsec: 0 };
        let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
        if poll(&mut polled, Some(&timeout)) == Ok(0) {
            return false;
        }
        while waitpid(*pid, None) == Err(nix::errno::Errno::EINTR) {}
        self.init = None;
        true
    }

    fn export(&self, running: Option<Running>) -> Vec<ExportReport> {
        let Some(running) = running else { return Vec::new() };
        if running.exports.is_empty() {
            return Vec::new();
        }
        enter(Step::Export, self.halt());
        let slot = self.claim.as_ref().map_or(0, |claim| claim.slot);
        let ids = IdRange::of(slot, self.spec.level);
        let confine = self.spec.applies(Layer::Landlock);
        running
            .exports
            .into_iter()
            .map(|(order, mounts)| {
                exporter::run(&order, mounts, ids.payload, self.spec.level, confine)
            })
            .collect()
    }

    /// Removes everything; safe to call at any point. Returns what could not be removed.
    pub fn remove(&mut self) -> Vec<String> {
        let dead = self.kill();
        enter(Step::Remove, self.halt());
        let mut left = Vec::new();
        if !dead {
            // Ids, cgroup and name stay claimed until a sweep finds them free.
            left.push("processes that do not die".to_owned());
            return left;
        }
        self.disk = None;
        if let Some(Err(path)) = self.outside.take().map(|group| group.remove(REMOVE_GRACE)) {
            left.push(path);
        }
        if let Some(cgroup) = self.cgroup.take()
            && let Err(path) = cgroup.remove(REMOVE_GRACE)
        {
            left.push(path);
        }
        // The claim goes last: until then the ids and the name belong to this jail.
        if let Some(claim) = self.claim.take() {
            let path = claim.path().display().to_string();
            if claim.release().is_err() {
                left.push(path);
            }
        }
        left
    }
}

enum Event {
    SetupDeadline,
    Deadline(u64),
    Control,
    Init,
}

/// Gives pipes to the payload's id, so that /dev/stdout and the like can be opened by their new
/// owner. Anything else keeps its owner: it may have a name on the host.
fn hand_over(stdio: &[OwnedFd], owner: u32) -> Result<(), StepFailure> {
    let step = Step::CloneInit;
    for stream in stdio {
        let stat = rustix::fs::fstat(stream).at(step, "look at a standard stream")?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo
            && stat.st_nlink == 1
        {
            rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(owner)), None)
                .at(step, "hand over a standard stream")?;
        }
    }
    Ok(())
}

/// Takes apart the descriptors of [`FromInit::Running`]; `None` if there are too few.
fn sort_descriptors(
    spec: &JailSpec,
    exports: &[ExportOrder],
    descriptors: Vec<OwnedFd>,
) -> (Option<Running>, Option<OwnedFd>) {
    let mut descriptors = descriptors.into_iter();
    let payload = descriptors.next();
    let terminal = if spec.payload.tty { descriptors.next() } else { None };
    let exports = exports
        .iter()
        .map(|order| {
            let count = match order.kind {
                ExportKind::CopyBack => 2,
                ExportKind::Scrub => 1,
            };
            (order.clone(), descriptors.by_ref().take(count).collect())
        })
        .collect();
    let running = payload.map(|payload| Running { payload, exports, since: Instant::now() });
    (running, terminal)
}
