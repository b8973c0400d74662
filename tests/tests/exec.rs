//! What `worker exec` and its sister commands promise beside keeping hostile code in: policies of
//! every shape, streams, terminal, report, and the documents that scripts read.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use e2e::exec::status_field;
use e2e::policy::PolicyFile;
use e2e::{End, Exec, Level, Need, locate, require};
use serde_json::Value;

/// The default policy with some keys changed, as a file.
fn changed(changes: &[(&str, &str)]) -> PolicyFile {
    let mut text = shipped("default");
    for (key, value) in changes {
        let line = text.lines().find(|line| line.starts_with(&format!("{key} = ")));
        let line = line.unwrap_or_else(|| panic!("default has no line for `{key}`")).to_owned();
        text = text.replace(&line, &format!("{key} = {value}"));
    }
    PolicyFile::from_text(&text)
}

fn shipped(name: &str) -> String {
    worker(&["policy", "show", name]).0
}

/// Runs another command of the worker; its output and whether it succeeded.
fn worker(args: &[&str]) -> (String, bool) {
    let done = Command::new(locate::worker()).args(args).output().expect("cannot run the worker");
    (String::from_utf8_lossy(&done.stdout).into_owned(), done.status.success())
}

fn json(args: &[&str]) -> Value {
    let (text, ok) = worker(args);
    assert!(ok, "{args:?}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
}

#[test]
fn every_shipped_policy_runs_what_it_is_for() {
    #[rustfmt::skip]
    let cases: [(&str, &[&str], &str); 4] = [
        ("base",    &["/bin/echo", "floor"],                              "floor"),
        ("default", &["python3", "-c", "print(6 * 7)"],                   "42"),
        ("offline", &["python3", "-c", "print(6 * 7)"],                   "42"),
        ("build",   &["bash", "-c", "df --output=fstype /workspace"],     "ext4"),
    ];
    for level in Level::here() {
        for (name, command, want) in cases {
            let root_only = shipped(name).contains("level = \"root\"");
            let mut exec = Exec::at(level).policy(name);
            if name == "build" {
                exec = exec.limit("disk=64MiB");
            }
            let outcome = exec.run(command);
            if level == Level::Rootless && root_only {
                assert_eq!(outcome.end, End::Exit(5), "{name} {level:?}: {}", outcome.text());
                assert!(outcome.stderr.contains("hint: "), "{}", outcome.text());
            } else {
                assert!(outcome.ok(), "{name} {level:?}: {}", outcome.text());
                assert!(outcome.stdout.contains(want), "{name} {level:?}: {}", outcome.text());
            }
        }
    }
}

#[test]
fn a_root_directory_of_the_operators_own_replaces_the_hosts_view() {
    let busybox =
        ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| fs::metadata(p).is_ok());
    require!(Need::File("/usr/bin"));
    let Some(busybox) = busybox else { return e2e::needs::skip("there is no busybox") };
    for level in Level::here() {
        let root = e2e::exec::directory_of(level);
        fs::create_dir(root.path().join("bin")).expect("made");
        fs::copy(busybox, root.path().join("bin/busybox")).expect("copied");
        std::os::unix::fs::symlink("busybox", root.path().join("bin/sh")).expect("linked");
        // A hostile image ships links where things are mounted (CVE-2023-27561).
        std::os::unix::fs::symlink("/etc", root.path().join("proc")).expect("linked");
        std::os::unix::fs::symlink("/nonexistent", root.path().join("workspace")).expect("linked");
        let policy = changed(&[("root", &format!("{:?}", root.path().display().to_string()))]);
        let script = "busybox ls / ; cd /workspace && busybox touch x && busybox id -u; busybox cat /proc/self/comm";
        let outcome = Exec::at(level).policy(policy.path()).run(&["sh", "-c", script]);
        assert!(outcome.ok(), "{level:?}: {}", outcome.text());
        assert!(outcome.stdout.contains("1000\nbusybox"), "{level:?}: {}", outcome.text());
        assert!(!outcome.stdout.contains("usr"), "the host's /usr is there: {}", outcome.text());
        assert!(!root.path().join("x").exists());
    }
}

