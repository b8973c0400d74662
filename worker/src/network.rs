//! The network of one command (`worker exec`): has a broker serve the jail's listeners, and says at the
//! end what was denied.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use stockade_runtime::egress::{Attached, Broker, Denial, Entry, Sink};
use stockade_runtime::jail::Listener;
use stockade_runtime::session;
use stockade_runtime::spec::EgressPlan;

/// A network that is served until this is dropped.
#[derive(Debug)]
pub struct Served {
    attached: Attached,
    broker: Broker,
}

/// Serves a jail's listeners.
///
/// # Errors
/// If there can be no threads for it, or listeners are missing.
pub fn serve(plan: EgressPlan, listeners: Vec<(Listener, OwnedFd)>) -> io::Result<Served> {
    let broker = Broker::start()?;
    let attached = broker.attach(plan, session::inside(listeners)?, Arc::new(Log))?;
    Ok(Served { attached, broker })
}

impl Served {
    /// Ends it, when the ends of its connections are recorded; returns what was denied.
    pub fn end(self) -> Vec<Denial> {
        let denials = self.attached.ledger().turn(None);
        self.broker.end(self.attached);
        denials
    }
}

/// A command has no audit log: its decisions are log events.
#[derive(Debug)]
struct Log;

impl Sink for Log {
    fn record(&self, _call: Option<&str>, entry: &Entry) -> bool {
        crate::egress_log::entry(None, entry);
        true
    }
}
