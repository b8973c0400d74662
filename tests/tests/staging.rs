//! Staged input: every kind lands in the workspace, and nothing else does. In a laboratory whose
//! internet has the hosts of `lab/inputs.rs`. INV-1, INV-7, INV-8, INV-11, INV-12; AUTH-13, UNK-14.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::{Duration, Instant};

use e2e::lab::inputs::{CASE, Inputs, PASSWORD, SECRET, TOKEN};
use e2e::lab::staged::{LOOK, RECORD, Site, https, with_metadata, with_rules};
use e2e::play::{SOON, bash, expect, gives, passed, session};
use e2e::{Devserver, Level, Need, Poll, locate, require};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Of [`CASE`].
fn case_sum() -> String {
    sum_of(CASE)
}

fn sum_of(text: &str) -> String {
    let file = TempDir::new().expect("a directory");
    fs::write(file.path().join("x"), text).expect("written");
    let said = std::process::Command::new("sha256sum").arg(file.path().join("x")).output();
    let said = String::from_utf8(said.expect("sha256sum runs").stdout).expect("text");
    said.split_whitespace().next().expect("a digest").to_owned()
}

/// `worker stage check --fetch` on the laboratory's host: the first rule's answer.
fn check(inputs: &Inputs, rules: &str, metadata: &[(&str, &str)]) -> Value {
    let policy = inputs.lab.directory().join("check.toml");
    fs::write(&policy, with_rules(rules)).expect("written");
    let config = inputs.config(0);
    let mut command = inputs.lab.command();
    command
        .arg(locate::worker())
        .args(["stage", "check", "--fetch", "--format", "json", "--policy"]);
    command.arg(&policy).arg("--config").arg(config);
    for (key, value) in metadata {
        command.arg("--metadata").arg(format!("{key}={value}"));
    }
    let done = command.output().expect("it runs");
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    let document: Value =
        serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {told}"));
    for secret in [TOKEN, PASSWORD, SECRET] {
        assert!(!told.contains(secret) && !document.to_string().contains(secret), "INV-12");
    }
    let rule = document["rules"][0].clone();
    let failed = rule["outcome"] == "failed" && rule["required"] == true;
    assert_eq!(done.status.code(), Some(i32::from(failed)), "{rule}: {told}");
    rule
}

