//! `worker stage …`: what a policy's staging rules mean for some metadata, and with `--fetch` what they
//! bring. Starts no jail, lays nothing and needs no rights but those to read what is named.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use secrecy::SecretString;
use serde_json::{Value, json};
use stockade_runtime::policy::Policy;
use stockade_runtime::policy::stage::{StageDigest, StageKind, StageRule};
use tokio::time::Instant;

use super::policy::{self, ReportFormat};
use super::policy_choice::PolicyChoice;
use crate::config::stage::open_now;
use crate::config::{self, Config};
use crate::exit::Exit;
use crate::explain;
use crate::progress::{size, visible};
use crate::stage::{Budget, Fault, Git, Prepared, Room, Roots, Stager, Wanted, told, wanted};

/// Longest time for everything that `--fetch` fetches.
const FETCH_MAX: Duration = Duration::from_secs(1_800);

/// Check what a policy's staging rules bring into workspaces
#[derive(Debug, Args)]
pub struct StageArgs {
    /// What to do
    #[command(subcommand)]
    command: StageCommand,
}

#[derive(Debug, Subcommand)]
enum StageCommand {
    /// Say what would be fetched for some metadata, and why not
    ///
    /// One line for each rule `[[stage]]` of the policy: from which host, to which path, or the reason
    /// why the metadata is refused. Nothing is connected to unless --fetch is given. Exits 1 if an input
    /// that a session needs could not be had.
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    policy: PolicyChoice,

    /// Metadata of the session; may be given more than once
    #[arg(short, long, value_name = "KEY=VALUE")]
    metadata: Vec<String>,

    /// Fetch everything, check digests, print them, and throw it all away
    #[arg(long)]
    fetch: bool,

    /// Read credentials that FILE names, as `worker poll --config` does
    #[arg(long, value_name = "FILE", env = "WORKER_CONFIG", hide_env = true)]
    config: Option<PathBuf>,

    /// Trust the certificate authorities in FILE (PEM) as well as the system's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Choose the output format [default: text]
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true)]
    format: ReportFormat,
}

/// What is known about one rule.
struct Line {
    rule: StageRule,
    host: Option<String>,
    outcome: Outcome,
}

enum Outcome {
    Would,
    Fetched { sha256: String, bytes: u64, commit: Option<String> },
    Failed { class: &'static str, reason: String },
}

/// Runs `worker stage`.
pub fn run(args: &StageArgs) -> anyhow::Result<Exit> {
    let StageCommand::Check(args) = &args.command;
    let policy = match args.policy.resolve(&policy::read_policy_file) {
        Ok(policy) => policy,
        Err(error) => {
            policy::complain(&mut io::stderr(), &error)?;
            return Ok(Exit::Policy);
        }
    };
    let mut metadata = BTreeMap::new();
    for pair in &args.metadata {
        let Some((key, value)) = pair.split_once('=') else {
            explain::say("error: --metadata is written as KEY=VALUE");
            return Ok(Exit::Usage);
        };
        metadata.insert(key.to_owned(), value.to_owned());
    }
    let asked: Vec<(StageRule, Result<Wanted, Fault>)> = policy
        .stage
        .rules
        .iter()
        .map(|rule| (rule.clone(), wanted(rule, &metadata).map_err(Fault::from)))
        .collect();
    let lines = match args.fetch {
        true => match fetch(args, &policy, asked)? {
            Ok(lines) => lines,
            Err(exit) => return Ok(exit),
        },
        false => asked.into_iter().map(|(rule, wanted)| looked_at(rule, wanted)).collect(),
    };
    match print(args.format, &lines) {
        // Whoever reads it has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        printed => printed?,
    }
    let missing =
        |line: &Line| line.rule.required && matches!(line.outcome, Outcome::Failed { .. });
    Ok(if lines.iter().any(missing) { Exit::Denied } else { Exit::Success })
}

fn looked_at(rule: StageRule, wanted: Result<Wanted, Fault>) -> Line {
    match wanted {
        Ok(wanted) => Line { rule, host: wanted.host(), outcome: Outcome::Would },
        Err(fault) => failed(rule, None, &fault),
    }
}

fn failed(rule: StageRule, host: Option<String>, fault: &Fault) -> Line {
    let outcome = Outcome::Failed { class: fault.class(), reason: told(fault) };
    Line { rule, host, outcome }
}

/// Fetches what is wanted, one after the other.
fn fetch(
    args: &CheckArgs,
    policy: &Policy,
    asked: Vec<(StageRule, Result<Wanted, Fault>)>,
) -> anyhow::Result<Result<Vec<Line>, Exit>> {
    let refuse = |error: &dyn std::error::Error, exit| {
        explain::complain(error, None);
        Ok(Err(exit))
    };
    let config = match args.config.as_deref().map(config::load).transpose() {
        Ok(config) => config.unwrap_or_else(Config::default),
        Err(error) => {
            explain::complain(&error, Some(&error.hint()));
            return Ok(Err(Exit::Policy));
        }
    };
    let variable = |name: &str| std::env::var(name).ok().map(SecretString::from);
    let keys = match config.stage.load(&variable, &open_now) {
        Ok(keys) => keys,
        Err(error) => {
            explain::complain(&error, Some(error.hint()));
            return Ok(Err(Exit::Refused));
        }
    };
    let roots = match Roots::open(policy) {
        Ok(roots) => roots,
        Err(error) => return refuse(&error, Exit::Usage),
    };
    let needs_git = |rule: &StageRule| matches!(rule.kind, StageKind::Git { .. });
    let git = policy.stage.rules.iter().any(needs_git);
    let git = match git.then(|| Git::find(config.stage.git.as_deref())).transpose() {
        Ok(git) => git,
        Err(error) => return refuse(&error, Exit::Usage),
    };
    let budget = match Budget::new(config.stage.fetch_size, policy) {
        Ok(budget) => budget,
        Err(error) => {
            explain::complain(&error, Some(error.hint()));
            return Ok(Err(Exit::Usage));
        }
    };
    let place = Scratch::make().context("cannot make a directory for what is fetched")?;
    let room = Room::open(&place.0, &place.0).context("cannot open a directory of ours")?;
    let prepared = Prepared { room, roots, git, keys, budget };
    let stager = Stager::new(policy, prepared, args.ca_file.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let deadline = Instant::now() + FETCH_MAX;
    let lines = runtime.block_on(async {
        let mut lines = Vec::new();
        for (rule, wanted) in asked {
            let line = match wanted {
                Err(fault) => failed(rule, None, &fault),
                Ok(wanted) => {
                    let host = wanted.host();
                    match stager.fetch("", &wanted, u64::MAX, deadline).await {
                        Err(fault) => failed(rule, host, &fault),
                        Ok(fetched) => {
                            let (sha256, bytes) = (fetched.sha256_hex(), fetched.bytes);
                            let commit = wanted.commit;
                            Line { rule, host, outcome: Outcome::Fetched { sha256, bytes, commit } }
                        }
                    }
                }
            };
            lines.push(line);
        }
        lines
    });
    Ok(Ok(lines))
}

/// A directory of this user's that is gone at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> io::Result<Scratch> {
        let name = format!("stockade-stage-{}-{:x}", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            explain::say(&format!("warning: {} is left: {error}", self.0.display()));
        }
    }
}

