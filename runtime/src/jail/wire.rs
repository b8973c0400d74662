//! Framing between our processes: a length, then that many bytes of one message, with descriptors
//! on the first byte. Both sides are ours, and neither trusts the other's lengths.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message, in bytes: the kernel's own bound on arguments and environment.
const MESSAGE_BYTES_MAX: usize = 3 << 20;
/// Most descriptors with one message.
pub(crate) const DESCRIPTORS_MAX: usize = 128;

/// One end of a connection between two of our processes.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: UnixStream,
}

impl Wire {
    /// Two connected ends, both close-on-exec.
    pub fn pair() -> io::Result<(Wire, Wire)> {
        let (a, b) = UnixStream::pair()?;
        Ok((Wire { stream: a }, Wire { stream: b }))
    }

    /// The end that was left at a descriptor by whoever started this process.
    pub fn from_fd(fd: OwnedFd) -> Wire {
        Wire { stream: UnixStream::from(fd) }
    }

    /// Sends one message and lends `descriptors` to the receiver.
    pub fn send<T: Serialize>(
        &mut self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = postcard::to_stdvec(message).map_err(invalid)?;
        if bytes.len() > MESSAGE_BYTES_MAX || descriptors.len() > DESCRIPTORS_MAX {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let header = (bytes.len() as u32).to_le_bytes();
        if descriptors.is_empty() {
            // One plain write: a payload whose policy allows no sockets still has to report.
            return self.write_plain(&[&header[..], &bytes].concat());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(descriptors));
        let slice = [IoSlice::new(&header)];
        let sent = rustix::net::sendmsg(&self.stream, &slice, &mut control, SendFlags::NOSIGNAL)?;
        self.write_plain(&header[sent..])?;
        self.write_plain(&bytes)
    }

    /// The standard library's stream would send(2), which is a call of sockets.
    fn write_plain(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.stream, bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Likewise for recv(2).
    fn read_plain(&self, mut bytes: &mut [u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::io::read(&self.stream, &mut *bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => bytes = &mut bytes[read..],
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits for a message of no content and of no descriptors, with a plain read.
    pub fn receive_nod(&mut self) -> io::Result<()> {
        let mut header = [0u8; 4];
        self.read_plain(&mut header)?;
        match u32::from_le_bytes(header) {
            0 => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Receives one message and the descriptors that came with it.
    ///
    /// # Errors
    /// `UnexpectedEof` if the other side is gone; `InvalidData` for a message that is too long or
    /// not one of ours.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<(T, Vec<OwnedFd>)> {
        let mut header = [0u8; 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = loop {
            let slice = &mut [IoSliceMut::new(&mut header)];
            match rustix::net::recvmsg(&self.stream, slice, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?,
            }
        };
        if got.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        self.read_plain(&mut header[got.bytes..])?;
        let length = u32::from_le_bytes(header) as usize;
        if length > MESSAGE_BYTES_MAX {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let mut bytes = vec![0; length];
        self.read_plain(&mut bytes)?;
        Ok((postcard::from_bytes(&bytes).map_err(invalid)?, descriptors))
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn invalid(error: postcard::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn messages_and_descriptors_arrive_together() {
        let (mut a, mut b) = Wire::pair().expect("socket pair");
        let file = std::fs::File::open("/dev/null").expect("/dev/null");
        a.send(&("hello".to_owned(), 7u32), &[file.as_fd()]).expect("sent");
        let ((text, number), descriptors): ((String, u32), _) = b.receive().expect("received");
        assert_eq!((text.as_str(), number, descriptors.len()), ("hello", 7, 1));
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_memory_is_taken() {
        let (mut a, mut b) = Wire::pair().expect("socket pair");
        a.stream.write_all(&u32::MAX.to_le_bytes()).expect("sent");
        let error = b.receive::<u32>().expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    }

    #[test]
    fn a_closed_connection_is_an_end_and_garbage_is_an_error() {
        let (mut a, mut b) = Wire::pair().expect("socket pair");
        a.stream.write_all(&[2, 0, 0, 0, 0xff, 0xff]).expect("sent");
        let garbage = b.receive::<(String, u32)>().expect_err("garbage");
        assert_eq!(garbage.kind(), io::ErrorKind::InvalidData);
        drop(a);
        let end = b.receive::<u32>().expect_err("end");
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }
}
