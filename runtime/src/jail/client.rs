//! The control side's end: starts the launcher, hands it a spec, and hears how the jail does.
//!
//! The launcher is split off before this process has a thread or a credential. It is this same
//! binary, executed anew with an empty environment from a read-only mount that has no name, so
//! that nothing in a jail can open it for writing (CVE-2019-5736). Without root, that mount and
//! all jails live in a user namespace of the caller's, made here.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid, open};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::DumpableBehavior;

use crate::host::Level;
use crate::spec::JailSpec;
use crate::sys::{self, CloneArgs, Cloned, MountAttributes, clone3, mount_setattr};

use super::cgroup::CgroupEvents;
use super::cgroup_door::OutsideDoor;
use super::claim::CONTROL_ID;
use super::message::{End, Failure, Listener, ToControl, ToLauncher};
use super::programs::Programs;
use super::report::EnforcementReport;
use super::step::{AtStep as _, Step, StepFailure};
use super::wire::Wire;
use super::{caps, launcher};

/// The name by which this binary knows that it is to be the launcher.
const LAUNCHER: &str = "stockade-launcher";
/// Where the launcher finds its connection.
const CONNECTION: i32 = 3;

/// A launcher that this process started.
#[derive(Debug)]
pub struct Launcher {
    wire: Wire,
    /// Of the process that was started here; others are children of the first launcher.
    pid: Option<Pid>,
    repair: bool,
}

/// What a jail reports.
#[derive(Debug)]
pub enum Event {
    /// The command runs; with its terminal if it was given one.
    Running(Box<EnforcementReport>, Option<OwnedFd>),
    /// Sockets in the jail's network namespace, for the broker.
    Listening(Vec<(Listener, OwnedFd)>),
    /// The way into the cgroup of tools on the host.
    Outside(OutsideDoor),
    /// All further listeners that were asked for are there, or this was refused.
    Listened(Option<StepFailure>),
    /// No payload ran.
    Failed(Failure),
    /// What the limits have counted so far.
    Usage(CgroupEvents),
    /// It is over and everything is removed.
    Ended(End),
}

/// Turns this process into the launcher if it was started as one. Call first thing in `main`.
pub fn become_launcher_if_asked(programs: Programs) {
    if std::env::args_os().next().is_none_or(|name| name != LAUNCHER) {
        return;
    }
    let Ok(stream) = sys::adopt_socket(CONNECTION) else {
        return; // started under this name by hand
    };
    sys::abort_on_panic();
    launcher::serve(Wire::from_fd(stream), programs)
}

impl Launcher {
    /// Splits the launcher off. The calling process must have one thread.
    ///
    /// # Errors
    /// If this host does not let the caller make what `level` needs.
    pub fn start(level: Level) -> Result<Launcher, StepFailure> {
        let step = Step::Handshake;
        let (ours, theirs) = Wire::pair().at(step, "connect to the launcher")?;
        match clone3(CloneArgs::default()).at(step, "clone the launcher")? {
            Cloned::Parent { pid, .. } => {
                let pid = Some(Pid::from_raw(pid));
                Ok(Launcher { wire: ours, pid, repair: true })
            }
            Cloned::Child => {
                drop(ours);
                let mut theirs = theirs;
                let failure = match become_launcher(level, &theirs) {
                    Ok(never) => match never {},
                    Err(failure) => Failure::Step { failure, left: Vec::new() },
                };
                // Nobody else could be told.
                let _told = theirs.send(&ToControl::Failed(failure), &[]);
                std::process::exit(1)
            }
        }
    }

    /// A launcher process of its own for one more jail, made by this one. It ends with its jail,
    /// and with this one.
    ///
    /// # Errors
    /// If this launcher is gone. If the host allows no further process, the next call on the result
    /// says so.
    pub fn another(&mut self) -> io::Result<Launcher> {
        let (ours, theirs) = Wire::pair()?;
        self.wire.send(&ToLauncher::Another, &[theirs.as_fd()])?;
        Ok(Launcher { wire: ours, pid: None, repair: false })
    }

    /// Has these files (absolute paths of the host) be opened again by [`reopen`](Self::reopen) with the
    /// rights that this process is about to give up. Once; a second list is refused.
    pub fn keep(&mut self, files: &[PathBuf]) -> io::Result<()> {
        self.wire.send(&ToLauncher::Keep { files: files.to_vec() }, &[])
    }

