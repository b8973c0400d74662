//! Log events as lines for people: time, session, what happened, how long it took.
//!
//! Events are made by `tracing` with a field `event`; the sentence for each name is in [`PHRASES`].
//! An event without one, or without a field its sentence needs, is written with all its fields, so
//! that nothing is lost by being unknown. Values come from outside too: control characters are made
//! visible, and each value has a bound. JSON lines are not made here.

use std::fmt::{self, Write as _};
use std::io::IsTerminal as _;
use std::time::{Duration, SystemTime};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Longest value, in characters.
const VALUE_CHARS_MAX: usize = 200;
/// Most fields of one event.
const FIELDS_MAX: usize = 32;
/// How much of an id is shown: its end, which differs most.
const SHORT_ID: usize = 8;

/// Name of an event, and its sentence (OBS-5). `{x}` is a field; one that ends in `_us`, `_ms` or `_s`
/// is written as a duration, one that ends in `bytes` as a size. Of several sentences the first counts
/// whose fields are all there. Events in which something went wrong end with their field `error`.
#[rustfmt::skip]
const PHRASES: &[(&str, &str)] = &[
    // The worker.
    ("worker.started",          "worker {version} started: level {level}, policy {policy}, sessions at a time: {sessions}"),
    ("config.unused",           "{tables} of WORKER_CONFIG: no effect here, sessions are served by the script"),
    ("worker.recovered",        "removed what an earlier worker left ({removed})"),
    ("worker.draining",         "stopping: nothing new is started, running calls have {timeout_ms}"),
    ("worker.code_kept",        "code of the start stays in memory"),
    ("worker.drain_timeout",    "the drain timeout passed, ending what still runs"),
    ("worker.cancelling",       "ending what still runs"),
    ("worker.stopped",          "worker stopped ({reason}) after {shutdown_ms}"),
    ("worker.stopped",          "worker stopped ({reason})"),
    ("metrics.listening",       "metrics can be had at {address}"),
    ("metrics.failed",          "the listener for metrics failed"),
    ("key.reloaded",            "read the environment key again"),
    ("platform.reloaded",       "read the credentials of AWS again"),
    ("platform.not_reloaded",   "could not read the credentials of AWS again, the old ones stay in use"),
    ("stage.reloaded",          "read the credentials of staged input again"),
    ("stage.not_reloaded",      "could not read the credentials of staged input again, the old ones stay in use"),
    ("key.not_reloaded",        "could not read the environment key again, the old one stays in use"),
    ("policy.reloaded",         "read the policy's network rules again"),
    ("policy.not_reloaded",     "could not read the policy again, its old network rules stay in force"),
    ("policy.partly_reloaded",  "the policy differs in more than network rules: the rest waits for a restart"),
    ("egress.rules_replaced",   "network rules of {session_id} replaced"),
    ("egress.rules_not_complete", "some new ports of {session_id} stay closed until the next SIGHUP"),
    ("audit.failed",            "the audit log cannot be written, nothing more is started"),
    ("audit.sync_failed",       "the audit log did not reach the disk"),
    ("admission.waiting",       "claiming nothing: {available_bytes} of memory are free, {reserve_bytes} must stay"),
    // The queue.
    ("poll.starting",           "waiting for work of {environment}"),
    ("poll.idle",               "still no work after {idle_s}"),
    ("poll.idle",               "no work yet"),
    ("poll.failed",             "poll failed (try {attempt}), again in {pause_ms}"),
    ("poll.refused",            "poll refused for good"),
    ("poll.drained",            "the queue is empty"),
    ("work.claimed",            "claimed a {kind}"),
    ("work.ack_failed",         "could not confirm the claim (try {attempt}), again in {pause_ms}"),
    ("work.ack_refused",        "claim refused for good"),
    ("work.not_a_session",      "skipped: {kind} is not run here"),
    ("work.secret_without_token", "came with a secret that holds no token, using the environment key"),
    ("work.stop_failed",        "could not hand the item back"),
    ("work.released",           "lease lost, let go without stopping"),
    ("work.ended",              "done ({how})"),
    ("lease.shutdown",          "the control plane asks to stop ({state})"),
    ("lease.transient",         "heartbeat failed, again in {pause_ms}"),
    ("lease.rejected",          "heartbeat refused for good"),
    ("lease.lost",              "lease lost: another worker has it"),
    ("lease.assumed_lost",      "lease assumed lost: no heartbeat succeeded in time"),
    ("lease.failed",            "heartbeats failed"),
    ("work.detached",           "the script ended, the session goes on without it"),
    ("work.not_handed_over",    "nobody serves it, its lease runs out"),
    ("work.stop_left_to_script", "the script ran for {after_ms}, stopping the item is left to it"),
    // Scripts and the webhook.
    ("script.started",          "the script serves the session (process {pid})"),
    ("script.ended",            "the script ended after {took_ms}"),
    ("script.failed",           "the script failed with exit code {exit_code} after {took_ms}"),
    ("script.failed",           "the script was ended by signal {signal} after {took_ms}"),
    ("script.not_started",      "the script could not be started"),
    ("script.bad_id",           "an id is not plain, no script gets the item"),
    ("script.secret_too_long",  "the work secret is on the script's standard input only"),
    ("webhook.listening",       "listening for webhooks on {address}"),
    ("webhook.accepted",        "a webhook tells of work for {session_id}"),
    ("webhook.refused",         "refused a delivery of the webhook: {reason} ({others} more before)"),
    ("webhook.ignored",         "ignored a delivery about {kind}"),
    ("webhook.repeated",        "a delivery about {session_id} came again"),
    ("listener.accept_failed",  "could not accept a connection"),
    ("listener.connection_failed", "a connection failed"),
    ("webhook.failed",          "the webhook's listener failed"),
    // One session.
    ("runner.starting",         "attached to the session"),
    ("session.not_fetched",     "could not ask for the session"),
    ("session.not_opened",      "no jail, every call is answered with an error"),
    ("session.terminated",      "the session was over already"),
    ("session.idle",            "session idle, letting go"),
    ("session.ended",           "the session ended"),
    ("session.too_long",        "the session has too many events, letting go"),
    ("stream.disconnected",     "event stream lost ({reason}), again in {pause_ms}"),
    ("stream.refused",          "event stream refused for good"),
    ("history.failed",          "could not read the history"),
    ("thread.ended",            "a thread was terminated"),
    ("journal.refused",         "not served: the journal of its calls cannot be used"),
    ("journal.unreadable",      "a kept result cannot be read"),
    ("journal.unwritable",      "cannot write the journal of calls"),
    ("journal.not_swept",       "old journals of calls are still there"),
    ("journal.not_closed",      "the journal of calls stays behind"),
    // Its calls.
    ("call.starting",           "{tool} starts, {input_bytes} of input"),
    ("call.ended",              "{tool} {status}, {output_bytes}"),
    ("call.unknown",            "{tool} was interrupted by the end of an earlier worker, its outcome is unknown"),
    ("call.stuck",              "a killed call did not return"),
    ("call.held",               "{tool} waits for confirmation"),
    ("call.denied",             "a call was denied"),
    ("call.not_owned",          "{tool} belongs to somebody else"),
    ("post.retry",              "result not accepted (try {attempt}), again in {pause_ms}"),
    ("post.failed",             "result could not be posted"),
    ("post.refused",            "result refused for good"),
    // Its network.
    ("egress.denied",           "refused {host}, port {port}: {reason}"),
    ("egress.failed",           "{host}, port {port}, could not be had: {reason}"),
    ("egress.repeated",         "refused {host}, port {port}, {count} times more: {reason}"),
    ("egress.repeated",         "refused further targets, {count} times: {reason}"),
    ("egress.allowed",          "connecting to {host}, port {port}, by rule {rule}"),
    ("egress.allowed",          "connecting to {host}, port {port}, by report mode"),
    ("egress.closed",           "closed {host}, port {port}: {out_bytes} out, {in_bytes} in"),
    ("egress.summed",           "{connections} more connections to {host}, port {port}: {out_bytes} out, {in_bytes} in"),
    // Its memory stores.
    ("memory.downloaded",       "memory store {store_id} has {memories} memories"),
    ("memory.synced",           "memory store {store_id}: {created} made, {updated} updated, {deleted} deleted; {pulled} pulled, {removed} removed; {edits_lost} edits lost, {refused} refused, {failed} failed"),
    ("memory.recovered",        "the folder of memory store {store_id} was destroyed and filled anew"),
    ("memory.untrusted",        "the folder of memory store {store_id} lost its marker and is not synced"),
    ("memory.sync_failed",      "memory store {store_id} could not be synced ({pass})"),
    ("memory.cut_off",          "the time for a sync of memory store {store_id} was over: {files} files not uploaded ({pass})"),
    ("memory.disposed",         "memory store {store_id} let go; changed files that are not on the server: {unsynced}"),
    ("memory.disposed",         "memory store {store_id} let go"),
    ("stage.not_removed",       "files of staging are left: {error}"),
    ("session.not_reopened",    "no new jail for the session: {error}"),
    // Its jail.
    ("jail.not_quiet",          "processes of the session may still run"),
    ("jail.outdated",           "the kept jail lacks what the session needs"),
    ("jail.running",            "jail ready after {ready_us}, level {level}"),
    ("jail.kept",               "the jail is kept for the next work item"),
    ("jail.resumed",            "the jail was kept"),
    ("jail.lost",               "the jail ended by itself"),
    ("tool.outside_lost",       "the custom tool {tool} on the host has no result: {error}"),
    ("tool.outside_gone",       "the custom tool {tool} cannot be started on the host any more: {error}"),
    ("jail.launcher_gone",      "the launcher of the jail is gone"),
    ("launcher.slow",           "the launcher is still taking jails apart"),
    ("launcher.lost",           "the launcher is gone: nothing more is started"),
    ("jail.not_exported",       "{skipped} entries were not copied back"),
    ("jail.ended",              "jail removed in {teardown_us}"),
    // Its skills.
    ("skill.laid",              "skill {directory}: {files} files, {bytes}"),
    ("skill.failed",            "no skill {skill_id} ({reason})"),
    ("skill.not_cleared",       "skills cannot be removed, the jail is not kept"),
];

