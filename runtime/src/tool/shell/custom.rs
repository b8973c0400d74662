//! Calls of custom tools: a program for each call, beside the shell.
//!
//! Runs in the executor, as the shell's calls do, and by the same keeper. The call's input is in the
//! file that hands commands to the shell, which the program gets as its standard input; a program that
//! does not read it costs nothing. Output and errors have pipes of their own, made once, so what an
//! earlier program left running may still write to them: what is there before a call is dropped.
//!
//! A call ends by word of the keeper that the program ended, by its time limit or by being cancelled;
//! in the latter two cases everything that the call started is killed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::link::{FromKeeper, ToKeeper, until};
use super::output::Tail;
use super::watch::Ending;
use super::{Shell, State};
use crate::spec::CustomToolPlan;
use crate::tool::call::{Block, CallFacts, ShellFate, ToolResult};

/// How much of a stream is read before the others get their turn.
const READ_BYTES_MAX: usize = 1 << 20;

impl Shell {
    /// Runs one call of the custom tool at `index`, which `plan` describes. `cancel` becomes readable
    /// when the call shall end now.
    ///
    /// Takes no longer than the tool's time limit and the time to kill what it started.
    pub fn run_tool(
        &mut self,
        index: u16,
        plan: &CustomToolPlan,
        input: &[u8],
        cancel: BorrowedFd<'_>,
    ) -> ToolResult {
        let received = Instant::now();
        let mut begun = false;
        let outcome = match self.state {
            State::Lost => Err(io::ErrorKind::BrokenPipe.into()),
            _ => self.perform_tool(index, plan, input, cancel, &mut begun),
        };
        let mut result = outcome.unwrap_or_else(|_lost| {
            self.state = State::Lost;
            lost(&plan.name, begun)
        });
        result.facts.wall_us = u64::try_from(received.elapsed().as_micros()).unwrap_or(u64::MAX);
        result
    }

