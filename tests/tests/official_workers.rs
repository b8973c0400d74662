//! The development server is faithful if the official workers behave on it as they do elsewhere
//! (design, section 8): they serve a session with every tool and gate, and nothing that they do is
//! a violation.
//!
//! `scripts/official-workers` installs them once, beside what the build makes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use e2e::needs::skip;
use e2e::{Devserver, Need, locate, require};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Time for a whole run: the workers poll every 1 to 3 seconds.
const LIMIT: Duration = Duration::from_secs(90);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Official {
    Python,
    TypeScript,
}

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are in the project")
}

/// Where the official workers are, installed by the first test that asks. Without the package
/// registries there are none: a failure in CI, and a reason to skip elsewhere.
fn installed() -> Option<&'static Path> {
    static DIRECTORY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = DIRECTORY.get_or_init(|| {
        let exe = std::env::current_exe().expect("a test has a path");
        let directory = exe.parent().expect("in a directory").join("official");
        let output = Command::new(project().join("scripts/official-workers"))
            .arg(&directory)
            .output()
            .expect("cannot run scripts/official-workers");
        if output.status.success() {
            return Ok(directory);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("cannot install the official workers: {said}"))
    });
    found.as_ref().map_err(|reason| skip(reason)).ok().map(PathBuf::as_path)
}

/// A worker that runs until it is dropped, in a working directory of its own.
struct Running {
    child: Child,
    directory: TempDir,
}

impl Running {
    fn start(which: Official, packages: &Path, server: &Devserver) -> Running {
        let drivers = project().join("tests/official");
        let directory = TempDir::new().expect("cannot make a working directory");
        let workdir = directory.path().join("work");
        fs::create_dir(&workdir).expect("cannot make a working directory");
        let log = fs::File::create(directory.path().join("log")).expect("cannot make a log");
        let mut command = match which {
            Official::Python => Command::new(packages.join("py/bin/python")),
            Official::TypeScript => Command::new(packages.join("ts/node")),
        };
        match which {
            Official::Python => command.arg(drivers.join("worker.py")).arg(&workdir),
            Official::TypeScript => {
                command.arg(drivers.join("worker.mjs")).arg(&workdir).arg(packages.join("ts"))
            }
        };
        let child = command
            .env_clear()
            .env("PATH", locate::SEARCH_PATH)
            .env("HOME", directory.path())
            .env("LANG", "C.UTF-8")
            .envs(server.variables().iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("cannot start the official worker");
        Running { child, directory }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            self.child.wait().expect("cannot wait for the official worker");
        }
    }
}

/// Plays a script with a worker; the report, which must have no violation.
fn play(which: Official, packages: &Path, script: &str) -> Value {
    let server =
        Devserver::with(script, &["--exit-when-done", "--timeout", "80s", "--keep-results"]);
    let worker = Running::start(which, packages, &server);
    let ended = server.wait_end(LIMIT);
    assert!(ended.status.success(), "{which:?}\n{}\n{}", ended.said, worker.log());
    assert_eq!(ended.report["violations"], json!([]), "{}", ended.said);
    assert_eq!(ended.report["faults_waiting"], 0, "every fault was met");
    ended.report
}

fn session(which: Official) {
    let Some(packages) = installed() else { return };
    let text = fs::read_to_string(project().join("tests/scripts/official.toml")).expect("readable");
    let report = play(which, packages, &text);
    let calls = report["sessions"][0]["calls"].as_array().expect("a list").clone();
    assert_eq!(calls.len(), 27, "{which:?}");
    // Denied calls have no result (PERM-2, PERM-5), all others one each.
    for call in &calls {
        let denied = call["verdict"] == "denied";
        assert_eq!(call["answered_us"].is_null(), denied, "{which:?}: {call}");
    }
    assert_eq!(calls.iter().filter(|call| call["verdict"] == "denied").count(), 2);
    assert!(report["sessions"][0]["streams_opened"].as_u64() >= Some(2), "it reconnected");
    // LEASE-2, LEASE-12: a chain of heartbeats, and one forced stop for each item.
    for item in report["work"].as_array().expect("a list") {
        assert_eq!(item["state"], "stopped");
        let holder = &item["holders"][0];
        assert!(holder["heartbeats"].as_u64() >= Some(2), "{holder}");
        assert_eq!(holder["stops"].as_array().map(Vec::len), Some(1), "{holder}");
        assert_eq!(holder["stops"][0]["force"], true);
    }
    // HDR-1, AUTH-5: what the server records of a worker that is known.
    assert_eq!(report["anthropic_versions"].as_object().map(|all| all.len()), Some(1));
    assert!(report["credentials"]["sessions_token"].as_u64() >= Some(30));
}

