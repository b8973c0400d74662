//! Sentences for people: why a jail did not start, which limit took effect, what to do.

use std::io::{self, Write as _};

use stockade_runtime::jail::{End, ExportReport, Failure, LimitHit};
use stockade_runtime::spec::Area;

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
    let key = setting(hit);
    match hit {
        LimitHit::WallTime { milliseconds } => format!(
            "the wall clock limit of {} s was reached and everything was stopped ({key})",
            *milliseconds as f64 / 1000.0
        ),
        LimitHit::Memory { bytes, kills } => format!(
            "the memory limit of {} was reached and {kills} {} killed ({key})",
            size(*bytes),
            if *kills == 1 { "process was" } else { "processes were" }
        ),
        LimitHit::Processes { max, refused } => format!(
            "the limit of {max} processes was reached and {refused} {} refused ({key})",
            if *refused == 1 { "fork was" } else { "forks were" }
        ),
        LimitHit::Bytes { place, bytes, .. } => {
            format!("{place} is full: {} ({key})", size(*bytes))
        }
        LimitHit::Inodes { place, inodes, .. } => {
            format!("{place} has no room for more files: {inodes} ({key})")
        }
        LimitHit::Output { bytes } => format!(
            "the output limit of {} was reached and everything was stopped ({key})",
            size(*bytes)
        ),
        LimitHit::CpuTime { seconds } => {
            format!("a process used its {seconds} s of CPU time ({key})")
        }
    }
}

/// The setting that sets a limit: of the policy, or of the configuration (`[skills]`, `[memory]`).
pub fn setting(hit: &LimitHit) -> &'static str {
    match hit {
        LimitHit::WallTime { .. } => "process.wall_time",
        LimitHit::Memory { .. } => "process.memory",
        LimitHit::Processes { .. } => "process.pids",
        LimitHit::Bytes { area, .. } => match area {
            Area::Workspace => "filesystem.workspace_size",
            Area::Tmp => "filesystem.tmp_size",
            Area::Shm => "filesystem.shm_size",
            Area::Skills => "skills.size",
            Area::Store => "memory.store_size",
        },
        LimitHit::Inodes { area, .. } => match area {
            Area::Workspace => "filesystem.workspace_inodes",
            Area::Tmp | Area::Shm => "filesystem.tmp_inodes",
            Area::Skills => "skills.entries",
            Area::Store => "memory.store_files",
        },
        LimitHit::Output { .. } => "process.output",
        LimitHit::CpuTime { .. } => "process.cpu_time",
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
        let bytes = |area| LimitHit::Bytes { place: "/p".to_owned(), area, bytes: 1 << 20 };
        let inodes = |area| LimitHit::Inodes { place: "/p".to_owned(), area, inodes: 5 };
        let cases = [
            (LimitHit::WallTime { milliseconds: 1500 }, "1.5 s", "process.wall_time"),
            (LimitHit::Memory { bytes: 128 << 20, kills: 2 }, "128 MiB", "process.memory"),
            (LimitHit::Processes { max: 64, refused: 9 }, "64 processes", "process.pids"),
            (bytes(Area::Tmp), "/p is full: 1 MiB", "filesystem.tmp_size"),
            (bytes(Area::Shm), "/p is full", "filesystem.shm_size"),
            (bytes(Area::Workspace), "/p is full", "filesystem.workspace_size"),
            (bytes(Area::Skills), "/p is full", "skills.size"),
            (bytes(Area::Store), "/p is full", "memory.store_size"),
            (inodes(Area::Tmp), "/p has no room for more files: 5", "filesystem.tmp_inodes"),
            (inodes(Area::Shm), "/p has no room", "filesystem.tmp_inodes"),
            (inodes(Area::Workspace), "/p has no room", "filesystem.workspace_inodes"),
            (inodes(Area::Skills), "/p has no room", "skills.entries"),
            (inodes(Area::Store), "/p has no room", "memory.store_files"),
            (LimitHit::Output { bytes: 10 }, "10 bytes", "process.output"),
            (LimitHit::CpuTime { seconds: 3 }, "3 s", "process.cpu_time"),
        ];
        for (hit, what, key) in cases {
            let text = limit(&hit);
            assert!(text.contains(what) && text.contains(&format!("({key})")), "{text}");
        }
    }
}
