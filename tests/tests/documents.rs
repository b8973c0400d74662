//! What the documents say, tried: examples are run, policies are checked, links and file names are
//! looked up. How an example is written is explained in CONTRIBUTING.md.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use e2e::Level;
use e2e::level::we_are_root;
use e2e::locate::{self, SEARCH_PATH};
use e2e::lock::{self, Shared};
use e2e::needs::skip;
use tempfile::TempDir;

/// Documents with examples that are run.
const RUN: &[&str] = &[
    "README.md",
    "docs/audit.md",
    "docs/aws.md",
    "docs/custom-tools.md",
    "docs/devserver.md",
    "docs/egress.md",
    "docs/exit-codes.md",
    "docs/memory.md",
    "docs/policy.md",
    "docs/poll.md",
    "docs/queue.md",
    "docs/skills.md",
    "docs/run.md",
    "docs/staging.md",
];
const SECONDS_PER_BLOCK: &str = "120";
/// Printed between two commands of a block; ASCII "record separator".
const SEPARATOR: &str = "\u{1e}";

#[test]
fn examples_of_the_page_on_aws_run() {
    run_examples("docs/aws.md");
}

#[test]
fn examples_of_the_readme_do_what_it_says() {
    run_examples("README.md");
}

#[test]
fn examples_of_the_exit_codes_do_what_they_say() {
    run_examples("docs/exit-codes.md");
}

#[test]
fn examples_of_the_page_on_memory_do_what_it_says() {
    run_examples("docs/memory.md");
}

#[test]
fn examples_of_the_policy_reference_do_what_it_says() {
    run_examples("docs/policy.md");
}

#[test]
fn examples_of_the_audit_log_do_what_it_says() {
    run_examples("docs/audit.md");
}

#[test]
fn examples_of_the_page_on_egress_do_what_it_says() {
    run_examples("docs/egress.md");
}

#[test]
fn examples_of_the_page_on_other_modes_do_what_it_says() {
    run_examples("docs/run.md");
}

#[test]
fn examples_of_the_page_on_poll_do_what_it_says() {
    run_examples("docs/poll.md");
}

#[test]
fn examples_of_custom_tools_do_what_they_say() {
    run_examples("docs/custom-tools.md");
}

#[test]
fn examples_of_the_page_on_the_queue_do_what_it_says() {
    run_examples("docs/queue.md");
}

#[test]
fn examples_of_the_page_on_skills_do_what_it_says() {
    run_examples("docs/skills.md");
}

#[test]
fn examples_of_the_page_on_staged_input_do_what_it_says() {
    run_examples("docs/staging.md");
}

#[test]
fn examples_of_the_development_server_do_what_it_says() {
    run_examples("docs/devserver.md");
}

#[test]
fn no_other_document_has_examples_that_nobody_runs() {
    for document in documents() {
        let runs = blocks(&read(&document)).iter().any(|block| block.info == "console run");
        assert!(!runs || RUN.contains(&document.as_str()), "{document} is not in the list");
    }
}

#[test]
fn policies_in_documents_are_valid() {
    let place = Place::new();
    for document in documents() {
        for block in blocks(&read(&document)).iter().filter(|block| block.info == "toml") {
            let name = block.file_name().unwrap_or_else(|| {
                panic!("{document}:{}: a policy begins with `# NAME.toml`", block.line)
            });
            fs::write(place.path().join(name), block.lines.join("\n") + "\n").expect("written");
            let output = place.worker(&["policy", "check", &format!("./{name}")]);
            assert!(output.status.success(), "{document}:{}: {}", block.line, both(&output));
        }
    }
}

