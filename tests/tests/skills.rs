//! Skills from the control plane into the jail (SKILL-1 to SKILL-13, LEASE-19, RACE-3, RACE-17, UNK-1):
//! every kind of archive, hostile ones, ones that fail, and what a session can do with them.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::play::{Played, SOON, bash, expect, gives, passed, play_with, session};
use e2e::{Devserver, Level, Need, Poll, require};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A session with these skills, in their latest versions.
fn with_skills(skills: &[&str], calls: impl IntoIterator<Item = Value>) -> Value {
    let mut session = session("skilled", calls);
    let skill = |id: &&str| json!({"type": "custom", "skill_id": id, "version": "latest"});
    session["skills"] = skills.iter().map(skill).collect();
    session
}

/// Uses a configuration file with this text.
fn config(poll: Poll, text: &str) -> Poll {
    let file = poll.home().join("worker.toml");
    fs::write(&file, text).expect("cannot write a configuration");
    poll.path("--config", &file)
}

/// The members of an archive, made by Python: `(name, kind, mode, content)`; kinds are `file`, `dir`,
/// `link`, `hard`, `fifo` and `device`.
fn archive(format: &str, members: &Value) -> String {
    const MAKE: &str = r#"
import base64, io, json, stat, sys, tarfile, zipfile
form, members = sys.argv[1], json.load(sys.stdin)
out = io.BytesIO()
kinds = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "link": stat.S_IFLNK, "fifo": stat.S_IFIFO,
         "device": stat.S_IFCHR}
if form == "zip":
    with zipfile.ZipFile(out, "w") as z:
        for name, kind, mode, content in members:
            info = zipfile.ZipInfo(name)
            info.filename = name
            info.create_system = 3
            info.external_attr = (kinds[kind] | mode) << 16
            z.writestr(info, content)
else:
    types = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "link": tarfile.SYMTYPE,
             "hard": tarfile.LNKTYPE, "fifo": tarfile.FIFOTYPE, "device": tarfile.CHRTYPE}
    with tarfile.open(fileobj=out, mode="w") as t:
        for name, kind, mode, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.devmajor, info.devminor = types[kind], mode, 0, 1, 3
            data = content.encode()
            if kind == "file":
                info.size = len(data)
                t.addfile(info, io.BytesIO(data))
            else:
                info.linkname = content
                t.addfile(info)
print(base64.b64encode(out.getvalue()).decode())
"#;
    let mut child = Command::new("python3")
        .args(["-c", MAKE, format])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("cannot run python3");
    let input = child.stdin.take().expect("a pipe");
    serde_json::to_writer(input, members).expect("cannot write");
    let output = child.wait_with_output().expect("cannot wait for python3");
    assert!(output.status.success(), "python3 cannot make a {format} of {members}");
    String::from_utf8(output.stdout).expect("base64").trim().to_owned()
}

fn skill(id: &str, archive: &str) -> String {
    format!("[[skill]]\nid = \"{id}\"\nname = \"{id}\"\narchive_base64 = \"{archive}\"\n")
}

/// A skill of plain files.
fn plain(id: &str, text: &str) -> String {
    format!("[[skill]]\nid = \"{id}\"\nname = \"{id}\"\nfiles = {{ \"SKILL.md\" = \"{text}\" }}\n")
}

/// `(skill, reason)` of those that failed, and the ids of those that were laid.
fn told(played: &Played) -> (Vec<(String, String)>, Vec<String>) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let failed = played.ran.audited("skill.failed");
    let failed = failed.iter().map(|one| (text(&one["skill"]), text(&one["reason"]))).collect();
    let laid = played.ran.audited("skill.laid");
    (failed, laid.iter().map(|one| text(&one["skill"])).collect())
}

const FORMATS: [&str; 5] = ["zip", "tar", "tgz", "tbz", "txz"];

