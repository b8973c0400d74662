//! One run of `worker exec`, as an operator would start it.
//!
//! The run goes through the subreaper of the payload program, so that the harness learns the
//! worker's process id, its end and every process that outlived it. [`Exec::run`] fails the test
//! if anything is left; [`Exec::run_and_leave`] is for tests that crash the worker on purpose.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::leftover::Snapshot;
use crate::{Level, locate, lock};

/// Output beyond this many bytes is read and dropped.
const OUTPUT_BYTES_MAX: usize = 32 << 20;

/// Puts the probe, which comes on standard input, where the payload may execute it.
const DELIVER: &str =
    "cat >/tmp/probe && chmod 755 /tmp/probe && exec /tmp/probe \"$@\" </dev/null";

/// How the worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With this exit status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
    /// The harness had to stop it.
    TimedOut,
}

/// A run that is over.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard error, as text.
    pub stderr: String,
    /// From start to end.
    pub elapsed: Duration,
    /// What outlived the run: processes first.
    pub leftovers: Vec<String>,
}

impl Outcome {
    /// Whether the command succeeded.
    pub fn ok(&self) -> bool {
        self.end == End::Exit(0)
    }

    /// The line of outcome that `probe each` printed for `act`.
    pub fn of(&self, act: &str) -> Option<&str> {
        let line =
            |line: &'_ str| line.strip_prefix(act).is_some_and(|rest| rest.starts_with(": "));
        self.stdout.lines().find(|text| line(text)).map(|text| &text[act.len() + 2..])
    }

    /// The run for an assertion's message.
    pub fn text(&self) -> String {
        let short = |text: &str| text.chars().take(2000).collect::<String>();
        format!("{:?}\nstdout: {}\nstderr: {}", self.end, short(&self.stdout), short(&self.stderr))
    }
}

/// A run to be started.
#[derive(Debug)]
pub struct Exec {
    level: Level,
    options: Vec<OsString>,
    caller_env: Vec<(String, String)>,
    wrapper: Vec<String>,
    stdin: Vec<u8>,
    cwd: Option<PathBuf>,
    timeout: Duration,
    grace: Duration,
    alone: bool,
}

impl Exec {
    /// A run at `level` with the default policy.
    pub fn at(level: Level) -> Exec {
        Exec {
            level,
            options: Vec::new(),
            caller_env: Vec::new(),
            wrapper: Vec::new(),
            stdin: Vec::new(),
            cwd: None,
            timeout: Duration::from_secs(60),
            grace: Duration::from_secs(2),
            alone: false,
        }
    }

    /// Adds options of `worker exec`, as written on a command line.
    pub fn options<S: Into<OsString>>(mut self, options: impl IntoIterator<Item = S>) -> Exec {
        self.options.extend(options.into_iter().map(Into::into));
        self
    }

    /// Uses a shipped policy by name, or a policy file.
    pub fn policy(self, policy: impl Into<OsString>) -> Exec {
        self.options([OsString::from("--policy"), policy.into()])
    }

    /// Narrows one limit.
    pub fn limit(self, setting: &str) -> Exec {
        self.options(["--limit", setting])
    }

    /// Shows a host directory at `/workspace`.
    pub fn workspace(self, dir: &Path) -> Exec {
        self.options([OsString::from("--workspace"), dir.into()])
    }

