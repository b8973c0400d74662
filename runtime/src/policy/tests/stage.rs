//! Staging rules: every mistake with its place, what they mean, and what a child may make of them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::stage::{StageDigest, StageKind, StageSource, StageValue};
use super::super::{ByteSize, Origins, Policy, PolicyError};
use super::{resolve, resolve_text};

const SUM: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789ABCDEF";

/// One rule of https in which one line is replaced, `None` to leave it out, and more lines.
fn https(change: Option<(&str, &str)>, more: &str) -> String {
    let lines = [
        ("name", "\"case\""),
        ("kind", "\"https\""),
        ("from", "\"metadata:file\""),
        ("allow", "[\"https://data.example.com/in/\"]"),
        ("to", "\"in/case.csv\""),
        ("sha256", "\"metadata:sum\""),
    ];
    let mut text = "schema = 1\n[[stage]]\n".to_owned();
    for (key, value) in lines {
        let value = change.filter(|(changed, _)| *changed == key).map_or(value, |(_, new)| new);
        if !value.is_empty() {
            text.push_str(&format!("{key} = {value}\n"));
        }
    }
    text + more
}

fn refused(text: &str, line: usize, key: &str, message: &str) {
    let error = resolve_text(text).expect_err(text);
    let shown = error.to_string();
    let place = error.at().map(|at| (at.file.as_str(), at.line));
    assert_eq!((place, error.key()), (Some(("p.toml", line)), Some(key)), "{text}\n{shown}");
    assert!(shown.contains(message), "{text}\n{shown}");
    assert!(!shown.contains('\n'), "{shown}");
}

#[test]
fn mistakes_in_a_rule_are_refused_at_their_place() {
    #[rustfmt::skip]
    let cases = [
        (("name", "\"a b\""),                       3, "stage[0].name", "a name has letters"),
        (("name", ""),                              2, "stage[0].name", "required"),
        (("kind", "\"ftp\""),                       4, "stage[0].kind", "found ftp"),
        (("from", "\"http://data.example.com/a\""), 5, "stage[0].from", "no known scheme"),
        (("from", "\"s3://bucket/a\""),             5, "stage[0].from", "not that of the rule's kind"),
        (("from", "\"https://u:p@a.example/a\""),   5, "stage[0].from", "user name"),
        (("from", "\"https://a.example/a?b=c\""),   5, "stage[0].from", "query"),
        (("from", "\"https://a.example/a/\""),      5, "stage[0].from", "no single thing"),
        (("from", "\"metadata:\""),                 5, "stage[0].from", "a key of the metadata"),
        (("from", "\"metadata:a b\""),              5, "stage[0].from", "a key of the metadata"),
        (("allow", "[]"),                           5, "stage[0].from", "no value could be followed"),
        (("allow", ""),                             5, "stage[0].from", "no value could be followed"),
        (("allow", "\"https://a.example/\""),       6, "stage[0].allow", "expected a list"),
        (("allow", "[\"https://a.example/%2e%2e/\"]"), 6, "stage[0].allow[0]", "`..`"),
        (("allow", "[\"https://a.example/\", \"/srv\"]"), 6, "stage[0].allow[1]", "scheme"),
        (("to", "\"/etc/x\""),                      7, "stage[0].to", "not absolute"),
        (("to", "\"a/../../x\""),                   7, "stage[0].to", "`..`"),
        (("to", "\"a//x\""),                        7, "stage[0].to", "empty component"),
        (("to", "\"a\\n\""),                        7, "stage[0].to", "control characters"),
        (("to", "\"\""),                            7, "stage[0].to", "1 to 1024 bytes"),
        (("to", "\"skills/x\""),                    7, "stage[0].to", "skills lie there"),
        (("to", "\"memory\""),                      7, "stage[0].to", "memory stores lie there"),
        (("to", "\"memory/notes/a\""),              7, "stage[0].to", "memory stores lie there"),
        (("sha256", "\"abc\""),                     8, "stage[0].sha256", "64 hexadecimal digits"),
        (("sha256", ""),                            4, "stage[0].sha256", "required"),
    ];
    for ((key, value), line, path, message) in cases {
        refused(&https(Some((key, value)), ""), line, path, message);
    }
    #[rustfmt::skip]
    let more = [
        ("size_max = \"65GiB\"",                "stage[0].size_max", "from 1 to 64GiB"),
        ("size_max = 0",                        "stage[0].size_max", "found integer 0"),
        ("time_max = \"2h\"",                   "stage[0].time_max", "from 1s to 1h"),
        ("required = 1",                        "stage[0].required", "true or false"),
        ("unpack = \"tar\"",                    "stage[0].unpack", "true or false"),
        ("commit = \"metadata:c\"",             "stage[0].commit", "no meaning for this kind"),
        ("endpoint = \"https://s3.example\"",   "stage[0].endpoint", "no meaning for this kind"),
        ("digest = \"record\"",                 "stage[0].digest", "keep one of the two"),
        ("digest = \"none\"",                   "stage[0].digest", "found none"),
        ("why = \"x\"",                         "stage[0].why", "the reason for"),
        ("password = \"x\"",                    "stage[0].password", "unknown key"),
    ];
    for (text, path, message) in more {
        refused(&https(None, text), 9, path, message);
    }
    let recorded = https(Some(("sha256", "")), "digest = \"record\"\n");
    refused(&recorded, 4, "stage[0].why", "required");
    refused(&format!("{recorded}why = \" \""), 9, "stage[0].why", "needs a reason");
}