#[test]
fn scripts_in_documents_are_valid() {
    let place = Place::new();
    for document in documents() {
        for block in blocks(&read(&document)).iter().filter(|block| block.info == "toml script") {
            let name = block.file_name().unwrap_or_else(|| {
                panic!("{document}:{}: a script begins with `# NAME.toml`", block.line)
            });
            fs::write(place.path().join(name), block.lines.join("\n") + "\n").expect("written");
            let output = place.worker(&["devserver", "--script", name, "--timeout", "1ms"]);
            assert_ne!(
                output.status.code(),
                Some(2),
                "{document}:{}: {}",
                block.line,
                both(&output)
            );
        }
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for document in documents() {
        let file = project().join(&document);
        let folder = file.parent().expect("a document is in a folder");
        for target in links(&read(&document)) {
            let path = target.split('#').next().unwrap_or_default();
            if !path.is_empty() && !target.contains("://") {
                assert!(folder.join(path).exists(), "{document} leads to {target}");
            }
        }
    }
}

#[test]
fn the_architecture_names_every_source_file_and_no_other() {
    let named = named_files(&read("ARCHITECTURE.md"));
    for root in ["runtime/src", "worker/src"] {
        let (mut found, mut covered) = (BTreeSet::new(), BTreeSet::new());
        source_files(&project().join(root), Path::new(""), &mut found);
        let ours = named.iter().filter_map(|name| name.strip_prefix(root)?.strip_prefix('/'));
        for name in ours {
            let of: Vec<_> = found
                .iter()
                .filter(|file| *file == name || name.ends_with('/') && file.starts_with(name))
                .cloned()
                .collect();
            assert!(!of.is_empty(), "ARCHITECTURE.md names {root}/{name}, which does not exist");
            covered.extend(of);
        }
        let missing: Vec<_> = found.difference(&covered).collect();
        assert!(missing.is_empty(), "ARCHITECTURE.md does not name {missing:?} of {root}");
    }
    // Files named elsewhere on the page, by whatever part of their path.
    let mut all = BTreeSet::new();
    for root in ["runtime", "worker"] {
        source_files(&project().join(root), Path::new(root), &mut all);
    }
    let text = read("ARCHITECTURE.md");
    let today = text.split("## What will be added").next().unwrap_or_default();
    for token in code_spans(today).iter().filter(|token| token.ends_with(".rs")) {
        let known = all.iter().any(|file| file == token || file.ends_with(&format!("/{token}")));
        assert!(known, "ARCHITECTURE.md names {token}, which does not exist");
    }
}

#[test]
fn every_command_has_help_and_a_manual_page() {
    let place = Place::new();
    let mut commands = vec![Vec::<String>::new()];
    let mut next = 0;
    while let Some(command) = commands.get(next).cloned() {
        next += 1;
        let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        arguments.push("--help");
        let output = place.worker(&arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "worker {arguments:?}: {}", both(&output));
        assert!(text.contains("Usage: worker"), "worker {arguments:?} does not say how to use it");
        for name in subcommands(&text) {
            let mut deeper = command.clone();
            deeper.push(name);
            commands.push(deeper);
        }
    }
    assert!(commands.len() >= 12, "only {} commands were found", commands.len());
    assert!(place.worker(&["man", "--dir", "pages"]).status.success());
    for command in &commands {
        let parts: Vec<&str> =
            std::iter::once("worker").chain(command.iter().map(String::as_str)).collect();
        let page = place.path().join("pages").join(format!("{}.1", parts.join("-")));
        let text = fs::read_to_string(&page).unwrap_or_default();
        assert!(text.contains(".SH NAME"), "no manual page {}", page.display());
    }
    assert!(place.worker(&["man"]).stdout.starts_with(b".ie"), "worker man prints a page");
}

#[test]
fn completions_are_made_for_every_shell() {
    let place = Place::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = place.worker(&["completions", shell]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("exec"), "completions {shell}");
    }
}

#[test]
fn an_example_matches_its_pattern_line_by_line() {
    #[rustfmt::skip]
    let cases = [
        ("a\nb",       "a\nb",          true),
        ("a",          "a\nb",          false), // the output is longer
        ("a\nb",       "a",             false),
        ("…\nb",       "a\nx\nb",       true),
        ("a\n…",       "a",             true),  // `…` may stand for nothing
        ("id=… gid=1", "id=77 gid=1",   true),
        ("id=… gid=1", "id=77 gid=12",  false),
        ("",           "",              true),
        ("",           "warning",       false),
    ];
    for (pattern, text, want) in cases {
        let got = matches(&lines(pattern), &lines(text));
        assert_eq!(got, want, "`{pattern}` against `{text}`");
    }
}

