//! Questions and replies as bytes, by hickory-proto.
//!
//! Runs in the control side on bytes that any program of a jail may have made, so little of them is
//! read: the header, the question, and of the additional records the fixed part. What is inside
//! options and other records is stepped over, never decoded.

use std::net::IpAddr;

use hickory_proto::op::{
    Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode,
};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::{A, AAAA, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{
    BinDecodable, BinDecoder, BinEncodable, BinEncoder, DecodeError,
};

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// A datagram.
    Udp,
    /// After its length on a stream.
    Tcp,
}

/// Lifetime of an address, seconds. It stands for the same name until the session ends, so this
/// bounds only how long a cache outlives a change of the rules, or the session in a directory that
/// is kept.
pub(super) const ADDRESS_TTL: u32 = 30;
/// Lifetime of "no such data", seconds: short, for the same reason.
const NO_DATA_TTL: u32 = 5;
/// Largest datagram we send, bytes (DNS flag day 2020: no fragments).
const UDP_BYTES_MAX: u16 = 1232;
/// Largest datagram for those who name no size, bytes (RFC 1035, 4.2.1; RFC 6891, 6.2.3).
const UDP_BYTES_PLAIN: u16 = 512;
/// Additional records of a question that are stepped over. Clients send one or two: OPT and TSIG.
const ADDITIONAL_MAX: u16 = 8;
/// Option code of an extended error (RFC 8914, 2).
const EXTENDED_ERROR: u16 = 15;

/// A question that can be answered.
#[derive(Debug)]
pub(super) struct Question {
    metadata: Metadata,
    query: Query,
    edns: Option<Asker>,
}

/// What the OPT record of a question says (RFC 6891, 6.1.3).
#[derive(Debug, Clone, Copy)]
struct Asker {
    payload: u16,
    version: u8,
    dnssec_ok: bool,
}

/// Why bytes are no question.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// They ask nothing: an answer, or less than a header. Answering could go round in circles.
    NoQuestion,
    /// They ask something that is not understood; this says so.
    Said(Vec<u8>),
}

/// What is replied to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// The name has this address.
    Address(IpAddr),
    /// The name exists and has no such record.
    NoData,
    /// No, and why.
    Refused(Extended, String),
}

/// Info codes of RFC 8914, 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Extended {
    /// 4.1: none of the others.
    Other = 0,
    /// 4.16 Blocked: the domain is refused by "an internal security policy imposed by the operator
    /// of the server". Not 4.19 Prohibited, which is about who asks.
    Blocked = 15,
    /// 4.22 Not Supported: "the requested operation or query is not supported".
    NotSupported = 21,
}

impl Question {
    /// Reads one question of one message.
    pub fn read(bytes: &[u8]) -> Result<Question, Unreadable> {
        let mut decoder = BinDecoder::new(bytes);
        let header = Header::read(&mut decoder).map_err(|_| Unreadable::NoQuestion)?;
        let metadata = header.metadata;
        if metadata.message_type != MessageType::Query {
            return Err(Unreadable::NoQuestion);
        }
        if metadata.op_code != OpCode::Query {
            return Err(Unreadable::said(&metadata, ResponseCode::NotImp, None));
        }
        let counts = header.counts;
        // One question (RFC 9619), and nothing that only answers have.
        let plain = (counts.queries, counts.answers, counts.authorities) == (1, 0, 0);
        if !plain || counts.additionals > ADDITIONAL_MAX {
            return Err(Unreadable::said(&metadata, ResponseCode::FormErr, None));
        }
        let rest = Query::read(&mut decoder)
            .and_then(|query| Ok((query, Asker::read(&mut decoder, counts.additionals)?)));
        let Ok((query, edns)) = rest else {
            return Err(Unreadable::said(&metadata, ResponseCode::FormErr, None));
        };
        if edns.is_some_and(|asker| asker.version != 0) {
            return Err(Unreadable::said(&metadata, ResponseCode::BADVERS, edns));
        }
        Ok(Question { metadata, query, edns })
    }

    /// What is asked for.
    pub fn query(&self) -> &Query {
        &self.query
    }

