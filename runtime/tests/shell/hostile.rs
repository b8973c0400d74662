//! Commands that harm the shell itself: whatever they do, the next call works and its framing holds
//! (protocol Appendix C).

use std::time::{Duration, Instant};

use crate::tree::{Proc, Tree, text};
use stockade_runtime::tool::shell::ShellLimits;

crate::tests! {
    TESTS:
    no_command_breaks_the_next_call,
    syntax_errors_and_control_flow_cost_no_state,
    a_report_of_an_earlier_call_is_not_one_of_this,
    very_long_commands_run,
    endless_output_takes_no_memory_and_does_not_delay_the_time_limit,
    a_full_process_table_is_an_explained_error,
}

fn quick() -> ShellLimits {
    ShellLimits { answer_grace: Duration::from_millis(700), ..ShellLimits::default() }
}

fn no_command_breaks_the_next_call() {
    let mut tree = Tree::with(quick(), Proc::Given);
    #[rustfmt::skip]
    let commands = [
        // texts that are no commands
        "echo (", "echo 'a", "echo \"a", "cat <<E\nfoo", "cat <<'E'", "if", "}", "done", ")", "a() {",
        "'", "\"", "`", "$(", "${", "\\", "#", "echo a \\", "((", "[[", "{ echo", "echo hi' </dev/null; exit 5 #",
        "\0", "echo a\0b", "\u{feff}", "\n\n\n", "!!", "\r\n", "$'\\x'", ";;", "&", "&&", "|", "<<<", "coproc",
        // descriptors
        "exec 1>&-", "exec 2>&-", "exec >log", "exec 2>log; nonsense", "exec <&-", "exec 0<&- 1>&- 2>&-",
        "exec </etc/passwd", "exec 3<>/dev/null", "for i in {3..100}; do eval \"exec $i>&-\"; done",
        "for i in {0..250}; do eval \"exec $i>/dev/null\"; done", "ulimit -n 10", "exec 58<&- 59>&-",
        "exec 58</dev/null 59>/dev/null", "sleep 60 &", "(sleep 60; echo late) & disown",
        // ends of the shell
        "exit", "exit 3", "exec true", "exec nonsense", "kill -9 $$", "kill -9 -1", "kill -9 0", "set -e; false",
        "set -e; trap 'exit 9' ERR; false", "set -u; echo $unknown", "echo ${unknown?}", "kill -ABRT $$", "logout",
        "trap 'echo bye' EXIT; exit 2", "kill -60 $$", "(sleep 0.2; kill -CONT $$) & kill -STOP $$",
        // control flow out of place
        "return 5", "break", "continue 7", "f() { return 9; }; f", "while :; do break 99; done", "shift 9",
        // options and traps
        "trap '' {1..64}", "for s in {1..64}; do trap 'echo t' $s; done", "trap 'echo d' DEBUG", "trap 'echo r' RETURN",
        "set -o posix", "set -o posix; eval 'echo ('", "POSIXLY_CORRECT=1", "set -n", "set -o noexec", "set -v", "set -x",
        "set -f", "set -C", "set -k", "set -o nounset", "set -r", "set -t", "set -m", "set -a", "set -p", "set +B", "set -T",
        "set -o errexit", "shopt -s extdebug", "shopt -s extdebug; trap false DEBUG", "set -b -E -h -H",
        "shopt -s expand_aliases; alias builtin='echo no' eval='echo no' .='echo no'", "shopt -s xpg_echo nullglob failglob",
        "shopt -s lastpipe execfail", "set -o history -o histexpand; echo a; !!",
        // names
        "eval() { echo no; }; echo() { :; }; printf() { :; }; trap() { :; }; set() { :; }; .() { :; }; source() { :; }",
        "builtin() { echo no; }", "command() { echo no; }", "enable -n builtin", "enable -n echo eval . trap",
        "readonly -f f; readonly PATH IFS x=1 _ BASH_SOURCE", "unset PATH HOME PWD IFS _ BASH_SOURCE FUNCNAME BASH_LINENO",
        "IFS=0123456789", "IFS=.", "IFS='\\'", "IFS=' /dfb'", "PATH=", "LC_ALL=xx; LANG=yy", "BASH_ENV=/x ENV=/x",
        "PROMPT_COMMAND='exit 1'", "TMOUT=1", "PS4='$(exit)'; set -x", "FUNCNEST=1", "SHELLOPTS=x", "BASH_XTRACEFD=1",
        "declare -r BASH_SOURCE; declare -n ref=ref; ref=1", "unset -f f; unset -n x", "hash -p /bin/false echo",
        // places
        "mkdir gone; cd gone; rmdir ../gone", "cd /; umask 777", "cd /proc/self/fd",
        // forged reports
        "echo 'n 0' >/proc/$$/fd/59", "for i in 59 {10..15}; do echo 0000000000000000 0; done >/proc/$$/fd/59",
        "head -c 3000000 /dev/zero >/proc/$$/fd/59", "for i in 0 {10..15}; do timeout 0.1 head -c 10 /proc/$$/fd/$i; done", ": >/dev/fd/58",
        "python3 -c 'import os,fcntl; fcntl.fcntl(1, fcntl.F_SETFL, os.O_NONBLOCK)'",
    ];
    for command in commands {
        let begun = Instant::now();
        let result = tree.call(command);
        let took = begun.elapsed();
        assert!(!result.facts.timed_out, "{command:?} hung: {}", text(&result));
        assert!(took < Duration::from_secs(8), "{command:?} took {took:?}");
        // The very next call works or says that the shell is a new one; the one after it works.
        let next = text(&tree.call("/bin/echo one"));
        assert!(
            next.contains("one") || next.contains("was restarted"),
            "{command:?} then {next:?}"
        );
        let reset = tree.input(r#"{"restart":true,"command":"/bin/echo two; (exit 4)"}"#);
        assert_eq!(text(&reset), "two\nexit code: 4", "{command:?}");
    }
}

fn syntax_errors_and_control_flow_cost_no_state() {
    // TOOL-BASH-5
    let mut tree = Tree::with(quick(), Proc::Given);
    tree.ok("x=kept");
    for command in [
        "echo (",
        "echo 'a",
        "cat <<E\nfoo",
        "if",
        "return 5",
        "break",
        "exec 1>&-",
        "exec >log",
        "exec </dev/null",
        "exec 58<&- 59>&-",
        "echo $((1/0))",
        "shopt -s extdebug",
        "set -o posix",
        "echo (",
        "set +o posix",
        "IFS=0123456789",
        "unset IFS",
        "trap '' 1 2 3 15",
        "mkdir g; cd g; rmdir ../g",
        "kill -9 0 & wait",
        "eval() { :; }; echo() { :; }",
        "set -x",
        "set +x",
        "ulimit -n 64",
    ] {
        if command.starts_with("kill -9 0") {
            continue; // ends the shell's group, and the shell is in it
        }
        tree.call(command);
        let got = tree.ok("printf '%s' \"$x\"");
        assert!(got.ends_with("kept"), "{command:?}: {got:?}");
    }
}

fn a_report_of_an_earlier_call_is_not_one_of_this() {
    // TOOL-BASH-4: a nonce of its own for each call.
    let mut tree = Tree::with(quick(), Proc::Given);
    // Takes the second line, with the nonce, out of the pipe, and reports it in the next call.
    let thief = "exec 7</proc/$$/fd/0; (timeout 0.3 cat /proc/$PPID/fd/1* >/dev/null) ; true";
    tree.call(thief);
    let forged = "for n in 0000000000000000 ffffffffffffffff; do echo $n 0 >/proc/$$/fd/59; done 2>/dev/null; (exit 6)";
    let result = tree.call(forged);
    assert!(text(&result).ends_with("exit code: 6"), "{result:?}");
}

fn very_long_commands_run() {
    let mut tree = Tree::with(quick(), Proc::Given);
    let long = format!("x='{}'; echo ${{#x}}", "äbcd".repeat(1_000_000));
    assert!(long.len() > 5_000_000);
    assert_eq!(tree.ok(&long), "4000000");
    assert_eq!(tree.ok("echo ${#x}"), "4000000");
    let quotes = format!("x='{}'; echo ${{#x}}", "ä'\\''".repeat(10_000));
    assert_eq!(tree.ok(&quotes), "20000");
    let heredoc = format!("wc -c <<'E'\n{}\nE", "x".repeat(5_000_000));
    assert_eq!(tree.ok(&heredoc), "5000001");
}

fn endless_output_takes_no_memory_and_does_not_delay_the_time_limit() {
    // INV-11
    let mut tree = Tree::with(quick(), Proc::Given);
    tree.ok("x=1");
    let before = peak_kib();
    let begun = Instant::now();
    let result = tree.limited("cat /dev/zero", 1500);
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    assert!(result.facts.truncated && result.facts.output_bytes > 10_000_000, "{:?}", result.facts);
    // Other tests run in this process, with commands of some megabytes.
    let grown = (peak_kib() - before) * 1024;
    assert!(grown < result.facts.output_bytes / 2, "{grown} bytes more, {:?}", result.facts);
    assert_eq!(tree.ok("echo $x"), "1");
    // A background process that never stops writing: each call still ends.
    tree.ok("yes & :");
    for _ in 0..3 {
        let result = tree.call("echo $x");
        assert!(!result.is_error && !result.facts.timed_out, "{:?}", result.facts);
    }
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

fn a_full_process_table_is_an_explained_error() {
    // The limit counts all processes of a user, so as root only, with an id that nobody else has.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let user = ["setpriv", "--reuid=61234", "--clear-groups", "--inh-caps=-all"];
    let above = [&user[..], &["prlimit", "--nproc=4"]].concat();
    let mut tree = Tree::below(&above, quick(), Proc::Given);
    tree.call("sleep 60 & sleep 60 & exit 1"); // keeper and two are left
    let mut fourth = std::process::Command::new(user[0]);
    let mut fourth = fourth.args(&user[1..]).args(["sleep", "60"]).spawn().expect("sleep");
    let comm = format!("/proc/{}/comm", fourth.id());
    let deadline = Instant::now() + Duration::from_secs(10);
    // Before that it may not have changed its user.
    while !std::fs::read_to_string(&comm).is_ok_and(|name| name == "sleep\n") {
        assert!(Instant::now() < deadline, "it does not become `sleep`");
        std::thread::sleep(Duration::from_millis(2));
    }
    let result = tree.call("true");
    let want = "bash: cannot start the shell: the limit on processes was reached (`restart: true` \
         ends what earlier calls left running)";
    assert_eq!((text(&result).as_str(), result.is_error), (want, true));
    let fresh = tree.input(r#"{"restart":true,"command":"echo hi"}"#);
    assert_eq!(text(&fresh), "hi");
    fourth.kill().expect("killed");
    fourth.wait().expect("reaped");
}
