//! The one way to the control plane: headers, limits, generic retries (HTTP-1, HTTP-2), redirects.
//!
//! Knows nothing of work items. A redirect to the same origin is followed as it is; one to another
//! origin only for GET, over https, and with nothing of ours in it: neither the credential nor the
//! workspace nor custom headers (HTTP-5).

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::Method;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::authenticate::AuthenticationError;
use super::credential::{API_KEY, Credential};
use super::events::Ids;
use super::random::{Random, request_backoff};
use super::request::{BadId, JSON, Request};
use super::settings::QueueSettings;
use super::trace::{OpenSpan, Span, SpanEnd, ToolRun, Tracer};
use super::transport::{Body, Incoming, Outgoing, Transport, TransportError};
use super::wire::error::{ErrorBody, parse_error};

/// A request that gave no usable answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    #[error("the control plane answered {status}")]
    Status {
        status: u16,
        body: Box<ErrorBody>,
        request_id: Option<String>,
        /// HTTP-2, if it said so; never more than a minute.
        retry_after: Option<Duration>,
    },
    #[error("cannot reach the control plane")]
    Transport { source: TransportError },
    #[error("the control plane did not answer within {after:?}")]
    Timeout { after: Duration },
    #[error("the answer of the control plane is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    #[error("cannot read the answer of the control plane as {what}")]
    Unreadable { what: &'static str },
    #[error("cannot keep the answer of the control plane")]
    Keep { source: std::io::Error },
    #[error(transparent)]
    Id(#[from] BadId),
    #[error(transparent)]
    Credential(#[from] AuthenticationError),
    #[error("there is no environment key to ask with")]
    NoKey,
}

impl ApiError {
    /// 4xx other than 408, 409 and 429 (protocol §0): asking again will not help.
    pub fn is_fatal(&self) -> bool {
        match self {
            ApiError::Status { status, .. } => {
                (400..500).contains(status) && !matches!(status, 408 | 409 | 429)
            }
            ApiError::Id(_) | ApiError::NoKey => true,
            _ => false,
        }
    }

    /// The status, if there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            ApiError::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// How long to wait before the same is asked again for the `attempt`th time, from 1: what the
    /// control plane asks for, else `backoff` (HTTP-2). From the third attempt on never less than that:
    /// whoever always asks for a millisecond would be asked in a loop.
    pub fn pause(&self, attempt: u32, backoff: Duration) -> Duration {
        match self {
            ApiError::Status { retry_after: Some(asked), .. } if attempt <= 2 => *asked,
            ApiError::Status { retry_after: Some(asked), .. } => backoff.max(*asked),
            _ => backoff,
        }
    }

    /// `details.error_code`.
    pub fn code(&self) -> Option<&str> {
        match self {
            ApiError::Status { body, .. } => body.code.as_deref(),
            _ => None,
        }
    }

    /// Whether the request may have been carried out all the same.
    pub fn is_ambiguous(&self) -> bool {
        match self {
            ApiError::Status { status, .. } => *status >= 500,
            // Nothing was sent.
            ApiError::Id(_) | ApiError::Credential(_) | ApiError::NoKey => false,
            _ => true,
        }
    }

    /// One word for logs, never content.
    pub fn label(&self) -> String {
        match self {
            ApiError::Status { status, body, request_id, .. } => {
                let parts = [body.kind.as_deref(), request_id.as_deref()];
                parts.into_iter().flatten().fold(status.to_string(), |text, part| text + " " + part)
            }
            ApiError::Transport { .. } => "connection".to_owned(),
            ApiError::Timeout { .. } => "timeout".to_owned(),
            ApiError::TooLarge { .. } => "too large".to_owned(),
            ApiError::Unreadable { .. } => "unreadable".to_owned(),
            ApiError::Keep { .. } => "not kept".to_owned(),
            ApiError::Id(_) => "bad id".to_owned(),
            ApiError::Credential(_) => "no credential".to_owned(),
            ApiError::NoKey => "no environment key".to_owned(),
        }
    }
}

/// A complete answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: Bytes,
}

/// Speaks to one control plane. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    /// What its requests are part of.
    within: Option<Span>,
}

struct Inner {
    transport: Arc<dyn Transport>,
    base: String,
    headers: HeaderMap,
    worker_id: HeaderValue,
    random: Random,
    tracer: Option<Arc<dyn Tracer>>,
}

const REDIRECTS_MAX: usize = 5;
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
const REQUEST_ID_BYTES_MAX: usize = 100;
const ERROR_BODY_BYTES_MAX: usize = 64 << 10;
const WORKER_ID: HeaderName = HeaderName::from_static("anthropic-worker-id");
/// How long a body that nobody needs is waited for.
const REST_MAX: Duration = Duration::from_millis(500);
/// Longest silence in the middle of a download.
const STALL_MAX: Duration = Duration::from_secs(30);

