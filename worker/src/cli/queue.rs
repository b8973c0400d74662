//! `worker queue …`: an operator looks at an environment's queue and changes it, from outside. Runs
//! no session and needs no rights; the key decides what is answered (AUTH-12).

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use rustix::process::DumpableBehavior;
use serde_json::json;

use crate::credential::hidden::{self, EmptyKey};
use crate::exit::Exit;
use crate::explain;
use crate::ops::key::{Found, OpsKeyError, Wanted, usual_audit_logs};
use crate::ops::show;
use crate::progress::visible;
use crate::queue::{ApiError, Operator, QueueSettings, Stopped, WorkRow};
use crate::settings::{self, Refusal};

/// Look at an environment's queue, stop work items, label them
///
/// `stats` and `metadata` take an API key of the organization, `list` an environment key, `stop`
/// either. An API key is refused on a host with an environment key or a running worker: commands that
/// an agent runs could read it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct QueueArgs {
    #[command(flatten)]
    connection: Connection,

    /// What to do
    #[command(subcommand)]
    command: QueueCommand,
}

const EXAMPLES: &str = "\
Examples:
  worker queue stats --environment-id env_… --api-key-file ~/.anthropic-key
  worker queue list --state queued --environment-key-file /etc/stockade/key
  worker queue stop work_… --force
  worker queue metadata set work_… team=blue

Exit codes: 0 done; 1 not answered; 2 usage, or there is no such environment or work item; 4 the key is
not accepted; 9 a key must not be on this host.";

/// How to reach the control plane, and with what.
#[derive(Debug, Args)]
struct Connection {
    /// Ask about this environment
    #[arg(
        long,
        global = true,
        value_name = "ID",
        env = "ANTHROPIC_ENVIRONMENT_ID",
        hide_env_values = true
    )]
    environment_id: Option<String>,

    /// Read an API key of the organization from FILE [default: ANTHROPIC_API_KEY]
    ///
    /// The file belongs to root or to you, and only its owner can read it (mode 600).
    #[arg(long, global = true, value_name = "FILE")]
    api_key_file: Option<PathBuf>,

    /// Read an environment key from FILE [default: ANTHROPIC_ENVIRONMENT_KEY]
    #[arg(long, global = true, value_name = "FILE")]
    environment_key_file: Option<PathBuf>,

    /// Reach the control plane at URL [default: that of api.anthropic.com]
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "ANTHROPIC_BASE_URL",
        hide_env_values = true
    )]
    base_url: Option<String>,

    /// Allow a --base-url without TLS that is not on this host
    #[arg(long, global = true)]
    insecure_http: bool,

    /// Trust the certificate authorities in FILE (PEM) as well as the system's
    #[arg(long, global = true, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Send this workspace id with every request
    #[arg(
        long,
        global = true,
        value_name = "ID",
        env = "ANTHROPIC_WORKSPACE_ID",
        hide_env_values = true
    )]
    workspace_id: Option<String>,

    /// Choose the output format [default: table]
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "table",
        hide_default_value = true
    )]
    format: Format,
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Lines for people.
    Table,
    /// One JSON document.
    Json,
}

#[derive(Debug, Subcommand)]
enum QueueCommand {
    /// Count what waits, what was claimed, and who polls
    Stats,
    /// List work items, with an environment key
    List(ListArgs),
    /// Stop a work item: its worker finishes the running call and hands the item back
    Stop(StopArgs),
    /// Read or change the metadata of a work item
    Metadata(MetadataArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// List at most N items [default: 20]
    #[arg(
        long,
        value_name = "N",
        default_value = "20",
        hide_default_value = true,
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    limit: u32,

    /// List all items, up to 100000
    #[arg(long, conflicts_with = "limit")]
    all: bool,

    /// List only items in this state
    #[arg(long, value_name = "STATE")]
    state: Option<State>,
}

/// The state of a work item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// Waits for a worker
    Queued,
    /// Acknowledged by a worker
    Starting,
    /// Kept by heartbeats
    Active,
    /// Asked to stop
    Stopping,
    /// Over
    Stopped,
}

