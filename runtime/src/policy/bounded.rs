//! Quantities whose bounds are part of their type, so that the parser, the error text, `--limit`
//! and the JSON Schema cannot disagree about them.
//!
//! Pure. Each type reads what TOML gives (integer, float, string) and what `--limit` gives (text).

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, UNIX_EPOCH};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use super::units::{self, ByteSize, UnitError};

/// A bounded value that is written as a number or as text.
pub(super) trait Quantity: Sized {
    /// What the resolved policy holds.
    type Value;
    /// What may be written, as one phrase: `a whole number from 1 to 19`.
    fn expected() -> String;
    /// The JSON Schema of what may be written.
    fn schema() -> Schema;
    /// Reads text.
    fn from_text(text: &str) -> Result<Self, UnitError>;
    /// The value, within its bounds.
    fn get(&self) -> Self::Value;
    /// Reads a TOML integer; by default as if it were text.
    fn from_integer(number: i64) -> Result<Self, UnitError> {
        Self::from_text(&number.to_string())
    }
    /// Whether a TOML integer, float or string may be written at all.
    const INTEGER: bool = true;
    const FLOAT: bool = false;
    const STRING: bool = true;
}

/// A whole number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Quantity for Whole<MIN, MAX> {
    type Value = u64;
    const STRING: bool = false;

    fn expected() -> String {
        format!("a whole number from {MIN} to {MAX}")
    }

    fn schema() -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }

    fn from_text(text: &str) -> Result<Self, UnitError> {
        if let Some(digits) =
            text.strip_prefix('-').filter(|d| d.bytes().all(|b| b.is_ascii_digit()))
        {
            return Err(out_of_bounds::<Self>(format!("-{digits}")));
        }
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(UnitError::Whole { text: text.to_owned() });
        }
        let number: u64 =
            text.parse().map_err(|_| UnitError::Overflow { text: text.to_owned() })?;
        within::<Self, _>((MIN..=MAX).contains(&number), number, Self(number))
    }

    fn get(&self) -> u64 {
        self.0
    }
}

/// A size from `MIN` to `MAX` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Quantity for Size<MIN, MAX> {
    type Value = ByteSize;

    fn expected() -> String {
        if MAX == 0 {
            return "0, the only size allowed here".to_owned();
        }
        format!("a size from {} to {}, such as \"512MiB\"", ByteSize(MIN), ByteSize(MAX))
    }

    fn schema() -> Schema {
        json_schema!({ "oneOf": [
            { "type": "integer", "minimum": MIN, "maximum": MAX },
            { "type": "string", "pattern": "^[0-9]+([KMGT]iB|[KMGTkmgt])?$" },
        ] })
    }

    fn from_text(text: &str) -> Result<Self, UnitError> {
        let size: ByteSize = text.parse()?;
        within::<Self, _>((MIN..=MAX).contains(&size.0), size, Self(size.0))
    }

    fn get(&self) -> ByteSize {
        ByteSize(self.0)
    }
}

/// A time from `MIN` to `MAX` milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Quantity for Time<MIN, MAX> {
    type Value = Duration;
    const INTEGER: bool = false;

    fn expected() -> String {
        let show = |millis| units::format_duration(Duration::from_millis(millis));
        format!("a duration from {} to {}, such as \"30s\"", show(MIN), show(MAX))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$" })
    }

    fn from_text(text: &str) -> Result<Self, UnitError> {
        let duration = units::parse_duration(text)?;
        let millis = u64::try_from(duration.as_millis())
            .map_err(|_| UnitError::Overflow { text: text.to_owned() })?;
        let shown = units::format_duration(duration);
        within::<Self, _>((MIN..=MAX).contains(&millis), shown, Self(millis))
    }

    fn get(&self) -> Duration {
        Duration::from_millis(self.0)
    }
}

/// CPUs from `MIN` to `MAX` thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus<const MIN: u32, const MAX: u32>(u32);

impl<const MIN: u32, const MAX: u32> Quantity for Cpus<MIN, MAX> {
    type Value = u32;
    const FLOAT: bool = true;

    fn expected() -> String {
        let show = units::format_cpus;
        format!("a number of CPUs from {} to {}, such as 0.5 or \"2\"", show(MIN), show(MAX))
    }

