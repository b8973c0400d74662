//! The shape of the source tree (`style.md`, "Where code goes", "Unsafe", "Errors"): one-way
//! imports, one place for unsafe code, one file for each kernel crate. Each check is also given a
//! fixture that it must fail on.

use e2e::source::{Source, line_at, own_modules, project, words};

/// What each top module of `runtime` may name of its own crate, besides itself.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("host", &[]),
    ("sys", &[]),
    ("policy", &["host"]),
    ("spec", &["policy", "host"]),
    ("jail", &["spec", "policy", "host", "sys"]),
    ("audit", &["spec", "policy", "host"]),
    ("egress", &["spec", "policy", "host"]),
    ("tool", &["spec", "policy", "host", "sys"]),
    ("porter", &["tool", "sys"]),
    ("session", &["porter", "tool", "egress", "jail", "audit", "spec", "policy", "host"]),
];

/// Modules without input and output.
const PURE: &[&str] = &["policy", "spec"];

/// Paths that mean input or output.
const EFFECTS: &[&str] = &["std::fs", "std::process", "tokio", "nix", "rustix", "libc"];

/// What of `std::net` is input or output; its addresses are only numbers.
const SOCKETS: &[&str] = &["TcpStream", "TcpListener", "UdpSocket", "ToSocketAddrs"];

/// Crates that speak to the kernel for one layer, each named in one file only.
const KERNEL_CRATES: &[&str] = &["landlock", "seccompiler", "caps", "cgroups_rs"];

/// Crates of a service that the rest of the worker need not know, by how they begin, and the folder
/// that they are named in.
const SERVICE_CRATES: &[(&str, &str)] = &[
    ("opentelemetry", "worker/src/traces/"),
    ("aws_", "worker/src/platform/"),
    ("metrics_exporter_prometheus", "worker/src/metrics/"),
];

/// Words of calls that must not fail unnoticed.
const SECURITY_CALLS: &[&str] = &[
    "mount",
    "unmount",
    "umount",
    "unshare",
    "setns",
    "landlock",
    "restrict",
    "restrict_self",
    "seccomp",
    "apply_filter",
    "capset",
    "caps",
    "prctl",
    "no_new_privs",
    "setresuid",
    "setresgid",
    "setgroups",
    "setrlimit",
    "pivot_root",
    "chroot",
    "keyctl",
    "close_range",
    "securebits",
    "mount_setattr",
    "set_dumpable",
    "seal_tree",
    "drop_all",
    "kill_and_drain",
];

const LINES_MAX: usize = 600;

fn upward_imports(files: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        let (path, code) = (&file.path, file.product_code());
        if path.starts_with("runtime/src/") {
            for word in ["stockade_worker", "worker"] {
                let used = words(&code, word).find(|at| code[at + word.len()..].starts_with("::"));
                found.extend(
                    used.map(|at| {
                        format!("{path}:{}: runtime names the worker", line_at(&code, at))
                    }),
                );
            }
            let Some(top) = file.modules().first().map(|name| (*name).to_owned()) else { continue };
            let allowed = MAY_NAME.iter().find(|(name, _)| *name == top).map(|(_, may)| *may);
            let Some(allowed) = allowed else { continue };
            for (name, line) in own_modules(file) {
                let known = MAY_NAME.iter().any(|(module, _)| *module == name);
                if known && name != top && !allowed.contains(&name.as_str()) {
                    found.push(format!("{path}:{line}: `{top}` names `{name}`"));
                }
            }
        }
        if path.starts_with("worker/src/queue") && words(&code, "stockade_runtime").next().is_some()
        {
            found.push(format!("{path}: the queue names the runtime"));
        }
    }
    found
}

fn effects_in_pure_modules(files: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.path.starts_with("runtime/src/")) {
        let code = file.product_code();
        let top = file.modules().first().copied().unwrap_or_default().to_owned();
        let pure = PURE.contains(&top.as_str());
        let quiet = !matches!(top.as_str(), "session" | "egress");
        if pure {
            let named = |socket: &&&str| words(&code, socket).next().is_some();
            found.extend(
                SOCKETS
                    .iter()
                    .filter(named)
                    .map(|socket| format!("{}: `{top}` uses {socket}", file.path)),
            );
        }
        for effect in EFFECTS {
            if !(pure || (*effect == "tokio" && quiet)) {
                continue;
            }
            for at in words(&code, effect) {
                let path = code[at + effect.len()..].starts_with("::")
                    || code[at + effect.len()..].starts_with(';');
                let tail = code[..at].ends_with("::");
                if (path || effect.contains("::")) && !tail {
                    let line = line_at(&code, at);
                    found.push(format!("{}:{line}: `{top}` uses {effect}", file.path));
                }
            }
        }
    }
    found
}

