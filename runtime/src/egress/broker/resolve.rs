//! Addresses of a name, from the host's own resolver: its hosts file first, then its name servers.
//!
//! Asked only when a connection for an allowed name is about to be dialled (INV-8). Names are
//! absolute: no search domain is ever appended. What is returned is dialled; nobody asks again in
//! between. Answers are kept as long as they say, at most a minute, for all sessions together.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::ResolveHosts;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, lookup::Lookup};
use tokio::sync::Semaphore;

use crate::egress::reason::Reason;
use crate::policy::network::{AddressClass, HostName};

/// Most time for one name.
const LOOKUP_MAX: Duration = Duration::from_secs(5);
/// One question to one server.
const QUESTION_MAX: Duration = Duration::from_secs(2);
/// How long the slower of A and AAAA is waited for once the other has answered with addresses.
const OTHER_FAMILY_MAX: Duration = Duration::from_millis(300);
/// Most addresses of an answer that are looked at, of each family.
const ADDRESSES_MAX: usize = 16;
/// How long an answer is kept at most, and one that says there is nothing.
const KEPT_MAX: Duration = Duration::from_secs(60);
const NOTHING_KEPT_MAX: Duration = Duration::from_secs(5);
/// Answers that are kept.
const ANSWERS_MAX: u64 = 4096;
/// Names that are looked up at once, in the whole process.
const LOOKUPS_MAX: usize = 256;
/// How often the host's files and interfaces are looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// The host's resolver.
#[derive(Debug)]
pub(in crate::egress) struct HostResolver {
    resolv_conf: Box<Path>,
    hosts: Box<Path>,
    current: Mutex<Option<Current>>,
    lookups: Semaphore,
}

/// What was read from the host's files.
#[derive(Debug, Clone)]
struct Current {
    looked: Instant,
    stamp: [Option<Stamp>; 2],
    hosts: Arc<Hosts>,
    servers: Option<TokioResolver>,
}

/// By what a changed file is told.
type Stamp = (u64, u64, i64, i64);

impl HostResolver {
    /// With the files of this host.
    pub fn of_host() -> HostResolver {
        HostResolver::new(Path::new("/etc/resolv.conf"), Path::new("/etc/hosts"))
    }

    /// With these files.
    pub fn new(resolv_conf: &Path, hosts: &Path) -> HostResolver {
        HostResolver {
            resolv_conf: resolv_conf.into(),
            hosts: hosts.into(),
            current: Mutex::default(),
            lookups: Semaphore::new(LOOKUPS_MAX),
        }
    }

    /// All addresses of `name`: those of the hosts file, or if it has none, of the name servers. At
    /// least one. Takes at most five seconds.
    ///
    /// # Errors
    /// [`Reason::NoAddress`].
    pub async fn addresses(&self, name: &HostName) -> Result<Vec<IpAddr>, Reason> {
        let found = tokio::time::timeout(LOOKUP_MAX, self.look_up(name)).await;
        match found {
            Ok(addresses) if !addresses.is_empty() => Ok(addresses),
            _ => Err(Reason::NoAddress),
        }
    }

    async fn look_up(&self, name: &HostName) -> Vec<IpAddr> {
        let Ok(mut name) = Name::from_ascii(name.as_str()) else { return Vec::new() };
        name.set_fqdn(true);
        let current = self.current();
        let [v6, v4] = [RecordType::AAAA, RecordType::A].map(|kind| {
            let query = Query::query(name.clone(), kind);
            current.hosts.lookup_static_host(&query).map(addresses_of).unwrap_or_default()
        });
        if !v6.is_empty() || !v4.is_empty() {
            return [v6, v4].concat();
        }
        let Some(servers) = &current.servers else { return Vec::new() };
        let Ok(_permit) = self.lookups.acquire().await else { return Vec::new() };
        let ask = |kind| {
            let name = name.clone();
            async move { servers.lookup(name, kind).await.map(addresses_of).unwrap_or_default() }
        };
        let (v6, v4) = (ask(RecordType::AAAA), ask(RecordType::A));
        let (mut v6, mut v4) = (std::pin::pin!(v6), std::pin::pin!(v4));
        tokio::select! {
            first = &mut v6 => [first.clone(), rest(!first.is_empty(), v4).await].concat(),
            first = &mut v4 => [rest(!first.is_empty(), v6).await, first].concat(),
        }
    }

