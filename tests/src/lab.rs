//! The laboratory of the egress tests: a host with a worker on it and an internet beside it, each a
//! network namespace of this test, joined by a pair of virtual interfaces.
//!
//! The internet is `lab/internet.py`: every public, private and metadata address that a test uses is
//! served there, and everything it hears is written down. The host has a resolver configuration,
//! certificates and addresses of its own, by mounts in a namespace of its own; nothing outside
//! changes, and no packet leaves. As an ordinary user the same is made in a user namespace.
//!
//! Acts (`lab/acts.py`) run in a jail, or from a plain process of the host as their control.

pub mod fixtures;
pub mod inputs;
pub mod relay;
pub mod rows;
pub mod staged;
mod world;

use std::fs;
use std::io::{BufRead as _, BufReader, Seek as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

pub use world::{server, standard_servers, standard_zone};

use crate::level::we_are_root;
use crate::policy::{PolicyFile, default_text};
use crate::poll::wait_for;
use crate::{Exec, Level, Outcome, locate};

/// The host's own address in the laboratory, which no rule for public addresses may reach.
pub const HOST_ADDRESS: &str = "192.0.2.1";

/// Makes the host and all that is beside it, and stays until its input ends. `$1` is the laboratory's
/// directory, `$2` that of its programs, `$3` a Rust installation, `$4` [`INTERNET`], `$5` [`JOIN`].
///
/// One process starts the others, because as an ordinary user it alone has the rights to.
const HOST: &str = r#"set -e
exec 3<&0
cd "$1"
mount --bind resolv.conf "$(readlink -f /etc/resolv.conf)"
mount --bind hosts /etc/hosts
mount --bind nsswitch.conf /etc/nsswitch.conf
mount --bind certs /etc/ssl/certs
mount --bind passwd "$(readlink -f /etc/passwd)"
mount -t tmpfs -o mode=755 lab /mnt
if [ -n "$3" ]; then mkdir /mnt/rust && mount --bind "$3" /mnt/rust; fi
ip link set lo up
await() {
    for _ in $(seq 500); do
        if grep -q ready "$1"; then return; fi
        kill -0 $! && sleep 0.02
    done
    exit 1
}
: >internet.out; : >host.out
unshare --net --mount sh -c "$4" internet "$2" "$1" <&3 >internet.out &
internet=$!
await internet.out
sh -c "$5" join "$internet"
python3 "$2/internet.py" "$1" host <&3 >host.out &
await host.out
echo up
exec cat >/dev/null
"#;

/// Makes the internet and becomes it: what is sent to any of these addresses arrives here.
const INTERNET: &str = r#"set -e
ip link set lo up
for range in 203.0.113.0/24 198.51.100.0/24 10.0.0.0/8 169.254.169.254/32; do
    ip route add local $range dev lo
done
ip -6 route add local 2001:db8:1::/48 dev lo
# Version 6 binds to addresses that an interface has.
for host in 2001:db8:1::10 2001:db8:1::53; do ip -6 address add $host/128 dev lo nodad; done
exec python3 "$1/internet.py" "$2" servers
"#;

/// Joins both. `$1` is the internet's process.
const JOIN: &str = r#"set -e
ip link add name lab0 type veth peer name net0 netns "$1"
ip address add 192.0.2.1/24 dev lab0
ip -6 address add 2001:db8:2::1/64 dev lab0 nodad
ip link set lab0 up
nsenter --net="/proc/$1/ns/net" sh -ec '
    ip address add 192.0.2.254/24 dev net0
    ip -6 address add 2001:db8:2::254/64 dev net0 nodad
    ip link set net0 up'
ip route add default via 192.0.2.254
ip -6 route add default via 2001:db8:2::254
"#;

/// A laboratory. Everything in it ends with this value.
#[derive(Debug)]
pub struct Lab {
    directory: TempDir,
    host: Child,
}

impl Lab {
    /// The laboratory that most tests share: see `world`.
    pub fn standard() -> Lab {
        Lab::with(&standard_servers(), &standard_zone())
    }

    /// A laboratory with these servers of the internet and this zone (`lab/dns.py` says what it is).
    pub fn with(servers: &[Value], zone: &Value) -> Lab {
        Lab::prepared(servers, zone, |_| {})
    }

    /// As [`Lab::with`]; `prepare` puts files into its directory before anything starts.
    ///
    /// # Panics
    /// If it cannot be made; the message has what was said.
    pub fn prepared(servers: &[Value], zone: &Value, prepare: impl FnOnce(&Path)) -> Lab {
        let directory = tempfile::Builder::new().prefix("e2e-lab-").tempdir().expect("a directory");
        let path = directory.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("cannot chmod");
        write_files(path, servers, zone);
        prepare(path);
        let mut host = Command::new("unshare");
        if !we_are_root() {
            host.args(["--user", "--map-current-user", "--keep-caps"]);
        }
        host.args(["--net", "--mount", "sh", "-c", HOST, "host"]).arg(path).arg(programs());
        let host = start(host.arg(rust()).args([INTERNET, JOIN]), "up");
        Lab { directory, host }
    }

    /// Its files: the zone, the certificates, what was heard.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What a command line starts with so that the command runs on the laboratory's host.
    pub fn wrapper(&self) -> Vec<String> {
        let pid = self.host.id();
        let mut words = vec!["nsenter".to_owned()];
        if !we_are_root() {
            words.extend([format!("--user=/proc/{pid}/ns/user"), "--preserve-credentials".into()]);
        }
        words.extend([format!("--net=/proc/{pid}/ns/net"), format!("--mount=/proc/{pid}/ns/mnt")]);
        // Entering a mount namespace changes the directory.
        words.extend(["--", "sh", "-c", "cd \"$HOME\" && exec \"$@\"", "lab"].map(str::to_owned));
        words
    }

    /// A run of `worker exec` on the laboratory's host.
    pub fn exec(&self, level: Level, policy: &PolicyFile) -> Exec {
        let wrapper = self.wrapper();
        let words: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        Exec::at(level).wrapped_in(&words).policy(policy.path())
    }

    /// Runs acts in a jail with this policy: what each gave, in order.
    ///
    /// # Panics
    /// If any of them gave nothing.
    pub fn inside(&self, level: Level, policy: &PolicyFile, acts: &[Value]) -> Vec<Value> {
        let exec = self.exec(level, policy).timeout(Duration::from_secs(150));
        let outcome = exec.stdin(program_of(acts)).run(&["python3", "-"]);
        // Shown when the test fails: what the broker denied, and why.
        eprintln!("{}: {}", level.name(), outcome.stderr.trim_end());
        results(&outcome.stdout, acts, &outcome.text())
    }

    /// Starts acts in a jail and returns while they run; [`Lab::results_of`] has what they gave.
    pub fn begin(&self, level: Level, policy: &PolicyFile, acts: &[Value]) -> crate::exec::Running {
        let exec = self.exec(level, policy).timeout(Duration::from_secs(150));
        exec.stdin(program_of(acts)).spawn(&["python3", "-"])
    }

    /// What acts gave that were started by [`Lab::begin`].
    pub fn results_of(outcome: &Outcome, acts: &[Value]) -> Vec<Value> {
        results(&outcome.stdout, acts, &outcome.text())
    }

    /// Runs acts from a plain process of the host.
    ///
    /// # Panics
    /// If any of them gave nothing.
    pub fn outside(&self, acts: &[Value]) -> Vec<Value> {
        let (said, told) = self.run_with(&["python3", "-"], &program_of(acts));
        results(&said, acts, &told)
    }

    /// Runs a command on the host, as the user of the tests: standard output and standard error.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn run(&self, command: &[&str]) -> (String, String) {
        self.run_with(command, "")
    }

    fn run_with(&self, command: &[&str], input: &str) -> (String, String) {
        let mut file = tempfile::tempfile().expect("cannot make a file");
        file.write_all(input.as_bytes()).and_then(|()| file.rewind()).expect("cannot write a file");
        let done = self.command().args(command).stdin(file).output().expect("cannot run nsenter");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&done.stdout), text(&done.stderr))
    }

    /// A command to be started on the host, as the user of the tests.
    pub fn command(&self) -> Command {
        inside_of(&self.host)
    }

    /// Replaces the zone, from the next question on.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn zone(&self, zone: &Value) {
        write_zone(self.directory.path(), zone);
    }

    /// Everything that the servers of internet and host heard so far, in order.
    pub fn heard(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.directory.path().join("heard.jsonl"));
        let lines = text.unwrap_or_default();
        lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What a server heard, by the name of the server and of the kind of event.
    pub fn heard_by(&self, server: &str, what: &str) -> Vec<Value> {
        let mut heard = self.heard();
        heard.retain(|line| line["on"] == server && line["what"] == what);
        heard
    }

    /// Every name that the upstream resolver was asked for.
    pub fn questions(&self) -> Vec<String> {
        let all = self.heard().into_iter().filter(|line| line["what"] == "question");
        all.filter_map(|line| Some(line["name"].as_str()?.to_lowercase())).collect()
    }

    /// Forgets what was heard.
    ///
    /// # Panics
    /// If it cannot.
    pub fn forget(&self) {
        // Servers append: the file stays the same.
        let file =
            fs::OpenOptions::new().write(true).open(self.directory.path().join("heard.jsonl"));
        file.and_then(|file| file.set_len(0)).expect("cannot empty the record");
    }

    /// Waits until `holds` of what was heard.
    ///
    /// # Panics
    /// If that takes longer than `limit`; the message has what was heard.
    pub fn wait_heard(&self, limit: Duration, holds: impl Fn(&[Value]) -> bool) {
        let done = wait_for(limit, || holds(&self.heard()));
        assert!(done, "not within {limit:?}: {:#?}", self.heard());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let heard = self.heard();
            let last = heard.len().saturating_sub(40);
            eprintln!("the laboratory heard {} lines, at last:", heard.len());
            for line in &heard[last..] {
                eprintln!("  {}", line.to_string().chars().take(300).collect::<String>());
            }
        }
        // All of it ends when its input does.
        drop(self.host.stdin.take());
        if !wait_for(Duration::from_secs(3), || matches!(self.host.try_wait(), Ok(Some(_)))) {
            drop(self.host.kill());
            drop(self.host.wait());
        }
    }
}

