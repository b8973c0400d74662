//! What this kernel and machine offer.

mod facts;
mod level;

pub use facts::{CgroupOffer, EntryKind, HostEntry, HostFacts, KernelOffers, KernelVersion};
pub use level::Level;
