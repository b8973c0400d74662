//! `[stage]` of the configuration: who may read where input is staged from.
//!
//! Files are read once, with the rights of whoever started the worker; only the control side has what
//! was in them. A credential belongs to one host and port, and is sent nowhere else.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use stockade_runtime::policy::stage::{Scheme, StagePlace};
use zeroize::Zeroizing;

use crate::credential::file::{self, Trust};
use crate::credential::{Kept, KeyError, Secret};
use crate::stage::FetchSize;

/// Most credentials of each kind.
const CREDENTIALS_MAX: usize = 64;
/// Longest file.
const BYTES_MAX: u64 = 16 << 10;
/// Variables of the worker's own environment, as other tools of S3 know them.
const VARIABLES: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];

/// A variable that the worker was started with, wherever it is now.
pub type Variable<'a> = &'a dyn Fn(&str) -> Option<SecretString>;
/// What reads a file that only its owner can read: this process, or one that still has the rights.
pub type Open<'a> = &'a dyn Fn(&Path) -> Result<Zeroizing<Vec<u8>>, KeyError>;

/// `[stage]` as written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StageConfig {
    /// The host's git [default: /usr/bin/git, /usr/local/bin/git or /bin/git].
    pub git: Option<PathBuf>,
    /// What all sessions together may fetch at a time [default: 4GiB].
    pub fetch_size: FetchSize,
    /// For https and git.
    pub credential: Vec<CredentialConfig>,
    /// For S3-compatible stores.
    pub s3: Vec<S3Config>,
}

/// `[[stage.credential]]` as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialConfig {
    /// `host` or `host:port`.
    pub host: String,
    /// The header whose whole value is in the file [default: authorization].
    pub header: Option<String>,
    /// With this name, the file holds the password of basic authentication.
    pub username: Option<String>,
    /// Only its owner can read it.
    pub file: PathBuf,
}

/// `[[stage.s3]]` as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// As in the policy.
    pub endpoint: String,
    /// Not a secret.
    pub access_key_id: Option<String>,
    /// Only its owner can read it.
    pub secret_access_key_file: Option<PathBuf>,
    /// Only its owner can read it.
    pub session_token_file: Option<PathBuf>,
    /// All of it from `AWS_ACCESS_KEY_ID` and so on.
    #[serde(default)]
    pub environment: bool,
}

/// Why a credential cannot be used. No text holds a byte of one.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the credential for {whom}: {reason}")]
pub struct KeysError {
    /// The host as it was written.
    pub whom: String,
    /// What is wrong.
    pub reason: String,
    /// The cause.
    pub source: Option<KeyError>,
}

impl KeysError {
    /// Nobody could read any.
    pub fn lost() -> KeysError {
        KeysError {
            source: Some(KeyError::ReaderGone),
            ..wrong("staging", "reading them broke off")
        }
    }
}

impl KeysError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        "its file belongs to root or you, with mode 600; docs/staging.md has the rest"
    }
}

/// Credentials, each with the host that it is for.
#[derive(Debug, Default)]
pub struct Keys {
    headers: Vec<(StagePlace, HeaderName, SecretString)>,
    s3: Vec<(StagePlace, S3Key)>,
}

/// Signs requests to one store.
#[derive(Debug)]
pub struct S3Key {
    /// Not a secret.
    pub id: String,
    /// The key.
    pub secret: SecretString,
    /// Of a session of the store.
    pub token: Option<SecretString>,
}

impl StageConfig {
    /// The files that are to be read again.
    pub fn kept(&self) -> Vec<Kept> {
        let s3 = self.s3.iter().flat_map(|written| {
            [&written.secret_access_key_file, &written.session_token_file].into_iter().flatten()
        });
        let files = self.credential.iter().map(|written| &written.file).chain(s3);
        let (what, trust) = (Secret::Staging, Trust::Owner);
        files.map(|path| Kept { what, trust, path: path.clone() }).collect()
    }

