//! Session keyrings.

use std::io;

/// Replaces the session keyring of this process with a new, empty, nameless one.
///
/// # Errors
/// `ENOSYS` where the kernel has no key service. keyctl_join_session_keyring(3).
pub fn join_anonymous_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    let no_name = std::ptr::null::<libc::c_char>();
    // SAFETY: a null name asks for an anonymous keyring; no memory is passed.
    let rc = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, no_name) };
    if rc >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
