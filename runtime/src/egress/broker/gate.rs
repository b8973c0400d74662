//! What a connection says about where it wants to go, before it may say it to anybody else.
//!
//! Pure. Bytes of the client go in; what may be passed on comes out. Until it is clear that the
//! connection names the host it was opened for, or that it is of a kind that names nobody, nothing
//! passes (INV-8).

use super::classify::{Kind, classify};
use crate::egress::reason::Reason;
use crate::egress::tls::{HelloReader, Malformed, Said, Watch};
use crate::policy::network::{Content, Host};

/// What may happen now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// Nothing: more bytes are needed.
    Hold,
    /// These bytes may pass; the gate stays.
    Pass(Vec<u8>),
    /// These bytes and all that follow may pass.
    Free(Vec<u8>),
    /// These bytes begin an HTTP request; requests are checked one by one.
    Http(Vec<u8>),
}

/// What a connection turned out to carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carried {
    /// Not known yet; the far end may speak.
    Unsure,
    Tls,
    Http,
    /// Neither.
    Other,
    /// Not looked at.
    Unchecked,
}

impl Carried {
    /// Whether a rule that allows `content` allows this.
    pub fn is_in(self, content: Content) -> bool {
        match self {
            Carried::Unsure | Carried::Other => content.other,
            Carried::Tls => content.tls,
            Carried::Http => content.http,
            Carried::Unchecked => content.unchecked,
        }
    }
}

/// The gate of one connection.
#[derive(Debug)]
pub(super) struct Gate {
    expect: Host,
    content: Content,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The first bytes, and how many of them were let pass.
    Unsure {
        bytes: Vec<u8>,
        passed: usize,
    },
    Hello(HelloReader),
    Watch(Watch),
    /// Everything passes.
    Free(Carried),
}

impl Gate {
    /// For a connection to `expect` that may carry `content`.
    pub fn new(expect: Host, content: Content) -> Gate {
        let stage = match content.unchecked {
            true => Stage::Free(Carried::Unchecked),
            false => Stage::Unsure { bytes: Vec::new(), passed: 0 },
        };
        Gate { expect, content, stage }
    }

    /// What is known about the connection.
    pub fn carried(&self) -> Carried {
        match self.stage {
            Stage::Unsure { .. } => Carried::Unsure,
            Stage::Hello(_) | Stage::Watch(_) => Carried::Tls,
            Stage::Free(carried) => carried,
        }
    }

    /// Whether everything passes.
    pub fn is_free(&self) -> bool {
        matches!(self.stage, Stage::Free(_))
    }

    /// Whether the client has begun something that it has to finish soon.
    pub fn is_in_head(&self) -> bool {
        match &self.stage {
            Stage::Unsure { bytes, passed } => bytes.len() > *passed,
            Stage::Hello(_) => true,
            Stage::Watch(watch) => watch.is_in_hello(),
            Stage::Free(_) => false,
        }
    }

    /// Whether nothing more should be read from the client before the far end has answered.
    pub fn is_full(&self) -> bool {
        matches!(&self.stage, Stage::Watch(watch) if watch.is_full())
    }

    /// Takes bytes of the client.
    ///
    /// # Errors
    /// Why the connection is refused.
    pub fn client(&mut self, more: &[u8]) -> Result<Act, Reason> {
        match &mut self.stage {
            Stage::Free(_) => Ok(Act::Free(more.to_vec())),
            Stage::Hello(_) => self.hello(more),
            Stage::Watch(watch) => {
                let said = watch.client(more);
                self.said(said)
            }
            Stage::Unsure { bytes, passed } => {
                bytes.extend_from_slice(more);
                let Some(kind) = classify(bytes) else { return Ok(Act::Hold) };
                let split = *passed > 0;
                let bytes = std::mem::take(bytes);
                match kind {
                    Kind::Other if self.content.other => {
                        let rest = bytes[*passed..].to_vec();
                        self.stage = Stage::Free(Carried::Other);
                        Ok(Act::Free(rest))
                    }
                    // A part of it has left already, so it can no longer be checked as a whole.
                    Kind::Tls | Kind::Http if split => Err(Reason::Malformed),
                    Kind::Tls if self.content.tls => {
                        self.stage = Stage::Hello(HelloReader::default());
                        self.hello(&bytes)
                    }
                    Kind::Http if self.content.http => {
                        self.stage = Stage::Free(Carried::Http);
                        Ok(Act::Http(bytes))
                    }
                    _ => Err(Reason::OtherProtocol),
                }
            }
        }
    }