#[derive(Debug, Args)]
struct StopArgs {
    /// Stop it at once: nothing more is accepted from its worker
    #[arg(long)]
    force: bool,

    /// The work item
    #[arg(value_name = "WORK")]
    work: String,
}

#[derive(Debug, Args)]
struct MetadataArgs {
    /// What to do
    #[command(subcommand)]
    command: MetadataCommand,
}

#[derive(Debug, Subcommand)]
enum MetadataCommand {
    /// Print KEY=VALUE lines
    Get {
        /// The work item
        #[arg(value_name = "WORK")]
        work: String,
        /// Only these
        #[arg(value_name = "KEY")]
        keys: Vec<String>,
    },
    /// Set values; other keys stay as they are
    Set {
        /// The work item
        #[arg(value_name = "WORK")]
        work: String,
        /// What to set
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = pair)]
        pairs: Vec<(String, String)>,
    },
    /// Remove keys
    Unset {
        /// The work item
        #[arg(value_name = "WORK")]
        work: String,
        /// What to remove
        #[arg(value_name = "KEY", required = true)]
        keys: Vec<String>,
    },
}

/// Most items that are listed, and most pages that are asked for.
const ITEMS_MAX: usize = 100_000;
const PAGES_MAX: usize = 10_000;
/// Items of one page.
const PAGE: u32 = 100;

fn pair(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE"),
    }
}

impl QueueCommand {
    /// AUTH-12.
    fn wanted(&self) -> Wanted {
        match self {
            QueueCommand::Stats | QueueCommand::Metadata(_) => Wanted::Organization,
            QueueCommand::List(_) => Wanted::Environment,
            QueueCommand::Stop(_) => Wanted::Either,
        }
    }

    fn work(&self) -> Option<&str> {
        match self {
            QueueCommand::Stats | QueueCommand::List(_) => None,
            QueueCommand::Stop(stop) => Some(&stop.work),
            QueueCommand::Metadata(metadata) => Some(match &metadata.command {
                MetadataCommand::Get { work, .. }
                | MetadataCommand::Set { work, .. }
                | MetadataCommand::Unset { work, .. } => work,
            }),
        }
    }
}

/// Runs `worker queue`.
pub fn run(args: &QueueArgs) -> anyhow::Result<Exit> {
    // Executes this program anew without the variable, so before anything is open.
    if let Err(error) = hidden::hide(EmptyKey::Refused) {
        return Ok(refused(&error.into()));
    }
    // AUTH-10.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("cannot become undumpable")?;
    let settings = match settings(&args.connection, args.command.work()) {
        Ok(settings) => settings,
        Err(Refusal { text, hint }) => {
            explain::say(&format!("error: {text}"));
            explain::say(&format!("hint: {hint}"));
            return Ok(Exit::Usage);
        }
    };
    let key = match key(&args.connection, args.command.wanted()) {
        Ok(key) => key,
        Err(error) => return Ok(refused(&error)),
    };
    let operator = match Operator::new(&settings, &key) {
        Ok(operator) => operator,
        Err(error) => {
            explain::complain(&error, None);
            return Ok(Exit::Usage);
        }
    };
    drop(key);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let environment = &settings.environment_id;
    let answered = runtime.block_on(ask(&operator, &args.command));
    let answer = match answered {
        Ok(answer) => answer,
        Err(error) => return Ok(failed(&error, args.command.wanted())),
    };
    let mut out = io::stdout().lock();
    let printed = match args.connection.format {
        Format::Table => answer.table(&mut out),
        Format::Json => writeln!(out, "{:#}", answer.document(environment)),
    };
    match printed {
        // Whoever reads it has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        printed => printed?,
    }
    Ok(answer.exit())
}

