//! The persistent shell (protocol §6.3): one bash for all calls of a session.
//!
//! Two processes run what is here. The executor, which the shell cannot see, holds a [`Shell`]; the
//! keeper ([`keep`]) is PID 1 of the tool tree and starts, reaps and kills for it. Between them
//! and bash lie connections that are made once (by init), before any layer is on, and serve every shell
//! of the session.
//!
//! A call ends by the report of its status (`script`), by word of the keeper that the shell ended,
//! by its time limit or by being cancelled. The end of the output means nothing: a background
//! process may hold it open, and what comes late belongs to the next call.
//!
//! Custom tools (`custom`) are started by the same keeper, beside the shell, over pipes of their own.

mod custom;
mod input;
mod keeper;
mod link;
mod output;
mod processes;
mod script;
mod watch;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

pub use keeper::{Confine, KeeperEnds, ShellPlan, keep, keep_confining};
pub use processes::end_descendants;

use super::call::{Block, CallFacts, ShellFate, ToolResult};
use input::Request;
use link::{FromKeeper, Link, ToKeeper};
use output::Tail;
use watch::Ending;

const RESTARTED: &str = "the shell was restarted (working directory and variables were reset)";
const KEPT: &str = "the shell kept its working directory and variables";
const ENDED: &str =
    "bash: the shell ended and was restarted (working directory and variables were reset)";
const LOST: &str = "bash: the shell stopped answering and was restarted (working directory and \
     variables were reset)";
const GONE: &str = "bash: the processes of this session are gone; no shell can be started";
const GONE_MEANWHILE: &str = "bash: the processes of this session ended while this command ran; its \
     outcome is unknown and it was not run again";

/// What the executor holds of the connections between itself, keeper and shell.
#[derive(Debug)]
pub struct ShellEnds {
    /// Write end of the shell's standard input.
    pub commands: OwnedFd,
    /// The file of the command.
    pub script: OwnedFd,
    /// Read end of output.
    pub output: OwnedFd,
    /// A copy of output's write end. A program may leave it non-blocking, which would fail the
    /// programs after it.
    pub output_writer: Option<OwnedFd>,
    /// Read end of status.
    pub status: OwnedFd,
    /// What custom tools print.
    pub tool: ToolEnds,
    /// To the keeper.
    pub keeper: OwnedFd,
}

/// The executor's side of what custom tools print: output and errors.
#[derive(Debug)]
pub struct ToolEnds {
    /// Read ends.
    pub read: [OwnedFd; 2],
    /// Copies of the write ends, for the same reason as with the shell's output.
    pub writers: Option<[OwnedFd; 2]>,
}

/// Bounds of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShellLimits {
    /// For a call that names none.
    pub default_timeout: Duration,
    /// A longer one is cut to this.
    pub timeout_max: Duration,
    /// Last bytes of output that are kept.
    pub output_bytes_max: usize,
    /// How long a shell may take to come back after its command was ended.
    pub answer_grace: Duration,
}

