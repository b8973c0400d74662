//! `worker poll` on a development server, below the subreaper, to be killed and started again.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use serde_json::Value;

use crate::exec::{Place, parents, status_field};
use crate::leftover::Snapshot;
use crate::session::{Processes, below_launcher};
use crate::{Devserver, Level, locate};

/// What outlives a worker: its state, its workspace, the server.
#[derive(Debug)]
pub struct Site {
    /// Who runs the worker.
    pub level: Level,
    /// The control plane.
    pub server: Devserver,
    place: Place,
    workdir: TempDir,
    state: TempDir,
    before: Snapshot,
}

/// One run of the worker.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    report: std::path::PathBuf,
    /// The file of what it says.
    pub log: std::path::PathBuf,
}

impl Site {
    /// A server whose leases last two seconds, and nothing else yet. The caller holds
    /// [`crate::lock::alone`].
    pub fn new(level: Level) -> Site {
        let before = Snapshot::take();
        let server = Devserver::with("[server]\nttl_seconds = 2\n", &["--keep-results"]);
        let workdir = crate::exec::directory_of(level);
        let place = Place::new(level);
        // As root the control side opens it by name, with ids that own nothing.
        let state = crate::exec::directory_of(level);
        Site { level, server, place, workdir, state, before }
    }

    /// The host's side of the workspace.
    pub fn workdir(&self) -> &Path {
        self.workdir.path()
    }

    /// Starts a worker; `name` tells its files from those of another run.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(&self, name: &str, options: &[&str]) -> Worker {
        let beside = self.place.report();
        let (report, log) = (beside.with_file_name(name), beside.with_extension(name));
        let mut line = vec!["supervise".to_owned(), report.display().to_string()];
        line.extend(["120".to_owned(), "8".to_owned(), self.level.uid().to_string()]);
        line.extend(self.level.prefix());
        line.push(locate::worker().display().to_string());
        line.extend(
            ["poll", "--jail", "--max-idle", "2s", "--memory-reserve", "16MiB"].map(str::to_owned),
        );
        let state = self.state.path().display().to_string();
        line.extend([
            "--audit-file".to_owned(),
            format!("{state}/audit"),
            "--state-dir".to_owned(),
            state,
        ]);
        line.extend(["--workdir".to_owned(), self.workdir().display().to_string()]);
        line.extend(options.iter().map(|option| (*option).to_owned()));
        let child = Command::new(locate::probe())
            .args(&line)
            .env_clear()
            .env("PATH", locate::SEARCH_PATH)
            .env("HOME", self.place.home())
            .env("XDG_RUNTIME_DIR", self.place.home())
            .envs(self.server.variables().iter().cloned())
            .current_dir(self.place.home())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).expect("cannot make a log"))
            .spawn()
            .expect("cannot start the supervisor");
        let worker = Worker { child, report, log };
        worker.wait_for("the worker", || worker.log().contains("waiting for work").then_some(()));
        worker
    }

    /// The receipts of jails in the audit log, in their order.
    pub fn receipts(&self) -> Vec<Value> {
        let log = fs::read_to_string(self.state.path().join("audit")).unwrap_or_default();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["event"] == "session.disposed").collect()
    }

    /// What is left on the host of all runs of this site.
    pub fn leftovers(&self) -> Vec<String> {
        self.before.leftovers()
    }
}

impl Worker {
    /// What it said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    ///
    /// # Panics
    /// If it does not start.
    pub fn pid(&self) -> u32 {
        self.wait_for("the worker", || {
            let report = fs::read_to_string(&self.report).ok()?;
            report.lines().find_map(|line| line.strip_prefix("pid "))?.trim().parse().ok()
        })
    }

    /// Waits until something is there.
    ///
    /// # Panics
    /// If it is not there in time.
    pub fn wait_for<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < deadline, "{what} is not there: {}", self.log());
            sleep(Duration::from_millis(3));
        }
    }

    /// Every process below it, itself first.
    pub fn all(&self) -> Vec<u32> {
        let (mut found, mut next, parents) = (vec![self.pid()], 0, parents());
        while let Some(&parent) = found.get(next) {
            found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
            next += 1;
        }
        found
    }

    /// The processes of its only session.
    pub fn session(&self) -> Processes {
        let control = self.pid();
        self.wait_for("a session", || {
            let parents = parents();
            let children = parents.iter().filter(|(_, parent)| *parent == control);
            children.map(|(pid, _)| *pid).find_map(|pid| below_launcher(control, pid, &parents))
        })
    }

    /// Waits until a process of this name runs below it.
    pub fn runs(&self, name: &str) -> u32 {
        self.wait_for(name, || {
            let named = |pid: &u32| status_field(*pid, "Name:").is_some_and(|got| got == name);
            self.all().into_iter().find(named)
        })
    }

    /// Waits until it has ended by itself, whatever is left of it; what is left.
    ///
    /// # Panics
    /// If it goes on.
    pub fn ended(mut self) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(40);
        while self.child.try_wait().expect("we may wait").is_none() {
            assert!(Instant::now() < deadline, "the worker goes on: {}", self.log());
            sleep(Duration::from_millis(10));
        }
        let report = fs::read_to_string(&self.report).unwrap_or_default();
        report
            .lines()
            .filter_map(|line| line.strip_prefix("leftover "))
            .map(str::to_owned)
            .collect()
    }

    /// Asks it to stop and waits; what is left.
    pub fn stop(self) -> Vec<String> {
        signal(self.pid(), "-TERM");
        self.ended()
    }
}

/// Sends a signal to a process that may have ended.
///
/// # Panics
/// If there is no kill program.
pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args([name, &pid.to_string()]).output();
    drop(sent.expect("cannot run kill"));
}
