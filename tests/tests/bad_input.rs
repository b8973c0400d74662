//! Wrong command lines and policies: one clear error each, the right exit code (`product.md`
//! §3.6), nothing started and nothing left over.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use e2e::exec::directory_of;
use e2e::policy::{PolicyFile, default_text};
use e2e::{End, Exec, Level, Need, Outcome, require};

const USAGE: i32 = 2;
const POLICY: i32 = 3;
const ISOLATION: i32 = 5;

/// One error that an operator can act on: it names the culprit and shows no insides.
fn one_clear_error(outcome: &Outcome, status: i32, names: &str, what: &str) {
    let text = outcome.text();
    assert_eq!(outcome.end, End::Exit(status), "{what}: {text}");
    assert!(outcome.stderr.contains(names), "{what}: `{names}` is not named: {text}");
    let errors = outcome.stderr.lines().filter(|line| line.starts_with("error")).count();
    assert!(errors <= 1, "{what}: more than one error: {text}");
    assert!(!outcome.stderr.trim().is_empty(), "{what}: no error: {text}");
    for inside in ["panicked", "RUST_BACKTRACE", "Os {", "Some(", "Err(", "kind: "] {
        assert!(!outcome.stderr.contains(inside), "{what}: shows its insides: {text}");
    }
    assert!(!outcome.stdout.contains("ran"), "{what}: the command ran: {text}");
}

fn refused(level: Level, options: &[&str], status: i32, names: &str) {
    let outcome = Exec::at(level).options(options).bash("echo ran");
    one_clear_error(&outcome, status, names, &format!("{level:?} {options:?}"));
}

#[test]
fn a_missing_command_is_a_usage_error() {
    for level in Level::here() {
        let outcome = Exec::at(level).run(&[]);
        one_clear_error(&outcome, USAGE, "COMMAND", "no command");
        let outcome = Exec::at(level).run(&[""]);
        assert!(matches!(outcome.end, End::Exit(2 | 127)), "empty command: {}", outcome.text());
    }
}

#[test]
fn options_that_do_not_exist_are_usage_errors() {
    for level in Level::here() {
        refused(level, &["--no-seccomp"], USAGE, "--no-seccomp");
        refused(level, &["--limit"], USAGE, "--limit");
        refused(level, &["--env", "=x"], USAGE, "--env");
        refused(level, &["--halt-at", "no-such-step"], USAGE, "no-such-step");
    }
}

#[test]
fn a_workspace_must_be_a_real_directory_of_its_own() {
    for level in Level::here() {
        let dir = directory_of(level);
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(at("file"), "x").expect("cannot write");
        fs::create_dir(at("real")).expect("cannot create");
        symlink(at("real"), at("link")).expect("cannot link");
        for path in ["missing", "file", "link"] {
            refused(level, &["--workspace", &at(path)], USAGE, &at(path));
        }
        refused(level, &["--workspace", "/"], USAGE, "/");
        refused(level, &["--workspace", "/proc"], USAGE, "/proc");
        refused(level, &["--workspace", ""], USAGE, "workspace");
        refused(level, &["--workspace", &at("missing/below")], USAGE, "missing/below");
    }
}

#[test]
fn a_relative_workspace_is_refused_or_means_the_callers_directory() {
    for level in Level::here() {
        let dir = directory_of(level);
        fs::create_dir(dir.path().join("here")).expect("cannot create");
        e2e::exec::give(&dir.path().join("here"), level);
        fs::write(dir.path().join("here/mark"), "mark\n").expect("cannot write");
        let outcome =
            Exec::at(level).cwd(dir.path()).options(["--workspace", "here"]).bash("cat mark");
        match outcome.end {
            End::Exit(0) => assert_eq!(outcome.stdout, "mark\n", "{}", outcome.text()),
            _ => one_clear_error(&outcome, USAGE, "here", "relative workspace"),
        }
    }
}

#[test]
fn a_workspace_of_somebody_else_is_refused() {
    require!(Need::Root);
    let dir = directory_of(Level::Root);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("cannot chmod");
    let path = dir.path().display().to_string();
    refused(Level::Rootless, &["--workspace", &path], USAGE, &path);
}