fn refused(error: &OpsKeyError) -> Exit {
    explain::complain(error, Some(&error.hint()));
    error.exit()
}

fn key(connection: &Connection, wanted: Wanted) -> Result<crate::queue::OperatorKey, OpsKeyError> {
    let variable = |name: &str| std::env::var_os(name);
    let credentials = variable("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let found = Found::here(
        connection.api_key_file.clone(),
        connection.environment_key_file.clone(),
        variable,
        credentials.as_deref(),
        &usual_audit_logs(variable),
    );
    let kind = found.choose(wanted)?;
    found.read(kind, credentials.as_deref())
}

fn settings(connection: &Connection, work: Option<&str>) -> Result<QueueSettings, Refusal> {
    let given = connection.environment_id.as_deref().filter(|id| !id.is_empty());
    let environment = given.ok_or_else(|| Refusal {
        text: "no environment id given".to_owned(),
        hint: "use --environment-id or ANTHROPIC_ENVIRONMENT_ID; the console shows it".to_owned(),
    })?;
    let environment = settings::id("--environment-id", environment)?;
    if let Some(work) = work {
        settings::id("WORK", work)?;
    }
    let base_url = settings::base_url(connection.base_url.as_deref(), connection.insecure_http)?;
    let base_url = base_url.to_string().parse().map_err(|_| Refusal {
        text: "cannot use --base-url: it is not a URL".to_owned(),
        hint: "write it like https://api.example.com".to_owned(),
    })?;
    // The name is sent by polls only.
    let mut settings = QueueSettings::new(base_url, &environment, "operator");
    // Checked above, with its exception.
    settings.insecure_http = true;
    settings.ca_file = connection.ca_file.as_deref().map(settings::ca_file).transpose()?;
    let workspace = connection.workspace_id.as_deref().filter(|id| !id.is_empty());
    settings.workspace_id = workspace.map(|id| settings::id("--workspace-id", id)).transpose()?;
    Ok(settings)
}

/// Says why there is no answer and what to do.
fn failed(error: &ApiError, wanted: Wanted) -> Exit {
    let (hint, exit) = match error.status() {
        Some(401) => {
            ("the key is not valid: revoked, or of another organization", Exit::KeyRejected)
        }
        Some(403) => match wanted {
            Wanted::Organization => {
                ("this call wants an API key of the organization that owns it", Exit::KeyRejected)
            }
            _ => ("the key belongs to another environment", Exit::KeyRejected),
        },
        Some(404) => ("check the environment id and the work item's id", Exit::Usage),
        Some(400..=499) => ("the control plane does not take this request", Exit::Unexpected),
        Some(_) => ("the control plane has a fault; try again later", Exit::Unexpected),
        None => (
            "check --base-url and the network; a proxy is taken from HTTPS_PROXY",
            Exit::Unexpected,
        ),
    };
    let request = match error {
        ApiError::Status { request_id: Some(id), .. } => format!(" (request {id})"),
        _ => String::new(),
    };
    explain::complain(error, Some(&format!("{hint}{request}")));
    exit
}

/// What a command came to.
enum Answer {
    Stats(crate::queue::Stats),
    Items { items: Vec<WorkRow>, more: bool },
    Stopped { work: String, force: bool, how: Stopped },
    Metadata { item: Box<WorkRow>, keys: Vec<String> },
}