/// One skill of each kind of archive, called after it.
fn each_format() -> String {
    let one = |format: &str| {
        format!(
            "[[skill]]\nid = \"skill_{format}\"\nversion = \"v_{format}\"\nname = \"{format}\"\n\
             format = \"{format}\"\nexecutable = [\"run.sh\"]\n\
             files = {{ \"SKILL.md\" = \"I am {format}\", \"run.sh\" = \"#!/bin/sh\\necho ran {format}\", \
             \"a/b/c.txt\" = \"deep\" }}\n"
        )
    };
    FORMATS.map(one).concat()
}

#[test]
fn skills_of_every_kind_of_archive_can_be_read_and_run_and_not_changed() {
    // SKILL-1, SKILL-4, SKILL-5, SKILL-8, SKILL-9, AUTH-5, HDR-2.
    let read_only =
        |call: Value| expect(call, json!({"is_error": true, "matches": "(?i)read-only"}));
    let calls = [
        gives(
            bash("ls skills; cat skills/*/SKILL.md | head -c 8"),
            "tar\ntbz\ntgz\ntxz\nzip\nI am tar",
        ),
        gives(
            bash("for f in zip tar tgz tbz txz; do skills/$f/run.sh; done"),
            "ran zip\nran tar\nran tgz\nran tbz\nran txz",
        ),
        gives(
            bash("cd skills; stat -c %a zip/SKILL.md txz/run.sh tgz/a/b; cat tbz/a/b/c.txt; cd .."),
            "644\n755\n700\ndeep",
        ),
        gives(json!({"read": "skills/zip/SKILL.md"}), "I am zip"),
        read_only(bash("echo x > skills/zip/SKILL.md")),
        read_only(bash("touch skills/new")),
        read_only(bash("rm -r skills/zip")),
        read_only(bash("mv skills/zip skills/other")),
        read_only(bash("chmod 777 skills/zip/SKILL.md")),
        // RACE-17: the place itself cannot be replaced either.
        expect(bash("mv skills elsewhere"), json!({"is_error": true})),
        expect(bash("rm -rf skills"), json!({"is_error": true})),
        expect(
            json!({"write": {"file_path": "skills/zip/SKILL.md", "content": "x"}}),
            json!({"is_error": true}),
        ),
        gives(json!({"read": "skills/zip/SKILL.md"}), "I am zip"),
        gives(bash("cp -r skills/zip mine && echo x > mine/SKILL.md && cat mine/SKILL.md"), "x"),
    ];
    let skills = FORMATS.map(|format| format!("skill_{format}"));
    let skills: Vec<&str> = skills.iter().map(String::as_str).collect();
    for level in Level::here() {
        let sessions = [with_skills(&skills, calls.clone())];
        let played = play_with(level, &each_format(), &sessions, |poll| poll);
        let laid = played.ran.audited("skill.laid");
        assert_eq!(laid.len(), 5, "{:?}", played.ran.stderr);
        let first = laid[0];
        assert_eq!(
            (&first["skill"], &first["version"], &first["directory"], &first["files"]),
            (&json!("skill_zip"), &json!("v_zip"), &json!("zip"), &json!(3))
        );
        assert_eq!(first["archive"]["sha256"].as_str().map(str::len), Some(64), "{first}");
        assert_eq!((played.requests("skill"), played.requests("skill_content")), (5, 5));
        let calls = played.ran.audited("call.started");
        assert!(laid[4]["seq"].as_u64() < calls[0]["seq"].as_u64(), "before the first call");
    }
}

#[test]
fn what_the_official_worker_lays_out_is_laid_out_alike() {
    // SKILL-1, SKILL-2, SKILL-3, SKILL-5, SKILL-8, SKILL-9, SKILL-13; tests/tests/official_workers.rs.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/official-skills.toml");
    let script = fs::read_to_string(script).expect("readable");
    for level in Level::here() {
        let played = play_with(level, &script, &[], |poll| poll.options(["--max-idle", "2s"]));
        assert_eq!((played.requests("skill"), played.requests("skill_content")), (9, 8));
    }
}

