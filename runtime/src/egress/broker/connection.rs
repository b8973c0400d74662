//! One connection from a jail, from its acceptance to its end.
//!
//! Order matters. First the rules, by the name that the address stands for; nothing is looked up for
//! a name they deny. Then what the connection says about itself, which must be the same name. Only
//! then the addresses of the name, from the host's resolver, each of them checked; the decision is
//! recorded; and exactly the checked addresses are dialled (INV-8). A denial is recorded before the
//! refusal can be noticed, or the tool call that caused it would end without it.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::sleep_until;

use super::dial;
use super::gate::{Act, Carried, Gate};
use super::limits::{Meter, Slot};
use super::peer::Peer;
use super::plain;
use super::relay::{Cut, relay};
use super::session::{Session, State};
use super::talk;
use super::upstream::tunnel;
use crate::egress::ledger::{Closed, Decision, Target};
use crate::egress::reason::Reason;
use crate::egress::scope::{InForce, Scope, now};
use crate::policy::network::{Allowed, Content, Host, Resolves, UpstreamProxy, Verdict};

/// Most time until a connection has said where it wants to go, where nothing is dialled before.
pub(super) const HEAD_MAX: Duration = Duration::from_secs(10);
/// Longest wait for the end of report mode before the clock is asked again, seconds.
const REPORT_LOOK_MAX: u64 = 3600;
/// The port on which a denial can be put into words.
const PLAIN_HTTP: u16 = 80;

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub session: Arc<Session>,
    pub client: Arc<Peer>,
    pub target: Target,
    pub meter: Arc<Meter>,
    began: Instant,
    /// The address that it was connected to.
    dialled: OnceLock<IpAddr>,
    slot: Arc<Slot>,
}

/// An allowed connection, whose end is recorded whatever happens.
#[derive(Debug)]
pub(super) struct Open {
    scope: Arc<Scope>,
    number: u64,
    target: Target,
    meter: Arc<Meter>,
    began: Instant,
    /// The address that answered.
    address: Option<IpAddr>,
    by: Option<Reason>,
    /// Free only when the end is recorded: whoever waits for the one has waited for the other.
    _slot: Arc<Slot>,
}

impl Open {
    /// Records the end; to be called before either side can notice it.
    pub fn end(mut self, by: Option<Reason>) {
        self.by = by;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let (bytes_out, bytes_in) = self.meter.bytes();
        self.scope.ledger.close(Closed {
            number: self.number,
            target: self.target.clone(),
            address: self.address,
            bytes_out,
            bytes_in,
            duration: self.began.elapsed(),
            by: self.by,
        });
    }
}

/// Why nothing was dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Undialled {
    pub reason: Reason,
    /// The address it is about.
    pub address: Option<IpAddr>,
}

impl From<Reason> for Undialled {
    fn from(reason: Reason) -> Undialled {
        Undialled { reason, address: None }
    }
}

impl Connection {
    /// A connection that was just accepted; `None` if it is gone already.
    pub fn accepted(session: Arc<Session>, stream: TcpStream, slot: Slot) -> Option<Connection> {
        let client = Arc::new(Peer::new(stream));
        let wanted = client.wanted().ok()?;
        let host = match session.scope.names.name(wanted.ip()) {
            Some(name) => Host::Name(name),
            None => Host::from(wanted.ip()),
        };
        let target = Target { host, port: wanted.port() };
        let meter = Arc::new(Meter::new(Arc::clone(&session.usage), Arc::clone(&session.scope)));
        let (began, dialled) = (Instant::now(), OnceLock::new());
        let slot = Arc::new(slot);
        Some(Connection { session, client, target, meter, began, dialled, slot })
    }

