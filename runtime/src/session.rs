//! One session: its jail, its executor, its calls, its end.
//!
//! Runs in the control side. Asynchronous, because many sessions share its threads; what waits for
//! the jail waits on descriptors. Dropping a session ends its jail: the launcher sees the connection
//! close and takes everything apart.
//!
//! `host` is its launcher's end of it, `line` its executor's, `network` its part of the broker, `porter`
//! the connection to who keeps its skills and memory stores. `unjailed` is for tools without a jail.

mod host;
mod line;
mod network;
mod porter;
mod unjailed;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::egress::Denial;
use crate::jail::{
    self, CgroupEvents, Confinement, End, EnforcementReport, Event, ExecutorEnds, Failure,
    KeeperSide, Launcher, LimitHit, OutsideDoor, PorterEnds, Programs, UnpackConfinement,
};
use crate::spec::{CgroupPlan, CustomToolPlan, JailSpec, Room};
use crate::tool::{self, FileHelper, FullPlace, ToolCall, ToolResult, shell};

use host::Host;
use line::{CANCEL_GRACE, Line, LineError};
pub use network::{Egress, Network, NetworkError, inside};
pub use porter::*;
pub use unjailed::{
    Outside, OutsideCallError, OutsideError, OutsidePlan, Unjailed, become_unjailed_if_asked,
};

/// A successful call that took no longer and left nothing running has met no limit worth a question.
const UNEVENTFUL_US: u64 = 20_000;

/// Turns this process into the launcher if it was started as one. Call first thing in `main`.
pub fn become_launcher_if_asked() {
    jail::become_launcher_if_asked(Programs { keeper, executor, porter: carry });
}

/// PID 1 of the tool tree.
fn keeper(side: KeeperSide, spec: &JailSpec) -> ! {
    let ends = shell::KeeperEnds {
        commands: side.commands,
        script: side.script,
        output: side.output,
        status: side.status,
        tool: side.tool,
        executor: side.executor,
        proc: Some(side.proc),
    };
    let payload = &spec.payload;
    let plan = shell::ShellPlan {
        argv: payload.argv.clone(),
        custom: custom_tools(spec),
        ..shell::ShellPlan::bash(&payload.environment, payload.workdir.clone())
    };
    shell::keep(ends, plan)
}

fn custom_tools(spec: &JailSpec) -> Vec<CustomToolPlan> {
    spec.tools.as_ref().map(|plan| plan.custom.clone()).unwrap_or_default()
}

/// The process that hears [`Porter`].
fn carry(ends: PorterEnds, mut confinement: UnpackConfinement) -> ! {
    let PorterEnds { control, workspace, skills, stores } = ends;
    let confine = &mut |directory: BorrowedFd<'_>| confinement.enter(directory);
    let porter = crate::porter::Porter { control, workspace, skills, stores, confine };
    crate::porter::serve_until_closed(porter)
}

/// The process that hears [`Session`].
fn executor(ends: ExecutorEnds, mut confinement: Confinement, spec: &JailSpec) -> ! {
    let plan = spec.tools.as_ref();
    let roots = plan.map(|plan| plan.roots.clone()).unwrap_or_default();
    let read_only = plan.map(|plan| plan.read_only.clone()).unwrap_or_default();
    let places = std::mem::take(&mut confinement.places);
    let shell = shell::Shell::new(
        shell::ShellEnds {
            commands: ends.commands,
            script: ends.script,
            output: ends.output,
            output_writer: Some(ends.output_writer),
            status: ends.status,
            tool: shell::ToolEnds { read: ends.tool, writers: Some(ends.tool_writers) },
            keeper: ends.keeper,
        },
        limits(spec),
    );
    let confine = &mut || confinement.enter();
    let files = Some(FileHelper { roots, read_only, confine });
    let custom = custom_tools(spec);
    tool::Executor { control: ends.control, shell, files, custom, places }.serve()
}

/// The limits of the shell, within what the policy gives one command.
fn limits(spec: &JailSpec) -> shell::ShellLimits {
    let mut limits = shell::ShellLimits::default();
    if let Some(most) = spec.tools.as_ref().and_then(|plan| plan.call_time_ms_max) {
        let most = Duration::from_millis(most);
        limits.timeout_max = limits.timeout_max.min(most);
        limits.default_timeout = limits.default_timeout.min(most);
    }
    limits
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The jail was refused or could not be made.
    #[error("{failure}")]
    Jail {
        /// Which step, and what could not be removed afterwards.
        failure: Failure,
    },
    /// The jail's network has no broker to lead to.
    #[error("cannot connect the jail's network to the broker")]
    Broker {
        /// Why.
        source: io::Error,
    },
    /// The launcher or the executor did not answer.
    #[error("cannot reach the {whom}")]
    Unreachable {
        /// Which of them.
        whom: &'static str,
        /// What happened instead.
        source: io::Error,
    },
}

