//! The forbidden acts that every jail tries before its payload starts (INV-3): a layer counts as
//! on when an act that only it refuses was refused with the error it gives, and not because a
//! call that switches it on returned 0.
//!
//! Runs in the payload's process with everything on, a moment before the exec. Each act leaves
//! nothing behind even where it succeeds, or leaves it in a jail that is thrown away at once.

use std::io;
use std::net::SocketAddr;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::net::{AddressFamily, SocketType};

use crate::policy::Layer;
use crate::policy::syscalls::catalogue;
use crate::spec::JailSpec;
use crate::sys::{ForbiddenCall, try_forbidden};

use super::report::CanaryResult;

/// TEST-NET-1 of RFC 5737: never assigned, so a route to it means a default route.
const UNROUTED: [u8; 4] = [192, 0, 2, 1];
/// RFC 863; nobody listens there.
const DISCARD: u16 = 9;

/// Error numbers that acts end with, by the name the report uses.
const NAMES: &[(i32, &str)] = &[
    (0, "allowed"),
    (libc::EPERM, "EPERM"),
    (libc::ENOENT, "ENOENT"),
    (libc::EACCES, "EACCES"),
    (libc::EINVAL, "EINVAL"),
    (libc::ENOSPC, "ENOSPC"),
    (libc::EROFS, "EROFS"),
    (libc::ENOSYS, "ENOSYS"),
    (libc::EFAULT, "EFAULT"),
    (libc::EAFNOSUPPORT, "EAFNOSUPPORT"),
    (libc::ECONNREFUSED, "ECONNREFUSED"),
    (libc::ENETUNREACH, "ENETUNREACH"),
];

/// Tries every act whose layer the spec applies.
pub(super) fn try_forbidden_acts(spec: &JailSpec) -> Vec<CanaryResult> {
    let mut trial = Trial { spec, results: Vec::with_capacity(20) };
    if !spec.applies(Layer::Canary) {
        return trial.results;
    }
    trial.kernel_calls();
    trial.files();
    trial.network();
    trial.process();
    trial.results
}

struct Trial<'a> {
    spec: &'a JailSpec,
    results: Vec<CanaryResult>,
}

