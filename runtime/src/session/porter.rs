//! The control side's handle of a session's porter.
//!
//! One task owns the connection and hands requests over one by one, so that a caller who stops
//! waiting leaves it in order: what was asked is cancelled, its answer taken, and the next one is
//! asked. Nothing here looks at a path or at content.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

pub use crate::porter::store::HASHED_BYTES_MAX;
use crate::porter::{Answer, Order, Request};
pub use crate::porter::{
    Executables, Marker, Place, Refusal, Removed, Replace, Scan, Scanned, Unpack, Unpacked, Wrapper,
};
use crate::tool::frame;

/// Requests that wait for their turn.
const WAITING_MAX: usize = 64;
/// How long the porter may take to answer: its own bound, and time to clean up.
const ANSWER_MAX: Duration = Duration::from_secs(300);

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PorterError {
    /// This one failed; the porter lives.
    #[error("{reason}")]
    Refused {
        /// What it says.
        reason: Refusal,
    },
    /// The session was started without one.
    #[error("cannot use the porter: the session was started without one")]
    Absent,
    /// There is no porter any more: the session is over.
    #[error("cannot reach the porter")]
    Gone {
        /// What happened instead.
        source: io::Error,
    },
}

/// A session's porter. Clones speak to the same one; their requests wait for each other.
///
/// Dropping the future of a request cancels it.
#[derive(Debug, Clone)]
pub struct Porter {
    queue: Option<mpsc::Sender<Turn>>,
}

/// A request on its way to the connection.
#[derive(Debug)]
struct Turn {
    request: Request,
    file: Option<OwnedFd>,
    answer: oneshot::Sender<io::Result<Answer>>,
}

impl Porter {
    /// Of a session that has none.
    pub(super) fn absent() -> Porter {
        Porter { queue: None }
    }

    /// Takes the control side's end of the connection. Inside the event loop.
    pub(super) fn connect(stream: StdStream) -> io::Result<Porter> {
        stream.set_nonblocking(true)?;
        let stream = UnixStream::from_std(stream)?;
        let (queue, turns) = mpsc::channel(WAITING_MAX);
        tokio::spawn(speak(stream, turns));
        Ok(Porter { queue: Some(queue) })
    }

    /// Unpacks `archive`, read from its start, as `what` says.
    ///
    /// # Errors
    /// [`PorterError`]; what was in the directory is then as it was.
    pub async fn unpack(&self, archive: OwnedFd, what: Unpack) -> Result<Unpacked, PorterError> {
        match self.ask(Request::Unpack(what), Some(archive)).await? {
            Answer::Unpacked(unpacked) => Ok(unpacked),
            _ => Err(out_of_turn()),
        }
    }

    /// Copies `file`, read from its start, to `path` in `place`; parents are made, 0700. The file is
    /// 0755 if `mode` has an execute bit, else 0644. Returns the bytes written.
    ///
    /// # Errors
    /// [`PorterError`]; with [`Refusal::Exists`] if there is something and it is not to be replaced.
    pub async fn put(
        &self,
        file: OwnedFd,
        place: Place,
        path: &str,
        mode: u32,
        bytes_max: u64,
        replace: Replace,
    ) -> Result<u64, PorterError> {
        let path = path.to_owned();
        match self.ask(Request::Put { place, path, mode, bytes_max, replace }, Some(file)).await? {
            Answer::Put(bytes) => Ok(bytes),
            _ => Err(out_of_turn()),
        }
    }

    /// Removes everything below a place.
    ///
    /// # Errors
    /// [`PorterError`].
    pub async fn clear(&self, place: Place) -> Result<(), PorterError> {
        self.done(Request::Clear { place }).await
    }

    /// Removes one entry of a place with everything below it; one that is not there is no error.
    ///
    /// # Errors
    /// [`PorterError`].
    pub async fn remove_tree(&self, place: Place, path: &str) -> Result<(), PorterError> {
        self.done(Request::RemoveTree { place, path: path.to_owned() }).await
    }

    /// Empties a memory store and marks it with a file of the content `marker` (MEM-6).
    ///
    /// # Errors
    /// [`PorterError`].
    pub async fn prepare_store(&self, store: u16, marker: &[u8]) -> Result<(), PorterError> {
        self.done(Request::PrepareStore { store, marker: marker.to_vec() }).await
    }

    /// Marks a memory store and leaves everything else in it (MEM-13).
    ///
    /// # Errors
    /// [`PorterError`].
    pub async fn mark_store(&self, store: u16, marker: &[u8]) -> Result<(), PorterError> {
        self.done(Request::MarkStore { store, marker: marker.to_vec() }).await
    }

    /// Every file of a memory store, and whether its mark is still `marker` (MEM-10, MEM-11).
    ///
    /// # Errors
    /// [`PorterError`], also if something that is there cannot be read: then nothing is known of what
    /// is missing.
    pub async fn scan(&self, store: u16, marker: &[u8]) -> Result<Scan, PorterError> {
        match self.ask(Request::Scan { store, marker: marker.to_vec() }, None).await? {
            Answer::Scanned(scan) => Ok(scan),
            _ => Err(out_of_turn()),
        }
    }

