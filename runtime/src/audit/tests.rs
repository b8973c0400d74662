//! Whatever is done to a log in the middle is found.

use super::*;
use crate::audit::chain::Chain;
use crate::audit::{Event, Ids, ItemEnd};
use proptest::prelude::*;
use std::time::Duration;

/// A log of `count` records with a repair in the middle.
fn log(count: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut chain = Chain::new(b"");
    for number in 0..count {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(number);
        let ids = Ids { session: Some(format!("sesn_{number}").into()), ..Ids::default() };
        let event = Event::ItemEnded { reason: ItemEnd::Idle };
        chain.append(&mut bytes, now, &ids, &event).expect("memory");
        if number == count / 2 {
            let (seq, digest) = chain.head();
            bytes.extend_from_slice(b"{\"v\":1,\"seq\"");
            chain = Chain::resumed(seq, digest, b"{\"v\":1,\"seq\"");
        }
    }
    bytes
}

fn check(bytes: &[u8]) -> Verification {
    verify(&mut &*bytes, None).expect("memory can be read")
}

fn lines(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

#[test]
fn a_log_as_written_verifies_and_its_repair_is_told() {
    let found = check(&log(10));
    assert_eq!(found.problem, None);
    assert_eq!((found.records, found.first_seq, found.last_seq), (11, Some(1), Some(11)));
    assert_eq!((found.gaps, found.bad_lines, found.clock_steps_back), (0, 0, 0));
    assert_eq!(found.repairs, [Repair { line: 8, seq: 7, torn_bytes: 12 }]);
    assert_eq!(found.last_time, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(9)));
}

#[test]
fn a_receipt_that_does_not_know_a_number_leaves_it_out() {
    // MEM-32; a record with the number reads as it always did.
    let mut bytes = Vec::new();
    let mut chain = Chain::new(b"");
    for unsynced in [Some(0), Some(3), None] {
        let event = Event::MemoryDisposed { store: "memstore_1".into(), unsynced };
        let now = SystemTime::UNIX_EPOCH;
        chain.append(&mut bytes, now, &Ids::default(), &event).expect("memory");
    }
    let text = String::from_utf8(bytes.clone()).expect("text");
    let unsynced: Vec<Option<&str>> =
        text.lines().map(|line| line.split_once("\"unsynced\":")?.1.get(..1)).collect();
    assert_eq!(unsynced, [Some("0"), Some("3"), None], "{text}");
    assert_eq!((check(&bytes).problem, check(&bytes).records), (None, 3));
}

