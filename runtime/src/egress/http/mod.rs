//! Plain HTTP through the broker: every request of a connection names the host that the connection
//! was opened for, or it is not forwarded (INV-8).
//!
//! Runs in the control side, in the future of one connection. Knows nothing of rules, addresses or
//! sockets: `broker` opens the connection to upstream when the first request is allowed, and records
//! denials. No content is kept or logged.
//!
//! `head` and `framing` what bytes may be a request, `screen` the client's socket with both in front of
//! the parser, `check` whether a request names the host, `hops` which fields stay on their connection,
//! `denial` what the client is told, `upstream` the other connection, `forward` all of it in order.
//! `fuzz` is for the harness.

mod check;
mod denial;
mod forward;
mod framing;
pub(super) mod fuzz;
mod head;
mod hops;
mod screen;
mod upstream;

pub(crate) use forward::{Options, forward, refuse};

#[cfg(test)]
mod tests;
