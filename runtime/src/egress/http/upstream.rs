//! The one connection to upstream that belongs to a client's connection: dialled for the first request
//! that is allowed, shared by those after it, closed with the client's.
//!
//! Everything that runs for a connection runs in its [`Tasks`] and ends when they are dropped.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::egress::Reason;

use super::head::{FIELDS_MAX, HEAD_BYTES_MAX};

/// What dials. Called at most once.
pub(super) type Dial<U> =
    Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = Result<U, Reason>> + Send>> + Send>;

/// Why a request got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// It was not dialled.
    Dial(Reason),
    /// The connection ended, or cannot be used.
    Gone,
    /// No head of a response in time.
    Late,
}

#[derive(Debug, Clone)]
enum State {
    Waiting,
    Open(Sender),
    Failed(Reason),
    Gone,
}

#[derive(Debug, Clone)]
enum Sender {
    One(Arc<tokio::sync::Mutex<http1::SendRequest<Incoming>>>),
    Two(http2::SendRequest<Incoming>),
}

/// Upstream of one client's connection.
pub(super) struct Upstream<U> {
    dial: Mutex<Option<Dial<U>>>,
    state: watch::Sender<State>,
    tasks: Tasks,
    version_2: bool,
    written: Written,
    patience: Duration,
}

impl<U: AsyncRead + AsyncWrite + Unpin + Send + 'static> Upstream<U> {
    /// `patience`: how long the head of a response may take, from the last byte written.
    pub fn new(dial: Dial<U>, version_2: bool, tasks: Tasks, patience: Duration) -> Upstream<U> {
        Upstream {
            dial: Mutex::new(Some(dial)),
            state: watch::Sender::new(State::Waiting),
            tasks,
            version_2,
            written: Written::default(),
            patience,
        }
    }

    /// Sends a request and waits for the head of the response.
    pub async fn send(&self, request: Request<Incoming>) -> Result<Response<Incoming>, Failure> {
        let sender = self.sender().await?;
        let send = async {
            match sender {
                Sender::One(sender) => {
                    let mut sender = sender.lock().await;
                    sender.ready().await?;
                    sender.send_request(request).await
                }
                Sender::Two(mut sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
            }
        };
        self.written.note();
        match self.written.within(self.patience, send).await {
            Some(Ok(response)) => Ok(response),
            Some(Err(_)) => Err(Failure::Gone),
            None => Err(Failure::Late),
        }
    }

    /// Waits until the connection, once open, has ended.
    pub async fn gone(&self) {
        let mut state = self.state.subscribe();
        let is_gone = |state: &State| matches!(state, State::Gone);
        if state.wait_for(is_gone).await.is_err() {
            std::future::pending().await
        }
    }

    async fn sender(&self) -> Result<Sender, Failure> {
        let dial = self.dial.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(dial) = dial {
            // Not in the request's own future: other streams wait for it too, and a stream that is
            // reset must not take the connection with it.
            let (state, tasks) = (self.state.clone(), self.tasks.clone());
            let (written, version_2) = (self.written.clone(), self.version_2);
            self.tasks.spawn(async move {
                let last = match dial().await {
                    Err(reason) => State::Failed(reason),
                    Ok(io) => {
                        let io = TokioIo::new(Watched { io, written });
                        let ended = match version_2 {
                            false => run_1(io, &state).await,
                            true => run_2(io, &state, tasks).await,
                        };
                        ended.unwrap_or(State::Gone)
                    }
                };
                state.send_replace(last);
            });
        }
        let mut state = self.state.subscribe();
        let known = state.wait_for(|state| !matches!(state, State::Waiting)).await;
        match known.as_deref() {
            Ok(State::Open(sender)) => Ok(sender.clone()),
            Ok(State::Failed(reason)) => Err(Failure::Dial(*reason)),
            _ => Err(Failure::Gone),
        }
    }
}

async fn run_1<I>(io: TokioIo<I>, state: &watch::Sender<State>) -> hyper::Result<State>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .preserve_header_case(true)
        .max_buf_size(2 * HEAD_BYTES_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_headers(FIELDS_MAX)
        .handshake(io)
        .await?;
    state.send_replace(State::Open(Sender::One(Arc::new(tokio::sync::Mutex::new(sender)))));
    connection.with_upgrades().await?;
    Ok(State::Gone)
}

async fn run_2<I>(
    io: TokioIo<I>,
    state: &watch::Sender<State>,
    tasks: Tasks,
) -> hyper::Result<State>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(tasks)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .adaptive_window(true)
        .handshake(io)
        .await?;
    state.send_replace(State::Open(Sender::Two(sender)));
    connection.await?;
    Ok(State::Gone)
}

/// What runs for one connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Tasks(Arc<Mutex<Option<JoinSet<()>>>>);

/// Ends them when dropped.
#[derive(Debug)]
pub(super) struct TasksGuard(Tasks);

impl Tasks {
    /// To be kept for as long as the connection.
    pub fn begin() -> (Tasks, TasksGuard) {
        let tasks = Tasks(Arc::new(Mutex::new(Some(JoinSet::new()))));
        (tasks.clone(), TasksGuard(tasks))
    }

    fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // After the end, it is dropped.
        if let Some(set) = &mut *set {
            while set.try_join_next().is_some() {}
            set.spawn(future);
        }
    }
}

impl Drop for TasksGuard {
    fn drop(&mut self) {
        let set = self.0.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(set);
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
{
    fn execute(&self, future: F) {
        self.spawn(async move {
            future.await;
        });
    }
}

/// When something was last written to upstream.
#[derive(Debug, Clone)]
struct Written {
    start: Instant,
    milliseconds: Arc<AtomicU64>,
}

impl Default for Written {
    fn default() -> Self {
        Written { start: Instant::now(), milliseconds: Arc::default() }
    }
}

impl Written {
    fn note(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.milliseconds.store(now, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.milliseconds.load(Ordering::Relaxed))
    }

    /// The result of `future`, or `None` once nothing was written for `patience`.
    async fn within<T>(&self, patience: Duration, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        loop {
            let due = self.last() + patience;
            tokio::select! {
                result = &mut future => return Some(result),
                () = tokio::time::sleep_until(due) => {
                    if self.last() + patience <= Instant::now() {
                        return None;
                    }
                }
            }
        }
    }
}

/// A socket whose writes are noted.
#[derive(Debug)]
struct Watched<U> {
    io: U,
    written: Written,
}

impl<U: AsyncRead + Unpin> AsyncRead for Watched<U> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, out)
    }
}

impl<U: AsyncWrite + Unpin> AsyncWrite for Watched<U> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written.note();
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.written.note();
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
