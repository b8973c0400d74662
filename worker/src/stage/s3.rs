//! Input from S3-compatible stores, by requests that are signed here. Credentials never leave this
//! process; a store gets signatures only.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::client::{HttpClient, HttpConnector};
use object_store::path::Path;
use object_store::{ClientOptions, GetOptions, GetRange, ObjectStore, RetryConfig};
use secrecy::ExposeSecret as _;
use stockade_runtime::policy::stage::StagePlace;

use super::Outside;
use super::dial;
use super::error::Fault;
use super::request::Wanted;
use super::sink::{Fetched, Sink};

/// Fetched by one request.
const PART_BYTES: u64 = 8 << 20;
const RETRIES_MAX: usize = 2;
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Hands the store a client whose addresses were checked.
#[derive(Debug)]
struct Checked(reqwest::Client);

impl HttpConnector for Checked {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

/// Fetches the object that `wanted` names, part by part; an object that is replaced meanwhile is
/// refused.
pub(super) async fn fetch(
    outside: &Outside,
    wanted: &Wanted,
    (endpoint, region): (&StagePlace, &str),
    mut sink: Sink,
) -> Result<Fetched, Fault> {
    let store = store(outside, wanted, endpoint, region).await?;
    let path = Path::parse(wanted.place.path())
        .map_err(|_| Fault::Store { what: "cannot have an object of this name" })?;
    let whole = GetOptions { head: true, ..GetOptions::default() };
    let about = store.get_opts(&path, whole).await.map_err(|error| fault(&error))?.meta;
    sink.expect(about.size)?;
    let mut at = 0;
    while at < about.size {
        let end = about.size.min(at + PART_BYTES);
        let part = GetOptions {
            range: Some(GetRange::Bounded(at..end)),
            if_match: about.e_tag.clone(),
            ..GetOptions::default()
        };
        let part = store.get_opts(&path, part).await.map_err(|error| fault(&error))?;
        if part.range != (at..end) || part.meta.size != about.size {
            return Err(Fault::Store { what: "answered with another part of the object" });
        }
        let bytes = part.bytes().await.map_err(|error| fault(&error))?;
        if bytes.len() as u64 != end - at {
            return Err(Fault::Store { what: "answered with another part of the object" });
        }
        sink.push(&bytes).await?;
        at = end;
    }
    sink.finish().await
}

async fn store(
    outside: &Outside,
    wanted: &Wanted,
    endpoint: &StagePlace,
    region: &str,
) -> Result<Arc<dyn ObjectStore>, Fault> {
    let host = wanted.host().unwrap_or_default();
    let keys = outside.keys();
    let key = keys.s3(endpoint).ok_or(Fault::Credential { host })?;
    let client = dial::client(outside, endpoint, wanted.rule.kind.private()).await?;
    let retry = RetryConfig {
        max_retries: RETRIES_MAX,
        retry_timeout: RETRY_MAX,
        ..RetryConfig::default()
    };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(wanted.place.bucket())
        .with_endpoint(endpoint.to_string().trim_end_matches('/'))
        .with_region(region)
        .with_access_key_id(key.id.clone())
        .with_secret_access_key(key.secret.expose_secret())
        .with_virtual_hosted_style_request(false)
        .with_retry(retry)
        .with_http_connector(Checked(client));
    if let Some(token) = &key.token {
        builder = builder.with_token(token.expose_secret());
    }
    let store = builder.build().map_err(|_| Fault::Store { what: "cannot be addressed" })?;
    Ok(Arc::new(store))
}

/// Errors of the store hold paths and answers of servers: only their kind is kept.
fn fault(error: &object_store::Error) -> Fault {
    Fault::Store {
        what: match error {
            object_store::Error::NotFound { .. } => "has no such object",
            object_store::Error::PermissionDenied { .. } => "refuses access to the object",
            object_store::Error::Unauthenticated { .. } => "refuses the credential",
            object_store::Error::Precondition { .. } => "has another object by now",
            _ => "did not answer as one does",
        },
    }
}
