//! The git starter: a process between the control side and one git, which holds git to its bounds and
//! ends it with the worker.
//!
//! This program, under another name, in a process group of its own, with git's environment and a pipe as
//! standard input that says nothing. It confines itself, starts git, which inherits that, and waits: for
//! git's end, or for the end of the pipe, which is the worker's own, however it ends. Then the whole
//! group is killed. git itself also dies with the starter. Of what git says on standard error (where
//! servers may speak too) nothing is repeated: it decides between the ways in which git fails.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use stockade_runtime::jail::{self, GitBounds};
use stockade_runtime::sys::{Forked, errors_instead_of_signals, fork};

use crate::credential::hidden;

/// The name by which this program knows that it is to be the git starter.
const NAME: &str = "stockade-git-starter";
/// How much of the end of what git says is looked at, and read at once.
const SAID_BYTES_MAX: usize = 16 << 10;

/// How git ended, or why it did not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// With success.
    Done,
    /// Otherwise.
    Failed,
    /// It was not started: it could not be confined, or is not there.
    NotStarted,
    /// It needed more memory than it may have.
    Memory,
    /// It wrote a file that is too large.
    FileSize,
    /// It used a processor for too long.
    Time,
}

impl Ended {
    const ALL: [Ended; 6] = [
        Ended::Done,
        Ended::Failed,
        Ended::NotStarted,
        Ended::Memory,
        Ended::FileSize,
        Ended::Time,
    ];

    /// From the exit code of the starter.
    pub fn of(status: ExitStatus) -> Ended {
        let number = status.code().and_then(|code| usize::try_from(code).ok());
        number.and_then(|code| Ended::ALL.get(code)).copied().unwrap_or(Ended::Failed)
    }

    fn code(self) -> i32 {
        self as i32
    }

    /// What `status` of git means, which ended with `said`.
    fn judged(status: ExitStatus, said: &[u8]) -> Ended {
        let said = String::from_utf8_lossy(said).to_lowercase();
        // A server can say what it likes; git marks that.
        let own = said.lines().filter(|line| !line.trim_start().starts_with("remote:"));
        let own: Vec<&str> = own.collect();
        let says = |text: &str| own.iter().any(|line| line.contains(text));
        let (file_size, time) = (Signal::XFSZ.as_raw(), Signal::XCPU.as_raw());
        let died = |number: i32| {
            status.signal() == Some(number) || says(&format!("died of signal {number}"))
        };
        match () {
            () if status.success() => Ended::Done,
            () if died(file_size) || says("file too large") => Ended::FileSize,
            () if died(time) => Ended::Time,
            () if says("out of memory") || says("cannot allocate memory") => Ended::Memory,
            () => Ended::Failed,
        }
    }
}

