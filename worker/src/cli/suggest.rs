//! `worker policy suggest`: the narrowest rules that would allow what sessions were refused, from the
//! audit log. Changes nothing: a person reads it, strikes out lines and puts the rest into the policy.
//!
//! Exact names and ports only. A wildcard stands in a comment beside the names it would replace,
//! because it allows more than anybody asked for. What no rule should be written for without thought
//! (private addresses, metadata) or could help with (limits, names that do not agree) is named in
//! comments with the reason.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::Args;
use serde_json::{Value, json};
use stockade_runtime::egress::Reason;
use stockade_runtime::policy::network::{AddressClass, DenyReason, Host, HostName};

use super::egress_records::{LogArgs, LogError};
use super::egress_report::{Grouping, Report, destination};
use super::policy::ShowFormat;
use crate::exit::Exit;
use crate::progress::visible;

/// Most rules that are suggested.
const RULES_MAX: usize = 500;
/// From so many names below one parent a wildcard is offered.
const SIBLINGS_MIN: usize = 3;
/// Port of a name that was only looked up.
const USUAL_PORT: u16 = 443;

/// Options of `worker policy suggest`.
#[derive(Debug, Args)]
pub struct SuggestArgs {
    #[command(flatten)]
    log: LogArgs,

    /// Choose the output format [default: toml]
    #[arg(long, value_name = "FORMAT", default_value = "toml", hide_default_value = true)]
    format: ShowFormat,
}

/// What `worker policy suggest` prints.
///
/// # Errors
/// The exit code, after the reason was told.
pub fn text(args: &SuggestArgs) -> Result<String, Exit> {
    let report = Report::of(&args.log, Grouping::Destination).map_err(|error| error.told())?;
    if let Some(problem) = report.log.problem {
        let file = args.log.file().unwrap_or_default();
        return Err(LogError::Broken { file, problem }.told());
    }
    let suggestions = Suggestions::from(&report);
    Ok(match args.format {
        ShowFormat::Toml => suggestions.to_toml(),
        ShowFormat::Json => format!("{:#}\n", suggestions.to_json()),
    })
}

/// What would allow what was refused.
#[derive(Debug, Default)]
pub struct Suggestions {
    /// By host and port.
    rules: BTreeMap<(Host, u16), Asked>,
    /// What no rule is suggested for, and why.
    without: BTreeMap<(String, &'static str), u64>,
    omitted: u64,
}

/// How a destination was asked for.
#[derive(Debug, Clone, Default)]
struct Asked {
    count: u64,
    calls: u64,
    /// Refused when it was looked up, so that the port never came up.
    lookup: bool,
    /// Report mode let it through.
    reported: bool,
}

/// What stands for several rules.
struct Wildcard<'a> {
    parent: String,
    port: u16,
    replaces: Vec<&'a HostName>,
}

impl From<&Report> for Suggestions {
    fn from(report: &Report) -> Suggestions {
        let mut suggestions = Suggestions::default();
        for (key, row) in report.allowed.iter().filter(|(key, _)| key.reported) {
            let asked =
                Asked { count: row.count, calls: row.calls, reported: true, ..Asked::default() };
            suggestions.add(key.host.as_deref(), key.port, Ok(()), asked);
        }
        for (key, row) in &report.denied {
            let reason = Reason::from_word(&key.reason, key.class.as_deref());
            let lookup = reason == Some(Reason::Lookup);
            let asked = Asked { count: row.count, calls: row.calls, lookup, reported: false };
            let port = if lookup { Some(USUAL_PORT) } else { key.port };
            suggestions.add(key.host.as_deref(), port, helps(reason), asked);
        }
        suggestions.drop_lookups_with_a_port();
        suggestions.omitted += report.omitted;
        suggestions
    }
}

/// Whether a rule would help against a refusal; the reason, if not.
fn helps(reason: Option<Reason>) -> Result<(), &'static str> {
    match reason {
        Some(Reason::Lookup) => Ok(()),
        Some(Reason::Rules(DenyReason::Address(class))) => Err(of_class(class)),
        Some(Reason::Rules(_)) => Ok(()),
        Some(Reason::NoName | Reason::OtherName) => {
            Err("a rule allows it; the connection did not name this host")
        }
        Some(Reason::OtherProtocol | Reason::Malformed) => {
            Err("a rule allows it; the connection carried something else")
        }
        Some(Reason::RuleRemoved) => Err("its rule was taken away on purpose"),
        Some(Reason::RecordType) => Err("records of this type are never answered"),
        Some(reason) if reason.limit().is_some() => Err("a limit of [network], not a rule"),
        _ => Err("no rule helps"),
    }
}

/// Why addresses of this class are for a person to decide.
fn of_class(class: AddressClass) -> &'static str {
    match class {
        AddressClass::Metadata => "a metadata service hands out the host's credentials",
        AddressClass::Private => {
            "a private address: needs `private = true`, which a person decides"
        }
        AddressClass::Loopback => {
            "this host itself: needs `private = true`, which a person decides"
        }
        _ => "not a public address",
    }
}

