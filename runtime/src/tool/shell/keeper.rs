//! The keeper: PID 1 of the tool tree. Starts the shell and custom tools, reaps what is orphaned, and
//! kills.
//!
//! Runs with the ids of bash and with every layer of the jail on it; signals from inside its PID
//! namespace do not reach it, and its death ends them all. Single-threaded. It knows nothing of
//! commands and output, and does only what the executor asks for: one request, one answer.
//!
//! Without a jail (`tool::unjailed`) it is an ordinary process: what it starts is then known by
//! descent, nothing else is ever signalled, and it kills them all before it ends.
//!
//! Waiting is in one place: a ppoll(2) that also ends when a child does.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::SigSet;
use nix::sys::time::TimeSpec;
use rustix::fs::{Mode, OFlags};
use rustix::process::{WaitOptions, wait};
use serde::{Deserialize, Serialize};

use super::link::{FromKeeper, Link, ToKeeper};
use super::processes::Processes;
use super::script::{ABORT_SIGNAL, SCRIPT_FD, STATUS_FD};
use crate::spec::CustomToolPlan;
use crate::sys::{self, Forked, send_signal};
use crate::tool::frame::write_all;

/// How long one request may go on killing.
const KILL_TIME_MAX: Duration = Duration::from_secs(2);
/// Between two rounds of killing.
const KILL_PAUSE: Duration = Duration::from_millis(1);

/// What the keeper holds of the connections between executor and shell.
#[derive(Debug)]
pub struct KeeperEnds {
    /// Read end of the shell's standard input.
    pub commands: OwnedFd,
    /// The file of the command.
    pub script: OwnedFd,
    /// Write end of output.
    pub output: OwnedFd,
    /// Write end of status.
    pub status: OwnedFd,
    /// Write ends of what custom tools print: output and errors.
    pub tool: [OwnedFd; 2],
    /// To the executor.
    pub executor: OwnedFd,
    /// A proc filesystem of the tool tree's PID namespace that hides nothing, if there is one.
    /// Without it the processes of one call cannot be told from others: a timeout then kills all.
    /// A keeper that is no PID 1 must have one.
    pub proc: Option<OwnedFd>,
}

/// How the shell is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShellPlan {
    /// Path of bash and its arguments; the path is also its name. Without any there is no shell.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value`, complete.
    pub environment: Vec<Vec<u8>>,
    /// Where it starts. The root if that is gone.
    pub workdir: PathBuf,
    /// Other programs that may be started, by their index.
    pub custom: Vec<CustomToolPlan>,
}

impl ShellPlan {
    /// The shell of the contract: `/bin/bash --noprofile --norc`, in `workdir`, with `environment`
    /// less what may hold a credential of the control plane, and the terminal variables that keep
    /// bash quiet (protocol TOOL-BASH-1 to 3).
    pub fn bash(environment: &[Vec<u8>], workdir: PathBuf) -> ShellPlan {
        const SET: [&[u8]; 3] = [b"PS1=", b"PS2=", b"TERM=dumb"];
        let kept = environment.iter().filter(|entry| {
            let name = entry.split(|byte| *byte == b'=').next().unwrap_or_default();
            let upper = name.to_ascii_uppercase();
            !(upper.starts_with(b"ANTHROPIC_") || matches!(name, b"PS1" | b"PS2" | b"TERM"))
        });
        let environment = kept.cloned().chain(SET.map(<[u8]>::to_vec)).collect();
        let argv = [&b"/bin/bash"[..], b"--noprofile", b"--norc"].map(<[u8]>::to_vec).to_vec();
        ShellPlan { argv, environment, workdir, custom: Vec::new() }
    }
}

/// Serves the executor until it is gone, then exits, which kills the tool tree.
///
/// For PID 1 of a PID namespace, or for a process without other children. Closes no descriptor but
/// those it was given; a shell gets none but its own.
pub fn keep(ends: KeeperEnds, plan: ShellPlan) -> ! {
    keep_confining(ends, plan, &|_| Ok(()))
}

/// What is called in the process that becomes a custom tool, with the index of the tool, while it has
/// everything of the keeper's. It becomes no tool if that fails.
pub type Confine<'a> = &'a dyn Fn(usize) -> io::Result<()>;

/// As [`keep`], for custom tools that are confined further than the keeper is.
pub fn keep_confining(ends: KeeperEnds, plan: ShellPlan, confine: Confine<'_>) -> ! {
    let failed = match Keeper::new(ends, &plan, confine) {
        Ok(mut keeper) => {
            let failed = keeper.serve().is_err();
            // The end of a namespace ends what is in it; elsewhere that is for us to do.
            let all = keeper.processes.are_a_namespace() || keeper.kill_all().is_ok_and(|all| all);
            failed || !all
        }
        Err(_refused) => true,
    };
    std::process::exit(i32::from(failed))
}

