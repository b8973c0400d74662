//! `worker policy …`: shows, checks and describes policies.
//!
//! Runs unprivileged and starts nothing. This is the one place where policy files are read from
//! disk; their meaning is decided in `stockade_runtime::policy`, which does no I/O.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::policy_choice::PolicyDirectories;
use super::{presets, why};
use crate::exit::Exit;
use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use stockade_runtime::policy::network::{EgressRule, PRESETS, Preset};
use stockade_runtime::policy::{
    Origins, Policy, PolicyError, Resolver, SHIPPED, Setting, json_schema,
};

/// One byte more than the runtime accepts, so that it can say how much is too much.
const BYTES_MAX: u64 = (1 << 20) + 1;
/// Most files of a policy directory that `list` names.
const LISTED_MAX: usize = 1_000;

/// Show, check and describe policies
#[derive(Debug, Args)]
pub struct PolicyArgs {
    #[command(flatten)]
    pub places: PolicyDirectories,

    /// What to do
    #[command(subcommand)]
    pub command: PolicyCommand,
}

/// The verbs of `worker policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print a policy as written, or all that it means
    ///
    /// What a jail under it can reach stands below, as comments: each destination with the rule and the
    /// file it comes from, those of presets included.
    Show {
        /// Print every value in force, inherited ones included
        ///
        /// The output is a policy file of its own that means the same.
        #[arg(long)]
        effective: bool,
        /// Print where each value was written; implies --effective
        #[arg(long)]
        origin: bool,
        /// Choose the output format [default: toml]
        #[arg(long, value_name = "FORMAT", default_value = "toml", hide_default_value = true)]
        format: ShowFormat,
        /// Name of a policy, or a file: what holds a `/` or ends in `.toml`
        #[arg(value_name = "NAME|FILE")]
        policy: String,
    },
    /// Check policies and everything they extend
    ///
    /// Prints `ok` and the digest of each valid policy. Exits 3 if one is not valid.
    Check {
        /// Choose the output format [default: text]
        #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true)]
        format: ReportFormat,
        /// Names of policies, or files
        #[arg(value_name = "NAME|FILE", required = true)]
        policies: Vec<String>,
    },
    /// Test whether a policy lets a jail reach destinations
    ///
    /// Prints one line for each: the rule that allows it, or the reason, the nearest rule and the
    /// narrowest fix. Nothing is connected to and no name is looked up. Exits 0 if all are allowed,
    /// 1 if one is denied.
    #[command(
        override_usage = "worker policy test [OPTIONS] <NAME|FILE> <HOST[:PORT]>...\n       \
                                worker policy test [OPTIONS] -f <NAME|FILE> <HOST[:PORT]>..."
    )]
    Test {
        /// Choose the output format [default: text]
        #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true)]
        format: ReportFormat,
        /// Test this policy; all other words are then destinations
        #[arg(short = 'f', long = "file", value_name = "NAME|FILE")]
        file: Option<String>,
        /// Name of a policy, or a file; then destinations, port 443 if none is written
        #[arg(value_name = "NAME|FILE|HOST[:PORT]", required = true)]
        words: Vec<String>,
    },
    /// List the presets of egress rules, or print one
    ///
    /// A preset allows nothing until a policy names it in `network.presets`.
    Presets {
        /// Choose the output format [default: text]
        #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true)]
        format: ReportFormat,
        /// Print this preset
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
    /// Print the JSON Schema of policy files
    Schema,
    /// Print the narrowest rules for what sessions were refused
    ///
    /// Reads the audit log and prints a policy with exact names and ports, for a person to read and
    /// shorten; wildcards only as comments. Never suggests private addresses or metadata services.
    /// What report mode let through counts as refused. Exits 8 if the log does not verify.
    Suggest(super::suggest::SuggestArgs),
    /// List the shipped policies and those in the policy directories
    List {
        /// Choose the output format [default: text]
        #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true)]
        format: ReportFormat,
    },
}

/// How a policy is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ShowFormat {
    /// A policy file.
    Toml,
    /// One JSON document.
    Json,
}

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// Lines for people.
    Text,
    /// One JSON document.
    Json,
}