    /// For `--check`: for whom there are credentials, and nothing of them.
    pub fn shown(&self) -> Value {
        let hosts: Vec<&str> = self.credential.iter().map(|one| one.host.as_str()).collect();
        let endpoints: Vec<&str> = self.s3.iter().map(|one| one.endpoint.as_str()).collect();
        json!({ "git": self.git, "credential": hosts, "s3": endpoints })
    }

    /// Has `open` read every file that is named, and asks for the rest by `variable`.
    ///
    /// # Errors
    /// [`KeysError`] for the first that cannot be used.
    pub fn load(&self, variable: Variable<'_>, open: Open<'_>) -> Result<Keys, KeysError> {
        if self.credential.len().max(self.s3.len()) > CREDENTIALS_MAX {
            return Err(wrong("staging", format!("more than {CREDENTIALS_MAX} are named")));
        }
        let mut keys = Keys::default();
        for written in &self.credential {
            let (place, name, value) = written.load(open)?;
            if keys.headers.iter().any(|(known, ..)| *known == place) {
                return Err(wrong(&written.host, "there is one for this host already"));
            }
            keys.headers.push((place, name, value));
        }
        for written in &self.s3 {
            let place = place_of(&written.endpoint, &written.endpoint)?;
            if keys.s3.iter().any(|(known, _)| *known == place) {
                return Err(wrong(&written.endpoint, "there is one for this endpoint already"));
            }
            keys.s3.push((place, written.load(variable, open)?));
        }
        Ok(keys)
    }
}

impl CredentialConfig {
    fn load(&self, open: Open<'_>) -> Result<(StagePlace, HeaderName, SecretString), KeysError> {
        let place = place_of(&self.host, &format!("https://{}/", self.host))?;
        let secret = read(&self.host, &self.file, open)?;
        let (name, value) = match (&self.header, &self.username) {
            (Some(_), Some(_)) => {
                return Err(wrong(&self.host, "`header` and `username` exclude each other"));
            }
            (header, None) => {
                let name = header.as_deref().unwrap_or(AUTHORIZATION.as_str());
                let name = HeaderName::from_bytes(name.as_bytes());
                let name = name.map_err(|_| wrong(&self.host, "`header` is no header name"))?;
                (name, secret)
            }
            (None, Some(user)) => {
                let plain = |c: char| c.is_ascii_graphic() && c != ':';
                if user.is_empty() || !user.chars().all(plain) {
                    return Err(wrong(&self.host, "`username` has ASCII characters and no `:`"));
                }
                let both = Zeroizing::new(format!("{user}:{}", secret.expose_secret()));
                let basic = format!("Basic {}", STANDARD.encode(both.as_bytes()));
                (AUTHORIZATION, SecretString::from(basic))
            }
        };
        Ok((place, name, value))
    }
}

impl S3Config {
    fn load(&self, variable: Variable<'_>, open: Open<'_>) -> Result<S3Key, KeysError> {
        let files = self.access_key_id.is_some()
            || self.secret_access_key_file.is_some()
            || self.session_token_file.is_some();
        if self.environment && files {
            return Err(wrong(&self.endpoint, "`environment` and files exclude each other"));
        }
        if self.environment {
            let given = |name| variable(name).filter(|value| !value.expose_secret().is_empty());
            let [id, secret, token] = VARIABLES.map(given);
            let (Some(id), Some(secret)) = (id, secret) else {
                let reason = format!("{} and {} are not both set", VARIABLES[0], VARIABLES[1]);
                return Err(wrong(&self.endpoint, reason));
            };
            return Ok(S3Key { id: id.expose_secret().to_owned(), secret, token });
        }
        let (Some(id), Some(file)) = (&self.access_key_id, &self.secret_access_key_file) else {
            let reason =
                "`access_key_id` and `secret_access_key_file`, or `environment`, are needed";
            return Err(wrong(&self.endpoint, reason));
        };
        let token = self.session_token_file.as_deref();
        let token = token.map(|file| read(&self.endpoint, file, open));
        let secret = read(&self.endpoint, file, open)?;
        Ok(S3Key { id: id.clone(), secret, token: token.transpose()? })
    }
}

