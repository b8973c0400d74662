//! `worker queue` against the development server: what each kind of key may ask, what is printed, and
//! on which hosts a key is refused (AUTH-7, AUTH-9, AUTH-12, API-4, E-STATS, E-LIST, E-GET, E-META,
//! E-STOP).

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use e2e::{Devserver, locate};
use serde_json::{Value, json};
use tempfile::TempDir;

/// An operator with a home of their own.
struct Operator<'a> {
    server: &'a Devserver,
    home: TempDir,
}

impl Operator<'_> {
    fn of(server: &Devserver) -> Operator<'_> {
        let home = TempDir::new().expect("cannot make a home");
        let operator = Operator { server, home };
        let state = server.state();
        operator.put("api-key", state["operator_key"].as_str().expect("the operator's key"));
        operator.put("environment-key", &server.variables()[2].1);
        operator
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.file(name);
        fs::write(&path, format!("{text}\n")).expect("cannot write a key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("cannot chmod");
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(locate::worker());
        command.arg("queue").args(words).env_clear().env("HOME", self.home.path());
        for (name, value) in self.server.variables() {
            if name != "ANTHROPIC_ENVIRONMENT_KEY" {
                command.env(name, value);
            }
        }
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("cannot run the worker")
    }

    /// With the API key.
    fn api(&self, words: &[&str]) -> Output {
        let file = self.file("api-key").display().to_string();
        self.run(&[words, &["--api-key-file", &file]].concat())
    }

    /// With the environment key.
    fn key(&self, words: &[&str]) -> Output {
        let file = self.file("environment-key").display().to_string();
        self.run(&[words, &["--environment-key-file", &file]].concat())
    }
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn document(output: &Output) -> Value {
    serde_json::from_str(&out(output)).expect("JSON")
}

/// Exit code and standard error, which has one error and one hint.
fn refused(output: &Output) -> (Option<i32>, String) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.starts_with("error: ") && text.contains("\nhint: "), "{text}");
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code(), text)
}

/// Sessions that wait, the first of which has metadata.
fn waiting(copies: u32) -> Devserver {
    let server = Devserver::start();
    let session = json!({"name": "waits", "copies": copies, "start": "at-once", "message": "hi",
        "calls": [{"bash": "true"}], "work_metadata": {"team": "blue"}});
    server.push(&session);
    server
}

#[test]
fn statistics_and_items_are_shown_as_tables_and_as_documents() {
    let server = waiting(3);
    let operator = Operator::of(&server);
    let table = out(&operator.api(&["stats"]));
    assert!(table.starts_with("waiting   3\nclaimed   0\noldest    20"), "{table}");
    let stats = document(&operator.api(&["stats", "--format", "json"]));
    assert_eq!(
        (&stats["schema"], &stats["schema_version"], &stats["depth"], &stats["workers_polling"]),
        (&json!("stockade.queue.stats"), &json!(1), &json!(3), &json!(0))
    );
    let table = out(&operator.key(&["list"]));
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert!(lines[0].starts_with("WORK") && lines[0].ends_with("METADATA"), "{table}");
    assert!(lines[1].contains("queued") && lines[1].ends_with("  1"), "{table}");
    let list = document(&operator.key(&["list", "--format", "json"]));
    assert_eq!(list["items"][2]["metadata"], json!({"team": "blue"}));
    assert!(list["items"][0].get("secret").is_none(), "AUTH-8");
    // AUTH-7: nothing that an operator does is a violation.
    assert_eq!(server.state()["violations"], json!([]));
    drop(server.end());
}