async fn ask(operator: &Operator, command: &QueueCommand) -> Result<Answer, ApiError> {
    match command {
        QueueCommand::Stats => Ok(Answer::Stats(operator.stats().await?)),
        QueueCommand::List(args) => list(operator, args).await,
        QueueCommand::Stop(StopArgs { force, work }) => {
            let how = operator.stop(work, *force).await?;
            Ok(Answer::Stopped { work: work.clone(), force: *force, how })
        }
        QueueCommand::Metadata(args) => {
            let (item, keys) = match &args.command {
                MetadataCommand::Get { work, keys } => (operator.item(work).await?, keys.clone()),
                MetadataCommand::Set { work, pairs } => {
                    let changes: BTreeMap<_, _> = pairs.iter().cloned().collect();
                    let changes = changes.into_iter().map(|(k, v)| (k, Some(v))).collect();
                    (operator.change_metadata(work, &changes).await?, Vec::new())
                }
                MetadataCommand::Unset { work, keys } => {
                    let changes = keys.iter().map(|key| (key.clone(), None)).collect();
                    (operator.change_metadata(work, &changes).await?, Vec::new())
                }
            };
            Ok(Answer::Metadata { item: Box::new(item), keys })
        }
    }
}

/// API-4: page after page, until there are enough.
async fn list(operator: &Operator, args: &ListArgs) -> Result<Answer, ApiError> {
    let limit = if args.all { ITEMS_MAX } else { args.limit as usize };
    let state = args.state.and_then(|state| state.to_possible_value());
    let state = state.as_ref().map(|state| state.get_name().to_owned());
    let size = match &state {
        // How many of a page are in that state is not known.
        Some(_) => PAGE,
        None => PAGE.min(u32::try_from(limit).unwrap_or(PAGE)),
    };
    let (mut items, mut next): (Vec<WorkRow>, Option<String>) = (Vec::new(), None);
    for _ in 0..PAGES_MAX {
        let page = operator.page(size, next.as_deref()).await?;
        let wanted = |item: &WorkRow| state.as_ref().is_none_or(|state| item.state == *state);
        items.extend(page.items.into_iter().filter(wanted));
        let again = page.next_page.is_some() && page.next_page == next;
        next = page.next_page.filter(|_| !again);
        if next.is_none() || items.len() >= limit {
            break;
        }
    }
    let more = next.is_some() || items.len() > limit;
    items.truncate(limit);
    Ok(Answer::Items { items, more })
}

impl Answer {
    fn table(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Answer::Stats(stats) => show::stats(out, stats),
            Answer::Items { items, more } => {
                show::items(out, items)?;
                if *more {
                    explain::say("there may be more: --limit N, or --all");
                }
                Ok(())
            }
            Answer::Stopped { work, force, how } => match (how, force) {
                (Stopped::Before, _) => writeln!(out, "{work} was stopped before"),
                (Stopped::Now, true) => writeln!(out, "{work} is stopped"),
                (Stopped::Now, false) => writeln!(out, "{work} is asked to stop"),
            },
            Answer::Metadata { item, keys } => show::metadata(out, item, keys),
        }
    }

    fn document(&self, environment: &str) -> serde_json::Value {
        match self {
            Answer::Stats(stats) => show::document(
                "stats",
                environment,
                serde_json::to_value(stats).unwrap_or_default(),
            ),
            Answer::Items { items, more } => {
                show::document("list", environment, json!({ "items": items, "more": more }))
            }
            Answer::Stopped { work, force, how } => {
                let before = *how == Stopped::Before;
                let rest = json!({ "work_id": work, "force": force, "stopped_before": before });
                show::document("stop", environment, rest)
            }
            Answer::Metadata { item, keys } => {
                let wanted = |key: &String| keys.is_empty() || keys.contains(key);
                let metadata: BTreeMap<_, _> =
                    item.metadata.iter().filter(|(key, _)| wanted(key)).collect();
                let rest = json!({ "work_id": item.id, "metadata": metadata });
                show::document("metadata", environment, rest)
            }
        }
    }

    /// A key that was asked for and is not there is told.
    fn exit(&self) -> Exit {
        let Answer::Metadata { item, keys } = self else { return Exit::Success };
        let missing = keys.iter().find(|key| !item.metadata.contains_key(*key));
        if let Some(key) = missing {
            explain::say(&format!("error: {} has no metadata `{key}`", visible(&item.id)));
            return Exit::Unexpected;
        }
        Exit::Success
    }
}