#[test]
fn a_session_may_change_its_own_copy_where_the_operator_allows_it() {
    // The control of the read-only place; and two sessions have a copy each.
    let change = |text: &str| {
        let command = format!("echo {text} >> skills/a/SKILL.md; sleep 1; cat skills/a/SKILL.md");
        with_skills(&["a"], [gives(bash(&command), &format!("one{text}"))])
    };
    for level in Level::here() {
        let sessions = [change("two"), change("three")];
        let played = play_with(level, &plain("a", "one"), &sessions, |poll| {
            config(poll, "[skills]\nwritable = true\n")
        });
        assert_eq!(played.ran.audited("skill.laid").len(), 2);
    }
}

#[test]
fn without_skills_there_is_no_directory_of_skills() {
    // SKILL-4.
    let sessions = [session("plain", [gives(bash("ls"), "(no output)")])];
    play_with(Level::here()[0], "", &sessions, |poll| poll);
}

#[test]
fn one_failing_skill_of_three_leaves_the_others_and_the_session_alone() {
    // SKILL-3, LEASE-19, SKILL-2.
    let faults = "[[fault]]\non = \"skill_content\"\nnth = 2\ndo = \"corrupt\"\n";
    let bad_name = "[[skill]]\nid = \"d\"\nname = \"../d\"\nfiles = { \"SKILL.md\" = \"d\" }\n";
    let script = [faults, &plain("a", "A"), &plain("b", "B"), &plain("c", "C"), bad_name].concat();
    for level in Level::here() {
        let calls = [gives(bash("ls -A skills; ls -A"), "a\nc\nskills")];
        let sessions = [with_skills(&["a", "b", "none", "d", "c"], calls)];
        let played = play_with(level, &script, &sessions, |poll| poll);
        let (failed, laid) = told(&played);
        let failed: Vec<_> = failed.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(failed, [("b", "archive"), ("none", "not_found"), ("d", "name")]);
        assert_eq!(laid, ["a", "c"]);
        assert_eq!(played.ran.events("skill.failed").len(), 3, "{}", played.ran.stderr);
    }
}

#[test]
fn of_two_skills_with_one_name_the_later_one_stays() {
    // SKILL-13, and SKILL-3: what cannot be unpacked leaves what was there.
    let same = |id: &str, text: &str| {
        format!("[[skill]]\nid = \"{id}\"\nname = \" same \"\nfiles = {{ \"{text}\" = \"\" }}\n")
    };
    let broken = "[[skill]]\nid = \"c\"\nname = \"same\"\narchive_base64 = \"UEsDBA==\"\n";
    let script = [&same("a", "first"), &same("b", "second"), broken].concat();
    let calls = [gives(bash("ls -A skills skills/same"), "skills:\nsame\n\nskills/same:\nsecond")];
    let played =
        play_with(Level::here()[0], &script, &[with_skills(&["a", "b", "c"], calls)], |poll| poll);
    assert_eq!(told(&played), (vec![("c".into(), "archive".into())], vec!["a".into(), "b".into()]));
}

