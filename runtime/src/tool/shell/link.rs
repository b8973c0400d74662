//! What executor and keeper say to each other, and how: a length, then that many bytes.
//!
//! Plain reads and writes only: the keeper's filter may allow no call of sockets. Neither side
//! trusts the other's lengths, and the executor's waits have a deadline.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::tool::frame::write_all;

/// Executor to keeper; one answer to each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ToKeeper {
    /// Start a shell; none runs.
    Start,
    /// A call ended: count what it left running, and let it live.
    Count,
    /// Make the shell give its command up, and kill what the call started.
    Interrupt,
    /// Kill what the call started.
    KillNew,
    /// Kill the shell and what the call started.
    KillShell,
    /// Kill everything in the tool tree.
    KillAll,
    /// Start the custom tool of this index; none runs.
    RunTool(u16),
}

/// Keeper to executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromKeeper {
    /// To `Start` and `RunTool`.
    Started,
    /// To `Start` and `RunTool`: an error number.
    NotStarted(i32),
    /// To `Count`.
    Counted(u32),
    /// To the rest: whether all that was to die is dead.
    Killed(bool),
    /// Without being asked: the shell ended, with 128 and the signal if one killed it. Comes before
    /// the answer to a request that killed it.
    Ended(i32),
    /// Likewise for the custom tool.
    ToolEnded(i32),
}

/// Longest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 256;

/// One end of the connection.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
}

impl Link {
    pub fn new(socket: OwnedFd) -> Link {
        Link { socket }
    }

    /// Sends one message.
    pub fn send<T: Serialize>(&self, message: &T) -> io::Result<()> {
        let bytes = postcard::to_stdvec(message).map_err(invalid)?;
        let header = (bytes.len() as u32).to_le_bytes();
        write_all(self.socket.as_fd(), &[&header[..], &bytes].concat())
    }

    /// Receives one message, or nothing if none has begun to arrive in time.
    ///
    /// # Errors
    /// `UnexpectedEof` if the other side is gone; `TimedOut` for half a message; `InvalidData` for
    /// what is too long or no message of ours.
    pub fn receive<T: DeserializeOwned>(&self, deadline: Instant) -> io::Result<Option<T>> {
        if !wait_readable(self.socket.as_fd(), deadline)? {
            return Ok(None);
        }
        let mut header = [0; 4];
        self.read_all(&mut header, deadline)?;
        let length = u32::from_le_bytes(header) as usize;
        if length > MESSAGE_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; length];
        self.read_all(&mut bytes, deadline)?;
        postcard::from_bytes(&bytes).map(Some).map_err(invalid)
    }

    fn read_all(&self, mut bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
        // A message is written whole: what follows its first byte is there, or never will be.
        let deadline = deadline.max(Instant::now() + Duration::from_secs(1));
        while !bytes.is_empty() {
            if !wait_readable(self.socket.as_fd(), deadline)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match rustix::io::read(&self.socket, &mut *bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => bytes = &mut bytes[read..],
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What is left until `deadline`, as poll(2) wants it.
pub(super) fn until(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now());
    Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
}

fn wait_readable(fd: BorrowedFd<'_>, deadline: Instant) -> io::Result<bool> {
    loop {
        match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&until(deadline))) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn invalid(error: postcard::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn pair() -> (Link, Link) {
        let (a, b) = UnixStream::pair().expect("socket pair");
        (Link::new(a.into()), Link::new(b.into()))
    }

    #[test]
    fn messages_arrive_and_silence_ends_at_the_deadline() {
        let (a, b) = pair();
        a.send(&FromKeeper::Ended(137)).expect("sent");
        let now = Instant::now();
        assert_eq!(b.receive(now).expect("received"), Some(FromKeeper::Ended(137)));
        assert_eq!(b.receive::<FromKeeper>(now).expect("nothing"), None);
        drop(a);
        let end = b.receive::<FromKeeper>(now).expect_err("end");
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_length_beyond_the_bound_and_garbage_are_refused() {
        for bytes in [&[0xff, 0xff, 0xff, 0xff][..], &[1, 0, 0, 0, 0x7f]] {
            let (a, b) = pair();
            write_all(a.as_fd(), bytes).expect("sent");
            let error = b.receive::<FromKeeper>(Instant::now()).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }
}
