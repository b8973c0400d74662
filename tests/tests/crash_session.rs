//! kill -9 of any process of a session, at moments that matter: nothing is left, nothing runs twice,
//! the model is told what is not known, and every call has one result. INV-9, INV-10.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use e2e::custom::{Where, tool};
use e2e::session::Processes;
use e2e::site::{Site, Worker, signal};
use e2e::{Level, Need, lock, require};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);

/// With skills, and so a jail with a porter.
fn skills() -> Value {
    json!([{ "type": "custom", "skill_id": "s", "version": "latest" }])
}

/// What [`Site::new`] makes, and a skill on its server.
fn site(level: Level) -> Site {
    let site = Site::new(level);
    let skill = json!({ "id": "s", "name": "s", "files": { "SKILL.md": "planted" } });
    site.server.dev("POST", "skills", &skill);
    site
}

/// Milliseconds between two calls, for a kill in a call.
const PAUSE: u64 = 500;
/// For a kill between them, which must not come late.
const IDLE: u64 = 1_500;

/// A call, a pause, a call that can be met while it runs, and a look at what came of it.
fn script(name: &str, pause: u64) -> Value {
    json!({
        "name": name, "message": "x", "within_s": 25, "skills": skills(),
        "calls": [
            { "bash": "rm -f log; mark=set; echo ready" },
            { "delay_ms": pause },
            { "bash": "echo ran >>log; sleep 0.7; echo done" },
            { "bash": "grep -c ran log; echo mark=$mark; cat skills/s/SKILL.md" },
        ]
    })
}

/// The results of the only session with this name, one text for each call.
fn results(site: &Site, name: &str) -> Vec<String> {
    let report = site.server.report();
    let sessions = report["sessions"].as_array().cloned().unwrap_or_default();
    let session = sessions.iter().find(|session| session["name"] == name).expect("it was pushed");
    let calls = session["calls"].as_array().cloned().unwrap_or_default();
    for call in &calls {
        assert_eq!(call["reposts"], 0, "INV-9: one result for each call: {call}");
    }
    calls.iter().map(|call| call["result"].to_string()).collect()
}

/// Calls that have a result, of all sessions.
fn answers(site: &Site) -> usize {
    let report = site.server.report();
    let sessions = report["sessions"].as_array().cloned().unwrap_or_default();
    let calls_of = |session: &Value| session["calls"].as_array().cloned().unwrap_or_default();
    let calls = sessions.iter().flat_map(calls_of);
    calls.filter(|call| call["answered_us"].is_u64()).count()
}

fn answered(site: &Site, calls: usize) {
    site.server.wait_until(LIMIT, |_| answers(site) >= calls);
}

/// Lines of the host's file: never two.
fn ran(site: &Site) -> usize {
    let text = fs::read_to_string(site.workdir().join("log")).unwrap_or_default();
    text.lines().filter(|line| *line == "ran").count()
}

fn violations(site: &Site) -> Vec<String> {
    let report = site.server.report();
    let all = report["violations"].as_array().cloned().unwrap_or_default();
    all.iter().map(Value::to_string).collect()
}

