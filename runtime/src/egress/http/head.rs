//! The head of one HTTP/1 request as bytes: stricter than any parser it will meet.
//!
//! Pure. What two programs could read in two ways is refused here, before the parser behind sees it:
//! a line that does not end in CR LF, a folded line, space before a colon, a length that is said twice
//! or in two ways. What is left has one reading only, also of where its body ends.

use http::{HeaderName, Method, Uri};

use super::framing::Framing;

/// Most bytes of a head, with the empty line.
pub(super) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most header fields of a head.
pub(super) const FIELDS_MAX: usize = 100;
/// Longest number of a length, in digits: always less than 2^63.
const LENGTH_DIGITS_MAX: usize = 18;

/// It has more than one reading, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ambiguous;

/// What a head says of what comes after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// Its own bytes.
    pub length: usize,
    /// How its body ends.
    pub body: Framing,
    /// It asks for another protocol on this connection.
    pub upgrade: bool,
}

/// Reads the head at the front of `bytes`; `None` if it has not arrived whole.
///
/// `seen` bytes were looked at before and did not hold all of it.
///
/// # Errors
/// [`Ambiguous`], also for a part of a head as soon as that part shows it.
pub(super) fn read(bytes: &[u8], seen: usize) -> Result<Option<Head>, Ambiguous> {
    let window = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
    let from = seen.saturating_sub(3).min(window.len());
    for at in memchr::memchr_iter(b'\n', &window[from..]).map(|at| at + from) {
        if at == 0 || window[at - 1] != b'\r' {
            return Err(Ambiguous);
        }
        if window[..at - 1].ends_with(b"\r\n") {
            return parse(&window[..at + 1]).map(Some);
        }
    }
    match bytes.len() >= HEAD_BYTES_MAX {
        true => Err(Ambiguous),
        false => Ok(None),
    }
}

/// A whole head, with the empty line at its end.
fn parse(bytes: &[u8]) -> Result<Head, Ambiguous> {
    let text = bytes.strip_suffix(b"\r\n").ok_or(Ambiguous)?;
    // One CR LF is taken from each line; a CR that is left is refused as what it stands in.
    let mut lines = text
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r\n").ok_or(Ambiguous));
    let version_1_1 = request_line(lines.next().ok_or(Ambiguous)??)?;
    let mut fields = Fields::default();
    for line in lines {
        fields.add(line?)?;
    }
    let body = match (fields.length, fields.chunked) {
        (Some(_), true) => return Err(Ambiguous),
        (None, true) if !version_1_1 => return Err(Ambiguous),
        (None, true) => Framing::chunked(),
        (length, false) => Framing::length(length.unwrap_or(0)),
    };
    Ok(Head { length: bytes.len(), body, upgrade: fields.upgrade && version_1_1 })
}

/// `METHOD target HTTP/1.x`; whether x is 1.
fn request_line(line: &[u8]) -> Result<bool, Ambiguous> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Ambiguous);
    };
    Method::from_bytes(method).map_err(|_| Ambiguous)?;
    // Bytes above ASCII are no URI, but clients send them, and everybody reads them alike.
    if !target.iter().all(|byte| byte.is_ascii_graphic() || *byte >= 0x80) {
        return Err(Ambiguous);
    }
    Uri::try_from(target).map_err(|_| Ambiguous)?;
    match version {
        b"HTTP/1.1" => Ok(true),
        b"HTTP/1.0" => Ok(false),
        _ => Err(Ambiguous),
    }
}