/// The default policy with this text in its `[network]` table, in place of what it says itself.
///
/// # Panics
/// If the default policy has no such table.
pub fn policy(network: &str) -> PolicyFile {
    let text = policy_text(network);
    PolicyFile::from_text(&text)
}

/// The text of [`policy`].
///
/// # Panics
/// As [`policy`].
pub fn policy_text(network: &str) -> String {
    let text = default_text();
    let start = text.find("[network]").expect("the default policy has a network table");
    let end = text[start + 1..].find("\n[").map_or(text.len(), |at| start + 1 + at);
    let key = |line: &str| line.split_once('=').map(|(key, _)| key.trim().to_owned());
    let ours: Vec<String> = network.lines().filter_map(key).collect();
    let theirs = text[start..end].lines().skip(1);
    let kept: Vec<&str> =
        theirs.filter(|line| key(line).is_some_and(|key| !ours.contains(&key))).collect();
    let set = "NODE_EXTRA_CA_CERTS = \"/etc/ssl/certs/ca-certificates.crt\", ";
    let rest = text[end..].replace("set = { ", &format!("set = {{ {set}"));
    format!("{}[network]\n{}\n{network}\n{rest}", &text[..start], kept.join("\n"))
}

/// Whether a result says that the broker or the kernel refused: no connection, or one that was reset
/// before a byte came.
pub fn is_refused(result: &Value) -> bool {
    let error = result["error"].as_str().unwrap_or_default();
    let refused = ["ECONNREFUSED", "ECONNRESET", "EPIPE", "handshake", "EAI_NONAME", "EAI_FAIL"];
    let nothing = result["count"] == 0;
    let reset = result["how"] == "reset" || result["send"].is_string();
    refused.contains(&error) || error == "EAI_AGAIN" || (nothing && reset)
}

