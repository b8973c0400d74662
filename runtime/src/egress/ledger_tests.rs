//! What reaches the sink, in which order, and how much of it at most.

use super::*;
use crate::policy::network::DenyReason;
use std::sync::atomic::{AtomicBool, Ordering};

const NO_RULE: Reason = Reason::Rules(DenyReason::NoRule);

#[derive(Debug, Default)]
struct Log {
    entries: Mutex<Vec<(Option<String>, Entry)>>,
    broken: AtomicBool,
}

impl Sink for Log {
    fn record(&self, call: Option<&str>, entry: &Entry) -> bool {
        let works = !self.broken.load(Ordering::Relaxed);
        if works {
            let entry = (call.map(str::to_owned), entry.clone());
            self.entries.lock().expect("not poisoned").push(entry);
        }
        works
    }
}

impl Log {
    fn take(&self) -> Vec<(Option<String>, Entry)> {
        std::mem::take(&mut *self.entries.lock().expect("not poisoned"))
    }

    fn len(&self) -> usize {
        self.entries.lock().expect("not poisoned").len()
    }
}

fn ledger() -> (Arc<Log>, Ledger) {
    let log = Arc::new(Log::default());
    (Arc::clone(&log), Ledger::new(log))
}

fn target(host: &str, port: u16) -> Target {
    Target { host: Host::parse(host).expect(host), port }
}

fn wanted(host: &str) -> Decision {
    Decision {
        number: 0,
        target: target(host, 443),
        address: None,
        rule: Some(format!("{host}:443")),
        origin: None,
        generation: 1,
        denied: None,
        reported: false,
    }
}

fn closed(number: u64, host: &str, by: Option<Reason>) -> Closed {
    let duration = Duration::from_millis(5);
    Closed {
        number,
        target: target(host, 443),
        address: None,
        bytes_out: 10,
        bytes_in: 100,
        duration,
        by,
    }
}

#[test]
fn the_first_denial_of_a_kind_is_recorded_at_once_and_the_others_are_counted() {
    let (log, ledger) = ledger();
    ledger.turn(Some("call_1"));
    for _ in 0..3 {
        let number = ledger.deny(target("a.test", 443), NO_RULE, 1, None);
        assert_eq!((log.len(), number), (1, Some(1)), "before the refusal, and once");
    }
    assert_eq!(ledger.deny(target("a.test", 22), NO_RULE, 1, None), Some(2));
    assert_eq!(log.len(), 2, "another port is another target");
    let denials = ledger.turn(None);
    let told: Vec<_> = denials.iter().map(|d| (d.count, d.decision)).collect();
    assert_eq!(told, [(1, Some(2)), (3, Some(1))]);
    let entries = log.take();
    assert!(entries.iter().all(|(call, _)| call.as_deref() == Some("call_1")));
    let (target, reason) = (Some(target("a.test", 443)), NO_RULE);
    assert_eq!(entries[2].1, Entry::Repeated { target, reason, count: 2 });
    assert_eq!(entries.len(), 3);
    assert_eq!(ledger.turn(None), []);
}

/// INV-11: millions of denials leave a bounded number of records, in one call and in a session.
#[test]
fn a_flood_of_denials_leaves_a_bounded_record() {
    let (log, ledger) = ledger();
    ledger.turn(Some("call_1"));
    for n in 0..10_000 {
        ledger.deny(target(&format!("n{n}.test"), 443), NO_RULE, 1, None);
    }
    ledger.deny_unnamed(NO_RULE);
    assert_eq!(log.len(), TARGETS_MAX);
    let denials = ledger.turn(None);
    assert_eq!(denials.iter().map(|d| d.count).sum::<u64>(), 10_001, "none is lost");
    assert_eq!(log.len(), TARGETS_MAX + 1, "one sum for all others");
    log.take();
    for call in 0..400 {
        ledger.turn(Some(&format!("call_{call}")));
        for n in 0..200 {
            ledger.deny(target(&format!("n{n}.test"), 443), NO_RULE, 1, None);
        }
    }
    ledger.turn(None);
    let written = log.len() as u64;
    assert!((DENIALS_MAX..DENIALS_MAX + 1_000).contains(&written), "{written} records");
}

/// product.md 2B item 7.
#[test]
fn what_fails_upstream_is_recorded_and_is_no_denial() {
    let (log, ledger) = ledger();
    ledger.deny(target("a.test", 443), Reason::NoAddress, 1, None);
    ledger.deny(target("a.test", 443), NO_RULE, 1, None);
    let number = ledger.allow(wanted("b.test")).expect("allowed");
    ledger.close(closed(number, "b.test", Some(Reason::Unreachable)));
    let denials = ledger.turn(None);
    assert_eq!(denials.iter().map(|d| d.reason).collect::<Vec<_>>(), [NO_RULE]);
    assert_eq!(log.len(), 4);
}

