//! What sessions have in their jails when a program of the library serves them: the same that `worker
//! poll` gives them. The example `furnished` against a development server (protocol §7, §8).

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use e2e::exec::{directory_of, parents};
use e2e::lab::policy_text;
use e2e::play::{SOON, bash, expect, gives, passed, session};
use e2e::poll::{verify, wait_for};
use e2e::stores::{texts, with_stores};
use e2e::{Devserver, Level, locate, lock};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A program of the library that serves, in a directory of its own.
struct Program {
    level: Level,
    home: TempDir,
    input: TempDir,
    policy: String,
    config: String,
    variables: Vec<(&'static str, &'static str)>,
}

impl Program {
    /// Its policy stages a file.
    fn at(level: Level) -> Program {
        let input = directory_of(level);
        fs::write(input.path().join("file"), "fresh\n").expect("written");
        let rule = format!(
            "[[stage]]\nname = \"case\"\nkind = \"local\"\nfrom = \"{}/file\"\nto = \"in/case\"\n",
            input.path().display()
        );
        let policy = format!("{}\n{rule}", policy_text(""));
        let (home, config, variables) = (directory_of(level), String::new(), Vec::new());
        Program { level, home, input, policy, config, variables }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn start(&self, how: &str, server: &Devserver) -> Child {
        fs::write(self.path("policy.toml"), &self.policy).expect("written");
        fs::write(self.path("config.toml"), &self.config).expect("written");
        if !self.path("outputs").exists() {
            fs::create_dir(self.path("outputs")).expect("made");
            e2e::exec::give(&self.path("outputs"), self.level);
        }
        let mut line = ["timeout", "-s", "KILL", "100"].map(str::to_owned).to_vec();
        line.extend(self.level.prefix());
        line.push(locate::example("furnished").display().to_string());
        line.push(how.to_owned());
        for name in ["policy.toml", "audit.jsonl", "outputs", "config.toml"] {
            line.push(self.path(name).display().to_string());
        }
        Command::new(&line[0])
            .args(&line[1..])
            .env_clear()
            .env("PATH", locate::SEARCH_PATH)
            .env("HOME", self.home.path())
            .env("XDG_RUNTIME_DIR", self.home.path())
            .envs(server.variables().iter().map(|(name, value)| (name, value)))
            .envs(self.variables.iter().copied())
            .current_dir(self.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("started")
    }

    /// Waits for the end of every session, then asks the program to end: what it said.
    fn ended(&self, mut program: Child, server: &Devserver) -> String {
        server.wait_done(2 * SOON);
        let number = program.id().to_string();
        let told = Command::new("kill").arg(&number).status().expect("kill");
        assert!(told.success());
        let mut said = String::new();
        program.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
        let status: ExitStatus = program.wait().expect("ended");
        assert!(status.success(), "{:?}: {status}: {said}", self.level);
        let (code, told) = verify(&self.path("audit.jsonl"));
        assert_eq!(code, Some(0), "{told}");
        said
    }

    /// Records of this kind.
    fn audited(&self, event: &str) -> Vec<Value> {
        let log = fs::read_to_string(self.path("audit.jsonl")).expect("readable");
        let records = log.lines().map(|line| serde_json::from_str(line).expect("a record"));
        records.filter(|record: &Value| record["event"] == event).collect()
    }

    /// Nothing of staging is left on the host (INV-10).
    fn left_nothing(&self) {
        let audit = fs::canonicalize(self.home.path()).expect("it is there").join("audit.jsonl.d");
        assert!(!audit.exists(), "{:?}: {}", self.level, audit.display());
        let runtime = self.path("stockade-staging");
        assert!(!runtime.exists(), "{:?}: {}", self.level, runtime.display());
    }
}

/// Three skills, of which the archive of the second arrives damaged.
const SKILLS: &str = "[[fault]]\non = \"skill_content\"\nnth = 2\ndo = \"corrupt\"\n\
    [[skill]]\nid = \"a\"\nname = \"a\"\nexecutable = [\"run\"]\n\
    files = { \"SKILL.md\" = \"A\", \"run\" = \"#!/bin/sh\\necho ran a\" }\n\
    [[skill]]\nid = \"b\"\nname = \"b\"\nfiles = { \"SKILL.md\" = \"B\" }\n\
    [[skill]]\nid = \"c\"\nname = \"c\"\nfiles = { \"SKILL.md\" = \"C\" }\n";

fn with_skills(mut session: Value, skills: &[&str]) -> Value {
    let skill = |id: &&str| json!({"type": "custom", "skill_id": id, "version": "latest"});
    session["skills"] = skills.iter().map(skill).collect();
    session
}

fn store(server: &Devserver, id: &str, memories: &Value) {
    server.dev("POST", "memory_stores", &json!({"id": id, "memories": memories}));
}

/// `sleep SECONDS`, wherever it runs.
fn sleeper(seconds: &str) -> Option<u32> {
    let words = format!("sleep\0{seconds}\0");
    fs::read_dir("/proc").expect("/proc").flatten().find_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let number = entry.file_name().to_str()?.parse().ok()?;
        (line == words.as_bytes()).then_some(number)
    })
}