// ---- running examples ---------------------------------------------------------------------------

/// A directory for one document, with `worker` on the path; gone at the end.
struct Place {
    directory: TempDir,
    _turn: Shared,
}

impl Place {
    fn new() -> Self {
        let turn = lock::shared();
        let directory = TempDir::new().expect("cannot make a directory for examples");
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), open).expect("cannot open it to all");
        let (programs, work) = (directory.path().join("bin"), directory.path().join("work"));
        fs::create_dir(&programs).expect("cannot make a directory for the worker");
        symlink(locate::worker(), programs.join("worker")).expect("cannot link the worker");
        fs::create_dir(&work).expect("cannot make a directory for the commands");
        let uid = Level::Rootless.uid();
        chown(&work, Some(uid), Some(uid)).expect("cannot give it to its user");
        Place { directory, _turn: turn }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("work")
    }

    /// A command in the directory, as root or as an ordinary user.
    fn command(&self, level: Level, argv: &[&str]) -> Command {
        let mut words = level.prefix();
        words.extend(["timeout", "-s", "KILL", SECONDS_PER_BLOCK].map(str::to_owned));
        words.extend(argv.iter().map(|&word| word.to_owned()));
        let path = format!("{}:{SEARCH_PATH}", self.directory.path().join("bin").display());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(self.path()).stdin(Stdio::null());
        command.env_clear().env("PATH", path).env("LANG", "C.UTF-8").env("HOME", self.path());
        command
    }

    fn worker(&self, arguments: &[&str]) -> Output {
        let mut argv = vec!["worker"];
        argv.extend(arguments);
        self.command(Level::Rootless, &argv).output().expect("cannot run the worker")
    }
}

fn run_examples(document: &str) {
    let place = Place::new();
    let mut wrong = Vec::new();
    for block in blocks(&read(document)) {
        if matches!(block.info.as_str(), "toml" | "toml script" | "toml config")
            && let Some(name) = block.file_name()
        {
            fs::write(place.path().join(name), block.lines.join("\n") + "\n").expect("written");
        }
        if block.info != "console run" {
            continue;
        }
        let examples = block.examples();
        assert!(!examples.is_empty(), "{document}:{}: no command", block.line);
        let root = examples[0].command.starts_with("sudo ");
        if root && !we_are_root() {
            skip(&format!("{document}:{} needs root", block.line));
            continue;
        }
        let level = if root { Level::Root } else { Level::Rootless };
        wrong.extend(run_block(&place, &examples, level).iter().map(|text| {
            let line = block.line;
            format!("{document}:{line}: {text}")
        }));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs the commands of one block in one shell; says which did not print what they should.
fn run_block(place: &Place, examples: &[Example], level: Level) -> Vec<String> {
    let mut script = "exec 2>&1\n".to_owned();
    for example in examples {
        let command = example.command.strip_prefix("sudo ").unwrap_or(&example.command);
        // The next command may ask for `$?`.
        script.push_str(&format!("{command}\n_status=$?; printf '\\036'; (exit $_status)\n"));
    }
    let output = place.command(level, &["bash", "-c", &script]).output().expect("cannot run bash");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let parts: Vec<&str> = text.split(SEPARATOR).collect();
    let mut wrong = Vec::new();
    for (number, example) in examples.iter().enumerate() {
        let printed = parts.get(number).copied().unwrap_or("(not reached)");
        if !matches(&example.expected, &lines(printed)) {
            let expected = example.expected.join("\n");
            let command = &example.command;
            wrong.push(format!("`{command}`\nexpected:\n{expected}\nprinted:\n{printed}"));
        }
    }
    wrong
}

/// Whether `text` fits `pattern`, in which `…` stands for any text, and alone for any lines.
fn matches(pattern: &[String], text: &[String]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "…" => {
            (0..=text.len()).any(|skipped| matches(rest, &text[skipped..]))
        }
        (Some((first, rest)), Some((line, more))) => line_fits(first, line) && matches(rest, more),
        _ => false,
    }
}

fn line_fits(pattern: &str, line: &str) -> bool {
    let Some((before, after)) = pattern.split_once('…') else { return pattern == line };
    let Some(rest) = line.strip_prefix(before) else { return false };
    let starts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    starts.into_iter().any(|at| line_fits(after, &rest[at..]))
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

// ---- reading documents --------------------------------------------------------------------------

/// A fenced block.
struct Block {
    /// What stands after the opening fence.
    info: String,
    /// Where the opening fence is, from 1.
    line: usize,
    lines: Vec<String>,
}

/// A command and what it must print.
struct Example {
    command: String,
    expected: Vec<String>,
}

impl Block {
    /// The name in a first line `# NAME.toml`.
    fn file_name(&self) -> Option<&str> {
        let name = self.lines.first()?.strip_prefix("# ")?;
        (name.ends_with(".toml") && !name.contains([' ', '/'])).then_some(name)
    }

    fn examples(&self) -> Vec<Example> {
        let mut examples: Vec<Example> = Vec::new();
        for line in &self.lines {
            match (line.strip_prefix("$ "), examples.last_mut()) {
                (Some(command), _) => {
                    examples.push(Example { command: command.to_owned(), expected: Vec::new() });
                }
                (None, Some(example)) => example.expected.push(line.clone()),
                (None, None) => {}
            }
        }
        examples
    }
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in text.lines().enumerate() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(info), None) => {
                let info = info.trim().to_owned();
                open = Some(Block { info, line: number + 1, lines: Vec::new() });
            }
            (Some(_), Some(block)) => blocks.push(block),
            (None, Some(mut block)) => {
                block.lines.push(line.to_owned());
                open = Some(block);
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fenced block is not closed");
    blocks
}

/// Targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let after = text.split("](").skip(1);
    after.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned()).collect()
}

