//! Rules that change under open connections, and sessions with different rules.

use std::io::{ErrorKind, Write};

use super::lab::{Lab, echoes, in_world, is_reset, plan, serve_echo};
use crate::egress::Reason;
use crate::egress::scope::now;
use crate::policy::network::DenyReason;

const HOSTS: &str = "203.0.113.10 api.example.com db.example.com\n10.0.0.5 inner.example.com\n";

in_world!(connections_of_removed_rules_are_reset_and_others_go_on, || {
    let lab = Lab::new(HOSTS);
    for address in ["203.0.113.10:9000", "203.0.113.10:9001", "10.0.0.5:9000"] {
        drop(serve_echo(address));
    }
    let all = [
        "api.example.com:9000",
        "db.example.com:9000",
        "db.example.com:9001",
        "inner.example.com:9000 private",
    ];
    let attached = lab.attach(&all);
    let connect = |name, port| {
        let mut stream = lab.connect(&attached, name, port).expect("accepted");
        assert!(echoes(&mut stream, b"\0").expect("echo"));
        stream
    };
    let mut kept = connect("api.example.com", 9000);
    let mut gone = connect("db.example.com", 9000);
    let mut gone_port = connect("db.example.com", 9001);
    let mut now_public = connect("inner.example.com", 9000);
    assert_eq!(attached.generation(), 1);
    attached.replace(plan(&["api.example.com:9000", "inner.example.com:9000"]));
    assert_eq!(attached.generation(), 2);
    // At once: the kernel refuses the port that no rule names any more.
    let refused = lab.connect(&attached, "db.example.com", 9001).expect_err("no listener");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    for stream in [&mut gone, &mut gone_port, &mut now_public] {
        assert!(is_reset(stream));
    }
    let closed = lab.log.closed(3);
    assert!(closed.iter().all(|it| it.2 == Some(Reason::RuleRemoved)), "{closed:?}");
    assert!(echoes(&mut kept, b"\0").expect("the rule is still there"));
    assert!(lab.is_refused(&attached, "db.example.com", 9000));

    // Wider again, with a listener for a port that had none.
    attached.replace(plan(&all));
    attached.listen_also(lab.listeners([9001, 9002]));
    connect("db.example.com", 9001);
    connect("db.example.com", 9000);
    let refused = lab.connect(&attached, "db.example.com", 9002).expect_err("no rule names it");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
});

// Part 6 of the contract: report mode has an end, also for what it let through.
in_world!(connections_of_report_mode_end_with_it_and_those_of_rules_go_on, || {
    let lab = Lab::new(HOSTS);
    drop(serve_echo("203.0.113.10:9000"));
    let mut reporting = plan(&["api.example.com:9000"]);
    reporting.rules.report_until = Some(now() + 3);
    let attached = lab.attach_plan(reporting);
    let connect = |name| {
        let mut stream = lab.connect(&attached, name, 9000).expect("accepted");
        assert!(echoes(&mut stream, b"\0").expect("echo"), "{name}");
        stream
    };
    let (mut kept, mut gone) = (connect("api.example.com"), connect("db.example.com"));
    assert!(is_reset(&mut gone));
    let closed = lab.log.closed(1);
    assert_eq!(closed[0].2, Some(Reason::RuleRemoved));
    assert!(echoes(&mut kept, b"\0").expect("a rule allows it"));
});

in_world!(a_handshake_that_has_begun_is_decided_by_the_rules_at_its_end, || {
    let lab = Lab::new(HOSTS);
    drop(serve_echo("203.0.113.10:443"));
    let rules = ["api.example.com:443", "db.example.com:443"];
    let attached = lab.attach(&rules);
    let hello = crate::egress::tls::samples::record_of(&["db.example.com"]);
    let (first, last) = hello.split_at(20);
    let mut begun = lab.connect(&attached, "db.example.com", 443).expect("accepted");
    begun.write_all(first).expect("first half");
    std::thread::sleep(std::time::Duration::from_millis(100));
    attached.replace(plan(&rules[..1]));
    begun.write_all(last).expect("second half");
    assert!(is_reset(&mut begun));
    assert_eq!(lab.log.denied(), [Reason::Rules(DenyReason::NoRule)]);
    assert!(lab.log.allowed().is_empty());
    // Control: under the rules as they were, it is dialled.
    attached.replace(plan(&rules));
    let mut stream = lab.connect(&attached, "db.example.com", 443).expect("accepted");
    assert!(echoes(&mut stream, &hello).expect("echo"));
});

in_world!(two_sessions_with_different_rules_never_mix, || {
    let (one, two) = (Lab::new(HOSTS), Lab::new(HOSTS));
    drop(serve_echo("203.0.113.10:9000"));
    let first = one.attach(&["api.example.com:9000"]);
    let second = two.attach(&["db.example.com:9000"]);
    for round in 0..20 {
        let mut allowed = one.connect(&first, "api.example.com", 9000).expect("accepted");
        assert!(two.is_refused(&second, "api.example.com", 9000), "{round}");
        assert!(echoes(&mut allowed, b"\0").expect("echo"), "{round}");
        assert!(one.is_refused(&first, "db.example.com", 9000), "{round}");
        let mut allowed = two.connect(&second, "db.example.com", 9000).expect("accepted");
        assert!(echoes(&mut allowed, b"\0").expect("echo"), "{round}");
    }
});