    /// Opens a file of that list for reading, as it is now. It is not looked at here.
    ///
    /// # Errors
    /// Those of open(2); `ENOENT` for one that is not in the list.
    pub fn reopen(&mut self, index: usize) -> io::Result<OwnedFd> {
        self.wire.send(&ToLauncher::Reopen { index }, &[])?;
        match self.wire.receive::<ToControl>()? {
            (ToControl::Reopened(None), mut files) if files.len() == 1 => Ok(files.remove(0)),
            (ToControl::Reopened(Some(errno)), _) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Has the launcher of this jail first remove what killed ones left.
    pub fn repair(&mut self) {
        self.repair = true;
    }

    /// Hands over the plan and the payload's standard streams (none if it gets a terminal), or a
    /// session's connection to its executor.
    pub fn launch(
        &mut self,
        spec: JailSpec,
        run_directory: &Path,
        stdio: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let run_directory = run_directory.to_owned();
        let (spec, repair) = (Box::new(spec), self.repair);
        self.wire.send(&ToLauncher::Start { spec, run_directory, repair }, stdio)
    }

    /// Sends a signal to the payload's process group; nothing happens if it does not run.
    pub fn signal(&mut self, number: i32) -> io::Result<()> {
        self.wire.send(&ToLauncher::Signal(number), &[])
    }

    /// Asks what the limits of the jail have counted so far, or those of tools on the host if `outside`;
    /// answered by [`Event::Usage`].
    pub fn ask_usage(&mut self, outside: bool) -> io::Result<()> {
        self.wire.send(&ToLauncher::Usage { outside }, &[])
    }

    /// Asks for listeners on further ports; [`Event::Listening`] and then [`Event::Listened`] follow.
    pub fn listen(&mut self, ports: &[u16]) -> io::Result<()> {
        self.wire.send(&ToLauncher::Listen { ports: ports.to_vec() }, &[])
    }

    /// Ends the jail of a session; [`Event::Ended`] follows.
    pub fn end(&mut self) -> io::Result<()> {
        self.wire.send(&ToLauncher::End, &[])
    }

    /// Ends the jail because its payload printed more than it may.
    pub fn output_limit_reached(&mut self) -> io::Result<()> {
        self.wire.send(&ToLauncher::OutputLimit, &[])
    }

    /// Readable when [`event`](Self::event) has something.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }

    /// Whether [`event`](Self::event) has something now.
    pub fn has_event(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.wire, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        Ok(poll(&mut polled, Some(&now))? > 0)
    }

    /// The next event; waits for it.
    ///
    /// # Errors
    /// `UnexpectedEof` if the launcher died.
    pub fn event(&mut self) -> io::Result<Event> {
        let (message, descriptors) = self.wire.receive()?;
        Ok(match message {
            ToControl::Listening(listeners) if listeners.len() == descriptors.len() => {
                Event::Listening(listeners.into_iter().zip(descriptors).collect())
            }
            ToControl::Listening(_) => return Err(io::ErrorKind::InvalidData.into()),
            ToControl::Outside => Event::Outside(OutsideDoor::new(descriptors)),
            ToControl::Listened(failure) => Event::Listened(failure),
            // Nobody waits for it here.
            ToControl::Reopened(_) => return Err(io::ErrorKind::InvalidData.into()),
            ToControl::Running(report) => Event::Running(report, descriptors.into_iter().next()),
            ToControl::Failed(failure) => Event::Failed(failure),
            ToControl::Usage(events) => Event::Usage(events),
            ToControl::Ended(end) => Event::Ended(end),
        })
    }

    /// Waits until the launcher is gone.
    pub fn wait(self) {
        drop(self.wire);
        if let Some(pid) = self.pid {
            while waitpid(pid, None) == Err(nix::errno::Errno::EINTR) {}
        }
    }

    /// As [`wait`](Self::wait), for at most `limit`; returns whether it is gone. One that is not
    /// goes on taking jails apart by itself.
    pub fn wait_at_most(self, limit: Duration) -> bool {
        const PAUSE: Duration = Duration::from_millis(2);
        drop(self.wire);
        let Some(pid) = self.pid else { return true };
        let deadline = Instant::now() + limit;
        while waitpid(pid, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(PAUSE);
        }
        true
    }
}

enum Never {}

/// In the child: from here on only what the exec needs.
fn become_launcher(level: Level, connection: &Wire) -> Result<Never, StepFailure> {
    let step = Step::Handshake;
    nix::unistd::setsid().at(step, "start a session")?;
    if level == Level::Rootless {
        enter_own_namespace()?;
    }
    let program = out_of_reach()?;
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .at(step, "open /dev/null")?;
    for number in 0..3 {
        sys::install_at(null.as_fd(), number).at(step, "let go of the standard streams")?;
    }
    sys::install_at(connection.as_fd(), CONNECTION).at(step, "hand over the connection")?;
    sys::close_on_exec_from(CONNECTION + 1).at(step, "close descriptors")?;
    let name = CString::new(LAUNCHER).unwrap_or_default();
    let error = sys::exec_descriptor(program.as_fd(), &[name], &[]);
    Err(StepFailure::new(step, "execute the launcher", &error))
}

/// The running binary on a read-only mount of its own, attached nowhere.
fn out_of_reach() -> Result<OwnedFd, StepFailure> {
    let step = Step::Handshake;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let itself = "/proc/self/exe";
    let program = match open_tree(CWD, itself, flags) {
        // The link leads to the mount namespace this process was started in, and without root it
        // is in another one now: go by name, and make sure that it is the same file.
        Err(rustix::io::Errno::INVAL) => {
            let name = std::fs::read_link(itself).at(step, "name the binary")?;
            let copy = open_tree(CWD, &name, flags)
                .at(step, format!("copy the mount of {}", name.display()))?;
            let (ours, found) = (rustix::fs::stat(itself), rustix::fs::fstat(&copy));
            let same = ours.is_ok_and(|ours| {
                found.is_ok_and(|found| (ours.st_dev, ours.st_ino) == (found.st_dev, found.st_ino))
            });
            if !same {
                let error = io::Error::from_raw_os_error(libc::ESTALE);
                return Err(StepFailure::new(
                    step,
                    "the binary was replaced while it runs",
                    &error,
                ));
            }
            copy
        }
        other => other.at(step, "copy the binary's mount")?,
    };
    // Out of the way of the numbers that are about to be given out.
    let program = rustix::io::fcntl_dupfd_cloexec(&program, CONNECTION + 1)
        .at(step, "renumber the binary's descriptor")?;
    let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
    mount_setattr(program.as_fd(), attributes).at(step, "make the binary read-only")?;
    Ok(program)
}

/// Without root: a user namespace in which the caller is user 0, and its mount namespace.
fn enter_own_namespace() -> Result<(), StepFailure> {
    let step = Step::Handshake;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS;
    nix::sched::unshare(flags).at(step, "make a user namespace")?;
    let write = |name: &str, text: String| {
        std::fs::write(Path::new("/proc/self").join(name), text).at(step, format!("write {name}"))
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {uid} 1\n"))?;
    write("gid_map", format!("0 {gid} 1\n"))
}

/// Makes the calling process the control side: no capabilities, no way to gain any, and as root an
/// id that owns nothing on the host.
///
/// # Errors
/// If any of it is refused; the process must not go on then.
pub fn drop_to_control_side(level: Level) -> Result<(), StepFailure> {
    let step = Step::Handshake;
    if level == Level::Root {
        nix::unistd::setgroups(&[]).at(step, "leave all groups")?;
        caps::drop_all_and_become(CONTROL_ID).at(step, "give up root")?;
    }
    rustix::thread::set_no_new_privs(true).at(step, "set no_new_privs")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .at(step, "become undumpable")
}

/// Makes a directory that the control side alone can use; to be called before
/// [`drop_to_control_side`]. Parents are made as well and stay the caller's.
///
/// # Errors
/// `EACCES` if it exists and is a link, or others can write to it.
pub fn control_side_directory(path: &Path, level: Level) -> io::Result<()> {
    /// How often it is made again that somebody else's end has just removed.
    const TRIES_MAX: usize = 8;
    let mut tries = 0;
    loop {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        tries += 1;
        match control_side_subdirectory(path, level) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES_MAX => {}
            done => return done,
        }
    }
}

/// The same where the directory above must be there.
///
/// # Errors
/// As [`control_side_directory`], and `ENOENT`, also if somebody removes it at the same time.
pub fn control_side_subdirectory(path: &Path, level: Level) -> io::Result<()> {
    let made = std::fs::DirBuilder::new().mode(0o700).create(path);
    if let Err(error) = made
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = open(path, flags, Mode::empty())?;
    let found = rustix::fs::fstat(&directory)?;
    let own = match level {
        Level::Root => [0, CONTROL_ID].contains(&found.st_uid),
        Level::Rootless => found.st_uid == rustix::process::geteuid().as_raw(),
    };
    if !own || found.st_mode & 0o077 != 0 {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    if level == Level::Root {
        let (uid, gid) = (Uid::from_raw(CONTROL_ID), Gid::from_raw(CONTROL_ID));
        rustix::fs::fchown(&directory, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// Where a caller without root keeps run-time files: `runtime` (its `XDG_RUNTIME_DIR`) if it has
/// one, else a directory of its own in `/tmp`.
pub fn rootless_run_directory(runtime: Option<PathBuf>) -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    match runtime {
        Some(directory) if directory.is_absolute() => directory.join("stockade"),
        _ => PathBuf::from(format!("/tmp/stockade-{uid}")),
    }
}
