//! Forwards the requests of one connection, each after its own check.
//!
//! Serves the client with one HTTP implementation and speaks to upstream with it again, so that
//! nothing of the client's bytes reaches upstream unread. One connection to upstream for each of the
//! client's: none is ever shared between names or clients.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::egress::{Reason, Target};
use crate::policy::network::{DenyDetail, Host};

use super::check::{self, Refused};
use super::denial::{Denied, undelivered};
use super::head::{FIELDS_MAX, HEAD_BYTES_MAX};
use super::hops::{self, Upgrade};
use super::screen::{Handle, Patience, Screen};
use super::upstream::{Dial, Failure, Tasks, TasksGuard, Upstream};

/// How long a client that was refused may take to read why, and how much it may still send.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 256 * 1024;
/// Most streams of an HTTP/2 connection at once.
const STREAMS_MAX: u32 = 128;

/// How a connection is served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// What a denial says.
    pub detail: DenyDetail,
    /// How long a request head may take, from its first byte.
    pub head: Duration,
    /// How long the next request may take to begin.
    pub idle: Duration,
    /// How long the head of a response may take, from the last byte written to upstream.
    pub response: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            detail: DenyDetail::default(),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            response: Duration::from_secs(600),
        }
    }
}

type Body = Either<Incoming, Full<Bytes>>;
type Deny = Box<dyn Fn(Reason, Option<&Host>) -> u64 + Send + Sync>;

/// The connection is closed without an answer, as upstream closed its own.
#[derive(Debug, thiserror::Error)]
#[error("upstream closed the connection")]
struct Closed;

/// What all requests of a connection share.
struct Gate<U> {
    target: Target,
    detail: DenyDetail,
    deny: Deny,
    upstream: Upstream<U>,
    /// Why the connection does not go on, first of all.
    stopped: Mutex<Option<Reason>>,
    /// It becomes what this leads to.
    becomes: Mutex<Option<OnUpgrade>>,
}

/// Forwards the requests of `client`, all of which must name `target`.
///
/// `dial` is called for the first request that is allowed, at most once; the result of a lookup and of
/// the rules on addresses is its to give. [`Reason::Unreachable`] and [`Reason::NoAddress`] are told to
/// the client as upstream's failure, any other reason as a denial, which `dial` does not record
/// itself. `deny` records a denial, with the host that the client named if that can be read, and
/// returns the number of the decision; it is called before the client can notice.
///
/// Ends when either side does. Dropping the future closes both connections at once.
///
/// # Errors
/// The first [`Reason`] for which a request was not forwarded; with HTTP/2 others may have been.
pub(crate) async fn forward<C, U, D, F, N>(
    client: C,
    target: &Target,
    dial: D,
    deny: N,
    options: Options,
) -> Result<(), Reason>
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    U: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    D: FnOnce() -> F + Send + 'static,
    F: Future<Output = Result<U, Reason>> + Send + 'static,
    N: Fn(Reason, Option<&Host>) -> u64 + Send + Sync + 'static,
{
    let mut screen = Screen::new(client, Patience { head: options.head, idle: options.idle });
    let Ok(version_2) = screen.is_version_2().await else { return Ok(()) };
    let (tasks, guard) = Tasks::begin();
    let dial: Dial<U> = Box::new(move || Box::pin(dial()));
    let gate = Arc::new(Gate {
        target: target.clone(),
        detail: options.detail,
        deny: Box::new(deny),
        upstream: Upstream::new(dial, version_2, tasks.clone(), options.response),
        stopped: Mutex::default(),
        becomes: Mutex::default(),
    });
    match version_2 {
        true => serve_2(screen, Arc::clone(&gate), tasks).await,
        false => serve_1(screen, Arc::clone(&gate), guard).await,
    }
    let stopped = *gate.stopped.lock().unwrap_or_else(PoisonError::into_inner);
    stopped.map_or(Ok(()), Err)
}

