//! `worker why` and `worker policy test`: whether a policy lets a jail reach a destination, by which
//! rule, and what would have to change.
//!
//! Runs unprivileged, starts nothing and looks no name up: the answer is that of the function by
//! which the broker decides, before the addresses of a name are known.

use std::io;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use stockade_runtime::policy::network::{
    AddressClass, Allowed, DenyReason, Destination, Host, Nearest, NetworkMode, Protocol,
    RuleError, Rules, Verdict,
};
use stockade_runtime::policy::{Policy, Resolver, SHIPPED};

use super::policy::{ReportFormat, Streams, complain, read_policy_file, timely};
use super::policy_choice::PolicyDirectories;
use super::why_session;
use crate::exit::Exit;

/// How ids of sessions begin.
const SESSION: &str = "sesn_";

/// Explain whether a policy lets a jail reach a destination, or what was decided in a session
///
/// Of a policy: prints which rule allows it, or why it is denied, the rule that comes nearest and the
/// narrowest rule that would allow it. Nothing is connected to and no name is looked up. Of a session:
/// prints what the audit log says was decided, when and by which rule. Exits 0 if it is allowed, 1 if it
/// is denied.
#[derive(Debug, Args)]
pub struct WhyArgs {
    #[command(flatten)]
    pub places: PolicyDirectories,

    /// Choose the output format [default: text]
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true)]
    pub format: ReportFormat,

    /// Read what was decided in a session from this audit log [default: that of `worker poll`]
    #[arg(long, value_name = "FILE")]
    pub audit_file: Option<PathBuf>,

    /// Name of a policy, a file (what holds a `/` or ends in `.toml`), or a session (`sesn_…`)
    #[arg(value_name = "POLICY|SESSION")]
    pub subject: String,

    /// Destination; port 443 if none is written
    #[arg(value_name = "HOST[:PORT]")]
    pub destination: String,
}

/// Runs `worker why`. `groups` is the catalogue of system call groups.
///
/// # Errors
/// Only if a stream cannot be written.
pub fn run(args: &WhyArgs, groups: &[&str], mut to: Streams<'_>) -> anyhow::Result<Exit> {
    if args.subject.starts_with(SESSION) || args.audit_file.is_some() {
        return decided_in_session(args, to);
    }
    let resolver =
        Resolver { groups, directories: &args.places.directories, load: &read_policy_file };
    let words = std::slice::from_ref(&args.destination);
    let code = match test(&resolver, &args.subject, words, &mut to) {
        Err(error) => Err(error),
        Ok(Err(exit)) => Ok(exit),
        Ok(Ok(tested)) => {
            let answer = &tested.answers()[0];
            let written = match args.format {
                ReportFormat::Text => to.out.write_all(answer.explained(&tested.policy).as_bytes()),
                ReportFormat::Json => {
                    let mut document = json!({
                        "schema": "stockade.why",
                        "schema_version": 1,
                        "policy": tested.policy.name,
                        "digest": tested.policy.digest_hex(),
                    });
                    document["answer"] = answer.json(&tested.policy);
                    writeln!(to.out, "{document:#}")
                }
            };
            written.map(|()| answer.exit())
        }
    };
    heard(code)
}

/// What the audit log says about it.
fn decided_in_session(args: &WhyArgs, to: Streams<'_>) -> anyhow::Result<Exit> {
    let Destination { host, port } = match args.destination.parse::<Destination>() {
        Ok(destination) => destination,
        Err(error) => {
            unreadable(to.err, &args.destination, &error)?;
            return Ok(Exit::Usage);
        }
    };
    let question = why_session::Question {
        session: &args.subject,
        host: &host,
        port,
        audit_file: args.audit_file.clone(),
        format: args.format,
    };
    why_session::run(&question, to.out)
}

