//! The environment key: where it comes from, how it is checked, how it is read again.
//!
//! In the order in which `worker poll` and its kin need them: [`hidden::hide`] first of all, while nothing
//! else exists; after the launcher has been split off [`KeySource::find`], [`KeySource::read`] and
//! [`Again::start`], with the rights of whoever started the worker; after these rights are
//! given up only [`KeySource::reread`]. The value is a [`SecretString`] from the moment of reading and
//! is in no message of this module.

pub mod error;
pub mod file;
pub mod hidden;
pub mod reader;

use std::fmt;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

pub use error::{KeyError, Secret};
use file::Trust;
use hidden::Hidden;
pub use reader::{Again, Kept};

/// Name of the credential in `$CREDENTIALS_DIRECTORY` (systemd: `LoadCredential=environment-key:…`).
const CREDENTIAL: &str = "environment-key";

/// Where the key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `--environment-key-file`
    File(PathBuf),
    /// The service manager.
    Credential(PathBuf),
    /// `ANTHROPIC_ENVIRONMENT_KEY`
    Variable,
    /// A platform, which has credentials of its own.
    Platform(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Credential(path) => write!(f, "the systemd credential {}", path.display()),
            Origin::Variable => write!(f, "the variable {}", Secret::EnvironmentKey.variable()),
            Origin::Platform(from) => f.write_str(from),
        }
    }
}

/// The place of the environment key.
#[derive(Debug)]
pub struct KeySource {
    origin: Origin,
    /// The value, if it came by the environment.
    given: Option<SecretString>,
    /// Keeps the rights that this process gives up.
    again: Option<Again>,
}

impl KeySource {
    /// The place that comes first of: `file` (`--environment-key-file`), a systemd credential,
    /// `ANTHROPIC_ENVIRONMENT_KEY`, which must have been hidden.
    ///
    /// # Errors
    /// [`KeyError::Missing`] if there is none, and what is wrong with the variable's value.
    pub fn find(
        file: Option<&Path>,
        credentials_directory: Option<&Path>,
        hidden: &mut Hidden,
    ) -> Result<KeySource, KeyError> {
        let given = hidden.take(Secret::EnvironmentKey);
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let credential = credentials_directory.map(|directory| directory.join(CREDENTIAL));
        let origin = match (file, credential) {
            (Some(path), _) => Origin::File(absolute(path)),
            (None, Some(path)) if path.exists() => Origin::Credential(path),
            _ if given.is_some() => Origin::Variable,
            _ => return Err(KeyError::Missing),
        };
        let given = given.filter(|_| origin == Origin::Variable).transpose()?;
        Ok(KeySource { origin, given, again: None })
    }

    /// In place of a key, a platform's credential; `from` says in words where that comes from. There
    /// is nothing to read.
    pub fn platform(from: String) -> KeySource {
        KeySource { origin: Origin::Platform(from), given: None, again: None }
    }

    /// Where the key comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The key, read with the rights this process has now.
    ///
    /// # Errors
    /// If there is no key, or others could have read or written it.
    pub fn read(&self) -> Result<SecretString, KeyError> {
        match (self.place(), &self.given) {
            (Some((path, trust)), _) => file::read(Secret::EnvironmentKey, path, trust),
            (None, Some(value)) => Ok(value.clone()),
            (None, None) => Err(KeyError::Missing),
        }
    }

    /// The file that is to be read again, if the key is in one.
    pub fn kept(&self) -> Option<Kept> {
        let (path, trust) = self.place()?;
        Some(Kept { what: Secret::EnvironmentKey, trust, path: path.to_owned() })
    }

    /// From now on `again` reads it.
    pub fn use_reader(&mut self, again: Option<Again>) {
        self.again = again;
    }