    /// Sets a variable in the caller's environment, which is not the payload's.
    pub fn caller_env(mut self, name: &str, value: &str) -> Exec {
        self.caller_env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the worker by way of another program, which gets the command line as arguments.
    pub fn wrapped_in(mut self, wrapper: &[&str]) -> Exec {
        self.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Feeds standard input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Exec {
        self.stdin = bytes.into();
        self
    }

    /// Starts the worker in `dir`.
    pub fn cwd(mut self, dir: &Path) -> Exec {
        self.cwd = Some(dir.to_owned());
        self
    }

    /// Stops the run after `limit`, which fails most tests.
    pub fn timeout(mut self, limit: Duration) -> Exec {
        self.timeout = limit;
        self
    }

    /// Lets processes live for `grace` after the worker, for somebody else to end them.
    pub fn grace(mut self, grace: Duration) -> Exec {
        self.grace = grace;
        self
    }

    /// The caller holds [`lock::alone`], so this run must not wait for its turn.
    pub fn alone(mut self) -> Exec {
        self.alone = true;
        self
    }

    /// Runs a command and checks that nothing is left over.
    ///
    /// # Panics
    /// If a process, cgroup, mount, loop device or run directory entry outlives the run.
    pub fn run(self, command: &[&str]) -> Outcome {
        let outcome = self.run_and_leave(command);
        assert!(
            outcome.leftovers.is_empty(),
            "INV-10: left over after {command:?}: {:#?}\n{}",
            outcome.leftovers,
            outcome.text()
        );
        outcome
    }

    /// Runs a shell script.
    pub fn bash(self, script: &str) -> Outcome {
        self.run(&["/bin/bash", "-c", script])
    }

    /// Runs one act of the probe, or several by `each`.
    pub fn probe(self, act: &[&str]) -> Outcome {
        let mut command = vec!["/bin/sh", "-c", DELIVER, "probe"];
        command.extend(act);
        self.stdin(probe_bytes()).run(&command)
    }

    /// As [`Exec::run`], but only reports what is left.
    pub fn run_and_leave(self, command: &[&str]) -> Outcome {
        self.spawn(command).wait()
    }

    /// Starts a command and returns while it runs.
    ///
    /// # Panics
    /// If the harness cannot start it.
    pub fn spawn(self, command: &[&str]) -> Running {
        let turn = (!self.alone).then(lock::shared);
        let before = Snapshot::take();
        let place = Place::new(self.level);
        let mut line = vec![OsString::from("supervise"), place.report().into()];
        line.push(self.timeout.as_secs_f64().to_string().into());
        line.push(self.grace.as_secs_f64().to_string().into());
        line.push(self.level.uid().to_string().into());
        line.extend(self.wrapper.iter().map(OsString::from));
        line.extend(self.level.prefix().into_iter().map(OsString::from));
        line.push(locate::worker().into());
        line.push("exec".into());
        line.extend(self.options);
        if !command.is_empty() {
            line.push("--".into());
            line.extend(command.iter().map(OsString::from));
        }
        let mut child = Command::new(locate::probe())
            .args(line)
            .env_clear()
            .env("PATH", locate::SEARCH_PATH)
            .env("HOME", place.home())
            .env("XDG_RUNTIME_DIR", place.home())
            .envs(self.caller_env)
            .current_dir(self.cwd.as_deref().unwrap_or(place.home()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cannot start the supervisor");
        let mut to = child.stdin.take().expect("stdin is a pipe");
        // A worker that refuses its command line reads nothing; that is no error of the test.
        thread::spawn(move || drop(to.write_all(&self.stdin)));
        let stdout = collect(child.stdout.take().expect("stdout is a pipe"));
        let stderr = collect(child.stderr.take().expect("stderr is a pipe"));
        Running { child, stdout, stderr, before, place, started: Instant::now(), _turn: turn }
    }
}

/// The probe as bytes, for standard input.
pub fn probe_bytes() -> Vec<u8> {
    fs::read(locate::probe()).expect("cannot read the probe")
}

/// A run that goes on.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
    before: Snapshot,
    place: Place,
    started: Instant,
    _turn: Option<lock::Shared>,
}

impl Running {
    /// The process id of the worker.
    ///
    /// # Panics
    /// If the supervisor does not say so within ten seconds.
    pub fn worker_pid(&self) -> u32 {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            let report = fs::read_to_string(self.place.report()).unwrap_or_default();
            if let Some(pid) = report.lines().find_map(|line| line.strip_prefix("pid ")) {
                return pid.trim().parse().expect("the report holds a process id");
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("the supervisor does not say which process it started");
    }

    /// The home of the caller, which is also its runtime directory.
    pub fn home(&self) -> String {
        self.place.home().display().to_string()
    }

    /// Waits until the worker has ended, whatever it left behind; `false` after `limit`.
    pub fn ends_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let report = fs::read_to_string(self.place.report()).unwrap_or_default();
            if report.lines().nth(1).is_some() || Instant::now() > deadline {
                return report.lines().nth(1).is_some();
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Every live process below the worker, the worker first.
    pub fn processes(&self) -> Vec<u32> {
        let mut found = vec![self.worker_pid()];
        let mut next = 0;
        let parents = parents();
        while let Some(&parent) = found.get(next) {
            found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
            next += 1;
        }
        found
    }

    /// Waits for the end and collects what is left.
    ///
    /// # Panics
    /// If the supervisor breaks.
    pub fn wait(mut self) -> Outcome {
        self.child.wait().expect("cannot wait for the supervisor");
        let elapsed = self.started.elapsed();
        let report = fs::read_to_string(self.place.report()).unwrap_or_default();
        let number = |text: &str| text.trim().parse().ok();
        let end = report.lines().find_map(|line| match line.split_once(' ') {
            Some(("exit", status)) => number(status).map(End::Exit),
            Some(("signal", signal)) => number(signal).map(End::Signal),
            _ => (line == "timeout").then_some(End::TimedOut),
        });
        let text = |thread: JoinHandle<Vec<u8>>| {
            let bytes = thread.join().expect("cannot collect the output");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let processes = report.lines().filter_map(|line| line.strip_prefix("leftover "));
        let mut leftovers: Vec<String> = processes.map(|who| format!("process {who}")).collect();
        leftovers.extend(self.before.leftovers());
        leftovers.extend(self.place.leftovers());
        Outcome {
            end: end.unwrap_or_else(|| {
                panic!(
                    "no end is reported: a signal of the payload reached the supervisor: {report}"
                )
            }),
            stdout: text(self.stdout),
            stderr: text(self.stderr),
            elapsed,
            leftovers,
        }
    }
}

/// Every process of the host with its parent.
pub fn parents() -> Vec<(u32, u32)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, status_field(pid, "PPid:")?.parse().ok()?))).collect()
}

/// One field of `/proc/PID/status`.
pub fn status_field(pid: u32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.split_whitespace().next().unwrap_or_default().to_owned())
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut all, mut chunk) = (Vec::new(), vec![0; 1 << 16]);
        while let Ok(n @ 1..) = from.read(&mut chunk) {
            let room = OUTPUT_BYTES_MAX.saturating_sub(all.len());
            all.extend_from_slice(&chunk[..n.min(room)]);
        }
        all
    })
}

