//! `worker audit show`: the records of an audit log as lines for people. Checks nothing; that is
//! `worker audit verify`.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::audit::{Unreadable, open};
use crate::exit::Exit;
use crate::explain;
use crate::progress::{duration_us, short, size, visible};

/// Longest line that is read, as of the check.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Most sessions whose running call is remembered.
const SESSIONS_MAX: usize = 10_000;

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Show only records of this session; the end of its id is enough
    #[arg(long, value_name = "ID")]
    session: Option<String>,

    /// Show the enforcement report of each jail: every layer, every forbidden act
    #[arg(long)]
    layers: bool,

    /// A log; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Runs `worker audit show`.
pub fn run(args: &ShowArgs) -> anyhow::Result<Exit> {
    let unreadable = |source| Unreadable { file: args.file.clone(), source };
    let shown = open(&args.file).and_then(|log| show(log, args, &mut io::stdout().lock()));
    match shown {
        Ok(()) => Ok(Exit::Success),
        // Whoever reads it has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Success),
        Err(error) => {
            explain::complain(&unreadable(error), None);
            Ok(Exit::Usage)
        }
    }
}

fn show(log: impl Read, args: &ShowArgs, out: &mut impl Write) -> io::Result<()> {
    let mut log = BufReader::new(log);
    let (mut line, mut tools) = (Vec::new(), HashMap::new());
    loop {
        line.clear();
        if log.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let Ok(record) = serde_json::from_slice::<Value>(&line) else {
            writeln!(out, "(not a record: {} bytes)", line.len())?;
            continue;
        };
        let session = text(&record, "session");
        let tool = tool_of(&mut tools, &record, &session);
        if args.session.as_ref().is_some_and(|wanted| !session.ends_with(wanted.as_str())) {
            continue;
        }
        let time = text(&record, "time");
        let time = time.get(..19).unwrap_or(&time);
        let about = if session.is_empty() { "-" } else { short(&session) };
        let event = text(&record, "event");
        let details = details(&record, &event, &tool);
        writeln!(out, "{}", format!("{time} {about:<8} {event:<16} {details}").trim_end())?;
        if args.layers && event == "jail.launched" {
            layers(&record["report"], out)?;
        }
    }
}

/// A store, and every count that is not zero.
fn memory(record: &Value) -> String {
    let mut out = text(record, "store");
    for name in ["path", "access", "pass", "reason"] {
        if record[name].is_string() {
            out.push_str(&format!(", {}", text(record, name)));
        }
    }
    for name in MEMORY_COUNTS {
        if let Some(count) = record[name].as_u64().filter(|count| *count > 0) {
            out.push_str(&format!(", {count} {}", name.replace('_', " ")));
        }
    }
    if record["event"] == "memory.disposed" && record["unsynced"].is_null() {
        out.push_str(", unsynced: unknown");
    }
    out
}

/// Calls of a session run one after the other, so the last one that was started is meant.
fn tool_of(tools: &mut HashMap<String, String>, record: &Value, session: &str) -> String {
    match record["event"].as_str() {
        Some("call.started") if tools.len() < SESSIONS_MAX => {
            tools.insert(session.to_owned(), text(record, "tool"));
            String::new()
        }
        Some("call.ended") => tools.remove(session).unwrap_or_default(),
        _ => String::new(),
    }
}

/// Counts of records about memory stores, in the order in which they are shown.
const MEMORY_COUNTS: &[&str] = &[
    "memories",
    "unwritable",
    "creates",
    "updates",
    "deletes",
    "created",
    "updated",
    "deleted",
    "pulled",
    "removed",
    "edits_lost",
    "refused",
    "failed",
    "files",
    "unsynced",
];