    /// Serves it until it ends. Dropping the future resets both ends.
    pub async fn serve(self: Arc<Self>, changes: watch::Receiver<State>) {
        let in_force = self.session.scope.in_force();
        let content = match in_force.decide(&self.target.host, self.target.port) {
            Verdict::Allow(allowed) => allowed.content,
            Verdict::Deny(reason) => {
                let number = self.deny(Reason::Rules(reason).into());
                if self.target.port == PLAIN_HTTP {
                    Box::pin(plain::refuse(&self, Reason::Rules(reason), number)).await;
                }
                return;
            }
        };
        drop(in_force);
        // The states of the handshake are large, and gone before the relay runs.
        let opened = match content.other || content.unchecked {
            true => Box::pin(self.server_may_speak_first(content, changes.clone())).await,
            false => Box::pin(self.client_speaks_first(content, changes.clone())).await,
        };
        let Some((server, open, carried)) = opened else { return };
        self.relay(server, open, carried, changes).await;
    }

    /// Records a denial; returns the number of its decision, 0 if it is not in the record.
    pub fn deny(&self, it: Undialled) -> u64 {
        self.deny_to(self.target.clone(), it)
    }

    /// Records that something is denied which wanted to go to `target` by this connection.
    pub fn deny_to(&self, target: Target, it: Undialled) -> u64 {
        let scope = &self.session.scope;
        let generation = scope.in_force().generation;
        scope.ledger.deny(target, it.reason, generation, it.address).unwrap_or(0)
    }

    /// Where names are all that is allowed: nothing is dialled before one is given.
    async fn client_speaks_first(
        self: &Arc<Self>,
        content: Content,
        changes: watch::Receiver<State>,
    ) -> Option<(Arc<Peer>, Open, Carried)> {
        let mut gate = Gate::new(self.target.host.clone(), content);
        let deadline = self.began + HEAD_MAX;
        let first = match talk::first(&self.client, &mut gate, deadline).await {
            Ok(first) => first,
            Err(Cut::Peer) => return None,
            Err(Cut::By(reason)) => {
                self.deny(reason.into());
                return None;
            }
        };
        let bytes = match first {
            Act::Http(bytes) => {
                plain::forward(self, bytes, None, changes).await;
                return None;
            }
            Act::Pass(bytes) | Act::Free(bytes) => bytes,
            Act::Hold => Vec::new(),
        };
        let (server, open) = match self.dial(gate.carried()).await {
            Ok(dialled) => dialled,
            Err(it) => {
                self.refuse_undialled(it);
                return None;
            }
        };
        self.through_gate(gate, bytes, server, open, changes).await
    }

    /// Where the far end may speak first: it is dialled at once, and the client's first bytes wait.
    async fn server_may_speak_first(
        self: &Arc<Self>,
        content: Content,
        changes: watch::Receiver<State>,
    ) -> Option<(Arc<Peer>, Open, Carried)> {
        let gate = Gate::new(self.target.host.clone(), content);
        match self.dial(gate.carried()).await {
            Ok((server, open)) if gate.is_free() => Some((server, open, Carried::Unchecked)),
            Ok((server, open)) => self.through_gate(gate, Vec::new(), server, open, changes).await,
            Err(it) => {
                self.refuse_undialled(it);
                None
            }
        }
    }

    /// Carries bytes through the gate until it is open for good.
    async fn through_gate(
        self: &Arc<Self>,
        mut gate: Gate,
        bytes: Vec<u8>,
        server: Arc<Peer>,
        open: Open,
        changes: watch::Receiver<State>,
    ) -> Option<(Arc<Peer>, Open, Carried)> {
        let expected = gate.carried();
        let result = tokio::select! {
            biased;
            reason = self.cut(changes.clone(), expected) => Err(Cut::By(reason)),
            result = talk::gated(&self.client, &server, &mut gate, bytes, &self.meter) => result,
        };
        match result {
            Ok(None) => Some((server, open, gate.carried())),
            Ok(Some(request)) => {
                plain::forward(self, request, Some((server, open)), changes).await;
                None
            }
            Err(Cut::Peer) => None,
            Err(Cut::By(reason)) => {
                open.end(Some(reason));
                None
            }
        }
    }

