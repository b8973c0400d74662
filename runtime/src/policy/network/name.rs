//! One canonical form of a host: what was written in any case, with a trailing dot, in Unicode, or as
//! an address in any notation is compared in this form only.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use serde::{Deserialize, Serialize};

/// Longest name in bytes (RFC 1035, 2.3.4, without the root label).
const NAME_BYTES_MAX: usize = 253;
/// Longest text that is looked at: four bytes of Unicode may become one letter.
const TEXT_BYTES_MAX: usize = 1024;

/// A host name: lower-case letters, digits, hyphens and underscores in labels of 1 to 63, no trailing
/// dot. Underscores are no part of RFC 1123, but of names that exist.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

/// What a destination was asked for by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Host {
    /// A name.
    Name(HostName),
    /// An address, never one of IPv4 mapped into IPv6.
    Address(IpAddr),
}

/// Why a text is no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Nothing is there.
    #[error("it is empty")]
    Empty,
    /// Longer than a name can be.
    #[error("it is longer than 253 bytes, or a label is empty or longer than 63")]
    Length,
    /// Letters that no host name has.
    #[error("a host name has letters, digits, hyphens, underscores and dots only")]
    Letters,
    /// It ends like a number and is no address.
    #[error("it ends in a number and is no address")]
    Number,
}

impl HostName {
    /// Reads a name as anyone may write it.
    ///
    /// # Errors
    /// [`NameError`]; an address is no name.
    pub fn parse(text: &str) -> Result<HostName, NameError> {
        match Host::parse(text)? {
            Host::Name(name) => Ok(name),
            Host::Address(_) => Err(NameError::Number),
        }
    }

    /// The canonical form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is `localhost` or a name below it: loopback, whoever asks (RFC 6761, 6.3).
    pub fn is_localhost(&self) -> bool {
        self.labels().next_back() == Some("localhost")
    }

    /// Its labels from left to right.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }
}

impl Host {
    /// Reads a name, or an address in any notation that a C library accepts: decimal, octal and
    /// hexadecimal parts, fewer than four of them, mapped into IPv6, with or without brackets.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn parse(text: &str) -> Result<Host, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > TEXT_BYTES_MAX {
            return Err(NameError::Length);
        }
        let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Some(inner) = inner {
            let address = inner.parse::<Ipv6Addr>().map_err(|_| NameError::Letters)?;
            return Ok(Host::from(IpAddr::V6(address)));
        }
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Ok(Host::from(IpAddr::V6(address)));
        }
        // As the URL standard reads it; letters and lengths are checked below, after the mapping.
        let ascii = Uts46::new()
            .to_ascii(text.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow, DnsLength::Ignore)
            .map_err(|_| NameError::Letters)?;
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        let fits = |label: &str| (1..=63).contains(&label.len());
        if name.len() > NAME_BYTES_MAX || !name.split('.').all(fits) {
            return Err(NameError::Length);
        }
        let letter = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_.".contains(&c);
        if !name.bytes().all(letter) {
            return Err(NameError::Letters);
        }
        // What ends like a number is an address or nothing.
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|c| c.is_ascii_digit()) || number(last).is_some() {
            let address = legacy_v4(name).ok_or(NameError::Number)?;
            return Ok(Host::Address(IpAddr::V4(address)));
        }
        Ok(Host::Name(HostName(name.to_owned())))
    }
}

/// One part of an address as inet_aton(3) reads it; what is too large for one is `u64::MAX`.
fn number(part: &str) -> Option<u64> {
    let (digits, radix) = match part.as_bytes() {
        [b'0', b'x', ..] => (&part[2..], 16),
        [b'0', _, ..] => (&part[1..], 8),
        _ => (part, 10),
    };
    if !digits.chars().all(|c| c.is_digit(radix)) || part.is_empty() {
        return None;
    }
    match digits.trim_start_matches('0') {
        "" => Some(0),
        digits => Some(u64::from_str_radix(digits, radix).unwrap_or(u64::MAX)),
    }
}

/// An address of one to four parts, of which the last fills what the others leave.
fn legacy_v4(text: &str) -> Option<Ipv4Addr> {
    let parts: Vec<u64> = text.split('.').map(number).collect::<Option<_>>()?;
    let (last, first) = parts.split_last()?;
    if first.len() > 3 || first.iter().any(|part| *part > 255) {
        return None;
    }
    let room = 8 * (4 - first.len());
    if *last >> room != 0 {
        return None;
    }
    let high = first.iter().enumerate().map(|(at, part)| part << (24 - 8 * at)).sum::<u64>();
    Some(Ipv4Addr::from(u32::try_from(high + last).ok()?))
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Host {
        Host::Address(address.to_canonical())
    }
}

impl FromStr for Host {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Host, NameError> {
        Host::parse(text)
    }
}

impl TryFrom<String> for HostName {
    type Error = NameError;