/// What a record says beyond time, session and name.
fn details(record: &Value, event: &str, tool: &str) -> String {
    let text = |name: &str| text(record, name);
    let bytes = |name: &str| size(record[name]["bytes"].as_u64().unwrap_or(0));
    match event {
        "worker.started" => format!(
            "version {}, level {}, policy {}, control plane {}",
            text("version"),
            text("level"),
            text("policy"),
            text("base_url_host")
        ),
        "item.claimed" => text("kind"),
        "item.handed_over" => text("program"),
        "item.script_ended" => script_ended(record),
        "jail.launched" => launched(record),
        "jail.failed" => format!("{}: {}", text("step"), text("reason")),
        "skill.laid" => format!(
            "{} {} as {}, {} in {} files",
            text("skill"),
            text("version"),
            text("directory"),
            size(record["bytes"].as_u64().unwrap_or(0)),
            record["files"]
        ),
        "skill.failed" => {
            format!("{} {}: {}", text("skill"), text("version"), text("reason"))
        }
        "stage.laid" => {
            let from =
                if record["host"].is_string() { text("host") } else { "this host".to_owned() };
            let size = size(record["bytes"].as_u64().unwrap_or(0));
            format!("{}, {} from {from}, {size}", text("rule"), text("kind"))
        }
        "stage.failed" => format!("{}, {}: {}", text("rule"), text("kind"), text("reason")),
        "tool.outside" => format!("{}: {}", text("tool"), text("why")),
        "call.started" => format!("{}, {} of input", text("tool"), bytes("input")),
        "call.ended" => {
            let mut out = format!("{tool} {}, {}", text("status"), bytes("output"));
            out.push_str(&format!(
                ", {}",
                duration_us(record["duration_us"].as_u64().unwrap_or(0))
            ));
            for (name, word) in [("truncated", ", cut"), ("timed_out", ", timed out")] {
                if record[name] == true {
                    out.push_str(word);
                }
            }
            out.trim_start().to_owned()
        }
        "limit.hit" => format!("{} of {}", text("limit"), record["value"]),
        "lease.lost" => text("cause"),
        event if event.starts_with("egress.") => egress(record, event),
        event if event.starts_with("memory.") => memory(record),
        "config.reloaded" => text("what"),
        "session.disposed" | "recovery" => disposed(record),
        "log.repaired" => format!("a write of {} was cut off", bytes("torn")),
        _ => text("reason"),
    }
}

fn script_ended(record: &Value) -> String {
    let took = duration_us(record["duration_us"].as_u64().unwrap_or(0));
    match (&record["exit_code"], &record["signal"]) {
        (Value::Number(code), _) => format!("exit code {code} after {took}"),
        (_, Value::Number(signal)) => format!("signal {signal} after {took}"),
        _ => format!("not started: {}", text(record, "not_started")),
    }
}

fn launched(record: &Value) -> String {
    let report = &record["report"];
    let count = |list: &str, holds: fn(&Value) -> bool| {
        let list = report[list].as_array().map(Vec::as_slice).unwrap_or_default();
        (list.iter().filter(|one| holds(one)).count(), list.len())
    };
    let (enforced, layers) = count("layers", |layer| layer["got"] == "enforced");
    let (refused, acts) = count("canary", |act| act["ok"] == true);
    format!(
        "level {}, policy {}: {enforced} of {layers} layers enforced, {refused} of {acts} forbidden \
         acts refused, ready after {}",
        text(report, "level"),
        text(record, "policy"),
        duration_us(report["timings"]["ready_us"].as_u64().unwrap_or(0))
    )
}

