//! The processes of the tool tree as its PID 1 sees them, and how those of one call are killed
//! while those of earlier calls live.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::process::{PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, wait};

use crate::sys::send_signal;

/// A process in a list. Its start time tells it from a later one with the same id.
#[derive(Debug, Clone, Copy)]
struct Process {
    pid: i32,
    parent: i32,
    start: u64,
}

/// Its parent may change while it lives.
impl PartialEq for Process {
    fn eq(&self, other: &Process) -> bool {
        (self.pid, self.start) == (other.pid, other.start)
    }
}

impl Eq for Process {}

impl std::hash::Hash for Process {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.pid, self.start).hash(state);
    }
}

/// Which processes are meant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Reach {
    /// All that a proc filesystem of the namespace shows, but its PID 1.
    #[default]
    Namespace,
    /// What descends from this process, which whatever they leave behind comes to (prctl(2),
    /// `PR_SET_CHILD_SUBREAPER`).
    Descendants(i32),
}

/// What lives in the tool tree beside keeper and shell.
#[derive(Debug, Default)]
pub(super) struct Processes {
    reach: Reach,
    /// A proc filesystem of the tool tree's PID namespace that hides nothing from the keeper.
    proc: Option<OwnedFd>,
    /// What earlier calls left running: id and start time.
    known: HashSet<(i32, u64)>,
}

impl Processes {
    /// What belongs to the calling keeper: its namespace if it is the first process of one, else what
    /// it starts.
    ///
    /// # Errors
    /// Outside a namespace of its own, if there is no proc filesystem to find children with.
    pub fn of_this_keeper(proc: Option<OwnedFd>) -> std::io::Result<Processes> {
        let own = std::process::id() as i32;
        if own == 1 {
            return Ok(Processes { reach: Reach::Namespace, proc, known: HashSet::new() });
        }
        let proc = Some(proc.ok_or(std::io::ErrorKind::NotFound)?);
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        Ok(Processes { reach: Reach::Descendants(own), proc, known: HashSet::new() })
    }

    /// Whether a signal to everybody reaches them and nobody else.
    pub fn are_a_namespace(&self) -> bool {
        self.reach == Reach::Namespace
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
            let mut stopped: HashSet<Process> = HashSet::new();
            for _ in 0..STOP_ROUNDS_MAX {
                let Some(new) = self.list_new(shell) else { return false };
                let fresh: Vec<_> = new.into_iter().filter(|one| stopped.insert(*one)).collect();
                if fresh.is_empty() {
                    break;
                }
                self.signal_each(&fresh, libc::SIGSTOP);
            }
            if stopped.is_empty() {
                return true;
            }
            self.signal_each(&stopped.into_iter().collect::<Vec<_>>(), libc::SIGKILL);
            if !pause() {
                return self.list_new(shell).is_some_and(|new| new.is_empty());
            }
        }
    }

    /// The processes that are not of earlier calls, nor descend from one that is.
    fn list_new(&self, shell: i32) -> Option<Vec<Process>> {
        let all = self.list(shell)?;
        let known = |process: &&Process| self.known.contains(&(process.pid, process.start));
        let known = all.iter().filter(known).map(|process| process.pid).collect();
        let earlier = with_descendants(known, &all);
        let new = all.into_iter().filter(|process| !earlier.contains(&process.pid));
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
            if pid != 1 {
                all.extend(self.read(pid)); // gone again: no entry
            }
        }
        if let Reach::Descendants(keeper) = self.reach {
            let ours = with_descendants(HashSet::from([keeper]), &all);
            all.retain(|process| process.pid != keeper && ours.contains(&process.pid));
        }
        all.retain(|process| process.pid != shell);
        Some(all)
    }

    /// Signals what is still the process that was listed.
    fn signal_each(&self, processes: &[Process], signal: i32) {
        for process in processes {
            // One that is gone by now needs no signal; one that is not shows in the next list.
            let _gone = match self.reach {
                Reach::Namespace => send_signal(process.pid, signal),
                Reach::Descendants(_) => self.signal_exactly(process, signal),
            };
        }
    }

    /// On a host an id may belong to somebody else by now: held first, looked at then.
    fn signal_exactly(&self, process: &Process, signal: i32) -> std::io::Result<()> {
        let gone = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let pid = rustix::process::Pid::from_raw(process.pid).ok_or_else(gone)?;
        let held = pidfd_open(pid, PidfdFlags::empty())?;
        let same = self.read(process.pid).is_some_and(|now| now.start == process.start);
        let signal = Signal::from_named_raw(signal).filter(|_| same).ok_or_else(gone)?;
        Ok(pidfd_send_signal(&held, signal)?)
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

/// Kills every process that descends from this one, for at most `limit`. For the last moments of a
/// process that adopts what its children leave.
pub fn end_descendants(limit: Duration) {
    const PAUSE: Duration = Duration::from_millis(1);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(proc) = rustix::fs::open("/proc", flags, Mode::empty()) else { return };
    let reach = Reach::Descendants(std::process::id() as i32);
    let all = Processes { reach, proc: Some(proc), known: HashSet::new() };
    let deadline = Instant::now() + limit;
    // Whether some are left: there is nothing more to be done about them.
    let _dead = all.kill_new(-1, || {
        std::thread::sleep(PAUSE);
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        Instant::now() < deadline
    });
}

/// `some` and all that descend from them.
fn with_descendants(mut some: HashSet<i32>, all: &[Process]) -> HashSet<i32> {
    loop {
        let before = some.len();
        let children = all.iter().filter(|process| some.contains(&process.parent));
        let children: Vec<i32> = children.map(|process| process.pid).collect();
        some.extend(children);
        if some.len() == before {
            return some;
        }
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
            assert_eq!((got.pid, got.parent, got.start), (12, 3, 4711), "{name}");
        }
        assert_eq!(parse_stat(12, &case("x", "Z")), None);
        assert_eq!(parse_stat(12, b"12 (x) S"), None);
        assert_eq!(parse_stat(12, b""), None);
    }
}