fn faults(which: Official) {
    let Some(packages) = installed() else { return };
    let text =
        fs::read_to_string(project().join("tests/scripts/official-faults.toml")).expect("readable");
    let report = play(which, packages, &text);
    assert!(report["sessions"][0]["streams_opened"].as_u64() >= Some(4));
}

fn stores(which: Official) {
    let Some(packages) = installed() else { return };
    let text =
        fs::read_to_string(project().join("tests/scripts/official-stores.toml")).expect("readable");
    let server = Devserver::with(&text, &["--keep-results"]);
    let worker = Running::start(which, packages, &server);
    server.wait_done(LIMIT);
    let kept = server.dev("GET", "memory_stores/memstore_1", &Value::Null);
    assert_eq!(
        (&kept["/a.md"], &kept["/b.md"]),
        (&json!("changed"), &json!("beta")),
        "{}",
        worker.log()
    );
    let ended = server.end();
    assert!(ended.status.success(), "{which:?}\n{}\n{}", ended.said, worker.log());
    assert_eq!(ended.report["requests"]["skill_content"]["count"], 1);
}

// SKILL-1, SKILL-2, SKILL-3, SKILL-5, SKILL-8, SKILL-9, SKILL-13: ours plays the same script in
// tests/tests/skills.rs.
fn skills(which: Official) {
    let Some(packages) = installed() else { return };
    let text =
        fs::read_to_string(project().join("tests/scripts/official-skills.toml")).expect("readable");
    let report = play(which, packages, &text);
    assert_eq!(report["requests"]["skill"]["count"], 9);
    assert_eq!(report["requests"]["skill_content"]["count"], 8);
}

#[test]
fn the_python_worker_lays_out_skills_of_every_kind_of_archive() {
    require!(Need::Tool("python3"));
    skills(Official::Python);
}

#[test]
fn the_typescript_worker_lays_out_skills_of_every_kind_of_archive() {
    require!(Need::Tool("npm"));
    skills(Official::TypeScript);
}

fn memory(which: Official) {
    let Some(packages) = installed() else { return };
    let text =
        fs::read_to_string(project().join("tests/scripts/official-memory.toml")).expect("readable");
    let report = play(which, packages, &text);
    let statuses = |endpoint: &str| report["requests"][endpoint]["statuses"].clone();
    assert_eq!(statuses("memory_create")["413"], 1, "MEM-22: once");
    assert_eq!(statuses("memory_delete"), json!({"200": 1}), "MEM-31: the window is waived");
    assert!(report["requests"]["memory_get"]["count"].as_u64() >= Some(2), "MEM-21");
}

#[test]
fn the_python_worker_keeps_memory_stores_as_the_protocol_has_it() {
    require!(Need::Tool("python3"));
    memory(Official::Python);
}

#[test]
fn the_typescript_worker_keeps_memory_stores_as_the_protocol_has_it() {
    require!(Need::Tool("npm"));
    memory(Official::TypeScript);
}

#[test]
fn the_python_worker_lays_out_skills_and_memories() {
    require!(Need::Tool("python3"));
    stores(Official::Python);
}

#[test]
fn the_typescript_worker_lays_out_skills_and_memories() {
    require!(Need::Tool("npm"));
    stores(Official::TypeScript);
}

#[test]
fn the_python_worker_serves_every_kind_of_call() {
    require!(Need::Tool("python3"));
    session(Official::Python);
}

#[test]
fn the_typescript_worker_serves_every_kind_of_call() {
    require!(Need::Tool("npm"));
    session(Official::TypeScript);
}

#[test]
fn the_python_worker_survives_what_a_network_may_do() {
    require!(Need::Tool("python3"));
    faults(Official::Python);
}

#[test]
fn the_typescript_worker_survives_what_a_network_may_do() {
    require!(Need::Tool("npm"));
    faults(Official::TypeScript);
}
