//! One canonical form of a host: what was written in any case, with a trailing dot, in Unicode, or as
//! an address in any notation is compared in this form only.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name in bytes (RFC 1035, 2.3.4, without the root label).
const NAME_BYTES_MAX: usize = 253;

/// A host name: lower-case letters, digits and hyphens in labels of 1 to 63, no trailing dot.
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
    #[error("a host name has letters, digits, hyphens and dots only")]
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
        let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Some(inner) = inner {
            let address = inner.parse::<Ipv6Addr>().map_err(|_| NameError::Letters)?;
            return Ok(Host::from(IpAddr::V6(address)));
        }
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Ok(Host::from(IpAddr::V6(address)));
        }
        let ascii = idna::domain_to_ascii_strict(text).or_else(|_| {
            // The strict form refuses a trailing dot.
            match text.strip_suffix('.') {
                Some(rest) => idna::domain_to_ascii_strict(rest),
                None => Err(idna::Errors::default()),
            }
        });
        let ascii = ascii.map_err(|_| match text.len() > NAME_BYTES_MAX {
            true => NameError::Length,
            false => NameError::Letters,
        })?;
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        let fits = |label: &str| (1..=63).contains(&label.len());
        if name.len() > NAME_BYTES_MAX || !name.split('.').all(fits) {
            return Err(NameError::Length);
        }
        let letter = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-.".contains(&c);
        if !name.bytes().all(letter) {
            return Err(NameError::Letters);
        }
        // As the URL standard has it: what ends like a number is an address or nothing.
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|c| c.is_ascii_digit()) || number(last).is_some() {
            let address = legacy_v4(name).ok_or(NameError::Number)?;
            return Ok(Host::Address(IpAddr::V4(address)));
        }
        Ok(Host::Name(HostName(name.to_owned())))
    }
}

/// One part of an address as inet_aton(3) reads it.
fn number(part: &str) -> Option<u64> {
    let (digits, radix) = match part.as_bytes() {
        [b'0', b'x', ..] => (&part[2..], 16),
        [b'0', _, ..] => (&part[1..], 8),
        _ => (part, 10),
    };
    if digits.is_empty() && radix == 16 {
        return Some(0);
    }
    if digits.is_empty() || digits.len() > 16 || digits.starts_with('+') {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

fn legacy_v4(text: &str) -> Option<Ipv4Addr> {
    let parts: Vec<u64> = text.split('.').map(number).collect::<Option<_>>()?;
    let (last, first) = parts.split_last()?;
    if first.len() > 3 || first.iter().any(|part| *part > 255) {
        return None;
    }
    let room = 8 * (4 - first.len() as u32);
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
