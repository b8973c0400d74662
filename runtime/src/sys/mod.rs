//! The only `unsafe` of the project: system calls that neither `nix` nor `rustix` wraps in safe code.
//!
//! Borrowed or owned descriptors in and out, one unsafe operation per block, no policy, no logging.

mod clone;
mod descriptors;
mod disk;
mod fork;
mod interface;
mod keyring;
mod memory;
mod mount;
mod process;

pub use clone::{CloneArgs, Cloned, clone3};
pub use descriptors::{adopt_sealed, adopt_socket, close_all_but, close_on_exec_from, install_at};
pub use disk::{LoopStatus, loop_configure, loop_free_index, project_id, project_limits};
pub use fork::{Forked, fork, listen_for_children, send_signal};
pub use interface::{Family, interface_up, report_destination};
pub use keyring::join_anonymous_session_keyring;
pub use memory::release_code;
pub use mount::{MountAttributes, mount_setattr};
pub use process::{
    ForbiddenCall, abort_on_panic, default_signals, errors_instead_of_signals, exec_descriptor,
    exec_path, landlock_abi, try_forbidden,
};
