//! What a program is told over HTTP (product.md 3.4, channel 1).
//!
//! Pure. A denial must look like one, and what upstream or the network did must not look like a
//! denial: both are marked. Names nothing that the client did not name itself.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode, Version};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::policy::network::{AddressClass, DenyDetail, DenyReason, Host};

use crate::egress::Reason;

/// Longest host that is repeated, in bytes. No name is longer.
const HOST_BYTES_MAX: usize = 253;
const DECISION: &str = "x-jail-decision";

/// A denial, whose decision is recorded already.
#[derive(Debug)]
pub(super) struct Denied<'a> {
    pub reason: Reason,
    /// As the client named it; `None` if that cannot be read.
    pub host: Option<&'a Host>,
    pub port: u16,
    /// Of the decision, in the ledger.
    pub number: u64,
}

impl Denied<'_> {
    fn json(&self, detail: DenyDetail) -> Value {
        let host = host(self.host);
        match detail {
            DenyDetail::Full => json!({
                "error": "egress_denied",
                "host": host,
                "port": self.port,
                "rule": null,
                "decision_id": format!("d-{}", self.number),
                "retryable": false,
                "advice": advice(self.reason),
            }),
            DenyDetail::HostOnly => json!({
                "error": "egress_denied",
                "host": host,
                "port": self.port,
                "retryable": false,
            }),
            DenyDetail::Off => json!({ "error": "egress_denied", "retryable": false }),
        }
    }

    /// The answer.
    pub fn response(&self, version: Version, detail: DenyDetail) -> Response<Full<Bytes>> {
        response(version, StatusCode::FORBIDDEN, "deny", &self.json(detail))
    }

    /// The answer as bytes of HTTP/1.1, after which the connection closes.
    pub fn bytes(&self, detail: DenyDetail) -> Vec<u8> {
        let body = format!("{}\n", self.json(detail));
        let length = body.len();
        format!(
            "HTTP/1.1 403 Forbidden\r\n{DECISION}: deny\r\ncontent-type: application/json\r\n\
             connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// The answer to an allowed request that could not be delivered.
pub(super) fn undelivered(
    version: Version,
    status: StatusCode,
    to: (&Host, u16),
    detail: DenyDetail,
) -> Response<Full<Bytes>> {
    let advice = match status {
        StatusCode::GATEWAY_TIMEOUT => "The host is allowed; it did not answer in time.",
        _ => "The host is allowed; it has no usable address or could not be reached.",
    };
    let body = match detail {
        DenyDetail::Full => json!({
            "error": "egress_upstream",
            "host": host(Some(to.0)),
            "port": to.1,
            "retryable": true,
            "advice": advice,
        }),
        DenyDetail::HostOnly | DenyDetail::Off => {
            json!({ "error": "egress_upstream", "retryable": true })
        }
    };
    response(version, status, "allow", &body)
}

fn response(
    version: Version,
    status: StatusCode,
    decision: &'static str,
    body: &Value,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(DECISION, HeaderValue::from_static(decision));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if version != Version::HTTP_2 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn host(host: Option<&Host>) -> Option<String> {
    host.map(Host::to_string).filter(|text| text.len() <= HOST_BYTES_MAX)
}

/// One sentence on what to do.
fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::Rules(DenyReason::OtherPort) => {
            "Operator policy allows this host on another port only; do not try other routes."
        }
        Reason::Rules(DenyReason::DirectAddress) => {
            "Operator policy allows hosts by name only; ask for the name, not the address."
        }
        Reason::Rules(DenyReason::Address(AddressClass::Metadata)) => {
            "Metadata services are never allowed; do not try other routes."
        }
        Reason::Rules(DenyReason::Address(_)) => {
            "This name leads to addresses that operator policy does not allow; do not try other routes."
        }
        Reason::NoName => "Every request must name its host in one Host field; repeat it with one.",
        Reason::OtherName => {
            "A request may only name the host its connection was opened for; open a connection of its own for each host."
        }
        Reason::OtherProtocol => "Tunnels through an allowed host are not allowed.",
        Reason::Malformed => "The request is not well-formed HTTP or did not arrive in time.",
        Reason::Connections | Reason::ConnectionRate => {
            "Too many connections at once or in a short time; open fewer."
        }
        Reason::Bytes => "The bytes that operator policy grants this session are used up.",
        Reason::Unrecorded => "The decision could not be recorded, so nothing was sent.",
        _ => {
            "Blocked by operator policy; if this host is needed, say so and stop, and do not try other routes."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_of_detail_says_no_more_than_it_should() {
        let host: Host = "Evil.TEST.".parse().expect("a host");
        let (reason, number) = (Reason::OtherName, 7);
        let denied = Denied { reason, host: Some(&host), port: 80, number };
        let full = denied.json(DenyDetail::Full);
        assert_eq!(
            full,
            json!({
                "error": "egress_denied", "host": "evil.test", "port": 80, "rule": null,
                "decision_id": "d-7", "retryable": false, "advice": full["advice"],
            })
        );
        assert!(full["advice"].as_str().is_some_and(|text| text.ends_with('.')));
        let less = json!({ "error": "egress_denied", "host": "evil.test", "port": 80, "retryable": false });
        assert_eq!(denied.json(DenyDetail::HostOnly), less);
        let least = json!({ "error": "egress_denied", "retryable": false });
        assert_eq!(denied.json(DenyDetail::Off), least);
    }

    #[test]
    fn every_advice_is_one_sentence() {
        let classes = [AddressClass::Metadata, AddressClass::Private];
        let rules = [DenyReason::NoRule, DenyReason::OtherPort, DenyReason::DirectAddress];
        let rules = rules.into_iter().chain(classes.map(DenyReason::Address)).map(Reason::Rules);
        let others = [
            Reason::NoName,
            Reason::OtherName,
            Reason::OtherProtocol,
            Reason::Malformed,
            Reason::Connections,
            Reason::Bytes,
            Reason::RuleRemoved,
            Reason::Unrecorded,
        ];
        for reason in rules.chain(others) {
            let text = advice(reason);
            assert!(text.ends_with('.') && !text.contains(". "), "{reason:?}: {text}");
        }
    }
}
