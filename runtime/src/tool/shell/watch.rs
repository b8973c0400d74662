//! Waiting for a call to end, and asking the keeper: where the executor reads what the tool tree
//! sends. Every wait has a deadline, and no stream is read for long without a look at the others.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::link::{FromKeeper, ToKeeper, until};
use super::output::Tail;
use super::script::{self, Reports};
use super::{Shell, State};

/// How long the keeper may take for an answer; longer than it may take to kill.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// How often a quiet shell is looked at.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// How often a stream is read before the others get their turn.
const READS_MAX: usize = 16;

/// Why waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The command's status.
    Status(i32),
    /// The shell's own end.
    Ended(i32),
    TimedOut,
    Cancelled,
    /// The shell took our lines and did not do what they say.
    Lost,
}

impl Shell {
    /// Collects output until the report with `nonce` arrives or something else ends the call.
    pub(super) fn watch(
        &mut self,
        tail: &mut Tail,
        nonce: &str,
        deadline: Instant,
        cancel: Option<BorrowedFd<'_>>,
    ) -> io::Result<Ending> {
        let mut reports = Reports::default();
        let mut probe = Instant::now() + PROBE_INTERVAL;
        let mut taken_since = None;
        loop {
            let [output, status, keeper, cancelled] = self.wait(deadline.min(probe), cancel)?;
            if status && let Some(code) = self.read_status(&mut reports, nonce)? {
                return Ok(Ending::Status(code));
            }
            if cancelled {
                return Ok(Ending::Cancelled);
            }
            if keeper && let Some(ending) = self.hear_of_end()? {
                // The report may have been written before.
                let status = self.read_status(&mut reports, nonce)?;
                self.ended_unseen = status.is_some();
                return Ok(status.map_or(ending, Ending::Status));
            }
            if output {
                self.read_output(tail, READS_MAX * self.scratch.len())?;
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(Ending::TimedOut);
            }
            if now >= probe {
                probe = now + PROBE_INTERVAL;
                // The second line stays in the pipe until the command is done. A shell that has
                // taken it and does not report will never do so: `set -n`, a function `builtin`.
                if rustix::io::ioctl_fionread(&self.commands)? == 0 {
                    let since = *taken_since.get_or_insert(now);
                    if now - since >= self.limits.answer_grace {
                        return Ok(Ending::Lost);
                    }
                }
            }
        }
    }

    /// Which of output, status, keeper and `cancel` can be read.
    fn wait(&self, deadline: Instant, cancel: Option<BorrowedFd<'_>>) -> io::Result<[bool; 4]> {
        let of = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        // In the place of no `cancel`, one that is asked for anyway.
        let last = cancel.unwrap_or(self.link.as_fd());
        let fds = [self.output.as_fd(), self.status.as_fd(), self.link.as_fd(), last];
        let mut fds = fds.map(of);
        match poll(&mut fds, Some(&until(deadline))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = fds.map(|fd| !fd.revents().is_empty());
        ready[3] &= cancel.is_some();
        Ok(ready)
    }

    /// Reads output while there is some, at most about `bytes_max` of it.
    fn read_output(&mut self, tail: &mut Tail, bytes_max: usize) -> io::Result<()> {
        let mut left = bytes_max;
        while left > 0 {
            let length = left.min(self.scratch.len());
            match rustix::io::read(&self.output, &mut self.scratch[..length]) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(read) => {
                    tail.push(&self.scratch[..read]);
                    left -= read;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads the output that is there now. More may come for ever, from the background.
    pub(super) fn drain(&mut self, tail: &mut Tail) -> io::Result<()> {
        let there = rustix::io::ioctl_fionread(&self.output)?;
        self.read_output(tail, usize::try_from(there).unwrap_or(usize::MAX))
    }

    fn read_status(&mut self, reports: &mut Reports, nonce: &str) -> io::Result<Option<i32>> {
        for _ in 0..READS_MAX {
            match rustix::io::read(&self.status, &mut self.scratch[..]) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(None),
                Ok(read) => {
                    if let Some(status) = reports.find(&self.scratch[..read], nonce) {
                        return Ok(Some(status));
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Word of the keeper that nobody asked for.
    fn hear_of_end(&mut self) -> io::Result<Option<Ending>> {
        match self.link.receive(Instant::now())? {
            None => Ok(None),
            Some(FromKeeper::Ended(code)) => {
                self.state = State::Absent;
                Ok(Some(Ending::Ended(code)))
            }
            // One that outlived its call against our will.
            Some(FromKeeper::ToolEnded(_)) => Ok(None),
            Some(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The keeper's answer to what it was asked last. A shell that ended meanwhile is noted.
    pub(super) fn answer(&mut self) -> io::Result<FromKeeper> {
        let deadline = Instant::now() + ANSWER_TIME_MAX;
        loop {
            match self.link.receive(deadline)? {
                None => return Err(io::ErrorKind::TimedOut.into()),
                Some(FromKeeper::Ended(_)) => {
                    self.state = State::Absent;
                    self.ended_unseen = true;
                }
                Some(FromKeeper::ToolEnded(_)) => {}
                Some(answer) => return Ok(answer),
            }
        }
    }

    /// Has the keeper kill; true if all that was to die is dead.
    pub(super) fn kill(&mut self, what: ToKeeper) -> io::Result<bool> {
        if self.state == State::Starting {
            self.ensure_started()?;
        }
        self.link.send(&what)?;
        match self.answer()? {
            FromKeeper::Killed(all) => Ok(all),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Sees to it that a shell runs, or says with which error the keeper could not start one.
    pub(super) fn ensure_started(&mut self) -> io::Result<Option<i32>> {
        if self.state == State::Running && self.hear_of_end()?.is_some() {
            self.ended_unseen = true;
        }
        self.warm_up();
        if self.state == State::Starting {
            match self.answer()? {
                FromKeeper::Started => self.state = State::Running,
                FromKeeper::NotStarted(errno) => {
                    self.state = State::Absent;
                    return Ok(Some(errno));
                }
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        Ok(None)
    }

    /// Writes our lines to the shell, whole or not at all; false if there is no room, which there
    /// always is unless a process of the tool tree filled the pipe.
    pub(super) fn tell(&self, lines: &str) -> io::Result<bool> {
        debug_assert!(lines.len() <= 4096, "PIPE_BUF, pipe(7)");
        loop {
            match rustix::io::write(&self.commands, lines.as_bytes()) {
                Ok(written) => return Ok(written == lines.len()),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A program may have left the description that all others share non-blocking.
    pub(super) fn make_output_block(&self) -> io::Result<()> {
        let Some(writer) = &self.output_writer else { return Ok(()) };
        let flags = rustix::fs::fcntl_getfl(writer)?;
        if flags.contains(OFlags::NONBLOCK) {
            rustix::fs::fcntl_setfl(writer, flags & !OFlags::NONBLOCK)?;
        }
        Ok(())
    }

    /// Replaces the content of the file that the shell reads the command from.
    pub(super) fn write_script(&self, command: &str) -> Result<(), Errno> {
        self.hand_over(&script::script(command))
    }

    /// Replaces the content of the file that both sides have.
    pub(super) fn hand_over(&self, bytes: &[u8]) -> Result<(), Errno> {
        let mut written = 0;
        while written < bytes.len() {
            match rustix::io::pwrite(&self.script, &bytes[written..], written as u64) {
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        rustix::fs::ftruncate(&self.script, bytes.len() as u64)
    }
}
