//! What the broker serves for one session: its listeners and connections, and the rules for them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::Shared;
use super::connection::Connection;
use super::limits::{Taken, Usage};
use super::peer::Peer;
use crate::egress::dns;
use crate::egress::ledger::{Ledger, Target};
use crate::egress::reason::Reason;
use crate::egress::scope::Scope;
use crate::policy::network::Host;
use crate::spec::EgressPlan;

/// How long to wait after an accept that failed for want of something, first and at most.
const BACKOFF: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];
/// Most time for connections to end and be recorded.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// What all connections of a session hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The rules of this generation are in force.
    Live(u64),
    /// The session ends.
    Ended,
}

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    pub shared: Arc<Shared>,
    pub scope: Arc<Scope>,
    pub usage: Arc<Usage>,
    state: watch::Sender<State>,
}

impl Session {
    pub fn new(shared: Arc<Shared>, scope: Arc<Scope>) -> Session {
        let usage = Arc::new(Usage::new(Arc::clone(&shared.descriptors)));
        let state = watch::Sender::new(State::Live(1));
        Session { shared, scope, usage, state }
    }

    /// Hears what changes from now on.
    pub fn changes(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }
}

/// Listeners of a session.
#[derive(Debug, Default)]
struct Listening {
    /// Ports that rules in force name.
    wanted: BTreeSet<u16>,
    served: BTreeMap<u16, Served>,
}

/// A listener in a jail, which stops when dropped.
#[derive(Debug)]
struct Served {
    listener: Arc<tokio::net::TcpListener>,
    serving: AbortHandle,
    _descriptors: Taken,
}

impl Drop for Served {
    fn drop(&mut self) {
        // From here on the kernel refuses, and resets what was not accepted yet. A listener that
        // cannot be shut down is closed a moment later all the same.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        self.serving.abort();
    }
}

/// Sockets that the launcher made in a jail's network namespace.
#[derive(Debug, Default)]
pub struct Inside {
    /// Those of the resolver.
    pub dns: Option<(UdpSocket, TcpListener)>,
    /// One for each port of the plan.
    pub listeners: Vec<(u16, TcpListener)>,
}

/// One session, served until this is dropped: then listeners and connections are closed at once.
/// The ends of connections are still recorded; [`close`](Self::close) waits for that.
#[derive(Debug)]
pub struct Attached {
    pub(super) session: Arc<Session>,
    handle: Handle,
    listening: Mutex<Listening>,
    dns: Option<AbortHandle>,
}

impl Attached {
    pub(super) fn new(session: Session, handle: Handle, inside: Inside) -> io::Result<Attached> {
        let session = Arc::new(session);
        let Inside { dns, listeners } = inside;
        let wanted = listeners.iter().map(|(port, _)| *port).collect();
        let listening = Mutex::new(Listening { wanted, served: BTreeMap::new() });
        let mut attached = Attached { session, handle, listening, dns: None };
        if let Some((udp, tcp)) = dns {
            // Ends only if it cannot serve; then there are no names, and so nothing to connect to.
            let scope = Arc::clone(&attached.session.scope);
            let serving = attached.handle.spawn(dns::serve(udp, tcp, scope));
            attached.dns = Some(serving.abort_handle());
        }
        for (port, listener) in listeners {
            attached.listen(port, listener)?;
        }
        Ok(attached)
    }

    fn listen(&self, port: u16, listener: TcpListener) -> io::Result<()> {
        let too_many = || io::Error::from(rustix::io::Errno::MFILE);
        let descriptors = self.session.shared.descriptors.take(1).ok_or_else(too_many)?;
        listener.set_nonblocking(true)?;
        let _inside = self.handle.enter();
        let listener = Arc::new(tokio::net::TcpListener::from_std(listener)?);
        let serving = accept(Arc::clone(&self.session), Arc::clone(&listener));
        let serving = self.handle.spawn(serving);
        let serving = serving.abort_handle();
        // Stops at once if it is not kept.
        let served = Served { listener, serving, _descriptors: descriptors };
        let mut listening = self.listening();
        if listening.wanted.contains(&port) {
            listening.served.insert(port, served);
        }
        Ok(())
    }

