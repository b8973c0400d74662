//! How a policy can have a network at all: none, report mode, an upstream proxy, presets; and how much a
//! jail is told when it is refused. INV-2, INV-8; parts 1, 3 and 6 of the contract.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use e2e::lab::rows::{bytes, denied, fails, gives, hello, http, talk};
use e2e::lab::{HOST_ADDRESS, Lab, policy, policy_text, server, standard_servers, standard_zone};
use e2e::policy::PolicyFile;
use e2e::{End, Level, locate};
use serde_json::{Value, json};

/// Bytes that no protocol which names hosts begins with.
const WORD: &str = "\0ping";
const API: &str = "api.example.test";
const OTHER: &str = "other.example.test";
const PRIVATE: &str = "private.example.test";

/// A time as policies write it.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let said = Command::new("date").args(["-u", "-d", &format!("@{seconds}"), "+%FT%TZ"]).output();
    String::from_utf8(said.expect("cannot run date").stdout).expect("text").trim().to_owned()
}

fn report_mode(expires: SystemTime) -> String {
    let expires = utc(expires);
    format!("mode = \"report\"\nexpires = \"{expires}\"\nallow = [\"api.example.test:7000\"]")
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
fn report_mode_lets_public_destinations_through_and_no_others() {
    let lab = Lab::standard();
    let get = |host: &str| http(host, &["GET /ok HTTP/1.1", &format!("Host: {host}")]);
    let ok = "HTTP/1.1 200";
    #[rustfmt::skip]
    let rows = [
        gives(talk(API, 7000, WORD), "ping"),
        gives(talk(OTHER, 7000, WORD), "ping"),
        gives(talk("203.0.113.11", 7000, WORD), "ping"),
        gives(get(OTHER), ok),
        gives(tls(OTHER), "ok from 203.0.113.11:443"),
        // A port that no rule names, and neither 80 nor 443.
        fails(talk(API, 8080, "GET /ok HTTP/1.1\r\nHost: api.example.test:8080\r\n\r\n"), "ECONNREFUSED"),
        denied(hello("raw.example.test", 443, json!([[OTHER]]))),
        denied(hello("raw.example.test", 443, json!([]))),
        denied(http(OTHER, &["GET /ok HTTP/1.1", "Host: api.example.test"])),
        denied(talk(PRIVATE, 7000, WORD)),
        denied(talk("10.0.0.5", 7000, WORD)),
        denied(get("metadata.example.test")),
        denied(get("169.254.169.254")),
        denied(talk(HOST_ADDRESS, 7000, WORD)),
    ];
    lab.check_then(&policy(&report_mode(SystemTime::now() + DAY)), &rows, |lab| {
        for on in ["10.0.0.5:7000", "169.254.169.254:80", "192.0.2.1:7000"] {
            assert!(lab.heard_by(on, "accept").is_empty(), "INV-8: {on} was reached");
        }
    });
}

#[test]
fn report_mode_ends_at_its_time() {
    let lab = Lab::standard();
    // Whole seconds, and time for both jails to start on a busy machine.
    let end = SystemTime::now() + Duration::from_secs(12);
    let file = policy(&report_mode(end));
    let script = format!(
        "ask() {{ (exec 3<>/dev/tcp/$1/7000 && echo hello >&3 && read -t 5 -r line <&3 && echo $line) \
         2>/dev/null || echo no; }}\n\
         {{ (exec 3<>/dev/tcp/{OTHER}/7000; echo hello >&3; cat <&3 >/dev/null) 2>/dev/null; touch /tmp/cut; }} &\n\
         ask {OTHER}; ls /tmp; while test $(date +%s) -le {}; do sleep 0.2; done; ask {OTHER}; ask {API}; \
         for n in $(seq 40); do test -e /tmp/cut && break; sleep 0.1; done; ls /tmp/cut; exit",
        end.duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
    );
    let runs: Vec<_> = Level::here()
        .into_iter()
        .map(|level| (level, lab.exec(level, &file).spawn(&["bash", "-c", &script])))
        .collect();
    for (level, run) in runs {
        let outcome = run.wait();
        assert_eq!(outcome.stdout, "hello\nno\nhello\n/tmp/cut\n", "{level:?}: {}", outcome.text());
    }
    // Past its end, the same policy only enforces.
    let level = Level::Rootless;
    let outcome = lab.exec(level, &file).bash(&script);
    let said = outcome.stdout.split_once("/tmp/cut").expect("an end").0.replace("cut\n", "");
    assert_eq!(said, "no\nno\nhello\n", "{}", outcome.text());
}

#[test]
fn without_a_network_there_is_nothing_to_ask_and_nowhere_to_go() {
    let lab = Lab::standard();
    let ask = json!({"act": "resolver", "name": API, "server": "203.0.113.53"});
    #[rustfmt::skip]
    let rows = [
        fails(json!({"act": "lookup", "name": API}), "EAI_NONAME|EAI_AGAIN"),
        fails(json!({"act": "connect", "host": "203.0.113.10", "port": 7000}), "ENETUNREACH"),
        fails(json!({"act": "connect", "host": "2001:db8:1::10", "port": 443}), "ENETUNREACH"),
        fails(ask, "ENETUNREACH"),
        // The jail's own loopback stays.
        fails(json!({"act": "connect", "host": "127.0.0.1", "port": 7000}), "ECONNREFUSED"),
    ];
    lab.check_then(&policy("mode = \"none\""), &rows, |lab| {
        assert!(lab.heard().is_empty(), "INV-8: {:#?}", lab.heard());
    });
}

/// A laboratory with an HTTP proxy at a private address, which refuses one target.
fn lab_with_proxy() -> Lab {
    let mut proxy = server("connect", "10.0.0.7", 3128);
    proxy["refuse"] = json!(["203.0.113.12:7000", "raw.example.test:7000"]);
    proxy["names"] = json!({API: "203.0.113.10", PRIVATE: "10.0.0.5"});
    let mut servers = standard_servers();
    servers.push(proxy);
    let mut zone = standard_zone();
    zone["proxy.example.test"] = json!({"A": ["10.0.0.7"]});
    Lab::with(&servers, &zone)
}

const PROXY: &str = "10.0.0.7:3128";
const BEHIND: &str = r#"allow = ["api.example.test:7000", "api.example.test:80", "api.example.test:443",
    "v6.example.test:443", "raw.example.test:7000", "private.example.test:7000"]"#;

