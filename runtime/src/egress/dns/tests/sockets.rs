//! The resolver on real sockets, in a network namespace where every address is local, as a jail's.

use std::io::{Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::*;

/// Set in the process that runs inside the namespace.
const INSIDE: &str = "STOCKADE_TEST_INSIDE";
/// Longest wait for a reply.
const PATIENCE: Duration = Duration::from_secs(5);
/// Makes every address local, as in a jail, and this resolver the only one. The loopback interface
/// has one address that is not loopback's: without it glibc finds nothing for a program that asks
/// for IPv4 only with AI_ADDRCONFIG (getaddrinfo(3)), as `getent ahostsv4` does.
const PREPARE: &str = "ip link set lo up && ip route add local default dev lo \
    && ip address add 198.18.0.1/32 dev lo \
    && { ! test -e /proc/sys/net/ipv6 || ip -6 route add local default dev lo; } \
    && echo nameserver 198.18.0.1 >\"$1\" && mount --bind \"$1\" /etc/resolv.conf && shift";

/// Runs `test`, which is the test of that name, in namespaces of its own.
fn inside(name: &str, test: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let namespaces = ["--user", "--map-root-user", "--net", "--mount"];
    if !Command::new("unshare").args(namespaces).arg("true").status().is_ok_and(|s| s.success()) {
        println!("skipped: this host gives no user and network namespaces");
        return;
    }
    let resolv = tempfile::NamedTempFile::new().expect("a file");
    let output = Command::new("timeout")
        .args(["--signal=KILL", "60", "unshare"])
        .args(namespaces)
        .args(["sh", "-c", &format!("{PREPARE} && exec \"$@\""), "sh"])
        .arg(resolv.path())
        .arg(std::env::current_exe().expect("this binary"))
        .args(["--exact", &format!("egress::dns::tests::sockets::{name}"), "--nocapture"])
        .env(INSIDE, "yes")
        .output()
        .expect("unshare can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let facts = text.lines().filter(|line| line.starts_with("measured: "));
    facts.for_each(|line| println!("{line}"));
}

/// The sockets as the launcher makes them: for both families, or for IPv4 on a host with no other.
fn sockets(port: u16, both: bool) -> (UdpSocket, TcpListener) {
    let any = if both { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
    let udp = UdpSocket::bind((any, port)).expect("a UDP socket");
    let told = match both {
        true => setsockopt(&udp, sockopt::Ipv6RecvPacketInfo, &true),
        false => setsockopt(&udp, sockopt::Ipv4PacketInfo, &true),
    };
    told.expect("destinations are told");
    (udp, TcpListener::bind((any, port)).expect("a TCP socket"))
}

/// Serves while `client` runs, and not any longer.
fn serving(port: u16, both: bool, scope: Arc<Scope>, client: impl FnOnce() + Send + 'static) {
    let (udp, tcp) = sockets(port, both);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(async {
        let client = tokio::task::spawn_blocking(client);
        tokio::select! {
            failed = sendable(super::super::serve(udp, tcp, scope)) => panic!("{failed:?}"),
            done = client => done.expect("the client is content"),
        }
    });
}

/// May run on any thread of a runtime.
fn sendable<T: Send>(future: T) -> T {
    future
}

/// Asks over UDP; the reply counts only if it comes from where the question went.
fn ask_udp(server: SocketAddr, message: &Message) -> Message {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // Not connected, so that a reply from elsewhere would be seen.
    socket.send_to(&bytes(message), server).expect("the question is sent");
    let mut buffer = [0; 4096];
    let (length, from) = socket.recv_from(&mut buffer).expect("a reply");
    assert_eq!(from, server, "the reply comes from the address that was asked");
    Message::from_vec(&buffer[..length]).expect("readable")
}

fn framed(message: &Message) -> Vec<u8> {
    let bytes = bytes(message);
    let length = u16::try_from(bytes.len()).expect("short");
    [&length.to_be_bytes(), bytes.as_slice()].concat()
}

fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

fn next(stream: &mut TcpStream) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).expect("a length");
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply).expect("a reply");
    Message::from_vec(&reply).expect("readable")
}