/// Why a call has no result. The jail is gone, or about to be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The jail ended while the call ran, or before.
    /// [`Session::end`] says how.
    #[error("cannot run the call: the jail ended")]
    Ended,
    /// The input is longer than [`ToolCall::INPUT_BYTES_MAX`].
    #[error("cannot run the call: its input of {bytes} bytes is too long")]
    TooLong {
        /// How long.
        bytes: usize,
    },
    /// The connection to the executor broke.
    #[error("cannot reach the executor")]
    Broken {
        /// How.
        source: io::Error,
    },
}

/// A session whose jail runs.
#[derive(Debug)]
pub struct Session {
    host: Host,
    line: Line,
    usage: CgroupEvents,
    outside: Option<Arc<OutsideDoor>>,
    outside_usage: CgroupEvents,
    report: Box<EnforcementReport>,
    limits: CgroupPlan,
    rooms: Vec<Room>,
    network: Option<Arc<Network>>,
    porter: Porter,
}

/// What a call came to.
#[derive(Debug)]
pub struct Called {
    /// Its result.
    pub result: ToolResult,
    /// Limits that took effect while it ran.
    pub limits: Vec<LimitHit>,
    /// What the broker denied while it ran.
    pub denials: Vec<Denial>,
}

impl Session {
    /// Makes the jail and waits until its executor is ready.
    ///
    /// `launcher` makes this jail alone (see [`Launcher::another`]); `egress` serves its network if
    /// the spec has one.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left of the jail then, except what its failure names.
    pub async fn start(
        launcher: Launcher,
        spec: JailSpec,
        run_directory: PathBuf,
        egress: Option<Egress>,
    ) -> Result<Session, StartError> {
        let unreachable = |whom| move |source| StartError::Unreachable { whom, source };
        let (limits, rooms, plan) = (spec.cgroup.clone(), spec.mounts.rooms(), spec.egress.clone());
        let (ours, theirs) = StdStream::pair().map_err(unreachable("executor"))?;
        let with_porter = spec.tools.as_ref().is_some_and(|plan| plan.porter);
        let porter = with_porter.then(StdStream::pair).transpose();
        let (porter, porters) = porter.map_err(unreachable("porter"))?.unzip();
        let host = Host::new(launcher);
        let event = host
            .with(move |launcher, _| {
                let lent: Vec<_> =
                    [&theirs].into_iter().chain(&porters).map(|end| end.as_fd()).collect();
                launcher.launch(spec, &run_directory, &lent)?;
                drop((theirs, porters));
                let (mut listeners, mut outside) = (Vec::new(), None);
                loop {
                    match launcher.event()? {
                        Event::Listening(more) => listeners.extend(more),
                        Event::Outside(door) => outside = Some(Arc::new(door)),
                        event => return Ok((event, listeners, outside)),
                    }
                }
            })
            .await;
        let (report, listeners, outside) = match event {
            Ok((Event::Running(report, _), listeners, outside)) => (report, listeners, outside),
            Ok((Event::Failed(failure), ..)) => return Err(StartError::Jail { failure }),
            Ok(_) => return Err(unreachable("launcher")(io::ErrorKind::InvalidData.into())),
            Err(source) => return Err(unreachable("launcher")(source)),
        };
        let network = Network::attach(plan, listeners, egress, &host)
            .map_err(|source| StartError::Broker { source })?;
        let line = Line::connect(ours).await.map_err(unreachable("executor"))?;
        let porter = porter.map_or(Ok(Porter::absent()), Porter::connect);
        let porter = porter.map_err(unreachable("porter"))?;
        let (usage, outside_usage) = (CgroupEvents::default(), CgroupEvents::default());
        Ok(Session {
            host,
            line,
            usage,
            outside,
            outside_usage,
            report,
            limits,
            rooms,
            network,
            porter,
        })
    }

    /// Its part of the broker; `None` where its jail has no network.
    pub fn network(&self) -> Option<&Arc<Network>> {
        self.network.as_ref()
    }

    /// The way into the cgroup of its tools on the host; `None` where its jail has no cgroup either, or
    /// the spec named no such tools.
    pub fn outside(&self) -> Option<Arc<OutsideDoor>> {
        self.outside.clone()
    }

    /// Who unpacks its skills, keeps its memory stores and lays staged files into its workspace. It
    /// works while a call runs, and after [`quiesce`](Self::quiesce). Every request to it is refused
    /// ([`PorterError::Absent`]) if the spec asked for none.
    pub fn porter(&self) -> &Porter {
        &self.porter
    }

    /// What is enforced, and how it was proven.
    pub fn report(&self) -> &EnforcementReport {
        &self.report
    }

    /// Runs one call to its end. When `stop` completes first, the call is ended and its result is
    /// what it had until then, with `facts.cancelled`.
    ///
    /// Limits that took effect during the call, and what the broker denied, are returned beside its
    /// result; `id` is what the ledger knows the call by.
    ///
    /// # Errors
    /// [`CallError`] if there is no result; its outcome is unknown then, and the session is over.
    pub async fn call(
        &mut self,
        id: &str,
        name: &str,
        input: Vec<u8>,
        stop: impl Future<Output = ()>,
    ) -> Result<Called, CallError> {
        if input.len() > ToolCall::INPUT_BYTES_MAX {
            return Err(CallError::TooLong { bytes: input.len() });
        }
        // What was denied between calls belongs to none.
        self.turn(Some(id));
        let result = self.line.call(name, input, stop).await;
        let denials = self.turn(None);
        let result = match result {
            Ok(result) => result,
            Err(error) => return Err(self.failed(error).await),
        };
        let limits = self.limits_hit(&result).await?;
        Ok(Called { result, limits, denials })
    }

