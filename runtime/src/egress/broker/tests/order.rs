//! INV-8, jail.md 1.5: what is decided, in which order, and what is dialled in the end.

use std::io::{Read, Write};
use std::net::Shutdown;

use super::lab::{Lab, echoes, in_world, is_reset, serve, serve_echo};
use crate::egress::Reason;
use crate::egress::tls::samples::record_of;
use crate::policy::network::{AddressClass, DenyReason};

const HOSTS: &str = "203.0.113.10 api.example.com db.example.com\n\
    10.0.0.5 inner.example.com\n\
    169.254.169.254 metadata.example.com\n\
    127.0.0.1 me.example.com\n";

// INV-8: the name that the address stands for decides.
in_world!(a_name_that_a_rule_allows_is_reached_and_others_are_reset, || {
    let lab = Lab::new(HOSTS);
    let _server = serve_echo("203.0.113.10:5432");
    let attached = lab.attach(&["db.example.com:5432"]);
    let mut allowed = lab.connect(&attached, "db.example.com", 5432).expect("allowed");
    assert!(echoes(&mut allowed, b"\0\0\0\x08").expect("echo"));
    assert_eq!(lab.log.allowed(), [Some("203.0.113.10".parse().expect("address"))]);
    allowed.shutdown(Shutdown::Write).expect("end");
    assert_eq!(allowed.read(&mut [0]).expect("end of the server"), 0);
    assert_eq!(lab.log.closed(1), [(4, 4, None)]);

    assert!(lab.is_refused(&attached, "api.example.com", 5432));
    assert!(lab.is_refused(&attached, "203.0.113.10", 5432));
    let reasons = [DenyReason::NoRule, DenyReason::DirectAddress].map(Reason::Rules);
    assert_eq!(lab.log.denied(), reasons);
    // A port that no rule names has no listener.
    let refused = lab.connect(&attached, "db.example.com", 5433).expect_err("no listener");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
});

// INV-8: private, link-local and metadata ranges are refused unless a rule lists them.
in_world!(names_that_lead_to_addresses_that_are_not_public_are_refused, || {
    let lab = Lab::new(HOSTS);
    for server in ["10.0.0.5:7", "169.254.169.254:7", "127.0.0.1:7", "203.0.113.10:7"] {
        drop(serve_echo(server));
    }
    let attached = lab.attach(&["*.example.com:7"]);
    let cases = [
        ("inner.example.com", AddressClass::Private),
        ("metadata.example.com", AddressClass::Metadata),
        ("me.example.com", AddressClass::Loopback),
    ];
    for (name, class) in cases {
        assert!(lab.is_refused(&attached, name, 7), "{name}");
        let reason = Reason::Rules(DenyReason::Address(class));
        assert_eq!(lab.log.denied().last(), Some(&reason), "{name}");
    }
    assert!(lab.log.allowed().is_empty());
    // Control: the same with a public address, and a private one that a rule lists.
    let mut stream = lab.connect(&attached, "api.example.com", 7).expect("accepted");
    assert!(echoes(&mut stream, b"\0").expect("echo"));
    drop(attached);
    let attached = lab.attach(&["*.example.com:7 private"]);
    for name in ["inner.example.com", "me.example.com"] {
        let mut stream = lab.connect(&attached, name, 7).expect("accepted");
        assert!(echoes(&mut stream, b"\0").expect(name));
    }
    assert!(lab.is_refused(&attached, "metadata.example.com", 7));
});

// jail.md 1.5 rule 3: SNI is the name that was resolved, or the connection is refused.
in_world!(tls_goes_where_its_hello_says_and_nowhere_else, || {
    let lab = Lab::new(HOSTS);
    let _server = serve("203.0.113.10:443", |mut stream| {
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(1..) = stream.read(&mut bytes) {
                stream.write_all(b"answer").expect("answer");
            }
        });
    });
    let attached = lab.attach(&["api.example.com:443"]);
    let try_with = |bytes: &[u8]| {
        let mut stream = lab.connect(&attached, "api.example.com", 443).expect("accepted");
        stream.write_all(bytes).expect("written");
        stream
    };
    for name in ["api.example.com", "API.Example.COM"] {
        let mut answer = [0; 6];
        try_with(&record_of(&[name])).read_exact(&mut answer).expect(name);
    }
    let dialled = lab.log.allowed().len();
    let cases: [(Vec<u8>, Reason); 5] = [
        (record_of(&["db.example.com"]), Reason::OtherName),
        (record_of(&[]), Reason::NoName),
        (record_of(&["api.example.com", "db.example.com"]), Reason::Malformed),
        (b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n".to_vec(), Reason::OtherProtocol),
        (b"SSH-2.0-x\r\n".to_vec(), Reason::OtherProtocol),
    ];
    for (bytes, reason) in cases {
        assert!(is_reset(&mut try_with(&bytes)), "{reason:?}");
        assert_eq!(lab.log.denied().last(), Some(&reason));
    }
    // A refused connection is never dialled.
    assert_eq!(lab.log.allowed().len(), dialled);
});

// Both families lead to the same name, and a literal is the same address however it is written.
in_world!(addresses_of_both_families_stand_for_the_name, || {
    let lab = Lab::new(HOSTS);
    drop(serve_echo("203.0.113.10:5432"));
    drop(serve_echo("[2001:db8::5]:5432"));
    let attached = lab.attach(&["db.example.com:5432", "[2001:db8::/64]:5432"]);
    let name = crate::policy::network::HostName::parse("db.example.com").expect("name");
    let (v4, v6) = attached.session.scope.names.addresses(&name).expect("room");
    for address in [v4.to_string(), v4.to_ipv6_mapped().to_string(), v6.to_string()] {
        let mut stream = lab.connect(&attached, &address, 5432).expect("accepted");
        assert!(echoes(&mut stream, b"\0").expect("echo"), "{address}");
    }
    let mut listed = lab.connect(&attached, "2001:db8::5", 5432).expect("accepted");
    assert!(echoes(&mut listed, b"\0").expect("echo"));
    for address in ["::ffff:203.0.113.10", "2001:db9::5", "64:ff9b::cb00:710a", "198.18.255.1"] {
        assert!(lab.is_refused(&attached, address, 5432), "{address}");
    }
    let direct = Reason::Rules(DenyReason::DirectAddress);
    assert_eq!(lab.log.denied(), [direct; 4]);
});

// A flood of connections that are gone at once leaves the broker as it was.
in_world!(clients_that_reset_at_once_do_no_harm, || {
    let lab = Lab::new(HOSTS);
    drop(serve_echo("203.0.113.10:5432"));
    let attached = lab.attach(&["db.example.com:5432", "api.example.com:443"]);
    for round in 0..200 {
        let port = if round % 2 == 0 { 5432 } else { 443 };
        let name = if port == 443 { "api.example.com" } else { "db.example.com" };
        let stream = lab.connect(&attached, name, port).expect("accepted");
        nix::sys::socket::setsockopt(
            &stream,
            nix::sys::socket::sockopt::Linger,
            &libc::linger { l_onoff: 1, l_linger: 0 },
        )
        .expect("linger");
    }
    let until = std::time::Instant::now() + super::lab::LONG;
    while attached.open() > 0 && std::time::Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(attached.open(), 0);
    let mut stream = lab.connect(&attached, "db.example.com", 5432).expect("accepted");
    assert!(echoes(&mut stream, b"\0").expect("echo"));
});
