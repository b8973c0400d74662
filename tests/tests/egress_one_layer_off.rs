//! INV-4 for the network: with any single layer switched off that a policy can switch off, no act of a
//! jail has an effect on anybody the policy does not name. The network namespace is no such layer here:
//! without it there is no network but the host's, which `hostile_one_layer_off` looks at.

use e2e::lab::rows::{is_denied, talk};
use e2e::lab::{Lab, policy_text};
use e2e::level::we_are_root;
use e2e::policy::{PolicyFile, RELAXABLE};
use e2e::{End, Level};
use serde_json::{Value, json};

const RULES: &str = r#"allow = ["api.example.test:7000"]"#;
const ALLOWED: &str = "203.0.113.10:7000";
const UNKNOWN: &str = "other.example.test";

/// Acts that would be heard on the internet of the laboratory.
fn hostile() -> Vec<Value> {
    let udp =
        |host: &str, port: u16| json!({"act": "udp", "host": host, "port": port, "hold": 0.5});
    vec![
        talk("203.0.113.11", 7000, "by address"),
        talk("203.0.113.10", 7000, "by the address of an allowed name"),
        talk("2001:db8:1::10", 7000, "by address"),
        talk("10.0.0.5", 7000, "a private network"),
        talk("169.254.169.254", 80, "GET / HTTP/1.1\r\nHost: metadata\r\n\r\n"),
        talk("203.0.113.11", 80, "a port that no rule names"),
        talk(UNKNOWN, 7000, "by another name"),
        json!({"act": "lookup", "name": UNKNOWN}),
        json!({"act": "resolver", "name": UNKNOWN, "server": "203.0.113.53", "hold": 0.5}),
        udp("203.0.113.10", 443),
        udp("203.0.113.10", 7000),
        json!({"act": "raw_datagram", "host": "203.0.113.10", "port": 7000}),
        json!({"act": "open_socket", "family": 17, "type": 3, "protocol": 768}),
    ]
}

/// Every resolver that a jail asks is the broker, which refuses the name.
fn has_no_effect(got: &Value) -> bool {
    is_denied(got) || got["error"].is_string() || got["code"] == "REFUSED"
}

fn check_without(layer: &str) {
    let lab = Lab::standard();
    let policy = PolicyFile::relaxed(&policy_text(RULES), &[layer]);
    let mut acts = hostile();
    acts.push(talk("api.example.test", 7000, "this arrives"));
    let mut wrong = Vec::new();
    for level in Level::here() {
        let dry = lab.exec(level, &policy).run(&["true"]);
        if layer == "no-new-privs" && dry.end == End::Exit(5) && dry.stderr.contains(layer) {
            // Fail closed (INV-2): landlock and seccomp rest on it, so it cannot be off alone.
            continue;
        }
        lab.forget();
        let got = lab.inside(level, &policy, &acts);
        let (last, refused) = got.split_last().expect("results");
        for (act, got) in acts.iter().zip(refused) {
            if !has_no_effect(got) {
                wrong.push(format!("INV-4 {level:?} without {layer}: {act} gave {got}"));
            }
        }
        if last["text"] != "this arrives" {
            wrong.push(format!("control {level:?} without {layer}: an allowed name gave {last}"));
        }
        let heard = lab.heard();
        let is_ours = |line: &&Value| line["on"] == ALLOWED || line["name"] == "api.example.test";
        for line in heard.iter().filter(|line| !is_ours(line)) {
            wrong.push(format!("INV-4 {level:?} without {layer}: heard {line}"));
        }
        let made = lab.heard_by(ALLOWED, "accept").len();
        if made != 1 {
            wrong.push(format!("INV-4 {level:?} without {layer}: {made} connections arrived"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_one_of_these_acts_is_heard_of_a_plain_process() {
    let lab = Lab::standard();
    let mut acts = hostile();
    if !we_are_root() {
        // Raw sockets need a capability that an ordinary user's process has only in its own namespaces.
        acts.retain(|act| act["act"] != "raw_datagram" && act["act"] != "open_socket");
    }
    lab.forget();
    for (act, got) in acts.iter().zip(&lab.outside(&acts)) {
        assert!(!has_no_effect(got), "{act} gave {got}");
    }
    let datagrams = lab.heard_by("udp 203.0.113.10:7000", "datagram").len();
    assert_eq!(datagrams, 1 + usize::from(we_are_root()), "{:?}", lab.heard());
    assert!(lab.questions().iter().any(|name| name == UNKNOWN));
}

macro_rules! without {
    ($($name:ident: $layer:literal),+ $(,)?) => {
        $(#[test]
        fn $name() {
            check_without($layer);
        })+

        #[test]
        fn every_layer_that_can_be_off_is_tried() {
            let here = [$($layer),+, "net-namespace"];
            assert!(RELAXABLE.iter().all(|layer| here.contains(layer)), "{here:?}");
        }
    };
}

without! {
    without_the_ipc_namespace_nobody_else_is_reached: "ipc-namespace",
    without_the_uts_namespace_nobody_else_is_reached: "uts-namespace",
    without_the_cgroup_namespace_nobody_else_is_reached: "cgroup-namespace",
    without_the_capability_layer_nobody_else_is_reached: "capabilities",
    without_no_new_privs_nobody_else_is_reached: "no-new-privs",
    without_landlock_nobody_else_is_reached: "landlock",
    without_seccomp_nobody_else_is_reached: "seccomp",
    without_the_cgroup_nobody_else_is_reached: "cgroup",
    without_rlimits_nobody_else_is_reached: "rlimits",
    without_a_fresh_keyring_nobody_else_is_reached: "keyring",
    without_the_canary_nobody_else_is_reached: "canary",
}
