//! The porter of a session, from its birth to its program, and how what it forks is confined.
//!
//! Cloned by init, as the executor is, in a PID namespace that the tool tree is below and cannot see:
//! nothing there can name, signal or trace it (INV-6), and it outlives the tool tree. It has the ids
//! of bash, so that each can use what the other made, in a user namespace of its own that owns
//! nothing, no capability, and a domain that holds the workspace and its places.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};

use crate::policy::Layer;
use crate::spec::{Access, JailSpec, PlaceKind};

use super::caps;
use super::claim::IdRange;
use super::companion::{Companion, Cradle, become_program};
use super::executor::LIFTED;
use super::landlock::Domain;
use super::programs::{PorterEnds, Programs, UnpackConfinement};
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
    pub fn start(&self, ends: PorterEnds) -> Result<Companion, StepFailure> {
        let map = format!("{} {} 1\n", self.spec.payload_id, self.ids.payload);
        let cradle = Cradle { step: Step::Porter, proc: self.proc, cgroup: self.cgroup };
        cradle.start(&map, |mut init| {
            let confined = self.confine(&cradle, &ends, &mut init);
            become_program(init, confined, |confinement| (self.programs.porter)(ends, confinement))
        })
    }

    /// Every layer that a process puts on itself, in the order of the payload's.
    fn confine(
        &self,
        cradle: &Cradle<'_>,
        ends: &PorterEnds,
        init: &mut Wire,
    ) -> Result<UnpackConfinement, StepFailure> {
        let (step, spec) = (cradle.step, self.spec);
        cradle.isolate(init, &ends.numbers())?;
        cradle.limit(DATA_BYTES_MAX, OPEN_FILES_MAX)?;
        // What it makes has the modes that its program says.
        rustix::process::umask(Mode::empty());
        caps::drop_all_and_become(spec.payload_id).at(step, "become the payload's id")?;
        cradle.seal()?;
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

/// The workspace and the places, by descriptor: those of the porter have no path.
fn domain(ends: &PorterEnds) -> io::Result<Domain> {
    ends.places().try_fold(Domain::confined(&[])?, |domain, place| {
        domain.grant(place.as_fd(), Access::Porter)
    })
}
