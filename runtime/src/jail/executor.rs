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
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, MemfdFlags, Mode, OFlags, SealFlags, Uid, fchown, memfd_create, openat};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::host::Level;
use crate::policy::Layer;
use crate::spec::{Access, JailSpec, ToolsPlan};

use super::caps;
use super::claim::IdRange;
use super::companion::{Companion, Cradle, become_program};
use super::landlock::Domain;
use super::programs::{Confinement, ExecutorEnds, Programs};
use super::seccomp;
use super::step::{AtStep as _, Step, StepFailure};
use super::wire::Wire;

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
    pub fn start(&self, ends: ExecutorEnds) -> Result<Companion, StepFailure> {
        let (inside, ids) = (self.spec.payload_id, self.ids);
        let mut map = format!("{inside} {} 1\n", ids.payload);
        if ids.executor != ids.payload {
            map.push_str(&format!("{EXECUTOR_ID} {} 1\n", ids.executor));
        }
        let cradle = Cradle { step: Step::Executor, proc: self.proc, cgroup: self.cgroup };
        cradle.start(&map, |mut init| {
            let confined = self.confine(&cradle, &ends, &mut init);
            become_program(init, confined, |confinement| {
                (self.programs.executor)(ends, confinement, self.spec)
            })
        })
    }

    /// Every layer that a process puts on itself, in the order of the payload's.
    fn confine(
        &self,
        cradle: &Cradle<'_>,
        ends: &ExecutorEnds,
        init: &mut Wire,
    ) -> Result<Confinement, StepFailure> {
        let (step, spec) = (cradle.step, self.spec);
        cradle.isolate(init, &ends.numbers())?;
        cradle.limit(DATA_BYTES_MAX, OPEN_FILES_MAX)?;
        let mut own_domain = None;
        let places = places(spec, self.plan).at(step, "open places")?;
        let id = spec.payload_id;
        let mut confinement = Confinement { places, id, domain: None, filter: None };
        if spec.applies(Layer::Landlock) {
            let domain = || Domain::confined(&grants(self.plan));
            confinement.domain = Some(domain().at(step, "make the helper's ruleset")?);
            // Its own too: the way to a memory store may be closed to the id it is about to take.
            own_domain = Some(domain().at(step, "make the ruleset")?);
        }
        let own = self.ids.executor != self.ids.payload;
        let id = if own { EXECUTOR_ID } else { spec.payload_id };
        caps::keep_change_of_ids_and_become(id).at(step, "become an id of its own")?;
        cradle.seal()?;
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

/// What the payload can fill: stores are among the roots, skills below one.
fn places(spec: &JailSpec, plan: &ToolsPlan) -> io::Result<Vec<(PathBuf, OwnedFd)>> {
    let targets = spec.mounts.places.iter().map(|place| place.target.clone());
    let skills = targets.filter(|target| !plan.roots.contains(target));
    let places = plan.roots.iter().cloned().chain(skills);
    let memory = spec.mounts.memory.iter().map(|mount| Path::new("/").join(&mount.target));
    let places = places.filter(|place| !plan.read_only.contains(place)).chain(memory);
    let opened = places.map(|place| {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&place, flags, Mode::empty())?;
        Ok((place, directory))
    });
    opened.collect()
}

fn grants(plan: &ToolsPlan) -> Vec<(&Path, Access)> {
    let access = |root: &PathBuf| match plan.read_only.contains(root) {
        true => Access::ReadExecute,
        false => Access::Files,
    };
    plan.roots.iter().map(|root| (root.as_path(), access(root))).collect()
}
