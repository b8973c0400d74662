//! The porter of a session, from its birth to its program, and how what it forks is confined.
//!
//! Cloned by init, as the executor is, in a PID namespace that the tool tree is below and cannot see:
//! nothing there can name, signal or trace it (INV-6), and it outlives the tool tree. It has the ids
//! of bash, so that each can use what the other made, in a user namespace of its own that owns
//! nothing, no capability, and a domain that holds the workspace and its places.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::process::{DumpableBehavior, Signal};

use crate::policy::Layer;
use crate::spec::{Access, JailSpec, PlaceKind, Rlimit};
use crate::sys::{self, CloneArgs, Cloned, clone3};

use super::caps;
use super::claim::IdRange;
use super::executor::{LIFTED, OOM_SCORE_ADJ, map_ids};
use super::landlock::Domain;
use super::programs::{PorterEnds, Programs, UnpackConfinement};
use super::rlimits;
use super::seccomp;
use super::step::{AtStep as _, Step, StepFailure};
use super::tree::Tree;
use super::wire::Wire;

/// What a process that unpacks calls: it reads one descriptor and makes files.
const UNPACK_GROUPS: &[&str] = &["base", "files", "directories", "metadata", "time", "memory"];
/// What the porter calls beside that, to hear, and to start, confine and end one of those.
const PORTER_GROUPS: &[&str] = &[
    "threads",
    "polling",
    "processes",
    "signals",
    "process-controls",
    "seccomp-self",
    "landlock-self",
];
/// How a descriptor is received; none of the other calls of sockets is needed.
const RECEIVE: &str = "recvmsg";
/// Most memory, in bytes: the decoder of an archive, and a memory store's list of files.
const DATA_BYTES_MAX: u64 = 256 << 20;
/// Descriptors: the places, and one for each level of directories that are removed.
const OPEN_FILES_MAX: u64 = 256;

/// What the porter is made from.
pub(super) struct Birth<'a> {
    pub spec: &'a JailSpec,
    pub programs: Programs,
    pub ids: IdRange,
    /// A `/proc` that hides nothing.
    pub proc: BorrowedFd<'a>,
    /// The payload's cgroup, where it is of v2: what the porter writes is charged to the session.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// The porter, started and not yet let go.
#[derive(Debug)]
pub(super) struct Porter {
    pub pid: i32,
    wire: Wire,
}

/// Sorts the porter's descriptors; `places` are in the order of the plan.
pub(super) fn ends(
    spec: &JailSpec,
    tree: &Tree,
    control: OwnedFd,
    places: Vec<OwnedFd>,
) -> Result<PorterEnds, StepFailure> {
    let workdir = &spec.payload.workdir;
    let below = workdir.strip_prefix("/").unwrap_or(workdir);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let workspace = openat(&tree.root, below, flags, Mode::empty())
        .at(Step::Porter, format!("open {}", workdir.display()))?;
    let mut ends = PorterEnds { control, workspace, skills: None, stores: Vec::new() };
    for (plan, place) in spec.mounts.places.iter().zip(places) {
        match plan.kind {
            PlaceKind::Skills => ends.skills = Some(place),
            PlaceKind::Store => ends.stores.push(place),
        }
    }
    Ok(ends)
}