/// Where data and diagnostics go.
pub struct Streams<'a> {
    /// Data.
    pub out: &'a mut dyn Write,
    /// Everything else.
    pub err: &'a mut dyn Write,
}

/// Runs `worker policy`. `groups` is the catalogue of system call groups.
///
/// # Errors
/// Only if a stream cannot be written; a policy that is not valid is an exit code.
pub fn run(args: &PolicyArgs, groups: &[&str], mut to: Streams<'_>) -> anyhow::Result<Exit> {
    let resolver =
        Resolver { groups, directories: &args.places.directories, load: &read_policy_file };
    let code = match &args.command {
        PolicyCommand::Show { effective, origin, format, policy } => {
            let origins = if *origin { Origins::Show } else { Origins::Hide };
            let text = match *effective || *origin {
                true => {
                    resolver.resolve(policy).map(|policy| effective_text(&policy, origins, *format))
                }
                false => written_text(&resolver, policy, *format),
            };
            let text = text.map(|text| match (format, resolver.resolve(policy)) {
                (ShowFormat::Toml, Ok(policy)) => text + &reachable(&policy),
                // A policy that is not valid can still be read.
                _ => text,
            });
            match text {
                Ok(text) => to.out.write_all(text.as_bytes()).map(|()| Exit::Success),
                Err(error) => complain(to.err, &error).map(|()| Exit::Policy),
            }
        }
        PolicyCommand::Check { format, policies } => check(&resolver, policies, *format, &mut to),
        PolicyCommand::Test { format, file, words } => {
            why::run_test(&resolver, file.as_deref(), words, *format, &mut to)
        }
        PolicyCommand::Presets { format, name } => show_presets(name.as_deref(), *format, &mut to),
        PolicyCommand::Schema => writeln!(to.out, "{:#}", json_schema()).map(|()| Exit::Success),
        PolicyCommand::Suggest(args) => match super::suggest::text(args) {
            Ok(text) => to.out.write_all(text.as_bytes()).map(|()| Exit::Success),
            Err(exit) => Ok(exit),
        },
        PolicyCommand::List { format } => to
            .out
            .write_all(list(&args.places.directories, *format).as_bytes())
            .map(|()| Exit::Success),
    };
    match code {
        // A reader such as `head` has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Success),
        code => code.context("cannot write the output"),
    }
}

/// Reads a policy file for the runtime, at most 1 MiB and a byte of it.
///
/// # Errors
/// If it cannot be read, is no regular file, is not UTF-8, or may be written by every user: who
/// writes the policy decides what a jail may do.
pub fn read_policy_file(path: &Path) -> io::Result<String> {
    // O_NONBLOCK: opening a FIFO must fail below, not wait for a writer.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    read_policy(OpenOptions::new().read(true).custom_flags(flags).open(path)?)
}

