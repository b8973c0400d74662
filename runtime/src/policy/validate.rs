//! Refuses what no jail may be given, whatever the parent allows: dangerous paths, credentials in
//! the environment, layers that cannot be relaxed, entries that contradict each other.
//!
//! Pure. Runs after `parse.rs` on every file of a chain, so that each error names the file that is
//! wrong and not one that extends it.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::ops::Range;

use super::error::PolicyError;
use super::file::{At, EnvironmentTable, FilesystemTable, PolicyFile, RelaxTable, entries};
use super::network;
use super::parse::{Source, suggest};
use super::paths::{self, Access};
use super::stage;

/// Most entries in any list of a policy.
const ENTRIES_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 64;
const VARIABLE_NAME_BYTES_MAX: usize = 256;
const VARIABLE_BYTES_MAX: usize = 64 << 10;

/// Checks one parsed file. `groups` is the catalogue of system call groups.
pub(super) fn validate(
    source: &Source,
    file: &PolicyFile,
    groups: &[&str],
) -> Result<(), PolicyError> {
    let check = Check { source };
    if let Some(name) = &file.name {
        check.policy_name("name", name)?;
    }
    if let Some(parent) = &file.extends {
        check.extends(parent)?;
    }
    check.relax(entries(&file.require.relax))?;
    check.filesystem(&file.filesystem)?;
    check.groups(&file.syscalls.groups, groups)?;
    network::check(source, &file.network)?;
    stage::check(source, &file.stage)?;
    check.environment(&file.environment)
}

/// Whether `name` stands for a shipped policy or one in a policy directory, and not for a file.
pub(super) fn is_policy_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Looks at one file.
pub(super) struct Check<'a> {
    pub(super) source: &'a Source,
}

