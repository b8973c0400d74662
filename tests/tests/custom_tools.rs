//! The operator's own tools, in the jail and on the host (protocol TOOL-GEN-0, RUN-15, RUN-16, EV-1,
//! PERM-1; INV-1, INV-7, INV-10).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use e2e::custom::{Where, call, configured, plain, tool};
use e2e::exec::directory_of;
use e2e::play::{SOON, bash, expect, fails, gives, passed, play_with, session};
use e2e::poll::wait_for;
use e2e::{Devserver, Level, Poll, Ran};
use serde_json::{Value, json};

const BOTH: [Where; 2] = [Where::Jail, Where::Host];

/// One session with these calls at each level and in each place; `tools` makes the configuration.
fn each(tools: impl Fn(Where) -> String, calls: impl Fn(Where, Level) -> Vec<Value>) {
    for level in Level::here() {
        for place in BOTH {
            let played = play_with(
                level,
                "",
                &[session(&format!("{place:?}"), calls(place, level))],
                |poll| configured(poll, &tools(place)),
            );
            drop(played);
        }
    }
}

#[test]
fn output_errors_and_exit_codes_become_results() {
    // EV-1 and RUN-21: the development server holds results to the type and form of their call.
    let tools = |place| {
        [
            tool(place, "greet", "echo hello; echo \"[$GREETING] $0 $#\"", "environment = { GREETING = \"hi\" }"),
            tool(place, "fail", "echo out; echo err >&2; exit 3", ""),
            tool(place, "quiet", "true", ""),
            tool(place, "errors_last", "echo err >&2; sleep 0.1; echo out", ""),
            tool(place, "killed", "kill -9 $$", ""),
            tool(place, "binary", "printf 'a\\377\\376b\\0c\\033[31mred'", ""),
            tool(place, "huge", "seq 1 300000", ""),
            tool(place, "more", "seq 1 300000 | head -c 150000", "output_max = \"200KiB\""),
            "[[custom_tool]]\nname = \"missing\"\ncommand = [\"/nonexistent/program\"]\nwhere = \"jail\"\n".to_owned(),
        ]
        .concat()
    };
    each(tools, |_, _| {
        vec![
            gives(plain("greet"), "hello\n[hi] /bin/bash 0"),
            fails(plain("fail"), "out\nerr\nexit code: 3"),
            gives(plain("quiet"), "(no output)"),
            gives(plain("errors_last"), "out\nerr"),
            fails(plain("killed"), "exit code: 137"),
            gives(plain("binary"), "a\u{fffd}\u{fffd}b\0cred"),
            expect(
                plain("huge"),
                json!({"is_error": false, "bytes_max": 102_419, "bytes_min": 102_000,
                    "matches": "^\\[output truncated\\]\n(.|\n)*\n300000$"}),
            ),
            expect(plain("more"), json!({"is_error": false, "bytes_min": 149_000})),
            expect(
                plain("missing"),
                json!({"is_error": true,
                "matches": "^missing: cannot start the program: .*\nexit code: 127$"}),
            ),
            // The toolset is as ever, and so is the shell.
            gives(bash("echo $GREETING still"), "still"),
        ]
    });
}

