//! The two files of the AWS tools, read while this process still has the rights of whoever started
//! it: the user that a worker becomes has no home.
//!
//! What they say is taken as it is at the start. Credentials that change are refreshed by what the
//! files name (a process, a token file, an endpoint), never by reading them again.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::error::PlatformError;

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

impl Files {
    /// Reads both. One that nobody named may be missing.
    ///
    /// # Errors
    /// One that cannot be read, or credentials that others can read.
    pub fn read(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Files, PlatformError> {
        let home = variable("HOME").map(PathBuf::from);
        let one = |name: &str, usual: &str, private: bool| {
            let named = variable(name).filter(|path| !path.is_empty()).map(PathBuf::from);
            let usual = home.as_ref().map(|home| home.join(".aws").join(usual));
            match (named, usual) {
                (Some(path), _) => read(&path, private),
                (None, Some(path)) if path.exists() => read(&path, private),
                _ => Ok(SecretString::default()),
            }
        };
        Ok(Files {
            config: one("AWS_CONFIG_FILE", "config", false)?,
            credentials: one("AWS_SHARED_CREDENTIALS_FILE", "credentials", true)?,
        })
    }
}

fn read(path: &Path, private: bool) -> Result<SecretString, PlatformError> {
    let failed = |source| PlatformError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    }
    let mode = about.mode() & 0o7777;
    if private && mode & 0o077 != 0 {
        return Err(PlatformError::Mode { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    let read = file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if read as u64 > BYTES_MAX {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(SecretString::from(text))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn files_are_read_where_the_tools_of_aws_look_for_them() {
        let home = tempfile::TempDir::new().expect("a directory");
        fs::create_dir(home.path().join(".aws")).expect("a directory");
        let here = home.path().as_os_str().to_owned();
        let at_home = |name: &str| (name == "HOME").then(|| here.clone());
        let none = Files::read(&at_home).expect("none");
        assert_eq!(none.config.expose_secret(), "");
        let credentials = home.path().join(".aws/credentials");
        fs::write(&credentials, "[default]\n").expect("written");
        fs::set_permissions(&credentials, fs::Permissions::from_mode(0o644)).expect("a mode");
        let open = Files::read(&at_home).expect_err("others can read it");
        assert!(matches!(open, PlatformError::Mode { mode: 0o644, .. }), "{open}");
        fs::set_permissions(&credentials, fs::Permissions::from_mode(0o600)).expect("a mode");
        let read = Files::read(&at_home).expect("private");
        assert_eq!(read.credentials.expose_secret(), "[default]\n");
        let named = |name: &str| (name == "AWS_CONFIG_FILE").then(|| "/nonexistent".into());
        let missing = Files::read(&named).expect_err("a file that was named");
        assert!(missing.to_string().contains("/nonexistent"), "{missing}");
    }
}