async fn serve_1<C, U>(screen: Screen<C>, gate: Arc<Gate<U>>, tasks: TasksGuard)
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    U: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handle = screen.handle();
    let count = Arc::new(AtomicU64::new(0));
    let service = service_fn(|request| {
        let (gate, handle) = (Arc::clone(&gate), handle.clone());
        let number = count.fetch_add(1, Ordering::Relaxed) + 1;
        Box::pin(async move { gate.answer(request, Some((&handle, number))).await })
            as Pin<Box<dyn Future<Output = _> + Send>>
    });
    let mut connection = http1::Builder::new()
        .half_close(true)
        .preserve_header_case(true)
        .auto_date_header(false)
        .header_read_timeout(None)
        .max_buf_size(2 * HEAD_BYTES_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_headers(FIELDS_MAX)
        .serve_connection(TokioIo::new(screen), service);
    let mut closing = false;
    let ended = loop {
        tokio::select! {
            ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break ended,
            () = gate.upstream.gone(), if !closing => closing = true,
        }
        // A response that came before the end, a switch of protocols above all, is begun as it is;
        // then the one that is under way is finished, and no other.
        let begun = poll_fn(|cx| Poll::Ready(connection.poll_without_shutdown(cx))).await;
        if let Poll::Ready(ended) = begun {
            break ended;
        }
        Pin::new(&mut connection).graceful_shutdown();
    };
    let parts = connection.into_parts();
    let (mut client, rest) = parts.io.into_inner().into_parts();
    let stopped = gate.stopped.lock().unwrap_or_else(PoisonError::into_inner).is_some();
    // Every request was answered for; what is left is a connection that broke.
    if (handle.is_broken() || ended.as_ref().is_err_and(hyper::Error::is_parse)) && !stopped {
        gate.stop(Reason::Malformed, None);
    }
    let becomes = gate.becomes.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (ended, becomes) {
        (Ok(()), Some(becomes)) => relay(client, [parts.read_buf, rest], becomes).await,
        (Ok(()), None) if stopped => linger(&mut client).await,
        (Ok(()), None) => {
            let _ = tokio::time::timeout(LINGER, client.shutdown()).await;
        }
        (Err(_), _) => {}
    }
    drop(tasks);
}

async fn serve_2<C, U>(screen: Screen<C>, gate: Arc<Gate<U>>, tasks: Tasks)
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    U: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let gate = Arc::clone(&gate);
        async move { gate.answer(request, None).await }
    });
    let connection = version_2(tasks).serve_connection(TokioIo::new(screen), service);
    let mut connection = std::pin::pin!(connection);
    let mut closing = false;
    loop {
        tokio::select! {
            // However it ended: the streams have had their answers.
            _ = &mut connection => return,
            () = gate.upstream.gone(), if !closing => {
                connection.as_mut().graceful_shutdown();
                closing = true;
            }
        }
    }
}

/// Streams that are reset at once are bounded by hyper: 20 not yet accepted, 1,024 by our own errors.
fn version_2(tasks: Tasks) -> http2::Builder<Tasks> {
    let mut builder = http2::Builder::new(tasks);
    builder
        .auto_date_header(false)
        .adaptive_window(true)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32);
    builder
}

