//! The tools as a session sees them: calls over the wire, results over the wire (protocol §6).
//!
//! Each row is one call and its exact result. Rows of one table run one after the other in one jail.

use e2e::Level;
use e2e::play::{bash, expect, fails, gives, play, session};
use serde_json::{Value, json};

const ENDED: &str =
    "bash: the shell ended and was restarted (working directory and variables were reset)";

fn read(path: &str) -> Value {
    json!({"read": path})
}

fn write(path: &str, content: &str) -> Value {
    json!({"write": {"file_path": path, "content": content}})
}

fn edit(path: &str, old: &str, new: &str) -> Value {
    json!({"edit": {"file_path": path, "old_string": old, "new_string": new}})
}

/// TOOL-BASH-1, 6, 7, 9, 10, 12, RUN-20, RUN-21.
fn one_shell() -> Value {
    session(
        "one shell",
        [
            gives(bash("echo hi"), "hi"),
            gives(bash("true"), "(no output)"),
            fails(bash("false"), "exit code: 1"),
            fails(bash("echo out; echo err >&2; (exit 7)"), "out\nerr\nexit code: 7"),
            gives(bash("pwd; echo $PS1-$PS2-$TERM-$0"), "/workspace\n--dumb-/bin/bash"),
            gives(bash("cd /tmp; X=5; f() { echo f$X; }; shopt -s extglob"), "(no output)"),
            gives(bash("pwd; f; shopt extglob | cut -f2"), "/tmp\nf5\non"),
            gives(bash("cat; read x; echo \"[$x]\""), "[]"),
            gives(bash("printf '\\n\\nx\\n\\n\\n'"), "\n\nx"),
            gives(bash("printf '\\e[1;31mred\\e[0m\\n'"), "red"),
            gives(bash("printf 'a\\377\\376b'"), "a\u{fffd}\u{fffd}b"),
            gives(bash("printf 'a\\0b'"), "a\0b"),
            gives(json!({"bash": {"command": "echo x", "unknown": 1, "timeout_ms": null}}), "x"),
            gives(json!({"bash": {"command": "echo x", "timeout_ms": 0}}), "x"),
            gives(json!({"bash": {"command": "echo x", "timeout_ms": -5}}), "x"),
            fails(bash(""), "bash: command is required"),
            fails(json!({"tool": "bash", "input": {}}), "bash: command is required"),
            fails(json!({"tool": "bash", "input": {"command": null}}), "bash: command is required"),
            expect(
                json!({"tool": "bash", "input": {"command": 5}}),
                json!({"is_error": true, "matches": "^invalid bash input: .*integer `5`"}),
            ),
            expect(
                json!({"tool": "bash", "input": {"command": "echo", "timeout_ms": "x"}}),
                json!({"is_error": true, "matches": "^invalid bash input: "}),
            ),
            gives(bash("f"), "f5"),
            gives(json!({"bash": {"restart": true}}), "bash session restarted"),
            gives(bash("pwd; echo [$X]"), "/workspace\n[]"),
            gives(json!({"bash": {"restart": true, "command": "echo [$X]"}}), "[]"),
        ],
    )
}

/// TOOL-BASH-5, 13 to 18: what would break a shell that is driven over its standard input.
fn rough_shell() -> Value {
    let ended = |text: &str| format!("{text}\n{ENDED}");
    session(
        "rough shell",
        [
            gives(bash("X=5"), "(no output)"),
            expect(
                bash("echo ("),
                json!({"is_error": true, "matches": "syntax error(.|\n)*exit code: 2$"}),
            ),
            expect(
                bash("echo 'open"),
                json!({"is_error": true, "matches": "EOF(.|\n)*exit code: [12]$"}),
            ),
            expect(bash("cat <<END\nopen"), json!({"contains": "open"})),
            gives(bash("echo $X"), "5"),
            gives(bash("echo __ANT_CMD_00_DONE__0"), "__ANT_CMD_00_DONE__0"),
            gives(bash("exec 3>&1 4>&1; echo $X >&3"), "5"),
            fails(bash("echo bye; exit 3"), &ended("bye\nexit code: 3")),
            gives(bash("echo [$X]"), "[]"),
            fails(bash("kill -9 $$"), &ended("exit code: 137")),
            expect(
                bash("set -e; false; echo not here"),
                json!({"is_error": true, "lacks": "not here"}),
            ),
            fails(bash("exec /bin/false"), &ended("exit code: 1")),
            gives(bash("exec /bin/true"), &ended("exit code: 0")),
            gives(bash("echo lives; exec 1>&- 2>&-"), "lives"),
            gives(json!({"bash": {"restart": true, "command": "echo again"}}), "again"),
            gives(bash("cd /tmp; Y=7"), "(no output)"),
            expect(
                json!({"bash": {"command": "echo part; sleep 60", "timeout_ms": 2000}}),
                // Between the two, bash may say which of its processes was killed.
                json!({"is_error": true, "matches": "^part\n(.* Killed .*\n)?bash: command timed \
                    out after 2s; the shell kept its working directory and variables$"}),
            ),
            gives(bash("pwd; echo $Y"), "/tmp\n7"),
            expect(
                json!({"bash": {"command": "trap '' TERM INT HUP; setsid sleep 61 & sleep 62", "timeout_ms": 300}}),
                json!({"is_error": true, "contains": "bash: command timed out after 0.3s; "}),
            ),
            gives(bash("ps -eo args | grep -c '[s]leep 6' || true"), "0"),
            gives(
                bash("(until test -e /tmp/go; do sleep 0.05; done; echo late) & echo now"),
                "now",
            ),
            gives(bash("touch /tmp/go; wait"), "late"),
        ],
    )
}

