//! One run of `worker poll` against a development server, as an operator would start it.
//!
//! The run goes through the subreaper of the payload program, so that the harness learns the
//! worker's process id, its end and every process that outlived it. A run that is dropped is ended.
//! [`Worker::wait`] fails the test if anything is left or if the audit log does not verify.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::exec::{End, give, parents};
use crate::leftover::Snapshot;
use crate::{Devserver, Level, locate, lock};

/// The harness ends a run after this, which fails its test.
const LIMIT: Duration = Duration::from_secs(120);
/// How long processes may live after the worker: the launcher finishes what it was doing.
const GRACE: &str = "3";

/// A run to be started.
#[derive(Debug)]
pub struct Poll {
    level: Level,
    place: Place,
    options: Vec<OsString>,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
    command: Vec<String>,
    leaves: bool,
    alone: bool,
}

impl Poll {
    /// A run at `level` with the default policy, a state directory and an audit file of its own.
    ///
    /// # Panics
    /// If its directories cannot be made.
    pub fn at(level: Level) -> Poll {
        let place = Place::new(level);
        let (options, environment, wrapper) = (Vec::new(), Vec::new(), Vec::new());
        let command = ["poll", "--jail"].map(str::to_owned).to_vec();
        let (leaves, alone) = (false, false);
        Poll { level, place, options, environment, wrapper, command, leaves, alone }
    }