/// Runs `worker policy test`.
///
/// # Errors
/// If a stream cannot be written.
pub fn run_test(
    resolver: &Resolver<'_>,
    file: Option<&str>,
    words: &[String],
    format: ReportFormat,
    to: &mut Streams<'_>,
) -> io::Result<Exit> {
    let (policy, destinations) = match (file, words.split_first()) {
        (Some(file), _) => (file, words),
        (None, Some((policy, rest))) => (policy.as_str(), rest),
        (None, None) => ("", words),
    };
    if destinations.is_empty() {
        writeln!(to.err, "error: no destination to test")?;
        writeln!(to.err, "hint: worker policy test NAME|FILE HOST[:PORT]…")?;
        return Ok(Exit::Usage);
    }
    let tested = match test(resolver, policy, destinations, to)? {
        Ok(tested) => tested,
        Err(exit) => return Ok(exit),
    };
    let answers = tested.answers();
    match format {
        ReportFormat::Text => {
            for answer in &answers {
                writeln!(to.out, "{}", answer.line(&tested.policy))?;
            }
        }
        ReportFormat::Json => {
            let results: Vec<Value> =
                answers.iter().map(|answer| answer.json(&tested.policy)).collect();
            let document = json!({
                "schema": "stockade.policy.test",
                "schema_version": 1,
                "policy": tested.policy.name,
                "digest": tested.policy.digest_hex(),
                "results": results,
            });
            writeln!(to.out, "{document:#}")?;
        }
    }
    let denied = answers.iter().any(|answer| answer.exit() == Exit::Denied);
    Ok(if denied { Exit::Denied } else { Exit::Success })
}

/// A policy, its rules and what is asked of them.
struct Tested {
    policy: Policy,
    rules: Rules,
    destinations: Vec<Destination>,
}

fn unreadable(err: &mut dyn io::Write, word: &str, error: &RuleError) -> io::Result<()> {
    let word = word.escape_debug();
    writeln!(err, "error: cannot read destination `{word}`: {error}")?;
    writeln!(err, "hint: write HOST:PORT, such as api.example.com:443")
}

/// Reads policy and destinations; the exit code of what was printed if one of them is wrong.
fn test(
    resolver: &Resolver<'_>,
    policy: &str,
    words: &[String],
    to: &mut Streams<'_>,
) -> io::Result<Result<Tested, Exit>> {
    let mut destinations = Vec::new();
    for word in words {
        match word.parse() {
            Ok(destination) => destinations.push(destination),
            Err(error) => {
                unreadable(to.err, word, &error)?;
                return Ok(Err(Exit::Usage));
            }
        }
    }
    match resolver.resolve(policy).and_then(timely) {
        Ok(policy) => {
            let rules = policy.network.rules();
            Ok(Ok(Tested { policy, rules, destinations }))
        }
        Err(error) => complain(to.err, &error).map(|()| Err(Exit::Policy)),
    }
}

impl Tested {
    fn answers(&self) -> Vec<Answer<'_>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let none = self.policy.network.mode.value == NetworkMode::None;
        let answer = |to| {
            let verdict = self.rules.test(to, now);
            let nearest = match verdict {
                Verdict::Deny(_) => self.rules.nearest(to),
                Verdict::Allow(_) => None,
            };
            // Report mode is told apart from a network that there is not: it has no rules either.
            let verdict = if none { Verdict::Deny(DenyReason::NoRule) } else { verdict };
            Answer { to, verdict, nearest, none }
        };
        self.destinations.iter().map(answer).collect()
    }
}

/// What is said of one destination.
struct Answer<'a> {
    to: &'a Destination,
    verdict: Verdict<'a>,
    nearest: Option<Nearest<'a>>,
    /// The policy has no network at all.
    none: bool,
}

