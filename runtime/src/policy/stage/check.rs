//! Turns tables `[[stage]]` into rules, and refuses what no rule may say.
//!
//! Pure. Runs on every file of a chain, so that each error names the file that is wrong.

use std::ops::Range;
use std::time::Duration;

use super::super::bounded::Quantity;
use super::super::error::PolicyError;
use super::super::file::{At, entries};
use super::super::model::Setting;
use super::super::parse::Source;
use super::super::paths::{self, Access};
use super::super::units::ByteSize;
use super::super::validate::is_policy_name;
use super::model::{
    StageDigest, StageKind, StageRule, StageSource, StageValue, is_commit, parse_sha256,
};
use super::place::{Scheme, StagePlace};
use super::written::{KindName, SIZE_DEFAULT, StageTable, TIME_DEFAULT_MS};

/// Most rules of a policy.
const RULES_MAX: usize = 32;
/// Most places that one rule allows.
const ALLOW_MAX: usize = 16;
/// Longest key of metadata.
const KEY_BYTES_MAX: usize = 128;
const TO_BYTES_MAX: usize = 1024;
const WHY_BYTES_MAX: usize = 1024;
/// What a value begins with that the metadata decides.
const METADATA: &str = "metadata:";

/// Checks one file's rules.
pub(in super::super) fn check(
    source: &Source,
    tables: &Option<At<Vec<StageTable>>>,
) -> Result<(), PolicyError> {
    rules(source, tables).map(drop)
}

/// The rules that one file means.
pub(super) fn rules(
    source: &Source,
    tables: &Option<At<Vec<StageTable>>>,
) -> Result<Vec<StageRule>, PolicyError> {
    let tables = entries(tables);
    if let Some(extra) = tables.get(RULES_MAX) {
        return Err(PolicyError::Value {
            at: source.origin(extra.name.span()),
            key: "stage".to_owned(),
            found: format!("{} rules", tables.len()),
            expected: format!("at most {RULES_MAX}"),
        });
    }
    let rule = |(index, table)| Check { source, index, table }.rule();
    let rules: Vec<StageRule> = tables.iter().enumerate().map(rule).collect::<Result<_, _>>()?;
    for (index, table) in tables.iter().enumerate() {
        apart(&Check { source, index, table }, &rules[..index], tables)?;
    }
    Ok(rules)
}

/// Names and targets are different, and no target lies in another.
fn apart(
    check: &Check<'_>,
    before: &[StageRule],
    tables: &[StageTable],
) -> Result<(), PolicyError> {
    for (other, first) in before.iter().zip(tables) {
        let (name, to) = (&check.table.name, &check.table.to);
        for (field, at, first, clash) in [
            ("name", name, &first.name, other.name == *name.get()),
            ("to", to, &first.to, overlap(&other.to, to.get())),
        ] {
            if clash {
                return Err(PolicyError::Duplicate {
                    at: check.source.origin(at.span()),
                    key: check.key(field),
                    value: at.get().escape_default().to_string(),
                    first: Box::new(check.source.origin(first.span())),
                });
            }
        }
    }
    Ok(())
}

fn overlap(left: &str, right: &str) -> bool {
    let below = |a: &str, b: &str| {
        a.strip_prefix(b).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    below(left, right) || below(right, left)
}

struct Check<'a> {
    source: &'a Source,
    index: usize,
    table: &'a StageTable,
}

