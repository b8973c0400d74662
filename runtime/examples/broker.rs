//! Measures the broker beside a plain relay (tokio's `copy_bidirectional`) on the same machine, in one
//! run: bytes per second, processor time of the relaying threads, time to the first answer.
//!
//! Run in a network namespace of its own, which needs no rights:
//! `unshare -rn target/release/examples/broker [MIB] [CONNECTIONS]`

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use stockade_runtime::egress::{Broker, Entry, Inside, Sink};
use stockade_runtime::policy::network::{ListedRule, Protocol, Rules};
use stockade_runtime::spec::EgressPlan;

const SERVER: &str = "203.0.113.10:5000";
const PLAIN: &str = "203.0.113.10:5001";

#[derive(Debug)]
struct Nowhere;

impl Sink for Nowhere {
    fn record(&self, _: Option<&str>, _: &Entry) -> bool {
        true
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = std::env::args().skip(1).map(|it| it.parse::<u64>());
    let mib = numbers.next().transpose()?.unwrap_or(4096);
    let connections = numbers.next().transpose()?.unwrap_or(1000);
    route()?;
    let jail = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("namespace");
        route().expect("routes");
        File::open("/proc/thread-self/ns/net").expect("namespace")
    });
    let jail = jail.join().expect("jail");
    serve()?;
    let listener = |address: &str| inside(&jail, || TcpListener::bind(address).expect(address));
    let broker = Broker::start()?;
    let rule = "203.0.113.10:5000".parse()?;
    let mut listed = ListedRule { rule, origin: String::new() };
    listed.rule.protocol = Protocol::Tcp;
    let rules = Rules { list: vec![listed], ..Rules::default() };
    let mut plan = EgressPlan { rules, ..EgressPlan::default() };
    plan.limits.connection_rate = 1 << 20;
    let inside_of = Inside { dns: None, listeners: vec![(5000, listener(SERVER))] };
    let _attached = broker.attach(plan, inside_of, Arc::new(Nowhere))?;
    let _plain = plain(listener(PLAIN))?;

    for round in 0..3 {
        for (name, address) in [("broker", SERVER), ("plain", PLAIN)] {
            for way in [b'd', b'u'] {
                let before = processor_time(name)?;
                let began = Instant::now();
                inside(&jail, || carry(address, way, mib << 20))?;
                let (took, used) = (began.elapsed(), processor_time(name)? - before);
                let gib = mib as f64 / 1024.0;
                println!(
                    "{round} {name:6} {}: {:6.2} Gbit/s, {:.3} CPU s per GiB",
                    way as char,
                    gib * 8.59 / took.as_secs_f64(),
                    used.as_secs_f64() / gib
                );
            }
            let mut times = Vec::new();
            for _ in 0..connections {
                let began = Instant::now();
                inside(&jail, || echo(address))?;
                times.push(began.elapsed());
            }
            times.sort();
            println!(
                "{round} {name:6} connect and first answer, p50: {:?}",
                times[times.len() / 2]
            );
        }
    }
    Ok(())
}

fn route() -> Result<(), Box<dyn Error>> {
    for arguments in ["link set lo up", "route add local default dev lo"] {
        let status = Command::new("ip").args(arguments.split(' ')).status()?;
        assert!(status.success(), "ip {arguments}");
    }
    Ok(())
}

/// On this thread, which comes back to its namespace.
fn inside<T>(jail: &File, act: impl FnOnce() -> T) -> T {
    let own = File::open("/proc/thread-self/ns/net").expect("namespace");
    setns(jail, CloneFlags::CLONE_NEWNET).expect("jail");
    let result = act();
    setns(own, CloneFlags::CLONE_NEWNET).expect("back");
    result
}

/// A server in the world that does what the first byte says: sends, receives or answers.
fn serve() -> std::io::Result<()> {
    let listener = TcpListener::bind(SERVER)?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("client");
            thread::spawn(move || -> std::io::Result<()> {
                let mut order = [0; 9];
                stream.read_exact(&mut order[..1])?;
                match order[0] {
                    b'e' => return stream.write_all(b"e"),
                    way => {
                        stream.read_exact(&mut order[1..])?;
                        let size = u64::from_le_bytes(order[1..].try_into().expect("eight"));
                        match way {
                            b'd' => send(&mut stream, size)?,
                            _ => {
                                receive(&mut stream, size)?;
                                stream.write_all(b"k")?;
                            }
                        }
                    }
                }
                Ok(())
            });
        }
    });
    Ok(())
}

fn carry(address: &str, way: u8, size: u64) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&[&[way], size.to_le_bytes().as_slice()].concat())?;
    match way {
        b'd' => receive(&mut stream, size),
        _ => {
            send(&mut stream, size)?;
            stream.read_exact(&mut [0])
        }
    }
}

fn echo(address: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"e")?;
    stream.read_exact(&mut [0])
}

fn send(stream: &mut TcpStream, size: u64) -> std::io::Result<()> {
    let block = vec![7; 256 << 10];
    let mut left = size;
    while left > 0 {
        let part = left.min(block.len() as u64);
        stream.write_all(&block[..part as usize])?;
        left -= part;
    }
    Ok(())
}

fn receive(stream: &mut TcpStream, size: u64) -> std::io::Result<()> {
    let mut block = vec![0; 256 << 10];
    let mut left = size;
    while left > 0 {
        match stream.read(&mut block)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            part => left -= part as u64,
        }
    }
    Ok(())
}

/// A relay as one would write it first.
fn plain(listener: TcpListener) -> std::io::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("plain")
        .enable_all()
        .build()?;
    listener.set_nonblocking(true)?;
    let to: SocketAddr = SERVER.parse().expect("address");
    let _inside = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    runtime.spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = tokio::net::TcpStream::connect(to).await?;
                client.set_nodelay(true)?;
                server.set_nodelay(true)?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    Ok(runtime)
}

/// Of the threads whose names begin so.
fn processor_time(name: &str) -> std::io::Result<Duration> {
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir("/proc/self/task")? {
        let path = thread?.path();
        // Other threads come and go.
        let read = |file| std::fs::read_to_string(path.join(file));
        let (Ok(comm), Ok(times)) = (read("comm"), read("schedstat")) else { continue };
        if !comm.starts_with(name) {
            continue;
        }
        nanoseconds += times.split(' ').next().and_then(|it| it.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}