impl Check<'_> {
    /// Visible characters of any script stay as they are; what a terminal would act on is escaped.
    pub(super) fn refused(
        &self,
        span: Range<usize>,
        key: &str,
        value: &str,
        reason: &str,
    ) -> PolicyError {
        PolicyError::Refused {
            at: self.source.origin(span),
            key: key.to_owned(),
            value: value.escape_debug().to_string(),
            reason: reason.to_owned(),
        }
    }

    fn policy_name(&self, key: &str, name: &At<String>) -> Result<(), PolicyError> {
        if is_policy_name(name.get()) {
            return Ok(());
        }
        let reason = "a policy name has letters, digits, `-`, `_` and `.`, starts with a letter \
                      or digit and is at most 64 bytes long";
        Err(self.refused(name.span(), key, name.get(), reason))
    }

    fn extends(&self, parent: &At<String>) -> Result<(), PolicyError> {
        let text = parent.get();
        if text.contains('/') || text.ends_with(".toml") {
            if text.len() < 4096 && !text.chars().any(char::is_control) {
                return Ok(());
            }
            let reason = "the path is too long or has control characters";
            return Err(self.refused(parent.span(), "extends", text, reason));
        }
        self.policy_name("extends", parent)
    }

    fn bounded<T>(&self, key: &str, entries: &[At<T>]) -> Result<(), PolicyError> {
        let Some(extra) = entries.get(ENTRIES_MAX) else { return Ok(()) };
        Err(PolicyError::Value {
            at: self.source.origin(extra.span()),
            key: key.to_owned(),
            found: format!("{} entries", entries.len()),
            expected: format!("at most {ENTRIES_MAX}"),
        })
    }

    /// Refuses the second of two equal entries.
    fn distinct<'t, T: Eq + Hash + Display + 't>(
        &self,
        entries: impl IntoIterator<Item = (String, &'t T, Range<usize>)>,
    ) -> Result<(), PolicyError> {
        let mut seen: HashMap<&T, Range<usize>> = HashMap::new();
        for (key, value, span) in entries {
            if let Some(first) = seen.insert(value, span.clone()) {
                return Err(PolicyError::Duplicate {
                    at: self.source.origin(span),
                    key,
                    value: value.to_string(),
                    first: Box::new(self.source.origin(first)),
                });
            }
        }
        Ok(())
    }

    fn relax(&self, entries: &[RelaxTable]) -> Result<(), PolicyError> {
        let key = |index: usize, field: &str| format!("require.relax[{index}].{field}");
        for (index, entry) in entries.iter().enumerate() {
            let layer = *entry.layer.get();
            if !layer.relaxable() {
                let reason = "no jail can be made without this layer";
                let span = entry.layer.span();
                return Err(self.refused(span, &key(index, "layer"), layer.name(), reason));
            }
            let why = entry.why.get();
            if why.trim().is_empty() || why.len() > 1024 || why.chars().any(char::is_control) {
                let reason = "a relaxation needs a reason in one line of at most 1024 bytes";
                return Err(self.refused(entry.why.span(), &key(index, "why"), why, reason));
            }
        }
        self.distinct(
            entries
                .iter()
                .enumerate()
                .map(|(index, entry)| (key(index, "layer"), entry.layer.get(), entry.layer.span())),
        )
    }

    fn filesystem(&self, table: &FilesystemTable) -> Result<(), PolicyError> {
        if let Some(root) = table.root.as_ref().filter(|root| root.get() != "host") {
            let reason =
                |reason: String| self.refused(root.span(), "filesystem.root", root.get(), &reason);
            if !root.get().starts_with('/') {
                let text = "expected `host`, or the absolute path of a directory".to_owned();
                return Err(reason(text));
            }
            paths::check(root.get(), Access::Read).map_err(reason)?;
        }
        let mut all = Vec::new();
        for (key, list, access) in [
            ("filesystem.read_only", &table.read_only, Access::Read),
            ("filesystem.writable", &table.writable, Access::Write),
        ] {
            self.bounded(key, entries(list))?;
            for (index, path) in entries(list).iter().enumerate() {
                let key = format!("{key}[{index}]");
                paths::check(path.get(), access)
                    .map_err(|reason| self.refused(path.span(), &key, path.get(), &reason))?;
                all.push((key, path.get(), path.span()));
            }
        }
        self.distinct(all)
    }

    fn groups(
        &self,
        list: &Option<At<Vec<At<String>>>>,
        known: &[&str],
    ) -> Result<(), PolicyError> {
        let groups = entries(list);
        let key = |index: usize| format!("syscalls.groups[{index}]");
        self.bounded("syscalls.groups", groups)?;
        for (index, group) in groups.iter().enumerate() {
            if !known.contains(&group.get().as_str()) {
                let near = suggest(group.get(), known)
                    .map(|near| format!("; did you mean `{near}`?"))
                    .unwrap_or_default();
                let reason = format!("no such group, known are {}{near}", known.join(", "));
                return Err(self.refused(group.span(), &key(index), group.get(), &reason));
            }
        }
        self.distinct(groups.iter().enumerate().map(|(index, g)| (key(index), g.get(), g.span())))?;
        match list {
            Some(list) if !groups.iter().any(|group| group.get() == "base") => {
                let reason = "the group `base` is missing, without which no program starts";
                Err(self.refused(list.span(), "syscalls.groups", "groups", reason))
            }
            _ => Ok(()),
        }
    }

    fn environment(&self, table: &EnvironmentTable) -> Result<(), PolicyError> {
        let set = table.set.keys().map(|name| ("environment.set".to_owned(), name));
        let pass = entries(&table.pass);
        self.bounded("environment.pass", pass)?;
        let pass =
            pass.iter().enumerate().map(|(i, name)| (format!("environment.pass[{i}]"), name));
        let names: Vec<(String, &At<String>)> = set.chain(pass).collect();
        for (key, name) in &names {
            if let Some(reason) = variable_refused(name.get()) {
                return Err(self.refused(name.span(), key, name.get(), &reason));
            }
        }
        for (name, value) in &table.set {
            if value.get().contains('\0') || value.get().len() > VARIABLE_BYTES_MAX {
                // The value may be a secret: it is not repeated.
                let reason = "a value has no zero byte and at most 64 KiB";
                let key = format!("environment.set.{}", name.get());
                return Err(self.refused(value.span(), &key, name.get(), reason));
            }
        }
        if table.set.len() > ENTRIES_MAX {
            return Err(PolicyError::Value {
                at: self.source.origin(names[ENTRIES_MAX].1.span()),
                key: "environment.set".to_owned(),
                found: format!("{} entries", table.set.len()),
                expected: format!("at most {ENTRIES_MAX}"),
            });
        }
        self.distinct(names.into_iter().map(|(key, name)| (key, name.get(), name.span())))
    }
}

/// Why a variable of this name may not enter a jail; `None` if it may.
pub fn variable_refused(name: &str) -> Option<String> {
    let letter = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    let valid = name.bytes().next().is_some_and(letter)
        && name.bytes().all(|b| letter(b) || b.is_ascii_digit())
        && name.len() <= VARIABLE_NAME_BYTES_MAX;
    if !valid {
        return Some("a variable name has letters, digits and `_`, and no digit first".to_owned());
    }
    let secret = ["KEY", "TOKEN", "SECRET"].iter().any(|word| name.contains(word));
    if name.starts_with("ANTHROPIC_") && secret {
        return Some("credentials of the control plane never enter a jail".to_owned());
    }
    if name.starts_with("LD_") || name == "GLIBC_TUNABLES" {
        return Some("it changes what the loader puts into every program".to_owned());
    }
    None
}