#[test]
fn an_outputs_directory_must_exist() {
    for level in Level::here() {
        let dir = directory_of(level);
        let missing = dir.path().join("missing").display().to_string();
        refused(level, &["--outputs", &missing], USAGE, &missing);
        refused(level, &["--outputs", "/"], USAGE, "/");
    }
}

#[test]
fn limits_are_checked() {
    let cases = [
        ("memory=0", "memory"),
        ("pids=0", "pids"),
        ("disk=0", "disk"),
        ("wall=0s", "wall"),
        ("cpu=0", "cpu"),
        ("memory=", "memory"),
        ("memory=lots", "memory"),
        ("memory=-1", "memory"),
        ("memory", "memory"),
        ("colour=red", "colour"),
        ("=1", "limit"),
        ("pids=99999999999999999999", "pids"),
    ];
    for level in Level::here() {
        for (limit, names) in cases {
            refused(level, &["--limit", limit], USAGE, names);
        }
    }
}

#[test]
fn a_limit_can_only_be_narrowed() {
    for level in Level::here() {
        for (limit, names) in
            [("memory=1TiB", "memory"), ("pids=1000000", "pids"), ("disk=100GiB", "disk")]
        {
            let outcome = Exec::at(level).limit(limit).bash("echo ran");
            let status = if outcome.end == End::Exit(POLICY) { POLICY } else { USAGE };
            one_clear_error(&outcome, status, names, limit);
        }
    }
}

#[test]
fn a_policy_that_does_not_parse_is_named_with_line_and_column() {
    let default = default_text();
    let lines = default.lines().count();
    let cases: [(&str, String, usize); 6] = [
        ("not TOML", format!("{default}\n= 1\n"), lines + 2),
        ("open string", format!("{default}\nname = \"x\n"), lines + 2),
        ("unknown table", format!("{default}\n[colours]\nred = 1\n"), lines + 2),
        ("unknown key", "[process]\ncolour = 1\n".to_owned(), 2),
        ("wrong type", "[process]\npids = \"many\"\n".to_owned(), 2),
        ("size 0", "[process]\nmemory = \"0\"\n".to_owned(), 2),
    ];
    for level in Level::here() {
        for (what, text, line) in &cases {
            let file = PolicyFile::from_text(text);
            let place = format!("{}:{line}:", file.path().display());
            let outcome = Exec::at(level).policy(file.path()).bash("echo ran");
            one_clear_error(&outcome, POLICY, &place, what);
            let after = outcome.stderr.split(&place).nth(1).unwrap_or_default();
            assert!(after.starts_with(|c: char| c.is_ascii_digit()), "{what}: {}", outcome.text());
        }
    }
}

#[test]
fn a_policy_that_asks_for_the_impossible_is_invalid() {
    let cases = [
        ("relative path", "extends = \"default\"\n[filesystem]\nread_only = [\"etc\"]\n", "etc"),
        ("unknown parent", "extends = \"nobody\"\n", "nobody"),
        ("wider than its parent", "extends = \"default\"\n[process]\npids = 999999\n", "pids"),
        (
            "a layer that cannot be off",
            "extends = \"default\"\n[[require.relax]]\nlayer = \"user-namespace\"\nwhy = \"x\"\noff = true\n",
            "user-namespace",
        ),
        (
            "no reason",
            "extends = \"default\"\n[[require.relax]]\nlayer = \"seccomp\"\noff = true\n",
            "why",
        ),
        (
            "unknown layer",
            "extends = \"default\"\n[[require.relax]]\nlayer = \"magic\"\nwhy = \"x\"\n",
            "magic",
        ),
    ];
    for level in Level::here() {
        for (what, text, names) in cases {
            let file = PolicyFile::from_text(&format!("schema = 1\nname = \"e2e\"\n{text}"));
            let outcome = Exec::at(level).policy(file.path()).bash("echo ran");
            one_clear_error(&outcome, POLICY, names, what);
        }
    }
}

