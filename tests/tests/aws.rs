//! The platform on AWS from end to end (protocol §10): a worker that signs or sends an API key, against
//! a development server that works the signatures out by itself; every source of credentials that can
//! be played on this host; and where these credentials must not be.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;

use e2e::exec::{directory_of, give};
use e2e::play::{SOON, bash, expect, gives, passed, session};
use e2e::{Devserver, Level, Need, Poll, Ran, locate, require};
use serde_json::{Value, json};
use tempfile::TempDir;

const PLATFORM: &str = "[server]\nplatform = \"aws\"\n";
const SECRET: &str = "planted-secret-9b1f7c2e4d6a";
const TOKEN: &str = "planted-token-5f0e8d7c6b1a";
const OTHER_SECRET: &str = "planted-other-0a9b8c7d6e5f";

/// Two temporary key pairs, both valid.
fn pairs() -> String {
    let pair = |id: &str, secret: &str| {
        format!(
            "[[server.aws.keys]]\naccess_key_id = \"{id}\"\nsecret_access_key = \"{secret}\"\n\
             session_token = \"{TOKEN}\"\n"
        )
    };
    format!("{PLATFORM}{}{}", pair("AKIAONE", SECRET), pair("AKIATWO", OTHER_SECRET))
}

fn document(id: &str, secret: &str, expiration: &str) -> Value {
    json!({"Version": 1, "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z",
        "AccessKeyId": id, "SecretAccessKey": secret, "SessionToken": TOKEN, "Token": TOKEN,
        "Expiration": expiration})
}

fn on_aws(level: Level) -> Poll {
    let poll = Poll::at(level).options(["--platform", "aws"]);
    // A machine of AWS that runs these tests has endpoints of its own.
    poll.variable("AWS_EC2_METADATA_DISABLED", "true")
}

/// The key pair comes from elsewhere.
fn without_pair(poll: Poll) -> Poll {
    let names = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
    names.iter().fold(poll, |poll, name| poll.variable(name, ""))
}

/// One session with two calls; the worker is stopped afterwards.
fn served(server: Devserver, poll: Poll) -> (Value, Ran) {
    server.push(&session("one", [gives(bash("echo 1"), "1"), gives(bash("echo 2"), "2")]));
    let worker = poll.serve(&server);
    server.wait_done(SOON);
    let ran = worker.stop().ended(0);
    let report = passed(server.end(), &ran.stderr);
    (report, ran)
}

/// A directory that every user can look into.
fn open_place() -> TempDir {
    let place = TempDir::new().expect("a directory");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("cannot chmod");
    place
}

fn file(place: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
    let path = place.join(name);
    fs::write(&path, text).expect("cannot write");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("cannot chmod");
    path
}

#[test]
fn a_session_is_served_with_signatures() {
    // AWS-1, AWS-2, AWS-3, AWS-5, AWS-7, UNK-16: whatever the secret of the item says. Attempts that
    // are repeated are signed again.
    let faults = "[[fault]]\non = \"session\"\ndo = \"503\"\nretry_after_ms = 1200\n\
                  [[fault]]\non = \"send\"\ndo = \"503\"\n";
    for level in Level::here() {
        let server = Devserver::with(&format!("{PLATFORM}{faults}"), &["--ttl", "2"]);
        let mut slow = session("slow", [gives(bash("sleep 3; echo done"), "done")]);
        slow["secret"] = json!("none");
        server.push(&slow);
        let (report, ran) = served(server, on_aws(level));
        let used = &report["credentials"];
        assert!(used["platform"].as_u64() > Some(10), "{used}");
        assert_eq!(used["sessions_token"], Value::Null, "AWS-7: {used}");
        assert!(report["requests"]["heartbeat"]["count"].as_u64() > Some(2), "API-3 with a query");
        assert!(ran.events("work.secret_without_token").is_empty());
    }
}