/// Writes events as lines for people.
#[derive(Debug)]
pub struct Progress {
    /// A person watches: the time of day is enough.
    watched: bool,
    /// Somebody looks for a fault: ids are shown.
    verbose: bool,
}

impl Progress {
    /// With ids, if events of `level` are shown.
    pub fn for_level(level: Level) -> Progress {
        Progress { verbose: level >= Level::DEBUG, ..Progress::default() }
    }
}

impl Default for Progress {
    /// For standard error.
    fn default() -> Self {
        Progress { watched: std::io::stderr().is_terminal(), verbose: false }
    }
}

impl<S, N> FormatEvent<S, N> for Progress
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let colour = if writer.has_ansi_escapes() { Colour::On } else { Colour::Off };
        let level = *event.metadata().level();
        let ids = if self.verbose { ids(&fields) } else { String::new() };
        let line = line(SystemTime::now(), level, &fields, colour, self.watched);
        writeln!(writer, "{line}{}", colour.paint(2, &ids))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Colour {
    On,
    Off,
}

impl Colour {
    fn paint(self, code: u8, text: &str) -> String {
        match self {
            Colour::On if !text.is_empty() => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            _ => text.to_owned(),
        }
    }
}

/// What an event carries, in its order; values are safe to print.
#[derive(Debug, Default)]
struct Fields(Vec<(&'static str, String)>);

impl Fields {
    fn push(&mut self, name: &'static str, value: &str) {
        if self.0.len() < FIELDS_MAX {
            self.0.push((name, visible(value)));
        }
    }

    /// By name; `session` and `session_id` are the same, and so are those of other ids.
    fn get(&self, name: &str) -> Option<&str> {
        let same = |field: &str| field == name || field.strip_suffix("_id") == Some(name);
        self.0.iter().find(|(field, _)| same(field)).map(|(_, value)| value.as_str())
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field.name(), &format!("{value:?}"));
    }
}

/// Without control characters (a name may come from a model), and not longer than the bound.
pub fn visible(value: &str) -> String {
    let mut text = String::new();
    for (at, c) in value.chars().enumerate() {
        if at == VALUE_CHARS_MAX {
            text.push('…');
            break;
        }
        // Marks that turn the direction of text could make a line look like another one.
        let hidden = c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if hidden { text.extend(c.escape_default()) } else { text.push(c) }
    }
    text
}

fn line(now: SystemTime, level: Level, fields: &Fields, colour: Colour, watched: bool) -> String {
    let time = humantime::format_rfc3339_seconds(now).to_string();
    let time = if watched { time.get(11..19).unwrap_or(&time) } else { &time };
    let about = fields.get("session").or_else(|| fields.get("work")).unwrap_or_default();
    let mut out = colour.paint(2, time);
    if !about.is_empty() {
        let _infallible = write!(out, " {}", colour.paint(36, short(about)));
    }
    let mark = match level {
        Level::ERROR => colour.paint(31, "error: "),
        Level::WARN => colour.paint(33, "warning: "),
        _ => String::new(),
    };
    let what = sentence(fields, colour).unwrap_or_else(|| generic(fields));
    let _infallible = write!(out, " {mark}{what}");
    out
}

/// The end of an id.
pub fn short(id: &str) -> &str {
    let start = id.char_indices().rev().nth(SHORT_ID - 1).map_or(0, |(at, _)| at);
    &id[start..]
}

/// The sentence of a known event that has all it needs; then duration and error, if there are any.
fn sentence(fields: &Fields, colour: Colour) -> Option<String> {
    let event = fields.get("event")?;
    let phrases = PHRASES.iter().filter(|(name, _)| *name == event);
    let mut out = phrases.filter_map(|(_, phrase)| filled(phrase, fields, colour)).next()?;
    if let Some(took) = fields.get("duration_us") {
        let _infallible = write!(out, " ({})", shown("duration_us", took));
    }
    if let Some(error) = fields.get("error") {
        let _infallible = write!(out, ": {error}");
    }
    Some(out)
}

/// The phrase with values in place of names, if it has them all.
fn filled(phrase: &str, fields: &Fields, colour: Colour) -> Option<String> {
    let (mut out, mut rest) = (String::new(), phrase);
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}')?;
        let value = shown(name, fields.get(name).filter(|value| !value.is_empty())?);
        out.push_str(before);
        match (name, value.as_str()) {
            ("status", "ok") => out.push_str(&colour.paint(32, &value)),
            ("status", _) => out.push_str(&colour.paint(33, &value)),
            _ => out.push_str(&value),
        }
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}