    fn turn(&self, call: Option<&str>) -> Vec<Denial> {
        self.network.as_ref().map(|network| network.ledger().turn(call)).unwrap_or_default()
    }

    /// Limits of the session's tools on the host that took effect during a call of one of them.
    ///
    /// # Errors
    /// [`CallError`] if the jail has ended, which ends them: what they did is unknown then.
    pub async fn outside_limits(
        &mut self,
        result: &ToolResult,
    ) -> Result<Vec<LimitHit>, CallError> {
        if self.outside.is_none() || is_quiet(result) {
            return Ok(Vec::new());
        }
        let now = self.counted(true).await?;
        let before = std::mem::replace(&mut self.outside_usage, now);
        Ok(self.hits(before, now))
    }

    /// Whether the jail is known to have ended. A call sent now would have no result, and has not
    /// been run.
    pub fn is_over(&self) -> bool {
        self.line.is_over()
    }

    /// Waits until the jail has ended. For a time in which it runs no call.
    pub async fn over(&self) {
        self.line.over().await;
    }

    /// Kills every process of the tool tree; what is in files stays.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn quiesce(&mut self) -> Result<(), CallError> {
        match self.line.quiesce().await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.failed(error).await),
        }
    }

    /// Ends the jail: kills, copies back, removes. Waits until all of it is done.
    ///
    /// # Errors
    /// If the launcher died; a sweep removes what it left.
    pub async fn end(self) -> io::Result<End> {
        // Its connections first: nothing may leave once the end has begun, and their ends are recorded
        // before the jail's.
        if let Some(network) = &self.network {
            network.close().await;
        }
        self.host.end().await
    }

    /// What a connection that failed means: the jail is over, or is to be.
    async fn failed(&mut self, error: LineError) -> CallError {
        match error {
            LineError::Closed => self.ended().await,
            LineError::Broken(source) => CallError::Broken { source },
        }
    }

    /// Limits that took effect since this was last asked. The counters are the launcher's, so they
    /// are read only after calls in which something can have happened.
    async fn limits_hit(&mut self, result: &ToolResult) -> Result<Vec<LimitHit>, CallError> {
        if is_quiet(result) {
            return Ok(Vec::new());
        }
        let now = self.counted(false).await?;
        let before = std::mem::replace(&mut self.usage, now);
        let mut hits = self.hits(before, now);
        let facts = &result.facts;
        hits.extend(facts.full.iter().filter_map(|full| limit_of(&self.rooms, full)));
        Ok(hits)
    }

    async fn counted(&self, outside: bool) -> Result<CgroupEvents, CallError> {
        match self.host.usage(outside).await {
            Ok(Some(events)) => Ok(events),
            Err(source) if source.kind() == io::ErrorKind::InvalidData => {
                Err(CallError::Broken { source })
            }
            Ok(None) | Err(_) => Err(CallError::Ended),
        }
    }

    /// What was counted between two looks.
    fn hits(&self, before: CgroupEvents, now: CgroupEvents) -> Vec<LimitHit> {
        let mut hits = Vec::new();
        let kills = now.oom_kills.saturating_sub(before.oom_kills);
        if kills > 0 {
            hits.push(LimitHit::Memory { bytes: self.limits.memory_bytes_max, kills });
        }
        let refused = now.forks_refused.saturating_sub(before.forks_refused);
        if refused > 0 {
            hits.push(LimitHit::Processes { max: self.limits.pids_max, refused });
        }
        hits
    }

    /// The connection to the executor closed: what the launcher has to say about that.
    async fn ended(&mut self) -> CallError {
        // What it says is kept there for `end`; a launcher that says nothing is found out there too.
        let _heard = tokio::time::timeout(CANCEL_GRACE, self.host.ended()).await;
        CallError::Ended
    }
}

/// Whether no limit can have been met worth a question.
fn is_quiet(result: &ToolResult) -> bool {
    let facts = &result.facts;
    !result.is_error && facts.left_running == 0 && facts.wall_us < UNEVENTFUL_US
}

/// The limit of a full place. What is none of its own is the session's own file system.
fn limit_of(rooms: &[Room], full: &FullPlace) -> Option<LimitHit> {
    let place = full.place.clone();
    let room = rooms.iter().find(|room| room.place == Path::new(&place)).or(rooms.first())?;
    let area = room.area;
    Some(match full.inodes {
        true => LimitHit::Inodes { place, area, inodes: room.inodes_max },
        false => LimitHit::Bytes { place, area, bytes: room.bytes_max },
    })
}
