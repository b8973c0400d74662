//! Carries bytes between the caller and a jail. No descriptor of the caller's enters a jail: what
//! it may be (a terminal, a file opened for reading, a socket) is nothing hostile code should hold.
//!
//! Runs in the control side, single-threaded, until the launcher says that it is over and every
//! stream has ended. Memory is bounded by one buffer; a slow reader slows the payload down.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use stockade_runtime::jail::{EnforcementReport, Event, Launcher, Listener};

const BUFFER_BYTES: usize = 1 << 16;

/// The two sides of a payload's standard streams.
pub struct Streams {
    /// For the jail, in the order 0, 1, 2.
    pub payload_ends: Vec<OwnedFd>,
    /// For us.
    pub ours: Ends,
}

/// Our ends; none yet if the jail gets a terminal.
#[derive(Default)]
pub struct Ends {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    error: Option<OwnedFd>,
}

impl Streams {
    /// Three pipes.
    pub fn pipes() -> io::Result<Streams> {
        let (in_read, in_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let (out_read, out_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let (err_read, err_write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&in_write, true)?;
        Ok(Streams {
            payload_ends: vec![in_read, out_write, err_write],
            ours: Ends { input: Some(in_write), output: Some(out_read), error: Some(err_read) },
        })
    }

    /// Nothing: the terminal is made inside and handed out later.
    pub fn terminal() -> Streams {
        Streams { payload_ends: Vec::new(), ours: Ends::default() }
    }
}

/// Bytes read from the caller and not yet taken by the payload.
struct Pending {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// One run's traffic.
pub struct Relay {
    ends: Ends,
    terminal: Option<OwnedFd>,
    saved_terminal: Option<Termios>,
    signals: SignalFd,
    stop_requests: u32,
    pending: Pending,
    output_left: Option<u64>,
    /// Of the jail's network, until they are served.
    listeners: Vec<(Listener, OwnedFd)>,
    /// The launcher's report, once the payload runs.
    pub report: Option<Box<EnforcementReport>>,
    /// The launcher's last word.
    pub event: Option<Event>,
}

impl Relay {
    /// Takes over our ends, and the signals that concern the payload.
    pub fn new(ends: Ends, output_max: Option<u64>) -> io::Result<Relay> {
        let mut set = SigSet::empty();
        let caught =
            [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGWINCH];
        caught.into_iter().for_each(|signal| set.add(signal));
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Relay {
            ends,
            terminal: None,
            saved_terminal: None,
            signals,
            stop_requests: 0,
            pending: Pending { buffer: vec![0; BUFFER_BYTES], start: 0, end: 0 },
            output_left: output_max,
            listeners: Vec::new(),
            report: None,
            event: None,
        })
    }

    /// Carries until the launcher has ended the jail and all output has arrived.
    /// `serve` is given the listeners of the jail's network when its payload is about to run; the jail
    /// is ended if it cannot serve them.
    pub fn carry(
        &mut self,
        launcher: &mut Launcher,
        mut serve: impl FnMut(Vec<(Listener, OwnedFd)>) -> bool,
    ) -> io::Result<()> {
        let mut launcher_open = true;
        while launcher_open || self.ends.output.is_some() || self.ends.error.is_some() {
            let ready = self.wait(launcher, launcher_open)?;
            if ready.signals {
                self.on_signal(launcher)?;
            }
            if ready.output {
                self.pass_on(Source::Output, launcher)?;
            }
            if ready.error {
                self.pass_on(Source::Error, launcher)?;
            }
            if ready.caller {
                self.read_caller();
            }
            if ready.input {
                self.feed();
            }
            if ready.launcher {
                match launcher.event() {
                    Ok(Event::Listening(more)) => self.listeners.extend(more),
                    Ok(Event::Running(report, terminal)) => {
                        if !serve(std::mem::take(&mut self.listeners)) {
                            // Nothing may run with a network that leads nowhere.
                            // A launcher that is gone has ended the jail already.
                            let _ended = launcher.end();
                        }
                        tracing::info!(
                            event = "jail.running",
                            jail = report.jail,
                            level = %report.level,
                            policy_digest = report.policy_digest,
                            spec_digest = report.spec_digest,
                            ready_us = report.timings.ready_us,
                            "jail running"
                        );
                        self.report = Some(report);
                        self.use_terminal(terminal)?;
                    }
                    Ok(event) => {
                        self.event = Some(event);
                        self.ends.input = None;
                        launcher_open = false;
                    }
                    Err(_) => {
                        self.ends.input = None;
                        launcher_open = false;
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits until something can be done.
    fn wait(&self, launcher: &Launcher, launcher_open: bool) -> io::Result<Ready> {
        let input = self.ends.input.as_ref().or(self.terminal.as_ref());
        let holds = self.pending.start < self.pending.end;
        let mut polled = Vec::with_capacity(6);
        let mut whose = Vec::with_capacity(6);
        let mut add = |fd, flags, who| {
            polled.push(PollFd::from_borrowed_fd(fd, flags));
            whose.push(who);
        };
        add(self.signals.as_fd(), PollFlags::IN, Who::Signals);
        if launcher_open {
            add(launcher.as_fd(), PollFlags::IN, Who::Launcher);
        }
        if let Some(output) = self.ends.output.as_ref() {
            add(output.as_fd(), PollFlags::IN, Who::Output);
        }
        if let Some(error) = self.ends.error.as_ref() {
            add(error.as_fd(), PollFlags::IN, Who::Error);
        }
        if let Some(input) = input {
            if holds {
                add(input.as_fd(), PollFlags::OUT, Who::Input);
            } else {
                // Only the far end's closing is of interest while there is nothing to write.
                add(input.as_fd(), PollFlags::empty(), Who::Input);
                add(rustix::stdio::stdin(), PollFlags::IN, Who::Caller);
            }
        }
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |who: Who| {
            polled.iter().zip(&whose).any(|(fd, w)| *w == who && !fd.revents().is_empty())
        };
        Ok(Ready {
            signals: ready(Who::Signals),
            launcher: ready(Who::Launcher),
            output: ready(Who::Output),
            error: ready(Who::Error),
            input: ready(Who::Input),
            caller: ready(Who::Caller),
        })
    }

    /// From the payload to the caller.
    fn pass_on(&mut self, source: Source, launcher: &mut Launcher) -> io::Result<()> {
        let slot = match source {
            Source::Output => &mut self.ends.output,
            Source::Error => &mut self.ends.error,
        };
        let Some(from) = slot.as_ref() else { return Ok(()) };
        let mut buffer = [0u8; BUFFER_BYTES];
        let got = match rustix::io::read(from, &mut buffer) {
            Ok(got) => got,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            // The far end of a terminal is gone.
            Err(rustix::io::Errno::IO) => 0,
            Err(error) => return Err(error.into()),
        };
        if got == 0 {
            *slot = None;
            return Ok(());
        }
        let mut allowed = got;
        if let Some(left) = self.output_left.as_mut() {
            allowed = got.min(usize::try_from(*left).unwrap_or(got));
            *left -= allowed as u64;
            if allowed < got {
                // A launcher that is gone has ended the jail already.
                let _ended = launcher.output_limit_reached();
            }
        }
        let to = match source {
            Source::Output => rustix::stdio::stdout(),
            Source::Error => rustix::stdio::stderr(),
        };
        if write_all(to, &buffer[..allowed]).is_err() {
            // The caller reads no more: close, so that the payload learns it as from any pipe.
            *slot = None;
        }
        Ok(())
    }

    /// From the caller into the buffer.
    fn read_caller(&mut self) {
        match rustix::io::read(rustix::stdio::stdin(), &mut self.pending.buffer) {
            Ok(0) => self.end_input(),
            Ok(got) => (self.pending.start, self.pending.end) = (0, got),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(_) => self.end_input(),
        }
    }

    fn end_input(&mut self) {
        self.ends.input = None;
        if let Some(terminal) = self.terminal.take() {
            // What a terminal sends when its user types the end of input.
            let _gone = write_all(terminal.as_fd(), &[4]);
        }
    }

    /// From the buffer to the payload.
    fn feed(&mut self) {
        let Some(input) = self.ends.input.as_ref().or(self.terminal.as_ref()) else { return };
        let waiting = &self.pending.buffer[self.pending.start..self.pending.end];
        if waiting.is_empty() {
            // Nothing to write and the descriptor reports: the far end is closed.
            self.ends.input = None;
            self.terminal = None;
            return;
        }
        match rustix::io::write(input, waiting) {
            Ok(written) => self.pending.start += written,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(_) => {
                self.ends.input = None;
                self.terminal = None;
                self.pending.end = self.pending.start;
            }
        }
    }

    /// The first request to stop goes to the payload as it is; the second one kills it.
    fn on_signal(&mut self, launcher: &mut Launcher) -> io::Result<()> {
        const REQUESTS_BEFORE_KILL: u32 = 2;
        while let Some(info) = self.signals.read_signal()? {
            let number = info.ssi_signo as i32;
            if number == Signal::SIGWINCH as i32 {
                self.resize();
                continue;
            }
            self.stop_requests += 1;
            let kill = self.stop_requests >= REQUESTS_BEFORE_KILL;
            let number = if kill { Signal::SIGKILL as i32 } else { number };
            // A launcher that is gone has ended the jail already.
            let _ended = launcher.signal(number);
        }
        Ok(())
    }

    /// Connects the caller's terminal to the jail's.
    fn use_terminal(&mut self, terminal: Option<OwnedFd>) -> io::Result<()> {
        let Some(terminal) = terminal else { return Ok(()) };
        self.ends.output = Some(terminal.try_clone()?);
        self.terminal = Some(terminal);
        self.resize();
        let stdin = rustix::stdio::stdin();
        if let Ok(saved) = tcgetattr(stdin) {
            let mut raw = saved.clone();
            raw.make_raw();
            tcsetattr(stdin, OptionalActions::Drain, &raw)?;
            self.saved_terminal = Some(saved);
        }
        Ok(())
    }

    fn resize(&self) {
        if let Some(terminal) = self.terminal.as_ref()
            && let Ok(size) = tcgetwinsize(rustix::stdio::stdin())
        {
            // A wrong size is no reason to end a session.
            let _unchanged = tcsetwinsize(terminal, size);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(saved) = self.saved_terminal.take() {
            // Nothing else could be done about a terminal that is gone.
            let _gone = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &saved);
        }
    }
}

#[derive(Clone, Copy)]
enum Source {
    Output,
    Error,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Signals,
    Launcher,
    Output,
    Error,
    Input,
    Caller,
}

struct Ready {
    signals: bool,
    launcher: bool,
    output: bool,
    error: bool,
    input: bool,
    caller: bool,
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                let mut polled = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
                poll(&mut polled, None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
