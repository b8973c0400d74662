//! INV-8, jail.md 1.5 rule 2: what is looked up upstream, when, and what its answers may lead to.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::lab::{Lab, echoes, in_world, plan, serve_echo};
use crate::egress::Reason;
use crate::policy::network::{AddressClass, DenyReason, Host, Resolves, UpstreamProxy};
use crate::spec::EgressPlan;

type Asked = Arc<Mutex<Vec<String>>>;

/// A name server in the world: what each name has, as addresses or `=other.name`.
fn serve_names(zone: &'static [(&'static str, &'static [&'static str])]) -> Asked {
    let asked = Asked::default();
    let (socket, log) = (UdpSocket::bind("127.0.0.1:53").expect("port 53"), Arc::clone(&asked));
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok((size, from)) = socket.recv_from(&mut bytes) {
            let question = Message::from_vec(&bytes[..size]).expect("question");
            let query = question.queries[0].clone();
            let name = query.name().to_ascii().to_lowercase();
            log.lock().expect("log").push(name.clone());
            let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
            reply.metadata.message_type = MessageType::Response;
            reply.metadata.recursion_available = true;
            reply.metadata.response_code = ResponseCode::NoError;
            answer(&mut reply, zone, query.name(), query.query_type());
            reply.queries.push(query);
            let _ = socket.send_to(&reply.to_vec().expect("reply"), from);
        }
    });
    asked
}

fn answer(reply: &mut Message, zone: &[(&str, &[&str])], name: &Name, kind: RecordType) {
    let text = name.to_ascii().to_lowercase();
    let Some((_, data)) = zone.iter().find(|(its, _)| format!("{its}.") == text) else {
        reply.metadata.response_code = ResponseCode::NXDomain;
        return;
    };
    for text in *data {
        let record = match (text.strip_prefix('='), text.parse::<IpAddr>()) {
            (Some(other), _) => {
                let other = Name::from_ascii(format!("{other}.")).expect("name");
                let link = RData::CNAME(CNAME(other.clone()));
                reply.answers.push(Record::from_rdata(name.clone(), 0, link));
                answer(reply, zone, &other, kind);
                continue;
            }
            (_, Ok(IpAddr::V4(it))) if kind == RecordType::A => RData::A(A(it)),
            (_, Ok(IpAddr::V6(it))) if kind == RecordType::AAAA => RData::AAAA(AAAA(it)),
            _ => continue,
        };
        reply.answers.push(Record::from_rdata(name.clone(), 0, record));
    }
}

in_world!(only_allowed_names_are_looked_up_and_only_for_a_connection, || {
    let asked = serve_names(&[
        ("api.example.com", &["203.0.113.10"]),
        ("alias.example.com", &["=inner.example.net"]),
        ("inner.example.net", &["10.0.0.5"]),
        ("good.example.com", &["=api.example.com"]),
        ("mixed.example.com", &["10.0.0.5", "169.254.169.254", "203.0.113.10"]),
    ]);
    let lab = Lab::new("");
    drop(serve_echo("203.0.113.10:9000"));
    drop(serve_echo("10.0.0.5:9000"));
    let attached = lab.attach(&["*.example.com:9000"]);
    assert!(lab.is_refused(&attached, "secret.evil.test", 9000));
    assert!(asked.lock().expect("log").is_empty(), "a name that is not allowed was looked up");

    // A name that leads to a private address by another name is refused like one that does so itself.
    assert!(lab.is_refused(&attached, "alias.example.com", 9000));
    let private = Reason::Rules(DenyReason::Address(AddressClass::Private));
    assert_eq!(lab.log.denied().last(), Some(&private));
    // Of an answer with addresses of several kinds, only those that may be dialled are.
    for name in ["api.example.com", "good.example.com", "mixed.example.com"] {
        let mut stream = lab.connect(&attached, name, 9000).expect("accepted");
        assert!(echoes(&mut stream, b"\0").expect(name));
    }
    let public: IpAddr = "203.0.113.10".parse().expect("address");
    assert_eq!(lab.log.allowed(), [Some(public); 3]);
    let asked = asked.lock().expect("log").clone();
    assert!(!asked.is_empty() && !asked.iter().any(|name| name.contains("evil")), "{asked:?}");
});