impl Suggestions {
    fn add(
        &mut self,
        host: Option<&str>,
        port: Option<u16>,
        helps: Result<(), &'static str>,
        asked: Asked,
    ) {
        let parsed = host.and_then(|host| Host::parse(host).ok()).zip(port);
        let helps = helps.and_then(|()| match &parsed {
            None => Err("the record does not name it"),
            // Connections to the resolver's port are questions to our resolver.
            Some((_, 53)) => Err("port 53 is the resolver's"),
            Some((Host::Address(address), _)) => match AddressClass::of(*address) {
                AddressClass::Public => Ok(()),
                class => Err(of_class(class)),
            },
            Some((Host::Name(_), _)) => Ok(()),
        });
        match (parsed, helps) {
            (Some(target), Ok(())) => {
                if self.rules.len() >= RULES_MAX && !self.rules.contains_key(&target) {
                    self.omitted += asked.count;
                    return;
                }
                let known = self.rules.entry(target).or_default();
                let lookup = asked.lookup && (known.count == 0 || known.lookup);
                known.count = known.count.saturating_add(asked.count);
                known.calls = known.calls.saturating_add(asked.calls);
                (known.lookup, known.reported) = (lookup, known.reported || asked.reported);
            }
            (_, Err(why)) => {
                let key = (destination(host, port), why);
                if self.without.len() >= RULES_MAX && !self.without.contains_key(&key) {
                    self.omitted += asked.count;
                    return;
                }
                *self.without.entry(key).or_default() += asked.count;
            }
            (None, Ok(())) => self.omitted += asked.count,
        }
    }

    /// A name that was refused at first and reached a port later has that port.
    fn drop_lookups_with_a_port(&mut self) {
        let with_port: Vec<Host> = self
            .rules
            .iter()
            .filter(|(_, asked)| !asked.lookup)
            .map(|(to, _)| to.0.clone())
            .collect();
        self.rules
            .retain(|(host, _), asked| !asked.lookup || with_port.binary_search(host).is_err());
    }

    /// Names with the same parent and port, if there are enough of them.
    fn wildcards(&self) -> Vec<Wildcard<'_>> {
        let mut below: BTreeMap<(String, u16), Vec<&HostName>> = BTreeMap::new();
        for (host, port) in self.rules.keys() {
            let Host::Name(name) = host else { continue };
            let Some((_, parent)) = name.as_str().split_once('.') else { continue };
            // A rule over a top-level name is none.
            if parent.contains('.') {
                below.entry((parent.to_owned(), *port)).or_default().push(name);
            }
        }
        let enough = below.into_iter().filter(|(_, names)| names.len() >= SIBLINGS_MIN);
        enough.map(|((parent, port), replaces)| Wildcard { parent, port, replaces }).collect()
    }

    /// A policy file with these rules and nothing else.
    pub fn to_toml(&self) -> String {
        let mut text =
            "# Narrowest rules for what was refused. Strike out what should stay refused, and \
                        put the\n# rest into the policy.\n"
                .to_owned();
        for ((target, why), count) in &self.without {
            let target = visible(target);
            let _infallible = writeln!(text, "# Not suggested: {target} x{count}: {why}");
        }
        if self.omitted > 0 {
            let _infallible = writeln!(text, "# Not shown: {} more refusals", self.omitted);
        }
        text.push_str("schema = 1\n\n[network]\nallow = [\n");
        let rules: Vec<String> =
            self.rules.keys().map(|(host, port)| format!("\"{host}:{port}\",")).collect();
        let width = rules.iter().map(String::len).max().unwrap_or(0);
        for (rule, asked) in rules.iter().zip(self.rules.values()) {
            let _infallible = writeln!(text, "    {rule:<width$} # {}", asked.told());
        }
        text.push_str("]\n");
        for Wildcard { parent, port, replaces } in self.wildcards() {
            let count = replaces.len();
            let _infallible = writeln!(
                text,
                "# Wider: \"*.{parent}:{port}\" would replace {count} of these and allow every other \
                 name there."
            );
        }
        text
    }

    /// The same as one JSON document.
    pub fn to_json(&self) -> Value {
        let rules = self.rules.iter().map(|((host, port), asked)| {
            json!({
                "rule": format!("{host}:{port}"),
                "host": host.to_string(),
                "port": port,
                "port_known": !asked.lookup,
                "report_mode": asked.reported,
                "count": asked.count,
                "calls": asked.calls,
            })
        });
        let wildcards = self.wildcards();
        let wider = wildcards.iter().map(|Wildcard { parent, port, replaces }| {
            let replaces = replaces.iter().map(|name| format!("{name}:{port}"));
            json!({
                "rule": format!("*.{parent}:{port}"),
                "replaces": replaces.collect::<Vec<_>>(),
            })
        });
        let without = self
            .without
            .iter()
            .map(|((target, why), count)| json!({ "target": target, "why": why, "count": count }));
        json!({
            "schema": "stockade.policy.suggest",
            "schema_version": 1,
            "rules": rules.collect::<Vec<_>>(),
            "wider": wider.collect::<Vec<_>>(),
            "not_suggested": without.collect::<Vec<_>>(),
            "omitted": self.omitted,
        })
    }
}

impl Asked {
    fn told(&self) -> String {
        let count =
            |n: u64, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
        let calls = count(self.calls, "call", "calls");
        match (self.lookup, self.reported) {
            (true, _) => format!(
                "only looked up: port not known, check it; {} in {calls}",
                count(self.count, "question", "questions")
            ),
            (_, true) => format!(
                "let through by report mode: {} in {calls}",
                count(self.count, "connection", "connections")
            ),
            _ => format!("refused: {} in {calls}", count(self.count, "time", "times")),
        }
    }
}

#[cfg(test)]
#[path = "suggest_tests.rs"]
mod tests;