#[test]
fn a_session_is_served_with_an_api_key() {
    // AWS-1, AWS-4, AUTH-7, UNK-16: by variable and file, in either header.
    for level in Level::here() {
        for (by_file, bearer) in [(false, false), (true, false), (true, true)] {
            let server = Devserver::with(PLATFORM, &[]);
            let key = server.state()["aws_api_key"].as_str().expect("a key").to_owned();
            let mut poll = on_aws(level);
            if by_file {
                let path = file(&poll.home(), "key", &format!("{key}\n"), 0o600);
                give(&path, level);
                poll = poll.path("--aws-api-key-file", &path);
            } else {
                poll = poll.variable("ANTHROPIC_AWS_API_KEY", &key);
            }
            if bearer {
                poll = poll.options(["--aws-api-key-header", "bearer"]);
            }
            let (report, ran) = served(server, poll);
            assert_eq!(report["aws_keys"], json!({}), "AWS-4: nothing is signed");
            assert!(!ran.stderr.contains(&key), "AUTH-8");
        }
    }
}

#[test]
fn a_script_serves_with_the_credentials_that_the_worker_was_started_with() {
    // ONWORK-2, AWS-7: they are in no environment of the worker, and are kept back on demand.
    for level in Level::here() {
        let place = directory_of(level);
        let dir = place.path().display();
        let text = format!(
            "#!/bin/sh\ntest -n \"$AWS_SECRET_ACCESS_KEY\" || exit 9\nexec {} run --platform aws \
             --max-idle 2s --audit-file {dir}/item.jsonl --state-dir {dir}/state\n",
            locate::worker().display(),
        );
        let script = file(place.path(), "spawn.sh", &text, 0o755);
        give(&script, level);
        let poll =
            || on_aws(level).command(&["poll"]).path("--on-work", &script).options(["--once"]);
        let server = Devserver::with(&pairs(), &[]);
        server.push(&session("one", [gives(bash("echo 1"), "1")]));
        let ran = poll().serve(&server).wait().ended(0);
        assert_eq!(ran.audited("item.script_ended")[0]["exit_code"], 0, "{}", ran.stderr);
        assert!(!ran.stderr.contains("planted"), "AUTH-8: {}", ran.stderr);
        passed(server.end(), &ran.stderr);
        let server = Devserver::with(&pairs(), &[]);
        server.push(&session("one", [bash("echo 1")]));
        let ran = poll().options(["--on-work-without-key"]).serve(&server).wait().ended(0);
        assert_eq!(ran.audited("item.script_ended")[0]["exit_code"], 9, "{}", ran.stderr);
    }
}

#[test]
fn a_webhook_has_the_platform_asked_for_work() {
    // HOOK-8, AWS-5: what is asked when a delivery is missing is signed too.
    let level = Level::here()[0];
    let server = Devserver::with(&pairs(), &[]);
    server.push(&session("one", [gives(bash("echo 1"), "1")]));
    let poll = on_aws(level).command(&["serve", "--jail"]).options(["--safety-poll", "1s"]);
    let poll = poll.options(["--listen", "127.0.0.1:0"]);
    let key = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    let worker = poll.variable("ANTHROPIC_WEBHOOK_SIGNING_KEY", key).serve(&server);
    server.wait_done(SOON);
    let ran = worker.stop().ended(0);
    passed(server.end(), &ran.stderr);
}

/// Whether a text is in what a process can write to. A process that is gone holds nothing.
fn memory_holds(pid: u32, text: &str) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let Ok(memory) = fs::File::open(format!("/proc/{pid}/mem")) else { return false };
    let ranges = maps.lines().filter_map(|line| {
        let (range, rights) = line.split_once(' ')?;
        let (from, to) = range.split_once('-').filter(|_| rights.starts_with("rw"))?;
        Some((u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?))
    });
    let mut page = vec![0; 4096 + text.len()];
    ranges.into_iter().any(|(from, to)| {
        (from..to).step_by(4096).any(|at| {
            let got = memory.read_at(&mut page, at).unwrap_or_default();
            page[..got].windows(text.len()).any(|bytes| bytes == text.as_bytes())
        })
    })
}

