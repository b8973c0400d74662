//! A session's part of the broker: attached when its jail runs, given other rules while it does.

use std::collections::BTreeSet;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::egress::{Attached, Broker, Inside, Ledger, Sink};
use crate::jail::{Event, Listener, StepFailure};
use crate::spec::EgressPlan;

use super::host::{Host, or_it_has_ended};

/// What serves a jail's network.
#[derive(Debug)]
pub struct Egress {
    /// The process's broker.
    pub broker: Arc<Broker>,
    /// Where this session's decisions are recorded.
    pub sink: Arc<dyn Sink>,
}

/// Why other rules are not in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// No listener for some further ports. The rules that need none of them are in force.
    #[error("cannot {}", failure.what())]
    Listener {
        /// What was refused.
        failure: StepFailure,
    },
    /// The launcher did not answer. The rules that need no further port are in force.
    #[error("cannot reach the launcher")]
    Launcher {
        /// How.
        source: io::Error,
    },
}

/// The network of a session that runs.
#[derive(Debug)]
pub struct Network {
    attached: Attached,
    host: Host,
    /// Ports that are listened on; held while they change.
    ports: Mutex<BTreeSet<u16>>,
}

impl Network {
    /// Has the broker serve the jail's listeners. `None` if the plan has no network.
    pub(super) fn attach(
        plan: Option<EgressPlan>,
        listeners: Vec<(Listener, OwnedFd)>,
        egress: Option<Egress>,
        host: &Host,
    ) -> io::Result<Option<Arc<Network>>> {
        let Some(plan) = plan else { return Ok(None) };
        let Egress { broker, sink } = egress.ok_or(io::ErrorKind::NotConnected)?;
        let ports = Mutex::new(plan.ports());
        let attached = broker.attach(plan, inside(listeners)?, sink)?;
        Ok(Some(Arc::new(Network { attached, host: host.clone(), ports })))
    }

    /// Closes every listener and connection for good, whoever else still has this, and waits, within
    /// bounds, until their ends are recorded.
    pub(super) async fn close(&self) {
        self.attached.close().await;
    }

    /// What was decided.
    pub fn ledger(&self) -> &Ledger {
        self.attached.ledger()
    }

    /// Which rules are in force: 1 at first, one more with each [`replace`](Self::replace).
    pub fn generation(&self) -> u64 {
        self.attached.generation()
    }

    /// Puts other rules in force. What they no longer allow is closed at once; what they newly allow
    /// on ports that are listened on is allowed at once, on others when the launcher has made
    /// listeners for them.
    ///
    /// # Errors
    /// [`NetworkError`]: some further ports stay refused by the kernel. They are tried again with the
    /// next replacement.
    pub async fn replace(&self, plan: EgressPlan) -> Result<(), NetworkError> {
        let mut ports = self.ports.lock().await;
        let wanted = plan.ports();
        let missing: Vec<u16> = wanted.difference(&ports).copied().collect();
        self.attached.replace(plan);
        ports.retain(|port| wanted.contains(port));
        if missing.is_empty() {
            return Ok(());
        }
        let made = self.host.with(move |launcher, over| {
            if over.is_some() {
                return Ok((Vec::new(), None));
            }
            or_it_has_ended(launcher.listen(&missing))?;
            let mut made = Vec::new();
            loop {
                match launcher.event()? {
                    Event::Listening(more) => made.extend(more),
                    Event::Listened(failure) => return Ok((made, failure)),
                    Event::Ended(end) => {
                        *over = Some(end);
                        return Ok((Vec::new(), None));
                    }
                    _ => return Err(io::ErrorKind::InvalidData.into()),
                }
            }
        });
        let unreachable = |source| NetworkError::Launcher { source };
        let (made, failure) = made.await.map_err(unreachable)?;
        let Inside { listeners, .. } = inside(made).map_err(unreachable)?;
        ports.extend(listeners.iter().map(|(port, _)| *port));
        self.attached.listen_also(listeners);
        failure.map_or(Ok(()), |failure| Err(NetworkError::Listener { failure }))
    }
}

/// The launcher's listeners as the broker takes them.
///
/// # Errors
/// `InvalidData` if only half a resolver is among them.
pub fn inside(listeners: Vec<(Listener, OwnedFd)>) -> io::Result<Inside> {
    let (mut datagrams, mut connections, mut ports) = (None, None, Vec::new());
    for (listener, socket) in listeners {
        match listener {
            Listener::Questions => datagrams = Some(UdpSocket::from(socket)),
            Listener::LongQuestions => connections = Some(TcpListener::from(socket)),
            Listener::Port(port) => ports.push((port, TcpListener::from(socket))),
        }
    }
    let dns = match (datagrams, connections) {
        (Some(datagrams), Some(connections)) => Some((datagrams, connections)),
        (None, None) => None,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    Ok(Inside { dns, listeners: ports })
}
