//! Carries bytes between two connected streams until both directions have ended.
//!
//! Runs once per connection, for as long as it lives, so it costs little while nothing moves: no
//! buffer is held by an idle connection. A half-closed direction stays half-closed, a reset is passed
//! on as a reset (by [`Peer`]), and who does not read is not read for.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::net::TcpStream;

use super::limits::{Meter, Way};
use super::peer::{Peer, end_writing};
use crate::egress::reason::Reason;

/// Bytes read at once.
const CHUNK: usize = 256 << 10;
/// Chunks carried in one direction before others get their turn.
const TURN: usize = 8;
/// Buffers kept for the next who needs one.
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
}

impl Buffers {
    fn take(&self) -> Box<[u8]> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice())
    }

    fn give(&self, buffer: Box<[u8]>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT_MAX {
            free.push(buffer);
        }
    }
}

/// One direction.
#[derive(Debug)]
struct Direction {
    way: Way,
    /// What was read and not yet written.
    left: Vec<u8>,
    ended: bool,
    done: bool,
}

impl Direction {
    fn new(way: Way) -> Direction {
        Direction { way, left: Vec::new(), ended: false, done: false }
    }

    /// Carries what can be carried; ready when this direction has ended.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        (from, to): (&TcpStream, &TcpStream),
        meter: &Meter,
        buffers: &Buffers,
    ) -> Poll<Result<(), Cut>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..TURN {
            if !self.left.is_empty() {
                ready!(to.poll_write_ready(cx))?;
                match to.try_write(&self.left) {
                    Ok(size) => drop(self.left.drain(..size)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(error.into())),
                }
                continue;
            }
            self.left = Vec::new();
            if self.ended {
                // Gone already is as good.
                let _ = end_writing(to);
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            ready!(from.poll_read_ready(cx))?;
            let mut buffer = buffers.take();
            let result = self.chunk(&mut buffer, (from, to), meter);
            buffers.give(buffer);
            result?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once and writes what can be written at once.
    fn chunk(
        &mut self,
        buffer: &mut [u8],
        (from, to): (&TcpStream, &TcpStream),
        meter: &Meter,
    ) -> Result<(), Cut> {
        let room = meter.reserve(self.way, buffer.len()).map_err(Cut::By)?;
        let result = from.try_read(&mut buffer[..room]);
        meter.settle(self.way, room, result.as_ref().copied().unwrap_or(0));
        let size = match result {
            Ok(0) => {
                self.ended = true;
                return Ok(());
            }
            Ok(size) => size,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let written = match to.try_write(&buffer[..size]) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error.into()),
        };
        if written < size {
            self.left = buffer[written..size].to_vec();
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
