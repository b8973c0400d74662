//! Secrets of others that come by the environment: of AWS, of its platform, of a collector of traces.
//! Taken out of the environment for good, in the way of [`super::variable`].
//!
//! All of them travel in one sealed memory file, as JSON, past one execution of this program. What was
//! set is known from then on by name; the values are taken when the launcher has been split off.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use secrecy::SecretString;
use stockade_runtime::sys;
use zeroize::Zeroizing;

use super::error::KeyError;

/// What is hidden wherever it is set. No jail gets any of them, whatever its policy passes on.
pub const NAMES: [&str; 9] = [
    "ANTHROPIC_AWS_API_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_BEARER_TOKEN_BEDROCK",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "SECRET_ACCESS_KEY",
];
/// Where the next execution finds the memory file, and what is in it: a descriptor number and names.
pub const DESCRIPTOR: &str = "STOCKADE_HIDDEN_DESCRIPTOR";
/// Most bytes of all values.
const BYTES_MAX: u64 = 1 << 20;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The values that were hidden.
#[derive(Debug, Default, Clone)]
pub struct HiddenVariables(BTreeMap<String, SecretString>);

impl HiddenVariables {
    /// All of them, for a program that is to have the environment that this one was started with.
    pub fn all(&self) -> impl Iterator<Item = (&str, &SecretString)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The value of a variable of [`NAMES`], if it was set and not empty.
    pub fn get(&self, name: &str) -> Option<&SecretString> {
        self.0.get(name)
    }
}

/// Executes this program anew without these variables, if one of them is set and not empty. Call
/// before anything is opened or started: nothing survives. Returns if there is nothing to hide.
///
/// # Errors
/// [`KeyError::HideOthers`] if a value is no text, all are too long, or the kernel refuses.
pub fn hide() -> Result<(), KeyError> {
    let given = |name: &&'static str| Some((*name, std::env::var_os(name)?));
    let mut set: Vec<(&str, OsString)> = NAMES.iter().filter_map(given).collect();
    set.retain(|(_, value)| !value.is_empty());
    if set.is_empty() {
        if std::env::var_os(DESCRIPTOR).is_some() {
            super::variable::set_process_name("worker");
        }
        return Ok(());
    }
    let memory = memory_file(&set)?;
    let names = set.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(",");
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("worker"));
    let mut again = Command::new("/proc/self/exe");
    again.arg0(name).args(arguments);
    for (name, _) in &set {
        again.env_remove(name);
    }
    again.env(DESCRIPTOR, format!("{}:{names}", memory.as_raw_fd()));
    Err(failed(again.exec()))
}

/// Whether a variable was set, and not empty, before [`hide`].
pub fn was_set(name: &str) -> bool {
    let Ok(noted) = std::env::var(DESCRIPTOR) else { return false };
    noted.split_once(':').is_some_and(|(_, names)| names.split(',').any(|known| known == name))
}

/// The values that [`hide`] put away. The memory file is gone afterwards; a second call finds nothing.
///
/// # Errors
/// The descriptor is not what `hide` left.
pub fn take() -> Result<HiddenVariables, KeyError> {
    let Some(noted) = std::env::var_os(DESCRIPTOR) else { return Ok(HiddenVariables::default()) };
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(HiddenVariables::default());
    }
    let number = noted.to_str().and_then(|noted| noted.split_once(':'));
    let number = number.and_then(|(number, _)| number.parse::<i32>().ok()).filter(|fd| *fd > 2);
    let bad = || KeyError::HideOthers { errno: rustix::io::Errno::BADF.raw_os_error() };
    let memory = sys::adopt_sealed(number.ok_or_else(bad)?).map_err(failed)?;
    let mut file = std::fs::File::from(memory);
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))
        .map_err(|errno| failed(errno.into()))?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES_MAX as usize));
    (&mut file).take(BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(HiddenVariables(serde_json::from_slice(&bytes).map_err(|_| bad())?))
}

fn failed(error: std::io::Error) -> KeyError {
    KeyError::HideOthers { errno: error.raw_os_error().unwrap_or(0) }
}

/// A memory file with these values, which nobody can change and which survives an exec.
fn memory_file(set: &[(&str, OsString)]) -> Result<OwnedFd, KeyError> {
    let invalid = || failed(rustix::io::Errno::INVAL.into());
    let mut values = BTreeMap::new();
    for (name, value) in set {
        values.insert(*name, value.to_str().ok_or_else(invalid)?);
    }
    let bytes = Zeroizing::new(serde_json::to_vec(&values).map_err(|_| invalid())?);
    if bytes.len() as u64 >= BYTES_MAX {
        return Err(failed(rustix::io::Errno::TOOBIG.into()));
    }
    let memory = rustix::fs::memfd_create("hidden-variables", MemfdFlags::ALLOW_SEALING);
    let mut file = std::fs::File::from(memory.map_err(|errno| failed(errno.into()))?);
    file.write_all(&bytes).map_err(failed)?;
    let seals = SealFlags::SEAL | SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(|errno| failed(errno.into()))?;
    Ok(file.into())
}
