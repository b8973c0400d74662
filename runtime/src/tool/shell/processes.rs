//! The processes of the tool tree as its PID 1 sees them, and how those of one call are killed
//! while those of earlier calls live.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Dir, Mode, OFlags, openat};

use crate::sys::send_signal;

/// A process in a list. Its start time tells it from a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    start: u64,
}

/// What lives in the tool tree beside keeper and shell.
#[derive(Debug)]
pub(super) struct Processes {
    /// A proc filesystem of the tool tree's PID namespace that hides nothing from the keeper.
    proc: Option<OwnedFd>,
    /// What earlier calls left running: id and start time.
    known: HashSet<(i32, u64)>,
}

impl Processes {
    pub fn new(proc: Option<OwnedFd>) -> Processes {
        Processes { proc, known: HashSet::new() }
    }

    /// Whether a process ignores signal `number` (proc(5), SigIgn); false if that cannot be read.
    pub fn ignores(&self, pid: i32, number: i32) -> bool {
        let Some(proc) = &self.proc else { return false };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let Ok(file) = openat(proc, format!("{pid}/status"), flags, Mode::empty()) else {
            return false;
        };
        let mut text = vec![0; 4096];
        let read = rustix::io::read(&file, &mut text).unwrap_or(0);
        let ignored = String::from_utf8_lossy(&text[..read])
            .lines()
            .find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
        ignored.is_some_and(|ignored| ignored >> (number - 1) & 1 == 1)
    }

    /// Every process was killed.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// Counts what the call that ended left running; from now on it belongs to earlier calls.
    pub fn count_new(&mut self, shell: i32) -> u32 {
        let Some(all) = self.list(shell) else { return 0 };
        let known = all.iter().map(|process| (process.pid, process.start)).collect();
        let earlier = std::mem::replace(&mut self.known, known);
        self.known.difference(&earlier).count() as u32
    }

    /// Kills what the running call started, `pause` between two rounds. False if it cannot be
    /// listed, or if some are left when `pause` says so.
    ///
    /// Stopped first and killed then: a parent that saw its child die could act on it, and a fork
    /// bomb would refill what a round of kills empties.
    pub fn kill_new(&self, shell: i32, mut pause: impl FnMut() -> bool) -> bool {
        const STOP_ROUNDS_MAX: usize = 16;
        loop {
            let mut stopped = HashSet::new();
            for _ in 0..STOP_ROUNDS_MAX {
                let Some(new) = self.list_new(shell) else { return false };
                let fresh: Vec<i32> = new.into_iter().filter(|pid| stopped.insert(*pid)).collect();
                if fresh.is_empty() {
                    break;
                }
                signal_each(&fresh, libc::SIGSTOP);
            }
            if stopped.is_empty() {
                return true;
            }
            signal_each(&stopped.into_iter().collect::<Vec<i32>>(), libc::SIGKILL);
            if !pause() {
                return self.list_new(shell).is_some_and(|new| new.is_empty());
            }
        }
    }

    /// Ids of the processes that are not of earlier calls, nor descend from one that is.
    fn list_new(&self, shell: i32) -> Option<Vec<i32>> {
        let all = self.list(shell)?;
        let mut earlier: HashSet<i32> = all
            .iter()
            .filter(|process| self.known.contains(&(process.pid, process.start)))
            .map(|process| process.pid)
            .collect();
        loop {
            let before = earlier.len();
            let children = all.iter().filter(|process| earlier.contains(&process.parent));
            let children: Vec<i32> = children.map(|process| process.pid).collect();
            earlier.extend(children);
            if earlier.len() == before {
                break;
            }
        }
        let new = all.iter().map(|process| process.pid).filter(|pid| !earlier.contains(pid));
        Some(new.collect())
    }

    /// Every live process but keeper and shell; `None` without a proc filesystem.
    fn list(&self, shell: i32) -> Option<Vec<Process>> {
        let proc = self.proc.as_ref()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(proc, ".", flags, Mode::empty()).ok()?;
        let mut all = Vec::new();
        for entry in Dir::new(directory).ok()? {
            let entry = entry.ok()?;
            let Some(pid) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok())
            else {
                continue;
            };
            if pid != 1 && pid != shell {
                all.extend(self.read(pid)); // gone again: no entry
            }
        }
        Some(all)
    }

    fn read(&self, pid: i32) -> Option<Process> {
        let proc = self.proc.as_ref()?.as_fd();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(proc, format!("{pid}/stat"), flags, Mode::empty()).ok()?;
        let mut bytes = [0; 1024];
        let length = rustix::io::read(&file, &mut bytes).ok()?;
        parse_stat(pid, &bytes[..length])
    }
}

/// Fields of proc_pid_stat(5) after the name, which may contain anything. `None` for the dead.
fn parse_stat(pid: i32, stat: &[u8]) -> Option<Process> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let text = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    let (state, parent, start) = (fields.first()?, fields.get(1)?, fields.get(19)?);
    if matches!(*state, "Z" | "X") {
        return None;
    }
    Some(Process { pid, parent: parent.parse().ok()?, start: start.parse().ok()? })
}

fn signal_each(pids: &[i32], signal: i32) {
    for pid in pids {
        // One that is gone by now needs no signal; one that is not shows in the next list.
        let _gone = send_signal(*pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_line_of_a_process_is_read_whatever_its_name_is() {
        let rest = "7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 99 1";
        let case = |name: &str, state: &str| format!("12 ({name}) {state} 3 {rest}").into_bytes();
        for name in ["sleep", "a) Z 9 9 (b", "\u{fffd} )"] {
            let got = parse_stat(12, &case(name, "S")).expect("alive");
            assert_eq!(got, Process { pid: 12, parent: 3, start: 4711 }, "{name}");
        }
        assert_eq!(parse_stat(12, &case("x", "Z")), None);
        assert_eq!(parse_stat(12, b"12 (x) S"), None);
        assert_eq!(parse_stat(12, b""), None);
    }
}
