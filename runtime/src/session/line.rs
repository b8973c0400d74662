//! The control side's end of the connection to an executor: one call at a time, each with its answer.
//!
//! The same for an executor in a jail and for one without.

use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::tool::{FromExecutor, ToExecutor, ToolCall, ToolResult, frame};

/// How long the executor may take to answer a cancellation before it counts as gone.
pub(super) const CANCEL_GRACE: Duration = Duration::from_secs(15);

/// A connection.
#[derive(Debug)]
pub(super) struct Line {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    number: u64,
}

/// Why there is no answer. The connection is of no use any more.
#[derive(Debug)]
pub(super) enum LineError {
    /// The executor is gone.
    Closed,
    /// It talks nonsense, or not in time.
    Broken(io::Error),
}

impl Line {
    /// Takes over a connection and waits until the executor is ready.
    pub async fn connect(stream: StdStream) -> io::Result<Line> {
        stream.set_nonblocking(true)?;
        let (reader, writer) = UnixStream::from_std(stream)?.into_split();
        let mut line = Line { reader, writer, number: 0 };
        match line.receive().await? {
            FromExecutor::Ready => Ok(line),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Whether the executor is known to be gone. A call sent now would not be run.
    pub fn is_over(&self) -> bool {
        // The executor speaks only when it is spoken to: whatever there is means an end.
        let heard = self.reader.try_read(&mut [0]);
        !heard.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Waits until the executor is gone, as [`is_over`](Self::is_over) finds out. For a time in which no
    /// call runs.
    pub async fn over(&self) {
        // Readiness is a hint; only a look says that nothing is there, and then the wait is one.
        while self.reader.readable().await.is_ok() && !self.is_over() {}
    }

    /// Runs one call; when `stop` completes first, it is cancelled and gives what it had until then.
    pub async fn call(
        &mut self,
        name: &str,
        input: Vec<u8>,
        stop: impl Future<Output = ()>,
    ) -> Result<ToolResult, LineError> {
        self.number += 1;
        let number = self.number;
        let call = ToolCall { number, name: name.to_owned(), input };
        self.tell(&ToExecutor::Call(call)).await?;
        self.result_of(number, stop).await
    }

    /// Has every process of the tool tree killed.
    pub async fn quiesce(&mut self) -> Result<(), LineError> {
        self.tell(&ToExecutor::Quiesce).await?;
        let answer = tokio::time::timeout(CANCEL_GRACE, self.receive());
        match answer.await.map_err(|_| LineError::Broken(io::ErrorKind::TimedOut.into()))? {
            Ok(FromExecutor::Quiet) => Ok(()),
            Ok(_) => Err(LineError::Broken(io::ErrorKind::InvalidData.into())),
            Err(_) => Err(LineError::Closed),
        }
    }

    async fn tell(&mut self, message: &ToExecutor) -> Result<(), LineError> {
        let bytes = frame::encode(message).map_err(LineError::Broken)?;
        self.writer.write_all(&bytes).await.map_err(|_| LineError::Closed)
    }

    async fn receive(&mut self) -> io::Result<FromExecutor> {
        read_message(&mut self.reader).await
    }

    async fn result_of(
        &mut self,
        number: u64,
        stop: impl Future<Output = ()>,
    ) -> Result<ToolResult, LineError> {
        let broken = LineError::Broken;
        let cancel = frame::encode(&ToExecutor::Cancel { number }).map_err(broken)?;
        let mut stopping = false;
        let answer = {
            let answer = read_message::<FromExecutor>(&mut self.reader);
            let grace = tokio::time::sleep(Duration::ZERO);
            tokio::pin!(answer, stop, grace);
            loop {
                tokio::select! {
                    answer = &mut answer => break answer,
                    () = &mut stop, if !stopping => {
                        stopping = true;
                        grace.as_mut().reset(tokio::time::Instant::now() + CANCEL_GRACE);
                        self.writer.write_all(&cancel).await.map_err(broken)?;
                    }
                    () = &mut grace, if stopping => return Err(broken(io::ErrorKind::TimedOut.into())),
                }
            }
        };
        match answer {
            Ok(FromExecutor::Done { number: of, result }) if of == number => Ok(result),
            Ok(_) => Err(broken(io::ErrorKind::InvalidData.into())),
            Err(_) => Err(LineError::Closed),
        }
    }
}

async fn read_message<T: serde::de::DeserializeOwned>(from: &mut OwnedReadHalf) -> io::Result<T> {
    let mut header = [0; frame::HEADER_BYTES];
    from.read_exact(&mut header).await?;
    let mut bytes = vec![0; frame::announced(header)?];
    from.read_exact(&mut bytes).await?;
    frame::decode(&bytes)
}