/// The directory of the laboratory's programs.
fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("lab")
}

/// These acts as one program, for standard input.
///
/// # Panics
/// If it cannot be read.
pub fn program_of(acts: &[Value]) -> String {
    let program = fs::read_to_string(programs().join("acts.py")).expect("cannot read the acts");
    // A string of JSON is one of Python.
    let literal = Value::from(Value::from(acts).to_string());
    format!("{program}\nrun(json.loads({literal}))\n")
}

/// The Rust installation that runs these tests, or nothing.
fn rust() -> String {
    let cargo = std::env::var_os("CARGO").map(PathBuf::from).unwrap_or_default();
    let root = cargo.parent().and_then(Path::parent).filter(|root| root.join("bin/rustc").exists());
    root.map(|root| root.display().to_string()).unwrap_or_default()
}

/// `nsenter` to the host's namespaces, as the user of the tests.
fn inside_of(host: &Child) -> Command {
    let pid = host.id();
    let mut command = Command::new("nsenter");
    if !we_are_root() {
        command.args([&format!("--user=/proc/{pid}/ns/user"), "--preserve-credentials"]);
    }
    command.args([format!("--net=/proc/{pid}/ns/net"), format!("--mount=/proc/{pid}/ns/mnt")]);
    command.arg("--");
    command
}

