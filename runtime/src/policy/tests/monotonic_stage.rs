//! The same property for rules `[[stage]]`: whatever a child writes, a session gets no input by it that
//! it would not get by the parent. Compared by what could be fetched, without the code under test. As
//! long as no file has written rules, a child may.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::stage::{StageDigest, StageKind, StageRule, StageSource, StageValue};
use super::super::{Policy, PolicyError};
use super::resolve;

/// Places in which values may lie, and what they may name.
const PLACES: [&str; 4] =
    ["https://a.test/in/", "https://a.test/in/x/", "https://a.test/inner/", "https://b.test/in/"];
const PROBES: [&str; 6] = [
    "https://a.test/in/y",
    "https://a.test/in/x/y",
    "https://a.test/inner/y",
    "https://b.test/in/y",
    "https://b.test/other",
    "https://a.test/in/x/fixed",
];
const FROM: [&str; 3] = ["metadata:f", "metadata:f", "https://a.test/in/x/fixed"];
const DIGESTS: [&str; 3] = ["digest = \"record\", why = \"w\"", "sha256 = \"metadata:s\"", ""];

fn rule() -> impl Strategy<Value = String> {
    let names = proptest::sample::select(vec!["a", "b"]);
    let from = proptest::sample::select(FROM.to_vec());
    let allow = proptest::sample::subsequence(PLACES.to_vec(), 1..=PLACES.len());
    let digest = proptest::sample::select(DIGESTS.to_vec());
    let (size, time, to) = (1..4u32, 1..4u32, proptest::sample::select(vec!["t", "t", "t", "u"]));
    (names, from, allow, digest, size, time, to, any::<[bool; 2]>()).prop_map(
        |(name, from, allow, digest, size, time, to, [private, required])| {
            let fixed = format!("sha256 = \"{}\"", "1".repeat(64));
            let digest = if digest.is_empty() { &fixed } else { digest };
            let allow = match from.starts_with("metadata:") {
                true => format!("allow = {allow:?}, "),
                false => String::new(),
            };
            format!(
                "{{ name = \"{name}\", kind = \"https\", from = \"{from}\", {allow}to = \"{to}/{name}\", \
                 {digest}, size_max = \"{size}MiB\", time_max = \"{time}m\", private = {private}, \
                 required = {required} }}"
            )
        },
    )
}

/// The rules of one file: none written, or up to two of different names.
fn rules() -> impl Strategy<Value = String> {
    let list = proptest::collection::vec(rule(), 0..3);
    proptest::option::weighted(0.9, list).prop_map(|list| {
        let Some(mut list) = list else { return String::new() };
        if list.len() == 2 && list[0][..14] == list[1][..14] {
            list.pop();
        }
        format!("stage = [{}]\n", list.join(", "))
    })
}

/// All (rule, place, source, digest) by which a session may get input, private or not.
fn gets(policy: &Policy) -> BTreeSet<(String, String, String, String, bool)> {
    let mut all = BTreeSet::new();
    let (one, other) = ("1".repeat(64), "2".repeat(64));
    for rule in &policy.stage.rules {
        let StageKind::Https { digest, private } = &rule.kind else { panic!("all are https") };
        for probe in PROBES.iter().filter(|probe| leads_to(rule, probe)) {
            for sum in [&one, &other] {
                let fits = match digest {
                    StageDigest::Record(_) | StageDigest::Sha256(StageValue::Metadata(_)) => true,
                    StageDigest::Sha256(StageValue::Fixed(fixed)) => fixed == sum,
                };
                for dials in [false, true].iter().filter(|dials| !**dials || *private) {
                    let (name, to) = (rule.name.clone(), rule.to.clone());
                    all.extend(fits.then(|| {
                        (name.clone(), to.clone(), (*probe).to_owned(), sum.clone(), *dials)
                    }));
                }
            }
        }
    }
    all
}

fn leads_to(rule: &StageRule, probe: &str) -> bool {
    let within = |place: &str| {
        let place = place.trim_end_matches('/');
        probe.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match &rule.from {
        StageSource::Fixed(place) => place.to_string() == probe,
        StageSource::Metadata(_) => rule.allow.iter().any(|at| within(&at.value.to_string())),
    }
}

fn wider(child: &Policy, parent: &Policy) -> Option<String> {
    let (own, above) = (&child.stage, &parent.stage);
    if !above.named {
        assert!(above.rules.is_empty(), "input that nobody named: {:?}", above.rules);
        return None;
    }
    let more: Vec<_> = gets(child).difference(&gets(parent)).cloned().collect();
    if !more.is_empty() {
        return Some(format!("{more:?}"));
    }
    let more = own.rules.iter().find(|rule| {
        let parent = above.rules.iter().find(|parent| parent.name == rule.name);
        parent.is_none_or(|parent| {
            rule.size_max > parent.size_max
                || rule.time_max > parent.time_max
                || rule.unpack != parent.unpack
        })
    });
    match (more, own.named) {
        (Some(rule), _) => Some(rule.name.clone()),
        (None, false) => Some("named".to_owned()),
        (None, true) => None,
    }
}

/// What a child of `parent` comes to, by way of a file that is silent.
fn under(parent: &str, child: &str) -> Result<Policy, PolicyError> {
    let between = "schema = 1\nextends = \"./parent.toml\"";
    let parent = format!("schema = 1\n{parent}");
    let child = format!("schema = 1\nextends = \"./between.toml\"\n{child}");
    let files = [("parent.toml", &*parent), ("between.toml", between), ("child.toml", &child)];
    resolve(&files, "child.toml")
}

#[test]
fn a_child_that_only_narrows_is_accepted_and_one_that_widens_is_not() {
    // The control: the comparison sees both.
    let rule = |allow: &str, more: &str| {
        format!(
            "stage = [{{ name = \"a\", kind = \"https\", from = \"metadata:f\", allow = [{allow}], \
             to = \"t\", sha256 = \"metadata:s\"{more} }}]"
        )
    };
    let (both, one) =
        ("\"https://a.test/in/\", \"https://b.test/in/\"", "\"https://a.test/in/x/\"");
    let root = |text: &str| {
        let text = format!("schema = 1\n{text}");
        resolve(&[("p.toml", &text)], "p.toml").expect("valid")
    };
    let narrow = under(&rule(both, ""), &rule(one, "")).expect("narrower");
    assert_eq!(wider(&narrow, &root(&rule(both, ""))), None);
    assert!(gets(&narrow).len() < gets(&root(&rule(both, ""))).len());
    assert!(wider(&root(&rule(both, "")), &narrow).is_some(), "places");
    assert!(wider(&root(&rule(one, ", private = true")), &narrow).is_some(), "private");
    assert!(wider(&root(&rule(one, ", size_max = \"300MiB\"")), &narrow).is_some(), "size");
    let refused = under(&rule(one, ""), &rule(both, ""));
    assert!(matches!(refused, Err(PolicyError::Widened { .. })), "{refused:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_child_never_stages_what_its_parent_would_not(parent in rules(), child in rules()) {
        let text = format!("schema = 1\n{parent}");
        let base = resolve(&[("parent.toml", &text)], "parent.toml").expect("any root is valid");
        match under(&parent, &child) {
            Ok(policy) => prop_assert_eq!(wider(&policy, &base), None),
            // Only what would be wider is refused, and nothing where no rule was written.
            Err(PolicyError::Widened { .. }) => prop_assert!(base.stage.named),
            Err(other) => panic!("{other}"),
        }
    }
}
