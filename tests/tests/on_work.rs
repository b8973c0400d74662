//! `worker poll --on-work`: a script serves the sessions (ONWORK-1 to ONWORK-10, RACE-22).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use e2e::custom::{Where, configured, plain, tool};
use e2e::exec::{directory_of, give};
use e2e::play::{SOON, bash, gives, passed, session};
use e2e::poll::wait_for;
use e2e::{Devserver, Level, Poll, locate};
use serde_json::{Value, json};

fn level() -> Level {
    Level::here()[0]
}

/// A script of the level's user.
fn script(level: Level, place: &Path, text: &str) -> PathBuf {
    let file = place.join("spawn.sh");
    // Not written in place: a process that forks meanwhile would hold it open (ETXTBSY).
    let fresh = place.join("spawn.new");
    fs::write(&fresh, text).expect("cannot write a script");
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).expect("cannot chmod");
    give(&fresh, level);
    fs::rename(&fresh, &file).expect("cannot put a script in place");
    file
}

/// Serves the session by `worker run` with a log and a state directory of its own.
fn serving(place: &Path) -> String {
    format!(
        "exec {} run --max-idle 2s --audit-file {dir}/$ANTHROPIC_WORK_ID.jsonl --state-dir {dir}/state\n",
        locate::worker().display(),
        dir = place.display()
    )
}

fn poll(level: Level, script: &Path) -> Poll {
    Poll::at(level).command(&["poll"]).path("--on-work", script)
}

fn holder(report: &Value, item: usize) -> &Value {
    &report["work"][item]["holders"][0]
}

#[test]
fn a_script_that_runs_the_worker_serves_sessions_side_by_side() {
    // ONWORK-1, ONWORK-2, ONWORK-3, ONWORK-4, ONWORK-5, ONWORK-6.
    for level in Level::here() {
        let place = directory_of(level);
        let dir = place.path().display();
        let text = format!(
            "#!/bin/sh\necho args:$#\nenv > {dir}/env.$ANTHROPIC_WORK_ID\n\
             cat > {dir}/item.$ANTHROPIC_WORK_ID\ntty 0>&2\n{}",
            serving(place.path())
        );
        let file = script(level, place.path(), &text);
        let server = Devserver::start();
        let mut three = session("three", [gives(bash("sleep 0.5; echo $((6 * 7))"), "42")]);
        three["copies"] = json!(3);
        server.push(&three);
        let worker = poll(level, &file)
            .options(["--drain-on-empty", "--max-sessions", "3"])
            .variable("ANTHROPIC_API_KEY", "")
            .variable("OF_THE_POLLER", "passed on")
            .variable("AWS_SECRET_ACCESS_KEY", "passed on too")
            .serve(&server);
        let ran = worker.wait().ended(0);
        let report = server.report();
        assert_eq!(ran.stdout, "", "ONWORK-4");
        assert_eq!(ran.stderr.matches("args:0").count(), 3, "{}", ran.stderr);
        for number in 1..=3 {
            let id = format!("work_{number:06}");
            let read = |name: &str| fs::read_to_string(place.path().join(name)).expect(name);
            let env = read(&format!("env.{id}"));
            let value = |name: &str| {
                let mut lines = env.lines();
                lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
            };
            assert_eq!(value("ANTHROPIC_WORK_ID").as_ref(), Some(&id));
            let session = value("ANTHROPIC_SESSION_ID").expect("a session");
            assert_eq!(value("ANTHROPIC_ENVIRONMENT_ID").as_deref(), Some("env_dev"));
            assert_eq!(value("ANTHROPIC_BASE_URL"), Some(server.base_url()));
            assert_eq!(value("ANTHROPIC_ENVIRONMENT_KEY").as_ref(), Some(&server.variables()[2].1));
            assert_eq!(value("OF_THE_POLLER").as_deref(), Some("passed on"));
            // Taken out of the worker's own environment, and given back.
            assert_eq!(value("AWS_SECRET_ACCESS_KEY").as_deref(), Some("passed on too"));
            for name in ["ANTHROPIC_API_KEY", "STOCKADE_JAIL", "STOCKADE_HIDDEN_DESCRIPTOR"] {
                assert_eq!(value(name), None, "{name}");
            }
            let item = read(&format!("item.{id}"));
            let item: Value = serde_json::from_str(&item).expect("JSON");
            assert_eq!((&item["id"], &item["data"]["id"]), (&json!(id), &json!(session)));
            let secret = value("ANTHROPIC_WORK_SECRET").expect("a secret");
            assert_eq!(item["secret"], json!(secret));
            assert!(item["started_at"].is_null(), "ONWORK-3: as the server wrote it");
            assert!(!ran.stderr.contains(&secret), "AUTH-8");
            // The one of `worker run`; the poller's comes after it and is answered by 409.
            assert_eq!(holder(&report, number - 1)["stops"][0]["force"], true, "{report}");
        }
        assert!(!ran.stderr.contains(&server.variables()[2].1), "AUTH-8");
        assert_eq!(ran.audited("item.handed_over").len(), 3);
        let ended = ran.audited("item.script_ended");
        assert!(ended.len() == 3 && ended.iter().all(|one| one["exit_code"] == 0), "{ended:?}");
        assert_eq!(ran.audited("worker.started")[0]["policy"], "none");
        passed(server.end(), &ran.stderr);
    }
}