/// Whether a descriptor of a process leads to something of this name.
fn has_open(pid: u32, name: &str) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut places = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    places.any(|place| place.to_string_lossy().contains(name))
}

#[test]
fn credentials_of_aws_are_in_no_environment_and_in_no_jail() {
    require!(Need::Root);
    // AWS-8, INV-1, AUTH-8: not even if a policy passes them on. A region does pass.
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../policies/default.toml");
    let shipped = fs::read_to_string(shipped).expect("a policy");
    let names = ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_REGION"];
    let policy = shipped.replace("pass = [\"TERM\"]", &format!("pass = {names:?}"));
    assert_ne!(policy, shipped, "the policy must pass something on");
    let look = "env | grep -c -e planted -e AKIA; grep -ac -e planted -e AKIA /proc/[0-9]*/environ | \
                grep -vc ':0$'; echo region $AWS_REGION";
    for level in Level::here() {
        let server = Devserver::with(&pairs(), &[]);
        let mut play = session("looks", [bash(look), json!({"bash": "sleep 33", "wait": false})]);
        play["calls"][0] = expect(bash(look), json!({"text": "0\n0\nregion us-east-1"}));
        play["end"] = json!("open");
        server.push(&play);
        let worker = on_aws(level).policy(&policy).serve(&server);
        let began = || worker.audited().iter().filter(|one| one["event"] == "call.started").count();
        assert!(e2e::poll::wait_for(SOON, || began() == 2), "{}", worker.said());
        let processes = worker.processes();
        assert!(processes.len() >= 5, "{processes:?}");
        let control = worker.pid();
        assert!(memory_holds(control, SECRET), "the control: the search finds it where it must be");
        for pid in &processes {
            assert!(*pid == control || !memory_holds(*pid, SECRET), "INV-1: memory of {pid}");
            assert!(!has_open(*pid, "hidden-variables"), "INV-1: a descriptor of {pid}");
            for name in ["environ", "cmdline"] {
                let bytes = fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
                let text = String::from_utf8_lossy(&bytes);
                assert!(!text.contains("planted"), "INV-1: {name} of {pid}: {text}");
            }
        }
        server.dev("POST", "sessions/looks/steps", &json!([{"terminate": true}]));
        server.wait_done(SOON);
        let ran = worker.stop().ended(0);
        let report = passed(server.end(), &ran.stderr);
        assert!(report["aws_keys"]["AKIAONE"].as_u64() > Some(5), "the control: they were used");
        assert!(!ran.stderr.contains("planted"), "AUTH-8: {}", ran.stderr);
        assert!(!fs::read_to_string(ran.audit_file()).expect("a log").contains("planted"));
    }
}

#[test]
fn a_credential_process_gives_credentials_and_they_are_renewed_before_they_expire() {
    // AWS-5: the first pair is good for 9 s, what follows is another pair.
    for level in Level::here() {
        let place = open_place();
        let first = document("AKIAONE", SECRET, "@").to_string();
        let second = document("AKIATWO", OTHER_SECRET, "2099-01-01T00:00:00Z").to_string();
        let flag = place.path().join("asked");
        let script = format!(
            "#!/bin/sh\nif mkdir {} 2>/dev/null; then echo '{first}' | sed \"s/@/$(date -u -d '+9 sec' \
             +%FT%TZ)/\"; else echo '{second}'; fi\n",
            flag.display()
        );
        let script = file(place.path(), "process", &script, 0o755);
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).expect("cannot chmod");
        let config = format!("[profile p]\ncredential_process = {}\n", script.display());
        let config = file(place.path(), "config", &config, 0o644);
        let server = Devserver::with(&pairs(), &[]);
        server.push(&session("long", [gives(bash("sleep 11; echo 1"), "1")]));
        let poll = without_pair(on_aws(level)).options(["--aws-profile", "p"]);
        let poll = poll.variable("AWS_CONFIG_FILE", &config.display().to_string());
        let (report, _) = served(server, poll);
        let used = &report["aws_keys"];
        assert!(used["AKIAONE"].as_u64() > Some(2) && used["AKIATWO"].as_u64() > Some(2), "{used}");
        assert_eq!(report["requests"]["poll"]["statuses"]["403"], Value::Null, "{report:#}");
    }
}