fn unsafe_outside_sys(files: &[Source]) -> Vec<String> {
    let outside = |file: &&Source| !file.path.starts_with("runtime/src/sys");
    let mut found = Vec::new();
    for file in files.iter().filter(outside) {
        let code = file.code();
        let lines = words(&code, "unsafe").map(|at| line_at(&code, at));
        found.extend(lines.map(|line| format!("{}:{line}: unsafe outside sys", file.path)));
    }
    found
}

fn crates_outside_their_file(files: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for name in KERNEL_CRATES {
        let holders: Vec<&Source> = files.iter().filter(|file| names_crate(file, name)).collect();
        let stray = holders.iter().filter(|file| !file.path.starts_with("runtime/src/jail/"));
        found.extend(stray.map(|file| format!("{}: names {name} outside the jail", file.path)));
        if holders.len() > 1 {
            let paths: Vec<&str> = holders.iter().map(|file| file.path.as_str()).collect();
            found.push(format!("{name} is named in {}", paths.join(" and ")));
        }
    }
    found
}

/// Whether a path of `file` starts at the crate `name` rather than at a module of that name.
fn names_crate(file: &Source, name: &str) -> bool {
    let code = file.code();
    let own_module = words(&code, name).any(|at| {
        let before = code[..at].trim_end();
        before.ends_with("mod")
            || before.ends_with("super::")
            || before.ends_with("jail::")
            || (before.ends_with(['{', ','])
                && code[at + name.len()..].starts_with([',', '}', ';']))
    });
    words(&code, name).any(|at| {
        let (before, after) = (code[..at].trim_end(), &code[at + name.len()..]);
        let imported = before.ends_with("use") && after.starts_with([':', ';', ' ']);
        let absolute = before.ends_with("::") && {
            let head = before.trim_end_matches("::");
            !head.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '>')
        };
        let inline = after.starts_with("::") && !before.ends_with("::") && !own_module;
        (imported && !own_module) || absolute || inline
    })
}

fn services_outside_their_folder(files: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for (name, folder) in SERVICE_CRATES {
        let outside =
            |file: &&Source| file.path.starts_with("worker/src/") && !file.path.starts_with(folder);
        for file in files.iter().filter(outside) {
            let code = file.code();
            // A path or an import that begins with the crate.
            let named = code.match_indices(name).filter(|(at, _)| {
                let before = code[..*at].trim_end();
                let begins = !code[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
                let rest =
                    code[*at..].trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
                begins && rest.starts_with("::") && !before.ends_with("::")
            });
            found.extend(
                named.map(|(at, _)| format!("{}:{}: names {name}", file.path, line_at(&code, at))),
            );
        }
    }
    found
}

fn long_files(files: &[Source]) -> Vec<String> {
    let counted = files.iter().map(|file| (file, file.text.lines().count()));
    counted
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(file, lines)| format!("{}: {lines} lines", file.path))
        .collect()
}

fn ignored_refusals(files: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    let ours = |file: &&Source| file.path.starts_with("runtime/src/");
    for file in files.iter().filter(ours) {
        let code = file.product_code();
        for (at, pattern) in code.match_indices("let _ =").chain(code.match_indices(".ok()")) {
            let start = code[..at].rfind([';', '{', '}']).map_or(0, |from| from + 1);
            let end = code[at..].find(';').map_or(code.len(), |to| at + to);
            // `.ok()` ends the call before it; `let _ =` begins the call after it.
            let statement = if pattern == ".ok()" { &code[start..at] } else { &code[at..end] };
            let call = SECURITY_CALLS.iter().find(|call| words(statement, call).next().is_some());
            found.extend(call.map(|call| {
                format!("{}:{}: `{pattern}` on `{call}`", file.path, line_at(&code, at))
            }));
        }
    }
    found
}

