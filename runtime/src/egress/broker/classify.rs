//! What the first bytes of a connection begin like: TLS, HTTP or neither.
//!
//! Pure. Where only names decide, mistaking one for the other would lead elsewhere, so whatever a
//! server might read as TLS or as HTTP counts as that, and is then read strictly.

use crate::egress::tls;

/// Most bytes of a line that may still become a request line.
const LINE_MAX: usize = 1 << 14;
/// Methods after which a line is a request however it ends.
#[rustfmt::skip]
const METHODS: [&[u8]; 10] = [
    b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH", b"PRI",
];

/// What a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tls,
    Http,
    Other,
}

/// What `bytes` begin like; `None` if that is not certain yet. Certain after [`LINE_MAX`] bytes.
pub(super) fn classify(bytes: &[u8]) -> Option<Kind> {
    // Servers skip empty lines before a request (RFC 9112, 2.2).
    let skipped = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let line = &bytes[skipped..];
    let full = bytes.len() >= LINE_MAX;
    let undecided = |kind| if full { Some(kind) } else { None };
    if line.is_empty() {
        return undecided(Kind::Other);
    }
    if skipped == 0 && tls::begins_like_record(line) {
        return if line.len() >= 2 { Some(Kind::Tls) } else { undecided(Kind::Other) };
    }
    let token = line.iter().take_while(|byte| is_token(**byte)).count();
    match line.get(token) {
        None => undecided(Kind::Other),
        Some(b' ' | b'\t') if token > 0 => {
            if METHODS.contains(&&line[..token]) {
                return Some(Kind::Http);
            }
            let end = line.iter().position(|byte| *byte == b'\n');
            let rest = &line[token..end.unwrap_or(line.len())];
            if names_http(rest) {
                return Some(Kind::Http);
            }
            if end.is_some() { Some(Kind::Other) } else { undecided(Kind::Http) }
        }
        Some(_) => Some(Kind::Other),
    }
}

/// Letters of a method (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether a version of HTTP stands in the line.
fn names_http(line: &[u8]) -> bool {
    line.windows(6)
        .any(|part| matches!(part[0], b' ' | b'\t') && part[1..].eq_ignore_ascii_case(b"HTTP/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_server_could_read_as_tls_or_http_counts_as_that() {
        #[rustfmt::skip]
        let cases: [(&[u8], Option<Kind>); 22] = [
            (b"", None),
            (b"\x16", None),
            (b"\x16\x03", Some(Kind::Tls)),
            (b"\x14\x03\x03", Some(Kind::Tls)),                   // a record, not a hello
            (b"\x16G", Some(Kind::Other)),
            (b"\x80\x2e\x01\x03\x01", Some(Kind::Other)),         // an SSLv2 hello names nobody
            (b"G", None),
            (b"GET", None),
            (b"GET ", Some(Kind::Http)),
            (b"\r\n\nGET ", Some(Kind::Http)),
            (b"get /", None),
            (b"get / HTTP/1.1\r\n", Some(Kind::Http)),
            (b"BREW /\thttp/1.1", Some(Kind::Http)),
            (b"PRI * HTTP/2.0\r\n", Some(Kind::Http)),
            (b"SSH-2.0-OpenSSH_9.6", None),
            (b"SSH-2.0-OpenSSH_9.6\r\n", Some(Kind::Other)),
            (b"EHLO mail.example\r\n", Some(Kind::Other)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Kind::Other)),         // a Redis client
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Some(Kind::Other)),   // a PostgreSQL client
            (b"{\"a\": 1}", Some(Kind::Other)),
            (b" GET / HTTP/1.1\r\n", Some(Kind::Other)),          // no server takes that
            (b"\r\n\x16\x03\x01", Some(Kind::Other)),
        ];
        for (bytes, kind) in cases {
            assert_eq!(classify(bytes), kind, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_line_without_an_end_is_decided_in_the_end() {
        assert_eq!(classify(&vec![b'a'; LINE_MAX]), Some(Kind::Other));
        let words = b"word ".repeat(LINE_MAX / 5 + 1);
        assert_eq!(classify(&words), Some(Kind::Http));
        assert_eq!(classify(&words[..100]), None);
    }
}
