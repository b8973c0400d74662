//! The script that looks for rules without a test, given projects in which it must find each kind of
//! mistake, and one in which it must find none. What it says of this project is asked by `scripts/test`.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A project of its own: these files, by path.
fn project_of(files: &[(&str, &str)]) -> TempDir {
    let place = TempDir::new().expect("cannot make a directory");
    for (path, text) in files {
        let path = place.path().join(path);
        fs::create_dir_all(path.parent().expect("in a directory")).expect("cannot make one");
        fs::write(path, text).expect("cannot write a file");
    }
    place
}

/// What the script says of a project, and whether it is content.
fn asked(place: &Path, options: &[&str]) -> (bool, String) {
    let done = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/coverage-of-rules"))
        .arg("--root")
        .arg(place)
        .args(options)
        .output()
        .expect("cannot run the script");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.success(), text(&done.stdout) + &text(&done.stderr))
}

const LIST: &str = r#"# Letters that are no family of the real list.
ABC-1 = { tag = "N", title = "first" }
ABC-2 = { tag = "R", title = "second", explained = "nobody can" }
ABC-3 = { tag = "none", title = "third" }
ABC-XYZ-4 = { tag = "N", title = "fourth", side = "server" }
"#;

const MODULE: &str = "//! About ABC-3.\n\n/// ABC-3.\npub fn f() {}\n\n#[cfg(test)]\nmod tests {\n    \
                      #[test]\n    fn g() {\n        // ABC-1.\n    }\n}\n\n// ABC-3.\npub fn h() {}\n";

#[test]
fn every_rule_that_no_test_cites_is_named() {
    let server = ("worker/src/devserver/tests/a.rs", "// ABC-XYZ-4.\n");
    let module = ("runtime/src/a.rs", MODULE);
    let list = ("tests/rules.toml", LIST);
    // A rule is named by its id, and cited by test code only.
    let without = project_of(&[list, module, server]);
    let (content, said) = asked(without.path(), &[]);
    assert!(!content, "{said}");
    assert!(said.contains("no test cites ABC-3: third\n"), "{said}");
    assert!(said.contains("4 rules: 2 cited by tests, 1 explained, 1 open\n"), "{said}");
    assert_eq!(said.matches("no test cites").count(), 1, "{said}");

    for (path, text) in [
        ("tests/tests/b.rs", "// ABC-3.\n"),
        ("worker/src/b_tests.rs", "    // See ABC-3, and more.\n"),
        ("worker/src/deep/tests.rs", "assert!(f(), \"ABC-3\");\n"),
        ("worker/tests/b.rs", "// ABC-1…3.\n"),
        ("worker/src/b.rs", "#[cfg(test)]\n#[path = \"x\"]\npub(crate) mod t {\n    // ABC-3\n}\n"),
    ] {
        let place = project_of(&[list, module, server, (path, text)]);
        let (content, said) = asked(place.path(), &[]);
        assert!(content, "{path}: {said}");
    }
    for (path, text) in [
        ("tests/tests/b.rs", "//! ABC-3.\n"),
        ("worker/src/b.rs", "// ABC-3.\n"),
        ("worker/src/b.rs", "#[cfg(test)]\nuse a::b;\n// ABC-3.\nmod c {\n    // ABC-3.\n}\n"),
        ("worker/src/devserver/tests/b.rs", "// ABC-3.\n"),
        ("tests/tests/b.rs", "// XABC-3, ABC-3x, ABC-33x, ABC_3, AABC-3.\n"),
    ] {
        let place = project_of(&[list, module, server, (path, text)]);
        let (content, said) = asked(place.path(), &[]);
        assert!(!content && said.contains("no test cites ABC-3"), "{path}: {text}: {said}");
    }
}

#[test]
fn an_id_that_is_no_rule_is_an_error_and_a_needless_explanation_is_told() {
    let all = "// ABC-1…3.\n// ABC-XYZ-4.\n";
    let place = project_of(&[("tests/rules.toml", LIST), ("tests/tests/a.rs", all)]);
    let (content, said) = asked(place.path(), &["--list"]);
    assert!(content, "{said}");
    assert!(said.contains("ABC-2 is explained as not tested, and tests/tests/a.rs:1"), "{said}");
    assert!(said.contains("ABC-1 first\n    tests/tests/a.rs:1\n"), "{said}");

    let wrong = ("tests/tests/b.rs", "\n// ABC-9.\n");
    let place = project_of(&[("tests/rules.toml", LIST), ("tests/tests/a.rs", all), wrong]);
    let (content, said) = asked(place.path(), &[]);
    assert!(!content, "{said}");
    assert!(said.contains("tests/tests/b.rs:2 cites ABC-9, which is no rule"), "{said}");
}

#[test]
fn a_list_that_cannot_be_read_is_named_with_its_line() {
    for line in [
        "ABC-1",
        "ABC-1 = { tag = \"N\" }",
        "ABC-1 = { tag = \"X\", title = \"t\" }",
        "ABC-1 = { tag = \"N\", title = \"t\", more = \"x\" }",
        "ABC-1 = { tag = \"N\", title = \"t\", explained = \"\" }",
        "ABC-1 = { tag = \"N\", title = \"t\" } # x",
        "abc-1 = { tag = \"N\", title = \"t\" }",
        "ABC-2 = { tag = \"N\", title = \"twice\" }",
    ] {
        let good = "ABC-2 = { tag = \"N\", title = \"t\" }";
        let place = project_of(&[("tests/rules.toml", &format!("{good}\n{line}\n"))]);
        let (content, said) = asked(place.path(), &[]);
        assert!(!content && said.contains("tests/rules.toml:2: "), "{line}: {said}");
    }
}
