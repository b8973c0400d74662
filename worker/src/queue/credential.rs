//! The environment key, the work secret, and which of them speaks for a work item.
//!
//! Values are `SecretString` from the moment they are read: they do not print themselves and are
//! wiped when dropped. The environment key sits behind a watch, so a reload replaces it for every
//! later request, also of sessions that run.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::watch;

use super::wire::event::object;

/// A credential that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CredentialError {
    #[error("cannot use the environment key: it is empty")]
    Empty,
    #[error("cannot use the environment key: it holds a character that no header may carry")]
    Unprintable,
}

/// The worker's standing credential (AUTH-1).
#[derive(Debug, Clone)]
pub struct EnvironmentKey(watch::Receiver<SecretString>);

/// Replaces the environment key of a running worker.
#[derive(Debug)]
pub struct EnvironmentKeySetter(watch::Sender<SecretString>);

fn checked(key: &str) -> Result<SecretString, CredentialError> {
    let key = key.trim();
    if key.is_empty() {
        return Err(CredentialError::Empty); // AUTH-11
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(CredentialError::Unprintable);
    }
    Ok(SecretString::from(key))
}

impl EnvironmentKey {
    /// Takes the key as read from a file or the environment; surrounding blanks do not count.
    ///
    /// # Errors
    /// An empty key (AUTH-11), or one that no header could carry.
    pub fn new(
        key: &SecretString,
    ) -> Result<(EnvironmentKey, EnvironmentKeySetter), CredentialError> {
        let (sender, receiver) = watch::channel(checked(key.expose_secret())?);
        Ok((EnvironmentKey(receiver), EnvironmentKeySetter(sender)))
    }

    /// As it is now.
    pub fn current(&self) -> SecretString {
        self.0.borrow().clone()
    }
}

impl EnvironmentKeySetter {
    /// Used by every request from now on.
    ///
    /// # Errors
    /// As for [`EnvironmentKey::new`]; the old key then stays.
    pub fn replace(&self, key: &SecretString) -> Result<(), CredentialError> {
        let key = checked(key.expose_secret())?;
        // Nobody listens any more when the worker has ended.
        self.0.send_replace(key);
        Ok(())
    }
}

/// What authenticates one request.
#[derive(Debug, Clone)]
pub enum Credential {
    /// The environment key as it is when the request is sent.
    Environment(EnvironmentKey),
    /// The sessions token of a work item.
    Session(SecretString),
    /// An API key of an organization: an operator's, never on a host that runs sessions (AUTH-9).
    Organization(SecretString),
}

/// How a credential is shown (AUTH-7: always one way, never both).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// `Authorization: Bearer …`
    Bearer,
    /// `x-api-key: …`
    ApiKey,
}

impl Credential {
    /// The secret itself.
    pub fn current(&self) -> SecretString {
        match self {
            Credential::Environment(key) => key.current(),
            Credential::Session(token) | Credential::Organization(token) => token.clone(),
        }
    }

    /// In which header it goes.
    pub fn shown(&self) -> Shown {
        match self {
            Credential::Environment(_) | Credential::Session(_) => Shown::Bearer,
            Credential::Organization(_) => Shown::ApiKey,
        }
    }
}

/// What was found in the `secret` of a work item (AUTH-3).
#[derive(Debug, Clone)]
pub enum WorkSecret {
    /// The item carried none.
    Absent,
    /// It carried something without a token.
    Unusable,
    /// The sessions token.
    Token(SecretString),
}

/// Credential of a work item after the ack (AUTH-4); `None`: nothing can speak for it.
pub fn item_credential(secret: &WorkSecret, key: Option<&EnvironmentKey>) -> Option<Credential> {
    match secret {
        WorkSecret::Token(token) => Some(Credential::Session(token.clone())),
        WorkSecret::Absent | WorkSecret::Unusable => key.cloned().map(Credential::Environment),
    }
}

/// Takes a work secret apart; never fails (AUTH-3). `api_base_url` and all else is ignored (HDR-12).
pub fn decode_secret(secret: &str) -> WorkSecret {
    if secret.is_empty() {
        return WorkSecret::Absent;
    }
    token_of(secret).map_or(WorkSecret::Unusable, WorkSecret::Token)
}

