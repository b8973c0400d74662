//! Refuses rules, presets and upstream proxies that no jail may be given, file by file.
//!
//! Pure. Runs after `parse.rs`; what a list of rules must not be together is decided in `lay.rs`,
//! once presets and parents are known.

use std::collections::HashMap;
use std::ops::Range;

use super::super::error::PolicyError;
use super::super::file::{At, entries};
use super::super::parse::{Source, suggest};
use super::super::validate::Check;
use super::address::AddressClass;
use super::model::{RULES_MAX, UpstreamProxy};
use super::name::Host;
use super::preset::PRESETS;
use super::rule::{Destination, EgressRule, Pattern, RuleError};
use super::written::{ModeName, NetworkTable, RuleEntry, UpstreamEntry, UpstreamTable};

/// The resolver of a jail answers there.
const RESOLVER_PORT: u16 = 53;

/// Checks `[network]` of one parsed file.
pub(in super::super) fn check(source: &Source, table: &NetworkTable) -> Result<(), PolicyError> {
    let check = Check { source };
    check.mode(table)?;
    check.rules(entries(&table.allow))?;
    check.presets(entries(&table.presets))?;
    match &table.upstream_proxy {
        None => Ok(()),
        Some(entry) => {
            upstream(entry.get()).map(drop).map_err(|reason| {
                let (UpstreamEntry::Text(text)
                | UpstreamEntry::Table(UpstreamTable { url: text, .. })) = entry.get();
                // Whatever stands before an `@` may be a secret: it is not repeated.
                let shown = text.rsplit('@').next().unwrap_or_default();
                check.refused(entry.span(), "network.upstream_proxy", shown, reason)
            })
        }
    }
}

impl Check<'_> {
    fn mode(&self, table: &NetworkTable) -> Result<(), PolicyError> {
        let mode = table.mode.as_ref();
        let report = mode.filter(|mode| *mode.get() == ModeName::Report);
        match (report, &table.expires) {
            (Some(mode), None) => {
                let reason = "the file must say with `expires` when it ends, such as \
                              \"2026-12-01T00:00:00Z\"";
                return Err(self.refused(mode.span(), "network.mode", "report", reason));
            }
            (None, Some(expires)) => {
                let reason = "it is the end of report mode: the file must say `mode = \"report\"`";
                return Err(self.refused(expires.span(), "network.expires", "expires", reason));
            }
            _ => {}
        }
        let Some(mode) = mode.filter(|mode| *mode.get() == ModeName::None) else { return Ok(()) };
        let rule = entries(&table.allow).first().map(|rule| ("network.allow[0]", rule.span()));
        let preset = entries(&table.presets).first();
        let preset = preset.map(|preset| ("network.presets[0]", preset.span()));
        match rule.or(preset) {
            None => Ok(()),
            Some((key, span)) => {
                let value = &self.source.text[span.clone()];
                let value = value.trim_matches('"');
                let place = self.source.origin(mode.span());
                let reason = format!("there is no network: `mode` is \"none\" at {place}");
                Err(self.refused(span, key, value, &reason))
            }
        }
    }

    fn rules(&self, list: &[At<RuleEntry>]) -> Result<(), PolicyError> {
        let mut seen: HashMap<EgressRule, Range<usize>> = HashMap::new();
        for (index, entry) in list.iter().enumerate() {
            let (key, span) = (format!("network.allow[{index}]"), entry.span());
            if index >= RULES_MAX {
                return Err(PolicyError::Value {
                    at: self.source.origin(span),
                    key: "network.allow".to_owned(),
                    found: format!("{} entries", list.len()),
                    expected: format!("at most {RULES_MAX}"),
                });
            }
            let refused =
                |reason: &str| self.refused(span.clone(), &key, text(entry.get()), reason);
            let rule = rule(entry.get()).map_err(|error| refused(&error.to_string()))?;
            if let Some(reason) = unfit(&rule) {
                return Err(refused(&reason));
            }
            let shown = rule.to_string();
            // What else a rule says makes no second rule of it: which one holds could not be seen.
            let bare = EgressRule { private: false, ..rule };
            if let Some(first) = seen.insert(bare, span.clone()) {
                return Err(PolicyError::Duplicate {
                    at: self.source.origin(span),
                    key,
                    value: shown,
                    first: Box::new(self.source.origin(first)),
                });
            }
        }
        Ok(())
    }

    fn presets(&self, list: &[At<String>]) -> Result<(), PolicyError> {
        let known: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
        for (index, name) in list.iter().enumerate() {
            let key = format!("network.presets[{index}]");
            if !known.contains(&name.get().as_str()) {
                let near = suggest(name.get(), &known)
                    .map(|near| format!("; did you mean `{near}`?"))
                    .unwrap_or_default();
                let reason = format!("no such preset, known are {}{near}", known.join(", "));
                return Err(self.refused(name.span(), &key, name.get(), &reason));
            }
            if let Some(first) = list[..index].iter().find(|first| first.get() == name.get()) {
                return Err(PolicyError::Duplicate {
                    at: self.source.origin(name.span()),
                    key,
                    value: name.get().clone(),
                    first: Box::new(self.source.origin(first.span())),
                });
            }
        }
        Ok(())
    }
}