fn unfinished(files: &[Source]) -> Vec<String> {
    // Put together here, so that this file does not contain them.
    let marks = [("TO", "DO"), ("FIX", "ME"), ("unimpl", "emented!"), ("to", "do!"), ("X", "XX")];
    let mut found = Vec::new();
    for file in files {
        for mark in marks.map(|(a, b)| format!("{a}{b}")) {
            let word = mark.trim_end_matches('!');
            let hits = words(&file.text, word).filter(|at| file.text[*at..].starts_with(&mark));
            let lines: Vec<usize> = hits.map(|at| line_at(&file.text, at)).collect();
            found.extend(lines.iter().map(|line| format!("{}:{line}: {mark}", file.path)));
        }
    }
    found
}

fn none(found: Vec<String>) {
    assert!(found.is_empty(), "{} places:\n{}", found.len(), found.join("\n"));
}

/// Fixtures: the path and text of a file, and whether the check must complain.
fn check_fixtures(check: fn(&[Source]) -> Vec<String>, cases: &[(&str, &str, bool)]) {
    for (path, text, complains) in cases {
        let found = check(&[Source::new(path, text)]);
        assert_eq!(!found.is_empty(), *complains, "{path}: {text}: {found:?}");
    }
}

#[test]
fn imports_point_one_way() {
    check_fixtures(
        upward_imports,
        &[
            ("runtime/src/jail/mounts.rs", "use crate::spec::MountPlan;", false),
            ("runtime/src/jail/mounts.rs", "use super::canary::Act;", false),
            (
                "runtime/src/spec/mod.rs",
                "use crate::{policy::Policy, host::{Facts, Level}};",
                false,
            ),
            ("runtime/src/spec/mod.rs", "// crate::jail is above\nlet s = \"crate::jail\";", false),
            ("runtime/src/spec/mod.rs", "use crate::jail::Jail;", true),
            ("runtime/src/spec/mod.rs", "use crate::{policy::Policy, jail::{Jail}};", true),
            ("runtime/src/policy/file.rs", "fn f() -> crate::spec::JailSpec {}", true),
            ("runtime/src/policy/file.rs", "use super::super::spec::JailSpec;", true),
            ("runtime/src/policy/file.rs", "use super::model::Policy;", false),
            ("runtime/src/host/mod.rs", "use crate::sys::open;", true),
            ("runtime/src/sys/mod.rs", "use crate::jail::Step;", true),
            ("runtime/src/jail/mod.rs", "use crate::session::Session;", true),
            ("runtime/src/jail/mod.rs", "use stockade_worker::cli;", true),
            ("worker/src/queue/wire.rs", "use stockade_runtime::spec::JailSpec;", true),
            ("worker/src/cli.rs", "use stockade_runtime::spec::JailSpec;", false),
        ],
    );
    none(upward_imports(&project(&[".rs"])));
}

#[test]
fn policy_and_spec_are_pure() {
    check_fixtures(
        effects_in_pure_modules,
        &[
            ("runtime/src/policy/load.rs", "let t = std::fs::read(p);", true),
            ("runtime/src/policy/load.rs", "use std::net::TcpStream;", true),
            ("runtime/src/spec/mod.rs", "use tokio::fs;", true),
            ("runtime/src/spec/mod.rs", "use rustix::fs::open;", true),
            ("runtime/src/jail/mod.rs", "use tokio::fs;", true),
            ("runtime/src/jail/mod.rs", "use std::fs;", false),
            ("runtime/src/egress/broker.rs", "use tokio::net::TcpListener;", false),
            ("runtime/src/policy/load.rs", "// std::fs is not used\nuse std::path::Path;", false),
            ("runtime/src/policy/load.rs", "#[cfg(test)]\nmod tests { use std::fs; }", false),
        ],
    );
    none(effects_in_pure_modules(&project(&[".rs"])));
}

#[test]
fn unsafe_code_is_in_sys_only() {
    check_fixtures(
        unsafe_outside_sys,
        &[
            ("runtime/src/jail/init.rs", "let x = unsafe { call() };", true),
            ("worker/src/main.rs", "unsafe fn f() {}", true),
            ("runtime/src/sys/clone.rs", "let x = unsafe { call() };", false),
            ("runtime/src/jail/init.rs", "#![forbid(unsafe_code)] // unsafe is elsewhere", false),
            ("runtime/src/jail/init.rs", "let s = r#\"unsafe \"quoted\"\"#; let c = '\"';", false),
        ],
    );
    none(unsafe_outside_sys(&project(&[".rs"])));
}

