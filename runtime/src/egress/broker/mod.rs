//! The broker: serves the listeners of all jails from outside, decides about each connection, and
//! carries what is allowed.
//!
//! Runs in the control side on two threads of its own, so that a busy jail does not delay a
//! heartbeat. `session.rs` accepts, `connection.rs` is one connection from there to its end;
//! `gate.rs` with `classify.rs` (both pure) and `talk.rs` find out whom it names; `resolve.rs`,
//! `dial.rs` and `upstream.rs` reach the far end, `relay.rs` carries; `peer.rs` is one end of a
//! connection, `limits.rs` how much there may be of everything.

mod classify;
mod connection;
mod dial;
pub(super) mod fuzz;
mod gate;
mod limits;
mod peer;
mod plain;
mod relay;
mod resolve;
mod session;
mod talk;
#[cfg(test)]
mod tests;
mod upstream;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

use super::ledger::{Ledger, Sink};
use super::names::Names;
use super::scope::Scope;
use crate::policy::network::{Host, UpstreamProxy};
use crate::spec::EgressPlan;
use limits::Descriptors;
use relay::Buffers;
use session::Session;

pub(super) use resolve::{HostResolver, Interfaces};
pub use session::{Attached, Inside};

/// Threads of the broker.
const THREADS: usize = 2;

/// What all sessions share.
#[derive(Debug)]
struct Shared {
    descriptors: Arc<Descriptors>,
    resolver: HostResolver,
    interfaces: Interfaces,
    buffers: Buffers,
}

/// The broker of this process. When it is dropped, all its connections end.
#[derive(Debug)]
pub struct Broker {
    runtime: Option<Runtime>,
    shared: Arc<Shared>,
}

impl Broker {
    /// Starts the broker's threads, and raises the soft limit of open files to the hard one.
    ///
    /// # Errors
    /// Threads cannot be started, or the limit cannot be read.
    pub fn start() -> io::Result<Broker> {
        Broker::with(HostResolver::of_host(), Descriptors::of_process()?)
    }

    fn with(resolver: HostResolver, descriptors: Descriptors) -> io::Result<Broker> {
        let number = AtomicUsize::new(0);
        let name = move || format!("broker-{}", number.fetch_add(1, Ordering::Relaxed));
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(1)
            .thread_name_fn(name)
            .enable_io()
            .enable_time()
            .build()?;
        let shared = Shared {
            descriptors: Arc::new(descriptors),
            resolver,
            interfaces: Interfaces::default(),
            buffers: Buffers::default(),
        };
        Ok(Broker { runtime: Some(runtime), shared: Arc::new(shared) })
    }

    /// Serves one more session by `plan`, with the sockets made in its jail, until the result is
    /// dropped. What is decided goes to `sink`.
    ///
    /// # Errors
    /// There are no descriptors left for that many listeners, or one cannot be served. Nothing is
    /// served then.
    pub fn attach(
        &self,
        plan: EgressPlan,
        inside: Inside,
        sink: Arc<dyn Sink>,
    ) -> io::Result<Attached> {
        let mut random = [0; 7];
        let size = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        if size != random.len() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let scope = Scope::new(plan, Names::new(random), Ledger::new(sink));
        self.attach_scope(Arc::new(scope), inside)
    }

    /// Closes one session's part for a caller that is not asynchronous; waits as
    /// [`Attached::close`] does.
    pub fn end(&self, attached: Attached) {
        match &self.runtime {
            Some(runtime) => runtime.block_on(attached.close()),
            None => drop(attached),
        }
    }

    fn attach_scope(&self, scope: Arc<Scope>, inside: Inside) -> io::Result<Attached> {
        let Some(runtime) = &self.runtime else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let session = Session::new(Arc::clone(&self.shared), scope);
        Attached::new(session, runtime.handle().clone(), inside)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Not a drop of the runtime, which may not happen on a thread of another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::ZERO);
        }
    }
}

impl Shared {
    /// A stream to the upstream proxy.
    async fn to_proxy(&self, proxy: &UpstreamProxy) -> io::Result<TcpStream> {
        let addresses = match &proxy.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => {
                let found = self.resolver.addresses(name).await;
                found.map_err(|_| io::Error::from(io::ErrorKind::HostUnreachable))?
            }
        };
        let (stream, _) = dial::connect(&dial::order(&addresses), proxy.port).await?;
        Ok(stream)
    }
}