#[test]
fn every_kind_of_input_is_in_the_workspace_before_the_first_call() {
    require!(Need::Root);
    for level in Level::here() {
        let site = Site::new();
        let local = site.inputs.local.path().display().to_string();
        let rules = format!(
            "{}\
             [[stage]]\nname = \"set\"\nkind = \"https\"\nfrom = \"https://data.example.test/in/set.tar.gz\"\n\
             to = \"set\"\nunpack = true\n{RECORD}\
             [[stage]]\nname = \"code\"\nkind = \"git\"\nfrom = \"https://git.example.test/git/lab.git\"\n\
             to = \"code\"\ncommit = \"metadata:commit\"\n\
             [[stage]]\nname = \"object\"\nkind = \"s3\"\nfrom = \"metadata:object\"\nto = \"o/object\"\n\
             endpoint = \"https://store.example.test\"\nallow = [\"s3://store/bucket/in/\"]\nsha256 = \"{}\"\n\
             [[stage]]\nname = \"local\"\nkind = \"local\"\nfrom = \"metadata:local\"\nallow = [\"{local}\"]\n\
             to = \"local.txt\"\n",
            https("sha256 = \"metadata:sum\""),
            sum_of("from the store\n"),
        );
        let calls = [
            gives(bash("cat in/case.csv"), CASE.trim_end()),
            gives(
                bash("cat set/a set/b && test -x set/b && ! test -x set/a && echo modes"),
                "one\ntwo\nmodes",
            ),
            gives(bash("cat code/word && code/run && ls -A code"), "from git\nran\nrun\nword"),
            gives(bash("cat o/object local.txt"), "from the store\nfrom this host"),
            // What is laid is the session's own.
            gives(bash("echo more >>in/case.csv && rm -r code && wc -l <in/case.csv"), "3"),
            expect(bash(LOOK), json!({"text": "found:"})),
        ];
        // AUTH-13, UNK-14: the session's metadata wins over that of the work item.
        let mut play = with_metadata(
            session("stage", calls),
            json!({
                "file": "https://data.example.test/in/moved.csv", "sum": case_sum(),
                "commit": site.inputs.commit, "object": "s3://store/bucket/in/object.bin",
                "local": format!("{local}/file.txt"),
            }),
        );
        play["work_metadata"] = json!({"file": "https://evil.example.test/in/x"});
        site.server.push(&play);
        let worker = site.worker(level, &rules);
        let (inputs, ran, _) = site.ended(worker);
        let laid = ran.audited("stage.laid");
        let hosts: Vec<&Value> = laid.iter().map(|event| &event["host"]).collect();
        assert_eq!(laid.len(), 5, "{level:?}: {laid:?}");
        assert_eq!(hosts[0], "data.example.test", "{level:?}");
        assert_eq!(laid[0]["sha256"], case_sum(), "{level:?}");
        assert_eq!(laid[2]["commit"], inputs.commit, "{level:?}");
        assert!(hosts[4].is_null(), "{level:?}: {laid:?}");
        let order = |name: &str| ran.audit.iter().position(|event| event["event"] == name);
        assert!(order("jail.launched") < order("stage.laid"), "{level:?}");
        assert!(order("stage.laid") < order("call.started"), "{level:?}");
        // INV-12: neither credentials nor paths, and the credentials only where they belong.
        let audit = serde_json::to_string(&ran.audit).expect("JSON");
        for secret in [TOKEN, PASSWORD, SECRET, "case.csv", "object.bin", "lab.git", "file.txt"] {
            assert!(!audit.contains(secret), "{level:?}: {secret} in the audit log");
            assert!(!ran.stderr.contains(secret), "{level:?}: {secret} in the log");
        }
        for (on, target, headers) in inputs.requests() {
            assert_eq!(
                headers.contains(TOKEN),
                on == "203.0.113.20:443",
                "{on}{target}: {headers}"
            );
            assert!(!headers.contains(SECRET), "{on}{target}: {headers}");
            let basic = headers.contains("Basic ");
            assert_eq!(basic, target.starts_with("/git/"), "{on}{target}: {headers}");
        }
    }
}

#[test]
fn a_session_whose_input_is_missing_is_told_so_and_runs_nothing() {
    require!(Need::Root);
    for level in Level::here() {
        let site = Site::new();
        let mut play = session("missing", [bash("echo ran")]);
        play["calls"][0]["expect"] =
            json!({"is_error": true, "contains": "input `case` is missing"});
        play["end"] = json!("open");
        let file = "https://data.example.test/out/secret.csv";
        site.server.push(&with_metadata(play, json!({"file": file, "sum": case_sum()})));
        let worker = site.worker(level, &https("sha256 = \"metadata:sum\""));
        assert!(e2e::poll::wait_for(SOON, || site.server.state()["sessions"][0]["answered"] == 1));
        site.server.dev("POST", "sessions/missing/steps", &json!([{"terminate": true}]));
        let (inputs, ran, report) = site.ended(worker);
        let text = report["sessions"][0].to_string();
        assert!(text.contains("outside the places"), "{level:?}: {text}");
        assert!(!text.contains("secret.csv"), "{level:?}: {text}");
        let failed = ran.audited("stage.failed");
        assert_eq!(failed[0]["reason"], "not-allowed", "{level:?}: {failed:?}");
        assert!(ran.audited("call.started").is_empty(), "{level:?}");
        assert!(inputs.requests().is_empty(), "{level:?}: something was asked for");
    }
}

