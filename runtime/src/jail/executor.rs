//! The executor of a session, from its birth to its program, and how its file helpers are confined.
//!
//! Cloned by init, while that still holds privilege, in a PID namespace that the tool tree is below
//! and cannot see: nothing there can name, signal or trace it (INV-6). It has an id of its own, and
//! in a user namespace of its own, which owns nothing else, the right to become the payload's id. It
//! uses that in the short-lived processes that run file tools: what bash and they make belongs to
//! the same id, and each of them is in a domain that holds the permitted roots only.
//!
//! The pipes of the shell are made once, here, and serve every shell of the session: the keeper
//! needs no call that receives descriptors, which a policy may forbid.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, MemfdFlags, Mode, OFlags, SealFlags, Uid, fchown, memfd_create, openat};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, Signal};

use crate::host::Level;
use crate::policy::Layer;
use crate::spec::{Access, JailSpec, Rlimit, ToolsPlan};
use crate::sys::{self, CloneArgs, Cloned, clone3};

use super::claim::IdRange;
use super::landlock::Domain;
use super::programs::{Confinement, ExecutorEnds, Programs};
use super::seccomp;
use super::step::{AtStep as _, Step, StepFailure};
use super::wire::Wire;
use super::{caps, rlimits};

/// What a file helper calls: it walks, reads and writes files.
const HELPER_GROUPS: &[&str] = &[
    "base",
    "files",
    "directories",
    "metadata",
    "threads",
    "signals",
    "time",
    "memory",
    "polling",
];
/// What the executor calls beside that, to start, confine and end one, and for the shell's pipes.
const EXECUTOR_GROUPS: &[&str] =
    &["processes", "terminals", "identity", "process-controls", "seccomp-self", "landlock-self"];
/// What the payload may not call and the file helper does: it opens below a directory and never
/// outside it, and its code is ours.
pub(super) const LIFTED: &str = "openat2";
/// Most memory of either, in bytes: a document of 20 MiB, its copies, and room to search.
const DATA_BYTES_MAX: u64 = 512 << 20;
/// Descriptors of either. A walk holds one for each level of directories.
const OPEN_FILES_MAX: u64 = 1024;
/// Id of the executor in its own user namespace, next to the payload's.
const EXECUTOR_ID: u32 = 1001;
/// Below the payload's, so that the kernel takes a tool and not the executor when memory runs out.
pub(super) const OOM_SCORE_ADJ: &[u8] = b"0";

/// Everything that connects the processes of a session's tools.
#[derive(Debug)]
pub(super) struct Connections {
    /// The keeper's ends, without its `/proc`.
    pub keeper: KeeperEnds,
    /// The executor's ends.
    pub executor: ExecutorEnds,
}

/// What the keeper is handed at its birth.
#[derive(Debug)]
pub(super) struct KeeperEnds {
    pub commands: OwnedFd,
    pub script: OwnedFd,
    pub output: OwnedFd,
    pub status: OwnedFd,
    pub tool: [OwnedFd; 2],
    pub executor: OwnedFd,
}