#[test]
fn a_script_without_the_key_serves_by_the_secret_alone() {
    // ONWORK-2: a mode that omits the environment key. --on-work-jailed tells the script.
    for level in Level::here() {
        let place = directory_of(level);
        let text = format!(
            "#!/bin/sh\ntest -z \"$ANTHROPIC_ENVIRONMENT_KEY\" || exit 9\n\
             test \"$STOCKADE_JAIL\" = 1 || exit 8\n{}",
            serving(place.path())
        );
        let file = script(level, place.path(), &text);
        let server = Devserver::start();
        server.push(&session("one", [gives(bash("echo 1"), "1")]));
        let ran = poll(level, &file)
            .options(["--once", "--on-work-without-key", "--jail", "--on-work-jailed"])
            .serve(&server)
            .wait()
            .ended(0);
        assert_eq!(ran.audited("item.handed_over")[0]["with_key"], false);
        assert_eq!(ran.audited("item.script_ended")[0]["exit_code"], 0, "{}", ran.stderr);
        passed(server.end(), &ran.stderr);
    }
}

#[test]
fn a_script_that_fails_early_costs_its_item_and_not_the_poller() {
    // ONWORK-5, ONWORK-7: a stop without force, a warning, and on it goes.
    for level in Level::here() {
        let place = directory_of(level);
        let file = script(level, place.path(), "#!/bin/sh\necho out; echo err >&2; exit 7\n");
        let server = Devserver::start();
        let mut two = session("two", [bash("echo never")]);
        two["copies"] = json!(2);
        two["within_s"] = json!(1);
        server.push(&two);
        let worker = poll(level, &file).options(["--max-sessions", "1"]).serve(&server);
        worker.wait_for_events("script.failed", 2, SOON);
        let stopping = |state: &Value| {
            let items = state["work"].as_array().expect("items");
            items.iter().all(|item| item["state"] == "stopping")
        };
        server.wait_until(SOON, stopping);
        let ran = worker.stop().ended(0);
        let report = server.report();
        for item in 0..2 {
            let stops = holder(&report, item)["stops"].as_array().expect("a list");
            assert!(stops.len() == 1 && stops[0]["force"] == false, "{report}");
            assert_eq!(holder(&report, item)["heartbeats"].as_u64().unwrap_or(0), 0);
        }
        assert!(ran.stderr.contains("out\n") && ran.stderr.contains("err\n"), "{}", ran.stderr);
        assert_eq!(ran.audited("item.script_ended")[1]["exit_code"], 7);
        assert_eq!(ran.audited("item.ended")[0]["reason"], "script_ended");
    }
}

#[test]
fn a_detached_script_may_end_before_its_session() {
    // ONWORK-5 [R].
    let place = directory_of(level());
    let file = script(level(), place.path(), "#!/bin/sh\nexit 0\n");
    let server = Devserver::start();
    server.push(&session("one", [bash("echo later")]));
    let options = ["--once", "--on-work-detached"];
    let ran = poll(level(), &file).options(options).serve(&server).wait().ended(0);
    let report = server.report();
    assert_eq!(holder(&report, 0)["stops"], json!([]), "{}", ran.stderr);
    assert_eq!(ran.audited("item.handed_over")[0]["detached"], true);
}

