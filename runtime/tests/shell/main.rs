//! The persistent shell with a real keeper as PID 1 of a real PID namespace and a real bash.
//!
//! The keeper is this test binary, executed anew by unshare(1): see [`tree`].

mod endings;
mod hostile;
mod speed;
mod texts;
mod tree;