type Victim = (&'static str, fn(&Processes) -> u32);

/// With each of these the jail ends, and the worker goes on.
const OF_THE_JAIL: [Victim; 5] = [
    ("launcher of the jail", |found| found.jail_launcher),
    ("init", |found| found.init),
    ("executor", |found| found.executor),
    ("porter", |found| found.porter.expect("a session with skills has one")),
    ("keeper", |found| found.keeper),
];

fn killed_jails_are_replaced(level: Level) {
    let _turn = lock::alone();
    let site = site(level);
    let worker = site.start("only", &[]);
    let mut count = 0;
    for (who, victim) in OF_THE_JAIL {
        for busy in [false, true] {
            let name = format!("{who} {}", if busy { "in a call" } else { "idle" });
            site.server.push(&script(&name, if busy { PAUSE } else { IDLE }));
            answered(&site, count + 1);
            let found = worker.session();
            if busy {
                worker.runs("sleep");
            }
            signal(victim(&found), "-KILL");
            answered(&site, count + 3);
            count += 3;
            let texts = results(&site, &name);
            let what = format!("{level:?}, {name} killed: {texts:#?}");
            let (second, third) = (&texts[1], &texts[2]);
            if busy {
                assert!(second.contains("its outcome is unknown"), "INV-9 {what}");
                assert!(third.contains("replaced by a fresh one"), "{what}");
            } else {
                assert!(second.contains("done"), "a call that was not sent is run: {what}");
                assert!(second.contains("replaced by a fresh one"), "{what}");
            }
            assert!(!third.contains("mark=set"), "{what}");
            assert!(third.contains("planted"), "a fresh jail has the skills too: {what}");
            assert!(ran(&site) <= 1, "INV-9 {what}");
            let gone = || worker.all().iter().all(|pid| *pid != found.init && *pid != found.bash);
            worker.wait_for("the end of the old jail", || gone().then_some(()));
            site.server.wait_done(LIMIT);
        }
    }
    let left = worker.stop();
    assert!(left.is_empty(), "INV-10 {level:?}: {left:?}");
    assert_eq!(site.leftovers(), [""; 0], "INV-10 {level:?}");
    assert_eq!(violations(&site), [""; 0], "{level:?}");
    // One for the killed jail and one for that which replaced it. What a launcher has removed it says,
    // though its jail ended by itself: only of its own end nobody knows.
    let receipts = site.receipts();
    let unknown =
        |receipt: &&Value| receipt["removed"]["items"].as_array().is_none_or(Vec::is_empty);
    let unknown: Vec<_> = receipts.iter().filter(unknown).collect();
    let jails = 2 * 2 * OF_THE_JAIL.len();
    assert_eq!((receipts.len(), unknown.len()), (jails, 2), "INV-10 {level:?}: {unknown:#?}");
}

#[test]
fn a_jail_that_is_killed_is_replaced_as_root() {
    require!(Need::Root);
    killed_jails_are_replaced(Level::Root);
}

#[test]
fn a_jail_that_is_killed_is_replaced_without_root() {
    killed_jails_are_replaced(Level::Rootless);
}

/// When the worker is killed, and the fault of the server that makes the moment.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Moment {
    Idle,
    InACall,
    BeforeThePost,
    AfterThePost,
}

fn kill_and_start_again(level: Level, launcher: bool, moment: Moment) {
    let site = site(level);
    let fault = match moment {
        Moment::BeforeThePost => Some("hang"),
        Moment::AfterThePost => Some("hang-after"),
        _ => None,
    };
    if let Some(fault) = fault {
        site.server.fault(&json!({ "on": "send", "do": fault, "nth": 2, "times": 1 }));
    }
    let pause = if moment == Moment::Idle { IDLE } else { PAUSE };
    site.server.push(&script("one", pause));
    let first = site.start("first", &[]);
    answered(&site, 1);
    let found = first.session();
    match moment {
        Moment::Idle => {}
        Moment::InACall => drop(first.runs("sleep")),
        Moment::BeforeThePost | Moment::AfterThePost => {
            first.runs("sleep");
            sleep(Duration::from_millis(1100));
        }
    }
    signal(if launcher { found.launcher } else { found.control }, "-KILL");
    let what = format!(
        "{level:?}, {} killed at {moment:?}",
        if launcher { "launcher" } else { "control" }
    );
    let log = first.log.clone();
    let left = first.ended();
    assert!(left.is_empty(), "INV-10 {what}: {left:?}");
    let second = site.start("second", &[]);
    if launcher {
        // The worker says what it knows, claims nothing more and ends; its item is handed back.
        answered(&site, 2);
        let texts = results(&site, "one");
        assert!(texts[1].contains("outcome is unknown"), "INV-9 {what}: {texts:#?}");
        let said = std::fs::read_to_string(log).unwrap_or_default();
        assert!(said.contains("the launcher is gone"), "{what}: {said}");
        assert!(second.stop().is_empty(), "INV-10 {what}");
        assert!(ran(&site) <= 1, "INV-9 {what}");
        assert_eq!(site.leftovers(), [""; 0], "INV-10 {what}");
        return;
    }
    answered(&site, 3);
    let texts = results(&site, "one");
    let interrupted = &texts[1];
    match moment {
        Moment::Idle => assert!(interrupted.contains("done"), "{what}: {texts:#?}"),
        Moment::InACall => {
            assert!(interrupted.contains("outcome is unknown"), "{what}: {texts:#?}")
        }
        _ => {
            let known = interrupted.contains("done") || interrupted.contains("outcome is unknown");
            assert!(known, "{what}: {texts:#?}");
        }
    }
    assert!(ran(&site) <= 1, "INV-9 {what}");
    site.server.wait_done(LIMIT);
    let left = second.stop();
    assert!(left.is_empty(), "INV-10 {what}: {left:?}");
    assert!(ran(&site) <= 1, "INV-9 {what}");
    assert_eq!(site.leftovers(), [""; 0], "INV-10 {what}");
    assert_eq!(violations(&site), [""; 0], "{what}");
}

