//! One canonical form of every place that input may come from, and whether one place lies in another.
//!
//! Pure. Two texts that lead to the same place are equal here, and a text that different programs could
//! read differently is no place: user names, queries, `..`, encoded separators, backslashes and
//! control characters are refused, not repaired.

use std::fmt;

use super::super::network::Host;

/// Longest text that is looked at.
const BYTES_MAX: usize = 2048;
/// Longest component, as file systems have it.
const COMPONENT_BYTES_MAX: usize = 255;

/// What a place is reached by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `https://host/path`
    Https,
    /// `s3://bucket/key`
    S3,
    /// `/path`, for git `file:///path`
    File,
}

/// A place that input may come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagePlace {
    scheme: Scheme,
    /// Of https.
    host: Option<Host>,
    port: u16,
    /// Of s3.
    bucket: String,
    /// Decoded components of the path.
    components: Vec<String>,
    /// Whether it was written with a `/` at its end.
    directory: bool,
}

impl StagePlace {
    /// Reads a place of one of `schemes`.
    ///
    /// # Errors
    /// Why it is none, in words that do not repeat the text.
    pub fn parse(text: &str, schemes: &[Scheme]) -> Result<StagePlace, &'static str> {
        if text.is_empty() {
            return Err("it is empty");
        }
        if text.len() > BYTES_MAX {
            return Err("it is longer than 2048 bytes");
        }
        if text.chars().any(char::is_control) {
            return Err("it has control characters");
        }
        let (scheme, rest) = scheme_of(text).ok_or("it has no known scheme")?;
        if !schemes.contains(&scheme) {
            return Err("its scheme is not that of the rule's kind");
        }
        match scheme {
            Scheme::File => Ok(StagePlace {
                scheme,
                host: None,
                port: 0,
                bucket: String::new(),
                components: components(rest, false)?,
                directory: rest.ends_with('/'),
            }),
            Scheme::Https => {
                let (authority, path) = split(rest);
                let (host, port) = authority_of(authority)?;
                let (bucket, directory) = (String::new(), path.ends_with('/') || path.is_empty());
                let components = components(path, true)?;
                Ok(StagePlace { scheme, host: Some(host), port, bucket, components, directory })
            }
            Scheme::S3 => {
                let (bucket, path) = split(rest);
                if !is_bucket(bucket) {
                    return Err(
                        "a bucket has 3 to 63 lower-case letters, digits, dots and hyphens",
                    );
                }
                let (bucket, directory) =
                    (bucket.to_owned(), path.ends_with('/') || path.is_empty());
                let components = components(path, false)?;
                Ok(StagePlace { scheme, host: None, port: 0, bucket, components, directory })
            }
        }
    }

    /// Whether this lies in `prefix`: same scheme, host and port, and all of its components first.
    pub fn is_within(&self, prefix: &StagePlace) -> bool {
        (self.scheme, &self.host, self.port, &self.bucket)
            == (prefix.scheme, &prefix.host, prefix.port, &prefix.bucket)
            && self.components.starts_with(&prefix.components)
            && (!prefix.directory || self.directory || self.components != prefix.components)
    }

    /// What it is reached by.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Host of an https place.
    pub fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// Port of an https place.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Bucket of an s3 place.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Components of its path, decoded.
    pub fn components(&self) -> &[String] {
        &self.components
    }

    /// Whether it means everything below it rather than one thing.
    pub fn is_directory(&self) -> bool {
        self.directory
    }

    /// Components of its path joined by `/`, without one at the beginning: a key, or a path below `/`.
    pub fn path(&self) -> String {
        self.components.join("/")
    }
}

/// As it is requested; what was written in any of several ways is written in one.
impl fmt::Display for StagePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.scheme) {
            (Some(host), _) if self.port == 443 => write!(f, "https://{host}")?,
            (Some(host), _) => write!(f, "https://{host}:{}", self.port)?,
            (None, Scheme::S3) => write!(f, "s3://{}", self.bucket)?,
            (None, _) => {}
        }
        for component in &self.components {
            f.write_str("/")?;
            match self.scheme {
                Scheme::Https => encode(component, f)?,
                _ => f.write_str(component)?,
            }
        }
        if self.directory || self.components.is_empty() { f.write_str("/") } else { Ok(()) }
    }
}