#[test]
fn mistakes_of_the_other_kinds_are_refused_at_their_place() {
    let start = |kind: &str, from: &str| {
        format!(
            "schema = 1\n[[stage]]\nname = \"a\"\nto = \"a\"\nkind = \"{kind}\"\nfrom = \"{from}\"\n"
        )
    };
    let git = start("git", "https://git.example/r");
    refused(&git, 5, "stage[0].commit", "required");
    refused(&format!("{git}commit = \"main\""), 7, "stage[0].commit", "branches and tags move");
    refused(&format!("{git}unpack = true"), 7, "stage[0].unpack", "no meaning");
    refused(&format!("{git}sha256 = \"{SUM}\""), 7, "stage[0].sha256", "no meaning");
    let ssh = start("git", "ssh://git.example/r") + &format!("commit = \"{}\"", &SUM[..40]);
    refused(&ssh, 6, "stage[0].from", "no known scheme");
    let s3 = start("s3", "s3://bucket/key");
    refused(&s3, 5, "stage[0].endpoint", "required");
    refused(&format!("{s3}endpoint = \"http://s3.example\""), 7, "stage[0].endpoint", "scheme");
    refused(&format!("{s3}endpoint = \"https://s3.example/x\""), 7, "stage[0].endpoint", "no path");
    let s3 = format!("{s3}endpoint = \"https://s3.example\"\n");
    refused(&format!("{s3}region = \"EU\""), 8, "stage[0].region", "lower-case");
    refused(&s3, 5, "stage[0].sha256", "required");
    refused(&start("local", "/etc/shadow"), 6, "stage[0].from", "/etc stays hidden");
    refused(&start("local", "/srv/../etc/x"), 6, "stage[0].from", "`..`");
    refused(&start("local", "/proc/1/environ"), 6, "stage[0].from", "/proc stays hidden");
    let local = start("local", "/srv/data/x");
    refused(&format!("{local}private = true"), 7, "stage[0].private", "no meaning");
}

#[test]
fn names_and_targets_are_told_apart_and_lists_are_bounded() {
    let rule = |name: &str, to: &str| {
        format!(
            "[[stage]]\nname = \"{name}\"\nkind = \"local\"\nfrom = \"/srv/x\"\nto = \"{to}\"\n"
        )
    };
    let two = |name: &str, to: &str| format!("schema = 1\n{}{}", rule("a", "in/a"), rule(name, to));
    refused(&two("a", "b"), 8, "stage[1].name", "already written at p.toml:3:8");
    refused(&two("b", "in/a"), 11, "stage[1].to", "already written at p.toml:6:6");
    refused(&two("b", "in/a/c"), 11, "stage[1].to", "already written");
    refused(&two("b", "in"), 11, "stage[1].to", "already written");
    assert!(resolve_text(&two("b", "in/ab")).is_ok());
    let many = |count: usize| {
        let rules: String = (0..count).map(|n| rule(&format!("r{n}"), &format!("t{n}"))).collect();
        resolve_text(&format!("schema = 1\n{rules}"))
    };
    assert_eq!(many(32).expect("allowed").stage.rules.len(), 32);
    let error = many(33).expect_err("too many").to_string();
    assert!(error.contains("at most 32"), "{error}");
    let places = vec!["\"https://a.example/\""; 17].join(", ");
    let text = https(Some(("allow", &format!("[{places}]"))), "");
    assert!(resolve_text(&text).expect_err("too many").to_string().contains("at most 16"));
}

