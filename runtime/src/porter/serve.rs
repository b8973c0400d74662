//! The porter: hears the control side, does one request at a time, answers.
//!
//! Runs in a session's jail, single-threaded, with the ids of bash and outside its PID namespace, in
//! a domain that holds its places only. An archive is unpacked by a process forked for it, which has
//! less still: what a hostile archive does to it costs that one request. Whatever that process left
//! half done is removed here.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::sys::{self, Forked};
use crate::tool::frame;
use crate::tool::reap::reap;

use super::message::{Answer, Order, Request};
use super::unpack::{Staging, fill, settle};
use super::{Place, Refusal, Unpack, Unpacked, Watch, clear, link, put, store};

/// Longest time of one request.
const TIME_MAX: Duration = Duration::from_secs(120);
/// Longest answer of a process that unpacks.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Puts every layer on a process that unpacks into `place`, which was just forked.
pub type Confine<'a> = &'a mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>;

/// Everything the porter works with.
pub struct Porter<'a> {
    /// Connection to the control side.
    pub control: OwnedFd,
    /// The session's working directory.
    pub workspace: OwnedFd,
    /// Where skills are.
    pub skills: Option<OwnedFd>,
    /// Memory stores, in the order of the request.
    pub stores: Vec<OwnedFd>,
    /// Confines a process that unpacks.
    pub confine: Confine<'a>,
}

impl std::fmt::Debug for Porter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Porter").field("stores", &self.stores.len()).finish_non_exhaustive()
    }
}

/// Serves until the control side closes the connection, and exits.
pub fn serve_until_closed(mut porter: Porter<'_>) -> ! {
    // Either way the control side is gone, and so is the session.
    let _over = porter.hear();
    std::process::exit(0)
}

impl Porter<'_> {
    fn hear(&mut self) -> io::Result<()> {
        loop {
            let (order, file) = link::receive(self.control.as_fd())?;
            // The request it meant has been answered meanwhile.
            let Order::Do(request) = order else { continue };
            let answer = self.carry_out(request, file).unwrap_or_else(Answer::Refused);
            link::send(self.control.as_fd(), &answer)?;
        }
    }

    fn carry_out(&mut self, request: Request, file: Option<OwnedFd>) -> Result<Answer, Refusal> {
        let control = self.control.as_fd().try_clone_to_owned();
        let control = control.map_err(|error| Refusal::system("start", error))?;
        let mut watch = Deadline { control, until: Instant::now() + TIME_MAX };
        let watch = &mut watch;
        match request {
            Request::Unpack(what) => {
                let archive = start_of(file)?;
                self.unpack(&archive, &what, watch).map(Answer::Unpacked)
            }
            Request::Put { place, path, mode, bytes_max, replace } => {
                let (place, mut file) = (self.place(place)?, start_of(file)?);
                put(place, &mut file, &path, mode, bytes_max, replace, watch).map(Answer::Put)
            }
            Request::Clear { place } => clear(self.place(place)?, watch).map(|()| Answer::Done),
            Request::RemoveTree { place, path } => {
                super::clear::remove_tree(self.place(place)?, &path, watch).map(|()| Answer::Done)
            }
            Request::PrepareStore { store: number, marker } => {
                store::prepare(self.store(number)?, &marker, watch).map(|()| Answer::Done)
            }
            Request::MarkStore { store: number, marker } => {
                store::mark(self.store(number)?, &marker).map(|()| Answer::Done)
            }
            Request::Scan { store: number, marker } => {
                store::scan(self.store(number)?, &marker, watch).map(Answer::Scanned)
            }
            Request::Read { store: number, path, bytes_max } => {
                store::read(self.store(number)?, &path, bytes_max).map(Answer::Read)
            }
            Request::Write { store: number, path, content } => {
                store::write(self.store(number)?, &path, &content).map(|()| Answer::Done)
            }
            Request::Remove { store: number, path, only_if_sha256 } => {
                let removed = store::remove(self.store(number)?, &path, only_if_sha256, watch);
                removed.map(Answer::Removed)
            }
        }
    }

    fn place(&self, place: Place) -> Result<BorrowedFd<'_>, Refusal> {
        match place {
            Place::Workspace => Ok(self.workspace.as_fd()),
            Place::Skills => match &self.skills {
                Some(skills) => Ok(skills.as_fd()),
                None => Err(Refusal::Place { place: "the place for skills".to_owned() }),
            },
            Place::Store(number) => self.store(number),
        }
    }

    fn store(&self, number: u16) -> Result<BorrowedFd<'_>, Refusal> {
        let found = self.stores.get(usize::from(number)).map(|store| store.as_fd());
        found.ok_or_else(|| Refusal::Place { place: format!("memory store {number}") })
    }

    /// Unpacks in a process of its own, then puts the result in its place.
    fn unpack(
        &mut self,
        archive: &File,
        what: &Unpack,
        watch: &mut Deadline,
    ) -> Result<Unpacked, Refusal> {
        let place = self.place(what.place)?;
        let staging = Staging::make(place, what)?;
        let outcome = self.fill_in_child(archive, what, &staging, watch);
        let outcome = outcome.and_then(|unpacked| settle(&staging, what, unpacked, watch));
        // What was given up must be removed all the same, so this has a deadline of its own.
        let mut rest = Until(Instant::now() + TIME_MAX);
        let removed = staging.remove(&mut rest);
        let unpacked = outcome?;
        removed?;
        Ok(unpacked)
    }

    fn fill_in_child(
        &mut self,
        archive: &File,
        what: &Unpack,
        staging: &Staging,
        watch: &mut Deadline,
    ) -> Result<Unpacked, Refusal> {
        let failed = |error: io::Error| Refusal::system("start a process to unpack", error);
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let child = match sys::fork().map_err(failed)? {
            Forked::Parent(child) => Pid::from_raw(child),
            Forked::Child => self.fill(archive, what, staging, &write),
        };
        drop(write);
        let gathered = gather(&read, watch);
        if gathered.is_err() {
            // It is dead already, or is to be.
            let _dead = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
        }
        let status = reap(child);
        let answer = gathered?;
        match (decoded(&answer), status) {
            (Some(outcome), Ok(WaitStatus::Exited(_, 0))) => outcome,
            (_, Ok(WaitStatus::Signaled(_, signal, _))) => {
                Err(Refusal::Died { how: signal.to_string() })
            }
            (_, Ok(WaitStatus::Exited(_, code))) => {
                Err(Refusal::Died { how: format!("status {code}") })
            }
            _ => Err(Refusal::Died { how: "no status".to_owned() }),
        }
    }

    /// In the child. Never returns.
    fn fill(&mut self, archive: &File, what: &Unpack, staging: &Staging, answer: &OwnedFd) -> ! {
        let directory = staging.directory();
        // What it was forked with belongs to the porter, its voice above all.
        let mut keep = [answer.as_raw_fd(), archive.as_raw_fd(), directory.as_raw_fd()];
        let alone = sys::close_all_but(3, &mut keep);
        let confined = alone.and_then(|()| (self.confine)(directory));
        let outcome = match confined {
            Err(error) => Err(Refusal::system("confine the process that unpacks", error)),
            Ok(()) => fill(directory, archive, what, &mut super::Patient),
        };
        let sent = frame::send(answer, &outcome);
        std::process::exit(i32::from(sent.is_err()))
    }
}

