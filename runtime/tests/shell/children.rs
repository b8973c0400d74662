//! Children of the executor and the porter that were taken over: they close their pipe and stay.
//!
//! Both are started by a process with one thread, which is this test binary, executed anew.

use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use stockade_runtime::porter::{
    Answer, Executables, Order, Place, Porter, Refusal, Replace, Request, Unpack, Wrapper,
    serve_until_closed,
};
use stockade_runtime::sys;
use stockade_runtime::tool::{FileHelper, frame};

crate::tests! { TESTS:
    a_helper_that_closes_its_pipe_and_stays_costs_its_call_a_second,
    what_unpacks_closes_its_pipe_and_stays_costs_its_request_a_second,
}

const HELPER: &str = "stockade-test-helper";
const PORTER: &str = "stockade-test-porter";
/// Without a bound of its own a wait lasts as long as the child stays.
const STAYS: Duration = Duration::from_secs(40);
const BOUND: Duration = Duration::from_secs(15);

/// Takes the role this process was started for, if it was.
pub fn take_role() {
    match std::env::args().nth(1).as_deref() {
        Some(HELPER) => helper_role(),
        Some(PORTER) => porter_role(),
        _ => {}
    }
}

fn start(role: &str, input: Stdio) -> std::process::Child {
    let this = std::env::current_exe().expect("a test has a path");
    let mut role = Command::new(this).arg(role).stdin(input).stdout(Stdio::piped()).spawn();
    role.as_mut().expect("it starts").stdin = None;
    role.expect("it starts")
}

/// What a child does that says nothing and does not end; 0 to 2 are not its pipe.
fn close_and_stay() -> io::Result<()> {
    sys::close_all_but(0, &mut [])?;
    std::thread::sleep(STAYS);
    std::process::exit(0)
}

fn helper_role() -> ! {
    let mut helper =
        FileHelper { roots: vec!["/".into()], read_only: Vec::new(), confine: &mut close_and_stay };
    let (never, _held) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    let result = helper.run("read", b"{}", never.as_fd());
    print!("{result:?}");
    std::process::exit(0)
}

fn a_helper_that_closes_its_pipe_and_stays_costs_its_call_a_second() {
    // INV-11: the executor hears no cancellation while it waits.
    let began = Instant::now();
    let mut said = String::new();
    let mut role = start(HELPER, Stdio::null());
    role.stdout.take().expect("a pipe").read_to_string(&mut said).expect("read");
    assert!(role.wait().expect("ended").success());
    assert!(said.contains("was killed"), "{said}");
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
}

fn porter_role() -> ! {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = tempfile::tempdir().expect("a directory");
    let open = || open(place.path(), flags, Mode::empty()).expect("opened");
    let control = io::stdin().as_fd().try_clone_to_owned().expect("a connection");
    serve_until_closed(Porter {
        control,
        workspace: open(),
        skills: Some(open()),
        stores: Vec::new(),
        confine: &mut |_: BorrowedFd<'_>| close_and_stay(),
    })
}

/// Sends an order, with a file on its first byte.
fn ask(mut control: &UnixStream, request: Request, file: Option<&File>) -> Answer {
    let bytes = frame::encode(&Order::Do(request)).expect("short");
    let (first, rest) = bytes.split_at(frame::HEADER_BYTES);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let lent: Vec<BorrowedFd<'_>> = file.iter().map(|file| file.as_fd()).collect();
    assert!(lent.is_empty() || rights.push(SendAncillaryMessage::ScmRights(&lent)));
    sendmsg(control, &[IoSlice::new(first)], &mut rights, SendFlags::empty()).expect("sent");
    control.write_all(rest).expect("sent");
    let mut header = [0; frame::HEADER_BYTES];
    control.read_exact(&mut header).expect("answered");
    let mut bytes = vec![0; frame::announced(header).expect("short")];
    control.read_exact(&mut bytes).expect("answered");
    frame::decode(&bytes).expect("an answer")
}

fn what_unpacks_closes_its_pipe_and_stays_costs_its_request_a_second() {
    // INV-11: the porter hears no cancellation while it waits, and has one request at a time.
    let (control, theirs) = UnixStream::pair().expect("a pair");
    let mut porter = start(PORTER, Stdio::from(OwnedFd::from(theirs)));
    let what = Unpack {
        place: Place::Skills,
        directory: "skill".to_owned(),
        wrapper: Wrapper::Strip,
        executables: Executables::AsRecorded,
        entries_max: 10,
        bytes_max: 1 << 20,
        replace: Replace::Swap,
    };
    let archive = tempfile::tempfile().expect("a file");
    let began = Instant::now();
    let answer = ask(&control, Request::Unpack(what), Some(&archive));
    let Answer::Refused(Refusal::Died { how }) = answer else { panic!("{answer:?}") };
    assert_eq!(how, "SIGKILL");
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    // It serves on.
    assert_eq!(ask(&control, Request::Clear { place: Place::Skills }, None), Answer::Done);
    drop(control);
    assert!(porter.wait().expect("ended").success());
}
