//! Whom staging connects to, and whom it believes: a client for one fetch that asks the policy's
//! resolver, dials only addresses that were checked, and has the system's certificate authorities.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use stockade_runtime::egress::Outbound;
use stockade_runtime::policy::network::Host;
use stockade_runtime::policy::stage::StagePlace;

use super::Outside;
use super::error::Fault;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that says nothing for so long has stalled.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Settings of TLS, and the authorities they trust as PEM.
///
/// # Errors
/// The file holds no certificate, or TLS cannot be set up.
pub(super) fn tls(ca_file: Option<&Path>) -> anyhow::Result<(rustls::ClientConfig, String)> {
    let mut roots = rustls::RootCertStore::empty();
    // Roots that cannot be parsed are left out; what is missing shows when a server is refused.
    let mut all = rustls_native_certs::load_native_certs().certs;
    roots.add_parsable_certificates(all.iter().cloned());
    if let Some(path) = ca_file {
        let own = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let (added, _) = roots.add_parsable_certificates(own.iter().cloned());
        anyhow::ensure!(added > 0, "{} holds no certificate", path.display());
        all.extend(own);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("cannot set up TLS")?;
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    Ok((config, all.iter().map(pem).collect()))
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(certificate);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let lines: Vec<_> = lines.collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// A client for `place` and nowhere else: its host was resolved and every address checked, and
/// these addresses are all that it can dial. Follows no redirect, obeys no proxy variable.
///
/// # Errors
/// The host has no address that may be dialled.
pub(super) async fn client(
    outside: &Outside,
    place: &StagePlace,
    private: bool,
) -> Result<reqwest::Client, Fault> {
    let host = place.host().ok_or(Fault::Store { what: "has no host" })?;
    let addresses = addresses(&outside.outbound, host, place.port(), private).await?;
    let checked = Checked { host: host.to_string(), addresses };
    let unreachable = |error: reqwest::Error| Fault::Unreachable {
        host: host.to_string(),
        doing: "cannot set up a connection",
        source: Some(Box::new(error.without_url())),
    };
    reqwest::Client::builder()
        .tls_backend_preconfigured(outside.tls.clone())
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .no_proxy()
        .https_only(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(SILENCE_MAX)
        .dns_resolver(checked)
        .build()
        .map_err(unreachable)
}

/// The checked addresses of `host`.
pub(super) async fn addresses(
    outbound: &Outbound,
    host: &Host,
    port: u16,
    private: bool,
) -> Result<Vec<SocketAddr>, Fault> {
    let found = outbound.addresses(host, private).await;
    let found = found.map_err(|source| Fault::Address { host: host.to_string(), source })?;
    Ok(found.into_iter().map(|address| SocketAddr::new(address, port)).collect())
}

/// Answers for one name, with what was found before.
struct Checked {
    host: String,
    addresses: Vec<SocketAddr>,
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let known = name.as_str().trim_end_matches('.').eq_ignore_ascii_case(&self.host);
        let addresses = self.addresses.clone();
        Box::pin(async move {
            match known {
                true => Ok(Box::new(addresses.into_iter()) as Addrs),
                false => Err("a name that was not checked".into()),
            }
        })
    }
}