    fn try_from(text: String) -> Result<HostName, NameError> {
        HostName::parse(&text)
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> String {
        name.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => name.fmt(f),
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Host::Address(IpAddr::V4(address)) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_way_to_write_a_name_has_one_canonical_form() {
        #[rustfmt::skip]
        let cases = [
            ("example.com", "example.com"), ("EXAMPLE.Com", "example.com"),
            ("example.com.", "example.com"), ("example。com", "example.com"),
            ("example．com｡", "example.com"), ("ｅｘａｍｐｌｅ.com", "example.com"),
            ("bücher.example", "xn--bcher-kva.example"), ("BÜCHER.example", "xn--bcher-kva.example"),
            ("bu\u{308}cher.example", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
            ("faß.example", "xn--fa-hia.example"), ("exa\u{ad}mple.com", "example.com"),
            ("r3---sn-x.video.example", "r3---sn-x.video.example"),
            ("my_bucket.store.example", "my_bucket.store.example"), ("localhost", "localhost"),
            ("1.2.3.4.example", "1.2.3.4.example"), ("0x1g", "0x1g"), ("1e3", "1e3"),
        ];
        for (text, want) in cases {
            let host = Host::parse(text).unwrap_or_else(|error| panic!("`{text}`: {error}"));
            assert_eq!(host, Host::Name(HostName(want.to_owned())), "`{text}`");
        }
    }

    #[test]
    fn every_notation_of_an_address_has_one_canonical_form() {
        #[rustfmt::skip]
        let cases = [
            ("127.0.0.1", "127.0.0.1"), ("127.1", "127.0.0.1"), ("127.0.1", "127.0.0.1"),
            ("2130706433", "127.0.0.1"), ("0x7f000001", "127.0.0.1"), ("0X7F.1", "127.0.0.1"),
            ("017700000001", "127.0.0.1"), ("0177.0.0.01", "127.0.0.1"), ("127.0.0.1.", "127.0.0.1"),
            ("１２７.0.0.1", "127.0.0.1"), ("127。0。0。1", "127.0.0.1"), ("0x7f.0.0.0x1", "127.0.0.1"),
            ("0x0000000000000000000000007f000001", "127.0.0.1"), ("0", "0.0.0.0"), ("0x", "0.0.0.0"),
            ("169.254.43518", "169.254.169.254"), ("::ffff:127.0.0.1", "127.0.0.1"),
            ("[::ffff:7f00:1]", "127.0.0.1"), ("::1", "::1"), ("[0:0::1]", "::1"),
            ("2001:DB8:0::1", "2001:db8::1"), ("::127.0.0.1", "::7f00:1"),
        ];
        for (text, want) in cases {
            let host = Host::parse(text).unwrap_or_else(|error| panic!("`{text}`: {error}"));
            assert_eq!(host, Host::Address(want.parse().expect(want)), "`{text}`");
            assert!(HostName::parse(text).is_err(), "`{text}` is no name");
        }
    }

    #[test]
    fn what_is_no_host_is_refused_with_the_reason() {
        let long = format!("{}.example", "a".repeat(64));
        let longer = ["abcdefg"; 32].join(".");
        let endless = "a".repeat(5000);
        #[rustfmt::skip]
        let cases = [
            ("", NameError::Empty), (".", NameError::Empty), ("..", NameError::Length),
            ("a..b", NameError::Length), (".a", NameError::Length), ("a.b..", NameError::Length),
            (&long, NameError::Length), (&longer, NameError::Length), (&endless, NameError::Length),
            ("a b", NameError::Letters), ("a\0b.example", NameError::Letters), ("a/b", NameError::Letters),
            ("example.com\0.evil.test", NameError::Letters), ("a%00", NameError::Letters),
            ("user@example.com", NameError::Letters), ("example.com:443", NameError::Letters),
            ("*.example.com", NameError::Letters), ("a\n", NameError::Letters),
            ("ａ／ｂ.example", NameError::Letters), ("℀.example", NameError::Letters),
            ("fe80::1%eth0", NameError::Letters), ("[fe80::1%1]", NameError::Letters),
            ("[127.0.0.1]", NameError::Letters), ("[example.com]", NameError::Letters),
            ("[::1", NameError::Letters), ("::1]", NameError::Letters), ("xn--a\u{300}", NameError::Letters),
            ("xn--999999999", NameError::Letters),
            ("256.1.1.1", NameError::Number), ("1.2.3.4.5", NameError::Number),
            ("1.2.3.256", NameError::Number), ("08.0.0.1", NameError::Number),
            ("1.2.3.08", NameError::Number), ("4294967296", NameError::Number),
            ("example.1", NameError::Number),
            ("a.0x1", NameError::Number), ("99999999999999999999999", NameError::Number),
            ("0x1ffffffffffffffffffffff", NameError::Number), ("+1.2.3.4", NameError::Letters),
        ];
        for (text, want) in cases {
            assert_eq!(Host::parse(text), Err(want), "`{text:?}`");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_canonical_form_is_its_own_canonical_form(
            text in r"(\PC{0,12}|[a-zA-Z0-9.\-_xX\[\]:%。]{0,24}|(0[xX])?[0-9a-f]{1,12}(\.[0-9]{1,4}){0,4}\.?)"
        ) {
            if let Ok(host) = Host::parse(&text) {
                let shown = host.to_string();
                prop_assert_eq!(Host::parse(&shown), Ok(host.clone()));
                if let Host::Name(name) = host {
                    prop_assert!(name.as_str().len() <= 253 && !name.as_str().ends_with('.'));
                    prop_assert!(name.labels().all(|label| (1..=63).contains(&label.len())));
                }
            }
        }
    }
}