/// Where a download goes.
pub trait Sink: Send {
    /// Forgets what it has: the body begins anew.
    ///
    /// # Errors
    /// If it cannot be emptied.
    fn restart(&mut self) -> Result<(), ApiError>;

    /// Takes the next piece.
    ///
    /// # Errors
    /// If there is no room for it.
    fn take(&mut self, piece: &[u8]) -> Result<(), ApiError>;
}

impl Client {
    /// For settings that passed [`QueueSettings::check`].
    pub fn new(settings: &QueueSettings, transport: Arc<dyn Transport>, random: Random) -> Client {
        let value =
            |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
        let mut headers = settings.custom_headers.clone();
        // AUTH-7: exactly one credential, whatever was given.
        headers.remove(header::AUTHORIZATION);
        headers.remove(API_KEY);
        headers.insert("anthropic-version", value(&settings.anthropic_version));
        if let Some(id) = &settings.workspace_id {
            headers.insert("anthropic-workspace-id", value(id));
        }
        let inner = Inner {
            transport,
            base: settings.base_url.as_str().trim_end_matches('/').to_owned(),
            headers,
            worker_id: value(&settings.worker_id),
            random,
            tracer: settings.tracer.clone(),
        };
        Client { inner: Arc::new(inner), within: None }
    }

    /// The same, for requests that are part of a span.
    pub fn under(&self, span: Option<Span>) -> Client {
        Client { inner: Arc::clone(&self.inner), within: span }
    }

    /// The span that requests of this client are part of.
    pub fn span(&self) -> Option<Span> {
        self.within.clone()
    }

    /// Begins a span of its own for a work item, if there are traces.
    pub fn work_span(&self, ids: &Ids) -> Option<Span> {
        self.inner.tracer.as_ref().map(|tracer| tracer.work(ids))
    }

    /// Begins a span for a tool run, if there are traces.
    pub fn tool_span(&self, ids: &Ids, run: &ToolRun<'_>) -> Option<Span> {
        self.inner.tracer.as_ref().map(|tracer| tracer.tool(self.within.as_ref(), ids, run))
    }

    fn request_span(&self, request: &Request) -> Option<Span> {
        let tracer = self.inner.tracer.as_ref()?;
        let url = format!("{}{}{}", self.inner.base, request.path, request.query).parse().ok()?;
        let (method, path) = (request.method.as_str(), request.path.as_str());
        Some(tracer.request(self.within.as_ref(), method, path, &url))
    }

    /// Sends and reads the whole answer. Any 2xx is a success.
    ///
    /// # Errors
    /// The error of the last attempt.
    pub async fn send(&self, by: &Credential, request: &Request) -> Result<Reply, ApiError> {
        let span = self.request_span(request);
        let answer = self.send_within(by, request, span.as_deref()).await;
        end(span.as_deref(), &answer);
        answer
    }