/// TOOL-BASH-8, RUN-22: long output keeps its end.
fn long_output() -> Value {
    session(
        "long output",
        [
            expect(
                bash("seq 1 100000"),
                json!({"is_error": false, "bytes_max": 102_419,
            "matches": "^\\[output truncated\\]\n(.|\n)*\n99999\n100000$"}),
            ),
            expect(
                bash("head -c 50000000 /dev/zero | tr '\\0' x; echo; echo end"),
                json!({
            "is_error": false, "bytes_min": 102_000, "bytes_max": 102_419,
            "matches": "^\\[output truncated\\]\nx*\nend$"}),
            ),
            gives(bash("head -c 100000 /dev/zero | tr '\\0' x | wc -c"), "100000"),
        ],
    )
}

/// §6.4, TOOL-PATH.
fn reading() -> Value {
    let range =
        |path: &str, range: Value| json!({"read": {"file_path": path, "view_range": range}});
    let outside = |path: &str| {
        format!(
            "read: path '{path}' is outside the session's working directory and its other permitted directories"
        )
    };
    session(
        "reading",
        [
            gives(
                bash(
                    "printf 'l1\\nl2\\nl3\\n' > f; mkdir d; mkfifo p; : > empty; ln -s f link; \
            ln -s loop loop; ln -s /etc/passwd out; ln -s gone dangling; printf '\\377' > bad; \
            head -c 300000 /dev/zero | tr '\\0' x > big; printf 'a\\r\\nb' > crlf; touch none; \
            chmod 0 none; seq 1 80000 > lines",
                ),
                "(no output)",
            ),
            gives(read("f"), "l1\nl2\nl3\n"),
            gives(read("/workspace/f"), "l1\nl2\nl3\n"),
            gives(read("d/../f"), "l1\nl2\nl3\n"),
            gives(read("link"), "l1\nl2\nl3\n"),
            gives(read("empty"), "(no output)"),
            gives(read("crlf"), "a\r\nb"),
            gives(range("f", json!([2, 2])), "l2"),
            gives(range("f", json!([2, 0])), "l2\nl3\n"),
            gives(range("f", json!([-3, 1])), "l1"),
            gives(range("f", json!([3, 2])), "(no output)"),
            gives(range("f", json!([50, 60])), "(no output)"),
            gives(range("f", json!([])), "l1\nl2\nl3\n"),
            gives(range("f", json!(null)), "l1\nl2\nl3\n"),
            fails(range("f", json!([1])), "read: view_range must be [start_line, end_line]"),
            fails(read("gone"), "read: gone: no such file or directory"),
            fails(read("dangling"), "read: dangling: no such file or directory"),
            fails(read("f/x"), "read: f/x: not a directory"),
            fails(read("d"), "read: d: not a regular file"),
            fails(read("p"), "read: p: not a regular file"),
            fails(read("loop"), "read: path 'loop': too many levels of symbolic links"),
            fails(read("out"), &outside("out")),
            fails(read("/etc/passwd"), &outside("/etc/passwd")),
            fails(read("../etc/passwd"), &outside("../etc/passwd")),
            fails(read(""), "read: file_path is required"),
            fails(read("none"), "read: none: permission denied"),
            fails(
                read("bad"),
                "read: bad: not valid UTF-8 text (binary files are only supported for \
            image/PDF extensions)",
            ),
            fails(
                read("big"),
                "read: big is 300000 bytes, exceeds 262144-byte limit. Use the view_range \
            parameter to read specific line ranges, e.g. view_range: [1, 500].",
            ),
            fails(
                range("big", json!([1, 1])),
                "read: line 1 of big alone exceeds 262144-byte limit. The \
            read tool cannot return part of a line, so view_range cannot narrow this further.",
            ),
            fails(
                range("lines", json!([1, 70000])),
                "read: view_range [1, 70000] of lines exceeds \
            262144-byte limit. Narrow the view_range to read a smaller portion.",
            ),
            gives(range("lines", json!([79999, 80000])), "79999\n80000"),
            fails(
                json!({"tool": "read", "input": {}}),
                "invalid read input: missing field `file_path`",
            ),
            fails(
                json!({"tool": "read", "input": {"file_path": 5}}),
                "invalid read input: invalid type: integer `5`, expected a string",
            ),
        ],
    )
}