    async fn relay(
        &self,
        server: Arc<Peer>,
        open: Open,
        carried: Carried,
        changes: watch::Receiver<State>,
    ) {
        let buffers = &self.session.shared.buffers;
        let result = tokio::select! {
            biased;
            reason = self.cut(changes, carried) => Err(Cut::By(reason)),
            result = relay(&self.client, &server, &self.meter, buffers) => result,
        };
        let by = match result {
            Ok(()) => {
                self.client.complete();
                server.complete();
                None
            }
            Err(Cut::Peer) => None,
            Err(Cut::By(reason)) => Some(reason),
        };
        open.end(by);
    }

    /// Waits until the connection has to be cut: its rule or report mode is gone, or its time is over.
    pub async fn cut(&self, mut changes: watch::Receiver<State>, carried: Carried) -> Reason {
        // Whether report mode was seen to have ended: what it left is allowed by rules.
        let mut over = false;
        loop {
            let mut next = match self.meter.expired(Instant::now()) {
                Ok(next) => next,
                Err(reason) => return reason,
            };
            // Nobody tells when report mode ends.
            let report = self.session.scope.in_force().rules.report_until;
            if let Some(end) = report.filter(|_| !over) {
                over = end <= now();
                if !self.is_still_allowed(carried) {
                    return Reason::RuleRemoved;
                }
                let left = end.saturating_sub(now());
                let end = Instant::now() + Duration::from_secs(left.clamp(1, REPORT_LOOK_MAX));
                next = next.min(end);
            }
            tokio::select! {
                changed = changes.changed() => match changed {
                    Ok(()) if self.is_still_allowed(carried) => over = false,
                    Ok(()) => return Reason::RuleRemoved,
                    // The session is gone; so will be this.
                    Err(_) => std::future::pending().await,
                },
                () = sleep_until(next.into()) => {}
            }
        }
    }

    fn is_still_allowed(&self, carried: Carried) -> bool {
        let in_force = self.session.scope.in_force();
        let Target { host, port } = &self.target;
        let Verdict::Allow(allowed) = in_force.decide(host, *port) else { return false };
        let address = self.dialled.get();
        let address = address.is_none_or(|it| self.check(&in_force, &allowed, *it).is_ok());
        carried.is_in(allowed.content) && address
    }

    /// Whether `address` may be dialled.
    fn check(&self, force: &InForce, allowed: &Allowed<'_>, address: IpAddr) -> Result<(), Reason> {
        let class = self.session.shared.interfaces.class(address).ok_or(Reason::NoAddress)?;
        let Target { host, port } = &self.target;
        force.rules.may_dial(host, *port, allowed, address, class).map_err(Reason::Rules)
    }

