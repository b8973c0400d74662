//! Decisions of the broker as log events. The record is the audit log; this is for whoever watches.

use stockade_runtime::egress::{Closed, Decision, Entry, Target};

/// Logs an entry of a ledger that knows no calls.
pub fn entry(session: Option<&str>, entry: &Entry) {
    of_call(session, None, entry);
}

/// Logs an entry of the tool call `call`. Refusals in a session are warnings: first of a kind in a
/// call only, and the count of the others. The caller of a command reads them at its end instead.
pub fn of_call(session_id: Option<&str>, tool_call: Option<&str>, entry: &Entry) {
    match entry {
        Entry::Decision(decision) => decided(session_id, tool_call, decision),
        Entry::Repeated { target, reason, count } => {
            let (host, port) = both(target.as_ref());
            tracing::info!(
                event = "egress.repeated",
                session_id,
                tool_call,
                host,
                port,
                reason = reason.word(),
                count,
                "egress repeated"
            );
        }
        Entry::Summed(sum) => {
            let (host, port) = both(sum.target.as_ref());
            tracing::debug!(
                event = "egress.summed",
                session_id,
                tool_call,
                host,
                port,
                connections = sum.connections,
                out_bytes = sum.bytes_out,
                in_bytes = sum.bytes_in,
                "egress summed"
            );
        }
        Entry::Closed(Closed { number, target, bytes_out, bytes_in, by, .. }) => {
            let (host, port) = both(Some(target));
            tracing::debug!(
                event = "egress.closed",
                session_id,
                tool_call,
                decision = number,
                host,
                port,
                out_bytes = bytes_out,
                in_bytes = bytes_in,
                by = by.map(|reason| reason.word()),
                "egress closed"
            );
        }
    }
}

fn decided(session_id: Option<&str>, tool_call: Option<&str>, decision: &Decision) {
    let (host, port) = both(Some(&decision.target));
    let number = decision.number;
    // The level of an event is the name of its macro.
    macro_rules! refused {
        ($level:ident, $event:literal, $reason:expr) => {
            tracing::$level!(
                event = $event,
                session_id,
                tool_call,
                decision = number,
                host,
                port,
                reason = $reason,
                "egress refused"
            )
        };
    }
    match decision.denied {
        Some(reason) if !reason.is_denial() => refused!(info, "egress.failed", reason.word()),
        Some(reason) if session_id.is_some() => refused!(warn, "egress.denied", reason.word()),
        Some(reason) => refused!(info, "egress.denied", reason.word()),
        None => tracing::debug!(
            event = "egress.allowed",
            session_id,
            tool_call,
            decision = number,
            host,
            port,
            rule = decision.rule,
            report_mode = decision.reported,
            "egress allowed"
        ),
    }
}

fn both(target: Option<&Target>) -> (Option<String>, Option<u16>) {
    (target.map(|target| target.host.to_string()), target.map(|target| target.port))
}