impl Keys {
    /// The header for requests to the host of `place`; its value is marked sensitive.
    pub fn header(&self, place: &StagePlace) -> Option<(HeaderName, HeaderValue)> {
        let (_, name, secret) = self.of(place)?;
        let mut value = HeaderValue::from_str(secret.expose_secret()).ok()?;
        value.set_sensitive(true);
        Some((name.clone(), value))
    }

    /// The same as one line.
    pub fn git_header(&self, place: &StagePlace) -> Option<SecretString> {
        let (_, name, secret) = self.of(place)?;
        Some(SecretString::from(format!("{name}: {}", secret.expose_secret())))
    }

    /// What signs requests to `endpoint`.
    pub fn s3(&self, endpoint: &StagePlace) -> Option<&S3Key> {
        self.s3.iter().find(|(known, _)| known == endpoint).map(|(_, key)| key)
    }

    fn of(&self, place: &StagePlace) -> Option<&(StagePlace, HeaderName, SecretString)> {
        let same =
            |known: &StagePlace| (known.host(), known.port()) == (place.host(), place.port());
        self.headers.iter().find(|(known, ..)| same(known))
    }
}

fn wrong(whom: &str, reason: impl Into<String>) -> KeysError {
    let whom = whom.escape_default().to_string();
    KeysError { whom, reason: reason.into(), source: None }
}

fn place_of(whom: &str, text: &str) -> Result<StagePlace, KeysError> {
    let place = StagePlace::parse(text, &[Scheme::Https]).map_err(|reason| wrong(whom, reason))?;
    match place.components() {
        [] => Ok(place),
        _ => Err(wrong(whom, "it is for a host as a whole, and not for a path")),
    }
}

/// Reads a file with the rights that this process has now.
///
/// # Errors
/// It cannot be read, or others have access.
pub fn open_now(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    file::read_bytes(Secret::Staging, path, Trust::Owner, BYTES_MAX)
}

