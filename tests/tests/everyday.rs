//! What an agent must be able to do (`design.md` §5, last point): everyday programs under the
//! default policy, at both levels. A layer that breaks one of these is wrong.
//!
//! Each program is a bash script that must end with status 0 and print its last word. Programs of
//! tools that the host lacks are left out with a printed reason; the tools that the issue names
//! are required.

mod everyday_table;

use std::sync::Mutex;
use std::thread;

use e2e::{Exec, Level, Need, locate, require};
use everyday_table::{BUILD, KERNEL, PYTHON, Program, SHELL, TOOLS};

/// Runs programs at both levels, two at a time, and reports all failures together.
fn check(programs: &[Program]) {
    let usable: Vec<&Program> = programs
        .iter()
        .filter(|program| {
            let missing = program.tools.iter().find(|tool| locate::tool(tool).is_none());
            if let Some(tool) = missing {
                eprintln!("left out: {}: the host has no {tool}", program.name);
            }
            missing.is_none()
        })
        .collect();
    let todo: Mutex<Vec<(Level, &Program)>> = Mutex::new(
        Level::here().iter().flat_map(|level| usable.iter().map(|p| (*level, *p))).collect(),
    );
    let wrong = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let next = todo.lock().expect("no thread panics with the lock").pop();
                    let Some((level, program)) = next else { return };
                    if let Some(failure) = attempt(level, program) {
                        wrong.lock().expect("no thread panics with the lock").push(failure);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("all threads have ended");
    assert!(wrong.is_empty(), "{} programs failed:\n{}", wrong.len(), wrong.join("\n\n"));
}

fn attempt(level: Level, program: &Program) -> Option<String> {
    let mut command = program.runner.to_vec();
    command.push(program.script);
    let outcome = Exec::at(level).run(&command);
    let last = outcome.stdout.trim_end().rsplit('\n').next().unwrap_or_default();
    let good = outcome.ok() && last.contains(program.says);
    let (name, says) = (program.name, program.says);
    (!good).then(|| format!("{level:?}: {name}: wanted `{says}`: {}", outcome.text()))
}

#[test]
fn python_programs_run() {
    require!(Need::Tool("python3"));
    check(PYTHON);
}

#[test]
fn compilers_and_version_control_run() {
    require!(Need::Tool("gcc"), Need::Tool("make"), Need::Tool("git"));
    check(BUILD);
}

#[test]
fn shell_programs_run() {
    require!(Need::Tool("script"), Need::Tool("ps"));
    check(SHELL);
}

#[test]
fn other_runtimes_and_tools_run() {
    require!(Need::Tool("perl"), Need::Tool("strace"), Need::Tool("gdb"));
    check(TOOLS);
}

#[test]
fn kernel_interfaces_that_programs_rely_on_work() {
    require!(Need::Tool("python3"));
    check(KERNEL);
}

#[test]
fn there_are_enough_programs_and_none_twice() {
    let all: Vec<&str> = [PYTHON, BUILD, SHELL, TOOLS, KERNEL]
        .iter()
        .flat_map(|table| table.iter().map(|program| program.name))
        .collect();
    let unique: std::collections::BTreeSet<_> = all.iter().collect();
    assert!(all.len() >= 35 && unique.len() == all.len(), "{} programs", all.len());
}

#[test]
fn ten_megabytes_of_output_arrive_whole() {
    for level in Level::here() {
        let outcome = Exec::at(level).bash("head -c 10485760 /dev/zero | tr '\\0' x; echo end >&2");
        assert!(outcome.ok(), "{level:?}: {:?} {}", outcome.end, outcome.stderr);
        assert_eq!(outcome.stdout.len(), 10 << 20, "{level:?}");
        assert!(outcome.stderr.contains("end"), "{level:?}: {}", outcome.stderr);
    }
}

#[test]
fn standard_input_arrives_whole() {
    for level in Level::here() {
        let input: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        let outcome = Exec::at(level).stdin(input).bash("wc -c");
        assert_eq!(outcome.stdout.trim(), "3000000", "{level:?}: {}", outcome.text());
        let empty = Exec::at(level).bash("cat; echo end of input");
        assert_eq!(empty.stdout.trim(), "end of input", "{level:?}: {}", empty.text());
    }
}

#[test]
fn the_status_of_a_command_is_the_status_of_the_run() {
    use e2e::End::Exit;
    let cases = [("exit 0", 0), ("exit 1", 1), ("exit 42", 42), ("exit 255", 255)];
    let signals = [("kill -TERM $$", 143), ("kill -KILL $$", 137), ("kill -SEGV $$", 139)];
    for level in Level::here() {
        for (script, want) in cases.into_iter().chain(signals) {
            let outcome = Exec::at(level).bash(script);
            assert_eq!(outcome.end, Exit(want), "{level:?} `{script}`: {}", outcome.text());
        }
    }
}

#[test]
fn the_jail_looks_as_the_agent_is_told() {
    let script = "pwd; id -u; id -g; echo $HOME; test -w . && test -w /mnt/session/outputs && \
                  test -w /tmp && test -w /dev/shm && test -w \"$HOME\" && echo writable; \
                  ls -A /run | wc -l; ls -A /workspace | wc -l; ls -A /tmp | wc -l";
    for level in Level::here() {
        let outcome = Exec::at(level).bash(script);
        let lines: Vec<&str> = outcome.stdout.lines().collect();
        assert_eq!(lines.len(), 8, "{level:?}: {}", outcome.text());
        assert_eq!(&lines[..3], ["/workspace", "1000", "1000"], "{level:?}: {}", outcome.text());
        assert_eq!(&lines[4..], ["writable", "0", "0", "0"], "{level:?}: {}", outcome.text());
    }
}

#[test]
fn a_bound_workspace_keeps_what_was_done() {
    for level in Level::here() {
        let dir = e2e::exec::directory_of(level);
        let one = Exec::at(level).workspace(dir.path()).bash("mkdir a; echo one >a/f; chmod 750 a");
        let two = Exec::at(level).workspace(dir.path()).bash("cat a/f; mv a/f g; rmdir a");
        assert!(one.ok() && two.ok(), "{level:?}: {} {}", one.text(), two.text());
        assert_eq!(two.stdout, "one\n", "{level:?}");
        let names = std::fs::read_dir(dir.path()).expect("cannot list").flatten();
        let names: Vec<_> = names.map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["g"], "{level:?}: {}", two.text());
    }
}
