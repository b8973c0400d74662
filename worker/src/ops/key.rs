//! The key of `worker queue`: which kind a command wants, which is at hand, and whether it may be
//! used here.
//!
//! An API key of an organization is worth more than every session of a host together: commands that
//! an agent runs must never be able to read it (AUTH-9). So a command that uses one refuses a host
//! with an environment key, or with a running worker; and one that uses an environment key refuses a
//! host with an organization's.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use crate::credential::file::{self, Trust};
use crate::credential::{KeyError, KeySource, Secret, hidden, refuse_organization_keys};
use crate::exit::Exit;
use crate::queue::OperatorKey;

/// The organization's API key, as all tools of the vendor call it.
pub const VARIABLE: &str = "ANTHROPIC_API_KEY";
/// How environment keys begin (AUTH-1).
const ENVIRONMENT: &str = "sk-ant-oat";

/// What a command can use (AUTH-12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Organization,
    Environment,
    Either,
}

/// What there is on this host.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// `--api-key-file`
    pub api_key_file: Option<PathBuf>,
    /// `ANTHROPIC_API_KEY`, if it is not empty.
    pub api_key: Option<SecretString>,
    /// `--environment-key-file`
    pub environment_key_file: Option<PathBuf>,
    /// A variable or a systemd credential, by its name.
    pub environment_key: Option<&'static str>,
    /// The audit log of a worker that runs.
    pub worker: Option<PathBuf>,
}

/// Why there is no key to use. No text holds a byte of one.
#[derive(Debug, thiserror::Error)]
pub enum OpsKeyError {
    #[error("no API key of the organization given")]
    NoApiKey,
    #[error("no environment key given")]
    NoEnvironmentKey,
    #[error("no key given")]
    NoKey,
    #[error("cannot list work items with an API key of the organization: it is not accepted there")]
    WrongKind,
    #[error(
        "refused: an API key of the organization and an environment key ({which}) are both here"
    )]
    Both { which: String },
    #[error("refused: an environment key ({which}) is here, so sessions may run on this host")]
    WorkerHost { which: String },
    #[error("refused: a worker runs on this host ({})", log.display())]
    WorkerRuns { log: PathBuf },
    #[error("refused: the API key file {from} has mode {mode:04o}, so others have access")]
    Mode { from: String, mode: u32 },
    #[error("refused: the API key file {from} belongs to user {owner}, not to root or you")]
    Owner { from: String, owner: u32 },
    #[error("cannot use the API key from {from}: it is an environment key")]
    IsEnvironmentKey { from: String },
    #[error("cannot use the API key from {from}: {reason}")]
    Unusable { from: String, reason: String },
    #[error(transparent)]
    Environment(#[from] KeyError),
}

impl OpsKeyError {
    /// What to do.
    pub fn hint(&self) -> String {
        let text = match self {
            Self::NoApiKey => {
                "name a file that only you can read: --api-key-file FILE; or set ANTHROPIC_API_KEY. \
                 Not on a host that runs sessions"
            }
            Self::NoEnvironmentKey | Self::WrongKind => {
                "use an environment key, on a worker's host or elsewhere: --environment-key-file FILE"
            }
            Self::NoKey => {
                "use --environment-key-file FILE on a worker's host, --api-key-file FILE elsewhere"
            }
            Self::Both { .. } => {
                "on a worker's host leave the API key away, and elsewhere the environment key; \
                 commands that an agent runs could read them"
            }
            Self::WorkerHost { .. } | Self::WorkerRuns { .. } => {
                "run this on another host, with --api-key-file FILE: commands that an agent runs here \
                 could read an API key"
            }
            Self::Mode { from, .. } => {
                return format!("chmod 600 {from}; if others had access, make a new key");
            }
            Self::Owner { from, .. } => return format!("chown root {from}; make a new key"),
            Self::IsEnvironmentKey { .. } => "this command wants an API key of the organization",
            Self::Unusable { .. } => "the file holds the key on one line and nothing else",
            Self::Environment(error) => return error.hint(),
        };
        text.to_owned()
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoApiKey | Self::NoEnvironmentKey | Self::NoKey | Self::WrongKind => Exit::Usage,
            Self::IsEnvironmentKey { .. } | Self::Unusable { .. } => Exit::Policy,
            Self::Environment(error) => error.exit(),
            _ => Exit::Refused,
        }
    }
}

