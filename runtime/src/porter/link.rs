//! The porter's end of its connection: frames as `tool::frame` writes them, with a descriptor on the
//! first byte of a request that is about a file.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::tool::frame;

use super::message::{Answer, Order};

/// Receives one order; waits for it.
///
/// # Errors
/// `UnexpectedEof` if the control side is gone; `InvalidData` or `EMSGSIZE` if it speaks nonsense.
pub(super) fn receive(from: BorrowedFd<'_>) -> io::Result<(Order, Option<OwnedFd>)> {
    let mut header = [0; frame::HEADER_BYTES];
    let (mut had, mut file) = (0, None);
    while had < header.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let slice = &mut [IoSliceMut::new(&mut header[had..])];
        let got = match recvmsg(from, slice, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if got.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        had += got.bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                file = rights.last().or(file);
            }
        }
    }
    let mut bytes = vec![0; frame::announced(header)?];
    frame::read_exact(from, &mut bytes)?;
    Ok((frame::decode(&bytes)?, file))
}

/// Sends one answer.
pub(super) fn send(to: BorrowedFd<'_>, answer: &Answer) -> io::Result<()> {
    frame::send(to, answer)
}

/// Whether something can be received now, the end of the connection included.
pub(super) fn is_readable(from: impl AsFd) -> bool {
    let mut polled = [PollFd::new(&from, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // An error of poll cannot be told from an order; the next receive says what it is.
    !matches!(poll(&mut polled, Some(&now)), Ok(0))
}
