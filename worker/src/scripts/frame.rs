//! Messages between the control side and the script starter: one byte of kind, eight of the program's
//! number, four of length, and as many more.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use zeroize::Zeroizing;

/// Longest message: the answer to a poll, twice over.
pub const BYTES_MAX: usize = 32 << 20;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To the starter: start the program; standard input and variables.
    Start,
    /// To the starter: signal its group; the signal's number.
    Signal,
    /// From the starter: it runs; its process id.
    Started,
    /// From the starter: it could not be started; the error number.
    Failed,
    /// From the starter: it has ended; its status as wait(2) has it.
    Ended,
}

const KINDS: [Kind; 5] = [Kind::Start, Kind::Signal, Kind::Started, Kind::Failed, Kind::Ended];

/// One message.
#[derive(Debug)]
pub struct Frame {
    pub kind: Kind,
    /// Which program.
    pub number: u64,
    /// Wiped when it is dropped: it may hold credentials.
    pub bytes: Zeroizing<Vec<u8>>,
}

impl Frame {
    /// A message that is one number.
    pub fn of(kind: Kind, number: u64, value: i32) -> Frame {
        Frame { kind, number, bytes: Zeroizing::new(value.to_le_bytes().to_vec()) }
    }

    /// The number that is the message.
    pub fn value(&self) -> Option<i32> {
        self.bytes.as_slice().try_into().ok().map(i32::from_le_bytes)
    }

    /// A message of several strings.
    pub fn strings(kind: Kind, number: u64, strings: &[&[u8]]) -> Frame {
        let length = strings.iter().map(|string| 4 + string.len()).sum();
        let mut bytes = Zeroizing::new(Vec::with_capacity(length));
        for string in strings {
            bytes.extend_from_slice(&(string.len() as u32).to_le_bytes());
            bytes.extend_from_slice(string);
        }
        Frame { kind, number, bytes }
    }

    /// The strings that are the message.
    pub fn parts(&self) -> Option<Vec<&[u8]>> {
        let (mut rest, mut parts) = (self.bytes.as_slice(), Vec::new());
        while !rest.is_empty() {
            let (length, tail) = rest.split_first_chunk::<4>()?;
            let length = u32::from_le_bytes(*length) as usize;
            let (part, tail) = tail.split_at_checked(length)?;
            parts.push(part);
            rest = tail;
        }
        Some(parts)
    }
}

/// Writes one message.
///
/// # Errors
/// Those of the stream, and for a message that is too long.
pub async fn send(to: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    if frame.bytes.len() > BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let kind = KINDS.iter().position(|kind| *kind == frame.kind).unwrap_or_default();
    let mut head = [0; 13];
    head[0] = kind as u8;
    head[1..9].copy_from_slice(&frame.number.to_le_bytes());
    head[9..].copy_from_slice(&(frame.bytes.len() as u32).to_le_bytes());
    to.write_all(&head).await?;
    to.write_all(&frame.bytes).await?;
    to.flush().await
}

/// Reads one message; none at the end of the stream.
///
/// # Errors
/// Those of the stream, and for what is no message.
pub async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0; 13];
    match from.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let kind = *KINDS.get(usize::from(head[0])).ok_or_else(bad)?;
    let (mut number, mut length) = ([0; 8], [0; 4]);
    number.copy_from_slice(&head[1..9]);
    length.copy_from_slice(&head[9..]);
    let length = u32::from_le_bytes(length) as usize;
    if length > BYTES_MAX {
        return Err(bad());
    }
    let mut bytes = Zeroizing::new(vec![0; length]);
    from.read_exact(&mut bytes).await?;
    Ok(Some(Frame { kind, number: u64::from_le_bytes(number), bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_sent_is_received_and_nonsense_is_refused() {
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 16);
        let sent = Frame::strings(Kind::Start, 7, &[b"", b"A=1\n", b"\xff"]);
        send(&mut ours, &sent).await.expect("sent");
        send(&mut ours, &Frame::of(Kind::Ended, 8, -2)).await.expect("sent");
        let first = receive(&mut theirs).await.expect("read").expect("a message");
        assert_eq!((first.kind, first.number), (Kind::Start, 7));
        assert_eq!(first.parts().expect("strings"), [&b""[..], b"A=1\n", b"\xff"]);
        let second = receive(&mut theirs).await.expect("read").expect("a message");
        assert_eq!((second.kind, second.value()), (Kind::Ended, Some(-2)));
        let cut = Frame { bytes: Zeroizing::new(vec![9, 0, 0, 0, 1]), ..first };
        assert_eq!(cut.parts(), None);
        for head in [[9; 13], [0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]] {
            assert!(receive(&mut head.as_slice()).await.is_err(), "{head:?}");
        }
        drop(ours);
        assert!(receive(&mut theirs).await.expect("the end").is_none());
    }
}