#[test]
fn a_session_goes_on_without_input_that_is_not_required() {
    require!(Need::Root);
    for level in Level::here() {
        let site = Site::new();
        let calls = [gives(bash("ls -A /workspace | wc -l"), "0")];
        let metadata = json!({"file": "https://data.example.test/in/none.csv", "sum": case_sum()});
        site.server.push(&with_metadata(session("without", calls), metadata));
        let worker = site.worker(level, &https("sha256 = \"metadata:sum\"\nrequired = false"));
        let (_, ran, _) = site.ended(worker);
        let failed = ran.audited("stage.failed");
        assert_eq!(
            (&failed[0]["reason"], &failed[0]["required"]),
            (&json!("status"), &json!(false))
        );
    }
}

#[test]
fn an_archive_that_unpacks_to_too_much_is_refused_by_the_porter() {
    // INV-11.
    require!(Need::Root);
    for level in Level::here() {
        let site = Site::new();
        let rules = format!(
            "[[stage]]\nname = \"bomb\"\nkind = \"https\"\nfrom = \"https://data.example.test/in/bomb.tar.gz\"\n\
             to = \"bomb\"\nunpack = true\nsize_max = \"1MiB\"\nrequired = false\n{RECORD}"
        );
        site.server.push(&session("bomb", [gives(bash("find /workspace -type f | wc -l"), "0")]));
        let worker = site.worker(level, &rules);
        let (_, ran, _) = site.ended(worker);
        assert_eq!(ran.audited("stage.failed")[0]["reason"], "workspace", "{level:?}");
        assert_eq!(ran.audited("stage.laid").len(), 1, "it was fetched, {level:?}");
    }
}

#[test]
fn nothing_of_a_fetch_by_a_killed_worker_outlives_the_next_start_or_a_sweep() {
    // INV-10: git's configuration holds the credential.
    require!(Need::Root);
    for (level, next) in
        Level::here().into_iter().flat_map(|level| [(level, "poll"), (level, "sweep")])
    {
        let site = Site::new();
        let program = site.inputs.lab.directory().join("slow-git");
        let version = "case $1 in version) echo git version 2.47.3; exit;; esac";
        fs::write(&program, format!("#!/bin/sh\n{version}\nexec sleep 7303\n")).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
        let config = site.inputs.config(level.uid());
        let text = fs::read_to_string(&config).expect("read");
        fs::write(&config, format!("[stage]\ngit = {program:?}\n{text}")).expect("written");
        let rules = format!(
            "[[stage]]\nname = \"code\"\nkind = \"git\"\nfrom = \"https://git.example.test/git/lab.git\"\n\
             to = \"code\"\ncommit = \"{}\"\n",
            site.inputs.commit
        );
        let mut play = session("killed", [bash("echo ran")]);
        play["end"] = json!("open");
        play["calls"][0]["wait"] = json!(false);
        site.server.push(&play);
        let poll = Poll::at(level).wrapped_in(&site.inputs.lab.wrapper()).may_leave();
        let (home, state) = (poll.home(), poll.state());
        let poll = poll.policy(&with_rules(&rules)).path("--config", &config);
        let worker = poll.serve(&site.server);
        let above = match level {
            Level::Root => std::path::PathBuf::from("/run/stockade-staging"),
            Level::Rootless => home.join("stockade-staging"),
        };
        let name = format!("git-{}-0/config", worker.pid());
        let found = || {
            let rooms = fs::read_dir(&above).into_iter().flatten().flatten();
            rooms.map(|room| room.path().join(&name)).find(|path| path.exists())
        };
        let fetches =
            || found().is_some_and(|path| fs::read(path).is_ok_and(|text| !text.is_empty()));
        assert!(e2e::poll::wait_for(SOON, fetches), "{level:?}: {}", worker.said());
        let file = found().expect("found");
        assert!(fs::read_to_string(&file).expect("read").contains("Basic "), "the control");
        let scratch = file.ancestors().nth(2).expect("above").to_owned();
        let sweep = || {
            let mut line = level.prefix();
            line.extend([locate::worker().display().to_string(), "sweep".to_owned()]);
            let mut sweep = std::process::Command::new(&line[0]);
            sweep.args(&line[1..]).env("HOME", &home).env("XDG_RUNTIME_DIR", &home);
            let done = sweep.output().expect("it runs");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            String::from_utf8_lossy(&done.stdout).into_owned()
        };
        sweep();
        assert!(file.exists(), "{level:?}: a live worker's was removed");
        worker.signal("KILL");
        let killed = worker.wait();
        assert!(killed.leftovers.is_empty(), "{level:?}: {:#?}", killed.leftovers);
        assert!(file.exists(), "the control: nobody has removed it yet");
        if next == "sweep" {
            assert!(sweep().contains("removed staging "), "{level:?}");
        } else {
            let poll = Poll::at(level).variable("XDG_RUNTIME_DIR", &home.display().to_string());
            let server = Devserver::with("", &[]);
            let worker = poll.path("--state-dir", &state).may_leave().serve(&server);
            worker.wait_for_event("worker.started", SOON);
            worker.stop().ended(0);
            server.end();
        }
        assert!(!scratch.exists(), "{level:?}, {next}: {} is left", scratch.display());
    }
}