    fn listening(&self) -> MutexGuard<'_, Listening> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was decided so far.
    pub fn ledger(&self) -> &Ledger {
        &self.session.scope.ledger
    }

    /// Connections that are open.
    pub fn open(&self) -> u32 {
        self.session.usage.open()
    }

    /// Which rules are in force: 1 at first, one more with each [`replace`](Self::replace).
    pub fn generation(&self) -> u64 {
        self.session.scope.in_force().generation
    }

    /// Puts other rules in force. Listeners of ports that no rule names any more are closed before
    /// this returns; connections that the rules do not allow, or not as what they are, are reset.
    /// Ports that are new need listeners: [`listen_also`](Self::listen_also).
    pub fn replace(&self, plan: EgressPlan) {
        let mut listening = self.listening();
        if matches!(*self.session.state.borrow(), State::Ended) {
            return;
        }
        listening.wanted = plan.ports();
        self.session.scope.replace(plan);
        self.session.state.send_replace(State::Live(self.generation()));
        let Listening { wanted, served } = &mut *listening;
        served.retain(|port, _| wanted.contains(port));
    }

    /// Serves further listeners. One whose port no rule names any more, or that cannot be served, is
    /// closed: the kernel refuses.
    pub fn listen_also(&self, added: Vec<(u16, TcpListener)>) {
        for (port, listener) in added {
            // What is refused for want of descriptors is as closed as if no rule named it.
            let _ = self.listen(port, listener);
        }
    }

    /// Closes everything, whoever else still has this, and waits, at most five seconds, until the ends of
    /// all connections are recorded.
    pub async fn close(&self) {
        self.shut();
        let session = Arc::clone(&self.session);
        let ended = self.handle.spawn(async move {
            let all = async {
                while session.usage.open() > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let _ = tokio::time::timeout(CLOSE_MAX, all).await;
        });
        // The broker itself may be gone, and its connections with it.
        let _ = ended.await;
    }

    fn shut(&self) {
        let mut listening = self.listening();
        listening.wanted.clear();
        listening.served.clear();
        self.session.state.send_replace(State::Ended);
        if let Some(dns) = &self.dns {
            dns.abort();
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.shut();
    }
}

/// Accepts connections of one listener until it is shut down.
async fn accept(session: Arc<Session>, listener: Arc<tokio::net::TcpListener>) {
    let mut wait = BACKOFF[0];
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                wait = BACKOFF[0];
                admit(&session, stream);
            }
            // The client is gone already; the next one may not be.
            Err(error) if is_of_client(&error) => tokio::task::yield_now().await,
            // No descriptors, no memory: others have to end first. Without a wait the listener would
            // be ready again at once.
            Err(_) => {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(BACKOFF[1]);
            }
        }
    }
}

/// Whether an accept failed because of the connection that was to be accepted (accept(2)).
fn is_of_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, PermissionDenied};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | PermissionDenied)
        || error.raw_os_error() == Some(libc::EPROTO)
}

/// Serves a connection, or refuses it if there is no room for it.
fn admit(session: &Arc<Session>, stream: TcpStream) {
    // Before anything is decided, so that no change of the rules is missed.
    let changes = session.changes();
    match session.usage.admit(&session.scope) {
        Ok(slot) => {
            let session = Arc::clone(session);
            tokio::spawn(async move {
                let mut ended = session.changes();
                let Some(connection) = Connection::accepted(session, stream, slot) else { return };
                tokio::select! {
                    biased;
                    _ = ended.wait_for(|state| *state == State::Ended) => {}
                    () = Arc::new(connection).serve(changes) => {}
                }
            });
        }
        Err(reason) => refuse(session, &Peer::new(stream), reason),
    }
}

/// Records that a connection is refused, which is reset when `client` is dropped.
fn refuse(session: &Session, client: &Peer, reason: Reason) {
    let Ok(wanted) = client.wanted() else { return };
    let host = match session.scope.names.name(wanted.ip()) {
        Some(name) => Host::Name(name),
        None => Host::from(wanted.ip()),
    };
    let generation = session.scope.in_force().generation;
    let target = Target { host, port: wanted.port() };
    session.scope.ledger.deny(target, reason, generation, None);
}