/// Kills the init of the jail in which `sleep SECONDS` runs: above it are bash, its keeper, init.
fn kill_jail_of(seconds: &str) {
    let mut sleeping = None;
    assert!(wait_for(SOON, || {
        sleeping = sleeper(seconds);
        sleeping.is_some()
    }));
    let parents = parents();
    let above = |pid: u32| parents.iter().find(|(child, _)| *child == pid).expect("a parent").1;
    let init = above(above(above(sleeping.expect("it sleeps")))).to_string();
    assert!(Command::new("kill").args(["-s", "KILL", &init]).status().expect("kill").success());
}

const STORES: [(&str, &str, &str); 2] = [
    ("memstore_rw", "read_write", "/mnt/memory/notes"),
    ("memstore_ro", "read_only", "/mnt/memory/facts"),
];

#[test]
fn a_session_of_the_library_has_skills_memory_and_input_and_its_outputs_stay() {
    // SKILL-1, SKILL-3, SKILL-9, LEASE-19, MEM-3, MEM-6, MEM-31, CLI-2.
    for (level, how) in Level::here().into_iter().zip(["run", "items"]) {
        let _turn = lock::shared();
        let program = Program::at(level);
        let server = Devserver::with(SKILLS, &["--keep-results"]);
        store(&server, "memstore_rw", &json!({"/old": "1", "/gone": "1"}));
        store(&server, "memstore_ro", &json!({"/fact": "planted-fact"}));
        let calls = [
            gives(bash("ls skills; cat skills/*/SKILL.md; skills/a/run"), "a\nc\nACran a"),
            expect(
                bash("echo x > skills/a/SKILL.md"),
                json!({"is_error": true, "contains": "Read-only"}),
            ),
            gives(bash("cat in/case; echo more >> in/case; wc -l < in/case"), "fresh\n2"),
            gives(bash("cat /mnt/memory/facts/fact"), "planted-fact"),
            expect(
                bash("echo x > /mnt/memory/facts/fact"),
                json!({"is_error": true, "contains": "Read-only file system"}),
            ),
            gives(
                bash("cd /mnt/memory/notes && printf 2 > old && printf new > new && rm gone; ls"),
                "new\nold",
            ),
            gives(bash("printf done > /mnt/session/outputs/result"), "(no output)"),
        ];
        let play = with_skills(with_stores("furnished", &STORES, calls), &["a", "b", "c"]);
        let ids = server.push(&play);
        let said = program.ended(program.start(how, &server), &server);
        let kept = [texts(&server, "memstore_rw"), texts(&server, "memstore_ro")];
        passed(server.end(), &said);
        assert_eq!(kept[0], json!({"/old": "2", "/new": "new"}), "{level:?}");
        assert_eq!(kept[1], json!({"/fact": "planted-fact"}), "{level:?}");
        let output = program.path("outputs").join(&ids[0]).join("result");
        assert_eq!(fs::read_to_string(&output).expect("copied back"), "done", "{level:?}");
        let laid = program.audited("skill.laid");
        let laid: Vec<&Value> = laid.iter().map(|one| &one["skill"]).collect();
        assert_eq!(laid, [&json!("a"), &json!("c")], "{level:?}");
        let failed = program.audited("skill.failed");
        assert_eq!((failed.len(), &failed[0]["skill"]), (1, &json!("b")), "{level:?}");
        assert_eq!(program.audited("memory.mounted").len(), 2, "{level:?}");
        assert_eq!(program.audited("stage.laid").len(), 1, "{level:?}");
        assert_eq!(program.audited("session.disposed").len(), 1, "{level:?}");
        if how == "items" {
            assert_eq!(said, format!("{} Idle\n", ids[0]));
        }
        program.left_nothing();
    }
}

