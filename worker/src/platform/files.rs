//! The two files of the AWS tools, read while this process still has the rights of whoever started
//! it: the user that a worker becomes has no home. Later the key reader reads them again.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use zeroize::Zeroizing;

use super::error::PlatformError;
use crate::credential::file::{self, Trust};
use crate::credential::{Again, Kept, KeyError, Secret};

/// Longest file.
const BYTES_MAX: u64 = 1 << 20;

/// Their text; empty if there is none.
#[derive(Debug, Default)]
pub struct Files {
    /// `~/.aws/config`
    pub config: SecretString,
    /// `~/.aws/credentials`
    pub credentials: SecretString,
}

/// Where they are.
#[derive(Debug, Clone, Default)]
pub struct Places {
    config: Option<Place>,
    credentials: Option<Place>,
}

#[derive(Debug, Clone)]
struct Place {
    path: PathBuf,
    /// By a variable: it must be there then.
    named: bool,
}

impl Places {
    /// The usual ones below `HOME`, or those that variables name.
    pub fn find(variable: &dyn Fn(&str) -> Option<OsString>) -> Places {
        let home = variable("HOME").map(PathBuf::from);
        let one = |name: &str, usual: &str| {
            let named = variable(name).filter(|path| !path.is_empty()).map(PathBuf::from);
            let usual = home.as_ref().map(|home| home.join(".aws").join(usual));
            match (named, usual) {
                (Some(path), _) => Some(Place { path, named: true }),
                (None, usual) => usual.map(|path| Place { path, named: false }),
            }
        };
        Places {
            config: one("AWS_CONFIG_FILE", "config"),
            credentials: one("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
        }
    }

    /// What the key reader is to be started for.
    pub fn kept(&self) -> Vec<Kept> {
        let kept = |place: &Option<Place>, trust| {
            let path = place.as_ref()?.path.clone();
            Some(Kept { what: Secret::AwsFile, trust, path })
        };
        let both = [kept(&self.config, Trust::Anyone), kept(&self.credentials, Trust::Private)];
        both.into_iter().flatten().collect()
    }

    /// Reads both with the rights that this process has now. One that nobody named may be missing.
    ///
    /// # Errors
    /// One that cannot be read, or credentials that others can read.
    pub fn read(&self) -> Result<Files, PlatformError> {
        self.read_by(&|path, trust| file::read_bytes(Secret::AwsFile, path, trust, BYTES_MAX))
    }

    /// As [`read`](Self::read), by the key reader. Blocks.
    ///
    /// # Errors
    /// Likewise.
    pub fn read_again(&self, again: &Again) -> Result<Files, PlatformError> {
        self.read_by(&|path, _| match again.read(path) {
            // Its directory was not there at the start.
            Err(KeyError::ReaderGone) if !again.has(path) => Err(missing(path)),
            read => read,
        })
    }

    fn read_by(&self, read: Reading<'_>) -> Result<Files, PlatformError> {
        let one = |place: &Option<Place>, trust| -> Result<SecretString, KeyError> {
            match place {
                None => Ok(SecretString::default()),
                Some(place) => match read(&place.path, trust) {
                    Err(error) if !place.named && is_missing(&error) => Ok(SecretString::default()),
                    read => text(read?, &place.path),
                },
            }
        };
        Ok(Files {
            config: one(&self.config, Trust::Anyone)?,
            credentials: one(&self.credentials, Trust::Private)?,
        })
    }
}

type Reading<'a> = &'a dyn Fn(&Path, Trust) -> Result<Zeroizing<Vec<u8>>, KeyError>;

fn missing(path: &Path) -> KeyError {
    let errno = rustix::io::Errno::NOENT.raw_os_error();
    KeyError::Read { what: Secret::AwsFile, from: path.display().to_string(), errno }
}

fn is_missing(error: &KeyError) -> bool {
    let none = rustix::io::Errno::NOENT.raw_os_error();
    matches!(error, KeyError::Read { errno, .. } if *errno == none)
}

fn text(bytes: Zeroizing<Vec<u8>>, path: &Path) -> Result<SecretString, KeyError> {
    let (what, from) = (Secret::AwsFile, path.display().to_string());
    if bytes.len() as u64 > BYTES_MAX {
        return Err(KeyError::TooLong { what, from, max: BYTES_MAX });
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(SecretString::from(text)),
        Err(_) => Err(KeyError::Unusable { what, from, reason: "it is not UTF-8".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret as _;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn files_that_nobody_named_may_be_missing_and_credentials_are_private() {
        // AWS-4.
        let home = tempfile::TempDir::new().expect("a directory");
        let usual = home.path().join(".aws");
        let variable = |name: &str| (name == "HOME").then(|| home.path().into());
        let places = Places::find(&variable);
        let read = || places.read().map(|files| files.credentials.expose_secret().to_owned());
        assert_eq!(read().expect("missing"), "");
        fs::create_dir(&usual).expect("a directory");
        assert_eq!(read().expect("missing"), "");
        let path = usual.join("credentials");
        fs::write(&path, "[p]\n").expect("written");
        for (mode, want) in [(0o600, Some("[p]\n")), (0o640, None)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
            assert_eq!(read().ok().as_deref(), want, "{mode:o}");
        }
        let named = |name: &str| (name == "AWS_CONFIG_FILE").then(|| usual.join("none").into());
        let error = Places::find(&named).read().expect_err("named and missing").to_string();
        assert!(error.contains("cannot read the AWS configuration from"), "{error}");
    }
}