    async fn send_within(
        &self,
        by: &Credential,
        request: &Request,
        span: Option<&dyn OpenSpan>,
    ) -> Result<Reply, ApiError> {
        let max = request.body_bytes_max;
        let mut taken = 0;
        loop {
            let attempt = async {
                let mut incoming = self.attempt(by, request, span, taken).await?;
                let body = incoming.body.as_mut();
                let body = match request.head_is_enough {
                    true => read_rest(body, max).await,
                    false => read_body(body, max).await?,
                };
                if request.method == Method::GET && request.accept == JSON && !body.is_empty() {
                    // Whoever answers 200 and does not speak JSON was not the control plane.
                    let json = serde_json::from_slice::<serde::de::IgnoredAny>(&body);
                    json.map_err(|_| ApiError::Unreadable { what: "JSON" })?;
                }
                Ok(Reply { status: incoming.status, body })
            };
            let failure = match tokio::time::timeout(request.timeout, attempt).await {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(failure)) => failure,
                Err(_) => ApiError::Timeout { after: request.timeout }.into(),
            };
            self.pause_or_fail(failure, request, &mut taken).await?;
        }
    }

    /// As [`Client::send`], but the body goes to `sink` piece by piece and is never held as a whole.
    /// Each attempt begins anew. Safe to drop.
    ///
    /// # Errors
    /// The error of the last attempt; what the sink refuses is not asked for again.
    pub async fn download(
        &self,
        by: &Credential,
        request: &Request,
        sink: &mut dyn Sink,
    ) -> Result<(), ApiError> {
        let span = self.request_span(request);
        let answer = self.download_within(by, request, span.as_deref(), sink).await;
        end(span.as_deref(), &answer);
        answer
    }

    async fn download_within(
        &self,
        by: &Credential,
        request: &Request,
        span: Option<&dyn OpenSpan>,
        sink: &mut dyn Sink,
    ) -> Result<(), ApiError> {
        let mut taken = 0;
        loop {
            let attempt = async {
                sink.restart()?;
                let incoming = self.attempt(by, request, span, taken).await?;
                pour(incoming.body, sink).await?;
                Ok::<(), Failure>(())
            };
            let failure = match tokio::time::timeout(request.timeout, attempt).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failure)) => failure,
                Err(_) => ApiError::Timeout { after: request.timeout }.into(),
            };
            self.pause_or_fail(failure, request, &mut taken).await?;
        }
    }

    /// HTTP-1, HTTP-2: waits until the request may be sent again, if it may.
    async fn pause_or_fail(
        &self,
        (error, headers): Failure,
        request: &Request,
        taken: &mut u32,
    ) -> Result<(), ApiError> {
        if *taken == request.retries || !retries(&error, request, &headers) {
            return Err(error);
        }
        let pause = retry_after(&headers);
        let pause = pause.unwrap_or_else(|| request_backoff(*taken, &self.inner.random));
        if pause > request.pause_max {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        *taken += 1;
        Ok(())
    }

    /// Sends once and hands over the body as it comes; the time limit ends with the headers.
    ///
    /// # Errors
    /// No retries: whoever reads a stream reconnects anyway.
    pub async fn open(
        &self,
        by: &Credential,
        request: &Request,
    ) -> Result<Box<dyn Body>, ApiError> {
        let span = self.request_span(request);
        let attempt = self.attempt(by, request, span.as_deref(), 0);
        let answer = match tokio::time::timeout(request.timeout, attempt).await {
            Ok(Ok(incoming)) => Ok(incoming.body),
            Ok(Err((error, _))) => Err(error),
            Err(_) => Err(ApiError::Timeout { after: request.timeout }),
        };
        end(span.as_deref(), &answer);
        answer
    }

    /// One attempt, redirects included, up to the headers of a 2xx. The credential is put into each
    /// request anew: a signature is good for one only (AWS-5).
    async fn attempt(
        &self,
        by: &Credential,
        request: &Request,
        span: Option<&dyn OpenSpan>,
        resent: u32,
    ) -> Result<Incoming, Failure> {
        let mut outgoing = self.outgoing(request)?;
        let mut ours = true;
        for _ in 0..=REDIRECTS_MAX {
            let mut leaving = outgoing.clone();
            if ours {
                if let Some(span) = span {
                    span.inject(&mut leaving.headers);
                }
                by.authenticate(&mut leaving).await.map_err(ApiError::from)?;
            }
            let sent = self.inner.transport.send(leaving).await;
            let mut incoming = sent.map_err(|source| ApiError::Transport { source })?;
            if let Some(span) = span {
                span.answered(incoming.status, &incoming.headers, resent);
            }
            if (200..300).contains(&incoming.status) {
                return Ok(incoming);
            }
            if ours && matches!(incoming.status, 401 | 403) {
                by.refused(&incoming.headers);
            }
            match redirected(&outgoing, &incoming) {
                Some(next) => {
                    // Nothing of ours comes back once it was left behind (HTTP-5).
                    ours &= next.url.origin() == outgoing.url.origin();
                    outgoing = next;
                }
                None => {
                    // An error is an error also if its body breaks off.
                    let body = read_body(incoming.body.as_mut(), ERROR_BODY_BYTES_MAX).await;
                    return Err(failure(&incoming, &body.unwrap_or_default()));
                }
            }
        }
        Err(ApiError::Unreadable { what: "anything but redirects" }.into())
    }

    /// Everything but the credential.
    fn outgoing(&self, request: &Request) -> Result<Outgoing, ApiError> {
        let inner = &self.inner;
        let url = format!("{}{}{}", inner.base, request.path, request.query);
        let url: Url = url.parse().map_err(|_| BadId)?;
        let mut headers = inner.headers.clone();
        headers.insert(header::ACCEPT, HeaderValue::from_static(request.accept));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        if let Some(beta) = request.beta {
            headers.insert("anthropic-beta", HeaderValue::from_static(beta));
        }
        if request.worker_id {
            headers.insert(WORKER_ID, inner.worker_id.clone());
        }
        if request.body.is_some() {
            let json = HeaderValue::from_static("application/json");
            headers.insert(header::CONTENT_TYPE, json);
        } else if request.method == Method::POST {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        Ok(Outgoing { method: request.method.clone(), url, headers, body: request.body.clone() })
    }
}

const USER_AGENT: &str = concat!("stockade-worker/", env!("CARGO_PKG_VERSION"));

/// Ends the span of a request.
fn end<T>(span: Option<&dyn OpenSpan>, answer: &Result<T, ApiError>) {
    let Some(span) = span else { return };
    match answer {
        Ok(_) => span.end(SpanEnd::Unset),
        Err(error) => span.end(SpanEnd::of_request(error)),
    }
}

/// An error and the headers that came with it.
type Failure = (ApiError, HeaderMap);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        (error, HeaderMap::new())
    }
}

