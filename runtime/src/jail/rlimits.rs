//! Per-process limits (getrlimit(2)). Soft and hard limit are the same, so the payload cannot
//! raise them; where the worker's own hard limit is lower already, that one stays. Only CPU time
//! has a second between the two: the signal at the soft limit, SIGXCPU, says what happened, and
//! SIGKILL follows for a process that does not listen.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::spec::Rlimit;

/// Lowers the calling process's limit and reads it back.
///
/// # Errors
/// What setrlimit(2) says, or `EPERM` if what is read back is not what was asked.
pub(crate) fn apply(limit: Rlimit, value: u64) -> io::Result<()> {
    let resource = match limit {
        Rlimit::OpenFiles => Resource::RLIMIT_NOFILE,
        Rlimit::Processes => Resource::RLIMIT_NPROC,
        Rlimit::Data => Resource::RLIMIT_DATA,
        Rlimit::CpuSeconds => Resource::RLIMIT_CPU,
        Rlimit::LockedMemory => Resource::RLIMIT_MEMLOCK,
        Rlimit::MessageQueues => Resource::RLIMIT_MSGQUEUE,
        Rlimit::PendingSignals => Resource::RLIMIT_SIGPENDING,
        Rlimit::Core => Resource::RLIMIT_CORE,
        Rlimit::FileSize => Resource::RLIMIT_FSIZE,
    };
    let (_, highest) = getrlimit(resource)?;
    let grace = if limit == Rlimit::CpuSeconds { 1 } else { 0 };
    let hard = value.saturating_add(grace).min(highest);
    setrlimit(resource, value.min(hard), hard)?;
    if getrlimit(resource)? != (value.min(hard), hard) {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    Ok(())
}
