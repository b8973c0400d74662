//! What is added to the result of a call in which a limit of the session took effect: true decisions
//! of ours only, a few lines, so that the model neither retries in vain nor blames the program.

use stockade_runtime::jail::LimitHit;

use crate::explain;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_named_with_its_key_and_nothing_is_said_without_one() {
        assert_eq!(of(&[]), None);
        let text = of(&[
            LimitHit::Memory { bytes: 2 << 30, kills: 1 },
            LimitHit::Processes { max: 1024, refused: 7 },
            LimitHit::Bytes { place: "/workspace".to_owned(), bytes: 1 << 30 },
            LimitHit::Inodes { place: "/tmp".to_owned(), inodes: 10 },
        ])
        .expect("a footer");
        for part in ["[jail] Limits", "process.memory", "process.pids", "/workspace", "/tmp"] {
            assert!(text.contains(part), "`{part}` is not in: {text}");
        }
        assert_eq!(text.lines().count(), 6);
    }
}

pub fn egress(_d: &[stockade_runtime::egress::Denial], _x: u8) -> Option<String> {
    None
}
