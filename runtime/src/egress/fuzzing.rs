//! What the fuzz harness (`runtime/tests/fuzz.rs`) calls: readers of bytes that programs in a jail
//! make, each with what must hold for any bytes. Not an interface.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{RData, RecordType};

use crate::policy::network::{HostName, ListedRule, Rules};
use crate::spec::EgressPlan;

use super::dns::{Transport, answer};
use super::ledger::{Entry, Ledger, Sink};
use super::names::Names;
use super::scope::Scope;

/// Rules of every kind. Seeds of the corpus ask for names below `example.com` and `example.org`.
const RULES: [&str; 4] = [
    "api.example.com:443",
    "*.one.example.com:443",
    "**.any.example.org:8443",
    "192.0.2.0/24:5432",
];

#[derive(Debug)]
struct Nowhere;

impl Sink for Nowhere {
    fn record(&self, _call: Option<&str>, _entry: &Entry) -> bool {
        true
    }
}

fn scope() -> Scope {
    let listed = |text: &&str| {
        let rule = text.parse().ok()?;
        Some(ListedRule { rule, origin: "fuzzing:1:1".to_owned() })
    };
    let rules = Rules { list: RULES.iter().filter_map(listed).collect(), report_until: None };
    let plan = EgressPlan { rules, ..EgressPlan::default() };
    Scope::new(plan, Names::new([1, 2, 3, 4, 5, 6, 7]), Ledger::new(Arc::new(Nowhere)))
}

/// Asks the resolver over both transports.
///
/// # Errors
/// What does not hold of a reply.
pub fn dns(input: &[u8]) -> Result<(), String> {
    for (transport, room) in [(Transport::Udp, 512), (Transport::Tcp, 512)] {
        let scope = scope();
        let Some(reply) = answer(input, transport, &scope) else { continue };
        if reply.len() > room {
            return Err(format!("{} bytes of reply", reply.len()));
        }
        let reply = Message::from_vec(&reply).map_err(|e| format!("unreadable reply: {e}"))?;
        holds(input, &reply, &scope)?;
    }
    Ok(())
}

/// Forwards a connection of plain HTTP.
///
/// # Errors
/// What does not hold of the bytes that upstream was sent.
pub fn http_head(input: &[u8]) -> Result<(), String> {
    super::http::fuzz::http_head(input)
}

/// Reads a ClientHello and has it pass a gate.
///
/// # Errors
/// What does not hold of the two.
pub fn client_hello(input: &[u8]) -> Result<(), String> {
    super::broker::fuzz::client_hello(input)
}

/// INV-8: addresses are those of allowed names, and nothing else carries data.
fn holds(input: &[u8], reply: &Message, scope: &Scope) -> Result<(), String> {
    let metadata = &reply.metadata;
    if metadata.message_type != MessageType::Response || metadata.truncation {
        return Err("not a whole response".to_owned());
    }
    if input.get(..2) != Some(metadata.id.to_be_bytes().as_slice()) {
        return Err("a response to another question".to_owned());
    }
    if !reply.additionals.is_empty() {
        return Err("additional records".to_owned());
    }
    let code = metadata.response_code;
    match (reply.answers.as_slice(), reply.authorities.as_slice()) {
        ([], []) => match code {
            ResponseCode::NoError => Err("neither data nor the absence of it".to_owned()),
            _ => Ok(()),
        },
        ([], [only]) => match (only.record_type(), code) {
            (RecordType::SOA, ResponseCode::NoError) => Ok(()),
            other => Err(format!("absence as {other:?}")),
        },
        ([only], []) if code == ResponseCode::NoError => {
            let [question] = reply.queries.as_slice() else {
                return Err("an answer to no question".to_owned());
            };
            if !question.name().eq_case(&only.name) {
                return Err("an answer about another name".to_owned());
            }
            // Its bytes: as text a label would have backslashes, also before a hyphen in front.
            let labels: Vec<&[u8]> = question.name().iter().collect();
            if labels.iter().any(|label| label.contains(&b'.')) {
                return Err("an answer about a label with a dot".to_owned());
            }
            let text = String::from_utf8_lossy(&labels.join(&b'.')).into_owned();
            match (&only.data, question.query_type()) {
                (RData::A(data), RecordType::A) => belongs(&text, IpAddr::V4(data.0), scope),
                (RData::AAAA(data), RecordType::AAAA) => belongs(&text, IpAddr::V6(data.0), scope),
                (data, _) => Err(format!("an answer with {}", data.record_type())),
            }
        }
        (answers, authorities) => {
            Err(format!("{code}: {} answers, {} authorities", answers.len(), authorities.len()))
        }
    }
}

fn belongs(text: &str, address: IpAddr, scope: &Scope) -> Result<(), String> {
    let text = text.to_ascii_lowercase();
    let text = text.strip_suffix('.').unwrap_or(&text);
    if text == "localhost" || text.ends_with(".localhost") {
        return if address.is_loopback() { Ok(()) } else { Err("localhost elsewhere".to_owned()) };
    }
    // Not by the rules' own matching, which is what is being tested.
    let below = |suffix: &str| text.strip_suffix(suffix).filter(|front| !front.is_empty());
    let allowed = text == "api.example.com"
        || below(".one.example.com").is_some_and(|front| !front.contains('.'))
        || below(".any.example.org").is_some();
    let letters = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
    if !allowed || !text.bytes().all(letters) {
        return Err(format!("an address for {text:?}"));
    }
    let known = scope.names.name(address);
    if known.as_ref().map(HostName::as_str) != Some(text) {
        return Err(format!("an address of {known:?} for {text:?}"));
    }
    Ok(())
}