impl Found {
    /// What the command line names and this host has.
    pub fn here(
        api_key_file: Option<PathBuf>,
        environment_key_file: Option<PathBuf>,
        environment: impl Fn(&str) -> Option<OsString>,
        credentials_directory: Option<&Path>,
        audit_logs: &[PathBuf],
    ) -> Found {
        let set = |name: &str| environment(name).filter(|value| !value.is_empty());
        let credential =
            credentials_directory.is_some_and(|dir| dir.join("environment-key").exists());
        let environment_key = match (hidden::key_is_given(&environment), credential) {
            (true, _) => Some(Secret::EnvironmentKey.variable()),
            (false, true) => Some("a systemd credential"),
            (false, false) => None,
        };
        let api_key = set(VARIABLE).and_then(|value| value.into_string().ok());
        Found {
            api_key_file,
            api_key: api_key.map(SecretString::from),
            environment_key_file,
            environment_key,
            worker: audit_logs.iter().find(|log| is_in_use(log)).cloned(),
        }
    }

    /// Which kind of key `wanted` gets.
    ///
    /// # Errors
    /// If there is none of it, or it must not be used here.
    pub fn choose(&self, wanted: Wanted) -> Result<Kind, OpsKeyError> {
        let organization = self.api_key_file.is_some() || self.api_key.is_some();
        let named = self.environment_key_file.as_ref().map(|file| file.display().to_string());
        let environment = named.or_else(|| self.environment_key.map(str::to_owned));
        match (organization, environment) {
            (true, Some(which)) => Err(OpsKeyError::Both { which }),
            (true, None) if wanted == Wanted::Environment => Err(OpsKeyError::WrongKind),
            (true, None) => match &self.worker {
                Some(log) => Err(OpsKeyError::WorkerRuns { log: log.clone() }),
                None => Ok(Kind::Organization),
            },
            (false, Some(which)) if wanted == Wanted::Organization => {
                Err(OpsKeyError::WorkerHost { which })
            }
            (false, Some(_)) => Ok(Kind::Environment),
            (false, None) => Err(match wanted {
                Wanted::Organization => OpsKeyError::NoApiKey,
                Wanted::Environment => OpsKeyError::NoEnvironmentKey,
                Wanted::Either => OpsKeyError::NoKey,
            }),
        }
    }

    /// Reads the key of this kind.
    ///
    /// # Errors
    /// If it cannot be read, others could have read it, or it is of the other kind.
    pub fn read(
        self,
        kind: Kind,
        credentials_directory: Option<&Path>,
    ) -> Result<OperatorKey, OpsKeyError> {
        match kind {
            Kind::Organization => {
                let key = match (&self.api_key_file, self.api_key) {
                    (Some(path), _) => {
                        let from = path.display().to_string();
                        let bytes = file::read_bytes(
                            Secret::OrganizationKey,
                            path,
                            Trust::Owner,
                            file::BYTES_MAX,
                        )
                        .map_err(|e| named(&from, e))?;
                        api_key(&bytes, &from)?
                    }
                    (None, Some(given)) => {
                        use secrecy::ExposeSecret as _;
                        api_key(given.expose_secret().as_bytes(), VARIABLE)?
                    }
                    (None, None) => return Err(OpsKeyError::NoApiKey),
                };
                Ok(OperatorKey::Organization(key))
            }
            Kind::Environment => {
                refuse_organization_keys(|name| std::env::var_os(name))?;
                let file = self.environment_key_file.as_deref();
                let source = KeySource::find(file, credentials_directory, &mut hidden::take()?)?;
                Ok(OperatorKey::Environment(source.read()?))
            }
        }
    }
}

/// Which key is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Organization,
    Environment,
}