#[test]
fn what_is_not_written_has_its_strict_default() {
    let policy = resolve_text(&https(None, "")).expect("valid");
    let rule = &policy.stage.rules[0];
    assert_eq!((rule.size_max, rule.time_max), (ByteSize(256 << 20), Duration::from_secs(300)));
    assert!(rule.required && !rule.unpack && !rule.kind.private());
    assert_eq!(rule.from, StageSource::Metadata("file".to_owned()));
    assert_eq!((rule.origin.line, rule.origin.column), (3, 8));
    let base = resolve(&[], "base").expect("shipped");
    assert!(
        base.stage.rules.is_empty()
            && resolve(&[], "default").expect("shipped").stage.rules.is_empty()
    );
}

#[test]
fn digests_and_commits_are_hexadecimal_and_nothing_else() {
    let metadata = |value: &str| BTreeMap::from([("sum".to_owned(), value.to_owned())]);
    let rule = resolve_text(&https(None, "")).expect("valid").stage.rules.remove(0);
    let got = rule.sha256(&metadata(SUM)).expect("a digest").expect("required");
    assert_eq!((got[0], got[31]), (0x01, 0xef));
    for wrong in ["", "abc", &SUM[1..], &format!("{SUM}0"), &SUM.replace('0', "+")] {
        assert!(rule.sha256(&metadata(wrong)).is_err(), "`{wrong}`");
    }
    let git = "schema = 1\n[[stage]]\nname = \"a\"\nkind = \"git\"\nfrom = \"https://g.example/r\"\n\
        to = \"a\"\ncommit = \"metadata:sum\"\n";
    let rule = resolve_text(git).expect("valid").stage.rules.remove(0);
    assert!(rule.unpack && rule.kind.digest().is_none());
    assert_eq!(
        rule.commit(&metadata(&SUM[..40])).expect("valid").expect("git"),
        SUM[..40].to_lowercase()
    );
    assert!(rule.commit(&metadata(SUM)).is_ok());
    for wrong in ["main", "--upload-pack=id", "HEAD", &SUM[..39], &format!("{}^", &SUM[..39])] {
        assert!(rule.commit(&metadata(wrong)).is_err(), "`{wrong}`");
    }
}

/// Rules of every kind, with every key.
fn every_kind() -> String {
    let rest = "size_max = \"1MiB\"\ntime_max = \"30s\"\nrequired = false\n";
    format!(
        "{}private = true\nunpack = true\n{rest}\
         [[stage]]\nname = \"code\"\nkind = \"git\"\nfrom = \"metadata:repo\"\nto = \"code\"\n\
         allow = [\"https://git.example/a b\", \"file:///srv/git\"]\ncommit = \"{}\"\nprivate = true\n{rest}\
         [[stage]]\nname = \"object\"\nkind = \"s3\"\nfrom = \"s3://bucket/a b\"\nto = \"o\"\nregion = \"eu-1\"\n\
         endpoint = \"https://s3.example:9000\"\ndigest = \"record\"\nwhy = \"it \\\"moves\\\"\"\n{rest}\
         [[stage]]\nname = \"file\"\nkind = \"local\"\nfrom = \"/srv/data/x\"\nto = \"f\"\nsha256 = \"{SUM}\"\n",
        https(None, ""),
        &SUM[..40]
    )
    .replace("a b\", \"file", "a%20b\", \"file")
}

