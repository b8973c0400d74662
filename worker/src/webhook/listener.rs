//! Connections of the webhook's listener.
//!
//! One request each, in bounded time, with a bounded head. When there are as many as there may be, the
//! oldest gives way to the newest: a genuine delivery needs milliseconds, so whoever holds
//! connections open holds nobody up.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use super::receiver::Receiver;
use crate::credential::file::{self, Trust};
use crate::credential::{KeyError, Secret};

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
pub async fn serve(bound: Bound, receiver: Arc<Receiver>) -> io::Result<()> {
    let listener = TcpListener::from_std(bound.listener)?;
    let mut connections = Connections::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // A client that has gone, or no descriptors for now.
                tracing::debug!(event = "webhook.accept_failed", %error, "cannot accept");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let (receiver, tls) = (Arc::clone(&receiver), bound.tls.clone());
        let served = async move {
            // What goes wrong on one connection is the other end's affair.
            let _late =
                tokio::time::timeout(CONNECTION_TIME, connection(stream, tls, receiver)).await;
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

async fn connection(stream: TcpStream, tls: Option<TlsConfig>, receiver: Arc<Receiver>) {
    match tls {
        None => requests(stream, receiver).await,
        Some(TlsConfig(config)) => {
            let handshake = TlsAcceptor::from(config).accept(stream);
            if let Ok(Ok(stream)) = tokio::time::timeout(HEAD_TIME, handshake).await {
                requests(stream, receiver).await;
            }
        }
    }
}

async fn requests(stream: impl AsyncRead + AsyncWrite + Unpin, receiver: Arc<Receiver>) {
    let service = service_fn(|request| receiver.answer(request));
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
        tracing::debug!(event = "webhook.connection_failed", %error, "connection failed");
    }
}
