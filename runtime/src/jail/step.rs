//! The named steps of making and ending a jail, and the failure of one.
//!
//! A name appears in every error an operator sees, and in the crash tests, which stop a process at
//! a step (its name in `ps` then begins with `at-`) and kill it there.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

macro_rules! steps {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// One step, in the order in which they happen.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Step { $($(#[$doc])* $variant,)+ }

        impl Step {
            /// Every step.
            pub const ALL: &[Step] = &[$(Step::$variant,)+];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Step::$variant => $name,)+ }
            }
        }
    };
}

steps! {
    /// Launcher: message from the control side read and checked.
    Handshake = "handshake",
    /// Launcher: a run directory and a range of ids nobody else uses.
    Claim = "claim",
    /// Launcher: user namespaces that map ids of bound directories.
    IdMaps = "id-maps",
    /// Launcher: a file system image for a workspace on disk.
    Disk = "disk",
    /// Launcher: init cloned into its namespaces.
    CloneInit = "clone-init",
    /// Launcher: cgroup made, limits written; init: entered.
    Cgroup = "cgroup",
    /// Launcher: net namespace made; init: entered.
    Network = "network",
    /// Init: dies with the launcher, holds no foreign descriptor, leads a new session.
    Isolate = "isolate",
    /// Init: host name, clock offsets.
    Identity = "identity",
    /// Init: nothing mounted here shows on the host.
    Private = "private",
    /// Init: the root and what we write on it.
    Skeleton = "skeleton",
    /// Init: read-only parts of the host.
    HostView = "host-view",
    /// Init: memory file systems.
    Memory = "memory",
    /// Init: workspace, outputs, home and bound directories.
    Workspace = "workspace",
    /// Init: memory file systems of the porter, and the mount points they need in the workspace.
    Places = "places",
    /// Init: device nodes and terminals.
    Devices = "devices",
    /// Init, or the keeper of a session: `/proc`, masked.
    Proc = "proc",
    /// Init: the new root becomes the root.
    Pivot = "pivot",
    /// Init: what is mounted is what was planned.
    VerifyTree = "verify-tree",
    /// Init: a terminal for the payload.
    Terminal = "terminal",
    /// Init: the payload cloned into its own user namespace.
    ClonePayload = "clone-payload",
    /// Init: ids of the payload mapped.
    MapIds = "map-ids",
    /// Init: executor and file helper of a session cloned, confined and ready.
    Executor = "executor",
    /// Init: porter of a session cloned, confined and ready, if it needs one.
    Porter = "porter",
    /// Init: its own privileges given up.
    DropInit = "drop-init",
    /// Payload: no namespace can be made any more.
    InertNamespaces = "inert-namespaces",
    /// Payload: fresh session and keyring.
    Keyring = "keyring",
    /// Payload: per-process limits.
    Rlimits = "rlimits",
    /// Payload: user and group ids.
    Ids = "ids",
    /// Payload: capability sets emptied, securebits locked, both read back.
    Capabilities = "capabilities",
    /// Payload: no new privileges.
    NoNewPrivs = "no-new-privs",
    /// Payload: landlock domain entered.
    Landlock = "landlock",
    /// Payload: system call filter installed.
    Seccomp = "seccomp",
    /// Payload: forbidden acts tried.
    Canary = "canary",
    /// Payload: the command takes over.
    Exec = "exec",
    /// Launcher: the payload runs.
    Running = "running",
    /// Launcher: everything of the jail killed and waited for.
    Kill = "kill",
    /// Launcher: changes to bound directories copied back.
    Export = "export",
    /// Launcher: cgroup, ids and run directory removed.
    Remove = "remove",
}

impl Step {
    /// The step with this name.
    pub fn from_name(name: &str) -> Option<Step> {
        Step::ALL.iter().copied().find(|step| step.name() == name)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A step that did not succeed. Sent across processes, so the cause is an error number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("cannot make the jail: step `{step}` failed: {}", self.what())]
pub struct StepFailure {
    /// Which step.
    pub step: Step,
    /// Error number, 0 if the failure is not a system call's.
    pub errno: i32,
    /// What was tried, at most 300 bytes.
    pub detail: String,
}

fn errno_text(errno: i32) -> String {
    match errno {
        0 => String::new(),
        number => format!(": {}", io::Error::from_raw_os_error(number)),
    }
}

impl StepFailure {
    /// A failure of `step`; `error` may be any system error.
    pub fn new(step: Step, detail: impl Into<String>, error: &io::Error) -> Self {
        let mut detail = detail.into();
        let errno = error.raw_os_error().unwrap_or_else(|| {
            detail = format!("{detail}: {error}");
            0
        });
        let end = detail.char_indices().map(|(at, _)| at).take_while(|&at| at <= 300).last();
        if detail.len() > 300 {
            detail.truncate(end.unwrap_or(0));
        }
        StepFailure { step, errno, detail }
    }

