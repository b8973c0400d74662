//! The internet that most egress tests share: who has which address, and what is served there.

use serde_json::{Value, json};

/// A server of `lab/internet.py`: what it does, and where. Its name is `address:port`.
pub fn server(kind: &str, address: &str, port: u16) -> Value {
    let name = format!("{address}:{port}");
    json!({"kind": kind, "name": name, "address": address, "port": port})
}

/// The same with more of its settings.
fn set(mut server: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().into_iter().flatten() {
        server[key] = value.clone();
    }
    server
}

/// The servers of the standard laboratory.
pub fn standard_servers() -> Vec<Value> {
    let tls = json!({"tls": true});
    let answer = json!({"answer": "heard"});
    let mut all = vec![server("dns", "203.0.113.53", 53), server("dns", "2001:db8:1::53", 53)];
    all.push(server("http", "203.0.113.10", 8080));
    // api is allowed, other is not: the same services.
    for address in ["203.0.113.10", "203.0.113.11", "2001:db8:1::10", "10.0.0.5"] {
        all.push(set(server("http", address, 443), &tls));
        all.push(server("http", address, 80));
        all.push(set(server("echo", address, 7000), &json!({"quiet": true})));
    }
    for (address, port) in [("203.0.113.10", 443), ("203.0.113.10", 7000), ("2001:db8:1::10", 443)]
    {
        all.push(set(
            server("datagrams", address, port),
            &json!({"name": format!("udp {address}:{port}")}),
        ));
    }
    // raw writes down every byte.
    for port in [80, 443, 853, 7000] {
        all.push(set(server("record", "203.0.113.12", port), &answer));
    }
    all.push(set(server("first", "203.0.113.13", 22), &json!({"banner": "SSH-2.0-lab\r\n"})));
    all.push(set(server("first", "203.0.113.13", 7001), &json!({"banner": "220 lab\r\n"})));
    all.push(server("hole", "203.0.113.14", 7000));
    all.push(server("reset", "203.0.113.15", 7001));
    all.push(set(server("reset", "203.0.113.15", 7000), &json!({"after_bytes": true})));
    all.push(set(server("slow", "203.0.113.16", 7000), &json!({"bytes": 20})));
    all.push(server("half", "203.0.113.17", 7000));
    all.push(server("flood", "203.0.113.17", 7001));
    // Resolvers that are not ours.
    all.push(set(server("http", "203.0.113.53", 443), &tls));
    all.push(set(server("record", "203.0.113.53", 853), &answer));
    all.push(server("http", "169.254.169.254", 80));
    all.push(set(server("record", "169.254.169.254", 443), &answer));
    all.push(server("echo", "198.51.100.5", 7000));
    all.push(server("psql", "198.51.100.5", 5432));
    all
}

/// Services of the laboratory's host itself, which no public name may lead to.
pub(super) fn host_services() -> Vec<Value> {
    let mut all = Vec::new();
    for address in ["127.0.0.1", "::1", super::HOST_ADDRESS] {
        all.push(server("http", address, 80));
        all.push(server("record", address, 443));
        all.push(server("echo", address, 7000));
    }
    all
}

/// The zone of the standard laboratory.
pub fn standard_zone() -> Value {
    let at = |address: &str| json!({"A": [address]});
    json!({
        "api.example.test": at("203.0.113.10"),
        "both.example.test": {"A": ["203.0.113.10"], "AAAA": ["2001:db8:1::10"]},
        "other.example.test": at("203.0.113.11"),
        "raw.example.test": at("203.0.113.12"),
        "first.example.test": at("203.0.113.13"),
        "hole.example.test": at("203.0.113.14"),
        "reset.example.test": at("203.0.113.15"),
        "slow.example.test": at("203.0.113.16"),
        "half.example.test": at("203.0.113.17"),
        "db.example.test": at("198.51.100.5"),
        "one.pkg.example.test": at("203.0.113.10"),
        "deep.one.pkg.example.test": at("203.0.113.10"),
        "pkg.example.test": at("203.0.113.10"),
        "alias.example.test": {"CNAME": "api.example.test"},
        "v6.example.test": {"AAAA": ["2001:db8:1::10"]},
        "broken6.example.test": {"A": ["203.0.113.10"], "AAAA": ["2001:db8:1::dead"]},
        "private.example.test": at("10.0.0.5"),
        "metadata.example.test": at("169.254.169.254"),
    })
}