    /// The key as it is now, read by the key reader with the same checks as at the start. Waits for
    /// at most [`reader::ANSWER_MAX`]: in async code call it where blocking is allowed.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`KeyError::Fixed`] if the key came by the environment. The key in
    /// use stays valid.
    pub fn reread(&self) -> Result<SecretString, KeyError> {
        let (path, _) = self.place().ok_or(KeyError::Fixed)?;
        let bytes = self.again.as_ref().ok_or(KeyError::ReaderGone)?.read(path)?;
        file::parse(Secret::EnvironmentKey, &bytes, &path.display().to_string())
    }

    fn place(&self) -> Option<(&Path, Trust)> {
        match &self.origin {
            Origin::File(path) => Some((path, Trust::Owner)),
            Origin::Credential(path) => Some((path, Trust::ServiceManager)),
            Origin::Variable | Origin::Platform(_) => None,
        }
    }
}

/// Another secret than the environment key: from `file` if one was named, else from its variable, which
/// must have been hidden.
///
/// # Errors
/// If it cannot be used, or others could have read or written the file.
pub fn secret(
    what: Secret,
    file: Option<&Path>,
    hidden: &mut Hidden,
) -> Result<Option<SecretString>, KeyError> {
    match file {
        Some(path) => file::read(what, path, Trust::Owner).map(Some),
        None => hidden.take(what).transpose(),
    }
}

/// AUTH-9: an organization's API key must not be on a host that runs sessions. There is no override:
/// the worker has no use for the variable, so nothing is lost by taking it away.
///
/// # Errors
/// If one of the variables is set and not empty.
pub fn refuse_organization_keys(
    variable: impl Fn(&str) -> Option<std::ffi::OsString>,
) -> Result<(), KeyError> {
    for name in ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"] {
        if variable(name).is_some_and(|value| !value.is_empty()) {
            return Err(KeyError::OrganizationVariable { name: name.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;
    use secrecy::ExposeSecret as _;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn key(path: &Path, text: &str) {
        fs::write(path, text).expect("written");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("a mode");
    }

    #[test]
    fn the_named_file_comes_before_the_credential_of_the_service_manager() {
        let place = tempfile::TempDir::new().expect("a directory");
        let (file, credential) = (place.path().join("key"), place.path().join(CREDENTIAL));
        key(&file, "from-file\n");
        let read = |source: KeySource| source.read().map(|key| key.expose_secret().to_owned());
        let none = &mut Hidden::default();
        let nowhere = KeySource::find(None, Some(place.path()), none);
        assert_eq!(nowhere.expect_err("no key"), KeyError::Missing);
        key(&credential, "from-systemd");
        let both = KeySource::find(Some(&file), Some(place.path()), none).expect("found");
        assert_eq!(read(both), Ok("from-file".to_owned()));
        let one = KeySource::find(None, Some(place.path()), none).expect("found");
        assert_eq!(one.origin(), &Origin::Credential(credential));
        assert_eq!(one.reread().expect_err("not started"), KeyError::ReaderGone);
        assert_eq!(read(one), Ok("from-systemd".to_owned()));
        // A file that was named is never silently replaced by another source.
        fs::remove_file(&file).expect("removed");
        let gone = KeySource::find(Some(&file), Some(place.path()), none).expect("found");
        assert!(matches!(read(gone), Err(KeyError::Read { .. })));
    }

    #[test]
    fn a_source_can_be_shared_between_threads() {
        fn shared<T: Send + Sync + 'static>() {}
        shared::<KeySource>();
    }

    /// AUTH-9, AUTH-11
    #[test]
    fn an_organization_key_in_the_environment_is_refused_by_name_and_not_shown() {
        for name in ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"] {
            let set = |asked: &str| (asked == name).then(|| "sk-ant-api03-secret".into());
            let error = refuse_organization_keys(set).expect_err("refused");
            assert_eq!(error.exit(), Exit::Refused);
            let text = format!("{error} {:?} {}", error, error.hint());
            assert!(text.contains(name) && !text.contains("secret"), "{text}");
            let empty = |asked: &str| (asked == name).then(std::ffi::OsString::new);
            refuse_organization_keys(empty).expect("empty is not set");
        }
        refuse_organization_keys(|_| None).expect("not set");
    }
}
