//! Tools without a jail: an executor and its keeper as ordinary processes, with the rights of whoever
//! started them. For the library's in-process toolset and for custom tools on the host.
//!
//! Runs in a process of its own, which was executed anew and has one thread, so that it may fork. What
//! is the same as in a jail: the protocol, the shell, the file tools and their permitted roots (which
//! hold by the way files are opened), time limits and bounds. What is not: there is no namespace and no
//! landlock; nothing here keeps bash from anything. Custom tools are confined by whoever serves them.
//!
//! Processes are ended by descent: executor and keeper take over what their children leave behind
//! (prctl(2), `PR_SET_CHILD_SUBREAPER`), and end it before they end.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::WaitOptions;
use serde::{Deserialize, Serialize};

use super::executor::Executor;
use super::helper::FileHelper;
use super::shell::{
    Confine, KeeperEnds, Shell, ShellEnds, ShellLimits, ShellPlan, ToolEnds, end_descendants,
    keep_confining,
};
use crate::sys::{self, Forked};

/// What an executor without a jail serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnjailedPlan {
    /// The shell and the custom tools.
    pub shell: ShellPlan,
    /// What the file tools may use, the working directory first. Empty: neither file tools nor bash.
    pub roots: Vec<PathBuf>,
}

/// How long the last processes may take to die.
const END_TIME_MAX: Duration = Duration::from_secs(2);

/// The connection that whoever started this process left as its standard input, which becomes empty. From here a panic ends it.
///
/// # Errors
/// If that is no socket: started by hand.
pub fn take_connection() -> io::Result<OwnedFd> {
    let given = sys::adopt_socket(0)?;
    sys::abort_on_panic();
    let connection = rustix::io::fcntl_dupfd_cloexec(&given, 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    sys::install_at(null.as_fd(), 0)?;
    // Its number is in use again.
    std::mem::forget(given);
    sys::close_all_but(3, &mut [connection.as_raw_fd()])?;
    std::mem::forget(null);
    Ok(connection)
}

/// Serves the calls that come over `control`; when it closes, ends every process that was started,
/// and exits.
pub fn serve(control: OwnedFd, plan: UnjailedPlan) -> ! {
    serve_confined(control, plan, &|_| Ok(()))
}

fn serve_confined(control: OwnedFd, plan: UnjailedPlan, confine: Confine<'_>) -> ! {
    let served = start(control, plan, confine).map(|mut executor| executor.serve_until_closed());
    end_descendants(END_TIME_MAX);
    std::process::exit(i32::from(served.is_err()))
}

/// A connection for one executor, and what its tools are confined with.
pub type Connection = (OwnedFd, Vec<OwnedFd>);

/// Serves each connection that `next` gives by an executor of its own, at the same time as others.
/// Ends all of them when there are no more.
///
/// In the process that becomes a custom tool, `confine` is called with what came with the connection and
/// the index of the tool. A tool for which it fails is not started.
pub fn serve_each(
    next: &mut dyn FnMut() -> io::Result<Connection>,
    plan: &UnjailedPlan,
    confine: &dyn Fn(&[OwnedFd], usize) -> io::Result<()>,
) -> ! {
    // Without it, what a killed executor leaves would get away.
    let adopted = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let mut executors = Vec::new();
    while let (Ok(()), Ok((control, with))) = (adopted, next()) {
        reap(&mut executors);
        match sys::fork() {
            Ok(Forked::Child) => {
                let mut keep = vec![control.as_raw_fd()];
                keep.extend(with.iter().map(|fd| fd.as_raw_fd()));
                match sys::close_all_but(3, &mut keep) {
                    Ok(()) => {
                        let confine = |tool| confine(&with, tool);
                        serve_confined(control, plan.clone(), &confine)
                    }
                    Err(_) => std::process::exit(1),
                }
            }
            Ok(Forked::Parent(pid)) => executors.push(pid),
            // The connection closes, which says that nothing was run.
            Err(_) => {}
        }
    }
    end_descendants(END_TIME_MAX);
    std::process::exit(0)
}

/// Forgets executors that ended.
fn reap(executors: &mut Vec<i32>) {
    while let Ok(Some((pid, _))) = rustix::process::wait(WaitOptions::NOHANG) {
        executors.retain(|executor| *executor != pid.as_raw_nonzero().get());
    }
}

/// Makes the connections, starts the keeper, and leaves the executor ready to serve.
fn start(
    control: OwnedFd,
    plan: UnjailedPlan,
    confine: Confine<'_>,
) -> io::Result<Executor<'static>> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    sys::errors_instead_of_signals()?;
    let (ends, keeper_ends) = connect()?;
    match sys::fork()? {
        Forked::Parent(_) => drop(keeper_ends),
        Forked::Child => {
            drop((ends, control));
            // Out of the reach of what is typed at the terminal of whoever started this.
            match nix::unistd::setsid() {
                Ok(_) => keep_confining(keeper_ends, plan.shell, confine),
                Err(_) => std::process::exit(1),
            }
        }
    }
    let UnjailedPlan { shell: ShellPlan { custom, .. }, roots } = plan;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |root: &PathBuf| {
        Ok((root.clone(), rustix::fs::open(root.as_path(), flags, Mode::empty())?))
    };
    let places = roots.iter().map(open).collect::<io::Result<_>>()?;
    let files = (!roots.is_empty()).then(|| FileHelper {
        roots,
        read_only: Vec::new(),
        confine: unconfined(),
    });
    let shell = Shell::new(ends, ShellLimits::default());
    Ok(Executor { control, shell, files, custom, places })
}

/// What a helper does instead of entering its layers. One for the life of the process.
fn unconfined() -> &'static mut dyn FnMut() -> io::Result<()> {
    Box::leak(Box::new(|| {
        let signal = Some(rustix::process::Signal::KILL);
        Ok(rustix::process::set_parent_process_death_signal(signal)?)
    }))
}

/// As init makes them for a jail (`jail::executor`), but for the owner: there is one user only.
fn connect() -> io::Result<(ShellEnds, KeeperEnds)> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let (commands_read, commands) = pipe()?;
    let (output, output_write) = pipe()?;
    let (status, status_write) = pipe()?;
    let (tool_output, tool_output_write) = pipe()?;
    let (tool_errors, tool_errors_write) = pipe()?;
    let (executor, keeper) = UnixStream::pair()?;
    let create = |flags| rustix::fs::memfd_create(c"command", MemfdFlags::CLOEXEC | flags);
    let script = match create(MemfdFlags::NOEXEC_SEAL) {
        Err(rustix::io::Errno::INVAL) => create(MemfdFlags::ALLOW_SEALING)?, // before Linux 6.3
        other => other?,
    };
    rustix::fs::fchmod(&script, Mode::from_raw_mode(0o444))?;
    rustix::fs::fcntl_add_seals(&script, SealFlags::SEAL)?;
    let name = format!("/proc/self/fd/{}", script.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let script_keeper = rustix::fs::open(name, flags, Mode::empty())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
    let writers = [tool_output_write.try_clone()?, tool_errors_write.try_clone()?];
    let keeper_ends = KeeperEnds {
        commands: commands_read,
        script: script_keeper,
        output: output_write.try_clone()?,
        status: status_write,
        tool: [tool_output_write, tool_errors_write],
        executor: keeper.into(),
        proc: Some(proc),
    };
    let tool = ToolEnds { read: [tool_output, tool_errors], writers: Some(writers) };
    let keeper = executor.into();
    let output_writer = Some(output_write);
    Ok((ShellEnds { commands, script, output, output_writer, status, tool, keeper }, keeper_ends))
}
