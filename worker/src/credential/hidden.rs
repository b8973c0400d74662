//! Secrets in variables such as `ANTHROPIC_ENVIRONMENT_KEY`: taken out of the environment for good.
//!
//! Removing a variable would not be enough. What a process was started with stays readable in
//! `/proc/PID/environ` for as long as it lives. So the values go into one sealed memory file, and this
//! program executes itself anew, without the variables and with the file's descriptor; from then on
//! neither this process nor any that it starts has ever had them in its environment. What was set is
//! known by name; the values are taken when the launcher has been split off.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use secrecy::{ExposeSecret as _, SecretSlice, SecretString};
use stockade_runtime::sys;
use zeroize::Zeroizing;

use super::error::{KeyError, Secret};
use super::file;

/// Credentials of the worker itself.
const OWN: [Secret; 3] = [Secret::EnvironmentKey, Secret::WorkItem, Secret::WebhookKey];
/// Secrets of others: of AWS, of its platform, of a collector of traces. No jail gets any of them,
/// whatever its policy passes on.
const OTHERS: [&str; 9] = [
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
/// No other program, and no other execution of this one, has a use for it.
pub const DESCRIPTOR: &str = "STOCKADE_HIDDEN_DESCRIPTOR";
/// Most bytes of all values, with their names.
const BYTES_MAX: u64 = 1 << 20;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// What an empty `ANTHROPIC_ENVIRONMENT_KEY` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmptyKey {
    /// A mistake (AUTH-11).
    Refused,
    /// No key (WRUN-1).
    Absent,
}

/// Executes this program anew without the variables, if one of them is set and not empty. Call before
/// anything is opened or started: nothing survives. Returns if there is nothing to hide.
///
/// # Errors
/// [`KeyError::Empty`] for an empty key where that is a mistake; [`KeyError::Hide`] if all values
/// are too long, or the kernel refuses.
pub fn hide(empty_key: EmptyKey) -> Result<(), KeyError> {
    let what = Secret::EnvironmentKey;
    let empty = std::env::var_os(what.variable()).is_some_and(|value| value.is_empty());
    if empty && empty_key == EmptyKey::Refused {
        return Err(KeyError::Empty { what, from: what.variable().to_owned() });
    }
    let names = OWN.map(Secret::variable).into_iter().chain(OTHERS);
    let given = names.filter_map(|name| Some((name, std::env::var_os(name)?)));
    let set: Vec<(&str, OsString)> = given.filter(|(_, value)| !value.is_empty()).collect();
    if set.is_empty() {
        if std::env::var_os(DESCRIPTOR).is_some() {
            set_process_name("worker");
        }
        return Ok(());
    }
    let memory = memory_file(&set).map_err(failed)?;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("worker"));
    let mut again = Command::new("/proc/self/exe");
    again.arg0(name).args(arguments);
    for (name, _) in &set {
        again.env_remove(name);
    }
    let names = set.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(",");
    again.env(DESCRIPTOR, format!("{}:{names}", memory.as_raw_fd()));
    Err(failed(again.exec()))
}

/// Whether a variable of this name is a secret that no jail gets, whatever its policy passes on.
pub fn is_secret(name: &str) -> bool {
    OWN.iter().any(|own| own.variable() == name) || OTHERS.contains(&name)
}

/// Whether a variable was set, and not empty, before [`hide`].
pub fn was_set(name: &str) -> bool {
    is_noted(std::env::var_os(DESCRIPTOR).as_deref(), name)
}

/// Whether the environment key's variable is set in `environment`, or was before [`hide`].
pub fn key_is_given(environment: impl Fn(&str) -> Option<OsString>) -> bool {
    let name = Secret::EnvironmentKey.variable();
    environment(name).is_some_and(|value| !value.is_empty())
        || is_noted(environment(DESCRIPTOR).as_deref(), name)
}