#[test]
fn a_jail_that_takes_the_place_of_a_lost_one_is_furnished_again() {
    // INV-9, SKILL-1, MEM-6: what was not uploaded is lost with the jail, and the store is whole.
    for (level, (how, seconds)) in
        Level::here().into_iter().zip([("items", "4716.25"), ("run", "4716.75")])
    {
        let _turn = lock::shared();
        let program = Program::at(level);
        let server = Devserver::with(&SKILLS.replace("nth = 2", "nth = 99"), &["--keep-results"]);
        store(&server, "memstore_rw", &json!({"/a": "1", "/b": "1"}));
        store(&server, "memstore_ro", &json!({"/fact": "f"}));
        let lose =
            format!("printf lost > /mnt/memory/notes/a; echo mine > in/case; sleep {seconds}");
        let look = "cat skills/a/SKILL.md skills/b/SKILL.md in/case /mnt/memory/notes/* \
                    /mnt/memory/facts/fact; printf 2 > /mnt/memory/notes/b";
        let calls = [
            expect(bash(&lose), json!({"is_error": true, "contains": "outcome is unknown"})),
            expect(
                bash(look),
                json!({"is_error": false, "matches": "^ABfresh\n11f\n\\[jail\\] The jail of this session was replaced"}),
            ),
        ];
        server.push(&with_skills(with_stores("dies", &STORES, calls), &["a", "b"]));
        let running = program.start(how, &server);
        kill_jail_of(seconds);
        let said = program.ended(running, &server);
        let kept = texts(&server, "memstore_rw");
        passed(server.end(), &said);
        assert_eq!(kept, json!({"/a": "1", "/b": "2"}), "{level:?}");
        for (event, times) in
            [("skill.laid", 4), ("memory.mounted", 4), ("stage.laid", 2), ("session.disposed", 2)]
        {
            assert_eq!(program.audited(event).len(), times, "{level:?}: {event}");
        }
    }
}

#[test]
fn a_jail_is_kept_for_an_idle_session_as_the_policy_says() {
    // SKILL-11: what was laid once is there when the session comes back, and skills are laid anew.
    let level = Level::here()[0];
    let _turn = lock::shared();
    let mut program = Program::at(level);
    program.policy = program.policy.replace("retain = \"none\"", "retain = \"30s\"");
    let server = Devserver::with(&SKILLS.replace("nth = 2", "nth = 99"), &["--keep-results"]);
    let mut play = session(
        "comes back",
        [
            gives(bash("cat in/case && echo edited > in/case"), "fresh"),
            json!({"idle": "end_turn"}),
            json!({"wait_stopped": true}),
            json!({"message": "go on"}),
            gives(bash("cat in/case skills/c/SKILL.md"), "edited\nC"),
        ],
    );
    play["message"] = json!("please");
    server.push(&with_skills(play, &["c"]));
    let said = program.ended(program.start("run", &server), &server);
    passed(server.end(), &said);
    assert_eq!(program.audited("stage.laid").len(), 1, "it was in the jail");
    assert_eq!(program.audited("skill.laid").len(), 2);
    assert_eq!(program.audited("session.disposed").len(), 1, "at the end, with a receipt");
    program.left_nothing();
}