/// What stands between backquotes on one line.
fn code_spans(text: &str) -> Vec<String> {
    let odd = |line: &str| -> Vec<String> {
        line.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    text.lines().filter(|line| !line.starts_with("```")).flat_map(odd).collect()
}

/// The paths that the section "Files" names: a line that begins with `` `ROOT` `` opens a list, and
/// an entry that begins with `` `FOLDER/` `` names files of that folder.
fn named_files(text: &str) -> BTreeSet<String> {
    let section = text.split("\n## Files\n").nth(1).expect("a section `Files`");
    let section = section.split("\n## ").next().unwrap_or_default();
    let (mut root, mut folder) = (None, String::new());
    let mut named = BTreeSet::new();
    for line in section.lines() {
        let mut spans = code_spans(line);
        if line.starts_with('`') {
            root = spans.first().filter(|span| span.ends_with("/src")).cloned();
            continue;
        }
        let Some(root) = root.as_ref() else { continue };
        if line.starts_with("- ") {
            folder.clear();
            if spans.first().is_some_and(|span| span.ends_with('/')) {
                folder = spans.remove(0);
            }
        }
        let files = spans.iter().filter(|span| span.ends_with(".rs") || span.ends_with('/'));
        named.extend(files.map(|file| format!("{root}/{folder}{file}")));
    }
    named
}

/// Every `.rs` file below `directory`, as a path that begins with `below`.
fn source_files(directory: &Path, below: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("cannot list the source").flatten() {
        let path = below.join(entry.file_name());
        if entry.path().is_dir() {
            source_files(&entry.path(), &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.insert(path.display().to_string());
        }
    }
}

/// Names under "Commands:" in a help text.
fn subcommands(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    listed
        .take_while(|line| line.starts_with("  "))
        .filter(|line| !line.starts_with("    "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

fn documents() -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["", "docs"] {
        for entry in fs::read_dir(project().join(folder)).expect("cannot list").flatten() {
            let name = Path::new(folder).join(entry.file_name());
            if name.extension().is_some_and(|extension| extension == "md") {
                found.push(name.display().to_string());
            }
        }
    }
    assert!(found.len() >= 9, "only {found:?} were found");
    found
}

fn read(document: &str) -> String {
    let path = project().join(document);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

// ---- the machine --------------------------------------------------------------------------------

fn project() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("the tests are a member of the workspace").to_owned()
}

fn both(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}