// Rebinding: what is dialled is what was checked; and an address of the host's own counts as its own.
in_world!(addresses_of_the_host_itself_are_refused_whatever_they_look_like, || {
    let lab = Lab::new("203.0.113.77 own.example.com\n203.0.113.10 api.example.com\n");
    drop(serve_echo("203.0.113.77:9000"));
    drop(serve_echo("203.0.113.10:9000"));
    let add = "addr add 203.0.113.77/32 dev lo";
    let status = std::process::Command::new("ip").args(add.split(' ')).status().expect("ip");
    assert!(status.success());
    let attached = lab.attach(&["*.example.com:9000"]);
    assert!(lab.is_refused(&attached, "own.example.com", 9000));
    let loopback = Reason::Rules(DenyReason::Address(AddressClass::Loopback));
    assert_eq!(lab.log.denied(), [loopback]);
    let mut other = lab.connect(&attached, "api.example.com", 9000).expect("accepted");
    assert!(echoes(&mut other, b"\0").expect("echo"));
});

in_world!(a_changed_hosts_file_is_read_again, || {
    let lab = Lab::new("203.0.113.10 api.example.com\n");
    drop(serve_echo("203.0.113.11:9000"));
    let attached = lab.attach(&["api.example.com:9000"]);
    assert!(lab.is_refused(&attached, "api.example.com", 9000));
    lab.write_hosts("203.0.113.11 api.example.com # another machine\n");
    std::thread::sleep(Duration::from_millis(2100));
    let mut stream = lab.connect(&attached, "api.example.com", 9000).expect("accepted");
    assert!(echoes(&mut stream, b"\0").expect("echo"));
});

in_world!(an_address_that_does_not_answer_delays_the_next_one_only_a_little, || {
    let lab = Lab::new("2001:db8::1 api.example.com\n203.0.113.10 api.example.com\n");
    drop(serve_echo("203.0.113.10:9000"));
    // Listens, and has no room for another connection: what is sent there stays unanswered.
    let address: SocketAddr = "[2001:db8::1]:9000".parse().expect("address");
    let full = TcpListener::bind(address).expect("listener");
    nix::sys::socket::listen(&full, nix::sys::socket::Backlog::new(0).expect("backlog"))
        .expect("full");
    let _first = std::net::TcpStream::connect(address).expect("room for one");
    let attached = lab.attach(&["api.example.com:9000"]);
    let began = Instant::now();
    let mut stream = lab.connect(&attached, "api.example.com", 9000).expect("accepted");
    assert!(echoes(&mut stream, b"\0").expect("echo"));
    let took = began.elapsed();
    assert!((200..2000).contains(&took.as_millis()), "{took:?}");
});

// Through an HTTP proxy of the host: the checked address is asked for, or the name if so configured.
in_world!(an_upstream_proxy_is_asked_for_a_checked_address, || {
    let lab = Lab::new("203.0.113.10 api.example.com\n10.0.0.5 inner.example.com\n");
    let asked = Asked::default();
    let log = Arc::clone(&asked);
    drop(super::lab::serve("10.9.9.9:3128", move |mut stream| {
        let log = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                head.push(byte[0]);
            }
            let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
            log.lock().expect("log").push(line);
            stream.write_all(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nfirst").expect("answer");
            let mut from = stream.try_clone().expect("clone");
            let _ = std::io::copy(&mut from, &mut stream);
        });
    }));
    for (resolves, line) in [
        (Resolves::Host, "CONNECT 203.0.113.10:9000 HTTP/1.1"),
        (Resolves::Proxy, "CONNECT api.example.com:9000 HTTP/1.1"),
    ] {
        let host = Host::parse("10.9.9.9").expect("address");
        let upstream_proxy = Some(UpstreamProxy { host, port: 3128, resolves });
        let rules = plan(&["*.example.com:9000"]);
        let attached = lab.attach_plan(EgressPlan { upstream_proxy, ..rules });
        let mut stream = lab.connect(&attached, "api.example.com", 9000).expect("accepted");
        let mut first = [0; 5];
        stream.read_exact(&mut first).expect("what came with the answer");
        assert!(echoes(&mut stream, b"\0").expect("echo"));
        assert_eq!(asked.lock().expect("log").last().map(String::as_str), Some(line));
        if resolves == Resolves::Host {
            assert!(lab.is_refused(&attached, "inner.example.com", 9000));
        }
        drop(attached);
    }
    assert_eq!(asked.lock().expect("log").len(), 2);
});