fn token_of(secret: &str) -> Option<SecretString> {
    #[derive(serde::Deserialize)]
    struct Known {
        sessions_token: SecretString,
    }
    let lenient =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let secret = secret.trim().replace('-', "+").replace('_', "/");
    let bytes = GeneralPurpose::new(&alphabet::STANDARD, lenient).decode(&secret).ok()?;
    let known: Known = object(&bytes).ok()?;
    let usable = known.sessions_token.expose_secret();
    let usable = !usable.is_empty() && usable.bytes().all(|byte| byte.is_ascii_graphic());
    usable.then_some(known.sessions_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(secret: &str) -> Option<String> {
        match decode_secret(secret) {
            WorkSecret::Token(token) => Some(token.expose_secret().to_owned()),
            WorkSecret::Absent | WorkSecret::Unusable => None,
        }
    }

    #[test]
    fn a_work_secret_is_decoded_with_any_padding_and_alphabet() {
        // AUTH-3.
        let json = r#"{"sessions_token":"sk-ant-req-1","ingress":{"t":">>>???~~~"},"api_base_url":"https://x"}"#;
        let standard = base64::engine::general_purpose::STANDARD.encode(json);
        let url = base64::engine::general_purpose::URL_SAFE.encode(json);
        assert_ne!(standard, url, "the text must tell the alphabets apart");
        for text in [&standard, &url, url.trim_end_matches('='), standard.trim_end_matches('=')] {
            assert_eq!(token(text).as_deref(), Some("sk-ant-req-1"), "{text}");
        }
    }

    #[test]
    fn garbage_in_a_work_secret_gives_no_token_and_no_failure() {
        // AUTH-3: never raises.
        let encode = |text: &str| base64::engine::general_purpose::URL_SAFE.encode(text);
        let cases = [
            "%%%".to_owned(),
            "a".to_owned(),
            encode("not json"),
            encode("[]"),
            encode(r#"["sk-ant-req-1"]"#),
            encode("null"),
            encode("{}"),
            encode(r#"{"sessions_token":7}"#),
            encode(r#"{"sessions_token":null}"#),
            encode(r#"{"sessions_token":""}"#),
            encode("{\"sessions_token\":\"a\\nb\"}"),
            base64::engine::general_purpose::STANDARD.encode([0xff, 0xfe]),
        ];
        for case in cases {
            assert!(matches!(decode_secret(&case), WorkSecret::Unusable), "{case}");
        }
        assert!(matches!(decode_secret(""), WorkSecret::Absent));
    }

    #[test]
    fn the_token_of_an_item_goes_before_the_environment_key() {
        // AUTH-4, four combinations.
        let (key, _setter) = EnvironmentKey::new(&"sk-key".into()).expect("a key");
        let with = WorkSecret::Token("sk-token".into());
        let shown = |secret: &WorkSecret, key: Option<&EnvironmentKey>| {
            item_credential(secret, key).map(|found| found.current().expose_secret().to_owned())
        };
        assert_eq!(shown(&with, Some(&key)).as_deref(), Some("sk-token"));
        assert_eq!(shown(&with, None).as_deref(), Some("sk-token"));
        assert_eq!(shown(&WorkSecret::Unusable, Some(&key)).as_deref(), Some("sk-key"));
        assert_eq!(shown(&WorkSecret::Absent, None), None);
    }

    #[test]
    fn a_replaced_environment_key_is_used_from_then_on() {
        let (key, setter) = EnvironmentKey::new(&"old\n".into()).expect("a key");
        let credential = Credential::Environment(key);
        setter.replace(&"new".into()).expect("a key");
        assert_eq!(credential.current().expose_secret(), "new");
        assert_eq!(setter.replace(&" ".into()), Err(CredentialError::Empty), "AUTH-11");
        assert_eq!(setter.replace(&"a\nb".into()), Err(CredentialError::Unprintable));
        assert_eq!(credential.current().expose_secret(), "new");
    }

    #[test]
    fn credentials_do_not_print_themselves() {
        // AUTH-8.
        let (key, setter) = EnvironmentKey::new(&"sk-planted".into()).expect("a key");
        let all = format!("{key:?}{setter:?}{:?}", Credential::Session("sk-planted".into()));
        assert!(!all.contains("planted"), "{all}");
    }
}
