//! Requests that no bearer token speaks for: a platform that hosts the control plane has credentials
//! of its own (protocol §10).
//!
//! The queue knows only this trait. Whoever implements it sees each attempt as it will leave, after
//! everything else is in it, and adds what proves whose it is; nothing changes the request after
//! that but headers of the trace context, which no signature covers (AWS-5).

use std::fmt;
use std::sync::Arc;

use reqwest::header::HeaderMap;

use super::transport::{BoxFuture, Outgoing};

/// Adds the credential of a platform to requests.
pub trait Authenticator: Send + Sync + 'static {
    /// Adds it to one attempt. Safe to drop.
    fn authenticate<'a>(
        &'a self,
        request: &'a mut Outgoing,
    ) -> BoxFuture<'a, Result<(), AuthenticationError>>;

    /// Hears of an answer that refuses the credential (401 or 403), and what came with it.
    fn refused(&self, _headers: &HeaderMap) {}
}

/// A request that cannot be authenticated now. Asking again may help: credentials are refreshed.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("cannot authenticate the request: {reason}")]
pub struct AuthenticationError {
    /// Without anything secret.
    pub reason: String,
}

/// The credential of a platform, as [`super::Credential`] holds it. Cheap to clone.
#[derive(Clone)]
pub struct PlatformCredential(Arc<dyn Authenticator>);

impl PlatformCredential {
    /// Every request is authenticated by `authenticator`.
    pub fn new(authenticator: Arc<dyn Authenticator>) -> PlatformCredential {
        PlatformCredential(authenticator)
    }

    pub(super) fn get(&self) -> &dyn Authenticator {
        &*self.0
    }
}

impl fmt::Debug for PlatformCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlatformCredential")
    }
}
