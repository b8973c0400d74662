//! What a TLS connection says before it is encrypted: the name in its ClientHello.
//!
//! Pure. Nothing is decrypted and no certificate is ever shown: `record.rs` splits bytes into records,
//! `hello.rs` reads a ClientHello, `watch.rs` says when a connection can name nobody else any more.
//!
//! With Encrypted Client Hello the name seen here is the outer one. Our resolver never answers HTTPS
//! records, so a client in a jail gets no key for it from us; one that brings its own key reaches the
//! operator of the outer name, who is allowed, and whom that operator serves behind it.

mod hello;
mod record;
#[cfg(test)]
pub(crate) mod samples;
mod watch;

pub(crate) use hello::{HelloReader, Malformed};
pub(crate) use record::begins_like_record;
pub(crate) use watch::{Said, Watch};

#[cfg(test)]
mod tests;