impl Connections {
    /// Makes the pipes and connections; `control` is the executor's end of the one to the control
    /// side, `proc` one that hides nothing. The pipes belong to `payload`, or programs could not open
    /// /dev/stdout.
    pub fn make(
        control: OwnedFd,
        proc: BorrowedFd<'_>,
        payload: u32,
        level: Level,
    ) -> Result<Self, StepFailure> {
        let step = Step::Executor;
        let pipe = || -> Result<(OwnedFd, OwnedFd), StepFailure> {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).at(step, "make a pipe")?;
            if level == Level::Root {
                let owner = Some(Uid::from_raw(payload));
                fchown(&write, owner, Some(Gid::from_raw(payload))).at(step, "give a pipe away")?;
            }
            Ok((read, write))
        };
        let connection = || UnixStream::pair().at(step, "make a connection");
        let (commands_read, commands) = pipe()?;
        let (output, output_write) = pipe()?;
        let (status, status_write) = pipe()?;
        let (tool_output, tool_output_write) = pipe()?;
        let (tool_errors, tool_errors_write) = pipe()?;
        let (keeper, keeper_executor) = connection()?;
        let script = script().at(step, "make the file of the command")?;
        // Opened anew, or the shell would hold a descriptor that can be written to.
        let name = format!("self/fd/{}", script.as_raw_fd());
        let script_keeper = openat(proc, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .at(step, "open the file of the command to read")?;
        let copy = |pipe: &OwnedFd| pipe.try_clone().at(step, "copy a pipe");
        let output_writer = copy(&output_write)?;
        let tool_writers = [copy(&tool_output_write)?, copy(&tool_errors_write)?];
        Ok(Connections {
            keeper: KeeperEnds {
                commands: commands_read,
                script: script_keeper,
                output: output_write,
                status: status_write,
                tool: [tool_output_write, tool_errors_write],
                executor: keeper_executor.into(),
            },
            executor: ExecutorEnds {
                control,
                commands,
                script,
                output,
                output_writer,
                status,
                tool: [tool_output, tool_errors],
                tool_writers,
                keeper: keeper.into(),
            },
        })
    }
}

/// A file in memory that whoever has other ids can only read, and nobody can seal: each command is
/// written there for the shell.
fn script() -> io::Result<OwnedFd> {
    let create = |flags| memfd_create(c"command", MemfdFlags::CLOEXEC | flags);
    let script = match create(MemfdFlags::NOEXEC_SEAL) {
        Err(rustix::io::Errno::INVAL) => create(MemfdFlags::ALLOW_SEALING)?, // before Linux 6.3
        other => other?,
    };
    rustix::fs::fchmod(&script, Mode::from_raw_mode(0o444))?;
    rustix::fs::fcntl_add_seals(&script, SealFlags::SEAL)?;
    Ok(script)
}

/// The executor, started and not yet let go.
#[derive(Debug)]
pub(super) struct Executor {
    pub pid: i32,
    wire: Wire,
}

/// What it is made from.
pub(super) struct Birth<'a> {
    pub spec: &'a JailSpec,
    pub plan: &'a ToolsPlan,
    pub programs: Programs,
    pub ids: IdRange,
    /// A `/proc` that hides nothing.
    pub proc: BorrowedFd<'a>,
    /// The payload's cgroup, where it is of v2.
    pub cgroup: Option<BorrowedFd<'a>>,
}