#[test]
fn a_process_that_the_default_chain_finds_gives_credentials() {
    // AWS-4: of the profile that AWS_PROFILE selects.
    for level in Level::here() {
        let place = open_place();
        let pair = document("AKIATWO", OTHER_SECRET, "2099-01-01T00:00:00Z").to_string();
        let script = file(place.path(), "process", &format!("#!/bin/sh\necho '{pair}'\n"), 0o755);
        let config = format!("[profile p]\ncredential_process = {} planted\n", script.display());
        let config = file(place.path(), "config", &config, 0o644);
        let poll = without_pair(on_aws(level)).variable("AWS_PROFILE", "p");
        let poll = poll.variable("AWS_CONFIG_FILE", &config.display().to_string());
        let (report, ran) = served(Devserver::with(&pairs(), &[]), poll);
        assert!(report["aws_keys"]["AKIATWO"].as_u64() > Some(5), "{}", report["aws_keys"]);
        assert!(!ran.stderr.contains("planted"), "AUTH-8: its arguments may be secret");
    }
}

/// Answers like the metadata service of AWS and its container endpoint, and counts requests.
fn metadata() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let token = head.to_lowercase().contains("x-aws-ec2-metadata-token: t0ken");
            let pair = document("AKIATWO", OTHER_SECRET, "2099-01-01T00:00:00Z").to_string();
            let (status, body) = match path {
                "/latest/api/token" => ("200 OK", "t0ken".to_owned()),
                "/creds" => ("200 OK", pair),
                _ if !path.contains("/iam/security-credentials") => {
                    ("404 Not Found", String::new())
                }
                _ if !token => ("401 Unauthorized", String::new()),
                _ if path.ends_with("/role") => ("200 OK", pair),
                _ => ("200 OK", "role".to_owned()),
            };
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\nx-aws-ec2-metadata-token-ttl-seconds: \
                 21600\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            // A client that has gone is no matter.
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    port
}

#[test]
fn the_endpoints_of_machines_and_containers_give_credentials() {
    // AWS-4: the end of the default chain; asked for directly, whatever proxy there is.
    let level = Level::here()[0];
    let port = metadata();
    let container = format!("http://127.0.0.1:{port}/creds");
    let machine = format!("http://127.0.0.1:{port}");
    for (name, value, disabled) in [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", container, "true"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", machine, "false"),
    ] {
        let poll = without_pair(on_aws(level)).variable(name, &value);
        let poll = poll.variable("AWS_EC2_METADATA_DISABLED", disabled);
        let poll = poll.variable("NO_PROXY", "").variable("https_proxy", "http://127.0.0.1:9");
        let (report, _) = served(Devserver::with(&pairs(), &[]), poll);
        assert!(report["aws_keys"]["AKIATWO"].as_u64() > Some(5), "{name}: {}", report["aws_keys"]);
    }
}

#[test]
fn a_static_profile_in_a_private_file_is_read_before_rights_are_given_up() {
    // AWS-4, AWS-8: a file of the caller that the unprivileged user could not open.
    for level in Level::here() {
        let poll = without_pair(on_aws(level)).options(["--aws-profile", "p"]);
        let text = format!(
            "[p]\naws_access_key_id = AKIAONE\naws_secret_access_key = {SECRET}\n\
             aws_session_token = {TOKEN}\n"
        );
        let path = file(&poll.home(), "credentials", &text, 0o600);
        give(&path, level);
        let shown = path.display().to_string();
        let poll = poll.variable("AWS_SHARED_CREDENTIALS_FILE", &shown);
        let (report, _) = served(Devserver::with(&pairs(), &[]), poll);
        assert!(report["aws_keys"]["AKIAONE"].as_u64() > Some(5), "{}", report["aws_keys"]);
    }
}