    /// Runs these words of a command line instead of `poll --jail`.
    pub fn command(mut self, words: &[&str]) -> Poll {
        self.command = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Adds options of `worker poll` or of `worker`, as written on a command line.
    pub fn options<S: Into<OsString>>(mut self, options: impl IntoIterator<Item = S>) -> Poll {
        self.options.extend(options.into_iter().map(Into::into));
        self
    }

    /// Starts the worker by way of another program, which gets the command line as arguments.
    pub fn wrapped_in(mut self, wrapper: &[String]) -> Poll {
        self.wrapper = wrapper.to_vec();
        self
    }

    /// Whether an option was given.
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|given| given == option)
    }

    /// Adds one option with a path.
    pub fn path(self, option: &str, path: &Path) -> Poll {
        self.options([OsString::from(option), path.into()])
    }

    /// Sets a variable of the worker's environment.
    pub fn variable(mut self, name: &str, value: &str) -> Poll {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Uses a policy file with this text.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn policy(self, text: &str) -> Poll {
        let file = self.place.path("policy.toml");
        fs::write(&file, text).expect("cannot write a policy");
        self.path("--policy", &file)
    }

    /// For runs that are crashed on purpose: neither leftovers nor an open end of the log count.
    pub fn may_leave(mut self) -> Poll {
        self.leaves = true;
        self
    }

    /// The caller holds [`lock::alone`], so this run must not wait for its turn.
    pub fn alone(mut self) -> Poll {
        self.alone = true;
        self
    }

    /// Directory of this run, which its user owns.
    pub fn home(&self) -> PathBuf {
        self.place.path("home")
    }

    /// Where the worker keeps its state.
    pub fn state(&self) -> PathBuf {
        self.place.path("state")
    }

    /// The audit log.
    pub fn audit_file(&self) -> PathBuf {
        self.place.audit_file()
    }

    /// Starts the worker for `server`.
    pub fn serve(mut self, server: &Devserver) -> Worker {
        // A key in a file, and one in the environment, would be one too many.
        let file = self.has("--environment-key-file");
        for (name, value) in server.variables() {
            if file && name == "ANTHROPIC_ENVIRONMENT_KEY" {
                continue;
            }
            if !self.environment.iter().any(|(known, _)| known == name) {
                self.environment.push((name.clone(), value.clone()));
            }
        }
        self.start()
    }

    /// Starts the worker with nothing but what was set.
    ///
    /// # Panics
    /// If the harness cannot start it.
    pub fn start(self) -> Worker {
        let turn = (!self.alone).then(lock::shared);
        let before = Snapshot::take();
        let mut line = vec![OsString::from("supervise"), self.place.report().into()];
        line.extend([LIMIT.as_secs().to_string().into(), GRACE.into()]);
        line.push(self.level.uid().to_string().into());
        line.extend(self.wrapper.iter().map(OsString::from));
        line.extend(self.level.prefix().into_iter().map(OsString::from));
        line.push(locate::worker().into());
        if !self.has("--log-level") {
            // Starts of calls are told at this level.
            line.extend(["--log-level", "debug"].map(OsString::from));
        }
        if !self.has("--log-format") {
            line.extend(["--log-format", "json"].map(OsString::from));
        }
        line.extend(self.command.iter().map(OsString::from));
        if !self.has("--audit-file") {
            line.extend([OsString::from("--audit-file"), self.place.audit_file().into()]);
        }
        if !self.has("--state-dir") {
            line.extend([OsString::from("--state-dir"), self.place.path("state").into()]);
        }
        line.extend(self.options);
        let mut child = Command::new(locate::probe())
            .args(line)
            .env_clear()
            .env("PATH", locate::SEARCH_PATH)
            .env("HOME", self.place.path("home"))
            .env("XDG_RUNTIME_DIR", self.place.path("home"))
            .envs(self.environment)
            .current_dir(self.place.path("home"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cannot start the supervisor");
        let stderr = follow(child.stderr.take().expect("stderr is a pipe"));
        let stdout = follow(child.stdout.take().expect("stdout is a pipe"));
        let started = Instant::now();
        let (place, leaves) = (self.place, self.leaves);
        Worker { child: Some(child), stdout, stderr, before, place, leaves, started, _turn: turn }
    }
}

/// What a pipe gave so far, and whether it has ended.
type Heard = Arc<Mutex<(Vec<u8>, bool)>>;

fn follow(mut from: impl std::io::Read + Send + 'static) -> Heard {
    let heard = Heard::default();
    let to = Arc::clone(&heard);
    thread::spawn(move || {
        let mut chunk = vec![0; 1 << 16];
        while let Ok(n @ 1..) = from.read(&mut chunk) {
            to.lock().unwrap_or_else(PoisonError::into_inner).0.extend_from_slice(&chunk[..n]);
        }
        to.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
    });
    heard
}

/// A run that goes on.
#[derive(Debug)]
pub struct Worker {
    child: Option<Child>,
    stdout: Heard,
    stderr: Heard,
    before: Snapshot,
    place: Place,
    leaves: bool,
    started: Instant,
    _turn: Option<lock::Shared>,
}

impl Worker {
    /// The process id of the worker's control side.
    ///
    /// # Panics
    /// If the supervisor does not say so within ten seconds.
    pub fn pid(&self) -> u32 {
        let mut pid = None;
        wait_for(Duration::from_secs(10), || {
            let report = fs::read_to_string(self.place.report()).unwrap_or_default();
            let found = report.lines().find_map(|line| line.strip_prefix("pid "));
            pid = found.and_then(|text| text.trim().parse().ok());
            pid.is_some()
        });
        pid.expect("the supervisor does not say which process it started")
    }

    /// Sends a signal by its name.
    ///
    /// # Panics
    /// If it cannot be sent.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.expect("cannot run kill").success(), "cannot signal {pid}");
    }

    /// Every live process below the worker, the worker first.
    pub fn processes(&self) -> Vec<u32> {
        let mut found = vec![self.pid()];
        let mut next = 0;
        let parents = parents();
        while let Some(&parent) = found.get(next) {
            found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
            next += 1;
        }
        found
    }

    /// Waits until a command of a session sleeps for so many seconds: what it does before is done by
    /// then. Returns its process.
    ///
    /// # Panics
    /// If that takes longer than `limit`; the message has the log.
    pub fn wait_for_sleep(&self, seconds: &str, limit: Duration) -> u32 {
        let line = format!("sleep\0{seconds}\0");
        let sleeps = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found == line)
        };
        let mut found = None;
        wait_for(limit, || {
            found = self.processes().into_iter().find(sleeps);
            found.is_some()
        });
        found.unwrap_or_else(|| panic!("nobody sleeps after {limit:?}: {}", self.said()))
    }

    /// What was written to standard error so far.
    pub fn said(&self) -> String {
        text(&self.stderr)
    }

    /// What is in the audit log so far.
    pub fn audited(&self) -> Vec<Value> {
        read_lines(&fs::read_to_string(self.place.audit_file()).unwrap_or_default())
    }

    /// Waits until `times` events of the log have this name.
    ///
    /// # Panics
    /// If that takes longer than `limit`; the message has the log.
    pub fn wait_for_events(&self, event: &str, times: usize, limit: Duration) {
        let heard = || events(&read_lines(&self.said()), event).len() >= times;
        assert!(wait_for(limit, heard), "no {times} × {event} in {limit:?}: {}", self.said());
    }

    /// Waits until the log has an event of this name.
    pub fn wait_for_event(&self, event: &str, limit: Duration) {
        self.wait_for_events(event, 1, limit);
    }

    /// Whether the worker has not ended yet.
    pub fn runs(&self) -> bool {
        let report = fs::read_to_string(self.place.report()).unwrap_or_default();
        report.lines().nth(1).is_none()
    }

    /// Directory of this run, which its user owns.
    pub fn home(&self) -> PathBuf {
        self.place.path("home")
    }

    /// The audit log.
    pub fn audit_file(&self) -> PathBuf {
        self.place.audit_file()
    }

    /// SIGTERM, and the end.
    pub fn stop(self) -> Ran {
        self.signal("TERM");
        self.wait()
    }

    /// Waits for the end, and checks what is left and that the audit log verifies (INV-10).
    ///
    /// # Panics
    /// If a process, cgroup, mount, loop device, run directory entry or file outlives the run, or
    /// if `worker audit verify` finds anything.
    pub fn wait(mut self) -> Ran {
        let mut child = self.child.take().expect("it has not been waited for");
        child.wait().expect("cannot wait for the supervisor");
        let over = Instant::now();
        let elapsed = over.duration_since(self.started);
        wait_for(Duration::from_secs(2), || ended(&self.stderr) && ended(&self.stdout));
        let report = fs::read_to_string(self.place.report()).unwrap_or_default();
        let said = self.said();
        let end = end_of(&report).unwrap_or_else(|| panic!("no end is reported: {report}\n{said}"));
        let processes = report.lines().filter_map(|line| line.strip_prefix("leftover "));
        let mut leftovers: Vec<String> = processes.map(|who| format!("process {who}")).collect();
        if !self.leaves {
            leftovers.extend(self.before.leftovers());
            leftovers.extend(self.place.leftovers(has_open_calls(&self.audited())));
            assert!(leftovers.is_empty(), "INV-10: left over: {leftovers:#?}\n{said}");
        }
        let audit_file = self.place.audit_file();
        let audit = self.audited();
        if !self.leaves && audit_file.exists() {
            let (code, told) = verify(&audit_file);
            assert_eq!(code, Some(0), "the audit log does not verify: {told}");
        }
        let log = read_lines(&said);
        let stdout = text(&self.stdout);
        let place = std::mem::replace(&mut self.place, Place::none());
        Ran { end, log, stdout, stderr: said, audit, leftovers, elapsed, over, place }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // The supervisor ends the worker when it is asked to end; it may have ended already.
            let pid = child.id().to_string();
            drop(Command::new("kill").args(["-s", "TERM", &pid]).status());
            drop(child.wait());
            if thread::panicking() {
                eprintln!("the worker said:\n{}", text(&self.stderr));
            }
        }
    }
}

