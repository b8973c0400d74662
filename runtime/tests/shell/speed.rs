//! What a call costs. Not a limit that a loaded machine could miss: run it by hand.

use std::time::Instant;

use crate::tree::Tree;

crate::tests! {
    MEASUREMENTS:
    calls_per_second,
}

fn calls_per_second() {
    let mut tree = Tree::new();
    for command in ["true", "echo hi", "cd . && x=1", "/bin/true"] {
        let mut times: Vec<u128> = (0..3000)
            .map(|_| {
                let begun = Instant::now();
                tree.ok(command);
                begun.elapsed().as_nanos() / 1000
            })
            .collect();
        times.sort_unstable();
        let at = |percent: usize| times[times.len() * percent / 100];
        println!("{command:12} p1 {} p10 {} p50 {} p90 {} µs", at(1), at(10), at(50), at(90));
    }
    let begun = Instant::now();
    let bytes = tree.limited("head -c 10G /dev/zero", 120_000).facts.output_bytes;
    println!("{bytes} bytes of output in {:?}", begun.elapsed());
}
