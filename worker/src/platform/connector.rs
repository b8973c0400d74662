//! HTTP for whatever looks for AWS credentials: the client that is here anyway, with the same
//! certificate roots and the same resolver (the system's cannot be part of a static binary).
//!
//! Endpoints of this host and its link (the metadata service, an agent's endpoint) are never asked
//! for by way of a proxy.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use bytes::{Bytes, BytesMut};
use reqwest::header::{HeaderName, HeaderValue};
use url::{Host, Url};

use super::error::PlatformError;
use crate::queue::{HttpTransport, Outgoing, Transport};

/// Longest answer: credentials have a few kilobytes.
const BODY_BYTES_MAX: usize = 1 << 20;
/// For requests without limits of their own.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const READ_MAX: Duration = Duration::from_secs(20);

/// Connections of the two kinds.
#[derive(Clone)]
pub struct Connections {
    direct: Arc<dyn Transport>,
    usual: Arc<dyn Transport>,
}

impl Connections {
    /// Trusts the system's roots and those in `ca_file`.
    ///
    /// # Errors
    /// [`PlatformError::Tls`].
    pub fn new(ca_file: Option<&Path>) -> Result<Connections, PlatformError> {
        let wrong =
            |error: crate::queue::SettingsError| PlatformError::Tls { reason: error.to_string() };
        let [usual] = HttpTransport::pools(ca_file).map_err(wrong)?;
        let direct = HttpTransport::direct(ca_file).map_err(wrong)?;
        Ok(Connections { direct: Arc::new(direct), usual: Arc::new(usual) })
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connections")
    }
}

impl HttpClient for Connections {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let connect = settings.connect_timeout().unwrap_or(CONNECT_MAX);
        let read = settings.read_timeout().unwrap_or(READ_MAX);
        SharedHttpConnector::new(Connector { to: self.clone(), limit: connect + read })
    }
}

/// Connections with the limits of one client.
#[derive(Debug)]
struct Connector {
    to: Connections,
    limit: Duration,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (to, limit) = (self.to.clone(), self.limit);
        HttpConnectorFuture::new(async move {
            match tokio::time::timeout(limit, exchange(&to, &request)).await {
                Ok(answer) => answer,
                Err(elapsed) => Err(ConnectorError::timeout(elapsed.into())),
            }
        })
    }
}

async fn exchange(to: &Connections, request: &HttpRequest) -> Result<HttpResponse, ConnectorError> {
    let outgoing = outgoing(request)?;
    let transport = if is_near(&outgoing.url) { &to.direct } else { &to.usual };
    let sent = transport.send(outgoing).await;
    let mut incoming = sent.map_err(|error| ConnectorError::io(error.into()))?;
    let mut body = BytesMut::new();
    while let Some(piece) =
        incoming.body.chunk().await.map_err(|error| ConnectorError::io(error.into()))?
    {
        if body.len() + piece.len() > BODY_BYTES_MAX {
            return Err(ConnectorError::other("the answer is too large".into(), None));
        }
        body.extend_from_slice(&piece);
    }
    let status = StatusCode::try_from(incoming.status)
        .map_err(|error| ConnectorError::other(error.into(), None))?;
    let mut response = HttpResponse::new(status, SdkBody::from(body.freeze()));
    for (name, value) in &incoming.headers {
        if let Ok(value) = value.to_str() {
            response.headers_mut().append(name.as_str().to_owned(), value.to_owned());
        }
    }
    Ok(response)
}

fn outgoing(request: &HttpRequest) -> Result<Outgoing, ConnectorError> {
    let wrong = |what: &'static str| ConnectorError::user(what.into());
    let url: Url = request.uri().parse().map_err(|_| wrong("not a URL"))?;
    let mut headers = reqwest::header::HeaderMap::new();
    for (name, value) in request.headers().iter() {
        let name: HeaderName = name.parse().map_err(|_| wrong("not a header"))?;
        let mut value = HeaderValue::from_str(value).map_err(|_| wrong("not a header"))?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    let body = request.body().bytes().ok_or_else(|| wrong("not a body of bytes"))?;
    let body = (!body.is_empty()).then(|| Bytes::copy_from_slice(body));
    let method = request.method().parse().map_err(|_| wrong("not a method"))?;
    Ok(Outgoing { method, url, headers, body })
}

/// This host, or its link.
fn is_near(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback() || ip.is_link_local(),
        Some(Host::Ipv6(ip)) => {
            // The metadata service of AWS has a unique local address.
            ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unique_local()
        }
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_endpoints_are_asked_without_a_proxy() {
        #[rustfmt::skip]
        let cases = [
            ("http://169.254.169.254/latest", true),
            ("http://169.254.170.2/v2",       true),
            ("http://[fd00:ec2::254]/latest", true),
            ("http://127.0.0.1:1/",           true),
            ("http://localhost/",             true),
            ("https://sts.eu-west-1.amazonaws.com/", false),
            ("https://10.0.0.1/",             false),
        ];
        for (url, near) in cases {
            assert_eq!(is_near(&url.parse().expect(url)), near, "{url}");
        }
    }
}
