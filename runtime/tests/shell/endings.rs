//! Time limits, cancellation and the death of the shell (protocol TOOL-BASH-12 to 17).

use std::time::{Duration, Instant};

use crate::tree::{Proc, Tree, text};
use stockade_runtime::tool::ShellFate;
use stockade_runtime::tool::shell::ShellLimits;

crate::tests! {
    TESTS:
    a_timeout_ends_the_command_and_everything_after_it_but_not_the_shell,
    a_shell_that_does_not_come_back_is_replaced,
    a_shell_that_no_longer_does_what_it_is_told_is_replaced_within_its_grace,
    partial_output_is_kept_on_a_timeout,
    the_default_and_the_longest_time_limit_are_kept_to,
    a_timeout_spares_what_earlier_calls_left_running,
    a_fork_bomb_ends_with_its_call,
    without_a_proc_filesystem_a_timeout_ends_all_and_the_next_call_works,
    a_cancelled_call_ends_at_once_and_its_output_does_not_reach_the_next,
    the_end_of_the_shell_is_reported_with_its_status,
    the_end_of_the_shell_is_noticed_though_a_background_process_holds_its_output,
    a_shell_that_ended_between_calls_is_replaced_and_the_result_says_so,
    quiesce_ends_everything_and_the_next_call_starts_fresh,
    a_dead_keeper_is_an_explained_error_every_time,
}

const KEPT: &str =
    "bash: command timed out after 0.2s; the shell kept its working directory and variables";
const ENDED: &str =
    "bash: the shell ended and was restarted (working directory and variables were reset)";

/// A state that must survive, and the question whether it did.
const STATE: &str = "mkdir -p d && cd d && x=1 && f() { echo \"f $x\"; } && set -- a b";
const QUESTION: &str = "echo ${PWD##*/} $x $(f) $#; trap -p DEBUG; echo $-; ls";

fn restarted(after: &str) -> String {
    format!(
        "bash: command timed out after {after}; the shell was restarted (working directory and \
         variables were reset)"
    )
}

fn quick() -> ShellLimits {
    ShellLimits { answer_grace: Duration::from_millis(1500), ..ShellLimits::default() }
}

fn a_timeout_ends_the_command_and_everything_after_it_but_not_the_shell() {
    // TOOL-BASH-13, TOOL-BASH-17 (also what called setsid), and design §6: the shell keeps its state if it still answers.
    let mut tree = Tree::with(quick(), Proc::Given);
    tree.ok(STATE);
    #[rustfmt::skip]
    let commands = [
        "sleep 60; touch BAD",
        "sleep 60\ntouch BAD",
        "sleep 60 && touch BAD || touch BAD",
        "while :; do sleep 60; touch BAD; done",
        "while :; do :; done; touch BAD",
        "while sleep 60; do touch BAD; done; touch BAD",
        "for ((;;)); do ((1)); done",
        "until false; do :; done",
        "g() { sleep 60; touch BAD; }; h() { g; touch BAD; }; h; touch BAD",
        "y=$(sleep 60; touch BAD); touch BAD",
        "if sleep 60; then touch BAD; else touch BAD; fi\ntouch BAD",
        "sleep 60 | cat; touch BAD",
        "sleep 60 | (cat; touch BAD)",
        "(sleep 60; touch BAD); touch BAD",
        "(trap 'touch BAD' CHLD TERM; sleep 60; touch BAD)\ntouch BAD",
        "sleep 60 & wait; touch BAD",
        "eval 'sleep 60; touch BAD'; touch BAD",
        "case $(sleep 60) in *) touch BAD;; esac",
        "sleep 60\n>BAD",
        "sleep 60; { touch BAD; }; (touch BAD)\n(touch BAD)& touch BAD | cat\n[[ a ]] && touch BAD",
        "read y < <(sleep 60); touch BAD",
        "select y in a b; do :; done; source /dev/stdin <<< 'sleep 60; touch BAD'; touch BAD",
        "trap 'touch BAD' ERR; sleep 60; touch BAD",
        "trap 'touch BAD' INT TERM HUP USR1 USR2; sleep 60; touch BAD",
        "bash -c 'trap \"touch BAD\" EXIT TERM INT; sleep 60; touch BAD'; touch BAD",
        "mkfifo p; read y <p; touch BAD",
        "setsid sleep 60; touch BAD",
        "(setsid sleep 60 &) ; sleep 60; touch BAD",
        "set -m; sleep 60; touch BAD",
        "yes >/dev/null; touch BAD",
        "yes; touch BAD",
        "while :; do echo y; done",
        "kill -STOP $$; touch BAD",
        "set -T; trap : DEBUG; k() { sleep 60; touch BAD; }; k; touch BAD",
    ];
    for command in commands {
        let result = tree.limited(command, 200);
        let got = text(&result);
        assert!(got.ends_with(KEPT), "{command}: {}", &got[got.len().saturating_sub(300)..]);
        assert!(result.is_error && result.facts.timed_out, "{command}");
        // bash tells of a background process that was killed when it comes to it.
        let alive = tree.ok("rm -f p; set +m; trap - ERR CHLD; echo $(pgrep 'sleep|yes' | wc -l)");
        assert!(alive.lines().last() == Some("0"), "{command}: {alive}");
        assert_eq!(tree.ok(QUESTION), "d 1 f 1 2\nhBs", "{command}");
    }
}

