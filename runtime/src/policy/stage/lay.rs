//! Lays the rules `[[stage]]` of one file over those of the policies beneath it.
//!
//! Pure. As with destinations: as long as no file of the chain has written rules, a child may. From the
//! first file that has, children may leave rules out or narrow them, and add none.

use super::super::effective::Written;
use super::super::error::PolicyError;
use super::super::file::{At, entries};
use super::super::model::Origin;
use super::super::narrow::{Mode, widened};
use super::super::parse::Source;
use super::check::rules;
use super::model::{Stage, StageDigest, StageRule, StageSource};
use super::show::{flag, line};
use super::written::StageTable;

/// The rules that `base` alone means.
///
/// # Errors
/// [`PolicyError::MissingKey`] if `base` leaves the key out.
pub(in super::super) fn floor(
    source: &Source,
    tables: &Option<At<Vec<StageTable>>>,
) -> Result<Stage, PolicyError> {
    let Some(at) = tables else {
        let at = source.origin(0..0);
        return Err(PolicyError::MissingKey { at, key: "stage".to_owned() });
    };
    Ok(Stage { rules: Vec::new(), named: false, origin: source.origin(at.span()) })
}

/// Lays `tables` over `stage`.
pub(in super::super) fn lay(
    stage: &mut Stage,
    source: &Source,
    tables: &Option<At<Vec<StageTable>>>,
    mode: Mode,
) -> Result<(), PolicyError> {
    // Where nothing has been named yet, a child's rules stand as if it had no parent.
    let mode = if stage.named { mode } else { Mode::Replace };
    stage.named = tables.is_some() || (stage.named && mode == Mode::Narrow);
    let Some(at) = tables else { return Ok(()) };
    let new = rules(source, tables)?;
    if mode == Mode::Narrow {
        for (index, (rule, table)) in new.iter().zip(entries(tables)).enumerate() {
            let narrow = Narrow { source, index, rule, table };
            match stage.rules.iter().find(|parent| parent.name == rule.name) {
                Some(parent) => narrow.than(parent)?,
                None => {
                    let names = stage.rules.iter().map(|parent| parent.name.written());
                    let names = format!("[{}]", names.collect::<Vec<_>>().join(", "));
                    let values = (rule.name.written(), names);
                    let key = format!("stage[{index}].name");
                    return Err(widened(&key, values, &rule.origin, &stage.origin));
                }
            }
        }
    }
    stage.rules = new;
    stage.origin = source.origin(at.span());
    Ok(())
}

struct Narrow<'a> {
    source: &'a Source,
    index: usize,
    rule: &'a StageRule,
    table: &'a StageTable,
}

impl Narrow<'_> {
    fn than(&self, parent: &StageRule) -> Result<(), PolicyError> {
        let (rule, table) = (self.rule, self.table);
        let of = |field| (line(rule, field), line(parent, field));
        for field in ["kind", "from", "to", "commit", "endpoint", "region", "unpack"] {
            let (own, above) = of(field);
            // A fixed source that the parent allows is one of the values it would follow.
            let fixed = matches!(&rule.from, StageSource::Fixed(place) if parent.allows(place));
            if own != above && !(field == "from" && fixed) {
                return Err(self.wider(field, own, above, parent));
            }
        }
        for (at, place) in rule.allow.iter().enumerate() {
            if !parent.allow.iter().any(|above| place.value.is_within(&above.value)) {
                let field = format!("allow[{at}]");
                let (_, above) = of("allow");
                let values = (place.value.to_string().written(), above);
                let key = format!("stage[{}].{field}", self.index);
                return Err(widened(&key, values, &place.origin, &parent.origin));
            }
        }
        let recorded =
            |rule: &StageRule| matches!(rule.kind.digest(), Some(StageDigest::Record(_)));
        let differs = rule.kind.digest() != parent.kind.digest();
        if differs && !recorded(parent) {
            let ((own, above), at) = (of("sha256"), &table.sha256);
            let field = if at.is_some() { "sha256" } else { "digest" };
            return Err(self.wider(field, own, above, parent));
        }
        if rule.size_max > parent.size_max {
            let (own, above) = of("size_max");
            return Err(self.wider("size_max", own, above, parent));
        }
        if rule.time_max > parent.time_max {
            let (own, above) = of("time_max");
            return Err(self.wider("time_max", own, above, parent));
        }
        if rule.kind.private() && !parent.kind.private() {
            return Err(self.wider("private", flag(true), flag(false), parent));
        }
        Ok(())
    }

    fn wider(&self, field: &str, own: String, above: String, parent: &StageRule) -> PolicyError {
        let key = format!("stage[{}].{field}", self.index);
        widened(&key, (own, above), &self.at(field), &parent.origin)
    }

    /// Where the field was written; where it was not, the rule.
    fn at(&self, field: &str) -> Origin {
        let table = self.table;
        let text = |at: &Option<At<String>>| at.as_ref().map(At::span);
        let span = match field {
            "kind" => Some(table.kind.span()),
            "from" => Some(table.from.span()),
            "to" => Some(table.to.span()),
            "commit" => text(&table.commit),
            "endpoint" => text(&table.endpoint),
            "region" => text(&table.region),
            "sha256" => text(&table.sha256),
            "digest" => table.digest.as_ref().map(At::span),
            "size_max" => table.size_max.as_ref().map(At::span),
            "time_max" => table.time_max.as_ref().map(At::span),
            "unpack" => table.unpack.as_ref().map(At::span),
            "private" => table.private.as_ref().map(At::span),
            _ => None,
        };
        self.source.origin(span.unwrap_or_else(|| table.name.span()))
    }
}