fn scheme_of(text: &str) -> Option<(Scheme, &str)> {
    // Schemes are compared without regard to case (RFC 3986, 3.1).
    let after = |scheme: &str| {
        let (head, rest) = text.split_at_checked(scheme.len())?;
        head.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    if text.starts_with('/') {
        return Some((Scheme::File, text));
    }
    if let Some(rest) = after("https://") {
        return Some((Scheme::Https, rest));
    }
    if let Some(rest) = after("s3://") {
        return Some((Scheme::S3, rest));
    }
    after("file://").filter(|rest| rest.starts_with('/')).map(|rest| (Scheme::File, rest))
}

/// What comes before the path, and the path.
fn split(rest: &str) -> (&str, &str) {
    rest.find('/').map_or((rest, ""), |at| rest.split_at(at))
}

fn authority_of(authority: &str) -> Result<(Host, u16), &'static str> {
    if authority.contains('@') {
        return Err("it has a user name; credentials belong to the configuration");
    }
    let (host, port) = match authority.rfind(':') {
        // Not the colons of an IPv6 address.
        Some(at) if !authority[at..].contains(']') => (&authority[..at], &authority[at + 1..]),
        _ => (authority, "443"),
    };
    let digits = !port.is_empty() && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
    let port = port.parse::<u16>().ok().filter(|port| digits && *port > 0);
    let host = Host::parse(host).map_err(|_| "it has no valid host name")?;
    Ok((host, port.ok_or("it has no valid port")?))
}

fn is_bucket(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
    let end = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (3..=63).contains(&text.len())
        && text.bytes().all(plain)
        && end(text.bytes().next())
        && end(text.bytes().next_back())
        && !text.contains("..")
}

/// The components of `path`, which is empty or begins with `/`.
fn components(path: &str, encoded: bool) -> Result<Vec<String>, &'static str> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.is_empty() {
        return Ok(Vec::new());
    }
    path.split('/').map(|part| component(part, encoded)).collect()
}

fn component(part: &str, encoded: bool) -> Result<String, &'static str> {
    if encoded && part.contains(['?', '#']) {
        return Err("it has a query or a fragment");
    }
    let part = if encoded { decode(part)? } else { part.to_owned() };
    match part.as_str() {
        "" => Err("it has an empty path component"),
        "." | ".." => Err("it has `.` or `..` as a path component"),
        part if part.len() > COMPONENT_BYTES_MAX => {
            Err("a path component is longer than 255 bytes")
        }
        part if part.contains(['/', '\\']) => Err("it has an encoded slash or a backslash"),
        part if part.chars().any(char::is_control) => Err("it has control characters"),
        _ => Ok(part),
    }
}

fn decode(part: &str) -> Result<String, &'static str> {
    if part.contains(' ') || !part.is_ascii() {
        return Err("it has characters that must be percent-encoded");
    }
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let [first, tail @ ..] = rest {
        let digit = |at: usize| tail.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &tail[2..];
            }
            (b'%', ..) => return Err("it has an incomplete percent-encoding"),
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    // Decoded once more by somebody, it could become anything.
    if bytes.contains(&b'%') {
        return Err("it has an encoded percent sign");
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8")
}