#[test]
fn a_long_queue_is_listed_page_by_page() {
    // API-4.
    let server = waiting(250);
    let operator = Operator::of(&server);
    let count = |words: &[&str]| {
        let list = document(&operator.key(&[words, &["--format", "json"]].concat()));
        (list["items"].as_array().map_or(0, Vec::len), list["more"] == true)
    };
    assert_eq!(count(&["list"]), (20, true));
    assert_eq!(count(&["list", "--limit", "230"]), (230, true));
    assert_eq!(count(&["list", "--limit", "250"]), (250, false));
    assert_eq!(count(&["list", "--all"]), (250, false));
    assert_eq!(count(&["list", "--all", "--state", "active"]), (0, false));
    assert_eq!(count(&["list", "--state", "queued", "--limit", "5"]), (5, true));
    let told = operator.key(&["list", "--limit", "1"]);
    assert!(String::from_utf8_lossy(&told.stderr).contains("--all"), "{told:?}");
    // So many sessions are not served: the report is not asked for.
}

#[test]
fn an_item_is_stopped_with_either_key_and_says_if_it_was_before() {
    // E-STOP.
    let server = waiting(2);
    let operator = Operator::of(&server);
    let list = document(&operator.key(&["list", "--format", "json"]));
    let id = |at: usize| list["items"][at]["id"].as_str().expect("an id").to_owned();
    let (first, second) = (id(0), id(1));
    assert_eq!(out(&operator.api(&["stop", &first])), format!("{first} is asked to stop\n"));
    assert_eq!(out(&operator.key(&["stop", &second, "--force"])), format!("{second} is stopped\n"));
    let again = document(&operator.api(&["stop", &second, "--force", "--format", "json"]));
    assert_eq!(again["stopped_before"], true, "{again}");
    let states = document(&operator.key(&["list", "--format", "json"]));
    assert_eq!(states["items"][1]["state"], "stopped", "{states}");
    let (code, text) = refused(&operator.api(&["stop", "work_none"]));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("404") && text.contains("check the environment id"), "{text}");
}

