//! TOOL-GLOB

use std::fs::{self, File, FileTimes};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::{Fixture, fifo};

/// The matches as paths from the workdir, sorted.
fn matches(fixture: &Fixture, input: &Value) -> Vec<String> {
    let text = fixture.good("glob", input);
    let workdir = fixture.path("").canonicalize().expect("a path");
    let below = |line: &str| {
        let path = std::path::Path::new(line).strip_prefix(&workdir).expect(line);
        path.display().to_string()
    };
    let mut found: Vec<String> =
        text.lines().filter(|line| *line != "no matches").map(below).collect();
    found.sort();
    found
}

fn tree() -> Fixture {
    let fixture = Fixture::new();
    for path in [
        "a.rs",
        "b.txt",
        ".hidden",
        "[x].rs",
        "sp ace.rs",
        "src/a.rs",
        "src/deep/b.rs",
        "src/deep/.c.rs",
        "src/deep/er/d.rs",
        "test/a.rs",
        ".git/config",
        ".git/refs/x",
        "lib/node_modules/p/index.js",
        "lib/node_modules/p/node_modules/q/index.js",
        "lib/index.js",
        ".github/ci.yml",
    ] {
        fixture.file(path, "x");
    }
    fixture
}

#[test]
fn patterns_mean_what_the_table_says() {
    // TOOL-GLOB-5
    let fixture = tree();
    #[rustfmt::skip]
    let cases: &[(&str, &[&str])] = &[
        ("*", &[".git", ".github", ".hidden", "[x].rs", "a.rs", "b.txt", "lib", "sp ace.rs", "src", "test"]),
        ("*.rs", &["[x].rs", "a.rs", "sp ace.rs"]),
        ("?.rs", &["a.rs"]),
        ("./a.rs", &["a.rs"]),
        ("a.rs", &["a.rs"]),
        ("A.rs", &[]),
        ("sp ace*", &["sp ace.rs"]),
        (".*", &[".git", ".github", ".hidden"]),
        ("[ab].*", &["a.rs", "b.txt"]),
        ("[!a].*", &["b.txt"]),
        ("[^a].*", &["b.txt"]),
        ("[a-b].rs", &["a.rs"]),
        ("[[]x].rs", &["[x].rs"]),
        (r"\[x\].rs", &["[x].rs"]),
        ("src/*", &["src/a.rs", "src/deep"]),
        ("src//a.rs", &["src/a.rs"]),
        ("src", &["src"]),
        ("src/", &["src"]),
        ("s*/", &["src"]),
        ("a.rs/", &[]),
        ("a.rs/*", &[]),
        ("*/a.rs", &["src/a.rs", "test/a.rs"]),
        ("**/a.rs", &["a.rs", "src/a.rs", "test/a.rs"]),
        ("src/**", &["src/a.rs", "src/deep", "src/deep/.c.rs", "src/deep/b.rs", "src/deep/er", "src/deep/er/d.rs"]),
        ("src/**/", &["src/deep", "src/deep/er"]),
        ("src/**/**", &["src/a.rs", "src/deep", "src/deep/.c.rs", "src/deep/b.rs", "src/deep/er", "src/deep/er/d.rs"]),
        ("src/**/*.rs", &["src/a.rs", "src/deep/.c.rs", "src/deep/b.rs", "src/deep/er/d.rs"]),
        ("src/**/deep/**/d.rs", &["src/deep/er/d.rs"]),
        ("**/deep/*.rs", &["src/deep/.c.rs", "src/deep/b.rs"]),
        ("src**", &["src"]),
        ("src/*/**", &["src/deep/.c.rs", "src/deep/b.rs", "src/deep/er", "src/deep/er/d.rs"]),
        ("{a,b}.*", &["a.rs", "b.txt"]),
        ("{src,test}/*.rs", &["src/a.rs", "test/a.rs"]),
        ("{src/deep,test}/*.rs", &["src/deep/.c.rs", "src/deep/b.rs", "test/a.rs"]),
        ("{,src/}a.rs", &["a.rs", "src/a.rs"]),
        ("{a,{b,c}}.{rs,txt}", &["a.rs", "b.txt"]),
        ("**/*.{js,yml}", &[".github/ci.yml", "lib/index.js"]),
        ("{*,a}.rs", &["[x].rs", "a.rs", "sp ace.rs"]),
        // Not entered unless named (TOOL-GLOB-5), yet found themselves.
        ("**/config", &[]),
        ("*/config", &[]),
        (".g*/config", &[]),
        (".git/*", &[".git/config", ".git/refs"]),
        (".git/**", &[".git/config", ".git/refs", ".git/refs/x"]),
        ("**/.git/**/x", &[".git/refs/x"]),
        ("lib/**/index.js", &["lib/index.js"]),
        ("lib/node_modules", &["lib/node_modules"]),
        ("lib/*", &["lib/index.js", "lib/node_modules"]),
        ("**/node_modules/*/index.js", &["lib/node_modules/p/index.js", "lib/node_modules/p/node_modules/q/index.js"]),
        ("{**/node_modules/p/index.js,**/config}", &["lib/node_modules/p/index.js"]),
        ("none/**", &[]),
        (".", &[]),
    ];
    for (pattern, want) in cases {
        assert_eq!(matches(&fixture, &json!({ "pattern": pattern })), *want, "{pattern}");
    }
}