fn encode(component: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for byte in component.bytes() {
        match byte {
            b if b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&b) => {
                write!(f, "{}", char::from(b))?;
            }
            b => write!(f, "%{b:02X}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Scheme::{File, Https, S3};
    use super::*;

    const ALL: [Scheme; 3] = [Https, S3, File];

    fn place(text: &str) -> StagePlace {
        StagePlace::parse(text, &ALL).unwrap_or_else(|error| panic!("`{text}`: {error}"))
    }

    #[test]
    fn every_way_to_write_a_place_has_one_canonical_form() {
        #[rustfmt::skip]
        let cases = [
            ("https://data.example.com/inputs/a.csv",        "https://data.example.com/inputs/a.csv"),
            ("HTTPS://Data.Example.COM.:443/inputs/a.csv",   "https://data.example.com/inputs/a.csv"),
            ("https://data.example.com:8443/a",              "https://data.example.com:8443/a"),
            ("https://data.example.com/%61%2Eb/%7e",         "https://data.example.com/a.b/~"),
            ("https://data.example.com/a%20b",               "https://data.example.com/a%20b"),
            ("https://data.example.com/%c3%a9",              "https://data.example.com/%C3%A9"),
            ("https://data.example.com",                     "https://data.example.com/"),
            ("https://0x7f000001/a",                         "https://127.0.0.1/a"),
            ("https://[::1]:8443/a",                         "https://[::1]:8443/a"),
            ("s3://bucket-1/a/b c",                          "s3://bucket-1/a/b c"),
            ("s3://bucket-1",                                "s3://bucket-1/"),
            ("/srv/data/x",                                  "/srv/data/x"),
            ("file:///srv/data/",                            "/srv/data/"),
        ];
        for (text, want) in cases {
            assert_eq!(place(text).to_string(), want, "`{text}`");
            assert_eq!(place(want), place(text), "`{text}`");
        }
    }

    #[test]
    fn what_programs_could_read_differently_is_no_place() {
        let long = format!("https://a.example/{}", "x".repeat(2048));
        let wide = format!("https://a.example/{}", "x".repeat(256));
        #[rustfmt::skip]
        let cases = [
            ("", "empty"), ("data.example.com/a", "scheme"), ("http://a.example/x", "scheme"),
            ("ftp://a.example/x", "scheme"), ("file://host/x", "scheme"), ("ext::sh -c id", "scheme"),
            ("-oProxyCommand=id", "scheme"), ("https:/a.example/x", "scheme"),
            ("https://user@a.example/x", "user name"), ("https://u:p@a.example/x", "user name"),
            ("https://a.example\\@b.example/x", "user name"),
            ("https://a.example\\.b.example/x", "host name"), ("https:///x", "host name"),
            ("https://a.example:0/x", "port"), ("https://a.example:/x", "port"),
            ("https://a.example:+443/x", "port"), ("https://a.example:99999/x", "port"),
            ("https://a.example/a/../b", "`..`"), ("https://a.example/a/%2e%2E/b", "`..`"),
            ("https://a.example/./b", "`.`"), ("https://a.example//b", "empty path"),
            ("https://a.example/a%2fb", "encoded slash"), ("https://a.example/a%2F..%2Fb", "encoded slash"),
            ("https://a.example/a%5cb", "encoded slash or a backslash"),
            ("https://a.example/a\\b", "backslash"), ("https://a.example/a%252fb", "encoded percent"),
            ("https://a.example/a%00", "control"), ("https://a.example/a%0d%0aX: y", "percent-encoded"),
            ("https://a.example/a%0d%0aX", "control"), ("https://a.example/a\r\nX: y", "control"),
            ("https://a.example/a%", "incomplete"), ("https://a.example/a%g0", "incomplete"),
            ("https://a.example/%ff", "UTF-8"), ("https://a.example/a b", "percent-encoded"),
            ("https://a.example/é", "percent-encoded"), ("https://a.example/a?b=c", "query"),
            ("https://a.example/a#b", "fragment"), (&long, "2048"), (&wide, "255"),
            ("s3://Bucket/k", "bucket"), ("s3://b/k", "bucket"), ("s3://a..b/k", "bucket"),
            ("s3://user@bucket/k", "bucket"), ("s3://bucket/a/../b", "`..`"), ("s3://bucket//a", "empty path"),
            ("/srv/../etc", "`..`"), ("//srv", "empty path"), ("/srv//a", "empty path"), ("/srv/a\n", "control"),
        ];
        for (text, want) in cases {
            let error = StagePlace::parse(text, &ALL).expect_err(text);
            assert!(error.contains(want), "`{text}`: {error}");
        }
        for (text, schemes) in [("https://a.example/x", &[S3][..]), ("/x", &[Https])] {
            assert!(StagePlace::parse(text, schemes).is_err(), "`{text}`");
        }
    }

    #[test]
    fn a_place_lies_in_another_by_whole_components_only() {
        #[rustfmt::skip]
        let cases = [
            ("https://d.example/in/",     "https://d.example/in/a",        true),
            ("https://d.example/in",      "https://d.example/in/a",        true),
            ("https://d.example/in",      "https://d.example/in",          true),
            ("https://d.example/in/",     "https://d.example/in",          false),
            ("https://d.example/in",      "https://d.example/inner/a",     false),
            ("https://d.example/in/",     "https://d.example/%69n/a",      true),
            ("https://d.example/",        "https://d.example/in/a",        true),
            ("https://d.example/",        "https://d.example:8443/in/a",   false),
            ("https://d.example/",        "https://d.example.evil.test/a", false),
            ("https://d.example/",        "https://x.d.example/a",         false),
            ("https://127.0.0.1/",        "https://0x7f.1/a",              true),
            ("s3://bucket/in/",           "s3://bucket/in/k",              true),
            ("s3://bucket/in/",           "s3://bucket/inside/k",          false),
            ("s3://bucket/",              "s3://bucket-2/k",               false),
            ("/srv/data",                 "/srv/data/x",                   true),
            ("/srv/data",                 "/srv/database",                 false),
            ("/bucket/",                  "s3://bucket/k",                 false),
        ];
        for (prefix, text, want) in cases {
            assert_eq!(place(text).is_within(&place(prefix)), want, "`{text}` in `{prefix}`");
        }
    }
}
