//! Per-process limits (getrlimit(2)). Soft and hard limit are the same, so the payload cannot
//! raise them; where the worker's own hard limit is lower already, that one stays.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::spec::Rlimit;

/// Lowers the calling process's limit and reads it back.
///
/// # Errors
/// What setrlimit(2) says, or `EPERM` if the limit read back is higher than asked.
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
    };
    let (_, hard) = getrlimit(resource)?;
    let value = value.min(hard);
    setrlimit(resource, value, value)?;
    let (soft, hard) = getrlimit(resource)?;
    if soft.max(hard) > value {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    Ok(())
}
