//! What this kernel and machine offer.

mod level;

pub use level::Level;
