//! Starts the development server and steers it: scripts, faults, waiting, the run report.
//!
//! The server is the built binary, reached over loopback like any worker reaches it; it is killed
//! when the value is dropped.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::locate;

/// Time in which the server must listen, and in which it must end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running development server.
#[derive(Debug)]
pub struct Devserver {
    child: Child,
    directory: TempDir,
    port: u16,
    variables: Vec<(String, String)>,
}

/// How a server ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    /// The run report.
    pub report: Value,
    /// What it said to people.
    pub said: String,
}

impl Devserver {
    /// A server without sessions; sessions are pushed.
    pub fn start() -> Devserver {
        Devserver::with("", &[])
    }

    /// A server that plays `script`, with more arguments of the command line.
    ///
    /// # Panics
    /// If it does not listen in time; the message has what it said.
    pub fn with(script: &str, arguments: &[&str]) -> Devserver {
        let directory = TempDir::new().expect("cannot make a directory for the server");
        let file = |name: &str| directory.path().join(name);
        fs::write(file("script.toml"), script).expect("cannot write the script");
        let said = fs::File::create(file("said")).expect("cannot make a log");
        let child = Command::new(locate::worker())
            .args(["devserver", "--script"])
            .arg(file("script.toml"))
            .arg("--env-file")
            .arg(file("env"))
            .arg("--port-file")
            .arg(file("port"))
            .arg("--report")
            .arg(file("report.json"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .expect("cannot start the server");
        let mut server = Devserver { child, directory, port: 0, variables: Vec::new() };
        let began = Instant::now();
        server.port = loop {
            let written = fs::read_to_string(server.file("port")).unwrap_or_default();
            if let Ok(port) = written.trim().parse() {
                break port;
            }
            let gone = server.child.try_wait().expect("cannot look at the server").is_some();
            assert!(!gone && began.elapsed() < PATIENCE, "no server: {}", server.said());
            sleep(Duration::from_millis(2));
        };
        let text = fs::read_to_string(server.file("env")).expect("written before the port");
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        server.variables = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        server
    }

    /// Where it listens.
    pub fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The port, for clients that are no worker.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `ANTHROPIC_BASE_URL`, `ANTHROPIC_ENVIRONMENT_ID` and `ANTHROPIC_ENVIRONMENT_KEY`.
    pub fn variables(&self) -> &[(String, String)] {
        &self.variables
    }

    /// The file with the three variables.
    pub fn env_file(&self) -> PathBuf {
        self.file("env")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn said(&self) -> String {
        fs::read_to_string(self.file("said")).unwrap_or_default()
    }

    /// Asks a control endpoint (`sessions`, `faults`, `advance`, …).
    ///
    /// # Panics
    /// If the server refuses; the message has its reason.
    pub fn dev(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, answer) =
            self.request(method, &format!("/dev/{path}"), &[], &body.to_string());
        assert!(status == 200, "{method} /dev/{path}: {status} {answer}");
        serde_json::from_str(&answer).unwrap_or_default()
    }

    /// Any request: the status and the body.
    ///
    /// # Panics
    /// If the server does not answer.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let headers: String =
            headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: dev\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(body.as_bytes()))
            .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        (status.expect("a status"), body.to_owned())
    }

    /// Adds a session; `script` is a table as in a script file. Returns the ids of its copies.
    pub fn push(&self, script: &Value) -> Vec<String> {
        let ids = self.dev("POST", "sessions", script)["ids"].clone();
        let ids = ids.as_array().cloned().unwrap_or_default();
        ids.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect()
    }

    /// Lets something go wrong from now on; `fault` is a table as in a script file.
    pub fn fault(&self, fault: &Value) {
        self.dev("POST", "faults", fault);
    }

    /// Sessions, items, violations as they are now.
    pub fn state(&self) -> Value {
        self.dev("GET", "state", &Value::Null)
    }

    /// The report so far.
    pub fn report(&self) -> Value {
        self.dev("GET", "report", &Value::Null)
    }

    /// Waits until every session is done and its item stopped.
    ///
    /// # Panics
    /// If that takes longer than `limit`; the message has the state.
    pub fn wait_done(&self, limit: Duration) {
        self.wait_until(limit, |state| state["done"] == true);
    }

    /// Waits until something holds of the state.
    ///
    /// # Panics
    /// If that takes longer than `limit`; the message has the state.
    pub fn wait_until(&self, limit: Duration, holds: impl Fn(&Value) -> bool) {
        let began = Instant::now();
        loop {
            let state = self.state();
            if holds(&state) {
                return;
            }
            assert!(began.elapsed() < limit, "not within {limit:?}: {state:#}");
            sleep(Duration::from_millis(10));
        }
    }

    /// Asks the server to end and waits for it.
    pub fn end(self) -> Ended {
        self.dev("POST", "shutdown", &Value::Null);
        self.wait_end(PATIENCE)
    }

    /// Waits until the server ends by itself.
    ///
    /// # Panics
    /// If it does not end in time or leaves no report.
    pub fn wait_end(mut self, limit: Duration) -> Ended {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("cannot look at the server") {
                break status;
            }
            assert!(began.elapsed() < limit, "the server did not end: {}", self.said());
            sleep(Duration::from_millis(5));
        };
        let said = self.said();
        let report = fs::read(self.file("report.json"));
        let report = report.ok().and_then(|text| serde_json::from_slice(&text).ok());
        Ended { status, report: report.unwrap_or_else(|| panic!("no report: {said}")), said }
    }

    /// Where files of this server lie, for logs of workers.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Devserver {
    fn drop(&mut self) {
        // It may have ended already.
        if self.child.kill().is_ok() {
            self.child.wait().expect("cannot wait for the server");
        }
    }
}