#[test]
fn a_script_that_cannot_run_ends_the_poller_and_stops_no_item() {
    // ONWORK-8: before the first poll where that can be seen, else at the first item.
    let server = Devserver::start();
    let mut many = session("many", [bash("echo never")]);
    many["copies"] = json!(3);
    server.push(&many);
    for level in Level::here() {
        let place = directory_of(level);
        let missing = place.path().join("missing");
        let ran = poll(level, &missing).serve(&server).wait().ended(2);
        assert!(ran.stderr.contains("No such file"), "{}", ran.stderr);
        let file = script(level, place.path(), "#!/bin/sh\n");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("cannot chmod");
        let ran = poll(level, &file).serve(&server).wait().ended(2);
        assert!(ran.stderr.contains("chmod +x"), "{}", ran.stderr);
        let file = script(level, place.path(), "#!/bin/sh\n");
        let ran = poll(level, &file).options(["--jail"]).serve(&server).wait().ended(2);
        assert!(ran.stderr.contains("cannot combine --jail with --on-work"), "{}", ran.stderr);
    }
    assert_eq!(server.report()["requests"].as_object().map_or(0, |all| all.len()), 0);
    // No interpreter; an interpreter that is not there.
    for text in ["no interpreter\n", "#!/nonexistent/sh\n"] {
        let server = Devserver::start();
        server.push(&many);
        let place = directory_of(level());
        let file = script(level(), place.path(), text);
        let worker = poll(level(), &file).options(["--max-sessions", "1"]).serve(&server);
        let ran = worker.wait().ended(2);
        assert_eq!(ran.events("script.not_started").len(), 1, "{}", ran.stderr);
        let report = server.report();
        assert_eq!(holder(&report, 0)["stops"], json!([]), "{report}");
        assert_eq!(report["work"][1]["holders"].as_array().map_or(0, Vec::len), 0);
        assert!(ran.audited("item.script_ended")[0]["not_started"].is_string());
    }
}

#[test]
fn a_configuration_is_for_whoever_serves_the_sessions_and_is_never_ignored_in_silence() {
    let text = tool(Where::Host, "told", "echo of the configuration", "")
        + "[memory]\nsync_interval = \"off\"\n";
    let level = level();
    let place = directory_of(level);
    let file = script(level, place.path(), &format!("#!/bin/sh\n{}", serving(place.path())));
    // Named for the poller, it would have no effect.
    let server = Devserver::start();
    for more in [&[][..], &["--check"], &["--on-work-jailed"]] {
        let asked = configured(poll(level, &file), &text).options(more.iter().copied());
        let ran = asked.serve(&server).wait().ended(2);
        let want = "error: cannot use --config with --on-work: sessions are served by the script\n\
                    hint: give it to `worker run` in the script, or set WORKER_CONFIG";
        assert!(ran.stderr.contains(want), "{}", ran.stderr);
    }
    assert_eq!(server.report()["requests"].as_object().map_or(0, |all| all.len()), 0);
    // By the variable it is for the script, and who is told depends on whether the script is known.
    let config = place.path().join("worker.toml");
    fs::write(&config, &text).expect("written");
    give(&config, level);
    let config = config.display().to_string();
    for (more, told) in [(&[][..], 1), (&["--on-work-jailed"], 0)] {
        let server = Devserver::start();
        server.push(&session("told", [gives(plain("told"), "of the configuration")]));
        let asked = poll(level, &file).variable("WORKER_CONFIG", &config);
        let ran = asked.options(more.iter().copied()).options(["--once"]).serve(&server);
        let ran = ran.wait().ended(0);
        let unused = ran.events("config.unused");
        assert_eq!(unused.len(), told, "{}", ran.stderr);
        assert!(unused.iter().all(|event| event["tables"] == "[[custom_tool]], [memory]"));
        passed(server.end(), &ran.stderr);
        let asked = poll(level, &file).variable("WORKER_CONFIG", &config).options(["--check"]);
        let ran = asked.options(more.iter().copied()).serve(&Devserver::start()).wait().ended(0);
        let warned = ran.stderr.contains("warning: WORKER_CONFIG: [[custom_tool]], [memory]");
        assert_eq!(warned, told == 1, "{}", ran.stderr);
    }
}

/// A script that ignores requests to end, with a child that does not.
const STUBBORN: &str = "#!/bin/sh\n\
    trap 'echo asked' TERM\n\
    sh -c 'trap \"echo child asked; exit\" TERM; echo > $HOME/ready; while :; do sleep 0.05; done' &\n\
    while :; do sleep 0.1; done\n";

