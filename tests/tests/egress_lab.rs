//! The laboratory itself: what the egress tests find refused in a jail succeeds from a plain process on
//! its host, so a refusal there is the product's.

use e2e::Lab;
use serde_json::{Value, json};

#[test]
fn everything_that_a_jail_is_refused_succeeds_on_the_laboratorys_host() {
    let lab = Lab::standard();
    let get = "GET /ok HTTP/1.1\r\nHost: api.example.test\r\nConnection: close\r\n\r\n";
    let acts = [
        json!({"act": "tls", "host": "api.example.test", "port": 443, "name": "api.example.test", "send": get}),
        json!({"act": "talk", "host": "other.example.test", "port": 80, "send": get}),
        json!({"act": "talk", "host": "10.0.0.5", "port": 80, "send": get}),
        json!({"act": "talk", "host": "169.254.169.254", "port": 80, "send": get}),
        json!({"act": "talk", "host": "2001:db8:1::10", "port": 80, "send": get}),
        json!({"act": "talk", "host": "127.0.0.1", "port": 80, "send": get}),
        json!({"act": "talk", "host": "192.0.2.1", "port": 80, "send": get}),
    ];
    for (act, got) in acts.iter().zip(lab.outside(&acts)) {
        let text = got["text"].as_str().unwrap_or_default();
        assert!(text.contains("200 OK"), "{act}: {got}");
    }
    let acts = [
        json!({"act": "hello", "host": "raw.example.test", "port": 443, "names": [["evil.test"]]}),
        json!({"act": "resolver", "name": "x.tunnel.test", "server": "203.0.113.53"}),
        json!({"act": "resolver", "name": "y.tunnel.test", "server": "203.0.113.53", "transport": "tcp"}),
        json!({"act": "talk", "host": "first.example.test", "port": 22, "until": "lab"}),
        json!({"act": "talk", "host": "half.example.test", "port": 7000, "send": "abc", "finish": true}),
        json!({"act": "talk", "host": "reset.example.test", "port": 7000, "send": "abc"}),
        json!({"act": "many", "host": "api.example.test", "port": 7000, "count": 80}),
        json!({"act": "hold_open", "host": "api.example.test", "port": 7000, "count": 40}),
        json!({"act": "resolver", "name": "v6.example.test", "server": "2001:db8:1::53", "kind": "AAAA"}),
    ];
    let got = lab.outside(&acts);
    assert_eq!(got[0]["count"], 5, "{}", got[0]);
    assert_eq!(got[1]["code"], "NXDOMAIN", "{}", got[1]);
    assert_eq!(got[2]["code"], "NXDOMAIN", "{}", got[2]);
    assert_eq!(got[3]["text"], "SSH-2.0-lab\r\n");
    assert_eq!(got[4]["text"], "after the end: 3 bytes");
    assert_eq!((&got[5]["how"], &got[5]["text"]), (&json!("reset"), &json!("partial")));
    assert_eq!(got[6]["count"], 80);
    assert_eq!(got[7]["alive"], 40);
    assert_eq!(got[8]["addresses"][0][0], "2001:db8:1::10", "{}", got[8]);
    assert!(lab.questions().contains(&"y.tunnel.test".to_owned()));
    let heard = |server: &str, what: &str| lab.heard_by(server, what).len();
    assert_eq!(heard("203.0.113.12:443", "bytes"), 1);
    let sni: Vec<Value> = lab.heard().into_iter().filter(|line| line["what"] == "sni").collect();
    assert_eq!(sni[0]["name"], "api.example.test");
}
