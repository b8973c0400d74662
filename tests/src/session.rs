//! One session without a control plane: the example program `session` of the runtime, which runs
//! tool calls from its standard input in a jail. Interactive, so that a test can look at the host
//! between two calls, and below the subreaper, so that nothing can be left behind unseen (INV-10).

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::exec::{Place, parents};
use crate::leftover::Snapshot;
use crate::{Level, locate, lock};

/// How long a call may take unless its test says something else.
const PATIENCE: Duration = Duration::from_secs(40);

/// What is chosen about a session.
#[derive(Debug, Default)]
pub struct Choice<'a> {
    /// A shipped policy or a file; the default policy if none.
    pub policy: Option<String>,
    /// A directory of the host that is its workspace.
    pub workdir: Option<&'a Path>,
    /// Further options of the example: places of the porter.
    pub places: &'a [&'a str],
}

/// A session that runs.
#[derive(Debug)]
pub struct Session {
    /// Of whom.
    pub level: Level,
    /// The name of its jail.
    pub jail: String,
    /// What it said when it was ready: places, and what the canary found.
    pub ready: Value,
    child: Child,
    to: Option<ChildStdin>,
    from: Receiver<Value>,
    before: Snapshot,
    place: Place,
    _turn: Option<lock::Shared>,
}

/// The result of one call.
#[derive(Debug, Clone)]
pub struct Answer {
    /// All text blocks, one after the other.
    pub text: String,
    /// Whether the tool failed.
    pub is_error: bool,
    /// Facts and limits, as the example prints them.
    pub facts: String,
    /// From the call to its answer.
    pub took: Duration,
}

/// The processes of a session, as the host sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processes {
    pub control: u32,
    pub launcher: u32,
    pub jail_launcher: u32,
    pub init: u32,
    pub executor: u32,
    /// In a jail that has one only.
    pub porter: Option<u32>,
    pub keeper: u32,
    pub bash: u32,
}

impl Processes {
    /// Each with its name.
    pub fn each(&self) -> [(&'static str, u32); 7] {
        [
            ("control", self.control),
            ("launcher", self.launcher),
            ("launcher of the jail", self.jail_launcher),
            ("init", self.init),
            ("executor", self.executor),
            ("keeper", self.keeper),
            ("bash", self.bash),
        ]
    }
}

impl Session {
    /// A session of the default policy with a workspace of its own.
    pub fn start(level: Level) -> Session {
        Session::with(level, &Choice::default())
    }

    /// A session as chosen; returns when it is ready.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn with(level: Level, choice: &Choice<'_>) -> Session {
        Session::spawn(level, choice, Some(lock::shared()))
    }

    /// As [`Session::with`], for a caller who holds [`lock::alone`].
    ///
    /// # Panics
    /// As [`Session::with`].
    pub fn alone(level: Level, choice: &Choice<'_>) -> Session {
        Session::spawn(level, choice, None)
    }