/// What was wrong with the file of an API key, in words that are about one.
fn named(from: &str, error: KeyError) -> OpsKeyError {
    let from = from.to_owned();
    match error {
        KeyError::Mode { mode, .. } => OpsKeyError::Mode { from, mode },
        KeyError::Owner { owner, .. } => OpsKeyError::Owner { from, owner },
        KeyError::Read { errno, .. } => {
            let reason = io::Error::from_raw_os_error(errno).to_string();
            OpsKeyError::Unusable { from, reason }
        }
        KeyError::NotAFile { .. } => {
            OpsKeyError::Unusable { from, reason: "it is not a regular file".to_owned() }
        }
        KeyError::TooLong { max, .. } => {
            OpsKeyError::Unusable { from, reason: format!("longer than {max} bytes") }
        }
        other => OpsKeyError::Environment(other),
    }
}

/// One line of printable ASCII, and no environment key.
fn api_key(bytes: &[u8], from: &str) -> Result<SecretString, OpsKeyError> {
    let from = from.to_owned();
    let unusable = |reason: String| OpsKeyError::Unusable { from: from.clone(), reason };
    if bytes.len() as u64 > file::BYTES_MAX {
        return Err(unusable(format!("longer than {} bytes", file::BYTES_MAX)));
    }
    let bytes = bytes.trim_ascii_end();
    if bytes.is_empty() {
        return Err(unusable("it is empty".to_owned()));
    }
    if let Some(at) = bytes.iter().position(|byte| !byte.is_ascii_graphic()) {
        return Err(unusable(format!("byte {} is not a printable ASCII character", at + 1)));
    }
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    if text.starts_with(ENVIRONMENT) {
        return Err(OpsKeyError::IsEnvironmentKey { from });
    }
    Ok(SecretString::from(text))
}

