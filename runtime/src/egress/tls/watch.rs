//! Whether a connection may still name another host after its first ClientHello.
//!
//! A second ClientHello in plain text exists only after a HelloRetryRequest (RFC 8446, 4.1.2 and
//! 4.1.4): a server that answered with any other ServerHello takes none, and later ones are encrypted
//! in all versions. So the server's first message decides. Until it is there, nothing that the client
//! sent after its hello is passed on, or a second hello sent ahead would be read by a server that asks
//! for one. Early data waits for one round trip; nothing else does, because no other client speaks
//! before the answer. That is also why an encrypted Finished, whose first byte may by chance be that
//! of a ClientHello, never has to be told from one: it comes after a ServerHello.
//!
//! A peer that does not answer in TLS decides nothing. Then the client's records are looked at as
//! they pass, and one that begins like a ClientHello must be one that names the same host.

use super::hello::{CLIENT_HELLO, Hello, HelloReader, Malformed};
use super::record::{self, Kind};

/// Handshake type of a ServerHello and of a HelloRetryRequest.
const SERVER_HELLO: u8 = 2;
/// The random of a HelloRetryRequest (RFC 8446, 4.1.3).
#[rustfmt::skip]
pub(super) const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];
/// Type, length and version come before the random.
const RANDOM_AT: usize = 6;
/// Most bytes of the server that are kept to find its first message.
const SERVER_BYTES_MAX: usize = 1 << 15;
/// Most bytes of the client that are kept.
const CLIENT_BYTES_MAX: usize = 1 << 17;

/// What the server's side of the connection showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    /// Nothing yet.
    Silent,
    /// It wants another ClientHello.
    Retry,
    /// Something that is no TLS.
    Other,
}

/// What follows from what was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// Nothing may pass yet.
    Hold,
    /// These bytes of the client may pass; the watch goes on.
    Pass(Vec<u8>),
    /// Everything may pass, and nothing needs to be looked at any more.
    Free,
    /// A further ClientHello with this name; if it is the right one, everything may pass.
    Named(Option<String>),
}

/// Watches a connection from the end of its first ClientHello on.
#[derive(Debug)]
pub(crate) struct Watch {
    server: Server,
    from_server: Vec<u8>,
    server_message: Vec<u8>,
    from_client: Vec<u8>,
    /// Bytes of `from_client` that were looked at.
    seen: usize,
    /// A further hello, from where it begins in `from_client`.
    hello: Option<HelloReader>,
}

impl Watch {
    /// Nothing was said yet.
    pub fn new() -> Watch {
        Watch {
            server: Server::Silent,
            from_server: Vec::new(),
            server_message: Vec::new(),
            from_client: Vec::new(),
            seen: 0,
            hello: None,
        }
    }

    /// Whether so much is held that no more should be read from the client.
    pub fn is_full(&self) -> bool {
        self.from_client.len() >= CLIENT_BYTES_MAX
    }

    /// Takes bytes of the client.
    ///
    /// # Errors
    /// [`Malformed`]: what follows the first hello is neither TLS nor may come after it.
    pub fn client(&mut self, bytes: &[u8]) -> Result<Said, Malformed> {
        self.from_client.extend_from_slice(bytes);
        self.look()
    }

    /// Takes bytes of the server, which are not held.
    ///
    /// # Errors
    /// As [`Watch::client`].
    pub fn server(&mut self, bytes: &[u8]) -> Result<Said, Malformed> {
        if self.server != Server::Silent {
            return Ok(Said::Hold);
        }
        self.from_server.extend_from_slice(bytes);
        match self.first_of_server() {
            None if self.from_server.len() < SERVER_BYTES_MAX => return Ok(Said::Hold),
            None | Some(Server::Other) => self.server = Server::Other,
            Some(Server::Retry) => self.server = Server::Retry,
            Some(Server::Silent) => return Ok(Said::Free),
        }
        self.from_server = Vec::new();
        self.look()
    }

    /// What the client sent and was not let pass: once everything may, or when the client has ended
    /// and nothing that begins like a hello is among it.
    pub fn held(&mut self) -> Vec<u8> {
        self.seen = 0;
        std::mem::take(&mut self.from_client)
    }

    /// Whether a further hello has begun and is not complete.
    pub fn is_in_hello(&self) -> bool {
        self.hello.is_some()
    }

    /// What the server's first message is; [`Server::Silent`]: a ServerHello that is final.
    fn first_of_server(&mut self) -> Option<Server> {
        loop {
            let record = match record::first(&self.from_server) {
                Err(_) => return Some(Server::Other),
                Ok(record) => record?,
            };
            let length = record.length;
            match record.kind {
                Kind::Handshake => self.server_message.extend_from_slice(record.body),
                // A warning may come first.
                Kind::Alert => {}
                Kind::ChangeCipherSpec | Kind::Data => return Some(Server::Other),
            }
            self.from_server.drain(..length);
            match self.server_message.first() {
                Some(&SERVER_HELLO) => {}
                Some(_) => return Some(Server::Other),
                None => continue,
            }
            if let Some(random) = self.server_message.get(RANDOM_AT..RANDOM_AT + RETRY.len()) {
                let retry = random == RETRY;
                return Some(if retry { Server::Retry } else { Server::Silent });
            }
        }
    }

    /// Looks at the client's records that are complete.
    fn look(&mut self) -> Result<Said, Malformed> {
        loop {
            let rest = &self.from_client[self.seen..];
            if let Some(reader) = &mut self.hello {
                let rest = rest.to_vec();
                self.seen = self.from_client.len();
                return match reader.push(&rest)? {
                    Some(Hello { name, .. }) => Ok(Said::Named(name)),
                    None => Ok(Said::Hold),
                };
            }
            let record = match record::first(rest) {
                Ok(Some(record)) => record,
                Ok(None) => break,
                // What is not TLS to a peer that is not either is not ours to judge.
                Err(_) if self.server == Server::Other => return Ok(Said::Free),
                Err(_) => return Err(Malformed),
            };
            match record.kind {
                Kind::Handshake if record.body.first() == Some(&CLIENT_HELLO) => {
                    self.hello = Some(HelloReader::default());
                    continue;
                }
                Kind::Handshake | Kind::Data if self.server == Server::Other => {
                    return Ok(Said::Free);
                }
                Kind::Handshake => return Err(Malformed),
                Kind::ChangeCipherSpec | Kind::Alert | Kind::Data => {}
            }
            self.seen += record.length;
        }
        match self.server {
            Server::Silent => Ok(Said::Hold),
            Server::Retry | Server::Other => Ok(Said::Pass(self.pass())),
        }
    }

    /// What was looked at, which is no longer held.
    fn pass(&mut self) -> Vec<u8> {
        self.from_client.drain(..std::mem::take(&mut self.seen)).collect()
    }
}
