//! How connections end: by either side, by limits, with the session.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::lab::{LONG, Lab, echoes, in_world, is_reset, plan, serve, serve_echo};
use crate::egress::Reason;
use crate::egress::broker::limits::Descriptors;
use crate::spec::{EgressLimits, EgressPlan};

const HOSTS: &str = "203.0.113.10 api.example.com\n";

fn limited(limits: EgressLimits) -> EgressPlan {
    EgressPlan { limits, ..plan(&["api.example.com:9000 tcp"]) }
}

fn reset(stream: TcpStream) {
    nix::sys::socket::setsockopt(
        &stream,
        nix::sys::socket::sockopt::Linger,
        &libc::linger { l_onoff: 1, l_linger: 0 },
    )
    .expect("linger");
}

// A reset is passed on as one: half an answer must not look whole.
in_world!(a_reset_of_either_side_is_a_reset_of_the_other, || {
    let lab = Lab::new(HOSTS);
    let (seen, server_saw) = mpsc::channel();
    drop(serve("203.0.113.10:9000", move |mut stream| {
        let seen = seen.clone();
        std::thread::spawn(move || {
            let mut order = [0];
            stream.read_exact(&mut order).expect("order");
            stream.write_all(b"x").expect("answer");
            match order[0] {
                b'r' => reset(stream),
                _ => seen.send(stream.read(&mut order).map_err(|it| it.kind())).expect("seen"),
            }
        });
    }));
    let attached = lab.attach(&["api.example.com:9000 tcp"]);
    let order = |order: &[u8]| {
        let mut stream = lab.connect(&attached, "api.example.com", 9000).expect("accepted");
        stream.write_all(order).expect("order");
        stream.read_exact(&mut [0]).expect("answer");
        stream
    };
    assert!(is_reset(&mut order(b"r")));
    reset(order(b"w"));
    assert_eq!(server_saw.recv_timeout(LONG), Ok(Err(ErrorKind::ConnectionReset)));
    // Control: an end is an end.
    drop(order(b"w"));
    assert_eq!(server_saw.recv_timeout(LONG), Ok(Ok(0)));
});

in_world!(what_cannot_be_reached_is_reset_and_is_no_denial, || {
    let lab = Lab::new(HOSTS);
    let attached = lab.attach(&["api.example.com:9000", "nowhere.example.com:9000"]);
    for (name, reason) in
        [("api.example.com", Reason::Unreachable), ("nowhere.example.com", Reason::NoAddress)]
    {
        assert!(lab.is_refused(&attached, name, 9000));
        assert_eq!(lab.log.closed(1).last(), Some(&(0, 0, Some(reason))));
    }
    assert!(lab.log.denied().is_empty() && attached.ledger().turn(None).is_empty());
});

in_world!(bytes_beyond_the_budget_do_not_leave, || {
    let lab = Lab::new(HOSTS);
    drop(serve_echo("203.0.113.10:9000"));
    let limits = EgressLimits { bytes_out: Some(1000), ..EgressLimits::default() };
    let attached = lab.attach_plan(limited(limits));
    let connect = || lab.connect(&attached, "api.example.com", 9000).expect("accepted");
    assert!(echoes(&mut connect(), &[7; 600]).expect("within"));
    let mut stream = connect();
    stream.write_all(&[7; 600]).expect("written");
    let mut all = Vec::new();
    let error = stream.read_to_end(&mut all).expect_err("cut");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let closed = lab.log.closed(2);
    assert_eq!(closed.iter().map(|it| it.0).sum::<u64>(), 1000, "{closed:?}");
    assert!(closed.iter().any(|it| it.2 == Some(Reason::Bytes)));
});