impl Birth<'_> {
    /// Clones the executor, maps its ids and lets it confine itself.
    pub fn start(&self, ends: ExecutorEnds) -> Result<Executor, StepFailure> {
        let step = Step::Executor;
        let (ours, theirs) = Wire::pair().at(step, "connect to the executor")?;
        let args = CloneArgs { namespaces: libc::CLONE_NEWUSER as u64, cgroup: self.cgroup };
        match clone3(args).at(step, "clone the executor")? {
            Cloned::Child => {
                drop(ours);
                self.run(ends, theirs)
            }
            Cloned::Parent { pid, .. } => {
                let mut executor = Executor { pid, wire: ours };
                self.map_ids(pid)?;
                executor.wire.send(&(), &[]).at(step, "let the executor go on")?;
                Ok(executor)
            }
        }
    }

    fn map_ids(&self, pid: i32) -> Result<(), StepFailure> {
        let (step, inside, ids) = (Step::Executor, self.spec.payload_id, self.ids);
        let mut map = format!("{inside} {} 1\n", ids.payload);
        if ids.executor != ids.payload {
            map.push_str(&format!("{EXECUTOR_ID} {} 1\n", ids.executor));
        }
        map_ids(self.proc, pid, &map, step)
    }

    /// In the new process. Never returns.
    fn run(&self, ends: ExecutorEnds, mut init: Wire) -> ! {
        let outcome = self.confine(&ends, &mut init);
        let (confinement, failure) = match outcome {
            Ok(confinement) => (Some(confinement), None),
            Err(failure) => (None, Some(failure)),
        };
        // Init that is gone has ended this process.
        let told = init.send(&failure, &[]);
        match (confinement, told) {
            (Some(confinement), Ok(())) => {
                drop(init);
                (self.programs.executor)(ends, confinement, self.spec)
            }
            _ => std::process::exit(1),
        }
    }

    /// Every layer that a process puts on itself, in the order of the payload's.
    fn confine(&self, ends: &ExecutorEnds, init: &mut Wire) -> Result<Confinement, StepFailure> {
        let (step, spec) = (Step::Executor, self.spec);
        super::init::die_with_parent(init)?;
        let mut keep = ends.numbers().to_vec();
        keep.extend([init.as_fd().as_raw_fd(), self.proc.as_raw_fd()]);
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
        let mut keep = ends.numbers().to_vec();
        keep.push(init.as_fd().as_raw_fd());
        drop(score);
        sys::close_all_but(3, &mut keep).at(step, "close foreign descriptors")?;
        for (limit, value) in
            [(Rlimit::Data, DATA_BYTES_MAX), (Rlimit::OpenFiles, OPEN_FILES_MAX), (Rlimit::Core, 1)]
        {
            rlimits::apply(limit, value).at(step, format!("{limit:?}"))?;
        }
        let mut own_domain = None;
        let mut confinement = Confinement { id: spec.payload_id, domain: None, filter: None };
        if spec.applies(Layer::Landlock) {
            let domain = || Domain::confined(&grants(self.plan));
            confinement.domain = Some(domain().at(step, "make the helper's ruleset")?);
            // Its own too: the way to a memory store may be closed to the id it is about to take.
            own_domain = Some(domain().at(step, "make the ruleset")?);
        }
        let own = self.ids.executor != self.ids.payload;
        let id = if own { EXECUTOR_ID } else { spec.payload_id };
        caps::keep_change_of_ids_and_become(id).at(step, "become an id of its own")?;
        rustix::thread::set_no_new_privs(true).at(step, "set no_new_privs")?;
        // A change of ids takes both away (prctl(2)).
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .at(step, "become undumpable")?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .at(step, "die with init")?;
        if let Some(domain) = own_domain {
            domain.enter().at(step, "enter the domain")?;
        }
        if spec.applies(Layer::Seccomp) {
            let compile = |groups: &[&str]| seccomp::compile_lifting(groups, LIFTED);
            let filter = compile(HELPER_GROUPS).map_err(io::Error::other);
            confinement.filter = Some(filter.at(step, "compile the helper's filter")?);
            compile(&[HELPER_GROUPS, EXECUTOR_GROUPS].concat())
                .and_then(|filter| seccomp::install(&filter))
                .map_err(io::Error::other)
                .at(step, "install the filter")?;
        }
        Ok(confinement)
    }
}

impl Executor {
    /// Waits until every layer is on it.
    pub fn confined(&mut self) -> Result<(), StepFailure> {
        let heard = self.wire.receive::<Option<StepFailure>>();
        match heard.at(Step::Executor, "hear of the executor")?.0 {
            None => Ok(()),
            Some(failure) => Err(failure),
        }
    }
}

/// Writes the id map of a child in a user namespace of its own; groups stay as they are.
pub(super) fn map_ids(
    proc: BorrowedFd<'_>,
    pid: i32,
    map: &str,
    step: Step,
) -> Result<(), StepFailure> {
    for (file, text) in [("setgroups", "deny"), ("gid_map", map), ("uid_map", map)] {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let opened = openat(proc, format!("{pid}/{file}"), flags, Mode::empty());
        let opened = opened.at(step, format!("open {file}"))?;
        rustix::io::write(&opened, text.as_bytes()).at(step, format!("write {file}"))?;
    }
    Ok(())
}

fn grants(plan: &ToolsPlan) -> Vec<(&Path, Access)> {
    let access = |root: &PathBuf| match plan.read_only.contains(root) {
        true => Access::ReadExecute,
        false => Access::Files,
    };
    plan.roots.iter().map(|root| (root.as_path(), access(root))).collect()
}
