//! `worker audit …`: reads audit logs. Needs no rights but those to read the file, and no worker.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use stockade_runtime::audit::{Digest, Expectation, Verification, verify};

use super::audit_show;
use super::policy::ReportFormat;
use crate::exit::Exit;
use crate::explain;

/// Read audit logs
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// What to do
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Check that logs are what the worker wrote
    ///
    /// Finds every record that was changed, removed, added, moved or numbered anew, and says where
    /// the first one is. It cannot find records missing at the end, nor a log that was written anew
    /// as a whole; `--includes` does, with a digest that was noted elsewhere in time. Exits 8 if a
    /// log does not verify.
    Verify(VerifyArgs),
    /// Show the records of a log, one line each
    ///
    /// Checks nothing: see `worker audit verify`.
    Show(audit_show::ShowArgs),
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// Choose the output format [default: text]
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true)]
    format: ReportFormat,

    /// Fail unless the log holds the record whose line has this SHA-256
    ///
    /// The digest that an earlier run printed as `head`.
    #[arg(long, value_name = "SHA256")]
    includes: Option<Digest>,

    /// Logs; `-` is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

/// Runs `worker audit`.
pub fn run(args: &AuditArgs) -> anyhow::Result<Exit> {
    match &args.command {
        AuditCommand::Verify(args) => check(args),
        AuditCommand::Show(args) => audit_show::run(args),
    }
}

fn check(args: &VerifyArgs) -> anyhow::Result<Exit> {
    let (mut exit, mut results) = (Exit::Success, Vec::new());
    let mut out = io::stdout().lock();
    for file in &args.files {
        let found = open(file).and_then(|mut log| {
            verify(&mut log, args.includes.map(|digest| Expectation { digest }))
        });
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                explain::complain(&Unreadable { file: file.clone(), source: error }, None);
                return Ok(Exit::Usage);
            }
        };
        if found.problem.is_some() {
            exit = Exit::Evidence;
        }
        match args.format {
            ReportFormat::Text => text(&mut out, file, &found)?,
            ReportFormat::Json => results.push(document(file, &found)),
        }
    }
    if args.format == ReportFormat::Json {
        let document = json!({
            "schema": "stockade.audit.verify",
            "schema_version": 1,
            "results": results,
        });
        writeln!(out, "{document:#}")?;
    }
    Ok(exit)
}

#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", file.display())]
pub(super) struct Unreadable {
    pub(super) file: PathBuf,
    pub(super) source: io::Error,
}

pub(super) fn open(file: &Path) -> io::Result<Box<dyn Read>> {
    if file == Path::new("-") {
        return Ok(Box::new(io::stdin().lock()));
    }
    Ok(Box::new(File::open(file)?))
}

fn time(time: Option<SystemTime>) -> Option<String> {
    time.map(|time| humantime::format_rfc3339_micros(time).to_string())
}

fn text(out: &mut impl Write, file: &Path, found: &Verification) -> io::Result<()> {
    let file = file.display();
    match &found.problem {
        None => writeln!(out, "{file}: verified")?,
        Some(problem) => {
            writeln!(out, "{file}: NOT VERIFIED: line {}: {}", problem.line, problem.reason)?;
        }
    }
    let number = |number: Option<u64>| number.map_or("-".to_owned(), |n| n.to_string());
    let (first, last) = (number(found.first_seq), number(found.last_seq));
    writeln!(out, "  records  {} (number {first} to {last})", found.records)?;
    if let (Some(first), Some(last)) = (time(found.first_time), time(found.last_time)) {
        writeln!(out, "  time     {first} to {last}")?;
    }
    writeln!(out, "  gaps     {}", found.gaps)?;
    if found.bad_lines > 0 {
        writeln!(out, "  bad      {} lines", found.bad_lines)?;
    }
    for repair in &found.repairs {
        let (line, bytes) = (repair.line, repair.torn_bytes);
        writeln!(out, "  repair   line {line}: a write of {bytes} bytes was cut off before it")?;
    }
    if found.clock_steps_back > 0 {
        writeln!(out, "  clock    went back {} times", found.clock_steps_back)?;
    }
    if let Some(head) = found.head {
        writeln!(out, "  head     {head}")?;
    }
    Ok(())
}

fn document(file: &Path, found: &Verification) -> Value {
    let repairs = found.repairs.iter();
    json!({
        "file": file.display().to_string(),
        "verified": found.problem.is_none(),
        "records": found.records,
        "first_seq": found.first_seq,
        "last_seq": found.last_seq,
        "first_time": time(found.first_time),
        "last_time": time(found.last_time),
        "gaps": found.gaps,
        "bad_lines": found.bad_lines,
        "clock_steps_back": found.clock_steps_back,
        "repairs_count": found.repairs_count,
        "repairs": repairs
            .map(|r| json!({ "line": r.line, "seq": r.seq, "torn_bytes": r.torn_bytes }))
            .collect::<Vec<_>>(),
        "head": found.head,
        "problem": found.problem.as_ref().map(|p| json!({ "line": p.line, "reason": p.reason })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use stockade_runtime::audit::Problem;

    #[test]
    fn a_result_is_told_in_lines_and_as_data() {
        let mut found = Verification {
            records: 2,
            first_seq: Some(1),
            last_seq: Some(2),
            first_time: Some(SystemTime::UNIX_EPOCH),
            last_time: Some(SystemTime::UNIX_EPOCH),
            ..Verification::default()
        };
        let shown = |found: &Verification| {
            let mut out = Vec::new();
            text(&mut out, Path::new("a.jsonl"), found).expect("memory");
            String::from_utf8(out).expect("UTF-8")
        };
        assert_eq!(
            shown(&found),
            "a.jsonl: verified\n  records  2 (number 1 to 2)\n  \
             time     1970-01-01T00:00:00.000000Z to 1970-01-01T00:00:00.000000Z\n  gaps     0\n"
        );
        found.problem = Some(Problem { line: 2, reason: "why".to_owned() });
        found.bad_lines = 1;
        assert!(shown(&found).starts_with("a.jsonl: NOT VERIFIED: line 2: why\n"));
        let json = document(Path::new("a.jsonl"), &found);
        assert_eq!((&json["verified"], &json["problem"]["line"]), (&json!(false), &json!(2)));
    }
}
