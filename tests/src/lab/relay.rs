//! A port of the machine's loopback that the laboratory's host has too, so that a worker there reaches
//! a development server that the test steers from outside. Over a socket with a path, which network
//! namespaces do not separate.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use super::Lab;
use crate::poll::wait_for;

/// The half on the laboratory's host: `$1` is the port, `$2` the path.
const HALF: &str = r#"
import asyncio, sys

async def copy(reader, writer):
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()

async def serve(reader, writer):
    there, back = await asyncio.open_unix_connection(sys.argv[2])
    await asyncio.gather(copy(reader, back), copy(there, writer))
    writer.close()

async def main():
    await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"#;

/// A relay, which ends with this value.
#[derive(Debug)]
pub struct Relay {
    half: Child,
}

impl Relay {
    /// Makes `port` of this machine's loopback that port of the laboratory's.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn to(lab: &Lab, port: u16) -> Relay {
        let path = lab.directory().join(format!("port-{port}"));
        let listener = UnixListener::bind(&path).expect("cannot listen for the relay");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || carry(&stream, port));
            }
        });
        let mut command = lab.command();
        command.args(["python3", "-c", HALF, &port.to_string()]).arg(&path);
        let half = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        let relay = Relay { half: half.expect("cannot start the relay") };
        let connect = format!("import socket; socket.create_connection(('127.0.0.1', {port}))");
        let up = wait_for(Duration::from_secs(10), || {
            let tried =
                lab.command().args(["python3", "-c", &connect]).stderr(Stdio::null()).status();
            tried.is_ok_and(|status| status.success())
        });
        assert!(up, "the relay of port {port} is not up");
        relay
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.half.stdin.take());
        drop(self.half.kill());
        drop(self.half.wait());
    }
}

/// Copies both ways until both have ended.
fn carry(near: &UnixStream, port: u16) {
    let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else { return };
    thread::scope(|scope| {
        scope.spawn(|| {
            drop(io::copy(&mut &*near, &mut &far));
            drop(far.shutdown(Shutdown::Write));
        });
        drop(io::copy(&mut &far, &mut &*near));
        drop(near.shutdown(Shutdown::Write));
    });
}