fn a_shell_that_does_not_come_back_is_replaced() {
    let mut tree = Tree::with(quick(), Proc::Given);
    let commands = [
        "trap '' 60; sleep 60; touch BAD",
        "trap - 60; sleep 60",
        "trap : 60; while :; do :; done; touch BAD",
        "exec sleep 60",
        "unset BASH_SOURCE; sleep 60 && touch BAD",
    ];
    for command in commands {
        tree.ok("rm -rf * && x=1");
        // The trap must be in force by then.
        let result = tree.limited(command, 2000);
        let got = text(&result);
        if got.ends_with(&KEPT.replace("0.2s", "2s")) && command.contains("BASH_SOURCE") {
            continue;
        }
        assert!(got.ends_with(&restarted("2s")), "{command}: {got}");
        assert_eq!(result.facts.shell, ShellFate::Restarted, "{command}");
        assert_eq!(
            tree.ok("echo [$x]; pgrep sleep | wc -l; ls | grep -v p || :"),
            "[]\n0",
            "{command}"
        );
    }
}

fn a_shell_that_no_longer_does_what_it_is_told_is_replaced_within_its_grace() {
    let mut tree = Tree::with(quick(), Proc::Given);
    let lost = "bash: the shell stopped answering and was restarted (working directory and \
         variables were reset)";
    // Restricted, it cannot open the file of the next command.
    for (commands, want) in [
        (&["echo hi; set -n"][..], format!("hi\n{lost}")),
        (&["builtin() { :; }"], lost.to_owned()),
        (&["set -r", "echo hi"], lost.to_owned()),
    ] {
        let begun = Instant::now();
        let result = commands.iter().map(|command| tree.call(command)).last().expect("one");
        assert!(begun.elapsed() < Duration::from_secs(4), "{commands:?}: {:?}", begun.elapsed());
        assert_eq!((text(&result), result.is_error), (want, true), "{commands:?}");
        assert_eq!(result.facts.shell, ShellFate::Restarted, "{commands:?}");
        assert_eq!(tree.ok("echo hi"), "hi", "{commands:?}");
    }
}

fn partial_output_is_kept_on_a_timeout() {
    let mut tree = Tree::with(quick(), Proc::Given);
    let result = tree.limited("echo one; echo two; while :; do :; done", 2000);
    let want = "one\ntwo\nbash: command timed out after 2s; the shell kept its working directory \
         and variables";
    assert_eq!(text(&result), want);
}