#[test]
fn input_arrives_as_it_was_sent() {
    let odd = "\u{1F600}\u{2028}\u{feff}\u{202e}\u{0}\"\\\u{7f}é";
    let text = odd.repeat((1 << 20) / odd.len());
    let input = json!({"text": text, "nested": {"empty": null, "list": [1, 2.5, true]}});
    let bytes = input.to_string();
    let sum = {
        use std::io::Write as _;
        let mut child = std::process::Command::new("sha256sum")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("sha256sum");
        child.stdin.take().expect("piped").write_all(bytes.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("ended");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let tools = |place| {
        [
            tool(place, "sum", "sha256sum", ""),
            tool(place, "deaf", "echo not read", ""),
            tool(
                place,
                "back",
                "python3 -c 'import json,sys; print(json.dumps(json.load(sys.stdin)[\"text\"]))'",
                "result = \"json\"\noutput_max = \"1MiB\"",
            ),
        ]
        .concat()
    };
    let short = odd.repeat(100);
    each(tools, |_, _| {
        vec![
            gives(call("sum", input.clone()), &sum),
            gives(call("deaf", input.clone()), "not read"),
            gives(call("back", json!({"text": short})), &short),
            gives(call("sum", json!({})), &format!("{}  -", SUM_OF_EMPTY_OBJECT)),
        ]
    });
}

/// Of `{}`.
const SUM_OF_EMPTY_OBJECT: &str =
    "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

#[test]
fn json_becomes_content_blocks() {
    // RUN-21.
    let json_tool =
        |place, name: &str, script: &str| tool(place, name, script, "result = \"json\"");
    let pixel = r#"{"type":"image","source":{"type":"base64","media_type":"image/png","data":"iVBORw0KGgo="}}"#;
    let tools = |place| {
        [
            json_tool(place, "string", "echo '\"a b\"'"),
            json_tool(
                place,
                "blocks",
                &format!("echo '[{{\"type\":\"text\",\"text\":\"one\"}},{pixel}]'"),
            ),
            json_tool(place, "none", "echo '[]'"),
            json_tool(place, "broken", "echo '[{'"),
            json_tool(place, "number", "echo 7"),
            json_tool(place, "told", "echo '\"data\"'; echo warning >&2"),
            json_tool(place, "failed", "echo '\"data\"'; exit 1"),
            json_tool(place, "long", "head -c 200000 /dev/zero | tr '\\0' x"),
        ]
        .concat()
    };
    each(tools, |_, _| {
        vec![
            gives(plain("string"), "a b"),
            expect(plain("blocks"), json!({"is_error": false, "blocks": 2, "block": "text"})),
            gives(plain("none"), "(no output)"),
            expect(
                plain("broken"),
                json!({"is_error": true,
                "contains": "broken: its output is not a result: no JSON at line 2"}),
            ),
            fails(
                plain("number"),
                "number: its output is not a result: neither a string nor a list of content blocks",
            ),
            expect(plain("told"), json!({"is_error": false, "blocks": 2})),
            fails(plain("failed"), "\"data\"\nexit code: 1"),
            fails(plain("long"), "long: its output of 200000 bytes is longer than 102400"),
        ]
    });
}

/// Whether a process of this host has this argument.
fn runs(argument: &str) -> bool {
    fs::read_dir("/proc").expect("/proc").flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|part| part == argument.as_bytes())
    })
}

#[test]
fn a_tool_beyond_its_time_ends_with_all_its_processes() {
    let script =
        "echo part; trap '' TERM INT HUP; setsid sleep 4711.25 & sleep 4711.25 & sleep 4711.25";
    let tools = |place| {
        let left = tool(place, "leaves", "sleep 4711.75 & setsid sleep 4711.75 & echo done", "");
        tool(place, "slow", script, "timeout = \"1s\"") + &left
    };
    for level in Level::here() {
        for place in BOTH {
            let server = Devserver::with("", &["--keep-results"]);
            let slow = "part\nslow: timed out after 1s and was ended, with all it started";
            let mut calls = session(
                "slow",
                [
                    gives(bash("X=5; cd /tmp"), "(no output)"),
                    fails(plain("slow"), slow),
                    gives(bash("echo $X; pwd"), "5\n/tmp"),
                    gives(plain("leaves"), "done"),
                ],
            );
            calls["end"] = json!("open");
            server.push(&calls);
            let worker = configured(Poll::at(level), &tools(place)).serve(&server);
            worker.wait_for_events("call.ended", 4, 2 * SOON);
            assert!(!runs("4711.25"), "{level:?} {place:?}: it left something");
            // What it leaves behind lives on in the jail, as with bash; on the host nothing does.
            let soon = |holds: &dyn Fn() -> bool| wait_for(Duration::from_secs(3), holds);
            let as_it_should = match place {
                Where::Host => soon(&|| !runs("4711.75")),
                Where::Jail => soon(&|| runs("4711.75")),
            };
            assert!(as_it_should, "{level:?} {place:?}");
            worker.stop().ended(0);
            passed(server.end(), "");
            assert!(!runs("4711.75"), "INV-10: {level:?} {place:?}");
        }
    }
}

#[test]
fn longer_tools_get_the_time_that_they_were_given() {
    // RUN-17: the outer limit makes room.
    let tools = tool(Where::Host, "long", "sleep 3; echo done", "timeout = \"10s\"")
        + &tool(Where::Jail, "inside", "sleep 3; echo done", "timeout = \"2s\"");
    let calls = vec![
        gives(plain("long"), "done"),
        fails(plain("inside"), "inside: timed out after 2s and was ended, with all it started"),
    ];
    play_with(Level::here()[0], "", &[session("long", calls)], |poll| configured(poll, &tools));
}