#[test]
fn policy_values_take_effect() {
    require!(Need::Root);
    let policy = changed(&[("hide_uptime", "true"), ("nice", "7"), ("open_files", "99")]);
    let outcome = Exec::at(Level::Root)
        .policy(policy.path())
        .bash("cut -d. -f1 /proc/uptime; nice; ulimit -n");
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert!(lines[0].parse::<u64>().is_ok_and(|seconds| seconds < 60), "{}", outcome.text());
    assert_eq!(lines[1..], ["7", "99"], "{}", outcome.text());
    let control = Exec::at(Level::Root).bash("nice; ulimit -n");
    assert_eq!(control.stdout, "0\n8192\n", "{}", control.text());
}

#[test]
fn cpu_time_and_disk_rate_are_limited_and_explained() {
    require!(Need::Root);
    let policy = changed(&[("cpu_time", "\"1s\""), ("io_rate", "\"4MiB\"")]);
    let report = tempfile::NamedTempFile::new().expect("a file");
    let path = report.path().display().to_string();
    let outcome = Exec::at(Level::Root)
        .policy(policy.path())
        .options(["--report", &path])
        .bash("while :; do :; done");
    assert_eq!(outcome.end, End::Exit(128 + 24), "SIGXCPU: {}", outcome.text());
    assert!(outcome.stderr.contains("process.cpu_time"), "{}", outcome.text());
    let text = fs::read_to_string(&path).expect("a report");
    assert!(text.contains("4194304 bytes a second"), "{text}");
}

#[test]
fn a_terminal_of_its_own_is_given_on_request_only() {
    require!(Need::Tool("script"));
    let script = "test -t 0 && tty; stty size >/dev/null && echo sized";
    for level in Level::here() {
        let without = Exec::at(level).bash(script);
        assert!(!without.stdout.contains("/dev/pts"), "{level:?}: {}", without.text());
        let with = Exec::at(level).options(["--tty"]).bash(script);
        let told = with.stdout.replace('\r', "");
        assert_eq!(told, "/dev/pts/0\nsized\n", "{level:?}: {}", with.text());
    }
}

#[test]
fn streams_are_carried_whole_and_in_order() {
    for level in Level::here() {
        let input: Vec<u8> =
            (0..3_000_000u32).flat_map(|n| n.to_le_bytes()).take(4 << 20).collect();
        let sum = Exec::at(level).stdin(input.clone()).run(&["wc", "-c"]);
        assert_eq!(sum.stdout.trim(), (4 << 20).to_string(), "{level:?}: {}", sum.text());
        let copied = Exec::at(level).stdin(input).bash("cat | md5sum; echo to-stderr >&2");
        assert_eq!(copied.stderr, "to-stderr\n", "{level:?}");
        let early = Exec::at(level).stdin(vec![0u8; 1 << 20]).run(&["true"]);
        assert!(early.ok(), "a command that reads nothing: {}", early.text());
    }
}

#[test]
fn the_exit_status_is_the_commands_own() {
    for level in Level::here() {
        for (script, status) in [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 143)] {
            let outcome = Exec::at(level).bash(script);
            assert_eq!(outcome.end, End::Exit(status), "{level:?} `{script}`: {}", outcome.text());
        }
    }
}

#[test]
fn the_report_names_every_layer_and_every_act() {
    for level in Level::here() {
        let directory = e2e::exec::directory_of(level);
        let path = directory.path().join("report.json");
        let options = ["--report".to_owned(), path.display().to_string()];
        let outcome = Exec::at(level).options(options).run(&["true"]);
        assert!(outcome.ok(), "{}", outcome.text());
        let report: Value =
            serde_json::from_str(&fs::read_to_string(&path).expect("written")).expect("JSON");
        let layers = report["layers"].as_array().expect("layers");
        assert_eq!(layers.len(), 15, "{report}");
        for layer in layers {
            let absent_cgroup = level == Level::Rootless && layer["layer"] == "cgroup";
            assert!(layer["got"] == "enforced" || absent_cgroup, "{level:?}: {layer}");
            assert!(layer["why"].as_str().is_some_and(|why| !why.is_empty()), "{layer}");
        }
        let acts = report["canary"].as_array().expect("acts");
        assert!(acts.len() >= 15 && acts.iter().all(|act| act["ok"] == true), "INV-3: {report}");
        for key in ["policy_digest", "spec_digest", "filter_digest"] {
            assert_eq!(report[key].as_str().map(str::len), Some(64), "{key}: {report}");
        }
        assert_eq!(report["end"]["status"]["exited"], 0, "{report}");
    }
}