impl<U: AsyncRead + AsyncWrite + Unpin + Send + 'static> Gate<U> {
    /// Answers one request. With HTTP/1, `seen` is what the screen saw and the request's number.
    async fn answer(
        &self,
        request: Request<Incoming>,
        seen: Option<(&Handle, u64)>,
    ) -> Result<Response<Body>, Closed> {
        let version = request.version();
        if let Some(Err(reason)) = seen.map(|(handle, number)| handle.passed(number)) {
            return Ok(self.refuse(version, Refused { reason, named: None }));
        }
        let (mut head, body) = request.into_parts();
        if let Err(refused) = check::request(&mut head, &self.target) {
            return Ok(self.refuse(version, refused));
        }
        let upgrade = hops::request(&mut head);
        head.extensions.remove::<OnUpgrade>();
        let sent = self.upstream.send(Request::from_parts(head, body)).await;
        let mut response = match sent {
            Ok(response) => response,
            Err(failure) => return self.failed(version, failure, seen),
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(upgrade, response);
        }
        response.extensions_mut().remove::<OnUpgrade>();
        if let Some((handle, _)) = seen {
            handle.release();
        }
        let (mut head, body) = response.into_parts();
        hops::response(&mut head);
        Ok(Response::from_parts(head, Either::Left(body)))
    }

    fn switch(
        &self,
        upgrade: Upgrade,
        mut response: Response<Incoming>,
    ) -> Result<Response<Body>, Closed> {
        let becomes = hyper::upgrade::on(&mut response);
        let (mut head, body) = response.into_parts();
        if upgrade != Upgrade::WebSocket || !hops::switches(&mut head) {
            return Err(Closed);
        }
        *self.becomes.lock().unwrap_or_else(PoisonError::into_inner) = Some(becomes);
        Ok(Response::from_parts(head, Either::Left(body)))
    }

    fn failed(
        &self,
        version: Version,
        failure: Failure,
        seen: Option<(&Handle, u64)>,
    ) -> Result<Response<Body>, Closed> {
        let status = match failure {
            // The body turned out to be unreadable: not upstream's doing.
            _ if seen.is_some_and(|(handle, _)| handle.is_broken()) => return Err(Closed),
            Failure::Gone => return Err(Closed),
            Failure::Late => StatusCode::GATEWAY_TIMEOUT,
            Failure::Dial(Reason::Unreachable | Reason::NoAddress) => StatusCode::BAD_GATEWAY,
            Failure::Dial(reason) => {
                let named = Some(self.target.host.clone());
                return Ok(self.refuse(version, Refused { reason, named }));
            }
        };
        let reason = match failure {
            Failure::Dial(reason) => reason,
            _ => Reason::Unreachable,
        };
        self.note(reason);
        let to = (&self.target.host, self.target.port);
        Ok(undelivered(version, status, to, self.detail).map(Either::Right))
    }

    /// Denies a request: on record first, then to the client.
    fn refuse(&self, version: Version, refused: Refused) -> Response<Body> {
        let Refused { reason, named } = refused;
        let number = self.stop(reason, named.as_ref());
        let denied = Denied { reason, host: named.as_ref(), port: self.target.port, number };
        denied.response(version, self.detail).map(Either::Right)
    }

    fn stop(&self, reason: Reason, named: Option<&Host>) -> u64 {
        self.note(reason);
        (self.deny)(reason, named)
    }

    fn note(&self, reason: Reason) {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        stopped.get_or_insert(reason);
    }
}

/// After 101: bytes both ways, unread.
async fn relay<C>(mut client: C, early: [Bytes; 2], becomes: OnUpgrade)
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(upstream) = becomes.await else { return };
    let mut upstream = TokioIo::new(upstream);
    for bytes in early {
        if upstream.write_all(&bytes).await.is_err() {
            return;
        }
    }
    if upstream.flush().await.is_ok() {
        // An error of either side ends both, which is all there is to tell.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
    }
}

/// Closes so that the client can read the answer: bytes it still sends would otherwise reset the
/// connection under it (RFC 9112, 9.6).
async fn linger<C: AsyncRead + AsyncWrite + Unpin>(client: &mut C) {
    let close = async {
        client.shutdown().await?;
        let (mut left, mut buffer) = (LINGER_BYTES_MAX, [0; 4096]);
        while left > 0 {
            match client.read(&mut buffer).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        Ok::<_, std::io::Error>(())
    };
    // The answer was sent; whether it is read is the client's affair.
    let _ = tokio::time::timeout(LINGER, close).await;
}

/// Tells a client whose connection is denied as such, and recorded as `decision`, why.
///
/// Waits for the first request head, or what there is of it after `wait`, answers 403 and closes. Reads
/// no more than a head may have. With HTTP/2, streams begun within `wait` are answered.
pub(crate) async fn refuse<C>(
    client: C,
    target: &Target,
    reason: Reason,
    decision: u64,
    detail: DenyDetail,
    wait: Duration,
) where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let until = tokio::time::Instant::now() + wait;
    let mut screen = Screen::new(client, Patience { head: wait, idle: wait });
    let Ok(is_version_2) = screen.is_version_2().await else { return };
    let denied = Denied { reason, host: Some(&target.host), port: target.port, number: decision };
    if is_version_2 {
        let (tasks, _guard) = Tasks::begin();
        let service = service_fn(|request: Request<Incoming>| {
            let response = denied.response(request.version(), detail);
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = version_2(tasks).serve_connection(TokioIo::new(screen), service);
        let _ = tokio::time::timeout_at(until, connection).await;
        return;
    }
    // What comes through the screen is a whole head or what stands for one: the end of the wait.
    let _ = tokio::time::timeout_at(until, screen.read(&mut [0; 1])).await;
    let (mut client, _) = screen.into_parts();
    let send = async {
        client.write_all(&denied.bytes(detail)).await?;
        client.flush().await
    };
    if let Ok(Ok(())) = tokio::time::timeout(LINGER, send).await {
        linger(&mut client).await;
    }
}
