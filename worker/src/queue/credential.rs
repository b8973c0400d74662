//! The environment key, the work secret, a platform's credential, and which of them speaks for a work
//! item.
//!
//! Values are `SecretString` from the moment they are read: they do not print themselves and are
//! wiped when dropped. The environment key sits behind a watch, so a reload replaces it for every
//! later request, also of sessions that run.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::watch;

use super::authenticate::{AuthenticationError, PlatformCredential};
use super::transport::Outgoing;
use super::wire::event::object;

/// Where an organization's key goes; every other credential is a bearer token or a platform's affair.
pub(super) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

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
    /// Of the platform that hosts the control plane: no bearer token of ours at all (AWS-1).
    Platform(PlatformCredential),
}

impl From<EnvironmentKey> for Credential {
    fn from(key: EnvironmentKey) -> Credential {
        Credential::Environment(key)
    }
}

impl Credential {
    /// Puts this credential, and no other (AUTH-7), into a request that is otherwise complete.
    pub(super) async fn authenticate(
        &self,
        request: &mut Outgoing,
    ) -> Result<(), AuthenticationError> {
        let bearer = |token: &SecretString| {
            (header::AUTHORIZATION, format!("Bearer {}", token.expose_secret()))
        };
        let (name, shown) = match self {
            Credential::Platform(platform) => return platform.get().authenticate(request).await,
            Credential::Environment(key) => bearer(&key.current()),
            Credential::Session(token) => bearer(token),
            Credential::Organization(key) => (API_KEY, key.expose_secret().to_owned()),
        };
        let mut shown = HeaderValue::from_str(&shown)
            .map_err(|_| AuthenticationError { reason: "no header can carry it".to_owned() })?;
        shown.set_sensitive(true);
        request.headers.insert(name, shown);
        Ok(())
    }

    /// The control plane answered 401 or 403.
    pub(super) fn refused(&self, headers: &HeaderMap) {
        if let Credential::Platform(platform) = self {
            platform.get().refused(headers);
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

/// Credential of a work item after the ack (AUTH-4); `None`: nothing can speak for it. `standing` is
/// the worker's own: that of a platform speaks for items too, whatever their secret says (AWS-7).
pub fn item_credential(secret: &WorkSecret, standing: Option<&Credential>) -> Option<Credential> {
    match (secret, standing) {
        (_, Some(platform @ Credential::Platform(_))) => Some(platform.clone()),
        (WorkSecret::Token(token), _) => Some(Credential::Session(token.clone())),
        (WorkSecret::Absent | WorkSecret::Unusable, standing) => standing.cloned(),
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

    fn bearer(credential: &Credential) -> Option<String> {
        match credential {
            Credential::Environment(key) => Some(key.current().expose_secret().to_owned()),
            Credential::Session(token) => Some(token.expose_secret().to_owned()),
            Credential::Organization(_) | Credential::Platform(_) => None,
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
        let key = Credential::from(key);
        let with = WorkSecret::Token("sk-token".into());
        let shown =
            |secret: &WorkSecret, key: Option<&Credential>| bearer(&item_credential(secret, key)?);
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
        let current = || bearer(&credential);
        assert_eq!(current().as_deref(), Some("new"));
        assert_eq!(setter.replace(&" ".into()), Err(CredentialError::Empty), "AUTH-11");
        assert_eq!(setter.replace(&"a\nb".into()), Err(CredentialError::Unprintable));
        assert_eq!(current().as_deref(), Some("new"));
    }

    #[test]
    fn the_credential_of_a_platform_speaks_for_items_too() {
        // AWS-1, AWS-7, UNK-16: also if the item carried a token.
        struct Nobody;
        impl super::super::authenticate::Authenticator for Nobody {
            fn authenticate<'a>(
                &'a self,
                _request: &'a mut Outgoing,
            ) -> super::super::transport::BoxFuture<'a, Result<(), AuthenticationError>>
            {
                Box::pin(async { Ok(()) })
            }
        }
        let platform = PlatformCredential::new(std::sync::Arc::new(Nobody));
        let standing = Credential::Platform(platform);
        for secret in
            [WorkSecret::Absent, WorkSecret::Unusable, WorkSecret::Token("sk-token".into())]
        {
            let found = item_credential(&secret, Some(&standing));
            assert!(matches!(found, Some(Credential::Platform(_))), "{secret:?}");
        }
    }

    #[test]
    fn credentials_do_not_print_themselves() {
        // AUTH-8.
        let (key, setter) = EnvironmentKey::new(&"sk-planted".into()).expect("a key");
        let all = format!("{key:?}{setter:?}{:?}", Credential::Session("sk-planted".into()));
        assert!(!all.contains("planted"), "{all}");
    }
}