#[test]
fn documents_for_scripts_name_their_schema() {
    for args in [&["version", "--json"][..], &["doctor", "--json"], &["sweep", "--json"]] {
        let _turn = e2e::lock::shared();
        let document = json(args);
        assert!(
            document["schema"].as_str().is_some_and(|s| s.starts_with("stockade.")),
            "{args:?}"
        );
        assert_eq!(document["schema_version"], 1, "{args:?}");
    }
    let doctor = json(&["doctor", "--json"]);
    assert_eq!(doctor["ok"], true, "{doctor}");
    let checks = doctor["checks"].as_array().expect("checks");
    assert!(checks.iter().all(|check| check["status"] != "FAIL"), "{doctor}");
    let egress = checks.iter().find(|check| check["id"] == "egress").expect("egress");
    assert_eq!(egress["status"], "PASS", "INV-8: {egress}");
    assert!(json(&["policy", "schema"])["properties"]["filesystem"].is_object());
}

#[test]
fn completions_and_manual_pages_are_made_for_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let (script, ok) = worker(&["completions", shell]);
        assert!(ok && script.contains("exec") && script.contains("doctor"), "{shell}");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let (_, ok) = worker(&["man", "--dir", &directory.path().display().to_string()]);
    assert!(ok);
    for page in
        ["worker.1", "worker-exec.1", "worker-doctor.1", "worker-policy.1", "worker-sweep.1"]
    {
        assert!(directory.path().join(page).exists(), "no {page}");
    }
}

/// Whether the mount that a process's program is on is read-only, which no file mode tells.
fn program_is_read_only(pid: u32) -> bool {
    let script = format!("import os; print(os.statvfs('/proc/{pid}/exe').f_flag & os.ST_RDONLY)");
    let done = Command::new("python3").args(["-c", &script]).output().expect("cannot run python3");
    String::from_utf8_lossy(&done.stdout).trim() == "1"
}

#[test]
fn control_side_and_init_hold_no_privilege_and_jails_cannot_reach_the_binary() {
    // INV-1, INV-6 and CVE-2019-5736: who carries bytes or stays with the payload is nobody on the
    // host, and the program that launcher and init run from cannot be written through any /proc.
    require!(Need::Root, Need::Tool("python3"));
    let running = Exec::at(Level::Root).spawn(&["sleep", "3"]);
    let is_named = |pid: &u32, name: &str| {
        status_field(*pid, "Name:").is_some_and(|found| found.starts_with(name))
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while !running.processes().iter().any(|pid| is_named(pid, "sleep")) {
        assert!(Instant::now() < deadline, "the payload does not start");
        sleep(Duration::from_millis(10));
    }
    let ours: Vec<u32> =
        running.processes().into_iter().filter(|p| is_named(p, "worker")).collect();
    let [control, launcher, init] = ours[..] else { panic!("not three processes: {ours:?}") };
    for (who, pid) in [("control side", control), ("init", init)] {
        let uid = status_field(pid, "Uid:").expect("a user id");
        assert_ne!(uid.split_whitespace().next(), Some("0"), "{who}");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(status_field(pid, set).as_deref(), Some("0000000000000000"), "{who} {set}");
        }
        assert_eq!(status_field(pid, "NoNewPrivs:").as_deref(), Some("1"), "{who}");
    }
    assert!(program_is_read_only(launcher) && program_is_read_only(init));
    assert!(!program_is_read_only(control), "control: the file itself is on a writable mount");
    let uids = [control, init].map(|pid| status_field(pid, "Uid:"));
    assert_ne!(uids[0], uids[1], "control side and init share an id");
    assert!(running.wait().ok());
}

#[test]
fn a_worker_whose_standard_error_is_gone_goes_on() {
    // A log pipe that breaks must not end a worker and its jails.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = std::process::Command::new(e2e::locate::worker())
        .args(["--log-level", "debug", "exec", "--", "true"])
        .stdin(std::process::Stdio::null())
        .stderr(writer)
        .status()
        .expect("the worker runs");
    assert_eq!(status.code(), Some(0));
}
