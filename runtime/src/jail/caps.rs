//! Linux capabilities. The only file that names the caps crate.
//!
//! Runs in init and in the payload, each in its own user namespace, after the user ids are set:
//! what is dropped here cannot be used by the steps that follow.

use std::io;

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};
use rustix::thread::CapabilitiesSecureBits as SecureBits;

/// Every bit that makes user 0 special is off, and none can be changed again.
const LOCKED: SecureBits = SecureBits::NO_ROOT
    .union(SecureBits::NO_ROOT_LOCKED)
    .union(SecureBits::NO_SETUID_FIXUP)
    .union(SecureBits::NO_SETUID_FIXUP_LOCKED)
    .union(SecureBits::KEEP_CAPS_LOCKED)
    .union(SecureBits::NO_CAP_AMBIENT_RAISE)
    .union(SecureBits::NO_CAP_AMBIENT_RAISE_LOCKED);

/// Empties all five capability sets, locks the securebits, and reads everything back.
///
/// # Errors
/// `EPERM` if the kernel refuses, or if something is left when read back. capabilities(7).
pub(crate) fn drop_all() -> io::Result<()> {
    lock()?;
    empty()
}

/// As [`drop_all`], and makes `id` all user and group ids of the process.
///
/// The securebits are locked in between: they stop the change of ids from taking the capabilities
/// that the last step needs.
pub(crate) fn drop_all_and_become(id: u32) -> io::Result<()> {
    lock()?;
    change_ids(id)?;
    empty()
}

/// As [`drop_all_and_become`], but keeps what a change of ids needs. For a process in a user
/// namespace that maps nothing but the ids it may take and owns no other namespace.
pub(crate) fn keep_change_of_ids_and_become(id: u32) -> io::Result<()> {
    lock()?;
    change_ids(id)?;
    let kept = CapsHashSet::from([Capability::CAP_SETUID, Capability::CAP_SETGID]);
    caps::clear(None, CapSet::Inheritable).map_err(refused)?;
    caps::set(None, CapSet::Effective, &kept).map_err(refused)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(refused)?;
    verify(&kept)
}

/// The second half of [`drop_all_and_become`], for a process whose securebits are locked already.
pub(crate) fn become_and_empty(id: u32) -> io::Result<()> {
    change_ids(id)?;
    empty()
}

fn change_ids(id: u32) -> io::Result<()> {
    let gid = nix::unistd::Gid::from_raw(id);
    nix::unistd::setresgid(gid, gid, gid)?;
    let uid = nix::unistd::Uid::from_raw(id);
    nix::unistd::setresuid(uid, uid, uid)?;
    Ok(())
}

/// Nothing can be gained from here on.
fn lock() -> io::Result<()> {
    for capability in caps::all() {
        // Refused for a number this kernel does not know, and that is then not in the set.
        if caps::drop(None, CapSet::Bounding, capability).is_err()
            && caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false)
        {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(refused)?;
    rustix::thread::set_capabilities_secure_bits(LOCKED)?;
    Ok(())
}

/// Nothing is left.
fn empty() -> io::Result<()> {
    caps::clear(None, CapSet::Inheritable).map_err(refused)?;
    caps::clear(None, CapSet::Effective).map_err(refused)?;
    caps::clear(None, CapSet::Permitted).map_err(refused)?;
    verify(&CapsHashSet::new())
}

/// Control runs only (the policy switched the layer off): keeps every capability of the payload's
/// own user namespace across exec, so that tests can show that they are good for nothing (INV-5).
pub(crate) fn keep_all() -> io::Result<()> {
    for capability in caps::runtime::thread_all_supported() {
        caps::raise(None, CapSet::Inheritable, capability).map_err(refused)?;
        caps::raise(None, CapSet::Ambient, capability).map_err(refused)?;
    }
    Ok(())
}

/// Asserts that `kept` is all that can be used, and that nothing can be gained or handed on.
fn verify(kept: &CapsHashSet) -> io::Result<()> {
    let nothing = CapsHashSet::new();
    let sets = [
        (CapSet::Permitted, kept),
        (CapSet::Effective, kept),
        (CapSet::Inheritable, &nothing),
        (CapSet::Ambient, &nothing),
        (CapSet::Bounding, &nothing),
    ];
    for (set, want) in sets {
        if caps::read(None, set).map_err(refused)? != *want {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
    }
    if rustix::thread::capabilities_secure_bits()? != LOCKED {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    Ok(())
}

fn refused(_: CapsError) -> io::Error {
    // The crate keeps the error number in text only; the kernel's answer to these calls is EPERM.
    io::Error::from_raw_os_error(libc::EPERM)
}