impl Answer<'_> {
    fn exit(&self) -> Exit {
        match self.verdict {
            Verdict::Allow(_) => Exit::Success,
            Verdict::Deny(_) => Exit::Denied,
        }
    }

    /// Why it is denied, in a few words.
    fn reason(&self, policy: &Policy, reason: DenyReason) -> String {
        match (self.none, &self.to.host, reason) {
            (true, ..) => {
                format!("the policy has no network, set at {}", policy.network.mode.origin)
            }
            (false, Host::Name(name), DenyReason::NoRule) if name.is_localhost() => {
                "in a jail this is the jail itself".to_owned()
            }
            (false, Host::Address(address), DenyReason::DirectAddress) => {
                match AddressClass::of(*address) {
                    AddressClass::Public => reason.to_string(),
                    class => format!("no rule lists this {class} address"),
                }
            }
            (false, Host::Address(_), DenyReason::Address(class)) => {
                format!("no rule with `private = true` lists this {class} address")
            }
            (false, ..) => reason.to_string(),
        }
    }

    /// What would have to be changed; `None` if no rule is suggested for it.
    fn fix(&self, policy: &Policy, reason: DenyReason) -> Option<String> {
        let entry = self.to.narrowest_rule(reason)?;
        let shipped = SHIPPED.iter().find(|shipped| shipped.name == policy.name);
        Some(
            match (self.none, shipped) {
                (true, _) => {
                    format!("use a policy with a network, and `network.allow = [{entry}]`")
                }
                (false, Some(shipped)) => format!(
                    "a policy with `extends = \"{}\"` and `network.allow = [{entry}]`",
                    shipped.name
                ),
                (false, None) => format!("add {entry} to `network.allow`"),
            } + self.warning(),
        )
    }

    /// What whoever opens it should know.
    fn warning(&self) -> &'static str {
        match &self.to.host {
            Host::Name(name) if name.is_localhost() => "; that is the host's own loopback",
            _ => "",
        }
    }

    /// One line.
    fn line(&self, policy: &Policy) -> String {
        let to = self.to;
        match self.verdict {
            Verdict::Allow(allowed) => {
                format!("ALLOWED {to} by {}; {}", by(&allowed), carries(&allowed))
            }
            Verdict::Deny(reason) => {
                let mut text = format!("DENIED {to}: {}", self.reason(policy, reason));
                if let Some(near) = &self.nearest {
                    let (rule, place) = (&near.rule.rule, &near.rule.origin);
                    text += &format!("; nearest rule `{rule}` ({place}): {}", near.difference);
                }
                match self.fix(policy, reason) {
                    Some(fix) => text + &format!("; narrowest fix: {fix}"),
                    None => text + "; no rule is suggested for it",
                }
            }
        }
    }

    /// Sentences, each on a line.
    fn explained(&self, policy: &Policy) -> String {
        let to = self.to;
        match self.verdict {
            Verdict::Allow(allowed) => {
                let addresses = match (&to.host, allowed.private) {
                    (Host::Address(_), _) => "",
                    (Host::Name(_), true) => {
                        "Its addresses are looked up and checked when it is connected to; private \
                         and loopback ones are allowed too.\n"
                    }
                    (Host::Name(_), false) => {
                        "Its addresses are looked up and checked when it is connected to; only \
                         public ones are dialled.\n"
                    }
                };
                let (by, carries) = (by(&allowed), carries(&allowed));
                format!("ALLOWED {to} by {by}.\nIt may carry {carries}.\n{addresses}")
            }
            Verdict::Deny(reason) => {
                let default = if self.none { "" } else { " by default" };
                let mut text = format!("DENIED{default} {to}: {}.\n", self.reason(policy, reason));
                if let Some(near) = &self.nearest {
                    let (rule, place) = (&near.rule.rule, &near.rule.origin);
                    text += &format!(
                        "Nearest rule `{rule}` ({place}) does not match: {}.\n",
                        near.difference
                    );
                }
                match self.fix(policy, reason) {
                    Some(fix) => text + &format!("Narrowest fix: {fix}.\n"),
                    None => text + "No rule is suggested for it.\n",
                }
            }
        }
    }

    fn json(&self, policy: &Policy) -> Value {
        let mut document = json!({
            "destination": self.to.to_string(),
            "host": self.to.host.to_string(),
            "port": self.to.port,
        });
        match self.verdict {
            Verdict::Allow(allowed) => {
                document["verdict"] = "allowed".into();
                document["rule"] = allowed.rule.map(|listed| listed.rule.to_string()).into();
                document["at"] = allowed.rule.map(|listed| listed.origin.clone()).into();
                document["private"] = allowed.private.into();
                document["carries"] = carries(&allowed).into();
            }
            Verdict::Deny(reason) => {
                document["verdict"] = "denied".into();
                document["reason"] = self.reason(policy, reason).into();
                document["nearest"] = match &self.nearest {
                    None => Value::Null,
                    Some(near) => json!({
                        "rule": near.rule.rule.to_string(),
                        "at": near.rule.origin,
                        "difference": near.difference.to_string(),
                    }),
                };
                document["narrowest_rule"] = self.to.narrowest_rule(reason).into();
            }
        }
        document
    }
}