#[test]
fn a_hostile_archive_reaches_nothing() {
    // SKILL-6, SKILL-7, SKILL-9, INV-7, INV-12.
    require!(Need::Tool("python3"));
    let good = json!(["x/SKILL.md", "file", 0o644, "good"]);
    let refused: &[(&str, &str, Value)] = &[
        ("zip_dots", "zip", json!([good, ["x/../../../evil", "file", 0o644, "e"]])),
        ("tar_dots", "tar", json!([good, ["../\u{202e}evil\u{200b}", "file", 0o644, "e"]])),
        ("zip_root", "zip", json!([good, ["/workspace/evil", "file", 0o644, "e"]])),
        ("tar_root", "tar", json!([good, ["/workspace/evil", "file", 0o644, "e"]])),
        ("zip_back", "zip", json!([good, ["x\\..\\..\\evil", "file", 0o644, "e"]])),
        ("tar_back", "tar", json!([good, ["..\\evil", "file", 0o644, "e"]])),
    ];
    let taken: &[(&str, &str, Value)] = &[
        (
            "zip_links",
            "zip",
            json!([good, ["x/l", "link", 0o777, "/etc/passwd"], ["x/p", "fifo", 0o644, ""]]),
        ),
        (
            "tar_links",
            "tar",
            json!([
                good,
                ["x/l", "link", 0o777, "/workspace"],
                ["x/l/evil", "file", 0o644, "e"],
                ["x/h", "hard", 0o644, "/etc/passwd"],
                ["x/d", "device", 0o666, ""],
                ["x/p", "fifo", 0o644, ""]
            ]),
        ),
        ("tar_modes", "tar", json!([good, ["x/s", "file", 0o6777, "s"]])),
    ];
    let mut script: Vec<String> = refused
        .iter()
        .chain(taken)
        .map(|(id, format, members)| skill(id, &archive(format, members)))
        .collect();
    script.push(skill("garbage", "Tm8gYXJjaGl2ZSBhdCBhbGwu"));
    let ids = refused.iter().chain(taken).map(|(id, _, _)| *id);
    let ids: Vec<&str> = ids.chain(["garbage"]).collect();
    let calls = [
        gives(
            bash("ls -A skills; find / -xdev -name evil 2>/dev/null; find skills -name evil"),
            "tar_links\ntar_modes\nzip_links\nskills/tar_links/l/evil",
        ),
        gives(
            bash(
                "cd skills; find . ! -type f ! -type d; find . -perm /6022; cat */SKILL.md; cd ..",
            ),
            "goodgoodgood",
        ),
        gives(
            bash("stat -c %a skills/tar_modes/s; ls -d skills/*/h 2>&1 | tail -c 26"),
            "755\nNo such file or directory",
        ),
    ];
    for level in Level::here() {
        let played =
            play_with(level, &script.concat(), &[with_skills(&ids, calls.clone())], |poll| poll);
        let (failed, laid) = told(&played);
        let reasons: Vec<&str> = failed.iter().map(|(_, reason)| reason.as_str()).collect();
        assert_eq!(reasons, ["archive"; 7], "{failed:?}");
        assert_eq!(laid, ["zip_links", "tar_links", "tar_modes"]);
        // The author's names are not for the log, and their invisible characters even less.
        let log = &played.ran.stderr;
        assert!(log.contains("a member of the archive"), "{log}");
        for planted in ["evil", "\u{202e}", "\u{200b}", "\\u{202e}", "\\u202e", "SKILL.md"] {
            assert!(!log.contains(planted), "{planted} is in the log: {log}");
        }
        let skipped: Vec<&Value> =
            played.ran.audited("skill.laid").into_iter().map(|laid| &laid["skipped"]).collect();
        assert_eq!(skipped, [&json!(2), &json!(4), &json!(0)]);
    }
}

#[test]
fn bounds_of_archives_hold_and_say_so() {
    // SKILL-10, INV-11.
    require!(Need::Tool("python3"));
    let many: Vec<Value> = (0..60).map(|n| json!([format!("x/{n}"), "file", 0o644, ""])).collect();
    let large = json!([["x/large", "file", 0o644, "x".repeat(300_000)]]);
    let script = [
        skill("many", &archive("tar", &json!(many))),
        skill("large", &archive("zip", &large)),
        skill("heavy", &archive("tar", &json!([["x/h", "file", 0o644, "y".repeat(900_000)]]))),
        plain("small", "s"),
    ];
    let calls = [gives(bash("ls -A skills"), "small")];
    let sessions = [with_skills(&["many", "large", "heavy", "small"], calls)];
    let played = play_with(Level::here()[0], &script.concat(), &sessions, |poll| {
        config(poll, "[skills]\nentries = 50\nsize = \"256KiB\"\narchive_size = \"512KiB\"\n")
    });
    let (failed, _) = told(&played);
    let reasons: Vec<&str> = failed.iter().map(|(_, reason)| reason.as_str()).collect();
    assert_eq!(reasons, ["archive", "archive", "too_large"]);
}

