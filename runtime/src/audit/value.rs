//! Values of audit records: each has a bound and a character set, so that nothing a model or a
//! server sends can grow a record, break a line, or carry content into the log (INV-12).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// An id or the name of a thing: at most [`Name::BYTES_MAX`] bytes of letters, digits and
/// `._:/@+,=-`. Other characters become `_`, so a name from outside cannot be a sentence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// Longest name; ids of the control plane have about 30 bytes.
    pub const BYTES_MAX: usize = 128;

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: AsRef<str>> From<T> for Name {
    fn from(text: T) -> Self {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._:/@+,=-".contains(c);
        let kept = text.as_ref().chars().take(Name::BYTES_MAX);
        Name(kept.map(|c| if plain(c) { c } else { '_' }).collect())
    }
}

/// One sentence that this program wrote: an error, a path it made; or a host in canonical form, which
/// has letters of host names only. At most [`Text::BYTES_MAX`] bytes without control characters. Not
/// for anything a tool was given or printed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Text(String);

impl Text {
    /// Longest text; a rule over the longest host name has 262.
    pub const BYTES_MAX: usize = 300;

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The sentence of an error or the display form of a path.
    pub fn of(what: &dyn fmt::Display) -> Self {
        let mut text = String::new();
        for c in what.to_string().chars() {
            let c = if c.is_control() { ' ' } else { c };
            if text.len() + c.len_utf8() > Text::BYTES_MAX {
                break;
            }
            text.push(c);
        }
        Text(text)
    }
}

/// Some of many: the first [`List::ITEMS_MAX`], and how many more there were.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// The first ones.
    items: Vec<Text>,
    /// How many are not in `items`.
    more: u64,
}

impl List {
    /// Most items that are written out.
    pub const ITEMS_MAX: usize = 64;

    /// Takes what fits and counts the rest.
    pub fn of<T: fmt::Display>(all: impl IntoIterator<Item = T>) -> Self {
        let mut list = List::default();
        for item in all {
            if list.items.len() < List::ITEMS_MAX {
                list.items.push(Text::of(&item));
            } else {
                list.more += 1;
            }
        }
        list
    }
}

/// A SHA-256, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Before the first line of a log there is none: zeros.
    pub const NONE: Digest = Digest([0; 32]);

    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(Sha256::digest(bytes).into())
    }

    /// What a hasher has come to.
    pub(super) fn finish(hasher: Sha256) -> Self {
        Digest(hasher.finalize().into())
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Digest(bytes)
    }
}

/// Not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot read a digest: expected 64 lower-case hexadecimal digits")]
pub struct NoDigest;

/// With or without the prefix `sha256:`.
impl FromStr for Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text).as_bytes();
        let mut bytes = [0; 32];
        if digits.len() != 64 {
            return Err(NoDigest);
        }
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(NoDigest),
        };
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = value(pair[0])? << 4 | value(pair[1])?;
        }
        Ok(Digest(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What may be known of content: its size and digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// How long it is.
    pub bytes: u64,
    /// Of all of it.
    pub sha256: Digest,
}

impl Fingerprint {
    /// Of this content.
    pub fn of(content: &[u8]) -> Self {
        Fingerprint { bytes: content.len() as u64, sha256: Digest::of(content) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_cannot_break_a_line_or_be_a_sentence() {
        let cases = [
            ("sesn_01ABC", "sesn_01ABC"),
            ("a b\nc\"d", "a_b_c_d"),
            ("größe\u{202e}", "gr__e_"),
            ("api.example.com:443", "api.example.com:443"),
        ];
        for (given, kept) in cases {
            assert_eq!(Name::from(given).as_str(), kept);
        }
        assert_eq!(Name::from("x".repeat(500)).as_str().len(), Name::BYTES_MAX);
        assert_eq!(Name::from("ö".repeat(500)).as_str().len(), Name::BYTES_MAX);
    }

    #[test]
    fn texts_and_lists_are_cut_at_their_bounds() {
        assert_eq!(Text::of(&"a\r\nb\u{7f}").0, "a  b ");
        let cut = Text::of(&"ö".repeat(400)).0;
        assert_eq!((cut.len(), cut.chars().count()), (Text::BYTES_MAX, 150));
        let list = List::of(0..100);
        assert_eq!((list.items.len(), list.more), (List::ITEMS_MAX, 36));
    }

    #[test]
    fn a_digest_reads_what_it_writes_and_nothing_else() {
        let digest = Digest::of(b"");
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse(), Ok(digest));
        assert_eq!(format!("sha256:{text}").parse(), Ok(digest));
        let upper = text.to_uppercase();
        for bad in ["", &text[1..], &upper, &format!("{text}0"), "sha512:00"] {
            assert_eq!(bad.parse::<Digest>(), Err(NoDigest), "`{bad}`");
        }
    }
}