    /// Takes bytes of the far end, which always pass.
    ///
    /// # Errors
    /// As [`Gate::client`].
    pub fn server(&mut self, bytes: &[u8]) -> Result<Act, Reason> {
        match &mut self.stage {
            Stage::Watch(watch) => {
                let said = watch.server(bytes);
                self.said(said)
            }
            _ => Ok(Act::Hold),
        }
    }

    /// The client has waited for a while in the middle of what may become anything. It may be that
    /// the far end is to answer now, so what there is may pass; what follows is still looked at.
    pub fn pause(&mut self) -> Act {
        match &mut self.stage {
            Stage::Unsure { bytes, passed } if self.content.other => {
                let rest = bytes[*passed..].to_vec();
                *passed = bytes.len();
                Act::Pass(rest)
            }
            _ => Act::Hold,
        }
    }

    /// The client sends nothing more.
    ///
    /// # Errors
    /// As [`Gate::client`].
    pub fn end(&mut self) -> Result<Act, Reason> {
        match &mut self.stage {
            Stage::Unsure { bytes, passed } if self.content.other => {
                let rest = bytes[*passed..].to_vec();
                self.stage = Stage::Free(Carried::Other);
                Ok(Act::Free(rest))
            }
            Stage::Unsure { bytes, .. } if bytes.is_empty() => Err(Reason::NoName),
            Stage::Watch(watch) if !watch.is_in_hello() => {
                let rest = watch.held();
                self.stage = Stage::Free(Carried::Tls);
                Ok(Act::Free(rest))
            }
            Stage::Free(_) => Ok(Act::Free(Vec::new())),
            Stage::Unsure { .. } | Stage::Hello(_) | Stage::Watch(_) => Err(Reason::Malformed),
        }
    }

    fn hello(&mut self, more: &[u8]) -> Result<Act, Reason> {
        let Stage::Hello(reader) = &mut self.stage else { return Ok(Act::Hold) };
        let hello = match reader.push(more) {
            Ok(None) => return Ok(Act::Hold),
            Ok(Some(hello)) => hello,
            Err(Malformed) => return Err(Reason::Malformed),
        };
        compare(&self.expect, hello.name.as_deref())?;
        let mut first = std::mem::take(reader).into_bytes();
        let rest = first.split_off(hello.length);
        let mut watch = Watch::new();
        let said = watch.client(&rest);
        self.stage = Stage::Watch(watch);
        // No answer can have come yet, so nothing more passes.
        match self.said(said)? {
            Act::Hold => Ok(Act::Pass(first)),
            Act::Pass(more) => Ok(Act::Pass([first, more].concat())),
            Act::Free(more) | Act::Http(more) => Ok(Act::Free([first, more].concat())),
        }
    }

    fn said(&mut self, said: Result<Said, Malformed>) -> Result<Act, Reason> {
        let Stage::Watch(watch) = &mut self.stage else { return Ok(Act::Hold) };
        match said.map_err(|Malformed| Reason::Malformed)? {
            Said::Hold => Ok(Act::Hold),
            Said::Pass(bytes) => Ok(Act::Pass(bytes)),
            Said::Free => {
                let rest = watch.held();
                self.stage = Stage::Free(Carried::Tls);
                Ok(Act::Free(rest))
            }
            Said::Named(name) => {
                compare(&self.expect, name.as_deref())?;
                let rest = watch.held();
                self.stage = Stage::Free(Carried::Tls);
                Ok(Act::Free(rest))
            }
        }
    }
}

/// Whether a TLS connection to `expect` may give this server name. One that was asked for by an
/// address has none.
fn compare(expect: &Host, name: Option<&str>) -> Result<(), Reason> {
    let named = name.map(Host::parse);
    match (expect, named) {
        (Host::Name(_), None) => Err(Reason::NoName),
        (Host::Name(_), Some(Ok(named))) if named == *expect => Ok(()),
        (Host::Address(_), None) => Ok(()),
        (_, Some(Err(_))) => Err(Reason::Malformed),
        (_, Some(Ok(_))) => Err(Reason::OtherName),
    }
}
