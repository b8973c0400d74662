//! Staged input from git: whose configuration has an effect, what git may use, and with whom it ends.
//! INV-5, INV-10, INV-11.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use e2e::lab::policy_text;
use e2e::play::{SOON, bash, session};
use e2e::{Devserver, Level, Need, Poll, locate, require};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A directory that a policy may name, for everybody.
fn root() -> TempDir {
    let root = tempfile::Builder::new().prefix("e2e-git-").tempdir_in("/var/tmp");
    let root = root.expect("a directory");
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    root
}

fn git(at: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .env_clear()
        .env("PATH", locate::SEARCH_PATH)
        .env("HOME", at)
        .args(["-c", "user.name=t", "-c", "user.email=t@example.test", "-C"])
        .arg(at)
        .args(words);
    command
}

fn said(mut command: Command) -> String {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A repository with two files below `root`, and its commit.
fn repository(root: &Path) -> (PathBuf, String) {
    let repository = root.join("repo");
    fs::create_dir(&repository).expect("made");
    said(git(&repository, &["init", "-q", "-b", "main"]));
    fs::write(repository.join("word"), "from git").expect("written");
    let attributes = "word filter=plant diff=plant\n";
    fs::write(repository.join(".gitattributes"), attributes).expect("written");
    said(git(&repository, &["add", "."]));
    said(git(&repository, &["commit", "-q", "-m", "first"]));
    let commit = said(git(&repository, &["rev-parse", "HEAD"]));
    (repository, commit)
}

fn rule(repository: &Path, commit: &str) -> String {
    format!(
        "[[stage]]\nname = \"code\"\nkind = \"git\"\nfrom = \"file://{}\"\nto = \"code\"\n\
         commit = \"{commit}\"\nsize_max = \"1MiB\"\ntime_max = \"90s\"\n",
        repository.display()
    )
}

/// A program that says it is git, and is this script otherwise; with the configuration that names it.
fn instead(root: &Path, script: &str) -> PathBuf {
    let program = root.join("git");
    let version = "case $1 in version) echo git version 2.47.3; exit;; esac";
    fs::write(&program, format!("#!/bin/sh\n{version}\n{script}\n")).expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    let config = root.join("config.toml");
    fs::write(&config, format!("[stage]\ngit = {program:?}\n")).expect("written");
    config
}

/// `worker stage check --fetch`: the first rule's answer.
fn check(rules: &str, config: Option<&Path>) -> Value {
    let place = TempDir::new().expect("a directory");
    let policy = place.path().join("p.toml");
    fs::write(&policy, format!("{}\n{rules}", policy_text(""))).expect("written");
    let mut command = Command::new(locate::worker());
    command.env_clear().env("PATH", locate::SEARCH_PATH).env("TMPDIR", place.path());
    command.args(["stage", "check", "--fetch", "--format", "json", "--policy"]).arg(&policy);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    let done = command.output().expect("it runs");
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    let left: Vec<_> = fs::read_dir(place.path()).expect("listed").flatten().collect();
    assert_eq!(left.len(), 1, "INV-10: {left:?}");
    let document: Value =
        serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {told}"));
    document["rules"][0].clone()
}

fn sum_of(command: &mut Command) -> String {
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it runs");
    let stdout = child.stdout.take().expect("piped");
    let mut sum = Command::new("sha256sum");
    sum.stdin(stdout);
    let sum = said(sum);
    assert!(child.wait().expect("waited").success());
    sum.split_whitespace().next().expect("a digest").to_owned()
}

#[test]
fn nothing_that_a_repository_of_this_host_is_configured_with_has_an_effect() {
    let root = root();
    let (repository, commit) = repository(root.path());
    let plain = sum_of(&mut git(&repository, &["-c", "tar.umask=0022", "archive", &commit]));
    let hit = root.path().join("hit");
    let plant = root.path().join("plant");
    fs::write(&plant, format!("#!/bin/sh\necho hit >> {}\ncat\n", hit.display())).expect("written");
    fs::set_permissions(&plant, fs::Permissions::from_mode(0o755)).expect("chmod");
    let hooks = root.path().join("hooks");
    fs::create_dir(&hooks).expect("made");
    let program = plant.display();
    fs::write(
        root.path().join("included"),
        format!("[filter \"plant\"]\nsmudge = {program}\nclean = {program}\n[core]\nfsmonitor = {program}\n"),
    )
    .expect("written");
    let config = format!(
        "[include]\npath = {}\n[core]\nhooksPath = {}\n[uploadpack]\npackObjectsHook = {program}\n\
         [tar \"tar\"]\ncommand = {program}\n",
        root.path().join("included").display(),
        hooks.display()
    );
    let file = repository.join(".git/config");
    let before = fs::read_to_string(&file).expect("read");
    fs::write(&file, before + &config).expect("written");
    // The control: plain git runs the plant in that repository.
    said(git(&repository, &["status"]));
    assert!(hit.exists(), "the plant does not work at all");
    fs::remove_file(&hit).expect("removed");

    let laid = check(&rule(&repository, &commit), None);
    assert!(!hit.exists(), "something that the repository names was run");
    assert_eq!((&laid["outcome"], &laid["sha256"]), (&json!("fetched"), &json!(plain)), "{laid}");
    // A commit that is not there, and the id of something that is no commit.
    for wrong in ["0".repeat(40), said(git(&repository, &["rev-parse", "HEAD^{tree}"]))] {
        let refused = check(&rule(&repository, &wrong), None);
        assert_eq!(refused["class"], "git", "{wrong}: {refused}");
    }
}

#[test]
fn git_has_bounds_and_writes_in_its_own_directory_only() {
    // INV-5, INV-11.
    let root = root();
    let (repository, commit) = repository(root.path());
    let outside = root.path().join("outside");
    // What it prints at the end stands for the archive.
    let script = format!(
        "case $1 in rev-parse) echo {commit}; exit;; esac\n\
         limit() {{ grep -q \"^Max $1  *$2  *$3 \" /proc/self/limits || echo \"$1 is not $2\"; }}\n\
         limit 'data size' $((192 << 20)) $((192 << 20))\n\
         limit 'file size' $((2 << 20)) $((2 << 20))\n\
         limit 'cpu time' 91 92\n\
         grep -q 'NoNewPrivs:.1' /proc/self/status || echo privileges\n\
         (echo >{}) 2>/dev/null && echo outside\n\
         echo >\"$GIT_DIR/inside\" && echo >/dev/null || echo inside\n\
         echo end",
        outside.display()
    );
    let config = instead(root.path(), &script);
    let fetched = check(&rule(&repository, &commit), Some(&config));
    let end = sum_of(Command::new("echo").arg("end"));
    assert_eq!(fetched["sha256"], end, "a bound is not there: {fetched}");
    assert!(!outside.exists());
    // The control: without us the same script can write there.
    let mut script = Command::new(root.path().join("git"));
    let output = script.arg("archive").env("GIT_DIR", root.path()).output().expect("it runs");
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.contains("data size is not") && output.contains("outside\n"), "{output}");
}

