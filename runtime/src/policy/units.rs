//! Sizes, durations and CPU shares as they are written in policies and on the command line.
//!
//! Pure. Parsing is strict: a value that a reader could take in two ways is refused. Printing is
//! exact: what is printed parses back to the same value. The bounds of each key are in
//! `bounded.rs`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// 1,024 bytes.
pub const KIB: u64 = 1 << 10;
/// 1,048,576 bytes.
pub const MIB: u64 = 1 << 20;
/// 1,024 MiB.
pub const GIB: u64 = 1 << 30;
/// 1,024 GiB.
pub const TIB: u64 = 1 << 40;

/// Why a quantity could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnitError {
    /// Not a size at all.
    #[error(
        "cannot read size `{text}`: expected bytes, or a whole number with KiB, MiB, GiB, TiB, \
         K, M, G or T (all multiples of 1,024)"
    )]
    Size {
        /// What was written.
        text: String,
    },
    /// Not a duration at all.
    #[error(
        "cannot read duration `{text}`: expected a whole number with ms, s, m, h or d, such as \
         \"30s\""
    )]
    Duration {
        /// What was written.
        text: String,
    },
    /// Not a number of CPUs.
    #[error(
        "cannot read CPUs `{text}`: expected a number with at most three decimals, such as 0.5"
    )]
    Cpus {
        /// What was written.
        text: String,
    },
    /// Not a whole number.
    #[error("cannot read number `{text}`: expected digits only")]
    Whole {
        /// What was written.
        text: String,
    },
    /// More than 64 bits.
    #[error("cannot read `{text}`: the number is too large")]
    Overflow {
        /// What was written.
        text: String,
    },
    /// Readable, but not within the bounds of its key.
    #[error("cannot accept {text}: expected {expected}")]
    OutOfBounds {
        /// The value, normalised.
        text: String,
        /// The bounds.
        expected: String,
    },
}

/// A number of bytes.
///
/// Read from an integer (bytes) or from a string: digits, then nothing, `KiB`, `MiB`, `GiB`,
/// `TiB`, or `K`, `M`, `G`, `T` in either case. All units are multiples of 1,024, as in cgroup
/// tools; `KB` and `MB` are refused because readers disagree about them.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError::Size { text: text.to_owned() };
        let (digits, unit) = split_unit(text).ok_or_else(bad)?;
        let factor = match unit {
            "" => 1,
            "KiB" | "K" | "k" => KIB,
            "MiB" | "M" | "m" => MIB,
            "GiB" | "G" | "g" => GIB,
            "TiB" | "T" | "t" => TIB,
            _ => return Err(bad()),
        };
        scaled(digits, factor, text).map(ByteSize)
    }
}

/// The largest unit that divides the size exactly: `2GiB`, `1536MiB`, `1000`.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (factor, unit) in [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
            if self.0 != 0 && self.0.is_multiple_of(factor) {
                return write!(f, "{}{unit}", self.0 / factor);
            }
        }
        write!(f, "{}", self.0)
    }
}

const MILLIS: [(u64, &str); 5] =
    [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];

/// Reads `500ms`, `30s`, `5m`, `2h` or `1d`. A bare number is refused: its unit is not known.
///
/// # Errors
/// [`UnitError::Duration`] for anything else, [`UnitError::Overflow`] beyond 64 bits of
/// milliseconds.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let bad = || UnitError::Duration { text: text.to_owned() };
    let (digits, unit) = split_unit(text).ok_or_else(bad)?;
    let (factor, _) = MILLIS.iter().find(|(_, name)| *name == unit).ok_or_else(bad)?;
    scaled(digits, *factor, text).map(Duration::from_millis)
}

/// Writes a duration in the largest unit that divides it exactly; resolution 1 ms.
pub fn format_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (factor, unit) = MILLIS
        .iter()
        .find(|(factor, _)| millis != 0 && millis.is_multiple_of(*factor))
        .unwrap_or(&(1, "ms"));
    format!("{}{unit}", millis / factor)
}