/// Starts a process that says `word` when it is ready.
fn start(command: &mut Command, word: &str) -> Child {
    let errors = tempfile::NamedTempFile::new().expect("cannot make a file");
    let to = errors.reopen().expect("cannot open a file");
    let mut child = command
        .env("PATH", locate::SEARCH_PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(to)
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let mut said = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
    out.read_line(&mut said).expect("cannot hear a process of the laboratory");
    let told = || fs::read_to_string(errors.path()).unwrap_or_default();
    assert_eq!(said.trim(), word, "{command:?}: {}", told());
    // What comes later is for nobody, and must not fill the pipe.
    std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
    child
}

fn results(said: &str, acts: &[Value], told: &str) -> Vec<Value> {
    let results: Vec<Value> =
        said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(results.len(), acts.len(), "not every act gave something: {told}");
    results
}

fn write_zone(path: &Path, zone: &Value) {
    let fresh = path.join("zone.new");
    fs::write(&fresh, zone.to_string()).expect("cannot write the zone");
    fs::rename(&fresh, path.join("zone.json")).expect("cannot replace the zone");
}

fn write_files(path: &Path, servers: &[Value], zone: &Value) {
    let write = |name: &str, text: &str| fs::write(path.join(name), text).expect("cannot write");
    write("heard.jsonl", "");
    write("servers.json", &Value::from(servers).to_string());
    write("host.json", &Value::from(world::host_services()).to_string());
    write("resolv.conf", "nameserver 203.0.113.53\noptions timeout:2 attempts:2\n");
    write("hosts", "127.0.0.1 localhost\n::1 localhost\n");
    write("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n");
    let home = path.join("home").display().to_string();
    let id = if we_are_root() { 0 } else { Level::Rootless.uid() };
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let others = passwd.lines().filter(|line| line.split(':').nth(2) != Some(&id.to_string()));
    let others: String = others.map(|line| format!("{line}\n")).collect();
    write("passwd", &format!("lab:x:{id}:{id}:lab:{home}:/bin/sh\n{others}"));
    fs::create_dir(path.join("home")).expect("cannot make a home");
    write_zone(path, zone);
    certificates(path);
}

/// A certificate authority that the laboratory's host trusts, and one certificate for all names.
fn certificates(path: &Path) {
    let script = r#"set -e
cd "$1"
new="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -batch"
openssl req -x509 $new -keyout ca.key -out ca.pem -days 2 -subj "/CN=lab authority" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
openssl req $new -keyout server.key -out server.csr -subj "/CN=lab server"
printf '%s\n' "subjectAltName=DNS:*.example.test,DNS:*.pkg.example.test,IP:203.0.113.53" \
    extendedKeyUsage=serverAuth basicConstraints=CA:FALSE >server.ext
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -days 2 -set_serial 1 \
    -extfile server.ext -out server.pem
mkdir certs
cp ca.pem certs/ca-certificates.crt
openssl rehash certs
chmod 755 certs
chmod 644 certs/ca-certificates.crt
"#;
    let done = Command::new("sh").args(["-c", script, "certificates"]).arg(path).output();
    let done = done.expect("cannot run sh");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