#[test]
fn a_script_that_does_not_end_is_killed_by_a_second_signal() {
    // ONWORK-9, SHUT-4: the group is asked, then killed; the stop is tried.
    for level in Level::here() {
        let place = directory_of(level);
        let file = script(level, place.path(), STUBBORN);
        let server = Devserver::start();
        server.push(&session("one", [bash("echo never")]));
        let worker = poll(level, &file).serve(&server);
        let ready = worker.home().join("ready");
        assert!(wait_for(SOON, || ready.exists()));
        let signalled = Instant::now();
        worker.signal("TERM");
        assert!(wait_for(SOON, || worker.said().contains("child asked")), "{}", worker.said());
        assert!(worker.runs());
        worker.signal("TERM");
        let ran = worker.wait().ended(143);
        assert!(signalled.elapsed() < Duration::from_secs(8), "{:?}", signalled.elapsed());
        assert_eq!(ran.audited("item.script_ended")[0]["signal"], 9, "{}", ran.stderr);
        let report = server.report();
        assert_eq!(holder(&report, 0)["stops"].as_array().map(Vec::len), Some(1), "{report}");
    }
}

#[test]
fn a_script_that_does_not_end_is_killed_after_half_a_minute() {
    // ONWORK-9: 30 s.
    let place = directory_of(level());
    let file = script(level(), place.path(), STUBBORN);
    let server = Devserver::start();
    server.push(&session("one", [bash("echo never")]));
    let worker = poll(level(), &file).serve(&server);
    let ready = worker.home().join("ready");
    assert!(wait_for(SOON, || ready.exists()));
    let signalled = Instant::now();
    let ran = worker.stop().ended(0);
    let took = signalled.elapsed();
    assert!(took > Duration::from_secs(29) && took < Duration::from_secs(36), "{took:?}");
    assert_eq!(ran.audited("item.script_ended")[0]["signal"], 9, "{}", ran.stderr);
    assert_eq!(holder(&server.report(), 0)["stops"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_script_ends_with_a_poller_that_was_killed() {
    // INV-10.
    for level in Level::here() {
        let place = directory_of(level);
        let text = "#!/bin/sh\necho ready > $HOME/ready\nexec sleep 77\n";
        let file = script(level, place.path(), text);
        let server = Devserver::start();
        server.push(&session("one", [bash("echo never")]));
        let worker = poll(level, &file).may_leave().serve(&server);
        let ready = worker.home().join("ready");
        assert!(wait_for(SOON, || ready.exists()));
        worker.signal("KILL");
        let ran = worker.wait();
        let left: Vec<&String> =
            ran.leftovers.iter().filter(|who| who.starts_with("process")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn the_key_is_in_the_environment_of_the_script_only_and_there_only_if_it_may() {
    // ONWORK-2, INV-1, AUTH-8, AUTH-10.
    for level in Level::here() {
        for with_key in [true, false] {
            let place = directory_of(level);
            let text = "#!/bin/sh\necho ready > $HOME/ready\nexec sleep 77\n";
            let file = script(level, place.path(), text);
            let server = Devserver::start();
            server.push(&session("one", [bash("echo never")]));
            let mut poll = poll(level, &file).options(["--log-level", "trace"]);
            if !with_key {
                poll = poll.options(["--on-work-without-key"]);
            }
            let worker = poll.serve(&server);
            let ready = worker.home().join("ready");
            assert!(wait_for(SOON, || ready.exists()));
            // It has said so, and is about to become another program.
            let named = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm"));
            let sleeps = |pid: &u32| named(pid).is_ok_and(|name| name.trim() == "sleep");
            assert!(wait_for(SOON, || worker.processes().iter().any(sleeps)));
            let key = &server.variables()[2].1;
            let mut holders = Vec::new();
            let processes = worker.processes();
            for pid in &processes {
                let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                if String::from_utf8_lossy(&read("environ")).contains(key) {
                    holders.push(String::from_utf8_lossy(&read("comm")).trim().to_owned());
                }
            }
            assert!(processes.len() >= 3, "the worker, the starter, the script: {processes:?}");
            assert_eq!(holders, if with_key { vec!["sleep"] } else { Vec::new() });
            let ran = worker.stop().ended(0);
            assert_eq!(ran.audited("item.script_ended")[0]["signal"], 15, "{}", ran.stderr);
            let log = fs::read_to_string(ran.audit_file()).expect("a log");
            for secret in [key.as_str(), "eyJhcGlfYmFzZV91cmwi", "sk-ant-req-dev-"] {
                assert!(!ran.stderr.contains(secret) && !log.contains(secret), "AUTH-8: {secret}");
            }
        }
    }
}
