//! Signature version 4 of AWS, put into each attempt of a request (AWS-5).
//!
//! Signed are the method, the whole URL, the hash of the body and the headers as they leave, apart
//! from those that change on the way: of the connection, of the user agent, of the trace context.

use std::borrow::Cow;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::identity::Identity;
use crate::queue::{AuthenticationError, Authenticator, BoxFuture, Outgoing};

/// AWS-5.
const SERVICE: &str = "aws-external-anthropic";
/// Not signed, beside what no client of AWS signs.
const UNSIGNED: [&str; 4] = ["connection", "traceparent", "tracestate", "baggage"];
/// From here on a refusal is likely the clock's fault; the platform allows five minutes.
const SKEW_MIN: Duration = Duration::from_secs(4 * 60);
/// How often a wrong clock is told.
const SKEW_TOLD: Duration = Duration::from_secs(60);

/// Signs requests with credentials that are kept fresh.
pub struct Signer {
    identity: Identity,
    region: String,
    told: Mutex<Option<Instant>>,
}

impl Signer {
    /// For this region.
    pub fn new(identity: Identity, region: String) -> Signer {
        Signer { identity, region, told: Mutex::new(None) }
    }
}

impl Authenticator for Signer {
    fn authenticate<'a>(
        &'a self,
        request: &'a mut Outgoing,
    ) -> BoxFuture<'a, Result<(), AuthenticationError>> {
        Box::pin(async move {
            let credentials = self.identity.current().await?;
            add_signature(request, &credentials, &self.region, SERVICE, SystemTime::now())
        })
    }

    fn refused(&self, headers: &HeaderMap) {
        let Some(skew) = skew(headers, SystemTime::now()) else { return };
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() > SKEW_TOLD) {
            *told = Some(Instant::now());
            tracing::error!(
                event = "aws.clock_skew",
                skew_s = skew.as_secs(),
                "the request was refused, and the clock of this host differs from the platform's: \
                 signatures are good for five minutes"
            );
        }
    }
}

/// How far this clock is from that of the answer, if that explains a refusal.
fn skew(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let there = httpdate::parse_http_date(headers.get(header::DATE)?.to_str().ok()?).ok()?;
    let skew = now.duration_since(there).unwrap_or_else(|earlier| earlier.duration());
    (skew >= SKEW_MIN).then_some(skew)
}

/// Signs `request` as of `at`. What an earlier attempt added is replaced.
fn add_signature(
    request: &mut Outgoing,
    credentials: &Credentials,
    region: &str,
    service: &str,
    at: SystemTime,
) -> Result<(), AuthenticationError> {
    let failed = |what: &str| AuthenticationError { reason: format!("cannot sign it: {what}") };
    let mut settings = SigningSettings::default();
    let excluded = settings.excluded_headers.get_or_insert_default();
    excluded.extend(UNSIGNED.map(Cow::Borrowed));
    let identity = credentials.clone().into();
    let parameters = SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(service)
        .time(at)
        .settings(settings)
        .build()
        .map_err(|_| failed("a parameter is missing"))?
        .into();
    let mut headers = Vec::with_capacity(request.headers.len());
    for (name, value) in &request.headers {
        headers.push((name.as_str(), value.to_str().map_err(|_| failed("a header is no text"))?));
    }
    let body = SignableBody::Bytes(request.body.as_deref().unwrap_or_default());
    let (method, url) = (request.method.as_str(), request.url.as_str());
    let signable = SignableRequest::new(method, url, headers.into_iter(), body)
        .map_err(|_| failed("its URL has no such form"))?;
    let (signed, _) =
        sign(signable, &parameters).map_err(|_| failed("the signature failed"))?.into_parts();
    for (name, value) in signed.headers() {
        let name: HeaderName = name.parse().map_err(|_| failed("a header has no name"))?;
        let mut value = HeaderValue::from_str(value).map_err(|_| failed("a header is no text"))?;
        value.set_sensitive(true);
        request.headers.insert(name, value);
    }
    Ok(())
}

#[cfg(test)]
#[path = "sign_tests.rs"]
mod tests;