struct Keeper<'a> {
    confine: Confine<'a>,
    link: Link,
    commands: OwnedFd,
    script: OwnedFd,
    output: OwnedFd,
    status: OwnedFd,
    processes: Processes,
    argv: Vec<CString>,
    environment: Vec<CString>,
    workdir: PathBuf,
    shell: Option<i32>,
    custom: Vec<CustomTool>,
    tool_output: [OwnedFd; 2],
    /// The custom tool that runs.
    tool: Option<i32>,
}

/// Ready to be executed.
struct CustomTool {
    name: String,
    argv: Vec<CString>,
    environment: Vec<CString>,
    workdir: PathBuf,
}

impl<'a> Keeper<'a> {
    fn new(ends: KeeperEnds, plan: &ShellPlan, confine: Confine<'a>) -> io::Result<Keeper<'a>> {
        let strings = |list: &[Vec<u8>]| -> io::Result<Vec<CString>> {
            list.iter().map(|bytes| Ok(CString::new(bytes.as_slice())?)).collect()
        };
        let custom = plan.custom.iter().map(|tool| {
            let added = |entry: &&Vec<u8>| !names_one_of(entry, &tool.environment);
            let inherited: Vec<Vec<u8>> = plan.environment.iter().filter(added).cloned().collect();
            Ok(CustomTool {
                name: tool.name.clone(),
                argv: strings(&tool.argv)?,
                environment: strings(&[inherited, tool.environment.clone()].concat())?,
                workdir: tool.workdir.clone().unwrap_or_else(|| plan.workdir.clone()),
            })
        });
        sys::listen_for_children()?;
        Ok(Keeper {
            confine,
            link: Link::new(ends.executor),
            commands: ends.commands,
            script: ends.script,
            output: ends.output,
            status: ends.status,
            processes: Processes::of_this_keeper(ends.proc)?,
            argv: strings(&plan.argv)?,
            environment: strings(&plan.environment)?,
            workdir: plan.workdir.clone(),
            shell: None,
            custom: custom.collect::<io::Result<_>>()?,
            tool_output: ends.tool,
            tool: None,
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        loop {
            let asked = self.wait(None)?;
            self.reap()?;
            if !asked {
                continue;
            }
            match self.link.receive(Instant::now()) {
                Ok(Some(request)) => self.answer(request)?,
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn answer(&mut self, request: ToKeeper) -> io::Result<()> {
        let shell = self.shell.unwrap_or(-1);
        let answer = match request {
            ToKeeper::Start => started(self.start()),
            ToKeeper::RunTool(index) => started(self.run_tool(usize::from(index))),
            ToKeeper::Count => FromKeeper::Counted(self.processes.count_new(shell)),
            // Nothing would stop it from going on with its next command once a child is dead.
            ToKeeper::Interrupt if self.processes.ignores(shell, ABORT_SIGNAL) => {
                FromKeeper::Killed(self.kill_shell()?)
            }
            ToKeeper::Interrupt => {
                if shell > 0 {
                    // Pending before a child dies, so that no command can come between. One that is
                    // gone is reported when it is reaped.
                    let _gone = send_signal(shell, ABORT_SIGNAL);
                    let _gone = send_signal(shell, libc::SIGCONT);
                }
                FromKeeper::Killed(self.kill_new(shell)?)
            }
            ToKeeper::KillNew => FromKeeper::Killed(self.kill_new(shell)?),
            ToKeeper::KillShell => FromKeeper::Killed(self.kill_shell()?),
            ToKeeper::KillAll => FromKeeper::Killed(self.kill_all()?),
        };
        self.link.send(&answer)
    }

    /// Waits for a request, until `limit` or until a child ends; true for a request.
    fn wait(&self, limit: Option<Duration>) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.link.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, limit.map(TimeSpec::from), Some(SigSet::empty())) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Reaps every child that ended. False if there are no children any more.
    fn reap(&mut self) -> io::Result<bool> {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let pid = Some(pid.as_raw_nonzero().get());
                    let signal = status.terminating_signal().map(|signal| 128 + signal);
                    let code = status.exit_status().or(signal).unwrap_or(-1);
                    if self.shell == pid {
                        self.shell = None;
                        self.link.send(&FromKeeper::Ended(code))?;
                    } else if self.tool == pid {
                        self.tool = None;
                        self.link.send(&FromKeeper::ToolEnded(code))?;
                    }
                }
                Ok(None) => return Ok(true),
                Err(rustix::io::Errno::CHILD) => return Ok(false),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// One pause between rounds of killing. Does not let requests through: this one has its answer
    /// to come.
    fn pause(&mut self, deadline: Instant) -> io::Result<bool> {
        self.reap()?;
        std::thread::sleep(KILL_PAUSE);
        self.reap()?;
        Ok(Instant::now() < deadline)
    }

    fn kill_new(&mut self, shell: i32) -> io::Result<bool> {
        let deadline = Instant::now() + KILL_TIME_MAX;
        let processes = std::mem::take(&mut self.processes);
        let mut failed = None;
        let killed = processes.kill_new(shell, || match self.pause(deadline) {
            Ok(on) => on,
            Err(error) => {
                failed = Some(error);
                false
            }
        });
        self.processes = processes;
        // What was orphaned by the killing is ours by now, and nobody shall see it.
        self.reap()?;
        failed.map_or(Ok(killed), Err)
    }

    fn kill_shell(&mut self) -> io::Result<bool> {
        let deadline = Instant::now() + KILL_TIME_MAX;
        if let Some(shell) = self.shell {
            // It can only be gone, and is reaped then.
            let _gone = send_signal(shell, libc::SIGKILL);
        }
        while self.shell.is_some() && self.pause(deadline)? {}
        let ended = self.shell.is_none();
        Ok(self.kill_new(self.shell.unwrap_or(-1))? && ended)
    }

    fn kill_all(&mut self) -> io::Result<bool> {
        let deadline = Instant::now() + KILL_TIME_MAX;
        self.processes.forget();
        // Elsewhere than at the top of a namespace, -1 would mean every process of this user.
        if !self.processes.are_a_namespace() {
            return self.kill_new(-1);
        }
        loop {
            // Fails when there is nobody left.
            let _nobody = send_signal(-1, libc::SIGKILL);
            if !self.reap()? {
                return Ok(true);
            }
            if !self.pause(deadline)? {
                return Ok(!self.reap()?);
            }
        }
    }

    /// Starts a shell with nothing of an earlier one in its standard input.
    fn start(&mut self) -> io::Result<()> {
        if self.shell.is_some() {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        drain(self.commands.as_fd())?;
        match sys::fork()? {
            Forked::Parent(pid) => {
                self.shell = Some(pid);
                Ok(())
            }
            Forked::Child => {
                let error = self.become_shell().unwrap_or_else(|error| error);
                let text = format!("bash: cannot start the shell: {error}\n");
                say_in_child(&self.output, &text);
                std::process::exit(126)
            }
        }
    }

    /// In the child. Returns only if something failed.
    fn become_shell(&self) -> io::Result<io::Error> {
        let from = [&self.commands, &self.output, &self.output, &self.script, &self.status];
        prepare_child(&from, &[0, 1, 2, SCRIPT_FD, STATUS_FD])?;
        if std::env::set_current_dir(&self.workdir).is_err() {
            std::env::set_current_dir("/")?;
        }
        let path = self.argv.first().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(sys::exec_path(path, &self.argv, &self.environment))
    }

    /// Starts a custom tool. The executor has put the call's input into the file of the command.
    fn run_tool(&mut self, index: usize) -> io::Result<()> {
        if self.tool.is_some() {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let tool = self.custom.get(index).ok_or(io::Error::from_raw_os_error(libc::EINVAL))?;
        match sys::fork()? {
            Forked::Parent(pid) => {
                self.tool = Some(pid);
                Ok(())
            }
            Forked::Child => {
                let error = self.become_tool(index, tool).unwrap_or_else(|error| error);
                let text = format!("{}: cannot start the program: {error}\n", tool.name);
                say_in_child(&self.tool_output[1], &text);
                let missing = error.kind() == io::ErrorKind::NotFound;
                std::process::exit(if missing { 127 } else { 126 })
            }
        }
    }

    /// In the child. Returns only if something failed.
    fn become_tool(&self, index: usize, tool: &CustomTool) -> io::Result<io::Error> {
        (self.confine)(index).map_err(not_confined)?;
        // Opened anew: a position of its own, at the beginning, and no way to write.
        let name = format!("/proc/self/fd/{}", self.script.as_raw_fd());
        let input = rustix::fs::open(name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let [output, errors] = &self.tool_output;
        let prepared = prepare_child(&[&input, output, errors], &[0, 1, 2]);
        // Closed by now, with all that this process must not have.
        std::mem::forget(input);
        prepared?;
        std::env::set_current_dir(&tool.workdir)?;
        let path = tool.argv.first().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(sys::exec_path(path, &tool.argv, &tool.environment))
    }
}

/// Not to be taken for a program that is missing.
fn not_confined(error: io::Error) -> io::Error {
    io::Error::other(format!("it cannot be put under its limits: {error}"))
}

/// The last words of a child that could not become what it should. Its errors go to `pipe`, which has
/// become descriptor 2 and is closed otherwise, unless that is what failed.
fn say_in_child(pipe: &OwnedFd, text: &str) {
    let said = write_all(pipe.as_fd(), text.as_bytes());
    // Nobody is left to tell.
    let _unheard = said.or_else(|_| write_all(rustix::stdio::stderr(), text.as_bytes()));
}

fn started(result: io::Result<()>) -> FromKeeper {
    match result {
        Ok(()) => FromKeeper::Started,
        Err(error) => FromKeeper::NotStarted(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}

/// Whether `list` sets the variable that `entry` sets.
fn names_one_of(entry: &[u8], list: &[Vec<u8>]) -> bool {
    let name = |entry: &[u8]| entry.split(|byte| *byte == b'=').next().map(<[u8]>::to_vec);
    list.iter().any(|other| name(other) == name(entry))
}

/// In the child: a session of its own, these descriptors at these numbers and no others, and signals
/// as a program expects them.
fn prepare_child(from: &[&OwnedFd], to: &[i32]) -> io::Result<()> {
    rustix::process::setsid()?;
    // Out of the way first: an owner's number may be another's place.
    let moved: Vec<OwnedFd> = from
        .iter()
        .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, STATUS_FD + 1))
        .collect::<Result<_, _>>()?;
    for (fd, number) in moved.iter().zip(to) {
        sys::install_at(fd.as_fd(), *number)?;
    }
    drop(moved);
    sys::close_all_but(3, &mut to.to_vec())?;
    // Only a preference: a kernel that refuses takes whom it likes, and that is reported.
    let _preferred = prefer_as_victim();
    sys::default_signals()
}

/// When memory runs out the kernel shall take tools before the keeper.
///
/// # Errors
/// If there is no proc filesystem, or one that may only be read.
fn prefer_as_victim() -> io::Result<()> {
    // The file belongs to root as long as this process is one that cannot be dumped. Nothing of the
    // keeper is left in it by now but memory without secrets.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)?;
    std::fs::write("/proc/self/oom_score_adj", "1000")
}

/// Takes what is in the pipe. Bounded: a hostile process may go on writing to it.
fn drain(pipe: BorrowedFd<'_>) -> io::Result<()> {
    const READS_MAX: usize = 1024;
    let flags = rustix::fs::fcntl_getfl(pipe)?;
    rustix::fs::fcntl_setfl(pipe, flags | OFlags::NONBLOCK)?;
    let mut bytes = [0; 4096];
    for _ in 0..READS_MAX {
        match rustix::io::read(pipe, &mut bytes) {
            Ok(1..) | Err(rustix::io::Errno::INTR) => {}
            Ok(0) | Err(_) => break,
        }
    }
    rustix::fs::fcntl_setfl(pipe, flags & !OFlags::NONBLOCK)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_gets_its_environment_without_credentials_of_the_control_plane() {
        // TOOL-BASH-2, TOOL-BASH-3, INV-1
        let given =
            ["PATH=/bin", "ANTHROPIC_X=1", "anthropic_y=2", "TERM=xterm", "PS1=$", "XPS1=a="];
        let given: Vec<Vec<u8>> = given.iter().map(|entry| entry.as_bytes().to_vec()).collect();
        let plan = ShellPlan::bash(&given, PathBuf::from("/w"));
        let text = |list: &[Vec<u8>]| String::from_utf8_lossy(&list.join(&b' ')).into_owned();
        assert_eq!(text(&plan.environment), "PATH=/bin XPS1=a= PS1= PS2= TERM=dumb");
        assert_eq!(text(&plan.argv), "/bin/bash --noprofile --norc");
    }

    #[test]
    fn a_pipe_is_emptied_and_blocks_again_afterwards() {
        let (read, write) = rustix::pipe::pipe().expect("pipe");
        write_all(write.as_fd(), &[b'x'; 9000]).expect("written");
        drain(read.as_fd()).expect("drained");
        assert_eq!(rustix::io::ioctl_fionread(&read).expect("count"), 0);
        let flags = rustix::fs::fcntl_getfl(&read).expect("flags");
        assert!(!flags.contains(OFlags::NONBLOCK));
    }
}