#[test]
fn a_pattern_can_be_refused() {
    // TOOL-GLOB-1, TOOL-GLOB-2
    let fixture = tree();
    let absolute = "absolute pattern not permitted; pass a relative pattern (and optionally path)";
    let parent = "'..' is not permitted in the pattern";
    let long = "x".repeat(4_097);
    let many = "{a,b}".repeat(9);
    let cases = [
        ("", "pattern is required"),
        ("/etc/*", absolute),
        ("{/etc,src}/*", absolute),
        ("..", parent),
        ("../*", parent),
        ("src/../*", parent),
        ("src/{..,deep}/*", parent),
        (r"src\..\x", parent),
        ("{a,../b}", parent),
        (
            "a{",
            "invalid pattern: unclosed alternate group; missing '}' (maybe escape '{' with '[{]'?)",
        ),
        ("a[", "invalid pattern: unclosed character class; missing ']'"),
        ("[b-a]", "invalid pattern: invalid range; 'b' > 'a'"),
        (r"a\", "invalid pattern: dangling '\\'"),
        ("a\0", "invalid pattern: it contains a NUL character"),
        (&long, "invalid pattern: it is too long"),
        (&many, "invalid pattern: it stands for too many alternatives"),
    ];
    for (pattern, want) in cases {
        assert_eq!(fixture.bad("glob", &json!({ "pattern": pattern })), format!("glob: {want}"));
    }
    assert_eq!(matches(&fixture, &json!({ "pattern": "..a" })), [""; 0]);
}

#[test]
fn a_search_begins_at_the_path_and_shows_absolute_paths() {
    // TOOL-GLOB-2, TOOL-GLOB-4, TOOL-GEN-3
    let fixture = tree();
    fixture.link("way", "src/deep");
    let path = fixture.path("src/deep/b.rs").canonicalize().expect("a path");
    for at in [
        "src/deep",
        "way",
        "src/none/../deep",
        path.parent().and_then(|path| path.to_str()).expect("UTF-8"),
    ] {
        let input = json!({ "pattern": "b*", "path": at });
        assert_eq!(fixture.good("glob", &input), path.display().to_string(), "{at}");
    }
    for at in ["none", "none/none", "a.rs"] {
        assert_eq!(fixture.good("glob", &json!({ "pattern": "*", "path": at })), "no matches");
    }
    for at in [json!(""), json!(null), json!(".")] {
        assert_eq!(matches(&fixture, &json!({ "pattern": "a.rs", "path": at })), ["a.rs"]);
    }
    let inside = json!({ "pattern": "**/x", "path": ".git" });
    assert_eq!(matches(&fixture, &inside), [".git/refs/x"]);
}

#[test]
fn links_count_as_what_they_lead_to_and_are_not_entered() {
    // TOOL-GLOB-3, TOOL-GLOB-5
    let fixture = Fixture::new();
    fixture.file("real/file", "x");
    fs::write(fixture.beside("o/secret"), "x").expect("a file");
    fifo(&fixture.path("pipe"));
    fixture.link("l-file", "real/file");
    fixture.link("l-directory", "real");
    fixture.link("l-out", "../o/secret");
    fixture.link("l-out-directory", "../o");
    fixture.link("l-dangling", "none");
    fixture.link("l-self", "l-self");
    fixture.link("l-pipe", "pipe");
    assert_eq!(matches(&fixture, &json!({ "pattern": "l-*" })), ["real", "real/file"]);
    assert_eq!(matches(&fixture, &json!({ "pattern": "**" })), ["real", "real/file"]);
    assert_eq!(matches(&fixture, &json!({ "pattern": "l-*/" })), ["real"]);
    for pattern in ["l-directory/*", "l-out-directory/*", "l-out", "pipe"] {
        assert_eq!(fixture.good("glob", &json!({ "pattern": pattern })), "no matches", "{pattern}");
    }
    // Inside the workdir but outside the path that was searched.
    fixture.file("sub/x", "x");
    fixture.link("sub/up", "../real/file");
    let input = json!({ "pattern": "*", "path": "sub" });
    assert_eq!(matches(&fixture, &input), ["sub/x"]);
}

#[test]
fn the_newest_come_first_and_at_most_two_hundred() {
    // TOOL-GLOB-4, TOOL-GEN-2
    let fixture = Fixture::new();
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
    let set = |name: &str, after: Duration| {
        let file = File::options().write(true).open(fixture.file(name, "x")).expect("a file");
        file.set_times(FileTimes::new().set_modified(old + after)).expect("a time");
    };
    for number in 0..201 {
        set(&format!("same{number:03}"), Duration::ZERO);
    }
    set("young", Duration::from_nanos(5));
    set("younger", Duration::from_secs(1));
    let result = fixture.call("glob", &json!({ "pattern": "*" }));
    let text = super::text(&result);
    let shown: Vec<_> = text.lines().map(|line| line.rsplit('/').next().unwrap_or(line)).collect();
    assert_eq!(shown[..4], ["younger", "young", "same000", "same001"]);
    assert_eq!((shown.len(), shown.last()), (200, Some(&"same197")));
    assert!(result.facts.truncated);
    assert!(result.facts.output_bytes > text.len() as u64);
    let exact = fixture.call("glob", &json!({ "pattern": "same[01]*" }));
    assert_eq!((super::text(&exact).lines().count(), exact.facts.truncated), (200, false));
}

#[test]
fn a_search_ends_after_so_many_entries() {
    // TOOL-GLOB-6, INV-11
    let mut fixture = Fixture::new();
    for number in 0..10 {
        fixture.file(&format!("d{number}/file"), "x");
    }
    fixture.limits.glob_entries_max = 20;
    let whole = fixture.good("glob", &json!({ "pattern": "**/file" }));
    assert_eq!(whole.lines().count(), 10);
    fixture.limits.glob_entries_max = 19;
    let result = fixture.call("glob", &json!({ "pattern": "**/file" }));
    let part = super::text(&result);
    assert_eq!(part.lines().count(), 10, "{part}");
    // Which one is missing is up to the file system, and their order to the clock.
    let (found, note) = part.rsplit_once('\n').expect("two lines");
    assert!(found.lines().all(|line| whole.lines().any(|one| one == line)), "{part}");
    assert_eq!(note, "[the search was cut short after 19 entries]");
    assert!(result.facts.truncated && !result.is_error);
    // What a pattern names is looked up, not searched for.
    fixture.limits.glob_entries_max = 2;
    assert_eq!(matches(&fixture, &json!({ "pattern": "d7/file" })), ["d7/file"]);
    let nothing = fixture.good("glob", &json!({ "pattern": "**/none" }));
    assert_eq!(nothing, "no matches\n[the search was cut short after 2 entries]");
}

#[test]
fn a_deep_tree_needs_neither_stack_nor_descriptors() {
    // INV-11
    let fixture = Fixture::new();
    let deep = format!("{}file", "d/".repeat(1_900));
    let path = fixture.path("");
    // Made from within, as its whole path would be close to the longest that the kernel takes.
    fixture.good("write", &json!({ "file_path": deep, "content": "hit" }));
    let found = fixture.good("glob", &json!({ "pattern": "**/file" }));
    assert!(found.ends_with(&deep), "{found}");
    assert!(fixture.good("grep", &json!({ "pattern": "hit" })).ends_with("/file:1:hit"));
    // The standard library would need a descriptor for each level to remove it.
    let status = std::process::Command::new("rm").arg("-rf").arg(path.join("d")).status();
    assert!(status.expect("rm").success());
}

#[test]
fn names_that_are_not_text_are_shown_as_well_as_they_can_be() {
    // RUN-22
    use std::os::unix::ffi::OsStrExt as _;
    let fixture = Fixture::new();
    let name = std::ffi::OsStr::from_bytes(b"a\xffb");
    fs::write(fixture.path("").join(name), "hit").expect("a file");
    assert!(fixture.good("glob", &json!({ "pattern": "a?b" })).ends_with("/a\u{fffd}b"));
    assert!(fixture.good("grep", &json!({ "pattern": "hit" })).ends_with("/a\u{fffd}b:1:hit"));
}