/// TOOL-READ-7: one block of base64, by the name of the file.
fn media() -> Value {
    let block = |path: &str, block: &str, media_type: &str| {
        expect(
            read(path),
            json!({"is_error": false, "block": block, "blocks": 1,
            "media_type": media_type, "bytes_min": 5, "bytes_max": 5}),
        )
    };
    session(
        "media",
        [
            gives(
                bash(
                    "for n in a.png b.jpg c.JPEG d.gif e.webp f.pdf; do printf '12345' > $n; done; \
            head -c 4000000 /dev/zero > big.png",
                ),
                "(no output)",
            ),
            block("a.png", "image", "image/png"),
            block("b.jpg", "image", "image/jpeg"),
            block("c.JPEG", "image", "image/jpeg"),
            block("d.gif", "image", "image/gif"),
            block("e.webp", "image", "image/webp"),
            block("f.pdf", "document", "application/pdf"),
            fails(
                json!({"read": {"file_path": "a.png", "view_range": [1, 2]}}),
                "read: view_range is not supported for image/PDF files",
            ),
            fails(
                read("big.png"),
                "read: big.png is 4000000 bytes, exceeds 3932160-byte limit for image/PDF files.",
            ),
        ],
    )
}

/// §6.5, §6.6. What one tool writes, the other can change.
fn writing() -> Value {
    let all = |path: &str, old: &str, new: &str| {
        let mut call = edit(path, old, new);
        call["edit"]["replace_all"] = json!(true);
        call
    };
    session(
        "writing",
        [
            gives(write("a/b/c.txt", "hé\r\n"), "wrote 5 bytes to a/b/c.txt"),
            gives(
                bash("od -An -tx1 a/b/c.txt; stat -c %a a/b a/b/c.txt"),
                " 68 c3 a9 0d 0a\n700\n600",
            ),
            gives(
                bash(
                    "printf '#!/bin/sh\\necho 1\\n' > run; chmod 750 run; mkdir d; mkfifo p; \
            ln -s /etc/passwd out; ln -s a/b/c.txt link",
                ),
                "(no output)",
            ),
            gives(edit("run", "echo 1", "echo 2"), "edited run (1 replacement(s))"),
            gives(bash("./run; stat -c %a run"), "2\n750"),
            gives(write("run", "#!/bin/sh\necho 3\n"), "wrote 17 bytes to run"),
            gives(bash("./run; stat -c '%a %U' run; echo more >> a/b/c.txt"), "3\n750 session"),
            gives(write("empty", ""), "wrote 0 bytes to empty"),
            gives(write("link", "new"), "wrote 3 bytes to link"),
            gives(bash("cat a/b/c.txt; test -L link && echo still a link"), "newstill a link"),
            fails(write("d", "x"), "write: d: is a directory"),
            fails(write("p", "x"), "write: p: not a regular file"),
            fails(
                write("out", "x"),
                "write: path 'out' is outside the session's working directory and its other permitted directories",
            ),
            fails(
                write("/etc/x", "x"),
                "write: path '/etc/x' is outside the session's working directory and its other permitted directories",
            ),
            fails(write("", "x"), "write: file_path is required"),
            fails(write("run/x", "x"), "write: run/x: not a directory"),
            fails(
                json!({"write": {"file_path": "x"}}),
                "invalid write input: missing field `content`",
            ),
            gives(write("e", "a b a $1 \\1"), "wrote 11 bytes to e"),
            fails(edit("e", "a", "x"), "edit: old_string appears 2 times in e (must be unique)"),
            fails(edit("e", "z", "x"), "edit: old_string not found in e"),
            fails(edit("e", "", "x"), "edit: old_string is required"),
            fails(edit("gone", "a", "x"), "edit: gone: no such file or directory"),
            fails(edit("d", "a", "x"), "edit: d: not a regular file"),
            gives(all("e", "a", "$0"), "edited e (2 replacement(s))"),
            gives(edit("e", " b", ""), "edited e (1 replacement(s))"),
            gives(read("e"), "$0 $0 $1 \\1"),
            gives(
                bash(
                    "printf '\\377x' > bad; head -c 300000 /dev/zero > big; ls -A | grep -c tmp || true",
                ),
                "0",
            ),
            fails(
                edit("bad", "x", "y"),
                "edit: bad: not valid UTF-8 text (cannot edit binary files)",
            ),
            fails(
                edit("big", "x", "y"),
                "edit: big is 300000 bytes, exceeds 262144-byte limit. The edit \
            tool loads the whole file and cannot modify a file this large.",
            ),
        ],
    )
}

