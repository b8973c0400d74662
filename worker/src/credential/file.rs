//! Reads a key file and refuses one that others could have read or written.
//!
//! Run by the worker at its start and by the key reader later. Everything is asked of the open file,
//! not of its name, so that what was checked is what is read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::error::{KeyError, Secret};

/// Longest file; a key has about a hundred bytes, a work secret a few thousand.
pub const BYTES_MAX: u64 = 64 << 10;
/// How keys of an organization begin (AUTH-9).
const ORGANIZATION: &str = "sk-ant-api";

/// Who vouches for a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trust {
    /// Its mode: no bit for group or others.
    Owner,
    /// systemd, in a directory of its own: an access list for the service's user shows as a read
    /// bit of the group.
    ServiceManager,
    /// Its mode alone, whoever it belongs to.
    Private,
    /// Nobody: there need be no secret in it.
    Anyone,
}

impl Trust {
    fn forbidden(self) -> u32 {
        match self {
            Trust::Owner | Trust::Private => 0o077,
            Trust::ServiceManager => 0o037,
            Trust::Anyone => 0,
        }
    }
}

/// The key, or another secret, in the file at `path`.
///
/// # Errors
/// If it cannot be read, is no key, or others have access.
pub fn read(what: Secret, path: &Path, trust: Trust) -> Result<SecretString, KeyError> {
    let bytes = read_bytes(what, path, trust, BYTES_MAX)?;
    parse(what, &bytes, &path.display().to_string())
}

/// The bytes of a file that others could not have touched; at most one more than `bytes_max`.
///
/// # Errors
/// If it cannot be read, or others have access.
pub fn read_bytes(
    what: Secret,
    path: &Path,
    trust: Trust,
    bytes_max: u64,
) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let from = path.display().to_string();
    let failed = |error: io::Error| KeyError::Read {
        what,
        from: from.clone(),
        errno: error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error()),
    };
    // Without a wait, should it be a FIFO. Links are followed: what they lead to is checked.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path);
    let file = file.map_err(failed)?;
    check(what, &file, trust, &from)?;
    // As long as it may become: a buffer that grows would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(bytes_max as usize + 1));
    (&file).take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn check(what: Secret, file: &File, trust: Trust, from: &str) -> Result<(), KeyError> {
    let from = from.to_owned();
    let about = match file.metadata() {
        Ok(about) => about,
        Err(error) => {
            return Err(KeyError::Read { what, from, errno: error.raw_os_error().unwrap_or(0) });
        }
    };
    if !about.is_file() {
        return Err(KeyError::NotAFile { what, from });
    }
    let own = rustix::process::geteuid().as_raw();
    let owned = matches!(trust, Trust::Owner | Trust::ServiceManager);
    if owned && about.uid() != 0 && about.uid() != own {
        return Err(KeyError::Owner { what, from, owner: about.uid() });
    }
    if about.mode() & trust.forbidden() != 0 {
        return Err(KeyError::Mode { what, from, mode: about.mode() & 0o7777 });
    }
    Ok(())
}

