//! Tools without a jail, as the control side has them: processes that are this same program, executed
//! anew under another name, with an empty environment and one connection.
//!
//! [`Unjailed`] is the whole toolset with the rights of the calling program, for the library. [`Outside`]
//! starts custom tools on the host for many sessions at once: it is made while the worker still has the
//! rights of whoever started it, takes the id of its tools at once, and forks an executor for each call.
//! Nothing of a call outlives it there.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::CallError;
use super::line::{Line, LineError};
use crate::host::Level;
use crate::jail::{self, OutsideConfinement, OutsideDoor, Wire};
use crate::spec::OutsideLimits;
use crate::tool::shell::ShellPlan;
use crate::tool::unjailed::{self, UnjailedPlan};
use crate::tool::{ToolCall, ToolResult, frame};

/// Names by which this program knows what it is to be.
const TOOLSET: &str = "stockade-toolset";
const OUTSIDE: &str = "stockade-outside";
/// How long the process of outside tools may take until it is confined.
const START_MAX: Duration = Duration::from_secs(10);

/// Turns this process into one that runs tools without a jail, if it was started as one. Call first
/// thing in `main`.
pub fn become_unjailed_if_asked() {
    let name = std::env::args_os().next().unwrap_or_default();
    let serve = match name.to_str() {
        Some(TOOLSET) => serve_toolset,
        Some(OUTSIDE) => serve_outside,
        _ => return,
    };
    // Whoever started it hears of it by the end of the connection.
    let failed = unjailed::take_connection().and_then(serve);
    std::process::exit(i32::from(failed.is_err()))
}

fn serve_toolset(control: OwnedFd) -> io::Result<()> {
    let plan: UnjailedPlan = frame::receive(&control)?;
    unjailed::serve(control, plan)
}

fn serve_outside(connection: OwnedFd) -> io::Result<()> {
    let OutsidePlan { level, user, shell, unfiltered, limits } = frame::receive(&connection)?;
    let confined = jail::confine_outside(level, user, &limits)
        .and_then(|()| OutsideConfinement::prepare(limits));
    let errno = confined.as_ref().err().map(|error| error.raw_os_error().unwrap_or(0));
    frame::send(&connection, &errno)?;
    let confinement = confined?;
    let filtered: Vec<bool> =
        shell.custom.iter().map(|tool| !unfiltered.contains(&tool.name)).collect();
    let confine = |group: &[OwnedFd], tool: usize| {
        // One that is not known is under the filter.
        confinement.enter(group, filtered.get(tool).copied().unwrap_or(true))
    };
    let mut wire = Wire::from_fd(connection);
    let plan = UnjailedPlan { shell, roots: Vec::new() };
    let mut next = || loop {
        let ((), mut given) = wire.receive::<()>()?;
        if given.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let control = given.remove(0);
        // Otherwise it closes, which says that nothing was run.
        if confinement.admits(&given) {
            return Ok((control, given));
        }
    };
    unjailed::serve_each(&mut next, &plan, &confine)
}

/// This program under another name, with nothing of this process but a connection.
fn start(name: &str) -> io::Result<(StdStream, Child)> {
    let (ours, theirs) = StdStream::pair()?;
    let child = Command::new("/proc/self/exe")
        .arg0(name)
        .env_clear()
        .current_dir("/")
        // What is typed at a terminal is for this program, which ends calls in order.
        .process_group(0)
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok((ours, child))
}

/// Waits for a process whose connection was closed, which ends it within seconds.
fn reap_in_the_background(child: Option<Child>) {
    if let Some(mut child) = child {
        std::thread::spawn(move || drop(child.wait()));
    }
}

/// The tools of one session with the rights of this program: there is no jail around them.
#[derive(Debug)]
pub struct Unjailed {
    line: Line,
    child: Option<Child>,
}

impl Unjailed {
    /// Starts the process and waits until it is ready. Every process of it ends when this is dropped.
    ///
    /// # Errors
    /// If it cannot be started, or this program does not call [`become_unjailed_if_asked`].
    pub async fn start(plan: UnjailedPlan) -> io::Result<Unjailed> {
        let started = tokio::task::spawn_blocking(move || -> io::Result<_> {
            let (stream, child) = start(TOOLSET)?;
            stream.set_write_timeout(Some(START_MAX))?;
            frame::send(&stream, &plan)?;
            Ok((stream, child))
        });
        let (stream, child) = started.await.map_err(io::Error::other)??;
        let ready = tokio::time::timeout(START_MAX, Line::connect(stream)).await;
        match ready.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(line) => Ok(Unjailed { line, child: Some(child) }),
            Err(error) => {
                let mut child = child;
                // It did not understand, and would do something else.
                let killed = child.kill();
                reap_in_the_background(Some(child));
                killed.and(Err(error))
            }
        }
    }

    /// As [`super::Session::call`], without limits and egress, of which there are none.
    ///
    /// # Errors
    /// [`CallError`]; the processes of this session are gone then.
    pub async fn call(
        &mut self,
        name: &str,
        input: Vec<u8>,
        stop: impl Future<Output = ()>,
    ) -> Result<ToolResult, CallError> {
        checked(&input)?;
        self.line.call(name, input, stop).await.map_err(CallError::from)
    }
}