fn the_default_and_the_longest_time_limit_are_kept_to() {
    // TOOL-BASH-12
    let limits = ShellLimits {
        default_timeout: Duration::from_secs(1),
        timeout_max: Duration::from_millis(1500),
        ..quick()
    };
    let mut tree = Tree::with(limits, Proc::Given);
    for (input, after) in [
        (r#"{"command":"while :; do :; done"}"#, "1s;"),
        (r#"{"command":"while :; do :; done","timeout_ms":0}"#, "1s;"),
        (r#"{"command":"while :; do :; done","timeout_ms":9000}"#, "1.5s;"),
    ] {
        let got = text(&tree.input(input));
        assert!(got.starts_with(&format!("bash: command timed out after {after}")), "{got}");
    }
}

fn a_timeout_spares_what_earlier_calls_left_running() {
    let mut tree = Tree::with(quick(), Proc::Given);
    tree.ok("sleep 60 & p=$!; (while :; do sleep 0.01; done) & q=$!");
    let result = tree.limited("sleep 61 & sleep 62", 300);
    assert!(text(&result).ends_with("kept its working directory and variables"), "{result:?}");
    assert_eq!(tree.ok("kill -0 $p $q && pgrep -f 'sleep 6[12]' | wc -l"), "0");
}

fn a_fork_bomb_ends_with_its_call() {
    let mut tree = Tree::below(&["prlimit", "--nproc=20000"], quick(), Proc::Given);
    tree.ok("x=1");
    let bomb = "b() { (b & b &) ; [[ -e stop ]] || sleep 0.1; }; n() { for i in {1..80}; do \
        (while [[ ! -e stop ]]; do sleep 0.001; (:) & done) & done; wait; }; n";
    let result = tree.limited(bomb, 500);
    assert!(text(&result).contains("timed out after 0.5s"), "{result:?}");
    let alive = tree.ok("ps -e --no-headers | grep -v -e ps -e grep -e wc | wc -l");
    assert!(
        alive.lines().last().and_then(|line| line.parse::<u32>().ok()) <= Some(3),
        "{alive} alive"
    );
}

fn without_a_proc_filesystem_a_timeout_ends_all_and_the_next_call_works() {
    let mut tree = Tree::with(quick(), Proc::Withheld);
    tree.ok("sleep 60 & x=1");
    let got = text(&tree.limited("sleep 61", 200));
    assert_eq!(got, restarted("0.2s"));
    assert_eq!(tree.ok("echo [$x]; pgrep sleep | wc -l"), "[]\n0");
}

fn a_cancelled_call_ends_at_once_and_its_output_does_not_reach_the_next() {
    // TOOL-BASH-14
    let mut tree = Tree::with(quick(), Proc::Given);
    tree.ok(STATE);
    let thread = tree.cancel_when("here");
    let result = tree.call("echo part; touch ../here; while :; do :; done; touch BAD");
    let took = thread.join().expect("cancelled").elapsed();
    tree.forget_cancel();
    assert!(took < Duration::from_secs(3), "{took:?}");
    let want = "part\nbash: command cancelled; the shell kept its working directory and variables";
    assert_eq!(text(&result), want);
    assert!(result.is_error && result.facts.cancelled && !result.facts.timed_out, "{result:?}");
    assert_eq!(tree.ok(QUESTION), "d 1 f 1 2\nhBs");
}

fn the_end_of_the_shell_is_reported_with_its_status() {
    // TOOL-BASH-15
    let mut tree = Tree::new();
    #[rustfmt::skip]
    let cases = [
        ("echo hi; exit 3",             "hi\nexit code: 3", true),
        ("exit 0",                      "exit code: 0",     false),
        ("kill -9 $$",                  "exit code: 137",   true),
        ("kill $$",                     "exit code: 143",   true),
        ("exec true",                   "exit code: 0",     false),
        ("exec bash -c 'exit 4'",       "exit code: 4",     true),
        ("set -e; false",               "exit code: 1",     true),
    ];
    for (command, want, is_error) in cases {
        tree.ok("x=1");
        let result = tree.call(command);
        assert_eq!(text(&result), format!("{want}\n{ENDED}"), "{command}");
        assert_eq!(result.is_error, is_error, "{command}");
        assert_eq!(result.facts.shell, ShellFate::Restarted, "{command}");
        assert_eq!(tree.ok("echo [$x]"), "[]", "{command}");
    }
}

fn the_end_of_the_shell_is_noticed_though_a_background_process_holds_its_output() {
    // TOOL-BASH-16, RACE-16; background processes outlive a shell that exits by itself.
    let mut tree = Tree::new();
    let begun = Instant::now();
    let result = tree.call("sleep 60 & echo $! >pid; exit 3");
    assert_eq!(text(&result), format!("exit code: 3\n{ENDED}"));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    tree.ok("kill -0 $(cat pid)");
}

fn a_shell_that_ended_between_calls_is_replaced_and_the_result_says_so() {
    let mut tree = Tree::new();
    tree.ok("x=1; mkfifo p; { read y <p; kill -9 $$; } &");
    tree.ok("(sleep 0.3; echo >p) & :");
    std::thread::sleep(Duration::from_millis(900));
    let result = tree.call("echo [$x]");
    assert_eq!((text(&result), result.is_error), (format!("[]\n{ENDED}"), false));
    assert_eq!(tree.ok("echo [$x]"), "[]");
}

fn quiesce_ends_everything_and_the_next_call_starts_fresh() {
    let mut tree = Tree::new();
    tree.shell().warm_up();
    assert!(tree.shell().quiesce(), "while it starts");
    tree.ok("x=1; sleep 60 & setsid -f sleep 61");
    assert!(tree.shell().quiesce());
    assert!(tree.shell().quiesce(), "again");
    assert_eq!(tree.ok("echo [$x]; pgrep sleep | wc -l"), "[]\n0");
}

fn a_dead_keeper_is_an_explained_error_every_time() {
    let mut tree = Tree::new();
    tree.ok("true");
    tree.kill_keeper();
    // INV-9: whether its end was seen before or after the command was handed over.
    let first = tree.call("true");
    let unknown = "bash: the processes of this session ended while this command ran; its outcome is \
         unknown and it was not run again";
    let gone = "bash: the processes of this session are gone; no shell can be started";
    assert!([unknown, gone].contains(&text(&first).as_str()), "{first:?}");
    let second = tree.call("true");
    assert_eq!(text(&second), gone);
    for result in [first, second] {
        assert!(result.is_error);
        assert_eq!(result.facts.shell, ShellFate::Gone);
    }
    assert!(!tree.shell().quiesce());
}