    /// The host's files as they are now.
    fn current(&self) -> Current {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(known) = current.as_mut().filter(|it| now < it.looked + LOOK_AGAIN) {
            return known.clone();
        }
        let stamp = [stamp(&self.resolv_conf), stamp(&self.hosts)];
        if let Some(known) = current.as_mut().filter(|it| it.stamp == stamp) {
            known.looked = now;
            return known.clone();
        }
        // A file that cannot be read names nobody.
        let hosts = Arc::new(read_hosts(&self.hosts).unwrap_or_default());
        let servers = read_servers(&self.resolv_conf).ok();
        let new = Current { looked: now, stamp, hosts, servers };
        current.insert(new).clone()
    }
}

/// The other family's answer; only shortly waited for if there is something to dial already.
async fn rest(found: bool, other: impl Future<Output = Vec<IpAddr>>) -> Vec<IpAddr> {
    let most = if found { OTHER_FAMILY_MAX } else { LOOKUP_MAX };
    tokio::time::timeout(most, other).await.unwrap_or_default()
}

fn addresses_of(lookup: Lookup) -> Vec<IpAddr> {
    let answers = lookup.answers().iter();
    answers.filter_map(|record| record.data.ip_addr()).take(ADDRESSES_MAX).collect()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let about = std::fs::metadata(path).ok()?;
    Some((about.ino(), about.size(), about.mtime(), about.mtime_nsec()))
}

fn read_hosts(path: &Path) -> io::Result<Hosts> {
    let mut hosts = Hosts::default();
    hosts.read_hosts_conf(std::fs::File::open(path)?)?;
    Ok(hosts)
}

fn read_servers(path: &Path) -> io::Result<TokioResolver> {
    let text = std::fs::read(path)?;
    let (config, mut options) =
        hickory_resolver::system_conf::parse_resolv_conf(text).map_err(io::Error::other)?;
    options.timeout = QUESTION_MAX;
    options.attempts = options.attempts.min(2);
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = ANSWERS_MAX;
    options.positive_max_ttl = Some(KEPT_MAX);
    options.negative_max_ttl = Some(NOTHING_KEPT_MAX);
    options.preserve_intermediates = false;
    let mut builder = TokioResolver::builder_with_config(config, Default::default());
    *builder.options_mut() = options;
    builder.build().map_err(io::Error::other)
}

/// Addresses of this host's interfaces: whatever the range they are of, they lead to the host itself.
#[derive(Debug, Default)]
pub(in crate::egress) struct Interfaces {
    known: Mutex<Option<(Instant, Arc<HashSet<IpAddr>>)>>,
}

impl Interfaces {
    /// The class of `address` as seen from this host; `None` if the host does not tell its addresses.
    pub fn class(&self, address: IpAddr) -> Option<AddressClass> {
        let address = address.to_canonical();
        let own = self.own().ok()?;
        let class = AddressClass::of(address);
        // What is more than loopback stays what it is.
        let ours = own.contains(&address);
        Some(match class {
            AddressClass::Public | AddressClass::Private if ours => AddressClass::Loopback,
            class => class,
        })
    }

    fn own(&self) -> io::Result<Arc<HashSet<IpAddr>>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some((at, own)) = known.as_ref().filter(|(at, _)| now < *at + LOOK_AGAIN) {
            let _ = at;
            return Ok(Arc::clone(own));
        }
        let mut own = HashSet::new();
        for interface in nix::ifaddrs::getifaddrs()? {
            let Some(address) = interface.address else { continue };
            if let Some(v4) = address.as_sockaddr_in() {
                own.insert(IpAddr::V4(v4.ip()));
            } else if let Some(v6) = address.as_sockaddr_in6() {
                own.insert(IpAddr::V6(v6.ip()).to_canonical());
            }
        }
        let own = Arc::new(own);
        *known = Some((now, Arc::clone(&own)));
        Ok(own)
    }
}