#[test]
fn a_source_that_stalls_holds_neither_the_lease_nor_the_end_of_the_worker_up() {
    // INV-11; LEASE-12: what was begun ends with the lease.
    require!(Need::Root);
    for level in Level::here() {
        let site = Site::new();
        let mut play = session("stalls", [bash("echo ran")]);
        play["end"] = json!("open");
        play["calls"][0]["wait"] = json!(false);
        let file = "https://data.example.test/in/stall";
        site.server.push(&with_metadata(play, json!({"file": file, "sum": case_sum()})));
        let worker = site.worker(level, &https("sha256 = \"metadata:sum\"\ntime_max = \"10m\""));
        let asked = || site.inputs.requests().iter().any(|(_, target, _)| target == "/in/stall");
        assert!(e2e::poll::wait_for(SOON, asked), "{level:?}: {}", worker.said());
        site.server.fault(&json!({"on": "heartbeat", "do": "lost", "session": "stalls"}));
        worker.wait_for_event("lease.lost", SOON);
        // The source stalls for ten minutes more as far as the rule goes: nobody waits for it.
        let over = || worker.audited().iter().any(|event| event["event"] == "item.ended");
        assert!(e2e::poll::wait_for(SOON, over), "{level:?}: {}", worker.said());
        let began = Instant::now();
        let ran = worker.stop();
        assert!(began.elapsed() < Duration::from_secs(20), "{level:?}: {:?}", began.elapsed());
        assert!(ran.audited("call.started").is_empty(), "{level:?}");
        assert!(ran.audited("stage.laid").is_empty(), "{level:?}");
    }
}

