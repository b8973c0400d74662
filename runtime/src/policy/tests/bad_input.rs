//! Every kind of mistake in a policy file, with the place and the key that the operator is told.

use super::super::PolicyError;
use super::{resolve, resolve_text};

/// A text after `schema = 1`, the place and key of the error, and a part of its message.
type Case = (&'static str, (usize, usize), &'static str, &'static str);

fn assert_refused(cases: &[Case]) {
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
        ("[network]\nmode = \"host\"",      (3, 8),  "network.mode", "expected \"none\""),
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
        ("[network]\nallow = [\"a.example:443\"]",         (3, 10), "network.allow", "not yet available in this version"),
        ("[network]\nallow = [{ rule = \"a:1\", private = true }]", (3, 10), "network.allow", "not yet available"),
        ("[network]\npresets = [\"pypi\"]",                (3, 12), "network.presets", "not yet available"),
        ("name = \"../x\"",                                (2, 8),  "name", "a policy name has"),
        ("extends = \"\"",                                 (2, 11), "extends", "a policy name has"),
    ]);
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
