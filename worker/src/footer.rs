//! What is added to the result of a call in which a limit of the session took effect or the broker
//! refused something: true decisions of ours only, a few lines, so that the model neither retries in
//! vain nor blames the program.

use std::collections::BTreeMap;

use stockade_runtime::egress::{Denial, Reason};
use stockade_runtime::jail::LimitHit;
use stockade_runtime::policy::network::{DenyDetail, Host};

use crate::explain;

/// Most targets that are named.
const TARGETS_MAX: usize = 10;
/// Longest target or reason that others are aligned with, bytes.
const COLUMN_MAX: usize = 72;

/// The footer, or nothing if there is nothing to explain.
pub fn of(hits: &[LimitHit]) -> Option<String> {
    if hits.is_empty() {
        return None;
    }
    let noun = if hits.len() == 1 { "A limit" } else { "Limits" };
    let mut text = format!(
        "[jail] {noun} of this session took effect during this call (operator policy, not a fault):"
    );
    for hit in hits {
        text.push_str("\n  - ");
        text.push_str(&explain::limit(hit));
    }
    text.push_str(
        "\nThe session goes on. Do the work with less, or say what is needed and stop; the limit \
         cannot be raised from here.",
    );
    Some(text)
}

/// Both footers, or the one there is.
pub fn all(hits: &[LimitHit], denials: &[Denial], detail: DenyDetail) -> Option<String> {
    match (of(hits), egress(denials, detail)) {
        (Some(limits), Some(egress)) => Some(format!("{limits}\n{egress}")),
        (limits, egress) => limits.or(egress),
    }
}

/// The footer of what the broker refused (product.md 3.4), or nothing if it refused nothing that the
/// model should know of.
///
/// One line for each target and reason. A name that was refused when it was looked up stands without
/// a port, and not at all if a connection to it was refused as well.
pub fn egress(denials: &[Denial], detail: DenyDetail) -> Option<String> {
    let lines = lines(denials);
    if lines.is_empty() || detail == DenyDetail::Off {
        return None;
    }
    let (noun, verb) = if lines.len() == 1 { ("attempt", "was") } else { ("attempts", "were") };
    let mut text = format!(
        "[jail] {} network {noun} in this command {verb} blocked by operator policy (not a fault):",
        lines.len()
    );
    let shown = &lines[..lines.len().min(TARGETS_MAX)];
    // One long name must not make every line as long.
    let width = |of: fn(&Line) -> &str| {
        let short = |text: &&str| text.len() <= COLUMN_MAX;
        shown.iter().map(of).filter(short).map(str::len).max().unwrap_or(0)
    };
    let (targets, reasons) = (width(|line| &line.target), width(|line| &line.reason));
    for Line { target, reason, decision } in shown {
        let line = match (detail, decision) {
            (DenyDetail::Full, Some(number)) => {
                format!("{target:<targets$}   {reason:<reasons$}   decision d-{number}")
            }
            (DenyDetail::Full, None) => format!("{target:<targets$}   {reason}"),
            _ => target.clone(),
        };
        text.push_str("\n  - ");
        text.push_str(&line);
    }
    if lines.len() > TARGETS_MAX {
        text.push_str(&format!("\n  - and {} more", lines.len() - TARGETS_MAX));
    }
    text.push('\n');
    text.push_str(advice(denials));
    Some(text)
}

/// What stands behind one dash.
struct Line {
    target: String,
    reason: String,
    decision: Option<u64>,
}

/// Denials that the model should know of: those with a target first, in the order of their decisions.
fn lines(denials: &[Denial]) -> Vec<Line> {
    let told = |denial: &&Denial| denial.reason.is_denial() && denial.reason != Reason::RecordType;
    let is_lookup = |denial: &Denial| denial.reason == Reason::Lookup;
    let mut connected: BTreeMap<&Host, ()> = BTreeMap::new();
    for denial in denials.iter().filter(told).filter(|denial| !is_lookup(denial)) {
        connected.extend(denial.target.as_ref().map(|target| (&target.host, ())));
    }
    let repeats = |denial: &&Denial| {
        let host = denial.target.as_ref().map(|target| &target.host);
        !is_lookup(denial) || host.is_none_or(|host| !connected.contains_key(host))
    };
    let mut told: Vec<&Denial> = denials.iter().filter(told).filter(repeats).collect();
    told.sort_by_key(|denial| (denial.target.is_none(), denial.decision.unwrap_or(u64::MAX)));
    told.into_iter()
        .map(|denial| {
            let count = denial.count;
            let target = match &denial.target {
                Some(target) if asked_by_name(denial.reason) => format!("{} x{count}", target.host),
                Some(target) => format!("{}:{} x{count}", target.host, target.port),
                None => format!("other targets x{count}"),
            };
            let reason = denial.target.as_ref().map(|target| denial.reason.about(&target.host));
            let reason = reason.unwrap_or(denial.reason);
            let reason = match reason.limit() {
                Some(key) => format!("limit: {reason} ({key})"),
                None => reason.to_string(),
            };
            Line { target, reason, decision: denial.decision }
        })
        .collect()
}

