//! What is no TCP connection to a port of the policy: other ports, other protocols, and listeners of
//! code in the jail that pretend to be the broker's. INV-8; jail.md 1.5.

use std::time::Duration;

use e2e::lab::rows::{denied, fails, gives, talk};
use e2e::lab::{Lab, policy, server, standard_servers, standard_zone};
use e2e::policy::PolicyFile;
use e2e::{Level, Need, require};
use serde_json::{Value, json};

const API: &str = "api.example.test";

fn api() -> PolicyFile {
    policy(r#"allow = ["api.example.test", "api.example.test:7000", "*.pkg.example.test:7000"]"#)
}

#[test]
fn udp_is_refused_at_once_but_for_questions() {
    // jail.md 1.5 rule 4: QUIC falls back when its port refuses.
    let lab = Lab::standard();
    let udp =
        |host: &str, port: u16| json!({"act": "udp", "host": host, "port": port, "hold": 1.5});
    let rows = [
        fails(udp("203.0.113.10", 443), "ECONNREFUSED"),
        fails(udp("203.0.113.10", 7000), "ECONNREFUSED"),
        fails(udp("2001:db8:1::10", 443), "ECONNREFUSED"),
        fails(udp("198.18.0.16", 443), "ECONNREFUSED").without_control(), // stands for a name
        fails(udp("198.18.0.1", 853), "ECONNREFUSED").without_control(),
        gives(talk(API, 7000, "tcp goes on"), "tcp goes on"),
    ];
    lab.check_then(&api(), &rows, |lab| {
        assert!(!lab.heard().iter().any(|line| line["what"] == "datagram"), "INV-8");
    });
}

#[test]
fn a_port_that_nobody_is_allowed_is_refused_by_the_kernel_at_once() {
    let lab = Lab::standard();
    // Nothing listens, so there is nobody to wait for: fifty milliseconds are for a busy machine.
    let acts: Vec<Value> = [API, "203.0.113.10", "2001:db8:1::10", "10.0.0.5", "169.254.169.254"]
        .iter()
        .flat_map(|host| [80, 22].map(|port| json!({"act": "connect", "host": host, "port": port})))
        .collect();
    for level in Level::here() {
        let mut fastest = vec![u64::MAX; acts.len()];
        for _ in 0..3 {
            for (at, got) in lab.inside(level, &api(), &acts).iter().enumerate() {
                assert_eq!(got["error"], "ECONNREFUSED", "{level:?} {}: {got}", acts[at]);
                fastest[at] = fastest[at].min(got["ms"].as_u64().unwrap_or(u64::MAX));
            }
        }
        assert!(fastest.iter().all(|ms| *ms < 50), "{level:?}: {fastest:?} ms");
    }
    let there = json!({"act": "connect", "host": API, "port": 80});
    assert!(lab.outside(&[there])[0]["error"].is_null(), "control");
}

#[test]
fn sockets_of_other_protocols_cannot_be_opened_with_a_network_either() {
    // ICMP, raw, SCTP, DCCP, MPTCP, packet. Raw ones succeed for root on the laboratory's host; what
    // this kernel lacks has its control in `hostile_sockets`.
    let lab = Lab::standard();
    let open = |family: u8, kind: u8, protocol: u16| json!({"act": "open_socket", "family": family, "type": kind, "protocol": protocol});
    const NO: &str = "EPERM|EACCES|EAFNOSUPPORT|EPROTONOSUPPORT|ESOCKTNOSUPPORT|EINVAL|ENOSYS";
    let mut rows = Vec::new();
    for (family, kind, protocol) in
        [(2, 3, 1), (2, 3, 255), (2, 3, 6), (10, 3, 58), (17, 3, 768), (17, 2, 768)]
    {
        let row = fails(open(family, kind, protocol), NO);
        rows.push(if e2e::level::we_are_root() { row } else { row.without_control() });
    }
    for (family, kind, protocol) in
        [(2, 2, 1), (10, 2, 58), (2, 1, 132), (2, 5, 132), (10, 1, 132), (2, 6, 33), (2, 1, 262)]
    {
        rows.push(fails(open(family, kind, protocol), NO).without_control());
    }
    rows.push(gives(talk(API, 7000, "tcp goes on"), "tcp goes on"));
    lab.check(&api(), &rows);
}

#[test]
fn whoever_listens_in_the_jail_hears_only_itself() {
    // A more specific address wins in the kernel: the jail can only fool itself, and nothing it says
    // there is carried anywhere.
    let lab = Lab::standard();
    let policy = api();
    let impostor = |bind: &str, port: u16, host: &str, reuse: bool| json!({"act": "impostor", "bind": [bind, port], "host": host, "port": port, "reuse": reuse});
    let listen = |bind: &str, port: u16, kind: &str, reuse: bool| json!({"act": "impostor", "bind": [bind, port], "host": bind, "port": port, "kind": kind, "reuse": reuse});
    let acts = [
        impostor("203.0.113.10", 7000, "203.0.113.10", false),
        impostor("198.18.0.16", 7000, "198.18.0.16", false),
        impostor("169.254.169.254", 8080, "169.254.169.254", false),
        impostor("0.0.0.0", 7000, API, true),
        impostor("::", 7000, API, true),
        listen("127.0.0.1", 53, "tcp", true),
        listen("127.0.0.1", 53, "udp", true),
        listen("198.18.0.1", 53, "udp", true),
        listen("0.0.0.0", 53, "udp", true),
        talk("first.example.test", 7000, "no rule"),
        talk(API, 7000, "still the broker"),
        // From an address that stands for another name, and from the resolver's.
        json!({"act": "talk", "host": "203.0.113.11", "port": 7000, "send": "x", "bind": ["198.18.0.16", 0], "hold": 1.0}),
        json!({"act": "talk", "host": API, "port": 7000, "send": "bound", "until": "bound", "bind": ["198.18.0.1", 0]}),
    ];
    for level in Level::here() {
        lab.forget();
        let got = lab.inside(level, &policy, &acts);
        let busy = |got: &Value| {
            ["EADDRINUSE", "EACCES", "EPERM"].iter().any(|name| got["error"] == *name)
        };
        for at in [3, 4] {
            assert!(
                busy(&got[at]),
                "INV-8 {level:?} {}: shares the broker's port: {}",
                acts[at],
                got[at]
            );
        }
        for at in [5, 6, 7, 8] {
            assert!(busy(&got[at]), "INV-8 {level:?} {}: {}", acts[at], got[at]);
        }
        for at in 0..3 {
            let fooled = got[at]["fooled"].is_string() || busy(&got[at]);
            assert!(fooled, "{level:?} {}: {}", acts[at], got[at]);
        }
        assert_eq!(got[10]["text"], "still the broker", "{level:?}: {}", got[10]);
        assert!(e2e::lab::is_refused(&got[11]), "INV-8 {level:?}: {}", got[11]);
        assert_eq!(got[12]["text"], "bound", "{level:?}: {}", got[12]);
        let reached: Vec<Value> =
            lab.heard().into_iter().filter(|line| line["what"] == "accept").collect();
        let api = |line: &Value| line["on"].as_str().is_some_and(|on| on.contains("10:7000"));
        assert!(reached.len() == 2 && reached.iter().all(api), "INV-8 {level:?}: {reached:?}");
    }
}

#[test]
fn a_policy_of_three_hundred_ports_works_on_each_of_them() {
    // Part 4 of the contract: any TCP port, several hundred of them.
    const PORTS: std::ops::Range<u16> = 20_000..20_300;
    let mut servers = standard_servers();
    let tried = [20_000, 20_137, 20_299];
    servers.extend(tried.map(|port| server("echo", "203.0.113.10", port)));
    servers.push(server("echo", "203.0.113.10", 20_300));
    let lab = Lab::with(&servers, &standard_zone());
    let rules: Vec<String> = PORTS.map(|port| format!("\"{API}:{port}\"")).collect();
    let policy = policy(&format!("allow = [{}]", rules.join(", ")));
    let mut rows: Vec<_> =
        tried.iter().map(|port| gives(talk(API, *port, "there"), "there")).collect();
    rows.push(denied(talk("203.0.113.10", 20_137, "by address")));
    rows.push(fails(talk(API, 20_300, "next"), "ECONNREFUSED"));
    lab.check(&policy, &rows);
    for level in Level::here() {
        let run = lab.exec(level, &policy).run(&["true"]);
        assert!(run.ok(), "{}", run.text());
        assert!(run.elapsed < Duration::from_secs(10), "{level:?}: {:?}", run.elapsed);
    }
}

#[test]
fn an_empty_list_allows_nothing() {
    let lab = Lab::standard();
    for text in ["allow = []", "allow = []\npresets = []", "mode = \"none\""] {
        let rows = [
            fails(talk("203.0.113.10", 443, "x"), "ECONNREFUSED|ENETUNREACH|EACCES"),
            fails(talk("203.0.113.10", 7000, "x"), "ECONNREFUSED|ENETUNREACH|EACCES"),
            fails(json!({"act": "lookup", "name": API}), "EAI_NONAME|EAI_AGAIN|EAI_FAIL"),
        ];
        lab.check_then(&policy(text), &rows, |lab| {
            assert!(lab.heard().is_empty(), "{:?}", lab.heard())
        });
    }
    require!(Need::Tool("curl"));
    let got = lab.run(&["curl", "-sS", "http://api.example.test/ok"]);
    assert!(got.0.contains("ok from"), "control: {got:?}");
}