fn is_noted(noted: Option<&OsStr>, name: &str) -> bool {
    let names = noted.and_then(OsStr::to_str).and_then(|noted| noted.split_once(':'));
    names.is_some_and(|(_, names)| names.split(',').any(|known| known == name))
}

/// The values that were hidden.
#[derive(Default)]
pub struct Hidden {
    own: BTreeMap<&'static str, SecretSlice<u8>>,
    /// Those of others.
    pub others: HiddenVariables,
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.own.keys()).entries(self.others.0.keys()).finish()
    }
}

impl Hidden {
    /// A credential of the worker, if its variable was set; checked, and gone from here.
    pub fn take(&mut self, what: Secret) -> Option<Result<SecretString, KeyError>> {
        let value = self.own.remove(what.variable())?;
        Some(file::parse(what, value.expose_secret(), what.variable()))
    }
}

/// Values of others that were hidden.
#[derive(Debug, Default, Clone)]
pub struct HiddenVariables(BTreeMap<&'static str, SecretString>);

impl HiddenVariables {
    /// What this process has in its environment, where nothing was hidden: programs of others.
    pub fn of_environment() -> HiddenVariables {
        let value = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let pair = |name| Some((name, SecretString::from(value(name)?)));
        HiddenVariables(OTHERS.into_iter().filter_map(pair).collect())
    }

    /// All of them, for a program that is to have the environment that this one was started with.
    pub fn all(&self) -> impl Iterator<Item = (&str, &SecretString)> {
        self.0.iter().map(|(name, value)| (*name, value))
    }

    /// The value of a variable, if it was set and not empty.
    pub fn get(&self, name: &str) -> Option<&SecretString> {
        self.0.get(name)
    }
}

/// The values that [`hide`] put away. The memory file is gone afterwards; a second call finds nothing.
///
/// # Errors
/// The descriptor is not what `hide` left, or a value of others is no text.
pub fn take() -> Result<Hidden, KeyError> {
    let Some(noted) = std::env::var_os(DESCRIPTOR) else { return Ok(Hidden::default()) };
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Hidden::default());
    }
    let number = noted.to_str().and_then(|noted| noted.split_once(':'));
    let number = number.and_then(|(number, _)| number.parse::<i32>().ok()).filter(|fd| *fd > 2);
    let bad = || failed(rustix::io::Errno::BADF.into());
    let memory = sys::adopt_sealed(number.ok_or_else(bad)?).map_err(failed)?;
    let mut file = std::fs::File::from(memory);
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))
        .map_err(|errno| failed(errno.into()))?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES_MAX as usize));
    (&mut file).take(BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    parse(&bytes)
}

/// Of pairs as `/proc/PID/environ` has them.
fn parse(bytes: &[u8]) -> Result<Hidden, KeyError> {
    let mut hidden = Hidden::default();
    for pair in bytes.split(|byte| *byte == 0).filter(|pair| !pair.is_empty()) {
        let at = pair.iter().position(|byte| *byte == b'=');
        let (name, value) = pair.split_at(at.unwrap_or(pair.len()));
        let value = value.get(1..).unwrap_or_default();
        let is = |known: &str| known.as_bytes() == name;
        if let Some(own) = OWN.iter().find(|own| is(own.variable())) {
            hidden.own.insert(own.variable(), SecretSlice::from(value.to_vec()));
        } else if let Some(name) = OTHERS.into_iter().find(|other| is(other)) {
            let text = std::str::from_utf8(value);
            let text = text.map_err(|_| KeyError::HiddenText { name: name.to_owned() })?;
            hidden.others.0.insert(name, SecretString::from(text));
        }
    }
    Ok(hidden)
}

fn failed(error: std::io::Error) -> KeyError {
    KeyError::Hide { errno: error.raw_os_error().unwrap_or(0) }
}