// INV-8: whatever server a program asks, it asks ours, and the answer comes from "that" server.
#[test]
fn every_server_of_both_families_is_ours() {
    inside("every_server_of_both_families_is_ours", || {
        let (scope, _) = scope();
        serving(53, true, Arc::new(scope), || {
            let servers = ["198.18.0.1", "8.8.8.8", "127.0.0.1", "10.1.2.3", "2001:db8::53", "::1"];
            for server in servers {
                let server = SocketAddr::new(server.parse().expect(server), 53);
                for (name, want) in [("api.example.com.", "198.18.0.16"), ("evil.test.", "Refused")]
                {
                    let message = question(name, RecordType::A);
                    assert_eq!(said(&ask_udp(server, &message)), want, "{server} over UDP");
                    let mut stream = connect(server);
                    stream.write_all(&framed(&message)).expect("the question is sent");
                    assert_eq!(said(&next(&mut stream)), want, "{server} over TCP");
                }
            }
        });
    });
}

#[test]
fn host_without_ipv6_has_the_same_resolver() {
    inside("host_without_ipv6_has_the_same_resolver", || {
        let (scope, _) = scope();
        serving(53, false, Arc::new(scope), || {
            for server in ["198.18.0.1", "1.1.1.1", "127.0.0.53"] {
                let server = SocketAddr::new(server.parse().expect(server), 53);
                let message = question("api.example.com.", RecordType::AAAA);
                assert!(said(&ask_udp(server, &message)).starts_with("fd01:"), "{server}");
            }
        });
    });
}

// A refused name must cost a program milliseconds, not the seconds of a server that is silent.
#[test]
fn c_library_is_told_at_once() {
    inside("c_library_is_told_at_once", || {
        let (scope, kept) = scope();
        // Kept: at its end the ledger adds up what it only counted.
        let scope = Arc::new(scope);
        serving(53, true, Arc::clone(&scope), || {
            #[rustfmt::skip]
            let cases = [
                ("api.example.com", Some("198.18.0.16")), ("evil.test", None), ("nohost", None),
                ("a_b.evil.test", None), ("x.localhost", Some("127.0.0.1")),
            ];
            for (name, want) in cases {
                let start = Instant::now();
                let output = Command::new("getent").args(["ahostsv4", name]).output();
                let (output, took) = (output.expect("getent"), start.elapsed());
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                println!("measured: getent ahostsv4 {name}: {took:?}, {}", output.status);
                match want {
                    Some(address) => assert!(text.starts_with(address), "{name}: {text}"),
                    None => assert!(!output.status.success() && text.is_empty(), "{name}: {text}"),
                }
                assert!(took < Duration::from_secs(2), "{name} took {took:?}");
            }
        });
        let denied = kept.denials();
        let hosts: Vec<&str> = denied.iter().map(|(host, ..)| host.as_str()).collect();
        assert_eq!(hosts, ["evil.test", "nohost", "a_b.evil.test"], "once each, and nothing else");
    });
}

// RFC 7766, 6.2.1.1: questions on one connection may come in any pieces, and together.
#[test]
fn stream_carries_questions_in_any_pieces() {
    inside("stream_carries_questions_in_any_pieces", || {
        let (scope, _) = scope();
        serving(53, true, Arc::new(scope), || {
            let server = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 53);
            let one = framed(&question("api.example.com.", RecordType::A));
            let other = framed(&question("evil.test.", RecordType::A));
            let mut stream = connect(server);
            stream.write_all(&[one.as_slice(), &other, &one].concat()).expect("sent");
            for want in ["198.18.0.16", "Refused", "198.18.0.16"] {
                assert_eq!(said(&next(&mut stream)), want);
            }
            stream.set_nodelay(true).expect("an option");
            for byte in &one {
                stream.write_all(&[*byte]).expect("sent");
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(said(&next(&mut stream)), "198.18.0.16");
            // Half a question and the end of input: the connection ends, without a reply.
            stream.write_all(&one[..5]).expect("sent");
            stream.shutdown(Shutdown::Write).expect("shut");
            assert_eq!(stream.read(&mut [0; 16]).expect("the end"), 0);
        });
    });
}

