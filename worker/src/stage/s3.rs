//! Input from S3-compatible stores, by requests that are signed here. Credentials never leave this
//! process; a store gets signatures only.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use object_store::aws::AmazonS3Builder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
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
/// Most bytes of any answer: a part, or an error in however many words.
const ANSWER_BYTES_MAX: usize = PART_BYTES as usize + (64 << 10);
const RETRIES_MAX: usize = 2;
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Hands the store a client whose addresses were checked, and whose answers are bounded.
#[derive(Debug)]
struct Checked<S>(S);

impl<S: HttpService + Clone> HttpConnector for Checked<S> {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Bounded(self.0.clone())))
    }
}

/// A service whose answers fail after [`ANSWER_BYTES_MAX`]: whoever asks collects them in memory, those
/// that are errors too.
#[derive(Debug)]
struct Bounded<S>(S);

impl<S: HttpService> HttpService for Bounded<S> {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let (head, body) = self.0.call(request).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).map_err(|error| {
                // Its own are left as they are: they say whether to try again.
                error.downcast::<HttpError>().map_or_else(
                    |error| HttpError::new_boxed(HttpErrorKind::Decode, error),
                    |error| *error,
                )
            });
            Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body)))
        })
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
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(wanted.place.bucket())
        .with_endpoint(endpoint.to_string().trim_end_matches('/'))
        .with_region(region)
        .with_access_key_id(key.id.clone())
        .with_secret_access_key(key.secret.expose_secret())
        .with_virtual_hosted_style_request(false)
        .with_retry(retries())
        .with_http_connector(Checked(client));
    if let Some(token) = &key.token {
        builder = builder.with_token(token.expose_secret());
    }
    let store = builder.build().map_err(|_| Fault::Store { what: "cannot be addressed" })?;
    Ok(Arc::new(store))
}

/// A part that breaks off is asked for again, so what is collected of one is bounded by so many answers.
fn retries() -> RetryConfig {
    RetryConfig { max_retries: RETRIES_MAX, retry_timeout: RETRY_MAX, ..RetryConfig::default() }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use hyper::body::{Body, Frame};

    use super::*;

    const CHUNK: usize = 1 << 16;
    /// Where an answer without an end ends after all.
    const END: usize = 64 << 20;

    /// A store that answers everything with this status, and much more than it was asked for.
    #[derive(Debug, Clone)]
    struct Endless(u16, Arc<AtomicUsize>);

    impl HttpService for Endless {
        fn call<'a, 'b>(
            &'a self,
            _request: HttpRequest,
        ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            let answer = http::Response::builder()
                .status(self.0)
                .header("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT")
                .header("etag", "\"one\"")
                .header("content-length", "8")
                .header("content-range", "bytes 0-7/8");
            let body = HttpResponseBody::new(Endless(self.0, Arc::clone(&self.1)));
            Box::pin(async move { Ok(answer.body(body).expect("an answer")) })
        }
    }

    impl Body for Endless {
        type Data = Bytes;
        type Error = HttpError;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
            let before = self.1.fetch_add(CHUNK, Ordering::Relaxed);
            let chunk = Frame::data(Bytes::from(vec![b'x'; CHUNK]));
            Poll::Ready((before < END).then_some(Ok(chunk)))
        }
    }

    #[tokio::test]
    async fn an_answer_that_does_not_end_is_not_collected() {
        // INV-11: as a part of the object, and as the text of an error.
        for status in [206, 403, 404, 400] {
            let sent = Arc::new(AtomicUsize::new(0));
            let store = AmazonS3Builder::new()
                .with_bucket_name("bucket")
                .with_endpoint("https://store.example.test")
                .with_region("us-east-1")
                .with_access_key_id("id")
                .with_secret_access_key("secret")
                .with_retry(retries())
                .with_http_connector(Checked(Endless(status, Arc::clone(&sent))))
                .build()
                .expect("a store");
            let part = GetOptions { range: Some(GetRange::Bounded(0..8)), ..GetOptions::default() };
            let got = match store.get_opts(&Path::from("object"), part).await {
                Ok(part) => part.bytes().await,
                Err(error) => Err(error),
            };
            let error = got.expect_err("too much");
            let sent = sent.load(Ordering::Relaxed);
            assert!(sent > 0, "{status}: nothing was read: {error:?}");
            let answers = if status == 206 { 1 + RETRIES_MAX } else { 1 };
            let max = answers * (ANSWER_BYTES_MAX + CHUNK);
            assert!(sent <= max, "{status}: {sent} bytes were read");
        }
    }
}
