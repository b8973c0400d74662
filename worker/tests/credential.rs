//! Start-up checks of `worker poll` and the key reader, asked of the built binary.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

const WORKER: &str = env!("CARGO_BIN_EXE_worker");
const SECRET: &str = "sk-ant-oat01-5f2c-not-a-real-key-91aa";
/// Of one test only, since tests run at the same time.
const ENVIRON_SECRET: &str = "sk-ant-oat01-77d0-not-a-real-key-c3e4";

struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        Place { directory: TempDir::new().expect("a directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn key(&self, text: &str) -> PathBuf {
        let path = self.path("key");
        write_key(&path, text);
        path
    }

    /// `worker poll --jail --check`, with nothing of the caller's environment.
    fn check(&self) -> Command {
        let mut command = Command::new(WORKER);
        command.env_clear().env("HOME", self.directory.path());
        command.args(["poll", "--jail", "--check", "--format=json", "--environment-id=env_1"]);
        command.arg("--audit-file").arg(self.path("audit.jsonl"));
        command
    }
}

fn write_key(path: &Path, text: &str) {
    fs::write(path, text).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("a mode");
}

fn text(output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[test]
fn the_key_is_used_and_never_shown() {
    let place = Place::new();
    let key = place.key(&format!("{SECRET}\n"));
    let credentials = place.path("credentials");
    fs::create_dir(&credentials).expect("a directory");
    write_key(&credentials.join("environment-key"), SECRET);
    let mut sources = [place.check(), place.check(), place.check()];
    sources[0].arg("--environment-key-file").arg(&key);
    sources[1].env("CREDENTIALS_DIRECTORY", &credentials);
    sources[2].env("ANTHROPIC_ENVIRONMENT_KEY", SECRET);
    let mut prints = Vec::new();
    for (source, again) in sources.iter_mut().zip([true, true, false]) {
        let output = source.output().expect("run");
        let text = text(&output);
        assert!(output.status.success() && !text.contains(SECRET), "{text}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect(&text);
        assert_eq!(json["key"]["read_again_on_sighup"], again, "{text}");
        prints.push(json["key"]["fingerprint"].to_string());
    }
    assert!(!place.path("audit.jsonl").exists(), "a check makes nothing");
    assert!(prints.iter().all(|print| *print == prints[0]), "one key, three ways: {prints:?}");
}

/// AUTH-9, AUTH-11, `docs/exit-codes.md`
#[test]
fn what_must_not_be_is_refused_with_one_sentence_and_a_hint() {
    let place = Place::new();
    let with = |change: &dyn Fn(&mut Command)| {
        let mut command = place.check();
        change(&mut command);
        let output = command.output().expect("run");
        let text = text(&output);
        assert!(!text.contains(SECRET), "{text}");
        assert_eq!(text.matches("error: ").count(), 1, "{text}");
        assert_eq!(text.matches("\nhint: ").count(), 1, "{text}");
        (output.status.code(), text)
    };
    let key = place.path("key");
    let file = |text: &str, mode: u32| {
        fs::write(&key, text).expect("written");
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).expect("a mode");
        with(&|command| {
            command.arg("--environment-key-file").arg(&key);
        })
    };
    #[rustfmt::skip]
    let cases = [
        (file(SECRET, 0o644),            9, "has mode 0644"),
        (file("", 0o600),                3, "it is empty"),
        (file("sk-ant-api03-x", 0o600),  9, "API key of an organization"),
        (with(&|_| ()),                  2, "no environment key given"),
        (with(&|c| { c.env("ANTHROPIC_API_KEY", SECRET); }),       9, "ANTHROPIC_API_KEY is set"),
        (with(&|c| { c.env("ANTHROPIC_AUTH_TOKEN", SECRET); }),    9, "ANTHROPIC_AUTH_TOKEN is set"),
        (with(&|c| { c.env("ANTHROPIC_ENVIRONMENT_KEY", ""); }),   3, "it is empty"),
        (with(&|c| { c.env("ANTHROPIC_ENVIRONMENT_KEY", "a b"); }), 3, "not a printable"),
        (with(&|c| { c.arg(format!("--environment-key={SECRET}")); }), 2, "from the command line"),
        (with(&|c| { c.arg("--environment-key-file=/nonexistent"); }), 3, "No such file"),
    ];
    for ((code, text), want, sentence) in cases {
        assert_eq!(code, Some(want), "{sentence}: {text}");
        assert!(text.contains(sentence), "{sentence}: {text}");
    }
}

/// AUTH-10, INV-1: also what a process was started with can be read in `/proc`.
#[test]
fn no_process_keeps_the_key_in_its_environment() {
    let place = Place::new();
    // The worker stops at a full pipe when it has everything, and can be looked at.
    let (mut read, write) = std::io::pipe().expect("a pipe");
    let flags = rustix::fs::fcntl_getfl(&write).expect("flags");
    rustix::fs::fcntl_setfl(&write, flags | rustix::fs::OFlags::NONBLOCK).expect("set");
    while rustix::io::write(write.as_fd(), &[b'x'; 4096]).is_ok() {}
    rustix::fs::fcntl_setfl(&write, flags).expect("set");
    let mut worker = place.check();
    worker.env("ANTHROPIC_ENVIRONMENT_KEY", ENVIRON_SECRET).env("CONTROL", "seen").stdout(write);
    let mut child = worker.spawn().expect("started");
    drop(worker);
    let environ = format!("/proc/{}/environ", child.id());
    let deadline = Instant::now() + Duration::from_secs(20);
    // It has one thread and waits for nothing else, so a sleep that lasts is that write.
    let sleeps = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
        stat.contains("(worker) S ")
    };
    let mut asleep = 0;
    while asleep < 10 && Instant::now() < deadline {
        asleep = if sleeps() { asleep + 1 } else { 0 };
        sleep(Duration::from_millis(20));
    }
    assert_eq!(asleep, 10, "the worker did not come to its end");
    let own = fs::read(&environ).unwrap_or_default();
    let shown = fs::metadata(&environ).map(|about| about.uid());
    let ids = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    // Control: a process that was started with the key and keeps it.
    let mut keeper = Command::new("sleep");
    let mut keeper = keeper.arg("60").env("KEPT", ENVIRON_SECRET).spawn().expect("started");
    let mut holders = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let found = ["environ", "cmdline"].map(|file| fs::read(entry.path().join(file)));
        let holds = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).contains(ENVIRON_SECRET);
        if found.into_iter().flatten().any(holds) {
            holders.push(entry.path());
        }
    }
    keeper.kill().expect("killed");
    keeper.wait().expect("ended");
    let mut rest = Vec::new();
    let reader = std::thread::spawn(move || read.read_to_end(&mut rest).map(|_| rest));
    let status = child.wait().expect("ended");
    let out = reader.join().expect("read").expect("read");
    assert!(status.success(), "{}", String::from_utf8_lossy(&out));
    if rustix::process::geteuid().is_root() {
        let own = String::from_utf8_lossy(&own);
        assert_eq!(shown.ok(), Some(0), "AUTH-10: what cannot be dumped is shown as root's");
        assert!(ids.contains("Uid:\t188"), "control: it is not root's any more: {ids}");
        assert!(own.contains("CONTROL=seen"), "control: it was looked at in time: {own}");
    }
    let only = PathBuf::from(format!("/proc/{}", keeper.id()));
    assert_eq!(holders, [only], "INV-1: only the control holds it");
}