    /// Writes `reply`, with the question as it was asked, letter by letter (some clients change case
    /// at random and compare).
    ///
    /// Every reply of ours fits into 512 bytes, because texts are short; one that did not would be
    /// cut and say so. `None` if it cannot be written.
    pub fn reply(&self, reply: &Reply, transport: Transport) -> Option<Vec<u8>> {
        let mut message = response(&self.metadata, self.edns);
        message.add_query(self.query.clone());
        let name = self.query.name();
        match reply {
            Reply::Address(address) => {
                let data = match address {
                    IpAddr::V4(address) => RData::A(A(*address)),
                    IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
                };
                message.add_answer(Record::from_rdata(name.clone(), ADDRESS_TTL, data));
            }
            Reply::NoData => {
                message.add_authority(nothing_here(name)?);
            }
            Reply::Refused(code, text) => {
                message.metadata.response_code = ResponseCode::Refused;
                // Only who sent an OPT record may be sent one (RFC 6891, 7).
                if let Some(edns) = message.edns.as_mut() {
                    let mut error = (*code as u16).to_be_bytes().to_vec();
                    error.extend_from_slice(text.as_bytes());
                    edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, error));
                }
            }
        }
        write(&message, self.room(transport))
    }

    /// Most bytes of a reply.
    fn room(&self, transport: Transport) -> u16 {
        match (transport, self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => UDP_BYTES_PLAIN,
            (Transport::Udp, Some(asker)) => asker.payload.clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX),
        }
    }
}

impl Asker {
    /// The OPT record among `count` records, if there is one.
    fn read(decoder: &mut BinDecoder<'_>, count: u16) -> Result<Option<Asker>, DecodeError> {
        let mut found = None;
        for _ in 0..count {
            let name = Name::read(decoder)?;
            let record_type = RecordType::read(decoder)?;
            let payload = decoder.read_u16()?.unverified(/* any size is one */);
            let ttl = decoder.read_u32()?.unverified(/* bits */);
            let length = decoder.read_u16()?.unverified(/* `read_slice` compares it */);
            decoder.read_slice(usize::from(length))?;
            if record_type != RecordType::OPT {
                continue;
            }
            if found.is_some() || !name.is_root() {
                return Err(DecodeError::DuplicateEdns);
            }
            let [_, version, flags, _] = ttl.to_be_bytes();
            found = Some(Asker { payload, version, dnssec_ok: flags & 0x80 != 0 });
        }
        Ok(found)
    }
}

impl Unreadable {
    fn said(metadata: &Metadata, code: ResponseCode, edns: Option<Asker>) -> Unreadable {
        let mut message = response(metadata, edns);
        message.metadata.response_code = code;
        match write(&message, UDP_BYTES_PLAIN) {
            Some(bytes) => Unreadable::Said(bytes),
            None => Unreadable::NoQuestion,
        }
    }
}

/// A reply without content. Recursion is "available", or clients would look elsewhere; nothing is
/// claimed to be authoritative, because the real name is somebody else's.
fn response(metadata: &Metadata, edns: Option<Asker>) -> Message {
    let mut message = Message::response(metadata.id, metadata.op_code);
    message.metadata = Metadata::response_from_request(metadata);
    message.metadata.recursion_available = true;
    if let Some(asker) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX).set_version(0).set_dnssec_ok(asker.dnssec_ok);
        message.set_edns(edns);
    }
    message
}

/// The record that lets a client remember for a while that there is nothing (RFC 2308, 3); its
/// content is that of RFC 6303, 3, for zones that exist only here.
fn nothing_here(name: &Name) -> Option<Record> {
    let nobody = Name::from_ascii("nobody.invalid.").ok()?;
    let soa = SOA::new(name.clone(), nobody, 1, 3600, 1200, 604_800, NO_DATA_TTL);
    Some(Record::from_rdata(name.clone(), NO_DATA_TTL, RData::SOA(soa)))
}

fn write(message: &Message, room: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::from(UDP_BYTES_PLAIN));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(room);
    // Records that do not fit are left out and the header says so.
    message.emit(&mut encoder).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 1035, 4.1.1 and 4.2.1: what does not fit is left out, and the reply says that it was.
    #[test]
    fn reply_that_does_not_fit_says_so() {
        let name = Name::from_ascii("api.example.com.").expect("a name");
        let mut message = Message::response(7, OpCode::Query);
        message.add_query(Query::query(name.clone(), RecordType::A));
        let address = RData::A(A([198, 18, 0, 16].into()));
        message.add_answer(Record::from_rdata(name, ADDRESS_TTL, address));
        let whole = write(&message, 512).expect("it fits");
        let cut = write(&message, 40).expect("its question fits");
        let read = |bytes: &[u8]| Message::from_vec(bytes).expect("a message");
        assert_eq!((read(&whole).answers.len(), read(&whole).metadata.truncation), (1, false));
        assert_eq!((read(&cut).answers.len(), read(&cut).metadata.truncation), (0, true));
        assert!(cut.len() <= 40, "{} bytes", cut.len());
    }
}