impl Drop for Unjailed {
    fn drop(&mut self) {
        // The connection closes with `line`, right after this.
        reap_in_the_background(self.child.take());
    }
}

/// What custom tools on the host are started from.
#[derive(Clone, Serialize, Deserialize)]
pub struct OutsidePlan {
    /// Of the worker.
    pub level: Level,
    /// User and group id as root; the control side's if `None`.
    pub user: Option<u32>,
    /// The tools, and the environment that all of them have. Its shell is never started.
    pub shell: ShellPlan,
    /// Those that the operator wants without a system call filter.
    pub unfiltered: Vec<String>,
    /// Of each of them.
    pub limits: OutsideLimits,
}

impl std::fmt::Debug for OutsidePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // INV-12: values of the environment are not shown.
        f.debug_struct("OutsidePlan").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The process of custom tools on the host cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutsideError {
    /// It does not start.
    #[error("cannot start the process of custom tools on the host")]
    Start {
        /// Why.
        source: io::Error,
    },
    /// It could not give its rights up.
    #[error("cannot confine the process of custom tools on the host")]
    Confine {
        /// What the kernel refused.
        source: io::Error,
    },
}

/// A call of a custom tool on the host has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutsideCallError {
    /// Nothing was run.
    #[error("cannot start a custom tool on the host")]
    NotStarted {
        /// Why.
        source: io::Error,
    },
    /// What came of it is unknown, unless it was too long.
    #[error("{reason}")]
    Call {
        /// As for any executor.
        reason: CallError,
    },
}

/// Starts custom tools on the host. Cheap to clone; ends, with all that it started, when the last
/// clone is dropped.
#[derive(Debug, Clone)]
pub struct Outside(Arc<Connection>);

#[derive(Debug)]
struct Connection {
    wire: Mutex<Wire>,
    child: Mutex<Option<Child>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        reap_in_the_background(child);
    }
}

impl Outside {
    /// Starts the process and waits until it is confined. To be called before the caller gives up
    /// its rights.
    ///
    /// # Errors
    /// [`OutsideError`].
    pub fn start(plan: &OutsidePlan) -> Result<Outside, OutsideError> {
        let failed = |source| OutsideError::Start { source };
        let (stream, child) = start(OUTSIDE).map_err(failed)?;
        let talk = || -> io::Result<Option<i32>> {
            stream.set_read_timeout(Some(START_MAX))?;
            frame::send(&stream, plan)?;
            let answer = frame::receive(&stream)?;
            stream.set_read_timeout(None)?;
            Ok(answer)
        };
        match talk().map_err(failed)? {
            None => {
                let wire = Mutex::new(Wire::from_fd(stream.into()));
                Ok(Outside(Arc::new(Connection { wire, child: Mutex::new(Some(child)) })))
            }
            Some(errno) => {
                reap_in_the_background(Some(child));
                Err(OutsideError::Confine { source: io::Error::from_raw_os_error(errno) })
            }
        }
    }

    /// Runs one call in an executor of its own, which ends with it and ends what the tool left. The tool
    /// runs in the cgroup behind `door`: that of its session ([`super::Session::outside`]). Without one
    /// nothing is started, unless the plan says that there is none.
    ///
    /// # Errors
    /// [`OutsideCallError::NotStarted`] if the tool was not started; otherwise its outcome is unknown.
    pub async fn call(
        &self,
        name: &str,
        input: Vec<u8>,
        door: Option<Arc<OutsideDoor>>,
        stop: impl Future<Output = ()>,
    ) -> Result<ToolResult, OutsideCallError> {
        checked(&input).map_err(|reason| OutsideCallError::Call { reason })?;
        let not_started = |source| OutsideCallError::NotStarted { source };
        let connection = Arc::clone(&self.0);
        let sent = tokio::task::spawn_blocking(move || -> io::Result<StdStream> {
            let (ours, theirs) = StdStream::pair()?;
            let mut wire = connection.wire.lock().unwrap_or_else(PoisonError::into_inner);
            let files = door.iter().flat_map(|door| door.files()).map(|file| file.as_fd());
            let lent: Vec<_> = [theirs.as_fd()].into_iter().chain(files).collect();
            wire.send(&(), &lent)?;
            Ok(ours)
        });
        let stream = sent.await.map_err(io::Error::other).and_then(|sent| sent);
        let stream = stream.map_err(not_started)?;
        let connected = tokio::time::timeout(START_MAX, Line::connect(stream)).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let mut line = connected.map_err(not_started)?;
        let called = line.call(name, input, stop).await;
        called.map_err(|error| OutsideCallError::Call { reason: error.into() })
    }
}

fn checked(input: &[u8]) -> Result<(), CallError> {
    let bytes = input.len();
    if bytes > ToolCall::INPUT_BYTES_MAX { Err(CallError::TooLong { bytes }) } else { Ok(()) }
}

impl From<LineError> for CallError {
    fn from(error: LineError) -> CallError {
        match error {
            LineError::Closed => CallError::Ended,
            LineError::Broken(source) => CallError::Broken { source },
        }
    }
}