#[test]
fn every_file_of_a_skill_runs_where_the_operator_wants_that() {
    // SKILL-9.
    let script =
        "[[skill]]\nid = \"a\"\nname = \"a\"\nfiles = { \"run\" = \"#!/bin/sh\\necho ran\" }\n";
    for (text, call) in [
        ("", expect(bash("skills/a/run"), json!({"is_error": true, "contains": "denied"}))),
        ("[skills]\nforce_executable = true\n", gives(bash("skills/a/run"), "ran")),
    ] {
        let sessions = [with_skills(&["a"], [call])];
        play_with(Level::here()[0], script, &sessions, |poll| config(poll, text));
    }
}

#[test]
fn a_pinned_skill_whose_archive_differs_is_refused() {
    let script = [plain("a", "A"), plain("b", "B")].concat();
    let list = ["a", "b"];
    let first = play_with(
        Level::here()[0],
        &script,
        &[with_skills(&list, [gives(bash("ls skills"), "a\nb")])],
        |poll| poll,
    );
    let digest = first.ran.audited("skill.laid")[0]["archive"]["sha256"].clone();
    let digest = digest.as_str().expect("a digest").to_owned();
    let other = digest.chars().rev().collect::<String>();
    for (a, required, shown, reasons) in [
        (&digest, false, "a\nb", vec![]),
        (&digest, true, "a", vec!["not_pinned"]),
        (&other, false, "b", vec!["digest"]),
    ] {
        let text = format!(
            "[skills]\nrequire_digest = {required}\n[skills.digests]\n\"a@skillver_1\" = \"{a}\"\n"
        );
        let sessions = [with_skills(&list, [gives(bash("ls skills"), shown)])];
        let played = play_with(Level::here()[0], &script, &sessions, |poll| config(poll, &text));
        let (failed, _) = told(&played);
        let got: Vec<&str> = failed.iter().map(|(_, reason)| reason.as_str()).collect();
        assert_eq!(got, reasons, "{text}");
    }
}

#[test]
fn an_epoch_version_is_found_in_the_shape_of_its_time() {
    // UNK-1, HDR-3.
    let script = "[[skill]]\nid = \"a\"\nname = \"a\"\nepoch = \"1759178010641129\"\n\
                  files = { \"SKILL.md\" = \"old\" }\n";
    let mut session = session("old", [gives(bash("cat skills/a/SKILL.md"), "old")]);
    session["skills"] = json!([{"type": "custom", "skill_id": "a", "version": "1759178010641129"}]);
    let played = play_with(Level::here()[0], script, &[session], |poll| poll);
    let laid = played.ran.audited("skill.laid");
    assert_eq!(laid[0]["version"], "1759178010641129");
    assert_eq!(played.requests("skill"), 2);
}

#[test]
fn a_directory_of_skills_that_the_operator_has_stays_as_it_was() {
    // SKILL-11, SKILL-13.
    for (level, exists) in
        Level::here().into_iter().flat_map(|level| [(level, true), (level, false)])
    {
        let workdir = TempDir::new().expect("a directory");
        let skills = workdir.path().join("skills");
        if exists {
            fs::create_dir_all(skills.join("a")).expect("made");
            fs::write(skills.join("a/SKILL.md"), "mine").expect("written");
            fs::write(skills.join("own.txt"), "own").expect("written");
        }
        let owned = Command::new("chown")
            .args(["-R", &format!("{0}:{0}", level.uid())])
            .arg(workdir.path())
            .status();
        assert!(owned.expect("cannot run chown").success());
        let calls =
            [gives(bash("cat skills/a/SKILL.md; ls skills; echo result > out.txt"), "theirsa")];
        play_with(level, &plain("a", "theirs"), &[with_skills(&["a"], calls)], |poll| {
            poll.path("--workdir", workdir.path())
        });
        let read = |name: &str| fs::read_to_string(workdir.path().join(name)).ok();
        assert_eq!(read("out.txt").as_deref(), Some("result\n"), "{level:?}");
        if exists {
            assert_eq!(read("skills/a/SKILL.md").as_deref(), Some("mine"), "{level:?}");
            assert_eq!(read("skills/own.txt").as_deref(), Some("own"), "{level:?}");
            assert_eq!(fs::read_dir(&skills).expect("there").count(), 2);
        } else {
            assert!(!skills.exists(), "{level:?}: nothing of a skill is copied back");
        }
    }
}