/// The private directories of one run: the supervisor's report, and a home of the caller.
#[derive(Debug)]
pub(crate) struct Place {
    dir: TempDir,
    home: PathBuf,
}

impl Place {
    pub(crate) fn new(level: Level) -> Place {
        let dir = tempfile::Builder::new().prefix("e2e-run-").tempdir().expect("no directory");
        let home = dir.path().join("home");
        fs::create_dir(&home).expect("cannot create a home");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("cannot chmod");
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("cannot chmod");
        give(&home, level);
        Place { dir, home }
    }

    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    pub(crate) fn report(&self) -> PathBuf {
        self.dir.path().join("report")
    }

    /// For what a program says to people.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Files below the caller's home, which is also its runtime directory. Empty directories of
    /// the product may stay.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let (mut files, mut todo) = (Vec::new(), vec![self.home.clone()]);
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let kind = entry.file_type().expect("an entry has a type");
                let nested_jail = dir.ends_with("jails");
                if kind.is_dir() && !nested_jail {
                    todo.push(entry.path());
                } else if !entry.file_name().to_string_lossy().ends_with(".lock") {
                    files.push(format!("file {}", entry.path().display()));
                }
            }
        }
        files
    }
}

/// Makes `path` belong to the user of `level`.
///
/// # Panics
/// If the owner cannot be changed.
pub fn give(path: &Path, level: Level) {
    if crate::level::we_are_root() {
        let id = Some(level.uid());
        std::os::unix::fs::chown(path, id, id).expect("cannot give a path to the level's user");
    }
}

/// A directory of the level's user that others may look into.
///
/// # Panics
/// If it cannot be made.
pub fn directory_of(level: Level) -> TempDir {
    let dir = tempfile::Builder::new().prefix("e2e-dir-").tempdir().expect("no directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("cannot chmod");
    give(dir.path(), level);
    dir
}