/// One request over TLS, with the certificate checked.
fn tls(host: &str) -> Value {
    let request = format!("GET /ok HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    json!({"act": "tls", "host": host, "port": 443, "name": host, "send": request})
}

/// What the proxy was asked for, in order. A client that is reset tries its other address.
fn asked(lab: &Lab) -> Vec<String> {
    let asked = lab.heard_by(PROXY, "asked");
    let mut targets: Vec<String> =
        asked.iter().filter_map(|line| Some(line["target"].as_str()?.to_owned())).collect();
    targets.dedup();
    targets
}

/// Who connected to a server.
fn peers(lab: &Lab, on: &str) -> Vec<Value> {
    lab.heard_by(on, "accept").into_iter().map(|line| line["peer"].clone()).collect()
}

#[test]
fn an_upstream_proxy_is_asked_for_checked_addresses_and_for_nothing_else() {
    let lab = lab_with_proxy();
    let network = format!("{}\nupstream_proxy = {{ url = \"http://{PROXY}\" }}", BEHIND);
    let get = ["GET /ok HTTP/1.1", "Host: api.example.test"];
    #[rustfmt::skip]
    let rows = [
        gives(talk(API, 7000, WORD), "ping"),
        gives(http(API, &get), "ok from 203.0.113.10:80"),
        gives(tls(API), "ok from 203.0.113.10:443"),
        gives(tls("v6.example.test"), "ok from 2001:db8:1::10:443"),
        // The proxy refuses: an end, and no denial of ours.
        denied(bytes("raw.example.test", 7000, WORD)),
        denied(talk(PRIVATE, 7000, WORD)),
        denied(talk(OTHER, 7000, WORD)),
        // The proxy itself is no destination.
        fails(json!({"act": "connect", "host": "10.0.0.7", "port": 3128}), "ECONNREFUSED"),
    ];
    lab.check_then(&policy(&network), &rows, |lab| {
        let targets = [
            "203.0.113.10:7000",
            "203.0.113.10:80",
            "203.0.113.10:443",
            "[2001:db8:1::10]:443",
            "203.0.113.12:7000",
        ];
        assert_eq!(asked(lab), targets, "INV-8");
        let from = peers(lab, "203.0.113.10:7000");
        assert!(from.len() == 1 && from[0] != HOST_ADDRESS, "not by the proxy: {from:?}");
        assert!(lab.heard_by("10.0.0.5:7000", "accept").is_empty(), "INV-8");
    });
    // Control: without the key the host itself connects.
    lab.forget();
    let got = lab.inside(Level::Rootless, &policy(BEHIND), &[talk(API, 7000, WORD)]);
    assert!(got[0]["text"].as_str().is_some_and(|text| text.contains("ping")), "{got:?}");
    assert_eq!(peers(&lab, "203.0.113.10:7000"), [HOST_ADDRESS]);
    assert!(asked(&lab).is_empty());
}

#[test]
fn an_upstream_proxy_that_resolves_gets_names_and_answers_for_their_addresses() {
    let lab = lab_with_proxy();
    let network = format!(
        "{}\nupstream_proxy = {{ url = \"http://proxy.example.test:3128\", resolves = \"proxy\" }}",
        BEHIND
    );
    #[rustfmt::skip]
    let rows = [
        gives(talk(API, 7000, WORD), "ping"),
        // As the policy says, nobody here checks where it leads.
        gives(talk(PRIVATE, 7000, WORD), "ping"),
        denied(bytes("raw.example.test", 7000, WORD)),
        denied(talk(OTHER, 7000, WORD)),
    ];
    lab.check_then(&policy(&network), &rows, |lab| {
        let targets =
            ["api.example.test:7000", "private.example.test:7000", "raw.example.test:7000"];
        assert_eq!(asked(lab), targets, "INV-8");
        let questions = lab.questions();
        assert!(!questions.is_empty(), "the proxy's own name is looked up");
        let only = questions.iter().all(|name| name.starts_with("proxy.example.test"));
        assert!(only, "INV-8: {questions:?}");
    });
}

#[test]
fn a_proxy_that_refuses_is_no_denial_and_is_not_told_as_one() {
    let lab = lab_with_proxy();
    let network = format!("{}\nupstream_proxy = {{ url = \"http://{PROXY}\" }}", BEHIND);
    for level in Level::here() {
        let exec = |host: &str| {
            let script = format!("exec 3<>/dev/tcp/{host}/7000; echo x >&3; cat <&3; true");
            lab.exec(level, &policy(&network)).bash(&script)
        };
        let outcome = exec("raw.example.test");
        assert!(!outcome.stderr.contains("[jail]"), "{level:?}: {}", outcome.text());
        let outcome = exec(OTHER);
        assert!(outcome.stderr.contains("[jail]"), "control, {level:?}: {}", outcome.text());
    }
}

#[test]
fn a_refusal_tells_the_jail_no_more_than_the_policy_lets_it() {
    let lab = Lab::standard();
    let request = "GET / HTTP/1.1\\r\\nHost: other.example.test\\r\\n\\r\\n";
    let script = format!(
        "exec 3<>/dev/tcp/203.0.113.11/80; printf '{request}' >&3; cat <&3; exec 3>&-; \
         (exec 3<>/dev/tcp/203.0.113.11/7000; cat <&3) 2>/dev/null; \
         exec 3<>/dev/tcp/{API}/7000; echo reached >&3; read -r line <&3; echo; echo $line"
    );
    let ports = "allow = [\"api.example.test:80\", \"api.example.test:7000\"]";
    for level in Level::here() {
        #[rustfmt::skip]
        let cases: [(&str, &[&str]); 3] = [
            ("full", &["advice", "decision_id", "error", "host", "port", "retryable", "rule"]),
            ("host-only", &["error", "host", "port", "retryable"]),
            ("off", &["error", "retryable"]),
        ];
        for (detail, body) in cases {
            let file = policy(&format!("{ports}\ndeny_detail = \"{detail}\""));
            let outcome = lab.exec(level, &file).bash(&script);
            let told = outcome.text();
            assert!(outcome.stdout.starts_with("HTTP/1.1 403 "), "{level:?} {detail}: {told}");
            assert!(outcome.stdout.ends_with("\nreached\n"), "control, {level:?} {detail}: {told}");
            let json = outcome.stdout.split("\r\n\r\n").nth(1).unwrap_or_default();
            let json: Value = serde_json::from_str(json.lines().next().unwrap_or_default())
                .unwrap_or_else(|error| panic!("{level:?} {detail}: {error}: {told}"));
            let mut keys: Vec<&str> =
                json.as_object().expect("an object").keys().map(String::as_str).collect();
            keys.sort_unstable();
            assert_eq!(keys, body, "{level:?}: {told}");
            // Who ran the command made the policy: the footer on its standard error tells all.
            assert!(!outcome.stdout.contains("[jail]"), "{level:?} {detail}: {told}");
            for part in ["[jail] 2 network", "203.0.113.11:7000", "no rule lists", "decision d-"] {
                assert!(outcome.stderr.contains(part), "{level:?} {detail} {part}: {told}");
            }
        }
    }
}

#[test]
fn every_rule_of_a_preset_is_shown_with_the_file_it_comes_from() {
    let file =
        PolicyFile::from_text(&policy_text("presets = [\"python\"]\nallow = [\"a.example.test\"]"));
    let show = |option: &str| {
        let shown = Command::new(locate::worker())
            .args(["policy", "show", option])
            .arg(file.path())
            .output()
            .expect("cannot run the worker");
        assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
        String::from_utf8(shown.stdout).expect("text")
    };
    let origin = show("--origin");
    let rules: Vec<&str> = origin
        .lines()
        .filter(|line| {
            line.contains("example.test:") || line.contains("pypi") || line.contains("pythonhosted")
        })
        .collect();
    assert!(rules.len() >= 3, "{origin}");
    for rule in rules {
        let of =
            if rule.contains("a.example.test") { "control.toml:" } else { "presets/python.toml:" };
        assert!(rule.contains(of), "`{of}` is not in {rule}");
    }
    // What is shown is a policy that means the same, without the preset's name.
    let shown = show("--effective");
    assert!(shown.contains("pypi.org:443") && !shown.contains("presets = [\"python\"]"), "{shown}");
}

#[test]
fn rules_without_a_network_namespace_of_its_own_are_refused() {
    // INV-2: they would not hold.
    let text = |allow: &str| {
        let relaxed = PolicyFile::without(&["net-namespace"]);
        let text = std::fs::read_to_string(relaxed.path()).expect("a policy");
        text.replacen("[network]", &format!("[network]\nallow = [{allow}]"), 1)
    };
    for level in Level::here() {
        let file = PolicyFile::from_text(&text("\"a.example.test\""));
        let refused = e2e::Exec::at(level).policy(file.path()).run(&["true"]);
        assert_eq!(refused.end, End::Exit(5), "{level:?}: {}", refused.text());
        assert!(refused.stderr.contains("cannot enforce"), "{level:?}: {}", refused.text());
        assert!(refused.stderr.contains("\nhint: "), "{level:?}: {}", refused.text());
        let file = PolicyFile::from_text(&text(""));
        let control = e2e::Exec::at(level).policy(file.path()).run(&["true"]);
        assert!(control.ok(), "{level:?}: {}", control.text());
    }
}
