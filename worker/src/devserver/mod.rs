//! An embedded control plane: the endpoints, states and errors of the real one, in memory, with
//! scripted sessions and injected faults.
//!
//! `worker devserver` runs it; tests, the demo and operators who rehearse a policy use it. It holds
//! no secret of anybody: its credentials are made for the run. Its idea of the protocol is its own:
//! it shares no type with the client in `queue`, so that one can show a mistake of the other.
//!
//! `script.rs` and `steps.rs` are what is asked for, `driver.rs` does it, `work.rs` and `session.rs`
//! are the state, `http.rs`, `checks.rs` and `api.rs` answer, `record.rs` says how it went.

use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;

mod api;
mod checks;
mod clock;
mod dev;
mod driver;
mod events;
mod expect;
mod fault;
mod http;
mod memory;
mod record;
mod reply;
mod result;
pub mod script;
mod session;
mod skill;
mod sse;
mod state;
mod steps;
#[cfg(test)]
mod tests;
mod transcript;
pub mod webhook;
mod work;

pub use record::table;
use script::Script;
pub use state::Identity;
use state::{Plane, State};
pub use transcript::transcript;

/// What the command line decides.
#[derive(Debug)]
pub struct Options {
    pub script: Script,
    pub identity: Identity,
    pub keep_results: bool,
    pub exit_when_done: bool,
    pub timeout: Option<Duration>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    pub report: serde_json::Value,
    pub timed_out: bool,
}

/// Serves until it is done, the time is over, or somebody asks it to end.
///
/// # Errors
/// If the listener fails for good, or signals cannot be received.
pub async fn serve(listener: TcpListener, options: Options) -> anyhow::Result<Outcome> {
    let plane = start(options.script, options.identity, options.keep_results)?;
    let accepting = http::accept(plane.clone(), listener);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .context("cannot wait for signals")?;
    let (done, exit_when_done) = (until_done(plane.clone()), options.exit_when_done);
    let mut timed_out = false;
    tokio::select! {
        failed = accepting => drop(failed.context("cannot accept connections")?),
        () = done, if exit_when_done => {}
        () = deadline(options.timeout) => timed_out = true,
        () = plane.shutdown.notified() => {}
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    let report = plane.lock().report(true);
    Ok(Outcome { report, timed_out })
}

/// Makes the state of a script and starts its drivers.
fn start(script: Script, identity: Identity, keep_results: bool) -> anyhow::Result<Plane> {
    let ping = script.server.ping_ms;
    let mut state = State::new(identity, script.server, keep_results);
    let now = state.clock.now();
    state.skills = script.skill;
    state.stores = script.memory_store.iter().map(|store| memory::Store::new(store, now)).collect();
    for fault in script.fault {
        anyhow::ensure!(state.faults.add(fault), "too many faults");
    }
    for item in script.work {
        state.queue.add(item.r#type.as_deref(), None, std::collections::BTreeMap::new(), now);
    }
    let deliveries = match script.webhook.as_ref().map(webhook::Hook::new).transpose() {
        Ok(hook) => hook.map(|(hook, sessions)| {
            state.hook = Some(hook);
            sessions
        }),
        Err(reason) => anyhow::bail!("cannot send webhooks: {reason}"),
    };
    let mut added = Vec::new();
    for session in script.session {
        added.extend(state.add_sessions(session).context("too many sessions")?);
    }
    let plane = Plane::new(state);
    for at in added {
        tokio::spawn(driver::drive(plane.clone(), at));
    }
    if let Some(sessions) = deliveries {
        tokio::spawn(webhook::deliver(plane.clone(), sessions));
    }
    if ping > 0 {
        tokio::spawn(pings(plane.clone(), Duration::from_millis(ping)));
    }
    Ok(plane)
}

async fn pings(plane: Plane, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let mut state = plane.lock();
        state.sessions.iter_mut().for_each(|one| one.signal(&session::Signal::Ping));
    }
}

async fn until_done(plane: Plane) {
    loop {
        let changed = plane.lock().changed.clone();
        let woken = changed.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        if plane.lock().begun() && plane.lock().done() {
            // The last answer is still on its way.
            tokio::time::sleep(Duration::from_millis(20)).await;
            return;
        }
        // A lease may also run out by itself.
        drop(tokio::time::timeout(Duration::from_millis(500), woken).await);
        let mut state = plane.lock();
        let now = state.clock.now();
        state.queue.expire(now);
    }
}

async fn deadline(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}