    fn perform_tool(
        &mut self,
        index: u16,
        plan: &CustomToolPlan,
        input: &[u8],
        cancel: BorrowedFd<'_>,
        begun: &mut bool,
    ) -> io::Result<ToolResult> {
        let name = &plan.name;
        // The keeper's next word must be about the tool.
        if self.state == State::Starting {
            self.ensure_started()?;
        }
        self.make_ready_for_tool()?;
        if let Err(error) = self.hand_over(input) {
            let reason = io::Error::from_raw_os_error(error.raw_os_error());
            return Ok(ToolResult::error(format!("{name}: cannot hand over the input: {reason}")));
        }
        let timeout = self.tool_timeout(plan);
        let deadline = Instant::now() + timeout;
        *begun = true;
        self.link.send(&ToKeeper::RunTool(index))?;
        match self.answer()? {
            FromKeeper::Started => {}
            FromKeeper::NotStarted(errno) => return Ok(ToolResult::error(refused(name, errno))),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        let mut tails = [0, 1].map(|_| Tail::new(plan.output_bytes_max as usize));
        let ending = self.watch_tool(&mut tails, deadline, cancel)?;
        let ended_by_us = matches!(ending, Ending::TimedOut | Ending::Cancelled);
        if ended_by_us && !self.kill(ToKeeper::KillNew)? {
            // Rather everything than a part of it.
            self.kill(ToKeeper::KillAll)?;
            self.ended_unseen |= self.state == State::Absent;
        }
        self.link.send(&ToKeeper::Count)?;
        self.read_tool(&mut tails)?;
        let mut result = result(plan, &tails, ending, timeout);
        if let FromKeeper::Counted(count) = self.answer()? {
            result.facts.left_running = count;
        }
        // It is content, and needs memory. The next call writes it anew if this fails.
        let _kept = rustix::fs::ftruncate(&self.script, 0);
        Ok(result)
    }

    fn tool_timeout(&self, plan: &CustomToolPlan) -> Duration {
        Duration::from_millis(plan.time_ms_max).min(self.limits.timeout_max)
    }

    /// Undoes what earlier programs did to the pipes, and drops what is in them.
    fn make_ready_for_tool(&mut self) -> io::Result<()> {
        for writer in self.tool.writers.iter().flatten() {
            let flags = rustix::fs::fcntl_getfl(writer)?;
            if flags.contains(OFlags::NONBLOCK) {
                rustix::fs::fcntl_setfl(writer, flags & !OFlags::NONBLOCK)?;
            }
        }
        self.read_tool(&mut [0, 1].map(|_| Tail::new(0)))
    }

    /// Collects what the tool prints until something ends the call.
    fn watch_tool(
        &mut self,
        tails: &mut [Tail; 2],
        deadline: Instant,
        cancel: BorrowedFd<'_>,
    ) -> io::Result<Ending> {
        loop {
            let of = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
            let [output, errors] = &self.tool.read;
            let fds = [output.as_fd(), errors.as_fd(), self.link.as_fd(), cancel];
            let mut fds = fds.map(of);
            match poll(&mut fds, Some(&until(deadline))) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [output, errors, keeper, cancelled] = fds.map(|fd| !fd.revents().is_empty());
            if output || errors {
                self.read_tool(tails)?;
            }
            if keeper {
                match self.link.receive(Instant::now())? {
                    Some(FromKeeper::ToolEnded(code)) => return Ok(Ending::Status(code)),
                    Some(FromKeeper::Ended(_)) => {
                        (self.state, self.ended_unseen) = (State::Absent, true);
                    }
                    Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                    None => {}
                }
            }
            if cancelled {
                return Ok(Ending::Cancelled);
            }
            if Instant::now() >= deadline {
                return Ok(Ending::TimedOut);
            }
        }
    }

    /// Reads what is there, of each stream no more than its bound of one turn.
    fn read_tool(&mut self, tails: &mut [Tail; 2]) -> io::Result<()> {
        for (pipe, tail) in self.tool.read.iter().zip(tails) {
            let mut left = READ_BYTES_MAX;
            while left > 0 {
                match rustix::io::read(pipe, &mut self.scratch[..]) {
                    Ok(0) | Err(Errno::AGAIN) => break,
                    Ok(read) => {
                        tail.push(&self.scratch[..read]);
                        left = left.saturating_sub(read);
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

fn result(
    plan: &CustomToolPlan,
    tails: &[Tail; 2],
    ending: Ending,
    timeout: Duration,
) -> ToolResult {
    let name = &plan.name;
    let [output, errors] = tails;
    let both = output.followed_by(errors);
    let facts = CallFacts {
        output_bytes: both.total(),
        timed_out: ending == Ending::TimedOut,
        cancelled: ending == Ending::Cancelled,
        ..CallFacts::default()
    };
    let last_line = match ending {
        Ending::Status(0) if plan.verbatim => {
            let (bytes, all) = output.verbatim();
            if !all {
                let (found, most) = (output.total(), plan.output_bytes_max);
                let text = format!("{name}: its output of {found} bytes is longer than {most}");
                let facts = CallFacts { truncated: true, ..facts };
                return ToolResult { facts, ..ToolResult::error(text) };
            }
            let data = Block::Text(String::from_utf8_lossy(bytes).into_owned());
            let told = (errors.total() > 0).then(|| Block::Text(errors.text().0));
            let content = [data].into_iter().chain(told).collect();
            return ToolResult { content, is_error: false, facts };
        }
        Ending::Status(0) => None,
        Ending::TimedOut => {
            let seconds = timeout.as_millis() as f64 / 1000.0;
            Some(format!("{name}: timed out after {seconds}s and was ended, with all it started"))
        }
        Ending::Cancelled => Some(format!("{name}: cancelled and ended, with all it started")),
        Ending::Status(code) | Ending::Ended(code) => Some(format!("exit code: {code}")),
        Ending::Lost => Some(format!("{name}: its end was not seen")),
    };
    let (mut text, truncated) = both.text();
    if let Some(line) = &last_line {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(line);
    }
    if text.is_empty() {
        text.push_str("(no output)");
    }
    let facts = CallFacts { truncated, ..facts };
    ToolResult { content: vec![Block::Text(text)], is_error: last_line.is_some(), facts }
}

/// A number for people; only what the keeper may meet has words of its own.
fn refused(name: &str, errno: i32) -> String {
    let reason = match errno {
        libc::EAGAIN => "the limit on processes was reached".to_owned(),
        libc::ENOMEM => "out of memory".to_owned(),
        libc::EBUSY => "an earlier call of a custom tool could not be ended".to_owned(),
        errno => io::Error::from_raw_os_error(errno).to_string(),
    };
    format!("{name}: cannot start: {reason}")
}

/// The keeper does not answer: the session is over.
fn lost(name: &str, begun: bool) -> ToolResult {
    let text = match begun {
        true => format!(
            "{name}: the processes of this session ended while this call ran; its outcome is \
             unknown and it was not run again"
        ),
        false => format!("{name}: the processes of this session are gone; nothing can be started"),
    };
    let facts = CallFacts { shell: ShellFate::Gone, ..CallFacts::default() };
    ToolResult { facts, ..ToolResult::error(text) }
}
