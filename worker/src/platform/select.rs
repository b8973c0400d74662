//! Which credential is used (AWS-4): pure, from what was offered.

use std::fmt;
use std::path::PathBuf;

/// The API key of the platform.
pub const API_KEY: &str = "ANTHROPIC_AWS_API_KEY";
/// The two halves of a key pair.
pub const ACCESS_KEY: &str = "AWS_ACCESS_KEY_ID";
pub const SECRET_KEY: &str = "AWS_SECRET_ACCESS_KEY";

/// How requests are authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Not signed.
    ApiKey(ApiKeyOrigin),
    /// Signed with the credentials of this profile.
    Profile(String),
    /// Signed with what the default chain finds.
    Chain,
}

/// Where an API key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiKeyOrigin {
    File(PathBuf),
    /// [`API_KEY`]
    Variable,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mode::ApiKey(ApiKeyOrigin::File(path)) => write!(f, "the API key {}", path.display()),
            Mode::ApiKey(ApiKeyOrigin::Variable) => write!(f, "the variable {API_KEY}"),
            Mode::Profile(name) => write!(f, "the AWS profile {name}"),
            Mode::Chain => write!(f, "AWS's default chain"),
        }
    }
}

/// Everything that decides. A key pair is never explicit: command lines can be read by others, so
/// one comes by the environment or a file, and both belong to the chain.
#[derive(Debug, Default)]
pub struct Offered {
    /// `--aws-api-key-file`
    pub api_key_file: Option<PathBuf>,
    /// `--aws-profile`
    pub profile: Option<String>,
    /// Whether a variable is set and not empty.
    pub api_key: bool,
    pub access_key: bool,
    pub secret_key: bool,
}

/// Half of a key pair: the name of the half that is missing.
#[derive(Debug, PartialEq, Eq)]
pub struct HalfPair(pub &'static str);

/// The first that is given: an API key, a profile, the API key's variable, the chain. Ambient keys of
/// the other control plane take no part; that they are refused altogether is decided elsewhere.
///
/// # Errors
/// The chain would find half of a key pair in the environment.
pub fn select(offered: &Offered) -> Result<Mode, HalfPair> {
    if let Some(path) = &offered.api_key_file {
        return Ok(Mode::ApiKey(ApiKeyOrigin::File(path.clone())));
    }
    if let Some(name) = &offered.profile {
        return Ok(Mode::Profile(name.clone()));
    }
    if offered.api_key {
        return Ok(Mode::ApiKey(ApiKeyOrigin::Variable));
    }
    match (offered.access_key, offered.secret_key) {
        (true, false) => Err(HalfPair(SECRET_KEY)),
        (false, true) => Err(HalfPair(ACCESS_KEY)),
        _ => Ok(Mode::Chain),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_credential_that_is_given_is_used() {
        // AWS-4, row by row.
        let file = || Some(PathBuf::from("/k"));
        let profile = || Some("p".to_owned());
        let key_file = || Ok(Mode::ApiKey(ApiKeyOrigin::File("/k".into())));
        let variable = || Ok(Mode::ApiKey(ApiKeyOrigin::Variable));
        #[rustfmt::skip]
        let cases = [
            (file(), profile(), true,  true,  true,  key_file()),
            (file(), None,      true,  true,  false, key_file()),
            (None,   profile(), true,  true,  true,  Ok(Mode::Profile("p".into()))),
            (None,   profile(), true,  true,  false, Ok(Mode::Profile("p".into()))),
            (None,   None,      true,  true,  true,  variable()),
            (None,   None,      true,  true,  false, variable()),
            (None,   None,      false, true,  true,  Ok(Mode::Chain)),
            (None,   None,      false, false, false, Ok(Mode::Chain)),
            (None,   None,      false, true,  false, Err(HalfPair(SECRET_KEY))),
            (None,   None,      false, false, true,  Err(HalfPair(ACCESS_KEY))),
        ];
        for (api_key_file, profile, api_key, access_key, secret_key, want) in cases {
            let offered = Offered { api_key_file, profile, api_key, access_key, secret_key };
            assert_eq!(select(&offered), want, "{offered:?}");
        }
    }
}
