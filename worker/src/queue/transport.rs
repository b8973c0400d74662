//! How a request leaves the process: a trait, and reqwest behind it.
//!
//! The trait exists so that everything above it is tested without a network and on the test clock.
//! Redirects are not followed here ([`super::client`] decides about them), and no system resolver
//! is used: the binary is static.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::HeaderMap;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use url::Url;

use super::settings::SettingsError;

/// A boxed future, so that the traits here can be trait objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A request as it leaves.
#[derive(Clone)]
pub struct Outgoing {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Option<Bytes>,
}

/// A response whose headers have arrived.
pub struct Incoming {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Box<dyn Body>,
}

/// The body of a response, in pieces.
pub trait Body: Send {
    /// The next piece; `None` at the end. Safe to drop.
    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, TransportError>>;
}

/// Sends requests.
pub trait Transport: Send + Sync + 'static {
    /// Returns when the headers of the response have arrived. Safe to drop.
    fn send(&self, request: Outgoing) -> BoxFuture<'_, Result<Incoming, TransportError>>;
}

/// A request or response that broke off.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}")]
pub struct TransportError {
    pub doing: &'static str,
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl TransportError {
    fn new(doing: &'static str, error: reqwest::Error) -> TransportError {
        // Without the URL, which may have a query.
        TransportError { doing, source: Some(Box::new(error.without_url())) }
    }
}

/// HTTP-3.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// reqwest with rustls, the system's roots and, if given, more of them. Obeys the proxy variables.
pub struct HttpTransport(reqwest::Client);

impl HttpTransport {
    /// Pools of connections that share nothing but the root certificates.
    ///
    /// # Errors
    /// [`SettingsError::Tls`] if the file holds no certificate or TLS cannot be set up.
    pub fn pools<const N: usize>(
        ca_file: Option<&Path>,
    ) -> Result<[HttpTransport; N], SettingsError> {
        let config = tls(ca_file)?;
        let pools: Result<Vec<_>, _> = (0..N).map(|_| HttpTransport::new(config.clone())).collect();
        let wrong = |_| SettingsError::Tls { reason: "no pools".to_owned() };
        pools?.try_into().map_err(wrong)
    }

    /// One pool that disobeys the proxy variables: for addresses of this host and its link.
    ///
    /// # Errors
    /// As for [`HttpTransport::pools`].
    pub fn direct(ca_file: Option<&Path>) -> Result<HttpTransport, SettingsError> {
        HttpTransport::build(reqwest::Client::builder().no_proxy(), tls(ca_file)?)
    }

    fn new(config: rustls::ClientConfig) -> Result<HttpTransport, SettingsError> {
        HttpTransport::build(reqwest::Client::builder(), config)
    }

    fn build(
        builder: reqwest::ClientBuilder,
        config: rustls::ClientConfig,
    ) -> Result<HttpTransport, SettingsError> {
        let wrong = |reason: String| SettingsError::Tls { reason };
        let client = builder
            .tls_backend_preconfigured(config)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .build()
            .map_err(|error| wrong(error.to_string()))?;
        Ok(HttpTransport(client))
    }
}

fn tls(ca_file: Option<&Path>) -> Result<rustls::ClientConfig, SettingsError> {
    let wrong = |reason: String| SettingsError::Tls { reason };
    let mut roots = rustls::RootCertStore::empty();
    // Roots that cannot be parsed are left out; what is missing shows when a server is refused.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let shown = path.display();
        let own = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| wrong(format!("cannot read {shown}: {error}")))?;
        let (added, _) = roots.add_parsable_certificates(own);
        if added == 0 {
            return Err(wrong(format!("{shown} holds no certificate")));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

impl Transport for HttpTransport {
    fn send(&self, request: Outgoing) -> BoxFuture<'_, Result<Incoming, TransportError>> {
        Box::pin(async move {
            let mut builder = self.0.request(request.method, request.url).headers(request.headers);
            if let Some(body) = request.body {
                builder = builder.body(body);
            }
            let response = builder.send().await;
            let response = response.map_err(|e| TransportError::new("send the request", e))?;
            Ok(Incoming {
                status: response.status().as_u16(),
                headers: response.headers().clone(),
                body: Box::new(HttpBody(response)),
            })
        })
    }
}

struct HttpBody(reqwest::Response);

impl Body for HttpBody {
    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, TransportError>> {
        Box::pin(async move {
            self.0.chunk().await.map_err(|e| TransportError::new("read the response", e))
        })
    }
}