fn every_moment(level: Level) {
    let _turn = lock::alone();
    for moment in [Moment::Idle, Moment::InACall, Moment::BeforeThePost, Moment::AfterThePost] {
        kill_and_start_again(level, false, moment);
    }
    kill_and_start_again(level, true, Moment::InACall);
}

#[test]
fn a_worker_that_is_killed_goes_on_when_it_is_started_again_as_root() {
    require!(Need::Root);
    every_moment(Level::Root);
}

#[test]
fn a_worker_that_is_killed_goes_on_when_it_is_started_again_without_root() {
    every_moment(Level::Rootless);
}

/// With a tool on the host in the middle of a call. A worker without its launcher ends by itself.
const WITH_A_TOOL_ON_THE_HOST: [(&str, &[Victim]); 4] = [
    ("control", &[("control", |found| found.control)]),
    ("launcher", &[("launcher", |found| found.launcher)]),
    ("launcher of the jail", &[("launcher of the jail", |found| found.jail_launcher)]),
    (
        "control and launcher",
        &[("control", |found| found.control), ("launcher", |found| found.launcher)],
    ),
];

/// Processes of this host with this argument.
fn with_argument(argument: &str) -> Vec<String> {
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let named = all.filter(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|part| part == argument.as_bytes())
    });
    named.map(|entry| entry.path().display().to_string()).collect()
}

fn killed_with_a_tool_on_the_host(level: Level) {
    let _turn = lock::alone();
    let place = e2e::exec::directory_of(level);
    let config = place.path().join("worker.toml");
    let slow = "setsid sleep 4715.5 & sleep 4715.5";
    fs::write(&config, tool(Where::Host, "slow", slow, "")).expect("written");
    e2e::exec::give(&config, level);
    let options = ["--config", &config.display().to_string()];
    for (who, victims) in WITH_A_TOOL_ON_THE_HOST {
        let site = Site::new(level);
        site.server.push(&json!({ "name": who, "message": "x", "within_s": 25, "calls": [
            { "bash": "echo ready" },
            { "custom": "slow", "input": {} },
            { "bash": "echo on" },
        ] }));
        let first = site.start("first", &options);
        answered(&site, 1);
        let found = first.session();
        first.wait_for("the tool", || (with_argument("4715.5").len() == 2).then_some(()));
        for (_, victim) in victims {
            signal(victim(&found), "-KILL");
        }
        let what = format!("INV-10 {level:?}, {who} killed");
        let gone = || with_argument("4715.5").is_empty().then_some(());
        first.wait_for("the end of the tool", gone);
        let mut left = Vec::new();
        let last = if who == "launcher of the jail" {
            // The worker goes on, and what was left goes before the next jail is made.
            first
        } else {
            left.extend(first.ended());
            if who == "control" {
                assert_eq!(site.leftovers(), [""; 0], "{what}: its launcher clears up");
            }
            if who == "control and launcher" && level == Level::Root {
                // Here nobody is left who could.
                let sweep = Command::new(e2e::locate::worker()).arg("sweep").output();
                assert!(sweep.expect("it runs").status.success(), "{what}");
                assert_eq!(site.leftovers(), [""; 0], "{what}: after `worker sweep`");
            }
            site.start("second", &options)
        };
        answered(&site, if who == "launcher" { 2 } else { 3 });
        let texts = results(&site, who);
        assert!(texts[1].contains("outcome is unknown"), "INV-9 {what}: {texts:#?}");
        left.extend(last.stop());
        assert!(left.is_empty(), "{what}: {left:?}");
        assert_eq!(with_argument("4715.5"), [""; 0], "{what}");
        assert_eq!(site.leftovers(), [""; 0], "{what}");
    }
}

#[test]
fn a_tool_on_the_host_does_not_outlive_whoever_is_killed_as_root() {
    require!(Need::Root);
    killed_with_a_tool_on_the_host(Level::Root);
}

#[test]
fn a_tool_on_the_host_does_not_outlive_whoever_is_killed_without_root() {
    killed_with_a_tool_on_the_host(Level::Rootless);
}

