//! The jail's network namespace: loopback, and nothing else.

use std::io;

use crate::sys;

/// Brings `lo` of the current network namespace up, which gives it 127.0.0.1 and ::1.
pub(super) fn loopback_up() -> io::Result<()> {
    sys::interface_up(c"lo")
}