#[test]
fn the_effective_text_means_the_same_rules() {
    let policy = resolve_text(&every_kind()).expect("valid");
    assert_eq!(policy.stage.rules.len(), 4);
    assert!(matches!(
        &policy.stage.rules[2].kind,
        StageKind::S3 { digest: StageDigest::Record(why), private: false, .. } if why == "it \"moves\""
    ));
    assert!(matches!(
        &policy.stage.rules[3].kind,
        StageKind::Local { digest: StageDigest::Sha256(StageValue::Fixed(sum)) } if *sum == SUM.to_lowercase()
    ));
    for origins in [Origins::Hide, Origins::Show] {
        let text = policy.to_toml(origins);
        let again = resolve_text(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(again.canonical_bytes(), policy.canonical_bytes(), "{text}");
    }
    let json = policy.to_json(Origins::Show);
    assert_eq!(json["policy"]["stage"][1]["kind"], "git");
    assert_eq!(json["origins"]["stage[0].from"], "p.toml:3:8");
    assert_ne!(policy.digest(), resolve_text("schema = 1").expect("valid").digest());
}

fn over(parent: &str, child: &str) -> Result<Policy, PolicyError> {
    let parent = format!("schema = 1\n{parent}");
    let child = format!("schema = 1\nextends = \"./p.toml\"\n{child}");
    resolve(&[("p.toml", &parent), ("c.toml", &child)], "c.toml")
}

#[test]
fn a_child_may_leave_rules_out_and_narrow_them_and_add_none() {
    let parent = "[[stage]]\nname = \"a\"\nkind = \"https\"\nfrom = \"metadata:f\"\nto = \"a\"\n\
        allow = [\"https://d.example/in/\"]\nsha256 = \"metadata:s\"\nsize_max = \"1MiB\"\ntime_max = \"1m\"\n\
        [[stage]]\nname = \"b\"\nkind = \"local\"\nfrom = \"/srv/x\"\nto = \"b\"\n";
    let a = "[[stage]]\nname = \"a\"\nkind = \"https\"\nfrom = \"metadata:f\"\nto = \"a\"\n\
        allow = [\"https://d.example/in/\"]\nsha256 = \"metadata:s\"\nsize_max = \"1MiB\"\ntime_max = \"1m\"\n";
    let kept = over(parent, "").expect("as it is");
    assert_eq!(kept.stage.rules.len(), 2);
    assert_eq!(over(parent, "stage = []").expect("none").stage.rules.len(), 0);
    #[rustfmt::skip]
    let narrower = [
        a.to_owned(),
        a.replace("/in/", "/in/sub/"),
        a.replace("1MiB", "1KiB"),
        a.replace("1m", "1s"),
        a.replace("metadata:f", "https://d.example/in/one"),
        format!("{a}required = false\n"),
    ];
    for text in narrower {
        let policy = over(parent, &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(policy.stage.rules.len(), 1, "{text}");
    }
    #[rustfmt::skip]
    let wider = [
        (a.replace("\"a\"\nkind", "\"c\"\nkind"),       "stage[0].name"),
        (a.replace("/in/", "/"),                        "stage[0].allow[0]"),
        (a.replace("/in/", "/inner/"),                  "stage[0].allow[0]"),
        (a.replace("d.example", "e.example"),           "stage[0].allow[0]"),
        (a.replace("metadata:f", "metadata:g"),         "stage[0].from"),
        (a.replace("metadata:f", "https://d.example/x"), "stage[0].from"),
        (a.replace("to = \"a\"", "to = \"c\""),         "stage[0].to"),
        (a.replace("1MiB", "2MiB"),                     "stage[0].size_max"),
        (a.replace("1m", "2m"),                         "stage[0].time_max"),
        (a.replace("metadata:s", SUM),                  "stage[0].sha256"),
        (a.replace("sha256 = \"metadata:s\"", "digest = \"record\"\nwhy = \"x\""), "stage[0].digest"),
        (format!("{a}private = true\n"),                "stage[0].private"),
        (format!("{a}unpack = true\n"),                 "stage[0].unpack"),
    ];
    for (text, key) in wider {
        let error = over(parent, &text).expect_err(&text);
        assert_eq!(error.key(), Some(key), "{text}\n{error}");
        assert!(
            matches!(&error, PolicyError::Widened { at, parent, .. } if at.file == "c.toml" && parent.file == "p.toml"),
            "{error}"
        );
    }
}

#[test]
fn where_no_file_has_written_rules_a_child_may() {
    let rule = "[[stage]]\nname = \"b\"\nkind = \"local\"\nfrom = \"/srv/x\"\nto = \"b\"\n";
    assert_eq!(over("", rule).expect("first to name any").stage.rules.len(), 1);
    // An empty list is a decision too.
    assert!(over("stage = []", rule).is_err());
    let child = format!("schema = 1\nextends = \"default\"\n{rule}");
    assert_eq!(resolve_text(&child).expect("default names none").stage.rules.len(), 1);
}
