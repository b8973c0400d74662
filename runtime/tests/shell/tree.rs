//! A tool tree for one test: PID namespace, keeper, shell, and the executor's end of it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use rustix::pipe::{PipeFlags, pipe_with};
use stockade_runtime::spec::CustomToolPlan;
use stockade_runtime::tool::shell::{
    KeeperEnds, Shell, ShellEnds, ShellLimits, ShellPlan, ToolEnds, keep,
};
use stockade_runtime::tool::{Block, ToolResult};

/// Whether the keeper is given a proc filesystem that hides nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proc {
    Given,
    Withheld,
}

/// A tool tree; gone when it is dropped.
pub struct Tree {
    shell: Option<Shell>,
    keeper: Child,
    cancel: OwnedFd,
    /// Readable from the start or never.
    pub cancelled: OwnedFd,
    pub workdir: tempfile::TempDir,
}

impl Tree {
    pub fn new() -> Tree {
        Tree::with(ShellLimits::default(), Proc::Given)
    }

    pub fn with(limits: ShellLimits, proc: Proc) -> Tree {
        Tree::below(&[], limits, proc)
    }

    /// `above` is put before the keeper's command line.
    pub fn below(above: &[&str], limits: ShellLimits, proc: Proc) -> Tree {
        let workdir = tempfile::tempdir().expect("workdir");
        let (ends, keeper_ends) = connect().expect("connections");
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        let us = std::env::current_exe().expect("this binary");
        // Without root a user namespace first.
        let user: &[&str] =
            if rustix::process::geteuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
        let mut command = Command::new("unshare");
        command.args(user).args(["--pid", "--fork", "--mount-proc", "--kill-child"]).args(above);
        let keeper = command
            .arg(us)
            .env("KEEPER_WORKDIR", workdir.path())
            .env("KEEPER_PROC", if proc == Proc::Given { "given" } else { "withheld" })
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare");
        send(&ours, &keeper_ends);
        let (cancelled, cancel) = rustix::pipe::pipe().expect("pipe");
        Tree { shell: Some(Shell::new(ends, limits)), keeper, cancel, cancelled, workdir }
    }

    pub fn shell(&mut self) -> &mut Shell {
        self.shell.as_mut().expect("alive")
    }

    /// Ends the call that runs, once the workspace has a file of this name; when that was.
    pub fn cancel_when(&self, file: &str) -> std::thread::JoinHandle<Instant> {
        let cancel = self.cancel.try_clone().expect("copy");
        let file = self.workdir.path().join(file);
        std::thread::spawn(move || {
            let deadline = Instant::now() + Duration::from_secs(15);
            while !file.exists() {
                assert!(Instant::now() < deadline, "no {}", file.display());
                std::thread::sleep(Duration::from_millis(2));
            }
            let at = Instant::now();
            rustix::io::write(&cancel, b"x").expect("cancelled");
            at
        })
    }

    pub fn forget_cancel(&self) {
        rustix::io::read(&self.cancelled, &mut [0; 1]).expect("taken");
    }

    pub fn input(&mut self, input: &str) -> ToolResult {
        let shell = self.shell.as_mut().expect("alive");
        shell.call(input.as_bytes(), self.cancelled.as_fd())
    }

    pub fn call(&mut self, command: &str) -> ToolResult {
        self.limited(command, 20_000)
    }

    pub fn limited(&mut self, command: &str, timeout_ms: u64) -> ToolResult {
        let input = serde_json::json!({"command": command, "timeout_ms": timeout_ms});
        self.input(&input.to_string())
    }

    /// The text of a call that must succeed.
    pub fn ok(&mut self, command: &str) -> String {
        let result = self.call(command);
        assert!(!result.is_error, "{command:.200}: {result:?}");
        text(&result)
    }