/// Puts a file in the place of another at once.
fn exchange(path: &Path, text: &str, level: Level) {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text).expect("cannot write");
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).expect("cannot chmod");
    give(&fresh, level);
    fs::rename(&fresh, path).expect("cannot rename");
}

#[test]
fn sighup_reads_files_of_credentials_again_and_the_old_ones_stay_if_it_cannot() {
    // AWS-4, AWS-8, AUTH-8: a profile with static keys, and an API key. With SIGHUP work goes on after
    // the old one is refused; without it the worker ends (POLL-5).
    let static_keys = |id: &str, secret: &str| {
        format!(
            "[p]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n\
             aws_session_token = {TOKEN}\n"
        )
    };
    for level in Level::here() {
        for (api_key, asks) in [(false, true), (true, true), (false, false), (true, false)] {
            let (script, old, new, nonsense) = if api_key {
                (PLATFORM.to_owned(), "key-one".to_owned(), "key-two".to_owned(), String::new())
            } else {
                let (one, two) =
                    (static_keys("AKIAONE", SECRET), static_keys("AKIATWO", OTHER_SECRET));
                (pairs(), one, two, "[p]\nregion = x\n".to_owned())
            };
            let server = Devserver::with(&script, &[]);
            server.dev("POST", "aws", &json!({"api_keys": ["key-one", "key-two"]}));
            let poll = without_pair(on_aws(level));
            let path = poll.home().join("credentials");
            exchange(&path, &old, level);
            let poll = if api_key {
                poll.path("--aws-api-key-file", &path)
            } else {
                let poll = poll.options(["--aws-profile", "p"]);
                poll.variable("AWS_SHARED_CREDENTIALS_FILE", &path.display().to_string())
            };
            let worker = poll.serve(&server);
            let play = |name: &str| {
                server.push(&session(name, [gives(bash("echo 1"), "1")]));
                server.wait_done(SOON);
            };
            play("before");
            if asks {
                exchange(&path, &nonsense, level);
                worker.signal("HUP");
                worker.wait_for_event("platform.not_reloaded", SOON);
                play("with the old one");
            }
            exchange(&path, &new, level);
            if asks {
                worker.signal("HUP");
                worker.wait_for_event("platform.reloaded", SOON);
            }
            let two = json!({"access_key_id": "AKIATWO", "secret_access_key": OTHER_SECRET,
                "session_token": TOKEN});
            server.dev("POST", "aws", &json!({"keys": [two], "api_keys": ["key-two"]}));
            if !asks {
                worker.wait().ended(4);
                continue;
            }
            play("with the new one");
            let ran = worker.stop().ended(0);
            let report = passed(server.end(), &ran.stderr);
            if !api_key {
                let used = &report["aws_keys"];
                let often = |id: &str| used[id].as_u64() > Some(4);
                assert!(often("AKIAONE") && often("AKIATWO"), "{used}");
            }
            let reloaded = ran.audited("config.reloaded");
            let of = |what: &str| reloaded.iter().filter(|event| event["what"] == what).count();
            assert_eq!((of("platform-credential"), of("network-rules")), (1, 2));
            for secret in [SECRET, OTHER_SECRET, TOKEN, "key-one", "key-two"] {
                assert!(!ran.stderr.contains(secret), "AUTH-8: {}", ran.stderr);
            }
        }
    }
}

#[test]
fn keys_of_the_environment_are_fixed_and_sighup_says_nothing_of_them() {
    // AWS-4.
    let server = Devserver::with(PLATFORM, &[]);
    let worker = on_aws(Level::here()[0]).serve(&server);
    worker.wait_for_event("poll.starting", SOON);
    worker.signal("HUP");
    worker.wait_for_event("policy.reloaded", SOON);
    let ran = worker.stop().ended(0);
    for event in ["platform.reloaded", "platform.not_reloaded"] {
        assert!(ran.events(event).is_empty(), "{event}: {}", ran.stderr);
    }
}