/// A run that is over.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub end: End,
    /// Events of standard error.
    pub log: Vec<Value>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The audit log.
    pub audit: Vec<Value>,
    /// What outlived it; empty unless the run may leave something.
    pub leftovers: Vec<String>,
    /// From start to end.
    pub elapsed: Duration,
    /// When it had ended; what is left is looked for later.
    pub over: Instant,
    place: Place,
}

impl Ran {
    /// Asserts how it ended.
    ///
    /// # Panics
    /// If it ended otherwise.
    pub fn ended(self, code: i32) -> Ran {
        assert_eq!(self.end, End::Exit(code), "{}", self.stderr);
        self
    }

    /// Events of the log with this name.
    pub fn events(&self, event: &str) -> Vec<&Value> {
        events(&self.log, event)
    }

    /// Records of the audit log with this name.
    pub fn audited(&self, event: &str) -> Vec<&Value> {
        events(&self.audit, event)
    }

    /// The audit log's file; gone with this value.
    pub fn audit_file(&self) -> PathBuf {
        self.place.audit_file()
    }
}

/// The exit code and the words of `worker audit verify`.
///
/// # Panics
/// If it cannot be run.
pub fn verify(file: &Path) -> (Option<i32>, String) {
    let output = Command::new(locate::worker()).args(["audit", "verify"]).arg(file).output();
    let output = output.expect("cannot run the worker");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// Waits until `holds`; `false` after `limit`.
pub fn wait_for(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn text(heard: &Heard) -> String {
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    String::from_utf8_lossy(&heard.0).into_owned()
}

fn ended(heard: &Heard) -> bool {
    heard.lock().unwrap_or_else(PoisonError::into_inner).1
}

fn read_lines(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn events<'a>(all: &'a [Value], name: &str) -> Vec<&'a Value> {
    all.iter().filter(|one| one["event"] == name).collect()
}

/// Whether a call was begun and its result is not on the server, as far as the worker knows.
fn has_open_calls(audit: &[Value]) -> bool {
    let count = |name| events(audit, name).len();
    count("call.started") > count("call.posted")
}

fn end_of(report: &str) -> Option<End> {
    let number = |text: &str| text.trim().parse().ok();
    report.lines().find_map(|line| match line.split_once(' ') {
        Some(("exit", status)) => number(status).map(End::Exit),
        Some(("signal", signal)) => number(signal).map(End::Signal),
        _ => (line == "timeout").then_some(End::TimedOut),
    })
}

/// The directories of one run: the supervisor's report, a home of the caller, the worker's state.
#[derive(Debug)]
struct Place {
    dir: Option<TempDir>,
}

impl Place {
    fn new(level: Level) -> Place {
        let dir = tempfile::Builder::new().prefix("e2e-poll-").tempdir().expect("no directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("cannot chmod");
        for name in ["home", "state"] {
            let path = dir.path().join(name);
            fs::create_dir(&path).expect("cannot create a directory");
            let mode = if name == "home" { 0o700 } else { 0o711 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("cannot chmod");
            give(&path, level);
        }
        Place { dir: Some(dir) }
    }

    fn none() -> Place {
        Place { dir: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.as_ref().expect("not taken away yet").path().join(name)
    }

    fn report(&self) -> PathBuf {
        self.path("report")
    }

    fn audit_file(&self) -> PathBuf {
        self.path("state").join("audit.jsonl")
    }

    /// Journals and results of sessions, and files of jails: all of them are gone with the run,
    /// except for journals of sessions with a call that is to be answered later (INV-9).
    fn leftovers(&self, open_calls: bool) -> Vec<String> {
        let (mut files, mut todo) = (Vec::new(), vec![self.path("home"), self.path("state")]);
        while let Some(dir) = todo.pop() {
            if open_calls && (dir.ends_with("journal") || dir.ends_with("stockade-results")) {
                continue;
            }
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if is_dir && !dir.ends_with("jails") {
                    // What a test puts into a home is its own.
                    let ours = dir != self.path("home") || name.starts_with("stockade");
                    todo.extend(ours.then(|| entry.path()));
                } else if dir != self.path("home")
                    && !name.ends_with(".lock")
                    && name != "audit.jsonl"
                {
                    files.push(format!("file {}", entry.path().display()));
                }
            }
        }
        files
    }
}