/// Reads a policy file that has been opened.
///
/// # Errors
/// As [`read_policy_file`].
pub fn read_policy(file: File) -> io::Result<String> {
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if meta.mode() & 0o002 != 0 {
        let reason = "every user may write the file; take that right away with `chmod o-w`";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    let mut text = String::new();
    file.take(BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Passes a policy on if its report mode ends in time by the clock of this host. Whoever takes a
/// policy into use asks.
///
/// # Errors
/// [`PolicyError::Refused`].
pub fn timely(policy: Policy) -> Result<Policy, PolicyError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    policy.network.ends_in_time(now).map(|()| policy)
}

/// Prints an error with its causes, and the remedy on a line of its own.
///
/// # Errors
/// If the stream cannot be written.
pub fn complain(err: &mut dyn Write, error: &PolicyError) -> io::Result<()> {
    writeln!(err, "error: {}", chain(error))?;
    match error.hint() {
        Some(hint) => writeln!(err, "hint: {hint}"),
        None => Ok(()),
    }
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn effective_text(policy: &Policy, origins: Origins, format: ShowFormat) -> String {
    match format {
        ShowFormat::Toml => policy.to_toml(origins),
        ShowFormat::Json => format!("{:#}\n", policy.to_json(origins)),
    }
}

/// What a jail under `policy` may reach, with the place of each rule, as comments.
fn reachable(policy: &Policy) -> String {
    let rules = policy.network.all_rules();
    if rules.is_empty() {
        return String::new();
    }
    let private = |rule: &EgressRule| if rule.private { ", private addresses too" } else { "" };
    let lines = rules.iter().map(|Setting { value, origin }| {
        format!("#   {value} ({}{}) by {origin}\n", value.protocol.name(), private(value))
    });
    format!("\n# Reachable, and by which rule:\n{}", lines.collect::<String>())
}

/// The file itself. JSON has no comments, so it has the values that are written and no more.
fn written_text(
    resolver: &Resolver<'_>,
    policy: &str,
    format: ShowFormat,
) -> Result<String, PolicyError> {
    let source = resolver.source(policy)?;
    match format {
        ShowFormat::Toml if source.text.ends_with('\n') => Ok(source.text),
        ShowFormat::Toml => Ok(source.text + "\n"),
        ShowFormat::Json => {
            let document = json!({
                "schema": "stockade.policy.written",
                "schema_version": 1,
                "file": source.file,
                "policy": source.to_json()?,
            });
            Ok(format!("{document:#}\n"))
        }
    }
}

fn check(
    resolver: &Resolver<'_>,
    policies: &[String],
    format: ReportFormat,
    to: &mut Streams<'_>,
) -> io::Result<Exit> {
    let mut results = Vec::new();
    let mut code = Exit::Success;
    for reference in policies {
        let resolved = resolver.resolve(reference).and_then(timely);
        if resolved.is_err() {
            code = Exit::Policy;
        }
        match (resolved, format) {
            (Ok(policy), ReportFormat::Text) => {
                writeln!(to.out, "{reference}: ok {}", policy.digest_hex())?;
            }
            (Err(error), ReportFormat::Text) => complain(to.err, &error)?,
            (Ok(policy), ReportFormat::Json) => results.push(json!({
                "policy": reference,
                "ok": true,
                "name": policy.name,
                "digest": policy.digest_hex(),
                "sources": policy.sources,
            })),
            (Err(error), ReportFormat::Json) => results.push(json!({
                "policy": reference,
                "ok": false,
                "error": chain(&error),
                "hint": error.hint(),
                "at": error.at(),
                "key": error.key(),
            })),
        }
    }
    if format == ReportFormat::Json {
        let document = json!({
            "schema": "stockade.policy.check",
            "schema_version": 1,
            "results": results,
        });
        writeln!(to.out, "{document:#}")?;
    }
    Ok(code)
}

fn list(directories: &[PathBuf], format: ReportFormat) -> String {
    let shipped = SHIPPED.iter().map(|policy| (policy.name.to_owned(), policy.purpose.to_owned()));
    let own: Vec<(String, String)> =
        directories.iter().flat_map(|directory| policies_in(directory)).take(LISTED_MAX).collect();
    match format {
        ReportFormat::Text => {
            shipped.chain(own).map(|(name, what)| format!("{name:<12}  {what}\n")).collect()
        }
        ReportFormat::Json => {
            let shipped =
                shipped.map(|(name, purpose)| json!({ "name": name, "purpose": purpose }));
            let own = own.into_iter().map(|(name, file)| json!({ "name": name, "file": file }));
            let document = json!({
                "schema": "stockade.policy.list",
                "schema_version": 1,
                "policies": shipped.chain(own).collect::<Vec<Value>>(),
            });
            format!("{document:#}\n")
        }
    }
}

fn show_presets(
    name: Option<&str>,
    format: ReportFormat,
    to: &mut Streams<'_>,
) -> io::Result<Exit> {
    let Some(name) = name else {
        return to.out.write_all(presets::list(format).as_bytes()).map(|()| Exit::Success);
    };
    match Preset::find(name) {
        Some(preset) => {
            to.out.write_all(presets::show(preset, format).as_bytes()).map(|()| Exit::Success)
        }
        None => {
            let known: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
            let (name, known) = (name.escape_debug(), known.join(", "));
            writeln!(to.err, "error: cannot find preset `{name}`: known are {known}")?;
            Ok(Exit::Usage)
        }
    }
}

/// Names and files of the policies in a directory; none if it cannot be read, as is usual for the
/// default directory.
fn policies_in(directory: &Path) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<(String, String)> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .filter_map(|path| {
            let name = path.file_stem()?.to_str()?.to_owned();
            let shipped = SHIPPED.iter().any(|policy| policy.name == name);
            (!shipped).then(|| (name, path.display().to_string()))
        })
        .take(LISTED_MAX)
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        policy: PolicyArgs,
    }

    /// Runs `worker policy ARGS` in a directory of its own that holds `files`.
    fn policy(test: &str, files: &[(&str, &str)], args: &[&str]) -> (Exit, String, String) {
        let folder = std::env::temp_dir().join(format!("policy-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a scratch directory");
        for (name, text) in files {
            std::fs::write(folder.join(name), text).expect("a file");
        }
        let shown = folder.display().to_string();
        let args = args.iter().map(|arg| arg.replace("DIR", &shown));
        let own = ["policy".to_owned(), format!("--policy-dir={shown}")];
        let cli = Cli::try_parse_from(own.into_iter().chain(args)).expect("arguments");
        let groups: Vec<String> = groups_of_build();
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let streams = Streams { out: &mut out, err: &mut err };
        let code = run(&cli.policy, &groups, streams).expect("streams can be written");
        std::fs::remove_dir_all(&folder).expect("the scratch directory");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8").replace(&shown, "DIR");
        (code, text(out), text(err))
    }

    /// The widest shipped policy names every group that the others name.
    fn groups_of_build() -> Vec<String> {
        let build = SHIPPED.iter().find(|policy| policy.name == "build").expect("shipped");
        let list = build.text.split("groups = [").nth(1).expect("groups");
        let list = list.split(']').next().expect("a list");
        list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn show_prints_a_shipped_policy_as_written() {
        for shipped in SHIPPED {
            let (code, out, err) = policy("written", &[], &["show", shipped.name]);
            assert_eq!((code, out.as_str(), err.as_str()), (Exit::Success, shipped.text, ""));
        }
        let (_, out, _) = policy("written-json", &[], &["show", "--format", "json", "offline"]);
        let json: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(json["policy"]["extends"], "default");
    }

    #[test]
    fn show_effective_with_origins_tells_file_line_and_column() {
        let file = [("mine.toml", "schema = 1\nextends = \"default\"\nprocess.pids = 9\n")];
        let (code, out, _) =
            policy("effective", &file, &["show", "--effective", "--origin", "mine"]);
        assert_eq!(code, Exit::Success);
        assert!(out.contains("\npids = 9 # DIR/mine.toml:3:16\n"), "{out}");
        assert!(out.contains("\nmemory = \"2GiB\" # policies/default.toml:"), "{out}");
        let again = [("again.toml", out.as_str())];
        let (_, once, _) = policy("effective", &file, &["check", "mine"]);
        let (_, twice, _) = policy("effective-again", &again, &["check", "DIR/again.toml"]);
        let digest = |text: &str| text.split("ok ").nth(1).map(str::to_owned);
        assert_eq!(digest(&once), digest(&twice));
        let (_, out, _) =
            policy("effective-json", &file, &["show", "--origin", "--format=json", "mine"]);
        let json: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(json["origins"]["process.pids"], "DIR/mine.toml:3:16");
    }

    #[test]
    fn show_tells_what_can_be_reached_and_by_which_file() {
        let text = "schema = 1\nextends = \"default\"\n[network]\nallow = [\"a.example.com\"]\n\
                    presets = [\"python\"]\n";
        let files = [("net.toml", text), ("none.toml", "schema = 1\nextends = \"default\"\n")];
        for options in [&["show"][..], &["show", "--effective"]] {
            let args = |name| [options, &[name]].concat();
            let (_, out, _) = policy("reachable", &files, &args("net"));
            assert!(out.contains("#   a.example.com:443 (tls) by DIR/net.toml:4:10\n"), "{out}");
            assert!(
                out.contains("#   pypi.org:443 (tls) by policies/presets/python.toml:"),
                "{out}"
            );
            let (_, out, _) = policy("not-reachable", &files, &args("none"));
            assert!(!out.contains("Reachable"), "{out}");
        }
    }

    #[test]
    fn check_names_every_invalid_policy_and_exits_3() {
        let files = [
            ("wide.toml", "schema = 1\nextends = \"default\"\nprocess.pids = 2000\n"),
            ("typo.toml", "schema = 1\n[process]\npid = 1\n"),
        ];
        let args = ["check", "default", "wide", "DIR/typo.toml"];
        let (code, out, err) = policy("check", &files, &args);
        assert_eq!(code, Exit::Policy);
        assert!(out.starts_with("default: ok sha256:") && out.lines().count() == 1, "{out}");
        assert!(err.contains("error: DIR/wide.toml:3:16: cannot set `process.pids` to 2000: "));
        assert!(err.contains("hint: did you mean `pids`?\n"), "{err}");
        let (code, out, err) = policy("check-json", &files, &["check", "--format=json", "wide"]);
        let json: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!((code, err.as_str()), (Exit::Policy, ""));
        assert_eq!(json["results"][0]["at"]["line"], 3);
        assert_eq!(json["results"][0]["key"], "process.pids");
    }

    #[test]
    fn files_that_are_no_policy_are_refused_with_the_reason() {
        use std::os::unix::fs::PermissionsExt;
        let (code, _, err) = policy("directory", &[], &["check", "DIR/"]);
        assert_eq!(code, Exit::Policy);
        assert!(err.contains("not a regular file"), "{err}");
        let (_, _, err) = policy("missing", &[], &["show", "DIR/none.toml"]);
        assert!(err.contains("cannot read policy DIR/none.toml: No such file"), "{err}");
        let path = std::env::temp_dir().join(format!("open-{}.toml", std::process::id()));
        std::fs::write(&path, "schema = 1").expect("a file");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).expect("a mode");
        let refused = read_policy_file(&path).expect_err("writable by all");
        std::fs::remove_file(&path).expect("the file");
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn test_takes_the_policy_as_a_word_or_as_an_option() {
        let files = [("p.toml", "schema = 1\nnetwork.allow = [\"a.test\"]")];
        for args in [["test", "p", "a.test:443"].as_slice(), &["test", "-f", "p", "a.test"]] {
            let (code, out, _) = policy("test", &files, args);
            assert_eq!(code, Exit::Success);
            assert!(
                out.starts_with("ALLOWED a.test:443 by `a.test:443` (DIR/p.toml:2:18)"),
                "{out}"
            );
        }
        let (code, out, _) = policy("test-denied", &files, &["test", "p", "a.test", "b.test"]);
        assert_eq!((code, out.lines().count()), (Exit::Denied, 2));
        let (code, _, err) = policy("test-none", &files, &["test", "p"]);
        assert_eq!(code, Exit::Usage, "{err}");
        let (code, _, err) = policy("test-unknown", &files, &["test", "nobody", "a.test"]);
        assert_eq!(code, Exit::Policy, "{err}");
        let (code, out, _) = policy("presets", &[], &["presets", "python"]);
        assert_eq!((code, out.contains("pypi.org:443")), (Exit::Success, true));
        let (code, _, err) = policy("presets-unknown", &[], &["presets", "cobol"]);
        assert_eq!((code, err.contains("git-hosts, node")), (Exit::Usage, true), "{err}");
    }

    #[test]
    fn list_and_schema_are_data() {
        let files = [("team.toml", "schema = 1"), ("default.toml", "schema = 1")];
        let (_, out, _) = policy("list", &files, &["list"]);
        assert!(
            out.starts_with("base  ") && out.contains("\nteam          DIR/team.toml\n"),
            "{out}"
        );
        assert!(!out.contains("DIR/default.toml"), "a shipped name cannot be taken over: {out}");
        let (_, out, _) = policy("schema", &[], &["schema"]);
        let json: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(json["required"], json!(["schema"]));
    }
}