#[test]
fn each_kernel_crate_is_named_in_one_file() {
    check_fixtures(
        crates_outside_their_file,
        &[
            ("runtime/src/jail/landlock.rs", "use landlock::{Ruleset, ABI};", false),
            ("runtime/src/host/facts.rs", "use landlock::ABI;", true),
            ("runtime/src/host/facts.rs", "let abi = ::landlock::ABI::V4;", true),
            ("runtime/src/host/facts.rs", "caps::read(None, caps::CapSet::Effective)", true),
            ("runtime/src/jail/mod.rs", "mod landlock;\nlandlock::apply();", false),
            (
                "runtime/src/jail/launcher.rs",
                "use super::{caps, landlock};\ncaps::drop_all();",
                false,
            ),
            ("runtime/src/jail/launcher.rs", "use super::landlock::apply;", false),
            (
                "runtime/src/policy/model.rs",
                "/// `landlock` is a layer\nenum L { Landlock }",
                false,
            ),
            ("worker/src/main.rs", "use cgroups_rs::Cgroup;", true),
        ],
    );
    let two = [
        Source::new("runtime/src/jail/seccomp.rs", "use seccompiler::BpfProgram;"),
        Source::new("runtime/src/jail/init.rs", "use seccompiler::apply_filter;"),
    ];
    assert_eq!(crates_outside_their_file(&two).len(), 1, "two files name one crate");
    none(crates_outside_their_file(&project(&[".rs"])));
}

#[test]
fn what_speaks_of_a_service_stays_in_its_folder() {
    check_fixtures(
        services_outside_their_folder,
        &[
            ("worker/src/traces/mod.rs", "use opentelemetry::KeyValue;", false),
            ("worker/src/queue/client.rs", "use opentelemetry::KeyValue;", true),
            ("worker/src/queue/client.rs", "fn f(x: opentelemetry_sdk::Resource) {}", true),
            ("worker/src/queue/count.rs", "use metrics_exporter_prometheus::Matcher;", true),
            ("worker/src/platform/sign.rs", "use aws_sigv4::sign::v4;", false),
            ("worker/src/daemon/mod.rs", "use aws_credential_types::Credentials;", true),
            ("worker/src/devserver/state.rs", "identity.aws_pair.clone(); aws::KeyPair {}", false),
        ],
    );
    none(services_outside_their_folder(&project(&[".rs"])));
}

#[test]
fn files_are_short_enough_to_read() {
    check_fixtures(
        long_files,
        &[
            ("runtime/src/a.rs", &"line\n".repeat(601), true),
            ("runtime/src/a.rs", &"line\n".repeat(600), false),
        ],
    );
    none(long_files(&project(&[".rs", ".c", ".h", ".sh", ".py"])));
}

#[test]
fn a_refused_security_control_is_never_ignored() {
    check_fixtures(
        ignored_refusals,
        &[
            ("runtime/src/jail/init.rs", "let _ = prctl::set_no_new_privs();", true),
            ("runtime/src/jail/init.rs", "fn f() { ruleset.restrict_self().ok(); }", true),
            ("runtime/src/jail/init.rs", "caps::clear(None, set)\n    .ok();", true),
            ("runtime/src/jail/init.rs", "let n = text.parse::<u32>().ok();", false),
            ("runtime/src/jail/init.rs", "let _ = write!(out, \"mount\");", false),
            ("runtime/src/jail/init.rs", "mount(a, b)?; let n = text.parse().ok();", false),
        ],
    );
    none(ignored_refusals(&project(&[".rs"])));
}

#[test]
fn nothing_is_left_unfinished() {
    let mark = format!("// {}{}: later", "TO", "DO");
    let call = format!("{}{}()", "unimpl", "emented!");
    check_fixtures(
        unfinished,
        &[
            ("runtime/src/a.rs", &mark, true),
            ("worker/src/a.rs", &call, true),
            ("worker/src/a.rs", "let mastodon = 1;", false),
        ],
    );
    none(unfinished(&project(&[".rs", ".c", ".h", ".toml", ".sh", ".py"])));
}