    fn spawn(level: Level, choice: &Choice<'_>, turn: Option<lock::Shared>) -> Session {
        let before = Snapshot::take();
        let place = Place::new(level);
        let mut line = vec!["supervise".to_owned(), place.report().display().to_string()];
        line.extend(["300", "2"].map(str::to_owned));
        line.push(level.uid().to_string());
        line.extend(level.prefix());
        line.push(locate::session().display().to_string());
        line.push(choice.policy.clone().unwrap_or_else(|| "default".to_owned()));
        if let Some(workdir) = choice.workdir {
            line.extend(["--workdir".to_owned(), workdir.display().to_string()]);
        }
        line.extend(choice.places.iter().map(|option| (*option).to_owned()));
        let mut child = Command::new(locate::probe())
            .args(&line)
            .env_clear()
            .env("PATH", locate::SEARCH_PATH)
            .env("HOME", place.home())
            .env("XDG_RUNTIME_DIR", place.home())
            .current_dir(place.home())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(place.log()).expect("cannot make a log"))
            .spawn()
            .expect("cannot start the supervisor");
        let out = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let (sender, from) = channel();
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(value).is_err() {
                    break;
                }
            }
        });
        let to = child.stdin.take();
        let mut session = Session {
            level,
            jail: String::new(),
            ready: Value::Null,
            child,
            to,
            from,
            before,
            place,
            _turn: turn,
        };
        let ready = session.line(PATIENCE);
        assert!(ready["ready_us"].is_u64(), "{level:?}: not ready: {ready}");
        session.jail = ready["jail"].as_str().unwrap_or_default().to_owned();
        session.ready = ready;
        session
    }

    fn line(&mut self, patience: Duration) -> Value {
        match self.from.recv_timeout(patience) {
            Ok(value) => value,
            Err(RecvTimeoutError::Timeout) => {
                panic!("INV-11: no answer within {patience:?}: {}", self.log())
            }
            Err(RecvTimeoutError::Disconnected) => json!({ "over": self.log() }),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.place.log()).unwrap_or_default()
    }

    /// Sends a call and does not wait for its answer.
    ///
    /// # Panics
    /// If the session is over.
    pub fn begin(&mut self, name: &str, input: &Value) {
        let to = self.to.as_mut().expect("the session goes on");
        writeln!(to, "{name} {input}").expect("the session takes calls");
    }

    /// The answer to the call that was sent first; `None` if the session ended instead.
    pub fn answer(&mut self) -> Option<Answer> {
        let line = self.line(PATIENCE);
        let content = line["content"].as_array()?;
        let texts = content.iter().map(|block| match block.as_str() {
            Some(text) => text.to_owned(),
            None => block.to_string(),
        });
        Some(Answer {
            text: texts.collect::<Vec<_>>().join("\n"),
            is_error: line["is_error"] == true,
            facts: format!("{} {}", line["facts"], line["hits"]),
            took: Duration::from_micros(line["took_us"].as_u64().unwrap_or(0)),
        })
    }

    /// Asks the porter; `done`, `refused` or `error` of the answer says how it went.
    pub fn ask(&mut self, request: &Value) -> Value {
        self.begin("porter", request);
        self.line(PATIENCE)
    }

    /// As [`ask`](Self::ask), for a request that must be carried out.
    ///
    /// # Panics
    /// If it is not.
    pub fn carried_out(&mut self, request: &Value) -> Value {
        let answer = self.ask(request);
        assert!(answer.get("done").is_some(), "{:?}: {request}: {answer}", self.level);
        answer["done"].clone()
    }

    /// Ends the tool tree; what the session says to that.
    pub fn quiesce(&mut self) -> Value {
        self.begin("quiesce", &json!({}));
        self.line(PATIENCE)
    }

    /// The porter, if there is one: what init cloned after the executor.
    pub fn porter(&self) -> Option<u32> {
        let found = self.processes();
        let depth = |pid: u32| namespace_ids(pid).len();
        let mut others: Vec<u32> = parents()
            .into_iter()
            .filter(|(pid, parent)| *parent == found.init && *pid != found.executor)
            .map(|(pid, _)| pid)
            .filter(|pid| depth(*pid) == depth(found.init))
            .collect();
        others.sort_unstable();
        others.pop()
    }

    /// Runs one call.
    ///
    /// # Panics
    /// If the session ends instead.
    pub fn call(&mut self, name: &str, input: &Value) -> Answer {
        self.begin(name, input);
        self.answer().unwrap_or_else(|| panic!("{name} {input}: the session ended: {}", self.log()))
    }

    /// Runs a command.
    pub fn bash(&mut self, command: &str) -> Answer {
        self.call("bash", &json!({ "command": command }))
    }

    /// Runs a command for so many milliseconds at most.
    pub fn limited(&mut self, command: &str, timeout_ms: u64) -> Answer {
        self.call("bash", &json!({ "command": command, "timeout_ms": timeout_ms }))
    }

    /// Ends everything that earlier calls left running, and says that the session works.
    ///
    /// # Panics
    /// If it does not.
    pub fn restart(&mut self, after: &str) {
        let fresh = self.call("bash", &json!({ "restart": true, "command": "echo fresh; jobs" }));
        assert_eq!(fresh.text, "fresh", "{:?}: after {after:?}: {fresh:?}", self.level);
    }

    /// The processes of the session.
    ///
    /// # Panics
    /// If one is missing for long.
    pub fn processes(&self) -> Processes {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            if let Some(found) = below(self.child.id()) {
                return found;
            }
            assert!(Instant::now() < deadline, "processes are missing: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the session; how its jail ended, and nothing may be left.
    ///
    /// # Panics
    /// If something is left (INV-10).
    pub fn end(self) -> Value {
        let level = self.level;
        let (end, left) = self.end_and_leave();
        assert!(left.is_empty(), "INV-10 {level:?}: left over: {left:#?} after {end}");
        end
    }

    /// As [`Session::end`], but only says what is left.
    ///
    /// # Panics
    /// If the program does not end.
    pub fn end_and_leave(mut self) -> (Value, Vec<String>) {
        drop(self.to.take());
        let mut last = Value::Null;
        loop {
            match self.from.recv_timeout(PATIENCE) {
                Ok(value) => last = value,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end: {}", self.log()),
            }
        }
        self.child.wait().expect("cannot wait for the supervisor");
        let report = fs::read_to_string(self.place.report()).unwrap_or_default();
        let processes = report.lines().filter_map(|line| line.strip_prefix("leftover "));
        let mut left: Vec<String> = processes.map(|who| format!("process {who}")).collect();
        left.extend(self.before.leftovers_of(Some(&self.jail)));
        left.extend(self.place.leftovers());
        (last, left)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // After a failed assertion; the supervisor then kills what is below it.
        drop(self.to.take());
    }
}

/// The processes of the first session below `supervisor`.
fn below(supervisor: u32) -> Option<Processes> {
    let parents = parents();
    let children = |of: u32| parents.iter().filter(move |(_, p)| *p == of).map(|(pid, _)| *pid);
    let control = children(supervisor).next()?;
    let launcher = children(control).next()?;
    below_launcher(control, launcher, &parents)
}

/// The processes of the first jail of a launcher.
pub fn below_launcher(control: u32, launcher: u32, parents: &[(u32, u32)]) -> Option<Processes> {
    let children = |of: u32| parents.iter().filter(move |(_, p)| *p == of).map(|(pid, _)| *pid);
    let jail_launcher = children(launcher).next()?;
    let init = children(jail_launcher).next()?;
    // Only the keeper is the first process of a namespace of its own.
    let depth = |pid: &u32| namespace_ids(*pid).len();
    let outer = namespace_ids(init).len();
    let keeper = children(init).find(|pid| depth(pid) == outer + 1)?;
    let mut ours: Vec<u32> = children(init).filter(|pid| depth(pid) == outer).collect();
    ours.sort_unstable();
    // In the order in which init makes them.
    let (executor, porter) = (*ours.first()?, ours.get(1).copied());
    let bash = children(keeper).find(|pid| name_of(*pid) == "bash")?;
    Some(Processes { control, launcher, jail_launcher, init, executor, porter, keeper, bash })
}

fn name_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// The ids of a process, from the outermost PID namespace to its own.
pub fn namespace_ids(pid: u32) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.unwrap_or_default().split_whitespace().filter_map(|id| id.parse().ok()).collect()
}

/// Puts the probe into a directory that will be a workspace.
///
/// # Panics
/// If it cannot be written.
pub fn deliver_probe(directory: &Path, level: Level) {
    let (mut bytes, target) = (Vec::new(), directory.join("probe"));
    let mut from = fs::File::open(locate::probe()).expect("cannot open the probe");
    from.read_to_end(&mut bytes).expect("cannot read the probe");
    fs::write(&target, bytes).expect("cannot write the probe");
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).expect("cannot chmod");
    crate::exec::give(&target, level);
}
