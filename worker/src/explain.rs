//! Sentences for people: why a jail did not start, which limit took effect, what to do.

use std::io::{self, Write as _};

use stockade_runtime::jail::{End, ExportReport, Failure, LimitHit};

use crate::exit::Exit;

/// Prints one error and what to do about it.
pub fn complain(error: &dyn std::error::Error, hint: Option<&str>) {
    let mut text = format!("error: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    say(&text);
    if let Some(hint) = hint {
        say(&format!("hint: {hint}"));
    }
}

/// Prints a line to standard error. That it cannot be told is no reason to fail.
pub fn say(line: &str) {
    let _unheard = writeln!(io::stderr(), "{line}");
}

/// Prints why no payload ran and returns the exit code that says the same.
pub fn failure(failure: &Failure) -> Exit {
    match failure {
        Failure::Command { command, errno, left } => {
            let (code, reason) = match *errno {
                2 => (127, "not found in the jail".to_owned()),
                13 => (126, "it is not executable".to_owned()),
                errno => (126, io::Error::from_raw_os_error(errno).to_string()),
            };
            say(&format!("error: cannot run `{command}`: {reason}"));
            if code == 127 {
                say("hint: a jail shows the host's /usr and what the policy adds with \
                     `filesystem.read_only`");
            }
            leftovers(left);
            Exit::Payload(code)
        }
        Failure::Canary { left, .. } => {
            complain(failure, Some("do not run sessions on this host; `worker doctor` tells more"));
            leftovers(left);
            Exit::Conformance
        }
        Failure::Step { failure: step, left } => {
            complain(failure, step.hint());
            leftovers(left);
            Exit::Isolation
        }
        other => {
            complain(other, None);
            Exit::Unexpected
        }
    }
}

/// Prints what the operator should know about a jail that ran, and returns the exit code.
pub fn end(end: &End) -> Exit {
    for hit in &end.limits {
        say(&format!("[jail] {}", limit(hit)));
    }
    end.exports.iter().for_each(export);
    leftovers(&end.left);
    let lost: u64 = end.exports.iter().map(|report| report.failed).sum();
    match end.limits.first() {
        Some(LimitHit::WallTime { .. }) => Exit::Payload(124),
        // The command succeeded, and its work did not arrive.
        _ if lost > 0 && end.status.code() == 0 => Exit::Unexpected,
        _ => Exit::Payload(u8::try_from(end.status.code()).unwrap_or(255)),
    }
}

fn leftovers(left: &[String]) {
    if !left.is_empty() {
        say(&format!("warning: could not remove {}", left.join(", ")));
        say("hint: `worker sweep` tries again");
    }
}

fn export(report: &ExportReport) {
    if report.skipped == 0 {
        return;
    }
    let noun = if report.skipped == 1 { "entry was" } else { "entries were" };
    say(&format!("[jail] {} {noun} not copied back:", report.skipped));
    for name in &report.skipped_names {
        say(&format!("[jail]   {name}"));
    }
}

/// One sentence about a limit, with the key that sets it.
pub fn limit(hit: &LimitHit) -> String {
    match hit {
        LimitHit::WallTime { milliseconds } => format!(
            "the wall clock limit of {} s was reached and everything was stopped (process.wall_time)",
            *milliseconds as f64 / 1000.0
        ),
        LimitHit::Memory { bytes, kills } => format!(
            "the memory limit of {} was reached and {kills} {} killed (process.memory)",
            size(*bytes),
            if *kills == 1 { "process was" } else { "processes were" }
        ),
        LimitHit::Processes { max, refused } => format!(
            "the limit of {max} processes was reached and {refused} {} refused (process.pids)",
            if *refused == 1 { "fork was" } else { "forks were" }
        ),
        LimitHit::Bytes { place, bytes } => {
            format!("{place} is full: {} (filesystem.{})", size(*bytes), size_key(place))
        }
        LimitHit::Inodes { place, inodes } => format!(
            "{place} has no room for more files: {inodes} (filesystem.{})",
            inode_key(place)
        ),
        LimitHit::Output { bytes } => format!(
            "the output limit of {} was reached and everything was stopped (process.output)",
            size(*bytes)
        ),
        LimitHit::CpuTime { seconds } => {
            format!("a process used its {seconds} s of CPU time (process.cpu_time)")
        }
    }
}

fn size_key(place: &str) -> &'static str {
    match place {
        "/tmp" => "tmp_size",
        "/dev/shm" => "shm_size",
        _ => "workspace_size",
    }
}

fn inode_key(place: &str) -> &'static str {
    match place {
        "/tmp" | "/dev/shm" => "tmp_inodes",
        _ => "workspace_inodes",
    }
}

/// A number of bytes in the largest unit that leaves no fraction.
fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{bytes} bytes"), |(unit, name)| format!("{} {name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_explained_with_the_key_that_sets_it() {
        let place = || "/tmp".to_owned();
        let cases = [
            (LimitHit::WallTime { milliseconds: 1500 }, "1.5 s", "process.wall_time"),
            (LimitHit::Memory { bytes: 128 << 20, kills: 2 }, "128 MiB", "process.memory"),
            (LimitHit::Processes { max: 64, refused: 9 }, "64 processes", "process.pids"),
            (LimitHit::Bytes { place: place(), bytes: 1 << 20 }, "/tmp is full", "tmp_size"),
            (LimitHit::Inodes { place: place(), inodes: 5 }, "/tmp has no room", "tmp_inodes"),
            (LimitHit::Output { bytes: 10 }, "10 bytes", "process.output"),
            (LimitHit::CpuTime { seconds: 3 }, "3 s", "process.cpu_time"),
        ];
        for (hit, what, key) in cases {
            let text = limit(&hit);
            assert!(text.contains(what) && text.contains(key), "{text}");
        }
    }
}
