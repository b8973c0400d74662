//! Custom tools beside the shell: input, output, limits, what they leave behind.

use std::time::{Duration, Instant};

use crate::tree::{Tree, custom_tools, text};
use stockade_runtime::tool::{Block, ShellFate, ToolResult};

crate::tests! {
    TESTS:
    a_tool_gets_its_input_and_what_it_prints_is_the_result,
    input_of_any_size_arrives_whole_and_need_not_be_read,
    a_tool_beyond_its_time_is_ended_with_all_it_started_and_the_shell_lives,
    a_cancelled_tool_is_ended,
    what_a_tool_leaves_running_is_counted_and_lives_until_the_end,
    long_output_keeps_its_end_and_data_is_never_cut,
    a_tool_cannot_spoil_the_pipes_for_the_next_one,
    an_end_of_the_shell_during_a_tool_is_told_by_the_next_command,
}

fn run(tree: &mut Tree, index: u16, input: &[u8]) -> ToolResult {
    let plan = custom_tools().remove(usize::from(index));
    let never = tree.cancelled.try_clone().expect("copy");
    let never = std::os::fd::AsFd::as_fd(&never);
    tree.shell().run_tool(index, &plan, input, never)
}

fn script(tree: &mut Tree, script: &str) -> (String, bool) {
    let result = run(tree, 0, script.as_bytes());
    (text(&result), result.is_error)
}

fn a_tool_gets_its_input_and_what_it_prints_is_the_result() {
    // TOOL-GEN-0, RUN-21
    let mut tree = Tree::new();
    let workdir = tree.workdir.path().display().to_string();
    tree.ok("cd /; X=1; export X");
    #[rustfmt::skip]
    let cases = [
        ("echo hi",                              false, "hi".to_owned()),
        ("true",                                 false, "(no output)".to_owned()),
        ("echo err >&2; sleep 0.1; echo out",    false, "out\nerr".to_owned()),
        ("echo out; echo err >&2; exit 3",       true,  "out\nerr\nexit code: 3".to_owned()),
        ("kill -9 $$",                           true,  "exit code: 137".to_owned()),
        // Neither the directory nor the variables of the shell.
        ("pwd; echo \"[$X] $TOOL $LC_ALL\"",     false, format!("{workdir}\n[] yes C")),
        ("printf 'a\\377b'",                     false, "a\u{fffd}b".to_owned()),
        // Three descriptors and the directory that lists them.
        ("ls /proc/self/fd | tr '\\n' ' '",      false, "0 1 2 3 ".to_owned()),
        ("echo x > /dev/stdin || echo read-only", false, "read-only\n/bin/bash: line 1: /dev/stdin: Permission denied".to_owned()),
    ];
    let root = rustix::process::geteuid().is_root();
    for (input, is_error, want) in cases {
        if input.contains("/dev/stdin") && root {
            continue; // root may open what it owns
        }
        assert_eq!(script(&mut tree, input), (want, is_error), "{input}");
    }
    let (missing, is_error) = {
        let result = run(&mut tree, 2, b"{}");
        (text(&result), result.is_error)
    };
    assert!(is_error && missing.contains("missing: cannot start the program: "), "{missing}");
    assert!(missing.ends_with("exit code: 127"), "{missing}");
    assert_eq!(tree.ok("pwd; echo $X"), "/\n1", "the shell noticed nothing");
}

fn input_of_any_size_arrives_whole_and_need_not_be_read() {
    let mut tree = Tree::new();
    let odd = "{\"a\":\"\\ud83d\\ude00 \u{1F600} \u{0}'\\\\\"}";
    let input = odd.repeat((1 << 20) / odd.len() - 1);
    let result = run(&mut tree, 1, input.as_bytes());
    assert_eq!(result.content, [Block::Text(input.clone())], "byte for byte");
    let long = vec![b'x'; 16 << 20];
    let result = run(&mut tree, 2, &long);
    assert!(text(&result).ends_with("exit code: 127"));
    assert_eq!(text(&run(&mut tree, 1, b"")), "", "nothing is left of it");
    assert_eq!(tree.ok("echo still"), "still");
}

fn a_tool_beyond_its_time_is_ended_with_all_it_started_and_the_shell_lives() {
    let mut tree = Tree::new();
    tree.ok("X=5; sleep 71 &");
    let started = Instant::now();
    let (text, is_error) =
        script(&mut tree, "echo part; trap '' TERM INT HUP; setsid sleep 72 & sleep 73");
    assert!(is_error);
    assert_eq!(text, "part\nscript: timed out after 1s and was ended, with all it started");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    assert_eq!(tree.ok("ps -eo args | grep '[s]leep 7'; echo $X"), "sleep 71\n5");
}

fn a_cancelled_tool_is_ended() {
    let mut tree = Tree::new();
    let canceller = tree.cancel_when("here");
    let (text, is_error) = script(&mut tree, "sleep 74 & touch here; sleep 75");
    canceller.join().expect("cancelled");
    assert!(is_error);
    assert_eq!(text, "script: cancelled and ended, with all it started");
}

fn what_a_tool_leaves_running_is_counted_and_lives_until_the_end() {
    let mut tree = Tree::new();
    let result = run(&mut tree, 0, b"sleep 76 & setsid sleep 76 & echo done");
    assert_eq!((text(&result).as_str(), result.facts.left_running), ("done", 2));
    assert_eq!(tree.ok("ps -eo args | grep -c '[s]leep 76'"), "2");
    assert_eq!(run(&mut tree, 0, b"true").facts.left_running, 0, "counted once");
    assert!(tree.shell().quiesce());
    assert_eq!(text(&tree.call("ps -eo args | grep -c '[s]leep 76'")), "0\nexit code: 1");
}

fn long_output_keeps_its_end_and_data_is_never_cut() {
    let mut tree = Tree::new();
    let (text, is_error) = script(&mut tree, "seq 1 5000; echo error >&2");
    assert!(!is_error && text.starts_with("[output truncated]\n"), "{text}");
    assert!(text.ends_with("4999\n5000\nerror") && text.len() <= 10_019, "{}", text.len());
    let result = run(&mut tree, 1, &vec![b'x'; (1 << 20) + 1]);
    let text = self::text(&result);
    assert_eq!(text, "echo: its output of 1048577 bytes is longer than 1048576");
    assert!(result.is_error && result.facts.truncated);
}

fn a_tool_cannot_spoil_the_pipes_for_the_next_one() {
    let mut tree = Tree::new();
    let nonblocking =
        "python3 -c 'import os; os.set_blocking(1, False); os.set_blocking(2, False)'";
    assert_eq!(script(&mut tree, nonblocking), ("(no output)".to_owned(), false));
    let (text, is_error) =
        script(&mut tree, "head -c 300000 /dev/zero | tr '\\0' x; echo; echo end");
    assert!(!is_error && text.ends_with("\nend"), "a write would have failed");
    // What comes late is of no call.
    assert_eq!(script(&mut tree, "(sleep 0.2; echo late) & echo now").0, "now");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(script(&mut tree, "echo next").0, "next");
}

fn an_end_of_the_shell_during_a_tool_is_told_by_the_next_command() {
    let mut tree = Tree::new();
    let pid = tree.ok("X=1; echo $$");
    let result = run(&mut tree, 0, format!("kill -9 {pid}; sleep 0.2; echo on").as_bytes());
    assert_eq!((text(&result).as_str(), result.facts.shell), ("on", ShellFate::Kept));
    let next = text(&tree.call("echo [$X]"));
    assert!(next.starts_with("[]\nbash: the shell ended and was restarted"), "{next}");
}