#[test]
fn metadata_is_read_set_and_removed() {
    // E-GET, E-META, AUTH-13.
    let server = waiting(1);
    let operator = Operator::of(&server);
    let list = document(&operator.key(&["list", "--format", "json"]));
    let work = list["items"][0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(out(&operator.api(&["metadata", "get", &work])), "team=blue\n");
    let set = operator.api(&["metadata", "set", &work, "ticket=7", "empty=", "eq=a=b"]);
    assert_eq!(out(&set), "empty=\neq=a=b\nteam=blue\nticket=7\n");
    let unset = operator.api(&["metadata", "unset", &work, "team", "never-there"]);
    assert_eq!(out(&unset), "empty=\neq=a=b\nticket=7\n");
    assert_eq!(out(&operator.api(&["metadata", "get", &work, "ticket"])), "ticket=7\n");
    let json = operator.api(&["metadata", "get", &work, "ticket", "--format", "json"]);
    assert_eq!(document(&json)["metadata"], json!({"ticket": "7"}));
    let missing = operator.api(&["metadata", "get", &work, "team"]);
    assert_eq!(missing.status.code(), Some(1));
    for words in [&["metadata", "set", &work, "=x"][..], &["metadata", "set", &work, "x"]] {
        assert_eq!(operator.api(words).status.code(), Some(2), "{words:?}");
    }
    assert_eq!(server.state()["violations"], json!([]));
}

#[test]
fn an_api_key_is_refused_where_sessions_may_run() {
    // AUTH-9.
    let server = waiting(1);
    let operator = Operator::of(&server);
    let api = fs::read_to_string(operator.file("api-key")).expect("readable");
    let key = &server.variables()[2].1;
    let file = operator.file("api-key").display().to_string();
    let with = |words: &[&str], variables: &[(&str, &str)]| {
        let mut command = operator.command(words);
        command.envs(variables.iter().copied());
        command.output().expect("cannot run the worker")
    };
    // The control: the same without the other key, from the variable.
    let alone = with(&["stats"], &[("ANTHROPIC_API_KEY", api.trim())]);
    assert!(out(&alone).starts_with("waiting   1"));
    let credentials = operator.file("credentials");
    fs::create_dir(&credentials).expect("cannot make a directory");
    fs::write(credentials.join("environment-key"), key).expect("cannot write");
    let directory = credentials.display().to_string();
    let variable = ("ANTHROPIC_ENVIRONMENT_KEY", key.as_str());
    let both = [("ANTHROPIC_API_KEY", api.trim()), variable];
    for (words, variables, what) in [
        (&["stats", "--api-key-file", &file][..], &[variable][..], "both here"),
        (&["stats"], &both, "both here"),
        (&["list"], &both, "both here"),
        (&["stop", "work_1"], &both, "both here"),
        (&["stats"], &[variable], "sessions may run on this host"),
        (&["metadata", "get", "w"], &[variable], "sessions may run on this host"),
        (
            &["stats", "--api-key-file", &file],
            &[("CREDENTIALS_DIRECTORY", &directory)],
            "a systemd credential",
        ),
    ] {
        let (code, text) = refused(&with(words, variables));
        assert_eq!(code, Some(9), "{words:?}: {text}");
        assert!(text.contains(what), "{words:?}: {text}");
        assert!(!text.contains(api.trim()) && !text.contains(key), "{text}");
    }
    // A worker that runs has its audit log locked.
    let log = operator.file(".local/state/stockade/audit.jsonl");
    fs::create_dir_all(log.parent().expect("a parent")).expect("cannot make a directory");
    let log = File::create(&log).expect("cannot make a log");
    assert!(operator.api(&["stats"]).status.success(), "nobody has it");
    log.try_lock().expect("free");
    let (code, text) = refused(&operator.api(&["stats"]));
    assert_eq!(code, Some(9), "{text}");
    assert!(text.contains("a worker runs on this host"), "{text}");
    assert!(operator.key(&["list"]).status.success(), "that is what its key is for");
}

#[test]
fn each_mistake_says_what_to_do() {
    let server = waiting(1);
    let operator = Operator::of(&server);
    operator.put("wrong-key", "sk-ant-api03-wrong");
    let wrong = operator.file("wrong-key").display().to_string();
    operator.put("open", "sk-ant-api03-x");
    fs::set_permissions(operator.file("open"), fs::Permissions::from_mode(0o644)).expect("chmod");
    let open = operator.file("open").display().to_string();
    let key = operator.file("environment-key").display().to_string();
    for (output, code, what) in [
        (operator.run(&["stats"]), 2, "no API key"),
        (operator.run(&["list"]), 2, "no environment key"),
        (operator.run(&["stop", "w"]), 2, "no key given"),
        (operator.api(&["list"]), 2, "it is not accepted there"),
        (operator.run(&["stats", "--api-key-file", &wrong]), 4, "401"),
        (operator.run(&["stats", "--api-key-file", &open]), 9, "has mode 0644"),
        (operator.run(&["stats", "--api-key-file", &key]), 3, "it is an environment key"),
        (operator.run(&["stats", "--api-key-file", "/nonexistent"]), 3, "No such file"),
        (operator.api(&["stats", "--environment-id", "env_other"]), 2, "404"),
        (operator.api(&["stats", "--environment-id", "a b"]), 2, "it is not an id"),
        (operator.api(&["stats", "--base-url", "http://192.0.2.1"]), 2, "no TLS"),
        (operator.api(&["stats", "--base-url", "http://127.0.0.1:1"]), 1, "cannot reach"),
    ] {
        let (got, text) = refused(&output);
        assert_eq!(got, Some(code), "{text}");
        assert!(text.contains(what), "{what}: {text}");
    }
    let nowhere = operator.command(&["stats"]).env_remove("ANTHROPIC_ENVIRONMENT_ID").output();
    let (code, text) = refused(&nowhere.expect("cannot run the worker"));
    assert!(code == Some(2) && text.contains("no environment id"), "{text}");
}
