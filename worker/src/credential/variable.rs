//! Secrets in variables such as `ANTHROPIC_ENVIRONMENT_KEY`: taken out of the environment for good.
//!
//! Removing a variable would not be enough. What a process was started with stays readable in
//! `/proc/PID/environ` for as long as it lives. So the values go into sealed memory files, and this
//! program executes itself anew, without the variables and with the files' descriptors; from then on
//! neither this process nor any that it starts has ever had them in its environment.

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

use super::error::{KeyError, Secret};
use super::file;

/// A variable that is hidden, and where the next execution finds its memory file: a descriptor
/// number, no secret.
struct Hidden {
    secret: Secret,
    descriptor: &'static str,
    taken: AtomicBool,
}

static HIDDEN: [Hidden; 3] = [
    Hidden::new(Secret::EnvironmentKey, "STOCKADE_KEY_DESCRIPTOR"),
    Hidden::new(Secret::WorkItem, "STOCKADE_WORK_SECRET_DESCRIPTOR"),
    Hidden::new(Secret::WebhookKey, "STOCKADE_WEBHOOK_KEY_DESCRIPTOR"),
];

/// Whether the environment key's variable is set, or was before [`hide`].
pub fn is_given(environment: impl Fn(&str) -> Option<OsString>) -> bool {
    let key = environment(Secret::EnvironmentKey.variable()).filter(|value| !value.is_empty());
    key.is_some() || environment(HIDDEN[0].descriptor).is_some()
}

impl Hidden {
    const fn new(secret: Secret, descriptor: &'static str) -> Hidden {
        Hidden { secret, descriptor, taken: AtomicBool::new(false) }
    }
}

/// What an empty `ANTHROPIC_ENVIRONMENT_KEY` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmptyKey {
    /// A mistake (AUTH-11).
    Refused,
    /// No key (WRUN-1).
    Absent,
}

/// Names of the variables by which this program finds what it put away. No other program, and no
/// other execution of this one, has a use for them.
pub fn descriptor_names() -> impl Iterator<Item = &'static str> {
    HIDDEN.iter().map(|hidden| hidden.descriptor)
}

/// Executes this program anew without the variables, if one of them is set. Call before anything is
/// opened or started: nothing survives. Returns if there is nothing to hide.
///
/// # Errors
/// [`KeyError::Hide`] if the kernel refuses; [`KeyError::Empty`] for an empty key where that is a
/// mistake.
pub fn hide(empty_key: EmptyKey) -> Result<(), KeyError> {
    let mut found = Vec::new();
    for hidden in &HIDDEN {
        let (what, name) = (hidden.secret, hidden.secret.variable());
        let Some(value) = std::env::var_os(name) else { continue };
        if !value.is_empty() {
            found.push((hidden, memory_file(&value).map_err(hide_failed)?));
        } else if what == Secret::EnvironmentKey && empty_key == EmptyKey::Refused {
            return Err(KeyError::Empty { what, from: name.to_owned() });
        }
    }
    if found.is_empty() {
        if descriptor_names().any(|name| std::env::var_os(name).is_some()) {
            set_process_name("worker");
        }
        return Ok(());
    }
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("worker"));
    let mut again = Command::new("/proc/self/exe");
    again.arg0(name).args(arguments);
    for (hidden, memory) in &found {
        again.env_remove(hidden.secret.variable());
        again.env(hidden.descriptor, memory.as_raw_fd().to_string());
    }
    Err(hide_failed(again.exec()))
}

fn hide_failed(error: std::io::Error) -> KeyError {
    KeyError::Hide { errno: error.raw_os_error().unwrap_or(0) }
}

/// A memory file with this content, which nobody can change and which survives an exec.
fn memory_file(value: &OsStr) -> std::io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create("environment-key", MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(memory);
    file.write_all(value.as_bytes())?;
    let seals = SealFlags::SEAL | SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Sets the name that `ps` shows: after an exec of `/proc/self/exe` it would be `exe`.
pub fn set_process_name(name: &str) {
    // Nothing depends on it.
    let _unnamed = std::fs::write("/proc/self/comm", name);
}

/// The value that [`hide`] put away, if there was one. The memory file is gone afterwards.
///
/// # Errors
/// The outer one if the descriptor is not what `hide` left; the inner one if the value is no key.
pub fn take(secret: Secret) -> Result<Option<Result<SecretString, KeyError>>, KeyError> {
    let Some(hidden) = HIDDEN.iter().find(|hidden| hidden.secret == secret) else {
        return Ok(None);
    };
    let Some(number) = std::env::var_os(hidden.descriptor) else { return Ok(None) };
    if hidden.taken.swap(true, Ordering::SeqCst) {
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
    Ok(Some(file::parse(secret, &bytes, secret.variable())))
}

/// Takes and forgets what no command that runs now has a use for: no descriptor of it stays open.
///
/// # Errors
/// As the outer one of [`take`].
pub fn forget_others(wanted: &[Secret]) -> Result<(), KeyError> {
    for hidden in HIDDEN.iter().filter(|hidden| !wanted.contains(&hidden.secret)) {
        take(hidden.secret)?;
    }
    Ok(())
}