/// Variables, the exit code, and a part of what is said.
type Case<'a> = (&'a [(&'a str, &'a str)], i32, &'a str);

#[test]
fn what_is_missing_or_wrong_is_said_before_anything_is_claimed() {
    // AWS-2, AWS-3, AWS-4, AUTH-9, CLI-3.
    let level = Level::here()[0];
    let nowhere = ("AWS_CONFIG_FILE", "/nonexistent");
    #[rustfmt::skip]
    let cases: &[Case<'_>] = &[
        (&[("AWS_REGION", "")],                        2, "no AWS region given"),
        (&[("ANTHROPIC_AWS_WORKSPACE_ID", "")],        2, "no workspace id given"),
        (&[("AWS_SECRET_ACCESS_KEY", "")],             2, "half of an AWS key pair is missing: AWS_SECRET_ACCESS_KEY"),
        (&[("ANTHROPIC_API_KEY", "sk-ant-api03-x")],   9, "ANTHROPIC_API_KEY is set"),
        (&[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")], 3, "cannot find AWS credentials"),
        (&[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", ""), nowhere], 3, "cannot read the AWS configuration from /nonexistent"),
    ];
    for (variables, code, text) in cases {
        let server = Devserver::with(PLATFORM, &[]);
        let poll =
            variables.iter().fold(on_aws(level), |poll, (name, value)| poll.variable(name, value));
        let ran = poll.serve(&server).wait().ended(*code);
        assert!(ran.stderr.contains(text), "{variables:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("hint: "), "{}", ran.stderr);
        assert_eq!(server.end().report["requests"], json!({}), "nothing was asked");
    }
}

#[test]
fn a_clock_that_is_wrong_is_named_as_the_reason() {
    // AWS-5, POLL-5.
    let server = Devserver::with(&format!("{PLATFORM}[server.aws]\nclock_ahead_s = 3600\n"), &[]);
    let ran = on_aws(Level::here()[0]).serve(&server).wait().ended(4);
    let told = ran.events("aws.clock_skew");
    assert_eq!(told.len(), 1, "{}", ran.stderr);
    let skew = told[0]["skew_s"].as_u64().expect("seconds");
    assert!((3590..=3610).contains(&skew), "{skew}");
    assert_eq!(server.end().report["requests"]["poll"]["statuses"]["403"], 1);
}

#[test]
fn the_platform_has_no_list_and_takes_no_environment_key() {
    // AWS-1, AWS-6, AUTH-12.
    let server = Devserver::with(PLATFORM, &[]);
    let key = server.state()["aws_api_key"].as_str().expect("a key").to_owned();
    let ask = |path: &str, credential: (&str, &str), workspace: &str| {
        let headers = [
            credential,
            ("anthropic-workspace-id", workspace),
            ("anthropic-version", "2026-10-21"),
            ("anthropic-beta", "managed-agents-2026-04-01"),
        ];
        server.request("GET", path, &headers, "").0
    };
    let (own, bearer) = (("x-api-key", key.as_str()), ("authorization", "Bearer sk-ant-oat01-x"));
    let (list, stats) = ("/v1/environments/env_dev/work", "/v1/environments/env_dev/work/stats");
    assert_eq!(ask(stats, own, "wrkspc_dev"), 200, "the control");
    assert_eq!(ask(list, own, "wrkspc_dev"), 403);
    assert_eq!(ask(stats, own, "wrkspc_other"), 400);
    assert_eq!(ask(stats, bearer, "wrkspc_dev"), 403);
    let report = server.end().report;
    let kinds: Vec<&str> = report["violations"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["kind"].as_str())
        .collect();
    assert_eq!(kinds, ["credential_misuse", "bad_workspace", "bearer"]);
}