/// One line that only its owner, who is root or us, can read.
fn read(whom: &str, path: &Path, open: Open<'_>) -> Result<SecretString, KeysError> {
    let shown = path.display();
    let failed = |source| {
        let reason = format!("{shown} cannot be used");
        KeysError { source: Some(source), ..wrong(whom, reason) }
    };
    let bytes = open(path).map_err(failed)?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    let line = text.trim_end_matches(['\n', '\r']);
    let printable = line.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if line.is_empty() || text.len() as u64 > BYTES_MAX || !printable {
        return Err(wrong(whom, format!("{shown} does not hold one line of printable characters")));
    }
    Ok(SecretString::from(line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn secret(place: &tempfile::TempDir, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = place.path().join(name);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
        path
    }

    fn load(text: &str) -> Result<Keys, KeysError> {
        toml::from_str::<StageConfig>(text).expect("the form is right").load(&|_| None, &open_now)
    }

    fn place(text: &str) -> StagePlace {
        StagePlace::parse(text, &[Scheme::Https]).expect(text)
    }

    #[test]
    fn a_credential_is_for_its_host_and_port_and_no_other() {
        let at = tempfile::TempDir::new().expect("a directory");
        let token = secret(&at, "token", "Bearer s3cr3t\n", 0o600);
        let password = secret(&at, "password", "pass", 0o400);
        let keys = load(&format!(
            "[[credential]]\nhost = \"Data.Example.com\"\nfile = {token:?}\n\
             [[credential]]\nhost = \"git.example.com:8443\"\nusername = \"bot\"\nfile = {password:?}\n"
        ))
        .expect("loaded");
        let (name, value) = keys.header(&place("https://data.example.com/x")).expect("a header");
        assert_eq!((name.as_str(), value.as_bytes()), ("authorization", &b"Bearer s3cr3t"[..]));
        assert!(value.is_sensitive());
        let git = keys.git_header(&place("https://git.example.com:8443/r")).expect("a header");
        assert_eq!(git.expose_secret(), "authorization: Basic Ym90OnBhc3M=");
        for other in [
            "https://data.example.com:8443/x",
            "https://x.data.example.com/",
            "https://git.example.com/r",
            "https://data.example.com.evil.test/",
        ] {
            assert!(keys.header(&place(other)).is_none(), "{other}");
        }
        let shown = format!("{keys:?}");
        assert!(!shown.contains("s3cr3t") && !shown.contains("Ym90"), "{shown}");
    }

    #[test]
    fn the_key_of_a_store_can_come_from_the_variables_that_other_tools_know() {
        let text = "[[s3]]\nendpoint=\"https://s3.example\"\nenvironment=true";
        let config = toml::from_str::<StageConfig>(text).expect("the form is right");
        let variable = |name: &str| match name {
            "AWS_ACCESS_KEY_ID" => Some(SecretString::from("AKIAONE")),
            "AWS_SECRET_ACCESS_KEY" => Some(SecretString::from("s3cr3t")),
            "AWS_SESSION_TOKEN" => Some(SecretString::from("")),
            _ => None,
        };
        let keys = config.load(&variable, &open_now).expect("loaded");
        let key = keys.s3(&place("https://s3.example/")).expect("a key");
        assert_eq!((key.id.as_str(), key.secret.expose_secret()), ("AKIAONE", "s3cr3t"));
        assert!(key.token.is_none(), "an empty one is none");
    }

    #[test]
    fn credentials_that_others_could_read_and_other_mistakes_are_named() {
        let at = tempfile::TempDir::new().expect("a directory");
        let open = secret(&at, "open", "x", 0o640);
        let two = secret(&at, "two", "a\nb", 0o600);
        let good = secret(&at, "good", "x", 0o600);
        let none = at.path().join("none");
        #[rustfmt::skip]
        let cases = [
            (format!("[[credential]]\nhost=\"a.example\"\nfile={open:?}"),  "mode 0640"),
            (format!("[[credential]]\nhost=\"a.example\"\nfile={two:?}"),   "one line"),
            (format!("[[credential]]\nhost=\"a.example\"\nfile={none:?}"),  "No such file"),
            (format!("[[credential]]\nhost=\"a.example\"\nfile={:?}", at.path()), "not a regular file"),
            (format!("[[credential]]\nhost=\"a.example/x\"\nfile={good:?}"), "host as a whole"),
            (format!("[[credential]]\nhost=\"u@a.example\"\nfile={good:?}"), "user name"),
            (format!("[[credential]]\nhost=\"a.example\"\nheader=\"a b\"\nfile={good:?}"), "header name"),
            (format!("[[credential]]\nhost=\"a.example\"\nheader=\"a\"\nusername=\"b\"\nfile={good:?}"), "exclude"),
            (format!("[[credential]]\nhost=\"a.example\"\nfile={good:?}\n[[credential]]\nhost=\"A.example\"\nfile={good:?}"), "already"),
            ("[[s3]]\nendpoint=\"https://s3.example\"".to_owned(), "are needed"),
            ("[[s3]]\nendpoint=\"https://s3.example\"\nenvironment=true".to_owned(), "not both set"),
            ("[[s3]]\nendpoint=\"http://s3.example\"\nenvironment=true".to_owned(), "scheme"),
            ("[[s3]]\nendpoint=\"https://s3.example\"\nenvironment=true\naccess_key_id=\"a\"".to_owned(), "exclude"),
        ];
        for (text, want) in cases {
            let error = load(&text).expect_err(&text);
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            let error = format!("{error} {}", cause.unwrap_or_default());
            assert!(error.contains(want), "`{text}`: {error}");
        }
    }
}