#[test]
fn what_lies_elsewhere_is_neither_asked_for_nor_followed() {
    require!(Need::Root);
    let inputs = Inputs::new();
    let at = |host: &str, path: &str| format!("https://{host}.example.test{path}");
    #[rustfmt::skip]
    let cases = [
        (at("data", "/in/case.csv"),            ""),
        (at("data", "/in/moved.csv"),           ""),
        (at("data", "/in/../out/secret.csv"),   "metadata-malformed"),
        (at("data", "/in/..%2fout/secret.csv"), "metadata-malformed"),
        (at("data", "/out/secret.csv"),         "not-allowed"),
        (at("other", "/in/case.csv"),           "not-allowed"),
        (at("data", "/in/away.csv"),            "redirect"),
        (at("data", "/in/out.csv"),             "redirect"),
        (at("data", "/in/climbs.csv"),          "redirect"),
        (at("data", "/in/plain.csv"),           "redirect"),
        (at("data", "/in/round.csv"),           "redirect"),
        (at("data", "/in/inner.csv"),           "address-refused"),
        (at("data", "/in/none.csv"),            "status"),
        (at("inner", "/in/case.csv"),           "address-refused"),
        (at("meta", "/in/case.csv"),            "address-refused"),
        (at("loop", "/in/case.csv"),            "address-refused"),
        (at("mixed", "/in/case.csv"),           "address-refused"),
    ];
    for (file, want) in &cases {
        let rule = check(&inputs, &https(RECORD), &[("file", file)]);
        assert_eq!(rule["class"].as_str().unwrap_or_default(), *want, "{file}: {rule}");
        if want.is_empty() {
            assert_eq!(rule["sha256"], case_sum(), "{file}: {rule}");
        }
        // INV-12: the path is nobody's business.
        assert!(!rule["reason"].as_str().unwrap_or_default().contains(".csv"), "{rule}");
    }
    let requests = inputs.requests();
    for (on, target, _) in &requests {
        assert_eq!(on, "203.0.113.20:443", "{target} was asked for");
        assert!(!target.contains("secret"), "{target} was asked for");
    }
    assert!(inputs.lab.heard_by("169.254.169.254:443", "accept").is_empty(), "INV-8");
    // The control: with `private`, and for the host that redirects nowhere else, the same succeeds.
    let private = format!("{RECORD}private = true\n");
    for file in
        [at("inner", "/in/case.csv"), at("data", "/in/inner.csv"), at("mixed", "/in/case.csv")]
    {
        let rule = check(&inputs, &https(&private), &[("file", &file)]);
        assert_eq!(rule["outcome"], "fetched", "{file}: {rule}");
    }
    let rule = check(&inputs, &https(&private), &[("file", &at("meta", "/in/case.csv"))]);
    assert_eq!(rule["class"], "address-refused", "{rule}");
    let leaked = inputs
        .requests()
        .iter()
        .any(|(on, _, headers)| on.starts_with("10.") && headers.contains(TOKEN));
    assert!(!leaked, "the credential of another host was sent");
}

#[test]
fn a_name_that_leads_elsewhere_the_second_time_is_dialled_where_it_was_checked() {
    // INV-8: rebinding. The name has a public address for the first question and a private one after.
    require!(Need::Root);
    let inputs = Inputs::new();
    let file = "https://turns.example.test/in/case.csv";
    let rule = check(&inputs, &https(RECORD), &[("file", file)]);
    assert_eq!(rule["outcome"], "fetched", "{rule}");
    assert_eq!(inputs.requests()[0].0, "203.0.113.20:443");
    // Asked once more, by another process, it is the private one.
    let rule = check(&inputs, &https(RECORD), &[("file", file)]);
    assert_eq!(rule["class"], "address-refused", "{rule}");
    assert!(inputs.lab.heard_by("10.0.0.5:443", "accept").is_empty(), "INV-8");
    // The same for git, which has a client of its own.
    inputs.lab.zone(&json!({"git.example.test": {"A": [["203.0.113.22"], ["10.0.0.5"]]}}));
    let code = format!(
        "[[stage]]\nname = \"code\"\nkind = \"git\"\nfrom = \"https://git.example.test/git/lab.git\"\n\
         to = \"code\"\ncommit = \"{}\"\n",
        inputs.commit
    );
    let rule = check(&inputs, &code, &[]);
    assert_eq!(rule["outcome"], "fetched", "{rule}");
    assert!(inputs.lab.heard_by("10.0.0.5:443", "accept").is_empty(), "INV-8");
}