impl Default for ShellLimits {
    fn default() -> Self {
        ShellLimits {
            default_timeout: Duration::from_secs(120),
            timeout_max: Duration::from_secs(3600),
            output_bytes_max: 102_400,
            answer_grace: Duration::from_secs(2),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// None runs.
    Absent,
    /// The keeper was asked for one.
    Starting,
    Running,
    /// The keeper is gone, or talks nonsense.
    Lost,
}

/// The shell of one session, as the executor holds it. One call at a time.
#[derive(Debug)]
pub struct Shell {
    commands: OwnedFd,
    script: OwnedFd,
    output: OwnedFd,
    output_writer: Option<OwnedFd>,
    status: OwnedFd,
    tool: ToolEnds,
    link: Link,
    limits: ShellLimits,
    state: State,
    /// A shell ended while no call ran, and no result has said so yet.
    ended_unseen: bool,
    /// The shell may have begun with the command of this call.
    handed_over: bool,
    scratch: Box<[u8]>,
}

/// How a call came to its end, all told.
struct Outcome {
    ending: Ending,
    /// After a time limit or a cancellation: whether the shell is still the same.
    survived: bool,
}

impl Shell {
    /// Nothing runs yet.
    pub fn new(ends: ShellEnds, limits: ShellLimits) -> Shell {
        let mut shell = Shell {
            commands: ends.commands,
            script: ends.script,
            output: ends.output,
            output_writer: ends.output_writer,
            status: ends.status,
            tool: ends.tool,
            link: Link::new(ends.keeper),
            limits,
            state: State::Absent,
            ended_unseen: false,
            handed_over: false,
            scratch: vec![0; 1 << 16].into(),
        };
        // The commands, too: a process that fills the pipe while the shell is stopped must not stop us.
        let [tool_output, tool_errors] = &shell.tool.read;
        let ours = [&shell.output, &shell.status, &shell.commands, tool_output, tool_errors];
        for pipe in ours {
            if rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK).is_err() {
                shell.state = State::Lost; // not a pipe: nothing can be run over it
            }
        }
        shell
    }

    /// Starts the shell ahead of the first call, without waiting.
    pub fn warm_up(&mut self) {
        if self.state == State::Absent {
            let sent = self.link.send(&ToKeeper::Start);
            self.state = if sent.is_ok() { State::Starting } else { State::Lost };
        }
    }

    /// Runs one call of bash. `input` is its JSON object; `cancel` becomes readable when the call
    /// shall end now.
    ///
    /// Takes no longer than the call's time limit, the time to kill what it started and twice the
    /// grace of the shell.
    pub fn call(&mut self, input: &[u8], cancel: BorrowedFd<'_>) -> ToolResult {
        let received = Instant::now();
        self.handed_over = false;
        let mut result = match input::parse(input, &self.limits) {
            Err(text) => ToolResult::error(text),
            Ok(request) => self.perform(&request, cancel).unwrap_or_else(|_lost| {
                self.state = State::Lost;
                gone(if self.handed_over { GONE_MEANWHILE } else { GONE })
            }),
        };
        result.facts.wall_us = u64::try_from(received.elapsed().as_micros()).unwrap_or(u64::MAX);
        result
    }

    /// Kills every process of the tool tree; the next call gets a fresh shell. False if some are
    /// left, or if the keeper does not answer.
    pub fn quiesce(&mut self) -> bool {
        if self.state == State::Lost {
            return false;
        }
        let killed = self.kill(ToKeeper::KillAll);
        if killed.is_err() {
            self.state = State::Lost;
        }
        self.ended_unseen = false;
        killed.unwrap_or(false)
    }

    fn perform(&mut self, request: &Request, cancel: BorrowedFd<'_>) -> io::Result<ToolResult> {
        if self.state == State::Lost {
            return Ok(gone(GONE));
        }
        if request.restart {
            self.kill(ToKeeper::KillAll)?;
            self.ended_unseen = false;
        }
        if let Some(errno) = self.ensure_started()? {
            return Ok(ToolResult::error(cannot_start(errno)));
        }
        let mut result = match &request.command {
            None => ToolResult::text("bash session restarted"),
            Some(command) => self.run(command, request.timeout, cancel)?,
        };
        if request.restart {
            result.facts.shell = ShellFate::Restarted;
        }
        Ok(result)
    }

    /// Runs `command` in the shell, which is there.
    fn run(
        &mut self,
        command: &str,
        timeout: Duration,
        cancel: BorrowedFd<'_>,
    ) -> io::Result<ToolResult> {
        let deadline = Instant::now() + timeout;
        let mut tail = Tail::new(self.limits.output_bytes_max);
        self.make_output_block()?;
        let nonce = nonce()?;
        if let Err(error) = self.write_script(command) {
            let reason = io::Error::from_raw_os_error(error.raw_os_error());
            return Ok(ToolResult::error(format!("bash: cannot hand over the command: {reason}")));
        }
        self.handed_over = true;
        let mut ending = match self.tell(&script::lines(&nonce))? {
            true => self.watch(&mut tail, &nonce, deadline, Some(cancel))?,
            false => Ending::Lost,
        };
        if ending == Ending::Status(1) && !self.obeys(&mut tail)? {
            ending = Ending::Lost;
        }
        let survived = match ending {
            Ending::TimedOut | Ending::Cancelled => self.end_command(&mut tail, &nonce)?,
            Ending::Lost => {
                self.kill_shell()?;
                false
            }
            // A command that sent our signal to the shell would make all later ones return at once.
            Ending::Status(script::ABORTED) => self.settle(&mut tail)?,
            Ending::Status(_) | Ending::Ended(_) => true,
        };
        // The keeper counts while we turn the output into text.
        self.link.send(&ToKeeper::Count)?;
        self.drain(&mut tail)?;
        let outcome = Outcome { ending, survived };
        let mut result = self.result(&tail, &outcome, timeout);
        if let FromKeeper::Counted(count) = self.answer()? {
            result.facts.left_running = count;
        }
        Ok(result)
    }

    /// The command shall end now. Ends it and what it started, and gives the shell a while to come
    /// back; otherwise the shell ends too. True if it is still the same.
    fn end_command(&mut self, tail: &mut Tail, nonce: &str) -> io::Result<bool> {
        // With another status the command took our trap away, and went on after what was killed.
        let aborted = Some(script::ABORTED);
        if self.kill(ToKeeper::Interrupt)? && self.comes_back(tail, nonce)? == aborted {
            // What the shell started before it heard the signal.
            if self.kill(ToKeeper::KillNew)? {
                return self.settle(tail);
            }
        }
        self.kill_shell()?;
        Ok(false)
    }

    /// Whether a silent failure was the command's own. A restricted shell (`set -r`), or one whose
    /// descriptors were closed, cannot open the file of the command, which looks the same.
    fn obeys(&mut self, tail: &mut Tail) -> io::Result<bool> {
        self.drain(tail)?;
        let nonce = nonce()?;
        if tail.total() > 0 || self.write_script(r"\builtin return 77").is_err() {
            return Ok(true);
        }
        Ok(self.tell(&script::lines(&nonce))? && self.comes_back(tail, &nonce)? == Some(77))
    }

    /// Takes back what the signal did to the shell, or ends it. True if it is still the same.
    fn settle(&mut self, tail: &mut Tail) -> io::Result<bool> {
        let nonce = nonce()?;
        if self.tell(&script::settle(&nonce))? && self.comes_back(tail, &nonce)?.is_some() {
            return Ok(true);
        }
        self.kill_shell()?;
        Ok(false)
    }

    /// The status that the shell reports within its grace.
    fn comes_back(&mut self, tail: &mut Tail, nonce: &str) -> io::Result<Option<i32>> {
        if self.state != State::Running {
            return Ok(None);
        }
        let deadline = Instant::now() + self.limits.answer_grace;
        Ok(match self.watch(tail, nonce, deadline, None)? {
            Ending::Status(status) => Some(status),
            _ => None,
        })
    }

    /// Kills the shell and what the call started, or everything if that cannot be done.
    fn kill_shell(&mut self) -> io::Result<()> {
        if !self.kill(ToKeeper::KillShell)? {
            self.kill(ToKeeper::KillAll)?;
        }
        self.ended_unseen = false;
        Ok(())
    }

    fn result(&mut self, tail: &Tail, outcome: &Outcome, timeout: Duration) -> ToolResult {
        let (mut text, truncated) = tail.text();
        let fate = if outcome.survived { KEPT } else { RESTARTED };
        let mut add = |line: &str| {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(line);
        };
        let failed = match outcome.ending {
            Ending::Status(0) => false,
            Ending::Status(code) | Ending::Ended(code) => {
                if code != 0 || self.state == State::Absent {
                    add(&format!("exit code: {code}"));
                }
                code != 0
            }
            Ending::TimedOut => {
                let seconds = timeout.as_millis() as f64 / 1000.0;
                add(&format!("bash: command timed out after {seconds}s; {fate}"));
                true
            }
            Ending::Cancelled => {
                add(&format!("bash: command cancelled; {fate}"));
                true
            }
            Ending::Lost => {
                add(LOST);
                true
            }
        };
        let lost_after_status = matches!(outcome.ending, Ending::Status(_)) && !outcome.survived;
        let ended = matches!(outcome.ending, Ending::Ended(_)) || lost_after_status;
        if ended || std::mem::take(&mut self.ended_unseen) {
            add(ENDED);
        }
        if text.is_empty() {
            text.push_str("(no output)");
        }
        let facts = CallFacts {
            output_bytes: tail.total(),
            truncated,
            timed_out: outcome.ending == Ending::TimedOut,
            cancelled: outcome.ending == Ending::Cancelled,
            shell: if ended || !outcome.survived { ShellFate::Restarted } else { ShellFate::Kept },
            ..CallFacts::default()
        };
        ToolResult { content: vec![Block::Text(text)], is_error: failed, facts }
    }
}

/// The last result of a session whose keeper does not answer.
fn gone(text: &str) -> ToolResult {
    let facts = CallFacts { shell: ShellFate::Gone, ..CallFacts::default() };
    ToolResult { facts, ..ToolResult::error(text) }
}

/// A number for people; only what the keeper may meet has words of its own.
fn cannot_start(errno: i32) -> String {
    let reason = match errno {
        libc::EAGAIN => {
            "the limit on processes was reached (`restart: true` ends what earlier calls left \
             running)"
                .to_owned()
        }
        libc::ENOMEM => "out of memory".to_owned(),
        errno => io::Error::from_raw_os_error(errno).to_string(),
    };
    format!("bash: cannot start the shell: {reason}")
}

/// Nobody in the jail can know it before the shell reads it.
fn nonce() -> io::Result<String> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}