    fn schema() -> Schema {
        json_schema!({ "oneOf": [
            { "type": "number", "minimum": f64::from(MIN) / 1e3, "maximum": f64::from(MAX) / 1e3 },
            { "type": "string", "pattern": "^[0-9]+([.][0-9]{1,3})?$" },
        ] })
    }

    fn from_text(text: &str) -> Result<Self, UnitError> {
        let milli = units::parse_cpus(text)?;
        within::<Self, _>((MIN..=MAX).contains(&milli), units::format_cpus(milli), Self(milli))
    }

    fn get(&self) -> u32 {
        self.0
    }
}

/// A moment: seconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(u64);

impl Quantity for Moment {
    type Value = u64;
    const INTEGER: bool = false;

    fn expected() -> String {
        "a date and time in UTC between quotes, such as \"2026-12-01T00:00:00Z\"".to_owned()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }

    fn from_text(text: &str) -> Result<Self, UnitError> {
        let bad = || out_of_bounds::<Self>(text.to_owned());
        let time = humantime::parse_rfc3339(text).map_err(|_| bad())?;
        let since = time.duration_since(UNIX_EPOCH).map_err(|_| bad())?;
        within::<Self, _>(since.subsec_nanos() == 0, text, Self(since.as_secs()))
    }

    fn get(&self) -> u64 {
        self.0
    }
}

/// A limit of type `Q`, or `"none"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit<Q>(Option<Q>);

impl<Q: Quantity> Quantity for Limit<Q> {
    type Value = Option<Q::Value>;
    const INTEGER: bool = Q::INTEGER;

    fn expected() -> String {
        format!("{}, or \"none\"", Q::expected())
    }

    fn schema() -> Schema {
        json_schema!({ "anyOf": [{ "const": "none" }, Q::schema()] })
    }

    fn from_text(text: &str) -> Result<Self, UnitError> {
        if text == "none" { Ok(Limit(None)) } else { Q::from_text(text).map(|q| Limit(Some(q))) }
    }

    fn get(&self) -> Option<Q::Value> {
        self.0.as_ref().map(Q::get)
    }
}

fn within<Q: Quantity, T: fmt::Display>(inside: bool, shown: T, value: Q) -> Result<Q, UnitError> {
    if inside { Ok(value) } else { Err(out_of_bounds::<Q>(shown.to_string())) }
}

fn out_of_bounds<Q: Quantity>(text: String) -> UnitError {
    UnitError::OutOfBounds { text, expected: Q::expected() }
}

/// Reads a quantity from whatever TOML holds at its place.
fn deserialize_quantity<'de, Q: Quantity, D: Deserializer<'de>>(from: D) -> Result<Q, D::Error> {
    struct Visitor<Q>(PhantomData<Q>);

    impl<Q: Quantity> de::Visitor<'_> for Visitor<Q> {
        type Value = Q;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&Q::expected())
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<Q, E> {
            if !Q::INTEGER {
                return Err(E::invalid_type(de::Unexpected::Signed(number), &self));
            }
            Q::from_integer(number)
                .map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
        }

        fn visit_f64<E: de::Error>(self, number: f64) -> Result<Q, E> {
            if !Q::FLOAT {
                return Err(E::invalid_type(de::Unexpected::Float(number), &self));
            }
            Q::from_text(&number.to_string())
                .map_err(|_| E::invalid_value(de::Unexpected::Float(number), &self))
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Q, E> {
            if !Q::STRING {
                return Err(E::invalid_type(de::Unexpected::Str(text), &self));
            }
            Q::from_text(text).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
        }
    }

    from.deserialize_any(Visitor(PhantomData))
}

/// Wires a quantity to serde and schemars.
macro_rules! quantity {
    ([$($generics:tt)*] $type:ty) => {
        impl<'de, $($generics)*> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                deserialize_quantity(from)
            }
        }

        impl<$($generics)*> JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                <$type as Quantity>::expected().into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let mut schema = <$type as Quantity>::schema();
                let expected = <$type as Quantity>::expected();
                schema.insert("x-expected".to_owned(), expected.into());
                schema
            }
        }
    };
}

quantity!([const MIN: u64, const MAX: u64] Whole<MIN, MAX>);
quantity!([const MIN: u64, const MAX: u64] Size<MIN, MAX>);
quantity!([const MIN: u64, const MAX: u64] Time<MIN, MAX>);
quantity!([const MIN: u32, const MAX: u32] Cpus<MIN, MAX>);
quantity!([] Moment);
quantity!([Q: Quantity] Limit<Q>);