#[test]
fn a_policy_that_does_not_exist_is_named() {
    for level in Level::here() {
        refused(level, &["--policy", "no-such-policy"], POLICY, "no-such-policy");
        refused(level, &["--policy", "/nonexistent/p.toml"], POLICY, "/nonexistent/p.toml");
        refused(level, &["--policy", ""], POLICY, "policy");
    }
}

#[test]
fn a_level_that_the_caller_cannot_give_stops_the_run() {
    let text = default_text();
    assert!(text.contains("level"), "the default policy names its level");
    let root: Vec<String> = text
        .lines()
        .map(|line| {
            let wanted = line.trim_start().starts_with("level");
            if wanted { "level = \"root\"".to_owned() } else { line.to_owned() }
        })
        .collect();
    let file = PolicyFile::from_text(&(root.join("\n") + "\n"));
    let outcome = Exec::at(Level::Rootless).policy(file.path()).bash("echo ran");
    one_clear_error(&outcome, ISOLATION, "root", "level root without root");
}

#[test]
fn a_command_that_cannot_be_started_ends_as_in_a_shell() {
    for level in Level::here() {
        let none = Exec::at(level).run(&["no-such-command-e2e"]);
        one_clear_error(&none, 127, "no-such-command-e2e", "command not found");
        let none = Exec::at(level).run(&["/no/such/command"]);
        one_clear_error(&none, 127, "/no/such/command", "path not found");
        let plain = Exec::at(level).run(&["/etc/passwd"]);
        one_clear_error(&plain, 126, "/etc/passwd", "not executable");
        let dir = Exec::at(level).run(&["/usr"]);
        one_clear_error(&dir, 126, "/usr", "a directory");
    }
}

#[test]
fn a_report_that_cannot_be_written_stops_the_run() {
    for level in Level::here() {
        let outcome =
            Exec::at(level).options(["--report", "/nonexistent/report.json"]).bash("echo ran");
        let status = if outcome.end == End::Exit(1) { 1 } else { USAGE };
        one_clear_error(&outcome, status, "/nonexistent/report.json", "report");
    }
}

#[test]
fn a_report_names_every_layer_and_every_canary_act() {
    // INV-3: proven by an attempt; the report says what was tried and what came of it.
    for level in Level::here() {
        let dir = directory_of(level);
        let path = dir.path().join("report.json");
        let outcome =
            Exec::at(level).options(["--report", &path.display().to_string()]).bash("true");
        assert!(outcome.ok(), "{}", outcome.text());
        let text = fs::read_to_string(&path).expect("there is a report");
        let report: serde_json::Value = serde_json::from_str(&text).expect("the report is JSON");
        assert!(!report["schema"].is_null(), "{text}");
        let layers = report["layers"].as_array().expect("layers are listed");
        for name in e2e::policy::RELAXABLE {
            assert!(layers.iter().any(|layer| layer["layer"] == name), "{level:?} {name}: {text}");
        }
        assert_eq!(layers.len(), 15, "{level:?}: {text}");
        let canary = report["canary"].as_array().expect("canary acts are listed");
        assert!(canary.len() >= 8, "{level:?}: {text}");
        for act in canary {
            assert_eq!(act["ok"], true, "{level:?}: {act}");
            assert_eq!(act["expected"], act["got"], "{level:?}: {act}");
        }
    }
}

#[test]
fn a_canary_notices_a_layer_that_is_off_without_leave() {
    // INV-2: off by the policy is told in the report, with the operator's reason.
    for level in Level::here() {
        let dir = directory_of(level);
        let path = dir.path().join("report.json");
        let policy = PolicyFile::without(&["seccomp"]);
        let exec = Exec::at(level).policy(policy.path());
        let outcome = exec.options(["--report", &path.display().to_string()]).bash("true");
        assert!(outcome.ok(), "{}", outcome.text());
        let text = fs::read_to_string(&path).expect("there is a report");
        let report: serde_json::Value = serde_json::from_str(&text).expect("the report is JSON");
        let layers = report["layers"].as_array().expect("layers are listed");
        let seccomp = layers.iter().find(|layer| layer["layer"] == "seccomp");
        let why = seccomp.map(|layer| layer["why"].to_string()).unwrap_or_default();
        assert!(why.contains("control run"), "{level:?}: {text}");
    }
}