    /// The content of a file of a memory store; `None` if it is absent or no regular file.
    ///
    /// # Errors
    /// [`PorterError`], also if it is longer than `bytes_max` (never more than 31 MiB).
    pub async fn read(
        &self,
        store: u16,
        path: &str,
        bytes_max: u64,
    ) -> Result<Option<Vec<u8>>, PorterError> {
        let bytes_max = bytes_max.min(CONTENT_BYTES_MAX);
        match self.ask(Request::Read { store, path: path.to_owned(), bytes_max }, None).await? {
            Answer::Read(content) => Ok(content),
            _ => Err(out_of_turn()),
        }
    }

    /// Writes a file of a memory store in one step, 0600; directories are made, 0700 (MEM-9).
    ///
    /// # Errors
    /// [`PorterError`]; the file is then as it was.
    pub async fn write(&self, store: u16, path: &str, content: Vec<u8>) -> Result<(), PorterError> {
        if content.len() as u64 > CONTENT_BYTES_MAX {
            let (what, unit) = ("write a file".to_owned(), "bytes".to_owned());
            let reason = Refusal::TooMuch { what, limit: CONTENT_BYTES_MAX, unit };
            return Err(PorterError::Refused { reason });
        }
        self.done(Request::Write { store, path: path.to_owned(), content }).await
    }

    /// Removes a file of a memory store if its content is still the expected one (MEM-16).
    ///
    /// # Errors
    /// [`PorterError`].
    pub async fn remove(
        &self,
        store: u16,
        path: &str,
        only_if_sha256: [u8; 32],
    ) -> Result<Removed, PorterError> {
        let request = Request::Remove { store, path: path.to_owned(), only_if_sha256 };
        match self.ask(request, None).await? {
            Answer::Removed(removed) => Ok(removed),
            _ => Err(out_of_turn()),
        }
    }

    async fn done(&self, request: Request) -> Result<(), PorterError> {
        match self.ask(request, None).await? {
            Answer::Done => Ok(()),
            _ => Err(out_of_turn()),
        }
    }

    async fn ask(&self, request: Request, file: Option<OwnedFd>) -> Result<Answer, PorterError> {
        let Some(queue) = &self.queue else { return Err(PorterError::Absent) };
        let gone = || PorterError::Gone { source: io::ErrorKind::BrokenPipe.into() };
        let (answer, heard) = oneshot::channel();
        queue.send(Turn { request, file, answer }).await.map_err(|_| gone())?;
        match heard.await.map_err(|_| gone())? {
            Ok(Answer::Refused(reason)) => Err(PorterError::Refused { reason }),
            Ok(answer) => Ok(answer),
            Err(source) => Err(PorterError::Gone { source }),
        }
    }
}

/// Longest content of one message, with room for what goes with it.
const CONTENT_BYTES_MAX: u64 = 31 << 20;

fn out_of_turn() -> PorterError {
    PorterError::Gone { source: io::ErrorKind::InvalidData.into() }
}

/// Owns the connection until nobody can ask any more, or it breaks.
async fn speak(mut stream: UnixStream, mut turns: mpsc::Receiver<Turn>) {
    while let Some(Turn { request, file, mut answer }) = turns.recv().await {
        if answer.is_closed() {
            continue; // nobody waits for it any more
        }
        let heard = exchange(&mut stream, request, file, &mut answer).await;
        let broken = heard.is_err();
        // A caller that stopped waiting needs no answer.
        let _unheard = answer.send(heard);
        if broken {
            return;
        }
    }
}

async fn exchange(
    stream: &mut UnixStream,
    request: Request,
    file: Option<OwnedFd>,
    answer: &mut oneshot::Sender<io::Result<Answer>>,
) -> io::Result<Answer> {
    send(stream, &Order::Do(request), file).await?;
    let cancel = frame::encode(&Order::Cancel)?;
    let (mut reader, mut writer) = stream.split();
    let answered = async {
        let mut header = [0; frame::HEADER_BYTES];
        reader.read_exact(&mut header).await?;
        let mut bytes = vec![0; frame::announced(header)?];
        reader.read_exact(&mut bytes).await?;
        frame::decode(&bytes)
    };
    let limit = tokio::time::sleep(ANSWER_MAX);
    tokio::pin!(answered, limit);
    let mut cancelled = false;
    loop {
        tokio::select! {
            heard = &mut answered => return heard,
            () = answer.closed(), if !cancelled => {
                cancelled = true;
                writer.write_all(&cancel).await?;
            }
            () = &mut limit => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Sends an order, with `file` on its first byte.
async fn send(stream: &mut UnixStream, order: &Order, file: Option<OwnedFd>) -> io::Result<()> {
    let bytes = frame::encode(order)?;
    let mut sent = 0;
    if let Some(file) = &file {
        sent = stream
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                let lent = [file.as_fd()];
                control.push(SendAncillaryMessage::ScmRights(&lent));
                let slice = [IoSlice::new(&bytes[..frame::HEADER_BYTES])];
                Ok(sendmsg(&*stream, &slice, &mut control, SendFlags::NOSIGNAL)?)
            })
            .await?;
    }
    stream.write_all(&bytes[sent..]).await
}