fn failure(incoming: &Incoming, body: &[u8]) -> Failure {
    let id = incoming.headers.get("request-id").and_then(|id| id.to_str().ok());
    let error = ApiError::Status {
        status: incoming.status,
        body: Box::new(parse_error(body)),
        request_id: id.filter(|id| id.len() <= REQUEST_ID_BYTES_MAX).map(str::to_owned),
        retry_after: retry_after(&incoming.headers),
    };
    (error, incoming.headers.clone())
}

async fn read_body(body: &mut dyn Body, max: usize) -> Result<Bytes, ApiError> {
    let mut all = BytesMut::new();
    while let Some(chunk) = body.chunk().await.map_err(|source| ApiError::Transport { source })? {
        if all.len() + chunk.len() > max {
            return Err(ApiError::TooLarge { bytes_max: max });
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}

/// Reads what comes at once, so that the connection can be used again; whatever happens to it is of no
/// interest (API-2).
async fn read_rest(body: &mut dyn Body, max: usize) -> Bytes {
    let read = tokio::time::timeout(REST_MAX, read_body(body, max)).await;
    read.ok().and_then(Result::ok).unwrap_or_default()
}

async fn pour(mut body: Box<dyn Body>, sink: &mut dyn Sink) -> Result<(), ApiError> {
    loop {
        let next = tokio::time::timeout(STALL_MAX, body.chunk()).await;
        let next = next.map_err(|_| ApiError::Timeout { after: STALL_MAX })?;
        match next.map_err(|source| ApiError::Transport { source })? {
            Some(piece) => sink.take(&piece)?,
            None => return Ok(()),
        }
    }
}

/// The request that follows a redirect; `None` if it is not followed.
fn redirected(sent: &Outgoing, incoming: &Incoming) -> Option<Outgoing> {
    let keeps_method = matches!(incoming.status, 307 | 308);
    let is_get = sent.method == Method::GET;
    if !(keeps_method || (is_get && matches!(incoming.status, 301..=303))) {
        return None;
    }
    let location = incoming.headers.get(header::LOCATION)?.to_str().ok()?;
    let url = sent.url.join(location).ok()?;
    if url.origin() == sent.url.origin() {
        return Some(Outgoing { url, ..sent.clone() });
    }
    if !is_get || url.scheme() != "https" {
        return None;
    }
    let mut headers = HeaderMap::new();
    for name in [header::ACCEPT, header::USER_AGENT] {
        if let Some(value) = sent.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    Some(Outgoing { method: Method::GET, url, headers, body: None })
}

/// HTTP-1.
fn retries(error: &ApiError, request: &Request, headers: &HeaderMap) -> bool {
    if error.status() == Some(409) && !request.retries_conflict {
        return false;
    }
    match headers.get("x-should-retry").map(HeaderValue::as_bytes) {
        Some(b"true") => true,
        Some(b"false") => false,
        _ => match error {
            ApiError::Status { status, .. } => matches!(status, 408 | 409 | 429) || *status >= 500,
            ApiError::Transport { .. } | ApiError::Timeout { .. } => true,
            ApiError::Unreadable { .. } | ApiError::Credential(_) => true,
            _ => false,
        },
    }
}

/// HTTP-2: what the server asked for, if it is above zero; never more than a minute.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let seconds = |text: &str| text.trim().parse::<f64>().ok();
    let date = |text: &str| {
        let until = httpdate::parse_http_date(text).ok()?;
        Some(until.duration_since(std::time::SystemTime::now()).ok()?.as_secs_f64())
    };
    // Neither zero nor less, nor what is no number at all.
    let above_zero = |seconds: &f64| *seconds > 0.0;
    let ms = text("retry-after-ms").and_then(seconds).map(|ms| ms / 1000.0).filter(above_zero);
    let other = || text("retry-after").and_then(|text| seconds(text).or_else(|| date(text)));
    let wanted = ms.or_else(|| other().filter(above_zero))?;
    Some(Duration::from_secs_f64(wanted.min(RETRY_AFTER_MAX.as_secs_f64())))
}
