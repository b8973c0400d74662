//! Whose work it is, and how the control plane is reached.

use std::path::PathBuf;

use secrecy::SecretString;

use super::error::{Error, ErrorKind};
use crate::queue::{EnvironmentKey, QueueSettings};

/// Where the control plane is unless something else is said (HDR-10).
const BASE_URL: &str = "https://api.anthropic.com";

/// A self-hosted environment, its key, and the way to its control plane.
///
/// The key does not print itself and is wiped when it is dropped. Copies that the caller made of it are
/// the caller's matter: programs see each other's environment variables and memory where the same user
/// runs them.
#[derive(Clone)]
pub struct Environment {
    pub(super) id: String,
    pub(super) key: Option<SecretString>,
    base_url: String,
    worker_id: String,
    insecure_http: bool,
    ca_file: Option<PathBuf>,
    workspace_id: Option<String>,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Environment");
        shown.field("id", &self.id).field("worker_id", &self.worker_id).finish_non_exhaustive()
    }
}

impl Environment {
    /// An environment by its id and key, at the vendor's control plane.
    pub fn new(id: impl Into<String>, key: impl Into<String>) -> Environment {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Environment {
            id: id.into(),
            key: Some(SecretString::from(key.into())),
            base_url: BASE_URL.to_owned(),
            worker_id: format!("{host}-{:012x}", fastrand::u64(..) & 0xffff_ffff_ffff),
            insecure_http: false,
            ca_file: None,
            workspace_id: None,
        }
    }

    /// The environment of `ANTHROPIC_ENVIRONMENT_ID`, `ANTHROPIC_ENVIRONMENT_KEY` and, if it is set,
    /// `ANTHROPIC_BASE_URL` (WRUN-1). Empty is the same as not set.
    ///
    /// # Errors
    /// The first variable that is missing, by its name.
    pub fn from_variables() -> Result<Environment, Error> {
        let read = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let missing = |name| move || Error::new(ErrorKind::Settings, format!("{name} is not set"));
        let (id, key) = ("ANTHROPIC_ENVIRONMENT_ID", "ANTHROPIC_ENVIRONMENT_KEY");
        let id = read(id).ok_or_else(missing(id))?;
        let environment = Environment::new(id, read(key).ok_or_else(missing(key))?);
        Ok(match read("ANTHROPIC_BASE_URL") {
            Some(url) => environment.base_url(url),
            None => environment,
        })
    }

    /// Another control plane. `http://` is accepted for this host only.
    pub fn base_url(self, url: impl Into<String>) -> Environment {
        Environment { base_url: url.into(), ..self }
    }

    /// Accepts `http://` to any host: whoever can read the traffic then has the key.
    pub fn insecure_http(self) -> Environment {
        Environment { insecure_http: true, ..self }
    }

    /// Certificate authorities (PEM) that count beside the system's.
    pub fn ca_file(self, file: impl Into<PathBuf>) -> Environment {
        Environment { ca_file: Some(file.into()), ..self }
    }

    /// The name of this worker, unique for each process (POLL-14) [default: host name and a random
    /// number].
    pub fn worker_id(self, id: impl Into<String>) -> Environment {
        Environment { worker_id: id.into(), ..self }
    }

    /// Sent with every request (HDR-8).
    pub fn workspace_id(self, id: impl Into<String>) -> Environment {
        Environment { workspace_id: Some(id.into()), ..self }
    }

    pub(super) fn key(&self) -> Result<Option<EnvironmentKey>, Error> {
        let Some(key) = &self.key else { return Ok(None) };
        let made = EnvironmentKey::new(key);
        // Whoever would replace it later is not needed: an environment is made anew.
        let (key, _setter) =
            made.map_err(|error| Error::new(ErrorKind::Settings, error.to_string()))?;
        Ok(Some(key))
    }

    pub(super) fn settings(&self) -> Result<QueueSettings, Error> {
        let url = self.base_url.parse().map_err(|_| {
            // Not repeated: it might hold a password.
            Error::new(ErrorKind::Settings, "cannot use the base URL: it is not a URL")
        })?;
        let mut settings = QueueSettings::new(url, &self.id, &self.worker_id);
        settings.insecure_http = self.insecure_http;
        settings.ca_file = self.ca_file.clone();
        settings.workspace_id = self.workspace_id.clone();
        Ok(settings)
    }

    /// Of a session whose token is all that is known.
    pub(super) fn of_a_token() -> Environment {
        Environment { key: None, ..Environment::new("none", "") }
    }
}