    /// What was tried and why it failed, for a jail that runs.
    pub fn what(&self) -> String {
        format!("{}{}", self.detail, errno_text(self.errno))
    }

    /// What the operator can do, where the failure has a usual cause.
    pub fn hint(&self) -> Option<&'static str> {
        match (self.step, self.errno) {
            (Step::CloneInit | Step::Handshake, libc::EPERM | libc::EACCES) => Some(
                "unprivileged user namespaces are refused here; run the worker as root, or on \
                 Ubuntu load an AppArmor profile that grants it `userns`",
            ),
            (
                Step::Handshake | Step::IdMaps | Step::CloneInit | Step::ClonePayload,
                libc::ENOSPC | libc::EUSERS,
            ) => Some(
                "the limit of namespaces is reached: see /proc/sys/user/max_*_namespaces, and run \
                 `worker sweep`",
            ),
            (Step::Cgroup, libc::EBUSY) => Some(
                "the cgroup holds processes itself; run the worker in a unit with `Delegate=yes`",
            ),
            (Step::Disk, libc::ENOSPC) => {
                Some("lower `filesystem.workspace_size`, or free space in the state directory")
            }
            (Step::Places, libc::EEXIST) => Some(
                "something is there already, and a memory store must not be mixed with it: remove it, \
                 or give the store another mount path",
            ),
            (Step::Places, libc::ENOTDIR) => Some(
                "a file or a link is on the way; only directories are walked through: remove it",
            ),
            (Step::Workspace, libc::EINVAL) if self.detail.contains("map its ids") => Some(
                "use a directory on ext4, xfs or btrfs; on tmpfs the kernel maps ids from Linux 6.3 on",
            ),
            (Step::Proc, libc::EPERM) => Some(
                "the host's own /proc is partly covered (a container?); rootless jails need an \
                 uncovered one",
            ),
            _ => None,
        }
    }
}

/// Adds step and detail to an error on its way up.
pub(crate) trait AtStep<T> {
    /// Names the step and what was tried.
    fn at(self, step: Step, detail: impl Into<String>) -> Result<T, StepFailure>;
}

impl<T, E: Into<io::Error>> AtStep<T> for Result<T, E> {
    fn at(self, step: Step, detail: impl Into<String>) -> Result<T, StepFailure> {
        self.map_err(|error| StepFailure::new(step, detail, &error.into()))
    }
}

/// Stops the process here, with the step in its name, if the spec asks for it (crash tests only:
/// whoever stops is killed or continued from outside).
pub(crate) fn enter(step: Step, halt_at: Option<&str>) {
    if halt_at != Some(step.name()) {
        return;
    }
    // 15 bytes fit (prctl(2), PR_SET_NAME); `Step` names are cut, which the tests expect.
    let name = format!("at-{:.12}", step.name());
    if let Ok(name) = std::ffi::CString::new(name) {
        // A name that cannot be set only makes the crash test fail to find the process.
        if rustix::thread::set_name(&name).is_err() {
            return;
        }
    }
    if nix::unistd::getpid().as_raw() == 1 {
        // The first process of a pid namespace cannot be stopped from inside.
        loop {
            nix::unistd::pause();
        }
    }
    // Continues here if somebody sends SIGCONT.
    if nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP).is_err() {
        nix::unistd::pause();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_one_name_and_is_found_by_it() {
        for &step in Step::ALL {
            assert_eq!(Step::from_name(step.name()), Some(step));
        }
    }

    #[test]
    fn a_full_limit_of_namespaces_is_explained_wherever_one_is_made() {
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        for step in [Step::Handshake, Step::IdMaps, Step::CloneInit, Step::ClonePayload] {
            let hint = StepFailure::new(step, "make a namespace", &full).hint().unwrap_or_default();
            assert!(hint.contains("max_*_namespaces"), "{step}: {hint}");
        }
    }

    #[test]
    fn long_details_are_cut_at_a_character() {
        let failure =
            StepFailure::new(Step::Exec, "é".repeat(400), &io::Error::from_raw_os_error(2));
        assert!(failure.detail.len() <= 300, "{}", failure.detail.len());
        assert!(failure.to_string().contains("step `exec` failed"));
    }
}
