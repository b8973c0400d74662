//! Runs last: after all suites, nothing of the product is on the host (INV-10).

use std::thread::sleep;
use std::time::{Duration, Instant};

use e2e::leftover::Snapshot;

#[test]
fn after_all_suites_nothing_of_the_product_is_on_the_host() {
    let _turn = e2e::lock::alone();
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut found = Snapshot::take().of_product();
    while !found.is_empty() && Instant::now() < deadline {
        sleep(Duration::from_millis(100));
        found = Snapshot::take().of_product();
    }
    assert!(found.is_empty(), "INV-10: `worker sweep` should have removed {found:#?}");
}