impl Birth<'_> {
    /// Clones the porter, maps its ids and lets it confine itself.
    pub fn start(&self, ends: PorterEnds) -> Result<Porter, StepFailure> {
        let step = Step::Porter;
        let (ours, theirs) = Wire::pair().at(step, "connect to the porter")?;
        let args = CloneArgs { namespaces: libc::CLONE_NEWUSER as u64, cgroup: self.cgroup };
        match clone3(args).at(step, "clone the porter")? {
            Cloned::Child => {
                drop(ours);
                self.run(ends, theirs)
            }
            Cloned::Parent { pid, .. } => {
                let mut porter = Porter { pid, wire: ours };
                let map = format!("{} {} 1\n", self.spec.payload_id, self.ids.payload);
                map_ids(self.proc, pid, &map, step)?;
                porter.wire.send(&(), &[]).at(step, "let the porter go on")?;
                Ok(porter)
            }
        }
    }

    /// In the new process. Never returns.
    fn run(&self, ends: PorterEnds, mut init: Wire) -> ! {
        let (confinement, failure) = match self.confine(&ends, &mut init) {
            Ok(confinement) => (Some(confinement), None),
            Err(failure) => (None, Some(failure)),
        };
        // Init that is gone has ended this process.
        let told = init.send(&failure, &[]);
        match (confinement, told) {
            (Some(confinement), Ok(())) => {
                drop(init);
                (self.programs.porter)(ends, confinement)
            }
            _ => std::process::exit(1),
        }
    }

    /// Every layer that a process puts on itself, in the order of the payload's.
    fn confine(
        &self,
        ends: &PorterEnds,
        init: &mut Wire,
    ) -> Result<UnpackConfinement, StepFailure> {
        let (step, spec) = (Step::Porter, self.spec);
        super::init::die_with_parent(init)?;
        let mut keep = ends.numbers();
        keep.extend([init.as_fd().as_raw_fd(), self.proc.as_raw_fd()]);
        sys::close_all_but(3, &mut keep).at(step, "close foreign descriptors")?;
        nix::unistd::setsid().at(step, "start a session")?;
        sys::errors_instead_of_signals().at(step, "ignore signals of failed writes")?;
        let ((), _) = init.receive().at(step, "wait for the id mapping")?;
        super::payload::forbid_namespaces(self.proc, step)?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let score = openat(self.proc, "self/oom_score_adj", flags, Mode::empty())
            .at(step, "open oom_score_adj")?;
        rustix::io::write(&score, OOM_SCORE_ADJ).at(step, "write oom_score_adj")?;
        drop(score);
        let mut keep = ends.numbers();
        keep.push(init.as_fd().as_raw_fd());
        sys::close_all_but(3, &mut keep).at(step, "close foreign descriptors")?;
        for (limit, value) in
            [(Rlimit::Data, DATA_BYTES_MAX), (Rlimit::OpenFiles, OPEN_FILES_MAX), (Rlimit::Core, 1)]
        {
            rlimits::apply(limit, value).at(step, format!("{limit:?}"))?;
        }
        // What it makes has the modes that its program says.
        rustix::process::umask(Mode::empty());
        caps::drop_all_and_become(spec.payload_id).at(step, "become the payload's id")?;
        rustix::thread::set_no_new_privs(true).at(step, "set no_new_privs")?;
        // A change of ids takes both away (prctl(2)).
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .at(step, "become undumpable")?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .at(step, "die with init")?;
        let landlock = spec.applies(Layer::Landlock);
        if landlock {
            domain(ends).and_then(Domain::enter).at(step, "enter the domain")?;
        }
        let mut confinement = UnpackConfinement { landlock, filter: None };
        if spec.applies(Layer::Seccomp) {
            let compile = |groups: &[&str], calls: &[&str]| {
                seccomp::compile_own(groups, LIFTED, calls).map_err(io::Error::other)
            };
            let filter = compile(UNPACK_GROUPS, &[]).at(step, "compile the inner filter")?;
            confinement.filter = Some(filter);
            compile(&[UNPACK_GROUPS, PORTER_GROUPS].concat(), &[RECEIVE])
                .and_then(|filter| seccomp::install(&filter).map_err(io::Error::other))
                .at(step, "install the filter")?;
        }
        Ok(confinement)
    }
}

impl Porter {
    /// Waits until every layer is on it.
    pub fn confined(&mut self) -> Result<(), StepFailure> {
        let heard = self.wire.receive::<Option<StepFailure>>();
        match heard.at(Step::Porter, "hear of the porter")?.0 {
            None => Ok(()),
            Some(failure) => Err(failure),
        }
    }
}

/// The workspace and the places, by descriptor: those of the porter have no path.
fn domain(ends: &PorterEnds) -> io::Result<Domain> {
    ends.places().try_fold(Domain::confined(&[])?, |domain, place| {
        domain.grant(place.as_fd(), Access::Porter)
    })
}