fn print(format: ReportFormat, lines: &[Line]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if format == ReportFormat::Json {
        let rules: Vec<Value> = lines.iter().map(document).collect();
        let document =
            json!({"schema": "stockade.stage.check", "schema_version": 1, "rules": rules});
        return writeln!(out, "{document:#}");
    }
    if lines.is_empty() {
        return writeln!(out, "the policy stages nothing");
    }
    for line in lines {
        let Line { rule, host, outcome } = line;
        let kind = rule.kind.name();
        let from = host.as_deref().map(visible).unwrap_or_else(|| "this host".to_owned());
        let to = visible(&rule.to);
        match outcome {
            Outcome::Would => {
                let what = if rule.unpack { "unpacked into" } else { "laid at" };
                let max = rule.size_max;
                writeln!(out, "{}: {kind} from {from}, {what} {to}, at most {max}", rule.name)?;
            }
            Outcome::Fetched { sha256, bytes, commit } => {
                let bytes = size(*bytes);
                let commit =
                    commit.as_deref().map(|id| format!(" commit {id}")).unwrap_or_default();
                writeln!(
                    out,
                    "{}: {kind} from {from}: {bytes}{commit} sha256:{sha256}",
                    rule.name
                )?;
            }
            Outcome::Failed { reason, .. } => {
                let weight = if rule.required { "refused" } else { "left out" };
                writeln!(out, "{}: {weight}: {}", rule.name, visible(reason))?;
            }
        }
    }
    Ok(())
}

fn document(line: &Line) -> Value {
    let Line { rule, host, outcome } = line;
    let digest = match rule.kind.digest() {
        Some(StageDigest::Record(_)) => "recorded",
        Some(StageDigest::Sha256(_)) => "required",
        None => "commit",
    };
    let mut document = json!({
        "rule": rule.name,
        "kind": rule.kind.name(),
        "host": host,
        "to": rule.to,
        "unpack": rule.unpack,
        "required": rule.required,
        "digest": digest,
        "size_max": rule.size_max.0,
        "origin": rule.origin.to_string(),
    });
    let more = match outcome {
        Outcome::Would => json!({"outcome": "allowed"}),
        Outcome::Fetched { sha256, bytes, commit } => {
            json!({"outcome": "fetched", "sha256": sha256, "bytes": bytes, "commit": commit})
        }
        Outcome::Failed { class, reason } => {
            json!({"outcome": "failed", "class": class, "reason": reason})
        }
    };
    for (key, value) in more.as_object().into_iter().flatten() {
        document[key] = value.clone();
    }
    document
}