/// A memory file with these pairs, which nobody can change and which survives an exec.
fn memory_file(set: &[(&str, OsString)]) -> std::io::Result<OwnedFd> {
    let length = set.iter().map(|(name, value)| name.len() + value.len() + 2).sum::<usize>();
    if length as u64 > BYTES_MAX {
        return Err(rustix::io::Errno::TOOBIG.into());
    }
    // Never moved, so nothing of it stays behind in freed memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(length));
    for (name, value) in set {
        for part in [name.as_bytes(), b"=", value.as_bytes(), b"\0"] {
            bytes.extend_from_slice(part);
        }
    }
    let memory = rustix::fs::memfd_create("hidden-variables", MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(memory);
    file.write_all(&bytes)?;
    let seals = SealFlags::SEAL | SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Sets the name that `ps` shows: after an exec of `/proc/self/exe` it would be `exe`.
pub fn set_process_name(name: &str) {
    // Nothing depends on it.
    let _unnamed = std::fs::write("/proc/self/comm", name);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(set: &[(&str, &[u8])]) -> Result<Hidden, KeyError> {
        let set = set.iter().map(|(name, value)| (*name, OsStr::from_bytes(value).to_owned()));
        let memory = memory_file(&set.collect::<Vec<_>>()).map_err(failed)?;
        let mut bytes = Vec::new();
        let mut file = std::fs::File::from(memory);
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).expect("a file");
        file.read_to_end(&mut bytes).expect("read");
        file.write_all(b"x").expect_err("it is sealed");
        parse(&bytes)
    }

    #[test]
    fn every_value_comes_out_as_it_went_in_and_none_is_shown() {
        let key = Secret::EnvironmentKey;
        let mut found = hidden(&[
            (key.variable(), b"planted-key"),
            ("AWS_SECRET_ACCESS_KEY", b"planted=secret/x"),
            ("ANTHROPIC_WORK_SECRET", b"planted\xff"),
        ])
        .expect("all are known");
        assert!(!format!("{found:?} {:?}", found.others).contains("planted"));
        let taken = found.take(key).expect("it was set").expect("it is a key");
        assert_eq!(taken.expose_secret(), "planted-key");
        assert!(found.take(key).is_none() && found.take(Secret::WebhookKey).is_none());
        let other = found.others.get("AWS_SECRET_ACCESS_KEY").expect("it was set");
        assert_eq!(other.expose_secret(), "planted=secret/x");
        assert_eq!(found.others.all().count(), 1, "credentials of the worker are none of others");
        let wrong = found.take(Secret::WorkItem).expect("it was set").expect_err("no key");
        assert!(matches!(wrong, KeyError::Characters { at: 8, .. }));
    }

    #[test]
    fn what_cannot_be_passed_on_is_refused_by_name() {
        let error = hidden(&[("AWS_SESSION_TOKEN", b"planted\xff")]).expect_err("no text");
        assert!(error.to_string().contains("AWS_SESSION_TOKEN"), "{error}");
        assert!(!error.to_string().contains("planted"), "{error}");
        let long = vec![b'x'; BYTES_MAX as usize];
        let error = hidden(&[("AWS_SESSION_TOKEN", &long)]).expect_err("too long");
        assert_eq!(error, KeyError::Hide { errno: rustix::io::Errno::TOOBIG.raw_os_error() });
    }

    #[test]
    fn a_key_is_given_by_its_variable_or_by_what_was_noted_of_it() {
        let with = |name: &'static str, value: &'static str| {
            move |asked: &str| (asked == name).then(|| OsString::from(value))
        };
        assert!(key_is_given(with("ANTHROPIC_ENVIRONMENT_KEY", "k")));
        assert!(key_is_given(with(DESCRIPTOR, "3:AWS_ACCESS_KEY_ID,ANTHROPIC_ENVIRONMENT_KEY")));
        assert!(!key_is_given(with("ANTHROPIC_ENVIRONMENT_KEY", "")));
        assert!(!key_is_given(with(DESCRIPTOR, "3:AWS_ACCESS_KEY_ID")));
        assert!(!key_is_given(with(DESCRIPTOR, "ANTHROPIC_ENVIRONMENT_KEY")));
    }
}