fn egress(record: &Value, event: &str) -> String {
    let text = |name: &str| text(record, name);
    let to = match record["host"].is_string() {
        true => format!("{}:{}", text("host"), record["port"]),
        false => "others".to_owned(),
    };
    let rule = match record["reported"] == true {
        true => "report mode, no rule".to_owned(),
        false => format!("rule {}", text("rule")),
    };
    let bytes = |name: &str| size(record[name].as_u64().unwrap_or(0));
    let carried = || {
        let took = duration_us(record["duration_us"].as_u64().unwrap_or(0));
        format!("{} out, {} in, {took}", bytes("bytes_out"), bytes("bytes_in"))
    };
    match event {
        "egress.rules" => {
            let mut out = format!(
                "generation {}: {} rules of policy {}",
                record["generation"],
                record["rules"],
                text("policy")
            );
            if record["report_until"].is_string() {
                out.push_str(&format!(", REPORT MODE until {}", text("report_until")));
            }
            out
        }
        "egress.allowed" => format!("d-{} {to}, {rule}", record["number"]),
        "egress.denied" | "egress.failed" => {
            format!("d-{} {to}, {}", record["number"], reason(record))
        }
        "egress.repeated" => format!("{to}, {}, {} more", reason(record), record["count"]),
        "egress.summed" => {
            format!("{to}, {rule}, {} more, {}", record["connections"], carried())
        }
        "egress.closed" => {
            let by = match record["by"].is_string() {
                true => format!(", closed: {}", text("by")),
                false => String::new(),
            };
            format!("d-{} {to}, {}{by}", record["number"], carried())
        }
        _ => String::new(),
    }
}

/// The word of a refusal, with what kind of address it is about.
fn reason(record: &Value) -> String {
    match record["address_class"].is_string() {
        true => format!("{} ({})", text(record, "reason"), text(record, "address_class")),
        false => text(record, "reason"),
    }
}