#[test]
fn a_killed_shell_or_file_helper_costs_its_call_only() {
    let _turn = lock::alone();
    for level in Level::here() {
        let site = Site::new(level);
        let worker = site.start("only", &[]);
        site.server.push(&json!({ "name": "one", "message": "x", "calls": [
            { "bash": "for i in 1 2 3 4 5 6; do yes aaaaaaaaaaaaaaaa | head -c 9000000 >f$i; done" },
            { "grep": "(a|aa)*(b|c|aab)*z" },
            { "bash": "echo still; sleep 1" },
            { "read": { "file_path": "f1", "view_range": [1, 1] } },
            { "bash": "sleep 2; echo fresh" },
        ] }));
        answered(&site, 1);
        let found = worker.session();
        let helper = worker.wait_for("a file helper", || {
            let parents = e2e::exec::parents();
            parents.iter().find(|(_, of)| *of == found.executor).map(|(pid, _)| *pid)
        });
        signal(helper, "-KILL");
        worker.runs("sleep");
        signal(found.bash, "-KILL");
        answered(&site, 4);
        worker.runs("sleep");
        let same = worker.session();
        answered(&site, 5);
        let texts = results(&site, "one");
        assert!(texts[1].contains("its outcome is unknown"), "{level:?}: {texts:#?}");
        assert!(texts[2].contains("was restarted"), "{level:?}: {texts:#?}");
        assert!(texts[3].contains("aaaa") && texts[4].contains("fresh"), "{level:?}: {texts:#?}");
        assert_eq!((same.executor, same.keeper), (found.executor, found.keeper), "{level:?}");
        assert!(worker.stop().is_empty(), "INV-10 {level:?}");
        assert_eq!(site.leftovers(), [""; 0], "INV-10 {level:?}");
    }
}

/// Steps that a session's jail takes otherwise than that of `worker exec`.
const STEPS: &[&str] = &[
    "clone-payload",
    "proc",
    "places",
    "verify-tree",
    "executor",
    "porter",
    "running",
    "kill",
    "remove",
];

fn field(pid: u32, name: &str) -> String {
    e2e::exec::status_field(pid, name).unwrap_or_default()
}

/// Every process of a worker that stopped at a step, and the one that stopped.
fn stopped(worker: &Worker) -> (Vec<u32>, u32) {
    worker.wait_for("a stop at the step", || {
        let all = worker.all();
        let at = all.iter().copied().find(|pid| field(*pid, "Name:").starts_with("at-"))?;
        Some((all, at))
    })
}

/// Kills one process of a session that is stopped at `step`, then the worker; what is left after the
/// next start, which must serve another session.
fn crash(level: Level, step: &str, victim: usize) -> Vec<String> {
    let site = site(level);
    let session = |name: &str| {
        let calls = json!([{ "bash": "cat skills/s/SKILL.md" }]);
        json!({ "name": name, "message": "x", "skills": skills(), "calls": calls })
    };
    site.server.push(&session("one"));
    let worker = site.start("first", &["--halt-at", step]);
    let (all, at) = stopped(&worker);
    let pid = [all[0], all[1], at][victim];
    if pid == at {
        // A worker that lives would make another jail, and have that stop at the step as well.
        signal(all[0], "-KILL");
    }
    signal(pid, "-KILL");
    sleep(Duration::from_millis(30));
    // The worker would wait for the one that is stopped.
    signal(all[0], "-KILL");
    for other in &all[1..] {
        // The first process of a namespace waits where others stop, and cannot go on.
        let waits = field(*other, "Name:").starts_with("at-") && field(*other, "State:") == "S";
        signal(*other, if waits { "-KILL" } else { "-CONT" });
    }
    let mut left = worker.ended();
    let second = site.start("second", &[]);
    let before = answers(&site);
    site.server.push(&session("two"));
    answered(&site, before + 1);
    left.extend(second.stop());
    left.extend(site.leftovers());
    let who = ["control", "launcher", "the stopped process"][victim];
    left.iter().map(|what| format!("INV-10 {level:?}: `{step}`, {who} killed: {what}")).collect()
}

fn crash_at_every_step(level: Level) {
    let _turn = lock::alone();
    let victims = STEPS.iter().flat_map(|step| (0..3).map(move |victim| (step, victim)));
    let wrong: Vec<String> =
        victims.flat_map(|(step, victim)| crash(level, step, victim)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_session_killed_at_any_step_leaves_nothing_after_the_next_start_as_root() {
    require!(Need::Root);
    crash_at_every_step(Level::Root);
}

#[test]
fn a_session_killed_at_any_step_leaves_nothing_after_the_next_start_without_root() {
    crash_at_every_step(Level::Rootless);
}