/// The rule and its place.
fn by(allowed: &Allowed<'_>) -> String {
    match allowed.rule {
        Some(listed) => format!("`{}` ({})", listed.rule, listed.origin),
        None => "report mode: no rule names it".to_owned(),
    }
}

/// What connections may carry.
fn carries(allowed: &Allowed<'_>) -> String {
    let content = allowed.content;
    match (content.unchecked, content.other, content.tls, content.http) {
        (true, ..) => format!("anything, unchecked ({})", Protocol::Tcp),
        (false, true, ..) => format!(
            "TLS and HTTP that name the host, and anything that is neither ({})",
            Protocol::Auto
        ),
        (false, false, true, true) => "TLS and HTTP that name the host".to_owned(),
        (false, false, true, false) => format!("TLS that names the host ({})", Protocol::Tls),
        (false, false, false, _) => format!("HTTP that names the host ({})", Protocol::Http),
    }
}

/// A reader such as `head` has seen enough.
fn heard(code: io::Result<Exit>) -> anyhow::Result<Exit> {
    match code {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Success),
        code => code.context("cannot write the output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        why: WhyArgs,
    }

    const POLICY: &str = "schema = 1\n[network]\nallow = [\"*.partner.example:8443\", \
                          \"api.example.com\", { rule = \"10.0.0.0/8:5432\", private = true }]\n\
                          presets = [\"python\"]\n";

    /// Runs `worker why POLICY WORD` or, with more than one word, `worker policy test`.
    fn why(text: &str, words: &[&str], format: &str) -> (Exit, String, String) {
        let folder = tempfile::tempdir().expect("a scratch directory");
        let file = folder.path().join("p.toml").display().to_string();
        std::fs::write(&file, text).expect("a file");
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut streams = Streams { out: &mut out, err: &mut err };
        let format = format!("--format={format}");
        let code = match words {
            [word] => {
                let words = ["why", &format, &file, word];
                let cli = Cli::try_parse_from(words).expect("arguments");
                run(&cli.why, &["base"], streams).expect("streams can be written")
            }
            words => {
                let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
                let load = &read_policy_file;
                let resolver = Resolver { groups: &["base"], directories: &[], load };
                let format = match format.ends_with("json") {
                    true => ReportFormat::Json,
                    false => ReportFormat::Text,
                };
                run_test(&resolver, Some(&file), &words, format, &mut streams).expect("written")
            }
        };
        let shown = |bytes| String::from_utf8(bytes).expect("UTF-8").replace(&file, "p.toml");
        (code, shown(out), shown(err))
    }

    #[test]
    fn a_denial_is_explained_with_the_nearest_rule_and_the_narrowest_fix() {
        let (code, out, err) = why(POLICY, &["api.partner.example:443"], "text");
        assert_eq!((code, err.as_str()), (Exit::Denied, ""));
        assert_eq!(
            out,
            "DENIED by default api.partner.example:443: a rule names this host with another port.\n\
             Nearest rule `*.partner.example:8443` (p.toml:3:10) does not match: rule allows port \
             8443.\nNarrowest fix: add \"api.partner.example:443\" to `network.allow`.\n"
        );
        #[rustfmt::skip]
        let cases = [
            ("169.254.169.254:80", "no rule lists this metadata address", "No rule is suggested for it"),
            ("10.9.8.7:80", "a rule names this host with another port", ", private = true } to `network.allow`"),
            ("localhost:80", "in a jail this is the jail itself", "; that is the host's own loopback"),
        ];
        for (to, reason, end) in cases {
            let (code, out, _) = why(POLICY, &[to], "text");
            assert_eq!(code, Exit::Denied);
            assert!(out.starts_with(&format!("DENIED by default {to}: {reason}.\n")), "{out}");
            assert!(out.ends_with(&format!("{end}.\n")), "{out}");
        }
        let (code, out, _) = why(POLICY, &["198.18.0.1:443"], "text");
        assert_eq!(code, Exit::Denied);
        assert!(out.ends_with("No rule is suggested for it.\n"), "{out}");
    }

    #[test]
    fn an_allowed_destination_is_explained_with_its_rule() {
        let (code, out, _) = why(POLICY, &["API.example.com."], "text");
        assert_eq!(code, Exit::Success);
        assert_eq!(
            out,
            "ALLOWED api.example.com:443 by `api.example.com:443` (p.toml:3:36).\nIt may carry TLS \
             that names the host (tls).\nIts addresses are looked up and checked when it is \
             connected to; only public ones are dialled.\n"
        );
        let (code, out, _) = why(POLICY, &["pypi.org"], "json");
        let json: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!((code, &json["answer"]["verdict"]), (Exit::Success, &json!("allowed")));
        let place = json["answer"]["at"].as_str().expect("a place");
        assert!(place.starts_with("policies/presets/python.toml:"), "{place}");
    }

    #[test]
    fn a_test_has_a_line_for_each_destination_and_fails_if_one_is_denied() {
        let words = ["api.example.com:443", "10.1.2.3:5432"];
        let (code, out, _) = why(POLICY, &words, "text");
        assert_eq!((code, out.lines().count()), (Exit::Success, 2), "{out}");
        let words = ["api.example.com:443", "10.1.2.3:22", "partner.example:8443"];
        let (code, out, err) = why(POLICY, &words, "text");
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!((code, lines.len(), err.as_str()), (Exit::Denied, 3, ""), "{out}");
        assert!(lines[0].starts_with(
            "ALLOWED api.example.com:443 by `api.example.com:443` (p.toml:3:36); TLS"
        ));
        assert_eq!(
            lines[1],
            "DENIED 10.1.2.3:22: a rule names this host with another port; nearest rule \
             `10.0.0.0/8:5432` (p.toml:3:55): rule allows port 5432; narrowest fix: add { rule = \
             \"10.1.2.3:22\", private = true } to `network.allow`"
        );
        let (code, out, _) = why(POLICY, &words, "json");
        let json: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!((code, &json["results"][2]["verdict"]), (Exit::Denied, &json!("denied")));
        assert_eq!(json["results"][2]["nearest"]["rule"], "*.partner.example:8443");
        assert_eq!(
            json["results"][1]["narrowest_rule"],
            "{ rule = \"10.1.2.3:22\", private = true }"
        );
    }

    #[test]
    fn what_cannot_be_asked_is_told_apart_from_what_is_denied() {
        for word in ["https://a.test/x", "*.a.test:443", "a.test:0", "10.0.0.0/8:443", ""] {
            let (code, out, err) = why(POLICY, &[word], "text");
            assert_eq!((code, out.as_str()), (Exit::Usage, ""), "{word}: {err}");
            assert!(err.starts_with("error: cannot read destination `"), "{err}");
        }
        let (code, _, err) = why("schema = 1\nnetwork.allow = [\"*\"]", &["a.test"], "text");
        assert_eq!(code, Exit::Policy, "{err}");
        let far = "schema = 1\nnetwork = { mode = \"report\", expires = \"9998-01-01T00:00:00Z\" }";
        let (code, _, err) = why(far, &["a.test"], "text");
        assert_eq!(code, Exit::Policy);
        assert!(err.contains("report mode lasts at most 30 days"), "{err}");
        let (code, _, err) = why(POLICY, &[], "text");
        assert_eq!((code, err.lines().count()), (Exit::Usage, 2), "{err}");
    }

    #[test]
    fn a_policy_without_a_network_says_so() {
        let (code, out, _) = why("schema = 1\nnetwork.mode = \"none\"", &["a.test"], "text");
        assert_eq!(code, Exit::Denied);
        assert!(
            out.starts_with("DENIED a.test:443: the policy has no network, set at p.toml:2:16."),
            "{out}"
        );
        let (code, out, _) = why("schema = 1\nname = \"default\"", &["a.test"], "text");
        assert_eq!(code, Exit::Denied);
        assert!(
            out.contains("`extends = \"default\"` and `network.allow = [\"a.test:443\"]`"),
            "{out}"
        );
    }
}