#[test]
fn settings_of_the_configuration_file_hold() {
    // MEM-1, SKILL-3; the controls are the tests above. INV-12: no jail gets what signs requests.
    let level = Level::here()[0];
    let _turn = lock::shared();
    let mut program = Program::at(level);
    program.config =
        "[memory]\nsync_interval = \"off\"\n[skills]\nwritable = true\nrequire_digest = false\n"
            .to_owned();
    program.policy =
        program.policy.replace("pass = [", "pass = [\"AWS_SECRET_ACCESS_KEY\", \"HARMLESS\", ");
    assert!(program.policy.contains("HARMLESS"), "{}", program.policy);
    program.variables = vec![("AWS_SECRET_ACCESS_KEY", "planted-key"), ("HARMLESS", "passed")];
    let server = Devserver::with(&SKILLS.replace("nth = 2", "nth = 99"), &["--keep-results"]);
    store(&server, "memstore_rw", &json!({"/a": "1"}));
    let calls = [
        gives(bash("echo x >> skills/c/SKILL.md; cat skills/c/SKILL.md"), "Cx"),
        gives(bash("ls -A /mnt/memory 2>/dev/null | wc -l"), "0"),
        gives(bash("echo \"$HARMLESS ${AWS_SECRET_ACCESS_KEY-none}\""), "passed none"),
    ];
    server.push(&with_skills(with_stores("configured", &STORES[..1], calls), &["c"]));
    let said = program.ended(program.start("run", &server), &server);
    passed(server.end(), &said);
    assert!(program.audited("memory.mounted").is_empty());
}

/// A repository with one file; its path and its commit.
fn repository() -> (TempDir, String) {
    // Ours: git works in no directory of another user.
    let at = directory_of(Level::here()[0]);
    let script = "set -e; cd \"$1\"; export HOME=\"$1\" GIT_CONFIG_NOSYSTEM=1; git init -q .; \
        echo 'from git' >word; git add word; \
        git -c user.name=lab -c user.email=lab@example.test commit -q -m first; git rev-parse HEAD";
    let done = Command::new("sh").args(["-c", script, "sh"]).arg(at.path()).output().expect("sh");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    (at, String::from_utf8(done.stdout).expect("text").trim().to_owned())
}

#[test]
fn a_program_that_keeps_its_rights_stages_a_commit_of_git_as_the_worker_does() {
    // INV-10: repositories of ours are gone at the end, and so is what lay on a disk.
    for level in Level::here() {
        let _turn = lock::shared();
        let mut program = Program::at(level);
        let (code, commit) = repository();
        program.policy.push_str(&format!(
            "[[stage]]\nname = \"code\"\nkind = \"git\"\nfrom = \"file://{}\"\nto = \"code\"\n\
             commit = \"{commit}\"\n",
            code.path().display()
        ));
        if level == Level::Root {
            let disk = program
                .policy
                .replace("workspace_storage = \"memory\"", "workspace_storage = \"disk\"");
            assert_ne!(disk, program.policy);
            program.policy = disk;
        }
        let server = Devserver::with("", &["--keep-results"]);
        server.push(&session(
            "git",
            [gives(bash("cat code/word in/case; ls -A code"), "from git\nfresh\nword")],
        ));
        let said = program.ended(program.start("run", &server), &server);
        passed(server.end(), &said);
        let laid = program.audited("stage.laid");
        assert_eq!((laid.len(), &laid[1]["commit"]), (2, &json!(commit)), "{level:?}");
        let on_disk = program.path("audit.jsonl.d").join("staging");
        assert!(!on_disk.exists(), "{level:?}: {}", on_disk.display());
        assert!(!program.path("stockade-staging").exists(), "{level:?}");
    }
}

#[test]
fn a_session_whose_input_is_missing_is_told_so_and_runs_nothing() {
    let level = Level::here()[0];
    let _turn = lock::shared();
    let program = Program::at(level);
    fs::remove_file(program.input.path().join("file")).expect("removed");
    let mut play = session("missing", [bash("echo ran")]);
    play["calls"][0]["expect"] = json!({"is_error": true, "contains": "input `case` is missing"});
    play["end"] = json!("open");
    let server = Devserver::with("", &["--keep-results"]);
    server.push(&play);
    let running = program.start("run", &server);
    assert!(wait_for(SOON, || server.state()["sessions"][0]["answered"] == 1));
    server.dev("POST", "sessions/missing/steps", &json!([{"terminate": true}]));
    let said = program.ended(running, &server);
    passed(server.end(), &said);
    assert_eq!(program.audited("stage.failed").len(), 1);
    assert!(program.audited("call.started").is_empty());
    assert!(Path::new(&program.path("outputs")).exists());
}
