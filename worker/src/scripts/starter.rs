//! The script starter: a process that starts the operator's program with the rights of whoever started
//! the worker, after the worker has given them up.
//!
//! This program, under another name, with the worker's environment (from which the key has been
//! taken) and one socket. It has one thread. It runs nothing but the one program that it was started
//! for, each time in a process group of its own and with a fresh memory file as standard input; what
//! a program prints goes to standard error, like its own (ONWORK-4). When the worker ends, however it
//! does, it asks what still runs to end, waits, and kills it.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream as Socket;
use std::os::unix::process::CommandExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::DumpableBehavior;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::frame::{self, Frame, Kind};
use crate::credential::hidden;

/// The name by which this program knows that it is to be the script starter.
const NAME: &str = "stockade-script-starter";
/// How long programs may take to end after the worker (ONWORK-9).
pub const END_MAX: Duration = Duration::from_secs(30);
/// What programs never get, whatever the worker was started with (ONWORK-2, AUTH-9).
const DROPPED: [&str; 2] = ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"];

/// The control side's end before it has a runtime.
#[derive(Debug)]
pub struct Starter {
    pub socket: Socket,
}

impl Starter {
    /// Starts the process, for `program` with `name` as its first argument.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(program: &Path, name: &OsStr) -> io::Result<Starter> {
        let (ours, theirs) = Socket::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0(NAME)
            .arg(program)
            .arg(name)
            // Signals of the terminal are for the worker.
            .process_group(0)
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null());
        for name in [hidden::DESCRIPTOR].into_iter().chain(DROPPED) {
            command.env_remove(name);
        }
        // Not waited for: it ends when the socket does.
        let _child = command.spawn()?;
        ours.set_nonblocking(true)?;
        Ok(Starter { socket: ours })
    }
}

/// Turns this process into the script starter if it was started as one. Call early in `main`.
pub fn become_script_starter_if_asked() {
    let mut arguments = std::env::args_os();
    if arguments.next().is_none_or(|name| name != NAME) {
        return;
    }
    hidden::set_process_name("script-starter");
    let program = PathBuf::from(arguments.next().unwrap_or_default());
    let name = arguments.next().unwrap_or_default();
    // An error means that nobody listens any more, or that nothing can be started here.
    let ended = serve(program, name);
    std::process::exit(i32::from(ended.is_err()))
}

fn serve(program: PathBuf, name: OsString) -> io::Result<()> {
    // What a program is given passes through here.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let socket = Socket::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    socket.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Held and not heard: the worker decides what ends. Programs get the default ones back.
        let _held = [
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::quit())?,
        ];
        let (mut from, mut to) = UnixStream::from_std(socket)?.into_split();
        let (answers, mut queued) = mpsc::unbounded_channel::<Frame>();
        let (ended, mut ends) = mpsc::unbounded_channel::<u64>();
        let mut running = HashMap::new();
        let writer = tokio::spawn(async move {
            while let Some(answer) = queued.recv().await {
                if frame::send(&mut to, &answer).await.is_err() {
                    return;
                }
            }
        });
        let one = One { program, name, answers, ended };
        loop {
            // Reading a message must not be cut short, so ends are only counted between two.
            while let Ok(number) = ends.try_recv() {
                running.remove(&number);
            }
            let Ok(Some(request)) = frame::receive(&mut from).await else { break };
            match request.kind {
                Kind::Start => {
                    if let Some(group) = one.start(&request) {
                        running.insert(request.number, group);
                    }
                }
                Kind::Signal => {
                    while let Ok(number) = ends.try_recv() {
                        running.remove(&number);
                    }
                    let number = request.value().and_then(|value| Signal::try_from(value).ok());
                    if let (Some(group), Some(number)) = (running.get(&request.number), number) {
                        // It may have ended this very moment.
                        let _gone = killpg(*group, number);
                    }
                }
                _ => break,
            }
        }
        end_all(running, ends).await;
        writer.abort();
        Ok(())
    })
}

/// The worker is gone: nothing that it started outlives it by more than [`END_MAX`].
async fn end_all(mut running: HashMap<u64, Pid>, mut ends: mpsc::UnboundedReceiver<u64>) {
    let signal_all = |running: &HashMap<u64, Pid>, number| {
        for group in running.values() {
            let _gone = killpg(*group, number);
        }
    };
    let mut signalled = false;
    let deadline = tokio::time::Instant::now() + END_MAX;
    while let Ok(number) = ends.try_recv() {
        running.remove(&number);
    }
    while !running.is_empty() {
        if !signalled {
            signal_all(&running, Signal::SIGTERM);
            signalled = true;
        }
        match tokio::time::timeout_at(deadline, ends.recv()).await {
            Ok(Some(number)) => drop(running.remove(&number)),
            Ok(None) | Err(_) => {
                signal_all(&running, Signal::SIGKILL);
                return;
            }
        }
    }
}

/// What every start has in common.
struct One {
    program: PathBuf,
    name: OsString,
    answers: mpsc::UnboundedSender<Frame>,
    ended: mpsc::UnboundedSender<u64>,
}

impl One {
    /// Starts the program once; returns its process group.
    fn start(&self, request: &Frame) -> Option<Pid> {
        let number = request.number;
        // Nobody to answer means that the worker is gone, which is seen elsewhere.
        let answer = |frame: Frame| drop(self.answers.send(frame));
        let started = request
            .parts()
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
            .and_then(|parts| self.spawn(&parts));
        let mut child = match started {
            Ok(child) => child,
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(Errno::INVAL.raw_os_error());
                answer(Frame::of(Kind::Failed, number, errno));
                return None;
            }
        };
        let id = child.id().and_then(|id| i32::try_from(id).ok())?;
        answer(Frame::of(Kind::Started, number, id));
        let (answers, ended) = (self.answers.clone(), self.ended.clone());
        tokio::spawn(async move {
            let status = child.wait().await.map_or(-1, |status| status.into_raw());
            // As above.
            let _unheard = ended.send(number);
            let _unheard = answers.send(Frame::of(Kind::Ended, number, status));
        });
        Some(Pid::from_raw(id))
    }

    fn spawn(&self, parts: &[&[u8]]) -> io::Result<tokio::process::Child> {
        let (input, variables) = parts.split_first().ok_or(io::ErrorKind::InvalidData)?;
        let memory = rustix::fs::memfd_create("work-item", MemfdFlags::CLOEXEC)?;
        let mut memory = std::fs::File::from(memory);
        memory.write_all(input)?;
        memory.rewind()?;
        let mut command = Command::new(&self.program);
        command.arg0(&self.name).process_group(0).stdin(Stdio::from(memory));
        // Both of its streams go where the worker's log goes (ONWORK-4).
        command.stdout(Stdio::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)?));
        for variable in variables {
            let at = variable.iter().position(|byte| *byte == b'=').unwrap_or(variable.len());
            let (name, value) = variable.split_at(at);
            command.env(OsStr::from_bytes(name), OsStr::from_bytes(value.get(1..).unwrap_or(b"")));
        }
        tokio::process::Command::from(command).spawn()
    }
}