/// Where workers write their audit logs if nothing else was said: as root, and as this user.
pub fn usual_audit_logs(environment: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let directory = |name| environment(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = directory("XDG_STATE_HOME")
        .or_else(|| Some(directory("HOME")?.join(".local/state")))
        .map(|state| state.join("stockade/audit.jsonl"));
    [Some(PathBuf::from("/var/log/stockade/audit.jsonl")), state].into_iter().flatten().collect()
}

/// A worker keeps its audit log locked for as long as it lives. Asked of the kernel's table, not by
/// trying: a worker that starts at this very moment must not find our lock.
fn is_in_use(log: &Path) -> bool {
    let Ok(about) = std::fs::metadata(log) else { return false };
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    is_locked(&locks, about.dev(), about.ino())
}

/// Whether `/proc/locks` (proc_locks(5)) has a flock(2) for writing of this file. File systems without
/// a device of their own show another number here than in stat(2); of those the inode must do.
fn is_locked(locks: &str, device: u64, inode: u64) -> bool {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    locks.lines().any(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let kind = [words.next(), words.next(), words.next()];
        if kind != [Some("FLOCK"), Some("ADVISORY"), Some("WRITE")] {
            return false;
        }
        let Some(place) = words.nth(1) else { return false };
        let parts: Vec<&str> = place.split(':').collect();
        let [a, b, number] = parts[..] else { return false };
        let hex = |text: &str| u32::from_str_radix(text, 16).ok();
        let same = (hex(a), hex(b)) == (Some(major), Some(minor)) || major == 0;
        same && number.parse() == Ok(inode)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt as _;

    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn each_command_gets_the_kind_of_key_that_it_may_use_and_never_both() {
        // AUTH-9, AUTH-12.
        let api = Found { api_key: Some("sk-ant-api03-x".into()), ..Found::default() };
        let key =
            Found { environment_key: Some(Secret::EnvironmentKey.variable()), ..Found::default() };
        let file = Found { environment_key_file: Some("/k".into()), ..Found::default() };
        let both =
            Found { environment_key: Some(Secret::EnvironmentKey.variable()), ..api.clone() };
        let live = Found { worker: Some("/log".into()), ..api.clone() };
        let none = Found::default();
        use Wanted as W;
        #[rustfmt::skip]
        let cases: &[(&Found, W, Result<Kind, Exit>)] = &[
            (&api,  W::Organization, Ok(Kind::Organization)),
            (&api,  W::Either,       Ok(Kind::Organization)),
            (&api,  W::Environment,  Err(Exit::Usage)),
            (&key,  W::Organization, Err(Exit::Refused)),
            (&key,  W::Either,       Ok(Kind::Environment)),
            (&key,  W::Environment,  Ok(Kind::Environment)),
            (&file, W::Organization, Err(Exit::Refused)),
            (&file, W::Environment,  Ok(Kind::Environment)),
            (&both, W::Organization, Err(Exit::Refused)),
            (&both, W::Either,       Err(Exit::Refused)),
            (&both, W::Environment,  Err(Exit::Refused)),
            (&live, W::Organization, Err(Exit::Refused)),
            (&live, W::Either,       Err(Exit::Refused)),
            (&none, W::Organization, Err(Exit::Usage)),
            (&none, W::Either,       Err(Exit::Usage)),
            (&none, W::Environment,  Err(Exit::Usage)),
        ];
        for (found, wanted, want) in cases {
            let got = found.choose(*wanted);
            if let Err(error) = &got {
                assert!(!error.hint().is_empty() && !error.to_string().contains("sk-ant-api03"));
            }
            assert_eq!(got.map_err(|error| error.exit()), *want, "{wanted:?} {found:?}");
        }
    }

    #[test]
    fn an_api_key_file_is_read_as_carefully_as_an_environment_key() {
        let place = tempfile::TempDir::new().expect("a directory");
        let path = place.path().join("key");
        let read = |text: &str, mode: u32| {
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
            let found = Found { api_key_file: Some(path.clone()), ..Found::default() };
            found.read(Kind::Organization, None)
        };
        match read("sk-ant-api03-x\n", 0o600) {
            Ok(OperatorKey::Organization(key)) => assert_eq!(key.expose_secret(), "sk-ant-api03-x"),
            other => panic!("{other:?}"),
        }
        for (text, mode, exit, want) in [
            ("sk-ant-api03-x", 0o640, Exit::Refused, "has mode 0640"),
            ("sk-ant-oat01-x", 0o600, Exit::Policy, "it is an environment key"),
            ("", 0o600, Exit::Policy, "it is empty"),
            ("a b", 0o600, Exit::Policy, "byte 2 is not"),
        ] {
            let error = read(text, mode).expect_err(want);
            assert_eq!(error.exit(), exit, "{error}");
            assert!(error.to_string().contains(want), "{error}");
        }
        let none = Found { api_key_file: Some("/nonexistent".into()), ..Found::default() };
        let error = none.read(Kind::Organization, None).expect_err("missing");
        assert!(error.to_string().contains("/nonexistent: No such file"), "{error}");
    }

    #[test]
    fn a_worker_that_runs_is_known_by_its_audit_log() {
        let place = tempfile::TempDir::new().expect("a directory");
        let log = place.path().join("audit.jsonl");
        let look = || {
            let logs = [place.path().join("other"), log.clone()];
            Found::here(None, None, |_| None, None, &logs).worker
        };
        assert_eq!(look(), None, "there is no log");
        let file = File::create(&log).expect("a log");
        assert_eq!(look(), None, "nobody has it");
        file.try_lock().expect("free");
        assert_eq!(look().as_deref(), Some(log.as_path()));
    }

    #[test]
    fn a_lock_is_known_by_kind_device_and_inode() {
        let device = rustix::fs::makedev(8, 17);
        let table = |line: &str| format!("1: POSIX  ADVISORY  WRITE 9 08:11:7 0 EOF\n{line}\n");
        #[rustfmt::skip]
        let cases = [
            ("2: FLOCK  ADVISORY  WRITE 9 08:11:7 0 EOF",    true),
            ("2: FLOCK  ADVISORY  READ  9 08:11:7 0 EOF",    false),
            ("2: FLOCK  ADVISORY  WRITE 9 08:12:7 0 EOF",    false),
            ("2: FLOCK  ADVISORY  WRITE 9 08:11:70 0 EOF",   false),
            ("2: -> FLOCK  ADVISORY  WRITE 9 08:11:7 0 EOF", false), // waits for it
            ("2: FLOCK  ADVISORY  WRITE 9",                  false),
            ("",                                             false),
        ];
        for (line, want) in cases {
            assert_eq!(is_locked(&table(line), device, 7), want, "{line}");
        }
        let anonymous = "2: FLOCK  ADVISORY  WRITE 9 00:2a:7 0 EOF";
        assert!(is_locked(anonymous, rustix::fs::makedev(0, 99), 7));
    }
}
