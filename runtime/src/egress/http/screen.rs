//! Stands between a client's socket and the HTTP parser and lets whole, unambiguous heads through.
//!
//! Follows the framing of every request, so that it knows where the next head begins. A head that is
//! refused never reaches the parser: a harmless request of ours takes its place, so that the answer
//! comes in its turn after those of the requests before it, and nothing more is read. The parser's
//! requests are counted against the heads seen here: if the two ever disagree, the request is refused.

use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::egress::Reason;

use super::framing::Framing;
use super::head::{self, Ambiguous};

/// How an HTTP/2 connection begins (RFC 9113, 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What the parser gets in place of a refused head.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
/// Least room of one read.
const READ_BYTES_MIN: usize = 8 * 1024;
/// Most empty lines in front of a request line (RFC 9112, 2.2).
const EMPTY_LINES_MAX: u8 = 2;

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For a head, from its first byte; for the first byte of a connection too.
    pub head: Duration,
    /// For the first byte of the next request.
    pub idle: Duration,
}

/// What screen and service know of each other.
#[derive(Debug, Default)]
pub(super) struct Progress {
    heads: u64,
    refused: Option<(u64, Reason)>,
    broken: bool,
    held: bool,
    waker: Option<Waker>,
}

/// The shared part of a [`Screen`].
#[derive(Debug, Clone, Default)]
pub(super) struct Handle(Arc<Mutex<Progress>>);

impl Handle {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the request `number`, from 1, as the parser counts, may be looked at.
    pub fn passed(&self, number: u64) -> Result<(), Reason> {
        let progress = self.lock();
        match progress.refused {
            Some((at, reason)) if at <= number => Err(reason),
            _ if number > progress.heads => Err(Reason::Malformed),
            _ => Ok(()),
        }
    }

    /// Whether a body was refused after its head had passed.
    pub fn is_broken(&self) -> bool {
        self.lock().broken
    }

    /// The connection stays HTTP: what follows a request for another protocol is read.
    pub fn release(&self) {
        let mut progress = self.lock();
        progress.held = false;
        if let Some(waker) = progress.waker.take() {
            waker.wake();
        }
    }
}

#[derive(Debug)]
enum Phase {
    /// Between requests or in a head, of which so many bytes were looked at.
    Head { seen: usize, empty_lines: u8 },
    /// In a body; whether to wait after it.
    Body { framing: Framing, hold: bool },
    /// Until it is known whether the connection stays HTTP.
    Held,
    /// Not ours to read: HTTP/2.
    Open,
    /// Nothing more is read.
    Over,
}

/// The client's side of a connection.
#[derive(Debug)]
pub(super) struct Screen<C> {
    inner: C,
    /// Bytes that were read and not handed on.
    buffer: BytesMut,
    /// So many at its front may be.
    cleared: usize,
    phase: Phase,
    patience: Patience,
    /// The client has said something.
    begun: bool,
    deadline: Option<Pin<Box<Sleep>>>,
    handle: Handle,
}