in_world!(idle_and_long_connections_end, || {
    let lab = Lab::new(HOSTS);
    drop(serve_echo("203.0.113.10:9000"));
    let idle = EgressLimits { idle_ms: 1_500, ..EgressLimits::default() };
    let long = EgressLimits { duration_ms: Some(4_000), ..EgressLimits::default() };
    for (limits, reason) in [(idle, Reason::Idle), (long, Reason::Duration)] {
        let attached = lab.attach_plan(limited(limits));
        let mut stream = lab.connect(&attached, "api.example.com", 9000).expect("accepted");
        let began = Instant::now();
        // Not as long as something is carried.
        while began.elapsed() < Duration::from_millis(2_000) {
            assert!(echoes(&mut stream, b"x").expect("echo"));
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(is_reset(&mut stream));
        assert!(began.elapsed() < Duration::from_secs(10));
        drop(attached);
        assert!(lab.log.closed(1).iter().any(|it| it.2 == Some(reason)), "{reason:?}");
    }
});

// One session cannot take what others need: its connections are bounded in number and in time.
in_world!(connections_beyond_the_limits_are_reset_and_recorded, || {
    let lab = Lab::new(HOSTS);
    drop(serve_echo("203.0.113.10:9000"));
    let few = EgressLimits { connections: 2, ..EgressLimits::default() };
    // One in a second: the next one comes before there is room for it.
    let slow = EgressLimits { connection_rate: 1, ..EgressLimits::default() };
    let name = "api.example.com";
    for (limits, room, reason) in [(few, 2, Reason::Connections), (slow, 1, Reason::ConnectionRate)]
    {
        let attached = lab.attach_plan(limited(limits));
        let connect = || lab.connect(&attached, name, 9000).expect("accepted");
        let mut held: Vec<_> = (0..room).map(|_| connect()).collect();
        assert!(lab.is_refused(&attached, name, 9000), "{reason:?}");
        assert_eq!(lab.log.denied().last(), Some(&reason));
        for stream in &mut held {
            assert!(echoes(stream, b"x").expect("echo"));
        }
        drop(held);
        assert!(lab.is_served_again(&attached, name, 9000), "{reason:?}: no room again");
    }
});

in_world!(descriptors_of_the_process_bound_all_sessions_together, || {
    let lab = Lab::with(HOSTS, Descriptors::new(1 + 3 * 3));
    drop(serve_echo("203.0.113.10:9000"));
    let attached = lab.attach(&["api.example.com:9000 tcp"]);
    let connect = || lab.connect(&attached, "api.example.com", 9000).expect("accepted");
    let mut held: Vec<_> = (0..3).map(|_| connect()).collect();
    for stream in &mut held {
        assert!(echoes(stream, b"x").expect("echo"));
    }
    assert!(lab.is_refused(&attached, "api.example.com", 9000));
    assert_eq!(lab.log.denied(), [Reason::Connections]);
    // No session whose listeners do not fit.
    let listeners = lab.listeners(9001..9004);
    let inside = crate::egress::Inside { dns: None, listeners };
    let refused = lab.broker.attach(plan(&["a.example.com:9001"]), inside, lab.log.clone());
    let refused = refused.expect_err("no room").raw_os_error();
    assert_eq!(refused, Some(rustix::io::Errno::MFILE.raw_os_error()));
    held.pop();
    lab.log.closed(1);
    assert!(lab.is_served_again(&attached, "api.example.com", 9000), "no room again");
});

// INV-10: nothing of a session outlives it.
in_world!(the_end_of_a_session_is_the_end_of_its_connections_and_of_no_others, || {
    let lab = Lab::new(HOSTS);
    drop(serve_echo("203.0.113.10:9000"));
    let attached = lab.attach(&["api.example.com:9000 tcp"]);
    let mut open: Vec<_> = (0..20)
        .map(|_| lab.connect(&attached, "api.example.com", 9000).expect("accepted"))
        .collect();
    for stream in &mut open {
        assert!(echoes(stream, b"abc").expect("echo"));
    }
    let other = Lab::new(HOSTS);
    let others = other.attach(&["api.example.com:9000 tcp"]);
    let mut another = other.connect(&others, "api.example.com", 9000).expect("accepted");
    assert!(echoes(&mut another, b"x").expect("echo"));

    let address = open[0].peer_addr().expect("address");
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("runtime")
        .block_on(attached.close());
    assert_eq!(lab.log.closed(20).iter().filter(|it| **it == (3, 3, None)).count(), 20);
    for stream in &mut open {
        assert!(is_reset(stream));
    }
    let refused = || lab.inside(|| TcpStream::connect(address)).expect_err("no listener").kind();
    assert_eq!(refused(), ErrorKind::ConnectionRefused);
    // Rules that come too late, of somebody who has it still, open nothing again.
    attached.replace(plan(&["api.example.com:9000 tcp"]));
    attached.listen_also(lab.listeners([9000]));
    assert_eq!(refused(), ErrorKind::ConnectionRefused);
    assert!(echoes(&mut another, b"x").expect("the other session goes on"));
});