/// The command that runs `program` with `words` within `bounds`, writing nowhere but below
/// `directory`. Whoever starts it gives it a process group of its own and a pipe as standard input.
pub(super) fn command(
    program: &Path,
    bounds: &GitBounds,
    directory: &Path,
    words: &[&str],
) -> Command {
    let GitBounds { memory_bytes_max, file_bytes_max, cpu_seconds_max } = bounds;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(NAME)
        .args([memory_bytes_max, file_bytes_max, cpu_seconds_max].map(u64::to_string))
        .arg(directory)
        .arg(program)
        .args(words)
        .stdin(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// Whether a control side that has given up its rights can start this program once more.
///
/// # Errors
/// If the program's file cannot be looked at.
pub fn for_everybody() -> io::Result<bool> {
    Ok(std::fs::metadata("/proc/self/exe")?.permissions().mode() & 0o001 != 0)
}

/// Turns this process into the git starter if it was started as one. Call early in `main`.
pub fn become_git_starter_if_asked() {
    let mut arguments = std::env::args_os();
    if arguments.next().is_none_or(|name| name != NAME) {
        return;
    }
    hidden::set_process_name("git-starter");
    let ended = serve(&mut arguments).unwrap_or(Ended::NotStarted);
    std::process::exit(ended.code())
}

fn serve(arguments: &mut dyn Iterator<Item = OsString>) -> io::Result<Ended> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let mut next = || arguments.next().ok_or_else(invalid);
    let number = |text: OsString| -> io::Result<u64> {
        text.to_str().and_then(|text| text.parse().ok()).ok_or_else(invalid)
    };
    let bounds = GitBounds {
        memory_bytes_max: number(next()?)?,
        file_bytes_max: number(next()?)?,
        cpu_seconds_max: number(next()?)?,
    };
    let (directory, program) = (PathBuf::from(next()?), next()?);
    let words: Vec<OsString> = arguments.collect();
    let own = rustix::process::getpid();
    // The group is what is killed in the end.
    if rustix::process::getpgrp() != own {
        return Err(invalid());
    }
    jail::confine_git(&bounds, &directory)?;
    let (said, told) = pipe_with(PipeFlags::CLOEXEC)?;
    match fork()? {
        Forked::Child => {
            let failed = become_git(own, &program, &words, told);
            std::process::exit(match failed.kind() {
                io::ErrorKind::OutOfMemory => Ended::Memory.code(),
                _ => Ended::NotStarted.code(),
            })
        }
        Forked::Parent(git) => {
            drop(told);
            // What git prints ends with git.
            let null = rustix::fs::open(
                "/dev/null",
                rustix::fs::OFlags::WRONLY,
                rustix::fs::Mode::empty(),
            )?;
            rustix::stdio::dup2_stdout(&null)?;
            watch(Pid::from_raw(git).ok_or_else(invalid)?, &said)
        }
    }
}

/// Executes git; returns only if that fails.
fn become_git(starter: Pid, program: &OsStr, words: &[OsString], told: OwnedFd) -> io::Error {
    // What does not fit into a file is told in words then; a broken pipe kills as ever.
    let prepared =
        errors_instead_of_signals().and_then(|()| jail::end_with(starter.as_raw_nonzero().get()));
    if let Err(error) = prepared {
        return error;
    }
    Command::new(program).args(words).stdin(Stdio::null()).stderr(told).exec()
}

/// Waits for git's end, or kills everything at the end of the worker.
fn watch(git: Pid, said: &OwnedFd) -> io::Result<Ended> {
    let ended = rustix::process::pidfd_open(git, PidfdFlags::empty())?;
    let stdin = rustix::stdio::stdin();
    let (mut end, mut speaks) = (Vec::new(), true);
    loop {
        let listen = if speaks { PollFlags::IN } else { PollFlags::empty() };
        let mut waiting = [
            PollFd::new(&stdin, PollFlags::IN),
            PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(said.as_fd(), listen),
        ];
        match poll(&mut waiting, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let [worker, over, speech] = waiting.map(|one| !one.revents().is_empty());
        if worker {
            // The worker says nothing, so this is its end; and ours.
            rustix::process::kill_current_process_group(Signal::KILL)?;
        }
        if speech && speaks {
            speaks = hear(said, &mut end)?;
            continue;
        }
        if over {
            let waited = rustix::process::waitpid(Some(git), WaitOptions::empty())?;
            let (_, status) = waited.ok_or(io::ErrorKind::NotFound)?;
            return Ok(Ended::judged(ExitStatus::from_raw(status.as_raw()), &end));
        }
    }
}

/// Reads a piece and keeps the end of what was said; false when nobody can say more.
fn hear(said: &OwnedFd, end: &mut Vec<u8>) -> io::Result<bool> {
    let mut piece = [0; SAID_BYTES_MAX];
    let read = match rustix::io::read(said, &mut piece) {
        Ok(read) => read,
        Err(Errno::INTR) => return Ok(true),
        Err(errno) => return Err(errno.into()),
    };
    end.extend_from_slice(&piece[..read]);
    let before = end.len().saturating_sub(SAID_BYTES_MAX);
    end.drain(..before);
    Ok(read > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ways_in_which_git_fails_are_told_apart() {
        let (exited, signalled) = (|code: i32| code << 8, |number: i32| number);
        #[rustfmt::skip]
        let cases = [
            (exited(0),    "",                                                   Ended::Done),
            (exited(0),    "fatal: Out of memory",                               Ended::Done),
            (exited(128),  "fatal: not a commit\n",                              Ended::Failed),
            (exited(128),  "fatal: Out of memory, malloc failed (tried to …)\n", Ended::Memory),
            (exited(128),  "fatal: mmap failed: Cannot allocate memory\n",       Ended::Memory),
            (exited(128),  "error: index-pack died of signal 25\n",              Ended::FileSize),
            (exited(128),  "fatal: write error: File too large\n",               Ended::FileSize),
            (exited(128),  "error: index-pack died of signal 24\n",              Ended::Time),
            (signalled(25), "",                                                  Ended::FileSize),
            (signalled(24), "",                                                  Ended::Time),
            (signalled(9),  "",                                                  Ended::Failed),
            // What a server says is not believed.
            (exited(128),  "remote: Out of memory\nfatal: no\n",                 Ended::Failed),
        ];
        for (status, said, want) in cases {
            let got = Ended::judged(ExitStatus::from_raw(status), said.as_bytes());
            assert_eq!(got, want, "{status} {said}");
        }
    }

    #[test]
    fn an_end_is_carried_by_an_exit_code() {
        for ended in Ended::ALL {
            assert_eq!(Ended::of(ExitStatus::from_raw(ended.code() << 8)), ended);
        }
        assert_eq!(Ended::of(ExitStatus::from_raw(9)), Ended::Failed, "killed");
        assert_eq!(Ended::of(ExitStatus::from_raw(127 << 8)), Ended::Failed);
    }
}
