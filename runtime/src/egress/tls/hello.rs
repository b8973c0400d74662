//! The ClientHello: from the first bytes of a connection to the name it gives.
//!
//! This file joins records to one message and finds its end; what is in the message is read by rustls,
//! which refuses what a server would refuse: an extension given twice, several names, a name that is
//! none. It also refuses hellos without signature algorithms, so clients that know nothing newer than
//! TLS 1.1 cannot connect.

use std::io::Read;

use rustls::server::Acceptor;

use super::record::{self, Kind};

/// Most bytes of the message.
const MESSAGE_MAX: usize = 1 << 16;
/// Most bytes of a message in one record.
const RECORD_MAX: usize = 1 << 14;
/// Most bytes until it is complete, headers of small records included.
const BYTES_MAX: usize = 2 * MESSAGE_MAX;
/// Handshake type of a ClientHello.
pub(super) const CLIENT_HELLO: u8 = 1;

/// A ClientHello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The server name as it was written, in lower case; `None` if there is none. An address written
    /// as a server name counts as none (RFC 6066, 3).
    pub name: Option<String>,
    /// Bytes from the start to the end of the records that held it.
    pub length: usize,
}

/// It is no ClientHello that names one host or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Reads one ClientHello from bytes as they come.
#[derive(Debug, Default)]
pub(crate) struct HelloReader {
    bytes: Vec<u8>,
    /// Where the next record begins.
    next: usize,
    message: Vec<u8>,
}

impl HelloReader {
    /// Takes further bytes; `None`: the hello is not complete.
    ///
    /// # Errors
    /// [`Malformed`], as soon as it shows. The reader is of no use after that.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<Hello>, Malformed> {
        self.bytes.extend_from_slice(bytes);
        while let Some(record) = record::first(&self.bytes[self.next..]).map_err(|_| Malformed)? {
            if record.kind != Kind::Handshake {
                return Err(Malformed);
            }
            self.message.extend_from_slice(record.body);
            self.next += record.length;
            if self.next > BYTES_MAX {
                return Err(Malformed);
            }
            if let Some(end) = message_end(&self.message)? {
                // The first message of a connection ends with its record: nobody may send the next
                // before the answer, and what a server would make of it is not ours to guess.
                if self.message.len() != end {
                    return Err(Malformed);
                }
                let name = name_in(&self.message)?;
                return Ok(Some(Hello { name, length: self.next }));
            }
        }
        if self.bytes.len() > BYTES_MAX {
            return Err(Malformed);
        }
        Ok(None)
    }

    /// Everything that was pushed.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Where the message that begins `bytes` ends, `None` if that is not known or not there yet.
fn message_end(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    match bytes {
        [CLIENT_HELLO, 0, high, low, ..] => {
            let end = 4 + usize::from(u16::from_be_bytes([*high, *low]));
            Ok((bytes.len() >= end).then_some(end))
        }
        [] | [CLIENT_HELLO] | [CLIENT_HELLO, 0] | [CLIENT_HELLO, 0, _] => Ok(None),
        _ => Err(Malformed),
    }
}

/// The server name in a ClientHello. rustls is given the message in records of full size: it bounds
/// what many small ones take, and what a connection was split into is not for the name to depend on.
fn name_in(message: &[u8]) -> Result<Option<String>, Malformed> {
    let mut records = Vec::with_capacity(message.len() + message.len() / RECORD_MAX * 5 + 5);
    for part in message.chunks(RECORD_MAX) {
        records.extend([22, 3, 1, (part.len() >> 8) as u8, part.len() as u8]);
        records.extend(part);
    }
    let mut acceptor = Acceptor::default();
    let mut rest = records.as_slice();
    // Each round reads at least one byte, or it is the last.
    while !rest.is_empty() {
        match acceptor.read_tls(&mut rest.by_ref()) {
            Ok(1..) => {}
            _ => return Err(Malformed),
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) if rest.is_empty() => {
                return Ok(accepted.client_hello().server_name().map(str::to_owned));
            }
            Ok(Some(_)) | Err(_) => return Err(Malformed),
        }
    }
    Err(Malformed)
}