/// For those who look for a fault.
fn ids(fields: &Fields) -> String {
    let mut out = String::new();
    for (name, id) in ["work", "tool_use", "session"].map(|name| (name, fields.get(name))) {
        if let Some(id) = id.filter(|id| !id.is_empty()) {
            let _infallible = write!(out, " {name}={id}");
        }
    }
    out
}

fn generic(fields: &Fields) -> String {
    let title = fields.get("message").or_else(|| fields.get("event")).unwrap_or("event");
    let mut out = title.to_owned();
    let told = |name: &str| matches!(name, "message" | "event" | "session" | "session_id");
    let worth = |(name, value): &&(&str, String)| !told(name) && !value.is_empty();
    for (name, value) in fields.0.iter().filter(worth) {
        let _infallible = match value.contains(' ') {
            true => write!(out, " {name}={value:?}"),
            false => write!(out, " {name}={value}"),
        };
    }
    out
}

/// A field's value by the unit in its name.
fn shown(name: &str, value: &str) -> String {
    let number = value.parse::<u64>().ok();
    match (number, name.rsplit('_').next()) {
        (Some(number), Some("us")) => duration(Duration::from_micros(number)),
        (Some(number), Some("ms")) => duration(Duration::from_millis(number)),
        (Some(number), Some("s")) => duration(Duration::from_secs(number)),
        (Some(number), Some("bytes")) => size(number),
        _ => value.to_owned(),
    }
}

