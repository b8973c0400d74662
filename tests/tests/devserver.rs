//! `worker devserver` as a program: arguments, files, exit codes, and one session played by a
//! client that is written here.

use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use e2e::Devserver;
use e2e::locate;
use serde_json::{Value, json};

const SHORT: Duration = Duration::from_secs(20);

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(locate::worker());
    command.arg("devserver").args(arguments).output().expect("cannot run the worker")
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

/// A worker's request; the answer as JSON.
fn ask(server: &Devserver, method: &str, path: &str, body: &str) -> (u16, Value) {
    let key = &server.variables()[2].1;
    let bearer = format!("Bearer {key}");
    let mut headers = vec![
        ("authorization", bearer.as_str()),
        ("anthropic-version", "2026-10-21"),
        ("anthropic-beta", "managed-agents-2026-04-01"),
    ];
    if !body.is_empty() {
        headers.push(("content-type", "application/json"));
    }
    if path.contains("/poll") {
        headers.push(("anthropic-worker-id", "test"));
    }
    let (status, text) = server.request(method, path, &headers, body);
    (status, serde_json::from_str(&text).unwrap_or_default())
}

/// Claims the item, answers the call in the history with `text`, and stops the item.
fn serve_one(server: &Devserver, text: &str) {
    let work = "/v1/environments/env_dev/work";
    let (_, item) = ask(server, "GET", &format!("{work}/poll?block_ms=999"), "");
    let (id, session) =
        (item["id"].as_str().expect("an item"), item["data"]["id"].as_str().expect("a session"));
    assert_eq!(ask(server, "POST", &format!("{work}/{id}/ack"), "").0, 200);
    let beat = format!("{work}/{id}/heartbeat?expected_last_heartbeat=NO_HEARTBEAT");
    assert_eq!(ask(server, "POST", &beat, "").1["state"], "active");
    let events = format!("/v1/sessions/{session}/events");
    let (_, list) = ask(server, "GET", &events, "");
    let calls: Vec<&Value> = list["data"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|event| event["type"] == "agent.tool_use")
        .collect();
    let result = json!({"events": [{"type": "user.tool_result", "tool_use_id": calls[0]["id"],
        "is_error": false, "content": [{"type": "text", "text": text}]}]});
    assert_eq!(ask(server, "POST", &events, &result.to_string()).0, 200);
    assert_eq!(ask(server, "POST", &format!("{work}/{id}/stop"), "{\"force\":true}").0, 204);
}

const ONE: &str = r#"[[session]]
start = "at-once"
calls = [{ bash = "echo hi", expect = { text = "hi" } }]"#;

#[test]
fn a_session_as_expected_is_a_success_and_another_one_is_not() {
    for (text, want) in [("hi", 0), ("ho", 1)] {
        let server = Devserver::with(ONE, &["--exit-when-done", "--timeout", "20s"]);
        serve_one(&server, text);
        let ended = server.wait_end(SHORT);
        assert_eq!(ended.status.code(), Some(want), "{}", ended.said);
        assert_eq!(ended.report["result"], if want == 0 { "passed" } else { "failed" });
        assert_eq!(ended.report["violations"], json!([]));
        assert!(ended.said.contains("1 answered"), "{}", ended.said);
    }
}

#[test]
fn a_run_that_is_not_done_in_time_is_a_failure() {
    let server = Devserver::with(ONE, &["--exit-when-done", "--timeout", "50ms"]);
    let ended = server.wait_end(SHORT);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.said);
    assert!(ended.said.contains("not every session was done in time"), "{}", ended.said);
}

#[test]
fn sessions_can_be_pushed_and_a_signal_ends_the_server_with_a_report() {
    let server = Devserver::start();
    let ids =
        server.push(&json!({"start": "at-once", "calls": [{"bash": "echo hi"}], "copies": 1}));
    assert_eq!(ids, ["sesn_000001"]);
    server.fault(&json!({"on": "work_list", "do": "503"}));
    assert_eq!(ask(&server, "GET", "/v1/environments/env_dev/work", "").0, 503);
    serve_one(&server, "anything");
    server.wait_done(SHORT);
    assert_eq!(server.report()["sessions"][0]["calls"][0]["is_error"], false);
    let ended = server.end();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.said);
    assert_eq!(ended.report["schema"], "stockade.devserver.report");
}

#[test]
fn it_listens_within_a_blink() {
    // The limit is 50 ms; of many attempts, because other tests run beside this one.
    let attempt = |_| {
        let began = Instant::now();
        let server = Devserver::start();
        let took = began.elapsed();
        drop(server);
        took
    };
    let mut attempts = (0..100).map(attempt);
    assert!(attempts.any(|took| took < Duration::from_millis(50)), "none of a hundred");
}

#[test]
fn other_machines_are_kept_out_unless_they_are_let_in() {
    let refused = run(&["--listen", "0.0.0.0:0"]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(code(&refused), Some(2), "{text}");
    assert!(text.contains("--listen-publicly"), "{text}");
    let directory = tempfile::TempDir::new().expect("a directory");
    let file = directory.path().join("port").display().to_string();
    let allowed = run(&[
        "--listen",
        "0.0.0.0:0",
        "--listen-publicly",
        "--port-file",
        &file,
        "--timeout",
        "10ms",
    ]);
    assert_eq!(code(&allowed), Some(0), "{}", String::from_utf8_lossy(&allowed.stderr));
    assert!(fs::read_to_string(&file).is_ok_and(|port| port.trim().parse::<u16>().is_ok()));
}

#[test]
fn wrong_arguments_and_scripts_are_usage_errors() {
    let directory = tempfile::TempDir::new().expect("a directory");
    let script = directory.path().join("s.toml");
    fs::write(&script, "[[session]]\n\ncall = []\n").expect("written");
    let script = script.display().to_string();
    for (arguments, want) in [
        (vec!["--script", script.as_str()], format!("{script}:3:1: unknown field `call`")),
        (vec!["--script", "/nonexistent"], "/nonexistent: No such file".to_owned()),
        (vec!["--environment-key", ""], "the environment key is empty".to_owned()),
        (vec!["--timeout", "soon"], "--timeout".to_owned()),
        (vec!["--listen", "nowhere"], "--listen".to_owned()),
    ] {
        let output = run(&arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(code(&output), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(&want), "{arguments:?}: {text}");
    }
}

#[test]
fn the_variables_are_printed_and_the_file_with_them_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::TempDir::new().expect("a directory");
    let file = directory.path().join("env");
    let path = file.display().to_string();
    let output =
        run(&["--env-file", &path, "--environment-key", "sk-ant-oat01-mine", "--timeout", "10ms"]);
    assert_eq!(code(&output), Some(0));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(fs::read_to_string(&file).expect("written"), printed);
    assert!(printed.starts_with("ANTHROPIC_BASE_URL=http://127.0.0.1:"), "{printed}");
    assert!(printed.contains(
        "\nANTHROPIC_ENVIRONMENT_ID=env_dev\nANTHROPIC_ENVIRONMENT_KEY=sk-ant-oat01-mine\n"
    ));
    let mode = fs::metadata(&file).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn every_script_of_the_project_is_valid() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("in the project");
    let mut scripts = vec![root.join("scripts/demo-session.toml")];
    let found = fs::read_dir(root.join("tests/scripts")).expect("there").flatten();
    scripts.extend(found.map(|entry| entry.path()));
    assert!(scripts.len() >= 3);
    for script in scripts {
        let text = fs::read_to_string(&script).expect("readable");
        drop(Devserver::with(&text, &[]));
    }
}