#[test]
fn nothing_is_allowed_without_its_record() {
    let (log, ledger) = ledger();
    assert_eq!(ledger.allow(wanted("a.test")), Some(1), "control");
    log.broken.store(true, Ordering::Relaxed);
    assert_eq!(ledger.allow(wanted("a.test")), None);
    assert_eq!(ledger.deny(target("a.test", 1), NO_RULE, 1, None), None);
    let denials = ledger.turn(None);
    assert_eq!((denials[0].count, denials[0].decision), (1, None), "no number that is not there");
}

#[test]
fn an_end_belongs_to_the_call_in_which_the_connection_began() {
    let (log, ledger) = ledger();
    ledger.turn(Some("call_1"));
    let number = ledger.allow(wanted("a.test")).expect("allowed");
    ledger.turn(Some("call_2"));
    ledger.close(closed(number, "a.test", Some(Reason::Bytes)));
    let entries = log.take();
    assert_eq!(entries[1].0.as_deref(), Some("call_1"));
    assert!(matches!(&entries[1].1, Entry::Closed(closed) if closed.bytes_in == 100));
    // The limit took effect now, so the call that runs now is told.
    let denials = ledger.turn(None);
    assert_eq!((denials[0].reason, denials[0].decision), (Reason::Bytes, Some(number)));
    assert_eq!(log.len(), 0, "its record is the end");
}

/// INV-11: a program that connects all day to where it may leaves a bounded record, and no byte of
/// it is lost.
#[test]
fn connections_beyond_the_first_ones_are_summed() {
    let (log, ledger) = ledger();
    ledger.turn(Some("call_1"));
    for _ in 0..1_000 {
        let number = ledger.allow(wanted("a.test")).expect("allowed");
        ledger.close(closed(number, "a.test", None));
    }
    assert_eq!(log.len(), 2 * EACH_MAX as usize);
    ledger.turn(Some("call_2"));
    let (call, last) = log.take().pop().expect("a sum");
    let Entry::Summed(sum) = last else { panic!("{last:?}") };
    assert_eq!(call.as_deref(), Some("call_1"));
    assert_eq!(
        (sum.target, sum.rule.as_deref()),
        (Some(target("a.test", 443)), Some("a.test:443"))
    );
    let rest = 1_000 - u64::from(EACH_MAX);
    assert_eq!((sum.connections, sum.bytes_out, sum.bytes_in), (rest, 10 * rest, 100 * rest));
    assert_eq!(sum.duration, Duration::from_millis(5) * rest as u32);
    ledger.allow(wanted("a.test")).expect("allowed");
    assert_eq!(log.len(), 1, "the next call begins anew");
}

#[test]
fn a_summed_connection_that_outlives_its_call_is_counted_once_and_loses_no_byte() {
    let (log, ledger) = ledger();
    let numbers: Vec<u64> =
        (0..=EACH_MAX).map(|_| ledger.allow(wanted("a.test")).expect("allowed")).collect();
    ledger.turn(Some("call_1"));
    log.take();
    let last = *numbers.last().expect("some");
    ledger.close(closed(last, "a.test", None));
    drop(ledger);
    let entries = log.take();
    let [(_, Entry::Summed(sum))] = entries.as_slice() else { panic!("{entries:?}") };
    assert_eq!((sum.connections, sum.bytes_in), (0, 100), "it was counted when it began");
}

#[test]
fn a_session_that_has_used_up_its_records_makes_no_more_connections() {
    let (log, ledger) = ledger();
    // Destinations that are new each time, as in a wide network rule.
    for n in 0..CONNECTIONS_MAX {
        let number = ledger.allow(wanted(&format!("n{n}.test"))).expect("allowed");
        ledger.close(closed(number, "n.test", None));
    }
    assert_eq!(log.len() as u64, 2 * CONNECTIONS_MAX);
    assert_eq!(ledger.allow(wanted("new.test")), None);
    ledger.turn(Some("call_1"));
    assert_eq!(ledger.allow(wanted("n1.test")), None, "nor known ones in another call");
}

#[test]
fn what_was_counted_is_recorded_at_the_end_of_the_session() {
    let (log, ledger) = ledger();
    ledger.deny(target("a.test", 443), NO_RULE, 1, None);
    ledger.deny(target("a.test", 443), NO_RULE, 1, None);
    assert_eq!(log.len(), 1);
    drop(ledger);
    assert!(matches!(log.take().pop(), Some((None, Entry::Repeated { count: 1, .. }))));
}

/// The records of one session have the order of their numbers, whoever writes them.
#[test]
fn records_of_many_threads_stand_in_the_order_of_their_numbers() {
    let (log, ledger) = ledger();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let ledger = &ledger;
            scope.spawn(move || {
                for n in 0..200 {
                    let host = format!("t{thread}-{}.test", n % 20);
                    ledger.deny(target(&host, n), NO_RULE, 1, None);
                    ledger.allow(wanted(&host)).expect("allowed");
                }
            });
        }
    });
    let numbers: Vec<u64> = log
        .take()
        .into_iter()
        .filter_map(|(_, entry)| match entry {
            Entry::Decision(decision) => Some(decision.number),
            _ => None,
        })
        .collect();
    assert!(numbers.is_sorted() && numbers.len() > 800, "{} records", numbers.len());
}