#[test]
fn a_link_in_the_place_of_skills_leads_nowhere() {
    // SKILL-2, RACE-17: what an earlier session left in a directory of the operator's.
    for level in Level::here() {
        let workdir = TempDir::new().expect("a directory");
        let (work, other) = (workdir.path().join("work"), workdir.path().join("other"));
        for path in [&work, &other] {
            fs::create_dir(path).expect("made");
        }
        std::os::unix::fs::symlink(&other, work.join("skills")).expect("linked");
        let owned = Command::new("chown")
            .args(["-Rh", &format!("{0}:{0}", level.uid())])
            .arg(workdir.path())
            .status();
        assert!(owned.expect("cannot run chown").success());
        let calls = [expect(bash("cat skills/a/SKILL.md"), json!({"contains": "No such file"}))];
        let sessions = [with_skills(&["a"], calls)];
        let played = play_with(level, &plain("a", "theirs"), &sessions, |poll| {
            poll.path("--workdir", &work)
        });
        // LEASE-19: the session has its tools all the same.
        assert_eq!(told(&played), (vec![("a".into(), "place".into())], vec![]), "{level:?}");
        assert_eq!(fs::read_dir(&other).expect("there").count(), 0, "{level:?}");
        let link = fs::read_link(work.join("skills")).expect("still a link");
        assert_eq!(link, other, "{level:?}");
    }
}

#[test]
fn a_download_that_outlives_the_lease_is_kept_alive_by_heartbeats() {
    // RACE-3, LEASE-1.
    let script = [
        "[server]\nttl_seconds = 4\n[[fault]]\non = \"skill_content\"\ndo = \"trickle\"\nms = 500\n",
        &plain("a", "slow"),
    ]
    .concat();
    let sessions = [with_skills(&["a"], [gives(bash("cat skills/a/SKILL.md"), "slow")])];
    let played = play_with(Level::here()[0], &script, &sessions, |poll| poll);
    assert_eq!(played.report["work"].as_array().map(Vec::len), Some(1));
    let holder = &played.report["work"][0]["holders"][0];
    assert!(holder["heartbeats"].as_u64() >= Some(4), "{holder}");
    assert_eq!(holder["lost_us"], Value::Null, "{holder}");
}

#[test]
fn a_download_ends_with_the_lease_and_leaves_nothing() {
    // SKILL-12, RACE-4: the item comes again, and its skill is whole.
    let script = [
        "[server]\nttl_seconds = 6\n\
         [[fault]]\non = \"skill_content\"\ndo = \"trickle\"\nms = 2000\n\
         [[fault]]\non = \"heartbeat\"\nnth = 2\ndo = \"lost\"\n",
        &plain("a", "whole"),
    ]
    .concat();
    for level in Level::here() {
        let sessions = [with_skills(&["a"], [gives(bash("cat skills/*/SKILL.md"), "whole")])];
        let played = play_with(level, &script, &sessions, |poll| poll);
        assert_eq!(played.ran.audited("skill.laid").len(), 1);
        assert_eq!(played.ran.audited("lease.lost").len(), 1);
        assert_eq!(played.requests("skill_content"), 2);
        let (launched, disposed) =
            (played.ran.audited("jail.launched"), played.ran.audited("session.disposed"));
        assert_eq!((launched.len(), disposed.len()), (2, 2), "each jail has its receipt");
        assert!(played.ran.elapsed < Duration::from_secs(30), "forty seconds were not waited for");
    }
}