// INV-11: what is no question ends a connection, and connections that say nothing end by themselves;
// neither keeps others from being answered for longer than that.
#[test]
fn silent_and_senseless_connections_are_closed() {
    inside("silent_and_senseless_connections_are_closed", || {
        let (scope, _) = scope();
        serving(53, true, Arc::new(scope), || {
            let server = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), 53);
            let long = [0x10, 0x01, 0, 0];
            let response = [0, 12, 0, 7, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for senseless in [long.as_slice(), &response, &[0, 0]] {
                let mut stream = connect(server);
                stream.write_all(senseless).expect("sent");
                // Bytes that were not read may turn the end into a reset.
                let end = stream.read(&mut [0; 16]);
                assert!(!matches!(end, Ok(1..)), "{senseless:?}: {end:?}");
                assert!(!end.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock));
            }
            // As many silent ones as there may be: the next waits, and is answered when they end.
            let silent: Vec<TcpStream> = (0..16).map(|_| connect(server)).collect();
            std::thread::sleep(Duration::from_millis(200));
            let start = Instant::now();
            let mut stream = TcpStream::connect(server).expect("the kernel accepts");
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
            let message = question("api.example.com.", RecordType::A);
            stream.write_all(&framed(&message)).expect("sent");
            assert_eq!(said(&ask_udp(server, &message)), "198.18.0.16", "UDP is not concerned");
            assert!(start.elapsed() < Duration::from_secs(5));
            assert_eq!(said(&next(&mut stream)), "198.18.0.16");
            let waited = start.elapsed();
            assert!((5..15).contains(&waited.as_secs()), "{waited:?}");
            drop(silent);
        });
    });
}

// INV-11, jail.md 1.5 rule 2: beyond its budget a session is answered slowly, whatever it sends.
#[test]
fn flood_is_slowed_down() {
    inside("flood_is_slowed_down", || {
        for (connection_rate, slow) in [(1, true), (512, false)] {
            let limits = EgressLimits { connection_rate, ..EgressLimits::default() };
            let (scope, _) = scope_with(plan(&RULES, limits));
            serving(53, true, Arc::new(scope), move || {
                let server = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53);
                // What is no question counts as well.
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
                for _ in 0..64 {
                    socket.send_to(&[0; 5], server).expect("sent");
                }
                let start = Instant::now();
                let mut stream = connect(server);
                let message = framed(&question("api.example.com.", RecordType::A));
                stream.write_all(&message.repeat(200)).expect("sent");
                for _ in 0..200 {
                    next(&mut stream);
                }
                let took = start.elapsed();
                println!("measured: 200 questions at {connection_rate}: {took:?}");
                assert_eq!(took > Duration::from_secs(1), slow, "{took:?}");
            });
        }
    });
}

// INV-10: the resolver ends with its session, and so do its connections.
#[test]
fn connections_end_with_the_resolver() {
    inside("connections_end_with_the_resolver", || {
        let (scope, _) = scope();
        let server = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53);
        let (sender, receiver) = std::sync::mpsc::channel();
        serving(53, true, Arc::new(scope), move || {
            let mut stream = connect(server);
            stream.write_all(&framed(&question("evil.test.", RecordType::A))).expect("sent");
            assert_eq!(said(&next(&mut stream)), "Refused");
            sender.send(stream).expect("it is kept");
        });
        let mut stream = receiver.recv().expect("the connection");
        assert_eq!(stream.read(&mut [0; 16]).expect("the end"), 0);
        assert!(TcpStream::connect(server).is_err(), "nobody listens any more");
    });
}
