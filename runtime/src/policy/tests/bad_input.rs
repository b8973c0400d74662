//! Every kind of mistake in a policy file, with the place and the key that the operator is told.

use super::super::PolicyError;
use super::{resolve, resolve_text};

/// A text after `schema = 1`, the place and key of the error, and a part of its message.
type Case<'a> = (&'a str, (usize, usize), &'a str, &'a str);

fn assert_refused(cases: &[Case<'_>]) {
    for (text, place, key, message) in cases {
        let error = resolve_text(&format!("schema = 1\n{text}")).expect_err(text);
        let at = error.at().expect("a place");
        let shown = error.to_string();
        assert_eq!(
            (at.file.as_str(), (at.line, at.column), error.key().unwrap_or("")),
            ("p.toml", *place, *key),
            "`{text}`: {shown}"
        );
        assert!(shown.contains(message), "`{text}`: {shown}");
        assert!(!shown.contains('\n'), "`{text}`: more than one line: {shown}");
    }
}

#[test]
fn values_of_the_wrong_type_are_refused_at_their_place() {
    #[rustfmt::skip]
    assert_refused(&[
        ("process.pids = \"many\"",         (2, 16), "process.pids", "expected a whole number from 1 to 4194304, found string \"many\""),
        ("process.pids = 1.5",              (2, 16), "process.pids", "a whole number"),
        ("[process]\npids = true",          (3, 8),  "process.pids", "found boolean true"),
        ("[process]\nmemory = 2.5",         (3, 10), "process.memory", "a size from 4MiB to 64TiB"),
        ("[process]\nmemory = \"2GB\"",     (3, 10), "process.memory", "\"2GB\""),
        ("[process]\nwall_time = 30",       (3, 13), "process.wall_time", "or \"none\", found integer 30"),
        ("[process]\nwall_time = \"soon\"", (3, 13), "process.wall_time", "a duration from 1ms to 30d"),
        ("[process]\nmemory = \"none\"",    (3, 10), "process.memory", "a size"),
        ("[process]\nhide_uptime = 1",      (3, 15), "process.hide_uptime", "expected true or false"),
        ("[require]\nlevel = \"microvm\"",  (3, 9),  "require.level", "\"rootless\" or \"root\", found microvm"),
        ("[network]\nmode = \"host\"",      (3, 8),  "network.mode", "expected one of \"none\", \"enforce\", \"report\", found host"),
        ("[network]\nexpires = 2026-12-01T00:00:00Z", (3, 11), "network.expires", "between quotes"),
        ("[network]\nexpires = \"tomorrow\"", (3, 11), "network.expires", "a date and time in UTC"),
        ("[network]\ndeny_detail = \"some\"", (3, 15), "network.deny_detail", "found some"),
        ("[network]\nupstream_proxy = 3",    (3, 18), "network.upstream_proxy", "or { url ="),
        ("[network]\nallow = [{ rule = \"a:1\", protocol = \"udp\" }]", (3, 37), "network.allow[0].protocol", "found udp"),
        ("[network]\nallow = \"a:1\"",       (3, 9),  "network.allow", "expected a list"),
        ("[filesystem]\nread_only = \"/a\"",(3, 13), "filesystem.read_only", "expected a list"),
        ("[filesystem]\nwritable = [1]",    (3, 13), "filesystem.writable[0]", "expected a string"),
        ("process = 3",                     (2, 11), "process", "expected a table"),
        ("environment.set.A = 3",           (2, 21), "environment.set.A", "expected a string"),
        ("[network]\nallow = [3]",          (3, 10), "network.allow[0]", "a rule such as"),
    ]);
}

#[test]
fn values_outside_their_bounds_are_refused_at_their_place() {
    #[rustfmt::skip]
    assert_refused(&[
        ("[process]\npids = 0",                 (3, 8),  "process.pids", "from 1 to 4194304, found integer 0"),
        ("[process]\npids = -1",                (3, 8),  "process.pids", "found integer -1"),
        ("[process]\npids = 4_194_305",         (3, 8),  "process.pids", "found integer 4194305"),
        ("[process]\nopen_files = 1",           (3, 14), "process.open_files", "from 16"),
        ("[process]\ncore = 1",                 (3, 8),  "process.core", "expected 0"),
        ("[process]\ncore = \"1MiB\"",          (3, 8),  "process.core", "expected 0"),
        ("[process]\nmemory = 0",               (3, 10), "process.memory", "found integer 0"),
        ("[process]\nmemory = \"65TiB\"",       (3, 10), "process.memory", "65TiB"),
        ("[process]\nswap = -5",                (3, 8),  "process.swap", "found integer -5"),
        ("[process]\ncpus = 0",                 (3, 8),  "process.cpus", "from 0.01 to 1024"),
        ("[process]\ncpus = nan",               (3, 8),  "process.cpus", "a number of CPUs"),
        ("[process]\ncpus = 0.12345",           (3, 8),  "process.cpus", "a number of CPUs"),
        ("[process]\nnice = 20",                (3, 8),  "process.nice", "from 0 to 19"),
        ("[process]\nnice = -5",                (3, 8),  "process.nice", "from 0 to 19"),
        ("[process]\nwall_time = \"0s\"",       (3, 13), "process.wall_time", "from 1ms"),
        ("[process]\nwall_time = \"31d\"",      (3, 13), "process.wall_time", "to 30d"),
        ("[process]\nio_rate = 0",              (3, 11), "process.io_rate", "from 64KiB"),
        ("[process]\noutput = 0",               (3, 10), "process.output", "from 1"),
        ("[filesystem]\nworkspace_size = 0",    (3, 18), "filesystem.workspace_size", "from 64KiB"),
        ("[filesystem]\ntmp_size = \"0\"",      (3, 12), "filesystem.tmp_size", "from 4KiB"),
        ("[filesystem]\nshm_size = 0",          (3, 12), "filesystem.shm_size", "from 4KiB"),
        ("[filesystem]\nworkspace_inodes = 0",  (3, 20), "filesystem.workspace_inodes", "from 16"),
        ("[network]\nconnections = 16_385",     (3, 15), "network.connections", "from 1 to 16384"),
        ("[network]\nconnections = 0",          (3, 15), "network.connections", "from 1 to 16384"),
        ("[network]\nconnection_rate = \"many\"", (3, 19), "network.connection_rate", "from 1 to 16384"),
        ("[network]\nbytes_out = 1",            (3, 13), "network.bytes_out", "or \"none\""),
        ("[network]\nidle_time = \"none\"",     (3, 13), "network.idle_time", "a duration from 1s to 1d"),
        ("[network]\nconnection_time = \"1ms\"",(3, 19), "network.connection_time", "from 1s to 30d"),
        ("[network]\nwildcard_names = 4_097",   (3, 18), "network.wildcard_names", "from 0 to 4096"),
        ("[require]\nlandlock_abi = 0",         (3, 16), "require.landlock_abi", "from 1 to 7"),
        ("[require]\nlandlock_abi = 8",         (3, 16), "require.landlock_abi", "from 1 to 7"),
    ]);
}

#[test]
fn unknown_and_missing_keys_are_named_with_their_whole_path() {
    #[rustfmt::skip]
    assert_refused(&[
        ("proces = {}",                                (2, 1),  "proces", "unknown key"),
        ("[process]\npid = 3",                         (3, 1),  "process.pid", "`pids`"),
        ("[limits]\nmemory = 1",                       (2, 2),  "limits", "unknown key"),
        ("[network]\nallow = [{ rule = \"a:1\", x = 1 }]", (3, 26), "network.allow[0].x", "unknown key"),
        ("[require]\nrelax = [{ layer = \"seccomp\" }]", (3, 10), "require.relax[0].why", "required"),
        ("[[require.relax]]\nwhy = \"x\"",             (2, 1),  "require.relax[0].layer", "required"),
        ("[[require.relax]]\nlayer = \"seccomp\"\nwhy = \"x\"\nof = true", (5, 1), "require.relax[0].of", "unknown key"),
    ]);
    let error = resolve_text("schema = 1\n[process]\npid = 3").expect_err("unknown key");
    assert_eq!(error.hint().as_deref(), Some("did you mean `pids`?"));
    let error = resolve_text("name = \"x\"").expect_err("no schema");
    assert!(matches!(&error, PolicyError::MissingKey { key, .. } if key == "schema"), "{error}");
    let error = resolve_text("[process]\npids = 1").expect_err("no schema");
    assert_eq!((error.key(), error.at().map(|at| at.line)), (Some("schema"), Some(1)));
    let error = resolve_text("schema = 2").expect_err("schema of the future");
    assert_eq!((error.key(), error.at().map(|at| at.column)), (Some("schema"), Some(10)));
}

#[test]
fn text_that_is_not_toml_is_refused_at_the_first_wrong_character() {
    #[rustfmt::skip]
    assert_refused(&[
        ("pids = ",                       (2, 8), "", "cannot parse the file as TOML"),
        ("[process\npids = 1",            (2, 9), "", "cannot parse"),
        ("process.pids = 1\nprocess.pids = 2", (3, 9), "", "duplicate key"),
        ("name = \"é\" x",                (2, 12), "", "cannot parse"),
    ]);
    let long = format!("schema = 1\n#{}", "x".repeat(1 << 20));
    assert!(matches!(resolve_text(&long), Err(PolicyError::TooLong { .. })));
}

#[test]
fn what_no_jail_may_be_given_is_refused_with_the_reason() {
    #[rustfmt::skip]
    assert_refused(&[
        ("[filesystem]\nwritable = [\"/srv\", \"/\"]",     (3, 21), "filesystem.writable[1]", "uncovers everything"),
        ("[filesystem]\nread_only = [\"data\"]",           (3, 14), "filesystem.read_only[0]", "must be absolute"),
        ("[filesystem]\nread_only = [\"/a/../etc\"]",      (3, 14), "filesystem.read_only[0]", "`..`"),
        ("[filesystem]\nread_only = [\"/a\\u0000\"]",      (3, 14), "filesystem.read_only[0]", "zero byte"),
        ("[filesystem]\nread_only = [\n  \"/a\",\n  \"/proc/1\",\n]", (5, 3), "filesystem.read_only[1]", "/proc stays hidden"),
        ("[filesystem]\nroot = \"rootfs\"",                (3, 8),  "filesystem.root", "absolute path of a directory"),
        ("[filesystem]\nroot = \"/\"",                     (3, 8),  "filesystem.root", "uncovers everything"),
        ("[filesystem]\nroot = \"/srv/r\"\nwritable = [\"/srv\"]",   (4, 13), "filesystem.writable", "overlaps the root file system /srv/r, set at p.toml:3:8"),
        ("[filesystem]\nroot = \"/srv/r\"\nwritable = [\"/srv/r/a\"]", (4, 13), "filesystem.writable", "overlaps"),
        ("[environment]\nset = { ANTHROPIC_API_KEY = \"x\" }", (3, 9), "environment.set", "never enter a jail"),
        ("[environment]\npass = [\"ANTHROPIC_ENVIRONMENT_KEY\"]", (3, 9), "environment.pass[0]", "never enter a jail"),
        ("[environment]\npass = [\"ANTHROPIC_WORK_SECRET\"]", (3, 9), "environment.pass[0]", "never enter a jail"),
        ("[environment]\npass = [\"A\", \"ANTHROPIC_AUTH_TOKEN\"]", (3, 14), "environment.pass[1]", "never enter a jail"),
        ("[environment]\nset.LD_PRELOAD = \"/x.so\"",      (3, 5),  "environment.set", "the loader"),
        ("[environment]\npass = [\"LD_LIBRARY_PATH\"]",    (3, 9),  "environment.pass[0]", "the loader"),
        ("[environment]\npass = [\"1A\"]",                 (3, 9),  "environment.pass[0]", "no digit first"),
        ("[environment]\npass = [\"A=B\"]",                (3, 9),  "environment.pass[0]", "letters, digits"),
        ("[environment]\nset.A = \"x\\u0000\"",            (3, 9),  "environment.set.A", "zero byte"),
        ("[[require.relax]]\nlayer = \"seccomp\"\nwhy = \" \"", (4, 7), "require.relax[0].why", "needs a reason"),
        ("[[require.relax]]\nlayer = \"pid-namespace\"\nwhy = \"x\"", (3, 9), "require.relax[0].layer", "no jail can be made"),
        ("[[require.relax]]\nlayer = \"selinux\"\nwhy = \"x\"", (3, 9), "require.relax[0].layer", "found selinux"),
        ("[syscalls]\ngroups = [\"base\", \"file\"]",      (3, 19), "syscalls.groups[1]", "did you mean `files`?"),
        ("[syscalls]\ngroups = [\"files\"]",               (3, 10), "syscalls.groups", "`base` is missing"),
        ("name = \"../x\"",                                (2, 8),  "name", "a policy name has"),
        ("extends = \"\"",                                 (2, 11), "extends", "a policy name has"),
    ]);
}

#[test]
fn rules_that_no_jail_may_be_given_are_refused_with_the_reason() {
    let first = |rule: &str| format!("[network]\nallow = [{rule}]");
    #[rustfmt::skip]
    let cases = [
        ("\"\"",                        "it is empty"),
        ("\"a b:443\"",                 "letters, digits, hyphens"),
        ("\"a\\u0000.test:443\"",       "`a\\0.test:443` in"),
        ("\"https://a.test/x\"",        "and not a URL"),
        ("\"a.test:0\"",                "from 1 to 65535"),
        ("\"a.test:65536\"",            "from 1 to 65535"),
        ("\"a.test:https\"",            "from 1 to 65535"),
        ("\"a.test:\"",                 "from 1 to 65535"),
        ("\"a.test:443/udp\"",          "only `/tcp`"),
        ("\"*:443\"",                   "whole labels at the front"),
        ("\"a.*.test:443\"",            "whole labels at the front"),
        ("\"*a.test.test:443\"",        "whole labels at the front"),
        ("\"*.*.test.test:443\"",       "whole labels at the front"),
        ("\"***.test.test:443\"",       "whole labels at the front"),
        ("\"*.test:443\"",              "at least two labels"),
        ("\"**.test.:443\"",            "at least two labels"),
        ("\"198.51.100.7/24:443\"",     "its first address"),
        ("\"198.51.100.0/33:443\"",     "its first address"),
        ("\"2001:db8::1:443\"",         "in brackets"),
        ("\"2001:db8::/32\"",           "in brackets"),
        ("\"[::ffff:10.0.0.0/104]:443\"", "its first address"),
        ("\"1.2.3.4.5:443\"",           "ends in a number"),
        ("\"a.test:53\"",               "port 53 is that of the jail's own resolver"),
        ("\"localhost:80\"",            "{ rule = \"127.0.0.1:80\", private = true }"),
        ("\"10.0.0.0/8:443\"",          "private addresses need `private = true`: { rule = \"10.0.0.0/8:443\", private = true }"),
        ("\"127.0.0.1:443\"",           "loopback addresses need"),
        ("\"2130706433:443\"",          "loopback addresses need"),
        ("\"[fe80::1]:443\"",           "link-local addresses need"),
        ("\"169.254.169.254:80\"",      "metadata addresses need"),
        ("{ rule = \"224.0.0.1:443\", private = true }",   "multicast addresses are never dialled"),
        ("{ rule = \"0.0.0.0:443\", private = true }",     "reserved addresses are never dialled"),
        ("{ rule = \"198.18.0.0/15:443\", private = true }", "reserved addresses are never dialled"),
    ];
    for (rule, message) in cases {
        let text = first(rule);
        assert_refused(&[(&text, (3, 10), "network.allow[0]", message)]);
        let second = first(&format!("\"ok.test:443\", {rule}"));
        assert_refused(&[(&second, (3, 25), "network.allow[1]", message)]);
    }
    // Control: what stands next to them is accepted.
    for rule in [
        "\"a.test\"",
        "\"A.Test.:0443/tcp\"",
        "\"*.a.test:1\"",
        "\"**.a.test:65535\"",
        "\"198.51.100.0/24:5432\"",
        "\"[2001:db8::/32]:443\"",
        "\"[2001:db8::1]\"",
        "\"0.0.0.0/0\"",
        "{ rule = \"10.0.0.0/8:5432\", private = true }",
        "\"localhost.test:8080\"",
        "{ rule = \"169.254.169.254:80\", private = true }",
        "{ rule = \"a.test:22\", protocol = \"tcp\" }",
    ] {
        resolve_text(&format!("schema = 1\n{}", first(rule)))
            .unwrap_or_else(|e| panic!("{rule}: {e}"));
    }
}

#[test]
fn a_network_that_contradicts_itself_is_refused() {
    #[rustfmt::skip]
    assert_refused(&[
        ("[network]\nmode = \"none\"\nallow = [\"a.test:443\"]", (4, 10), "network.allow[0]", "`a.test:443` in `network.allow[0]`: there is no network: `mode` is \"none\" at p.toml:3:8"),
        ("[network]\nmode = \"none\"\npresets = [\"python\"]",   (4, 12), "network.presets[0]", "there is no network"),
        ("[network]\nmode = \"report\"",                          (3, 8),  "network.mode", "`expires`"),
        ("[network]\nexpires = \"2026-12-01T00:00:00Z\"",         (3, 11), "network.expires", "`mode = \"report\"`"),
        ("[network]\nmode = \"enforce\"\nexpires = \"2026-12-01T00:00:00Z\"", (4, 11), "network.expires", "`mode = \"report\"`"),
        ("[network]\npresets = [\"pyton\"]",                      (3, 12), "network.presets[0]", "did you mean `python`?"),
        ("[network]\nupstream_proxy = \"http://p.test:1\"",       (3, 18), "network.upstream_proxy", "{ url ="),
        ("[network]\nupstream_proxy = { url = \"https://p.test:1\" }", (3, 18), "network.upstream_proxy", "without TLS"),
        ("[network]\nupstream_proxy = { url = \"http://p.test\" }", (3, 18), "network.upstream_proxy", "port is missing"),
        ("[network]\nupstream_proxy = { url = \"http://p.test:1/x\" }", (3, 18), "network.upstream_proxy", "expected `http://host:port`"),
        ("[network]\nupstream_proxy = { url = \"http://u:secret@p.test:1\" }", (3, 18), "network.upstream_proxy", "`p.test:1` in `network.upstream_proxy`: credentials are no part"),
    ]);
}

#[test]
fn rules_and_ports_have_bounds() {
    let many = |count: usize, each: &dyn Fn(usize) -> String| {
        let all: Vec<String> = (0..count).map(|n| format!("\"{}\"", each(n))).collect();
        resolve_text(&format!("schema = 1\nnetwork.allow = [{}]", all.join(",")))
    };
    let name = |n: usize| format!("n{n}.test:443");
    assert_eq!(many(1024, &name).expect("as many as fit").network.all_rules().len(), 1024);
    let error = many(1025, &name).expect_err("one more").to_string();
    assert!(error.contains("expected at most 1024, found 1025 entries"), "{error}");
    let port = |n: usize| format!("a.test:{}", n + 100);
    assert!(many(512, &port).is_ok());
    let error = many(513, &port).expect_err("one more").to_string();
    assert!(error.contains("expected at most 512, found 513 different ports"), "{error}");
}

#[test]
fn entries_written_twice_are_refused_with_both_places() {
    #[rustfmt::skip]
    let cases = [
        ("[filesystem]\nread_only = [\"/a\", \"/a\"]",            (3, 20), (3, 14)),
        ("[filesystem]\nread_only = [\"/a\"]\nwritable = [\"/a\"]", (4, 13), (3, 14)),
        ("[environment]\npass = [\"A\", \"A\"]",                  (3, 14), (3, 9)),
        ("[environment]\npass = [\"A\"]\nset.A = \"1\"",          (3, 9),  (4, 5)),
        ("[syscalls]\ngroups = [\"base\", \"base\"]",             (3, 19), (3, 11)),
        ("[network]\nallow = [\"a.test\", \"A.TEST.:443/tcp\"]",   (3, 20), (3, 10)),
        ("[network]\nallow = [\"a.test\", { rule = \"a.test\", private = true }]", (3, 20), (3, 10)),
        ("[network]\npresets = [\"node\", \"node\"]",            (3, 20), (3, 12)),
        ("[require]\nrelax = [{ layer = \"canary\", why = \"a\" },\n{ layer = \"canary\", why = \"b\" }]", (4, 11), (3, 20)),
    ];
    for (text, second, wanted) in cases {
        match resolve_text(&format!("schema = 1\n{text}")) {
            Err(PolicyError::Duplicate { at, first, .. }) => {
                assert_eq!((at.line, at.column), second, "`{text}`");
                assert_eq!((first.line, first.column), wanted, "`{text}`");
            }
            other => panic!("`{text}`: {other:?}"),
        }
    }
}

#[test]
fn lists_have_a_bound() {
    let names: Vec<String> = (0..257).map(|number| format!("\"A{number}\"")).collect();
    let text = format!("schema = 1\nenvironment.pass = [{}]", names.join(","));
    let error = resolve_text(&text).expect_err("257 entries");
    assert!(error.to_string().contains("expected at most 256, found 257 entries"), "{error}");
}

#[test]
fn chains_that_do_not_end_are_refused() {
    let circle = [
        ("/etc/p/a.toml", "schema = 1\nextends = \"./b.toml\""),
        ("/etc/p/b.toml", "schema = 1\nextends = \"a.toml\""),
    ];
    let error = resolve(&circle, "/etc/p/a.toml").expect_err("circle");
    assert!(matches!(&error, PolicyError::Cycle { at, .. } if at.file == "/etc/p/b.toml"));
    assert!(error.to_string().contains("/etc/p/a.toml → /etc/p/b.toml → /etc/p/a.toml"), "{error}");

    let texts: Vec<(String, String)> = (0..9)
        .map(|n| (format!("/{n}.toml"), format!("schema = 1\nextends = \"./{}.toml\"", n + 1)))
        .chain([("/9.toml".to_owned(), "schema = 1".to_owned())])
        .collect();
    let files: Vec<(&str, &str)> =
        texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    assert!(resolve(&files, "/2.toml").is_ok(), "eight files are followed");
    let error = resolve(&files, "/1.toml").expect_err("nine files");
    assert!(matches!(&error, PolicyError::TooDeep { at, .. } if at.file == "/8.toml"), "{error}");
}

#[test]
fn names_and_files_that_do_not_exist_are_told_apart() {
    let error = resolve(&[], "defualt").expect_err("no such name");
    assert!(error.to_string().starts_with("cannot find policy `defualt`: known are base,"));
    let error = resolve(&[], "./none.toml").expect_err("no such file");
    assert!(matches!(error, PolicyError::Read { at: None, .. }), "{error}");
    let error = resolve_text("schema = 1\nextends = \"nobody\"").expect_err("no such parent");
    assert!(error.to_string().starts_with("p.toml:2:11: cannot find policy `nobody`"), "{error}");
    let directory = [("/policies/team.toml", "schema = 1"), ("/policies/default.toml", "broken")];
    assert_eq!(resolve(&directory, "team").expect("in the directory").name, "team");
    assert!(resolve(&directory, "default").is_ok(), "a shipped name cannot be taken over");
    assert!(resolve(&directory, "../team").is_err());
}
