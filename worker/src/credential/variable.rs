//! The key in `ANTHROPIC_ENVIRONMENT_KEY`: taken out of the environment for good.
//!
//! Removing the variable would not be enough. What a process was started with stays readable in
//! `/proc/PID/environ` for as long as it lives. So the value goes into a sealed memory file, and this
//! program executes itself anew, without the variable and with the file's descriptor; from then on
//! neither this process nor any that it starts has ever had the key in its environment.

use std::ffi::{OsStr, OsString};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use secrecy::SecretString;
use stockade_runtime::sys;
use zeroize::Zeroizing;

use super::error::KeyError;
use super::file;

/// The official worker's name for it (AUTH-1).
pub const KEY: &str = "ANTHROPIC_ENVIRONMENT_KEY";
/// Where the next execution finds the memory file: a descriptor number, no secret.
const DESCRIPTOR: &str = "STOCKADE_KEY_DESCRIPTOR";

/// Whether the variable is set, or was before [`hide`].
pub fn is_given(environment: impl Fn(&str) -> Option<OsString>) -> bool {
    let key = environment(KEY).filter(|value| !value.is_empty());
    key.is_some() || environment(DESCRIPTOR).is_some()
}

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Executes this program anew without the variable, if the variable is set. Call before anything is
/// opened or started: nothing survives. Returns if there is nothing to hide.
///
/// # Errors
/// [`KeyError::Hide`] if the kernel refuses; [`KeyError::Empty`] for an empty value (AUTH-11).
pub fn hide() -> Result<(), KeyError> {
    let Some(value) = std::env::var_os(KEY) else {
        if std::env::var_os(DESCRIPTOR).is_some() {
            set_process_name("worker");
        }
        return Ok(());
    };
    if value.is_empty() {
        return Err(KeyError::Empty { from: KEY.to_owned() });
    }
    let memory = hidden(&value).map_err(hide_failed)?;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("worker"));
    let error = Command::new("/proc/self/exe")
        .arg0(name)
        .args(arguments)
        .env_remove(KEY)
        .env(DESCRIPTOR, memory.as_raw_fd().to_string())
        .exec();
    Err(hide_failed(error))
}

fn hide_failed(error: std::io::Error) -> KeyError {
    KeyError::Hide { errno: error.raw_os_error().unwrap_or(0) }
}

/// A memory file with this content, which nobody can change and which survives an exec.
fn hidden(value: &OsStr) -> std::io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create("environment-key", MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(memory);
    file.write_all(value.as_bytes())?;
    let seals = SealFlags::SEAL | SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Sets the name that `ps` shows: after an exec of `/proc/self/exe` it would be `exe`.
pub(super) fn set_process_name(name: &str) {
    // Nothing depends on it.
    let _unnamed = std::fs::write("/proc/self/comm", name);
}

/// The value that [`hide`] put away, if there was one. The memory file is gone afterwards.
///
/// # Errors
/// The outer one if the descriptor is not what `hide` left; the inner one if the value is no key.
pub fn take() -> Result<Option<Result<SecretString, KeyError>>, KeyError> {
    let Some(number) = std::env::var_os(DESCRIPTOR) else { return Ok(None) };
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(None);
    }
    let number = number.to_str().and_then(|text| text.parse::<i32>().ok()).filter(|fd| *fd > 2);
    let bad = || KeyError::Hide { errno: rustix::io::Errno::BADF.raw_os_error() };
    let memory = sys::adopt_sealed(number.ok_or_else(bad)?).map_err(hide_failed)?;
    let mut file = std::fs::File::from(memory);
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))
        .map_err(|errno| hide_failed(errno.into()))?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(file::BYTES_MAX as usize + 1));
    (&mut file).take(file::BYTES_MAX + 1).read_to_end(&mut bytes).map_err(hide_failed)?;
    Ok(Some(file::parse(&bytes, KEY)))
}