impl<C: AsyncRead + Unpin> Screen<C> {
    pub fn new(inner: C, patience: Patience) -> Screen<C> {
        Screen {
            inner,
            buffer: BytesMut::new(),
            cleared: 0,
            phase: Phase::Head { seen: 0, empty_lines: 0 },
            patience,
            begun: false,
            deadline: None,
            handle: Handle::default(),
        }
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Reads until it is clear whether the connection is HTTP/2; if so, hands on everything from now.
    ///
    /// Waits no longer than for a head. What does not come in time is HTTP/1 as far as it goes.
    pub async fn is_version_2(&mut self) -> io::Result<bool> {
        let until = Instant::now() + self.patience.head;
        while PREFACE.starts_with(&self.buffer) && self.buffer.len() < PREFACE.len() {
            self.buffer.reserve(READ_BYTES_MIN);
            let read = self.inner.read_buf(&mut self.buffer);
            match tokio::time::timeout_at(until, read).await {
                Ok(Ok(0)) | Err(_) => break,
                Ok(Ok(_)) => self.begun = true,
                Ok(Err(error)) => return Err(error),
            }
        }
        let is_version_2 = self.buffer.starts_with(PREFACE);
        if is_version_2 {
            self.phase = Phase::Open;
            self.cleared = self.buffer.len();
        } else {
            self.deadline = Some(Box::pin(tokio::time::sleep_until(until)));
        }
        Ok(is_version_2)
    }

    /// The socket, and what was read from it and not handed on.
    pub fn into_parts(self) -> (C, Bytes) {
        (self.inner, self.buffer.freeze())
    }

    /// Puts our request in place of what the client sent.
    fn refuse(&mut self, reason: Reason) {
        let mut progress = self.handle.lock();
        progress.heads += 1;
        progress.refused = Some((progress.heads, reason));
        drop(progress);
        self.buffer = BytesMut::from(STAND_IN);
        self.cleared = STAND_IN.len();
        self.phase = Phase::Over;
    }

    /// Looks at what is buffered; whether more must be read.
    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        match &mut self.phase {
            Phase::Head { seen, empty_lines } => {
                while *seen == 0
                    && *empty_lines < EMPTY_LINES_MAX
                    && self.buffer.starts_with(b"\r\n")
                {
                    self.buffer.advance(2);
                    *empty_lines += 1;
                }
                // A lone CR may be the first half of an empty line.
                if self.buffer.is_empty() || self.buffer[..] == b"\r"[..] {
                    return Poll::Ready(Ok(true));
                }
                match head::read(&self.buffer, *seen) {
                    Ok(None) => {
                        *seen = self.buffer.len();
                        return Poll::Ready(Ok(true));
                    }
                    Ok(Some(head)) => {
                        self.cleared = head.length;
                        self.deadline = None;
                        let mut progress = self.handle.lock();
                        progress.heads += 1;
                        progress.held = head.upgrade;
                        drop(progress);
                        self.phase = after(head.body, head.upgrade);
                    }
                    Err(Ambiguous) => self.refuse(Reason::Malformed),
                }
            }
            Phase::Body { framing, hold } => {
                if self.buffer.is_empty() {
                    return Poll::Ready(Ok(true));
                }
                let Ok(used) = framing.follow(&self.buffer) else {
                    return Poll::Ready(Err(self.broken()));
                };
                self.cleared = used;
                if framing.is_over() {
                    self.phase = after(Framing::length(0), *hold);
                }
            }
            Phase::Held => {
                let mut progress = self.handle.lock();
                if progress.held {
                    progress.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                drop(progress);
                self.phase = Phase::Head { seen: 0, empty_lines: 0 };
            }
            Phase::Open => match self.buffer.len() {
                0 => return Poll::Ready(Ok(true)),
                all => self.cleared = all,
            },
            Phase::Over => {}
        }
        Poll::Ready(Ok(false))
    }

    fn broken(&mut self) -> io::Error {
        self.handle.lock().broken = true;
        self.phase = Phase::Over;
        self.buffer.clear();
        io::Error::from(io::ErrorKind::InvalidData)
    }

    /// Whether the client took too long for a head. Runs only while one is waited for.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let Phase::Head { .. } = self.phase else { return false };
        let wait = match self.begun && self.buffer.is_empty() {
            true => self.patience.idle,
            false => self.patience.head,
        };
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
        deadline.as_mut().poll(cx).is_ready()
    }

    /// Bytes of a body go to the parser without a stop here.
    fn poll_body(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, out))?;
        let new = &out.filled()[before..];
        let Phase::Body { framing, hold } = &mut self.phase else { return Poll::Ready(Ok(())) };
        let Ok(used) = framing.follow(new) else {
            out.set_filled(before);
            return Poll::Ready(Err(self.broken()));
        };
        // The beginning of the next request.
        self.buffer.extend_from_slice(&new[used..]);
        if framing.is_over() {
            self.phase = after(Framing::length(0), *hold);
        }
        out.set_filled(before + used);
        Poll::Ready(Ok(()))
    }
}

fn after(body: Framing, hold: bool) -> Phase {
    match body.is_over() {
        false => Phase::Body { framing: body, hold },
        true if hold => Phase::Held,
        true => Phase::Head { seen: 0, empty_lines: 0 },
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Screen<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.cleared > 0 {
                let count = this.cleared.min(out.remaining());
                out.put_slice(&this.buffer[..count]);
                this.buffer.advance(count);
                this.cleared -= count;
                return Poll::Ready(Ok(()));
            }
            if let Phase::Over = this.phase {
                return Poll::Ready(Ok(()));
            }
            if !ready!(this.advance(cx))? {
                continue;
            }
            if let (Phase::Body { .. } | Phase::Open, true) = (&this.phase, this.buffer.is_empty())
            {
                return this.poll_body(cx, out);
            }
            let idle = this.buffer.is_empty();
            this.buffer.reserve(READ_BYTES_MIN);
            let read = pin!(this.inner.read_buf(&mut this.buffer)).poll(cx);
            match read {
                Poll::Ready(Ok(0)) => {
                    // A head that was cut off is nobody's request.
                    this.phase = Phase::Over;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(_)) => {
                    if idle && this.begun {
                        this.deadline = None;
                    }
                    this.begun = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if this.is_late(cx) => match this.buffer.is_empty() {
                    true => this.phase = Phase::Over,
                    false => this.refuse(Reason::Malformed),
                },
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Screen<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
