//! The payload's process from its birth to the exec of its command.
//!
//! Cloned by init into the jail's cgroup, it first enters a user namespace of its own that owns no
//! other namespace: capabilities in it are good for nothing (INV-5). Here the process takes every
//! privilege from itself, enters landlock and seccomp, and tries the forbidden acts.
//!
//! Order matters: what needs privilege comes first; capabilities go before landlock and seccomp so
//! that nothing after uses one; seccomp goes last because it takes away the calls used before it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags, openat};
use rustix::process::DumpableBehavior;

use crate::policy::Layer;
use crate::spec::{Access, JailSpec};
use crate::sys;

use super::executor::KeeperEnds;
use super::landlock::Domain;
use super::message::FromPayload;
use super::programs::{KeeperSide, Programs};
use super::report::LayerResult;
use super::seccomp::{self, Program};
use super::step::{AtStep as _, Step, StepFailure, enter};
use super::tree::Tree;
use super::wire::Wire;
use super::{canary, caps, rlimits};

/// Everything the payload's process was given.
pub(super) struct Payload<'a> {
    pub spec: &'a JailSpec,
    pub tree: &'a Tree,
    pub domain: Option<Domain>,
    pub filter: Option<&'a Program>,
    /// Standard input, output and error.
    pub stdio: &'a [OwnedFd],
    pub init: Wire,
    pub programs: Programs,
    /// Set if this is the jail of a session: the keeper's ends.
    pub keeper: Option<KeeperEnds>,
    /// `/proc` of the tool tree, once it is made.
    pub proc: Option<OwnedFd>,
}

/// Kinds of namespace, as `/proc/sys/user/max_*_namespaces` names them.
const KINDS: &[&str] = &["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"];
/// Raised so that the kernel prefers the payload to anything of the host when memory runs out.
const OOM_SCORE_ADJ: &[u8] = b"800";

