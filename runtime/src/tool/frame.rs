//! Messages on a stream: a length, then that many bytes. Plain reads and writes only, which every
//! system call filter allows; the asynchronous side uses [`encode`] and [`decode`].

use std::io;
use std::os::fd::AsFd;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message, in bytes: a document of 20 MiB and what goes with it.
pub const BYTES_MAX: usize = 32 << 20;
/// Bytes of the length in front of each message, little-endian.
pub const HEADER_BYTES: usize = 4;

/// A message with its length in front.
///
/// # Errors
/// `EMSGSIZE` beyond [`BYTES_MAX`].
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes = postcard::to_extend(message, bytes).map_err(invalid)?;
    let length = length(bytes.len() - HEADER_BYTES)?;
    bytes[..HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// The length that a header announces.
///
/// # Errors
/// `EMSGSIZE` beyond [`BYTES_MAX`], before memory is taken.
pub fn announced(header: [u8; HEADER_BYTES]) -> io::Result<usize> {
    length(u32::from_le_bytes(header) as usize).map(|length| length as usize)
}

/// A message without its header.
///
/// # Errors
/// `InvalidData` if it is none of ours.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    postcard::from_bytes(bytes).map_err(invalid)
}

/// Sends one message; waits until it is taken.
///
/// # Errors
/// As [`encode`], or what write(2) says.
pub fn send<T: Serialize>(to: impl AsFd, message: &T) -> io::Result<()> {
    write_all(to, &encode(message)?)
}

/// Writes all of `bytes`. The standard library's stream would send(2), which is a call of sockets.
///
/// # Errors
/// What write(2) says.
pub fn write_all(to: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&to, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Receives one message; waits for it.
///
/// # Errors
/// `UnexpectedEof` if the other side is gone; otherwise as [`announced`] and [`decode`].
pub fn receive<T: DeserializeOwned>(from: impl AsFd) -> io::Result<T> {
    let mut header = [0; HEADER_BYTES];
    read_exact(&from, &mut header)?;
    let mut bytes = vec![0; announced(header)?];
    read_exact(&from, &mut bytes)?;
    decode(&bytes)
}

/// Reads until `bytes` is full.
///
/// # Errors
/// `UnexpectedEof` if the other side is gone first; otherwise what read(2) says.
pub fn read_exact(from: impl AsFd, mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::read(&from, &mut *bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => bytes = &mut bytes[read..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn length(bytes: usize) -> io::Result<u32> {
    match u32::try_from(bytes) {
        Ok(length) if bytes <= BYTES_MAX => Ok(length),
        _ => Err(io::Error::from_raw_os_error(libc::EMSGSIZE)),
    }
}

fn invalid(error: postcard::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_message_arrives_as_it_was_sent() {
        let (a, b) = UnixStream::pair().expect("pair");
        send(&a, &("text".to_owned(), vec![1u8, 2])).expect("sent");
        let received: (String, Vec<u8>) = receive(&b).expect("received");
        assert_eq!(received, ("text".to_owned(), vec![1, 2]));
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_memory_is_taken() {
        let (a, b) = UnixStream::pair().expect("pair");
        write_all(&a, &u32::MAX.to_le_bytes()).expect("sent");
        let error = receive::<u32>(&b).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        let error = encode(&vec![0u8; BYTES_MAX + 1]).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    }
}