#[test]
fn a_flip_of_any_bit_is_found() {
    let bytes = log(4);
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            assert!(check(&changed).problem.is_some(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn the_first_bad_line_is_named_with_the_reason() {
    let all = lines(&log(6));
    let without = |at: usize| {
        let mut fewer = all.clone();
        fewer.remove(at);
        check(&fewer.concat())
    };
    let first = without(0).problem.expect("found");
    assert_eq!((first.line, first.reason.as_str()), (1, "records 1 to 1 are missing before it"));
    let found = without(2);
    assert_eq!(found.gaps, 1);
    assert_eq!(found.problem.expect("found").line, 3);
    // Line 5 is the torn one; without it the repair has nothing to repair.
    let torn = without(4).problem.expect("found");
    assert_eq!(torn.line, 5);
    assert!(torn.reason.contains("repairs a write of 12 bytes"), "{}", torn.reason);
    // And without the repair the torn one is just a bad line.
    let unrepaired = without(5).problem.expect("found");
    assert_eq!(
        (unrepaired.line, unrepaired.reason.as_str()),
        (5, "the line has no hash at its end")
    );
    let mut edited = all.clone();
    let at = edited[1].iter().position(|byte| *byte == b'i').expect("an i");
    edited[1][at] = b'j';
    let edit = check(&edited.concat()).problem.expect("found");
    assert_eq!(edit.line, 2);
    assert!(edit.reason.starts_with("the line was changed"), "{}", edit.reason);
}

/// Renumbering with fresh hashes: each line is good by itself, and the chain shows it.
#[test]
fn a_line_that_was_written_anew_does_not_fit_the_next_one() {
    let mut all = lines(&log(3));
    let mut forged = Vec::new();
    let head = line::check(&all[0][..all[0].len() - 1]).expect("good");
    let event = Event::ItemEnded { reason: ItemEnd::Failed };
    line::encode(&mut forged, &head.place, head.time, &Ids::default(), &event).expect("a line");
    forged.push(b'\n');
    all[0] = forged;
    let found = check(&all.concat()).problem.expect("found");
    assert_eq!(found.line, 2);
    assert!(found.reason.contains("not the one it was written after"), "{}", found.reason);
}

/// What it cannot see, and what a digest noted elsewhere is good for.
#[test]
fn a_missing_end_is_seen_only_with_a_digest_that_was_noted() {
    let bytes = log(6);
    let digest = check(&bytes).head.expect("a record");
    let all = lines(&bytes);
    let shorter = all[..all.len() - 2].concat();
    assert_eq!(check(&shorter).problem, None, "docs/audit.md says so");
    let expect = Some(Expectation { digest });
    assert_eq!(verify(&mut bytes.as_slice(), expect).expect("read").problem, None);
    let problem = verify(&mut shorter.as_slice(), expect).expect("read").problem.expect("found");
    assert!(problem.reason.contains("does not hold the record"), "{}", problem.reason);
}

#[test]
fn an_empty_log_and_a_line_without_end_do_not_verify() {
    assert_eq!(check(b"").problem.expect("found").reason, "the log holds no record");
    let bytes = log(2);
    let cut = check(&bytes[..bytes.len() - 1]);
    assert!(cut.problem.expect("found").reason.contains("no line break"));
    let half = check(&bytes[..bytes.len() - 9]);
    assert!(half.problem.expect("found").reason.contains("a write was cut off"));
}

/// INV-11: a line has a bound, and what is longer is not kept in memory.
#[test]
fn a_line_beyond_the_bound_is_refused_and_the_rest_is_read() {
    let all = lines(&log(3));
    let long = [vec![b'x'; 3 * LINE_BYTES_MAX], vec![b'\n']].concat();
    let bytes = [all[0].clone(), long, all[1].clone()].concat();
    let found = check(&bytes);
    assert_eq!(found.records, 2);
    let problem = found.problem.expect("found");
    assert_eq!(problem.line, 2);
    assert!(problem.reason.contains("longer than 1048576"), "{}", problem.reason);
}

proptest! {
    #[test]
    fn any_line_removed_duplicated_or_swapped_is_found(count in 2u64..20, a in 0usize..100, b in 0usize..100) {
        let all = lines(&log(count));
        let (a, b) = (a % (all.len() - 1), b % all.len());
        let mut fewer = all.clone();
        fewer.remove(a);
        prop_assert!(check(&fewer.concat()).problem.is_some(), "without {}", a);
        let mut more = all.clone();
        more.insert(b, all[a].clone());
        prop_assert!(check(&more.concat()).problem.is_some(), "{} again at {}", a, b);
        if a != b {
            let mut swapped = all.clone();
            swapped.swap(a, b);
            prop_assert!(check(&swapped.concat()).problem.is_some(), "{} and {}", a, b);
        }
    }

    #[test]
    fn any_bytes_removed_or_added_before_the_end_are_found(count in 2u64..8, at in 0usize..9999, extra in proptest::collection::vec(any::<u8>(), 1..40)) {
        let bytes = log(count);
        let at = at % bytes.len();
        let mut more = bytes.clone();
        more.splice(at..at, extra.iter().copied());
        prop_assert!(check(&more).problem.is_some(), "{:?} at {}", extra, at);
        let end = (at + extra.len()).min(bytes.len() - 1);
        if at < end {
            let mut fewer = bytes.clone();
            fewer.drain(at..end);
            prop_assert!(check(&fewer).problem.is_some(), "without {}..{}", at, end);
        }
    }

    #[test]
    fn any_bytes_at_all_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
        prop_assert!(check(&bytes).problem.is_some());
    }
}
