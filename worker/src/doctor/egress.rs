//! Doctor's check of the only way out: a jail with a resolver and listeners, whose program tries what
//! is allowed and what is not. Nothing leaves the host: the only rule leads to a listener of ours on
//! loopback, and what is refused is never looked up or dialled.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use stockade_runtime::egress::{Denial, Reason};
use stockade_runtime::host::HostFacts;
use stockade_runtime::policy::Resolver;
use stockade_runtime::spec::{self, Request};

use super::{Check, Reason as Why, Status, run_jail};
use crate::cli::syscall_groups;
use crate::network::{self, Served};

/// A name and addresses (RFC 6761, 5737, 3849) that no rule names.
const UNKNOWN: &str = "doctor.invalid";
const ANY_V4: &str = "192.0.2.77";
const ANY_V6: &str = "2001:db8::77";
/// What comes through the broker.
const WORD: &str = "through";
/// Most time for it to arrive after the jail has ended.
const WORD_MAX: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };
/// Tries every way out, and waits until the refused ones are reset.
const SCRIPT: &str = r#"
exec 2>/dev/null
printf '%s' "$1" > "/dev/tcp/127.0.0.1/$2"
for to in "${@:3}"; do ( exec 3<> "/dev/tcp/$to/$2" && read -r -t 5 -u 3 ); done
exit 0"#;

/// What the jail's program got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// What the rule allows arrived.
    arrived: bool,
    /// The resolver was asked for a name, and refused.
    asked: bool,
    /// Any address leads to the broker.
    v4: bool,
    v6: bool,
}

/// Makes a jail whose policy names a destination, and finds out what its program reaches.
pub(super) fn check(facts: &HostFacts) -> anyhow::Result<Check> {
    let outcome = try_out(facts)?;
    let (status, found, fix) = match outcome {
        Ok(seen) => judge(seen),
        // The shipped `default` names no destination.
        Err(reason) => (Status::Warn, reason.what, Some(reason.fix)),
    };
    let needed = "policies that name destinations: network.allow and network.presets".to_owned();
    Ok(Check { id: "egress".to_owned(), status, found, needed, fix })
}

fn judge(seen: Seen) -> (Status, String, Option<String>) {
    let report = "report this with the output of `worker doctor --json`";
    let (found, fix) = match seen {
        Seen { arrived: true, asked: true, v4: true, v6: true } => {
            let found = "names, IPv4 and IPv6 lead to the broker, which carries what a rule allows";
            return (Status::Pass, found.to_owned(), None);
        }
        Seen { arrived: true, asked: true, v4: true, v6: false } => {
            let found = "names and IPv4 lead to the broker, which carries what a rule allows; \
                         there is no IPv6 in new network namespaces here";
            return (Status::Pass, found.to_owned(), None);
        }
        Seen { arrived: false, asked: false, v4: false, v6: false } => {
            ("nothing that the jail's `bash` tried was seen by the broker", "install bash")
        }
        Seen { v4: false, .. } => ("not every address leads to the broker", report),
        Seen { asked: false, .. } => {
            ("questions for names do not reach the jail's resolver", report)
        }
        Seen { arrived: false, .. } => (
            "the broker could not carry a connection to 127.0.0.1",
            "let this user connect to 127.0.0.1 in the firewall of this host",
        ),
    };
    (Status::Warn, found.to_owned(), Some(fix.to_owned()))
}

fn try_out(facts: &HostFacts) -> anyhow::Result<Result<Seen, Why>> {
    let server =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on 127.0.0.1")?;
    let port = server.local_addr().context("cannot read the port of a listener")?.port();
    let policy = policy(port)?;
    let words = ["bash", "-c", SCRIPT, "bash", WORD, &port.to_string(), UNKNOWN, ANY_V4, ANY_V6];
    let argv = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    let spec = match spec::build(&policy, facts, Request { argv, ..Request::default() }) {
        Ok(spec) => spec,
        Err(error) => return Ok(Err(Why { what: error.to_string(), fix: error.hint() })),
    };
    let mut plan = spec.egress.clone();
    let mut served: Option<Served> = None;
    let ran = run_jail(facts, spec, &mut |listeners| {
        let plan = plan.take().ok_or(io::ErrorKind::InvalidData)?;
        served = Some(network::serve(plan, listeners)?);
        Ok(())
    })?;
    if let Err(reason) = ran {
        return Ok(Err(reason));
    }
    let arrived = word(&server).is_ok_and(|word| word == WORD);
    let denials = served.map(Served::end).unwrap_or_default();
    Ok(Ok(seen(arrived, &denials)))
}

fn seen(arrived: bool, denials: &[Denial]) -> Seen {
    let hosts = |of: fn(Reason) -> bool| -> BTreeSet<String> {
        let denials = denials.iter().filter(|denial| of(denial.reason));
        denials.filter_map(|denial| Some(denial.target.as_ref()?.host.to_string())).collect()
    };
    let asked = hosts(|reason| reason == Reason::Lookup).contains(UNKNOWN);
    let reached = hosts(|reason| reason != Reason::Lookup);
    let has = |address: &str| reached.iter().any(|host| host.trim_matches(['[', ']']) == address);
    Seen { arrived, asked, v4: has(ANY_V4), v6: has(ANY_V6) }
}

/// The shipped `default`, and this destination.
fn policy(port: u16) -> anyhow::Result<stockade_runtime::policy::Policy> {
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let text = format!(
        "schema = 1\nname = \"doctor\"\nextends = \"default\"\n[network]\n\
         allow = [{{ rule = \"{to}\", private = true, protocol = \"tcp\" }}]\n"
    );
    let load = |_: &std::path::Path| Ok(text.clone());
    let resolver = Resolver { groups: &syscall_groups(), directories: &[], load: &load };
    resolver.resolve("./doctor.toml").context("a policy of ours does not resolve")
}

/// What the first connection says, which began while the jail ran.
fn word(server: &TcpListener) -> io::Result<String> {
    let mut ready = [PollFd::new(server, PollFlags::IN)];
    if poll(&mut ready, Some(&WORD_MAX))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let (connection, _) = server.accept()?;
    connection.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut said = String::new();
    connection.take(64).read_to_string(&mut said)?;
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Seen = Seen { arrived: true, asked: true, v4: true, v6: true };

    #[test]
    fn only_ipv6_may_be_missing_and_everything_else_has_a_fix() {
        assert_eq!(judge(ALL).0, Status::Pass);
        assert_eq!(judge(Seen { v6: false, ..ALL }).0, Status::Pass);
        let none = Seen { arrived: false, asked: false, v4: false, v6: false };
        let lacking = [Seen { arrived: false, ..ALL }, Seen { asked: false, ..ALL }];
        for seen in lacking.into_iter().chain([Seen { v4: false, ..ALL }, none]) {
            let (status, found, fix) = judge(seen);
            assert_eq!(status, Status::Warn, "{found}");
            assert!(fix.is_some(), "{found}");
        }
    }

    #[test]
    fn only_the_expected_destination_is_in_the_policy() {
        let policy = policy(4711).expect("a policy");
        let plan = spec::EgressPlan::of(&policy).expect("it names a destination");
        assert_eq!(plan.ports().into_iter().collect::<Vec<_>>(), [4711]);
    }
}