/// What the fields seen so far say of the body.
#[derive(Debug, Default)]
struct Fields {
    count: usize,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

impl Fields {
    fn add(&mut self, line: &[u8]) -> Result<(), Ambiguous> {
        self.count += 1;
        let (name, value) = field(line)?;
        if self.count > FIELDS_MAX {
            return Err(Ambiguous);
        }
        match name {
            http::header::CONTENT_LENGTH if self.length.is_none() => {
                self.length = Some(number(value)?);
            }
            http::header::TRANSFER_ENCODING
                if !self.chunked && value.eq_ignore_ascii_case(b"chunked") =>
            {
                self.chunked = true;
            }
            http::header::CONTENT_LENGTH | http::header::TRANSFER_ENCODING => {
                return Err(Ambiguous);
            }
            http::header::UPGRADE => self.upgrade = true,
            _ => {}
        }
        Ok(())
    }
}

/// `name: value` of a head or a trailer, the value without the space around it.
pub(super) fn field(line: &[u8]) -> Result<(HeaderName, &[u8]), Ambiguous> {
    let colon = memchr::memchr(b':', line).ok_or(Ambiguous)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    // Refuses an empty name, space in it or at its ends (a folded line), and every control byte.
    let name = HeaderName::from_bytes(name).map_err(|_| Ambiguous)?;
    let plain = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    match value.iter().all(plain) {
        true => Ok((name, trim(value))),
        false => Err(Ambiguous),
    }
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fn number(digits: &[u8]) -> Result<u64, Ambiguous> {
    let fits = (1..=LENGTH_DIGITS_MAX).contains(&digits.len());
    if !fits || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Ambiguous);
    }
    Ok(digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n";

    fn of(text: &[u8]) -> Result<Option<Head>, Ambiguous> {
        read(text, 0)
    }

    #[test]
    fn a_plain_head_says_how_its_body_ends() {
        #[rustfmt::skip]
        let cases = [
            ("", Framing::length(0), false),
            ("Content-Length: 12\r\n", Framing::length(12), false),
            ("Content-Length:12 \t\r\n", Framing::length(12), false),
            ("content-length: 000000000000000012\r\n", Framing::length(12), false),
            ("Transfer-Encoding: chunked\r\n", Framing::chunked(), false),
            ("tRansfer-Encoding: \tCHUNKED\t\r\n", Framing::chunked(), false),
            ("Upgrade: websocket\r\nConnection: Upgrade\r\n", Framing::length(0), true),
            ("X-Text: sch\u{f6}n, \"quoted\"\r\nX-Empty:\r\n", Framing::length(0), false),
        ];
        for (fields, body, upgrade) in cases {
            let text = format!("{GET}{fields}\r\nrest");
            let head = of(text.as_bytes()).expect(fields).expect(fields);
            assert_eq!(head, Head { length: text.len() - 4, body, upgrade }, "{fields:?}");
        }
    }

    // INV-8: no two programs on the way may see two different requests in the same bytes.
    #[test]
    fn a_head_with_two_readings_is_refused() {
        let long = format!("X: {}\r\n", "a".repeat(HEAD_BYTES_MAX));
        #[rustfmt::skip]
        let fields: [&[u8]; 40] = [
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",   // CL.TE
            b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",   // TE.CL
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n", // TE.TE
            b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: chunked, chunked\r\n",
            b"Transfer-Encoding: gzip, chunked\r\n",
            b"Transfer-Encoding: chunked, identity\r\n",
            b"Transfer-Encoding: identity\r\n",
            b"Transfer-Encoding: xchunked\r\n",
            b"Transfer-Encoding: \"chunked\"\r\n",
            b"Transfer-Encoding: chunked;a=b\r\n",
            b"Transfer-Encoding:\x0bchunked\r\n",
            b"Transfer-Encoding:\r\n",
            b"Transfer-Encoding\x00: chunked\r\n",
            b"Transfer-Encoding : chunked\r\n",
            b"Transfer-Encoding\t: chunked\r\n",
            b" Transfer-Encoding: chunked\r\n",
            b"X: y\r\n Transfer-Encoding: chunked\r\n",
            b"X: y\r\n\tfolded\r\n",
            b"X: y\nTransfer-Encoding: chunked\r\n",
            b"X: y\rTransfer-Encoding: chunked\r\n",
            b"X: y\r\r\n",
            b"X: y\x00\r\n",
            b"X: y\x7f\r\n",
            b"Content-Length: 5\r\nContent-Length: 6\r\n",
            b"Content-Length: 5\r\nContent-Length: 5\r\n",
            b"Content-Length: 5, 5\r\n",
            b"Content-Length: +5\r\n",
            b"Content-Length: -5\r\n",
            b"Content-Length: 0x5\r\n",
            b"Content-Length: 5 5\r\n",
            b"Content-Length: 5.\r\n",
            b"Content-Length:\r\n",
            b"Content-Length: 9999999999999999999\r\n",
            b"no colon\r\n",
            b": no name\r\n",
            b"na me: x\r\n",
            b"na(me: x\r\n",
            long.as_bytes(),
        ];
        for field in fields {
            let text = [GET.as_bytes(), field, b"\r\n"].concat();
            let shown = String::from_utf8_lossy(&field[..field.len().min(80)]);
            assert_eq!(of(&text), Err(Ambiguous), "{shown:?}");
        }
    }

    #[test]
    fn a_request_line_has_three_words_and_a_known_version() {
        let rest = "\r\nHost: a.test\r\n\r\n";
        #[rustfmt::skip]
        let cases = [
            ("GET / HTTP/1.1", true),
            ("GET / HTTP/1.0", true),
            ("M-SEARCH * HTTP/1.1", true),
            ("GET http://a.test/?q#f HTTP/1.1", true),
            ("CONNECT a.test:443 HTTP/1.1", true), // it is refused for what it says, later
            ("GET /", false),
            ("GET / HTTP/0.9", false),
            ("GET / HTTP/1.2", false),
            ("GET / HTTP/2.0", false),
            ("GET / http/1.1", false),
            ("GET  / HTTP/1.1", false),
            ("GET /  HTTP/1.1", false),
            ("GET / HTTP/1.1 ", false),
            (" GET / HTTP/1.1", false),
            ("GET\t/ HTTP/1.1", false),
            ("GET /a b HTTP/1.1", false),
            ("GET /\u{f6} HTTP/1.1", true),
            ("G@T / HTTP/1.1", false),
            ("GET http://[::1/ HTTP/1.1", false),
        ];
        for (line, good) in cases {
            let got = of(format!("{line}{rest}").as_bytes());
            assert_eq!(matches!(got, Ok(Some(_))), good, "{line:?}");
            assert_eq!(got.is_err(), !good, "{line:?}");
        }
    }

    #[test]
    fn a_head_is_bounded_in_bytes_and_in_fields() {
        let fields = |count| format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(count));
        assert!(matches!(of(fields(FIELDS_MAX).as_bytes()), Ok(Some(_))));
        assert_eq!(of(fields(FIELDS_MAX + 1).as_bytes()), Err(Ambiguous));

        let full = |bytes: usize| format!("{GET}X: {}\r\n\r\n", "a".repeat(bytes - GET.len() - 7));
        assert!(matches!(of(full(HEAD_BYTES_MAX).as_bytes()), Ok(Some(_))));
        assert_eq!(of(full(HEAD_BYTES_MAX + 1).as_bytes()), Err(Ambiguous));
    }

    #[test]
    fn a_head_that_arrives_byte_by_byte_is_read_as_one_that_arrives_at_once() {
        let text = format!("{GET}Content-Length: 3\r\n\r\n");
        for end in 1..text.len() {
            assert_eq!(read(&text.as_bytes()[..end], end - 1), Ok(None), "{end}");
        }
        let whole = of(text.as_bytes());
        assert!(matches!(whole, Ok(Some(_))));
        assert_eq!(read(text.as_bytes(), text.len() - 1), whole);
        // A bare LF is seen when it comes.
        assert_eq!(read(b"GET / HTTP/1.1\n", 14), Err(Ambiguous));
    }
}