impl Check<'_> {
    fn key(&self, field: &str) -> String {
        format!("stage[{}].{field}", self.index)
    }

    fn refused(&self, field: &str, span: Range<usize>, value: &str, why: &str) -> PolicyError {
        PolicyError::Refused {
            at: self.source.origin(span),
            key: self.key(field),
            value: value.escape_default().to_string(),
            reason: why.to_owned(),
        }
    }

    fn text(&self, field: &str, at: &At<String>, why: &str) -> PolicyError {
        self.refused(field, at.span(), at.get(), why)
    }

    fn missing(&self, field: &str) -> PolicyError {
        let at = self.source.origin(self.table.kind.span());
        PolicyError::MissingKey { at, key: self.key(field) }
    }

    fn rule(&self) -> Result<StageRule, PolicyError> {
        let table = self.table;
        if !is_policy_name(table.name.get()) {
            let why = "a name has letters, digits, `-`, `_` and `.`, starts with a letter or digit \
                       and is at most 64 bytes long";
            return Err(self.text("name", &table.name, why));
        }
        self.only_its_own()?;
        let kind = self.kind()?;
        let allow = self.allow(&kind)?;
        let from = self.from(&kind)?;
        if matches!(from, StageSource::Metadata(_)) && allow.is_empty() {
            let why = "`allow` names no place, so that no value could be followed";
            return Err(self.text("from", &table.from, why));
        }
        self.to()?;
        let flag = |at: &Option<At<bool>>, usual| at.as_ref().map_or(usual, |at| *at.get());
        let unpack = flag(&table.unpack, false) || matches!(kind, StageKind::Git { .. });
        let size = table.size_max.as_ref().map_or(ByteSize(SIZE_DEFAULT), |at| at.get().get());
        let usual = Duration::from_millis(TIME_DEFAULT_MS);
        let time = table.time_max.as_ref().map_or(usual, |at| at.get().get());
        Ok(StageRule {
            name: table.name.get().clone(),
            kind,
            from,
            allow,
            to: table.to.get().clone(),
            size_max: size,
            time_max: time,
            required: flag(&table.required, true),
            unpack,
            origin: self.source.origin(table.name.span()),
        })
    }

    /// Refuses keys that mean nothing for this kind.
    fn only_its_own(&self) -> Result<(), PolicyError> {
        use KindName::{Git, Https, Local, S3};
        let (table, kind) = (self.table, *self.table.kind.get());
        let text = |at: &Option<At<String>>| at.as_ref().map(At::span);
        let flag = |at: &Option<At<bool>>| at.as_ref().map(At::span);
        let digest = table.digest.as_ref().map(At::span);
        for (field, span, kinds) in [
            ("sha256", text(&table.sha256), &[Https, S3, Local][..]),
            ("digest", digest, &[Https, S3]),
            ("why", text(&table.why), &[Https, S3]),
            ("commit", text(&table.commit), &[Git]),
            ("endpoint", text(&table.endpoint), &[S3]),
            ("region", text(&table.region), &[S3]),
            ("unpack", flag(&table.unpack), &[Https, S3, Local]),
            ("private", flag(&table.private), &[Https, S3, Git]),
        ] {
            if let Some(span) = span.filter(|_| !kinds.contains(&kind)) {
                let why = "the key has no meaning for this kind of source";
                return Err(self.refused(field, span, field, why));
            }
        }
        Ok(())
    }

    fn kind(&self) -> Result<StageKind, PolicyError> {
        let table = self.table;
        let private = table.private.as_ref().is_some_and(|at| *at.get());
        Ok(match table.kind.get() {
            KindName::Https => StageKind::Https { digest: self.digest()?, private },
            KindName::Git => {
                let at = table.commit.as_ref().ok_or_else(|| self.missing("commit"))?;
                let why = "a commit has 40 or 64 hexadecimal digits; branches and tags move";
                let commit = self.value("commit", at, is_commit, why)?;
                StageKind::Git { commit, private }
            }
            KindName::S3 => {
                let (endpoint, region) = (self.endpoint()?, self.region()?);
                StageKind::S3 { endpoint, region, digest: self.digest()?, private }
            }
            KindName::Local => {
                let digest = match &table.sha256 {
                    Some(_) => self.digest()?,
                    None => StageDigest::Record(String::new()),
                };
                StageKind::Local { digest }
            }
        })
    }

    /// What is fetched from elsewhere has a digest, or a reason why it has none.
    fn digest(&self) -> Result<StageDigest, PolicyError> {
        let table = self.table;
        match (&table.sha256, &table.digest, &table.why) {
            (Some(_), Some(at), _) => {
                let why = "`sha256` says what it must be; keep one of the two";
                Err(self.refused("digest", at.span(), "record", why))
            }
            (Some(_), None, Some(why)) => {
                Err(self.text("why", why, "it is the reason for `digest = \"record\"`"))
            }
            (Some(at), None, None) => {
                let known = |text: &str| parse_sha256(text).is_some();
                let why = "a SHA-256 has 64 hexadecimal digits";
                self.value("sha256", at, known, why).map(StageDigest::Sha256)
            }
            (None, None, _) => Err(self.missing("sha256")),
            (None, Some(_), None) => Err(self.missing("why")),
            (None, Some(_), Some(at)) => {
                let why = at.get();
                let line = !why.trim().is_empty() && !why.chars().any(char::is_control);
                if !line || why.len() > WHY_BYTES_MAX {
                    let text = "it needs a reason in one line of at most 1024 bytes";
                    return Err(self.text("why", at, text));
                }
                Ok(StageDigest::Record(why.clone()))
            }
        }
    }

    fn endpoint(&self) -> Result<StagePlace, PolicyError> {
        let at = self.table.endpoint.as_ref().ok_or_else(|| self.missing("endpoint"))?;
        let place = StagePlace::parse(at.get(), &[Scheme::Https]);
        let place = place.map_err(|why| self.text("endpoint", at, why))?;
        if !place.components().is_empty() {
            return Err(self.text("endpoint", at, "an endpoint has no path"));
        }
        Ok(place)
    }

    fn region(&self) -> Result<String, PolicyError> {
        let Some(at) = &self.table.region else { return Ok("us-east-1".to_owned()) };
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if at.get().is_empty() || at.get().len() > 64 || !at.get().bytes().all(plain) {
            let why = "a region has lower-case letters, digits and hyphens, at most 64";
            return Err(self.text("region", at, why));
        }
        Ok(at.get().clone())
    }

    fn value(
        &self,
        field: &str,
        at: &At<String>,
        known: impl Fn(&str) -> bool,
        why: &str,
    ) -> Result<StageValue, PolicyError> {
        match at.get().strip_prefix(METADATA) {
            Some(key) => self.metadata(field, at, key).map(StageValue::Metadata),
            None if known(at.get()) => Ok(StageValue::Fixed(at.get().to_ascii_lowercase())),
            None => Err(self.text(field, at, why)),
        }
    }

    fn metadata(&self, field: &str, at: &At<String>, key: &str) -> Result<String, PolicyError> {
        let plain = |c: char| !c.is_control() && !c.is_whitespace();
        if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.chars().all(plain) {
            let why = "a key of the metadata has 1 to 128 bytes and no white space";
            return Err(self.text(field, at, why));
        }
        Ok(key.to_owned())
    }

    fn from(&self, kind: &StageKind) -> Result<StageSource, PolicyError> {
        let at = &self.table.from;
        if let Some(key) = at.get().strip_prefix(METADATA) {
            return self.metadata("from", at, key).map(StageSource::Metadata);
        }
        let place = self.place("from", at, kind)?;
        if place.components().is_empty() || place.is_directory() {
            return Err(self.text("from", at, "it names no single thing"));
        }
        Ok(StageSource::Fixed(place))
    }

    fn allow(&self, kind: &StageKind) -> Result<Vec<Setting<StagePlace>>, PolicyError> {
        let list = entries(&self.table.allow);
        if let Some(extra) = list.get(ALLOW_MAX) {
            return Err(PolicyError::Value {
                at: self.source.origin(extra.span()),
                key: self.key("allow"),
                found: format!("{} places", list.len()),
                expected: format!("at most {ALLOW_MAX}"),
            });
        }
        let place = |(index, at): (usize, &At<String>)| {
            let value = self.place(&format!("allow[{index}]"), at, kind)?;
            Ok(Setting { value, origin: self.source.origin(at.span()) })
        };
        list.iter().enumerate().map(place).collect()
    }

    fn place(
        &self,
        field: &str,
        at: &At<String>,
        kind: &StageKind,
    ) -> Result<StagePlace, PolicyError> {
        let place = StagePlace::parse(at.get(), kind.schemes());
        let place = place.map_err(|why| self.text(field, at, why))?;
        if place.scheme() == Scheme::File {
            let path = format!("/{}", place.path());
            paths::check(&path, Access::Read).map_err(|why| self.text(field, at, &why))?;
        }
        Ok(place)
    }

    fn to(&self) -> Result<(), PolicyError> {
        let (at, text) = (&self.table.to, self.table.to.get());
        let why = if text.is_empty() || text.len() > TO_BYTES_MAX {
            "a path below the workspace has 1 to 1024 bytes"
        } else if text.starts_with('/') {
            "it is a path below the workspace, and not absolute"
        } else if text.chars().any(char::is_control) {
            "a path with control characters cannot be reported safely"
        } else if text.split('/').any(|part| matches!(part, "" | "." | "..") || part.len() > 255) {
            "it has an empty component, `.`, `..` or one longer than 255 bytes"
        } else if overlap(text, "skills") {
            "skills lie there"
        } else if overlap(text, "memory") {
            "memory stores lie there"
        } else {
            return Ok(());
        };
        Err(self.text("to", at, why))
    }
}
