//! A time namespace in which the machine seems to have started just now: the host's uptime is a
//! fingerprint (time_namespaces(7)). The wall clock is not affected; the kernel offers no way.

use std::fs;
use std::io;

use nix::time::{ClockId, clock_gettime};

/// Not in nix, whose flags end with those of older kernels.
const CLONE_NEWTIME: libc::c_int = 0x80;

/// Children of this process see monotonic and boot time start near 0.
///
/// Offsets must be written after unshare and before the first child (written after a clone3 with
/// `CLONE_NEWTIME` the kernel answers `EACCES`). Linux 5.6.
pub(super) fn start_near_zero() -> io::Result<()> {
    let seconds = |clock: ClockId| clock_gettime(clock).map(|time| time.tv_sec());
    let monotonic = seconds(ClockId::CLOCK_MONOTONIC)?;
    let boot = seconds(ClockId::CLOCK_BOOTTIME)?;
    nix::sched::unshare(nix::sched::CloneFlags::from_bits_retain(CLONE_NEWTIME))?;
    fs::write(
        "/proc/self/timens_offsets",
        format!("monotonic -{monotonic} 0\nboottime -{boot} 0\n"),
    )
}