    /// Ends the tree from outside, as when its processes are killed.
    pub fn kill_keeper(&mut self) {
        self.keeper.kill().expect("killed");
        self.keeper.wait().expect("reaped");
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.shell = None; // the keeper hears the end of its link and exits
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if matches!(self.keeper.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.keeper.kill().expect("killed");
        self.keeper.wait().expect("reaped");
        assert!(std::thread::panicking(), "the keeper outlived its executor");
    }
}

pub fn text(result: &ToolResult) -> String {
    match result.content.as_slice() {
        [Block::Text(text)] => text.clone(),
        other => panic!("one text expected: {other:?}"),
    }
}

fn send(socket: &UnixStream, ends: &KeeperEnds) {
    let [output, errors] = &ends.tool;
    let shell = [&ends.commands, &ends.script, &ends.output, &ends.status, &ends.executor];
    let fds: Vec<_> = shell.into_iter().chain([output, errors]).map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(7))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let slice = [IoSlice::new(b"x")];
    rustix::net::sendmsg(socket, &slice, &mut control, SendFlags::empty()).expect("sent");
}

fn receive() -> Vec<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(7))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let slice = &mut [IoSliceMut::new(&mut byte)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(rustix::stdio::stdin(), slice, &mut control, flags).expect("received");
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    fds
}

/// Whether this process was started by [`Tree::below`].
pub fn is_keeper() -> bool {
    std::env::var_os("KEEPER_WORKDIR").is_some()
}

/// PID 1 of a new PID namespace.
pub fn keeper_role() -> ! {
    let workdir = std::env::var_os("KEEPER_WORKDIR").expect("set");
    assert_eq!(std::process::id(), 1, "PID 1 of a namespace of its own");
    let mut fds = receive().into_iter();
    let mut next = || fds.next().expect("seven descriptors");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty()).expect("/proc");
    let given = std::env::var_os("KEEPER_PROC").is_some_and(|proc| proc == "given");
    let ends = KeeperEnds {
        commands: next(),
        script: next(),
        output: next(),
        status: next(),
        executor: next(),
        tool: [next(), next()],
        proc: given.then_some(proc),
    };
    let environment = [b"PATH=/usr/bin:/bin".to_vec(), b"LC_ALL=C.UTF-8".to_vec()];
    let plan = ShellPlan::bash(&environment, PathBuf::from(workdir));
    let plan = ShellPlan { custom: custom_tools(), ..plan };
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .expect("not dumpable");
    keep(ends, plan)
}

/// Tools of every tree: one that runs its input, one that gives it back, one that is not there.
pub fn custom_tools() -> Vec<CustomToolPlan> {
    let tool = |name: &str, argv: &[&str], verbatim| CustomToolPlan {
        name: name.to_owned(),
        argv: argv.iter().map(|part| part.as_bytes().to_vec()).collect(),
        environment: vec![b"TOOL=yes".to_vec(), b"LC_ALL=C".to_vec()],
        workdir: None,
        time_ms_max: 1_000,
        output_bytes_max: if verbatim { 1 << 20 } else { 10_000 },
        verbatim,
    };
    vec![
        tool("script", &["/bin/bash", "-c", "eval \"$(cat)\""], false),
        tool("echo", &["/bin/cat"], true),
        tool("missing", &["/nonexistent/program"], false),
    ]
}

/// The connections of one session, as init makes them (`jail/executor.rs`); all close-on-exec.
///
/// The file of the command is a memfd that nobody can seal; who made it owns it, and a shell with
/// other ids can only read it.
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
    let ends = KeeperEnds {
        commands: commands_read,
        script: script.try_clone()?,
        output: output_write.try_clone()?,
        status: status_write,
        tool: [tool_output_write.try_clone()?, tool_errors_write.try_clone()?],
        executor: keeper.into(),
        proc: None,
    };
    let output_writer = Some(output_write);
    let writers = Some([tool_output_write, tool_errors_write]);
    let tool = ToolEnds { read: [tool_output, tool_errors], writers };
    let keeper = executor.into();
    Ok((ShellEnds { commands, script, output, output_writer, status, tool, keeper }, ends))
}