impl Trial<'_> {
    /// Compares the outcome of an act that makes the system call named `with`. A policy that does
    /// not allow the call at all answers before the layer that would.
    fn act(&mut self, layer: Layer, act: &str, with: &str, expected: i32, got: io::Result<()>) {
        let got = got.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0);
        let expected = if self.is_callable(with) { expected } else { libc::ENOSYS };
        self.compare(layer, act, name(expected), name(got));
    }

    /// Whether the policy's groups hold the call, or a denial answers for it.
    fn is_callable(&self, call: &str) -> bool {
        if !self.spec.applies(Layer::Seccomp) {
            return true;
        }
        let home =
            catalogue().groups.iter().find(|group| group.calls.iter().any(|c| c.name == call));
        home.is_none_or(|group| self.spec.syscall_groups.iter().any(|name| name == group.name))
    }

    fn compare(&mut self, layer: Layer, act: &str, expected: String, got: String) {
        if self.spec.applies(layer) {
            let ok = expected == got;
            self.results.push(CanaryResult { act: act.to_owned(), layer, expected, got, ok });
        }
    }

    fn call(&mut self, layer: Layer, act: &str, with: &str, expected: i32, call: ForbiddenCall) {
        let got = match try_forbidden(call) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        };
        self.act(layer, act, with, expected, got);
    }

    fn kernel_calls(&mut self) {
        use ForbiddenCall::{Bpf, IoUring, Keyctl, Mount, TraceInit, Unknown, UnshareUser};
        let seccomp = self.spec.applies(Layer::Seccomp);
        let unshare = if seccomp { libc::EPERM } else { libc::ENOSPC };
        self.call(Layer::UserNamespace, "make a user namespace", "unshare", unshare, UnshareUser);
        self.call(Layer::Seccomp, "mount", "mount", libc::EPERM, Mount);
        self.call(Layer::Seccomp, "load a BPF map", "bpf", libc::EPERM, Bpf);
        self.call(Layer::Seccomp, "set up io_uring", "io_uring_setup", libc::ENOSYS, IoUring);
        self.call(Layer::Seccomp, "read a keyring", "keyctl", libc::ENOSYS, Keyctl);
        self.call(Layer::Seccomp, "call an unknown number", "", libc::ENOSYS, Unknown);
        if self.spec.tools.is_none() {
            let act = "trace the jail's init";
            self.call(Layer::UserNamespace, act, "ptrace", libc::EPERM, TraceInit);
        }
        let vsock = rustix::net::socket(AddressFamily::from_raw(40), SocketType::STREAM, None);
        self.act(Layer::Seccomp, "open a vsock socket", "socket", libc::EAFNOSUPPORT, done(vsock));
    }

    fn files(&mut self) {
        let read = |path: &str| {
            done(rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()))
        };
        // A root directory of the operator's own is granted as a whole, this file included.
        if self.spec.mounts.base.is_none() {
            self.act(
                Layer::Landlock,
                "read a file no rule grants",
                "openat",
                libc::EACCES,
                read("/.canary"),
            );
        }
        let made = rustix::fs::mkdirat(CWD, "/.written", Mode::from_raw_mode(0o700));
        self.act(
            Layer::MountNamespace,
            "make a directory in /",
            "mkdirat",
            libc::EROFS,
            done(made),
        );
        for place in self.spec.mounts.places.iter().filter(|place| !place.writable) {
            let act = format!("write to {}", place.target.display());
            let written = place.target.join(".written");
            let made = rustix::fs::mkdirat(CWD, &written, Mode::from_raw_mode(0o700));
            self.act(Layer::MountNamespace, &act, "mkdirat", libc::EROFS, done(made));
        }
        let act = "read the kernel's command line";
        let seen = match std::fs::read("/proc/cmdline") {
            Ok(text) => text.len(),
            Err(_) if !self.is_callable("openat") => 0,
            Err(_) => usize::MAX,
        };
        self.compare(Layer::MountNamespace, act, "0 bytes".to_owned(), format!("{seen} bytes"));
        let found = rustix::fs::statx(CWD, "/sys/fs/cgroup", AtFlags::empty(), StatxFlags::TYPE);
        self.act(Layer::MountNamespace, "find the cgroup tree", "statx", libc::ENOENT, done(found));
        if self.spec.tools.is_some() {
            // This process is the first of the tool tree, and cannot even name one outside it.
            let (act, got) = ("be process 1 of a namespace", std::process::id());
            self.compare(Layer::PidNamespace, act, "1".to_owned(), got.to_string());
            return;
        }
        let init = rustix::fs::statx(CWD, "/proc/1", AtFlags::empty(), StatxFlags::TYPE);
        self.act(
            Layer::PidNamespace,
            "find a process that is not its own",
            "statx",
            libc::ENOENT,
            done(init),
        );
    }

    fn network(&mut self) {
        // Where every address leads to the broker, only listeners answer; elsewhere there is no route.
        let (kind, port, expected) = match &self.spec.egress {
            None => (SocketType::DGRAM, DISCARD, libc::ENETUNREACH),
            Some(plan) => {
                let ports = plan.ports();
                let closed = (DISCARD..).find(|port| !ports.contains(port));
                (SocketType::STREAM, closed.unwrap_or(DISCARD), libc::ECONNREFUSED)
            }
        };
        let socket = rustix::net::socket(AddressFamily::INET, kind, None);
        let unrouted = SocketAddr::from((UNROUTED, port));
        let sent = socket.and_then(|socket| rustix::net::connect(&socket, &unrouted));
        self.act(Layer::NetNamespace, "reach 192.0.2.1", "connect", expected, done(sent));
        if self.is_callable("connect") {
            let found = nix::net::if_::if_nameindex().map(|found| {
                let names = found.iter().map(|interface| interface.name().to_string_lossy());
                names.collect::<Vec<_>>().join(" ")
            });
            let got = found.unwrap_or_else(|error| name(error as i32));
            self.compare(Layer::NetNamespace, "see the host's interfaces", "lo".to_owned(), got);
        }
    }

    fn process(&mut self) {
        let core = rustix::process::getrlimit(rustix::process::Resource::Core);
        let limit = core.maximum.map_or("unlimited".to_owned(), |limit| limit.to_string());
        self.compare(Layer::Rlimits, "raise the core dump limit", "1".to_owned(), limit);
        let root = rustix::process::Uid::ROOT;
        let became = nix::unistd::setresuid(
            root.as_raw().into(),
            root.as_raw().into(),
            root.as_raw().into(),
        );
        self.act(Layer::UserNamespace, "become user 0", "setresuid", libc::EINVAL, done(became));
        let hostname = nix::unistd::gethostname().unwrap_or_default();
        let (expected, got) = (self.spec.hostname.clone(), hostname.to_string_lossy().into_owned());
        self.compare(Layer::UtsNamespace, "see the host's name", expected, got);
    }
}

fn done<T, E: Into<io::Error>>(result: Result<T, E>) -> io::Result<()> {
    result.map(|_| ()).map_err(Into::into)
}

fn name(errno: i32) -> String {
    let known = NAMES.iter().find(|(number, _)| *number == errno);
    known.map_or_else(|| format!("errno {errno}"), |(_, name)| (*name).to_owned())
}
