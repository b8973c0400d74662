//! Harness of the end-to-end tests: starts the built `worker` as an operator would, as root and as
//! an ordinary user, and holds every run to the rule that nothing of it is left behind (INV-10).
//!
//! Knows nothing of the runtime's code: the tests see what a user sees. The hostile payload is the
//! C program in `payload/`, which also serves as the subreaper that counts left-over processes.

pub mod bait;
pub mod claim;
pub mod custom;
pub mod devserver;
pub mod exec;
pub mod hostile;
pub mod lab;
pub mod leftover;
pub mod level;
pub mod locate;
pub mod lock;
pub mod needs;
pub mod play;
pub mod policy;
pub mod poll;
pub mod session;
pub mod site;
pub mod source;
pub mod stores;

pub use devserver::Devserver;
pub use exec::{End, Exec, Outcome};
pub use lab::Lab;
pub use level::Level;
pub use needs::Need;
pub use poll::{Poll, Ran, Worker};
pub use session::Session;