/// Microseconds for people.
pub fn duration_us(us: u64) -> String {
    duration(Duration::from_micros(us))
}

/// As precise as a person cares.
fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.as_millis() == 0 => format!("{} µs", duration.as_micros()),
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// In the largest unit that leaves a whole part.
pub fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    fn text(level: Level, list: &[(&'static str, &str)], colour: Colour, watched: bool) -> String {
        let mut fields = Fields::default();
        list.iter().for_each(|(name, value)| fields.push(name, value));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        line(now, level, &fields, colour, watched)
    }

    fn plain(list: &[(&'static str, &str)]) -> String {
        text(Level::INFO, list, Colour::Off, true)
    }

    #[test]
    fn events_are_sentences_with_time_and_the_end_of_the_session_id() {
        #[rustfmt::skip]
        let cases: &[(&[(&'static str, &str)], &str)] = &[
            (&[("event", "poll.starting"), ("environment_id", "env_1"), ("work_id", ""), ("session_id", "")],
             "08:00:00 waiting for work of env_1"),
            (&[("event", "work.claimed"), ("work_id", "work_0123456789"), ("kind", "session"), ("session_id", "sesn_01ABCDEFGHIJ")],
             "08:00:00 CDEFGHIJ claimed a session"),
            (&[("event", "call.ended"), ("session", "s1"), ("tool", "bash"), ("status", "ok"), ("output_bytes", "4"), ("duration_us", "2500")],
             "08:00:00 s1 bash ok, 4 B (2 ms)"),
            (&[("event", "call.ended"), ("session", "s1"), ("tool", "read"), ("status", "error"), ("output_bytes", "2048"), ("duration_us", "90")],
             "08:00:00 s1 read error, 2.0 KiB (90 µs)"),
            (&[("event", "poll.failed"), ("attempt", "3"), ("pause_ms", "8400"), ("error", "connection refused")],
             "08:00:00 poll failed (try 3), again in 8.4 s: connection refused"),
            (&[("event", "poll.idle")], "08:00:00 no work yet"),
            (&[("event", "poll.idle"), ("idle_s", "301")], "08:00:00 still no work after 5 min 01 s"),
        ];
        for (fields, want) in cases {
            assert_eq!(plain(fields), *want);
        }
    }

    #[test]
    fn an_unknown_event_or_one_that_lacks_a_field_is_written_whole() {
        assert_eq!(
            plain(&[("message", "odd"), ("event", "odd.thing"), ("a", "1"), ("b", "x y")]),
            "08:00:00 odd a=1 b=\"x y\""
        );
        assert_eq!(
            plain(&[("event", "call.ended"), ("tool", "bash"), ("status", "")]),
            "08:00:00 call.ended tool=bash"
        );
        assert_eq!(plain(&[]), "08:00:00 event");
    }

    #[test]
    fn a_file_gets_the_date_and_colour_is_for_those_who_want_it() {
        let fields = [("event", "jail.lost"), ("session", "s1")];
        assert_eq!(
            text(Level::ERROR, &fields, Colour::Off, false),
            "2027-01-15T08:00:00Z s1 error: the jail ended by itself"
        );
        assert_eq!(
            text(Level::WARN, &fields, Colour::On, true),
            "\u{1b}[2m08:00:00\u{1b}[0m \u{1b}[36ms1\u{1b}[0m \u{1b}[33mwarning: \u{1b}[0mthe jail ended by itself"
        );
    }

    /// A tool's name comes from a model, an error from a server.
    #[test]
    fn a_value_cannot_write_a_line_of_its_own_or_speak_to_the_terminal() {
        let evil = "x\n08:00:00 all good\u{1b}[2J\u{202e}";
        let line = plain(&[("event", "call.held"), ("tool", evil)]);
        let shown = "x\\n08:00:00 all good\\u{1b}[2J\\u{202e}";
        assert_eq!(line, format!("08:00:00 {shown} waits for confirmation"));
        let long = plain(&[("event", "call.held"), ("tool", &"y".repeat(5000))]);
        let around = "08:00:00  waits for confirmation".len();
        assert_eq!(long.chars().count(), around + VALUE_CHARS_MAX + 1);
    }

    #[test]
    fn durations_are_as_precise_as_a_person_cares() {
        let cases =
            [(15, "15 µs"), (3_400, "3 ms"), (1_250_000, "1.2 s"), (62_000_000, "1 min 02 s")];
        for (us, want) in cases {
            assert_eq!(duration(Duration::from_micros(us)), want);
        }
        assert_eq!(duration(Duration::from_secs(7_260)), "2 h 01 min");
    }

    #[test]
    fn sizes_have_the_largest_unit_that_fits() {
        for (bytes, want) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")]
        {
            assert_eq!(size(bytes), want);
        }
    }

    /// Every phrase belongs to an event that is emitted, and the events of `cli`, `queue`, `daemon`,
    /// `webhook`, `metrics` and of the listener have one.
    #[test]
    fn phrases_and_events_of_sessions_are_the_same() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut source = std::fs::read_to_string(root.join("listener.rs")).expect("read");
        for folder in ["cli", "queue", "daemon", "daemon/jails", "webhook", "metrics"] {
            for entry in std::fs::read_dir(root.join(folder)).expect("listed").flatten() {
                let of_rust = entry.path().extension().is_some_and(|extension| extension == "rs");
                if of_rust {
                    source += &std::fs::read_to_string(entry.path()).expect("read");
                }
            }
        }
        for (name, phrase) in PHRASES {
            assert!(source.contains(&format!("\"{name}\"")), "nothing emits {name}");
            assert_eq!(phrase.matches('{').count(), phrase.matches('}').count(), "{name}");
        }
        // The word after the level and the ids, or after `event =`.
        let is_name = |word: &&str| {
            let plain = |c: char| c.is_ascii_lowercase() || c == '_';
            word.split_once('.').is_some_and(|(a, b)| (a.to_owned() + b).chars().all(plain))
        };
        let after = |mark: &str| -> Vec<String> {
            let parts = source.split(mark).skip(1);
            parts
                .filter_map(|rest| rest.split('"').nth(1))
                .filter(is_name)
                .map(str::to_owned)
                .collect()
        };
        for name in after("emit!(").into_iter().chain(after("event = ")) {
            let quiet = ["call.confirmation", "event.name"].contains(&name.as_str());
            assert!(
                quiet || PHRASES.iter().any(|(known, _)| *known == name),
                "no phrase for {name}"
            );
        }
    }

    #[test]
    fn ids_are_for_those_who_look_for_a_fault() {
        let mut fields = Fields::default();
        for (name, value) in [("work_id", "work_1"), ("session_id", ""), ("tool_use_id", "t1")] {
            fields.push(name, value);
        }
        assert_eq!(ids(&fields), " work=work_1 tool_use=t1");
        assert!(Progress::for_level(Level::DEBUG).verbose);
        assert!(!Progress::for_level(Level::INFO).verbose);
    }

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("memory").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn tracing_events_come_out_as_lines() {
        let memory = Memory::default();
        let writer = memory.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .event_format(Progress { watched: true, verbose: false })
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let id = "sesn_0123456789";
            tracing::info!(event = "call.held", session = %id, tool = "bash", "tool call");
            tracing::warn!(event = "new.event", count = 3, "something new");
        });
        let out = String::from_utf8(memory.0.lock().expect("memory").clone()).expect("UTF-8");
        let lines: Vec<&str> = out.lines().map(|line| &line[8..]).collect();
        assert_eq!(
            lines,
            [" 23456789 bash waits for confirmation", " warning: something new count=3"]
        );
    }
}