/// Whether it is about a name, on no port.
fn asked_by_name(reason: Reason) -> bool {
    matches!(reason, Reason::Lookup | Reason::LookupBudget)
}

/// What the model should do.
fn advice(denials: &[Denial]) -> &'static str {
    match denials.iter().all(|denial| denial.reason.limit().is_some()) {
        true => {
            "The limit cannot be raised from here. Do the work with less, or say what is needed and \
             stop."
        }
        false => "Do not retry through other routes. If this host is needed, say so and stop.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stockade_runtime::egress::Target;
    use stockade_runtime::policy::network::{AddressClass, DenyReason};
    use stockade_runtime::spec::Area;

    #[test]
    fn every_limit_is_named_with_its_key_and_nothing_is_said_without_one() {
        assert_eq!(of(&[]), None);
        let text = of(&[
            LimitHit::Memory { bytes: 2 << 30, kills: 1 },
            LimitHit::Processes { max: 1024, refused: 7 },
            LimitHit::Bytes {
                place: "/workspace".to_owned(),
                area: Area::Workspace,
                bytes: 1 << 30,
            },
            LimitHit::Inodes { place: "/tmp".to_owned(), area: Area::Tmp, inodes: 10 },
        ])
        .expect("a footer");
        for part in ["[jail] Limits", "process.memory", "process.pids", "/workspace", "/tmp"] {
            assert!(text.contains(part), "`{part}` is not in: {text}");
        }
        assert_eq!(text.lines().count(), 6);
    }

    fn denial(host: &str, port: u16, reason: Reason, count: u64, decision: u64) -> Denial {
        let target = Some(Target { host: Host::parse(host).expect(host), port });
        Denial { target, reason, count, decision: Some(decision) }
    }

    const NO_RULE: Reason = Reason::Rules(DenyReason::NoRule);

    #[test]
    fn refusals_are_told_as_the_product_page_has_it() {
        let denials = [
            denial("169.254.169.254", 80, Reason::Rules(DenyReason::DirectAddress), 1, 82),
            denial("api.partner.example", 443, NO_RULE, 3, 81),
        ];
        let full = "\
[jail] 2 network attempts in this command were blocked by operator policy (not a fault):
  - api.partner.example:443 x3   no matching rule            decision d-81
  - 169.254.169.254:80 x1        metadata is never allowed   decision d-82
Do not retry through other routes. If this host is needed, say so and stop.";
        assert_eq!(egress(&denials, DenyDetail::Full).as_deref(), Some(full));
        let host_only = "\
[jail] 2 network attempts in this command were blocked by operator policy (not a fault):
  - api.partner.example:443 x3
  - 169.254.169.254:80 x1
Do not retry through other routes. If this host is needed, say so and stop.";
        assert_eq!(egress(&denials, DenyDetail::HostOnly).as_deref(), Some(host_only));
        assert_eq!(egress(&denials, DenyDetail::Off), None);
        assert_eq!(egress(&[], DenyDetail::Full), None);
    }

    #[test]
    fn each_kind_of_refusal_has_its_line() {
        const DIRECT: Reason = Reason::Rules(DenyReason::DirectAddress);
        const METADATA: Reason = Reason::Rules(DenyReason::Address(AddressClass::Metadata));
        #[rustfmt::skip]
        let cases = [
            (denial("a.test", 53, Reason::Lookup, 2, 1),        "a.test x2   name lookup, no matching rule   decision d-1"),
            (denial("a.test", 53, Reason::LookupBudget, 1, 1),  "a.test x1   limit: too many distinct names below wildcards (network.wildcard_names)   decision d-1"),
            (denial("a.test", 22, Reason::Connections, 9, 4),   "a.test:22 x9   limit: too many connections at once (network.connections)   decision d-4"),
            (denial("192.0.2.7", 80, DIRECT, 1, 4),             "192.0.2.7:80 x1   addresses are reached by name; no rule lists this one   decision d-4"),
            (denial("10.0.0.7", 80, DIRECT, 1, 4),              "10.0.0.7:80 x1   leads to a private address   decision d-4"),
            (denial("a.test", 80, METADATA, 1, 4),              "a.test:80 x1   metadata is never allowed   decision d-4"),
            (denial("2001:db8::1", 443, NO_RULE, 1, 4),         "[2001:db8::1]:443 x1   no matching rule   decision d-4"),
            (Denial { target: None, reason: NO_RULE, count: 57, decision: None }, "other targets x57   no matching rule"),
        ];
        for (denial, want) in cases {
            let text = egress(std::slice::from_ref(&denial), DenyDetail::Full).expect("a footer");
            assert!(text.starts_with("[jail] 1 network attempt in this command was"), "{text}");
            assert_eq!(text.lines().nth(1), Some(format!("  - {want}").as_str()));
        }
    }

    /// product.md 2B items 6 and 7: what is ours, once, and nothing else.
    #[test]
    fn faults_upstream_and_answers_without_data_are_not_told() {
        for reason in [Reason::NoAddress, Reason::Unreachable, Reason::RecordType] {
            assert_eq!(egress(&[denial("a.test", 443, reason, 1, 1)], DenyDetail::Full), None);
        }
        let both = [
            denial("a.test", 53, Reason::Lookup, 2, 1),
            denial("b.test", 53, Reason::Lookup, 2, 2),
            denial("a.test", 443, NO_RULE, 1, 3),
        ];
        let text = egress(&both, DenyDetail::HostOnly).expect("a footer");
        let lines: Vec<_> = text.lines().skip(1).take(2).collect();
        assert_eq!(lines, ["  - b.test x2", "  - a.test:443 x1"]);
    }

    #[test]
    fn a_footer_has_ten_lines_and_says_how_many_more_there_are() {
        let many: Vec<_> =
            (1..=64).map(|n| denial(&format!("n{n}.test"), 443, NO_RULE, 1, n)).collect();
        let text = egress(&many, DenyDetail::Full).expect("a footer");
        assert!(text.starts_with("[jail] 64 network attempts"), "{text}");
        assert_eq!(text.lines().count(), 13);
        assert_eq!(text.lines().nth(11), Some("  - and 54 more"));
        // INV-11: even with the longest names.
        let long = ["a".repeat(63).as_str(); 3].join(".") + &format!(".{}", "b".repeat(61));
        let many: Vec<_> = (1..=20).map(|n| denial(&long, n as u16, NO_RULE, 1, n)).collect();
        assert!(egress(&many, DenyDetail::Full).expect("a footer").len() < 4_000);
    }

    // product.md 3.4: what the footer costs the model is the text in it.
    #[test]
    fn a_long_name_does_not_widen_the_other_lines() {
        let long = ["a".repeat(63).as_str(); 3].join(".") + &format!(".{}", "b".repeat(61));
        let denials = [denial(&long, 443, NO_RULE, 1, 1), denial("a.test", 443, NO_RULE, 1, 2)];
        let text = egress(&denials, DenyDetail::Full).expect("a footer");
        let lines: Vec<_> = text.lines().skip(1).take(2).collect();
        assert_eq!(lines[0], format!("  - {long}:443 x1   no matching rule   decision d-1"));
        assert_eq!(lines[1], "  - a.test:443 x1   no matching rule   decision d-2");
    }

    #[test]
    fn limits_and_refusals_stand_below_each_other() {
        let hits = [LimitHit::Processes { max: 8, refused: 1 }];
        let denials = [denial("a.test", 443, NO_RULE, 1, 1)];
        let text = all(&hits, &denials, DenyDetail::Full).expect("a footer");
        let heads = text.lines().filter(|line| line.starts_with("[jail]")).count();
        assert_eq!((heads, text.lines().count()), (2, 6));
        assert_eq!(all(&hits, &[], DenyDetail::Full), of(&hits));
        assert_eq!(all(&[], &denials, DenyDetail::Off), None);
        let limit = [denial("a.test", 443, Reason::Bytes, 1, 1)];
        let text = all(&[], &limit, DenyDetail::Full).expect("a footer");
        assert!(text.ends_with("say what is needed and stop."), "{text}");
    }
}
