//! Two network namespaces: the world, in which this process is and where every address can be served,
//! and a jail, whose every connection arrives at listeners that the broker serves.
//!
//! A test calls itself again through unshare(1), so it needs no rights; `ip` sets the routes.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

use crate::egress::broker::limits::Descriptors;
use crate::egress::broker::resolve::HostResolver;
use crate::egress::broker::{Attached, Broker, Inside};
use crate::egress::{Entry, Reason, Sink};
use crate::policy::network::{EgressRule, HostName, ListedRule, Protocol, Rules};
use crate::spec::EgressPlan;

const IN_WORLD: &str = "STOCKADE_TEST_IN_WORLD";
/// Longer than anything here takes that works.
pub(super) const LONG: Duration = Duration::from_secs(10);

/// Runs the body of a test in a network namespace of its own, in a process of its own.
macro_rules! in_world {
    ($name:ident, $body:expr) => {
        #[test]
        fn $name() {
            let path = concat!(module_path!(), "::", stringify!($name));
            if $crate::egress::broker::tests::lab::is_in_world(path) {
                let body: fn() = $body;
                body();
            }
        }
    };
}
pub(super) use in_world;

/// Whether this process is in a namespace made for the test `path`; else one is made, and the test is
/// run there.
pub(super) fn is_in_world(path: &str) -> bool {
    let name = path.split_once("::").expect("crate").1;
    if std::env::var(IN_WORLD).as_deref() == Ok(name) {
        route();
        return true;
    }
    let own = std::env::current_exe().expect("own path");
    let out = Command::new("timeout")
        .args(["-s", "KILL", "120", "unshare", "-rn", "--"])
        .arg(own)
        .args(["--exact", name, "--nocapture"])
        .env(IN_WORLD, name)
        .output()
        .expect("unshare");
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
    false
}

/// Makes every address one of this namespace.
fn route() {
    for arguments in
        ["link set lo up", "route add local default dev lo", "-6 route add local default dev lo"]
    {
        let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip");
        assert!(status.success(), "ip {arguments}");
    }
    // A server can be at any address of IPv6 too.
    std::fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1").expect("sysctl");
}

/// Everything that was recorded.
#[derive(Debug, Default)]
pub(super) struct Log(Mutex<Vec<Entry>>);

impl Sink for Log {
    fn record(&self, _call: Option<&str>, entry: &Entry) -> bool {
        self.0.lock().expect("log").push(entry.clone());
        true
    }
}

impl Log {
    pub fn entries(&self) -> Vec<Entry> {
        self.0.lock().expect("log").clone()
    }

    /// Why things were denied so far.
    pub fn denied(&self) -> Vec<Reason> {
        let entries = self.entries().into_iter();
        let denied = entries.filter_map(|entry| match entry {
            Entry::Decision(decision) => decision.denied,
            _ => None,
        });
        denied.collect()
    }

    /// Addresses that were about to be dialled.
    pub fn allowed(&self) -> Vec<Option<IpAddr>> {
        let entries = self.entries().into_iter();
        let allowed = entries.filter_map(|entry| match entry {
            Entry::Decision(it) if it.denied.is_none() => Some(it.address),
            _ => None,
        });
        allowed.collect()
    }

