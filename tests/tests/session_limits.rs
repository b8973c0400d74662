//! Limits that take effect during a call: the result says so in a footer, the session goes on, and
//! the audit log has the limit (INV-11; product §3.4; RUN-17, RUN-18).

use e2e::Level;
use e2e::play::{bash, expect, fails, gives, play_with, session};
use e2e::stores::with_stores;
use serde_json::{Value, json};

const SMALL: &str = r#"
schema = 1
extends = "default"

[filesystem]
workspace_size = "4MiB"
workspace_inodes = 400
tmp_size = "1MiB"

[process]
memory = "96MiB"
pids = 40
"#;

fn footer(words: &[&str]) -> Value {
    let mut contains = vec!["[jail] ", "operator policy, not a fault", "The session goes on."];
    contains.extend(words);
    json!({"is_error": true, "contains": contains})
}

#[test]
fn a_limit_that_takes_effect_is_explained_below_the_result() {
    for level in Level::here() {
        let alive = || gives(bash("echo alive"), "alive");
        let memory = "python3 -c 'x = bytearray(300 << 20)'";
        let processes = "for i in {1..80}; do sleep 3 & done";
        let mut sessions = vec![
            session(
                "disk",
                [
                    expect(
                        bash("head -c 8000000 /dev/zero > big"),
                        footer(&["/workspace is full: 4 MiB", "filesystem.workspace_size"]),
                    ),
                    gives(bash("rm big; echo room > f; cat f"), "room"),
                    expect(
                        bash("rm f; for i in {1..500}; do : > f$i || exit; done; true"),
                        json!({"contains": "workspace_inodes"}),
                    ),
                    alive(),
                ],
            ),
            session(
                "tmp",
                [
                    expect(
                        bash("head -c 8000000 /dev/zero > /tmp/big"),
                        footer(&["/tmp is full: 1 MiB", "filesystem.tmp_size"]),
                    ),
                    alive(),
                ],
            ),
        ];
        // Without root there may be no cgroup to keep these.
        if level == Level::Root {
            sessions.push(session(
                "memory",
                [
                    expect(
                        bash(memory),
                        footer(&[
                            "memory limit of 96 MiB",
                            "1 process was killed",
                            "process.memory",
                        ]),
                    ),
                    alive(),
                ],
            ));
            sessions.push(session(
                "processes",
                [
                    expect(
                        bash(processes),
                        json!({"contains": ["[jail] ", "limit of 40 processes", "process.pids"]}),
                    ),
                    gives(json!({"bash": {"restart": true, "command": "echo alive"}}), "alive"),
                ],
            ));
        }
        let played = play_with(level, "", &sessions, |poll| poll.policy(SMALL));
        let hit = played.ran.audited("limit.hit");
        let limits: Vec<&str> = hit.iter().filter_map(|one| one["limit"].as_str()).collect();
        let mut wanted = vec!["filesystem.workspace_size", "filesystem.workspace_inodes"];
        if level == Level::Root {
            wanted.extend(["process.memory", "process.pids"]);
        }
        for limit in wanted {
            assert!(limits.contains(&limit), "{limit} is not in {limits:?}");
        }
    }
}

#[test]
fn a_full_place_of_skills_or_memory_is_explained_with_the_setting_of_that_place() {
    const CONFIG: &str = "[skills]\nwritable = true\nsize = \"1MiB\"\nentries = 40\n\
        [memory]\nstore_size = \"2MiB\"\nstore_files = 30\n";
    const SERVER: &str = "[[skill]]\nid = \"s\"\nname = \"s\"\nfiles = { \"SKILL.md\" = \"x\" }\n\
        [[memory_store]]\nid = \"memstore_1\"\n";
    let fill = |place: &str| bash(&format!("head -c 8000000 /dev/zero > {place}/big"));
    let many =
        |place: &str| bash(&format!("(for i in {{1..3000}}; do : > {place}/$i || exit 1; done)"));
    let calls = [
        expect(fill("skills"), footer(&["/workspace/skills is full: 1 MiB", "(skills.size)"])),
        gives(bash("rm skills/big; echo x >skills/f && cat skills/f"), "x"),
        expect(many("skills"), footer(&["/workspace/skills has no room", "(skills.entries)"])),
        gives(bash("rm skills/[0-9]*; echo room >skills/f && cat skills/f"), "room"),
        expect(fill("/mnt/m"), footer(&["/mnt/m is full: 2 MiB", "(memory.store_size)"])),
        gives(bash("rm /mnt/m/big; echo x >/mnt/m/f && cat /mnt/m/f"), "x"),
        expect(many("/mnt/m"), footer(&["/mnt/m has no room", "(memory.store_files)"])),
        gives(bash("rm /mnt/m/[0-9]*; echo alive"), "alive"),
    ];
    for level in Level::here() {
        let mut one = with_stores("full", &[("memstore_1", "read_write", "/mnt/m")], calls.clone());
        one["skills"] = json!([{ "type": "custom", "skill_id": "s", "version": "latest" }]);
        let played = play_with(level, SERVER, &[one], |poll| {
            let file = poll.home().join("worker.toml");
            std::fs::write(&file, CONFIG).expect("written");
            poll.path("--config", &file).options(["--max-idle", "1s"])
        });
        let hit = played.ran.audited("limit.hit");
        let limits: Vec<&str> = hit.iter().filter_map(|one| one["limit"].as_str()).collect();
        let wanted = ["skills.size", "skills.entries", "memory.store_size", "memory.store_files"];
        assert_eq!(limits, wanted, "{level:?}");
    }
}

#[test]
fn a_call_without_a_limit_that_took_effect_has_no_footer() {
    let quiet = |command: &str| expect(bash(command), json!({"lacks": "[jail]"}));
    let sessions = [session(
        "quiet",
        [
            quiet("exit 3"),
            quiet("cat /etc/shadow"),
            quiet("kill -9 $$"),
            quiet("python3 -c 'import os; os.abort()'"),
            quiet("head -c 1000000 /dev/zero > f; sleep 0.1; false"),
        ],
    )];
    let played = play_with(Level::here()[0], "", &sessions, |poll| poll);
    assert_eq!(played.ran.audited("limit.hit").len(), 0);
}

#[test]
fn the_operators_limit_ends_any_call_and_the_session_goes_on() {
    // RUN-17, RUN-18.
    for level in Level::here() {
        let sessions = [session(
            "slow",
            [fails(bash("sleep 50"), "tool 'bash' timed out"), gives(bash("echo alive"), "alive")],
        )];
        play_with(level, "", &sessions, |poll| poll.options(["--tool-timeout", "1s"]));
    }
}
