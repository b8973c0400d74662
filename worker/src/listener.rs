//! Connections of a listener that faces whoever can reach its address: the webhook's, and that of
//! metrics.
//!
//! One request each, in bounded time, with a bounded head. When there are as many as there may be, the
//! oldest gives way to the newest: a genuine delivery needs milliseconds, so whoever holds
//! connections open holds nobody up.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use crate::credential::file::{self, Trust};
use crate::credential::{KeyError, Secret};
use crate::queue::{Level, ShutdownWatch};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 128;
/// Time of one connection, from its accept to its end.
const CONNECTION_TIME: Duration = Duration::from_secs(15);
/// Time for the TLS handshake, and for the head of the request after it.
const HEAD_TIME: Duration = Duration::from_secs(5);
const HEADERS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Pause when there are no descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Longest PEM file.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// A complete answer.
pub type Answer = Response<Full<Bytes>>;

/// Answers the requests of a listener, which bounds the time.
pub trait Answers: Send + Sync + 'static {
    /// Answers one request.
    fn answer(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Answer, Infallible>> + Send;
}

/// `/healthz` and `/readyz`, which every listener has; `None` for other paths.
pub fn health(method: &Method, path: &str, shutdown: &ShutdownWatch) -> Option<Answer> {
    let get = matches!(*method, Method::GET | Method::HEAD);
    Some(match path {
        "/healthz" if get => text(StatusCode::OK, "ok\n"),
        "/readyz" if get && shutdown.level() == Level::Run => text(StatusCode::OK, "ready\n"),
        "/readyz" if get => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        "/healthz" | "/readyz" => not_allowed("GET, HEAD"),
        _ => return None,
    })
}

/// A refusal of other methods than `methods`.
pub fn not_allowed(methods: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    answer
}

/// An answer of text.
pub fn text(code: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text.to_owned())));
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    answer
}

/// A listener before there is a runtime: bound with the rights of whoever started the worker.
#[derive(Debug)]
pub struct Bound {
    listener: StdListener,
    tls: Option<TlsConfig>,
}

/// How the listener speaks TLS.
#[derive(Clone)]
pub struct TlsConfig(Arc<rustls::ServerConfig>);

impl std::fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsConfig")
    }
}

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read the certificate chain {path}: {reason}")]
    Certificate { path: String, reason: String },
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Reads the certificate chain and its key.
///
/// # Errors
/// [`TlsError`]; also if the key is not that of the certificate.
pub fn tls(chain: &Path, key: &Path) -> Result<TlsConfig, TlsError> {
    let certificate =
        |reason: String| TlsError::Certificate { path: chain.display().to_string(), reason };
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| certificate(error.to_string()))?;
    if certificates.is_empty() {
        return Err(certificate("it holds no certificate".to_owned()));
    }
    let from = key.display().to_string();
    let bytes = file::read_bytes(Secret::TlsKey, key, Trust::Owner, PEM_BYTES_MAX)?;
    let unusable = |reason: String| {
        TlsError::Key(KeyError::Unusable { what: Secret::TlsKey, from: from.clone(), reason })
    };
    let key = PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|_| unusable("it holds no private key in PEM form".to_owned()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(certificates, key))
        .map_err(|error| unusable(error.to_string()))?;
    Ok(TlsConfig(Arc::new(config)))
}

impl Bound {
    /// Binds, and listens from now on.
    ///
    /// # Errors
    /// Those of bind(2).
    pub fn bind(address: SocketAddr, tls: Option<TlsConfig>) -> io::Result<Bound> {
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Bound { listener, tls })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Answers requests until it is dropped.
///
/// # Errors
/// If the listener cannot be used at all.
pub async fn serve(bound: Bound, answers: Arc<impl Answers>) -> io::Result<()> {
    let listener = TcpListener::from_std(bound.listener)?;
    let mut connections = Connections::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // A client that has gone, or no descriptors for now.
                tracing::debug!(event = "listener.accept_failed", %error, "cannot accept");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let (answers, tls) = (Arc::clone(&answers), bound.tls.clone());
        let served = async move {
            // What goes wrong on one connection is the other end's affair.
            let _late =
                tokio::time::timeout(CONNECTION_TIME, connection(stream, tls, answers)).await;
        };
        connections.add(tokio::spawn(served).abort_handle());
    }
}

/// Those that live, oldest first. All of them end with it.
#[derive(Default)]
struct Connections(VecDeque<AbortHandle>);

impl Connections {
    fn add(&mut self, connection: AbortHandle) {
        if self.0.len() >= CONNECTIONS_MAX {
            self.0.retain(|one| !one.is_finished());
        }
        if self.0.len() >= CONNECTIONS_MAX
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(connection);
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsConfig>, answers: Arc<impl Answers>) {
    match tls {
        None => requests(stream, answers).await,
        Some(TlsConfig(config)) => {
            let handshake = TlsAcceptor::from(config).accept(stream);
            if let Ok(Ok(stream)) = tokio::time::timeout(HEAD_TIME, handshake).await {
                requests(stream, answers).await;
            }
        }
    }
}

async fn requests(stream: impl AsyncRead + AsyncWrite + Unpin, answers: Arc<impl Answers>) {
    let service = service_fn(|request| answers.answer(request));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        // What is sent behind the first request is never read.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(event = "listener.connection_failed", %error, "connection failed");
    }
}
