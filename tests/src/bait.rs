//! What an attacker would want of this host, planted by the test and checked afterwards.
//!
//! Everything here is the test's own: files in fresh directories, a sleeping process, sockets on
//! loopback. [`Bait::touched`] says what a payload reached.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::Level;
use crate::exec::give;

/// Never appears in a jail.
pub const SECRET: &str = "e2e-secret-6b1f0c";

/// The planted things.
#[derive(Debug)]
pub struct Bait {
    dir: TempDir,
    root_dir: Option<TempDir>,
    victim: Child,
    tcp: TcpListener,
    unix: UnixListener,
    named: UnixListener,
    name: String,
    host_name: String,
}

impl Bait {
    /// Plants everything so that the user of `level` could reach it outside a jail.
    ///
    /// # Panics
    /// If something cannot be planted.
    pub fn plant(level: Level) -> Bait {
        let dir = crate::exec::directory_of(level);
        let root_dir = crate::level::we_are_root().then(|| {
            let dir = tempfile::Builder::new().prefix("e2e-bait-").tempdir_in("/root");
            dir.expect("cannot plant in /root")
        });
        let files = [Some(dir.path()), root_dir.as_ref().map(TempDir::path)];
        for place in files.into_iter().flatten() {
            fs::write(place.join("secret"), SECRET).expect("cannot plant a secret");
            give(&place.join("secret"), level);
        }
        let open = fs::Permissions::from_mode(0o666);
        let socket = dir.path().join("socket");
        let unix = UnixListener::bind(&socket).expect("cannot listen");
        fs::set_permissions(&socket, open).expect("cannot open the socket to all");
        let name = format!("e2e-{}", dir.path().display()).replace('/', "-");
        let address = SocketAddr::from_abstract_name(&name).expect("a short name");
        let named = UnixListener::bind_addr(&address).expect("cannot listen on a name");
        let tcp = TcpListener::bind("127.0.0.1:0").expect("cannot listen on loopback");
        unix.set_nonblocking(true).expect("cannot set a socket non-blocking");
        named.set_nonblocking(true).expect("cannot set a socket non-blocking");
        tcp.set_nonblocking(true).expect("cannot set a socket non-blocking");
        let victim = start_victim(level);
        Bait { dir, root_dir, victim, tcp, unix, named, name, host_name: host_name() }
    }

    /// Puts the planted names into the words of an act: `{secret}`, `{root-secret}`, `{dir}`,
    /// `{socket}`, `{abstract}`, `{port}`, `{pid}`.
    pub fn fill(&self, act: &str) -> String {
        let root = self.root_dir.as_ref().unwrap_or(&self.dir).path().join("secret");
        let port = self.tcp.local_addr().expect("a bound socket").port();
        act.replace("{secret}", &self.dir.path().join("secret").display().to_string())
            .replace("{root-secret}", &root.display().to_string())
            .replace("{dir}", &self.dir.path().display().to_string())
            .replace("{socket}", &self.dir.path().join("socket").display().to_string())
            .replace("{abstract}", &format!("@{}", self.name))
            .replace("{port}", &port.to_string())
            .replace("{pid}", &self.victim.id().to_string())
    }

    /// The directory with the planted file and socket.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// What somebody did to the bait since it was planted, or since the last call for connections.
    pub fn touched(&mut self) -> Vec<String> {
        let mut marks = Vec::new();
        let dirs = [Some(&self.dir), self.root_dir.as_ref()];
        for dir in dirs.into_iter().flatten() {
            if fs::read_to_string(dir.path().join("secret")).ok().as_deref() != Some(SECRET) {
                marks.push(format!("the planted file in {} changed", dir.path().display()));
            }
            let names = fs::read_dir(dir.path()).into_iter().flatten().flatten();
            let foreign = names.map(|entry| entry.file_name());
            for name in foreign.filter(|name| name != "secret" && name != "socket") {
                marks.push(format!("{name:?} was made in {}", dir.path().display()));
            }
        }
        if !matches!(self.victim.try_wait(), Ok(None)) {
            marks.push("the sleeping process ended".to_owned());
        }
        let blocked = |error: std::io::Error| error.kind() == ErrorKind::WouldBlock;
        if !self.tcp.accept().is_err_and(blocked) {
            marks.push("the service on loopback was connected to".to_owned());
        }
        if !self.unix.accept().is_err_and(blocked) {
            marks.push("the socket in a directory was connected to".to_owned());
        }
        if !self.named.accept().is_err_and(blocked) {
            marks.push("the abstract socket was connected to".to_owned());
        }
        if host_name() != self.host_name {
            marks.push("the host has another name".to_owned());
        }
        marks
    }
}

impl Drop for Bait {
    fn drop(&mut self) {
        // It may have ended already; both calls then have nothing to do.
        drop(self.victim.kill());
        drop(self.victim.wait());
    }
}

/// A process of the level's user that holds the secret in its environment.
fn start_victim(level: Level) -> Child {
    let mut line = level.prefix();
    line.extend(["sleep".to_owned(), "600".to_owned()]);
    let victim = Command::new(&line[0])
        .args(&line[1..])
        .env("E2E_VICTIM", SECRET)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("cannot start the victim");
    let name = || fs::read_to_string(format!("/proc/{}/comm", victim.id())).unwrap_or_default();
    for _ in 0..1000 {
        if name().trim() == "sleep" {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    victim
}

fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default()
}
