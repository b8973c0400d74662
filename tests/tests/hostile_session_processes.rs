//! What the processes of a session are, seen from the host: ids, capabilities, filters, namespaces.
//! INV-5, INV-6.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use e2e::session::{Processes, namespace_ids};
use e2e::{Level, Session};

/// `CAP_SETGID` and `CAP_SETUID`: bits 6 and 7 (capabilities(7)).
const CHANGE_OF_IDS: u64 = 0b1100_0000;

fn field(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("no {name}")).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn capabilities(pid: u32, set: &str) -> u64 {
    u64::from_str_radix(&field(pid, set), 16).expect("a number")
}

fn namespace(pid: u32, kind: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("it runs");
    link.display().to_string()
}

/// A program that can be dumped, and so read by its equals, owns its files in /proc.
fn is_dumpable(pid: u32) -> bool {
    let owner = fs::metadata(format!("/proc/{pid}/mem")).expect("it runs").uid();
    let id = field(pid, "Uid").split(' ').next().and_then(|id| id.parse::<u32>().ok());
    Some(owner) == id
}

fn of_the_jail(found: &Processes) -> [(&'static str, u32); 4] {
    let Processes { init, executor, keeper, bash, .. } = *found;
    [("init", init), ("executor", executor), ("keeper", keeper), ("bash", bash)]
}

#[test]
fn no_process_of_a_jail_holds_a_capability_but_the_executor_two_that_are_inert() {
    // INV-5
    let mut wrong = Vec::new();
    for level in Level::here() {
        let session = Session::start(level);
        let found = session.processes();
        for (name, pid) in of_the_jail(&found) {
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                let own = name == "executor" && matches!(set, "CapPrm" | "CapEff");
                let want = if own { CHANGE_OF_IDS } else { 0 };
                let got = capabilities(pid, set);
                if got != want {
                    wrong.push(format!("{level:?}: {set} of {name} is {got:x}"));
                }
            }
            if field(pid, "NoNewPrivs") != "1" {
                wrong.push(format!("{level:?}: {name} can gain privileges"));
            }
            // Init has an empty domain, no capability and nothing to be asked for.
            if name != "init" && field(pid, "Seccomp") != "2" {
                wrong.push(format!("{level:?}: {name} has no filter"));
            }
            if name != "bash" && is_dumpable(pid) && level == Level::Root {
                wrong.push(format!("{level:?}: {name} can be dumped"));
            }
        }
        let user = |pid| namespace(pid, "user");
        let (host, executor, bash) =
            (user(std::process::id()), user(found.executor), user(found.bash));
        if executor == bash || executor == host || bash == host || executor == user(found.init) {
            wrong.push(format!("{level:?}: shared user namespaces"));
        }
        session.end();
    }
    assert!(wrong.is_empty(), "INV-5, INV-6:\n{}", wrong.join("\n"));
}

#[test]
fn the_executors_user_namespace_owns_nothing_and_can_own_nothing() {
    // INV-5: seen by entering it with every capability in it.
    for level in Level::here() {
        let session = Session::start(level);
        let found = session.processes();
        for (name, pid) in [("executor", found.executor), ("bash", found.bash)] {
            for kind in ["mnt", "pid", "net", "ipc", "uts"] {
                let shared = namespace(found.init, kind) == namespace(pid, kind);
                // The keeper's PID namespace is init's user namespace's, as init's own.
                let nested = kind == "pid" && name == "bash";
                assert!(shared != nested, "INV-5 {level:?}: {name} has another {kind} namespace");
            }
            for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"] {
                let mut line: Vec<String> =
                    ["nsenter", "-t", &pid.to_string(), "-U", "--preserve-credentials"]
                        .map(str::to_owned)
                        .to_vec();
                let file = format!("/proc/sys/user/max_{kind}_namespaces");
                line.extend(["cat".to_owned(), file.clone()]);
                let done = std::process::Command::new(&line[0]).args(&line[1..]).output();
                let done = done.expect("cannot run nsenter");
                let text = String::from_utf8_lossy(&done.stdout).trim().to_owned();
                let said = String::from_utf8_lossy(&done.stderr).into_owned();
                assert_eq!(text, "0", "INV-5 {level:?}: {file} of {name}: {said}");
            }
        }
        session.end();
    }
}

#[test]
fn each_process_has_ids_and_namespaces_that_hide_it_from_bash() {
    // INV-6
    for level in Level::here() {
        let session = Session::start(level);
        let found = session.processes();
        let uid = |pid| field(pid, "Uid").split(' ').next().map(str::to_owned);
        if level == Level::Root {
            let (init, executor) = (uid(found.init), uid(found.executor));
            let (keeper, bash) = (uid(found.keeper), uid(found.bash));
            assert!(init != executor && executor != bash && init != bash, "{found:?}");
            assert_eq!(keeper, bash, "what one writes the other can change");
            for id in [init, executor, bash] {
                assert!(id.is_some_and(|id| id != "0"), "{found:?}");
            }
            assert_ne!(uid(found.control).as_deref(), Some("0"), "the control side gave up root");
        }
        // In the namespace of bash only bash and the keeper have a number.
        let depth = |pid| namespace_ids(pid).len();
        assert_eq!(depth(found.executor), depth(found.init), "{level:?}");
        assert_eq!(depth(found.bash), depth(found.init) + 1, "{level:?}");
        assert_eq!(namespace_ids(found.keeper).last(), Some(&1), "{level:?}");
        // One session of terminals and signals each.
        let mut sessions: Vec<String> =
            of_the_jail(&found).iter().map(|(_, pid)| field(*pid, "NSsid")).collect();
        sessions.sort();
        sessions.dedup();
        assert_eq!(sessions.len(), 4, "{level:?}: {sessions:?}");
        session.end();
    }
}

#[test]
fn a_file_helper_has_the_ids_of_bash_and_less_than_its_layers() {
    // INV-5, INV-7
    for level in Level::here() {
        let mut session = Session::start(level);
        session.bash("for i in 1 2 3; do yes $i | head -c 8000000 >f$i; done");
        let found = session.processes();
        session.begin("grep", &serde_json::json!({ "pattern": "(a|b)*c$" }));
        let helper = (0..400).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(2));
            let all = e2e::exec::parents();
            all.iter()
                .find(|(pid, parent)| {
                    *parent == found.executor && capabilities(*pid, "CapPrm") == 0
                })
                .map(|(pid, _)| *pid)
        });
        let helper = helper.expect("a helper that is confined");
        assert_eq!(field(helper, "Uid"), field(found.bash, "Uid"), "{level:?}");
        assert_eq!(field(helper, "Gid"), field(found.bash, "Gid"), "{level:?}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(capabilities(helper, set), 0, "INV-5 {level:?}: {set}");
        }
        // The executor's filter and its own.
        let filters = |pid: u32| field(pid, "Seccomp_filters").parse::<u32>().expect("a number");
        let more = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(2));
            filters(helper) > filters(found.executor)
        });
        assert!(more, "INV-7 {level:?}: the helper has no filter of its own");
        session.answer().expect("the session goes on");
        session.end();
    }
}