/// §6.7, §6.8.
fn searching() -> Value {
    let glob = |pattern: &str| json!({"glob": pattern});
    let grep = |pattern: &str| json!({"grep": pattern});
    session(
        "searching",
        [
            gives(
                bash(
                    "mkdir -p src/x node_modules .git; echo 'fn one() {}' > src/a.rs; \
            echo 'fn two() {}' > src/x/b.rs; echo fn > node_modules/n.rs; echo fn > .git/g.rs; \
            echo fn > .hidden; printf 'fn\\0' > binary; ln -s /etc etc; ln -s src/a.rs l.rs; \
            touch -d @100 src/a.rs; touch -d @200 src/x/b.rs",
                ),
                "(no output)",
            ),
            gives(glob("**/*.rs"), "/workspace/src/x/b.rs\n/workspace/src/a.rs"),
            gives(glob("src/{a,z}.rs"), "/workspace/src/a.rs"),
            gives(json!({"glob": {"pattern": "*.rs", "path": "src"}}), "/workspace/src/a.rs"),
            gives(glob("etc/*"), "no matches"),
            gives(glob("nothing*"), "no matches"),
            gives(json!({"glob": {"pattern": "*", "path": "gone"}}), "no matches"),
            fails(
                glob("/etc/*"),
                "glob: absolute pattern not permitted; pass a relative pattern (and optionally path)",
            ),
            fails(glob("../*"), "glob: '..' is not permitted in the pattern"),
            fails(glob("{a,..}/x"), "glob: '..' is not permitted in the pattern"),
            fails(glob(""), "glob: pattern is required"),
            fails(
                json!({"glob": {"pattern": "*", "path": "/etc"}}),
                "glob: path '/etc' is outside the session's working directory and its other permitted directories",
            ),
            expect(
                grep("fn [a-z]+"),
                json!({"is_error": false, "bytes_max": 90, "contains": [
            "/workspace/src/a.rs:1:fn one() {}", "/workspace/src/x/b.rs:1:fn two() {}"]}),
            ),
            expect(
                json!({"grep": {"pattern": "one", "path": "src/a.rs"}}),
                json!({"is_error": false, "contains": "src/a.rs:1:fn one() {}"}),
            ),
            gives(grep("nowhere"), "no matches"),
            // TOOL-GREP-1: nothing on a path of the session's is run for it.
            gives(
                bash(
                    "printf '#!/bin/sh\\necho planted; touch /workspace/was-run' > rg; chmod +x rg; \
            ln -s rg grep; export PATH=/workspace:$PATH; rg",
                ),
                "planted",
            ),
            gives(bash("rm was-run"), "(no output)"),
            gives(grep("nowhere"), "no matches"),
            gives(bash("ls was-run 2>/dev/null || echo not run; rm rg grep"), "not run"),
            gives(json!({"grep": {"pattern": "x", "path": "gone"}}), "no matches"),
            fails(grep(""), "grep: pattern is required"),
            expect(grep("("), json!({"is_error": true, "matches": "^grep: invalid regex: "})),
            fails(
                json!({"grep": {"pattern": "root", "path": "/etc/passwd"}}),
                "grep: path '/etc/passwd' is outside the session's working directory and its other permitted directories",
            ),
            expect(
                bash("seq -f 'long line number %g of many' 1 10000 > many"),
                json!({"is_error": false}),
            ),
            expect(
                grep("long"),
                json!({"is_error": false, "bytes_max": 102_500,
            "matches": "\\[output truncated at 102400 bytes\\]$"}),
            ),
        ],
    )
}

#[test]
fn every_tool_answers_over_the_wire_with_the_texts_of_the_protocol() {
    for level in Level::here() {
        let sessions =
            [one_shell(), rough_shell(), long_output(), reading(), media(), writing(), searching()];
        let played = play(level, &sessions);
        let count = |session: &Value| session["calls"].as_array().map_or(0, Vec::len);
        let calls: usize = sessions.iter().map(count).sum();
        assert_eq!(played.report["latency_us"]["count"], calls);
        assert_eq!(played.ran.audited("call.started").len(), calls);
        assert_eq!(played.ran.audited("call.ended").len(), calls);
        let posted = played.ran.audited("call.posted").len();
        assert!(posted + sessions.len() >= calls, "{posted} of {calls}");
        assert_eq!(played.ran.audited("session.disposed").len(), sessions.len());
    }
}
