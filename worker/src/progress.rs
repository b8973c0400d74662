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

/// Name of an event, and its sentence (OBS-5). `{x}` is a field; one that ends in `_us` or `_ms` is
/// written as a duration, `bytes` as a size.
#[rustfmt::skip]
const PHRASES: &[(&str, &str)] = &[
    ("worker.started",          "worker {version} started, level {level}, policy {policy}"),
    ("worker.stopped",          "worker stopped: {reason}"),
    ("worker.draining",         "stopping: {active} sessions may finish their calls"),
    ("config.reloaded",         "read again: {what}"),
    ("recovery",                "removed what an earlier worker left: {removed}"),
    ("poll.started",            "polling for work of {environment}"),
    ("poll.idle",               "no work yet"),
    ("poll.still_idle",         "still polling, no work for {idle_ms}"),
    ("poll.failed",             "poll failed (try {attempt}), next in {wait_ms}"),
    ("poll.rejected",           "poll refused for good"),
    ("poll.drained",            "queue is empty"),
    ("item.claimed",            "claimed {work} ({kind})"),
    ("item.ack_failed",         "could not confirm {work}"),
    ("item.skipped",            "skipped {work}: a {kind} is not run here"),
    ("item.no_token",           "{work} came with a secret that holds no token"),
    ("item.ended",              "item ended: {reason}"),
    ("item.failed",             "item failed"),
    ("item.stop_failed",        "could not hand the item back"),
    ("item.released",           "lease lost, let go without stopping"),
    ("heartbeat.failed",        "heartbeat failed (try {attempt})"),
    ("heartbeat.rejected",      "heartbeat refused for good"),
    ("heartbeat.stop",          "control plane asks to stop ({state})"),
    ("lease.lost",              "lease lost ({state})"),
    ("lease.assumed_lost",      "lease assumed lost: no heartbeat for {silent_ms}"),
    ("session.started",         "session started"),
    ("session.over",            "session was over already"),
    ("session.idle",            "session idle, letting go"),
    ("session.terminated",      "session terminated"),
    ("session.disposed",        "everything of the session removed"),
    ("stream.disconnected",     "stream lost, again in {wait_ms}"),
    ("stream.failed",           "stream refused for good"),
    ("reconcile.failed",        "could not read the history"),
    ("call.started",            "{tool} started"),
    ("call.ended",              "{tool} {status}"),
    ("call.not_owned",          "{tool} belongs to somebody else"),
    ("call.awaiting",           "{tool} waits for confirmation"),
    ("call.confirmed",          "{tool} confirmed"),
    ("call.denied",             "{tool} denied"),
    ("thread.terminated",       "thread {thread} terminated"),
    ("send.retry",              "result not accepted (try {attempt}), again in {wait_ms}"),
    ("send.failed",             "result not posted"),
    ("skill.downloaded",        "skill {skill} downloaded"),
    ("skill.failed",            "skill {skill} not downloaded"),
    ("memory.downloaded",       "{count} memories downloaded"),
    ("memory.failed",           "memories not synchronised"),
    ("memory.cut_off",          "{count} memories not written: time was up"),
    ("limit.hit",               "limit {limit} reached"),
    ("egress.denied",           "network: {host}:{port} denied"),
    ("jail.failed",             "no jail: {reason}"),
];

/// Writes events as lines for people.
#[derive(Debug)]
pub struct Progress {
    /// A person watches: the time of day is enough.
    watched: bool,
}

impl Default for Progress {
    /// For standard error.
    fn default() -> Self {
        Progress { watched: std::io::stderr().is_terminal() }
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
        writeln!(writer, "{}", line(SystemTime::now(), level, &fields, colour, self.watched))
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
fn visible(value: &str) -> String {
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
    let what = sentence(fields).unwrap_or_else(|| generic(fields));
    let _infallible = write!(out, " {mark}{what}");
    out
}

/// The end of an id.
fn short(id: &str) -> &str {
    let start = id.char_indices().rev().nth(SHORT_ID - 1).map_or(0, |(at, _)| at);
    &id[start..]
}

/// The sentence of a known event that has all it needs; then duration and error, if there are any.
fn sentence(fields: &Fields) -> Option<String> {
    let event = fields.get("event")?;
    let (_, phrase) = PHRASES.iter().find(|(name, _)| *name == event)?;
    let mut out = String::new();
    let mut rest = *phrase;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}')?;
        out.push_str(before);
        out.push_str(&shown(name, fields.get(name)?));
        rest = after;
    }
    out.push_str(rest);
    if let Some(took) = fields.get("duration_us") {
        let _infallible = write!(out, " ({})", shown("duration_us", took));
    }
    if let Some(error) = fields.get("error") {
        let _infallible = write!(out, ": {error}");
    }
    Some(out)
}

