//! An API key that the platform's console made: sent as it is, with every request (AWS-1).

use std::sync::{PoisonError, RwLock};

use clap::ValueEnum;
use reqwest::header::{self, HeaderName, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};

use super::error::PlatformError;
use super::select::API_KEY;
use crate::queue::{AuthenticationError, Authenticator, BoxFuture, Outgoing};

/// Which header carries the key. What the platform's own clients do is `x-api-key`; its user guide
/// speaks of a bearer token (UNK-16).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ApiKeyHeader {
    /// `x-api-key`
    #[default]
    #[value(help = "as the platform's clients do")]
    XApiKey,
    /// `authorization`
    #[value(help = "as a bearer token")]
    Bearer,
}

/// Sends an API key.
pub struct ApiKey {
    key: RwLock<SecretString>,
    header: ApiKeyHeader,
}

impl ApiKey {
    /// `key` has passed [`checked`] or the like.
    pub fn new(key: SecretString, header: ApiKeyHeader) -> ApiKey {
        ApiKey { key: RwLock::new(key), header }
    }

    /// Every later attempt carries this one.
    pub fn replace(&self, key: SecretString) {
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = key;
    }
}

/// The value of the variable, if a header can carry it.
///
/// # Errors
/// [`PlatformError::ApiKey`].
pub fn checked(value: &SecretString) -> Result<SecretString, PlatformError> {
    let text = value.expose_secret().trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(PlatformError::ApiKey { from: API_KEY });
    }
    Ok(SecretString::from(text))
}

impl Authenticator for ApiKey {
    fn authenticate<'a>(
        &'a self,
        request: &'a mut Outgoing,
    ) -> BoxFuture<'a, Result<(), AuthenticationError>> {
        Box::pin(async move {
            let key = self.key.read().unwrap_or_else(PoisonError::into_inner).clone();
            let key = key.expose_secret();
            let (name, value) = match self.header {
                ApiKeyHeader::XApiKey => {
                    (HeaderName::from_static("x-api-key"), HeaderValue::from_str(key))
                }
                ApiKeyHeader::Bearer => {
                    (header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {key}")))
                }
            };
            let mut value = value.map_err(|_| AuthenticationError {
                reason: "the API key fits into no header".to_owned(),
            })?;
            value.set_sensitive(true);
            request.headers.insert(name, value);
            Ok(())
        })
    }
}