impl Payload<'_> {
    /// Never returns: becomes the command, or reports why not and exits.
    pub fn run(mut self) -> ! {
        let outcome = match self.restrict() {
            Err(failure) => FromPayload::Failed(failure),
            Ok(layers) => {
                let canary = canary::try_forbidden_acts(self.spec);
                enter(Step::Canary, self.spec.halt_at.as_deref());
                if canary.iter().all(|result| result.ok) {
                    let ready = FromPayload::Ready { layers, canary };
                    let told = self.init.send(&ready, &[]);
                    // Init answers when it has given up its own privileges.
                    match told.and_then(|()| self.init.receive_nod()) {
                        Ok(()) => match (self.keeper.take(), self.proc.take()) {
                            (Some(ends), Some(proc)) => self.keep(ends, proc),
                            _ => FromPayload::NotRunnable(self.exec()),
                        },
                        Err(_) => sys_exit(),
                    }
                } else {
                    FromPayload::Distrusted(canary)
                }
            }
        };
        // If init is gone, so is everybody who could be told.
        let _told = self.init.send(&outcome, &[]);
        sys_exit()
    }

    /// Puts every layer on this process that a process puts on itself.
    fn restrict(&mut self) -> Result<Vec<LayerResult>, StepFailure> {
        let spec = self.spec;
        let halt = spec.halt_at.as_deref();
        let mut layers = Vec::new();
        if self.keeper.is_some() {
            self.show_own_processes()?;
        }
        self.separate()?;
        let ((), _) = self.init.receive().at(Step::MapIds, "wait for the id mapping")?;
        enter(Step::InertNamespaces, halt);
        forbid_namespaces(self.tree.private_proc.as_fd(), Step::InertNamespaces)?;
        let inert = "owns no namespace; none can be made in it";
        layers.push(LayerResult::enforced(spec, Layer::UserNamespace, inert));
        enter(Step::Keyring, halt);
        nix::unistd::setsid().at(Step::Keyring, "start a session")?;
        if spec.applies(Layer::Keyring) {
            match sys::join_anonymous_session_keyring() {
                Ok(()) => {
                    layers.push(LayerResult::enforced(spec, Layer::Keyring, "fresh and empty"))
                }
                // A kernel without a key service has no keys to reach.
                Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                    layers.push(LayerResult::enforced(spec, Layer::Keyring, "no key service"));
                }
                Err(error) => {
                    return Err(StepFailure::new(Step::Keyring, "join a new keyring", &error));
                }
            }
        }
        self.limit_process(&mut layers)?;
        enter(Step::Ids, halt);
        self.set_ids()?;
        enter(Step::Capabilities, halt);
        if spec.applies(Layer::Capabilities) {
            caps::drop_all().at(Step::Capabilities, "empty the sets")?;
            let why = "all five sets empty, securebits locked, read back";
            layers.push(LayerResult::enforced(spec, Layer::Capabilities, why));
        } else {
            caps::keep_all().at(Step::Capabilities, "keep the sets across exec")?;
        }
        self.take_standard_streams()?;
        let workdir = &spec.payload.workdir;
        rustix::process::chdir(workdir).at(Step::Ids, format!("enter {}", workdir.display()))?;
        self.confine(&mut layers)?;
        Ok(layers)
    }

    /// A session: mounts the `/proc` of the namespace this process is the first of, and completes
    /// what init could not check before.
    fn show_own_processes(&mut self) -> Result<(), StepFailure> {
        let halt = self.spec.halt_at.as_deref();
        enter(Step::Proc, halt);
        let proc = self.tree.own_proc(&self.spec.mounts)?;
        if self.spec.applies(Layer::Landlock) {
            let domain = Domain::prepare(&self.spec.landlock);
            let domain = domain.and_then(|domain| domain.grant(proc.as_fd(), Access::ReadExecute));
            self.domain = Some(domain.at(Step::Landlock, "make the ruleset")?);
        }
        self.proc = Some(proc);
        enter(Step::VerifyTree, halt);
        super::verify::tree(self.tree, &self.spec.mounts)
    }

    /// A session: this process becomes the keeper, without an exec. It holds nothing but its ends.
    fn keep(&mut self, ends: KeeperEnds, proc: OwnedFd) -> FromPayload {
        enter(Step::Exec, self.spec.halt_at.as_deref());
        let KeeperEnds { commands, script, output, status, tool, executor } = ends;
        let side = KeeperSide { commands, script, output, status, tool, executor, proc };
        let mut keep = side.numbers();
        let step = Step::Exec;
        let alone = sys::close_all_but(3, &mut keep).at(step, "close foreign descriptors");
        let hidden = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .at(step, "become undumpable");
        if alone.and(hidden).is_err() {
            // The connection to init may be closed: its end says that nothing runs.
            sys_exit();
        }
        (self.programs.keeper)(side, self.spec)
    }

    /// Landlock and seccomp, and what they rest on.
    fn confine(&mut self, layers: &mut Vec<LayerResult>) -> Result<(), StepFailure> {
        let spec = self.spec;
        let halt = spec.halt_at.as_deref();
        enter(Step::NoNewPrivs, halt);
        if spec.applies(Layer::NoNewPrivs) {
            rustix::thread::set_no_new_privs(true).at(Step::NoNewPrivs, "set it")?;
            let on = rustix::thread::no_new_privs().at(Step::NoNewPrivs, "read it back")?;
            if !on {
                let error = io::Error::from_raw_os_error(libc::EPERM);
                return Err(StepFailure::new(Step::NoNewPrivs, "it is not set", &error));
            }
            layers.push(LayerResult::enforced(spec, Layer::NoNewPrivs, "set, read back"));
        }
        enter(Step::Landlock, halt);
        if let Some(domain) = self.domain.take() {
            let why = domain.description.clone();
            domain.enter().at(Step::Landlock, "enter the domain")?;
            layers.push(LayerResult::enforced(spec, Layer::Landlock, why));
        }
        enter(Step::Seccomp, halt);
        if let Some(filter) = self.filter {
            seccomp::install(filter)
                .map_err(io::Error::other)
                .at(Step::Seccomp, "install the filter")?;
            let why = format!("{} instructions", filter.instructions().len());
            layers.push(LayerResult::enforced(spec, Layer::Seccomp, why));
        }
        Ok(())
    }

    /// Makes the cgroup namespace, then the user namespace, and tells init.
    ///
    /// After the birth and not by the clone: the kernel refuses to clone into a cgroup outside the
    /// cloner's cgroup namespace where cgroup v2 is mounted with `nsdelegate`, as service managers
    /// do (cgroup-v2.rst, "Delegation Containment"), and the jail's group is never below init's. So
    /// the namespace is made inside, where its root is the jail's own group, and before the user
    /// namespace, which would own it otherwise.
    fn separate(&mut self) -> Result<(), StepFailure> {
        let step = Step::ClonePayload;
        if self.spec.applies(Layer::CgroupNamespace) {
            nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP)
                .at(step, "make the payload's cgroup namespace")?;
        }
        nix::sched::unshare(CloneFlags::CLONE_NEWUSER)
            .at(step, "make the payload's user namespace")?;
        self.init.send(&FromPayload::Separate, &[]).at(step, "tell init")
    }

    fn limit_process(&self, layers: &mut Vec<LayerResult>) -> Result<(), StepFailure> {
        let step = Step::Rlimits;
        enter(step, self.spec.halt_at.as_deref());
        if self.spec.applies(Layer::Rlimits) {
            for (limit, value) in &self.spec.rlimits {
                rlimits::apply(*limit, *value).at(step, format!("{limit:?}"))?;
            }
            let why = format!("{} limits, read back", self.spec.rlimits.len());
            layers.push(LayerResult::enforced(self.spec, Layer::Rlimits, why));
        }
        if self.spec.nice > 0 {
            rustix::process::nice(i32::from(self.spec.nice)).at(step, "nice")?;
        }
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let score = openat(&self.tree.private_proc, "self/oom_score_adj", flags, Mode::empty())
            .at(step, "open oom_score_adj")?;
        rustix::io::write(&score, OOM_SCORE_ADJ).at(step, "write oom_score_adj")?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        Ok(())
    }

    fn set_ids(&self) -> Result<(), StepFailure> {
        let id = self.spec.payload_id;
        let gid = nix::unistd::Gid::from_raw(id);
        nix::unistd::setresgid(gid, gid, gid).at(Step::Ids, "setresgid")?;
        let uid = nix::unistd::Uid::from_raw(id);
        nix::unistd::setresuid(uid, uid, uid).at(Step::Ids, "setresuid")
    }

    /// The named descriptors become 0, 1 and 2; everything else closes at the exec.
    fn take_standard_streams(&self) -> Result<(), StepFailure> {
        let step = Step::Isolate;
        if self.keeper.is_some() {
            // 0, 1 and 2 are the launcher's /dev/null.
            return sys::default_signals().at(step, "reset signals");
        }
        for number in 0..3 {
            let stream = &self.stdio[number.min(self.stdio.len() - 1)];
            sys::install_at(stream.as_fd(), number as i32).at(step, "place a standard stream")?;
        }
        if self.spec.payload.tty {
            let terminal = rustix::stdio::stdin();
            rustix::process::ioctl_tiocsctty(terminal).at(Step::Terminal, "take the terminal")?;
        }
        sys::close_on_exec_from(3).at(step, "close descriptors at exec")?;
        sys::default_signals().at(step, "reset signals")
    }

    /// Returns only if the command cannot be run, with the error number.
    fn exec(&self) -> i32 {
        enter(Step::Exec, self.spec.halt_at.as_deref());
        let payload = &self.spec.payload;
        let strings = |list: &[Vec<u8>]| -> Option<Vec<CString>> {
            list.iter().map(|bytes| CString::new(bytes.clone()).ok()).collect()
        };
        let (Some(argv), Some(envp)) = (strings(&payload.argv), strings(&payload.environment))
        else {
            return libc::EINVAL;
        };
        let Some(command) = argv.first() else { return libc::EINVAL };
        let mut errno = libc::ENOENT;
        for candidate in candidates(command, &envp) {
            let error = sys::exec_path(&candidate, &argv, &envp).raw_os_error().unwrap_or(0);
            // As a shell does: keep looking, but remember that something was there.
            match error {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => errno = libc::EACCES,
                other => return other,
            }
        }
        errno
    }
}

