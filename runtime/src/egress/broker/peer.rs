//! One end of a connection. It is closed with a reset unless somebody said that all is well: a
//! connection that is cut must not look complete to either side.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::limits::{Meter, Way};

/// A stream that is reset when dropped.
#[derive(Debug)]
pub(super) struct Peer {
    stream: TcpStream,
    complete: AtomicBool,
}

impl Peer {
    /// Takes a connected stream.
    pub fn new(stream: TcpStream) -> Peer {
        // Only a matter of speed.
        let _ = stream.set_nodelay(true);
        Peer { stream, complete: AtomicBool::new(false) }
    }

    /// The stream.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Both sides are done: what was written is still delivered after the drop.
    pub fn complete(&self) {
        self.complete.store(true, Ordering::Relaxed);
    }

    /// The address the stream was connected to, from the client's side of it.
    pub fn wanted(&self) -> io::Result<SocketAddr> {
        let address = self.stream.local_addr()?;
        Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if !self.complete.load(Ordering::Relaxed) {
            // A socket that is gone already cannot be reset, and need not be.
            let _ = self.stream.set_zero_linger();
        }
    }
}

/// A peer for code that reads and writes streams, with some bytes that were read before.
#[derive(Debug)]
pub(super) struct Metered {
    peer: Arc<Peer>,
    before: Vec<u8>,
    meter: Arc<Meter>,
    /// Whether its bytes are counted.
    counts: bool,
}

impl Metered {
    /// The jail's end: `before` was read from it already. Its bytes are not counted.
    pub fn client(peer: Arc<Peer>, before: Vec<u8>, meter: Arc<Meter>) -> Metered {
        Metered { peer, before, meter, counts: false }
    }

    /// The far end, where bytes are counted: what does not get there, did not leave.
    pub fn server(peer: Arc<Peer>, meter: Arc<Meter>) -> Metered {
        Metered { peer, before: Vec::new(), meter, counts: true }
    }

    fn reserve(&self, way: Way, want: usize) -> io::Result<usize> {
        match self.counts {
            true => self.meter.reserve(way, want).map_err(|_| {
                self.meter.use_up();
                io::ErrorKind::QuotaExceeded.into()
            }),
            false => Ok(want),
        }
    }

    fn settle(&self, way: Way, reserved: usize, result: &io::Result<usize>) {
        let actual = result.as_ref().copied().unwrap_or(0);
        match self.counts {
            true => self.meter.settle(way, reserved, actual),
            false if actual > 0 => self.meter.touch(),
            false => {}
        }
        if result.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
            self.meter.fail();
        }
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.before.is_empty() {
            let size = self.before.len().min(buf.remaining());
            buf.put_slice(&self.before[..size]);
            self.before.drain(..size);
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.peer.stream.poll_read_ready(cx))?;
            let size = self.reserve(Way::In, buf.remaining())?;
            let room = buf.initialize_unfilled_to(size);
            let result = self.peer.stream.try_read(room);
            self.settle(Way::In, size, &result);
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other.map(|size| buf.advance(size))),
            }
        }
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.peer.stream.poll_write_ready(cx))?;
            let size = self.reserve(Way::Out, bytes.len())?;
            let result = self.peer.stream.try_write(&bytes[..size]);
            self.settle(Way::Out, size, &result);
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(end_writing(&self.peer.stream))
    }
}

/// Ends the bytes to the other side; it may still send.
pub(super) fn end_writing(stream: &TcpStream) -> io::Result<()> {
    Ok(rustix::net::shutdown(stream, rustix::net::Shutdown::Write)?)
}