#[test]
fn permissions_hold_and_what_is_not_ours_is_left_alone() {
    // PERM-1, RUN-16.
    for level in Level::here() {
        let marks = directory_of(level);
        fs::set_permissions(marks.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
        let script =
            format!("read input; echo x > {}/$(echo $input | tr -dc a-z)", marks.path().display());
        let tools = tool(Where::Host, "mark", &script, "");
        let mark = |name: &str| call("mark", json!({ name: 1 }));
        let with = |mut call: Value, key: &str, value: &str| {
            call[key] = json!(value);
            call
        };
        let mut foreign = with(plain("lookup_order"), "id", "order");
        foreign["unowned"] = json!(true);
        // A builtin by the name of a custom tool is not ours either.
        let mut builtin = json!({"tool": "mark", "input": {"builtin": 1}, "id": "builtin"});
        builtin["unowned"] = json!(true);
        let calls = vec![
            with(mark("denied"), "permission", "deny"),
            with(with(mark("refused"), "permission", "ask"), "id", "refused"),
            json!({"deny": "refused"}),
            with(with(mark("confirmed"), "permission", "ask"), "id", "confirmed"),
            json!({"confirm": "confirmed"}),
            with(mark("allowed"), "permission", "allow"),
            foreign,
            json!({"answer": "order", "text": "shipped"}),
            builtin,
            json!({"answer": "builtin", "text": "by another"}),
            gives(mark("last"), "(no output)"),
        ];
        let played =
            play_with(level, "", &[session("gated", calls)], |poll| configured(poll, &tools));
        let mut found: Vec<String> = fs::read_dir(marks.path())
            .expect("readable")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        found.sort();
        assert_eq!(found, ["allowed", "confirmed", "last"], "{level:?}");
        let started = played.ran.audited("call.started");
        assert_eq!(started.len(), 3, "{level:?}: {started:?}");
        let outside = played.ran.audited("tool.outside");
        assert_eq!(outside.len(), 1, "{outside:?}");
        assert_eq!((&outside[0]["tool"], &outside[0]["why"]), (&json!("mark"), &json!("a test")));
    }
}

#[test]
fn a_tool_in_the_jail_sees_the_jail_and_one_on_the_host_sees_the_host() {
    // INV-7; the tool on the host is the control.
    let outside = tempfile::Builder::new().prefix("e2e-outside-").tempdir().expect("a directory");
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let file = outside.path().join("file");
    fs::write(&file, "of the host").expect("written");
    let read = format!("cat {}", file.display());
    let tools = |place| tool(place, "read_it", &read, "") + &tool(place, "here", "pwd; id -u", "");
    each(tools, |place, level| match (place, level) {
        (Where::Jail, _) => vec![
            expect(plain("read_it"), json!({"is_error": true, "contains": "No such file"})),
            gives(plain("here"), "/workspace\n1000"),
            gives(bash("id -u"), "1000"),
        ],
        (Where::Host, Level::Rootless) => vec![
            gives(plain("read_it"), "of the host"),
            gives(plain("here"), &format!("/\n{}", Level::Rootless.uid())),
        ],
        (Where::Host, Level::Root) => vec![
            gives(plain("read_it"), "of the host"),
            // Of the control side, and so never root.
            expect(plain("here"), json!({"is_error": false, "matches": "^/\n[1-9][0-9]{4,}$"})),
        ],
    });
}

/// No other worker of this host has it; the spy's text has it in two parts.
const SPIED: &str = "sk-ant-oat01-e2e-spied-4c7b1e";

/// Looks for the key in every environment that it may read, and tries to look into its ancestors up to
/// the worker; the last lines are controls.
const SPY: &str = r#"
key=sk-ant-oat""01-e2e-spied-4c7b1e
env | grep -icE "$key|anthropic|aws_"
cat /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n' | grep -c "^ANTHROPIC_ENVIRONMENT_KEY=$key"
attach() { python3 -c "import ctypes,os,sys
c=ctypes.CDLL(None,use_errno=True); p=int(sys.argv[1])
r=c.ptrace(16,p,0,0); print('attached' if r==0 else 'refused', end=' ')
r==0 and (os.waitpid(p,0), c.ptrace(17,p,0,0))" $1; }
p=$PPID
for step in keeper executor starter worker; do
  for file in mem environ maps; do
    head -c1 /proc/$p/$file >/dev/null 2>&1 && echo "read $file of the $step"
  done
  ls /proc/$p/fd >/dev/null 2>&1 && echo "listed descriptors of the $step"
  attach $p
  last=$p
  p=$(sed -n 's/^PPid:\t//p' /proc/$p/status)
done
echo
tr '\0' ' ' < /proc/$last/cmdline | grep -c ' poll '
sleep 5 & own=$!
sleep 0.2
head -c1 /proc/$own/maps >/dev/null && echo "own child can be read"
"#;

#[test]
fn a_tool_on_the_host_has_no_credential_and_cannot_look_into_the_worker() {
    // INV-1, AUTH-10: not dumpable, so even the same user may not look.
    let want = "0\n0\nrefused refused refused refused \n1\nown child can be read";
    for level in Level::here() {
        // Without the filter, which would refuse every ptrace(2) before anybody is asked who may.
        let tools = tool(Where::Host, "spy", SPY, "timeout = \"60s\"\nseccomp = false");
        // Counting nothing is a failure to grep.
        let server = Devserver::with("", &["--environment-key", SPIED]);
        server.push(&session("spy", [gives(plain("spy"), want)]));
        let worker = configured(Poll::at(level), &tools).serve(&server);
        server.wait_done(2 * SOON);
        let ran = worker.stop().ended(0);
        passed(server.end(), &ran.stderr);
    }
}

#[test]
fn a_tool_in_the_jail_has_no_credential() {
    // INV-1; more in session_secrets, hostile_session.
    let script = "env | grep -ic anthropic; cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep -ic anthropic; ls /proc/self/fd | tr '\\n' ' '";
    for level in Level::here() {
        let tools = tool(Where::Jail, "spy", script, "");
        let calls = vec![gives(plain("spy"), "0\n0\n0 1 2 3 ")];
        play_with(level, "", &[session("spy", calls)], |poll| configured(poll, &tools));
    }
}

#[test]
fn as_root_a_tool_on_the_host_may_have_a_user_of_its_own() {
    let script = "id -u; id -g; id -G; grep -E 'NoNewPrivs|CapEff|CapBnd' /proc/self/status; umask; ulimit -c";
    let tools = tool(Where::Host, "who", script, "user = 4711\ndirectory = \"/usr\"")
        + &tool(Where::Host, "where_", "pwd", "directory = \"/usr\"")
        + &tool(Where::Host, "alone", "kill -0 $PPID 2>&1; kill -9 -1; echo never", "user = 4712");
    for level in Level::here() {
        let poll = |poll| configured(poll, &tools);
        if level == Level::Rootless {
            let server = Devserver::start();
            // Its audit log was opened and holds nothing.
            let ran = poll(Poll::at(level)).may_leave().serve(&server).wait().ended(3);
            let want = "cannot run the tool who as user 4711: the worker was started without root";
            assert!(ran.stderr.contains(want), "{}", ran.stderr);
            continue;
        }
        let zero = "0000000000000000";
        let want =
            format!("4711\n4711\n4711\nCapEff:\t{zero}\nCapBnd:\t{zero}\nNoNewPrivs:\t1\n0022\n0");
        let calls = vec![
            gives(plain("who"), &want),
            gives(plain("where_"), "/usr"),
            // It may kill what starts it, never the worker; that is an unknown outcome for it alone.
            expect(
                plain("alone"),
                json!({"is_error": true, "lacks": "never",
                "contains": "its outcome is unknown and it was not run again"}),
            ),
            expect(plain("alone"), json!({"is_error": true, "contains": "alone: not run: "})),
            gives(bash("echo on"), "on"),
        ];
        play_with(level, "", &[session("user", calls)], poll);
    }
}

fn refused(level: Level, text: &str) -> Ran {
    let server = Devserver::start();
    configured(Poll::at(level), text).options(["--check"]).serve(&server).wait().ended(3)
}

#[test]
fn a_configuration_that_cannot_work_is_refused_with_its_line() {
    let good = tool(Where::Jail, "good", "true", "");
    #[rustfmt::skip]
    let cases = [
        (tool(Where::Jail, "bash", "true", ""),               "line 2: `bash` is a tool of the toolset"),
        (format!("{good}{good}"),                             "line 7: there are two tools of the name `good`"),
        (good.replace("\"jail\"", "\"host\""),                "line 3: `good` would run outside the jail"),
        (tool(Where::Host, "a", "true", "user = 0"),          "line 6: `user` may not be root"),
        (tool(Where::Jail, "a", "true", "seccomp = false"),   "line 5: `seccomp` is for tools on the host"),
        (tool(Where::Jail, "a", "true", "comand = 1"),        "unknown field `comand`"),
        (tool(Where::Jail, "a", "true", "environment = { ANTHROPIC_API_KEY = \"sk-planted\" }"), "line 5: `ANTHROPIC_API_KEY` may hold a credential"),
    ];
    for (text, want) in cases {
        let ran = refused(Level::here()[0], &text);
        assert!(ran.stderr.contains(want), "{text}: {}", ran.stderr);
        assert!(ran.stderr.contains("hint: docs/custom-tools.md"), "{text}: {}", ran.stderr);
        assert!(!ran.stderr.contains("planted"), "INV-12");
    }
    // Other tables have pages of their own.
    for (text, page) in [
        ("[skills]\nexec = true\n", "docs/skills.md"),
        ("[memory]\nsync_interval = \"1s\"\n", "docs/memory.md"),
        ("[stage]\nsvn = 1\n", "docs/staging.md"),
        ("[skils]\n", "docs/poll.md"),
    ] {
        let ran = refused(Level::here()[0], text);
        assert!(ran.stderr.contains(&format!("hint: {page}")), "{text}: {}", ran.stderr);
    }
}

#[test]
fn check_says_what_every_tool_is_and_what_the_tables_hold() {
    // OBS-5 and INV-12: no value of an environment.
    let text = tool(Where::Jail, "lint", "true", "environment = { A = \"planted\" }")
        + &tool(Where::Host, "order", "true", "timeout = \"5s\"\noutput_max = \"16KiB\"")
        + &tool(Where::Host, "bare", "true", "seccomp = false")
        + "[memory]\nstore_files = 100\n";
    for level in Level::here() {
        let checked = |more: &[&str]| {
            let server = Devserver::start();
            let poll = configured(Poll::at(level), &text).options(["--check"]);
            poll.options(more.iter().copied()).serve(&server).wait().ended(0)
        };
        let ran = checked(&[]);
        let root = level == Level::Root;
        let group = if root { "1024 processes, 2 CPUs for each session" } else { "no cgroup" };
        for part in [
            "custom tool    lint in the jail: /bin/bash -c true; 2m, 100KiB; the limits",
            "custom tool    order on the host: /bin/bash -c true; 5s, 16KiB; 2GiB of ",
            &format!("{group}; system calls filtered"),
            &format!("{group}; no system call filter ("),
            "worker.toml:18)",
            "skills         archive_size 64MiB",
            "store_files 100",
            "stage          credential [], s3 []",
        ] {
            assert!(ran.stdout.contains(part), "{level:?}: no `{part}`: {}", ran.stdout);
        }
        let ran = checked(&["--format", "json"]);
        assert!(!ran.stdout.contains("planted"), "INV-12");
        let found: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        let config = &found["config"];
        let tools = config["custom_tools"].as_array().expect("a list");
        let of = |key: &str| tools.iter().map(|tool| tool[key].clone()).collect::<Vec<_>>();
        assert_eq!(of("name"), ["lint", "order", "bare"]);
        assert_eq!(of("where"), ["jail", "host", "host"]);
        assert_eq!(tools[0]["environment"], json!(["A"]));
        assert_eq!(tools[0]["seccomp"], json!(null));
        assert_eq!(
            (&tools[1]["timeout_ms"], &tools[1]["output_bytes_max"]),
            (&json!(5000), &json!(16384))
        );
        assert_eq!(tools[1]["seccomp"], json!({"on": true, "origin": "default"}));
        assert_eq!(tools[1]["limits"]["cgroup"], json!(root));
        assert_eq!(tools[1]["limits"]["memory_bytes"], json!(2_u64 << 30));
        let origin = tools[2]["seccomp"]["origin"].as_str().unwrap_or_default();
        assert!(tools[2]["seccomp"]["on"] == json!(false) && origin.ends_with("worker.toml:18"));
        assert_eq!(config["memory"]["store_files"], json!(100));
        assert_eq!(config["skills"]["writable"], json!(false));
        assert_eq!(config["stage"]["credential"], json!([]));
    }
}

#[test]
fn a_killed_worker_leaves_no_tool_on_the_host_running() {
    // INV-10.
    for level in Level::here() {
        let tools = tool(Where::Host, "slow", "setsid sleep 4712.5 & sleep 4712.5", "");
        let server = Devserver::start();
        let mut slow = plain("slow");
        slow["wait"] = json!(false);
        let mut open = session("slow", [slow]);
        open["end"] = json!("open");
        server.push(&open);
        let worker = configured(Poll::at(level), &tools).may_leave().serve(&server);
        assert!(wait_for(SOON, || runs("4712.5")), "{}", worker.said());
        worker.signal("KILL");
        assert!(wait_for(Duration::from_secs(5), || !runs("4712.5")), "{level:?}: still there");
        drop(worker.wait());
    }
}
