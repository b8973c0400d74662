//! Carries bytes between two connected streams until both directions have ended.
//!
//! Runs once per connection, for as long as it lives, so it costs little while nothing moves: no
//! buffer is held by an idle connection. A half-closed direction stays half-closed, a reset is passed
//! on as a reset (by [`Peer`]), and who does not read is not read for.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::net::TcpStream;

use super::limits::{Meter, Way};
use super::peer::{Peer, end_writing};
use crate::egress::reason::Reason;

/// Bytes read at once, and where many connections wait for slow readers.
const CHUNK: usize = 256 << 10;
const SMALL_CHUNK: usize = 16 << 10;
/// Chunks carried in one direction before others get their turn.
const TURN: usize = 8;
/// Large buffers of the whole process: those in use, and those kept for the next who needs one.
const LARGE_MAX: usize = 128;
const KEPT_MAX: usize = 16;

/// Why carrying ended before both directions did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// One of the two ends was reset or is gone.
    Peer,
    /// We did it.
    By(Reason),
}

impl From<io::Error> for Cut {
    fn from(_: io::Error) -> Cut {
        Cut::Peer
    }
}

/// Buffers of all connections.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: Mutex<Vec<Box<[u8]>>>,
    large: AtomicUsize,
}

/// A buffer, given back when dropped.
#[derive(Debug)]
struct Buffer<'a> {
    bytes: Box<[u8]>,
    home: &'a Buffers,
}

impl Buffers {
    fn take(&self) -> Buffer<'_> {
        let more = |large: usize| (large < LARGE_MAX).then_some(large + 1);
        let bytes = match self.large.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => {
                let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
                free.unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice())
            }
            Err(_) => vec![0; SMALL_CHUNK].into_boxed_slice(),
        };
        Buffer { bytes, home: self }
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        if self.bytes.len() < CHUNK {
            return;
        }
        self.home.large.fetch_sub(1, Ordering::Relaxed);
        let mut free = self.home.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT_MAX {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// One direction.
#[derive(Debug)]
struct Direction<'a> {
    way: Way,
    /// What was read and not yet written.
    left: Option<(Buffer<'a>, Range<usize>)>,
    ended: bool,
    done: bool,
}

impl<'a> Direction<'a> {
    fn new(way: Way) -> Direction<'a> {
        Direction { way, left: None, ended: false, done: false }
    }

    /// Carries what can be carried; ready when this direction has ended.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        (from, to): (&TcpStream, &TcpStream),
        meter: &Meter,
        buffers: &'a Buffers,
    ) -> Poll<Result<(), Cut>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..TURN {
            if self.left.is_some() {
                ready!(to.poll_write_ready(cx))?;
                self.write(to)?;
                continue;
            }
            if self.ended {
                // Gone already is as good.
                let _ = end_writing(to);
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            ready!(from.poll_read_ready(cx))?;
            self.read(from, meter, buffers.take())?;
            self.write(to)?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads what is there.
    fn read(&mut self, from: &TcpStream, meter: &Meter, mut to: Buffer<'a>) -> Result<(), Cut> {
        let room = meter.reserve(self.way, to.bytes.len()).map_err(Cut::By)?;
        let result = from.try_read(&mut to.bytes[..room]);
        meter.settle(self.way, room, result.as_ref().copied().unwrap_or(0));
        match result {
            Ok(0) => self.ended = true,
            Ok(size) => self.left = Some((to, 0..size)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Writes what was read, as far as there is room for it.
    fn write(&mut self, to: &TcpStream) -> Result<(), Cut> {
        let Some((buffer, range)) = &mut self.left else { return Ok(()) };
        match to.try_write(&buffer.bytes[range.clone()]) {
            Ok(size) => range.start += size,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if range.start == range.end {
            self.left = None;
        }
        Ok(())
    }
}

/// Carries bytes between `client` and `server` until both have ended, or something cuts it.
///
/// # Errors
/// [`Cut`].
pub(super) async fn relay(
    client: &Arc<Peer>,
    server: &Arc<Peer>,
    meter: &Meter,
    buffers: &Buffers,
) -> Result<(), Cut> {
    let (client, server) = (client.stream(), server.stream());
    let (mut out, mut back) = (Direction::new(Way::Out), Direction::new(Way::In));
    std::future::poll_fn(|cx| {
        let out = out.poll(cx, (client, server), meter, buffers)?;
        let back = back.poll(cx, (server, client), meter, buffers)?;
        match (out, back) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await
}