    /// Ends that were recorded, once there are `count`: bytes out, bytes in, by whom.
    pub fn closed(&self, count: usize) -> Vec<(u64, u64, Option<Reason>)> {
        let until = Instant::now() + LONG;
        loop {
            let entries = self.entries().into_iter();
            let closed = entries.filter_map(|entry| match entry {
                Entry::Closed(it) => Some((it.bytes_out, it.bytes_in, it.by)),
                _ => None,
            });
            let closed: Vec<_> = closed.collect();
            if closed.len() >= count || Instant::now() > until {
                return closed;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A world with a broker in it, and a jail.
#[derive(Debug)]
pub(super) struct Lab {
    pub broker: Broker,
    pub log: Arc<Log>,
    jail: File,
    files: tempfile::TempDir,
}

impl Lab {
    /// In which these lines are the hosts file.
    pub fn new(hosts: &str) -> Lab {
        Lab::with(hosts, Descriptors::new(100_000))
    }

    pub fn with(hosts: &str, descriptors: Descriptors) -> Lab {
        let files = tempfile::tempdir().expect("directory");
        let [resolv_conf, hosts_file] = ["resolv.conf", "hosts"].map(|it| files.path().join(it));
        std::fs::write(&resolv_conf, "nameserver 127.0.0.1\n").expect("resolv.conf");
        std::fs::write(&hosts_file, hosts).expect("hosts");
        let resolver = HostResolver::new(&resolv_conf, &hosts_file);
        let broker = Broker::with(resolver, descriptors).expect("broker");
        let jail = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("namespace");
            route();
            File::open("/proc/thread-self/ns/net").expect("namespace")
        });
        Lab { broker, log: Arc::default(), jail: jail.join().expect("jail"), files }
    }

    /// Writes the host's hosts file anew.
    pub fn write_hosts(&self, hosts: &str) {
        std::fs::write(self.files.path().join("hosts"), hosts).expect("hosts");
    }

    /// Serves the jail by these rules: as in a policy, then `private` or a protocol.
    pub fn attach(&self, rules: &[&str]) -> Attached {
        self.attach_plan(plan(rules))
    }

    pub fn attach_plan(&self, plan: EgressPlan) -> Attached {
        let listeners = self.listeners(plan.ports());
        let inside = Inside { dns: None, listeners };
        self.broker.attach(plan, inside, self.log.clone()).expect("attached")
    }

    /// Listeners in the jail, as the launcher makes them.
    pub fn listeners(&self, ports: impl IntoIterator<Item = u16>) -> Vec<(u16, TcpListener)> {
        let listen = |port| {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("listener");
            (port, listener)
        };
        let ports: Vec<u16> = ports.into_iter().collect();
        self.inside(move || ports.into_iter().map(listen).collect())
    }

    /// Does something on a thread in the jail's namespace.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.jail, CloneFlags::CLONE_NEWNET).expect("namespace");
                act()
            });
            inside.join().expect("inside")
        })
    }

    /// A connection that a program in the jail opens to `host`, by the name's address if it is one.
    pub fn connect(
        &self,
        attached: &Attached,
        host: &str,
        port: u16,
    ) -> std::io::Result<TcpStream> {
        let address = match host.parse::<IpAddr>() {
            Ok(address) => address,
            Err(_) => {
                let name = HostName::parse(host).expect("name");
                let (v4, _) = attached.session.scope.names.addresses(&name).expect("room");
                IpAddr::V4(v4)
            }
        };
        let stream = self.inside(|| TcpStream::connect((address, port)))?;
        stream.set_read_timeout(Some(LONG))?;
        stream.set_write_timeout(Some(LONG))?;
        Ok(stream)
    }

    /// Whether such a connection is reset before a byte has come. The reset may be there before
    /// connect(2) returns, which then tells of it.
    pub fn is_refused(&self, attached: &Attached, host: &str, port: u16) -> bool {
        match self.connect(attached, host, port) {
            Ok(mut stream) => is_reset(&mut stream),
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// Whether such a connection, tried again and again, reaches an echo before long: what was given
    /// back is room only when the broker has seen it.
    pub fn is_served_again(&self, attached: &Attached, host: &str, port: u16) -> bool {
        let until = Instant::now() + LONG;
        while Instant::now() < until {
            let tried = self.connect(attached, host, port);
            if tried.and_then(|mut stream| echoes(&mut stream, b"x")).is_ok_and(|same| same) {
                return true;
            }
            thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

/// A plan of these rules.
pub(super) fn plan(rules: &[&str]) -> EgressPlan {
    let listed = |text: &&str| {
        let mut words = text.split(' ');
        let mut rule: EgressRule = words.next().expect("rule").parse().expect(text);
        for word in words {
            match word {
                "private" => rule.private = true,
                "tls" => rule.protocol = Protocol::Tls,
                "http" => rule.protocol = Protocol::Http,
                "auto" => rule.protocol = Protocol::Auto,
                "tcp" => rule.protocol = Protocol::Tcp,
                other => panic!("{other}"),
            }
        }
        ListedRule { rule, origin: "test:1:1".to_owned() }
    };
    let rules = Rules { list: rules.iter().map(listed).collect(), report_until: None };
    EgressPlan { rules, ..EgressPlan::default() }
}

/// Serves one connection at a time at `address` in the world.
pub(super) fn serve(address: &str, act: impl Fn(TcpStream) + Send + 'static) -> JoinHandle<()> {
    let address: SocketAddr = address.parse().expect("address");
    let listener = TcpListener::bind(address).expect("server");
    thread::spawn(move || {
        for stream in listener.incoming() {
            act(stream.expect("client"));
        }
    })
}

/// A server that sends back what it gets until the client has ended.
pub(super) fn serve_echo(address: &str) -> JoinHandle<()> {
    serve(address, |mut stream| {
        thread::spawn(move || {
            let mut from = stream.try_clone().expect("clone");
            let _ = std::io::copy(&mut from, &mut stream);
            let _ = stream.shutdown(Shutdown::Write);
        });
    })
}

/// Sends `bytes` and reads as many back.
pub(super) fn echoes(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<bool> {
    stream.write_all(bytes)?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back)?;
    Ok(back == bytes)
}

/// Whether the other side resets the connection, without having sent anything.
pub(super) fn is_reset(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    let error = stream.read(&mut byte).err().map(|error| error.kind());
    matches!(error, Some(std::io::ErrorKind::ConnectionReset))
}
