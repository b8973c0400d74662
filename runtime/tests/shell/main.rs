//! The persistent shell with a real keeper as PID 1 of a real PID namespace and a real bash.
//!
//! The keeper is this test binary, executed anew by unshare(1): see [`tree`]. It has to be
//! single-threaded, which no test of the usual harness is; hence the `main` of our own.

mod children;
mod custom;
mod endings;
mod hostile;
mod speed;
mod texts;
mod tree;

use libtest_mimic::{Arguments, Trial};

fn main() {
    children::take_role();
    if tree::is_keeper() {
        tree::keeper_role();
    }
    let tests =
        [children::TESTS, custom::TESTS, texts::TESTS, endings::TESTS, hostile::TESTS].concat();
    let measurements = speed::MEASUREMENTS.iter().map(|test| trial(test).with_ignored_flag(true));
    let trials = tests.iter().map(trial).chain(measurements).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A test and its name.
type Test = (&'static str, fn());

fn trial((name, test): &Test) -> Trial {
    let test = *test;
    Trial::test(*name, move || {
        test();
        Ok(())
    })
}

/// The functions named, as tests.
macro_rules! tests {
    ($list:ident: $($name:ident),* $(,)?) => {
        pub const $list: &[crate::Test] = &[$((stringify!($name), $name)),*];
    };
}
pub(crate) use tests;
