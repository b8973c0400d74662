//! The table `[network]` of a policy file as written, with the place of every value.
//!
//! Pure. The doc comments of the fields are the descriptions in the JSON Schema.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

use super::super::bounded::{Limit, Moment, Size, Time, Whole};
use super::super::file::At;
use super::super::units::{KIB, TIB};
use super::model::{DenyDetail, Resolves};
use super::rule::Protocol;

/// Connections at once, or begun in one second.
pub(super) type Connections = Whole<1, 16_384>;
/// Bytes of a whole session.
pub(super) type Bytes = Limit<Size<{ 64 * KIB }, { 64 * TIB }>>;
/// Up to a day.
pub(super) type IdleTime = Time<1_000, 86_400_000>;
/// Up to 30 days.
pub(super) type ConnectionTime = Limit<Time<1_000, 2_592_000_000>>;
/// With the names of the rules, what one session's table of names holds.
pub(super) type WildcardNames = Whole<0, 4_096>;

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(in super::super) struct NetworkTable {
    /// `none`: loopback only, and no list may name anything. `enforce`: the destinations of `allow`
    /// and `presets`. `report`: until `expires`, public destinations that no rule names are let
    /// through on ports 80, 443 and those of rules, and recorded. Narrower: `none`, then `enforce`.
    pub(super) mode: Option<At<ModeName>>,
    /// When `report` ends, at most 30 days ahead. `enforce` from then on. Narrower: earlier.
    pub(super) expires: Option<At<Moment>>,
    /// Egress rules: `host:port`, `*.name:port` (one label), `**.name:port` (any depth),
    /// `network/length:port`; port 443 where none is written. At most 1,024, and at most 512
    /// different ports, with the rules of `presets`. Narrower: rules that the parent's cover.
    pub(super) allow: Option<At<Vec<At<RuleEntry>>>>,
    /// Shipped lists of egress rules, by name; `worker policy presets` lists them. Narrower: rules
    /// that the parent's cover.
    pub(super) presets: Option<At<Vec<At<String>>>>,
    /// Connections of a session at once.
    pub(super) connections: Option<At<Connections>>,
    /// Connections of a session begun in one second.
    pub(super) connection_rate: Option<At<Connections>>,
    /// Bytes from the jail in the whole session.
    pub(super) bytes_out: Option<At<Bytes>>,
    /// Bytes into the jail in the whole session.
    pub(super) bytes_in: Option<At<Bytes>>,
    /// A connection without a byte either way for so long is closed.
    pub(super) idle_time: Option<At<IdleTime>>,
    /// A connection is closed after so long.
    pub(super) connection_time: Option<At<ConnectionTime>>,
    /// Different names below wildcards that a session may look up. Each can carry data out.
    pub(super) wildcard_names: Option<At<WildcardNames>>,
    /// What a jail is told about a refusal. `full`: destination, reason and decision. `host-only`:
    /// the destination, which it knows. `off`: nothing. Narrower: less.
    pub(super) deny_detail: Option<At<DenyDetail>>,
    /// HTTP proxy through which the broker connects (CONNECT); "" for none. Its credentials are no
    /// part of a policy.
    pub(super) upstream_proxy: Option<At<UpstreamEntry>>,
}

/// How destinations are decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub(super) enum ModeName {
    None,
    Enforce,
    Report,
}

/// One egress rule: `"host:port"`, or a table.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(untagged, inline)]
pub(super) enum RuleEntry {
    /// A rule for public addresses.
    Text(String),
    /// A rule that says more.
    Table(RuleTable),
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(super) struct RuleTable {
    /// The rule.
    pub(super) rule: String,
    /// Whether it may lead to private and loopback addresses; written as a network, to the
    /// link-local and metadata addresses in it too.
    #[serde(default)]
    pub(super) private: bool,
    /// What its connections may carry: `tls` that names the host (default on port 443), `http`
    /// whose requests name the host (default on port 80), `auto` (default on other ports): either of
    /// them where it begins like one, and anything else; `tcp`: anything, unchecked.
    pub(super) protocol: Option<Protocol>,
}

/// No upstream proxy (`""`), or a table.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(untagged, inline)]
pub(super) enum UpstreamEntry {
    /// Must be empty.
    Text(String),
    /// An upstream proxy.
    Table(UpstreamTable),
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(super) struct UpstreamTable {
    /// `http://host:port`.
    pub(super) url: String,
    /// Who looks names up. `host` (default): the broker, which then asks for the checked address.
    /// `proxy`: the upstream proxy, whose operator answers for where names lead. Narrower: `host`.
    pub(super) resolves: Option<Resolves>,
}

/// Reads text or a table by hand, because serde's `untagged` loses the place of what is wrong.
macro_rules! text_or_table {
    ($type:ident, $table:ident, $expected:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Visitor;

                impl<'de> de::Visitor<'de> for Visitor {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        Ok($type::Text(text.to_owned()))
                    }

                    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<$type, A::Error> {
                        let map = de::value::MapAccessDeserializer::new(map);
                        $table::deserialize(map).map($type::Table)
                    }
                }

                from.deserialize_any(Visitor)
            }
        }
    };
}

text_or_table!(
    RuleEntry,
    RuleTable,
    "a rule such as \"host:443\" or { rule = \"host:443\", private = true }"
);
text_or_table!(UpstreamEntry, UpstreamTable, "\"\" or { url = \"http://host:port\" }");