#[test]
fn what_is_too_large_too_slow_or_something_else_is_refused() {
    require!(Need::Root);
    let inputs = Inputs::new();
    let file = |path: &str| format!("https://data.example.test/in/{path}");
    let wrong = format!("sha256 = \"{}\"\n", "0".repeat(64));
    let rule = check(&inputs, &https(&wrong), &[("file", &file("case.csv"))]);
    assert_eq!(rule["class"], "digest", "{rule}");
    for path in ["bomb.tar.gz", "endless"] {
        let small = format!("{RECORD}size_max = \"32KiB\"\n");
        let began = Instant::now();
        let rule = check(&inputs, &https(&small), &[("file", &file(path))]);
        assert_eq!(rule["class"], "too-large", "{path}: {rule}");
        assert!(began.elapsed() < Duration::from_secs(10), "{path}: {:?}", began.elapsed());
    }
    let short = format!("{RECORD}time_max = \"1s\"\n");
    let rule = check(&inputs, &https(&short), &[("file", &file("stall"))]);
    assert_eq!(rule["class"], "time", "{rule}");
    // A repository whose commit is larger than it may be; the commit before it is small enough.
    let large = fs::read_to_string(inputs.lab.directory().join("large")).expect("read");
    let code = |commit: &str| {
        format!(
            "[[stage]]\nname = \"code\"\nkind = \"git\"\nfrom = \"https://git.example.test/git/large.git\"\n\
             to = \"code\"\ncommit = \"{commit}\"\nsize_max = \"1MiB\"\n"
        )
    };
    assert_eq!(check(&inputs, &code(&large), &[])["class"], "too-large");
    assert_eq!(check(&inputs, &code(&inputs.commit), &[])["outcome"], "fetched");
    assert_eq!(check(&inputs, &code(&"1".repeat(40)), &[])["class"], "git");
}

#[test]
fn a_small_pack_that_needs_much_memory_is_refused() {
    // INV-11: one commit of 210 MB, which is a pack of 200 KB.
    require!(Need::Root);
    let inputs = Inputs::new();
    let script = r#"set -e
cd "$1" && git init -q --bare heavy.git && cd heavy.git
tree=$(git hash-object -t tree -w --stdin </dev/null)
{ printf 'tree %s\nauthor a <a@b> 0 +0000\ncommitter a <a@b> 0 +0000\n\n' "$tree"
  head -c 220200960 /dev/zero | tr '\0' a; } >message
commit=$(git hash-object -t commit -w message) && rm message
git update-ref refs/heads/main "$commit" && git repack -qad && echo "$commit"
"#;
    let made = std::process::Command::new("sh")
        .args(["-c", script, "heavy"])
        .arg(inputs.lab.directory().join("www/git.example.test/git"))
        .output()
        .expect("it runs");
    let commit = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    assert_eq!(commit.len(), 40, "{}", String::from_utf8_lossy(&made.stderr));
    let code = |more: &str| {
        format!(
            "[[stage]]\nname = \"code\"\nkind = \"git\"\nfrom = \"https://git.example.test/git/heavy.git\"\n\
             to = \"code\"\ncommit = \"{commit}\"\n{more}\n"
        )
    };
    let rule = check(&inputs, &code("size_max = \"1MiB\""), &[]);
    assert_eq!(rule["class"], "too-large", "{rule}");
    assert_eq!(rule["reason"], "git needs more memory than 192MiB for it", "{rule}");
    // The control: it is the memory, and not the pack.
    let rule = check(&inputs, &code("size_max = \"1GiB\""), &[]);
    assert_eq!(rule["outcome"], "fetched", "{rule}");
}

#[test]
fn the_store_gives_what_is_allowed_and_signed_for() {
    require!(Need::Root);
    let inputs = Inputs::new();
    let rules = |endpoint: &str| {
        format!(
            "[[stage]]\nname = \"o\"\nkind = \"s3\"\nfrom = \"metadata:o\"\nto = \"o\"\n\
             endpoint = \"{endpoint}\"\nallow = [\"s3://store/bucket/in/\"]\n{RECORD}"
        )
    };
    let ours = rules("https://store.example.test");
    #[rustfmt::skip]
    let cases = [
        ("s3://store/bucket/in/object.bin",        "fetched", ""),
        ("s3://store/bucket/in/none.bin",          "failed",  "store"),
        ("s3://store/bucket/out/object.bin",       "failed",  "not-allowed"),
        ("s3://store/bucket/in/../out/object.bin", "failed",  "metadata-malformed"),
        ("s3://other/bucket/in/object.bin",        "failed",  "not-allowed"),
    ];
    for (object, outcome, class) in cases {
        let rule = check(&inputs, &ours, &[("o", object)]);
        let got = rule["class"].as_str().unwrap_or_default();
        assert_eq!((rule["outcome"].as_str(), got), (Some(outcome), class), "{object}: {rule}");
    }
    let signed = |(_, target, headers): &(String, String, String)| {
        target.starts_with("/store/bucket/in/") && headers.contains("AWS4-HMAC-SHA256")
    };
    assert!(inputs.requests().iter().all(signed), "{:?}", inputs.requests());
    // No credential is sent to a store that it is not for.
    let before = inputs.requests().len();
    let rule = check(&inputs, &rules("https://other.example.test"), &[("o", cases[0].0)]);
    assert_eq!(rule["class"], "credential", "{rule}");
    assert_eq!(inputs.requests().len(), before);
}