#[test]
fn a_file_that_is_too_large_and_too_much_time_have_names_of_their_own() {
    // INV-11.
    let root = root();
    let (repository, commit) = repository(root.path());
    let rules = rule(&repository, &commit).replace("90s", "1s");
    for (script, class) in [
        ("exec head -c 4194304 /dev/zero >\"$GIT_DIR/x\"", "too-large"),
        ("echo 'fatal: Out of memory, malloc failed' >&2; exit 128", "too-large"),
        ("echo 'remote: Out of memory' >&2; exit 128", "git"),
        ("exec sleep 30", "time"),
    ] {
        let config = instead(root.path(), script);
        let rule = check(&rules, Some(&config));
        assert_eq!(rule["class"], class, "{script}: {rule}");
    }
}

#[test]
fn git_and_what_it_started_end_with_a_worker_that_is_killed() {
    // INV-10.
    require!(Need::Root);
    for level in Level::here() {
        let root = root();
        let (repository, commit) = repository(root.path());
        let config = instead(root.path(), "sleep 7301 & exec sleep 7302");
        std::os::unix::fs::chown(&config, Some(level.uid()), None).expect("chown");
        let server = Devserver::with("", &["--keep-results"]);
        let mut play = session("killed", [bash("echo ran")]);
        play["end"] = json!("open");
        play["calls"][0]["wait"] = json!(false);
        server.push(&play);
        let rules = rule(&repository, &commit);
        let poll = Poll::at(level).policy(&format!("{}\n{rules}", policy_text("")));
        let worker = poll.path("--config", &config).may_leave().serve(&server);
        let sleeps = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            words.next() == Some(b"sleep")
                && words.next().is_some_and(|word| word.starts_with(b"730"))
        };
        let both = || worker.processes().iter().filter(|pid| sleeps(pid)).count() == 2;
        assert!(e2e::poll::wait_for(SOON, both), "{level:?}: {}", worker.said());
        worker.signal("KILL");
        let ran = worker.wait();
        assert!(ran.leftovers.is_empty(), "{level:?}: {:#?}", ran.leftovers);
        // Its directory, as root on a file system of the host's.
        let swept = Command::new(locate::worker()).arg("sweep").output().expect("it runs");
        assert!(swept.status.success(), "{}", String::from_utf8_lossy(&swept.stderr));
    }
}

#[test]
fn a_rule_that_can_never_be_fetched_is_refused_at_the_start() {
    // INV-11: git needs room for a pack, an archive and its memory, 1 MiB twice and 192 MiB here.
    require!(Need::Root);
    let root = root();
    let (repository, commit) = repository(root.path());
    let rules = rule(&repository, &commit);
    let config = root.path().join("config.toml");
    for (size, starts) in [("193MiB", false), ("194MiB", true)] {
        fs::write(&config, format!("[stage]\nfetch_size = \"{size}\"\n")).expect("written");
        let server = Devserver::with("", &["--keep-results"]);
        let poll = Poll::at(Level::Root).policy(&format!("{}\n{rules}", policy_text("")));
        let poll = poll.path("--config", &config);
        // Without a start there is no record, and an empty log does not verify.
        let worker = if starts { poll } else { poll.may_leave() }.serve(&server);
        if starts {
            worker.wait_for_event("worker.started", SOON);
            worker.stop().ended(0);
        } else {
            let ran = worker.wait().ended(2);
            assert!(ran.stderr.contains("cannot stage `code`"), "{}", ran.stderr);
            assert!(ran.stderr.contains("stage.fetch_size"), "{}", ran.stderr);
        }
        server.end();
    }
}