/// Reads `2`, `0.5` or `1.25` as thousandths of a CPU.
///
/// # Errors
/// [`UnitError::Cpus`] for anything but digits with at most three decimals,
/// [`UnitError::Overflow`] beyond 32 bits of thousandths.
pub fn parse_cpus(text: &str) -> Result<u32, UnitError> {
    let bad = || UnitError::Cpus { text: text.to_owned() };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    if !digits(whole) || !digits(decimals) || decimals.len() > 3 {
        return Err(bad());
    }
    let overflow = || UnitError::Overflow { text: text.to_owned() };
    let whole: u32 = whole.parse().map_err(|_| overflow())?;
    let milli: u32 = format!("{decimals:0<3}").parse().map_err(|_| bad())?;
    whole.checked_mul(1000).and_then(|value| value.checked_add(milli)).ok_or_else(overflow)
}

/// Writes thousandths of a CPU as a decimal number without trailing zeros.
pub fn format_cpus(milli: u32) -> String {
    let text = format!("{}.{:03}", milli / 1000, milli % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Splits `12KiB` into `12` and `KiB`; `None` unless it starts with a digit and is ASCII.
fn split_unit(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

fn scaled(digits: &str, factor: u64, text: &str) -> Result<u64, UnitError> {
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| UnitError::Overflow { text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_multiples_of_1024_and_print_exactly() {
        #[rustfmt::skip]
        let cases = [
            ("1000",    1000,       "1000"),
            ("64KiB",   64 * KIB,   "64KiB"),
            ("4k",      4 * KIB,    "4KiB"),
            ("512M",    512 * MIB,  "512MiB"),
            ("2GiB",    2 * GIB,    "2GiB"),
            ("1536MiB", 1536 * MIB, "1536MiB"),
            ("1T",      TIB,        "1TiB"),
            ("0",       0,          "0"),
        ];
        for (text, bytes, shown) in cases {
            let size: ByteSize = text.parse().expect(text);
            assert_eq!((size.bytes(), size.to_string().as_str()), (bytes, shown), "`{text}`");
            assert_eq!(size.to_string().parse(), Ok(size));
        }
    }

    #[test]
    fn durations_need_a_unit_and_print_exactly() {
        #[rustfmt::skip]
        let cases = [
            ("500ms", 500, "500ms"), ("30s", 30_000, "30s"), ("60s", 60_000, "1m"),
            ("5m", 300_000, "5m"), ("2h", 7_200_000, "2h"), ("1d", 86_400_000, "1d"),
            ("1500ms", 1500, "1500ms"),
        ];
        for (text, millis, shown) in cases {
            let duration = parse_duration(text).expect(text);
            assert_eq!(duration, Duration::from_millis(millis), "`{text}`");
            assert_eq!(format_duration(duration), shown);
        }
    }

    #[test]
    fn cpus_are_read_as_thousandths() {
        for (text, milli) in [("2", 2000), ("0.5", 500), ("1.25", 1250), ("0.001", 1)] {
            assert_eq!(parse_cpus(text), Ok(milli), "`{text}`");
            assert_eq!(format_cpus(milli), text);
        }
    }

    #[test]
    fn quantities_that_can_be_read_two_ways_are_refused() {
        for text in ["", "GiB", "-1", "1.5GiB", "2GB", "2 GiB", "2gib", "0x10", "1e3", "２GiB"] {
            assert!(matches!(text.parse::<ByteSize>(), Err(UnitError::Size { .. })), "`{text}`");
        }
        for text in ["", "30", "s", "1.5h", "1h30m", "-5s", "5 m", "1w"] {
            assert!(matches!(parse_duration(text), Err(UnitError::Duration { .. })), "`{text}`");
        }
        for text in ["", ".5", "1.", "1.2345", "-1", "1e1", "nan", "50%"] {
            assert!(matches!(parse_cpus(text), Err(UnitError::Cpus { .. })), "`{text}`");
        }
    }

    #[test]
    fn quantities_beyond_64_bits_are_refused() {
        for text in ["18446744073709551616", "16777216TiB", "99999999999999999999K"] {
            assert!(
                matches!(text.parse::<ByteSize>(), Err(UnitError::Overflow { .. })),
                "`{text}`"
            );
        }
        assert!(matches!(parse_duration("999999999999999999d"), Err(UnitError::Overflow { .. })));
        assert!(matches!(parse_cpus("4294968"), Err(UnitError::Overflow { .. })));
    }
}