/// A key reader, spoken to as the worker does.
struct Reader(Child);

impl Reader {
    fn start(key: &Path) -> Self {
        let level = if rustix::process::geteuid().is_root() { "root" } else { "rootless" };
        let child = Command::new(WORKER)
            .arg0("stockade-key-reader")
            .args([level, "[\"EnvironmentKey\",\"Owner\"]"])
            .arg(key)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut reader = Reader(child);
        assert_eq!(reader.answer().0, b'r');
        reader
    }

    fn answer(&mut self) -> (u8, String) {
        let from = self.0.stdout.as_mut().expect("piped");
        let mut header = [0; 5];
        from.read_exact(&mut header).expect("an answer");
        let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
        let mut bytes = vec![0; length as usize];
        from.read_exact(&mut bytes).expect("an answer");
        (header[0], String::from_utf8_lossy(&bytes).into_owned())
    }

    /// For the first file, and only one.
    fn ask(&mut self) -> (u8, String) {
        self.ask_for(0)
    }

    fn ask_for(&mut self, number: u8) -> (u8, String) {
        self.0.stdin.as_mut().expect("piped").write_all(&[number]).expect("asked");
        self.answer()
    }
}

#[test]
fn the_key_reader_reads_a_new_key_with_the_checks_of_the_first_time() {
    let place = Place::new();
    let key = place.key("first\n");
    let mut reader = Reader::start(&key);
    assert_eq!(reader.ask(), (b'v', "first\n".to_owned()), "as it is: whoever asks takes it apart");
    let (kind, error) = reader.ask_for(1);
    assert!(kind == b'e' && !error.contains("first"), "it was not started for a second: {error}");
    write_key(&place.path("new"), "second");
    fs::rename(place.path("new"), &key).expect("replaced");
    assert_eq!(reader.ask(), (b'v', "second".to_owned()));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("a mode");
    let (kind, error) = reader.ask();
    assert!(kind == b'e' && error.contains("Mode") && !error.contains("second"), "{error}");
    fs::remove_file(&key).expect("removed");
    assert_eq!(reader.ask().0, b'e');
    write_key(&key, "third");
    assert_eq!(reader.ask(), (b'v', "third".to_owned()));
    drop(reader.0.stdin.take());
    assert!(reader.0.wait().expect("ended").success(), "it ends when nobody can ask any more");
}

#[test]
fn the_key_reader_can_do_nothing_but_read_that_directory() {
    let place = Place::new();
    let key = place.key("inside");
    let elsewhere = Place::new();
    let outside = elsewhere.key("outside");
    let mut reader = Reader::start(&key);
    let status = fs::read_to_string(format!("/proc/{}/status", reader.0.id())).expect("status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect(name);
        line[name.len()..].trim().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("Name:"), "key-reader");
    assert_eq!((field("NoNewPrivs:"), field("Threads:")), ("1".to_owned(), "1".to_owned()));
    if rustix::process::geteuid().is_root() {
        let net = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).expect("a namespace");
        assert_ne!(net(reader.0.id()), net(std::process::id()), "it has no network");
        let environ = fs::read(format!("/proc/{}/environ", reader.0.id())).expect("environ");
        assert!(environ.is_empty());
    }
    // Control: the same link leads somewhere for a reader of that directory.
    fs::remove_file(&key).expect("removed");
    symlink(&outside, &key).expect("a link");
    let (kind, error) = reader.ask();
    assert!(kind == b'e' && error.contains("\"errno\":13"), "landlock refuses: {error}");
    assert_eq!(Reader::start(&outside).ask(), (b'v', "outside".to_owned()));
    drop(reader.0.stdin.take());
    reader.0.wait().expect("ended");
}
