//! `worker egress …`: what sessions connected to, from the audit log. Needs no rights but those to
//! read the file, and no worker.

use std::io::{self, Write};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use stockade_runtime::egress::Reason;
use stockade_runtime::policy::network::Host;

use super::egress_records::{LogArgs, LogError, written};
use super::egress_report::{AllowedKey, DeniedKey, Grouping, Report, Row, Whose, destination};
use crate::exit::Exit;
use crate::progress::{size, visible};

/// Show what sessions connected to, and what they were refused
#[derive(Debug, Args)]
pub struct EgressArgs {
    /// What to do
    #[command(subcommand)]
    command: EgressCommand,
}

#[derive(Debug, Subcommand)]
enum EgressCommand {
    /// Sum up destinations, bytes and refusals from the audit log
    ///
    /// Says which hosts were reached, by which rule, with how many connections and bytes each way, and
    /// what was refused; how many bytes went to the control plane as tool results; and what report
    /// mode allowed. Checks the log's chain while reading and exits 8 if it does not verify: the
    /// report is then printed with that mark.
    Report(ReportArgs),
}

#[derive(Debug, Args)]
struct ReportArgs {
    #[command(flatten)]
    log: LogArgs,

    /// Tell sessions and tool calls apart: a line for each destination of each call
    #[arg(long)]
    by_call: bool,

    /// Choose the output format [default: table]
    #[arg(long, value_name = "FORMAT", default_value = "table", hide_default_value = true)]
    format: TableFormat,
}

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TableFormat {
    /// Columns for people.
    Table,
    /// One JSON document.
    Json,
}

/// Runs `worker egress`.
pub fn run(args: &EgressArgs) -> anyhow::Result<Exit> {
    let EgressCommand::Report(args) = &args.command;
    let grouping = if args.by_call { Grouping::Call } else { Grouping::Destination };
    let report = match Report::of(&args.log, grouping) {
        Ok(report) => report,
        Err(error) => return Ok(error.told()),
    };
    let mut out = io::stdout().lock();
    let printed = match args.format {
        TableFormat::Table => table(&mut out, &report),
        TableFormat::Json => writeln!(out, "{:#}", document(&args.log, &report)),
    };
    match printed {
        // Whoever reads it has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        printed => printed?,
    }
    match report.log.problem {
        None => Ok(Exit::Success),
        Some(problem) => {
            let file = args.log.file().unwrap_or_default();
            Ok(LogError::Broken { file, problem }.told())
        }
    }
}