fn generic(fields: &Fields) -> String {
    let title = fields.get("message").or_else(|| fields.get("event")).unwrap_or("event");
    let mut out = title.to_owned();
    let told = |name: &str| matches!(name, "message" | "event" | "session" | "session_id");
    for (name, value) in fields.0.iter().filter(|(name, _)| !told(name)) {
        let quoted = value.contains(' ') || value.is_empty();
        let _infallible = match quoted {
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
        _ => value.to_owned(),
    }
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
            (&[("event", "poll.started"), ("environment_id", "env_1")],
             "08:00:00 polling for work of env_1"),
            (&[("event", "item.claimed"), ("work_id", "work_0123456789"), ("kind", "session"), ("session_id", "sesn_01ABCDEFGHIJ")],
             "08:00:00 CDEFGHIJ claimed work_0123456789 (session)"),
            (&[("event", "call.ended"), ("session", "s1"), ("tool", "bash"), ("status", "ok"), ("duration_us", "2500")],
             "08:00:00 s1 bash ok (2 ms)"),
            (&[("event", "poll.failed"), ("attempt", "3"), ("wait_ms", "8400"), ("error", "connection refused")],
             "08:00:00 poll failed (try 3), next in 8.4 s: connection refused"),
            (&[("event", "lease.assumed_lost"), ("session", "s1"), ("silent_ms", "61000")],
             "08:00:00 s1 lease assumed lost: no heartbeat for 1 min 01 s"),
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
            plain(&[("event", "call.ended"), ("tool", "bash")]),
            "08:00:00 call.ended tool=bash"
        );
        assert_eq!(plain(&[]), "08:00:00 event");
    }

    #[test]
    fn a_file_gets_the_date_and_colour_is_for_those_who_want_it() {
        let fields = [("event", "item.failed"), ("session", "s1")];
        assert_eq!(
            text(Level::ERROR, &fields, Colour::Off, false),
            "2027-01-15T08:00:00Z s1 error: item failed"
        );
        assert_eq!(
            text(Level::WARN, &fields, Colour::On, true),
            "\u{1b}[2m08:00:00\u{1b}[0m \u{1b}[36ms1\u{1b}[0m \u{1b}[33mwarning: \u{1b}[0mitem failed"
        );
    }

    /// A tool's name comes from a model, an error from a server.
    #[test]
    fn a_value_cannot_write_a_line_of_its_own_or_speak_to_the_terminal() {
        let evil = "x\n08:00:00 all good\u{1b}[2J\u{202e}";
        let line = plain(&[("event", "call.started"), ("tool", evil)]);
        assert_eq!(line, "08:00:00 x\\n08:00:00 all good\\u{1b}[2J\\u{202e} started");
        let long = plain(&[("event", "call.started"), ("tool", &"y".repeat(5000))]);
        assert_eq!(long.chars().count(), "08:00:00  started".len() + VALUE_CHARS_MAX + 1);
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
    fn every_phrase_is_well_formed_and_named_once() {
        for (at, (name, phrase)) in PHRASES.iter().enumerate() {
            assert_eq!(phrase.matches('{').count(), phrase.matches('}').count(), "{name}");
            assert!(PHRASES[..at].iter().all(|(other, _)| other != name), "{name} twice");
        }
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
            .event_format(Progress { watched: true })
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let id = "sesn_0123456789";
            tracing::info!(event = "call.started", session = %id, tool = "bash", "tool call");
            tracing::warn!(event = "new.event", count = 3, "something new");
        });
        let out = String::from_utf8(memory.0.lock().expect("memory").clone()).expect("UTF-8");
        let lines: Vec<&str> = out.lines().map(|line| &line[8..]).collect();
        assert_eq!(lines, [" 23456789 bash started", " warning: something new count=3"]);
    }
}