    /// Looks up, checks, records and dials, in this order. What fails upstream is recorded here; a
    /// denial is the caller's to record.
    pub async fn dial(&self, carried: Carried) -> Result<(Arc<Peer>, Open), Undialled> {
        let proxy = self.session.scope.in_force().upstream_proxy.clone();
        let by_proxy = proxy.as_ref().filter(|proxy| proxy.resolves == Resolves::Proxy);
        let found = match &self.target.host {
            Host::Address(address) => Ok(vec![*address]),
            Host::Name(_) if by_proxy.is_some() => Ok(Vec::new()),
            Host::Name(name) => {
                // Not for what the rules have ceased to allow since.
                self.decided(|_, _| Ok(()))?;
                self.session.shared.resolver.addresses(name).await
            }
        };
        let unchecked = by_proxy.is_some() && matches!(self.target.host, Host::Name(_));
        let mut refused = None;
        let (decision, addresses) = self.decided(|force, allowed| {
            if !carried.is_in(allowed.content) {
                return Err(Reason::OtherProtocol.into());
            }
            let mut addresses = found.clone().unwrap_or_default();
            addresses.retain(|address| match self.check(force, allowed, *address) {
                Ok(()) => true,
                Err(reason) => {
                    refused.get_or_insert(Undialled { reason, address: Some(*address) });
                    false
                }
            });
            if let (true, Some(refused)) = (addresses.is_empty(), refused) {
                return Err(refused);
            }
            let addresses = dial::order(&addresses);
            Ok((self.decision(force, allowed, addresses.first().copied()), addresses))
        })?;
        let scope = &self.session.scope;
        let number = scope.ledger.allow(decision).ok_or(Reason::Unrecorded)?;
        let mut open = Open {
            scope: Arc::clone(scope),
            number,
            target: self.target.clone(),
            meter: Arc::clone(&self.meter),
            began: Instant::now(),
            address: None,
            by: None,
            _slot: Arc::clone(&self.slot),
        };
        if addresses.is_empty() && !unchecked {
            open.end(Some(Reason::NoAddress));
            return Err(Reason::NoAddress.into());
        }
        match self.connect(&addresses, proxy.as_ref()).await {
            Some((stream, address)) => {
                if let Some(address) = address {
                    self.dialled.get_or_init(|| address);
                }
                open.address = address;
                self.meter.touch();
                Ok((Arc::new(Peer::new(stream)), open))
            }
            None => {
                open.end(Some(Reason::Unreachable));
                Err(Reason::Unreachable.into())
            }
        }
    }

    /// The stream to the first of `addresses` that answers, and which; through the upstream proxy if
    /// there is one, which is given the name if there is no address.
    async fn connect(
        &self,
        addresses: &[IpAddr],
        proxy: Option<&UpstreamProxy>,
    ) -> Option<(TcpStream, Option<IpAddr>)> {
        let Target { host, port } = &self.target;
        let shared = &self.session.shared;
        let Some(proxy) = proxy else {
            let (stream, address) = dial::connect(addresses, *port).await.ok()?;
            return Some((stream, Some(address.to_canonical())));
        };
        let tried: Vec<Option<IpAddr>> = match addresses {
            [] => vec![None],
            some => some.iter().copied().map(Some).collect(),
        };
        for address in tried {
            let to = address.map_or_else(|| host.clone(), Host::Address);
            let authority = format!("{to}:{port}");
            let stream = shared.to_proxy(proxy).await.ok()?;
            if let Ok(stream) = tunnel(stream, &authority).await {
                return Some((stream, address));
            }
        }
        None
    }

    /// What `with` makes of the rules in force, if they allow the target.
    fn decided<T>(
        &self,
        with: impl FnOnce(&InForce, &Allowed<'_>) -> Result<T, Undialled>,
    ) -> Result<T, Undialled> {
        let in_force = self.session.scope.in_force();
        match in_force.decide(&self.target.host, self.target.port) {
            Verdict::Allow(allowed) => with(&in_force, &allowed),
            Verdict::Deny(reason) => Err(Reason::Rules(reason).into()),
        }
    }

    fn decision(&self, force: &InForce, allowed: &Allowed<'_>, to: Option<IpAddr>) -> Decision {
        Decision {
            number: 0,
            target: self.target.clone(),
            address: to,
            rule: allowed.rule.map(|listed| listed.rule.to_string()),
            origin: allowed.rule.map(|listed| listed.origin.clone()),
            generation: force.generation,
            denied: None,
            reported: allowed.rule.is_none()
                && force.rules.report_until.is_some_and(|it| now() < it),
        }
    }

    fn refuse_undialled(&self, it: Undialled) {
        if it.reason.is_denial() {
            self.deny(it);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<F: Future>(_: impl FnOnce(Arc<Connection>, watch::Receiver<State>) -> F) -> usize {
        size_of::<F>()
    }

    // 10,000 idle connections are 10,000 of these.
    #[test]
    fn an_open_connection_takes_little_memory() {
        let bytes = size(Connection::serve) + size_of::<Connection>() + size_of::<Meter>();
        assert!(bytes <= 3072, "{bytes} bytes");
    }
}
