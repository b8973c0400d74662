//! Executing, dying of a panic, and probing system calls by number.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A null-terminated vector of C strings, as exec wants it.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// From now on a panic is told and then ends the process, also where this was built to unwind: that
/// would run the parent's cleanup once more in a freshly cloned child.
pub fn abort_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort()
    }));
}

/// Replaces this process with the program that `program` refers to. Returns only on failure.
///
/// Linux 3.19, execveat(2) with `AT_EMPTY_PATH`.
pub fn exec_descriptor(program: BorrowedFd<'_>, argv: &[CString], envp: &[CString]) -> io::Error {
    let (argv, envp) = (pointers(argv), pointers(envp));
    let fd = program.as_raw_fd();
    // SAFETY: the borrow keeps `program` open; both vectors are null-terminated, point to C
    // strings the caller keeps borrowed, and outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd,
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Replaces this process with the program at `path`. Returns only on failure. execve(2).
pub fn exec_path(path: &CStr, argv: &[CString], envp: &[CString]) -> io::Error {
    let (argv, envp) = (pointers(argv), pointers(envp));
    // SAFETY: `path` is a C string; both vectors are null-terminated, point to C strings the
    // caller keeps borrowed, and outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Makes a write to a closed pipe or beyond a file size limit fail with an error, and not end the
/// process: ignores `SIGPIPE` and `SIGXFSZ`. pipe(7), setrlimit(2).
pub fn errors_instead_of_signals() -> io::Result<()> {
    for signal in [libc::SIGPIPE, libc::SIGXFSZ] {
        // SAFETY: an ignored signal runs no code.
        let previous = unsafe { libc::signal(signal, libc::SIG_IGN) };
        if previous == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Gives every signal its default action and unblocks all of them, as a program expects to start.
///
/// `CLONE_CLEAR_SIGHAND` leaves ignored signals ignored, and the Rust runtime ignores `SIGPIPE`.
/// sigaction(2); the two that cannot be changed are passed over.
pub fn default_signals() -> io::Result<()> {
    for signal in 1..=64 {
        if matches!(signal, libc::SIGKILL | libc::SIGSTOP | 32 | 33) {
            continue; // 32 and 33 belong to the C library's threads
        }
        // SAFETY: the default action runs no code of ours.
        let previous = unsafe { libc::signal(signal, libc::SIG_DFL) };
        if previous == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// A call that no jail may make, tried with arguments that create nothing even where it is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForbiddenCall {
    /// `unshare(CLONE_NEWUSER)`
    UnshareUser,
    /// `mount(NULL, NULL, NULL, 0, NULL)`
    Mount,
    /// `bpf(BPF_MAP_CREATE, NULL, 0)`
    Bpf,
    /// `io_uring_setup(1, NULL)`
    IoUring,
    /// `keyctl(KEYCTL_GET_KEYRING_ID, 0, 0)`
    Keyctl,
    /// `ptrace(PTRACE_ATTACH, 1)`: the jail's init.
    TraceInit,
    /// A system call number that no kernel has given out.
    Unknown,
}

/// Makes the call and returns its error number, 0 if it did not fail.
pub fn try_forbidden(call: ForbiddenCall) -> i32 {
    let (number, first, second) = match call {
        ForbiddenCall::UnshareUser => (libc::SYS_unshare, libc::CLONE_NEWUSER as u64, 0),
        ForbiddenCall::Mount => (libc::SYS_mount, 0, 0),
        ForbiddenCall::Bpf => (libc::SYS_bpf, 0, 0),
        ForbiddenCall::IoUring => (libc::SYS_io_uring_setup, 1, 0),
        ForbiddenCall::Keyctl => (libc::SYS_keyctl, 0, 0),
        ForbiddenCall::TraceInit => (libc::SYS_ptrace, u64::from(libc::PTRACE_ATTACH), 1),
        ForbiddenCall::Unknown => (0xfff, 0, 0),
    };
    let zero: libc::c_ulong = 0;
    // SAFETY: every pointer argument is null, so the kernel can write to no memory of ours, and
    // none of these calls makes an object from such arguments.
    let rc = unsafe { libc::syscall(number, first, second, zero, zero, zero) };
    if rc >= 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap_or(0) }
}

/// The Landlock ABI of the running kernel, 0 where Landlock is absent or switched off.
///
/// landlock_create_ruleset(2), `LANDLOCK_CREATE_RULESET_VERSION`.
pub fn landlock_abi() -> u8 {
    const VERSION: libc::c_uint = 1;
    let (none, zero) = (std::ptr::null::<libc::c_void>(), 0usize);
    // SAFETY: a null attribute of size 0 with this flag asks for a number and makes nothing.
    let rc = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, zero, VERSION) };
    u8::try_from(rc).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    /// Says to this test that it is the process that panics, and whether it is to abort.
    const ROLE: &str = "STOCKADE_TEST_PANICS";

    #[test]
    fn a_panic_ends_the_process_although_it_could_unwind() {
        if let Some(role) = std::env::var_os(ROLE) {
            if role == "aborts" {
                super::abort_on_panic();
            }
            let caught = std::panic::catch_unwind(|| panic!("planted words"));
            std::process::exit(if caught.is_err() { 7 } else { 8 });
        }
        let run = |role| {
            let name = "sys::process::tests::a_panic_ends_the_process_although_it_could_unwind";
            let this = std::env::current_exe().expect("a test has a path");
            let arguments = [name, "--exact", "--nocapture"];
            Command::new(this).args(arguments).env(ROLE, role).output().expect("it starts")
        };
        let aborted = run("aborts");
        assert_eq!(aborted.status.signal(), Some(libc::SIGABRT));
        assert!(String::from_utf8_lossy(&aborted.stderr).contains("planted words"));
        assert_eq!(run("unwinds").status.code(), Some(7), "control");
    }
}