/// The file of a request, from its start: the sender may have written it through the same
/// descriptor.
fn start_of(file: Option<OwnedFd>) -> Result<File, Refusal> {
    let Some(file) = file else {
        return Err(Refusal::archive("no descriptor came with the request"));
    };
    let mut file = File::from(file);
    file.seek(SeekFrom::Start(0)).map_err(|error| Refusal::system("rewind the file", error))?;
    Ok(file)
}

/// Stops when the control side says something, or is gone, or the time is over.
struct Deadline {
    control: OwnedFd,
    until: Instant,
}

impl Watch for Deadline {
    fn go_on(&mut self) -> Result<(), Refusal> {
        if link::is_readable(&self.control) {
            return Err(Refusal::Cancelled);
        }
        Until(self.until).go_on()
    }
}

struct Until(Instant);

impl Watch for Until {
    fn go_on(&mut self) -> Result<(), Refusal> {
        match Instant::now() < self.0 {
            true => Ok(()),
            false => Err(Refusal::TooLong { seconds: TIME_MAX.as_secs() }),
        }
    }
}

/// Reads a child's answer to its end.
fn gather(answer: &OwnedFd, watch: &Deadline) -> Result<Vec<u8>, Refusal> {
    let (mut gathered, mut buffer) = (Vec::new(), vec![0; 4096]);
    loop {
        let left = watch.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Refusal::TooLong { seconds: TIME_MAX.as_secs() });
        }
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut polled =
            [PollFd::new(answer, PollFlags::IN), PollFd::new(&watch.control, PollFlags::IN)];
        if poll(&mut polled, Some(&timeout)).is_err() {
            continue; // interrupted
        }
        if !polled[0].revents().is_empty() {
            match rustix::io::read(answer, &mut buffer) {
                Ok(0) => return Ok(gathered),
                Ok(read) if gathered.len() + read <= ANSWER_BYTES_MAX => {
                    gathered.extend_from_slice(&buffer[..read]);
                }
                Ok(_) => return Err(Refusal::Died { how: "it said too much".to_owned() }),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Refusal::system("hear the process that unpacks", error)),
            }
        } else if !polled[1].revents().is_empty() {
            return Err(Refusal::Cancelled);
        }
    }
}

/// The outcome, if the answer is complete.
fn decoded(gathered: &[u8]) -> Option<Result<Unpacked, Refusal>> {
    let (header, body) = gathered.split_first_chunk()?;
    let length = frame::announced(*header).ok()?;
    if body.len() != length {
        return None;
    }
    frame::decode(body).ok()
}