fn table(out: &mut impl Write, report: &Report) -> io::Result<()> {
    // Of whom, in front, or nothing.
    let head = |rest: &[&'static str]| -> Vec<&'static str> {
        let whose: &[&str] = match report.grouping {
            Grouping::Destination => &[],
            Grouping::Call => &["SESSION", "CALL"],
        };
        [whose, rest].concat()
    };
    if !report.allowed.is_empty() {
        let head = head(&["ALLOWED", "CONNECTIONS", "OUT", "IN", "CALLS", "FIRST", "LAST", "RULE"]);
        let rows = report.allowed.iter().map(|(key, row)| {
            let rule = match (&key.rule, key.reported) {
                (_, true) => "REPORT MODE: no rule".to_owned(),
                (Some(rule), _) => visible(rule),
                (None, _) => "-".to_owned(),
            };
            let [first, last] = times(row);
            let mut cells = whose(key.whose.as_ref());
            cells.extend([
                visible(&destination(key.host.as_deref(), key.port)),
                row.count.to_string(),
                size(row.bytes_out),
                size(row.bytes_in),
                row.calls.to_string(),
                first,
                last,
                rule,
            ]);
            cells
        });
        columns(out, &head, rows.collect())?;
    }
    for (name, part) in [("DENIED", &report.denied), ("FAILED", &report.failed)] {
        if part.is_empty() {
            continue;
        }
        let rows = part.iter().map(|(key, row)| {
            let [first, last] = times(row);
            let mut cells = whose(key.whose.as_ref());
            cells.extend([
                visible(&asked_for(key)),
                row.count.to_string(),
                row.calls.to_string(),
                first,
                last,
                visible(&sentence(key)),
            ]);
            cells
        });
        let head = head(&[name, "TIMES", "CALLS", "FIRST", "LAST", "REASON"]);
        columns(out, &head, rows.collect())?;
    }
    let (sessions, results) = (report.sessions.len(), report.results);
    writeln!(out, "sessions       {sessions}")?;
    writeln!(
        out,
        "tool results   {results} posted to the control plane, {}",
        size(report.result_bytes)
    )?;
    for until in &report.report_mode {
        writeln!(out, "report mode    in force until {}", visible(until))?;
    }
    if report.omitted > 0 {
        writeln!(out, "not shown      {} records of further destinations", report.omitted)?;
    }
    match &report.log.problem {
        None => writeln!(out, "log            verified, {} records", report.log.records),
        Some(problem) => {
            writeln!(out, "log            NOT VERIFIED: line {}: {}", problem.line, problem.reason)
        }
    }
}

/// Lines of columns, and an empty one.
fn columns(out: &mut impl Write, head: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
    let head: Vec<String> = head.iter().map(|&text| text.to_owned()).collect();
    let width = |at: usize| {
        let cells = rows.iter().chain([&head]).filter_map(|row| row.get(at));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for row in [&head].into_iter().chain(&rows) {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    writeln!(out)
}

/// Session and call, where they are told apart.
fn whose(whose: Option<&Whose>) -> Vec<String> {
    let cells = |whose: &Whose| {
        let call = whose.call.as_deref().unwrap_or("-");
        vec![visible(&whose.session), visible(call)]
    };
    whose.map(cells).unwrap_or_default()
}

fn times(row: &Row) -> [String; 2] {
    [row.first, row.last].map(|time| time.map_or_else(|| "-".to_owned(), written))
}

/// What was asked for: a name that was looked up has no port.
fn asked_for(key: &DeniedKey) -> String {
    match (&key.host, key.port) {
        (Some(host), Some(53)) => host.clone(),
        (host, port) => destination(host.as_deref(), port),
    }
}

/// The reason for people; its word, if this program does not know it.
fn sentence(key: &DeniedKey) -> String {
    let Some(reason) = Reason::from_word(&key.reason, key.class.as_deref()) else {
        return key.reason.clone();
    };
    let host = key.host.as_deref().and_then(|host| Host::parse(host).ok());
    host.map_or(reason, |host| reason.about(&host)).to_string()
}

fn document(args: &LogArgs, report: &Report) -> Value {
    let total = |of: fn(&Row) -> u64| report.allowed.values().map(of).fold(0, u64::saturating_add);
    let refused = |part: &std::collections::BTreeMap<DeniedKey, Row>| -> Vec<Value> {
        part.iter().map(|(key, row)| denied_json(key, row)).collect()
    };
    json!({
        "schema": "stockade.egress.report",
        "schema_version": 1,
        "file": args.file().unwrap_or_default().display().to_string(),
        "verified": report.log.problem.is_none(),
        "problem": report.log.problem.as_ref().map(|p| json!({ "line": p.line, "reason": p.reason })),
        "head": report.log.head,
        "since": args.since.map(written),
        "until": args.until.map(written),
        "sessions": report.sessions,
        "allowed": report.allowed.iter().map(|(key, row)| allowed_json(key, row)).collect::<Vec<_>>(),
        "denied": refused(&report.denied),
        "failed": refused(&report.failed),
        "totals": {
            "connections": total(|row| row.count),
            "bytes_out": total(|row| row.bytes_out),
            "bytes_in": total(|row| row.bytes_in),
            "denied": report.denied.values().map(|row| row.count).fold(0, u64::saturating_add),
        },
        "tool_results": { "posted": report.results, "bytes": report.result_bytes },
        "report_mode_until": report.report_mode,
        "omitted_records": report.omitted,
    })
}

fn allowed_json(key: &AllowedKey, row: &Row) -> Value {
    of(
        key.whose.as_ref(),
        json!({
            "host": key.host,
            "port": key.port,
            "rule": key.rule,
            "origin": row.origin,
            "addresses": row.addresses,
            "report_mode": key.reported,
            "connections": row.count,
            "bytes_out": row.bytes_out,
            "bytes_in": row.bytes_in,
            "duration_us": row.duration_us,
            "calls": row.calls,
            "sessions": row.sessions,
            "first": row.first.map(written),
            "last": row.last.map(written),
        }),
    )
}

fn denied_json(key: &DeniedKey, row: &Row) -> Value {
    of(
        key.whose.as_ref(),
        json!({
            "host": key.host,
            "port": key.port.filter(|port| *port != 53),
            "lookup": key.port == Some(53),
            "reason": key.reason,
            "addresses": row.addresses,
            "address_class": key.class,
            "count": row.count,
            "calls": row.calls,
            "sessions": row.sessions,
            "first": row.first.map(written),
            "last": row.last.map(written),
        }),
    )
}

/// Adds session and call, where they are told apart.
fn of(whose: Option<&Whose>, mut row: Value) -> Value {
    if let Some(whose) = whose {
        row["session"] = json!(whose.session);
        row["tool_call"] = json!(whose.call);
    }
    row
}

#[cfg(test)]
#[path = "egress_tests.rs"]
mod tests;