fn text(entry: &RuleEntry) -> &str {
    match entry {
        RuleEntry::Text(text) => text,
        RuleEntry::Table(table) => &table.rule,
    }
}

/// The rule that an entry means.
pub(super) fn rule(entry: &RuleEntry) -> Result<EgressRule, RuleError> {
    let rule: EgressRule = text(entry).parse()?;
    Ok(match entry {
        RuleEntry::Text(_) => rule,
        RuleEntry::Table(table) => EgressRule {
            private: table.private,
            protocol: table.protocol.unwrap_or(rule.protocol),
            ..rule
        },
    })
}

/// Why a rule that can be read is of no use.
fn unfit(rule: &EgressRule) -> Option<String> {
    if rule.port == RESOLVER_PORT {
        return Some("port 53 is that of the jail's own resolver".to_owned());
    }
    if let Pattern::Exact(name) = &rule.pattern
        && name.is_localhost()
    {
        return Some(format!(
            "programs ask for 127.0.0.1 then, not for a name: {{ rule = \"127.0.0.1:{}\", private = \
             true }}",
            rule.port
        ));
    }
    let Pattern::Network(network) = &rule.pattern else { return None };
    match AddressClass::of_network(network) {
        AddressClass::Public => None,
        class @ (AddressClass::Multicast | AddressClass::Reserved) => {
            Some(format!("{class} addresses are never dialled"))
        }
        _ if rule.private => None,
        class => Some(format!(
            "{class} addresses need `private = true`: {{ rule = \"{rule}\", private = true }}"
        )),
    }
}

/// The upstream proxy that an entry means.
pub(super) fn upstream(entry: &UpstreamEntry) -> Result<Option<UpstreamProxy>, &'static str> {
    let table = match entry {
        UpstreamEntry::Text(text) if text.is_empty() => return Ok(None),
        UpstreamEntry::Text(_) => {
            return Err("expected \"\" for none, or { url = \"http://host:port\" }");
        }
        UpstreamEntry::Table(table) => table,
    };
    let Some(rest) = table.url.strip_prefix("http://") else {
        return Err("expected `http://host:port`: the proxy itself is spoken to without TLS");
    };
    if rest.contains('@') {
        return Err("credentials are no part of a policy");
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let port = rest.rfind(']').map_or(rest, |end| &rest[end..]).contains(':');
    match rest.parse() {
        Ok(Destination { host: Host::Name(_) | Host::Address(_), .. }) if !port => {
            Err("the port is missing: expected `http://host:port`")
        }
        Ok(Destination { host, port }) => {
            Ok(Some(UpstreamProxy { host, port, resolves: table.resolves.unwrap_or_default() }))
        }
        Err(_) => Err("expected `http://host:port`"),
    }
}