#[test]
fn a_worker_that_is_stopped_while_a_skill_arrives_ends_at_once_and_leaves_nothing() {
    // SKILL-12, SHUT-3, INV-10.
    let script =
        ["[[fault]]\non = \"skill_content\"\ndo = \"trickle\"\nms = 2000\n", &plain("a", "slow")]
            .concat();
    for level in Level::here() {
        let server = Devserver::with(&script, &[]);
        server.push(&with_skills(&["a"], [bash("true")]));
        let worker = Poll::at(level).serve(&server);
        worker.wait_for_event("jail.running", SOON);
        let ran = worker.stop().ended(0);
        assert!(ran.elapsed < Duration::from_secs(30), "forty seconds were not waited for");
        assert_eq!(ran.audited("skill.laid").len(), 0);
        assert_eq!(ran.audited("session.disposed").len(), 1, "the jail has its receipt");
        let state = server.state();
        assert_eq!(
            (&state["violations"], &state["work"][0]["state"]),
            (&json!([]), &json!("stopped"))
        );
    }
}

#[test]
fn a_kept_jail_gives_its_skills_up_and_gets_them_again() {
    // SKILL-11.
    let policy = include_str!("../../policies/default.toml")
        .replace("name = \"default\"", "name = \"retaining\"")
        .replace("retain = \"none\"", "retain = \"20s\"");
    let calls = [
        gives(bash("echo 1 > f; ls skills"), "a"),
        json!({"idle": "end_turn"}),
        json!({"wait_stopped": true, "within_s": 10}),
        json!({"message": "more"}),
        gives(bash("ls . skills"), ".:\nf\nskills\n\nskills:\na"),
    ];
    for level in Level::here() {
        let sessions = [with_skills(&["a"], calls.clone())];
        let played = play_with(level, &plain("a", "A"), &sessions, |poll| {
            poll.policy(&policy).options(["--max-idle", "1s"])
        });
        assert_eq!(played.ran.events("jail.resumed").len(), 1, "{}", played.ran.stderr);
        let laid = played.ran.events("skill.laid");
        let replaced: Vec<&Value> = laid.iter().map(|laid| &laid["replaced"]).collect();
        assert_eq!(replaced, [&json!(false), &json!(false)], "it was empty the second time");
    }
}

#[test]
fn a_jail_that_takes_the_place_of_a_lost_one_has_the_skills_too() {
    // INV-9, SKILL-1.
    require!(Need::Root);
    let server = Devserver::with(&plain("a", "A"), &["--keep-results"]);
    let calls = [
        expect(bash("sleep 67"), json!({"is_error": true, "contains": "outcome is unknown"})),
        expect(bash("cat skills/a/SKILL.md"), json!({"is_error": false, "matches": "^A"})),
    ];
    server.push(&with_skills(&["a"], calls));
    let worker = Poll::at(Level::Root).serve(&server);
    let mut init = None;
    e2e::poll::wait_for(SOON, || {
        init = init_of(&worker.processes(), "67");
        init.is_some()
    });
    let init = init.expect("a command runs").to_string();
    assert!(Command::new("kill").args(["-s", "KILL", &init]).status().expect("kill").success());
    server.wait_done(SOON);
    let ran = worker.stop().ended(0);
    passed(server.end(), &ran.stderr);
    assert_eq!(ran.audited("skill.laid").len(), 2);
}

/// The init of the jail in which `sleep SECONDS` runs: above the command are bash, its keeper, init.
fn init_of(processes: &[u32], seconds: &str) -> Option<u32> {
    let words = format!("sleep\0{seconds}\0");
    let runs = |pid: &&u32| {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).ok().as_ref() == Some(&words)
    };
    let parents = e2e::exec::parents();
    let parent = |of: u32| parents.iter().find(|(pid, _)| *pid == of).map(|(_, parent)| *parent);
    let sleeping = *processes.iter().find(runs)?;
    parent(sleeping).and_then(parent).and_then(parent)
}
