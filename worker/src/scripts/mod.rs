//! Programs of the operator's that serve sessions (`worker poll --on-work`).
//!
//! The control side has given up the rights that such a program needs. So a process that kept them is
//! there to start programs, and to signal them: the script starter. It is started before rights are
//! given up and before the worker has threads, reads nothing from the network, and ends with the
//! worker. [`starter`] is that process, [`link`] the control side's end of the line to it, [`frame`]
//! what goes over the line.

mod frame;
mod link;
pub mod starter;

pub use link::{Link, Program, StartError};
pub use starter::Starter;