/// Writes 0 to every limit of namespaces in the caller's user namespace. The lookup must happen in
/// the namespace itself, so the files are opened here, on a proc that hides nothing.
pub(super) fn forbid_namespaces(proc: BorrowedFd<'_>, step: Step) -> Result<(), StepFailure> {
    for kind in KINDS {
        let path = format!("sys/user/max_{kind}_namespaces");
        let detail = || format!("write 0 to {path}");
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = match openat(proc, &*path, flags, Mode::empty()) {
            Ok(file) => file,
            // Kernels before 5.6 have no time namespaces.
            Err(rustix::io::Errno::NOENT) => continue,
            Err(error) => return Err(StepFailure::new(step, detail(), &error.into())),
        };
        rustix::io::write(&file, b"0").at(step, detail())?;
    }
    Ok(())
}

/// Paths to try for `command`: itself if it has a slash, else one per directory of `PATH`.
fn candidates(command: &CString, envp: &[CString]) -> Vec<CString> {
    if command.as_bytes().contains(&b'/') {
        return vec![command.clone()];
    }
    let path = envp.iter().find_map(|variable| variable.as_bytes().strip_prefix(b"PATH="));
    path.unwrap_or_default()
        .split(|byte| *byte == b':')
        .filter(|directory| !directory.is_empty())
        .filter_map(|directory| CString::new([directory, b"/", command.as_bytes()].concat()).ok())
        .collect()
}

fn sys_exit() -> ! {
    std::process::exit(1)
}
