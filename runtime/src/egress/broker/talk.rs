//! The part of a connection in which it is looked at: reads, asks the gate, passes on what may pass.

use std::io;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::time::sleep_until;

use super::connection::HEAD_MAX;
use super::gate::{Act, Gate};
use super::limits::{Meter, Way};
use super::peer::{Peer, end_writing};
use super::relay::Cut;
use crate::egress::reason::Reason;

/// Bytes read at once.
const CHUNK: usize = 16 << 10;
/// How long a client is waited for in the middle of what may become anything.
const PAUSE: Duration = Duration::from_millis(300);

/// Reads from the client until the gate lets something pass; nothing was dialled yet.
///
/// # Errors
/// [`Cut::By`] why it is refused; too late is [`Reason::Malformed`], or [`Reason::NoName`] if nothing
/// was said at all.
pub(super) async fn first(client: &Peer, gate: &mut Gate, deadline: Instant) -> Result<Act, Cut> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = tokio::select! {
            biased;
            read = read(client.stream(), &mut buffer) => read?,
            () = sleep_until(deadline.into()) => {
                let silent = !gate.is_in_head();
                return Err(Cut::By(if silent { Reason::NoName } else { Reason::Malformed }));
            }
        };
        let act = match read {
            0 => gate.end(),
            size => gate.client(&buffer[..size]),
        };
        match act.map_err(Cut::By)? {
            Act::Hold => {}
            act => return Ok(act),
        }
    }
}

/// Passes `bytes` on, and then what the gate lets pass, both ways, until it is open for good. Returns
/// the beginning of a request if HTTP is what is spoken.
///
/// # Errors
/// [`Cut`].
pub(super) async fn gated(
    client: &Peer,
    server: &Peer,
    gate: &mut Gate,
    bytes: Vec<u8>,
    meter: &Meter,
) -> Result<Option<Vec<u8>>, Cut> {
    let (client, server) = (client.stream(), server.stream());
    write(server, &bytes, (Way::Out, meter)).await?;
    let mut buffers = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut server_ended = false;
    // When what the client says began, and when it said something last.
    let (mut began, mut last) = (None, Instant::now());
    let mut paused = false;
    while !gate.is_free() {
        began = if gate.is_in_head() { began.or(Some(Instant::now())) } else { None };
        let deadline = began.map(|at: Instant| at + HEAD_MAX);
        let pause = (began.is_some() && !paused).then(|| last + PAUSE);
        let turn = [deadline, pause].into_iter().flatten().min();
        let act = tokio::select! {
            size = read(client, &mut buffers.0), if !gate.is_full() => {
                (last, paused) = (Instant::now(), false);
                meter.touch();
                match size? {
                    0 => gate.end(),
                    size => gate.client(&buffers.0[..size]),
                }
            }
            size = read(server, &mut buffers.1), if !server_ended => match size? {
                0 => {
                    server_ended = true;
                    end_writing(client)?;
                    Ok(Act::Hold)
                }
                size => {
                    let act = gate.server(&buffers.1[..size]);
                    write(client, &buffers.1[..size], (Way::In, meter)).await?;
                    act
                }
            },
            () = at(turn) => {
                if deadline.is_some_and(|it| it <= Instant::now()) {
                    return Err(Cut::By(Reason::Malformed));
                }
                paused = true;
                Ok(gate.pause())
            }
        };
        match act.map_err(Cut::By)? {
            Act::Hold => {}
            Act::Pass(bytes) | Act::Free(bytes) => write(server, &bytes, (Way::Out, meter)).await?,
            Act::Http(bytes) => return Ok(Some(bytes)),
        }
    }
    Ok(None)
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// Reads what is there, 0 at the end. Nothing is lost if the future is dropped.
async fn read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

/// Writes all of `bytes`.
async fn write(stream: &TcpStream, bytes: &[u8], (way, meter): (Way, &Meter)) -> Result<(), Cut> {
    let mut left = bytes;
    while !left.is_empty() {
        stream.writable().await?;
        let room = meter.reserve(way, left.len()).map_err(Cut::By)?;
        let result = stream.try_write(&left[..room]);
        meter.settle(way, room, result.as_ref().copied().unwrap_or(0));
        match result {
            Ok(size) => left = &left[size..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
