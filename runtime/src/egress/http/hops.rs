//! Header fields that are about one connection and not about the message (RFC 9110, 7.6.1).
//!
//! Pure. They are taken away on both sides, apart from what still holds on the other: that the
//! connection closes, that trailers are understood, that it becomes a websocket.

use http::header::{
    CONNECTION, CONTENT_LENGTH, Entry, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Version, request, response};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// The one protocol that a connection may become.
const WEBSOCKET: &str = "websocket";

/// Whether a connection may become something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// It stays HTTP.
    No,
    /// It becomes a websocket if upstream agrees.
    WebSocket,
}

/// Takes the fields of the client's connection from a request and puts those of ours.
pub(super) fn request(head: &mut request::Parts) -> Upgrade {
    let listed = listed(&head.headers);
    let says = |word: &str| listed.iter().any(|name| name.eq_ignore_ascii_case(word));
    let websocket = head.version == Version::HTTP_11
        && head.method == Method::GET
        && says("upgrade")
        && is_websocket(&head.headers);
    let protocol = head.headers.get(UPGRADE).filter(|_| websocket).cloned();
    let trailers = tokens(&head.headers, TE).any(|word| word.eq_ignore_ascii_case("trailers"));
    let closes = says("close");
    strip(&mut head.headers, &listed);
    head.headers.remove(HTTP2_SETTINGS);
    if trailers {
        head.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if head.version == Version::HTTP_2 {
        return Upgrade::No;
    }
    // An older client is answered as such by its own side.
    head.version = Version::HTTP_11;
    let mut words = Vec::new();
    if let Some(protocol) = protocol {
        head.headers.insert(UPGRADE, protocol);
        words.push("Upgrade");
    }
    if trailers {
        words.push("TE");
    }
    if closes {
        words.push("close");
    }
    if let (false, Ok(value)) = (words.is_empty(), HeaderValue::try_from(words.join(", "))) {
        head.headers.insert(CONNECTION, value);
    }
    match websocket {
        true => Upgrade::WebSocket,
        false => Upgrade::No,
    }
}

/// Takes the fields of upstream's connection from a response and puts those of the client's.
pub(super) fn response(head: &mut response::Parts) {
    let listed = listed(&head.headers);
    let closes = listed.iter().any(|name| name.eq_ignore_ascii_case("close"));
    strip(&mut head.headers, &listed);
    if closes && head.version != Version::HTTP_2 {
        head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Whether a response makes the connection a websocket; its `Connection` says so and no more.
pub(super) fn switches(head: &mut response::Parts) -> bool {
    let switches = is_websocket(&head.headers);
    head.headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    switches
}

fn is_websocket(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(UPGRADE).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes()),
        _ => false,
    }
}

/// What `Connection` names.
fn listed(headers: &HeaderMap) -> Vec<String> {
    tokens(headers, CONNECTION).map(str::to_owned).collect()
}

fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(',')).map(str::trim)
}

fn strip(headers: &mut HeaderMap, listed: &[String]) {
    for name in listed.iter().filter_map(|name| HeaderName::try_from(name.as_str()).ok()) {
        // Naming these would change what the message is.
        if ![HOST, CONTENT_LENGTH, TRANSFER_ENCODING].contains(&name) {
            remove(headers, name);
        }
    }
    let always = [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        UPGRADE,
    ];
    for name in always {
        remove(headers, name);
    }
}

fn remove(headers: &mut HeaderMap, name: HeaderName) {
    if let Entry::Occupied(entry) = headers.entry(name) {
        entry.remove_entry_mult();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(fields: &[(&str, &str)]) -> (Upgrade, Vec<(String, String)>) {
        let mut builder = http::Request::builder().method("GET").uri("/");
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        let mut head = builder.body(()).expect("a request").into_parts().0;
        let upgrade = request(&mut head);
        let text = |value: &HeaderValue| value.to_str().expect("text").to_owned();
        let fields = head.headers.iter().map(|(name, value)| (name.to_string(), text(value)));
        let mut fields: Vec<_> = fields.collect();
        fields.sort();
        (upgrade, fields)
    }

    fn pairs(fields: &[(&str, &str)]) -> Vec<(String, String)> {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn fields_of_one_connection_stay_on_it() {
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [(&'a str, &'a str)]);
        #[rustfmt::skip]
        let cases: [Case; 9] = [
            (&[("host", "a"), ("x", "y")], &[("host", "a"), ("x", "y")]),
            (&[("connection", "keep-alive"), ("keep-alive", "timeout=5")], &[]),
            (&[("connection", "close")], &[("connection", "close")]),
            (&[("connection", "x-one, X-Two"), ("x-one", "1"), ("x-two", "2"), ("x-two", "3"), ("z", "4")],
             &[("z", "4")]),
            (&[("connection", "host, content-length, transfer-encoding"), ("host", "a"), ("content-length", "1")],
             &[("content-length", "1"), ("host", "a")]),
            (&[("proxy-connection", "keep-alive"), ("proxy-authorization", "Basic x")], &[]),
            (&[("te", "trailers, deflate"), ("connection", "TE")],
             &[("connection", "TE"), ("te", "trailers")]),
            (&[("te", "deflate")], &[]),
            (&[("trailer", "digest"), ("transfer-encoding", "chunked")],
             &[("trailer", "digest"), ("transfer-encoding", "chunked")]),
        ];
        for (given, want) in cases {
            assert_eq!(sent(given), (Upgrade::No, pairs(want)), "{given:?}");
        }
    }

    #[test]
    fn only_a_websocket_may_follow() {
        #[rustfmt::skip]
        let cases: [(&[(&str, &str)], Upgrade); 7] = [
            (&[("connection", "Upgrade"), ("upgrade", "websocket")], Upgrade::WebSocket),
            (&[("connection", "keep-alive, upgrade"), ("upgrade", "WebSocket")], Upgrade::WebSocket),
            (&[("upgrade", "websocket")], Upgrade::No),
            (&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AA")], Upgrade::No),
            (&[("connection", "Upgrade"), ("upgrade", "websocket, h2c")], Upgrade::No),
            (&[("connection", "Upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")], Upgrade::No),
            (&[("connection", "Upgrade"), ("upgrade", "TLS/1.0")], Upgrade::No),
        ];
        for (given, want) in cases {
            let (upgrade, fields) = sent(given);
            assert_eq!(upgrade, want, "{given:?}");
            let left = fields.iter().any(|(name, _)| name == "upgrade" || name == "http2-settings");
            assert_eq!(left, want == Upgrade::WebSocket, "{given:?}");
        }
    }
}