/// Takes the line breaks off the end; what remains must be a key. `from` is for the error.
///
/// # Errors
/// If it is empty (AUTH-11), too long, not printable ASCII, or an organization's key (AUTH-9).
pub fn parse(what: Secret, bytes: &[u8], from: &str) -> Result<SecretString, KeyError> {
    let from = from.to_owned();
    if bytes.len() as u64 > BYTES_MAX {
        return Err(KeyError::TooLong { what, from, max: BYTES_MAX });
    }
    let end = bytes.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |at| at + 1);
    let bytes = &bytes[..end];
    if bytes.is_empty() {
        return Err(KeyError::Empty { what, from });
    }
    if let Some(at) = bytes.iter().position(|byte| !byte.is_ascii_graphic()) {
        return Err(KeyError::Characters { what, from, at: at + 1 });
    }
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    if what == Secret::EnvironmentKey && text.starts_with(ORGANIZATION) {
        return Err(KeyError::OrganizationKey { from });
    }
    Ok(SecretString::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;
    use Secret::EnvironmentKey as KEY;
    use secrecy::ExposeSecret as _;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_is_one_line_of_printable_ascii() {
        let long = "x".repeat(BYTES_MAX as usize + 1);
        let from = || "F".to_owned();
        #[rustfmt::skip]
        let cases: [(&str, Result<&str, KeyError>); 11] = [
            ("sk-ant-oat01-abc",     Ok("sk-ant-oat01-abc")),
            ("sk-ant-oat01-abc\n",   Ok("sk-ant-oat01-abc")),
            ("sk-ant-oat01-abc\r\n", Ok("sk-ant-oat01-abc")),
            ("",                     Err(KeyError::Empty { what: KEY, from: from() })),
            ("\n\n",                 Err(KeyError::Empty { what: KEY, from: from() })),
            ("a b",                  Err(KeyError::Characters { what: KEY, from: from(), at: 2 })),
            ("abc\ndef",             Err(KeyError::Characters { what: KEY, from: from(), at: 4 })),
            ("ab\0",                 Err(KeyError::Characters { what: KEY, from: from(), at: 3 })),
            ("schlüssel",            Err(KeyError::Characters { what: KEY, from: from(), at: 5 })),
            ("sk-ant-api03-x",       Err(KeyError::OrganizationKey { from: from() })),
            (&long,                  Err(KeyError::TooLong { what: KEY, from: from(), max: BYTES_MAX })),
        ];
        for (text, want) in cases {
            let got = parse(KEY, text.as_bytes(), "F").map(|key| key.expose_secret().to_owned());
            assert_eq!(got, want.map(str::to_owned), "`{}`", &text[..text.len().min(20)]);
        }
    }

    #[test]
    fn a_file_that_others_could_touch_is_refused_with_exit_9() {
        let place = tempfile::TempDir::new().expect("a directory");
        let path = place.path().join("key");
        fs::write(&path, "sk-ant-oat01-abc\n").expect("written");
        for (mode, owner_only, service) in [
            (0o600, true, true),
            (0o400, true, true),
            (0o440, false, true),
            (0o640, false, true),
            (0o660, false, false),
            (0o604, false, false),
            (0o602, false, false),
            (0o601, false, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
            assert!(read(KEY, &path, Trust::Anyone).is_ok(), "{mode:o}");
            for (trust, good) in [
                (Trust::Owner, owner_only),
                (Trust::Private, owner_only),
                (Trust::ServiceManager, service),
            ] {
                let got = read(KEY, &path, trust);
                assert_eq!(got.is_ok(), good, "{mode:o} {trust:?}");
                if let Err(error) = got {
                    assert_eq!(error.exit(), Exit::Refused);
                    assert!(error.hint().starts_with("chmod 600 "), "{}", error.hint());
                }
            }
        }
        if rustix::process::geteuid().is_root() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
            std::os::unix::fs::chown(&path, Some(12345), None).expect("an owner");
            let error = read(KEY, &path, Trust::Owner).expect_err("not ours");
            assert!(matches!(error, KeyError::Owner { owner: 12345, .. }), "{error}");
            assert!(read(KEY, &path, Trust::Private).is_ok());
        }
    }

    #[test]
    fn what_is_no_file_is_named_and_nothing_waits_for_it() {
        let place = tempfile::TempDir::new().expect("a directory");
        let missing = read(KEY, &place.path().join("none"), Trust::Owner).expect_err("missing");
        assert!(missing.to_string().ends_with("none: No such file or directory (os error 2)"));
        let directory = read(KEY, place.path(), Trust::Owner).expect_err("a directory");
        assert!(matches!(directory, KeyError::NotAFile { .. }), "{directory}");
        let fifo = place.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.is_ok_and(|status| status.success()));
        let error = read(KEY, &fifo, Trust::Owner).expect_err("a FIFO");
        assert!(matches!(error, KeyError::NotAFile { .. }), "{error}");
    }
}
