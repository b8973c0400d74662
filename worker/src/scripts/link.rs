//! The control side's end of the line to the script starter.

use std::collections::HashMap;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::frame::{self, Frame, Kind};
use super::starter::Starter;

/// A program that does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error("cannot start the script")]
    Start { source: io::Error },
    #[error("cannot start the script: the script starter is gone")]
    Gone,
}

impl StartError {
    /// Whether no other attempt will do better (ONWORK-8).
    pub fn is_fatal(&self) -> bool {
        match self {
            StartError::Gone => true,
            StartError::Start { source } => {
                let errno = source.raw_os_error().map(Errno::from_raw_os_error);
                matches!(errno, Some(Errno::NOENT | Errno::ACCESS | Errno::NOEXEC | Errno::NOTDIR))
            }
        }
    }
}

type Waiting = Arc<Mutex<HashMap<u64, mpsc::UnboundedSender<Frame>>>>;

/// The line.
#[derive(Debug)]
pub struct Link {
    to: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    waiting: Waiting,
    next: AtomicU64,
    listener: tokio::task::JoinHandle<()>,
}

/// A program that runs.
#[derive(Debug)]
pub struct Program {
    to: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    number: u64,
    answers: mpsc::UnboundedReceiver<Frame>,
    /// Its process id.
    pub pid: u32,
}

impl Link {
    /// Takes the line over; needs a runtime.
    ///
    /// # Errors
    /// If the runtime cannot watch the socket.
    pub fn new(starter: Starter) -> io::Result<Link> {
        let (from, to) = UnixStream::from_std(starter.socket)?.into_split();
        let waiting = Waiting::default();
        let listener = tokio::spawn(listen(from, Arc::clone(&waiting)));
        let to = Arc::new(tokio::sync::Mutex::new(to));
        Ok(Link { to, waiting, next: AtomicU64::new(1), listener })
    }

    /// Whether the starter is still there.
    pub fn lives(&self) -> bool {
        !self.listener.is_finished()
    }

    /// Starts the program with this standard input and these variables, each `NAME=VALUE`.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(&self, input: &[u8], variables: &[&[u8]]) -> Result<Program, StartError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, mut answers) = mpsc::unbounded_channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(number, sender);
        let strings: Vec<&[u8]> = std::iter::once(input).chain(variables.iter().copied()).collect();
        let request = Frame::strings(Kind::Start, number, &strings);
        let sent = frame::send(&mut *self.to.lock().await, &request).await;
        let answer = match sent {
            // Asked after it was added, so that it is not among those that nobody answers.
            Ok(()) if self.lives() => answers.recv().await,
            _ => None,
        };
        match answer {
            Some(Frame { kind: Kind::Started, ref bytes, .. }) => {
                let pid = bytes.as_slice().try_into().map(u32::from_le_bytes);
                Ok(Program {
                    to: Arc::clone(&self.to),
                    number,
                    answers,
                    pid: pid.unwrap_or_default(),
                })
            }
            Some(answer) => {
                let errno = answer.value().unwrap_or_default();
                Err(StartError::Start { source: io::Error::from_raw_os_error(errno) })
            }
            None => Err(StartError::Gone),
        }
    }
}

impl Program {
    /// Signals its process group.
    pub async fn signal(&self, signal: nix::sys::signal::Signal) {
        let request = Frame::of(Kind::Signal, self.number, signal as i32);
        // A starter that is gone has taken care of it.
        let _gone = frame::send(&mut *self.to.lock().await, &request).await;
    }

    /// Waits for its end; none if the starter is gone. Safe to drop and to call again.
    pub async fn ended(&mut self) -> Option<ExitStatus> {
        self.answers.recv().await.and_then(|answer| answer.value()).map(ExitStatus::from_raw)
    }
}

async fn listen(mut from: OwnedReadHalf, waiting: Waiting) {
    while let Ok(Some(answer)) = frame::receive(&mut from).await {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let last = matches!(answer.kind, Kind::Ended | Kind::Failed);
        let to = match last {
            true => waiting.remove(&answer.number),
            false => waiting.get(&answer.number).cloned(),
        };
        if let Some(to) = to {
            // Whoever asked may have stopped waiting.
            let _unheard = to.send(answer);
        }
    }
    // Everybody who waits learns that by the end of their channel. Whoever comes later is not answered.
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_get_better_is_fatal_and_a_shortage_is_not() {
        // ONWORK-8.
        let start = |errno: Errno| StartError::Start { source: errno.into() };
        for errno in [Errno::NOENT, Errno::ACCESS, Errno::NOEXEC] {
            assert!(start(errno).is_fatal(), "{errno:?}");
        }
        for errno in [Errno::AGAIN, Errno::NOMEM, Errno::TOOBIG] {
            assert!(!start(errno).is_fatal(), "{errno:?}");
        }
        assert!(StartError::Gone.is_fatal());
    }
}