#[test]
fn links_below_a_local_directory_lead_nowhere() {
    require!(Need::Root);
    let inputs = Inputs::new();
    let local = inputs.local.path();
    symlink("/etc/passwd", local.join("link")).expect("linked");
    symlink("/etc", local.join("up")).expect("linked");
    let rules = format!(
        "[[stage]]\nname = \"l\"\nkind = \"local\"\nfrom = \"metadata:l\"\nto = \"l\"\nallow = [{local:?}]\n"
    );
    let shown = |name: &str| format!("{}/{name}", local.display());
    for (value, outcome, class) in [
        (shown("file.txt"), "fetched", ""),
        (shown("link"), "failed", "file"),
        (shown("up/passwd"), "failed", "file"),
        (shown("../../../etc/passwd"), "failed", "metadata-malformed"),
        ("/etc/passwd".to_owned(), "failed", "not-allowed"),
    ] {
        let rule = check(&inputs, &rules, &[("l", &value)]);
        let got = rule["class"].as_str().unwrap_or_default();
        assert_eq!((rule["outcome"].as_str(), got), (Some(outcome), class), "{value}: {rule}");
    }
}

#[test]
fn a_jail_has_its_input_laid_once_and_its_replacement_once_more() {
    // A kept jail has what the session made of its input; INV-10: a jail that died has nothing.
    require!(Need::Root);
    for level in Level::here() {
        let local = tempfile::Builder::new().prefix("e2e-inputs-").tempdir_in("/var/tmp");
        let local = local.expect("a directory");
        fs::set_permissions(local.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        fs::write(local.path().join("file"), "fresh\n").expect("written");
        let rules = format!(
            "[[stage]]\nname = \"l\"\nkind = \"local\"\nfrom = \"{}/file\"\nto = \"l\"\n",
            local.path().display()
        );
        let policy = with_rules(&rules).replace("retain = \"none\"", "retain = \"20s\"");
        let server = Devserver::with("", &["--keep-results"]);
        let mut play = session(
            "comes back",
            [
                gives(bash("cat l && echo edited >l"), "fresh"),
                json!({"idle": "end_turn"}),
                json!({"wait_stopped": true}),
                json!({"message": "go on"}),
                gives(bash("cat l"), "edited"),
                // The shell's parent takes the jail with it.
                bash("kill -9 -1; sleep 1"),
                json!({"delay_ms": 500}),
                bash("cat l"),
            ],
        );
        play["message"] = json!("please");
        server.push(&play);
        let poll = Poll::at(level).policy(&policy).options(["--max-idle", "1s"]);
        let worker = poll.serve(&server);
        server.wait_done(2 * SOON);
        let ran = worker.stop().ended(0);
        passed(server.end(), &ran.stderr);
        assert_eq!(ran.events("jail.resumed").len(), 1, "{level:?}");
        let launched: Vec<&str> = ran
            .audited("jail.launched")
            .iter()
            .filter_map(|event| event["jail"].as_str())
            .collect();
        let different: std::collections::BTreeSet<&str> = launched.iter().copied().collect();
        assert_eq!(ran.audited("stage.laid").len(), different.len(), "{level:?}: {launched:?}");
    }
}
