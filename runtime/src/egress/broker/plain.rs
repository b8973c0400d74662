//! Connections that speak plain HTTP: `http` looks at every request, the broker dials for the first
//! one that is allowed, and cuts what has to be cut.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::egress::http::{self, Options};
use crate::egress::ledger::Target;
use crate::egress::reason::Reason;

use super::connection::{Connection, Open, Undialled};
use super::gate::Carried;
use super::peer::{Metered, Peer};
use super::session::State;
use crate::policy::network::{DenyDetail, Host};

/// How long a client that is denied is waited for, to be told so.
const REFUSE_MAX: Duration = Duration::from_secs(2);

/// What was dialled, for whoever has to end it.
type Dialled = Arc<Mutex<Option<(Arc<Peer>, Open)>>>;

/// Serves a connection that speaks HTTP, of which `bytes` were read. It was dialled already where the
/// far end could have spoken first.
pub(super) async fn forward(
    connection: &Arc<Connection>,
    bytes: Vec<u8>,
    dialled: Option<(Arc<Peer>, Open)>,
    changes: watch::Receiver<State>,
) {
    let meter = &connection.meter;
    let client = Metered::client(Arc::clone(&connection.client), bytes, Arc::clone(meter));
    let dialled: Dialled = Arc::new(Mutex::new(dialled));
    // Of the address that was refused, for the record.
    let refused: Arc<Mutex<Option<Undialled>>> = Arc::default();
    let dial = {
        let (connection, dialled, refused) =
            (Arc::clone(connection), Arc::clone(&dialled), Arc::clone(&refused));
        move || async move {
            let known = lock(&dialled).as_ref().map(|(server, _)| Arc::clone(server));
            let server = match known {
                Some(server) => server,
                None => {
                    let (server, open) = connection.dial(Carried::Http).await.map_err(|it| {
                        *lock(&refused) = Some(it);
                        it.reason
                    })?;
                    *lock(&dialled) = Some((Arc::clone(&server), open));
                    server
                }
            };
            Ok(Metered::server(server, Arc::clone(&connection.meter)))
        }
    };
    let deny = {
        let connection = Arc::clone(connection);
        move |reason: Reason, named: Option<&Host>| {
            let known = lock(&refused).filter(|it| it.reason == reason);
            let host = named.unwrap_or(&connection.target.host).clone();
            let target = Target { host, port: connection.target.port };
            connection.deny_to(target, known.unwrap_or(reason.into()))
        }
    };
    let limits = &connection.session.scope.in_force().limits;
    let idle = Duration::from_millis(limits.idle_ms);
    let options =
        Options { detail: detail(connection), idle, response: idle, ..Options::default() };
    let cut = tokio::select! {
        biased;
        reason = connection.cut(changes, Carried::Http) => Some(reason),
        // Why a request was not forwarded is recorded by `deny`.
        _ = http::forward(client, &connection.target, dial, deny, options) => None,
    };
    let dialled = lock(&dialled).take();
    let by = if meter.is_used_up() { Some(Reason::Bytes) } else { cut };
    if by.is_none() && !meter.has_failed() {
        connection.client.complete();
        if let Some((server, _)) = &dialled {
            server.complete();
        }
    }
    if let Some((_server, open)) = dialled {
        open.end(by);
    }
}

/// Tells a client of plain HTTP that its connection is denied, in words.
pub(super) async fn refuse(connection: &Arc<Connection>, reason: Reason, number: u64) {
    let meter = Arc::clone(&connection.meter);
    let client = Metered::client(Arc::clone(&connection.client), Vec::new(), meter);
    http::refuse(client, &connection.target, reason, number, detail(connection), REFUSE_MAX).await;
    if !connection.meter.has_failed() {
        connection.client.complete();
    }
}

fn detail(connection: &Connection) -> DenyDetail {
    connection.session.scope.in_force().deny_detail
}

fn lock<T>(it: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}