fn disposed(record: &Value) -> String {
    let list = |value: &Value| -> Vec<String> {
        let items = value["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().filter_map(|item| Some(visible(item.as_str()?))).collect()
    };
    let (removed, left) = (list(&record["removed"]), list(&record["left"]));
    let kept = record["kept"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut out = format!("removed: {}", removed.join(", "));
    for one in kept {
        out.push_str(&format!("; kept: {} {}", text(one, "what"), text(one, "path")));
    }
    out.push_str(&format!(
        "; left: {}",
        if left.is_empty() { "nothing".into() } else { left.join(", ") }
    ));
    out
}

fn layers(report: &Value, out: &mut impl Write) -> io::Result<()> {
    for layer in report["layers"].as_array().into_iter().flatten() {
        let (name, got, why) = (text(layer, "layer"), text(layer, "got"), text(layer, "why"));
        writeln!(out, "    {name:<17} {got:<9} {why}")?;
    }
    for act in report["canary"].as_array().into_iter().flatten() {
        let word = if act["ok"] == true { "refused" } else { "NOT REFUSED" };
        writeln!(
            out,
            "    {word}: {} ({}: {})",
            text(act, "act"),
            text(act, "layer"),
            text(act, "got")
        )?;
    }
    Ok(())
}

/// A member as text that is safe to print.
fn text(record: &Value, name: &str) -> String {
    record[name].as_str().map(visible).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(log: &str, session: Option<&str>, layers: bool) -> String {
        let mut out = Vec::new();
        let args =
            ShowArgs { session: session.map(str::to_owned), layers, file: PathBuf::from("-") };
        show(log.as_bytes(), &args, &mut out).expect("memory");
        String::from_utf8(out).expect("UTF-8")
    }

    const LOG: &str = r#"{"v":1,"seq":1,"time":"2026-11-02T08:00:00.000000Z","event":"item.claimed","kind":"session","session":"sesn_0000000001"}
{"time":"2026-11-02T08:00:01.000000Z","event":"jail.launched","policy":"default","session":"sesn_0000000001","report":{"level":"root","timings":{"ready_us":4000},"layers":[{"layer":"seccomp","got":"enforced","why":"1 filter"}],"canary":[{"act":"mount","layer":"seccomp","got":"EPERM","ok":true}]}}
{"time":"2026-11-02T08:00:01.000000Z","event":"stage.laid","rule":"orders","kind":"local","sha256":"00","bytes":22,"session":"sesn_0000000001"}
{"time":"2026-11-02T08:00:01.000000Z","event":"skill.laid","skill":"skill_1","version":"skillver_2","directory":"greet","archive":{"bytes":900},"files":3,"bytes":2048,"skipped":0,"session":"sesn_0000000001"}
{"time":"2026-11-02T08:00:01.000000Z","event":"skill.failed","skill":"skill_3","version":"latest","reason":"digest","session":"sesn_0000000001"}
{"time":"2026-11-02T08:00:02.000000Z","event":"call.started","tool":"bash","input":{"bytes":21},"session":"sesn_0000000001"}
{"time":"2026-11-02T08:00:02.000000Z","event":"call.ended","status":"ok","output":{"bytes":2048},"duration_us":1500,"truncated":true,"session":"sesn_0000000001"}
half a line
{"time":"2026-11-02T08:00:03.000000Z","event":"item.ended","reason":"idle","session":"sesn_0000000002"}
{"time":"2026-11-02T08:00:04.000000Z","event":"session.disposed","removed":{"items":["mounts","cgroup"],"more":0},"kept":[{"what":"outputs","path":"/srv"}],"left":{"items":[],"more":0},"session":"sesn_0000000001"}
"#;

    #[test]
    fn a_record_about_a_memory_store_shows_what_is_not_zero() {
        let log = r#"{"time":"2026-11-02T08:00:05.000000Z","event":"memory.synced","store":"memstore_1","pass":"final","created":2,"updated":0,"edits_lost":1,"session":"sesn_1"}"#;
        let out = shown(log, None, false);
        assert!(out.ends_with("memstore_1, final, 2 created, 1 edits lost\n"), "{out}");
    }

    #[test]
    fn a_receipt_of_a_memory_store_says_what_is_unknown() {
        // MEM-32: zero, a number, and a folder that nobody could look at.
        for (unsynced, want) in [
            (r#","unsynced":0"#, "memstore_1\n"),
            (r#","unsynced":3"#, "memstore_1, 3 unsynced\n"),
            ("", "memstore_1, unsynced: unknown\n"),
            (r#","unsynced":null"#, "memstore_1, unsynced: unknown\n"),
        ] {
            let log = format!(
                r#"{{"time":"2026-11-02T08:00:05.000000Z","event":"memory.disposed","store":"memstore_1"{unsynced},"session":"sesn_1"}}"#
            );
            let out = shown(&log, None, false);
            assert!(out.ends_with(want), "{unsynced}: {out}");
        }
    }

    #[test]
    fn records_are_one_line_each() {
        assert_eq!(
            shown(LOG, None, false),
            "2026-11-02T08:00:00 00000001 item.claimed     session\n\
             2026-11-02T08:00:01 00000001 jail.launched    level root, policy default: 1 of 1 layers \
             enforced, 1 of 1 forbidden acts refused, ready after 4 ms\n\
             2026-11-02T08:00:01 00000001 stage.laid       orders, local from this host, 22 B\n\
             2026-11-02T08:00:01 00000001 skill.laid       skill_1 skillver_2 as greet, 2.0 KiB in 3 \
             files\n\
             2026-11-02T08:00:01 00000001 skill.failed     skill_3 latest: digest\n\
             2026-11-02T08:00:02 00000001 call.started     bash, 21 B of input\n\
             2026-11-02T08:00:02 00000001 call.ended       bash ok, 2.0 KiB, 1 ms, cut\n\
             (not a record: 12 bytes)\n\
             2026-11-02T08:00:03 00000002 item.ended       idle\n\
             2026-11-02T08:00:04 00000001 session.disposed removed: mounts, cgroup; kept: outputs /srv; \
             left: nothing\n"
        );
    }

    #[test]
    fn one_session_is_shown_with_its_layers() {
        let text = shown(LOG, Some("0001"), true);
        assert!(!text.contains("item.ended"), "{text}");
        for line in
            ["    seccomp           enforced  1 filter", "    refused: mount (seccomp: EPERM)"]
        {
            assert!(text.contains(line), "{text}");
        }
    }

    /// The log's names come from a model and a server.
    #[test]
    fn a_record_cannot_speak_to_the_terminal() {
        let line = r#"{"time":"2026","event":"call.started","tool":"a\nb\u001b[2J"}"#;
        let text = shown(line, None, false);
        assert!(text.contains(r"a\nb\u{1b}[2J") && text.lines().count() == 1, "{text}");
    }
}
