//! The resolver, question by question (`table.rs`) and on real sockets (`sockets.rs`).

mod sockets;
mod table;

use std::sync::{Arc, Mutex, PoisonError};

use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::policy::network::{ListedRule, Rules};
use crate::spec::{EgressLimits, EgressPlan};

use super::super::ledger::{Decision, Entry, Ledger, Sink};
use super::super::names::Names;
use super::super::reason::Reason;
use super::super::scope::Scope;
use super::{Transport, answer};

/// Rules of every kind.
const RULES: [&str; 5] = [
    "api.example.com:443",
    "ssh.example.com:22",
    "*.one.example.com:443",
    "**.any.example.org:443",
    "192.0.2.0/24:5432",
];

/// Keeps what is recorded.
#[derive(Debug, Default)]
struct Kept(Mutex<Vec<Entry>>);

impl Sink for Kept {
    fn record(&self, _call: Option<&str>, entry: &Entry) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(entry.clone());
        true
    }
}

impl Kept {
    /// Target and reason of every denial so far, and forgets them.
    fn denials(&self) -> Vec<(String, u16, Option<Reason>)> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let denial = |entry| match entry {
            Entry::Decision(Decision { target, denied, .. }) => {
                (target.host.to_string(), target.port, denied)
            }
            other => panic!("only decisions are expected: {other:?}"),
        };
        entries.drain(..).map(denial).collect()
    }
}

fn plan(rules: &[&str], limits: EgressLimits) -> EgressPlan {
    let listed = |text: &&str| ListedRule {
        rule: text.parse().expect(text),
        origin: "test.toml:1:1".to_owned(),
    };
    let rules = Rules { list: rules.iter().map(listed).collect(), report_until: None };
    EgressPlan { rules, limits, ..EgressPlan::default() }
}

fn scope_with(plan: EgressPlan) -> (Scope, Arc<Kept>) {
    let kept = Arc::new(Kept::default());
    let sink: Arc<dyn Sink> = kept.clone();
    (Scope::new(plan, Names::new([1, 2, 3, 4, 5, 6, 7]), Ledger::new(sink)), kept)
}

fn scope() -> (Scope, Arc<Kept>) {
    scope_with(plan(&RULES, EgressLimits::default()))
}

/// A question as a C library sends it, with an OPT record.
fn question(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 0x1234;
    message.metadata.recursion_desired = true;
    let name = Name::from_labels(labels(name)).expect(name);
    message.add_query(Query::query(name, record_type));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message
}

/// The labels of a name as bytes, whatever they are; `\.` and `\ddd` stand for one.
fn labels(name: &str) -> Vec<Vec<u8>> {
    let mut labels = vec![vec![]];
    let mut rest = name.strip_suffix('.').unwrap_or(name).as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let label = labels.last_mut().expect("one at least");
        match (first, rest) {
            (b'.', _) => labels.push(vec![]),
            (b'\\', [a @ b'0'..=b'9', b, c, tail @ ..]) => {
                label.push((a - b'0') * 100 + (b - b'0') * 10 + (c - b'0'));
                rest = tail;
            }
            (b'\\', [dot, tail @ ..]) => {
                label.push(*dot);
                rest = tail;
            }
            _ => label.push(*first),
        }
    }
    labels.retain(|label| !label.is_empty());
    labels
}

fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().expect("a message")
}

fn ask(scope: &Scope, message: &Message) -> Message {
    let reply = answer(&bytes(message), Transport::Udp, scope).expect("a reply");
    Message::from_vec(&reply).expect("a readable reply")
}

/// What a reply says, in a word or as the address.
fn said(reply: &Message) -> String {
    match reply.answers.as_slice() {
        [] if !reply.authorities.is_empty() => {
            format!("{:?}, absent", reply.metadata.response_code)
        }
        [] => format!("{:?}", reply.metadata.response_code),
        [only] => match &only.data {
            RData::A(address) => address.0.to_string(),
            RData::AAAA(address) => address.0.to_string(),
            other => format!("{other:?}"),
        },
        more => format!("{} answers", more.len()),
    }
}

/// Code and text of the extended error.
fn extended(reply: &Message) -> Option<(u16, String)> {
    let option = reply.edns.as_ref()?.option(EdnsCode::from(15))?;
    let EdnsOption::Unknown(15, data) = option else { return None };
    let (code, text) = data.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*code), String::from_utf8(text.to_vec()).ok()?))
}
